//! Passes on what is read from one connection to another, as its handler asked for by
//! [`Conn::relay_with`](crate::Conn::relay_with).
//!
//! What was read into the loop's buffer is written from there to the other socket. Only what that
//! does not take is copied, into its output queue; and while anything is queued there, nothing more
//! is read here. So each direction holds at most what one read brought, and what its handler wrote.
//! Input that is left in the socket for that is read when the queue is empty: no event announces it
//! again.

use bytes::BytesMut;

use super::io::{handle_read_error, note_write, say_read};
use super::read_buffer::rewind;
use super::{READ_BUDGET, Reactor};
use crate::backend::Backend;
use crate::core::flags::{ColdFlags, Flags};
use crate::handler::Handler;
use crate::id::ConnId;
use crate::planted::{Bug, planted};
use crate::probe;
use crate::state::LoopState;

/// Whatever is ready, a relayed connection is not to be read now.
const NOT_READ: Flags = Flags::READING_STOPPED.and(Flags::EOF).and(Flags::ACTION_DUE);

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// [`Reactor::serve`] for a relayed connection that is open.
    pub(super) fn serve_relayed(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if record.has_output() {
            self.flush(id);
        }
        if self.shared.table.at(id.index()).flags.has(Flags::CALLBACK_DUE) {
            self.pass_kept(id);
        }
        self.relay_from(id);
        self.settle(handler, id);
    }

    /// A relay begins, or its handler asked for a callback that no relayed connection has: passes on
    /// what was read before, and the FIN if that was read.
    #[cold]
    pub(super) fn pass_kept(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        record.flags.remove(Flags::CALLBACK_DUE.and(Flags::RECEIVING));
        if record.flags.has(Flags::INPUT_AWAITED) {
            record.await_nothing();
        }
        let (eof, relay) = (record.flags.has(Flags::EOF), record.relay());
        self.shared.stop_feeding(id);
        let Some(other) = relay else { return };
        let kept = std::mem::take(&mut self.slots[id.index()].input);
        if !kept.is_empty() {
            self.account(id);
            let sink = self.shared.table.at(other.index());
            if sink.takes_writes() {
                sink.flags.insert(Flags::WROTE);
                self.shared
                    .change_output(other, |output, spares| output.push(kept.freeze(), spares));
                self.flush(other);
                self.account(other);
            } else {
                self.shared.count_dropped(other, kept.len());
            }
        }
        if eof {
            self.shared.pass_end(other);
        }
        self.shared.mark_dirty(other);
    }

    /// Reads a relayed connection until its socket is drained, the budget is used, or the other one
    /// takes no more.
    pub(super) fn relay_from(&mut self, id: ConnId) {
        let Self { backend, slots, shared, read_buffer, logs, .. } = self;
        let mut budget = READ_BUDGET;
        while budget > 0 {
            let record = shared.table.at(id.index());
            if !record.flags.has(Flags::READ_READY) || record.flags.has(NOT_READ) {
                break;
            }
            let Some(other) = record.relay() else { break };
            let sink = shared.table.at(other.index());
            let (blocked, dead) = (sink.has_output(), sink.flags.has(Flags::CLOSE_REQUESTED));
            let record = shared.table.at(id.index());
            if (blocked && !planted(Bug::RelayNotHeld)) || dead {
                record.flags.insert(Flags::THROTTLED);
                break;
            }
            let Some(stream) = &mut slots[id.index()].stream else { break };
            rewind(read_buffer);
            let room = budget;
            let read = backend.read(stream, read_buffer, room);
            probe::read(id, room, &read);
            match read {
                Ok(0) => {
                    record.flags.insert(Flags::EOF);
                    // After a failed write that may be no FIN: the error was read with the write.
                    if !record.cold_flags.has(ColdFlags::BROKEN) {
                        shared.pass_end(other);
                    }
                }
                Ok(count) => {
                    budget -= count;
                    if backend.short_io_drains() && count < room && !record.flags.has(Flags::HANGUP)
                    {
                        record.flags.remove(Flags::READ_READY);
                    }
                    if *logs {
                        say_read(id, count);
                    }
                    record.flags.insert(Flags::RECEIVED);
                    record.bytes_in = record.bytes_in.wrapping_add(count as u64);
                    record.clocks.touch_read(shared.now);
                    shared.counters.bytes_in.add(count as u64);
                    // The FIN comes next, and goes along.
                    let more = record.flags.has(Flags::HANGUP)
                        && count < room
                        && !record.cold_flags.has(ColdFlags::BROKEN);
                    let stream = &mut slots[other.index()].stream;
                    pass_on(backend, shared, other, stream, read_buffer, (more, *logs));
                }
                Err(error) => {
                    // An error that repeats uses up the budget too.
                    budget -= 1;
                    handle_read_error(record, &error);
                }
            }
        }
        self.read_buffer.clear();
    }
}

/// Writes what was read to the other connection, and queues what its socket does not take. The last
/// argument says whether more follows at once, and whether the write is logged.
#[inline]
fn pass_on<B: Backend>(
    backend: &mut B,
    shared: &mut LoopState,
    other: ConnId,
    stream: &mut Option<B::Stream>,
    bytes: &BytesMut,
    (more, log): (bool, bool),
) {
    let LoopState { table, now, counters, .. } = shared;
    let sink = table.at(other.index());
    if !sink.takes_writes() {
        // Its handler ended this direction.
        return shared.count_dropped(other, bytes.len());
    }
    sink.flags.insert(Flags::WROTE);
    let mut taken = 0;
    if sink.flags.has(Flags::WRITE_READY)
        && !sink.has_output()
        && let Some(stream) = stream
    {
        let result =
            if more { backend.write_more(stream, bytes) } else { backend.write(stream, bytes) };
        taken = note_write(backend, sink, bytes.len(), result, *now, counters, log);
    }
    if taken < bytes.len() {
        queue_rest(shared, other, &bytes[taken..]);
    }
}

#[cold]
#[inline(never)]
fn queue_rest(shared: &mut LoopState, other: ConnId, rest: &[u8]) {
    let now = shared.now;
    shared.table.at(other.index()).clocks.touch_read(now);
    if !planted(Bug::RelayedRestLost) {
        shared.change_output(other, |output, spares| output.push_copy(rest, spares));
    }
    shared.mark_dirty(other);
}
