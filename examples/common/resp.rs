//! What servers of RESP2 decode alike: inline commands, and the lines that hold lengths.

/// Bytes of an inline command, as in Redis.
pub(crate) const INLINE_MAX: usize = 64 * 1_024;

/// Arguments of a request, as in Redis before version 7, which allows 2,048 times as many.
pub(crate) const ARGS_MAX: i64 = 1_024 * 1_024;

/// Bytes of a line that holds a length: its type, a sign, 19 digits, and its end.
const LENGTH_LINE_MAX: usize = 1 + 1 + 19 + 2;

/// The words of an inline command, split and unquoted as by Redis (`sdssplitargs`).
pub(crate) struct Words<'a> {
    text: &'a [u8],
    at: usize,
}

/// A quote that does not end, or that something follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct UnbalancedQuotes;

impl<'a> Words<'a> {
    /// Those of a line without its end. They end at a NUL, as a string of C does.
    pub(crate) fn new(text: &'a [u8]) -> Self {
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Self { text, at: 0 }
    }

    /// Appends the next one to `word`. Returns whether there was one.
    pub(crate) fn next(&mut self, word: &mut Vec<u8>) -> Result<bool, UnbalancedQuotes> {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
        if self.peek().is_none() {
            return Ok(false);
        }
        while let Some(byte) = self.take() {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => break,
                quote @ (b'"' | b'\'') => {
                    self.quoted(quote, word)?;
                    // Nothing may follow the closing quote.
                    if !self.peek().is_none_or(is_space) {
                        return Err(UnbalancedQuotes);
                    }
                    break;
                }
                byte => word.push(byte),
            }
        }
        Ok(true)
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn quoted(&mut self, quote: u8, word: &mut Vec<u8>) -> Result<(), UnbalancedQuotes> {
        loop {
            match self.take().ok_or(UnbalancedQuotes)? {
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
    fn escaped(&mut self) -> Result<u8, UnbalancedQuotes> {
        if let Some([b'x', high, low]) = self.text.get(self.at..self.at + 3)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            self.at += 3;
            return Ok(high << 4 | low);
        }
        Ok(match self.take().ok_or(UnbalancedQuotes)? {
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

/// `isspace` of C: what is skipped between words. Fewer bytes end a word that has begun.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// A line that should hold a length and does not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct BadLine;

/// The number in the line at the front of `input` that begins with `kind`, and the length of that
/// line; `None` while it is not whole.
#[inline]
pub(crate) fn line(input: &[u8], kind: u8) -> Result<Option<(i64, usize)>, BadLine> {
    // Nearly all of them have one digit or two.
    match input {
        [first, digit @ b'0'..=b'9', b'\r', b'\n', ..] if *first == kind => {
            Ok(Some((i64::from(digit - b'0'), 4)))
        }
        [first, tens @ b'1'..=b'9', ones @ b'0'..=b'9', b'\r', b'\n', ..] if *first == kind => {
            Ok(Some((i64::from(tens - b'0') * 10 + i64::from(ones - b'0'), 5)))
        }
        _ => any_line(input, kind),
    }
}

fn any_line(input: &[u8], kind: u8) -> Result<Option<(i64, usize)>, BadLine> {
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
pub(crate) fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_negative = digits.len() < text.len();
    match digits {
        [] => return None,
        [b'0'] if !is_negative => return Some(0),
        [b'0', ..] => return None,
        _ => {}
    }
    let mut value: i64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        let digit = i64::from(digit - b'0');
        value = value.checked_mul(10)?;
        // The least number has no positive counterpart.
        value = if is_negative { value.checked_sub(digit)? } else { value.checked_add(digit)? };
    }
    Some(value)
}
