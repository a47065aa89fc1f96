//! The one way a connection ends: reason, final reply, flush, FIN, linger, release.

use super::Reactor;
use super::accept::send_fin_and_drain;
use crate::address::Address;
use crate::backend::{Backend, Token};
use crate::close::CloseMode;
use crate::close::{CloseReason, Closed, Timeout};
use crate::core::budget;
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::{State, Transition};
use crate::core::record::Record;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::log::debug;
use crate::planted::{Bug, planted};
use crate::state::{LoopState, log_state};

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Any open state → [`State::Closing`], for `reason`, which is final; or for what was asked for
    /// before, if only that cuts off what the peer has not received.
    pub(super) fn begin_closing(&mut self, handler: &mut H, id: ConnId, reason: CloseReason) {
        let record = self.shared.table.at(id.index());
        debug_assert!(record.reason.is_none(), "{id} ends once");
        // What was asked for in this turn may have dropped output, and a FIN would say that this was all.
        let reason = match record.take_requested() {
            Some(asked) if cuts_off(asked) && !cuts_off(reason) => asked,
            _ => reason,
        };
        let mode = reason.mode();
        let before = record.state();
        record.reason = Some(reason);
        record.flags.remove(Flags::ACTION_DUE.and(Flags::HAS_TIMER).and(Flags::PAUSED));
        record.cold_flags.set(ColdFlags::FINAL_REPLY, mode == CloseMode::Flush);
        record.apply(Transition::Close);
        log_state(record);
        let (tied, marks) = (record.is_tied(), record.cold_flags);
        if tied {
            self.loosen_ties(id, reason);
        }
        self.call(id, "on_closing", |conn, session| handler.on_closing(conn, session, &reason));
        if tied {
            self.cut_ties(id, reason, marks);
        }
        let relayed = marks.has(ColdFlags::RELAYED);
        match mode {
            // Nothing is sent any more: the usual end of a peer that is gone.
            // If it is not gone, a FIN would tell the peer of a relayed one that it has had everything.
            CloseMode::Drop => self.drop_output_and_release(id, relayed),
            CloseMode::Reset => self.drop_output_and_release(id, true),
            CloseMode::Break => self.begin_break(id),
            CloseMode::Close | CloseMode::Flush => self.begin_last_flush(id, reason, before),
        }
    }

    /// The part of an end that comes before `on_closing`, for a connection that others may name.
    #[cold]
    fn loosen_ties(&mut self, id: ConnId, reason: CloseReason) {
        let record = self.shared.table.at(id.index());
        if let Some(cold) = record.cold_if_any() {
            cold.delivery = None;
        }
        let (in_pools, feeds) = (record.is_in_pools(), record.feeds());
        if in_pools {
            self.shared.replay(id, reason);
        }
        if feeds {
            self.shared.end_feeding(id);
        }
    }

    /// The part of an end that comes behind `on_closing`, for a connection with these marks before it.
    #[cold]
    fn cut_ties(&mut self, id: ConnId, reason: CloseReason, marks: ColdFlags) {
        if marks.has(ColdFlags::IN_POOLS) {
            self.leave_pools(id, reason);
        }
        if marks.has(ColdFlags::AT_ENDPOINT) {
            self.shared.leave_endpoint(id, reason);
        }
        if marks.has(ColdFlags::RELAYED) {
            self.shared.end_relay(id, reason);
        }
    }

    /// Ends a connection whose peer is to get all that was written to it. `before` is the state that
    /// it left.
    fn begin_last_flush(&mut self, id: ConnId, reason: CloseReason, before: State) {
        let record = self.shared.table.at(id.index());
        record.cold_flags.remove(ColdFlags::FINAL_REPLY);
        let eof = record.flags.has(Flags::EOF);
        // The peer's last bytes are worth waiting for only if they could turn our close into a
        // reset that destroys a reply: nginx's rule for lingering_close.
        let quiet_stop = reason == CloseReason::Shutdown && before == State::Idle;
        // A peer that has had our FIN for that long is not waited for again.
        let had_fin = reason == CloseReason::RelayEnded && record.flags.has(Flags::FIN);
        let waited = reason == CloseReason::Timeout(Timeout::HalfClosed) || had_fin;
        // What a pool's connection or a check has sent and its peer not acknowledged, no reply will be
        // read for.
        let pooled = record.cold_flags.has(ColdFlags::POOLED.and(ColdFlags::CHECK));
        let quick = reason.mode() == CloseMode::Close || quiet_stop || waited || pooled;
        let lingers = record.flags.has(Flags::WROTE) && !eof && !quick;
        record.cold_flags.set(ColdFlags::LINGERING, lingers);
        let mut flushes = reason.mode() == CloseMode::Flush;
        if quick && !eof && !pooled {
            // What the peer has not received yet, the next byte from it would destroy.
            let unsent = self.undelivered(id);
            if unsent > 0 {
                self.await_last_delivery(id, unsent);
                self.shared.table.at(id.index()).cold_flags.insert(ColdFlags::LINGERING);
                flushes = true;
            }
        }
        // There is nothing to send it to before a connection stands.
        if flushes && before != State::Connecting {
            // What `on_closing` may have asked for is done first.
            self.progress_closing(id);
        } else {
            self.drop_output_and_release(id, false);
        }
    }

    /// Ends a connection whose peer is to get all that was written to it and then a reset, as a FIN
    /// would say that this is all there was.
    fn begin_break(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        record.cold_flags.insert(ColdFlags::RESET.and(ColdFlags::LINGERING));
        self.progress_closing(id);
    }

    /// Resets a connection that has no output left, once the peer has everything: a reset destroys
    /// what it has not received.
    fn progress_break(&mut self, id: ConnId) {
        let unsent = self.undelivered(id);
        let record = self.shared.table.at(id.index());
        if unsent == 0 {
            self.release(id);
        } else if !record.flags.has(Flags::FIN) || record.cold_mut().delivery.is_none() {
            // No FIN is sent; but from here on it waits as one that has sent its FIN does.
            record.flags.insert(Flags::FIN);
            self.await_last_delivery(id, unsent);
            self.note_lingering(id);
        }
    }

    /// Flushes what is left, then waits for the peer's FIN if that is worth it.
    pub(super) fn progress_closing(&mut self, id: ConnId) {
        if self.shared.table.at(id.index()).flags.has(Flags::REAPED) {
            return;
        }
        if self.shared.table.at(id.index()).requested().is_none() {
            self.flush(id);
            self.discard_input(id);
        }
        let record = self.shared.table.at(id.index());
        record.flags.remove(Flags::ACTION_DUE);
        // The peer is gone, or a deadline passed.
        if let Some(reason) = record.take_requested().or_else(|| record.take_broken()) {
            let broken = record.cold_flags.has(ColdFlags::RESET);
            let reset = reason.mode() == CloseMode::Reset || broken;
            return self.drop_output_and_release(id, reset);
        }
        if record.has_output() {
            return;
        }
        if record.cold_flags.has(ColdFlags::RESET) {
            return self.progress_break(id);
        }
        let Some(stream) = self.slots[id.index()].stream.as_mut() else {
            return self.release(id);
        };
        if !record.cold_flags.has(ColdFlags::LINGERING) || record.flags.has(Flags::EOF) {
            self.release(id);
        } else if !record.flags.has(Flags::FIN) {
            match self.backend.shutdown_write(stream) {
                Ok(()) => {
                    record.flags.insert(Flags::FIN);
                    self.note_lingering(id);
                }
                Err(_) => self.release(id),
            }
        } else {
            // The handler had sent it before.
            self.note_lingering(id);
        }
    }

    #[inline(always)]
    pub(super) fn drop_output_and_release(&mut self, id: ConnId, reset: bool) {
        let record = self.shared.table.at(id.index());
        record.cold_flags.set(ColdFlags::RESET, reset);
        if record.has_output() {
            self.drop_output(id);
            self.release(id);
        } else if record.release() {
            let holds = record.buffered > 0;
            self.note_released(id, holds);
        }
    }

    #[inline]
    pub(super) fn drop_output(&mut self, id: ConnId) {
        self.shared.clear_output(id);
    }

    /// Nothing is left to flush or to wait for: the record goes at the end of the turn. From here on
    /// the connection does not count against what its client may have.
    #[inline(always)]
    pub(super) fn release(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if record.release() {
            let holds = record.buffered > 0;
            self.note_released(id, holds);
        }
    }

    #[inline(always)]
    fn note_released(&mut self, id: ConnId, holds: bool) {
        self.shared.reaped.push(id);
        // It may be reaped some turns later. The output that it held is gone now, and input that its
        // last callback left is there until then.
        if holds || self.slots.get(id.index()).is_some_and(|slot| slot.input.capacity() > 0) {
            self.account(id);
        }
        self.depart(id);
    }

    /// Gives up a connection that never got a session.
    pub(super) fn discard(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let panicked = record.requested() == Some(CloseReason::HandlerPanic);
        record.cold_flags.set(ColdFlags::RESET, panicked);
        if !panicked {
            debug!(%id, "the handler refuses a connection");
            if let Some(stream) = self.slots[id.index()].stream.as_mut() {
                send_fin_and_drain(&mut self.backend, stream, &mut self.read_buffer);
            }
        }
        self.shared.counters.refused.add(1);
        if self.shared.table.at(id.index()).is_in_pools() {
            self.leave_pools(id, CloseReason::HandlerClose);
        }
        if self.shared.table.at(id.index()).is_of_endpoint() {
            let reason =
                if panicked { CloseReason::HandlerPanic } else { CloseReason::HandlerClose };
            self.shared.leave_endpoint(id, reason);
        }
        self.release(id);
    }

    /// [`State::Closing`] → [`State::Closed`] for all that are done. Their places are free only
    /// when all have had their callback: an id must not come back within a turn.
    #[inline]
    pub(super) fn reap(&mut self, handler: &mut H) {
        if !self.shared.reaped.is_empty() {
            self.reap_some(handler);
        }
    }

    #[inline(never)]
    fn reap_some(&mut self, handler: &mut H) {
        let mut budget = self.begin_step(budget::Step::Closes);
        // What `on_closed` may cause is the next turn's.
        let mut reaped = std::mem::take(&mut self.shared.reaped);
        let mut done = 0;
        for id in &reaped {
            if !budget.allows(|| self.backend.now()) {
                break;
            }
            self.close(handler, *id);
            done += 1;
        }
        for id in &reaped[..done] {
            if planted(Bug::LeakedSlot) {
                continue;
            }
            self.shared.remove(*id);
        }
        self.shared.count_connections();
        self.note_release();
        if done < reaped.len() || !self.shared.reaped.is_empty() {
            reaped.drain(..done);
            reaped.append(&mut self.shared.reaped);
        } else {
            reaped.clear();
        }
        self.shared.reaped = reaped;
        self.end_step(&budget);
    }

    /// Tells the handler that a connection is gone, and closes its socket.
    #[inline(always)]
    fn close(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let slot = &mut self.slots[id.index()];
        let reset = record.cold_flags.has(ColdFlags::RESET);
        let unseen = !reset && ends_unseen(record);
        let stream = slot.stream.take();
        if slot.input.capacity() > 0 {
            slot.input = bytes::BytesMut::new();
        }
        if let (Some(reason), Some(session)) = (record.reason, slot.session.take()) {
            record.apply(Transition::Release);
            log_state(record);
            self.shared.counters.count_close(reason);
            self.call_shared("on_closed", |cx| {
                // Made here it is not copied, and costs a handler nothing that does not want it.
                let closed = closed(cx.shared, id, reason);
                handler.on_closed(cx, closed, session);
            });
        }
        if let Some(mut stream) = stream {
            if planted(Bug::LeakedDescriptor) {
                std::mem::forget(stream);
                return;
            }
            if unseen && !planted(Bug::NoShutdownBeforeClose) {
                // It fails if the peer is gone.
                let _ = self.backend.shut_down(&mut stream);
            }
            self.backend.close(stream, reset);
        } else {
            self.end_attempts(id);
            if !planted(Bug::LookupNotCancelled) {
                // Its name may still be looked up.
                self.backend.cancel_resolve(Token::of_conn(id));
            }
        }
    }
}

/// Whether the peer sees that it has not had all.
const fn cuts_off(reason: CloseReason) -> bool {
    matches!(reason.mode(), CloseMode::Reset | CloseMode::Break)
}

/// What there is to say of a connection that is gone.
#[inline(always)]
fn closed(shared: &mut LoopState, id: ConnId, reason: CloseReason) -> Closed {
    let record = shared.table.at(id.index());
    Closed {
        id,
        origin: record.origin(),
        peer: std::mem::replace(&mut record.peer, Address::Unnamed),
        reason,
        requests: record.requests,
        bytes_in: record.bytes_in,
        bytes_out: record.bytes_out,
        unsent: record.dropped(),
        opened_at: record.opened_at,
        age: shared.now.duration_since(record.opened_at),
    }
}

/// Whether the peer of a connection that is not reset learns of its end by our close only: we end
/// it, the peer has not sent its FIN, and we have not sent ours. A close says it if the descriptor is
/// the socket's only one, which we cannot know.
fn ends_unseen(record: &Record) -> bool {
    let said = record.flags.has(Flags::EOF.and(Flags::FIN));
    // Without a reason it was refused, with a FIN; and after an error there is no peer.
    !said && record.reason.is_some_and(|reason| reason.mode() != CloseMode::Drop)
}
