//! What happens when the wheel comes up.

use std::time::Duration;

use super::Reactor;
use crate::backend::Backend;
use crate::close::{CloseReason, Timeout};
use crate::core::budget::Step;
use crate::core::deadlines::{Deadline, Set};
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::State;
use crate::core::record::RequestCheck;
use crate::core::wheel::Key;
use crate::handler::Handler;
use crate::id::{AlarmId, ConnId};
use crate::planted::{Bug, planted};
use crate::probe;
use crate::state::{LoopState, Purpose};
use crate::time::Instant;

/// Entries of the wheel visited in one turn: however many fall on one tick, I/O goes on.
const EXPIRIES_PER_TURN: usize = 4_096;

/// A loop that is this many ticks late polls again before it ends a connection for that.
const LATE_TICKS: u64 = 10;

/// Waits in a row that may put deadlines off because they returned a full batch. Beyond that every
/// deadline that input would put off reads the socket itself.
const PUT_OFF_MAX: u32 = 4;

/// How often the rate is checked at which a request arrives that takes its time.
const RATE_LOOK_NANOS: u64 = 5_000_000_000;

/// How long a connection past its lifetime may go on without coming to a request boundary.
const RETIREMENT: Duration = Duration::from_secs(30);

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Serves the deadlines that are due, unless there may be input that beats them.
    #[inline]
    pub(super) fn expire_deadlines(&mut self, handler: &mut H) {
        let tick = self.shared.tick();
        let next = self.shared.wheel.next_tick().unwrap_or(u64::MAX);
        if next > tick && !self.shared.has_due_alarms() {
            self.put_off = 0;
        } else {
            self.expire_some(handler, tick, next.min(tick));
        }
    }

    #[inline(never)]
    fn expire_some(&mut self, handler: &mut H, tick: u64, due: u64) {
        let late = tick - due >= LATE_TICKS && self.put_off == 0;
        let more = self.events.is_full() || self.next_event < self.events.len();
        if late || (more && self.put_off < PUT_OFF_MAX) {
            self.put_off += 1;
            return;
        }
        self.put_off = 0;
        let mut entries = EXPIRIES_PER_TURN;
        let mut budget = self.begin_step(Step::Deadlines);
        while budget.allows(|| self.backend.now())
            && let Some(key) = self.shared.wheel.expire(tick, &mut entries)
        {
            match key {
                Key::Conn(index) => {
                    // The place may be free by now.
                    if let Some(id) = self.shared.table.id_in(index as usize) {
                        self.guard(handler, |reactor, handler| reactor.expire(handler, id));
                        self.rearm(id);
                    } else if planted(Bug::FreePlaceRearmed) {
                        self.shared.wheel.schedule(key, tick + 100);
                    }
                }
                Key::Alarm(index) => self.shared.note_due_alarm(index),
            }
        }
        self.end_step(&budget);
        #[cfg(feature = "sim")]
        {
            self.entries_taken += (EXPIRIES_PER_TURN - entries) as u64;
        }
        // Alarms of one tick come in the order of their times, which the wheel does not keep. They have
        // a budget of their own: connections that are always due must not keep a shutdown from ending.
        let mut budget = self.begin_step(Step::Deadlines);
        while budget.allows(|| self.backend.now())
            && let Some((alarm, purpose)) = self.shared.take_due_alarm()
        {
            self.ring(handler, alarm, purpose);
        }
        self.end_step(&budget);
    }

    fn ring(&mut self, handler: &mut H, alarm: AlarmId, purpose: Purpose) {
        match (alarm, purpose) {
            (alarm, Purpose::Application) => {
                self.call_loop("on_alarm", |cx| handler.on_alarm(cx, alarm));
            }
            (_, Purpose::ExpirePause) => self.expire_pause(),
            (_, Purpose::RecheckLimits) => self.recheck_limits(handler),
            (_, Purpose::CheckDeferred) => self.check_deferred(),
            (_, Purpose::Relieve) => self.relieve(handler),
            (_, Purpose::CheckShutdown) => self.check_shutdown(),
            (_, Purpose::HardStop) => self.hard_stop(),
            (_, Purpose::AdvanceDial(id)) => self.resume_dial(handler, id),
            (_, Purpose::ServePool(pool)) => self.shared.wake_pool(pool),
            (_, Purpose::ServeEndpoint(id)) => self.shared.wake_endpoint(id),
            (_, Purpose::ServeServices) => self.check_services(),
        }
    }

    /// The entry of a connection came up: some of its deadlines may be due.
    fn expire(&mut self, handler: &mut H, id: ConnId) {
        if self.is_delivery_due(id) {
            self.lingers_on(id);
        }
        // Each deadline is served at most once; what it moves into the past waits for a tick. Before each
        // that waits for input the socket is read, once too: others may come before it by that.
        let (mut served, mut read) = (Set::EMPTY, Set::EMPTY);
        loop {
            let first = self.first_due(id, served);
            // What we sent meanwhile put idle off, but is no answer to a ping.
            if let Some(lapsed) = self.lapsed_ping(id)
                && first.is_none_or(|(due, deadline)| {
                    lapsed < due || (lapsed == due && deadline != Deadline::Timer)
                })
            {
                self.final_read(handler, id);
                if self.lapsed_ping(id).is_some() {
                    probe::deadline(id, "ping", self.shared.now.nanos_since(lapsed));
                    self.shared.counters.count_fired(Deadline::Idle);
                    self.time_out(handler, id, Timeout::Ping);
                    return self.settle(handler, id);
                }
                continue;
            }
            let Some((due, deadline)) = first else { return };
            if deadline.waits_for_input() && !read.contains(deadline) {
                read = read.with(deadline, true);
                self.final_read(handler, id);
                if self.first_due(id, served) != first {
                    continue;
                }
            }
            served = served.with(deadline, true);
            probe::deadline(id, deadline.label(), self.shared.now.nanos_since(due));
            self.handle_deadline(handler, id, deadline);
            self.settle(handler, id);
        }
    }

    fn first_due(&mut self, id: ConnId, served: Set) -> Option<(Instant, Deadline)> {
        let LoopState { table, profiles, now, .. } = &mut self.shared;
        let record = table.at(id.index());
        if record.flags.has(Flags::REAPED) {
            return None;
        }
        let mut now = *now;
        if planted(Bug::LateFire) {
            now = now - Duration::from_secs(60);
        }
        if planted(Bug::EarlyFire) {
            now += Duration::from_secs(3_600);
        }
        let durations = record.durations(profiles);
        if planted(Bug::LaterDeadlineFirst) {
            return record.clocks.all_due(durations, now, served).max_by_key(|(due, _)| *due);
        }
        record.clocks.first_due(durations, now, served)
    }

    /// Lets the wheel come up again for the next deadline of a connection.
    fn rearm(&mut self, id: ConnId) {
        if planted(Bug::SkippedRearm) {
            return;
        }
        let LoopState { table, profiles, .. } = &mut self.shared;
        let record = table.at(id.index());
        if record.flags.has(Flags::REAPED) {
            return;
        }
        let next = record.clocks.next(record.durations(profiles));
        let (life, delivery) = (record.ping_due(), record.delivery_due());
        if let Some(at) = next.into_iter().chain(life).chain(delivery).min() {
            self.shared.arm(id, at);
        }
    }

    /// Input that waits in the socket beats a deadline that waits for input: it is read once.
    pub(super) fn final_read(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        record.flags.insert(Flags::READ_READY);
        self.serve(handler, id);
    }

    fn handle_deadline(&mut self, handler: &mut H, id: ConnId, deadline: Deadline) {
        if matches!(deadline, Deadline::Idle | Deadline::Tunnel)
            && self.awaits_delivery(handler, id, deadline)
        {
            return;
        }
        // During a shutdown that clock is the connection's time to end, and no lifetime.
        let is_planned_end = deadline == Deadline::Lifetime
            && self.shared.stopping
            && !self.shared.table.at(id.index()).is_aged();
        if !is_planned_end {
            self.shared.counters.count_fired(deadline);
        }
        match deadline {
            Deadline::Timer => {
                self.shared.table.at(id.index()).flags.remove(Flags::HAS_TIMER);
                self.call(id, "on_timer", |conn, session| handler.on_timer(conn, session));
            }
            Deadline::ProgressCheck => {
                self.sample_progress(id);
            }
            Deadline::Write => {
                if !self.sample_progress(id) {
                    self.time_out(handler, id, Timeout::Write);
                }
            }
            Deadline::Flush => {
                if !self.reckon_flush(id) {
                    self.lose_patience(id);
                }
            }
            Deadline::Linger | Deadline::LingerRead if self.lingers_on(id) => {}
            Deadline::Linger | Deadline::LingerRead => {
                self.shared.counters.linger_expired.add(1);
                self.release(id);
            }
            Deadline::Lifetime => self.reach_lifetime(handler, id),
            Deadline::ConnectAttempt => self.give_up_attempt(handler, id),
            Deadline::Response if self.sink_moves(id) => {}
            Deadline::Request if self.keeps_up(id) => {}
            Deadline::Idle if self.pings(handler, id) => {}
            Deadline::Connect
            | Deadline::FirstByte
            | Deadline::HalfClosed
            | Deadline::Idle
            | Deadline::Read
            | Deadline::Request
            | Deadline::Response
            | Deadline::Tunnel => {
                if let Some(timeout) = deadline.timeout() {
                    self.time_out(handler, id, timeout);
                }
            }
        }
    }

    /// The last output of a closing connection does not leave. Its reason is final, so the end is only
    /// counted.
    pub(super) fn lose_patience(&mut self, id: ConnId) {
        self.shared.counters.flush_expired.add(1);
        self.drop_output_and_release(id, true);
    }

    /// Ends a connection for a deadline, from wherever it is.
    pub(super) fn time_out(&mut self, handler: &mut H, id: ConnId, timeout: Timeout) {
        if self.shared.table.at(id.index()).state() == State::Closing {
            self.lose_patience(id);
        } else {
            self.begin_closing(handler, id, CloseReason::Timeout(timeout));
        }
    }

    /// Checks whether queued output has moved: what the kernel took says nothing, and neither does a
    /// writable event, which waits for a large part of a large queue to drain. What is acknowledged
    /// does.
    fn sample_progress(&mut self, id: ConnId) -> bool {
        if !self.shared.table.at(id.index()).has_output() {
            return false;
        }
        let acked = self.acked(id);
        let LoopState { table, profiles, now, .. } = &mut self.shared;
        let record = table.at(id.index());
        let cold = record.cold_mut();
        let queued_at = cold.queued_at;
        let moved = acked > cold.acked;
        cold.acked = cold.acked.max(acked);
        if moved {
            record.clocks.restart(Deadline::Write, *now);
        }
        let write = record.durations(profiles).of(Deadline::Write);
        record.clocks.check_again(queued_at, write, *now);
        if moved && record.cold_flags.has(ColdFlags::IS_SINK) {
            self.shared.touch_feeders(id);
        }
        if moved {
            self.shared.touch_relay(id);
        }
        moved
    }

    /// Whether a connection waits for its sink alone, and that one is slow but moves. Then its
    /// response clock starts anew: the application is not late, and the sink's own write deadline
    /// bounds it.
    fn sink_moves(&mut self, id: ConnId) -> bool {
        let record = self.shared.table.at(id.index());
        let held = record.flags.has(Flags::THROTTLED) && !record.flags.has(Flags::PAUSED);
        match record.cold().and_then(|cold| cold.sink) {
            Some(sink) if held && !record.flags.has(Flags::OWED) => self.sample_progress(sink),
            _ => false,
        }
    }

    /// Whether a request that is not whole in time arrives at its minimum rate, where it has one.
    fn keeps_up(&mut self, id: ConnId) -> bool {
        let LoopState { table, profiles, now, .. } = &mut self.shared;
        let record = table.at(id.index());
        let durations = record.durations(profiles);
        let (timeout, rate) = (durations.of(Deadline::Request), durations.request_rate());
        let Some(rate) = rate else { return false };
        let (since, read) = (record.clocks.since(Deadline::Request), record.bytes_in);
        // The same request was checked before only if nothing has set its clock since.
        let before = record.cold_mut().request.filter(|check| check.since == since);
        if let Some(before) = before {
            let least = u128::from(now.nanos_since(before.at)) * u128::from(rate) / 1_000_000_000;
            if u128::from(read - before.read) < least {
                return false;
            }
        }
        // A clock that is set to now must never be due sooner than the wheel comes up, so none runs
        // since a time to come.
        let since = now.before(timeout - timeout.min(RATE_LOOK_NANOS));
        record.clocks.set(Deadline::Request, since);
        record.cold_mut().request = Some(RequestCheck { since, at: *now, read });
        true
    }

    /// When the answer to a ping was due, if that has passed without one.
    fn lapsed_ping(&mut self, id: ConnId) -> Option<Instant> {
        let now = self.shared.now;
        self.shared.table.at(id.index()).ping_due().filter(|due| *due <= now)
    }

    /// Pings an idle connection, where that is wanted and no answer is due yet.
    fn pings(&mut self, handler: &mut H, id: ConnId) -> bool {
        let LoopState { table, profiles, now, .. } = &mut self.shared;
        let record = table.at(id.index());
        let Some(ping) = record.durations(profiles).ping() else { return false };
        if record.ping_due().is_none() {
            record.cold_mut().pinged = Some((now.after(ping), record.bytes_in));
            self.shared.counters.health_checks.add(1);
            self.call(id, "on_health_check", |conn, session| {
                handler.on_health_check(conn, session);
            });
        }
        // The wheel comes up for the answer by itself.
        let now = self.shared.now;
        self.shared.table.at(id.index()).clocks.set(Deadline::Idle, now);
        true
    }

    /// Whether the last output leaves at the minimum rate: every byte that left buys its time.
    fn reckon_flush(&mut self, id: ConnId) -> bool {
        let left = self.acked(id);
        let LoopState { table, profiles, bounds, now, .. } = &mut self.shared;
        let rate = bounds.flush_rate;
        let record = table.at(id.index());
        let cold = record.cold_mut();
        let moved = left.saturating_sub(cold.acked_at_flush);
        cold.acked_at_flush = left.max(cold.acked_at_flush);
        record.credit_flush(moved, rate, profiles, *now);
        record.clocks.due(Deadline::Flush, record.durations(profiles)) > *now
    }

    /// The greatest age is reached: the next request boundary ends the connection, or the end of
    /// the retirement.
    fn reach_lifetime(&mut self, handler: &mut H, id: ConnId) {
        let now = self.shared.now;
        let record = self.shared.table.at(id.index());
        if record.is_aged() {
            self.time_out(handler, id, Timeout::Lifetime);
        } else if self.shared.stopping {
            self.end_waiting(handler, id);
        } else {
            record.age();
            record.clocks.set(Deadline::Lifetime, now + RETIREMENT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;

    use crate::config::Config;
    use crate::conn::Conn;
    use crate::context::Context;
    use crate::handler::Handler;
    use crate::id::{ConnId, Origin, PoolId};
    use crate::pool::{AcquireError, AcquireOptions, PoolConfig, WaitId};
    use crate::reactor::audit::tests::Echo;
    use crate::sim::{Link, Server, Sim};

    const UPSTREAM: &str = "10.0.0.2:7";

    /// Leases a connection for each message, and gives it back with the reply.
    #[derive(Default)]
    struct Front {
        pool: Option<PoolId>,
    }

    impl Handler for Front {
        type Session = ();

        fn on_start(&mut self, cx: &mut Context<'_>) {
            self.pool = cx.add_pool(UPSTREAM, &PoolConfig::default()).ok();
        }

        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }

        fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
            if let Origin::Pool(_) = conn.origin() {
                let lease = conn.id();
                conn.end_request();
                let mut client = conn.owner().and_then(|owner| conn.other(owner)).unwrap();
                client.write(input);
                client.end_request();
                client.release(lease);
            } else {
                conn.begin_request();
                conn.acquire(self.pool.unwrap(), AcquireOptions::default()).unwrap();
            }
            input.clear();
        }

        fn on_acquired(
            &mut self,
            conn: &mut Conn<'_>,
            (): &mut (),
            _: WaitId,
            lease: Result<ConnId, AcquireError>,
        ) {
            let mut upstream = conn.other(lease.unwrap()).unwrap();
            upstream.begin_request();
            upstream.write(b"message");
        }
    }

    #[test]
    fn a_thousand_leases_leave_the_wheel_alone() {
        let mut sim = Sim::new(1);
        sim.set_link(Link { latency: Duration::from_micros(100), ..Link::default() });
        sim.serve(UPSTREAM, Config::default(), Echo);
        let front = sim.serve("10.0.0.1:7", Config::default(), Front::default());
        let peer = sim.connect(&front);
        let exchange = |count: usize, sim: &mut Sim| {
            for _ in 0..count {
                peer.send(b"message");
                sim.advance(Duration::from_millis(1));
                peer.expect(b"message");
            }
        };
        let links = |front: &Server<Front>| front.with(|_, cx| cx.shared.wheel.links);
        exchange(10, &mut sim);
        let before = links(&front);
        exchange(1_000, &mut sim);
        // The earliest of both connections stands: only their clocks move.
        assert_eq!(links(&front) - before, 0);
    }
}
