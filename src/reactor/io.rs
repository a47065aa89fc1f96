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
        while let Read::More = self.read_once(handler, id, &mut budget) {}
    }

    /// One read, and the callback for what it brought.
    #[inline(always)]
    fn read_once(&mut self, handler: &mut H, id: ConnId, budget: &mut usize) -> Read {
        let index = id.index();
        let Self { backend, streams, inputs, read_buffer, shared, .. } = self;
        let record = shared.table.at(index);
        if !record.flags.has(Flags::READ_READY) || record.flags.has(UNREAD) {
            return Read::Drained;
        }
        let kept = &mut inputs[index];
        let mut room = shared.bounds.input_max.min(*budget);
        let (input, buffer) = if kept.is_empty() {
            read_buffer.clear();
            // It begins again at the front of the buffer, unless that is shared: the same memory
            // stays in the cache.
            read_buffer.reserve(READ_BUDGET);
            (Input::Loop, read_buffer)
        } else {
            // What is kept never exceeds the limit: there the connection is closed or held.
            room = room.min(shared.bounds.input_max.saturating_sub(kept.len())).max(1);
            make_room_behind(read_buffer, kept, room)
        };
        let Some(stream) = streams[index].as_mut() else { return Read::Drained };
        room = room.min(buffer.capacity() - buffer.len());
        match backend.read(stream, buffer, room) {
            Ok(count) if count > 0 => {
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
                let begun = begin_delivery(record);
                self.deliver(handler, id, input, begun);
                if drained || *budget == 0 { Read::Drained } else { Read::More }
            }
            Ok(_) => {
                record.flags.insert(Flags::EOF);
                self.deliver_eof(handler, id);
                Read::Drained
            }
            Err(error) => handle_read_error(record, error),
        }
    }

    /// Gives the handler its input, sends what it answers and keeps what it leaves.
    #[inline(always)]
    pub(super) fn deliver(&mut self, handler: &mut H, id: ConnId, input: Input, begun: Delivery) {
        let index = id.index();
        let before = self.input_len(index, input);
        debug_assert!(before > 0);
        self.call_data(handler, id, input, begun);
        if self.shared.spilled {
            self.send_written(id);
        }
        let left = self.input_len(index, input);
        if left > 0 || self.inputs[index].capacity() > 0 {
            self.keep_input(index, input);
        }
        let Self { backend, streams, shared, .. } = self;
        let Shared { table, scratch, bounds, counters, now, .. } = shared;
        let record = table.at(index);
        if !scratch.is_empty() {
            send_scratch(backend, streams[index].as_mut(), record, scratch, *now, counters);
        }
        if count_request(record, left < before, left, *now) {
            counters.requests.add(1);
        }
        if left >= bounds.input_max && !record.is_held() && !record.flags.has(Flags::DATA_DUE) {
            record.ask(CloseReason::InputLimit);
        }
    }

    #[inline(always)]
    fn input_len(&self, index: usize, input: Input) -> usize {
        match input {
            Input::Loop => self.read_buffer.len(),
            Input::Own => self.inputs[index].len(),
        }
    }

    /// Moves what the handler left in the loop's buffer to the connection, which owns no memory if
    /// that is nothing.
    #[inline(never)]
    fn keep_input(&mut self, index: usize, input: Input) {
        let kept = &mut self.inputs[index];
        if let Input::Loop = input {
            kept.clear();
            kept.extend_from_slice(&self.read_buffer);
        }
        if kept.is_empty() {
            *kept = BytesMut::new();
        }
    }

    #[cold]
    fn deliver_eof(&mut self, handler: &mut H, id: ConnId) {
        self.call_eof(handler, id);
        self.inputs[id.index()] = BytesMut::new();
        // Whatever was arriving will never be whole.
        self.shared.table.at(id.index()).flags.remove(Flags::RECEIVING);
    }

    /// Sends what the callback in hand wrote.
    pub(super) fn flush_scratch(&mut self, id: ConnId) {
        let Self { backend, streams, shared, .. } = self;
        let Shared { table, scratch, now, counters, .. } = shared;
        let record = table.at(id.index());
        send_scratch(backend, streams[id.index()].as_mut(), record, scratch, *now, counters);
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

/// Room for `max` bytes behind what the handler left. Little of that is carried back into the loop's
/// buffer, so that the next read gets all of its room; much stays where it is.
#[inline(never)]
fn make_room_behind<'a>(
    read_buffer: &'a mut BytesMut,
    kept: &'a mut BytesMut,
    max: usize,
) -> (Input, &'a mut BytesMut) {
    if kept.len() > CARRY_MAX {
        kept.reserve(max.min(kept.len()));
        return (Input::Own, kept);
    }
    read_buffer.clear();
    read_buffer.reserve(kept.len() + READ_BUDGET);
    read_buffer.extend_from_slice(kept);
    (Input::Loop, read_buffer)
}

/// What a connection was like before its handler got input.
#[derive(Clone, Copy)]
pub(super) struct Delivery {
    /// It was idle: a request begins.
    pub(super) wakes: bool,
    /// No output is queued.
    pub(super) drained: bool,
}

/// Readies a record for `on_data`.
#[inline(always)]
pub(super) fn begin_delivery(record: &mut Record) -> Delivery {
    let wakes = record.state() == State::Idle;
    if wakes {
        record.step(Step::Wake);
    }
    record.flags.remove(Flags::AWAITS_INPUT.and(Flags::DATA_DUE));
    Delivery { wakes, drained: record.output.is_empty() }
}

/// Sends what a callback wrote; what the kernel does not take is queued.
#[inline(always)]
fn send_scratch<B: Backend>(
    backend: &mut B,
    stream: Option<&mut B::Stream>,
    record: &mut Record,
    scratch: &mut Vec<u8>,
    now: Instant,
    counters: &Counters,
) {
    let mut taken = 0;
    if record.flags.has(Flags::WRITE_READY)
        && let Some(stream) = stream
    {
        let result = backend.write(stream, scratch);
        taken = note_write::<B>(record, scratch.len(), result, now, counters);
    }
    if taken < scratch.len() {
        record.output.push_copy(&scratch[taken..]);
    }
    scratch.clear();
}

/// What a look at the input says about requests: whether one is arriving, and since when. Returns
/// whether one was served by a handler that does not count them itself.
#[inline(always)]
fn count_request(record: &mut Record, consumed: bool, left: usize, now: Instant) -> bool {
    let awaits = record.flags.take(Flags::AWAITS_INPUT);
    record.flags.set(Flags::RECEIVING, left > 0 || awaits);
    if !consumed || awaits {
        return false;
    }
    if left > 0 {
        record.clocks.restart_request(now);
    }
    if record.flags.has(Flags::COUNTS_REQUESTS) {
        return false;
    }
    record.requests = record.requests.saturating_add(1);
    true
}

#[cold]
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
