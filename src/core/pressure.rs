//! How near the loop is to what it can bear, and what follows from that.

use std::time::Duration;

use crate::time::nanos;

/// A share of what can be borne, in thousandths.
pub(crate) type Permille = u64;

/// A setting in percent.
pub(crate) fn permille(percent: u8) -> Permille {
    Permille::from(percent) * 10
}

/// From where on anything follows from a pressure.
pub(crate) fn matters_from(shrink_idle_from: Option<u8>) -> Permille {
    shrink_idle_from.map_or(EVICTS_FROM, permille)
}

/// From here on connections are not kept alive.
pub(crate) const NO_KEEP_ALIVE: Permille = 900;

/// From here on connections that are idle are evicted.
pub(crate) const EVICTS_FROM: Permille = 950;

/// As long as an idle connection may stay at the height of the pressure.
const IDLE_LEAST: u64 = 1_000_000_000;

/// Turns whose average is the lag.
const TURNS: u64 = 16;

/// How long turns last lately: a moving average, in which one long turn weighs no more than a
/// sixteenth of the most.
#[derive(Debug)]
pub(crate) struct Lag {
    average: u64,
    most: u64,
}

impl Lag {
    pub(crate) fn new(most: Option<Duration>) -> Self {
        Self { average: 0, most: most.map_or(u64::MAX, nanos) }
    }

    /// Whether there is none, so that a short turn changes nothing.
    #[inline]
    pub(crate) const fn is_none(&self) -> bool {
        self.average == 0
    }

    /// Takes a turn into account.
    pub(crate) fn note(&mut self, turn: u64) {
        let before = self.average.saturating_mul(TURNS - 1);
        self.average = before.saturating_add(turn.min(self.most)) / TURNS;
    }

    /// It, in nanoseconds.
    pub(crate) const fn nanos(&self) -> u64 {
        self.average
    }

    pub(crate) fn pressure(&self) -> Permille {
        share(self.average, self.most)
    }
}

/// The part of `whole` from which on its share is at least `pressure`.
pub(crate) fn part(whole: u64, pressure: Permille) -> u64 {
    let part = (u128::from(whole) * u128::from(pressure)).div_ceil(1_000);
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// How much `part` is of `whole`.
#[inline]
pub(crate) fn share(part: u64, whole: u64) -> Permille {
    let whole = whole.max(1);
    match part.checked_mul(1_000) {
        Some(parts) => parts / whole,
        None => share_of_many(part, whole),
    }
}

#[cold]
fn share_of_many(part: u64, whole: u64) -> Permille {
    let permille = u128::from(part) * 1_000 / u128::from(whole);
    u64::try_from(permille).unwrap_or(u64::MAX)
}

/// How long connections may be idle at this pressure: all of `idle` up to the pressure `from`, a
/// second from [`EVICTS_FROM`] on, and linearly in between, as Envoy scales its timers. `None` if
/// the pressure does not matter.
pub(crate) fn idle_allowed(pressure: Permille, from: Permille, idle: u64) -> Option<u64> {
    let over = pressure.checked_sub(from)?;
    let span = EVICTS_FROM - from;
    let least = IDLE_LEAST.min(idle);
    let cut = u128::from(idle - least) * u128::from(over.min(span)) / u128::from(span);
    Some(idle - cut as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_share_is_exact_however_great_the_numbers_are() {
        let most = u64::MAX / 1_000;
        for (part, whole, permille) in [
            (0, 0, 0),
            (1, 3, 333),
            (5, 0, 5_000),
            (most, most, 1_000),
            (most + 1, most + 1, 1_000),
            (u64::MAX / 2, u64::MAX, 499),
            (u64::MAX, 1, u64::MAX),
        ] {
            assert_eq!(share(part, whole), permille, "{part} of {whole}");
        }
    }

    #[test]
    fn idle_time_shrinks_linearly() {
        let idle = 151 * SECOND;
        for (pressure, allowed) in [
            (0, None),
            (799, None),
            (800, Some(151)),
            (850, Some(101)),
            (875, Some(76)),
            (950, Some(1)),
            (5_000, Some(1)),
        ] {
            let seconds = idle_allowed(pressure, 800, idle).map(|nanos| nanos / SECOND);
            assert_eq!(seconds, allowed, "{pressure}");
        }
        assert_eq!(idle_allowed(1_000, 800, SECOND / 2), Some(SECOND / 2));
    }

    #[test]
    fn one_long_turn_is_no_lag_and_many_are() {
        let mut lag = Lag::new(Some(Duration::from_millis(250)));
        lag.note(5 * SECOND);
        assert!(lag.pressure() < 70, "{}", lag.pressure());
        for _ in 0..100 {
            lag.note(SECOND);
        }
        assert!(lag.pressure() > EVICTS_FROM, "{}", lag.pressure());
        for _ in 0..400 {
            lag.note(0);
        }
        assert!(lag.is_none());
        let mut never = Lag::new(None);
        for _ in 0..100 {
            never.note(3_600 * SECOND);
        }
        assert_eq!(never.pressure(), 0);
        for _ in 0..100 {
            never.note(u64::MAX);
        }
    }
}
