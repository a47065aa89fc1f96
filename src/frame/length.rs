//! Messages that follow their length.

use bytes::{Buf, BytesMut};

use super::{Body, Error, Frame, Framing, HEAD_MAX, Head, too_long};

/// Messages of at most `max` bytes, each behind its length, the big end first.
///
/// The length counts the payload, and nothing stands beside it in the header, unless the methods of
/// [`Length`] say otherwise. They describe a header field by field, so that no sum has to be done:
///
/// ```
/// use wheelhouse::frame::{self, Counts, Framing, Length, Width};
///
/// /// A type in one byte, and a length in four that counts itself: the messages of PostgreSQL.
/// const MESSAGES: Length =
///     frame::length(Width::U32, 16 * 1024).after(1).counts(Counts::FromField).keep_header();
///
/// let input = b"Q\0\0\0\x0dselect 1\0C";
/// let mut messages = MESSAGES;
/// let frame = messages.find(input)?.expect("a whole message");
/// assert_eq!(&input[frame.payload], b"Q\0\0\0\x0dselect 1\0");
/// # Ok::<(), frame::Error>(())
/// ```
///
/// # Panics
///
/// If `max` is more than the field can announce, or so near `usize::MAX` that no header fits beside
/// it.
pub const fn length(width: Width, max: usize) -> Length {
    assert!(max <= usize::MAX - HEAD_MAX, "no input is that long");
    assert!(max as u64 <= width.greatest(), "the field cannot announce that length");
    let header = width.bytes() as u8;
    let shift = u64::BITS as u8 - 8 * header;
    let counts = Counts::Payload;
    Length {
        max,
        header,
        counted: 0,
        after: 0,
        shift,
        counts,
        width,
        little_endian: false,
        keeps_header: false,
    }
}

/// How many bytes the field of a length has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Width {
    /// One byte.
    U8,
    /// Two bytes.
    U16,
    /// Three bytes.
    U24,
    /// Four bytes.
    U32,
    /// Eight bytes.
    U64,
}

impl Width {
    const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::U24 => 3,
            Self::U32 => 4,
            Self::U64 => 8,
        }
    }

    /// The greatest number that the field holds.
    const fn greatest(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }
}

/// What a length counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Counts {
    /// The payload.
    Payload,
    /// All that stands behind the field: what is left of the header, and the payload.
    AfterField,
    /// The field, and all that stands behind it.
    FromField,
    /// The whole message.
    Whole,
}

/// A framing: see [`length()`](length()).
///
/// It remembers nothing, so one constant serves all connections, and is copied where
/// [`each`](super::each) asks for a `&mut`.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    max: usize,
    /// Bytes of the header.
    header: u8,
    /// What the length counts beside the payload.
    counted: u8,
    /// Bytes of the header before the field.
    after: u8,
    /// By how many bits eight bytes are more than the field.
    shift: u8,
    counts: Counts,
    width: Width,
    little_endian: bool,
    keeps_header: bool,
}

impl Length {
    /// The little end of the field comes first.
    pub const fn little_endian(self) -> Self {
        Self { little_endian: true, ..self }
    }

    /// The payload that is handed over begins at the first byte of the message, for a protocol that
    /// has more in its header than the length. `max` does not count the header. What is written is
    /// given without one: [`put`](super::put) writes it.
    pub const fn keep_header(self) -> Self {
        Self { keeps_header: true, ..self }
    }

    /// The field comes after so many other bytes of the header.
    ///
    /// # Panics
    ///
    /// If the header is longer than 16 bytes.
    pub const fn after(self, header: usize) -> Self {
        self.with(header, self.then_bytes())
    }

    /// So many other bytes of the header come behind the field, before the payload.
    ///
    /// # Panics
    ///
    /// If the header is longer than 16 bytes.
    pub const fn then(self, header: usize) -> Self {
        self.with(self.after as usize, header)
    }

    /// What the length counts. The payload, by default.
    ///
    /// # Panics
    ///
    /// If the field cannot announce the greatest payload then.
    pub const fn counts(self, what: Counts) -> Self {
        let (after, then) = (self.after as usize, self.then_bytes());
        Self { counts: what, ..self }.with(after, then)
    }

    const fn then_bytes(&self) -> usize {
        self.header as usize - self.after as usize - self.width.bytes()
    }

    /// With so many bytes of the header before the field and behind it.
    const fn with(self, after: usize, then: usize) -> Self {
        assert!(after <= HEAD_MAX && then <= HEAD_MAX, "a header has at most 16 bytes");
        let width = self.width.bytes();
        let header = after + width + then;
        assert!(header <= HEAD_MAX, "a header has at most 16 bytes");
        let counted = match self.counts {
            Counts::Payload => 0,
            Counts::AfterField => then,
            Counts::FromField => width + then,
            Counts::Whole => header,
        };
        let greatest = self.max as u64 + counted as u64;
        assert!(greatest <= self.width.greatest(), "the field cannot announce that length");
        Self { header: header as u8, counted: counted as u8, after: after as u8, ..self }
    }

    /// Takes the header of a message off `input` whose payload is to be taken piece by piece; `None`
    /// while the header is not whole.
    ///
    /// For payloads that [`Limits::input_max`](crate::Limits::input_max) does not hold. The greatest
    /// length is still `max`, which is then a bound on the work and not on the memory.
    ///
    /// # Errors
    ///
    /// As [`Framing::find`]. Nothing is taken off then.
    pub fn begin(&self, input: &mut BytesMut) -> Result<Option<Body>, Error> {
        let Some(payload) = self.payload(input)? else { return Ok(None) };
        let Some(header) = input.get(..self.header.into()) else { return Ok(None) };
        let header = Head::copy(header);
        input.advance(header.len());
        Ok(Some(Body::new(header, payload as u64)))
    }

    /// The length of the payload, once the field has come.
    #[inline]
    fn payload(&self, input: &[u8]) -> Result<Option<usize>, Error> {
        let Some(length) = self.read(input) else { return Ok(None) };
        let Some(payload) = length.checked_sub(self.counted.into()) else {
            return Err(Error::BadLength);
        };
        if payload > self.max as u64 {
            return too_long(self.max, payload);
        }
        Ok(Some(payload as usize))
    }

    #[inline]
    fn read(&self, input: &[u8]) -> Option<u64> {
        let field = input.get(self.after.into()..)?;
        // What stands behind the field is read with it, and shifted out.
        match field.first_chunk() {
            Some(bytes) => Some(self.number(*bytes)),
            None => self.read_short(field),
        }
    }

    #[cold]
    fn read_short(&self, field: &[u8]) -> Option<u64> {
        let mut bytes = [0; size_of::<u64>()];
        bytes[..field.len()].copy_from_slice(field);
        (field.len() >= self.width.bytes()).then(|| self.number(bytes))
    }

    #[inline]
    const fn number(&self, bytes: [u8; size_of::<u64>()]) -> u64 {
        let shift = self.shift as u32;
        if self.little_endian {
            u64::from_le_bytes(bytes).wrapping_shl(shift).wrapping_shr(shift)
        } else {
            u64::from_be_bytes(bytes).wrapping_shr(shift)
        }
    }
}

impl Framing for Length {
    #[inline]
    fn find(&mut self, input: &[u8]) -> Result<Option<Frame>, Error> {
        let Some(payload) = self.payload(input)? else { return Ok(None) };
        let header = usize::from(self.header);
        let len = header + payload;
        let begin = if self.keeps_header { 0 } else { header };
        Ok((input.len() >= len).then_some(Frame { payload: begin..len, len }))
    }

    fn greatest(&self) -> usize {
        usize::from(self.header) + self.max
    }

    fn head(&self, payload: usize) -> Result<Head, Error> {
        if payload > self.max {
            return too_long(self.max, payload as u64);
        }
        let length = payload as u64 + u64::from(self.counted);
        let mut head = Head { len: self.header, ..Head::default() };
        let width = self.width.bytes();
        let field = &mut head[usize::from(self.after)..][..width];
        if self.little_endian {
            field.copy_from_slice(&length.to_le_bytes()[..width]);
        } else {
            field.copy_from_slice(&length.to_be_bytes()[size_of::<u64>() - width..]);
        }
        Ok(head)
    }
}
