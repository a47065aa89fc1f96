//! The simulated world, seen by the tests that are written in it.

#[path = "scenarios/echo.rs"]
mod echo;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::sim::{self, Call, End, Link, Personality, Random, Server, Sim, Watched, errno};
use wheelhouse::{
    Address, AtLimit, CloseReason, Closed, Config, Conn, ConnId, Context, Handle, Handler,
    ListenConfig, PostError, Target, Timeout,
};

use crate::echo::Echo;

const SERVER: &str = "10.0.0.1:7";

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn serve(sim: &mut Sim) -> Server<Echo> {
    sim.serve(SERVER, Config::default(), Echo)
}

fn reasons<H: Handler>(server: &Server<H>) -> Vec<CloseReason> {
    server.take_closed().iter().map(|closed: &Closed| closed.reason).collect()
}

#[test]
fn an_idle_timeout_is_tested_to_the_tick() {
    let mut config = Config::default();
    config.timeouts.idle = Some(secs(30));
    let mut sim = Sim::new(7);
    let server = sim.serve(SERVER, config, Echo);
    let peer = sim.connect(server.address());
    peer.send(b"hi");
    sim.settle();
    peer.expect(b"hi");
    sim.advance(millis(29_990));
    assert!(peer.is_open());
    sim.advance(millis(20));
    assert_eq!(peer.closed(), Some(End::Fin));
    assert_eq!(reasons(&server), [CloseReason::Timeout(Timeout::Idle)]);
    sim.assert_clean();
}

#[test]
fn the_loop_comes_up_once_for_what_a_connection_left_in_the_wheel() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peers = [(); 100].map(|()| sim.connect(&server));
    sim.settle();
    peers.iter().for_each(|peer| peer.close());
    sim.settle();
    assert_eq!(server.connections(), 0);
    let turns = server.stats().turns;
    sim.advance(secs(3_600));
    assert!(server.stats().turns - turns <= 2, "they came together and are due together");
    let turns = server.stats().turns;
    sim.advance(secs(3_600));
    assert_eq!(server.stats().turns, turns, "and then it sleeps");
}

fn is_in_first_place(closed: &Closed) -> bool {
    closed.id.to_string().starts_with("0.")
}

#[test]
fn a_place_that_is_filled_anew_ends_its_connection_no_earlier() {
    let mut sim = Sim::new(1);
    let mut config = Config::default();
    config.timeouts.idle = Some(secs(30));
    let server = sim.serve(SERVER, config, Echo);
    let first = sim.connect(&server);
    first.send(b"x");
    sim.advance(secs(20));
    first.close();
    sim.settle();
    let second = sim.connect(&server);
    second.send(b"x");
    sim.advance(millis(29_980));
    assert!(second.is_open(), "what the first one left came up 20 s ago");
    sim.advance(millis(40));
    assert_eq!(second.closed(), Some(End::Fin));
    assert!(server.take_closed().iter().all(is_in_first_place));
}

#[test]
fn a_place_that_is_filled_anew_ends_its_connection_no_later() {
    let mut sim = Sim::new(1);
    let mut config = Config::default();
    config.timeouts.first_byte = Some(secs(5));
    config.timeouts.idle = Some(secs(60));
    let server = sim.serve(SERVER, config, Echo);
    let first = sim.connect(&server);
    first.send(b"x");
    // Its entry stands at the end of its idle time.
    sim.advance(secs(10));
    first.close();
    sim.settle();
    let second = sim.connect(&server);
    sim.advance(millis(4_980));
    assert!(second.is_open());
    sim.advance(millis(40));
    assert_eq!(second.closed(), Some(End::Fin));
    let closed = server.take_closed();
    assert!(closed.iter().all(is_in_first_place));
    assert_eq!(closed[1].reason, CloseReason::Timeout(Timeout::FirstByte));
}

#[test]
fn the_loop_comes_up_once_for_a_connection_that_times_out() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let mut peers = Vec::new();
    for _ in 0..50 {
        peers.push(sim.connect(&server));
        sim.advance(millis(100));
    }
    let turns = server.stats().turns;
    sim.advance(secs(3_600));
    assert_eq!(server.connections(), 0);
    assert_eq!(server.stats().turns - turns, 50);
}

#[test]
fn an_entry_that_is_far_ahead_does_not_stay_with_its_place() {
    let mut config = Config::default();
    config.timeouts.first_byte = Some(secs(86_400));
    config.timeouts.idle = Some(secs(86_400));
    let mut sim = Sim::new(1);
    let server = sim.serve(SERVER, config, Echo);
    let peer = sim.connect(&server);
    sim.settle();
    peer.close();
    sim.settle();
    let turns = server.stats().turns;
    sim.advance(secs(90_000));
    assert_eq!(server.stats().turns, turns, "the loop sleeps");
}

#[test]
fn a_crowd_that_left_is_no_spin() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let mut peers = Vec::new();
    for _ in 0..10 {
        peers.extend((0..1_000).map(|_| sim.connect(&server)));
        sim.settle();
    }
    peers.iter().for_each(|peer| peer.close());
    sim.advance(secs(15));
    assert_eq!(server.stats().accepted, 10_000);
    sim.assert_clean();
}

#[test]
fn a_dribble_is_cut_off_at_the_request_deadline() {
    struct Collect;
    impl Handler for Collect {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }
        fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
    }
    let mut sim = Sim::new(1);
    let server = sim.serve(SERVER, Config::default(), Collect);
    let peer = sim.connect(server.address());
    peer.drip(&[b'x'; 100], secs(1));
    sim.advance(Config::default().timeouts.request.unwrap() + millis(20));
    assert_eq!(reasons(&server), [CloseReason::Timeout(Timeout::Request)]);
    assert!(peer.closed().is_some());
}

#[test]
fn a_piece_of_any_size_arrives_alone() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(&server);
    for (piece, arrivals) in [(1, 10), (3, 4), (10, 1), (1_000, 1)] {
        peer.send_in_pieces(b"0123456789", piece, millis(100));
        for index in 0..arrivals {
            sim.settle();
            let want = &b"0123456789"[piece * index..10.min(piece * (index + 1))];
            peer.expect(want);
            sim.advance(millis(100));
        }
        peer.expect(b"");
    }
}

/// Echoes a line, of which it keeps what has come in its session.
struct LineInSession {
    expects_more: bool,
    reply_of: fn(&[u8]) -> Vec<u8>,
}

impl Handler for LineInSession {
    type Session = Vec<u8>;

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Vec<u8>> {
        conn.write(b"welcome\n");
        Some(Vec::new())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, line: &mut Vec<u8>, input: &mut BytesMut) {
        line.extend_from_slice(&input.split());
        if line.ends_with(b"\n") {
            conn.write(&(self.reply_of)(line));
            line.clear();
        } else if self.expects_more {
            conn.expect_more_input();
        }
    }
}

fn check_splits(expects_more: bool, reply_of: fn(&[u8]) -> Vec<u8>) {
    let mut sim = Sim::new(1);
    let handler = LineInSession { expects_more, reply_of };
    let server = sim.serve(SERVER, Config::default(), handler);
    sim.assert_every_split(&server, b"line\n", b"line\n");
    sim.settle();
    assert_eq!(server.stats().accepted, 1 + 4 + 1, "whole, in two parts, in single bytes");
    sim.assert_clean();
}

#[test]
fn a_request_that_is_served_alike_however_it_is_split_passes() {
    check_splits(true, <[u8]>::to_vec);
}

#[test]
#[should_panic(expected = "split after 1 of 5 bytes, and its connection is Idle while 4 bytes")]
fn a_part_of_a_request_that_is_kept_without_a_word_is_found() {
    check_splits(false, <[u8]>::to_vec);
}

#[test]
#[should_panic(expected = "sent at once, and the peer read \"LINE\\n\" instead of \"line\\n\"")]
fn a_reply_that_is_wrong_is_found_by_the_request_as_a_whole() {
    check_splits(true, <[u8]>::to_ascii_uppercase);
}

/// Replies to each call of `on_data`, whatever has come.
struct ReplyPerRead;

impl Handler for ReplyPerRead {
    type Session = usize;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<usize> {
        Some(0)
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, missing: &mut usize, input: &mut BytesMut) {
        if *missing == 0 {
            *missing = 4;
        }
        *missing -= input.len();
        input.clear();
        conn.count_request();
        if *missing > 0 {
            conn.expect_more_input();
        } else {
            conn.write(b"done");
        }
    }
}

#[test]
#[should_panic(
    expected = "counts for 2 if it is split after 1 of 4 bytes, and for 1 if it is sent"
)]
fn a_request_that_counts_once_for_each_of_its_parts_is_found() {
    let mut sim = Sim::new(1);
    let server = sim.serve(SERVER, Config::default(), ReplyPerRead);
    sim.assert_every_split(&server, b"four", b"done");
}

#[test]
fn peers_do_what_they_are_told() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let [reader, stopped, slow, gone] = [(); 4].map(|()| sim.connect(server.address()));
    stopped.stop_reading();
    slow.read_at(1_000);
    for peer in [&reader, &stopped, &slow] {
        peer.send(&[b'x'; 10_000]);
    }
    sim.settle();
    gone.reset();
    sim.advance(secs(5));
    assert_eq!(reader.take().len(), 10_000);
    assert!((4_900..=5_100).contains(&slow.take().len()));
    assert_eq!(stopped.take(), b"");
    stopped.resume_reading();
    sim.settle();
    assert_eq!(stopped.take().len(), 10_000);
    reader.half_close();
    sim.settle();
    assert_eq!(reader.closed(), Some(End::Fin));
    assert_eq!(reasons(&server), [CloseReason::PeerReset, CloseReason::PeerEof]);
}

#[test]
fn a_link_has_latency_and_bandwidth() {
    let mut sim = Sim::new(1);
    sim.set_link(Link { latency: millis(100), bandwidth: Some(1_000), ..Link::LOOPBACK });
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    peer.send(&[b'x'; 1_000]);
    // The handshake, a second on the line, the way there and back, and a second on the line.
    sim.advance(millis(200 + 1_000 + 100 + 1_000 + 90));
    assert_eq!(peer.take(), b"");
    sim.advance(millis(20));
    assert_eq!(peer.take().len(), 1_000);
}

#[test]
fn a_partition_holds_back_and_a_repair_lets_go() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    peer.send(b"a");
    sim.settle();
    peer.expect(b"a");
    let (here, there) = (sim.peers_ip(), server.ip());
    sim.partition(here, there);
    peer.send(b"b");
    sim.advance(secs(3));
    peer.expect(b"");
    sim.repair(here, there);
    sim.advance(secs(5));
    peer.expect(b"b");
    // For ever is too long, even for TCP.
    sim.partition(here, there);
    peer.send(b"c");
    sim.advance(secs(3_600));
    assert_eq!(peer.closed(), Some(End::TimedOut));
}

#[test]
fn a_dial_without_a_listener_is_refused_or_not_answered() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let wrong_port: Address = "10.0.0.1:8".parse().unwrap();
    let nowhere: Address = "203.0.113.1:7".parse().unwrap();
    let (refused, lost) = (sim.connect(wrong_port), sim.connect(nowhere));
    sim.settle();
    assert_eq!(refused.closed(), Some(End::Refused));
    assert_eq!(lost.closed(), None);
    sim.advance(secs(200));
    assert_eq!(lost.closed(), Some(End::TimedOut));
    drop(server);
}

#[test]
fn a_full_backlog_takes_no_connection_until_there_is_room() {
    let mut sim = Sim::new(1);
    let mut config = Config::default();
    config.limits.max_connections = Some(1);
    config.timeouts.idle = Some(secs(10));
    let server = sim.spawn("10.0.0.1", config, Echo, |reactor| {
        let listen = ListenConfig { backlog: 2, ..ListenConfig::default() };
        reactor.listen_with(SERVER, listen).unwrap();
    });
    let peers: Vec<_> = (0..5).map(|_| sim.connect(server.address())).collect();
    sim.settle();
    // The backlog is full before the first of it is taken; a dial that finds it so is repeated.
    assert_eq!(peers.iter().filter(|peer| peer.is_open()).count(), 2);
    sim.advance(secs(2));
    assert_eq!(peers.iter().filter(|peer| peer.is_open()).count(), 3);
    for peer in &peers {
        peer.send(b"x");
    }
    // One after the other is served, and closed as idle.
    sim.advance(secs(600));
    assert!(peers.iter().all(|peer| peer.take() == b"x"));
}

#[test]
fn a_single_call_can_be_made_to_fail() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    sim.fail(Call::Accept, 0, libc::EMFILE);
    let peer = sim.connect(server.address());
    peer.send(b"x");
    sim.advance(millis(50));
    peer.expect(b"");
    assert_eq!(server.stats().accept_pauses, 1);
    sim.advance(millis(100));
    peer.expect(b"x");
}

#[test]
fn a_listener_that_dies_leaves_the_others() {
    let mut sim = Sim::new(1);
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |reactor| {
        reactor.listen("10.0.0.1:7").unwrap();
        reactor.listen("10.0.0.1:8").unwrap();
    });
    sim.settle();
    sim.fail(Call::Accept, 0, libc::EBADF);
    let lost = sim.connect("10.0.0.1:7".parse::<Address>().unwrap());
    sim.settle();
    assert_eq!(lost.closed(), Some(End::Reset));
    assert_eq!(server.descriptors(), 1);
    let peer = sim.connect("10.0.0.1:8".parse::<Address>().unwrap());
    peer.send(b"x");
    sim.settle();
    peer.expect(b"x");
}

#[test]
fn descriptors_run_out_and_come_back() {
    let mut sim = Sim::new(1);
    let mut config = Config::default();
    config.limits.at_limit = AtLimit::Pause;
    let server = sim.serve(SERVER, config, Echo);
    // Five that every process has, the listener, and one connection.
    server.set_descriptors(7);
    let first = sim.connect(server.address());
    first.send(b"x");
    sim.settle();
    first.expect(b"x");
    let second = sim.connect(server.address());
    second.send(b"y");
    sim.advance(secs(1));
    second.expect(b"");
    first.close();
    sim.settle();
    second.expect(b"y");
    assert_eq!(server.descriptors(), 2);
}

/// Passes bytes on: an inbound connection dials the upstream and is paired with it.
struct Proxy {
    upstream: Target,
}

impl Handler for Proxy {
    type Session = Option<ConnId>;

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Option<ConnId>> {
        match conn.owner() {
            Some(owner) => Some(Some(owner)),
            None => conn.connect(self.upstream.clone()).ok().map(Some),
        }
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, pair: &mut Option<ConnId>, input: &mut BytesMut) {
        let bytes = input.split();
        if let Some(mut other) = pair.and_then(|id| conn.other(id)) {
            other.write(&bytes);
        }
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, _: Closed, pair: Option<ConnId>) {
        if let Some(mut other) = pair.and_then(|id| cx.conn(id)) {
            other.close();
        }
    }
}

#[test]
fn several_reactors_live_in_one_world() {
    let mut sim = Sim::new(1);
    sim.set_link(Link { latency: millis(5), ..Link::LOOPBACK });
    let server = serve(&mut sim);
    sim.set_name("echo.internal", vec![server.address()], millis(3));
    let upstream = "echo.internal:7".parse().unwrap();
    let proxy = sim.serve("10.0.0.2:80", Config::default(), Proxy { upstream });
    let peer = sim.connect(proxy.address());
    peer.send(b"through");
    sim.settle();
    sim.advance(millis(50));
    peer.expect(b"through");
    assert_eq!(server.connections(), 1);
    peer.close();
    sim.advance(millis(100));
    assert_eq!((server.connections(), proxy.connections()), (0, 0));
    sim.assert_clean();
}

#[test]
fn a_test_plays_what_a_reactor_dials() {
    let mut sim = Sim::new(1);
    let listening_on = Address::Ip((sim.peers_ip(), 5432).into());
    let listener = sim.listen(listening_on.clone(), 16);
    let proxy =
        sim.serve("10.0.0.2:80", Config::default(), Proxy { upstream: listening_on.into() });
    let peer = sim.connect(proxy.address());
    peer.send(b"question");
    sim.settle();
    let database = listener.accept().expect("the proxy has dialled");
    sim.settle();
    database.expect(b"question");
    database.send(b"answer");
    sim.settle();
    peer.expect(b"answer");
}

#[test]
fn a_shutdown_ends_what_there_is() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peers = [(); 5].map(|()| sim.connect(server.address()));
    sim.settle();
    server.shutdown();
    sim.advance(secs(60));
    assert!(server.is_finished());
    assert!(peers.iter().all(|peer| peer.closed().is_some()));
    assert_eq!(server.stats().closed(CloseReason::Shutdown), 5);
    sim.assert_clean();
}

#[test]
fn a_clock_that_jumps_expires_what_is_due_once() {
    for personality in Personality::ALL {
        let mut sim = Sim::new(1);
        sim.set_personality(personality);
        let server = serve(&mut sim);
        let peers = [(); 20].map(|()| sim.connect(server.address()));
        sim.settle();
        sim.jump_clocks(secs(3_600));
        sim.advance(secs(1));
        assert!(peers.iter().all(|peer| peer.closed() == Some(End::Fin)));
        assert_eq!(server.stats().closed(CloseReason::Timeout(Timeout::FirstByte)), 20);
        sim.assert_clean();
    }
}

#[test]
fn a_clock_that_is_set_back_ends_nothing_early_and_nothing_never() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    sim.advance(secs(5));
    let first_byte = Config::default().timeouts.first_byte.unwrap();
    sim.set_back_clocks(secs(3));
    sim.advance(first_byte - secs(5));
    assert!(peer.is_open(), "the clock has three seconds to make up for");
    sim.advance(secs(3) + millis(20));
    assert_eq!(peer.closed(), Some(End::Fin));
    assert_eq!(reasons(&server), [CloseReason::Timeout(Timeout::FirstByte)]);
    sim.assert_clean();
}

#[test]
fn a_wake_up_that_fails_is_an_error_of_the_post() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    sim.settle();
    let handle = server.handle();
    server.fail_wakes(2);
    let ran = Arc::new(AtomicU32::new(0));
    let count = |by: u32| {
        let ran = Arc::clone(&ran);
        handle.post(move |_, _| {
            ran.fetch_add(by, Relaxed);
        })
    };
    assert_eq!(count(1), Err(PostError::Stopped));
    assert_eq!(count(10), Err(PostError::Stopped));
    sim.settle();
    assert_eq!(count(100), Ok(()));
    assert_eq!(count(100), Ok(()));
    sim.settle();
    assert_eq!(ran.load(Relaxed), 200);
}

#[test]
fn posts_from_outside_wake_a_server() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    sim.settle();
    assert_eq!(server.with(|_, cx| cx.len()), 0);
    server.handle().post(|_, cx| cx.shutdown()).unwrap();
    sim.advance(secs(1));
    assert!(server.is_finished());
}

/// A world of its own for each seed, in which a lot goes wrong.
fn eventful(seed: u64) -> u64 {
    let hash = Rc::new(RefCell::new(0));
    let kept = Rc::clone(&hash);
    sim::swarm(seed, 1, move |sim| {
        let server = serve(sim);
        let peers: Vec<_> = (0..10).map(|_| sim.connect(server.address())).collect();
        for (index, peer) in peers.iter().enumerate() {
            peer.drip(&[b'x'; 50], millis(100 * (index as u64 + 1)));
        }
        sim.advance(secs(30));
        *kept.borrow_mut() = sim.trace_hash();
    });
    *hash.borrow()
}

#[test]
#[expect(clippy::print_stdout, reason = "for the comparison of builds")]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3] {
        let hash = eventful(seed);
        println!("trace of seed {seed}: {hash:#018x}");
        assert_eq!(eventful(seed), hash);
    }
    assert_ne!(eventful(1), eventful(2));
}

#[test]
fn an_hour_of_a_thousand_connections_passes_quickly() {
    const PEERS: u64 = 1_000;
    let mut config = Config::default();
    config.timeouts.first_byte = Some(secs(120));
    let mut sim = Sim::new(1);
    let server = sim.serve(SERVER, config, Echo);
    let peers: Vec<_> = (0..PEERS).map(|_| sim.connect(server.address())).collect();
    // A message each in ten seconds, evenly spread; in a debug build a part of the hour is enough.
    let rounds = if cfg!(debug_assertions) { 12 } else { 360 };
    for round in 0..rounds {
        for (index, peer) in peers.iter().enumerate() {
            peer.send_after(millis(10 * index as u64), format!("{round}\n"));
        }
        sim.advance(secs(10));
    }
    for peer in &peers {
        let want: String = (0..rounds).map(|round| format!("{round}\n")).collect();
        peer.expect(want.as_bytes());
    }
    assert_eq!(server.stats().requests, PEERS * rounds);
}

#[test]
fn a_peer_reads_at_any_rate() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    for rate in [1, 7, 150, 999, 20_000] {
        let peer = sim.connect(&server);
        peer.read_at(rate);
        peer.send(&vec![b'x'; 11 * rate]);
        sim.advance(secs(10));
        let read = peer.take().len();
        assert!((10 * rate - rate / 50 - 1..=10 * rate).contains(&read), "{rate}: {read}");
    }
    let peer = sim.connect(&server);
    peer.read_at(0);
    peer.send(b"x");
    sim.advance(secs(10));
    peer.expect(b"");
}

#[test]
fn sockets_and_machines_are_named_in_any_way() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let address: std::net::SocketAddr = SERVER.parse().unwrap();
    let peers =
        [sim.connect(SERVER), sim.connect(address), sim.connect(&server), sim.connect(&server)];
    let stranger = sim.connect_from("172.16.0.1:99", server.address());
    sim.partition(&peers[0], &server);
    for peer in peers.iter().chain([&stranger]) {
        peer.send(b"x");
    }
    sim.advance(secs(1));
    assert!(peers.iter().all(|peer| peer.take() == b""));
    stranger.expect(b"x");
    sim.repair("192.0.2.1", server.ip());
    sim.advance(secs(5));
    assert!(peers.iter().all(|peer| peer.take() == b"x"));
}

#[test]
fn an_ordered_failure_is_for_one_host() {
    let mut sim = Sim::new(1);
    let (a, b) = (serve(&mut sim), sim.serve("10.0.0.2:7", Config::default(), Echo));
    b.fail(Call::Accept, 0, errno::EMFILE);
    let peers = [sim.connect(&a), sim.connect(&b)];
    sim.settle();
    assert_eq!((a.stats().accept_pauses, b.stats().accept_pauses), (0, 1));
    assert_eq!(sim.failures_left(), 0);
    drop(peers);
    sim.advance(secs(1));
    sim.assert_clean();
}

#[test]
fn numbers_of_the_script_change_nothing_in_the_world() {
    let run = |drawn: u64| {
        let mut hash = 0;
        sim::swarm(5, 1, |sim| {
            let mut random = sim.random();
            let mut numbers: Vec<_> = (0..drawn).map(|_| random.below(100)).collect();
            random.shuffle(&mut numbers);
            let server = serve(sim);
            let peer = sim.connect(&server);
            peer.drip(&[b'x'; 50], millis(100));
            sim.advance(secs(30));
            hash = sim.trace_hash();
        });
        hash
    };
    assert_eq!(run(0), run(1_000));
    let mut sim = Sim::new(5);
    let [mut a, mut b, mut again] = [sim.random(), sim.random(), Sim::new(5).random()];
    let numbers = |random: &mut Random| [(); 4].map(|()| random.below(1 << 40));
    let first = numbers(&mut a);
    assert_eq!(first, numbers(&mut again));
    assert_ne!(first, numbers(&mut b));
}

#[test]
fn what_a_peer_read_can_be_looked_at_before_it_is_taken() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(&server);
    peer.send(b"abc");
    sim.settle();
    assert_eq!(peer.received(), b"abc");
    peer.assert_received_prefix_of(b"abcdef");
    peer.expect(b"abc");
    assert!(peer.is_open());
    peer.close();
    assert!(!peer.is_open());
    sim.settle();
    assert_eq!(peer.closed(), None, "it closed the connection itself");
    server.expect_closed(CloseReason::PeerEof);
    server.assert_blameless();
}

#[test]
fn a_server_knows_where_it_listened() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    server.shutdown();
    sim.advance(secs(1));
    assert!(server.is_finished());
    assert_eq!(server.address().to_string(), SERVER);
    assert_eq!(sim.connect(&server).closed(), None);
    assert_eq!(server.handle().post(|_, _| ()), Err(PostError::Stopped));
}

#[test]
fn the_history_ends_with_what_happened_last() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(&server);
    for _ in 0..100 {
        peer.send(b"xyz");
        sim.settle();
    }
    sim.advance(secs(1));
    peer.close();
    sim.settle();
    let history = sim.history();
    let lines: Vec<_> = history.lines().collect();
    assert_eq!(lines.len(), 40, "{history}");
    assert!(lines.iter().any(|line| line.contains("gets 3 bytes on 0.")), "{history}");
    let [.., closed, last] = &lines[..] else { unreachable!("there are forty") };
    assert!(closed.contains("on_closed on 0.1: closed by the peer"), "{history}");
    assert!(last.contains("+1s") && last.contains("closes its end on 0.1"), "{history}");
}

#[test]
fn the_history_keeps_a_fault_and_counts_equal_events_in_a_row() {
    let mut sim = Sim::new(1);
    sim.set_link(Link { segment: 1, ..Link::LOOPBACK });
    let server = serve(&mut sim);
    server.fail(Call::Accept, 0, errno::EMFILE);
    let peer = sim.connect(&server);
    sim.advance(secs(1));
    for _ in 0..20 {
        peer.send(b"xyz");
        sim.settle();
    }
    let history = sim.history();
    let lines: Vec<_> = history.lines().collect();
    assert!(lines[0].contains("Accept: is made to fail with EMFILE"), "{history}");
    assert!(lines[1].ends_with(" lines left out)"), "{history}");
    assert_eq!(lines.len(), 2 + 40, "{history}");
    assert!(lines.iter().any(|line| line.ends_with("gets 1 byte on 0.1 ×3")), "{history}");
}

/// What a peer and a handler see of one failure: the table of the guide.
#[test]
fn a_call_that_fails_means_what_the_guide_says() {
    use CloseReason::{HandlerClose, Io, PeerEof, PeerReset};
    /// Closes when asked to, so that a FIN is sent while the peer's has not come.
    struct Curt;
    impl Handler for Curt {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }
        fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
            conn.write(input);
            if input.contains(&b'!') {
                conn.close();
            }
            input.clear();
        }
    }
    // What is sent, what comes back, how it ends for the peer, and why for the handler.
    let fin = Some(End::Fin);
    let reset = Some(End::Reset);
    let visit = |call: Call, errno: i32, word: &[u8]| {
        let mut sim = Sim::new(1);
        let server = sim.serve(SERVER, Config::default(), Curt);
        sim.settle();
        let peer = sim.connect(&server);
        server.fail(call, 0, errno);
        peer.send(word);
        sim.advance(secs(3));
        let got = peer.take();
        if word == b"x" {
            peer.half_close();
        }
        sim.advance(secs(60));
        assert_eq!(sim.failures_left(), 0, "{call}");
        (got, peer.closed(), reasons(&server).pop())
    };
    let served = |word: &[u8], reason| (word.to_vec(), fin, Some(reason));
    assert_eq!(visit(Call::Wait, errno::EINTR, b"x"), served(b"x", PeerEof));
    assert_eq!(visit(Call::Accept, errno::EMFILE, b"x"), served(b"x", PeerEof));
    for errno in [errno::EBADF, errno::ECONNABORTED] {
        assert_eq!(visit(Call::Accept, errno, b"x"), (vec![], reset, None));
    }
    assert_eq!(visit(Call::Register, errno::ENOMEM, b"x"), (vec![], reset, None));
    for call in [Call::Read, Call::Write] {
        assert_eq!(visit(call, errno::EAGAIN, b"x"), served(b"x", PeerEof));
        assert_eq!(visit(call, errno::EINTR, b"x"), served(b"x", PeerEof));
        assert_eq!(visit(call, errno::ECONNRESET, b"x"), (vec![], reset, Some(PeerReset)));
        let (got, end, reason) = visit(call, errno::ENOBUFS, b"x");
        assert_eq!((got, matches!(reason, Some(Io(_)))), (vec![], true), "{reason:?}");
        assert!(end.is_some());
    }
    assert_eq!(visit(Call::ShutdownWrite, errno::ENOTCONN, b"!"), served(b"!", HandlerClose));
}

/// Counts what is posted to it.
#[derive(Default)]
struct Counter {
    own: u64,
    of_others: u64,
    refused: u64,
}

impl Handler for Counter {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }
}

type CounterHandle = Handle<Watched<Counter>>;

fn counter(sim: &mut Sim, ip: &str, mailbox_max: usize) -> Server<Counter> {
    let mut config = Config::default();
    config.limits.mailbox_max = mailbox_max;
    sim.serve((ip.to_owned() + ":7").as_str(), config, Counter::default())
}

#[test]
fn closures_that_are_left_run_though_no_wake_up_succeeds() {
    let mut sim = Sim::new(1);
    let server = counter(&mut sim, "10.0.0.1", 5_000);
    for _ in 0..3_000 {
        server.handle().post(|counter, _| counter.own += 1).unwrap();
    }
    server.fail_wakes(u32::MAX);
    sim.settle();
    assert_eq!(server.handler().own, 3_000);
    server.fail_wakes(0);
    sim.assert_clean();
}

#[test]
fn a_callback_posts_to_its_reactor_though_no_wake_up_succeeds() {
    let mut sim = Sim::new(1);
    let server = counter(&mut sim, "10.0.0.1", 10);
    let handle: CounterHandle = server.handle();
    server.handle().post(move |_, _| handle.post(|counter, _| counter.own += 1).unwrap()).unwrap();
    server.fail_wakes(u32::MAX);
    sim.settle();
    assert_eq!(server.handler().own, 1);
}

#[test]
fn a_shutdown_whose_wake_up_fails_begins_with_the_next_turn() {
    let mut sim = Sim::new(1);
    let server = counter(&mut sim, "10.0.0.1", 10);
    sim.settle();
    server.fail_wakes(1);
    server.shutdown();
    sim.settle();
    // Something else ends the wait.
    let peer = sim.connect(&server);
    sim.settle();
    peer.close();
    sim.advance(secs(10));
    assert!(server.is_finished());
}

/// Posts closures to another reactor, each of which answers with two.
fn spread(from: &CounterHandle, to: &CounterHandle, depth: u32, full: &Arc<AtomicU32>) {
    let (back, here, count) = (from.clone(), to.clone(), Arc::clone(full));
    let outcome = to.post(move |counter, _| {
        counter.of_others += 1;
        if depth > 0 {
            spread(&here, &back, depth - 1, &count);
            spread(&here, &back, depth - 1, &count);
        }
    });
    match outcome {
        Ok(()) => {}
        Err(PostError::Full) => drop(full.fetch_add(1, Relaxed)),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn reactors_that_post_to_each_other_are_bounded_by_their_mailboxes() {
    let mut sim = Sim::new(1);
    let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|ip| counter(&mut sim, ip, 16));
    let full = Arc::new(AtomicU32::new(0));
    // 2^40 closures, if nothing bounded them.
    let (from, to, count) = (a.handle(), b.handle(), Arc::clone(&full));
    a.handle().post(move |_, _| spread(&from, &to, 40, &count)).unwrap();
    sim.settle();
    assert!(full.load(Relaxed) > 0);
    let ran = (a.handler().of_others, b.handler().of_others);
    assert!(ran.0 + ran.1 < 41 * 16 && ran.1 >= 16, "{ran:?}");
    sim.assert_clean();
}

/// Posts two of itself, while there is room.
fn multiply(counter: &mut Counter, handle: CounterHandle, most: u64) {
    let twin = handle.clone();
    let outcome = handle.post(move |counter, _| {
        counter.own += 1;
        if counter.own < most {
            multiply(counter, twin.clone(), most);
            multiply(counter, twin, most);
        }
    });
    counter.refused += u64::from(outcome.is_err());
}

#[test]
fn closures_that_multiply_leave_half_of_each_turn_to_others() {
    const OTHERS: u64 = 2_000;
    let mut sim = Sim::new(1);
    let server = counter(&mut sim, "10.0.0.1", 4_096);
    let handle: CounterHandle = server.handle();
    server.handle().post(move |counter, _| multiply(counter, handle, 50_000)).unwrap();
    while server.handler().refused == 0 {
        assert!(sim.step());
    }
    for _ in 0..OTHERS {
        server.handle().try_post(|counter, _| counter.of_others += 1).unwrap();
    }
    let before = server.handler().own;
    while server.handler().of_others < OTHERS {
        assert!(sim.step(), "they are stranded");
    }
    let meanwhile = server.handler().own - before;
    assert!((OTHERS - 1_024..=OTHERS + 1_024).contains(&meanwhile), "{meanwhile}");
    sim.settle();
    sim.assert_clean();
}
