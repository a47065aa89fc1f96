//! The end of the reactor: listeners close, every connection ends, and what does not end in time is
//! aborted.

use std::time::Duration;
use std::{fmt, io};

use tracing::info;

use super::Reactor;
use crate::backend::Backend;
use crate::context::Purpose;
use crate::core::stats::Stats;
use crate::error::CloseReason;
use crate::handler::Handler;
use crate::time::Instant;

/// Panics within [`PANIC_WINDOW`] that stop the reactor: this is no accident any more.
const PANICS_MAX: usize = 3;
const PANIC_WINDOW: Duration = Duration::from_secs(10);

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
    failure: Option<&'static str>,
    /// It has begun, or failed.
    stirs: bool,
    /// When the latest callbacks panicked.
    panics: [Option<Instant>; PANICS_MAX],
    /// Whether nothing is left to do.
    ended: bool,
}

impl Stop {
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

    pub(super) fn count_panic(&mut self, now: Instant) {
        self.panics.rotate_left(1);
        self.panics[PANICS_MAX - 1] = Some(now);
        if self.panics[0].is_some_and(|first| now - first <= PANIC_WINDOW) {
            self.fail("three callbacks panicked within 10 s");
        }
    }

    /// The failure that stopped the reactor, once everything has ended.
    #[inline]
    pub(super) fn failure(&self) -> io::Result<()> {
        if !self.ended {
            return Ok(());
        }
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
        self.stop.ended = self.stop.has_begun() && self.shared.table.len() == 0;
    }

    fn begin_shutdown(&mut self, handler: &mut H) {
        info!(connections = self.shared.table.len(), "shutting down");
        self.stop.begun_at = Some(self.shared.now);
        self.stop.stirs = true;
        self.shared.stopping = true;
        self.close_listeners();
        self.call_loop(|cx| handler.on_shutdown(cx));
        self.ask_all(CloseReason::Shutdown);
        if let Some(timeout) = self.config.shutdown_timeout {
            self.shared.set_alarm(self.shared.now + timeout, Purpose::HardStop);
        }
    }

    pub(super) fn hard_stop(&mut self) {
        if !std::mem::replace(&mut self.stop.hard, true) {
            self.ask_all(CloseReason::HardStop);
        }
    }

    fn ask_all(&mut self, reason: CloseReason) {
        for id in self.shared.table.ids().collect::<Vec<_>>() {
            let record = self.shared.table.at(id.index());
            if record.state().is_open() || reason == CloseReason::HardStop {
                record.ask(reason);
                self.shared.mark_dirty(id);
            }
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
