//! Bytes in and out of a stream, each within its budget. "Would block" stops here.
//!
//! A message comes this way: [`Reactor::read_loop`] reads into the loop's buffer, [`deliver`] gives that
//! to the handler, and sends what it wrote by one call on the socket. Only what the handler leaves is
//! copied to the connection ([`keep_input`]), and only what the kernel does not take is queued
//! ([`send_scratch`]). So a connection between two messages owns no buffer.

use std::io::{self, ErrorKind, IoSlice};

use bytes::BytesMut;
use tracing::Level;

use super::dispatch::{BeforeData, call_data};
use super::read_buffer::{rewind, rewind_with};
use super::{READ_BUDGET, Reactor};
use crate::backend::Backend;
use crate::close::{CloseReason, OsError};
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::{State, Transition};
use crate::core::output::Output;
use crate::core::record::{Record, Spares};
use crate::core::stats::Counters;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::log::{hears, trace};
use crate::planted::{Bug, planted};
use crate::probe;
use crate::state::{LoopState, log_state};
use crate::time::Instant;

/// Bytes written for one connection in one turn, its callbacks' fresh output aside.
const WRITE_BUDGET: usize = 256 * 1024;

/// So many times [`READ_BUDGET`] are read in one turn while the handler waits for input, as no
/// callback comes with each: a value of a megabyte comes in a few turns.
const AWAITED_READS: usize = 4;

/// Pieces of output given to the kernel in one call.
const SLICES: usize = 64;

/// Left-over input up to this size is copied back into the loop's buffer, so that the next read gets
/// all of its room. What is larger stays where it lies, and the next read appends to it.
const CARRY_MAX: usize = 4 * 1024;

/// What a failed call on a socket says.
pub(super) enum Failure {
    WouldBlock,
    Interrupted,
    /// The peer is gone.
    Gone,
    Other,
}

impl Failure {
    #[inline]
    pub(super) fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::WouldBlock,
            Some(libc::ECONNRESET) => Self::Gone,
            _ => Self::of_kind(error),
        }
    }

    /// Why the connection ends.
    #[inline(always)]
    pub(super) fn reason(self, error: &io::Error) -> CloseReason {
        match self {
            Self::Gone => CloseReason::PeerReset,
            _ => Self::rare_reason(error),
        }
    }

    // What is rare is in functions of its own: a reset is the usual end of many connections.

    #[cold]
    #[inline(never)]
    fn rare_reason(error: &io::Error) -> CloseReason {
        CloseReason::Io(OsError::of(error))
    }

    #[cold]
    #[inline(never)]
    fn of_kind(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock => Self::WouldBlock,
            ErrorKind::Interrupted => Self::Interrupted,
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected => Self::Gone,
            _ => Self::Other,
        }
    }
}

/// Why a connection ends after a call on its socket has failed.
pub(super) fn reason_of(error: io::Error) -> CloseReason {
    Failure::of(&error).reason(&error)
}

/// How one read went.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Read {
    /// There may be more.
    More,
    /// Nothing is left for now, or nothing more will come.
    Done,
    /// Nothing is left, and the connection went idle: only `on_idle` is due.
    Rested,
}

/// Whether an open connection is to be read.
#[inline(always)]
pub(super) const fn wants_reading(flags: Flags) -> bool {
    flags.has(Flags::READ_READY) && !flags.has(Flags::NOT_READ)
}

/// Whether an open connection is to be read, nothing is queued for it, and callbacks of others have
/// asked nothing of it that comes first.
#[inline(always)]
pub(super) const fn has_only_input(flags: Flags) -> bool {
    flags.has(Flags::READ_READY) && !flags.has(Flags::NOT_READ.and(Flags::DIRTY).and(Flags::QUEUED))
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Reads an open connection until the socket is drained, the budget is used or the handler
    /// wants no more.
    pub(super) fn receive(&mut self, handler: &mut H, id: ConnId) {
        if wants_reading(self.shared.table.at(id.index()).flags)
            && self.read_loop(handler, id, true) == Read::Rested
        {
            self.call_idle(handler, id, "on_data or on_idle");
        }
    }

    /// [`Reactor::receive`] for a connection that is to be read. If it went idle, the caller runs
    /// `on_idle`. Single reads and writes are logged only if `log` says so: whether a subscriber
    /// listens to them is asked once a turn, not once a message.
    #[inline(always)]
    pub(super) fn read_loop(&mut self, handler: &mut H, id: ConnId, log: bool) -> Read {
        let mut budget = READ_BUDGET;
        loop {
            match self.read_once(handler, id, &mut budget, log) {
                Read::More if wants_reading(self.shared.table.at(id.index()).flags) => {}
                Read::More => return Read::Done,
                done => return done,
            }
        }
    }

    /// One read, and the callback for what it brought.
    #[inline(always)]
    fn read_once(&mut self, handler: &mut H, id: ConnId, budget: &mut usize, log: bool) -> Read {
        let Self { backend, slots, read_buffer, shared, .. } = self;
        let slot = &mut slots[id.index()];
        let record = shared.table.at(id.index());
        let (Some(stream), Some(session)) = (&mut slot.stream, &mut slot.session) else {
            return Read::Done;
        };
        let mut room = shared.bounds.read_max.min(*budget);
        let mut own = false;
        if slot.input.is_empty() {
            rewind(read_buffer);
        } else {
            // What is kept is less than the limit: at the limit a connection is closed, or not read.
            let awaits = record.flags.has(Flags::INPUT_AWAITED);
            // Of what is awaited the rest of the turn's reads may come in one.
            let most = if awaits {
                (*budget + AWAITED_READS).saturating_sub(READ_BUDGET).max(1) * READ_BUDGET
            } else {
                *budget
            };
            room = shared.bounds.input_max.saturating_sub(slot.input.len()).min(most).max(1);
            let whole = if awaits { record.awaited_len() } else { 0 };
            let whole = if whole > slot.input.len() { whole } else { shared.bounds.input_max };
            own = make_room_after(read_buffer, &mut slot.input, room, whole);
            room = room.min(read_buffer.capacity() - read_buffer.len());
        }
        let read = if planted(Bug::UnreadBeforeEofLost) && record.flags.has(Flags::HANGUP) {
            Ok(0)
        } else {
            backend.read(stream, read_buffer, room)
        };
        probe::read(id, room, &read);
        match read {
            Ok(count) if count > 0 => {
                let drained =
                    backend.short_io_drains() && count < room && !record.flags.has(Flags::HANGUP);
                if drained {
                    record.flags.remove(Flags::READ_READY);
                }
                if log {
                    say_read(id, count);
                }
                record.flags.insert(Flags::RECEIVED);
                record.bytes_in = record.bytes_in.wrapping_add(count as u64);
                record.clocks.touch_read(shared.now);
                shared.counters.bytes_in.add(count as u64);
                let given = read_buffer.len();
                if record.flags.has(Flags::INPUT_AWAITED)
                    && !take_awaited(record, read_buffer, shared.now, &shared.counters)
                {
                    keep_input(read_buffer, &mut slot.input, own, given);
                    *budget = budget.saturating_sub(count.div_ceil(READ_BUDGET));
                    let used_up = *budget + AWAITED_READS <= READ_BUDGET;
                    return if drained || used_up { Read::Done } else { Read::More };
                }
                *budget = budget.saturating_sub(count);
                let begun = begin_delivery(record, log);
                shared.lent_at = if own { 0 } else { read_buffer.as_ptr().addr() };
                let rested =
                    deliver(handler, backend, shared, id, stream, session, read_buffer, begun);
                if !read_buffer.is_empty() || slot.input.capacity() > 0 {
                    keep_input(read_buffer, &mut slot.input, own, given);
                }
                if rested {
                    return Read::Rested;
                }
                self.end_data(handler, id);
                let record = self.shared.table.at(id.index());
                let done = drained
                    || *budget == 0
                    || record.is_used_up(self.shared.bounds.requests_max)
                    || record.was_the_last();
                if done { Read::Done } else { Read::More }
            }
            nothing => {
                if own {
                    std::mem::swap(read_buffer, &mut slot.input);
                }
                match nothing {
                    Ok(count) => {
                        say_read(id, count);
                        record.flags.insert(Flags::EOF);
                        self.deliver_eof(handler, id);
                        Read::Done
                    }
                    Err(error) => handle_read_error(record, &error),
                }
            }
        }
    }

    /// Calls `on_data` with what the handler left, without a read: after `yield_now`, and when
    /// reading resumes. If nothing was left there is no call, except after skipped input; and none
    /// comes while the handler waits for more.
    pub(super) fn deliver_kept(&mut self, handler: &mut H, id: ConnId) {
        let Self { backend, slots, shared, .. } = self;
        let slot = &mut slots[id.index()];
        let (Some(stream), Some(session)) = (&mut slot.stream, &mut slot.session) else { return };
        let record = shared.table.at(id.index());
        let input = &mut slot.input;
        let given = input.len();
        if record.flags.has(Flags::INPUT_AWAITED) {
            if !take_awaited(record, input, shared.now, &shared.counters) {
                return shrink(input, given);
            }
        } else if given == 0 {
            return;
        }
        let begun = begin_delivery(record, true);
        let rested = deliver(handler, backend, shared, id, stream, session, input, begun);
        shrink(&mut slot.input, given);
        if rested {
            return self.call_idle(handler, id, "on_data or on_idle");
        }
        self.end_data(handler, id);
    }

    /// What comes behind an `on_data` that no `on_idle` follows: a reading of the clock, the answer to what
    /// it asked a pool for, and its output that is queued.
    #[inline(never)]
    fn end_data(&mut self, handler: &mut H, id: ConnId) {
        self.note_callback(id, "on_data");
        if self.shared.pools.has_asked() {
            self.answer_at_once(handler);
        }
        if self.shared.spilled {
            self.flush(id);
        }
    }

    /// Reads the clock after a callback that is called on short terms.
    #[inline(always)]
    fn note_callback(&mut self, id: ConnId, name: &'static str) {
        let before = self.shared.now;
        self.refresh_now_if_stale(name, Some(id));
        if self.shared.now != before {
            let clocks = &mut self.shared.table.at(id.index()).clocks;
            // What the callback wrote left later than it was taken to, if it wrote anything.
            if clocks.written_at() == before {
                clocks.touch_write(self.shared.now);
            }
        }
    }

    #[cold]
    fn deliver_eof(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if record.state() == State::Idle && record.flags.has(Flags::RECEIVING) {
            // A part of the length that it expects came with the FIN.
            self.wake_session(handler, id);
        }
        // `on_active` may have panicked, and what was left has been dropped then.
        let ends = Flags::DIVERTED.and(Flags::CLOSE_REQUESTED);
        if !self.shared.table.at(id.index()).flags.has(ends) {
            self.call_with_input(id, "on_eof", |conn, session, input| {
                handler.on_eof(conn, session, input);
            });
        }
        if self.shared.table.at(id.index()).cold_flags.has(ColdFlags::RELAYED) {
            // What is left is passed on, and so is the FIN.
            return;
        }
        self.slots[id.index()].input = BytesMut::new();
        // A request that was arriving will never be whole.
        let record = self.shared.table.at(id.index());
        record.flags.remove(Flags::RECEIVING);
        record.await_nothing();
        self.note_lost_peer(id);
    }

    /// Sends what the callback that has just run wrote to the connection whose writes gathered.
    pub(super) fn flush_scratch(&mut self, id: ConnId) {
        let Self { backend, slots, shared, .. } = self;
        let LoopState { table, scratch, spares, now, counters, .. } = shared;
        let record = table.at(id.index());
        let stream = slots[id.index()].stream.as_mut();
        send_scratch(backend, stream, record, scratch, spares, *now, counters, true);
        if self.shared.table.at(id.index()).has_output() {
            // It may be settled in a later turn.
            self.account(id);
        }
    }

    /// Writes queued output until it is gone, the socket is full or the budget is used.
    pub(super) fn flush(&mut self, id: ConnId) {
        let index = id.index();
        let mut budget = WRITE_BUDGET;
        let Self { backend, slots, shared, .. } = self;
        let LoopState { table, now, counters, spares, .. } = shared;
        let record = table.at(index);
        let Some(stream) = slots[index].stream.as_mut() else { return };
        while record.has_output() && record.flags.has(Flags::WRITE_READY) && budget > 0 {
            let Some(output) = record.output() else { return };
            let (asked, result) = match output.sole() {
                Some(piece) => (piece.len(), backend.write(stream, piece)),
                None => write_pieces(backend, stream, output),
            };
            let taken = note_write(backend, record, asked, result, *now, counters, true);
            record.change_output(spares, |output, buffers| output.consume(taken, buffers));
            budget = budget.saturating_sub(taken.max(1));
        }
        // Input that was left counts when this is settled. If the next call takes all of it, nothing may be.
        if record.buffered > 0 && !record.has_output() && !planted(Bug::StaleAccount) {
            self.shared.set_owned(id, 0);
        } else {
            // A shared piece may have left its last queue, and nothing is settled behind the last flush.
            self.shared.counters.buffered.set(self.shared.buffered());
        }
        self.note_drained(id);
    }

    /// Ends the congestion of a connection whose queue has fallen to the low watermark. `on_drained`
    /// comes in the next turn, so that a fast reader and an eager writer cannot occupy the loop.
    #[inline]
    pub(super) fn note_drained(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if record.flags.has(Flags::CONGESTED)
            && record.queued() <= self.shared.bounds.watermarks.low()
        {
            record.flags.remove(Flags::CONGESTED.and(Flags::PAUSED_BY_OUTPUT));
            if !planted(Bug::WatermarkEdgeLost) {
                record.flags.insert(Flags::DRAINED);
            }
            if record.cold_flags.has(ColdFlags::IS_SINK) {
                self.shared.resume_feeders(id);
            }
        }
        if self.shared.table.at(id.index()).cold_flags.has(ColdFlags::RELAYED) {
            self.shared.note_relay_flushed(id);
        }
    }

    /// Reads and discards what the peer of a closing connection still sends.
    pub(super) fn discard_input(&mut self, id: ConnId) {
        let index = id.index();
        let mut budget = READ_BUDGET;
        let Self { backend, slots, shared, read_buffer, .. } = self;
        let record = shared.table.at(index);
        let Some(stream) = slots[index].stream.as_mut() else { return };
        while budget > 0 && record.flags.has(Flags::READ_READY) && !record.flags.has(Flags::EOF) {
            rewind(read_buffer);
            let read = backend.read(stream, read_buffer, READ_BUDGET);
            probe::read(id, READ_BUDGET, &read);
            match read {
                Ok(0) => record.flags.insert(Flags::EOF),
                Ok(count) => {
                    budget = budget.saturating_sub(count);
                    record.clocks.touch_read(shared.now);
                    let short = backend.short_io_drains() && count < READ_BUDGET;
                    if short && !record.flags.has(Flags::HANGUP) {
                        record.flags.remove(Flags::READ_READY);
                    }
                }
                Err(error) => {
                    // An error that repeats uses up the budget too.
                    budget = budget.saturating_sub(1);
                    handle_read_error(record, &error);
                }
            }
        }
        read_buffer.clear();
    }

    /// Handles the event that both directions of a Unix-domain socket are shut down: its peer is
    /// gone, unless we sent our FIN, when it may only have sent its own. There is no reset on these
    /// sockets (unix(7)), so no other event follows.
    #[cold]
    pub(super) fn lose_peer(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if !record.flags.has(Flags::FIN) && !planted(Bug::GonePeerKept) {
            record.cold_mut().peer_gone = true;
        }
        self.note_lost_peer(id);
        self.serve(handler, id);
    }

    fn note_lost_peer(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if record.has_lost_peer() {
            record.request_close(CloseReason::PeerReset);
        }
    }

    /// Asks the socket of a connection that is not read whether it was reset.
    #[cold]
    pub(super) fn learn_error(&mut self, handler: &mut H, id: ConnId) {
        let Some(stream) = self.slots[id.index()].stream.as_mut() else {
            return;
        };
        if let Ok(Some(error)) = self.backend.take_error(stream) {
            self.shared.table.at(id.index()).request_close(reason_of(error));
        }
        self.serve(handler, id);
    }
}

/// Makes room for bytes after those that the handler left. A few of these are copied back into the
/// loop's buffer, so that the next read gets all of its room. If they are many, the connection's
/// own buffer takes the place of the loop's, with room for `max` more bytes or twice what it holds,
/// and for no more than the `whole` that may come to be in it. Returns whether it did.
#[inline(never)]
fn make_room_after(
    read_buffer: &mut BytesMut,
    kept: &mut BytesMut,
    max: usize,
    whole: usize,
) -> bool {
    if kept.len() > CARRY_MAX {
        // A buffer that grows doubles. It does so while a little room is left, as the last of it would
        // take small reads; so it is at most two and a half times as large as what it holds. It does
        // not grow beyond the whole, in whose steps a vector would.
        if kept.capacity() - kept.len() < max.min(kept.len() / 4) {
            if kept.capacity().saturating_mul(2) <= whole {
                kept.reserve(kept.len());
            } else {
                let mut larger = BytesMut::with_capacity(whole.max(kept.len() + 1));
                larger.extend_from_slice(kept);
                *kept = larger;
            }
        }
        read_buffer.clear();
        std::mem::swap(read_buffer, kept);
        return true;
    }
    rewind_with(read_buffer, kept);
    false
}

/// Moves what the handler left of `given` bytes to the connection: out of the loop's buffer, or
/// back from its place if the connection's `own` buffer took it. If nothing is left the connection
/// owns no memory.
#[inline(never)]
fn keep_input(read_buffer: &mut BytesMut, kept: &mut BytesMut, own: bool, given: usize) {
    if own {
        std::mem::swap(read_buffer, kept);
        shrink(kept, given);
    } else {
        kept.clear();
        kept.extend_from_slice(read_buffer);
    }
    if kept.is_empty() {
        *kept = BytesMut::new();
    }
}

/// Moves what is left of `given` bytes to a buffer of its own: one from whose front bytes were taken
/// keeps the memory of all.
fn shrink(kept: &mut BytesMut, given: usize) {
    if kept.len() < given {
        *kept = BytesMut::from(&kept[..]);
    }
}

/// Calls `on_data`, and sends what it wrote if nothing is queued before that. Returns whether the
/// connection went idle.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the parts of a reactor and of one slot, lent apart")]
fn deliver<H: Handler, B: Backend>(
    handler: &mut H,
    backend: &mut B,
    shared: &mut LoopState,
    id: ConnId,
    stream: &mut B::Stream,
    session: &mut H::Session,
    input: &mut BytesMut,
    begun: BeforeData,
) -> bool {
    let before = input.len();
    call_data(handler, shared, id, session, input, begun);
    let left = input.len();
    let LoopState { table, scratch, spares, bounds, counters, now, .. } = shared;
    let record = table.at(id.index());
    if !scratch.is_empty() {
        send_scratch(backend, Some(stream), record, scratch, spares, *now, counters, begun.log);
    }
    if count_request(record, left < before, left, *now) {
        counters.requests.add(1);
    }
    if left > 0 {
        if record.flags.has(Flags::INPUT_AWAITED) && record.to_skip() > left as u64 {
            // All of it is to be skipped, and more is: it need not be kept for that.
            record.skip_input(input);
            record.flags.remove(Flags::DATA_DUE);
            return false;
        }
        // A handler that ends the connection may leave any input.
        let taken_up = record.is_reading_stopped() || record.flags.has(Flags::CALLBACK_DUE);
        if left >= bounds.input_max && !taken_up && record.requested().is_none() {
            record.request_close(CloseReason::InputLimit);
        }
        return false;
    }
    let rested = record.try_rest(bounds.requests_max);
    if rested && begun.log {
        log_state(record);
    }
    rested
}

/// Whether `on_data`, which waits for a length of input, is due with `input`. What is to be skipped
/// is discarded, and is the last of its request. If `on_data` is not due, what has come is part of
/// a request that arrives.
#[cold]
#[inline(never)]
fn take_awaited(
    record: &mut Record,
    input: &mut BytesMut,
    now: Instant,
    counters: &Counters,
) -> bool {
    let skips = record.to_skip() > 0;
    if skips && !record.skip_input(input) && (!input.is_empty() || record.awaited_len() > 0) {
        // If `on_data` is called without input, that call counts the request.
        record.flags.remove(Flags::RECEIVING.and(Flags::EXPECTS_MORE_INPUT));
        if count_whole(record) {
            counters.requests.add(1);
        }
    }
    let due = record.take_awaited(input.len());
    if !due && (!input.is_empty() || record.to_skip() > 0) {
        count_part(record, false, now);
    }
    due
}

/// Prepares a record for `on_data`.
#[inline(always)]
fn begin_delivery(record: &mut Record, log: bool) -> BeforeData {
    let wakes = record.state() == State::Idle;
    if wakes {
        record.apply(Transition::Wake);
        if log {
            log_state(record);
        }
    }
    record.flags.remove(Flags::EXPECTS_MORE_INPUT.and(Flags::DATA_DUE));
    BeforeData { wakes, no_output: !record.has_output(), log }
}

/// Sends what a callback wrote, by one call, and queues what the kernel does not take.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the parts of a reactor and of one slot, lent apart")]
fn send_scratch<B: Backend>(
    backend: &mut B,
    stream: Option<&mut B::Stream>,
    record: &mut Record,
    scratch: &mut BytesMut,
    spares: &mut Spares,
    now: Instant,
    counters: &Counters,
    log: bool,
) {
    let mut taken = 0;
    if record.flags.has(Flags::WRITE_READY)
        && let Some(stream) = stream
    {
        let result = backend.write(stream, scratch);
        taken = note_write(backend, record, scratch.len(), result, now, counters, log);
    }
    if taken < scratch.len() {
        let again = usize::from(planted(Bug::ShortWriteDoubled) && taken > 0);
        record.change_output(spares, |output, buffers| {
            output.push_copy(&scratch[taken - again..], buffers);
        });
    }
    scratch.clear();
}

/// Notes what `on_data` left: whether a request is arriving, and since when. Returns whether one was
/// served by a handler that does not count requests itself.
#[inline(always)]
fn count_request(record: &mut Record, consumed: bool, left: usize, now: Instant) -> bool {
    if left > 0 || record.flags.has(Flags::EXPECTS_MORE_INPUT) {
        return count_part(record, consumed, now);
    }
    record.flags.remove(Flags::RECEIVING);
    count_whole(record)
}

/// A request is arriving: it began before, or with what was read now, or after one that is whole.
#[cold]
fn count_part(record: &mut Record, consumed: bool, now: Instant) -> bool {
    let begins = !record.flags.has(Flags::RECEIVING);
    let whole = consumed && !record.flags.take(Flags::EXPECTS_MORE_INPUT);
    record.flags.insert(Flags::RECEIVING);
    if begins || whole {
        record.clocks.restart_request(now);
    }
    whole && count_whole(record)
}

#[inline(always)]
fn count_whole(record: &mut Record) -> bool {
    let counts = !record.flags.has(Flags::NOT_COUNTED) || planted(Bug::InputCounted);
    if counts {
        record.requests = record.requests.wrapping_add(1);
    }
    counts
}

#[cold]
#[inline(never)]
pub(super) fn say_read(id: ConnId, bytes: usize) {
    trace!(%id, bytes, "read");
}

#[cold]
#[inline(never)]
fn say_write(id: ConnId, asked: usize, taken: usize) {
    trace!(%id, asked, taken, "write");
}

#[cold]
#[inline(never)]
pub(super) fn handle_read_error(record: &mut Record, error: &io::Error) -> Read {
    // In a function of its own: what an event needs would be laid out for every reset.
    if hears(Level::TRACE) {
        say_read_error(record.id, error);
    }
    match Failure::of(error) {
        Failure::WouldBlock if planted(Bug::EndlessReading) && record.state() != State::Closing => {
        }
        Failure::WouldBlock => record.flags.remove(Flags::MAY_READ),
        Failure::Interrupted => return Read::More,
        failure => {
            record.flags.remove(Flags::READ_READY);
            if !planted(Bug::SwallowedReset) {
                record.request_close(failure.reason(error));
            }
        }
    }
    Read::Done
}

#[cold]
#[inline(never)]
fn say_read_error(id: ConnId, error: &io::Error) {
    trace!(%id, %error, "read fails");
}

/// Offers the front of a queue to the kernel. Returns how much it was, and how much was taken.
#[inline(never)]
fn write_pieces<B: Backend>(
    backend: &mut B,
    stream: &mut B::Stream,
    output: &Output,
) -> (usize, io::Result<usize>) {
    let mut slices = [IoSlice::new(&[]); SLICES];
    let filled = output.front(&mut slices);
    let asked = slices[..filled].iter().map(|slice| slice.len()).sum();
    (asked, backend.write_vectored(stream, &slices[..filled]))
}

/// Accounts for one write of `asked` bytes and returns how many the kernel took.
#[inline(always)]
pub(super) fn note_write<B: Backend>(
    backend: &B,
    record: &mut Record,
    asked: usize,
    result: io::Result<usize>,
    now: Instant,
    counters: &Counters,
    log: bool,
) -> usize {
    probe::write(record.id, asked, &result);
    match result {
        Ok(taken) => {
            if log {
                say_write(record.id, asked, taken);
            }
            if taken < asked && (backend.short_io_drains() || taken == 0) {
                record.flags.remove(Flags::WRITE_READY);
            }
            record.bytes_out = record.bytes_out.wrapping_add(taken as u64);
            record.clocks.touch_write(now);
            counters.bytes_out.add(taken as u64);
            taken
        }
        Err(error) => {
            handle_write_error(record, &error);
            0
        }
    }
}

#[cold]
#[inline(never)]
fn handle_write_error(record: &mut Record, error: &io::Error) {
    trace!(id = %record.id, %error, "write fails");
    match Failure::of(error) {
        Failure::Interrupted => {}
        Failure::WouldBlock => record.flags.remove(Flags::WRITE_READY),
        failure => {
            record.flags.remove(Flags::WRITE_READY);
            record.note_broken(failure.reason(error));
        }
    }
}
