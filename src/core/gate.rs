//! Whether a listener may accept, and what becomes of a connection that it accepted.
//!
//! The gate holds no socket, no clock and no alarm. The executors pass it the time and what they
//! count, and carry out what it returns: `reactor/accept.rs` accepts, `reactor/limits.rs` checks what
//! was accepted, `reactor/shortage.rs` pauses.

use std::io::ErrorKind;
use std::time::Duration;

use crate::address::Address;
use crate::config::{AtLimit, Limits, Rate, Refusal};
use crate::core::clients::{ClientKey, Clients, Excess};
use crate::core::pressure;
use crate::id::ConnId;
use crate::time::{Instant, nanos};

/// Connections accepted from one listener in one turn: one burst of SYNs must not starve those
/// that are being served.
pub(crate) const ACCEPTS_PER_TURN: usize = 16;

/// Errors of accept(2) in one turn after which accepting pauses: an error that each connection
/// causes anew must not keep the loop spinning.
pub(crate) const FAILURES_PER_TURN: usize = ACCEPTS_PER_TURN;

/// Connections accepted from one listener after a shutdown began: as many as a backlog of the usual
/// length holds. Connections that arrive after that must not delay the shutdown.
const DRAINED_MAX: u32 = 4_096;

/// How often a full table is checked for an evictable connection while newcomers wait.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// The first pause after a shortage. Each further one lasts twice as long, up to the second number.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Lingering connections of a client at its limit that are checked for one to evict before the
/// client's newcomer is refused. Each check may cost a system call.
const LINGERING_CHECKED: usize = 32;

/// What the gate knows of one listener.
#[derive(Debug)]
pub(crate) struct Backlog {
    /// The backlog may hold connections.
    pub(crate) ready: bool,
    /// The limits on connections leave out those accepted here.
    pub(crate) exempt: bool,
    /// Connections accepted since a shutdown began.
    drained: u32,
}

impl Backlog {
    /// A backlog that may hold connections: those of an inherited listener may have come before it.
    pub(crate) const fn new(exempt: bool) -> Self {
        Self { ready: true, exempt, drained: 0 }
    }

    /// Whether a shutdown need not wait for this backlog any more.
    const fn has_drained(&self) -> bool {
        self.exempt || !self.ready || self.drained >= DRAINED_MAX
    }
}

/// What is occupied when a listener is about to accept.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Occupancy {
    /// No place of the table is free.
    pub(crate) table_full: bool,
    /// No place for exempt connections is free.
    pub(crate) exempt_full: bool,
    /// No further newcomer can be deferred.
    pub(crate) deferred_full: bool,
}

/// Whether there is room for the next connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Room {
    /// One is free, or a connection has been evicted for it.
    Free,
    /// None is free. The executor searches for a connection that can be evicted, and passes the
    /// result to [`Gate::note_search`].
    IfEvictable,
    /// None, until something changes.
    None,
}

/// What the limits of its client say about a newcomer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Arrival {
    /// The client may have it. It counts as the client's connection, unless clients are not limited.
    Allowed(Option<ClientKey>),
    /// The client has as many connections as it may. One of them may have ended already: its FIN may
    /// not have been read yet.
    AtLimit(ClientKey),
    /// The client connects too often.
    TooOften,
}

/// What becomes of a newcomer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Admit,
    /// It waits for a decision, as its client is at its limit.
    Defer(ClientKey),
    /// It is closed with a FIN.
    Close,
    Reset,
}

/// Why the connections in a backlog wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Delay {
    TableFull,
    Rate,
}

/// What the executor does when the system is short of descriptors or memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Shortage {
    /// Nothing is accepted for so long, unless a descriptor of ours is closed before.
    pub(crate) pause: Duration,
    /// Some of those idle longest are evicted.
    pub(crate) evict: bool,
}

/// What an `errno` of accept(2) means for the listener, and what follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AcceptFault {
    /// The backlog is empty: the listener is not ready until its next event.
    Drained,
    /// A signal came first: accept again.
    Interrupted,
    /// This connection is lost, or the network failed for a moment: count it and accept the next
    /// one.
    Transient,
    /// The process or the system ran out of descriptors or memory: pause, and evict.
    Exhausted,
    /// The listener itself is broken: close it, and notify the handler.
    Dead,
}

impl AcceptFault {
    /// Classifies an error by its number, or by its kind if no system call caused it. accept(2)
    /// names the network errors that Linux passes on from the new socket and asks to treat like
    /// EAGAIN by retrying.
    #[inline]
    pub(crate) fn of(errno: Option<i32>, kind: impl FnOnce() -> ErrorKind) -> Self {
        match errno {
            Some(libc::EAGAIN) => Self::Drained,
            Some(libc::EINTR) => Self::Interrupted,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::Exhausted,
            Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK) => Self::Dead,
            _ => match kind() {
                ErrorKind::WouldBlock => Self::Drained,
                ErrorKind::Interrupted => Self::Interrupted,
                _ => Self::Transient,
            },
        }
    }
}

/// The limits on newcomers, and which of them keep the listeners from accepting.
#[derive(Debug)]
pub(crate) struct Gate {
    /// The table is full, and no connection in it can be evicted.
    full: bool,
    /// The next connection would come sooner than the accept rate allows.
    throttled: bool,
    /// The system ran out of something: nothing is accepted until the pause ends.
    paused: bool,
    /// No place for exempt connections is free.
    exempt_full: bool,
    /// A shutdown has begun: connections in the backlogs are accepted as long as there are places.
    draining: bool,
    /// Places of evicted connections that no newcomer has taken yet.
    freed: u64,
    /// How long the latest pause was to last, in nanoseconds; 0 once a connection was admitted
    /// after it.
    pause_nanos: u64,
    /// The latest pause lasted to its end.
    pause_expired: bool,
    /// The listener that accepts first in this turn.
    first: usize,
    /// With so many connections the table is crowded.
    crowded_from: usize,
    evicts: bool,
    rejects: bool,
    refusal: Refusal,
    clients: Option<Clients>,
    bucket: Option<Bucket>,
    /// There are limits for clients, or a rate for all.
    restricts: bool,
}

/// From how many connections on they are a pressure from which anything follows.
fn crowded_from(limits: &Limits, capacity: usize) -> usize {
    let from = pressure::part(capacity as u64, pressure::matters_from(limits.shrink_idle_from));
    usize::try_from(from).unwrap_or(capacity)
}

impl Gate {
    pub(crate) fn new(limits: &Limits, capacity: usize) -> Self {
        let clients = Clients::new(&limits.clients, capacity);
        Self {
            full: false,
            throttled: false,
            paused: false,
            exempt_full: false,
            draining: false,
            freed: 0,
            pause_nanos: 0,
            pause_expired: false,
            first: 0,
            crowded_from: crowded_from(limits, capacity),
            evicts: limits.at_limit == AtLimit::EvictIdle,
            rejects: matches!(limits.at_limit, AtLimit::Reject(_)),
            refusal: limits.clients.refusal,
            restricts: clients.is_some() || limits.accept_rate.is_some(),
            clients,
            bucket: limits.accept_rate.map(Bucket::new),
        }
    }

    /// The limits change while listeners accept. Whether clients are counted at all stays as it was.
    pub(crate) fn change(&mut self, limits: &Limits) {
        if let Some(clients) = &mut self.clients {
            clients.change(&limits.clients);
        }
        self.restricts = self.clients.is_some() || limits.accept_rate.is_some();
        let rate = limits.accept_rate.map(Bucket::new);
        match (&mut self.bucket, rate) {
            // What came lately counts on.
            (Some(bucket), Some(rate)) => (bucket.each, bucket.most) = (rate.each, rate.most),
            (bucket, rate) => *bucket = rate,
        }
        // Whether the next one may come at once, it shows.
        self.throttled = false;
    }

    /// Whether a listener may accept from its backlog, if that holds connections.
    #[inline]
    pub(crate) const fn may_accept(&self, backlog: &Backlog) -> bool {
        let delayed = if backlog.exempt { self.exempt_full } else { self.full || self.throttled };
        backlog.ready && !self.paused && (!delayed || self.draining)
    }

    /// Why connections wait in a backlog, if an operator is to be warned of it.
    #[inline]
    pub(crate) const fn delay(&self, backlog: &Backlog) -> Option<Delay> {
        if backlog.exempt {
            None
        } else if self.full {
            Some(Delay::TableFull)
        } else if self.throttled {
            Some(Delay::Rate)
        } else {
            None
        }
    }

    /// The listener that accepts first in the next turn, of `count`: each in turn, so that none
    /// takes all places as they become free.
    #[inline]
    pub(crate) const fn rotate(&mut self, count: usize) -> usize {
        self.first = if self.first + 1 < count { self.first + 1 } else { 0 };
        self.first
    }

    /// Whether so many connections are a pressure.
    #[inline]
    pub(crate) const fn is_crowded(&self, connections: usize) -> bool {
        connections >= self.crowded_from
    }

    /// Whether the next connection needs no check: the table is not crowded, so it is not full
    /// either, and nothing limits clients or the rate. This is the usual case and has to be cheap.
    #[inline]
    pub(crate) const fn needs_no_check(&self, backlog: &Backlog, connections: usize) -> bool {
        !self.is_crowded(connections) && !backlog.exempt && !self.restricts
    }

    /// Whether there is room for the next connection of a listener.
    ///
    /// While the backlogs are drained nothing is evicted, as the connections there end soon anyway.
    pub(crate) const fn room_for(&mut self, backlog: &Backlog, occupancy: Occupancy) -> Room {
        if backlog.exempt {
            self.exempt_full = occupancy.exempt_full;
            return if self.exempt_full { Room::None } else { Room::Free };
        }
        if occupancy.deferred_full {
            return Room::None;
        }
        self.room(occupancy.table_full)
    }

    /// Whether there is room for a newcomer that its client may have.
    pub(crate) const fn room(&self, table_full: bool) -> Room {
        if !table_full {
            Room::Free
        } else if self.draining {
            Room::None
        } else if self.freed > 0 {
            Room::Free
        } else {
            Room::IfEvictable
        }
    }

    /// The table is full, and a search for an evictable connection found one or none. Returns when
    /// to search again if the listeners are to wait: they accept without a place too where
    /// newcomers are to be sent a reply.
    pub(crate) fn note_search(&mut self, found: bool, now: Instant) -> Option<Instant> {
        if found || self.rejects {
            return None;
        }
        self.full = true;
        Some(now + RETRY_EVERY)
    }

    /// When the accept rate allows the next connection, if not now.
    pub(crate) fn check_rate(&mut self, backlog: &Backlog, now: Instant) -> Option<Instant> {
        let next = self.bucket.as_ref()?.next(now);
        if backlog.exempt || self.draining || next <= now {
            return None;
        }
        self.throttled = true;
        Some(next)
    }

    /// The time has come to check again whether newcomers are accepted.
    pub(crate) const fn end_throttle(&mut self) {
        self.throttled = false;
    }

    /// Whether the table is full, and no connection in it could be evicted when that was last
    /// checked.
    pub(crate) const fn is_full(&self) -> bool {
        self.full
    }

    /// That was checked again. Returns when to check the next time, if it is still so.
    pub(crate) fn set_full(&mut self, full: bool, now: Instant) -> Option<Instant> {
        self.full = full;
        full.then(|| now + RETRY_EVERY)
    }

    /// A connection was taken out of a backlog.
    #[inline]
    pub(crate) const fn count_accepted(&self, backlog: &mut Backlog) {
        backlog.drained += self.draining as u32;
    }

    /// Checks a newcomer against the rate of all clients, which it uses up, and against the limits
    /// of its own. That comes before the limit of the table: a client over its limits takes no
    /// place.
    pub(crate) fn arrive(&mut self, peer: &Address, now: Instant) -> Arrival {
        if let Some(bucket) = &mut self.bucket {
            bucket.take(now);
        }
        let Some(clients) = &mut self.clients else { return Arrival::Allowed(None) };
        let Some(key) = clients.key_of_peer(peer) else { return Arrival::Allowed(None) };
        match clients.arrive(key, now) {
            Ok(()) => Arrival::Allowed(Some(key)),
            Err(Excess::Connections) => Arrival::AtLimit(key),
            Err(Excess::Rate) => Arrival::TooOften,
        }
    }

    /// How a newcomer ends that its client may not have.
    pub(crate) const fn refuse(&self) -> Verdict {
        match self.refusal {
            Refusal::Close => Verdict::Close,
            Refusal::Reset => Verdict::Reset,
        }
    }

    /// The limits of clients, if there are any.
    #[inline]
    pub(crate) const fn clients(&self) -> Option<&Clients> {
        self.clients.as_ref()
    }

    #[inline]
    pub(crate) const fn clients_mut(&mut self) -> Option<&mut Clients> {
        self.clients.as_mut()
    }

    /// Whether a client has as many connections as it may.
    pub(crate) fn is_at_limit(&self, client: ClientKey) -> bool {
        self.clients.as_ref().is_some_and(|clients| clients.is_at_limit(client))
    }

    /// The connections of a client that may be evicted for its newcomer, those first that have
    /// lingered longest.
    pub(crate) fn lingering_of(&self, client: ClientKey) -> Vec<ConnId> {
        let clients = self.clients.iter();
        clients.flat_map(|clients| clients.lingering(client)).take(LINGERING_CHECKED).collect()
    }

    /// Counts a connection of a client unless it has as many as it may.
    pub(crate) fn connect(&mut self, client: ClientKey) -> bool {
        self.clients.as_mut().is_none_or(|clients| clients.connect(client))
    }

    /// A newcomer that counted as its client's connection is refused.
    pub(crate) fn disconnect(&mut self, client: Option<ClientKey>) {
        if let (Some(clients), Some(client)) = (&mut self.clients, client) {
            clients.depart(client, None);
        }
    }

    /// Whether connections have been evicted whose places no newcomer has taken.
    pub(crate) const fn has_freed(&self) -> bool {
        self.freed > 0
    }

    /// So many connections were evicted for newcomers.
    pub(crate) const fn note_evicted(&mut self, count: u64) {
        self.freed = count;
    }

    /// A newcomer takes the place of an evicted connection. Returns whether there was one.
    pub(crate) const fn take_freed(&mut self) -> bool {
        let has_freed = self.has_freed();
        self.freed -= has_freed as u64;
        has_freed
    }

    /// Places of the table became free for good, those of evicted connections among them. Returns
    /// whether a listener waits for one.
    #[inline]
    pub(crate) const fn note_release(&mut self) -> bool {
        self.freed = 0;
        self.full || self.exempt_full
    }

    /// What is occupied after a release. The listeners accept again at the first free place: they
    /// stay registered while the table is full, a turn accepts one connection for the place, and
    /// the search for an evictable one, if all are taken again, is limited by itself.
    pub(crate) const fn note_places(&mut self, occupancy: Occupancy) {
        self.full &= occupancy.table_full;
        self.exempt_full &= occupancy.exempt_full;
    }

    /// A connection was admitted: a shortage, if there was one, is over.
    #[inline]
    pub(crate) const fn note_admitted(&mut self) {
        self.pause_nanos = 0;
    }

    /// The system ran out of descriptors or memory.
    ///
    /// Connections are evicted once in a pause. If that does not help, others hold what is short,
    /// and no more are evicted before the pause has expired. Deferred newcomers (`holds_deferred`)
    /// are decided on first: they hold descriptors too, and most of them are about to be refused.
    pub(crate) fn note_shortage(&mut self, holds_deferred: bool) -> Shortage {
        let first = self.pause_nanos == 0 || self.pause_expired;
        self.pause_expired = holds_deferred && first;
        Shortage { pause: self.pause(), evict: first && !holds_deferred && self.evicts }
    }

    /// Stops accepting, and returns for how long: twice as long as the time before.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.pause_nanos * 2;
        self.pause_nanos = pause.clamp(nanos(PAUSE_MIN), nanos(PAUSE_MAX));
        self.paused = true;
        Duration::from_nanos(self.pause_nanos)
    }

    #[inline]
    pub(crate) const fn is_paused(&self) -> bool {
        self.paused
    }

    /// The pause has lasted to its end: the next shortage may evict again.
    pub(crate) const fn expire_pause(&mut self) {
        self.pause_expired = true;
    }

    /// Accepts again.
    pub(crate) const fn end_pause(&mut self) {
        self.paused = false;
    }

    /// A shutdown begins: connections in the backlogs are accepted at any rate, as long as there are
    /// places, and without evictions.
    pub(crate) const fn begin_draining(&mut self) {
        self.draining = true;
    }

    pub(crate) const fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether a shutdown can go on: the backlogs are empty, or no more is accepted from them, for
    /// want of places or descriptors, or because as many have been accepted as a backlog of the
    /// usual length holds.
    pub(crate) fn has_drained<'a>(
        &self,
        occupancy: Occupancy,
        holds_deferred: bool,
        mut backlogs: impl Iterator<Item = &'a Backlog>,
    ) -> bool {
        self.paused
            || occupancy.table_full
            || (!holds_deferred && backlogs.all(Backlog::has_drained))
    }

    pub(crate) const fn end_draining(&mut self) {
        self.draining = false;
    }
}

/// A limit on how many come at once from all clients together: the generic cell rate algorithm
/// (ITU-T I.371), which is a leaky bucket kept as one time.
#[derive(Debug)]
struct Bucket {
    /// The time one arrival takes up.
    each: u64,
    /// As much of it as may be taken up at once.
    most: u64,
    /// Until when all of it is taken up.
    full_until: Instant,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        let per = rate.per_nanos();
        Self { each: (per / u64::from(rate.count())).max(1), most: per, full_until: Instant::EPOCH }
    }

    /// When the next may come: not after `now` if it may at once.
    fn next(&self, now: Instant) -> Instant {
        let from = self.full_until.max(now);
        let ahead = from.nanos_since(now).saturating_add(self.each);
        now.after(ahead.saturating_sub(self.most))
    }

    /// One comes.
    fn take(&mut self, now: Instant) {
        self.full_until = self.full_until.max(now).after(self.each);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use proptest::prelude::*;

    use super::*;

    const CAPACITY: usize = 100;

    fn at(millis: u64) -> Instant {
        Instant::EPOCH + Duration::from_millis(millis)
    }

    fn gate(change: impl FnOnce(&mut Limits)) -> Gate {
        let mut limits = Limits::default();
        change(&mut limits);
        Gate::new(&limits, CAPACITY)
    }

    #[test]
    fn what_came_lately_counts_when_the_rate_changes() {
        let rate = |count| Limits {
            accept_rate: Some(Rate::new(count, Duration::from_secs(60))),
            ..Limits::default()
        };
        let mut gate = Gate::new(&rate(2), CAPACITY);
        let mut backlog = Backlog::new(false);
        for _ in 0..2 {
            assert_eq!(gate.check_rate(&backlog, at(0)), None);
            gate.count_accepted(&mut backlog);
            gate.arrive(&peer(1), at(0));
        }
        assert!(gate.check_rate(&backlog, at(0)).is_some());
        gate.change(&rate(2));
        assert!(gate.check_rate(&backlog, at(0)).is_some());
        gate.change(&Limits::default());
        assert_eq!(gate.check_rate(&backlog, at(0)), None);
    }

    fn peer(number: u8) -> Address {
        Address::Ip(([10, 0, 0, number], 7).into())
    }

    const USUAL: Backlog = Backlog::new(false);
    const EXEMPT: Backlog = Backlog::new(true);
    const TABLE_FULL: Occupancy =
        Occupancy { table_full: true, exempt_full: false, deferred_full: false };

    #[test]
    fn a_listener_without_an_event_does_not_accept() {
        let gate = gate(|_| {});
        let mut backlog = Backlog::new(false);
        assert!(gate.may_accept(&backlog));
        backlog.ready = false;
        assert!(!gate.may_accept(&backlog));
    }

    #[test]
    fn only_a_connection_that_no_limit_concerns_needs_no_check() {
        let unlimited = gate(|_| {});
        assert!(unlimited.needs_no_check(&USUAL, 79));
        assert!(!unlimited.needs_no_check(&USUAL, 80), "the table is crowded");
        assert!(!unlimited.needs_no_check(&EXEMPT, 0), "its places are few");
        let limited = gate(|limits| limits.clients.connections = Some(1));
        assert!(!limited.needs_no_check(&USUAL, 0));
        let paced = gate(|limits| limits.accept_rate = Some(Rate::per_second(1)));
        assert!(!paced.needs_no_check(&USUAL, 0));
    }

    #[test]
    fn a_full_table_accepts_only_if_a_connection_can_be_evicted() {
        let mut gate = gate(|_| {});
        assert_eq!(gate.room_for(&USUAL, Occupancy::default()), Room::Free);
        assert_eq!(gate.room_for(&USUAL, TABLE_FULL), Room::IfEvictable);
        assert_eq!(gate.note_search(true, at(0)), None);
        assert!(gate.may_accept(&USUAL));
        // With none to evict the listeners wait, and the search is made again.
        assert_eq!(gate.note_search(false, at(0)), Some(at(100)));
        assert!(!gate.may_accept(&USUAL));
        assert_eq!(gate.delay(&USUAL), Some(Delay::TableFull));
        assert!(gate.may_accept(&EXEMPT), "the limit leaves these out");
        assert_eq!(gate.delay(&EXEMPT), None);
        assert_eq!(gate.set_full(true, at(100)), Some(at(200)));
        assert_eq!(gate.set_full(false, at(200)), None);
        assert!(gate.may_accept(&USUAL));
    }

    #[test]
    fn a_full_table_accepts_to_send_a_reply() {
        let mut gate = gate(|limits| limits.at_limit = AtLimit::Reject(bytes::Bytes::new()));
        assert_eq!(gate.note_search(false, at(0)), None);
        assert!(gate.may_accept(&USUAL));
    }

    #[test]
    fn newcomers_take_the_places_of_those_evicted_for_them() {
        let mut gate = gate(|_| {});
        gate.note_evicted(2);
        assert_eq!(gate.room_for(&USUAL, TABLE_FULL), Room::Free, "none more is evicted");
        assert!(gate.take_freed() && gate.take_freed());
        assert!(!gate.take_freed());
        assert_eq!(gate.room_for(&USUAL, TABLE_FULL), Room::IfEvictable);
        // Once they are released the table says itself what is free.
        gate.note_evicted(2);
        assert!(!gate.note_release());
        assert!(!gate.has_freed());
    }

    #[test]
    fn a_free_place_lets_the_listeners_accept_again() {
        let mut gate = gate(|_| {});
        gate.note_search(false, at(0));
        assert!(gate.note_release());
        gate.note_places(TABLE_FULL);
        assert!(!gate.may_accept(&USUAL), "all places have been taken again");
        gate.note_places(Occupancy::default());
        assert!(gate.may_accept(&USUAL));
        assert!(!gate.note_release(), "no listener waits");
    }

    #[test]
    fn exempt_connections_wait_only_for_their_own_places() {
        let mut gate = gate(|_| {});
        assert_eq!(gate.room_for(&EXEMPT, TABLE_FULL), Room::Free);
        let exempt_full = Occupancy { exempt_full: true, ..Occupancy::default() };
        assert_eq!(gate.room_for(&EXEMPT, exempt_full), Room::None);
        assert!(!gate.may_accept(&EXEMPT));
        assert!(gate.may_accept(&USUAL));
        assert!(gate.note_release());
        gate.note_places(Occupancy::default());
        assert!(gate.may_accept(&EXEMPT));
    }

    #[test]
    fn no_more_is_accepted_than_can_be_deferred() {
        let mut gate = gate(|_| {});
        let occupancy = Occupancy { deferred_full: true, ..Occupancy::default() };
        assert_eq!(gate.room_for(&USUAL, occupancy), Room::None);
        assert_eq!(gate.room_for(&EXEMPT, occupancy), Room::Free, "these are never deferred");
    }

    #[test]
    fn the_accept_rate_is_that_of_all_clients_but_exempt_ones() {
        let mut gate = gate(|limits| limits.accept_rate = Some(Rate::per_second(1)));
        assert_eq!(gate.check_rate(&USUAL, at(0)), None);
        assert_eq!(gate.arrive(&peer(1), at(0)), Arrival::Allowed(None));
        assert_eq!(gate.check_rate(&EXEMPT, at(0)), None);
        assert!(gate.may_accept(&USUAL));
        assert_eq!(gate.check_rate(&USUAL, at(0)), Some(at(1_000)));
        assert!(!gate.may_accept(&USUAL));
        assert!(gate.may_accept(&EXEMPT));
        assert_eq!(gate.delay(&USUAL), Some(Delay::Rate));
        gate.end_throttle();
        assert!(gate.may_accept(&USUAL));
        assert_eq!(gate.check_rate(&USUAL, at(1_000)), None);
    }

    #[test]
    fn a_client_at_its_limit_is_deferred_and_one_above_its_rate_refused() {
        let mut gate = gate(|limits| {
            limits.clients.connections = Some(1);
            limits.clients.rate = Some(Rate::per_second(3));
        });
        let Arrival::Allowed(Some(client)) = gate.arrive(&peer(1), at(0)) else { panic!() };
        assert_eq!(gate.arrive(&peer(1), at(0)), Arrival::AtLimit(client));
        assert!(gate.is_at_limit(client) && !gate.connect(client));
        assert!(matches!(gate.arrive(&peer(2), at(0)), Arrival::Allowed(Some(_))));
        // If the newcomer gets no place, the client may have another.
        gate.disconnect(Some(client));
        assert!(gate.connect(client));
        gate.arrive(&peer(1), at(0));
        assert_eq!(gate.arrive(&peer(1), at(0)), Arrival::TooOften);
        assert_eq!(gate.arrive(&Address::Unnamed, at(0)), Arrival::Allowed(None));
    }

    #[test]
    fn the_setting_says_how_a_newcomer_is_refused() {
        assert_eq!(gate(|_| {}).refuse(), Verdict::Close);
        let resets = gate(|limits| limits.clients.refusal = Refusal::Reset);
        assert_eq!(resets.refuse(), Verdict::Reset);
    }

    #[test]
    fn a_pause_grows_until_a_connection_is_admitted() {
        let mut gate = gate(|_| {});
        let mut pauses = Vec::new();
        for _ in 0..6 {
            pauses.push(gate.pause().as_millis());
            assert!(gate.is_paused() && !gate.may_accept(&USUAL) && !gate.may_accept(&EXEMPT));
            gate.end_pause();
            assert!(gate.may_accept(&USUAL));
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1_000, 1_000]);
        gate.note_admitted();
        assert_eq!(gate.pause().as_millis(), 100);
    }

    #[test]
    fn a_shortage_evicts_once_in_a_pause() {
        let mut gate = gate(|_| {});
        assert!(gate.note_shortage(false).evict);
        // A descriptor was closed, and the next accept failed again.
        gate.end_pause();
        assert!(!gate.note_shortage(false).evict, "that did not help");
        gate.expire_pause();
        gate.end_pause();
        assert!(gate.note_shortage(false).evict);
    }

    #[test]
    fn a_shortage_decides_on_deferred_connections_before_it_evicts() {
        let mut gate = gate(|_| {});
        assert!(!gate.note_shortage(true).evict);
        gate.end_pause();
        assert!(gate.note_shortage(false).evict);
    }

    #[test]
    fn a_shortage_evicts_only_where_eviction_is_allowed() {
        assert!(!gate(|limits| limits.at_limit = AtLimit::Pause).note_shortage(false).evict);
    }

    #[test]
    fn draining_accepts_at_any_rate_while_there_are_places() {
        let mut gate = gate(|limits| limits.accept_rate = Some(Rate::per_second(1)));
        gate.arrive(&peer(1), at(0));
        gate.check_rate(&USUAL, at(0));
        gate.begin_draining();
        assert!(gate.may_accept(&USUAL));
        assert_eq!(gate.check_rate(&USUAL, at(0)), None);
        assert_eq!(gate.room_for(&USUAL, TABLE_FULL), Room::None, "none is evicted");
        gate.end_draining();
        assert_eq!(gate.room_for(&USUAL, TABLE_FULL), Room::IfEvictable);
    }

    #[test]
    fn draining_ends_with_the_backlogs_or_with_what_they_need() {
        let mut gate = gate(|_| {});
        gate.begin_draining();
        let has_drained = |gate: &Gate, occupancy, deferred, backlog: &Backlog| {
            gate.has_drained(occupancy, deferred, [backlog].into_iter())
        };
        let mut backlog = Backlog::new(false);
        assert!(!has_drained(&gate, Occupancy::default(), false, &backlog));
        assert!(has_drained(&gate, Occupancy::default(), false, &EXEMPT));
        assert!(has_drained(&gate, TABLE_FULL, true, &backlog));
        backlog.ready = false;
        assert!(has_drained(&gate, Occupancy::default(), false, &backlog));
        assert!(!has_drained(&gate, Occupancy::default(), true, &backlog), "some are undecided");
        backlog.ready = true;
        for _ in 0..DRAINED_MAX {
            assert!(!has_drained(&gate, Occupancy::default(), false, &backlog));
            gate.count_accepted(&mut backlog);
        }
        assert!(has_drained(&gate, Occupancy::default(), false, &backlog));
        gate.pause();
        assert!(has_drained(&gate, Occupancy::default(), true, &USUAL));
    }

    #[test]
    fn each_listener_is_first_in_its_turn() {
        let mut gate = gate(|_| {});
        assert_eq!([(); 4].map(|()| gate.rotate(3)), [1, 2, 0, 1]);
        assert_eq!([(); 2].map(|()| gate.rotate(1)), [0, 0]);
    }

    #[test]
    fn every_errno_of_accept_has_its_answer() {
        use AcceptFault::{Dead, Drained, Exhausted, Interrupted, Transient};
        let of = |error: &io::Error| AcceptFault::of(error.raw_os_error(), || error.kind());
        for (errno, fault) in [
            (libc::EAGAIN, Drained),
            (libc::EINTR, Interrupted),
            (libc::ECONNABORTED, Transient),
            (libc::EPROTO, Transient),
            (libc::EPERM, Transient),
            (libc::ENETDOWN, Transient),
            (libc::ENETUNREACH, Transient),
            (libc::EHOSTUNREACH, Transient),
            (libc::EHOSTDOWN, Transient),
            (libc::ENOPROTOOPT, Transient),
            (libc::EOPNOTSUPP, Transient),
            (libc::ETIMEDOUT, Transient),
            (libc::EMFILE, Exhausted),
            (libc::ENFILE, Exhausted),
            (libc::ENOBUFS, Exhausted),
            (libc::ENOMEM, Exhausted),
            (libc::EBADF, Dead),
            (libc::EINVAL, Dead),
            (libc::ENOTSOCK, Dead),
        ] {
            assert_eq!(of(&io::Error::from_raw_os_error(errno)), fault, "{errno}");
        }
        // An error that is no system call's.
        for (kind, fault) in [
            (ErrorKind::WouldBlock, Drained),
            (ErrorKind::Interrupted, Interrupted),
            (ErrorKind::InvalidData, Transient),
        ] {
            assert_eq!(of(&kind.into()), fault, "{kind:?}");
        }
    }

    #[test]
    fn a_bucket_lets_a_burst_in_and_then_one_by_one() {
        let mut bucket = Bucket::new(Rate::per_second(4));
        for _ in 0..4 {
            assert_eq!(bucket.next(at(1_000)), at(1_000));
            bucket.take(at(1_000));
        }
        assert_eq!(bucket.next(at(1_000)), at(1_250));
        assert_eq!(bucket.next(at(1_250)), at(1_250));
        bucket.take(at(1_250));
        assert_eq!(bucket.next(at(1_250)), at(1_500));
        assert_eq!(bucket.next(at(9_000)), at(9_000));
    }

    proptest! {
        /// In no window of the rate's length are there more than twice as many as it allows: the
        /// bound of a bucket that was full.
        #[test]
        fn a_bucket_never_lets_in_more_than_its_rate(
            count in 1_u32..20,
            waits in proptest::collection::vec(0_u64..400, 1..200),
        ) {
            let mut bucket = Bucket::new(Rate::per_second(count));
            let mut now = at(10_000);
            let mut taken = Vec::new();
            for wait in waits {
                now += Duration::from_millis(wait);
                while bucket.next(now) <= now {
                    bucket.take(now);
                    taken.push(now);
                }
                let recent = taken.iter().filter(|at| now - **at < Duration::from_secs(1)).count();
                prop_assert!(recent <= 2 * count as usize);
            }
        }
    }
}
