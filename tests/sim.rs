//! What the simulated world promises to the tests that use it.

#[path = "scenarios/basics.rs"]
mod basics;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::config::Rate;
use wheelhouse::pool::PoolConfig;
use wheelhouse::sim::{self, Call, End, Faults, Link, Random, Sim, errno};
use wheelhouse::{
    Address, CloseReason, Closed, Config, Conn, ConnId, Context, Handler, ListenConfig, PostError,
    Target, Timeout,
};

use crate::basics::{Echo, SERVER, millis, reasons, secs, serve_echo};

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
fn a_piece_of_any_size_arrives_alone() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
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
fn a_part_of_a_request_that_is_kept_and_not_announced_is_found() {
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
fn peers_stop_reading_read_slowly_close_and_reset() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
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
    let server = serve_echo(&mut sim);
    let peer = sim.connect(server.address());
    peer.send(&[b'x'; 1_000]);
    // The handshake, a second on the line, the way there and back, and a second on the line.
    sim.advance(millis(200 + 1_000 + 100 + 1_000 + 90));
    assert_eq!(peer.take(), b"");
    sim.advance(millis(20));
    assert_eq!(peer.take().len(), 1_000);
}

/// Lets the first connection skip four bytes when another sends something.
#[derive(Default)]
struct Skips {
    first: Option<ConnId>,
    got: Vec<u8>,
}

impl Handler for Skips {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.first.get_or_insert_with(|| conn.id());
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        if Some(conn.id()) == self.first {
            self.got.extend_from_slice(input);
        } else {
            conn.other(self.first.unwrap()).unwrap().skip(4);
        }
        input.clear();
    }
}

#[test]
fn a_connection_may_let_another_skip_input() {
    let mut sim = Sim::new(1);
    let server = sim.serve(SERVER, Config::default(), Skips::default());
    let [first, second] = [(); 2].map(|()| sim.connect(SERVER));
    sim.settle();
    second.send(b"skip");
    sim.settle();
    first.send(b"1234rest");
    sim.settle();
    server.with(|skips, cx| cx.conn(skips.first.unwrap()).unwrap().skip(4));
    first.send(b"5678more");
    sim.settle();
    assert_eq!(server.with(|skips, _| skips.got.clone()), b"restmore");
    drop([first, second]);
    sim.settle();
    sim.assert_clean();
}

#[test]
fn a_partition_holds_back_and_a_repair_lets_go() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
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
    // TCP gives up in the end.
    sim.partition(here, there);
    peer.send(b"c");
    sim.advance(secs(3_600));
    assert_eq!(peer.closed(), Some(End::TimedOut));
}

#[test]
fn a_dial_without_a_listener_is_refused_or_not_answered() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
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
    let server = serve_echo(&mut sim);
    sim.fail(Call::Accept, 0, libc::EMFILE);
    let peer = sim.connect(server.address());
    peer.send(b"x");
    sim.advance(millis(50));
    peer.expect(b"");
    assert_eq!(server.stats().accept_pauses, 1);
    sim.advance(millis(100));
    peer.expect(b"x");
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
    let server = serve_echo(&mut sim);
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
fn posts_from_outside_wake_a_server() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
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
        let server = serve_echo(sim);
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
    let server = serve_echo(&mut sim);
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
    let server = serve_echo(&mut sim);
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
    let (a, b) = (serve_echo(&mut sim), sim.serve("10.0.0.2:7", Config::default(), Echo));
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
            let server = serve_echo(sim);
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
fn what_a_peer_read_can_be_checked_before_it_is_taken() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
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
fn the_end_of_one_connection_of_several_is_taken() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
    let [first, second, third] = [(); 3].map(|()| sim.connect(&server));
    for peer in [&first, &second, &third] {
        peer.send(b"x");
        sim.settle();
    }
    first.reset();
    sim.settle();
    second.close();
    sim.settle();
    third.reset();
    sim.settle();
    let closed =
        server.expect_closed_where(CloseReason::PeerEof, |it| it.reason == CloseReason::PeerEof);
    let peers: Vec<_> = server.take_closed().into_iter().map(|it| it.peer).collect();
    assert_eq!(peers.len(), 2);
    assert!(!peers.contains(&closed.peer));
}

/// A server whose one connection has ended with a FIN.
fn one_that_left(sim: &mut Sim) -> sim::Server<Echo> {
    let server = serve_echo(sim);
    let peer = sim.connect(&server);
    sim.settle();
    peer.close();
    sim.settle();
    server
}

#[test]
#[should_panic = "instead of PeerReset"]
fn the_end_that_is_meant_has_to_have_the_reason() {
    let server = one_that_left(&mut Sim::new(1));
    server.expect_closed_where(CloseReason::PeerReset, |closed| closed.requests == 0);
}

#[test]
#[should_panic = "no connection has ended, and PeerEof was expected"]
fn an_end_that_is_meant_and_has_not_come_is_missed() {
    let server = one_that_left(&mut Sim::new(1));
    server.expect_closed_where(CloseReason::PeerEof, |closed| closed.requests > 0);
}

#[test]
fn a_server_knows_where_it_listened() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
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
    let server = serve_echo(&mut sim);
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
    let server = serve_echo(&mut sim);
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

/// Owes all replies.
struct Forgetful;

impl Handler for Forgetful {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        conn.begin_request();
    }
}

#[test]
fn the_greatest_settings_disturb_no_check() {
    let mut config = Config::default();
    let mut own = config.timeouts.clone();
    own.response = Some(secs(1));
    config.timeouts.response = Some(Duration::MAX);
    config.panic_limit = Some(Rate::new(1, Duration::MAX));
    let mut sim = Sim::new(1);
    let server = sim.spawn("10.0.0.1", config, Forgetful, |reactor| {
        let listen = ListenConfig { timeouts: Some(own), ..ListenConfig::default() };
        reactor.listen_with(SERVER, listen).unwrap();
    });
    for panic in [0, 1_000, 1_000] {
        sim.set_faults(Faults { panic, ..Faults::NONE });
        let peer = sim.connect(SERVER);
        peer.send(b"hi");
        sim.advance(secs(2));
        assert!(peer.closed().is_some());
        peer.close();
    }
    assert_eq!(server.stats().closed(CloseReason::Timeout(Timeout::Response)), 2);
    assert_eq!(server.stats().panics, 1, "as many as are allowed");
}

/// A wait that a signal interrupts brings nothing, and deadlines that are late are put off for a turn:
/// the reactor is not to blame that it turns in vain.
#[test]
fn a_reactor_whose_waits_are_interrupted_does_not_spin() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
    let peer = sim.connect(&server);
    peer.send(b"a");
    sim.settle();
    peer.expect(b"a");
    peer.send(b"b");
    (0..8).for_each(|after| server.fail(Call::Wait, after, errno::EINTR));
    for _ in 0..4 {
        sim.step();
    }
    sim.jump_clocks(secs(61));
    sim.settle();
    assert_eq!(sim.failures_left(), 0);
    peer.expect(b"b");
}

#[test]
#[should_panic = "which is its pool's"]
fn an_idle_connection_of_a_pool_that_is_left_is_named_as_that() {
    struct Pooled;

    impl Handler for Pooled {
        type Session = ();

        fn on_start(&mut self, cx: &mut Context<'_>) {
            let config = PoolConfig { idle_min: 1, ..PoolConfig::default() };
            cx.add_pool("10.0.0.2:9", &config).unwrap();
        }

        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }

        fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {}
    }

    let mut sim = Sim::new(1);
    let _upstream = sim.listen("10.0.0.2:9", 1);
    let _server = sim.serve(SERVER, Config::default(), Pooled);
    sim.settle();
    sim.assert_clean();
}
