//! Pairs of connections between which the reactor passes bytes on.

use super::LoopState;
use super::journal::Entry;
use crate::close::CloseReason;
use crate::core::flags::{ColdFlags, Flags};
use crate::core::record::Record;
use crate::core::relay::{After, Heard, after_end, may_be_relayed};
use crate::id::ConnId;
use crate::planted::{Bug, planted};

/// What a relay changes in the marks of both connections.
const BEFORE_RELAY: [Flags; 5] =
    [Flags::TUNNEL, Flags::PAUSED, Flags::PAUSED_BY_OUTPUT, Flags::THROTTLED, Flags::DATA_DUE];

impl LoopState {
    /// Lets the reactor pass on what it reads from each of the two to the other. Returns whether
    /// that is possible.
    pub(crate) fn relay(&mut self, id: ConnId, other: ConnId) -> bool {
        let other = self.resolve(other);
        let ids = [(id, other), (other, id)];
        let may = |id: ConnId| self.table.get(id).is_some_and(may_be_relayed);
        if id == other || !may(id) || !may(other) {
            return false;
        }
        let before = ids.map(|(id, _)| (id, self.table.at(id.index()).flags));
        self.journal.push(Entry::Relayed(before));
        for (id, other) in ids {
            let record = self.table.at(id.index());
            record.cold_mut().relay = Some(other);
            record.cold_flags.insert(ColdFlags::RELAYED);
            record.flags.remove(Flags::PAUSED.and(Flags::PAUSED_BY_OUTPUT));
            // Input that is left is passed on when the callback has returned.
            record.flags.insert(Flags::TUNNEL.and(Flags::DIVERTED).and(Flags::DATA_DUE));
            self.mark_dirty(id);
        }
        self.counters.relays.add(1);
        true
    }

    /// The callback panicked that asked for it.
    pub(super) fn take_back_relay(&mut self, pair: [(ConnId, Flags); 2]) {
        for (id, before) in pair {
            let Some(record) = self.table.get_mut(id) else { continue };
            record.take_relay();
            for flag in BEFORE_RELAY {
                record.flags.set(flag, before.has(flag));
            }
        }
        self.counters.relays.sub(1);
    }

    /// Output of one side was offered to the kernel: the other is read again once nothing is left.
    pub(crate) fn note_relay_flushed(&mut self, id: ConnId) {
        let record = self.table.at(id.index());
        let moved = record.clocks.written_at() == self.now;
        let drained = !record.has_output();
        if moved {
            self.touch_relay(id);
        }
        let Some(other) = self.relay_of(id) else { return };
        if drained && other.flags.take(Flags::THROTTLED) && !other.flags.has(Flags::QUEUED_READY) {
            other.flags.insert(Flags::QUEUED_READY);
            let id = other.id;
            self.ready.push(id);
        }
    }

    /// Bytes of one side moved, so the other is not silent.
    pub(crate) fn touch_relay(&mut self, id: ConnId) {
        let now = self.now;
        if let Some(other) = self.relay_of(id) {
            other.clocks.touch_read(now);
        }
    }

    /// All that a connection is to get from the other side has been written or queued: the FIN
    /// follows.
    #[cold]
    pub(crate) fn pass_end(&mut self, other: ConnId) {
        if planted(Bug::HalfCloseKept) {
            return;
        }
        let record = self.table.at(other.index());
        record.flags.insert(Flags::SHUTDOWN_WRITE.and(Flags::ACTION_DUE));
        self.mark_dirty(other);
    }

    /// What a connection is relayed with.
    fn relay_of(&mut self, id: ConnId) -> Option<&mut Record> {
        let other = self.table.at(id.index()).relay()?;
        self.table.get_mut(other)
    }

    /// One side ends, for `reason`.
    pub(crate) fn end_relay(&mut self, id: ConnId, reason: CloseReason) {
        let record = self.table.at(id.index());
        let heard = Heard::of(record);
        let Some(other) = record.take_relay() else { return };
        let Some(record) = self.table.get_mut(other) else { return };
        record.take_relay();
        match after_end(reason, record.flags.has(Flags::EOF), heard) {
            After::Finishes => record.flags.insert(Flags::SHUTDOWN_WRITE),
            After::Ends(reason) => record.request_close(reason),
        }
        self.mark_dirty(other);
    }
}
