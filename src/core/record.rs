//! What is known of one connection: the hot line that each message touches, and what is cold.

use bytes::{Buf, Bytes, BytesMut};

use crate::address::Address;
use crate::close::CloseMode;
use crate::close::{CloseReason, Timeout};
use crate::core::clients::LingerNumber;
use crate::core::deadlines::{Deadline, DeadlineClocks, DeadlineInputs, Durations};
use crate::core::dial::DialState;
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::{State, Transition};
use crate::core::output::{Output, SpareBuffers};
use crate::core::pool::Place;
use crate::core::stats::States;
use crate::id::{ConnId, EndpointId, ListenerId, Origin, PoolId};
use crate::probe;
use crate::time::Instant;

/// What few connections need, apart from their record so that the others do not pay for it.
#[derive(Debug, Default)]
pub(crate) struct ColdState {
    /// Timeouts of its own.
    pub(crate) durations: Option<Box<Durations>>,
    /// The local address, where it is not the listener's.
    pub(crate) local: Option<Address>,
    /// The connection that dialled this one; of a leased one, the connection that leased it.
    pub(crate) owner: Option<ConnId>,
    /// What this connection feeds.
    pub(crate) sink: Option<ConnId>,
    /// What it is relayed with.
    pub(crate) relay: Option<ConnId>,
    /// How far dialling it has come, until it stands or ends.
    pub(crate) dial: Option<Box<DialState>>,
    /// Its pool, and its place there.
    pub(crate) pooled: Option<(PoolId, Place)>,
    pub(crate) replay: Option<Replayable>,
    /// The endpoint that was dialled, or is checked.
    pub(crate) endpoint: Option<EndpointId>,
    /// What is queued.
    output: Output,
    /// What `on_data` waits for.
    awaited: AwaitedInput,
    /// Of the bytes the kernel took, what had left its queue at the latest check.
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
    /// It was announced to the handler that a request is the last.
    pub(crate) retirement: Option<Retirement>,
    /// That was announced, and the connection has reached its greatest age.
    pub(crate) aged: bool,
    /// The latest check of a request that was given more time.
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
    /// As it was before output was queued: what makes a vacant one a new one.
    const fn forget_queued(&mut self) {
        self.acked = 0;
        self.acked_at_flush = 0;
        self.queued_at = Instant::EPOCH;
    }

    /// Whether nothing is in it that outlives queued output.
    const fn is_vacant(&self) -> bool {
        self.output.is_empty()
            && matches!(
                self,
                Self {
                    durations: None,
                    local: None,
                    owner: None,
                    sink: None,
                    relay: None,
                    dial: None,
                    pooled: None,
                    replay: None,
                    endpoint: None,
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

#[cold]
fn new_cold_state() -> Box<ColdState> {
    Box::default()
}

/// A request over a leased connection that may be sent again.
#[derive(Debug)]
pub(crate) struct Replayable {
    pub(crate) request: Bytes,
    /// The bytes read before it, and those written with it.
    pub(crate) read: u64,
    pub(crate) written: u64,
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

/// The announcement to a handler that a request is the last of its connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retirement {
    pub(crate) reason: CloseReason,
    /// The requests served before that one.
    pub(crate) after: u64,
}

/// A check of a request that takes long to arrive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestCheck {
    /// Since when the clock of the request runs by it, to recognise that request.
    pub(crate) since: Instant,
    pub(crate) at: Instant,
    /// The bytes read by then.
    pub(crate) read: u64,
}

/// How many cold states are kept for the next connections that need one.
const COLD_SPARES_MAX: usize = 32;

/// What queues need and give back with each message from one connection to another.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    buffers: SpareBuffers,
    /// As new.
    #[expect(clippy::vec_box, reason = "records own boxes")]
    cold: Vec<Box<ColdState>>,
}

impl Spares {
    /// Keeps a state that is [vacant](ColdState::is_vacant).
    fn keep_cold(&mut self, cold: Option<Box<ColdState>>) {
        if let Some(mut cold) = cold
            && self.cold.len() < COLD_SPARES_MAX
        {
            cold.forget_queued();
            self.cold.push(cold);
        }
    }
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
    pub(super) fn vacant(id: ConnId) -> Self {
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
    pub(super) fn fill(&mut self, new_conn: NewConn) {
        let NewConn { origin, peer, owner, exempt, now, .. } = new_conn;
        (self.profile, self.flags) = match origin {
            Origin::Accepted(listener) => (listener.0 + 1, Flags::INBOUND),
            Origin::Connect | Origin::Pool(_) | Origin::Check(_) => (0, Flags::default()),
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
    }

    /// Gives back what a free place need not own, and its id up for ever.
    #[inline(always)]
    pub(super) fn vacate(&mut self) {
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
    pub(crate) fn origin(&self) -> Origin {
        match (self.profile, self.pooled()) {
            (0, None) => self.checked().map_or(Origin::Connect, Origin::Check),
            (0, Some((pool, _))) => Origin::Pool(pool),
            (profile, _) => Origin::Accepted(ListenerId(profile - 1)),
        }
    }

    /// Whether it is a pool's, or has asked one for a connection.
    #[inline]
    pub(crate) const fn is_in_pools(&self) -> bool {
        self.cold_flags.has(ColdFlags::IN_POOLS)
    }

    /// Its pool, and its place there.
    pub(crate) fn pooled(&self) -> Option<(PoolId, Place)> {
        if self.cold_flags.has(ColdFlags::POOLED) { self.cold.as_ref()?.pooled } else { None }
    }

    /// The endpoint that it checks.
    fn checked(&self) -> Option<EndpointId> {
        if self.cold_flags.has(ColdFlags::CHECK) { self.cold.as_ref()?.endpoint } else { None }
    }

    /// Whether its end says something of an endpoint.
    #[inline]
    pub(crate) const fn is_of_endpoint(&self) -> bool {
        self.cold_flags.has(ColdFlags::AT_ENDPOINT)
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

    /// How many bytes of input `on_data` waits for, after those that are to be discarded.
    pub(crate) fn awaited_len(&self) -> usize {
        self.cold.as_ref().map_or(0, |cold| cold.awaited.len)
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

    /// Nothing is left to do for it: its record is to be released. Returns whether that is news.
    #[inline]
    pub(crate) const fn release(&mut self) -> bool {
        let before = self.flags.has(Flags::REAPED);
        self.flags.insert(Flags::REAPED);
        !before
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
    pub(crate) fn change_output<T>(
        &mut self,
        spares: &mut Spares,
        change: impl FnOnce(&mut Output, &mut SpareBuffers) -> T,
    ) -> T {
        let cold = self.cold.get_or_insert_with(|| spares.cold.pop().unwrap_or_default());
        let outcome = change(&mut cold.output, &mut spares.buffers);
        let queued = !cold.output.is_empty();
        self.flags.set(Flags::QUEUED, queued);
        if !queued && cold.is_vacant() {
            spares.keep_cold(self.cold.take());
        }
        outcome
    }

    /// As it may be, however it came to be so.
    #[cfg(test)]
    pub(crate) const fn pose(&mut self, state: State, flags: Flags) {
        self.state = state;
        self.flags = flags;
    }

    /// Moves along an arrow of the lifecycle; the only place where a state changes.
    ///
    /// # Panics
    ///
    /// In debug builds, if no such arrow leaves the state. In release builds nothing moves.
    #[inline]
    pub(crate) fn apply(&mut self, transition: Transition) {
        let after = self.state.after(transition);
        debug_assert!(after.is_some(), "{}: {transition:?} from {:?}", self.id, self.state);
        let after = after.unwrap_or(self.state);
        probe::transition(self.id, self.state as u8, after as u8, self.reason);
        self.state = after;
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

    /// Whether its deadlines are those of the state it is in, and nothing may be left to do.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        self.deadline_inputs() == self.clocks.inputs()
            && !self.flags.has(Flags::UNDONE)
            && !self.cold_flags.has(ColdFlags::RETURNED)
    }

    /// [`State::Connected`] → [`State::Idle`], if it is quiet and no request is active, and it need
    /// not be checked for its end. Returns whether it was.
    #[inline]
    pub(crate) fn try_rest(&mut self, requests_max: u64) -> bool {
        let rests = self.state == State::Connected
            && self.is_quiet()
            && self.deadline_inputs().at_rest()
            && !self.is_used_up(requests_max);
        if rests {
            self.apply(Transition::Rest);
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

    /// Bytes of its last output left: each buys its time at the minimum rate. As a peer's kernel
    /// takes them in steps they may buy more than `flush`, but no more than the write timeout from
    /// now.
    pub(crate) fn credit_flush(
        &mut self,
        moved: u64,
        rate: u64,
        profiles: &[Durations],
        now: Instant,
    ) {
        let durations = self.durations(profiles);
        let (flush, write) = (durations.of(Deadline::Flush), durations.of(Deadline::Write));
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

    /// Whether it waits for its peer to begin: idle, or silent so far.
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

    /// Whether it has served as many requests as one connection may. Those of a pool have another limit,
    /// on their leases.
    #[inline(always)]
    pub(crate) const fn is_used_up(&self, requests_max: u64) -> bool {
        self.requests >= requests_max && !self.cold_flags.has(ColdFlags::POOLED)
    }

    /// Whether callbacks can reach it: it has neither been released nor refused.
    pub(crate) fn is_there(&self) -> bool {
        self.state != State::Closed && !self.flags.has(Flags::REAPED)
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

    /// The request at hand is its last, for `reason`, unless that was announced before.
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

    /// Whether the request that was announced as its last is served.
    pub(crate) fn was_the_last(&self) -> bool {
        let retires = self.flags.has(Flags::RETIRING) && !self.flags.has(Flags::OWED);
        retires && self.retirement().is_some_and(|last| self.requests > last.after)
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
    #[inline]
    pub(crate) fn cold_mut(&mut self) -> &mut ColdState {
        self.cold.get_or_insert_with(new_cold_state)
    }

    /// Whether it feeds another connection, or is fed.
    #[inline]
    pub(crate) fn feeds(&self) -> bool {
        let sink = self.cold.as_ref().is_some_and(|cold| cold.sink.is_some());
        sink || self.cold_flags.has(ColdFlags::IS_SINK)
    }

    /// Whether others may name it: pools, endpoints, what it feeds or is fed by, what it is relayed
    /// with. Most connections are not tied, and have nothing of that to undo when they end.
    #[inline]
    pub(crate) const fn is_tied(&self) -> bool {
        self.cold.is_some() || self.cold_flags.has(ColdFlags::TIES)
    }

    /// What it is relayed with, if it is.
    pub(crate) fn relay(&self) -> Option<ConnId> {
        if self.cold_flags.has(ColdFlags::RELAYED) { self.cold.as_ref()?.relay } else { None }
    }

    /// Whether what it has not read yet is to be passed on before an error of its socket acts: it is
    /// only not read because what it is relayed with takes nothing.
    pub(crate) const fn reads_before_error(&self) -> bool {
        self.cold_flags.has(ColdFlags::RELAYED)
            && self.flags.has(Flags::THROTTLED)
            && !self.flags.has(Flags::PAUSED.and(Flags::EOF))
    }

    /// Ends what it was relayed with, and returns that.
    pub(crate) fn take_relay(&mut self) -> Option<ConnId> {
        self.cold_flags.remove(ColdFlags::RELAYED);
        self.flags.remove(Flags::DIVERTED.and(Flags::THROTTLED));
        self.cold.as_mut()?.relay.take()
    }

    /// A write failed, or our FIN cannot be sent.
    pub(crate) fn note_broken(&mut self, reason: CloseReason) {
        self.flags.insert(Flags::ACTION_DUE);
        self.cold_flags.insert(ColdFlags::BROKEN);
        self.cold_mut().broken = Some(reason);
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
        self.cold.as_mut()?.dial.as_deref_mut()
    }

    /// Its dial is over.
    pub(crate) fn take_dial(&mut self) -> Option<Box<DialState>> {
        self.cold.as_mut()?.dial.take()
    }

    /// The timeouts that apply: its own, or those of its listener among all `profiles`.
    #[inline]
    pub(crate) fn durations<'a>(&'a self, profiles: &'a [Durations]) -> &'a Durations {
        match self.cold.as_ref().and_then(|cold| cold.durations.as_deref()) {
            Some(durations) => durations,
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
            matches!(requested.mode(), CloseMode::Flush | CloseMode::Break)
                && reason.mode() == CloseMode::Reset
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
    /// A check has found room for it, or another one was evicted for it.
    pub(crate) room_checked: bool,
    pub(crate) now: Instant,
}
