//! How many connections there may be, how many requests each may make, and which of them is told.

use std::cell::RefCell;
use std::rc::Rc;

use wheelhouse::{AtLimit, CloseReason, Config, ConnectError, Timeout};

use crate::harness::{Fixture, Got, RecordingHandler, What, World, millis};

behaviours! {
    everywhere {
        a_full_server_lets_clients_wait
        a_server_of_one_serves_one_after_the_other
        no_dial_begins_from_a_full_server
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
        no_connection_is_idle_before_its_reply_has_left
        many_connections_live_side_by_side
        no_more_requests_are_served_than_the_limit_in_one_turn
    }
}

fn config(max_connections: usize) -> Config {
    let mut config = Config::default();
    config.limits.max_connections = Some(max_connections);
    config
}

/// Newcomers wait, whatever is idle.
fn waiting(max_connections: usize) -> Config {
    let mut config = config(max_connections);
    config.limits.at_limit = AtLimit::Pause;
    config
}

fn a_full_server_lets_clients_wait<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, waiting(3), RecordingHandler::echo());
    let peers: Vec<_> = (0..5).map(|_| fixture.connect()).collect();
    for peer in &peers {
        fixture.send(*peer, b"hello");
    }
    for peer in &peers[..3] {
        fixture.expect(*peer, b"hello");
    }
    fixture.wait(millis(30));
    assert_eq!((fixture.handler.ids.len(), fixture.reactor.context().len()), (3, 3));
    for peer in &peers[3..] {
        fixture.expect_silence(*peer);
    }
    // A place that becomes free is the next one's.
    fixture.leave(peers[1]);
    fixture.expect(peers[3], b"hello");
    fixture.expect_silence(peers[4]);
    fixture.leave(peers[0]);
    fixture.expect(peers[4], b"hello");
    fixture.send(peers[2], b"still here");
    fixture.expect(peers[2], b"still here");
}

fn a_server_of_one_serves_one_after_the_other<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, config(1), RecordingHandler::echo());
    let peers: Vec<_> = (0..20).map(|_| fixture.connect()).collect();
    for peer in peers {
        fixture.send(peer, b"hello");
        fixture.expect(peer, b"hello");
        fixture.leave(peer);
    }
    fixture.until("all of them", |fixture| fixture.handler.closed.len() == 20);
    fixture.handler.closed.clear();
    fixture.expect_service();
}

fn no_dial_begins_from_a_full_server<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let mut fixture = Fixture::new(world, config(1), RecordingHandler::echo());
    let (peer, _) = fixture.enter();
    let refused = fixture.reactor.context().connect(address.clone());
    assert_eq!(refused, Err(ConnectError::Full));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.reactor.context().connect(address).unwrap();
    let peer = fixture.answer(&mut listener);
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn the_first_free_place_is_the_next_newcomers<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, waiting(128), RecordingHandler::echo());
    let peers: Vec<_> = (0..130).map(|_| fixture.connect()).collect();
    fixture.until("a full table", |fixture| fixture.handler.ids.len() == 128);
    fixture.wait(millis(20));
    for gone in 0..2 {
        fixture.leave(peers[gone]);
        fixture.expect_closed(CloseReason::PeerEof);
        fixture.send(peers[128 + gone], b"hello");
        fixture.expect(peers[128 + gone], b"hello");
        assert_eq!(fixture.handler.ids.len(), 129 + gone);
    }
}

fn a_refused_connection_leaves_its_place<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_open(|_, number| number >= 10);
    let mut fixture = Fixture::new(world, config(1), handler);
    for _ in 0..10 {
        let peer = fixture.connect();
        fixture.expect_eof(peer);
    }
    assert_eq!(fixture.reactor.handle().stats().refused, 10);
    fixture.expect_service();
}

fn requests_begun_are_owed_until_they_end<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo()
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
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"rrr");
    fixture.expect(peer, b"32");
    assert_eq!(fixture.handler.count(0, What::Idle), 0);
    fixture.expect(peer, b"1");
    fixture.saw(0, What::Idle);
    assert_eq!(fixture.with(0, |conn| conn.in_flight()), 0);
    assert_eq!(fixture.reactor.handle().stats().requests, 3);
    fixture.expect_service();
}

fn a_request_of_our_own_wakes_an_idle_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo()
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
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"hello");
    fixture.expect(peer, b"hellopushed");
    fixture.until("idle again", |fixture| fixture.handler.count(0, What::Idle) == 2);
    assert_eq!(
        fixture.handler.story(0)[2..],
        [What::Data(5), What::Idle, What::Timer, What::Active, What::Timer, What::Idle]
    );
    fixture.expect_service();
}

fn no_connection_is_idle_before_its_reply_has_left<W: World>(world: &mut W) {
    const LEN: usize = 4 << 20;
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write_bytes(vec![b'l'; LEN]);
    });
    let mut config = Config::default();
    config.timeouts.idle = Some(millis(60));
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.wait(millis(150));
    assert_eq!(fixture.handler.count(0, What::Idle), 0);
    fixture.read(peer, LEN);
    fixture.expect_eof(peer);
    fixture.expect_closed(CloseReason::Timeout(Timeout::Idle));
    assert_eq!(fixture.handler.count(0, What::Idle), 1);
    fixture.expect_service();
}

fn many_connections_live_side_by_side<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let peers: Vec<_> = (0..200).map(|_| fixture.connect()).collect();
    for round in 0..3 {
        for (index, peer) in peers.iter().enumerate() {
            fixture.send(*peer, format!("{index}.{round}").as_bytes());
        }
        for (index, peer) in peers.iter().enumerate() {
            fixture.expect(*peer, format!("{index}.{round}").as_bytes());
        }
    }
    // Every second one leaves, and the rest do not notice.
    for peer in peers.iter().step_by(2) {
        fixture.leave(*peer);
    }
    for peer in peers.iter().skip(1).step_by(2) {
        fixture.send(*peer, b"hello");
        fixture.expect(*peer, b"hello");
    }
    fixture.until("a hundred to go", |fixture| fixture.handler.closed.len() == 100);
    assert_eq!(fixture.reactor.context().len(), 100);
    fixture.handler.closed.clear();
    fixture.expect_service();
}

/// Each byte is a request, and is told whether the connection stays.
fn requests() -> RecordingHandler {
    RecordingHandler::echo().when_data(|conn, _, input| {
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
    let mut fixture = Fixture::new(world, Config::default(), requests());
    let peer = fixture.connect();
    fixture.send(peer, b"rrrrrrr");
    fixture.expect(peer, b"kkkkkkk");
    assert_eq!(fixture.reactor.handle().stats().requests, 7);
    fixture.expect_service();
}

fn a_handler_that_counts_nothing_is_counted_by_reads<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(3);
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    let peer = fixture.connect();
    for word in [&b"one"[..], b"two", b"three"] {
        fixture.send(peer, word);
        fixture.expect(peer, word);
    }
    fixture.expect_eof(peer);
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::MaxRequests);
    assert_eq!((closed.bytes_out, closed.unsent), (11, 0));
    fixture.expect_service();
}

fn input_is_no_request_to_a_handler_that_counts_them_itself<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(2);
    // Bytes other than `r` are no requests.
    let handler = RecordingHandler::echo()
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
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    for (sent, reply) in [(b"-", b"."), (b"-", b"."), (b"r", b"R"), (b"-", b".")] {
        fixture.send(peer, sent);
        fixture.expect(peer, reply);
        fixture.expect_silence(peer);
    }
    assert_eq!(fixture.reactor.handle().stats().requests, 1);
    fixture.send(peer, b"r");
    fixture.expect(peer, b"R");
    fixture.expect_eof(peer);
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::MaxRequests);
    assert_eq!(fixture.reactor.handle().stats().requests, 2);
    fixture.expect_service();
}

fn the_last_request_is_answered_before_the_end<W: World>(world: &mut W) {
    const LEN: usize = 2 << 20;
    let mut config = Config::default();
    config.limits.requests_max = Some(1);
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.begin_request();
        conn.write_bytes(vec![b'l'; LEN]);
        conn.end_request();
    });
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    let (bytes, end) = fixture.read_to_end(peer);
    assert_eq!((bytes.len(), end), (LEN, Got::Eof));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::MaxRequests);
    fixture.expect_service();
}

fn a_reply_that_comes_later_is_the_last_all_the_same<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(2);
    let handler = RecordingHandler::echo()
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
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.expect(peer, b"k");
    fixture.send(peer, b"x");
    assert_eq!(fixture.read_to_end(peer), (b"c".to_vec(), Got::Eof));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::MaxRequests);
    fixture.expect_service();
}

fn whether_a_connection_may_stay_is_known_before_the_last_reply<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(3);
    let mut fixture = Fixture::new(world, config, requests());
    let peer = fixture.connect();
    fixture.send(peer, b"r");
    fixture.expect(peer, b"k");
    fixture.send(peer, b"rr");
    assert_eq!(fixture.read_to_end(peer), (b"kc".to_vec(), Got::Eof));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::MaxRequests);
    assert_eq!(fixture.reactor.handle().stats().requests, 3);
    fixture.expect_service();
}

fn what_came_behind_the_last_request_is_not_served<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(3);
    let mut fixture = Fixture::new(world, config, requests());
    let peer = fixture.connect();
    fixture.send(peer, b"rrrrr");
    assert_eq!(fixture.read_to_end(peer), (b"kkc".to_vec(), Got::Eof));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::MaxRequests);
    fixture.expect_service();
}

fn a_peer_that_sent_its_fin_is_not_kept<W: World>(world: &mut W) {
    let kept = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&kept);
    let handler = RecordingHandler::echo().when_eof(move |conn, _, _| {
        seen.borrow_mut().push(conn.decide_keep_alive(0).stays());
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.half_close(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!(*kept.borrow(), [false]);
    fixture.expect_service();
}

fn the_counters_add_up<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    for index in 1..=3 {
        let peer = fixture.connect();
        for _ in 0..index {
            fixture.send(peer, b"hello");
            fixture.expect(peer, b"hello");
        }
        fixture.leave(peer);
        fixture.expect_closed(CloseReason::PeerEof);
    }
    let (_stays, _) = fixture.enter();
    fixture.turn();
    let stats = fixture.reactor.handle().stats();
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
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write(b"r");
    });
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, &[b'q'; 40]);
    fixture.expect(peer, b"rr");
    fixture.saw(number, What::Closing(CloseReason::MaxRequests));
    assert_eq!(fixture.handler.count(number, What::Data(8)), 2);
    fixture.leave(peer);
    assert_eq!(fixture.expect_closed(CloseReason::MaxRequests).bytes_out, 2);
    fixture.expect_service();
}
