//! Replies, and how they are written.

use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use httpdate::HttpDate;
use wheelhouse::{Conn, Instant};

/// The statuses that are used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Status {
    BadRequest,
    ContentTooLarge,
    ExpectationFailed,
    FieldsTooLarge,
    MethodNotAllowed,
    NotFound,
    NotImplemented,
    Ok,
    RequestTimeout,
    ServiceUnavailable,
    UriTooLong,
    VersionNotSupported,
}

impl Status {
    /// Its code, and what that means.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::BadRequest => "400 Bad Request\n",
            Self::ContentTooLarge => "413 Content Too Large\n",
            Self::ExpectationFailed => "417 Expectation Failed\n",
            Self::FieldsTooLarge => "431 Request Header Fields Too Large\n",
            Self::MethodNotAllowed => "405 Method Not Allowed\n",
            Self::NotFound => "404 Not Found\n",
            Self::NotImplemented => "501 Not Implemented\n",
            Self::Ok => "200 OK\n",
            Self::RequestTimeout => "408 Request Timeout\n",
            Self::ServiceUnavailable => "503 Service Unavailable\n",
            Self::UriTooLong => "414 URI Too Long\n",
            Self::VersionNotSupported => "505 HTTP Version Not Supported\n",
        }
    }
}

/// What the content of a reply is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum MediaType {
    Text,
    Bytes,
    /// The text format that Prometheus collects.
    Metrics,
}

impl MediaType {
    const fn name(self) -> &'static str {
        match self {
            Self::Text => "text/plain",
            Self::Bytes => "application/octet-stream",
            Self::Metrics => "text/plain; version=0.0.4",
        }
    }
}

/// One reply.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) status: Status,
    pub(crate) media_type: MediaType,
    /// The methods that the resource allows, where another was used or the request asks for them.
    pub(crate) allow: Option<&'static str>,
    pub(crate) content: Content<'a>,
}

/// What a reply carries.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// Little, which is written together with the head.
    Text(&'a [u8]),
    /// Much, which is handed over.
    Large(Vec<u8>),
    /// So many bytes, which the caller writes.
    Stream(u64),
}

impl<'a> Reply<'a> {
    pub(crate) const fn text(text: &'a str) -> Self {
        let content = Content::Text(text.as_bytes());
        Self { status: Status::Ok, media_type: MediaType::Text, allow: None, content }
    }

    /// A reply whose text is its status.
    pub(crate) fn of(status: Status) -> Self {
        Self { status, ..Self::text(status.text()) }
    }
}

/// What becomes of the connection, and whether the peer wants the head of the reply only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) head_only: bool,
    pub(crate) stays: bool,
}

/// What the bytes of a head depend on, the second aside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Kind {
    status: Status,
    media_type: MediaType,
    allow: Option<&'static str>,
    length: u64,
    stays: bool,
}

/// Writes replies. What all have in common is made once a second, a head is used again as long as the
/// next one is the same, and each reply is put together in one buffer, so that a small one costs one
/// write and no allocation.
#[derive(Debug)]
pub(crate) struct Writer {
    wall_clock: fn() -> SystemTime,
    /// The fields `Server` and `Date`.
    common: Vec<u8>,
    common_until: Instant,
    /// The reply before; its head, of this kind, is so many bytes long.
    buffer: Vec<u8>,
    kind: Option<Kind>,
    head: usize,
}

impl Writer {
    pub(crate) const fn new(wall_clock: fn() -> SystemTime) -> Self {
        Self {
            wall_clock,
            common: Vec::new(),
            common_until: Instant::EPOCH,
            buffer: Vec::new(),
            kind: None,
            head: 0,
        }
    }

    /// Writes a reply, its body too unless that is a [`Content::Stream`].
    #[inline]
    pub(crate) fn write(&mut self, conn: &mut Conn<'_>, reply: Reply<'_>, manner: Manner) {
        self.write_head(conn.now(), &reply, manner);
        match reply.content {
            Content::Text(text) if !manner.head_only => self.buffer.extend_from_slice(text),
            Content::Large(bytes) if !manner.head_only => {
                conn.write(&self.buffer);
                return conn.write_bytes(Bytes::from(bytes));
            }
            _ => {}
        }
        conn.write(&self.buffer);
    }

    #[inline]
    fn write_head(&mut self, now: Instant, reply: &Reply<'_>, manner: Manner) {
        let Reply { status, media_type, allow, .. } = *reply;
        let length = match &reply.content {
            Content::Text(text) => text.len() as u64,
            Content::Large(bytes) => bytes.len() as u64,
            Content::Stream(length) => *length,
        };
        let kind = Kind { status, media_type, allow, length, stays: manner.stays };
        if now < self.common_until && self.kind == Some(kind) {
            return self.buffer.truncate(self.head);
        }
        self.make_head(now, kind);
    }

    #[inline(never)]
    fn make_head(&mut self, now: Instant, kind: Kind) {
        if now >= self.common_until || self.common.is_empty() {
            self.renew_common(now);
        }
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend_from_slice(b"HTTP/1.1 ");
        buffer.extend_from_slice(kind.status.text().trim_ascii_end().as_bytes());
        buffer.extend_from_slice(&self.common);
        buffer.extend_from_slice(kind.media_type.name().as_bytes());
        if let Some(methods) = kind.allow {
            buffer.extend_from_slice(b"\r\nAllow: ");
            buffer.extend_from_slice(methods.as_bytes());
        }
        buffer.extend_from_slice(b"\r\nContent-Length: ");
        push_decimal(buffer, kind.length);
        buffer.extend_from_slice(if kind.stays {
            b"\r\nConnection: keep-alive\r\n\r\n"
        } else {
            b"\r\nConnection: close\r\n\r\n"
        });
        self.head = buffer.len();
        self.kind = Some(kind);
    }

    /// From the end of the status line to the name of the media type's field.
    #[cold]
    fn renew_common(&mut self, now: Instant) {
        let wall = (self.wall_clock)();
        let into_second = wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        self.common_until =
            now + (Duration::from_secs(1) - Duration::from_nanos(into_second.into()));
        self.common.clear();
        let date = HttpDate::from(wall);
        write!(self.common, "\r\nServer: wheelhouse\r\nDate: {date}\r\nContent-Type: ")
            .expect("a vector takes everything");
    }
}

/// The digits of `number`, without the detour through formatting.
fn push_decimal(buffer: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut begin = digits.len();
    loop {
        begin -= 1;
        digits[begin] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return buffer.extend_from_slice(&digits[begin..]);
        }
    }
}
