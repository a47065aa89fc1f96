//! The end of the server, seen by clients that are in the middle of something.

use bytes::BytesMut;
use wheelhouse::sim::{End, Sim};
use wheelhouse::{CloseReason, Handler};

use super::client::{Reply, millis, replies, secs, serve, take_replies};
use crate::server::{Arrived, Phase};

#[test]
fn a_request_under_way_is_answered_as_the_last_one() {
    for (sent, rest) in [
        ("GET /slow?ms=5000 HTTP/1.1\r\nHost: a\r\n\r\n", ""),
        ("GET / HTTP/1.1\r\nHost:", " a\r\n\r\n"),
        ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc", "de"),
        ("GET /bytes/3000000 HTTP/1.1\r\nHost: a\r\n\r\n", ""),
    ] {
        let mut sim = Sim::new(1);
        let server = serve(&mut sim);
        let peer = sim.connect(server.address());
        peer.read_at(1_000_000);
        peer.send(sent.as_bytes());
        sim.advance(secs(1));
        server.shutdown();
        sim.advance(secs(1));
        peer.send(rest.as_bytes());
        sim.advance(secs(5));
        let reply = take_replies(&peer, 1).remove(0);
        assert_eq!(reply.status, 200, "{sent}");
        // The head of a stream had left before.
        assert!(sent.contains("bytes") || !reply.stays(), "{sent}");
        assert_eq!(peer.closed(), Some(End::Fin));
        drop(peer);
        sim.advance(secs(10));
        assert!(server.is_finished());
        assert!(matches!(
            server.take_closed()[0].reason,
            CloseReason::Shutdown | CloseReason::HandlerClose
        ));
        sim.assert_clean();
    }
}

const SLOW: &str = "GET /slow?ms=500 HTTP/1.1\r\nHost: a\r\n\r\n";
const HELLO: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn requests_read_before_the_end_are_all_served() {
    for sent in [
        [SLOW, HELLO, HELLO].concat(),
        [HELLO, SLOW, SLOW].concat(),
        // More than are served in one turn.
        [SLOW, &HELLO.repeat(200)].concat(),
        // The last of them arrives in part.
        [SLOW, HELLO, "GET / HTTP/1.1\r\nHo"].concat(),
    ] {
        let mut sim = Sim::new(1);
        let server = serve(&mut sim);
        let peer = sim.connect(server.address());
        peer.send(sent.as_bytes());
        sim.advance(millis(100));
        server.shutdown();
        sim.advance(millis(100));
        let whole = sent.ends_with("\r\n\r\n");
        if !whole {
            peer.send(b"st: a\r\n\r\n");
        }
        // These come too late.
        peer.send(HELLO.repeat(10).as_bytes());
        sim.advance(secs(3));
        let count = sent.matches("GET").count();
        let got = take_replies(&peer, count);
        assert!(got.iter().all(|reply| reply.status == 200));
        let stay: Vec<_> = got.iter().map(Reply::stays).collect();
        assert!(!stay[count - 1] && stay[..count - 1].iter().all(|stays| *stays), "{stay:?}");
        assert_eq!(peer.closed(), Some(End::Fin));
    }
}

#[test]
fn a_peer_that_never_pauses_does_not_delay_the_end() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    for round in 0..100 {
        peer.send(HELLO.repeat(70).as_bytes());
        sim.advance(millis(10));
        if round == 5 {
            server.shutdown();
        }
        if peer.closed().is_some() {
            assert!((5..=7).contains(&round), "{round}");
            break;
        }
    }
    peer.close();
    sim.advance(secs(1));
    assert!(server.is_finished());
}

#[test]
fn a_request_that_never_becomes_whole_is_refused_in_time() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    peer.send(b"GET / HTTP/1.1\r\nHost:");
    sim.settle();
    server.shutdown();
    sim.advance(secs(31));
    assert!(server.is_finished());
}

#[test]
fn an_idle_connection_gets_no_reply_at_its_end() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let (new, used) = (sim.connect(server.address()), sim.connect(server.address()));
    used.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    sim.settle();
    take_replies(&used, 1);
    server.shutdown();
    sim.advance(secs(6));
    for peer in [&new, &used] {
        assert_eq!(peer.take(), b"");
        assert_eq!(peer.closed(), Some(End::Fin));
    }
}

#[test]
fn queued_replies_leave_first() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    sim.settle();
    peer.stop_reading();
    let body = "x".repeat(600_000);
    let echo = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 600000\r\n\r\n{body}");
    peer.send(echo.as_bytes());
    sim.advance(secs(1));
    server.shutdown();
    sim.advance(secs(1));
    peer.resume_reading();
    sim.advance(secs(5));
    assert!(take_replies(&peer, 1)[0].text() == body);
    assert_eq!(peer.closed(), Some(End::Fin));
}

#[test]
fn replies_during_a_shutdown_announce_the_end() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    sim.settle();
    let id = server.with(|_, cx| cx.ids()[0]);
    // Requests that are served between the call for the end and the end.
    let mut input = BytesMut::from("GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2).as_str());
    let posted = server.handle().post_to(id, move |http, conn, phase| {
        conn.cx().shutdown();
        // Not by way of the world, which knows what the socket gave.
        Handler::on_data(&mut **http, conn, phase, &mut input);
    });
    posted.expect("it has not ended");
    sim.settle();
    let got = take_replies(&peer, 2);
    assert_eq!(got.iter().map(Reply::stays).collect::<Vec<_>>(), [true, false]);
    for reply in got {
        assert_eq!((reply.status, reply.text()), (503, "503 Service Unavailable\n"));
    }
    sim.advance(secs(60));
    assert!(server.is_finished());
}

#[test]
fn a_server_that_stays_is_ready() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    for (path, text) in [("/readyz", "ready\n"), ("/healthz", "ok\n")] {
        peer.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        sim.settle();
        let got = replies(&peer.take(), &[false]);
        assert_eq!((got[0].status, got[0].text()), (200, text));
    }
}

#[test]
fn a_session_begins_with_nothing() {
    // What an idle connection costs beside its record.
    assert!(size_of::<Phase>() <= 64, "{}", size_of::<Phase>());
    assert!(matches!(Phase::Head(Arrived::Nothing), Phase::Head(_)));
    assert!(Reply::next(b"HTTP/1.1 200 OK\r\n", false).is_none());
}
