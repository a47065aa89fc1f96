//! Requests that are not whole in time.

use wheelhouse::sim::{End, Sim};
use wheelhouse::{CloseReason, Timeout};

use super::client::{millis, replies, secs, serve, take_replies};

const HELLO: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Beginnings of requests.
const PARTS: [&[u8]; 6] = [
    b"G",
    b"GET / HTTP/1.1\r\nHost: a\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
];

#[test]
fn a_request_that_stalls_is_answered_and_ended() {
    for (part, used) in PARTS.into_iter().flat_map(|part| [(part, false), (part, true)]) {
        let mut sim = Sim::new(1);
        let server = serve(&mut sim);
        let peer = sim.connect(server.address());
        if used {
            peer.send(HELLO);
            sim.advance(secs(3));
            take_replies(&peer, 1);
        }
        peer.send(part);
        sim.advance(millis(29_900));
        assert_eq!(peer.take(), b"");
        sim.advance(millis(200));
        let reply = take_replies(&peer, 1).remove(0);
        assert_eq!((reply.status, reply.stays()), (408, false), "{}", part.escape_ascii());
        assert_eq!(peer.closed(), Some(End::Fin));
        peer.close();
        sim.advance(secs(60));
        let reason = server.take_closed()[0].reason;
        let request = CloseReason::Timeout(Timeout::Request);
        let read = CloseReason::Timeout(Timeout::Read);
        assert!(reason == request || reason == read, "{reason}");
        sim.assert_clean();
    }
}

#[test]
fn a_request_that_arrives_too_slowly_is_answered_and_ended() {
    for part in PARTS {
        let mut sim = Sim::new(1);
        let server = serve(&mut sim);
        let peer = sim.connect(server.address());
        let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\nX: ";
        let mut sent = head.as_bytes().to_vec();
        if part.ends_with(b"abc") {
            sent.extend_from_slice(b"\r\n\r\n");
        }
        sent.resize(500, b'x');
        peer.drip(&sent, millis(200));
        sim.advance(secs(29));
        assert_eq!(peer.take(), b"");
        sim.advance(secs(2));
        assert_eq!(take_replies(&peer, 1)[0].status, 408);
        drop(peer);
        sim.advance(secs(90));
        assert_eq!(server.take_closed()[0].reason, CloseReason::Timeout(Timeout::Request));
    }
}

/// Beginnings of a HEAD, of whose reply no body may come.
const HEADS: [&[u8]; 6] = [
    b"HEAD ",
    b"HEAD / HTTP/1.1\r\nHost: a\r\n",
    b"\r\n\r\nHEAD / HTTP/1.1\r\n",
    b"HEAD / HTTP/1.2\r\nHost: a\r\n\r",
    b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
];

#[test]
fn a_head_that_stalls_is_answered_without_a_body() {
    for (part, used) in HEADS.into_iter().flat_map(|part| [(part, false), (part, true)]) {
        for in_pieces in [false, true] {
            let mut sim = Sim::new(1);
            let server = serve(&mut sim);
            let peer = sim.connect(server.address());
            if used {
                peer.send(HELLO);
                sim.settle();
                take_replies(&peer, 1);
            }
            let size = if in_pieces { 1 } else { part.len() };
            for piece in part.chunks(size) {
                peer.send(piece);
                sim.settle();
            }
            sim.advance(secs(31));
            let replies = replies(&peer.take(), &[true]);
            assert_eq!((replies[0].status, replies[0].stays()), (408, false));
            assert_eq!(peer.closed(), Some(End::Fin));
        }
    }
}

#[test]
fn a_head_that_a_fin_cuts_short_is_answered_without_a_body() {
    for part in HEADS {
        let mut sim = Sim::new(1);
        let server = serve(&mut sim);
        let peer = sim.connect(server.address());
        peer.send(part);
        peer.half_close();
        sim.settle();
        let replies = replies(&peer.take(), &[true]);
        assert_eq!(replies.len(), 1, "{}", part.escape_ascii());
        assert_eq!((replies[0].status, replies[0].stays()), (400, false));
    }
}

#[test]
fn a_peer_that_sends_nothing_gets_nothing() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let (new, used) = (sim.connect(server.address()), sim.connect(server.address()));
    used.send(HELLO);
    sim.settle();
    take_replies(&used, 1);
    sim.advance(secs(100));
    for peer in [&new, &used] {
        assert_eq!(peer.take(), b"");
        assert_eq!(peer.closed(), Some(End::Fin));
    }
    let reasons: Vec<_> = server.take_closed().iter().map(|closed| closed.reason).collect();
    let timeouts = [Timeout::FirstByte, Timeout::Idle].map(CloseReason::Timeout);
    assert_eq!(reasons, timeouts);
    sim.assert_clean();
}

#[test]
fn the_clock_of_a_request_begins_with_it() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    peer.send(b"G");
    sim.advance(secs(25));
    // The rest of the first request, and the beginning of the next, in one piece.
    peer.send(&[&HELLO[1..], PARTS[1]].concat());
    sim.advance(secs(29));
    assert_eq!(take_replies(&peer, 1)[0].status, 200);
    assert!(peer.is_open());
    sim.advance(secs(2));
    assert_eq!(take_replies(&peer, 1)[0].status, 408);
}
