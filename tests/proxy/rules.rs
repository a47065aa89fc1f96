//! The handler in a simulated world.

use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::sim::{End, Faults, Peer, Server, Sim};
use wheelhouse::{Config, Conn, Handler};

use crate::balance::Policy;
use crate::check::Check;
use crate::server::{Proxy, Settings, defaults};
use crate::shorthands::{millis, secs};

const PROXY: &str = "10.0.0.1:7000";
const UPSTREAMS: [&str; 3] = ["10.0.1.1:80", "10.0.1.2:80", "10.0.1.3:80"];

/// Says its name, then echoes; answers `PING` as it is told to.
struct Named {
    name: u8,
    pong: &'static [u8],
    opened: u64,
}

impl Handler for Named {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        self.opened += 1;
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        if input.starts_with(b"PING") {
            conn.write(self.pong);
        } else {
            conn.write(&[self.name]);
            conn.write(input);
        }
        input.clear();
    }
}

fn serve(sim: &mut Sim, index: usize) -> Server<Named> {
    let name = b"abc"[index];
    sim.serve(UPSTREAMS[index], Config::default(), Named { name, pong: b"PONG\n", opened: 0 })
}

fn settings(policy: Policy, check: &str) -> Settings {
    Settings {
        upstreams: UPSTREAMS.iter().map(|upstream| upstream.parse().unwrap()).collect(),
        policy,
        check: check.parse().unwrap(),
        check_interval: secs(1),
        connect_total: secs(5),
        timeouts: config().timeouts,
        seed: 1,
    }
}

fn config() -> Config {
    defaults(secs(2))
}

fn proxy(sim: &mut Sim, settings: Settings) -> Server<Proxy> {
    let config = Config { timeouts: settings.timeouts.clone(), ..config() };
    let server = sim.serve(PROXY, config, Proxy::new(settings));
    sim.advance(millis(500));
    server
}

/// The names of the upstreams that so many clients get, one after the other; `-` is none. They stay.
fn ask(sim: &mut Sim, count: usize, clients: &mut Vec<Peer>) -> String {
    let name = |_| {
        let client = sim.connect(PROXY);
        client.send(b"x");
        sim.advance(millis(50));
        let got = client.take();
        clients.push(client);
        got.first().map_or('-', |name| char::from(*name))
    };
    (0..count).map(name).collect()
}

fn count(names: &str, name: char) -> usize {
    names.chars().filter(|it| *it == name).count()
}

#[test]
fn clients_are_shared_out() {
    for (policy, gets) in [(Policy::RoundRobin, "abcabc"), (Policy::LeastConnections, "abcabc")] {
        let mut sim = Sim::new(1);
        let _upstreams = [0, 1, 2].map(|index| serve(&mut sim, index));
        let server = proxy(&mut sim, settings(policy, "tcp"));
        assert_eq!(ask(&mut sim, 6, &mut Vec::new()), gets);
        server.assert_blameless();
    }
}

#[test]
fn the_fewest_connections_get_the_next() {
    for policy in [Policy::LeastConnections, Policy::RandomTwo] {
        let mut sim = Sim::new(1);
        let _upstreams = [0, 1, 2].map(|index| serve(&mut sim, index));
        let _server = proxy(&mut sim, settings(policy, "tcp"));
        let mut clients = Vec::new();
        let names = ask(&mut sim, 60, &mut clients);
        for name in ['a', 'b', 'c'] {
            assert!((15..=25).contains(&count(&names, name)), "{policy:?}: {names}");
        }
        // Those of one upstream leave.
        let mut left = names.chars();
        clients.retain(|_| left.next() != Some('b'));
        sim.advance(secs(1));
        let names = ask(&mut sim, 9, &mut clients);
        assert!(count(&names, 'b') >= 4, "{policy:?}: {names}");
    }
}

#[test]
fn one_that_is_down_is_passed_over_until_it_is_back() {
    let mut sim = Sim::new(1);
    let _upstreams = [0, 2].map(|index| serve(&mut sim, index));
    let server = proxy(&mut sim, settings(Policy::RoundRobin, "tcp"));
    let names = ask(&mut sim, 6, &mut Vec::new());
    assert_eq!((count(&names, 'a'), count(&names, 'c')), (3, 3), "{names}");
    let _back = serve(&mut sim, 1);
    sim.advance(secs(30));
    let names = ask(&mut sim, 9, &mut Vec::new());
    assert_eq!(count(&names, 'b'), 3, "{names}");
    server.assert_blameless();
}

#[test]
fn a_dial_that_fails_goes_to_another() {
    let mut sim = Sim::new(1);
    let upstreams = [0, 1, 2].map(|index| serve(&mut sim, index));
    let mut settings = settings(Policy::RoundRobin, "tcp");
    settings.check_interval = secs(600);
    let server = proxy(&mut sim, settings);
    // It goes after its check has passed.
    let [_a, b, _c] = upstreams;
    b.shutdown();
    sim.advance(secs(40));
    assert!(b.is_finished());
    let names = ask(&mut sim, 6, &mut Vec::new());
    assert_eq!((names.len(), count(&names, '-'), count(&names, 'b')), (6, 0, 0), "{names}");
    server.assert_blameless();
}

#[test]
fn without_an_upstream_a_client_is_refused_at_once() {
    let mut sim = Sim::new(1);
    let server = proxy(&mut sim, settings(Policy::RoundRobin, "tcp"));
    let client = sim.connect(PROXY);
    sim.advance(millis(10));
    assert_eq!(client.closed(), Some(End::Reset));
    server.assert_blameless();
}

#[test]
fn upstreams_that_do_not_answer_take_no_longer_than_the_total() {
    let mut sim = Sim::new(1);
    let _upstreams = [0, 1, 2].map(|index| serve(&mut sim, index));
    let mut settings = settings(Policy::RoundRobin, "tcp");
    settings.check_interval = secs(600);
    let server = proxy(&mut sim, settings);
    for upstream in ["10.0.1.1", "10.0.1.2", "10.0.1.3"] {
        sim.partition("10.0.0.1", upstream);
    }
    let client = sim.connect(PROXY);
    // Two have 2 s, the last one what is left.
    sim.advance(millis(4_900));
    assert!(client.is_open());
    sim.advance(millis(200));
    assert_eq!(client.closed(), Some(End::Reset));
    server.assert_blameless();
}

#[test]
fn an_upstream_has_all_the_time_that_it_is_given() {
    let mut sim = Sim::new(1);
    let _upstreams = [0, 1, 2].map(|index| serve(&mut sim, index));
    let mut settings = settings(Policy::RoundRobin, "tcp");
    settings.upstreams.truncate(1);
    settings.check_interval = secs(600);
    settings.connect_total = secs(60);
    settings.timeouts = defaults(secs(20)).timeouts;
    let server = proxy(&mut sim, settings);
    sim.partition("10.0.0.1", "10.0.1.1");
    let client = sim.connect(PROXY);
    sim.advance(millis(19_900));
    assert!(client.is_open());
    sim.advance(millis(200));
    assert_eq!(client.closed(), Some(End::Reset));
    server.assert_blameless();
}

#[test]
fn a_client_that_leaves_ends_its_dial() {
    let mut sim = Sim::new(1);
    let _upstreams = [0, 1, 2].map(|index| serve(&mut sim, index));
    let mut settings = settings(Policy::RoundRobin, "tcp");
    settings.check_interval = secs(600);
    let server = proxy(&mut sim, settings);
    sim.partition("10.0.0.1", "10.0.1.1");
    let client = sim.connect(PROXY);
    sim.advance(millis(100));
    assert_eq!(server.connections(), 2);
    client.reset();
    sim.advance(millis(100));
    assert_eq!(server.connections(), 0);
}

#[test]
fn an_upstream_is_up_as_long_as_it_answers_what_is_expected() {
    let mut sim = Sim::new(1);
    let upstreams = [0, 1, 2].map(|index| serve(&mut sim, index));
    let server = proxy(&mut sim, settings(Policy::RoundRobin, r"send:PING\n:PO"));
    assert_eq!(ask(&mut sim, 3, &mut Vec::new()), "abc");
    upstreams[1].with(|named, _| named.pong = b"LOADING\n");
    sim.advance(secs(10));
    let names = ask(&mut sim, 6, &mut Vec::new());
    assert_eq!((count(&names, 'a'), count(&names, 'c')), (3, 3), "{names}");
    // A reply that is cut off is none, and silence is none.
    upstreams[0].with(|named, _| named.pong = b"P");
    upstreams[2].with(|named, _| named.pong = b"");
    sim.advance(secs(20));
    assert_eq!(ask(&mut sim, 2, &mut Vec::new()), "--");
    upstreams[0].with(|named, _| named.pong = b"PONG\n");
    sim.advance(secs(20));
    assert_eq!(ask(&mut sim, 2, &mut Vec::new()), "aa");
    server.assert_blameless();
}

#[test]
fn a_check_may_wait_for_a_greeting() {
    let check: Check = "send::220".parse().unwrap();
    assert_eq!(check, Check::Send { request: Vec::new(), expect: b"220".to_vec() });
    let mut sim = Sim::new(1);
    let mut settings = settings(Policy::RoundRobin, "send::220");
    settings.upstreams.truncate(1);
    let listener = sim.listen(UPSTREAMS[0], 8);
    let server = proxy(&mut sim, settings);
    let upstream = listener.accept().expect("a check");
    assert_eq!(server.stats().endpoints_up, 0);
    upstream.send(b"220 hello\r\n");
    sim.advance(millis(10));
    assert_eq!(server.stats().endpoints_up, 1);
}

/// Upstreams that come and go, and faults of every kind: each client gets its echo or an end, and
/// everything ends.
fn swarm(sim: &mut Sim) {
    let mut random = sim.random();
    let mut upstreams: Vec<_> = (0..3).map(|index| serve(sim, index)).collect();
    let policies = [Policy::RoundRobin, Policy::LeastConnections, Policy::RandomTwo];
    let checks = ["tcp", r"send:PING\n:PONG"];
    let settings = settings(*random.pick(&policies), random.pick::<&str>(&checks));
    let server = sim.serve(PROXY, config(), Proxy::new(settings));
    let mut clients: Vec<(Peer, Vec<u8>)> = Vec::new();
    for _ in 0..60 {
        let index = random.below(1 + clients.len() as u64) as usize;
        match random.below(10) {
            0 if !upstreams.is_empty() => upstreams.swap_remove(0).shutdown(),
            1..=4 => clients.push((sim.connect(PROXY), Vec::new())),
            5 if index < clients.len() => drop(clients.swap_remove(index)),
            _ if index < clients.len() => {
                let (client, sent) = &mut clients[index];
                client.send(b"some bytes");
                sent.extend_from_slice(b"some bytes");
            }
            _ => {}
        }
        sim.advance(millis(random.below(700)));
    }
    sim.set_faults(Faults::NONE);
    sim.advance(secs(20));
    for (client, sent) in &clients {
        let named = |byte: &u8| !b"abc".contains(byte) || sent.contains(byte);
        let got: Vec<_> = client.take().into_iter().filter(named).collect();
        assert!(sent.len() >= got.iter().filter(|byte| **byte == b's').count(), "doubled");
    }
    drop(clients);
    server.shutdown();
    sim.advance(Duration::from_secs(120));
    assert!(server.is_finished());
}

#[test]
fn swarm_proxy() {
    let number = |name: &str, default| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let summary = wheelhouse::sim::swarm(number("SIM_FIRST", 1), number("SIM_SEEDS", 6), swarm);
    println!("swarm proxy: {summary}");
}
