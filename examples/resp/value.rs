//! What a key holds, and the memory that it takes.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::fmt;
use std::hash::{self, Hash, RandomState};
use std::ops::Deref;

use indexmap::{IndexMap, IndexSet};

use crate::reply::{Fault, with_decimal};
use crate::resp::number;

/// The one of std, which is made for keys that clients choose: they cannot find such as collide.
pub(crate) type Hasher = RandomState;

pub(crate) type Map<V> = IndexMap<Text, V, Hasher>;

/// Bytes that a [`Text`] has in place.
const IN_PLACE: usize = 22;

/// A string that does not grow. The bytes of a short one lie in place: what has found it has them in the
/// cache, too.
#[derive(Clone)]
pub(crate) enum Text {
    Short { len: u8, bytes: [u8; IN_PLACE] },
    Long(Box<[u8]>),
}

impl Text {
    /// The memory that a string of this length takes beside itself.
    pub(crate) const fn cost(len: usize) -> usize {
        if len <= IN_PLACE { 0 } else { allocation(len) }
    }
}

impl From<&[u8]> for Text {
    #[inline]
    fn from(text: &[u8]) -> Self {
        if text.len() > IN_PLACE {
            return Self::Long(text.into());
        }
        let mut bytes = [0; IN_PLACE];
        bytes[..text.len()].copy_from_slice(text);
        Self::Short { len: text.len() as u8, bytes }
    }
}

impl Deref for Text {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::from(&b""[..])
    }
}

/// As the bytes: a map with such keys is asked for bytes.
impl Borrow<[u8]> for Text {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Hash for Text {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

/// A value of one of the types that there are.
#[derive(Debug)]
pub(crate) enum Value {
    Text(Text),
    /// A string that was appended to.
    #[expect(clippy::box_collection, reason = "it would be the longest by a word")]
    Buffer(Box<Vec<u8>>),
    /// A string that is a number, since it was counted with.
    Number(i64),
    List(Box<List>),
    Set(Box<Set>),
    Hash(Box<Fields>),
}

/// The memory that an allocation takes: malloc(3) of the GNU C library puts a word in front of it and
/// rounds up to 16 bytes, at least 32.
pub(crate) const fn allocation(size: usize) -> usize {
    match size {
        0 => 0,
        1..=24 => 32,
        size => (size + 8 + 15) & !15,
    }
}

/// An entry of a map beside what it points to, with its share of the places that are free: the maps
/// double when they are full.
const fn slot(size: usize) -> usize {
    // The hash, the index and its control byte.
    3 * (size + 8 + 9) / 2
}

/// An entry of a table that holds it in place, with its share of the places that are free.
pub(crate) const fn table_slot(size: usize) -> usize {
    // The control byte.
    3 * (size + 1) / 2
}

/// What an element of each takes beside its bytes.
const LIST_SLOT: usize = 3 * size_of::<Text>() / 2;
const SET_SLOT: usize = slot(size_of::<Text>());
const HASH_SLOT: usize = slot(2 * size_of::<Text>());

impl Value {
    pub(crate) const fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Buffer(_) | Self::Number(_) => "string",
            Self::List(_) => "list",
            Self::Set(_) => "set",
            Self::Hash(_) => "hash",
        }
    }

    /// The memory that it takes beside itself.
    pub(crate) fn cost(&self) -> usize {
        match self {
            Self::Text(text) => Text::cost(text.len()),
            Self::Buffer(text) => allocation(size_of::<Vec<u8>>()) + allocation(text.capacity()),
            Self::Number(_) => 0,
            Self::List(list) => allocation(size_of::<List>()) + list.cost,
            Self::Set(set) => allocation(size_of::<Set>()) + set.cost,
            Self::Hash(hash) => allocation(size_of::<Fields>()) + hash.cost,
        }
    }

    /// Whether it is a list, set or hash without elements.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Text(_) | Self::Buffer(_) | Self::Number(_) => false,
            Self::List(list) => list.items.is_empty(),
            Self::Set(set) => set.members.is_empty(),
            Self::Hash(hash) => hash.fields.is_empty(),
        }
    }

    /// Calls `act` with a string.
    #[inline]
    pub(crate) fn with_text<T>(&self, act: impl FnOnce(&[u8]) -> T) -> Result<T, Fault> {
        match self {
            Self::Text(text) => Ok(act(text)),
            Self::Buffer(text) => Ok(act(text)),
            Self::Number(number) => Ok(with_decimal(*number, act)),
            _ => Err(Fault::WRONG_TYPE),
        }
    }

    /// A string that is a number.
    pub(crate) fn number(&self) -> Result<i64, Fault> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Text(text) => number(text).ok_or(Fault::NO_INTEGER),
            Self::Buffer(text) => number(text).ok_or(Fault::NO_INTEGER),
            _ => Err(Fault::WRONG_TYPE),
        }
    }

    /// Replaces it by a string. The memory of one that is as long is used again.
    #[inline]
    pub(crate) fn set_text(&mut self, text: &[u8]) {
        match self {
            Self::Text(Text::Long(old)) if old.len() == text.len() => old.copy_from_slice(text),
            _ => *self = Self::Text(text.into()),
        }
    }

    /// What is appended to, if it is a string.
    pub(crate) fn buffer_mut(&mut self) -> Result<&mut Vec<u8>, Fault> {
        if let Self::Text(_) | Self::Number(_) = self {
            *self = Self::Buffer(Box::new(self.with_text(<[u8]>::to_vec)?));
        }
        match self {
            Self::Buffer(text) => Ok(text),
            _ => Err(Fault::WRONG_TYPE),
        }
    }
}

/// The parts of a value, if it has that type.
macro_rules! part {
    ($name:ident, $name_mut:ident, $variant:ident, $type:ty) => {
        impl Value {
            pub(crate) fn $name(&self) -> Result<&$type, Fault> {
                match self {
                    Self::$variant(part) => Ok(part),
                    _ => Err(Fault::WRONG_TYPE),
                }
            }

            pub(crate) fn $name_mut(&mut self) -> Result<&mut $type, Fault> {
                match self {
                    Self::$variant(part) => Ok(part),
                    _ => Err(Fault::WRONG_TYPE),
                }
            }
        }
    };
}

part!(list, list_mut, List, List);
part!(set, set_mut, Set, Set);
part!(hash, hash_mut, Hash, Fields);

#[derive(Debug, Default)]
pub(crate) struct List {
    items: VecDeque<Text>,
    cost: usize,
}

/// An end of a list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Left,
    Right,
}

impl List {
    pub(crate) fn items(&self) -> &VecDeque<Text> {
        &self.items
    }

    pub(crate) fn push(&mut self, side: Side, item: &[u8]) {
        self.cost += LIST_SLOT + Text::cost(item.len());
        match side {
            Side::Left => self.items.push_front(item.into()),
            Side::Right => self.items.push_back(item.into()),
        }
    }

    pub(crate) fn pop(&mut self, side: Side) -> Option<Text> {
        let item = match side {
            Side::Left => self.items.pop_front(),
            Side::Right => self.items.pop_back(),
        }?;
        self.cost -= LIST_SLOT + Text::cost(item.len());
        if self.items.capacity() > 64 && self.items.len() < self.items.capacity() / 4 {
            self.items.shrink_to(self.items.capacity() / 2);
        }
        Some(item)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Set {
    members: IndexSet<Text, Hasher>,
    cost: usize,
}

impl Set {
    pub(crate) fn members(&self) -> &IndexSet<Text, Hasher> {
        &self.members
    }

    /// Returns whether it is new.
    pub(crate) fn insert(&mut self, member: &[u8]) -> bool {
        let is_new = !self.members.contains(member) && self.members.insert(member.into());
        if is_new {
            self.cost += SET_SLOT + Text::cost(member.len());
        }
        is_new
    }

    /// Returns whether it was there.
    pub(crate) fn remove(&mut self, member: &[u8]) -> bool {
        let place = self.members.get_index_of(member);
        place.and_then(|place| self.remove_at(place)).is_some()
    }

    pub(crate) fn remove_at(&mut self, place: usize) -> Option<Text> {
        let member = self.members.swap_remove_index(place)?;
        self.cost -= SET_SLOT + Text::cost(member.len());
        if self.members.capacity() > 64 && self.members.len() < self.members.capacity() / 4 {
            self.members.shrink_to(self.members.capacity() / 2);
        }
        Some(member)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Fields {
    fields: Map<Text>,
    cost: usize,
}

impl Fields {
    pub(crate) fn fields(&self) -> &Map<Text> {
        &self.fields
    }

    /// Returns whether the field is new.
    pub(crate) fn insert(&mut self, field: &[u8], value: &[u8]) -> bool {
        if let Some(old) = self.fields.get_mut(field) {
            self.cost = self.cost + Text::cost(value.len()) - Text::cost(old.len());
            *old = value.into();
            return false;
        }
        self.cost += HASH_SLOT + Text::cost(field.len()) + Text::cost(value.len());
        self.fields.insert(field.into(), value.into());
        true
    }

    /// Returns whether it was there.
    pub(crate) fn remove(&mut self, field: &[u8]) -> bool {
        let Some((field, value)) = self.fields.swap_remove_entry(field) else { return false };
        self.cost -= HASH_SLOT + Text::cost(field.len()) + Text::cost(value.len());
        if self.fields.capacity() > 64 && self.fields.len() < self.fields.capacity() / 4 {
            self.fields.shrink_to(self.fields.capacity() / 2);
        }
        true
    }
}
