//! Bodies, with a length or in chunks, and what is sent before them.

use wheelhouse::sim::Sim;

use super::client::{
    answer, answer_pieces, last_reply_to, replies, reply_to, secs, serve, take_replies,
};
use crate::body::BODY_MAX;

fn echo(fields: &str, body: &str) -> String {
    format!("POST /echo HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}")
}

fn chunked(body: &str) -> String {
    echo("Transfer-Encoding: chunked", body)
}

#[test]
fn a_body_with_a_length_comes_back() {
    for body in ["", "x", "\r\n\r\n", "GET / HTTP/1.1\r\n\r\n"] {
        let reply = reply_to(&echo(&format!("Content-Length: {}", body.len()), body));
        assert_eq!(reply.text(), body);
    }
    // Without a field there is no body.
    assert_eq!(reply_to(&echo("X: y", "")).text(), "");
}

#[test]
fn a_body_in_chunks_comes_back_in_one_piece() {
    for (body, want) in [
        ("0\r\n\r\n", ""),
        ("1\r\nx\r\n0\r\n\r\n", "x"),
        ("5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n", "hello, world"),
        ("a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
        ("0000000000000003\r\nabc\r\n000\r\n\r\n", "abc"),
        ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
        // Extensions and trailers are discarded.
        ("3;x\r\nabc\r\n0;y=z\r\n\r\n", "abc"),
        ("3;x=\"a b;c\"; y \t= z\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3;x;y;z=1\r\nabc\r\n0;x\r\n\r\n", "abc"),
        ("3;x=\"\"\r\nabc\r\n0;x=\"\\\"\\\\;\t\u{e9}\";y\r\n\r\n", "abc"),
        // RFC 9112, 7.1.1: white space around the marks is bad, and is to be borne.
        ("3 ;x\r\nabc\r\n0\t \t; \ty \t=\t \"z\" ; a\r\n\r\n", "abc"),
        ("3\r\nabc\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n", "abc"),
        ("3\r\nabc\r\n0\r\nHost:\r\n\r\n", "abc"),
    ] {
        assert_eq!(reply_to(&chunked(body)).text(), want, "{body:?}");
    }
    let reply = reply_to(&echo("tRANSFER-eNCODING:\tChUnKeD", "1\r\nx\r\n0\r\n\r\n"));
    assert_eq!(reply.text(), "x");
}

#[test]
fn what_follows_a_body_is_the_next_request() {
    let sent = chunked("3\r\nabc\r\n0\r\nX: y\r\n\r\n")
        + &echo("Content-Length: 3", "def")
        + &chunked("3\r\nghi\r\n0\r\n\r\n");
    let (bytes, _) = answer(sent.as_bytes());
    let bodies: Vec<_> = replies(&bytes, &[false; 3]).into_iter().map(|r| r.body).collect();
    assert_eq!(bodies, [b"abc", b"def", b"ghi"]);
}

#[test]
fn a_body_that_the_handler_does_not_want_is_skipped() {
    for head in ["GET /", "GET /bytes/2", "GET /slow?ms=5", "GET /nowhere", "POST /", "PUT /"] {
        for (field, body) in [
            ("Content-Length: 27", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("Transfer-Encoding: chunked", "a\r\nGET / HTTP\r\n0\r\nA: b\r\n\r\n"),
        ] {
            reply_to(&format!("{head} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n{body}"));
        }
    }
}

#[test]
fn as_large_a_body_as_allowed_comes_back() {
    let body = "0123456789abcdef".repeat(BODY_MAX as usize / 16);
    let reply = reply_to(&echo(&format!("Content-Length: {BODY_MAX}"), &body));
    assert!(reply.text() == body);
    let chunk = format!("{:x}\r\n{}\r\n", BODY_MAX / 4, &body[..body.len() / 4]);
    let reply = reply_to(&chunked(&(chunk.repeat(4) + "0\r\n\r\n")));
    assert!(reply.text() == body);
}

#[test]
fn a_body_that_is_too_large_is_refused_when_that_is_known() {
    for length in [BODY_MAX + 1, u64::MAX] {
        for path in ["/echo", "/nowhere"] {
            let sent =
                format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\nx");
            assert_eq!(last_reply_to(sent.as_bytes()).status, 413);
        }
    }
    for size in [format!("{:x}", BODY_MAX + 1), "f".repeat(16)] {
        assert_eq!(last_reply_to(chunked(&format!("{size}\r\nx")).as_bytes()).status, 413);
    }
    let most = format!("{BODY_MAX:x}\r\n{}\r\n", "x".repeat(BODY_MAX as usize));
    assert_eq!(last_reply_to(chunked(&(most + "1\r\n")).as_bytes()).status, 413);
}

#[test]
fn a_client_that_waits_for_100_gets_it() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    for field in ["Content-Length: 2", "Transfer-Encoding: chunked"] {
        peer.send(echo(&format!("Expect: 100-Continue\r\n{field}"), "").as_bytes());
        sim.settle();
        peer.expect(b"HTTP/1.1 100 Continue\r\n\r\n");
        sim.advance(secs(1));
        let body: &[u8] = if field.starts_with('C') { b"hi" } else { b"2\r\nhi\r\n0\r\n\r\n" };
        peer.send(body);
        sim.settle();
        assert_eq!(take_replies(&peer, 1)[0].text(), "hi");
    }
}

#[test]
fn a_client_that_does_not_wait_gets_no_100() {
    let sent = echo("Expect: 100-continue\r\nContent-Length: 2", "hi");
    assert_eq!(reply_to(&sent).text(), "hi");
    // There is nothing to continue with.
    assert_eq!(reply_to(&echo("Expect: 100-continue\r\nContent-Length: 0", "")).text(), "");
    assert_eq!(reply_to(&echo("Expect: 100-continue", "")).text(), "");
    // HTTP/1.0 does not know it.
    let old = "POST /echo HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    assert_eq!(answer(old.as_bytes()).0, b"");
}

#[test]
fn expectations_are_a_list() {
    for fields in [
        "Expect: 100-continue, 100-continue",
        "Expect: 100-continue\r\nExpect: 100-Continue",
        "Expect: ,100-continue",
        "Expect: , ,\t100-continue , ,",
        "Expect:\r\nExpect: 100-continue\r\nExpect: ,",
    ] {
        let (bytes, closed) =
            answer_pieces(&[echo(&format!("{fields}\r\nContent-Length: 2"), "").as_bytes(), b"hi"]);
        let rest = bytes.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n");
        let rest = rest.unwrap_or_else(|| panic!("{fields:?}: {}", bytes.escape_ascii()));
        assert_eq!((replies(rest, &[false])[0].text(), closed), ("hi", false), "{fields:?}");
    }
    // Nothing is expected.
    for fields in ["Expect:", "Expect: ,", "Expect: \t, ,\r\nExpect:"] {
        let reply = reply_to(&echo(&format!("{fields}\r\nContent-Length: 2"), "hi"));
        assert_eq!(reply.text(), "hi", "{fields:?}");
    }
    for fields in [
        "Expect: 100-continue, x",
        "Expect: x, 100-continue",
        "Expect: 100-continue\r\nExpect: x",
        "Expect: x\r\nExpect: 100-continue",
        "Expect: 100-continue 100-continue",
        "Expect: 100-continue=1",
        "Expect: \"100-continue\"",
    ] {
        let sent = echo(&format!("{fields}\r\nContent-Length: 2"), "hi");
        assert_eq!(last_reply_to(sent.as_bytes()).status, 417, "{fields:?}");
    }
}

#[test]
fn a_client_that_waits_for_100_gets_the_refusal_instead() {
    for (request, status) in [
        ("POST /nowhere", 404),
        ("POST /", 405),
        ("GET /echo", 405),
        ("PUT /echo", 501),
        ("OPTIONS /", 200),
        ("GET /slow", 400),
    ] {
        let fields = "Host: a\r\nExpect: 100-continue\r\nContent-Length: 9";
        let sent = format!("{request} HTTP/1.1\r\n{fields}\r\n\r\n");
        // Its body may come or not, so nothing that follows can be distinguished from it.
        assert_eq!(last_reply_to(sent.as_bytes()).status, status, "{request}");
    }
    let large = echo("Expect: 100-continue\r\nContent-Length: 1048577", "");
    assert_eq!(last_reply_to(large.as_bytes()).status, 413);
    let other = echo("Expect: 200-ok\r\nContent-Length: 1", "x");
    assert_eq!(last_reply_to(other.as_bytes()).status, 417);
}
