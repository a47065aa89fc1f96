//! The policy of a pool: which connection is leased to which wait, when to dial, and when to close.
//!
//! It knows connections by their ids and reads no clock. [`Pool::next`] says what to do; the executor,
//! `reactor/pools.rs`, does it and notes how it went.
//!
//! A connection keeps its place from its dial until its socket is closed: so there are never more
//! than [`PoolConfig::size`] at the server either.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use slab::Slab;

use crate::close::{CloseReason, Timeout};
use crate::config::{PoolConfig, PoolOrder};
use crate::core::dial::Blame;
use crate::core::stats::Counters;
use crate::id::{ConnId, WaitId};
use crate::time::{Instant, nanos, share_of};

/// The place of a connection in its pool.
pub(crate) type Place = u32;

/// However short a pause turns out, a dial that fails at once is not repeated at once.
const PAUSE_LEAST: u64 = 1_000_000;

/// After a shortage of our own, such as of ports, the next dial waits so long.
const SHORTAGE_PAUSE: u64 = 100_000_000;

/// The numbers of a pool: how many connections it has, and what has become of what was asked.
///
/// The first seven are of this moment, the others count since the pool was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct PoolStats {
    /// The most connections it may have.
    pub size: usize,
    /// Connections that have a place: dialled, idle, leased, checked, or closing and not yet closed.
    pub open: usize,
    /// Those of them that are idle.
    pub idle: usize,
    /// Those of them that are leased.
    pub leased: usize,
    /// Those of them that are dialled, or have yet to end their handshake.
    pub coming: usize,
    /// How many wait.
    pub waiting: usize,
    /// [`PoolConfig::fall`] dials in a row have failed, and no exchange has come to its end since.
    pub is_down: bool,
    /// How often a connection was asked for and could be waited for.
    pub asked: u64,
    /// Leases.
    pub leases: u64,
    /// Those of them of a connection that had been leased before.
    pub reused: u64,
    /// Refused at once, as too many waited.
    pub refused: u64,
    /// Waits that ended because their time was over.
    pub timed_out: u64,
    /// Waits that ended because a dial failed.
    pub failed: u64,
    /// Waits that were cancelled, or whose connection ended.
    pub cancelled: u64,
    /// Connections dialled.
    pub dialled: u64,
    /// Dials and handshakes that failed, and connections that their server ended within a second, before
    /// an exchange over them had come to its end.
    pub dials_failed: u64,
    /// Connections closed because they were idle for too long.
    pub idle_closed: u64,
    /// Connections closed because there were enough idle ones when they were given back.
    pub surplus: u64,
    /// Connections replaced because of their age.
    pub replaced: u64,
    /// Connections that ended while they were idle, or were found to have: the server closed them,
    /// or sent what was not asked for.
    pub lost_idle: u64,
    /// Connections closed because they were given back in the middle of an exchange.
    pub unclean: u64,
    /// Connections closed because what had leased them ended.
    pub owner_gone: u64,
    /// Connections that were pinged.
    pub pinged: u64,
    /// Requests sent again because the lease ended before a byte of the reply had come.
    pub replayed: u64,
    /// How the latest dial ended, if it failed and no exchange has come to its end since.
    pub last_dial: Option<CloseReason>,
}

/// How long a dialled connection that was never leased counts as new: its peer cannot have closed it
/// as idle yet.
const NEW_FOR: u64 = 100_000_000;

/// A server that ends a connection within this time, before an exchange has come to its end over it,
/// does not serve: that is a failed dial.
const UNSERVED_FOR: u64 = 1_000_000_000;

/// Where a connection of the pool is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// It is dialled.
    Dialling,
    /// It stands, and its handshake is under way.
    Handshake,
    /// It may be leased.
    Idle,
    /// It is the owner's, or the loop's.
    Leased(Option<ConnId>),
    /// It was given back, and is to be judged.
    Returned,
    /// It is brought back to a state in which it may be leased, until then.
    Cleaning,
    /// It has to answer a ping.
    Checked,
    /// Its end has begun.
    Ending,
}

#[derive(Debug)]
struct Member {
    conn: ConnId,
    phase: Phase,
    /// Since when it is in that phase.
    since: Instant,
    /// When the phase is over by itself.
    until: Instant,
    /// When it stood.
    stood_at: Instant,
    /// Since when it has been used for nothing but pings.
    unused_since: Instant,
    /// It has answered a ping, or none was sent: it is as unused as before.
    pinged: bool,
    /// An exchange over it, its handshake aside, has come to its end: it is not only the socket that
    /// works.
    proven: bool,
    /// One has since it was last idle.
    served: bool,
    /// When it is to be replaced.
    expires: Instant,
    /// How long it is idle before it is pinged.
    ping_after: u64,
    /// Leases so far.
    leases: u64,
    /// It was not new at its latest lease: its peer may have closed it meanwhile.
    used: bool,
    reported: bool,
}

impl Member {
    fn is_new(&self, now: Instant) -> bool {
        self.leases == 0 && now.nanos_since(self.stood_at) < NEW_FOR
    }

    /// It begins a phase that is over by itself at `until`. Returns the one before.
    #[inline]
    const fn begin(&mut self, phase: Phase, now: Instant, until: Instant) -> Phase {
        self.since = now;
        self.until = until;
        std::mem::replace(&mut self.phase, phase)
    }
}

/// What waits for a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Waiter {
    pub(crate) id: WaitId,
    /// The connection that asked; the loop where there is none.
    pub(crate) owner: Option<ConnId>,
    pub(crate) until: Instant,
    /// What is to be sent again, over a connection that was never leased.
    pub(crate) replay: Option<Box<Replay>>,
}

const _: () = assert!(size_of::<Waiter>() == 40, "the documents say what a wait costs");

/// A request over a lease that ended before a byte of the reply had come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Replay {
    /// The connection over which it was sent.
    pub(crate) lost: ConnId,
    pub(crate) request: Bytes,
}

/// What is to be done next.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Work {
    /// Answer this one, which has been taken out, with an error: its time is over.
    Expire(Waiter),
    /// Answer this one, which has been taken out, with an error: the last dial failed, or the pool
    /// is closed.
    Fail(Waiter),
    /// Judge what was given back or has become ready, then [keep](Pool::keep) it or close it.
    Judge(Place, ConnId),
    /// Check the socket; then [lease](Pool::lease) it or close it.
    Offer(Place, ConnId),
    /// Ping it.
    Ping(Place, ConnId),
    /// Close it.
    Close(ConnId, CloseReason),
    /// Report that it is leased for long.
    Report(ConnId, Option<ConnId>),
    /// Dial, then [add](Pool::add) it, or note that it [could not](Pool::note_shortage) be.
    Dial,
}

/// The policy of one pool.
#[derive(Debug)]
pub(crate) struct Pool {
    rules: Rules,
    members: Slab<Member>,
    /// Idle ones, the longest idle first.
    idle: VecDeque<Place>,
    /// Those that were given back and are to be judged.
    returned: VecDeque<Place>,
    /// In the order in which they asked, which is that of their ids.
    waiters: VecDeque<Waiter>,
    /// Those with something to send again. They come before the others, which they came before.
    replays: VecDeque<Waiter>,
    /// No waiter's time is over before that.
    waiters_due: Instant,
    /// Nothing of a member is due before that.
    members_due: Instant,
    coming: usize,
    leased: usize,
    ending: usize,
    /// Rounds of dials that failed since an exchange last came to its end.
    failures: u32,
    /// When the latest dial failed, and the share of the pause after it.
    failed_at: Instant,
    jitter: u64,
    /// Before that nothing is dialled, as we lack something.
    shortage_until: Instant,
    /// The latest dial did not begin, or failed, for that.
    lacks: bool,
    /// How many may be coming at once.
    ramp: usize,
    /// When the last one was replaced because of its age.
    replaced_at: Option<Instant>,
    /// Waiters are to be answered with an error.
    fails: bool,
    /// Nothing is dialled, as the endpoint is not available.
    held: bool,
    /// Nothing is done for later.
    drains: bool,
    closed: bool,
    stats: PoolStats,
    /// The sums over all pools.
    counters: Arc<Counters>,
}

/// The settings, in nanoseconds.
#[derive(Debug)]
struct Rules {
    size: usize,
    idle_max: usize,
    idle_min: usize,
    waiters_max: usize,
    lifo: bool,
    idle: u64,
    lifetime: u64,
    /// The least time between two replacements.
    spacing: u64,
    leases_max: u64,
    handshakes: bool,
    handshake: u64,
    cleaning: u64,
    ping_after: u64,
    ping: u64,
    backoff: u64,
    backoff_max: u64,
    backoff_waiting: u64,
    fall: u32,
    fail_fast: bool,
    report: u64,
}

impl Rules {
    fn new(config: &PoolConfig) -> Self {
        let off = |duration: Option<_>| duration.map_or(u64::MAX, nanos);
        Self {
            size: config.size,
            idle_max: config.idle_max,
            idle_min: config.idle_min,
            waiters_max: config.waiters_max,
            lifo: config.order == PoolOrder::Lifo,
            idle: off(config.idle),
            lifetime: off(config.lifetime),
            spacing: off(config.lifetime) / config.size as u64,
            leases_max: config.leases_max.unwrap_or(u64::MAX),
            handshakes: config.handshake.is_some(),
            handshake: off(config.handshake),
            cleaning: nanos(config.cleaning),
            ping_after: off(config.ping_after),
            ping: nanos(config.ping),
            backoff: nanos(config.backoff),
            backoff_max: nanos(config.backoff_max),
            backoff_waiting: nanos(config.backoff_waiting),
            fall: config.fall,
            fail_fast: config.fail_fast,
            report: off(config.lease_report),
        }
    }
}

/// Waiting.
impl Pool {
    pub(crate) fn new(config: &PoolConfig, counters: Arc<Counters>) -> Self {
        Self {
            rules: Rules::new(config),
            members: Slab::new(),
            idle: VecDeque::new(),
            returned: VecDeque::new(),
            waiters: VecDeque::new(),
            replays: VecDeque::new(),
            waiters_due: Instant::FAR_FUTURE,
            members_due: Instant::FAR_FUTURE,
            coming: 0,
            leased: 0,
            ending: 0,
            failures: 0,
            failed_at: Instant::EPOCH,
            jitter: 0,
            shortage_until: Instant::EPOCH,
            lacks: false,
            ramp: config.size,
            replaced_at: None,
            fails: false,
            held: false,
            drains: false,
            closed: false,
            stats: PoolStats::default(),
            counters,
        }
    }

    /// The numbers so far.
    pub(crate) fn stats(&self) -> PoolStats {
        PoolStats {
            size: self.rules.size,
            open: self.members.len(),
            idle: self.idle.len(),
            leased: self.leased,
            coming: self.coming,
            waiting: self.waiters.len() + self.replays.len(),
            is_down: self.is_down(),
            ..self.stats
        }
    }

    /// Something that asked was refused, as too many wait.
    pub(crate) fn note_refused(&mut self) {
        self.stats.refused += 1;
        self.counters.pool_failures.add(1);
    }

    /// How many connections there are.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) const fn is_down(&self) -> bool {
        self.failures >= self.rules.fall
    }

    /// Whether it does not dial, as its endpoint is not available.
    pub(crate) const fn is_held(&self) -> bool {
        self.held
    }

    pub(crate) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// The wait that has lasted longest.
    pub(crate) fn oldest_wait(&self) -> Option<WaitId> {
        let firsts = self.waiters.front().into_iter().chain(self.replays.front());
        firsts.map(|waiter| waiter.id).min()
    }

    pub(crate) fn has_waiters(&self) -> bool {
        !self.waiters.is_empty() || !self.replays.is_empty()
    }

    /// Whether another may wait. What is sent again waited before.
    pub(crate) fn takes_waiters(&self) -> bool {
        self.waiters.len() < self.rules.waiters_max
    }

    /// Lets `waiter`, with something to send again, wait before all that have nothing. Its id is
    /// greater than theirs.
    pub(crate) fn wait_again(&mut self, waiter: Waiter) {
        self.waiters_due = self.waiters_due.min(waiter.until);
        self.replays.push_back(waiter);
        self.stats.replayed += 1;
        self.counters.pool_waiting.add(1);
    }

    /// Lets `waiter` wait behind all others. Its id is greater than theirs.
    pub(crate) fn wait(&mut self, waiter: Waiter) {
        debug_assert!(self.waiters.back().is_none_or(|last| last.id.serial < waiter.id.serial));
        self.waiters_due = self.waiters_due.min(waiter.until);
        self.waiters.push_back(waiter);
        self.stats.asked += 1;
        self.counters.pool_waiting.add(1);
    }

    /// Takes out what waits under `id`, if it still does.
    pub(crate) fn cancel(&mut self, id: WaitId) -> Option<Waiter> {
        for list in [&mut self.waiters, &mut self.replays] {
            if let Ok(at) = list.binary_search_by_key(&id.serial, |waiter| waiter.id.serial) {
                self.stats.cancelled += 1;
                self.counters.pool_waiting.sub(1);
                return list.remove(at);
            }
        }
        None
    }

    /// Takes out the first that waits for `owner`.
    pub(crate) fn cancel_of(&mut self, owner: ConnId) -> Option<Waiter> {
        let mut all = self.waiters.iter().chain(&self.replays);
        let id = all.find(|waiter| waiter.owner == Some(owner))?.id;
        self.cancel(id)
    }

    /// The pool is not used any more: what waits is answered with an error, and what is idle closed.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.fails = true;
        self.members_due = Instant::EPOCH;
    }
}

/// What to do.
impl Pool {
    /// What is to be done next, at `now`; `None` if that is nothing before [`Pool::due`].
    #[inline]
    pub(crate) fn next(&mut self, now: Instant) -> Option<Work> {
        // Mostly something that waits can have an idle connection, or nothing is to be done.
        let is_calm = self.returned.is_empty()
            && self.replays.is_empty()
            && !self.fails
            && !self.held
            && now < self.members_due;
        if is_calm && !self.waiters.is_empty() {
            if let Some(place) = self.candidate() {
                return Some(Work::Offer(place, self.members[place as usize].conn));
            }
        } else if is_calm && self.idle.len() >= self.rules.idle_min && now < self.waiters_due {
            return None;
        }
        self.next_of_all(now)
    }

    /// [`Pool::next`], whatever there is to be done.
    #[inline(never)]
    fn next_of_all(&mut self, now: Instant) -> Option<Work> {
        while let Some(place) = self.returned.pop_front() {
            let member = self.members.get(place as usize);
            if let Some(member) = member.filter(|member| member.phase == Phase::Returned) {
                return Some(Work::Judge(place, member.conn));
            }
        }
        if (self.held || self.fails)
            && let Some(waiter) = self.take_failed()
        {
            return Some(Work::Fail(waiter));
        }
        if now >= self.members_due
            && let Some(work) = self.take_due(now)
        {
            return Some(work);
        }
        let fresh = if self.replays.is_empty() { None } else { self.fresh(now) };
        let any = || if self.waiters.is_empty() { None } else { self.candidate() };
        if let Some(place) = fresh.or_else(any) {
            return Some(Work::Offer(place, self.members[place as usize].conn));
        }
        // What can be served is not late.
        if now >= self.waiters_due
            && let Some(waiter) = self.take_expired(now)
        {
            return Some(Work::Expire(waiter));
        }
        if !self.replays.is_empty()
            && self.coming + self.ending == 0
            && self.members.len() >= self.rules.size
            && let Some(place) = self.idle.front()
        {
            // It makes room for a new one.
            return Some(self.end(*place, CloseReason::PoolSurplus, now));
        }
        (self.wants_dial(now) && now >= self.dial_at()).then_some(Work::Dial)
    }

    /// When [`Pool::next`] has something to do again, if nothing is noted until then; never after
    /// the time at which that is so.
    #[inline]
    pub(crate) fn due(&self, now: Instant) -> Instant {
        let due = self.waiters_due.min(self.members_due);
        if self.wants_dial(now) { due.min(self.dial_at()) } else { due }
    }

    /// Whether all that is [due](Pool::due) is done where [`Pool::next`] is asked `at` that time.
    #[inline]
    pub(crate) fn is_served_by(&self, at: Instant, now: Instant) -> bool {
        at <= self.waiters_due
            && at <= self.members_due
            && (!self.wants_dial(now) || at <= self.dial_at())
    }

    #[cold]
    fn take_failed(&mut self) -> Option<Waiter> {
        let is_gone = self.held && self.rules.fail_fast && self.members.len() == self.ending;
        if !self.fails && !is_gone {
            return None;
        }
        let waiter = self.replays.pop_front().or_else(|| self.waiters.pop_front());
        self.fails = waiter.is_some();
        if waiter.is_some() {
            self.stats.failed += 1;
            count_failure(&self.counters);
        }
        waiter
    }

    #[cold]
    fn take_expired(&mut self, now: Instant) -> Option<Waiter> {
        for list in [&mut self.replays, &mut self.waiters] {
            if let Some(at) = list.iter().position(|waiter| waiter.until <= now) {
                self.stats.timed_out += 1;
                count_failure(&self.counters);
                return list.remove(at);
            }
        }
        let next = self.waiters.iter().chain(&self.replays).map(|waiter| waiter.until).min();
        self.waiters_due = next.unwrap_or(Instant::FAR_FUTURE);
        None
    }

    /// The idle connection that is leased next.
    fn candidate(&self) -> Option<Place> {
        let end = if self.rules.lifo { self.idle.back() } else { self.idle.front() };
        end.copied()
    }

    /// An idle connection that is new.
    fn fresh(&self, now: Instant) -> Option<Place> {
        let mut idle = self.idle.iter().copied();
        idle.find(|place| self.members[*place as usize].is_new(now))
    }

    /// What is due of members, one after the other; when nothing more is, when the next is due.
    fn take_due(&mut self, now: Instant) -> Option<Work> {
        let mut next = Instant::FAR_FUTURE;
        // Those idle longest come first. One that is kept beyond its time is looked at again when
        // one more is idle.
        if self.idle.len() > self.rules.idle_min
            && let Some(place) = self.idle.front()
        {
            let longest = &self.members[*place as usize];
            let over = longest.unused_since.after(self.rules.idle);
            if over <= now {
                return Some(self.end(*place, CloseReason::Timeout(Timeout::Idle), now));
            }
            next = over;
        }
        for at in 0..self.members.capacity() {
            let Some(member) = self.members.get(at) else { continue };
            let (conn, since, phase) = (member.conn, member.since, member.phase);
            match phase {
                Phase::Dialling | Phase::Ending | Phase::Returned => {}
                Phase::Leased(owner) => {
                    let report = since.after(self.rules.report);
                    if !member.reported && report <= now {
                        self.members[at].reported = true;
                        return Some(Work::Report(conn, owner));
                    }
                    next = next.min(if member.reported { Instant::FAR_FUTURE } else { report });
                }
                Phase::Handshake | Phase::Cleaning | Phase::Checked => {
                    if member.until <= now {
                        self.members[at].until = Instant::FAR_FUTURE;
                        let reason = match phase {
                            Phase::Checked => CloseReason::Timeout(Timeout::Ping),
                            Phase::Cleaning => CloseReason::PoolUnclean,
                            _ => CloseReason::Timeout(Timeout::Handshake),
                        };
                        return Some(Work::Close(conn, reason));
                    }
                    next = next.min(member.until);
                }
                Phase::Idle => {
                    if self.closed {
                        return Some(self.end(at as Place, CloseReason::Shutdown, now));
                    }
                    let replaced = self.replacement_due(member);
                    if replaced <= now {
                        let reason = CloseReason::Timeout(Timeout::Lifetime);
                        return Some(self.end(at as Place, reason, now));
                    }
                    if member.until <= now && !self.drains {
                        self.stats.pinged += 1;
                        self.members[at].pinged = true;
                        self.enter(at as Place, Phase::Checked, now, self.rules.ping);
                        return Some(Work::Ping(at as Place, conn));
                    }
                    let ping = if self.drains { Instant::FAR_FUTURE } else { member.until };
                    next = next.min(replaced).min(ping);
                }
            }
        }
        self.members_due = next;
        None
    }

    /// Ends an idle connection.
    fn end(&mut self, place: Place, reason: CloseReason, now: Instant) -> Work {
        self.enter_ending(place, reason, now);
        Work::Close(self.members[place as usize].conn, reason)
    }

    /// When a member is to be replaced because of its age: not soon after another, and not before
    /// its first lease, if something waits for that.
    fn replacement_due(&self, member: &Member) -> Instant {
        if member.leases == 0 && self.has_waiters() {
            return Instant::FAR_FUTURE;
        }
        let spaced = self.replaced_at.map_or(Instant::EPOCH, |at| at.after(self.rules.spacing));
        member.expires.max(spaced)
    }

    /// Before that nothing is dialled: after a failure, or while we lack something. The pause is the
    /// shorter the sooner something waits.
    fn dial_at(&self) -> Instant {
        if self.failures == 0 {
            return self.shortage_until;
        }
        let rules = &self.rules;
        let doubled = rules.backoff.saturating_mul(1 << (self.failures - 1).min(32));
        let most = if self.has_waiters() { rules.backoff_waiting } else { rules.backoff_max };
        let pause = share_of(doubled.min(most), self.jitter).max(PAUSE_LEAST);
        self.failed_at.after(pause).max(self.shortage_until)
    }

    /// Whether another connection is wanted, whenever it may be dialled.
    #[inline]
    fn wants_dial(&self, now: Instant) -> bool {
        // Mostly nothing waits, and enough are idle.
        (self.has_waiters() || self.idle.len() < self.rules.idle_min) && self.lacks_one(now)
    }

    fn lacks_one(&self, now: Instant) -> bool {
        let needed = (self.waiters.len() + self.replays.len()).saturating_sub(self.coming);
        // What is sent again wants a new one.
        let idle = self.idle.is_empty() || (!self.replays.is_empty() && self.fresh(now).is_none());
        let spare = self.coming == 0 && self.idle.len() < self.rules.idle_min && !self.drains;
        !self.closed
            && !self.held
            && self.members.len() < self.rules.size
            && self.coming < self.ramp
            && ((needed > 0 && idle) || spare)
    }
}

/// What happened.
impl Pool {
    /// A connection is dialled.
    pub(crate) fn add(&mut self, conn: ConnId, now: Instant) -> Place {
        self.stats.dialled += 1;
        self.counters.pool_connections.add(1);
        self.lacks = false;
        self.coming += 1;
        let member = Member {
            conn,
            phase: Phase::Dialling,
            since: now,
            until: Instant::FAR_FUTURE,
            stood_at: Instant::FAR_FUTURE,
            unused_since: now,
            pinged: false,
            proven: false,
            served: false,
            expires: Instant::FAR_FUTURE,
            ping_after: u64::MAX,
            leases: 0,
            used: false,
            reported: false,
        };
        self.members.insert(member) as Place
    }

    /// Whether it may dial, as its endpoint is available, or not. If it was not it dials at once.
    pub(crate) const fn hold(&mut self, held: bool) {
        if self.held && !held {
            self.failed_at = Instant::EPOCH;
            self.jitter = 0;
        }
        self.held = held;
    }

    /// None could be dialled, as we have no place left.
    pub(crate) fn note_shortage(&mut self, now: Instant) {
        self.lacks = true;
        self.shortage_until = now.after(SHORTAGE_PAUSE);
    }

    /// None could be dialled, but a place will be free with the next turn.
    pub(crate) fn note_place_comes(&mut self, now: Instant) {
        self.lacks = true;
        self.shortage_until = now.after(PAUSE_LEAST);
    }

    /// Whether the latest dial did not begin, or failed, as we lack something.
    pub(crate) const fn lacks(&self) -> bool {
        self.lacks
    }

    /// There may be a place again.
    pub(crate) fn end_shortage(&mut self) {
        self.shortage_until = Instant::EPOCH;
    }

    /// Whether a connection that stands has a handshake before its first lease.
    pub(crate) const fn has_handshake(&self) -> bool {
        self.rules.handshakes
    }

    /// A dialled connection stands.
    pub(crate) fn note_connected(&mut self, place: Place, now: Instant, random: u64) {
        let member = &mut self.members[place as usize];
        if member.phase != Phase::Dialling {
            return;
        }
        let (lifetime, ping_after) = (self.rules.lifetime, self.rules.ping_after);
        member.expires = match lifetime {
            u64::MAX => Instant::FAR_FUTURE,
            _ => now.after(lifetime - share_of(lifetime / 4, random)),
        };
        member.ping_after = match ping_after {
            u64::MAX => u64::MAX,
            _ => ping_after - share_of(ping_after / 5, random.rotate_left(32)),
        };
        member.stood_at = now;
        // As TCP's slow start: twice as many for each round of dials.
        self.ramp = (self.ramp + 1).min(self.rules.size);
        if self.rules.handshakes {
            self.enter(place, Phase::Handshake, now, self.rules.handshake);
        } else {
            self.give_back(place, now);
        }
    }

    /// Its handshake or its cleaning has ended, or it has answered a ping: it is to be judged.
    /// Returns whether that was to be said.
    pub(crate) fn note_ready(&mut self, place: Place, now: Instant) -> bool {
        let member = &mut self.members[place as usize];
        let ready = matches!(member.phase, Phase::Handshake | Phase::Cleaning | Phase::Checked);
        if ready {
            // A server may greet and close.
            member.proven |= member.phase != Phase::Handshake;
            self.give_back(place, now);
            self.members[place as usize].served = true;
        }
        ready
    }

    /// A ping sent nothing: the connection is as idle as before.
    pub(crate) fn note_unpinged(&mut self, place: Place, now: Instant) {
        if self.phase(place) == Phase::Checked {
            self.give_back(place, now);
        }
    }

    /// What was given back becomes idle, until it is to be `replaced` at the latest.
    #[inline(always)]
    fn rest(&mut self, place: Place, replaced: Instant, now: Instant) {
        let member = &mut self.members[place as usize];
        if !std::mem::take(&mut member.pinged) {
            member.unused_since = now;
        }
        let unused_since = member.unused_since;
        let until = now.after(member.ping_after);
        let before = member.begin(Phase::Idle, now, until);
        debug_assert_eq!(before, Phase::Returned, "what becomes idle was given back");
        let due = unused_since.after(self.rules.idle).min(replaced).min(until);
        self.members_due = self.members_due.min(due);
        self.join_idle(place, unused_since);
    }

    /// Leases an idle connection to what has waited longest, which is taken out.
    #[inline(always)]
    pub(crate) fn lease(&mut self, place: Place, now: Instant) -> Option<Waiter> {
        let member = &mut self.members[place as usize];
        let is_new = member.is_new(now);
        let waiter = if is_new && !self.replays.is_empty() {
            self.replays.pop_front()?
        } else {
            self.waiters.pop_front()?
        };
        let before = member.begin(Phase::Leased(waiter.owner), now, Instant::FAR_FUTURE);
        debug_assert_eq!(before, Phase::Idle, "what is leased was idle");
        member.leases += 1;
        member.used = !is_new;
        member.pinged = false;
        member.reported = false;
        self.stats.leases += 1;
        self.stats.reused += u64::from(member.leases > 1);
        self.members_due = self.members_due.min(now.after(self.rules.report));
        self.leave_idle(place);
        self.leased += 1;
        self.counters.pool_leased.add(1);
        self.counters.pool_leases.add(1);
        self.counters.pool_waiting.sub(1);
        Some(waiter)
    }

    /// Whether it was not new when it was leased.
    pub(crate) fn is_used(&self, place: Place) -> bool {
        self.members[place as usize].used
    }

    /// Whether what was given back has come to the end of an exchange since it was last idle.
    pub(crate) fn has_served(&self, place: Place) -> bool {
        self.members[place as usize].served
    }

    pub(crate) fn phase(&self, place: Place) -> Phase {
        self.members[place as usize].phase
    }

    /// A lease is given back: [`Pool::next`] says that it is to be judged.
    pub(crate) fn give_back(&mut self, place: Place, now: Instant) {
        self.hand_over(place, now);
        self.returned.push_back(place);
    }

    /// A lease is given back. The caller judges it, and [`Pool::next`] does not say so.
    #[inline(always)]
    pub(crate) fn hand_over(&mut self, place: Place, now: Instant) {
        let member = &mut self.members[place as usize];
        let before = member.begin(Phase::Returned, now, Instant::FAR_FUTURE);
        member.served = matches!(before, Phase::Leased(_));
        member.proven |= member.served;
        self.leave(place, before);
    }

    /// A lease is given back in the middle of an exchange, which its handler brings to an end.
    pub(crate) fn clean(&mut self, place: Place, now: Instant) {
        self.enter(place, Phase::Cleaning, now, self.rules.cleaning);
    }

    /// What was given back is at the end of an exchange. Keeps it, or says why it is to be closed.
    #[inline(always)]
    pub(crate) fn keep(&mut self, place: Place, now: Instant) -> Option<CloseReason> {
        let member = &self.members[place as usize];
        if member.proven {
            self.failures = 0;
            self.stats.last_dial = None;
        }
        let replaced = self.replacement_due(member);
        let reason = if self.closed {
            CloseReason::Shutdown
        } else if member.leases >= self.rules.leases_max {
            CloseReason::MaxRequests
        } else if replaced <= now {
            CloseReason::Timeout(Timeout::Lifetime)
        } else if !self.has_waiters() && self.idle.len() >= self.rules.idle_max {
            CloseReason::PoolSurplus
        } else {
            self.rest(place, replaced, now);
            return None;
        };
        Some(reason)
    }

    /// The end of a connection begins. If it never could be leased, that is a failed dial: returns
    /// whether it was one.
    pub(crate) fn note_ending(
        &mut self,
        place: Place,
        reason: CloseReason,
        blame: Blame,
        now: Instant,
        random: u64,
    ) -> bool {
        let member = &self.members[place as usize];
        let phase = member.phase;
        if phase == Phase::Ending {
            return false;
        }
        // One that its peer ends at once was accepted and not served.
        let came = !matches!(phase, Phase::Dialling | Phase::Handshake);
        let unserved =
            is_loss(reason) && !member.proven && now.nanos_since(member.stood_at) < UNSERVED_FOR;
        if !came || unserved {
            let begun_at = member.since;
            self.stats.last_dial = Some(reason);
            self.note_failed_dial(blame, begun_at, now, random);
        }
        self.enter_ending(place, reason, now);
        // Others may still come, or be given back.
        self.fails |= !came && self.rules.fail_fast && self.coming == 0 && self.leased == 0;
        !came || unserved
    }

    /// The end of a connection begins: the only place that counts why.
    fn enter_ending(&mut self, place: Place, reason: CloseReason, now: Instant) {
        let phase = self.phase(place);
        self.enter(place, Phase::Ending, now, u64::MAX);
        let unused = matches!(phase, Phase::Idle | Phase::Returned | Phase::Checked);
        match reason {
            CloseReason::Timeout(Timeout::Idle) => self.stats.idle_closed += 1,
            CloseReason::Timeout(Timeout::Lifetime) => {
                self.replaced_at = Some(now);
                self.stats.replaced += 1;
            }
            CloseReason::PoolSurplus => self.stats.surplus += 1,
            CloseReason::PoolUnclean => self.stats.unclean += 1,
            CloseReason::OwnerGone => self.stats.owner_gone += 1,
            lost if unused && is_loss(lost) => self.stats.lost_idle += 1,
            _ => {}
        }
    }

    fn note_failed_dial(&mut self, blame: Blame, begun_at: Instant, now: Instant, random: u64) {
        self.stats.dials_failed += 1;
        self.counters.pool_dials_failed.add(1);
        if blame == Blame::Ours {
            return self.note_shortage(now);
        }
        // What was dialled before the latest failure belongs to its round.
        if self.failures == 0 || begun_at > self.failed_at {
            self.failures = self.failures.saturating_add(1);
            self.jitter = random;
        }
        self.failed_at = now;
        self.ramp = 1;
    }

    /// From here on only what waits is served: nothing is dialled or pinged for later.
    pub(crate) fn drain(&mut self) {
        self.drains = true;
    }

    /// The socket of a connection is closed: its place is free.
    pub(crate) fn remove(&mut self, place: Place) {
        debug_assert_eq!(self.members[place as usize].phase, Phase::Ending);
        self.members.remove(place as usize);
        self.ending -= 1;
        self.counters.pool_connections.sub(1);
    }

    /// The first that is leased to `owner`.
    pub(crate) fn lease_of(&self, owner: ConnId) -> Option<ConnId> {
        let mut members = self.members.iter().map(|(_, member)| member);
        members.find(|member| member.phase == Phase::Leased(Some(owner))).map(|it| it.conn)
    }

    /// The one that has been idle longest, and since when.
    pub(crate) fn longest_idle(&self) -> Option<(Instant, ConnId)> {
        let member = &self.members[*self.idle.front()? as usize];
        Some((member.unused_since, member.conn))
    }

    /// It enters a phase that is over after `most`. [`Pool::rest`] and [`Pool::lease`] enter the others.
    fn enter(&mut self, place: Place, phase: Phase, now: Instant, most: u64) {
        let until = now.after(most);
        let before = self.members[place as usize].begin(phase, now, until);
        self.members_due = self.members_due.min(until);
        self.leave(place, before);
        match phase {
            Phase::Dialling | Phase::Handshake => self.coming += 1,
            Phase::Ending => self.ending += 1,
            Phase::Returned | Phase::Cleaning | Phase::Checked => {}
            Phase::Idle | Phase::Leased(_) => {
                debug_assert!(false, "{phase:?} is entered elsewhere")
            }
        }
    }

    /// It is in the phase no more in which it was `before`.
    #[inline(always)]
    fn leave(&mut self, place: Place, before: Phase) {
        match before {
            Phase::Idle => self.leave_idle(place),
            Phase::Leased(_) => {
                self.leased -= 1;
                self.counters.pool_leased.sub(1);
            }
            Phase::Dialling | Phase::Handshake => self.coming -= 1,
            Phase::Ending => self.ending -= 1,
            Phase::Returned | Phase::Cleaning | Phase::Checked => {}
        }
    }

    #[inline(always)]
    fn leave_idle(&mut self, place: Place) {
        // Mostly it is at one of the ends.
        if self.idle.back() == Some(&place) {
            self.idle.pop_back();
        } else if self.idle.front() == Some(&place) {
            self.idle.pop_front();
        } else {
            self.leave_middle(place);
        }
    }

    #[cold]
    fn leave_middle(&mut self, place: Place) {
        self.idle.retain(|idle| *idle != place);
    }

    #[inline(always)]
    fn join_idle(&mut self, place: Place, unused_since: Instant) {
        let last = self.idle.back().map(|last| self.members[*last as usize].unused_since);
        if last.is_none_or(|last| last <= unused_since) {
            self.idle.push_back(place);
        } else {
            self.join_middle(place, unused_since);
        }
    }

    /// One that was only pinged is as unused as before.
    #[cold]
    fn join_middle(&mut self, place: Place, unused_since: Instant) {
        let members = &self.members;
        let is_longer = |other: &Place| members[*other as usize].unused_since <= unused_since;
        self.idle.insert(self.idle.partition_point(is_longer), place);
    }
}

/// One that waited is answered with an error.
fn count_failure(counters: &Counters) {
    counters.pool_waiting.sub(1);
    counters.pool_failures.add(1);
}

/// Whether an end with this reason is the doing of the peer, or of the network between.
const fn is_loss(reason: CloseReason) -> bool {
    matches!(
        reason,
        CloseReason::PeerEof
            | CloseReason::PeerReset
            | CloseReason::Io(_)
            | CloseReason::UnsolicitedData
    )
}

/// What must hold between two turns.
#[cfg(feature = "sim")]
impl Pool {
    /// The connections, their places and phases.
    pub(crate) fn members(&self) -> impl Iterator<Item = (Place, ConnId, Phase)> {
        self.members.iter().map(|(at, member)| (at as Place, member.conn, member.phase))
    }

    pub(crate) fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        self.waiters.iter().chain(&self.replays)
    }

    /// The lists and sums are those of the members.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let count = |is: fn(Phase) -> bool| self.members().filter(|(.., phase)| is(*phase)).count();
        let sums = [
            (
                "coming",
                self.coming,
                count(|phase| matches!(phase, Phase::Dialling | Phase::Handshake)),
            ),
            ("ending", self.ending, count(|phase| phase == Phase::Ending)),
            ("leased", self.leased, count(|phase| matches!(phase, Phase::Leased(_)))),
            ("idle", self.idle.len(), count(|phase| phase == Phase::Idle)),
        ];
        for (name, known, there) in sums {
            if known != there {
                return Err(format!("{known} {name} are known, and {there} are there"));
            }
        }
        if self.members.len() > self.rules.size {
            return Err(format!(
                "{} connections, and {} may be",
                self.members.len(),
                self.rules.size
            ));
        }
        if self.waiters.len() > self.rules.waiters_max {
            return Err(format!("{} wait, and {} may", self.waiters.len(), self.rules.waiters_max));
        }
        let is_idle = |place: &Place| self.members[*place as usize].phase == Phase::Idle;
        if !self.idle.iter().all(is_idle) {
            return Err("a connection is in the list of idle ones and is not idle".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::id::PoolId;

    const POOL: PoolId = PoolId(0);

    const fn secs(secs: u64) -> Instant {
        Instant::from_nanos(secs * 1_000_000_000)
    }

    fn waiter(serial: u64, owner: u32, until: Instant) -> Waiter {
        let owner = Some(ConnId::new(owner, 1));
        Waiter { id: WaitId { serial, pool: POOL }, owner, until, replay: None }
    }

    fn conn(number: u64) -> ConnId {
        ConnId::new(1_000 + number as u32, 1)
    }

    /// A pool whose dials succeed at once and whose sockets are sound.
    struct Model {
        pool: Pool,
        now: Instant,
        conns: u64,
        asked: u64,
        /// Waits that have not been answered.
        waiting: BTreeSet<u64>,
        /// Those of them with something to send again.
        again: BTreeSet<u64>,
        /// Connections that are leased.
        leases: Vec<Place>,
        /// Connections that are dialled.
        coming: Vec<Place>,
        /// Connections whose end has begun.
        ending: Vec<Place>,
        most_open: usize,
        random: u64,
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Ask { owner: u32, secs: u64 },
        Cancel { serial: u64 },
        EndOwner { owner: u32 },
        DialSucceeds(usize),
        DialFails(usize, bool),
        GiveBack(usize),
        Clean(usize),
        LoseLease(usize),
        Replay(usize),
        LoseIdle,
        CloseSocket(usize),
        Pass { millis: u64 },
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            6 => (0..6_u32, 1..8_u64).prop_map(|(owner, secs)| Op::Ask { owner, secs }),
            1 => (0..200_u64).prop_map(|serial| Op::Cancel { serial }),
            1 => (0..6_u32).prop_map(|owner| Op::EndOwner { owner }),
            4 => any::<usize>().prop_map(Op::DialSucceeds),
            2 => (any::<usize>(), any::<bool>()).prop_map(|(at, ours)| Op::DialFails(at, ours)),
            6 => any::<usize>().prop_map(Op::GiveBack),
            1 => any::<usize>().prop_map(Op::Clean),
            1 => any::<usize>().prop_map(Op::LoseLease),
            1 => any::<usize>().prop_map(Op::Replay),
            1 => Just(Op::LoseIdle),
            4 => any::<usize>().prop_map(Op::CloseSocket),
            4 => (0..4_000_u64).prop_map(|millis| Op::Pass { millis }),
        ];
        prop::collection::vec(op, 1..200)
    }

    impl Model {
        fn new(config: &PoolConfig) -> Self {
            Self {
                pool: Pool::new(config, Arc::default()),
                now: secs(1),
                conns: 0,
                asked: 0,
                waiting: BTreeSet::new(),
                again: BTreeSet::new(),
                leases: Vec::new(),
                coming: Vec::new(),
                ending: Vec::new(),
                most_open: 0,
                random: 7,
            }
        }

        fn random(&mut self) -> u64 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.random
        }

        fn answered(&mut self, waiter: Waiter) {
            assert!(self.waiting.remove(&waiter.id.serial), "{waiter:?} is answered once");
            self.again.remove(&waiter.id.serial);
        }

        fn end(&mut self, place: Place, reason: CloseReason, blame: Blame) {
            let random = self.random();
            self.pool.note_ending(place, reason, blame, self.now, random);
            self.coming.retain(|coming| *coming != place);
            self.leases.retain(|lease| *lease != place);
            self.ending.push(place);
        }

        fn place_of(&self, id: ConnId) -> Place {
            self.pool.members().find(|(_, conn, _)| *conn == id).expect("a member").0
        }

        /// Does all that the policy says.
        fn work(&mut self) {
            let mut steps = 0;
            while let Some(work) = self.pool.next(self.now) {
                steps += 1;
                assert!(steps < 10_000, "the policy has no end: {work:?}");
                match work {
                    Work::Expire(waiter) => {
                        assert!(waiter.until <= self.now);
                        self.answered(waiter);
                    }
                    Work::Fail(waiter) => self.answered(waiter),
                    Work::Judge(place, _) => {
                        if let Some(reason) = self.pool.keep(place, self.now) {
                            self.end(place, reason, Blame::Theirs);
                        }
                    }
                    Work::Offer(place, _) => {
                        let first = self.waiting.difference(&self.again).next().copied();
                        let waiter = self.pool.lease(place, self.now).expect("one waits");
                        match waiter.replay {
                            Some(_) => assert!(!self.pool.is_used(place), "a new one"),
                            None => assert_eq!(Some(waiter.id.serial), first, "in their turn"),
                        }
                        self.answered(waiter);
                        self.leases.push(place);
                    }
                    Work::Ping(place, _) => assert!(self.pool.note_ready(place, self.now)),
                    Work::Close(id, reason) => {
                        let place = self.place_of(id);
                        self.end(place, reason, Blame::Theirs);
                    }
                    Work::Report(..) => {}
                    Work::Dial => {
                        let spare = self.pool.coming == 0;
                        assert!(self.coming.len() < self.waiting.len() || spare, "needless dial");
                        self.conns += 1;
                        let place = self.pool.add(conn(self.conns), self.now);
                        self.coming.push(place);
                    }
                }
                self.most_open = self.most_open.max(self.pool.len());
            }
            assert!(self.pool.due(self.now) > self.now, "what is due is done");
            self.pool.audit().unwrap();
        }

        fn pick(list: &[Place], at: usize) -> Option<Place> {
            if list.is_empty() { None } else { Some(list[at % list.len()]) }
        }

        fn apply(&mut self, op: Op) {
            match op {
                Op::Ask { owner, secs } if self.pool.takes_waiters() => {
                    self.asked += 1;
                    let until = self.now + Duration::from_secs(secs);
                    self.pool.wait(waiter(self.asked, owner, until));
                    self.waiting.insert(self.asked);
                }
                Op::Ask { .. } => {}
                Op::Cancel { serial } => {
                    let id = WaitId { serial, pool: POOL };
                    assert_eq!(self.pool.cancel(id).is_some(), self.waiting.remove(&serial));
                    self.again.remove(&serial);
                }
                Op::EndOwner { owner } => {
                    let owner = ConnId::new(owner, 1);
                    while let Some(waiter) = self.pool.cancel_of(owner) {
                        self.answered(waiter);
                    }
                    while let Some(id) = self.pool.lease_of(owner) {
                        let place = self.place_of(id);
                        self.end(place, CloseReason::OwnerGone, Blame::Theirs);
                    }
                }
                Op::DialSucceeds(at) => {
                    if let Some(place) = Self::pick(&self.coming, at) {
                        self.coming.retain(|coming| *coming != place);
                        let random = self.random();
                        self.pool.note_connected(place, self.now, random);
                    }
                }
                Op::DialFails(at, ours) => {
                    if let Some(place) = Self::pick(&self.coming, at) {
                        let blame = if ours { Blame::Ours } else { Blame::Theirs };
                        self.end(place, CloseReason::Timeout(Timeout::Connect), blame);
                    }
                }
                Op::GiveBack(at) => {
                    if let Some(place) = Self::pick(&self.leases, at) {
                        self.leases.retain(|lease| *lease != place);
                        self.pool.give_back(place, self.now);
                    }
                }
                Op::Clean(at) => {
                    if let Some(place) = Self::pick(&self.leases, at) {
                        self.leases.retain(|lease| *lease != place);
                        self.pool.clean(place, self.now);
                    }
                }
                Op::LoseLease(at) => {
                    if let Some(place) = Self::pick(&self.leases, at) {
                        self.end(place, CloseReason::PeerEof, Blame::Theirs);
                    }
                }
                Op::Replay(at) => {
                    if let Some(place) = Self::pick(&self.leases, at)
                        && self.pool.is_used(place)
                    {
                        self.end(place, CloseReason::PeerEof, Blame::Theirs);
                        self.asked += 1;
                        let until = self.now + Duration::from_secs(5);
                        let replay = Replay { lost: conn(0), request: Bytes::new() };
                        let again = waiter(self.asked, 1, until);
                        self.pool.wait_again(Waiter { replay: Some(Box::new(replay)), ..again });
                        self.waiting.insert(self.asked);
                        self.again.insert(self.asked);
                    }
                }
                Op::LoseIdle => {
                    if let Some(place) = self.pool.candidate() {
                        self.end(place, CloseReason::PeerReset, Blame::Theirs);
                    }
                }
                Op::CloseSocket(at) => {
                    if let Some(place) = Self::pick(&self.ending, at) {
                        self.ending.retain(|ending| *ending != place);
                        self.pool.remove(place);
                    }
                }
                Op::Pass { millis } => self.now += Duration::from_millis(millis),
            }
            self.work();
        }

        /// All dials succeed and all leases are given back, until nothing waits.
        fn calm_down(&mut self) {
            for _ in 0..2_000 {
                if self.waiting.is_empty() && self.leases.is_empty() {
                    break;
                }
                for at in 0..8 {
                    self.apply(Op::CloseSocket(at));
                    self.apply(Op::DialSucceeds(at));
                    self.apply(Op::GiveBack(at));
                }
                self.apply(Op::Pass { millis: 100 });
            }
            assert!(self.waiting.is_empty() && self.leases.is_empty(), "{:?}", self.pool);
        }
    }

    fn configs() -> [PoolConfig; 4] {
        let second = Some(Duration::from_secs(1));
        let small = PoolConfig { size: 3, idle_max: 2, waiters_max: 8, ..PoolConfig::default() };
        [
            PoolConfig::default(),
            small.clone(),
            PoolConfig {
                idle: second,
                idle_min: 1,
                lifetime: Some(Duration::from_secs(3)),
                leases_max: Some(2),
                order: PoolOrder::Fifo,
                ..small.clone()
            },
            PoolConfig { ping_after: second, fail_fast: true, lease_report: None, ..small },
        ]
    }

    proptest! {
        #[test]
        fn every_wait_is_answered_once_and_no_place_is_lost(ops in ops(), which in 0..4_usize) {
            let config = &configs()[which];
            let mut model = Model::new(config);
            for op in ops {
                model.apply(op);
            }
            model.calm_down();
            prop_assert!(model.most_open <= config.size);
        }
    }

    #[test]
    fn the_pause_after_a_failed_dial_doubles_to_its_greatest() {
        let config = PoolConfig { idle_min: 1, ..PoolConfig::default() };
        let mut pool = Pool::new(&config, Arc::default());
        let mut now = secs(1);
        let mut pauses = Vec::new();
        for number in 0..9 {
            assert_eq!(pool.next(now), Some(Work::Dial));
            let place = pool.add(conn(number), now);
            assert_eq!(pool.next(now), None, "one at a time");
            pool.note_ending(place, CloseReason::PeerReset, Blame::Theirs, now, u64::MAX);
            pool.remove(place);
            assert_eq!(pool.next(now), None);
            pauses.push((pool.due(now) - now).as_millis() + 1);
            now = pool.due(now);
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]);
    }

    #[test]
    fn after_an_outage_dials_double() {
        let mut pool = Pool::new(&PoolConfig::default(), Arc::default());
        for serial in 1..100 {
            pool.wait(waiter(serial, 1, secs(60)));
        }
        let dials = |pool: &mut Pool, now| {
            let mut places = Vec::new();
            while let Some(work) = pool.next(now) {
                match work {
                    Work::Dial => places.push(pool.add(conn(pool.len() as u64), now)),
                    Work::Judge(place, _) => assert_eq!(pool.keep(place, now), None),
                    Work::Offer(place, _) => _ = pool.lease(place, now),
                    work => panic!("{work:?}"),
                }
            }
            places
        };
        let mut now = secs(1);
        let first = dials(&mut pool, now);
        assert_eq!(first.len(), 64, "as many as there may be");
        for place in first {
            pool.note_ending(place, CloseReason::PeerReset, Blame::Theirs, now, u64::MAX);
            pool.remove(place);
        }
        let mut counts = Vec::new();
        for _ in 0..5 {
            now = now.max(pool.due(now));
            let places = dials(&mut pool, now);
            counts.push(places.len());
            for place in places {
                pool.note_connected(place, now, 0);
            }
        }
        assert_eq!(counts, [1, 2, 4, 8, 16]);
    }

    #[test]
    fn a_connection_that_is_dialled_is_not_ready() {
        let config =
            PoolConfig { handshake: Some(Duration::from_secs(1)), ..PoolConfig::default() };
        let mut pool = Pool::new(&config, Arc::default());
        let now = secs(1);
        pool.wait(waiter(1, 1, secs(9)));
        assert_eq!(pool.next(now), Some(Work::Dial));
        let place = pool.add(conn(0), now);
        assert!(!pool.note_ready(place, now));
        assert_eq!(pool.next(now), None);
        pool.note_connected(place, now, 0);
        assert!(pool.note_ready(place, now));
        assert_eq!(pool.next(now), Some(Work::Judge(place, conn(0))));
        pool.audit().unwrap();
    }
}
