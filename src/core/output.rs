//! The bytes of one connection that the kernel has not taken yet.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// From here on a piece is shared instead of copied: sharing costs an allocation-free reference
/// count but a vector of its own in `sendmsg`, copying costs the bytes.
const SHARE_FROM: usize = 4 * 1024;

/// The least size of a buffer that copies gather in.
const COPY_BUFFER: usize = 4 * 1024;

/// A queue of bytes, in pieces that are copied together or shared with the application.
///
/// Empty, it owns no memory.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pieces: VecDeque<Piece>,
    len: usize,
    /// The memory of the pieces, what has been consumed of the first one included.
    held: usize,
}

#[derive(Debug)]
struct Piece {
    bytes: Content,
    /// The memory it holds until it is gone.
    cost: usize,
}

#[derive(Debug)]
enum Content {
    Copied(BytesMut),
    Shared(Bytes),
}

impl Piece {
    fn copied(bytes: BytesMut) -> Self {
        Self { cost: bytes.capacity(), bytes: Content::Copied(bytes) }
    }

    const fn shared(bytes: Bytes) -> Self {
        Self { cost: bytes.len(), bytes: Content::Shared(bytes) }
    }

    fn as_slice(&self) -> &[u8] {
        match &self.bytes {
            Content::Copied(bytes) => bytes,
            Content::Shared(bytes) => bytes,
        }
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

    /// Queues a copy of `bytes`.
    pub(crate) fn push_copy(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.len += bytes.len();
        if let Some(Piece { bytes: Content::Copied(last), .. }) = self.pieces.back_mut()
            && last.capacity() - last.len() >= bytes.len()
        {
            last.extend_from_slice(bytes);
            return;
        }
        let mut piece = BytesMut::with_capacity(bytes.len().max(COPY_BUFFER));
        piece.extend_from_slice(bytes);
        self.push_piece(Piece::copied(piece));
    }

    /// Queues `bytes` without copying them, unless they are so few that copying is cheaper.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if bytes.len() < SHARE_FROM {
            return self.push_copy(&bytes);
        }
        self.len += bytes.len();
        self.push_piece(Piece::shared(bytes));
    }

    fn push_piece(&mut self, piece: Piece) {
        self.held += piece.cost;
        self.pieces.push_back(piece);
    }

    /// Whether [`Output::push`] would share a piece of this size.
    pub(crate) const fn shares(len: usize) -> bool {
        len >= SHARE_FROM
    }

    /// Fills `slices` with the front of the queue and returns how many it filled.
    pub(crate) fn front<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
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
    pub(crate) fn consume(&mut self, mut count: usize) {
        assert!(count <= self.len, "consumed more than was queued");
        self.len -= count;
        while let Some(piece) = self.pieces.front_mut() {
            let len = piece.as_slice().len();
            if count < len {
                match &mut piece.bytes {
                    Content::Copied(bytes) => bytes.advance(count),
                    Content::Shared(bytes) => bytes.advance(count),
                }
                return;
            }
            count -= len;
            self.held -= piece.cost;
            self.pieces.pop_front();
        }
        self.pieces = VecDeque::new();
    }

    /// Forgets all but the first `len` bytes: what a callback that panicked had queued.
    pub(crate) fn truncate(&mut self, len: usize) {
        while self.len > len {
            let Some(mut piece) = self.pieces.pop_back() else {
                return;
            };
            let size = piece.as_slice().len();
            let excess = self.len - len;
            self.len -= size;
            self.held -= piece.cost;
            if size > excess {
                match &mut piece.bytes {
                    Content::Copied(bytes) => bytes.truncate(size - excess),
                    Content::Shared(bytes) => bytes.truncate(size - excess),
                }
                self.len += size - excess;
                self.push_piece(piece);
            }
        }
        if self.is_empty() {
            self.pieces = VecDeque::new();
        }
    }

    /// Forgets everything and returns how much it was.
    #[inline]
    pub(crate) fn clear(&mut self) -> usize {
        if self.is_empty() { 0 } else { self.give_up() }
    }

    #[cold]
    fn give_up(&mut self) -> usize {
        std::mem::take(self).len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            let mut output = Output::default();
            output.push_copy(&small);
            output.push(Bytes::from(large.clone()));
            output.push_copy(&small);
            output.consume(taken);
            assert_eq!(output.len(), whole.len() - taken);
            assert_eq!(contents(&output), whole[taken..], "after {taken}");
        }
    }

    #[test]
    fn large_pieces_are_shared_and_small_ones_gathered() {
        let mut output = Output::default();
        let large = Bytes::from(vec![0; SHARE_FROM]);
        output.push(large.clone());
        output.push_copy(b"a");
        output.push(Bytes::from_static(b"b"));
        assert_eq!(output.pieces.len(), 2);
        assert_eq!(output.pieces[0].as_slice().as_ptr(), large.as_ptr());
    }

    #[test]
    fn drained_it_owns_nothing() {
        let mut output = Output::default();
        output.push_copy(&[0; 100_000]);
        output.consume(100_000);
        assert_eq!(output.pieces.capacity(), 0);
        output.push_copy(&[0; 100_000]);
        output.truncate(0);
        assert_eq!(output.pieces.capacity(), 0);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Copy(Vec<u8>),
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
            bytes().prop_map(Op::Share),
            any::<usize>().prop_map(Op::Consume),
            any::<usize>().prop_map(Op::Truncate),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_byte_vector(ops in proptest::collection::vec(op(), 0..60)) {
            let (mut output, mut model) = (Output::default(), Vec::new());
            for op in ops {
                match op {
                    Op::Copy(bytes) => {
                        output.push_copy(&bytes);
                        model.extend(bytes);
                    }
                    Op::Share(bytes) => {
                        output.push(Bytes::from(bytes.clone()));
                        model.extend(bytes);
                    }
                    Op::Consume(count) => {
                        let count = count % (model.len() + 1);
                        output.consume(count);
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
            }
        }
    }
}
