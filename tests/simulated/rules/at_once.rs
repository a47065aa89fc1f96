//! What a connection asks a pool for in its own `on_data`: it gets an idle one as soon as that returns.

use wheelhouse::pool::{AcquireError, AcquireFailure, AcquireOptions, PoolConfig, PoolId, WaitId};

use super::*;

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
}

const UPSTREAM: &str = "10.0.0.2:9";

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
    upstream: wheelhouse::sim::PeerListener,
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

    fn stats(&self) -> wheelhouse::pool::PoolStats {
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
    // Whichever comes first has its lease before the other is read.
    assert!(happens[0].starts_with("begin ask"), "{happens:?}");
    assert_eq!(happens[1], "lease 0");
    assert!(happens[2].starts_with("begin ask"), "{happens:?}");
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
