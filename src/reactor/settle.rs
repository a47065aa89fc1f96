//! What follows from an event or a callback: the next state, the deadlines that run, the ready
//! queue.
//!
//! Events and callbacks set flags. [`Reactor::settle`] comes after each of them, or one of its short ways
//! does, and draws the consequences, always in this order:
//!
//! 1. What was asked for is done: a FIN, an end.
//! 2. A connection with no active request goes idle.
//! 3. Deadlines begin to run or cease to, as state and flags call for.
//! 4. What is left to do, and no event will announce, is queued for the next turn.
//! 5. What was given back to its pool in its own callback is judged.
//!
//! Most messages leave nothing to do but the third step for a single deadline. For those
//! [`Reactor::arm_sole_deadline`] does the same; a test compares the two for all inputs.

use super::{Reactor, Slot};
use crate::backend::Backend;
use crate::close::CloseMode;
use crate::close::CloseReason;
use crate::core::deadlines::{Deadline, DeadlineInputs, Set};
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::{State, Transition};
use crate::core::record::Record;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::planted::{Bug, planted};
use crate::state::{LoopState, log_state};

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Brings a connection into the state that follows from what happened to it, with the
    /// deadlines of that state, and queues it if there is more to do.
    ///
    /// Called after every event and every callback of a connection, except where a message has taken
    /// the short way.
    pub(super) fn settle(&mut self, handler: &mut H, id: ConnId) {
        let requests_max = self.shared.bounds.requests_max;
        let mut record = self.shared.table.at(id.index());
        if record.flags.has(Flags::TO_ACT_ON) || record.is_used_up(requests_max) {
            self.act_on_requests(handler, id);
            record = self.shared.table.at(id.index());
            if record.flags.has(Flags::REAPED) {
                return;
            }
        }
        if record.state() == State::Connected && record.deadline_inputs().at_rest() {
            record.apply(Transition::Rest);
            log_state(record);
            self.call_idle(handler, id, "on_idle");
            record = self.shared.table.at(id.index());
        }
        if record.flags.has(Flags::DIVERTED) {
            self.settle_diverted(handler, id);
        } else {
            self.arm_and_queue(handler, id);
        }
    }

    /// The last steps of [`Reactor::settle`], for a connection that may have been given back.
    #[inline(never)]
    pub(super) fn settle_diverted(&mut self, handler: &mut H, id: ConnId) {
        self.arm_and_queue(handler, id);
        self.judge_settled(handler, id);
    }

    /// [`Reactor::settle_diverted`] for one that has gone idle, and which nothing is left to do for.
    #[inline(never)]
    pub(super) fn settle_given_back(
        &mut self,
        handler: &mut H,
        id: ConnId,
        inputs: DeadlineInputs,
    ) {
        self.arm_changed(handler, id, inputs);
        self.judge_settled(handler, id);
    }

    /// [`Reactor::arm_and_queue`] for a connection that nothing is left to do for, if other deadlines run
    /// than before.
    #[inline(always)]
    pub(super) fn arm_changed(&mut self, handler: &mut H, id: ConnId, inputs: DeadlineInputs) {
        let changed = inputs != self.shared.table.at(id.index()).clocks.inputs();
        if changed && !self.arm_sole_deadline(id, inputs) {
            self.arm_and_queue(handler, id);
        }
    }

    /// [`Reactor::settle`] for a connection that was just accepted: the short way if its handler has
    /// asked for nothing.
    #[inline(always)]
    pub(super) fn settle_accepted(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let inputs = record.deadline_inputs();
        let plain = record.is_quiet() && record.requests == 0;
        if !plain || !self.arm_sole_deadline(id, inputs) {
            self.guard(handler, |reactor, handler| reactor.settle(handler, id));
        }
    }

    /// [`Reactor::arm_and_queue`] for a connection that nothing is left to do for and that waits for one
    /// thing only, so that a single deadline runs. Returns whether it is one; otherwise nothing has
    /// changed.
    #[inline(always)]
    pub(super) fn arm_sole_deadline(&mut self, id: ConnId, inputs: DeadlineInputs) -> bool {
        let Some(deadline) = inputs.sole_deadline() else { return false };
        let LoopState { table, profiles, counters, now, .. } = &mut self.shared;
        let record = table.at(id.index());
        let begins = record.clocks.run_only(deadline, inputs, *now);
        let at = now.after(record.durations(profiles).of(deadline));
        // The state of a newcomer is what is left when all others are counted.
        if deadline != Deadline::FirstByte {
            record.count_state(&counters.states);
        }
        if record.buffered > 0 {
            self.account(id);
        }
        if begins {
            self.shared.arm(id, at);
        }
        true
    }

    /// Lets the deadlines run that state and flags call for, and queues the connection if there is
    /// more to do.
    pub(super) fn arm_and_queue(&mut self, handler: &mut H, id: ConnId) {
        let mut record = self.shared.table.at(id.index());
        if record.flags.has(Flags::REAPED) {
            return;
        }
        let mut inputs = record.deadline_inputs();
        if record.state() == State::Idle && !inputs.at_rest() {
            self.wake_session(handler, id);
            record = self.shared.table.at(id.index());
            inputs = record.deadline_inputs();
        }
        let short = !record.flags.has(Flags::UNDONE) && inputs != record.clocks.inputs();
        if !short || !self.arm_sole_deadline(id, inputs) {
            self.arm_all_and_queue(id, inputs);
        }
    }

    /// [`Reactor::arm_and_queue`] in the long way, for any connection.
    #[inline(never)]
    fn arm_all_and_queue(&mut self, id: ConnId, inputs: DeadlineInputs) {
        let record = self.shared.table.at(id.index());
        let began = record.clocks.update(inputs, self.shared.now);
        let rearm = record.flags.take(Flags::REARM);
        // `on_active` and `on_idle` may have changed what they were called for. What follows from that
        // waits for the next turn, so that the two cannot call each other for ever within one.
        let unsettled = match record.state() {
            State::Connected => inputs.at_rest(),
            State::Idle => !inputs.at_rest(),
            State::Connecting | State::Closing | State::Closed => false,
        };
        let unsettled = unsettled || record.flags.has(Flags::ACTION_DUE);
        let queues = record.has_work() && !planted(Bug::LostReadyFlag);
        if queues && !record.flags.has(Flags::QUEUED_READY) {
            record.flags.insert(Flags::QUEUED_READY);
            if !planted(Bug::UnqueuedWork) {
                self.shared.ready.push(id);
            }
        }
        if unsettled {
            self.shared.mark_dirty(id);
        }
        self.account(id);
        if rearm || !began.is_empty() {
            self.arm_deadlines(id, began, rearm);
        }
    }

    /// [`State::Idle`] → [`State::Connected`].
    pub(super) fn wake_session(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        record.apply(Transition::Wake);
        log_state(record);
        self.call(id, "on_active", |conn, session| handler.on_active(conn, session));
        // What settles it may be past the point where it looks for that.
        if self.shared.table.at(id.index()).cold_flags.has(ColdFlags::RETURNED) {
            self.shared.mark_dirty(id);
        }
    }

    /// [`State::Connecting`] → [`State::Connected`] for a dialled connection.
    pub(super) fn establish(&mut self, handler: &mut H, id: ConnId) {
        let Self { backend, shared, .. } = self;
        shared.establish(id, || backend.entropy());
        self.note_pooled_connected(id);
        self.call(id, "on_connected", |conn, session| handler.on_connected(conn, session));
        if self.shared.table.at(id.index()).cold_flags.has(ColdFlags::CHECK) {
            self.note_check_connected(handler, id);
        }
    }

    /// Does what callbacks asked for, and begins the end of a connection that has come to it.
    #[inline(always)]
    fn act_on_requests(&mut self, handler: &mut H, id: ConnId) {
        let mut record = self.shared.table.at(id.index());
        if record.cold_flags.has(ColdFlags::BROKEN.and(ColdFlags::RELAYED))
            || record.flags.has(Flags::SHUTDOWN_WRITE)
        {
            self.act_before_end(handler, id);
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

    /// The part of what was asked for that comes before any end.
    #[cold]
    fn act_before_end(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let broken = record.cold_flags.has(ColdFlags::BROKEN);
        if record.cold_flags.has(ColdFlags::RELAYED) && record.flags.has(Flags::DATA_DUE) {
            // What was read before the relay began comes before the FIN.
            self.pass_kept(id);
        }
        if broken || self.shared.table.at(id.index()).flags.has(Flags::SHUTDOWN_WRITE) {
            self.read_before_broken(handler, id);
            self.send_fin(handler, id);
        }
    }

    /// After a failed write the socket may still hold what the peer sent before it went.
    fn read_before_broken(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if !record.cold_flags.has(ColdFlags::BROKEN) {
            return;
        }
        let relayed = record.cold_flags.has(ColdFlags::RELAYED);
        // Nothing is written behind our FIN: without it, this is news.
        let whole = record.flags.has(Flags::EOF) && !record.flags.has(Flags::FIN);
        if !relayed || whole {
            record.cold_flags.remove(ColdFlags::BROKEN);
        }
        if !record.state().is_open() || record.requested().is_some() {
            // The end that is under way finds it broken.
            return;
        }
        if relayed {
            return self.relay_before_broken(id);
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

    /// One side of a relay is broken: it is only read from here on, as fast as the other takes it, and
    /// ends when its socket has nothing more. Its mark stays, and says that a FIN which is read now
    /// may be none, as the error was read with the write.
    fn relay_before_broken(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if !record.flags.has(Flags::FIN) {
            // What the other side sends is read and dropped, so that a peer that sends before it
            // reads comes to read.
            record.flags.insert(Flags::FINISHED.and(Flags::MAY_READ));
            record.cold_flags.insert(ColdFlags::RESET);
            self.drop_output(id);
            self.note_drained(id);
        }
        let table = &mut self.shared.table;
        let record = table.at(id.index());
        let reads = record.flags.has(Flags::READ_READY)
            && !record.flags.has(Flags::PAUSED.and(Flags::EOF))
            && !planted(Bug::BrokenSideCut);
        let other = record.relay();
        let taken = other.is_some_and(|other| table.at(other.index()).takes_writes());
        let record = table.at(id.index());
        if !(reads && taken)
            && let Some(reason) = record.take_broken()
        {
            record.set_requested(reason);
        }
    }

    /// Sends the FIN that the handler asked for, once all output has left.
    fn send_fin(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        // After dropped bytes a FIN would present what was sent before them as the whole.
        let dropped = record.requested().is_some_and(|asked| asked.mode() != CloseMode::Flush);
        let due = record.flags.has(Flags::SHUTDOWN_WRITE)
            && !dropped
            && !record.flags.has(Flags::FIN)
            && !record.has_output()
            && matches!(record.state(), State::Connected | State::Idle);
        if !due {
            return;
        }
        if record.cold_flags.has(ColdFlags::RELAYED) && record.flags.has(Flags::EOF) {
            // Both directions have ended, and the close that follows in this step sends it.
            return record.flags.insert(Flags::FIN);
        }
        let Some(stream) = self.slots[id.index()].stream.as_mut() else {
            return;
        };
        match self.backend.shutdown_write(stream) {
            Ok(()) => record.flags.insert(Flags::FIN),
            Err(error) => {
                record.note_broken(super::io::reason_of(error));
                self.read_before_broken(handler, id);
            }
        }
    }

    /// Schedules the wheel for the deadlines that began to run, or for all if one was `rearm`ed by
    /// hand.
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
        let durations = record.durations(profiles);
        let at = if rearm {
            record.clocks.next(durations)
        } else {
            record.clocks.earliest(began, durations)
        };
        if let Some(at) = at {
            self.shared.arm(id, at);
        }
    }

    /// Output became queued: bytes that are acknowledged from here on are progress.
    fn note_queued(&mut self, id: ConnId) {
        let acked = self.acked(id);
        let now = self.shared.now;
        let cold = self.shared.table.at(id.index()).cold_mut();
        cold.acked = acked;
        cold.acked_at_flush = acked;
        cold.queued_at = now;
    }

    /// How many bytes the peer has acknowledged; where the kernel cannot say so, how many the kernel
    /// took.
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

/// Why an open connection ends although no callback and no deadline asked for it, if it does.
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
    } else if record.is_used_up(requests_max)
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
    use super::super::audit::tests::{Tested, crowd};
    use super::*;
    use crate::config::Config;
    use crate::core::wheel::Key;
    use crate::id::ConnId;
    use crate::sim::Sim;
    use crate::time::Instant;

    /// What settling decides: the deadlines and when the first of them is due, the marks, the state
    /// in which the connection is counted, and whether it is in a queue. The wheel may come up
    /// before the first deadline, and never after it.
    type Settled = (DeadlineInputs, Option<Instant>, Flags, State, bool, usize);

    fn settled(reactor: &Tested, id: ConnId) -> Settled {
        let LoopState { table, profiles, wheel, ready, dirty, .. } = &reactor.shared;
        let record = table.get(id).unwrap();
        let next = record.clocks.next(record.durations(profiles));
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
            let bits = || (0..1 << Flags::DEADLINE_BITS).map(Flags::from_bits);
            states.into_iter().flat_map(move |state| bits().map(move |flags| (state, flags)))
        };
        for (state, flags) in all() {
            let inputs = DeadlineInputs::new(state, flags);
            if inputs.sole_deadline().is_none() {
                left += 1;
                continue;
            }
            for (state_before, flags_before) in all() {
                let before = DeadlineInputs::new(state_before, flags_before);
                // One that has not had its first byte was never at rest, nor anything else before.
                let comes = inputs.sole_deadline() == Some(Deadline::FirstByte);
                let silent = state_before == State::Connected
                    && flags_before.has(Flags::INBOUND)
                    && !flags_before.has(Flags::RECEIVED);
                if before == inputs || (comes && !silent) {
                    continue;
                }
                let now = reactor.shared.now;
                for id in [short, long] {
                    let record = reactor.shared.table.at(id.index());
                    record.pose(state, flags);
                    record.clocks.reset();
                    record.clocks.update(before, Instant::EPOCH);
                    let LoopState { table, profiles, .. } = &mut reactor.shared;
                    let record = table.at(id.index());
                    if let Some(at) = record.clocks.next(record.durations(profiles)) {
                        reactor.shared.arm(id, at);
                    }
                    let record = reactor.shared.table.at(id.index());
                    // A message came, or the connection did.
                    record.clocks.touch_read(now);
                    record.counted = if comes { State::Connected } else { state_before };
                }
                assert!(reactor.arm_sole_deadline(short, inputs));
                reactor.arm_all_and_queue(long, inputs);
                let how = settled(&reactor, short);
                assert_eq!(how, settled(&reactor, long), "{inputs:?} after {before:?}");
                taken += 1;
            }
        }
        assert!(taken > 10_000 && left > 10_000, "{taken} and {left}");
    }
}
