//! The head of a request: what it asks for, where its body ends, and what is refused before anything
//! could disagree about that (RFC 9112).

use std::mem::MaybeUninit;
use std::net::Ipv6Addr;

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
    /// The path of the target, as it was sent; `*` for the server as a whole.
    pub(crate) path: &'a str,
    /// What follows the question mark, if there is one.
    pub(crate) query: &'a str,
    pub(crate) framing: Framing,
    /// The peer lets the connection stay after the reply.
    pub(crate) persists: bool,
    /// The peer sends the body only after a reply of 100.
    pub(crate) expects_continue: bool,
    /// What it takes of the input.
    pub(crate) len: usize,
}

/// What stands at the front of the input.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Parsed<'a> {
    Whole(Head<'a>),
    /// Part of a head.
    Part,
    /// A head, or part of one, whose version is HTTP/1.2 to HTTP/1.9. It is served as HTTP/1.1
    /// (RFC 9110, 2.5): the caller writes a `1` over the byte at this position and parses again.
    LaterMinor(usize),
}

/// The methods that are implemented.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Method {
    Get,
    Head,
    Options,
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
    /// Parses the head at the front of `input`; the caller takes it off.
    ///
    /// The answer follows from the bytes alone, however they arrived: what is wrong earlier in the
    /// input is found first.
    ///
    /// # Errors
    ///
    /// The status of the reply. The connection cannot be kept, as it is not known where the next
    /// request would begin.
    pub(crate) fn parse(input: &'a [u8]) -> Result<Parsed<'a>, Status> {
        // The caller took off the empty lines that are allowed (RFC 9112, 2.2).
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
            Ok(httparse::Status::Complete(len)) if has_bare_lf(&input[..len]) => {
                Err(Status::BadRequest)
            }
            Ok(httparse::Status::Complete(len)) => Self::of(&request, len).map(Parsed::Whole),
            Ok(httparse::Status::Partial) if input.len() == HEAD_MAX => Err(Status::FieldsTooLarge),
            Ok(httparse::Status::Partial) => Ok(Parsed::Part),
            Err(Error::Version) => match Version::of(input) {
                Version::Incomplete => Ok(Parsed::Part),
                Version::LaterMinor(at) => Ok(Parsed::LaterMinor(at)),
                Version::Other => Err(Status::VersionNotSupported),
                Version::Malformed => Err(Status::BadRequest),
            },
            Err(error) => Err(status_of(error)),
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
            "*" if method == Method::Options => ("*", ""),
            _ if method == Method::Other => ("", ""),
            target => match split_target(target)? {
                // RFC 9112, 3.2.4: a URI that ends with its authority is the server as a whole.
                ("", None) if method == Method::Options => ("*", ""),
                ("", query) => ("/", query.unwrap_or_default()),
                (path, query) => (path, query.unwrap_or_default()),
            },
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
            "OPTIONS" => Ok(Self::Options),
            "POST" => Ok(Self::Post),
            // What follows may be meant for another kind of server.
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
    expects_continue: bool,
    /// The peer expects something that is not known here.
    expects_other: bool,
    close: bool,
    keep_alive: bool,
}

impl<'a> Fields<'a> {
    #[inline]
    fn note(&mut self, field: &Header<'a>) -> Result<(), Status> {
        let Header { name, value } = *field;
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        match name.len() {
            4 if name == "Host" || is("Host") => once(&mut self.host, value),
            6 if is("Expect") => {
                self.note_expectations(value);
                Ok(())
            }
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
        for option in members(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn note_expectations(&mut self, value: &[u8]) {
        for expectation in members(value) {
            let known = expectation.eq_ignore_ascii_case(b"100-continue");
            self.expects_continue |= known;
            self.expects_other |= !known;
        }
    }

    /// RFC 9112, 6: two ways to say where the body ends are one too many.
    fn framing(&self, is_1_1: bool) -> Result<Framing, Status> {
        match (self.coding, self.length) {
            (None, length) => Ok(Framing::Length(length.unwrap_or(0))),
            (Some(_), Some(_)) => Err(Status::BadRequest),
            // A proxy that forwarded it may not have known what it means.
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
        if self.expects_other { Err(Status::ExpectationFailed) } else { Ok(self.expects_continue) }
    }
}

/// The members of a list, of which empty ones are none (RFC 9110, 5.6.1). `Transfer-Encoding` and
/// `Content-Length` are not parsed as leniently: what two servers count differently there is a
/// request smuggled in.
fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let members = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    members.filter(|member| !member.is_empty())
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
fn split_target(target: &str) -> Result<(&str, Option<&str>), Status> {
    if !target.is_ascii() || target.contains('#') {
        return Err(Status::BadRequest);
    }
    let target = if target.starts_with('/') { target } else { strip_authority(target)? };
    Ok(match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    })
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
    // Mostly a plain name or address, and perhaps a port.
    let mut bytes = text.iter();
    match bytes.find(|byte| !IS_HOST[usize::from(**byte)]) {
        None => true,
        Some(b':') if bytes.all(u8::is_ascii_digit) => true,
        Some(_) => is_unusual_authority(text),
    }
}

fn is_unusual_authority(text: &[u8]) -> bool {
    let (host_is_right, port) = match text.strip_prefix(b"[") {
        Some(literal) => match literal.iter().position(|byte| *byte == b']') {
            Some(end) => (is_ip_literal(&literal[..end]), &literal[end + 1..]),
            None => return false,
        },
        None => {
            let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
            (is_name(&text[..end]), &text[end..])
        }
    };
    let port_is_right = match port.split_first() {
        None => true,
        Some((colon, digits)) => *colon == b':' && digits.iter().all(u8::is_ascii_digit),
    };
    host_is_right && port_is_right
}

/// A registered name or an IPv4 address: each percent sign begins an encoded byte.
fn is_name(text: &[u8]) -> bool {
    let mut parts = text.split(|byte| *byte == b'%');
    let plain = |part: &[u8]| part.iter().all(|byte| is_host(*byte));
    parts.next().is_some_and(plain)
        && parts.all(|part| {
            part.get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
                && plain(part)
        })
}

/// What stands in brackets: an IPv6 address, or one of a version to come.
fn is_ip_literal(text: &[u8]) -> bool {
    let Some(text) = str::from_utf8(text).ok() else { return false };
    match text.strip_prefix(['v', 'V']).map(|future| future.split_once('.')) {
        None => text.parse::<Ipv6Addr>().is_ok(),
        Some(None) => false,
        Some(Some((version, address))) => {
            let is_address = |byte: u8| is_host(byte) || byte == b':';
            !version.is_empty()
                && version.bytes().all(|byte| byte.is_ascii_hexdigit())
                && !address.is_empty()
                && address.bytes().all(is_address)
        }
    }
}

/// [`is_host`] of each byte.
static IS_HOST: [bool; 256] = {
    let mut is = [false; 256];
    let mut byte = 0;
    while byte < is.len() {
        is[byte] = is_host(byte as u8);
        byte += 1;
    }
    is
};

/// Unreserved and sub-delims.
const fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
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

/// Whether a line of this head ends with LF alone. RFC 9112, 2.2, leaves it to the recipient, but
/// only in heads: in the lines between chunks it is an error. Here both are parsed alike.
fn has_bare_lf(head: &[u8]) -> bool {
    const BLOCK: usize = 32;
    let is_bare = |before: &u8, byte: &u8| (*byte == b'\n') & (*before != b'\r');
    // Without an early end a block is compared in a few instructions.
    let in_block = |befores: &[u8; BLOCK], bytes: &[u8; BLOCK]| {
        befores.iter().zip(bytes).fold(false, |bare, (before, byte)| bare | is_bare(before, byte))
    };
    let (befores, bytes) = (&head[..head.len() - 1], &head[1..]);
    match (befores.last_chunk(), bytes.last_chunk()) {
        // The last block takes in what is too little for one, and some of the block before.
        (Some(last_befores), Some(last_bytes)) => {
            let blocks = befores.as_chunks().0.iter().zip(bytes.as_chunks().0);
            blocks.fold(in_block(last_befores, last_bytes), |bare, (befores, bytes)| {
                bare | in_block(befores, bytes)
            })
        }
        _ => befores.iter().zip(bytes).any(|(before, byte)| is_bare(before, byte)),
    }
}

/// The status for a request line that is too long: it says whether the method or the target is
/// (RFC 9112, 3), unless the line is wrong before that.
#[cold]
fn refuse_line(line: &[u8]) -> Status {
    match Request::new(&mut []).parse(line) {
        Err(Error::Version) if Version::of(line) == Version::Malformed => Status::BadRequest,
        Err(Error::Version) | Ok(_) if line.contains(&b' ') => Status::UriTooLong,
        Ok(_) => Status::NotImplemented,
        Err(error) => status_of(error),
    }
}

#[cold]
const fn status_of(error: Error) -> Status {
    match error {
        Error::TooManyHeaders => Status::FieldsTooLarge,
        _ => Status::BadRequest,
    }
}

/// A version that is neither HTTP/1.0 nor HTTP/1.1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    /// It may become one of the others.
    Incomplete,
    /// HTTP/1.2 to HTTP/1.9, perhaps followed by an error; the position of the digit.
    LaterMinor(usize),
    /// Another version of HTTP.
    Other,
    /// No version (RFC 9112, 2.3).
    Malformed,
}

impl Version {
    /// The version of a request line that is valid up to it.
    #[cold]
    fn of(input: &[u8]) -> Self {
        let mut spaces = input.iter().enumerate().filter(|(_, byte)| **byte == b' ');
        let Some((space, _)) = spaces.nth(1) else { return Self::Malformed };
        let version = &input[space + 1..];
        for (index, (byte, wanted)) in version.iter().zip(b"HTTP/0.0\r").enumerate() {
            let fits = if *wanted == b'0' { byte.is_ascii_digit() } else { byte == wanted };
            if !fits {
                // HTTP/2 and HTTP/3 are the names of versions that have no minor number.
                let is_name = index == 6 && *byte == b'\r' && version[5] != b'1';
                return if is_name { Self::Other } else { Self::Malformed };
            }
        }
        match version {
            [_, _, _, _, _, b'1', _, _, ..] => Self::LaterMinor(space + 8),
            [_, _, _, _, _, _, _, _, _, ..] => Self::Other,
            _ => Self::Incomplete,
        }
    }
}
