//! Whether, and how often, something is logged.

use tracing::Level;
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};

use crate::time::Instant;

/// Whether somebody may listen to events of `level`. What happens with every message is not asked
/// for each time, but once a turn: at each step of an echo it would be a twentieth of its cost.
#[inline(always)]
pub(crate) fn hears(level: Level) -> bool {
    level <= STATIC_MAX_LEVEL && level <= LevelFilter::current()
}

/// What is said at most once a second, because a peer may cause it at any rate.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    said_at: Option<Instant>,
    /// How often there was cause since then.
    unsaid: u64,
}

impl Seldom {
    /// There is cause to say it. If it is time to, returns how often there was since the last time,
    /// and counts as said.
    pub(crate) fn times(&mut self, now: Instant) -> Option<u64> {
        const EVERY: u64 = 1_000_000_000;
        self.unsaid += 1;
        if self.said_at.is_some_and(|said_at| now.nanos_since(said_at) < EVERY) {
            return None;
        }
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_said_seldom_is_said_once_a_second() {
        let mut seldom = Seldom::default();
        let said = [0, 1, 999, 1_000, 1_999, 5_000, 5_001]
            .map(|millis| seldom.times(Instant::EPOCH + Duration::from_millis(millis)));
        assert_eq!(said, [Some(1), None, None, Some(3), None, Some(2), None]);
    }
}
