//! What a server does about sockets that it shares, lacks, or does not get at once.

use std::net::SocketAddr;

use wheelhouse::sim::{Call, End, Faults, Link, errno};
use wheelhouse::{CloseReason, Config, State, Target, Timeout};

use super::{SERVER, crowded, idle, millis, secs, world};
use crate::scenarios::Echo;

/// Ends as soon as its peer has nothing to say for a second.
fn hasty() -> Config {
    let mut config = Config::default();
    config.timeouts.idle = Some(secs(1));
    config
}

#[test]
fn a_peer_sees_an_idle_end_although_the_descriptor_is_duplicated() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, hasty(), Echo);
    server.duplicate_descriptors();
    let peers = idle(&mut sim, 1);
    sim.advance(secs(2));
    server.expect_closed(CloseReason::Timeout(Timeout::Idle));
    assert_eq!(peers[0].closed(), Some(End::Fin));
}

#[test]
fn a_peer_sees_its_eviction_although_the_descriptor_is_duplicated() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, crowded(4), Echo);
    server.duplicate_descriptors();
    let peers = idle(&mut sim, 4);
    let _newcomer = sim.connect(SERVER);
    sim.settle();
    server.expect_closed(CloseReason::Evicted);
    assert_eq!(peers[0].closed(), Some(End::Fin));
}

#[test]
fn an_idle_peer_sees_a_shutdown_although_the_descriptor_is_duplicated() {
    let mut sim = world(1);
    let config = Config { shutdown_spread: None, ..Config::default() };
    let server = sim.serve(SERVER, config, Echo);
    server.duplicate_descriptors();
    let peers = idle(&mut sim, 1);
    server.shutdown();
    sim.advance(secs(10));
    assert!(server.is_finished());
    assert_eq!(peers[0].closed(), Some(End::Fin));
}

/// Whether an idle end costs no call but the close where the peer has ended the connection.
#[test]
fn a_peer_that_ends_first_costs_no_shutdown() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Echo);
    // It would fail if it were called, and be spent.
    server.fail(Call::ShutdownWrite, 0, errno::ENOTCONN);
    for peer in idle(&mut sim, 3) {
        peer.close();
        sim.settle();
        server.expect_closed(CloseReason::PeerEof);
    }
    assert_eq!(sim.failures_left(), 1);
}

#[test]
fn a_listener_that_blocks_for_a_moment_delays_and_does_not_stop_the_loop() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, hasty(), Echo);
    sim.set_faults(Faults { blocking_accept: 1_000, ..Faults::NONE });
    let start = sim.now();
    let peers = idle(&mut sim, 20);
    let took = sim.now() - start;
    // Each client is given 5 ms, and costs at least one accept that waits.
    assert!(took >= 20 * millis(6) && took < 20 * millis(20), "{took:?}");
    sim.advance(secs(1) + millis(20));
    assert!(peers.iter().all(|peer| peer.closed() == Some(End::Fin)));
    assert_eq!(server.take_closed().len(), 20);
}

/// An accept waits for a whole number of milliseconds, and the second of each pair comes one after
/// the first.
#[test]
fn a_connection_that_comes_as_an_accept_stops_waiting_is_accepted() {
    let mut sim = world(1);
    let _server = sim.serve(SERVER, Config::default(), Echo);
    sim.set_link(Link { latency: millis(10), ..Link::LOOPBACK });
    sim.set_faults(Faults { blocking_accept: 1_000, ..Faults::NONE });
    for _ in 0..20 {
        let pair = [0, 1].map(|_| {
            let peer = sim.connect(SERVER);
            peer.send(b"hi");
            sim.advance(millis(1));
            peer
        });
        sim.advance(millis(50));
        pair.iter().for_each(|peer| peer.expect(b"hi"));
    }
}

#[test]
fn look_ups_that_were_given_up_keep_no_other_waiting() {
    let mut sim = world(1);
    let listener = sim.listen(SocketAddr::from((sim.peers_ip(), 80)), 16);
    sim.fail_name("deaf", None);
    sim.set_name("localhost", [SocketAddr::from((sim.peers_ip(), 0))], millis(1));
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
    let dial = |name: &str| {
        let target: Target = format!("{name}:80").parse().unwrap();
        server.with(|_, cx| cx.connect(target).unwrap())
    };
    for _ in 0..20 {
        dial("deaf");
    }
    sim.advance(Config::default().timeouts.connect.unwrap() + millis(20));
    assert_eq!(server.take_closed().len(), 20);
    dial("localhost");
    sim.advance(millis(100));
    assert!(listener.accept().is_some());
}

#[test]
fn a_unix_dial_waits_for_room_in_the_backlog() {
    let mut sim = world(1);
    let listener = sim.listen("unix:/run/peer", 1);
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
    let dial = || server.with(|_, cx| cx.connect(listener.address()).unwrap());
    dial();
    sim.settle();
    let second = dial();
    let state = || server.with(|_, cx| cx.conn(second).map(|conn| conn.state()));
    sim.advance(secs(4));
    assert_eq!(state(), Some(State::Connecting));
    assert!(listener.accept().is_some());
    // At most one pause later.
    sim.advance(millis(520));
    assert!(matches!(state(), Some(State::Connected | State::Idle)), "{:?}", state());
    assert!(listener.accept().is_some());
}

#[test]
fn a_unix_dial_that_finds_no_room_is_given_up_on_time() {
    let mut sim = world(1);
    let listener = sim.listen("unix:/run/peer", 1);
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
    let dial = || server.with(|_, cx| cx.connect(listener.address()).unwrap());
    dial();
    sim.settle();
    let second = dial();
    let attempt = Config::default().timeouts.connect_attempt.unwrap();
    sim.advance(attempt - millis(10));
    assert_eq!(server.connections(), 2);
    sim.advance(millis(30));
    let closed = server.expect_closed(CloseReason::Timeout(Timeout::Connect));
    assert_eq!(closed.id, second);
}

#[test]
fn a_tcp_dial_that_the_system_refuses_fails_at_once() {
    let mut sim = world(1);
    let listener = sim.listen(SocketAddr::from((sim.peers_ip(), 80)), 1);
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
    server.fail(Call::Connect, 0, errno::EAGAIN);
    server.with(|_, cx| cx.connect(listener.address()).unwrap());
    sim.settle();
    let reason = server.take_closed()[0].reason;
    assert!(matches!(reason, CloseReason::ConnectFailed(_)), "{reason:?}");
}

#[test]
fn an_event_of_a_connection_that_is_gone_is_counted() {
    let mut sim = world(1);
    let mut faults = Faults::NONE;
    faults.spurious_event = 1_000;
    let server = sim.serve(SERVER, Config::default(), Echo);
    for _ in 0..20 {
        let peer = sim.connect(SERVER);
        peer.send(b"x");
        sim.settle();
        peer.close();
        sim.settle();
    }
    sim.set_faults(faults);
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.advance(secs(1));
    peer.expect(b"x");
    assert!(server.stats().stale_events > 0);
}
