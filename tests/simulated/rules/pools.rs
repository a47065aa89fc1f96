//! Pools: what asks gets a connection that works, once, in its turn, and no place is ever lost.

use wheelhouse::pool::{
    AcquireError, AcquireFailure, AcquireOptions, PoolConfig, PoolId, PoolOrder, PoolStats, WaitId,
};

use super::*;
use crate::pooled::{Lines, Proxy, UPSTREAM};

with_each_personality! {
    a_lease_serves_and_is_used_again,
    waiters_are_served_in_their_turn_by_as_many_connections_as_there_may_be,
    the_connection_used_last_is_leased_first,
    a_wait_ends_at_its_deadline_with_what_the_last_dial_said,
    what_waits_outlives_a_short_outage,
    a_server_that_is_down_is_reported_and_comes_back,
    too_many_waiters_are_refused_at_once,
    an_owner_that_goes_away_costs_no_place,
    a_crowd_that_leaves_during_a_dial_costs_no_place,
    a_crowd_that_waits_through_an_outage_dials_as_few_as_it_needs,
    what_died_during_a_suspension_serves_no_one,
    what_an_idle_connection_is_sent_evicts_it,
    an_idle_connection_that_its_peer_ends_is_evicted,
    what_came_in_the_moment_of_the_lease_is_found,
    a_line_that_is_lost_is_sent_again_once,
    a_line_is_not_sent_again_after_a_byte_of_the_reply,
    a_lease_given_back_in_the_middle_of_an_exchange_is_closed,
    cleaning_ends_by_its_deadline,
    what_is_cleaned_in_time_is_leased_again,
    a_handshake_comes_before_the_first_lease,
    a_handshake_that_does_not_end_is_a_failed_dial,
    a_connection_that_cannot_be_leased_when_it_is_ready_is_a_failed_dial,
    the_most_requests_of_a_connection_are_not_for_those_of_a_pool,
    a_ping_of_the_only_idle_connection_dials_no_other,
    connections_beyond_the_idle_maximum_end_with_a_fin,
    an_idle_connection_ends_in_its_time,
    as_many_as_are_to_be_idle_are_dialled_once,
    a_busy_connection_is_replaced_at_its_age,
    idle_connections_are_replaced_one_after_the_other,
    a_connection_is_leased_as_often_as_it_may_be,
    an_idle_connection_is_pinged_and_goes_on,
    a_connection_that_does_not_answer_a_ping_is_closed,
    a_ping_that_sends_nothing_leaves_the_connection_idle,
    a_wait_that_is_cancelled_is_not_answered,
    a_pool_that_fails_fast_says_why,
    another_connection_does_not_reach_a_lease,
    a_group_closes_what_is_idle_elsewhere_to_make_room,
    a_closed_pool_answers_what_waits_and_closes_what_is_idle,
    a_shutdown_serves_what_waits,
    our_own_shortage_is_no_failure_of_the_endpoint,
    a_full_table_of_idle_clients_makes_room_for_what_waits,
    a_full_table_of_busy_clients_is_named_as_the_cause,
    a_connection_that_is_only_checked_ends_in_its_idle_time,
    a_server_that_accepts_and_closes_is_not_dialled_without_pauses,
    a_server_that_greets_is_not_dialled_without_pauses,
    a_server_that_greets_and_resets_at_once_is_not_dialled_without_pauses,
    a_spare_connection_does_not_compete_with_what_waits,
    what_comes_during_a_pause_shortens_it,
    a_pause_ends_with_its_lease,
    a_connection_that_waits_for_input_is_not_leased_again,
    a_connection_that_skips_input_is_not_leased_again,
    a_connection_after_its_fin_is_not_leased_again,
    a_connection_after_its_fin_is_not_handed_over,
    a_connection_that_skips_input_is_not_handed_over,
    a_timer_ends_with_its_lease,
    of_two_requests_none_is_sent_again,
    a_connection_is_not_ready_before_it_stands,
    a_request_sent_again_spares_idle_connections,
    what_waits_longest_in_a_group_comes_first,
    what_is_closed_for_its_group_counts_as_surplus,
    a_throttle_ends_with_its_lease,
    timeouts_end_with_their_lease,
    a_wait_of_the_loop_is_answered_at_the_end,
    all_waits_of_the_loop_are_answered_at_the_end,
    a_reactor_that_ends_closes_its_pools,
    an_idle_connection_is_leased_at_once,
    what_is_left_of_a_reply_comes_to_be_cleaned,
    a_lease_begins_without_the_callbacks_of_the_one_before,
}

/// On the host of the upstream, which without it would not refuse a dial, but not be there.
const OTHER_PORT: &str = "10.0.0.2:10";

/// A proxy with a pool, and the upstream that it dials, which answers lines.
struct Setup {
    sim: Sim,
    proxy: Server<Proxy>,
    upstream: Server<Lines>,
}

impl Setup {
    fn new(config: PoolConfig) -> Self {
        Self::with(config, |_| {})
    }

    fn with(config: PoolConfig, change: impl FnOnce(&mut Proxy)) -> Self {
        let mut sim = world(1);
        let upstream = sim.serve(UPSTREAM, quiet(), Lines::default());
        let mut proxy = Proxy::new(config);
        change(&mut proxy);
        let proxy = sim.serve(SERVER, quiet(), proxy);
        sim.settle();
        Self { sim, proxy, upstream }
    }

    fn client(&mut self) -> Peer {
        self.sim.connect(SERVER)
    }

    /// A client whose line is answered.
    fn exchange(&mut self) {
        let peer = self.client();
        peer.send(b"line\n");
        self.sim.advance(millis(100));
        peer.expect(b"line\n");
        peer.close();
        self.sim.advance(millis(100));
    }

    fn stats(&self) -> PoolStats {
        pool_stats(&self.proxy)
    }
}

fn pool_stats(proxy: &Server<Proxy>) -> PoolStats {
    proxy.with(|proxy, cx| cx.pool_stats(proxy.pool.unwrap()))
}

/// Nothing ends by itself in a test of a pool.
fn quiet() -> Config {
    let mut config = Config::default();
    config.timeouts.idle = Some(secs(100_000));
    config.timeouts.read = Some(secs(100_000));
    config.timeouts.response = Some(secs(100_000));
    config.timeouts.first_byte = Some(secs(100_000));
    config
}

fn small(size: usize) -> PoolConfig {
    PoolConfig { size, ..PoolConfig::default() }
}

fn a_lease_serves_and_is_used_again() {
    let mut setup = Setup::new(small(4));
    assert_eq!(setup.stats().open, 0, "nothing is dialled before it is asked for");
    for _ in 0..10 {
        setup.exchange();
    }
    let stats = setup.stats();
    assert_eq!((stats.dialled, stats.leases, stats.reused), (1, 10, 9));
    assert_eq!((stats.open, stats.idle, stats.leased, stats.waiting), (1, 1, 0, 0));
    assert_eq!(setup.upstream.stats().accepted, 1);
}

fn waiters_are_served_in_their_turn_by_as_many_connections_as_there_may_be() {
    let mut setup = Setup::new(small(2));
    let peers: Vec<_> = (0..20).map(|_| setup.client()).collect();
    setup.sim.settle();
    for (number, peer) in peers.iter().enumerate() {
        peer.send(format!("{number}\n").as_bytes());
    }
    setup.sim.advance(secs(1));
    for (number, peer) in peers.iter().enumerate() {
        peer.expect(format!("{number}\n").as_bytes());
    }
    let stats = setup.stats();
    assert_eq!((stats.dialled, stats.leases, stats.idle), (2, 20, 2));
    assert_eq!(setup.upstream.stats().accepted, 2);
}

fn the_connection_used_last_is_leased_first() {
    for (order, distinct) in [(PoolOrder::Lifo, 1), (PoolOrder::Fifo, 4)] {
        let mut setup = Setup::new(PoolConfig { order, ..small(4) });
        let peers: Vec<_> = (0..4).map(|_| setup.client()).collect();
        for peer in &peers {
            peer.send(b"at once\n");
        }
        setup.sim.advance(millis(100));
        assert_eq!(setup.stats().idle, 4);
        setup.proxy.with(|proxy, _| proxy.used.clear());
        for _ in 0..8 {
            setup.exchange();
        }
        let mut used = setup.proxy.with(|proxy, _| proxy.used.clone());
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), distinct, "{order:?}");
    }
}

fn a_wait_ends_at_its_deadline_with_what_the_last_dial_said() {
    let mut sim = world(1);
    sim.serve(OTHER_PORT, quiet(), Lines::default());
    let proxy = sim.serve(SERVER, quiet(), Proxy::new(small(4)));
    let peer = sim.connect(SERVER);
    peer.send(b"line\n");
    sim.advance(millis(4_900));
    peer.expect(b"");
    sim.advance(millis(200));
    peer.expect(b"sorry\n");
    let errors = proxy.with(|proxy, _| proxy.errors.clone());
    let [error] = errors[..] else { panic!("{errors:?}") };
    assert_eq!(error.failure, AcquireFailure::Timeout);
    assert!(matches!(error.last_dial, Some(CloseReason::ConnectFailed(_))), "{error}");
    let stats = pool_stats(&proxy);
    assert_eq!((stats.timed_out, stats.waiting), (1, 0));
    // One dial at a time, with pauses of up to half a second.
    assert!((8..40).contains(&stats.dials_failed), "{stats:?}");
}

fn what_waits_outlives_a_short_outage() {
    let mut sim = world(1);
    sim.serve(OTHER_PORT, quiet(), Lines::default());
    let proxy = sim.serve(SERVER, quiet(), Proxy::new(small(4)));
    let peers: Vec<_> = (0..100).map(|_| sim.connect(SERVER)).collect();
    for peer in &peers {
        peer.send(b"line\n");
    }
    sim.advance(secs(3));
    let _upstream = sim.serve(UPSTREAM, quiet(), Lines::default());
    sim.advance(secs(1));
    for peer in &peers {
        peer.expect(b"line\n");
    }
    let stats = pool_stats(&proxy);
    assert!(stats.open <= 4 && stats.dials_failed < 40, "{stats:?}");
}

fn a_server_that_is_down_is_reported_and_comes_back() {
    let mut sim = world(1);
    sim.serve(OTHER_PORT, quiet(), Lines::default());
    let proxy = sim.serve(SERVER, quiet(), Proxy::new(PoolConfig { fall: 4, ..small(4) }));
    let peer = sim.connect(SERVER);
    peer.send(b"line\n");
    sim.settle();
    let mut failed = Vec::new();
    while !pool_stats(&proxy).is_down {
        failed.push(pool_stats(&proxy).dials_failed);
        sim.advance(millis(10));
    }
    assert_eq!((failed.last(), pool_stats(&proxy).dials_failed), (Some(&3), 4));
    let _upstream = sim.serve(UPSTREAM, quiet(), Lines::default());
    sim.advance(secs(1));
    peer.expect(b"line\n");
    assert!(!pool_stats(&proxy).is_down);
}

fn too_many_waiters_are_refused_at_once() {
    let mut setup = Setup::new(PoolConfig { waiters_max: 3, ..small(1) });
    setup.proxy.with(|proxy, cx| {
        cx.acquire(proxy.pool.unwrap(), AcquireOptions::default()).unwrap();
    });
    setup.sim.advance(millis(10));
    let peers: Vec<_> = (0..4).map(|_| setup.client()).collect();
    for peer in &peers {
        peer.send(b"line\n");
        setup.sim.settle();
    }
    peers[3].expect(b"refused\n");
    assert_eq!(setup.stats().refused, 1);
    let errors = setup.proxy.with(|proxy, _| proxy.errors.clone());
    assert_eq!(errors[0].failure, AcquireFailure::TooManyWaiters);
    assert_eq!((errors[0].waiting, errors[0].leased), (3, 1));
    // What the loop has leased goes on when it gives it back.
    let leases = setup.proxy.with(|proxy, _| proxy.loop_leases.borrow().clone());
    let lease = leases[0].unwrap();
    setup.proxy.with(|_, cx| cx.release(lease));
    setup.sim.advance(millis(100));
    for peer in &peers[..3] {
        peer.expect(b"line\n");
    }
}

/// Places and wake-ups must not go to what is gone: the owner ends at each moment between the
/// question and the answer.
fn an_owner_that_goes_away_costs_no_place() {
    let mut setup = Setup::new(small(1));
    setup.sim.set_link(Link { latency: millis(100), ..Link::default() });
    for round in 0..60 {
        let peers: Vec<_> = (0..5).map(|_| setup.client()).collect();
        setup.sim.advance(millis(300));
        for peer in &peers {
            peer.send(b"line\n");
        }
        setup.sim.advance(millis(10 * round));
        for peer in &peers {
            peer.reset();
        }
        setup.sim.advance(millis(500));
        let stats = setup.stats();
        assert_eq!((stats.leased, stats.waiting), (0, 0), "round {round}: {stats:?}");
    }
    setup.sim.set_link(Link::default());
    setup.sim.advance(secs(10));
    setup.exchange();
    let stats = setup.stats();
    assert!(stats.owner_gone > 0 && stats.cancelled > 0, "{stats:?}");
}

/// Fifty ask while the only connection is dialled, and leave before it stands. Another one that asks
/// then is served over it.
fn a_crowd_that_leaves_during_a_dial_costs_no_place() {
    let mut setup = Setup::new(small(1));
    let far = Link { latency: millis(100), ..Link::LOOPBACK };
    setup.sim.set_link_between("10.0.0.1", "10.0.0.2", far);
    let crowd: Vec<_> = (0..50).map(|_| setup.client()).collect();
    for peer in &crowd {
        peer.send(b"line\n");
    }
    setup.sim.advance(millis(100));
    assert_eq!((setup.stats().coming, setup.stats().waiting), (1, 50));
    for peer in &crowd {
        peer.reset();
    }
    let last = setup.client();
    last.send(b"line\n");
    // The rest of the dial, and one round trip.
    setup.sim.advance(millis(310));
    last.expect(b"line\n");
    let stats = setup.stats();
    assert_eq!((stats.leased, stats.waiting, stats.dialled), (0, 0, 1), "{stats:?}");
    assert_eq!((stats.cancelled, stats.leases, stats.asked), (50, 1, 51), "{stats:?}");
}

/// One dial at a time while the server is down, and no more than there are places when it is back.
fn a_crowd_that_waits_through_an_outage_dials_as_few_as_it_needs() {
    let mut sim = world(1);
    sim.serve(OTHER_PORT, quiet(), Lines::default());
    let config = PoolConfig { acquire: secs(20), ..small(32) };
    let proxy = sim.serve(SERVER, quiet(), Proxy::new(config));
    sim.settle();
    let crowd: Vec<_> = (0..500).map(|_| sim.connect(SERVER)).collect();
    for peer in &crowd {
        peer.send(b"line\n");
    }
    let mut dials = Vec::new();
    for _ in 0..5 {
        let before = pool_stats(&proxy).dials_failed;
        for _ in 0..100 {
            sim.advance(millis(10));
            assert!(pool_stats(&proxy).coming <= 1);
        }
        dials.push(pool_stats(&proxy).dials_failed - before);
    }
    // The first round finds out that it is down.
    assert!(dials[0] <= 32 + 12, "in each second: {dials:?}");
    assert!(dials[1..].iter().all(|count| (1..=12).contains(count)), "in each second: {dials:?}");
    let _upstream = sim.serve(UPSTREAM, quiet(), Lines::default());
    for _ in 0..200 {
        sim.advance(millis(10));
        let stats = pool_stats(&proxy);
        assert!(stats.open <= 32 && stats.dialled - stats.dials_failed <= 32, "{stats:?}");
    }
    for peer in &crowd {
        peer.expect(b"line\n");
    }
    assert_eq!(pool_stats(&proxy).leases, 500);
}

/// The process stood still for an hour, in which the far end has closed, or was reset, and the network
/// did not say so: the first line is served over another connection.
fn what_died_during_a_suspension_serves_no_one() {
    for silent in [false, true] {
        let ends: [fn(&Peer); 2] = [Peer::close, Peer::reset];
        for end in ends {
            let mut sim = world(1);
            let listener = sim.listen(UPSTREAM, 8);
            let config = PoolConfig { idle: None, lifetime: None, ping_after: None, ..small(1) };
            let mut proxy = Proxy::new(config);
            proxy.replays = true;
            let proxy = sim.serve(SERVER, quiet(), proxy);
            let (client, upstream) = first_exchange(&mut sim, &listener);
            assert_eq!(pool_stats(&proxy).idle, 1);
            if silent {
                sim.partition("10.0.0.1", "10.0.0.2");
                upstream.reset();
                sim.settle();
                sim.repair("10.0.0.1", "10.0.0.2");
            } else {
                end(&upstream);
            }
            sim.jump_clocks(secs(3_600));
            client.send(b"line\n");
            sim.advance(millis(10));
            let next = listener.accept().expect("a connection that works");
            next.expect(b"line\n");
            next.send(b"line\n");
            sim.advance(millis(10));
            client.expect(b"line\n");
            assert_eq!(pool_stats(&proxy).replayed, u64::from(silent));
        }
    }
}

fn what_an_idle_connection_is_sent_evicts_it() {
    let mut setup = Setup::new(small(4));
    setup.exchange();
    setup.upstream.with(|_, cx| {
        for id in cx.ids() {
            cx.conn(id).unwrap().write(b"stray\n");
        }
    });
    setup.sim.advance(millis(100));
    let stats = setup.stats();
    assert_eq!((stats.open, stats.idle, stats.lost_idle), (0, 0, 1));
    assert_eq!(setup.proxy.stats().closed(CloseReason::UnsolicitedData), 1);
    setup.exchange();
}

fn an_idle_connection_that_its_peer_ends_is_evicted() {
    for abort in [false, true] {
        let mut setup = Setup::new(small(4));
        setup.exchange();
        setup.upstream.with(|_, cx| {
            for id in cx.ids() {
                let mut conn = cx.conn(id).unwrap();
                if abort { conn.abort() } else { conn.close() }
            }
        });
        setup.sim.advance(millis(100));
        assert_eq!((setup.stats().open, setup.stats().lost_idle), (0, 1), "abort: {abort}");
        setup.exchange();
        assert_eq!(setup.stats().dialled, 2);
    }
}

/// A stray reply, a FIN or a reset has come while the callback runs that asks, so that no event has
/// said so.
fn what_came_in_the_moment_of_the_lease_is_found() {
    let ends: [fn(&Peer); 3] = [
        |peer| peer.send_after(millis(5), *b"stray\n"),
        |peer| peer.half_close(),
        |peer| peer.reset(),
    ];
    for end in ends {
        let mut sim = world(1);
        let listener = sim.listen(UPSTREAM, 8);
        let proxy = sim.serve(SERVER, quiet(), Proxy::new(small(1)));
        let clients = [(); 2].map(|()| sim.connect(SERVER));
        clients[0].send(b"first\n");
        sim.settle();
        let upstream = listener.accept().unwrap();
        sim.advance(millis(10));
        upstream.expect(b"first\n");
        upstream.send(b"first\n");
        sim.advance(millis(10));
        clients[0].expect(b"first\n");
        let stall = sim.stall();
        proxy.with(|proxy, _| proxy.stall = Some(Box::new(move || stall(millis(10)))));
        // The event of the client comes first.
        clients[1].send(b"mine\n");
        sim.pass(Duration::ZERO);
        end(&upstream);
        sim.advance(millis(100));
        let next = listener.accept().expect("a connection that works");
        next.expect(b"mine\n");
        next.send(b"mine\n");
        sim.advance(millis(100));
        clients[1].expect(b"mine\n");
        assert_eq!(pool_stats(&proxy).lost_idle, 1);
    }
}

/// The upstream reads the line over a connection that was idle and closes; it must get the line once
/// more, over a new connection, and never twice more.
fn a_line_that_is_lost_is_sent_again_once() {
    // Whether the first connection is used before, and over how many the line is lost.
    for (used, losses, replayed) in [(true, 1, 1), (true, 2, 1), (false, 1, 0)] {
        let mut sim = world(1);
        let listener = sim.listen(UPSTREAM, 8);
        let mut proxy = Proxy::new(small(4));
        proxy.replays = true;
        let proxy = sim.serve(SERVER, quiet(), proxy);
        let client = sim.connect(SERVER);
        let mut upstreams = Vec::new();
        if used {
            client.send(b"first\n");
            sim.advance(millis(10));
            upstreams.push(listener.accept().unwrap());
            upstreams[0].expect(b"first\n");
            upstreams[0].send(b"first\n");
            sim.advance(millis(200));
            client.expect(b"first\n");
        }
        client.send(b"line\n");
        for _ in 0..losses {
            sim.advance(millis(10));
            upstreams.extend(listener.accept());
            let upstream = upstreams.pop().unwrap();
            upstream.expect(b"line\n");
            upstream.close();
        }
        sim.advance(millis(10));
        upstreams.extend(listener.accept());
        if replayed == losses {
            let upstream = upstreams.pop().unwrap();
            upstream.expect(b"line\n");
            upstream.send(b"line\n");
            sim.advance(millis(10));
            client.expect(b"line\n");
        } else {
            assert!(upstreams.is_empty(), "it is not sent again");
            client.expect(b"lost\n");
        }
        let stats = pool_stats(&proxy);
        assert_eq!((stats.replayed, stats.leased), (replayed, 0), "{used} {losses}");
    }
}

fn a_line_is_not_sent_again_after_a_byte_of_the_reply() {
    let mut sim = world(1);
    let listener = sim.listen(UPSTREAM, 8);
    let mut proxy = Proxy::new(small(4));
    proxy.replays = true;
    let proxy = sim.serve(SERVER, quiet(), proxy);
    let client = sim.connect(SERVER);
    client.send(b"first\n");
    sim.advance(millis(10));
    let upstream = listener.accept().unwrap();
    upstream.send(b"first\n");
    sim.advance(millis(200));
    client.expect(b"first\n");
    client.send(b"later\n");
    sim.advance(millis(10));
    upstream.send(b"l");
    upstream.close();
    sim.advance(millis(10));
    client.expect(b"lost\n");
    assert!(listener.accept().is_none());
    assert_eq!(pool_stats(&proxy).replayed, 0);
}

fn a_lease_given_back_in_the_middle_of_an_exchange_is_closed() {
    let mut setup = Setup::new(small(1));
    setup.proxy.with(|proxy, cx| {
        cx.acquire(proxy.pool.unwrap(), AcquireOptions::default()).unwrap();
    });
    setup.sim.advance(millis(100));
    let lease = setup.proxy.with(|proxy, cx| {
        let lease = proxy.loop_leases.borrow()[0].unwrap();
        let mut conn = cx.conn(lease).unwrap();
        conn.begin_request();
        conn.write(b"line\n");
        cx.release(lease);
        lease
    });
    setup.sim.advance(millis(100));
    assert_eq!(setup.proxy.stats().closed(CloseReason::PoolUnclean), 1);
    assert_eq!((setup.stats().open, setup.stats().unclean), (0, 1));
    assert!(setup.proxy.with(|_, cx| cx.conn(lease).is_none()));
    setup.exchange();
}

fn cleaning_ends_by_its_deadline() {
    // The upstream is deaf while it has four leases to clean.
    let mut setup = Setup::new(PoolConfig { cleaning: millis(500), ..small(4) });
    for _ in 0..4 {
        setup.proxy.with(|proxy, cx| {
            cx.acquire(proxy.pool.unwrap(), AcquireOptions::default()).unwrap();
        });
    }
    setup.sim.advance(millis(100));
    setup.sim.partition("10.0.0.1", "10.0.0.2");
    setup.proxy.with(|proxy, cx| {
        for lease in proxy.loop_leases.borrow().iter() {
            let mut conn = cx.conn(lease.unwrap()).unwrap();
            conn.begin_request();
            conn.write(b"line\n");
            let id = conn.id();
            conn.clean(id);
        }
    });
    // Those that come meanwhile have the places when they are free.
    let clients: Vec<_> = (0..10).map(|_| setup.client()).collect();
    for client in &clients {
        client.send(b"line\n");
    }
    setup.sim.advance(millis(400));
    let stats = setup.stats();
    assert_eq!((stats.open, stats.leased, stats.waiting), (4, 0, 10));
    setup.sim.advance(millis(200));
    assert_eq!(setup.stats().unclean, 4);
    setup.sim.repair("10.0.0.1", "10.0.0.2");
    setup.sim.advance(secs(4));
    for client in &clients {
        client.expect(b"line\n");
    }
    let stats = setup.stats();
    assert_eq!((stats.leased, stats.waiting, stats.timed_out), (0, 0, 0), "{stats:?}");
}

fn what_is_cleaned_in_time_is_leased_again() {
    let mut setup = Setup::new(small(1));
    setup.proxy.with(|proxy, cx| {
        cx.acquire(proxy.pool.unwrap(), AcquireOptions::default()).unwrap();
    });
    setup.sim.advance(millis(100));
    setup.proxy.with(|proxy, cx| {
        let lease = proxy.loop_leases.borrow()[0].unwrap();
        let mut conn = cx.conn(lease).unwrap();
        conn.begin_request();
        conn.write(b"reset\n");
        conn.clean(lease);
    });
    setup.exchange();
    let stats = setup.stats();
    assert_eq!((stats.dialled, stats.leases, stats.unclean), (1, 2, 0));
}

fn a_handshake_comes_before_the_first_lease() {
    let mut setup = Setup::with(PoolConfig { handshake: Some(secs(1)), ..small(2) }, |proxy| {
        proxy.greets = true;
    });
    setup.exchange();
    setup.exchange();
    let stats = setup.stats();
    assert_eq!((stats.dialled, stats.leases, stats.coming), (1, 2, 0));
}

fn a_connection_that_cannot_be_leased_when_it_is_ready_is_a_failed_dial() {
    // The server says more than the handshake takes; or the pool was not told of one.
    for (handshake, fail_fast) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut sim = world(1);
        let upstream = sim.listen(UPSTREAM, 64);
        let handshake = handshake.then(|| secs(1));
        let config = PoolConfig { handshake, fail_fast, idle_min: 1, ..small(4) };
        let mut proxy = Proxy::new(config);
        proxy.greets = true;
        let proxy = sim.serve(SERVER, quiet(), proxy);
        let client = sim.connect(SERVER);
        let mut greeted = Vec::new();
        let mut pass = |sim: &mut Sim, millis: u64| {
            for _ in 0..millis / 10 {
                greeted.extend(upstream.accept());
                for peer in &greeted {
                    if peer.take() == b"hello\n" {
                        let _ = peer.offer(b"hello\nand more");
                    }
                }
                sim.advance(super::millis(10));
            }
        };
        pass(&mut sim, 10_000);
        let stats = pool_stats(&proxy);
        assert!((3..30).contains(&stats.dialled), "{stats:?}");
        assert!(stats.is_down && stats.dials_failed + 1 >= stats.dialled, "{stats:?}");
        assert_eq!(stats.last_dial, Some(CloseReason::PoolUnclean));
        client.send(b"line\n");
        pass(&mut sim, 5_100);
        client.expect(b"sorry\n");
        let errors = proxy.with(|proxy, _| proxy.errors.clone());
        let failure = if fail_fast { AcquireFailure::Unreachable } else { AcquireFailure::Timeout };
        assert_eq!(errors[0].failure, failure);
        assert_eq!(errors[0].last_dial, Some(CloseReason::PoolUnclean));
    }
}

fn the_most_requests_of_a_connection_are_not_for_those_of_a_pool() {
    let mut config = quiet();
    config.limits.requests_max = Some(1);
    let mut sim = world(1);
    sim.serve(UPSTREAM, quiet(), Lines::default());
    let pool = PoolConfig { handshake: Some(secs(1)), ping_after: Some(secs(10)), ..small(1) };
    let mut proxy = Proxy::new(pool);
    (proxy.greets, proxy.pings) = (true, true);
    let proxy = sim.serve(SERVER, config, proxy);
    for _ in 0..5 {
        let client = sim.connect(SERVER);
        sim.settle();
        client.send(b"line\n");
        sim.advance(secs(25));
        assert_eq!(client.take(), b"line\n");
        assert_eq!(client.closed(), Some(End::Fin));
        client.close();
    }
    let stats = pool_stats(&proxy);
    assert_eq!((stats.dialled, stats.leases, stats.open), (1, 5, 1), "{stats:?}");
    assert!(stats.pinged > 5, "{stats:?}");
}

fn a_ping_of_the_only_idle_connection_dials_no_other() {
    let config = PoolConfig { idle_min: 1, ping_after: Some(secs(10)), ..small(4) };
    let mut setup = Setup::with(config, |proxy| proxy.pings = true);
    setup.sim.set_link(Link { latency: millis(20), ..Link::LOOPBACK });
    setup.sim.advance(secs(600));
    let stats = setup.stats();
    assert!(stats.pinged > 50, "{stats:?}");
    assert_eq!((stats.dialled, stats.idle + stats.coming), (1, 1), "{stats:?}");
}

fn a_handshake_that_does_not_end_is_a_failed_dial() {
    let mut setup = Setup::new(PoolConfig { handshake: Some(millis(300)), ..small(1) });
    let peer = setup.client();
    peer.send(b"line\n");
    setup.sim.advance(millis(350));
    assert_eq!(setup.proxy.stats().closed(CloseReason::Timeout(Timeout::Handshake)), 1);
    setup.sim.advance(secs(6));
    peer.expect(b"sorry\n");
    let error = setup.proxy.with(|proxy, _| proxy.errors[0]);
    assert_eq!(error.last_dial, Some(CloseReason::Timeout(Timeout::Handshake)));
    assert_eq!(setup.stats().leased, 0);
}

fn connections_beyond_the_idle_maximum_end_with_a_fin() {
    let config = PoolConfig { idle_max: 32, backoff: millis(1), ..small(100) };
    let mut setup = Setup::new(config);
    // All have theirs at the same time.
    for _ in 0..100 {
        setup.proxy.with(|proxy, cx| {
            cx.acquire(proxy.pool.unwrap(), AcquireOptions::default()).unwrap();
        });
    }
    setup.sim.advance(secs(1));
    assert_eq!((setup.stats().leased, setup.stats().open), (100, 100));
    setup.proxy.with(|proxy, cx| {
        let leases = std::mem::take(&mut *proxy.loop_leases.borrow_mut());
        leases.into_iter().for_each(|lease| cx.release(lease.unwrap()));
    });
    setup.sim.advance(millis(500));
    let stats = setup.stats();
    assert_eq!((stats.idle, stats.open, stats.surplus), (32, 32, 68), "{stats:?}");
    assert_eq!(setup.proxy.stats().closed(CloseReason::PoolSurplus), 68);
    assert_eq!(setup.upstream.stats().closed(CloseReason::PeerEof), 68);
    assert_eq!(setup.upstream.stats().closed(CloseReason::PeerReset), 0);
}

fn an_idle_connection_ends_in_its_time() {
    let mut setup = Setup::new(PoolConfig { idle: Some(secs(20)), ..small(4) });
    setup.exchange();
    setup.sim.advance(secs(19));
    assert_eq!(setup.stats().idle, 1);
    setup.sim.advance(secs(2));
    assert_eq!((setup.stats().open, setup.stats().idle_closed), (0, 1));
    assert_eq!(setup.upstream.stats().closed(CloseReason::PeerEof), 1);
}

fn as_many_as_are_to_be_idle_are_dialled_once() {
    let mut setup =
        Setup::new(PoolConfig { idle_min: 4, idle: Some(secs(1)), ..PoolConfig::default() });
    setup.sim.advance(secs(60));
    let stats = setup.stats();
    assert_eq!((stats.dialled, stats.idle, stats.idle_closed), (4, 4, 0));
    assert_eq!(setup.upstream.stats().accepted, 4);
}

fn a_busy_connection_is_replaced_at_its_age() {
    let mut setup = Setup::new(PoolConfig { lifetime: Some(secs(2)), ..small(1) });
    for _ in 0..50 {
        setup.exchange();
    }
    // Ten seconds, in which each lives for a second and a half to two.
    let stats = setup.stats();
    assert!((4..=7).contains(&stats.replaced), "{stats:?}");
    assert_eq!(stats.dialled, stats.replaced + 1);
}

fn idle_connections_are_replaced_one_after_the_other() {
    let mut setup =
        Setup::new(PoolConfig { lifetime: Some(secs(40)), idle: None, idle_min: 4, ..small(4) });
    setup.sim.advance(secs(29));
    assert_eq!(setup.stats().replaced, 0);
    let mut replaced = Vec::new();
    for _ in 0..60 {
        setup.sim.advance(secs(1));
        replaced.push(setup.stats().replaced);
    }
    assert!(replaced.windows(10).all(|of| of[9] - of[0] <= 1), "{replaced:?}");
    assert!(*replaced.last().unwrap() >= 5);
    assert_eq!(setup.stats().idle, 4);
}

fn a_connection_is_leased_as_often_as_it_may_be() {
    let mut setup = Setup::new(PoolConfig { leases_max: Some(3), ..small(1) });
    for _ in 0..9 {
        setup.exchange();
    }
    assert_eq!(setup.stats().dialled, 3);
}

fn an_idle_connection_is_pinged_and_goes_on() {
    let config = PoolConfig { idle: None, ping_after: Some(secs(30)), ..small(1) };
    let mut setup = Setup::with(config, |proxy| proxy.pings = true);
    setup.exchange();
    setup.sim.advance(secs(100));
    let stats = setup.stats();
    assert!((3..=4).contains(&stats.pinged), "{stats:?}");
    assert_eq!((stats.dialled, stats.idle), (1, 1));
    setup.exchange();
}

fn a_connection_that_does_not_answer_a_ping_is_closed() {
    let config = PoolConfig { idle: None, ping_after: Some(secs(30)), ..small(1) };
    let mut setup = Setup::with(config, |proxy| proxy.pings = true);
    setup.exchange();
    setup.sim.partition("10.0.0.1", "10.0.0.2");
    setup.sim.advance(secs(32));
    assert_eq!(setup.proxy.stats().closed(CloseReason::Timeout(Timeout::Ping)), 1);
    assert_eq!(setup.stats().open, 0);
}

fn a_ping_that_sends_nothing_leaves_the_connection_idle() {
    let config = PoolConfig { idle: None, ping_after: Some(secs(30)), ..small(1) };
    let mut setup = Setup::new(config);
    setup.exchange();
    setup.sim.advance(secs(100));
    assert!(setup.stats().pinged >= 3);
    assert_eq!((setup.stats().dialled, setup.stats().idle), (1, 1));
}

fn a_wait_that_is_cancelled_is_not_answered() {
    let mut setup = Setup::new(small(1));
    let wait = setup
        .proxy
        .with(|proxy, cx| cx.acquire(proxy.pool.unwrap(), AcquireOptions::default()).unwrap());
    assert!(setup.proxy.with(|_, cx| cx.cancel_acquire(wait)));
    assert!(!setup.proxy.with(|_, cx| cx.cancel_acquire(wait)));
    setup.sim.advance(secs(10));
    assert!(setup.proxy.with(|proxy, _| proxy.loop_leases.borrow().is_empty()));
    assert_eq!((setup.stats().waiting, setup.stats().cancelled), (0, 1));
    setup.exchange();
}

fn a_pool_that_fails_fast_says_why() {
    let mut sim = world(1);
    sim.serve(OTHER_PORT, quiet(), Lines::default());
    let proxy = Proxy::new(PoolConfig { fail_fast: true, ..small(4) });
    let proxy = sim.serve(SERVER, quiet(), proxy);
    let peer = sim.connect(SERVER);
    peer.send(b"line\n");
    sim.advance(millis(100));
    peer.expect(b"sorry\n");
    let error = proxy.with(|proxy, _| proxy.errors[0]);
    assert_eq!(error.failure, AcquireFailure::Unreachable);
    assert!(matches!(error.last_dial, Some(CloseReason::ConnectFailed(_))));
    assert!(error.to_string().contains("the latest dial"), "{error}");
}

/// A leased connection is its owner's alone.
fn another_connection_does_not_reach_a_lease() {
    let mut setup = Setup::new(small(1));
    setup.exchange();
    let id = setup.proxy.with(|proxy, _| proxy.used[0]);
    assert!(setup.proxy.with(|_, cx| cx.conn(id).is_none()), "an idle one is no connection's");
    setup.proxy.with(|proxy, cx| {
        cx.acquire(proxy.pool.unwrap(), AcquireOptions::default()).unwrap();
    });
    setup.sim.advance(millis(10));
    assert!(setup.proxy.with(|_, cx| cx.conn(id).is_some()));
}

fn a_group_closes_what_is_idle_elsewhere_to_make_room() {
    let mut sim = world(1);
    let hosts = ["10.0.0.2:9", "10.0.0.3:9"];
    let _upstreams = hosts.map(|host| sim.serve(host, quiet(), Lines::default()));
    let proxy = sim.serve(SERVER, quiet(), Proxy::new(small(4)));
    sim.settle();
    let pools = proxy.with(|_, cx| {
        let group = Some(cx.add_pool_group(2));
        hosts.map(|host| cx.add_pool(host, &PoolConfig { group, ..small(4) }).unwrap())
    });
    let lease = |sim: &mut Sim, pool: PoolId| {
        proxy.with(|_, cx| cx.acquire(pool, AcquireOptions::default()).unwrap());
        sim.advance(millis(500));
        let leases = proxy.with(|proxy, _| std::mem::take(&mut *proxy.loop_leases.borrow_mut()));
        leases.into_iter().next()
    };
    proxy.with(|proxy, _| proxy.pool = Some(pools[0]));
    let first = lease(&mut sim, pools[0]).unwrap().unwrap();
    let second = lease(&mut sim, pools[0]).unwrap().unwrap();
    assert!(lease(&mut sim, pools[1]).is_none(), "both are leased");
    proxy.with(|_, cx| cx.release(first));
    proxy.with(|proxy, _| proxy.pool = Some(pools[1]));
    sim.advance(secs(1));
    let third = proxy.with(|proxy, _| proxy.loop_leases.borrow_mut().pop());
    assert!(third.is_some_and(|lease| lease.is_ok()), "{third:?}");
    let open = pools.map(|pool| proxy.with(|_, cx| cx.pool_stats(pool).open));
    assert_eq!(open, [1, 1]);
    proxy.with(|_, cx| cx.release(second));
}

fn a_closed_pool_answers_what_waits_and_closes_what_is_idle() {
    let mut setup = Setup::new(small(2));
    setup.exchange();
    setup.proxy.with(|proxy, cx| cx.close_pool(proxy.pool.unwrap()));
    setup.sim.advance(millis(100));
    assert_eq!(setup.stats().open, 0);
    let peer = setup.client();
    peer.send(b"line\n");
    setup.sim.advance(millis(100));
    peer.expect(b"refused\n");
    assert_eq!(setup.proxy.with(|proxy, _| proxy.errors[0].failure), AcquireFailure::Closed);
}

fn a_shutdown_serves_what_waits() {
    let mut setup = Setup::new(small(1));
    let peers: Vec<_> = (0..5).map(|_| setup.client()).collect();
    for peer in &peers {
        peer.send(b"line\n");
    }
    setup.sim.step();
    setup.proxy.shutdown();
    setup.sim.advance(secs(40));
    for peer in &peers {
        peer.expect(b"line\n");
    }
    assert!(setup.proxy.is_finished());
}

/// A proxy with ten places.
fn crowded() -> (Sim, Server<Proxy>) {
    let mut sim = world(1);
    sim.serve(UPSTREAM, quiet(), Lines::default());
    let mut config = quiet();
    config.limits.max_connections = Some(10);
    let proxy = sim.serve(SERVER, config, Proxy::new(small(4)));
    (sim, proxy)
}

fn a_full_table_of_idle_clients_makes_room_for_what_waits() {
    let (mut sim, proxy) = crowded();
    let mut clients: Vec<_> = (0..9).map(|_| sim.connect(SERVER)).collect();
    for client in &clients {
        client.send(b"line\n");
        sim.advance(millis(100));
        client.expect(b"line\n");
    }
    // The pool's connection ends, as it is idle for long, and a client takes its place.
    sim.advance(secs(60));
    clients.push(sim.connect(SERVER));
    sim.settle();
    assert_eq!((evicted(&proxy), pool_stats(&proxy).open), (0, 0));
    clients[8].send(b"line\n");
    sim.advance(secs(1));
    clients[8].expect(b"line\n");
    let evicted = evicted(&proxy);
    assert!((1..5).contains(&evicted), "{evicted} were evicted");
}

fn a_full_table_of_busy_clients_is_named_as_the_cause() {
    let (mut sim, proxy) = crowded();
    let clients: Vec<_> = (0..10).map(|_| sim.connect(SERVER)).collect();
    for client in &clients {
        client.send(b"line\n");
    }
    sim.advance(secs(6));
    let errors = proxy.with(|proxy, _| proxy.errors.clone());
    assert_eq!(errors.len(), 10);
    assert!(errors.iter().all(|error| error.shortage), "{errors:?}");
    assert!(errors[0].to_string().contains("no place, port or descriptor"), "{}", errors[0]);
    assert_eq!(evicted(&proxy), 0);
}

fn our_own_shortage_is_no_failure_of_the_endpoint() {
    let mut setup = Setup::new(small(2));
    setup.proxy.fail(Call::Connect, 0, errno::EADDRNOTAVAIL);
    setup.exchange_late();
    let stats = setup.stats();
    assert_eq!((stats.dials_failed, stats.dialled), (1, 2), "{stats:?}");
}

impl Setup {
    /// A client that has to wait for a second dial.
    fn exchange_late(&mut self) {
        let peer = self.client();
        peer.send(b"line\n");
        self.sim.advance(millis(300));
        peer.expect(b"line\n");
        peer.close();
        self.sim.settle();
    }
}

/// Default settings: idle 50 s, ping_after 30 s, a health check that does nothing.
fn a_connection_that_is_only_checked_ends_in_its_idle_time() {
    let mut setup = Setup::new(PoolConfig::default());
    setup.exchange();
    setup.sim.advance(secs(300));
    let stats = setup.stats();
    assert_eq!((stats.open, stats.idle_closed), (0, 1), "{stats:?}");
}

/// The server accepts and closes at once; one connection is to be idle.
fn a_server_that_accepts_and_closes_is_not_dialled_without_pauses() {
    let mut sim = world(1);
    let listener = sim.listen(UPSTREAM, 64);
    let proxy = sim.serve(SERVER, quiet(), Proxy::new(PoolConfig { idle_min: 1, ..small(4) }));
    for _ in 0..1_000 {
        sim.advance(millis(1));
        while let Some(peer) = listener.accept() {
            peer.close();
        }
    }
    let stats = pool_stats(&proxy);
    assert!(stats.dialled < 50, "{stats:?}");
}

/// The server greets; the pool was not told of a handshake. One client waits.
fn a_server_that_greets_is_not_dialled_without_pauses() {
    let mut sim = world(1);
    let listener = sim.listen(UPSTREAM, 64);
    let proxy = sim.serve(SERVER, quiet(), Proxy::new(small(4)));
    let client = sim.connect(SERVER);
    client.send(b"line\n");
    let mut all = Vec::new();
    for _ in 0..5_200 {
        sim.advance(millis(1));
        while let Some(peer) = listener.accept() {
            peer.send(b"220 hello\r\n");
            all.push(peer);
        }
    }
    let stats = pool_stats(&proxy);
    let errors = proxy.with(|proxy, _| proxy.errors.clone());
    assert!(stats.dialled < 50, "{stats:?} {errors:?} {:?}", client.received());
}

/// The server greets and resets before the pool knows that its dial has succeeded.
fn a_server_that_greets_and_resets_at_once_is_not_dialled_without_pauses() {
    for greets in [false, true] {
        let mut sim = world(1);
        sim.set_link(Link { latency: millis(10), ..Link::LOOPBACK });
        let listener = sim.listen(UPSTREAM, 64);
        let handshake = PoolConfig { handshake: greets.then(|| secs(1)), ..small(4) };
        let mut proxy = Proxy::new(handshake);
        proxy.greets = greets;
        let proxy = sim.serve(SERVER, quiet(), proxy);
        let client = sim.connect(SERVER);
        client.send(b"line\n");
        for _ in 0..600 {
            sim.advance(millis(10));
            while let Some(peer) = listener.accept() {
                peer.send(b"hello\n");
                peer.reset();
            }
        }
        let stats = pool_stats(&proxy);
        assert!(stats.dialled > 3 && stats.dialled < 50, "{stats:?}");
        assert!(!proxy.with(|proxy, _| proxy.errors.is_empty()), "the client was told");
        assert_eq!((stats.waiting, stats.leased), (0, 0), "{stats:?}");
    }
}

fn a_spare_connection_does_not_compete_with_what_waits() {
    let mut sim = world(1);
    let hosts = ["10.0.0.2:9", "10.0.0.3:9"];
    let _upstreams = hosts.map(|host| sim.serve(host, quiet(), Lines::default()));
    let proxy = sim.serve(SERVER, quiet(), Proxy::new(small(4)));
    sim.settle();
    let pools = proxy.with(|proxy, cx| {
        let group = Some(cx.add_pool_group(1));
        let warm = PoolConfig { group, idle_min: 1, ..small(4) };
        let first = cx.add_pool(hosts[0], &warm).unwrap();
        let second = cx.add_pool(hosts[1], &PoolConfig { group, ..small(4) }).unwrap();
        proxy.pool = Some(first);
        [first, second]
    });
    sim.advance(millis(50));
    proxy.with(|_, cx| {
        cx.acquire(pools[1], AcquireOptions::default()).unwrap();
    });
    sim.advance(secs(6));
    let got = proxy.with(|proxy, _| proxy.loop_leases.borrow().clone());
    let stats = pools.map(|pool| proxy.with(|_, cx| cx.pool_stats(pool)));
    assert!(got[0].is_ok(), "{got:?} {stats:#?}");
}

/// Nothing waits while dials fail; then something does, and the server is back.
fn what_comes_during_a_pause_shortens_it() {
    let mut worst = Duration::ZERO;
    for seed in 0..20 {
        let mut sim = world(seed);
        sim.serve(OTHER_PORT, quiet(), Lines::default());
        let proxy = sim.serve(SERVER, quiet(), Proxy::new(PoolConfig { idle_min: 1, ..small(4) }));
        sim.advance(secs(40) + millis(137 * seed));
        let _upstream = sim.serve(UPSTREAM, quiet(), Lines::default());
        let client = sim.connect(SERVER);
        client.send(b"line\n");
        let mut waited = Duration::ZERO;
        while client.received().is_empty() {
            sim.advance(millis(10));
            waited += millis(10);
        }
        worst = worst.max(waited);
        drop(proxy);
    }
    assert!(worst < millis(600), "{worst:?}");
}

fn loop_lease(setup: &mut Setup) -> ConnId {
    setup.proxy.with(|proxy, cx| {
        cx.acquire(proxy.pool.unwrap(), AcquireOptions::default()).unwrap();
    });
    setup.sim.advance(millis(100));
    setup.proxy.with(|proxy, _| proxy.loop_leases.borrow_mut().pop().unwrap().unwrap())
}

/// What the loop leaves behind when it gives a lease back, or the lease in a callback of its own.
fn left_behind(what: fn(&mut Conn<'_>)) {
    for by_itself in [false, true] {
        let mut setup = Setup::new(small(1));
        let lease = loop_lease(&mut setup);
        if by_itself {
            let handle = setup.proxy.handle();
            let posted = handle.post_to(lease, move |_, conn, _| {
                what(conn);
                conn.release(lease);
            });
            posted.unwrap();
        } else {
            setup.proxy.with(|_, cx| {
                what(&mut cx.conn(lease).unwrap());
                cx.release(lease);
            });
        }
        setup.sim.advance(secs(1));
        let peer = setup.client();
        peer.send(b"line\n");
        setup.sim.advance(secs(20));
        let stats = setup.stats();
        assert_eq!(String::from_utf8_lossy(&peer.received()), "line\n", "{by_itself}: {stats:?}");
    }
}

fn a_pause_ends_with_its_lease() {
    left_behind(|conn| conn.pause_reading());
}

fn a_connection_that_waits_for_input_is_not_leased_again() {
    left_behind(|conn| conn.expect_input(1_000));
}

fn a_connection_that_skips_input_is_not_leased_again() {
    left_behind(|conn| conn.skip(5));
}

fn a_connection_after_its_fin_is_not_leased_again() {
    left_behind(|conn| conn.shutdown_write());
}

/// Released with a FIN asked for, while another waits.
fn a_connection_after_its_fin_is_not_handed_over() {
    let mut setup = Setup::new(small(1));
    let lease = loop_lease(&mut setup);
    let peer = setup.client();
    peer.send(b"line\n");
    setup.sim.advance(millis(100));
    setup.proxy.with(|_, cx| {
        cx.conn(lease).unwrap().shutdown_write();
        cx.release(lease);
    });
    setup.sim.advance(secs(20));
    assert_eq!(String::from_utf8_lossy(&peer.received()), "line\n", "{:?}", setup.stats());
}

fn a_connection_that_skips_input_is_not_handed_over() {
    let mut setup = Setup::new(small(1));
    let lease = loop_lease(&mut setup);
    let peer = setup.client();
    peer.send(b"line\n");
    setup.sim.advance(millis(100));
    setup.proxy.with(|_, cx| {
        cx.conn(lease).unwrap().skip(5);
        cx.release(lease);
    });
    setup.sim.advance(secs(20));
    assert_eq!(String::from_utf8_lossy(&peer.received()), "line\n", "{:?}", setup.stats());
}

/// A timer that was set for one owner comes while another has the connection.
fn a_timer_ends_with_its_lease() {
    let mut setup = Setup::new(small(1));
    let lease = loop_lease(&mut setup);
    setup.proxy.with(|_, cx| {
        let mut conn = cx.conn(lease).unwrap();
        let at = conn.now() + secs(2);
        conn.set_timer(at);
        cx.release(lease);
    });
    setup.sim.advance(secs(1));
    let lease = loop_lease(&mut setup);
    setup.sim.advance(secs(3));
    let rang = setup.proxy.with(|proxy, _| proxy.rang.clone());
    assert!(rang.is_empty(), "{rang:?} while {lease} is another's");
}

/// A client has had a reply, over a connection that is idle in its pool now.
fn first_exchange(sim: &mut Sim, listener: &wheelhouse::sim::PeerListener) -> (Peer, Peer) {
    let client = sim.connect(SERVER);
    client.send(b"first\n");
    sim.advance(millis(10));
    let upstream = listener.accept().unwrap();
    upstream.expect(b"first\n");
    upstream.send(b"first\n");
    sim.advance(millis(200));
    client.expect(b"first\n");
    (client, upstream)
}

/// Two replayable requests over one lease, which is lost before a byte of a reply.
fn of_two_requests_none_is_sent_again() {
    let mut sim = world(1);
    let listener = sim.listen(UPSTREAM, 8);
    let mut proxy = Proxy::new(small(4));
    proxy.replays = true;
    let proxy = sim.serve(SERVER, quiet(), proxy);
    let (client, upstream) = first_exchange(&mut sim, &listener);
    proxy.with(|proxy, _| proxy.twice = true);
    client.send(b"line\n");
    sim.advance(millis(10));
    upstream.expect(b"Aline\nline\n");
    upstream.close();
    sim.advance(millis(10));
    assert!(listener.accept().is_none(), "one would get the reply to the other");
    client.expect(b"lost\n");
}

/// A connection of a pool with a handshake that calls `ready` too early.
fn a_connection_is_not_ready_before_it_stands() {
    let mut setup = Setup::with(PoolConfig { handshake: Some(secs(1)), ..small(2) }, |proxy| {
        proxy.greets = true;
        proxy.ready_in_open = true;
    });
    setup.sim.set_link(Link { latency: millis(100), ..Link::default() });
    let peer = setup.client();
    setup.sim.advance(millis(300));
    peer.send(b"line\n");
    setup.sim.advance(secs(5));
    peer.expect(b"line\n");
    let stats = setup.stats();
    assert_eq!((stats.coming, stats.leased), (0, 0), "{stats:?}");
}

/// One of four connections is lost with a request; the three idle ones are sound.
fn a_request_sent_again_spares_idle_connections() {
    let mut sim = world(1);
    let listener = sim.listen(UPSTREAM, 8);
    let mut proxy = Proxy::new(small(4));
    proxy.replays = true;
    let proxy = sim.serve(SERVER, quiet(), proxy);
    let clients: Vec<_> = (0..4).map(|_| sim.connect(SERVER)).collect();
    for client in &clients {
        client.send(b"first\n");
    }
    sim.advance(millis(10));
    let mut upstreams: Vec<_> = std::iter::from_fn(|| listener.accept()).collect();
    for upstream in &upstreams {
        upstream.expect(b"first\n");
        upstream.send(b"first\n");
    }
    sim.advance(millis(200));
    assert_eq!(pool_stats(&proxy).idle, 4);
    clients[0].take();
    clients[0].send(b"line\n");
    sim.advance(millis(10));
    let at = upstreams.iter().position(|upstream| upstream.received() == b"line\n").unwrap();
    upstreams.remove(at).close();
    sim.advance(millis(10));
    let stats = pool_stats(&proxy);
    assert_eq!((stats.replayed, stats.surplus, stats.idle), (1, 0, 3), "{stats:?}");
}

/// A reply that was not asked for comes right behind the one that was.
fn what_waits_longest_in_a_group_comes_first() {
    let mut sim = world(1);
    let hosts = ["10.0.0.2:9", "10.0.0.3:9"];
    let _upstreams = hosts.map(|host| sim.serve(host, quiet(), Lines::default()));
    let proxy = sim.serve(SERVER, quiet(), Proxy::new(small(4)));
    sim.settle();
    let pools = proxy.with(|proxy, cx| {
        let group = Some(cx.add_pool_group(2));
        let config = PoolConfig { group, leases_max: Some(20), ..small(4) };
        let pools = hosts.map(|host| cx.add_pool(host, &config).unwrap());
        proxy.pool = Some(pools[0]);
        pools
    });
    // Eight clients keep the first busy.
    sim.set_link(Link { latency: millis(1), ..Link::default() });
    let clients: Vec<_> = (0..8).map(|_| sim.connect(SERVER)).collect();
    for client in &clients {
        client.send(b"line\n");
    }
    let mut served = 0;
    for at in 0..6_000 {
        if at == 500 {
            proxy.with(|_, cx| {
                cx.acquire(pools[1], AcquireOptions::default()).unwrap();
            });
        }
        sim.advance(millis(1));
        for client in &clients {
            if client.received() == b"line\n" {
                client.take();
                served += 1;
                client.send(b"line\n");
            }
        }
    }
    let got = proxy.with(|proxy, _| proxy.loop_leases.borrow().clone());
    let stats = pools.map(|pool| proxy.with(|_, cx| cx.pool_stats(pool)));
    assert!(got[0].is_ok(), "{served} {got:?} {:?}", (stats[0].dialled, stats[1].dialled));
}

/// Idle connections that make room for another pool of the group.
fn what_is_closed_for_its_group_counts_as_surplus() {
    let mut sim = world(1);
    let hosts = ["10.0.0.2:9", "10.0.0.3:9"];
    let _upstreams = hosts.map(|host| sim.serve(host, quiet(), Lines::default()));
    let proxy = sim.serve(SERVER, quiet(), Proxy::new(small(4)));
    sim.settle();
    let pools = proxy.with(|_, cx| {
        let group = Some(cx.add_pool_group(1));
        hosts.map(|host| cx.add_pool(host, &PoolConfig { group, ..small(4) }).unwrap())
    });
    for pool in pools {
        proxy.with(|_, cx| {
            cx.acquire(pool, AcquireOptions::default()).unwrap();
        });
        sim.advance(secs(1));
        proxy.with(|proxy, cx| {
            let lease = proxy.loop_leases.borrow_mut().pop().unwrap().unwrap();
            cx.release(lease);
        });
        sim.advance(millis(10));
    }
    let stats = proxy.with(|_, cx| cx.pool_stats(pools[0]));
    assert_eq!((stats.lost_idle, stats.surplus), (0, 1), "{stats:?}");
}

/// A lease throttled by a slow client, given back, serves the next.
fn a_throttle_ends_with_its_lease() {
    let mut setup = Setup::new(small(1));
    let slow = setup.client();
    setup.sim.settle();
    slow.send(b"line\n");
    setup.sim.advance(millis(100));
    slow.expect(b"line\n");
    let lease = loop_lease(&mut setup);
    slow.stop_reading();
    setup.proxy.with(|proxy, cx| {
        let ids = cx.ids();
        let slow = ids.into_iter().find(|id| *id != lease).unwrap();
        cx.conn(slow).unwrap().write(&vec![b'x'; 3_000_000]);
        assert!(cx.conn(slow).unwrap().is_congested());
        cx.conn(lease).unwrap().throttle_on(slow);
        cx.release(lease);
        let _ = proxy;
    });
    let peer = setup.client();
    peer.send(b"mine\n");
    setup.sim.advance(secs(5));
    assert_eq!(String::from_utf8_lossy(&peer.received()), "mine\n", "{:?}", setup.stats());
}

/// The first owner gives the lease a read timeout of its own: the pool's rules no longer hold.
fn timeouts_end_with_their_lease() {
    let config = PoolConfig { idle: None, ping_after: None, lifetime: None, ..small(1) };
    let mut setup = Setup::new(config);
    let lease = loop_lease(&mut setup);
    setup.proxy.with(|_, cx| {
        let timeouts = wheelhouse::Timeouts { read: Some(secs(3)), ..Default::default() };
        cx.conn(lease).unwrap().set_timeouts(&timeouts);
        cx.release(lease);
    });
    setup.sim.advance(secs(300));
    assert_eq!((setup.stats().idle, setup.stats().lost_idle), (1, 0), "the pool has no idle time");
}

/// The loop waits for a server that is down, and the reactor is shut down: is the wait answered?
fn a_wait_of_the_loop_is_answered_at_the_end() {
    let mut sim = world(1);
    sim.serve(OTHER_PORT, quiet(), Lines::default());
    let proxy = Proxy::new(small(4));
    let leases = proxy.loop_leases.clone();
    let proxy = sim.serve(SERVER, quiet(), proxy);
    sim.settle();
    proxy.with(|proxy, cx| {
        cx.acquire(proxy.pool.unwrap(), AcquireOptions::default()).unwrap();
    });
    sim.advance(millis(300));
    proxy.shutdown();
    sim.advance(secs(60));
    assert!(proxy.is_finished());
    assert_eq!(leases.borrow().len(), 1, "the wait was never answered");
}

/// However many they are, as no other turn comes.
fn all_waits_of_the_loop_are_answered_at_the_end() {
    const COUNT: usize = 3_000;
    let mut sim = world(1);
    sim.serve(OTHER_PORT, quiet(), Lines::default());
    let proxy = Proxy::new(PoolConfig { waiters_max: COUNT, acquire: secs(100), ..small(4) });
    let leases = proxy.loop_leases.clone();
    let proxy = sim.serve(SERVER, quiet(), proxy);
    sim.settle();
    proxy.with(|proxy, cx| {
        for _ in 0..COUNT {
            cx.acquire(proxy.pool.unwrap(), AcquireOptions::default()).unwrap();
        }
    });
    proxy.shutdown();
    sim.advance(secs(60));
    assert!(proxy.is_finished());
    let closed = |lease: &Result<ConnId, AcquireError>| {
        lease.is_err_and(|error| error.failure == AcquireFailure::Closed)
    };
    assert_eq!(leases.borrow().iter().filter(|lease| closed(lease)).count(), COUNT);
}

/// A reactor ends before its turn has come to open what a pool dials.
fn a_reactor_that_ends_closes_its_pools() {
    let mut sim = world(1);
    let mut proxy = Proxy::new(small(4));
    let mut reactor = Reactor::with_backend(quiet(), sim.host("10.0.0.1")).unwrap();
    reactor.turn(&mut proxy, Some(Duration::ZERO)).unwrap();
    let (pool, unreachable) = (proxy.pool.unwrap(), "10.0.0.9:9");
    // More than one turn begins.
    for _ in 0..1_100 {
        reactor.context().connect(unreachable).unwrap();
    }
    reactor.context().acquire(pool, AcquireOptions::default()).unwrap();
    reactor.turn(&mut proxy, Some(Duration::ZERO)).unwrap();
    let stats = reactor.context().pool_stats(pool);
    assert_eq!((stats.open, stats.coming, stats.waiting), (1, 1, 1));
    reactor.end(&mut proxy);
    let leases = proxy.loop_leases.borrow();
    assert!(leases[0].is_err_and(|error| error.failure == AcquireFailure::Closed), "{leases:?}");
}

fn an_idle_connection_is_leased_at_once() {
    let mut setup = Setup::new(small(1));
    setup.exchange();
    assert_eq!(setup.stats().idle, 1);
    setup.proxy.with(|proxy, cx| {
        let options = AcquireOptions { timeout: Some(Duration::ZERO), ..Default::default() };
        cx.acquire(proxy.pool.unwrap(), options).unwrap();
    });
    setup.sim.advance(millis(100));
    let got = setup.proxy.with(|proxy, _| proxy.loop_leases.borrow().clone());
    assert!(got[0].is_ok(), "{got:?}");
}

/// Holds the reply on a lease back, gives the lease back to be cleaned, and takes the reply then.
#[derive(Default)]
struct Cleaner {
    pool: Option<PoolId>,
    /// How it holds the reply back.
    holds: Option<fn(&mut Conn<'_>)>,
    lease: Option<ConnId>,
    cleans: bool,
}

impl Handler for Cleaner {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        self.pool = Some(cx.add_pool(UPSTREAM, &small(1)).unwrap());
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        match conn.origin() {
            Origin::Accepted(_) => {
                input.clear();
                conn.acquire(self.pool.unwrap(), AcquireOptions::default()).unwrap();
                conn.set_timer(conn.now() + secs(1));
            }
            _ if self.cleans => {
                assert_eq!(&input[..], b"line\n");
                input.clear();
                conn.end_request();
                conn.ready();
            }
            _ => self.holds.unwrap()(conn),
        }
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        (): &mut (),
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.lease = lease.ok();
        conn.send_replayable(self.lease.unwrap(), &b"line\n"[..]);
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        self.cleans = true;
        conn.clean(self.lease.unwrap());
    }
}

fn what_is_left_of_a_reply_comes_to_be_cleaned() {
    let pauses: fn(&mut Conn<'_>) = |conn| conn.pause_reading();
    let throttles: fn(&mut Conn<'_>) = |conn| {
        let client = conn.owner().unwrap();
        conn.other(client).unwrap().write(&[b'x'; 1 << 20]);
        conn.throttle_on(client);
    };
    for holds in [pauses, throttles] {
        let mut sim = world(1);
        sim.serve(UPSTREAM, quiet(), Lines::default());
        let cleaner = Cleaner { holds: Some(holds), ..Cleaner::default() };
        let server = sim.serve(SERVER, quiet(), cleaner);
        let client = sim.connect(SERVER);
        client.stop_reading();
        client.send(b"?");
        sim.advance(secs(3));
        let stats = server.with(|cleaner, cx| cx.pool_stats(cleaner.pool.unwrap()));
        assert_eq!((stats.idle, stats.unclean), (1, 0), "{stats:?}");
    }
}

/// Gives each lease back when it has just written much over it, which the kernel takes at once.
#[derive(Default)]
struct Talker {
    leases: Vec<ConnId>,
}

impl Handler for Talker {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let pool = cx.add_pool(UPSTREAM, &small(1)).unwrap();
        for _ in 0..2 {
            cx.acquire(pool, AcquireOptions::default()).unwrap();
        }
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {}

    fn on_timer(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        conn.write(&[b'x'; 100]);
        assert!(conn.is_congested());
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, _: AlarmId) {
        let lease = *self.leases.last().unwrap();
        cx.conn(lease).unwrap().end_request();
        cx.release(lease);
    }

    fn on_loop_acquired(
        &mut self,
        cx: &mut Context<'_>,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.leases.push(lease.unwrap());
        let at = cx.now() + millis(100);
        let mut conn = cx.conn(lease.unwrap()).unwrap();
        conn.begin_request();
        conn.set_timer(at);
        // Alarms come behind the timers of their tick.
        cx.set_alarm(at);
    }
}

/// The world does not ask for an `on_drained` that was the lease's before.
fn a_lease_begins_without_the_callbacks_of_the_one_before() {
    let mut sim = world(1);
    sim.serve(UPSTREAM, quiet(), Lines::default());
    let config = Config { watermarks: Watermarks::new(1, 10).unwrap(), ..quiet() };
    let server = sim.serve(SERVER, config, Talker::default());
    sim.advance(secs(1));
    let leases = &server.handler().leases;
    assert!(leases.len() == 2 && leases[0] == leases[1], "{leases:?}");
}
