//! Evicts connections: idle ones, which are read once more before, and those that linger.
//! [`core::evict`](crate::core::evict) decides which go first.

use super::Reactor;
use crate::backend::Backend;
use crate::close::CloseReason;
use crate::core::evict::{Candidate, SearchInputs, evictions_at_once};
use crate::core::lifecycle::State;
use crate::handler::Handler;
use crate::id::ConnId;

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Evicts some of the connections that have been idle longest, and returns how many.
    pub(super) fn evict(&mut self, handler: &mut H) -> u64 {
        let idle = self.shared.counters.states.of(State::Idle);
        let mut evicted = 0;
        while evicted < evictions_at_once(idle)
            && let Some(candidate) = self.first_candidate()
        {
            evicted += u64::from(self.evict_candidate(handler, candidate));
        }
        evicted
    }

    /// Evicts an idle connection, unless a request of it waits in the socket, or one that lingers.
    /// Returns whether it did.
    pub(super) fn evict_candidate(&mut self, handler: &mut H, candidate: Candidate) -> bool {
        let (_, id) = candidate;
        if self.shared.table.at(id.index()).lingers() {
            self.evict_lingering(id);
            return true;
        }
        self.guard(handler, |reactor, handler| {
            reactor.final_read(handler, id);
            // If it was served just now it is idle again, but since then only.
            if reactor.still_holds(candidate) {
                reactor.begin_closing(handler, id, CloseReason::Evicted);
                reactor.settle(handler, id);
            }
        });
        self.shared.table.at(id.index()).reason == Some(CloseReason::Evicted)
    }

    fn still_holds(&self, candidate: Candidate) -> bool {
        self.overload.eviction.still_holds(candidate, &self.shared.table, self.shared.now)
    }

    /// Closes a connection that lingers, before its peer has closed.
    pub(super) fn evict_lingering(&mut self, id: ConnId) {
        self.discard_input(id);
        self.shared.counters.linger_evicted.add(1);
        self.release(id);
    }

    /// Whether there is a connection that can be evicted: one that lingers, or one that is idle and
    /// whose peer has sent nothing since.
    pub(super) fn finds_evictee(&mut self, handler: &mut H) -> bool {
        while let Some(candidate) = self.first_candidate() {
            let (_, id) = candidate;
            if self.shared.table.at(id.index()).lingers() {
                return true;
            }
            self.guard(handler, |reactor, handler| reactor.final_read(handler, id));
            if self.still_holds(candidate) {
                return true;
            }
        }
        false
    }

    /// The connection that has been idle longest, of those whose peers have acknowledged everything.
    /// `None` if there is none, or a search for it goes on or is not to begin yet.
    fn first_candidate(&mut self) -> Option<Candidate> {
        // First among those known from the latest search, then by the next step of a search.
        for searches in [false, true] {
            if searches && !self.search() {
                break;
            }
            while let Some(candidate) =
                self.overload.eviction.first(&self.shared.table, self.shared.now)
            {
                if self.may_be_closed(candidate.1)? {
                    return Some(candidate);
                }
                self.overload.eviction.drop_first();
            }
        }
        None
    }

    /// Evicts connections for want of descriptors, now or when those idle longest have been found.
    pub(super) fn evict_for_shortage(&mut self, handler: &mut H) {
        if self.evict(handler) == 0 {
            self.overload.eviction.evict_after_search();
        }
    }

    /// Continues a search that an earlier turn began. When it has ended, evicts if a shortage waits
    /// for that.
    #[cold]
    pub(super) fn continue_search(&mut self, handler: &mut H) {
        if self.search() && self.overload.eviction.take_evict_after_search() {
            self.evict(handler);
        }
    }

    /// Whether closing a connection destroys nothing that its peer has yet to receive. One for
    /// which it would is no candidate for a while. `None` if this turn has asked about enough of
    /// these; a later turn asks again.
    pub(super) fn may_be_closed(&mut self, id: ConnId) -> Option<bool> {
        let turn = self.shared.counters.turns.get();
        if !self.overload.eviction.may_ask(turn) {
            return None;
        }
        let delivered = self.undelivered(id) == 0;
        if !delivered {
            let until = self.overload.eviction.spare(self.shared.now);
            self.shared.table.at(id.index()).cold_mut().spared_until = until;
        }
        Some(delivered)
    }

    /// Makes a step of the search for those idle longest, and lets the next turn make another while
    /// it goes on. Returns whether there may be candidates.
    fn search(&mut self) -> bool {
        let states = &self.shared.counters.states;
        let inputs = SearchInputs {
            now: self.shared.now,
            turn: self.shared.counters.turns.get(),
            may_find: states.of(State::Idle) + states.of(State::Closing) > 0,
        };
        let may_be_some = self.overload.eviction.search(&self.shared.table, inputs);
        if self.overload.is_searching() {
            self.accepting.note_search();
        }
        may_be_some
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::audit::tests::{Echo, MANY, crowd};
    use crate::config::Config;
    use crate::core::evict::FOUND_MIN;
    use crate::core::flags::Flags;
    use crate::core::table::PLACES_PER_STEP;
    use crate::sim::Sim;

    #[test]
    fn the_oldest_of_many_are_found_in_steps() {
        let mut sim = Sim::new(1);
        let (mut reactor, ids) = crowd(&mut sim, Config::default(), MANY);
        reactor.turn(&mut Echo, Some(Duration::ZERO)).unwrap();
        // A newcomer comes: a search begins.
        assert!(!reactor.finds_evictee(&mut Echo));
        let mut turns = 1;
        while reactor.overload.is_searching() {
            assert_eq!(reactor.timeout(), Some(Duration::ZERO), "it goes on without a wait");
            reactor.turn_in_steps(&mut sim);
            turns += 1;
        }
        assert_eq!(turns, MANY.div_ceil(PLACES_PER_STEP));
        let oldest: Vec<_> = reactor.overload.eviction.oldest().collect();
        assert_eq!(oldest, ids[..FOUND_MIN]);
        assert!(reactor.finds_evictee(&mut Echo));
        assert!(reactor.evict(&mut Echo) > 0);
        assert!(reactor.shared.table.at(0).reason.is_some(), "it has been idle longest");
    }

    #[test]
    fn searches_take_a_small_share_of_the_time() {
        let mut sim = Sim::new(1);
        let (mut reactor, ids) = crowd(&mut sim, Config::default(), MANY);
        // None may be evicted, so each search is in vain.
        for id in ids {
            reactor.shared.table.at(id.index()).flags.insert(Flags::PAUSED);
        }
        let until = reactor.clock() + Duration::from_secs(2);
        reactor.shared.table.visited.set(0);
        while reactor.clock() < until {
            reactor.turn_in_steps(&mut sim);
            assert!(!reactor.finds_evictee(&mut Echo));
        }
        // The pressure lets another walk go round, in as many ticks as it has steps.
        let visited = reactor.shared.table.visited.get();
        assert!(visited < 2 * 25 * MANY, "{visited}");
    }
}
