//! What a key holds, and the memory that it takes.

use std::collections::VecDeque;
use std::hash::RandomState;

use indexmap::{IndexMap, IndexSet};

use crate::reply::{Fault, with_decimal};
use crate::resp::number;

/// The one of std, which is made for keys that clients choose: they cannot find such as collide.
pub(crate) type Hasher = RandomState;

pub(crate) type Text = Box<[u8]>;
pub(crate) type Map<V> = IndexMap<Text, V, Hasher>;

/// A value of one of the types that there are.
#[derive(Debug)]
pub(crate) enum Value {
    Text(Vec<u8>),
    /// A string that is a number, since it was counted with.
    Number(i64),
    List(Box<List>),
    Set(Box<Set>),
    Hash(Box<Hash>),
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

/// What an element of each takes beside its bytes.
const LIST_SLOT: usize = 3 * size_of::<Text>() / 2;
const SET_SLOT: usize = slot(size_of::<Text>());
const HASH_SLOT: usize = slot(2 * size_of::<Text>());

/// What a key takes beside its bytes and its value's.
pub(crate) const fn entry_slot(entry: usize) -> usize {
    slot(size_of::<Text>() + entry)
}

impl Value {
    pub(crate) const fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Number(_) => "string",
            Self::List(_) => "list",
            Self::Set(_) => "set",
            Self::Hash(_) => "hash",
        }
    }

    /// The memory that it takes beside itself.
    pub(crate) fn cost(&self) -> usize {
        match self {
            Self::Text(text) => allocation(text.capacity()),
            Self::Number(_) => 0,
            Self::List(list) => allocation(size_of::<List>()) + list.cost,
            Self::Set(set) => allocation(size_of::<Set>()) + set.cost,
            Self::Hash(hash) => allocation(size_of::<Hash>()) + hash.cost,
        }
    }

    /// Calls `act` with a string.
    #[inline]
    pub(crate) fn with_text<T>(&self, act: impl FnOnce(&[u8]) -> T) -> Result<T, Fault> {
        match self {
            Self::Text(text) => Ok(act(text)),
            Self::Number(number) => Ok(with_decimal(*number, act)),
            _ => Err(Fault::WRONG_TYPE),
        }
    }

    /// A string that is a number.
    pub(crate) fn number(&self) -> Result<i64, Fault> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Text(text) => number(text).ok_or(Fault::NO_INTEGER),
            _ => Err(Fault::WRONG_TYPE),
        }
    }

    /// Replaces it by a string. The memory of one that fits is used again.
    pub(crate) fn set_text(&mut self, text: &[u8]) {
        match self {
            Self::Text(old) if old.capacity() >= text.len() && old.capacity() / 4 <= text.len() => {
                old.clear();
                old.extend_from_slice(text);
            }
            _ => *self = Self::Text(text.to_vec()),
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
part!(hash, hash_mut, Hash, Hash);

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
        self.cost += LIST_SLOT + allocation(item.len());
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
        self.cost -= LIST_SLOT + allocation(item.len());
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
            self.cost += SET_SLOT + allocation(member.len());
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
        self.cost -= SET_SLOT + allocation(member.len());
        if self.members.capacity() > 64 && self.members.len() < self.members.capacity() / 4 {
            self.members.shrink_to(self.members.capacity() / 2);
        }
        Some(member)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Hash {
    fields: Map<Text>,
    cost: usize,
}

impl Hash {
    pub(crate) fn fields(&self) -> &Map<Text> {
        &self.fields
    }

    /// Returns whether the field is new.
    pub(crate) fn insert(&mut self, field: &[u8], value: &[u8]) -> bool {
        if let Some(old) = self.fields.get_mut(field) {
            self.cost = self.cost + allocation(value.len()) - allocation(old.len());
            if old.len() == value.len() {
                old.copy_from_slice(value);
            } else {
                *old = value.into();
            }
            return false;
        }
        self.cost += HASH_SLOT + allocation(field.len()) + allocation(value.len());
        self.fields.insert(field.into(), value.into());
        true
    }

    /// Returns whether it was there.
    pub(crate) fn remove(&mut self, field: &[u8]) -> bool {
        let Some((field, value)) = self.fields.swap_remove_entry(field) else { return false };
        self.cost -= HASH_SLOT + allocation(field.len()) + allocation(value.len());
        if self.fields.capacity() > 64 && self.fields.len() < self.fields.capacity() / 4 {
            self.fields.shrink_to(self.fields.capacity() / 2);
        }
        true
    }
}
