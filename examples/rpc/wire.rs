//! Requests and replies as bytes. Numbers have the big end first.
//!
//! ```text
//! request   id: 8 bytes   milliseconds: 4   call: 1     body: the rest
//! reply     id: 8 bytes   status: 1         body: the rest
//! ```

use std::time::Duration;

use wheelhouse::Conn;
use wheelhouse::frame::{self, Error, Framing, Length, Width};

/// A length in four bytes, and a message of at most 32 KiB.
pub(crate) const MESSAGES: Length = frame::length(Width::U32, 32 * 1024);

/// Which call of a connection, as its client says.
pub(crate) type CallId = u64;

/// What can be called.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Call {
    /// The body is the result.
    Echo,
    /// The result is the sum of the bytes of the body, in 8 bytes.
    Sum,
    /// The body is a time in milliseconds, in 4 bytes. The result comes after it, and is empty.
    Sleep,
}

const CALLS: [Call; 3] = [Call::Echo, Call::Sum, Call::Sleep];

/// How a call ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Status {
    Done,
    /// The body is not what the call takes.
    BadBody,
    /// The client waits no longer.
    Late,
    /// There is too much to do.
    Busy,
}

const STATUSES: [Status; 4] = [Status::Done, Status::BadBody, Status::Late, Status::Busy];

#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Request<'a> {
    pub(crate) id: CallId,
    pub(crate) timeout: Duration,
    pub(crate) call: Call,
    pub(crate) body: &'a [u8],
}

impl<'a> Request<'a> {
    pub(crate) fn parse(message: &'a [u8]) -> Option<Self> {
        let (id, rest) = message.split_first_chunk()?;
        let (millis, rest) = rest.split_first_chunk()?;
        let (call, body) = rest.split_first()?;
        Some(Self {
            id: u64::from_be_bytes(*id),
            timeout: Duration::from_millis(u32::from_be_bytes(*millis).into()),
            call: *CALLS.get(usize::from(*call))?,
            body,
        })
    }

    /// Writes it.
    ///
    /// # Errors
    ///
    /// If it is longer than a message may be.
    pub(crate) fn write(&self, conn: &mut Conn<'_>) -> Result<(), Error> {
        let millis = u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX);
        let head = MESSAGES.head(8 + 4 + 1 + self.body.len())?;
        conn.write(&head);
        conn.write(&self.id.to_be_bytes());
        conn.write(&millis.to_be_bytes());
        conn.write(&[self.call as u8]);
        conn.write(self.body);
        Ok(())
    }
}

#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Reply<'a> {
    pub(crate) id: CallId,
    pub(crate) status: Status,
    pub(crate) body: &'a [u8],
}

impl<'a> Reply<'a> {
    pub(crate) fn parse(message: &'a [u8]) -> Option<Self> {
        let (id, rest) = message.split_first_chunk()?;
        let (status, body) = rest.split_first()?;
        let status = *STATUSES.get(usize::from(*status))?;
        Some(Self { id: u64::from_be_bytes(*id), status, body })
    }

    /// Writes it.
    ///
    /// # Panics
    ///
    /// If the body is longer than that of any request: no call returns more than it got, but for 8
    /// bytes.
    pub(crate) fn write(&self, conn: &mut Conn<'_>) {
        let head = MESSAGES.head(8 + 1 + self.body.len()).expect("a result that fits a message");
        conn.write(&head);
        conn.write(&self.id.to_be_bytes());
        conn.write(&[self.status as u8]);
        conn.write(self.body);
    }
}
