//! What a callback does beyond its own connection, so that it can be taken back if it panics.

use std::collections::BTreeSet;

use super::{LoopState, mark_dirty};
use crate::core::flags::Flags;
use crate::id::{ConnId, WaitId};
use crate::planted::{Bug, planted};

/// Entries of the journal for which its memory is kept from one callback to the next.
pub(super) const JOURNAL_KEPT: usize = 1_024;

/// What a callback that panics has to take back.
#[derive(Debug)]
pub(super) enum Entry {
    /// It reached another connection, which had this much queued then, was congested and paused or not,
    /// owed so many replies, and had served so many requests.
    Reached { id: ConnId, queued: usize, marks: Flags, owed: u32, requests: u64 },
    /// It dialled.
    Dialled(ConnId),
    /// It asked a pool for a connection.
    Waits(WaitId),
    /// It let two connections be relayed, which had these marks.
    Relayed([(ConnId, Flags); 2]),
}

impl LoopState {
    /// Notes that the running callback reached `id`: it is settled later in the turn, and if the
    /// callback panics what this writes to it from here on is taken back.
    pub(crate) fn touch(&mut self, id: ConnId) {
        if self.in_hand == Some(id) {
            return;
        }
        if self.journal.len() >= self.journal_full {
            self.compact_journal();
        }
        let record = self.table.at(id.index());
        // A new lease is settled right behind the callback that gets it.
        if self.scratch_owner != Some(id) {
            mark_dirty(record, &mut self.dirty);
        }
        let (queued, marks) = (record.queued(), record.flags);
        let (owed, requests) = (record.owed(), record.requests);
        self.journal.push(Entry::Reached { id, queued, marks, owed, requests });
    }

    /// From here on a callback runs that may have to be rolled back.
    #[inline]
    pub(crate) fn begin_journal(&mut self) {
        if !self.journal.is_empty() {
            self.clear_journal();
        }
    }

    fn clear_journal(&mut self) {
        self.journal.clear();
        self.journal.shrink_to(JOURNAL_KEPT);
        self.journal_full = JOURNAL_KEPT;
    }

    /// Forgets how often connections were reached: what counts is how each was at first. So the
    /// journal is bounded by how many connections there are, and not by how often one is reached.
    #[cold]
    fn compact_journal(&mut self) {
        let mut reached = BTreeSet::new();
        self.journal.retain(|entry| match entry {
            Entry::Reached { id, .. } => reached.insert(*id),
            Entry::Dialled(_) | Entry::Waits(_) | Entry::Relayed(_) => true,
        });
        self.journal_full = JOURNAL_KEPT.max(2 * self.journal.len());
    }

    /// Takes back what the callback that ran wrote, to its own connection and to others, which
    /// requests of others it began and ended, what it dialled and what it waits for.
    pub(crate) fn roll_back(&mut self) {
        let scratch = self.scratch.len();
        self.scratch.clear();
        if let Some(id) = self.scratch_owner {
            self.count_dropped(id, scratch);
        }
        if let Some(asked) = self.take_asked() {
            self.pools.get(asked.id.pool()).policy.note_cancelled();
        }
        while let Some(entry) = self.journal.pop() {
            match entry {
                Entry::Reached { id, queued, marks, owed, requests } => {
                    let Some(record) = self.table.get_mut(id) else { continue };
                    // Without its reply a request has not ended, and the next one is not read.
                    record.set_owed(owed);
                    record.flags.set(Flags::PAUSED, marks.has(Flags::PAUSED));
                    if !marks.has(Flags::DATA_DUE) && marks.has(Flags::PAUSED) {
                        record.flags.remove(Flags::DATA_DUE);
                    }
                    let ended = record.requests.saturating_sub(requests);
                    record.requests = requests;
                    self.counters.requests.sub(ended);
                    let lost = record.queued().saturating_sub(queued);
                    if lost > 0 {
                        self.change_output(id, |output, _| output.truncate(queued));
                        self.count_dropped(id, lost);
                    }
                    if !marks.has(Flags::CONGESTED) && !planted(Bug::CongestedForEver) {
                        self.end_congestion(id);
                    }
                }
                Entry::Dialled(id) => {
                    // The latest come first here, and are the last there.
                    if self.pending_dials.last() == Some(&id) {
                        self.pending_dials.pop();
                    } else {
                        self.pending_dials.retain(|new_conn| *new_conn != id);
                    }
                    self.remove(id);
                }
                Entry::Waits(wait) => _ = self.cancel_wait(wait),
                Entry::Relayed(pair) => self.take_back_relay(pair),
            }
        }
    }
}
