//! What is done when the loop comes near what it can bear: idle connections stay for less long, those
//! idle longest are evicted, and the greatest holders of buffers are shed.
//!
//! [`core::pressure`](crate::core::pressure) says how near it is, and
//! [`core::evict`](crate::core::evict) which connections go.

use bytes::BytesMut;

use super::Reactor;
use crate::backend::Backend;
use crate::close::CloseReason;
use crate::config::Limits;
use crate::core::evict::{Eviction, owners, sharers, shed_to};
use crate::core::output::allocation;
use crate::core::pressure::Permille;
use crate::handler::Handler;
use crate::id::{AlarmId, ConnId};
use crate::log::{LogLimiter, debug, warn};
use crate::planted::{Bug, planted};
use crate::state::{LoopState, Purpose};

/// Which connections are evicted next, and what checks the pressure.
#[derive(Debug)]
pub(super) struct Overload {
    pub(super) eviction: Eviction,
    /// What checks the pressure again.
    alarm: Option<AlarmId>,
    full_buffers: LogLimiter,
    pressures: LogLimiter,
}

impl Overload {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            eviction: Eviction::new(limits),
            alarm: None,
            full_buffers: LogLimiter::default(),
            pressures: LogLimiter::default(),
        }
    }

    /// Whether a search for idle connections goes on.
    #[inline]
    pub(super) const fn is_searching(&self) -> bool {
        self.eviction.is_searching()
    }
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Keeps the sums over all connections true: how many are in which state, and what they hold.
    #[inline]
    pub(super) fn account(&mut self, id: ConnId) {
        let buffered = self.shared.buffered();
        let LoopState { table, counters, bounds, .. } = &mut self.shared;
        let record = table.at(id.index());
        record.count_state(&counters.states);
        let held = record.output_held() + allocation(self.slots[id.index()].input.capacity());
        let pressed = buffered >= bounds.buffered_pressed;
        if record.buffered as usize != held || pressed || counters.buffered.get() != buffered {
            self.account_held(id, held);
        }
    }

    /// A connection holds so many bytes now.
    #[inline(never)]
    pub(super) fn account_held(&mut self, id: ConnId, held: usize) {
        self.shared.set_owned(id, held);
        self.bound_buffers();
        let buffered = self.shared.buffered();
        if buffered >= self.shared.bounds.buffered_pressed {
            self.watch_pressure();
        }
    }

    /// Sheds some connections if all together hold too much. What callbacks wrote to other
    /// connections is sent first ([`Reactor::settle_dirty`] comes here again), as most of it is
    /// gone then; meanwhile the excess is no more than one connection may queue.
    #[inline]
    pub(super) fn bound_buffers(&mut self) {
        let buffered = self.shared.buffered();
        let bounds = &self.shared.bounds;
        let waits = !self.shared.dirty.is_empty() && buffered <= bounds.buffered_all;
        if buffered > bounds.buffered_max && (!waits || planted(Bug::ShedUnsent)) {
            self.shed();
        }
    }

    /// What was written to other connections has been sent, as far as the kernel took it: sheds some
    /// connections if all together still hold too much.
    pub(super) fn bound_sent(&mut self) {
        if self.shared.buffered() > self.shared.bounds.buffered_max {
            self.shed();
        }
    }

    /// Aborts those that hold the most, until a sixteenth of what all may hold is free. What counts
    /// is the memory that an abort frees; only if that is not enough those are aborted that queue
    /// the largest shared pieces, which are freed with their last queue.
    fn shed(&mut self) {
        self.shed_some(owners(&self.shared.table));
        if self.shared.buffered() > self.shared.bounds.buffered_max {
            self.shed_some(sharers(&self.shared.table));
        }
        let times = self.overload.full_buffers.times(self.shared.now);
        self.warn_of_pressure("buffers", times);
    }

    /// Frees the buffers of connections, in this order, until all together hold little enough, and
    /// asks these connections to end. The buffers are freed here and now: memory is bounded at
    /// every moment, not only between turns.
    fn shed_some(&mut self, holders: Vec<(ConnId, u64)>) {
        let enough = shed_to(self.shared.bounds.buffered_max);
        for (id, held) in holders {
            if self.shared.buffered() <= enough {
                return;
            }
            debug!(%id, held, "shed: all buffers together are too large");
            self.drop_output(id);
            // What was not dialled yet may have no slot.
            if let Some(slot) = self.slots.get_mut(id.index()) {
                slot.input = BytesMut::new();
            }
            self.shared.set_owned(id, 0);
            self.shared.table.at(id.index()).request_close(CloseReason::BufferLimit);
            self.shared.mark_dirty(id);
        }
    }

    /// Checks the pressure soon, and until it has gone.
    pub(super) fn watch_pressure(&mut self) {
        if self.overload.alarm.is_none() {
            let at = self.shared.now;
            self.overload.alarm = Some(self.shared.set_alarm(at, Purpose::Relieve));
        }
    }

    /// Closes idle connections as the pressure demands, and sets the alarm for the next check while
    /// there is any.
    pub(super) fn relieve(&mut self, handler: &mut H) {
        self.overload.alarm = None;
        let pressure = self.shared.pressure();
        if pressure < self.shared.bounds.pressed_from {
            self.overload.eviction.end_walk();
            return;
        }
        self.close_long_idle(handler, pressure);
        let pause = self.overload.eviction.end_step(&self.shared.table);
        let now = self.shared.now;
        if self.overload.eviction.is_critical(pressure, now) {
            let times = self.overload.pressures.times(now);
            self.warn_of_pressure("the loop", times);
            if self.overload.eviction.evicts_idle_at_limit() {
                self.evict(handler);
            }
        }
        let at = self.shared.now + pause;
        self.overload.alarm = Some(self.shared.set_alarm(at, Purpose::Relieve));
    }

    /// Evicts some of those that have been idle for longer than is allowed under `pressure`.
    fn close_long_idle(&mut self, handler: &mut H, pressure: Permille) {
        let LoopState { table, profiles, now, .. } = &self.shared;
        for candidate in self.overload.eviction.step_walk(table, profiles, pressure, *now) {
            if self.may_be_closed(candidate.1) == Some(true) {
                self.evict_candidate(handler, candidate);
            }
        }
    }

    fn warn_of_pressure(&self, of: &'static str, times: Option<u64>) {
        if let Some(times) = times {
            let (table, buffered) = (&self.shared.table, self.shared.buffered());
            warn!(of, connections = table.len(), buffered, times, "overloaded");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::audit::tests::{Echo, MANY, crowd};
    use crate::config::Config;
    use crate::core::evict::{CLOSED_PER_STEP, EVICTIONS_MAX};
    use crate::sim::Sim;

    #[test]
    fn those_idle_for_too_long_are_closed_in_steps() {
        let mut sim = Sim::new(1);
        let (mut reactor, _) = crowd(&mut sim, Config::default(), MANY);
        sim.advance(Duration::from_secs(60));
        reactor.turn(&mut Echo, Some(Duration::ZERO)).unwrap();
        reactor.watch_pressure();
        let (start, mut most) = (reactor.clock(), 0);
        while reactor.shared.table.counted() > MANY * 9 / 10 {
            let before = reactor.shared.table.counted();
            reactor.turn_in_steps(&mut sim);
            most = most.max(before - reactor.shared.table.counted());
        }
        assert!(most <= CLOSED_PER_STEP + EVICTIONS_MAX as usize, "{most} in one turn");
        assert!(reactor.clock() - start < Duration::from_secs(1));
    }
}
