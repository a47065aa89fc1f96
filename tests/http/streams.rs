//! Replies that are larger than any memory.

use wheelhouse::sim::{End, Server, Sim};
use wheelhouse::{CloseReason, Timeout};

use super::client::{Reply, millis, secs, serve, take_replies};
use crate::server::Http;

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()
}

/// Bytes queued for all connections.
fn queued(server: &Server<Http>) -> usize {
    server.with(|_, cx| {
        let ids = cx.ids();
        ids.into_iter().filter_map(|id| cx.conn(id).map(|conn| conn.queued())).sum()
    })
}

/// The high watermark, one piece of the pattern, and a head.
const QUEUED_MAX: usize = 2 * 64 * 1024 + 1_024;

#[test]
fn a_slow_reader_gets_all_of_it_and_costs_little() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    sim.settle();
    peer.read_at(1_000_000);
    peer.send(&get("/bytes/5000000"));
    let mut got = Vec::new();
    for _ in 0..60 {
        sim.advance(millis(100));
        assert!(queued(&server) <= QUEUED_MAX, "{}", queued(&server));
        got.extend(peer.take());
    }
    let (reply, rest) = Reply::next(&got, false).expect("a whole reply");
    assert_eq!((reply.body.len(), rest.len()), (5_000_000, 0));
    assert!(reply.body.chunks(64).all(|line| reply.body.starts_with(line)));
    // And it is served again.
    peer.send(&get("/"));
    sim.advance(secs(1));
    assert_eq!(take_replies(&peer, 1)[0].text(), "Hello, World!");
}

#[test]
fn a_stream_may_be_of_any_length() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    peer.send(&get("/bytes/18446744073709551615"));
    let mut got = Vec::new();
    while got.len() < 20_000_000 {
        sim.step();
        got.extend(peer.take());
    }
    assert!(queued(&server) <= QUEUED_MAX);
    let (_, length, body) = Reply::begun(&got).expect("a head");
    assert_eq!(length, u64::MAX);
    assert!(body.chunks(64).all(|line| body.starts_with(line)));
    peer.reset();
    sim.advance(secs(1));
    assert_eq!(server.take_closed()[0].reason, CloseReason::PeerReset);
    sim.assert_clean();
}

#[test]
fn a_peer_that_does_not_read_is_ended_at_the_write_deadline() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    sim.settle();
    peer.stop_reading();
    peer.send(&get("/bytes/100000000"));
    sim.advance(secs(59));
    assert!(queued(&server) <= QUEUED_MAX);
    sim.advance(secs(2));
    assert_eq!(server.take_closed()[0].reason, CloseReason::Timeout(Timeout::Write));
    sim.assert_clean();
}

#[test]
fn a_peer_that_pipelines_and_does_not_read_is_not_read() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    sim.settle();
    peer.stop_reading();
    let sent = get("/bytes/30000").repeat(200);
    peer.send(&sent);
    sim.advance(secs(20));
    assert!(queued(&server) <= QUEUED_MAX);
    assert!(server.stats().requests < 60, "{}", server.stats().requests);
    peer.resume_reading();
    sim.advance(secs(20));
    assert_eq!(take_replies(&peer, 200)[199].body.len(), 30_000);
}

#[test]
fn a_stream_is_kept_apart_from_what_follows() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect_with_window(server.address(), 4_096);
    let sent = [get("/bytes/200000"), get("/"), get("/bytes/1"), get("/bytes/70000"), get("/")];
    peer.send(&sent.concat());
    sim.advance(secs(20));
    let lens: Vec<_> = take_replies(&peer, 5).iter().map(|reply| reply.body.len()).collect();
    assert_eq!(lens, [200_000, 13, 1, 70_000, 13]);
}

#[test]
fn the_connection_ends_after_a_last_stream() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect_with_window(server.address(), 4_096);
    let close = b"GET /bytes/200000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    peer.send(&[&close[..], &get("/")].concat());
    sim.advance(secs(20));
    let reply = take_replies(&peer, 1).remove(0);
    assert_eq!((reply.body.len(), reply.stays()), (200_000, false));
    assert_eq!(peer.closed(), Some(End::Fin));
    drop(peer);
    sim.advance(secs(20));
    assert_eq!(server.take_closed()[0].reason, CloseReason::HandlerClose);
}
