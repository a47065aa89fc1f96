//! What is sent, and what has to come back.

use bytes::{Buf, BytesMut};
use wheelhouse::Target;

/// Keys of Redis that are set and read in turns, at most.
const KEYS: usize = 1_000;

/// What the requests may take in memory beyond one of them.
const REQUESTS_BYTES: usize = 16 << 20;

/// The greatest head of an HTTP response.
const HEAD_MAX: usize = 16 * 1_024;

/// Headers of an HTTP response, at most.
const HEADERS_MAX: usize = 64;

/// Why a reply is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Mismatch(pub(crate) &'static str);

/// The requests, which are sent one after the other and over again, and the form of their replies.
#[derive(Debug)]
pub(crate) struct Protocol {
    requests: Vec<Vec<u8>>,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// The request again.
    Echo,
    /// This line.
    Line(&'static [u8]),
    /// A response with status 200, and as many bytes as the first.
    Http { len: Option<u64> },
    /// A reply that is no error.
    Resp,
}

/// What is known of a reply that is not whole.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Bytes that are left of its body, once that has begun.
    left: Option<u64>,
    /// It announces the end of its connection.
    last: bool,
}

/// What has come of a reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reply {
    Partial,
    Whole,
    /// It is whole, and the last of its connection. What was asked behind it is to be asked again.
    Last,
}

impl Protocol {
    pub(crate) fn echo(size: usize) -> Self {
        Self { requests: vec![pattern(size)], form: Form::Echo }
    }

    pub(crate) fn ping() -> Self {
        Self { requests: vec![b"PING load\n".to_vec()], form: Form::Line(b"PONG load\n") }
    }

    pub(crate) fn http(path: &str, target: &Target) -> Self {
        // RFC 9112, 3.2: the host is empty if the target has none.
        let host = target.to_string();
        let host = if host.starts_with("unix:") { "" } else { &host };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        Self { requests: vec![request.into_bytes()], form: Form::Http { len: None } }
    }

    pub(crate) fn resp(size: usize) -> Self {
        let value = vec![b'x'; size];
        let keys = (REQUESTS_BYTES / size.max(1)).clamp(1, KEYS);
        let mut requests = Vec::with_capacity(2 * keys);
        for key in 0..keys {
            let key = format!("load:{key}");
            requests.push(command(&[b"SET", key.as_bytes(), &value]));
            requests.push(command(&[b"GET", key.as_bytes()]));
        }
        Self { requests, form: Form::Resp }
    }

    /// The request with this number.
    #[inline]
    pub(crate) fn request(&self, number: usize) -> &[u8] {
        &self.requests[number % self.requests.len()]
    }

    /// Bytes of the longest request.
    pub(crate) fn longest_request(&self) -> usize {
        self.requests.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Takes the reply to the oldest request that has none, the one with this number, off `input`.
    /// Returns what has come of it.
    ///
    /// # Errors
    ///
    /// If it is no reply to that.
    #[inline]
    pub(crate) fn take_reply(
        &mut self,
        number: usize,
        progress: &mut Progress,
        input: &mut BytesMut,
    ) -> Result<Reply, Mismatch> {
        match &mut self.form {
            Form::Echo => take_exactly(self.request(number), progress, input),
            Form::Line(line) => take_exactly(line, progress, input),
            Form::Http { len } => take_response(len, progress, input),
            Form::Resp => take_resp(progress, input),
        }
    }
}

/// Parses a path of HTTP.
pub(crate) fn path(text: &str) -> Result<String, &'static str> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.starts_with('/') && plain { Ok(text.to_owned()) } else { Err("a path begins with /") }
}

/// Bytes of which no two parts nearby are alike.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at ^ (at >> 8)) as u8).collect()
}

/// A command of RESP: an array of bulk strings.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Takes what has come of a reply that is known.
#[inline]
fn take_exactly(
    expected: &[u8],
    progress: &mut Progress,
    input: &mut BytesMut,
) -> Result<Reply, Mismatch> {
    let left = progress.left.map_or(expected.len(), |left| left as usize);
    let here = left.min(input.len());
    if input[..here] != expected[expected.len() - left..][..here] {
        return Err(Mismatch("wrong reply"));
    }
    progress.left = Some(left as u64);
    Ok(skip(progress, input))
}

fn take_response(
    len: &mut Option<u64>,
    progress: &mut Progress,
    input: &mut BytesMut,
) -> Result<Reply, Mismatch> {
    if progress.left.is_none() {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let head = match response.parse(input) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) if input.len() < HEAD_MAX => return Ok(Reply::Partial),
            _ => return Err(Mismatch("malformed response")),
        };
        if response.code != Some(200) {
            return Err(Mismatch("wrong status"));
        }
        let value = |name: &str| {
            let header = response.headers.iter().find(|it| it.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(header.value).ok()
        };
        let body = value("content-length").and_then(|len| len.trim().parse().ok());
        let body = body.ok_or(Mismatch("response without a length"))?;
        let says = |what: &str| {
            let mut options = value("connection").into_iter().flat_map(|it| it.split(','));
            options.any(|option| option.trim().eq_ignore_ascii_case(what))
        };
        // RFC 9112, 9.3: a connection of HTTP/1.0 ends unless it is said to be kept.
        progress.last = says("close") || (response.version == Some(0) && !says("keep-alive"));
        if *len.get_or_insert(body) != body {
            return Err(Mismatch("wrong length"));
        }
        input.advance(head);
        progress.left = Some(body);
    }
    Ok(skip(progress, input))
}

/// Takes a reply of RESP2 that is no array.
fn take_resp(progress: &mut Progress, input: &mut BytesMut) -> Result<Reply, Mismatch> {
    if progress.left.is_none() {
        let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
            return if input.len() < HEAD_MAX {
                Ok(Reply::Partial)
            } else {
                Err(Mismatch("wrong reply"))
            };
        };
        let body = match input[0] {
            b'+' | b':' => 0,
            b'-' => return Err(Mismatch("error reply")),
            b'$' => {
                let len = std::str::from_utf8(&input[1..end]).ok().and_then(|len| len.parse().ok());
                match len {
                    Some(-1_i64) => 0,
                    Some(len @ 0..) => len as u64 + 2,
                    _ => return Err(Mismatch("wrong reply")),
                }
            }
            _ => return Err(Mismatch("wrong reply")),
        };
        input.advance(end + 2);
        progress.left = Some(body);
    }
    Ok(skip(progress, input))
}

/// Takes what has come of a body.
fn skip(progress: &mut Progress, input: &mut BytesMut) -> Reply {
    let left = progress.left.unwrap_or(0);
    let here = left.min(input.len() as u64);
    input.advance(here as usize);
    if here < left {
        progress.left = Some(left - here);
        return Reply::Partial;
    }
    progress.left = None;
    if std::mem::take(&mut progress.last) { Reply::Last } else { Reply::Whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives `stream` byte by byte, and counts the replies.
    fn replies(protocol: &mut Protocol, stream: &[u8]) -> Result<usize, Mismatch> {
        let (mut input, mut progress, mut count) = (BytesMut::new(), Progress::default(), 0);
        for byte in stream {
            input.extend_from_slice(&[*byte]);
            while !input.is_empty() {
                match protocol.take_reply(count, &mut progress, &mut input)? {
                    Reply::Partial => break,
                    Reply::Whole => count += 1,
                    Reply::Last => count += 100,
                }
            }
        }
        Ok(count)
    }

    #[test]
    fn an_echo_is_the_same_bytes() {
        let mut echo = Protocol::echo(300);
        let request = echo.request(0).to_vec();
        assert_eq!(replies(&mut echo, &[&request[..], &request].concat()), Ok(2));
        assert_eq!(replies(&mut echo, &request[1..]), Err(Mismatch("wrong reply")));
    }

    #[test]
    fn a_response_has_its_status_and_the_length_of_the_first() {
        let mut http = Protocol::http("/", &"127.0.0.1:80".parse().expect("an address"));
        assert_eq!(http.request(7), b"GET / HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n");
        let two = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc".repeat(2);
        assert_eq!(replies(&mut http, &two), Ok(2));
        let last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(replies(&mut http, last), Ok(100));
        for (response, why) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd"[..], "wrong length"),
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc", "wrong status"),
            (b"HTTP/1.1 200 OK\r\n\r\n", "response without a length"),
            (b"+PONG\r\n\r\n", "malformed response"),
        ] {
            assert_eq!(replies(&mut http, response), Err(Mismatch(why)));
        }
    }

    #[test]
    fn replies_of_redis_are_told_apart() {
        let mut resp = Protocol::resp(3);
        assert_eq!(resp.request(0), b"*3\r\n$3\r\nSET\r\n$6\r\nload:0\r\n$3\r\nxxx\r\n");
        assert_eq!(resp.request(1), b"*2\r\n$3\r\nGET\r\n$6\r\nload:0\r\n");
        assert_eq!(replies(&mut resp, b"+OK\r\n$3\r\na\r\n\r\n$-1\r\n$0\r\n\r\n:7\r\n"), Ok(5));
        assert_eq!(replies(&mut resp, b"-ERR no\r\n"), Err(Mismatch("error reply")));
        assert_eq!(replies(&mut resp, b"$-2\r\n"), Err(Mismatch("wrong reply")));
        assert_eq!(replies(&mut resp, b"*1\r\n"), Err(Mismatch("wrong reply")));
    }

    #[test]
    fn a_path_is_absolute_and_cannot_end_the_line() {
        assert_eq!(path("/a?b").as_deref(), Ok("/a?b"));
        for text in ["", "a", "/a b", "/a\r\nX: y"] {
            assert!(path(text).is_err(), "{text:?}");
        }
    }
}
