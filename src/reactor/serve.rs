//! Serves a connection that is ready: an event came for it, it has its turn in the ready queue, or
//! callbacks of others asked something of it.
//!
//! Output goes before input, as what is queued may keep a connection from being read. What follows is
//! drawn by [`Reactor::settle`], which comes last in every way through here.

use super::Reactor;
use super::io::{Read, has_only_input};
use crate::backend::{Backend, Readiness};
use crate::core::budget::Step;
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::State;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::planted::{Bug, planted};

impl<H: Handler, B: Backend> Reactor<H, B> {
    #[inline]
    pub(super) fn serve_event(&mut self, handler: &mut H, id: ConnId, ready: Readiness) {
        let id = self.shared.resolve(id);
        let Some(record) = self.shared.table.get_mut(id) else {
            self.shared.counters.stale_events.add(1);
            return;
        };
        record.flags.insert(Flags::of_event(ready.to_bits()));
        let flags = record.flags;
        let open = matches!(record.state(), State::Connected | State::Idle);
        if ready.has(Readiness::ERROR.and(Readiness::SHUT))
            && open
            && (flags.has(Flags::UNREAD_ERROR) || record.peer.ip().is_none())
            && self.serve_broken(handler, id, ready)
        {
            return;
        }
        if flags.has(Flags::QUEUED_READY) {
            // It has its turn there, and none besides.
        } else if open && has_only_input(flags) && !self.logs {
            self.serve_input(handler, id);
        } else {
            self.serve(handler, id);
        }
    }

    /// An event says that the socket of an open connection failed, or that both directions are shut.
    /// Returns whether that was all; mostly it is learned by reading.
    #[cold]
    #[inline(never)]
    fn serve_broken(&mut self, handler: &mut H, id: ConnId, ready: Readiness) -> bool {
        let record = self.shared.table.at(id.index());
        if ready.has(Readiness::ERROR)
            && record.flags.has(Flags::UNREAD_ERROR)
            && !record.reads_before_error()
        {
            self.learn_error(handler, id);
            return true;
        }
        let relayed = record.cold_flags.has(ColdFlags::RELAYED);
        if ready.has(Readiness::SHUT) && record.peer.ip().is_none() && !relayed {
            self.lose_peer(handler, id);
            return true;
        }
        false
    }

    /// Does all that a connection is ready for, each thing within its budget, and settles it.
    ///
    /// Called for an event, and for a connection that has its turn in the ready queue.
    pub(super) fn serve(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if record.flags.has(Flags::DIVERTED) {
            if record.cold_flags.has(ColdFlags::RELAYED) {
                return self.serve_relayed(handler, id);
            }
            self.check_pooled(handler, id);
            // While it is idle in its pool nothing is for its handler, whatever a late callback asked for.
            self.shared.table.at(id.index()).flags.remove(Flags::CALLBACK_DUE);
        }
        self.settle_reached(handler, id);
        let record = self.shared.table.at(id.index());
        if matches!(record.state(), State::Connected | State::Idle) {
            // Output first: what is queued may keep the connection from being read.
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

    /// Does what callbacks of others have asked of an open connection in this turn, before it is
    /// served: they may have ended its last request, behind which no input is handed over.
    fn settle_reached(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let open = matches!(record.state(), State::Connected | State::Idle);
        if open && record.flags.has(Flags::DIRTY) {
            self.flush(id);
            self.settle(handler, id);
        }
    }

    /// [`Reactor::serve`] for an open connection that has nothing but input, while no subscriber
    /// listens to single messages.
    #[inline(always)]
    pub(super) fn serve_input(&mut self, handler: &mut H, id: ConnId) {
        if self.read_loop(handler, id, false) != Read::Rested {
            return self.settle(handler, id);
        }
        self.call_idle(handler, id, "on_data or on_idle");
        // The usual end of a message: idle as before it, and nothing to do.
        let record = self.shared.table.at(id.index());
        let inputs = record.deadline_inputs();
        if record.flags.has(Flags::UNSETTLED) {
            if record.is_quiet() {
                self.settle_given_back(handler, id, inputs);
            } else {
                self.settle(handler, id);
            }
        } else {
            self.arm_changed(handler, id, inputs);
        }
    }

    /// Sends what callbacks of other connections wrote to this one, and does what they asked of it.
    /// It is not read: that is the matter of its own events.
    pub(super) fn serve_dirty(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if record.cold_flags.has(ColdFlags::RELAYED) && record.flags.has(Flags::DATA_DUE) {
            // Its relay begins.
            self.serve_relayed(handler, id);
        } else if matches!(self.shared.table.at(id.index()).state(), State::Connected | State::Idle)
        {
            self.flush(id);
            self.settle(handler, id);
        } else {
            self.serve(handler, id);
        }
    }

    /// Flushes queued output, and runs the callbacks that are due without new bytes.
    fn serve_due(&mut self, handler: &mut H, id: ConnId) {
        self.flush(id);
        if self.shared.table.at(id.index()).flags.take(Flags::DRAINED) {
            self.call(id, "on_drained", |conn, session| handler.on_drained(conn, session));
            // Input that waited for the last of a reply is served behind each call: what this one wrote
            // may have left at once, and then there is another.
            if !planted(Bug::InputBehindDrainLost) {
                self.shared.table.at(id.index()).flags.insert(Flags::DATA_DUE);
            }
        }
        let record = self.shared.table.at(id.index());
        // Input of what is relayed or given back to its pool from now on is not for the handler.
        if record.is_reading_stopped()
            || record.requested().is_some()
            || record.flags.has(Flags::DIVERTED)
        {
            return;
        }
        if record.flags.take(Flags::DATA_DUE) {
            self.deliver_kept(handler, id);
        }
    }

    /// Serves those that stopped early in the turn before: no event will announce them again.
    #[inline]
    pub(super) fn serve_ready(&mut self, handler: &mut H) {
        if self.shared.ready.is_behind() {
            self.serve_some_ready(handler);
        }
    }

    #[inline(never)]
    fn serve_some_ready(&mut self, handler: &mut H) {
        let mut budget = self.begin_step(Step::Ready);
        while budget.allows(|| self.backend.now())
            && let Some(id) = self.shared.ready.pop()
        {
            if let Some(record) = self.shared.table.get_mut(id) {
                record.flags.remove(Flags::QUEUED_READY);
                self.guard(handler, |reactor, handler| reactor.serve(handler, id));
            }
        }
        self.end_step(&budget);
    }
}
