//! Connections between which the reactor passes bytes on.

use wheelhouse::{Address, CloseReason, Config, Origin, Timeout};

use crate::harness::{
    Fixture, Got, PeerId, RecordingHandler, What, World, assert_same, millis, pattern,
};

behaviours! {
    everywhere {
        what_one_side_sends_the_other_reads
        much_is_passed_on_in_order
        a_half_close_is_passed_on_by_a_relay
        what_is_sent_right_before_a_close_is_passed_on
        the_client_that_leaves_takes_its_upstream_along
        a_handler_that_closes_one_side_ends_both
        what_was_left_before_a_relay_comes_first
        a_relay_with_one_that_is_gone_is_none
        a_silent_relay_ends
    }
    over_tcp {
        a_reset_is_passed_on_by_a_relay
        a_slow_reader_holds_its_source
    }
}

const LONG: usize = 3_000_000;

/// Dials `address` for each client, and relays the two.
fn relaying(address: Address) -> RecordingHandler {
    RecordingHandler::echo()
        .when_open(move |conn, _| {
            if let Origin::Accepted(_) = conn.origin() {
                conn.pause_reading();
                conn.connect(address.clone()).unwrap();
            }
            true
        })
        .when_connected(|conn, _| {
            if let Some(client) = conn.owner() {
                assert!(conn.relay_with(client));
            }
        })
}

/// A client and an upstream that are relayed.
fn relayed<W: World>(world: &mut W, config: Config) -> (Fixture<'_, W>, PeerId, PeerId) {
    let (mut listener, address) = world.listen_as_peer();
    let mut fixture = Fixture::new(world, config, relaying(address));
    let client = fixture.connect();
    let upstream = fixture.answer(&mut listener);
    fixture.until("a relay", |fixture| fixture.handler.count(1, What::Connected) == 1);
    (fixture, client, upstream)
}

fn what_one_side_sends_the_other_reads<W: World>(world: &mut W) {
    let (mut fixture, client, upstream) = relayed(world, Config::default());
    for _ in 0..3 {
        fixture.send(client, b"there");
        fixture.expect(upstream, b"there");
        fixture.send(upstream, b"and back");
        fixture.expect(client, b"and back");
    }
    let stats = fixture.reactor.handle().stats();
    assert_eq!((stats.relays, stats.requests), (1, 0));
    assert_eq!((stats.bytes_in, stats.bytes_out), (39, 39));
}

fn much_is_passed_on_in_order<W: World>(world: &mut W) {
    let (mut fixture, client, upstream) = relayed(world, Config::default());
    let long = pattern(LONG);
    for (from, to) in [(upstream, client), (client, upstream)] {
        let (mut sent, mut got) = (0, Vec::new());
        let mut buffer = vec![0; 100_000];
        fixture.until("all bytes", |fixture| {
            sent += fixture.try_send(from, &long[sent..]).unwrap();
            if let Got::Bytes(count) = fixture.try_receive(to, &mut buffer) {
                got.extend_from_slice(&buffer[..count]);
            }
            got.len() >= LONG
        });
        assert_same(&got, &long);
    }
}

fn a_half_close_is_passed_on_by_a_relay<W: World>(world: &mut W) {
    let (mut fixture, client, upstream) = relayed(world, Config::default());
    fixture.send(client, b"the end");
    fixture.half_close(client);
    assert_eq!(fixture.read_to_end(upstream), (b"the end".to_vec(), Got::Eof));
    fixture.send(upstream, b"not here");
    fixture.expect(client, b"not here");
    fixture.half_close(upstream);
    fixture.expect_eof(client);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_closed(CloseReason::PeerEof);
}

fn what_is_sent_right_before_a_close_is_passed_on<W: World>(world: &mut W) {
    let (mut fixture, client, upstream) = relayed(world, Config::default());
    fixture.send(upstream, b"a line");
    fixture.leave(upstream);
    assert_eq!(fixture.read_to_end(client), (b"a line".to_vec(), Got::Eof));
    fixture.leave(client);
    fixture.closed();
    fixture.closed();
}

fn the_client_that_leaves_takes_its_upstream_along<W: World>(world: &mut W) {
    let (mut fixture, client, upstream) = relayed(world, Config::default());
    fixture.send(client, b"a line");
    fixture.leave(client);
    assert_eq!(fixture.read_to_end(upstream), (b"a line".to_vec(), Got::Eof));
    fixture.leave(upstream);
    fixture.closed();
    fixture.closed();
}

fn a_handler_that_closes_one_side_ends_both<W: World>(world: &mut W) {
    let (mut fixture, client, upstream) = relayed(world, Config::default());
    fixture.send(upstream, b"a line");
    fixture.expect(client, b"a line");
    let id = fixture.handler.ids[0];
    fixture.reactor.context().conn(id).unwrap().close();
    fixture.expect_eof(client);
    fixture.expect_eof(upstream);
    fixture.leave(client);
    fixture.leave(upstream);
    let reasons = [fixture.closed().reason, fixture.closed().reason];
    assert!(reasons.contains(&CloseReason::HandlerClose));
    assert!(reasons.contains(&CloseReason::RelayEnded));
}

fn what_was_left_before_a_relay_comes_first<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo()
        .when_connected(|conn, session| {
            if let Some(client) = conn.owner() {
                conn.write(b"head,");
                assert!(conn.relay_with(client));
            }
            assert!(session.number < 2);
        })
        .when_data(move |conn, _, input| {
            let _ = input.split_to(5);
            conn.pause_reading();
            conn.connect(address.clone()).unwrap();
        });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (client, _) = fixture.enter();
    fixture.send(client, b"HEAD,body,");
    fixture.half_close(client);
    let upstream = fixture.answer(&mut listener);
    assert_eq!(fixture.read_to_end(upstream), (b"head,body,".to_vec(), Got::Eof));
}

fn a_relay_with_one_that_is_gone_is_none<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let (first, _) = fixture.enter();
    let (second, _) = fixture.enter();
    let (gone, stays) = (fixture.handler.ids[0], fixture.handler.ids[1]);
    fixture.leave(first);
    fixture.closed();
    assert!(!fixture.reactor.context().conn(stays).unwrap().relay_with(gone));
    fixture.expect_echo(second);
}

fn a_silent_relay_ends<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.tunnel = Some(millis(500));
    let (mut fixture, client, upstream) = relayed(world, config);
    for _ in 0..6 {
        fixture.send(client, b"x");
        fixture.expect(upstream, b"x");
        fixture.wait(millis(150));
    }
    fixture.expect_eof(client);
    fixture.expect_eof(upstream);
    fixture.expect_timeout(Timeout::Tunnel);
}

fn a_reset_is_passed_on_by_a_relay<W: World>(world: &mut W) {
    let (mut fixture, client, upstream) = relayed(world, Config::default());
    fixture.send(upstream, b"a line");
    fixture.expect(client, b"a line");
    fixture.reset(upstream);
    fixture.expect_reset(client);
    fixture.expect_closed(CloseReason::PeerReset);
    fixture.expect_closed(CloseReason::RelayBroken);
}

fn a_slow_reader_holds_its_source<W: World>(world: &mut W) {
    let (mut fixture, client, upstream) = relayed(world, Config::default());
    let long = pattern(16 << 20);
    let mut sent = 0;
    let mut still = 0;
    while still < 200 {
        let count = fixture.try_send(upstream, &long[sent..]).unwrap();
        sent += count;
        still = if count > 0 { 0 } else { still + 1 };
        fixture.turn();
        let held = fixture.reactor.handle().stats().buffered;
        assert!(held <= 66_000, "{held} bytes are held");
    }
    assert!(sent < long.len(), "the source is held");
    let got = fixture.read(client, sent);
    assert_same(&got, &long[..sent]);
}
