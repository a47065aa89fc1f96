//! What counts as a request, and what the last request of a connection means for its end.

use std::cell::RefCell;
use std::rc::Rc;

use wheelhouse::{CloseReason, Config, Timeout};

use crate::harness::{Fixture, Got, RecordingHandler, What, World, millis};

behaviours! {
    everywhere {
        requests_begun_are_owed_until_they_end
        a_pipelined_batch_counts_each_request
        a_handler_that_counts_nothing_is_counted_by_reads
        input_is_no_request_to_a_handler_that_counts_them_itself
        the_last_request_is_answered_before_the_end
        a_reply_that_comes_later_is_the_last_all_the_same
        whether_a_connection_may_stay_is_known_before_the_last_reply
        input_after_the_last_request_is_not_served
        a_connection_whose_peer_sent_a_fin_is_not_kept_alive
        a_request_of_our_own_wakes_an_idle_connection
        no_connection_is_idle_before_its_reply_has_left
        no_more_requests_are_served_than_the_limit_in_one_turn
        a_tunnel_has_no_requests_to_count
    }
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
    let handler = RecordingHandler::replying(b'l', LEN);
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

/// Each byte is a request; the reply says whether the connection stays.
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

fn input_after_the_last_request_is_not_served<W: World>(world: &mut W) {
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

fn a_connection_whose_peer_sent_a_fin_is_not_kept_alive<W: World>(world: &mut W) {
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

fn a_tunnel_has_no_requests_to_count<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(3);
    let handler = RecordingHandler::echo().when_open(|conn, _| {
        conn.tunnel();
        true
    });
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, _) = fixture.enter();
    for _ in 0..10 {
        fixture.send(peer, b"frame");
        fixture.expect(peer, b"frame");
    }
    fixture.expect_silence(peer);
    fixture.expect_none_closed();
    assert_eq!(fixture.reactor.handle().stats().requests, 0);
}
