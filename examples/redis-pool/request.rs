//! Commands out of the bytes that a client sends: RESP2 arrays of bulk strings, or inline commands.
//!
//! Each byte is examined once, however the input is split, except that what is called again at the
//! end of a command begins with the next one. What is accepted is a subset of what Redis accepts, and
//! means the same there: a difference would let a client smuggle a command past the pooler. An inline
//! command is passed on as an array for that reason.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use crate::resp::{ARGS_MAX, BadLine, INLINE_MAX, UnbalancedQuotes, Words, line};

/// Bytes of a request, with all that frames it.
pub(crate) const REQUEST_MAX: usize = 1 << 20;

/// Arguments whose places are kept: what commands are distinguished by.
const KEPT: usize = 3;

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ProtocolError {
    ArrayLength,
    BulkLength,
    NoBulk,
    NoLineEnd,
    TooLarge,
    InlineTooLong,
    Quotes,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ArrayLength => "invalid multibulk length",
            Self::BulkLength => "invalid bulk length",
            Self::NoBulk => "expected '$'",
            Self::NoLineEnd => "expected CRLF after a bulk string",
            Self::TooLarge => "the request is larger than 1 MiB",
            Self::InlineTooLong => "too big inline request",
            Self::Quotes => "unbalanced quotes in request",
        })
    }
}

impl From<UnbalancedQuotes> for ProtocolError {
    fn from(_: UnbalancedQuotes) -> Self {
        Self::Quotes
    }
}

/// What is at the front of the input.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Parsed<'a> {
    /// Part of a request, which is not whole before there are so many bytes.
    Part(usize),
    /// So many bytes that ask nothing: an empty line or an empty array.
    Nothing(usize),
    Command(Command<'a>),
}

/// A whole command.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Command<'a> {
    /// As RESP2.
    pub(crate) bytes: Cow<'a, [u8]>,
    /// What it takes of the input.
    pub(crate) len: usize,
    /// Its name included.
    pub(crate) count: usize,
    kept: [Range<usize>; KEPT],
}

impl Command<'_> {
    /// One of the first three arguments; the name is argument 0. Empty if there are fewer.
    pub(crate) fn arg(&self, index: usize) -> &[u8] {
        let range = self.kept.get(index).cloned().unwrap_or_default();
        self.bytes.get(range).unwrap_or_default()
    }

    /// All arguments.
    pub(crate) fn args(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = line(&self.bytes, b'*')
            .ok()
            .flatten()
            .map_or(&[][..], |(_, end)| self.bytes.get(end..).unwrap_or_default());
        std::iter::from_fn(move || {
            let (len, end) = line(rest, b'$').ok().flatten()?;
            let end_of_arg = end.checked_add(usize::try_from(len).ok()?)?;
            let arg = rest.get(end..end_of_arg)?;
            rest = rest.get(end_of_arg + 2..)?;
            Some(arg)
        })
    }
}

/// How far the request at the front of the input has been examined.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// So many of its bytes.
    at: usize,
    /// Its arguments, once they are known.
    count: usize,
    /// Those of them that are whole.
    done: usize,
    /// The length of the next one, once it is known.
    bulk: Option<usize>,
    kept: [Range<usize>; KEPT],
}

impl Parser {
    /// What is at the front of `input`. The caller takes off what is whole; of a part it appends the
    /// rest.
    pub(crate) fn next<'a>(&mut self, input: &'a [u8]) -> Result<Parsed<'a>, ProtocolError> {
        match input.first() {
            None => Ok(Parsed::Part(1)),
            Some(b'*') => self.array(input),
            Some(_) => self.inline(input),
        }
    }

    fn array<'a>(&mut self, input: &'a [u8]) -> Result<Parsed<'a>, ProtocolError> {
        let more = Ok(Parsed::Part(input.len() + 1));
        if self.at == 0 {
            let length = line(input, b'*').map_err(|BadLine| ProtocolError::ArrayLength)?;
            let Some((count, end)) = length else { return more };
            if count <= 0 {
                return Ok(Parsed::Nothing(end));
            }
            if count > ARGS_MAX {
                return Err(ProtocolError::ArrayLength);
            }
            self.count = count as usize;
            self.at = end;
        }
        while self.done < self.count {
            let len = match self.bulk {
                Some(len) => len,
                None => {
                    let rest = input.get(self.at..).unwrap_or_default();
                    match rest.first() {
                        None => return more,
                        Some(b'$') => {}
                        Some(_) => return Err(ProtocolError::NoBulk),
                    }
                    let length = line(rest, b'$').map_err(|BadLine| ProtocolError::BulkLength)?;
                    let Some((len, end)) = length else { return more };
                    let len = usize::try_from(len).map_err(|_| ProtocolError::BulkLength)?;
                    if len > REQUEST_MAX || self.at + end + len + 2 > REQUEST_MAX {
                        return Err(ProtocolError::TooLarge);
                    }
                    self.at += end;
                    *self.bulk.insert(len)
                }
            };
            let end = self.at + len + 2;
            let Some(arg) = input.get(self.at..end) else { return Ok(Parsed::Part(end)) };
            if !arg.ends_with(b"\r\n") {
                return Err(ProtocolError::NoLineEnd);
            }
            if let Some(kept) = self.kept.get_mut(self.done) {
                *kept = self.at..self.at + len;
            }
            self.bulk = None;
            self.at = end;
            self.done += 1;
        }
        let Self { at: len, count, kept, .. } = std::mem::take(self);
        Ok(Parsed::Command(Command { bytes: Cow::Borrowed(&input[..len]), len, count, kept }))
    }

    fn inline<'a>(&mut self, input: &'a [u8]) -> Result<Parsed<'a>, ProtocolError> {
        let rest = input.get(self.at..).unwrap_or_default();
        let newline = rest.iter().position(|byte| *byte == b'\n').map(|offset| self.at + offset);
        if newline.unwrap_or(input.len()) > INLINE_MAX {
            return Err(ProtocolError::InlineTooLong);
        }
        let Some(newline) = newline else {
            self.at = input.len();
            return Ok(Parsed::Part(input.len() + 1));
        };
        self.at = 0;
        let text = &input[..newline];
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let (mut words, mut word) = (Words::new(text), Vec::new());
        let (mut body, mut places, mut count) = (Vec::new(), [const { 0..0 }; KEPT], 0);
        while words.next(&mut word)? {
            body.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            if let Some(place) = places.get_mut(count) {
                *place = body.len()..body.len() + word.len();
            }
            body.append(&mut word);
            body.extend_from_slice(b"\r\n");
            count += 1;
        }
        if count == 0 {
            return Ok(Parsed::Nothing(newline + 1));
        }
        let mut bytes = format!("*{count}\r\n").into_bytes();
        let kept = places.map(|place| place.start + bytes.len()..place.end + bytes.len());
        bytes.append(&mut body);
        let bytes = Cow::Owned(bytes);
        Ok(Parsed::Command(Command { bytes, len: newline + 1, count, kept }))
    }
}
