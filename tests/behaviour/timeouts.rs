//! Every deadline ends what is late with it, and no other.

use std::time::Duration;

use wheelhouse::{CloseReason, Config, Timeout, Timeouts};

use crate::harness::{Fixture, Got, RecordingHandler, What, World, assert_on_time, millis, secs};

behaviours! {
    everywhere {
        an_upload_that_keeps_its_rate_may_take_long
        an_upload_below_its_rate_is_ended
        a_peer_that_answers_pings_stays
        the_first_byte_deadline_ends_a_connection_that_sends_nothing
        a_request_must_be_whole_in_time_however_slowly_it_arrives
        a_request_taken_in_piecemeal_must_be_whole_in_time
        the_next_request_has_a_clock_of_its_own
        a_request_that_stalls_is_closed
        request_comes_before_read_on_a_tie
        a_timeout_may_be_answered
        the_response_deadline_ends_a_connection_that_is_owed_a_reply
        the_response_deadline_ends_a_connection_that_is_paused
        an_idle_connection_is_closed
        traffic_keeps_a_connection_from_being_idle
        a_connection_that_is_owed_a_reply_is_not_idle
        a_peer_that_does_not_follow_our_fin_is_closed
        input_that_waits_puts_off_a_deadline_that_is_due
        a_pause_stops_the_clock_of_a_request
        a_connection_that_is_paused_from_the_start_is_not_late
        a_tunnel_without_traffic_is_closed
        a_tunnel_ends_when_both_directions_have
        a_tunnel_of_which_one_direction_ended_has_its_time
        bytes_either_way_keep_a_tunnel
        a_lifetime_ends_between_requests
        a_lifetime_waits_for_the_reply
        a_connection_may_have_timeouts_of_its_own
        timeouts_set_in_on_open_count_from_then
        a_timeout_may_be_put_off_while_it_runs
        one_way_traffic_keeps_a_connection_from_being_idle
        a_reply_restarts_the_clock_of_the_replies_still_owed
        a_request_does_not_inherit_the_clock_of_the_one_before
    }
    over_tcp {
        the_write_deadline_ends_a_connection_whose_peer_does_not_read
        the_write_deadline_spares_a_peer_that_reads_slowly
    }
}

/// The defaults with some timeouts changed; none of them comes near within a test.
fn config(change: impl FnOnce(&mut Timeouts)) -> Config {
    let mut config = Config::default();
    change(&mut config.timeouts);
    config
}

fn the_first_byte_deadline_ends_a_connection_that_sends_nothing<W: World>(world: &mut W) {
    let mut fixture =
        Fixture::new(world, config(|t| t.first_byte = Some(millis(100))), RecordingHandler::echo());
    let peer = fixture.connect();
    fixture.expect_eof(peer);
    let closed = fixture.expect_timeout(Timeout::FirstByte);
    assert_on_time(closed.age, millis(100));
    assert_eq!((closed.bytes_in, closed.bytes_out), (0, 0));
    fixture.expect_service();
}

fn a_request_must_be_whole_in_time_however_slowly_it_arrives<W: World>(world: &mut W) {
    let config = config(|t| t.request = Some(millis(200)));
    let mut fixture = Fixture::new(world, config, RecordingHandler::ignore());
    let (peer, _) = fixture.enter();
    let start = fixture.now();
    fixture.drip(peer, &[b'x'; 8], millis(30));
    let closed = fixture.expect_timeout(Timeout::Request);
    fixture.assert_took(start, millis(200));
    assert!(closed.bytes_in >= 2, "it dribbled");
    fixture.expect_eof(peer);
    fixture.expect_service();
}

fn a_request_taken_in_piecemeal_must_be_whole_in_time<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.expect_more_input();
    });
    let config = config(|t| t.request = Some(millis(200)));
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, number) = fixture.enter();
    let start = fixture.now();
    fixture.drip(peer, &[b'x'; 8], millis(30));
    fixture.expect_timeout(Timeout::Request);
    fixture.assert_took(start, millis(200));
    assert_eq!(fixture.handler.count(number, What::Idle), 0, "a request was under way");
    fixture.expect_service();
}

fn the_next_request_has_a_clock_of_its_own<W: World>(world: &mut W) {
    // Each request is two bytes, and each byte that begins one comes with the end of another.
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        while input.len() >= 2 {
            let request = input.split_to(2);
            conn.write(&request);
        }
    });
    let config = config(|t| t.request = Some(millis(300)));
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"a");
    for _ in 0..4 {
        fixture.wait(millis(160));
        fixture.send(peer, b"ba");
        fixture.expect(peer, b"ab");
    }
    let start = fixture.now();
    fixture.expect_timeout(Timeout::Request);
    assert!(fixture.now() - start > millis(200), "the last one has its time too");
    fixture.expect_service();
}

fn a_request_that_stalls_is_closed<W: World>(world: &mut W) {
    let config = config(|t| t.read = Some(millis(250)));
    let mut fixture = Fixture::new(world, config, RecordingHandler::ignore());
    let (peer, _) = fixture.enter();
    // Longer than the timeout in total, but not in one piece.
    fixture.drip(peer, b"xxxxx", millis(80));
    let start = fixture.now();
    fixture.send(peer, b"x");
    let closed = fixture.expect_timeout(Timeout::Read);
    fixture.assert_took(start, millis(250));
    assert_eq!(closed.bytes_in, 6);
    fixture.expect_eof(peer);
    fixture.expect_service();
}

fn request_comes_before_read_on_a_tie<W: World>(world: &mut W) {
    let config = config(|t| {
        t.read = Some(millis(80));
        t.request = Some(millis(80));
    });
    let mut fixture = Fixture::new(world, config, RecordingHandler::ignore());
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.expect_timeout(Timeout::Request);
    fixture.expect_service();
}

fn a_timeout_may_be_answered<W: World>(world: &mut W) {
    let handler = RecordingHandler::ignore().when_closing(|conn, _, reason| {
        if *reason == CloseReason::Timeout(Timeout::Request) {
            conn.write(b"408");
        }
    });
    let mut fixture = Fixture::new(world, config(|t| t.request = Some(millis(60))), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    assert_eq!(fixture.read_to_end(peer), (b"408".to_vec(), Got::Eof));
    fixture.leave(peer);
    let closed = fixture.expect_timeout(Timeout::Request);
    assert_eq!((closed.bytes_out, closed.unsent), (3, 0));
    fixture.expect_service();
}

fn the_response_deadline_ends_a_connection_that_is_owed_a_reply<W: World>(world: &mut W) {
    let handler = RecordingHandler::owing();
    let mut fixture = Fixture::new(world, config(|t| t.response = Some(millis(120))), handler);
    let (peer, _) = fixture.enter();
    let start = fixture.now();
    fixture.send(peer, b"request");
    fixture.expect_timeout(Timeout::Response);
    fixture.assert_took(start, millis(120));
    fixture.expect_eof(peer);
    fixture.expect_service();
}

fn the_response_deadline_ends_a_connection_that_is_paused<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.pause_reading();
    });
    let mut fixture = Fixture::new(world, config(|t| t.response = Some(millis(120))), handler);
    let (peer, _) = fixture.enter();
    let start = fixture.now();
    fixture.send(peer, b"request");
    fixture.expect_timeout(Timeout::Response);
    fixture.assert_took(start, millis(120));
    fixture.expect_service();
}

fn an_idle_connection_is_closed<W: World>(world: &mut W) {
    let mut fixture =
        Fixture::new(world, config(|t| t.idle = Some(millis(150))), RecordingHandler::echo());
    let (peer, number) = fixture.enter();
    fixture.expect_echo(peer);
    let idle = fixture.saw(number, What::Idle);
    fixture.expect_eof(peer);
    fixture.expect_timeout(Timeout::Idle);
    fixture.assert_took(idle, millis(150));
    let story = fixture.handler.story(number);
    let reason = CloseReason::Timeout(Timeout::Idle);
    assert_eq!(story[3..], [What::Idle, What::Closing(reason), What::Closed(reason)]);
    fixture.expect_service();
}

fn traffic_keeps_a_connection_from_being_idle<W: World>(world: &mut W) {
    let mut fixture =
        Fixture::new(world, config(|t| t.idle = Some(millis(300))), RecordingHandler::echo());
    let (peer, number) = fixture.enter();
    for _ in 0..6 {
        fixture.expect_echo(peer);
        fixture.wait(millis(100));
    }
    fixture.expect_none_closed();
    assert_eq!(fixture.handler.count(number, What::Active), 5);
    fixture.expect_timeout(Timeout::Idle);
    fixture.expect_service();
}

fn a_connection_that_is_owed_a_reply_is_not_idle<W: World>(world: &mut W) {
    let handler = RecordingHandler::replying_after(millis(250), b"done");
    let mut fixture = Fixture::new(world, config(|t| t.idle = Some(millis(80))), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"work");
    fixture.expect(peer, b"done");
    fixture.expect_timeout(Timeout::Idle);
    assert_eq!(fixture.handler.count(number, What::Idle), 1);
    fixture.expect_service();
}

fn a_peer_that_does_not_follow_our_fin_is_closed<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, session, input| {
        if session.step == 0 {
            conn.write(b"bye");
            conn.shutdown_write();
        }
        session.step += 1;
        input.clear();
    });
    let mut fixture = Fixture::new(world, config(|t| t.half_closed = Some(millis(250))), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"x");
    assert_eq!(fixture.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    // Bytes that still come count as progress.
    fixture.drip(peer, b"xxxxx", millis(80));
    fixture.expect_none_closed();
    let start = fixture.now();
    fixture.send(peer, b"x");
    fixture.saw(number, What::Closing(CloseReason::Timeout(Timeout::HalfClosed)));
    fixture.assert_took(start, millis(250));
    fixture.leave(peer);
    let closed = fixture.expect_timeout(Timeout::HalfClosed);
    assert_eq!(closed.bytes_in, 7);
    fixture.expect_service();
}

fn tunnel() -> RecordingHandler {
    RecordingHandler::echo().when_data(|conn, session, input| {
        if session.step == 0 {
            conn.tunnel();
        }
        session.step += 1;
        input.clear();
    })
}

fn a_tunnel_without_traffic_is_closed<W: World>(world: &mut W) {
    let config = config(|t| {
        t.tunnel = Some(millis(150));
        t.idle = Some(millis(50));
    });
    let mut fixture = Fixture::new(world, config, tunnel());
    let (peer, number) = fixture.enter();
    let start = fixture.now();
    fixture.send(peer, b"x");
    fixture.expect_timeout(Timeout::Tunnel);
    fixture.assert_took(start, millis(150));
    assert_eq!(fixture.handler.count(number, What::Idle), 0, "a tunnel knows no requests");
    fixture.expect_eof(peer);
    fixture.expect_service();
}

fn bytes_either_way_keep_a_tunnel<W: World>(world: &mut W) {
    let handler = tunnel().when_timer(|conn, _| {
        conn.write(b"y");
    });
    let mut fixture = Fixture::new(world, config(|t| t.tunnel = Some(millis(300))), handler);
    let (peer, number) = fixture.enter();
    fixture.drip(peer, b"xxxx", millis(100));
    for _ in 0..4 {
        fixture.with(number, |conn| conn.set_timer(conn.now() + millis(100)));
        fixture.expect(peer, b"y");
    }
    fixture.expect_none_closed();
    fixture.expect_timeout(Timeout::Tunnel);
    fixture.expect_service();
}

fn a_tunnel_ends_when_both_directions_have<W: World>(world: &mut W) {
    let handler = tunnel().when_timer(|conn, _| {
        conn.write(b"bye");
        conn.shutdown_write();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.half_close(peer);
    fixture.saw(number, What::Eof);
    fixture.wait(millis(50));
    fixture.expect_none_closed();
    fixture.with(number, |conn| conn.set_timer(conn.now()));
    assert_eq!(fixture.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn a_tunnel_of_which_one_direction_ended_has_its_time<W: World>(world: &mut W) {
    let handler = tunnel().when_timer(|conn, _| conn.write(b"y"));
    let mut fixture = Fixture::new(world, config(|t| t.half_closed = Some(millis(250))), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.half_close(peer);
    fixture.saw(number, What::Eof);
    // Bytes the other way count as progress.
    for _ in 0..4 {
        fixture.with(number, |conn| conn.set_timer(conn.now() + millis(80)));
        fixture.expect(peer, b"y");
    }
    let start = fixture.now();
    fixture.expect_timeout(Timeout::HalfClosed);
    assert!(fixture.now() - start >= millis(200));
    fixture.expect_service();
}

fn input_that_waits_puts_off_a_deadline_that_is_due<W: World>(world: &mut W) {
    let stall = world.stall();
    let config = config(|t| {
        t.first_byte = Some(millis(150));
        t.idle = Some(millis(150));
        t.request = Some(millis(150));
    });
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        if input.ends_with(b"\n") {
            conn.write(input);
            input.clear();
        }
    });
    let mut fixture = Fixture::new(world, config, handler);
    let (fresh, _) = fixture.enter();
    let (idle, idle_number) = fixture.enter();
    let (halfway, halfway_number) = fixture.enter();
    fixture.send(idle, b"hello\n");
    fixture.send(halfway, b"he");
    fixture.saw(idle_number, What::Idle);
    fixture.saw(halfway_number, What::Data(2));
    // The loop does not run for a while, but not so long that it counts as a stall.
    stall(millis(200));
    fixture.send(fresh, b"hello\n");
    fixture.send(idle, b"hello\n");
    fixture.send(halfway, b"llo\n");
    fixture.expect(idle, b"hello\nhello\n");
    fixture.expect(fresh, b"hello\n");
    fixture.expect(halfway, b"hello\n");
    for _ in 0..3 {
        fixture.expect_timeout(Timeout::Idle);
    }
    fixture.expect_service();
}

fn a_pause_stops_the_clock_of_a_request<W: World>(world: &mut W) {
    let handler = RecordingHandler::ignore().when_timer(|conn, session| {
        session.step += 1;
        if session.step == 1 {
            conn.pause_reading();
            conn.set_timer(conn.now() + millis(300));
        } else {
            conn.resume_reading();
        }
    });
    let mut fixture = Fixture::new(world, config(|t| t.request = Some(millis(200))), handler);
    let (peer, number) = fixture.enter();
    let start = fixture.now();
    fixture.send(peer, b"half");
    fixture.saw(number, What::Data(4));
    fixture.with(number, |conn| conn.set_timer(conn.now() + millis(100)));
    fixture.expect_timeout(Timeout::Request);
    // A hundred before the pause, and the other hundred after it.
    fixture.assert_took(start, millis(500));
    fixture.expect_service();
}

fn a_connection_that_is_paused_from_the_start_is_not_late<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo()
        .when_connected(|conn, session| {
            if session.number == 0 {
                conn.pause_reading();
                conn.set_timer(conn.now() + millis(200));
            }
        })
        .when_timer(|conn, _| conn.resume_reading());
    let mut fixture = Fixture::new(world, config(|t| t.first_byte = Some(millis(60))), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"hello");
    fixture.wait(millis(150));
    assert_eq!(fixture.reactor.handle().stats().bytes_in, 0);
    fixture.expect(peer, b"hello");
    fixture.expect_service();
}

/// A lifetime is shortened by up to a quarter, so that not all end at once.
fn assert_lifetime(age: Duration, lifetime: Duration) {
    assert!(age >= lifetime * 3 / 4, "early: {age:?}");
    assert_on_time(age.max(lifetime), lifetime);
}

fn a_lifetime_ends_between_requests<W: World>(world: &mut W) {
    let mut fixture =
        Fixture::new(world, config(|t| t.lifetime = Some(millis(200))), RecordingHandler::echo());
    let (peer, _) = fixture.enter();
    fixture.expect_echo(peer);
    fixture.expect_eof(peer);
    fixture.leave(peer);
    let closed = fixture.expect_timeout(Timeout::Lifetime);
    assert_lifetime(closed.age, millis(200));
    fixture.expect_service();
}

fn a_lifetime_waits_for_the_reply<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo()
        .when_data(|conn, _, input| {
            assert!(conn.decide_keep_alive(0).stays());
            input.clear();
            conn.begin_request();
            conn.set_timer(conn.now() + millis(250));
        })
        .when_timer(|conn, _| {
            assert!(!conn.decide_keep_alive(0).stays(), "this reply is the last");
            conn.write(b"done");
            conn.end_request();
        });
    let mut fixture = Fixture::new(world, config(|t| t.lifetime = Some(millis(120))), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"work");
    assert_eq!(fixture.read_to_end(peer), (b"done".to_vec(), Got::Eof));
    fixture.leave(peer);
    fixture.expect_timeout(Timeout::Lifetime);
    assert_eq!(fixture.handler.count(number, What::Timer), 1);
    fixture.expect_service();
}

fn a_connection_may_have_timeouts_of_its_own<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, session, input| {
        conn.write(input);
        input.clear();
        if session.number == 0 {
            conn.set_timeouts(&config(|t| t.idle = Some(millis(80))).timeouts);
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (hasty, _) = fixture.enter();
    let (patient, _) = fixture.enter();
    for peer in [hasty, patient] {
        fixture.expect_echo(peer);
    }
    fixture.expect_timeout(Timeout::Idle);
    fixture.expect_eof(hasty);
    fixture.send(patient, b"still here");
    fixture.expect(patient, b"still here");
    fixture.expect_service();
}

fn timeouts_set_in_on_open_count_from_then<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if number == 0 {
            conn.set_timeouts(&config(|t| t.first_byte = Some(millis(80))).timeouts);
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    fixture.connect();
    let closed = fixture.expect_timeout(Timeout::FirstByte);
    assert_on_time(closed.age, millis(80));
    fixture.expect_service();
}

fn a_timeout_may_be_put_off_while_it_runs<W: World>(world: &mut W) {
    let handler = RecordingHandler::ignore().when_timer(|conn, _| {
        conn.set_timeouts(&config(|t| t.request = Some(millis(300))).timeouts);
    });
    let mut fixture = Fixture::new(world, config(|t| t.request = Some(millis(120))), handler);
    let (peer, number) = fixture.enter();
    let start = fixture.now();
    fixture.send(peer, b"half");
    fixture.saw(number, What::Data(4));
    fixture.with(number, |conn| conn.set_timer(conn.now() + millis(50)));
    fixture.expect_timeout(Timeout::Request);
    // It counts from when the request began, not from the change.
    fixture.assert_took(start, millis(300));
    fixture.expect_service();
}

/// A reply that no buffer of the kernel holds while the peer does not read.
const LARGE: usize = 8 << 20;

fn large_reply() -> RecordingHandler {
    RecordingHandler::replying(b'z', LARGE)
}

fn the_write_deadline_ends_a_connection_whose_peer_does_not_read<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, config(|t| t.write = Some(millis(150))), large_reply());
    let peer = fixture.connect_small();
    let start = fixture.now();
    fixture.send(peer, b"x");
    let closed = fixture.expect_timeout(Timeout::Write);
    fixture.assert_took(start, millis(150));
    assert!(closed.unsent > 0);
    assert_eq!(closed.bytes_out + closed.unsent, LARGE as u64);
    let (bytes, end) = fixture.read_to_end(peer);
    assert!(bytes.len() < LARGE);
    fixture.assert_reset(end);
    fixture.expect_service();
}

fn the_write_deadline_spares_a_peer_that_reads_slowly<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, config(|t| t.write = Some(millis(300))), large_reply());
    let peer = fixture.connect_small();
    fixture.send(peer, b"x");
    let start = fixture.now();
    let mut count = 0;
    while fixture.now() - start < millis(1_200) {
        count += fixture.sip(peer, 4 * 1024).len();
        fixture.wait(millis(20));
    }
    fixture.expect_none_closed();
    fixture.read(peer, LARGE - count);
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.bytes_out, closed.unsent), (LARGE as u64, 0));
    fixture.expect_service();
}

fn one_way_traffic_keeps_a_connection_from_being_idle<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|_, _, input| input.clear());
    let mut fixture = Fixture::new(world, config(|t| t.idle = Some(millis(200))), handler);
    let (peer, _) = fixture.enter();
    fixture.drip(peer, &[b'x'; 10], millis(40));
    fixture.expect_none_closed();
    let start = fixture.now();
    fixture.expect_timeout(Timeout::Idle);
    assert!(fixture.now() - start < millis(700), "and then it is idle");
    fixture.expect_service();
}

fn a_reply_restarts_the_clock_of_the_replies_still_owed<W: World>(world: &mut W) {
    // Four requests at once, each answered in time after the one before, all of them too late if
    // they had one clock.
    let handler = RecordingHandler::echo()
        .when_data(|conn, session, input| {
            for _ in input.split() {
                conn.begin_request();
                session.step += 1;
            }
            conn.set_timer(conn.now() + millis(100));
        })
        .when_timer(|conn, session| {
            conn.write(b"r");
            conn.end_request();
            session.step -= 1;
            if session.step > 0 {
                conn.set_timer(conn.now() + millis(100));
            }
        });
    let mut fixture = Fixture::new(world, config(|t| t.response = Some(millis(250))), handler);
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"qqqq");
    fixture.expect(peer, b"rrrr");
    fixture.expect_none_closed();
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn a_request_does_not_inherit_the_clock_of_the_one_before<W: World>(world: &mut W) {
    // Requests of 16 bytes; the second begins with the bytes that complete the first.
    let handler = RecordingHandler::echo().when_data(|_, _, input| {
        while input.len() >= 16 {
            let _ = input.split_to(16);
        }
    });
    let mut config = config(|t| t.request = Some(millis(200)));
    config.limits.input_max = 16;
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.wait(millis(150));
    let start = fixture.now();
    fixture.send(peer, &[b'x'; 18]);
    fixture.wait(millis(100));
    fixture.expect_none_closed();
    fixture.expect_timeout(Timeout::Request);
    fixture.assert_took(start, millis(200));
    fixture.leave(peer);
    fixture.expect_service();
}

/// Waits for the end of a line.
fn lines() -> RecordingHandler {
    RecordingHandler::echo().when_data(|conn, _, input| {
        if input.ends_with(b"\n") {
            conn.write(b"done");
            input.clear();
        }
    })
}

fn an_upload_that_keeps_its_rate_may_take_long<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.request = Some(millis(2_000));
    config.timeouts.request_rate = Some(100);
    let mut fixture = Fixture::new(world, config, lines());
    let (peer, _) = fixture.enter();
    let start = fixture.now();
    while fixture.now() - start < secs(7) {
        fixture.send(peer, &[b'x'; 100]);
        fixture.wait(millis(500));
    }
    fixture.expect_none_closed();
    fixture.send(peer, b"\n");
    fixture.expect(peer, b"done");
}

fn an_upload_below_its_rate_is_ended<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.request = Some(millis(500));
    config.timeouts.request_rate = Some(100);
    let mut fixture = Fixture::new(world, config, lines());
    let (peer, _) = fixture.enter();
    let start = fixture.now();
    // Bytes that came fast before do not make up for those that come slowly now.
    fixture.send(peer, &[b'x'; 10_000]);
    while fixture.handler.closed.is_empty() {
        fixture.try_send(peer, b"x");
        fixture.wait(millis(100));
    }
    fixture.expect_timeout(Timeout::Request);
    let took = fixture.now() - start;
    assert!(took >= millis(1_000) && took < millis(2_000), "{took:?}");
}

fn a_peer_that_answers_pings_stays<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.ping_after = Some(millis(100));
    config.timeouts.ping = Some(millis(2_000));
    let handler = RecordingHandler::echo()
        .when_data(|conn, _, input| {
            if input.starts_with(b"hello") {
                conn.write(b"hello");
            }
            input.clear();
        })
        .when_health_check(|conn, _| conn.write(b"ping"));
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, _) = fixture.enter();
    fixture.expect_echo(peer);
    for asked in 1..6 {
        fixture.expect(peer, b"ping");
        fixture.send(peer, b"pong");
        // The next ping follows the idle time, not the time at which the answer was due.
        let start = fixture.now();
        fixture.until("the next one", |fixture| {
            assert!(fixture.now() - start < millis(1_000));
            fixture.reactor.handle().stats().health_checks > asked
        });
    }
    fixture.expect(peer, b"ping");
    let start = fixture.now();
    fixture.expect_timeout(Timeout::Ping);
    let took = fixture.now() - start;
    assert!(took >= millis(1_900) && took < millis(2_600), "{took:?}");
    assert_eq!(fixture.read_to_end(peer).0, b"");
    assert_eq!(fixture.reactor.handle().stats().health_checks, 6);
}
