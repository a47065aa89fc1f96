//! Endpoints: what is down is found and not dialled, what is back is used soon, and what fails alike
//! is not thrown out.

use std::net::SocketAddr;

use wheelhouse::ConnectError;
use wheelhouse::health::{EndpointConfig, EndpointId, EndpointState, EndpointStats, HealthCheck};
use wheelhouse::pool::{AcquireError, AcquireFailure, AcquireOptions, PoolConfig, PoolId, WaitId};

use super::*;
use crate::endpoints::{Balancer, SERVERS, Weak};
use crate::pooled::{Lines, Proxy, UPSTREAM};

with_each_personality! {
    the_first_check_that_passes_brings_an_endpoint_up_and_the_first_that_fails_down,
    three_failures_in_a_row_take_an_endpoint_down_and_two_successes_bring_it_up,
    a_check_that_fails_now_and_then_takes_nothing_down,
    pauses_between_checks_are_at_random_and_never_longer_than_they_may,
    a_check_without_an_answer_ends_at_its_timeout_and_there_is_one_at_a_time,
    a_test_request_fails_with_a_wrong_reply_an_end_and_a_refusal,
    a_check_has_not_passed_before_it_stands,
    a_test_request_that_sends_nothing_passes,
    a_check_ends_with_a_fin_and_leaves_nothing,
    a_check_that_meets_itself_has_failed,
    checks_that_fail_by_chance_shut_no_one_out,
    when_all_are_down_clients_hear_why_and_the_first_that_is_back_is_used_soon,
    a_server_that_answers_and_closes_at_once_stays_up,
    a_check_that_is_answered_and_reset_at_once_has_passed,
    five_failures_in_a_row_eject_an_endpoint_for_longer_each_time,
    a_success_between_failures_keeps_an_endpoint,
    a_check_that_passes_ends_an_ejection,
    no_more_than_half_of_a_group_is_down_or_ejected_by_ejection,
    our_own_shortages_count_against_no_endpoint,
    checks_leave_half_of_an_operators_places,
    failures_that_the_application_notes_eject_though_connections_end_well,
    a_shutdown_lets_pools_dial_what_was_down,
    an_endpoint_that_is_not_up_holds_no_pool_during_a_shutdown,
    an_endpoint_that_is_removed_is_checked_no_more,
    a_shutdown_ends_checks_and_begins_none,
    the_connections_of_an_endpoint_are_counted_until_they_are_closed,
    a_pool_does_not_dial_while_its_endpoint_is_down_and_at_once_when_it_is_back,
    a_pool_that_is_full_makes_the_checks_of_its_endpoint_fast,
    a_pool_that_fails_fast_says_that_its_endpoint_is_down,
    idle_connections_of_a_pool_are_leased_while_its_endpoint_is_down,
    failed_dials_of_a_pool_count_and_exchanges_that_end_well_do_too,
    settings_of_endpoints_are_checked,
}

/// On the hosts of the servers, which without them would not refuse a dial, but not be there.
const OTHER_PORTS: [&str; 3] = ["10.0.1.1:10", "10.0.1.2:10", "10.0.1.3:10"];

/// A balancer, and the machines of its servers.
struct Setup {
    sim: Sim,
    front: Server<Balancer>,
    _machines: [Server<Echo>; 3],
}

impl Setup {
    fn new(config: EndpointConfig) -> Self {
        Self::with(Balancer::new(config))
    }

    fn with(balancer: Balancer) -> Self {
        let mut sim = world(1);
        let machines = OTHER_PORTS.map(|address| sim.serve(address, Config::default(), Echo));
        let front = sim.serve(SERVER, Config::default(), balancer);
        Self { sim, front, _machines: machines }
    }

    fn serve(&mut self, at: usize) -> Server<Weak> {
        let random = self.sim.random();
        self.sim.serve(SERVERS[at], Config::default(), Weak { random, percent: 0 })
    }

    fn stats(&self) -> Vec<EndpointStats> {
        self.front.with(|balancer, cx| balancer.stats(cx))
    }

    fn state(&self, at: usize) -> EndpointState {
        self.stats()[at].state
    }

    /// What a client gets that asks now.
    fn ask(&mut self) -> Vec<u8> {
        let peer = self.sim.connect(SERVER);
        peer.send(b"line\n");
        self.sim.advance(millis(50));
        let reply = peer.take();
        peer.close();
        self.sim.settle();
        reply
    }

    /// Lets time pass until the endpoint is in a state, and returns how much.
    fn until(&mut self, at: usize, state: EndpointState) -> Duration {
        self.sim.settle();
        let began = self.sim.now();
        while self.state(at) != state {
            assert!(self.sim.now() - began < secs(60), "{:?}", self.stats());
            self.sim.advance(millis(1));
        }
        self.sim.now() - began
    }

    /// How many checks ended so far that said something.
    fn checks(&self, at: usize) -> u64 {
        self.stats()[at].checks
    }
}

fn test_request() -> EndpointConfig {
    EndpointConfig { check: HealthCheck::TestRequest, ..EndpointConfig::default() }
}

fn unchecked() -> EndpointConfig {
    EndpointConfig { check: HealthCheck::None, ..EndpointConfig::default() }
}

fn the_first_check_that_passes_brings_an_endpoint_up_and_the_first_that_fails_down() {
    for config in [EndpointConfig::default(), test_request()] {
        let mut setup = Setup::new(config);
        let _server = setup.serve(0);
        setup.sim.advance(millis(100));
        let stats = setup.stats();
        assert!(stats[0].is_available && stats[0].weight == 100, "no slow start: {:?}", stats[0]);
        assert_eq!((stats[0].state, stats[0].checks), (EndpointState::Up, 1));
        assert_eq!((stats[1].state, stats[1].is_available), (EndpointState::Down, false));
        assert!(matches!(stats[1].last_failure, Some(CloseReason::ConnectFailed(_))));
        assert_eq!(setup.front.stats().closed(CloseReason::CheckPassed), 1);
        let text = setup.front.stats().prometheus().to_string();
        for line in ["endpoints_up 1", "endpoints_down 2", "endpoint_checks_failed_total 2"] {
            assert!(text.contains(&format!("\nwheelhouse_{line}\n")), "{text}");
        }
    }
}

fn three_failures_in_a_row_take_an_endpoint_down_and_two_successes_bring_it_up() {
    let mut setup = Setup::new(EndpointConfig::default());
    let listener = setup.sim.listen(SERVERS[0], 16);
    setup.until(0, EndpointState::Up);
    drop(listener);
    // At most a normal pause and two fast ones.
    let time = setup.until(0, EndpointState::GoingDown);
    assert!(time <= millis(2_010), "{time:?}");
    assert!(setup.stats()[0].is_available);
    let failed = setup.stats()[0].checks_failed;
    let time = setup.until(0, EndpointState::Down);
    assert!((millis(800)..=millis(1_030)).contains(&time), "{time:?}");
    assert_eq!((setup.stats()[0].checks_failed, failed), (3, 1));
    assert!(!setup.stats()[0].is_available);
    // Nothing waits for it.
    let _listener = setup.sim.listen(SERVERS[0], 16);
    let time = setup.until(0, EndpointState::GoingUp);
    assert!((millis(3_900)..=millis(5_010)).contains(&time), "{time:?}");
    assert!(!setup.stats()[0].is_available);
    let time = setup.until(0, EndpointState::Up);
    assert!((millis(390)..=millis(510)).contains(&time), "{time:?}");
    // It comes back with little and gets more.
    let mut weights = Vec::new();
    for _ in 0..12 {
        weights.push(setup.stats()[0].weight);
        setup.sim.advance(secs(1));
    }
    assert_eq!(weights[0], 1);
    assert!(weights.is_sorted() && weights[5].abs_diff(50) <= 2 && weights[11] == 100);
}

fn a_check_that_fails_now_and_then_takes_nothing_down() {
    let mut setup = Setup::new(EndpointConfig::default());
    let mut listeners = vec![setup.sim.listen(SERVERS[0], 16)];
    setup.until(0, EndpointState::Up);
    for _ in 0..6 {
        listeners.clear();
        setup.until(0, EndpointState::GoingDown);
        listeners.push(setup.sim.listen(SERVERS[0], 16));
        setup.until(0, EndpointState::Up);
        assert_eq!(setup.stats()[0].weight, 100, "it was never away");
    }
}

fn pauses_between_checks_are_at_random_and_never_longer_than_they_may() {
    let mut setup = Setup::new(EndpointConfig::default());
    let _listener = setup.sim.listen(SERVERS[0], 1_000);
    setup.until(0, EndpointState::Up);
    let mut pauses = Vec::new();
    for _ in 0..20 {
        let (checks, began) = (setup.checks(0), setup.sim.now());
        while setup.checks(0) == checks {
            setup.sim.advance(millis(2));
        }
        pauses.push((setup.sim.now() - began).as_millis());
    }
    assert!(pauses.iter().all(|pause| (1_590..=2_015).contains(pause)), "{pauses:?}");
    pauses.sort_unstable();
    pauses.dedup();
    assert!(pauses.len() > 10, "{pauses:?}");
}

fn a_check_without_an_answer_ends_at_its_timeout_and_there_is_one_at_a_time() {
    // By a network that drops, and by a server that says nothing.
    for config in [EndpointConfig::default(), test_request()] {
        let silent = config.check == HealthCheck::TestRequest;
        let mut setup = Setup::new(config);
        let listener = setup.sim.listen(SERVERS[0], 64);
        if !silent {
            setup.sim.partition("10.0.0.1", "10.0.1.1");
        }
        setup.sim.advance(millis(990));
        assert_eq!(setup.checks(0), 0);
        setup.sim.advance(millis(30));
        let stats = setup.stats()[0];
        assert_eq!((stats.checks_failed, stats.state), (1, EndpointState::Down));
        assert_eq!(stats.last_failure, Some(CloseReason::Timeout(Timeout::Check)));
        let peers: Vec<_> = std::iter::from_fn(|| listener.accept()).collect();
        assert_eq!(peers.len(), usize::from(silent));
        setup.sim.advance(secs(60));
        // One in six seconds, and never two at once: the reactor's own checks see to that.
        let checks = setup.checks(0);
        assert!((10..=13).contains(&checks), "{checks}");
    }
}

fn a_test_request_fails_with_a_wrong_reply_an_end_and_a_refusal() {
    for reason in [CloseReason::HandlerClose, CloseReason::PeerEof, CloseReason::PeerReset] {
        let mut setup = Setup::new(test_request());
        let listener = setup.sim.listen(SERVERS[0], 64);
        setup.sim.advance(millis(10));
        let peer = listener.accept().unwrap();
        peer.expect(b"check\n");
        match reason {
            CloseReason::PeerEof => peer.close(),
            CloseReason::PeerReset => peer.reset(),
            _ => peer.send(b"ill\n"),
        }
        setup.sim.advance(millis(10));
        let stats = setup.stats()[0];
        assert_eq!((stats.checks_failed, stats.last_failure), (1, Some(reason)));
    }
    let mut balancer = Balancer::new(test_request());
    balancer.refuses_checks = true;
    let mut setup = Setup::with(balancer);
    let _server = setup.serve(0);
    setup.sim.advance(millis(10));
    assert_eq!(setup.stats()[0].last_failure, Some(CloseReason::HandlerClose));
}

fn a_check_has_not_passed_before_it_stands() {
    let mut balancer = Balancer::new(EndpointConfig::default());
    balancer.ready_in_open = true;
    let mut setup = Setup::with(balancer);
    setup.sim.advance(millis(100));
    assert_eq!(setup.stats()[0].state, EndpointState::Down);
}

/// A handler that knows nothing of checks passes them by connecting.
fn a_test_request_that_sends_nothing_passes() {
    let mut sim = world(1);
    let _listener = sim.listen(SERVERS[0], 8);
    let server = sim.serve(SERVER, Config::default(), Echo);
    let id = server.with(|_, cx| cx.add_endpoint(SERVERS[0], &test_request()).unwrap());
    sim.advance(millis(10));
    assert!(server.with(|_, cx| cx.endpoint(id).unwrap().is_available));
}

fn a_check_ends_with_a_fin_and_leaves_nothing() {
    let mut setup = Setup::new(EndpointConfig::default());
    let listener = setup.sim.listen(SERVERS[0], 8);
    setup.sim.advance(millis(10));
    let peer = listener.accept().unwrap();
    setup.sim.advance(millis(10));
    assert_eq!(peer.closed(), Some(End::Fin));
    assert_eq!((setup.front.connections(), setup.front.descriptors()), (0, 1));
}

/// The port is in the range of those that dials leave from: without a listener a dial may meet itself.
fn a_check_that_meets_itself_has_failed() {
    let mut sim = world(1);
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
    let config = EndpointConfig {
        down_interval: millis(50),
        fast_interval: millis(50),
        ..EndpointConfig::default()
    };
    let own = SocketAddr::from(([10, 0, 0, 1], 49_160));
    let id = server.with(|_, cx| cx.add_endpoint(own, &config).unwrap());
    let stats = || server.with(|_, cx| cx.endpoint(id).unwrap());
    // The first dial of a simulated machine leaves from port 49,153, and each other from the next.
    while stats().checks_failed < 20 {
        sim.advance(millis(10));
        assert!(!stats().is_available);
    }
    let _peer = sim.listen(own, 8);
    sim.advance(millis(200));
    assert_eq!(stats().state, EndpointState::Up);
}

/// Of three servers each check fails by chance, one in five, for a minute: no client is refused, and
/// few are lost.
fn checks_that_fail_by_chance_shut_no_one_out() {
    let mut setup = Setup::new(test_request());
    let servers: Vec<_> = (0..3).map(|at| setup.serve(at)).collect();
    setup.sim.advance(millis(100));
    for server in &servers {
        server.with(|weak, _| weak.percent = 20);
    }
    let (mut served, mut changes, mut before) = (0, 0, setup.stats());
    for _ in 0..600 {
        setup.sim.advance(millis(50));
        served += usize::from(setup.ask() == b"line\n");
        let stats = setup.stats();
        assert!(stats.iter().any(|it| it.is_available), "{stats:?}");
        for (was, is) in before.iter().zip(&stats) {
            changes += u32::from(was.is_available != is.is_available);
        }
        before = stats;
    }
    assert!(setup.front.handler().refusals.is_empty());
    assert!(served > 400, "{served}");
    // Without a rise and a fall there would be some hundred.
    assert!(changes <= 12, "{changes}");
}

/// All are down. Clients are refused at once, with the reason; the first that is back is used within
/// one fast interval of its first check that passes.
fn when_all_are_down_clients_hear_why_and_the_first_that_is_back_is_used_soon() {
    let mut setup = Setup::new(EndpointConfig::default());
    let listeners: Vec<_> =
        SERVERS.into_iter().map(|address| setup.sim.listen(address, 64)).collect();
    setup.sim.advance(secs(1));
    drop(listeners);
    for at in 0..3 {
        setup.until(at, EndpointState::Down);
    }
    setup.sim.advance(secs(20));
    let refused = setup.sim.now();
    assert_eq!(setup.ask(), b"down\n");
    let ConnectError::Down(Some(reason)) = setup.front.handler().refusals[0] else { panic!() };
    assert!(matches!(reason, CloseReason::ConnectFailed(_)), "{reason}");
    let _server = setup.serve(1);
    setup.until(1, EndpointState::GoingUp);
    // What was refused made its checks fast.
    assert!(setup.sim.now() - refused <= millis(600), "{:?}", setup.sim.now() - refused);
    let time = setup.until(1, EndpointState::Up);
    assert!(time <= millis(510), "{time:?}");
    assert_eq!(setup.ask(), b"line\n");
    assert_eq!(setup.state(0), EndpointState::Down);
}

/// A server that accepts, answers and closes at once, by a FIN or a reset, serves.
fn a_server_that_answers_and_closes_at_once_stays_up() {
    for reset in [false, true] {
        let mut setup = Setup::new(EndpointConfig::default());
        let listener = setup.sim.listen(SERVERS[0], 64);
        setup.sim.advance(millis(100));
        while listener.accept().is_some() {}
        for _ in 0..1_000 {
            let client = setup.sim.connect(SERVER);
            client.send(b"line\n");
            setup.sim.settle();
            setup.sim.advance(millis(1));
            while let Some(peer) = listener.accept() {
                peer.send(b"line\n");
                setup.sim.settle();
                if reset { peer.reset() } else { peer.close() }
            }
            setup.sim.settle();
            assert_eq!(client.take(), b"line\n");
            client.close();
        }
        let stats = setup.stats()[0];
        assert!(stats.is_available && stats.failures == 0, "{stats:?}");
        assert_eq!(stats.successes, 1_000);
    }
}

/// What the server sends and its reset come before the check knows that its dial has succeeded.
fn a_check_that_is_answered_and_reset_at_once_has_passed() {
    for (answers, state) in [(true, EndpointState::Up), (false, EndpointState::Down)] {
        let mut setup = Setup::new(EndpointConfig::default());
        setup.sim.set_link(Link { latency: millis(10), ..Link::LOOPBACK });
        let listener = setup.sim.listen(SERVERS[0], 64);
        let mut checked = 0;
        for _ in 0..2_000 {
            setup.sim.advance(millis(10));
            while let Some(peer) = listener.accept() {
                if answers {
                    peer.send(b"hello\n");
                }
                peer.reset();
                checked += 1;
            }
        }
        let stats = setup.stats()[0];
        assert!(checked >= 5, "{checked}");
        assert_eq!((stats.state, stats.is_available), (state, answers), "{stats:?}");
    }
}

fn five_failures_in_a_row_eject_an_endpoint_for_longer_each_time() {
    let mut setup = Setup::new(unchecked());
    let _servers = [setup.serve(1), setup.serve(2)];
    setup.sim.settle();
    let mut ejected = Vec::new();
    for round in 1..=3 {
        for _ in 0..5 {
            assert!(setup.stats()[0].is_available, "{round}");
            let dial = setup.front.with(|balancer, cx| cx.connect_endpoint(balancer.endpoints[0]));
            assert!(dial.is_ok());
            setup.sim.advance(millis(10));
        }
        let stats = setup.stats()[0];
        assert!(stats.is_ejected && !stats.is_available && stats.weight == 0, "{stats:?}");
        assert_eq!((stats.failures, stats.ejections), (5 * round, round));
        let dial = setup.front.with(|balancer, cx| cx.connect_endpoint(balancer.endpoints[0]));
        assert!(matches!(dial, Err(ConnectError::Down(Some(CloseReason::ConnectFailed(_))))));
        let began = setup.sim.now();
        while !setup.stats()[0].is_available {
            setup.sim.advance(millis(10));
        }
        ejected.push((setup.sim.now() - began).as_secs_f64().round());
        assert_eq!(setup.stats()[0].weight, 1, "a slow start");
    }
    assert_eq!(ejected, [30.0, 60.0, 90.0]);
    // Well for long enough: the next time counts as the first.
    setup.sim.advance(secs(301));
    setup.front.with(|balancer, cx| {
        for _ in 0..5 {
            cx.note_endpoint_failure(balancer.endpoints[0]);
        }
    });
    setup.sim.advance(secs(29));
    assert!(setup.stats()[0].is_ejected);
    setup.sim.advance(secs(2));
    assert!(setup.stats()[0].is_available);
}

fn a_success_between_failures_keeps_an_endpoint() {
    let mut setup = Setup::new(unchecked());
    setup.sim.settle();
    for _ in 0..10 {
        setup.front.with(|balancer, cx| {
            for _ in 0..4 {
                cx.note_endpoint_failure(balancer.endpoints[0]);
            }
            cx.note_endpoint_success(balancer.endpoints[0]);
        });
    }
    let stats = setup.stats()[0];
    assert!(stats.is_available, "{stats:?}");
    assert_eq!((stats.failures, stats.successes, stats.ejections), (40, 10, 0));
}

fn a_check_that_passes_ends_an_ejection() {
    let mut setup = Setup::new(EndpointConfig::default());
    let _servers: Vec<_> = (0..3).map(|at| setup.serve(at)).collect();
    setup.sim.advance(millis(100));
    setup.front.with(|balancer, cx| {
        for _ in 0..5 {
            cx.note_endpoint_failure(balancer.endpoints[0]);
        }
    });
    setup.sim.settle();
    let stats = setup.stats()[0];
    assert_eq!((stats.state, stats.is_ejected), (EndpointState::Up, true));
    assert_eq!(setup.front.stats().endpoints_ejected, 1);
    setup.sim.advance(millis(2_010));
    let stats = setup.stats()[0];
    assert!(!stats.is_ejected && (1..50).contains(&stats.weight), "{stats:?}");
}

/// All fail alike: at most half are ejected, what is down counts too, and what was prevented is
/// counted.
fn no_more_than_half_of_a_group_is_down_or_ejected_by_ejection() {
    let mut setup = Setup::new(unchecked());
    setup.sim.settle();
    let fail_all = |setup: &mut Setup| {
        setup.front.with(|balancer, cx| {
            for id in &balancer.endpoints {
                for _ in 0..5 {
                    cx.note_endpoint_failure(*id);
                }
            }
        });
        setup.sim.settle();
    };
    fail_all(&mut setup);
    let ejected = |setup: &Setup| setup.stats().iter().filter(|it| it.is_ejected).count();
    assert_eq!(ejected(&setup), 1);
    let prevented: u64 = setup.stats().iter().map(|it| it.ejections_prevented).sum();
    assert_eq!((prevented, setup.front.stats().endpoint_ejections_prevented), (2, 2));
    // Of four, two; and of the two that are left when the others are gone, one.
    setup.front.with(|balancer, cx| balancer.add(cx, "10.0.1.4:9"));
    fail_all(&mut setup);
    assert_eq!(ejected(&setup), 2);
    setup.front.with(|balancer, cx| {
        let available = |id| cx.endpoint(id).is_some_and(|it| it.is_available);
        let rest: Vec<_> = balancer.endpoints.iter().copied().filter(|id| available(*id)).collect();
        for id in rest {
            cx.remove_endpoint(id);
            balancer.endpoints.retain(|it| *it != id);
        }
    });
    setup.sim.settle();
    assert_eq!((setup.stats().len(), ejected(&setup)), (2, 1));

    // One that is alone has no alternative.
    let mut setup = Setup::with(Balancer::alone(unchecked()));
    setup.sim.settle();
    fail_all(&mut setup);
    assert_eq!(ejected(&setup), 0);
    assert_eq!(setup.front.stats().endpoint_ejections_prevented, 3);

    // One is down, and the two others carry its load.
    let mut setup = Setup::new(EndpointConfig::default());
    let _servers = [setup.serve(1), setup.serve(2)];
    setup.sim.advance(secs(1));
    assert_eq!(setup.state(0), EndpointState::Down);
    fail_all(&mut setup);
    assert_eq!(ejected(&setup), 0);
}

/// No port, no descriptor and no place is our shortage, and says nothing of the endpoint.
fn our_own_shortages_count_against_no_endpoint() {
    for errno in [errno::EADDRNOTAVAIL, errno::EMFILE, errno::ENOBUFS] {
        let mut setup = Setup::new(EndpointConfig::default());
        let _servers: Vec<_> = (0..3).map(|at| setup.serve(at)).collect();
        setup.sim.advance(millis(100));
        for _ in 0..40 {
            setup.front.fail(Call::Connect, 0, errno);
            _ = setup.front.with(|balancer, cx| cx.connect_endpoint(balancer.endpoints[0]));
            setup.sim.advance(millis(1));
        }
        for _ in 0..40 {
            setup.front.fail(Call::Connect, 0, errno);
            setup.sim.advance(secs(2));
        }
        for stats in setup.stats() {
            assert!(stats.is_available, "{stats:?}");
            assert_eq!((stats.failures, stats.checks_failed), (0, 0));
        }
        assert!(setup.stats().iter().map(|it| it.checks_void).sum::<u64>() >= 20);
    }
    // No place in the table: checks have some of those that are kept for an operator.
    let mut sim = world(1);
    let front = sim.serve(SERVER, with_places(2), Balancer::new(EndpointConfig::default()));
    let _servers = SERVERS.map(|address| sim.listen(address, 64));
    let _peers = [(); 2].map(|()| sim.connect(SERVER));
    sim.advance(secs(5));
    let stats = front.with(|balancer, cx| balancer.stats(cx));
    assert!(stats.iter().all(|it| it.checks_failed == 0 && it.checks > 1), "{stats:?}");
    assert_eq!(front.connections(), 2);
}

/// That the connection over which it failed ended well says nothing of it.
/// The table is full: checks that no one answers take 8 of the 16 places besides.
fn checks_leave_half_of_an_operators_places() {
    const OPERATOR: &str = "10.0.0.1:9090";
    let mut sim = world(1);
    let config = EndpointConfig { timeout: secs(20), ..EndpointConfig::default() };
    let front = sim.spawn("10.0.0.1", with_places(2), Balancer::new(config), |reactor| {
        let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
        reactor.listen_with(OPERATOR, listen).unwrap();
    });
    front.with(|balancer, cx| {
        for host in 0..12 {
            balancer.add(cx, &format!("10.0.2.{host}:9"));
        }
    });
    sim.advance(millis(100));
    assert_eq!(front.connections(), 2 + 8);
    let operators: Vec<_> = (0..9).map(|_| sim.connect(OPERATOR)).collect();
    for operator in &operators {
        operator.send(b"line\n");
    }
    sim.advance(millis(100));
    let served = operators.iter().filter(|operator| operator.take() == b"down\n").count();
    assert_eq!((served, front.connections()), (8, 2 + 16));
    // Checks that had no place say nothing.
    let stats = front.with(|balancer, cx| balancer.stats(cx));
    assert!(stats.iter().any(|it| it.checks_void > 0), "{stats:?}");
    assert!(stats.iter().all(|it| it.checks_failed == 0), "{stats:?}");
}

fn failures_that_the_application_notes_eject_though_connections_end_well() {
    let mut setup = Setup::new(unchecked());
    let _servers: Vec<_> = (0..3).map(|at| setup.serve(at)).collect();
    setup.sim.settle();
    for ejected in [0, 0, 0, 0, 1] {
        // One line over each endpoint, each of which is answered.
        for _ in 0..3 {
            assert_eq!(setup.ask(), b"line\n");
        }
        setup.sim.advance(millis(100));
        setup.front.with(|balancer, cx| cx.note_endpoint_failure(balancer.endpoints[0]));
        let stats = setup.stats()[0];
        assert!(stats.successes > 0, "{stats:?}");
        assert_eq!(stats.ejections, ejected, "{stats:?}");
    }
}

fn an_endpoint_that_is_removed_is_checked_no_more() {
    let mut setup = Setup::new(test_request());
    let listener = setup.sim.listen(SERVERS[0], 8);
    setup.sim.advance(millis(100));
    let peer = listener.accept().unwrap();
    let removed = setup.front.with(|balancer, cx| {
        let id = balancer.endpoints.remove(0);
        cx.remove_endpoint(id);
        cx.remove_endpoint(id);
        cx.note_endpoint_failure(id);
        assert_eq!((cx.endpoint(id), cx.endpoints().len()), (None, 2));
        assert_eq!(cx.connect_endpoint(id), Err(ConnectError::Down(None)));
        id
    });
    setup.sim.advance(millis(10));
    assert!(peer.closed().is_some());
    let closed = setup.front.handler().closed.clone();
    assert!(closed.contains(&(Origin::Check(removed), CloseReason::HandlerClose)), "{closed:?}");
    setup.sim.advance(secs(60));
    assert!(listener.accept().is_none());
    // Another one in its place has another name.
    let next = setup.front.with(|balancer, cx| balancer.add(cx, SERVERS[0]));
    assert_ne!(next, removed);
    assert_eq!(setup.front.with(|_, cx| cx.endpoint(removed)), None);
}

fn a_shutdown_ends_checks_and_begins_none() {
    let mut setup = Setup::new(test_request());
    let _listener = setup.sim.listen(SERVERS[0], 8);
    setup.sim.advance(millis(100));
    assert_eq!(setup.front.connections(), 1);
    setup.front.shutdown();
    setup.sim.advance(millis(100));
    assert!(setup.front.is_finished());
    let checks = setup.front.handler().closed.clone();
    let ends: Vec<_> = checks.iter().filter(|(_, why)| *why == CloseReason::Shutdown).collect();
    assert_eq!(ends.len(), 1, "{checks:?}");
}

fn the_connections_of_an_endpoint_are_counted_until_they_are_closed() {
    let mut setup = Setup::new(EndpointConfig::default());
    let listener = setup.sim.listen(SERVERS[0], 8);
    setup.sim.advance(millis(100));
    while listener.accept().is_some() {}
    let ids = setup
        .front
        .with(|balancer, cx| [(); 3].map(|()| cx.connect_endpoint(balancer.endpoints[0]).unwrap()));
    setup.sim.advance(millis(10));
    assert_eq!(setup.stats()[0].connections, 3);
    for (closed, id) in ids.into_iter().enumerate() {
        setup.front.with(|_, cx| cx.conn(id).unwrap().abort());
        setup.sim.advance(millis(10));
        assert_eq!(setup.stats()[0].connections, 2 - closed);
    }
}

/// A proxy whose pool follows an endpoint.
struct Follower {
    sim: Sim,
    proxy: Server<Proxy>,
    pool: PoolId,
    endpoint: EndpointId,
    _machine: Server<Echo>,
}

impl Follower {
    fn new(pool: PoolConfig, config: &EndpointConfig) -> Self {
        let mut sim = world(1);
        let machine = sim.serve("10.0.0.2:10", Config::default(), Echo);
        let proxy = sim.serve(SERVER, Config::default(), Proxy::new(PoolConfig::default()));
        sim.settle();
        let (pool, endpoint) = proxy.with(|proxy, cx| {
            let endpoint = cx.add_endpoint(UPSTREAM, config).unwrap();
            let config = PoolConfig { endpoint: Some(endpoint), ..pool };
            let pool = cx.add_pool(UPSTREAM, &config).unwrap();
            proxy.pool = Some(pool);
            (pool, endpoint)
        });
        Self { sim, proxy, pool, endpoint, _machine: machine }
    }

    fn endpoint(&self) -> EndpointStats {
        self.proxy.with(|_, cx| cx.endpoint(self.endpoint).unwrap())
    }

    fn pool(&self) -> wheelhouse::pool::PoolStats {
        self.proxy.with(|_, cx| cx.pool_stats(self.pool))
    }
}

fn a_pool_does_not_dial_while_its_endpoint_is_down_and_at_once_when_it_is_back() {
    let mut setup = Follower::new(PoolConfig::default(), &EndpointConfig::default());
    setup.sim.advance(secs(12));
    assert_eq!(setup.endpoint().state, EndpointState::Down);
    let asked = setup.sim.now();
    let peer = setup.sim.connect(SERVER);
    peer.send(b"line\n");
    setup.sim.advance(secs(1));
    assert_eq!((setup.pool().dialled, setup.pool().waiting), (0, 1));
    let _upstream = setup.sim.serve(UPSTREAM, Config::default(), Lines::default());
    while !setup.endpoint().is_available {
        setup.sim.advance(millis(1));
    }
    // What waits makes its checks fast.
    assert!(setup.sim.now() - asked <= millis(2_050), "{:?}", setup.sim.now() - asked);
    setup.sim.advance(millis(10));
    peer.expect(b"line\n");
}

fn a_shutdown_lets_pools_dial_what_was_down() {
    let mut setup = Follower::new(PoolConfig::default(), &EndpointConfig::default());
    setup.sim.advance(secs(12));
    let peer = setup.sim.connect(SERVER);
    peer.send(b"line\n");
    setup.sim.advance(millis(10));
    assert_eq!((setup.pool().dialled, setup.pool().waiting), (0, 1));
    setup.proxy.shutdown();
    let upstream = setup.sim.serve(UPSTREAM, Config::default(), Lines::default());
    setup.sim.advance(secs(4));
    peer.expect(b"line\n");
    assert_eq!(upstream.stats().accepted, 1, "and no check came");
}

/// Owes a reply to each client, and leases for the loop from a pool that follows the first of two
/// endpoints.
#[derive(Default)]
struct Owes {
    endpoints: Vec<EndpointId>,
    pool: Option<PoolId>,
    leases: u32,
}

impl Handler for Owes {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let group = Some(cx.add_endpoint_group());
        let config = EndpointConfig { group, ..EndpointConfig::default() };
        self.endpoints = SERVERS.map(|server| cx.add_endpoint(server, &config).unwrap()).to_vec();
        let config = PoolConfig { endpoint: Some(self.endpoints[0]), ..PoolConfig::default() };
        self.pool = Some(cx.add_pool(SERVERS[0], &config).unwrap());
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        conn.begin_request();
    }

    fn on_loop_acquired(
        &mut self,
        _: &mut Context<'_>,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        lease.unwrap();
        self.leases += 1;
    }
}

fn an_endpoint_that_is_not_up_holds_no_pool_during_a_shutdown() {
    let mut sim = world(1);
    let _machines = SERVERS.map(|server| sim.serve(server, Config::default(), Echo));
    let front = sim.serve(SERVER, Config::default(), Owes::default());
    let client = sim.connect(SERVER);
    client.send(b"request");
    sim.advance(secs(1));
    front.shutdown();
    sim.advance(secs(1));
    front.with(|owes, cx| {
        for _ in 0..10 {
            cx.note_endpoint_failure(owes.endpoints[0]);
        }
    });
    sim.advance(millis(10));
    assert_eq!(front.stats().endpoint_ejections, 1);
    // Neither the one of before nor one that is added now.
    front.with(|owes, cx| {
        let config = PoolConfig { endpoint: Some(owes.endpoints[0]), ..PoolConfig::default() };
        let added = cx.add_pool(SERVERS[0], &config).unwrap();
        for pool in [owes.pool.unwrap(), added] {
            cx.acquire(pool, AcquireOptions::default()).unwrap();
        }
    });
    sim.advance(secs(1));
    assert_eq!(front.with(|owes, _| owes.leases), 2);
}

/// What waited before the endpoint went down is no reason to check it less often.
fn a_pool_that_is_full_makes_the_checks_of_its_endpoint_fast() {
    let pool = PoolConfig { size: 1, acquire: secs(60), ..PoolConfig::default() };
    let mut setup = Follower::new(pool, &EndpointConfig::default());
    let listener = setup.sim.listen(UPSTREAM, 16);
    setup.sim.advance(millis(100));
    while listener.accept().is_some() {}
    let clients = [(); 2].map(|()| setup.sim.connect(SERVER));
    for client in &clients {
        client.send(b"line\n");
    }
    setup.sim.advance(millis(10));
    let upstream = listener.accept().unwrap();
    assert_eq!((setup.pool().leased, setup.pool().waiting), (1, 1));
    drop(listener);
    setup.sim.advance(secs(10));
    upstream.reset();
    setup.sim.advance(secs(10));
    let checks = setup.endpoint().checks;
    setup.sim.advance(secs(10));
    let checks = setup.endpoint().checks - checks;
    assert_eq!((setup.endpoint().state, setup.pool().waiting), (EndpointState::Down, 1));
    assert!((19..=26).contains(&checks), "{checks}");
}

fn a_pool_that_fails_fast_says_that_its_endpoint_is_down() {
    let config = PoolConfig { fail_fast: true, ..PoolConfig::default() };
    let mut setup = Follower::new(config, &EndpointConfig::default());
    // Before the first check nothing is known, and nothing is there.
    let early = setup.sim.connect(SERVER);
    early.send(b"line\n");
    setup.sim.advance(millis(50));
    early.expect(b"sorry\n");
    let peer = setup.sim.connect(SERVER);
    peer.send(b"line\n");
    setup.sim.advance(millis(10));
    peer.expect(b"sorry\n");
    let errors = setup.proxy.with(|proxy, _| proxy.errors.clone());
    assert_eq!(errors[1].failure, AcquireFailure::Down);
    assert!(matches!(errors[1].last_dial, Some(CloseReason::ConnectFailed(_))), "{}", errors[1]);
    assert_eq!(setup.pool().dialled, 0);
    // Those that failed fast wait no more, and the checks are fast all the same.
    let _upstream = setup.sim.serve(UPSTREAM, Config::default(), Lines::default());
    setup.sim.advance(millis(520));
    assert!(setup.endpoint().is_available, "the first success of all");
    let peer = setup.sim.connect(SERVER);
    peer.send(b"line\n");
    setup.sim.advance(millis(50));
    peer.expect(b"line\n");
}

fn idle_connections_of_a_pool_are_leased_while_its_endpoint_is_down() {
    let config = PoolConfig { fail_fast: true, ..PoolConfig::default() };
    let mut setup = Follower::new(config, &EndpointConfig::default());
    let listener = setup.sim.listen(UPSTREAM, 8);
    setup.sim.advance(millis(100));
    while listener.accept().is_some() {}
    let client = setup.sim.connect(SERVER);
    let mut upstream: Option<Peer> = None;
    let mut listener = Some(listener);
    for round in 0..2 {
        client.send(b"line\n");
        setup.sim.advance(millis(10));
        let peer = upstream.get_or_insert_with(|| listener.as_ref().unwrap().accept().unwrap());
        peer.expect(b"line\n");
        peer.send(b"line\n");
        setup.sim.advance(millis(10));
        client.expect(b"line\n");
        if round == 0 {
            listener = None;
            setup.sim.advance(secs(10));
            assert_eq!(setup.endpoint().state, EndpointState::Down);
        }
    }
    assert_eq!(setup.pool().dialled, 1);
}

fn failed_dials_of_a_pool_count_and_exchanges_that_end_well_do_too() {
    let pool = PoolConfig { ping_after: Some(secs(2)), ..PoolConfig::default() };
    let mut setup = Follower::new(pool, &unchecked());
    _ = setup.proxy.with(|proxy, cx| cx.acquire(proxy.pool.unwrap(), AcquireOptions::default()));
    setup.sim.advance(secs(4));
    let stats = setup.endpoint();
    assert_eq!(stats.failures, setup.pool().dials_failed);
    // It has no group: it is never ejected, and the pool goes on by its own pauses.
    assert!(stats.failures > 5 && stats.ejections_prevented > 0 && stats.is_available, "{stats:?}");
    let _upstream = setup.sim.serve(UPSTREAM, Config::default(), Lines::default());
    setup.sim.advance(secs(1));
    let lease = setup.proxy.with(|proxy, _| proxy.loop_leases.borrow()[0].unwrap());
    setup.proxy.with(|_, cx| cx.release(lease));
    setup.sim.advance(secs(1));
    assert_eq!(setup.endpoint().successes, 1);
    // A check of an idle connection that sends nothing says nothing.
    setup.sim.advance(secs(5));
    assert!(setup.pool().pinged > 0);
    assert_eq!(setup.endpoint().successes, 1);
}

fn settings_of_endpoints_are_checked() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Echo);
    let base = EndpointConfig::default;
    let wrong = [
        ("endpoint.interval", EndpointConfig { interval: millis(9), ..base() }),
        ("endpoint.fast_interval", EndpointConfig { fast_interval: Duration::ZERO, ..base() }),
        ("endpoint.down_interval", EndpointConfig { down_interval: Duration::ZERO, ..base() }),
        ("endpoint.timeout", EndpointConfig { timeout: Duration::ZERO, ..base() }),
        ("endpoint.rise", EndpointConfig { rise: 0, ..base() }),
        ("endpoint.fall", EndpointConfig { fall: 0, ..base() }),
        ("endpoint.slow_start", EndpointConfig { slow_start: Some(Duration::ZERO), ..base() }),
        ("endpoint.eject_after", EndpointConfig { eject_after: Some(0), ..base() }),
        ("endpoint.ejection", EndpointConfig { ejection: Duration::ZERO, ..base() }),
        ("endpoint.ejection_max", EndpointConfig { ejection_max: secs(1), ..base() }),
    ];
    for (setting, config) in wrong {
        let error = server.with(|_, cx| cx.add_endpoint(SERVERS[0], &config).unwrap_err());
        assert_eq!(error.setting(), setting);
    }
    let error = server.with(|_, cx| cx.add_endpoint("no target", &base()).unwrap_err());
    assert_eq!(error.setting(), "the target of an endpoint");
    let mut other = world(1);
    let other = other.serve(SERVER, Config::default(), Echo);
    let (group, endpoint) = other
        .with(|_, cx| (cx.add_endpoint_group(), cx.add_endpoint(SERVERS[0], &base()).unwrap()));
    let config = EndpointConfig { group: Some(group), ..base() };
    let error = server.with(|_, cx| cx.add_endpoint(SERVERS[0], &config).unwrap_err());
    assert_eq!(error.setting(), "endpoint.group");
    let config = PoolConfig { endpoint: Some(endpoint), ..PoolConfig::default() };
    let error = server.with(|_, cx| cx.add_pool(UPSTREAM, &config).unwrap_err());
    assert_eq!(error.setting(), "pool.endpoint");
}
