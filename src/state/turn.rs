//! How long turns, their steps and single callbacks take.

use std::time::Duration;

use super::LoopState;
use crate::core::budget::Step;
use crate::id::ConnId;
use crate::log::warn;
use crate::planted::{Bug, planted};
use crate::time::{Instant, nanos};

/// A turn of so many nanoseconds is long, and counted.
const LONG_TURN: u64 = 8_000_000;

impl LoopState {
    /// A callback returned, and the time has moved on while it and others before it ran: reports it
    /// if it was long itself. The coarse clock, which moves in steps of `step`, was read after the
    /// callback before, so that is known to within a step.
    pub(crate) fn note_long(
        &mut self,
        callback: &'static str,
        id: Option<ConnId>,
        now: Instant,
        step: Duration,
    ) {
        let from = if planted(Bug::LastCallbackBlamed) { self.now } else { self.seen };
        let most = now.nanos_since(from);
        let least = most.saturating_sub(nanos(step));
        self.advance_now(now);
        if most < self.bounds.stall || least < self.bounds.stall / 2 {
            return;
        }
        self.counters.stalls.add(1);
        self.counters.longest_callback.raise(least);
        if let Some(times) = self.stall_reports.times(self.now) {
            let (id, millis) = (id.map(tracing::field::display), least / 1_000_000);
            let step = self.step.label();
            warn!(callback, id, millis, step, times, "a callback kept the loop waiting");
        }
    }

    /// The time is read again within a turn. What has passed since it was read before goes to the
    /// account of the step at hand.
    pub(crate) fn advance_now(&mut self, now: Instant) {
        let since = self.now;
        self.now = since.max(now);
        self.lags = true;
        self.long_since.get_or_insert(since);
        self.step_nanos[self.step as usize] += self.now.nanos_since(since);
    }

    /// When the turn at hand began.
    pub(crate) fn turn_began(&self) -> Instant {
        self.long_since.unwrap_or(self.now)
    }

    /// A turn is over that was timed.
    #[cold]
    pub(crate) fn end_long_turn(&mut self) {
        if let Some(since) = self.long_since.take() {
            self.turn_nanos = self.now.nanos_since(since);
        }
    }

    /// Takes the turn that ends into account, long or not.
    pub(crate) fn note_turn(&mut self) {
        self.end_long_turn();
        let took = std::mem::take(&mut self.turn_nanos);
        if took >= LONG_TURN {
            self.counters.note_long_turn(took, Step::longest(&self.step_nanos));
        }
        self.step_nanos = Default::default();
        self.lag.note(took);
        self.lags = !self.lag.is_none();
    }
}
