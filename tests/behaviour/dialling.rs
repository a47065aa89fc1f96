//! Connections that the server makes itself: they begin, fail and end as the others do.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use wheelhouse::{Address, CloseReason, Config, ConnectError, Origin, State, Target, Timeout};

use crate::harness::{Got, Scene, Script, What, World, assert_on_time, millis};

behaviours! {
    everywhere {
        a_dialled_connection_is_told_when_it_stands
        a_dialled_connection_is_owned_by_who_dialled_it
        what_is_written_before_it_stands_is_sent_then
        much_that_is_written_before_it_stands_is_sent_then
        a_fin_asked_for_before_it_stands_is_sent_then
        who_is_refused_learns_why
        a_dial_may_be_refused_by_on_open
        a_dial_may_be_closed_in_on_open
        a_dial_may_be_aborted_in_on_open
        a_reply_that_stalls_ends_a_dialled_connection
        a_dialled_connection_ends_with_its_peer
        a_dialled_connection_goes_idle_between_requests
        a_dial_that_fails_may_dial_again
        nobody_dials_during_a_shutdown
        a_server_may_dial_itself
        many_may_be_dialled_at_once
        a_connection_outlives_who_dialled_it
        who_is_refused_while_it_is_paused_learns_why
        who_is_refused_while_it_is_congested_learns_why
        a_dial_in_on_open_of_a_dial_may_be_written_to_at_once
        a_dial_in_on_open_of_a_dial_may_be_closed_at_once
        a_dial_that_fails_at_once_may_dial_again_and_write
    }
    over_tcp {
        a_dialled_connection_may_be_reset
        a_name_is_looked_up
        a_name_that_nobody_has_is_a_failure
        a_peer_that_does_not_answer_is_given_up
        an_attempt_that_is_not_answered_is_given_up
        a_dial_may_be_closed_while_nobody_answers
        a_shutdown_gives_up_a_dial
        a_timer_comes_while_nobody_answers
        a_name_falls_back_to_its_next_address_with_output_queued
        a_stall_in_on_open_is_not_held_against_who_is_dialled
    }
}

/// Dials from outside any callback.
fn dial<W: World>(scene: &mut Scene<'_, W>, target: impl Into<Target>) {
    scene.reactor.context().connect(target).unwrap();
}

fn a_dialled_connection_is_told_when_it_stands<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo()
        .when_open(|conn, number| {
            if number == 0 {
                assert_eq!((conn.origin(), conn.state()), (Origin::Connect, State::Connecting));
                assert_eq!(conn.owner(), None);
            }
            true
        })
        .when_connected(|conn, session| {
            if session.number == 0 {
                assert_eq!(conn.state(), State::Connected);
                assert!(conn.local_addr().is_some());
                conn.write(b"hello, server");
            }
        });
    let mut scene = Scene::new(world, Config::default(), script);
    let id = scene.reactor.context().connect(address.clone()).unwrap();
    let peer = scene.answer(&mut listener);
    scene.expect(peer, b"hello, server");
    scene.send(peer, b"hello, client");
    scene.expect(peer, b"hello, client");
    scene.leave(peer);
    let closed = scene.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.id, closed.origin, closed.peer), (id, Origin::Connect, address));
    assert_eq!(scene.script.ids[0], id);
    assert_eq!(scene.reactor.handle().stats().dialled, 1);
    assert_eq!(scene.reactor.handle().stats().panics, 0);
    scene.expect_service();
}

fn a_dialled_connection_is_owned_by_who_dialled_it<W: World>(world: &mut W) {
    // A proxy of two bytes' worth: what the client says goes out, what comes back goes to it.
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo()
        .when_connected(move |conn, session| {
            if session.number == 0 {
                conn.connect(address.clone()).unwrap();
            } else if let Some(owner) = conn.owner() {
                assert!(conn.other(owner).is_some());
                conn.write(b"from the client");
            }
        })
        .when_data(|conn, _, input| {
            let owner = conn.owner().unwrap();
            conn.other(owner).unwrap().write(input);
            input.clear();
        });
    let mut scene = Scene::new(world, Config::default(), script);
    let (client, _) = scene.enter();
    let upstream = scene.answer(&mut listener);
    scene.expect(upstream, b"from the client");
    scene.send(upstream, b"from the upstream");
    scene.expect(client, b"from the upstream");
    scene.expect_service();
}

fn what_is_written_before_it_stands_is_sent_then<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(b"early");
        }
        true
    });
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, address);
    let peer = scene.answer(&mut listener);
    scene.expect(peer, b"early");
    scene.leave(peer);
    let closed = scene.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.bytes_out, closed.unsent), (5, 0));
    scene.expect_service();
}

fn much_that_is_written_before_it_stands_is_sent_then<W: World>(world: &mut W) {
    const LEN: usize = 2 << 20;
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(b"early");
            conn.write_bytes(vec![b'l'; LEN]);
            assert!(conn.is_congested());
        }
        true
    });
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, address);
    let peer = scene.answer(&mut listener);
    scene.expect(peer, b"early");
    let bytes = scene.read(peer, LEN);
    assert!(bytes.iter().all(|byte| *byte == b'l'));
    scene.saw(0, What::Drained);
    scene.expect_service();
}

fn a_fin_asked_for_before_it_stands_is_sent_then<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(b"all there is");
            conn.shutdown_write();
        }
        true
    });
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, address);
    let peer = scene.answer(&mut listener);
    assert_eq!(scene.read_to_end(peer), (b"all there is".to_vec(), Got::Eof));
    scene.send(peer, b"thanks");
    scene.saw(0, What::Data(6));
    scene.leave(peer);
    scene.expect_closed(CloseReason::PeerEof);
    scene.expect_service();
}

fn who_is_refused_learns_why<W: World>(world: &mut W) {
    let address = world.refusing();
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    dial(&mut scene, address.clone());
    let closed = scene.closed();
    let CloseReason::ConnectFailed(error) = closed.reason else {
        panic!("{closed:?}");
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(closed.peer, address);
    let reason = closed.reason;
    assert_eq!(
        scene.script.story(0),
        [What::Open, What::Closing(reason), What::Closed(reason)],
        "it never stood"
    );
    assert_eq!(scene.reactor.handle().stats().closed(reason), 1);
    scene.expect_service();
}

fn a_dial_may_be_refused_by_on_open<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo().when_open(|_, number| number > 0);
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, address);
    scene
        .until("nobody", |scene| scene.script.ids.len() == 1 && scene.reactor.context().is_empty());
    assert_eq!(scene.script.story(0), [What::Open]);
    assert!(scene.world.answer(&mut listener).is_none());
    scene.expect_service();
}

fn a_dial_may_be_closed_in_on_open<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo().when_open(|conn, number| {
        if number == 0 {
            conn.close();
        }
        true
    });
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, address);
    scene.expect_closed(CloseReason::HandlerClose);
    assert!(scene.world.answer(&mut listener).is_none());
    scene.expect_service();
}

fn a_dial_may_be_aborted_in_on_open<W: World>(world: &mut W) {
    let (_door, address) = world.listen_as_peer();
    let script = Script::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(b"never sent");
            conn.abort();
        }
        true
    });
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, address);
    let closed = scene.expect_closed(CloseReason::HandlerAbort);
    assert_eq!((closed.bytes_out, closed.unsent), (0, 10));
    scene.expect_service();
}

fn a_reply_that_stalls_ends_a_dialled_connection<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo()
        .when_connected(|conn, session| {
            if session.number == 0 {
                conn.begin_request();
                conn.write(b"request");
            }
        })
        .when_data(|_, _, input| input.clear());
    let mut config = Config::default();
    config.timeouts.read = Some(millis(250));
    let mut scene = Scene::new(world, config, script);
    dial(&mut scene, address);
    let peer = scene.answer(&mut listener);
    scene.expect(peer, b"request");
    scene.drip(peer, b"repeat", millis(80));
    let start = scene.now();
    scene.send(peer, b"l");
    scene.saw(0, What::Closing(CloseReason::Timeout(Timeout::Read)));
    scene.assert_took(start, millis(250));
    scene.leave(peer);
    scene.expect_timeout(Timeout::Read);
    scene.expect_service();
}

fn a_dialled_connection_ends_with_its_peer<W: World>(world: &mut W) {
    // Even with a request in flight: its reply will not come.
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo().when_connected(|conn, session| {
        if session.number == 0 {
            conn.begin_request();
            conn.write(b"request");
        }
    });
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, address);
    let peer = scene.answer(&mut listener);
    scene.expect(peer, b"request");
    scene.half_close(peer);
    scene.expect_closed(CloseReason::PeerEof);
    scene.expect_eof(peer);
    scene.expect_service();
}

fn a_dialled_connection_goes_idle_between_requests<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo()
        .when_connected(|conn, session| {
            if session.number == 0 {
                conn.begin_request();
                conn.write(b"request");
            }
        })
        .when_data(|conn, _, input| {
            input.clear();
            conn.end_request();
        });
    let mut config = Config::default();
    config.timeouts.idle = Some(millis(100));
    let mut scene = Scene::new(world, config, script);
    dial(&mut scene, address);
    let peer = scene.answer(&mut listener);
    scene.expect(peer, b"request");
    scene.wait(millis(150));
    assert_eq!(scene.script.count(0, What::Idle), 0, "a reply is awaited");
    scene.send(peer, b"reply");
    let idle = scene.saw(0, What::Idle);
    scene.expect_timeout(Timeout::Idle);
    scene.assert_took(idle, millis(100));
    scene.expect_eof(peer);
    scene.expect_service();
}

fn a_dial_that_fails_may_dial_again<W: World>(world: &mut W) {
    let refusing = world.refusing();
    let (mut listener, address) = world.listen_as_peer();
    let failures = Rc::new(Cell::new(0));
    let count = Rc::clone(&failures);
    let wrong = refusing.clone();
    let script = Script::echo().when_closed(move |cx, closed| {
        if let CloseReason::ConnectFailed(_) = closed.reason {
            count.set(count.get() + 1);
            let next = if count.get() < 3 { &wrong } else { &address };
            cx.connect(next.clone()).unwrap();
        }
    });
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, refusing);
    let peer = scene.answer(&mut listener);
    scene.send(peer, b"hello");
    scene.expect(peer, b"hello");
    assert_eq!(failures.get(), 3);
    scene.script.closed.clear();
    scene.expect_service();
}

fn nobody_dials_during_a_shutdown<W: World>(world: &mut W) {
    let (_door, address) = world.listen_as_peer();
    let refused = Rc::new(Cell::new(false));
    let flag = Rc::clone(&refused);
    let script = Script::echo().when_shutdown(move |cx| {
        flag.set(cx.connect(address.clone()) == Err(ConnectError::ShuttingDown));
    });
    let mut scene = Scene::new(world, Config::default(), script);
    scene.reactor.context().shutdown();
    scene.until("the end", |scene| scene.reactor.is_finished());
    assert!(refused.get());
}

fn a_server_may_dial_itself<W: World>(world: &mut W) {
    let script = Script::echo()
        .when_connected(|conn, _| {
            if conn.origin() == Origin::Connect {
                conn.begin_request();
                conn.write(b"to myself");
            }
        })
        .when_data(|conn, _, input| {
            if conn.origin() == Origin::Connect {
                assert_eq!(&input[..], b"to myself");
                conn.end_request();
                conn.close();
            } else {
                conn.write(input);
            }
            input.clear();
        });
    let mut scene = Scene::new(world, Config::default(), script);
    let address = scene.address.clone();
    dial(&mut scene, address);
    let reasons = [scene.closed().reason, scene.closed().reason];
    assert!(reasons.contains(&CloseReason::HandlerClose), "{reasons:?}");
    assert!(reasons.contains(&CloseReason::PeerEof), "{reasons:?}");
    assert_eq!(scene.reactor.handle().stats().panics, 0);
    scene.expect_service();
}

fn many_may_be_dialled_at_once<W: World>(world: &mut W) {
    const COUNT: usize = 50;
    let script = Script::echo().when_connected(|conn, _| {
        if conn.origin() == Origin::Connect {
            conn.close();
        }
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let address = scene.address.clone();
    for _ in 0..COUNT {
        dial(&mut scene, address.clone());
    }
    scene.until("all of them", |scene| scene.script.closed.len() == 2 * COUNT);
    let stats = scene.reactor.handle().stats();
    assert_eq!((stats.dialled, stats.accepted), (COUNT as u64, COUNT as u64));
    scene.script.closed.clear();
    scene.expect_service();
}

fn a_connection_outlives_who_dialled_it<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo().when_connected(move |conn, session| {
        if session.number == 0 {
            conn.connect(address.clone()).unwrap();
        }
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let (client, _) = scene.enter();
    let upstream = scene.answer(&mut listener);
    scene.saw(1, What::Connected);
    let owner = scene.script.ids[0];
    scene.leave(client);
    assert_eq!(scene.closed().id, owner);
    scene.send(upstream, b"hello");
    scene.expect(upstream, b"hello");
    assert!(scene.with(1, |conn| conn.owner() == Some(owner) && conn.other(owner).is_none()));
    scene.expect_service();
}

fn a_shutdown_gives_up_a_dial<W: World>(world: &mut W) {
    let address = world.deaf();
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    dial(&mut scene, address);
    scene.saw(0, What::Open);
    scene.wait(millis(20));
    let start = scene.now();
    scene.reactor.handle().shutdown();
    scene.until("the end", |scene| scene.reactor.is_finished());
    let took = scene.now() - start;
    assert!(took < Duration::from_secs(1), "{took:?}");
    scene.expect_closed(CloseReason::Shutdown);
}

fn a_timer_comes_while_nobody_answers<W: World>(world: &mut W) {
    // What an impatient application does itself.
    let address = world.deaf();
    let script = Script::echo()
        .when_open(|conn, number| {
            if number == 0 {
                conn.set_timer(conn.now() + millis(80));
            }
            true
        })
        .when_timer(|conn, _| conn.abort());
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, address);
    let closed = scene.expect_closed(CloseReason::HandlerAbort);
    assert_on_time(closed.age, millis(80));
    scene.expect_service();
}

fn a_dialled_connection_may_be_reset<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    dial(&mut scene, address);
    let peer = scene.answer(&mut listener);
    scene.saw(0, What::Connected);
    scene.reset(peer);
    scene.expect_closed(CloseReason::PeerReset);
    scene.expect_service();
}

fn port(address: &Address) -> u16 {
    address.ip().unwrap().port()
}

fn a_name_is_looked_up<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo().when_connected(|conn, _| conn.write(b"hello"));
    let mut scene = Scene::new(world, Config::default(), script);
    let target: Target = format!("localhost:{}", port(&address)).parse().unwrap();
    dial(&mut scene, target);
    let peer = scene.answer(&mut listener);
    scene.expect(peer, b"hello");
    scene.leave(peer);
    let closed = scene.expect_closed(CloseReason::PeerEof);
    assert_eq!(closed.peer, address);
}

fn a_name_that_nobody_has_is_a_failure<W: World>(world: &mut W) {
    let mut config = Config::default();
    // A resolver may take its time over it.
    config.timeouts.connect = Some(Duration::from_secs(3));
    let mut scene = Scene::new(world, config, Script::echo());
    let target: Target = "nobody.invalid:80".parse().unwrap();
    dial(&mut scene, target);
    let closed = scene.closed();
    assert!(
        matches!(
            closed.reason,
            CloseReason::ConnectFailed(_) | CloseReason::Timeout(Timeout::Connect)
        ),
        "{closed:?}"
    );
    scene.expect_service();
}

fn a_peer_that_does_not_answer_is_given_up<W: World>(world: &mut W) {
    let address = world.deaf();
    let mut config = Config::default();
    config.timeouts.connect = Some(millis(150));
    let mut scene = Scene::new(world, config, Script::echo());
    dial(&mut scene, address);
    let closed = scene.expect_timeout(Timeout::Connect);
    assert_on_time(closed.age, millis(150));
    assert_eq!(scene.script.count(0, What::Connected), 0);
    scene.expect_service();
}

fn an_attempt_that_is_not_answered_is_given_up<W: World>(world: &mut W) {
    let address = world.deaf();
    let mut config = Config::default();
    config.timeouts.connect_attempt = Some(millis(150));
    let mut scene = Scene::new(world, config, Script::echo());
    dial(&mut scene, address);
    let closed = scene.expect_timeout(Timeout::Connect);
    assert_on_time(closed.age, millis(150));
    scene.expect_service();
}

fn a_dial_may_be_closed_while_nobody_answers<W: World>(world: &mut W) {
    let address = world.deaf();
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    dial(&mut scene, address);
    scene.saw(0, What::Open);
    scene.wait(millis(20));
    scene.with(0, |conn| {
        assert_eq!(conn.state(), State::Connecting);
        conn.close();
    });
    let closed = scene.expect_closed(CloseReason::HandlerClose);
    assert!(closed.age < Duration::from_secs(2), "{:?}", closed.age);
    assert!(scene.reactor.context().is_empty());
    scene.expect_service();
}

fn who_is_refused_while_it_is_paused_learns_why<W: World>(world: &mut W) {
    let address = world.refusing();
    let script = Script::echo().when_open(|conn, number| {
        if number == 0 {
            conn.pause_reading();
        }
        true
    });
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, address);
    let closed = scene.closed();
    assert!(matches!(closed.reason, CloseReason::ConnectFailed(_)), "{closed:?}");
    scene.expect_service();
}

fn who_is_refused_while_it_is_congested_learns_why<W: World>(world: &mut W) {
    let address = world.refusing();
    let script = Script::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(&[b'x'; 100_000]);
        }
        true
    });
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, address);
    let closed = scene.closed();
    assert!(matches!(closed.reason, CloseReason::ConnectFailed(_)), "{closed:?}");
    assert_eq!((closed.bytes_out, closed.unsent), (0, 100_000));
    scene.expect_service();
}

fn a_name_falls_back_to_its_next_address_with_output_queued<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(&[b'x'; 100_000]);
        }
        true
    });
    let mut scene = Scene::new(world, Config::default(), script);
    // Where the name has an address of the other family, nobody listens there.
    let target: Target = format!("localhost:{}", port(&address)).parse().unwrap();
    dial(&mut scene, target);
    let peer = scene.answer(&mut listener);
    scene.expect(peer, &[b'x'; 100_000]);
    scene.expect_service();
}

fn a_dial_in_on_open_of_a_dial_may_be_written_to_at_once<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let again = address.clone();
    let script = Script::echo().when_open(move |conn, number| {
        if number == 0 {
            let second = conn.connect(again.clone()).unwrap();
            conn.other(second).unwrap().write(b"hello");
        }
        true
    });
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, address);
    let peers = [(); 2].map(|()| scene.answer(&mut listener));
    scene.saw(1, What::Connected);
    let mut heard = Vec::new();
    scene.until("the word", |scene| {
        heard.extend(peers.iter().flat_map(|peer| scene.sip(*peer, 5)));
        heard.len() == 5
    });
    assert_eq!(heard, b"hello");
    scene.expect_none_closed();
    scene.expect_service();
}

fn a_dial_in_on_open_of_a_dial_may_be_closed_at_once<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let again = address.clone();
    let script = Script::echo().when_open(move |conn, number| {
        if number == 2 {
            let second = conn.connect(again.clone()).unwrap();
            conn.other(second).unwrap().close();
        }
        true
    });
    let mut scene = Scene::new(world, Config::default(), script);
    // Two that come and go leave places to be taken again.
    let early = [(); 2].map(|()| scene.enter());
    for (peer, _) in early {
        scene.leave(peer);
        scene.expect_closed(CloseReason::PeerEof);
    }
    dial(&mut scene, address);
    let peer = scene.answer(&mut listener);
    let closed = scene.expect_closed(CloseReason::HandlerClose);
    assert_eq!(closed.id, scene.script.ids[3]);
    scene.leave(peer);
    scene.expect_closed(CloseReason::PeerEof);
    scene.expect_service();
}

fn a_dial_that_fails_at_once_may_dial_again_and_write<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let script = Script::echo().when_closing(move |conn, session, _| {
        if session.number == 0 {
            let second = conn.connect(address.clone()).unwrap();
            conn.other(second).unwrap().write(b"hello");
        }
    });
    let mut scene = Scene::new(world, Config::default(), script);
    dial(&mut scene, Address::Unix("/nonexistent/sock".into()));
    let closed = scene.closed();
    assert!(matches!(closed.reason, CloseReason::ConnectFailed(_)), "{closed:?}");
    let peer = scene.answer(&mut listener);
    scene.expect(peer, b"hello");
    scene.saw(1, What::Connected);
    scene.expect_service();
}

fn a_stall_in_on_open_is_not_held_against_who_is_dialled<W: World>(world: &mut W) {
    let stall = world.stall();
    let address = world.deaf();
    let script = Script::echo().when_open(move |_, number| {
        if number == 0 {
            stall(millis(200));
        }
        true
    });
    let mut config = Config::default();
    config.timeouts.connect_attempt = Some(millis(250));
    let mut scene = Scene::new(world, config, script);
    dial(&mut scene, address);
    let opened = scene.saw(0, What::Open);
    scene.closed();
    let took = scene.now() - opened;
    assert!(took >= millis(450), "early: {took:?}");
    scene.expect_service();
}
