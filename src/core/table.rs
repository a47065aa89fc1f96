//! Connection records over a slab.

use std::ops::Range;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use slab::Slab;
use tracing::Level;

use crate::address::{Address, Target};
use crate::close::CloseMode;
use crate::close::{CloseReason, OsError, Timeout};
use crate::core::admission::LingerNumber;
use crate::core::deadlines::{Deadline, DeadlineClocks, DeadlineInputs, Durations};
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::{State, Step};
use crate::core::output::Output;
use crate::core::stats::States;
use crate::id::{ConnId, ListenerId, Origin, PLACES_MAX};
use crate::log::{debug, hears};
use crate::planted::{Bug, planted};
use crate::time::Instant;

/// The most connections a table can hold beside the exempt ones.
pub(crate) const CAPACITY_MAX: usize = PLACES_MAX - EXEMPT_MAX;

/// How far dialling has come.
#[derive(Debug)]
pub(crate) struct DialState {
    pub(crate) target: Target,
    /// Addresses yet to be tried, the next one last.
    pub(crate) addresses: Vec<Address>,
    /// Why the latest attempt failed.
    pub(crate) failure: Option<OsError>,
    /// The attempt that is to be repeated, because the backlog of the Unix-domain listener was full,
    /// and the pause before that.
    pub(crate) retry: Option<(Address, Duration)>,
}

/// What few connections need, apart from their record so that the others do not pay for it.
#[derive(Debug, Default)]
pub(crate) struct ColdState {
    /// Timeouts of its own.
    pub(crate) periods: Option<Box<Durations>>,
    /// The local address, where it is not the listener's.
    pub(crate) local: Option<Address>,
    /// The connection that dialled this one.
    pub(crate) owner: Option<ConnId>,
    /// What this connection feeds.
    pub(crate) sink: Option<ConnId>,
    pub(crate) dial: Option<DialState>,
    /// What is queued.
    output: Output,
    /// What `on_data` waits for.
    awaited: AwaitedInput,
    /// Of the bytes the kernel took, what had left its queue when last looked at.
    pub(crate) acked: u64,
    /// What had left when the minimum rate was last reckoned.
    pub(crate) acked_at_flush: u64,
    /// When output last became queued.
    pub(crate) queued_at: Instant,
    /// What a failed write said of the peer.
    pub(crate) broken: Option<CloseReason>,
    /// Bytes the handler wrote that will never be taken.
    pub(crate) dropped: u64,
    /// The bytes read when a shutdown began, if some of them may have been with the handler still.
    pub(crate) read_before_stop: u64,
    /// It was told that a request is its last.
    pub(crate) retirement: Option<Retirement>,
    /// It was told that, and has reached its greatest age.
    pub(crate) aged: bool,
    /// The latest look at a request that was given more time.
    pub(crate) request: Option<RequestCheck>,
    /// Until when the answer to a ping may come, and the bytes read before it.
    pub(crate) pinged: Option<(Instant, u64)>,
    /// The peer of a Unix-domain socket is gone: once its input has been read nothing more comes of
    /// it.
    pub(crate) peer_gone: bool,
    /// An end waits until the peer has acknowledged what the kernel still holds for it.
    pub(crate) delivery: Option<Delivery>,
    /// Until when it is no candidate for eviction, as its peer had yet to receive something.
    pub(crate) spared_until: Instant,
    /// Its number among the lingering connections of limited clients.
    pub(crate) linger_number: Option<LingerNumber>,
}

impl ColdState {
    /// Whether nothing is in it that outlives queued output.
    const fn is_vacant(&self) -> bool {
        self.output.is_empty()
            && matches!(
                self,
                Self {
                    periods: None,
                    local: None,
                    owner: None,
                    sink: None,
                    dial: None,
                    output: _,
                    awaited: AwaitedInput { skipped: 0, len: 0 },
                    acked: _,
                    acked_at_flush: _,
                    queued_at: _,
                    broken: None,
                    dropped: 0,
                    read_before_stop: 0,
                    retirement: None,
                    aged: false,
                    request: None,
                    pinged: None,
                    peer_gone: false,
                    delivery: None,
                    spared_until: Instant::EPOCH,
                    linger_number: None,
                }
            )
    }
}

/// What `on_data` waits for.
#[derive(Clone, Copy, Debug, Default)]
struct AwaitedInput {
    /// Bytes of input that are discarded first.
    skipped: u64,
    /// Bytes of input that are to be there then.
    len: usize,
}

/// What is known of bytes that the kernel took and the peer has not acknowledged, while an end
/// waits for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    /// The clock of the deadline that waits, as this wait set it: traffic sets it anew, and then
    /// this wait is over.
    pub(crate) clock: Instant,
    /// The clock as it was before this wait began to move it.
    pub(crate) since: Instant,
    /// When the next check is due of a connection that is closing, whose clocks do not say so.
    pub(crate) check_at: Instant,
    /// When the wait began.
    pub(crate) begun_at: Instant,
    /// Bytes acknowledged at the latest check.
    pub(crate) acked: u64,
    /// When that number last grew.
    pub(crate) progress_at: Instant,
    /// Of a connection that is closing: it is only waited for this, and not for the peer's FIN.
    pub(crate) ends: bool,
}

/// A connection was told that a request is its last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retirement {
    pub(crate) reason: CloseReason,
    /// The requests served before that one.
    pub(crate) after: u64,
}

/// A look at a request that arrives for long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestCheck {
    /// Since when the clock of the request runs by it, to tell that request.
    pub(crate) since: Instant,
    pub(crate) at: Instant,
    /// The bytes read by then.
    pub(crate) read: u64,
}

/// What the reactor knows of one connection, its socket, session and unread input aside.
///
/// It takes three cache lines, of which a message touches the last one. So the fields lie in the
/// order in which they are written here.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Record {
    cold: Option<Box<ColdState>>,
    pub(crate) opened_at: Instant,
    pub(crate) peer: Address,
    /// Bytes of it that count as buffered, unread and queued ones, as far as they are accounted for.
    pub(crate) buffered: u32,
    /// Requests begun and not ended.
    owed: u32,
    /// Whose timeouts apply, unless it has some of its own: those of dialled connections come first,
    /// then those of each listener. So it says how the connection came about, too.
    profile: u32,
    /// The end a callback asked for, until it is acted on.
    requested: Option<CloseReason>,
    /// Why it ends, set when the end begins.
    pub(crate) reason: Option<CloseReason>,
    /// The hot line begins with the end of these.
    pub(crate) clocks: DeadlineClocks,
    pub(crate) id: ConnId,
    pub(crate) bytes_in: u64,
    /// Bytes the kernel took.
    pub(crate) bytes_out: u64,
    /// Requests ended, or callbacks that consumed where the handler counts none.
    pub(crate) requests: u64,
    pub(crate) flags: Flags,
    state: State,
    /// The state in which it is counted; [`State::Connected`] is what the others leave.
    pub(crate) counted: State,
    pub(crate) cold_flags: ColdFlags,
}

const CACHE_LINE: usize = 64;

const _: () = {
    let hot = std::mem::offset_of!(Record, clocks) + DeadlineClocks::HOT;
    assert!(hot.is_multiple_of(CACHE_LINE), "the hot line begins with a cache line");
    assert!(hot + CACHE_LINE == size_of::<Record>(), "and is the last one");
    assert!(size_of::<Record>() == 192, "the record is most of what an idle connection costs");
};

impl Record {
    /// A place for a connection of this id.
    fn vacant(id: ConnId) -> Self {
        Self {
            cold: None,
            opened_at: Instant::EPOCH,
            peer: Address::Unnamed,
            buffered: 0,
            owed: 0,
            profile: 0,
            requested: None,
            reason: None,
            clocks: DeadlineClocks::default(),
            id,
            bytes_in: 0,
            bytes_out: 0,
            requests: 0,
            flags: Flags::default(),
            state: State::Closed,
            counted: State::Closed,
            cold_flags: ColdFlags::default(),
        }
    }

    #[inline(always)]
    fn fill(&mut self, new_conn: NewConn) {
        let NewConn { origin, peer, owner, exempt, now, .. } = new_conn;
        (self.profile, self.flags) = match origin {
            Origin::Accepted(listener) => (listener.0 + 1, Flags::INBOUND),
            Origin::Connect => (0, Flags::default()),
        };
        self.cold_flags = ColdFlags::default();
        self.cold_flags.set(ColdFlags::EXEMPT, exempt);
        self.state = State::Connecting;
        self.owed = 0;
        self.clocks.reset();
        self.bytes_in = 0;
        self.bytes_out = 0;
        self.requests = 0;
        self.opened_at = now;
        self.peer = peer;
        self.requested = None;
        self.reason = None;
        if owner.is_some() {
            self.cold_mut().owner = owner;
        }
        self.log_state();
    }

    /// Gives back what a free place need not own, and its id up for ever.
    #[inline(always)]
    fn vacate(&mut self) {
        self.id = self.id.next();
        self.state = State::Closed;
        if self.cold.is_some() {
            self.cold = None;
        }
        if let Address::Unix(_) = self.peer {
            self.peer = Address::Unnamed;
        }
    }

    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// How it came about.
    pub(crate) const fn origin(&self) -> Origin {
        match self.profile {
            0 => Origin::Connect,
            profile => Origin::Accepted(ListenerId(profile - 1)),
        }
    }

    /// Whether the limits on connections leave it out.
    pub(crate) const fn is_exempt(&self) -> bool {
        self.cold_flags.has(ColdFlags::EXEMPT)
    }

    /// Whether the limits on inbound connections apply to it.
    pub(crate) const fn is_limited(&self) -> bool {
        self.flags.has(Flags::INBOUND) && !self.is_exempt()
    }

    /// Requests begun and not ended.
    pub(crate) const fn owed(&self) -> u32 {
        self.owed
    }

    pub(crate) const fn set_owed(&mut self, owed: u32) {
        self.owed = owed;
        self.flags.set(Flags::OWED, owed > 0);
    }

    /// The end that was asked for and is not acted on yet.
    pub(crate) const fn requested(&self) -> Option<CloseReason> {
        self.requested
    }

    pub(crate) const fn set_requested(&mut self, reason: CloseReason) {
        self.requested = Some(reason);
        self.flags.insert(Flags::CLOSE_REQUESTED);
    }

    pub(crate) const fn take_requested(&mut self) -> Option<CloseReason> {
        self.flags.remove(Flags::CLOSE_REQUESTED);
        self.requested.take()
    }

    /// `on_data` waits for `len` bytes of input.
    pub(crate) fn await_input(&mut self, len: usize) {
        self.cold_mut().awaited.len = len;
        self.flags.insert(Flags::INPUT_AWAITED);
    }

    /// `on_data` waits until `len` more bytes of input have been discarded.
    pub(crate) fn await_skipped(&mut self, len: u64) {
        let awaited = &mut self.cold_mut().awaited;
        awaited.skipped = awaited.skipped.saturating_add(len);
        self.flags.insert(Flags::INPUT_AWAITED);
    }

    /// `on_data` waits for no length of input any more. What is to be discarded still is.
    pub(crate) fn await_no_length(&mut self) {
        let Some(cold) = self.cold.as_deref_mut() else { return };
        cold.awaited.len = 0;
        if cold.awaited.skipped == 0 {
            self.await_nothing();
        }
    }

    /// `on_data` waits for nothing but input any more.
    pub(crate) fn await_nothing(&mut self) {
        self.flags.remove(Flags::INPUT_AWAITED);
        if let Some(cold) = &mut self.cold {
            cold.awaited = AwaitedInput::default();
            if cold.is_vacant() {
                self.cold = None;
            }
        }
    }

    /// How many bytes of input are to be discarded still.
    pub(crate) fn to_skip(&self) -> u64 {
        self.cold.as_ref().map_or(0, |cold| cold.awaited.skipped)
    }

    /// Discards what is to be discarded of `input`. Returns whether anything still is.
    pub(crate) fn skip_input(&mut self, input: &mut BytesMut) -> bool {
        let awaited = &mut self.cold_mut().awaited;
        let len = input.len().min(usize::try_from(awaited.skipped).unwrap_or(usize::MAX));
        input.advance(len);
        awaited.skipped -= len as u64;
        awaited.skipped > 0
    }

    /// Whether `on_data` is due with `len` bytes of input. If so it waits no more.
    pub(crate) fn take_awaited(&mut self, len: usize) -> bool {
        let awaited = self.cold_mut().awaited;
        let due = awaited.skipped == 0 && len >= awaited.len;
        if due {
            self.await_nothing();
        }
        due
    }

    /// Whether output is queued.
    #[inline]
    pub(crate) const fn has_output(&self) -> bool {
        self.flags.has(Flags::QUEUED)
    }

    /// What is queued, if anything ever was.
    pub(crate) fn output(&self) -> Option<&Output> {
        self.cold.as_ref().map(|cold| &cold.output)
    }

    /// Bytes that are queued.
    #[inline]
    pub(crate) fn queued(&self) -> usize {
        if self.has_output() { self.output().map_or(0, Output::len) } else { 0 }
    }

    /// The memory that what is queued takes up.
    #[inline]
    pub(crate) fn output_held(&self) -> usize {
        if self.has_output() { self.output().map_or(0, Output::held) } else { 0 }
    }

    /// Changes what is queued.
    pub(crate) fn change_output<T>(&mut self, change: impl FnOnce(&mut Output) -> T) -> T {
        let output = &mut self.cold_mut().output;
        let outcome = change(output);
        let queued = !output.is_empty();
        self.flags.set(Flags::QUEUED, queued);
        if !queued && self.cold.as_ref().is_some_and(|cold| cold.is_vacant()) {
            self.cold = None;
        }
        outcome
    }

    /// Moves along an arrow of the lifecycle; the only place where a state changes.
    ///
    /// # Panics
    ///
    /// In debug builds, if no such arrow leaves the state. In release builds nothing moves.
    #[inline]
    pub(crate) fn step(&mut self, step: Step) {
        self.step_and_log(step, true);
    }

    /// [`Record::step`], which is logged only if `log` says so.
    #[inline]
    pub(crate) fn step_and_log(&mut self, step: Step, log: bool) {
        let after = self.state.after(step);
        debug_assert!(after.is_some(), "{}: {step:?} from {:?}", self.id, self.state);
        self.state = after.unwrap_or(self.state);
        if log {
            self.log_state();
        }
    }

    #[inline]
    fn log_state(&self) {
        if hears(Level::DEBUG) {
            self.say_state();
        }
    }

    #[cold]
    #[inline(never)]
    fn say_state(&self) {
        let Self { id, requests, bytes_in, bytes_out, .. } = self;
        let peer = (self.peer != Address::Unnamed).then(|| tracing::field::display(&self.peer));
        let reason = self.reason.map(tracing::field::display);
        match self.state {
            State::Connecting => debug!(%id, peer, origin = ?self.origin(), "connecting"),
            State::Connected => debug!(%id, peer, "connected"),
            State::Idle => debug!(%id, peer, requests, "idle"),
            State::Closing => debug!(%id, peer, reason, "closing"),
            State::Closed => debug!(%id, peer, reason, requests, bytes_in, bytes_out, "closed"),
        }
    }

    /// Lets it be counted in the state it is in.
    #[inline]
    pub(crate) fn count_state(&mut self, states: &States) {
        if self.counted != self.state {
            states.change(self.counted, self.state);
            self.counted = self.state;
        }
    }

    /// What the choice of deadlines depends on.
    #[inline]
    pub(crate) const fn deadline_inputs(&self) -> DeadlineInputs {
        DeadlineInputs::new(self.state, self.flags)
    }

    /// Whether input is left in the socket on purpose.
    #[inline]
    pub(crate) const fn is_reading_stopped(&self) -> bool {
        self.flags.has(Flags::READING_STOPPED)
    }

    /// Whether nothing is asked of it, queued, owed or left to do: what most messages end with.
    #[inline]
    pub(crate) const fn is_quiet(&self) -> bool {
        !self.flags.has(Flags::BUSY)
    }

    /// [`State::Connected`] → [`State::Idle`], if it is quiet and no request is active, and it need
    /// not be checked for its end. Returns whether it was.
    #[inline]
    pub(crate) fn try_rest(&mut self, requests_max: u64, log: bool) -> bool {
        let rests = self.state == State::Connected
            && self.is_quiet()
            && self.deadline_inputs().at_rest()
            && self.requests < requests_max;
        if rests {
            self.step_and_log(Step::Rest, log);
        }
        rests
    }

    /// Whether it has had its last output and our FIN, and only its peer's FIN is waited for.
    pub(crate) fn lingers(&self) -> bool {
        matches!(self.state, State::Closing)
            && self.cold_flags.has(ColdFlags::LINGERING)
            && self.flags.has(Flags::FIN)
            && !self.flags.has(Flags::REAPED)
            && !self.has_output()
            && !self.is_exempt()
    }

    /// Since when it waits.
    pub(crate) fn quiet_since(&self) -> Instant {
        if self.state == State::Idle { self.idle_since() } else { self.opened_at }
    }

    /// Since when it has been idle.
    pub(crate) fn idle_since(&self) -> Instant {
        let clock = self.clocks.since(Deadline::Idle);
        self.delivery_at(clock).map_or(clock, |delivery| delivery.since)
    }

    /// Bytes of its last output left: each buys its time at the minimum rate. As a peer's kernel takes
    /// them in steps they may buy more than `flush`, but no more than the write timeout from now.
    pub(crate) fn credit_flush(
        &mut self,
        moved: u64,
        rate: u64,
        profiles: &[Durations],
        now: Instant,
    ) {
        let periods = self.periods(profiles);
        let (flush, write) = (periods.of(Deadline::Flush), periods.of(Deadline::Write));
        let latest = now.after(write.saturating_sub(flush));
        self.clocks.extend(Deadline::Flush, moved.saturating_mul(1_000_000_000) / rate);
        if self.clocks.since(Deadline::Flush) > latest {
            self.clocks.set(Deadline::Flush, latest);
        }
    }

    /// When to check again what the peer of a closing connection has acknowledged.
    pub(crate) fn delivery_due(&self) -> Option<Instant> {
        let delivery = self.cold.as_ref()?.delivery?;
        let waits = self.state == State::Closing
            && self.flags.has(Flags::FIN)
            && !self.flags.has(Flags::REAPED);
        waits.then_some(delivery.check_at)
    }

    /// The wait for acknowledgements that set a deadline's clock to `clock`, if one did.
    pub(crate) fn delivery_at(&self, clock: Instant) -> Option<Delivery> {
        self.cold.as_ref()?.delivery.filter(|delivery| delivery.clock == clock)
    }

    /// Whether it waits for its peer to begin: idle, or never heard of.
    pub(crate) const fn waits(&self) -> bool {
        let silent = !self.flags.has(Flags::RECEIVED.and(Flags::OWED).and(Flags::QUEUED));
        let unheard = matches!(self.state, State::Connected)
            && self.flags.has(Flags::INBOUND)
            && silent
            && !self.flags.has(Flags::TUNNEL);
        // What is held may have a request in its socket.
        !self.is_reading_stopped() && (matches!(self.state, State::Idle) || unheard)
    }

    /// Whether there is something to do for this connection that no event will announce.
    pub(crate) const fn has_work(&self) -> bool {
        let flags = self.flags;
        let reads = flags.has(Flags::READ_READY) && !flags.has(Flags::EOF);
        let writes = flags.has(Flags::WRITE_READY) && self.has_output();
        if matches!(self.state, State::Connected | State::Idle) {
            let due = flags.has(Flags::DATA_DUE);
            writes || flags.has(Flags::DRAINED) || ((reads || due) && !self.is_reading_stopped())
        } else {
            // A dialled connection waits for its socket to be writable, which is an event.
            matches!(self.state, State::Closing) && (reads || writes)
        }
    }

    /// Whether writes are taken: before the end was asked for.
    pub(crate) const fn takes_writes(&self) -> bool {
        let open = self.state.is_open() || self.cold_flags.has(ColdFlags::FINAL_REPLY);
        open && !self.flags.has(Flags::CLOSE_REQUESTED.and(Flags::FINISHED))
    }

    /// Until when an idle connection must answer a ping, if it was pinged and has not answered.
    pub(crate) fn ping_due(&self) -> Option<Instant> {
        let (until, before) = self.cold.as_ref()?.pinged?;
        (self.state == State::Idle && self.bytes_in == before).then_some(until)
    }

    /// The request at hand is its last, for `reason`, unless it was told so before.
    pub(crate) fn retire(&mut self, reason: CloseReason) {
        if self.retirement().is_some() {
            return;
        }
        let aged = self.is_aged();
        let after = self.requests;
        self.flags.insert(Flags::RETIRING);
        let cold = self.cold_mut();
        cold.retirement = Some(Retirement { reason, after });
        cold.aged = aged;
    }

    fn retirement(&self) -> Option<Retirement> {
        self.cold.as_ref()?.retirement
    }

    /// Whether it has reached its greatest age.
    pub(crate) fn is_aged(&self) -> bool {
        self.flags.has(Flags::RETIRING)
            && self.cold.as_ref().is_none_or(|cold| cold.retirement.is_none() || cold.aged)
    }

    /// It has reached its greatest age.
    pub(crate) fn age(&mut self) {
        self.flags.insert(Flags::RETIRING);
        if let Some(cold) = &mut self.cold {
            cold.aged = true;
        }
    }

    /// Why it ends, if it has come to the request boundary that was to be its end.
    pub(crate) fn retirement_reason(&self) -> Option<CloseReason> {
        let retirement = self.retirement();
        let over = self.deadline_inputs().at_rest() || self.was_the_last();
        let age = CloseReason::Timeout(Timeout::Lifetime);
        (self.flags.has(Flags::RETIRING) && over)
            .then(|| retirement.map_or(age, |retirement| retirement.reason))
    }

    /// Whether the request is served that it was told is its last.
    pub(crate) fn was_the_last(&self) -> bool {
        let retires = self.flags.has(Flags::RETIRING) && !self.flags.has(Flags::OWED);
        retires && self.retirement().is_some_and(|told| self.requests > told.after)
    }

    /// Whether its peer is gone and it would not learn of that by reading: it is held, or has read
    /// everything and owes a reply.
    pub(crate) fn has_lost_peer(&self) -> bool {
        let busy = self.flags.has(Flags::OWED.and(Flags::QUEUED).and(Flags::TUNNEL));
        let waits = self.is_reading_stopped() || (self.flags.has(Flags::EOF) && busy);
        waits && self.cold.as_ref().is_some_and(|cold| cold.peer_gone)
    }

    /// What few connections need, if this one does.
    pub(crate) fn cold(&self) -> Option<&ColdState> {
        self.cold.as_deref()
    }

    /// What few connections need, if this one does.
    pub(crate) fn cold_if_any(&mut self) -> Option<&mut ColdState> {
        self.cold.as_deref_mut()
    }

    /// What few connections need, made if it is not there yet.
    pub(crate) fn cold_mut(&mut self) -> &mut ColdState {
        self.cold.get_or_insert_default()
    }

    /// Whether it may feed another connection, or be fed.
    pub(crate) const fn may_feed(&self) -> bool {
        self.cold.is_some() || self.cold_flags.has(ColdFlags::IS_SINK)
    }

    /// Takes what a failed write said of the peer, if one did.
    pub(crate) fn take_broken(&mut self) -> Option<CloseReason> {
        self.cold.as_mut()?.broken.take()
    }

    /// Bytes the handler wrote that will never be taken.
    pub(crate) fn dropped(&self) -> u64 {
        self.cold.as_ref().map_or(0, |cold| cold.dropped)
    }

    pub(crate) fn dial(&mut self) -> Option<&mut DialState> {
        self.cold.as_mut()?.dial.as_mut()
    }

    /// The timeouts that apply: its own, or those of its listener among all `profiles`.
    #[inline]
    pub(crate) fn periods<'a>(&'a self, profiles: &'a [Durations]) -> &'a Durations {
        match self.cold.as_ref().and_then(|cold| cold.periods.as_deref()) {
            Some(periods) => periods,
            None => &profiles[self.profile as usize],
        }
    }

    /// Asks for an end. A later request counts only if it is to drop what the earlier would have
    /// flushed.
    ///
    /// A connection that is closing already can only be made to end sooner.
    pub(crate) fn request_close(&mut self, reason: CloseReason) {
        if !self.state.is_open() && reason.mode() == CloseMode::Flush {
            return;
        }
        if self.requested.is_none_or(|requested| {
            requested.mode() == CloseMode::Flush && reason.mode() == CloseMode::Reset
        }) {
            self.set_requested(reason);
        }
        self.flags.insert(Flags::ACTION_DUE);
    }
}

/// What a record starts from.
#[derive(Debug)]
pub(crate) struct NewConn {
    pub(crate) origin: Origin,
    pub(crate) peer: Address,
    pub(crate) owner: Option<ConnId>,
    /// The limits on connections leave it out.
    pub(crate) exempt: bool,
    /// Another one was evicted for it, or there was seen to be room.
    pub(crate) replaces_evicted: bool,
    pub(crate) now: Instant,
}

/// The records of all connections, at most `capacity` and some [exempt](EXEMPT_MAX) ones.
///
/// The slab says which places are filled. The records lie beside it and outlive their connections,
/// each in its place: one is written once, not moved in and out, and a free one already has the id
/// of the next connection there, which is not known outside.
#[derive(Debug)]
pub(crate) struct Table {
    places: Slab<()>,
    records: Vec<Record>,
    capacity: usize,
    /// How many are exempt.
    exempt: usize,
    /// How many are inbound and not exempt.
    inbound: usize,
    /// How many places were visited by walks.
    #[cfg(test)]
    pub(crate) visited: std::cell::Cell<usize>,
}

/// Places of a table that one step of a walk visits: a walk over all connections takes as many turns
/// as it needs, because one over a million takes 50 ms.
pub(crate) const PLACES_PER_STEP: usize = 4_096;

/// How far a walk over a table has come that takes several steps.
///
/// A connection keeps its place, so a walk from the first place to the last visits each connection
/// that is there all the while exactly once, whatever comes and goes meanwhile.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Cursor(usize);

impl Cursor {
    /// Whether the walk has visited the place.
    pub(crate) const fn is_past(self, index: usize) -> bool {
        index < self.0
    }

    /// Lets the walk go on right behind the place.
    pub(crate) const fn stop_behind(&mut self, index: usize) {
        self.0 = index + 1;
    }
}

/// The most address space that a column takes before there is something in it.
const COLUMN_RESERVED_MAX: usize = 256 << 20;

/// A column with room for a whole table, where the system grants as much address space. It never moves
/// then: no turn takes the time to copy it, and no smaller copies of it are left in the heap. Memory
/// becomes resident as places are filled for the first time.
pub(crate) fn column<T>(capacity: usize) -> Vec<T> {
    let mut column = Vec::new();
    let places = (capacity + EXEMPT_MAX).min(COLUMN_RESERVED_MAX / size_of::<T>().max(1));
    // Without the room it grows as vectors do.
    let _ = column.try_reserve_exact(places);
    column
}

/// The most connections that are exempt from the limits on connections: an operator and a few
/// collectors, out of the reserve of descriptors.
pub(crate) const EXEMPT_MAX: usize = 16;

impl Table {
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity + EXEMPT_MAX <= PLACES_MAX, "an index fits in 24 bits");
        Self {
            places: Slab::new(),
            records: column(capacity),
            capacity,
            exempt: 0,
            inbound: 0,
            #[cfg(test)]
            visited: std::cell::Cell::default(),
        }
    }

    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// How many count against the capacity.
    #[inline]
    pub(crate) fn counted(&self) -> usize {
        self.places.len() - self.exempt
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.counted() >= self.capacity
    }

    /// How many inbound connections count against the capacity.
    #[inline]
    pub(crate) const fn inbound(&self) -> usize {
        self.inbound
    }

    /// Whether there is no room even for one that is exempt.
    pub(crate) const fn is_full_for_exempt(&self) -> bool {
        self.exempt >= EXEMPT_MAX
    }

    /// Adds a record, or gives `new_conn` back when the table is full. Inlined, it is written once:
    /// into its record.
    #[inline(always)]
    pub(crate) fn insert(&mut self, new_conn: NewConn) -> Result<&mut Record, NewConn> {
        if !new_conn.replaces_evicted && self.lacks_room(new_conn.exempt) {
            return Err(new_conn);
        }
        self.exempt += usize::from(new_conn.exempt);
        self.inbound += usize::from(new_conn.origin.is_inbound() && !new_conn.exempt);
        let index = self.places.insert(());
        if index == self.records.len() {
            self.grow();
        }
        let record = &mut self.records[index];
        record.fill(new_conn);
        Ok(record)
    }

    fn lacks_room(&self, exempt: bool) -> bool {
        if exempt { self.is_full_for_exempt() } else { self.is_full() }
    }

    /// Makes a record for a place behind all others.
    #[cold]
    fn grow(&mut self) {
        let place = self.records.len() as u32;
        self.records.push(Record::vacant(ConnId::new(place, 1)));
    }

    /// The record of `id`, unless that connection is gone.
    #[inline]
    pub(crate) fn get(&self, id: ConnId) -> Option<&Record> {
        self.records
            .get(id.index())
            .filter(|record| record.id == id || planted(Bug::DroppedGeneration))
    }

    /// The record of `id`, unless that connection is gone.
    #[inline]
    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Record> {
        self.records
            .get_mut(id.index())
            .filter(|record| record.id == id || planted(Bug::DroppedGeneration))
    }

    /// The record in a place that is known to be filled.
    ///
    /// # Panics
    ///
    /// In debug builds, if it is not; in all, if there is no such place.
    #[inline]
    pub(crate) fn at(&mut self, index: usize) -> &mut Record {
        debug_assert!(self.places.contains(index), "place {index} is free");
        &mut self.records[index]
    }

    /// Frees the place of `id`; it may be filled again, under another id.
    #[inline(always)]
    pub(crate) fn remove(&mut self, id: ConnId) {
        if let Some(record) = self.get_mut(id) {
            let (exempt, inbound) = (record.is_exempt(), record.is_limited());
            record.vacate();
            self.exempt -= usize::from(exempt);
            self.inbound -= usize::from(inbound);
            self.places.remove(id.index());
        }
    }

    /// The next step of a walk over all places: at most [`PLACES_PER_STEP`] of them.
    pub(crate) fn walk(&self, cursor: &mut Cursor) -> Range<usize> {
        let from = cursor.0.min(self.records.len());
        cursor.0 = (from + PLACES_PER_STEP).min(self.records.len());
        #[cfg(test)]
        self.visited.set(self.visited.get() + cursor.0 - from);
        from..cursor.0
    }

    /// Whether a walk has come to the end.
    pub(crate) const fn is_at_end(&self, cursor: Cursor) -> bool {
        cursor.0 >= self.records.len()
    }

    /// How many places a walk visits.
    pub(crate) const fn place_count(&self) -> usize {
        self.records.len()
    }

    /// The connection in a place, if there is one.
    #[inline]
    pub(crate) fn id_in(&self, index: usize) -> Option<ConnId> {
        self.places.contains(index).then(|| self.records[index].id)
    }

    /// The id of the connection in a place, or of the next one there.
    #[cfg(feature = "sim")]
    pub(crate) fn id_of_place(&self, index: usize) -> ConnId {
        self.records[index].id
    }

    /// All ids, in the order of their places. Where there may be many, no turn of the loop takes the
    /// time for that: it [walks](Table::walk) in steps.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ConnId> {
        #[cfg(test)]
        self.visited.set(self.visited.get() + self.records.len());
        self.places.iter().map(|(index, ())| self.records[index].id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{GENERATION_MAX, ListenerId};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn new_conn() -> NewConn {
        NewConn {
            origin: Origin::Connect,
            peer: Address::Unnamed,
            owner: None,
            exempt: false,
            replaces_evicted: false,
            now: Instant::EPOCH,
        }
    }

    #[test]
    fn a_full_table_gives_the_new_connection_back() {
        let mut table = Table::new(1);
        table.insert(new_conn()).unwrap();
        assert!(table.insert(new_conn()).is_err());
    }

    #[test]
    fn a_walk_visits_each_connection_that_is_there_all_the_while() {
        let mut table = Table::new(20_000);
        let ids: Vec<_> = (0..10_000).map(|_| table.insert(new_conn()).unwrap().id).collect();
        let (mut cursor, mut seen, mut steps) = (Cursor::default(), Vec::new(), 0);
        loop {
            let range = table.walk(&mut cursor);
            assert!(range.len() <= PLACES_PER_STEP);
            seen.extend(range.filter_map(|index| table.id_in(index)));
            if table.is_at_end(cursor) {
                break;
            }
            // Meanwhile some before and after the cursor go, and others come.
            for index in [steps * 10, 9_990 - steps * 10] {
                table.remove(ids[index]);
                table.insert(new_conn()).unwrap();
                table.insert(new_conn()).unwrap();
            }
            steps += 1;
        }
        assert_eq!(steps, 2);
        let stayed = |id: &&ConnId| table.get(**id).is_some();
        for id in ids.iter().filter(stayed) {
            assert_eq!(seen.iter().filter(|it| *it == id).count(), 1);
        }
    }

    #[test]
    fn inbound_connections_are_counted_unless_they_are_exempt() {
        let mut table = Table::new(8);
        let origin = Origin::Accepted(ListenerId(0));
        let inbound = table.insert(NewConn { origin, ..new_conn() }).unwrap().id;
        let exempt = table.insert(NewConn { origin, exempt: true, ..new_conn() }).unwrap().id;
        let dialled = table.insert(new_conn()).unwrap().id;
        assert_eq!((table.inbound(), table.counted()), (1, 2));
        table.remove(dialled);
        table.remove(exempt);
        assert_eq!((table.inbound(), table.counted()), (1, 1));
        table.remove(inbound);
        assert_eq!((table.inbound(), table.counted()), (0, 0));
    }

    #[test]
    fn generations_wrap_before_the_reserved_one() {
        let mut table = Table::new(1);
        let id = table.insert(new_conn()).unwrap().id;
        table.remove(id);
        table.records[0].id = ConnId::new(0, GENERATION_MAX - 1);
        let id = table.insert(new_conn()).unwrap().id;
        table.remove(id);
        assert_eq!(table.insert(new_conn()).unwrap().id.generation(), 1);
    }

    #[test]
    fn abort_overrides_close_and_nothing_overrides_abort() {
        let mut table = Table::new(1);
        let record = table.insert(new_conn()).unwrap();
        record.request_close(CloseReason::HandlerClose);
        record.request_close(CloseReason::HandlerAbort);
        assert_eq!(record.requested(), Some(CloseReason::HandlerAbort));
        record.request_close(CloseReason::OutputLimit);
        record.request_close(CloseReason::HandlerClose);
        assert_eq!(record.requested(), Some(CloseReason::HandlerAbort));
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(ops in proptest::collection::vec(any::<(bool, u8)>(), 0..300)) {
            let mut table = Table::new(20);
            let mut model: BTreeMap<ConnId, u64> = BTreeMap::new();
            let mut dead = Vec::new();
            for (step, (add, pick)) in ops.into_iter().enumerate() {
                if add {
                    match table.insert(new_conn()) {
                        Ok(record) => {
                            record.bytes_in = step as u64;
                            prop_assert_eq!(model.insert(record.id, step as u64), None);
                        }
                        Err(_) => prop_assert_eq!(model.len(), 20),
                    }
                } else if let Some(id) = model.keys().nth(pick as usize % 20).copied() {
                    table.remove(id);
                    model.remove(&id);
                    dead.push(id);
                }
                prop_assert_eq!(table.len(), model.len());
                for (id, value) in &model {
                    prop_assert_eq!(table.get(*id).unwrap().bytes_in, *value);
                }
                for id in &dead {
                    prop_assert!(table.get(*id).is_none() && table.get_mut(*id).is_none());
                }
            }
        }
    }
}
