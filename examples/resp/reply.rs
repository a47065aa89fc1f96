//! Replies in RESP2, and the errors that are replies.

use std::borrow::Cow;

use wheelhouse::Conn;

/// A line with a number: its type, a sign, 19 digits, and its end.
const LINE_MAX: usize = 1 + 1 + 19 + 2;

/// Strings of up to this size are written in one piece with what frames them.
const SHORT: usize = 100;

/// An error that is the reply to a command.
#[derive(Debug)]
pub(crate) struct Fault(Cow<'static, [u8]>);

impl Fault {
    pub(crate) const WRONG_TYPE: Self =
        Self::of("WRONGTYPE Operation against a key holding the wrong kind of value");
    pub(crate) const NO_INTEGER: Self = Self::of("ERR value is not an integer or out of range");
    pub(crate) const NOT_POSITIVE: Self = Self::of("ERR value is out of range, must be positive");
    pub(crate) const SYNTAX: Self = Self::of("ERR syntax error");
    pub(crate) const OVERFLOW: Self = Self::of("ERR increment or decrement would overflow");
    pub(crate) const OUT_OF_MEMORY: Self =
        Self::of("OOM command not allowed when used memory > 'maxmemory'.");
    pub(crate) const STRING_TOO_LONG: Self =
        Self::of("ERR string exceeds maximum allowed size (proto-max-bulk-len)");

    pub(crate) const fn of(text: &'static str) -> Self {
        Self(Cow::Borrowed(text.as_bytes()))
    }

    /// The error of a command of this name that has the wrong number of arguments.
    pub(crate) fn wrong_arity(name: &str) -> Self {
        Self::quoting(format!("ERR wrong number of arguments for '{name}' command").into_bytes())
    }

    /// An error whose text holds what a client sent. It stays one line.
    pub(crate) fn quoting(mut text: Vec<u8>) -> Self {
        for byte in &mut text {
            if matches!(byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
        Self(Cow::Owned(text))
    }

    pub(crate) fn text(&self) -> &[u8] {
        &self.0
    }
}

/// Writes a number in decimal to the end of `buffer`. Returns where it begins.
#[inline]
fn digits(number: i64, buffer: &mut [u8], end: usize) -> usize {
    let (mut at, mut rest) = (end, number.unsigned_abs());
    loop {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        buffer[at] = b'-';
    }
    at
}

/// Calls `act` with a number in decimal.
pub(crate) fn with_decimal<T>(number: i64, act: impl FnOnce(&[u8]) -> T) -> T {
    let mut buffer = [0; 20];
    let at = digits(number, &mut buffer, 20);
    act(&buffer[at..])
}

/// A line that holds a number.
#[inline]
fn line(conn: &mut Conn<'_>, kind: u8, number: i64) {
    let mut buffer = [0; LINE_MAX];
    buffer[LINE_MAX - 2..].copy_from_slice(b"\r\n");
    let at = digits(number, &mut buffer, LINE_MAX - 2) - 1;
    buffer[at] = kind;
    conn.write(&buffer[at..]);
}

pub(crate) fn ok(conn: &mut Conn<'_>) {
    conn.write(b"+OK\r\n");
}

pub(crate) fn nil(conn: &mut Conn<'_>) {
    conn.write(b"$-1\r\n");
}

/// The reply in the place of an array that is not there.
pub(crate) fn nil_array(conn: &mut Conn<'_>) {
    conn.write(b"*-1\r\n");
}

pub(crate) fn integer(conn: &mut Conn<'_>, number: i64) {
    line(conn, b':', number);
}

/// How many there are.
pub(crate) fn count(conn: &mut Conn<'_>, count: usize) {
    integer(conn, count as i64);
}

/// So many replies follow, which are one together.
pub(crate) fn array(conn: &mut Conn<'_>, len: usize) {
    line(conn, b'*', len as i64);
}

#[inline]
pub(crate) fn bulk(conn: &mut Conn<'_>, bytes: &[u8]) {
    if bytes.len() < SHORT {
        short_bulk(conn, bytes);
    } else {
        line(conn, b'$', bytes.len() as i64);
        conn.write(bytes);
        conn.write(b"\r\n");
    }
}

/// One of less than [`SHORT`] bytes, whose length has one digit or two.
#[inline]
fn short_bulk(conn: &mut Conn<'_>, bytes: &[u8]) {
    let mut buffer = [0; 5 + SHORT + 2];
    let len = bytes.len() as u8;
    let start = if len < 10 {
        buffer[..4].copy_from_slice(&[b'$', b'0' + len, b'\r', b'\n']);
        4
    } else {
        buffer[..5].copy_from_slice(&[b'$', b'0' + len / 10, b'0' + len % 10, b'\r', b'\n']);
        5
    };
    let end = start + bytes.len();
    buffer[start..end].copy_from_slice(bytes);
    buffer[end..end + 2].copy_from_slice(b"\r\n");
    conn.write(&buffer[..end + 2]);
}

/// A string, or what says that there is none.
pub(crate) fn optional_bulk(conn: &mut Conn<'_>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => bulk(conn, bytes),
        None => nil(conn),
    }
}

pub(crate) fn simple(conn: &mut Conn<'_>, text: &str) {
    conn.write(b"+");
    conn.write(text.as_bytes());
    conn.write(b"\r\n");
}

pub(crate) fn error(conn: &mut Conn<'_>, fault: &Fault) {
    conn.write(b"-");
    conn.write(fault.text());
    conn.write(b"\r\n");
}
