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
}

impl Clocks {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { phase: Phase::Idle, since: now, moved_at: now }
    }

    pub(crate) const fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) const fn since(&self) -> Instant {
        self.since
    }

    /// It is at `phase`; if it was before, its clock runs on.
    pub(crate) fn enter(&mut self, phase: Phase, now: Instant) {
        if self.phase != phase {
            *self = Self { phase, since: now, moved_at: now };
        }
    }

    /// A question is whole. With each one the clock of its reply begins, also where a peer asks on
    /// without a pause.
    pub(crate) const fn begin_reply(&mut self, now: Instant) {
        // That the reply before has not moved counts on.
        if !matches!(self.phase, Phase::Reply) {
            self.moved_at = now;
        }
        self.phase = Phase::Reply;
        self.since = now;
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
        clocks.begin_reply(at(10));
        assert_eq!(clocks.due(PATIENCE), at(30));
        clocks.enter(Phase::Linger, at(11));
        assert_eq!(clocks.due(PATIENCE), at(13));
    }

    #[test]
    fn a_reply_that_moves_has_its_time_in_all() {
        let mut clocks = Clocks::new(at(0));
        clocks.begin_reply(at(0));
        for second in (10..50).step_by(10) {
            clocks.note_moved(at(second));
            assert_eq!(clocks.due(PATIENCE), at((second + 20).min(50)));
        }
    }

    #[test]
    fn a_peer_that_asks_on_and_reads_nothing_is_not_put_off() {
        let mut clocks = Clocks::new(at(0));
        clocks.begin_reply(at(0));
        clocks.begin_reply(at(15));
        assert_eq!(clocks.due(PATIENCE), at(20));
    }
}
