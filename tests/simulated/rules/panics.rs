//! Panics in callbacks and in what is dropped: in turns with other work, and many in a row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wheelhouse::health::{EndpointConfig, HealthCheck};
use wheelhouse::pool::{AcquireError, AcquireOptions, PoolConfig, PoolId, WaitId};

use super::*;

with_each_personality! {
    a_panic_in_on_health_check_costs_one_connection,
    a_request_is_owed_still_whose_reply_a_panic_takes_back,
    a_session_that_panics_when_it_is_dropped_costs_no_other,
    a_turn_that_a_panic_cuts_short_leaves_nothing_undone,
    panics_in_a_row_do_not_starve_other_steps,
    panics_in_one_batch_of_events_stop_the_reactor_at_the_limit,
    output_that_a_panic_takes_back_sheds_no_connection,
    a_congested_connection_is_not_read_after_a_panic_that_takes_a_relay_back,
    no_on_eof_follows_an_on_active_that_panicked,
    no_on_test_request_follows_an_on_connected_that_panicked,
    no_answer_of_a_pool_follows_one_that_panicked,
    no_posted_closure_follows_one_that_panicked,
}

/// Panics in the callbacks that are chosen.
#[derive(Default)]
struct Bombs {
    health: bool,
    connected: bool,
    closed: Vec<CloseReason>,
}

#[derive(Default)]
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.0, "on purpose");
    }
}

impl Handler for Bombs {
    type Session = Bomb;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Bomb> {
        Some(Bomb(false))
    }

    fn on_connected(&mut self, _: &mut Conn<'_>, _: &mut Bomb) {
        assert!(!std::mem::take(&mut self.connected), "on purpose");
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, bomb: &mut Bomb, input: &mut BytesMut) {
        bomb.0 = input.starts_with(b"drop");
        conn.write(input);
        input.clear();
    }

    fn on_health_check(&mut self, conn: &mut Conn<'_>, _: &mut Bomb) {
        conn.write(b"secret");
        assert!(!self.health, "on purpose");
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, bomb: Bomb) {
        self.closed.push(closed.reason);
        drop(bomb);
    }
}

fn expect_echo(sim: &mut Sim) {
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.settle();
    peer.expect(b"x");
}

fn a_panic_in_on_health_check_costs_one_connection() {
    let mut config = Config::default();
    config.timeouts.ping_after = Some(secs(10));
    let mut sim = world(1);
    sim.allow_panics();
    let server = sim.serve(SERVER, config, Bombs { health: true, ..Bombs::default() });
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.advance(secs(11));
    peer.expect(b"x");
    assert_eq!(peer.closed(), Some(End::Reset));
    assert_eq!(server.handler().closed, [CloseReason::HandlerPanic]);
    expect_echo(&mut sim);
}

/// Replies to the request of one connection in a callback of another, and panics there.
#[derive(Default)]
struct Clerk {
    asks: Option<ConnId>,
    panics: bool,
}

impl Handler for Clerk {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        input.clear();
        let Some(asks) = self.asks else {
            self.asks = Some(conn.id());
            return conn.begin_request();
        };
        let mut other = conn.other(asks).unwrap();
        other.write(b"reply");
        other.end_request();
        assert!(!std::mem::take(&mut self.panics), "on purpose");
    }
}

fn a_request_is_owed_still_whose_reply_a_panic_takes_back() {
    let mut sim = world(1);
    sim.allow_panics();
    let server = sim.serve(SERVER, Config::default(), Clerk { panics: true, ..Clerk::default() });
    let peers = [(); 3].map(|()| sim.connect(SERVER));
    for peer in &peers[..2] {
        peer.send(b"x");
        sim.settle();
    }
    let asks = server.handler().asks.unwrap();
    let owed = || server.with(|_, cx| cx.conn(asks).unwrap().in_flight());
    assert_eq!((owed(), server.stats().requests), (1, 0));
    peers[2].send(b"x");
    sim.settle();
    peers[0].expect(b"reply");
    assert_eq!((owed(), server.stats().requests), (0, 2));
}

fn a_session_that_panics_when_it_is_dropped_costs_no_other() {
    let mut sim = world(1);
    sim.allow_panics();
    let server = sim.serve(SERVER, Config::default(), Bombs::default());
    let bystander = sim.connect(SERVER);
    let peer = sim.connect(SERVER);
    peer.send(b"drop");
    sim.settle();
    peer.close();
    sim.settle();
    assert_eq!(server.stats().panics, 1);
    assert_eq!((server.connections(), server.descriptors()), (1, 2));
    bystander.send(b"x");
    sim.settle();
    bystander.expect(b"x");
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
        assert_ne!(&input[..], b"p", "on purpose");
        conn.write(input);
        input.clear();
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, _: &mut ()) {
        conn.write(b"t");
    }
}

fn a_turn_that_a_panic_cuts_short_leaves_nothing_undone() {
    for panicking in [0, 1, 20, 39] {
        let mut sim = world(1);
        sim.allow_panics();
        let server = sim.serve(SERVER, Config::default(), Fragile);
        let peers: Vec<_> = (0..40).map(|_| sim.connect(SERVER)).collect();
        sim.advance(millis(95));
        // In one turn: bytes for all, a new connection, a closure, and soon after it timers.
        for (at, peer) in peers.iter().enumerate() {
            peer.send(if at == panicking { b"p" } else { b"x" });
        }
        let newcomer = sim.connect(SERVER);
        newcomer.send(b"n");
        let ran = Arc::new(AtomicBool::new(false));
        let runs = Arc::clone(&ran);
        server.handle().post(move |_, _| runs.store(true, Ordering::Relaxed)).unwrap();
        sim.settle();
        assert!(ran.load(Ordering::Relaxed));
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
        assert_ne!(&input[..], b"p", "on purpose");
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

fn panics_in_a_row_do_not_starve_other_steps() {
    let mut sim = world(1);
    let (server, peers) = storm(&mut sim, None);
    sim.advance(secs(1));
    // What panicked is closed, which is a step of its own, before the next ones are served.
    let most = server.with(|fuse, _| fuse.inputs_max);
    assert!(most <= 4, "{most}");
    assert_eq!(server.stats().panics, 300);
    assert!(peers.iter().all(|peer| peer.closed() == Some(End::Reset)));
}

fn panics_in_one_batch_of_events_stop_the_reactor_at_the_limit() {
    let mut sim = world(1);
    let (server, _peers) = storm(&mut sim, Some(Rate::new(10, secs(60))));
    sim.advance(secs(1));
    assert!(server.is_finished());
    assert!(server.stats().panics < 40, "{}", server.stats().panics);
}

/// Writes to the first connection whenever another ends, and panics over it.
#[derive(Default)]
struct Panics {
    first: Option<ConnId>,
}

impl Handler for Panics {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.first.get_or_insert_with(|| conn.id());
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, _: Closed, _: ()) {
        if let Some(mut conn) = self.first.and_then(|id| cx.conn(id)) {
            conn.write(&[b'x'; 400_000]);
            panic!("on purpose");
        }
    }
}

fn output_that_a_panic_takes_back_sheds_no_connection() {
    let mut config = Config::default();
    config.limits.buffered_max = 350_000;
    let mut sim = world(1);
    sim.allow_panics();
    let server = sim.serve(SERVER, config, Panics::default());
    let friend = sim.connect(SERVER);
    let other = sim.connect(SERVER);
    sim.settle();
    other.reset();
    sim.settle();
    assert_eq!(server.stats().panics, 1);
    friend.send(b"hi");
    sim.settle();
    friend.expect(b"hi");
    friend.close();
    sim.settle();
}

/// Writes much to a connection, and lets another be relayed with it and panics.
#[derive(Default)]
struct Relays {
    first: Option<ConnId>,
    read_while_congested: bool,
}

impl Handler for Relays {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        self.read_while_congested |= conn.is_congested();
        match &input.split()[..] {
            b"fill" => {
                self.first = Some(conn.id());
                conn.write(&[0; 400_000]);
            }
            b"relay" => {
                assert!(conn.relay_with(self.first.unwrap()));
                panic!("on purpose");
            }
            _ => {}
        }
    }
}

fn a_congested_connection_is_not_read_after_a_panic_that_takes_a_relay_back() {
    let mut sim = world(1);
    sim.allow_panics();
    sim.set_buffers(4_096, 4_096);
    let server = sim.serve(SERVER, Config::default(), Relays::default());
    let [first, second] = [(); 2].map(|()| sim.connect(SERVER));
    first.stop_reading();
    for (peer, sent) in [(&first, "fill"), (&second, "relay"), (&first, "more")] {
        peer.send(sent.as_bytes());
        sim.advance(millis(50));
    }
    assert_eq!(server.stats().panics, 1);
    assert!(!server.with(|relays, _| relays.read_while_congested));
}

/// Panics when it is told of a beginning, and notes what comes behind that.
#[derive(Default)]
struct Startled {
    checks: bool,
    later: Vec<&'static str>,
}

impl Handler for Startled {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        if self.checks {
            let check = HealthCheck::TestRequest;
            let config = EndpointConfig { check, ..EndpointConfig::default() };
            cx.add_endpoint("10.0.0.2:80", &config).unwrap();
        }
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_connected(&mut self, _: &mut Conn<'_>, (): &mut ()) {
        assert!(!self.checks, "on purpose");
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        conn.expect_input(10);
    }

    fn on_active(&mut self, _: &mut Conn<'_>, (): &mut ()) {
        panic!("on purpose");
    }

    fn on_eof(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {
        self.later.push("on_eof");
    }

    fn on_test_request(&mut self, _: &mut Conn<'_>, (): &mut ()) {
        self.later.push("on_test_request");
    }
}

fn no_on_eof_follows_an_on_active_that_panicked() {
    let mut sim = world(1);
    sim.allow_panics();
    let server = sim.serve(SERVER, Config::default(), Startled::default());
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.settle();
    peer.send(b"a part");
    peer.half_close();
    sim.settle();
    server.expect_closed(CloseReason::HandlerPanic);
    assert_eq!(server.handler().later, [""; 0]);
}

fn no_on_test_request_follows_an_on_connected_that_panicked() {
    let mut sim = world(1);
    sim.allow_panics();
    sim.serve("10.0.0.2:80", Config::default(), Echo);
    let startled = Startled { checks: true, ..Startled::default() };
    let server = sim.serve(SERVER, Config::default(), startled);
    sim.advance(millis(100));
    server.expect_closed(CloseReason::HandlerPanic);
    assert_eq!(server.handler().later, [""; 0]);
}

/// Asks a pool for two connections for each client, and panics over each that it gets.
#[derive(Default)]
struct Greedy {
    pool: Option<PoolId>,
    answers: u32,
}

impl Handler for Greedy {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let config = PoolConfig { idle_min: 2, ..PoolConfig::default() };
        self.pool = Some(cx.add_pool("10.0.0.2:80", &config).unwrap());
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        for _ in 0..2 {
            conn.acquire(self.pool.unwrap(), AcquireOptions::default()).unwrap();
        }
    }

    fn on_acquired(
        &mut self,
        _: &mut Conn<'_>,
        (): &mut (),
        _: WaitId,
        _: Result<ConnId, AcquireError>,
    ) {
        self.answers += 1;
        panic!("on purpose");
    }
}

fn no_answer_of_a_pool_follows_one_that_panicked() {
    let mut sim = world(1);
    sim.allow_panics();
    sim.serve("10.0.0.2:80", Config::default(), Echo);
    let server = sim.serve(SERVER, Config::default(), Greedy::default());
    sim.advance(secs(1));
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.settle();
    server.expect_closed(CloseReason::HandlerPanic);
    assert_eq!(server.handler().answers, 1);
    let stats = server.with(|greedy, cx| cx.pool_stats(greedy.pool.unwrap()));
    assert_eq!((stats.leased, stats.waiting), (0, 0), "{stats:?}");
}

fn no_posted_closure_follows_one_that_panicked() {
    let mut sim = world(1);
    sim.allow_panics();
    let server = sim.serve(SERVER, Config::default(), Startled::default());
    let _peer = sim.connect(SERVER);
    sim.settle();
    let id = server.with(|_, cx| cx.ids()[0]);
    let handle = server.handle();
    handle.post_to(id, |_, _, ()| panic!("on purpose")).unwrap();
    handle.post_to(id, |startled, _, ()| startled.later.push("a closure")).unwrap();
    sim.settle();
    server.expect_closed(CloseReason::HandlerPanic);
    assert_eq!(server.handler().later, [""; 0]);
}
