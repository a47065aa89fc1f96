//! Which upstream a client gets: decisions without sockets, clocks or chance of their own.

use std::str::FromStr;

/// The most upstreams there may be: those that were tried for a client are bits of one word.
pub(crate) const UPSTREAMS_MAX: usize = 64;

/// How upstreams are chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Policy {
    RoundRobin,
    LeastConnections,
    RandomTwo,
}

impl FromStr for Policy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "round-robin" => Ok(Self::RoundRobin),
            "least-connections" => Ok(Self::LeastConnections),
            "random-two" => Ok(Self::RandomTwo),
            _ => Err("round-robin, least-connections or random-two is needed"),
        }
    }
}

/// What is known of an upstream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// Its share of what it would get otherwise, in percent; 0 if it is not available.
    pub(crate) weight: u8,
    pub(crate) connections: usize,
}

/// Those that were tried for one client.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tried(u64);

impl Tried {
    pub(crate) const fn note(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    const fn has(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }

    pub(crate) const fn count(self) -> u32 {
        self.0.count_ones()
    }
}

/// Chooses upstreams by one policy.
#[derive(Debug)]
pub(crate) struct Balancer {
    policy: Policy,
    /// The one to begin with.
    next: usize,
    /// What each has been passed over for the sake of its weight, in percent.
    credit: [u8; UPSTREAMS_MAX],
    random: u64,
}

impl Balancer {
    pub(crate) const fn new(policy: Policy, seed: u64) -> Self {
        Self { policy, next: 0, credit: [0; UPSTREAMS_MAX], random: seed | 1 }
    }

    /// The upstream for a client, among those that are available and were not tried for it.
    pub(crate) fn pick(&mut self, all: &[Candidate], tried: Tried) -> Option<usize> {
        let may = |index: usize| all[index].weight > 0 && !tried.has(index);
        match self.policy {
            Policy::RoundRobin => self.pick_next(all, may),
            Policy::LeastConnections => {
                let least =
                    (0..all.len()).filter(|index| may(*index)).map(|index| load(all[index]));
                let least = least.min()?;
                self.pick_next(all, |index| may(index) && load(all[index]) == least)
            }
            Policy::RandomTwo => {
                let count = (0..all.len()).filter(|index| may(*index)).count();
                let nth = |nth| (0..all.len()).filter(|index| may(*index)).nth(nth);
                let first = self.below(count)?;
                let Some(other) = self.below(count - 1) else { return nth(first) };
                let (a, b) = (nth(first)?, nth(if other < first { other } else { other + 1 })?);
                Some(if load(all[b]) < load(all[a]) { b } else { a })
            }
        }
    }

    /// The next one in turn. One of less than its whole weight lets some of its turns go by.
    fn pick_next(&mut self, all: &[Candidate], may: impl Fn(usize) -> bool) -> Option<usize> {
        let turns = |from: usize| (0..all.len()).map(move |at| (from + at) % all.len());
        let mut passed_over = None;
        for index in turns(self.next).filter(|index| may(*index)) {
            let credit = self.credit[index] + all[index].weight.min(100);
            if credit >= 100 {
                self.credit[index] = credit - 100;
                self.next = index + 1;
                return Some(index);
            }
            self.credit[index] = credit;
            passed_over.get_or_insert(index);
        }
        self.next = passed_over? + 1;
        passed_over
    }

    /// A number below `count` that chance picks, by xorshift64*.
    fn below(&mut self, count: usize) -> Option<usize> {
        if count == 0 {
            return None;
        }
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let number = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        Some(((number * count as u64) >> 32) as usize)
    }
}

/// How busy one more connection would make an upstream, by its weight.
const fn load(candidate: Candidate) -> usize {
    let weight = if candidate.weight == 0 { 1 } else { candidate.weight };
    (candidate.connections + 1) * 100 / weight as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(of: &[(u8, usize)]) -> Vec<Candidate> {
        of.iter()
            .map(|(weight, connections)| Candidate { weight: *weight, connections: *connections })
            .collect()
    }

    fn picks(policy: Policy, of: &[(u8, usize)], count: usize) -> Vec<usize> {
        let mut balancer = Balancer::new(policy, 1);
        (0..count).filter_map(|_| balancer.pick(&all(of), Tried::default())).collect()
    }

    #[test]
    fn round_robin_takes_turns_among_those_that_are_available() {
        let of = [(100, 0), (0, 0), (100, 9)];
        assert_eq!(picks(Policy::RoundRobin, &of, 4), [0, 2, 0, 2]);
    }

    #[test]
    fn one_that_came_back_gets_its_share() {
        let picks = picks(Policy::RoundRobin, &[(100, 0), (25, 0)], 100);
        let few = picks.iter().filter(|index| **index == 1).count();
        assert!((18..=22).contains(&few), "a fifth of them: {few}");
        let alone = self::picks(Policy::RoundRobin, &[(1, 0)], 3);
        assert_eq!(alone, [0, 0, 0], "there is no other");
    }

    #[test]
    fn the_fewest_connections_win_and_ties_take_turns() {
        let of = [(100, 2), (100, 1), (100, 1), (0, 0)];
        assert_eq!(picks(Policy::LeastConnections, &of, 4), [1, 2, 1, 2]);
    }

    #[test]
    fn of_two_by_chance_the_one_with_fewer_is_picked() {
        let of = [(100, 9), (100, 0), (100, 5), (0, 0)];
        let picks = picks(Policy::RandomTwo, &of, 3_000);
        let count = |of: usize| picks.iter().filter(|index| **index == of).count();
        assert_eq!((count(0), count(3)), (0, 0), "it never has fewer");
        assert!((1_800..2_200).contains(&count(1)), "in two of three pairs: {}", count(1));
        assert_eq!(self::picks(Policy::RandomTwo, &[(0, 0), (100, 3)], 2), [1, 1]);
    }

    #[test]
    fn each_is_tried_once() {
        for policy in [Policy::RoundRobin, Policy::LeastConnections, Policy::RandomTwo] {
            let (mut balancer, mut tried) = (Balancer::new(policy, 7), Tried::default());
            let all = all(&[(100, 0), (50, 0), (100, 3)]);
            let mut picked = Vec::new();
            while let Some(index) = balancer.pick(&all, tried) {
                tried.note(index);
                picked.push(index);
            }
            picked.sort_unstable();
            assert_eq!(picked, [0, 1, 2]);
        }
    }
}
