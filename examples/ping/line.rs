//! Lines out of a stream of bytes, each of which is examined once.

/// Bytes of a line, its end left out.
pub(crate) const LINE_MAX: usize = 1_024;

/// How far the unread input of a connection has been searched.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// This much of it is known to hold no newline.
    searched: usize,
}

/// A whole line at the front of the input.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Line<'a> {
    pub(crate) text: &'a [u8],
    /// What it takes of the input, its end included.
    pub(crate) len: usize,
}

/// A line of more than [`LINE_MAX`] bytes.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct TooLong;

impl Lines {
    /// The line at the front of `input`, which the caller takes off; `None` while it is not whole,
    /// and then more is to be appended.
    pub(crate) fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<Line<'a>>, TooLong> {
        let newline = input[self.searched..].iter().position(|byte| *byte == b'\n');
        let newline = newline.map(|offset| self.searched + offset);
        let text = &input[..newline.unwrap_or(input.len())];
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.len() > LINE_MAX {
            return Err(TooLong);
        }
        self.searched = if newline.is_some() { 0 } else { input.len() };
        Ok(newline.map(|newline| Line { text, len: newline + 1 }))
    }
}
