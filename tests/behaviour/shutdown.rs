//! The end of a server: nobody new, what is owed is given, and no later than it was told.

use std::time::Duration;

use wheelhouse::{CloseReason, Config, PostError, Reactor, State};

use crate::harness::{Got, Scene, Script, What, World, assert_same, millis};

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
        run_returns_the_handler_and_a_report
    }
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
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    scene.turn();
    assert!(!scene.reactor.is_finished());
    scene.reactor.handle().shutdown();
    scene.turn();
    assert!(scene.reactor.is_finished());
}

fn idle_connections_are_closed_at_once<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
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
    let mut scene = Scene::new(world, Config::default(), Script::echo());
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
    let mut scene = Scene::new(world, Config::default(), large_reply());
    let peer = scene.connect();
    scene.send(peer, b"x");
    scene.saw(0, What::Data(1));
    scene.reactor.handle().shutdown();
    scene.saw(0, What::Closing(CloseReason::Shutdown));
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
    let mut scene = Scene::new(world, Config::default(), script);
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
    let mut scene = Scene::new(world, Config::default(), script);
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
        let before = conn.keep_alive();
        conn.cx().shutdown();
        assert!(before && !conn.keep_alive());
        conn.write(b"bye");
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let peer = scene.connect();
    scene.send(peer, b"x");
    assert_eq!(scene.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    scene.leave(peer);
    end(&mut scene);
    scene.expect_closed(CloseReason::Shutdown);
}

fn a_handle_outlives_its_reactor<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
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

fn run_returns_the_handler_and_a_report<W: World>(world: &mut W) {
    let backend = world.backend();
    let mut reactor: Reactor<Script, _> =
        Reactor::with_backend(Config::default(), backend).unwrap();
    let listener = reactor.listen(world.address()).unwrap();
    let address = reactor.local_addr(listener).clone();
    let script = Script::echo().when_alarm(|cx, _| cx.shutdown());
    let mut cx = reactor.context();
    let at = cx.now() + millis(100);
    cx.set_alarm(at);
    let mut peers = [(); 2].map(|()| world.connect(&address, None));
    assert_eq!(world.send(&mut peers[0], b"hello"), Some(5));

    let (script, report) = reactor.run(script).unwrap();
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
    let mut scene = Scene::new(world, Config::default(), large_reply());
    let address = scene.address.clone();
    let peer = scene.connect();
    scene.send(peer, b"x");
    scene.saw(0, What::Data(1));
    scene.reactor.handle().shutdown();
    scene.saw(0, What::Closing(CloseReason::Shutdown));
    // Another server asks for those who still come.
    let mut next: Reactor<Script, _> =
        Reactor::with_backend(Config::default(), scene.world.backend()).unwrap();
    next.listen(address).unwrap();
    scene.read(peer, LARGE);
    scene.leave(peer);
    end(&mut scene);
}

fn a_second_call_drops_what_is_queued<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), large_reply());
    let peer = scene.connect_small();
    scene.send(peer, b"x");
    scene.saw(0, What::Data(1));
    let handle = scene.reactor.handle();
    handle.shutdown();
    scene.saw(0, What::Closing(CloseReason::Shutdown));
    scene.wait(millis(30));
    assert!(!scene.reactor.is_finished());
    handle.shutdown();
    let start = scene.now();
    end(&mut scene);
    let took = scene.now() - start;
    assert!(took < Duration::from_secs(1), "{took:?}");
    // The reason is the first one.
    let closed = scene.expect_closed(CloseReason::Shutdown);
    assert!(closed.unsent > 0);
    let (bytes, end_of_it) = scene.read_to_end_as_it_is(peer);
    assert!(bytes.len() < LARGE);
    scene.assert_reset(end_of_it);
}

fn a_shutdown_ends_by_its_deadline<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.shutdown_timeout = Some(millis(150));
    let mut scene = Scene::new(world, config, large_reply());
    let frozen = scene.connect_small();
    scene.send(frozen, b"x");
    scene.saw(0, What::Data(1));
    let start = scene.now();
    scene.reactor.handle().shutdown();
    end(&mut scene);
    scene.assert_took(start, millis(150));
    assert!(scene.expect_closed(CloseReason::Shutdown).unsent > 0);
}

fn a_shutdown_does_not_wait_for_who_lingers<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, _, input| {
        conn.write(input);
        conn.close();
    });
    let mut config = Config::default();
    config.shutdown_timeout = Some(millis(150));
    let mut scene = Scene::new(world, config, script);
    let peer = scene.connect();
    scene.send(peer, b"bye");
    assert_eq!(scene.read_to_end(peer), (b"bye".to_vec(), Got::Eof));
    let start = scene.now();
    scene.reactor.handle().shutdown();
    end(&mut scene);
    let took = scene.now() - start;
    assert!(took < millis(650), "{took:?}");
    scene.expect_closed(CloseReason::Local);
}

fn two_calls_at_once_are_a_hard_stop<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), large_reply());
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
    let mut scene = Scene::new(world, Config::default(), large_reply());
    let peer = scene.connect_small();
    scene.send(peer, b"x");
    scene.saw(0, What::Data(1));
    scene.reactor.context().shutdown();
    scene.saw(0, What::Closing(CloseReason::Shutdown));
    scene.wait(millis(30));
    assert!(!scene.reactor.is_finished());
    scene.reactor.handle().shutdown();
    let start = scene.now();
    end(&mut scene);
    let took = scene.now() - start;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(scene.expect_closed(CloseReason::Shutdown).unsent > 0);
    assert_eq!(scene.script.shutdowns, 1);
}
