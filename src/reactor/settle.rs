//! What follows from an event or a callback: the next state, the deadlines that run, the ready
//! queue.

use super::io::Read;
use super::{Reactor, Slot};
use crate::backend::Backend;
use crate::close::CloseMode;
use crate::close::CloseReason;
use crate::core::deadlines::{Deadline, DeadlineInputs, Set};
use crate::core::flags::Flags;
use crate::core::lifecycle::{State, Step};
use crate::core::record::Record;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::planted::{Bug, planted};
use crate::state::{LoopState, log_state};

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Does all that a connection is ready for, each thing within its budget.
    pub(super) fn serve(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if matches!(record.state(), State::Connected | State::Idle) {
            if record.has_output() || record.flags.has(Flags::CALLBACK_DUE) {
                self.serve_due(handler, id);
            }
            self.receive(handler, id);
        } else if record.flags.has(Flags::REAPED) {
            return;
        } else if record.state() == State::Connecting {
            self.progress_dial(handler, id);
        } else {
            self.progress_closing(id);
        }
        self.settle(handler, id);
    }

    /// [`Reactor::serve`] for an open connection that has nothing but input, while nobody listens to
    /// what happens to it.
    #[inline(always)]
    pub(super) fn serve_input(&mut self, handler: &mut H, id: ConnId) {
        if self.exchange(handler, id, false) != Read::Rested {
            return self.settle(handler, id);
        }
        self.call_idle(handler, id, "on_data or on_idle");
        // The usual end of a message: idle as before it, and nothing to do.
        let record = self.shared.table.at(id.index());
        let facts = record.deadline_inputs();
        if !record.is_quiet() {
            self.settle(handler, id);
        } else if facts != record.clocks.inputs() && !self.settle_plain(id, facts) {
            self.resettle(handler, id);
        }
    }

    /// Sends what others wrote to a connection, and does what they asked of it. It is not read for
    /// that: its turn to be read is another matter.
    pub(super) fn serve_reached(&mut self, handler: &mut H, id: ConnId) {
        if matches!(self.shared.table.at(id.index()).state(), State::Connected | State::Idle) {
            self.flush(id);
            self.settle(handler, id);
        } else {
            self.serve(handler, id);
        }
    }

    /// Queued output, and the callbacks that are due without new bytes.
    fn serve_due(&mut self, handler: &mut H, id: ConnId) {
        self.flush(id);
        if self.shared.table.at(id.index()).flags.take(Flags::DRAINED) {
            self.call(id, "on_drained", |conn, session| handler.on_drained(conn, session));
        }
        let record = self.shared.table.at(id.index());
        if record.is_reading_stopped() || record.requested().is_some() {
            return;
        }
        if record.flags.take(Flags::DATA_DUE) {
            self.deliver_kept(handler, id);
        }
    }

    /// Brings a connection into the state that follows from what happened to it, with the
    /// deadlines of that state, and queues it if there is more to do.
    pub(super) fn settle(&mut self, handler: &mut H, id: ConnId) {
        let requests_max = self.shared.bounds.requests_max;
        let mut record = self.shared.table.at(id.index());
        if record.flags.has(Flags::TO_ACT_ON) || record.requests >= requests_max {
            self.act(handler, id);
            record = self.shared.table.at(id.index());
            if record.flags.has(Flags::REAPED) {
                return;
            }
        }
        if record.state() == State::Connected && record.deadline_inputs().at_rest() {
            record.step(Step::Rest);
            log_state(record);
            self.call_idle(handler, id, "on_idle");
        }
        self.resettle(handler, id);
    }

    /// [`Reactor::settle`] for an accepted connection.
    pub(super) fn settle_accepted(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let facts = record.deadline_inputs();
        let plain = record.is_quiet() && record.requests == 0;
        if !plain || !self.settle_plain(id, facts) {
            self.guard(handler, |reactor, handler| reactor.settle(handler, id));
        }
    }

    /// [`Reactor::resettle`] for a quiet connection that only waits for its peer. Returns whether
    /// it is one.
    #[inline(always)]
    fn settle_plain(&mut self, id: ConnId, facts: DeadlineInputs) -> bool {
        let Some(deadline) = facts.plain() else { return false };
        let LoopState { table, profiles, counters, now, .. } = &mut self.shared;
        let record = table.at(id.index());
        record.clocks.run_only(deadline, facts, *now);
        let at = record.clocks.due(deadline, record.periods(profiles));
        // A newcomer holds nothing, and its state is what is left when all others are counted.
        if deadline == Deadline::Idle {
            record.count_state(&counters.states);
            if record.buffered > 0 {
                self.account_held(id, 0);
            }
        }
        self.shared.arm(id, at);
        true
    }

    /// Lets the deadlines of the connection's state run, and queues it if there is more to do.
    fn resettle(&mut self, handler: &mut H, id: ConnId) {
        let mut record = self.shared.table.at(id.index());
        if record.flags.has(Flags::REAPED) {
            return;
        }
        let mut facts = record.deadline_inputs();
        if record.state() == State::Idle && !facts.at_rest() {
            self.wake_session(handler, id);
            record = self.shared.table.at(id.index());
            facts = record.deadline_inputs();
        }
        let began = record.clocks.update(facts, self.shared.now);
        let rearm = record.flags.take(Flags::REARM);
        // What callbacks asked for meanwhile waits for the next turn, so that they cannot chase
        // each other within one.
        let restless = match record.state() {
            State::Connected => facts.at_rest(),
            State::Idle => !facts.at_rest(),
            State::Connecting | State::Closing | State::Closed => false,
        };
        let restless = restless || record.flags.has(Flags::ACTION_DUE);
        let queues = record.has_work() && !planted(Bug::LostReadyFlag);
        if queues && !record.flags.has(Flags::QUEUED_READY) {
            record.flags.insert(Flags::QUEUED_READY);
            if !planted(Bug::UnqueuedWork) {
                self.shared.ready.push(id);
            }
        }
        if restless {
            self.shared.mark_dirty(id);
        }
        self.account(id);
        if rearm || !began.is_empty() {
            self.arm_deadlines(id, began, rearm);
        }
    }

    /// [`State::Idle`] → [`State::Connected`].
    fn wake_session(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        record.step(Step::Wake);
        log_state(record);
        self.call(id, "on_active", |conn, session| handler.on_active(conn, session));
    }

    /// [`State::Connecting`] → [`State::Connected`] for a dialled connection.
    pub(super) fn establish(&mut self, handler: &mut H, id: ConnId) {
        let Self { backend, shared, .. } = self;
        shared.establish(id, || backend.entropy());
        self.call(id, "on_connected", |conn, session| handler.on_connected(conn, session));
    }

    /// Does what callbacks asked for and ends what has come to its end.
    #[inline(always)]
    fn act(&mut self, handler: &mut H, id: ConnId) {
        let mut record = self.shared.table.at(id.index());
        if record.flags.has(Flags::BROKEN.and(Flags::SHUTDOWN_WRITE)) {
            self.read_before_broken(handler, id);
            self.send_fin(id);
            record = self.shared.table.at(id.index());
        }
        if !record.state().is_open() {
            return self.progress_closing(id);
        }
        record.flags.remove(Flags::ACTION_DUE);
        let reason = match record.take_requested() {
            Some(reason) => Some(reason),
            None => ended(record, self.shared.bounds.requests_max),
        };
        if let Some(reason) = reason {
            self.begin_closing(handler, id, reason);
        }
    }

    /// After a failed write the socket may still hold what the peer sent before it went.
    fn read_before_broken(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if !record.flags.take(Flags::BROKEN) {
            return;
        }
        if !record.state().is_open() || record.requested().is_some() {
            // The end that is under way finds it broken.
            return;
        }
        let Some(reason) = record.take_broken() else { return };
        record.flags.remove(Flags::ACTION_DUE);
        record.flags.insert(Flags::MAY_READ);
        self.receive(handler, id);
        let record = self.shared.table.at(id.index());
        // It was broken before the handler asked for an end that would flush.
        if record.requested().is_none_or(|asked| asked.mode() != CloseMode::Reset) {
            record.set_requested(reason);
        }
    }

    /// Sends the FIN that the handler wants behind its output, once that is gone.
    fn send_fin(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        // A FIN behind bytes that were dropped would pass off what came before as all there is.
        let dropped = record.requested().is_some_and(|asked| asked.mode() != CloseMode::Flush);
        let due = record.flags.has(Flags::SHUTDOWN_WRITE)
            && !dropped
            && !record.flags.has(Flags::FIN)
            && !record.has_output()
            && matches!(record.state(), State::Connected | State::Idle);
        if !due {
            return;
        }
        let Some(stream) = self.slots[id.index()].stream.as_mut() else {
            return;
        };
        match self.backend.shutdown_write(stream) {
            Ok(()) => record.flags.insert(Flags::FIN),
            Err(error) => record.request_close(super::io::reason_of(error)),
        }
    }

    /// Lets the wheel come up for the deadlines that began to run.
    #[inline]
    fn arm_deadlines(&mut self, id: ConnId, began: Set, rearm: bool) {
        if began.contains(Deadline::Write) || began.contains(Deadline::Flush) {
            self.note_queued(id);
        }
        if began.contains(Deadline::LingerRead) {
            self.begin_linger(id);
        }
        let LoopState { table, profiles, .. } = &mut self.shared;
        let record = table.at(id.index());
        let periods = record.periods(profiles);
        let at = if rearm {
            record.clocks.next(periods)
        } else {
            record.clocks.earliest(began, periods)
        };
        if let Some(at) = at {
            self.shared.arm(id, at);
        }
    }

    /// Output became queued: what is acknowledged from here on is progress.
    fn note_queued(&mut self, id: ConnId) {
        let acked = self.acked(id);
        let now = self.shared.now;
        let cold = self.shared.table.at(id.index()).cold_mut();
        cold.acked = acked;
        cold.acked_at_flush = acked;
        cold.queued_at = now;
    }

    /// How many bytes have left for the peer: taken by the kernel and acknowledged, where it can
    /// say so.
    pub(super) fn acked(&mut self, id: ConnId) -> u64 {
        let unsent = match &self.slots[id.index()].stream {
            Some(stream) => self.backend.unsent(stream).unwrap_or(0),
            None => 0,
        };
        self.shared.table.at(id.index()).bytes_out.saturating_sub(unsent)
    }

    /// The slot of a connection, which may be the first in its place.
    #[inline]
    pub(super) fn make_slot(&mut self, id: ConnId) -> &mut Slot<H::Session, B::Stream> {
        if self.slots.len() <= id.index() {
            self.slots.resize_with(id.index() + 1, Slot::default);
        }
        &mut self.slots[id.index()]
    }
}

/// Why an open connection has come to its end of its own accord, if it has.
fn ended(record: &Record, requests_max: u64) -> Option<CloseReason> {
    let flags = record.flags;
    let done = !record.flags.has(Flags::OWED) && !record.has_output();
    let eof = flags.has(Flags::EOF)
        && if flags.has(Flags::TUNNEL) {
            flags.has(Flags::FIN) && !record.has_output()
        } else {
            done || !flags.has(Flags::INBOUND)
        };
    if eof {
        Some(CloseReason::PeerEof)
    } else if record.requests >= requests_max
        && !record.flags.has(Flags::OWED)
        && !flags.has(Flags::TUNNEL)
    {
        Some(CloseReason::MaxRequests)
    } else {
        record.retirement_reason()
    }
}

#[cfg(test)]
mod tests {
    use super::super::audit::tests::{Echo, Tested, crowd};
    use super::*;
    use crate::config::Config;
    use crate::core::wheel::Key;
    use crate::id::ConnId;
    use crate::sim::Sim;
    use crate::time::Instant;

    /// What settling decides: the deadlines and when the first of them is due, the marks, the state in
    /// which the connection is counted, and whether it is in a queue. The wheel may come up before the
    /// first deadline, and never after it.
    type Settled = (DeadlineInputs, Option<Instant>, Flags, State, bool, usize);

    fn settled(reactor: &Tested, id: ConnId) -> Settled {
        let LoopState { table, profiles, wheel, ready, dirty, .. } = &reactor.shared;
        let record = table.get(id).unwrap();
        let next = record.clocks.next(record.periods(profiles));
        let comes_up = wheel.tick_of(Key::Conn(id.index() as u32));
        let due = next.map(|at| reactor.shared.tick_of(at));
        assert!(due.is_none_or(|due| comes_up.is_some_and(|tick| tick <= due)), "{record:?}");
        (record.clocks.inputs(), next, record.flags, record.counted, ready.is_behind(), dirty.len())
    }

    #[test]
    fn the_short_way_settles_as_the_long_one_does() {
        let mut sim = Sim::new(1);
        let (mut reactor, ids) = crowd(&mut sim, Config::default(), 2);
        let [short, long] = ids[..] else { unreachable!("two were asked for") };
        let (mut taken, mut left) = (0, 0);
        let states = [State::Connecting, State::Connected, State::Idle];
        // What they were like before, and what they are like now, in all that deadlines depend on.
        let all = || {
            let bits = || (0..1 << 13).map(Flags::from_bits);
            states.into_iter().flat_map(move |state| bits().map(move |flags| (state, flags)))
        };
        for (state, flags) in all() {
            let facts = DeadlineInputs::new(state, flags);
            if facts.plain().is_none() {
                left += 1;
                continue;
            }
            for (state_before, flags_before) in all() {
                let before = DeadlineInputs::new(state_before, flags_before);
                // One that has not had its first byte has had no deadline before.
                let comes = state == State::Connected;
                if before == facts || (comes && before != DeadlineInputs::default()) {
                    continue;
                }
                let now = reactor.shared.now;
                for id in [short, long] {
                    let record = reactor.shared.table.at(id.index());
                    record.pose(state, flags);
                    record.clocks.reset();
                    record.clocks.update(before, Instant::EPOCH);
                    // A message came, or the connection did.
                    record.clocks.touch_read(now);
                    record.counted = if comes { State::Connected } else { state_before };
                }
                assert!(reactor.settle_plain(short, facts));
                reactor.resettle(&mut Echo, long);
                let how = settled(&reactor, short);
                assert_eq!(how, settled(&reactor, long), "{facts:?} after {before:?}");
                taken += 1;
            }
        }
        assert!(taken > 10_000 && left > 10_000, "{taken} and {left}");
    }
}
