//! How connections end: queued output leaves, what the peer still sends does no harm, and what
//! does not end in time is cut off.

use wheelhouse::{CloseReason, Config, Timeout};

use crate::harness::{Fixture, Got, RecordingHandler, What, World, assert_same, millis, secs};

behaviours! {
    everywhere {
        a_peer_that_closes_at_once_ends_its_connection
        a_request_followed_by_a_fin_gets_its_reply
        a_reply_that_comes_later_reaches_a_half_closed_peer
        pipelined_requests_followed_by_a_fin_are_all_answered
        on_eof_gets_the_input_that_was_left
        our_fin_follows_the_queue_and_reading_goes_on
        the_last_reply_leaves_before_the_end
        linger_read_ends_a_connection_whose_peer_is_silent_after_our_fin
        linger_ends_a_connection_whose_peer_sends_on_after_our_fin
        no_connection_lingers_for_a_peer_that_sent_its_fin
        no_connection_lingers_where_nothing_was_written
        the_response_deadline_ends_a_half_closed_connection
        shutdown_write_in_on_active_does_not_lose_the_input
    }
    over_tcp {
        a_long_reply_survives_the_upload_it_cut_short
        a_closing_connection_must_flush_at_the_flush_rate
        a_closing_connection_may_flush_slowly
        the_write_deadline_resets_a_closing_connection_whose_peer_does_not_read
        a_reset_before_any_byte_ends_the_connection
        a_reset_within_a_request_ends_the_connection
        a_reset_ends_an_idle_connection
        a_reset_ends_a_connection_with_output_queued
        a_reset_ends_a_closing_connection
        a_reset_ends_a_closing_connection_with_output_queued
        bytes_before_a_reset_do_not_report_it_twice
        all_that_came_before_a_reset_is_read_though_writing_fails
    }
    with_hints {
        a_reset_ends_a_connection_that_is_not_read
        a_reset_after_a_fin_ends_the_connection
    }
}

fn a_peer_that_closes_at_once_ends_its_connection<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let peer = fixture.connect();
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.bytes_in, closed.bytes_out), (0, 0));
    let reason = CloseReason::PeerEof;
    assert_eq!(
        fixture.handler.story(0),
        [What::Open, What::Connected, What::Eof, What::Closing(reason), What::Closed(reason)]
    );
    fixture.expect_service();
}

fn a_request_followed_by_a_fin_gets_its_reply<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let peer = fixture.connect();
    fixture.send(peer, b"hello");
    fixture.half_close(peer);
    assert_eq!(fixture.read_to_end(peer), (b"hello".to_vec(), Got::Eof));
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.bytes_in, closed.bytes_out, closed.unsent), (5, 5, 0));
    fixture.expect_service();
}

fn a_reply_that_comes_later_reaches_a_half_closed_peer<W: World>(world: &mut W) {
    let handler = RecordingHandler::replying_after(millis(150), b"later");
    let mut config = Config::default();
    // The deadline does not run while the peer waits for the reply.
    config.timeouts.half_closed = Some(millis(50));
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    fixture.send(peer, b"hello");
    fixture.half_close(peer);
    fixture.saw(0, What::Eof);
    assert_eq!(fixture.read_to_end(peer), (b"later".to_vec(), Got::Eof));
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn pipelined_requests_followed_by_a_fin_are_all_answered<W: World>(world: &mut W) {
    const REQUESTS: usize = 40;
    const REPLY: usize = 100_000;
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        while !input.is_empty() && !conn.is_congested() {
            let request = input.split_to(1);
            conn.write_bytes(vec![request[0]; REPLY]);
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    let requests: Vec<u8> = (0..REQUESTS as u8).collect();
    fixture.send(peer, &requests);
    fixture.half_close(peer);
    let (bytes, end) = fixture.read_to_end(peer);
    let replies: Vec<u8> = requests.iter().flat_map(|byte| vec![*byte; REPLY]).collect();
    assert_same(&bytes, &replies);
    assert_eq!(end, Got::Eof);
    assert!(fixture.handler.count(0, What::Drained) > 1, "it was congested");
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.bytes_out, closed.unsent), (replies.len() as u64, 0));
    fixture.expect_service();
}

fn on_eof_gets_the_input_that_was_left<W: World>(world: &mut W) {
    let handler = RecordingHandler::ignore().when_eof(|conn, _, input| {
        conn.write(b"no: ");
        conn.write(input);
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"half a requ");
    fixture.half_close(peer);
    assert_eq!(fixture.read_to_end(peer), (b"no: half a requ".to_vec(), Got::Eof));
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn our_fin_follows_the_queue_and_reading_goes_on<W: World>(world: &mut W) {
    const LEN: usize = 2 << 20;
    let handler = RecordingHandler::echo().when_data(|conn, session, input| {
        if session.step == 0 {
            conn.write_bytes(vec![b'a'; LEN]);
            conn.shutdown_write();
            conn.write(b"too late");
        }
        session.step += 1;
        input.clear();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    let (bytes, end) = fixture.read_to_end(peer);
    assert_same(&bytes, &vec![b'a'; LEN]);
    assert_eq!(end, Got::Eof);
    fixture.send(peer, b"more");
    fixture.until("more", |fixture| fixture.handler.count(0, What::Data(4)) == 1);
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.bytes_in, closed.unsent), (5, 8));
    fixture.expect_service();
}

/// Answers the first byte with so many bytes, and closes.
fn answer_and_close(len: usize) -> RecordingHandler {
    RecordingHandler::echo().when_data(move |conn, _, input| {
        input.clear();
        conn.write_bytes(vec![b'b'; len]);
        conn.close();
    })
}

fn the_last_reply_leaves_before_the_end<W: World>(world: &mut W) {
    const LEN: usize = 2 << 20;
    let mut fixture = Fixture::new(world, Config::default(), answer_and_close(LEN));
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    let (bytes, end) = fixture.read_to_end(peer);
    assert_same(&bytes, &vec![b'b'; LEN]);
    assert_eq!(end, Got::Eof);
    fixture.expect_none_closed();
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert_eq!((closed.bytes_out, closed.unsent), (LEN as u64, 0));
    assert_eq!(fixture.reactor.handle().stats().linger_expired, 0);
    fixture.expect_service();
}

fn linger_read_ends_a_connection_whose_peer_is_silent_after_our_fin<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.linger_read = Some(millis(120));
    let mut fixture = Fixture::new(world, config, answer_and_close(3));
    let (peer, _) = fixture.enter();
    let start = fixture.now();
    fixture.send(peer, b"x");
    assert_eq!(fixture.read_to_end(peer), (b"bbb".to_vec(), Got::Eof));
    fixture.expect_closed(CloseReason::HandlerClose);
    fixture.assert_took(start, millis(120));
    assert_eq!(fixture.reactor.handle().stats().linger_expired, 1);
    fixture.expect_service();
}

fn linger_ends_a_connection_whose_peer_sends_on_after_our_fin<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.linger_read = Some(millis(250));
    config.timeouts.linger = Some(millis(600));
    let mut fixture = Fixture::new(world, config, answer_and_close(3));
    let (peer, _) = fixture.enter();
    let start = fixture.now();
    fixture.send(peer, b"x");
    fixture.expect(peer, b"bbb");
    fixture.drip(peer, &[b'x'; 20], millis(60));
    fixture.expect_closed(CloseReason::HandlerClose);
    let took = fixture.handler.when(0, What::Closed(CloseReason::HandlerClose)).unwrap() - start;
    assert!(took >= millis(600), "{took:?}");
    assert!(took < millis(1_100), "{took:?}");
    fixture.expect_service();
}

fn no_connection_lingers_for_a_peer_that_sent_its_fin<W: World>(world: &mut W) {
    // The FIN comes first, so that nothing more can come from this peer.
    let handler = RecordingHandler::ignore().when_eof(|conn, _, _| {
        conn.write(b"bye");
        conn.close();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.half_close(peer);
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert!(closed.age < secs(2), "{:?}", closed.age);
    assert_eq!(fixture.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    fixture.expect_service();
}

fn no_connection_lingers_where_nothing_was_written<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.close();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert!(closed.age < secs(2), "{:?}", closed.age);
    fixture.expect_eof(peer);
    fixture.expect_service();
}

fn a_long_reply_survives_the_upload_it_cut_short<W: World>(world: &mut W) {
    const LEN: usize = 400_000;
    let handler = RecordingHandler::echo().when_data(|conn, _, _| {
        conn.write_bytes(vec![b'c'; LEN]);
        conn.close();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect_small();
    // As much as the kernel takes while the peer does not read, and more while the reply comes.
    let upload = vec![b'u'; 256 * 1024];
    while fixture.try_send(peer, &upload).unwrap() > 0 {}
    let mut reply = Vec::new();
    while reply.len() < LEN {
        fixture.turn();
        reply.extend(fixture.sip(peer, 8 * 1024));
        assert!(fixture.try_send(peer, &upload[..1_000]).is_some(), "no reset");
    }
    assert_same(&reply, &vec![b'c'; LEN]);
    assert_eq!(fixture.read_to_end(peer), (Vec::new(), Got::Eof));
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert_eq!(closed.unsent, 0);
    fixture.expect_service();
}

const LARGE: usize = 4 << 20;

fn a_closing_connection_must_flush_at_the_flush_rate<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.flush = Some(millis(200));
    config.limits.flush_rate = 100_000_000;
    let mut fixture = Fixture::new(world, config, answer_and_close(LARGE));
    let peer = fixture.connect_small();
    fixture.turn();
    let start = fixture.now();
    fixture.send(peer, b"x");
    while fixture.handler.closed.is_empty() && fixture.now() - start < secs(5) {
        fixture.sip(peer, 4 * 1024);
        fixture.wait(millis(10));
    }
    // The first reason stays; the counters say what became of the output.
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    let took = fixture.handler.when(0, What::Closed(CloseReason::HandlerClose)).unwrap() - start;
    assert!(took >= millis(200), "early: {took:?}");
    assert!(took < millis(900), "late: {took:?}");
    assert!(closed.unsent > 0);
    assert_eq!(closed.bytes_out + closed.unsent, LARGE as u64);
    let (bytes, end) = fixture.read_to_end(peer);
    assert!(bytes.len() < LARGE);
    fixture.assert_reset(end);
    fixture.expect_service();
}

fn a_closing_connection_may_flush_slowly<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.flush = Some(millis(200));
    config.limits.flush_rate = 1_000;
    let mut fixture = Fixture::new(world, config, answer_and_close(LARGE));
    let peer = fixture.connect_small();
    fixture.send(peer, b"x");
    let start = fixture.now();
    let mut count = 0;
    while fixture.now() - start < millis(800) {
        count += fixture.sip(peer, 4 * 1024).len();
        fixture.wait(millis(20));
    }
    fixture.expect_none_closed();
    fixture.read(peer, LARGE - count);
    fixture.expect_eof(peer);
    fixture.leave(peer);
    assert_eq!(fixture.expect_closed(CloseReason::HandlerClose).unsent, 0);
    fixture.expect_service();
}

fn the_response_deadline_ends_a_half_closed_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::owing();
    let mut config = Config::default();
    config.timeouts.response = Some(millis(120));
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, _) = fixture.enter();
    let start = fixture.now();
    fixture.send(peer, b"x");
    fixture.half_close(peer);
    fixture.expect_closed(CloseReason::Timeout(Timeout::Response));
    fixture.assert_took(start, millis(120));
    fixture.expect_eof(peer);
    fixture.expect_service();
}

fn the_write_deadline_resets_a_closing_connection_whose_peer_does_not_read<W: World>(
    world: &mut W,
) {
    let mut config = Config::default();
    config.timeouts.write = Some(millis(150));
    let mut fixture = Fixture::new(world, config, answer_and_close(LARGE));
    let peer = fixture.connect_small();
    fixture.turn();
    let start = fixture.now();
    fixture.send(peer, b"x");
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    fixture.assert_took(start, millis(150));
    assert!(closed.unsent > 0);
    let (_, end) = fixture.read_to_end(peer);
    fixture.assert_reset(end);
    fixture.expect_service();
}

fn a_reset_before_any_byte_ends_the_connection<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let (peer, _) = fixture.enter();
    fixture.reset(peer);
    fixture.expect_closed(CloseReason::PeerReset);
    fixture.expect_service();
}

fn a_reset_within_a_request_ends_the_connection<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::ignore());
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"half");
    fixture.saw(number, What::Data(4));
    fixture.reset(peer);
    let closed = fixture.expect_closed(CloseReason::PeerReset);
    assert_eq!(closed.bytes_in, 4);
    assert_eq!(fixture.handler.count(number, What::Eof), 0, "a reset is no end");
    fixture.expect_service();
}

fn a_reset_ends_an_idle_connection<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let (peer, number) = fixture.enter();
    fixture.expect_echo(peer);
    fixture.saw(number, What::Idle);
    fixture.reset(peer);
    fixture.expect_closed(CloseReason::PeerReset);
    fixture.expect_service();
}

fn a_reset_ends_a_connection_with_output_queued<W: World>(world: &mut W) {
    let handler = RecordingHandler::replying(b'd', LARGE);
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (_, number) = fixture.enter();
    let peer = fixture.connect_small();
    fixture.send(peer, b"x");
    fixture.saw(number + 1, What::Data(1));
    fixture.wait(millis(20));
    assert!(fixture.with(number + 1, |conn| conn.is_congested()));
    fixture.reset(peer);
    let closed = fixture.expect_closed(CloseReason::PeerReset);
    assert_eq!(closed.bytes_out + closed.unsent, LARGE as u64);
    assert!(closed.unsent > 0);
    fixture.expect_service();
}

fn a_reset_ends_a_connection_that_is_not_read<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.pause_reading();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.saw(number, What::Data(1));
    fixture.send(peer, b"unread");
    fixture.turn();
    fixture.reset(peer);
    let closed = fixture.expect_closed(CloseReason::PeerReset);
    assert_eq!(closed.bytes_in, 1);
    fixture.expect_service();
}

fn a_reset_ends_a_closing_connection<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), answer_and_close(3));
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"x");
    assert_eq!(fixture.read_to_end(peer), (b"bbb".to_vec(), Got::Eof));
    fixture.expect_none_closed();
    fixture.reset(peer);
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert!(closed.age < secs(2), "it does not wait: {:?}", closed.age);
    fixture.expect_service();
}

fn a_reset_ends_a_closing_connection_with_output_queued<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), answer_and_close(LARGE));
    let peer = fixture.connect_small();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Closing(CloseReason::HandlerClose));
    fixture.wait(millis(20));
    fixture.reset(peer);
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert!(closed.age < secs(2), "{:?}", closed.age);
    assert!(closed.unsent > 0);
    assert_eq!(closed.bytes_out + closed.unsent, LARGE as u64);
    fixture.expect_service();
}

fn a_reset_after_a_fin_ends_the_connection<W: World>(world: &mut W) {
    // The reply is still owed, and the peer is gone.
    let handler = RecordingHandler::owing();
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.half_close(peer);
    fixture.saw(number, What::Eof);
    fixture.turn();
    fixture.reset(peer);
    let closed = fixture.expect_closed(CloseReason::PeerReset);
    assert!(closed.age < secs(2), "{:?}", closed.age);
    fixture.expect_service();
}

fn bytes_before_a_reset_do_not_report_it_twice<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let peer = fixture.connect();
    fixture.send(peer, b"hello");
    fixture.reset(peer);
    // The kernel may or may not deliver the bytes before the reset; the end is the same.
    fixture.expect_closed(CloseReason::PeerReset);
    fixture.expect_service();
}

fn all_that_came_before_a_reset_is_read_though_writing_fails<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write(b"ok");
    });
    let stall = world.stall();
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, _) = fixture.enter();
    // At once and with no turn between, so that both wait together.
    let sent = fixture.try_send(peer, &[b'x'; 120_000]).unwrap();
    fixture.reset(peer);
    stall(millis(20));
    let closed = fixture.closed();
    assert_eq!(closed.bytes_in, sent as u64, "{closed:?}");
    fixture.expect_service();
}

fn shutdown_write_in_on_active_does_not_lose_the_input<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_active(|conn, _| conn.shutdown_write()).when_data(
        |conn, session, input| {
            input.clear();
            if session.step == 0 {
                conn.write(b"k");
            }
            session.step += 1;
        },
    );
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.expect(peer, b"k");
    fixture.saw(number, What::Idle);
    fixture.send(peer, b"yy");
    fixture.saw(number, What::Data(2));
    fixture.leave(peer);
    fixture.closed();
    fixture.expect_service();
}
