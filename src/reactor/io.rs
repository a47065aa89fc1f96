//! Bytes in and out of a stream, each within its budget. "Would block" stops here.

use std::io::{self, ErrorKind, IoSlice};

use super::dispatch::Input;
use super::{READ_BUDGET, Reactor};
use crate::backend::Backend;
use crate::context::Shared;
use crate::core::lifecycle::State;
use crate::core::table::{ConnId, Flags};
use crate::error::CloseReason;
use crate::handler::Handler;

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

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Reads until the socket is drained, the budget is used or the handler wants no more.
    pub(super) fn receive(&mut self, handler: &mut H, id: ConnId) {
        let mut budget = READ_BUDGET;
        while budget > 0 {
            let record = self.shared.table.at(id.index());
            let open = matches!(record.state(), State::Connected | State::Idle);
            if !record.flags.has(Flags::READ_READY)
                || record.flags.has(Flags::EOF)
                || record.is_held()
                || record.asked.is_some()
                || !open
            {
                return;
            }
            if let Read::Drained = self.read_once(handler, id, &mut budget) {
                return;
            }
        }
    }

    /// One read, and the callback for what it brought.
    #[inline]
    fn read_once(&mut self, handler: &mut H, id: ConnId, budget: &mut usize) -> Read {
        let index = id.index();
        let kept = self.inputs[index].len();
        // What is kept never exceeds the limit: at the limit the connection is closed or held.
        let max = (*budget).min(self.shared.bounds.input_max.saturating_sub(kept)).max(1);
        let Some(stream) = self.streams[index].as_mut() else {
            return Read::Drained;
        };
        let (input, buffer) = if kept <= CARRY_MAX {
            self.read_buffer.clear();
            self.read_buffer.reserve(READ_BUDGET + kept);
            self.read_buffer.extend_from_slice(&self.inputs[index]);
            (Input::Loop, &mut self.read_buffer)
        } else {
            self.inputs[index].reserve(max.min(kept));
            (Input::Own, &mut self.inputs[index])
        };
        let room = (buffer.capacity() - buffer.len()).min(max);
        let result = self.backend.read(stream, buffer, room);
        let record = self.shared.table.at(index);
        match result {
            Ok(0) => {
                record.flags.insert(Flags::EOF);
                self.deliver_eof(handler, id);
                Read::Drained
            }
            Ok(count) => {
                *budget -= count;
                let drained =
                    B::SHORT_IO_DRAINS && count < room && !record.flags.has(Flags::HANGUP);
                if drained {
                    record.flags.remove(Flags::READ_READY);
                }
                record.bytes_in += count as u64;
                record.flags.insert(Flags::RECEIVED);
                record.clocks.touch_read(self.shared.now);
                self.shared.counters.bytes_in.add(count as u64);
                self.deliver(handler, id, input, count);
                if drained { Read::Drained } else { Read::More }
            }
            Err(error) => self.handle_read_error(id, error),
        }
    }

    fn handle_read_error(&mut self, id: ConnId, error: io::Error) -> Read {
        let record = self.shared.table.at(id.index());
        match error.kind() {
            ErrorKind::Interrupted => Read::More,
            ErrorKind::WouldBlock => {
                record.flags.remove(Flags::READ_READY.and(Flags::HANGUP));
                Read::Drained
            }
            _ => {
                record.flags.remove(Flags::READ_READY);
                record.ask(reason_of(error));
                Read::Drained
            }
        }
    }

    /// Gives the handler its input, of which `fresh` bytes are new, and keeps what it leaves.
    pub(super) fn deliver(&mut self, handler: &mut H, id: ConnId, input: Input, fresh: usize) {
        self.wake_session(handler, id);
        let record = self.shared.table.at(id.index());
        record.flags.remove(Flags::AWAITS_INPUT.and(Flags::DATA_DUE));
        let before = self.input_len(id, input);
        debug_assert!(before >= fresh && before > 0);
        self.call_with_input(id, input, |conn, session, input| {
            handler.on_data(conn, session, input);
        });
        let left = self.input_len(id, input);
        if let Input::Loop = input {
            self.keep_input(id);
        } else if left == 0 {
            self.inputs[id.index()] = bytes::BytesMut::new();
        }
        self.count_request(id, left < before, left);
    }

    fn input_len(&self, id: ConnId, input: Input) -> usize {
        match input {
            Input::Loop => self.read_buffer.len(),
            Input::Own => self.inputs[id.index()].len(),
        }
    }

    /// Moves what is left in the loop's buffer to the connection, which owns nothing if that is
    /// nothing.
    #[inline]
    fn keep_input(&mut self, id: ConnId) {
        let kept = &mut self.inputs[id.index()];
        if self.read_buffer.is_empty() {
            if kept.capacity() > 0 {
                *kept = bytes::BytesMut::new();
            }
        } else {
            kept.clear();
            kept.extend_from_slice(&self.read_buffer);
            self.read_buffer.clear();
        }
    }

    /// What a look at the input says about requests: whether one is arriving, since when, and
    /// whether the handler lets too much lie.
    #[inline]
    fn count_request(&mut self, id: ConnId, consumed: bool, left: usize) {
        let now = self.shared.now;
        let record = self.shared.table.at(id.index());
        let awaits = record.flags.take(Flags::AWAITS_INPUT);
        record.flags.set(Flags::RECEIVING, left > 0 || awaits);
        if consumed && left > 0 && !awaits {
            record.clocks.restart_request(now);
        }
        if consumed && !record.flags.has(Flags::COUNTS_REQUESTS) && !awaits {
            record.requests = record.requests.saturating_add(1);
            self.shared.counters.requests.add(1);
        }
        let taken_up = record.is_held() || record.flags.has(Flags::DATA_DUE);
        if left >= self.shared.bounds.input_max && !taken_up {
            record.ask(CloseReason::InputLimit);
        }
    }

    fn deliver_eof(&mut self, handler: &mut H, id: ConnId) {
        // An empty buffer for the usual case; it costs no memory.
        self.call_with_input(id, Input::Own, |conn, session, input| {
            handler.on_eof(conn, session, input);
        });
        self.inputs[id.index()] = bytes::BytesMut::new();
        // Whatever was arriving will never be whole.
        self.shared.table.at(id.index()).flags.remove(Flags::RECEIVING);
    }

    /// Sends what the callback in hand wrote; what the kernel does not take is queued.
    #[inline]
    pub(super) fn flush_scratch(&mut self, id: ConnId) {
        if self.shared.scratch.is_empty() {
            return;
        }
        let index = id.index();
        let record = self.shared.table.at(index);
        let mut taken = 0;
        if record.flags.has(Flags::WRITE_READY)
            && let Some(stream) = self.streams[index].as_mut()
        {
            let result = self.backend.write(stream, &self.shared.scratch);
            taken = self.note_write(id, self.shared.scratch.len(), result);
        }
        let Shared { table, scratch, .. } = &mut self.shared;
        if taken < scratch.len() {
            table.at(index).output.push_copy(&scratch[taken..]);
        }
        scratch.clear();
        self.note_drained(id);
    }

    /// Writes queued output until it is gone, the socket is full or the budget is used.
    pub(super) fn flush(&mut self, id: ConnId) {
        let index = id.index();
        let mut budget = WRITE_BUDGET;
        loop {
            let record = self.shared.table.at(index);
            if record.output.is_empty() || !record.flags.has(Flags::WRITE_READY) || budget == 0 {
                break;
            }
            let Some(stream) = self.streams[index].as_mut() else {
                break;
            };
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = record.output.front(&mut slices);
            let asked = slices[..filled].iter().map(|slice| slice.len()).sum();
            let result = self.backend.write_vectored(stream, &slices[..filled]);
            let taken = self.note_write(id, asked, result);
            self.shared.table.at(index).output.consume(taken);
            budget = budget.saturating_sub(taken.max(1));
        }
        self.note_drained(id);
    }

    /// Accounts for one write of `asked` bytes and returns how many the kernel took.
    #[inline]
    fn note_write(&mut self, id: ConnId, asked: usize, result: io::Result<usize>) -> usize {
        let record = self.shared.table.at(id.index());
        match result {
            Ok(taken) => {
                if taken == 0 || (B::SHORT_IO_DRAINS && taken < asked) {
                    record.flags.remove(Flags::WRITE_READY);
                }
                record.bytes_out += taken as u64;
                record.clocks.touch_write(self.shared.now);
                self.shared.counters.bytes_out.add(taken as u64);
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
        while budget > 0 {
            let record = self.shared.table.at(index);
            if !record.flags.has(Flags::READ_READY) || record.flags.has(Flags::EOF) {
                return;
            }
            let Some(stream) = self.streams[index].as_mut() else {
                return;
            };
            self.read_buffer.clear();
            self.read_buffer.reserve(READ_BUDGET);
            let result = self.backend.read(stream, &mut self.read_buffer, READ_BUDGET);
            self.read_buffer.clear();
            match result {
                Ok(0) => record.flags.insert(Flags::EOF),
                Ok(count) => {
                    budget = budget.saturating_sub(count);
                    record.clocks.touch_read(self.shared.now);
                    let short = B::SHORT_IO_DRAINS && count < READ_BUDGET;
                    if short && !record.flags.has(Flags::HANGUP) {
                        record.flags.remove(Flags::READ_READY);
                    }
                }
                Err(error) => {
                    self.handle_read_error(id, error);
                }
            }
        }
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
