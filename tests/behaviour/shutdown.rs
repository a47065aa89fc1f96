//! The end of a server: it accepts nothing new, serves what it owes, and ends by its deadline.

use wheelhouse::{CloseReason, Config, ListenConfig, PostError, Reactor, State};

use crate::harness::{
    Fixture, Got, RecordingHandler, What, World, assert_same, few_places, millis, secs,
};

behaviours! {
    everywhere {
        a_server_without_connections_ends_at_once
        idle_connections_are_closed_at_once
        a_shutdown_closes_connections_that_sent_nothing
        what_is_queued_is_flushed_first
        a_final_reply_in_on_closing_is_sent
        on_shutdown_comes_once_and_first
        no_connection_is_kept_alive_during_a_shutdown
        a_handle_outlives_its_reactor
        an_active_connection_is_served_to_the_end
        a_request_that_is_arriving_is_served
        idle_connections_are_closed_over_the_spread
        a_connection_that_waits_in_the_backlog_is_accepted
        exempt_listeners_are_closed_last
        a_hard_stop_reaches_active_connections
        dialled_connections_last_as_long_as_they_may_be_needed
    }
    over_tcp {
        a_shutdown_frees_the_address_for_the_next_server
        a_second_call_drops_what_is_queued
        a_shutdown_ends_by_its_deadline
        a_shutdown_does_not_wait_for_lingering_connections
        two_calls_at_once_are_a_hard_stop
        a_second_call_from_elsewhere_is_a_hard_stop
    }
    in_real_time {
        run_returns_a_report
    }
}

/// Idle connections are closed at once.
fn at_once() -> Config {
    let mut config = few_places();
    config.shutdown_spread = None;
    config
}

const LARGE: usize = 4 << 20;

fn end<W: World>(fixture: &mut Fixture<'_, W>) {
    fixture.until("the end", |fixture| fixture.reactor.is_finished());
}

fn a_server_without_connections_ends_at_once<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::echo());
    fixture.turn();
    assert!(!fixture.reactor.is_finished());
    fixture.reactor.handle().shutdown();
    fixture.turn();
    assert!(fixture.reactor.is_finished());
}

fn idle_connections_are_closed_at_once<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::echo());
    let peers: Vec<_> = (0..10).map(|_| fixture.enter()).collect();
    for (peer, number) in &peers {
        fixture.expect_echo(*peer);
        fixture.saw(*number, What::Idle);
    }
    let start = fixture.now();
    fixture.reactor.handle().shutdown();
    end(&mut fixture);
    let took = fixture.now() - start;
    assert!(took < secs(1), "{took:?}");
    for (peer, _) in peers {
        fixture.expect_closed(CloseReason::Shutdown);
        assert_eq!(fixture.read_to_end_as_it_is(peer), (Vec::new(), Got::Eof));
    }
}

fn a_shutdown_closes_connections_that_sent_nothing<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::echo());
    let (peer, _) = fixture.enter();
    let start = fixture.now();
    fixture.reactor.handle().shutdown();
    end(&mut fixture);
    let took = fixture.now() - start;
    assert!(took < secs(1), "{took:?}");
    fixture.expect_closed(CloseReason::Shutdown);
    assert_eq!(fixture.read_to_end_as_it_is(peer), (Vec::new(), Got::Eof));
}

fn what_is_queued_is_flushed_first<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::replying(b'l', LARGE));
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Data(1));
    fixture.reactor.handle().shutdown();
    fixture.until("the end to begin", |fixture| fixture.handler.shutdowns == 1);
    fixture.wait(millis(100));
    fixture.expect_none_closed();
    let (bytes, end_of_it) = fixture.read_to_end(peer);
    assert_same(&bytes, &vec![b'l'; LARGE]);
    assert_eq!(end_of_it, Got::Eof);
    fixture.leave(peer);
    end(&mut fixture);
    assert_eq!(fixture.expect_closed(CloseReason::Shutdown).unsent, 0);
}

fn a_final_reply_in_on_closing_is_sent<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_closing(|conn, _, reason| {
        assert_eq!(*reason, CloseReason::Shutdown);
        conn.write(b"closing time");
    });
    let mut fixture = Fixture::new(world, at_once(), handler);
    let (peer, number) = fixture.enter();
    fixture.expect_echo(peer);
    fixture.saw(number, What::Idle);
    fixture.reactor.context().shutdown();
    assert_eq!(fixture.read_to_end(peer), (b"closing time".to_vec(), Got::Eof));
    fixture.leave(peer);
    end(&mut fixture);
    assert_eq!(fixture.expect_closed(CloseReason::Shutdown).bytes_out, 17);
}

fn on_shutdown_comes_once_and_first<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_shutdown(|cx| {
        assert!(cx.is_shutting_down());
        for id in cx.ids() {
            let mut conn = cx.conn(id).unwrap();
            assert_ne!(conn.state(), State::Closing);
            conn.write(b"end");
        }
    });
    let mut fixture = Fixture::new(world, at_once(), handler);
    let (peer, _) = fixture.enter();
    fixture.reactor.handle().shutdown();
    assert_eq!(fixture.read_to_end(peer), (b"end".to_vec(), Got::Eof));
    fixture.leave(peer);
    end(&mut fixture);
    assert_eq!(fixture.handler.shutdowns, 1);
    assert_eq!(fixture.reactor.handle().stats().panics, 0);
}

fn no_connection_is_kept_alive_during_a_shutdown<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        let before = conn.decide_keep_alive(0).stays();
        conn.cx().shutdown();
        assert!(before && !conn.decide_keep_alive(0).stays());
        conn.write(b"bye");
    });
    let mut fixture = Fixture::new(world, at_once(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    assert_eq!(fixture.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    fixture.leave(peer);
    end(&mut fixture);
    fixture.expect_closed(CloseReason::Shutdown);
}

fn a_handle_outlives_its_reactor<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::echo());
    let handle = fixture.reactor.handle();
    let (peer, _) = fixture.enter();
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    drop(fixture);
    assert_eq!(handle.post(|_, _| {}), Err(PostError::Stopped));
    assert_eq!(handle.try_post(|_, _| {}), Err(PostError::Stopped));
    handle.shutdown();
    assert_eq!(handle.stats().closed_total(), 1);
}

fn run_returns_a_report<W: World>(world: &mut W) {
    let backend = world.backend();
    let mut reactor: Reactor<RecordingHandler, _> =
        Reactor::with_backend(at_once(), backend).unwrap();
    let listener = reactor.listen(world.address()).unwrap();
    let address = reactor.local_addr(listener).clone();
    let mut handler = RecordingHandler::echo().when_alarm(|cx, _| cx.shutdown());
    let mut cx = reactor.context();
    let at = cx.now() + millis(100);
    cx.set_alarm(at);
    let mut peers = [(); 2].map(|()| world.connect(&address, None));
    assert_eq!(world.send(&mut peers[0], b"hello"), Some(5));

    let report = reactor.run(&mut handler).unwrap();
    assert_eq!(handler.faults, Vec::<String>::new());
    assert_eq!((handler.ids.len(), handler.closed.len()), (2, 2));
    assert!(report.uptime >= millis(100) && report.uptime < secs(5), "{report:?}");
    assert!(report.shutdown <= report.uptime);
    assert_eq!((report.stats.accepted, report.stats.connections), (2, 0));
    assert_eq!(report.to_string(), "closed=2 shutdown=2");
    let mut buffer = [0; 10];
    assert_eq!(world.receive(&mut peers[0], &mut buffer), Got::Bytes(5));
    assert_eq!(world.receive(&mut peers[0], &mut buffer), Got::Eof);
    assert_eq!(world.receive(&mut peers[1], &mut buffer), Got::Eof);
}

fn a_shutdown_frees_the_address_for_the_next_server<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::replying(b'l', LARGE));
    let address = fixture.address.clone();
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Data(1));
    fixture.reactor.handle().shutdown();
    fixture.until("the end to begin", |fixture| fixture.handler.shutdowns == 1);
    // Another server listens for the connections that still come.
    let mut next: Reactor<RecordingHandler, _> =
        Reactor::with_backend(few_places(), fixture.world.backend()).unwrap();
    next.listen(address).unwrap();
    fixture.read(peer, LARGE);
    fixture.leave(peer);
    end(&mut fixture);
}

fn a_second_call_drops_what_is_queued<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::replying(b'l', LARGE));
    let peer = fixture.connect_small();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Data(1));
    let handle = fixture.reactor.handle();
    handle.shutdown();
    fixture.until("the end to begin", |fixture| fixture.handler.shutdowns == 1);
    fixture.wait(millis(30));
    assert!(!fixture.reactor.is_finished());
    handle.shutdown();
    let start = fixture.now();
    end(&mut fixture);
    let took = fixture.now() - start;
    assert!(took < secs(1), "{took:?}");
    let closed = fixture.expect_closed(CloseReason::HardStop);
    assert!(closed.unsent > 0);
    let (bytes, end_of_it) = fixture.read_to_end_as_it_is(peer);
    assert!(bytes.len() < LARGE);
    fixture.assert_reset(end_of_it);
}

fn a_shutdown_ends_by_its_deadline<W: World>(world: &mut W) {
    let config = Config { shutdown_timeout: Some(millis(150)), ..Config::default() };
    let mut fixture = Fixture::new(world, config, RecordingHandler::replying(b'l', LARGE));
    let frozen = fixture.connect_small();
    fixture.send(frozen, b"x");
    fixture.saw(0, What::Data(1));
    let start = fixture.now();
    fixture.reactor.handle().shutdown();
    end(&mut fixture);
    fixture.assert_took(start, millis(150));
    assert!(fixture.expect_closed(CloseReason::HardStop).unsent > 0);
}

fn a_shutdown_does_not_wait_for_lingering_connections<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        conn.write(input);
        conn.close();
    });
    let config = Config { shutdown_timeout: Some(millis(150)), ..Config::default() };
    let mut fixture = Fixture::new(world, config, handler);
    let peer = fixture.connect();
    fixture.send(peer, b"bye");
    assert_eq!(fixture.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    let start = fixture.now();
    fixture.reactor.handle().shutdown();
    end(&mut fixture);
    let took = fixture.now() - start;
    assert!(took < millis(650), "{took:?}");
    fixture.expect_closed(CloseReason::HandlerClose);
}

fn two_calls_at_once_are_a_hard_stop<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::replying(b'l', LARGE));
    let peer = fixture.connect_small();
    fixture.send(peer, b"x");
    let (bystander, _) = fixture.enter();
    fixture.saw(0, What::Data(1));
    let handle = fixture.reactor.handle();
    handle.shutdown();
    handle.shutdown();
    end(&mut fixture);
    assert_eq!(fixture.handler.closed.len(), 2);
    for closed in &fixture.handler.closed {
        assert_eq!(closed.reason, CloseReason::HardStop);
    }
    assert_eq!(fixture.handler.shutdowns, 1);
    for peer in [peer, bystander] {
        let (_, end_of_it) = fixture.read_to_end_as_it_is(peer);
        fixture.assert_reset(end_of_it);
    }
}

fn a_second_call_from_elsewhere_is_a_hard_stop<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::replying(b'l', LARGE));
    let peer = fixture.connect_small();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Data(1));
    fixture.reactor.context().shutdown();
    fixture.until("the end to begin", |fixture| fixture.handler.shutdowns == 1);
    fixture.wait(millis(30));
    assert!(!fixture.reactor.is_finished());
    fixture.reactor.handle().shutdown();
    let start = fixture.now();
    end(&mut fixture);
    let took = fixture.now() - start;
    assert!(took < secs(1), "{took:?}");
    assert!(fixture.expect_closed(CloseReason::HardStop).unsent > 0);
    assert_eq!(fixture.handler.shutdowns, 1);
}

fn an_active_connection_is_served_to_the_end<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::owing());
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"question");
    fixture.saw(number, What::Data(8));
    fixture.reactor.handle().shutdown();
    fixture.wait(millis(100));
    fixture.expect_none_closed();
    fixture.with(number, |conn| {
        assert!(!conn.decide_keep_alive(0).stays());
        conn.write(b"answer");
        conn.end_request();
    });
    assert_eq!(fixture.read_to_end(peer), (b"answer".to_vec(), Got::Eof));
    fixture.leave(peer);
    end(&mut fixture);
    assert_eq!(fixture.expect_closed(CloseReason::Shutdown).unsent, 0);
}

fn a_request_that_is_arriving_is_served<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        if input.ends_with(b"\n") {
            conn.write(input);
            input.clear();
        }
    });
    let mut fixture = Fixture::new(world, at_once(), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"half ");
    fixture.saw(number, What::Data(5));
    fixture.reactor.handle().shutdown();
    fixture.wait(millis(50));
    fixture.send(peer, b"and half\n");
    assert_eq!(fixture.read_to_end(peer), (b"half and half\n".to_vec(), Got::Eof));
    fixture.leave(peer);
    end(&mut fixture);
    fixture.expect_closed(CloseReason::Shutdown);
}

fn idle_connections_are_closed_over_the_spread<W: World>(world: &mut W) {
    let config = Config { shutdown_spread: Some(secs(2)), ..Config::default() };
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    let peers: Vec<_> = (0..20).map(|_| fixture.enter()).collect();
    for (peer, number) in &peers[..10] {
        fixture.expect_echo(*peer);
        fixture.saw(*number, What::Idle);
    }
    let start = fixture.now();
    fixture.reactor.handle().shutdown();
    fixture.wait(millis(900));
    // Within a second of its last reply no connection is closed, and a request still is served.
    fixture.expect_none_closed();
    let (late, _) = peers[0];
    fixture.send(late, b"again");
    assert_eq!(fixture.read_to_end(late), (b"again".to_vec(), Got::Eof));
    fixture.leave(late);
    end(&mut fixture);
    let took = fixture.now() - start;
    assert!(took < millis(2_500), "{took:?}");
    let ends: Vec<_> = fixture.handler.closed.iter().map(|it| it.opened_at + it.age).collect();
    assert_eq!(ends.len(), 20);
    let spread = *ends.iter().max().unwrap() - *ends.iter().min().unwrap();
    assert!(spread >= millis(300), "all at once: {spread:?}");
    for _ in 0..20 {
        fixture.expect_closed(CloseReason::Shutdown);
    }
}

fn a_connection_that_waits_in_the_backlog_is_accepted<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let peers: Vec<_> = (0..40).map(|_| fixture.connect()).collect();
    for peer in &peers {
        fixture.send(*peer, b"hello");
    }
    fixture.reactor.handle().shutdown();
    for peer in &peers {
        fixture.expect(*peer, b"hello");
        fixture.leave(*peer);
    }
    end(&mut fixture);
    assert_eq!(fixture.handler.ids.len(), 40);
}

fn exempt_listeners_are_closed_last<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::owing());
    let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
    let listener = fixture.reactor.listen_with(fixture.world.address(), listen).unwrap();
    let address = fixture.reactor.local_addr(listener).clone();
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"question");
    fixture.saw(number, What::Data(8));
    fixture.reactor.handle().shutdown();
    fixture.wait(millis(50));
    let exempt_peer = fixture.connect_to(&address);
    fixture.saw(1, What::Connected);
    assert!(!fixture.reactor.is_finished());
    fixture.with(number, |conn| conn.end_request());
    assert_eq!(fixture.read_to_end(peer), (Vec::new(), Got::Eof));
    fixture.leave(peer);
    assert_eq!(fixture.read_to_end(exempt_peer), (Vec::new(), Got::Eof));
    end(&mut fixture);
    assert_eq!(fixture.reactor.handle().stats().closed_total(), 2);
}

fn a_hard_stop_reaches_active_connections<W: World>(world: &mut W) {
    let mut config = at_once();
    config.shutdown_timeout = Some(millis(200));
    let mut fixture = Fixture::new(world, config, RecordingHandler::owing());
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"question");
    fixture.saw(number, What::Data(8));
    let start = fixture.now();
    fixture.reactor.handle().shutdown();
    end(&mut fixture);
    fixture.assert_took(start, millis(200));
    fixture.expect_closed(CloseReason::HardStop);
}

fn dialled_connections_last_as_long_as_they_may_be_needed<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, at_once(), RecordingHandler::owing());
    let (mut listener, address) = fixture.world.listen_as_peer();
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"question");
    fixture.saw(number, What::Data(8));
    fixture.reactor.context().connect(address).unwrap();
    let upstream = fixture.answer(&mut listener);
    fixture.saw(1, What::Idle);
    fixture.reactor.handle().shutdown();
    fixture.wait(millis(200));
    fixture.expect_none_closed();
    fixture.with(number, |conn| conn.end_request());
    assert_eq!(fixture.read_to_end(peer), (Vec::new(), Got::Eof));
    fixture.leave(peer);
    assert_eq!(fixture.read_to_end(upstream), (Vec::new(), Got::Eof));
    end(&mut fixture);
}
