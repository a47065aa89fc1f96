//! What callbacks write: bounded, gathered in one place, and accounted for byte by byte.

use bytes::{Bytes, BytesMut};

use super::{LoopState, READ_BUDGET};
use crate::close::CloseReason;
use crate::core::flags::{ColdFlags, Flags};
use crate::core::output::{Output, SpareBuffers};
use crate::core::record::Record;
use crate::core::share::Shared;
use crate::id::ConnId;
use crate::planted::{Bug, planted};

/// How much a callback may write before it moves from the loop's buffer to the connection.
pub(super) const SCRATCH_MAX: usize = 64 * 1024;

impl LoopState {
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

    pub(crate) fn count_dropped(&mut self, id: ConnId, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let cold = self.table.at(id.index()).cold_mut();
        cold.dropped = cold.dropped.wrapping_add(bytes as u64);
        self.counters.unsent.add(bytes as u64);
    }

    /// Bytes written to a connection that the kernel has not taken.
    #[inline]
    pub(crate) fn queued(&self, id: ConnId) -> usize {
        let queued = self.table.get(id).map_or(0, Record::queued);
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

    /// Queues all that is in `buffer`, and empties it.
    #[inline(always)]
    pub(crate) fn write_buf(&mut self, id: ConnId, buffer: &mut BytesMut) {
        if Output::takes_whole(buffer.len()) {
            return self.write_large(id, buffer);
        }
        self.write(id, buffer);
        buffer.clear();
    }

    #[inline(never)]
    fn write_large(&mut self, id: ConnId, buffer: &mut BytesMut) {
        if !self.swap_scratch(id, buffer) {
            self.write(id, buffer);
            buffer.clear();
        }
    }

    /// Lets `buffer` be what the callback has written so far, if that is nothing yet, in exchange for
    /// the buffer of the loop that collects it. Returns whether it does.
    ///
    /// Only the loop's buffer for reads is exchanged, or a part of it: what it takes in memory is
    /// known, and any other may be a small part of much that would be kept with it.
    fn swap_scratch(&mut self, id: ConnId, buffer: &mut BytesMut) -> bool {
        let offset = buffer.as_ptr().addr().wrapping_sub(self.lent_at);
        let record = self.table.at(id.index());
        let swaps = self.lent_at != 0
            && offset < READ_BUDGET
            && self.scratch_owner == Some(id)
            && self.scratch.is_empty()
            && buffer.len() <= self.bounds.easy
            && record.takes_writes();
        if swaps {
            record.flags.insert(Flags::WROTE);
            std::mem::swap(&mut self.scratch, buffer);
        }
        swaps
    }

    #[cold]
    #[inline(never)]
    fn write_queued(&mut self, id: ConnId, bytes: &[u8]) {
        if self.may_write(id, bytes.len()) {
            self.queue(id, |output, spares| output.push_copy(bytes, spares));
        }
    }

    pub(crate) fn write_bytes(&mut self, id: ConnId, bytes: Bytes) {
        if !Output::takes_whole(bytes.len()) {
            self.write(id, &bytes);
        } else if self.may_write(id, bytes.len()) {
            self.queue(id, |output, spares| output.push(bytes, spares));
        }
    }

    pub(crate) fn write_shared(&mut self, id: ConnId, shared: &Shared) {
        if !shared.is_counted_by(&self.shared_bytes) || !Output::takes_whole(shared.len()) {
            self.write_bytes(id, shared.bytes().clone());
        } else if self.may_write(id, shared.len()) {
            self.queue(id, |output, spares| output.push_shared(shared, spares));
        }
    }

    /// Whether a connection takes `len` more bytes; notes it if they make it congested.
    #[inline(never)]
    fn may_write(&mut self, id: ConnId, len: usize) -> bool {
        let too_much = self.buffered() > self.bounds.buffered_all;
        let written = if self.scratch_owner == Some(id) { self.scratch.len() } else { 0 };
        let record = self.table.at(id.index());
        let queued = record.queued() + written;
        let full = queued >= self.bounds.output_max && !planted(Bug::NoOutputLimit);
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
            let feeds = record.cold().is_some_and(|cold| cold.sink.or(cold.relay).is_some());
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
    fn queue(&mut self, id: ConnId, push: impl FnOnce(&mut Output, &mut SpareBuffers)) {
        if self.in_hand == Some(id) && !self.table.at(id.index()).has_output() {
            self.spilled = true;
        }
        if self.scratch_owner == Some(id) {
            let mut scratch = std::mem::take(&mut self.scratch);
            self.change_output(id, |output, spares| output.push_copy(&scratch, spares));
            scratch.clear();
            self.scratch = scratch;
            self.scratch_owner = None;
        }
        self.change_output(id, push);
    }

    /// Changes what is queued for a connection, and accounts for it at once.
    pub(crate) fn change_output(
        &mut self,
        id: ConnId,
        change: impl FnOnce(&mut Output, &mut SpareBuffers),
    ) {
        let record = self.table.at(id.index());
        let before = record.output_held();
        record.change_output(&mut self.spares, change);
        let after = record.output_held();
        let buffered = (record.buffered as usize).saturating_add(after).saturating_sub(before);
        self.set_owned(id, buffered);
    }

    #[cold]
    #[inline(never)]
    pub(super) fn give_up_buffers(&mut self, id: ConnId) {
        if self.table.at(id.index()).has_output() {
            self.change_output(id, |output, _| _ = output.clear());
        }
        self.set_owned(id, 0);
    }

    /// Drops what is queued for a connection.
    #[inline]
    pub(crate) fn clear_output(&mut self, id: ConnId) {
        if self.table.at(id.index()).has_output() {
            self.clear_some_output(id);
        }
    }

    #[cold]
    #[inline(never)]
    fn clear_some_output(&mut self, id: ConnId) {
        let mut dropped = 0;
        self.change_output(id, |output, _| dropped = output.clear());
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
}
