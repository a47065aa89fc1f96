//! As much of HTTP/1.1 (RFC 9112) as the services need: requests without a body, parsed strictly, and
//! whole replies.

use std::fmt::Write;

use bytes::{Buf, BytesMut};

/// The longest head of a request, empty lines before it included.
pub(crate) const HEAD_MAX: usize = 8 * 1024;

/// Fields that a request may have.
const FIELDS_MAX: usize = 64;

/// How a request is answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    ContentTooLarge,
    HeadTooLarge,
    InternalError,
    ServiceUnavailable,
    VersionNotSupported,
}

impl Status {
    const fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::InternalError => "500 Internal Server Error",
            Self::ServiceUnavailable => "503 Service Unavailable",
            Self::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}

/// A request that was refused before it was understood: why, and a line for people. The connection
/// ends, as it is not known where the next request begins.
pub(crate) type Refused = (Status, &'static str);

/// What there is to know of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Request {
    pub(crate) is_head: bool,
    /// Neither GET nor HEAD.
    pub(crate) is_other: bool,
    /// The path of the target, without its query.
    pub(crate) path: String,
    /// The host that the peer means, without a port.
    pub(crate) host: String,
    /// The connection ends with the reply.
    pub(crate) closes: bool,
}

/// Takes a request off the front of `input`, if a whole one is there.
///
/// # Errors
///
/// If it is none, or will never be one.
pub(crate) fn take(input: &mut BytesMut) -> Result<Option<Request>, Refused> {
    // RFC 9112, 2.2: empty lines before a request are ignored. They are part of what is bounded.
    let mut from = 0;
    while input[from..].starts_with(b"\r\n") {
        from += 2;
    }
    let head = &input[from..];
    let end = head.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let known = &head[..end.map_or(head.len(), |end| end + 4)];
    if has_bare_line_end(known) {
        return Err((Status::BadRequest, "each line ends with CR LF\n"));
    }
    let Some(end) = end else {
        if input.len() >= HEAD_MAX {
            return Err((Status::HeadTooLarge, "the head of the request is too large\n"));
        }
        return Ok(None);
    };
    let request = parse(&head[..end])?;
    input.advance(from + end + 4);
    Ok(Some(request))
}

/// Whether what begins `input` asks for a head only: the reply to it has no body, also if it is refused
/// (RFC 9110, 9.3.2).
pub(crate) fn asks_for_head(input: &[u8]) -> bool {
    let mut input = input;
    while let Some(rest) = input.strip_prefix(b"\r\n") {
        input = rest;
    }
    input.starts_with(b"HEAD ")
}

/// Whether there is a CR or LF that is not part of a CR LF. A CR at the very end may become one.
fn has_bare_line_end(head: &[u8]) -> bool {
    head.iter().enumerate().any(|(at, byte)| match byte {
        b'\r' => head.get(at + 1).is_some_and(|next| *next != b'\n'),
        b'\n' => at == 0 || head[at - 1] != b'\r',
        _ => false,
    })
}

fn parse(head: &[u8]) -> Result<Request, Refused> {
    const MALFORMED: Refused = (Status::BadRequest, "this is no HTTP request\n");
    let head = std::str::from_utf8(head).map_err(|_| MALFORMED)?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(MALFORMED);
    };
    if !is_token(method) || target.is_empty() || !target.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(MALFORMED);
    }
    let is_old = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ if is_version(version) => {
            return Err((Status::VersionNotSupported, "this is HTTP/1.1\n"));
        }
        _ => return Err(MALFORMED),
    };
    let is_other = !matches!(method, "GET" | "HEAD");
    let fields = parse_fields(lines).map_err(|refused| match refused {
        // What it lacks is the method, whatever body it has.
        (Status::ContentTooLarge, _) if is_other => {
            (Status::MethodNotAllowed, "There are GET and HEAD.\n")
        }
        refused => refused,
    })?;
    if fields.host.is_none() && !is_old {
        return Err((Status::BadRequest, "a request has one Host\n"));
    }
    let (authority, path) = split_target(target);
    let host = authority.or(fields.host).unwrap_or_default();
    Ok(Request {
        is_head: method == "HEAD",
        is_other,
        path: path.split(['?', '#']).next().unwrap_or_default().to_owned(),
        host: without_port(host).to_owned(),
        closes: is_old || fields.closes,
    })
}

#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a str>,
    closes: bool,
}

fn parse_fields<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Fields<'a>, Refused> {
    let mut fields = Fields::default();
    let mut has_length = false;
    for (count, line) in lines.enumerate() {
        if count == FIELDS_MAX {
            return Err((Status::HeadTooLarge, "the request has too many fields\n"));
        }
        let (name, value) = line.split_once(':').unwrap_or(("", ""));
        let value = value.trim_matches([' ', '\t']);
        let printable = value.chars().all(|letter| letter == '\t' || !letter.is_control());
        if !is_token(name) || !printable {
            return Err((Status::BadRequest, "a field of the request is malformed\n"));
        }
        if name.eq_ignore_ascii_case("host") {
            if fields.host.replace(value).is_some() {
                return Err((Status::BadRequest, "a request has one Host\n"));
            }
        } else if name.eq_ignore_ascii_case("connection") {
            fields.closes |= value.split(',').any(|it| it.trim().eq_ignore_ascii_case("close"));
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err((Status::ContentTooLarge, "no request here has a body\n"));
        } else if name.eq_ignore_ascii_case("content-length") {
            let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            if has_length || !is_number {
                return Err((Status::BadRequest, "the length of the body is malformed\n"));
            }
            has_length = true;
            if value.bytes().any(|byte| byte != b'0') {
                return Err((Status::ContentTooLarge, "no request here has a body\n"));
            }
        }
    }
    Ok(fields)
}

/// The authority, if the target has one, and the rest.
fn split_target(target: &str) -> (Option<&str>, &str) {
    let scheme = "http://";
    let is_absolute =
        target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    if !is_absolute {
        return (None, target);
    }
    let rest = &target[scheme.len()..];
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    (Some(authority), if path.starts_with('/') { path } else { "/" })
}

fn without_port(host: &str) -> &str {
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    match bracketed {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// RFC 9110, 5.6.2.
fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

fn is_version(text: &str) -> bool {
    let digits = text.strip_prefix("HTTP/").map(str::as_bytes);
    matches!(digits, Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// A whole reply.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) status: Status,
    pub(crate) content_type: &'static str,
    /// More lines of the head.
    pub(crate) fields: &'static str,
    pub(crate) body: &'a str,
    /// The body is left out, as it was asked for the head.
    pub(crate) is_head: bool,
    /// The connection ends with it.
    pub(crate) closes: bool,
}

const PLAIN: &str = "text/plain; charset=utf-8";

impl<'a> Reply<'a> {
    /// A reply after which the connection ends.
    pub(crate) const fn error(status: Status, body: &'a str) -> Self {
        Self { status, content_type: PLAIN, fields: "", body, is_head: false, closes: true }
    }

    /// The reply to a request.
    pub(crate) const fn to(request: &Request, status: Status, body: &'a str) -> Self {
        let Request { is_head, closes, .. } = *request;
        Self { status, content_type: PLAIN, fields: "", body, is_head, closes }
    }

    pub(crate) fn write(&self, output: &mut BytesMut) {
        let line = self.status.line();
        // RFC 9110, 15.5.6.
        let allow = match self.status {
            Status::MethodNotAllowed => "Allow: GET, HEAD\r\n",
            _ => "",
        };
        let connection = if self.closes { "Connection: close\r\n" } else { "" };
        // What is shown is as it was at this moment, and what no browser is to guess about.
        let head = write!(
            output,
            "HTTP/1.1 {line}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{allow}{}{connection}\r\n",
            self.content_type,
            self.body.len(),
            self.fields,
        );
        debug_assert!(head.is_ok(), "a buffer takes any text");
        if !self.is_head {
            output.extend_from_slice(self.body.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(text: &str) -> Result<Option<Request>, Status> {
        take(&mut BytesMut::from(text)).map_err(|(status, _)| status)
    }

    fn request(text: &str) -> Request {
        taken(text).unwrap().unwrap()
    }

    #[test]
    fn a_request_may_name_its_path_in_two_forms_and_have_any_query() {
        for target in ["/metrics", "/metrics?a=/b", "http://x/metrics", "HTTP://x:9/metrics?q#f"] {
            let request = request(&format!("GET {target} HTTP/1.1\r\nHost: x:9\r\n\r\n"));
            assert_eq!((&request.path[..], &request.host[..]), ("/metrics", "x"), "{target}");
            assert!(!request.is_head && !request.is_other && !request.closes);
        }
        assert_eq!(request("GET http://y HTTP/1.0\r\n\r\n").path, "/");
        assert_eq!(request("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n").host, "::1");
    }

    #[test]
    fn the_peer_says_whether_the_connection_stays() {
        for (text, closes) in [
            ("HEAD / HTTP/1.0\r\n\r\n", true),
            ("HEAD / HTTP/1.1\r\nHost: x\r\nConnection: a, Close\r\n\r\n", true),
            (
                "HEAD / HTTP/1.1\r\nHost:x\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
                false,
            ),
        ] {
            let request = request(text);
            assert!(request.is_head);
            assert_eq!(request.closes, closes, "{text}");
        }
        assert!(request("POST / HTTP/1.0\r\n\r\n").is_other);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let host = "Host: x\r\n\r\n";
        for (text, status) in [
            (format!("GET / HTTP/1.1 \r\n{host}"), Status::BadRequest),
            (format!("GET  / HTTP/1.1\r\n{host}"), Status::BadRequest),
            (format!("GET / HTTP/1.1\n{host}"), Status::BadRequest),
            (format!("GET /\rx HTTP/1.1\r\n{host}"), Status::BadRequest),
            (format!("G(T / HTTP/1.1\r\n{host}"), Status::BadRequest),
            (format!("GET /\u{7f} HTTP/1.1\r\n{host}"), Status::BadRequest),
            (format!("GET / HTTP/01.1\r\n{host}"), Status::BadRequest),
            (format!("GET / HTTP/2.0\r\n{host}"), Status::VersionNotSupported),
            ("GET / HTTP/1.1\r\n\r\n".into(), Status::BadRequest),
            (format!("GET / HTTP/1.1\r\nHost: y\r\n{host}"), Status::BadRequest),
            (format!("GET / HTTP/1.1\r\n folded\r\n{host}"), Status::BadRequest),
            (format!("GET / HTTP/1.1\r\na : b\r\n{host}"), Status::BadRequest),
            (format!("GET / HTTP/1.1\r\na\r\n{host}"), Status::BadRequest),
            (format!("GET / HTTP/1.1\r\na: \u{1}\r\n{host}"), Status::BadRequest),
            (format!("GET / HTTP/1.1\r\nContent-Length: +1\r\n{host}"), Status::BadRequest),
            (format!("GET / HTTP/1.1\r\nContent-Length: 1\r\n{host}"), Status::ContentTooLarge),
            (
                format!("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{host}"),
                Status::ContentTooLarge,
            ),
            (format!("GET / HTTP/1.1\r\n{}{host}", "a: b\r\n".repeat(64)), Status::HeadTooLarge),
            (format!("GET /{} HTTP/1.1\r\n", "x".repeat(HEAD_MAX)), Status::HeadTooLarge),
            ("\r\n".repeat(HEAD_MAX / 2), Status::HeadTooLarge),
        ] {
            assert_eq!(taken(&text), Err(status), "{text:?}");
        }
        assert_eq!(
            take(&mut BytesMut::from(&b"GET /\xff HTTP/1.1\r\n\r\n"[..])).unwrap_err().0,
            Status::BadRequest
        );
    }

    #[test]
    fn a_request_is_taken_when_it_is_whole_and_no_more_than_it() {
        let text = "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for at in 0..text.len() {
            assert_eq!(taken(&text[..at]), Ok(None), "{at}");
        }
        let mut input = BytesMut::from(&text.repeat(3)[..]);
        for left in (0..3).rev() {
            assert!(take(&mut input).unwrap().is_some());
            assert_eq!(input.len(), left * text.len());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_a_part_of_one_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            start in prop_oneof![Just(""), Just("GET / HTTP/1.1\r\n"), Just("GET ")],
        ) {
            let mut input = BytesMut::from(start);
            input.extend_from_slice(&bytes);
            let before = input.len();
            let taken = take(&mut input);
            prop_assert_eq!(matches!(taken, Ok(Some(_))), input.len() < before);
        }
    }
}
