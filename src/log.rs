//! The log events of the crate: whether, and how often, something is logged, and what happens where
//! a subscriber panics.
//!
//! A subscriber is code of the application, and it may panic: the usual one does when it can write
//! neither its line nor its complaint about that. So every event of the crate is logged by the
//! macros here, which are those of `tracing` within [`unwind::catch`](crate::unwind::catch).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::Level;
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};

use crate::planted::{Bug, planted};
use crate::time::Instant;
use crate::unwind::catch;

/// Defines a macro that logs at one level. It costs what `tracing`'s own costs where no subscriber
/// listens at that level, and one call more where one does.
macro_rules! level {
    ($d:tt $macro:ident as $name:ident, $level:ident) => {
        macro_rules! $macro {
            ($d($d event:tt)+) => {
                if $crate::log::hears(::tracing::Level::$level) {
                    $crate::log::emit(|| ::tracing::event!(::tracing::Level::$level, $d($d event)+));
                }
            };
        }
        #[allow(unused_imports, reason = "one for each level")]
        pub(crate) use $macro as $name;
    };
}

// A macro cannot be named as an attribute is, so all have a name of their own here.
level!($ log_error as error, ERROR);
level!($ log_warn as warn, WARN);
level!($ log_info as info, INFO);
level!($ log_debug as debug, DEBUG);
level!($ log_trace as trace, TRACE);

/// Events of this process that were lost because the subscriber panicked. One number for all
/// reactors: an event may come from any thread, and what a panic loses is not worth a place in every
/// turn.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Hands an event to the subscriber, and counts it if that panics.
#[cold]
#[inline(never)]
pub(crate) fn emit(event: impl FnOnce()) {
    if planted(Bug::UncaughtLog) {
        return event();
    }
    if catch(event).is_err() {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many events were lost so far.
pub(crate) fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Whether a subscriber may listen to events of `level`. What happens with every message is not
/// asked for each time, but once a turn: at each step of an echo it would be a twentieth of its
/// cost.
#[inline(always)]
pub(crate) fn hears(level: Level) -> bool {
    level <= STATIC_MAX_LEVEL && level <= LevelFilter::current()
}

/// What is said at most once a second, because a peer may cause it at any rate.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter {
    said_at: Option<Instant>,
    /// How often there was cause since then.
    unsaid: u64,
}

impl LogLimiter {
    /// The least time between two lines.
    const EVERY: Duration = Duration::from_secs(1);

    /// There is cause to say it. If it is time to, returns how often there was since the last time,
    /// and counts as said.
    pub(crate) fn times(&mut self, now: Instant) -> Option<u64> {
        self.note();
        self.times_unsaid(now)
    }

    /// There is cause to say it, which [`times_unsaid`](LogLimiter::times_unsaid) does.
    pub(crate) const fn note(&mut self) {
        self.unsaid += 1;
    }

    /// If there was cause that was not said, and it is time to, returns how often there was, and
    /// counts as said.
    pub(crate) fn times_unsaid(&mut self, now: Instant) -> Option<u64> {
        if self.due() > now {
            return None;
        }
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }

    /// When it is time to say what was not said.
    pub(crate) fn due(&self) -> Instant {
        match (self.unsaid, self.said_at) {
            (0, _) => Instant::FAR_FUTURE,
            (_, None) => Instant::EPOCH,
            (_, Some(said_at)) => said_at + Self::EVERY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_seldom_is_said_once_a_second() {
        let mut seldom = LogLimiter::default();
        let said = [0, 1, 999, 1_000, 1_999, 5_000, 5_001]
            .map(|millis| seldom.times(Instant::EPOCH + Duration::from_millis(millis)));
        assert_eq!(said, [Some(1), None, None, Some(3), None, Some(2), None]);
        let at = |millis| Instant::EPOCH + Duration::from_millis(millis);
        assert_eq!(seldom.due(), at(6_000));
        assert_eq!(
            (seldom.times_unsaid(at(5_999)), seldom.times_unsaid(at(6_000))),
            (None, Some(1))
        );
        assert_eq!((seldom.due(), seldom.times_unsaid(at(9_000))), (Instant::FAR_FUTURE, None));
    }
}
