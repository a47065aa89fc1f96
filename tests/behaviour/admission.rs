//! Which connections are accepted when there are many, and which are evicted for them.

use bytes::Bytes;
use wheelhouse::config::{AtLimit, Rate, Refusal};
use wheelhouse::{Address, CloseReason, Config, ConnectError, ListenConfig, State, Timeout};

use crate::harness::{
    Fixture, Got, PeerId, RecordingHandler, What, World, millis, secs, with_places,
};

behaviours! {
    everywhere {
        the_connection_that_was_idle_longest_is_evicted
        no_active_connection_is_evicted
        a_connection_with_an_unread_request_is_not_evicted
        a_waiting_connection_is_accepted_when_another_becomes_idle
        an_exempt_listener_accepts_when_the_server_is_full
        at_most_sixteen_exempt_connections_are_open
        connections_are_accepted_no_faster_than_the_accept_rate
        connections_to_a_full_server_wait_in_the_backlog
        a_server_of_one_serves_one_after_the_other
        no_dial_begins_from_a_full_server
        the_first_free_place_goes_to_the_next_waiting_connection
        a_refused_connection_frees_its_place
    }
    over_tcp {
        a_full_server_rejects_a_connection_with_its_reply
        a_client_over_its_limit_of_connections_is_refused
        a_client_at_its_limit_may_close_and_dial_again
        a_lingering_connection_is_evicted_for_another_of_its_client
        a_refused_client_may_be_reset
        a_client_over_its_rate_is_refused
        a_client_that_is_exempt_is_not_limited
        an_exempt_listener_does_not_limit_clients
    }
}

/// New connections wait, and no idle one is evicted.
fn waiting(max_connections: usize) -> Config {
    let mut config = with_places(max_connections);
    config.limits.at_limit = AtLimit::Pause;
    config
}

/// So many peers that have been served and are idle, one after the other.
fn fill<W: World>(fixture: &mut Fixture<'_, W>, count: usize) -> Vec<PeerId> {
    (0..count)
        .map(|_| {
            let (peer, number) = fixture.enter();
            fixture.expect_echo(peer);
            fixture.saw(number, What::Idle);
            fixture.wait(millis(5));
            peer
        })
        .collect()
}

fn the_connection_that_was_idle_longest_is_evicted<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, with_places(4), RecordingHandler::echo());
    let peers = fill(&mut fixture, 4);
    // The first one is the last to have been idle now.
    fixture.expect_echo(peers[0]);
    let newcomer = fixture.connect();
    fixture.expect_echo(newcomer);
    let gone = fixture.expect_closed(CloseReason::Evicted);
    assert_eq!(gone.id, fixture.handler.ids[1]);
    assert_eq!(fixture.read_to_end_as_it_is(peers[1]), (Vec::new(), Got::Eof));
    fixture.expect_none_closed();
    for peer in [peers[0], peers[2], peers[3]] {
        fixture.expect_echo(peer);
    }
    assert_eq!(fixture.reactor.handle().stats().connections, 4);
}

fn no_active_connection_is_evicted<W: World>(world: &mut W) {
    let handler = RecordingHandler::owing();
    let mut fixture = Fixture::new(world, with_places(2), handler);
    let peers = [(); 2].map(|()| fixture.enter().0);
    for peer in peers {
        fixture.send(peer, b"x");
    }
    fixture.saw(1, What::Data(1));
    let newcomer = fixture.connect();
    fixture.wait(millis(300));
    fixture.expect_none_closed();
    assert_eq!(fixture.handler.ids.len(), 2);
    fixture.leave(peers[0]);
    fixture.with(0, |conn| conn.end_request());
    fixture.saw(2, What::Connected);
    fixture.leave(newcomer);
}

fn a_connection_with_an_unread_request_is_not_evicted<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, with_places(2), RecordingHandler::echo());
    let peers = fill(&mut fixture, 2);
    let newcomer = fixture.connect();
    fixture.send(peers[0], b"again");
    fixture.expect_echo(newcomer);
    assert_eq!(fixture.expect_closed(CloseReason::Evicted).id, fixture.handler.ids[1]);
    fixture.expect(peers[0], b"again");
}

fn a_waiting_connection_is_accepted_when_another_becomes_idle<W: World>(world: &mut W) {
    let handler = RecordingHandler::owing();
    let mut fixture = Fixture::new(world, with_places(1), handler);
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Data(1));
    fixture.connect();
    fixture.wait(millis(150));
    assert_eq!(fixture.handler.ids.len(), 1);
    fixture.with(0, |conn| conn.end_request());
    fixture.saw(1, What::Connected);
    fixture.expect_closed(CloseReason::Evicted);
}

/// A second listener, which is exempt from the limits.
fn exempt<W: World>(fixture: &mut Fixture<'_, W>) -> Address {
    let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
    let listener = fixture.reactor.listen_with(fixture.world.address(), listen).unwrap();
    fixture.reactor.local_addr(listener).clone()
}

fn an_exempt_listener_accepts_when_the_server_is_full<W: World>(world: &mut W) {
    let handler = RecordingHandler::ignore().when_data(|conn, _, input| {
        if input.starts_with(b"PING") {
            conn.write(b"PONG");
            input.clear();
        }
    });
    let mut fixture = Fixture::new(world, with_places(1), handler);
    let address = exempt(&mut fixture);
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"x");
    let waiting = fixture.connect();
    fixture.wait(millis(20));
    let exempt_peer = fixture.connect_to(&address);
    fixture.send(exempt_peer, b"PING");
    fixture.expect(exempt_peer, b"PONG");
    fixture.expect_silence(waiting);
    // An exempt connection takes no place of another.
    fixture.leave(peer);
    fixture.until("room for the waiting one", |fixture| fixture.handler.ids.len() == 3);
}

fn at_most_sixteen_exempt_connections_are_open<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, with_places(4), RecordingHandler::echo());
    let address = exempt(&mut fixture);
    let exempt_peers: Vec<_> = (0..17).map(|_| fixture.connect_to(&address)).collect();
    for exempt_peer in &exempt_peers {
        fixture.send(*exempt_peer, b"x");
    }
    fixture.wait(millis(50));
    assert_eq!(fixture.handler.ids.len(), 16);
    fixture.expect_none_closed();
    fixture.expect_rest();
    fixture.leave(exempt_peers[0]);
    fixture.expect(exempt_peers[16], b"x");
    let (peer, _) = fixture.enter();
    fixture.expect_echo(peer);
}

fn connections_are_accepted_no_faster_than_the_accept_rate<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.accept_rate = Some(Rate::new(4, millis(400)));
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    let start = fixture.now();
    let peers: Vec<_> = (0..8).map(|_| fixture.connect()).collect();
    fixture.until("the burst", |fixture| fixture.handler.ids.len() == 4);
    fixture.wait(millis(50));
    assert_eq!(fixture.handler.ids.len(), 4);
    fixture.expect_rest();
    fixture.until("all", |fixture| fixture.handler.ids.len() == 8);
    let took = fixture.now() - start;
    assert!(took >= millis(400), "{took:?}");
    assert!(fixture.reactor.handle().stats().accept_throttles >= 4);
    for peer in peers {
        fixture.expect_echo(peer);
    }
}

fn a_full_server_rejects_a_connection_with_its_reply<W: World>(world: &mut W) {
    let mut config = with_places(1);
    config.limits.at_limit = AtLimit::Reject(Bytes::from_static(b"come back later\n"));
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    let (peer, _) = fixture.enter();
    for _ in 0..3 {
        let newcomer = fixture.connect();
        assert_eq!(fixture.read_to_end(newcomer), (b"come back later\n".to_vec(), Got::Eof));
    }
    assert_eq!(fixture.reactor.handle().stats().refused_full, 3);
    fixture.expect_echo(peer);
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
    assert_eq!(fixture.handler.ids.len(), 2);
}

fn a_client_over_its_limit_of_connections_is_refused<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(2);
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    let peers = [(); 2].map(|()| fixture.enter().0);
    let refused = fixture.connect();
    assert_eq!(fixture.read_to_end(refused), (Vec::new(), Got::Eof));
    assert_eq!(fixture.reactor.handle().stats().refused_client, 1);
    for peer in peers {
        fixture.expect_echo(peer);
    }
    fixture.leave(peers[0]);
    fixture.expect_closed(CloseReason::PeerEof);
    let (peer, _) = fixture.enter();
    fixture.expect_echo(peer);
    assert_eq!(fixture.reactor.handle().stats().accepted, 3);
}

fn a_client_at_its_limit_may_close_and_dial_again<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    let mut peer = fixture.connect();
    fixture.expect_echo(peer);
    for _ in 0..200 {
        fixture.leave(peer);
        peer = fixture.connect();
        fixture.expect_echo(peer);
    }
    let stats = fixture.reactor.handle().stats();
    assert_eq!((stats.accepted, stats.refused_client), (201, 0));
}

fn a_lingering_connection_is_evicted_for_another_of_its_client<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(2);
    config.limits.requests_max = Some(1);
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    let peers: Vec<_> = (0..6)
        .map(|_| {
            let peer = fixture.connect();
            fixture.send(peer, b"hello");
            assert_eq!(fixture.read_to_end(peer), (b"hello".to_vec(), Got::Eof));
            peer
        })
        .collect();
    let stats = fixture.reactor.handle().stats();
    assert_eq!((stats.accepted, stats.refused_client, stats.linger_evicted), (6, 0, 4));
    // The two that lingered for the shortest time still do.
    let gone: Vec<_> = fixture.handler.closed.iter().map(|closed| closed.id).collect();
    assert_eq!(gone, fixture.handler.ids[..4]);
    drop(peers);
}

fn a_refused_client_may_be_reset<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    config.limits.clients.refusal = Refusal::Reset;
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    let (peer, _) = fixture.enter();
    let refused = fixture.connect();
    fixture.expect_reset(refused);
    fixture.expect_echo(peer);
}

fn a_client_over_its_rate_is_refused<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.rate = Some(Rate::new(5, secs(2)));
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    for _ in 0..5 {
        let (peer, _) = fixture.enter();
        fixture.expect_echo(peer);
        fixture.leave(peer);
        fixture.expect_closed(CloseReason::PeerEof);
    }
    let refused = fixture.connect();
    assert_eq!(fixture.read_to_end(refused), (Vec::new(), Got::Eof));
    assert_eq!(fixture.reactor.handle().stats().refused_client_rate, 1);
    fixture.wait(secs(4));
    fixture.expect_service();
}

fn a_client_that_is_exempt_is_not_limited<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    config.limits.clients.allowed = vec!["0.0.0.0/0".parse().unwrap()];
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    for _ in 0..3 {
        let (peer, _) = fixture.enter();
        fixture.expect_echo(peer);
    }
}

fn an_exempt_listener_does_not_limit_clients<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    config.timeouts.idle = Some(millis(200));
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    let address = exempt(&mut fixture);
    let (peer, number) = fixture.enter();
    for _ in 0..3 {
        let exempt_peer = fixture.connect_to(&address);
        fixture.expect_echo(exempt_peer);
        fixture.leave(exempt_peer);
        fixture.expect_closed(CloseReason::PeerEof);
    }
    assert_eq!(fixture.with(number, |conn| conn.state()), State::Connected);
    fixture.expect_echo(peer);
    fixture.expect_timeout(Timeout::Idle);
    // The exempt connections did not change its count.
    let (peer, _) = fixture.enter();
    fixture.expect_echo(peer);
}

fn connections_to_a_full_server_wait_in_the_backlog<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, waiting(3), RecordingHandler::echo());
    let peers: Vec<_> = (0..5).map(|_| fixture.connect()).collect();
    for peer in &peers {
        fixture.send(*peer, b"hello");
    }
    for peer in &peers[..3] {
        fixture.expect(*peer, b"hello");
    }
    fixture.wait(millis(30));
    assert_eq!((fixture.handler.ids.len(), fixture.reactor.context().len()), (3, 3));
    for peer in &peers[3..] {
        fixture.expect_silence(*peer);
    }
    // A place that becomes free goes to the next one.
    fixture.leave(peers[1]);
    fixture.expect(peers[3], b"hello");
    fixture.expect_silence(peers[4]);
    fixture.leave(peers[0]);
    fixture.expect(peers[4], b"hello");
    fixture.send(peers[2], b"still here");
    fixture.expect(peers[2], b"still here");
}

fn a_server_of_one_serves_one_after_the_other<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, with_places(1), RecordingHandler::echo());
    let peers: Vec<_> = (0..20).map(|_| fixture.connect()).collect();
    for peer in peers {
        fixture.expect_echo(peer);
        fixture.leave(peer);
    }
    fixture.until("all of them", |fixture| fixture.handler.closed.len() == 20);
    fixture.handler.closed.clear();
    fixture.expect_service();
}

fn no_dial_begins_from_a_full_server<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let mut fixture = Fixture::new(world, with_places(1), RecordingHandler::echo());
    let (peer, _) = fixture.enter();
    let refused = fixture.reactor.context().connect(address.clone());
    assert_eq!(refused, Err(ConnectError::Full));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.reactor.context().connect(address).unwrap();
    let peer = fixture.answer(&mut listener);
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn the_first_free_place_goes_to_the_next_waiting_connection<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, waiting(128), RecordingHandler::echo());
    let peers: Vec<_> = (0..130).map(|_| fixture.connect()).collect();
    fixture.until("a full table", |fixture| fixture.handler.ids.len() == 128);
    fixture.wait(millis(20));
    for gone in 0..2 {
        fixture.leave(peers[gone]);
        fixture.expect_closed(CloseReason::PeerEof);
        fixture.send(peers[128 + gone], b"hello");
        fixture.expect(peers[128 + gone], b"hello");
        assert_eq!(fixture.handler.ids.len(), 129 + gone);
    }
}

fn a_refused_connection_frees_its_place<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_open(|_, number| number >= 10);
    let mut fixture = Fixture::new(world, with_places(1), handler);
    for _ in 0..10 {
        let peer = fixture.connect();
        fixture.expect_eof(peer);
    }
    assert_eq!(fixture.reactor.handle().stats().refused, 10);
    fixture.expect_service();
}
