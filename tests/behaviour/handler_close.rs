//! A handler may close or abort any connection from any callback, once or twice.

use std::cell::RefCell;
use std::rc::Rc;

use wheelhouse::{CloseReason, Config, ConnId, State, Timeout};

use crate::harness::{Fixture, Got, RecordingHandler, What, World, millis};

behaviours! {
    everywhere {
        on_open_may_refuse
        on_open_may_close
        on_connected_may_close
        on_data_may_close
        on_idle_may_close
        on_active_may_close
        on_eof_may_close
        on_timer_may_close
        on_drained_may_close
        a_close_in_on_closing_changes_nothing
        on_open_may_abort
        closing_twice_is_closing_once
        closing_again_keeps_what_is_queued
        abort_after_close_drops_what_was_queued
        abort_reaches_a_connection_that_is_closing
        a_connection_may_close_another
        a_connection_may_write_to_another
        a_connection_may_close_all_others
        a_connection_may_write_to_all_others
        what_is_written_after_close_is_counted_as_unsent
        what_is_written_after_abort_is_counted_as_unsent
        writes_in_on_closing_after_abort_are_dropped
        the_id_of_a_closed_connection_resolves_to_none
        a_closed_connection_is_gone_in_its_own_on_closed
        on_closed_may_shut_down
    }
    over_tcp {
        abort_sends_nothing_more_though_there_is_room
    }
}

/// Closes the first connection from the callback it is called in.
fn closes_first(number: usize) -> bool {
    number == 0
}

fn on_open_may_refuse<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_open(|_, number| !closes_first(number));
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_eof(peer);
    assert_eq!(fixture.handler.story(0), [What::Open]);
    let stats = fixture.reactor.handle().stats();
    assert_eq!((stats.refused, stats.connections, stats.closed_total()), (1, 0, 0));
    fixture.expect_service();
}

fn on_open_may_close<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if closes_first(number) {
            conn.write(b"busy");
            conn.close();
            assert!(conn.is_closing());
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    assert_eq!(fixture.read_to_end(peer), (b"busy".to_vec(), Got::Eof));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::HandlerClose);
    fixture.expect_service();
}

fn on_open_may_abort<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if closes_first(number) {
            conn.abort();
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_reset(peer);
    fixture.expect_closed(CloseReason::HandlerAbort);
    fixture.expect_service();
}

fn on_connected_may_close<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_connected(|conn, session| {
        if closes_first(session.number) {
            conn.close();
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_eof(peer);
    fixture.expect_closed(CloseReason::HandlerClose);
    fixture.expect_service();
}

fn on_data_may_close<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, _| {
        conn.write(b"bye");
        conn.close();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"left unread");
    assert_eq!(fixture.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::HandlerClose);
    assert_eq!(fixture.handler.count(0, What::Data(11)), 1, "it reads no more");
    fixture.expect_service();
}

fn on_idle_may_close<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_idle(|conn, _| {
        assert_eq!(conn.state(), State::Idle);
        conn.close();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"hello");
    assert_eq!(fixture.read_to_end(peer), (b"hello".to_vec(), Got::Eof));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::HandlerClose);
    fixture.expect_service();
}

fn on_active_may_close<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_active(|conn, _| conn.close());
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_echo(peer);
    fixture.saw(0, What::Idle);
    fixture.send(peer, b"again");
    fixture.expect_eof(peer);
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::HandlerClose);
    fixture.expect_service();
}

fn on_eof_may_close<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_eof(|conn, _, _| conn.close());
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"hello");
    fixture.half_close(peer);
    assert_eq!(fixture.read_to_end(peer), (b"hello".to_vec(), Got::Eof));
    fixture.expect_closed(CloseReason::HandlerClose);
    fixture.expect_service();
}

fn on_timer_may_close<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo()
        .when_connected(|conn, session| {
            if closes_first(session.number) {
                conn.set_timer(conn.now() + millis(30));
            }
        })
        .when_timer(|conn, _| conn.close());
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_eof(peer);
    fixture.expect_closed(CloseReason::HandlerClose);
    fixture.expect_service();
}

const LARGE: usize = 4 << 20;

/// Answers each read with more than a socket holds.
fn large_reply() -> RecordingHandler {
    RecordingHandler::replying(b'l', LARGE)
}

fn on_drained_may_close<W: World>(world: &mut W) {
    let handler = large_reply().when_drained(|conn, _| {
        conn.write(b"bye");
        conn.close();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    let (bytes, end) = fixture.read_to_end(peer);
    assert_eq!((bytes.len(), end), (LARGE + 3, Got::Eof));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::HandlerClose);
    fixture.expect_service();
}

fn a_close_in_on_closing_changes_nothing<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_closing(|conn, _, _| {
        assert_eq!(conn.state(), State::Closing);
        conn.close();
        conn.close();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"hello");
    fixture.half_close(peer);
    assert_eq!(fixture.read_to_end(peer), (b"hello".to_vec(), Got::Eof));
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn closing_twice_is_closing_once<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        conn.write(input);
        input.clear();
        conn.close();
        conn.close();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"hello");
    assert_eq!(fixture.read_to_end(peer), (b"hello".to_vec(), Got::Eof));
    // In the state that the first one brought about, too.
    fixture.with(0, |conn| conn.close());
    fixture.turn();
    fixture.expect_none_closed();
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::HandlerClose);
    assert_eq!(fixture.handler.count(0, What::Closing(CloseReason::HandlerClose)), 1);
    fixture.expect_service();
}

fn closing_again_keeps_what_is_queued<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write_bytes(vec![b'q'; LARGE]);
        conn.close();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Closing(CloseReason::HandlerClose));
    fixture.with(0, |conn| conn.close());
    let (bytes, end) = fixture.read_to_end(peer);
    assert_eq!((bytes.len(), end), (LARGE, Got::Eof));
    fixture.leave(peer);
    assert_eq!(fixture.expect_closed(CloseReason::HandlerClose).unsent, 0);
    fixture.expect_service();
}

fn abort_after_close_drops_what_was_queued<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write_bytes(vec![b'q'; LARGE]);
        conn.close();
        conn.abort();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    let closed = fixture.expect_closed(CloseReason::HandlerAbort);
    assert!(closed.unsent > 0);
    assert_eq!(closed.bytes_out + closed.unsent, LARGE as u64);
    let (bytes, end) = fixture.read_to_end(peer);
    assert!(bytes.len() < LARGE);
    fixture.assert_reset(end);
    fixture.expect_service();
}

fn abort_reaches_a_connection_that_is_closing<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write_bytes(vec![b'q'; LARGE]);
        conn.close();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Closing(CloseReason::HandlerClose));
    fixture.with(0, |conn| conn.abort());
    // The reason is the first one.
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert!(closed.unsent > 0);
    let (bytes, end) = fixture.read_to_end(peer);
    assert!(bytes.len() < LARGE);
    fixture.assert_reset(end);
    fixture.expect_service();
}

/// The connection on which connection 1 acts when it reads something.
fn first_id() -> (Rc<RefCell<Option<ConnId>>>, RecordingHandler) {
    let first = Rc::new(RefCell::new(None));
    let kept = Rc::clone(&first);
    let handler = RecordingHandler::echo().when_connected(move |conn, session| {
        if session.number == 0 {
            *kept.borrow_mut() = Some(conn.id());
        }
    });
    (first, handler)
}

fn a_connection_may_close_another<W: World>(world: &mut W) {
    let (first, handler) = first_id();
    let handler = handler.when_data(move |conn, _, input| {
        input.clear();
        let first = first.borrow().unwrap();
        let mut other = conn.other(first).unwrap();
        other.write(b"bye");
        other.close();
        conn.write(b"done");
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (victim, _) = fixture.enter();
    let (actor, _) = fixture.enter();
    fixture.send(actor, b"x");
    fixture.expect(actor, b"done");
    assert_eq!(fixture.read_to_end(victim), (b"bye".to_vec(), Got::Eof));
    fixture.leave(victim);
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert_eq!(closed.id, fixture.handler.ids[0]);
    fixture.expect_service();
}

fn a_connection_may_write_to_another<W: World>(world: &mut W) {
    let (first, handler) = first_id();
    let handler = handler.when_data(move |conn, _, input| {
        let first = first.borrow().unwrap();
        let mut other = conn.other(first).unwrap();
        other.write(input);
        assert_eq!(other.queued(), input.len());
        input.clear();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (listener, _) = fixture.enter();
    let (talker, _) = fixture.enter();
    for word in [&b"one"[..], b"two"] {
        fixture.send(talker, word);
        fixture.expect(listener, word);
    }
    // An id of one's own is as good.
    fixture.send(listener, b"three");
    fixture.expect(listener, b"three");
    fixture.expect_service();
}

fn a_connection_may_close_all_others<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        for id in conn.cx().ids() {
            conn.other(id).unwrap().close();
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peers: Vec<_> = (0..30).map(|_| fixture.enter().0).collect();
    fixture.send(peers[7], b"x");
    for peer in peers {
        fixture.expect_eof(peer);
        fixture.expect_closed(CloseReason::HandlerClose);
    }
    fixture.expect_service();
}

fn a_connection_may_write_to_all_others<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        let word = input.split().freeze();
        for id in conn.cx().ids() {
            conn.other(id).unwrap().write_bytes(word.clone());
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peers: Vec<_> = (0..30).map(|_| fixture.enter().0).collect();
    for (speaker, len) in [(3, 5), (29, 10_000), (0, 60_000)] {
        let word = vec![b'w'; len];
        fixture.send(peers[speaker], &word);
        for peer in &peers {
            fixture.expect(*peer, &word);
        }
    }
    fixture.expect_service();
}

fn what_is_written_after_close_is_counted_as_unsent<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write(b"bye");
        conn.close();
        conn.write(b"more");
        conn.write_bytes(vec![0; 10_000]);
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    assert_eq!(fixture.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert_eq!((closed.bytes_out, closed.unsent), (3, 10_004));
    assert_eq!(fixture.reactor.handle().stats().unsent, 10_004);
    fixture.expect_service();
}

fn what_is_written_after_abort_is_counted_as_unsent<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.abort();
        conn.write(b"more");
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.expect_reset(peer);
    let closed = fixture.expect_closed(CloseReason::HandlerAbort);
    assert_eq!((closed.bytes_out, closed.unsent), (0, 4));
    fixture.expect_service();
}

fn writes_in_on_closing_after_abort_are_dropped<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo()
        .when_data(|conn, _, input| {
            input.clear();
            conn.abort();
        })
        .when_closing(|conn, _, reason| {
            assert_eq!(*reason, CloseReason::HandlerAbort);
            conn.write(b"last words");
        });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.expect_reset(peer);
    let closed = fixture.expect_closed(CloseReason::HandlerAbort);
    assert_eq!((closed.bytes_out, closed.unsent), (0, 10));
    fixture.expect_service();
}

fn the_id_of_a_closed_connection_resolves_to_none<W: World>(world: &mut W) {
    let (first, handler) = first_id();
    let handler = handler.when_data(move |conn, _, input| {
        input.clear();
        let first = first.borrow().unwrap();
        let gone = conn.other(first).is_none() && conn.cx().conn(first).is_none();
        conn.write(if gone { b"gone" } else { b"here" });
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, _) = fixture.enter();
    let id = fixture.handler.ids[0];
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    assert!(fixture.reactor.context().conn(id).is_none());

    let (peer, _) = fixture.enter();
    let next = fixture.handler.ids[1];
    assert_ne!(next, id);
    let place = |id: ConnId| id.to_string().split('.').next().map(str::to_owned);
    assert_eq!(place(next), place(id), "the place is filled again, or this shows nothing");
    assert!(fixture.reactor.context().conn(id).is_none());
    let handle = fixture.reactor.handle();
    handle.post_to(id, |_, conn, _| conn.write(b"for another")).unwrap();
    fixture.send(peer, b"x");
    fixture.expect(peer, b"gone");
    fixture.expect_silence(peer);
    fixture.expect_service();
}

fn a_closed_connection_is_gone_in_its_own_on_closed<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_closed(|cx, closed| {
        assert!(cx.conn(closed.id).is_none());
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, _) = fixture.enter();
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!(fixture.reactor.handle().stats().panics, 0);
    assert!(fixture.reactor.context().is_empty());
    fixture.expect_service();
}

fn on_closed_may_shut_down<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.first_byte = Some(millis(40));
    let handler = RecordingHandler::echo().when_closed(|cx, closed| {
        assert_eq!(closed.reason, CloseReason::Timeout(Timeout::FirstByte));
        cx.shutdown();
        assert!(cx.is_shutting_down());
    });
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, _) = fixture.enter();
    fixture.expect_eof(peer);
    fixture.until("the end", |fixture| fixture.reactor.is_finished());
    assert_eq!(fixture.handler.shutdowns, 1);
}

fn abort_sends_nothing_more_though_there_is_room<W: World>(world: &mut W) {
    const LEN: usize = 12 << 20;
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write_bytes(vec![b'q'; LEN]);
        conn.close();
    });
    let stall = world.stall();
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Closing(CloseReason::HandlerClose));
    for _ in 0..5 {
        fixture.turn();
    }
    // The peer makes room, and none of it is used yet.
    let (mut bytes, end) = fixture.read_to_end_as_it_is(peer);
    stall(millis(20));
    bytes.extend(fixture.read_to_end_as_it_is(peer).0);
    assert_eq!(end, Got::Nothing);
    assert!(bytes.len() < LEN);
    fixture.with(0, |conn| conn.abort());
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert_eq!(closed.bytes_out, bytes.len() as u64);
    assert_eq!(closed.bytes_out + closed.unsent, LEN as u64);
    fixture.expect_service();
}
