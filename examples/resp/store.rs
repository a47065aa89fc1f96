//! The keys: what they hold, when they expire, and the memory that all of it takes.

use std::collections::HashMap;
use std::time::Duration;

use hashbrown::HashTable;
use hashbrown::hash_table::OccupiedEntry;
use wheelhouse::{AlarmId, Context, Instant};

use crate::hash::KeyHasher;
use crate::reply::Fault;
use crate::server::Settings;
use crate::value::{Hasher, Text, Value, allocation, table_slot};

/// A time of the loop's clock, in milliseconds: what clients count in.
pub(crate) type Millis = i64;

/// The time of this turn.
pub(crate) fn now(cx: &Context<'_>) -> Millis {
    (cx.now().as_nanos() / 1_000_000) as Millis
}

/// A key and what it holds. All of a short one lies here, in one line of the cache or two.
#[derive(Debug)]
struct Entry {
    key: Text,
    value: Value,
    expiry: Option<Box<Expiry>>,
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

    fn cost(&self) -> usize {
        ENTRY + Text::cost(self.key.len()) + self.value.cost()
    }
}

/// What a key takes beside what it points to.
const ENTRY: usize = table_slot(size_of::<Entry>());

/// What an alarm takes: the loop's 48 bytes, what is known of it here, and its place in the map.
const ALARM: usize =
    48 + allocation(size_of::<Expiry>()) + 2 * (size_of::<AlarmId>() + size_of::<Text>() + 1);

#[derive(Debug)]
pub(crate) struct Store {
    hasher: KeyHasher,
    entries: HashTable<Entry>,
    ledger: Ledger,
    text_max: usize,
    random: u64,
}

/// What keys leave beside their entries.
#[derive(Debug, Default)]
struct Ledger {
    /// Memory that clients have had taken, for keys and for other things.
    used: usize,
    used_max: usize,
    /// The alarms of keys that expire.
    alarms: HashMap<AlarmId, Text, Hasher>,
    expired: u64,
}

impl Store {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            hasher: KeyHasher::new(settings.secret),
            entries: HashTable::new(),
            ledger: Ledger { used_max: settings.memory_max, ..Ledger::default() },
            text_max: settings.request_max,
            random: settings.seed,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Keys that have a time to live.
    pub(crate) fn expiring(&self) -> usize {
        self.ledger.alarms.len()
    }

    /// Keys that have expired.
    pub(crate) const fn expired(&self) -> u64 {
        self.ledger.expired
    }

    pub(crate) const fn used(&self) -> usize {
        self.ledger.used
    }

    pub(crate) const fn used_max(&self) -> usize {
        self.ledger.used_max
    }

    /// The longest string.
    pub(crate) const fn text_max(&self) -> usize {
        self.text_max
    }

    /// Whether nothing that takes memory is allowed.
    #[inline]
    pub(crate) const fn is_full(&self) -> bool {
        self.ledger.used > self.ledger.used_max
    }

    /// Counts memory that a client has had taken for something else than keys.
    pub(crate) const fn take(&mut self, bytes: usize) {
        self.ledger.used += bytes;
    }

    /// Counts such memory as free again.
    pub(crate) const fn give_back(&mut self, bytes: usize) {
        self.ledger.used -= bytes;
    }

    /// A number below `end` by which something is chosen.
    pub(crate) fn random_below(&mut self, end: usize) -> usize {
        // SplitMix64, by Sebastiano Vigna.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(mixed ^ (mixed >> 31)) * end as u128) >> 64) as usize
    }

    /// A key that has not expired. `hash` is its hash.
    #[inline]
    fn find(&mut self, cx: &mut Context<'_>, key: &[u8], hash: u64) -> Option<Found<'_>> {
        let entry = self.entries.find_entry(hash, |entry| *entry.key == *key).ok()?;
        let found = Found { entry, hasher: self.hasher, ledger: &mut self.ledger };
        if found.entry.get().is_over(cx) {
            found.ledger.expired += 1;
            found.remove(cx);
            return None;
        }
        Some(found)
    }

    #[inline]
    fn find_key(&mut self, cx: &mut Context<'_>, key: &[u8]) -> Option<Found<'_>> {
        self.find(cx, key, self.hasher.hash(key))
    }

    /// What a key holds.
    #[inline]
    pub(crate) fn get(&mut self, cx: &mut Context<'_>, key: &[u8]) -> Option<&Value> {
        self.find_key(cx, key).map(|found| &found.entry.into_mut().value)
    }

    pub(crate) fn has(&mut self, cx: &mut Context<'_>, key: &[u8]) -> bool {
        self.find_key(cx, key).is_some()
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
        let hash = self.hasher.hash(key);
        let Some(mut found) = self.find(cx, key, hash) else {
            self.insert(key, hash, Value::Text(text.into()));
            return;
        };
        if !keeps_expiry {
            found.persist(cx);
        }
        found.update(|value| value.set_text(text));
    }

    /// Adds a key that is not there.
    fn insert(&mut self, key: &[u8], hash: u64, value: Value) -> Found<'_> {
        let entry = Entry { key: key.into(), value, expiry: None };
        self.ledger.used += entry.cost();
        let hasher = self.hasher;
        let entry = self.entries.insert_unique(hash, entry, |entry| hasher.hash(&entry.key));
        Found { entry, hasher, ledger: &mut self.ledger }
    }

    /// Lets `change` change what a key holds. `None` if there is no such key. A key that is left with
    /// an empty list, set or hash is removed.
    pub(crate) fn change<T>(
        &mut self,
        cx: &mut Context<'_>,
        key: &[u8],
        change: impl FnOnce(&mut Value) -> T,
    ) -> Option<T> {
        Some(self.find_key(cx, key)?.change(cx, change))
    }

    /// As [`change`](Self::change), of what `new` makes if there is no such key.
    pub(crate) fn change_or_insert<T>(
        &mut self,
        cx: &mut Context<'_>,
        key: &[u8],
        new: impl FnOnce() -> Value,
        change: impl FnOnce(&mut Value) -> T,
    ) -> T {
        let hash = self.hasher.hash(key);
        let found = match self.find(cx, key, hash) {
            Some(found) => found,
            None => self.insert(key, hash, new()),
        };
        found.change(cx, change)
    }

    /// Returns whether it was there.
    pub(crate) fn remove(&mut self, cx: &mut Context<'_>, key: &[u8]) -> bool {
        self.find_key(cx, key).map(|found| found.remove(cx)).is_some()
    }

    pub(crate) fn clear(&mut self, cx: &mut Context<'_>) {
        for entry in std::mem::take(&mut self.entries) {
            self.ledger.used -= entry.cost();
            if let Some(expiry) = entry.expiry {
                cx.cancel_alarm(expiry.alarm);
                self.ledger.used -= ALARM + Text::cost(entry.key.len());
            }
        }
        self.ledger.alarms = HashMap::default();
    }

    /// The keys that have not expired.
    pub(crate) fn keys(&self, now: Millis) -> impl Iterator<Item = &[u8]> {
        let lives = move |entry: &&Entry| entry.expiry.as_ref().is_none_or(|it| it.last >= now);
        self.entries.iter().filter(lives).map(|entry| &*entry.key)
    }
}

/// When keys expire.
impl Store {
    /// The last millisecond of a key; `Some(None)` if it has no end, and `None` if it is not there.
    pub(crate) fn expiry(&mut self, cx: &mut Context<'_>, key: &[u8]) -> Option<Option<Millis>> {
        let found = self.find_key(cx, key)?;
        Some(found.entry.get().expiry.as_ref().map(|expiry| expiry.last))
    }

    /// Lets a key expire after `last`, at once if that is not in the future. Returns whether the key
    /// was there.
    pub(crate) fn expire(&mut self, cx: &mut Context<'_>, key: &[u8], last: Millis) -> bool {
        let Some(mut found) = self.find_key(cx, key) else { return false };
        if last <= now(cx) {
            found.remove(cx);
            return true;
        }
        found.persist(cx);
        let after = Duration::from_millis(last.unsigned_abs().saturating_add(1));
        let alarm = cx.set_alarm(Instant::EPOCH + after);
        found.ledger.alarms.insert(alarm, key.into());
        found.ledger.used += ALARM + Text::cost(key.len());
        found.entry.get_mut().expiry = Some(Box::new(Expiry { last, alarm }));
        true
    }

    /// Takes the end of a key away. Returns whether it had one.
    pub(crate) fn persist(&mut self, cx: &mut Context<'_>, key: &[u8]) -> bool {
        self.find_key(cx, key).is_some_and(|mut found| found.persist(cx))
    }

    /// The time of an alarm has come.
    pub(crate) fn handle_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        let Some(key) = self.ledger.alarms.get(&alarm) else { return };
        let hash = self.hasher.hash(key);
        let Ok(entry) = self.entries.find_entry(hash, |entry| entry.key == *key) else { return };
        self.ledger.expired += 1;
        Found { entry, hasher: self.hasher, ledger: &mut self.ledger }.remove(cx);
    }
}

/// A key that is there.
struct Found<'a> {
    entry: OccupiedEntry<'a, Entry>,
    hasher: KeyHasher,
    ledger: &'a mut Ledger,
}

impl Found<'_> {
    /// Lets `change` change what it holds, and removes it if that is empty then.
    fn change<T>(mut self, cx: &mut Context<'_>, change: impl FnOnce(&mut Value) -> T) -> T {
        let changed = self.update(change);
        if self.entry.get().value.is_empty() {
            self.remove(cx);
        }
        changed
    }

    #[inline]
    fn update<T>(&mut self, change: impl FnOnce(&mut Value) -> T) -> T {
        let value = &mut self.entry.get_mut().value;
        let before = value.cost();
        let changed = change(value);
        self.ledger.used = self.ledger.used + value.cost() - before;
        changed
    }

    fn remove(mut self, cx: &mut Context<'_>) {
        self.persist(cx);
        let (entry, place) = self.entry.remove();
        self.ledger.used -= entry.cost();
        let entries = place.into_table();
        if entries.capacity() > 1_024 && entries.len() < entries.capacity() / 4 {
            entries.shrink_to(entries.capacity() / 2, |entry| self.hasher.hash(&entry.key));
        }
    }

    /// Takes its end away. Returns whether it had one.
    #[inline]
    fn persist(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(expiry) = self.entry.get_mut().expiry.take() else { return false };
        cx.cancel_alarm(expiry.alarm);
        if let Some(key) = self.ledger.alarms.remove(&expiry.alarm) {
            self.ledger.used -= ALARM + Text::cost(key.len());
        }
        true
    }
}

/// Refuses a string that is longer than there may be.
pub(crate) fn refuse_too_long(store: &Store, len: usize) -> Result<(), Fault> {
    if len > store.text_max() { Err(Fault::STRING_TOO_LONG) } else { Ok(()) }
}
