//! Who is let in when there are many, and who goes for them.

use std::time::Duration;

use bytes::Bytes;
use wheelhouse::{
    Address, AtLimit, CloseReason, Config, ListenConfig, Rate, Refusal, State, Timeout,
};

use crate::harness::{Got, PeerId, Scene, Script, What, World, millis};

behaviours! {
    everywhere {
        who_was_idle_longest_makes_way
        nobody_active_makes_way
        a_request_in_the_socket_saves_from_eviction
        newcomers_come_in_when_somebody_becomes_idle
        an_exempt_listener_answers_when_the_house_is_full
        exempt_connections_are_few
        connections_come_no_faster_than_their_rate
    }
    over_tcp {
        a_newcomer_is_told_that_the_house_is_full
        a_client_has_its_share_of_connections
        a_client_at_its_limit_may_close_and_dial_again
        a_lingering_connection_goes_for_another_one_of_its_client
        a_refused_client_may_be_reset
        a_client_that_comes_too_often_is_refused
        who_is_allowed_is_not_limited
        an_exempt_listener_knows_no_clients
    }
}

fn config(max_connections: usize) -> Config {
    let mut config = Config::default();
    config.limits.max_connections = Some(max_connections);
    config
}

fn ask<W: World>(scene: &mut Scene<'_, W>, peer: PeerId) {
    scene.send(peer, b"hello");
    scene.expect(peer, b"hello");
}

/// So many peers that have been served and are idle, one after the other.
fn fill<W: World>(scene: &mut Scene<'_, W>, count: usize) -> Vec<PeerId> {
    (0..count)
        .map(|_| {
            let (peer, number) = scene.enter();
            ask(scene, peer);
            scene.saw(number, What::Idle);
            scene.wait(millis(5));
            peer
        })
        .collect()
}

fn who_was_idle_longest_makes_way<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, config(4), Script::echo());
    let peers = fill(&mut scene, 4);
    // The first one is the youngest now.
    ask(&mut scene, peers[0]);
    let newcomer = scene.connect();
    ask(&mut scene, newcomer);
    let gone = scene.expect_closed(CloseReason::Evicted);
    assert_eq!(gone.id, scene.script.ids[1]);
    assert_eq!(scene.read_to_end_as_it_is(peers[1]), (Vec::new(), Got::Eof));
    scene.expect_none_closed();
    for peer in [peers[0], peers[2], peers[3]] {
        ask(&mut scene, peer);
    }
    assert_eq!(scene.reactor.handle().stats().connections, 4);
}

fn nobody_active_makes_way<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, _, input| {
        conn.begin_request();
        input.clear();
    });
    let mut scene = Scene::new(world, config(2), script);
    let peers = [(); 2].map(|()| scene.enter().0);
    for peer in peers {
        scene.send(peer, b"x");
    }
    scene.saw(1, What::Data(1));
    let newcomer = scene.connect();
    scene.wait(millis(300));
    scene.expect_none_closed();
    assert_eq!(scene.script.ids.len(), 2);
    scene.leave(peers[0]);
    scene.with(0, |conn| conn.end_request());
    scene.saw(2, What::Connected);
    scene.leave(newcomer);
}

fn a_request_in_the_socket_saves_from_eviction<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, config(2), Script::echo());
    let peers = fill(&mut scene, 2);
    let newcomer = scene.connect();
    scene.send(peers[0], b"again");
    ask(&mut scene, newcomer);
    assert_eq!(scene.expect_closed(CloseReason::Evicted).id, scene.script.ids[1]);
    scene.expect(peers[0], b"again");
}

fn newcomers_come_in_when_somebody_becomes_idle<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, _, input| {
        conn.begin_request();
        input.clear();
    });
    let mut scene = Scene::new(world, config(1), script);
    let (peer, _) = scene.enter();
    scene.send(peer, b"x");
    scene.saw(0, What::Data(1));
    scene.connect();
    scene.wait(millis(150));
    assert_eq!(scene.script.ids.len(), 1);
    scene.with(0, |conn| conn.end_request());
    scene.saw(1, What::Connected);
    scene.expect_closed(CloseReason::Evicted);
}

/// A second listener, which the limits leave out.
fn exempt<W: World>(scene: &mut Scene<'_, W>) -> Address {
    let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
    let listener = scene.reactor.listen_with(scene.world.address(), listen).unwrap();
    scene.reactor.local_addr(listener).clone()
}

fn an_exempt_listener_answers_when_the_house_is_full<W: World>(world: &mut W) {
    let script = Script::ignore().when_data(|conn, _, input| {
        if input.starts_with(b"PING") {
            conn.write(b"PONG");
            input.clear();
        }
    });
    let mut scene = Scene::new(world, config(1), script);
    let address = exempt(&mut scene);
    let (peer, _) = scene.enter();
    scene.send(peer, b"x");
    let waiting = scene.connect();
    scene.wait(millis(20));
    let operator = scene.connect_to(&address);
    scene.send(operator, b"PING");
    scene.expect(operator, b"PONG");
    scene.expect_silence(waiting);
    // What is exempt takes nobody's place.
    scene.leave(peer);
    scene.until("room for who waited", |scene| scene.script.ids.len() == 3);
}

fn exempt_connections_are_few<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, config(4), Script::echo());
    let address = exempt(&mut scene);
    let operators: Vec<_> = (0..17).map(|_| scene.connect_to(&address)).collect();
    for operator in &operators {
        scene.send(*operator, b"x");
    }
    scene.wait(millis(50));
    assert_eq!(scene.script.ids.len(), 16);
    scene.expect_none_closed();
    scene.expect_rest();
    scene.leave(operators[0]);
    scene.expect(operators[16], b"x");
    let (peer, _) = scene.enter();
    ask(&mut scene, peer);
}

fn connections_come_no_faster_than_their_rate<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.accept_rate = Some(Rate::new(4, millis(400)));
    let mut scene = Scene::new(world, config, Script::echo());
    let start = scene.now();
    let peers: Vec<_> = (0..8).map(|_| scene.connect()).collect();
    scene.until("the burst", |scene| scene.script.ids.len() == 4);
    scene.wait(millis(50));
    assert_eq!(scene.script.ids.len(), 4);
    scene.expect_rest();
    scene.until("everybody", |scene| scene.script.ids.len() == 8);
    let took = scene.now() - start;
    assert!(took >= millis(400), "{took:?}");
    assert!(scene.reactor.handle().stats().accept_throttles >= 4);
    for peer in peers {
        ask(&mut scene, peer);
    }
}

fn a_newcomer_is_told_that_the_house_is_full<W: World>(world: &mut W) {
    let mut config = config(1);
    config.limits.at_limit = AtLimit::Reject(Bytes::from_static(b"come back later\n"));
    let mut scene = Scene::new(world, config, Script::echo());
    let (peer, _) = scene.enter();
    for _ in 0..3 {
        let newcomer = scene.connect();
        assert_eq!(scene.read_to_end(newcomer), (b"come back later\n".to_vec(), Got::Eof));
    }
    assert_eq!(scene.reactor.handle().stats().refused_full, 3);
    ask(&mut scene, peer);
    scene.leave(peer);
    scene.expect_closed(CloseReason::PeerEof);
    scene.expect_service();
    assert_eq!(scene.script.ids.len(), 2);
}

fn a_client_has_its_share_of_connections<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(2);
    let mut scene = Scene::new(world, config, Script::echo());
    let peers = [(); 2].map(|()| scene.enter().0);
    let refused = scene.connect();
    assert_eq!(scene.read_to_end(refused), (Vec::new(), Got::Eof));
    assert_eq!(scene.reactor.handle().stats().refused_client, 1);
    for peer in peers {
        ask(&mut scene, peer);
    }
    scene.leave(peers[0]);
    scene.expect_closed(CloseReason::PeerEof);
    let (peer, _) = scene.enter();
    ask(&mut scene, peer);
    assert_eq!(scene.reactor.handle().stats().accepted, 3);
}

fn a_client_at_its_limit_may_close_and_dial_again<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    let mut scene = Scene::new(world, config, Script::echo());
    let mut peer = scene.connect();
    ask(&mut scene, peer);
    for _ in 0..200 {
        scene.leave(peer);
        peer = scene.connect();
        ask(&mut scene, peer);
    }
    let stats = scene.reactor.handle().stats();
    assert_eq!((stats.accepted, stats.refused_client), (201, 0));
}

fn a_lingering_connection_goes_for_another_one_of_its_client<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(2);
    config.limits.requests_max = Some(1);
    let mut scene = Scene::new(world, config, Script::echo());
    let peers: Vec<_> = (0..6)
        .map(|_| {
            let peer = scene.connect();
            scene.send(peer, b"hello");
            assert_eq!(scene.read_to_end(peer), (b"hello".to_vec(), Got::Eof));
            peer
        })
        .collect();
    let stats = scene.reactor.handle().stats();
    assert_eq!((stats.accepted, stats.refused_client, stats.linger_evicted), (6, 0, 4));
    // The two that lingered for the shortest time still do.
    let gone: Vec<_> = scene.script.closed.iter().map(|closed| closed.id).collect();
    assert_eq!(gone, scene.script.ids[..4]);
    drop(peers);
}

fn a_refused_client_may_be_reset<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    config.limits.clients.refusal = Refusal::Reset;
    let mut scene = Scene::new(world, config, Script::echo());
    let (peer, _) = scene.enter();
    let refused = scene.connect();
    scene.expect_reset(refused);
    ask(&mut scene, peer);
}

fn a_client_that_comes_too_often_is_refused<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.rate = Some(Rate::new(5, Duration::from_secs(2)));
    let mut scene = Scene::new(world, config, Script::echo());
    for _ in 0..5 {
        let (peer, _) = scene.enter();
        ask(&mut scene, peer);
        scene.leave(peer);
        scene.expect_closed(CloseReason::PeerEof);
    }
    let refused = scene.connect();
    assert_eq!(scene.read_to_end(refused), (Vec::new(), Got::Eof));
    assert_eq!(scene.reactor.handle().stats().refused_client_rate, 1);
    scene.wait(Duration::from_secs(4));
    scene.expect_service();
}

fn who_is_allowed_is_not_limited<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    config.limits.clients.allowed = vec!["0.0.0.0/0".parse().unwrap()];
    let mut scene = Scene::new(world, config, Script::echo());
    for _ in 0..3 {
        let (peer, _) = scene.enter();
        ask(&mut scene, peer);
    }
}

fn an_exempt_listener_knows_no_clients<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    config.timeouts.idle = Some(millis(200));
    let mut scene = Scene::new(world, config, Script::echo());
    let address = exempt(&mut scene);
    let (peer, number) = scene.enter();
    for _ in 0..3 {
        let operator = scene.connect_to(&address);
        ask(&mut scene, operator);
        scene.leave(operator);
        scene.expect_closed(CloseReason::PeerEof);
    }
    assert_eq!(scene.with(number, |conn| conn.state()), State::Connected);
    ask(&mut scene, peer);
    scene.expect_timeout(Timeout::Idle);
    // Its share was not given back by others.
    let (peer, _) = scene.enter();
    ask(&mut scene, peer);
}
