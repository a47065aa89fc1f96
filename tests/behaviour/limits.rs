//! How many connections there may be, how many requests each may make, and who is told.

use std::cell::RefCell;
use std::rc::Rc;

use wheelhouse::{AtLimit, CloseReason, Config, ConnectError, Timeout};

use crate::harness::{Got, Scene, Script, What, World, millis};

behaviours! {
    everywhere {
        a_full_server_lets_clients_wait
        a_server_of_one_serves_one_after_the_other
        nobody_dials_from_a_full_server
        the_first_free_place_is_the_next_newcomers
        a_refused_connection_leaves_its_place
        requests_begun_are_owed_until_they_end
        a_pipelined_batch_counts_each_request
        a_handler_that_counts_nothing_is_counted_by_reads
        input_is_no_request_to_a_handler_that_counts_them_itself
        the_last_request_is_answered_before_the_end
        a_reply_that_comes_later_is_the_last_all_the_same
        whether_a_connection_may_stay_is_known_before_the_last_reply
        what_came_behind_the_last_request_is_not_served
        a_peer_that_sent_its_fin_is_not_kept
        the_counters_add_up
        a_request_of_our_own_wakes_an_idle_connection
        nobody_is_idle_before_the_reply_has_left
        many_connections_live_side_by_side
        no_more_requests_are_served_than_the_limit_in_one_turn
    }
}

fn config(max_connections: usize) -> Config {
    let mut config = Config::default();
    config.limits.max_connections = Some(max_connections);
    config
}

/// Newcomers wait, whoever is idle.
fn waiting(max_connections: usize) -> Config {
    let mut config = config(max_connections);
    config.limits.at_limit = AtLimit::Pause;
    config
}

fn a_full_server_lets_clients_wait<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, waiting(3), Script::echo());
    let peers: Vec<_> = (0..5).map(|_| scene.connect()).collect();
    for peer in &peers {
        scene.send(*peer, b"hello");
    }
    for peer in &peers[..3] {
        scene.expect(*peer, b"hello");
    }
    scene.wait(millis(30));
    assert_eq!((scene.script.ids.len(), scene.reactor.context().len()), (3, 3));
    for peer in &peers[3..] {
        scene.expect_silence(*peer);
    }
    // A place that becomes free is the next one's.
    scene.leave(peers[1]);
    scene.expect(peers[3], b"hello");
    scene.expect_silence(peers[4]);
    scene.leave(peers[0]);
    scene.expect(peers[4], b"hello");
    scene.send(peers[2], b"still here");
    scene.expect(peers[2], b"still here");
}

fn a_server_of_one_serves_one_after_the_other<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, config(1), Script::echo());
    let peers: Vec<_> = (0..20).map(|_| scene.connect()).collect();
    for peer in peers {
        scene.send(peer, b"hello");
        scene.expect(peer, b"hello");
        scene.leave(peer);
    }
    scene.until("all of them", |scene| scene.script.closed.len() == 20);
    scene.script.closed.clear();
    scene.expect_service();
}

fn nobody_dials_from_a_full_server<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let mut scene = Scene::new(world, config(1), Script::echo());
    let (peer, _) = scene.enter();
    let refused = scene.reactor.context().connect(address.clone());
    assert_eq!(refused, Err(ConnectError::Full));
    scene.leave(peer);
    scene.expect_closed(CloseReason::PeerEof);
    scene.reactor.context().connect(address).unwrap();
    let peer = scene.answer(&mut listener);
    scene.leave(peer);
    scene.expect_closed(CloseReason::PeerEof);
    scene.expect_service();
}

fn the_first_free_place_is_the_next_newcomers<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, waiting(128), Script::echo());
    let peers: Vec<_> = (0..130).map(|_| scene.connect()).collect();
    scene.until("a full table", |scene| scene.script.ids.len() == 128);
    scene.wait(millis(20));
    for gone in 0..2 {
        scene.leave(peers[gone]);
        scene.expect_closed(CloseReason::PeerEof);
        scene.send(peers[128 + gone], b"hello");
        scene.expect(peers[128 + gone], b"hello");
        assert_eq!(scene.script.ids.len(), 129 + gone);
    }
}

fn a_refused_connection_leaves_its_place<W: World>(world: &mut W) {
    let script = Script::echo().when_open(|_, number| number >= 10);
    let mut scene = Scene::new(world, config(1), script);
    for _ in 0..10 {
        let peer = scene.connect();
        scene.expect_eof(peer);
    }
    assert_eq!(scene.reactor.handle().stats().refused, 10);
    scene.expect_service();
}

fn requests_begun_are_owed_until_they_end<W: World>(world: &mut W) {
    let script = Script::echo()
        .when_data(|conn, _, input| {
            for _ in input.split() {
                conn.begin_request();
            }
            conn.set_timer(conn.now() + millis(20));
        })
        .when_timer(|conn, _| {
            conn.write(&[b'0' + conn.in_flight() as u8]);
            conn.end_request();
            if conn.in_flight() > 0 {
                conn.set_timer(conn.now() + millis(10));
            }
        });
    let mut scene = Scene::new(world, Config::default(), script);
    let peer = scene.connect();
    scene.send(peer, b"rrr");
    scene.expect(peer, b"32");
    assert_eq!(scene.script.count(0, What::Idle), 0);
    scene.expect(peer, b"1");
    scene.saw(0, What::Idle);
    assert_eq!(scene.with(0, |conn| conn.in_flight()), 0);
    assert_eq!(scene.reactor.handle().stats().requests, 3);
    scene.expect_service();
}

fn a_request_of_our_own_wakes_an_idle_connection<W: World>(world: &mut W) {
    let script = Script::echo()
        .when_idle(|conn, session| {
            session.step += 1;
            if session.step == 1 {
                conn.set_timer(conn.now() + millis(20));
            }
        })
        .when_timer(|conn, _| {
            if conn.in_flight() == 0 {
                conn.begin_request();
                conn.set_timer(conn.now() + millis(20));
            } else {
                conn.write(b"pushed");
                conn.end_request();
            }
        });
    let mut scene = Scene::new(world, Config::default(), script);
    let peer = scene.connect();
    scene.send(peer, b"hello");
    scene.expect(peer, b"hellopushed");
    scene.until("idle again", |scene| scene.script.count(0, What::Idle) == 2);
    assert_eq!(
        scene.script.story(0)[2..],
        [What::Data(5), What::Idle, What::Timer, What::Active, What::Timer, What::Idle]
    );
    scene.expect_service();
}

fn nobody_is_idle_before_the_reply_has_left<W: World>(world: &mut W) {
    const LEN: usize = 4 << 20;
    let script = Script::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write_bytes(vec![b'l'; LEN]);
    });
    let mut config = Config::default();
    config.timeouts.idle = Some(millis(60));
    let mut scene = Scene::new(world, config, script);
    let peer = scene.connect();
    scene.send(peer, b"x");
    scene.wait(millis(150));
    assert_eq!(scene.script.count(0, What::Idle), 0);
    scene.read(peer, LEN);
    scene.expect_eof(peer);
    scene.expect_closed(CloseReason::Timeout(Timeout::Idle));
    assert_eq!(scene.script.count(0, What::Idle), 1);
    scene.expect_service();
}

fn many_connections_live_side_by_side<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    let peers: Vec<_> = (0..200).map(|_| scene.connect()).collect();
    for round in 0..3 {
        for (index, peer) in peers.iter().enumerate() {
            scene.send(*peer, format!("{index}.{round}").as_bytes());
        }
        for (index, peer) in peers.iter().enumerate() {
            scene.expect(*peer, format!("{index}.{round}").as_bytes());
        }
    }
    // Every second one leaves, and the rest do not notice.
    for peer in peers.iter().step_by(2) {
        scene.leave(*peer);
    }
    for peer in peers.iter().skip(1).step_by(2) {
        scene.send(*peer, b"hello");
        scene.expect(*peer, b"hello");
    }
    scene.until("a hundred to go", |scene| scene.script.closed.len() == 100);
    assert_eq!(scene.reactor.context().len(), 100);
    scene.script.closed.clear();
    scene.expect_service();
}

/// Each byte is a request, and is told whether the connection stays.
fn requests() -> Script {
    Script::echo().when_data(|conn, _, input| {
        while !input.is_empty() && !conn.is_closing() {
            let _ = input.split_to(1);
            conn.begin_request();
            let stays = conn.decide_keep_alive(0).stays();
            conn.write(if stays { b"k" } else { b"c" });
            conn.end_request();
            if conn.cx().stats().requests % 3 == 0 {
                break;
            }
        }
        if !input.is_empty() {
            conn.yield_now();
        }
    })
}

fn a_pipelined_batch_counts_each_request<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), requests());
    let peer = scene.connect();
    scene.send(peer, b"rrrrrrr");
    scene.expect(peer, b"kkkkkkk");
    assert_eq!(scene.reactor.handle().stats().requests, 7);
    scene.expect_service();
}

fn a_handler_that_counts_nothing_is_counted_by_reads<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(3);
    let mut scene = Scene::new(world, config, Script::echo());
    let peer = scene.connect();
    for word in [&b"one"[..], b"two", b"three"] {
        scene.send(peer, word);
        scene.expect(peer, word);
    }
    scene.expect_eof(peer);
    scene.leave(peer);
    let closed = scene.expect_closed(CloseReason::MaxRequests);
    assert_eq!((closed.bytes_out, closed.unsent), (11, 0));
    scene.expect_service();
}

fn input_is_no_request_to_a_handler_that_counts_them_itself<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(2);
    // Bytes other than `r` are no requests.
    let script = Script::echo()
        .when_open(|conn, _| {
            conn.manual_requests();
            true
        })
        .when_data(|conn, _, input| {
            for byte in input.split() {
                if byte == b'r' {
                    conn.begin_request();
                    conn.write(b"R");
                    conn.end_request();
                } else {
                    conn.write(b".");
                }
            }
        });
    let mut scene = Scene::new(world, config, script);
    let peer = scene.connect();
    for (sent, reply) in [(b"-", b"."), (b"-", b"."), (b"r", b"R"), (b"-", b".")] {
        scene.send(peer, sent);
        scene.expect(peer, reply);
        scene.expect_silence(peer);
    }
    assert_eq!(scene.reactor.handle().stats().requests, 1);
    scene.send(peer, b"r");
    scene.expect(peer, b"R");
    scene.expect_eof(peer);
    scene.leave(peer);
    scene.expect_closed(CloseReason::MaxRequests);
    assert_eq!(scene.reactor.handle().stats().requests, 2);
    scene.expect_service();
}

fn the_last_request_is_answered_before_the_end<W: World>(world: &mut W) {
    const LEN: usize = 2 << 20;
    let mut config = Config::default();
    config.limits.requests_max = Some(1);
    let script = Script::echo().when_data(|conn, _, input| {
        input.clear();
        conn.begin_request();
        conn.write_bytes(vec![b'l'; LEN]);
        conn.end_request();
    });
    let mut scene = Scene::new(world, config, script);
    let peer = scene.connect();
    scene.send(peer, b"x");
    let (bytes, end) = scene.read_to_end(peer);
    assert_eq!((bytes.len(), end), (LEN, Got::Eof));
    scene.leave(peer);
    scene.expect_closed(CloseReason::MaxRequests);
    scene.expect_service();
}

fn a_reply_that_comes_later_is_the_last_all_the_same<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(2);
    let script = Script::echo()
        .when_data(|conn, _, input| {
            input.clear();
            conn.begin_request();
            conn.set_timer(conn.now() + millis(40));
        })
        .when_timer(|conn, _| {
            let stays = conn.decide_keep_alive(0).stays();
            conn.write(if stays { b"k" } else { b"c" });
            conn.end_request();
        });
    let mut scene = Scene::new(world, config, script);
    let peer = scene.connect();
    scene.send(peer, b"x");
    scene.expect(peer, b"k");
    scene.send(peer, b"x");
    assert_eq!(scene.read_to_end(peer), (b"c".to_vec(), Got::Eof));
    scene.leave(peer);
    scene.expect_closed(CloseReason::MaxRequests);
    scene.expect_service();
}

fn whether_a_connection_may_stay_is_known_before_the_last_reply<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(3);
    let mut scene = Scene::new(world, config, requests());
    let peer = scene.connect();
    scene.send(peer, b"r");
    scene.expect(peer, b"k");
    scene.send(peer, b"rr");
    assert_eq!(scene.read_to_end(peer), (b"kc".to_vec(), Got::Eof));
    scene.leave(peer);
    scene.expect_closed(CloseReason::MaxRequests);
    assert_eq!(scene.reactor.handle().stats().requests, 3);
    scene.expect_service();
}

fn what_came_behind_the_last_request_is_not_served<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(3);
    let mut scene = Scene::new(world, config, requests());
    let peer = scene.connect();
    scene.send(peer, b"rrrrr");
    assert_eq!(scene.read_to_end(peer), (b"kkc".to_vec(), Got::Eof));
    scene.leave(peer);
    scene.expect_closed(CloseReason::MaxRequests);
    scene.expect_service();
}

fn a_peer_that_sent_its_fin_is_not_kept<W: World>(world: &mut W) {
    let kept = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&kept);
    let script = Script::echo().when_eof(move |conn, _, _| {
        seen.borrow_mut().push(conn.decide_keep_alive(0).stays());
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let peer = scene.connect();
    scene.half_close(peer);
    scene.expect_closed(CloseReason::PeerEof);
    assert_eq!(*kept.borrow(), [false]);
    scene.expect_service();
}

fn the_counters_add_up<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    for index in 1..=3 {
        let peer = scene.connect();
        for _ in 0..index {
            scene.send(peer, b"hello");
            scene.expect(peer, b"hello");
        }
        scene.leave(peer);
        scene.expect_closed(CloseReason::PeerEof);
    }
    let (_stays, _) = scene.enter();
    scene.turn();
    let stats = scene.reactor.handle().stats();
    assert_eq!((stats.accepted, stats.connections, stats.closed_total()), (4, 1, 3));
    assert_eq!((stats.bytes_in, stats.bytes_out, stats.unsent), (30, 30, 0));
    assert_eq!((stats.requests, stats.refused, stats.panics), (6, 0, 0));
    assert_eq!(stats.closed(CloseReason::PeerEof), 3);
    assert_eq!(stats.to_string(), "closed=3 peer_eof=3");
}

fn no_more_requests_are_served_than_the_limit_in_one_turn<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(2);
    config.limits.input_max = 8;
    let script = Script::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write(b"r");
    });
    let mut scene = Scene::new(world, config, script);
    let (peer, number) = scene.enter();
    scene.send(peer, &[b'q'; 40]);
    scene.expect(peer, b"rr");
    scene.saw(number, What::Closing(CloseReason::MaxRequests));
    assert_eq!(scene.script.count(number, What::Data(8)), 2);
    scene.leave(peer);
    assert_eq!(scene.expect_closed(CloseReason::MaxRequests).bytes_out, 2);
    scene.expect_service();
}
