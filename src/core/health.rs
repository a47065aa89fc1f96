//! The policy of an endpoint's health: when it is checked, what the outcomes say, and when it is
//! ejected from its group.
//!
//! It knows a test connection by its id and reads no clock. [`Endpoint::next`] says what to do; the
//! executor, `reactor/health.rs`, does it and notes how it went.

use crate::close::{CloseReason, Timeout};
use crate::config::{EndpointConfig, HealthCheck};
use crate::core::dial::Blame;
use crate::id::ConnId;
use crate::time::{Instant, nanos, share_of};

/// What the checks of an endpoint say of it.
///
/// An endpoint is [available](EndpointStats::is_available) in `Up` and `GoingDown`, unless it is
/// ejected or withdrawn.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum EndpointState {
    /// The latest check passed, or there are no checks.
    Up,
    /// It was up, and fewer checks in a row have failed than take it down.
    GoingDown,
    /// It is down: as many checks in a row have failed as that takes, or the first one has.
    Down,
    /// It was down, and fewer checks in a row have passed than bring it up; or it has not been
    /// checked yet.
    GoingUp,
}

/// What is known of an endpoint.
///
/// The first seven are of this moment, the others count since it was added.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct EndpointStats {
    /// What its checks say.
    pub state: EndpointState,
    /// It is up or going down, and neither ejected nor withdrawn.
    pub is_available: bool,
    /// An operator has taken it out of use, over the [console](crate::Reactor::serve_console).
    pub is_withdrawn: bool,
    /// It is ejected because of failures that were [noted](crate::Context::note_endpoint_failure).
    pub is_ejected: bool,
    /// The share of what a balancer would send it otherwise, in percent: 0 while it is not available,
    /// less than 100 during its [slow start](crate::health::EndpointConfig::slow_start).
    pub weight: u8,
    /// Connections that were [dialled](crate::Context::connect_endpoint) to it and are not closed
    /// yet, those of pools and checks left out.
    pub connections: usize,
    /// How the latest check or connection ended that failed.
    pub last_failure: Option<CloseReason>,
    /// Checks that passed or failed.
    pub checks: u64,
    /// Those of them that failed.
    pub checks_failed: u64,
    /// Checks that said nothing, as we had no place, port or descriptor for them or were stopping.
    pub checks_void: u64,
    /// Exchanges and connections that went well.
    pub successes: u64,
    /// Exchanges, connections and dials that failed, checks left out.
    pub failures: u64,
    /// How often it was ejected.
    pub ejections: u64,
    /// How often it was not, although it had failed often enough, because too much of its group was
    /// down or ejected.
    pub ejections_prevented: u64,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Work {
    /// Dial a test connection, then [note](Endpoint::begin_check) it, or that it [could
    /// not](Endpoint::note_void) be.
    Check,
    /// Its time is over: end the test connection.
    GiveUp(ConnId),
}

/// How an operator has taken an endpoint out of use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Withdrawal {
    /// Nothing new is dialled. Its checks go on.
    Drain,
    /// As `Drain`, and it is not checked.
    Down,
}

/// Who saw how an exchange went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Witness {
    /// The reactor, by how a connection ended.
    Reactor,
    /// The application, by what it was answered.
    Application,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    Passed,
    Failed(CloseReason),
    /// It says nothing of the endpoint: this process lacked something.
    Void,
}

impl Outcome {
    /// What the end of a test connection says that had not passed.
    pub(crate) fn of_end(reason: CloseReason, blame: Blame) -> Self {
        match blame {
            Blame::Ours => Self::Void,
            Blame::Theirs => Self::Failed(reason),
        }
    }
}

/// What the end of a connection says of the endpoint that was dialled, if it says anything: an
/// endpoint that has answered serves, unless it fell silent then.
pub(crate) fn judge(
    reason: CloseReason,
    blame: Blame,
    answered: bool,
) -> Option<Result<(), CloseReason>> {
    if blame == Blame::Ours {
        return None;
    }
    match reason {
        CloseReason::ConnectFailed(_) | CloseReason::Timeout(Timeout::Connect) => Some(Err(reason)),
        reason if fell_silent(reason) => Some(Err(reason)),
        _ if answered => Some(Ok(())),
        CloseReason::PeerReset | CloseReason::Io(_) => Some(Err(reason)),
        _ => None,
    }
}

/// Whether an end with this reason says that the peer did not answer, or did not read. A ping that is
/// not answered says only that an idle connection was lost, as all of them may be at once.
pub(crate) const fn fell_silent(reason: CloseReason) -> bool {
    matches!(
        reason,
        CloseReason::Timeout(Timeout::Read | Timeout::Write | Timeout::Handshake | Timeout::Check)
    )
}

/// Whether another of `members` may be ejected, where at most `percent` of them may be: those that
/// are down count as well, since what is left has to carry the load.
pub(crate) fn may_eject<'a>(members: impl Iterator<Item = &'a Endpoint>, percent: u8) -> bool {
    let (mut all, mut away) = (0, 0);
    for member in members {
        all += 1;
        away += usize::from(!member.is_available());
    }
    is_within(away + 1, all, percent)
}

/// Whether no more than `percent` of `all` are `ejected`.
pub(crate) const fn is_within(ejected: usize, all: usize, percent: u8) -> bool {
    ejected * 100 <= all * percent as usize
}

/// A check that has not ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Check {
    conn: ConnId,
    until: Instant,
}

/// The policy of one endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    rules: Rules,
    state: EndpointState,
    /// A check has passed before, or there are none.
    proven: bool,
    /// Checks that agreed in a row, against the state before.
    streak: u32,
    check: Option<Check>,
    /// No check begins any more.
    stopped: bool,
    /// An operator has taken it out of use.
    withdrawn: Option<Withdrawal>,
    /// When the latest check ended, and the share of the pause after it.
    checked_at: Option<Instant>,
    jitter: u64,
    /// Until then something may wait for it to come back.
    wanted_until: Instant,
    /// Since when it has been available again.
    recovered_at: Option<Instant>,
    /// Failures in a row that were seen, checks left out.
    failures: u32,
    /// Failures in a row that the application noted.
    noted: u32,
    ejected_until: Option<Instant>,
    /// When the latest ejection ended, and how many came one soon after another.
    ejected_at: Option<Instant>,
    ejections: u32,
    stats: Counts,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    last_failure: Option<CloseReason>,
    checks: u64,
    checks_failed: u64,
    checks_void: u64,
    successes: u64,
    failures: u64,
    ejections: u64,
    ejections_prevented: u64,
}

/// The settings, in nanoseconds.
#[derive(Debug)]
struct Rules {
    checks: bool,
    /// They are exchanges.
    exchanges: bool,
    interval: u64,
    fast_interval: u64,
    down_interval: u64,
    timeout: u64,
    rise: u32,
    fall: u32,
    slow_start: u64,
    eject_after: u32,
    ejection: u64,
    ejection_max: u64,
}

impl Rules {
    fn new(config: &EndpointConfig) -> Self {
        Self {
            checks: config.check.is_some(),
            exchanges: config.check == HealthCheck::TestRequest,
            interval: nanos(config.interval),
            fast_interval: nanos(config.fast_interval),
            down_interval: nanos(config.down_interval),
            timeout: nanos(config.timeout),
            rise: config.rise,
            fall: config.fall,
            slow_start: config.slow_start.map_or(0, nanos),
            eject_after: config.eject_after.unwrap_or(u32::MAX),
            ejection: nanos(config.ejection),
            ejection_max: nanos(config.ejection_max),
        }
    }
}

/// What it is.
impl Endpoint {
    pub(crate) fn new(config: &EndpointConfig) -> Self {
        let rules = Rules::new(config);
        Self {
            state: if rules.checks { EndpointState::GoingUp } else { EndpointState::Up },
            proven: !rules.checks,
            rules,
            streak: 0,
            check: None,
            stopped: false,
            withdrawn: None,
            checked_at: None,
            jitter: 0,
            wanted_until: Instant::EPOCH,
            recovered_at: None,
            failures: 0,
            noted: 0,
            ejected_until: None,
            ejected_at: None,
            ejections: 0,
            stats: Counts::default(),
        }
    }

    pub(crate) fn stats(&self, now: Instant, connections: usize) -> EndpointStats {
        let Counts { last_failure, checks, checks_failed, checks_void, .. } = self.stats;
        let Counts { successes, failures, ejections, ejections_prevented, .. } = self.stats;
        EndpointStats {
            state: self.state,
            is_available: self.is_available(),
            is_withdrawn: self.withdrawn.is_some(),
            is_ejected: self.is_ejected(),
            weight: self.weight(now),
            connections,
            last_failure,
            checks,
            checks_failed,
            checks_void,
            successes,
            failures,
            ejections,
            ejections_prevented,
        }
    }

    /// Whether it may be dialled.
    pub(crate) fn is_available(&self) -> bool {
        self.is_up() && !self.is_ejected() && self.withdrawn.is_none()
    }

    /// Whether its checks let it be dialled.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, EndpointState::Up | EndpointState::GoingDown)
    }

    /// Whether no check has said anything yet.
    pub(crate) fn is_unknown(&self) -> bool {
        self.rules.checks && self.stats.checks == 0
    }

    pub(crate) const fn withdrawn(&self) -> Option<Withdrawal> {
        self.withdrawn
    }

    /// An operator takes it out of use, or lets it be used again: as one that comes back, it then gets
    /// its share by and by.
    pub(crate) fn withdraw(&mut self, withdrawal: Option<Withdrawal>, now: Instant) {
        let before = std::mem::replace(&mut self.withdrawn, withdrawal);
        if before.is_some() && withdrawal.is_none() {
            self.recovered_at = Some(now);
        }
        if before == Some(Withdrawal::Down) {
            // What was last known of it is old.
            self.checked_at = None;
        }
    }

    pub(crate) const fn is_ejected(&self) -> bool {
        self.ejected_until.is_some()
    }

    /// Until when it is ejected, if it is and nothing passes before.
    pub(crate) const fn ejected_until(&self) -> Option<Instant> {
        self.ejected_until
    }

    /// How the latest check or connection ended that failed.
    pub(crate) const fn last_failure(&self) -> Option<CloseReason> {
        self.stats.last_failure
    }

    /// The test connection that is under way.
    pub(crate) fn check(&self) -> Option<ConnId> {
        self.check.map(|check| check.conn)
    }

    /// How long a check may take.
    #[cfg(feature = "sim")]
    pub(crate) const fn timeout(&self) -> u64 {
        self.rules.timeout
    }

    /// The share of the load that it is to have, in percent.
    fn weight(&self, now: Instant) -> u8 {
        if !self.is_available() {
            return 0;
        }
        let Some(since) = self.recovered_at.map(|at| now.nanos_since(at)) else { return 100 };
        if since >= self.rules.slow_start {
            return 100;
        }
        let percent = u128::from(since) * 100 / u128::from(self.rules.slow_start);
        (percent as u8).max(1)
    }
}

/// What to do.
impl Endpoint {
    /// What is to be done next, at `now`; `None` if that is nothing before [`Endpoint::due`].
    pub(crate) fn next(&mut self, now: Instant) -> Option<Work> {
        if self.ejected_until.is_some_and(|until| until <= now) {
            self.end_ejection(now);
        }
        match &mut self.check {
            Some(check) if check.until <= now => {
                // Its end follows, and is waited for.
                check.until = Instant::FAR_FUTURE;
                Some(Work::GiveUp(check.conn))
            }
            Some(_) => None,
            None => (self.check_at(now) <= now).then_some(Work::Check),
        }
    }

    /// When [`Endpoint::next`] has something to do again, if nothing is noted until then; never after
    /// the time at which that is so.
    pub(crate) fn due(&self, now: Instant) -> Instant {
        let check = self.check.map_or_else(|| self.check_at(now), |check| check.until);
        check.min(self.ejected_until.unwrap_or(Instant::FAR_FUTURE))
    }

    /// When the next check begins.
    fn check_at(&self, now: Instant) -> Instant {
        let down = self.withdrawn == Some(Withdrawal::Down);
        if !self.rules.checks || self.stopped || down {
            return Instant::FAR_FUTURE;
        }
        let Some(checked_at) = self.checked_at else { return Instant::EPOCH };
        let interval = self.interval(now);
        checked_at.after(interval - share_of(interval / 5, self.jitter))
    }

    fn interval(&self, now: Instant) -> u64 {
        let interval = match self.state {
            EndpointState::GoingDown | EndpointState::GoingUp => self.rules.fast_interval,
            EndpointState::Up => self.rules.interval,
            EndpointState::Down => self.rules.down_interval,
        };
        // It must not become less when nothing waits any more.
        let wanted = !self.is_up() && now < self.wanted_until;
        if wanted { interval.min(self.rules.fast_interval) } else { interval }
    }

    /// Something may wait for it until then, or has been refused as it is not available: while it is
    /// not, what brings it back is to be known soon.
    pub(crate) fn want(&mut self, until: Instant, now: Instant) {
        let least = now.after(self.rules.down_interval);
        self.wanted_until = self.wanted_until.max(until).max(least);
    }

    /// No check begins any more.
    pub(crate) const fn stop(&mut self) {
        self.stopped = true;
    }
}

/// What happened.
impl Endpoint {
    /// A test connection is dialled.
    pub(crate) fn begin_check(&mut self, conn: ConnId, now: Instant, random: u64) {
        debug_assert!(self.check.is_none(), "one check at a time");
        self.check = Some(Check { conn, until: now.after(self.rules.timeout) });
        self.jitter = random;
    }

    /// None could be dialled, as we lack something.
    pub(crate) fn note_void(&mut self, now: Instant, random: u64) {
        self.stats.checks_void += 1;
        self.checked_at = Some(now);
        self.jitter = random;
    }

    /// The check over `conn` has ended. Returns whether it had not before.
    pub(crate) fn end_check(&mut self, conn: ConnId, outcome: Outcome, now: Instant) -> bool {
        if self.check() != Some(conn) {
            return false;
        }
        self.check = None;
        self.checked_at = Some(now);
        match outcome {
            Outcome::Passed => self.pass(now),
            Outcome::Failed(reason) => self.fail(reason),
            Outcome::Void => self.stats.checks_void += 1,
        }
        true
    }

    fn pass(&mut self, now: Instant) {
        self.stats.checks += 1;
        if self.is_ejected() {
            self.end_ejection(now);
        } else if self.rules.exchanges {
            // A connection that was accepted does not say that requests are answered.
            self.forget_failures();
        }
        let streak = if self.state == EndpointState::GoingUp { self.streak + 1 } else { 1 };
        match self.state {
            EndpointState::Up | EndpointState::GoingDown => self.enter(EndpointState::Up, 0),
            // The first one of all is enough, and nothing was cold before.
            _ if !self.proven => self.enter(EndpointState::Up, 0),
            _ if streak >= self.rules.rise => {
                self.enter(EndpointState::Up, 0);
                self.recovered_at = Some(now);
            }
            _ => self.enter(EndpointState::GoingUp, streak),
        }
        self.proven = true;
    }

    fn fail(&mut self, reason: CloseReason) {
        self.stats.checks += 1;
        self.stats.checks_failed += 1;
        self.stats.last_failure = Some(reason);
        let streak = if self.state == EndpointState::GoingDown { self.streak + 1 } else { 1 };
        match self.state {
            EndpointState::Down | EndpointState::GoingUp => self.enter(EndpointState::Down, 0),
            _ if streak >= self.rules.fall => self.enter(EndpointState::Down, 0),
            _ => self.enter(EndpointState::GoingDown, streak),
        }
        if self.state == EndpointState::Down {
            self.forget_failures();
        }
    }

    const fn forget_failures(&mut self) {
        self.failures = 0;
        self.noted = 0;
    }

    const fn enter(&mut self, state: EndpointState, streak: u32) {
        self.state = state;
        self.streak = streak;
    }

    /// An exchange or a connection went well. What was only seen to says nothing of failures that the
    /// application knows of.
    pub(crate) const fn note_success(&mut self, source: Witness) {
        self.stats.successes += 1;
        self.failures = 0;
        if matches!(source, Witness::Application) {
            self.noted = 0;
        }
    }

    /// An exchange, a connection or a dial failed, for `reason` if that is known. Returns whether so
    /// many have in a row that the endpoint is to be [ejected](Endpoint::eject), if its group [can do
    /// without it](may_eject).
    pub(crate) const fn note_failure(
        &mut self,
        reason: Option<CloseReason>,
        source: Witness,
    ) -> bool {
        self.stats.failures += 1;
        if reason.is_some() {
            self.stats.last_failure = reason;
        }
        // What is down or ejected already has nothing to lose.
        if self.is_ejected() || matches!(self.state, EndpointState::Down | EndpointState::GoingUp) {
            return false;
        }
        let streak = match source {
            Witness::Reactor => &mut self.failures,
            Witness::Application => &mut self.noted,
        };
        *streak += 1;
        *streak >= self.rules.eject_after
    }

    /// It is not to be dialled for a while: the longer the more often it was ejected, one time soon
    /// after another.
    pub(crate) fn eject(&mut self, now: Instant) {
        let again = self.ejected_at.is_some_and(|at| now.nanos_since(at) < self.rules.ejection_max);
        self.ejections = if again { self.ejections.saturating_add(1) } else { 1 };
        let long = self.rules.ejection.saturating_mul(self.ejections.into());
        self.ejected_until = Some(now.after(long.min(self.rules.ejection_max)));
        self.forget_failures();
        self.stats.ejections += 1;
    }

    /// It stays, as its group cannot do without it.
    pub(crate) const fn spare(&mut self) {
        self.forget_failures();
        self.stats.ejections_prevented += 1;
    }

    /// It may be dialled again.
    pub(crate) const fn end_ejection(&mut self, now: Instant) {
        self.ejected_until = None;
        self.ejected_at = Some(now);
        self.recovered_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::close::OsError;
    use crate::core::dial::blame_for;

    const SECOND: u64 = 1_000_000_000;

    fn conn(number: u64) -> ConnId {
        ConnId::new(number as u32 & 0xffff, 1)
    }

    fn failed() -> CloseReason {
        CloseReason::ConnectFailed(io::Error::from_raw_os_error(libc::ECONNREFUSED).into())
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        /// The check of an endpoint ends so, if one is under way.
        End(usize, Option<bool>),
        Success(usize),
        Failure(usize),
        Want(usize),
        Add,
        Remove(usize),
        Pass {
            millis: u64,
        },
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let at = || 0..4_usize;
        let op = prop_oneof![
            8 => (at(), prop::option::weighted(0.9, any::<bool>())).prop_map(|(at, how)| Op::End(at, how)),
            1 => at().prop_map(Op::Success),
            6 => at().prop_map(Op::Failure),
            1 => at().prop_map(Op::Want),
            1 => Just(Op::Add),
            1 => at().prop_map(Op::Remove),
            8 => (1..3_000_u64).prop_map(|millis| Op::Pass { millis }),
        ];
        prop::collection::vec(op, 1..300)
    }

    /// One endpoint and all that has ever happened to it.
    struct Known {
        endpoint: Endpoint,
        /// How its checks ended, those left out that say nothing.
        ends: Vec<bool>,
        /// When the latest check ended.
        ended_at: Option<Instant>,
        check: Option<(ConnId, Instant)>,
        wanted_until: Instant,
        /// Failures since the latest success, pass, ejection or fall.
        failures: u32,
        ejected_until: Option<Instant>,
        /// When ejections ended, and how long they were to last.
        ejections: Vec<(Instant, u64)>,
        prevented: u64,
    }

    struct Model {
        config: EndpointConfig,
        now: Instant,
        all: Vec<Known>,
        conns: u64,
        random: u64,
    }

    /// The state that follows from the ends of all checks, as the documents put it.
    fn state_after(ends: &[bool], rise: u32, fall: u32) -> EndpointState {
        if ends.is_empty() {
            return EndpointState::GoingUp;
        }
        let Some(first) = ends.iter().position(|passed| *passed) else {
            return EndpointState::Down;
        };
        let mut up = true;
        let (mut passed, mut lost) = (0, 0);
        for end in &ends[first..] {
            (passed, lost) = if *end { (passed + 1, 0) } else { (0, lost + 1) };
            up = if up { lost < fall } else { passed >= rise };
        }
        match up {
            true if lost == 0 => EndpointState::Up,
            true => EndpointState::GoingDown,
            false if passed == 0 => EndpointState::Down,
            false => EndpointState::GoingUp,
        }
    }

    impl Model {
        fn new(config: EndpointConfig) -> Self {
            let now = Instant::from_nanos(SECOND);
            let mut model = Self { config, now, all: Vec::new(), conns: 0, random: 9 };
            for _ in 0..3 {
                model.apply(Op::Add);
            }
            model
        }

        fn random(&mut self) -> u64 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.random
        }

        fn state(&self, known: &Known) -> EndpointState {
            match self.config.check {
                HealthCheck::None => EndpointState::Up,
                _ => state_after(&known.ends, self.config.rise, self.config.fall),
            }
        }

        fn is_available(&self, known: &Known) -> bool {
            let up = matches!(self.state(known), EndpointState::Up | EndpointState::GoingDown);
            up && known.ejected_until.is_none()
        }

        fn end_ejection(known: &mut Known, now: Instant) {
            if known.ejected_until.take().is_some()
                && let Some((ended_at, _)) = known.ejections.last_mut()
            {
                *ended_at = now;
            }
        }

        /// What is ejected is at most half of all.
        fn may_eject(&self) -> bool {
            let away = self.all.iter().filter(|it| !self.is_available(it)).count();
            2 * (away + 1) <= self.all.len()
        }

        fn work(&mut self) {
            let now = self.now;
            for at in 0..self.all.len() {
                let state = self.state(&self.all[at]);
                let up = matches!(state, EndpointState::Up | EndpointState::GoingDown);
                let random = self.random();
                let config = self.config.clone();
                let known = &mut self.all[at];
                if known.ejected_until.is_some_and(|until| until <= now) {
                    Self::end_ejection(known, now);
                }
                while let Some(work) = known.endpoint.next(now) {
                    match work {
                        Work::Check => {
                            assert_eq!(known.check, None, "one at a time");
                            let wanted = !up && now < known.wanted_until;
                            let pause = match state {
                                _ if wanted => config.fast_interval,
                                EndpointState::Up => config.interval,
                                EndpointState::Down => config.down_interval,
                                _ => config.fast_interval,
                            };
                            if let Some(ended_at) = known.ended_at {
                                assert!(now - ended_at >= pause * 4 / 5, "{state:?} {wanted}");
                            }
                            self.conns += 1;
                            known.endpoint.begin_check(conn(self.conns), now, random);
                            known.check = Some((conn(self.conns), now + config.timeout));
                        }
                        Work::GiveUp(id) => {
                            let (check, until) = known.check.take().expect("a check");
                            assert!(check == id && until <= now, "not before its time is over");
                            let outcome = Outcome::Failed(CloseReason::Timeout(Timeout::Check));
                            assert!(known.endpoint.end_check(id, outcome, now));
                            known.note_end(Some(false), now);
                            let after = state_after(&known.ends, config.rise, config.fall);
                            if after == EndpointState::Down {
                                known.failures = 0;
                            }
                        }
                    }
                }
                assert!(known.endpoint.due(now) > now, "what is due is done");
            }
            self.check();
        }

        fn check(&self) {
            for known in &self.all {
                let stats = known.endpoint.stats(self.now, 0);
                assert_eq!(stats.state, self.state(known), "{:?}", known.ends);
                assert_eq!(stats.is_available, self.is_available(known));
                assert_eq!(stats.is_ejected, known.ejected_until.is_some());
                assert_eq!(stats.weight > 0, stats.is_available);
                assert_eq!(stats.checks, known.ends.len() as u64);
                assert_eq!(stats.ejections, known.ejections.len() as u64);
                assert_eq!(stats.ejections_prevented, known.prevented);
                // The next check comes in its time, whatever happens.
                let latest = match known.check {
                    _ if self.config.check == HealthCheck::None => Instant::FAR_FUTURE,
                    Some((_, until)) => until,
                    None => self.now + self.config.down_interval,
                };
                assert!(known.endpoint.due(self.now) <= latest);
            }
            let ejected = self.all.iter().filter(|it| it.ejected_until.is_some()).count();
            assert!(2 * ejected <= self.all.len(), "{ejected} of {}", self.all.len());
        }

        fn fail(&mut self, at: usize) {
            let (available, room) = (self.is_available(&self.all[at]), self.may_eject());
            let most = self.config.eject_after.unwrap_or(u32::MAX);
            let (first, longest) = (nanos(self.config.ejection), nanos(self.config.ejection_max));
            let now = self.now;
            let policy_room = may_eject(self.all.iter().map(|it| &it.endpoint), 50);
            assert_eq!(policy_room, room);
            let known = &mut self.all[at];
            known.failures += u32::from(available);
            let due = known.endpoint.note_failure(Some(failed()), Witness::Reactor);
            assert_eq!(due, available && known.failures >= most);
            if !due {
                return;
            }
            known.failures = 0;
            if !room {
                known.endpoint.spare();
                known.prevented += 1;
                return;
            }
            known.endpoint.eject(now);
            let long = match known.ejections.last() {
                Some((ended_at, before)) if now.nanos_since(*ended_at) < longest => {
                    (before + first).min(longest)
                }
                _ => first,
            };
            known.ejections.push((Instant::FAR_FUTURE, long));
            known.ejected_until = Some(now.after(long));
            assert_eq!(known.endpoint.ejected_until(), known.ejected_until);
        }

        fn apply(&mut self, op: Op) {
            let now = self.now;
            let count = self.all.len();
            match op {
                Op::Pass { millis } => self.now += Duration::from_millis(millis),
                Op::Add if count < 6 => self.all.push(Known {
                    endpoint: Endpoint::new(&self.config),
                    ends: Vec::new(),
                    ended_at: None,
                    check: None,
                    wanted_until: Instant::EPOCH,
                    failures: 0,
                    ejected_until: None,
                    ejections: Vec::new(),
                    prevented: 0,
                }),
                Op::Add => {}
                _ if count == 0 => {}
                Op::Remove(at) => {
                    self.all.remove(at % count);
                    // As `state/health.rs` does.
                    loop {
                        let ejected = self.all.iter().filter(|it| it.ejected_until.is_some());
                        if is_within(ejected.clone().count(), self.all.len(), 50) {
                            break;
                        }
                        let soonest = ejected.map(|it| it.ejected_until).min().flatten();
                        let surplus = self.all.iter_mut().find(|it| it.ejected_until == soonest);
                        let surplus = surplus.expect("one is ejected");
                        surplus.endpoint.end_ejection(now);
                        Self::end_ejection(surplus, now);
                    }
                }
                Op::Success(at) => {
                    let known = &mut self.all[at % count];
                    known.endpoint.note_success(Witness::Reactor);
                    known.failures = 0;
                }
                Op::Failure(at) => self.fail(at % count),
                Op::Want(at) => {
                    let least = now + self.config.down_interval;
                    let known = &mut self.all[at % count];
                    known.endpoint.want(now + Duration::from_secs(2), now);
                    let until = least.max(now + Duration::from_secs(2));
                    known.wanted_until = known.wanted_until.max(until);
                }
                Op::End(at, how) => {
                    let known = &mut self.all[at % count];
                    let Some((check, _)) = known.check.take() else { return };
                    let outcome = match how {
                        Some(true) => Outcome::Passed,
                        Some(false) => Outcome::of_end(failed(), blame_for(failed())),
                        None => Outcome::Void,
                    };
                    assert!(known.endpoint.end_check(check, outcome, now));
                    assert!(!known.endpoint.end_check(check, outcome, now), "it ends once");
                    known.note_end(how, now);
                    let down = matches!(
                        state_after(&known.ends, self.config.rise, self.config.fall),
                        EndpointState::Down
                    );
                    let exchanges = self.config.check == HealthCheck::TestRequest;
                    let cleared = exchanges || known.ejected_until.is_some();
                    if (how == Some(true) && cleared) || (how == Some(false) && down) {
                        known.failures = 0;
                    }
                    if how == Some(true) {
                        Self::end_ejection(known, now);
                    }
                }
            }
            self.work();
        }
    }

    impl Known {
        fn note_end(&mut self, how: Option<bool>, now: Instant) {
            self.ends.extend(how);
            self.ended_at = Some(now);
        }
    }

    fn configs() -> [EndpointConfig; 4] {
        let base = EndpointConfig::default;
        [
            base(),
            EndpointConfig { check: HealthCheck::None, eject_after: Some(2), ..base() },
            EndpointConfig {
                check: HealthCheck::TestRequest,
                rise: 1,
                fall: 1,
                eject_after: Some(2),
                ..base()
            },
            EndpointConfig {
                rise: 4,
                fall: 2,
                eject_after: Some(1),
                ejection: Duration::from_secs(2),
                ejection_max: Duration::from_secs(7),
                ..base()
            },
        ]
    }

    proptest! {
        #[test]
        fn endpoints_are_what_all_their_checks_and_failures_say(ops in ops(), which in 0..4_usize) {
            let mut model = Model::new(configs()[which].clone());
            for op in ops {
                model.apply(op);
            }
        }
    }

    #[test]
    fn the_weight_grows_evenly_and_only_after_a_recovery() {
        let config = EndpointConfig { fall: 1, rise: 1, ..EndpointConfig::default() };
        let mut endpoint = Endpoint::new(&config);
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        let end = |endpoint: &mut Endpoint, outcome, now| {
            endpoint.begin_check(conn(1), now, 0);
            endpoint.end_check(conn(1), outcome, now);
        };
        assert_eq!(endpoint.weight(at(0)), 0);
        end(&mut endpoint, Outcome::Passed, at(0));
        assert_eq!(endpoint.weight(at(0)), 100, "never at the start");
        end(&mut endpoint, Outcome::Failed(failed()), at(1_000));
        assert_eq!(endpoint.weight(at(1_000)), 0);
        end(&mut endpoint, Outcome::Passed, at(2_000));
        let weights = [0, 1_000, 2_500, 5_000, 9_990, 10_000, 90_000];
        assert_eq!(
            weights.map(|millis| endpoint.weight(at(2_000 + millis))),
            [1, 10, 25, 50, 99, 100, 100]
        );
        // What was ejected is as cold.
        endpoint.eject(at(100_000));
        assert_eq!(endpoint.weight(at(100_000)), 0);
        assert_eq!(endpoint.next(at(130_000)), Some(Work::Check));
        assert_eq!(endpoint.weight(at(135_000)), 50);
    }

    /// What an end says of the endpoint, before and after a byte has come.
    #[test]
    fn ends_say_what_the_documents_say() {
        let all = (0..CloseReason::COUNT).map(CloseReason::of_index);
        let mut says = [0; 3];
        for reason in all {
            let [silent, answered] = [false, true].map(|it| judge(reason, blame_for(reason), it));
            let lost = matches!(reason, CloseReason::PeerReset | CloseReason::Io(_));
            let late = matches!(
                reason,
                CloseReason::ConnectFailed(_)
                    | CloseReason::Timeout(
                        Timeout::Connect
                            | Timeout::Read
                            | Timeout::Write
                            | Timeout::Handshake
                            | Timeout::Check
                    )
            );
            let ours = blame_for(reason) == Blame::Ours;
            let expected = match () {
                () if ours => [None, None],
                () if late => [Some(Err(reason)); 2],
                () if lost => [Some(Err(reason)), Some(Ok(()))],
                () => [None, Some(Ok(()))],
            };
            assert_eq!([silent, answered], expected, "{reason:?}");
            says[usize::from(late || lost) + usize::from(ours) * 2] += 1;
        }
        assert!(says.iter().all(|count| *count > 3), "{says:?}");
        for errno in [libc::EADDRNOTAVAIL, libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::EAGAIN]
        {
            let error = OsError::from(io::Error::from_raw_os_error(errno));
            let reason = CloseReason::ConnectFailed(error);
            assert_eq!(judge(reason, blame_for(reason), false), None, "{errno}");
        }
    }
}
