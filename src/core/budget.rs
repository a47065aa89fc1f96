//! How much of one step a turn does, in count and in time, and which step made a turn long.

use crate::time::Instant;

/// Items that one step of a turn serves.
pub(crate) const ITEMS_PER_STEP: u32 = 1_024;

/// How long one step of a turn may last, once it has served [`CHECK_EVERY`] items: a bystander waits
/// for at most so much of each step, and the loop comes back to its sockets hundreds of times a
/// second whatever a callback asked for.
pub(crate) const STEP_NANOS: u64 = 2_000_000;

/// Items between two readings of the clock. Few items are not timed at all.
pub(crate) const CHECK_EVERY: u32 = 16;

/// The steps of a turn that serve more than one item.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Step {
    /// Events of sockets.
    #[default]
    Events,
    /// Connections that stopped early in the turn before.
    Ready,
    /// Newcomers.
    Accept,
    /// What the library serves itself.
    Services,
    /// Closures that were posted.
    Posts,
    /// Deadlines and alarms.
    Deadlines,
    /// Checks of endpoints.
    Checks,
    /// Connections of pools, and what waits for them.
    Pools,
    /// Dials that callbacks asked for.
    Dials,
    /// Connections that callbacks of others reached.
    Reached,
    /// Sockets to be closed.
    Closes,
    /// The shutdown.
    Shutdown,
}

impl Step {
    pub(crate) const ALL: [Self; 12] = [
        Self::Events,
        Self::Ready,
        Self::Accept,
        Self::Services,
        Self::Posts,
        Self::Deadlines,
        Self::Checks,
        Self::Pools,
        Self::Dials,
        Self::Reached,
        Self::Closes,
        Self::Shutdown,
    ];

    /// Its name in counters and logs.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Ready => "ready",
            Self::Accept => "accept",
            Self::Services => "services",
            Self::Posts => "posts",
            Self::Deadlines => "deadlines",
            Self::Checks => "checks",
            Self::Pools => "pools",
            Self::Dials => "dials",
            Self::Reached => "reached",
            Self::Closes => "closes",
            Self::Shutdown => "shutdown",
        }
    }

    /// The step that took the longest.
    pub(crate) fn longest(nanos: &[u64; Self::ALL.len()]) -> Self {
        let longest = Self::ALL.into_iter().max_by_key(|step| nanos[*step as usize]);
        longest.unwrap_or_default()
    }

    pub(crate) const fn of_index(index: u64) -> Self {
        if index < Self::ALL.len() as u64 { Self::ALL[index as usize] } else { Self::Events }
    }
}

/// What is left of a step's budget. The clock is read once in [`CHECK_EVERY`] items, or for each.
#[derive(Debug)]
pub(crate) struct Budget {
    served: u32,
    most: u32,
    /// So many items, `most` or fewer, are served before the clock is read.
    next_check: u32,
    check_every: u32,
    /// When the first items had been served, or began to be.
    timed_from: Option<Instant>,
}

impl Budget {
    pub(crate) const fn new(most: u32) -> Self {
        Self::with_checks(most, CHECK_EVERY)
    }

    /// For items each of which may take a millisecond.
    pub(crate) const fn of_slow_items(most: u32) -> Self {
        Self::with_checks(most, 1)
    }

    /// As [`Budget::of_slow_items`], for items that come one by one and may each take longer than the whole
    /// step: the first one counts too.
    pub(crate) const fn of_slow_items_from(now: Instant, most: u32) -> Self {
        Self { timed_from: Some(now), ..Self::with_checks(most, 1) }
    }

    pub(crate) const fn with_checks(most: u32, every: u32) -> Self {
        let next_check = if every < most { every } else { most };
        Self { served: 0, most, next_check, check_every: every, timed_from: None }
    }

    /// Whether one more item may be served, which counts as served then.
    #[inline]
    pub(crate) fn allows(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.served >= self.next_check && !self.goes_on(now) {
            return false;
        }
        self.served += 1;
        true
    }

    #[cold]
    fn goes_on(&mut self, now: impl FnOnce() -> Instant) -> bool {
        self.served < self.most && !self.is_used_up(now())
    }

    fn is_used_up(&mut self, now: Instant) -> bool {
        let from = *self.timed_from.get_or_insert(now);
        let used_up = now.nanos_since(from) >= STEP_NANOS;
        // Once it is used up, it is for each that asks.
        if !used_up {
            self.next_check = self.served.saturating_add(self.check_every).min(self.most);
        }
        used_up
    }

    /// Whether the step has served so many items that it was timed.
    pub(crate) const fn was_timed(&self) -> bool {
        self.timed_from.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many items are served that take `nanos` each, and how often the clock is read.
    fn served(nanos: u64, most: u32) -> (u32, u32) {
        served_of(Budget::new(most), nanos)
    }

    fn served_of(mut budget: Budget, nanos: u64) -> (u32, u32) {
        let (mut now, mut readings) = (Instant::EPOCH, 0);
        let mut served = 0;
        while budget.allows(|| {
            readings += 1;
            now
        }) {
            served += 1;
            now = now.after(nanos);
            assert!(served < 1_000_000);
        }
        (served, readings)
    }

    #[test]
    fn the_first_item_counts_where_it_is_timed() {
        let from_the_start = || Budget::of_slow_items_from(Instant::EPOCH, ITEMS_PER_STEP);
        assert_eq!(served_of(from_the_start(), STEP_NANOS).0, 1);
        assert_eq!(served_of(from_the_start(), STEP_NANOS / 2).0, 2);
        assert_eq!(served_of(Budget::of_slow_items(ITEMS_PER_STEP), STEP_NANOS).0, 2);
        let mut over = from_the_start();
        let late = Instant::EPOCH.after(STEP_NANOS);
        assert_eq!([(); 3].map(|()| over.allows(|| late)), [true, false, false]);
    }

    #[test]
    fn a_step_ends_by_count_or_by_time() {
        assert_eq!(served(0, ITEMS_PER_STEP), (1_024, 63));
        assert_eq!(served(1_000, ITEMS_PER_STEP), (1_024, 63));
        // After the first 16 for two milliseconds, to the next reading.
        assert_eq!(served(60_000, ITEMS_PER_STEP).0, 16 + 48);
        assert_eq!(served(1_000_000, ITEMS_PER_STEP).0, 32);
        assert_eq!(served(1_000, 10), (10, 0));
        assert_eq!(served_of(Budget::of_slow_items(ITEMS_PER_STEP), 1_000_000).0, 3);
        assert_eq!(served_of(Budget::of_slow_items(10), 1_000), (10, 9));
    }

    #[test]
    fn each_step_has_its_label() {
        for (index, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(step as usize, index);
            assert_eq!(Step::of_index(index as u64), step);
            assert!(!step.label().is_empty());
        }
    }
}
