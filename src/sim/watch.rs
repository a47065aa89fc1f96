//! A handler around the user's that checks its callbacks and injects accidents.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;

use super::fault::STALL_MAX;
use super::history::{Of, TraceEvent};
use super::ledger::{self, Account};
use super::net::Net;
use crate::backend::Token;
use crate::close::CloseMode;
use crate::close::{CloseReason, Closed, Timeout};
use crate::config::{Config, Rate, Timeouts};
use crate::conn::Conn;
use crate::context::Context;
use crate::error::AcquireError;
use crate::handler::Handler;
use crate::id::{AlarmId, ConnId, ListenerId, WaitId};
use crate::metrics::MetricsWriter;
use crate::time::{Instant, nanos};

/// How much longer than the world's clock a host's may take over a limit's time: its clock may
/// stand still for a second, and be set back for another.
const CLOCK_ERROR: Duration = Duration::from_secs(2);

/// How long a disturbance has its effects, beside the deadline that it let pass.
const DISTURBANCE: Duration = Duration::from_secs(1);

/// Ended connections that are kept for the test to take.
const CLOSED_MAX: usize = 4_096;

/// A callback of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum What {
    Open,
    Connected,
    Data,
    Idle,
    Active,
    Eof,
    Drained,
    Timer,
    HealthCheck,
    TestRequest,
    Acquired,
    LeaseReplaced,
    Closing,
    Closed,
}

impl What {
    /// The callback's name in [`Handler`].
    const fn name(self) -> &'static str {
        match self {
            Self::Open => "on_open",
            Self::Connected => "on_connected",
            Self::Data => "on_data",
            Self::Idle => "on_idle",
            Self::Active => "on_active",
            Self::Eof => "on_eof",
            Self::Drained => "on_drained",
            Self::Timer => "on_timer",
            Self::HealthCheck => "on_health_check",
            Self::TestRequest => "on_test_request",
            Self::Acquired => "on_acquired",
            Self::LeaseReplaced => "on_lease_replaced",
            Self::Closing => "on_closing",
            Self::Closed => "on_closed",
        }
    }
}

/// How far a connection has come.
#[derive(Debug, Default)]
struct Life {
    connected: bool,
    idle: bool,
    eof: bool,
    closing: bool,
    /// A callback was made to panic.
    accident: bool,
    /// A callback panicked by itself.
    panicked: bool,
    opened_at: Instant,
    active_at: Instant,
    /// How often its timer came.
    timers: u64,
    /// It was left congested, and has not been notified of the end of that.
    congested: bool,
    /// Its latest `on_drained` is later than its latest `on_data`, and it has waited for no length of
    /// input since.
    drained: bool,
}

impl Life {
    /// Whether a callback may come now: the order that [`Handler`] promises.
    const fn allows(&self, what: What) -> bool {
        let serving = self.connected && !self.closing;
        match what {
            What::Open => false,
            What::Connected => !self.connected && !self.closing,
            What::Data => serving && !self.idle,
            What::Idle | What::TestRequest => serving && !self.idle,
            What::Active => serving && self.idle,
            What::Eof => serving && !self.eof,
            What::Drained => serving,
            What::HealthCheck => serving && self.idle,
            What::Timer | What::Acquired | What::LeaseReplaced | What::Closing => !self.closing,
            What::Closed => self.closing,
        }
    }

    const fn step(&mut self, what: What) {
        match what {
            What::Connected => self.connected = true,
            What::Idle => self.idle = true,
            What::Active => self.idle = false,
            What::Eof => self.eof = true,
            What::Closing => self.closing = true,
            What::Data => self.drained = false,
            What::Drained => self.drained = true,
            What::Open
            | What::Timer
            | What::HealthCheck
            | What::TestRequest
            | What::Acquired
            | What::LeaseReplaced
            | What::Closed => {}
        }
    }
}

/// The user's handler as a simulated reactor runs it: every callback is checked on its way, and may
/// panic or take its time as [`Faults`](super::Faults) say. It derefs to the handler.
#[derive(Debug)]
pub struct Watched<H: Handler> {
    inner: H,
    net: Rc<RefCell<Net>>,
    machine: usize,
    timeouts: Timeouts,
    panic_limit: Option<Rate>,
    lives: BTreeMap<ConnId, Life>,
    pub(super) closed: VecDeque<Closed>,
    /// The first connection whose end is to be blamed on the handler, and how many there were.
    pub(super) blamed: Option<(Closed, u64)>,
    /// How many connections are gone for which the flush deadline had passed, and the linger one.
    pub(super) impatient: (u64, u64),
    /// Waits for a connection of a pool that have been answered.
    answered: BTreeSet<WaitId>,
}

impl<H: Handler> Deref for Watched<H> {
    type Target = H;

    fn deref(&self) -> &H {
        &self.inner
    }
}

impl<H: Handler> DerefMut for Watched<H> {
    fn deref_mut(&mut self) -> &mut H {
        &mut self.inner
    }
}

impl<H: Handler> Watched<H> {
    pub(super) fn new(inner: H, net: &Rc<RefCell<Net>>, machine: usize, config: &Config) -> Self {
        Self {
            inner,
            net: Rc::clone(net),
            machine,
            timeouts: config.timeouts.clone(),
            panic_limit: config.panic_limit,
            lives: BTreeMap::new(),
            closed: VecDeque::new(),
            blamed: None,
            impatient: (0, 0),
            answered: BTreeSet::new(),
        }
    }

    pub(super) const fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// How often the timer of a connection came.
    pub(super) fn timers(&self, id: ConnId) -> u64 {
        self.lives.get(&id).map_or(0, |life| life.timers)
    }

    /// Connections that were left congested, and have not been notified of the end of that.
    pub(super) fn congested(&self) -> impl Iterator<Item = ConnId> {
        self.lives.iter().filter(|(_, life)| life.congested && !life.closing).map(|(id, _)| *id)
    }

    /// Connections that had `on_drained`, and no `on_data` since, and have not waited for a length of
    /// input.
    pub(super) fn drained(&self) -> impl Iterator<Item = ConnId> {
        self.lives.iter().filter(|(_, life)| life.drained && !life.closing).map(|(id, _)| *id)
    }

    /// Those that wait for a length of input are called when that is there; and if they are not to wait
    /// any more, when more input comes.
    pub(super) fn note_awaiting(&mut self, awaits: impl Fn(ConnId) -> bool) {
        for (id, life) in &mut self.lives {
            life.drained = life.drained && !awaits(*id);
        }
    }

    const fn account(&self, id: ConnId) -> Account {
        Account { machine: self.machine, id }
    }

    /// A callback of a connection has returned: what it wrote is to be sent.
    fn note_left(&mut self, conn: &mut Conn<'_>) {
        let id = conn.id();
        self.account(id).note_output(&mut self.net.borrow_mut(), conn);
        if let Some(life) = self.lives.get_mut(&id) {
            life.congested = conn.is_congested();
            life.drained = life.drained && !conn.awaits_input();
        }
    }

    fn check(&self, result: Result<(), String>) {
        if let Err(what) = result {
            self.net.borrow_mut().fail_check(what);
        }
    }

    /// A lease begins: what was to follow from the one before has ended with that.
    fn begin_lease(&mut self, lease: Result<ConnId, AcquireError>) {
        if let Some(life) = lease.ok().and_then(|lease| self.lives.get_mut(&lease)) {
            life.congested = false;
        }
    }

    /// A wait is answered once.
    fn check_wait(&mut self, wait: WaitId) {
        if !self.answered.insert(wait) {
            self.net.borrow_mut().fail_check(format!("{wait:?} was answered twice"));
        }
    }

    /// Sessions that were entered and not left.
    pub(super) fn sessions(&self) -> usize {
        self.lives.len()
    }

    fn enter(&mut self, what: What, id: ConnId, now: Instant, reason: Option<CloseReason>) {
        let net = &mut *self.net.borrow_mut();
        net.note(0x30 + what as u64, id.to_bits());
        let of = Of { id: Some(id), far: None };
        net.record(
            net.place_of(self.machine),
            TraceEvent::Callback { name: what.name(), of, reason },
        );
        net.machines[self.machine].progress += 1;
        match self.lives.get_mut(&id) {
            Some(life) => {
                if !life.allows(what) {
                    net.fail_check(format!("{id} had {what:?} out of order, after {life:?}"));
                }
                life.step(what);
                if matches!(what, What::Data | What::Connected) {
                    life.active_at = now;
                }
            }
            None if what == What::Open => {
                let life = Life { opened_at: now, active_at: now, ..Life::default() };
                self.lives.insert(id, life);
            }
            None => net.fail_check(format!("{id} had {what:?} without a beginning")),
        }
    }

    /// Runs a callback of a connection, and then has the accidents that are due.
    fn run<T>(&mut self, what: What, id: ConnId, callback: impl FnOnce(&mut H) -> T) -> T {
        let result = self.net_under(what.name(), Some(id), callback);
        self.have_accident(id);
        result
    }

    /// Runs a callback; if it panics, so does the run that it is part of.
    fn net_under<T>(
        &mut self,
        name: &'static str,
        id: Option<ConnId>,
        callback: impl FnOnce(&mut H) -> T,
    ) -> T {
        let inner = &mut self.inner;
        catch_unwind(AssertUnwindSafe(|| callback(inner))).unwrap_or_else(|panic| {
            let life = id.and_then(|id| self.lives.get_mut(&id));
            if let Some(life) = life {
                life.panicked = true;
            }
            let mut net = self.net.borrow_mut();
            if !net.panics_allowed {
                let of = id.map_or_else(String::new, |id| format!(" of connection {id}"));
                net.fail_check(format!("{name}{of} panicked: {}", message_of(&*panic)));
            }
            drop(net);
            // The reactor does with it what it does in production.
            resume_unwind(panic)
        })
    }

    /// The callback takes its time, or panics, if that is due.
    fn have_accident(&mut self, id: ConnId) {
        let net = &mut *self.net.borrow_mut();
        if net.befalls(self.machine, "stall", |faults| faults.stall) {
            let most = nanos(STALL_MAX);
            let until = net.now + Duration::from_nanos(net.random.below(most));
            net.run_until(until);
            net.disturb(self.machine, until);
        }
        if net.chance(self.machine, |faults| faults.panic) {
            let now = net.now;
            let panics = &mut net.machines[self.machine].panics;
            // Accidents must not stop the reactor.
            let allowed = self.panic_limit.is_none_or(|limit| {
                panics.retain(|at| now - *at <= limit.per().saturating_add(CLOCK_ERROR));
                panics.push_back(now);
                panics.len() <= limit.count() as usize
            });
            if allowed {
                net.record(net.place_of(self.machine), TraceEvent::Fault("panic"));
                if let Some(life) = self.lives.get_mut(&id) {
                    life.accident = true;
                }
                // Without the panic hook: it was ordered.
                resume_unwind(Box::new("an accident in a callback"));
            }
        }
    }

    /// A connection that ends for a panic has had one that was seen here, or a closure posted to it
    /// did.
    fn check_panic(&self, id: ConnId, reason: CloseReason) {
        let known = self.lives.get(&id).is_none_or(|life| life.accident || life.panicked);
        let mut net = self.net.borrow_mut();
        if reason == CloseReason::HandlerPanic && !known && !net.panics_allowed {
            net.fail_check(format!("a closure posted to connection {id} panicked"));
        }
    }

    /// Records an end that a correct handler does not cause, whatever peers and the
    /// system do.
    fn blame(&mut self, closed: &Closed, life: &Life) {
        let net = self.net.borrow();
        let disturbed = net.machines[self.machine].disturbed_until;
        let to_blame = match closed.reason {
            CloseReason::HandlerPanic => !life.accident,
            CloseReason::InputLimit | CloseReason::OutputLimit => true,
            // No handler keeps a deadline that passes while its process or clock stands still.
            CloseReason::Timeout(Timeout::Response) => {
                let patience =
                    self.timeouts.response.unwrap_or_default().saturating_add(DISTURBANCE);
                disturbed.is_none_or(|until| net.now - until > patience)
            }
            _ => false,
        };
        drop(net);
        if to_blame {
            let (_, count) = self.blamed.get_or_insert_with(|| (closed.clone(), 0));
            *count += 1;
        }
    }

    /// What is said of its bytes is what went through its socket. What was discarded while it
    /// closed is not counted as read.
    fn check_bytes(&self, closed: &Closed) {
        let mut net = self.net.borrow_mut();
        let token = Token::of_conn(closed.id);
        if let Some((read, written)) = net.moved(self.machine, token)
            && (closed.bytes_in > read || closed.bytes_out != written)
        {
            let said = (closed.bytes_in, closed.bytes_out);
            net.fail_check(format!("{} moved {:?}, not {said:?}", closed.id, (read, written)));
        }
    }
}

impl<H: Handler> Handler for Watched<H> {
    type Session = H::Session;

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<H::Session> {
        let id = conn.id();
        self.enter(What::Open, id, conn.now(), None);
        // If it panics there is no session, and no callback follows.
        let life = self.lives.remove(&id);
        let session = self.run(What::Open, id, |handler| handler.on_open(conn));
        let account = self.account(id);
        account.note_output(&mut self.net.borrow_mut(), conn);
        if session.is_some()
            && let Some(life) = life
        {
            account.note_served(&mut self.net.borrow_mut());
            self.lives.insert(id, life);
        }
        session
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut H::Session, input: &mut BytesMut) {
        let id = conn.id();
        self.enter(What::Data, id, conn.now(), None);
        self.account(id).check_data(&mut self.net.borrow_mut(), conn.cx(), input);
        self.run(What::Data, id, |handler| handler.on_data(conn, session, input));
        self.account(id).note_unused(&mut self.net.borrow_mut(), input);
        self.account(id).note_skip(&mut self.net.borrow_mut(), conn);
        self.note_left(conn);
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        let id = conn.id();
        self.enter(What::Connected, id, conn.now(), None);
        self.run(What::Connected, id, |handler| handler.on_connected(conn, session));
        self.note_left(conn);
    }

    fn on_idle(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        let id = conn.id();
        self.enter(What::Idle, id, conn.now(), None);
        self.run(What::Idle, id, |handler| handler.on_idle(conn, session));
        self.note_left(conn);
    }

    fn on_active(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        let id = conn.id();
        self.enter(What::Active, id, conn.now(), None);
        self.run(What::Active, id, |handler| handler.on_active(conn, session));
        self.note_left(conn);
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, session: &mut H::Session, reason: &CloseReason) {
        let id = conn.id();
        self.enter(What::Closing, id, conn.now(), Some(*reason));
        self.check_panic(id, *reason);
        if let Some(life) = self.lives.get(&id) {
            let (opened_at, active_at) = (life.opened_at, life.active_at);
            self.check(ledger::check_timeout(conn.cx(), id, *reason, opened_at, active_at));
        }
        self.run(What::Closing, id, |handler| handler.on_closing(conn, session, reason));
        // Elsewhere what was queued is dropped, and may be already.
        if reason.mode() == CloseMode::Flush {
            self.note_left(conn);
        }
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, closed: Closed, session: H::Session) {
        let id = closed.id;
        self.enter(What::Closed, id, cx.now(), Some(closed.reason));
        if let Some(life) = self.lives.remove(&id) {
            self.blame(&closed, &life);
        }
        let (flush, linger) = ledger::has_lost_patience(cx, id);
        self.impatient.0 += u64::from(flush);
        self.impatient.1 += u64::from(linger);
        self.check_bytes(&closed);
        if self.closed.len() == CLOSED_MAX {
            self.closed.pop_front();
        }
        self.closed.push_back(closed.clone());
        self.net_under("on_closed", Some(id), |handler| handler.on_closed(cx, closed, session));
    }

    fn on_eof(&mut self, conn: &mut Conn<'_>, session: &mut H::Session, input: &mut BytesMut) {
        let id = conn.id();
        self.enter(What::Eof, id, conn.now(), None);
        self.account(id).check_eof(&mut self.net.borrow_mut());
        self.account(id).check_input(&mut self.net.borrow_mut(), conn.cx(), input);
        self.run(What::Eof, id, |handler| handler.on_eof(conn, session, input));
        self.account(id).note_unused(&mut self.net.borrow_mut(), &BytesMut::new());
        self.note_left(conn);
    }

    fn on_drained(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        let id = conn.id();
        self.enter(What::Drained, id, conn.now(), None);
        self.run(What::Drained, id, |handler| handler.on_drained(conn, session));
        self.note_left(conn);
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        let id = conn.id();
        self.enter(What::Timer, id, conn.now(), None);
        self.check(ledger::check_timer(conn.cx(), id));
        if let Some(life) = self.lives.get_mut(&id) {
            life.timers += 1;
        }
        self.run(What::Timer, id, |handler| handler.on_timer(conn, session));
        self.note_left(conn);
    }

    fn on_health_check(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        let id = conn.id();
        self.enter(What::HealthCheck, id, conn.now(), None);
        self.run(What::HealthCheck, id, |handler| handler.on_health_check(conn, session));
        self.note_left(conn);
    }

    fn on_test_request(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        let id = conn.id();
        self.enter(What::TestRequest, id, conn.now(), None);
        self.run(What::TestRequest, id, |handler| handler.on_test_request(conn, session));
        self.note_left(conn);
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut H::Session,
        wait: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let id = conn.id();
        self.enter(What::Acquired, id, conn.now(), None);
        self.check_wait(wait);
        self.begin_lease(lease);
        if let Ok(lease) = lease {
            let owner = conn.other(lease).and_then(|leased| leased.owner());
            self.check(if owner == Some(id) {
                Ok(())
            } else {
                Err(format!("{lease} is leased to {id}, and owned by {owner:?}"))
            });
        }
        self.run(What::Acquired, id, |handler| handler.on_acquired(conn, session, wait, lease));
        self.note_left(conn);
    }

    fn on_lease_replaced(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut H::Session,
        lost: ConnId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let id = conn.id();
        self.enter(What::LeaseReplaced, id, conn.now(), None);
        self.begin_lease(lease);
        let what = What::LeaseReplaced;
        self.run(what, id, |handler| handler.on_lease_replaced(conn, session, lost, lease));
        self.note_left(conn);
    }

    fn on_loop_acquired(
        &mut self,
        cx: &mut Context<'_>,
        wait: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.check_wait(wait);
        self.begin_lease(lease);
        self.net_under("on_loop_acquired", None, |handler| {
            handler.on_loop_acquired(cx, wait, lease);
        });
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        self.net.borrow_mut().machines[self.machine].progress += 1;
        self.net_under("on_alarm", None, |handler| handler.on_alarm(cx, alarm));
    }

    fn on_scrape(&mut self, cx: &mut Context<'_>, out: &mut MetricsWriter) {
        self.net_under("on_scrape", None, |handler| handler.on_scrape(cx, out));
    }

    fn on_listener_failed(
        &mut self,
        cx: &mut Context<'_>,
        listener: ListenerId,
        error: &io::Error,
    ) {
        self.net_under("on_listener_failed", None, |handler| {
            handler.on_listener_failed(cx, listener, error);
        });
    }

    fn on_start(&mut self, cx: &mut Context<'_>) {
        self.net_under("on_start", None, |handler| handler.on_start(cx));
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        self.net_under("on_shutdown", None, |handler| handler.on_shutdown(cx));
    }
}

/// What a panic said.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref().map(String::as_str)).unwrap_or("no text")
}
