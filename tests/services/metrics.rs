//! The metrics, in virtual time.

use std::collections::BTreeSet;

use wheelhouse::sim::{Call, End, Sim};
use wheelhouse::{Config, Timeouts};

use crate::shorthands::{millis, secs, with_places};
use crate::world::{Echo, HERE, METRICS, ask, get, reply, serve};

/// The text is what the format's parsers accept: heads once, before their samples; numbers.
fn check(text: &str) {
    assert!(text.ends_with('\n'));
    let (mut heads, mut current) = (BTreeSet::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            current = rest.split(' ').next().unwrap().to_owned();
            assert!(heads.insert(current.clone()), "{current} comes twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
        } else {
            assert!(line.starts_with(&current), "{line} after the head of {current}");
            line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap();
        }
    }
}

#[test]
fn a_collector_gets_the_numbers_of_the_library_and_of_the_application() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default(), Echo::default());
    let client = sim.connect(HERE);
    client.send(b"hello");
    sim.settle();
    let collector = sim.connect(METRICS);
    collector.send(get("/metrics?a=b").as_bytes());
    sim.settle();
    let (status, head, text) = reply(&collector, false);
    assert_eq!(status, 200);
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    check(&text);
    for line in [
        "wheelhouse_accepted_total 1",
        "wheelhouse_bytes_in_total 5",
        "wheelhouse_connections{state=\"idle\"} 1",
        "echo_messages_total 1",
        "echo_seen 1",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} in {text}");
    }
    let (_, text) = ask(&mut sim, &collector, "/metrics");
    assert!(text.contains("\nwheelhouse_service_connections 1\n"), "{text}");
    assert_eq!((server.stats().accepted, server.connections()), (1, 1));
    assert_eq!((server.handler().opened.get(), server.handler().scrapes), (1, 2));
    collector.close();
    client.close();
    sim.settle();
    sim.assert_clean();
}

#[test]
fn only_get_and_head_of_three_paths_are_answered() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default(), Echo::default());
    let collector = sim.connect(METRICS);
    for (path, status) in
        [("/healthz", 200), ("/readyz", 200), ("/", 200), ("/metrics/", 404), ("/x", 404)]
    {
        assert_eq!(ask(&mut sim, &collector, path).0, status, "{path}");
    }
    for (method, path, status) in [("HEAD", "/metrics", 200), ("HEAD", "/nowhere", 404)] {
        collector.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        sim.settle();
        let (got, head, _) = reply(&collector, true);
        assert_eq!(got, status, "{head}");
    }
    for method in ["POST", "OPTIONS", "GOT"] {
        collector.send(format!("{method} /metrics HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        sim.settle();
        let (status, head, _) = reply(&collector, false);
        assert!(status == 405 && head.contains("\r\nAllow: GET, HEAD"), "{head}");
    }
    // A request that is none ends the connection, behind its reply.
    collector.send(b"\xff\xfe\r\n\r\n");
    sim.settle();
    assert_eq!(reply(&collector, false).0, 400);
    assert_eq!(collector.closed(), Some(End::Fin));
    collector.close();
    sim.settle();
    assert_eq!(server.handler().scrapes, 1);
    sim.assert_clean();
}

#[test]
fn the_reply_to_head_has_no_body_also_if_it_is_refused() {
    let mut sim = Sim::new(1);
    let _server = serve(&mut sim, Config::default(), Echo::default());
    for (request, status) in [
        ("HEAD / HTTP/1.1\r\n\r\n", 400),
        ("\r\n\r\nHEAD / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400),
        ("HEAD /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", 413),
        ("HEAD / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    ] {
        let collector = sim.connect(METRICS);
        collector.send(request.as_bytes());
        sim.settle();
        let (got, head, body) = reply(&collector, true);
        assert_eq!((got, &body[..]), (status, ""), "{request}");
        assert!(!head.contains("Content-Length: 0"), "{head}");
        collector.close();
        sim.settle();
    }
}

#[test]
fn requests_may_come_in_any_pieces_and_one_behind_another() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default(), Echo::default());
    let collector = sim.connect(METRICS);
    collector.drip(get("/healthz").as_bytes(), millis(10));
    sim.advance(secs(1));
    assert_eq!(reply(&collector, false).2, "alive\n");
    // More than are answered in a turn.
    collector.send(get("/healthz").repeat(100).as_bytes());
    sim.settle();
    let text = String::from_utf8(collector.take()).unwrap();
    assert_eq!(text.matches("alive\n").count(), 100);
    // The FIN comes behind the last request, which is answered all the same.
    collector.send(get("/metrics").as_bytes());
    collector.half_close();
    sim.settle();
    assert_eq!(reply(&collector, false).0, 200);
    assert_eq!(collector.closed(), Some(End::Fin));
    assert_eq!(server.handler().scrapes, 1);
    drop(collector);
    sim.settle();
    sim.assert_clean();
}

/// One after another wants them, as fast as it can.
#[test]
fn a_turn_collects_the_metrics_once_for_each_collector() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default(), Echo::default());
    let collector = sim.connect(METRICS);
    sim.settle();
    let turns = server.stats().turns;
    collector.send(get("/metrics").repeat(20).as_bytes());
    sim.settle();
    assert_eq!(server.handler().scrapes, 20);
    assert!(server.stats().turns - turns >= 20);
}

#[test]
fn each_thing_that_takes_too_long_ends_its_connection() {
    let mut sim = Sim::new(1);
    sim.set_buffers(4_096, 4_096);
    let server = serve(&mut sim, Config::default(), Echo::default());
    let idle = sim.connect(METRICS);
    let slow = sim.connect(METRICS);
    slow.drip(&[b'x'; 1_000], secs(1));
    let deaf = sim.connect(METRICS);
    deaf.stop_reading();
    deaf.send(get("/metrics").repeat(20).as_bytes());
    let trickle = sim.connect(METRICS);
    trickle.read_at(300);
    trickle.send(get("/metrics").repeat(3).as_bytes());
    sim.advance(secs(9));
    assert!([&idle, &slow, &deaf, &trickle].iter().all(|peer| peer.is_open()));
    sim.advance(secs(2));
    assert_eq!(slow.closed(), Some(End::Fin));
    sim.advance(secs(10));
    assert_eq!(deaf.closed(), Some(End::Reset));
    assert!(trickle.is_open() && idle.is_open());
    sim.advance(secs(40));
    assert_eq!(trickle.closed(), Some(End::Reset));
    assert!(idle.is_open());
    sim.advance(secs(91));
    assert_eq!(idle.closed(), Some(End::Fin));
    // Of those the slow, the deaf and the trickling one were at something.
    assert_eq!((server.stats().service_expired, server.stats().service_evicted), (3, 0));
    drop((idle, slow, deaf, trickle));
    sim.settle();
    assert_eq!(server.stats().service_connections, 0);
    sim.assert_clean();
}

#[test]
fn a_peer_that_never_answers_our_fin_is_waited_for_shortly() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default(), Echo::default());
    let collector = sim.connect(METRICS);
    collector.send(b"GET /healthz HTTP/1.0\r\n\r\n");
    sim.settle();
    assert_eq!(collector.closed(), Some(End::Fin));
    assert_eq!(server.stats().service_connections, 1);
    sim.advance(secs(3));
    assert_eq!(server.stats().service_connections, 0);
}

#[test]
fn a_newcomer_takes_the_place_of_the_connection_that_has_been_idle_longest() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default(), Echo::default());
    let mut collectors = Vec::new();
    for _ in 0..16 {
        collectors.push(sim.connect(METRICS));
        sim.advance(millis(100));
    }
    // The first is not idle any more, so the second is it longest.
    assert_eq!(ask(&mut sim, &collectors[0], "/healthz").0, 200);
    let newcomer = sim.connect(METRICS);
    assert_eq!(ask(&mut sim, &newcomer, "/metrics").0, 200);
    let closed: Vec<_> = (0..16).filter(|index| !collectors[*index].is_open()).collect();
    assert_eq!(closed, [1]);
    assert_eq!((server.stats().service_connections, server.stats().service_refused), (16, 0));
    // With a request under way in each there is no place.
    for collector in collectors.iter().filter(|it| it.is_open()).chain([&newcomer]) {
        collector.send(b"GET");
    }
    sim.settle();
    let refused = sim.connect(METRICS);
    sim.settle();
    assert_eq!(reply(&refused, false).0, 503);
    assert_eq!(refused.closed(), Some(End::Fin));
    assert_eq!((server.stats().service_refused, server.stats().service_evicted), (1, 1));
    assert_eq!(server.handler().opened.get(), 0);
}

#[test]
fn no_limit_of_the_application_keeps_a_collector_out() {
    let mut sim = Sim::new(1);
    let mut config = with_places(2);
    config.limits.clients.connections = Some(1);
    config.timeouts = Timeouts { first_byte: None, ..Timeouts::default() };
    let server = serve(&mut sim, config, Echo::default());
    let clients = [sim.connect(HERE), sim.connect_from("10.0.7.7:1", HERE)];
    for client in &clients {
        client.send(b"x");
    }
    sim.settle();
    let collector = sim.connect(METRICS);
    assert!(ask(&mut sim, &collector, "/metrics").1.contains("wheelhouse_connections_max 2\n"));
    assert_eq!(server.connections(), 2);
}

#[test]
fn readiness_says_why_connections_are_not_served() {
    let mut sim = Sim::new(1);
    let mut config = with_places(1);
    config.limits.at_limit = wheelhouse::config::AtLimit::Pause;
    let server = serve(&mut sim, config, Echo::default());
    let collector = sim.connect(METRICS);
    assert_eq!(ask(&mut sim, &collector, "/readyz"), (200, "ready\n".into()));
    let (client, waiting) = (sim.connect(HERE), sim.connect(HERE));
    client.send(b"x");
    sim.settle();
    assert_eq!(
        ask(&mut sim, &collector, "/readyz"),
        (503, "not ready: the table is full\n".into())
    );
    client.close();
    waiting.close();
    sim.advance(secs(1));
    assert_eq!(ask(&mut sim, &collector, "/readyz").0, 200);
    sim.fail(Call::Accept, 0, libc::EMFILE);
    let client = sim.connect(HERE);
    sim.settle();
    let short = "not ready: descriptors or memory are short\n";
    assert_eq!(ask(&mut sim, &collector, "/readyz"), (503, short.into()));
    sim.advance(secs(1));
    client.send(b"x");
    sim.settle();
    server.shutdown();
    sim.settle();
    assert_eq!(
        ask(&mut sim, &collector, "/readyz"),
        (503, "not ready: it is shutting down\n".into())
    );
    assert_eq!(ask(&mut sim, &collector, "/healthz").0, 200);
}

#[test]
fn a_shutdown_waits_for_no_collector_and_serves_them_until_it_is_over() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default(), Echo::default());
    let client = sim.connect(HERE);
    client.send(b"x");
    let idle = sim.connect(METRICS);
    sim.settle();
    server.shutdown();
    sim.advance(millis(500));
    // It is accepted while the client has yet to end.
    let late = sim.connect(METRICS);
    assert!(ask(&mut sim, &late, "/metrics").1.contains("echo_messages_total 1\n"));
    client.close();
    sim.settle();
    assert!(server.is_finished());
    assert!(!idle.is_open() && !late.is_open());
    assert_eq!(server.descriptors(), 0);
}

#[test]
fn what_panics_in_a_scrape_costs_its_reply() {
    let mut sim = Sim::new(1);
    sim.allow_panics();
    let echo = Echo { scrape: Some(|_| panic!("on purpose")), ..Echo::default() };
    let server = serve(&mut sim, Config::default(), echo);
    let (collector, client) = (sim.connect(METRICS), sim.connect(HERE));
    assert_eq!(ask(&mut sim, &collector, "/metrics").0, 500);
    assert_eq!(ask(&mut sim, &collector, "/healthz").0, 200);
    client.send(b"x");
    sim.settle();
    client.expect(b"x");
    assert_eq!(server.stats().panics, 1);
}

#[test]
fn what_an_application_writes_beyond_the_bound_is_left_out_and_counted() {
    let mut sim = Sim::new(1);
    let scrape = |out: &mut wheelhouse::metrics::MetricsWriter| {
        let mut family = out.gauge("many", "Many.");
        for number in 0..40_000_u64 {
            family.labelled(&[("number", &number.to_string()), ("text", "0123456789")], number);
        }
    };
    let server =
        serve(&mut sim, Config::default(), Echo { scrape: Some(scrape), ..Echo::default() });
    let collector = sim.connect(METRICS);
    collector.send(get("/metrics").as_bytes());
    sim.advance(secs(5));
    let (status, _, text) = reply(&collector, false);
    assert_eq!(status, 200);
    check(&text);
    assert!(text.len() > 1 << 20 && text.len() < (1 << 20) + 32 * 1024);
    let written = text.lines().filter(|line| line.starts_with("many{")).count() as u64;
    assert_eq!(server.stats().metrics_dropped, 40_000 - written);
}

#[test]
fn a_failed_accept_is_tried_again() {
    for errno in [libc::EMFILE, libc::ECONNABORTED, libc::EINTR] {
        let mut sim = Sim::new(1);
        let _server = serve(&mut sim, Config::default(), Echo::default());
        sim.settle();
        sim.fail(Call::Accept, 0, errno);
        let mut collector = sim.connect(METRICS);
        sim.advance(millis(200));
        if errno == libc::ECONNABORTED {
            // That one was lost.
            collector = sim.connect(METRICS);
        }
        assert_eq!(ask(&mut sim, &collector, "/healthz").0, 200, "errno {errno}");
        assert_eq!(sim.failures_left(), 0);
    }
}

#[test]
fn a_failed_read_or_write_ends_its_connection_alone() {
    for call in [Call::Read, Call::Write] {
        let mut sim = Sim::new(1);
        let server = serve(&mut sim, Config::default(), Echo::default());
        let (one, two) = (sim.connect(METRICS), sim.connect(METRICS));
        sim.settle();
        sim.fail(call, 0, libc::ECONNRESET);
        one.send(get("/healthz").as_bytes());
        sim.settle();
        assert!(!one.is_open(), "{call:?}");
        assert_eq!(ask(&mut sim, &two, "/healthz").0, 200);
        assert_eq!(server.stats().service_connections, 1);
    }
}
