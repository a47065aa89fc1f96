//! The connections that hold most: found in a walk over all of them, in memory for a few.

use crate::core::record::Record;
use crate::core::table::{Cursor, Table};
use crate::id::ConnId;
use crate::service::greatest::Greatest;

/// As many connections are shown.
pub(super) const SHOWN: usize = 20;

/// What a connection is ranked by: what is queued for it, what it holds besides, and what it has moved.
type Rank = (u64, u64, u64);

/// A walk that keeps the [`SHOWN`] connections that hold most.
#[derive(Debug)]
pub(super) struct Top {
    cursor: Cursor,
    found: Greatest<Rank, ConnId>,
}

impl Default for Top {
    fn default() -> Self {
        Self { cursor: Cursor::default(), found: Greatest::new(SHOWN) }
    }
}

impl Top {
    /// Visits the next places. Returns whether there are no more.
    pub(super) fn walk(&mut self, table: &Table) -> bool {
        for index in table.walk(&mut self.cursor) {
            if let Some(record) = table.id_in(index).and_then(|id| table.get(id)) {
                self.found.note(rank(record), record.id);
            }
        }
        table.is_at_end(self.cursor)
    }

    /// Those that were found, the one that holds most first.
    pub(super) fn ids(&self) -> Vec<ConnId> {
        self.found.sorted().map(|(_, id)| id).collect()
    }
}

fn rank(record: &Record) -> Rank {
    let moved = record.bytes_in.saturating_add(record.bytes_out);
    (record.queued() as u64, record.buffered.into(), moved)
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::prelude::*;

    use super::*;
    use crate::address::Address;
    use crate::core::record::NewConn;
    use crate::id::Origin;
    use crate::time::Instant;

    fn table_of(moved: &[u64]) -> Table {
        let mut table = Table::new(moved.len().max(1));
        for bytes in moved {
            let new_conn = NewConn {
                origin: Origin::Connect,
                peer: Address::Unnamed,
                owner: None,
                exempt: false,
                room_checked: false,
                now: Instant::EPOCH,
            };
            table.insert(new_conn).unwrap().bytes_in = *bytes;
        }
        table
    }

    #[test]
    fn a_walk_over_many_takes_some_steps() {
        let table = table_of(&vec![1; 60_000]);
        let mut top = Top::default();
        let steps = std::iter::repeat_with(|| top.walk(&table)).take_while(|done| !done).count();
        assert_eq!(steps, 60_000 / crate::core::table::PLACES_PER_STEP);
        assert_eq!(top.ids().len(), SHOWN);
    }

    proptest! {
        #[test]
        fn those_that_rank_highest_are_kept(moved in proptest::collection::vec(0_u64..50, 0..200)) {
            let table = table_of(&moved);
            let mut top = Top::default();
            prop_assert!(top.walk(&table));
            let mut all: Vec<_> = table.ids().collect();
            all.sort_by_key(|id| (Reverse(table.get(*id).unwrap().bytes_in), *id));
            all.truncate(SHOWN);
            prop_assert_eq!(top.ids(), all);
        }
    }
}
