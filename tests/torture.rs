//! Every call of a scenario fails once with every error it can return, and each time every session
//! still ends once and the server serves the next client.
//!
//! `TORTURE_RUNS` says how many of these runs each scenario gets at most.

mod zoo;

use std::env;
use std::time::Duration;

use wheelhouse::sim::{self, Link, Personality, Server, Sim};
use wheelhouse::{Address, Config, Handler};

use crate::zoo::{Echo, Keeper};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const SERVER: &str = "10.0.0.1:7";

#[expect(clippy::print_stdout, reason = "figures for whoever reads the output")]
fn run(name: &str, personality: Personality, scenario: fn(&mut Sim)) {
    let runs =
        env::var("TORTURE_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    let summary = sim::torture(runs, |sim| {
        sim.set_personality(personality);
        scenario(sim);
    });
    println!("torture {name} {personality:?}: {summary}");
}

/// Whatever failed before, somebody who comes now is served; should that be what fails, the one
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
    panic!("nobody is served");
}

fn echo(sim: &mut Sim) -> Server<Echo> {
    sim.serve(SERVER, Config::default(), Echo)
}

fn keeper(sim: &mut Sim, upstream: Address) -> Server<Keeper> {
    sim.serve(SERVER, Config::default(), Keeper::new(upstream))
}

fn nobody() -> Address {
    "10.0.0.1:9".parse().unwrap()
}

/// A request, a reply, the end.
fn a_visit(sim: &mut Sim) {
    let server = echo(sim);
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
    let server = echo(sim);
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
    let server = keeper(sim, nobody());
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
    let server = keeper(sim, nobody());
    let peer = sim.connect(server.address());
    peer.stop_reading();
    peer.send(b"BB");
    sim.advance(secs(100));
    assert_eq!(server.connections(), 0);
    expect_service(sim, &server);
}

/// A close with input unread and output queued: the reply arrives whole.
fn a_close_that_lingers(sim: &mut Sim) {
    sim.set_link(Link { latency: Duration::from_millis(10), ..Link::LOOPBACK });
    let server = keeper(sim, nobody());
    let peer = sim.connect(server.address());
    peer.send(b"BbCaaaaaaaaaaaaaaaaaaaaaaa");
    peer.send_after(Duration::from_millis(30), vec![b'x'; 50_000]);
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
    let addresses = vec![nobody(), "203.0.113.1:80".parse().unwrap(), upstream.address()];
    sim.set_name("upstream", addresses, Duration::from_millis(20));
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
    let server = keeper(sim, nobody());
    let peer = sim.connect(server.address());
    for words in [&b"aPa"[..], b"R", b"YaRL", b"Wb"] {
        peer.send(words);
        sim.advance(Duration::from_millis(350));
    }
    peer.half_close();
    sim.advance(secs(5));
    expect_service(sim, &server);
}

/// Peers that reset in each state.
fn resets(sim: &mut Sim) {
    sim.set_buffers(8_192, 4_096);
    let server = keeper(sim, nobody());
    for words in [&b""[..], b"a", b"W", b"R", b"BB", b"P", b"F", b"C"] {
        let peer = sim.connect(server.address());
        peer.stop_reading();
        peer.send(words);
        sim.advance(Duration::from_millis(50));
        peer.reset();
        sim.advance(Duration::from_millis(50));
    }
    sim.advance(secs(120));
    assert_eq!(server.connections(), 0);
    expect_service(sim, &server);
}

/// A server without descriptors to spare.
fn a_shortage(sim: &mut Sim) {
    let server = echo(sim);
    server.set_descriptors(9);
    let peers: Vec<_> = (0..8).map(|_| sim.connect(server.address())).collect();
    for peer in &peers {
        peer.send(b"x");
        sim.advance(Duration::from_millis(100));
    }
    drop(peers);
    sim.advance(secs(5));
    expect_service(sim, &server);
}

/// One connection reads no faster than another drains.
fn a_tunnel(sim: &mut Sim) {
    sim.set_buffers(8_192, 4_096);
    let server = keeper(sim, nobody());
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
    assert!(fed || over, "what one is told another is given");
    expect_service(sim, &server);
}

/// A shutdown with somebody in every state.
fn a_shutdown(sim: &mut Sim) {
    sim.set_buffers(8_192, 4_096);
    let server = keeper(sim, nobody());
    let peers: Vec<_> = [&b""[..], b"a", b"W", b"R", b"BB", b"P", b"F"]
        .iter()
        .map(|words| {
            let peer = sim.connect(server.address());
            peer.stop_reading();
            peer.send(words);
            peer
        })
        .collect();
    sim.advance(Duration::from_millis(100));
    server.shutdown();
    sim.advance(secs(60));
    assert!(server.is_finished());
    drop(peers);
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
}
