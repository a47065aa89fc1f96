//! Notices when more happens within a time than a rate allows.

use std::collections::VecDeque;

use crate::config::Rate;
use crate::time::Instant;

/// The most times that are remembered. Of larger counts every n-th is.
const MARKS_MAX: u32 = 1_024;

/// Counts events over a sliding time.
///
/// It is exact for counts up to [`MARKS_MAX`]. For larger ones it never notices too much too early,
/// and late by at most a thousandth of the count.
#[derive(Debug)]
pub(crate) struct Burst {
    rate: Rate,
    /// The time of every event is remembered whose number is a multiple of this.
    every: u64,
    /// The times of the events from `first` on.
    marks: VecDeque<Instant>,
    first: u64,
    /// Events so far.
    count: u64,
}

impl Burst {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            every: u64::from(rate.count().div_ceil(MARKS_MAX)),
            marks: VecDeque::new(),
            first: 0,
            count: 0,
        }
    }

    /// An event happens. Returns whether it is one more than the rate allows.
    pub(crate) fn note(&mut self, now: Instant) -> bool {
        let number = self.count;
        self.count += 1;
        if number.is_multiple_of(self.every) {
            self.marks.push_back(now);
        }
        // The event that is `count` events back, or the first one before it that is remembered.
        let Some(back) = number.checked_sub(u64::from(self.rate.count())) else { return false };
        while self.first + self.every <= back {
            self.marks.pop_front();
            self.first += self.every;
        }
        self.marks.front().is_some_and(|mark| now - *mark <= self.rate.per())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::EPOCH + Duration::from_millis(millis)
    }

    fn burst(count: u32, millis: u64) -> Burst {
        Burst::new(Rate::new(count, Duration::from_millis(millis)))
    }

    #[test]
    fn one_more_than_allowed_within_the_time_is_too_much() {
        let mut burst = burst(2, 10);
        let noted = [0, 5, 11, 14, 15, 15, 40].map(|millis| burst.note(at(millis)));
        assert_eq!(noted, [false, false, false, true, true, true, false]);
    }

    #[test]
    fn the_largest_rate_takes_no_more_memory() {
        for count in [1, 1_000, 1_024, 1_025, 100_000] {
            let mut burst = burst(count, 1_000);
            for _ in 0..250_000 {
                burst.note(at(7));
            }
            assert!(burst.marks.len() <= MARKS_MAX as usize + 2, "{count}: {}", burst.marks.len());
        }
    }

    #[test]
    fn a_large_rate_is_noticed_a_little_late() {
        let mut burst = burst(100_000, 1_000);
        let first = (1_u64..).find(|_| burst.note(at(7))).unwrap();
        assert!((100_001..=100_101).contains(&first), "{first}");
    }

    proptest! {
        #[test]
        fn agrees_with_a_list_of_all_times(
            count in 1_u32..6,
            steps in proptest::collection::vec(0_u64..8, 0..80),
        ) {
            let (mut burst, mut times, mut now) = (burst(count, 10), Vec::new(), 0);
            for step in steps {
                now += step;
                times.push(now);
                let within = times.iter().filter(|time| now - **time <= 10).count();
                prop_assert_eq!(burst.note(at(now)), within > count as usize);
            }
        }
    }
}
