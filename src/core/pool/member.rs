//! The connections of a pool: the phases of their lives, and what begins and ends each.

use super::{Pool, Waiter};
use crate::close::{CloseReason, Timeout};
use crate::core::dial::Blame;
use crate::id::ConnId;
use crate::time::{Instant, share_of};

/// The place of a connection in its pool.
pub(crate) type Place = u32;

/// However short a pause turns out, a dial that fails at once is not repeated at once.
pub(super) const PAUSE_LEAST: u64 = 1_000_000;

/// After a shortage of our own, such as of ports, the next dial waits so long.
const SHORTAGE_PAUSE: u64 = 100_000_000;

/// How long a connection that is idle and was never leased counts as new: its peer cannot have closed
/// it as idle yet.
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
pub(super) struct Member {
    pub(super) conn: ConnId,
    pub(super) phase: Phase,
    /// Since when it is in that phase.
    pub(super) since: Instant,
    /// When the phase is over by itself.
    pub(super) until: Instant,
    /// When it stood.
    pub(super) stood_at: Instant,
    /// When it was idle for the first time, behind its handshake if it has one.
    pub(super) came_at: Instant,
    /// Since when it has been used for nothing but pings.
    pub(super) unused_since: Instant,
    /// It has answered a ping, or none was sent: it is as unused as before.
    pub(super) pinged: bool,
    /// An exchange over it, its handshake aside, has come to its end: it is not only the socket that
    /// works.
    pub(super) proven: bool,
    /// One has since it was last idle.
    pub(super) served: bool,
    /// When it is to be replaced.
    pub(super) expires: Instant,
    /// How long it is idle before it is pinged.
    pub(super) ping_after: u64,
    /// Leases so far.
    pub(super) leases: u64,
    /// It was not new at its latest lease: its peer may have closed it meanwhile.
    pub(super) used: bool,
    pub(super) reported: bool,
}

impl Member {
    pub(super) fn is_new(&self, now: Instant) -> bool {
        self.leases == 0 && now.nanos_since(self.came_at) < NEW_FOR
    }

    /// It begins a phase that is over by itself at `until`. Returns the one before.
    #[inline]
    const fn begin(&mut self, phase: Phase, now: Instant, until: Instant) -> Phase {
        self.since = now;
        self.until = until;
        std::mem::replace(&mut self.phase, phase)
    }
}

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
            came_at: Instant::FAR_FUTURE,
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

    /// What was given back becomes idle, until it is to be `replaced` at the latest. Returns whether
    /// something is due earlier than before.
    #[inline(always)]
    fn rest(&mut self, place: Place, replaced: Instant, now: Instant) -> bool {
        let member = &mut self.members[place as usize];
        let was_used = !std::mem::take(&mut member.pinged);
        if was_used {
            member.unused_since = now;
        }
        member.came_at = member.came_at.min(now);
        let unused_since = member.unused_since;
        let until = now.after(member.ping_after);
        let before = member.begin(Phase::Idle, now, until);
        debug_assert_eq!(before, Phase::Returned, "what becomes idle was given back");
        let due = unused_since.after(self.rules.idle).min(replaced).min(until);
        if was_used {
            // None has been used later.
            self.idle.push_back(place);
        } else {
            self.join_middle(place, unused_since);
        }
        self.comes_due(due)
    }

    /// Something of a member is due then. Returns whether that is earlier than all that was.
    #[inline(always)]
    fn comes_due(&mut self, at: Instant) -> bool {
        let earlier = at < self.members_due;
        if earlier {
            self.members_due = at;
        }
        earlier
    }

    /// Leases an idle connection to what has waited longest, which is taken out.
    #[inline(always)]
    pub(crate) fn lease(&mut self, place: Place, now: Instant) -> Option<Waiter> {
        let is_new = self.members[place as usize].is_new(now);
        let waiter = if is_new && !self.replays.is_empty() {
            self.replays.pop_front()?
        } else {
            self.waiters.pop_front()?
        };
        self.counters.pool_waiting.sub(1);
        self.lease_to(waiter.owner, place, now);
        Some(waiter)
    }

    /// Leases a [spare](Pool::spare) connection to what has just asked, which has not waited. Returns
    /// whether the pool is to be served for that.
    #[inline(always)]
    pub(crate) fn lease_at_once(&mut self, owner: ConnId, place: Place, now: Instant) -> bool {
        self.stats.asked += 1;
        self.lease_to(Some(owner), place, now) || self.idle.len() < self.rules.idle_min
    }

    /// Returns whether something is due earlier than before.
    #[inline(always)]
    fn lease_to(&mut self, owner: Option<ConnId>, place: Place, now: Instant) -> bool {
        let member = &mut self.members[place as usize];
        let is_new = member.is_new(now);
        let before = member.begin(Phase::Leased(owner), now, Instant::FAR_FUTURE);
        debug_assert_eq!(before, Phase::Idle, "what is leased was idle");
        member.leases += 1;
        member.used = !is_new;
        member.pinged = false;
        member.reported = false;
        self.stats.leases += 1;
        self.stats.reused += u64::from(member.leases > 1);
        self.leave_idle(place);
        self.leased += 1;
        self.counters.pool_leased.add(1);
        self.counters.pool_leases.add(1);
        self.comes_due(now.after(self.rules.report))
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

    /// What was given back is at the end of an exchange. Keeps it, and returns whether the pool is to be
    /// served for that; or says why it is to be closed.
    #[inline(always)]
    pub(crate) fn keep(&mut self, place: Place, now: Instant) -> Result<bool, CloseReason> {
        let member = &self.members[place as usize];
        let recovers = member.proven && self.stats.last_dial.is_some();
        if recovers {
            self.failures = 0;
            self.stats.last_dial = None;
        }
        let replaced = self.replacement_due(member);
        let reason = if self.is_closed() {
            CloseReason::Shutdown
        } else if member.leases >= self.rules.leases_max {
            CloseReason::MaxRequests
        } else if replaced <= now {
            CloseReason::Timeout(Timeout::Lifetime)
        } else if !self.has_waiters() && self.idle.len() >= self.rules.idle_max {
            CloseReason::PoolSurplus
        } else {
            let comes_due = self.rest(place, replaced, now);
            return Ok(comes_due || recovers || self.has_waiters());
        };
        Err(reason)
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
        // One that is not wanted any more when it is judged for the first time would have come.
        let came = member.came_at < Instant::FAR_FUTURE
            || (phase == Phase::Returned && is_unwanted(reason));
        // One that its peer ends at once was accepted and not served.
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
    pub(super) fn enter_ending(&mut self, place: Place, reason: CloseReason, now: Instant) {
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
            // The place that it leaves is not what it lacked.
            self.lacks = true;
            self.starved_until = now.after(SHORTAGE_PAUSE);
            return;
        }
        // What was dialled before the latest failure belongs to its round.
        if self.failures == 0 || begun_at > self.failed_at {
            self.failures = self.failures.saturating_add(1);
            self.jitter = random;
        }
        self.failed_at = now;
        self.ramp = 1;
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
    pub(super) fn enter(&mut self, place: Place, phase: Phase, now: Instant, most: u64) {
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

    /// One that was only pinged is as unused as before.
    #[cold]
    fn join_middle(&mut self, place: Place, unused_since: Instant) {
        let members = &self.members;
        let is_longer = |other: &Place| members[*other as usize].unused_since <= unused_since;
        self.idle.insert(self.idle.partition_point(is_longer), place);
    }
}

/// Whether an end with this reason says nothing of the connection: it is one too many.
const fn is_unwanted(reason: CloseReason) -> bool {
    matches!(reason, CloseReason::PoolSurplus | CloseReason::Shutdown)
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
