//! The whole loop as a callback sees it, and the state behind that view.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use tracing::warn;

use crate::address::{Address, Target};
use crate::canary::{Canary, planted};
use crate::config::{Config, Watermarks};
use crate::conn::Conn;
use crate::core::deadlines::{Deadline, Periods};
use crate::core::lifecycle::{State, Step};
use crate::core::output::Output;
use crate::core::pressure::{self, Lag, Permille};
use crate::core::ready::Ready;
use crate::core::stats::{Counters, Stats};
use crate::core::table::{Birth, ConnId, Dial, Flags, Origin, Table};
use crate::core::wheel::{Key, Wheel};
use crate::error::{CloseReason, ConnectError};
use crate::log::Seldom;
use crate::time::{Instant, nanos};

/// The wheel's resolution.
pub(crate) const TICK: Duration = Duration::from_millis(10);
const TICK_NANOS: u64 = TICK.as_nanos() as u64;

/// Tables with fewer places know no pressure of connections.
const PRESSED_FROM: u64 = 64;

/// How much a callback may write before it moves from the loop's buffer to the connection.
const SCRATCH_MAX: usize = 64 * 1024;

/// The whole loop, from inside a callback or before the first turn.
///
/// Like [`Conn`] it only records what is wanted; the reactor acts afterwards.
pub struct Context<'a> {
    pub(crate) shared: &'a mut LoopState,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("now", &self.now()).field("len", &self.len()).finish()
    }
}

impl Context<'_> {
    /// The time of this turn. After a callback that took long it is read again.
    pub fn now(&self) -> Instant {
        self.shared.now
    }

    /// How many connections there are, those being dialled or closed included.
    pub fn len(&self) -> usize {
        self.shared.table.len()
    }

    /// Whether there are no connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The counters so far.
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot()
    }

    /// The connection of `id`, unless it is gone.
    ///
    /// Another connection than the one whose callback runs is reached for I/O, never for its
    /// session; what is asked of it happens at the end of the turn.
    pub fn conn(&mut self, id: ConnId) -> Option<Conn<'_>> {
        self.shared.table.get(id).filter(|record| record.state() != State::Closed)?;
        self.shared.touch(id);
        Some(Conn::new(self.shared, id))
    }

    /// All connections. They are collected first, so that each may be reached while the list is
    /// walked.
    pub fn ids(&self) -> Vec<ConnId> {
        self.shared.table.ids().collect()
    }

    /// Dials `target`. [`Handler::on_open`](crate::Handler::on_open) follows in the next turn, and
    /// tells the connection by its id; then
    /// [`on_connected`](crate::Handler::on_connected), or the end with
    /// [`ConnectFailed`](CloseReason::ConnectFailed).
    ///
    /// # Errors
    ///
    /// If there are too many connections, or the reactor is shutting down.
    pub fn connect(&mut self, target: impl Into<Target>) -> Result<ConnId, ConnectError> {
        self.shared.dial(target.into(), None)
    }

    /// Asks for [`Handler::on_alarm`](crate::Handler::on_alarm) at `at`: never early, at most one
    /// tick (10 ms) and the turn at hand late. A time in the past is the next turn's,
    /// [`Instant::FAR_FUTURE`] never comes. One alarm costs 48 bytes.
    pub fn set_alarm(&mut self, at: Instant) -> AlarmId {
        self.shared.set_alarm(at, Purpose::Application)
    }

    /// Forgets an alarm; one that has come or was cancelled before is ignored.
    pub fn cancel_alarm(&mut self, alarm: AlarmId) {
        self.shared.cancel_alarm(alarm);
    }

    /// Closes the listeners, and every connection when it has been served, as
    /// [`Handle::shutdown`](crate::Handle::shutdown) does.
    pub fn shutdown(&mut self) {
        self.shared.shutdowns_asked = self.shared.shutdowns_asked.saturating_add(1);
    }

    /// Whether a shutdown began or was asked for.
    pub fn is_shutting_down(&self) -> bool {
        self.shared.is_shutting_down()
    }
}

/// The name of an alarm, never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AlarmId {
    index: u32,
    serial: u64,
}

/// A timer of the whole loop.
#[derive(Debug)]
pub(crate) struct Alarm {
    serial: u64,
    at: Instant,
    pub(crate) purpose: Purpose,
}

/// Whom an alarm is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    Application,
    /// Accepting is tried again after the system ran out of something.
    AcceptAgain,
    /// Newcomers may be let in by now.
    RetryAccept,
    /// A look at the pressure is due.
    Relieve,
    /// A look at how far a shutdown has come.
    LookAtStop,
    /// A shutdown has lasted long enough.
    HardStop,
}

/// Settings that every write consults.
#[derive(Debug)]
pub(crate) struct Bounds {
    pub(crate) watermarks: Watermarks,
    pub(crate) input_max: usize,
    pub(crate) output_max: usize,
    pub(crate) requests_max: u64,
    /// After so many requests it is looked whether a connection has come to its end.
    pub(crate) looks_from: u64,
    pub(crate) flush_rate: u64,
    pub(crate) buffered_max: u64,
    /// What all may hold while callbacks run, before the greatest holders are looked for: beyond it
    /// a further write aborts the connection written to.
    buffered_all: u64,
    /// How long a callback may take before it is reported, in nanoseconds.
    pub(crate) stall: u64,
    /// As much output of one callback as calls for no second look: neither congested, nor at the
    /// limit, nor too much for the loop's buffer.
    easy: usize,
}

/// What a callback that panics has to take back.
#[derive(Debug)]
enum Entry {
    /// It reached another connection, which had this much queued then.
    Reached { id: ConnId, queued: usize },
    /// It dialled.
    Dialled(ConnId),
}

/// All state of the loop that a callback can reach: records and queues, but no sockets, sessions
/// or unread input.
#[derive(Debug)]
pub(crate) struct LoopState {
    pub(crate) now: Instant,
    pub(crate) table: Table,
    pub(crate) wheel: Wheel,
    pub(crate) ready: Ready,
    /// Connections that callbacks of others, or of the loop, reached.
    pub(crate) dirty: VecDeque<ConnId>,
    /// Connections to be dialled.
    pub(crate) births: Vec<ConnId>,
    /// Connections whose records are to be released at the end of the turn.
    pub(crate) reaped: Vec<ConnId>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) bounds: Bounds,
    /// The timeouts of dialled connections first, then those of each listener.
    pub(crate) profiles: Vec<Periods>,
    /// Where each listener listens.
    pub(crate) listening_on: Vec<Address>,
    /// Bytes unread and queued, of all connections together.
    pub(crate) buffered: u64,
    pub(crate) lag: Lag,
    /// This turn is long, or turns were lately.
    pub(crate) lags: bool,
    /// When the long turn at hand began.
    pub(crate) long_since: Option<Instant>,
    stall_reports: Seldom,
    /// How often callbacks asked for the end.
    pub(crate) shutdowns_asked: u32,
    /// The end has begun.
    pub(crate) stopping: bool,
    /// What the callback that runs has written to its own connection.
    pub(crate) scratch: Vec<u8>,
    /// The connection whose writes go to `scratch`: the one in hand, unless it has output queued.
    pub(crate) scratch_owner: Option<ConnId>,
    /// What the callback in hand wrote was too much for `scratch`, or to be shared.
    pub(crate) spilled: bool,
    pub(crate) in_hand: Option<ConnId>,
    /// What the callback that runs has done beyond its own connection.
    journal: Vec<Entry>,
    alarms: Slab<Alarm>,
    alarms_set: u64,
    /// Which connections feed a sink.
    feeders: BTreeMap<ConnId, Vec<ConnId>>,
}

impl LoopState {
    pub(crate) fn new(config: &Config, capacity: usize, now: Instant) -> Self {
        Self {
            now,
            table: Table::new(capacity),
            wheel: Wheel::new(),
            ready: Ready::default(),
            dirty: VecDeque::new(),
            births: Vec::new(),
            reaped: Vec::new(),
            counters: Arc::default(),
            bounds: Bounds {
                watermarks: config.watermarks,
                input_max: config.limits.input_max,
                output_max: config.limits.output_max,
                requests_max: config.limits.requests_max.unwrap_or(u64::MAX),
                looks_from: config.limits.requests_max.unwrap_or(u64::MAX),
                flush_rate: config.limits.flush_rate,
                buffered_max: config.limits.buffered_max as u64,
                buffered_all: (config.limits.buffered_max as u64)
                    .saturating_add(config.limits.output_max as u64),
                stall: config.stall_report.map_or(u64::MAX, nanos),
                easy: config.watermarks.high().min(config.limits.output_max).min(SCRATCH_MAX),
            },
            profiles: vec![Periods::new(&config.timeouts)],
            listening_on: Vec::new(),
            buffered: 0,
            lag: Lag::new(config.limits.lag_max),
            lags: false,
            long_since: None,
            stall_reports: Seldom::default(),
            shutdowns_asked: 0,
            stopping: false,
            scratch: Vec::new(),
            scratch_owner: None,
            spilled: false,
            in_hand: None,
            journal: Vec::new(),
            alarms: Slab::new(),
            alarms_set: 0,
            feeders: BTreeMap::new(),
        }
    }

    /// [`State::Connecting`] → [`State::Connected`], where a lifetime begins if there is one.
    #[inline]
    pub(crate) fn establish(&mut self, id: ConnId, random: impl FnOnce() -> u64) {
        let record = self.table.at(id.index());
        record.step(Step::Establish);
        if let Some(nanos) = record.periods(&self.profiles).lifetime(random) {
            record.clocks.set(Deadline::Lifetime, self.now.after(nanos));
            record.flags.insert(Flags::HAS_LIFETIME);
        }
    }

    /// Lends the connection to a callback: from here on what it writes gathers in one place.
    #[inline]
    pub(crate) fn enter(&mut self, id: ConnId) {
        let drained = self.table.at(id.index()).output.is_empty();
        self.enter_knowing(id, drained);
    }

    /// As [`LoopState::enter`], by someone who knows whether its queue is empty.
    #[inline]
    pub(crate) fn enter_knowing(&mut self, id: ConnId, drained: bool) {
        debug_assert!(self.scratch.is_empty());
        debug_assert_eq!(self.table.at(id.index()).output.is_empty(), drained);
        self.in_hand = Some(id);
        self.spilled = false;
        self.scratch_owner = drained.then_some(id);
        self.begin_journal();
    }

    /// Takes the connection back from its callback.
    #[inline]
    pub(crate) fn leave(&mut self) {
        self.in_hand = None;
        self.scratch_owner = None;
    }

    /// Whether the callback that ran wrote to its own connection.
    #[inline]
    pub(crate) fn wrote(&self) -> bool {
        !self.scratch.is_empty() || self.spilled
    }

    /// Notes that the running callback reached `id`: it is settled at the end of the turn, and if
    /// the callback panics what it writes from here on is taken back.
    pub(crate) fn touch(&mut self, id: ConnId) {
        if self.in_hand == Some(id) {
            return;
        }
        self.mark_dirty(id);
        let queued = self.table.at(id.index()).output.len();
        self.journal.push(Entry::Reached { id, queued });
    }

    /// From here on a callback runs that may have to be rolled back.
    #[inline]
    pub(crate) fn begin_journal(&mut self) {
        self.journal.clear();
    }

    /// Takes back what the callback that ran wrote, to its own connection and to others, and what
    /// it dialled.
    pub(crate) fn roll_back(&mut self) {
        let scratch = self.scratch.len();
        self.scratch.clear();
        if let Some(id) = self.in_hand {
            self.count_dropped(id, scratch);
        }
        while let Some(entry) = self.journal.pop() {
            match entry {
                Entry::Reached { id, queued } => {
                    let Some(record) = self.table.get_mut(id) else { continue };
                    let lost = record.output.len().saturating_sub(queued);
                    let held = record.output.held();
                    record.output.truncate(queued);
                    let freed = held - record.output.held();
                    let freed = record.buffered.min(u32::try_from(freed).unwrap_or(u32::MAX));
                    record.buffered -= freed;
                    self.buffered -= u64::from(freed);
                    self.count_dropped(id, lost);
                }
                Entry::Dialled(id) => {
                    self.births.retain(|birth| *birth != id);
                    self.remove(id);
                }
            }
        }
    }

    fn count_dropped(&mut self, id: ConnId, bytes: usize) {
        let record = self.table.at(id.index());
        record.dropped = record.dropped.wrapping_add(bytes as u64);
        self.counters.unsent.add(bytes as u64);
    }

    pub(crate) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(record) = self.table.get_mut(id)
            && !record.flags.has(Flags::DIRTY)
        {
            record.flags.insert(Flags::DIRTY);
            self.dirty.push_back(id);
        }
    }

    /// Bytes written to a connection that the kernel has not taken.
    #[inline]
    pub(crate) fn queued(&mut self, id: ConnId) -> usize {
        let queued = self.table.at(id.index()).output.len();
        if self.scratch_owner == Some(id) { queued + self.scratch.len() } else { queued }
    }

    #[inline]
    pub(crate) fn write(&mut self, id: ConnId, bytes: &[u8]) {
        // Nothing is queued behind the scratch, so this is all that counts against the limits.
        let record = self.table.at(id.index());
        if self.scratch_owner == Some(id)
            && self.scratch.len() + bytes.len() <= self.bounds.easy
            && record.takes_writes()
        {
            record.flags.insert(Flags::WROTE);
            self.scratch.extend_from_slice(bytes);
        } else if self.may_write(id, bytes.len()) {
            self.queue(id, |output| output.push_copy(bytes));
        }
    }

    pub(crate) fn write_bytes(&mut self, id: ConnId, bytes: bytes::Bytes) {
        if !Output::shares(bytes.len()) {
            self.write(id, &bytes);
        } else if self.may_write(id, bytes.len()) {
            self.queue(id, |output| output.push(bytes));
        }
    }

    /// Whether a connection takes `len` more bytes; notes it if they make it congested.
    #[inline(never)]
    fn may_write(&mut self, id: ConnId, len: usize) -> bool {
        let queued = self.queued(id);
        let full = queued >= self.bounds.output_max && !planted(Canary::NoOutputLimit);
        let record = self.table.at(id.index());
        if !record.takes_writes() || full {
            if record.takes_writes() {
                record.ask(CloseReason::OutputLimit);
            }
            self.count_dropped(id, len);
            return false;
        }
        if self.buffered > self.bounds.buffered_all {
            record.ask(CloseReason::BufferLimit);
            self.count_dropped(id, len);
            return false;
        }
        record.flags.insert(Flags::WROTE);
        if queued.saturating_add(len) > self.bounds.watermarks.high()
            && !record.flags.has(Flags::CONGESTED)
        {
            record.flags.insert(Flags::CONGESTED);
            // What a connection that feeds another reads does not answer into its own queue: there
            // the sink's congestion is what counts.
            let feeds = record.rare().is_some_and(|rare| rare.sink.is_some());
            record.flags.set(Flags::OUTPUT_HELD, !feeds);
            if record.flags.has(Flags::IS_SINK) {
                self.hold_feeders(id);
            }
        }
        true
    }

    /// Queues what `push` pushes behind what the connection wrote so far. It is accounted for at
    /// once, because one callback may write to many connections.
    #[inline(never)]
    fn queue(&mut self, id: ConnId, push: impl FnOnce(&mut Output)) {
        let record = self.table.at(id.index());
        let before = record.output.held();
        if self.scratch_owner == Some(id) {
            record.output.push_copy(&self.scratch);
            self.scratch.clear();
            self.scratch_owner = None;
            self.spilled = true;
        }
        push(&mut record.output);
        let grown = u32::try_from(record.output.held() - before).unwrap_or(u32::MAX);
        self.buffered += u64::from(grown.min(u32::MAX - record.buffered));
        record.buffered = record.buffered.saturating_add(grown);
    }

    pub(crate) const fn is_shutting_down(&self) -> bool {
        self.stopping || self.shutdowns_asked > 0
    }

    pub(crate) fn dial(
        &mut self,
        target: Target,
        owner: Option<ConnId>,
    ) -> Result<ConnId, ConnectError> {
        if self.is_shutting_down() {
            return Err(ConnectError::ShuttingDown);
        }
        let peer = match &target {
            Target::Address(address) => address.clone(),
            Target::Name { .. } => Address::Unnamed,
        };
        let birth = Birth {
            origin: Origin::Connect,
            peer,
            owner,
            profile: 0,
            exempt: false,
            displaces: false,
            now: self.now,
        };
        let record = self.table.insert(birth).map_err(|_| ConnectError::Full)?;
        record.rare_mut().dial = Some(Dial { target, addresses: Vec::new(), failure: None });
        let id = record.id;
        self.births.push(id);
        self.journal.push(Entry::Dialled(id));
        self.counters.dialled.add(1);
        self.count_connections();
        Ok(id)
    }

    /// Lets `id` be read no faster than `sink` drains, if both are open.
    pub(crate) fn feed(&mut self, id: ConnId, sink: ConnId) {
        let was_held = self.table.at(id.index()).is_held();
        self.stop_feeding(id);
        let feeds = id != sink && self.table.at(id.index()).state().is_open();
        let congested = match self.table.get_mut(sink) {
            Some(record) if feeds && record.state().is_open() => {
                record.flags.insert(Flags::IS_SINK);
                self.feeders.entry(sink).or_default().push(id);
                Some(record.flags.has(Flags::CONGESTED))
            }
            _ => None,
        };
        let record = self.table.at(id.index());
        if congested.is_some() {
            record.rare_mut().sink = Some(sink);
            record.flags.remove(Flags::OUTPUT_HELD);
        }
        record.flags.set(Flags::SINK_HELD, congested == Some(true));
        if was_held && !record.is_held() {
            record.flags.insert(Flags::DATA_DUE);
        }
    }

    /// Ends what [`LoopState::feed`] began.
    pub(crate) fn stop_feeding(&mut self, id: ConnId) {
        if self.table.at(id.index()).rare().is_some_and(|rare| rare.sink.is_some()) {
            self.leave_sink(id);
        }
    }

    fn leave_sink(&mut self, id: ConnId) {
        let record = self.table.at(id.index());
        record.flags.remove(Flags::SINK_HELD);
        record.flags.set(Flags::OUTPUT_HELD, record.flags.has(Flags::CONGESTED));
        let Some(sink) = record.rare_mut().sink.take() else { return };
        if let Some(feeders) = self.feeders.get_mut(&sink) {
            feeders.retain(|feeder| *feeder != id);
            if feeders.is_empty() {
                self.feeders.remove(&sink);
                if let Some(record) = self.table.get_mut(sink) {
                    record.flags.remove(Flags::IS_SINK);
                }
            }
        }
    }

    fn hold_feeders(&mut self, sink: ConnId) {
        for feeder in self.feeders.get(&sink).into_iter().flatten() {
            if let Some(record) = self.table.get_mut(*feeder) {
                record.flags.insert(Flags::SINK_HELD);
            }
        }
        self.settle_feeders(sink);
    }

    /// The sink drained or died: those who feed it are read again.
    pub(crate) fn release_feeders(&mut self, sink: ConnId) {
        for feeder in self.feeders.get(&sink).into_iter().flatten() {
            if let Some(record) = self.table.get_mut(*feeder) {
                record.flags.remove(Flags::SINK_HELD);
                record.flags.insert(Flags::DATA_DUE);
            }
        }
        self.settle_feeders(sink);
    }

    /// The sink ends: those who feed it are read again, and held by their own output only.
    fn dismiss_feeders(&mut self, sink: ConnId) {
        for feeder in self.feeders.get(&sink).cloned().into_iter().flatten() {
            self.stop_feeding(feeder);
            self.table.at(feeder.index()).flags.insert(Flags::DATA_DUE);
            self.mark_dirty(feeder);
        }
    }

    /// The sink's output moved, so those who feed it do not wait for the application in vain.
    pub(crate) fn touch_feeders(&mut self, sink: ConnId) {
        for feeder in self.feeders.get(&sink).into_iter().flatten() {
            if let Some(record) = self.table.get_mut(*feeder)
                && record.flags.has(Flags::SINK_HELD)
            {
                record.clocks.set(Deadline::Response, self.now);
            }
        }
    }

    /// The connection ends: it feeds nobody any more, and nobody feeds it.
    #[inline]
    pub(crate) fn end_feeding(&mut self, id: ConnId) {
        let record = self.table.at(id.index());
        if record.rare().is_some() || record.flags.has(Flags::IS_SINK) {
            self.stop_feeding(id);
            self.dismiss_feeders(id);
        }
    }

    /// Frees the place of a connection; nothing is left that names it.
    pub(crate) fn remove(&mut self, id: ConnId) {
        self.end_feeding(id);
        if !planted(Canary::LeftEntry) {
            self.wheel.cancel(Key::Conn(id.index() as u32));
        }
        let record = self.table.at(id.index());
        if record.counted != State::Closed {
            self.counters.states.change(record.counted, State::Closed);
            record.counted = State::Closed;
        }
        if record.buffered > 0 {
            self.buffered -= u64::from(std::mem::take(&mut record.buffered));
            self.counters.buffered.set(self.buffered);
        }
        self.table.remove(id);
    }

    pub(crate) fn count_connections(&self) {
        self.counters.connections.set(self.table.len() as u64);
    }

    /// How near the loop is to what it can bear: the greatest share of connections, of buffered
    /// bytes, and of lag.
    pub(crate) fn pressure(&self) -> Permille {
        let places = self.table.capacity() as u64;
        // Of few places one is much: there a full table is no emergency.
        let crowded = places >= PRESSED_FROM;
        let connections =
            if crowded { pressure::share(self.table.counted() as u64, places) } else { 0 };
        let buffered = pressure::share(self.buffered, self.bounds.buffered_max);
        connections.max(buffered).max(self.lag.pressure())
    }

    /// A callback returned, and the clock has moved on while it ran, and those before it: reports
    /// it if that was long.
    pub(crate) fn note_long(&mut self, callback: &'static str, id: Option<ConnId>, now: Instant) {
        let since = self.now;
        self.now = since.max(now);
        self.long_since.get_or_insert(since);
        self.lags = true;
        let took = self.now.nanos_since(since);
        if took < self.bounds.stall {
            return;
        }
        self.counters.stalls.add(1);
        self.counters.longest_callback.raise(took);
        if let Some(times) = self.stall_reports.times(self.now) {
            let (id, millis) = (id.map(tracing::field::display), took / 1_000_000);
            warn!(callback, id, millis, times, "a callback kept the loop waiting");
        }
    }

    /// Takes the turn that ends into account, long or not.
    pub(crate) fn note_turn(&mut self) {
        let took = self.long_since.take().map_or(0, |since| self.now.nanos_since(since));
        if took > 0 {
            self.counters.note_long_turn(took);
        }
        self.lag.note(took);
        self.lags = !self.lag.is_none();
    }

    /// Lets the feeders' deadlines follow what was just changed about them.
    fn settle_feeders(&mut self, sink: ConnId) {
        for index in 0.. {
            let Some(feeder) = self.feeders.get(&sink).and_then(|feeders| feeders.get(index))
            else {
                return;
            };
            self.mark_dirty(*feeder);
        }
    }

    /// Lets the wheel come up for a connection by `at`.
    #[inline(always)]
    pub(crate) fn arm(&mut self, id: ConnId, at: Instant) {
        let key = Key::Conn(id.index() as u32);
        let entry = self.wheel.tick_of(key);
        let comes_by_then =
            entry.is_some_and(|tick| tick.saturating_mul(TICK_NANOS) <= at.as_nanos());
        if !comes_by_then && at < Instant::FAR_FUTURE {
            self.arm_earlier(id, at);
        }
    }

    /// [`LoopState::arm`] where nothing comes up by then. Mostly something does.
    #[inline(never)]
    fn arm_earlier(&mut self, id: ConnId, at: Instant) {
        let key = Key::Conn(id.index() as u32);
        let tick = self.tick_of(at);
        // One that is due already must not be put off: who is touched in every turn would never be
        // late.
        if self.wheel.tick_of(key).is_none_or(|entry| tick < entry) {
            self.wheel.schedule(key, tick);
        }
    }

    /// The first tick that is not before `at`, and not before the next one: what is armed while
    /// deadlines are served waits for another turn.
    #[inline]
    fn tick_of(&self, at: Instant) -> u64 {
        // The tick after the last instant at which it must not come up.
        at.as_nanos().saturating_sub(1).max(self.now.as_nanos()) / TICK_NANOS + 1
    }

    /// The latest tick that has come.
    #[inline]
    pub(crate) fn tick(&self) -> u64 {
        self.now.as_nanos() / TICK_NANOS
    }

    /// How long until the wheel comes up.
    #[inline]
    pub(crate) fn until_next_tick(&self) -> Option<Duration> {
        let tick = self.wheel.next_tick()?;
        let at = Instant::from_nanos(tick.saturating_mul(TICK_NANOS));
        Some(at.duration_since(self.now))
    }

    pub(crate) fn set_alarm(&mut self, at: Instant, purpose: Purpose) -> AlarmId {
        self.alarms_set += 1;
        let serial = self.alarms_set;
        let index = self.alarms.insert(Alarm { serial, at, purpose }) as u32;
        if at < Instant::FAR_FUTURE {
            self.wheel.schedule(Key::Alarm(index), self.tick_of(at));
        }
        AlarmId { index, serial }
    }

    pub(crate) fn cancel_alarm(&mut self, alarm: AlarmId) {
        let index = alarm.index as usize;
        if self.alarms.get(index).is_some_and(|set| set.serial == alarm.serial) {
            self.alarms.remove(index);
            self.wheel.cancel(Key::Alarm(alarm.index));
        }
    }

    /// Takes out the alarm that came up.
    pub(crate) fn take_alarm(&mut self, index: u32) -> (AlarmId, Purpose) {
        let alarm = self.alarms.remove(index as usize);
        debug_assert!(alarm.at <= self.now, "an alarm comes up early");
        (AlarmId { index, serial: alarm.serial }, alarm.purpose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_neither_early_nor_over() {
        let mut shared = LoopState::new(&Config::default(), 1, Instant::EPOCH);
        for now in [0, 1, TICK_NANOS - 1, TICK_NANOS, TICK_NANOS + 1] {
            shared.now = Instant::from_nanos(now);
            for at in (0..4 * TICK_NANOS).step_by(TICK_NANOS as usize / 2).chain([u64::MAX - 1]) {
                for at in [at.saturating_sub(1), at, at + 1] {
                    let tick = shared.tick_of(Instant::from_nanos(at));
                    assert_eq!(tick, at.div_ceil(TICK_NANOS).max(shared.tick() + 1), "{at} {now}");
                }
            }
        }
    }
}
