//! The end of a server: connections in the backlog, requests on their way, replies still owed.

use wheelhouse::pool::{AcquireError, AcquireFailure, AcquireOptions, PoolConfig, PoolId, WaitId};
use wheelhouse::sim::Host;

use super::*;
use crate::ping;

with_each_personality! {
    a_backlog_is_emptied_over_some_turns_before_a_shutdown_closes_it,
    a_shutdown_accepts_the_backlog_whatever_the_accept_rate,
    an_upstream_that_an_active_request_needs_outlives_the_shutdown_call,
    a_request_that_arrives_during_a_shutdown_has_its_own_deadline,
    replies_have_no_gap_before_the_end_of_a_shutdown,
    an_unannounced_client_gets_one_second_after_its_last_reply,
    the_times_at_which_a_shutdown_ends_connections_count_as_no_lifetime,
    a_peer_that_never_pauses_does_not_delay_the_end_of_a_shutdown,
    a_setting_says_how_long_a_peer_that_never_pauses_is_served,
    a_connection_that_is_paused_when_its_time_is_over_keeps_its_request,
    requests_read_before_a_shutdown_are_served,
    a_peer_may_vanish_while_a_shutdown_waits_for_it,
    a_hard_stop_leaves_no_connection_that_a_pool_dials_afterwards,
    a_pool_that_is_added_in_a_shutdown_is_like_those_before_it,
}

fn a_backlog_is_emptied_over_some_turns_before_a_shutdown_closes_it() {
    /// Notes how many connections had been accepted at `on_shutdown`.
    #[derive(Default)]
    struct Noted(Vec<u64>);
    impl Handler for Noted {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }
        fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
            conn.write(input);
            input.clear();
        }
        fn on_shutdown(&mut self, cx: &mut Context<'_>) {
            assert!(cx.is_shutting_down());
            self.0.push(cx.stats().accepted);
        }
    }
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Noted::default());
    let peers: Vec<_> = (0..1_000).map(|_| sim.connect(SERVER)).collect();
    peers.iter().for_each(|peer| peer.send(b"hello"));
    server.shutdown();
    let (mut before, mut turns) = (0, 0);
    while server.handler().0.is_empty() {
        assert!(sim.step());
        let accepted = server.stats().accepted;
        assert!(accepted - before <= 2 * 16, "{} in one turn", accepted - before);
        (before, turns) = (accepted, turns + 1);
        assert!(turns < 1_000);
    }
    assert_eq!(server.handler().0, [1_000]);
    sim.advance(secs(10));
    assert!(server.is_finished());
    peers.iter().for_each(|peer| peer.expect(b"hello"));
    let late = sim.connect(SERVER);
    sim.settle();
    assert_eq!(late.closed(), Some(End::Refused));
}

fn a_shutdown_accepts_the_backlog_whatever_the_accept_rate() {
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

fn an_upstream_that_an_active_request_needs_outlives_the_shutdown_call() {
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

fn a_request_that_arrives_during_a_shutdown_has_its_own_deadline() {
    let config = Config { shutdown_timeout: Some(secs(120)), ..Config::default() };
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Slow(secs(50)));
    let peer = sim.connect(SERVER);
    sim.settle();
    server.shutdown();
    // It has a time to end by then, and sends a request before that time.
    sim.advance(millis(500));
    peer.send(b"x");
    sim.advance(secs(60));
    peer.expect(b"done");
    drop(peer);
    sim.advance(secs(1));
    server.expect_closed(CloseReason::Shutdown);
    assert!(server.is_finished());
}

fn replies_have_no_gap_before_the_end_of_a_shutdown() {
    let mut sim = world(1);
    sim.set_buffers(8_192, 4_096);
    let server = sim.serve(SERVER, Config::default(), ping::Server);
    let peer = sim.connect(SERVER);
    peer.read_at(20_000);
    for number in 0..400 {
        if number == 40 {
            server.shutdown();
        }
        peer.send(format!("PING {number:04}{}\n", "x".repeat(990)).as_bytes());
        sim.advance(millis(25));
        if peer.closed().is_some() {
            break;
        }
    }
    sim.advance(secs(40));
    let got = String::from_utf8(peer.take()).unwrap();
    assert!(got.lines().count() > 10);
    for (number, line) in got.lines().enumerate() {
        assert!(line.starts_with(&format!("PONG {number:04}")), "{number}: {line}");
    }
}

/// How long after the shutdown began a client is closed that sends a request at `asks`, and
/// how long after its reply.
fn visit<H: Handler + 'static>(handler: H, asks: Option<Duration>) -> (Duration, Duration) {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), handler);
    let peer = sim.connect(SERVER);
    sim.advance(secs(2));
    server.shutdown();
    let began = sim.now();
    let mut replied = began;
    if let Some(asks) = asks {
        peer.send_after(asks, b"b");
    }
    while peer.closed().is_none() {
        sim.advance(millis(1));
        if !peer.take().is_empty() {
            replied = sim.now();
        }
    }
    (sim.now() - began, sim.now() - replied)
}

fn an_unannounced_client_gets_one_second_after_its_last_reply() {
    let (time, _) = visit(Echo, None);
    // It is idle again, or being served, when its time is over.
    let (_, after) = visit(Echo, Some(time - millis(50)));
    assert!(after >= millis(990), "{after:?}");
    let (_, after) = visit(Slow(millis(300)), Some(time - millis(50)));
    assert!(after >= millis(990), "{after:?}");
}

fn the_times_at_which_a_shutdown_ends_connections_count_as_no_lifetime() {
    for lifetime in [None, Some(secs(2))] {
        let mut config = Config::default();
        config.timeouts.lifetime = lifetime;
        let mut sim = world(1);
        let server = sim.serve(SERVER, config, Echo);
        let [idler, busy] = [(); 2].map(|()| sim.connect(SERVER));
        for peer in [&idler, &busy] {
            peer.send(b"a");
        }
        sim.advance(secs(1));
        server.shutdown();
        for _ in 0..20 {
            busy.send(b"a");
            sim.advance(millis(900));
        }
        assert!(server.is_finished());
        let stats = server.stats();
        let passed = stats.deadlines_by_label().find(|(label, _)| *label == "lifetime");
        assert_eq!(passed, Some(("lifetime", 0)));
    }
}

fn a_peer_that_never_pauses_does_not_delay_the_end_of_a_shutdown() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    let peer = sim.connect(SERVER);
    sim.advance(secs(1));
    server.shutdown();
    for _ in 0..16 * 2 {
        peer.send(b"b");
        sim.advance(millis(500));
    }
    assert!(peer.closed().is_some());
    drop(peer);
    sim.advance(secs(1));
    assert!(server.is_finished(), "half of its time has gone");
}

fn a_setting_says_how_long_a_peer_that_never_pauses_is_served() {
    for (busy, timeout, served) in [
        (Some(secs(15)), Some(secs(30)), secs(15)),
        (Some(secs(3)), Some(secs(30)), secs(3)),
        (Some(secs(20)), None, secs(20)),
        // The last reply has half of the time to leave.
        (Some(secs(15)), Some(secs(10)), secs(5)),
        // The rest of the shutdown's time is the deadline.
        (None, Some(secs(10)), secs(10)),
    ] {
        let config = Config { shutdown_busy: busy, shutdown_timeout: timeout, ..Config::default() };
        let mut sim = world(1);
        let server = sim.serve(SERVER, config, Echo);
        let peer = sim.connect(SERVER);
        sim.advance(secs(1));
        server.shutdown();
        let began = sim.now();
        while peer.closed().is_none() {
            peer.send(b"b");
            sim.advance(millis(500));
        }
        let took = sim.now() - began;
        assert!(
            took >= served && took <= served + secs(2),
            "{took:?} with {busy:?} of {timeout:?}"
        );
        let reason = if busy.is_none() { CloseReason::HardStop } else { CloseReason::Shutdown };
        assert_eq!(server.take_closed()[0].reason, reason);
    }
}

fn a_connection_that_is_paused_when_its_time_is_over_keeps_its_request() {
    for lifetime in [None, Some(secs(10))] {
        let mut config = Config::default();
        config.timeouts.lifetime = lifetime;
        let mut sim = world(1);
        let server = sim.serve(SERVER, config, Echo);
        let peer = sim.connect(SERVER);
        peer.send(b"a");
        sim.advance(secs(2));
        peer.expect(b"a");
        let id = server.with(|_, cx| cx.ids()[0]);
        server.shutdown();
        sim.advance(millis(100));
        server.with(|_, cx| cx.conn(id).unwrap().pause_reading());
        sim.advance(millis(10));
        peer.send(b"request");
        sim.advance(secs(12));
        assert_eq!(peer.closed(), None);
        server.with(|_, cx| cx.conn(id).unwrap().resume_reading());
        sim.advance(millis(10));
        peer.expect(b"request");
    }
}

/// Serves a byte in each turn, and says which was the last.
struct OneByOne;

impl OneByOne {
    fn serve(conn: &mut Conn<'_>, unread: usize) {
        conn.begin_request();
        let stays = conn.decide_keep_alive(unread).stays();
        conn.write(if stays { b"s" } else { b"g" });
        conn.end_request();
    }
}

impl Handler for OneByOne {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        if input[0] == b'p' && !conn.cx().is_shutting_down() {
            return conn.pause_reading();
        }
        Self::serve(conn, input.len() - 1);
        input.advance(1);
        conn.yield_now();
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        for id in cx.ids() {
            cx.conn(id).unwrap().resume_reading();
        }
    }
}

fn two_doors<H: Handler>(reactor: &mut Reactor<H, Host>) {
    reactor.listen(SERVER).unwrap();
    let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
    reactor.listen_with("10.0.0.1:9090", listen).unwrap();
}

fn requests_read_before_a_shutdown_are_served() {
    for listener in [SERVER, "10.0.0.1:9090"] {
        for first in [b'a', b'p'] {
            let mut sim = world(1);
            let server = sim.spawn("10.0.0.1", Config::default(), OneByOne, two_doors);
            let _other = sim.connect(SERVER);
            let peer = sim.connect(listener);
            sim.settle();
            let mut sent = vec![b'a'; 100];
            sent[0] = first;
            peer.send(&sent);
            while first == b'a' && peer.received().len() < 10 {
                sim.step();
            }
            if first == b'p' {
                sim.settle();
            }
            server.shutdown();
            sim.advance(millis(100));
            let got = peer.take();
            assert_eq!(got.len(), 100);
            // An exempt connection ends when all others have ended.
            let last = if listener == SERVER { b'g' } else { b's' };
            assert_eq!((&got[..99], got[99]), (&[b's'; 99][..], last));
        }
    }
}

fn a_peer_may_vanish_while_a_shutdown_waits_for_it() {
    for way in 0..3 {
        let mut sim = world(1);
        let server = serve_echo(&mut sim);
        let peers = idle(&mut sim, 10);
        let silent = sim.connect(SERVER);
        sim.settle();
        server.shutdown();
        sim.advance(millis(200));
        for peer in peers.iter().chain([&silent]) {
            match way {
                0 => peer.reset(),
                1 => peer.half_close(),
                _ => peer.close(),
            }
        }
        sim.settle();
        assert!(server.is_finished(), "none is left to wait for");
        let reason = if way == 0 { CloseReason::PeerReset } else { CloseReason::PeerEof };
        assert_eq!(server.stats().closed(reason), 11);
        sim.assert_clean();
    }
}

/// Notes the end of each client at an upstream, over a pool.
#[derive(Default)]
struct Notary {
    pool: Option<PoolId>,
    answers: u64,
}

impl Handler for Notary {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        self.pool = Some(cx.add_pool("10.0.0.2:80", &PoolConfig::default()).unwrap());
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        input.clear();
        match conn.origin() {
            Origin::Pool(_) => conn.end_request(),
            _ => conn.begin_request(),
        }
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, closed: Closed, _: ()) {
        if let Origin::Accepted(_) = closed.origin {
            let _ = cx.acquire(self.pool.unwrap(), AcquireOptions::default());
        }
    }

    fn on_loop_acquired(
        &mut self,
        cx: &mut Context<'_>,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.answers += 1;
        if let Some(mut conn) = lease.ok().and_then(|lease| cx.conn(lease)) {
            conn.begin_request();
            conn.write(b"one has ended\n");
        }
    }
}

fn a_hard_stop_leaves_no_connection_that_a_pool_dials_afterwards() {
    let mut sim = world(1);
    sim.serve("10.0.0.2:80", Config::default(), Echo);
    let server = sim.serve(SERVER, Config::default(), Notary::default());
    // More than are closed in one turn.
    let peers: Vec<_> = (0..1_500).map(|_| sim.connect(SERVER)).collect();
    sim.advance(secs(1));
    peers.iter().for_each(|peer| peer.send(b"owed"));
    sim.advance(secs(1));
    assert_eq!(server.connections(), 1_500);
    server.shutdown();
    sim.advance(secs(29));
    assert_eq!(server.connections(), 1_500);
    sim.advance(secs(2));
    assert!(server.is_finished(), "{} are left", server.connections());
}

/// Adds a pool that keeps a connection idle when a shutdown begins, and another when all is over.
#[derive(Default)]
struct Late {
    pools: Vec<PoolId>,
    refusals: Vec<AcquireFailure>,
}

impl Late {
    fn add(&mut self, cx: &mut Context<'_>) -> PoolId {
        let config = PoolConfig { idle_min: 1, ..PoolConfig::default() };
        let pool = cx.add_pool("10.0.0.2:80", &config).unwrap();
        self.pools.push(pool);
        pool
    }
}

impl Handler for Late {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        input.clear();
        conn.begin_request();
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        self.add(cx);
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, _: Closed, _: ()) {
        cx.acquire(self.pools[0], AcquireOptions::default()).unwrap();
    }

    fn on_loop_acquired(
        &mut self,
        cx: &mut Context<'_>,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let pool = self.add(cx);
        let asked = cx.acquire(pool, AcquireOptions::default());
        self.refusals.extend([lease.err(), asked.err()].into_iter().flatten().map(|it| it.failure));
    }
}

fn a_pool_that_is_added_in_a_shutdown_is_like_those_before_it() {
    let mut sim = world(1);
    sim.serve("10.0.0.2:80", Config::default(), Echo);
    let server = sim.serve(SERVER, Config::default(), Late::default());
    let peer = sim.connect(SERVER);
    peer.send(b"owed");
    sim.advance(secs(1));
    server.shutdown();
    sim.advance(secs(5));
    let dialled = server.with(|late, cx| cx.pool_stats(late.pools[0]).dialled);
    assert_eq!(dialled, 0, "for later");
    peer.reset();
    sim.advance(secs(1));
    assert!(server.is_finished());
    assert_eq!(server.handler().refusals, [AcquireFailure::Closed; 2]);
}
