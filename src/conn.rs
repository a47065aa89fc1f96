//! The cursor that callbacks get for one connection.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::address::{Address, ToTarget};
use crate::close::{CloseReason, Timeout};
use crate::config::{AcquireOptions, Timeouts};
use crate::context::Context;
use crate::core::deadlines::{Deadline, Durations};
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::State;
use crate::core::pressure::NO_KEEP_ALIVE;
use crate::core::record::Record;
use crate::core::share::Shared;
use crate::error::{AcquireError, ConnectError};
use crate::id::{ConnId, EndpointId, Origin, PoolId, WaitId};
use crate::log::debug;
use crate::state::LoopState;
use crate::time::Instant;

/// What a callback may ask of one connection.
///
/// It is a cursor: nothing here makes a system call or runs a callback. What is asked is recorded
/// and done when the callback has returned; a connection reached through
/// [`other`](Conn::other) is served later in the turn.
pub struct Conn<'a> {
    cx: Context<'a>,
    id: ConnId,
}

impl fmt::Debug for Conn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What [`Conn::decide_keep_alive`] decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeepAlive {
    /// The connection stays open after the reply.
    Stay,
    /// The reactor closes the connection after the current request; a reply may say so.
    Close,
}

impl KeepAlive {
    /// Whether the connection stays open.
    pub const fn stays(self) -> bool {
        matches!(self, Self::Stay)
    }
}

/// What it is.
impl<'a> Conn<'a> {
    pub(crate) fn new(shared: &'a mut LoopState, id: ConnId) -> Self {
        Self { cx: Context { shared }, id }
    }

    fn record(&self) -> &Record {
        self.cx.shared.table.get(self.id).expect("a cursor outlives no record")
    }

    #[inline]
    fn record_mut(&mut self) -> &mut Record {
        self.cx.shared.table.at(self.id.index())
    }

    /// It stands.
    pub(crate) fn establish(&mut self, random: impl FnOnce() -> u64) {
        self.cx.shared.establish(self.id, random);
    }

    /// Whether `on_data` follows `on_active`, which may have asked for its end or diverted its input.
    #[inline]
    pub(crate) fn has_input_for_handler(&mut self) -> bool {
        !self.record_mut().flags.has(Flags::CLOSE_REQUESTED.and(Flags::DIVERTED))
    }

    /// Its name, valid for as long as it lives and never reused.
    pub const fn id(&self) -> ConnId {
        self.id
    }

    /// How it came about.
    pub fn origin(&self) -> Origin {
        self.record().origin()
    }

    /// The connection that dialled it by [`Conn::connect`], or has leased it from its pool.
    pub fn owner(&self) -> Option<ConnId> {
        self.record().cold()?.owner
    }

    /// The endpoint that it was [dialled to](Conn::connect_endpoint), or checks.
    pub fn endpoint(&self) -> Option<EndpointId> {
        self.record().cold()?.endpoint
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.record().state()
    }

    /// Whether its end has begun or was asked for: from then on writes are dropped.
    pub fn is_closing(&self) -> bool {
        is_ending(self.record())
    }

    /// The remote end. For a name that is being looked up it is
    /// [`Unnamed`](Address::Unnamed) still, and while its addresses are dialled the one that was
    /// begun with last.
    pub fn peer_addr(&self) -> &Address {
        &self.record().peer
    }

    /// The local end; `None` for a dialled connection until it is connected.
    pub fn local_addr(&self) -> Option<&Address> {
        let record = self.record();
        match (record.cold().and_then(|cold| cold.local.as_ref()), record.origin()) {
            (Some(address), _) => Some(address),
            (None, Origin::Accepted(listener)) => {
                self.cx.shared.listening_on.get(listener.0 as usize)
            }
            (None, Origin::Connect | Origin::Pool(_) | Origin::Check(_)) => None,
        }
    }

    /// The time of this turn.
    pub fn now(&self) -> Instant {
        self.cx.shared.now
    }

    /// The wall clock. As [`Context::now_unix`].
    pub fn now_unix(&self) -> Duration {
        self.cx.now_unix()
    }

    /// The whole loop.
    pub const fn cx(&mut self) -> &mut Context<'a> {
        &mut self.cx
    }

    /// Another connection, unless it is gone, or is a [pool](Context::add_pool)'s and not leased to
    /// this one.
    pub fn other(&mut self, id: ConnId) -> Option<Conn<'_>> {
        self.cx.conn(id)
    }
}

/// Writing.
impl Conn<'_> {
    /// Queues a copy of `bytes`.
    ///
    /// It never fails. Once [`Limits::output_max`](crate::Limits::output_max) bytes are queued a
    /// further write aborts the connection with [`OutputLimit`](CloseReason::OutputLimit); after
    /// [`close`](Conn::close), [`abort`](Conn::abort) or [`shutdown_write`](Conn::shutdown_write)
    /// bytes are dropped and counted as unsent.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) {
        self.cx.shared.write(self.id, bytes);
    }

    /// Queues all that is in `buffer` and empties it: an echo of the input.
    ///
    /// As [`write`](Conn::write), but input of 4 KiB and more is sent from where it was read, and
    /// `buffer` is exchanged for another of the loop's, of any capacity. This holds for the `input` of
    /// [`on_data`](crate::Handler::on_data) and for parts that are split off it, if they are the first
    /// that the callback writes, to its own connection, with nothing queued. Input that was kept from
    /// an earlier read, or is more than 64 KiB or than the high watermark, is copied.
    ///
    /// ```
    /// # use bytes::BytesMut;
    /// # use wheelhouse::{Conn, Handler};
    /// struct Echo;
    ///
    /// impl Handler for Echo {
    ///     type Session = ();
    ///
    ///     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
    ///         Some(())
    ///     }
    ///
    ///     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
    ///         conn.write_buf(input);
    ///     }
    /// }
    /// # let mut sim = wheelhouse::sim::Sim::new(1);
    /// # sim.serve("10.0.0.1:7", wheelhouse::Config::default(), Echo);
    /// # let peer = sim.connect("10.0.0.1:7");
    /// # peer.send(&[7; 5_000]);
    /// # sim.settle();
    /// # peer.expect(&[7; 5_000]);
    /// ```
    #[inline]
    pub fn write_buf(&mut self, buffer: &mut BytesMut) {
        self.cx.shared.write_buf(self.id, buffer);
    }

    /// Queues `bytes`, without copying them if they are many (4 KiB); otherwise as
    /// [`write`](Conn::write). They count with their length in the queue of each connection, because
    /// it cannot be seen how many share them: what goes to many connections is better
    /// [shared](Conn::write_shared).
    pub fn write_bytes(&mut self, bytes: impl Into<Bytes>) {
        self.cx.shared.write_bytes(self.id, bytes.into());
    }

    /// Queues bytes that are shared with other connections, without copying them if they are many
    /// (4 KiB); otherwise as [`write`](Conn::write). [`Context::share`] makes them.
    pub fn write_shared(&mut self, shared: &Shared) {
        self.cx.shared.write_shared(self.id, shared);
    }

    /// Queues formatted text, by `write!(conn, "{}", ..)`, without a `Result` to discard.
    ///
    /// # Panics
    ///
    /// If an implementation of [`Display`](fmt::Display) or the like returns an error.
    pub fn write_fmt(&mut self, text: fmt::Arguments<'_>) {
        struct Sink<'a, 'b>(&'a mut Conn<'b>);
        impl fmt::Write for Sink<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.write(text.as_bytes());
                Ok(())
            }
        }
        fmt::write(&mut Sink(self), text).expect("a formatting trait returned an error");
    }

    /// Bytes queued and not taken by the kernel.
    pub fn queued(&self) -> usize {
        self.cx.shared.queued(self.id)
    }

    /// Whether more than the high watermark was queued, and since then never as little as the low
    /// one. Inside a callback it counts what that callback wrote, before the kernel is offered any
    /// of it, so a long reply goes out in pieces also to a fast reader. A congested connection is
    /// not read, unless it [feeds](Conn::throttle_on) another: then the sink's congestion counts.
    pub fn is_congested(&self) -> bool {
        self.record().flags.has(Flags::CONGESTED)
    }

    /// Whether a message that has come would be served now, rather than left for later or for ever.
    #[inline]
    pub(crate) fn wants_messages(&self) -> bool {
        let record = self.record();
        !record.flags.has(Flags::UNSERVED) && !is_ending(record) && !record.was_the_last()
    }

    /// How many bytes of input lie behind the message that [`frame::each`](crate::frame::each) has handed
    /// to its closure: the closure passes it to [`decide_keep_alive`](Conn::decide_keep_alive). 0 elsewhere.
    pub fn unread(&self) -> usize {
        let shared = &self.cx.shared;
        if shared.in_hand == Some(self.id) { shared.unread } else { 0 }
    }

    /// Notes that.
    #[inline]
    pub(crate) fn note_unread(&mut self, bytes: usize) {
        self.cx.shared.unread = bytes;
    }

    /// The most input that a handler may leave.
    #[inline]
    pub(crate) fn input_max(&self) -> usize {
        self.cx.shared.bounds.input_max
    }

    /// Sends a FIN once the queue is flushed, and goes on reading. Later writes are dropped.
    pub fn shutdown_write(&mut self) {
        self.record_mut().flags.insert(Flags::SHUTDOWN_WRITE.and(Flags::ACTION_DUE));
    }
}

/// Reading.
impl Conn<'_> {
    /// Leaves input in the socket until [`resume_reading`](Conn::resume_reading), the peer's FIN
    /// included; a reset still acts at once. Meanwhile no deadline blames the peer, and
    /// [`Timeouts::response`] bounds the pause.
    pub fn pause_reading(&mut self) {
        self.record_mut().flags.insert(Flags::PAUSED);
    }

    /// Ends a pause. [`on_data`](crate::Handler::on_data) follows in the next turn if input is
    /// left, and as much as it [expects](Conn::expect_input).
    pub fn resume_reading(&mut self) {
        let flags = &mut self.record_mut().flags;
        if flags.take(Flags::PAUSED) {
            flags.insert(Flags::DATA_DUE);
        }
    }

    /// Says that what [`on_data`](crate::Handler::on_data) consumed was only part of a request: the
    /// connection does not go idle, and the request's deadline runs on from the request's first
    /// byte.
    ///
    /// It holds for the call of `on_data` in which it is said, and cannot be taken back in that
    /// call; [`end_request`](Conn::end_request) does not. So a handler that keeps a part of a
    /// message in its session says it in every call that returns in the middle of one, also where
    /// it returns by [`yield_now`](Conn::yield_now) or because the connection is congested. If it
    /// does not, and has left no input, the connection goes idle: it has the idle time for the rest
    /// of the request, and may be evicted.
    ///
    /// Without this call, consuming a part and leaving the rest means that one request was whole
    /// and another begins: [`Timeouts::request`](crate::Timeouts::request) starts anew, and the one
    /// before is counted.
    pub fn expect_more_input(&mut self) {
        self.record_mut().flags.insert(Flags::EXPECTS_MORE_INPUT);
    }

    /// Asks for [`on_data`](crate::Handler::on_data) with what is left in the next turn, after all
    /// others had theirs.
    ///
    /// Until then nothing more is read from the socket, so what is left does not grow, and it may be
    /// [`Limits::input_max`](crate::Limits::input_max) bytes long. If nothing is left there is no
    /// call, and reading goes on in the next turn. It says nothing about requests: see
    /// [`expect_more_input`](Conn::expect_more_input).
    ///
    /// It ends the wait that [`expect_input`](Conn::expect_input) asked for.
    pub fn yield_now(&mut self) {
        let record = self.record_mut();
        record.flags.insert(Flags::DATA_DUE);
        if record.flags.has(Flags::INPUT_AWAITED) {
            record.await_no_length();
        }
    }

    /// Asks for the next [`on_data`](crate::Handler::on_data) only when `len` bytes of input are
    /// there, those included that this call of it leaves: the length of a message whose head says
    /// it.
    ///
    /// What arrives meanwhile is read into the connection's own buffer, up to 256 KiB in one turn,
    /// without a call for each piece. The buffer grows by doubling, to at most two and a half times
    /// what has arrived, so a peer that only announces much costs nothing. `on_data` may get more
    /// than `len` bytes. It may get fewer only if the handler [yields](Conn::yield_now); after the
    /// peer's FIN [`on_eof`](crate::Handler::on_eof) gets what has come. With `len` bytes there
    /// already, or 0, the next call comes with the next input as usual. It holds for one call of
    /// `on_data`, the latest `len` if there are several, and may be asked for in any callback; in
    /// [`on_active`](crate::Handler::on_active) it applies to the call after the one that follows.
    ///
    /// It does not say whether a request has begun. What is left in `input` belongs to one, and so
    /// does what arrives: [`Timeouts::request`](crate::Timeouts::request), or the
    /// [rate](crate::Timeouts::request_rate) that prolongs it, bounds the wait. If nothing is left
    /// the connection goes idle until the next byte. A handler that took the head of a message out
    /// of `input` therefore calls [`expect_more_input`](Conn::expect_more_input) as well.
    ///
    /// More than [`Limits::input_max`](crate::Limits::input_max) bytes cannot be there at once: a
    /// larger `len` closes the connection with [`InputLimit`](CloseReason::InputLimit).
    ///
    /// ```
    /// use bytes::{Buf, BytesMut};
    /// use wheelhouse::Conn;
    ///
    /// /// Messages begin with their length in four bytes.
    /// fn on_data(conn: &mut Conn<'_>, input: &mut BytesMut) {
    ///     while let Some(head) = input.first_chunk() {
    ///         let len = 4 + u32::from_be_bytes(*head) as usize;
    ///         if input.len() < len {
    ///             return conn.expect_input(len);
    ///         }
    ///         let message = input.split_to(len).split_off(4);
    ///         conn.write(&message);
    ///     }
    /// }
    /// ```
    pub fn expect_input(&mut self, len: usize) {
        let max = self.cx.shared.bounds.input_max;
        if !self.record().state().is_open() {
            // There is no further call.
        } else if len > max {
            debug!(id = %self.id, len, max, "expect_input asks for more than limits.input_max");
            self.record_mut().request_close(CloseReason::InputLimit);
        } else if len > 0 {
            self.record_mut().await_input(len);
        } else {
            self.record_mut().await_no_length();
        }
    }

    /// Whether it waits for a length of input.
    #[cfg(feature = "sim")]
    pub(crate) fn awaits_input(&self) -> bool {
        self.record().flags.has(Flags::INPUT_AWAITED)
    }

    /// Discards the next `len` bytes of the input: what is left of it, then what arrives. The rest
    /// of a message that is too large, or of an upload that was refused.
    ///
    /// When they are gone [`on_data`](crate::Handler::on_data) gets what came after them, in a
    /// later turn. If that is nothing yet `input` is empty: the moment to reply, or to return.
    /// Until then a request counts as arriving, whether the handler counts it before or after: the
    /// connection does not go idle, a shutdown waits for it, and
    /// [`Timeouts::request`](crate::Timeouts::request) or the [rate](crate::Timeouts::request_rate)
    /// that prolongs it bounds it. With its last skipped byte it is whole, and counted if the
    /// handler does not count requests itself. No memory is held for skipped bytes.
    ///
    /// Several calls add up. A length that is [expected](Conn::expect_input) begins after the
    /// skipped bytes. In [`on_active`](crate::Handler::on_active) it applies after the `on_data`
    /// that follows.
    pub fn skip(&mut self, len: u64) {
        if len > 0 && self.record().state().is_open() {
            #[cfg(feature = "sim")]
            self.cx.shared.note_skip(self.id, len);
            let record = self.record_mut();
            record.await_skipped(len);
            record.flags.insert(Flags::EXPECTS_MORE_INPUT.and(Flags::DATA_DUE));
        }
    }

    /// Reads this connection no faster than `sink` drains: not while `sink` is congested, and
    /// again when it has drained or is gone. A later call replaces an earlier one.
    pub fn throttle_on(&mut self, sink: ConnId) {
        self.cx.shared.feed(self.id, sink);
    }
}

/// Requests.
impl Conn<'_> {
    /// Declares that the handler counts requests itself, by [`begin_request`](Conn::begin_request)
    /// and [`end_request`](Conn::end_request).
    ///
    /// Without it, input that [`on_data`](crate::Handler::on_data) consumes counts as one request
    /// until the first `begin_request`, which declares the same. A protocol in which a peer may send
    /// something before its first request that is none, such as an empty line or a greeting,
    /// calls this in [`on_open`](crate::Handler::on_open). Otherwise that input uses up one of
    /// [`Limits::requests_max`](crate::Limits::requests_max). It is final and changes no deadline.
    pub fn manual_requests(&mut self) {
        self.record_mut().flags.insert(Flags::COUNTS_REQUESTS);
    }

    /// Begins a request: the peer's whose reply comes later, or ours on a dialled connection.
    /// Until [`end_request`](Conn::end_request) the connection is active and its reply is owed.
    ///
    /// What arrives behind an inbound request that was begun is another one, or the rest of this
    /// one: the clock of [`Timeouts::request`] begins anew.
    pub fn begin_request(&mut self) {
        let now = self.cx.shared.now;
        let record = self.record_mut();
        if record.flags.has(Flags::RECEIVING) && record.flags.has(Flags::INBOUND) {
            record.clocks.restart_request(now);
        }
        record.set_owed(record.owed().saturating_add(1));
        record.flags.insert(Flags::COUNTS_REQUESTS);
    }

    /// Ends a request begun before: its reply is written, or has arrived.
    ///
    /// # Panics
    ///
    /// In debug builds, if none was begun.
    pub fn end_request(&mut self) {
        let now = self.cx.shared.now;
        let record = self.record_mut();
        debug_assert!(record.flags.has(Flags::OWED), "end_request without begin_request");
        record.clocks.restart(Deadline::Response, now);
        record.set_owed(record.owed().saturating_sub(1));
        record.requests = record.requests.saturating_add(1);
        self.cx.shared.counters.requests.add(1);
    }

    /// Counts a request whose reply is written at once: [`begin_request`](Conn::begin_request) and
    /// [`end_request`](Conn::end_request) in one. Whether the connection stays is
    /// [decided](Conn::decide_keep_alive) before it: afterwards the request is counted already.
    pub fn count_request(&mut self) {
        self.begin_request();
        self.end_request();
    }

    /// Requests begun and not ended.
    pub fn in_flight(&self) -> u32 {
        self.record().owed()
    }

    /// Decides whether the connection may stay open after the reply to the current request. It may
    /// not once the peer sent its FIN, the greatest age is reached, this request is the last of
    /// [`Limits::requests_max`](crate::Limits::requests_max), a shutdown began, or the loop is
    /// [overloaded](crate::Limits#overload). A protocol that can announce the end
    /// (`Connection: close`) asks before it writes that reply, once for each request that is whole.
    ///
    /// [`KeepAlive::Close`] is final, because a reply may announce it: the reactor closes the
    /// connection after the current request, and serves nothing that came after it, even if the
    /// reason has passed by then. A dialled connection is not bound by a shutdown, and neither is
    /// one of an [exempt](crate::ListenConfig::exempt) listener.
    ///
    /// `unread` is how many bytes of input lie after the current request, for a protocol whose peers
    /// send requests without waiting for replies; 0 for others. In [`frame::each`](crate::frame::each)
    /// it is [`unread()`](Conn::unread). A shutdown does not cut off what was
    /// read before it began, so it decides to close only with the last of that; the other reasons do
    /// not wait.
    ///
    /// # Panics
    ///
    /// In debug builds, if the connection is idle: there is no request to decide about. In release
    /// builds the answer is given then, and is not final: nothing is closed for it.
    #[must_use = "the decision may close the connection after this request"]
    pub fn decide_keep_alive(&mut self, unread: usize) -> KeepAlive {
        let record = self.record();
        if is_ending(record) || record.flags.has(Flags::EOF) {
            return KeepAlive::Close;
        }
        let is_idle = record.state() == State::Idle;
        debug_assert!(!is_idle, "keep-alive is decided for a request, and there is none");
        match self.retirement_reason(record, unread as u64) {
            None => KeepAlive::Stay,
            Some(_) if is_idle => KeepAlive::Close,
            Some(reason) => {
                self.record_mut().retire(reason);
                KeepAlive::Close
            }
        }
    }

    #[cold]
    fn ends_by_shutdown(&self, record: &Record, unread: u64) -> bool {
        if !record.flags.has(Flags::INBOUND) || record.is_exempt() {
            false
        } else if self.cx.shared.announced.is_past(record.id.index()) {
            let read_before = record.cold().map_or(0, |cold| cold.read_before_stop);
            record.bytes_in.saturating_sub(unread) >= read_before
        } else {
            // It has yet to reach this connection, and will find what is here.
            unread == 0
        }
    }

    fn retirement_reason(&self, record: &Record, unread: u64) -> Option<CloseReason> {
        if record.flags.has(Flags::RETIRING) {
            Some(CloseReason::Timeout(Timeout::Lifetime))
        } else if self.cx.is_shutting_down() && self.ends_by_shutdown(record, unread) {
            Some(CloseReason::Shutdown)
        } else if record.is_used_up(self.cx.shared.bounds.requests_max.saturating_sub(1)) {
            Some(CloseReason::MaxRequests)
        } else if self.cx.shared.pressure() >= NO_KEEP_ALIVE && !record.is_exempt() {
            Some(CloseReason::Overload)
        } else {
            None
        }
    }
}

/// Whether its end has begun or was asked for.
fn is_ending(record: &Record) -> bool {
    !record.state().is_open() || record.requested().is_some()
}

/// Time.
impl Conn<'_> {
    /// Asks for [`on_timer`](crate::Handler::on_timer) at `at`: never early, at most one tick
    /// (10 ms) and the turn at hand late. It replaces a time set before; one in the past is the
    /// next turn's. A connection that is closing has no timer.
    pub fn set_timer(&mut self, at: Instant) {
        let record = self.record_mut();
        record.clocks.set(Deadline::Timer, at);
        record.flags.insert(Flags::HAS_TIMER.and(Flags::REARM));
    }

    /// Forgets the timer.
    pub fn clear_timer(&mut self) {
        self.record_mut().flags.remove(Flags::HAS_TIMER);
    }

    /// Gives this connection timeouts of its own, from now on and counted from when each began.
    /// [`SocketOptions::user_timeout`](crate::config::SocketOptions::user_timeout) stays as it was
    /// set: where `write` is to be longer than that allows, set it on the listener. A lifetime that
    /// is set already stays. Costs 176 bytes, and as much again for the box of what few connections
    /// need if this one had none.
    ///
    /// # Panics
    ///
    /// If one of them is zero or out of its range, as [`Reactor::new`](crate::Reactor::new) refuses it.
    pub fn set_timeouts(&mut self, timeouts: &Timeouts) {
        if let Err(error) = timeouts.refuse_zero() {
            panic!("{error}");
        }
        let record = self.record_mut();
        record.cold_mut().durations = Some(Box::new(Durations::new(timeouts)));
        record.flags.insert(Flags::REARM);
        record.cold_flags.insert(ColdFlags::RETIMED);
    }

    /// Makes this a tunnel: bytes pass through, there are no requests, and
    /// [`Timeouts::tunnel`] takes the place of the deadlines for first byte, request, read,
    /// response and idle. The peer's FIN ends only its own direction.
    pub fn tunnel(&mut self) {
        self.record_mut().flags.insert(Flags::TUNNEL);
    }
}

/// Ending and beginning.
impl Conn<'_> {
    /// Ends the connection: what is queued is flushed, then comes the FIN, then the peer's last
    /// bytes are discarded so that they cannot turn our close into a reset that would destroy
    /// what was flushed. Input that the handler has not taken is discarded too.
    pub fn close(&mut self) {
        self.record_mut().request_close(CloseReason::HandlerClose);
    }

    /// Ends the connection with a reset; what is queued is dropped.
    ///
    /// Unix-domain sockets have no reset: there the peer reads what the kernel had taken, then the
    /// same end of stream as after [`close`](Conn::close), and cannot tell that a reply was cut
    /// short. (On Linux it gets `ECONNRESET` if bytes that it sent were left unread.) A protocol
    /// that must know says in its framing where a message ends.
    pub fn abort(&mut self) {
        self.record_mut().request_close(CloseReason::HandlerAbort);
    }

    /// Lets the reactor pass on whatever is read from this connection to `other`, and the other way
    /// round, until they end. Returns whether it does.
    ///
    /// Input that either handler has not taken is passed on first, also beyond
    /// [`Limits::output_max`](crate::Limits::output_max). From then on neither has
    /// [`on_data`](crate::Handler::on_data), [`on_eof`](crate::Handler::on_eof) or
    /// [`on_drained`](crate::Handler::on_drained); timers, [`close`](Conn::close) and
    /// [`abort`](Conn::abort) work as before, and what is [written](Conn::write) goes between what is
    /// passed on. Both become [tunnels](Conn::tunnel), and a pause, a
    /// [`throttle_on`](Conn::throttle_on) and a [length](Conn::expect_input) that is waited for end. A
    /// request that is owed still is: end it before, as [`Timeouts::half_closed`] stands still for it.
    ///
    /// Bytes are written from the loop's buffer. What a socket does not take is queued, and until
    /// that has left the other connection is not read: a direction holds at most 64 KiB beside what was
    /// there before.
    ///
    /// A FIN is passed on behind all bytes that came before it, and the pair ends when both sides
    /// have sent theirs. Bytes in either direction put off [`Timeouts::tunnel`] of both, and
    /// [`Timeouts::half_closed`] once one side has sent its FIN. If one connection ends otherwise the
    /// other follows when it has been sent what was read before: with
    /// [`RelayEnded`](CloseReason::RelayEnded), or with a reset and
    /// [`RelayBroken`](CloseReason::RelayBroken) if the first was reset, aborted, or lost. One to which
    /// a write fails is read to its end first. A shutdown waits for the pair until its deadline.
    ///
    /// It does nothing, and returns `false`, unless both connections stand. It does not if one is
    /// closing, is relayed already, is a pool's, or has input left to [skip](Conn::skip), or if `other`
    /// is gone or is this one.
    ///
    /// ```
    /// use bytes::BytesMut;
    /// use wheelhouse::{Conn, Handler, Origin};
    ///
    /// struct Proxy;
    ///
    /// impl Handler for Proxy {
    ///     type Session = ();
    ///
    ///     fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
    ///         if let Origin::Accepted(_) = conn.origin() {
    ///             conn.pause_reading();
    ///             conn.connect("10.0.0.2:80").ok()?;
    ///         }
    ///         Some(())
    ///     }
    ///
    ///     fn on_connected(&mut self, conn: &mut Conn<'_>, _: &mut ()) {
    ///         if let Some(client) = conn.owner()
    ///             && !conn.relay_with(client)
    ///         {
    ///             conn.abort();
    ///         }
    ///     }
    ///
    ///     fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
    /// }
    /// ```
    #[must_use = "nothing is passed on if it returns `false`"]
    pub fn relay_with(&mut self, other: ConnId) -> bool {
        self.cx.shared.relay(self.id, other)
    }

    /// The connection that it is [relayed with](Conn::relay_with).
    pub fn relayed_with(&self) -> Option<ConnId> {
        self.record().relay()
    }

    /// Dials `target`; the new connection's [`owner`](Conn::owner) is this one. As
    /// [`Context::connect`].
    ///
    /// # Errors
    ///
    /// If there are too many connections, the reactor is shutting down, or a text is no
    /// [`Target`](crate::Target).
    pub fn connect(&mut self, target: impl ToTarget) -> Result<ConnId, ConnectError> {
        self.cx.shared.dial(target.to_target()?, Some(self.id))
    }

    /// Dials an endpoint; the new connection's [`owner`](Conn::owner) is this one. As
    /// [`Context::connect_endpoint`].
    ///
    /// # Errors
    ///
    /// If the endpoint is not available, there are too many connections, or the reactor is shutting
    /// down.
    pub fn connect_endpoint(&mut self, endpoint: EndpointId) -> Result<ConnId, ConnectError> {
        self.cx.shared.dial_endpoint(endpoint, Some(self.id))
    }
}

/// Pools.
impl Conn<'_> {
    /// Asks `pool` for a connection, which then is leased to this one.
    ///
    /// The answer is one call of [`Handler::on_acquired`](crate::Handler::on_acquired) for this
    /// connection. It mostly comes right behind the [`on_data`](crate::Handler::on_data) that asked for an
    /// [active request](Conn::begin_request), where nothing waits and a connection of the pool is idle;
    /// otherwise later in this turn or in another one. What asked first is answered first. If this
    /// connection ends, the wait is cancelled and no answer comes; what it has leased is closed with
    /// [`OwnerGone`](CloseReason::OwnerGone). It costs 40 bytes while it waits, and 4 bytes for each
    /// place in the table from the first time on.
    ///
    /// # Errors
    ///
    /// If too many wait already, the pool is closed, or this connection is closing. Then no call
    /// follows.
    ///
    /// # Panics
    ///
    /// If there is no such pool, as `pool` is another reactor's.
    pub fn acquire(
        &mut self,
        pool: PoolId,
        options: AcquireOptions,
    ) -> Result<WaitId, AcquireError> {
        self.cx.shared.acquire(Some(self.id), pool, options)
    }

    /// Takes back an [`acquire`](Conn::acquire) that has not been answered: no answer comes. Returns
    /// whether it had not been.
    pub fn cancel_acquire(&mut self, wait: WaitId) -> bool {
        self.cx.shared.cancel_wait(wait)
    }

    /// Begins a request on `lease` and writes it, and has it sent again if the lease is lost before
    /// the reply: a server may close an idle connection while a request is on its way to it.
    ///
    /// Returns whether the request would be sent again. The request is sent in either case: `false`
    /// says that a lost lease is an end like any other, of which the
    /// [`on_closing`](crate::Handler::on_closing) of the leased connection tells.
    ///
    /// If the lease is over, because it was [released](Conn::release) or the connection is gone,
    /// nothing is sent, `false` is returned, and no callback follows. In
    /// [`on_acquired`](crate::Handler::on_acquired) the lease is there; later,
    /// [`conn.other(lease)`](Conn::other) tells.
    ///
    /// It is sent again once, over a newly dialled connection, if all of this holds: the connection
    /// was not new when it was leased; its peer closes or resets it, or it fails; and no byte has come
    /// back. The request must be the only one on its way, with nothing written behind it, and at most
    /// 64 KiB long, which are kept until the lease ends. It waits for the new connection for as long as
    /// [`PoolConfig::acquire`](crate::pool::PoolConfig::acquire) says, whatever was asked for the first.
    /// Then [`Handler::on_lease_replaced`](crate::Handler::on_lease_replaced) follows, with the lease over
    /// which it was sent again, or why there is none.
    ///
    /// The server may have executed the request all the same: by this call the handler asserts that
    /// it may be executed twice ([RFC 9110 §9.2.2](https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2)).
    ///
    /// # Panics
    ///
    /// In debug builds, if the connection is leased to another one.
    pub fn send_replayable(&mut self, lease: ConnId, request: impl Into<Bytes>) -> bool {
        let request = request.into();
        let again = self.cx.shared.keep_replay(self.id, lease, &request);
        if let Some(mut conn) = self.other(lease) {
            conn.begin_request();
            conn.write_bytes(request);
        }
        again
    }

    /// Gives `lease` back to its pool at the end of an exchange: every request has been answered, and
    /// nothing is queued. From here on it cannot be reached from this connection.
    ///
    /// It is called for what has leased the connection, or for the leased connection itself. The pool
    /// checks it when the callback has returned. Where a request is still owed, output queued, or
    /// input left, [`shutdown_write`](Conn::shutdown_write) called, or input
    /// [waited for](Conn::expect_input), the connection is closed with
    /// [`PoolUnclean`](CloseReason::PoolUnclean): the next to lease it would get what is not meant for
    /// it. A pause, a timer, [`throttle_on`](Conn::throttle_on) and timeouts of its own end with the
    /// lease. A lease that has ended already is ignored.
    ///
    /// # Panics
    ///
    /// In debug builds, if the connection is leased to another one.
    pub fn release(&mut self, lease: ConnId) {
        self.cx.shared.give_back(Some(self.id), lease, false);
    }

    /// Gives `lease` back in the middle of an exchange that its handler is going to end: it takes the
    /// rest of a reply, or has written a reset command, and then calls [`ready`](Conn::ready).
    ///
    /// As [`release`](Conn::release); but the connection keeps its place, leased to none, for at most
    /// [`PoolConfig::cleaning`](crate::pool::PoolConfig::cleaning), and is closed with
    /// [`PoolUnclean`](CloseReason::PoolUnclean) then. Where it was held, by a pause or for its sink,
    /// [`on_data`](crate::Handler::on_data) follows with the input that was left.
    pub fn clean(&mut self, lease: ConnId) {
        self.cx.shared.give_back(Some(self.id), lease, true);
    }

    /// Says that this connection of a pool may be leased: its
    /// [handshake](crate::pool::PoolConfig::handshake) is over, it is [clean](Conn::clean), or it
    /// has answered a [ping](crate::pool::PoolConfig::ping_after). Of a check of an endpoint that
    /// stands it says that it has passed, and ends it. At other times, and for other connections, it
    /// does nothing.
    ///
    /// The handler takes the whole reply off its input first: a connection of a pool that has input left
    /// when the callback returns is closed with [`PoolUnclean`](CloseReason::PoolUnclean).
    pub fn ready(&mut self) {
        self.cx.shared.note_ready(self.id);
    }
}

/// Reaching a connection.
impl Context<'_> {
    /// The connection of `id`, unless it is gone, or is a [pool](Context::add_pool)'s and not leased
    /// to the connection whose callback runs, or to the loop.
    ///
    /// Another connection than the one whose callback runs is reached for I/O, never for its
    /// session; what is asked of it happens later in the turn.
    pub fn conn(&mut self, id: ConnId) -> Option<Conn<'_>> {
        let id = self.shared.resolve(id);
        self.shared.table.get(id).filter(|record| record.is_there())?;
        if !self.shared.may_reach(id) {
            return None;
        }
        self.shared.touch(id);
        Some(Conn::new(self.shared, id))
    }
}
