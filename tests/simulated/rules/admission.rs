//! Which connections are accepted: shortages, places, and the limits of clients.

use super::*;

with_each_personality! {
    a_shortage_of_epoll_evicts_an_eighth_once,
    a_shortage_of_epoll_that_lasts_pauses_longer_each_time,
    idle_connections_are_evicted_at_once_when_descriptors_run_out,
    at_most_thirty_two_are_evicted_at_a_time,
    pauses_double_up_to_a_second_and_begin_anew_after_a_success,
    an_exempt_connection_is_never_evicted,
    peers_without_an_address_are_not_limited_as_clients,
    a_client_of_a_full_server_gets_the_reply_and_a_fin_though_it_spoke_first,
    a_client_may_be_a_network,
    clients_behind_nat64_are_limited_one_by_one,
    a_client_that_closes_and_dials_again_while_the_loop_is_busy_is_within_its_limit,
    a_client_whose_connection_lingers_while_the_loop_is_busy_is_within_its_limit,
    a_client_that_reads_slowly_costs_no_other_client_a_connection,
    redials_of_a_client_that_reads_slowly_do_not_make_the_loop_spin,
    a_fin_that_is_overtaken_by_the_next_dial_is_awaited,
    a_fin_that_comes_too_late_is_not_awaited,
    connections_that_await_a_decision_delay_no_other_client,
    a_waiting_connection_is_accepted_as_soon_as_a_place_is_free,
    a_storm_at_a_full_table_costs_few_turns,
    arrivals_one_by_one_use_all_of_their_rate,
    a_client_over_its_limit_evicts_no_other,
    a_lasting_shortage_of_files_evicts_at_most_an_eighth_in_each_pause,
    aborted_accepts_evict_no_connection,
    a_paused_connection_is_not_evicted,
    a_client_at_its_limit_is_refused_at_a_full_table_too,
    a_client_at_its_limit_takes_no_descriptors_from_others,
    a_greedy_client_takes_no_time_from_a_client_that_dials_again,
    a_lingering_connection_is_evicted_for_a_new_one,
    a_connection_that_begins_to_linger_is_evicted_for_waiting_ones,
    a_client_that_is_refused_with_a_reply_gets_a_fin_though_it_spoke_first,
    a_client_that_is_refused_gets_a_fin_though_it_spoke_first,
    a_client_of_a_full_server_reads_the_reply_though_it_speaks_later,
    a_descriptor_that_is_freed_ends_a_pause_of_accepting,
    a_deferred_newcomer_has_the_first_place_that_is_free_in_a_shutdown,
    a_shutdown_does_not_spin_for_newcomers_of_clients_that_read_slowly,
}

fn a_shortage_of_epoll_evicts_an_eighth_once() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    let _idle = idle(&mut sim, 200);
    for after in 0..40 {
        server.fail(Call::Register, after, errno::ENOSPC);
    }
    let _newcomers: Vec<_> = (0..40).map(|_| sim.connect(SERVER)).collect();
    sim.advance(millis(90));
    assert_eq!(evicted(&server), 25, "an eighth, once");
}

fn a_shortage_of_epoll_that_lasts_pauses_longer_each_time() {
    let mut config = Config::default();
    config.limits.at_limit = AtLimit::Pause;
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Echo);
    sim.settle();
    for after in 0..100 {
        server.fail(Call::Register, after, errno::ENOSPC);
    }
    let _newcomers: Vec<_> = (0..100).map(|_| sim.connect(SERVER)).collect();
    sim.advance(secs(5));
    // 0.1, 0.2, 0.4, 0.8, and then one each second.
    let pauses = server.stats().accept_pauses;
    assert!((6..=10).contains(&pauses), "{pauses}");
}

fn idle_connections_are_evicted_at_once_when_descriptors_run_out() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    let _idle = idle(&mut sim, 16);
    server.set_descriptors(5 + 1 + 16);
    let newcomer = sim.connect(SERVER);
    newcomer.send(b"x");
    sim.settle();
    newcomer.expect(b"x");
    assert_eq!(evicted(&server), 2, "an eighth");
}

fn at_most_thirty_two_are_evicted_at_a_time() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    let _idle = idle(&mut sim, 400);
    server.fail(Call::Accept, 0, errno::ENFILE);
    let newcomer = sim.connect(SERVER);
    newcomer.send(b"x");
    sim.settle();
    newcomer.expect(b"x");
    assert_eq!(evicted(&server), 32);
}

fn pauses_double_up_to_a_second_and_begin_anew_after_a_success() {
    let mut config = Config::default();
    config.limits.at_limit = AtLimit::Pause;
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Echo);
    sim.settle();
    let mut peers = Vec::new();
    let mut pauses = |sim: &mut Sim, failures: u64| {
        for after in 0..failures {
            server.fail(Call::Accept, after, errno::EMFILE);
        }
        let peer = sim.connect(SERVER);
        peer.send(b"x");
        let (start, mut seen, mut at) = (sim.now(), server.stats().accept_pauses, Vec::new());
        while peer.received().is_empty() {
            sim.advance(millis(10));
            if server.stats().accept_pauses > seen {
                seen = server.stats().accept_pauses;
                at.push(sim.now() - start);
            }
        }
        at.push(sim.now() - start);
        peers.push(peer);
        at.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        let got = pauses(&mut sim, 6);
        // Checked every 10 ms.
        assert_eq!(got, [90, 200, 400, 800, 1_000, 1_000]);
    }
}

fn an_exempt_connection_is_never_evicted() {
    let mut sim = world(1);
    let server = sim.spawn("10.0.0.1", with_places(2), Echo, |reactor| {
        reactor.listen(SERVER).unwrap();
        let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
        reactor.listen_with("10.0.0.1:9090", listen).unwrap();
    });
    // Idle for longer than all others.
    let exempt_peer = sim.connect("10.0.0.1:9090");
    exempt_peer.send(b"x");
    sim.advance(millis(100));
    let _idle = idle(&mut sim, 2);
    sim.advance(millis(200));
    let newcomers: Vec<_> = (0..4)
        .map(|_| {
            let newcomer = sim.connect(SERVER);
            newcomer.send(b"x");
            sim.advance(millis(300));
            newcomer.expect(b"x");
            newcomer
        })
        .collect();
    assert_eq!(evicted(&server), 4);
    drop(newcomers);
    sim.settle();
    server.fail(Call::Accept, 0, errno::EMFILE);
    let newcomer = sim.connect(SERVER);
    newcomer.send(b"x");
    sim.advance(secs(1));
    newcomer.expect(b"x");
    assert_eq!(evicted(&server), 4, "it alone is idle");
    assert!(exempt_peer.is_open());
}

fn peers_without_an_address_are_not_limited_as_clients() {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    let at = Address::Unix("/run/server".into());
    let mut sim = world(1);
    let server = sim.spawn("10.0.0.1", config, Echo, |reactor| {
        reactor.listen(at.clone()).unwrap();
    });
    let peers = [(); 3].map(|()| sim.connect(&at));
    peers.iter().for_each(|peer| peer.send(b"x"));
    sim.settle();
    peers.iter().for_each(|peer| peer.expect(b"x"));
    assert_eq!(server.stats().refused_client, 0);
}

fn a_client_of_a_full_server_gets_the_reply_and_a_fin_though_it_spoke_first() {
    let mut config = with_places(1);
    config.limits.at_limit = AtLimit::Reject("full\n".into());
    let mut sim = world(1);
    let _server = sim.serve(SERVER, config, Echo);
    let _first = sim.connect(SERVER);
    sim.settle();
    let second = sim.connect(SERVER);
    second.send(&[b'x'; 10_000]);
    sim.settle();
    second.expect(b"full\n");
    assert_eq!(second.closed(), Some(End::Fin));
}

fn a_client_may_be_a_network() {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    config.limits.clients.prefix_v4 = 16;
    config.limits.clients.prefix_v6 = 32;
    let mut sim = world(1);
    let server = sim.spawn("10.0.0.1", config.clone(), Echo, |reactor| {
        reactor.listen(SERVER).unwrap();
    });
    let v6 = sim.serve("[fd00::1]:7", config, Echo);
    let peers =
        ["10.1.0.1:0", "10.1.255.1:0", "10.2.0.1:0"].map(|from| sim.connect_from(from, SERVER));
    let peers_v6 = ["[fd01:2::1]:0", "[fd01:2:ffff::1]:0", "[fd01:3::1]:0"]
        .map(|from| sim.connect_from(from, &v6));
    for (peers, server) in [(peers, server), (peers_v6, v6)] {
        peers.iter().for_each(|peer| peer.send(b"x"));
        sim.advance(millis(120));
        assert_eq!(peers.map(|peer| peer.take()), [b"x".to_vec(), vec![], b"x".to_vec()]);
        assert_eq!(server.stats().refused_client, 1);
    }
}

fn clients_behind_nat64_are_limited_one_by_one() {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    config.limits.clients.allowed = vec!["198.51.100.0/24".parse().unwrap()];
    let mut sim = world(1);
    let server = sim.serve("[fd00::1]:7", config, Echo);
    let from = ["192.0.2.1", "192.0.2.2", "192.0.2.1", "198.51.100.1", "198.51.100.1"];
    let peers = from.map(|from| sim.connect_from(format!("[64:ff9b::{from}]:0").as_str(), &server));
    peers.iter().for_each(|peer| peer.send(b"x"));
    sim.settle();
    assert_eq!(peers.each_ref().map(|peer| peer.take().len()), [1, 1, 0, 1, 1]);
}

/// Clients at their limit dial again for each connection that ends; how often one is refused.
///
/// `end` ends a connection on the client's side, or asks the server to end it.
fn refused_redials(
    seed: u64,
    clients: usize,
    limit: u32,
    dials: usize,
    end: impl Fn(&mut Sim, &Peer),
) -> u64 {
    let mut config = Config::default();
    config.limits.clients.connections = Some(limit);
    config.limits.clients.allowed = vec!["10.8.0.0/16".parse().unwrap()];
    let mut sim = world(seed);
    sim.set_link(Link { latency: Duration::from_micros(100), ..Link::LOOPBACK });
    let mut random = sim.random();
    let server = sim.serve(SERVER, config, Busy(Box::new(sim.stall())));
    let busy = sim.connect_from("10.8.0.1:0", SERVER);
    let dial = |sim: &mut Sim, client: usize| {
        let peer = sim.connect_from(format!("10.9.0.{}:0", client + 1).as_str(), SERVER);
        peer.send(b"x");
        peer
    };
    let mut peers: Vec<(usize, Peer)> = Vec::new();
    for at in 0..clients * limit as usize {
        let client = at % clients;
        peers.push((client, dial(&mut sim, client)));
    }
    sim.settle();
    for _ in 0..dials {
        let at = random.below(peers.len() as u64) as usize;
        let (client, _) = peers[at];
        // In half of the cases the loop is busy while the end and the dial come, and has begun the
        // turn in which it accepts.
        let bystander = (random.below(2) == 0).then(|| {
            busy.send(b"s");
            let bystander = sim.connect_from("10.8.0.2:0", SERVER);
            sim.advance(Duration::from_micros(random.below(99)));
            bystander
        });
        end(&mut sim, &peers[at].1);
        let peer = dial(&mut sim, client);
        if random.below(4) > 0 {
            sim.settle();
        }
        peers[at].1 = peer;
        if let Some(bystander) = bystander {
            bystander.close();
        }
    }
    sim.settle();
    for (_, peer) in &peers {
        peer.expect(b"x");
        peer.close();
    }
    busy.close();
    sim.settle();
    assert_eq!(server.connections(), 0);
    server.stats().refused_client
}

fn a_client_that_closes_and_dials_again_while_the_loop_is_busy_is_within_its_limit() {
    for seed in 1..=4 {
        let refused = refused_redials(seed, 1, 1, 500, |_, peer| peer.close());
        assert_eq!(refused, 0, "one client at its limit of 1");
        let refused = refused_redials(seed, 8, 8, 250, |_, peer| peer.close());
        assert_eq!(refused, 0, "eight clients at their limit of 8");
    }
}

fn a_client_whose_connection_lingers_while_the_loop_is_busy_is_within_its_limit() {
    let end = |sim: &mut Sim, peer: &Peer| {
        peer.send(b"e");
        sim.settle();
        assert_eq!(peer.closed(), Some(End::Fin));
    };
    for seed in 1..=2 {
        // It dials again while its end of the old connection is open.
        assert_eq!(refused_redials(seed, 4, 2, 200, end), 0);
        // It closes first.
        let refused = refused_redials(seed, 4, 2, 200, |sim, peer| {
            end(sim, peer);
            peer.close();
        });
        assert_eq!(refused, 0);
    }
}

/// Replies with as many bytes as it is sent, times a thousand, and closes.
struct Farewell;

impl Handler for Farewell {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(&vec![b'f'; 1_000 * input.len()]);
        conn.close();
    }
}

fn a_client_that_reads_slowly_costs_no_other_client_a_connection() {
    const PER_CLIENT: u32 = 40;
    let mut config = Config::default();
    config.limits.clients.connections = Some(PER_CLIENT);
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Farewell);
    let [slow, quick] = ["10.9.0.1:0", "10.9.0.2:0"];
    let mut kept = Vec::new();
    for client in [slow, quick] {
        kept.extend((0..PER_CLIENT).map(|_| {
            let peer = sim.connect_from(client, SERVER);
            // What it does not read, it does not acknowledge for long.
            peer.stop_reading();
            peer
        }));
    }
    sim.settle();
    kept[..PER_CLIENT as usize].iter().for_each(|peer| peer.send(&[0; 200]));
    kept[PER_CLIENT as usize].send(&[0; 1]);
    sim.advance(secs(1));
    assert_eq!(server.connections(), 2 * PER_CLIENT as usize, "all linger or wait");
    let refused = sim.connect_from(slow, SERVER);
    let served = sim.connect_from(quick, SERVER);
    served.send(b"x");
    sim.advance(millis(200));
    assert_eq!(server.stats().refused_client, 1, "the one of slow readers");
    assert!(!refused.is_open());
    served.expect(&[b'f'; 1_000]);
}

fn redials_of_a_client_that_reads_slowly_do_not_make_the_loop_spin() {
    let mut config = Config::default();
    config.limits.clients.connections = Some(40);
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Farewell);
    let slow: Vec<_> = (0..40)
        .map(|_| {
            let peer = sim.connect_from("10.9.0.1:0", SERVER);
            peer.stop_reading();
            peer
        })
        .collect();
    sim.settle();
    slow.iter().for_each(|peer| peer.send(&[0; 200]));
    sim.advance(secs(1));
    let turns = server.stats().turns;
    let newcomers = [(); 8].map(|()| sim.connect_from("10.9.0.1:0", SERVER));
    sim.advance(millis(200));
    assert_eq!(server.stats().refused_client, 8);
    assert!(newcomers.iter().all(|peer| !peer.is_open()));
    assert!(server.stats().turns - turns < 40, "{}", server.stats().turns - turns);
}

/// A client at its limit of one closes, by a way that takes so much longer than that of its next
/// dial.
fn redial_that_overtakes(sim: &mut Sim, late: Duration) -> (Server<Busy>, Peer) {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    let link = Link { latency: Duration::from_micros(100), ..Link::LOOPBACK };
    sim.set_link(Link { latency: late, ..link });
    let server = sim.serve(SERVER, config, Busy(Box::new(sim.stall())));
    let first = sim.connect(SERVER);
    sim.settle();
    sim.set_link(link);
    first.close();
    let second = sim.connect(SERVER);
    second.send(b"x");
    (server, second)
}

fn a_fin_that_is_overtaken_by_the_next_dial_is_awaited() {
    let mut sim = world(1);
    let (server, second) = redial_that_overtakes(&mut sim, millis(80));
    let turns = server.stats().turns;
    sim.advance(millis(50));
    assert_eq!(server.stats().accepted, 1, "it waits for a decision");
    assert!(server.stats().turns - turns < 8, "and the loop sleeps");
    sim.advance(millis(31));
    second.expect(b"x");
    assert_eq!((server.stats().accepted, server.stats().refused_client), (2, 0));
}

fn a_fin_that_comes_too_late_is_not_awaited() {
    let mut sim = world(1);
    let (server, second) = redial_that_overtakes(&mut sim, millis(300));
    sim.advance(millis(99));
    assert_eq!((second.closed(), server.stats().refused_client), (None, 0));
    sim.advance(millis(12));
    assert_eq!(second.closed(), Some(End::Fin));
    assert_eq!((server.stats().accepted, server.stats().refused_client), (1, 1));
}

/// A client at its limit that dials without end does not delay the others.
fn connections_that_await_a_decision_delay_no_other_client() {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Busy(Box::new(sim.stall())));
    let greedy: Vec<_> = (0..100).map(|_| sim.connect_from("10.9.0.1:0", SERVER)).collect();
    let other = sim.connect_from("10.9.0.2:0", SERVER);
    other.send(b"x");
    sim.advance(millis(1));
    other.expect(b"x");
    assert_eq!(server.stats().accepted, 2);
    sim.advance(millis(120));
    assert_eq!(server.stats().refused_client, 99);
    assert_eq!(greedy.iter().filter(|peer| peer.closed().is_none()).count(), 1);
}

/// So many clients with a request that is not served yet.
fn active(sim: &mut Sim, count: usize) -> Vec<Peer> {
    let peers: Vec<_> = (0..count).map(|_| sim.connect(SERVER)).collect();
    peers.iter().for_each(|peer| peer.send(b"x"));
    sim.settle();
    peers
}

fn a_waiting_connection_is_accepted_as_soon_as_a_place_is_free() {
    for at_limit in [AtLimit::EvictIdle, AtLimit::Pause] {
        let mut config = with_places(256);
        config.limits.at_limit = at_limit;
        let mut sim = world(1);
        let server = sim.serve(SERVER, config, Slow(secs(20)));
        let peers = active(&mut sim, 256);
        let newcomers: Vec<_> = (0..8).map(|_| sim.connect(SERVER)).collect();
        sim.advance(millis(130));
        assert_eq!(server.stats().accepted, 256);
        for (accepted, peer) in (257..).zip(&peers[..newcomers.len()]) {
            peer.reset();
            let before = sim.now();
            sim.settle();
            assert_eq!((server.stats().accepted, sim.now()), (accepted, before));
        }
        assert_eq!(evicted(&server), 0);
    }
}

fn a_storm_at_a_full_table_costs_few_turns() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, with_places(256), Slow(secs(60)));
    let mut peers = active(&mut sim, 256);
    sim.advance(millis(150));
    let (turns, accepted) = (server.stats().turns, server.stats().accepted);
    // Connections wait all the time, and every 50 ms one of those that are served ends.
    let mut newcomers: Vec<_> = (0..200).map(|_| sim.connect(SERVER)).collect();
    for _ in 0..40 {
        peers.remove(0).reset();
        for _ in 0..5 {
            newcomers.push(sim.connect(SERVER));
            sim.advance(millis(10));
        }
    }
    let stats = server.stats();
    assert_eq!(stats.accepted - accepted, 40);
    // Each arrival, each end, each accept and each retry after 100 ms is worth a turn or two.
    let turns = stats.turns - turns;
    assert!(turns < 2 * (200 + 40 + 40 + 20), "{turns}");
}

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

fn a_client_over_its_limit_evicts_no_other() {
    let mut config = with_places(9);
    config.limits.clients.connections = Some(1);
    config.limits.clients.allowed = vec!["10.9.0.0/16".parse().unwrap()];
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Echo);
    let _idle = idle(&mut sim, 8);
    let greedy: Vec<_> = (0..9).map(|_| sim.connect_from("10.66.6.6:0", SERVER)).collect();
    sim.advance(millis(120));
    assert_eq!((server.stats().refused_client, evicted(&server)), (8, 0));
    assert_eq!(greedy.iter().filter(|peer| peer.is_open()).count(), 1);
}

fn a_lasting_shortage_of_files_evicts_at_most_an_eighth_in_each_pause() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    let _idle = idle(&mut sim, 200);
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

fn aborted_accepts_evict_no_connection() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    let _idle = idle(&mut sim, 20);
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
            _ => conn.write(input),
        }
        input.clear();
    }
}

fn a_paused_connection_is_not_evicted() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, with_places(1), Holder);
    let peer = sim.connect(SERVER);
    peer.send(b"p");
    sim.settle();
    peer.send(b"the rest of an upload");
    let _newcomer = sim.connect(SERVER);
    sim.advance(secs(1));
    assert_eq!(evicted(&server), 0);
    assert!(peer.is_open());
}

fn a_client_at_its_limit_is_refused_at_a_full_table_too() {
    let mut config = with_places(3);
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

fn a_lingering_connection_is_evicted_for_a_new_one() {
    for at_limit in [AtLimit::EvictIdle, AtLimit::Pause, AtLimit::Reject("full".into())] {
        let mut config = with_places(8);
        config.limits.at_limit = at_limit;
        let mut sim = world(1);
        let server = sim.serve(SERVER, config, Curt);
        let lingering: Vec<_> = (0..8).map(|_| sim.connect(SERVER)).collect();
        for peer in &lingering {
            peer.send(b"x");
        }
        sim.settle();
        lingering.iter().for_each(|peer| peer.expect(b"bye"));
        assert_eq!(server.stats().in_state(State::Closing), 8);
        // They have had their reply and our FIN; they drip, so that their connections linger.
        lingering.iter().for_each(|peer| peer.drip(&[b'x'; 60], secs(1)));
        let newcomer = sim.connect(SERVER);
        newcomer.send(b"x");
        sim.advance(millis(500));
        newcomer.expect(b"bye");
        assert_eq!(server.stats().linger_evicted, 1);
    }
}

fn a_connection_that_begins_to_linger_is_evicted_for_waiting_ones() {
    let mut config = with_places(2);
    config.limits.at_limit = AtLimit::Pause;
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Curt);
    let peers = [(); 2].map(|()| sim.connect(SERVER));
    sim.settle();
    let newcomer = sim.connect(SERVER);
    newcomer.send(b"x");
    sim.advance(secs(1));
    newcomer.expect(b"");
    peers[0].send(b"x");
    sim.advance(millis(500));
    newcomer.expect(b"bye");
    assert_eq!(server.stats().linger_evicted, 1);
}

/// Refuses every connection, with a reply.
struct Refusing;

impl Handler for Refusing {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        conn.write(b"busy");
        None
    }

    fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
}

fn a_client_that_is_refused_with_a_reply_gets_a_fin_though_it_spoke_first() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Refusing);
    sim.settle();
    let peer = sim.connect(SERVER);
    peer.send(b"hello");
    sim.settle();
    peer.expect(b"busy");
    assert_eq!(peer.closed(), Some(End::Fin));
    assert_eq!(server.stats().refused, 1);
}

fn a_client_that_is_refused_gets_a_fin_though_it_spoke_first() {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    config.limits.clients.refusal = Refusal::Close;
    let mut sim = world(1);
    let _server = sim.serve(SERVER, config, Echo);
    sim.settle();
    let _first = sim.connect(SERVER);
    let second = sim.connect(SERVER);
    second.send(b"hello");
    sim.advance(millis(120));
    assert_eq!(second.closed(), Some(End::Fin));
}

fn a_client_of_a_full_server_reads_the_reply_though_it_speaks_later() {
    let mut config = with_places(1);
    config.limits.at_limit = AtLimit::Reject("full\n".into());
    let mut sim = world(1);
    let _server = sim.serve(SERVER, config, Echo);
    let _first = sim.connect(SERVER);
    sim.settle();
    let second = sim.connect(SERVER);
    second.stop_reading();
    second.send_after(millis(20), *b"GET / HTTP/1.1\r\n\r\n");
    sim.advance(millis(100));
    second.resume_reading();
    sim.settle();
    second.expect(b"full\n");
    assert_eq!(second.closed(), Some(End::Fin));
}

fn a_descriptor_that_is_freed_ends_a_pause_of_accepting() {
    let mut sim = world(1);
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

/// Dials when its client says so.
struct Dialler;

impl Handler for Dialler {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        for _ in input.split() {
            conn.connect("10.0.0.2:80").unwrap();
        }
    }
}

fn a_deferred_newcomer_has_the_first_place_that_is_free_in_a_shutdown() {
    let mut sim = world(1);
    sim.serve("10.0.0.2:80", Config::default(), Echo);
    let mut config = Config::default();
    config.limits.max_connections = Some(2);
    config.limits.clients.connections = Some(1);
    let server = sim.serve(SERVER, config, Dialler);
    let first = sim.connect_from("10.9.0.1:0", SERVER);
    sim.settle();
    let _second = sim.connect_from("10.9.0.1:0", SERVER);
    server.shutdown();
    sim.step();
    // The table is full, and in the same turn its client may have another connection.
    first.send(b"d");
    first.half_close();
    sim.settle();
    assert_eq!(server.stats().accepted, 2);
}

fn a_shutdown_does_not_spin_for_newcomers_of_clients_that_read_slowly() {
    let mut config = Config::default();
    config.limits.clients.connections = Some(40);
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Farewell);
    let clients = ["10.9.0.1:0", "10.9.0.2:0", "10.9.0.3:0"];
    let slow: Vec<_> = clients
        .iter()
        .flat_map(|client| [client; 40])
        .map(|client| {
            let peer = sim.connect_from(*client, SERVER);
            peer.stop_reading();
            peer
        })
        .collect();
    sim.settle();
    slow.iter().for_each(|peer| peer.send(&[0; 200]));
    sim.advance(secs(1));
    let newcomers = clients.map(|client| sim.connect_from(client, SERVER));
    sim.settle();
    // In each turn only so many of those that linger are asked for what is unacknowledged.
    let turns = server.stats().turns;
    server.shutdown();
    sim.settle();
    assert!(newcomers.iter().all(|peer| !peer.is_open()));
    assert_eq!(server.stats().refused_client, 3);
    assert!(server.stats().turns - turns < 10, "{}", server.stats().turns - turns);
}
