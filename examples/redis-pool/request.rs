//! Commands out of the bytes that a client sends: RESP2 arrays of bulk strings, or inline commands.
//!
//! Each byte is examined once, however the input is split, except that what is called again at the
//! end of a command begins with the next one. What is accepted is a subset of what Redis accepts, and
//! means the same there: a difference would let a client smuggle a command past the pooler. An inline
//! command is passed on as an array for that reason.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// Bytes of a request, with all that frames it.
pub(crate) const REQUEST_MAX: usize = 1 << 20;

/// Arguments of a request, as in Redis. A request of [`REQUEST_MAX`] bytes has fewer.
const ARGS_MAX: i64 = 1_024 * 1_024;

/// Bytes of an inline command, as in Redis.
pub(crate) const INLINE_MAX: usize = 64 * 1_024;

/// Bytes of a line that holds a length: its type, a sign, 19 digits, and its end.
const LENGTH_LINE_MAX: usize = 1 + 1 + 19 + 2;

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
        let mut words = Words { text, at: 0 };
        let (mut body, mut places, mut count) = (Vec::new(), [const { 0..0 }; KEPT], 0);
        while let Some(word) = words.next()? {
            body.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            if let Some(place) = places.get_mut(count) {
                *place = body.len()..body.len() + word.len();
            }
            body.extend_from_slice(&word);
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

/// The words of an inline command, split and unquoted as by Redis (`sdssplitargs`).
struct Words<'a> {
    text: &'a [u8],
    at: usize,
}

impl Words<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>, ProtocolError> {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
        if self.peek().is_none() {
            return Ok(None);
        }
        let mut word = Vec::new();
        while let Some(byte) = self.take() {
            match byte {
                byte if is_space(byte) => break,
                quote @ (b'"' | b'\'') => {
                    self.quoted(quote, &mut word)?;
                    // Nothing may follow the closing quote.
                    if !self.peek().is_none_or(is_space) {
                        return Err(ProtocolError::Quotes);
                    }
                    break;
                }
                byte => word.push(byte),
            }
        }
        Ok(Some(word))
    }

    fn quoted(&mut self, quote: u8, word: &mut Vec<u8>) -> Result<(), ProtocolError> {
        loop {
            match self.take().ok_or(ProtocolError::Quotes)? {
                byte if byte == quote => return Ok(()),
                b'\\' if quote == b'"' => word.push(self.escaped()?),
                b'\\' if self.peek() == Some(b'\'') => {
                    self.at += 1;
                    word.push(b'\'');
                }
                byte => word.push(byte),
            }
        }
    }

    /// What a backslash within double quotes means.
    fn escaped(&mut self) -> Result<u8, ProtocolError> {
        if let Some([b'x', high, low]) = self.text.get(self.at..self.at + 3)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            self.at += 3;
            return Ok(high << 4 | low);
        }
        Ok(match self.take().ok_or(ProtocolError::Quotes)? {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'b' => 8,
            b'a' => 7,
            byte => byte,
        })
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

/// `isspace` of C.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// A line that should hold a length and does not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct BadLine;

/// The number in the line at the front of `input` that begins with `kind`, and the length of that
/// line; `None` while it is not whole.
pub(crate) fn line(input: &[u8], kind: u8) -> Result<Option<(i64, usize)>, BadLine> {
    let Some((first, rest)) = input.split_first() else { return Ok(None) };
    if *first != kind {
        return Err(BadLine);
    }
    let rest = &rest[..rest.len().min(LENGTH_LINE_MAX - 1)];
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        return if rest.len() < LENGTH_LINE_MAX - 1 { Ok(None) } else { Err(BadLine) };
    };
    let digits = rest[..end].strip_suffix(b"\r").ok_or(BadLine)?;
    Ok(Some((number(digits).ok_or(BadLine)?, 1 + end + 1)))
}

/// A number as Redis writes it: no sign but a minus, no zero in front.
fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    match digits {
        [] => return None,
        [b'0'] if digits.len() == text.len() => return Some(0),
        [b'0', ..] => return None,
        _ => {}
    }
    let mut value: i64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(if digits.len() < text.len() { -value } else { value })
}
