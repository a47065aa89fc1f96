//! Bytes in and out of a stream, each within its budget. "Would block" stops here.

use std::io::{self, ErrorKind, IoSlice};

use bytes::BytesMut;

use super::dispatch::Input;
use super::{READ_BUDGET, Reactor};
use crate::backend::Backend;
use crate::context::Shared;
use crate::core::lifecycle::{State, Step};
use crate::core::stats::Counters;
use crate::core::table::{ConnId, Flags, Record};
use crate::error::CloseReason;
use crate::handler::Handler;
use crate::time::Instant;

/// Bytes written for one connection in one turn, its callbacks' fresh output aside.
const WRITE_BUDGET: usize = 256 * 1024;

/// Pieces of output given to the kernel in one call.
const SLICES: usize = 64;

/// Left-over input up to this size is carried back into the loop's buffer, so that the next read
/// gets all of its room; more than this is read behind where it lies.
const CARRY_MAX: usize = 4 * 1024;

/// What a peer that is gone looks like from a failed call.
pub(super) fn reason_of(error: io::Error) -> CloseReason {
    match error.kind() {
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::NotConnected => CloseReason::PeerReset,
        _ => CloseReason::Io(error.into()),
    }
}

/// How one read went.
enum Read {
    /// There may be more.
    More,
    /// Nothing is left for now, or for ever.
    Drained,
}

/// Marks that keep input in the socket, whatever is ready.
const UNREAD: Flags = Flags::PAUSED
    .and(Flags::SINK_HELD)
    .and(Flags::CONGESTED)
    .and(Flags::EOF)
    .and(Flags::DATA_DUE)
    .and(Flags::DRAINED)
    .and(Flags::ASKED);

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Reads an open connection until the socket is drained, the budget is used or the handler
    /// wants no more.
    #[inline(always)]
    pub(super) fn receive(&mut self, handler: &mut H, id: ConnId) {
        let mut budget = READ_BUDGET;
        while budget > 0 {
            let flags = self.shared.table.at(id.index()).flags;
            if !flags.has(Flags::READ_READY) || flags.has(UNREAD) {
                return;
            }
            if let Read::Drained = self.read_once(handler, id, &mut budget) {
                return;
            }
        }
    }

    /// One read, and the callback for what it brought.
    #[inline(always)]
    fn read_once(&mut self, handler: &mut H, id: ConnId, budget: &mut usize) -> Read {
        let index = id.index();
        let kept = self.inputs[index].len();
        // What is kept never exceeds the limit: at the limit the connection is closed or held.
        let max = (*budget).min(self.shared.bounds.input_max.saturating_sub(kept)).max(1);
        let input = if kept == 0 {
            self.read_buffer.clear();
            // It begins again at the front of the buffer, unless that is shared: the same memory
            // stays in the cache.
            self.read_buffer.reserve(READ_BUDGET);
            Input::Loop
        } else {
            self.make_room_behind(index, max)
        };
        let Self { backend, streams, inputs, read_buffer, shared, .. } = self;
        let buffer = match input {
            Input::Loop => read_buffer,
            Input::Own => &mut inputs[index],
        };
        let Some(stream) = streams[index].as_mut() else { return Read::Drained };
        let room = (buffer.capacity() - buffer.len()).min(max);
        match backend.read(stream, buffer, room) {
            Ok(count) if count > 0 => {
                let record = shared.table.at(index);
                let drained =
                    B::SHORT_IO_DRAINS && count < room && !record.flags.has(Flags::HANGUP);
                if drained {
                    record.flags.remove(Flags::READ_READY);
                }
                record.flags.insert(Flags::RECEIVED);
                record.bytes_in = record.bytes_in.wrapping_add(count as u64);
                record.clocks.touch_read(shared.now);
                shared.counters.bytes_in.add(count as u64);
                *budget -= count;
                self.deliver(handler, id, input);
                if drained { Read::Drained } else { Read::More }
            }
            Ok(_) => {
                shared.table.at(index).flags.insert(Flags::EOF);
                self.deliver_eof(handler, id);
                Read::Drained
            }
            Err(error) => handle_read_error(shared.table.at(index), error),
        }
    }

    /// Room for `max` more bytes behind what the handler left: little is carried back into the
    /// loop's buffer, so that the next read gets all of its room; much stays where it is.
    #[cold]
    fn make_room_behind(&mut self, index: usize, max: usize) -> Input {
        let kept = &mut self.inputs[index];
        if kept.len() > CARRY_MAX {
            kept.reserve(max.min(kept.len()));
            return Input::Own;
        }
        self.read_buffer.clear();
        self.read_buffer.reserve(kept.len() + READ_BUDGET);
        self.read_buffer.extend_from_slice(kept);
        Input::Loop
    }

    /// Gives the handler its input and keeps what it leaves.
    #[inline(always)]
    pub(super) fn deliver(&mut self, handler: &mut H, id: ConnId, input: Input) {
        let index = id.index();
        let record = self.shared.table.at(index);
        let wakes = record.state() == State::Idle;
        if wakes {
            record.step(Step::Wake);
        }
        record.flags.remove(Flags::AWAITS_INPUT.and(Flags::DATA_DUE));
        let before = self.input(index, input).len();
        debug_assert!(before > 0);
        self.call_with_input(id, input, |conn, session, input| {
            if wakes {
                handler.on_active(conn, session);
            }
            if !wakes || !conn.is_closing() {
                handler.on_data(conn, session, input);
            }
        });
        let left = self.input(index, input).len();
        let kept = &mut self.inputs[index];
        if left == 0 {
            if kept.capacity() > 0 {
                *kept = BytesMut::new();
            }
        } else if let Input::Loop = input {
            kept.clear();
            kept.extend_from_slice(&self.read_buffer);
        }
        self.count_request(id, left < before, left);
    }

    #[inline(always)]
    fn input(&self, index: usize, input: Input) -> &BytesMut {
        match input {
            Input::Loop => &self.read_buffer,
            Input::Own => &self.inputs[index],
        }
    }

    /// What a look at the input says about requests: whether one is arriving, since when, and
    /// whether the handler lets too much lie.
    #[inline(always)]
    fn count_request(&mut self, id: ConnId, consumed: bool, left: usize) {
        let record = self.shared.table.at(id.index());
        let awaits = record.flags.take(Flags::AWAITS_INPUT);
        record.flags.set(Flags::RECEIVING, left > 0 || awaits);
        if consumed && !awaits {
            if left > 0 {
                record.clocks.restart_request(self.shared.now);
            }
            if !record.flags.has(Flags::COUNTS_REQUESTS) {
                record.requests = record.requests.saturating_add(1);
                self.shared.counters.requests.add(1);
            }
        }
        if left >= self.shared.bounds.input_max
            && !record.is_held()
            && !record.flags.has(Flags::DATA_DUE)
        {
            record.ask(CloseReason::InputLimit);
        }
    }

    fn deliver_eof(&mut self, handler: &mut H, id: ConnId) {
        // An empty buffer for the usual case; it costs no memory.
        self.call_with_input(id, Input::Own, |conn, session, input| {
            handler.on_eof(conn, session, input);
        });
        self.inputs[id.index()] = BytesMut::new();
        // Whatever was arriving will never be whole.
        self.shared.table.at(id.index()).flags.remove(Flags::RECEIVING);
    }

    /// Sends what the callback in hand wrote; what the kernel does not take is queued.
    #[inline(always)]
    pub(super) fn flush_scratch(&mut self, id: ConnId) {
        let index = id.index();
        let Self { backend, streams, shared, .. } = self;
        let Shared { table, scratch, now, counters, .. } = shared;
        let record = table.at(index);
        let mut taken = 0;
        if record.flags.has(Flags::WRITE_READY)
            && let Some(stream) = streams[index].as_mut()
        {
            let result = backend.write(stream, scratch);
            taken = note_write::<B>(record, scratch.len(), result, *now, counters);
        }
        if taken < scratch.len() {
            record.output.push_copy(&scratch[taken..]);
        }
        scratch.clear();
    }

    /// Writes queued output until it is gone, the socket is full or the budget is used.
    pub(super) fn flush(&mut self, id: ConnId) {
        let index = id.index();
        let mut budget = WRITE_BUDGET;
        let Self { backend, streams, shared, .. } = self;
        let Shared { table, now, counters, .. } = shared;
        let record = table.at(index);
        let Some(stream) = streams[index].as_mut() else { return };
        while !record.output.is_empty() && record.flags.has(Flags::WRITE_READY) && budget > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = record.output.front(&mut slices);
            let asked = slices[..filled].iter().map(|slice| slice.len()).sum();
            let result = backend.write_vectored(stream, &slices[..filled]);
            let taken = note_write::<B>(record, asked, result, *now, counters);
            record.output.consume(taken);
            budget = budget.saturating_sub(taken.max(1));
        }
        self.note_drained(id);
    }

    /// Notes the edge at the low watermark. The callbacks that follow it wait for the next turn,
    /// so that a fast reader and an eager writer cannot keep the loop to themselves.
    #[inline]
    fn note_drained(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if record.flags.has(Flags::CONGESTED)
            && record.output.len() <= self.shared.bounds.watermarks.low()
        {
            record.flags.remove(Flags::CONGESTED);
            record.flags.insert(Flags::DRAINED.and(Flags::DATA_DUE));
            if record.flags.has(Flags::IS_SINK) {
                self.shared.release_feeders(id);
            }
        }
    }

    /// Reads and forgets what the peer of a closing connection still sends.
    pub(super) fn discard_input(&mut self, id: ConnId) {
        let index = id.index();
        let mut budget = READ_BUDGET;
        let Self { backend, streams, shared, read_buffer, .. } = self;
        let record = shared.table.at(index);
        let Some(stream) = streams[index].as_mut() else { return };
        while budget > 0
            && record.flags.has(Flags::READ_READY)
            && !record.flags.has(Flags::EOF)
        {
            read_buffer.clear();
            read_buffer.reserve(READ_BUDGET);
            match backend.read(stream, read_buffer, READ_BUDGET) {
                Ok(0) => record.flags.insert(Flags::EOF),
                Ok(count) => {
                    budget = budget.saturating_sub(count);
                    record.clocks.touch_read(shared.now);
                    let short = B::SHORT_IO_DRAINS && count < READ_BUDGET;
                    if short && !record.flags.has(Flags::HANGUP) {
                        record.flags.remove(Flags::READ_READY);
                    }
                }
                Err(error) => {
                    handle_read_error(record, error);
                }
            }
        }
        read_buffer.clear();
    }

    /// A connection that is not being read learns of a reset by asking for it.
    #[cold]
    pub(super) fn learn_error(&mut self, id: ConnId) {
        let Some(stream) = self.streams[id.index()].as_mut() else {
            return;
        };
        if let Ok(Some(error)) = self.backend.take_error(stream) {
            self.shared.table.at(id.index()).ask(reason_of(error));
        }
    }
}

fn handle_read_error(record: &mut Record, error: io::Error) -> Read {
    match error.kind() {
        ErrorKind::Interrupted => return Read::More,
        ErrorKind::WouldBlock => {
            record.flags.remove(Flags::READ_READY.and(Flags::HANGUP));
        }
        _ => {
            record.flags.remove(Flags::READ_READY);
            record.ask(reason_of(error));
        }
    }
    Read::Drained
}

/// Accounts for one write of `asked` bytes and returns how many the kernel took.
#[inline]
fn note_write<B: Backend>(
    record: &mut Record,
    asked: usize,
    result: io::Result<usize>,
    now: Instant,
    counters: &Counters,
) -> usize {
    match result {
        Ok(taken) => {
            if taken < asked && (B::SHORT_IO_DRAINS || taken == 0) {
                record.flags.remove(Flags::WRITE_READY);
            }
            record.bytes_out = record.bytes_out.wrapping_add(taken as u64);
            record.clocks.touch_write(now);
            counters.bytes_out.add(taken as u64);
            taken
        }
        Err(error) => {
            match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => record.flags.remove(Flags::WRITE_READY),
                _ => {
                    record.flags.remove(Flags::WRITE_READY);
                    record.flags.insert(Flags::BROKEN.and(Flags::ASKED));
                    record.broken = Some(reason_of(error));
                }
            }
            0
        }
    }
}
