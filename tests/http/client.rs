//! What the tests share: a world with a server, and a client that reads replies strictly.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wheelhouse::Config;
use wheelhouse::sim::{Peer, Server, Sim};

use crate::server::{Http, defaults};
pub(crate) use crate::shorthands::{millis, secs};

/// The date of replies unless the clock on the wall is set: the example of RFC 9110, 5.6.7.
pub(crate) const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

thread_local! {
    static WALL: Cell<Duration> = const { Cell::new(Duration::from_secs(784_111_777)) };
}

fn wall_clock() -> SystemTime {
    UNIX_EPOCH + WALL.get()
}

/// Lets the clock on the wall go on.
pub(crate) fn advance_wall(by: Duration) {
    WALL.set(WALL.get() + by);
}

/// The settings of the example.
pub(crate) fn config() -> Config {
    defaults()
}

pub(crate) fn serve(sim: &mut Sim) -> Server<Http> {
    serve_with(sim, config())
}

pub(crate) fn serve_with(sim: &mut Sim, config: Config) -> Server<Http> {
    sim.serve("10.0.0.1:80", config, Http::new(wall_clock))
}

/// All that the server says to `sent` at once, and whether it then ended the connection.
pub(crate) fn answer(sent: &[u8]) -> (Vec<u8>, bool) {
    answer_pieces(&[sent])
}

/// All that the server says to pieces of input, each of which it has seen before the next comes.
pub(crate) fn answer_pieces(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    for piece in pieces {
        peer.send(piece);
        sim.settle();
    }
    // A reply that waits for a timer.
    sim.advance(secs(1));
    let outcome = (peer.take(), !peer.is_open());
    drop(peer);
    sim.advance(secs(60));
    sim.assert_clean();
    outcome
}

/// The one reply to `sent`, on a connection that must stay open.
#[track_caller]
pub(crate) fn reply_to(sent: &str) -> Reply {
    let (bytes, closed) = answer(sent.as_bytes());
    assert!(!closed, "{sent:?} ends the connection");
    let reply = only_reply(&bytes, sent.starts_with("HEAD "));
    assert!(reply.stays(), "{sent:?}: {reply:?}");
    reply
}

/// The one reply to `sent`, with which the connection must end.
#[track_caller]
pub(crate) fn last_reply_to(sent: &[u8]) -> Reply {
    let (bytes, closed) = answer(sent);
    assert!(closed, "{} does not end the connection", sent.escape_ascii());
    let reply = only_reply(&bytes, sent.starts_with(b"HEAD "));
    assert!(!reply.stays(), "{}: {reply:?}", sent.escape_ascii());
    reply
}

#[track_caller]
fn only_reply(bytes: &[u8], head_only: bool) -> Reply {
    let (reply, rest) = Reply::next(bytes, head_only).expect("a reply");
    assert_eq!(rest.escape_ascii().to_string(), "", "more than one reply");
    reply
}

/// What a client reads of a peer so far: whole replies to requests, `head_only` or not in turn.
pub(crate) fn replies(bytes: &[u8], head_only: &[bool]) -> Vec<Reply> {
    let mut rest = bytes;
    let mut replies = Vec::new();
    for head_only in head_only {
        let Some((reply, behind)) = Reply::next(rest, *head_only) else { break };
        rest = behind;
        replies.push(reply);
    }
    assert_eq!(rest.escape_ascii().to_string(), "", "what is left is no whole reply");
    replies
}

/// Reads what has come for `peer` as replies to so many GETs or POSTs.
#[track_caller]
pub(crate) fn take_replies(peer: &Peer, count: usize) -> Vec<Reply> {
    let replies = replies(&peer.take(), &vec![false; count]);
    assert_eq!(replies.len(), count, "{replies:?}");
    replies
}

/// A reply.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// The reply at the front of `bytes`, and what follows it; `None` while it is not whole.
    ///
    /// # Panics
    ///
    /// If it never can become one.
    pub(crate) fn next(bytes: &[u8], head_only: bool) -> Option<(Self, &[u8])> {
        let (reply, length, rest) = Self::begun(bytes)?;
        let length = if head_only || reply.status == 100 { 0 } else { length };
        let length = usize::try_from(length).ok()?;
        let (body, rest) = rest.split_at_checked(length)?;
        Some((Self { body: body.to_vec(), ..reply }, rest))
    }

    /// As [`Reply::next`], but only its head must be whole: then the length of its body, and what
    /// there is after the head.
    pub(crate) fn begun(bytes: &[u8]) -> Option<(Self, u64, &[u8])> {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(bytes);
        let parsed = parsed.unwrap_or_else(|error| panic!("{error}: {}", bytes.escape_ascii()));
        let httparse::Status::Complete(len) = parsed else { return None };
        let head = &bytes[..len];
        assert!(head.ends_with(b"\r\n\r\n"));
        assert_eq!(response.version, Some(1));
        let fields = response.headers.iter().map(|field| {
            let value = std::str::from_utf8(field.value).expect("fields are ASCII");
            (field.name.to_owned(), value.to_owned())
        });
        let status = response.code.expect("a status");
        let reply = Self { status, fields: fields.collect(), body: Vec::new() };
        let length = if status == 100 {
            assert_eq!(reply.fields, []);
            0
        } else {
            reply.check();
            reply.field("Content-Length").expect("a length").parse().expect("a number")
        };
        Some((reply, length, &bytes[len..]))
    }

    /// What every reply has, once.
    fn check(&self) {
        for name in ["Server", "Date", "Content-Type", "Content-Length", "Connection"] {
            let count = self.fields.iter().filter(|(field, _)| field == name).count();
            assert_eq!(count, 1, "{name} in {self:?}");
        }
        let allows = self.field("Allow").is_some();
        // RFC 9110, 15.5.6 and 9.3.7; no other method is answered with 200 and nothing.
        let must = self.status == 405;
        let may = self.status == 200 && self.field("Content-Length") == Some("0");
        assert!(if allows { must || may } else { !must }, "{self:?}");
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| &value[..])
    }

    pub(crate) fn stays(&self) -> bool {
        match self.field("Connection") {
            Some("keep-alive") => true,
            Some("close") => false,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}
