//! Requests that are too large, and connections at their limit of requests.

use wheelhouse::sim::Sim;
use wheelhouse::{CloseReason, Timeout};

use super::client::{
    answer_pieces, config, last_reply_to, replies, reply_to, secs, serve, serve_with, take_replies,
};
use crate::head::{HEAD_MAX, LINE_MAX};

/// A request whose line has `len` bytes.
fn with_line(len: usize) -> String {
    let around = "GET /? HTTP/1.1\r\n";
    format!("GET /?{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(len - around.len()))
}

/// The beginning of a request whose target alone has `len` bytes.
fn with_target(len: usize) -> String {
    format!("GET /{}", "x".repeat(len))
}

/// A request whose head has `len` bytes.
fn with_head(len: usize) -> String {
    let around = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n";
    format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(len - around.len()))
}

/// A request with so many fields.
fn with_fields(count: usize) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1))
}

#[test]
fn requests_may_be_as_large_as_that() {
    for sent in [with_line(LINE_MAX), with_head(HEAD_MAX), with_fields(64)] {
        assert_eq!(reply_to(&sent).status, 200);
    }
}

#[test]
fn a_line_that_is_too_long_is_refused() {
    for len in [LINE_MAX + 1, HEAD_MAX, 64 * 1024, 500_000] {
        assert_eq!(last_reply_to(with_line(len).as_bytes()).status, 414, "{len}");
        assert_eq!(last_reply_to(with_target(len).as_bytes()).status, 414, "{len}");
    }
    // It need not have come to its end.
    assert_eq!(last_reply_to(&with_line(LINE_MAX + 100).as_bytes()[..=LINE_MAX]).status, 414);
    // What is wrong in it before that is worse.
    let wrong = with_line(20_000).replace("/?", "/\x01");
    assert_eq!(last_reply_to(wrong.as_bytes()).status, 400);
}

#[test]
fn a_method_that_is_too_long_is_not_implemented() {
    for len in [LINE_MAX + 1, HEAD_MAX, 500_000] {
        let method = "G".repeat(len);
        assert_eq!(last_reply_to(method.as_bytes()).status, 501, "{len}");
        let whole = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(last_reply_to(whole.as_bytes()).status, 501, "{len}");
    }
    // The line is too long, and it is the target that makes it so.
    let both = format!("{} /{}", "G".repeat(LINE_MAX / 2), "x".repeat(LINE_MAX / 2));
    assert_eq!(last_reply_to(both.as_bytes()).status, 414);
    // What is no method is worse.
    let wrong = "G".repeat(LINE_MAX - 10) + "(" + &"G".repeat(100);
    assert_eq!(last_reply_to(wrong.as_bytes()).status, 400);
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    for len in [HEAD_MAX + 1, 64 * 1024, 500_000] {
        assert_eq!(last_reply_to(with_head(len).as_bytes()).status, 431, "{len}");
    }
    assert_eq!(last_reply_to(&with_head(HEAD_MAX + 100).as_bytes()[..HEAD_MAX]).status, 431);
    for count in [65, 500, 5_000] {
        assert_eq!(last_reply_to(with_fields(count).as_bytes()).status, 431, "{count}");
    }
}

#[test]
fn extensions_and_trailers_have_their_limits() {
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extended = |len: usize| format!("{head}3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(len));
    assert_eq!(reply_to(&extended(8_192)).status, 200);
    assert_eq!(last_reply_to(extended(8_193).as_bytes()).status, 400);
    let trailed = |len: usize| format!("{head}0\r\nX:{}\r\n\r\n", "x".repeat(len - 1));
    assert_eq!(reply_to(&trailed(8_192)).status, 200);
    assert_eq!(last_reply_to(trailed(8_193).as_bytes()).status, 431);
    // All chunks together.
    let many = format!("{head}{}0\r\n\r\n", "1;xxxxxxxx\r\na\r\n".repeat(1_025));
    assert_eq!(last_reply_to(many.as_bytes()).status, 400);
    // Of all kinds of extensions and of white space.
    for extra in [";x=y", ";x=\"\\y\"", "; x", " \t;x"] {
        let many = format!("{head}{}0\r\n\r\n", format!("1{extra}\r\na\r\n").repeat(8_192));
        assert_eq!(last_reply_to(many.as_bytes()).status, 400, "{extra:?}");
    }
    for endless in [" ".repeat(10_000), format!(";x{}", " ".repeat(10_000))] {
        let sent = format!("{head}3{endless}");
        assert_eq!(last_reply_to(sent.as_bytes()).status, 400);
    }
}

#[test]
fn no_connection_is_reset_for_too_much_input() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    peer.send(&vec![b'A'; 1_000_000]);
    sim.advance(secs(60));
    assert_eq!(take_replies(&peer, 1)[0].status, 501);
    drop(peer);
    sim.advance(secs(60));
    assert_eq!(server.take_closed()[0].reason, CloseReason::HandlerClose);
}

#[test]
fn the_reply_to_the_last_request_announces_the_end() {
    let mut config = config();
    config.limits.requests_max = Some(5);
    let hello = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for pipelined in [true, false] {
        let mut sim = Sim::new(1);
        let server = serve_with(&mut sim, config.clone());
        let peer = sim.connect(server.address());
        if pipelined {
            peer.send(hello.repeat(9).as_bytes());
        } else {
            for _ in 0..9 {
                peer.send(hello.as_bytes());
                sim.settle();
            }
        }
        sim.advance(secs(1));
        let stays: Vec<_> = take_replies(&peer, 5).iter().map(|reply| reply.stays()).collect();
        assert_eq!(stays, [true, true, true, true, false]);
        assert!(!peer.is_open());
        drop(peer);
        sim.advance(secs(60));
        assert_eq!(server.take_closed()[0].reason, CloseReason::MaxRequests);
        assert_eq!(server.stats().requests, 5);
    }
}

#[test]
fn the_last_request_may_be_of_any_kind() {
    let mut config = config();
    config.limits.requests_max = Some(2);
    let hello = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for (last, len) in [
        ("GET /bytes/300000 HTTP/1.1\r\nHost: a\r\n\r\n", 300_000),
        ("GET /slow?ms=500 HTTP/1.1\r\nHost: a\r\n\r\n", 5),
        ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", 2),
    ] {
        let mut sim = Sim::new(1);
        let server = serve_with(&mut sim, config.clone());
        let peer = sim.connect(server.address());
        peer.send([hello, last, hello, hello].concat().as_bytes());
        sim.advance(secs(2));
        let replies = take_replies(&peer, 2);
        assert!(replies[0].stays() && !replies[1].stays(), "{last}");
        assert_eq!(replies[1].body.len(), len);
        assert!(!peer.is_open());
        drop(peer);
        sim.advance(secs(60));
        assert_eq!(server.take_closed()[0].reason, CloseReason::MaxRequests, "{last}");
    }
}

#[test]
fn empty_lines_before_a_request_do_not_use_up_the_limit() {
    let mut config = config();
    config.limits.requests_max = Some(1);
    for pieces in [&["\r\n"][..], &["\r", "\n"], &["\r\n\r\n", "\r\n"]] {
        let mut sim = Sim::new(1);
        let server = serve_with(&mut sim, config.clone());
        let peer = sim.connect(server.address());
        for piece in pieces {
            peer.send(piece.as_bytes());
            sim.settle();
        }
        assert!(peer.is_open(), "{pieces:?} counts as a request");
        assert_eq!(server.stats().requests, 0);
        peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        sim.settle();
        let reply = take_replies(&peer, 1).remove(0);
        assert_eq!((reply.text(), reply.stays()), ("Hello, World!", false));
        assert_eq!(server.stats().requests, 1);
        peer.close();
        sim.settle();
        assert_eq!(server.take_closed()[0].reason, CloseReason::MaxRequests);
    }
}

#[test]
fn a_thousand_requests_are_the_limit() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    peer.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1_100).as_bytes());
    sim.advance(secs(1));
    let replies = take_replies(&peer, 1_000);
    assert!(replies[..999].iter().all(|reply| reply.stays()));
    assert!(!replies[999].stays());
}

#[test]
fn the_last_reply_of_a_lifetime_announces_the_end() {
    let mut config = config();
    config.timeouts.lifetime = Some(secs(10));
    for (delay, status, end) in [(12_000, 200, 13), (59_000, 503, 41)] {
        let mut sim = Sim::new(1);
        let server = serve_with(&mut sim, config.clone());
        let peer = sim.connect(server.address());
        let slow = format!("GET /slow?ms={delay} HTTP/1.1\r\nHost: a\r\n\r\n").repeat(2);
        peer.send(slow.as_bytes());
        sim.advance(secs(end));
        let reply = take_replies(&peer, 1).remove(0);
        assert_eq!((reply.status, reply.stays()), (status, false));
        assert!(!peer.is_open());
        drop(peer);
        sim.advance(secs(60));
        let lifetime = CloseReason::Timeout(Timeout::Lifetime);
        assert_eq!(server.take_closed()[0].reason, lifetime);
        sim.assert_clean();
    }
}

#[test]
fn a_request_that_the_peer_cuts_short_is_bad() {
    for sent in [
        "G",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
    ] {
        let mut sim = Sim::new(1);
        let server = serve(&mut sim);
        let peer = sim.connect(server.address());
        peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        peer.send(sent.as_bytes());
        peer.half_close();
        sim.advance(secs(1));
        let replies = take_replies(&peer, 2);
        assert_eq!((replies[0].status, replies[1].status), (200, 400), "{sent:?}");
        assert!(!replies[1].stays() && !peer.is_open());
        assert_eq!(server.take_closed()[0].reason, CloseReason::PeerEof);
        sim.assert_clean();
    }
}

#[test]
fn whole_requests_are_served_after_the_fin() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let sent = get("/bytes/200000") + &get("/slow?ms=700") + &get("/").repeat(200);
    peer.send(sent.as_bytes());
    peer.half_close();
    sim.advance(secs(2));
    let replies = take_replies(&peer, 202);
    assert_eq!(replies[0].body.len(), 200_000);
    assert_eq!(replies[1].text(), "slow\n");
    assert!(!peer.is_open());
    assert_eq!(server.take_closed()[0].reason, CloseReason::PeerEof);
}

#[test]
fn a_request_in_pieces_is_one_request() {
    let whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let pieces: Vec<&[u8]> = whole.chunks(1).collect();
    let (bytes, closed) = answer_pieces(&pieces);
    assert_eq!((replies(&bytes, &[false]).len(), closed), (1, false));
}

#[test]
fn bodies_that_are_kept_are_bounded_together() {
    const LENGTH: usize = 1_000_000;
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let head = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n");
    let most = vec![b'x'; LENGTH - 1];
    let peers: Vec<_> = (0..70).map(|_| sim.connect(server.address())).collect();
    for peer in &peers {
        peer.send(&[head.as_bytes(), &most].concat());
        sim.settle();
    }
    let refused = peers.iter().filter(|peer| peer.received().starts_with(b"HTTP/1.1 503 "));
    assert!((2..=6).contains(&refused.clone().count()), "{}", refused.count());
    // What was kept is given back, by those that leave and by those that end.
    for peer in &peers[..20] {
        peer.close();
    }
    sim.settle();
    peers[20].send(b"x");
    let peer = sim.connect(server.address());
    peer.send(&[head.as_bytes(), &most, b"x"].concat());
    sim.settle();
    for peer in [&peers[20], &peer] {
        assert_eq!(take_replies(peer, 1)[0].status, 200);
    }
}
