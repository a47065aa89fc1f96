//! Rows of the fault catalogue that no other test has: what a call, the network or a peer does, and
//! what a server must do then.

use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::backend::{Backend, Events, Token};
use wheelhouse::config::SocketOptions;
use wheelhouse::sim::{
    Call, End, Faults, Host, HostStream, Link, Peer, Personality, Server, Sim, errno,
};
use wheelhouse::{
    Address, CloseReason, Closed, Config, Conn, Context, Handler, ListenConfig, Reactor, Timeout,
    Timeouts,
};

use crate::scenarios::{Echo, Keeper, SERVER, expect_service, millis, reasons, secs, serve_echo};

/// A host with a socket that a peer has dialled.
fn accepted(sim: &mut Sim) -> (Host, Peer, HostStream) {
    accepted_with(sim, &SocketOptions::default())
}

fn accepted_with(sim: &mut Sim, options: &SocketOptions) -> (Host, Peer, HostStream) {
    let mut host = sim.host("10.0.0.1");
    let address: Address = SERVER.parse().unwrap();
    let mut listener = host.bind(&address, &ListenConfig::default(), options).unwrap();
    host.register_listener(&mut listener, Token::WAKER).unwrap();
    let peer = sim.connect(address);
    sim.pass(Duration::ZERO);
    let (mut stream, _) = host.accept(&mut listener).unwrap();
    host.register(&mut stream, Token::WAKER).unwrap();
    (host, peer, stream)
}

#[test]
fn a_peer_that_is_gone_before_it_is_accepted_ends_once() {
    for personality in Personality::ALL {
        let mut sim = Sim::new(1);
        sim.set_personality(personality);
        let server = serve_echo(&mut sim);
        sim.settle();
        let peer = sim.connect(&server);
        sim.stall()(Duration::ZERO);
        peer.reset();
        sim.stall()(Duration::ZERO);
        sim.settle();
        assert_eq!(server.stats().accepted, 1);
        assert_eq!(reasons(&server), [CloseReason::PeerReset]);
        expect_service(&mut sim, &server);
    }
}

#[test]
fn a_listener_that_fails_leaves_the_others_open() {
    for errno in [libc::EBADF, libc::EINVAL, libc::ENOTSOCK] {
        let mut sim = Sim::new(1);
        let server = sim.spawn("10.0.0.1", Config::default(), Echo, |reactor| {
            reactor.listen("10.0.0.1:8").unwrap();
            reactor.listen(SERVER).unwrap();
        });
        sim.settle();
        sim.fail(Call::Accept, 0, errno);
        let lost = sim.connect("10.0.0.1:8");
        sim.settle();
        assert_eq!(lost.closed(), Some(End::Reset));
        let peer = sim.connect(SERVER);
        peer.send(b"x");
        sim.settle();
        peer.expect(b"x");
        assert_eq!(server.descriptors(), 2, "a listener and a connection");
    }
}

#[test]
fn a_listener_that_cannot_be_opened_is_an_error() {
    for (call, errno) in [
        (Call::Bind, libc::EADDRINUSE),
        (Call::Bind, libc::EMFILE),
        (Call::RegisterListener, libc::ENOSPC),
        (Call::RegisterListener, libc::ENOMEM),
    ] {
        let mut sim = Sim::new(1);
        sim.fail(call, 0, errno);
        let server = sim.spawn("10.0.0.1", Config::default(), Echo, |reactor| {
            assert!(reactor.listen(SERVER).is_err());
            reactor.listen(SERVER).unwrap();
        });
        expect_service(&mut sim, &server);
        assert_eq!(server.descriptors(), 2);
    }
}

#[test]
fn addresses_belong_to_one_listener_and_to_their_machine() {
    let mut sim = Sim::new(1);
    let everywhere = |reactor: &mut Reactor<_, _>| {
        reactor.listen("0.0.0.0:7").unwrap();
        assert!(reactor.listen("10.9.9.9:7").is_err(), "another machine's");
    };
    let _a = sim.spawn("10.0.0.1", Config::default(), Echo, everywhere);
    let _b = sim.spawn("10.0.0.2", Config::default(), Echo, everywhere);
    let _c = sim.spawn("10.0.0.1", Config::default(), Echo, |reactor| {
        assert!(reactor.listen(SERVER).is_err(), "all addresses are taken");
    });
}

#[test]
fn a_connection_that_cannot_be_registered_is_reset() {
    for errno in [libc::EEXIST, libc::ENOENT, libc::EBADF, libc::ENOMEM, libc::ENOSPC] {
        let mut sim = Sim::new(1);
        let server = serve_echo(&mut sim);
        sim.fail(Call::Register, 0, errno);
        let lost = sim.connect(&server);
        sim.settle();
        assert_eq!(lost.closed(), Some(End::Reset));
        assert_eq!((server.connections(), server.descriptors()), (0, 1));
        expect_service(&mut sim, &server);
    }
}

#[test]
fn a_process_without_descriptors_does_not_spin_and_comes_back() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
    sim.settle();
    server.set_descriptors(6);
    let peers: Vec<_> = (0..3).map(|_| sim.connect(&server)).collect();
    peers.iter().for_each(|peer| peer.send(b"x"));
    sim.advance(secs(60));
    assert!(peers.iter().all(|peer| peer.take().is_empty()));
    let pauses = server.stats().accept_pauses;
    assert!((60..70).contains(&pauses), "one each second: {pauses}");
    server.set_descriptors(100);
    sim.advance(secs(2));
    peers.iter().for_each(|peer| peer.expect(b"x"));
}

/// Linux takes the descriptor before it looks for a connection to accept, so the one that got the
/// last descriptor costs a pause each second although none waits.
#[test]
fn the_last_descriptor_costs_pauses_and_nothing_else() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
    server.set_descriptors(7);
    let peer = sim.connect(&server);
    peer.send(b"x");
    sim.advance(secs(10));
    peer.expect(b"x");
    assert!((1..=20).contains(&server.stats().accept_pauses), "{}", server.stats().accept_pauses);
    peer.close();
    sim.settle();
    expect_service(&mut sim, &server);
}

#[test]
fn a_full_batch_is_full_and_deadlines_are_served_all_the_same() {
    let mut sim = Sim::new(1);
    sim.set_faults(Faults { full_batch: 1_000, ..Faults::NONE });
    let (mut host, _peer, _stream) = accepted(&mut sim);
    let mut events = Events::with_capacity(64);
    for woken in [false, true] {
        if woken {
            host.waker().wake().unwrap();
        }
        host.wait(&mut events, None).unwrap();
        assert_eq!((events.len(), events.is_full()), (64, true));
    }

    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
    let peer = sim.connect(&server);
    peer.send(b"x");
    sim.settle();
    sim.set_faults(Faults { full_batch: 1_000, ..Faults::NONE });
    sim.advance(secs(80));
    assert_eq!(reasons(&server), [CloseReason::Timeout(Timeout::Idle)]);
}

/// Dials, and counts the dials that succeeded.
#[derive(Default)]
struct Dialler {
    connected: u32,
}

impl Handler for Dialler {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_connected(&mut self, _: &mut Conn<'_>, _: &mut ()) {
        self.connected += 1;
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }
}

fn dial(sim: &mut Sim, to: &Address) -> Server<Dialler> {
    let to = to.clone();
    sim.spawn("10.0.0.1", Config::default(), Dialler::default(), |reactor| {
        reactor.context().connect(to).unwrap();
    })
}

#[test]
fn a_dial_has_one_outcome_whatever_events_come_meanwhile() {
    let listening_on: Address = Address::Ip((Sim::new(1).peers_ip(), 5432).into());
    for (latency, spurious) in [(Duration::ZERO, 0), (millis(100), 0), (millis(100), 1_000)] {
        let mut sim = Sim::new(1);
        sim.set_link(Link { latency, ..Link::LOOPBACK });
        let listener = sim.listen(listening_on.clone(), 4);
        sim.set_faults(Faults { spurious_event: spurious, ..Faults::NONE });
        let server = dial(&mut sim, &listening_on);
        sim.advance(millis(250));
        let peer = listener.accept().expect("it has dialled");
        assert_eq!(server.handler().connected, 1);
        peer.send(b"x");
        sim.advance(secs(1));
        peer.expect(b"x");
    }
    for errno in [
        libc::ECONNREFUSED,
        libc::ETIMEDOUT,
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::ECONNRESET,
    ] {
        let mut sim = Sim::new(1);
        let _door = sim.listen(listening_on.clone(), 4);
        sim.fail(Call::IsConnected, 0, errno);
        let server = dial(&mut sim, &listening_on);
        sim.advance(secs(1));
        assert!(matches!(reasons(&server)[..], [CloseReason::ConnectFailed(_)]));
        assert_eq!(server.handler().connected, 0);
        sim.assert_clean();
    }
}

#[test]
fn a_handshake_that_a_partition_swallows_comes_after_it() {
    let mut sim = Sim::new(1);
    sim.set_link(Link { latency: millis(10), ..Link::LOOPBACK });
    let server = serve_echo(&mut sim);
    let (here, there) = (sim.peers_ip(), server.ip());
    let (answered, refused) = (sim.connect(&server), sim.connect("10.0.0.1:8"));
    sim.advance(millis(15));
    sim.partition(here, there);
    sim.advance(secs(2));
    assert!(!answered.is_open() && refused.closed().is_none());
    sim.repair(here, there);
    sim.advance(secs(3));
    assert!(answered.is_open());
    assert_eq!(refused.closed(), Some(End::Refused));
}

#[test]
fn a_syn_times_out_when_it_does_on_linux() {
    let mut sim = Sim::new(1);
    let peer = sim.connect("203.0.113.1:7");
    sim.advance(secs(126));
    assert_eq!(peer.closed(), None);
    sim.advance(secs(2));
    assert_eq!(peer.closed(), Some(End::TimedOut));
}

#[test]
fn a_dead_end_answers_with_a_reset() {
    let mut config = Config::default();
    config.timeouts.idle = Some(secs(5));
    config.timeouts.linger = Some(secs(1));
    let mut sim = Sim::new(1);
    sim.set_link(Link { latency: millis(10), ..Link::LOOPBACK });
    let server = sim.serve(SERVER, config, Echo);
    let peer = sim.connect(&server);
    peer.send(b"x");
    sim.settle();
    sim.partition(sim.peers_ip(), &server);
    peer.send(b"lost for now");
    // Neither end receives anything from the other.
    sim.advance(secs(60));
    assert!(peer.is_open());
    sim.repair(sim.peers_ip(), &server);
    sim.advance(secs(120));
    assert!(peer.closed().is_some());
}

/// Reads and writes nothing.
struct Sink;

impl Handler for Sink {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        input.clear();
    }
}

#[test]
fn a_lost_acknowledgement_is_missed_by_the_sender_of_the_data() {
    let mut config = Config::default();
    config.timeouts.idle = None;
    let mut sim = Sim::new(1);
    sim.set_link(Link { latency: millis(10), ..Link::LOOPBACK });
    let server = sim.serve(SERVER, config, Sink);
    let peer = sim.connect(&server);
    sim.settle();
    peer.send(b"x");
    sim.advance(millis(12));
    sim.partition(sim.peers_ip(), &server);
    sim.advance(secs(3_600));
    assert_eq!(server.connections(), 1, "it waits for nothing");
    assert_eq!(peer.closed(), Some(End::TimedOut));
}

#[test]
fn a_socket_that_was_accepted_has_the_user_timeout_of_its_listener() {
    let options = SocketOptions { user_timeout: Some(secs(20)), ..SocketOptions::default() };
    let mut sim = Sim::new(1);
    let (mut host, _peer, mut stream) = accepted_with(&mut sim, &options);
    sim.partition(sim.peers_ip(), "10.0.0.1");
    host.write(&mut stream, b"x").unwrap();
    let mut buffer = BytesMut::with_capacity(8);
    sim.stall()(secs(10));
    let error = host.read(&mut stream, &mut buffer, 8).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
    sim.stall()(secs(20));
    let error = host.read(&mut stream, &mut buffer, 8).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
}

#[test]
fn a_socket_says_what_linux_says_of_it() {
    let mut sim = Sim::new(1);
    let (mut host, peer, mut stream) = accepted(&mut sim);
    peer.stop_reading();
    let written = host.write(&mut stream, &[0; 300_000]).unwrap();
    sim.pass(Duration::ZERO);
    let unsent = host.unsent(&stream).unwrap();
    assert!(unsent > 0 && unsent < written as u64);
    let mut events = Events::with_capacity(8);
    host.wait(&mut events, None).unwrap();
    host.shutdown_write(&mut stream).unwrap();
    sim.pass(Duration::ZERO);
    host.wait(&mut events, None).unwrap();
    assert_eq!(events.len(), 1, "its own end is announced");
    peer.reset();
    sim.pass(Duration::ZERO);
    assert_eq!(host.unsent(&stream), Some(unsent), "SIOCOUTQ goes on counting");

    let deaf: Address = "203.0.113.9:9".parse().unwrap();
    let mut dialled = host.connect(&deaf, &SocketOptions::default()).unwrap();
    let mut buffer = BytesMut::with_capacity(8);
    let error = host.read(&mut dialled, &mut buffer, 8).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
    let error = host.write(&mut dialled, b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
}

#[test]
fn a_client_of_a_unix_listener_has_no_name() {
    struct Ask(Option<Address>);
    impl Handler for Ask {
        type Session = ();
        fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
            self.0 = Some(conn.peer_addr().clone());
            Some(())
        }
        fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
    }
    let mut sim = Sim::new(1);
    let at = Address::Unix("/run/server".into());
    let server = sim.spawn("10.0.0.1", Config::default(), Ask(None), |reactor| {
        reactor.listen(at.clone()).unwrap();
    });
    let _peer = sim.connect(&at);
    sim.settle();
    assert_eq!(server.handler().0, Some(Address::Unnamed));
}

/// A window opens only when half of it is free (RFC 1122, 4.2.3.3), so at that rate nothing moves.
#[test]
fn the_write_deadline_ends_a_reader_of_a_byte_a_second() {
    let mut sim = Sim::new(1);
    sim.set_buffers(512, 512);
    let unreachable: Address = "10.0.0.9:9".parse().unwrap();
    let server = sim.serve(SERVER, Config::default(), Keeper::new(unreachable));
    let peer = sim.connect(&server);
    peer.read_at(1);
    peer.send(b"b");
    sim.advance(secs(200));
    assert_eq!(reasons(&server), [CloseReason::Timeout(Timeout::Write)]);
}

#[test]
fn more_deadlines_than_a_turn_serves_fall_on_one_tick() {
    const PEERS: usize = 5_000;
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
    let mut peers = Vec::new();
    while peers.len() < PEERS {
        // As many as a backlog holds.
        peers.extend((0..100).map(|_| sim.connect(&server)));
        sim.settle();
    }
    assert_eq!(server.connections(), PEERS);
    sim.jump_clocks(secs(3_600));
    sim.settle();
    sim.advance(millis(20));
    assert!(peers.iter().all(|peer| peer.closed() == Some(End::Fin)));
    assert_eq!(server.stats().closed(CloseReason::Timeout(Timeout::FirstByte)), PEERS as u64);
}

#[test]
fn a_storm_of_peers_that_dial_and_break_off_leaves_nothing() {
    for personality in Personality::ALL {
        let mut sim = Sim::new(1);
        sim.set_personality(personality);
        let server = serve_echo(&mut sim);
        for round in 0..500_u64 {
            let peer = sim.connect(&server);
            if round % 3 > 0 {
                peer.send(b"x");
            }
            if round % 2 > 0 {
                sim.step();
            }
            peer.reset();
        }
        sim.advance(secs(1));
        assert_eq!((server.connections(), server.descriptors()), (0, 1));
        sim.assert_clean();
        expect_service(&mut sim, &server);
    }
}

#[test]
fn timeouts_of_a_listener_or_a_connection_are_no_mistake() {
    struct Own(Timeouts);
    impl Handler for Own {
        type Session = ();
        fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
            conn.set_timeouts(&self.0);
            Some(())
        }
        fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
            conn.write(input);
            input.clear();
        }
    }
    let short = Timeouts { idle: Some(secs(5)), ..Timeouts::default() };
    let none = Timeouts { idle: None, ..Timeouts::default() };

    let mut sim = Sim::new(1);
    let own = sim.serve(SERVER, Config::default(), Own(short.clone()));
    let patient = sim.serve("10.0.0.2:7", Config::default(), Own(none));
    let listening = sim.spawn("10.0.0.3", Config::default(), Echo, |reactor| {
        let listen = ListenConfig { timeouts: Some(short), ..ListenConfig::default() };
        reactor.listen_with("10.0.0.3:7", listen).unwrap();
    });
    let addresses = [own.address(), patient.address(), listening.address()];
    let peers = addresses.map(|address| sim.connect(address));
    peers.iter().for_each(|peer| peer.send(b"x"));
    sim.advance(secs(200));
    let idle = [CloseReason::Timeout(Timeout::Idle)];
    assert_eq!((reasons(&own), reasons(&listening)), (idle.to_vec(), idle.to_vec()));
    assert_eq!(patient.connections(), 1);
}

#[test]
fn a_settle_keeps_the_deadlines_on_its_way() {
    for settles in [true, false] {
        let mut config = Config::default();
        config.timeouts.first_byte = Some(millis(3_500));
        let mut sim = Sim::new(1);
        sim.set_link(Link { latency: secs(2), ..Link::LOOPBACK });
        let server = sim.serve(SERVER, config, Echo);
        let peer = sim.connect(&server);
        peer.send_after(secs(5), *b"x");
        sim.advance(secs(5));
        if settles {
            sim.settle();
        } else {
            sim.advance(secs(20));
        }
        assert_eq!(server.stats().closed(CloseReason::Timeout(Timeout::FirstByte)), 1);
        drop(peer);
    }
}

#[test]
fn the_trace_has_the_time_and_the_bytes_in_it() {
    let trace = |latency: u64, bytes: &[u8]| {
        let mut sim = Sim::new(1);
        sim.set_link(Link { latency: millis(latency), ..Link::LOOPBACK });
        let server = serve_echo(&mut sim);
        let peer = sim.connect(&server);
        peer.send(bytes);
        sim.settle();
        sim.trace_hash()
    };
    assert_eq!(trace(5, b"aaaa"), trace(5, b"aaaa"));
    assert_ne!(trace(5, b"aaaa"), trace(50, b"aaaa"));
    assert_ne!(trace(5, b"aaaa"), trace(5, b"bbbb"));
}

#[test]
fn a_peer_keeps_what_it_read_after_it_closed() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
    let peer = sim.connect(&server);
    peer.send(b"hi");
    sim.settle();
    peer.close();
    sim.settle();
    assert!(!peer.is_open());
    peer.expect(b"hi");
}

#[test]
fn a_post_before_the_first_turn_does_not_wait() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
    for _ in 0..10_000 {
        server.handle().post(|_, _| ()).unwrap();
    }
    sim.settle();
    server.handle().post(|_, cx: &mut Context<'_>| cx.shutdown()).unwrap();
    sim.advance(secs(1));
    assert!(server.is_finished());
    server.shutdown();
}

#[test]
fn clocks_jump_no_further_than_to_the_end_of_time() {
    let mut sim = Sim::new(1);
    let _host = sim.host("10.0.0.1");
    sim.jump_clocks(Duration::MAX);
    sim.jump_clocks(Duration::MAX);
    sim.set_back_clocks(Duration::MAX);
    sim.set_back_clocks(Duration::MAX);
}

#[test]
fn faults_that_change_nothing_are_not_counted() {
    let mut sim = Sim::new(1);
    let faults =
        Faults { missing_hint: 1_000, small_batch: 1_000, reordered: 1_000, ..Faults::NONE };
    sim.set_faults(faults);
    let server = serve_echo(&mut sim);
    let peer = sim.connect(&server);
    for _ in 0..100 {
        peer.send(b"x");
        sim.settle();
    }
    assert_eq!(sim.faults_injected(), 0, "one event at a time, and no hint");
}

#[test]
fn a_dial_may_succeed_before_the_call_returns() {
    let path: Address = "unix:/run/peer".parse().unwrap();
    for personality in Personality::ALL {
        let mut sim = Sim::new(1);
        sim.set_personality(personality);
        let listener = sim.listen(path.clone(), 4);
        // As unix(7) does it: the stream stands when connect(2) returns.
        let mut host = sim.host("10.0.0.2");
        let mut stream = host.connect(&path, &SocketOptions::default()).unwrap();
        assert!(host.is_connected(&mut stream).unwrap());
        drop(listener.accept().expect("it stands"));
        drop(stream);
        let server = dial(&mut sim, &path);
        sim.settle();
        let peer = listener.accept().expect("it has dialled");
        assert_eq!(server.handler().connected, 1);
        peer.send(b"x");
        sim.settle();
        peer.expect(b"x");
        peer.close();
        sim.settle();
        assert_eq!(reasons(&server), [CloseReason::PeerEof]);
        sim.assert_clean();
    }
}

/// Records which sessions ended, and why.
#[derive(Default)]
struct Ledger {
    opened: usize,
    ended: Vec<CloseReason>,
}

impl Handler for Ledger {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        self.opened += 1;
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, _: ()) {
        self.ended.push(closed.reason);
    }
}

/// A reactor in a world that its test turns, and three clients that it serves.
fn turned(sim: &mut Sim) -> (Reactor<Ledger, Host>, Ledger, Vec<Peer>) {
    let mut ledger = Ledger::default();
    let mut reactor = Reactor::with_backend(Config::default(), sim.host("10.0.0.1")).unwrap();
    reactor.listen(SERVER).unwrap();
    let peers: Vec<_> = (0..3).map(|_| sim.connect(SERVER)).collect();
    for _ in 0..5 {
        sim.pass(millis(10));
        reactor.turn(&mut ledger, None).unwrap();
    }
    assert_eq!((ledger.opened, &ledger.ended[..]), (3, &[][..]));
    (reactor, ledger, peers)
}

fn expect_ends(sim: &mut Sim, ledger: &Ledger, peers: &[Peer]) {
    assert_eq!(ledger.ended, [CloseReason::HardStop; 3]);
    sim.pass(millis(10));
    assert!(peers.iter().all(|peer| peer.closed() == Some(End::Reset)));
}

#[test]
fn a_wait_that_fails_ends_run_and_every_session() {
    let mut sim = Sim::new(1);
    let (reactor, mut ledger, peers) = turned(&mut sim);
    sim.fail(Call::Wait, 3, errno::EBADF);
    let failed = reactor.run(&mut ledger).unwrap_err();
    assert_eq!(failed.error.raw_os_error(), Some(errno::EBADF));
    assert_eq!(failed.report.stats.closed(CloseReason::HardStop), 3);
    assert_eq!(failed.report.stats.connections, 0);
    assert!(failed.to_string().starts_with("the reactor failed: "), "{failed}");
    expect_ends(&mut sim, &ledger, &peers);
}

#[test]
fn after_a_turn_that_fails_end_ends_every_session() {
    let mut sim = Sim::new(1);
    let (mut reactor, mut ledger, peers) = turned(&mut sim);
    sim.fail(Call::Wait, 0, errno::EBADF);
    assert!(reactor.turn(&mut ledger, None).is_err());
    assert_eq!(ledger.ended, []);
    let report = reactor.end(&mut ledger);
    assert_eq!(report.stats.closed(CloseReason::HardStop), 3);
    expect_ends(&mut sim, &ledger, &peers);
}

#[test]
fn a_simulated_reactor_that_fails_leaves_no_session_and_no_descriptor() {
    let mut sim = Sim::new(1);
    let server = sim.serve(SERVER, Config::default(), Ledger::default());
    let peers: Vec<_> = (0..3).map(|_| sim.connect(SERVER)).collect();
    sim.settle();
    server.fail(Call::Wait, 0, errno::EBADF);
    peers[0].send(b"x");
    sim.advance(secs(1));
    assert!(server.failure().is_some());
    assert_eq!((server.descriptors(), server.connections()), (0, 0));
    assert_eq!(server.handler().ended, [CloseReason::HardStop; 3]);
    sim.assert_clean();
}
