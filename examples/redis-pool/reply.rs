//! Where the replies of a server end. They are not kept: a reply of any size, and nested as deep as it
//! may be, takes the same few numbers.

use crate::resp::{BadLine, line};

/// The greatest length of a string or an array that a server may announce. Redis allows strings of
/// 512 MB unless it is set otherwise.
const LENGTH_MAX: i64 = u32::MAX as i64;

/// Bytes that are no reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Malformed;

impl From<BadLine> for Malformed {
    fn from(_: BadLine) -> Self {
        Self
    }
}

/// How a reply begins.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Head {
    /// Its first byte.
    pub(crate) kind: u8,
    /// The length of an array or a string; 0 for what has none.
    pub(crate) length: i64,
}

/// Bytes of one reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Step {
    pub(crate) len: usize,
    /// The reply ends with them.
    pub(crate) ends: bool,
}

/// Finds the end of one reply after the other.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    place: Place,
    /// Items that the reply still has, the one at hand included; 0 between two replies.
    left: u64,
    head: Head,
}

/// Where in an item the next byte is.
#[derive(Clone, Copy, Debug, Default)]
enum Place {
    /// At its beginning.
    #[default]
    Start,
    /// In a line of text.
    Line,
    /// At the line feed that ends one.
    LineFeed,
    /// In a string, of which so many bytes are left.
    String(u64),
    /// At the line end after a string.
    StringEnd,
}

impl Scanner {
    /// The bytes of `input` that belong to the reply at its front. What it leaves at the end, fewer
    /// than 24 bytes, is to come again with more behind it.
    pub(crate) fn next(&mut self, input: &[u8]) -> Result<Step, Malformed> {
        let mut at = 0;
        loop {
            let rest = input.get(at..).unwrap_or_default();
            let Some(first) = rest.first() else { break };
            let ends_item = match self.place {
                Place::Start => match self.begin(*first, rest)? {
                    Some((len, ends_item)) => {
                        at += len;
                        ends_item
                    }
                    None => break,
                },
                Place::Line => match rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
                    Some(offset) if rest[offset] == b'\r' => {
                        at += offset + 1;
                        self.place = Place::LineFeed;
                        false
                    }
                    Some(_) => return Err(Malformed),
                    None => {
                        at += rest.len();
                        false
                    }
                },
                Place::LineFeed if *first == b'\n' => {
                    at += 1;
                    true
                }
                Place::LineFeed => return Err(Malformed),
                Place::String(left) => {
                    let here = left.min(rest.len() as u64);
                    at += here as usize;
                    self.place =
                        if here == left { Place::StringEnd } else { Place::String(left - here) };
                    false
                }
                Place::StringEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        true
                    }
                    [b'\r'] => break,
                    _ => return Err(Malformed),
                },
            };
            if ends_item {
                self.place = Place::Start;
                self.left -= 1;
                if self.left == 0 {
                    return Ok(Step { len: at, ends: true });
                }
            }
        }
        Ok(Step { len: at, ends: false })
    }

    /// Begins an item. Returns how long its first line is, if that is needed and whole, and whether
    /// the item ends with it.
    fn begin(&mut self, kind: u8, input: &[u8]) -> Result<Option<(usize, bool)>, Malformed> {
        let (len, length) = match kind {
            b'+' | b'-' | b':' => (1, 0),
            b'$' | b'*' => match line(input, kind)? {
                Some((length @ -1..=LENGTH_MAX, len)) => (len, length),
                Some(_) => return Err(Malformed),
                None => return Ok(None),
            },
            _ => return Err(Malformed),
        };
        if self.left == 0 {
            self.left = 1;
            self.head = Head { kind, length };
        }
        let ends_item = match kind {
            b'$' if length >= 0 => {
                self.place = match length {
                    0 => Place::StringEnd,
                    _ => Place::String(length as u64),
                };
                false
            }
            b'*' => {
                self.left = self.left.checked_add(length.max(0) as u64).ok_or(Malformed)?;
                true
            }
            b'$' => true,
            _ => {
                self.place = Place::Line;
                false
            }
        };
        Ok(Some((len, ends_item)))
    }

    /// How the reply begins to which the last bytes belonged.
    pub(crate) const fn head(&self) -> Head {
        self.head
    }

    /// Whether a reply has begun that has not ended.
    pub(crate) const fn is_within(&self) -> bool {
        self.left > 0
    }
}
