//! The end of a server: nobody new, what is owed is given, and no later than it was told.

use std::time::Duration;

use wheelhouse::{CloseReason, Config, ListenConfig, PostError, Reactor, State};

use crate::harness::{Got, Scene, Script, What, World, assert_same, few_places, millis};

behaviours! {
    everywhere {
        a_server_without_connections_ends_at_once
        idle_connections_are_closed_at_once
        a_shutdown_closes_whoever_said_nothing
        what_is_queued_is_flushed_first
        last_words_are_sent
        the_handler_is_told_once_and_first
        nobody_is_kept_alive_during_a_shutdown
        a_handle_outlives_its_reactor
        who_is_active_is_served_to_the_end
        a_request_that_is_arriving_is_served
        idle_ones_are_closed_over_a_while
        who_waits_in_the_backlog_is_let_in
        exempt_listeners_are_the_last_to_go
        a_hard_stop_reaches_who_is_active
        dialled_connections_last_as_long_as_they_may_be_needed
    }
    over_tcp {
        nobody_new_is_let_in
        a_second_call_drops_what_is_queued
        a_shutdown_ends_by_its_deadline
        a_shutdown_does_not_wait_for_who_lingers
        two_calls_at_once_are_a_hard_stop
        a_second_call_from_elsewhere_is_a_hard_stop
    }
    in_real_time {
        run_returns_a_report
    }
}

/// Nobody idle is waited for.
fn at_once() -> Config {
    let mut config = few_places();
    config.shutdown_spread = None;
    config
}

const LARGE: usize = 4 << 20;

fn large_reply() -> Script {
    Script::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write_bytes(vec![b'l'; LARGE]);
    })
}

fn end<W: World>(scene: &mut Scene<'_, W>) {
    scene.until("the end", |scene| scene.reactor.is_finished());
}

fn a_server_without_connections_ends_at_once<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), Script::echo());
    scene.turn();
    assert!(!scene.reactor.is_finished());
    scene.reactor.handle().shutdown();
    scene.turn();
    assert!(scene.reactor.is_finished());
}

fn idle_connections_are_closed_at_once<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), Script::echo());
    let peers: Vec<_> = (0..10).map(|_| scene.enter()).collect();
    for (peer, number) in &peers {
        scene.send(*peer, b"hello");
        scene.expect(*peer, b"hello");
        scene.saw(*number, What::Idle);
    }
    let start = scene.now();
    scene.reactor.handle().shutdown();
    end(&mut scene);
    let took = scene.now() - start;
    assert!(took < Duration::from_secs(1), "{took:?}");
    for (peer, _) in peers {
        scene.expect_closed(CloseReason::Shutdown);
        assert_eq!(scene.read_to_end_as_it_is(peer), (Vec::new(), Got::Eof));
    }
}

fn a_shutdown_closes_whoever_said_nothing<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), Script::echo());
    let (peer, _) = scene.enter();
    let start = scene.now();
    scene.reactor.handle().shutdown();
    end(&mut scene);
    let took = scene.now() - start;
    assert!(took < Duration::from_secs(1), "{took:?}");
    scene.expect_closed(CloseReason::Shutdown);
    assert_eq!(scene.read_to_end_as_it_is(peer), (Vec::new(), Got::Eof));
}

fn what_is_queued_is_flushed_first<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), large_reply());
    let peer = scene.connect();
    scene.send(peer, b"x");
    scene.saw(0, What::Data(1));
    scene.reactor.handle().shutdown();
    scene.until("the end to begin", |scene| scene.script.shutdowns == 1);
    scene.wait(millis(100));
    scene.expect_none_closed();
    let (bytes, end_of_it) = scene.read_to_end(peer);
    assert_same(&bytes, &vec![b'l'; LARGE]);
    assert_eq!(end_of_it, Got::Eof);
    scene.leave(peer);
    end(&mut scene);
    assert_eq!(scene.expect_closed(CloseReason::Shutdown).unsent, 0);
}

fn last_words_are_sent<W: World>(world: &mut W) {
    let script = Script::echo().when_closing(|conn, _, reason| {
        assert_eq!(*reason, CloseReason::Shutdown);
        conn.write(b"closing time");
    });
    let mut scene = Scene::new(world, at_once(), script);
    let (peer, number) = scene.enter();
    scene.send(peer, b"hello");
    scene.expect(peer, b"hello");
    scene.saw(number, What::Idle);
    scene.reactor.context().shutdown();
    assert_eq!(scene.read_to_end(peer), (b"closing time".to_vec(), Got::Eof));
    scene.leave(peer);
    end(&mut scene);
    assert_eq!(scene.expect_closed(CloseReason::Shutdown).bytes_out, 17);
}

fn the_handler_is_told_once_and_first<W: World>(world: &mut W) {
    let script = Script::echo().when_shutdown(|cx| {
        assert!(cx.is_shutting_down());
        for id in cx.ids() {
            let mut conn = cx.conn(id).unwrap();
            assert_ne!(conn.state(), State::Closing);
            conn.write(b"told");
        }
    });
    let mut scene = Scene::new(world, at_once(), script);
    let (peer, _) = scene.enter();
    scene.reactor.handle().shutdown();
    assert_eq!(scene.read_to_end(peer), (b"told".to_vec(), Got::Eof));
    scene.leave(peer);
    end(&mut scene);
    assert_eq!(scene.script.shutdowns, 1);
    assert_eq!(scene.reactor.handle().stats().panics, 0);
}

fn nobody_is_kept_alive_during_a_shutdown<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, _, input| {
        input.clear();
        let before = conn.decide_keep_alive(0).stays();
        conn.cx().shutdown();
        assert!(before && !conn.decide_keep_alive(0).stays());
        conn.write(b"bye");
    });
    let mut scene = Scene::new(world, at_once(), script);
    let peer = scene.connect();
    scene.send(peer, b"x");
    assert_eq!(scene.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    scene.leave(peer);
    end(&mut scene);
    scene.expect_closed(CloseReason::Shutdown);
}

fn a_handle_outlives_its_reactor<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), Script::echo());
    let handle = scene.reactor.handle();
    let (peer, _) = scene.enter();
    scene.leave(peer);
    scene.expect_closed(CloseReason::PeerEof);
    drop(scene);
    assert_eq!(handle.post(|_, _| {}), Err(PostError::Stopped));
    assert_eq!(handle.try_post(|_, _| {}), Err(PostError::Stopped));
    handle.shutdown();
    assert_eq!(handle.stats().closed_total(), 1);
}

fn run_returns_a_report<W: World>(world: &mut W) {
    let backend = world.backend();
    let mut reactor: Reactor<Script, _> = Reactor::with_backend(at_once(), backend).unwrap();
    let listener = reactor.listen(world.address()).unwrap();
    let address = reactor.local_addr(listener).clone();
    let mut script = Script::echo().when_alarm(|cx, _| cx.shutdown());
    let mut cx = reactor.context();
    let at = cx.now() + millis(100);
    cx.set_alarm(at);
    let mut peers = [(); 2].map(|()| world.connect(&address, None));
    assert_eq!(world.send(&mut peers[0], b"hello"), Some(5));

    let report = reactor.run(&mut script).unwrap();
    assert_eq!(script.faults, Vec::<String>::new());
    assert_eq!((script.ids.len(), script.closed.len()), (2, 2));
    assert!(report.uptime >= millis(100) && report.uptime < Duration::from_secs(5), "{report:?}");
    assert!(report.shutdown <= report.uptime);
    assert_eq!((report.stats.accepted, report.stats.connections), (2, 0));
    assert_eq!(report.to_string(), "closed=2 shutdown=2");
    let mut buffer = [0; 10];
    assert_eq!(world.receive(&mut peers[0], &mut buffer), Got::Bytes(5));
    assert_eq!(world.receive(&mut peers[0], &mut buffer), Got::Eof);
    assert_eq!(world.receive(&mut peers[1], &mut buffer), Got::Eof);
}

fn nobody_new_is_let_in<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), large_reply());
    let address = scene.address.clone();
    let peer = scene.connect();
    scene.send(peer, b"x");
    scene.saw(0, What::Data(1));
    scene.reactor.handle().shutdown();
    scene.until("the end to begin", |scene| scene.script.shutdowns == 1);
    // Another server asks for those who still come.
    let mut next: Reactor<Script, _> =
        Reactor::with_backend(few_places(), scene.world.backend()).unwrap();
    next.listen(address).unwrap();
    scene.read(peer, LARGE);
    scene.leave(peer);
    end(&mut scene);
}

fn a_second_call_drops_what_is_queued<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), large_reply());
    let peer = scene.connect_small();
    scene.send(peer, b"x");
    scene.saw(0, What::Data(1));
    let handle = scene.reactor.handle();
    handle.shutdown();
    scene.until("the end to begin", |scene| scene.script.shutdowns == 1);
    scene.wait(millis(30));
    assert!(!scene.reactor.is_finished());
    handle.shutdown();
    let start = scene.now();
    end(&mut scene);
    let took = scene.now() - start;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let closed = scene.expect_closed(CloseReason::HardStop);
    assert!(closed.unsent > 0);
    let (bytes, end_of_it) = scene.read_to_end_as_it_is(peer);
    assert!(bytes.len() < LARGE);
    scene.assert_reset(end_of_it);
}

fn a_shutdown_ends_by_its_deadline<W: World>(world: &mut W) {
    let config = Config { shutdown_timeout: Some(millis(150)), ..Config::default() };
    let mut scene = Scene::new(world, config, large_reply());
    let frozen = scene.connect_small();
    scene.send(frozen, b"x");
    scene.saw(0, What::Data(1));
    let start = scene.now();
    scene.reactor.handle().shutdown();
    end(&mut scene);
    scene.assert_took(start, millis(150));
    assert!(scene.expect_closed(CloseReason::HardStop).unsent > 0);
}

fn a_shutdown_does_not_wait_for_who_lingers<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, _, input| {
        conn.write(input);
        conn.close();
    });
    let config = Config { shutdown_timeout: Some(millis(150)), ..Config::default() };
    let mut scene = Scene::new(world, config, script);
    let peer = scene.connect();
    scene.send(peer, b"bye");
    assert_eq!(scene.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    let start = scene.now();
    scene.reactor.handle().shutdown();
    end(&mut scene);
    let took = scene.now() - start;
    assert!(took < millis(650), "{took:?}");
    scene.expect_closed(CloseReason::HandlerClose);
}

fn two_calls_at_once_are_a_hard_stop<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), large_reply());
    let peer = scene.connect_small();
    scene.send(peer, b"x");
    let (bystander, _) = scene.enter();
    scene.saw(0, What::Data(1));
    let handle = scene.reactor.handle();
    handle.shutdown();
    handle.shutdown();
    end(&mut scene);
    assert_eq!(scene.script.closed.len(), 2);
    for closed in &scene.script.closed {
        assert_eq!(closed.reason, CloseReason::HardStop);
    }
    assert_eq!(scene.script.shutdowns, 1);
    for peer in [peer, bystander] {
        let (_, end_of_it) = scene.read_to_end_as_it_is(peer);
        scene.assert_reset(end_of_it);
    }
}

fn a_second_call_from_elsewhere_is_a_hard_stop<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), large_reply());
    let peer = scene.connect_small();
    scene.send(peer, b"x");
    scene.saw(0, What::Data(1));
    scene.reactor.context().shutdown();
    scene.until("the end to begin", |scene| scene.script.shutdowns == 1);
    scene.wait(millis(30));
    assert!(!scene.reactor.is_finished());
    scene.reactor.handle().shutdown();
    let start = scene.now();
    end(&mut scene);
    let took = scene.now() - start;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(scene.expect_closed(CloseReason::HardStop).unsent > 0);
    assert_eq!(scene.script.shutdowns, 1);
}

/// A server whose reply takes until its application ends the request.
fn slow_reply() -> Script {
    Script::echo().when_data(|conn, _, input| {
        conn.begin_request();
        input.clear();
    })
}

fn who_is_active_is_served_to_the_end<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), slow_reply());
    let (peer, number) = scene.enter();
    scene.send(peer, b"question");
    scene.saw(number, What::Data(8));
    scene.reactor.handle().shutdown();
    scene.wait(millis(100));
    scene.expect_none_closed();
    scene.with(number, |conn| {
        assert!(!conn.decide_keep_alive(0).stays());
        conn.write(b"answer");
        conn.end_request();
    });
    assert_eq!(scene.read_to_end(peer), (b"answer".to_vec(), Got::Eof));
    scene.leave(peer);
    end(&mut scene);
    assert_eq!(scene.expect_closed(CloseReason::Shutdown).unsent, 0);
}

fn a_request_that_is_arriving_is_served<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, _, input| {
        if input.ends_with(b"\n") {
            conn.write(input);
            input.clear();
        }
    });
    let mut scene = Scene::new(world, at_once(), script);
    let (peer, number) = scene.enter();
    scene.send(peer, b"half ");
    scene.saw(number, What::Data(5));
    scene.reactor.handle().shutdown();
    scene.wait(millis(50));
    scene.send(peer, b"and half\n");
    assert_eq!(scene.read_to_end(peer), (b"half and half\n".to_vec(), Got::Eof));
    scene.leave(peer);
    end(&mut scene);
    scene.expect_closed(CloseReason::Shutdown);
}

fn idle_ones_are_closed_over_a_while<W: World>(world: &mut W) {
    let config = Config { shutdown_spread: Some(Duration::from_secs(2)), ..Config::default() };
    let mut scene = Scene::new(world, config, Script::echo());
    let peers: Vec<_> = (0..20).map(|_| scene.enter()).collect();
    for (peer, number) in &peers[..10] {
        scene.send(*peer, b"hello");
        scene.expect(*peer, b"hello");
        scene.saw(*number, What::Idle);
    }
    let start = scene.now();
    scene.reactor.handle().shutdown();
    scene.wait(millis(900));
    // Within a second of its last reply nobody is closed, and a request still is served.
    scene.expect_none_closed();
    let (late, _) = peers[0];
    scene.send(late, b"again");
    assert_eq!(scene.read_to_end(late), (b"again".to_vec(), Got::Eof));
    scene.leave(late);
    end(&mut scene);
    let took = scene.now() - start;
    assert!(took < millis(2_500), "{took:?}");
    let ends: Vec<_> = scene.script.closed.iter().map(|it| it.opened_at + it.age).collect();
    assert_eq!(ends.len(), 20);
    let spread = *ends.iter().max().unwrap() - *ends.iter().min().unwrap();
    assert!(spread >= millis(300), "all at once: {spread:?}");
    for _ in 0..20 {
        scene.expect_closed(CloseReason::Shutdown);
    }
}

fn who_waits_in_the_backlog_is_let_in<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    let peers: Vec<_> = (0..40).map(|_| scene.connect()).collect();
    for peer in &peers {
        scene.send(*peer, b"hello");
    }
    scene.reactor.handle().shutdown();
    for peer in &peers {
        scene.expect(*peer, b"hello");
        scene.leave(*peer);
    }
    end(&mut scene);
    assert_eq!(scene.script.ids.len(), 40);
}

fn exempt_listeners_are_the_last_to_go<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), slow_reply());
    let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
    let listener = scene.reactor.listen_with(scene.world.address(), listen).unwrap();
    let address = scene.reactor.local_addr(listener).clone();
    let (peer, number) = scene.enter();
    scene.send(peer, b"question");
    scene.saw(number, What::Data(8));
    scene.reactor.handle().shutdown();
    scene.wait(millis(50));
    let operator = scene.connect_to(&address);
    scene.saw(1, What::Connected);
    assert!(!scene.reactor.is_finished());
    scene.with(number, |conn| conn.end_request());
    assert_eq!(scene.read_to_end(peer), (Vec::new(), Got::Eof));
    scene.leave(peer);
    assert_eq!(scene.read_to_end(operator), (Vec::new(), Got::Eof));
    end(&mut scene);
    assert_eq!(scene.reactor.handle().stats().closed_total(), 2);
}

fn a_hard_stop_reaches_who_is_active<W: World>(world: &mut W) {
    let mut config = at_once();
    config.shutdown_timeout = Some(millis(200));
    let mut scene = Scene::new(world, config, slow_reply());
    let (peer, number) = scene.enter();
    scene.send(peer, b"question");
    scene.saw(number, What::Data(8));
    let start = scene.now();
    scene.reactor.handle().shutdown();
    end(&mut scene);
    scene.assert_took(start, millis(200));
    scene.expect_closed(CloseReason::HardStop);
}

fn dialled_connections_last_as_long_as_they_may_be_needed<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, at_once(), slow_reply());
    let (mut listener, address) = scene.world.listen_as_peer();
    let (peer, number) = scene.enter();
    scene.send(peer, b"question");
    scene.saw(number, What::Data(8));
    scene.reactor.context().connect(address).unwrap();
    let upstream = scene.answer(&mut listener);
    scene.saw(1, What::Idle);
    scene.reactor.handle().shutdown();
    scene.wait(millis(200));
    scene.expect_none_closed();
    scene.with(number, |conn| conn.end_request());
    assert_eq!(scene.read_to_end(peer), (Vec::new(), Got::Eof));
    scene.leave(peer);
    assert_eq!(scene.read_to_end(upstream), (Vec::new(), Got::Eof));
    end(&mut scene);
}
