//! Peers that wear out the patience of a service: they are never idle, read slowly, and ask without end.

use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::config::Rate;
use wheelhouse::metrics::MetricsWriter;
use wheelhouse::sim::{Call, Sim, errno};
use wheelhouse::{Config, Conn, Context, Handler};

use super::world::{Echo, HERE, METRICS, get, reply, serve};
use crate::shorthands::{millis, secs};

#[test]
fn peers_that_are_never_idle_hold_no_places_for_ever() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default(), Echo::default());
    let peers: Vec<_> = (0..16).map(|_| sim.connect(METRICS)).collect();
    for peer in &peers {
        peer.send(b"G");
    }
    sim.settle();
    let mut refused = 0;
    for _ in 0..40 {
        sim.advance(secs(9));
        for peer in peers.iter().filter(|peer| peer.is_open()) {
            // The rest of a question, and the beginning of the next.
            peer.send(format!("{}G", &get("/healthz")[1..]).as_bytes());
        }
        sim.settle();
        let collector = sim.connect(METRICS);
        collector.send(get("/readyz").as_bytes());
        sim.settle();
        refused += u32::from(reply(&collector, false).0 == 503);
        for peer in &peers {
            peer.take();
        }
    }
    // Until they are a minute old.
    assert_eq!(refused, 6);
    assert_eq!(server.stats().service_refused, 6);
}

#[test]
fn a_slow_reader_gets_no_more_time_by_asking_on() {
    let mut sim = Sim::new(1);
    sim.set_buffers(4_096, 4_096);
    let server = serve(&mut sim, Config::default(), Echo::default());
    let peer = sim.connect(METRICS);
    peer.read_at(400);
    peer.send(get("/metrics").repeat(2).as_bytes());
    let mut ended = 0;
    while peer.is_open() {
        sim.advance(secs(5));
        ended += 5;
        assert!(ended <= 200, "it is still there");
        if peer.is_open() {
            peer.send(get("/metrics").as_bytes());
        }
        peer.take();
    }
    assert_eq!(server.stats().service_connections, 0);
}

#[test]
fn accepts_that_all_fail_are_tried_again_after_a_pause() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default(), Echo::default());
    sim.settle();
    for after in 0..300 {
        server.fail(Call::Accept, after, errno::ECONNABORTED);
    }
    let _aborted = sim.connect(METRICS);
    sim.settle();
    let at_once = server.stats().accept_errors;
    assert!((1..300).contains(&at_once), "{at_once} at once");
    // 16 in each turn, and 100 ms behind them.
    sim.advance(secs(3));
    assert_eq!(server.stats().accept_errors, 300);
    let collector = sim.connect(METRICS);
    collector.send(get("/healthz").as_bytes());
    sim.settle();
    assert_eq!(reply(&collector, false).0, 200);
}

/// Its scrapes take 5 ms each.
struct Slow<F>(F);

impl<F: Fn(Duration)> Handler for Slow<F> {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {}

    fn on_scrape(&mut self, _: &mut Context<'_>, _: &mut MetricsWriter) {
        (self.0)(millis(5));
    }
}

#[test]
fn many_scrapes_take_many_turns() {
    let mut sim = Sim::new(1);
    let stall = sim.stall();
    let server = sim.spawn("10.0.0.1", Config::default(), Slow(stall), |reactor| {
        reactor.listen(HERE).unwrap();
        reactor.serve_metrics(METRICS).unwrap();
    });
    sim.settle();
    server.take_longest_turn();
    let peers: Vec<_> = (0..4).map(|_| sim.connect(METRICS)).collect();
    for peer in &peers {
        peer.send(get("/metrics").repeat(10).as_bytes());
    }
    sim.advance(secs(1));
    let longest = server.take_longest_turn();
    assert!(longest < millis(6), "{longest:?}");
    for peer in &peers {
        assert_eq!(String::from_utf8(peer.take()).unwrap().matches("HTTP/1.1 200").count(), 10);
    }
}

#[test]
fn a_peer_cannot_stop_the_reactor_by_what_makes_a_scrape_panic() {
    let mut sim = Sim::new(1);
    sim.allow_panics();
    let config = Config { panic_limit: Some(Rate::new(3, secs(60))), ..Config::default() };
    let echo = Echo { scrape: Some(|_| panic!("on purpose")), ..Echo::default() };
    let server = serve(&mut sim, config, echo);
    let peer = sim.connect(METRICS);
    peer.send(get("/metrics").repeat(10).as_bytes());
    sim.advance(secs(1));
    assert!(!server.is_finished());
    assert_eq!(server.stats().panics, 10);
    assert_eq!(String::from_utf8(peer.take()).unwrap().matches("HTTP/1.1 500").count(), 10);
}
