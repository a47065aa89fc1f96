//! The client: one ping each interval, over one connection that is dialled again when it ends.
//!
//! A round trip is measured from the turn that sent the ping to the turn that got the reply, so
//! what either turn spent on others is part of it. A ping that finds no connection is lost.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::frame::{self, Framing, Lines};
use wheelhouse::{
    AlarmId, CloseReason, Config, Conn, ConnId, Context, Error, Handler, Instant, Reactor, State,
    Target,
};

use crate::common;
use crate::server::LINE_MAX;
use crate::tally::Tally;

/// How long a server may owe a reply before its connection is given up, as long as ping(8) waits
/// for a last reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// The wait before the server is dialled again; it doubles until a reply comes.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Sends pings until there were enough, or a signal comes. Returns the exit code.
pub(crate) fn run(mut client: Client) -> Result<u8, Error> {
    let mut reactor = Reactor::new(config())?;
    reactor.handle().shutdown_on_signals()?;
    client.start(&mut reactor.context());
    reactor.run(&mut client)?;
    let Client { target, tally, .. } = client;
    common::stdout().line(format_args!("\n--- {target} ping statistics ---\n{tally}"));
    Ok(if tally.received() > 0 { 0 } else { 1 })
}

fn config() -> Config {
    let mut config = Config::default();
    config.timeouts.read = Some(REPLY_TIMEOUT);
    // The user chooses the interval, so no deadline may be shorter.
    config.timeouts.idle = None;
    // After a signal, do not wait for a server that does not answer.
    config.shutdown_timeout = Some(Duration::from_secs(1));
    config
}

/// Sends pings and takes the time of their replies.
#[derive(Debug)]
pub(crate) struct Client {
    target: Target,
    count: Option<usize>,
    interval: Duration,
    tally: Tally,
    /// The connection, which may still be dialled.
    conn: Option<ConnId>,
    /// Why there is none.
    cause: Option<CloseReason>,
    backoff: Duration,
    redial: Option<AlarmId>,
    next_ping: Option<AlarmId>,
    next_ping_at: Instant,
    /// Pings on their way, by number and time: replies come in the same order.
    in_flight: VecDeque<(u64, Instant)>,
}

impl Client {
    pub(crate) fn new(target: Target, count: Option<usize>, interval: Duration) -> Self {
        Self {
            target,
            count,
            interval,
            tally: Tally::default(),
            conn: None,
            cause: None,
            backoff: BACKOFF_MIN,
            redial: None,
            next_ping: None,
            next_ping_at: Instant::EPOCH,
            in_flight: VecDeque::new(),
        }
    }

    /// Dials. The first ping goes out when that succeeds, an interval from now in any case.
    fn start(&mut self, cx: &mut Context<'_>) {
        self.dial(cx);
        self.schedule_ping(cx, cx.now() + self.interval);
    }

    fn dial(&mut self, cx: &mut Context<'_>) {
        // One connection has a place always, so this fails in a shutdown only.
        self.conn = cx.connect(self.target.clone()).ok();
    }

    fn schedule_ping(&mut self, cx: &mut Context<'_>, at: Instant) {
        self.next_ping_at = at;
        self.next_ping = Some(cx.set_alarm(at));
    }

    fn ping(&mut self, cx: &mut Context<'_>) {
        let now = cx.now();
        let seq = self.tally.count_sent(now);
        match self.conn.and_then(|id| cx.conn(id)).filter(is_open) {
            Some(mut conn) => {
                conn.begin_request();
                writeln!(conn, "PING {seq}");
                self.in_flight.push_back((seq, now));
            }
            None => self.say_lost(cx, seq),
        }
        if self.has_sent_all() {
            return self.end_if_done(cx);
        }
        let next = self.next_ping_at + self.interval;
        // Pings that a suspended process missed are not sent later.
        self.schedule_ping(cx, if next > now { next } else { now + self.interval });
    }

    fn has_sent_all(&self) -> bool {
        self.count.is_some_and(|count| self.tally.sent() >= count as u64)
    }

    fn end_if_done(&self, cx: &mut Context<'_>) {
        if self.has_sent_all() && self.in_flight.is_empty() {
            cx.shutdown();
        }
    }

    /// Takes a reply, unless it is none to the oldest ping on its way.
    fn take_reply(&mut self, conn: &mut Conn<'_>, line: &[u8]) -> Option<()> {
        let number = line.strip_prefix(b"PONG ")?;
        let (seq, sent_at) = *self.in_flight.front()?;
        if number != seq.to_string().as_bytes() {
            return None;
        }
        self.in_flight.pop_front();
        conn.end_request();
        self.backoff = BACKOFF_MIN;
        let took = conn.now() - sent_at;
        self.tally.count_received(took);
        let (peer, millis) = (conn.peer_addr().clone(), took.as_secs_f64() * 1e3);
        say(conn.cx(), format_args!("PONG from {peer}: seq={seq} time={millis:.3} ms"));
        Some(())
    }

    fn say_lost(&self, cx: &mut Context<'_>, seq: u64) {
        let target = &self.target;
        match self.cause {
            Some(cause) => say(cx, format_args!("no PONG from {target}: seq={seq} ({cause})")),
            None => say(cx, format_args!("no PONG from {target}: seq={seq} (not yet connected)")),
        }
    }
}

impl Handler for Client {
    type Session = Lines;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Lines> {
        Some(frame::lines(LINE_MAX))
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, _: &mut Lines) {
        self.cause = None;
        if self.tally.sent() == 0
            && let Some(alarm) = self.next_ping
        {
            conn.cx().cancel_alarm(alarm);
            self.next_ping_at = conn.now();
            self.ping(conn.cx());
        }
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, lines: &mut Lines, input: &mut BytesMut) {
        loop {
            let taken = match lines.find(input) {
                Ok(Some(frame)) => {
                    self.take_reply(conn, &input[frame.payload.clone()]).map(|()| frame)
                }
                Ok(None) => return self.end_if_done(conn.cx()),
                Err(_) => None,
            };
            let Some(taken) = taken else {
                say(conn.cx(), format_args!("no reply: {}", input.escape_ascii()));
                return conn.abort();
            };
            taken.take_off(input);
        }
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, _: &mut Lines, reason: &CloseReason) {
        self.conn = None;
        self.cause = Some(*reason);
        let cx = conn.cx();
        if cx.is_shutting_down() {
            return;
        }
        for (seq, _) in std::mem::take(&mut self.in_flight) {
            self.say_lost(cx, seq);
        }
        self.end_if_done(cx);
        self.redial = Some(cx.set_alarm(cx.now() + self.backoff));
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        if self.redial == Some(alarm) {
            self.dial(cx);
        } else {
            self.ping(cx);
        }
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        self.tally.end(cx.now());
    }
}

fn is_open(conn: &Conn<'_>) -> bool {
    !conn.is_closing() && conn.state() != State::Connecting
}

/// Prints a line. Once a line cannot be written, there is no point in further pings.
fn say(cx: &mut Context<'_>, line: fmt::Arguments<'_>) {
    if !common::stdout().line(line) {
        cx.shutdown();
    }
}
