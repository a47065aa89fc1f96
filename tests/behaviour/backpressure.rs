//! Memory is bounded: whether a peer sends without reading, a handler
//! writes without checking, or one connection of a pair is slower than the other.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use wheelhouse::config::Watermarks;
use wheelhouse::{CloseReason, Config, Conn, ConnId};

use crate::harness::{
    Fixture, Got, PeerId, RecordingHandler, What, World, assert_same, millis, pattern, secs,
};

behaviours! {
    everywhere {
        output_over_its_limit_ends_the_connection
        one_write_of_any_size_is_accepted
        input_that_the_handler_does_not_take_is_limited
        a_request_as_large_as_the_limit_is_served
        a_pause_leaves_bytes_in_the_socket
        a_pause_keeps_the_fin_back
        a_pause_does_not_count_against_the_peer
        resuming_delivers_the_input_that_was_left
        resuming_without_input_calls_nothing
        a_handler_that_yields_is_called_again_after_the_others
        a_handler_that_yields_with_nothing_left_is_not_called
        a_connection_whose_handler_yields_is_not_read_until_its_next_call
        a_connection_that_expects_input_is_not_idle
        an_empty_write_sends_nothing
        on_drained_follows_a_write_above_the_mark_that_leaves_at_once
        input_behind_replies_that_leave_at_once_is_served
        throttling_on_a_closed_sink_pauses_nothing
        a_connection_may_pause_and_resume_another
        a_connection_may_make_another_yield
        a_large_request_is_buffered_until_it_is_whole
        throttling_in_a_refused_on_open_leaves_the_sink_unchanged
        throttling_in_on_closing_leaves_the_sink_unchanged
    }
    over_tcp {
        a_client_that_never_reads_holds_bounded_memory
        requests_left_for_a_slow_reader_are_served_when_it_reads
        drained_comes_before_the_input_that_was_left
        congestion_does_not_count_against_the_request
        input_left_during_congestion_does_not_count_against_the_limit
        a_throttled_connection_is_read_no_faster_than_its_sink_drains
        a_throttled_connection_is_read_again_when_its_sink_ends
        a_throttled_connection_is_read_to_its_fin
        throttling_in_both_directions_does_not_deadlock
        a_throttled_connection_is_read_though_its_peer_does_not_read
        a_connection_whose_sink_ended_pauses_for_its_own_output_again
        a_throttled_connection_is_not_late_while_its_sink_reads_slowly
        throttling_on_a_closing_sink_pauses_nothing
        a_throttled_connection_gets_the_input_it_left
    }
}

const REPLY: usize = 16 * 1024;

/// Answers each byte with a large reply as long as there is room, and notes the most ever queued.
fn large_replies() -> (Rc<Cell<usize>>, RecordingHandler) {
    let most = Rc::new(Cell::new(0));
    let seen = Rc::clone(&most);
    let handler = RecordingHandler::echo().when_data(move |conn, _, input| {
        while !input.is_empty() && !conn.is_congested() {
            let request = input.split_to(1);
            conn.write(&[request[0]; REPLY]);
            seen.set(seen.get().max(conn.queued()));
        }
    });
    (most, handler)
}

fn a_client_that_never_reads_holds_bounded_memory<W: World>(world: &mut W) {
    let (most, handler) = large_replies();
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect_small();
    // Far more than the server may take in.
    let requests = [b'r'; 64 * 1024];
    let start = fixture.now();
    let mut sent = 0;
    while fixture.now() - start < millis(300) {
        sent += fixture.try_send(peer, &requests).unwrap();
        fixture.turn();
    }
    assert!(sent > 1 << 20, "{sent}");
    let high = Watermarks::default().high();
    assert!(most.get() <= high + REPLY, "{} bytes queued", most.get());
    let queued = fixture.with(0, |conn| conn.queued());
    assert!(queued <= high + REPLY, "{queued} bytes queued");
    // The requests stay in the kernel, but for those of one read.
    let taken = fixture.reactor.handle().stats().bytes_in;
    assert!(taken <= 128 * 1024, "{taken} bytes taken in");
    fixture.expect_none_closed();
    fixture.expect_service();
}

fn requests_left_for_a_slow_reader_are_served_when_it_reads<W: World>(world: &mut W) {
    const REQUESTS: usize = 300;
    let (most, handler) = large_replies();
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect_small();
    let requests: Vec<u8> = (0..REQUESTS).map(|index| index as u8).collect();
    fixture.send(peer, &requests);
    fixture.wait(millis(50));
    for request in requests {
        fixture.expect(peer, &[request; REPLY]);
    }
    assert!(most.get() <= Watermarks::default().high() + REPLY, "{} bytes queued", most.get());
    assert!(fixture.handler.count(0, What::Drained) > 1);
    fixture.expect_service();
}

fn drained_comes_before_the_input_that_was_left<W: World>(world: &mut W) {
    let (_, handler) = large_replies();
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect_small();
    fixture.send(peer, &[b'r'; 100]);
    fixture.read(peer, 100 * REPLY);
    let story = fixture.handler.story(0);
    let drained: Vec<_> = (0..story.len()).filter(|at| story[*at] == What::Drained).collect();
    assert!(drained.len() > 1, "{story:?}");
    for at in &drained[..drained.len() - 1] {
        assert!(matches!(story[at + 1], What::Data(1..)), "{story:?}");
    }
    fixture.expect_service();
}

fn congestion_does_not_count_against_the_request<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.request = Some(millis(100));
    config.timeouts.read = Some(millis(100));
    let (_, handler) = large_replies();
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect_small();
    fixture.send(peer, &[b'r'; 300]);
    // Requests are left, and the server is the one that has to take them.
    fixture.wait(millis(300));
    fixture.expect_none_closed();
    fixture.read(peer, 300 * REPLY);
    fixture.expect_service();
}

fn input_left_during_congestion_does_not_count_against_the_limit<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.input_max = 50;
    let (_, handler) = large_replies();
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect_small();
    fixture.send(peer, &[b'r'; 400]);
    fixture.wait(millis(50));
    fixture.read(peer, 400 * REPLY);
    fixture.expect_service();
}

fn on_drained_follows_a_write_above_the_mark_that_leaves_at_once<W: World>(world: &mut W) {
    let config = Config { watermarks: Watermarks::new(0, 4).unwrap(), ..Config::default() };
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        conn.write(&input[..4]);
        assert!(!conn.is_congested(), "at the mark is not above it");
        conn.write(&input[4..]);
        assert!(conn.is_congested());
        input.clear();
    });
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    for _ in 0..3 {
        fixture.expect_echo(peer);
    }
    fixture.until("three drains", |fixture| fixture.handler.count(0, What::Drained) == 3);
    assert!(!fixture.with(0, |conn| conn.is_congested()));
    assert_eq!(fixture.reactor.handle().stats().panics, 0);
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
}

/// A reply has so many parts, each above the high watermark.
const PARTS: usize = 3;
const PART: usize = 8;

fn input_behind_replies_that_leave_at_once_is_served<W: World>(world: &mut W) {
    let config = Config { watermarks: Watermarks::new(0, 4).unwrap(), ..Config::default() };
    // The request that is answered, and the parts of its reply that are not written.
    let reply = Rc::new(Cell::new((0, 0)));
    let write_part = |conn: &mut Conn<'_>, (request, left): (u8, usize)| {
        conn.write(&[request; PART]);
        (request, left - 1)
    };
    let (begun, going_on) = (Rc::clone(&reply), reply);
    let handler = RecordingHandler::echo()
        .when_data(move |conn, _, input| {
            while begun.get().1 == 0 && !conn.is_congested() && !input.is_empty() {
                begun.set(write_part(conn, (input.split_to(1)[0], PARTS)));
            }
        })
        .when_drained(move |conn, _| {
            if going_on.get().1 > 0 {
                going_on.set(write_part(conn, going_on.get()));
            }
        });
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    fixture.send(peer, b"abc");
    for request in *b"abc" {
        fixture.expect(peer, &[request; PARTS * PART]);
    }
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
}

fn throttling_on_a_closed_sink_pauses_nothing<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let (peer, _) = fixture.enter();
    let gone = fixture.handler.ids[0];
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    let (feeder, number) = fixture.enter();
    fixture.with(number, |conn| {
        conn.throttle_on(gone);
        // A connection that throttles on itself does not deadlock either.
        conn.throttle_on(conn.id());
    });
    for _ in 0..3 {
        fixture.send(feeder, &[b'f'; 100_000]);
        fixture.expect(feeder, &[b'f'; 100_000]);
    }
    fixture.leave(feeder);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn output_over_its_limit_ends_the_connection<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.output_max = 100_000;
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        for _ in 0..3 {
            conn.write(&[b'o'; 60_000]);
        }
        assert!(conn.is_closing());
        conn.write(b"and more");
    });
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    let closed = fixture.expect_closed(CloseReason::OutputLimit);
    assert_eq!(closed.bytes_out + closed.unsent, 180_008);
    assert!(closed.unsent >= 60_008);
    let (bytes, end) = fixture.read_to_end(peer);
    assert!(bytes.len() as u64 <= closed.bytes_out);
    fixture.assert_reset(end);
    fixture.expect_service();
}

fn one_write_of_any_size_is_accepted<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.output_max = 1_000;
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write(&vec![b'o'; 1_000_000]);
    });
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    for _ in 0..2 {
        fixture.send(peer, b"x");
        fixture.expect(peer, &vec![b'o'; 1_000_000]);
    }
    fixture.expect_service();
}

fn input_that_the_handler_does_not_take_is_limited<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.input_max = 1_000;
    let most = Rc::new(Cell::new(0));
    let seen = Rc::clone(&most);
    let handler = RecordingHandler::echo().when_data(move |_, _, input| {
        seen.set(seen.get().max(input.len()));
    });
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    fixture.send(peer, &[b'i'; 999]);
    fixture.saw(0, What::Data(999));
    fixture.turn();
    fixture.expect_none_closed();
    fixture.send(peer, &[b'i'; 500]);
    let closed = fixture.expect_closed(CloseReason::InputLimit);
    assert_eq!((most.get(), closed.bytes_in), (1_000, 1_000));
    fixture.expect_reset(peer);
    fixture.expect_service();
}

fn a_request_as_large_as_the_limit_is_served<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.input_max = 1_000;
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        while input.len() >= 1_000 {
            let request = input.split_to(1_000);
            conn.write(&request);
        }
    });
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    let requests: Vec<u8> = (0..10_000).map(|index| index as u8).collect();
    fixture.send(peer, &requests);
    fixture.expect(peer, &requests);
    fixture.drip(peer, &requests[..3], millis(5));
    fixture.send(peer, &requests[3..2_000]);
    fixture.expect(peer, &requests[..2_000]);
    fixture.expect_service();
}

/// Pauses for so long after each call of `on_data`.
fn pausing(millis_long: u64) -> RecordingHandler {
    RecordingHandler::echo()
        .when_data(move |conn, session, input| {
            if session.step == 0 {
                session.step = 1;
                conn.pause_reading();
                conn.set_timer(conn.now() + millis(millis_long));
            } else {
                conn.write(input);
                input.clear();
            }
        })
        .when_timer(|conn, _| conn.resume_reading())
}

fn a_pause_leaves_bytes_in_the_socket<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), pausing(100));
    let peer = fixture.connect();
    fixture.send(peer, b"one");
    fixture.saw(0, What::Data(3));
    fixture.send(peer, b"two");
    fixture.wait(millis(40));
    assert_eq!(fixture.reactor.handle().stats().bytes_in, 3);
    fixture.expect(peer, b"onetwo");
    assert_eq!(fixture.handler.count(0, What::Timer), 1, "not before it resumed");
    fixture.expect_service();
}

fn a_pause_keeps_the_fin_back<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), pausing(100));
    let peer = fixture.connect();
    fixture.send(peer, b"one");
    fixture.saw(0, What::Data(3));
    fixture.half_close(peer);
    fixture.wait(millis(40));
    assert_eq!(fixture.handler.count(0, What::Eof), 0);
    assert_eq!(fixture.read_to_end(peer), (b"one".to_vec(), Got::Eof));
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn a_pause_does_not_count_against_the_peer<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.request = Some(millis(100));
    config.timeouts.read = Some(millis(100));
    config.timeouts.idle = Some(millis(100));
    let mut fixture = Fixture::new(world, config, pausing(350));
    let peer = fixture.connect();
    fixture.send(peer, b"one");
    fixture.saw(0, What::Data(3));
    fixture.send(peer, b"two");
    fixture.expect(peer, b"onetwo");
    fixture.expect_timeout(wheelhouse::Timeout::Idle);
    fixture.expect_service();
}

fn resuming_delivers_the_input_that_was_left<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), pausing(40));
    let peer = fixture.connect();
    fixture.send(peer, b"left");
    fixture.expect(peer, b"left");
    assert_eq!(fixture.handler.count(0, What::Data(4)), 2);
    fixture.expect_service();
}

fn resuming_without_input_calls_nothing<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo()
        .when_data(|conn, _, input| {
            conn.write(input);
            input.clear();
            conn.pause_reading();
            conn.set_timer(conn.now() + millis(20));
        })
        .when_timer(|conn, _| conn.resume_reading());
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    for word in [&b"one"[..], b"three"] {
        fixture.send(peer, word);
        fixture.expect(peer, word);
        fixture.wait(millis(50));
    }
    // An empty on_data would be a fault of its own.
    assert_eq!(fixture.handler.count(0, What::Data(3)), 1);
    assert_eq!(fixture.handler.count(0, What::Timer), 2);
    fixture.expect_service();
}

/// Connection 1 does something with connection 0 at each word.
fn acts_on_first(act: impl Fn(&mut Conn<'_>, &[u8]) + 'static) -> RecordingHandler {
    RecordingHandler::echo().when_data(move |conn, session, input| {
        if session.number == 1 {
            let first = conn.cx().ids()[0];
            act(&mut conn.other(first).unwrap(), input);
            input.clear();
        } else {
            let len = input.len().min(3);
            conn.write(&input.split_to(len));
        }
    })
}

fn a_connection_may_pause_and_resume_another<W: World>(world: &mut W) {
    let handler = acts_on_first(|first, word| match word {
        b"pause" => first.pause_reading(),
        _ => first.resume_reading(),
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (first, _) = fixture.enter();
    let (other, number) = fixture.enter();
    fixture.send(other, b"pause");
    fixture.saw(number, What::Data(5));
    fixture.turn();
    fixture.send(first, b"one");
    fixture.wait(millis(30));
    fixture.expect_silence(first);
    fixture.send(other, b"resume");
    fixture.expect(first, b"one");
    fixture.expect_service();
}

fn a_connection_may_make_another_yield<W: World>(world: &mut W) {
    let handler = acts_on_first(|first, _| first.yield_now());
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (first, _) = fixture.enter();
    let (other, _) = fixture.enter();
    fixture.send(first, b"onetwo");
    fixture.expect(first, b"one");
    fixture.wait(millis(20));
    fixture.expect_silence(first);
    fixture.send(other, b"go on");
    fixture.expect(first, b"two");
    fixture.expect_service();
}

fn a_large_request_is_buffered_until_it_is_whole<W: World>(world: &mut W) {
    const LEN: usize = 3 << 20;
    let mut config = Config::default();
    config.limits.input_max = 4 << 20;
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        if input.len() >= LEN {
            let request = input.split_to(LEN);
            conn.write_bytes(request.freeze());
        }
    });
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    let pattern = pattern(MUCH);
    for at in [0, 1_000_003] {
        let request = &pattern[at..at + LEN];
        fixture.send(peer, request);
        let got = fixture.read(peer, LEN);
        assert_same(&got, request);
    }
    fixture.expect_service();
}

fn a_handler_that_yields_is_called_again_after_the_others<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        let request = input.split_to(1);
        conn.write(&request);
        conn.yield_now();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (ann, _) = fixture.enter();
    let (bob, _) = fixture.enter();
    fixture.send(ann, b"aaaaa");
    fixture.send(bob, b"bbbbb");
    fixture.handler.log.clear();
    let mut seen = [0, 0];
    while seen != [5, 5] {
        fixture.turn();
        for (number, seen) in seen.iter_mut().enumerate() {
            let count: usize =
                (1..=5).map(|len| fixture.handler.count(number, What::Data(len))).sum();
            assert!(count <= *seen + 1, "one call in each turn");
            *seen = count;
        }
        assert!(seen[0].abs_diff(seen[1]) <= 1, "{seen:?}");
    }
    fixture.expect(ann, b"aaaaa");
    fixture.expect(bob, b"bbbbb");
    fixture.expect_service();
}

fn a_handler_that_yields_with_nothing_left_is_not_called<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        conn.write(input);
        input.clear();
        conn.yield_now();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_echo(peer);
    fixture.saw(0, What::Idle);
    fixture.turn();
    assert_eq!(fixture.handler.count(0, What::Data(5)), 1);
    // The loop is idle then.
    let turns = fixture.reactor.handle().stats().turns;
    fixture.reactor.turn(&mut fixture.handler, Some(millis(30))).unwrap();
    assert_eq!(fixture.reactor.handle().stats().turns, turns + 1);
    fixture.expect_service();
}

fn a_connection_whose_handler_yields_is_not_read_until_its_next_call<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.input_max = 5;
    let handler = RecordingHandler::echo().when_data(|conn, session, input| {
        session.step += 1;
        if session.step == 1 {
            // As much as may be left.
            return conn.yield_now();
        }
        conn.write(input);
        input.clear();
    });
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"abcde");
    fixture.saw(0, What::Data(5));
    fixture.send(peer, b"fghij");
    fixture.expect(peer, b"abcdefghij");
    assert_eq!(
        fixture.handler.count(0, What::Data(5)),
        3,
        "the same again, then what came after it"
    );
    fixture.expect_service();
}

fn a_connection_that_expects_input_is_not_idle<W: World>(world: &mut W) {
    // A body is taken as it comes, until a full stop.
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        let last = input.ends_with(b".");
        input.clear();
        if last {
            conn.write(b"done");
        } else {
            conn.expect_more_input();
        }
    });
    let mut config = Config::default();
    config.timeouts.idle = Some(millis(80));
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    fixture.send(peer, b"part");
    fixture.wait(millis(150));
    assert_eq!(fixture.handler.count(0, What::Idle), 0);
    fixture.send(peer, b"and the rest.");
    fixture.expect(peer, b"done");
    fixture.saw(0, What::Idle);
    assert_eq!(fixture.reactor.handle().stats().requests, 1, "it was one request");
    fixture.expect_timeout(wheelhouse::Timeout::Idle);
    fixture.expect_service();
}

fn an_empty_write_sends_nothing<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write(b"");
        conn.write_bytes(Vec::new());
        assert_eq!(conn.queued(), 0);
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Idle);
    fixture.expect_silence(peer);
    fixture.leave(peer);
    assert_eq!(fixture.expect_closed(CloseReason::PeerEof).bytes_out, 0);
    fixture.expect_service();
}

/// Connection 0 is the sink of connection 1.
fn pipe() -> RecordingHandler {
    let sink: Rc<RefCell<Option<ConnId>>> = Rc::default();
    let kept = Rc::clone(&sink);
    RecordingHandler::echo()
        .when_connected(move |conn, session| {
            if session.number == 0 {
                *kept.borrow_mut() = Some(conn.id());
            } else if session.number == 1 {
                conn.throttle_on(kept.borrow().unwrap());
            }
        })
        .when_data(move |conn, session, input| {
            let bytes = input.split().freeze();
            if session.number == 1
                && let Some(mut sink) = conn.other(sink.borrow().unwrap())
            {
                sink.write_bytes(bytes);
            }
        })
}

/// Sends a pattern until nothing more is taken, and says how much that was.
fn fill<W: World>(fixture: &mut Fixture<'_, W>, peer: PeerId, pattern: &[u8]) -> usize {
    let mut sent = 0;
    let mut quiet = 0;
    while quiet < 50 {
        let count = fixture.try_send(peer, &pattern[sent..]).unwrap();
        sent += count;
        quiet = if count == 0 { quiet + 1 } else { 0 };
        fixture.turn();
    }
    sent
}

/// More than the buffers of two sockets hold.
const MUCH: usize = 24 << 20;

fn a_throttled_connection_is_read_no_faster_than_its_sink_drains<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), pipe());
    let sink = fixture.connect_small();
    fixture.saw(0, What::Connected);
    let (feeder, _) = fixture.enter();
    let pattern = pattern(MUCH);
    let sent = fill(&mut fixture, feeder, &pattern);
    assert!(sent < pattern.len());
    let queued = fixture.with(0, |conn| conn.queued());
    assert!(queued <= 2 * Watermarks::default().high(), "{queued} bytes queued");
    // Once the sink reads, all that was sent arrives.
    let got = fixture.read(sink, sent);
    assert_same(&got, &pattern[..sent]);
    fixture.send(feeder, b"and more");
    fixture.expect(sink, b"and more");
    fixture.expect_service();
}

fn a_throttled_connection_is_read_to_its_fin<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), pipe());
    let sink = fixture.connect_small();
    fixture.saw(0, What::Connected);
    let (feeder, number) = fixture.enter();
    let pattern = pattern(MUCH);
    let sent = fill(&mut fixture, feeder, &pattern);
    fixture.leave(feeder);
    fixture.wait(millis(30));
    assert_eq!(fixture.handler.count(number, What::Eof), 0, "there is more before it");
    let got = fixture.read(sink, sent);
    assert_same(&got, &pattern[..sent]);
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!(closed.bytes_in, sent as u64);
    fixture.expect_service();
}

fn a_throttled_connection_is_read_again_when_its_sink_ends<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), pipe());
    let sink = fixture.connect_small();
    fixture.saw(0, What::Connected);
    let (feeder, _) = fixture.enter();
    let pattern = pattern(MUCH);
    let sent = fill(&mut fixture, feeder, &pattern);
    fixture.reset(sink);
    fixture.expect_closed(CloseReason::PeerReset);
    let in_before = fixture.reactor.handle().stats().bytes_in;
    fixture.until("the rest", |fixture| fixture.reactor.handle().stats().bytes_in == sent as u64);
    assert!(in_before < sent as u64);
    fixture.leave(feeder);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

/// Connections 0 and 1 throttle on each other.
fn two_way_pipe() -> RecordingHandler {
    let ids: Rc<RefCell<Vec<ConnId>>> = Rc::default();
    let kept = Rc::clone(&ids);
    RecordingHandler::echo()
        .when_connected(move |conn, session| {
            kept.borrow_mut().push(conn.id());
            if session.number == 1 {
                let first = kept.borrow()[0];
                conn.throttle_on(first);
                let id = conn.id();
                conn.other(first).unwrap().throttle_on(id);
            }
        })
        .when_data(move |conn, session, input| {
            let other = ids.borrow()[1 - session.number];
            conn.other(other).unwrap().write_bytes(input.split().freeze());
        })
}

fn a_throttled_connection_is_read_though_its_peer_does_not_read<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), two_way_pipe());
    let ann = fixture.connect_small();
    fixture.saw(0, What::Connected);
    let bob = fixture.connect_small();
    fixture.saw(1, What::Connected);
    let pattern = pattern(MUCH);
    let [from_ann, from_bob] = [ann, bob].map(|peer| fill(&mut fixture, peer, &pattern));
    // A peer that uploads before it reads must not deadlock: the directions are independent.
    let got = fixture.read(bob, from_ann);
    assert_same(&got, &pattern[..from_ann]);
    let got = fixture.read(ann, from_bob);
    assert_same(&got, &pattern[..from_bob]);
}

fn a_connection_whose_sink_ended_pauses_for_its_own_output_again<W: World>(world: &mut W) {
    let sink: Rc<RefCell<Option<ConnId>>> = Rc::default();
    let (most, handler) = large_replies();
    let handler = handler.when_connected(move |conn, session| {
        if session.number == 0 {
            *sink.borrow_mut() = Some(conn.id());
        } else if session.number == 1 {
            conn.throttle_on(sink.borrow().unwrap());
        }
    });
    let mut config = Config::default();
    config.limits.input_max = 1_000;
    let mut fixture = Fixture::new(world, config, handler);
    let (sink, _) = fixture.enter();
    let feeder = fixture.connect_small();
    fixture.saw(1, What::Connected);
    fixture.leave(sink);
    fixture.expect_closed(CloseReason::PeerEof);
    // From here on it is a client like any other, and one that never reads.
    let requests = [b'r'; 2_000];
    fixture.send(feeder, &requests);
    fixture.wait(millis(100));
    fixture.expect_none_closed();
    assert!(most.get() <= Watermarks::default().high() + REPLY, "{} bytes queued", most.get());
    fixture.read(feeder, requests.len() * REPLY);
    fixture.expect_service();
}

fn a_throttled_connection_is_not_late_while_its_sink_reads_slowly<W: World>(world: &mut W) {
    let mut config = Config::default();
    // A small window opens in steps: several sips make one byte leave.
    config.timeouts.response = Some(millis(300));
    config.timeouts.idle = Some(millis(300));
    config.timeouts.first_byte = Some(secs(60));
    let mut fixture = Fixture::new(world, config, pipe());
    let sink = fixture.connect_small();
    fixture.saw(0, What::Connected);
    let (feeder, _) = fixture.enter();
    // More than leaves at once, and so slowly that the low mark is far.
    let pattern = pattern(MUCH);
    let sent = fill(&mut fixture, feeder, &pattern);
    let start = fixture.now();
    let mut got = Vec::new();
    while fixture.now() - start < millis(1_200) {
        got.extend(fixture.sip(sink, 1_000));
        fixture.wait(millis(20));
    }
    // Neither is at fault: the sink reads, and the throttled peer would send.
    fixture.expect_none_closed();
    let rest = fixture.read(sink, sent - got.len());
    got.extend(rest);
    assert_same(&got, &pattern[..sent]);
}

fn throttling_in_both_directions_does_not_deadlock<W: World>(world: &mut W) {
    // Two peers that both send before they read, through a server that buffers little.
    let mut fixture = Fixture::new(world, Config::default(), two_way_pipe());
    let ann = fixture.connect_small();
    fixture.saw(0, What::Connected);
    let bob = fixture.connect_small();
    fixture.saw(1, What::Connected);
    let pattern = pattern(MUCH);
    let [from_ann, from_bob] = [ann, bob].map(|peer| fill(&mut fixture, peer, &pattern));
    let (mut at_ann, mut at_bob) = (Vec::new(), Vec::new());
    fixture.until("both", |fixture| {
        at_ann.extend(fixture.sip(ann, 64 * 1024));
        at_bob.extend(fixture.sip(bob, 64 * 1024));
        at_ann.len() >= from_bob && at_bob.len() >= from_ann
    });
    assert_same(&at_ann, &pattern[..from_bob]);
    assert_same(&at_bob, &pattern[..from_ann]);
}

fn throttling_in_a_refused_on_open_leaves_the_sink_unchanged<W: World>(world: &mut W) {
    let ids: Rc<RefCell<Vec<ConnId>>> = Rc::default();
    let handler = RecordingHandler::echo().when_open(move |conn, number| {
        ids.borrow_mut().push(conn.id());
        if number == 1 {
            conn.throttle_on(ids.borrow()[0]);
        }
        number != 1
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (sink, _) = fixture.enter();
    let refused = fixture.connect();
    fixture.read_to_end(refused);
    fixture.leave(sink);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn throttling_in_on_closing_leaves_the_sink_unchanged<W: World>(world: &mut W) {
    let ids: Rc<RefCell<Vec<ConnId>>> = Rc::default();
    let kept = Rc::clone(&ids);
    let handler = RecordingHandler::echo()
        .when_open(move |conn, _| {
            kept.borrow_mut().push(conn.id());
            true
        })
        .when_closing(move |conn, session, _| {
            if session.number == 1 {
                conn.throttle_on(ids.borrow()[0]);
            }
        });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (sink, _) = fixture.enter();
    let (feeder, number) = fixture.enter();
    fixture.leave(feeder);
    assert_eq!(fixture.expect_closed(CloseReason::PeerEof).id, fixture.handler.ids[number]);
    fixture.leave(sink);
    assert_eq!(fixture.expect_closed(CloseReason::PeerEof).id, fixture.handler.ids[0]);
    fixture.expect_service();
}

fn throttling_on_a_closing_sink_pauses_nothing<W: World>(world: &mut W) {
    let sink: Rc<RefCell<Option<ConnId>>> = Rc::default();
    let handler = RecordingHandler::echo().when_data(move |conn, session, input| {
        input.clear();
        if session.number == 0 {
            *sink.borrow_mut() = Some(conn.id());
            conn.write_bytes(vec![b's'; MUCH]);
            conn.close();
        } else if let Some(sink) = *sink.borrow() {
            conn.throttle_on(sink);
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (sink, _) = fixture.enter();
    let (feeder, number) = fixture.enter();
    fixture.send(sink, b"x");
    fixture.saw(0, What::Closing(CloseReason::HandlerClose));
    fixture.send(feeder, b"x");
    fixture.saw(number, What::Data(1));
    fixture.reset(sink);
    fixture.closed();
    fixture.send(feeder, b"yy");
    fixture.saw(number, What::Data(2));
    fixture.leave(feeder);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn a_throttled_connection_gets_the_input_it_left<W: World>(world: &mut W) {
    let ids: Rc<RefCell<Vec<ConnId>>> = Rc::default();
    let kept = Rc::clone(&ids);
    let handler = RecordingHandler::echo()
        .when_open(move |conn, _| {
            kept.borrow_mut().push(conn.id());
            true
        })
        .when_data(|conn, session, input| {
            if session.step > 0 {
                input.clear();
                return;
            }
            // Its own output holds it from here, with its input left.
            session.step = 1;
            conn.write_bytes(vec![b'x'; MUCH]);
            conn.set_timer(conn.now() + millis(50));
        })
        .when_timer(move |conn, _| conn.throttle_on(ids.borrow()[1]));
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (feeder, number) = fixture.enter();
    fixture.enter();
    fixture.send(feeder, b"y");
    fixture.saw(number, What::Timer);
    fixture.until("the input again", |fixture| fixture.handler.count(number, What::Data(1)) == 2);
    fixture.expect_none_closed();
}
