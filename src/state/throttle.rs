//! Connections that are read no faster than another one, their sink, is drained.

use super::LoopState;
use crate::core::deadlines::Deadline;
use crate::core::flags::{ColdFlags, Flags};
use crate::core::record::Record;
use crate::id::ConnId;

impl LoopState {
    /// Lets `id` be read no faster than `sink` drains, if both are open.
    pub(crate) fn feed(&mut self, id: ConnId, sink: ConnId) {
        if self.table.at(id.index()).cold_flags.has(ColdFlags::RELAYED) {
            return;
        }
        let was_held = self.table.at(id.index()).is_reading_stopped();
        self.stop_feeding(id);
        let feeds = id != sink && self.table.at(id.index()).state().is_open();
        let congested = match self.table.get_mut(sink) {
            Some(record) if feeds && record.state().is_open() => {
                record.cold_flags.insert(ColdFlags::IS_SINK);
                self.feeders.insert((sink, id));
                Some(record.flags.has(Flags::CONGESTED))
            }
            _ => None,
        };
        let record = self.table.at(id.index());
        if congested.is_some() {
            record.cold_mut().sink = Some(sink);
            record.flags.remove(Flags::PAUSED_BY_OUTPUT);
        }
        record.flags.set(Flags::THROTTLED, congested == Some(true));
        if was_held && !record.is_reading_stopped() {
            record.flags.insert(Flags::DATA_DUE);
        }
    }

    /// Ends what [`LoopState::feed`] began.
    pub(crate) fn stop_feeding(&mut self, id: ConnId) {
        if self.table.at(id.index()).cold().is_some_and(|cold| cold.sink.is_some()) {
            self.leave_sink(id);
        }
    }

    fn leave_sink(&mut self, id: ConnId) {
        let record = self.table.at(id.index());
        record.flags.remove(Flags::THROTTLED);
        let holds =
            record.flags.has(Flags::CONGESTED) && !record.cold_flags.has(ColdFlags::RELAYED);
        record.flags.set(Flags::PAUSED_BY_OUTPUT, holds);
        let Some(sink) = record.cold_mut().sink.take() else { return };
        self.feeders.remove(&(sink, id));
        if self.feeders_of(sink).next().is_none()
            && let Some(record) = self.table.get_mut(sink)
        {
            record.cold_flags.remove(ColdFlags::IS_SINK);
        }
    }

    /// The connections that feed `sink`.
    fn feeders_of(&self, sink: ConnId) -> impl Iterator<Item = ConnId> {
        self.feeders.range((sink, ConnId::FIRST)..=(sink, ConnId::LAST)).map(|(_, feeder)| *feeder)
    }

    /// Does something with each connection that feeds `sink`, and lets its deadlines follow.
    fn each_feeder(&mut self, sink: ConnId, mut change: impl FnMut(&mut Record)) {
        let Self { table, feeders, dirty, .. } = self;
        for (_, feeder) in feeders.range((sink, ConnId::FIRST)..=(sink, ConnId::LAST)) {
            let Some(record) = table.get_mut(*feeder) else { continue };
            change(record);
            if !record.flags.has(Flags::DIRTY) {
                record.flags.insert(Flags::DIRTY);
                dirty.push_back(*feeder);
            }
        }
    }

    pub(super) fn hold_feeders(&mut self, sink: ConnId) {
        self.each_feeder(sink, |record| record.flags.insert(Flags::THROTTLED));
    }

    /// The sink drained or died: those that feed it are read again.
    pub(crate) fn resume_feeders(&mut self, sink: ConnId) {
        self.each_feeder(sink, |record| {
            record.flags.remove(Flags::THROTTLED);
            record.flags.insert(Flags::DATA_DUE);
        });
    }

    /// The sink ends: those that feed it are read again, and held by their own output only.
    fn dismiss_feeders(&mut self, sink: ConnId) {
        self.each_feeder(sink, |record| {
            record.cold_mut().sink = None;
            record.flags.remove(Flags::THROTTLED);
            record.flags.set(Flags::PAUSED_BY_OUTPUT, record.flags.has(Flags::CONGESTED));
            record.flags.insert(Flags::DATA_DUE);
        });
        let gone: Vec<_> = self.feeders_of(sink).map(|feeder| (sink, feeder)).collect();
        for pair in gone {
            self.feeders.remove(&pair);
        }
        if let Some(record) = self.table.get_mut(sink) {
            record.cold_flags.remove(ColdFlags::IS_SINK);
        }
    }

    /// The sink's output moved, so those that feed it do not wait for the application in vain.
    pub(crate) fn touch_feeders(&mut self, sink: ConnId) {
        let Self { table, feeders, now, .. } = self;
        for (_, feeder) in feeders.range((sink, ConnId::FIRST)..=(sink, ConnId::LAST)) {
            if let Some(record) = table.get_mut(*feeder)
                && record.flags.has(Flags::THROTTLED)
            {
                record.clocks.restart(Deadline::Response, *now);
            }
        }
    }

    /// The connection ends: it feeds no other any more, and none feeds it.
    pub(crate) fn end_feeding(&mut self, id: ConnId) {
        self.stop_feeding(id);
        self.dismiss_feeders(id);
    }
}
