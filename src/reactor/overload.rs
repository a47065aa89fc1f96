//! What is done when the loop comes near what it can bear: idle connections stay for less long, those
//! idle longest are evicted, and the greatest holders of buffers are shed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use bytes::BytesMut;

use super::Reactor;
use crate::backend::Backend;
use crate::close::CloseReason;
use crate::config::AtLimit;
use crate::core::deadlines::Deadline;
use crate::core::lifecycle::State;
use crate::core::output::allocation;
use crate::core::pressure::{self, EVICTS_FROM, SHRINKS_FROM};
use crate::core::table::Cursor;
use crate::core::wheel::TICK;
use crate::handler::Handler;
use crate::id::{AlarmId, ConnId};
use crate::log::{LogLimiter, debug, warn};
use crate::planted::{Bug, planted};
use crate::state::{LoopState, Purpose};
use crate::time::{Instant, nanos};

/// The most connections evicted at a time: nginx's number.
const EVICTIONS_MAX: u64 = 32;

/// How many of those idle longest one search finds: so many, or a 64th of the places, within the
/// second number.
const FOUND_LEAST: usize = 1_024;
const FOUND_MOST: usize = 16_384;

/// Connections closed in one step because they have been idle for too long under pressure.
const CLOSED_PER_STEP: usize = 256;

/// A search takes some 50 ns for each place. It begins so many nanoseconds for each place after the
/// one before has ended, so that searches take no more than a twentieth of the time, however many
/// connections there are and however few of them are idle.
const SEARCH_PAUSE_PER_PLACE: u64 = 1_000;

/// Candidates for eviction in one turn that may turn out to have unacknowledged output.
const UNDELIVERED_MAX: u32 = 32;

/// For how long such a connection is no candidate.
const SPARED_FOR: Duration = Duration::from_secs(1);

/// The least time between two searches for them, and between two looks at the pressure.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is known of the pressure, and which connections are evicted next.
#[derive(Debug, Default)]
pub(super) struct Overload {
    /// Those idle longest, and since when, the longest first. A connection that became idle since
    /// they were found is idle for less long than all of them, so an entry that still holds is the
    /// oldest.
    oldest: VecDeque<(Instant, ConnId)>,
    /// The search for those, if one is under way.
    search: Option<Search>,
    /// When the latest search ended.
    searched_at: Option<Instant>,
    /// The turn in which the search last made a step.
    searched_in: u64,
    /// The search is to be followed by evictions, as descriptors have run out.
    evicts_then: bool,
    /// How far the walk has come that closes those idle for too long.
    thinning: Cursor,
    /// When connections were last evicted because of the pressure.
    evicted_at: Option<Instant>,
    /// What looks at the pressure again.
    alarm: Option<AlarmId>,
    full_buffers: LogLimiter,
    presses: LogLimiter,
    /// Candidates of a turn that were spared because their peers have yet to receive something.
    spared: u32,
    spared_in: u64,
}

/// A search for the connections that have been idle longest, which visits some places in each turn.
#[derive(Debug, Default)]
struct Search {
    cursor: Cursor,
    /// Those found so far that have been idle longest, the last of them on top.
    found: BinaryHeap<(Instant, ConnId)>,
}

impl Search {
    /// Takes a connection into account of which no more than `most` are wanted.
    fn note(&mut self, since: Instant, id: ConnId, most: usize) {
        if self.found.len() < most {
            self.found.push((since, id));
        } else if let Some(mut last) = self.found.peek_mut()
            && (since, id) < *last
        {
            *last = (since, id);
        }
    }
}

impl Overload {
    /// Whether a search goes on.
    #[inline]
    pub(super) const fn is_searching(&self) -> bool {
        self.search.is_some()
    }
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Keeps the sums over all connections true: how many are in which state, and what they hold.
    #[inline]
    pub(super) fn account(&mut self, id: ConnId) {
        let buffered = self.shared.buffered();
        let LoopState { table, counters, bounds, .. } = &mut self.shared;
        let record = table.at(id.index());
        record.count_state(&counters.states);
        let held = record.output_held() + allocation(self.slots[id.index()].input.capacity());
        let pressed = buffered >= bounds.buffered_pressed;
        if record.buffered as usize != held || pressed || counters.buffered.get() != buffered {
            self.account_held(id, held);
        }
    }

    /// It holds so many bytes now.
    #[inline(never)]
    pub(super) fn account_held(&mut self, id: ConnId, held: usize) {
        self.shared.set_owned(id, held);
        self.bound_buffers();
        let buffered = self.shared.buffered();
        if buffered >= self.shared.bounds.buffered_pressed {
            self.watch_pressure();
        }
    }

    /// Sheds some if all together hold too much. What callbacks wrote to other connections is sent
    /// first ([`Reactor::settle_dirty`] comes here again), as most of it is gone then; meanwhile the
    /// excess is no more than one connection may queue.
    #[inline]
    pub(super) fn bound_buffers(&mut self) {
        let buffered = self.shared.buffered();
        let bounds = &self.shared.bounds;
        let waits = !self.shared.dirty.is_empty() && buffered <= bounds.buffered_all;
        if buffered > bounds.buffered_max && (!waits || planted(Bug::ShedUnsent)) {
            self.shed();
        }
    }

    /// What was written to other connections has been sent, as far as the kernel took it: sheds some
    /// if all together still hold too much.
    pub(super) fn bound_sent(&mut self) {
        if self.shared.buffered() > self.shared.bounds.buffered_max {
            self.shed();
        }
    }

    /// Aborts those that hold the most, until a sixteenth of what all may hold is free, so that this
    /// is not done again at once. What counts is the memory that an abort frees; only if that is not
    /// enough those go that queue the largest shared pieces, which are freed with their last queue.
    /// Buffers are freed here and now: memory is bounded at every moment, not only between turns.
    fn shed(&mut self) {
        let table = &self.shared.table;
        let records = || table.ids().filter_map(|id| table.get(id));
        // Those that are exempt come last; but memory ends for them, too.
        let mut owners: Vec<_> = records()
            .filter(|record| record.buffered > 0)
            .map(|record| (record.is_exempt(), Reverse(u64::from(record.buffered)), record.id))
            .collect();
        owners.sort_unstable();
        self.shed_some(owners);
        if self.shared.buffered() > self.shared.bounds.buffered_max {
            let table = &self.shared.table;
            let records = || table.ids().filter_map(|id| table.get(id));
            let mut sharers: Vec<_> = records()
                .filter_map(|record| {
                    let (_, largest) = record.output()?.shares().max_by_key(|(_, len)| *len)?;
                    Some((record.is_exempt(), Reverse(largest), record.id))
                })
                .collect();
            sharers.sort_unstable();
            self.shed_some(sharers);
        }
        let times = self.overload.full_buffers.times(self.shared.now);
        self.warn_of_pressure("buffers", times);
    }

    fn shed_some(&mut self, holders: Vec<(bool, Reverse<u64>, ConnId)>) {
        let most = self.shared.bounds.buffered_max;
        for (_, Reverse(held), id) in holders {
            if self.shared.buffered() <= most - most / 16 {
                return;
            }
            debug!(%id, held, "shed: all buffers together are too large");
            self.drop_output(id);
            // What was not dialled yet may have no slot.
            if let Some(slot) = self.slots.get_mut(id.index()) {
                slot.input = BytesMut::new();
            }
            self.shared.set_owned(id, 0);
            self.shared.table.at(id.index()).request_close(CloseReason::BufferLimit);
            self.shared.mark_dirty(id);
        }
    }

    /// A connection came: there may be many.
    #[inline]
    pub(super) fn note_arrival(&mut self) {
        if self.shared.table.counted() >= self.crowded_from {
            self.watch_pressure();
        }
    }

    /// Looks at the pressure soon, and until it has gone.
    pub(super) fn watch_pressure(&mut self) {
        if self.overload.alarm.is_none() {
            let at = self.shared.now;
            self.overload.alarm = Some(self.shared.set_alarm(at, Purpose::Relieve));
        }
    }

    /// Closes idle connections as the pressure demands, and comes again while there is any: after a
    /// tick while a walk over the connections is under way, else after [`LOOK_EVERY`].
    pub(super) fn relieve(&mut self, handler: &mut H) {
        self.overload.alarm = None;
        let pressure = self.shared.pressure();
        if pressure < SHRINKS_FROM {
            self.overload.thinning = Cursor::default();
            return;
        }
        let evicts = self.config.limits.at_limit == AtLimit::EvictIdle;
        let walks_on = evicts && self.close_long_idle(handler, pressure);
        let now = self.shared.now;
        let rested = self.overload.evicted_at.is_none_or(|at| now >= at + LOOK_EVERY);
        if pressure >= EVICTS_FROM && rested {
            let times = self.overload.presses.times(now);
            self.warn_of_pressure("the loop", times);
            self.overload.evicted_at = Some(now);
            if evicts {
                self.evict(handler);
            }
        }
        let at = self.shared.now + if walks_on { TICK } else { LOOK_EVERY };
        self.overload.alarm = Some(self.shared.set_alarm(at, Purpose::Relieve));
    }

    /// Makes a step of a walk that evicts those that have been idle for longer than is allowed under
    /// `pressure`. Returns whether the walk goes on.
    fn close_long_idle(&mut self, handler: &mut H, pressure: pressure::Permille) -> bool {
        let mut cursor = self.overload.thinning;
        let mut over = Vec::new();
        for index in self.shared.table.walk(&mut cursor) {
            if let Some(candidate) = self.idle_for_too_long(index, pressure) {
                over.push(candidate);
                if over.len() == CLOSED_PER_STEP {
                    cursor.stop_behind(index);
                    break;
                }
            }
        }
        for (since, id) in over {
            if self.may_be_closed(id) == Some(true) {
                self.evict_idle(handler, since, id);
            }
        }
        let walks_on = !self.shared.table.is_at_end(cursor);
        self.overload.thinning = if walks_on { cursor } else { Cursor::default() };
        walks_on
    }

    /// The connection in a place, and since when it is idle, if that is longer than is allowed under
    /// `pressure`. Each may have a time of its own, so that the oldest are not always the first.
    fn idle_for_too_long(
        &self,
        index: usize,
        pressure: pressure::Permille,
    ) -> Option<(Instant, ConnId)> {
        let LoopState { table, profiles, now, .. } = &self.shared;
        let id = table.id_in(index)?;
        let since = self.is_evictable(id)?;
        let record = table.get(id).filter(|record| record.state() == State::Idle)?;
        let idle = record.durations(profiles).total(Deadline::Idle);
        let allowed = pressure::idle_allowed(pressure, idle)?;
        (now.nanos_since(since) >= allowed).then_some((since, id))
    }

    /// Evicts the connections that have been idle longest, an eighth of them, at least one and at most
    /// [`EVICTIONS_MAX`], and returns how many were.
    pub(super) fn evict(&mut self, handler: &mut H) -> u64 {
        let idle = self.shared.counters.states.of(State::Idle);
        let mut evicted = 0;
        while evicted < (idle / 8).clamp(1, EVICTIONS_MAX)
            && let Some((since, id)) = self.oldest_idle()
        {
            evicted += u64::from(self.evict_idle(handler, since, id));
        }
        evicted
    }

    /// Closes an idle connection, unless a request of it waits in the socket, or one that lingers.
    fn evict_idle(&mut self, handler: &mut H, since: Instant, id: ConnId) -> bool {
        if self.shared.table.at(id.index()).lingers() {
            self.evict_lingering(id);
            return true;
        }
        self.guard(handler, |reactor, handler| {
            reactor.final_read(handler, id);
            // If it was served just now it is idle again, and the youngest.
            if reactor.is_evictable(id) == Some(since) {
                reactor.begin_closing(handler, id, CloseReason::Evicted);
                reactor.settle(handler, id);
            }
        });
        self.shared.table.at(id.index()).reason == Some(CloseReason::Evicted)
    }

    /// Closes a connection that lingers, before its peer has closed.
    pub(super) fn evict_lingering(&mut self, id: ConnId) {
        self.discard_input(id);
        self.shared.counters.linger_evicted.add(1);
        self.release(id);
    }

    /// Whether there is a connection that can be evicted: one that lingers, or one that is idle, and
    /// whose peer has sent nothing since.
    pub(super) fn finds_evictee(&mut self, handler: &mut H) -> bool {
        while let Some((since, id)) = self.oldest_idle() {
            if self.shared.table.at(id.index()).lingers() {
                return true;
            }
            self.guard(handler, |reactor, handler| reactor.final_read(handler, id));
            if self.is_evictable(id) == Some(since) {
                return true;
            }
        }
        false
    }

    /// The connection that has been idle longest. `None` if there is none, or a search for it goes on
    /// or is not to begin yet.
    fn oldest_idle(&mut self) -> Option<(Instant, ConnId)> {
        for searched in [false, true] {
            if searched && !self.search() {
                break;
            }
            while let Some((since, id)) = self.overload.oldest.front().copied() {
                if self.is_evictable(id) == Some(since) {
                    match self.may_be_closed(id) {
                        Some(true) => return Some((since, id)),
                        Some(false) => {}
                        // Those that are left are asked in the next turn.
                        None => return None,
                    }
                }
                self.overload.oldest.pop_front();
            }
        }
        None
    }

    /// Evicts connections for want of descriptors, now or when those idle longest have been found.
    pub(super) fn evict_for_shortage(&mut self, handler: &mut H) {
        if self.evict(handler) == 0 {
            self.overload.evicts_then = self.overload.is_searching();
        }
    }

    /// Goes on with a search that an earlier turn began, and does what waited for its end.
    #[cold]
    pub(super) fn continue_search(&mut self, handler: &mut H) {
        if self.overload.is_searching()
            && self.search()
            && std::mem::take(&mut self.overload.evicts_then)
        {
            self.evict(handler);
        }
    }

    /// Whether closing a connection destroys nothing that its peer has yet to receive. One for which it
    /// would is no candidate for a while, so that slow readers do not hide others. In a turn that found
    /// [`UNDELIVERED_MAX`] of these no more are asked: then it is not known.
    pub(super) fn may_be_closed(&mut self, id: ConnId) -> Option<bool> {
        let turn = self.shared.counters.turns.get();
        if self.overload.spared_in != turn {
            self.overload.spared_in = turn;
            self.overload.spared = 0;
        }
        if self.overload.spared >= UNDELIVERED_MAX {
            return None;
        }
        let delivered = self.undelivered(id) == 0;
        if !delivered {
            self.overload.spared += 1;
            let until = self.shared.now + SPARED_FOR;
            self.shared.table.at(id.index()).cold_mut().spared_until = until;
        }
        Some(delivered)
    }

    /// Since when a connection is idle, if it may be made to go. Those that linger have had all they
    /// get, and are the first to go.
    fn is_evictable(&self, id: ConnId) -> Option<Instant> {
        let record = self.shared.table.get(id)?;
        if record.cold().is_some_and(|cold| cold.spared_until > self.shared.now) {
            return None;
        }
        if record.lingers() {
            return Some(Instant::EPOCH);
        }
        // What is held may have input in its socket that no final read takes.
        let idle = record.state() == State::Idle
            && self.config.limits.at_limit == AtLimit::EvictIdle
            && !record.is_exempt()
            && !record.is_reading_stopped()
            && record.requested().is_none();
        idle.then(|| record.idle_since())
    }

    /// Makes a step of the search for those idle longest, one in each turn; begins a search if none
    /// is under way and it is time to. Returns whether by this step the search has ended, or has found
    /// connections that linger, which are not to be compared with others.
    fn search(&mut self) -> bool {
        let turn = self.shared.counters.turns.get();
        if self.overload.search.is_none() && !self.may_search()
            || std::mem::replace(&mut self.overload.searched_in, turn) == turn
        {
            return false;
        }
        let mut search = self.overload.search.take().unwrap_or_default();
        let places = self.shared.table.place_count();
        let most = (places / 64).clamp(FOUND_LEAST, FOUND_MOST);
        for index in self.shared.table.walk(&mut search.cursor) {
            let id = self.shared.table.id_in(index);
            if let Some((since, id)) = id.and_then(|id| Some((self.is_evictable(id)?, id))) {
                search.note(since, id, most);
                if since == Instant::EPOCH && self.overload.oldest.len() < most {
                    self.overload.oldest.push_back((since, id));
                }
            }
        }
        if self.shared.table.is_at_end(search.cursor) {
            self.overload.oldest = search.found.into_sorted_vec().into();
            self.overload.searched_at = Some(self.shared.now);
            true
        } else {
            self.overload.search = Some(search);
            self.accepting.note_search();
            !self.overload.oldest.is_empty()
        }
    }

    /// Whether a search may find something, and the latest one is long enough ago.
    fn may_search(&self) -> bool {
        let states = &self.shared.counters.states;
        let places = self.shared.table.place_count() as u64;
        let pause = nanos(LOOK_EVERY).max(places.saturating_mul(SEARCH_PAUSE_PER_PLACE));
        let rested = self.overload.searched_at.is_none_or(|at| self.shared.now >= at.after(pause));
        rested && states.of(State::Idle) + states.of(State::Closing) > 0
    }

    fn warn_of_pressure(&self, of: &'static str, times: Option<u64>) {
        if let Some(times) = times {
            let (table, buffered) = (&self.shared.table, self.shared.buffered());
            warn!(of, connections = table.len(), buffered, times, "overloaded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::audit::tests::{Echo, MANY, crowd};
    use super::*;
    use crate::config::Config;
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
        let oldest: Vec<_> = reactor.overload.oldest.iter().map(|(_, id)| *id).collect();
        assert_eq!(oldest, ids[..FOUND_LEAST]);
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

    #[test]
    fn those_idle_for_too_long_are_closed_in_steps() {
        let mut sim = Sim::new(1);
        let (mut reactor, _) = crowd(&mut sim, Config::default(), MANY);
        sim.advance(Duration::from_secs(60));
        reactor.turn(&mut Echo, Some(Duration::ZERO)).unwrap();
        reactor.watch_pressure();
        let (start, mut most) = (reactor.clock(), 0);
        while reactor.shared.table.counted() > MANY * 9 / 10 {
            let before = reactor.shared.table.counted();
            reactor.turn_in_steps(&mut sim);
            most = most.max(before - reactor.shared.table.counted());
        }
        assert!(most <= CLOSED_PER_STEP + EVICTIONS_MAX as usize, "{most} in one turn");
        assert!(reactor.clock() - start < Duration::from_secs(1));
    }
}
