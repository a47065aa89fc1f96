//! The loop's read buffer, into which the kernel copies fast.

use bytes::{Buf, BytesMut};

use crate::state::READ_BUDGET;

/// Where a read is to begin: at a multiple of this, the length of a cache line.
///
/// The kernel copies by `rep movsb`, whose fast form wants an aligned destination. On an AMD EPYC a
/// read of 16 KiB to an address as malloc(3) gives it, a multiple of 16, takes twice as long.
const ALIGNMENT: usize = 64;

/// Empties the loop's buffer, and gives it room for [`READ_BUDGET`] bytes. It begins again at its
/// front, which is in the cache, unless the handler keeps a part of it.
#[inline(always)]
pub(super) fn rewind(buffer: &mut BytesMut) {
    buffer.clear();
    if buffer.capacity() < READ_BUDGET || padding(buffer, 0) > 0 {
        rewind_with(buffer, &[]);
    }
}

/// Lets the loop's buffer hold `bytes`, with room for [`READ_BUDGET`] more.
#[inline(never)]
pub(super) fn rewind_with(buffer: &mut BytesMut, bytes: &[u8]) {
    buffer.clear();
    buffer.reserve(ALIGNMENT + bytes.len() + READ_BUDGET);
    let padding = padding(buffer, bytes.len());
    buffer.resize(padding, 0);
    buffer.advance(padding);
    buffer.extend_from_slice(bytes);
}

/// How far the address after the first `len` bytes of `buffer` is from the next one that is aligned.
#[inline(always)]
fn padding(buffer: &BytesMut, len: usize) -> usize {
    (buffer.as_ptr().addr() + len).wrapping_neg() % ALIGNMENT
}
