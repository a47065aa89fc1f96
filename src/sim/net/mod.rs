//! The network of a simulated world: time, sockets, links, and what is on its way.
//!
//! TCP as its users see it (RFC 9293): bytes arrive in order within a window, a FIN comes after
//! them, a reset at once, and nothing is lost but time. What a partition holds back is sent again
//! with growing pauses.

mod peers;
mod ready;
mod side;
mod tcp;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;
use std::{cmp, fmt, io};

use slab::Slab;

pub(super) use self::side::{BOTH, Buffers};
use self::side::{Connection, Ledger, Side};
use super::errno::Named;
use super::fault::{Call, Faults};
use super::history::{History, Of, Outcome, Place, TraceEvent};
use super::random::{Random, Trace};
use crate::address::Address;
use crate::backend::{Readiness, Source, Token};
use crate::id::ConnId;
use crate::time::{Instant, nanos};

/// How the two ends of a connection reach each other.
///
/// ```
/// use std::time::Duration;
/// use wheelhouse::sim::Link;
///
/// let modem = Link { latency: Duration::from_millis(80), bandwidth: Some(7_000), ..Link::LOOPBACK };
/// assert_eq!(modem.segment, Link::LOOPBACK.segment);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Link {
    /// The time from one end to the other.
    pub latency: Duration,
    /// At most so much more, drawn for each segment; order is kept.
    pub jitter: Duration,
    /// Bytes per second, `None` for as many as there are.
    pub bandwidth: Option<u64>,
    /// The most bytes that travel, and arrive, together.
    pub segment: usize,
}

impl Link {
    /// No latency, no limit, segments of 64 KiB.
    pub const LOOPBACK: Self =
        Self { latency: Duration::ZERO, jitter: Duration::ZERO, bandwidth: None, segment: 65_536 };
}

impl Default for Link {
    fn default() -> Self {
        Self::LOOPBACK
    }
}

/// Which kind of readiness a simulated host reports: what mio makes of each system.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Personality {
    /// Linux: one event says all that a socket is ready for, hints included; one comes for each
    /// arrival, and for room to write only after a write that was cut short.
    Epoll,
    /// The BSDs: reading and writing are announced apart, room whenever there is some, and our own
    /// FIN too.
    Kqueue,
    /// The least that mio's documentation allows: no hints, and no second event for reading or for
    /// writing until a call of that kind would have blocked.
    Weakest,
}

impl Personality {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Epoll, Self::Kqueue, Self::Weakest];
}

/// How a connection ended, as a peer saw it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum End {
    /// With a FIN, after everything that was sent.
    Fin,
    /// With a reset.
    Reset,
    /// It never began: nothing listens there.
    Refused,
    /// It never began, or nothing got through any more.
    TimedOut,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Socket {
    index: u32,
    serial: u32,
    /// 0 dialled, 1 was dialled.
    side: u8,
}

impl Socket {
    pub(super) const fn far(self) -> Self {
        Self { side: 1 - self.side, ..self }
    }

    const fn side(self) -> usize {
        self.side as usize
    }

    fn mark(self) -> u64 {
        u64::from(self.index) << 33 | u64::from(self.serial) << 1 | u64::from(self.side)
    }
}

/// The holder of an end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Holder {
    /// A process on a host, which is notified of readiness.
    Host(usize),
    /// A peer of the script.
    Peer,
}

/// What a peer does with what arrives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ReadMode {
    /// It reads at once.
    All,
    /// It reads nothing by itself.
    Nothing,
    /// So many bytes a second.
    Rate(u64),
}

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) holder: Holder,
    pub(super) address: Address,
    backlog: usize,
    pub(super) queue: VecDeque<Socket>,
    pub(super) token: Option<Token>,
    queued: bool,
    armed: bool,
    /// It will be announced again.
    later: Readiness,
    pub(super) fd: Option<u32>,
    /// That of the connections it gives.
    pub(super) user_timeout: Option<Duration>,
}

/// A notification for a host.
#[derive(Clone, Copy, Debug)]
pub(super) enum Notice {
    Socket(Socket),
    Listener(usize),
}

/// A machine with one process.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) ip: IpAddr,
    pub(super) personality: Personality,
    pub(super) notices: VecDeque<Notice>,
    /// Descriptors in use.
    pub(super) fds: BTreeSet<u32>,
    pub(super) fds_max: usize,
    /// No descriptor below this one is free.
    lowest_free: u32,
    /// What its clock shows beside the world's.
    ahead: Duration,
    /// By how much it was set back.
    behind: Duration,
    /// Its clock stands still at this moment, until that one.
    pub(super) frozen: Option<(Instant, Instant)>,
    /// It has been suspended, and wakes up from that.
    pub(super) resumed: bool,
    /// It is not scheduled before.
    pub(super) asleep_until: Instant,
    /// When its latest wait was to end.
    pub(super) wakes_at: Instant,
    /// Calls that did something, to detect a turn without progress.
    pub(super) progress: u64,
    /// Look-ups that have not been answered, the oldest first.
    pub(super) lookups: VecDeque<Lookup>,
    /// Answers to look-ups not yet announced, and announced.
    pub(super) answers: VecDeque<(Token, io::Result<Vec<Address>>)>,
    pub(super) announced: Vec<(Token, io::Result<Vec<Address>>)>,
    /// Sockets after the tokens they are registered under: the attempts of a dial share one.
    tokens: BTreeSet<(Token, Socket)>,
    /// What its handler gets and writes is compared with what its sockets do.
    pub(super) watched: bool,
    /// Tokens of sockets that were closed lately, the latest last.
    pub(super) stale: VecDeque<Token>,
    pub(super) faults: Faults,
    pub(super) panics: VecDeque<Instant>,
    next_port: u16,
    /// How often its process made each call.
    calls: [u64; Call::ALL.len()],
    /// Until when its process or clock was last out of step with the world.
    pub(super) disturbed_until: Option<Instant>,
    /// A wait failed because it was ordered to.
    pub(super) wait_failed: bool,
    /// Another process holds a descriptor of each of its sockets.
    pub(super) duplicated: bool,
}

impl Machine {
    /// The socket that is registered under a token; the oldest, while several dial for one
    /// connection.
    fn socket_of(&self, token: Token) -> Option<Socket> {
        let first = Socket { index: 0, serial: 0, side: 0 };
        let (of, socket) = self.tokens.range((token, first)..).next()?;
        (*of == token).then_some(*socket)
    }

    /// What its clock shows at `now`, if it goes.
    fn clock_at(&self, now: Instant) -> Instant {
        let shown = (now + self.ahead).as_nanos();
        Instant::from_nanos(shown.saturating_sub(nanos(self.behind)))
    }
}

/// The descriptors that a process has before it opens any: standard input, output and error, a
/// poll and a waker.
pub(super) const FDS_FIXED: u32 = 5;

/// A call that is to fail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scripted {
    /// On which machine; on any if there is none.
    machine: Option<usize>,
    call: Call,
    /// How many of its kind come before.
    after: u64,
    errno: i32,
}

/// The one call of a run that is to fail, by its number among all calls.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Injection {
    pub(super) number: u64,
    pub(super) call: Call,
    pub(super) errno: i32,
}

/// What happens at some time.
enum Event {
    Arrive(Socket),
    Retry(Socket),
    Syn(Socket, u32),
    Established(Socket, u32),
    Refuse(Socket, u32),
    Drain(Socket),
    Notify(Notice),
    Answer(usize, Token, io::Result<Vec<Address>>),
    Script(Box<dyn FnOnce(&mut Net)>),
}

impl Event {
    /// Whether it ends a journey: what is tried again after a pause does not.
    const fn travels(&self) -> bool {
        matches!(
            self,
            Self::Arrive(_)
                | Self::Established(_, 0)
                | Self::Notify(_)
                | Self::Refuse(_, 0)
                | Self::Syn(_, 0)
        )
    }
}

struct Due {
    at: Instant,
    order: u64,
    what: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The earliest is the greatest, as a heap gives that first.
impl Ord for Due {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// A name and what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) answer: Result<Vec<Address>, i32>,
    pub(super) after: Option<Duration>,
}

/// A look-up that a process began.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) token: Token,
    /// What comes of it and how long it takes; `None` once it is under way.
    answer: Option<(io::Result<Vec<Address>>, Option<Duration>)>,
}

/// How many look-ups a process has under way at once; the others wait.
const LOOKUPS_MAX: usize = 8;

/// What faults have been injected.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) faults: u64,
    pub(super) pairs: BTreeSet<(Call, i32)>,
}

/// The wall clock at first: 2020-01-01 00:00 UTC.
const UNIX_AT_FIRST: Duration = Duration::from_secs(1_577_836_800);

/// Everything but the reactors.
pub(super) struct Net {
    pub(super) now: Instant,
    /// What the wall clock said, and when.
    pub(super) unix: (Duration, Instant),
    pub(super) random: Random,
    trace: Trace,
    happenings: BinaryHeap<Due>,
    /// How many of them are bytes or signals on their way.
    travelling: usize,
    order: u64,
    connections: Slab<Connection>,
    serial: u32,
    pub(super) listeners: Slab<Listener>,
    pub(super) machines: Vec<Machine>,
    /// Where peers are: a machine of the script's own that answers what it does not expect.
    pub(super) peers_ip: IpAddr,
    links: BTreeMap<(IpAddr, IpAddr), Link>,
    pub(super) link: Link,
    cut: BTreeSet<(IpAddr, IpAddr)>,
    pub(super) names: BTreeMap<String, Name>,
    pub(super) buffers: Buffers,
    next_peer: u16,
    /// How often each call was made, and all of them together.
    calls: [u64; Call::ALL.len()],
    log: Option<Vec<Call>>,
    scripted: Vec<Scripted>,
    pub(super) inject: Option<Injection>,
    made: u64,
    pub(super) history: History,
    /// Callbacks may panic by themselves.
    pub(super) panics_allowed: bool,
    /// Calls take time.
    pub(super) charges: bool,
    /// How many descriptors a process may have that is made from here on.
    pub(super) fds_max: usize,
    pub(super) tally: Tally,
    /// What a check found wrong first.
    pub(super) broken: Option<String>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("now", &self.now)
            .field("connections", &self.connections.len())
            .field("machines", &self.machines)
            .finish_non_exhaustive()
    }
}

/// The addresses of peers are those of TEST-NET-1 (RFC 5737).
const PEERS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Instant::EPOCH,
            unix: (UNIX_AT_FIRST, Instant::EPOCH),
            random: Random::new(seed),
            trace: Trace::default(),
            happenings: BinaryHeap::new(),
            travelling: 0,
            order: 0,
            connections: Slab::new(),
            serial: 0,
            listeners: Slab::new(),
            machines: Vec::new(),
            peers_ip: PEERS,
            links: BTreeMap::new(),
            link: Link::LOOPBACK,
            cut: BTreeSet::new(),
            names: BTreeMap::new(),
            buffers: Buffers { send: 256 * 1024, receive: 128 * 1024 },
            next_peer: 40_000,
            calls: [0; Call::ALL.len()],
            log: None,
            scripted: Vec::new(),
            inject: None,
            made: 0,
            history: History::new(),
            panics_allowed: false,
            charges: false,
            fds_max: 20_000,
            tally: Tally::default(),
            broken: None,
        }
    }

    /// Adds to the fingerprint of the run.
    pub(super) const fn note(&mut self, kind: u64, value: u64) {
        self.trace.note(self.now.as_nanos());
        self.trace.note(kind);
        self.trace.note(value);
    }

    /// Adds bytes to the fingerprint.
    fn note_bytes(&mut self, bytes: &[u8]) {
        // FNV-1a, by words.
        let mut words = bytes.chunks_exact(8);
        let mut hash = words.by_ref().fold(0xCBF2_9CE4_8422_2325, |hash: u64, word| {
            (hash ^ word.try_into().map_or(0, u64::from_le_bytes)).wrapping_mul(0x100_0000_01B3)
        });
        for byte in words.remainder() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        }
        self.note(bytes.len() as u64, hash);
    }

    pub(super) const fn trace_hash(&self) -> u64 {
        self.trace.hash()
    }

    pub(super) fn record(&mut self, place: Place, event: TraceEvent) {
        self.history.record(self.now, place, event);
    }

    /// What happened at the holder of this end.
    pub(super) fn record_at(&mut self, socket: Socket, event: TraceEvent) {
        let place = match self.side(socket) {
            Some(Side { holder: Holder::Host(machine), .. }) => self.place_of(*machine),
            Some(side) => Place::Peer(side.address.ip()),
            None => return,
        };
        self.record(place, event);
    }

    pub(super) fn place_of(&self, machine: usize) -> Place {
        Place::Machine(self.machines[machine].ip)
    }

    /// How events name the connection of a socket.
    pub(super) fn of(&self, socket: Socket) -> Of {
        let source = self.side(socket).and_then(|side| side.token).map(Token::source);
        let id = match source {
            Some(Source::Conn(id)) => Some(id),
            _ => None,
        };
        Of { id, far: self.side(socket.far()).and_then(|side| side.address.ip()) }
    }

    /// Notes what came of the call that a process made last.
    pub(super) fn record_call(
        &mut self,
        machine: usize,
        call: Call,
        socket: Option<Socket>,
        outcome: Outcome,
    ) {
        // What only asks, or moves nothing, is no progress.
        let moves = match outcome {
            Outcome::Done => call != Call::TakeError && call != Call::LocalAddr,
            Outcome::Count(count) => count > 0 || call == Call::Read,
            Outcome::Found(_) => true,
            Outcome::Failed(_) | Outcome::Injected(_) => false,
        };
        self.machines[machine].progress += u64::from(moves);
        let of = socket.map_or_else(Of::default, |socket| self.of(socket));
        let event = TraceEvent::Call { number: self.made.saturating_sub(1), call, of, outcome };
        self.record(self.place_of(machine), event);
    }

    pub(super) fn fail_check(&mut self, what: impl Into<String>) {
        self.broken.get_or_insert_with(|| what.into());
    }
}

/// Time.
impl Net {
    fn schedule(&mut self, at: Instant, what: Event) {
        self.order += 1;
        self.travelling += usize::from(what.travels());
        self.happenings.push(Due { at: at.max(self.now), order: self.order, what });
    }

    pub(super) fn at(&mut self, at: Instant, script: impl FnOnce(&mut Self) + 'static) {
        self.schedule(at, Event::Script(Box::new(script)));
    }

    /// When the next thing happens.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.happenings.peek().map(|due| due.at)
    }

    /// Lets everything happen that is due by `until`, and the time be that.
    pub(super) fn run_until(&mut self, until: Instant) {
        while let Some(due) = self.happenings.peek()
            && due.at <= until
        {
            let Some(Due { at, what, .. }) = self.happenings.pop() else { return };
            self.travelling -= usize::from(what.travels());
            self.now = self.now.max(at);
            self.happen(what);
        }
        self.now = self.now.max(until);
    }

    /// Whether no bytes or signals are on their way.
    pub(super) const fn is_quiet(&self) -> bool {
        self.travelling == 0
    }

    fn happen(&mut self, what: Event) {
        match what {
            Event::Arrive(to) => self.arrive(to),
            Event::Retry(to) => self.retry(to),
            Event::Syn(from, attempt) => self.take_syn(from, attempt),
            Event::Established(socket, attempt) => self.establish(socket, attempt),
            Event::Refuse(socket, attempt) => self.refuse(socket, attempt),
            Event::Drain(socket) => self.drain(socket),
            Event::Notify(notice) => self.say_later(notice),
            Event::Answer(machine, token, answer) => {
                let lookups = &mut self.machines[machine].lookups;
                let Some(index) = lookups.iter().position(|lookup| lookup.token == token) else {
                    return;
                };
                lookups.remove(index);
                self.start_lookups(machine);
                let found = answer.as_ref().map(Vec::len);
                let found = found.map_err(|error| error.raw_os_error().unwrap_or(0));
                self.record(self.place_of(machine), TraceEvent::Answer(found));
                self.machines[machine].answers.push_back((token, answer));
            }
            Event::Script(script) => script(self),
        }
    }

    /// Says again, a moment later, what a socket is ready for: the system kept something back.
    pub(super) fn notify_later(&mut self, notice: Notice, what: Readiness) {
        // One such saying at a time: each may lead to another, and they must not multiply.
        let later = match notice {
            Notice::Socket(socket) => self.side_mut(socket).map(|side| &mut side.later),
            Notice::Listener(index) => {
                self.listeners.get_mut(index).map(|listener| &mut listener.later)
            }
        };
        let Some(later) = later else { return };
        let first = *later == Readiness::NONE;
        *later = later.and(what);
        if first {
            let pause = Duration::from_micros(1 + self.random.below(5_000));
            self.schedule(self.now + pause, Event::Notify(notice));
        }
    }

    fn say_later(&mut self, notice: Notice) {
        match notice {
            Notice::Socket(socket) => {
                let Some(side) = self.side_mut(socket) else { return };
                let what = std::mem::take(&mut side.later);
                self.notify(socket, what);
            }
            Notice::Listener(index) => {
                let Some(listener) = self.listeners.get_mut(index) else { return };
                listener.later = Readiness::NONE;
                self.notify_listener(index);
            }
        }
    }

    pub(super) fn begin_lookup(
        &mut self,
        machine: usize,
        token: Token,
        answer: io::Result<Vec<Address>>,
        after: Option<Duration>,
    ) {
        let lookup = Lookup { token, answer: Some((answer, after)) };
        self.machines[machine].lookups.push_back(lookup);
        self.start_lookups(machine);
    }

    pub(super) fn cancel_lookup(&mut self, machine: usize, token: Token) {
        let lookups = &mut self.machines[machine].lookups;
        let before = lookups.len();
        lookups.retain(|lookup| lookup.token != token);
        if lookups.len() < before {
            self.start_lookups(machine);
        }
    }

    /// The oldest are under way.
    fn start_lookups(&mut self, machine: usize) {
        for index in 0..self.machines[machine].lookups.len().min(LOOKUPS_MAX) {
            let lookup = &mut self.machines[machine].lookups[index];
            let token = lookup.token;
            if let Some((answer, Some(after))) = lookup.answer.take() {
                self.schedule(self.now + after, Event::Answer(machine, token, answer));
            }
        }
    }
}

/// Machines and the calls of their processes.
impl Net {
    pub(super) fn add_machine(&mut self, ip: IpAddr, personality: Personality) -> usize {
        self.machines.push(Machine {
            ip,
            personality,
            notices: VecDeque::new(),
            fds: (0..FDS_FIXED).collect(),
            fds_max: self.fds_max,
            lowest_free: FDS_FIXED,
            ahead: Duration::ZERO,
            behind: Duration::ZERO,
            frozen: None,
            resumed: false,
            asleep_until: Instant::EPOCH,
            wakes_at: Instant::EPOCH,
            progress: 0,
            lookups: VecDeque::new(),
            answers: VecDeque::new(),
            announced: Vec::new(),
            tokens: BTreeSet::new(),
            watched: false,
            stale: VecDeque::new(),
            faults: Faults::NONE,
            panics: VecDeque::new(),
            next_port: 49_152,
            calls: [0; Call::ALL.len()],
            disturbed_until: None,
            wait_failed: false,
            duplicated: false,
        });
        self.machines.len() - 1
    }

    /// The lowest free descriptor, as POSIX demands.
    pub(super) fn take_fd(&mut self, machine: usize) -> Option<u32> {
        let machine = &mut self.machines[machine];
        if machine.fds.len() >= machine.fds_max {
            return None;
        }
        let free = (machine.lowest_free..).find(|fd| !machine.fds.contains(fd))?;
        machine.fds.insert(free);
        machine.lowest_free = free + 1;
        Some(free)
    }

    pub(super) fn free_fd(&mut self, machine: usize, fd: u32) {
        let machine = &mut self.machines[machine];
        machine.lowest_free = machine.lowest_free.min(fd);
        if !machine.fds.remove(&fd) {
            self.fail_check(format!("descriptor {fd} was closed twice"));
        }
    }

    pub(super) fn unix_now(&self) -> Duration {
        let (unix, at) = self.unix;
        unix + self.now.duration_since(at)
    }

    pub(super) fn host_now(&mut self, machine: usize) -> Instant {
        let now = self.now;
        let machine = &mut self.machines[machine];
        match machine.frozen {
            Some((at, until)) if now < until => machine.clock_at(at),
            Some(_) => {
                machine.frozen = None;
                machine.clock_at(now)
            }
            None => machine.clock_at(now),
        }
    }

    /// Sets a clock back.
    pub(super) fn set_back(&mut self, machine: usize, by: Duration) {
        let behind = &mut self.machines[machine].behind;
        *behind = behind.saturating_add(by);
    }

    /// By how much a clock was set back in all.
    pub(super) fn behind(&self, machine: usize) -> Duration {
        self.machines[machine].behind
    }

    /// Lets a clock jump ahead, as it may after a suspension.
    pub(super) fn jump(&mut self, machine: usize, ahead: Duration) {
        let before = &mut self.machines[machine].ahead;
        *before = before.saturating_add(ahead);
        self.machines[machine].resumed = true;
        self.disturb(machine, self.now);
    }

    /// A process or its clock is out of step with the world until then, so that deadlines pass that
    /// it could not have kept.
    pub(super) fn disturb(&mut self, machine: usize, until: Instant) {
        let disturbed = &mut self.machines[machine].disturbed_until;
        *disturbed = Some(disturbed.map_or(until, |before| before.max(until)));
    }

    /// Whether a process has something to do without its clock.
    pub(super) fn has_notices(&self, machine: usize) -> bool {
        let machine = &self.machines[machine];
        !machine.notices.is_empty() || !machine.answers.is_empty() || machine.resumed
    }

    /// The call of this kind that comes after so many others is to fail: those of one machine count,
    /// or those of all.
    pub(super) fn fail(&mut self, machine: Option<usize>, call: Call, after: u64, errno: i32) {
        let made = machine.map_or(&self.calls, |machine| &self.machines[machine].calls);
        let after = made[call as usize] + after;
        self.scripted.push(Scripted { machine, call, after, errno });
    }

    /// Lets no call fail any more that was ordered to.
    pub(super) fn clear_scripted(&mut self) {
        self.scripted.clear();
        self.inject = None;
    }

    /// The failures that were ordered, and whose calls have not been made.
    pub(super) fn unspent(&self) -> &[Scripted] {
        &self.scripted
    }

    pub(super) fn describe_scripted(&self, scripted: &Scripted) -> String {
        let Scripted { machine, call, after, errno } = *scripted;
        let made = machine.map_or(&self.calls, |machine| &self.machines[machine].calls);
        let host = machine.map_or_else(
            || "all hosts together".into(),
            |machine| self.machines[machine].ip.to_string(),
        );
        let made = made[call as usize];
        format!("{call} number {after} was to fail with {}, and {host} made {made}", Named(errno))
    }

    pub(super) fn start_log(&mut self) {
        self.log = Some(Vec::new());
    }

    pub(super) fn take_log(&mut self) -> Vec<Call> {
        self.log.take().unwrap_or_default()
    }

    /// Lets the time pass that a call takes, where calls take time.
    pub(super) fn charge(&mut self, cost: Duration) {
        if self.charges {
            self.run_until(self.now + cost);
        }
    }

    /// Notes a call, and says with which error it is to fail, if it is.
    pub(super) fn enter(
        &mut self,
        machine: usize,
        call: Call,
        socket: Option<Socket>,
    ) -> Option<i32> {
        self.charge(call.cost());
        if let Some(log) = &mut self.log {
            log.push(call);
        }
        let number = self.made;
        self.made += 1;
        let errno = self
            .take_scripted(machine, call)
            .or_else(|| self.take_injection(number, call))
            .or_else(|| self.draw(machine, call));
        self.calls[call as usize] += 1;
        self.machines[machine].calls[call as usize] += 1;
        self.note(call as u64, errno.unwrap_or(0) as u64);
        if let Some(errno) = errno {
            self.tally.faults += 1;
            self.tally.pairs.insert((call, errno));
            self.record_call(machine, call, socket, Outcome::Injected(errno));
            // A signal is none of the failures that end a reactor.
            self.machines[machine].wait_failed |= call == Call::Wait && errno != libc::EINTR;
        }
        errno
    }

    fn take_scripted(&mut self, machine: usize, call: Call) -> Option<i32> {
        if self.scripted.is_empty() {
            return None;
        }
        let calls = (&self.calls, &self.machines[machine].calls);
        let index = self.scripted.iter().position(|it| {
            let made = if it.machine.is_some() { calls.1 } else { calls.0 };
            it.call == call
                && it.machine.is_none_or(|it| it == machine)
                && it.after == made[call as usize]
        })?;
        Some(self.scripted.remove(index).errno)
    }

    fn take_injection(&mut self, number: u64, call: Call) -> Option<i32> {
        let injection = self.inject.take_if(|it| it.number == number)?;
        if injection.call != call {
            self.fail_check(format!(
                "call {number} is {call} and was {} when the scenario was run before: it is not \
                 the same run each time",
                injection.call
            ));
            return None;
        }
        Some(injection.errno)
    }

    fn draw(&mut self, machine: usize, call: Call) -> Option<i32> {
        let faults = self.machines[machine].faults;
        if faults == Faults::NONE {
            return None;
        }
        let random = &mut self.random;
        let fatal = |errno: &i32| *errno != libc::EINTR && *errno != libc::EAGAIN;
        match call {
            Call::Wait => random.chance(faults.interrupted).then_some(libc::EINTR),
            Call::Accept if random.chance(faults.accept_error) => {
                random.choose(call.errnos()).copied()
            }
            Call::Read | Call::Write => {
                if random.chance(faults.interrupted) {
                    Some(libc::EINTR)
                } else if random.chance(faults.would_block) {
                    Some(libc::EAGAIN)
                } else if random.chance(faults.stream_error) {
                    let errnos: Vec<_> = call.errnos().iter().copied().filter(fatal).collect();
                    random.choose(&errnos).copied()
                } else {
                    None
                }
            }
            Call::Accept => None,
            _ => {
                if random.chance(faults.other_error) {
                    random.choose(call.errnos()).copied()
                } else {
                    None
                }
            }
        }
    }

    /// Rolls a die for a fault.
    pub(super) fn chance(&mut self, machine: usize, rate: impl Fn(&Faults) -> u16) -> bool {
        let rate = rate(&self.machines[machine].faults);
        let comes = self.random.chance(rate);
        self.tally.faults += u64::from(comes);
        comes
    }

    /// Rolls a die for a fault that a handler may notice, and keeps it in the history.
    pub(super) fn befalls(
        &mut self,
        machine: usize,
        name: &'static str,
        rate: impl Fn(&Faults) -> u16,
    ) -> bool {
        let comes = self.chance(machine, rate);
        if comes {
            self.record(self.place_of(machine), TraceEvent::Fault(name));
        }
        comes
    }
}

/// What checks ask.
impl Net {
    /// A call reported to a process that a socket has failed.
    pub(super) fn note_failed(&mut self, socket: Socket) {
        if let Some(side) = self.side_mut(socket) {
            side.ledger.failed = true;
        }
    }

    /// A process has read bytes, or the end.
    pub(super) fn note_read(&mut self, machine: usize, socket: Socket, bytes: &[u8]) {
        let watched = self.machines[machine].watched;
        if let Some(side) = self.side_mut(socket).filter(|_| watched) {
            side.ledger.eof |= bytes.is_empty();
            side.ledger.unused.extend_from_slice(bytes);
        }
    }

    /// A process has written so many bytes of these, which are those that its handler left to be
    /// written as far as that is known.
    pub(super) fn note_written(
        &mut self,
        machine: usize,
        socket: Socket,
        slices: &[&[u8]],
        taken: usize,
    ) {
        let watched = self.machines[machine].watched;
        let Some(side) = self.side_mut(socket).filter(|_| watched) else { return };
        let (mut left, mut same) = (taken, true);
        for slice in slices {
            let known = left.min(slice.len()).min(side.ledger.promised.len());
            same &= side.ledger.promised.split_to(known) == slice[..known];
            left = left.saturating_sub(slice.len());
        }
        if !same {
            let of = self.of(socket);
            self.fail_check(format!("other bytes are written to {of} than its handler wrote"));
        }
    }

    /// How many bytes a process read from the socket of this token, and wrote to it.
    pub(super) fn moved(&self, machine: usize, token: Token) -> Option<(u64, u64)> {
        let side = self.side(self.machines[machine].socket_of(token)?)?;
        Some((side.read, side.written))
    }

    /// What is known of the bytes of the socket of this token.
    pub(super) fn ledger(&mut self, machine: usize, token: Token) -> Option<&mut Ledger> {
        let machine = &self.machines[machine];
        let socket = machine.socket_of(token).filter(|_| machine.watched)?;
        Some(&mut self.side_mut(socket)?.ledger)
    }

    /// The connections of a process whose sockets failed in a call that reported it.
    pub(super) fn failed(&self, machine: usize) -> impl Iterator<Item = ConnId> {
        self.machines[machine].tokens.iter().filter_map(|(token, socket)| match token.source() {
            Source::Conn(id) if self.side(*socket)?.ledger.failed => Some(id),
            _ => None,
        })
    }

    /// How many wait to be accepted by a process.
    pub(super) fn waiting(&self, machine: usize) -> usize {
        let own = |listener: &&Listener| listener.holder == Holder::Host(machine);
        self.listeners.iter().map(|(_, it)| it).filter(own).map(|it| it.queue.len()).sum()
    }

    /// A process has the descriptors of its listeners and streams and no other.
    pub(super) fn check_descriptors(&self, machine: usize) -> Result<(), String> {
        let streams = self.streams_of(machine);
        let own = |listener: &Listener| listener.holder == Holder::Host(machine);
        let listeners = self.listeners.iter().filter(|(_, listener)| own(listener)).count();
        let fds = self.machines[machine].fds.len() - FDS_FIXED as usize;
        if fds != streams + listeners {
            return Err(format!("{fds} descriptors for {listeners} listeners, {streams} streams"));
        }
        Ok(())
    }

    /// The script that plays the far end of a connection, if one does, and whether it still holds
    /// that end open.
    pub(super) fn far_peer(&self, machine: usize, token: Token) -> Option<(Address, bool)> {
        let far = self.side(self.machines[machine].socket_of(token)?.far())?;
        (far.holder == Holder::Peer).then(|| (far.address.clone(), !far.closed && !far.dead))
    }

    /// Streams that processes on this machine hold.
    pub(super) fn streams_of(&self, machine: usize) -> usize {
        self.connections
            .iter()
            .flat_map(|(_, connection)| &connection.ends)
            .filter(|side| side.holder == Holder::Host(machine) && side.fd.is_some())
            .count()
    }
}
