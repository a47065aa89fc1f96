//! How a stop of the reactor goes on, from the request to the end of the last connection.
//!
//! 1. The backlogs are drained, as peers in them have completed their handshakes.
//! 2. The listeners close, and a walk announces the stop to all connections: each that waits for its
//!    peer is given a time to end, spread over a while.
//! 3. Those that were busy are checked again and again, and end when they wait for their peers. After
//!    a while (`shutdown_busy`) each ends after its current request.
//! 4. What is left when the time is over, or the stop is requested again, is ended hard.
//! 5. When only exempt connections are left, these are ended too.
//!
//! The plan reads the table and the time. The executor is `reactor/shutdown.rs`.

use std::ops::Range;
use std::time::Duration;

use crate::close::CloseReason;
use crate::config::Config;
use crate::core::burst::Burst;
use crate::core::deadlines::Deadline;
use crate::core::flags::Flags;
use crate::core::lifecycle::State;
use crate::core::record::Record;
use crate::core::table::{Cursor, Table};
use crate::core::wheel::TICK;
use crate::time::{Instant, nanos, share_of};

/// No connection is closed sooner than this after its last reply: a request that crosses our FIN
/// on its way may be one that its client must not send twice.
const QUIET_MIN: Duration = Duration::from_secs(1);

/// The least time between two walks over the connections that a stop waits for.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// What a walk over all connections does, some of them in each turn.
#[derive(Clone, Copy, Debug)]
enum Walk {
    /// The stop is announced to each.
    Announce(Cursor),
    /// Each is asked to end.
    End(Cursor, CloseReason),
}

/// What a step of a walk does with each connection in these places.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct WalkStep {
    pub(crate) places: Range<usize>,
    pub(crate) visit: Visit,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Visit {
    /// The stop is announced. Afterwards `reached` is how far that has come.
    Announce { reached: Cursor, is_last: bool },
    /// It is asked to end.
    End(CloseReason),
}

/// What becomes of a connection that the stop reaches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Plan {
    /// It goes on: it is busy, or has a time to end already.
    Keep,
    /// It ends then, if it still waits for its peer.
    EndAt(Instant),
    End,
}

/// What becomes of a connection whose time to end has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Due {
    /// It ends already, or is busy. It is given another time when it waits for its peer again.
    Keep,
    /// It was served so lately that it ends then.
    EndAt(Instant),
    End,
    /// It ends after its current request.
    Retire,
}

/// How far the stop of the reactor has come.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    timeout: Option<Duration>,
    spread: Option<Duration>,
    busy: Option<Duration>,
    begun_at: Option<Instant>,
    /// How often a stop was requested, as far as the reactor has acted on it.
    handled: u32,
    /// How often callbacks requested it, as far as the reactor has acted on it.
    handled_of_callbacks: u32,
    /// The listeners are open still, until their backlogs are empty.
    draining: bool,
    /// The walk that goes on in each turn.
    walk: Option<Walk>,
    /// How far the walk has come that checks connections again and again.
    checked: Cursor,
    /// Connections are no longer flushed.
    hard: bool,
    /// Only exempt connections are left, and are asked to end.
    ends_exempt: bool,
    failure: Option<&'static str>,
    /// The stop has begun, or the reactor has failed.
    active: bool,
    /// Callbacks that panicked lately, where a limit is set.
    panics: Option<Burst>,
    /// Nothing is left to do.
    ended: bool,
}

impl Drain {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            timeout: config.shutdown_timeout,
            spread: config.shutdown_spread,
            busy: config.shutdown_busy,
            panics: config.panic_limit.map(Burst::new),
            ..Self::default()
        }
    }

    /// The settings change. A stop that has begun goes on with those it began with.
    pub(crate) const fn change(&mut self, config: &Config) {
        if !self.has_begun() {
            self.timeout = config.shutdown_timeout;
            self.spread = config.shutdown_spread;
            self.busy = config.shutdown_busy;
        }
    }

    /// Whether nothing is left to do.
    #[inline]
    pub(crate) const fn has_ended(&self) -> bool {
        self.ended
    }

    /// When the stop began.
    pub(crate) const fn begun_at(&self) -> Option<Instant> {
        self.begun_at
    }

    pub(crate) const fn has_begun(&self) -> bool {
        self.begun_at.is_some()
    }

    /// Whether a walk over all connections goes on.
    #[cfg(feature = "sim")]
    pub(crate) const fn is_walking(&self) -> bool {
        self.walk.is_some()
    }

    /// Whether the next turn has something to do for the stop.
    #[inline]
    pub(crate) const fn has_work(&self) -> bool {
        self.draining || self.walk.is_some()
    }

    /// Whether turns have to check how far the stop has come, requested or not.
    #[inline]
    pub(crate) const fn is_active(&self) -> bool {
        self.active
    }

    /// How often callbacks requested a stop, as far as the reactor has acted on it.
    #[inline]
    pub(crate) const fn handled_of_callbacks(&self) -> u32 {
        self.handled_of_callbacks
    }

    /// The reactor has failed: it stops hard.
    pub(crate) fn fail(&mut self, why: &'static str) {
        self.failure.get_or_insert(why);
        self.active = true;
    }

    /// A callback panicked: the reactor fails if that is one more than
    /// [`Config::panic_limit`](crate::Config::panic_limit) allows.
    pub(crate) fn count_panic(&mut self, now: Instant) {
        if self.panics.as_mut().is_some_and(|panics| panics.note(now)) {
            self.fail("more callbacks panicked than panic_limit allows");
        }
    }

    /// Whether the reactor has failed.
    pub(crate) const fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// The failure that stopped the reactor, once everything has ended.
    #[inline]
    pub(crate) fn outcome(&self) -> Result<(), &'static str> {
        if self.ended { self.failure.map_or(Ok(()), Err) } else { Ok(()) }
    }

    /// A stop has been requested so often, of that by callbacks so often. Returns whether there is
    /// something new to act on.
    pub(crate) const fn handle_requests(&mut self, requests: u32, of_callbacks: u32) -> bool {
        let is_due = requests > self.handled || (self.has_failed() && !self.hard);
        if is_due {
            self.handled = requests;
            self.handled_of_callbacks = of_callbacks;
        }
        is_due
    }

    /// Begins the stop. Returns whether it had not begun.
    pub(crate) const fn begin(&mut self, now: Instant) -> bool {
        if self.has_begun() {
            return false;
        }
        self.begun_at = Some(now);
        self.active = true;
        self.draining = true;
        true
    }

    /// When the stop becomes hard, if it has not ended by then.
    pub(crate) fn hard_at(&self, now: Instant) -> Option<Instant> {
        self.timeout.map(|timeout| now + timeout)
    }

    /// Whether the stop is to be hard: it was requested again, or the reactor has failed.
    pub(crate) const fn wants_hard(&self) -> bool {
        self.handled > 1 || self.has_failed()
    }

    /// Makes the stop hard: a walk resets all connections. Returns whether it was not hard.
    pub(crate) fn harden(&mut self) -> bool {
        let first = !std::mem::replace(&mut self.hard, true);
        if first {
            self.end_all();
        }
        first
    }

    /// Whether the listeners are open still, until their backlogs are empty.
    pub(crate) const fn is_draining(&self) -> bool {
        self.draining
    }

    /// The backlogs are empty, and the listeners close.
    pub(crate) const fn end_draining(&mut self) {
        self.draining = false;
    }

    /// The handler has been notified: a walk announces the stop to all connections. A hard stop
    /// announces nothing.
    pub(crate) fn announce(&mut self) {
        if !self.hard {
            self.walk = Some(Walk::Announce(Cursor::default()));
        }
    }

    /// Asks all connections to end, in a walk. None can come any more.
    fn end_all(&mut self) {
        let reason = if self.hard { CloseReason::HardStop } else { CloseReason::Shutdown };
        self.walk = Some(Walk::End(Cursor::default(), reason));
    }

    /// Makes the next step of the walk that is under way, if one is.
    pub(crate) fn step_walk(&mut self, table: &Table) -> Option<WalkStep> {
        let mut walk = self.walk?;
        let (Walk::Announce(cursor) | Walk::End(cursor, _)) = &mut walk;
        let places = table.walk(cursor);
        let is_last = table.is_at_end(*cursor);
        let visit = match walk {
            Walk::Announce(reached) => Visit::Announce { reached, is_last },
            Walk::End(_, reason) => Visit::End(reason),
        };
        self.walk = (!is_last).then_some(walk);
        Some(WalkStep { places, visit })
    }

    /// Some connections count against the limit, and so many there are with the exempt ones. Returns
    /// whether only exempt ones are left, for the first time: these have seen the stop, and end too.
    pub(crate) fn note_left(&mut self, counted: usize, all: usize) -> bool {
        if !self.has_begun() || self.draining || counted > 0 {
            return false;
        }
        self.ended = all == 0;
        let first = !std::mem::replace(&mut self.ends_exempt, true);
        if first {
            self.end_all();
        }
        first
    }

    /// What becomes of a connection to which the stop is announced. One that is being dialled ends.
    /// Those that are active end when they have served what they are at. A tunnel has no such time,
    /// and is the handler's to close.
    pub(crate) fn announce_to(
        &self,
        record: &Record,
        now: Instant,
        random: impl FnOnce() -> u64,
    ) -> Plan {
        if record.is_exempt() {
            Plan::Keep
        } else if record.state() == State::Connecting {
            Plan::End
        } else {
            self.plan_end(record, now, random)
        }
    }

    /// What becomes of a connection that is checked again. An inbound one whose reading was stopped
    /// may wait for its peer by now. Once none of those is left (`serves`) nothing is relayed any
    /// more, and dialled connections that are at rest can end.
    pub(crate) fn check(
        &self,
        record: &Record,
        serves: bool,
        now: Instant,
        random: impl FnOnce() -> u64,
    ) -> Plan {
        if record.is_exempt() {
            Plan::Keep
        } else if serves {
            self.plan_end(record, now, random)
        } else if record.state().is_open() && record.deadline_inputs().at_rest() {
            Plan::End
        } else {
            Plan::Keep
        }
    }

    /// Gives an inbound connection a time to end if it waits for its peer and has none: a random
    /// one, so that clients do not all dial again at once.
    fn plan_end(&self, record: &Record, now: Instant, random: impl FnOnce() -> u64) -> Plan {
        if !record.waits() || !record.flags.has(Flags::INBOUND) {
            return Plan::Keep;
        }
        let Some(spread) = self.spread else { return Plan::End };
        let latest = now + spread + QUIET_MIN;
        let is_planned = record.flags.has(Flags::HAS_LIFETIME)
            && record.clocks.since(Deadline::Lifetime) <= latest;
        if is_planned {
            return Plan::Keep;
        }
        let share = share_of(nanos(spread), random());
        Plan::EndAt(now.after(share).max(record.quiet_since() + QUIET_MIN))
    }

    /// Makes a step of the walk that checks connections again and again. Returns which places it
    /// visits, none while another walk goes on, and when the next step follows: after a tick, or
    /// when a walk has come to the end after [`CHECK_EVERY`]. `None` if there is nothing to check
    /// any more.
    pub(crate) fn step_checks(
        &mut self,
        table: &Table,
        now: Instant,
    ) -> Option<(Range<usize>, Instant)> {
        if self.hard || table.counted() == 0 {
            return None;
        }
        if self.walk.is_some() {
            return Some((0..0, now + CHECK_EVERY));
        }
        let places = table.walk(&mut self.checked);
        let pause = if table.is_at_end(self.checked) {
            self.checked = Cursor::default();
            CHECK_EVERY
        } else {
            TICK
        };
        Some((places, now + pause))
    }

    /// What becomes of a connection whose time to end has come, after a final read: its peer may
    /// begin in this moment, or was served within the last second. A connection that never pauses
    /// for that long ends after a request once the stop is late.
    pub(crate) fn end_due(&self, record: &Record, now: Instant) -> Due {
        if record.reason.is_some() {
            return Due::Keep;
        }
        let is_late = self.is_late(now);
        if record.waits() {
            let at = record.quiet_since() + QUIET_MIN;
            let is_too_soon = at > now && self.spread.is_some() && !is_late;
            if is_too_soon { Due::EndAt(at) } else { Due::End }
        } else if is_late && !record.is_reading_stopped() {
            Due::Retire
        } else {
            Due::Keep
        }
    }

    /// Whether the stop no longer waits for peers to pause.
    fn is_late(&self, now: Instant) -> bool {
        let half = self.timeout.map(|timeout| timeout / 2);
        let busy = self.busy.map(|busy| half.map_or(busy, |half| busy.min(half)));
        let so_far = self.begun_at.map(|begun_at| now - begun_at);
        so_far.is_some_and(|so_far| busy.is_some_and(|busy| so_far >= busy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::config::Rate;
    use crate::core::lifecycle::Transition;
    use crate::core::record::NewConn;
    use crate::core::table::PLACES_PER_STEP;
    use crate::id::{ConnId, ListenerId, Origin};

    const SECOND: u64 = 1_000;

    fn at(millis: u64) -> Instant {
        Instant::EPOCH + Duration::from_millis(millis)
    }

    /// With a time of 30 s and a spread of 5 s.
    fn drain() -> Drain {
        Drain::new(&Config::default())
    }

    fn add(table: &mut Table, origin: Origin, exempt: bool, since: Instant) -> ConnId {
        let new_conn = NewConn {
            origin,
            peer: Address::Unnamed,
            owner: None,
            exempt,
            room_checked: true,
            now: since,
        };
        table.insert(new_conn).unwrap().id
    }

    /// An inbound connection that has been idle since then.
    fn idle(since: Instant) -> Table {
        resting(Origin::Accepted(ListenerId(0)), false, since)
    }

    fn resting(origin: Origin, exempt: bool, since: Instant) -> Table {
        let mut table = Table::new(8);
        let id = add(&mut table, origin, exempt, since);
        let record = table.at(id.index());
        record.apply(Transition::Establish);
        record.apply(Transition::Rest);
        record.flags.insert(Flags::RECEIVED);
        record.clocks.update(record.deadline_inputs(), since);
        table
    }

    /// An inbound connection that serves a request.
    fn busy() -> Table {
        let mut table = idle(at(0));
        table.at(0).apply(Transition::Wake);
        table
    }

    fn plan(drain: &Drain, table: &mut Table, random: u64) -> Plan {
        drain.announce_to(table.at(0), at(10 * SECOND), || random)
    }

    #[test]
    fn the_first_request_begins_a_stop_and_the_second_hardens_it() {
        let mut drain = drain();
        assert!(!drain.handle_requests(0, 0));
        assert!(drain.handle_requests(1, 0));
        assert!(drain.begin(at(0)) && !drain.wants_hard());
        assert!(drain.is_active() && drain.has_work() && drain.is_draining());
        assert_eq!(drain.hard_at(at(0)), Some(at(30 * SECOND)));
        assert!(!drain.handle_requests(1, 0), "it has been acted on");
        assert!(drain.handle_requests(2, 1));
        assert_eq!(drain.handled_of_callbacks(), 1);
        assert!(!drain.begin(at(1)) && drain.wants_hard());
        assert!(drain.harden());
        assert!(!drain.harden(), "once");
    }

    #[test]
    fn a_failure_stops_the_reactor_hard_without_a_request() {
        let mut drain = drain();
        drain.fail("it broke");
        drain.fail("and again");
        assert_eq!(drain.outcome(), Ok(()), "connections have to end first");
        assert!(drain.is_active() && drain.handle_requests(0, 0));
        assert!(drain.begin(at(0)) && drain.wants_hard() && drain.harden());
        assert!(!drain.handle_requests(0, 0));
        drain.end_draining();
        drain.note_left(0, 0);
        assert_eq!(drain.outcome(), Err("it broke"));
    }

    #[test]
    fn one_panic_more_than_allowed_is_a_failure() {
        let config = Config { panic_limit: Some(Rate::per_second(2)), ..Config::default() };
        let mut drain = Drain::new(&config);
        for millis in [0, 1] {
            drain.count_panic(at(millis));
            assert!(!drain.has_failed());
        }
        drain.count_panic(at(2));
        assert!(drain.has_failed());
    }

    #[test]
    fn the_stop_is_announced_in_steps_after_the_backlogs_are_drained() {
        let mut table = Table::new(2 * PLACES_PER_STEP);
        for _ in 0..PLACES_PER_STEP + 1 {
            add(&mut table, Origin::Accepted(ListenerId(0)), false, at(0));
        }
        let mut drain = drain();
        drain.begin(at(0));
        assert_eq!(drain.step_walk(&table), None);
        drain.end_draining();
        drain.announce();
        let step = drain.step_walk(&table).unwrap();
        assert_eq!(step.places, 0..PLACES_PER_STEP);
        let Visit::Announce { reached, is_last: false } = step.visit else { panic!("{step:?}") };
        assert!(reached.is_past(PLACES_PER_STEP - 1) && !reached.is_past(PLACES_PER_STEP));
        let step = drain.step_walk(&table).unwrap();
        assert!(matches!(step.visit, Visit::Announce { is_last: true, .. }), "{step:?}");
        assert_eq!(drain.step_walk(&table), None);
        assert!(!drain.has_work());
    }

    #[test]
    fn a_hard_stop_ends_all_in_place_of_any_other_walk() {
        let table = idle(at(0));
        let mut drain = drain();
        drain.begin(at(0));
        drain.end_draining();
        drain.announce();
        drain.harden();
        let ends = |reason| Some(WalkStep { places: 0..1, visit: Visit::End(reason) });
        assert_eq!(drain.step_walk(&table), ends(CloseReason::HardStop));
        drain.announce();
        assert_eq!(drain.step_walk(&table), None, "a hard stop announces nothing");
        assert_eq!(drain.step_checks(&table, at(0)), None);
    }

    #[test]
    fn exempt_connections_end_when_no_other_is_left() {
        let table = resting(Origin::Accepted(ListenerId(0)), true, at(0));
        let mut drain = drain();
        assert!(!drain.note_left(0, 1), "no stop has begun");
        drain.begin(at(0));
        assert!(!drain.note_left(0, 1), "the backlogs may bring others");
        drain.end_draining();
        assert!(!drain.note_left(1, 2));
        assert!(drain.note_left(0, 1));
        let ends = WalkStep { places: 0..1, visit: Visit::End(CloseReason::Shutdown) };
        assert_eq!(drain.step_walk(&table), Some(ends));
        assert!(!drain.note_left(0, 1), "once");
        assert!(!drain.has_ended());
        drain.note_left(0, 0);
        assert!(drain.has_ended());
    }

    #[test]
    fn waiting_connections_end_spread_over_a_while() {
        let drain = drain();
        let mut table = idle(at(0));
        assert_eq!(plan(&drain, &mut table, 0), Plan::EndAt(at(10 * SECOND)));
        let half = plan(&drain, &mut table, u64::MAX / 2 + 1);
        assert_eq!(half, Plan::EndAt(at(12_500)));
        let at_once = Drain::new(&Config { shutdown_spread: None, ..Config::default() });
        assert_eq!(plan(&at_once, &mut table, 0), Plan::End);
    }

    #[test]
    fn none_ends_within_a_second_of_its_last_reply() {
        let mut table = idle(at(9_900));
        assert_eq!(plan(&drain(), &mut table, 0), Plan::EndAt(at(10_900)));
        let mut drain = drain();
        drain.begin(at(10 * SECOND));
        assert_eq!(drain.end_due(table.at(0), at(10_899)), Due::EndAt(at(10_900)));
        assert_eq!(drain.end_due(table.at(0), at(10_900)), Due::End);
    }

    #[test]
    fn a_time_to_end_is_kept_unless_it_is_later_than_any_that_would_be_given() {
        let mut table = idle(at(0));
        for (lifetime, planned) in [(16_000, Plan::Keep), (16_001, Plan::EndAt(at(10_000)))] {
            let record = table.at(0);
            record.flags.insert(Flags::HAS_LIFETIME);
            record.clocks.set(Deadline::Lifetime, at(lifetime));
            assert_eq!(plan(&drain(), &mut table, 0), planned, "{lifetime}");
        }
    }

    #[test]
    fn busy_and_exempt_connections_go_on_and_dials_end() {
        let drain = drain();
        let inbound = Origin::Accepted(ListenerId(0));
        assert_eq!(plan(&drain, &mut busy(), 0), Plan::Keep);
        assert_eq!(plan(&drain, &mut resting(inbound, true, at(0)), 0), Plan::Keep);
        assert_eq!(plan(&drain, &mut resting(Origin::Connect, false, at(0)), 0), Plan::Keep);
        let mut dialled = Table::new(1);
        add(&mut dialled, Origin::Connect, false, at(0));
        assert_eq!(plan(&drain, &mut dialled, 0), Plan::End);
    }

    #[test]
    fn dialled_connections_at_rest_end_when_none_is_served() {
        let drain = drain();
        let mut table = resting(Origin::Connect, false, at(0));
        let mut check = |serves| drain.check(table.at(0), serves, at(0), || 0);
        assert_eq!(check(true), Plan::Keep);
        assert_eq!(check(false), Plan::End);
        table.at(0).apply(Transition::Wake);
        table.at(0).flags.insert(Flags::OWED);
        assert_eq!(drain.check(table.at(0), false, at(0), || 0), Plan::Keep);
    }

    #[test]
    fn checks_go_over_all_connections_in_ticks_and_rest_then() {
        let mut table = Table::new(2 * PLACES_PER_STEP);
        let mut drain = drain();
        assert_eq!(drain.step_checks(&table, at(0)), None, "there is none to wait for");
        for _ in 0..PLACES_PER_STEP + 1 {
            add(&mut table, Origin::Accepted(ListenerId(0)), false, at(0));
        }
        drain.announce();
        assert_eq!(drain.step_checks(&table, at(0)), Some((0..0, at(50))), "another walk goes on");
        while drain.step_walk(&table).is_some() {}
        for _ in 0..2 {
            let first = Some((0..PLACES_PER_STEP, at(0) + TICK));
            assert_eq!(drain.step_checks(&table, at(0)), first);
            let last = Some((PLACES_PER_STEP..PLACES_PER_STEP + 1, at(50)));
            assert_eq!(drain.step_checks(&table, at(0)), last);
        }
    }

    #[test]
    fn a_busy_connection_ends_after_its_request_in_the_second_half_of_the_time() {
        let mut drain = drain();
        drain.begin(at(0));
        let mut table = busy();
        assert_eq!(drain.end_due(table.at(0), at(14_999)), Due::Keep);
        assert_eq!(drain.end_due(table.at(0), at(15_000)), Due::Retire);
        // What is not read may be no request at all.
        table.at(0).flags.insert(Flags::PAUSED);
        assert_eq!(drain.end_due(table.at(0), at(15_000)), Due::Keep);
        // One that waits ends then however lately it was served.
        assert_eq!(drain.end_due(idle(at(14_900)).at(0), at(15_000)), Due::End);
    }
}
