//! Which connections are ended to leave room for others, in which order, and how many at a time.
//!
//! Connections that only linger are evicted first, then those that have been idle longest; under memory
//! pressure those that hold the most are shed. The plan reads the table and the time. The executors,
//! `reactor/evict.rs` and `reactor/overload.rs`, ask the kernel what peers have acknowledged, and end
//! the connections.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use crate::config::{AtLimit, Limits};
use crate::core::deadlines::{Deadline, Durations};
use crate::core::lifecycle::State;
use crate::core::pressure::{EVICTS_FROM, Permille, idle_allowed, permille};
use crate::core::record::Record;
use crate::core::table::{Cursor, Table};
use crate::core::wheel::TICK;
use crate::id::ConnId;
use crate::time::{Instant, nanos};

/// The most connections evicted at a time: nginx's number.
pub(crate) const EVICTIONS_MAX: u64 = 32;

/// How many of those idle longest one search finds: a 64th of the places, within these two numbers.
pub(crate) const FOUND_MIN: usize = 1_024;
const FOUND_MAX: usize = 16_384;

/// Connections closed in one step of a walk because they have been idle for too long.
pub(crate) const CLOSED_PER_STEP: usize = 256;

/// A search takes some 50 ns for each place. It begins so many nanoseconds for each place after the
/// one before has ended, so that searches take no more than a twentieth of the time, however many
/// connections there are and however few of them are idle.
const SEARCH_PAUSE_PER_PLACE: u64 = 1_000;

/// Candidates of one turn whose peers may turn out not to have acknowledged everything. Each costs a
/// system call.
const UNDELIVERED_MAX: u32 = 32;

/// For how long such a connection is no candidate, so that slow readers do not hide others.
const SPARED_FOR: Duration = Duration::from_secs(1);

/// The least time between two searches, between two evictions for the pressure, and between two
/// checks of it.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// A connection that may be evicted, and since when it has been idle. It may be evicted as long as
/// that time is still the same: one that was served since is idle for less long.
pub(crate) type Candidate = (Instant, ConnId);

/// Which connections are evicted next, and how far the walks have come that find them.
#[derive(Debug)]
pub(crate) struct Eviction {
    /// Idle connections may be evicted, not only lingering ones.
    evicts_idle_at_limit: bool,
    /// From which pressure on idle connections may stay for less long, if they ever may.
    shrinks_from: Option<Permille>,
    /// Those idle longest, the longest first. A connection that became idle since they were found is
    /// idle for less long than all of them, so the first entry that still holds is the oldest.
    oldest: VecDeque<Candidate>,
    /// The search for those, if one is under way.
    search: Option<Search>,
    /// When the latest search ended.
    searched_at: Option<Instant>,
    /// The turn in which the search last made a step.
    searched_in: u64,
    /// Connections are evicted when the search has ended, as descriptors have run out.
    evicts_after_search: bool,
    /// How far the walk has come that closes those idle for too long.
    walk: Cursor,
    /// When connections were last evicted because of the pressure.
    evicted_at: Option<Instant>,
    /// Candidates of a turn that were spared because their peers have yet to receive something, and
    /// that turn.
    spared: u32,
    spared_in: u64,
}

/// What a search depends on beside the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SearchInputs {
    pub(crate) now: Instant,
    /// The number of the turn.
    pub(crate) turn: u64,
    /// Some connections are idle or closing, so that a search may find one.
    pub(crate) may_find: bool,
}

/// A search for the connections that have been idle longest, which visits some places in each turn.
#[derive(Debug, Default)]
struct Search {
    cursor: Cursor,
    /// Those found so far that have been idle longest, the last of them on top.
    found: BinaryHeap<Candidate>,
}

impl Search {
    /// Takes a candidate into account of which no more than `most` are wanted.
    fn note(&mut self, candidate: Candidate, most: usize) {
        if self.found.len() < most {
            self.found.push(candidate);
        } else if let Some(mut last) = self.found.peek_mut()
            && candidate < *last
        {
            *last = candidate;
        }
    }
}

impl Eviction {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            evicts_idle_at_limit: limits.at_limit == AtLimit::EvictIdle,
            shrinks_from: limits.shrink_idle_from.map(permille),
            oldest: VecDeque::new(),
            search: None,
            searched_at: None,
            searched_in: 0,
            evicts_after_search: false,
            walk: Cursor::default(),
            evicted_at: None,
            spared: 0,
            spared_in: 0,
        }
    }

    /// Since when a connection has been idle, if it may be evicted. One that lingers has had all
    /// that it gets, and counts as idle for longest.
    pub(crate) fn evictable_since(&self, record: &Record, now: Instant) -> Option<Instant> {
        if record.cold().is_some_and(|cold| cold.spared_until > now) {
            return None;
        }
        if record.lingers() {
            return Some(Instant::EPOCH);
        }
        // One whose reading is stopped may have input in its socket that no final read takes.
        let evictable = record.state() == State::Idle
            && !record.is_exempt()
            && !record.is_reading_stopped()
            && record.requested().is_none();
        evictable.then(|| record.idle_since())
    }

    /// Whether a candidate may still be evicted.
    pub(crate) fn still_holds(&self, candidate: Candidate, table: &Table, now: Instant) -> bool {
        let (since, id) = candidate;
        let record = table.get(id);
        record.is_some_and(|record| self.evictable_since(record, now) == Some(since))
    }

    /// Of the connections found by the latest search, the one that has been idle longest.
    pub(crate) fn first(&mut self, table: &Table, now: Instant) -> Option<Candidate> {
        while let Some(candidate) = self.oldest.front().copied() {
            if self.still_holds(candidate, table, now) {
                return Some(candidate);
            }
            self.oldest.pop_front();
        }
        None
    }

    /// The first candidate is spared: the next one is the first.
    pub(crate) fn drop_first(&mut self) {
        self.oldest.pop_front();
    }

    /// Whether a search is under way.
    #[inline]
    pub(crate) const fn is_searching(&self) -> bool {
        self.search.is_some()
    }

    /// Makes a step of the search, one in each turn; begins one if none is under way and it is time
    /// to. Returns whether by this step the search has ended, or has found lingering connections,
    /// which need not be compared with others.
    pub(crate) fn search(&mut self, table: &Table, inputs: SearchInputs) -> bool {
        let places = table.place_count();
        if self.search.is_none() && !self.may_search(places, inputs)
            || std::mem::replace(&mut self.searched_in, inputs.turn) == inputs.turn
        {
            return false;
        }
        let mut search = self.search.take().unwrap_or_default();
        let most = (places / 64).clamp(FOUND_MIN, FOUND_MAX);
        for index in table.walk(&mut search.cursor) {
            let Some(record) = table.id_in(index).and_then(|id| table.get(id)) else { continue };
            let Some(since) = self.evictable_since(record, inputs.now) else { continue };
            if !self.evicts_idle_at_limit && !record.lingers() {
                continue;
            }
            search.note((since, record.id), most);
            if since == Instant::EPOCH && self.oldest.len() < most {
                self.oldest.push_back((since, record.id));
            }
        }
        if table.is_at_end(search.cursor) {
            self.oldest = search.found.into_sorted_vec().into();
            self.searched_at = Some(inputs.now);
            true
        } else {
            self.search = Some(search);
            !self.oldest.is_empty()
        }
    }

    /// Whether a search may find something, and the latest one is long enough ago.
    fn may_search(&self, places: usize, inputs: SearchInputs) -> bool {
        let pause = nanos(CHECK_EVERY).max((places as u64).saturating_mul(SEARCH_PAUSE_PER_PLACE));
        let rested = self.searched_at.is_none_or(|at| inputs.now >= at.after(pause));
        rested && inputs.may_find
    }

    /// None could be evicted for want of descriptors: they are as soon as the search has ended, if
    /// one is under way.
    pub(crate) const fn evict_after_search(&mut self) {
        self.evicts_after_search = self.is_searching();
    }

    /// A search has ended. Returns whether connections are evicted now.
    pub(crate) const fn take_evict_after_search(&mut self) -> bool {
        std::mem::replace(&mut self.evicts_after_search, false)
    }

    /// Whether another candidate may be asked about in a turn, which costs a system call if its peer
    /// has not acknowledged everything.
    pub(crate) const fn may_ask(&mut self, turn: u64) -> bool {
        if self.spared_in != turn {
            self.spared_in = turn;
            self.spared = 0;
        }
        self.spared < UNDELIVERED_MAX
    }

    /// A candidate's peer has yet to receive something, which a close would destroy. Returns until
    /// when the connection is no candidate.
    pub(crate) fn spare(&mut self, now: Instant) -> Instant {
        self.spared += 1;
        now + SPARED_FOR
    }

    /// Makes a step of the walk that closes those that have been idle for longer than is allowed
    /// under `pressure`, and returns them: each may have a time of its own, so that the oldest are
    /// not always the first.
    pub(crate) fn step_walk(
        &mut self,
        table: &Table,
        profiles: &[Durations],
        pressure: Permille,
        now: Instant,
    ) -> Vec<Candidate> {
        let mut over = Vec::new();
        if self.shrinks_from.is_none() {
            return over;
        }
        for index in table.walk(&mut self.walk) {
            let record = table.id_in(index).and_then(|id| table.get(id));
            let since = record.and_then(|it| self.idle_for_too_long(it, profiles, pressure, now));
            if let (Some(record), Some(since)) = (record, since) {
                over.push((since, record.id));
                if over.len() == CLOSED_PER_STEP {
                    self.walk.stop_behind(index);
                    break;
                }
            }
        }
        over
    }

    /// Since when a connection is idle, if that is longer than is allowed under `pressure`.
    fn idle_for_too_long(
        &self,
        record: &Record,
        profiles: &[Durations],
        pressure: Permille,
        now: Instant,
    ) -> Option<Instant> {
        let since = self.evictable_since(record, now)?;
        if record.state() != State::Idle {
            return None;
        }
        let idle = record.durations(profiles).total(Deadline::Idle);
        let allowed = idle_allowed(pressure, self.shrinks_from?, idle)?;
        (now.nanos_since(since) >= allowed).then_some(since)
    }

    /// The connections of a step of the walk have been closed. Returns when the pressure is checked
    /// again: after a tick while the walk goes on, which makes its next step then.
    pub(crate) fn end_step(&mut self, table: &Table) -> Duration {
        if self.shrinks_from.is_none() || table.is_at_end(self.walk) {
            self.end_walk();
            CHECK_EVERY
        } else {
            TICK
        }
    }

    /// The pressure is over. The next walk begins with the first place.
    pub(crate) fn end_walk(&mut self) {
        self.walk = Cursor::default();
    }

    /// Whether the pressure is so great that connections are evicted however short they have been
    /// idle, and the latest such eviction is long enough ago.
    pub(crate) fn is_critical(&mut self, pressure: Permille, now: Instant) -> bool {
        let rested = self.evicted_at.is_none_or(|at| now >= at + CHECK_EVERY);
        let is_critical = pressure >= EVICTS_FROM && rested;
        if is_critical {
            self.evicted_at = Some(now);
        }
        is_critical
    }

    /// Whether idle connections may be evicted.
    pub(crate) const fn evicts_idle_at_limit(&self) -> bool {
        self.evicts_idle_at_limit
    }

    #[cfg(test)]
    pub(crate) fn oldest(&self) -> impl Iterator<Item = ConnId> {
        self.oldest.iter().map(|(_, id)| *id)
    }
}

/// How many connections are evicted at a time where so many are idle: an eighth of them, at least
/// one and at most [`EVICTIONS_MAX`].
pub(crate) fn evictions_at_once(idle: u64) -> u64 {
    (idle / 8).clamp(1, EVICTIONS_MAX)
}

/// What all buffers may hold after connections were shed: a sixteenth less than the limit, so that
/// this is not done again at once.
pub(crate) const fn shed_to(buffered_max: u64) -> u64 {
    buffered_max - buffered_max / 16
}

/// The connections that own memory, those with the most first. Exempt ones come last, but memory
/// ends for them too.
pub(crate) fn owners(table: &Table) -> Vec<(ConnId, u64)> {
    in_order_of_shedding(table, |record| {
        (record.buffered > 0).then_some(u64::from(record.buffered))
    })
}

/// The connections that queue shared pieces, those with the largest piece first, exempt ones last. A
/// piece is freed with its last queue.
pub(crate) fn sharers(table: &Table) -> Vec<(ConnId, u64)> {
    in_order_of_shedding(table, |record| {
        let (_, largest) = record.output()?.shares().max_by_key(|(_, len)| *len)?;
        Some(largest)
    })
}

fn in_order_of_shedding(
    table: &Table,
    held: impl Fn(&Record) -> Option<u64>,
) -> Vec<(ConnId, u64)> {
    let records = table.ids().filter_map(|id| table.get(id));
    let mut holders: Vec<_> = records
        .filter_map(|record| Some((record.is_exempt(), Reverse(held(record)?), record.id)))
        .collect();
    holders.sort_unstable();
    holders.into_iter().map(|(_, Reverse(held), id)| (id, held)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::config::Timeouts;
    use crate::core::flags::{ColdFlags, Flags};
    use crate::core::lifecycle::Transition;
    use crate::core::record::NewConn;
    use crate::core::table::PLACES_PER_STEP;
    use crate::id::{ListenerId, Origin};

    fn at(millis: u64) -> Instant {
        Instant::EPOCH + Duration::from_millis(millis)
    }

    fn eviction() -> Eviction {
        Eviction::new(&Limits::default())
    }

    fn profiles() -> [Durations; 2] {
        let timeouts = Timeouts { idle: Some(Duration::from_secs(101)), ..Timeouts::default() };
        [(); 2].map(|()| Durations::new(&timeouts))
    }

    /// Adds an inbound connection that has been idle since then.
    fn idle(table: &mut Table, since: Instant) -> ConnId {
        add(table, since, false)
    }

    fn add(table: &mut Table, since: Instant, exempt: bool) -> ConnId {
        let new_conn = NewConn {
            origin: Origin::Accepted(ListenerId(0)),
            peer: Address::Unnamed,
            owner: None,
            exempt,
            room_checked: true,
            now: since,
        };
        let record = table.insert(new_conn).unwrap();
        record.apply(Transition::Establish);
        record.apply(Transition::Rest);
        record.flags.insert(Flags::RECEIVED);
        record.clocks.update(record.deadline_inputs(), since);
        record.id
    }

    /// Lets a connection linger.
    fn linger(table: &mut Table, id: ConnId) {
        let record = table.at(id.index());
        record.apply(Transition::Close);
        record.flags.insert(Flags::FIN);
        record.cold_flags.insert(ColdFlags::LINGERING);
    }

    fn since(eviction: &Eviction, table: &Table, id: ConnId) -> Option<Instant> {
        eviction.evictable_since(table.get(id).unwrap(), at(1_000))
    }

    fn inputs(turn: u64, millis: u64) -> SearchInputs {
        SearchInputs { now: at(millis), turn, may_find: true }
    }

    /// Searches to the end, from this turn on, and returns how many turns that takes.
    fn search(eviction: &mut Eviction, table: &Table, first: u64, millis: u64) -> u64 {
        let mut turns = 0;
        loop {
            eviction.search(table, inputs(first + turns, millis));
            turns += 1;
            if !eviction.is_searching() {
                return turns;
            }
        }
    }

    #[test]
    fn only_a_connection_that_is_idle_or_lingers_is_evicted() {
        let mut table = Table::new(8);
        let (is_idle, lingers, busy) =
            (idle(&mut table, at(5)), idle(&mut table, at(6)), idle(&mut table, at(7)));
        linger(&mut table, lingers);
        table.at(busy.index()).apply(Transition::Wake);
        let of = |eviction: &Eviction, id| since(eviction, &table, id);
        assert_eq!(of(&eviction(), is_idle), Some(at(5)));
        assert_eq!(of(&eviction(), lingers), Some(Instant::EPOCH), "it goes before all others");
        assert_eq!(of(&eviction(), busy), None);
    }

    #[test]
    fn where_idle_connections_are_not_evicted_only_lingering_ones_are_found() {
        let mut table = Table::new(8);
        let (_idle, lingers) = (idle(&mut table, at(5)), idle(&mut table, at(6)));
        linger(&mut table, lingers);
        let mut pausing = Eviction::new(&Limits { at_limit: AtLimit::Pause, ..Limits::default() });
        search(&mut pausing, &table, 1, 1_000);
        assert_eq!(pausing.oldest, [(Instant::EPOCH, lingers)]);
    }

    #[test]
    fn an_idle_connection_is_not_evicted_if_it_is_exempt_or_may_have_input_or_ends() {
        let mut table = Table::new(8);
        let exempt = add(&mut table, at(5), true);
        assert_eq!(since(&eviction(), &table, exempt), None);
        let paused = idle(&mut table, at(5));
        table.at(paused.index()).flags.insert(Flags::PAUSED);
        assert_eq!(since(&eviction(), &table, paused), None);
        let ends = idle(&mut table, at(5));
        table.at(ends.index()).request_close(crate::close::CloseReason::HandlerClose);
        assert_eq!(since(&eviction(), &table, ends), None);
    }

    #[test]
    fn a_spared_connection_is_no_candidate_for_a_second() {
        let mut table = Table::new(8);
        let id = idle(&mut table, at(5));
        let mut eviction = eviction();
        let until = eviction.spare(at(1_000));
        assert_eq!(until, at(2_000));
        table.at(id.index()).cold_mut().spared_until = until;
        assert!(!eviction.still_holds((at(5), id), &table, at(1_999)));
        assert!(eviction.still_holds((at(5), id), &table, at(2_000)));
    }

    #[test]
    fn no_more_than_32_undelivered_candidates_are_found_in_a_turn() {
        let mut eviction = eviction();
        for _ in 0..UNDELIVERED_MAX {
            assert!(eviction.may_ask(1));
            eviction.spare(at(0));
        }
        assert!(!eviction.may_ask(1));
        assert!(eviction.may_ask(2));
    }

    #[test]
    fn the_connection_idle_longest_is_the_first_candidate() {
        let mut table = Table::new(8);
        let ids = [30, 10, 20].map(|millis| idle(&mut table, at(millis)));
        let mut eviction = eviction();
        assert_eq!(eviction.first(&table, at(40)), None, "none has been searched for");
        assert_eq!(search(&mut eviction, &table, 1, 40), 1);
        assert_eq!(eviction.first(&table, at(40)), Some((at(10), ids[1])));
        // It is served, and no candidate any more.
        table.at(ids[1].index()).apply(Transition::Wake);
        assert_eq!(eviction.first(&table, at(40)), Some((at(20), ids[2])));
        eviction.drop_first();
        assert_eq!(eviction.first(&table, at(40)), Some((at(30), ids[0])));
        eviction.drop_first();
        assert_eq!(eviction.first(&table, at(40)), None);
    }

    #[test]
    fn a_search_makes_one_step_in_each_turn() {
        let mut table = Table::new(3 * PLACES_PER_STEP);
        for number in 0..3 * PLACES_PER_STEP as u64 {
            idle(&mut table, Instant::from_nanos(number + 1));
        }
        let mut eviction = eviction();
        assert!(!eviction.search(&table, inputs(1, 40)));
        assert!(eviction.is_searching());
        assert!(!eviction.search(&table, inputs(1, 40)), "there was a step in this turn");
        assert!(!eviction.search(&table, inputs(2, 40)));
        assert!(eviction.search(&table, inputs(3, 40)));
        assert!(!eviction.is_searching());
        assert_eq!(eviction.oldest().count(), FOUND_MIN);
        assert!(eviction.oldest().map(ConnId::index).eq(0..FOUND_MIN));
    }

    #[test]
    fn a_search_gives_lingering_connections_at_once() {
        let mut table = Table::new(2 * PLACES_PER_STEP);
        let ids: Vec<_> = (0..2 * PLACES_PER_STEP).map(|_| idle(&mut table, at(1))).collect();
        linger(&mut table, ids[7]);
        let mut eviction = eviction();
        assert!(eviction.search(&table, inputs(1, 40)));
        assert!(eviction.is_searching());
        assert_eq!(eviction.first(&table, at(40)), Some((Instant::EPOCH, ids[7])));
    }

    #[test]
    fn searches_rest_for_twenty_times_as_long_as_they_take() {
        let mut table = Table::new(200_000);
        let mut eviction = eviction();
        idle(&mut table, at(1));
        assert_eq!(search(&mut eviction, &table, 1, 1_000), 1);
        assert!(!eviction.search(&table, inputs(2, 1_099)), "of few places 100 ms");
        assert!(eviction.search(&table, inputs(3, 1_100)));
        for _ in 1..200_000 {
            idle(&mut table, at(1));
        }
        assert!(!eviction.search(&table, inputs(4, 1_299)), "of 200,000 places 200 ms");
        search(&mut eviction, &table, 5, 1_300);
        let none = SearchInputs { may_find: false, ..inputs(99, 9_000) };
        assert!(!eviction.search(&table, none) && !eviction.is_searching());
    }

    #[test]
    fn a_shortage_waits_for_a_search_that_is_under_way() {
        let mut table = Table::new(2 * PLACES_PER_STEP);
        for _ in 0..2 * PLACES_PER_STEP {
            idle(&mut table, at(1));
        }
        let mut eviction = eviction();
        eviction.evict_after_search();
        assert!(!eviction.take_evict_after_search(), "there is none");
        eviction.search(&table, inputs(1, 40));
        eviction.evict_after_search();
        assert!(eviction.take_evict_after_search());
        assert!(!eviction.take_evict_after_search(), "it evicts once");
    }

    #[test]
    fn an_eighth_of_the_idle_ones_is_evicted_at_a_time() {
        let evicted = [0, 1, 8, 15, 16, 255, 256, 1_000_000].map(evictions_at_once);
        assert_eq!(evicted, [1, 1, 1, 1, 2, 31, 32, 32]);
    }

    #[test]
    fn the_pressure_shortens_the_time_that_each_may_be_idle() {
        let mut table = Table::new(8);
        let [old, _young] = [0, 60_000].map(|millis| idle(&mut table, at(millis)));
        let walk = |pressure| eviction().step_walk(&table, &profiles(), pressure, at(70_000));
        assert_eq!(walk(800), [], "101 s are allowed");
        assert_eq!(walk(875), [(at(0), old)], "51 s are allowed");
        assert_eq!(walk(950).len(), 2, "a second is allowed");
        let from = |shrink_idle_from| {
            let limits = Limits { shrink_idle_from, at_limit: AtLimit::Pause, ..Limits::default() };
            Eviction::new(&limits)
        };
        // Whatever happens at the limit of connections.
        let walk = |pressure| from(Some(50)).step_walk(&table, &profiles(), pressure, at(70_000));
        assert_eq!(walk(600), [], "127 s are allowed");
        assert_eq!(walk(800), [(at(0), old)], "51 s are allowed");
        assert_eq!(from(None).step_walk(&table, &profiles(), 1_000, at(70_000)), []);
        assert_eq!(from(None).end_step(&table), CHECK_EVERY);
        table.at(old.index()).flags.insert(Flags::PAUSED);
        assert_eq!(eviction().step_walk(&table, &profiles(), 875, at(70_000)), []);
    }

    #[test]
    fn a_walk_closes_so_many_in_a_step_and_goes_on_after_a_tick() {
        let mut table = Table::new(2 * CLOSED_PER_STEP);
        for _ in 0..CLOSED_PER_STEP + 1 {
            idle(&mut table, at(0));
        }
        let mut eviction = eviction();
        let closed = eviction.step_walk(&table, &profiles(), 950, at(70_000));
        assert_eq!(closed.len(), CLOSED_PER_STEP);
        assert_eq!(eviction.end_step(&table), TICK);
        let closed = eviction.step_walk(&table, &profiles(), 950, at(70_000));
        assert_eq!(closed.len(), 1);
        assert_eq!(eviction.end_step(&table), CHECK_EVERY);
        // The next walk begins with the first place.
        let closed = eviction.step_walk(&table, &profiles(), 950, at(70_000));
        assert_eq!(closed.len(), CLOSED_PER_STEP);
    }

    #[test]
    fn critical_pressure_evicts_ten_times_a_second() {
        let mut eviction = eviction();
        assert!(!eviction.is_critical(949, at(0)));
        let critical = [0, 99, 100, 150, 200].map(|millis| eviction.is_critical(950, at(millis)));
        assert_eq!(critical, [true, false, true, false, true]);
    }

    #[test]
    fn those_that_own_the_most_are_shed_first_and_exempt_ones_last() {
        let mut table = Table::new(8);
        let exempt = add(&mut table, at(1), true);
        let ids = [0, 5, 9, 5].map(|held| (idle(&mut table, at(1)), held));
        for (id, held) in ids {
            table.at(id.index()).buffered = held;
        }
        table.at(exempt.index()).buffered = 100;
        let [_, (first_five, _), (nine, _), (second_five, _)] = ids;
        let order = [(nine, 9), (first_five, 5), (second_five, 5), (exempt, 100)];
        assert_eq!(owners(&table), order);
        assert_eq!(sharers(&table), []);
        assert_eq!((shed_to(1_600), shed_to(u64::MAX)), (1_500, u64::MAX - u64::MAX / 16));
    }
}
