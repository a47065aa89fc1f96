//! The head of a request: what it asks for, where its body ends, and what is refused before anybody
//! could disagree about that (RFC 9112).

use std::mem::MaybeUninit;

use httparse::{Error, Header, Request};

use crate::reply::Status;

/// Bytes of a request line, its end included. A longer one is a URI too long.
pub(crate) const LINE_MAX: usize = 8 * 1024;

/// Bytes of a head, its end included. It bounds the input that a connection keeps, and how often
/// the same bytes are parsed again for a peer that sends them one by one.
pub(crate) const HEAD_MAX: usize = 16 * 1024;

/// Fields of a head.
const FIELDS_MAX: usize = 64;

/// A whole head at the front of the input.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Head<'a> {
    pub(crate) method: Method,
    /// The path of the target, as it was sent.
    pub(crate) path: &'a str,
    /// What follows the question mark, if there is one.
    pub(crate) query: &'a str,
    pub(crate) framing: Framing,
    /// The peer lets the connection stay after the reply.
    pub(crate) persists: bool,
    /// The peer holds the body back until it is told to continue.
    pub(crate) expects_continue: bool,
    /// What it takes of the input.
    pub(crate) len: usize,
}

/// The methods that are implemented.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Other,
}

/// Where the body ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
}

impl<'a> Head<'a> {
    /// The head at the front of `input`, which the caller takes off; `None` while it is not whole.
    ///
    /// The answer follows from the bytes alone, however they arrived: what is wrong earlier in the
    /// input is found first.
    ///
    /// # Errors
    ///
    /// The status of the reply. The connection cannot be kept, as nobody knows where the next
    /// request would begin.
    pub(crate) fn parse(input: &'a [u8]) -> Result<Option<Self>, Status> {
        // The caller took off the one empty line that is allowed (RFC 9112, 2.2).
        if input.starts_with(b"\n") || input.starts_with(b"\r\n") {
            return Err(Status::BadRequest);
        }
        if input.len() > LINE_MAX && !input[..LINE_MAX].contains(&b'\n') {
            return Err(refuse_line(&input[..LINE_MAX]));
        }
        let input = &input[..input.len().min(HEAD_MAX)];
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut request = Request::new(&mut []);
        match request.parse_with_uninit_headers(input, &mut fields) {
            Ok(httparse::Status::Complete(len)) => Self::of(&request, len).map(Some),
            Ok(httparse::Status::Partial) if input.len() == HEAD_MAX => Err(Status::FieldsTooLarge),
            Ok(httparse::Status::Partial) => Ok(None),
            Err(error) => Err(status_of(error, input)),
        }
    }

    fn of(request: &Request<'_, 'a>, len: usize) -> Result<Self, Status> {
        let is_1_1 = request.version == Some(1);
        let mut fields = Fields::default();
        for field in &*request.headers {
            fields.note(field)?;
        }
        let framing = fields.framing(is_1_1)?;
        fields.check_host(is_1_1)?;
        let method = Method::of(request.method.unwrap_or_default())?;
        let (path, query) = match request.path.unwrap_or_default() {
            "/" => ("/", ""),
            _ if method == Method::Other => ("", ""),
            target => split_target(target)?,
        };
        Ok(Self {
            method,
            path,
            query,
            framing,
            persists: !fields.close && (is_1_1 || fields.keep_alive),
            expects_continue: is_1_1 && fields.expects_continue()?,
            len,
        })
    }
}

impl Method {
    fn of(name: &str) -> Result<Self, Status> {
        match name {
            "GET" => Ok(Self::Get),
            "HEAD" => Ok(Self::Head),
            "POST" => Ok(Self::Post),
            // What follows may be meant for somebody else than an HTTP server.
            "CONNECT" => Err(Status::NotImplemented),
            _ => Ok(Self::Other),
        }
    }
}

/// What the fields of a head say about the message.
#[derive(Debug, Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    coding: Option<&'a [u8]>,
    expectation: Option<&'a [u8]>,
    close: bool,
    keep_alive: bool,
}

impl<'a> Fields<'a> {
    #[inline]
    fn note(&mut self, field: &Header<'a>) -> Result<(), Status> {
        let Header { name, value } = *field;
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        match name.len() {
            4 if is("Host") => once(&mut self.host, value),
            6 if is("Expect") => once(&mut self.expectation, value),
            10 if is("Connection") => {
                self.note_connection(value);
                Ok(())
            }
            14 if is("Content-Length") => once(&mut self.length, decimal(value)?),
            17 if is("Transfer-Encoding") => once(&mut self.coding, value),
            _ => Ok(()),
        }
    }

    fn note_connection(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// RFC 9112, 6: two ways to say where the body ends are one too many.
    fn framing(&self, is_1_1: bool) -> Result<Framing, Status> {
        match (self.coding, self.length) {
            (None, length) => Ok(Framing::Length(length.unwrap_or(0))),
            (Some(_), Some(_)) => Err(Status::BadRequest),
            // Whoever forwarded it may not have known what it means.
            (Some(_), None) if !is_1_1 => Err(Status::BadRequest),
            (Some(coding), None) => check_coding(coding),
        }
    }

    /// RFC 9112, 3.2: one Host, and an HTTP/1.0 peer may have none.
    fn check_host(&self, is_1_1: bool) -> Result<(), Status> {
        match self.host {
            Some(host) if is_authority(host) => Ok(()),
            None if !is_1_1 => Ok(()),
            _ => Err(Status::BadRequest),
        }
    }

    fn expects_continue(&self) -> Result<bool, Status> {
        match self.expectation {
            None => Ok(false),
            Some(value) if value.eq_ignore_ascii_case(b"100-continue") => Ok(true),
            Some(_) => Err(Status::ExpectationFailed),
        }
    }
}

/// Notes a field that must not be repeated.
fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Status> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Status::BadRequest),
    }
}

/// Digits and nothing else: no sign, no space, no list, and no more than 64 bits hold.
pub(crate) fn decimal(text: &[u8]) -> Result<u64, Status> {
    if text.is_empty() {
        return Err(Status::BadRequest);
    }
    text.iter()
        .try_fold(0_u64, |number, byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
            number.checked_mul(10)?.checked_add(digit)
        })
        .ok_or(Status::BadRequest)
}

/// The one transfer coding that is understood is chunked, once and last (RFC 9112, 6.1 and 7).
fn check_coding(value: &[u8]) -> Result<Framing, Status> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(Framing::Chunked);
    }
    let mut codings = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).rev();
    let ends_chunked = codings.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
    let others_are_names = codings.all(|coding| {
        let is_name = !coding.is_empty() && coding.iter().all(|byte| is_token(*byte));
        is_name && !coding.eq_ignore_ascii_case(b"chunked")
    });
    Err(if ends_chunked && others_are_names { Status::NotImplemented } else { Status::BadRequest })
}

/// The path and the query of a target in origin form or absolute form (RFC 9112, 3.2).
fn split_target(target: &str) -> Result<(&str, &str), Status> {
    if !target.is_ascii() || target.contains('#') {
        return Err(Status::BadRequest);
    }
    let target = if target.starts_with('/') { target } else { strip_authority(target)? };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok((if path.is_empty() { "/" } else { path }, query))
}

/// What follows the authority of an http or https URI, which takes the place of the Host field.
fn strip_authority(target: &str) -> Result<&str, Status> {
    let (scheme, rest) = target.split_once("://").ok_or(Status::BadRequest)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Status::BadRequest);
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let named = !authority.is_empty() && !authority.starts_with(':');
    if named && is_authority(authority.as_bytes()) { Ok(rest) } else { Err(Status::BadRequest) }
}

/// Whether this is a host, or nothing, and perhaps a port (RFC 3986, 3.2.2 and 3.2.3).
fn is_authority(text: &[u8]) -> bool {
    let (host_ends, port_begins) = match text.first() {
        Some(b'[') => match text.iter().position(|byte| *byte == b']') {
            Some(end) => (end, end + 1),
            None => return false,
        },
        _ => {
            let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
            (end, end)
        }
    };
    let (host, port) = (&text[..host_ends], &text[port_begins..]);
    let host_is_right = match host.strip_prefix(b"[") {
        Some(literal) => {
            let is_literal = |byte: &u8| is_host(*byte) || *byte == b':';
            !literal.is_empty() && literal.iter().all(is_literal)
        }
        None => host.iter().all(|byte| is_host(*byte)),
    };
    let port_is_right = match port.split_first() {
        None => true,
        Some((colon, digits)) => *colon == b':' && digits.iter().all(u8::is_ascii_digit),
    };
    host_is_right && port_is_right
}

/// Unreserved, sub-delims, and the percent sign of what is encoded.
const fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'%'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
        )
}

/// RFC 9110, 5.6.2.
pub(crate) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// What to say to so long a line without an end: that it is too long, unless it is wrong before
/// that.
#[cold]
fn refuse_line(line: &[u8]) -> Status {
    match Request::new(&mut []).parse(line) {
        Err(error) => status_of(error, line),
        Ok(_) => Status::UriTooLong,
    }
}

#[cold]
fn status_of(error: Error, input: &[u8]) -> Status {
    match error {
        Error::TooManyHeaders => Status::FieldsTooLarge,
        Error::Version if is_other_version(input) => Status::VersionNotSupported,
        _ => Status::BadRequest,
    }
}

/// Whether the version is one of HTTP that is not spoken here, judged by the first byte that
/// differs from one that is.
fn is_other_version(input: &[u8]) -> bool {
    let version = input.split(|byte| *byte == b' ').nth(2).unwrap_or_default();
    let known = version.iter().zip(b"HTTP/1.").take_while(|(byte, known)| byte == known).count();
    known >= "HTTP/".len() && version.get(known).is_some_and(u8::is_ascii_digit)
}
