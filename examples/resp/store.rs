//! The keys: what they hold, when they expire, and the memory that all of it takes.

use std::collections::HashMap;
use std::time::Duration;

use wheelhouse::{AlarmId, Context, Instant};

use crate::reply::Fault;
use crate::value::{Hasher, Map, Text, Value, allocation, entry_slot};

/// A time of the loop's clock, in milliseconds: what clients count in.
pub(crate) type Millis = i64;

/// The time of this turn.
pub(crate) fn now(cx: &Context<'_>) -> Millis {
    (cx.now().as_nanos() / 1_000_000) as Millis
}

#[derive(Debug)]
struct Entry {
    value: Value,
    expiry: Option<Expiry>,
}

/// The end of a key. Whatever comes first ends it: a command that finds it past, or its alarm.
#[derive(Debug)]
struct Expiry {
    /// The last millisecond in which the key is there.
    last: Millis,
    alarm: AlarmId,
}

impl Entry {
    #[inline]
    fn is_over(&self, cx: &Context<'_>) -> bool {
        self.expiry.as_ref().is_some_and(|expiry| expiry.last < now(cx))
    }
}

/// What a key takes beside what it points to.
const ENTRY: usize = entry_slot(size_of::<Entry>());

/// What an alarm takes: the loop's 48 bytes, and its place in the map here.
const ALARM: usize = 48 + 2 * (size_of::<AlarmId>() + size_of::<Text>() + 1);

#[derive(Debug)]
pub(crate) struct Store {
    entries: Map<Entry>,
    alarms: HashMap<AlarmId, Text, Hasher>,
    /// Memory that clients have had taken, for keys and for other things.
    used: usize,
    used_max: usize,
    text_max: usize,
    expired: u64,
    random: u64,
}

impl Store {
    /// Takes up to `used_max` bytes, with strings of up to `text_max`. What is chosen at random follows
    /// from `seed`.
    pub(crate) fn new(used_max: usize, text_max: usize, seed: u64) -> Self {
        Self {
            entries: Map::default(),
            alarms: HashMap::default(),
            used: 0,
            used_max,
            text_max,
            expired: 0,
            random: seed,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Keys that have a time to live.
    pub(crate) fn expiring(&self) -> usize {
        self.alarms.len()
    }

    /// Keys that have expired.
    pub(crate) const fn expired(&self) -> u64 {
        self.expired
    }

    pub(crate) const fn used(&self) -> usize {
        self.used
    }

    pub(crate) const fn used_max(&self) -> usize {
        self.used_max
    }

    /// The longest string.
    pub(crate) const fn text_max(&self) -> usize {
        self.text_max
    }

    /// Whether nothing that takes memory is allowed.
    #[inline]
    pub(crate) const fn is_full(&self) -> bool {
        self.used > self.used_max
    }

    /// Counts memory that a client has had taken for something else than keys.
    pub(crate) const fn take(&mut self, bytes: usize) {
        self.used += bytes;
    }

    /// Counts such memory as free again.
    pub(crate) const fn give_back(&mut self, bytes: usize) {
        self.used -= bytes;
    }

    /// A number below `end` by which something is chosen.
    pub(crate) fn random_below(&mut self, end: usize) -> usize {
        // SplitMix64, by Sebastiano Vigna.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(mixed ^ (mixed >> 31)) * end as u128) >> 64) as usize
    }

    /// Where a key is that has not expired.
    #[inline]
    fn place(&mut self, cx: &mut Context<'_>, key: &[u8]) -> Option<usize> {
        let place = self.entries.get_index_of(key)?;
        if self.entries[place].is_over(cx) {
            self.remove_at(cx, place);
            self.expired += 1;
            return None;
        }
        Some(place)
    }

    /// What a key holds.
    #[inline]
    pub(crate) fn get(&mut self, cx: &mut Context<'_>, key: &[u8]) -> Option<&Value> {
        let place = self.place(cx, key)?;
        Some(&self.entries[place].value)
    }

    pub(crate) fn has(&mut self, cx: &mut Context<'_>, key: &[u8]) -> bool {
        self.place(cx, key).is_some()
    }

    /// Makes a key hold a string.
    #[inline]
    pub(crate) fn set_text(
        &mut self,
        cx: &mut Context<'_>,
        key: &[u8],
        text: &[u8],
        keeps_expiry: bool,
    ) {
        let Some(place) = self.place(cx, key) else {
            return self.insert(key, Value::Text(text.to_vec()));
        };
        let entry = &mut self.entries[place];
        let before = entry.value.cost();
        entry.value.set_text(text);
        self.used = self.used + entry.value.cost() - before;
        if entry.expiry.is_some() && !keeps_expiry {
            self.forget_expiry(cx, place);
        }
    }

    /// Adds a key that is not there.
    fn insert(&mut self, key: &[u8], value: Value) {
        self.used += ENTRY + allocation(key.len()) + value.cost();
        self.entries.insert(key.into(), Entry { value, expiry: None });
    }

    /// Lets `change` change what a key holds. `None` if there is no such key. A key that is left with
    /// an empty list, set or hash is removed.
    pub(crate) fn change<T>(
        &mut self,
        cx: &mut Context<'_>,
        key: &[u8],
        change: impl FnOnce(&mut Value) -> T,
    ) -> Option<T> {
        let place = self.place(cx, key)?;
        Some(self.change_at(cx, place, change))
    }

    /// As [`change`](Self::change), of what `new` makes if there is no such key.
    pub(crate) fn change_or_insert<T>(
        &mut self,
        cx: &mut Context<'_>,
        key: &[u8],
        new: impl FnOnce() -> Value,
        change: impl FnOnce(&mut Value) -> T,
    ) -> T {
        let place = self.place(cx, key).unwrap_or_else(|| {
            self.insert(key, new());
            self.entries.len() - 1
        });
        self.change_at(cx, place, change)
    }

    fn change_at<T>(
        &mut self,
        cx: &mut Context<'_>,
        place: usize,
        change: impl FnOnce(&mut Value) -> T,
    ) -> T {
        let value = &mut self.entries[place].value;
        let before = value.cost();
        let changed = change(value);
        self.used = self.used + value.cost() - before;
        let is_empty = match value {
            Value::Text(_) | Value::Number(_) => false,
            Value::List(list) => list.items().is_empty(),
            Value::Set(set) => set.members().is_empty(),
            Value::Hash(hash) => hash.fields().is_empty(),
        };
        if is_empty {
            self.remove_at(cx, place);
        }
        changed
    }

    /// Returns whether it was there.
    pub(crate) fn remove(&mut self, cx: &mut Context<'_>, key: &[u8]) -> bool {
        let place = self.place(cx, key);
        place.is_some_and(|place| {
            self.remove_at(cx, place);
            true
        })
    }

    fn remove_at(&mut self, cx: &mut Context<'_>, place: usize) {
        self.forget_expiry(cx, place);
        let Some((key, entry)) = self.entries.swap_remove_index(place) else { return };
        self.used -= ENTRY + allocation(key.len()) + entry.value.cost();
        if self.entries.capacity() > 1_024 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.capacity() / 2);
        }
    }

    pub(crate) fn clear(&mut self, cx: &mut Context<'_>) {
        for alarm in self.alarms.keys() {
            cx.cancel_alarm(*alarm);
        }
        for (key, entry) in std::mem::take(&mut self.entries) {
            self.used -= ENTRY + allocation(key.len()) + entry.value.cost();
            if entry.expiry.is_some() {
                self.used -= ALARM + allocation(key.len());
            }
        }
        self.alarms = HashMap::default();
    }

    /// The keys that have not expired.
    pub(crate) fn keys(&self, now: Millis) -> impl Iterator<Item = &[u8]> {
        let lives = move |entry: &Entry| entry.expiry.as_ref().is_none_or(|it| it.last >= now);
        self.entries.iter().filter(move |(_, entry)| lives(entry)).map(|(key, _)| &**key)
    }
}

/// When keys expire.
impl Store {
    /// The last millisecond of a key; `Some(None)` if it has no end, and `None` if it is not there.
    pub(crate) fn expiry(&mut self, cx: &mut Context<'_>, key: &[u8]) -> Option<Option<Millis>> {
        let place = self.place(cx, key)?;
        Some(self.entries[place].expiry.as_ref().map(|expiry| expiry.last))
    }

    /// Lets a key expire after `last`, at once if that is not in the future. Returns whether the key
    /// was there.
    pub(crate) fn expire(&mut self, cx: &mut Context<'_>, key: &[u8], last: Millis) -> bool {
        let Some(place) = self.place(cx, key) else { return false };
        if last <= now(cx) {
            self.remove_at(cx, place);
            return true;
        }
        self.forget_expiry(cx, place);
        let after = Duration::from_millis(last.unsigned_abs().saturating_add(1));
        let alarm = cx.set_alarm(Instant::EPOCH + after);
        self.alarms.insert(alarm, key.into());
        self.used += ALARM + allocation(key.len());
        self.entries[place].expiry = Some(Expiry { last, alarm });
        true
    }

    /// Takes the end of a key away. Returns whether it had one.
    pub(crate) fn persist(&mut self, cx: &mut Context<'_>, key: &[u8]) -> bool {
        let place = self.place(cx, key);
        place.is_some_and(|place| self.forget_expiry(cx, place))
    }

    #[inline]
    fn forget_expiry(&mut self, cx: &mut Context<'_>, place: usize) -> bool {
        let Some(expiry) = self.entries[place].expiry.take() else { return false };
        cx.cancel_alarm(expiry.alarm);
        if let Some(key) = self.alarms.remove(&expiry.alarm) {
            self.used -= ALARM + allocation(key.len());
        }
        true
    }

    /// The time of an alarm has come.
    pub(crate) fn handle_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        let Some(key) = self.alarms.get(&alarm) else { return };
        let Some(place) = self.entries.get_index_of(key) else { return };
        self.remove_at(cx, place);
        self.expired += 1;
    }
}

/// Refuses a string that is longer than there may be.
pub(crate) fn refuse_too_long(store: &Store, len: usize) -> Result<(), Fault> {
    if len > store.text_max() { Err(Fault::STRING_TOO_LONG) } else { Ok(()) }
}
