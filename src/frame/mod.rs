//! Framing: where the messages of a protocol lie in its stream of bytes.
//!
//! TCP carries bytes, not messages. A [`Framing`] says where the first message lies at the front of
//! the input, [`each`] hands all whole ones to the handler, and [`put`] writes one. There is no buffer
//! and no codec object between the socket and the handler: a message is a slice of the input that
//! [`on_data`](crate::Handler::on_data) gets, which costs no allocation, no copy and no reference
//! count.
//!
//! | framing | a message | its greatest length |
//! | --- | --- | --- |
//! | [`lines()`] | ends with `\n`, or with `\r\n` | `max` and 2 |
//! | [`delimited()`] | ends with 1 to 8 bytes of your choice | `max` and the delimiter |
//! | [`length()`] | follows its length, in 1 to 8 bytes | `max` and the header |
//! | [`varint()`] | follows its length, as a LEB128 integer | `max` and what that takes, at least 10 |
//! | [`fixed()`] | has always the same length | that |
//!
//! The argument `max` is required everywhere, and bounds the *payload*: the message without
//! delimiter and header. A peer that exceeds it gets nothing further served: too long is an error,
//! and there is no mode that skips to the next message, because what follows such an error is not
//! known to begin one.
//!
//! Nothing is reserved for a length that a peer announces. Input grows by what arrives, and
//! [`Limits::input_max`](crate::Limits::input_max) bounds it; it has to hold the
//! [greatest](Framing::greatest) message. What is longer than fits is taken piece by piece, as a
//! [`Body`].
//!
//! # The end of the input
//!
//! A message that the peer's FIN cuts off is none: the part of it is in the input that
//! [`on_eof`](crate::Handler::on_eof) gets. That holds for a last line without its end too, which
//! could be a command that lost its tail.
//!
//! # Examples
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use bytes::BytesMut;
//! use wheelhouse::frame::{self, Lines};
//! use wheelhouse::{Conn, Handler};
//!
//! struct Upper;
//!
//! impl Handler for Upper {
//!     type Session = Lines;
//!
//!     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Lines> {
//!         Some(frame::lines(1_024))
//!     }
//!
//!     fn on_data(&mut self, conn: &mut Conn<'_>, lines: &mut Lines, input: &mut BytesMut) {
//!         let served = frame::each(lines, conn, input, |conn, line| {
//!             conn.write(&line.to_ascii_uppercase());
//!             conn.write(b"\n");
//!             ControlFlow::Continue(())
//!         });
//!         if let Err(error) = served {
//!             writeln!(conn, "ERR {error}");
//!             conn.close();
//!         }
//!     }
//! }
//! # use std::time::Duration;
//! # use wheelhouse::{Config, sim::Sim};
//! # let mut sim = Sim::new(1);
//! # let server = sim.serve("10.0.0.1:7", Config::default(), Upper);
//! # let peer = sim.connect(&server);
//! # peer.drip(b"one\r\ntwo\nthr", Duration::from_millis(1));
//! # sim.advance(Duration::from_millis(100));
//! # peer.expect(b"ONE\nTWO\n");
//! # peer.send(&[b'x'; 1_100]);
//! # sim.settle();
//! # peer.expect(b"ERR a message of more than 1024 bytes\n");
//! ```

mod body;
mod delimited;
mod fixed;
mod length;
mod search;
mod varint;

use std::ops::{ControlFlow, Deref, DerefMut, Range};
use std::{error, fmt};

use bytes::{Buf, Bytes, BytesMut};

pub use self::body::Body;
pub use self::delimited::{Delimited, Lines, delimited, lines};
pub use self::fixed::{Fixed, fixed};
pub use self::length::{Counts, Length, Width, length};
pub use self::varint::{Varint, varint};
use crate::conn::Conn;

/// Where a message lies at the front of the input.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Its payload.
    pub payload: Range<usize>,
    /// What it takes of the input, from the first byte on: header, payload and delimiter.
    pub len: usize,
}

impl Frame {
    /// Takes the message off the front of `input`, in which it was found.
    ///
    /// # Panics
    ///
    /// If `input` is shorter than the message.
    #[inline]
    pub fn take_off(&self, input: &mut BytesMut) {
        take_off(input, self.len);
    }
}

/// Takes `len` bytes off the front of `input`, as [`advance`](Buf::advance) does, and all of it by
/// clearing it. After an `advance` over all of it the loop would have to bring its buffer back before the
/// next read, which costs some 190 instructions.
///
/// # Panics
///
/// If `input` is shorter than `len`.
#[inline]
pub fn take_off(input: &mut BytesMut, len: usize) {
    if len == input.len() {
        input.clear();
    } else {
        input.advance(len);
    }
}

/// What is no message of the protocol. It stays so, however much more arrives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The payload is longer than the protocol allows.
    TooLong {
        /// The most bytes it may have.
        max: usize,
        /// How many it has, if a header says so.
        length: Option<u64>,
    },
    /// A header announces a length that its own parts exceed.
    BadLength,
    /// A variable-length integer of more than 64 bits, or with more bytes than it needs.
    BadVarint,
    /// A line ends with `\n` alone where `\r\n` is required; or a payload that is to be written
    /// holds, or runs into, what would end it.
    BadEnd,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { max, length: None } => write!(f, "a message of more than {max} bytes"),
            Self::TooLong { max, length: Some(length) } => {
                write!(f, "a message of {length} bytes, where {max} are allowed")
            }
            Self::BadLength => f.write_str("a length that is less than what it counts"),
            Self::BadVarint => f.write_str("a length that is no shortest varint of 64 bits"),
            Self::BadEnd => f.write_str("the wrong end of a message"),
        }
    }
}

impl error::Error for Error {}

/// How a protocol cuts its stream into messages.
///
/// What it has to remember between two calls is part of it, so each connection has its own, in its
/// session. It takes 8 to 32 bytes.
pub trait Framing {
    /// Where the first message of `input` lies; `None` while it is not whole.
    ///
    /// Once it is not `None` the answer for a longer input is the same, an error too. A message has at
    /// least one byte. The caller [takes the message off](Frame::take_off) before it asks for the next
    /// one; until then it may ask again, and finds the same message. What it asks about after
    /// a `None` begins with the same bytes: what was searched is not searched again.
    ///
    /// # Errors
    ///
    /// For what is no message of the protocol.
    fn find(&mut self, input: &[u8]) -> Result<Option<Frame>, Error>;

    /// The most bytes that one message takes of the input. The setting
    /// [`Limits::input_max`](crate::Limits::input_max) must be no less.
    fn greatest(&self) -> usize;

    /// What is written before a payload of that many bytes.
    ///
    /// # Errors
    ///
    /// If the payload is longer than allowed, or its length does not fit the header.
    fn head(&self, payload: usize) -> Result<Head, Error>;

    /// What is written behind a payload. Empty by default.
    fn tail(&self) -> &[u8] {
        &[]
    }

    /// Checks that a payload would be read as it is written. By default each would.
    ///
    /// # Errors
    ///
    /// [`BadEnd`](Error::BadEnd) if it would not: as a value with a line feed in it, which some
    /// client chose, would be read as a line and another command.
    fn check(&self, payload: &[u8]) -> Result<(), Error> {
        let _ = payload;
        Ok(())
    }

    /// Takes the first message off `input`, and returns its payload; `None` while it is not whole.
    ///
    /// The payload shares the memory of the input: right to pass it on, wrong to keep it, as ten
    /// bytes would keep 64 KiB alive.
    ///
    /// # Errors
    ///
    /// As [`find`](Framing::find). Nothing is taken off then.
    fn take_frame(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, Error> {
        let Some(frame) = self.find(input)? else { return Ok(None) };
        Ok(Some(input.split_to(frame.len).freeze().slice(frame.payload)))
    }
}

/// The most bytes of a header.
const HEAD_MAX: usize = 16;

/// What stands before a payload: at most 16 bytes.
///
/// Where a header has bytes of the protocol's own beside the length, these are zero, for the caller
/// to fill in.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Head {
    bytes: [u8; HEAD_MAX],
    len: u8,
}

impl Head {
    /// A copy of at most 16 bytes.
    fn copy(bytes: &[u8]) -> Self {
        let mut head = Self { len: bytes.len() as u8, ..Self::default() };
        head.bytes[..bytes.len()].copy_from_slice(bytes);
        head
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl DerefMut for Head {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// Hands the payload of each whole message to `take`, and takes the messages off `input`.
///
/// For [`on_data`](crate::Handler::on_data). It stops when `take` breaks, and when the rest is not to be
/// served now: the connection is [congested](Conn::is_congested), its reading is
/// [paused](Conn::pause_reading) or [waits for a sink](Conn::throttle_on), its input is
/// [awaited](Conn::expect_input), [skipped](Conn::skip) or [relayed](Conn::relay_with), it was
/// [given back](Conn::release) to its pool, it is [closing](Conn::is_closing), or its last request was
/// served, as [`decide_keep_alive`](Conn::decide_keep_alive) said. What is left stays in `input`, and the
/// handler is called with it again when the reason has passed. A `take` that breaks for another reason
/// asks for that call by [`yield_now`](Conn::yield_now), which alone does not stop it. What is left of a
/// message has the deadlines of a request.
///
/// How many bytes lie behind its message, [`Conn::unread`] says to `take`. A protocol whose clients send
/// requests without waiting for replies passes that to `decide_keep_alive`.
///
/// No request is counted here. If the protocol owes a reply to each message,
/// [`begin_request`](Conn::begin_request) and [`end_request`](Conn::end_request) in `take` say so;
/// without them one call of `on_data` is one request.
///
/// # Errors
///
/// As [`Framing::find`]. The messages before the error have been handed over and taken off; what is
/// no message is left. The handler replies and closes, as no later message can be found.
///
/// # Panics
///
/// In debug builds, if [`Limits::input_max`](crate::Limits::input_max) is less than
/// [`Framing::greatest`]. In release builds each such call fails with [`Error::TooLong`], instead of
/// letting a long message end the connection with
/// [`InputLimit`](crate::CloseReason::InputLimit).
#[inline]
pub fn each<F: Framing>(
    framing: &mut F,
    conn: &mut Conn<'_>,
    input: &mut BytesMut,
    mut take: impl FnMut(&mut Conn<'_>, &[u8]) -> ControlFlow<()>,
) -> Result<(), Error> {
    let max = conn.input_max();
    if framing.greatest() > max {
        return refuse_greatest(framing.greatest(), max);
    }
    let outer = conn.unread();
    let handing = Handing { conn, outer };
    let mut rest = &input[..];
    let end = loop {
        // A message has at least one byte.
        if rest.is_empty() || !handing.conn.wants_messages() {
            break Ok(());
        }
        match framing.find(rest) {
            Ok(Some(frame)) => {
                let payload = &rest[frame.payload];
                rest = &rest[frame.len..];
                handing.conn.note_unread(rest.len());
                if take(handing.conn, payload).is_break() {
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(handing);
    let taken = input.len() - rest.len();
    take_off(input, taken);
    end
}

/// Lets [`Conn::unread`] say again what it said before, also where a message that is handed over panics.
struct Handing<'a, 'c> {
    conn: &'a mut Conn<'c>,
    outer: usize,
}

impl Drop for Handing<'_, '_> {
    fn drop(&mut self) {
        self.conn.note_unread(self.outer);
    }
}

#[cold]
fn refuse_greatest(greatest: usize, max: usize) -> Result<(), Error> {
    debug_assert!(
        greatest <= max,
        "a message may take {greatest} bytes, which limits.input_max ({max}) does not hold"
    );
    Err(Error::TooLong { max, length: None })
}

/// Writes a message: its head, a copy of the payload, and its tail.
///
/// # Errors
///
/// If the peer could not read it as one message: [`Framing::head`] and [`Framing::check`] say which
/// payloads. Nothing is written then.
pub fn put(conn: &mut Conn<'_>, framing: &impl Framing, payload: &[u8]) -> Result<(), Error> {
    let head = framing.head(payload.len())?;
    framing.check(payload)?;
    conn.write(&head);
    conn.write(payload);
    conn.write(framing.tail());
    Ok(())
}

/// [`put`] for a payload that need not be copied.
///
/// # Errors
///
/// As [`put`].
pub fn put_bytes(
    conn: &mut Conn<'_>,
    framing: &impl Framing,
    payload: impl Into<Bytes>,
) -> Result<(), Error> {
    let payload = payload.into();
    let head = framing.head(payload.len())?;
    framing.check(&payload)?;
    conn.write(&head);
    conn.write_bytes(payload);
    conn.write(framing.tail());
    Ok(())
}

/// A payload of `length` bytes, where `max` are allowed.
const fn too_long<T>(max: usize, length: u64) -> Result<T, Error> {
    Err(Error::TooLong { max, length: Some(length) })
}
