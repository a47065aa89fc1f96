//! The whole loop as a callback sees it, and the state behind that view.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;

use crate::address::{Address, Target};
use crate::canary::{Canary, planted};
use crate::close::CloseReason;
use crate::config::{Config, Watermarks};
use crate::conn::Conn;
use crate::core::budget::Step;
use crate::core::deadlines::{Deadline, Durations};
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::{self, State};
use crate::core::output::Output;
use crate::core::pressure::{self, Lag, Permille};
use crate::core::ready::Ready;
use crate::core::share::{Shared, SharedGauge};
use crate::core::stats::{Counters, Stats};
use crate::core::table::{Cursor, DialState, NewConn, Record, Table};
use crate::core::wheel::{Key, Wheel};
use crate::error::ConnectError;
use crate::id::{AlarmId, ConnId, Origin};
use crate::log::{LogLimiter, warn};
use crate::time::{Instant, nanos};

/// The wheel's resolution.
pub(crate) const TICK: Duration = Duration::from_millis(10);
const TICK_NANOS: u64 = TICK.as_nanos() as u64;

/// Tables with fewer places know no pressure of connections.
const PRESSED_FROM: u64 = 64;

/// Entries of the journal for which its memory is kept from one callback to the next.
const JOURNAL_KEPT: usize = 1_024;

/// A turn of so many nanoseconds is long, and counted.
const LONG_TURN: u64 = 8_000_000;

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

    /// Makes bytes that are to be written to many connections, by
    /// [`Conn::write_shared`], and count once in all their queues together.
    pub fn share(&self, bytes: impl Into<Bytes>) -> Shared {
        Shared::new(bytes.into(), &self.shared.shared_bytes)
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
    /// A connection of a client at its limit has waited long enough.
    RefuseDeferred,
    /// A look at the pressure is due.
    Relieve,
    /// A look at how far a shutdown has come.
    LookAtStop,
    /// A shutdown has lasted long enough.
    HardStop,
    /// A dial found the backlog full and is to be tried again.
    RetryDial(ConnId),
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
    /// From here on what all hold is a pressure.
    pub(crate) buffered_pressed: u64,
    /// What all may hold while callbacks run, before the greatest holders are looked for: beyond it
    /// a further write aborts the connection written to.
    pub(crate) buffered_all: u64,
    /// How long a callback may take before it is reported, in nanoseconds.
    pub(crate) stall: u64,
    /// As much output of one callback as calls for no second look: neither congested, nor at the
    /// limit, nor too much for the loop's buffer.
    easy: usize,
}

/// What a callback that panics has to take back.
#[derive(Debug)]
enum Entry {
    /// It reached another connection, which had this much queued then, and was congested or not.
    Reached { id: ConnId, queued: usize, congested: bool },
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
    pub(crate) pending_dials: Vec<ConnId>,
    /// Connections whose records are to be released at the end of the turn.
    pub(crate) reaped: Vec<ConnId>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) bounds: Bounds,
    /// The timeouts of dialled connections first, then those of each listener.
    pub(crate) profiles: Vec<Durations>,
    /// Where each listener listens.
    pub(crate) listening_on: Vec<Address>,
    /// Memory of what is unread and queued, of all connections together, shared pieces aside.
    pub(crate) owned: u64,
    /// Shared pieces that are in some queue, each once.
    pub(crate) shared_bytes: Arc<SharedGauge>,
    pub(crate) lag: Lag,
    /// This turn is long, or turns were lately.
    pub(crate) lags: bool,
    /// When the long turn at hand began.
    pub(crate) long_since: Option<Instant>,
    /// How long the turn was that is to be taken into account.
    turn_nanos: u64,
    /// The coarse clock when it was last read, or the time when the turn began.
    pub(crate) seen: Instant,
    /// The step of the turn that is at hand, and how long each was seen to take.
    pub(crate) step: Step,
    step_nanos: [u64; Step::ALL.len()],
    stall_reports: LogLimiter,
    /// How often callbacks asked for the end.
    pub(crate) shutdowns_asked: u32,
    /// A shutdown began.
    pub(crate) shutdown_begun: bool,
    /// A shutdown began, and the listeners are closed.
    pub(crate) stopping: bool,
    /// How far the walk has come that tells connections of the shutdown.
    pub(crate) announced: Cursor,
    /// What the callback that runs has written to its own connection.
    pub(crate) scratch: Vec<u8>,
    /// The connection whose writes go to `scratch`: the one in hand, unless it has output queued.
    pub(crate) scratch_owner: Option<ConnId>,
    /// What the callback in hand wrote was too much for `scratch`, or to be shared.
    pub(crate) spilled: bool,
    pub(crate) in_hand: Option<ConnId>,
    /// What the callback that runs has done beyond its own connection.
    journal: Vec<Entry>,
    /// Entries at which the journal is compacted.
    journal_full: usize,
    alarms: Slab<Alarm>,
    alarms_set: u64,
    /// Alarms that the wheel came up for: their times, serial numbers and places.
    due_alarms: BinaryHeap<Reverse<(Instant, u64, u32)>>,
    /// Which connections feed a sink: pairs of a sink and one of its feeders.
    feeders: BTreeSet<(ConnId, ConnId)>,
}

impl LoopState {
    pub(crate) fn new(config: &Config, capacity: usize, now: Instant) -> Self {
        Self {
            now,
            table: Table::new(capacity),
            wheel: Wheel::new(),
            ready: Ready::default(),
            dirty: VecDeque::new(),
            pending_dials: Vec::new(),
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
                buffered_pressed: pressure::least(config.limits.buffered_max as u64),
                buffered_all: (config.limits.buffered_max as u64)
                    .saturating_add(config.limits.output_max as u64),
                stall: config.stall_report.map_or(u64::MAX, nanos),
                easy: config.watermarks.high().min(config.limits.output_max).min(SCRATCH_MAX),
            },
            profiles: vec![Durations::new(&config.timeouts)],
            listening_on: Vec::new(),
            owned: 0,
            shared_bytes: Arc::default(),
            lag: Lag::new(config.limits.lag_max),
            lags: false,
            long_since: None,
            turn_nanos: 0,
            seen: now,
            step: Step::default(),
            step_nanos: Default::default(),
            stall_reports: LogLimiter::default(),
            shutdowns_asked: 0,
            shutdown_begun: false,
            stopping: false,
            announced: Cursor::default(),
            scratch: Vec::new(),
            scratch_owner: None,
            spilled: false,
            in_hand: None,
            journal: Vec::new(),
            journal_full: JOURNAL_KEPT,
            alarms: Slab::new(),
            alarms_set: 0,
            due_alarms: BinaryHeap::new(),
            feeders: BTreeSet::new(),
        }
    }

    /// [`State::Connecting`] → [`State::Connected`], where a lifetime begins if there is one.
    #[inline]
    pub(crate) fn establish(&mut self, id: ConnId, random: impl FnOnce() -> u64) {
        let record = self.table.at(id.index());
        record.step(lifecycle::Step::Establish);
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
        if self.journal.len() >= self.journal_full {
            self.compact_journal();
        }
        let record = self.table.at(id.index());
        let (queued, congested) = (record.output.len(), record.flags.has(Flags::CONGESTED));
        self.journal.push(Entry::Reached { id, queued, congested });
    }

    /// From here on a callback runs that may have to be rolled back.
    #[inline]
    pub(crate) fn begin_journal(&mut self) {
        if !self.journal.is_empty() {
            self.clear_journal();
        }
    }

    fn clear_journal(&mut self) {
        self.journal.clear();
        self.journal.shrink_to(JOURNAL_KEPT);
        self.journal_full = JOURNAL_KEPT;
    }

    /// Forgets how often connections were reached: what counts is how each was at first. So the
    /// journal is bounded by how many connections there are, and not by how often one is reached.
    #[cold]
    fn compact_journal(&mut self) {
        let mut reached = BTreeSet::new();
        self.journal.retain(|entry| match entry {
            Entry::Reached { id, .. } => reached.insert(*id),
            Entry::Dialled(_) => true,
        });
        self.journal_full = JOURNAL_KEPT.max(2 * self.journal.len());
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
                Entry::Reached { id, queued, congested } => {
                    let Some(record) = self.table.get_mut(id) else { continue };
                    let lost = record.output.len().saturating_sub(queued);
                    self.change_output(id, |output| output.truncate(queued));
                    self.count_dropped(id, lost);
                    if !congested && !planted(Canary::CongestedForEver) {
                        self.end_congestion(id);
                    }
                }
                Entry::Dialled(id) => {
                    // The latest come first here, and are the last there.
                    if self.pending_dials.last() == Some(&id) {
                        self.pending_dials.pop();
                    } else {
                        self.pending_dials.retain(|new_conn| *new_conn != id);
                    }
                    self.remove(id);
                }
            }
        }
    }

    /// The connection counts as congested no more, as if what made it so had not been written.
    pub(crate) fn end_congestion(&mut self, id: ConnId) {
        let record = self.table.at(id.index());
        if record.flags.take(Flags::CONGESTED) {
            record.flags.remove(Flags::PAUSED_BY_OUTPUT);
            if record.cold_flags.has(ColdFlags::IS_SINK) {
                self.resume_feeders(id);
            }
        }
    }

    fn count_dropped(&mut self, id: ConnId, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let cold = self.table.at(id.index()).cold_mut();
        cold.dropped = cold.dropped.wrapping_add(bytes as u64);
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

    #[inline(always)]
    pub(crate) fn write(&mut self, id: ConnId, bytes: &[u8]) {
        // Nothing is queued behind the scratch, so this is all that counts against the limits.
        let record = self.table.at(id.index());
        if self.scratch_owner == Some(id)
            && self.scratch.len() + bytes.len() <= self.bounds.easy
            && record.takes_writes()
        {
            record.flags.insert(Flags::WROTE);
            self.scratch.extend_from_slice(bytes);
        } else {
            self.write_queued(id, bytes);
        }
    }

    #[cold]
    #[inline(never)]
    fn write_queued(&mut self, id: ConnId, bytes: &[u8]) {
        if self.may_write(id, bytes.len()) {
            self.queue(id, |output| output.push_copy(bytes));
        }
    }

    pub(crate) fn write_bytes(&mut self, id: ConnId, bytes: Bytes) {
        if !Output::takes_whole(bytes.len()) {
            self.write(id, &bytes);
        } else if self.may_write(id, bytes.len()) {
            self.queue(id, |output| output.push(bytes));
        }
    }

    pub(crate) fn write_shared(&mut self, id: ConnId, shared: &Shared) {
        if !shared.is_counted_by(&self.shared_bytes) || !Output::takes_whole(shared.len()) {
            self.write_bytes(id, shared.bytes().clone());
        } else if self.may_write(id, shared.len()) {
            self.queue(id, |output| output.push_shared(shared));
        }
    }

    /// Whether a connection takes `len` more bytes; notes it if they make it congested.
    #[inline(never)]
    fn may_write(&mut self, id: ConnId, len: usize) -> bool {
        let queued = self.queued(id);
        let full = queued >= self.bounds.output_max && !planted(Canary::NoOutputLimit);
        let too_much = self.buffered() > self.bounds.buffered_all;
        let record = self.table.at(id.index());
        if !record.takes_writes() || full {
            if record.takes_writes() {
                record.request_close(CloseReason::OutputLimit);
            }
            self.count_dropped(id, len);
            return false;
        }
        if too_much {
            record.request_close(CloseReason::BufferLimit);
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
            let feeds = record.cold().is_some_and(|cold| cold.sink.is_some());
            record.flags.set(Flags::PAUSED_BY_OUTPUT, !feeds);
            if record.cold_flags.has(ColdFlags::IS_SINK) {
                self.hold_feeders(id);
            }
        }
        true
    }

    /// Queues what `push` pushes behind what the connection wrote so far. It is accounted for at
    /// once, because one callback may write to many connections.
    #[inline(never)]
    fn queue(&mut self, id: ConnId, push: impl FnOnce(&mut Output)) {
        if self.scratch_owner == Some(id) {
            let mut scratch = std::mem::take(&mut self.scratch);
            self.change_output(id, |output| output.push_copy(&scratch));
            scratch.clear();
            self.scratch = scratch;
            self.scratch_owner = None;
            self.spilled = true;
        }
        self.change_output(id, push);
    }

    /// Changes what is queued for a connection, and accounts for it at once.
    fn change_output(&mut self, id: ConnId, change: impl FnOnce(&mut Output)) {
        let output = &mut self.table.at(id.index()).output;
        let before = output.held();
        change(output);
        let after = output.held();
        let record = self.table.at(id.index());
        let buffered = (record.buffered as usize).saturating_add(after).saturating_sub(before);
        self.set_owned(id, buffered);
    }

    #[cold]
    #[inline(never)]
    fn give_up_buffers(&mut self, id: ConnId) {
        self.change_output(id, |output| _ = output.clear());
        self.set_owned(id, 0);
    }

    /// Drops what is queued for a connection.
    #[inline]
    pub(crate) fn clear_output(&mut self, id: ConnId) {
        if !self.table.at(id.index()).output.is_empty() {
            self.clear_some_output(id);
        }
    }

    #[cold]
    #[inline(never)]
    fn clear_some_output(&mut self, id: ConnId) {
        let mut dropped = 0;
        self.change_output(id, |output| dropped = output.clear());
        self.count_dropped(id, dropped);
    }

    /// A connection holds so much memory for what is unread and queued.
    pub(crate) fn set_owned(&mut self, id: ConnId, held: usize) {
        let record = self.table.at(id.index());
        let held = u32::try_from(held).unwrap_or(u32::MAX);
        let before = std::mem::replace(&mut record.buffered, held);
        self.owned = self.owned - u64::from(before) + u64::from(held);
        self.counters.buffered.set(self.buffered());
    }

    /// Memory of what is unread and queued, of all connections together, shared pieces once.
    pub(crate) fn buffered(&self) -> u64 {
        self.owned.saturating_add(self.shared_bytes.get())
    }

    pub(crate) const fn is_shutting_down(&self) -> bool {
        self.shutdown_begun || self.stopping || self.shutdowns_asked > 0
    }

    pub(crate) fn dial(
        &mut self,
        target: Target,
        owner: Option<ConnId>,
    ) -> Result<ConnId, ConnectError> {
        // What is accepted while backlogs are emptied is served as before.
        if self.stopping || self.shutdowns_asked > 0 {
            return Err(ConnectError::ShuttingDown);
        }
        let peer = match &target {
            Target::Address(address) => address.clone(),
            Target::Name { .. } => Address::Unnamed,
        };
        let new_conn = NewConn {
            origin: Origin::Connect,
            peer,
            owner,
            profile: 0,
            exempt: false,
            replaces_evicted: false,
            now: self.now,
        };
        let record = self.table.insert(new_conn).map_err(|_| ConnectError::Full)?;
        record.cold_mut().dial =
            Some(DialState { target, addresses: Vec::new(), failure: None, retry: None });
        let id = record.id;
        self.pending_dials.push(id);
        self.journal.push(Entry::Dialled(id));
        self.counters.dialled.add(1);
        self.count_connections();
        Ok(id)
    }

    /// Lets `id` be read no faster than `sink` drains, if both are open.
    pub(crate) fn feed(&mut self, id: ConnId, sink: ConnId) {
        let was_held = self.table.at(id.index()).is_reading_stopped();
        self.stop_feeding(id);
        let feeds = id != sink && self.table.at(id.index()).state().is_open();
        let congested = match self.table.get_mut(sink) {
            Some(record) if feeds && record.state().is_open() => {
                record.cold_flags.insert(ColdFlags::IS_SINK);
                self.feeders.insert((sink, id));
                Some(record.flags.has(Flags::CONGESTED))
            }
            _ => None,
        };
        let record = self.table.at(id.index());
        if congested.is_some() {
            record.cold_mut().sink = Some(sink);
            record.flags.remove(Flags::PAUSED_BY_OUTPUT);
        }
        record.flags.set(Flags::THROTTLED, congested == Some(true));
        if was_held && !record.is_reading_stopped() {
            record.flags.insert(Flags::DATA_DUE);
        }
    }

    /// Ends what [`LoopState::feed`] began.
    pub(crate) fn stop_feeding(&mut self, id: ConnId) {
        if self.table.at(id.index()).cold().is_some_and(|cold| cold.sink.is_some()) {
            self.leave_sink(id);
        }
    }

    fn leave_sink(&mut self, id: ConnId) {
        let record = self.table.at(id.index());
        record.flags.remove(Flags::THROTTLED);
        record.flags.set(Flags::PAUSED_BY_OUTPUT, record.flags.has(Flags::CONGESTED));
        let Some(sink) = record.cold_mut().sink.take() else { return };
        self.feeders.remove(&(sink, id));
        if self.feeders_of(sink).next().is_none()
            && let Some(record) = self.table.get_mut(sink)
        {
            record.cold_flags.remove(ColdFlags::IS_SINK);
        }
    }

    /// The connections that feed `sink`.
    fn feeders_of(&self, sink: ConnId) -> impl Iterator<Item = ConnId> {
        self.feeders.range((sink, ConnId::FIRST)..=(sink, ConnId::LAST)).map(|(_, feeder)| *feeder)
    }

    /// Does something with each connection that feeds `sink`, and lets its deadlines follow.
    fn each_feeder(&mut self, sink: ConnId, mut change: impl FnMut(&mut Record)) {
        let Self { table, feeders, dirty, .. } = self;
        for (_, feeder) in feeders.range((sink, ConnId::FIRST)..=(sink, ConnId::LAST)) {
            let Some(record) = table.get_mut(*feeder) else { continue };
            change(record);
            if !record.flags.has(Flags::DIRTY) {
                record.flags.insert(Flags::DIRTY);
                dirty.push_back(*feeder);
            }
        }
    }

    fn hold_feeders(&mut self, sink: ConnId) {
        self.each_feeder(sink, |record| record.flags.insert(Flags::THROTTLED));
    }

    /// The sink drained or died: those that feed it are read again.
    pub(crate) fn resume_feeders(&mut self, sink: ConnId) {
        self.each_feeder(sink, |record| {
            record.flags.remove(Flags::THROTTLED);
            record.flags.insert(Flags::DATA_DUE);
        });
    }

    /// The sink ends: those that feed it are read again, and held by their own output only.
    fn dismiss_feeders(&mut self, sink: ConnId) {
        self.each_feeder(sink, |record| {
            record.cold_mut().sink = None;
            record.flags.remove(Flags::THROTTLED);
            record.flags.set(Flags::PAUSED_BY_OUTPUT, record.flags.has(Flags::CONGESTED));
            record.flags.insert(Flags::DATA_DUE);
        });
        let gone: Vec<_> = self.feeders_of(sink).map(|feeder| (sink, feeder)).collect();
        for pair in gone {
            self.feeders.remove(&pair);
        }
        if let Some(record) = self.table.get_mut(sink) {
            record.cold_flags.remove(ColdFlags::IS_SINK);
        }
    }

    /// The sink's output moved, so those that feed it do not wait for the application in vain.
    pub(crate) fn touch_feeders(&mut self, sink: ConnId) {
        let Self { table, feeders, now, .. } = self;
        for (_, feeder) in feeders.range((sink, ConnId::FIRST)..=(sink, ConnId::LAST)) {
            if let Some(record) = table.get_mut(*feeder)
                && record.flags.has(Flags::THROTTLED)
            {
                record.clocks.set(Deadline::Response, *now);
            }
        }
    }

    /// The connection ends: it feeds nobody any more, and nobody feeds it.
    #[inline]
    pub(crate) fn end_feeding(&mut self, id: ConnId) {
        let record = self.table.at(id.index());
        if record.cold().is_some() || record.cold_flags.has(ColdFlags::IS_SINK) {
            self.stop_feeding(id);
            self.dismiss_feeders(id);
        }
    }

    /// Frees the place of a connection; nothing is left that names it.
    #[inline(always)]
    pub(crate) fn remove(&mut self, id: ConnId) {
        if !planted(Canary::LeftEntry) {
            self.wheel.cancel(Key::Conn(id.index() as u32));
        }
        self.end_feeding(id);
        let record = self.table.at(id.index());
        if record.counted != State::Closed {
            self.counters.states.change(record.counted, State::Closed);
            record.counted = State::Closed;
        }
        if record.buffered > 0 || !record.output.is_empty() {
            self.give_up_buffers(id);
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
        let buffered = pressure::share(self.buffered(), self.bounds.buffered_max);
        connections.max(buffered).max(self.lag.pressure())
    }

    /// A callback returned, and the time has moved on while it and others before it ran: reports
    /// it if it was long itself. The coarse clock, which moves in steps of `step`, was read after the
    /// callback before, so that is known to within a step.
    pub(crate) fn note_long(
        &mut self,
        callback: &'static str,
        id: Option<ConnId>,
        now: Instant,
        step: Duration,
    ) {
        let from = if planted(Canary::LastCallbackBlamed) { self.now } else { self.seen };
        let most = now.nanos_since(from);
        let least = most.saturating_sub(nanos(step));
        self.advance_now(now);
        if most < self.bounds.stall || least < self.bounds.stall / 2 {
            return;
        }
        self.counters.stalls.add(1);
        self.counters.longest_callback.raise(least);
        if let Some(times) = self.stall_reports.times(self.now) {
            let (id, millis) = (id.map(tracing::field::display), least / 1_000_000);
            let step = self.step.label();
            warn!(callback, id, millis, step, times, "a callback kept the loop waiting");
        }
    }

    /// The time is read again within a turn. What has passed since it was read before goes to the
    /// account of the step at hand.
    pub(crate) fn advance_now(&mut self, now: Instant) {
        let since = self.now;
        self.now = since.max(now);
        self.lags = true;
        self.long_since.get_or_insert(since);
        self.step_nanos[self.step as usize] += self.now.nanos_since(since);
    }

    /// When the turn at hand began.
    pub(crate) fn turn_began(&self) -> Instant {
        self.long_since.unwrap_or(self.now)
    }

    /// A turn is over that was timed.
    #[cold]
    pub(crate) fn end_long_turn(&mut self) {
        if let Some(since) = self.long_since.take() {
            self.turn_nanos = self.now.nanos_since(since);
        }
    }

    /// Takes the turn that ends into account, long or not.
    pub(crate) fn note_turn(&mut self) {
        self.end_long_turn();
        let took = std::mem::take(&mut self.turn_nanos);
        if took >= LONG_TURN {
            self.counters.note_long_turn(took, Step::longest(&self.step_nanos));
        }
        self.step_nanos = Default::default();
        self.lag.note(took);
        self.lags = !self.lag.is_none();
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
        // One that is due already must not be put off: a connection that is touched in every turn
        // would never be late.
        let tick = self.tick_of(at);
        self.wheel.schedule_by(Key::Conn(id.index() as u32), tick);
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

    /// Alarms that came or were cancelled.
    pub(crate) fn alarms_gone(&self) -> u64 {
        self.alarms_set - self.alarms.len() as u64
    }

    /// The wheel came up for an alarm. It waits until all that are due are known, as the earliest
    /// comes first.
    pub(crate) fn note_due_alarm(&mut self, index: u32) {
        if let Some(alarm) = self.alarms.get(index as usize) {
            debug_assert!(alarm.at <= self.now, "an alarm comes up early");
            let serial = alarm.serial;
            let order = if planted(Canary::AlarmsUnordered) { Instant::EPOCH } else { alarm.at };
            self.due_alarms.push(Reverse((order, serial, index)));
        }
    }

    /// Alarms that the wheel came up for and that have not been rung.
    #[inline]
    pub(crate) fn due_alarms(&self) -> usize {
        self.due_alarms.len()
    }

    #[inline]
    pub(crate) fn has_due_alarms(&self) -> bool {
        !self.due_alarms.is_empty()
    }

    /// Takes out the earliest of the alarms that are due: of several for one time the one that was
    /// set first.
    ///
    /// Only those are taken before which no other can be due: the wheel holds nothing more of their
    /// tick.
    pub(crate) fn take_due_alarm(&mut self) -> Option<(AlarmId, Purpose)> {
        let next = self.wheel.next_tick().unwrap_or(u64::MAX);
        loop {
            let Reverse((at, _, _)) = self.due_alarms.peek()?;
            if at.as_nanos().div_ceil(TICK_NANOS) >= next {
                return None;
            }
            let Reverse((_, serial, index)) = self.due_alarms.pop()?;
            // One that was cancelled meanwhile is gone, and its place may be another's.
            if self.alarms.get(index as usize).is_some_and(|alarm| alarm.serial == serial) {
                let alarm = self.alarms.remove(index as usize);
                return Some((AlarmId { index, serial }, alarm.purpose));
            }
        }
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
