//! The handler of every behaviour: it echoes by default, records each callback, and
//! checks their order.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::pool::{AcquireError, WaitId};
use wheelhouse::{AlarmId, CloseReason, Closed, Conn, ConnId, Context, Handler, Instant};

/// The request of a visitor, and the reply that every handler gives to it.
pub(crate) const PING: &[u8] = b"\0ping";
pub(crate) const PONG: &[u8] = b"\0pong";

/// A callback.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum What {
    Open,
    Connected,
    Data(usize),
    Idle,
    Active,
    Eof,
    Drained,
    Timer,
    Closing(CloseReason),
    Closed(CloseReason),
}

/// A callback of a connection, and when it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) at: Instant,
    pub(crate) id: ConnId,
    pub(crate) what: What,
}

pub(crate) struct Session {
    /// How many connections were opened before it.
    pub(crate) number: usize,
    /// For the handler's use.
    pub(crate) step: u32,
    /// A client that only checks whether the server still serves.
    visitor: bool,
}

type OpenHook = Box<dyn FnMut(&mut Conn<'_>, usize) -> bool>;
type Hook = Box<dyn FnMut(&mut Conn<'_>, &mut Session)>;
type InputHook = Box<dyn FnMut(&mut Conn<'_>, &mut Session, &mut BytesMut)>;
type ClosingHook = Box<dyn FnMut(&mut Conn<'_>, &mut Session, &CloseReason)>;
type ClosedHook = Box<dyn FnMut(&mut Context<'_>, &Closed)>;
type AlarmHook = Box<dyn FnMut(&mut Context<'_>, AlarmId)>;
type AcquiredHook = Box<dyn FnMut(&mut Conn<'_>, Result<ConnId, AcquireError>)>;
type LoopHook = Box<dyn FnMut(&mut Context<'_>)>;

/// What the handler does in each callback, after recording it.
struct Hooks {
    open: OpenHook,
    connected: Hook,
    data: InputHook,
    idle: Hook,
    active: Hook,
    eof: InputHook,
    drained: Hook,
    timer: Hook,
    health_check: Hook,
    test_request: Hook,
    acquired: AcquiredHook,
    closing: ClosingHook,
    closed: ClosedHook,
    alarm: AlarmHook,
    shutdown: LoopHook,
}

/// Which callbacks a connection has had, to detect one that is out of order.
#[derive(Default)]
struct Life {
    opened: bool,
    connected: bool,
    idle: bool,
    eof: bool,
    closing: bool,
    closed: bool,
}

pub(crate) struct RecordingHandler {
    hooks: Hooks,
    /// Every callback of a connection.
    pub(crate) log: Vec<Entry>,
    /// The ids of all connections in the order of their opening.
    pub(crate) ids: Vec<ConnId>,
    /// Connections that ended and were not taken yet.
    pub(crate) closed: VecDeque<Closed>,
    /// Alarms that came, and when.
    pub(crate) alarms: Vec<(Instant, AlarmId)>,
    pub(crate) shutdowns: usize,
    pub(crate) visitors_gone: usize,
    /// Callbacks that should not have come.
    pub(crate) faults: Vec<String>,
    lives: BTreeMap<ConnId, Life>,
    skips: bool,
}

impl RecordingHandler {
    /// Sends back what it is sent.
    pub(crate) fn echo() -> Self {
        Self {
            hooks: Hooks {
                open: Box::new(|_, _| true),
                connected: Box::new(|_, _| {}),
                data: Box::new(|conn, _, input| {
                    conn.write(input);
                    input.clear();
                }),
                idle: Box::new(|_, _| {}),
                active: Box::new(|_, _| {}),
                eof: Box::new(|_, _, _| {}),
                drained: Box::new(|_, _| {}),
                timer: Box::new(|_, _| {}),
                health_check: Box::new(|_, _| {}),
                test_request: Box::new(|_, _| {}),
                acquired: Box::new(|_, _| {}),
                closing: Box::new(|_, _, _| {}),
                closed: Box::new(|_, _| {}),
                alarm: Box::new(|_, _| {}),
                shutdown: Box::new(|_| {}),
            },
            log: Vec::new(),
            ids: Vec::new(),
            closed: VecDeque::new(),
            alarms: Vec::new(),
            shutdowns: 0,
            visitors_gone: 0,
            faults: Vec::new(),
            lives: BTreeMap::new(),
            skips: false,
        }
    }

    /// Leaves all input unread.
    pub(crate) fn ignore() -> Self {
        Self::echo().when_data(|_, _, _| {})
    }

    /// It skips input, so `on_data` may come without any.
    pub(crate) fn that_skips(self) -> Self {
        Self { skips: true, ..self }
    }

    /// Takes a request with each read, and owes the reply.
    pub(crate) fn owing() -> Self {
        Self::echo().when_data(|conn, _, input| {
            input.clear();
            conn.begin_request();
        })
    }

    /// Takes a request with each read, and replies to it after `delay`.
    pub(crate) fn replying_after(delay: Duration, reply: &'static [u8]) -> Self {
        Self::echo()
            .when_data(move |conn, _, input| {
                input.clear();
                conn.begin_request();
                conn.set_timer(conn.now() + delay);
            })
            .when_timer(move |conn, _| {
                conn.write(reply);
                conn.end_request();
            })
    }

    /// Replies to each read at once, with `len` times `byte`.
    pub(crate) fn replying(byte: u8, len: usize) -> Self {
        Self::echo().when_data(move |conn, _, input| {
            input.clear();
            conn.write_bytes(vec![byte; len]);
        })
    }

    /// The hook returns whether the connection of this number is accepted.
    pub(crate) fn when_open(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, usize) -> bool + 'static,
    ) -> Self {
        self.hooks.open = Box::new(hook);
        self
    }

    pub(crate) fn when_connected(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, &mut Session) + 'static,
    ) -> Self {
        self.hooks.connected = Box::new(hook);
        self
    }

    pub(crate) fn when_data(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, &mut Session, &mut BytesMut) + 'static,
    ) -> Self {
        self.hooks.data = Box::new(hook);
        self
    }

    pub(crate) fn when_idle(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, &mut Session) + 'static,
    ) -> Self {
        self.hooks.idle = Box::new(hook);
        self
    }

    pub(crate) fn when_active(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, &mut Session) + 'static,
    ) -> Self {
        self.hooks.active = Box::new(hook);
        self
    }

    pub(crate) fn when_eof(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, &mut Session, &mut BytesMut) + 'static,
    ) -> Self {
        self.hooks.eof = Box::new(hook);
        self
    }

    pub(crate) fn when_drained(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, &mut Session) + 'static,
    ) -> Self {
        self.hooks.drained = Box::new(hook);
        self
    }

    pub(crate) fn when_health_check(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, &mut Session) + 'static,
    ) -> Self {
        self.hooks.health_check = Box::new(hook);
        self
    }

    pub(crate) fn when_test_request(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, &mut Session) + 'static,
    ) -> Self {
        self.hooks.test_request = Box::new(hook);
        self
    }

    pub(crate) fn when_acquired(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, Result<ConnId, AcquireError>) + 'static,
    ) -> Self {
        self.hooks.acquired = Box::new(hook);
        self
    }

    pub(crate) fn when_timer(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, &mut Session) + 'static,
    ) -> Self {
        self.hooks.timer = Box::new(hook);
        self
    }

    pub(crate) fn when_closing(
        mut self,
        hook: impl FnMut(&mut Conn<'_>, &mut Session, &CloseReason) + 'static,
    ) -> Self {
        self.hooks.closing = Box::new(hook);
        self
    }

    pub(crate) fn when_closed(
        mut self,
        hook: impl FnMut(&mut Context<'_>, &Closed) + 'static,
    ) -> Self {
        self.hooks.closed = Box::new(hook);
        self
    }

    pub(crate) fn when_alarm(
        mut self,
        hook: impl FnMut(&mut Context<'_>, AlarmId) + 'static,
    ) -> Self {
        self.hooks.alarm = Box::new(hook);
        self
    }

    pub(crate) fn when_shutdown(mut self, hook: impl FnMut(&mut Context<'_>) + 'static) -> Self {
        self.hooks.shutdown = Box::new(hook);
        self
    }

    /// What happened to the connection of this number, in order.
    pub(crate) fn story(&self, number: usize) -> Vec<What> {
        let id = self.ids[number];
        self.log.iter().filter(|entry| entry.id == id).map(|entry| entry.what).collect()
    }

    /// When the connection of this number had the callback last.
    pub(crate) fn when(&self, number: usize, what: What) -> Option<Instant> {
        let id = *self.ids.get(number)?;
        let mut entries = self.log.iter().rev();
        entries.find(|entry| entry.id == id && entry.what == what).map(|entry| entry.at)
    }

    pub(crate) fn count(&self, number: usize, what: What) -> usize {
        let Some(id) = self.ids.get(number) else {
            return 0;
        };
        self.log.iter().filter(|entry| entry.id == *id && entry.what == what).count()
    }

    fn note(&mut self, at: Instant, id: ConnId, what: What) {
        self.log.push(Entry { at, id, what });
        let life = self.lives.entry(id).or_default();
        let vain = what == What::Data(0) && !self.skips;
        let wrong = life.closed || vain || life.is_wrong(what);
        if wrong {
            self.faults.push(format!("{id} had {what:?} out of order"));
        }
        life.step(what);
    }

    fn note_conn(&mut self, conn: &Conn<'_>, what: What) {
        self.note(conn.now(), conn.id(), what);
    }
}

impl Life {
    fn is_wrong(&self, what: What) -> bool {
        if what == What::Open {
            return self.opened;
        }
        let serving = self.connected && !self.closing;
        !self.opened
            || match what {
                What::Open => unreachable!("handled above"),
                What::Connected => self.connected || self.closing,
                What::Data(_) => !serving || self.idle || self.eof,
                What::Idle => !serving || self.idle,
                What::Active => !serving || !self.idle,
                What::Eof => !serving || self.eof,
                What::Drained => !serving,
                What::Timer | What::Closing(_) => self.closing,
                What::Closed(_) => !self.closing,
            }
    }

    fn step(&mut self, what: What) {
        match what {
            What::Open => self.opened = true,
            What::Connected => self.connected = true,
            What::Idle => self.idle = true,
            What::Active => self.idle = false,
            What::Eof => self.eof = true,
            What::Closing(_) => self.closing = true,
            What::Closed(_) => self.closed = true,
            What::Data(_) | What::Drained | What::Timer => {}
        }
    }
}

impl Handler for RecordingHandler {
    type Session = Session;

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Session> {
        self.note_conn(conn, What::Open);
        let number = self.ids.len();
        self.ids.push(conn.id());
        let welcome = (self.hooks.open)(conn, number);
        welcome.then_some(Session { number, step: 0, visitor: false })
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, session: &mut Session) {
        self.note_conn(conn, What::Connected);
        (self.hooks.connected)(conn, session);
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut Session, input: &mut BytesMut) {
        self.note_conn(conn, What::Data(input.len()));
        if input == PING {
            session.visitor = true;
            input.clear();
            conn.write(PONG);
        } else {
            (self.hooks.data)(conn, session, input);
        }
    }

    fn on_idle(&mut self, conn: &mut Conn<'_>, session: &mut Session) {
        self.note_conn(conn, What::Idle);
        if !session.visitor {
            (self.hooks.idle)(conn, session);
        }
    }

    fn on_active(&mut self, conn: &mut Conn<'_>, session: &mut Session) {
        self.note_conn(conn, What::Active);
        if !session.visitor {
            (self.hooks.active)(conn, session);
        }
    }

    fn on_eof(&mut self, conn: &mut Conn<'_>, session: &mut Session, input: &mut BytesMut) {
        self.note_conn(conn, What::Eof);
        if !session.visitor {
            (self.hooks.eof)(conn, session, input);
        }
    }

    fn on_drained(&mut self, conn: &mut Conn<'_>, session: &mut Session) {
        self.note_conn(conn, What::Drained);
        (self.hooks.drained)(conn, session);
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, session: &mut Session) {
        self.note_conn(conn, What::Timer);
        (self.hooks.timer)(conn, session);
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, session: &mut Session, reason: &CloseReason) {
        self.note_conn(conn, What::Closing(*reason));
        if !session.visitor {
            (self.hooks.closing)(conn, session, reason);
        }
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, closed: Closed, session: Session) {
        self.note(cx.now(), closed.id, What::Closed(closed.reason));
        if session.visitor {
            self.visitors_gone += 1;
        } else {
            self.closed.push_back(closed.clone());
            (self.hooks.closed)(cx, &closed);
        }
    }

    fn on_health_check(&mut self, conn: &mut Conn<'_>, session: &mut Session) {
        (self.hooks.health_check)(conn, session);
    }

    fn on_test_request(&mut self, conn: &mut Conn<'_>, session: &mut Session) {
        (self.hooks.test_request)(conn, session);
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        _: &mut Session,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        (self.hooks.acquired)(conn, lease);
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        self.alarms.push((cx.now(), alarm));
        (self.hooks.alarm)(cx, alarm);
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        self.shutdowns += 1;
        (self.hooks.shutdown)(cx);
    }
}
