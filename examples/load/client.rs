//! The client: connections that send requests, in a closed loop or in an open one.
//!
//! Each connection has a lane, which outlives it: if the connection ends, the lane dials again. What
//! was on its way is lost then, and counted as such.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::config::Watermarks;
use wheelhouse::{
    AlarmId, CloseReason, Closed, Config, Conn, ConnId, Context, Handler, Instant, Target,
};

use crate::clock::Clock;
use crate::protocol::{Progress, Protocol, Reply};
use crate::tally::Tally;

/// The wait before a lane dials again whose connection failed.
const REDIAL_AFTER: Duration = Duration::from_millis(100);

/// How long replies are waited for when nothing more is sent.
const LAST_REPLIES: Duration = Duration::from_secs(2);

/// How much may be due and not sent. A server that does not keep up with the rate for long would take
/// any memory; what comes beyond this counts as an error.
const WAITING_MAX: usize = 1 << 20;

/// The longest time that passes between two looks at what is due to be sent.
const TICK: Duration = Duration::from_millis(1);

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    /// Where it is dialled from, if the system is not to choose.
    pub(crate) local: Option<IpAddr>,
    /// Without one nothing is sent.
    pub(crate) protocol: Option<Protocol>,
    pub(crate) connections: usize,
    /// Requests on their way on each connection, at most.
    pub(crate) pipeline: usize,
    /// Each connection has one request.
    pub(crate) churn: bool,
    /// Requests a second, in churn connections; as fast as replies come without one.
    pub(crate) rate: Option<usize>,
    pub(crate) warm_up: Duration,
    pub(crate) amount: Amount,
    pub(crate) timeout: Duration,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Amount {
    Time(Duration),
    Replies(usize),
}

impl Plan {
    /// The settings of the reactor.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::default();
        config.socket.local = self.local;
        config.timeouts.connect = Some(self.timeout);
        config.timeouts.connect_attempt = Some(self.timeout);
        config.timeouts.read = Some(self.timeout);
        // Idle connections are held, and an open loop may leave any idle.
        config.timeouts.idle = None;
        // The place of one that ends is free a moment after its lane dials again.
        config.limits.max_connections = Some(2 * self.connections + 64);
        if let Some(protocol) = &self.protocol {
            let most = protocol.longest_request().saturating_mul(self.pipeline);
            let limits = &mut config.limits;
            limits.output_max = limits.output_max.max(most.saturating_mul(2));
            // One that is congested is not read, and a server that echoes waits to be read.
            let high = config.watermarks.high().max(most.saturating_mul(2));
            if let Ok(watermarks) = Watermarks::new(high / 2, high) {
                config.watermarks = watermarks;
            }
            let all = limits.output_max.saturating_mul(self.connections);
            limits.buffered_max = limits.buffered_max.max(all);
        }
        config.shutdown_timeout = Some(Duration::from_secs(1));
        config.shutdown_spread = None;
        config
    }
}

/// What is on its way.
#[derive(Clone, Copy, Debug)]
struct Request {
    number: usize,
    /// When it was sent, or in an open loop was to be sent, in nanoseconds.
    due_at: u64,
}

#[derive(Debug, Default)]
struct Lane {
    conn: Option<ConnId>,
    connected: bool,
    in_flight: VecDeque<Request>,
    /// Due while as much was on its way as may be, by when they were.
    waiting: VecDeque<u64>,
    progress: Progress,
    /// Bytes that have come of the reply that is not whole.
    received: usize,
    /// When its connection was dialled, or was to be.
    dialled_at: u64,
}

impl Lane {
    /// Whether nothing is on its way, or due. A connection that is there for one exchange is on its
    /// way itself.
    fn is_quiet(&self, churn: bool) -> bool {
        self.in_flight.is_empty() && self.waiting.is_empty() && !(churn && self.conn.is_some())
    }
}

/// What comes after what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Connections are dialled until all stand, and then the load warms up.
    Starting,
    Measuring,
    /// Nothing more is sent.
    Ending,
}

/// Generates load, and measures it.
#[derive(Debug)]
pub(crate) struct Load {
    plan: Plan,
    clock: Clock,
    pub(crate) tally: Tally,
    phase: Phase,
    lanes: Vec<Lane>,
    of_conn: HashMap<ConnId, usize>,
    /// How many lanes have a connection that stands.
    connected: usize,
    /// How many had one when the measurement ended.
    held: usize,
    /// The number of the next request.
    next: usize,
    schedule: Option<Schedule>,
    /// Connections of an open loop that are due while all lanes are taken.
    waiting_dials: VecDeque<u64>,
    /// The lanes of such a loop that have no connection.
    free: Vec<usize>,
    /// The lanes that dial again when an alarm comes.
    redials: HashMap<AlarmId, usize>,
    measured_from: u64,
    measured_to: Option<u64>,
    /// A signal ended the measurement.
    interrupted: bool,
    alarms: Alarms,
}

/// When the requests of an open loop are due. The lanes have them in turns.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    /// When the first one was due, in nanoseconds.
    first: u64,
    /// Requests a second.
    rate: usize,
    /// How many were due so far. A great rate has more than 64 bits count.
    count: u128,
}

impl Schedule {
    /// When the one with this number is due.
    const fn due_at(&self, number: u128) -> u64 {
        self.first.saturating_add((number * 1_000_000_000 / self.rate as u128) as u64)
    }

    /// Takes all that are due at `now`. Returns their numbers.
    fn take_due(&mut self, now: u64) -> Range<u128> {
        let from = self.count;
        if let Some(passed) = now.checked_sub(self.first) {
            // Their times are rounded down, so all that are due before the next nanosecond are.
            let ended = (u128::from(passed) + 1) * self.rate as u128;
            self.count = self.count.max(ended.div_ceil(1_000_000_000));
        }
        from..self.count
    }

    /// Appends the times of each `step`th of these requests to those that wait, as far as there is
    /// room for so many. Returns how many found none.
    fn queue(
        &self,
        numbers: Range<u128>,
        step: usize,
        waiting: &mut VecDeque<u64>,
        most: usize,
    ) -> u64 {
        let all = (numbers.end - numbers.start).div_ceil(step as u128);
        let room = most.saturating_sub(waiting.len());
        waiting.extend(numbers.step_by(step).take(room).map(|number| self.due_at(number)));
        u64::try_from(all.saturating_sub(room as u128)).unwrap_or(u64::MAX)
    }
}

#[derive(Debug, Default)]
struct Alarms {
    phase: Option<AlarmId>,
    second: Option<AlarmId>,
    tick: Option<AlarmId>,
}

impl Load {
    pub(crate) fn new(plan: Plan) -> Self {
        let lanes = (0..plan.connections).map(|_| Lane::default()).collect();
        Self {
            clock: Clock::Loop,
            tally: Tally::new(),
            phase: Phase::Starting,
            lanes,
            of_conn: HashMap::new(),
            connected: 0,
            held: 0,
            next: 0,
            schedule: None,
            waiting_dials: VecDeque::new(),
            free: (0..plan.connections).collect(),
            redials: HashMap::new(),
            measured_from: 0,
            measured_to: None,
            interrupted: false,
            alarms: Alarms::default(),
            plan,
        }
    }

    /// Times replies by this clock instead of that of the loop.
    pub(crate) const fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// How long was measured, so far.
    pub(crate) fn measured(&self, now: Instant) -> Duration {
        match self.phase {
            Phase::Starting => Duration::ZERO,
            _ => {
                let to = self.measured_to.unwrap_or_else(|| self.clock.nanos(now));
                Duration::from_nanos(to.saturating_sub(self.measured_from))
            }
        }
    }

    /// How many connections stood when the measurement ended.
    pub(crate) const fn held(&self) -> usize {
        self.held
    }

    pub(crate) fn is_measuring(&self) -> bool {
        self.phase == Phase::Measuring
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.phase == Phase::Ending
    }

    /// How long the loop may wait for events until something is due to be sent. An open loop is kept
    /// awake shortly before, as a wait may end late.
    pub(crate) fn longest_wait(&self, now: Instant) -> Option<Duration> {
        let due_at = self.next_due()?;
        let left = Duration::from_nanos(due_at.saturating_sub(self.clock.nanos(now)));
        Some(left.saturating_sub(TICK))
    }

    /// When the next request of an open loop is due.
    fn next_due(&self) -> Option<u64> {
        let schedule = self.schedule.filter(|_| self.phase != Phase::Ending)?;
        Some(schedule.due_at(schedule.count))
    }

    /// Sends what is due in an open loop. What that costs depends on how much may wait, and not on how
    /// much was due since the last time.
    pub(crate) fn send_due(&mut self, cx: &mut Context<'_>) {
        let now = self.clock.nanos(cx.now());
        let Some(schedule) = self.schedule.as_mut().filter(|_| self.phase != Phase::Ending) else {
            return;
        };
        let due = schedule.take_due(now);
        let (schedule, lanes, mut refused) = (*schedule, self.lanes.len(), 0_u64);
        if self.plan.churn {
            refused = schedule.queue(due, 1, &mut self.waiting_dials, WAITING_MAX);
            self.dial_due(cx);
        } else {
            let share = (WAITING_MAX / lanes).max(1);
            for number in due.clone().take(lanes) {
                let lane = (number % lanes as u128) as usize;
                let waiting = &mut self.lanes[lane].waiting;
                let more = schedule.queue(number..due.end, lanes, waiting, share);
                refused = refused.saturating_add(more);
                if let Some(mut conn) = self.lanes[lane].conn.and_then(|id| cx.conn(id)) {
                    self.send(&mut conn, lane);
                }
            }
        }
        self.tally.count_error("too many waited to be sent", refused);
    }

    /// Sends what a lane may have on its way now.
    fn send(&mut self, conn: &mut Conn<'_>, lane: usize) {
        let Some(protocol) = &self.plan.protocol else { return };
        let lane = &mut self.lanes[lane];
        if !lane.connected {
            return;
        }
        let ending = self.phase == Phase::Ending;
        let now = self.clock.nanos(conn.now());
        while lane.in_flight.len() < self.plan.pipeline {
            // What was due before the end is sent behind it.
            let due_at = match self.plan.rate {
                Some(_) => lane.waiting.pop_front(),
                None => (!ending).then_some(now),
            };
            let Some(due_at) = due_at else { break };
            conn.begin_request();
            conn.write(protocol.request(self.next));
            lane.in_flight.push_back(Request { number: self.next, due_at });
            self.next = self.next.wrapping_add(1);
        }
    }

    /// Sends the only request of a connection.
    fn send_once(&mut self, conn: &mut Conn<'_>, lane: usize) {
        let Some(protocol) = &self.plan.protocol else { return };
        let lane = &mut self.lanes[lane];
        conn.begin_request();
        conn.write(protocol.request(0));
        lane.in_flight.push_back(Request { number: 0, due_at: lane.dialled_at });
    }

    /// Dials for a lane, and returns whether there is a place for the connection.
    fn dial(&mut self, cx: &mut Context<'_>, lane: usize, due_at: u64) -> bool {
        let Ok(id) = cx.connect(self.plan.target.clone()) else { return false };
        self.of_conn.insert(id, lane);
        self.lanes[lane] = Lane {
            conn: Some(id),
            dialled_at: due_at,
            waiting: mem::take(&mut self.lanes[lane].waiting),
            ..Lane::default()
        };
        true
    }

    /// Dials for a lane now, or after a while if there is no place.
    fn dial_now(&mut self, cx: &mut Context<'_>, lane: usize) {
        let now = self.clock.nanos(cx.now());
        if !self.dial(cx, lane, now) {
            self.dial_later(cx, lane);
        }
    }

    fn dial_later(&mut self, cx: &mut Context<'_>, lane: usize) {
        let alarm = cx.set_alarm(cx.now() + REDIAL_AFTER);
        self.redials.insert(alarm, lane);
    }

    /// Dials what is due in an open loop of connections, in lanes that are free.
    fn dial_due(&mut self, cx: &mut Context<'_>) {
        while let (Some(due_at), Some(lane)) =
            (self.waiting_dials.front().copied(), self.free.last().copied())
        {
            if !self.dial(cx, lane, due_at) {
                // It is tried again with the next that is due.
                break;
            }
            self.waiting_dials.pop_front();
            self.free.pop();
        }
    }

    /// All connections stand for the first time, or one failed: the load begins. Without a warm-up
    /// the first request begins it.
    fn begin(&mut self, cx: &mut Context<'_>) {
        if self.phase != Phase::Starting || self.alarms.phase.is_some() {
            return;
        }
        let now = cx.now();
        if self.plan.warm_up.is_zero() {
            // An alarm would come a tick later, behind what is sent by then.
            self.measure(cx);
        } else {
            self.alarms.phase = Some(cx.set_alarm(now + self.plan.warm_up));
        }
        if let Some(rate) = self.plan.rate {
            self.schedule = Some(Schedule { first: self.clock.nanos(now), rate, count: 0 });
            self.alarms.tick = Some(cx.set_alarm(now + TICK));
        }
    }

    /// The measurement begins.
    fn measure(&mut self, cx: &mut Context<'_>) {
        self.phase = Phase::Measuring;
        self.measured_from = self.clock.nanos(cx.now());
        self.alarms.second = Some(cx.set_alarm(cx.now() + Duration::from_secs(1)));
        if let Amount::Time(time) = self.plan.amount {
            self.alarms.phase = Some(cx.set_alarm(cx.now() + time));
        }
    }

    /// Nothing more is sent; what is on its way may still come.
    fn stop_sending(&mut self, cx: &mut Context<'_>) {
        if self.phase == Phase::Measuring {
            self.close_measurement(cx.now());
            self.alarms.phase = Some(cx.set_alarm(cx.now() + LAST_REPLIES));
            self.end_if_quiet(cx);
        }
    }

    fn close_measurement(&mut self, now: Instant) {
        if self.phase == Phase::Starting {
            // It ends before it began.
            self.measured_from = self.clock.nanos(now);
        }
        self.measured_to = Some(self.clock.nanos(now));
        self.tally.end_second(self.measured(now).as_secs_f64());
        self.held = self.connected;
        self.phase = Phase::Ending;
    }

    fn end_if_quiet(&self, cx: &mut Context<'_>) {
        if self.phase == Phase::Ending
            && self.waiting_dials.is_empty()
            && self.lanes.iter().all(|lane| lane.is_quiet(self.plan.churn))
        {
            end(cx);
        }
    }

    /// What waits is not sent any more. What is on its way is not lost yet: its connections have the
    /// time of a shutdown, and what has no reply is counted when they end.
    fn drop_waiting(&mut self) {
        let waiting = self.lanes.iter_mut().map(|lane| mem::take(&mut lane.waiting).len());
        let unsent = waiting.sum::<usize>() + mem::take(&mut self.waiting_dials).len();
        self.tally.count_error("not sent by the end", unsent as u64);
    }

    /// Takes the replies that have come.
    fn take_replies(&mut self, conn: &mut Conn<'_>, lane: usize, input: &mut BytesMut) {
        let Some(protocol) = &mut self.plan.protocol else {
            self.tally.count_error("unexpected bytes", 1);
            return conn.abort();
        };
        let now = self.clock.nanos(conn.now());
        let Lane { in_flight, waiting, progress, received, .. } = &mut self.lanes[lane];
        while !input.is_empty() {
            let Some(request) = in_flight.front() else {
                self.tally.count_error("unexpected bytes", 1);
                return conn.abort();
            };
            let before = input.len();
            let taken = protocol.take_reply(request.number, progress, input);
            *received += before - input.len();
            match taken {
                Ok(reply @ (Reply::Whole | Reply::Last)) => {
                    if self.phase != Phase::Starting && request.due_at >= self.measured_from {
                        let latency = now.saturating_sub(request.due_at);
                        let in_time = self.phase == Phase::Measuring;
                        self.tally.count_reply(latency, *received, in_time);
                    }
                    *received = 0;
                    in_flight.pop_front();
                    conn.end_request();
                    if reply == Reply::Last {
                        let again = in_flight.drain(..).rev().map(|request| request.due_at);
                        if self.plan.rate.is_some() {
                            again.for_each(|due_at| waiting.push_front(due_at));
                        }
                        conn.close();
                        break;
                    }
                }
                Ok(Reply::Partial) => break,
                Err(mismatch) => {
                    in_flight.pop_front();
                    self.tally.count_error(mismatch.0, 1);
                    return conn.abort();
                }
            }
        }
        if let Amount::Replies(count) = self.plan.amount
            && self.tally.replies() >= count as u64
        {
            self.stop_sending(conn.cx());
        }
        self.end_if_quiet(conn.cx());
    }
}

/// Nothing more is waited for but what is on its way. A second call would reset that.
fn end(cx: &mut Context<'_>) {
    if !cx.is_shutting_down() {
        cx.shutdown();
    }
}

impl Handler for Load {
    /// The connection's lane.
    type Session = usize;

    fn on_start(&mut self, cx: &mut Context<'_>) {
        if self.plan.churn && self.plan.rate.is_some() {
            return self.begin(cx);
        }
        if self.plan.churn && self.plan.warm_up.is_zero() {
            // A dial is part of its exchange.
            self.begin(cx);
        }
        for lane in 0..self.lanes.len() {
            self.dial_now(cx, lane);
        }
    }

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<usize> {
        self.of_conn.remove(&conn.id())
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, lane: &mut usize) {
        self.connected += 1;
        self.lanes[*lane].connected = true;
        if self.plan.churn {
            self.begin(conn.cx());
            return self.send_once(conn, *lane);
        }
        // A closed loop sends on each connection as soon as that stands.
        let sends = self.plan.protocol.is_some() && self.plan.rate.is_none();
        if self.connected == self.lanes.len() || sends && self.plan.warm_up.is_zero() {
            self.begin(conn.cx());
        }
        self.send(conn, *lane);
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, lane: &mut usize, input: &mut BytesMut) {
        self.take_replies(conn, *lane, input);
        if conn.is_closing() {
            return;
        }
        if !self.plan.churn {
            self.send(conn, *lane);
        } else if self.lanes[*lane].in_flight.is_empty() {
            conn.close();
        }
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, lane: &mut usize, reason: &CloseReason) {
        let at = &mut self.lanes[*lane];
        let was_connected = mem::take(&mut at.connected);
        self.connected -= usize::from(was_connected);
        let lost = at.in_flight.len();
        at.in_flight.clear();
        // Ends that are ours: of all, and of an exchange.
        if conn.cx().is_shutting_down() {
            // The request of a connection that is being dialled is on its way too, unless it is a
            // signal that ends the dial.
            let dialled = self.plan.churn && !was_connected && !self.interrupted;
            self.tally.count_error("no reply by the end", (lost + usize::from(dialled)) as u64);
            // What was to be asked again.
            let unsent = mem::take(&mut at.waiting).len();
            return self.tally.count_error("not sent by the end", unsent as u64);
        }
        if *reason == CloseReason::HandlerClose {
            return;
        }
        if *reason != CloseReason::HandlerAbort {
            self.tally.count_error(reason.label(), 1);
        }
        self.tally.count_error("lost with its connection", lost as u64);
        // A load begins although one of its connections cannot be had.
        self.begin(conn.cx());
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, closed: Closed, lane: usize) {
        self.lanes[lane].conn = None;
        if cx.is_shutting_down() {
            return;
        }
        let ends = self.phase == Phase::Ending && self.lanes[lane].waiting.is_empty();
        if self.plan.churn && self.plan.rate.is_some() {
            self.free.push(lane);
            self.dial_due(cx);
        } else if ends {
            // Only what is on its way is waited for.
        } else if closed.reason == CloseReason::HandlerClose {
            self.dial_now(cx, lane);
        } else {
            self.dial_later(cx, lane);
        }
        self.end_if_quiet(cx);
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        if self.alarms.tick == Some(alarm) {
            self.send_due(cx);
            self.alarms.tick = Some(cx.set_alarm(cx.now() + TICK));
        } else if self.alarms.second == Some(alarm) {
            if self.phase == Phase::Measuring {
                self.tally.end_second(self.measured(cx.now()).as_secs_f64());
                self.alarms.second = Some(cx.set_alarm(cx.now() + Duration::from_secs(1)));
            }
        } else if self.alarms.phase == Some(alarm) {
            match self.phase {
                Phase::Starting => self.measure(cx),
                Phase::Measuring => self.stop_sending(cx),
                Phase::Ending => end(cx),
            }
        } else if let Some(lane) = self.redials.remove(&alarm) {
            self.dial_now(cx, lane);
        }
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        // A signal ends a measurement early.
        if self.phase != Phase::Ending {
            self.close_measurement(cx.now());
            self.interrupted = true;
        }
        self.drop_waiting();
    }
}
