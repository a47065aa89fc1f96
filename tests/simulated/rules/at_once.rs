//! What a connection asks a pool for in its own `on_data`: it gets an idle one as soon as that returns.

use std::collections::BTreeMap;

use wheelhouse::Instant;
use wheelhouse::health::{EndpointConfig, EndpointState};
use wheelhouse::pool::{
    AcquireError, AcquireFailure, AcquireOptions, PoolConfig, PoolId, PoolOrder, PoolStats, WaitId,
};
use wheelhouse::sim::PeerListener;

use super::*;
use crate::pooled::Proxy;

with_each_personality! {
    an_idle_connection_is_leased_right_behind_on_data,
    what_asks_twice_is_answered_in_the_order_of_asking,
    what_is_asked_for_in_one_callback_counts_against_the_most_that_may_wait,
    what_is_cancelled_in_the_callback_that_asked_is_not_answered,
    a_callback_that_asks_and_panics_gets_no_answer,
    an_answer_that_panics_costs_its_connection_and_its_lease,
    a_connection_that_asks_and_closes_gets_no_answer,
    a_connection_without_a_request_goes_idle_before_it_is_answered,
    a_connection_that_has_served_its_last_request_gets_no_lease,
    what_asks_counts_as_waiting_in_its_callback,
    a_pool_that_is_closed_behind_the_asking_answers_with_an_error,
    an_idle_connection_that_is_found_dead_is_replaced,
    what_is_asked_for_in_an_answer_comes_with_the_next_turn,
    what_asks_two_pools_is_answered_in_the_order_of_asking,
    what_asks_first_in_a_group_is_answered_first,
    a_connection_whose_write_failed_gets_no_lease,
    a_connection_whose_peer_is_gone_gets_no_lease,
    an_answer_behind_a_long_on_data_knows_the_time,
    what_an_answer_asks_for_behind_a_long_on_data_waits_its_time,
    a_lost_request_makes_the_checks_of_its_endpoint_fast,
    a_connection_that_is_idle_in_its_pool_and_yields_costs_no_turns,
}

const UPSTREAM: &str = "10.0.0.2:9";
const SECOND: &str = "10.0.0.3:9";

/// Does what each word of its input says, and keeps a list of what happens.
struct Told {
    config: PoolConfig,
    pool: Option<PoolId>,
    waits: Vec<WaitId>,
    /// What the next answer does.
    answer: &'static str,
    happened: Vec<String>,
}

impl Told {
    fn ask(&mut self, conn: &mut Conn<'_>) {
        match conn.acquire(self.pool.unwrap(), AcquireOptions::default()) {
            Ok(wait) => self.waits.push(wait),
            Err(error) => self.happened.push(format!("refused: {:?}", error.failure)),
        }
    }
}

impl Handler for Told {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        self.pool = Some(cx.add_pool(UPSTREAM, &self.config).unwrap());
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        let told = String::from_utf8(input.split().to_vec()).unwrap();
        self.happened.push(told.clone());
        for word in told.split(' ') {
            match word {
                "begin" => conn.begin_request(),
                "end" => conn.end_request(),
                "ask" => self.ask(conn),
                "cancel" => assert!(conn.cancel_acquire(self.waits.pop().unwrap())),
                "shut" => conn.cx().close_pool(self.pool.unwrap()),
                "close" => conn.close(),
                "abort" => conn.abort(),
                "panic" => panic!("on purpose"),
                "count" => {
                    let stats = conn.cx().pool_stats(self.pool.unwrap());
                    self.happened.push(format!("{} of {} wait", stats.waiting, stats.asked));
                }
                _ => {}
            }
        }
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        (): &mut (),
        wait: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let number = self.waits.iter().position(|it| *it == wait).unwrap();
        match lease {
            Ok(lease) => {
                self.happened.push(format!("lease {number}"));
                assert!(conn.other(lease).is_some(), "it is there");
                match std::mem::take(&mut self.answer) {
                    "panic" => panic!("on purpose"),
                    "ask" => self.ask(conn),
                    _ => {}
                }
                conn.release(lease);
            }
            Err(error) => self.happened.push(format!("no lease {number}: {:?}", error.failure)),
        }
    }

    fn on_idle(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        if matches!(conn.origin(), Origin::Accepted(_)) {
            self.happened.push("idle".into());
        }
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, (): ()) {
        self.happened.push(closed.reason.to_string());
    }
}

struct Setup {
    sim: Sim,
    upstream: PeerListener,
    server: Server<Told>,
    client: Peer,
}

impl Setup {
    /// A pool of two idle connections, and a client that is connected.
    fn new() -> Self {
        Self::with(PoolConfig::default())
    }

    fn with(pool: PoolConfig) -> Self {
        Self::serving(Config::default(), pool)
    }

    fn serving(server: Config, config: PoolConfig) -> Self {
        let config = PoolConfig { size: 2, idle_min: 2, ..config };
        let mut sim = world(1);
        sim.allow_panics();
        let upstream = sim.listen(UPSTREAM, 64);
        let told = Told { config, pool: None, waits: vec![], answer: "", happened: vec![] };
        let server = sim.serve(SERVER, server, told);
        let client = sim.connect(SERVER);
        sim.advance(secs(1));
        let setup = Self { sim, upstream, server, client };
        assert_eq!(setup.stats().idle, 2);
        setup
    }

    fn stats(&self) -> PoolStats {
        self.server.with(|told, cx| cx.pool_stats(told.pool.unwrap()))
    }

    /// What happens when the client tells this.
    fn happens(&mut self, told: &str) -> Vec<String> {
        self.client.send(told.as_bytes());
        self.sim.settle();
        self.server.with(|told, _| std::mem::take(&mut told.happened))
    }

    /// A client is served as ever, and no place is lost.
    fn expect_sound(&mut self) {
        self.client = self.sim.connect(SERVER);
        self.sim.settle();
        self.server.with(|told, _| told.waits.clear());
        let happens = self.happens("begin ask");
        assert_eq!(happens, ["begin ask", "lease 0"]);
        let stats = self.stats();
        assert_eq!((stats.open, stats.idle, stats.leased, stats.waiting), (2, 2, 0, 0));
    }
}

fn an_idle_connection_is_leased_right_behind_on_data() {
    let mut setup = Setup::new();
    let other = setup.sim.connect(SERVER);
    setup.sim.settle();
    other.send(b"begin ask other");
    let happens = setup.happens("begin ask one");
    assert_eq!(happens.len(), 4, "{happens:?}");
    // Whichever comes first has its lease before the other is read, unless the backend does not say that
    // nothing is left in its socket: that could be its peer's end.
    let is_weak = PERSONALITY.get() == Some(Personality::Weakest);
    let second = if is_weak { 1 } else { 2 };
    assert!(happens[0].starts_with("begin ask"), "{happens:?}");
    assert!(happens[second].starts_with("begin ask"), "{happens:?}");
    assert_eq!(happens[3 - second], "lease 0");
    assert_eq!(happens[3], "lease 1");
    let stats = setup.stats();
    assert_eq!((stats.asked, stats.leases, stats.leased), (2, 2, 0));
}

fn what_asks_twice_is_answered_in_the_order_of_asking() {
    let mut setup = Setup::new();
    let happens = setup.happens("begin ask ask ask");
    assert_eq!(happens, ["begin ask ask ask", "lease 0", "lease 1", "lease 2"]);
    setup.expect_sound();
}

fn what_is_asked_for_in_one_callback_counts_against_the_most_that_may_wait() {
    let mut setup = Setup::with(PoolConfig { waiters_max: 1, ..PoolConfig::default() });
    let happens = setup.happens("begin ask ask");
    let refused = format!("refused: {:?}", AcquireFailure::TooManyWaiters);
    assert_eq!(happens, ["begin ask ask", &refused, "lease 0"]);
    assert_eq!(setup.stats().refused, 1);
    setup.expect_sound();
}

fn what_is_cancelled_in_the_callback_that_asked_is_not_answered() {
    let mut setup = Setup::new();
    assert_eq!(setup.happens("ask cancel"), ["ask cancel", "idle"]);
    let happens = setup.happens("begin ask ask cancel cancel");
    assert_eq!(happens, ["begin ask ask cancel cancel"]);
    let stats = setup.stats();
    assert_eq!((stats.asked, stats.cancelled, stats.leases), (3, 3, 0));
    setup.expect_sound();
}

fn a_callback_that_asks_and_panics_gets_no_answer() {
    let mut setup = Setup::new();
    let happens = setup.happens("begin ask panic");
    assert_eq!(happens, ["begin ask panic", &CloseReason::HandlerPanic.to_string()]);
    let stats = setup.stats();
    assert_eq!((stats.asked, stats.cancelled, stats.leases, stats.open), (1, 1, 0, 2));
    setup.expect_sound();
}

fn an_answer_that_panics_costs_its_connection_and_its_lease() {
    let mut setup = Setup::new();
    setup.server.with(|told, _| told.answer = "panic");
    let happens = setup.happens("begin ask");
    let ends = [CloseReason::HandlerPanic, CloseReason::OwnerGone].map(|it| it.to_string());
    assert_eq!(happens[..2], ["begin ask", "lease 0"]);
    assert!(happens.len() == 4 && ends.iter().all(|end| happens.contains(end)), "{happens:?}");
    assert_eq!(setup.stats().owner_gone, 1);
    setup.sim.advance(secs(1));
    setup.expect_sound();
}

fn a_connection_that_asks_and_closes_gets_no_answer() {
    for end in ["close", "abort"] {
        let mut setup = Setup::new();
        let told = format!("begin ask {end}");
        let happens = setup.happens(&told);
        assert_eq!(happens[0], told);
        assert!(happens[1..].iter().all(|it| !it.starts_with("lease")), "{happens:?}");
        setup.sim.advance(secs(10));
        let stats = setup.stats();
        assert_eq!((stats.asked, stats.cancelled, stats.leases, stats.idle), (1, 1, 0, 2));
        setup.expect_sound();
    }
}

fn a_connection_without_a_request_goes_idle_before_it_is_answered() {
    let mut setup = Setup::new();
    for (number, told) in ["begin ask end", "ask"].into_iter().enumerate() {
        let happens = setup.happens(told);
        assert_eq!(happens, [told, "idle", &format!("lease {number}")]);
    }
}

fn a_connection_that_has_served_its_last_request_gets_no_lease() {
    let mut config = Config::default();
    config.limits.requests_max = Some(1);
    let mut setup = Setup::serving(config, PoolConfig::default());
    let happens = setup.happens("ask");
    assert_eq!(happens[0], "ask");
    assert!(happens[1..].iter().all(|it| !it.starts_with("lease")), "{happens:?}");
    let stats = setup.stats();
    assert_eq!((stats.cancelled, stats.leases, stats.idle), (1, 0, 2));
}

fn what_asks_counts_as_waiting_in_its_callback() {
    let mut setup = Setup::new();
    let happens = setup.happens("begin ask count ask count cancel count");
    assert_eq!(happens[1..4], ["1 of 1 wait", "2 of 2 wait", "1 of 2 wait"]);
    assert_eq!(happens[4..], ["lease 0"]);
}

fn a_pool_that_is_closed_behind_the_asking_answers_with_an_error() {
    let mut setup = Setup::new();
    let happens = setup.happens("begin ask shut");
    let failure = format!("no lease 0: {:?}", AcquireFailure::Closed);
    assert!(happens.contains(&failure), "{happens:?}");
    assert_eq!(setup.stats().leases, 0);
}

fn an_idle_connection_that_is_found_dead_is_replaced() {
    let mut setup = Setup::new();
    let upstreams = [setup.upstream.accept().unwrap(), setup.upstream.accept().unwrap()];
    // The request is read in the turn in which both have ended, and which of the events comes first is
    // the poller's choice.
    upstreams.iter().for_each(Peer::close);
    let happens = setup.happens("begin ask");
    assert_eq!(happens[0], "begin ask", "{happens:?}");
    setup.sim.advance(secs(1));
    let happens = setup.happens("count");
    assert!(happens.contains(&"0 of 1 wait".into()), "{happens:?}");
    let stats = setup.stats();
    assert_eq!((stats.lost_idle, stats.leases, stats.dialled), (2, 1, 4));
    setup.expect_sound();
}

fn what_is_asked_for_in_an_answer_comes_with_the_next_turn() {
    let mut setup = Setup::new();
    setup.server.with(|told, _| told.answer = "ask");
    let happens = setup.happens("begin ask");
    assert_eq!(happens, ["begin ask", "lease 0", "lease 1"]);
    setup.expect_sound();
}

/// Asks the pools that it is told to, of two that may be a group.
struct Two {
    group: Option<usize>,
    pools: Vec<PoolId>,
    waits: BTreeMap<WaitId, usize>,
    happened: Vec<String>,
    keep: bool,
}

impl Handler for Two {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let group = self.group.map(|max| cx.add_pool_group(max));
        let config = PoolConfig { size: 2, group, ..PoolConfig::default() };
        self.pools =
            [UPSTREAM, SECOND].map(|target| cx.add_pool(target, &config).unwrap()).to_vec();
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        let told = String::from_utf8(input.split().to_vec()).unwrap();
        for word in told.split(' ') {
            match word {
                "begin" => conn.begin_request(),
                "end" => conn.end_request(),
                "write" => conn.write(b"100"),
                "0" | "1" => {
                    let pool: usize = word.parse().unwrap();
                    let wait = conn.acquire(self.pools[pool], AcquireOptions::default()).unwrap();
                    self.waits.insert(wait, pool);
                }
                _ => {}
            }
        }
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        (): &mut (),
        wait: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let pool = self.waits[&wait];
        match lease {
            Ok(lease) => {
                self.happened.push(format!("lease of {pool}"));
                if !self.keep {
                    conn.release(lease);
                }
            }
            Err(error) => self.happened.push(format!("none of {pool}: {:?}", error.failure)),
        }
    }
}

fn two(group: Option<usize>) -> (Sim, Server<Two>, Vec<PeerListener>) {
    let mut sim = world(1);
    let listeners = [UPSTREAM, SECOND].map(|it| sim.listen(it, 8)).into();
    let two = Two { group, pools: vec![], waits: BTreeMap::new(), happened: vec![], keep: false };
    let server = sim.serve(SERVER, Config::default(), two);
    (sim, server, listeners)
}

fn warm(sim: &mut Sim, pools: &str) {
    let peer = sim.connect(SERVER);
    peer.send(format!("begin {pools} end").as_bytes());
    sim.advance(secs(1));
    peer.close();
    sim.advance(secs(1));
}

fn what_asks_first_in_a_group_is_answered_first() {
    let (mut sim, server, _listeners) = two(Some(1));
    warm(&mut sim, "1");
    assert_eq!(server.with(|it, cx| cx.pool_stats(it.pools[1]).idle), 1);
    server.with(|it, _| it.happened.clear());
    let peer = sim.connect(SERVER);
    peer.send(b"begin 0 1");
    sim.advance(secs(1));
    assert_eq!(server.with(|it, _| it.happened.clone()), ["lease of 0", "lease of 1"]);
}

fn what_asks_two_pools_is_answered_in_the_order_of_asking() {
    let (mut sim, server, _listeners) = two(None);
    warm(&mut sim, "0 1");
    server.with(|it, _| it.happened.clear());
    let peer = sim.connect(SERVER);
    peer.send(b"begin 0 1");
    sim.advance(secs(1));
    assert_eq!(server.with(|it, _| it.happened.clone()), ["lease of 0", "lease of 1"]);
}

fn a_connection_whose_write_failed_gets_no_lease() {
    let (mut sim, server, _listeners) = two(None);
    warm(&mut sim, "0");
    server.with(|it, _| (it.happened.clear(), it.keep = true));
    let peer = sim.connect(SERVER);
    sim.settle();
    server.fail(Call::Write, 0, errno::EPIPE);
    peer.send(b"begin write 0");
    sim.advance(secs(1));
    let stats = server.with(|it, cx| cx.pool_stats(it.pools[0]));
    let happened = server.with(|it, _| it.happened.clone());
    assert_eq!((stats.leases, stats.owner_gone, stats.idle), (1, 0, 1), "{happened:?}");
}

fn a_connection_whose_peer_is_gone_gets_no_lease() {
    let (mut sim, server, _listeners) = two(None);
    warm(&mut sim, "0");
    server.with(|it, _| (it.happened.clear(), it.keep = true));
    let peer = sim.connect(SERVER);
    sim.settle();
    peer.send(b"begin 0");
    peer.reset();
    sim.advance(secs(1));
    let stats = server.with(|it, cx| cx.pool_stats(it.pools[0]));
    let happened = server.with(|it, _| it.happened.clone());
    assert_eq!((stats.leases, stats.owner_gone, stats.idle), (1, 0, 1), "{happened:?}");
}

/// Asks in an `on_data` that takes long.
struct Late {
    stall: Box<dyn Fn(Duration)>,
    pool: Option<PoolId>,
    came: Vec<(Instant, bool)>,
    asks_again: bool,
}

impl Handler for Late {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let config = PoolConfig { size: 1, idle_min: 1, ..PoolConfig::default() };
        self.pool = Some(cx.add_pool(UPSTREAM, &config).unwrap());
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        conn.begin_request();
        conn.acquire(self.pool.unwrap(), AcquireOptions::default()).unwrap();
        (self.stall)(millis(60));
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        (): &mut (),
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.came.push((conn.now(), lease.is_ok()));
        if std::mem::take(&mut self.asks_again) {
            let timeout = Some(millis(50));
            let options = AcquireOptions { timeout, ..AcquireOptions::default() };
            conn.acquire(self.pool.unwrap(), options).unwrap();
            conn.set_timer(conn.now() + millis(20));
        }
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        self.came.push((conn.now(), true));
    }
}

fn late(asks_again: bool) -> (Instant, Vec<(Instant, bool)>) {
    let mut sim = world(1);
    let stall = Box::new(sim.stall());
    let _listener = sim.listen(UPSTREAM, 8);
    let late = Late { stall, pool: None, came: vec![], asks_again };
    let server = sim.serve(SERVER, Config::default(), late);
    let peer = sim.connect(SERVER);
    sim.advance(secs(1));
    let asked = server.with(|_, cx| cx.now());
    peer.send(b"x");
    sim.advance(secs(1));
    (asked, server.with(|it, _| it.came.clone()))
}

fn an_answer_behind_a_long_on_data_knows_the_time() {
    let (asked, came) = late(false);
    assert!(came[0].0.duration_since(asked) >= millis(55), "{asked:?} {came:?}");
}

fn what_an_answer_asks_for_behind_a_long_on_data_waits_its_time() {
    let (_, came) = late(true);
    // The timer, and then the wait: 20 and 50 ms behind the first answer, which came behind 60 ms.
    let after: Vec<_> = came.iter().map(|it| it.0.duration_since(came[0].0)).collect();
    assert!(after[1] >= millis(19) && after[1] < millis(30), "{after:?}");
    assert!(after[2] >= millis(49) && after[2] < millis(60), "{after:?}");
}

fn a_lost_request_makes_the_checks_of_its_endpoint_fast() {
    let mut sim = world(1);
    let listener = sim.listen(UPSTREAM, 64);
    let mut proxy =
        Proxy::new(PoolConfig { idle_min: 1, acquire: secs(100), ..PoolConfig::default() });
    proxy.replays = true;
    proxy.checks = Some(EndpointConfig {
        interval: secs(1),
        down_interval: secs(40),
        ..EndpointConfig::default()
    });
    let mut config = Config::default();
    config.timeouts.read = Some(secs(1000));
    config.timeouts.response = Some(secs(1000));
    let proxy = sim.serve(SERVER, config, proxy);
    sim.advance(secs(1));
    let client = sim.connect(SERVER);
    sim.settle();
    client.send(b"line\n");
    sim.advance(millis(100));
    let mut upstream = None;
    while let Some(peer) = listener.accept() {
        if peer.take() == b"line\n" {
            upstream = Some(peer);
        }
    }
    let upstream = upstream.unwrap();
    drop(listener);
    let state = |proxy: &Server<Proxy>| {
        proxy.with(|it, cx| cx.endpoint(it.endpoint.unwrap()).unwrap().state)
    };
    for _ in 0..10_000 {
        if state(&proxy) == EndpointState::Down {
            break;
        }
        sim.advance(millis(1));
    }
    assert_eq!(state(&proxy), EndpointState::Down);
    sim.advance(secs(2));
    upstream.reset();
    sim.advance(millis(10));
    let stats = proxy.with(|it, cx| cx.pool_stats(it.pool.unwrap()));
    assert_eq!((stats.waiting, stats.replayed), (1, 1));
    let _listener = sim.listen(UPSTREAM, 64);
    let began = sim.now();
    while state(&proxy) != EndpointState::Up {
        sim.advance(millis(1));
        assert!(sim.now() - began < secs(90));
    }
    assert!(sim.now() - began < secs(3), "it took {:?}", sim.now() - began);
}

/// Lets a connection that has just been given back ask for another one, and yield in the answer.
#[derive(Default)]
struct Yields {
    pool: Option<PoolId>,
    answers: u32,
}

impl Handler for Yields {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let config = PoolConfig { idle_min: 2, order: PoolOrder::Fifo, ..PoolConfig::default() };
        self.pool = Some(cx.add_pool(UPSTREAM, &config).unwrap());
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        conn.begin_request();
        conn.acquire(self.pool.unwrap(), AcquireOptions::default()).unwrap();
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        (): &mut (),
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.answers += 1;
        let lease = lease.unwrap();
        if conn.id() != lease && matches!(conn.origin(), Origin::Accepted(_)) {
            let mut upstream = conn.other(lease).unwrap();
            upstream.acquire(self.pool.unwrap(), AcquireOptions::default()).unwrap();
        }
        conn.release(lease);
        conn.yield_now();
    }
}

fn a_connection_that_is_idle_in_its_pool_and_yields_costs_no_turns() {
    let mut sim = world(1);
    let _upstream = sim.listen(UPSTREAM, 8);
    let server = sim.serve(SERVER, Config::default(), Yields::default());
    let peer = sim.connect(SERVER);
    sim.advance(secs(1));
    peer.send(b"x");
    sim.advance(secs(1));
    assert_eq!(server.handler().answers, 2);
}
