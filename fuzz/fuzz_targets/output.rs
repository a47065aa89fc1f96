//! The output queue beside a byte vector, driven alike and emptied by short writes.

#![no_main]

use std::io::IoSlice;

use arbitrary::Arbitrary;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

use crate::core::output::{Output, SpareBuffers};

// The queue is private to the crate. It leans on the modules below, which lean on no others, so
// they can be built into this program under the same names.
#[path = "../../src/planted.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod planted;
#[path = "../../src/core"]
mod core {
    #[allow(dead_code, reason = "what only the reactor and the unit tests use")]
    pub(crate) mod output;
    #[allow(dead_code, reason = "what only the reactor and the unit tests use")]
    pub(crate) mod share;
}
#[path = "../../src/unwind.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod unwind;

/// What would make the queue longer is left out, so that a run stays short.
const QUEUED_MAX: usize = 64 * 1024;

/// The most slices of one write.
const SLICES: usize = 64;

fuzz_target!(|input: Input| {
    let mut beside = Beside::default();
    for op in &input.ops {
        beside.apply(op);
        beside.check();
    }
    beside.drain(input.write_max);
});

#[derive(Arbitrary, Debug)]
struct Input {
    /// How much one write takes of what is left in the end: with 1, each byte is a cut.
    write_max: u8,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    Copy(Size),
    Share(Size),
    /// Offers the kernel so many slices, of which it takes so many bytes.
    Write {
        slices: u8,
        taken: u16,
    },
    Truncate(u16),
    Clear,
}

/// The length of a piece, of the sizes that make a difference.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Size {
    Few(u8),
    /// About the size from which on pieces are shared, and that of the buffers for copies.
    Around(i8),
    Many(u16),
}

impl Size {
    fn len(self) -> usize {
        match self {
            Self::Few(len) => len.into(),
            Self::Around(by) => 4_096_usize.saturating_add_signed(by.into()),
            Self::Many(len) => len.into(),
        }
    }
}

#[derive(Default)]
struct Beside {
    output: Output,
    spares: SpareBuffers,
    /// All that was queued and not forgotten from the back.
    model: Vec<u8>,
    /// So much of it the kernel took.
    gone: usize,
    made: usize,
}

impl Beside {
    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Copy(size) => {
                if let Some(bytes) = self.make(size) {
                    self.output.push_copy(&bytes, &mut self.spares);
                    self.model.extend(bytes);
                }
            }
            Op::Share(size) => {
                if let Some(bytes) = self.make(size) {
                    self.model.extend(&bytes);
                    self.share(bytes.into());
                }
            }
            Op::Write { slices, taken } => self.write(usize::from(slices) % SLICES, taken.into()),
            Op::Truncate(len) => {
                self.output.truncate(len.into());
                self.model.truncate(self.gone + usize::from(len));
            }
            Op::Clear => {
                assert_eq!(self.output.clear(), self.left().len());
                self.model.truncate(self.gone);
            }
        }
    }

    /// Bytes that differ from those before and after them, unless they would be too many.
    fn make(&mut self, size: Size) -> Option<Vec<u8>> {
        let len = size.len();
        if self.left().len() + len > QUEUED_MAX {
            return None;
        }
        let made = self.made;
        self.made += len;
        // A prime, so that no buffer's size is a multiple of the period.
        Some((made..self.made).map(|at| (at % 251) as u8).collect())
    }

    fn share(&mut self, bytes: Bytes) {
        self.output.push(bytes.clone(), &mut self.spares);
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = self.output.front(&mut slices);
        // Only then is the last slice the end of the queue.
        if (1..SLICES).contains(&filled) {
            let is_shared = slices[filled - 1].as_ptr() == bytes.as_ptr();
            assert_eq!(is_shared, Output::takes_whole(bytes.len()), "a piece of {}", bytes.len());
        }
    }

    /// A short write. `taken` starts over where it exceeds what is offered, so that most of its
    /// values make a difference.
    fn write(&mut self, slices: usize, taken: usize) {
        let taken = taken % (self.offer(slices) + 1);
        self.output.consume(taken, &mut self.spares);
        self.gone += taken;
    }

    /// Compares what a write of so many slices would offer, and returns how much it is.
    fn offer(&self, slices: usize) -> usize {
        let mut storage = [IoSlice::new(&[]); SLICES];
        let slices = &mut storage[..slices];
        let filled = self.output.front(slices);
        let mut rest = self.left();
        for slice in &slices[..filled] {
            // A kernel that is offered nothing takes nothing, for ever.
            assert!(!slice.is_empty());
            assert!(rest.starts_with(slice), "other bytes, {} before the end", rest.len());
            rest = &rest[slice.len()..];
        }
        assert!(filled == slices.len() || rest.is_empty(), "{} bytes not offered", rest.len());
        self.left().len() - rest.len()
    }

    fn check(&self) {
        assert_eq!(self.output.len(), self.left().len());
        assert_eq!(self.output.is_empty(), self.left().is_empty());
        self.offer(SLICES);
    }

    fn left(&self) -> &[u8] {
        &self.model[self.gone..]
    }

    /// Writes what is left, `write_max` bytes at a time.
    fn drain(mut self, write_max: u8) {
        while !self.output.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = self.output.front(&mut slices);
            // To compare all that is offered would take the square of its length.
            let offered = slices[..filled].iter().flat_map(|slice| slice.iter());
            let write = offered.take(write_max.max(1).into());
            let taken = write.clone().count();
            assert!(taken > 0, "{} bytes not offered", self.left().len());
            assert!(write.eq(&self.left()[..taken]), "other bytes after {}", self.gone);
            self.output.consume(taken, &mut self.spares);
            self.gone += taken;
        }
        self.check();
    }
}
