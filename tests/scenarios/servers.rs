//! What is run under many seeds, as it is and with planted bugs.

mod large;

use std::fmt::Debug;
use std::panic::resume_unwind;
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use wheelhouse::config::{AtLimit, Rate, Refusal};
use wheelhouse::sim::{Call, Faults, Link, Random, Server, Sim, errno};
use wheelhouse::{Address, Config, Handle, Handler, ListenConfig, Target};

use self::large::Large;
use crate::peers::{let_peers_loose, words};
use crate::scenarios::{Echo, Keeper};
use crate::scenarios::{millis, secs};

/// Whatever went wrong before: now that nothing does, a new connection is served to the last byte,
/// and to a good end.
fn expect_service<H: Handler>(sim: &mut Sim, server: &Server<H>, count: usize) {
    sim.set_faults(Faults::NONE);
    // The alarms that are left write to all.
    sim.advance(secs(60));
    let words: Vec<u8> = (0..count).map(|at| b"nopq"[at % 4]).collect();
    for _ in 0..20 {
        let peer = sim.connect(server);
        peer.send(&words);
        sim.advance(secs(30));
        peer.assert_received_prefix_of(&words);
        if peer.take().len() == words.len() {
            peer.half_close();
            sim.advance(secs(30));
            assert_eq!(peer.closed(), Some(wheelhouse::sim::End::Fin));
            return;
        }
    }
    panic!("no client is served at {}", server.ip());
}

/// Whatever comes back to a client of an echo server is what it sent.
pub(crate) fn echo(sim: &mut Sim) {
    let mut random = sim.random();
    let server = sim.serve("10.0.0.1:7", Config::default(), Echo);
    let peers: Vec<_> = (0..8_u8)
        .map(|index| {
            let peer = sim.connect(&server);
            let sent: Vec<u8> = (0..random.below(3_000)).map(|at| (at as u8) ^ index).collect();
            peer.send(&sent);
            (peer, sent)
        })
        .collect();
    for _ in 0..20 {
        sim.advance(millis(random.below(2_000)));
        for (peer, sent) in &peers {
            peer.assert_received_prefix_of(sent);
            match random.below(40) {
                0 => peer.reset(),
                1 | 2 => peer.half_close(),
                _ => {}
            }
        }
    }
    server.assert_blameless();
    sim.converge();
    expect_service(sim, &server, 2_000);
}

/// A handler that does everything, and peers that do too.
pub(crate) fn everything(sim: &mut Sim) {
    let mut random = sim.random();
    let upstream = sim.serve("10.0.0.2:80", Config::default(), Echo);
    sim.set_name("upstream", vec![upstream.address()], millis(random.below(3_000)));
    let mut config = Config::default();
    if random.below(2) == 0 {
        config.limits.max_connections = Some(4 + random.below(10) as usize);
    }
    if random.below(4) == 0 {
        config.limits.requests_max = Some(1 + random.below(5));
    }
    if random.below(2) == 0 {
        config.limits.output_max = 200_000;
    }
    if random.below(4) == 0 {
        config.timeouts.lifetime = Some(secs(1 + random.below(20)));
    }
    let target: Target = if random.below(2) == 0 {
        upstream.address().into()
    } else {
        "upstream:80".parse().expect("a name and a port")
    };
    let server = sim.serve("10.0.0.1:7", config, Keeper::new(target));
    if random.below(3) == 0 {
        server.set_descriptors(7 + random.below(6) as usize);
    }
    for _ in 0..4 {
        server.handle().post(|_, _| ()).expect("it has not ended");
        let_peers_loose(sim, &server.address(), &mut random, 15);
    }
    sim.converge();
    // Its limits may allow no more than a request.
    expect_service(sim, &server, 1);
}

/// A server near all of its limits, and an exempt connection that is served all the same.
pub(crate) fn crowd(sim: &mut Sim) {
    let mut random = sim.random();
    let mut config = Config::default();
    let limits = &mut config.limits;
    limits.max_connections = Some(3 + random.below(100) as usize);
    limits.at_limit = match random.below(3) {
        0 => AtLimit::Pause,
        1 => AtLimit::Reject("too many\n".into()),
        _ => AtLimit::EvictIdle,
    };
    limits.buffered_max = 20_000 + random.below(300_000) as usize;
    if random.below(2) == 0 {
        limits.clients.connections = Some(2 + random.below(60) as u32);
        limits.clients.refusal = if random.below(2) == 0 { Refusal::Close } else { Refusal::Reset };
    }
    if random.below(2) == 0 {
        limits.clients.rate = Some(Rate::new(5 + random.below(50) as u32, secs(10)));
    }
    if random.below(2) == 0 {
        limits.accept_rate = Some(Rate::per_second(5 + random.below(100) as u32));
    }
    if random.below(2) == 0 {
        config.timeouts.ping_after = Some(secs(1 + random.below(20)));
    }
    if random.below(2) == 0 {
        config.timeouts.request = Some(secs(1 + random.below(5)));
        config.timeouts.request_rate = Some(1 + random.below(500));
    }
    let unreachable: Address = "10.0.0.9:9".parse().unwrap();
    let server = sim.spawn("10.0.0.1", config, Keeper::new(unreachable), |reactor| {
        reactor.listen("10.0.0.1:7").unwrap();
        let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
        reactor.listen_with("10.0.0.1:9090", listen).unwrap();
    });
    let entry: Address = "10.0.0.1:7".parse().unwrap();
    let_peers_loose(sim, &entry, &mut random, 120);
    sim.set_faults(Faults::NONE);
    // Whatever the crowd does, the exempt connection is served, unless the handler refused
    // it or did what another client said and closed it.
    let exempt_peer = sim.connect("10.0.0.1:9090");
    exempt_peer.send(b"x");
    // The process may not be scheduled for ten seconds yet.
    sim.advance(secs(15));
    let through = exempt_peer.received().contains(&b'x') || exempt_peer.closed().is_some();
    assert!(server.is_finished() || through, "an exempt connection is not served");
    if random.below(2) == 0 {
        server.shutdown();
        sim.advance(secs(60));
        assert!(server.is_finished(), "the shutdown has ended");
    }
}

/// Connections that are kept for a while: one that is announced to end does, after its reply.
pub(crate) fn kept(sim: &mut Sim) {
    let mut random = sim.random();
    let mut config = Config::default();
    if random.below(2) == 0 {
        config.limits.requests_max = Some(1 + random.below(6));
    }
    if random.below(3) == 0 {
        config.limits.max_connections = Some(64 + random.below(4) as usize);
    }
    if random.below(3) == 0 {
        config.limits.lag_max = Some(millis(1 + random.below(100)));
    }
    if random.below(2) == 0 {
        config.timeouts.lifetime = Some(secs(1 + random.below(20)));
    }
    if random.below(2) == 0 {
        config.timeouts.ping_after = Some(secs(1 + random.below(5)));
        config.timeouts.ping = Some(secs(1 + random.below(3)));
    }
    config.shutdown_spread = match random.below(3) {
        0 => None,
        1 => Some(millis(1 + random.below(3_000))),
        _ => config.shutdown_spread,
    };
    let mut own = config.timeouts.clone();
    own.idle = Some(millis(100 + random.below(10_000)));
    own.lifetime = Some(secs(1 + random.below(10)));
    let unreachable: Address = "10.0.0.9:9".parse().unwrap();
    let server = sim.spawn("10.0.0.1", config, Keeper::new(unreachable), |reactor| {
        reactor.listen("10.0.0.1:7").unwrap();
        let listen = ListenConfig { timeouts: Some(own), ..ListenConfig::default() };
        reactor.listen_with("10.0.0.1:8", listen).unwrap();
        let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
        reactor.listen_with("10.0.0.1:9090", listen).unwrap();
    });
    let listeners = ["10.0.0.1:7", "10.0.0.1:7", "10.0.0.1:8", "10.0.0.1:9090"];
    let lines: [&[u8]; 8] = [b"k", b"ak", b"Rk", b"kk", b"RRak", b"YaRk", b"bk", b"a"];
    let mut peers: Vec<_> = (0..70).map(|_| sim.connect(*random.pick(&listeners))).collect();
    for _ in 0..60 {
        let index = random.below(peers.len() as u64) as usize;
        match random.below(12) {
            0 => peers.push(sim.connect(*random.pick(&listeners))),
            1 => peers[index].half_close(),
            2 => drop(peers.swap_remove(index)),
            _ => peers[index].send(random.pick::<&[u8]>(&lines)),
        }
        sim.advance(millis(random.below(400)));
    }
    sim.set_faults(Faults::NONE);
    // Longer than a process that is not scheduled, and less long than one may be idle.
    sim.advance(secs(20));
    for peer in &peers {
        let announced = peer.received().windows(4).any(|word| word == b"(go)");
        assert!(!announced || peer.closed().is_some(), "{} was to end and stays", peer.address());
    }
    if random.below(2) == 0 && !server.is_finished() {
        server.shutdown();
        sim.advance(secs(70));
        assert!(server.is_finished(), "the shutdown has ended");
    }
}

/// Servers that dial each other in a circle, and a partition between two of them.
pub(crate) fn circle(sim: &mut Sim) {
    let mut random = sim.random();
    let at = |index: u64| -> Address { format!("10.0.0.{}:7", index % 3 + 1).parse().unwrap() };
    let servers: Vec<_> = (0..3)
        .map(|index| sim.serve(at(index), Config::default(), Keeper::new(at(index + 1))))
        .collect();
    let (a, b) = (servers[0].ip(), servers[1].ip());
    for round in 0..6 {
        match round % 3 {
            1 => sim.partition(a, b),
            2 => sim.repair(a, b),
            _ => {}
        }
        let entry = servers[random.below(3) as usize].address();
        let_peers_loose(sim, &entry, &mut random, 12);
    }
    sim.repair(a, b);
    sim.converge();
    for server in &servers {
        expect_service(sim, server, 2_000);
    }
}

/// A server that dials names with several addresses, of which some refuse, some do not answer and
/// some answer late, and that ends some dials itself.
pub(crate) fn dials(sim: &mut Sim) {
    let mut random = sim.random();
    let listening = ["203.0.113.7:80", "203.0.113.8:80", "[2001:db8::7]:80"];
    let listeners: Vec<_> = listening.iter().map(|at| sim.listen(*at, 16)).collect();
    for listener in &listeners {
        let link = Link { latency: millis(random.below(400)), ..Link::LOOPBACK };
        sim.set_link_between("10.0.0.1", listener, link);
    }
    let refusing = Address::from(std::net::SocketAddr::new(sim.peers_ip(), 9)).to_string();
    let deaf = ["203.0.113.1:80", "203.0.113.2:80", "[2001:db8::1]:80", "[2001:db8::2]:80"];
    let addresses = [&listening[..], &deaf, &[&refusing, "unix:/run/none"]].concat();
    let mut config = Config::default();
    config.timeouts.connect_stagger = (random.below(4) > 0).then(|| millis(10 + random.below(600)));
    config.timeouts.connect_attempt =
        (random.below(4) > 0).then(|| millis(1 + random.below(2_000)));
    config.limits.max_connections = Some(1 + random.below(40) as usize);
    let server = sim.spawn("10.0.0.1", config, Echo, |_| {});
    let (mut ids, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        let name = format!("name{}", random.below(5));
        if random.below(3) == 0 {
            let count = random.below(9);
            let found: Vec<_> = (0..count).map(|_| (*random.pick(&addresses)).to_owned()).collect();
            sim.set_name(&name, found, millis(random.below(300)));
        }
        ids.extend(server.with(|_, cx| cx.connect(format!("{name}:80"))));
        if !ids.is_empty() && random.below(4) == 0 {
            let id = *random.pick(&ids);
            let abort = random.below(2) == 0;
            server.with(|_, cx| {
                if let Some(mut conn) = cx.conn(id) {
                    if abort { conn.abort() } else { conn.close() }
                }
            });
        }
        sim.advance(millis(random.below(300)));
        peers.extend(random.pick(&listeners).accept());
        if peers.len() > 4 {
            drop(peers.swap_remove(random.below(5) as usize));
        }
    }
    if random.below(4) == 0 {
        server.shutdown();
    }
    sim.converge();
    assert_eq!(server.descriptors(), 0);
}

/// A server that is shut down while it is busy, once or twice, is gone by its deadline.
pub(crate) fn shutdown(sim: &mut Sim) {
    let mut random = sim.random();
    let unreachable: Address = "10.0.0.9:9".parse().unwrap();
    let config = Config::default();
    let grace = config.shutdown_timeout.expect("there is one by default");
    let server = sim.serve("10.0.0.1:7", config, Keeper::new(unreachable));
    let peers: Vec<_> = (0..10).map(|_| sim.connect(server.address())).collect();
    for peer in &peers {
        peer.send(&words(&mut random));
        if random.below(3) == 0 {
            peer.stop_reading();
            peer.send(b"BBBB");
        }
    }
    sim.advance(millis(random.below(5_000)));
    let handle: Option<Handle<_>> = (!server.is_finished()).then(|| server.handle());
    for _ in 0..=random.below(2) {
        if let Some(handle) = &handle {
            handle.shutdown();
        }
        sim.advance(millis(random.below(3_000)));
    }
    sim.set_faults(Faults::NONE);
    sim.advance(grace + secs(30));
    assert!(server.is_finished(), "the shutdown has ended");
}

/// Readers that are slow and send: whatever ends their connections, no reply is cut off while they
/// read.
pub(crate) fn slow_readers(sim: &mut Sim) {
    let mut random = sim.random();
    let mut config = Config::default();
    let timeouts = &mut config.timeouts;
    match random.below(6) {
        0 => timeouts.idle = Some(secs(1 + random.below(5))),
        1 => timeouts.tunnel = Some(secs(1 + random.below(5))),
        2 => timeouts.ping_after = Some(secs(1 + random.below(5))),
        3 => timeouts.lifetime = Some(secs(1 + random.below(20))),
        4 => config.limits.requests_max = Some(1 + random.below(3)),
        _ => config.limits.max_connections = Some(3 + random.below(3) as usize),
    }
    if random.below(2) == 0 {
        config.shutdown_spread = None;
    }
    config.limits.flush_rate = 1 + random.below(240);
    let server = sim.serve("10.0.0.1:7", config, Large::default());
    let mut peers = Vec::new();
    for _ in 0..6 {
        let window = 512 << random.below(5);
        let peer = sim.connect_with_window(&server, window as usize);
        peer.read_at(2_000 + random.below(50_000) as usize);
        let words: &[&[u8]] = &[b"r", b"tr", b"rr", b"rc", b"k", b"rf", b"krr"];
        let word = *random.pick::<&[u8]>(words);
        peer.send(word);
        for _ in 0..random.below(6) {
            let delay = millis(random.below(20_000));
            peer.send_after(delay, *random.pick(&[&b"?"[..], b"r", b"k"]));
        }
        peers.push(peer);
        sim.advance(millis(random.below(4_000)));
    }
    sim.advance(secs(random.below(30)));
    if random.below(2) == 0 {
        server.shutdown();
    }
    sim.advance(secs(60));
}

/// A reactor whose wait fails at some moment leaves no session, whatever each is in the middle of;
/// the world checks that.
pub(crate) fn failing(sim: &mut Sim) {
    let mut random = sim.random();
    let unreachable: Address = "10.0.0.9:9".parse().unwrap();
    let server = sim.serve("10.0.0.1:7", Config::default(), Keeper::new(unreachable));
    server.fail(Call::Wait, random.below(300), errno::EBADF);
    let_peers_loose(sim, &server.address(), &mut random, 60);
    if server.failure().is_some() {
        assert_eq!(server.descriptors(), 0);
    }
}

/// A subscriber that reads each event, and panics over some of them and over some questions whether
/// it wants one.
struct Flaky(Mutex<Random>, LevelFilter);

impl Flaky {
    fn may_panic(&self) {
        let panics = self.0.lock().unwrap().below(4) == 0;
        if panics {
            // Without the hook, which would print each of them.
            resume_unwind(Box::new("the log is gone"));
        }
    }
}

struct Reader;

impl Visit for Reader {
    fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
        drop(format!("{value:?}"));
    }
}

impl Subscriber for Flaky {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        if metadata.is_event() {
            self.may_panic();
        }
        true
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.1)
    }

    fn register_callsite(&self, _: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        tracing::subscriber::Interest::sometimes()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Reader);
        self.may_panic();
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Everything happens while the log cannot be written at times.
pub(crate) fn flaky_log(sim: &mut Sim) {
    let mut random = sim.random();
    let scenario = *random.pick(&[echo, everything, shutdown]);
    let level = *random.pick(&[LevelFilter::INFO, LevelFilter::DEBUG, LevelFilter::TRACE]);
    log_flakily(sim, level, scenario);
}

/// Runs a scenario while the log cannot be written at times.
pub(crate) fn log_flakily(sim: &mut Sim, level: LevelFilter, scenario: fn(&mut Sim)) {
    let subscriber = Flaky(Mutex::new(sim.random()), level);
    tracing::subscriber::with_default(subscriber, || scenario(sim));
}

/// Reactors whose callbacks post to themselves and to each other, more than their mailboxes hold.
pub(crate) fn posts(sim: &mut Sim) {
    let mut random = sim.random();
    let servers: Vec<_> = (1..=3)
        .map(|index| {
            let mut config = Config::default();
            config.limits.mailbox_max = 1 << random.below(13);
            let unreachable: Address = "10.0.0.9:9".parse().unwrap();
            sim.serve(format!("10.0.0.{index}:7").as_str(), config, Keeper::new(unreachable))
        })
        .collect();
    for (at, server) in servers.iter().enumerate() {
        let reactors = (0..3).map(|next| servers[(at + next) % 3].handle()).collect();
        server.with(|keeper, _| keeper.reactors = reactors);
    }
    for _ in 0..12 {
        let server = random.pick(&servers);
        let peer = sim.connect(server);
        peer.send(random.pick::<&[u8]>(&[b"h", b"H", b"hH", b"HnhR", b"hC", b"HHHb"]));
        for _ in 0..random.below(4) {
            // Another thread, as it were.
            let _ = server.handle().try_post(|keeper, _| keeper.ids.truncate(100));
        }
        sim.advance(millis(random.below(2_000)));
    }
    sim.converge();
    for server in &servers {
        server.assert_blameless();
        expect_service(sim, server, 100);
    }
}
