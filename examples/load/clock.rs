//! What time it is, finer than once a turn.

#![expect(
    clippy::disallowed_methods,
    reason = "a reply is timed when it is taken, not once a turn"
)]

use std::time;

use wheelhouse::Instant;

/// The clock of latencies. It runs with that of the loop.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Clock {
    /// The system's, since both clocks were read.
    System(time::Instant, Instant),
    /// The loop's own, whose time may be made up.
    #[cfg_attr(not(test), allow(dead_code, reason = "for simulated runs"))]
    Loop,
}

impl Clock {
    /// The system's clock; the loop's says `now`.
    pub(crate) fn system(now: Instant) -> Self {
        Self::System(time::Instant::now(), now)
    }

    /// The time in nanoseconds, where the loop says `now`.
    pub(crate) fn nanos(self, now: Instant) -> u64 {
        match self {
            Self::System(begun, at) => at.as_nanos() + begun.elapsed().as_nanos() as u64,
            Self::Loop => now.as_nanos(),
        }
    }
}
