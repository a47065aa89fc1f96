//! Messages that have all the same length.

use super::{Error, Frame, Framing, Head};

/// Messages of `len` bytes each, with nothing between them.
///
/// # Panics
///
/// If `len` is 0.
pub const fn fixed(len: usize) -> Fixed {
    assert!(len > 0, "a message has at least one byte");
    Fixed { len }
}

/// A framing: see [`fixed()`](fixed()).
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    len: usize,
}

impl Framing for Fixed {
    #[inline]
    fn find(&mut self, input: &[u8]) -> Result<Option<Frame>, Error> {
        let len = self.len;
        Ok((input.len() >= len).then_some(Frame { payload: 0..len, len }))
    }

    fn greatest(&self) -> usize {
        self.len
    }

    /// Empty, for a payload of exactly the length of a message.
    fn head(&self, payload: usize) -> Result<Head, Error> {
        if payload > self.len {
            return super::too_long(self.len, payload as u64);
        }
        if payload < self.len { Err(Error::BadLength) } else { Ok(Head::default()) }
    }
}
