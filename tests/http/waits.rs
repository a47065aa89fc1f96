//! Replies that come later.

use wheelhouse::sim::Sim;
use wheelhouse::{CloseReason, Timeout};

use super::client::{millis, secs, serve, take_replies};

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

#[test]
fn a_slow_reply_comes_when_it_is_due() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    peer.send(get("/slow?ms=1500").as_bytes());
    sim.advance(millis(1_490));
    assert_eq!(peer.take(), b"");
    sim.advance(millis(30));
    assert_eq!(take_replies(&peer, 1)[0].text(), "slow\n");
    peer.send(get("/slow?ms=0").as_bytes());
    sim.advance(millis(30));
    assert_eq!(take_replies(&peer, 1)[0].text(), "slow\n");
}

#[test]
fn requests_after_it_wait_for_it() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    peer.send((get("/bytes/1") + &get("/slow?ms=1000") + &get("/bytes/3")).as_bytes());
    sim.settle();
    assert_eq!(take_replies(&peer, 1)[0].body, b"0");
    peer.send((get("/slow?ms=1000") + &get("/bytes/5")).as_bytes());
    sim.advance(millis(1_100));
    let replies = take_replies(&peer, 2);
    assert_eq!((replies[0].text(), replies[1].text()), ("slow\n", "012"));
    sim.advance(millis(1_000));
    let replies = take_replies(&peer, 2);
    assert_eq!((replies[0].text(), replies[1].text()), ("slow\n", "01234"));
}

#[test]
fn requests_after_it_wait_in_the_socket() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    peer.send(get("/slow?ms=20000").as_bytes());
    sim.settle();
    // Far more than may be left unread.
    let sent = get(&format!("/healthz?{}", "x".repeat(1_000))).repeat(800);
    peer.send(sent.as_bytes());
    sim.advance(secs(19));
    assert_eq!(peer.take(), b"");
    sim.advance(secs(2));
    assert_eq!(take_replies(&peer, 801)[800].text(), "ok\n");
}

#[test]
fn a_peer_that_closed_meanwhile_is_noticed_afterwards() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let (gone, lost) = (sim.connect(server.address()), sim.connect(server.address()));
    for peer in [&gone, &lost] {
        peer.send(get("/slow?ms=5000").as_bytes());
    }
    sim.settle();
    gone.half_close();
    lost.reset();
    sim.advance(secs(1));
    assert_eq!(server.connections(), 1);
    assert_eq!(server.take_closed()[0].reason, CloseReason::PeerReset);
    sim.advance(secs(5));
    // It half-closed, so it may well be reading.
    assert_eq!(take_replies(&gone, 1)[0].status, 200);
    assert_eq!(server.take_closed()[0].reason, CloseReason::PeerEof);
    sim.assert_clean();
}

#[test]
fn a_reply_that_is_too_slow_ends_the_connection() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    peer.send((get("/slow?ms=18446744073709551615") + &get("/")).as_bytes());
    sim.advance(millis(59_900));
    assert_eq!(peer.take(), b"");
    sim.advance(millis(200));
    let reply = take_replies(&peer, 1).remove(0);
    assert_eq!((reply.status, reply.stays()), (503, false));
    drop(peer);
    sim.advance(secs(60));
    assert_eq!(server.take_closed()[0].reason, CloseReason::Timeout(Timeout::Response));
    sim.assert_clean();
}
