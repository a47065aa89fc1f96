//! Every deadline ends what is late with it, and nobody else.

use std::time::Duration;

use wheelhouse::{CloseReason, Config, Timeout, Timeouts};

use crate::harness::{Got, Scene, Script, What, World, assert_on_time, millis};

behaviours! {
    everywhere {
        an_upload_that_keeps_its_rate_may_take_long
        an_upload_that_dribbles_is_cut_off
        a_peer_that_gives_signs_of_life_stays
        a_peer_that_says_nothing_is_closed
        a_request_must_be_whole_in_time_however_it_dribbles
        a_request_taken_in_piecemeal_must_be_whole_in_time
        the_next_request_has_a_clock_of_its_own
        a_request_that_stalls_is_closed
        request_beats_read_on_a_tie
        a_timeout_may_be_answered
        an_application_that_owes_too_long_is_cut_off
        an_application_that_pauses_too_long_is_cut_off
        an_idle_connection_is_closed
        traffic_keeps_a_connection_from_being_idle
        an_application_that_works_is_not_idle
        a_peer_that_does_not_follow_our_fin_is_closed
        input_that_waits_beats_a_deadline_that_is_due
        a_pause_stops_the_clock_of_a_request
        who_is_paused_from_the_start_is_not_late
        a_quiet_tunnel_is_closed
        a_tunnel_ends_when_both_directions_have
        a_tunnel_of_which_one_direction_ended_has_its_time
        bytes_either_way_keep_a_tunnel
        a_lifetime_ends_between_requests
        a_lifetime_waits_for_the_reply
        a_connection_may_have_timeouts_of_its_own
        timeouts_given_at_birth_count_from_then
        a_timeout_may_be_put_off_while_it_runs
        one_way_traffic_keeps_a_connection_from_being_idle
        a_reply_restarts_the_clock_of_the_replies_still_owed
        a_request_does_not_inherit_the_clock_of_the_one_before
    }
    over_tcp {
        a_reader_that_froze_is_closed
        a_reader_that_is_slow_lives_on
    }
}

/// The defaults with some timeouts changed; none of them comes near within a test.
fn config(change: impl FnOnce(&mut Timeouts)) -> Config {
    let mut config = Config::default();
    change(&mut config.timeouts);
    config
}

fn a_peer_that_says_nothing_is_closed<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, config(|t| t.first_byte = Some(millis(100))), Script::echo());
    let peer = scene.connect();
    scene.expect_eof(peer);
    let closed = scene.expect_timeout(Timeout::FirstByte);
    assert_on_time(closed.age, millis(100));
    assert_eq!((closed.bytes_in, closed.bytes_out), (0, 0));
    scene.expect_service();
}

fn a_request_must_be_whole_in_time_however_it_dribbles<W: World>(world: &mut W) {
    let config = config(|t| t.request = Some(millis(200)));
    let mut scene = Scene::new(world, config, Script::ignore());
    let (peer, _) = scene.enter();
    let start = scene.now();
    scene.drip(peer, &[b'x'; 8], millis(30));
    let closed = scene.expect_timeout(Timeout::Request);
    scene.assert_took(start, millis(200));
    assert!(closed.bytes_in >= 2, "it dribbled");
    scene.expect_eof(peer);
    scene.expect_service();
}

fn a_request_taken_in_piecemeal_must_be_whole_in_time<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, _, input| {
        input.clear();
        conn.expect_more_input();
    });
    let config = config(|t| t.request = Some(millis(200)));
    let mut scene = Scene::new(world, config, script);
    let (peer, number) = scene.enter();
    let start = scene.now();
    scene.drip(peer, &[b'x'; 8], millis(30));
    scene.expect_timeout(Timeout::Request);
    scene.assert_took(start, millis(200));
    assert_eq!(scene.script.count(number, What::Idle), 0, "a request was under way");
    scene.expect_service();
}

fn the_next_request_has_a_clock_of_its_own<W: World>(world: &mut W) {
    // Each request is two bytes, and each byte that begins one comes with the end of another.
    let script = Script::echo().when_data(|conn, _, input| {
        while input.len() >= 2 {
            let request = input.split_to(2);
            conn.write(&request);
        }
    });
    let config = config(|t| t.request = Some(millis(300)));
    let mut scene = Scene::new(world, config, script);
    let (peer, _) = scene.enter();
    scene.send(peer, b"a");
    for _ in 0..4 {
        scene.wait(millis(160));
        scene.send(peer, b"ba");
        scene.expect(peer, b"ab");
    }
    let start = scene.now();
    scene.expect_timeout(Timeout::Request);
    assert!(scene.now() - start > millis(200), "the last one has its time too");
    scene.expect_service();
}

fn a_request_that_stalls_is_closed<W: World>(world: &mut W) {
    let config = config(|t| t.read = Some(millis(250)));
    let mut scene = Scene::new(world, config, Script::ignore());
    let (peer, _) = scene.enter();
    // Longer than the timeout in all, but never at once.
    scene.drip(peer, b"xxxxx", millis(80));
    let start = scene.now();
    scene.send(peer, b"x");
    let closed = scene.expect_timeout(Timeout::Read);
    scene.assert_took(start, millis(250));
    assert_eq!(closed.bytes_in, 6);
    scene.expect_eof(peer);
    scene.expect_service();
}

fn request_beats_read_on_a_tie<W: World>(world: &mut W) {
    let config = config(|t| {
        t.read = Some(millis(80));
        t.request = Some(millis(80));
    });
    let mut scene = Scene::new(world, config, Script::ignore());
    let peer = scene.connect();
    scene.send(peer, b"x");
    scene.expect_timeout(Timeout::Request);
    scene.expect_service();
}

fn a_timeout_may_be_answered<W: World>(world: &mut W) {
    let script = Script::ignore().when_closing(|conn, _, reason| {
        if *reason == CloseReason::Timeout(Timeout::Request) {
            conn.write(b"408");
        }
    });
    let mut scene = Scene::new(world, config(|t| t.request = Some(millis(60))), script);
    let peer = scene.connect();
    scene.send(peer, b"x");
    assert_eq!(scene.read_to_end(peer), (b"408".to_vec(), Got::Eof));
    scene.leave(peer);
    let closed = scene.expect_timeout(Timeout::Request);
    assert_eq!((closed.bytes_out, closed.unsent), (3, 0));
    scene.expect_service();
}

fn an_application_that_owes_too_long_is_cut_off<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, _, input| {
        input.clear();
        conn.begin_request();
    });
    let mut scene = Scene::new(world, config(|t| t.response = Some(millis(120))), script);
    let (peer, _) = scene.enter();
    let start = scene.now();
    scene.send(peer, b"request");
    scene.expect_timeout(Timeout::Response);
    scene.assert_took(start, millis(120));
    scene.expect_eof(peer);
    scene.expect_service();
}

fn an_application_that_pauses_too_long_is_cut_off<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, _, input| {
        input.clear();
        conn.pause_reading();
    });
    let mut scene = Scene::new(world, config(|t| t.response = Some(millis(120))), script);
    let (peer, _) = scene.enter();
    let start = scene.now();
    scene.send(peer, b"request");
    scene.expect_timeout(Timeout::Response);
    scene.assert_took(start, millis(120));
    scene.expect_service();
}

fn an_idle_connection_is_closed<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, config(|t| t.idle = Some(millis(150))), Script::echo());
    let (peer, number) = scene.enter();
    scene.send(peer, b"hello");
    scene.expect(peer, b"hello");
    let idle = scene.saw(number, What::Idle);
    scene.expect_eof(peer);
    scene.expect_timeout(Timeout::Idle);
    scene.assert_took(idle, millis(150));
    let story = scene.script.story(number);
    let reason = CloseReason::Timeout(Timeout::Idle);
    assert_eq!(story[3..], [What::Idle, What::Closing(reason), What::Closed(reason)]);
    scene.expect_service();
}

fn traffic_keeps_a_connection_from_being_idle<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, config(|t| t.idle = Some(millis(300))), Script::echo());
    let (peer, number) = scene.enter();
    for _ in 0..6 {
        scene.send(peer, b"hello");
        scene.expect(peer, b"hello");
        scene.wait(millis(100));
    }
    scene.expect_none_closed();
    assert_eq!(scene.script.count(number, What::Active), 5);
    scene.expect_timeout(Timeout::Idle);
    scene.expect_service();
}

fn an_application_that_works_is_not_idle<W: World>(world: &mut W) {
    let script = Script::echo()
        .when_data(|conn, _, input| {
            input.clear();
            conn.begin_request();
            conn.set_timer(conn.now() + millis(250));
        })
        .when_timer(|conn, _| {
            conn.write(b"done");
            conn.end_request();
        });
    let mut scene = Scene::new(world, config(|t| t.idle = Some(millis(80))), script);
    let (peer, number) = scene.enter();
    scene.send(peer, b"work");
    scene.expect(peer, b"done");
    scene.expect_timeout(Timeout::Idle);
    assert_eq!(scene.script.count(number, What::Idle), 1);
    scene.expect_service();
}

fn a_peer_that_does_not_follow_our_fin_is_closed<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, session, input| {
        if session.step == 0 {
            conn.write(b"bye");
            conn.shutdown_write();
        }
        session.step += 1;
        input.clear();
    });
    let mut scene = Scene::new(world, config(|t| t.half_closed = Some(millis(250))), script);
    let (peer, number) = scene.enter();
    scene.send(peer, b"x");
    assert_eq!(scene.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    // What still comes is progress.
    scene.drip(peer, b"xxxxx", millis(80));
    scene.expect_none_closed();
    let start = scene.now();
    scene.send(peer, b"x");
    scene.saw(number, What::Closing(CloseReason::Timeout(Timeout::HalfClosed)));
    scene.assert_took(start, millis(250));
    scene.leave(peer);
    let closed = scene.expect_timeout(Timeout::HalfClosed);
    assert_eq!(closed.bytes_in, 7);
    scene.expect_service();
}

fn tunnel() -> Script {
    Script::echo().when_data(|conn, session, input| {
        if session.step == 0 {
            conn.tunnel();
        }
        session.step += 1;
        input.clear();
    })
}

fn a_quiet_tunnel_is_closed<W: World>(world: &mut W) {
    let config = config(|t| {
        t.tunnel = Some(millis(150));
        t.idle = Some(millis(50));
    });
    let mut scene = Scene::new(world, config, tunnel());
    let (peer, number) = scene.enter();
    let start = scene.now();
    scene.send(peer, b"x");
    scene.expect_timeout(Timeout::Tunnel);
    scene.assert_took(start, millis(150));
    assert_eq!(scene.script.count(number, What::Idle), 0, "a tunnel knows no requests");
    scene.expect_eof(peer);
    scene.expect_service();
}

fn bytes_either_way_keep_a_tunnel<W: World>(world: &mut W) {
    let script = tunnel().when_timer(|conn, _| {
        conn.write(b"y");
    });
    let mut scene = Scene::new(world, config(|t| t.tunnel = Some(millis(300))), script);
    let (peer, number) = scene.enter();
    scene.drip(peer, b"xxxx", millis(100));
    for _ in 0..4 {
        scene.with(number, |conn| conn.set_timer(conn.now() + millis(100)));
        scene.expect(peer, b"y");
    }
    scene.expect_none_closed();
    scene.expect_timeout(Timeout::Tunnel);
    scene.expect_service();
}

fn a_tunnel_ends_when_both_directions_have<W: World>(world: &mut W) {
    let script = tunnel().when_timer(|conn, _| {
        conn.write(b"bye");
        conn.shutdown_write();
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let (peer, number) = scene.enter();
    scene.send(peer, b"x");
    scene.half_close(peer);
    scene.saw(number, What::Eof);
    scene.wait(millis(50));
    scene.expect_none_closed();
    scene.with(number, |conn| conn.set_timer(conn.now()));
    assert_eq!(scene.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    scene.expect_closed(CloseReason::PeerEof);
    scene.expect_service();
}

fn a_tunnel_of_which_one_direction_ended_has_its_time<W: World>(world: &mut W) {
    let script = tunnel().when_timer(|conn, _| conn.write(b"y"));
    let mut scene = Scene::new(world, config(|t| t.half_closed = Some(millis(250))), script);
    let (peer, number) = scene.enter();
    scene.send(peer, b"x");
    scene.half_close(peer);
    scene.saw(number, What::Eof);
    // What goes the other way is progress.
    for _ in 0..4 {
        scene.with(number, |conn| conn.set_timer(conn.now() + millis(80)));
        scene.expect(peer, b"y");
    }
    let start = scene.now();
    scene.expect_timeout(Timeout::HalfClosed);
    assert!(scene.now() - start >= millis(200));
    scene.expect_service();
}

fn input_that_waits_beats_a_deadline_that_is_due<W: World>(world: &mut W) {
    let stall = world.stall();
    let config = config(|t| {
        t.first_byte = Some(millis(150));
        t.idle = Some(millis(150));
        t.request = Some(millis(150));
    });
    let script = Script::echo().when_data(|conn, _, input| {
        if input.ends_with(b"\n") {
            conn.write(input);
            input.clear();
        }
    });
    let mut scene = Scene::new(world, config, script);
    let (fresh, _) = scene.enter();
    let (idle, idle_number) = scene.enter();
    let (halfway, halfway_number) = scene.enter();
    scene.send(idle, b"hello\n");
    scene.send(halfway, b"he");
    scene.saw(idle_number, What::Idle);
    scene.saw(halfway_number, What::Data(2));
    // Nobody looks for a while, not so long that it would be noticed as such.
    stall(millis(200));
    scene.send(fresh, b"hello\n");
    scene.send(idle, b"hello\n");
    scene.send(halfway, b"llo\n");
    scene.expect(idle, b"hello\nhello\n");
    scene.expect(fresh, b"hello\n");
    scene.expect(halfway, b"hello\n");
    for _ in 0..3 {
        scene.expect_timeout(Timeout::Idle);
    }
    scene.expect_service();
}

fn a_pause_stops_the_clock_of_a_request<W: World>(world: &mut W) {
    let script = Script::ignore().when_timer(|conn, session| {
        session.step += 1;
        if session.step == 1 {
            conn.pause_reading();
            conn.set_timer(conn.now() + millis(300));
        } else {
            conn.resume_reading();
        }
    });
    let mut scene = Scene::new(world, config(|t| t.request = Some(millis(200))), script);
    let (peer, number) = scene.enter();
    let start = scene.now();
    scene.send(peer, b"half");
    scene.saw(number, What::Data(4));
    scene.with(number, |conn| conn.set_timer(conn.now() + millis(100)));
    scene.expect_timeout(Timeout::Request);
    // A hundred before the pause, and the other hundred after it.
    scene.assert_took(start, millis(500));
    scene.expect_service();
}

fn who_is_paused_from_the_start_is_not_late<W: World>(world: &mut W) {
    let script = Script::echo()
        .when_connected(|conn, session| {
            if session.number == 0 {
                conn.pause_reading();
                conn.set_timer(conn.now() + millis(200));
            }
        })
        .when_timer(|conn, _| conn.resume_reading());
    let mut scene = Scene::new(world, config(|t| t.first_byte = Some(millis(60))), script);
    let peer = scene.connect();
    scene.send(peer, b"hello");
    scene.wait(millis(150));
    assert_eq!(scene.reactor.handle().stats().bytes_in, 0);
    scene.expect(peer, b"hello");
    scene.expect_service();
}

/// A lifetime is shortened by up to a quarter, so that not all end at once.
fn assert_lifetime(age: Duration, lifetime: Duration) {
    assert!(age >= lifetime * 3 / 4, "early: {age:?}");
    assert_on_time(age.max(lifetime), lifetime);
}

fn a_lifetime_ends_between_requests<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, config(|t| t.lifetime = Some(millis(200))), Script::echo());
    let (peer, _) = scene.enter();
    scene.send(peer, b"hello");
    scene.expect(peer, b"hello");
    scene.expect_eof(peer);
    scene.leave(peer);
    let closed = scene.expect_timeout(Timeout::Lifetime);
    assert_lifetime(closed.age, millis(200));
    scene.expect_service();
}

fn a_lifetime_waits_for_the_reply<W: World>(world: &mut W) {
    let script = Script::echo()
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
    let mut scene = Scene::new(world, config(|t| t.lifetime = Some(millis(120))), script);
    let (peer, number) = scene.enter();
    scene.send(peer, b"work");
    assert_eq!(scene.read_to_end(peer), (b"done".to_vec(), Got::Eof));
    scene.leave(peer);
    scene.expect_timeout(Timeout::Lifetime);
    assert_eq!(scene.script.count(number, What::Timer), 1);
    scene.expect_service();
}

fn a_connection_may_have_timeouts_of_its_own<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, session, input| {
        conn.write(input);
        input.clear();
        if session.number == 0 {
            conn.set_timeouts(&config(|t| t.idle = Some(millis(80))).timeouts);
        }
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let (hasty, _) = scene.enter();
    let (patient, _) = scene.enter();
    for peer in [hasty, patient] {
        scene.send(peer, b"hello");
        scene.expect(peer, b"hello");
    }
    scene.expect_timeout(Timeout::Idle);
    scene.expect_eof(hasty);
    scene.send(patient, b"still here");
    scene.expect(patient, b"still here");
    scene.expect_service();
}

fn timeouts_given_at_birth_count_from_then<W: World>(world: &mut W) {
    let script = Script::echo().when_open(|conn, number| {
        if number == 0 {
            conn.set_timeouts(&config(|t| t.first_byte = Some(millis(80))).timeouts);
        }
        true
    });
    let mut scene = Scene::new(world, Config::default(), script);
    scene.connect();
    let closed = scene.expect_timeout(Timeout::FirstByte);
    assert_on_time(closed.age, millis(80));
    scene.expect_service();
}

fn a_timeout_may_be_put_off_while_it_runs<W: World>(world: &mut W) {
    let script = Script::ignore().when_timer(|conn, _| {
        conn.set_timeouts(&config(|t| t.request = Some(millis(300))).timeouts);
    });
    let mut scene = Scene::new(world, config(|t| t.request = Some(millis(120))), script);
    let (peer, number) = scene.enter();
    let start = scene.now();
    scene.send(peer, b"half");
    scene.saw(number, What::Data(4));
    scene.with(number, |conn| conn.set_timer(conn.now() + millis(50)));
    scene.expect_timeout(Timeout::Request);
    // It counts from when the request began, not from the change.
    scene.assert_took(start, millis(300));
    scene.expect_service();
}

/// A reply that no buffer of the kernel holds while the peer does not read.
const LARGE: usize = 8 << 20;

fn large_reply() -> Script {
    Script::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write_bytes(vec![b'z'; LARGE]);
    })
}

fn a_reader_that_froze_is_closed<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, config(|t| t.write = Some(millis(150))), large_reply());
    let peer = scene.connect_small();
    let start = scene.now();
    scene.send(peer, b"x");
    let closed = scene.expect_timeout(Timeout::Write);
    scene.assert_took(start, millis(150));
    assert!(closed.unsent > 0);
    assert_eq!(closed.bytes_out + closed.unsent, LARGE as u64);
    let (bytes, end) = scene.read_to_end(peer);
    assert!(bytes.len() < LARGE);
    scene.assert_reset(end);
    scene.expect_service();
}

fn a_reader_that_is_slow_lives_on<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, config(|t| t.write = Some(millis(300))), large_reply());
    let peer = scene.connect_small();
    scene.send(peer, b"x");
    let start = scene.now();
    let mut count = 0;
    while scene.now() - start < millis(1_200) {
        count += scene.sip(peer, 4 * 1024).len();
        scene.wait(millis(20));
    }
    scene.expect_none_closed();
    scene.read(peer, LARGE - count);
    scene.leave(peer);
    let closed = scene.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.bytes_out, closed.unsent), (LARGE as u64, 0));
    scene.expect_service();
}

fn one_way_traffic_keeps_a_connection_from_being_idle<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|_, _, input| input.clear());
    let mut scene = Scene::new(world, config(|t| t.idle = Some(millis(200))), script);
    let (peer, _) = scene.enter();
    scene.drip(peer, &[b'x'; 10], millis(40));
    scene.expect_none_closed();
    let start = scene.now();
    scene.expect_timeout(Timeout::Idle);
    assert!(scene.now() - start < millis(700), "and then it is idle");
    scene.expect_service();
}

fn a_reply_restarts_the_clock_of_the_replies_still_owed<W: World>(world: &mut W) {
    // Four requests at once, each answered in time after the one before, all of them too late if
    // they had one clock.
    let script = Script::echo()
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
    let mut scene = Scene::new(world, config(|t| t.response = Some(millis(250))), script);
    let (peer, _) = scene.enter();
    scene.send(peer, b"qqqq");
    scene.expect(peer, b"rrrr");
    scene.expect_none_closed();
    scene.leave(peer);
    scene.expect_closed(CloseReason::PeerEof);
    scene.expect_service();
}

fn a_request_does_not_inherit_the_clock_of_the_one_before<W: World>(world: &mut W) {
    // Requests of 16 bytes; the second begins with the bytes that complete the first.
    let script = Script::echo().when_data(|_, _, input| {
        while input.len() >= 16 {
            let _ = input.split_to(16);
        }
    });
    let mut config = config(|t| t.request = Some(millis(200)));
    config.limits.input_max = 16;
    let mut scene = Scene::new(world, config, script);
    let (peer, _) = scene.enter();
    scene.send(peer, b"x");
    scene.wait(millis(150));
    let start = scene.now();
    scene.send(peer, &[b'x'; 18]);
    scene.wait(millis(100));
    scene.expect_none_closed();
    scene.expect_timeout(Timeout::Request);
    scene.assert_took(start, millis(200));
    scene.leave(peer);
    scene.expect_service();
}

/// Waits for the end of a line.
fn lines() -> Script {
    Script::echo().when_data(|conn, _, input| {
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
    let mut scene = Scene::new(world, config, lines());
    let (peer, _) = scene.enter();
    let start = scene.now();
    while scene.now() - start < Duration::from_secs(7) {
        scene.send(peer, &[b'x'; 100]);
        scene.wait(millis(500));
    }
    scene.expect_none_closed();
    scene.send(peer, b"\n");
    scene.expect(peer, b"done");
}

fn an_upload_that_dribbles_is_cut_off<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.request = Some(millis(500));
    config.timeouts.request_rate = Some(100);
    let mut scene = Scene::new(world, config, lines());
    let (peer, _) = scene.enter();
    let start = scene.now();
    // What came fast before does not count for what comes slowly now.
    scene.send(peer, &[b'x'; 10_000]);
    while scene.script.closed.is_empty() {
        scene.try_send(peer, b"x");
        scene.wait(millis(100));
    }
    scene.expect_timeout(Timeout::Request);
    let took = scene.now() - start;
    assert!(took >= millis(1_000) && took < millis(2_000), "{took:?}");
}

fn a_peer_that_gives_signs_of_life_stays<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.ping_after = Some(millis(100));
    config.timeouts.ping = Some(millis(2_000));
    let script = Script::echo()
        .when_data(|conn, _, input| {
            if input.starts_with(b"hello") {
                conn.write(b"hello");
            }
            input.clear();
        })
        .when_health_check(|conn, _| conn.write(b"ping"));
    let mut scene = Scene::new(world, config, script);
    let (peer, _) = scene.enter();
    scene.send(peer, b"hello");
    scene.expect(peer, b"hello");
    for asked in 1..6 {
        scene.expect(peer, b"ping");
        scene.send(peer, b"pong");
        // The next one comes as soon as after any other quiet time, not when an answer was due.
        let start = scene.now();
        scene.until("the next one", |scene| {
            assert!(scene.now() - start < millis(1_000));
            scene.reactor.handle().stats().health_checks > asked
        });
    }
    scene.expect(peer, b"ping");
    let start = scene.now();
    scene.expect_timeout(Timeout::Ping);
    let took = scene.now() - start;
    assert!(took >= millis(1_900) && took < millis(2_600), "{took:?}");
    assert_eq!(scene.read_to_end(peer).0, b"");
    assert_eq!(scene.reactor.handle().stats().health_checks, 6);
}
