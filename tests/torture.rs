//! Every call of a scenario fails once with every error it can return, and each time every session
//! still ends once and the server serves the next client.
//!
//! `TORTURE_RUNS` says how many of these runs each scenario gets at most, the same ones each time: all
//! if the code is optimized, else 40.

mod scenarios;

#[path = "scenarios/endpoints.rs"]
#[allow(dead_code, reason = "what only the rules and the swarm need")]
mod endpoints;

#[path = "scenarios/relayed.rs"]
#[allow(dead_code, reason = "what only the rules and the swarm need")]
mod relayed;

#[path = "scenarios/pooled.rs"]
#[allow(dead_code, reason = "what only the rules and the swarm need")]
mod pooled;

use std::env;

use wheelhouse::config::{AtLimit, Rate, Refusal};
use wheelhouse::health::{EndpointConfig, HealthCheck};
use wheelhouse::pool::PoolConfig;
use wheelhouse::sim::{self, End, Link, Peer, Personality, Server, Sim};
use wheelhouse::{Address, CloseReason, Config, Handler, ListenConfig, Timeout};

use crate::endpoints::{Balancer, SERVERS, Weak};
use crate::pooled::{Lines, Proxy, UPSTREAM};
use crate::scenarios::{Echo, Keeper, SERVER, millis, pattern, secs, serve_echo};

#[expect(clippy::print_stdout, reason = "figures for the reader of the output")]
fn run(name: &str, personality: Personality, scenario: fn(&mut Sim)) {
    let most = if cfg!(debug_assertions) { 40 } else { usize::MAX };
    let runs = env::var("TORTURE_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(most);
    let summary = sim::torture(runs, |sim| {
        sim.set_personality(personality);
        scenario(sim);
    });
    println!("torture {name} {personality:?}: {summary}");
}

/// Whatever failed before, a client that comes now is served; if the failure hits this one, the one
/// after.
fn expect_service<H: Handler>(sim: &mut Sim, server: &Server<H>) {
    assert!(server.failure().is_none(), "{:?}", server.failure());
    for _ in 0..2 {
        let peer = sim.connect(server.address());
        peer.send(b"n");
        sim.advance(secs(3));
        if peer.take() == b"n" {
            return;
        }
    }
    panic!("no client is served");
}

fn keeper(sim: &mut Sim, upstream: Address) -> Server<Keeper> {
    sim.serve(SERVER, Config::default(), Keeper::new(upstream))
}

fn unreachable_address() -> Address {
    "10.0.0.1:9".parse().unwrap()
}

/// A request, a reply, the end.
fn a_visit(sim: &mut Sim) {
    let server = serve_echo(sim);
    let peer = sim.connect(server.address());
    peer.send(b"hello");
    sim.advance(secs(1));
    peer.half_close();
    sim.advance(secs(1));
    assert!(peer.closed().is_some(), "it has ended, one way or another");
    expect_service(sim, &server);
}

/// Several connections that wait in the backlog together.
fn a_crowd(sim: &mut Sim) {
    let server = serve_echo(sim);
    let peers: Vec<_> = (0..6).map(|_| sim.connect(server.address())).collect();
    for peer in &peers {
        peer.send(b"x");
    }
    sim.advance(secs(3));
    let served = peers.iter().filter(|peer| peer.take() == b"x").count();
    assert!(served >= 5, "one failure costs at most one: {served}");
    expect_service(sim, &server);
}

/// Much output for a slow reader.
fn a_slow_reader(sim: &mut Sim) {
    sim.set_buffers(8_192, 4_096);
    let server = keeper(sim, unreachable_address());
    let peer = sim.connect(server.address());
    peer.read_at(50_000);
    peer.send(b"BBaB");
    sim.advance(secs(6));
    let got = peer.take();
    // Three large words and a small one, and what is said when there is room again.
    assert!(got.len() >= 240_001 || peer.closed().is_some(), "{}", got.len());
    expect_service(sim, &server);
}

/// A reader that stops for good.
fn a_frozen_reader(sim: &mut Sim) {
    sim.set_buffers(8_192, 4_096);
    let server = keeper(sim, unreachable_address());
    let peer = sim.connect(server.address());
    peer.stop_reading();
    peer.send(b"BB");
    sim.advance(secs(100));
    assert_eq!(server.connections(), 0);
    expect_service(sim, &server);
}

/// A close with input unread and output queued: the reply arrives whole.
fn a_close_that_lingers(sim: &mut Sim) {
    sim.set_link(Link { latency: millis(10), ..Link::LOOPBACK });
    let server = keeper(sim, unreachable_address());
    let peer = sim.connect(server.address());
    peer.send(b"BbCaaaaaaaaaaaaaaaaaaaaaaa");
    peer.send_after(millis(30), vec![b'x'; 50_000]);
    sim.advance(secs(20));
    assert!(peer.closed().is_some());
    expect_service(sim, &server);
}

/// A dialled connection, by address.
fn a_dial(sim: &mut Sim) {
    let upstream = sim.serve("10.0.0.2:80", Config::default(), Echo);
    let server = keeper(sim, upstream.address());
    let peer = sim.connect(server.address());
    peer.send(b"D");
    sim.advance(secs(2));
    peer.send(b"Da");
    sim.advance(secs(2));
    // One failure costs one dial, or the connection that asks for them.
    let dialled = upstream.stats().accepted;
    assert!(dialled >= 1 || peer.closed().is_some(), "{dialled}");
    expect_service(sim, &server);
}

/// A dialled connection, by a name with several addresses.
fn a_dial_by_name(sim: &mut Sim) {
    let upstream = sim.serve("10.0.0.2:80", Config::default(), Echo);
    let addresses =
        vec![unreachable_address(), "203.0.113.1:80".parse().unwrap(), upstream.address()];
    sim.set_name("upstream", addresses, millis(20));
    let target: wheelhouse::Target = "upstream:80".parse().unwrap();
    let server = sim.serve(SERVER, Config::default(), Keeper::new(target));
    let peer = sim.connect(server.address());
    peer.send(b"D");
    sim.advance(secs(10));
    assert!(server.connections() <= 2);
    expect_service(sim, &server);
}

/// Pauses, timers, requests that are owed, a half-close while one is.
fn a_long_story(sim: &mut Sim) {
    let server = keeper(sim, unreachable_address());
    let peer = sim.connect(server.address());
    for words in [&b"aPa"[..], b"R", b"YaRL", b"Wb"] {
        peer.send(words);
        sim.advance(millis(350));
    }
    peer.half_close();
    sim.advance(secs(5));
    expect_service(sim, &server);
}

/// Peers that reset in each state.
fn resets(sim: &mut Sim) {
    sim.set_buffers(8_192, 4_096);
    let server = keeper(sim, unreachable_address());
    for words in [&b""[..], b"a", b"W", b"R", b"BB", b"P", b"F", b"C"] {
        let peer = sim.connect(server.address());
        peer.stop_reading();
        peer.send(words);
        sim.advance(millis(50));
        peer.reset();
        sim.advance(millis(50));
    }
    sim.advance(secs(120));
    assert_eq!(server.connections(), 0);
    expect_service(sim, &server);
}

/// A server without descriptors to spare.
fn a_shortage(sim: &mut Sim) {
    let server = serve_echo(sim);
    server.set_descriptors(9);
    let peers: Vec<_> = (0..8).map(|_| sim.connect(server.address())).collect();
    for peer in &peers {
        peer.send(b"x");
        sim.advance(millis(100));
    }
    drop(peers);
    sim.advance(secs(5));
    expect_service(sim, &server);
}

/// One connection reads no faster than another drains.
fn a_tunnel(sim: &mut Sim) {
    sim.set_buffers(8_192, 4_096);
    let server = keeper(sim, unreachable_address());
    let feeder = sim.connect(&server);
    sim.advance(secs(1));
    let sink = sim.connect(&server);
    sink.read_at(20_000);
    sim.advance(secs(1));
    sink.send(b"BB");
    feeder.send(b"eOOTaa");
    sim.advance(secs(15));
    let fed = sink.take().windows(12).any(|part| part == b"from another");
    let over = sink.closed().is_some() || feeder.closed().is_some();
    assert!(fed || over, "what one connection reads the other one gets");
    expect_service(sim, &server);
}

/// A shutdown with a connection in every state.
fn a_shutdown(sim: &mut Sim) {
    sim.set_buffers(8_192, 4_096);
    let server = keeper(sim, unreachable_address());
    let peers: Vec<_> = [&b""[..], b"a", b"W", b"R", b"BB", b"P", b"F"]
        .iter()
        .map(|words| {
            let peer = sim.connect(server.address());
            peer.stop_reading();
            peer.send(words);
            peer
        })
        .collect();
    sim.advance(millis(100));
    server.shutdown();
    sim.advance(secs(60));
    assert!(server.is_finished());
    drop(peers);
}

/// A client that has been served once and stays.
fn idle(sim: &mut Sim, server: &str) -> Peer {
    let peer = sim.connect(server);
    peer.send(b"i");
    sim.advance(millis(200));
    peer
}

/// A full table, where idle connections are evicted.
fn a_full_table(sim: &mut Sim) {
    let mut config = Config::default();
    config.limits.max_connections = Some(3);
    let server = sim.serve(SERVER, config, Echo);
    let peers: Vec<_> = (0..6).map(|_| idle(sim, SERVER)).collect();
    sim.advance(secs(3));
    let served = peers.iter().filter(|peer| peer.take() == b"i").count();
    assert!(served >= 5, "one failure costs at most one: {served}");
    assert!(server.stats().closed(CloseReason::Evicted) >= 2);
    expect_service(sim, &server);
}

/// A full table, where none is evicted and new connections are refused with a reply.
fn a_rejection(sim: &mut Sim) {
    let mut config = Config::default();
    config.limits.max_connections = Some(2);
    config.limits.at_limit = AtLimit::Reject("full\n".into());
    let server = sim.serve(SERVER, config, Echo);
    let mut peers: Vec<_> = (0..4).map(|_| idle(sim, SERVER)).collect();
    for peer in &peers {
        let got = peer.received();
        assert!(b"i".starts_with(&got) || b"full\n".starts_with(&got), "{got:?}");
    }
    peers.clear();
    sim.advance(secs(3));
    expect_service(sim, &server);
}

/// A client with too many connections, too often, among others.
fn a_greedy_client(sim: &mut Sim) {
    for refusal in [Refusal::Close, Refusal::Reset] {
        let server = format!("10.0.0.{}:7", 1 + refusal as u8);
        let mut config = Config::default();
        config.limits.clients.connections = Some(2);
        config.limits.clients.rate = Some(Rate::new(20, secs(10)));
        config.limits.clients.refusal = refusal;
        config.limits.accept_rate = Some(Rate::per_second(50));
        let server = sim.serve(server.as_str(), config, Echo);
        let greedy: Vec<_> =
            (0..4).map(|_| sim.connect_from("10.66.6.6:0", server.address())).collect();
        greedy.iter().for_each(|peer| peer.send(b"g"));
        sim.advance(secs(2));
        let served = greedy.iter().filter(|peer| peer.take() == b"g").count();
        // A connection that fails frees its place for another.
        assert!((1..=3).contains(&served), "{served}");
        drop(greedy);
        sim.advance(secs(1));
        expect_service(sim, &server);
    }
}

/// An exempt connection at a full and busy server, to the end of its shutdown.
fn an_exempt_connection(sim: &mut Sim) {
    const DESK: &str = "10.0.0.1:9090";
    let mut config = Config::default();
    config.limits.max_connections = Some(2);
    config.limits.at_limit = AtLimit::Pause;
    let server = sim.spawn("10.0.0.1", config, Echo, |reactor| {
        reactor.listen(SERVER).unwrap();
        let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
        reactor.listen_with(DESK, listen).unwrap();
    });
    let _crowd: Vec<_> = (0..4).map(|_| idle(sim, SERVER)).collect();
    let exempt_peers = [idle(sim, DESK), idle(sim, DESK)];
    sim.advance(secs(2));
    assert!(exempt_peers.iter().any(|peer| peer.take() == b"i"), "one failure costs one");
    server.shutdown();
    sim.advance(millis(100));
    let late = [idle(sim, DESK), idle(sim, DESK)];
    // A failure may have ended the crowd, and with it the shutdown.
    let through = late.iter().any(|peer| peer.take() == b"i");
    assert!(through || server.is_finished(), "an exempt connection sees the shutdown");
    sim.advance(secs(60));
    assert!(server.is_finished());
}

/// Idle clients that are pinged: one answers, one does not.
fn a_sign_of_life(sim: &mut Sim) {
    let mut config = Config::default();
    config.timeouts.ping_after = Some(secs(4));
    config.timeouts.ping = Some(secs(1));
    let server = sim.serve(SERVER, config, Keeper::new(unreachable_address()));
    let alive = idle(sim, SERVER);
    let dead = idle(sim, SERVER);
    for _ in 0..20 {
        alive.send(b"a");
        sim.advance(millis(500));
    }
    assert!(dead.closed().is_some(), "it gave no sign of life");
    let reasons: Vec<_> = server.take_closed().iter().map(|closed| closed.reason).collect();
    let pinged = reasons.contains(&CloseReason::Timeout(Timeout::Ping));
    // A failure may have ended it before, even before it was accepted.
    let failed = reasons.len() == 1 || server.stats().accepted == 1;
    assert!(pinged || failed, "{reasons:?}");
    drop(alive);
    expect_service(sim, &server);
}

/// An upload that is fast enough, and one that is not.
fn an_upload(sim: &mut Sim) {
    let mut config = Config::default();
    config.timeouts.request = Some(secs(2));
    config.timeouts.request_rate = Some(100);
    let server = sim.serve(SERVER, config, Keeper::new(unreachable_address()));
    let fast = sim.connect(SERVER);
    let slow = sim.connect(SERVER);
    for _ in 0..20 {
        fast.send(&[b'W'; 100]);
        slow.send(b"W");
        sim.advance(millis(500));
    }
    assert!(slow.closed().is_some(), "it was too slow");
    drop(fast);
    expect_service(sim, &server);
}

/// More output than all together may hold.
fn too_much_buffered(sim: &mut Sim) {
    sim.set_buffers(8_192, 4_096);
    let mut config = Config::default();
    config.limits.buffered_max = 400_000;
    let server = sim.serve(SERVER, config, Keeper::new(unreachable_address()));
    let peers: Vec<_> = (0..6)
        .map(|_| {
            let peer = sim.connect(SERVER);
            peer.stop_reading();
            peer.send(b"BB");
            sim.advance(millis(100));
            peer
        })
        .collect();
    assert!(server.stats().closed(CloseReason::BufferLimit) >= 1);
    assert!(server.stats().buffered <= 400_000);
    drop(peers);
    sim.advance(secs(3));
    expect_service(sim, &server);
}

/// Those that wait are let go one after the other, and those that are served are served to the end.
fn a_shutdown_that_spreads(sim: &mut Sim) {
    let server = keeper(sim, unreachable_address());
    let _silent = sim.connect(SERVER);
    let _idle: Vec<_> = (0..3).map(|_| idle(sim, SERVER)).collect();
    let owed = sim.connect(SERVER);
    owed.send(b"R");
    sim.advance(millis(100));
    server.shutdown();
    let late = sim.connect(SERVER);
    sim.advance(millis(500));
    late.send(b"l");
    sim.advance(secs(7));
    let got = owed.take();
    assert!(b"(soon)late reply".starts_with(&got), "{got:?}");
    assert!(got.len() == 16 || sim.faults_injected() > 0, "it was owed a reply: {got:?}");
    sim.advance(secs(60));
    assert!(server.is_finished());
}

/// A slow client and a quick one are relayed, each with an upstream of its own: a FIN says that all
/// bytes have come.
fn a_relay(sim: &mut Sim) {
    sim.set_buffers(4_096, 4_096);
    let (server, listener) = relayed::proxy(sim, Config::default(), relayed::Relay::default());
    for rate in [Some(20_000), None] {
        let client = sim.connect(&server);
        client.send(b"request");
        sim.advance(millis(100));
        let Some(upstream) = listener.accept() else {
            sim.advance(secs(60));
            assert!(client.closed().is_some(), "a client without an upstream is refused");
            continue;
        };
        if let Some(rate) = rate {
            client.read_at(rate);
        }
        let reply = pattern(30_000);
        upstream.send(&reply);
        client.half_close();
        sim.advance(millis(300));
        upstream.half_close();
        sim.advance(secs(10));
        let (asked, got) = (upstream.take(), client.take());
        assert!(b"request".starts_with(&asked) && reply.starts_with(&got));
        if client.closed() == Some(End::Fin) {
            assert_eq!(got.len(), reply.len(), "the FIN came before the end");
        }
        if upstream.closed() == Some(End::Fin) {
            assert_eq!(asked, b"request", "the FIN came before the end");
        }
    }
    sim.advance(secs(120));
    assert_eq!(server.connections(), 0);
    // The one failure may hit the first of these.
    let served = (0..2).any(|_| {
        let client = sim.connect(&server);
        client.send(b"again");
        sim.advance(secs(3));
        listener.accept().is_some_and(|upstream| upstream.take() == b"again")
    });
    assert!(served, "no client is relayed");
}

/// Clients share the one connection that a pool may have; one leaves while it waits, one while it is
/// served, and the upstream ends what is idle.
fn a_pool(sim: &mut Sim) {
    let upstream = sim.serve(UPSTREAM, Config::default(), Lines::default());
    let pool = PoolConfig { size: 1, ..PoolConfig::default() };
    let mut proxy = Proxy::new(pool);
    proxy.replays = true;
    let server = sim.serve(SERVER, Config::default(), proxy);
    let peers = [(); 4].map(|()| sim.connect(SERVER));
    sim.settle();
    for peer in &peers {
        peer.send(b"line\n");
    }
    peers[2].reset();
    sim.step();
    peers[0].reset();
    sim.advance(secs(1));
    upstream.with(|_, cx| {
        for id in cx.ids() {
            if let Some(mut conn) = cx.conn(id) {
                conn.close();
            }
        }
    });
    peers[1].send(b"line\n");
    sim.advance(secs(8));
    let pool = |proxy: &mut Proxy| proxy.pool.expect("it has started");
    let stats = server.with(|proxy, cx| cx.pool_stats(pool(proxy)));
    assert_eq!((stats.leased, stats.waiting), (0, 0), "{stats:?}");
    assert!(server.failure().is_none(), "{:?}", server.failure());
    let served = (0..2).any(|_| {
        let peer = sim.connect(SERVER);
        peer.send(b"line\n");
        sim.advance(secs(6));
        peer.take() == b"line\n"
    });
    assert!(served, "no client is served");
    server.with(|proxy, cx| cx.close_pool(pool(proxy)));
}

/// Endpoints whose checks ask something, a server that falls silent for a while, and a client.
fn an_endpoint(sim: &mut Sim) {
    let weak = |sim: &mut Sim, address| {
        let random = sim.random();
        sim.serve(address, Config::default(), Weak { random, percent: 0 })
    };
    let _servers = SERVERS[..2].iter().map(|address| weak(sim, *address)).collect::<Vec<_>>();
    let config = EndpointConfig {
        check: HealthCheck::TestRequest,
        interval: secs(1),
        down_interval: secs(1),
        fall: 2,
        ..EndpointConfig::default()
    };
    let server = sim.serve(SERVER, Config::default(), Balancer::new(config));
    sim.advance(secs(1));
    let peer = sim.connect(SERVER);
    peer.send(b"line\n");
    sim.partition("10.0.0.1", "10.0.1.1");
    sim.advance(secs(4));
    sim.repair("10.0.0.1", "10.0.1.1");
    peer.reset();
    sim.advance(secs(10));
    assert!(server.failure().is_none(), "{:?}", server.failure());
    let stats = server.with(|balancer, cx| balancer.stats(cx));
    assert!(stats[..2].iter().all(|it| it.is_available), "{stats:?}");
    assert!(!stats[2].is_available, "{stats:?}");
    let served = (0..2).any(|_| {
        let peer = sim.connect(SERVER);
        peer.send(b"line\n");
        sim.advance(secs(3));
        peer.take() == b"line\n"
    });
    assert!(served, "no client is served");
    server.with(|balancer, cx| {
        for id in balancer.endpoints.drain(..) {
            cx.remove_endpoint(id);
        }
    });
}

macro_rules! scenarios {
    ($($scenario:ident)*) => {
        world! { epoll Epoll $($scenario)* }
        world! { kqueue Kqueue $($scenario)* }
        world! { weakest Weakest $($scenario)* }
    };
}

/// A test for each scenario in one kind of world, so that `SIM_FAULT` means one torture.
macro_rules! world {
    ($module:ident $personality:ident $($scenario:ident)*) => {
        mod $module {
            use wheelhouse::sim::Personality::$personality;

            $(#[test]
            fn $scenario() {
                super::run(stringify!($scenario), $personality, super::$scenario);
            })*
        }
    };
}

scenarios! {
    a_visit
    a_crowd
    a_slow_reader
    a_frozen_reader
    a_close_that_lingers
    a_dial
    a_dial_by_name
    a_long_story
    resets
    a_shortage
    a_tunnel
    a_shutdown
    a_full_table
    a_rejection
    a_greedy_client
    an_exempt_connection
    a_sign_of_life
    an_upload
    too_much_buffered
    a_shutdown_that_spreads
    a_pool
    an_endpoint
    a_relay
}
