//! What is done when the loop comes near what it can bear: idle connections stay for less long and
//! make way, and the greatest holders of buffers are shed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::BytesMut;

use super::Reactor;
use crate::backend::Backend;
use crate::canary::{Canary, planted};
use crate::config::AtLimit;
use crate::context::{AlarmId, LoopState, Purpose};
use crate::core::deadlines::Deadline;
use crate::core::lifecycle::State;
use crate::core::output::allocation;
use crate::core::pressure::{self, EVICTS_FROM, SHRINKS_FROM};
use crate::core::table::{ConnId, Flags};
use crate::error::CloseReason;
use crate::handler::Handler;
use crate::log::{Seldom, debug, warn};
use crate::time::Instant;

/// The most connections evicted at a time: nginx's number.
const EVICTIONS_MAX: u64 = 32;

/// How many of those idle longest are found in one walk over the table.
const FOUND_MAX: usize = 1_024;

/// Candidates for eviction in one turn that may turn out to have unacknowledged output.
const UNDELIVERED_MAX: u32 = 32;

/// The least time between two walks that look for them, and between two looks at the pressure.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is known of the pressure, and of who makes way next.
#[derive(Debug, Default)]
pub(super) struct Overload {
    /// Those idle longest, and since when, the longest first. Whoever became idle since they were
    /// found is idle for less long than all of them, so an entry that still holds is the oldest.
    oldest: VecDeque<(Instant, ConnId)>,
    walked_at: Option<Instant>,
    /// What looks at the pressure again.
    alarm: Option<AlarmId>,
    full_buffers: Seldom,
    presses: Seldom,
    /// Candidates of a turn that were spared because their peers have yet to receive something.
    spared: u32,
    spared_in: u64,
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Keeps the sums over all connections true: how many are in which state, and what they hold.
    #[inline]
    pub(super) fn account(&mut self, id: ConnId) {
        let buffered = self.shared.buffered();
        let LoopState { table, counters, bounds, .. } = &mut self.shared;
        let record = table.at(id.index());
        record.count_state(&counters.states);
        let held = record.output.held() + allocation(self.slots[id.index()].input.capacity());
        let over = buffered > bounds.buffered_max;
        if record.buffered as usize != held || over || counters.buffered.get() != buffered {
            self.account_held(id, held);
        }
    }

    /// It holds so many bytes now.
    #[inline(never)]
    pub(super) fn account_held(&mut self, id: ConnId, held: usize) {
        self.shared.set_owned(id, held);
        self.bound_buffers();
        let buffered = self.shared.buffered();
        if pressure::share(buffered, self.shared.bounds.buffered_max) >= SHRINKS_FROM {
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
        if buffered > bounds.buffered_max && (!waits || planted(Canary::ShedUnsent)) {
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
                    let (_, largest) = record.output.shares().max_by_key(|(_, len)| *len)?;
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
            self.shared.table.at(id.index()).ask(CloseReason::BufferLimit);
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

    /// Lets idle connections go as the pressure demands, and looks again while there is any.
    pub(super) fn relieve(&mut self, handler: &mut H) {
        self.overload.alarm = None;
        let pressure = self.shared.pressure();
        if pressure < SHRINKS_FROM {
            return;
        }
        let evicts = self.config.limits.at_limit == AtLimit::EvictIdle;
        if evicts {
            self.close_long_idle(handler, pressure);
        }
        if pressure >= EVICTS_FROM {
            let times = self.overload.presses.times(self.shared.now);
            self.warn_of_pressure("the loop", times);
            if evicts {
                self.evict(handler);
            }
        }
        let at = self.shared.now + LOOK_EVERY;
        self.overload.alarm = Some(self.shared.set_alarm(at, Purpose::Relieve));
    }

    /// Evicts those that have been idle for longer than is allowed under `pressure`.
    fn close_long_idle(&mut self, handler: &mut H, pressure: pressure::Permille) {
        let LoopState { table, profiles, now, .. } = &self.shared;
        // Each may have a time of its own, so that the oldest are not always the first to go.
        let over = |id: ConnId| {
            let since = self.is_evictable(id)?;
            let record = table.get(id).filter(|record| record.state() == State::Idle)?;
            let idle = record.periods(profiles).total(Deadline::Idle);
            let allowed = pressure::idle_allowed(pressure, idle)?;
            (now.nanos_since(since) >= allowed).then_some((since, id))
        };
        let over: Vec<_> = table.ids().filter_map(over).take(FOUND_MAX).collect();
        for (since, id) in over {
            if self.may_be_closed(id) {
                self.make_way(handler, since, id);
            }
        }
    }

    /// Evicts the connections that have been idle longest, an eighth of them and at least one, and
    /// returns how many made way.
    pub(super) fn evict(&mut self, handler: &mut H) -> u64 {
        let idle = self.shared.counters.states.of(State::Idle);
        let mut evicted = 0;
        while evicted < (idle / 8).clamp(1, EVICTIONS_MAX)
            && let Some((since, id)) = self.oldest_idle()
        {
            evicted += u64::from(self.make_way(handler, since, id));
        }
        evicted
    }

    /// Closes an idle connection, unless a request of it waits in the socket, or one that lingers.
    fn make_way(&mut self, handler: &mut H, since: Instant, id: ConnId) -> bool {
        if self.shared.table.at(id.index()).lingers() {
            self.evict_lingering(id);
            return true;
        }
        self.guard(handler, |reactor, handler| {
            reactor.last_chance(handler, id);
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

    /// Whether there is a connection that can make way: one that lingers, or one that is idle, and
    /// whose peer has sent nothing since.
    pub(super) fn finds_evictee(&mut self, handler: &mut H) -> bool {
        while let Some((since, id)) = self.oldest_idle() {
            if self.shared.table.at(id.index()).lingers() {
                return true;
            }
            self.guard(handler, |reactor, handler| reactor.last_chance(handler, id));
            if self.is_evictable(id) == Some(since) {
                return true;
            }
        }
        false
    }

    /// The connection that has been idle longest.
    fn oldest_idle(&mut self) -> Option<(Instant, ConnId)> {
        for walked in [false, true] {
            if walked && !self.walk() {
                break;
            }
            while let Some((since, id)) = self.overload.oldest.front().copied() {
                if self.is_evictable(id) == Some(since) && self.may_be_closed(id) {
                    return Some((since, id));
                }
                self.overload.oldest.pop_front();
            }
        }
        None
    }

    /// Whether closing a connection destroys nothing that its peer has yet to receive. In a turn
    /// that found [`UNDELIVERED_MAX`] for which it would, no more are asked.
    pub(super) fn may_be_closed(&mut self, id: ConnId) -> bool {
        let turn = self.shared.counters.turns.get();
        if self.overload.spared_in != turn {
            self.overload.spared_in = turn;
            self.overload.spared = 0;
        }
        if self.overload.spared >= UNDELIVERED_MAX {
            return false;
        }
        let delivered = self.undelivered(id) == 0;
        self.overload.spared += u32::from(!delivered);
        delivered
    }

    /// Since when a connection is idle, if it may be made to go. Those that linger have had all they
    /// get, and are the first to go.
    fn is_evictable(&self, id: ConnId) -> Option<Instant> {
        let record = self.shared.table.get(id)?;
        if record.lingers() {
            return Some(Instant::EPOCH);
        }
        // What is held may have input in its socket that no last chance reads.
        let idle = record.state() == State::Idle
            && self.config.limits.at_limit == AtLimit::EvictIdle
            && !record.is_exempt()
            && !record.is_held()
            && record.asked.is_none();
        idle.then(|| record.idle_since())
    }

    /// Finds those idle longest. Returns whether it is time to.
    fn walk(&mut self) -> bool {
        let now = self.shared.now;
        let soon = self.overload.walked_at.is_some_and(|at| now < at + LOOK_EVERY);
        let states = &self.shared.counters.states;
        if soon || states.of(State::Idle) + states.of(State::Closing) == 0 {
            return false;
        }
        self.overload.walked_at = Some(now);
        let ids = self.shared.table.ids();
        let mut idle: Vec<_> = ids.filter_map(|id| Some((self.is_evictable(id)?, id))).collect();
        if idle.len() > FOUND_MAX {
            idle.select_nth_unstable(FOUND_MAX);
            idle.truncate(FOUND_MAX);
        }
        idle.sort_unstable();
        self.overload.oldest = idle.into();
        true
    }

    /// Checks the sums over all connections, and their bounds, against the connections themselves.
    pub(super) fn audit_sums(&self) -> Result<(), String> {
        let shared = &self.shared;
        let records = || shared.table.ids().filter_map(|id| shared.table.get(id));
        for record in records() {
            let input = self.slots.get(record.id.index()).map_or(0, |slot| slot.input.capacity());
            let held = record.output.held() + allocation(input);
            if held != record.buffered as usize {
                let (id, known) = (record.id, record.buffered);
                return Err(format!("{id} holds {held} bytes, and {known} are accounted for"));
            }
        }
        let owned: u64 = records().map(|record| u64::from(record.buffered)).sum();
        let pieces: BTreeMap<_, _> = records().flat_map(|record| record.output.shares()).collect();
        let held = owned + pieces.values().sum::<u64>();
        let known = (shared.buffered(), shared.counters.buffered.get());
        if (held, held) != known {
            return Err(format!("{held} bytes are held, and {known:?} are accounted for"));
        }
        let sent = shared.dirty.is_empty();
        let most = if sent { shared.bounds.buffered_max } else { shared.bounds.buffered_all };
        if held > most {
            return Err(format!("{held} bytes are held of {most}"));
        }
        if shared.table.counted() > shared.table.capacity() {
            return Err(format!("{} connections are too many", shared.table.counted()));
        }
        let limited = records().filter(|record| self.is_limited(record)).count();
        let known = self.accepting.clients_connected();
        if known.is_some_and(|known| known != limited) {
            return Err(format!("clients have {limited} connections, not {known:?}"));
        }
        let lingering = records()
            .filter(|record| record.rare().is_some_and(|rare| rare.linger_number.is_some()))
            .filter(|record| !record.flags.has(Flags::REAPED))
            .count();
        if self.accepting.lingering_count().is_some_and(|known| known != lingering) {
            return Err(format!("{lingering} connections of limited clients linger"));
        }
        for state in [State::Connecting, State::Idle, State::Closing] {
            let counted = records().filter(|record| record.counted == state).count() as u64;
            if counted != shared.counters.states.of(state) {
                return Err(format!("{counted} are counted as {state:?}"));
            }
        }
        Ok(())
    }

    fn warn_of_pressure(&self, of: &'static str, times: Option<u64>) {
        if let Some(times) = times {
            let (table, buffered) = (&self.shared.table, self.shared.buffered());
            warn!(of, connections = table.len(), buffered, times, "overloaded");
        }
    }
}
