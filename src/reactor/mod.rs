//! The loop: waits, and lets everything that is due happen once per turn.

mod accept;
#[cfg(feature = "sim")]
mod audit;
mod deadline;
mod deferred;
mod delivery;
mod dial;
mod dispatch;
mod end;
mod ending;
mod evict;
mod health;
mod io;
mod limits;
mod mailbox;
mod overload;
mod pools;
mod read_buffer;
mod relay;
mod serve;
mod service;
mod settle;
mod shortage;
mod shutdown;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
#[cfg(not(mio_unsupported_force_poll_poll))]
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use std::{cmp, fmt};

use bytes::BytesMut;
use slab::Slab;
use tracing::Level;

use self::accept::Listener;
#[cfg(feature = "sim")]
pub(crate) use self::audit::{Holdings, Memory};
use self::deferred::Newcomer;
pub use self::end::RunError;
pub use self::mailbox::Handle;
use self::mailbox::{Mailbox, Task};
pub use self::shutdown::Report;
use crate::address::{Address, ToAddress};
use crate::backend::{Backend, EVENTS_PER_WAIT, Events, Os, Readiness, Source};
use crate::close::CloseReason;
use crate::config::{Config, ListenConfig};
use crate::context::Context;
use crate::core::budget::{Budget, ITEMS_PER_STEP, STEP_NANOS, Step};
use crate::core::deferred::DeferredQueue;
use crate::core::drain::Drain;
use crate::core::flags::Flags;
use crate::core::table::{self, CAPACITY_MAX};
use crate::error::Error;
use crate::handler::Handler;
use crate::id::{ConnId, ListenerId};
use crate::log::{error, hears, info, trace, warn};
use crate::planted::{Bug, planted};
use crate::probe;
use crate::state::{LoopState, READ_BUDGET};
use crate::time::Instant;

/// How often the wall clock is read: a change of it is to be seen soon, and no turn is to pay for
/// it.
const WALL_EVERY: Duration = Duration::from_secs(1);

/// How long the events of one turn are served, checked each [`EVENTS_PER_CHECK`] events.
const EVENTS_NANOS: u64 = STEP_NANOS;
const EVENTS_PER_CHECK: usize = 32;

/// Posted closures run in one turn.
const TASKS_PER_TURN: usize = 1_024;

/// How far the coarse clock may run ahead of the turn's time before that is read again.
const STALE_NANOS: u64 = 8_000_000;

/// The most connections where no setting says how many.
const CONNECTIONS_DEFAULT_MAX: usize = 65_536;

/// An event loop with all its connections, on one thread.
///
/// It is made from a [`Config`], given listeners, and then [run](Reactor::run) with a [`Handler`],
/// or [turned](Reactor::turn) by the owner of another loop, which [ends](Reactor::end) it too. It
/// costs a read buffer of 64 KiB, as much again for what a callback writes, and a wheel of 130 KiB;
/// a connection costs some 300 bytes.
///
/// ```no_run
/// # use bytes::BytesMut;
/// # use wheelhouse::{Config, Conn, Handler, Reactor};
/// # struct Echo;
/// # impl Handler for Echo {
/// #     type Session = ();
/// #     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> { Some(()) }
/// #     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
/// #         conn.write(input);
/// #         input.clear();
/// #     }
/// # }
/// let mut reactor = Reactor::new(Config::default())?;
/// reactor.listen("127.0.0.1:7000")?;
/// reactor.run(&mut Echo)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Reactor<H: Handler, B: Backend = Os> {
    backend: B,
    config: Config,
    events: Events,
    /// The first event of the latest wait that has not been served.
    next_event: usize,
    /// The event at which the time for them is checked next.
    check_event: usize,
    /// A panic cut the turn short: it goes on with the event after the one that was served.
    cut: bool,
    /// The waker woke: there may be tasks or a request to shut down.
    woken: bool,
    listeners: Vec<Listener<B::Listener>>,
    accepting: accept::Accepting,
    services: service::Services<B::Listener, B::Stream>,
    /// Accepted connections of clients that seem to be at their limit.
    deferred: DeferredQueue<Newcomer<B::Stream>>,
    overload: overload::Overload,
    /// The sockets of attempts to dial that are not decided; each connection has a few.
    attempts: Slab<B::Stream>,
    /// What a connection has beside its record, by its place in the table.
    slots: Vec<Slot<H::Session, B::Stream>>,
    shared: LoopState,
    /// Where reads land; only what a handler leaves moves to the connection.
    read_buffer: BytesMut,
    mailbox: Arc<Mailbox<H>>,
    tasks: VecDeque<Task<H>>,
    drain: Drain,
    /// Waits in a row after which deadlines were put off because there may be input.
    put_off: u32,
    /// What happens to single connections is to be logged.
    logs: bool,
    started_at: Instant,
    /// When the wall clock is to be read again.
    wall_due: Instant,
    /// `on_start` has been called.
    has_started: bool,
    /// Entries of the wheel that came up.
    #[cfg(feature = "sim")]
    entries_taken: u64,
}

/// The parts of a connection that callbacks of others cannot reach. They lie together because a
/// message touches all of them, and are lent apart. With a session of up to 16 bytes they take one
/// cache line.
#[repr(align(64))]
struct Slot<S, T> {
    session: Option<S>,
    stream: Option<T>,
    /// What the handler left unread. Empty, it owns no memory.
    input: BytesMut,
}

impl<S, T> Default for Slot<S, T> {
    fn default() -> Self {
        Self { session: None, stream: None, input: BytesMut::new() }
    }
}

impl<H: Handler, B: Backend> fmt::Debug for Reactor<H, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("connections", &self.shared.table.len())
            .field("listeners", &self.shared.listening_on)
            .finish_non_exhaustive()
    }
}

impl<H: Handler> Reactor<H> {
    /// A reactor over the operating system's sockets. Where [`run`](Reactor::run) is not in sight
    /// the compiler must be given the handler's type: `Reactor::<Echo>::new(config)`.
    ///
    /// # Errors
    ///
    /// If a setting is out of its range, the system has no descriptors left, or the other reactors
    /// of this process have claimed all that it may open. A reactor claims as many as
    /// [`max_connections`](crate::Limits::max_connections) and a reserve, 65,536 where that is not
    /// set, and less where fewer are left.
    pub fn new(config: Config) -> Result<Self, Error> {
        Self::with_backend(config, Os::new()?)
    }
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// A reactor over another world, such as a simulated one.
    ///
    /// # Errors
    ///
    /// If a setting is out of its range, or the process may open too few descriptors for a single
    /// connection, those left out that its other reactors have claimed.
    pub fn with_backend(config: Config, mut backend: B) -> Result<Self, Error> {
        config.refuse_out_of_range()?;
        let asked = config.limits.max_connections;
        let capacity = capacity(asked, backend.claim_descriptors(descriptors_wanted(asked)));
        if capacity == 0 {
            return Err(Error::Io(std::io::Error::other(
                "no descriptors are left for connections: RLIMIT_NOFILE is too low, or the other \
                 reactors of this process have claimed them all (set their limits.max_connections)",
            )));
        }
        let now = backend.now();
        let shared = LoopState::new(&config, capacity, now);
        shared.counters.connections_max.set(capacity as u64);
        let mailbox =
            Mailbox::new(config.limits.mailbox_max, backend.waker(), Arc::clone(&shared.counters));
        Ok(Self {
            accepting: accept::Accepting::new(&config, capacity),
            services: service::Services::default(),
            overload: overload::Overload::new(&config.limits),
            drain: Drain::new(&config),
            backend,
            config,
            events: Events::with_capacity(EVENTS_PER_WAIT),
            next_event: 0,
            check_event: 0,
            cut: false,
            woken: false,
            listeners: Vec::new(),
            deferred: DeferredQueue::default(),
            attempts: Slab::new(),
            slots: table::column(capacity),
            shared,
            read_buffer: BytesMut::new(),
            mailbox: Arc::new(mailbox),
            tasks: VecDeque::new(),
            put_off: 0,
            logs: false,
            started_at: now,
            wall_due: now,
            has_started: false,
            #[cfg(feature = "sim")]
            entries_taken: 0,
        })
    }

    /// One turn of the loop: waits for something to happen, at most `max_wait`, and lets everything
    /// that is ready or due happen, each within its budget.
    ///
    /// # Errors
    ///
    /// If waiting fails, or the reactor stopped because callbacks panicked.
    pub fn turn(&mut self, handler: &mut H, max_wait: Option<Duration>) -> std::io::Result<()> {
        let _turning = self.mailbox.begin_turn();
        if !self.has_started {
            self.start(handler)?;
        }
        loop {
            let mut outcome = None;
            self.cut = self.guard(handler, |reactor, handler| {
                outcome = Some(reactor.turn_once(handler, max_wait));
            });
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    /// One turn, or what is left of one that a panic cut short. That can only happen in
    /// `serve_events`: the callbacks of the other steps have nets of their own.
    #[inline]
    fn turn_once(&mut self, handler: &mut H, max_wait: Option<Duration>) -> std::io::Result<()> {
        self.wait(max_wait)?;
        self.serve_events(handler);
        self.serve_ready(handler);
        self.accept(handler);
        self.run_tasks(handler);
        self.expire_deadlines(handler);
        self.serve_endpoints();
        self.serve_pools(handler);
        self.begin_dials(handler);
        self.settle_dirty(handler);
        self.reap(handler);
        self.progress_shutdown(handler);
        probe::turn_end(self.shared.table.len());
        self.drain.outcome().map_err(failed)
    }

    /// Turns until a shutdown has ended, and reports what the reactor did.
    ///
    /// Whether it succeeds or fails, every session has had its
    /// [`on_closed`](Handler::on_closed) when it returns, and the handler is the caller's again.
    ///
    /// # Errors
    ///
    /// If waiting fails, or the reactor stopped because callbacks panicked. What was live then has
    /// been [ended](Reactor::end).
    pub fn run(mut self, handler: &mut H) -> Result<Report, RunError> {
        info!(max_connections = self.shared.table.capacity(), "reactor started");
        let mut outcome = Ok(());
        while outcome.is_ok() && !self.is_finished() {
            outcome = self.turn_on(handler);
        }
        let report = self.end(handler);
        match outcome {
            Ok(()) => {
                info!(report = report.to_string(), "reactor stopped");
                Ok(report)
            }
            Err(error) => {
                error!(%error, report = report.to_string(), "the reactor failed");
                Err(RunError { error, report: Box::new(report) })
            }
        }
    }

    /// Turns until a shutdown has ended or the reactor fails, or until a panic cuts a turn short.
    fn turn_on(&mut self, handler: &mut H) -> std::io::Result<()> {
        let _turning = self.mailbox.begin_turn();
        if !self.has_started {
            self.start(handler)?;
        }
        let mut outcome = Ok(());
        // One net for many turns: to spread one takes a tenth of the instructions of a message.
        self.cut = self.guard(handler, |reactor, handler| {
            while outcome.is_ok() && !reactor.is_finished() {
                outcome = reactor.turn_once(handler, None);
            }
        });
        outcome
    }

    /// Ends the reactor at once, after [`turn`](Reactor::turn) failed or between two turns, and
    /// reports what it did. After a shutdown that has ended there is nothing left to end.
    ///
    /// Every live session has its last callbacks: [`on_closing`](Handler::on_closing) and
    /// [`on_closed`](Handler::on_closed) with [`HardStop`](crate::CloseReason::HardStop), or only
    /// `on_closed` with its own reason where it was closing already. Sockets are reset. Closures
    /// that were posted are dropped; what the callbacks write, post or dial is discarded. A
    /// callback that panics is counted, and the others follow all the same.
    ///
    /// A reactor that is dropped without this drops its sessions and logs how many there were.
    pub fn end(mut self, handler: &mut H) -> Report {
        self.end_all(handler);
        self.report()
    }

    /// Listens on `address`: an [`Address`], a [`SocketAddr`](std::net::SocketAddr), or text such as
    /// `"127.0.0.1:7000"` or `"unix:/run/echo"`.
    ///
    /// # Errors
    ///
    /// If it is no address, or cannot be bound.
    pub fn listen(&mut self, address: impl ToAddress) -> Result<ListenerId, Error> {
        self.listen_with(address, ListenConfig::default())
    }

    /// [`Reactor::listen`] with settings for this listener.
    ///
    /// # Errors
    ///
    /// If it is no address, or cannot be bound, or a setting is out of its range.
    pub fn listen_with(
        &mut self,
        address: impl ToAddress,
        listen: ListenConfig,
    ) -> Result<ListenerId, Error> {
        listen.refuse_out_of_range()?;
        let address = to_address(address)?;
        listen.refuse_mode_without_file(matches!(address, Address::Unix(_)))?;
        let options = self.socket_options(&listen);
        let bound = self.backend.bind(&address, &listen, &options);
        self.add_listener(bound, &listen, || address.to_string())
    }

    /// Accepts from a listening socket made elsewhere, such as one inherited from a service
    /// manager. Its file, if it has one, is left to the program that made it.
    ///
    /// # Errors
    ///
    /// If the descriptor is no listening stream socket or a setting is out of its range.
    pub fn adopt(&mut self, fd: OwnedFd, listen: ListenConfig) -> Result<ListenerId, Error> {
        listen.refuse_out_of_range()?;
        listen.refuse_mode_without_file(false)?;
        let options = self.socket_options(&listen);
        let adopted = self.backend.adopt(fd, &options);
        self.add_listener(adopted, &listen, || "the inherited descriptor".into())
    }

    /// Where a listener listens, with the port that the system chose where port 0 was asked for.
    ///
    /// # Panics
    ///
    /// If there is no such listener, as `id` is another reactor's.
    pub fn local_addr(&self, id: ListenerId) -> &Address {
        &self.shared.listening_on[id.0 as usize]
    }

    /// What other threads reach this reactor by.
    pub fn handle(&self) -> Handle<H> {
        Handle::new(Arc::clone(&self.mailbox))
    }

    /// The whole loop between turns: to dial or set alarms before the first one.
    pub fn context(&mut self) -> Context<'_> {
        self.refresh_now();
        if self.shared.now >= self.wall_due {
            self.read_wall_clock();
        }
        Context { shared: &mut self.shared }
    }

    /// How long the next turn would wait; `None` means until something happens. For a program that
    /// waits elsewhere, together with the descriptor of [`AsFd`].
    pub fn next_timeout(&mut self) -> Option<Duration> {
        self.refresh_now();
        // Events that are left from the turn before come before another wait.
        let behind = self.next_event < self.events.len();
        if behind { Some(Duration::ZERO) } else { self.timeout() }
    }

    /// Whether a shutdown has ended: another turn would have nothing to do.
    pub fn is_finished(&self) -> bool {
        self.drain.has_ended()
    }

    fn timeout(&self) -> Option<Duration> {
        let shared = &self.shared;
        // One branch for all that is mostly nothing.
        let queued = shared.dirty.len()
            | shared.pending_dials.len()
            | shared.reaped.len()
            | shared.pools.due()
            | shared.endpoints.due()
            | shared.due_alarms()
            | self.tasks.len()
            | self.put_off as usize
            | usize::from(!self.has_started);
        if queued > 0
            || !shared.ready.is_empty()
            || self.mailbox.is_due()
            || self.drain.handled_of_callbacks() != shared.shutdowns_asked
            || self.accepting.is_due()
            || self.drain.has_work()
        {
            return Some(Duration::ZERO);
        }
        shared.until_next_tick()
    }

    fn wait(&mut self, max_wait: Option<Duration>) -> std::io::Result<()> {
        if self.cut {
            self.take_up_turn();
            return Ok(());
        }
        if self.shared.lags {
            self.note_turn();
        }
        if self.next_event < self.events.len() {
            // The turn before used up the time for events: those that are left come first.
            self.begin_turn();
            return Ok(());
        }
        let timeout = match (self.timeout(), max_wait) {
            (Some(timeout), Some(max_wait)) => Some(cmp::min(timeout, max_wait)),
            (timeout, max_wait) => timeout.or(max_wait),
        };
        match self.backend.wait(&mut self.events, timeout) {
            Ok(()) => {}
            // The clock is read after a signal as after any other wait.
            Err(error) if error.kind() == ErrorKind::Interrupted => self.events.clear(),
            Err(error) => return Err(error),
        }
        self.next_event = 0;
        self.begin_turn();
        if self.logs {
            self.say_waited(timeout);
        }
        Ok(())
    }

    #[inline]
    fn begin_turn(&mut self) {
        // The turn before is accounted for.
        debug_assert!(self.shared.long_since.is_none());
        self.shared.now = self.shared.now.max(self.backend.now());
        self.shared.seen = self.shared.now;
        if self.shared.now >= self.wall_due {
            self.read_wall_clock();
        }
        self.shared.counters.turns.add(1);
        self.shared.ready.begin_turn();
        self.shared.step = Step::Events;
        self.check_event = self.next_event + EVENTS_PER_CHECK;
        self.woken = self.mailbox.is_due();
        self.logs = hears(Level::DEBUG);
        probe::turn_start(self.events.len(), self.next_event);
    }

    #[cold]
    #[inline(never)]
    fn read_wall_clock(&mut self) {
        self.shared.wall = (self.backend.now_unix(), self.shared.now);
        self.wall_due = self.shared.now + WALL_EVERY;
    }

    /// The first turn begins.
    #[cold]
    fn start(&mut self, handler: &mut H) -> std::io::Result<()> {
        self.has_started = true;
        self.refresh_now();
        // What passed since the reactor was made is not the callback's.
        self.shared.seen = self.shared.now;
        self.read_wall_clock();
        self.call_loop("on_start", |cx| handler.on_start(cx));
        // A panic there stops the reactor before it waits for anything.
        self.progress_shutdown(handler);
        self.drain.outcome().map_err(failed)
    }

    #[cold]
    #[inline(never)]
    fn say_waited(&self, timeout: Option<Duration>) {
        trace!(?timeout, events = self.events.len(), "waited");
    }

    /// The turn was long, or some before it were.
    #[cold]
    fn note_turn(&mut self) {
        self.shared.note_turn();
        if self.shared.lag.pressure() >= self.shared.bounds.pressed_from {
            self.watch_pressure();
        }
    }

    /// Reads the clock. It never goes back, whatever the backend says.
    #[inline]
    fn refresh_now(&mut self) {
        // What passes between two turns belongs to none.
        if self.shared.long_since.is_some() {
            self.shared.end_long_turn();
        }
        self.shared.now = self.shared.now.max(self.backend.now());
    }

    /// Reads the clock again after a callback that took long, so that what follows does not
    /// reckon with the time before it, and notes how long it was.
    #[inline]
    fn refresh_now_if_stale(&mut self, callback: &'static str, id: Option<ConnId>) {
        refresh_now_if_stale(&mut self.backend, &mut self.shared, callback, id);
    }

    fn serve_events(&mut self, handler: &mut H) {
        while let Some(event) = self.events.get(self.next_event) {
            if self.next_event == self.check_event {
                if self.has_served_long_enough() {
                    return;
                }
                self.check_event += EVENTS_PER_CHECK;
            }
            self.next_event += 1;
            match event.token.source() {
                Source::Conn(id) => self.serve_event(handler, id, event.ready),
                Source::Listener(id) => self.note_listener_event(id),
                Source::Waker => self.woken = true,
            }
        }
    }

    /// The clock is read before the rest of the events: one panic may follow another.
    #[cold]
    fn take_up_turn(&mut self) {
        self.cut = false;
        self.check_event = self.next_event;
    }

    /// Whether the time for the events of this turn is over.
    #[cold]
    #[inline(never)]
    fn has_served_long_enough(&mut self) -> bool {
        let (now, began) = (self.backend.now(), self.shared.turn_began());
        let over = now.nanos_since(began) >= EVENTS_NANOS;
        if over {
            self.shared.advance_now(now);
        }
        over
    }

    /// A step of the turn begins that has something to do.
    fn begin_step(&mut self, step: Step) -> Budget {
        self.shared.step = step;
        self.shared.seen = self.backend.coarse_now();
        // connect(2) searches for a port: once half of them are taken, for a millisecond.
        if planted(Bug::NoBudget) {
            return Budget::with_checks(u32::MAX, u32::MAX);
        }
        match step {
            Step::Dials => Budget::of_slow_items(ITEMS_PER_STEP),
            _ => Budget::new(ITEMS_PER_STEP),
        }
    }

    /// A step of the turn is over. If it served many items it is timed, and the time is read again.
    fn end_step(&mut self, budget: &Budget) {
        if budget.was_timed() {
            self.shared.advance_now(self.backend.now());
        }
    }

    #[inline]
    fn run_tasks(&mut self, handler: &mut H) {
        if self.woken || !self.tasks.is_empty() {
            self.run_some_tasks(handler);
        }
    }

    #[inline(never)]
    fn run_some_tasks(&mut self, handler: &mut H) {
        if self.mailbox.has_tasks() || self.mailbox.is_due() {
            // A shutdown may be what is due: it is handled at the end of the turn.
            self.woken = true;
            let count = TASKS_PER_TURN.saturating_sub(self.tasks.len());
            self.mailbox.take(count, &mut self.tasks);
        }
        let mut budget = self.begin_step(Step::Posts);
        while budget.allows(|| self.backend.now())
            && let Some(task) = self.tasks.pop_front()
        {
            match task {
                Task::ToLoop(closure) => {
                    self.call_loop("a posted closure", |cx| closure(handler, cx));
                }
                Task::ToConn(id, closure) if self.has_session(id) && !self.has_panicked(id) => {
                    let name = "a posted closure";
                    self.call(id, name, |conn, session| closure(handler, conn, session));
                    self.shared.mark_dirty(id);
                }
                // It is to be opened soon; what was posted later waits with it.
                Task::ToConn(id, closure) if self.is_unopened(id) => {
                    self.tasks.push_front(Task::ToConn(id, closure));
                    break;
                }
                // What it holds may panic when it is dropped.
                Task::ToConn(_, closure) => {
                    self.call_shared("a posted closure", |_| drop(closure));
                }
            }
        }
        self.end_step(&budget);
    }

    /// Whether a connection is there and has been given to the handler.
    pub(super) fn has_session(&self, id: ConnId) -> bool {
        self.shared.table.get(id).is_some()
            && self.slots.get(id.index()).is_some_and(|slot| slot.session.is_some())
    }

    /// Whether a callback of a connection has panicked: only those of its end follow.
    pub(super) fn has_panicked(&self, id: ConnId) -> bool {
        let panicked = Some(CloseReason::HandlerPanic);
        let record = self.shared.table.get(id);
        record.is_some_and(|it| it.requested() == panicked || it.reason == panicked)
    }

    /// Whether a connection is to be dialled, and its handler has not heard of it.
    pub(super) fn is_unopened(&self, id: ConnId) -> bool {
        let record = self.shared.table.get(id);
        record.is_some_and(|record| !record.flags.has(Flags::REAPED)) && !self.has_session(id)
    }

    /// Settles the connections that callbacks of others, or of the loop, reached. What is reached
    /// again meanwhile waits for the next turn.
    #[inline]
    fn settle_dirty(&mut self, handler: &mut H) {
        if !self.shared.dirty.is_empty() {
            self.settle_some_dirty(handler);
        }
    }

    #[inline(never)]
    fn settle_some_dirty(&mut self, handler: &mut H) {
        let mut budget = self.begin_step(Step::Reached);
        for _ in 0..self.shared.dirty.len() {
            if !budget.allows(|| self.backend.now()) {
                return self.end_step(&budget);
            }
            let Some(id) = self.shared.dirty.pop_front() else { break };
            if let Some(record) = self.shared.table.get_mut(id) {
                record.flags.remove(Flags::DIRTY);
                if self.has_session(id) {
                    self.guard(handler, |reactor, handler| reactor.serve_dirty(handler, id));
                }
            }
        }
        self.bound_sent();
        self.end_step(&budget);
    }
}

/// Ready when a turn would have something to do.
#[cfg(not(mio_unsupported_force_poll_poll))]
impl<H: Handler, B: Backend + AsFd> AsFd for Reactor<H, B> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.backend.as_fd()
    }
}

const _: () = {
    assert!(Flags::of_event(Readiness::READABLE.to_bits()).has(Flags::READ_READY));
    assert!(Flags::of_event(Readiness::WRITABLE.to_bits()).has(Flags::WRITE_READY));
    assert!(Flags::of_event(Readiness::HANGUP.to_bits()).has(Flags::HANGUP));
};

#[inline(always)]
fn refresh_now_if_stale<B: Backend>(
    backend: &mut B,
    shared: &mut LoopState,
    callback: &'static str,
    id: Option<ConnId>,
) {
    let coarse = backend.coarse_now();
    if coarse.nanos_since(shared.now) >= STALE_NANOS {
        let step = backend.coarse_step();
        shared.note_long(callback, id, backend.now(), step);
    }
    shared.seen = coarse;
}

/// An address that is to be listened on.
fn to_address(address: impl ToAddress) -> Result<Address, Error> {
    address.to_address().map_err(|(address, error)| Error::Bind {
        address,
        source: std::io::Error::new(ErrorKind::InvalidInput, error),
    })
}

/// Why the reactor failed, as a turn returns it.
#[cold]
fn failed(why: &'static str) -> std::io::Error {
    std::io::Error::other(why)
}

/// Descriptors that a reactor leaves to the rest: exempt connections and those of its own services,
/// files, listeners, the poll and its waker need some too.
const DESCRIPTORS_RESERVED: usize = 64;

/// How many descriptors a reactor asks for.
fn descriptors_wanted(asked: Option<usize>) -> usize {
    let connections = asked.unwrap_or(CONNECTIONS_DEFAULT_MAX).min(CAPACITY_MAX);
    connections + DESCRIPTORS_RESERVED
}

/// How many connections to serve at once: what was asked for, within what the descriptors allow that
/// the reactor got.
fn capacity(asked: Option<usize>, descriptors: usize) -> usize {
    // Few descriptors leave few for the rest.
    let reserve = cmp::min(DESCRIPTORS_RESERVED, descriptors / 4);
    let allowed = descriptors.saturating_sub(reserve).min(CAPACITY_MAX);
    match asked {
        Some(asked) if asked > allowed => {
            warn!(asked, allowed, "max_connections is cut down to the descriptor limit");
            allowed
        }
        Some(asked) => asked,
        None => allowed.min(CONNECTIONS_DEFAULT_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        let of = |asked, left: usize| capacity(asked, left.min(descriptors_wanted(asked)));
        assert_eq!(of(None, 20_000), 19_936);
        assert_eq!(of(None, 1_000_000), 65_536);
        assert_eq!(of(None, 32), 24);
        assert_eq!(of(Some(100), 32), 24);
        assert_eq!(of(Some(7), 32), 7);
        assert_eq!(of(Some(usize::MAX), usize::MAX), CAPACITY_MAX);
        assert_eq!(of(None, 0), 0);
    }
}
