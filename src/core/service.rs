//! How long a connection may take that the library serves itself.

use std::time::Duration;

use crate::time::Instant;

/// Connections of one service at once.
pub(crate) const CONNECTIONS_MAX: usize = 16;

/// How long each thing may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Patience {
    /// Nothing is asked and nothing is left of a reply.
    pub(crate) idle: Duration,
    /// From the first byte of a question to its last.
    pub(crate) question: Duration,
    /// The reply does not move.
    pub(crate) write: Duration,
    /// From the end of a question to the end of its reply, however it moves.
    pub(crate) reply: Duration,
    /// From our FIN to the peer's.
    pub(crate) linger: Duration,
    /// One that is as old as that makes room for a newcomer where none is idle, whatever it is at.
    pub(crate) settled: Duration,
}

/// What a connection is at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    Idle,
    /// A part of a question is here.
    Question,
    /// A reply is made or written.
    Reply,
    /// Our FIN has been sent.
    Linger,
}

/// Since when a connection is at what it is at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Clocks {
    phase: Phase,
    since: Instant,
    /// When the reply last moved.
    moved_at: Instant,
    opened_at: Instant,
}

impl Clocks {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { phase: Phase::Idle, since: now, moved_at: now, opened_at: now }
    }

    pub(crate) const fn phase(&self) -> Phase {
        self.phase
    }

    /// It is at `phase`; if it was before, its clock runs on.
    pub(crate) fn enter(&mut self, phase: Phase, now: Instant) {
        if self.phase != phase {
            *self = Self { phase, since: now, moved_at: now, opened_at: self.opened_at };
        }
    }

    /// A question is whole. The clock of its reply begins, unless some of the reply before `is_left`: a
    /// peer that asks on and reads slowly has no more time for that.
    pub(crate) fn begin_reply(&mut self, is_left: bool, now: Instant) {
        if self.phase != Phase::Reply {
            self.enter(Phase::Reply, now);
        } else if !is_left {
            (self.since, self.moved_at) = (now, now);
        }
    }

    /// How readily it makes room for a newcomer, the least first, if it does at all: idle ones before
    /// all others, by how long they have been, and then the oldest. One that is due `begins` to be asked,
    /// and is idle no more.
    pub(crate) fn rank(
        &self,
        begins: bool,
        patience: Patience,
        now: Instant,
    ) -> Option<(bool, Instant)> {
        match self.phase {
            Phase::Idle if !begins => Some((false, self.since)),
            _ if self.opened_at + patience.settled <= now => Some((true, self.opened_at)),
            _ => None,
        }
    }

    /// The socket took some of the reply.
    pub(crate) const fn note_moved(&mut self, now: Instant) {
        self.moved_at = now;
    }

    /// When it has taken too long.
    pub(crate) fn due(&self, patience: Patience) -> Instant {
        match self.phase {
            Phase::Idle => self.since + patience.idle,
            Phase::Question => self.since + patience.question,
            Phase::Reply => (self.since + patience.reply).min(self.moved_at + patience.write),
            Phase::Linger => self.since + patience.linger,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        idle: Duration::from_secs(100),
        question: Duration::from_secs(10),
        write: Duration::from_secs(20),
        reply: Duration::from_secs(50),
        linger: Duration::from_secs(2),
        settled: Duration::from_secs(60),
    };

    fn at(seconds: u64) -> Instant {
        Instant::EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn each_phase_has_its_time() {
        let mut clocks = Clocks::new(at(0));
        assert_eq!(clocks.due(PATIENCE), at(100));
        clocks.enter(Phase::Question, at(5));
        clocks.enter(Phase::Question, at(9));
        assert_eq!(clocks.due(PATIENCE), at(15));
        clocks.begin_reply(false, at(10));
        assert_eq!(clocks.due(PATIENCE), at(30));
        clocks.enter(Phase::Linger, at(11));
        assert_eq!(clocks.due(PATIENCE), at(13));
    }

    #[test]
    fn a_reply_that_moves_has_its_time_in_all() {
        let mut clocks = Clocks::new(at(0));
        clocks.begin_reply(false, at(0));
        for second in (10..50).step_by(10) {
            clocks.note_moved(at(second));
            assert_eq!(clocks.due(PATIENCE), at((second + 20).min(50)));
        }
    }

    #[test]
    fn a_peer_that_asks_on_and_reads_slowly_has_no_more_time() {
        let mut clocks = Clocks::new(at(0));
        clocks.begin_reply(false, at(0));
        clocks.begin_reply(true, at(15));
        assert_eq!(clocks.due(PATIENCE), at(20));
        clocks.note_moved(at(19));
        clocks.begin_reply(true, at(30));
        assert_eq!(clocks.due(PATIENCE), at(39));
        clocks.begin_reply(false, at(30));
        assert_eq!(clocks.due(PATIENCE), at(50));
    }

    #[test]
    fn an_idle_one_makes_room_first_and_then_the_oldest() {
        let busy = |opened| {
            let mut clocks = Clocks::new(at(opened));
            clocks.enter(Phase::Question, at(70));
            clocks
        };
        let ranks = |now| {
            let clocks = [Clocks::new(at(20)), Clocks::new(at(10)), busy(5), busy(0)];
            clocks.map(|clocks| clocks.rank(false, PATIENCE, at(now)))
        };
        let (idle, old) = (|since| Some((false, at(since))), |since| Some((true, at(since))));
        assert_eq!(ranks(70), [idle(20), idle(10), old(5), old(0)]);
        assert!(idle(20) < old(0));
        assert_eq!(ranks(62), [idle(20), idle(10), None, old(0)]);
        assert_eq!(Clocks::new(at(20)).rank(true, PATIENCE, at(79)), None);
        assert_eq!(Clocks::new(at(20)).rank(true, PATIENCE, at(80)), old(20));
    }
}
