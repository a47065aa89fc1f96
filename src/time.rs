//! A point in time that can be forged.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point in time on the backend's monotonic clock, in nanoseconds since the backend was made.
///
/// It is not [`std::time::Instant`] because that one cannot be made up: here a test moves time by
/// hours in a microsecond, and a trace of two runs is equal to the letter. Arithmetic saturates, so
/// `now + Duration::MAX` means "never" instead of a panic.
///
/// ```
/// use std::time::Duration;
/// use wheelhouse::Instant;
///
/// let start = Instant::EPOCH;
/// assert_eq!((start + Duration::from_secs(2)) - start, Duration::from_secs(2));
/// assert_eq!(start + Duration::MAX, Instant::FAR_FUTURE);
/// ```
#[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Instant(u64);

impl Instant {
    /// The moment the backend was made.
    pub const EPOCH: Self = Self(0);

    /// A moment that never comes: 584 years after the epoch.
    pub const FAR_FUTURE: Self = Self(u64::MAX);

    /// The moment `nanos` nanoseconds after the epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time since `earlier`, zero if that is later.
    pub const fn duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(crate) const fn after(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    pub(crate) const fn before(self, nanos: u64) -> Self {
        Self(self.0.saturating_sub(nanos))
    }

    pub(crate) const fn nanos_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The nanoseconds of a duration, saturating: 584 years are "never" to every deadline here.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A share of `whole`, as great as `random` is of all numbers.
pub(crate) const fn share_of(whole: u64, random: u64) -> u64 {
    ((whole as u128 * random as u128) >> 64) as u64
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        self.after(nanos(duration))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.duration_since(earlier)
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{:?}", Duration::from_nanos(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Instant::FAR_FUTURE + Duration::from_secs(1), Instant::FAR_FUTURE);
        assert_eq!(Instant::EPOCH - Duration::from_secs(1), Instant::EPOCH);
        assert_eq!(Instant::EPOCH - Instant::FAR_FUTURE, Duration::ZERO);
    }

    #[test]
    fn debug_is_the_time_since_the_epoch() {
        assert_eq!(format!("{:?}", Instant::from_nanos(1_500_000_000)), "+1.5s");
    }
}
