//! Ends that wait until the peer has what the kernel still holds for it.
//!
//! A TCP socket that is closed answers the next byte of its peer with a reset, and a reset destroys
//! what the peer has not received yet. RFC 9112, section 9.6, therefore asks a server to read on until
//! the client closed or its own TCP stack has the acknowledgement of the last reply. So each end that
//! closes a socket without a reset asks the kernel first what is unacknowledged
//! ([`Backend::unsent`]). Only ends ask: no message pays for it. Closing a Unix-domain socket destroys
//! nothing that its peer has yet to read.

use super::Reactor;
use crate::backend::Backend;
use crate::close::Timeout;
use crate::core::deadlines::{Deadline, check_pause};
use crate::core::flags::ColdFlags;
use crate::core::record::Delivery;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::planted::{Bug, planted};
use crate::state::LoopState;
use crate::time::Instant;

/// What an end that depends on delivery is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Acknowledged {
    /// Nothing is unacknowledged.
    Delivered,
    /// The peer acknowledges more and more.
    Waits,
    /// It has acknowledged nothing for too long.
    Stuck,
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Bytes that a close could destroy: written to TCP, and not acknowledged by the peer. Those to a
    /// broken side of a relay are lost already.
    pub(super) fn undelivered(&mut self, id: ConnId) -> u64 {
        let record = self.shared.table.at(id.index());
        let lost = record.peer.ip().is_none() || record.cold_flags.has(ColdFlags::BROKEN);
        if lost || planted(Bug::TailCutOff) {
            return 0;
        }
        match &self.slots[id.index()].stream {
            Some(stream) => self.backend.unsent(stream).unwrap_or(0),
            None => 0,
        }
    }

    /// The idle time of a connection, or the silence of a tunnel, is over. Puts the end off while
    /// the peer acknowledges what the kernel holds for it, and ends the connection with
    /// [`Timeout::Write`] if it does not for as long as that allows. Returns whether the end was put
    /// off or has come.
    ///
    /// A tunnel, and a connection without an idle time, come here after each write timeout of
    /// silence, so that a dead peer is found by what it does not acknowledge. TCP_USER_TIMEOUT would
    /// find it too, but cannot tell it from a slow reader: it also counts the time from the first
    /// probe of a closed window until the window takes a whole segment.
    pub(super) fn awaits_delivery(
        &mut self,
        handler: &mut H,
        id: ConnId,
        deadline: Deadline,
    ) -> bool {
        match self.check_delivery(id, deadline) {
            Acknowledged::Delivered => !self.is_over(id, deadline),
            Acknowledged::Waits => true,
            Acknowledged::Stuck => {
                self.time_out(handler, id, Timeout::Write);
                true
            }
        }
    }

    fn check_delivery(&mut self, id: ConnId, deadline: Deadline) -> Acknowledged {
        let unsent = self.undelivered(id);
        let LoopState { table, profiles, now, .. } = &mut self.shared;
        let now = *now;
        let record = table.at(id.index());
        let clock = record.clocks.since(deadline);
        let known = record.delivery_at(clock);
        if unsent == 0 && !record.has_output() {
            return Acknowledged::Delivered;
        }
        let acked = record.bytes_out.saturating_sub(unsent);
        let (period, patience) = {
            let durations = record.durations(profiles);
            (durations.of(deadline), durations.delivery(deadline))
        };
        let mut delivery = known.unwrap_or(Delivery {
            clock,
            since: clock,
            check_at: Instant::FAR_FUTURE,
            begun_at: now,
            acked,
            progress_at: now,
            ends: false,
        });
        if acked > delivery.acked {
            delivery.acked = acked;
            delivery.progress_at = now;
        }
        // Where output is queued as well the write deadline judges, by checks of its own.
        let judged =
            record.has_output() && record.durations(profiles).of(Deadline::Write) < u64::MAX;
        if judged {
            delivery.progress_at = now;
        }
        let stood_still = now.nanos_since(delivery.progress_at);
        if stood_still >= patience {
            return Acknowledged::Stuck;
        }
        let pause = check_pause(now.nanos_since(delivery.begun_at), patience);
        let pause = pause.min(patience - stood_still).min(period);
        // A clock that is set so is due when the pause is over. No traffic sets it to the same time.
        delivery.clock = now.before(period - pause).before(1);
        record.clocks.set(deadline, delivery.clock);
        record.cold_mut().delivery = Some(delivery);
        Acknowledged::Waits
    }

    /// Whether a connection that has delivered everything has come to its end. One that has more
    /// time than the deadline's period, which is shortened to find dead peers, comes again.
    fn is_over(&mut self, id: ConnId, deadline: Deadline) -> bool {
        let LoopState { table, profiles, now, .. } = &mut self.shared;
        let record = table.at(id.index());
        let clock = record.clocks.since(deadline);
        let since = record.delivery_at(clock).map_or(clock, |delivery| delivery.since);
        let durations = record.durations(profiles);
        let (period, total) = (durations.of(deadline), durations.total(deadline));
        let end = since.after(total);
        if end <= *now || planted(Bug::EarlyFire) {
            return true;
        }
        let clock = now.before(period - period.min(end.nanos_since(*now))).before(1);
        record.clocks.set(deadline, clock);
        let acked = record.bytes_out;
        let (begun_at, progress_at) = (*now, *now);
        let check_at = Instant::FAR_FUTURE;
        let delivery =
            Delivery { clock, since, check_at, begun_at, acked, progress_at, ends: false };
        record.cold_mut().delivery = Some(delivery);
        false
    }

    /// A connection is closed for a reason that would not wait for the peer's FIN, and is kept until
    /// the peer has everything.
    pub(super) fn await_last_delivery(&mut self, id: ConnId, unsent: u64) {
        let now = self.shared.now;
        let record = self.shared.table.at(id.index());
        let acked = record.bytes_out.saturating_sub(unsent);
        record.clocks.set(Deadline::Flush, now);
        record.cold_mut().delivery = Some(Delivery {
            clock: now,
            since: now,
            check_at: now,
            begun_at: now,
            acked,
            progress_at: now,
            ends: true,
        });
    }

    /// A connection begins to linger: one that only waits for the last delivery is checked soon.
    pub(super) fn begin_linger(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if let Some(delivery) = record.cold().and_then(|cold| cold.delivery) {
            self.check_linger_again(id, delivery);
        }
    }

    /// Lets the next check of a lingering connection come after a pause.
    fn check_linger_again(&mut self, id: ConnId, delivery: Delivery) {
        let LoopState { table, profiles, now, .. } = &mut self.shared;
        let now = *now;
        let record = table.at(id.index());
        let durations = record.durations(profiles);
        let patience = durations.of(Deadline::Flush);
        let due = record.clocks.due(Deadline::Flush, durations);
        let pause = check_pause(now.nanos_since(delivery.begun_at), patience);
        let pause = pause.min(due.nanos_since(now));
        let check_at = now.after(pause);
        record.clocks.set(Deadline::Linger, now);
        record.clocks.set(Deadline::LingerRead, now);
        record.cold_mut().delivery = Some(Delivery { check_at, ..delivery });
        self.shared.arm(id, check_at);
    }

    /// Whether it is time to check what the peer of a lingering connection has acknowledged.
    pub(super) fn is_delivery_due(&mut self, id: ConnId) -> bool {
        let now = self.shared.now;
        self.shared.table.at(id.index()).delivery_due().is_some_and(|due| due <= now)
    }

    /// The time to wait for the peer's FIN is over. Puts the end off while the peer acknowledges
    /// what the kernel holds for it at [`Limits::flush_rate`](crate::Limits::flush_rate), resets
    /// the connection if it does not, and lets the time begin anew once nothing is unacknowledged.
    /// Returns whether the end was put off or has come.
    pub(super) fn lingers_on(&mut self, id: ConnId) -> bool {
        let unsent = self.undelivered(id);
        let LoopState { table, profiles, bounds, now, .. } = &mut self.shared;
        let now = *now;
        let record = table.at(id.index());
        let waits = record.cold().and_then(|cold| cold.delivery);
        let acked = record.bytes_out.saturating_sub(unsent);
        if unsent == 0 {
            let Some(delivery) = waits else { return false };
            record.cold_mut().delivery = None;
            if delivery.ends {
                self.release(id);
            } else {
                record.clocks.set(Deadline::Linger, now);
                record.clocks.set(Deadline::LingerRead, now);
            }
            return true;
        }
        let mut delivery = waits.unwrap_or_else(|| {
            record.clocks.set(Deadline::Flush, now);
            let (begun_at, progress_at) = (now, now);
            let (clock, since, check_at) = (now, now, now);
            Delivery { clock, since, check_at, begun_at, acked, progress_at, ends: false }
        });
        let moved = acked.saturating_sub(delivery.acked);
        record.credit_flush(moved, bounds.flush_rate, profiles, now);
        delivery.acked = acked.max(delivery.acked);
        if record.clocks.due(Deadline::Flush, record.durations(profiles)) <= now {
            self.lose_patience(id);
        } else {
            self.check_linger_again(id, delivery);
        }
        true
    }
}
