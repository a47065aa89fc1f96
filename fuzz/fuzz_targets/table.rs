//! The table of connections beside a map from id to a mark in the record; ids never come back.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

// The table is private to the crate. It leans on the modules below, which lean on no others, so
// they can be built into this program under the same names.
#[path = "../../src/address.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod address;
#[path = "../../src/probe.rs"]
#[allow(dead_code, reason = "what only the reactor uses")]
mod probe;
#[path = "../../src/planted.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod planted;
#[path = "../../src/close.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod close;
#[path = "../../src/config/mod.rs"]
#[allow(dead_code, unused_imports, reason = "what only the reactor and the unit tests use")]
mod config;
#[path = "../../src/core/mod.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod core;
#[path = "../../src/error.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod error;
#[path = "../../src/id.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod id;
#[path = "../../src/log.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod log;
#[path = "../../src/time.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod time;
#[path = "../../src/unwind.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod unwind;

use crate::address::Address;
use crate::close::CloseReason;
use crate::core::deadlines::DeadlineInputs;
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::{State, Transition};
use crate::core::record::{NewConn, Record, Spares};
use crate::core::table::Table;
use crate::id::{ConnId, ListenerId, Origin};
use crate::time::Instant;

/// The generation that no connection has, because it is the backend's.
const RESERVED: u64 = (1 << 40) - 1;

fuzz_target!(|input: Input| {
    let mut beside = Beside::new(input.capacity.into());
    for (mark, op) in (1..).zip(&input.ops) {
        beside.apply(op, mark);
        beside.check();
    }
    beside.end();
});

#[derive(Arbitrary, Debug)]
struct Input {
    capacity: u8,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    Insert {
        is_inbound: bool,
        is_owned: bool,
    },
    /// Removes one of those that are in.
    Remove(u8),
    /// Looks up, and removes once more, one that has been removed.
    RemoveDead(u8),
    /// Moves a place on by so many connections that only so many are left of its names.
    Age(u8, u8),
}

struct Beside {
    table: Table,
    model: BTreeMap<ConnId, u64>,
    dead: BTreeSet<ConnId>,
}

impl Beside {
    fn new(capacity: usize) -> Self {
        Self { table: Table::new(capacity), model: BTreeMap::new(), dead: BTreeSet::new() }
    }

    fn apply(&mut self, op: &Op, mark: u64) {
        match *op {
            Op::Insert { is_inbound, is_owned } => self.insert(is_inbound, is_owned, mark),
            Op::Remove(pick) => {
                if let Some(id) = self.pick(pick) {
                    self.remove(id);
                }
            }
            Op::RemoveDead(pick) => {
                let id = self.dead.iter().nth(usize::from(pick) % self.dead.len().max(1)).copied();
                if let Some(id) = id {
                    self.table.remove(id);
                    self.expect_gone(id);
                }
            }
            Op::Age(pick, left) => {
                if let Some(id) = self.pick(pick) {
                    self.age(id, RESERVED - 1 - u64::from(left));
                }
            }
        }
    }

    fn pick(&self, pick: u8) -> Option<ConnId> {
        self.model.keys().nth(usize::from(pick) % self.model.len().max(1)).copied()
    }

    fn insert(&mut self, is_inbound: bool, is_owned: bool, mark: u64) {
        let owner = if is_owned { self.pick(0) } else { None };
        let new_conn = NewConn {
            origin: if is_inbound { Origin::Accepted(ListenerId(7)) } else { Origin::Connect },
            peer: Address::Unix("/peer".into()),
            owner,
            exempt: false,
            room_checked: false,
            now: Instant::from_nanos(mark),
        };
        match self.table.insert(new_conn) {
            Ok(record) => {
                expect_fresh(record, is_inbound, owner, mark);
                let id = record.id;
                assert!((1..RESERVED).contains(&id.generation()), "{id}");
                assert!(id.index() < self.table.capacity(), "{id}");
                assert!(!self.dead.contains(&id), "{id} came back");
                assert_eq!(self.model.insert(id, mark), None, "{id} twice");
                soil(self.table.at(id.index()), mark);
            }
            Err(new_conn) => {
                assert_eq!(self.model.len(), self.table.capacity());
                assert_eq!(new_conn.now, Instant::from_nanos(mark));
            }
        }
    }

    fn remove(&mut self, id: ConnId) {
        self.table.remove(id);
        self.model.remove(&id).expect("only those that are in are picked");
        self.expect_gone(id);
        self.dead.insert(id);
        if id.generation() == RESERVED - 1 {
            // The place has used up its names. They begin again, as the table says.
            self.dead.retain(|dead| dead.index() != id.index());
        }
    }

    /// Renames a connection as if its place had been filled over and over.
    fn age(&mut self, id: ConnId, generation: u64) {
        if id.generation() >= generation {
            return;
        }
        let aged = ConnId::new(id.index() as u32, generation);
        self.table.at(id.index()).id = aged;
        let mark = self.model.remove(&id).expect("only those that are in are picked");
        self.model.insert(aged, mark);
        self.dead.insert(id);
        self.expect_gone(id);
    }

    fn expect_gone(&mut self, id: ConnId) {
        assert!(self.table.get(id).is_none(), "{id} is still there");
        assert!(self.table.get_mut(id).is_none(), "{id} is still there");
    }

    fn check(&self) {
        assert_eq!(self.table.len(), self.model.len());
        assert_eq!(self.table.is_full(), self.model.len() == self.table.capacity());
    }

    fn end(mut self) {
        let mut ids: Vec<_> = self.table.ids().collect();
        assert!(ids.is_sorted_by_key(|id| id.index()), "{ids:?}");
        ids.sort();
        assert!(ids.iter().eq(self.model.keys()), "{ids:?} {:?}", self.model);
        for (id, mark) in &self.model {
            assert_eq!(self.table.get(*id).map(|record| record.bytes_in), Some(*mark), "{id}");
            assert_eq!(self.table.at(id.index()).id, *id);
        }
        for id in std::mem::take(&mut self.dead) {
            self.expect_gone(id);
        }
    }
}

/// A connection inherits nothing from the one that had its place.
fn expect_fresh(record: &Record, is_inbound: bool, owner: Option<ConnId>, mark: u64) {
    let flags = if is_inbound { Flags::INBOUND } else { Flags::default() };
    assert_eq!((record.flags, record.cold_flags), (flags, ColdFlags::default()));
    assert_eq!(record.state(), State::Connecting);
    assert_eq!(record.cold().and_then(|cold| cold.owner), owner);
    assert!(record.cold().is_none_or(|cold| cold.sink.is_none() && cold.broken.is_none()));
    assert!(!record.has_output());
    assert!(record.output().is_none_or(|output| output.is_empty()));
    assert_eq!(record.clocks.inputs(), DeadlineInputs::default());
    assert_eq!(record.opened_at, Instant::from_nanos(mark));
    let counts = [record.bytes_in, record.bytes_out, record.requests, record.dropped()];
    assert_eq!((record.owed(), counts), (0, [0; 4]));
    assert_eq!((record.requested(), record.reason), (None, None));
}

/// Leaves a mark wherever a successor could find it.
fn soil(record: &mut Record, mark: u64) {
    record.flags.insert(Flags::DIRTY.and(Flags::READ_READY));
    record.cold_flags.insert(ColdFlags::IS_SINK.and(ColdFlags::LINGERING));
    record.apply(Transition::Establish);
    record.clocks.update(record.deadline_inputs(), Instant::from_nanos(mark));
    record.set_owed(1);
    record.change_output(&mut Spares::default(), |output, buffers| {
        output.push_copy(&mark.to_ne_bytes(), buffers);
    });
    record.cold_mut().sink = Some(record.id);
    record.bytes_in = mark;
    record.bytes_out = mark;
    record.requests = mark;
    record.cold_mut().dropped = mark;
    record.request_close(CloseReason::HandlerAbort);
    record.cold_mut().broken = Some(CloseReason::PeerReset);
    record.reason = Some(CloseReason::HandlerAbort);
}
