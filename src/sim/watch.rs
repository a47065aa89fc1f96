//! A handler around the user's that sees what it is told, checks it, and has accidents.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::{Deref, DerefMut};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;

use super::fault::STALL_MAX;
use super::net::Net;
use crate::backend::Token;
use crate::config::Timeouts;
use crate::conn::Conn;
use crate::context::{AlarmId, Context};
use crate::core::table::{ConnId, ListenerId};
use crate::error::{CloseReason, Closed, Timeout};
use crate::handler::Handler;
use crate::time::{Instant, nanos};

/// Callbacks that panic are so far apart that they do not stop the reactor.
const PANIC_WINDOW: Duration = Duration::from_secs(11);
const PANICS_MAX: usize = 1;

/// Ended connections that are kept for whoever asks.
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
    Closing,
    Closed,
}

/// How far a connection has come.
#[derive(Debug, Default)]
struct Life {
    connected: bool,
    idle: bool,
    eof: bool,
    closing: bool,
    opened_at: Instant,
    active_at: Instant,
}

impl Life {
    /// Whether a callback may come now: the order that [`Handler`] promises.
    const fn allows(&self, what: What) -> bool {
        let serving = self.connected && !self.closing;
        match what {
            What::Open => false,
            What::Connected => !self.connected && !self.closing,
            What::Data => serving && !self.idle,
            What::Idle => serving && !self.idle,
            What::Active => serving && self.idle,
            What::Eof => serving && !self.eof,
            What::Drained => serving,
            What::Timer | What::Closing => !self.closing,
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
            What::Open | What::Data | What::Drained | What::Timer | What::Closed => {}
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
    lives: BTreeMap<ConnId, Life>,
    pub(super) closed: VecDeque<Closed>,
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
    pub(super) fn new(
        inner: H,
        net: &Rc<RefCell<Net>>,
        machine: usize,
        timeouts: Timeouts,
    ) -> Self {
        let net = Rc::clone(net);
        Self { inner, net, machine, timeouts, lives: BTreeMap::new(), closed: VecDeque::new() }
    }

    pub(super) const fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Sessions that were entered and not left.
    pub(super) fn sessions(&self) -> usize {
        self.lives.len()
    }

    fn enter(&mut self, id: ConnId, now: Instant, what: What) {
        let net = &mut *self.net.borrow_mut();
        net.note(0x30 + what as u64, id.to_bits());
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

    /// Has the accidents that are due: the callback takes its time, or panics.
    fn leave(&self) {
        let net = &mut *self.net.borrow_mut();
        if net.chance(self.machine, |faults| faults.stall) {
            let most = nanos(STALL_MAX);
            let until = net.now + Duration::from_nanos(net.random.below(most));
            net.run_until(until);
        }
        if net.chance(self.machine, |faults| faults.panic) {
            let now = net.now;
            let panics = &mut net.machines[self.machine].panics;
            panics.retain(|at| now - *at < PANIC_WINDOW);
            if panics.len() < PANICS_MAX {
                panics.push_back(now);
                // Without the hook: it is no news.
                resume_unwind(Box::new("an accident in a callback"));
            }
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

    /// A timeout that is sure to have begun with something seen here did not end anything early.
    fn check_age(&self, closed: &Closed, life: &Life, now: Instant) {
        let timeouts = &self.timeouts;
        let (since, timeout) = match closed.reason {
            CloseReason::Timeout(Timeout::FirstByte) => (life.opened_at, timeouts.first_byte),
            CloseReason::Timeout(Timeout::Request) => (life.opened_at, timeouts.request),
            CloseReason::Timeout(Timeout::Read) => (life.opened_at, timeouts.read),
            CloseReason::Timeout(Timeout::Write) => (life.opened_at, timeouts.write),
            CloseReason::Timeout(Timeout::Idle) => (life.active_at, timeouts.idle),
            _ => return,
        };
        if timeout.is_some_and(|timeout| now - since < timeout) {
            let mut net = self.net.borrow_mut();
            net.fail_check(format!("{} ended early: {}", closed.id, closed.reason));
        }
    }
}

impl<H: Handler> Handler for Watched<H> {
    type Session = H::Session;

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<H::Session> {
        let id = conn.id();
        self.enter(id, conn.now(), What::Open);
        // If it panics there is no session, and no callback follows.
        let life = self.lives.remove(&id);
        let session = self.inner.on_open(conn);
        self.leave();
        if session.is_some()
            && let Some(life) = life
        {
            self.lives.insert(id, life);
        }
        session
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut H::Session, input: &mut BytesMut) {
        self.enter(conn.id(), conn.now(), What::Data);
        if input.is_empty() {
            self.net.borrow_mut().fail_check("on_data without input");
        }
        self.inner.on_data(conn, session, input);
        self.leave();
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        self.enter(conn.id(), conn.now(), What::Connected);
        self.inner.on_connected(conn, session);
        self.leave();
    }

    fn on_idle(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        self.enter(conn.id(), conn.now(), What::Idle);
        self.inner.on_idle(conn, session);
        self.leave();
    }

    fn on_active(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        self.enter(conn.id(), conn.now(), What::Active);
        self.inner.on_active(conn, session);
        self.leave();
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, session: &mut H::Session, reason: &CloseReason) {
        self.enter(conn.id(), conn.now(), What::Closing);
        self.inner.on_closing(conn, session, reason);
        self.leave();
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, closed: Closed, session: H::Session) {
        self.enter(closed.id, cx.now(), What::Closed);
        if let Some(life) = self.lives.remove(&closed.id) {
            self.check_age(&closed, &life, cx.now());
        }
        self.check_bytes(&closed);
        if self.closed.len() == CLOSED_MAX {
            self.closed.pop_front();
        }
        self.closed.push_back(closed.clone());
        self.inner.on_closed(cx, closed, session);
    }

    fn on_eof(&mut self, conn: &mut Conn<'_>, session: &mut H::Session, input: &mut BytesMut) {
        self.enter(conn.id(), conn.now(), What::Eof);
        self.inner.on_eof(conn, session, input);
        self.leave();
    }

    fn on_drained(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        self.enter(conn.id(), conn.now(), What::Drained);
        self.inner.on_drained(conn, session);
        self.leave();
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        self.enter(conn.id(), conn.now(), What::Timer);
        self.inner.on_timer(conn, session);
        self.leave();
    }

    fn on_health_check(&mut self, conn: &mut Conn<'_>, session: &mut H::Session) {
        self.enter(conn.id(), conn.now(), What::Timer);
        self.inner.on_health_check(conn, session);
        self.leave();
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        self.inner.on_alarm(cx, alarm);
    }

    fn on_listener_failed(
        &mut self,
        cx: &mut Context<'_>,
        listener: ListenerId,
        error: &io::Error,
    ) {
        self.inner.on_listener_failed(cx, listener, error);
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        self.inner.on_shutdown(cx);
    }
}
