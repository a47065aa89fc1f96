//! How a dial goes on: which address is next, and when an attempt on it begins (RFC 8305, "happy
//! eyeballs").

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;

use crate::address::{Address, Target};
use crate::close::{self, CloseReason, OsError, Timeout};
use crate::id::AlarmId;
use crate::time::Instant;

/// The most attempts of one dial side by side. A network that drops what is sent to one family, or
/// a dead server among several, is passed by with two; each more costs a descriptor and, where all
/// are slow because the path is, a server that accepts in vain.
pub(crate) const ATTEMPTS_MAX: usize = 4;

/// The pauses before an attempt on a full backlog is repeated: they begin short, as a server that is
/// alive empties it in one turn, and double, as one that is not may be dialled by many.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// How far dialling has come.
///
/// What carries it out calls [`next`](DialState::next) until that says how long to wait, and reports
/// what came of each attempt.
#[derive(Debug)]
pub(crate) struct DialState {
    target: Target,
    /// The addresses of the target are not known yet.
    unresolved: bool,
    /// Addresses yet to be tried, in that order.
    addresses: VecDeque<Address>,
    /// Attempts that are not decided, at most [`ATTEMPTS_MAX`].
    attempts: Vec<Attempt>,
    /// When the next attempt may begin although others are not decided.
    next_at: Instant,
    /// The latest failure: of which address, if of one, and why.
    failure: Option<(Option<Address>, OsError)>,
    /// The alarm that is set for what comes next, and for when.
    pub(crate) alarm: Option<(AlarmId, Instant)>,
}

/// An attempt on one address that is not decided.
#[derive(Debug)]
struct Attempt {
    address: Address,
    begun_at: Instant,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Its socket, which this key stands for, connects.
    Connecting(usize),
    /// The backlog of the Unix-domain listener was full: it is repeated after this pause.
    Repeated { at: Instant, pause: Duration },
}

impl Attempt {
    const fn key(&self) -> Option<usize> {
        match self.phase {
            Phase::Connecting(key) => Some(key),
            Phase::Repeated { .. } => None,
        }
    }
}

/// What is to be done for a dial.
#[derive(Debug)]
pub(crate) enum Next {
    /// To begin an attempt.
    Begin(Start),
    /// To wait for an outcome, or until then.
    Wait(Option<Instant>),
    /// Nothing: no address is left.
    Exhausted,
}

/// An attempt to begin, or to begin again.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) address: Address,
    begun_at: Instant,
    /// The pause before it, if it is repeated.
    pause: Option<Duration>,
}

impl Start {
    /// Whether its address has not been tried before.
    pub(crate) const fn is_first(&self) -> bool {
        self.pause.is_none()
    }
}

impl DialState {
    pub(crate) const fn new(target: Target) -> Self {
        Self {
            target,
            unresolved: true,
            addresses: VecDeque::new(),
            attempts: Vec::new(),
            next_at: Instant::EPOCH,
            failure: None,
            alarm: None,
        }
    }

    pub(crate) const fn target(&self) -> &Target {
        &self.target
    }

    /// Whether the addresses of the target are not known yet.
    pub(crate) const fn is_unresolved(&self) -> bool {
        self.unresolved
    }

    /// The addresses of the target are known: those that can be dialled from `local`, if that is
    /// set. If attempts are `staggered` the families alternate, so that the second attempt tells
    /// whether the first family is to blame (RFC 8305, 4).
    pub(crate) fn take_addresses(
        &mut self,
        found: Vec<Address>,
        staggered: bool,
        local: Option<IpAddr>,
    ) {
        self.unresolved = false;
        let before = found.len();
        self.addresses = VecDeque::from(found);
        if let Some(local) = local {
            // A socket that is bound to an address of one family has no way to the other.
            self.addresses.retain(|address| {
                address.ip().is_none_or(|addr| addr.is_ipv4() == local.is_ipv4())
            });
        }
        if self.addresses.is_empty() && before > 0 {
            self.fail_with(None, OsError::of_kind(ErrorKind::AddrNotAvailable));
        }
        if staggered {
            interleave(&mut self.addresses);
        }
    }

    /// There is no answer to the look-up.
    pub(crate) fn fail_lookup(&mut self, error: OsError) {
        self.unresolved = false;
        self.fail_with(None, error);
    }

    /// What is to be done at `now`.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        if self.unresolved {
            return Next::Wait(None);
        }
        if let Some(start) = self.take_repeated(now) {
            return Next::Begin(start);
        }
        let room = self.attempts.len() < ATTEMPTS_MAX;
        if (self.attempts.is_empty() || (room && self.next_at <= now))
            && let Some(address) = self.addresses.pop_front()
        {
            return Next::Begin(Start { address, begun_at: now, pause: None });
        }
        if self.attempts.is_empty() {
            return Next::Exhausted;
        }
        let begins = room && !self.addresses.is_empty() && self.next_at < Instant::FAR_FUTURE;
        let repeats = self.attempts.iter().filter_map(|attempt| match attempt.phase {
            Phase::Repeated { at, .. } => Some(at),
            Phase::Connecting(_) => None,
        });
        Next::Wait(repeats.chain(begins.then_some(self.next_at)).min())
    }

    fn take_repeated(&mut self, now: Instant) -> Option<Start> {
        let (index, pause) =
            self.attempts.iter().enumerate().find_map(|(index, attempt)| match attempt.phase {
                Phase::Repeated { at, pause } if at <= now => Some((index, pause)),
                _ => None,
            })?;
        let Attempt { address, begun_at, .. } = self.attempts.remove(index);
        Some(Start { address, begun_at, pause: Some(pause) })
    }

    /// Whether an attempt is not decided.
    pub(crate) const fn has_attempts(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// An attempt began; `key` stands for its socket. The next one may begin `stagger` nanoseconds
    /// later.
    pub(crate) fn note_begun(&mut self, start: Start, key: usize, now: Instant, stagger: u64) {
        if start.is_first() {
            self.next_at = now.after(stagger);
        }
        let Start { address, begun_at, .. } = start;
        self.attempts.push(Attempt { address, begun_at, phase: Phase::Connecting(key) });
    }

    /// An attempt found the backlog full, and is repeated after a pause.
    pub(crate) fn note_backlog_full(&mut self, start: Start, now: Instant, stagger: u64) {
        if start.is_first() {
            self.next_at = now.after(stagger);
        }
        let pause = start.pause.map_or(RETRY_MIN, |pause| (pause * 2).min(RETRY_MAX));
        let Start { address, begun_at, .. } = start;
        let phase = Phase::Repeated { at: now + pause, pause };
        self.attempts.push(Attempt { address, begun_at, phase });
    }

    /// There is no room for an attempt beside the others. Its address is the next one all the same,
    /// when one of them has failed or `stagger` nanoseconds have passed.
    pub(crate) fn put_back(&mut self, start: Start, now: Instant, stagger: u64) {
        self.next_at = now.after(stagger);
        self.addresses.push_front(start.address);
    }

    /// An attempt could not begin.
    pub(crate) fn fail_start(&mut self, start: Start, error: OsError) {
        self.fail_with(Some(start.address), error);
    }

    /// An attempt has failed.
    pub(crate) fn fail(&mut self, key: usize, error: OsError) {
        let address = self.take(key);
        self.fail_with(address, error);
    }

    /// An attempt is decided. Returns its address.
    pub(crate) fn take(&mut self, key: usize) -> Option<Address> {
        let index = self.attempts.iter().position(|attempt| attempt.key() == Some(key))?;
        Some(self.attempts.remove(index).address)
    }

    /// Gives up the oldest attempt if its time is over: if it began by `latest`. Returns its
    /// address, and the key of its socket if it has one.
    pub(crate) fn expire(&mut self, latest: Instant) -> Option<(Address, Option<usize>)> {
        let begun_at = self.oldest().filter(|begun_at| *begun_at <= latest)?;
        let index = self.attempts.iter().position(|attempt| attempt.begun_at == begun_at)?;
        let attempt = self.attempts.remove(index);
        let key = attempt.key();
        self.fail_with(Some(attempt.address.clone()), OsError::of_kind(ErrorKind::TimedOut));
        Some((attempt.address, key))
    }

    fn fail_with(&mut self, address: Option<Address>, error: OsError) {
        self.failure = Some((address, error));
        // The next one begins at once.
        self.next_at = Instant::EPOCH;
    }

    /// When the oldest attempt began that is not decided.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.attempts.iter().map(|attempt| attempt.begun_at).min()
    }

    /// The sockets of the attempts that are not decided, by their keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = usize> {
        self.attempts.iter().filter_map(Attempt::key)
    }

    /// Which address a socket dials.
    pub(crate) fn address_of(&self, key: usize) -> Option<&Address> {
        let attempt = self.attempts.iter().find(|attempt| attempt.key() == Some(key))?;
        Some(&attempt.address)
    }

    /// The address of the latest failure, and why a dial ends that has no address left.
    pub(crate) fn outcome(&self) -> (Option<Address>, CloseReason) {
        let Some((address, failure)) = &self.failure else {
            return (None, CloseReason::ConnectFailed(OsError::of_kind(ErrorKind::NotFound)));
        };
        let reason = if failure.kind() == ErrorKind::TimedOut && failure.raw_os_error().is_none() {
            CloseReason::Timeout(Timeout::Connect)
        } else {
            CloseReason::ConnectFailed(*failure)
        };
        (address.clone(), reason)
    }
}

/// Whose doing it was that a dial failed, or what followed it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Blame {
    /// The peer's, or the network's between.
    Theirs,
    /// We had no port, descriptor, or place left, or were stopping.
    Ours,
}

/// Whose doing it was that a dialled connection ended for `reason`.
pub(crate) fn blame_for(reason: CloseReason) -> Blame {
    let errno = match reason {
        // Too many names are looked up already.
        CloseReason::ConnectFailed(error) if error.kind() == ErrorKind::QuotaExceeded => {
            return Blame::Ours;
        }
        CloseReason::ConnectFailed(error) | CloseReason::Io(error) => error.raw_os_error(),
        CloseReason::HardStop | CloseReason::Shutdown => return Blame::Ours,
        // It made room for others.
        reason if matches!(reason.fault(), close::Fault::Load) => return Blame::Ours,
        _ => None,
    };
    // connect(2): the last two say that there is no free port.
    let is_ours = is_shortage(errno) || matches!(errno, Some(libc::EADDRNOTAVAIL | libc::EAGAIN));
    if is_ours { Blame::Ours } else { Blame::Theirs }
}

/// Whether the system lacks what any other attempt would need as well.
pub(crate) fn is_shortage(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC))
}

/// Lets the families alternate, the first address' family first, and keeps the order within each.
fn interleave(addresses: &mut VecDeque<Address>) {
    let family = |address: &Address| address.ip().map(|addr| addr.is_ipv4());
    let Some(first) = addresses.front().map(family) else { return };
    let (mut ours, mut others): (VecDeque<_>, VecDeque<_>) =
        addresses.drain(..).partition(|address| family(address) == first);
    while !ours.is_empty() || !others.is_empty() {
        addresses.extend(ours.pop_front());
        addresses.extend(others.pop_front());
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const STAGGER: u64 = 250_000_000;

    fn at(millis: u64) -> Instant {
        Instant::EPOCH + Duration::from_millis(millis)
    }

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    /// IPv6 addresses that end with these numbers, then IPv4 addresses that do.
    fn addresses(v6: &[u8], v4: &[u8]) -> Vec<Address> {
        let v6 = v6.iter().map(|number| address(&format!("[2001:db8::{number}]:80")));
        let v4 = v4.iter().map(|number| address(&format!("192.0.2.{number}:80")));
        v6.chain(v4).collect()
    }

    fn dial(found: Vec<Address>) -> DialState {
        let mut dial = DialState::new(Target::Name { host: "name".into(), port: 80 });
        assert!(matches!(dial.next(at(0)), Next::Wait(None)));
        dial.take_addresses(found, true, None);
        dial
    }

    #[track_caller]
    fn begins(dial: &mut DialState, now: Instant) -> Start {
        match dial.next(now) {
            Next::Begin(start) => start,
            next => panic!("{next:?}"),
        }
    }

    #[track_caller]
    fn waits(dial: &mut DialState, now: Instant) -> Option<Instant> {
        match dial.next(now) {
            Next::Wait(until) => until,
            next => panic!("{next:?}"),
        }
    }

    /// Begins the next attempt. Returns its address.
    #[track_caller]
    fn begin(dial: &mut DialState, key: usize, now: Instant, stagger: u64) -> Address {
        let start = begins(dial, now);
        let address = start.address.clone();
        dial.note_begun(start, key, now, stagger);
        address
    }

    fn refused() -> OsError {
        io::Error::from_raw_os_error(libc::ECONNREFUSED).into()
    }

    #[test]
    fn the_families_alternate_from_that_of_the_first_address() {
        for (v6, v4, order) in [
            (&[1, 2, 3][..], &[4, 5][..], "1 4 2 5 3"),
            (&[1], &[4, 5, 6], "1 4 5 6"),
            (&[], &[4, 5], "4 5"),
            (&[1, 2], &[], "1 2"),
            (&[], &[], ""),
        ] {
            let last = |address: &Address| {
                let text = address.ip().unwrap().ip().to_string();
                text.rsplit([':', '.']).next().unwrap().to_owned()
            };
            let mut found = VecDeque::from(addresses(v6, v4));
            interleave(&mut found);
            assert_eq!(found.iter().map(last).collect::<Vec<_>>().join(" "), order);
        }
        let mut found = VecDeque::from([address("192.0.2.1:80"), address("[2001:db8::1]:80")]);
        found.push_front(address("192.0.2.2:80"));
        interleave(&mut found);
        assert_eq!(found, ["192.0.2.2:80", "[2001:db8::1]:80", "192.0.2.1:80"].map(address));
    }

    #[test]
    fn without_a_stagger_the_order_is_the_resolvers_and_one_follows_another() {
        let mut dial = DialState::new(Target::Name { host: "name".into(), port: 80 });
        let found = addresses(&[1, 2], &[3]);
        dial.take_addresses(found.clone(), false, None);
        assert_eq!(begin(&mut dial, 0, at(0), u64::MAX), found[0]);
        assert_eq!(waits(&mut dial, at(100_000)), None);
        dial.fail(0, refused());
        assert_eq!(begin(&mut dial, 1, at(100_000), u64::MAX), found[1]);
        assert_eq!(waits(&mut dial, at(200_000)), None);
    }

    #[test]
    fn the_next_attempt_begins_after_the_stagger_or_a_failure() {
        let mut dial = dial(addresses(&[1, 2], &[3, 4]));
        begin(&mut dial, 0, at(0), STAGGER);
        assert_eq!(waits(&mut dial, at(0)), Some(at(250)));
        assert_eq!(waits(&mut dial, at(249)), Some(at(250)));
        begin(&mut dial, 1, at(250), STAGGER);
        assert_eq!(waits(&mut dial, at(300)), Some(at(500)));
        // The failure of any of them lets the next one begin, and the stagger anew.
        dial.fail(0, refused());
        begin(&mut dial, 2, at(300), STAGGER);
        assert_eq!(waits(&mut dial, at(500)), Some(at(550)));
        begin(&mut dial, 3, at(550), STAGGER);
        assert_eq!(waits(&mut dial, at(600)), None, "no address is left");
        assert_eq!(dial.keys().collect::<Vec<_>>(), [1, 2, 3]);
        for key in 1..4 {
            assert!(!matches!(dial.next(at(600)), Next::Exhausted));
            dial.fail(key, refused());
        }
        assert!(matches!(dial.next(at(600)), Next::Exhausted));
    }

    #[test]
    fn attempts_side_by_side_are_bounded() {
        let mut dial = dial(addresses(&[1, 2, 3, 4, 5, 6], &[]));
        for key in 0..ATTEMPTS_MAX {
            begin(&mut dial, key, at(key as u64 * 250), STAGGER);
        }
        assert_eq!(waits(&mut dial, at(100_000)), None);
        assert_eq!(dial.oldest(), Some(at(0)));
        // When the time of the oldest is over the next one begins.
        assert!(dial.expire(at(0)).is_some());
        assert!(dial.expire(at(0)).is_none());
        begin(&mut dial, 9, at(5_000), STAGGER);
        assert_eq!(waits(&mut dial, at(5_000)), None);
        assert_eq!(dial.oldest(), Some(at(250)));
    }

    #[test]
    fn the_last_failure_is_the_outcome() {
        let mut dial = dial(addresses(&[1], &[2]));
        let none = CloseReason::ConnectFailed(OsError::of_kind(ErrorKind::NotFound));
        assert_eq!(dial.outcome(), (None, none));
        begin(&mut dial, 0, at(0), STAGGER);
        begin(&mut dial, 1, at(250), STAGGER);
        dial.fail(1, refused());
        let failed = CloseReason::ConnectFailed(refused());
        assert_eq!(dial.outcome(), (Some(address("192.0.2.2:80")), failed));
        dial.expire(at(0));
        let late = CloseReason::Timeout(Timeout::Connect);
        assert_eq!(dial.outcome(), (Some(address("[2001:db8::1]:80")), late));
        // What the system gave up is its error.
        dial.fail_lookup(io::Error::from_raw_os_error(libc::ETIMEDOUT).into());
        assert!(matches!(dial.outcome(), (None, CloseReason::ConnectFailed(_))));
    }

    #[test]
    fn an_address_without_room_is_tried_later() {
        let mut dial = dial(addresses(&[1], &[2]));
        begin(&mut dial, 0, at(0), STAGGER);
        let start = begins(&mut dial, at(250));
        let second = start.address.clone();
        dial.put_back(start, at(250), STAGGER);
        assert_eq!(waits(&mut dial, at(250)), Some(at(500)));
        dial.fail(0, refused());
        assert_eq!(begin(&mut dial, 1, at(300), STAGGER), second);
    }

    #[test]
    fn an_attempt_on_a_full_backlog_is_repeated_with_growing_pauses() {
        let mut dial = DialState::new(address("unix:/run/peer").into());
        dial.take_addresses(vec![address("unix:/run/peer")], true, None);
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let start = begins(&mut dial, now);
            dial.note_backlog_full(start, now, STAGGER);
            let until = waits(&mut dial, now).unwrap();
            pauses.push((until - now).as_millis());
            now = until;
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 500, 500]);
        // All of it is one attempt.
        assert_eq!(dial.oldest(), Some(at(0)));
        assert_eq!(dial.expire(at(0)), Some((address("unix:/run/peer"), None)));
        assert!(matches!(dial.next(now), Next::Exhausted));
    }

    #[test]
    fn only_addresses_of_the_local_family_are_dialled() {
        let mut dial = DialState::new(Target::Name { host: "name".into(), port: 80 });
        dial.take_addresses(addresses(&[1], &[2]), true, Some([192, 0, 2, 9].into()));
        assert_eq!(begin(&mut dial, 0, at(0), STAGGER), address("192.0.2.2:80"));
        assert_eq!(waits(&mut dial, at(0)), None);
        let mut dial = DialState::new(address("[2001:db8::1]:80").into());
        dial.take_addresses(addresses(&[1], &[]), true, Some([192, 0, 2, 9].into()));
        assert!(matches!(dial.next(at(0)), Next::Exhausted));
        let (_, CloseReason::ConnectFailed(error)) = dial.outcome() else { panic!() };
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    }
}
