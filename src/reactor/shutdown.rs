//! The end of the reactor: listeners close, connections are served to the end or spread over a
//! while, and what does not end in time is aborted.

use std::time::Duration;
use std::{fmt, io};

use super::Reactor;
use crate::backend::Backend;
use crate::config::{Config, SHUTDOWN_TIMEOUT};
use crate::context::{LoopState, Purpose};
use crate::core::burst::Burst;
use crate::core::deadlines::Deadline;
use crate::core::lifecycle::State;
use crate::core::stats::Stats;
use crate::core::table::{ConnId, Flags, Record};
use crate::error::CloseReason;
use crate::handler::Handler;
use crate::log::info;
use crate::time::{Instant, nanos, share_of};

/// No connection is closed sooner than this after its last reply: a request that crosses our FIN
/// on its way may be one that its client must not send twice.
const QUIET_LEAST: Duration = Duration::from_secs(1);

/// How often it is looked whether only dialled connections are left.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How far the end of the reactor has come.
#[derive(Debug, Default)]
pub(super) struct Stop {
    begun_at: Option<Instant>,
    /// How often somebody asked for the end, as far as that has been seen to.
    answered: u32,
    /// As far as callbacks did.
    seen: u32,
    /// Connections are no longer flushed.
    hard: bool,
    /// Nobody is left but the exempt, who are told to go.
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
        if self.stop.has_begun() && self.shared.table.counted() == 0 {
            if !std::mem::replace(&mut self.stop.alone, true) {
                self.end_exempt();
            }
            self.stop.ended = self.shared.table.len() == 0;
        }
    }

    /// Nobody new from here on: who waits in a backlog is let in, for he was told that he is
    /// connected, and then the listeners close.
    fn begin_shutdown(&mut self, handler: &mut H) {
        if self.stop.failure.is_none() {
            self.drain_backlogs(handler);
        }
        info!(connections = self.shared.table.len(), "shutting down");
        self.stop.begun_at = Some(self.shared.now);
        self.stop.stirs = true;
        self.shared.stopping = true;
        self.close_listeners(false);
        self.note_unserved();
        self.call_loop("on_shutdown", |cx| handler.on_shutdown(cx));
        self.plan_ends();
        self.look_at_stop();
        if let Some(timeout) = self.config.shutdown_timeout {
            self.shared.set_alarm(self.shared.now + timeout, Purpose::HardStop);
        }
    }

    /// What was read of requests that are not served yet is served still.
    fn note_unserved(&mut self) {
        for id in self.shared.table.ids().collect::<Vec<_>>() {
            let record = self.shared.table.at(id.index());
            if record.state() == State::Connected && record.bytes_in > 0 {
                record.rare_mut().read_before_stop = record.bytes_in;
            }
        }
    }

    /// Gives every connection that waits for its peer a time to end. Those that are active end when
    /// they have served what they are at; tunnels know no such time, and are the handler's to close.
    fn plan_ends(&mut self) {
        for id in self.shared.table.ids().collect::<Vec<_>>() {
            let record = self.shared.table.at(id.index());
            if record.is_exempt() {
                continue;
            }
            if record.state() == State::Connecting {
                record.ask(CloseReason::Shutdown);
                self.shared.mark_dirty(id);
            } else {
                self.plan_end(id);
            }
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
            record.ask(CloseReason::Shutdown);
        }
        shared.mark_dirty(id);
    }

    /// Once no inbound connection is left, nothing is relayed any more: dialled ones that are at
    /// rest can go.
    pub(super) fn look_at_stop(&mut self) {
        let LoopState { table, .. } = &mut self.shared;
        let ids: Vec<_> =
            table.ids().filter(|id| !table.get(*id).is_some_and(Record::is_exempt)).collect();
        let inbound = |id: &ConnId| table.get(*id).is_some_and(|it| it.flags.has(Flags::INBOUND));
        if ids.is_empty() {
            return;
        }
        if ids.iter().any(inbound) {
            // Some that were held wait for their peer by now.
            for id in ids {
                self.plan_end(id);
            }
        } else {
            for id in ids {
                let record = self.shared.table.at(id.index());
                if record.state().is_open() && record.facts().at_rest() {
                    record.ask(CloseReason::Shutdown);
                    self.shared.mark_dirty(id);
                }
            }
        }
        self.shared.set_alarm(self.shared.now + LOOK_EVERY, Purpose::LookAtStop);
    }

    /// The time to end has come for a connection that waited for its peer, unless the peer begins in
    /// this moment, or was served within the last second. Those that never pause for as long end
    /// behind a request in the second half of the shutdown's time.
    pub(super) fn end_waiting(&mut self, handler: &mut H, id: ConnId) {
        self.last_chance(handler, id);
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
        } else if hurries && !record.is_held() {
            record.tell_to_go(CloseReason::Shutdown);
        }
        // Otherwise it is given another time when it waits again.
    }

    /// Whether half of the time for the shutdown has gone.
    fn hurries(&self) -> bool {
        let timeout = self.config.shutdown_timeout.unwrap_or(SHUTDOWN_TIMEOUT);
        self.stop.begun_at.is_some_and(|begun_at| self.shared.now - begun_at >= timeout / 2)
    }

    /// Whoever watched the shutdown has seen it.
    fn end_exempt(&mut self) {
        self.close_listeners(true);
        self.ask_all(CloseReason::Shutdown);
    }

    pub(super) fn hard_stop(&mut self) {
        if std::mem::replace(&mut self.stop.hard, true) {
            return;
        }
        self.close_listeners(true);
        self.ask_all(CloseReason::HardStop);
    }

    fn ask_all(&mut self, reason: CloseReason) {
        for id in self.shared.table.ids().collect::<Vec<_>>() {
            self.shared.table.at(id.index()).ask(reason);
            self.shared.mark_dirty(id);
        }
    }

    pub(super) fn report(&self) -> Report {
        let now = self.shared.now;
        Report {
            stats: self.shared.counters.snapshot(),
            uptime: now - self.started_at,
            shutdown: self.stop.begun_at.map_or(Duration::ZERO, |begun_at| now - begun_at),
        }
    }
}
