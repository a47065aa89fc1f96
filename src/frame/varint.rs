//! Messages that follow their length as a variable-length integer.

use super::{Error, Frame, Framing, Head, too_long};

/// The bytes that 64 bits take, seven in each.
const BYTES_MAX: usize = 10;

/// Messages of at most `max` bytes, each behind its length as an unsigned LEB128 integer: seven bits in
/// a byte, the lowest first, and the top bit set in all but the last. Protocol Buffers call it a
/// varint.
///
/// Only the shortest form is accepted, so that each length has one: an integer that ends with a byte
/// of zero, or has more than 64 bits, is a [`BadVarint`](Error::BadVarint).
///
/// # Panics
///
/// If `max` is so near `usize::MAX` that no header fits beside it.
pub const fn varint(max: usize) -> Varint {
    assert!(max <= usize::MAX - BYTES_MAX, "no input is that long");
    Varint { max }
}

/// A framing: see [`varint()`](varint()).
#[derive(Clone, Copy, Debug)]
pub struct Varint {
    max: usize,
}

impl Framing for Varint {
    #[inline]
    fn find(&mut self, input: &[u8]) -> Result<Option<Frame>, Error> {
        let Some((length, head)) = decode(input)? else { return Ok(None) };
        if length > self.max as u64 {
            return too_long(self.max, length);
        }
        let len = head + length as usize;
        Ok((input.len() >= len).then_some(Frame { payload: head..len, len }))
    }

    /// At least the 10 bytes after which a length is known to be too long.
    fn greatest(&self) -> usize {
        (self.max + encode(self.max as u64).len()).max(BYTES_MAX)
    }

    fn head(&self, payload: usize) -> Result<Head, Error> {
        if payload > self.max {
            return too_long(self.max, payload as u64);
        }
        Ok(encode(payload as u64))
    }
}

/// The integer at the front of `input`, and how many bytes it takes.
#[inline]
fn decode(input: &[u8]) -> Result<Option<(u64, usize)>, Error> {
    let mut value = 0;
    for (at, byte) in input.iter().take(BYTES_MAX).enumerate() {
        let bits = u64::from(byte & 0x7f);
        // Of the tenth byte only one bit is left.
        if at == BYTES_MAX - 1 && bits > 1 {
            return Err(Error::BadVarint);
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            let overlong = at > 0 && *byte == 0;
            return if overlong { Err(Error::BadVarint) } else { Ok(Some((value, at + 1))) };
        }
    }
    if input.len() < BYTES_MAX { Ok(None) } else { Err(Error::BadVarint) }
}

fn encode(mut value: u64) -> Head {
    let mut head = Head::default();
    loop {
        let bits = (value & 0x7f) as u8;
        value >>= 7;
        head.bytes[usize::from(head.len)] = if value == 0 { bits } else { bits | 0x80 };
        head.len += 1;
        if value == 0 {
            return head;
        }
    }
}
