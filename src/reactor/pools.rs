//! Pools: does what [`core::pool`](crate::core::pool) decides. It checks sockets, dials, closes, and
//! answers what has asked.

use super::Reactor;
use super::io::Failure;
use super::read_buffer::rewind;
use crate::backend::Backend;
use crate::close::CloseReason;
use crate::conn::Conn;
use crate::core::budget::Step;
use crate::core::dial::{Blame, blame_for};
use crate::core::flags::{ColdFlags, Flags};
use crate::core::health::{Witness, fell_silent};
use crate::core::pool::{Place, Replay, Stage, Waiter, Work};
use crate::error::AcquireFailure;
use crate::handler::Handler;
use crate::id::{ConnId, PoolId};
use crate::log::{info, warn};
use crate::planted::{Bug, planted};
use crate::probe;
use crate::state::{Asked, LoopState, READ_BUDGET};

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Serves the pools that have something to do.
    #[inline]
    pub(super) fn serve_pools(&mut self, handler: &mut H) {
        if self.shared.pools.due() > 0 {
            self.serve_some_pools(handler);
        }
    }

    #[inline(never)]
    fn serve_some_pools(&mut self, handler: &mut H) {
        let mut budget = self.begin_step(Step::Pools);
        for _ in 0..self.shared.pools.due() {
            let Some(pool) = self.shared.pools.take_due() else { break };
            // A callback may ask again for what it gives back at once: the budget bounds that.
            loop {
                if !budget.allows(|| self.backend.now()) {
                    self.shared.pools.wake(pool);
                    return self.end_step(&budget);
                }
                let now = self.shared.now;
                match self.shared.pools.get(pool).policy.next(now) {
                    Some(Work::Offer(place, id)) => self.offer(handler, pool, place, id),
                    Some(work) => self.do_work(handler, pool, work),
                    None => break,
                }
            }
            if self.shared.pools.get(pool).has_news(self.shared.now) {
                self.say_health(pool);
            }
            self.shared.arm_pool(pool);
        }
        self.end_step(&budget);
    }

    /// Logs that the server of a pool is down, or is back, when it is time to: what is logged last is
    /// so.
    #[cold]
    fn say_health(&mut self, pool: PoolId) {
        let now = self.shared.now;
        let state = self.shared.pools.get(pool);
        let is_down = state.policy.is_down();
        if is_down != state.was_down {
            state.was_down = is_down;
            state.log.note();
        }
        let Some(times) = state.log.times_unsaid(now) else { return };
        let (target, stats) = (state.target.to_string(), state.policy.stats());
        if is_down {
            let reason = stats.last_dial.map(|reason| reason.to_string());
            let waiting = stats.waiting;
            warn!(target, reason, waiting, times, "a pool's server is down");
        } else {
            info!(target, times, "a pool's server is back");
        }
    }

    #[inline(never)]
    fn do_work(&mut self, handler: &mut H, pool: PoolId, work: Work) {
        match work {
            Work::Expire(waiter) => self.refuse(handler, waiter, AcquireFailure::Timeout),
            Work::Fail(waiter) => {
                let policy = &self.shared.pools.get(pool).policy;
                let failure = if policy.is_closed() {
                    AcquireFailure::Closed
                } else if policy.is_held() {
                    AcquireFailure::Down
                } else {
                    AcquireFailure::Unreachable
                };
                self.refuse(handler, waiter, failure);
            }
            Work::Judge(place, id) => self.judge_waiting(handler, pool, place, id),
            Work::Offer(place, id) => self.offer(handler, pool, place, id),
            Work::Ping(place, id) => self.ping(handler, pool, place, id),
            Work::Close(id, reason) => self.end_pooled(handler, id, reason),
            Work::Report(lease, owner) => {
                let stats = self.shared.pool_stats(pool);
                warn!(%lease, ?owner, ?pool, leased = stats.leased, "a lease lasts long");
            }
            Work::Dial => self.dial_for(handler, pool),
        }
    }

    /// Leases an idle connection, or ends it.
    #[inline(never)]
    fn offer(&mut self, handler: &mut H, pool: PoolId, place: Place, id: ConnId) {
        match self.check_before_lease(id) {
            Some(reason) => self.end_pooled(handler, id, reason),
            None => self.lease(handler, pool, place, id),
        }
    }

    /// An idle connection is watched; but what has come in this turn may not have been announced.
    #[inline(always)]
    fn check_before_lease(&mut self, id: ConnId) -> Option<CloseReason> {
        if planted(Bug::LeaseNotChecked) { None } else { self.read_unasked(id) }
    }

    /// Leases a connection whose socket has been checked.
    #[inline(always)]
    fn lease(&mut self, handler: &mut H, pool: PoolId, place: Place, id: ConnId) {
        let now = self.shared.now;
        let Some(waiter) = self.shared.pools.get(pool).policy.lease(place, now) else { return };
        // The wait becomes the lease: both are held by the owner.
        self.shared.begin_lease(waiter.owner, pool, id);
        if let Some(replay) = &waiter.replay {
            self.send_again(id, replay);
        }
        self.answer(handler, waiter, Ok(id));
    }

    #[cold]
    fn send_again(&mut self, id: ConnId, replay: &Replay) {
        self.shared.touch(id);
        let mut conn = Conn::new(&mut self.shared, id);
        conn.begin_request();
        conn.write_bytes(replay.request.clone());
    }

    #[cold]
    fn refuse(&mut self, handler: &mut H, waiter: Waiter, failure: AcquireFailure) {
        self.shared.pools.unhold(waiter.owner);
        self.answer(handler, waiter, Err(failure));
    }

    /// Calls the handler back.
    #[inline(always)]
    fn answer(&mut self, handler: &mut H, waiter: Waiter, outcome: Result<ConnId, AcquireFailure>) {
        let pool = waiter.id.pool();
        // An error says how the pool is now; it is large, and is made where it is passed.
        let lease =
            |shared: &LoopState| outcome.map_err(|failure| shared.acquire_error(pool, failure));
        match waiter.owner {
            Some(owner) => {
                // One that was dialled in this turn may have asked before its `on_open`. If that refuses
                // it, its end is the end of the lease.
                if !self.has_session(owner) && !self.open_dialled(handler, owner) {
                    return;
                }
                // No callback follows one that panicked: as above, its end is about to begin.
                let flags = self.shared.table.at(owner.index()).flags;
                if flags.has(Flags::CLOSE_REQUESTED) && self.has_panicked(owner) {
                    return;
                }
                let is_again = waiter.replay.is_some();
                let name = if is_again { "on_lease_replaced" } else { "on_acquired" };
                self.call_answered(handler, owner, outcome.ok(), name, |handler, conn, session| {
                    let lease = lease(conn.cx().shared);
                    match waiter.replay {
                        Some(it) => handler.on_lease_replaced(conn, session, it.lost, lease),
                        None => handler.on_acquired(conn, session, waiter.id, lease),
                    }
                });
                if !self.is_settled(owner) {
                    self.shared.mark_dirty(owner);
                }
            }
            None => {
                self.call_loop("on_loop_acquired", |cx| {
                    let lease = lease(cx.shared);
                    handler.on_loop_acquired(cx, waiter.id, lease);
                });
            }
        }
    }

    /// Runs a callback that answers, and settles what it has `leased`.
    #[inline(always)]
    fn call_answered(
        &mut self,
        handler: &mut H,
        owner: ConnId,
        leased: Option<ConnId>,
        name: &'static str,
        callback: impl FnOnce(&mut H, &mut Conn<'_>, &mut H::Session),
    ) {
        self.call_leasing(owner, leased, name, |conn, session, _| callback(handler, conn, session));
        if let Some(lease) = leased {
            self.settle_leased(handler, lease);
        }
    }

    /// [`Reactor::settle`] for a lease, behind the callback that got it. What it has been sent leaves
    /// mostly only deadlines to choose; if anything was asked of it, it is settled in its step of the turn.
    #[inline(always)]
    fn settle_leased(&mut self, handler: &mut H, lease: ConnId) {
        let flags = self.shared.table.at(lease.index()).flags;
        if flags.has(Flags::DIRTY) {
            return;
        }
        if flags.has(Flags::TO_ACT_ON.and(Flags::DIVERTED)) {
            self.shared.mark_dirty(lease);
        } else {
            self.arm_and_queue(handler, lease);
        }
    }

    /// `on_data`, which has just run, asked a pool for a connection. Leases an idle one to its connection,
    /// or lets this wait.
    #[inline(never)]
    pub(super) fn answer_at_once(&mut self, handler: &mut H) {
        let Some(asked) = self.shared.take_asked() else { return };
        let owner = asked.owner;
        if self.shared.spilled {
            self.flush(owner);
        }
        let Some(lease) = self.lease_at_once(&asked) else { return self.shared.put_off(asked) };
        self.call_answered(handler, owner, Some(lease), "on_acquired", |handler, conn, session| {
            handler.on_acquired(conn, session, asked.id, Ok(lease));
        });
    }

    /// Leases an idle connection to what has just asked, if its socket is sound and nothing has
    /// asked before. One that is not sound is closed in this turn.
    #[inline(always)]
    fn lease_at_once(&mut self, asked: &Asked) -> Option<ConnId> {
        let (owner, pool) = (asked.owner, asked.id.pool());
        let record = self.shared.table.at(owner.index());
        if !record.state().is_open()
            || !record.flags.has(Flags::OWED)
            || record.flags.has(Flags::ACTION_DUE.and(Flags::MAY_READ))
        {
            // It may be about to end: what is left in its socket may be its peer's end.
            return None;
        }
        let now = self.shared.now;
        if self.shared.pools.is_needed_elsewhere(pool, now) {
            return None;
        }
        let (place, id) = self.shared.pools.get(pool).policy.spare(now)?;
        if let Some(reason) = self.check_before_lease(id) {
            self.shared.table.at(id.index()).request_close(reason);
            self.shared.mark_dirty(id);
            return None;
        }
        self.shared.lease_at_once(asked, place, id);
        Some(id)
    }

    /// Whether nothing follows from the callback of a connection that has just run.
    fn is_settled(&mut self, id: ConnId) -> bool {
        let requests_max = self.shared.bounds.requests_max;
        let record = self.shared.table.at(id.index());
        record.is_settled() && !record.is_used_up(requests_max)
    }

    #[inline(never)]
    fn judge_waiting(&mut self, handler: &mut H, pool: PoolId, place: Place, id: ConnId) {
        if let Err(reason) = self.judge(pool, place, id) {
            self.end_pooled(handler, id, reason);
        }
    }

    /// [`Reactor::judge`] for a connection, if it was given back in a callback of its own, now that this
    /// is settled.
    #[inline(never)]
    pub(super) fn judge_settled(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        // Its end may have begun meanwhile.
        if !record.cold_flags.take(ColdFlags::RETURNED) || !record.state().is_open() {
            return;
        }
        let Some((pool, place)) = record.pooled() else { return };
        match self.judge(pool, place, id) {
            Ok(true) => self.shared.pools.wake(pool),
            Ok(false) => {}
            Err(reason) => self.end_judged(handler, id, reason),
        }
    }

    #[cold]
    fn end_judged(&mut self, handler: &mut H, id: ConnId, reason: CloseReason) {
        self.begin_closing(handler, id, reason);
        self.settle(handler, id);
    }

    /// Keeps what was given back or has become ready, if it is at the end of an exchange, and returns
    /// whether its pool is to be served for that; or says why it is to be closed.
    #[inline(always)]
    fn judge(&mut self, pool: PoolId, place: Place, id: ConnId) -> Result<bool, CloseReason> {
        let record = self.shared.table.at(id.index());
        let whole = record.deadline_inputs().at_rest()
            && !record.flags.has(Flags::NOT_REUSABLE)
            && self.slots[id.index()].input.is_empty();
        if let Some(reason) = record.requested() {
            // Its end is about to begin.
            self.leave_pool(id, reason);
            return Ok(false);
        }
        let unusable = if !whole && !planted(Bug::UncleanKept) {
            Some(CloseReason::PoolUnclean)
        } else if self.shared.pools.is_needed_elsewhere(pool, self.shared.now) {
            Some(CloseReason::PoolSurplus)
        } else if record.flags.has(Flags::MAY_READ) {
            // Where it was read until nothing was left, an event says what has come since.
            self.check_socket(id)
        } else {
            None
        };
        let LoopState { table, pools, now, .. } = &mut self.shared;
        let (state, record) = (pools.get(pool), table.at(id.index()));
        let kept = match unusable {
            Some(reason) => Err(reason),
            None => state.policy.keep(place, *now),
        };
        if kept.is_ok() {
            record.flags.insert(Flags::DIVERTED);
        }
        if let Some(endpoint) = state.endpoint
            && whole
            && state.policy.has_served(place)
        {
            self.shared.note_endpoint_success(endpoint, Witness::Reactor);
        }
        // Of its own callbacks all else is settled, and callbacks of others leave it dirty.
        if kept.is_ok() && self.shared.take_back(pool, id) {
            self.shared.mark_dirty(id);
        }
        kept
    }

    /// Why the socket of a connection between two exchanges cannot be used any more, if it cannot:
    /// its peer closed it, or sent what would be taken for the next reply.
    #[inline(never)]
    fn check_socket(&mut self, id: ConnId) -> Option<CloseReason> {
        self.read_unasked(id)
    }

    /// [`Reactor::check_socket`], in the place where each lease comes by.
    #[inline(always)]
    fn read_unasked(&mut self, id: ConnId) -> Option<CloseReason> {
        let Self { backend, slots, shared, read_buffer, .. } = self;
        let stream = slots[id.index()].stream.as_mut()?;
        let record = shared.table.at(id.index());
        // An earlier check may have taken the reason from the socket.
        if let Some(reason) = record.requested() {
            return Some(reason);
        }
        loop {
            rewind(read_buffer);
            let read = backend.read(stream, read_buffer, READ_BUDGET);
            probe::read(id, READ_BUDGET, &read);
            read_buffer.clear();
            return match read {
                Ok(0) => {
                    record.flags.insert(Flags::EOF);
                    Some(CloseReason::PeerEof)
                }
                Ok(_) => Some(CloseReason::UnsolicitedData),
                Err(error) => match Failure::of(&error) {
                    Failure::WouldBlock => {
                        record.flags.remove(Flags::MAY_READ);
                        None
                    }
                    Failure::Interrupted => continue,
                    failure => Some(failure.reason(&error)),
                },
            };
        }
    }

    /// Something happened to a connection that is idle in its pool.
    #[cold]
    pub(super) fn check_pooled(&mut self, handler: &mut H, id: ConnId) {
        if !planted(Bug::StrayInputKept)
            && let Some(reason) = self.check_socket(id)
        {
            self.begin_closing(handler, id, reason);
        }
    }

    fn ping(&mut self, handler: &mut H, pool: PoolId, place: Place, id: ConnId) {
        if let Some(reason) = self.check_socket(id) {
            return self.end_pooled(handler, id, reason);
        }
        self.shared.set_pooled_idle(id, false);
        self.shared.counters.health_checks.add(1);
        let sent = self.shared.table.at(id.index()).bytes_out;
        self.call(id, "on_health_check", |conn, session| handler.on_health_check(conn, session));
        let record = self.shared.table.at(id.index());
        if record.bytes_out == sent && record.deadline_inputs().at_rest() {
            let now = self.shared.now;
            self.shared.pools.get(pool).policy.note_unpinged(place, now);
            self.shared.set_pooled_idle(id, true);
        }
        self.shared.mark_dirty(id);
    }

    fn end_pooled(&mut self, handler: &mut H, id: ConnId, reason: CloseReason) {
        self.guard(handler, |reactor, handler| {
            let record = reactor.shared.table.at(id.index());
            if record.state().is_open() {
                reactor.begin_closing(handler, id, reason);
            }
            reactor.settle(handler, id);
        });
    }

    fn dial_for(&mut self, handler: &mut H, pool: PoolId) {
        let now = self.shared.now;
        let waits = self.shared.pools.get(pool).policy.has_waiters();
        let pools = &self.shared.pools;
        if (!waits && pools.others_wait(pool, now)) || pools.last_place_is_due_elsewhere(pool, now)
        {
            // What is dialled for later does not compete with what waits, and what has waited longest
            // comes first.
            return self.shared.pools.get(pool).policy.note_shortage(now);
        }
        if let Some(idle) = self.shared.pools.full_group(pool) {
            // Its place is free when its socket is closed.
            if let Some(id) = idle.filter(|_| waits) {
                self.end_pooled(handler, id, CloseReason::PoolSurplus);
            }
            return self.shared.pools.get(pool).policy.note_shortage(now);
        }
        let target = self.shared.pools.get(pool).target.clone();
        let Ok(id) = self.shared.add_dialled(target, None) else {
            return self.make_place(handler, pool, waits);
        };
        let state = self.shared.pools.get(pool);
        let place = state.policy.add(id, now);
        let durations = Box::new(state.durations.clone());
        let record = self.shared.table.at(id.index());
        record.cold_flags.insert(ColdFlags::POOLED);
        let cold = record.cold_mut();
        cold.pooled = Some((pool, place));
        cold.durations = Some(durations);
    }

    /// The table is full. What waits for a pool's connection counts as a newcomer does: if connections
    /// may be evicted for one, they are.
    #[cold]
    fn make_place(&mut self, handler: &mut H, pool: PoolId, waits: bool) {
        let evicted = if waits { self.evict(handler) } else { 0 };
        let now = self.shared.now;
        let policy = &mut self.shared.pools.get(pool).policy;
        if evicted > 0 {
            policy.note_place_comes(now);
        } else {
            policy.note_shortage(now);
            self.warn_of_full_table();
        }
    }

    /// A dialled connection is established: notifies its pool, if it is one's.
    pub(super) fn note_pooled_connected(&mut self, id: ConnId) {
        let Some((pool, place)) = self.shared.table.at(id.index()).pooled() else { return };
        let (now, random) = (self.shared.now, self.backend.entropy());
        let policy = &mut self.shared.pools.get(pool).policy;
        policy.note_connected(place, now, random);
        // Without a handshake it is as one that was given back: what it is sent is no reply.
        let idle = !policy.has_handshake();
        self.shared.set_pooled_idle(id, idle);
        self.shared.pools.wake(pool);
    }

    /// The end of a connection has begun: what it waits for is cancelled, what it has leased is
    /// closed, and its pool, if it is one's, leases it no more.
    #[cold]
    pub(super) fn leave_pools(&mut self, id: ConnId, reason: CloseReason) {
        if self.shared.pools.is_held_by(id) {
            self.end_holds(id);
        }
        self.leave_pool(id, reason);
    }

    fn end_holds(&mut self, owner: ConnId) {
        for pool in self.shared.pools.ids() {
            while !planted(Bug::WaitOfGoneOwner)
                && let Some(waiter) = self.shared.pools.get(pool).policy.cancel_of(owner)
            {
                self.shared.pools.unhold(waiter.owner);
            }
            while !planted(Bug::LeaseOfGoneOwner)
                && let Some(lease) = self.shared.pools.get(pool).policy.lease_of(owner)
            {
                self.leave_pool(lease, CloseReason::OwnerGone);
                let record = self.shared.table.at(lease.index());
                record.request_close(CloseReason::OwnerGone);
                self.shared.mark_dirty(lease);
            }
            self.shared.pools.wake(pool);
        }
    }

    fn leave_pool(&mut self, id: ConnId, reason: CloseReason) {
        let Some((pool, place)) = self.shared.table.at(id.index()).pooled() else { return };
        let (now, random) = (self.shared.now, self.backend.entropy());
        let blame = blame_for(reason);
        self.shared.set_pooled_idle(id, false);
        let state = self.shared.pools.get(pool);
        let failed = state.policy.note_ending(place, reason, blame, now, random);
        if let Some(endpoint) = state.endpoint
            && blame == Blame::Theirs
            && (failed || fell_silent(reason))
        {
            self.shared.note_endpoint_failure(endpoint, Some(reason));
        }
        self.shared.end_lease(id);
        self.shared.pools.wake(pool);
    }

    /// The last connection has ended: what the loop waits for is answered. There is no other turn, so
    /// all of it is; a closed pool takes no more.
    pub(super) fn close_pools(&mut self, handler: &mut H) {
        self.shared.end_pools(Stage::Closed);
        for pool in self.shared.pools.ids() {
            let now = self.shared.now;
            while let Some(work) = self.shared.pools.get(pool).policy.next(now) {
                self.do_work(handler, pool, work);
            }
        }
    }
}
