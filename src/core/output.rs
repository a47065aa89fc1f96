//! The bytes of one connection that the kernel has not taken yet.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem;

use bytes::{Buf, Bytes, BytesMut};

use crate::core::share::{Foreign, QueuedShare, Shared};

/// From here on a piece is shared instead of copied: sharing costs an allocation-free reference
/// count but a vector of its own in `sendmsg`, copying costs the bytes.
const SHARE_FROM: usize = 4 * 1024;

/// The least and the greatest size that a buffer has in which small copies gather: it grows with
/// what is written, so that five bytes for each of many connections do not take a page for each.
const COPY_LEAST: usize = 64;
const COPY_BUFFER: usize = 4 * 1024;

/// The memory that an allocation of `size` bytes takes: malloc(3) of the GNU C library puts a word
/// in front of it and rounds up to 16 bytes, at least 32.
pub(crate) const fn allocation(size: usize) -> usize {
    match size {
        0 => 0,
        1..=24 => 32,
        size => size.saturating_add(8 + 15) & !15,
    }
}

/// How many buffers are kept for the next copies.
const SPARES_MAX: usize = 32;

/// Buffers of queues that were sent, for those that come next: what one connection writes to another
/// is mostly sent at the end of the turn. They take at most 128 KiB.
#[derive(Debug, Default)]
pub(crate) struct SpareBuffers(Vec<BytesMut>);

impl SpareBuffers {
    /// A buffer for `len` bytes and, mostly, more.
    fn take(&mut self, len: usize) -> BytesMut {
        match self.0.pop() {
            Some(buffer) if buffer.capacity() >= len => buffer,
            _ => BytesMut::with_capacity(len.max(COPY_LEAST)),
        }
    }

    fn give(&mut self, mut buffer: BytesMut) {
        if buffer.capacity() <= COPY_BUFFER && self.0.len() < SPARES_MAX {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}

/// A queue of bytes, in pieces that are copied together or shared with the application.
///
/// Empty, it owns no memory.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// One piece is the usual case.
    first: Option<Piece>,
    /// What comes behind it.
    rest: VecDeque<Piece>,
    len: usize,
    /// The memory of the pieces, what has been consumed of the first one included.
    held: usize,
}

#[derive(Debug)]
struct Piece {
    bytes: Content,
    /// The memory that is free when it is gone.
    cost: usize,
    /// Some of it has been taken off the front.
    is_cut: bool,
}

#[derive(Debug)]
enum Content {
    Copied(BytesMut),
    /// The application may hold it as well, which cannot be seen, so it counts in each queue.
    Given(Foreign),
    /// It counts once for all queues, in a gauge of its own.
    Shared(Foreign, QueuedShare),
}

impl Piece {
    const fn new(bytes: Content, cost: usize) -> Self {
        Self { bytes, cost, is_cut: false }
    }

    fn as_slice(&self) -> &[u8] {
        match &self.bytes {
            Content::Copied(bytes) => bytes,
            Content::Given(bytes) | Content::Shared(bytes, _) => &bytes.0,
        }
    }

    /// Appends `bytes` to a copy, if they fit or its buffer may grow for them. Returns whether they
    /// did, and by how much the cost has grown.
    fn append(&mut self, bytes: &[u8]) -> Option<usize> {
        let Content::Copied(copy) = &mut self.bytes else { return None };
        let fits = copy.capacity() - copy.len() >= bytes.len();
        // A buffer that has been cut holds more than it shows, and growing it would hide how much.
        let may_grow = !self.is_cut && copy.len() + bytes.len() <= COPY_BUFFER;
        if !fits && !may_grow {
            return None;
        }
        copy.extend_from_slice(bytes);
        if fits {
            return Some(0);
        }
        let before = mem::replace(&mut self.cost, allocation(copy.capacity()));
        Some(self.cost - before)
    }
}

impl Output {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory that what is queued takes up, or may be keeping from being freed.
    pub(crate) const fn held(&self) -> usize {
        self.held
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.first.iter().chain(&self.rest)
    }

    /// Queues a copy of `bytes`.
    pub(crate) fn push_copy(&mut self, bytes: &[u8], spares: &mut SpareBuffers) {
        if bytes.is_empty() {
            return;
        }
        self.len += bytes.len();
        let last = self.rest.back_mut().or(self.first.as_mut());
        if let Some(grown) = last.and_then(|last| last.append(bytes)) {
            self.held += grown;
            return;
        }
        let mut copy = spares.take(bytes.len());
        copy.extend_from_slice(bytes);
        let cost = allocation(copy.capacity());
        self.push_piece(Piece::new(Content::Copied(copy), cost));
    }

    /// Queues `bytes` without copying them, unless they are so few that copying is cheaper.
    pub(crate) fn push(&mut self, bytes: Bytes, spares: &mut SpareBuffers) {
        if bytes.len() < SHARE_FROM {
            return self.push_copy(&bytes, spares);
        }
        self.len += bytes.len();
        let cost = allocation(bytes.len());
        self.push_piece(Piece::new(Content::Given(Foreign(bytes)), cost));
    }

    /// Queues `shared`, which is counted in its own gauge, unless it is so little that copying is
    /// cheaper.
    pub(crate) fn push_shared(&mut self, shared: &Shared, spares: &mut SpareBuffers) {
        if shared.len() < SHARE_FROM {
            return self.push_copy(shared.bytes(), spares);
        }
        self.len += shared.len();
        let queued = shared.enqueue();
        self.push_piece(Piece::new(Content::Shared(Foreign(queued.bytes()), queued), 0));
    }

    fn push_piece(&mut self, piece: Piece) {
        self.held += piece.cost;
        if self.first.is_none() {
            self.first = Some(piece);
            return;
        }
        let before = self.rest.capacity();
        if before == self.rest.len() {
            // From one the list doubles.
            self.rest.reserve_exact(before.max(1));
        }
        self.held += list_cost(self.rest.capacity()) - list_cost(before);
        self.rest.push_back(piece);
    }

    /// The shared pieces in the queue: what tells one from another, and its length.
    pub(crate) fn shares(&self) -> impl Iterator<Item = (usize, u64)> {
        self.pieces().filter_map(|piece| match &piece.bytes {
            Content::Shared(_, queued) => Some(queued.identity()),
            Content::Copied(_) | Content::Given(_) => None,
        })
    }

    /// Whether [`Output::push`] would queue a piece of this size without copying it.
    pub(crate) const fn takes_whole(len: usize) -> bool {
        len >= SHARE_FROM
    }

    /// All that is queued, if it is one piece.
    #[inline]
    pub(crate) fn sole(&self) -> Option<&[u8]> {
        if self.rest.is_empty() { self.first.as_ref().map(Piece::as_slice) } else { None }
    }

    /// Fills `slices` with the front of the queue and returns how many it filled.
    pub(crate) fn front<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(self.pieces()) {
            *slice = IoSlice::new(piece.as_slice());
            filled += 1;
        }
        filled
    }

    /// Forgets the first `count` bytes, which the kernel took.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    #[inline]
    pub(crate) fn consume(&mut self, count: usize, spares: &mut SpareBuffers) {
        if count < self.len || !self.rest.is_empty() {
            return self.consume_some(count, spares);
        }
        // Mostly it is all of one piece.
        assert!(count == self.len, "consumed more than was queued");
        self.len = 0;
        if let Some(Piece { bytes: Content::Copied(copy), is_cut: false, .. }) = self.first.take() {
            spares.give(copy);
        }
        self.forget_list();
    }

    #[inline(never)]
    fn consume_some(&mut self, mut count: usize, spares: &mut SpareBuffers) {
        assert!(count <= self.len, "consumed more than was queued");
        self.len -= count;
        while let Some(piece) = &mut self.first {
            let len = piece.as_slice().len();
            if count < len {
                match &mut piece.bytes {
                    Content::Copied(bytes) => bytes.advance(count),
                    Content::Given(bytes) | Content::Shared(bytes, _) => bytes.0.advance(count),
                }
                piece.is_cut |= count > 0;
                return;
            }
            count -= len;
            self.held -= piece.cost;
            let gone = mem::replace(&mut self.first, self.rest.pop_front());
            if let Some(Piece { bytes: Content::Copied(copy), is_cut: false, .. }) = gone {
                spares.give(copy);
            }
        }
        self.forget_list();
    }

    fn forget_list(&mut self) {
        if self.rest.capacity() > 0 {
            self.rest = VecDeque::new();
        }
        self.held = 0;
    }

    /// Forgets all but the first `len` bytes: what a callback that panicked had queued.
    pub(crate) fn truncate(&mut self, len: usize) {
        while self.len > len {
            let Some(mut piece) = self.rest.pop_back().or_else(|| self.first.take()) else {
                return;
            };
            let size = piece.as_slice().len();
            let excess = self.len - len;
            self.len -= size;
            self.held -= piece.cost;
            if size > excess {
                match &mut piece.bytes {
                    Content::Copied(bytes) => bytes.truncate(size - excess),
                    Content::Given(bytes) | Content::Shared(bytes, _) => {
                        bytes.0.truncate(size - excess);
                    }
                }
                self.len += size - excess;
                self.push_piece(piece);
            }
        }
        if self.is_empty() {
            self.forget_list();
        }
    }

    /// Forgets everything and returns how much it was.
    #[inline]
    pub(crate) fn clear(&mut self) -> usize {
        if self.is_empty() { 0 } else { self.give_up() }
    }

    #[cold]
    fn give_up(&mut self) -> usize {
        mem::take(self).len
    }
}

/// The memory of a list with room for so many pieces.
const fn list_cost(capacity: usize) -> usize {
    allocation(capacity * size_of::<Piece>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    use crate::core::share::SharedGauge;

    /// What the pieces and their list take, from what they are.
    fn memory(output: &Output) -> usize {
        let pieces = output.pieces().map(|piece| match &piece.bytes {
            // What has been taken off the front of a copy is still allocated.
            Content::Copied(copy) if !piece.is_cut => allocation(copy.capacity()),
            Content::Copied(_) | Content::Given(_) => piece.cost,
            Content::Shared(..) => 0,
        });
        pieces.sum::<usize>() + list_cost(output.rest.capacity())
    }

    fn contents(output: &Output) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 1_024];
        let filled = output.front(&mut slices);
        slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn every_short_write_of_two_pieces_keeps_the_order() {
        let (small, large) = (vec![1_u8; 100], vec![2_u8; SHARE_FROM + 7]);
        let whole = [small.clone(), large.clone(), small.clone()].concat();
        for taken in 0..=whole.len() {
            let (mut output, mut spares) = (Output::default(), SpareBuffers::default());
            output.push_copy(&small, &mut spares);
            output.push(Bytes::from(large.clone()), &mut spares);
            output.push_copy(&small, &mut spares);
            output.consume(taken, &mut spares);
            assert_eq!(output.len(), whole.len() - taken);
            assert_eq!(contents(&output), whole[taken..], "after {taken}");
        }
    }

    #[test]
    fn large_pieces_are_shared_and_small_ones_gathered() {
        let (mut output, mut spares) = (Output::default(), SpareBuffers::default());
        let large = Bytes::from(vec![0; SHARE_FROM]);
        output.push(large.clone(), &mut spares);
        output.push_copy(b"a", &mut spares);
        output.push(Bytes::from_static(b"b"), &mut spares);
        assert_eq!(output.pieces().count(), 2);
        assert_eq!(output.first.as_ref().unwrap().as_slice().as_ptr(), large.as_ptr());
    }

    #[test]
    fn drained_it_owns_nothing() {
        let (mut output, mut spares) = (Output::default(), SpareBuffers::default());
        output.push_copy(&[0; 100_000], &mut spares);
        output.consume(100_000, &mut spares);
        assert_eq!(output.rest.capacity(), 0);
        output.push_copy(&[0; 100_000], &mut spares);
        output.truncate(0);
        assert_eq!(output.rest.capacity(), 0);
        assert_eq!(output.held(), 0);
    }

    #[test]
    fn a_few_bytes_take_little_and_many_small_writes_gather() {
        let (mut output, mut spares) = (Output::default(), SpareBuffers::default());
        output.push_copy(b"hello", &mut spares);
        assert!(output.held() <= 160, "{}", output.held());
        for _ in 0..800 {
            output.push_copy(b"hello", &mut spares);
        }
        assert_eq!(output.pieces().count(), 1);
        assert!(output.held() < 2 * 4_005, "{}", output.held());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Copy(Vec<u8>),
        Give(Vec<u8>),
        Share(Vec<u8>),
        Consume(usize),
        Truncate(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let bytes = || {
            (any::<u8>(), prop_oneof![0..10_usize, 0..2 * SHARE_FROM])
                .prop_map(|(byte, len)| vec![byte; len])
        };
        prop_oneof![
            bytes().prop_map(Op::Copy),
            bytes().prop_map(Op::Give),
            bytes().prop_map(Op::Share),
            any::<usize>().prop_map(Op::Consume),
            any::<usize>().prop_map(Op::Truncate),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_byte_vector(ops in proptest::collection::vec(op(), 0..60)) {
            let (mut output, mut model) = (Output::default(), Vec::new());
            let mut spares = SpareBuffers::default();
            let gauge = Arc::<SharedGauge>::default();
            for op in ops {
                match op {
                    Op::Copy(bytes) => {
                        output.push_copy(&bytes, &mut spares);
                        model.extend(bytes);
                    }
                    Op::Give(bytes) => {
                        output.push(Bytes::from(bytes.clone()), &mut spares);
                        model.extend(bytes);
                    }
                    Op::Share(bytes) => {
                        output.push_shared(&Shared::new(Bytes::from(bytes.clone()), &gauge), &mut spares);
                        model.extend(bytes);
                    }
                    Op::Consume(count) => {
                        let count = count % (model.len() + 1);
                        output.consume(count, &mut spares);
                        model.drain(..count);
                    }
                    Op::Truncate(len) => {
                        let len = len % (model.len() + 1);
                        output.truncate(len);
                        model.truncate(len);
                    }
                }
                prop_assert_eq!(output.len(), model.len());
                prop_assert_eq!(contents(&output), model.clone());
                prop_assert_eq!(output.held(), memory(&output));
                prop_assert_eq!(gauge.get(), output.shares().map(|(_, len)| len).sum::<u64>());
            }
        }
    }
}
