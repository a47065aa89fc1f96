//! Listeners: accepting within a budget, and what to do when it fails.

use std::io;
use std::time::Duration;

use bytes::BytesMut;

use super::{READ_BUDGET, Reactor};
use crate::address::Address;
use crate::backend::{Backend, Token};
use crate::config::{AtLimit, Config, ListenConfig, Refusal, SocketOptions};
use crate::core::budget::{Budget, ITEMS_PER_STEP, Step};
use crate::core::clients::{Bucket, ClientKey, Clients, Excess};
use crate::core::deadlines::Durations;
use crate::core::flags::Flags;
use crate::core::record::{NewConn, Record};
use crate::core::wheel::TICK;
use crate::error::Error;
use crate::handler::Handler;
use crate::id::{AlarmId, ConnId, ListenerId, Origin};
use crate::log::{LogLimiter, debug, error, warn};
use crate::planted::{Bug, planted};
use crate::state::{Purpose, log_state};
use crate::time::Instant;

/// Connections accepted from one listener in one turn: one burst of SYNs must not starve those
/// that are being served.
const ACCEPTS_PER_TURN: usize = 16;

/// Connections accepted from one listener after a shutdown began: as many as a backlog of the usual
/// length holds. Newcomers that still come must not put the shutdown off.
const DRAINED_MAX: u32 = 4_096;

/// Connections whose clients are at their limits that wait at once for a decision.
const DEFERRED_MAX: usize = ACCEPTS_PER_TURN;

/// How long a connection waits for its client to close another one, if the queue has room. On a busy
/// system the FIN, although it was sent before the SYN, arrives that much later: another core, or
/// another queue of the network card, handles it.
const DEFERRED_FOR: Duration = Duration::from_millis(100);

/// Connections of one client of which each waits for so long. Those that come while they wait are
/// decided on soon, so that a client cannot take the time of the others.
const DEFERRED_PER_CLIENT: usize = 4;

/// Waits after which a connection is decided on, if the queue is full, even if full batches of events
/// may hide its client's FIN.
const DEFERRED_WAITS_MAX: i32 = 4;

/// Lingering connections of a client at its limit that are checked before its newcomer is refused,
/// those first that have lingered longest.
const LINGERING_CHECKED: usize = 32;

const PAUSE_MIN_NANOS: u64 = 100_000_000;
const PAUSE_MAX_NANOS: u64 = 1_000_000_000;

/// A listener and what is known of its backlog.
pub(super) struct Listener<L> {
    /// `None` once it is closed.
    socket: Option<L>,
    /// The backlog may hold connections.
    ready: bool,
    /// An `accept` on a bound-to-all listener must be asked for its local end.
    wildcard: bool,
    /// The limits on connections leave out those accepted here.
    exempt: bool,
    /// Connections accepted since a shutdown began.
    drained: u32,
}

/// One pass over the deferred connections.
#[derive(Default)]
struct Pass {
    now: Instant,
    /// Waits after which a connection is decided on.
    least: i32,
    /// All are decided on, whether their time has come or not.
    hurries: bool,
    /// No place is free.
    full: bool,
    /// Clients that were found to be over their limit, or for which it is known in a later turn only:
    /// none is asked about twice.
    over: Vec<(ClientKey, Option<bool>)>,
    /// Another pass follows the next wait.
    recheck: bool,
    /// Some that are due could not be decided on.
    undecided: bool,
}

/// A connection that was accepted when its client had as many as it may.
///
/// Its client may have closed one before it dialled this one, and the FIN may not have been read yet.
/// It is admitted as soon as its client may have it, and refused at `until`; earlier if more wait for a
/// decision than there is room for, but not before the loop has waited once more and has served what
/// that brought.
pub(super) struct Deferred<S> {
    listener: usize,
    stream: S,
    peer: Address,
    /// How often the loop has waited, and served all events, since the connection was accepted; -1
    /// while events are left from the wait before.
    waits: i32,
    until: Instant,
}

/// What becomes of a connection that is not admitted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Rejection {
    /// It is decided on later.
    Defer,
    Close,
    Reset,
}

/// The state that all listeners share.
#[derive(Debug)]
pub(super) struct Accepting {
    /// A listener is ready, and may accept; or deferred connections may be decided on, or a search for
    /// idle ones goes on.
    due: bool,
    /// Something happened since the deferred connections were checked that may decide on one.
    recheck: bool,
    /// The table is full, and no connection in it can be evicted.
    full: bool,
    /// The next connection would come too soon.
    throttled: bool,
    /// The system ran out of something; nothing is accepted until an alarm or a close.
    paused: bool,
    /// There is no room for another exempt connection.
    exempt_full: bool,
    /// The listeners are about to close: what waits in their backlogs is accepted as long as there are
    /// places.
    draining: bool,
    /// Connections evicted in this turn whose places no newcomer has had yet.
    freed: u64,
    /// The latest pause lasted to its end.
    waited: bool,
    /// How long the latest pause was to last.
    pause_nanos: u64,
    /// What ends the pause.
    alarm: Option<AlarmId>,
    /// What looks again whether there is room, or the next may come.
    retry: Option<AlarmId>,
    /// What refuses the connection that was deferred first.
    refusal: Option<AlarmId>,
    shortages: LogLimiter,
    crowds: LogLimiter,
    throttles: LogLimiter,
    refusals: LogLimiter,
    /// The listener whose turn it is to be first.
    first: usize,
    at_limit: AtLimit,
    clients: Option<Clients>,
    bucket: Option<Bucket>,
    /// There are limits for clients, or a rate for all.
    restricts: bool,
}

impl Accepting {
    pub(super) fn new(config: &Config, capacity: usize) -> Self {
        let limits = &config.limits;
        let clients = Clients::new(&limits.clients, capacity);
        Self {
            due: false,
            recheck: false,
            full: false,
            throttled: false,
            paused: false,
            exempt_full: false,
            draining: false,
            freed: 0,
            waited: false,
            pause_nanos: 0,
            alarm: None,
            retry: None,
            refusal: None,
            shortages: LogLimiter::default(),
            crowds: LogLimiter::default(),
            throttles: LogLimiter::default(),
            refusals: LogLimiter::default(),
            first: 0,
            at_limit: limits.at_limit.clone(),
            restricts: clients.is_some() || limits.accept_rate.is_some(),
            clients,
            bucket: limits.accept_rate.map(Bucket::new),
        }
    }

    #[inline]
    pub(super) const fn is_due(&self) -> bool {
        self.due
    }

    /// A search for idle connections goes on in the next turn.
    pub(super) const fn note_search(&mut self) {
        self.due = true;
    }

    /// How many connections the clients have that are limited, if any are.
    #[cfg(feature = "sim")]
    pub(super) fn clients_connected(&self) -> Option<usize> {
        self.clients.as_ref().map(Clients::connections)
    }

    /// How many connections of limited clients linger, if any clients are limited.
    #[cfg(feature = "sim")]
    pub(super) fn lingering_count(&self) -> Option<usize> {
        self.clients.as_ref().map(Clients::lingering_count)
    }

    /// Whether a listener may accept, if it is ready.
    const fn admits(&self, exempt: bool) -> bool {
        let kept_out = if exempt { self.exempt_full } else { self.full || self.throttled };
        !self.paused && (!kept_out || self.draining)
    }
}

/// The client of a connection; `None` if it is not limited.
fn key_of_record(clients: &Clients, record: &Record) -> Option<ClientKey> {
    let limited = record.is_limited();
    if limited { clients.key_of_peer(&record.peer) } else { None }
}

/// How often a full table is checked for an idle connection, while new ones wait.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// What an `errno` of accept(2) means for the listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum AcceptFault {
    /// The backlog is empty.
    Drained,
    /// A signal came first.
    Interrupted,
    /// This connection is gone, or the network hiccuped; the next one may be well.
    Transient,
    /// The process or the system ran out of descriptors or memory.
    Exhausted,
    /// The listener itself is broken.
    Dead,
}

impl AcceptFault {
    /// accept(2) names the network errors that Linux passes on from the new socket and asks to
    /// treat like EAGAIN by retrying.
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::Drained,
            Some(libc::EINTR) => Self::Interrupted,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::Exhausted,
            Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK) => Self::Dead,
            _ => match error.kind() {
                io::ErrorKind::WouldBlock => Self::Drained,
                io::ErrorKind::Interrupted => Self::Interrupted,
                _ => Self::Transient,
            },
        }
    }
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    pub(super) fn socket_options(&self, listen: &ListenConfig) -> SocketOptions {
        let timeouts = listen.timeouts.as_ref().unwrap_or(&self.config.timeouts);
        self.config.socket.beside(timeouts)
    }

    pub(super) fn add_listener(
        &mut self,
        socket: io::Result<B::Listener>,
        listen: &ListenConfig,
        name: impl FnOnce() -> String,
    ) -> Result<ListenerId, Error> {
        if self.shared.is_shutting_down() {
            return Err(Error::Io(io::Error::other("the reactor is shutting down")));
        }
        let id = ListenerId(self.listeners.len() as u32);
        let registered = socket.and_then(|mut socket| {
            let address = self.backend.listener_addr(&socket)?;
            self.backend.register_listener(&mut socket, Token::of_listener(id))?;
            Ok((socket, address))
        });
        let (socket, address) =
            registered.map_err(|source| Error::Bind { address: name(), source })?;
        let timeouts = listen.timeouts.as_ref().unwrap_or(&self.config.timeouts);
        self.shared.profiles.push(Durations::new(timeouts));
        self.listeners.push(Listener {
            socket: Some(socket),
            // Connections may have waited at an inherited listener before.
            ready: true,
            exempt: listen.exempt,
            drained: 0,
            wildcard: address.ip().is_some_and(|addr| addr.ip().is_unspecified()),
        });
        self.shared.listening_on.push(address);
        self.update_due();
        Ok(id)
    }

    /// Accepts from all listeners that may have connections waiting, each in its budget.
    #[inline]
    pub(super) fn accept(&mut self, handler: &mut H) {
        if self.accepting.due {
            self.accept_ready(handler);
        }
    }

    /// Whether some listener is ready and may accept.
    fn update_due(&mut self) {
        let Self { listeners, accepting, deferred, overload, .. } = self;
        accepting.due = (accepting.recheck && !deferred.is_empty())
            || overload.is_searching()
            || listeners.iter().any(|it| it.ready && accepting.admits(it.exempt));
    }

    #[inline(never)]
    fn accept_ready(&mut self, handler: &mut H) {
        let mut budget = self.begin_step(Step::Accept);
        if self.overload.is_searching() {
            self.continue_search(handler);
            if self.accepting.full {
                self.accepting.full = self.shared.table.is_full() && !self.finds_evictee(handler);
                self.accepting.recheck |= !self.accepting.full;
            }
        }
        if !self.deferred.is_empty() {
            self.decide_deferred(handler);
        }
        let count = self.listeners.len();
        let first = if self.accepting.first + 1 < count { self.accepting.first + 1 } else { 0 };
        self.accepting.first = first;
        for index in (first..count).chain(0..first) {
            self.accept_from(handler, index, &mut budget);
        }
        self.update_due();
        self.end_step(&budget);
    }

    pub(super) fn note_listener_event(&mut self, id: ListenerId) {
        let listener = self.listeners.get_mut(id.0 as usize);
        if let Some(listener) = listener.filter(|listener| listener.socket.is_some()) {
            listener.ready = true;
            let exempt = listener.exempt;
            self.accepting.due |= self.accepting.admits(exempt);
            if !exempt && self.accepting.full {
                self.warn_of_crowd();
            } else if !exempt && self.accepting.throttled {
                self.warn_of_rate();
            }
        }
    }

    #[cold]
    fn warn_of_rate(&mut self) {
        if let Some(times) = self.accepting.throttles.times(self.shared.now) {
            warn!(times, "newcomers wait: more come than accept_rate lets in");
        }
    }

    fn accept_from(&mut self, handler: &mut H, index: usize, budget: &mut Budget) {
        let exempt = self.listeners[index].exempt;
        let mut failures = 0;
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.listeners[index].ready
                || !self.accepting.admits(exempt)
                || !budget.allows(|| self.backend.now())
            {
                return;
            }
            let welcome = self.welcomes(exempt);
            if !welcome && !self.has_room(handler, exempt) {
                return;
            }
            let Some(socket) = self.listeners[index].socket.as_mut() else { return };
            match self.backend.accept(socket) {
                Ok((mut stream, peer)) => {
                    self.listeners[index].drained += u32::from(self.accepting.draining);
                    let checked = if welcome || exempt {
                        Ok(())
                    } else {
                        self.check_limits(handler, &mut stream, &peer)
                    };
                    match checked {
                        Ok(()) => self.admit(handler, index, stream, peer),
                        Err(Rejection::Defer) => self.defer(index, stream, peer),
                        Err(Rejection::Close) => self.reject(stream, false),
                        Err(Rejection::Reset) => self.reject(stream, true),
                    }
                }
                Err(error) => match AcceptFault::of(&error) {
                    AcceptFault::Drained => self.listeners[index].ready = false,
                    AcceptFault::Interrupted => {}
                    fault => {
                        self.handle_accept_error(handler, index, fault, &error);
                        failures += 1;
                        // An error that "passes" but never does must not spin.
                        if failures == ACCEPTS_PER_TURN && !planted(Bug::ShortageSpins) {
                            self.pause_accepting(&error);
                        }
                    }
                },
            }
        }
    }

    /// Whether the next connection may come, and nothing is to be asked about it or its client: the
    /// usual case, which is to cost little.
    #[inline]
    fn welcomes(&self, exempt: bool) -> bool {
        // There is room: a table is crowded before it is full.
        let few = self.shared.table.counted() < self.crowded_from;
        few && !exempt && !self.accepting.restricts
    }

    /// Whether the next connection may come. If not, it is checked again later.
    #[inline(never)]
    fn has_room(&mut self, handler: &mut H, exempt: bool) -> bool {
        if exempt {
            self.accepting.exempt_full = self.shared.table.is_full_for_exempt();
            return !self.accepting.exempt_full;
        }
        if self.accepting.draining {
            return self.deferred.len() < DEFERRED_MAX && !self.shared.table.is_full();
        }
        if self.deferred.len() >= DEFERRED_MAX || !self.has_place(handler) {
            return false;
        }
        self.accepting.bucket.is_none() || self.is_time()
    }

    /// Whether there is a place in the table, or another connection can be evicted.
    fn has_place(&mut self, handler: &mut H) -> bool {
        !self.shared.table.is_full() || (!self.accepting.draining && self.finds_room(handler))
    }

    /// The table is full: whether a newcomer is accepted all the same, because an idle connection can
    /// be evicted for it or it is to be sent a reply. None is evicted before there is a newcomer.
    #[cold]
    fn finds_room(&mut self, handler: &mut H) -> bool {
        let found = self.accepting.freed > 0
            || self.finds_evictee(handler)
            || matches!(self.accepting.at_limit, AtLimit::Reject(_));
        if !found {
            self.accepting.full = true;
            self.retry_at(self.shared.now + RETRY_EVERY);
        }
        found
    }

    #[cold]
    fn warn_of_crowd(&mut self) {
        if let Some(times) = self.accepting.crowds.times(self.shared.now) {
            let connections = self.shared.table.counted();
            warn!(connections, times, "the table is full");
        }
    }

    /// Whether a connection was evicted for a new one that has been accepted.
    fn replaces_evicted(&mut self, handler: &mut H) -> bool {
        if self.accepting.freed == 0 {
            self.accepting.freed = self.evict(handler);
        }
        let replaces_evicted = self.accepting.freed > 0;
        self.accepting.freed -= u64::from(replaces_evicted);
        replaces_evicted
    }

    /// Whether the next one would not come too soon.
    fn is_time(&mut self) -> bool {
        let now = self.shared.now;
        let Some(bucket) = &self.accepting.bucket else { return true };
        let next = bucket.next(now);
        if next <= now {
            return true;
        }
        self.accepting.throttled = true;
        self.shared.counters.accept_throttles.add(1);
        self.retry_at(next);
        false
    }

    fn retry_at(&mut self, at: Instant) {
        if self.accepting.retry.is_none() {
            self.accepting.retry = Some(self.shared.set_alarm(at, Purpose::RetryAccept));
        }
    }

    /// The time has come to look whether newcomers may be let in.
    pub(super) fn retry_accepting(&mut self, handler: &mut H) {
        self.accepting.retry = None;
        self.accepting.throttled = false;
        if self.accepting.full {
            self.accepting.full = self.shared.table.is_full() && !self.finds_evictee(handler);
            if self.accepting.full {
                self.retry_at(self.shared.now + RETRY_EVERY);
            }
        }
        self.accepting.recheck = true;
        self.update_due();
    }

    /// Checks a newcomer against the limits of its client, and of the table.
    #[inline(never)]
    fn check_limits(
        &mut self,
        handler: &mut H,
        stream: &mut B::Stream,
        peer: &Address,
    ) -> Result<(), Rejection> {
        let now = self.shared.now;
        if let Some(bucket) = &mut self.accepting.bucket {
            bucket.take(now);
        }
        // A client that is over its own limits takes no other's place.
        let key = self.key_of_peer(peer);
        if let Some(key) = key
            && let Some(clients) = &mut self.accepting.clients
            && let Err(excess) = clients.arrive(key, now)
        {
            if excess == Excess::Rate || planted(Bug::HastyRefusal) {
                return Err(self.refuse_client(peer, excess));
            }
            // What it closed before it dialled may not have been read yet.
            if self.evict_lingering_of(key) != Some(true) || !self.connect_client(key) {
                return Err(Rejection::Defer);
            }
        }
        self.check_places(handler, stream, key)
    }

    /// Checks a newcomer, whose client may have it, against the limit of the table. Without a place
    /// it is sent the reply that is configured for that case.
    fn check_places(
        &mut self,
        handler: &mut H,
        stream: &mut B::Stream,
        key: Option<ClientKey>,
    ) -> Result<(), Rejection> {
        let full = self.shared.table.is_full();
        if full {
            self.warn_of_crowd();
        }
        if full && !self.replaces_evicted(handler) {
            if let (Some(clients), Some(key)) = (&mut self.accepting.clients, key) {
                clients.depart(key, None);
            }
            self.shared.counters.refused_full.add(1);
            if let AtLimit::Reject(reply) = &self.accepting.at_limit {
                // It takes this much, or is gone.
                let _ = self.backend.write(stream, reply);
            }
            return Err(Rejection::Close);
        }
        Ok(())
    }

    fn key_of_peer(&self, peer: &Address) -> Option<ClientKey> {
        self.accepting.clients.as_ref()?.key_of_peer(peer)
    }

    /// Counts a connection of a client unless it has as many as it may.
    fn connect_client(&mut self, key: ClientKey) -> bool {
        self.accepting.clients.as_mut().is_none_or(|clients| clients.connect(key))
    }

    fn refuse_client(&mut self, peer: &Address, excess: Excess) -> Rejection {
        let Self { accepting, shared, .. } = self;
        match excess {
            Excess::Connections => shared.counters.refused_client.add(1),
            Excess::Rate => shared.counters.refused_client_rate.add(1),
        }
        if let Some(times) = accepting.refusals.times(shared.now) {
            warn!(%peer, ?excess, times, "a client is refused");
        }
        match self.config.limits.clients.refusal {
            Refusal::Close => Rejection::Close,
            Refusal::Reset => Rejection::Reset,
        }
    }

    /// Closes an accepted connection that is not admitted.
    fn reject(&mut self, mut stream: B::Stream, reset: bool) {
        if !reset {
            send_fin_and_drain(&mut self.backend, &mut stream, &mut self.read_buffer);
        }
        self.backend.close(stream, reset);
    }

    /// Closes the connection of a client that has lingered longest, of those whose peers have
    /// acknowledged everything, so that the client may have another. Returns whether there was one;
    /// `None` if that is known in a later turn only.
    fn evict_lingering_of(&mut self, key: ClientKey) -> Option<bool> {
        let Some(clients) = &self.accepting.clients else { return Some(false) };
        let lingering: Vec<_> = clients.lingering(key).take(LINGERING_CHECKED).collect();
        for id in lingering {
            if self.shared.table.get(id).is_some_and(Record::lingers) && self.may_be_closed(id)? {
                self.evict_lingering(id);
                return Some(true);
            }
        }
        Some(false)
    }

    /// Whether a deferred connection comes behind as many of its client as wait for their full time.
    fn is_surplus(&self, at: usize) -> bool {
        let key = self.key_of_peer(&self.deferred[at].peer);
        let before = self.deferred.iter().take(at);
        before.filter(|it| self.key_of_peer(&it.peer) == key).count() >= DEFERRED_PER_CLIENT
    }

    fn defer(&mut self, listener: usize, stream: B::Stream, peer: Address) {
        let waits = if self.next_event < self.events.len() { -1 } else { 0 };
        let until = self.shared.now + DEFERRED_FOR;
        self.deferred.push_back(Deferred { listener, stream, peer, waits, until });
        self.accepting.recheck = true;
        self.refuse_at(until);
    }

    fn refuse_at(&mut self, at: Instant) {
        if self.accepting.refusal.is_none() {
            self.accepting.refusal = Some(self.shared.set_alarm(at, Purpose::RefuseDeferred));
        }
    }

    /// The time has come to refuse what was deferred first, unless its client may have it by now.
    pub(super) fn refuse_deferred(&mut self) {
        self.accepting.refusal = None;
        self.recheck_deferred();
    }

    /// Something happened that may decide on a deferred connection.
    #[inline]
    fn recheck_deferred(&mut self) {
        if !self.deferred.is_empty() {
            self.accepting.recheck = true;
            self.update_due();
        }
    }

    /// Decides on the connections that were deferred, once the events that came before them have
    /// been served.
    #[cold]
    fn decide_deferred(&mut self, handler: &mut H) {
        if self.next_event < self.events.len() {
            return;
        }
        let hurries = self.accepting.draining
            || self.accepting.paused
            || (self.deferred.len() >= DEFERRED_MAX
                && self.listeners.iter().any(|it| it.ready && !it.exempt));
        if !hurries && !self.accepting.recheck {
            return;
        }
        self.accepting.recheck = false;
        let now = self.shared.now;
        let behind = self.events.is_full() || self.shared.ready.is_behind();
        let least = if behind { DEFERRED_WAITS_MAX } else { 1 };
        // Of many connections of one client the first few have more time, if that leaves room.
        let spares =
            !self.accepting.draining && (0..self.deferred.len()).any(|at| self.is_surplus(at));
        for deferred in &mut self.deferred {
            deferred.waits = deferred.waits.saturating_add(1);
        }
        let mut pass = Pass { now, least, hurries: hurries && !spares, ..Pass::default() };
        // Those whose time has come are decided on first: the kernel is asked so often in a turn and no
        // more.
        for ripe in [true, false] {
            let mut at = 0;
            while at < self.deferred.len() {
                if self.is_ripe(at, &pass) != ripe || !self.decide(handler, at, ripe, &mut pass) {
                    at += 1;
                }
            }
        }
        self.accepting.recheck |= pass.recheck;
        if pass.undecided
            && let Some(alarm) = self.accepting.refusal.take()
        {
            self.shared.cancel_alarm(alarm);
        }
        let again = pass.undecided.then(|| now + TICK);
        let next = self.deferred.iter().map(|it| it.until).find(|until| *until > now);
        match (next.into_iter().chain(again).min(), self.accepting.refusal) {
            (Some(until), None) => self.refuse_at(until),
            (None, Some(alarm)) => {
                self.shared.cancel_alarm(alarm);
                self.accepting.refusal = None;
            }
            _ => {}
        }
    }

    /// Whether the time has come to refuse a deferred connection, unless its client may have it.
    fn is_ripe(&self, at: usize, pass: &Pass) -> bool {
        pass.now >= self.deferred[at].until || pass.hurries || self.is_surplus(at)
    }

    /// Admits or rejects a deferred connection if it can be decided on. Returns whether it did.
    fn decide(&mut self, handler: &mut H, at: usize, ripe: bool, pass: &mut Pass) -> bool {
        let Deferred { peer, waits, .. } = &self.deferred[at];
        let (peer, waits) = (peer.clone(), *waits);
        let waited = waits >= pass.least;
        let key = self.key_of_peer(&peer);
        let over = key.map_or(Some(false), |key| self.is_over_limit_in(pass, key));
        if over != Some(false) && !(waited && ripe && over.is_some()) {
            pass.recheck |= waits < 1 || (ripe && !waited);
            pass.undecided |= ripe && waited;
            return false;
        }
        let over = over == Some(true);
        // The next free place decides on those that only lack one.
        pass.full = pass.full || (!over && !self.has_place(handler));
        if !over && pass.full {
            return false;
        }
        let Some(Deferred { listener, mut stream, .. }) = self.deferred.remove(at) else {
            return false;
        };
        let checked = if over {
            Err(self.refuse_client(&peer, Excess::Connections))
        } else {
            if let Some(key) = key {
                self.connect_client(key);
            }
            self.check_places(handler, &mut stream, key)
        };
        match checked {
            Ok(()) => self.admit(handler, listener, stream, peer),
            Err(rejection) => {
                self.reject(stream, rejection == Rejection::Reset);
                // Its descriptor may be the one that was missing.
                self.resume_accepting();
            }
        }
        true
    }

    /// [`Reactor::is_over_limit`], asked once in a pass if the answer is not "no".
    fn is_over_limit_in(&mut self, pass: &mut Pass, key: ClientKey) -> Option<bool> {
        if let Some((_, over)) = pass.over.iter().find(|(of, _)| *of == key) {
            return *over;
        }
        let over = self.is_over_limit(key);
        if over != Some(false) {
            pass.over.push((key, over));
        }
        over
    }

    /// Whether a client may have no other connection, even at the cost of one that lingers. `None` if
    /// that is known in a later turn only.
    fn is_over_limit(&mut self, key: ClientKey) -> Option<bool> {
        let clients = self.accepting.clients.as_ref();
        if !clients.is_some_and(|clients| clients.is_at_limit(key)) {
            return Some(false);
        }
        self.evict_lingering_of(key).map(|evicted| !evicted)
    }

    /// A connection has had its last output and our FIN: where clients are limited, it is the first
    /// to go for another one of its client.
    #[inline]
    pub(super) fn note_lingering(&mut self, id: ConnId) {
        if self.accepting.clients.is_some() {
            self.list_lingering(id);
        }
    }

    fn list_lingering(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let listed = record.cold().is_some_and(|cold| cold.linger_number.is_some());
        if let Some(clients) = &mut self.accepting.clients
            && !listed
            && record.lingers()
            && let Some(key) = key_of_record(clients, record)
            && let Some(number) = clients.linger(key, id)
        {
            record.cold_mut().linger_number = Some(number);
            self.recheck_deferred();
        }
    }

    /// A connection ends: its client may have another.
    #[inline]
    pub(super) fn depart(&mut self, id: ConnId) {
        if self.accepting.clients.is_some() {
            self.depart_client(id);
        }
    }

    fn depart_client(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if let Some(clients) = &mut self.accepting.clients
            && let Some(key) = key_of_record(clients, record)
        {
            clients.depart(key, record.cold().and_then(|cold| cold.linger_number));
            self.recheck_deferred();
        }
    }

    /// Whether a connection counts against what its client may have.
    #[cfg(feature = "sim")]
    pub(super) fn is_limited(&self, record: &Record) -> bool {
        let clients = self.accepting.clients.as_ref();
        clients.is_some_and(|clients| key_of_record(clients, record).is_some())
            && !record.flags.has(Flags::REAPED)
    }

    fn admit(&mut self, handler: &mut H, index: usize, mut stream: B::Stream, peer: Address) {
        let Listener { wildcard, exempt, .. } = self.listeners[index];
        let new_conn = NewConn {
            origin: Origin::Accepted(ListenerId(index as u32)),
            peer,
            owner: None,
            exempt,
            replaces_evicted: true,
            now: self.shared.now,
        };
        let Ok(record) = self.shared.table.insert(new_conn) else {
            return;
        };
        log_state(record);
        let id = record.id;
        // A fresh socket takes bytes; if not, the first write learns it.
        record.flags.insert(Flags::WRITE_READY);
        if wildcard {
            self.note_local_addr(id, &stream);
        }
        self.shared.counters.accepted.add(1);
        self.shared.count_connections();
        if let Err(error) = self.backend.register(&mut stream, Token::of_conn(id)) {
            return self.give_up_unregistered(handler, id, stream, &error);
        }
        self.accepting.pause_nanos = 0;
        self.note_arrival();
        self.make_slot(id).stream = Some(stream);
        if self.call_accepted(handler, id) {
            self.settle_accepted(handler, id);
        } else {
            self.discard(id);
        }
    }

    #[inline(never)]
    fn note_local_addr(&mut self, id: ConnId, stream: &B::Stream) {
        if let Ok(address) = self.backend.local_addr(stream) {
            self.shared.table.at(id.index()).cold_mut().local = Some(address);
        }
    }

    /// An accepted connection cannot be registered.
    #[cold]
    #[inline(never)]
    fn give_up_unregistered(
        &mut self,
        handler: &mut H,
        id: ConnId,
        stream: B::Stream,
        error: &io::Error,
    ) {
        debug!(%id, %error, "an accepted connection cannot be registered");
        self.shared.counters.accept_errors.add(1);
        self.depart(id);
        self.shared.remove(id);
        self.shared.count_connections();
        self.backend.close(stream, true);
        // epoll_ctl(2) is out of memory or watches: the next one would fare no better.
        self.relieve_shortage(handler, error);
    }

    #[cold]
    fn handle_accept_error(
        &mut self,
        handler: &mut H,
        index: usize,
        fault: AcceptFault,
        error: &io::Error,
    ) {
        self.shared.counters.accept_errors.add(1);
        match fault {
            AcceptFault::Drained | AcceptFault::Interrupted => {
                unreachable!("{fault:?} is no error")
            }
            AcceptFault::Transient => debug!(%error, "a connection was lost while waiting"),
            AcceptFault::Exhausted if planted(Bug::ShortageSpins) => {}
            AcceptFault::Exhausted => self.relieve_shortage(handler, error),
            AcceptFault::Dead => {
                error!(%error, listener = %self.shared.listening_on[index], "a listener died");
                self.close_listener(index);
                let id = ListenerId(index as u32);
                self.call_loop("on_listener_failed", |cx| {
                    handler.on_listener_failed(cx, id, error);
                });
            }
        }
    }

    /// The system ran out of something: the connections idle longest are evicted, once in a pause. If
    /// that does not help the shortage is not ours to mend, and no other is evicted before the
    /// pause is over.
    fn relieve_shortage(&mut self, handler: &mut H, error: &io::Error) {
        // Those that are deferred hold what is short, and most of them are about to be refused.
        let gives = !self.deferred.is_empty();
        let first = self.accepting.pause_nanos == 0 || self.accepting.waited;
        self.accepting.waited = gives && first;
        self.accepting.recheck = true;
        self.pause_accepting(error);
        if first && !gives && self.accepting.at_limit == AtLimit::EvictIdle {
            self.evict_for_shortage(handler);
        }
    }

    /// A pause is over.
    pub(super) fn accept_again(&mut self) {
        self.accepting.waited = true;
        self.resume_accepting();
    }

    /// Leaves the backlog alone until there may be descriptors again: after a while, longer each
    /// time, or as soon as one of ours is closed.
    fn pause_accepting(&mut self, error: &io::Error) {
        let now = self.shared.now;
        if let Some(times) = self.accepting.shortages.times(now) {
            warn!(%error, times, "accepting pauses");
        }
        let pause = (self.accepting.pause_nanos * 2).clamp(PAUSE_MIN_NANOS, PAUSE_MAX_NANOS);
        self.accepting.pause_nanos = pause;
        self.accepting.paused = true;
        self.shared.counters.accept_pauses.add(1);
        let again = now + Duration::from_nanos(pause);
        self.accepting.alarm = Some(self.shared.set_alarm(again, Purpose::AcceptAgain));
    }

    /// Tries again after a pause. An edge-triggered listener whose accept failed reports nothing
    /// of its own accord, not even when the shortage is over.
    #[inline]
    pub(super) fn resume_accepting(&mut self) {
        if self.accepting.paused {
            self.end_pause();
        }
    }

    #[cold]
    fn end_pause(&mut self) {
        self.accepting.paused = false;
        if let Some(alarm) = self.accepting.alarm.take() {
            self.shared.cancel_alarm(alarm);
        }
        let mut failure = None;
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let Some(socket) = &mut listener.socket else {
                continue;
            };
            let token = Token::of_listener(ListenerId(index as u32));
            if planted(Bug::AcceptNotRetried) {
                listener.ready = false;
                continue;
            }
            if let Err(error) = self.backend.reregister_listener(socket, token) {
                debug!(%error, "a listener cannot be registered again");
                failure = Some(error);
            }
            listener.ready = true;
        }
        // One that was not registered would be deaf once it is drained.
        if let Some(error) = failure {
            self.pause_accepting(&error);
        }
        self.update_due();
    }

    /// One of our descriptors was closed, and a place in the table is free.
    #[inline]
    pub(super) fn note_release(&mut self) {
        if self.accepting.full || self.accepting.exempt_full {
            self.note_room();
        }
        self.accepting.freed = 0;
        self.resume_accepting();
    }

    /// Accepts again if there is a place. To resume at the first free one costs nothing: the
    /// listener stays registered while the table is full, the turn accepts one connection for the
    /// place, and the search for an idle one, if all are taken again, is limited by itself.
    fn note_room(&mut self) {
        let table = &self.shared.table;
        let spare = if planted(Bug::LateRoom) { table.capacity() / 64 } else { 1 };
        self.accepting.full &= table.counted() + spare > table.capacity();
        self.accepting.exempt_full &= table.is_full_for_exempt();
        self.accepting.recheck = true;
        self.update_due();
    }

    pub(super) fn close_listener(&mut self, index: usize) {
        let listener = &mut self.listeners[index];
        listener.ready = false;
        if let Some(socket) = listener.socket.take() {
            self.backend.close_listener(socket);
        }
    }

    /// Closes the listeners that a shutdown closes first, or `all`.
    pub(super) fn close_listeners(&mut self, all: bool) {
        for index in 0..self.listeners.len() {
            if all || !self.listeners[index].exempt {
                self.close_listener(index);
            }
        }
        while let Some(deferred) = self.deferred.pop_front() {
            self.reject(deferred.stream, all);
        }
        self.update_due();
    }

    /// A shutdown begins: until the backlogs are empty connections are accepted at no particular
    /// rate, as long as there are places, and without evictions. Begins with those of one turn.
    pub(super) fn begin_draining(&mut self, handler: &mut H) {
        self.accepting.draining = true;
        self.accepting.recheck = true;
        let mut budget = Budget::new(ITEMS_PER_STEP);
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            // The event for a connection in the backlog may be on its way.
            listener.ready = listener.socket.is_some();
            if !listener.exempt {
                self.accept_from(handler, index, &mut budget);
            }
        }
        self.update_due();
    }

    /// Whether the backlogs are empty, or no more is accepted from them: for want of places or
    /// descriptors, or because as many have been accepted as a backlog of the usual length holds.
    pub(super) fn has_drained(&self) -> bool {
        let done = |it: &Listener<_>| it.exempt || !it.ready || it.drained >= DRAINED_MAX;
        self.accepting.paused
            || self.shared.table.is_full()
            || (self.deferred.is_empty() && self.listeners.iter().all(done))
    }

    pub(super) const fn end_draining(&mut self) {
        self.accepting.draining = false;
    }
}

/// Readies the socket of one that cannot stay for its close. What it sent already is read, because
/// closing over unread bytes would reset the connection and could destroy what it was told.
pub(super) fn send_fin_and_drain<B: Backend>(
    backend: &mut B,
    stream: &mut B::Stream,
    read_buffer: &mut BytesMut,
) {
    if backend.shutdown_write(stream).is_ok() {
        read_buffer.clear();
        read_buffer.reserve(READ_BUDGET);
        // Whether there was anything does not matter.
        let _ = backend.read(stream, read_buffer, READ_BUDGET);
        read_buffer.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_of_accept_has_its_answer() {
        use AcceptFault::{Dead, Drained, Exhausted, Interrupted, Transient};
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
            assert_eq!(AcceptFault::of(&io::Error::from_raw_os_error(errno)), fault, "{errno}");
        }
        // An error that is no system call's.
        for (kind, fault) in [
            (io::ErrorKind::WouldBlock, Drained),
            (io::ErrorKind::Interrupted, Interrupted),
            (io::ErrorKind::InvalidData, Transient),
        ] {
            assert_eq!(AcceptFault::of(&kind.into()), fault, "{kind:?}");
        }
    }
}
