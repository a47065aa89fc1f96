//! Commands out of the bytes that a client sends: RESP2 arrays of bulk strings, or inline commands.
//!
//! The arguments stay where they are: a command is a list of places in the input. That list and the
//! words of an inline command lie in buffers that all commands use in turn, so a command costs no
//! allocation.

use std::fmt;
use std::ops::Index;

use crate::resp::{ARGS_MAX, BadLine, INLINE_MAX, UnbalancedQuotes, Words, line};

/// The places kept for the next command, of those that one with more arguments needed.
const SPANS_KEPT: usize = 1_024;

/// Where an argument is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// The arguments of a command, its name first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Args<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    pub(crate) const fn new(bytes: &'a [u8], spans: &'a [Span]) -> Self {
        Self { bytes, spans }
    }

    pub(crate) const fn len(self) -> usize {
        self.spans.len()
    }

    pub(crate) fn get(self, index: usize) -> Option<&'a [u8]> {
        self.spans.get(index).map(|span| &self.bytes[span.start as usize..span.end as usize])
    }

    /// Those from `first` on.
    pub(crate) fn from(self, first: usize) -> impl Iterator<Item = &'a [u8]> {
        let spans = self.spans.get(first..).unwrap_or_default();
        spans.iter().map(move |span| &self.bytes[span.start as usize..span.end as usize])
    }

    /// Those from `first` on, two by two.
    pub(crate) fn pairs_from(self, first: usize) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.from(first).step_by(2).zip(self.from(first + 1).step_by(2))
    }
}

impl Index<usize> for Args<'_> {
    type Output = [u8];

    #[inline]
    fn index(&self, index: usize) -> &[u8] {
        let span = self.spans[index];
        &self.bytes[span.start as usize..span.end as usize]
    }
}

/// Why bytes are no command. The texts are those of Redis where it has one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ProtocolError {
    ArrayLength,
    BulkLength,
    /// This byte is in the place of a `$`.
    NoBulk(u8),
    NoLineEnd,
    /// Larger than this.
    TooLarge(usize),
    InlineTooLong,
    Quotes,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Protocol error: ")?;
        match self {
            Self::ArrayLength => f.write_str("invalid multibulk length"),
            Self::BulkLength => f.write_str("invalid bulk length"),
            // It is a part of a line, and may be any byte.
            Self::NoBulk(byte @ b' '..=b'~') => {
                write!(f, "expected '$', got '{}'", char::from(*byte))
            }
            Self::NoBulk(byte) => write!(f, "expected '$', got '\\x{byte:02x}'"),
            Self::NoLineEnd => f.write_str("expected CRLF after a bulk string"),
            Self::TooLarge(max) => {
                write!(f, "the command is larger than {max} bytes (--max-request)")
            }
            Self::InlineTooLong => f.write_str("too big inline request"),
            Self::Quotes => f.write_str("unbalanced quotes in request"),
        }
    }
}

/// What is at the front of the input.
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    /// Part of a command, which is not whole before there are so many bytes.
    Part(usize),
    /// So many bytes that ask nothing: an empty line or an empty array.
    Nothing(usize),
    /// A command, and how many bytes it takes of the input.
    Command(usize, Args<'a>),
}

/// How far the command at the front of the input has been examined, where it is not whole.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// So many of its bytes.
    at: u32,
    /// Arguments that begin from there on.
    left: u32,
}

/// Buffers for the command at hand.
#[derive(Debug)]
pub(crate) struct Parser {
    /// Bytes of a command, with all that frames it.
    max: usize,
    spans: Vec<Span>,
    words: Vec<u8>,
}

impl Parser {
    /// For commands of up to `max` bytes.
    pub(crate) const fn new(max: usize) -> Self {
        Self { max, spans: Vec::new(), words: Vec::new() }
    }

    /// What is at the front of `input`, of which `progress` has been examined. The caller takes off
    /// what is whole; of a part it appends the rest.
    #[inline]
    pub(crate) fn next<'a>(
        &'a mut self,
        progress: &mut Progress,
        input: &'a [u8],
    ) -> Result<Parsed<'a>, ProtocolError> {
        match input.first() {
            None => Ok(Parsed::Part(1)),
            Some(b'*') if progress.at == 0 => self.array(progress, input),
            Some(b'*') => self.rest_of_array(progress, input),
            Some(_) => self.inline(progress, input),
        }
    }

    #[inline]
    fn array<'a>(
        &'a mut self,
        progress: &mut Progress,
        input: &'a [u8],
    ) -> Result<Parsed<'a>, ProtocolError> {
        let length = line(input, b'*').map_err(|BadLine| ProtocolError::ArrayLength)?;
        let Some((count, start)) = length else { return Ok(Parsed::Part(input.len() + 1)) };
        if count <= 0 {
            return Ok(Parsed::Nothing(start));
        }
        if count > ARGS_MAX {
            return Err(ProtocolError::ArrayLength);
        }
        self.spans.clear();
        if self.spans.capacity() > SPANS_KEPT {
            self.spans.shrink_to(SPANS_KEPT);
        }
        let (mut at, mut left) = (start, count as u32);
        while left > 0 {
            if let Some(span) = short_argument(input, at)
                && span.end as usize + 2 <= self.max
            {
                self.spans.push(span);
                at = span.end as usize + 2;
                left -= 1;
                continue;
            }
            match argument(input, at, self.max)? {
                Argument::Whole(span) => {
                    self.spans.push(span);
                    at = span.end as usize + 2;
                    left -= 1;
                }
                Argument::Part(needed) => {
                    *progress = Progress { at: at as u32, left };
                    return Ok(Parsed::Part(needed));
                }
            }
        }
        Ok(Parsed::Command(at, Args::new(input, &self.spans)))
    }

    /// Goes on where the input ended before. Places are not kept meanwhile: when the command is whole
    /// it is examined once more.
    #[cold]
    fn rest_of_array<'a>(
        &'a mut self,
        progress: &mut Progress,
        input: &'a [u8],
    ) -> Result<Parsed<'a>, ProtocolError> {
        while progress.left > 0 {
            match argument(input, progress.at as usize, self.max)? {
                Argument::Whole(span) => {
                    progress.at = span.end + 2;
                    progress.left -= 1;
                }
                Argument::Part(needed) => return Ok(Parsed::Part(needed)),
            }
        }
        *progress = Progress::default();
        self.array(progress, input)
    }

    fn inline<'a>(
        &'a mut self,
        progress: &mut Progress,
        input: &'a [u8],
    ) -> Result<Parsed<'a>, ProtocolError> {
        let at = progress.at as usize;
        let rest = input.get(at..).unwrap_or_default();
        let newline = rest.iter().position(|byte| *byte == b'\n').map(|offset| at + offset);
        if newline.unwrap_or(input.len()) > INLINE_MAX {
            return Err(ProtocolError::InlineTooLong);
        }
        let Some(newline) = newline else {
            progress.at = input.len() as u32;
            return Ok(Parsed::Part(input.len() + 1));
        };
        progress.at = 0;
        let text = &input[..newline];
        let mut words = Words::new(text.strip_suffix(b"\r").unwrap_or(text));
        self.words.clear();
        self.spans.clear();
        let mut start = 0;
        while words.next(&mut self.words).map_err(|UnbalancedQuotes| ProtocolError::Quotes)? {
            let end = self.words.len() as u32;
            self.spans.push(Span { start, end });
            start = end;
        }
        if self.spans.is_empty() {
            return Ok(Parsed::Nothing(newline + 1));
        }
        Ok(Parsed::Command(newline + 1, Args::new(&self.words, &self.spans)))
    }
}

enum Argument {
    Whole(Span),
    /// It is not whole before there are so many bytes.
    Part(usize),
}

/// The bulk string that begins at `at`, if it is all there and has less than a hundred bytes, as nearly
/// all have.
#[inline]
fn short_argument(input: &[u8], at: usize) -> Option<Span> {
    let (start, len) = match *input.get(at..)?.first_chunk::<5>()? {
        [b'$', ones @ b'0'..=b'9', b'\r', b'\n', _] => (at + 4, ones - b'0'),
        [b'$', tens @ b'1'..=b'9', ones @ b'0'..=b'9', b'\r', b'\n'] => {
            (at + 5, (tens - b'0') * 10 + (ones - b'0'))
        }
        _ => return None,
    };
    let end = start + usize::from(len);
    let is_whole = input.get(end..)?.first_chunk() == Some(b"\r\n");
    is_whole.then_some(Span { start: start as u32, end: end as u32 })
}

/// The bulk string that begins at `at`, in a command of at most `max` bytes.
#[inline]
fn argument(input: &[u8], at: usize, max: usize) -> Result<Argument, ProtocolError> {
    let rest = input.get(at..).unwrap_or_default();
    match rest.first() {
        None => return part(at + 1, max),
        Some(b'$') => {}
        Some(other) => return Err(ProtocolError::NoBulk(*other)),
    }
    let length = line(rest, b'$').map_err(|BadLine| ProtocolError::BulkLength)?;
    let Some((len, head)) = length else { return part(input.len() + 1, max) };
    let len = usize::try_from(len).map_err(|_| ProtocolError::BulkLength)?;
    if len > max {
        return Err(ProtocolError::TooLarge(max));
    }
    let start = at + head;
    let end = start + len;
    match input.get(end..end + 2) {
        Some(b"\r\n") if end + 2 <= max => {
            Ok(Argument::Whole(Span { start: start as u32, end: end as u32 }))
        }
        None => part(end + 2, max),
        Some(b"\r\n") => Err(ProtocolError::TooLarge(max)),
        Some(_) => Err(ProtocolError::NoLineEnd),
    }
}

fn part(needed: usize, max: usize) -> Result<Argument, ProtocolError> {
    if needed > max { Err(ProtocolError::TooLarge(max)) } else { Ok(Argument::Part(needed)) }
}
