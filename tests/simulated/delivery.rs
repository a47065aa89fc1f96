//! No reply is cut off while its peer goes on reading: whichever end a connection comes to, bytes
//! that the kernel still holds for a live, reading peer are not destroyed, unless the end is a reset
//! by rule.
//!
//! The peer has a receive buffer of 4 KiB. It asks for 100,000 bytes, waits, sends a few bytes, and
//! reads on.

use std::time::Duration;

use wheelhouse::config::AtLimit;
use wheelhouse::sim::{End, Link, Peer, Server, Sim};
use wheelhouse::{CloseReason, Config, Timeout, Timeouts};

use crate::large::{Large, reply};
use crate::scenarios::{millis, secs};

const WINDOW: usize = 4_096;

fn serve(sim: &mut Sim, change: impl FnOnce(&mut Config)) -> Server<Large> {
    let mut config = Config::default();
    change(&mut config);
    sim.serve("10.0.0.1:7", config, Large::default())
}

/// A peer that asks for the large reply and reads nothing of it.
fn ask(sim: &mut Sim, server: &Server<Large>, words: &[u8]) -> Peer {
    let peer = sim.connect_with_window(server, WINDOW);
    peer.stop_reading();
    peer.send(words);
    sim.settle();
    peer
}

/// It sends a few bytes, and reads on at 2 kB/s.
fn read_on(sim: &mut Sim, peer: &Peer, most: Duration) {
    peer.send(b"??");
    peer.read_at(2_000);
    let until = sim.now() + most;
    while peer.closed().is_none() && sim.now() < until {
        sim.advance(secs(1));
    }
    peer.expect(&reply());
    assert_eq!(peer.closed(), Some(End::Fin));
    peer.close();
    sim.advance(secs(60));
}

#[test]
fn without_a_write_timeout_the_idle_time_bounds_the_wait_for_a_peer_that_reads_nothing() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.timeouts.write = None);
    let _peer = ask(&mut sim, &server, b"r");
    sim.advance(secs(1_000));
    server.expect_closed(CloseReason::Timeout(Timeout::Write));
}

#[test]
fn a_tunnel_whose_peer_reads_nothing_ends_by_the_write_timeout_whenever_its_fin_comes() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.timeouts = Timeouts::for_tunnels());
    let peer = ask(&mut sim, &server, b"r");
    server.with(|_, cx| cx.conn(cx.ids()[0]).unwrap().tunnel());
    sim.advance(secs(100));
    peer.half_close();
    sim.advance(secs(1_000));
    server.expect_closed(CloseReason::Timeout(Timeout::Write));
}

#[test]
fn an_idle_end_waits_until_the_peer_has_the_reply() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |_| {});
    let peer = ask(&mut sim, &server, b"r");
    sim.advance(secs(80));
    assert!(peer.is_open(), "the reply is on its way");
    read_on(&mut sim, &peer, secs(300));
    server.expect_closed(CloseReason::Timeout(Timeout::Idle));
    sim.assert_clean();
}

#[test]
fn a_peer_that_reads_on_after_the_idle_time_is_ended_when_it_has_the_reply() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |_| {});
    let peer = ask(&mut sim, &server, b"r");
    sim.advance(secs(60));
    peer.read_at(2_000);
    // 50 s for all of it, and then a check every few seconds.
    sim.advance(secs(49));
    assert!(peer.is_open());
    sim.advance(secs(6));
    peer.expect(&reply());
    assert_eq!(peer.closed(), Some(End::Fin));
    server.expect_closed(CloseReason::Timeout(Timeout::Idle));
    sim.assert_clean();
}

#[test]
fn a_peer_that_stops_reading_is_ended_by_the_write_timeout_after_the_idle_time() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |_| {});
    let peer = ask(&mut sim, &server, b"r");
    sim.advance(secs(75 + 59));
    assert!(peer.is_open());
    sim.advance(secs(3));
    assert_eq!(peer.closed(), Some(End::Reset));
    server.expect_closed(CloseReason::Timeout(Timeout::Write));
    sim.assert_clean();
}

#[test]
fn a_request_while_an_idle_end_waits_is_served() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |_| {});
    let peer = ask(&mut sim, &server, b"r");
    sim.advance(secs(80));
    peer.send(b"r");
    peer.resume_reading();
    sim.advance(secs(74));
    assert!(peer.is_open(), "the idle time begins anew");
    peer.expect(&[reply(), reply()].concat());
    sim.advance(secs(2));
    assert_eq!(peer.closed(), Some(End::Fin));
    server.expect_closed(CloseReason::Timeout(Timeout::Idle));
    sim.assert_clean();
}

#[test]
fn a_tunnel_that_ends_waits_until_the_peer_has_everything() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.timeouts.tunnel = Some(secs(20)));
    let peer = ask(&mut sim, &server, b"tr");
    sim.advance(secs(22));
    assert!(peer.is_open());
    read_on(&mut sim, &peer, secs(300));
    server.expect_closed(CloseReason::Timeout(Timeout::Tunnel));
    sim.assert_clean();
}

#[test]
fn a_tunnel_without_traffic_ends_in_time() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.timeouts.tunnel = Some(secs(1_000)));
    let peer = ask(&mut sim, &server, b"tr");
    peer.resume_reading();
    sim.advance(secs(999));
    assert!(peer.is_open());
    sim.advance(secs(2));
    assert_eq!(peer.closed(), Some(End::Fin));
    server.expect_closed(CloseReason::Timeout(Timeout::Tunnel));
}

/// What TCP_USER_TIMEOUT would find, without ending those that read slowly.
#[test]
fn the_dead_peer_of_a_tunnel_is_found_by_what_it_does_not_acknowledge() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |_| {});
    let peer = ask(&mut sim, &server, b"t");
    sim.partition("10.0.0.1", sim.peers_ip());
    server.with(|large, cx| {
        let id = *large.ids.last().expect("it is open");
        cx.conn(id).expect("it lives").write(b"are you there?");
    });
    // Of silence, and then of no progress: twice the write timeout.
    sim.advance(secs(119));
    assert_eq!(server.connections(), 1);
    sim.advance(secs(10));
    server.expect_closed(CloseReason::Timeout(Timeout::Write));
    drop(peer);
}

#[test]
fn a_connection_without_an_idle_time_finds_its_dead_peer_too() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.timeouts.idle = None);
    let peer = ask(&mut sim, &server, b"r");
    sim.advance(secs(119));
    assert!(peer.is_open());
    sim.advance(secs(10));
    server.expect_closed(CloseReason::Timeout(Timeout::Write));
    // One that has read everything stays for ever.
    let peer = ask(&mut sim, &server, b"r");
    peer.resume_reading();
    sim.advance(secs(100_000));
    assert!(peer.is_open());
}

#[test]
fn a_ping_is_sent_when_the_reply_has_arrived() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.timeouts.ping_after = Some(secs(10)));
    let peer = ask(&mut sim, &server, b"r");
    sim.advance(secs(20));
    assert_eq!(server.handler().pings, 0, "it could not be answered yet");
    read_on(&mut sim, &peer, secs(300));
    assert_eq!(server.handler().pings, 1);
    server.expect_closed(CloseReason::Timeout(Timeout::Ping));
    sim.assert_clean();
}

#[test]
fn the_end_after_a_ping_leaves_what_was_written_since_then() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.timeouts.ping_after = Some(secs(10)));
    let peer = sim.connect_with_window(&server, WINDOW);
    peer.stop_reading();
    peer.send(b"x");
    sim.advance(secs(12));
    assert_eq!(server.handler().pings, 1);
    server.with(|large, cx| {
        let id = *large.ids.last().expect("it is open");
        cx.conn(id).expect("it lives").write(&reply());
    });
    sim.advance(secs(4));
    read_on(&mut sim, &peer, secs(300));
    server.expect_closed(CloseReason::Timeout(Timeout::Ping));
    sim.assert_clean();
}

#[test]
fn a_connection_with_an_unread_reply_is_not_evicted() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.limits.max_connections = Some(2));
    let slow = ask(&mut sim, &server, b"r");
    sim.advance(secs(1));
    let quick = sim.connect(&server);
    quick.send(b"x");
    sim.advance(secs(1));
    let newcomer = sim.connect(&server);
    newcomer.send(b"x");
    sim.advance(secs(1));
    assert_eq!(
        quick.closed(),
        Some(End::Fin),
        "it has been idle for less long, and has everything"
    );
    server.expect_closed(CloseReason::Evicted);
    assert!(newcomer.is_open());
    read_on(&mut sim, &slow, secs(300));
}

#[test]
fn a_connection_at_the_limit_waits_for_a_place_while_all_others_read() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.limits.max_connections = Some(1));
    let slow = ask(&mut sim, &server, b"r");
    sim.advance(secs(1));
    let newcomer = sim.connect(&server);
    newcomer.send(b"r");
    sim.advance(secs(2));
    slow.send(b"??");
    slow.read_at(2_000);
    sim.advance(secs(49));
    assert!(slow.is_open());
    sim.advance(secs(5));
    slow.expect(&reply());
    assert_eq!(slow.closed(), Some(End::Fin));
    newcomer.expect(&reply());
}

#[test]
fn a_shutdown_leaves_idle_peers_what_they_have_not_read() {
    for spread in [None, Some(secs(5))] {
        let mut sim = Sim::new(1);
        let server = serve(&mut sim, |config| {
            config.shutdown_spread = spread;
            config.shutdown_timeout = Some(secs(120));
        });
        let peer = ask(&mut sim, &server, b"r");
        sim.advance(secs(5));
        server.shutdown();
        sim.advance(secs(2));
        read_on(&mut sim, &peer, secs(100));
        server.expect_closed(CloseReason::Shutdown);
        assert!(server.is_finished());
    }
}

#[test]
fn a_shutdown_waits_for_the_acknowledgement_and_no_longer() {
    let mut sim = Sim::new(1);
    sim.set_link(Link { latency: millis(50), ..Link::LOOPBACK });
    let server = serve(&mut sim, |config| config.shutdown_spread = None);
    let peer = sim.connect(&server);
    sim.advance(secs(1));
    peer.send(b"r");
    // The reply is on its way.
    sim.advance(millis(70));
    server.shutdown();
    sim.advance(millis(30));
    assert!(!server.is_finished());
    sim.advance(millis(200));
    assert!(server.is_finished(), "it does not wait for the FIN of the peer");
    peer.expect(&reply());
    assert_eq!(peer.closed(), Some(End::Fin));
}

#[test]
fn the_end_of_the_shutdown_is_a_reset_by_rule() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |_| {});
    let peer = ask(&mut sim, &server, b"r");
    server.shutdown();
    peer.read_at(1_000);
    sim.advance(secs(29));
    assert_eq!(peer.closed(), None);
    sim.advance(secs(2));
    assert_eq!(peer.closed(), Some(End::Reset));
    assert!(server.is_finished());
}

#[test]
fn a_last_request_and_a_close_leave_the_peer_all_the_time_it_needs() {
    for (words, change) in [
        (&b"rc"[..], (|_| {}) as fn(&mut Config)),
        (b"k", |config| config.limits.requests_max = Some(1)),
        (b"r", |config| config.limits.requests_max = Some(1)),
        (b"rf", |_| {}),
        (b"r", |config| config.timeouts.lifetime = Some(secs(4))),
    ] {
        for sends in [true, false] {
            let mut sim = Sim::new(1);
            let server = serve(&mut sim, change);
            let peer = ask(&mut sim, &server, words);
            sim.advance(secs(4));
            if sends {
                peer.send(b"??");
            }
            // A minute for all of it.
            peer.read_at(1_650);
            sim.advance(secs(70));
            peer.expect(&reply());
            assert_eq!(peer.closed(), Some(End::Fin), "{words:?}");
            // It keeps its side open and is not waited for.
            sim.advance(secs(60));
            assert_eq!(server.connections(), 0, "{words:?}");
            assert_eq!(server.stats().flush_expired, 0);
        }
    }
}

#[test]
fn linger_begins_when_the_peer_has_everything() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |_| {});
    let peer = ask(&mut sim, &server, b"rc");
    peer.read_at(2_000);
    sim.advance(secs(45));
    peer.send(b"?");
    sim.advance(secs(6));
    peer.expect(&reply());
    // It talks on, for as long as one may after the end.
    peer.drip(&[b'?'; 100], secs(1));
    sim.advance(secs(25));
    assert_eq!(server.connections(), 1);
    sim.advance(secs(10));
    assert_eq!(server.connections(), 0);
    server.expect_closed(CloseReason::HandlerClose);
}

#[test]
fn a_peer_that_reads_too_slowly_after_our_end_is_reset() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |_| {});
    let peer = ask(&mut sim, &server, b"rc");
    // Less than `flush_rate`.
    peer.read_at(100);
    sim.advance(secs(200));
    assert_eq!(peer.closed(), Some(End::Reset));
    server.expect_closed(CloseReason::HandlerClose);
    assert_eq!(server.stats().flush_expired, 1);
    // One that reads nothing has the grace of `flush`, after that of `linger_read`.
    let peer = ask(&mut sim, &server, b"rc");
    sim.advance(secs(15));
    assert_eq!(peer.closed(), Some(End::Reset));
    assert_eq!(server.stats().flush_expired, 2);
}

#[test]
fn a_lingering_connection_is_evicted_only_when_its_peer_has_everything() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| {
        config.limits.max_connections = Some(2);
        config.limits.at_limit = AtLimit::EvictIdle;
    });
    let slow = ask(&mut sim, &server, b"rc");
    sim.advance(secs(1));
    let done = sim.connect(&server);
    done.send(b"c");
    sim.advance(secs(1));
    let quick = sim.connect(&server);
    quick.send(b"x");
    sim.advance(secs(1));
    assert!(quick.is_open());
    read_on(&mut sim, &slow, secs(300));
}

#[test]
fn a_half_closed_end_leaves_the_peer_what_it_has_not_read() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.timeouts.half_closed = Some(secs(5)));
    let peer = ask(&mut sim, &server, b"rf");
    sim.advance(secs(8));
    read_on(&mut sim, &peer, secs(300));
    server.expect_closed(CloseReason::Timeout(Timeout::HalfClosed));
    sim.assert_clean();
}

#[test]
fn slow_readers_do_not_keep_others_from_being_evicted() {
    for slow in [31, 32, 33, 49] {
        let mut sim = Sim::new(1);
        let server = serve(&mut sim, |config| config.limits.max_connections = Some(50));
        let mut peers: Vec<_> = (0..slow)
            .map(|_| {
                let peer = ask(&mut sim, &server, b"r");
                peer.read_at(10);
                peer
            })
            .collect();
        sim.advance(secs(1));
        for _ in slow..50 {
            let peer = sim.connect(&server);
            peer.send(b"x");
            sim.settle();
            peers.push(peer);
        }
        sim.advance(secs(1));
        let newcomer = sim.connect(&server);
        newcomer.send(b"r");
        sim.advance(secs(3));
        assert_eq!(newcomer.received(), reply(), "{slow} slow readers");
    }
}

#[test]
fn a_peer_that_stops_reading_after_our_end_has_no_more_than_the_write_timeout() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |_| {});
    let peer = ask(&mut sim, &server, b"rc");
    sim.advance(secs(6));
    // Bytes that it reads quickly now do not extend its time by minutes.
    peer.read_at(90_000);
    sim.advance(secs(1));
    peer.stop_reading();
    sim.advance(secs(66));
    assert_eq!(server.connections(), 0);
    server.expect_closed(CloseReason::HandlerClose);
}
