//! The end of the reactor: listeners close, connections are served to the end or spread over a
//! while, and what does not end in time is aborted.

use std::time::Duration;
use std::{fmt, io};

use super::Reactor;
use crate::backend::Backend;
use crate::close::CloseReason;
use crate::config::{Config, SHUTDOWN_TIMEOUT};
use crate::core::burst::Burst;
use crate::core::deadlines::Deadline;
use crate::core::flags::Flags;
use crate::core::lifecycle::State;
use crate::core::stats::Stats;
use crate::core::table::Cursor;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::log::info;
use crate::state::{Purpose, TICK, stats};
use crate::time::{Instant, nanos, share_of};

/// No connection is closed sooner than this after its last reply: a request that crosses our FIN
/// on its way may be one that its client must not send twice.
const QUIET_LEAST: Duration = Duration::from_secs(1);

/// The least time between two walks over the connections that a shutdown waits for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a walk over all connections does during a shutdown, some of them in each turn.
#[derive(Clone, Copy, Debug)]
enum Walk {
    /// Each that is served for a peer is given a time to end.
    Announce(Cursor),
    /// Each is asked to end.
    End(Cursor, CloseReason),
}

/// How far the end of the reactor has come.
#[derive(Debug, Default)]
pub(super) struct Stop {
    begun_at: Option<Instant>,
    /// How often the end was requested, as far as the reactor has acted on it.
    answered: u32,
    /// As far as callbacks did.
    seen: u32,
    /// The listeners are open still, until their backlogs are empty.
    draining: bool,
    /// The walk that goes on in each turn.
    walk: Option<Walk>,
    /// How far the walk has come that is made again and again.
    looked: Cursor,
    /// Connections are no longer flushed.
    hard: bool,
    /// Only exempt connections are left, and are asked to end.
    alone: bool,
    failure: Option<&'static str>,
    /// It has begun, or failed.
    stirs: bool,
    /// Callbacks that panicked lately, where a limit is set.
    panics: Option<Burst>,
    /// Whether nothing is left to do.
    ended: bool,
}

impl Stop {
    pub(super) fn new(config: &Config) -> Self {
        Self { panics: config.panic_limit.map(Burst::new), ..Self::default() }
    }

    /// Whether nothing is left to do.
    #[inline]
    pub(super) const fn has_ended(&self) -> bool {
        self.ended
    }

    const fn has_begun(&self) -> bool {
        self.begun_at.is_some()
    }

    /// Whether a walk over all connections goes on.
    #[cfg(feature = "sim")]
    pub(super) const fn is_walking(&self) -> bool {
        self.walk.is_some()
    }

    /// Whether the next turn has something to do for the shutdown.
    #[inline]
    pub(super) const fn has_work(&self) -> bool {
        self.draining || self.walk.is_some()
    }

    /// How often callbacks asked for the end, as far as that has been seen to.
    #[inline]
    pub(super) const fn seen(&self) -> u32 {
        self.seen
    }

    /// Whether more was `asked` for than has been done.
    const fn is_due(&self, asked: u32) -> bool {
        asked > self.answered || (self.failure.is_some() && !self.hard)
    }

    /// Stops the reactor, and lets [`Reactor::turn`] say why.
    pub(super) fn fail(&mut self, why: &'static str) {
        self.failure.get_or_insert(why);
        self.stirs = true;
    }

    /// A callback panicked: stops the reactor if that is one more than
    /// [`Config::panic_limit`](crate::Config::panic_limit) allows.
    pub(super) fn count_panic(&mut self, now: Instant) {
        if self.panics.as_mut().is_some_and(|panics| panics.note(now)) {
            self.fail("more callbacks panicked than panic_limit allows");
        }
    }

    /// The failure that stopped the reactor, once everything has ended.
    #[inline]
    pub(super) fn failure(&self) -> io::Result<()> {
        if self.ended { self.outcome() } else { Ok(()) }
    }

    #[cold]
    fn outcome(&self) -> io::Result<()> {
        self.failure.map_or(Ok(()), |why| Err(io::Error::other(why)))
    }
}

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
    /// Begins, hardens and ends the shutdown, as was asked for.
    #[inline]
    pub(super) fn progress_shutdown(&mut self, handler: &mut H) {
        if self.woken || self.shared.shutdowns_asked > 0 || self.stop.stirs {
            self.answer_shutdown(handler);
        }
    }

    #[inline(never)]
    fn answer_shutdown(&mut self, handler: &mut H) {
        let asked = self.mailbox.shutdowns().saturating_add(self.shared.shutdowns_asked);
        if self.stop.is_due(asked) {
            self.stop.answered = asked;
            self.stop.seen = self.shared.shutdowns_asked;
            if !self.stop.has_begun() {
                self.begin_shutdown(handler);
            }
            if asked > 1 || self.stop.failure.is_some() {
                self.hard_stop();
            }
        }
        if self.stop.draining && self.has_drained() {
            self.stop_accepting(handler);
        }
        self.walk_on();
        if self.stop.has_begun() && !self.stop.draining && self.shared.table.counted() == 0 {
            if !std::mem::replace(&mut self.stop.alone, true) {
                self.end_exempt();
            }
            self.stop.ended = self.shared.table.len() == 0;
        }
    }

    /// Accepts what waits in the backlogs, as those peers have completed their handshakes, in as many
    /// turns as that takes.
    fn begin_shutdown(&mut self, handler: &mut H) {
        self.stop.begun_at = Some(self.shared.now);
        self.stop.stirs = true;
        self.stop.draining = true;
        self.shared.shutdown_begun = true;
        if self.stop.failure.is_none() {
            self.begin_draining(handler);
        }
        if let Some(timeout) = self.config.shutdown_timeout {
            self.shared.set_alarm(self.shared.now + timeout, Purpose::HardStop);
        }
    }

    /// The backlogs are empty: closes the listeners, tells the handler, and begins to end the
    /// connections.
    fn stop_accepting(&mut self, handler: &mut H) {
        self.stop.draining = false;
        self.end_draining();
        info!(connections = self.shared.table.len(), "shutting down");
        self.shared.stopping = true;
        self.close_listeners(false);
        self.call_loop("on_shutdown", |cx| handler.on_shutdown(cx));
        if !self.stop.hard {
            self.stop.walk = Some(Walk::Announce(Cursor::default()));
        }
    }

    /// Makes the next step of the walk that is under way.
    fn walk_on(&mut self) {
        let Some(mut walk) = self.stop.walk else { return };
        let (Walk::Announce(cursor) | Walk::End(cursor, _)) = &mut walk;
        let places = self.shared.table.walk(cursor);
        let ends = self.shared.table.is_at_end(*cursor);
        for index in places {
            if let Some(id) = self.shared.table.id_in(index) {
                match walk {
                    Walk::Announce(_) => self.announce_stop(id),
                    Walk::End(_, reason) => {
                        self.shared.table.at(index).request_close(reason);
                        self.shared.mark_dirty(id);
                    }
                }
            }
        }
        if let Walk::Announce(cursor) = walk {
            self.shared.announced = cursor;
        }
        self.stop.walk = (!ends).then_some(walk);
        if ends && matches!(walk, Walk::Announce(_)) {
            self.look_at_stop();
        }
    }

    /// The shutdown reaches a connection. What was read of requests that are not served yet is served
    /// still. One that waits for its peer gets a time to end. Those that are active end when they have
    /// served what they are at; tunnels know no such time, and are the handler's to close.
    fn announce_stop(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if record.state() == State::Connected && record.bytes_in > 0 {
            record.cold_mut().read_before_stop = record.bytes_in;
        }
        if record.is_exempt() {
            return;
        }
        if record.state() == State::Connecting {
            record.request_close(CloseReason::Shutdown);
            self.shared.mark_dirty(id);
        } else {
            self.plan_end(id);
        }
    }

    /// Gives a connection a time to end if it waits for its peer and has none.
    fn plan_end(&mut self, id: ConnId) {
        let Self { backend, shared, config, .. } = self;
        let now = shared.now;
        let record = shared.table.at(id.index());
        if !record.waits() || !record.flags.has(Flags::INBOUND) {
            return;
        }
        if let Some(spread) = config.shutdown_spread {
            let latest = now + spread + QUIET_LEAST;
            let planned = record.flags.has(Flags::HAS_LIFETIME)
                && record.clocks.since(Deadline::Lifetime) <= latest;
            if planned {
                return;
            }
            let share = share_of(nanos(spread), backend.entropy());
            let at = now.after(share).max(record.quiet_since() + QUIET_LEAST);
            record.clocks.set(Deadline::Lifetime, at);
            record.flags.insert(Flags::HAS_LIFETIME.and(Flags::REARM));
        } else {
            record.request_close(CloseReason::Shutdown);
        }
        shared.mark_dirty(id);
    }

    /// Visits some of the connections that the shutdown waits for, and comes again: after a tick while
    /// there are others to visit, else after [`LOOK_EVERY`]. Inbound ones that were held may wait for
    /// their peer by now. Once none of those is left nothing is relayed any more, and dialled
    /// connections that are at rest can go.
    pub(super) fn look_at_stop(&mut self) {
        if self.stop.hard || self.shared.table.counted() == 0 {
            return;
        }
        let mut pause = LOOK_EVERY;
        if self.stop.walk.is_none() {
            let mut cursor = self.stop.looked;
            for index in self.shared.table.walk(&mut cursor) {
                if let Some(id) = self.shared.table.id_in(index) {
                    self.look_at(id);
                }
            }
            if self.shared.table.is_at_end(cursor) {
                cursor = Cursor::default();
            } else {
                pause = TICK;
            }
            self.stop.looked = cursor;
        }
        self.shared.set_alarm(self.shared.now + pause, Purpose::LookAtStop);
    }

    fn look_at(&mut self, id: ConnId) {
        let serves = self.shared.table.inbound() > 0;
        let record = self.shared.table.at(id.index());
        if record.is_exempt() {
            return;
        }
        if serves {
            self.plan_end(id);
        } else if record.state().is_open() && record.deadline_inputs().at_rest() {
            record.request_close(CloseReason::Shutdown);
            self.shared.mark_dirty(id);
        }
    }

    /// The time to end has come for a connection that waited for its peer, unless the peer begins in
    /// this moment, or was served within the last second. Those that never pause for as long end
    /// behind a request in the second half of the shutdown's time.
    pub(super) fn end_waiting(&mut self, handler: &mut H, id: ConnId) {
        self.final_read(handler, id);
        let hurries = self.hurries();
        let record = self.shared.table.at(id.index());
        record.clocks.set(Deadline::Lifetime, Instant::FAR_FUTURE);
        if record.reason.is_some() {
            // It ends already.
        } else if record.waits() {
            let at = record.quiet_since() + QUIET_LEAST;
            if at > self.shared.now && self.config.shutdown_spread.is_some() && !hurries {
                record.clocks.set(Deadline::Lifetime, at);
                record.flags.insert(Flags::REARM);
            } else {
                self.begin_closing(handler, id, CloseReason::Shutdown);
            }
        } else if hurries && !record.is_reading_stopped() {
            record.retire(CloseReason::Shutdown);
        }
        // Otherwise it is given another time when it waits again.
    }

    /// Whether half of the time for the shutdown has gone.
    fn hurries(&self) -> bool {
        let timeout = self.config.shutdown_timeout.unwrap_or(SHUTDOWN_TIMEOUT);
        self.stop.begun_at.is_some_and(|begun_at| self.shared.now - begun_at >= timeout / 2)
    }

    /// Those that watched the shutdown have seen it.
    fn end_exempt(&mut self) {
        self.close_listeners(true);
        let hard = self.stop.hard;
        self.end_each(if hard { CloseReason::HardStop } else { CloseReason::Shutdown });
    }

    pub(super) fn hard_stop(&mut self) {
        if std::mem::replace(&mut self.stop.hard, true) {
            return;
        }
        self.close_listeners(true);
        self.end_each(CloseReason::HardStop);
    }

    /// Begins to ask all connections to end. None can come any more.
    fn end_each(&mut self, reason: CloseReason) {
        self.stop.walk = Some(Walk::End(Cursor::default(), reason));
    }

    pub(super) fn report(&self) -> Report {
        let now = self.shared.now;
        Report {
            stats: stats(&self.shared.counters),
            uptime: now - self.started_at,
            shutdown: self.stop.begun_at.map_or(Duration::ZERO, |begun_at| now - begun_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::audit::tests::{Echo, crowd};
    use super::*;
    use crate::config::Config;
    use crate::sim::Sim;

    const MANY: usize = 50_000;

    #[test]
    fn a_shutdown_reaches_all_of_many_in_steps() {
        let mut sim = Sim::new(1);
        let (mut reactor, mut ids) = crowd(&mut sim, Config::default(), MANY);
        reactor.turn(&mut Echo, Some(Duration::ZERO)).unwrap();
        reactor.handle().shutdown();
        let mut turns = 0;
        while !reactor.stop.has_begun() || reactor.stop.has_work() {
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
