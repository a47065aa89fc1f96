//! What a pool is to do next, and when.

use super::member::PAUSE_LEAST;
use super::{Member, Phase, Place, Pool, Stage, Waiter};
use crate::close::{CloseReason, Timeout};
use crate::core::stats::Counters;
use crate::id::ConnId;
use crate::time::{Instant, share_of};

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

impl Pool {
    /// What is to be done next, at `now`; `None` if that is nothing before [`Pool::due`].
    #[inline]
    pub(crate) fn next(&mut self, now: Instant) -> Option<Work> {
        // Mostly something that waits can have an idle connection, or nothing is to be done.
        let is_calm = self.is_calm(now);
        if is_calm && !self.waiters.is_empty() {
            if let Some(place) = self.candidate() {
                return Some(Work::Offer(place, self.members[place as usize].conn));
            }
        } else if is_calm && self.idle.len() >= self.rules.idle_min && now < self.waiters_due {
            return None;
        }
        self.next_of_all(now)
    }

    /// The idle connection that may be [leased](Pool::lease_at_once) at once, if something asks now: nothing
    /// has asked before, and nothing else is to be done.
    #[inline(always)]
    pub(crate) fn spare(&self, now: Instant) -> Option<(Place, ConnId)> {
        if !self.is_calm(now) || !self.waiters.is_empty() {
            return None;
        }
        self.candidate().map(|place| (place, self.members[place as usize].conn))
    }

    /// Whether there may be a [spare](Pool::spare) connection.
    #[inline(always)]
    pub(crate) fn may_spare(&self) -> bool {
        self.waiters.is_empty() && !self.idle.is_empty()
    }

    /// Whether nothing is to be done, but for what waits.
    #[inline(always)]
    fn is_calm(&self, now: Instant) -> bool {
        self.returned.is_empty()
            && self.replays.is_empty()
            && !self.fails
            && !self.held
            && now < self.members_due
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
    pub(super) fn candidate(&self) -> Option<Place> {
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
                    if self.is_closed() {
                        return Some(self.end(at as Place, CloseReason::Shutdown, now));
                    }
                    let replaced = self.replacement_due(member);
                    if replaced <= now {
                        let reason = CloseReason::Timeout(Timeout::Lifetime);
                        return Some(self.end(at as Place, reason, now));
                    }
                    if member.until <= now && !self.drains() {
                        self.stats.pinged += 1;
                        self.members[at].pinged = true;
                        self.enter(at as Place, Phase::Checked, now, self.rules.ping);
                        return Some(Work::Ping(at as Place, conn));
                    }
                    let ping = if self.drains() { Instant::FAR_FUTURE } else { member.until };
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
    pub(super) fn replacement_due(&self, member: &Member) -> Instant {
        if member.leases == 0 && self.has_waiters() {
            return Instant::FAR_FUTURE;
        }
        let spaced = self.replaced_at.map_or(Instant::EPOCH, |at| at.after(self.rules.spacing));
        member.expires.max(spaced)
    }

    /// Before that nothing is dialled: after a failure, or while we lack something. The pause is the
    /// shorter the sooner something waits.
    fn dial_at(&self) -> Instant {
        let lacking_until = self.shortage_until.max(self.starved_until);
        if self.failures == 0 {
            return lacking_until;
        }
        let rules = &self.rules;
        let doubled = rules.backoff.saturating_mul(1 << (self.failures - 1).min(32));
        let most = if self.has_waiters() { rules.backoff_waiting } else { rules.backoff_max };
        let pause = share_of(doubled.min(most), self.jitter).max(PAUSE_LEAST);
        self.failed_at.after(pause).max(lacking_until)
    }

    /// Whether another connection is wanted, whenever it may be dialled.
    #[inline]
    pub(crate) fn wants_dial(&self, now: Instant) -> bool {
        // Mostly nothing waits, and enough are idle.
        (self.has_waiters() || self.idle.len() < self.rules.idle_min) && self.lacks_one(now)
    }

    fn lacks_one(&self, now: Instant) -> bool {
        let needed = (self.waiters.len() + self.replays.len()).saturating_sub(self.coming);
        // What is sent again wants a new one.
        let idle = self.idle.is_empty() || (!self.replays.is_empty() && self.fresh(now).is_none());
        // What is pinged, cleaned or judged is about to be idle again.
        let unused = self.members.len() - self.coming - self.leased - self.ending;
        let spare = self.coming == 0 && unused < self.rules.idle_min && !self.drains();
        self.stage < Stage::Halts
            && !self.held
            && self.members.len() < self.rules.size
            && self.coming < self.ramp
            && ((needed > 0 && idle) || spare)
    }
}

/// One that waited is answered with an error.
fn count_failure(counters: &Counters) {
    counters.pool_waiting.sub(1);
    counters.pool_failures.add(1);
}
