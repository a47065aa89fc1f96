//! A handler may wait for a length of input, and have input discarded.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Buf;
use wheelhouse::{CloseReason, Config, State, Timeout};

use crate::harness::{Fixture, Got, RecordingHandler, What, World, assert_same, millis, pattern};

behaviours! {
    everywhere {
        an_expected_length_comes_in_one_call
        the_rest_of_a_read_comes_with_an_expected_length
        an_expected_length_holds_for_one_call
        the_latest_expected_length_counts
        an_expected_length_that_is_there_already_changes_nothing
        an_expected_length_beyond_the_limit_ends_the_connection
        a_length_as_large_as_the_limit_may_be_expected
        a_peer_that_announces_much_and_sends_little_holds_little
        a_message_that_is_expected_must_be_whole_in_time
        a_message_that_is_expected_may_stall_no_longer_than_a_read
        an_idle_connection_that_expects_a_length_wakes_with_the_first_byte
        an_expected_message_counts_as_one_request
        a_fin_ends_the_wait_for_a_length
        yielding_ends_the_wait_for_a_length
        resuming_does_not_end_the_wait_for_a_length
        skipped_input_does_not_reach_the_handler
        what_follows_skipped_input_reaches_the_handler
        what_a_handler_left_is_skipped_first
        several_skips_add_up
        a_length_may_be_expected_after_skipped_input
        a_reply_may_follow_skipped_input
        more_than_the_limit_of_input_may_be_skipped
        skipped_input_holds_no_memory
        skipped_input_must_be_over_in_time
        a_fin_ends_a_skip
        a_skip_of_nothing_changes_nothing
        a_skipped_message_ends_its_request
        each_skipped_message_counts_as_a_request
        a_fin_after_a_part_of_an_expected_length_wakes_the_connection
        a_message_that_is_expected_holds_no_more_than_its_length
        a_last_reply_is_sent_whatever_length_is_expected_then
    }
}

/// A message is its length in four bytes, and as many bytes. The reply is its length and its last
/// byte.
fn messages() -> RecordingHandler {
    RecordingHandler::echo().when_data(|conn, _, input| {
        while let Some(head) = input.first_chunk() {
            let len = 4 + u32::from_be_bytes(*head) as usize;
            if input.len() < len {
                return conn.expect_input(len);
            }
            let message = input.split_to(len);
            write!(conn, "{} {:?};", len - 4, message[4..].last());
        }
    })
}

fn message(len: usize) -> Vec<u8> {
    let head = u32::try_from(len).unwrap().to_be_bytes();
    [&head[..], &pattern(len)].concat()
}

fn reply(len: usize) -> Vec<u8> {
    format!("{len} {:?};", pattern(len).last()).into_bytes()
}

fn config(input_max: usize) -> Config {
    let mut config = Config::default();
    config.limits.input_max = input_max;
    config
}

fn data_calls(fixture: &Fixture<'_, impl World>) -> Vec<usize> {
    let of = |what| if let What::Data(len) = what { Some(len) } else { None };
    fixture.handler.story(0).into_iter().filter_map(of).collect()
}

/// Waits until so many bytes have been read of the first connection.
fn until_read<W: World>(fixture: &mut Fixture<'_, W>, bytes: u64) {
    fixture.until("the bytes to be read", |fixture| {
        fixture.reactor.handle().stats().bytes_in == bytes
    });
}

fn an_expected_length_comes_in_one_call<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, config(2 << 20), messages());
    let peer = fixture.connect();
    fixture.send(peer, &message(1 << 20)[..10]);
    fixture.saw(0, What::Data(10));
    fixture.send(peer, &message(1 << 20)[10..]);
    fixture.expect(peer, &reply(1 << 20));
    assert_eq!(data_calls(&fixture), [10, 4 + (1 << 20)]);
    // What it held is given back.
    fixture.until("memory to be free", |fixture| fixture.reactor.handle().stats().buffered == 0);
    fixture.expect_service();
}

fn the_rest_of_a_read_comes_with_an_expected_length<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, config(1 << 20), messages());
    let peer = fixture.connect();
    let sent = [message(100_000), message(7), message(0), message(200_000), message(3)].concat();
    fixture.send(peer, &sent);
    let replies = [100_000, 7, 0, 200_000, 3].map(reply).concat();
    fixture.expect(peer, &replies);
    fixture.expect_service();
}

fn an_expected_length_holds_for_one_call<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, session, input| {
        if session.step == 0 {
            session.step = 1;
            conn.expect_input(4);
        }
        conn.write(input);
        input.clear();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"a");
    fixture.expect(peer, b"a");
    fixture.send(peer, b"bcd");
    until_read(&mut fixture, 4);
    fixture.expect_silence(peer);
    fixture.send(peer, b"e");
    fixture.expect(peer, b"bcde");
    fixture.send(peer, b"f");
    fixture.expect(peer, b"f");
    assert_eq!(data_calls(&fixture), [1, 4, 1]);
}

fn the_latest_expected_length_counts<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        if input.len() < 3 {
            conn.expect_input(1_000);
            conn.expect_input(3);
        } else {
            conn.write(input);
            input.clear();
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"a");
    fixture.saw(0, What::Data(1));
    fixture.send(peer, b"bc");
    fixture.expect(peer, b"abc");
}

fn an_expected_length_that_is_there_already_changes_nothing<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        for len in [0, 1, input.len()] {
            conn.expect_input(len);
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"abc");
    fixture.saw(0, What::Data(3));
    fixture.expect_rest();
    fixture.send(peer, b"d");
    fixture.saw(0, What::Data(4));
    assert_eq!(data_calls(&fixture), [3, 4]);
}

fn an_expected_length_beyond_the_limit_ends_the_connection<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, config(1_000), messages());
    let peer = fixture.connect();
    fixture.send(peer, &message(997)[..10]);
    fixture.expect_closed(CloseReason::InputLimit);
    assert_eq!(data_calls(&fixture), [10]);
    fixture.expect_service();
}

fn a_length_as_large_as_the_limit_may_be_expected<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, config(1_000), messages());
    let peer = fixture.connect();
    fixture.send(peer, &message(996)[..10]);
    fixture.saw(0, What::Data(10));
    fixture.send(peer, &message(996)[10..]);
    fixture.expect(peer, &reply(996));
    fixture.expect_service();
}

fn a_peer_that_announces_much_and_sends_little_holds_little<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, config(64 << 20), messages());
    let peer = fixture.connect();
    let announced = message(50 << 20);
    let mut sent = 0;
    for until in [10, 3_000, 10_000, 100_000, 500_000] {
        fixture.send(peer, &announced[sent..until]);
        sent = until;
        until_read(&mut fixture, sent as u64);
        let buffered = fixture.reactor.handle().stats().buffered as usize;
        assert!(buffered >= sent, "{buffered} for {sent}");
        assert!(buffered <= 5 * sent / 2 + 64, "{buffered} for {sent}");
    }
}

fn a_message_that_is_expected_must_be_whole_in_time<W: World>(world: &mut W) {
    let mut config = config(1 << 20);
    config.timeouts.request = Some(millis(300));
    let mut fixture = Fixture::new(world, config, messages());
    let peer = fixture.connect();
    let start = fixture.now();
    fixture.send(peer, &message(100_000)[..10]);
    fixture.drip(peer, &[0; 20], millis(20));
    fixture.expect_timeout(Timeout::Request);
    fixture.assert_took(start, millis(300));
}

fn a_message_that_is_expected_may_stall_no_longer_than_a_read<W: World>(world: &mut W) {
    let mut config = config(1 << 20);
    config.timeouts.read = Some(millis(200));
    let mut fixture = Fixture::new(world, config, messages());
    let peer = fixture.connect();
    fixture.send(peer, &message(100_000)[..10]);
    fixture.wait(millis(100));
    fixture.send(peer, &message(100_000)[10..50_000]);
    until_read(&mut fixture, 50_000);
    let start = fixture.now();
    fixture.expect_timeout(Timeout::Read);
    fixture.assert_took(start, millis(200));
}

fn an_idle_connection_that_expects_a_length_wakes_with_the_first_byte<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo()
        .when_connected(|conn, _| conn.expect_input(4))
        .when_data(|conn, _, input| {
            conn.write(&input.split_to(4));
            conn.expect_input(4);
        });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"abcd");
    fixture.expect(peer, b"abcd");
    fixture.saw(0, What::Idle);
    fixture.send(peer, b"e");
    fixture.saw(0, What::Active);
    assert_eq!(fixture.with(0, |conn| conn.state()), State::Connected);
    fixture.expect_rest();
    fixture.send(peer, b"fgh");
    fixture.expect(peer, b"efgh");
    fixture.until("rest", |fixture| fixture.handler.count(0, What::Idle) == 2);
    assert_eq!(data_calls(&fixture), [4, 4]);
    assert_eq!(fixture.handler.count(0, What::Active), 1);
}

fn an_expected_message_counts_as_one_request<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, config(1 << 20), messages());
    let peer = fixture.connect();
    for len in [300_000, 100_000] {
        fixture.send(peer, &message(len)[..2]);
        fixture.send(peer, &message(len)[2..len / 2]);
        fixture.send(peer, &message(len)[len / 2..]);
        fixture.expect(peer, &reply(len));
    }
    fixture.saw(0, What::Idle);
    assert_eq!(fixture.reactor.handle().stats().requests, 2);
}

fn a_fin_ends_the_wait_for_a_length<W: World>(world: &mut W) {
    let left = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&left);
    let handler =
        messages().when_eof(move |_, _, input| seen.borrow_mut().extend_from_slice(input));
    let mut fixture = Fixture::new(world, config(1 << 20), handler);
    let peer = fixture.connect();
    fixture.send(peer, &message(300_000)[..100_000]);
    fixture.half_close(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    assert_same(&left.borrow(), &message(300_000)[..100_000]);
    fixture.expect_service();
}

fn yielding_ends_the_wait_for_a_length<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, session, input| {
        session.step += 1;
        if session.step == 1 {
            conn.expect_input(1_000);
            conn.yield_now();
        } else {
            conn.write(input);
            input.clear();
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"abc");
    fixture.expect(peer, b"abc");
    fixture.send(peer, b"d");
    fixture.expect(peer, b"d");
}

fn resuming_does_not_end_the_wait_for_a_length<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, session, input| {
        session.step += 1;
        if session.step == 1 {
            conn.expect_input(5);
            conn.pause_reading();
        } else {
            conn.write(input);
            input.clear();
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"abc");
    fixture.saw(0, What::Data(3));
    fixture.with(0, |conn| conn.resume_reading());
    fixture.expect_silence(peer);
    assert_eq!(data_calls(&fixture), [3]);
    fixture.send(peer, b"de");
    fixture.expect(peer, b"abcde");
}

/// A message is `S`, a count of bytes to skip and a line feed, and those bytes; anything else is
/// sent back. A call without input is answered by a full stop.
fn skipper() -> RecordingHandler {
    RecordingHandler::echo().that_skips().when_data(|conn, _, input| {
        if input.is_empty() {
            conn.write(b".");
        }
        while let Some(first) = input.first() {
            if *first != b'S' {
                conn.write(&input.split_to(1));
                continue;
            }
            let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return };
            let count = str::from_utf8(&input[1..end]).unwrap().parse().unwrap();
            input.advance(end + 1);
            return conn.skip(count);
        }
    })
}

fn skipped_input_does_not_reach_the_handler<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), skipper());
    let peer = fixture.connect();
    fixture.send(peer, b"S10\n");
    fixture.saw(0, What::Data(4));
    fixture.send(peer, b"01234");
    until_read(&mut fixture, 9);
    assert_eq!(fixture.with(0, |conn| conn.state()), State::Connected);
    fixture.send(peer, b"56789");
    fixture.expect(peer, b".");
    fixture.saw(0, What::Idle);
    assert_eq!(data_calls(&fixture), [4, 0]);
    assert_eq!(fixture.reactor.handle().stats().requests, 1);
    fixture.send(peer, b"ab");
    fixture.expect(peer, b"ab");
    fixture.expect_service();
}

fn what_follows_skipped_input_reaches_the_handler<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), skipper());
    let peer = fixture.connect();
    fixture.send(peer, b"S10\n");
    fixture.saw(0, What::Data(4));
    fixture.send(peer, b"0123456789abS3\n012c");
    fixture.expect(peer, b"abc");
    fixture.expect_service();
}

fn what_a_handler_left_is_skipped_first<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), skipper());
    let peer = fixture.connect();
    fixture.send(peer, b"aS2\n01bS4\n0123S1\n0S3\n01");
    fixture.expect(peer, b"ab");
    until_read(&mut fixture, 23);
    fixture.send(peer, b"2c");
    fixture.expect(peer, b"c");
    // All of a read is skipped, and nothing follows it.
    fixture.send(peer, b"S3\n012");
    fixture.expect(peer, b".");
    fixture.expect_service();
}

fn several_skips_add_up<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().that_skips().when_data(|conn, session, input| {
        if session.step == 0 {
            session.step = 1;
            conn.skip(2);
            conn.skip(3);
        } else {
            conn.write(input);
            input.clear();
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"0");
    fixture.saw(0, What::Data(1));
    fixture.send(peer, b"1234a");
    fixture.expect(peer, b"a");
}

fn a_length_may_be_expected_after_skipped_input<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().that_skips().when_data(|conn, session, input| {
        if session.step == 0 {
            session.step = 1;
            conn.expect_input(3);
            conn.skip(5);
        } else {
            conn.write(input);
            input.clear();
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"01");
    fixture.saw(0, What::Data(2));
    fixture.send(peer, b"234ab");
    until_read(&mut fixture, 7);
    fixture.expect_silence(peer);
    fixture.send(peer, b"c");
    fixture.expect(peer, b"abc");
    assert_eq!(data_calls(&fixture), [2, 3]);
}

fn a_reply_may_follow_skipped_input<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().that_skips().when_data(|conn, session, input| {
        session.step += 1;
        match session.step {
            1 => {
                conn.begin_request();
                conn.skip(6);
            }
            2 => {
                assert!(input.is_empty());
                conn.write(b"too large");
                conn.end_request();
            }
            _ => {
                conn.write(input);
                input.clear();
            }
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"012");
    fixture.saw(0, What::Data(3));
    fixture.send(peer, b"345");
    fixture.expect(peer, b"too large");
    fixture.saw(0, What::Idle);
    assert_eq!(fixture.reactor.handle().stats().requests, 1);
    fixture.send(peer, b"a");
    fixture.expect(peer, b"a");
}

fn more_than_the_limit_of_input_may_be_skipped<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, config(1_000), skipper());
    let peer = fixture.connect();
    let sent = [b"S1000000\n", &pattern(1_000_000)[..], b"ab"].concat();
    fixture.send(peer, &sent);
    fixture.expect(peer, b"ab");
    fixture.expect_service();
}

fn skipped_input_holds_no_memory<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), skipper());
    let peer = fixture.connect();
    fixture.send(peer, b"S1000000\n");
    for count in 1..=5 {
        fixture.send(peer, &[0; 50_000]);
        until_read(&mut fixture, 9 + count * 50_000);
        assert_eq!(fixture.reactor.handle().stats().buffered, 0);
    }
}

fn skipped_input_must_be_over_in_time<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.request = Some(millis(300));
    let mut fixture = Fixture::new(world, config, skipper());
    let peer = fixture.connect();
    let start = fixture.now();
    fixture.send(peer, b"S1000000\n");
    fixture.drip(peer, &[0; 20], millis(20));
    fixture.expect_timeout(Timeout::Request);
    fixture.assert_took(start, millis(300));
}

fn a_fin_ends_a_skip<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), skipper());
    let peer = fixture.connect();
    fixture.send(peer, b"S10\n0123");
    fixture.half_close(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!(data_calls(&fixture), [8]);
    fixture.expect_service();
}

fn a_skip_of_nothing_changes_nothing<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), skipper());
    let peer = fixture.connect();
    fixture.send(peer, b"S0\n");
    fixture.saw(0, What::Idle);
    assert_eq!(data_calls(&fixture), [3]);
    fixture.send(peer, b"a");
    fixture.expect(peer, b"a");
}

/// A peer sends six bytes a second, of which the last begins the next message, and is never late.
fn a_skipped_message_ends_its_request<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.request = Some(millis(300));
    let handler = RecordingHandler::echo().that_skips().when_data(|conn, _, input| {
        if !input.is_empty() {
            input.advance(1);
            conn.skip(5);
        }
    });
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    fixture.send(peer, b"a");
    for _ in 0..8 {
        fixture.wait(millis(100));
        fixture.send(peer, b"01234b");
    }
    fixture.expect_none_closed();
    fixture.send(peer, b"01234");
    fixture.saw(0, What::Idle);
    assert_eq!(fixture.reactor.handle().stats().requests, 9);
}

fn each_skipped_message_counts_as_a_request<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.requests_max = Some(4);
    let mut fixture = Fixture::new(world, config, skipper());
    let peer = fixture.connect();
    fixture.send(peer, b"S2\n01S2\n01S2\n01S2\n01");
    // The last call has no input.
    assert_eq!(fixture.read_to_end(peer), (b".".to_vec(), Got::Eof));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::MaxRequests);
    assert_eq!(fixture.reactor.handle().stats().requests, 4);
}

fn a_fin_after_a_part_of_an_expected_length_wakes_the_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo()
        .when_data(|conn, _, input| {
            conn.write(input);
            input.clear();
            conn.expect_input(10);
        })
        .when_eof(|conn, _, input| assert_eq!((conn.state(), input.len()), (State::Connected, 3)));
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"a");
    fixture.expect(peer, b"a");
    fixture.saw(0, What::Idle);
    fixture.send(peer, b"bcd");
    fixture.half_close(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!(fixture.handler.count(0, What::Active), 1);
    assert_eq!(fixture.handler.count(0, What::Eof), 1);
}

fn a_message_that_is_expected_holds_no_more_than_its_length<W: World>(world: &mut W) {
    for len in [70_000, 270_000, 1 << 20] {
        let mut fixture = Fixture::new(world, config(2 << 20), messages());
        let peer = fixture.connect();
        // All but the last byte.
        for (number, piece) in message(len)[..3 + len].chunks(16_000).enumerate() {
            fixture.send(peer, piece);
            until_read(&mut fixture, (number * 16_000 + piece.len()) as u64);
        }
        let buffered = fixture.reactor.handle().stats().buffered as usize;
        assert!(buffered <= len + 4_096, "{buffered} for {len}");
        fixture.send(peer, &message(len)[3 + len..]);
        fixture.expect(peer, &reply(len));
    }
}

fn a_last_reply_is_sent_whatever_length_is_expected_then<W: World>(world: &mut W) {
    let handler = messages().when_closing(|conn, _, _| {
        conn.write(b"bye");
        conn.expect_input(usize::MAX);
        conn.skip(u64::MAX);
    });
    let mut config = config(1 << 20);
    config.timeouts.request = Some(millis(100));
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    fixture.send(peer, &message(100_000)[..10]);
    assert_eq!(fixture.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
}
