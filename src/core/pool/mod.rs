//! The policy of a pool: which connection is leased to which wait, when to dial, and when to close.
//!
//! It knows connections by their ids and reads no clock. [`Pool::next`] says what to do; the executor,
//! `reactor/pools.rs`, does it and notes how it went.
//!
//! A connection keeps its place from its dial until its socket is closed: so there are never more
//! than [`PoolConfig::size`] at the server either.

mod member;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use slab::Slab;

use self::member::Member;
pub(crate) use self::member::{Phase, Place};
pub(crate) use self::work::Work;
use crate::close::CloseReason;
use crate::config::{PoolConfig, PoolOrder};
use crate::core::stats::Counters;
use crate::id::{ConnId, WaitId};
use crate::time::{Instant, nanos};

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
    /// Dials and handshakes that failed, connections that could not be leased for another reason when
    /// they were ready, and those that their server ended within a second, before an exchange over them
    /// had come to its end.
    pub dials_failed: u64,
    /// Connections closed because they were idle for too long.
    pub idle_closed: u64,
    /// Connections closed because there were enough idle ones when they were given back.
    pub surplus: u64,
    /// Connections replaced because of their age. Leases that were replaced are not among them:
    /// [`replayed`](PoolStats::replayed) counts those.
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
    /// Requests to be sent again because the lease ended before a byte of the reply had come. One for
    /// which no connection was found counts as failed or timed out as well.
    pub replayed: u64,
    /// How the latest dial ended, if it failed and no exchange has come to its end since.
    pub last_dial: Option<CloseReason>,
}

/// How near its end a pool is.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Stage {
    #[default]
    Serves,
    /// What waits is served; nothing is dialled or pinged for later.
    Drains,
    /// Nothing is dialled, also for what waits: that may have a connection which is there.
    Halts,
    /// What waits is answered with an error, and what is idle is closed.
    Closed,
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
    /// Nor before that, as a dial failed for want of something of ours, whatever places are free.
    starved_until: Instant,
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
    stage: Stage,
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
            starved_until: Instant::EPOCH,
            lacks: false,
            ramp: config.size,
            replaced_at: None,
            fails: false,
            held: false,
            stage: Stage::default(),
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

    pub(crate) fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    /// Whether nothing is done for later.
    fn drains(&self) -> bool {
        self.stage >= Stage::Drains
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

    /// What asked and has not waited takes that back.
    #[cold]
    pub(crate) fn note_cancelled(&mut self) {
        self.stats.asked += 1;
        self.stats.cancelled += 1;
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

    /// The pool, or its reactor, nears its end. It never goes back.
    pub(crate) fn advance(&mut self, stage: Stage) {
        self.stage = self.stage.max(stage);
        if self.is_closed() {
            self.fails = true;
            self.members_due = Instant::EPOCH;
        }
    }
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
    use crate::close::Timeout;
    use crate::core::dial::Blame;
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
                        if let Err(reason) = self.pool.keep(place, self.now) {
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
                    Work::Judge(place, _) => assert!(pool.keep(place, now).is_ok()),
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
