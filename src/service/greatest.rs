//! Some of many: those with the greatest measures, found in one walk and in memory for so many.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The keys with the greatest measures so far. Of equal ones those with the smaller keys stay.
#[derive(Clone, Debug)]
pub(super) struct Greatest<M, K> {
    most: usize,
    /// The one that goes next comes first.
    kept: BinaryHeap<Reverse<(M, Reverse<K>)>>,
}

impl<M: Ord + Copy, K: Ord + Copy> Greatest<M, K> {
    /// It keeps at most so many.
    pub(super) const fn new(most: usize) -> Self {
        Self { most, kept: BinaryHeap::new() }
    }

    pub(super) fn note(&mut self, measure: M, key: K) {
        let candidate = Reverse((measure, Reverse(key)));
        if self.kept.len() < self.most {
            self.kept.push(candidate);
        } else if let Some(mut least) = self.kept.peek_mut()
            && candidate < *least
        {
            *least = candidate;
        }
    }

    /// Those that were kept, the greatest first.
    pub(super) fn sorted(&self) -> impl DoubleEndedIterator<Item = (M, K)> + use<M, K> {
        let sorted = self.kept.clone().into_sorted_vec();
        sorted.into_iter().map(|Reverse((measure, Reverse(key)))| (measure, key))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn those_with_the_greatest_measures_are_kept(
            measures in proptest::collection::vec(0_u8..20, 0..60),
            most in 1_usize..20,
        ) {
            let mut greatest = Greatest::new(most);
            let mut all: Vec<_> = measures.into_iter().zip(0_usize..).collect();
            for (measure, key) in &all {
                greatest.note(*measure, *key);
            }
            all.sort_by_key(|(measure, key)| (Reverse(*measure), *key));
            all.truncate(most);
            prop_assert_eq!(greatest.sorted().collect::<Vec<_>>(), all);
        }
    }
}
