//! The body of a request, decoded as it comes.

use bytes::{Buf, BytesMut};

use crate::head::{Framing, is_token};
use crate::reply::Status;

/// Bytes of a body, its chunks put together. More is too large.
pub(crate) const BODY_MAX: u64 = 1024 * 1024;

/// Bytes of all chunk extensions and trailers of a body, which are not read.
const EXTRAS_MAX: u32 = 8 * 1024;

/// Digits of a chunk size: 64 bits.
const SIZE_DIGITS_MAX: u8 = 16;

/// How far a body has come.
#[derive(Debug)]
pub(crate) enum Body {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunks),
}

impl Body {
    /// The body that ends as `framing` says.
    ///
    /// # Errors
    ///
    /// If it is said to be too large.
    pub(crate) fn new(framing: Framing) -> Result<Self, Status> {
        match framing {
            Framing::Length(length) if length > BODY_MAX => Err(Status::ContentTooLarge),
            Framing::Length(length) => Ok(Self::Length(length)),
            Framing::Chunked => Ok(Self::Chunked(Chunks::default())),
        }
    }

    /// Whether there is none.
    pub(crate) const fn is_empty(&self) -> bool {
        matches!(self, Self::Length(0))
    }

    /// Takes off the front of `input` what belongs to the body, and gives its content to `keep`.
    /// Returns whether the body is whole; if it is not, `input` is used up.
    ///
    /// # Errors
    ///
    /// If its chunks are malformed or too large; where the next request begins is not known then.
    pub(crate) fn decode(
        &mut self,
        input: &mut BytesMut,
        mut keep: impl FnMut(&[u8]),
    ) -> Result<bool, Status> {
        match self {
            Self::Length(left) => {
                let count = (*left).min(input.len() as u64);
                keep(&input[..count as usize]);
                input.advance(count as usize);
                *left -= count;
                Ok(*left == 0)
            }
            Self::Chunked(chunks) => {
                let (count, whole) = chunks.decode(input, keep)?;
                input.advance(count);
                Ok(whole)
            }
        }
    }
}

/// How far the chunks have come.
#[derive(Debug)]
pub(crate) struct Chunks {
    next: Next,
    /// Content announced so far.
    announced: u64,
    /// Bytes of extensions and trailers so far.
    extras: u32,
}

impl Default for Chunks {
    fn default() -> Self {
        Self { next: Next::SIZE, announced: 0, extras: 0 }
    }
}

/// What the next byte belongs to (RFC 9112, 7.1). Lines end with CR and LF here, and with nothing
/// else: what one server takes for the end of a line and another does not is a request smuggled in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    Size { size: u64, digits: u8 },
    Extension { size: u64, next: Extension },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    Nothing,
}

/// What the next byte of a chunk extension belongs to (RFC 9112, 7.1.1). White space may stand
/// around `;` and `=`, and nowhere else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Extension {
    /// White space after the size, before `;`.
    AfterSize,
    /// White space and the first byte of a name.
    BeforeName,
    Name,
    AfterName,
    BeforeValue,
    Token,
    Quoted,
    /// The byte after a backslash.
    Escaped,
    QuoteEnd,
    /// White space after a value, before `;`.
    AfterValue,
}

impl Extension {
    /// What follows `byte`; `None` if it may not stand here.
    const fn after(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::AfterSize | Self::AfterName | Self::AfterValue, b' ' | b'\t') => self,
            (Self::BeforeName | Self::BeforeValue, b' ' | b'\t') => self,
            (Self::Name, b' ' | b'\t') => Self::AfterName,
            (Self::Token | Self::QuoteEnd, b' ' | b'\t') => Self::AfterValue,
            (Self::AfterSize | Self::Name | Self::AfterName, b';') => Self::BeforeName,
            (Self::Token | Self::QuoteEnd | Self::AfterValue, b';') => Self::BeforeName,
            (Self::Name | Self::AfterName, b'=') => Self::BeforeValue,
            (Self::BeforeValue | Self::Escaped, b'"') => Self::Quoted,
            (Self::Quoted, b'"') => Self::QuoteEnd,
            (Self::Quoted, b'\\') => Self::Escaped,
            (Self::Quoted | Self::Escaped, _) if is_text(byte) => Self::Quoted,
            (Self::BeforeName | Self::Name, _) if is_token(byte) => Self::Name,
            (Self::BeforeValue | Self::Token, _) if is_token(byte) => Self::Token,
            _ => return None,
        })
    }

    /// Whether the line may end here.
    const fn is_whole(self) -> bool {
        matches!(self, Self::Name | Self::Token | Self::QuoteEnd)
    }
}

impl Next {
    const SIZE: Self = Self::Size { size: 0, digits: 0 };
}

impl Chunks {
    /// Returns how much of `input` is decoded, and whether that was the end.
    fn decode(
        &mut self,
        input: &[u8],
        mut keep: impl FnMut(&[u8]),
    ) -> Result<(usize, bool), Status> {
        let mut at = 0;
        while at < input.len() && self.next != Next::Nothing {
            if let Next::Data { left } = self.next {
                let count = left.min((input.len() - at) as u64);
                keep(&input[at..at + count as usize]);
                at += count as usize;
                let left = left - count;
                self.next = if left == 0 { Next::DataCr } else { Next::Data { left } };
            } else {
                self.next = self.after(input[at])?;
                at += 1;
            }
        }
        Ok((at, self.next == Next::Nothing))
    }

    fn after(&mut self, byte: u8) -> Result<Next, Status> {
        Ok(match (self.next, byte) {
            (Next::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                if digits == SIZE_DIGITS_MAX {
                    return Err(Status::BadRequest);
                }
                Next::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Next::Size { size, digits: 1.. }, b'\r') => Next::SizeLf { size },
            (Next::Size { size, digits: 1.. }, _) => {
                self.extend(size, Extension::AfterSize, byte)?
            }
            (Next::Extension { size, next }, b'\r') if next.is_whole() => Next::SizeLf { size },
            (Next::Extension { size, next }, _) => self.extend(size, next, byte)?,
            (Next::SizeLf { size: 0 }, b'\n') => Next::Trailer,
            (Next::SizeLf { size }, b'\n') => {
                self.announced = self.announced.saturating_add(size);
                if self.announced > BODY_MAX {
                    return Err(Status::ContentTooLarge);
                }
                Next::Data { left: size }
            }
            (Next::DataCr, b'\r') => Next::DataLf,
            (Next::DataLf, b'\n') => Next::SIZE,
            (Next::Trailer, b'\r') => Next::LastLf,
            (Next::LastLf, b'\n') => Next::Nothing,
            (Next::TrailerName, b':') => Next::TrailerValue,
            (Next::Trailer | Next::TrailerName, _) if is_token(byte) => {
                self.count_extra(Status::FieldsTooLarge)?;
                Next::TrailerName
            }
            (Next::TrailerValue, b'\r') => Next::TrailerLf,
            (Next::TrailerValue, _) if is_text(byte) => {
                self.count_extra(Status::FieldsTooLarge)?;
                Next::TrailerValue
            }
            (Next::TrailerLf, b'\n') => Next::Trailer,
            _ => return Err(Status::BadRequest),
        })
    }

    fn extend(&mut self, size: u64, next: Extension, byte: u8) -> Result<Next, Status> {
        let next = next.after(byte).ok_or(Status::BadRequest)?;
        if byte != b';' {
            self.count_extra(Status::BadRequest)?;
        }
        Ok(Next::Extension { size, next })
    }

    fn count_extra(&mut self, too_many: Status) -> Result<(), Status> {
        self.extras += 1;
        if self.extras > EXTRAS_MAX { Err(too_many) } else { Ok(()) }
    }
}

/// What may stand in the value of a field: anything but controls, the tab aside.
const fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}
