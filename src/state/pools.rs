//! The pools, as callbacks see them: what asks, waits, leases and gives back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::LoopState;
use super::alarms::Purpose;
use super::journal::Entry;
use crate::address::Target;
use crate::close::CloseReason;
use crate::config::{AcquireOptions, PoolConfig, SocketOptions, Timeouts};
use crate::core::deadlines::Durations;
use crate::core::flags::{ColdFlags, Flags};
use crate::core::pool::{Phase, Place, Pool, PoolStats, Replay, Stage, Waiter};
use crate::core::record::Replayable;
use crate::error::{AcquireError, AcquireFailure, ConfigError};
use crate::id::{AlarmId, ConnId, EndpointId, PoolGroupId, PoolId, WaitId};
use crate::log::LogLimiter;
use crate::planted::{Bug, planted};
use crate::probe;
use crate::time::{Instant, nanos};

/// What a lease may leave behind in the marks of its connection.
const LEFT_BEHIND: Flags =
    Flags::PAUSED.and(Flags::HAS_TIMER).and(Flags::DATA_DUE).and(Flags::DRAINED);

/// The longest request that is kept to be sent again.
const REPLAY_MAX: usize = 64 * 1024;

/// A pool, and what its connections are made from.
#[derive(Debug)]
pub(crate) struct PoolState {
    pub(crate) policy: Pool,
    pub(crate) target: Target,
    pub(crate) durations: Durations,
    pub(crate) socket: SocketOptions,
    /// Some of its connections count against what all pools of a group may have.
    group: Option<PoolGroupId>,
    /// What it dials only while it is available, and what its dials say something of.
    pub(crate) endpoint: Option<EndpointId>,
    /// How long what asks waits, in nanoseconds.
    acquire: u64,
    /// Whether its server was down when it was last served.
    pub(crate) was_down: bool,
    /// When a change of that is logged.
    pub(crate) log: LogLimiter,
    /// It is in the queue of those that have something to do.
    queued: bool,
    /// When the alarm comes that looks after it.
    alarm: Option<(AlarmId, Instant)>,
}

impl PoolState {
    /// Whether something of its server is to be logged: that it went down or came back.
    pub(crate) fn has_news(&self, now: Instant) -> bool {
        self.policy.is_down() != self.was_down || self.log.due() <= now
    }

    /// When something is to be done for it next.
    fn due(&self, now: Instant) -> Instant {
        self.policy.due(now).min(self.log.due())
    }

    /// Whether its alarm comes by the time at which it has something to do.
    #[inline]
    fn is_armed(&self, now: Instant) -> bool {
        let alarm = self.alarm.map_or(Instant::FAR_FUTURE, |(_, at)| at);
        alarm <= self.log.due() && self.policy.is_served_by(alarm, now)
    }
}

/// All pools of a reactor.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    list: Vec<PoolState>,
    /// How far the end of the reactor has come: those that are added later are like the others.
    stage: Stage,
    /// Those that have something to do.
    queue: VecDeque<PoolId>,
    /// The most connections that the pools of each group may have together.
    groups: Vec<usize>,
    /// Waits and leases of each connection, by its place in the table.
    holds: Vec<u32>,
    waits: u64,
    /// What the `on_data` that runs, or has just run, has asked for.
    asked: Option<Asked>,
}

/// What a connection has asked for in its own `on_data`. If it cannot have an idle connection as soon as
/// that has returned, it waits from then on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) id: WaitId,
    pub(crate) owner: ConnId,
    options: AcquireOptions,
    /// Its owner's socket had something to read.
    was_ready: bool,
}

impl Pools {
    /// Pools that have something to do.
    #[inline]
    pub(crate) fn due(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn get(&mut self, pool: PoolId) -> &mut PoolState {
        &mut self.list[pool.0 as usize]
    }

    /// All pools, and what each dials.
    pub(crate) fn targets(&self) -> impl Iterator<Item = (PoolId, &Target)> {
        let pools = self.list.iter().enumerate();
        pools.map(|(index, state)| (PoolId(index as u32), &state.target))
    }

    pub(crate) fn take_due(&mut self) -> Option<PoolId> {
        let pool = self.queue.pop_front()?;
        self.get(pool).queued = false;
        Some(pool)
    }

    /// Lets the pool be served in the next step for pools.
    pub(crate) fn wake(&mut self, pool: PoolId) {
        let state = &mut self.list[pool.0 as usize];
        if !state.queued {
            state.queued = true;
            self.queue.push_back(pool);
        }
    }

    #[cfg(feature = "sim")]
    pub(crate) fn is_held(&self, pool: PoolId) -> bool {
        self.list[pool.0 as usize].policy.is_held()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = PoolId> + use<> {
        (0..self.list.len() as u32).map(PoolId)
    }

    /// Whether a connection waits or has leased.
    pub(crate) fn is_held_by(&self, owner: ConnId) -> bool {
        self.holds.get(owner.index()).is_some_and(|holds| *holds > 0)
    }

    /// Whether an `on_data` has asked for a connection, and is neither answered nor waits.
    #[inline(always)]
    pub(crate) const fn has_asked(&self) -> bool {
        self.asked.is_some()
    }

    fn next_wait(&mut self, pool: PoolId) -> WaitId {
        self.waits += 1;
        WaitId { serial: self.waits, pool }
    }

    /// The first of the connections at this place or behind it waits.
    #[cold]
    fn hold_first(&mut self, owner: ConnId) {
        self.holds.resize(owner.index(), 0);
        self.holds.push(1);
    }

    #[inline]
    pub(crate) fn unhold(&mut self, owner: Option<ConnId>) {
        if let Some(owner) = owner {
            self.holds[owner.index()] -= 1;
        }
    }

    /// Whether the pools of the group of `pool` have as many connections as they may. If so: of the
    /// other pools' idle connections the one that has been idle longest.
    pub(crate) fn full_group(&self, pool: PoolId) -> Option<Option<ConnId>> {
        let group = self.list[pool.0 as usize].group;
        let members = self.list.iter().filter(|state| state.group == group);
        let longest = || members.filter_map(|state| state.policy.longest_idle()).min();
        (self.group_room(pool) == Some(0)).then(|| longest().map(|(_, id)| id))
    }

    /// A place became free: what has waited longest, in whatever pool of the group, comes first.
    pub(crate) fn wake_group(&mut self, pool: PoolId) {
        let Some(group) = self.list[pool.0 as usize].group else { return self.wake(pool) };
        let mut others: Vec<_> =
            self.ids().filter(|it| self.list[it.0 as usize].group == Some(group)).collect();
        others.sort_by_key(|it| {
            let wait = self.list[it.0 as usize].policy.oldest_wait();
            (wait.is_none(), wait)
        });
        for other in others {
            self.get(other).policy.end_shortage();
            self.wake(other);
        }
    }

    /// Whether the pools of the group of `pool` have as many connections as they may, and in another
    /// of them something has waited for longer than all that wait in this one.
    #[inline(always)]
    pub(crate) fn is_needed_elsewhere(&self, pool: PoolId, now: Instant) -> bool {
        self.list[pool.0 as usize].group.is_some() && self.is_needed_in_group(pool, now)
    }

    #[cold]
    fn is_needed_in_group(&self, pool: PoolId, now: Instant) -> bool {
        self.group_room(pool) == Some(0) && self.waits_longer_elsewhere(pool, now)
    }

    /// Whether the last place of the group of `pool` is for another of its pools, in which something
    /// has waited for longer.
    pub(crate) fn last_place_is_due_elsewhere(&self, pool: PoolId, now: Instant) -> bool {
        self.group_room(pool) == Some(1) && self.waits_longer_elsewhere(pool, now)
    }

    /// How many more connections the group of `pool` may have, if it has one.
    fn group_room(&self, pool: PoolId) -> Option<usize> {
        let group = self.list[pool.0 as usize].group?;
        let members = self.list.iter().filter(|state| state.group == Some(group));
        let open: usize = members.map(|state| state.policy.len()).sum();
        Some(self.groups[group.0 as usize].saturating_sub(open))
    }

    fn waits_longer_elsewhere(&self, pool: PoolId, now: Instant) -> bool {
        let state = &self.list[pool.0 as usize];
        let own = state.policy.oldest_wait();
        self.list
            .iter()
            .filter(|other| {
                let dials = !other.policy.is_down() && other.policy.wants_dial(now);
                other.group == state.group && dials
            })
            .any(|other| {
                let wait = other.policy.oldest_wait();
                wait.is_some_and(|wait| own.is_none_or(|own| wait.serial < own.serial))
            })
    }

    /// Whether something waits for a dial in another pool of the group of `pool`.
    pub(crate) fn others_wait(&self, pool: PoolId, now: Instant) -> bool {
        let group = self.list[pool.0 as usize].group;
        let mut others = self.list.iter().filter(|other| group.is_some() && other.group == group);
        others.any(|other| other.policy.has_waiters() && other.policy.wants_dial(now))
    }
}

/// What callbacks ask.
impl LoopState {
    pub(crate) fn add_pool(
        &mut self,
        target: Target,
        config: &PoolConfig,
    ) -> Result<PoolId, ConfigError> {
        config.refuse_out_of_range()?;
        if config.group.is_some_and(|group| group.0 as usize >= self.pools.groups.len()) {
            return Err(ConfigError::new("pool.group", "a group of this reactor"));
        }
        if config.endpoint.is_some_and(|endpoint| self.endpoints.get(endpoint).is_none()) {
            return Err(ConfigError::new("pool.endpoint", "an endpoint of this reactor"));
        }
        let timeouts = config.timeouts.as_ref().unwrap_or(&self.dial_timeouts);
        // How long it may be idle or live, and when it is pinged, is the pool's.
        let timeouts =
            Timeouts { idle: None, ping_after: None, lifetime: None, ..timeouts.clone() };
        let socket = config.socket.as_ref().unwrap_or(&self.dial_options);
        let mut policy = Pool::new(config, Arc::clone(&self.counters));
        policy.advance(self.pools.stage);
        let pool = PoolId(self.pools.list.len() as u32);
        self.pools.list.push(PoolState {
            policy,
            target,
            durations: Durations::new(&timeouts),
            socket: socket.beside(&timeouts),
            group: config.group,
            endpoint: config.endpoint,
            acquire: nanos(config.acquire),
            was_down: false,
            log: LogLimiter::default(),
            queued: false,
            alarm: None,
        });
        self.pools.wake(pool);
        if let Some(endpoint) = config.endpoint {
            self.join_endpoint(pool, endpoint);
        }
        Ok(pool)
    }

    pub(crate) fn add_pool_group(&mut self, max: usize) -> PoolGroupId {
        self.pools.groups.push(max);
        PoolGroupId(self.pools.groups.len() as u32 - 1)
    }

    /// The end of the reactor has come so far for all pools.
    pub(crate) fn end_pools(&mut self, stage: Stage) {
        if stage <= self.pools.stage {
            return;
        }
        self.pools.stage = stage;
        for pool in self.pools.ids() {
            self.pools.get(pool).policy.advance(stage);
            self.pools.wake(pool);
        }
    }

    /// Lets the pool serve nothing any more.
    pub(crate) fn close_pool(&mut self, pool: PoolId) {
        self.pools.get(pool).policy.advance(Stage::Closed);
        self.pools.wake(pool);
    }

    pub(crate) fn pool_stats(&self, pool: PoolId) -> PoolStats {
        let mut stats = self.pools.list[pool.0 as usize].policy.stats();
        if self.pools.asked.is_some_and(|asked| asked.id.pool == pool) {
            stats.waiting += 1;
            stats.asked += 1;
        }
        stats
    }

    /// What an answer says that is no lease.
    #[cold]
    pub(crate) fn acquire_error(&self, pool: PoolId, failure: AcquireFailure) -> AcquireError {
        let stats = self.pool_stats(pool);
        let state = &self.pools.list[pool.0 as usize];
        let endpoint = state.endpoint.filter(|_| state.policy.is_held());
        let reason = endpoint.and_then(|id| self.endpoints.get(id)?.policy.last_failure());
        AcquireError {
            failure,
            shortage: state.policy.lacks(),
            last_dial: reason.or(stats.last_dial),
            size: stats.size,
            open: stats.open,
            idle: stats.idle,
            leased: stats.leased,
            coming: stats.coming,
            waiting: stats.waiting,
        }
    }

    pub(crate) fn acquire(
        &mut self,
        owner: Option<ConnId>,
        pool: PoolId,
        options: AcquireOptions,
    ) -> Result<WaitId, AcquireError> {
        if self.pools.has_asked() {
            // What asks first is answered first.
            self.put_off_asked();
        }
        let closing = owner.is_some_and(|owner| {
            let record = self.table.at(owner.index());
            !record.state().is_open() || record.requested().is_some()
        });
        let state = self.pools.get(pool);
        let failure = if closing {
            AcquireFailure::Closing
        } else if state.policy.is_closed() {
            AcquireFailure::Closed
        } else if !state.policy.takes_waiters() {
            state.policy.note_refused();
            AcquireFailure::TooManyWaiters
        } else {
            let may_spare = state.policy.may_spare();
            let id = self.pools.next_wait(pool);
            // Behind anything else that the callback has asked for it waits.
            let is_first = may_spare && self.lent_at != 0 && self.journal.is_empty();
            match owner {
                Some(owner) if is_first && self.in_hand == Some(owner) => {
                    self.ask(id, owner, options);
                }
                _ => self.let_wait(id, owner, options),
            }
            probe::acquire(owner, pool);
            return Ok(id);
        };
        Err(self.acquire_error(pool, failure))
    }

    /// Notes what `owner`, whose `on_data` runs, asks for, and may have when that returns.
    #[inline(always)]
    fn ask(&mut self, id: WaitId, owner: ConnId, options: AcquireOptions) {
        let flags = &mut self.table.at(owner.index()).flags;
        let was_ready = flags.has(Flags::READ_READY);
        // With something left to do it does not go idle before it is answered.
        flags.insert(Flags::READ_READY);
        self.pools.asked = Some(Asked { id, owner, options, was_ready });
    }

    /// What the callback in hand, or that has just run, has asked for. The caller answers it, lets it wait,
    /// or takes it back.
    #[inline(always)]
    pub(crate) fn take_asked(&mut self) -> Option<Asked> {
        let asked = self.pools.asked.take()?;
        if !asked.was_ready {
            self.table.at(asked.owner.index()).flags.remove(Flags::READ_READY);
        }
        Some(asked)
    }

    /// Lets wait what was asked for before.
    #[cold]
    fn put_off_asked(&mut self) {
        if let Some(asked) = self.take_asked() {
            self.put_off(asked);
        }
    }

    /// Lets wait what cannot have a connection at once.
    #[cold]
    pub(crate) fn put_off(&mut self, asked: Asked) {
        self.let_wait(asked.id, Some(asked.owner), asked.options);
    }

    #[inline(never)]
    fn let_wait(&mut self, id: WaitId, owner: Option<ConnId>, options: AcquireOptions) {
        let until = self.want_server(id.pool, options.timeout);
        self.pools.get(id.pool).policy.wait(Waiter { id, owner, until, replay: None });
        self.hold(owner);
        self.pools.wake(id.pool);
        self.journal.push(Entry::Waits(id));
    }

    /// Something asks a pool, or its lost request does: while it may wait, the checks of the pool's
    /// endpoint are fast. Returns until when it may.
    #[inline(always)]
    fn want_server(&mut self, pool: PoolId, timeout: Option<Duration>) -> Instant {
        let state = self.pools.get(pool);
        let until = self.now.after(timeout.map_or(state.acquire, nanos));
        if let Some(endpoint) = state.endpoint {
            self.want_endpoint(endpoint, until);
        }
        until
    }

    /// Leases a spare connection, whose socket has been checked, to what has asked.
    #[inline(always)]
    pub(crate) fn lease_at_once(&mut self, asked: &Asked, place: Place, lease: ConnId) {
        let (owner, pool, now) = (asked.owner, asked.id.pool, self.now);
        self.want_server(pool, asked.options.timeout);
        if self.pools.get(pool).policy.lease_at_once(owner, place, now) {
            self.pools.wake(pool);
        }
        self.hold(Some(owner));
        self.begin_lease(Some(owner), pool, lease);
    }

    /// A connection that was idle in its pool is `owner`'s, or the loop's.
    #[inline(always)]
    pub(crate) fn begin_lease(&mut self, owner: Option<ConnId>, pool: PoolId, lease: ConnId) {
        self.set_pooled_idle(lease, false);
        self.table.at(lease.index()).cold_mut().owner = owner;
        probe::lease(owner, lease, pool);
    }

    #[inline]
    fn hold(&mut self, owner: Option<ConnId>) {
        let Some(owner) = owner else { return };
        self.table.at(owner.index()).cold_flags.insert(ColdFlags::USES_POOLS);
        match self.pools.holds.get_mut(owner.index()) {
            Some(holds) => *holds += 1,
            None => self.pools.hold_first(owner),
        }
    }

    /// Takes back what [`LoopState::acquire`] asked for, if it has not been answered. Returns
    /// whether it has not.
    pub(crate) fn cancel_wait(&mut self, wait: WaitId) -> bool {
        if self.pools.asked.is_some_and(|asked| asked.id == wait) {
            self.take_asked();
            self.pools.get(wait.pool).policy.note_cancelled();
            return true;
        }
        let Some(waiter) = self.pools.get(wait.pool).policy.cancel(wait) else { return false };
        self.pools.unhold(waiter.owner);
        self.pools.wake(wait.pool);
        true
    }

    /// The place in its pool of what `by`, or the loop, has leased.
    fn lease(&mut self, by: Option<ConnId>, lease: ConnId) -> Option<(PoolId, Place)> {
        let (pool, place) = self.table.get(lease)?.pooled()?;
        let Phase::Leased(owner) = self.pools.get(pool).policy.phase(place) else { return None };
        let is_its = owner == by || by == Some(lease);
        debug_assert!(is_its, "{lease} is leased to {owner:?}, and given back by {by:?}");
        is_its.then_some((pool, place))
    }

    /// Gives back what `by`, or the loop, has leased, at the end of an exchange; or to be brought
    /// there, if it `is_unclean`.
    pub(crate) fn give_back(&mut self, by: Option<ConnId>, lease: ConnId, is_unclean: bool) {
        let Some((pool, place)) = self.lease(by, lease) else { return };
        probe::release(lease, pool, is_unclean);
        self.end_lease(lease);
        if is_unclean || self.in_hand != Some(lease) {
            return self.give_back_later(pool, place, lease, is_unclean);
        }
        // What follows from its callback is settled, and then it is judged.
        self.pools.get(pool).policy.hand_over(place, self.now);
        let record = self.table.at(lease.index());
        record.flags.insert(Flags::DIVERTED);
        record.cold_flags.insert(ColdFlags::RETURNED);
    }

    #[inline(never)]
    fn give_back_later(&mut self, pool: PoolId, place: Place, lease: ConnId, is_unclean: bool) {
        let now = self.now;
        let policy = &mut self.pools.get(pool).policy;
        if is_unclean {
            policy.clean(place, now);
            self.take_back_unclean(pool, lease);
        } else {
            policy.give_back(place, now);
            self.set_pooled_idle(lease, true);
            self.take_back(pool, lease);
        }
        // The callback of a connection is followed by what it has changed there.
        if self.in_hand != Some(lease) {
            self.mark_dirty(lease);
        }
        self.pools.wake(pool);
    }

    /// Takes back what a lease may leave behind and the next one must not find: a pause, a timer,
    /// what it feeds or is fed by, and timeouts of its own. What cannot be taken back is found when
    /// the connection is judged. Returns whether there was something.
    #[inline(always)]
    pub(crate) fn take_back(&mut self, pool: PoolId, id: ConnId) -> bool {
        let record = self.table.at(id.index());
        let marked = record.flags.take(LEFT_BEHIND);
        let more = record.feeds() || record.cold_flags.has(ColdFlags::RETIMED);
        if more {
            self.take_back_rest(pool, id);
        }
        marked || more
    }

    /// [`LoopState::take_back`] for a connection that its handler is going to clean. The callbacks that
    /// are due still are, and where it was held it is read again.
    #[cold]
    fn take_back_unclean(&mut self, pool: PoolId, id: ConnId) {
        let record = self.table.at(id.index());
        let (held, before) = (record.is_reading_stopped(), record.flags);
        self.take_back(pool, id);
        let record = self.table.at(id.index());
        let resumed = held && !record.is_reading_stopped();
        record.flags.set(Flags::DRAINED, before.has(Flags::DRAINED));
        record.flags.set(Flags::DATA_DUE, resumed || before.has(Flags::DATA_DUE));
    }

    #[cold]
    fn take_back_rest(&mut self, pool: PoolId, id: ConnId) {
        if self.table.at(id.index()).feeds() {
            self.end_feeding(id);
        }
        let durations = &self.pools.get(pool).durations;
        let record = self.table.at(id.index());
        // What it fed or was fed by may have held it.
        record.flags.remove(LEFT_BEHIND);
        if record.cold_flags.take(ColdFlags::RETIMED) {
            record.flags.insert(Flags::REARM);
            record.cold_mut().durations = Some(Box::new(durations.clone()));
        }
    }

    /// The owner of a lease is its owner no more.
    #[inline(always)]
    pub(crate) fn end_lease(&mut self, lease: ConnId) {
        let cold = self.table.at(lease.index()).cold_mut();
        cold.replay = None;
        let owner = cold.owner.take();
        self.pools.unhold(owner);
    }

    /// Keeps a request that is sent over what `by` has leased, if it may be sent again: where the
    /// connection was not new when it was leased, and the request is not long.
    pub(crate) fn keep_replay(&mut self, by: ConnId, lease: ConnId, request: &Bytes) -> bool {
        let Some((pool, place)) = self.lease(Some(by), lease) else { return false };
        let again = by != lease
            && request.len() <= REPLAY_MAX
            && self.pools.get(pool).policy.is_used(place);
        // Of several requests one would be sent again, and get the reply to another.
        let again = again && self.queued(lease) == 0 && self.table.at(lease.index()).owed() == 0;
        let record = self.table.at(lease.index());
        let (read, written) = (record.bytes_in, record.bytes_out + request.len() as u64);
        let request = again.then(|| request.clone());
        record.cold_mut().replay = request.map(|request| Replayable { request, read, written });
        again
    }

    /// A leased connection ends for `reason`. If its request may be sent again the lease is over, and
    /// its owner waits for another one.
    pub(crate) fn replay(&mut self, id: ConnId, reason: CloseReason) {
        let record = self.table.at(id.index());
        let (read, owed) = (record.bytes_in, record.owed());
        let written = record.bytes_out + record.queued() as u64;
        let Some((pool, _)) = record.pooled() else { return };
        let Some(cold) = record.cold_if_any() else { return };
        let lost =
            matches!(reason, CloseReason::PeerEof | CloseReason::PeerReset | CloseReason::Io(_));
        let Some(replay) = cold.replay.take().filter(|_| lost) else { return };
        let owner = cold.owner;
        let open = |owner: ConnId| self.table.get(owner).is_some_and(|it| it.state().is_open());
        let silent = replay.read == read || planted(Bug::ReplayedAfterReply);
        // Neither another request nor anything else was written behind it.
        let alone = owed == 1 && replay.written == written;
        if !silent || !alone || !owner.is_some_and(open) {
            return;
        }
        if self.pools.get(pool).policy.is_closed() {
            return;
        }
        self.end_lease(id);
        let until = self.want_server(pool, None);
        let wait = self.pools.next_wait(pool);
        let replay = Some(Box::new(Replay { lost: id, request: replay.request }));
        let waiter = Waiter { id: wait, owner, until, replay };
        self.pools.get(pool).policy.wait_again(waiter);
        self.hold(owner);
        self.pools.wake(pool);
    }

    /// A pool may dial, as its endpoint is available, or not. Where nothing is checked any more it always
    /// may, as nothing would let it again.
    pub(crate) fn hold_pool(&mut self, pool: PoolId, held: bool) {
        let held = held && !self.endpoints.stopped;
        self.pools.get(pool).policy.hold(held);
        self.pools.wake(pool);
    }

    /// A connection of a pool is at the end of its handshake, its cleaning, or its ping; or a check
    /// has passed.
    pub(crate) fn note_ready(&mut self, id: ConnId) {
        if self.note_check_passed(id) {
            return;
        }
        let Some((pool, place)) = self.table.at(id.index()).pooled() else { return };
        let now = self.now;
        if self.pools.get(pool).policy.note_ready(place, now) {
            self.set_pooled_idle(id, true);
            self.pools.wake(pool);
        }
    }

    /// Whether the callback that runs may reach this connection: one of a pool is only its owner's.
    #[inline]
    pub(crate) fn may_reach(&mut self, id: ConnId) -> bool {
        let record = self.table.at(id.index());
        !record.cold_flags.has(ColdFlags::POOLED) || self.may_reach_pooled(id)
    }

    #[cold]
    fn may_reach_pooled(&mut self, id: ConnId) -> bool {
        let Some((pool, place)) = self.table.at(id.index()).pooled() else { return true };
        match self.pools.get(pool).policy.phase(place) {
            Phase::Leased(None) => true,
            Phase::Leased(owner) => self.in_hand == owner || self.in_hand == Some(id),
            _ => self.in_hand == Some(id),
        }
    }
}

/// What the reactor does.
impl LoopState {
    /// Lets the alarm of a pool come when its policy is due. It mostly comes by then.
    #[inline]
    pub(crate) fn arm_pool(&mut self, pool: PoolId) {
        let now = self.now;
        if !self.pools.get(pool).is_armed(now) {
            self.arm_pool_earlier(pool);
        }
    }

    #[cold]
    fn arm_pool_earlier(&mut self, pool: PoolId) {
        let state = &self.pools.list[pool.0 as usize];
        let (before, due) = (state.alarm, state.due(self.now));
        self.pools.get(pool).alarm = self.set_alarm_by(before, due, Purpose::ServePool(pool));
    }

    /// The alarm of a pool has come.
    pub(crate) fn wake_pool(&mut self, pool: PoolId) {
        self.pools.get(pool).alarm = None;
        self.pools.wake(pool);
    }

    /// The socket of a pool's connection is closed, and its record is about to be released.
    #[cold]
    pub(super) fn free_pool_place(&mut self, id: ConnId) {
        let Some((pool, place)) = self.table.at(id.index()).pooled() else { return };
        self.pools.get(pool).policy.remove(place);
        self.pools.wake_group(pool);
    }

    /// What was idle in its pool, or is to be, can be used for exchanges, or not.
    pub(crate) fn set_pooled_idle(&mut self, id: ConnId, idle: bool) {
        self.table.at(id.index()).flags.set(Flags::DIVERTED, idle);
    }
}

/// What must hold between two turns.
#[cfg(feature = "sim")]
impl LoopState {
    /// Each pool and its connections agree, and what waits or leases is open: I8.
    pub(crate) fn audit_pools(&self) -> Result<(), String> {
        let mut holds = vec![0; self.pools.holds.len()];
        let mut members = 0;
        for pool in self.pools.ids() {
            let state = &self.pools.list[pool.0 as usize];
            state.policy.audit().map_err(|error| format!("{pool:?}: {error}"))?;
            if !state.queued && !state.is_armed(self.now) {
                let due = state.due(self.now);
                return Err(format!("nothing serves {pool:?} at {due:?}"));
            }
            let leases = state.policy.members().map(|(place, id, phase)| {
                let record = self.table.get(id);
                let known = record.is_some_and(|it| it.pooled() == Some((pool, place)));
                let idle = record.is_some_and(|it| it.flags.has(Flags::DIVERTED));
                let marked = matches!(phase, Phase::Idle | Phase::Returned);
                let judged = record.is_some_and(|record| {
                    record.cold_flags.has(ColdFlags::RETURNED) && record.flags.has(Flags::DIRTY)
                });
                if phase == Phase::Returned && !judged && !state.queued {
                    return Err(format!("nothing judges {id}: {record:?}"));
                }
                if !known || idle != marked {
                    return Err(format!("{pool:?} has {id} as {phase:?}: {record:?}"));
                }
                members += 1;
                Ok(if let Phase::Leased(owner) = phase { owner } else { None })
            });
            let leases = leases.collect::<Result<Vec<_>, _>>()?;
            let waits = state.policy.waiters().map(|waiter| waiter.owner);
            for owner in leases.into_iter().chain(waits).flatten() {
                if self.table.get(owner).is_none_or(|record| !record.state().is_open()) {
                    return Err(format!("{pool:?} keeps something for {owner}, which has ended"));
                }
                holds[owner.index()] += 1;
            }
        }
        let pooled = self
            .table
            .ids()
            .filter(|id| self.table.get(*id).is_some_and(|it| it.pooled().is_some()));
        let pooled = pooled.count();
        self.audit_counts()?;
        if let Some(asked) = self.pools.asked {
            return Err(format!("{asked:?} is neither answered nor waits"));
        }
        if pooled != members {
            return Err(format!("{pooled} connections are pools', which know {members}"));
        }
        if holds != self.pools.holds {
            return Err(format!("holds are {holds:?}, and {:?} are known", self.pools.holds));
        }
        Ok(())
    }

    /// What is counted of the pools is the sum over them.
    fn audit_counts(&self) -> Result<(), String> {
        let sum = |number: fn(&PoolStats) -> u64| -> u64 {
            self.pools.list.iter().map(|state| number(&state.policy.stats())).sum()
        };
        let counters = &self.counters;
        let counts = [
            ("connections", &counters.pool_connections, sum(|stats| stats.open as u64)),
            ("leased", &counters.pool_leased, sum(|stats| stats.leased as u64)),
            ("waiting", &counters.pool_waiting, sum(|stats| stats.waiting as u64)),
            ("leases", &counters.pool_leases, sum(|stats| stats.leases)),
            (
                "failures",
                &counters.pool_failures,
                sum(|stats| stats.refused + stats.timed_out + stats.failed),
            ),
            ("failed dials", &counters.pool_dials_failed, sum(|stats| stats.dials_failed)),
        ];
        for (name, counted, there) in counts {
            if counted.get() != there {
                return Err(format!("{} {name} of pools are counted, not {there}", counted.get()));
            }
        }
        Ok(())
    }
}
