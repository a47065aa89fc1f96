//! Payloads that are taken piece by piece.

use super::Head;

/// The payload of a message that is too large to wait for: how much of it is still to come.
///
/// [`Length::begin`](super::Length::begin) makes one. It holds no bytes: what has come of the payload
/// lies in the input, and [`take`](Body::take) says which part of that it is.
///
/// # Examples
///
/// ```
/// use bytes::{Buf, BytesMut};
/// use wheelhouse::frame::{self, Body, Length, Width};
/// use wheelhouse::{Conn, Handler};
///
/// /// Adds up the bytes of messages of up to a gigabyte, and keeps none of them.
/// struct Sums;
///
/// #[derive(Default)]
/// struct Session {
///     body: Option<Body>,
///     sum: u64,
/// }
///
/// const UPLOADS: Length = frame::length(Width::U32, 1 << 30);
///
/// impl Handler for Sums {
///     type Session = Session;
///
///     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Session> {
///         Some(Session::default())
///     }
///
///     fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut Session, input: &mut BytesMut) {
///         while !conn.is_congested() {
///             let body = match &mut session.body {
///                 Some(body) => body,
///                 None => match UPLOADS.begin(input) {
///                     Ok(Some(body)) => session.body.insert(body),
///                     Ok(None) => return,
///                     Err(_) => return conn.close(),
///                 },
///             };
///             let piece = body.take(input);
///             session.sum += piece.iter().map(|byte| u64::from(*byte)).sum::<u64>();
///             let taken = piece.len();
///             input.advance(taken);
///             if !body.is_done() {
///                 // Nothing is left in the input, and yet the request is not whole.
///                 return conn.expect_more_input();
///             }
///             writeln!(conn, "{}", std::mem::take(&mut session.sum));
///             session.body = None;
///         }
///     }
/// }
/// # use std::time::Duration;
/// # use wheelhouse::{Config, sim::Sim};
/// # let mut sim = Sim::new(1);
/// # let server = sim.serve("10.0.0.1:7", Config::default(), Sums);
/// # let peer = sim.connect(&server);
/// # let upload = [&100_000_u32.to_be_bytes()[..], &[1; 100_000], b"\0\0\0\0", b"\0\0\0\x01\x07"];
/// # peer.send(&upload.concat());
/// # sim.advance(Duration::from_secs(1));
/// # peer.expect(b"100000\n0\n7\n");
/// ```
#[derive(Clone, Debug)]
#[must_use = "the payload is still to come"]
pub struct Body {
    header: Head,
    left: u64,
}

impl Body {
    pub(super) const fn new(header: Head, left: u64) -> Self {
        Self { header, left }
    }

    /// What stood before the payload.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The next piece: what the front of `input` holds of the payload, which counts as taken. The
    /// caller takes as many bytes off the input.
    pub fn take<'a>(&mut self, input: &'a [u8]) -> &'a [u8] {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
        self.left -= len as u64;
        &input[..len]
    }

    /// Bytes that are still to come.
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// Whether all of it has been taken.
    pub const fn is_done(&self) -> bool {
        self.left == 0
    }
}
