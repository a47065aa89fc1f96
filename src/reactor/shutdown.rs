//! The end of the reactor: carries out a stop as [`core::drain`](crate::core::drain) decides. Listeners
//! close, connections are served to the end or spread over a while, and what does not end in time is
//! aborted.

use std::fmt;
use std::time::Duration;

use super::Reactor;
use crate::backend::Backend;
use crate::close::CloseReason;
use crate::core::budget::Step;
use crate::core::deadlines::Deadline;
use crate::core::drain::{Due, Plan, Visit};
use crate::core::flags::Flags;
use crate::core::lifecycle::State;
use crate::core::pool::Stage;
use crate::core::stats::Stats;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::log::info;
use crate::state::{Purpose, stats};
use crate::time::Instant;

/// What a reactor did, from its start to the end of its shutdown.
///
/// It displays as one line: how many connections ended, by reason.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The final counters.
    pub stats: Stats,
    /// How long the reactor lived.
    pub uptime: Duration,
    /// How long the shutdown took.
    pub shutdown: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats.fmt(f)
    }
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Begins, hardens and ends the shutdown, as was requested.
    #[inline]
    pub(super) fn progress_shutdown(&mut self, handler: &mut H) {
        if self.woken || self.shared.shutdowns_asked > 0 || self.drain.is_active() {
            self.step_shutdown(handler);
        }
    }

    /// Acts on new requests, and makes the next step of what is under way.
    #[inline(never)]
    fn step_shutdown(&mut self, handler: &mut H) {
        let of_callbacks = self.shared.shutdowns_asked;
        let requests = self.mailbox.shutdowns().saturating_add(of_callbacks);
        let is_asked = self.drain.handle_requests(requests, of_callbacks);
        if is_asked || self.drain.is_active() {
            self.begin_step(Step::Shutdown);
        }
        if is_asked {
            if self.drain.begin(self.shared.now) {
                self.begin_shutdown(handler);
            }
            // A callback that panicked just now may have made the reactor fail.
            if self.drain.wants_hard() {
                self.hard_stop();
            }
        }
        if self.drain.is_draining() && self.has_drained() {
            self.stop_accepting(handler);
        }
        self.step_shutdown_walk();
        let table = &self.shared.table;
        if self.drain.note_left(table.counted(), table.len()) {
            self.close_listeners(true);
            self.close_pools(handler);
        }
    }

    /// Accepts what waits in the backlogs, in as many turns as that takes, unless the reactor has
    /// failed, and sets the alarm that makes the stop hard.
    fn begin_shutdown(&mut self, handler: &mut H) {
        self.shared.shutdown_begun = true;
        if !self.drain.has_failed() {
            self.begin_draining(handler);
        }
        if let Some(at) = self.drain.hard_at(self.shared.now) {
            self.shared.set_alarm(at, Purpose::HardStop);
        }
    }

    /// The backlogs are empty: closes the listeners, notifies the handler, and begins to announce
    /// the shutdown to the connections.
    fn stop_accepting(&mut self, handler: &mut H) {
        self.drain.end_draining();
        self.accepting.gate.end_draining();
        info!(connections = self.shared.table.len(), "shutting down");
        self.shared.stopping = true;
        self.close_listeners(false);
        self.shared.stop_checks();
        self.shared.end_pools(Stage::Drains);
        self.call_loop("on_shutdown", |cx| handler.on_shutdown(cx));
        self.drain.announce();
    }

    /// Makes the next step of the walk over all connections that is under way, if one is.
    fn step_shutdown_walk(&mut self) {
        let Some(step) = self.drain.step_walk(&self.shared.table) else { return };
        for index in step.places {
            let Some(id) = self.shared.table.id_in(index) else { continue };
            match step.visit {
                Visit::Announce { .. } => self.announce_shutdown(id),
                Visit::End(reason) => self.ask_to_end(id, reason),
            }
        }
        if let Visit::Announce { reached, is_last } = step.visit {
            self.shared.announced = reached;
            if is_last {
                self.check_shutdown();
            }
        }
    }

    fn ask_to_end(&mut self, id: ConnId, reason: CloseReason) {
        self.shared.table.at(id.index()).request_close(reason);
        self.shared.mark_dirty(id);
    }

    /// The shutdown reaches a connection. Requests that have been read and not served yet are still
    /// served, so how much has been read is noted.
    fn announce_shutdown(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if record.state() == State::Connected && record.bytes_in > 0 {
            record.cold_mut().read_before_stop = record.bytes_in;
        }
        let plan = self.drain.announce_to(record, self.shared.now, || self.backend.entropy());
        self.carry_out(id, plan);
    }

    /// Checks some of the connections that the shutdown waits for, and sets the alarm that checks
    /// the next ones.
    pub(super) fn check_shutdown(&mut self) {
        let (table, now) = (&self.shared.table, self.shared.now);
        let Some((places, again)) = self.drain.step_checks(table, now) else { return };
        let serves = table.inbound() > 0;
        for index in places {
            let Some(id) = self.shared.table.id_in(index) else { continue };
            let record = self.shared.table.at(index);
            let plan = self.drain.check(record, serves, now, || self.backend.entropy());
            self.carry_out(id, plan);
        }
        self.shared.set_alarm(again, Purpose::CheckShutdown);
    }

    fn carry_out(&mut self, id: ConnId, plan: Plan) {
        match plan {
            Plan::Keep => {}
            Plan::EndAt(at) => {
                let record = self.shared.table.at(id.index());
                record.clocks.set(Deadline::Lifetime, at);
                record.flags.insert(Flags::HAS_LIFETIME.and(Flags::REARM));
                self.shared.mark_dirty(id);
            }
            Plan::End => self.ask_to_end(id, CloseReason::Shutdown),
        }
    }

    /// The time to end has come for a connection that waited for its peer. It is read once more:
    /// the peer may begin in this moment.
    pub(super) fn end_waiting(&mut self, handler: &mut H, id: ConnId) {
        self.final_read(handler, id);
        let record = self.shared.table.at(id.index());
        record.clocks.set(Deadline::Lifetime, Instant::FAR_FUTURE);
        match self.drain.end_due(record, self.shared.now) {
            Due::Keep => {}
            Due::EndAt(at) => {
                record.clocks.set(Deadline::Lifetime, at);
                record.flags.insert(Flags::REARM);
            }
            Due::End => self.begin_closing(handler, id, CloseReason::Shutdown),
            Due::Retire => record.retire(CloseReason::Shutdown),
        }
    }

    /// Makes the stop hard: closes all listeners, and begins to reset all connections.
    pub(super) fn hard_stop(&mut self) {
        if self.drain.harden() {
            self.close_listeners(true);
            self.shared.end_pools(Stage::Halts);
        }
    }

    pub(super) fn report(&self) -> Report {
        let now = self.shared.now;
        Report {
            stats: stats(&self.shared.counters),
            uptime: now - self.started_at,
            shutdown: self.drain.begun_at().map_or(Duration::ZERO, |begun_at| now - begun_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::audit::tests::{Echo, MANY, crowd};
    use super::*;
    use crate::config::Config;
    use crate::sim::Sim;

    #[test]
    fn a_shutdown_reaches_all_of_many_in_steps() {
        let mut sim = Sim::new(1);
        let (mut reactor, mut ids) = crowd(&mut sim, Config::default(), MANY);
        reactor.turn(&mut Echo, Some(Duration::ZERO)).unwrap();
        reactor.handle().shutdown();
        let mut turns = 0;
        while !reactor.drain.has_begun() || reactor.drain.has_work() {
            reactor.turn_in_steps(&mut sim);
            // Meanwhile some end that it has reached, and others.
            for id in [ids.swap_remove(turns), ids.pop().unwrap()] {
                reactor.shared.remove(id);
            }
            turns += 1;
        }
        assert!(turns < 20, "{turns}");
        let reached = |id: &&ConnId| {
            let flags = reactor.shared.table.get(**id).map(|record| record.flags);
            flags.is_some_and(|flags| flags.has(Flags::HAS_LIFETIME))
        };
        assert_eq!(ids.iter().filter(reached).count(), ids.len());
        // All get their end in their time.
        let until = reactor.clock() + Duration::from_secs(7);
        while !reactor.is_finished() && reactor.clock() < until {
            reactor.turn_in_steps(&mut sim);
        }
        assert!(reactor.is_finished(), "{} are left", reactor.shared.table.len());
    }

    #[test]
    fn a_hard_stop_ends_all_of_many_in_few_turns() {
        let mut sim = Sim::new(1);
        let (mut reactor, _) = crowd(&mut sim, Config::default(), MANY);
        reactor.turn(&mut Echo, Some(Duration::ZERO)).unwrap();
        reactor.handle().shutdown();
        reactor.handle().shutdown();
        let mut turns = 0;
        while !reactor.is_finished() {
            reactor.turn_in_steps(&mut sim);
            turns += 1;
        }
        // As many connections are closed in a turn as that step's budget allows.
        assert!(turns < 2 * MANY / 1_024, "{turns}");
    }
}
