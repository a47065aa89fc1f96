//! The places of connections, over a slab.

use std::ops::Range;

use slab::Slab;

use crate::core::record::{NewConn, Record};
use crate::id::{ConnId, PLACES_MAX};

/// The most connections a table can hold beside the exempt ones.
pub(crate) const CAPACITY_MAX: usize = PLACES_MAX - EXEMPT_MAX;

/// The records of all connections, at most `capacity` and some [exempt](EXEMPT_MAX) ones.
///
/// The slab says which places are filled. The records lie beside it and outlive their connections,
/// each in its place: one is written once, not moved in and out, and a free one already has the id
/// of the next connection there, which is not known outside.
#[derive(Debug)]
pub(crate) struct Table {
    places: Slab<()>,
    records: Vec<Record>,
    capacity: usize,
    /// How many are exempt.
    exempt: usize,
    /// How many are inbound and not exempt.
    inbound: usize,
    /// How many places were visited by walks.
    #[cfg(test)]
    pub(crate) visited: std::cell::Cell<usize>,
}

/// Places of a table that one step of a walk visits: a walk over all connections takes as many turns
/// as it needs, because one over a million takes 50 ms.
pub(crate) const PLACES_PER_STEP: usize = 4_096;

/// How far a walk over a table has come that takes several steps.
///
/// A connection keeps its place, so a walk from the first place to the last visits each connection
/// that is there all the while exactly once, whatever comes and goes meanwhile.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Cursor(usize);

impl Cursor {
    /// Whether the walk has visited the place.
    pub(crate) const fn is_past(self, index: usize) -> bool {
        index < self.0
    }

    /// Lets the walk go on right behind the place.
    pub(crate) const fn stop_behind(&mut self, index: usize) {
        self.0 = index + 1;
    }
}

/// The most address space that a column takes before there is something in it.
const COLUMN_RESERVED_MAX: usize = 256 << 20;

/// A column with room for a whole table, where the system grants as much address space. It never
/// moves then: no turn takes the time to copy it, and no smaller copies of it are left in the heap.
/// Memory becomes resident as places are filled for the first time.
pub(crate) fn column<T>(capacity: usize) -> Vec<T> {
    let mut column = Vec::new();
    let places = (capacity + EXEMPT_MAX).min(COLUMN_RESERVED_MAX / size_of::<T>().max(1));
    // Without the room it grows as vectors do.
    let _ = column.try_reserve_exact(places);
    column
}

/// The most connections that are exempt from the limits on connections: an operator and a few
/// collectors, out of the reserve of descriptors.
pub(crate) const EXEMPT_MAX: usize = 16;

impl Table {
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity + EXEMPT_MAX <= PLACES_MAX, "an index fits in 24 bits");
        Self {
            places: Slab::new(),
            records: column(capacity),
            capacity,
            exempt: 0,
            inbound: 0,
            #[cfg(test)]
            visited: std::cell::Cell::default(),
        }
    }

    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// How many count against the capacity.
    #[inline]
    pub(crate) fn counted(&self) -> usize {
        self.places.len() - self.exempt
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.counted() >= self.capacity
    }

    /// How many inbound connections count against the capacity.
    #[inline]
    pub(crate) const fn inbound(&self) -> usize {
        self.inbound
    }

    /// Whether there is no room even for one that is exempt.
    pub(crate) const fn is_full_for_exempt(&self) -> bool {
        self.exempt >= EXEMPT_MAX
    }

    /// Whether a check may have one of the places that are kept for an operator: it leaves half of them.
    pub(crate) const fn has_room_for_check(&self) -> bool {
        self.exempt < EXEMPT_MAX / 2
    }

    /// Adds a record, or gives `new_conn` back when the table is full. Inlined, it is written once:
    /// into its record.
    #[inline(always)]
    pub(crate) fn insert(&mut self, new_conn: NewConn) -> Result<&mut Record, NewConn> {
        if !new_conn.room_checked && self.lacks_room(new_conn.exempt) {
            return Err(new_conn);
        }
        self.exempt += usize::from(new_conn.exempt);
        self.inbound += usize::from(new_conn.origin.is_inbound() && !new_conn.exempt);
        let index = self.places.insert(());
        if index == self.records.len() {
            self.grow();
        }
        let record = &mut self.records[index];
        record.fill(new_conn);
        Ok(record)
    }

    fn lacks_room(&self, exempt: bool) -> bool {
        if exempt { self.is_full_for_exempt() } else { self.is_full() }
    }

    /// Makes a record for a place behind all others.
    #[cold]
    fn grow(&mut self) {
        let place = self.records.len() as u32;
        self.records.push(Record::vacant(ConnId::new(place, 1)));
    }

    /// The record of `id`, unless that connection is gone.
    #[inline]
    pub(crate) fn get(&self, id: ConnId) -> Option<&Record> {
        self.records.get(id.index()).filter(|record| record.id == id)
    }

    /// The record of `id`, unless that connection is gone.
    #[inline]
    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Record> {
        self.records.get_mut(id.index()).filter(|record| record.id == id)
    }

    /// The record in a place that is known to be filled.
    ///
    /// # Panics
    ///
    /// In debug builds, if it is not; in all, if there is no such place.
    #[inline]
    pub(crate) fn at(&mut self, index: usize) -> &mut Record {
        debug_assert!(self.places.contains(index), "place {index} is free");
        &mut self.records[index]
    }

    /// Frees the place of `id`; it may be filled again, under another id.
    #[inline(always)]
    pub(crate) fn remove(&mut self, id: ConnId) {
        let record = &mut self.records[id.index()];
        if record.id != id {
            return;
        }
        self.exempt -= usize::from(record.is_exempt());
        self.inbound -= usize::from(record.is_limited());
        record.vacate();
        self.places.remove(id.index());
    }

    /// The next step of a walk over all places: at most [`PLACES_PER_STEP`] of them.
    pub(crate) fn walk(&self, cursor: &mut Cursor) -> Range<usize> {
        let from = cursor.0.min(self.records.len());
        cursor.0 = (from + PLACES_PER_STEP).min(self.records.len());
        #[cfg(test)]
        self.visited.set(self.visited.get() + cursor.0 - from);
        from..cursor.0
    }

    /// Whether a walk has come to the end.
    pub(crate) const fn is_at_end(&self, cursor: Cursor) -> bool {
        cursor.0 >= self.records.len()
    }

    /// How many places a walk visits.
    pub(crate) const fn place_count(&self) -> usize {
        self.records.len()
    }

    /// The connection in a place, if there is one.
    #[inline]
    pub(crate) fn id_in(&self, index: usize) -> Option<ConnId> {
        self.places.contains(index).then(|| self.records[index].id)
    }

    /// The id of the connection in a place, or of the next one there.
    #[cfg(feature = "sim")]
    pub(crate) fn id_of_place(&self, index: usize) -> ConnId {
        self.records[index].id
    }

    /// All ids, in the order of their places. Where there may be many, no turn of the loop takes the
    /// time for that: it [walks](Table::walk) in steps.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ConnId> {
        #[cfg(test)]
        self.visited.set(self.visited.get() + self.records.len());
        self.places.iter().map(|(index, ())| self.records[index].id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::close::CloseReason;
    use crate::id::{GENERATION_MAX, ListenerId, Origin};
    use crate::time::Instant;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn new_conn() -> NewConn {
        NewConn {
            origin: Origin::Connect,
            peer: Address::Unnamed,
            owner: None,
            exempt: false,
            room_checked: false,
            now: Instant::EPOCH,
        }
    }

    #[test]
    fn a_full_table_gives_the_new_connection_back() {
        let mut table = Table::new(1);
        table.insert(new_conn()).unwrap();
        assert!(table.insert(new_conn()).is_err());
    }

    #[test]
    fn a_walk_visits_each_connection_that_is_there_all_the_while() {
        let mut table = Table::new(20_000);
        let ids: Vec<_> = (0..10_000).map(|_| table.insert(new_conn()).unwrap().id).collect();
        let (mut cursor, mut seen, mut steps) = (Cursor::default(), Vec::new(), 0);
        loop {
            let range = table.walk(&mut cursor);
            assert!(range.len() <= PLACES_PER_STEP);
            seen.extend(range.filter_map(|index| table.id_in(index)));
            if table.is_at_end(cursor) {
                break;
            }
            // Meanwhile some before and after the cursor go, and others come.
            for index in [steps * 10, 9_990 - steps * 10] {
                table.remove(ids[index]);
                table.insert(new_conn()).unwrap();
                table.insert(new_conn()).unwrap();
            }
            steps += 1;
        }
        assert_eq!(steps, 2);
        let stayed = |id: &&ConnId| table.get(**id).is_some();
        for id in ids.iter().filter(stayed) {
            assert_eq!(seen.iter().filter(|it| *it == id).count(), 1);
        }
    }

    #[test]
    fn inbound_connections_are_counted_unless_they_are_exempt() {
        let mut table = Table::new(8);
        let origin = Origin::Accepted(ListenerId(0));
        let inbound = table.insert(NewConn { origin, ..new_conn() }).unwrap().id;
        let exempt = table.insert(NewConn { origin, exempt: true, ..new_conn() }).unwrap().id;
        let dialled = table.insert(new_conn()).unwrap().id;
        assert_eq!((table.inbound(), table.counted()), (1, 2));
        table.remove(dialled);
        table.remove(exempt);
        assert_eq!((table.inbound(), table.counted()), (1, 1));
        table.remove(inbound);
        assert_eq!((table.inbound(), table.counted()), (0, 0));
    }

    #[test]
    fn generations_wrap_before_the_reserved_one() {
        let mut table = Table::new(1);
        let id = table.insert(new_conn()).unwrap().id;
        table.remove(id);
        table.records[0].id = ConnId::new(0, GENERATION_MAX - 1);
        let id = table.insert(new_conn()).unwrap().id;
        table.remove(id);
        assert_eq!(table.insert(new_conn()).unwrap().id.generation(), 1);
    }

    #[test]
    fn abort_overrides_close_and_nothing_overrides_abort() {
        let mut table = Table::new(1);
        let record = table.insert(new_conn()).unwrap();
        record.request_close(CloseReason::HandlerClose);
        record.request_close(CloseReason::HandlerAbort);
        assert_eq!(record.requested(), Some(CloseReason::HandlerAbort));
        record.request_close(CloseReason::OutputLimit);
        record.request_close(CloseReason::HandlerClose);
        assert_eq!(record.requested(), Some(CloseReason::HandlerAbort));
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(ops in proptest::collection::vec(any::<(bool, u8)>(), 0..300)) {
            let mut table = Table::new(20);
            let mut model: BTreeMap<ConnId, u64> = BTreeMap::new();
            let mut dead = Vec::new();
            for (step, (add, pick)) in ops.into_iter().enumerate() {
                if add {
                    match table.insert(new_conn()) {
                        Ok(record) => {
                            record.bytes_in = step as u64;
                            prop_assert_eq!(model.insert(record.id, step as u64), None);
                        }
                        Err(_) => prop_assert_eq!(model.len(), 20),
                    }
                } else if let Some(id) = model.keys().nth(pick as usize % 20).copied() {
                    table.remove(id);
                    model.remove(&id);
                    dead.push(id);
                }
                prop_assert_eq!(table.len(), model.len());
                for (id, value) in &model {
                    prop_assert_eq!(table.get(*id).unwrap().bytes_in, *value);
                }
                for id in &dead {
                    prop_assert!(table.get(*id).is_none() && table.get_mut(*id).is_none());
                }
            }
        }
    }
}
