//! A hashed timing wheel: one deadline per key, O(1) insert and cancel, no allocation per entry.
//!
//! Scheme 6 of Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987), with three
//! changes. Entries are linked through a column indexed by key, so an entry is unlinked without a
//! search. What lies beyond one revolution waits in the last slot and is placed again when that
//! comes up, so a slot never mixes revolutions, the occupancy bitmap is exact, and the next wake-up
//! is the next set bit. And moving a deadline later costs nothing: the owner leaves the entry where
//! it is and schedules it again when it comes up early (libev's manual calls this the third way of
//! being smart about timeouts).

use std::time::Duration;

/// The wheel's resolution.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Slots in one revolution: with ticks of 10 ms, 82 s, more than all common deadlines.
const SLOTS: usize = 8_192;
const WORDS: usize = SLOTS / 64;
const _: () = assert!(WORDS == u128::BITS as usize);

/// In `Entry::prev`, the mark of an entry that is in no list.
const NIL: u32 = u32::MAX;

/// What a deadline belongs to. Connections and the loop's own timers are two ranges of numbers,
/// each dense, because the entries lie in one column per range.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Key {
    /// A connection, by its place in the table.
    Conn(u32),
    /// A timer of the loop, by its index among the alarms.
    Alarm(u32),
}

/// Keys fit in 30 bits; the 32nd bit of a link tells the columns apart.
const ALARM_BIT: u32 = 1 << 31;
const KEY_MAX: u32 = (1 << 30) - 1;

impl Key {
    const fn pack(self) -> u32 {
        match self {
            Self::Conn(index) => index + SLOTS as u32,
            Self::Alarm(index) => index | ALARM_BIT,
        }
    }

    const fn unpack(packed: u32) -> Self {
        if packed & ALARM_BIT == 0 {
            Self::Conn(packed - SLOTS as u32)
        } else {
            Self::Alarm(packed & !ALARM_BIT)
        }
    }
}

/// An entry in the ring of its slot. The ring's anchor is an entry itself, so that links are
/// written without asking whether there is a neighbour: for lists of a few entries such questions
/// are a toss-up, and a wrong guess of the processor's costs more than the rest.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// When it is due; meaningless while vacant.
    tick: u64,
    prev: u32,
    next: u32,
}

impl Entry {
    const VACANT: Self = Self { tick: 0, prev: NIL, next: NIL };

    const fn is_vacant(&self) -> bool {
        self.prev == NIL
    }
}

const _: () = assert!(size_of::<Entry>() == 16, "four entries share a cache line");

/// The wheel. Ticks only grow; those before `cursor` have been served.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// The anchors of the slots, then the entries of connections.
    conns: Vec<Entry>,
    alarms: Vec<Entry>,
    /// One bit per slot that holds an entry.
    occupied: Box<[u64; WORDS]>,
    /// One bit per word of `occupied` that is not zero.
    summary: u128,
    /// The first tick not yet served. Every entry's slot stands for a tick in
    /// `cursor .. cursor + SLOTS`.
    cursor: u64,
    /// The tick of the first occupied slot; in an empty wheel, the last of all.
    next: u64,
    /// How many entries have been put into slots.
    #[cfg(test)]
    pub(crate) links: u64,
}

impl Wheel {
    pub(crate) fn new() -> Self {
        Self {
            conns: (0..SLOTS as u32)
                .map(|slot| Entry { tick: 0, prev: slot, next: slot })
                .collect(),
            alarms: Vec::new(),
            occupied: Box::new([0; WORDS]),
            summary: 0,
            cursor: 0,
            next: u64::MAX,
            #[cfg(test)]
            links: 0,
        }
    }

    /// Makes `key` due at `tick`, whatever it was due at before. A tick already served is due at
    /// the next visit. Inlined, it asks nothing of a key whose kind is known.
    #[inline(always)]
    pub(crate) fn schedule(&mut self, key: Key, tick: u64) {
        self.make_room(key);
        let packed = key.pack();
        if !self.entry(packed).is_vacant() {
            self.unlink(packed);
        }
        self.link(packed, tick);
    }

    /// Makes `key` due at `tick`, unless it is due before.
    #[inline(always)]
    pub(crate) fn schedule_by(&mut self, key: Key, tick: u64) {
        self.make_room(key);
        let packed = key.pack();
        let entry = self.entry(packed);
        if !entry.is_vacant() {
            if entry.tick <= tick {
                return;
            }
            self.unlink(packed);
        }
        self.link(packed, tick);
    }

    /// Takes `key` out, if it is in.
    #[inline]
    pub(crate) fn cancel(&mut self, key: Key) {
        if self.tick_of(key).is_some() {
            self.unlink(key.pack());
        }
    }

    /// Takes `key` out if it is due more than a revolution from now on: it would be visited once in
    /// each revolution until then.
    #[inline]
    pub(crate) fn cancel_far(&mut self, key: Key) {
        let far = self.cursor.saturating_add(SLOTS as u64);
        if self.tick_of(key).is_some_and(|tick| tick >= far) {
            self.unlink(key.pack());
        }
    }

    /// When `key` comes up, if it is in.
    #[inline]
    pub(crate) fn tick_of(&self, key: Key) -> Option<u64> {
        let entry = match key {
            Key::Conn(index) => self.conns.get(index as usize + SLOTS),
            Key::Alarm(index) => self.alarms.get(index as usize),
        }?;
        (!entry.is_vacant()).then_some(entry.tick)
    }

    /// The tick at which [`Wheel::expire`] next has an entry to visit: never later than the
    /// earliest entry, earlier only when that is more than a revolution away.
    #[inline]
    pub(crate) fn next_tick(&self) -> Option<u64> {
        match self.next {
            u64::MAX if self.summary == 0 => None,
            next => Some(next),
        }
    }

    /// Takes out the next key due at or before `now`, or `None` when there is none or `budget`
    /// entries have been visited.
    ///
    /// `budget` goes down by one for every entry visited, those placed again included, so that a
    /// million timers on one tick are served in bounded pieces.
    #[inline]
    pub(crate) fn expire(&mut self, now: u64, budget: &mut usize) -> Option<Key> {
        if now.saturating_sub(self.cursor) >= SLOTS as u64 {
            // A revolution or more has passed unseen, so every slot is due: one walk around shows
            // them all, however long it was.
            self.cursor = now - (SLOTS as u64 - 1);
            self.find_next();
        }
        while *budget > 0 {
            let Some(tick) = self.next_tick().filter(|tick| *tick <= now) else {
                // Nothing lies between: what is scheduled from here on may be placed up to a
                // revolution after `now`.
                self.cursor = self.cursor.max(now);
                return None;
            };
            self.cursor = tick;
            // From both ends in turn: while one is served the processor fetches the neighbour of
            // the other, which has not been touched since it was linked.
            let Entry { prev, next, .. } = self.conns[slot_of(tick)];
            let packed = if budget.is_multiple_of(2) { next } else { prev };
            self.unlink(packed);
            *budget -= 1;
            let due = self.entry(packed).tick;
            if due <= tick {
                return Some(Key::unpack(packed));
            }
            // It lies further ahead than the window reached when it was placed.
            self.link(packed, due);
        }
        None
    }

    /// How many keys are in.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let in_column = |column: &[Entry]| column.iter().filter(|entry| !entry.is_vacant()).count();
        in_column(&self.conns[SLOTS..]) + in_column(&self.alarms)
    }

    /// Finds the first occupied slot again.
    fn find_next(&mut self) {
        self.next = if self.summary == 0 {
            u64::MAX
        } else {
            let start = slot_of(self.cursor);
            let ahead = (self.next_occupied(start) + SLOTS - start) % SLOTS;
            self.cursor.saturating_add(ahead as u64)
        };
    }

    /// The first occupied slot from `start` on, around the end. One must be occupied.
    fn next_occupied(&self, start: usize) -> usize {
        let word = start / 64;
        let here = self.occupied[word] & (u64::MAX << (start % 64));
        if here != 0 {
            return word * 64 + here.trailing_zeros() as usize;
        }
        debug_assert!(self.summary != 0);
        let beyond = self.summary & u128::MAX.checked_shl(word as u32 + 1).unwrap_or(0);
        let word = if beyond != 0 { beyond } else { self.summary }.trailing_zeros() as usize;
        word * 64 + self.occupied[word].trailing_zeros() as usize
    }

    #[inline]
    fn make_room(&mut self, key: Key) {
        let (column, index) = match key {
            Key::Conn(index) => (&mut self.conns, index as usize + SLOTS),
            Key::Alarm(index) => (&mut self.alarms, index as usize),
        };
        if index >= column.len() {
            grow(column, index);
        }
    }

    #[inline]
    fn entry(&self, packed: u32) -> &Entry {
        if packed & ALARM_BIT == 0 {
            &self.conns[packed as usize]
        } else {
            &self.alarms[(packed & !ALARM_BIT) as usize]
        }
    }

    #[inline]
    fn entry_mut(&mut self, packed: u32) -> &mut Entry {
        if packed & ALARM_BIT == 0 {
            &mut self.conns[packed as usize]
        } else {
            &mut self.alarms[(packed & !ALARM_BIT) as usize]
        }
    }

    /// Puts an entry into the slot of its tick, or into the last one of the window.
    #[inline]
    fn link(&mut self, packed: u32, due: u64) {
        #[cfg(test)]
        {
            self.links += 1;
        }
        let last = self.cursor.saturating_add(SLOTS as u64 - 1);
        let tick = due.clamp(self.cursor, last);
        let slot = slot_of(tick);
        let first = std::mem::replace(&mut self.conns[slot].next, packed);
        *self.entry_mut(packed) = Entry { tick: due, prev: slot as u32, next: first };
        self.entry_mut(first).prev = packed;
        let word = &mut self.occupied[slot / 64];
        if *word == 0 {
            self.summary |= 1 << (slot / 64);
        }
        *word |= 1 << (slot % 64);
        if tick < self.next {
            self.next = tick;
        }
    }

    #[inline]
    fn unlink(&mut self, packed: u32) {
        let entry = self.entry_mut(packed);
        let Entry { prev, next, .. } = *entry;
        debug_assert!(!entry.is_vacant());
        entry.prev = NIL;
        self.entry_mut(prev).next = next;
        self.entry_mut(next).prev = prev;
        if prev == next {
            // Only an anchor is both neighbours of an entry.
            self.vacate(prev as usize);
        }
    }

    /// The last entry of a slot is gone.
    #[inline(never)]
    fn vacate(&mut self, slot: usize) {
        self.occupied[slot / 64] &= !(1 << (slot % 64));
        if self.occupied[slot / 64] == 0 {
            self.summary &= !(1 << (slot / 64));
        }
        if slot == slot_of(self.next) {
            self.find_next();
        }
    }
}

#[cold]
fn grow(column: &mut Vec<Entry>, index: usize) {
    assert!(index <= KEY_MAX as usize, "a key fits in 30 bits");
    column.resize(index + 1, Entry::VACANT);
}

const fn slot_of(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn expired(wheel: &mut Wheel, now: u64) -> Vec<Key> {
        let mut budget = usize::MAX;
        let mut keys: Vec<_> = std::iter::from_fn(|| wheel.expire(now, &mut budget)).collect();
        keys.sort();
        keys
    }

    #[test]
    fn an_empty_wheel_never_comes_up() {
        let mut wheel = Wheel::new();
        assert_eq!(wheel.next_tick(), None);
        assert_eq!(expired(&mut wheel, u64::MAX), []);
    }

    #[test]
    fn a_key_expires_at_its_tick_and_not_before_at_every_edge() {
        let slots = SLOTS as u64;
        for start in [0, 1, 63, 64, slots - 1, slots, 3 * slots + 17] {
            for ahead in [0, 1, 63, 64, 65, 4_095, 4_096, slots - 1, slots, slots + 1, 5 * slots] {
                let mut wheel = Wheel::new();
                expired(&mut wheel, start);
                let due = start + ahead;
                wheel.schedule(Key::Conn(3), due);
                if ahead > 0 {
                    assert_eq!(expired(&mut wheel, due - 1), [], "{start} {ahead}");
                }
                assert!(wheel.next_tick() <= Some(due));
                assert_eq!(expired(&mut wheel, due), [Key::Conn(3)], "{start} {ahead}");
                assert_eq!(wheel.len(), 0);
            }
        }
    }

    #[test]
    fn the_next_wake_up_is_exact_within_a_revolution() {
        for start in [0, 100, 8_190, 50_000] {
            let mut wheel = Wheel::new();
            expired(&mut wheel, start);
            for ahead in [8_191, 4_096, 65, 64, 63, 1] {
                wheel.schedule(Key::Conn(ahead as u32), start + ahead);
                assert_eq!(wheel.next_tick(), Some(start + ahead));
            }
        }
    }

    #[test]
    fn a_tick_of_the_past_is_due_at_the_next_look() {
        let mut wheel = Wheel::new();
        expired(&mut wheel, 1_000);
        wheel.schedule(Key::Alarm(0), 3);
        assert_eq!(wheel.next_tick(), Some(1_000));
        assert_eq!(expired(&mut wheel, 1_000), [Key::Alarm(0)]);
    }

    #[test]
    fn never_is_never_and_the_end_of_time_is_no_panic() {
        let mut wheel = Wheel::new();
        wheel.schedule(Key::Conn(0), u64::MAX);
        assert_eq!(expired(&mut wheel, u64::MAX - 1), []);
        assert_eq!(expired(&mut wheel, u64::MAX), [Key::Conn(0)]);
        wheel.schedule(Key::Conn(0), u64::MAX);
        assert_eq!(wheel.next_tick(), Some(u64::MAX));
        assert_eq!(expired(&mut wheel, u64::MAX), [Key::Conn(0)]);
    }

    #[test]
    fn the_budget_counts_entries_placed_again() {
        let mut wheel = Wheel::new();
        for index in 0..10 {
            wheel.schedule(Key::Conn(index), 10 * SLOTS as u64);
        }
        let mut budget = 4;
        assert_eq!(wheel.expire(SLOTS as u64, &mut budget), None);
        assert_eq!(budget, 0);
        assert_eq!(wheel.next_tick(), Some(SLOTS as u64 - 1), "six are still to be placed");
    }

    #[derive(Clone, Debug)]
    enum Op {
        Schedule(Key, u64),
        Cancel(Key),
        Advance(u64),
    }

    fn ops() -> impl Strategy<Value = Op> {
        let key =
            || prop_oneof![(0..200_u32).prop_map(Key::Conn), (0..50_u32).prop_map(Key::Alarm)];
        let ahead = || {
            prop_oneof![0..100_u64, 0..3 * SLOTS as u64, Just(SLOTS as u64 - 1), Just(u64::MAX / 2)]
        };
        prop_oneof![
            6 => (key(), ahead()).prop_map(|(key, ahead)| Op::Schedule(key, ahead)),
            2 => key().prop_map(Op::Cancel),
            2 => prop_oneof![0..20_u64, 0..2 * SLOTS as u64].prop_map(Op::Advance),
        ]
    }

    /// The wheel and a map from key to tick, driven alike.
    struct Beside {
        wheel: Wheel,
        model: BTreeMap<Key, u64>,
        now: u64,
    }

    impl Beside {
        fn new() -> Self {
            Self { wheel: Wheel::new(), model: BTreeMap::new(), now: 0 }
        }

        fn apply(&mut self, op: &Op) {
            match *op {
                Op::Schedule(key, ahead) => {
                    self.wheel.schedule(key, self.now + ahead);
                    self.model.insert(key, self.now + ahead);
                }
                Op::Cancel(key) => {
                    self.wheel.cancel(key);
                    self.model.remove(&key);
                }
                Op::Advance(by) => {
                    self.now += by;
                    let due: Vec<_> = self
                        .model
                        .iter()
                        .filter(|(_, tick)| **tick <= self.now)
                        .map(|(key, _)| *key)
                        .collect();
                    assert_eq!(expired(&mut self.wheel, self.now), due);
                    self.model.retain(|_, tick| *tick > self.now);
                }
            }
            assert_eq!(self.wheel.len(), self.model.len());
            let earliest = self.model.values().min().copied();
            match (self.wheel.next_tick(), earliest) {
                (None, None) => {}
                (Some(next), Some(earliest)) => {
                    assert!(next <= earliest.max(self.now), "late wake-up");
                    assert!(next >= self.now, "a wake-up in the past");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn agrees_with_a_map(ops in proptest::collection::vec(ops(), 0..400)) {
            let mut beside = Beside::new();
            for op in &ops {
                beside.apply(op);
            }
        }
    }

    #[test]
    fn agrees_with_a_map_over_many_operations() {
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = move || {
            // xorshift64*, Marsaglia and Vigna.
            seed ^= seed >> 12;
            seed ^= seed << 25;
            seed ^= seed >> 27;
            seed.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
        };
        let mut wheel = Wheel::new();
        let mut model = BTreeMap::new();
        let mut by_tick: BTreeMap<u64, Vec<Key>> = BTreeMap::new();
        let mut now = 0_u64;
        let mut fired = 0;
        let operations = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
        for _ in 0..operations {
            let key = if random() % 4 == 0 {
                Key::Alarm((random() % 100) as u32)
            } else {
                Key::Conn((random() % 2_000) as u32)
            };
            match random() % 10 {
                0..6 => {
                    let reach = if random() % 2 == 0 { 64 } else { 2 * SLOTS as u64 };
                    let mut tick = now + random() % reach;
                    if random() % 2 == 0 {
                        wheel.schedule_by(key, tick);
                        tick = tick.min(model.get(&key).copied().unwrap_or(tick));
                    } else {
                        wheel.schedule(key, tick);
                    }
                    model.insert(key, tick);
                    by_tick.entry(tick).or_default().push(key);
                }
                6..8 => {
                    wheel.cancel(key);
                    model.remove(&key);
                }
                _ => {
                    now += random() % 8;
                    let mut due = Vec::new();
                    while let Some(entry) = by_tick.first_entry().filter(|e| *e.key() <= now) {
                        let (tick, keys) = entry.remove_entry();
                        due.extend(keys.into_iter().filter(|key| model.get(key) == Some(&tick)));
                    }
                    due.sort();
                    due.dedup();
                    for key in &due {
                        model.remove(key);
                    }
                    fired += due.len();
                    assert_eq!(expired(&mut wheel, now), due);
                }
            }
            assert_eq!(wheel.len(), model.len());
        }
        assert!(now > 8 * SLOTS as u64, "several revolutions: {now}");
        assert!(fired > operations / 10, "{fired}");
    }
}
