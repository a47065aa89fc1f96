//! The loop as callbacks may change it: records, queues, deadlines and alarms, but no sockets,
//! sessions or unread input.
//!
//! A callback records here what it wants; the reactor does it when the callback has returned.

mod alarms;
mod health;
mod journal;
mod pools;
mod relay;
mod throttle;
mod transitions;
mod turn;
mod writing;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use slab::Slab;

use self::alarms::Alarm;
pub(crate) use self::alarms::Purpose;
use self::health::Endpoints;
pub(crate) use self::health::Standing;
use self::journal::{Entry, JOURNAL_KEPT};
pub(crate) use self::pools::Asked;
use self::pools::Pools;
pub(crate) use self::transitions::log_state;
use self::writing::SCRATCH_MAX;
use crate::address::{Address, Target};
use crate::config::{Config, SocketOptions, Timeouts, Watermarks};
use crate::core::budget::Step;
use crate::core::deadlines::{Deadline, Durations};
use crate::core::dial::DialState;
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::{self, State};
use crate::core::pressure::{self, Lag, Permille};
use crate::core::ready::Ready;
use crate::core::record::{NewConn, Record, Spares};
use crate::core::share::SharedGauge;
use crate::core::stats::{Counters, Stats};
use crate::core::table::{Cursor, Table};
use crate::core::wheel::{Key, Wheel};
use crate::error::ConnectError;
use crate::id::{ConnId, Origin};
use crate::log::{self, LogLimiter};
use crate::planted::{Bug, planted};
use crate::time::{Instant, nanos};

/// Tables with fewer places know no pressure of connections.
const PRESSED_FROM: u64 = 64;

/// Bytes read from one connection in one turn, and the size of the loop's read buffer.
pub(crate) const READ_BUDGET: usize = 64 * 1024;

/// Settings that every read or write consults.
#[derive(Debug)]
pub(crate) struct Bounds {
    pub(crate) watermarks: Watermarks,
    pub(crate) input_max: usize,
    /// The most that is read at once into the loop's buffer.
    pub(crate) read_max: usize,
    pub(crate) output_max: usize,
    pub(crate) requests_max: u64,
    pub(crate) flush_rate: u64,
    pub(crate) buffered_max: u64,
    /// The pressure from which on anything follows from it.
    pub(crate) pressed_from: Permille,
    /// From here on what all hold is such a pressure.
    pub(crate) buffered_pressed: u64,
    /// What all may hold while callbacks run, before the greatest holders are aborted: beyond it
    /// a further write aborts the connection written to.
    pub(crate) buffered_all: u64,
    /// How long a callback may take before it is reported, in nanoseconds.
    pub(crate) stall: u64,
    /// As much output of one callback as needs no further check: neither congested, nor at the
    /// limit, nor too much for the loop's buffer.
    easy: usize,
}

impl Bounds {
    fn new(config: &Config) -> Self {
        let pressed_from = pressure::matters_from(config.limits.shrink_idle_from);
        Self {
            watermarks: config.watermarks,
            input_max: config.limits.input_max,
            read_max: config.limits.input_max.min(READ_BUDGET),
            output_max: config.limits.output_max,
            requests_max: config.limits.requests_max.unwrap_or(u64::MAX),
            flush_rate: config.limits.flush_rate,
            buffered_max: config.limits.buffered_max as u64,
            buffered_pressed: pressure::part(config.limits.buffered_max as u64, pressed_from),
            pressed_from,
            buffered_all: (config.limits.buffered_max as u64)
                .saturating_add(config.limits.output_max as u64),
            stall: config.stall_report.map_or(u64::MAX, nanos),
            easy: config.watermarks.high().min(config.limits.output_max).min(SCRATCH_MAX),
        }
    }
}

/// A copy of the counters, with what the process as a whole counts.
pub(crate) fn stats(counters: &Counters) -> Stats {
    let mut stats = counters.snapshot();
    stats.log_failures = log::lost();
    stats
}

/// The peer of a connection to be dialled, as far as it is known before a look-up.
fn peer_of(target: &Target) -> Address {
    match target {
        Target::Address(address) => address.clone(),
        Target::Name { .. } => Address::Unnamed,
    }
}

/// Lists a connection among those that callbacks of others, or of the loop, reached.
#[inline]
fn mark_dirty(record: &mut Record, dirty: &mut VecDeque<ConnId>) {
    if !record.flags.has(Flags::DIRTY) {
        record.flags.insert(Flags::DIRTY);
        dirty.push_back(record.id);
    }
}

/// All state of the loop that a callback can reach: records and queues, but no sockets, sessions
/// or unread input.
#[derive(Debug)]
pub(crate) struct LoopState {
    pub(crate) now: Instant,
    /// The wall clock, and when it was read.
    pub(crate) wall: (Duration, Instant),
    pub(crate) table: Table,
    pub(crate) wheel: Wheel,
    pub(crate) ready: Ready,
    /// Connections that callbacks of others, or of the loop, reached.
    pub(crate) dirty: VecDeque<ConnId>,
    /// Connections to be dialled.
    pub(crate) pending_dials: Vec<ConnId>,
    /// Connections that are released, whose records are to be removed at the end of the turn.
    pub(crate) reaped: Vec<ConnId>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) bounds: Bounds,
    /// The timeouts of dialled connections first, then those of each listener.
    pub(crate) profiles: Vec<Durations>,
    /// How much input callbacks have wanted to be skipped, by connection: what the simulator compares.
    #[cfg(feature = "sim")]
    skips: std::collections::BTreeMap<ConnId, u64>,
    /// The timeouts and the options of dialled connections.
    pub(crate) dial_timeouts: Timeouts,
    pub(crate) dial_options: SocketOptions,
    pub(crate) pools: Pools,
    pub(crate) endpoints: Endpoints,
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
    /// How far the walk has come that announces the shutdown to connections.
    pub(crate) announced: Cursor,
    pub(crate) spares: Spares,
    /// What the callback that runs has written to one connection, which is mostly its own.
    pub(crate) scratch: BytesMut,
    /// The connection whose writes go to `scratch`: the one in hand, or what this has just leased. None
    /// that has output queued.
    pub(crate) scratch_owner: Option<ConnId>,
    /// Where the loop's buffer for reads begins, while `on_data` has it; zero at all other times.
    pub(crate) lent_at: usize,
    /// Bytes of input behind the message that [`frame::each`](crate::frame::each) hands over; zero at
    /// all other times.
    pub(crate) unread: usize,
    /// What the callback in hand wrote to its own connection is queued, where nothing was.
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
            wall: (Duration::ZERO, now),
            table: Table::new(capacity),
            wheel: Wheel::new(),
            ready: Ready::default(),
            dirty: VecDeque::new(),
            pending_dials: Vec::new(),
            reaped: Vec::new(),
            counters: Arc::default(),
            bounds: Bounds::new(config),
            profiles: vec![Durations::new(&config.timeouts)],
            #[cfg(feature = "sim")]
            skips: std::collections::BTreeMap::new(),
            dial_timeouts: config.timeouts.clone(),
            dial_options: config.socket.clone(),
            pools: Pools::default(),
            endpoints: Endpoints::default(),
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
            spares: Spares::default(),
            scratch: BytesMut::new(),
            scratch_owner: None,
            lent_at: 0,
            unread: 0,
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

    /// Some settings change while the loop runs.
    pub(crate) fn change(&mut self, before: &Config, config: &Config) {
        self.bounds = Bounds::new(config);
        if before.limits.lag_max != config.limits.lag_max {
            self.lag = Lag::new(config.limits.lag_max);
        }
    }

    /// [`State::Connecting`] → [`State::Connected`], where a lifetime begins if there is one.
    #[inline]
    pub(crate) fn establish(&mut self, id: ConnId, random: impl FnOnce() -> u64) {
        let record = self.table.at(id.index());
        record.apply(lifecycle::Transition::Establish);
        log_state(record);
        if let Some(nanos) = record.durations(&self.profiles).lifetime(random) {
            record.clocks.set(Deadline::Lifetime, self.now.after(nanos));
            record.flags.insert(Flags::HAS_LIFETIME);
        }
    }

    /// Lends the connection to a callback: from here on what it writes gathers in one place.
    #[inline]
    pub(crate) fn enter(&mut self, id: ConnId) {
        let drained = !self.table.at(id.index()).has_output();
        self.enter_knowing(id, drained);
    }

    /// As [`LoopState::enter`], where it is known whether its queue is empty.
    #[inline]
    pub(crate) fn enter_knowing(&mut self, id: ConnId, drained: bool) {
        debug_assert!(self.scratch.is_empty());
        debug_assert_eq!(!self.table.at(id.index()).has_output(), drained);
        self.in_hand = Some(id);
        self.spilled = false;
        self.scratch_owner = drained.then_some(id);
        self.begin_journal();
    }

    /// As [`LoopState::enter`], for a callback that gets `lease`: what the callback writes to the lease
    /// gathers, as that is most of what it writes, and nothing else writes to the lease meanwhile.
    #[inline(always)]
    pub(crate) fn enter_leased(&mut self, owner: ConnId, lease: ConnId) {
        self.enter(owner);
        // A request that is sent again is queued.
        if !self.table.at(lease.index()).has_output() {
            self.scratch_owner = Some(lease);
        }
    }

    /// Takes the connection back from its callback.
    #[inline]
    pub(crate) fn leave(&mut self) {
        self.in_hand = None;
        self.scratch_owner = None;
        self.lent_at = 0;
    }

    /// Whether the callback that ran wrote to its own connection.
    #[inline]
    pub(crate) fn wrote(&self) -> bool {
        !self.scratch.is_empty() || self.spilled
    }

    /// Frees the place of a connection; nothing is left that names the connection.
    ///
    /// An entry in the wheel that is not far ahead stays with the place: mostly it comes up no later
    /// than the first deadline of the next connection there, and then nothing has to be linked for
    /// that one.
    #[inline(always)]
    pub(crate) fn remove(&mut self, id: ConnId) {
        self.wheel.cancel_far(Key::Conn(id.index() as u32));
        let record = self.table.at(id.index());
        let tied = record.is_tied();
        let holds = record.buffered > 0 || record.has_output();
        if record.counted != State::Closed {
            self.counters.states.change(record.counted, State::Closed);
            record.counted = State::Closed;
        }
        if tied {
            self.free_tied(id);
        }
        if holds {
            self.give_up_buffers(id);
        }
        #[cfg(feature = "sim")]
        if !self.skips.is_empty() {
            self.skips.remove(&id);
        }
        self.table.remove(id);
    }

    #[cfg(feature = "sim")]
    pub(crate) fn note_skip(&mut self, id: ConnId, len: u64) {
        let skips = self.skips.entry(id).or_default();
        *skips = skips.saturating_add(len);
    }

    #[cfg(feature = "sim")]
    pub(crate) fn skips_of(&self, id: ConnId) -> u64 {
        self.skips.get(&id).copied().unwrap_or_default()
    }

    /// Frees what the place of a connection takes elsewhere.
    #[cold]
    fn free_tied(&mut self, id: ConnId) {
        let record = self.table.at(id.index());
        let feeds = record.feeds();
        let of_endpoint = record.is_of_endpoint();
        if record.cold_flags.has(ColdFlags::POOLED) {
            self.free_pool_place(id);
        }
        if of_endpoint {
            self.free_endpoint_place(id);
        }
        if feeds {
            self.end_feeding(id);
        }
    }

    /// The connection that an id of the application or of an event names, which may be gone.
    #[inline(always)]
    pub(crate) fn resolve(&self, id: ConnId) -> ConnId {
        if planted(Bug::DroppedGeneration) {
            return self.table.id_in(id.index()).unwrap_or(id);
        }
        id
    }

    /// The wall clock at the time of the turn.
    pub(crate) fn now_unix(&self) -> Duration {
        let (wall, read_at) = self.wall;
        wall + self.now.duration_since(read_at)
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
        let id = self.add_dialled(target, owner)?;
        self.journal.push(Entry::Dialled(id));
        Ok(id)
    }

    /// Adds a connection that is to be dialled.
    pub(crate) fn add_dialled(
        &mut self,
        target: Target,
        owner: Option<ConnId>,
    ) -> Result<ConnId, ConnectError> {
        let new_conn = NewConn {
            origin: Origin::Connect,
            peer: peer_of(&target),
            owner,
            exempt: false,
            room_checked: false,
            now: self.now,
        };
        let id = self.insert_dialled(new_conn, target)?;
        self.pending_dials.push(id);
        Ok(id)
    }

    fn insert_dialled(
        &mut self,
        new_conn: NewConn,
        target: Target,
    ) -> Result<ConnId, ConnectError> {
        let record = self.table.insert(new_conn).map_err(|_| ConnectError::Full)?;
        log_state(record);
        record.cold_mut().dial = Some(Box::new(DialState::new(target)));
        let id = record.id;
        self.counters.dialled.add(1);
        self.count_connections();
        Ok(id)
    }

    /// Adds a connection that checks an endpoint. It is dialled before all others, as its time runs;
    /// and where the table is full it takes one of the places that are kept for an operator, as what
    /// waits for the endpoint may be what fills the table.
    pub(crate) fn add_check(&mut self, target: Target) -> Result<ConnId, ConnectError> {
        let new_conn = NewConn {
            origin: Origin::Connect,
            peer: peer_of(&target),
            owner: None,
            exempt: self.table.is_full() && self.table.has_room_for_check(),
            room_checked: false,
            now: self.now,
        };
        let id = self.insert_dialled(new_conn, target)?;
        self.pending_dials.insert(0, id);
        Ok(id)
    }

    pub(crate) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(record) = self.table.get_mut(id) {
            mark_dirty(record, &mut self.dirty);
        }
    }

    /// Memory of what is unread and queued, of all connections together, shared pieces once.
    pub(crate) fn buffered(&self) -> u64 {
        self.owned.saturating_add(self.shared_bytes.get())
    }
}
