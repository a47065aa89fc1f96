//! What limits do at their edges, to those that are within them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::sim::{Call, End, Link, Peer, Server, Sim, errno};
use wheelhouse::{
    Address, AtLimit, CloseReason, Closed, Config, Conn, Context, Handler, ListenConfig, Origin,
    Rate, Timeout,
};

use super::{SERVER, Slow, crowded, evicted, idle, millis, secs, world};
use crate::scenarios::Echo;

#[test]
fn arrivals_one_by_one_use_all_of_their_rate() {
    let mut config = Config::default();
    config.limits.accept_rate = Some(Rate::new(4, secs(10)));
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Echo);
    let _peers: Vec<_> = (0..4)
        .map(|_| {
            let peer = sim.connect(SERVER);
            sim.advance(millis(10));
            peer
        })
        .collect();
    assert_eq!(server.stats().accepted, 4);
}

#[test]
fn a_client_over_its_own_limit_takes_no_others_place() {
    let mut config = crowded(9);
    config.limits.clients.connections = Some(1);
    config.limits.clients.allowed = vec!["10.9.0.0/16".parse().unwrap()];
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Echo);
    let _friends = idle(&mut sim, 8);
    let greedy: Vec<_> = (0..9).map(|_| sim.connect_from("10.66.6.6:0", SERVER)).collect();
    sim.advance(millis(120));
    assert_eq!((server.stats().refused_client, evicted(&server)), (8, 0));
    assert_eq!(greedy.iter().filter(|peer| peer.is_open()).count(), 1);
}

#[test]
fn a_shortage_that_lasts_costs_few_their_place() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Echo);
    let _friends = idle(&mut sim, 200);
    let _newcomer = sim.connect(SERVER);
    for after in 0..10 {
        server.fail(Call::Accept, after, errno::ENFILE);
    }
    sim.advance(millis(90));
    assert_eq!(evicted(&server), 25, "an eighth, once");
    sim.advance(secs(20));
    assert!(server.stats().accept_pauses >= 10);
    assert!(evicted(&server) < 200, "at most an eighth in each pause");
}

#[test]
fn connections_that_were_aborted_cost_no_other_its_place() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Echo);
    let _friends = idle(&mut sim, 20);
    // More than a turn takes before it suspects a shortage.
    for after in 0..40 {
        server.fail(Call::Accept, after, errno::ECONNABORTED);
    }
    let _newcomers: Vec<_> = (0..40).map(|_| sim.connect(SERVER)).collect();
    sim.advance(secs(5));
    assert!(server.stats().accept_pauses > 0);
    assert_eq!(evicted(&server), 0);
}

/// Pauses a connection that says so, and sends back the rest.
struct Holder;

impl Handler for Holder {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        match input.first() {
            Some(b'p') => conn.pause_reading(),
            Some(b'f') => {
                conn.write_bytes(vec![b'f'; 4 << 20]);
                conn.shutdown_write();
            }
            _ => conn.write(input),
        }
        input.clear();
    }
}

#[test]
fn a_paused_connection_is_not_evicted() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, crowded(1), Holder);
    let peer = sim.connect(SERVER);
    peer.send(b"p");
    sim.settle();
    peer.send(b"the rest of an upload");
    let _newcomer = sim.connect(SERVER);
    sim.advance(secs(1));
    assert_eq!(evicted(&server), 0);
    assert!(peer.is_open());
}

#[test]
fn no_fin_follows_what_was_dropped() {
    let mut config = Config::default();
    config.limits.buffered_max = 1 << 20;
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Holder);
    let peer = sim.connect_with_window(SERVER, 8_192);
    peer.stop_reading();
    peer.send(b"f");
    sim.settle();
    server.expect_closed(CloseReason::BufferLimit);
    peer.resume_reading();
    sim.settle();
    assert_eq!(peer.closed(), Some(End::Reset));
}

#[test]
fn no_connection_is_evicted_where_newcomers_wait() {
    let mut config = crowded(100);
    config.limits.at_limit = AtLimit::Pause;
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Echo);
    let _peers = idle(&mut sim, 97);
    sim.advance(secs(5));
    assert_eq!(evicted(&server), 0);
}

/// Says something to all.
struct Crier;

impl Handler for Crier {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        for id in conn.cx().ids() {
            if let Some(mut other) = conn.other(id) {
                other.write(&[b'x'; 1 << 20]);
            }
        }
        input.clear();
    }
}

#[test]
fn what_is_said_to_everybody_is_bounded_too() {
    let mut config = crowded(50);
    config.limits.buffered_max = 4 << 20;
    config.limits.output_max = 1 << 20;
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Crier);
    let peers: Vec<_> = (0..50).map(|_| sim.connect_with_window(SERVER, 4_096)).collect();
    for peer in &peers {
        peer.stop_reading();
    }
    sim.settle();
    peers[0].send(b"!");
    sim.settle();
    let stats = server.stats();
    assert!(stats.closed(CloseReason::BufferLimit) >= 40, "{stats}");
    assert!(stats.buffered <= 4 << 20);
}

#[test]
fn what_we_send_is_no_sign_of_life() {
    struct Asker;
    impl Handler for Asker {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }
        fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
            input.clear();
        }
        fn on_health_check(&mut self, conn: &mut Conn<'_>, _: &mut ()) {
            conn.write(b"well?");
        }
    }
    let mut config = Config::default();
    config.timeouts.ping_after = Some(secs(60));
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Asker);
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.advance(secs(62));
    peer.expect(b"well?");
    server.with(|_, cx| {
        let id = cx.ids()[0];
        cx.conn(id).expect("it is open").write(b"news");
    });
    sim.advance(secs(4));
    assert_eq!(peer.closed(), Some(End::Fin));
    server.expect_closed(CloseReason::Timeout(Timeout::Ping));
}

#[test]
fn operators_are_kept_alive_in_a_crowd() {
    struct Asked(Vec<bool>);
    impl Handler for Asked {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }
        fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
            self.0.push(conn.decide_keep_alive(0).stays());
            input.clear();
        }
    }
    let mut sim = world(1);
    let server = sim.spawn("10.0.0.1", crowded(100), Asked(Vec::new()), |reactor| {
        reactor.listen(SERVER).unwrap();
        let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
        reactor.listen_with("10.0.0.1:9090", listen).unwrap();
    });
    let _crowd: Vec<_> = (0..92).map(|_| sim.connect(SERVER)).collect();
    sim.settle();
    let operator = sim.connect("10.0.0.1:9090");
    operator.send(b"x");
    sim.settle();
    assert_eq!(server.handler().0, [true]);
}

#[test]
fn a_connection_that_waits_when_the_end_comes_is_accepted_at_any_rate() {
    let mut config = Config::default();
    config.limits.accept_rate = Some(Rate::per_second(2));
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Echo);
    let peers: Vec<_> = (0..6).map(|_| sim.connect(SERVER)).collect();
    for peer in &peers {
        peer.send(b"x");
    }
    sim.settle();
    server.shutdown();
    sim.settle();
    for peer in peers {
        peer.expect(b"x");
    }
}

/// Asks an upstream without saying that it owes or awaits anything there.
struct Relay(Address);

impl Handler for Relay {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, _: &mut ()) {
        if conn.origin() == Origin::Connect {
            conn.write(&[b'u'; 1 << 20]);
        }
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        input.clear();
        if conn.origin() != Origin::Connect {
            conn.begin_request();
            conn.connect(self.0.clone()).expect("there is room");
        }
    }
}

#[test]
fn what_an_inbound_request_needs_outlives_the_call_for_the_end() {
    let mut sim = world(1);
    let listener = sim.listen("10.0.0.2:80", 8);
    let server = sim.serve(SERVER, Config::default(), Relay(listener.address()));
    let peer = sim.connect(SERVER);
    peer.send(b"question");
    sim.settle();
    let upstream = listener.accept().expect("a dial");
    upstream.read_at(1_000_000);
    server.shutdown();
    sim.advance(secs(5));
    assert_eq!(upstream.take().len(), 1 << 20);
    assert_eq!(upstream.closed(), None);
}

#[test]
fn a_connection_that_is_served_when_the_end_comes_has_its_deadline() {
    let config = Config { shutdown_timeout: Some(secs(120)), ..Config::default() };
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Slow(secs(50)));
    let peer = sim.connect(SERVER);
    sim.settle();
    server.shutdown();
    // It is given a time to end, and asks for something before that comes.
    sim.advance(millis(500));
    peer.send(b"x");
    sim.advance(secs(60));
    peer.expect(b"done");
    drop(peer);
    sim.advance(secs(1));
    server.expect_closed(CloseReason::Shutdown);
    assert!(server.is_finished());
}

/// Counts one request, and asks about staying whenever it is sent something else.
struct Asker;

impl Handler for Asker {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        if &input[..] == b"request" {
            conn.begin_request();
            conn.write(b"reply");
            conn.end_request();
        } else {
            let answer: &[u8] = if conn.decide_keep_alive(0).stays() { b"stay" } else { b"go" };
            conn.write(answer);
        }
        input.clear();
    }
}

#[test]
fn a_no_is_final_even_outside_of_a_request() {
    let mut config = Config::default();
    config.limits.requests_max = Some(2);
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Asker);
    let peer = sim.connect(SERVER);
    for (line, reply) in [(&b"request"[..], &b"reply"[..]), (b"x", b"go")] {
        peer.send(line);
        sim.settle();
        peer.expect(reply);
    }
    assert_eq!(peer.closed(), Some(End::Fin));
    peer.close();
    sim.settle();
    server.expect_closed(CloseReason::MaxRequests);
}

/// Says something to all when the end begins, and whenever one leaves.
struct Parting;

impl Parting {
    fn say(cx: &mut Context<'_>) {
        for id in cx.ids() {
            if let Some(mut conn) = cx.conn(id) {
                conn.write(&[b'x'; 100_000]);
            }
        }
    }
}

impl Handler for Parting {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        input.clear();
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, _: Closed, _: ()) {
        Self::say(cx);
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        Self::say(cx);
    }
}

#[test]
fn what_is_said_at_the_end_is_bounded_too() {
    for stops in [false, true] {
        let mut config = Config::default();
        config.limits.buffered_max = 350_000;
        let mut sim = world(1);
        // What the kernel takes is not shed.
        sim.set_buffers(4_096, 4_096);
        let server = sim.serve(SERVER, config, Parting);
        let peers: Vec<_> = (0..6)
            .map(|_| {
                let peer = sim.connect_with_window(SERVER, 8_192);
                peer.stop_reading();
                peer
            })
            .collect();
        sim.settle();
        // The world looks at the bound after every turn.
        if stops {
            server.shutdown();
        } else {
            peers[0].reset();
        }
        sim.advance(millis(1));
        assert!(server.stats().closed(CloseReason::BufferLimit) > 0);
        sim.advance(secs(100));
    }
}

/// Owes a reply for ever, and takes its time over whatever else comes.
struct Owing<F> {
    stall: F,
}

impl<F: Fn(Duration) + 'static> Handler for Owing<F> {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        if conn.in_flight() == 0 {
            conn.begin_request();
        }
        (self.stall)(millis(20));
        input.clear();
    }
}

#[test]
fn a_reply_that_is_owed_is_not_put_off_by_slow_callbacks() {
    let mut sim = world(1);
    let stall = sim.stall();
    let server = sim.serve(SERVER, Config::default(), Owing { stall });
    let peer = sim.connect(SERVER);
    for _ in 0..14 {
        peer.send(b"x");
        sim.advance(secs(5));
    }
    assert!(peer.closed().is_some());
    peer.close();
    sim.settle();
    server.expect_closed(CloseReason::Timeout(Timeout::Response));
}

/// Panics over `p`, and sends back what else it reads.
struct Fragile;

impl Handler for Fragile {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        let at = conn.now() + millis(100);
        conn.set_timer(at);
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        assert_ne!(&input[..], b"p", "told to");
        conn.write(input);
        input.clear();
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, _: &mut ()) {
        conn.write(b"t");
    }
}

#[test]
fn a_turn_that_a_panic_cuts_short_leaves_nothing_undone() {
    for panicking in [0, 1, 20, 39] {
        let mut sim = world(1);
        sim.allow_panics();
        let server = sim.serve(SERVER, Config::default(), Fragile);
        let peers: Vec<_> = (0..40).map(|_| sim.connect(SERVER)).collect();
        sim.advance(millis(95));
        // In one turn: bytes for all, a newcomer, a closure, and soon after it timers.
        for (at, peer) in peers.iter().enumerate() {
            peer.send(if at == panicking { b"p" } else { b"x" });
        }
        let newcomer = sim.connect(SERVER);
        newcomer.send(b"n");
        let told = Arc::new(AtomicBool::new(false));
        let tells = Arc::clone(&told);
        server.handle().post(move |_, _| tells.store(true, Ordering::Relaxed)).unwrap();
        sim.settle();
        assert!(told.load(Ordering::Relaxed));
        newcomer.expect(b"n");
        for (at, peer) in peers.iter().enumerate() {
            let expected = if at == panicking { &b""[..] } else { b"x" };
            assert_eq!((at, peer.take()), (at, expected.to_vec()));
        }
        assert_eq!(peers[panicking].closed(), Some(End::Reset));
        sim.advance(millis(20));
        let timed = peers.iter().filter(|peer| peer.take() == b"t").count();
        assert_eq!((timed, server.stats().panics), (39, 1));
    }
}

/// Works for a millisecond over each input; panics over `p`, and sends back what else it reads.
struct Fuse {
    work: Box<dyn Fn(Duration)>,
    /// Inputs since a connection was closed, and the most of these.
    inputs: u32,
    inputs_max: u32,
}

impl Handler for Fuse {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        (self.work)(millis(1));
        self.inputs += 1;
        self.inputs_max = self.inputs_max.max(self.inputs);
        assert_ne!(&input[..], b"p", "told to");
        conn.write(input);
        input.clear();
    }

    fn on_closed(&mut self, _: &mut Context<'_>, _: Closed, (): ()) {
        self.inputs = 0;
    }
}

/// 300 connections whose next callback panics, all in one batch of events.
fn storm(sim: &mut Sim, panic_limit: Option<Rate>) -> (Server<Fuse>, Vec<Peer>) {
    sim.allow_panics();
    let mut config = Config::default();
    config.limits.lag_max = None;
    config.panic_limit = panic_limit;
    let fuse = Fuse { work: Box::new(sim.stall()), inputs: 0, inputs_max: 0 };
    let server = sim.serve(SERVER, config, fuse);
    let peers: Vec<_> = (0..300).map(|_| sim.connect(SERVER)).collect();
    sim.settle();
    peers.iter().for_each(|peer| peer.send(b"p"));
    (server, peers)
}

#[test]
fn panics_in_a_row_keep_no_step_from_its_turn() {
    let mut sim = world(1);
    let (server, peers) = storm(&mut sim, None);
    sim.advance(secs(1));
    // What panicked is closed, which is a step of its own, before the next ones are served.
    let most = server.with(|fuse, _| fuse.inputs_max);
    assert!(most <= 4, "{most}");
    assert_eq!(server.stats().panics, 300);
    assert!(peers.iter().all(|peer| peer.closed() == Some(End::Reset)));
}

#[test]
fn panics_in_a_row_stop_the_reactor_at_the_limit() {
    let mut sim = world(1);
    let (server, _peers) = storm(&mut sim, Some(Rate::new(10, secs(60))));
    sim.advance(secs(1));
    assert!(server.is_finished());
    assert!(server.stats().panics < 40, "{}", server.stats().panics);
}

#[test]
fn a_client_at_its_limit_is_refused_at_a_full_table_too() {
    let mut config = crowded(3);
    config.limits.at_limit = AtLimit::Pause;
    config.limits.clients.connections = Some(1);
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Slow(secs(60)));
    let from = |sim: &mut Sim, client: u32| {
        let peer = sim.connect_from(format!("10.9.0.{client}:0").as_str(), SERVER);
        peer.send(b"x");
        peer
    };
    let _first = from(&mut sim, 1);
    sim.settle();
    let second = from(&mut sim, 1);
    sim.advance(millis(10));
    let _others: Vec<_> = (2..6).map(|client| from(&mut sim, client)).collect();
    sim.advance(millis(120));
    assert_eq!(second.closed(), Some(End::Fin));
    assert_eq!((server.stats().accepted, server.stats().refused_client), (3, 1));
    let turns = server.stats().turns;
    sim.advance(secs(1));
    assert!(server.stats().turns - turns < 30, "{}", server.stats().turns - turns);
}

#[test]
fn a_client_at_its_limit_takes_no_descriptors_from_others() {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    let mut sim = world(1);
    sim.set_descriptors(32);
    let server = sim.serve(SERVER, config, Echo);
    let honest: Vec<_> = (1..=20)
        .map(|client| sim.connect_from(format!("10.9.0.{client}:0").as_str(), SERVER))
        .collect();
    sim.advance(millis(50));
    let _greedy: Vec<_> = (0..400)
        .map(|_| {
            let peer = sim.connect_from("10.66.6.6:0", SERVER);
            sim.advance(millis(6));
            peer
        })
        .collect();
    assert_eq!(evicted(&server), 0);
    assert!(honest.iter().all(|peer| peer.is_open()));
    assert!(server.stats().refused_client > 390, "{}", server.stats().refused_client);
}

#[test]
fn a_greedy_client_takes_no_time_from_a_client_that_dials_again() {
    for flood in [0, 3, 17, 60] {
        let mut config = Config::default();
        config.limits.clients.connections = Some(1);
        let mut sim = world(1);
        let link = Link { latency: Duration::from_micros(100), ..Link::LOOPBACK };
        sim.set_link(Link { latency: millis(20), ..link });
        let _server = sim.serve(SERVER, config, Echo);
        let first = sim.connect_from("10.9.0.1:0", SERVER);
        sim.advance(millis(100));
        sim.set_link(link);
        let mut greedy = vec![sim.connect_from("10.66.6.6:0", SERVER)];
        sim.advance(millis(5));
        first.close();
        let second = sim.connect_from("10.9.0.1:0", SERVER);
        second.send(b"x");
        sim.advance(millis(1));
        greedy.extend((0..flood).map(|_| sim.connect_from("10.66.6.6:0", SERVER)));
        sim.advance(millis(60));
        assert_eq!((flood, second.closed()), (flood, None));
        second.expect(b"x");
    }
}
