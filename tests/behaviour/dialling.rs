//! Connections that the server makes itself: they begin, fail and end as the others do.

use std::cell::Cell;
use std::rc::Rc;

use wheelhouse::address::ToTarget;
use wheelhouse::{Address, CloseReason, Config, ConnectError, Origin, State, Target, Timeout};

use crate::harness::{Fixture, Got, RecordingHandler, What, World, assert_on_time, millis, secs};

behaviours! {
    everywhere {
        on_connected_follows_a_dial_that_succeeds
        a_dialled_connection_is_owned_by_the_one_that_dialled_it
        output_written_before_a_dial_succeeds_is_sent_then
        much_output_written_before_a_dial_succeeds_is_sent_then
        a_fin_requested_before_a_dial_succeeds_is_sent_then
        a_refused_dial_reports_its_error
        a_dial_may_be_refused_by_on_open
        a_dial_may_be_closed_in_on_open
        a_dial_may_be_aborted_in_on_open
        a_reply_that_stalls_ends_a_dialled_connection
        a_dialled_connection_ends_with_its_peer
        a_dialled_connection_goes_idle_between_requests
        a_dial_that_fails_may_dial_again
        a_text_may_be_dialled
        a_text_that_is_no_target_is_not_dialled
        no_dial_begins_during_a_shutdown
        a_server_may_dial_itself
        many_may_be_dialled_at_once
        a_dialled_connection_outlives_its_owner
        a_dial_refused_while_paused_reports_its_error
        a_dial_refused_while_congested_reports_its_error
        a_dial_in_on_open_of_a_dial_may_be_written_to_at_once
        a_dial_in_on_open_of_a_dial_may_be_closed_at_once
        a_dial_that_fails_at_once_may_dial_again_and_write
    }
    over_tcp {
        a_dialled_connection_may_be_reset
        a_name_is_looked_up
        a_name_may_be_dialled_several_times_at_once
        a_name_that_does_not_exist_is_a_failure
        the_connect_deadline_ends_a_dial_without_an_answer
        the_connect_attempt_deadline_ends_an_attempt_without_an_answer
        a_dial_may_be_closed_before_it_is_answered
        a_shutdown_ends_a_dial
        a_timer_comes_while_a_dial_is_not_answered
        a_name_falls_back_to_its_next_address_with_output_queued
        a_stall_in_on_open_does_not_count_against_a_dial
    }
}

/// Dials from outside any callback.
fn dial<W: World>(fixture: &mut Fixture<'_, W>, target: impl ToTarget) {
    fixture.reactor.context().connect(target).unwrap();
}

fn on_connected_follows_a_dial_that_succeeds<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo()
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
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let id = fixture.reactor.context().connect(address.clone()).unwrap();
    let peer = fixture.answer(&mut listener);
    fixture.expect(peer, b"hello, server");
    fixture.send(peer, b"hello, client");
    fixture.expect(peer, b"hello, client");
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.id, closed.origin, closed.peer), (id, Origin::Connect, address));
    assert_eq!(fixture.handler.ids[0], id);
    assert_eq!(fixture.reactor.handle().stats().dialled, 1);
    assert_eq!(fixture.reactor.handle().stats().panics, 0);
    fixture.expect_service();
}

fn a_dialled_connection_is_owned_by_the_one_that_dialled_it<W: World>(world: &mut W) {
    // A proxy of two bytes' worth: what the client says goes out, what comes back goes to it.
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo()
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
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (client, _) = fixture.enter();
    let upstream = fixture.answer(&mut listener);
    fixture.expect(upstream, b"from the client");
    fixture.send(upstream, b"from the upstream");
    fixture.expect(client, b"from the upstream");
    fixture.expect_service();
}

fn output_written_before_a_dial_succeeds_is_sent_then<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(b"early");
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, address);
    let peer = fixture.answer(&mut listener);
    fixture.expect(peer, b"early");
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.bytes_out, closed.unsent), (5, 0));
    fixture.expect_service();
}

fn much_output_written_before_a_dial_succeeds_is_sent_then<W: World>(world: &mut W) {
    const LEN: usize = 2 << 20;
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(b"early");
            conn.write_bytes(vec![b'l'; LEN]);
            assert!(conn.is_congested());
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, address);
    let peer = fixture.answer(&mut listener);
    fixture.expect(peer, b"early");
    let bytes = fixture.read(peer, LEN);
    assert!(bytes.iter().all(|byte| *byte == b'l'));
    fixture.saw(0, What::Drained);
    fixture.expect_service();
}

fn a_fin_requested_before_a_dial_succeeds_is_sent_then<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(b"all there is");
            conn.shutdown_write();
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, address);
    let peer = fixture.answer(&mut listener);
    assert_eq!(fixture.read_to_end(peer), (b"all there is".to_vec(), Got::Eof));
    fixture.send(peer, b"thanks");
    fixture.saw(0, What::Data(6));
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn a_refused_dial_reports_its_error<W: World>(world: &mut W) {
    let address = world.refusing();
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    dial(&mut fixture, address.clone());
    let closed = fixture.closed();
    let CloseReason::ConnectFailed(error) = closed.reason else {
        panic!("{closed:?}");
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(closed.peer, address);
    let reason = closed.reason;
    assert_eq!(
        fixture.handler.story(0),
        [What::Open, What::Closing(reason), What::Closed(reason)],
        "it never stood"
    );
    assert_eq!(fixture.reactor.handle().stats().closed(reason), 1);
    fixture.expect_service();
}

fn a_dial_may_be_refused_by_on_open<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_open(|_, number| number > 0);
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, address);
    fixture.until("no dial", |fixture| {
        fixture.handler.ids.len() == 1 && fixture.reactor.context().is_empty()
    });
    assert_eq!(fixture.handler.story(0), [What::Open]);
    assert!(fixture.world.answer(&mut listener).is_none());
    fixture.expect_service();
}

fn a_dial_may_be_closed_in_on_open<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if number == 0 {
            conn.close();
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, address);
    fixture.expect_closed(CloseReason::HandlerClose);
    assert!(fixture.world.answer(&mut listener).is_none());
    fixture.expect_service();
}

fn a_dial_may_be_aborted_in_on_open<W: World>(world: &mut W) {
    let (_door, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(b"never sent");
            conn.abort();
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, address);
    let closed = fixture.expect_closed(CloseReason::HandlerAbort);
    assert_eq!((closed.bytes_out, closed.unsent), (0, 10));
    fixture.expect_service();
}

fn a_reply_that_stalls_ends_a_dialled_connection<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo()
        .when_connected(|conn, session| {
            if session.number == 0 {
                conn.begin_request();
                conn.write(b"request");
            }
        })
        .when_data(|_, _, input| input.clear());
    let mut config = Config::default();
    config.timeouts.read = Some(millis(250));
    let mut fixture = Fixture::new(world, config, handler);
    dial(&mut fixture, address);
    let peer = fixture.answer(&mut listener);
    fixture.expect(peer, b"request");
    fixture.drip(peer, b"repeat", millis(80));
    let start = fixture.now();
    fixture.send(peer, b"l");
    fixture.saw(0, What::Closing(CloseReason::Timeout(Timeout::Read)));
    fixture.assert_took(start, millis(250));
    fixture.leave(peer);
    fixture.expect_timeout(Timeout::Read);
    fixture.expect_service();
}

fn a_dialled_connection_ends_with_its_peer<W: World>(world: &mut W) {
    // Even with a request in flight: its reply will not come.
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_connected(|conn, session| {
        if session.number == 0 {
            conn.begin_request();
            conn.write(b"request");
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, address);
    let peer = fixture.answer(&mut listener);
    fixture.expect(peer, b"request");
    fixture.half_close(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_eof(peer);
    fixture.expect_service();
}

fn a_dialled_connection_goes_idle_between_requests<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo()
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
    let mut fixture = Fixture::new(world, config, handler);
    dial(&mut fixture, address);
    let peer = fixture.answer(&mut listener);
    fixture.expect(peer, b"request");
    fixture.wait(millis(150));
    assert_eq!(fixture.handler.count(0, What::Idle), 0, "a reply is awaited");
    fixture.send(peer, b"reply");
    let idle = fixture.saw(0, What::Idle);
    fixture.expect_timeout(Timeout::Idle);
    fixture.assert_took(idle, millis(100));
    fixture.expect_eof(peer);
    fixture.expect_service();
}

fn a_dial_that_fails_may_dial_again<W: World>(world: &mut W) {
    let refusing = world.refusing();
    let (mut listener, address) = world.listen_as_peer();
    let failures = Rc::new(Cell::new(0));
    let count = Rc::clone(&failures);
    let wrong = refusing.clone();
    let handler = RecordingHandler::echo().when_closed(move |cx, closed| {
        if let CloseReason::ConnectFailed(_) = closed.reason {
            count.set(count.get() + 1);
            let next = if count.get() < 3 { &wrong } else { &address };
            cx.connect(next.clone()).unwrap();
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, refusing);
    let peer = fixture.answer(&mut listener);
    fixture.expect_echo(peer);
    assert_eq!(failures.get(), 3);
    fixture.handler.closed.clear();
    fixture.expect_service();
}

fn a_text_may_be_dialled<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    dial(&mut fixture, address.to_string());
    let peer = fixture.answer(&mut listener);
    fixture.send(peer, b"hello");
    fixture.expect(peer, b"hello");
}

fn a_text_that_is_no_target_is_not_dialled<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    for text in ["7000", "localhost", "unix:", "a:b:1"] {
        let refused = fixture.reactor.context().connect(text);
        assert!(matches!(refused, Err(ConnectError::Address(_))), "{text}: {refused:?}");
    }
    assert_eq!(fixture.handler.ids, []);
    fixture.expect_service();
}

fn no_dial_begins_during_a_shutdown<W: World>(world: &mut W) {
    let (_door, address) = world.listen_as_peer();
    let refused = Rc::new(Cell::new(false));
    let flag = Rc::clone(&refused);
    let handler = RecordingHandler::echo().when_shutdown(move |cx| {
        flag.set(cx.connect(address.clone()) == Err(ConnectError::ShuttingDown));
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    fixture.reactor.context().shutdown();
    fixture.until("the end", |fixture| fixture.reactor.is_finished());
    assert!(refused.get());
}

fn a_server_may_dial_itself<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo()
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
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let address = fixture.address.clone();
    dial(&mut fixture, address);
    let reasons = [fixture.closed().reason, fixture.closed().reason];
    assert!(reasons.contains(&CloseReason::HandlerClose), "{reasons:?}");
    assert!(reasons.contains(&CloseReason::PeerEof), "{reasons:?}");
    assert_eq!(fixture.reactor.handle().stats().panics, 0);
    fixture.expect_service();
}

fn many_may_be_dialled_at_once<W: World>(world: &mut W) {
    const COUNT: usize = 50;
    let handler = RecordingHandler::echo().when_connected(|conn, _| {
        if conn.origin() == Origin::Connect {
            conn.close();
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let address = fixture.address.clone();
    for _ in 0..COUNT {
        dial(&mut fixture, address.clone());
    }
    fixture.until("all of them", |fixture| fixture.handler.closed.len() == 2 * COUNT);
    let stats = fixture.reactor.handle().stats();
    assert_eq!((stats.dialled, stats.accepted), (COUNT as u64, COUNT as u64));
    fixture.handler.closed.clear();
    fixture.expect_service();
}

fn a_dialled_connection_outlives_its_owner<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_connected(move |conn, session| {
        if session.number == 0 {
            conn.connect(address.clone()).unwrap();
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (client, _) = fixture.enter();
    let upstream = fixture.answer(&mut listener);
    fixture.saw(1, What::Connected);
    let owner = fixture.handler.ids[0];
    fixture.leave(client);
    assert_eq!(fixture.closed().id, owner);
    fixture.expect_echo(upstream);
    assert!(fixture.with(1, |conn| conn.owner() == Some(owner) && conn.other(owner).is_none()));
    fixture.expect_service();
}

fn a_shutdown_ends_a_dial<W: World>(world: &mut W) {
    let address = world.deaf();
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    dial(&mut fixture, address);
    fixture.saw(0, What::Open);
    fixture.wait(millis(20));
    let start = fixture.now();
    fixture.reactor.handle().shutdown();
    fixture.until("the end", |fixture| fixture.reactor.is_finished());
    let took = fixture.now() - start;
    assert!(took < secs(1), "{took:?}");
    fixture.expect_closed(CloseReason::Shutdown);
}

fn a_timer_comes_while_a_dial_is_not_answered<W: World>(world: &mut W) {
    // What an impatient application does itself.
    let address = world.deaf();
    let handler = RecordingHandler::echo()
        .when_open(|conn, number| {
            if number == 0 {
                conn.set_timer(conn.now() + millis(80));
            }
            true
        })
        .when_timer(|conn, _| conn.abort());
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, address);
    let closed = fixture.expect_closed(CloseReason::HandlerAbort);
    assert_on_time(closed.age, millis(80));
    fixture.expect_service();
}

fn a_dialled_connection_may_be_reset<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    dial(&mut fixture, address);
    let peer = fixture.answer(&mut listener);
    fixture.saw(0, What::Connected);
    fixture.reset(peer);
    fixture.expect_closed(CloseReason::PeerReset);
    fixture.expect_service();
}

fn port(address: &Address) -> u16 {
    address.ip().unwrap().port()
}

fn a_name_is_looked_up<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_connected(|conn, _| conn.write(b"hello"));
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let target: Target = format!("localhost:{}", port(&address)).parse().unwrap();
    dial(&mut fixture, target);
    let peer = fixture.answer(&mut listener);
    fixture.expect(peer, b"hello");
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!(closed.peer, address);
}

fn a_name_may_be_dialled_several_times_at_once<W: World>(world: &mut W) {
    let mut listeners = [(); 2].map(|()| world.listen_as_peer());
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if number == 2 {
            conn.close();
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    for at in [0, 1, 0] {
        dial(&mut fixture, format!("localhost:{}", port(&listeners[at].1)));
    }
    // The end of one leaves the others their look-up.
    fixture.expect_closed(CloseReason::HandlerClose);
    for (listener, _) in &mut listeners {
        let peer = fixture.answer(listener);
        fixture.send(peer, b"hello");
        fixture.expect(peer, b"hello");
    }
    fixture.expect_service();
}

fn a_name_that_does_not_exist_is_a_failure<W: World>(world: &mut W) {
    let mut config = Config::default();
    // A resolver may be slow.
    config.timeouts.connect = Some(secs(3));
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    let target: Target = "name.invalid:80".parse().unwrap();
    dial(&mut fixture, target);
    let closed = fixture.closed();
    assert!(
        matches!(
            closed.reason,
            CloseReason::ConnectFailed(_) | CloseReason::Timeout(Timeout::Connect)
        ),
        "{closed:?}"
    );
    fixture.expect_service();
}

fn the_connect_deadline_ends_a_dial_without_an_answer<W: World>(world: &mut W) {
    let address = world.deaf();
    let mut config = Config::default();
    config.timeouts.connect = Some(millis(150));
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    dial(&mut fixture, address);
    let closed = fixture.expect_timeout(Timeout::Connect);
    assert_on_time(closed.age, millis(150));
    assert_eq!(fixture.handler.count(0, What::Connected), 0);
    fixture.expect_service();
}

fn the_connect_attempt_deadline_ends_an_attempt_without_an_answer<W: World>(world: &mut W) {
    let address = world.deaf();
    let mut config = Config::default();
    config.timeouts.connect_attempt = Some(millis(150));
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    dial(&mut fixture, address);
    let closed = fixture.expect_timeout(Timeout::Connect);
    assert_on_time(closed.age, millis(150));
    fixture.expect_service();
}

fn a_dial_may_be_closed_before_it_is_answered<W: World>(world: &mut W) {
    let address = world.deaf();
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    dial(&mut fixture, address);
    fixture.saw(0, What::Open);
    fixture.wait(millis(20));
    fixture.with(0, |conn| {
        assert_eq!(conn.state(), State::Connecting);
        conn.close();
    });
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert!(closed.age < secs(2), "{:?}", closed.age);
    assert!(fixture.reactor.context().is_empty());
    fixture.expect_service();
}

fn a_dial_refused_while_paused_reports_its_error<W: World>(world: &mut W) {
    let address = world.refusing();
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if number == 0 {
            conn.pause_reading();
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, address);
    let closed = fixture.closed();
    assert!(matches!(closed.reason, CloseReason::ConnectFailed(_)), "{closed:?}");
    fixture.expect_service();
}

fn a_dial_refused_while_congested_reports_its_error<W: World>(world: &mut W) {
    let address = world.refusing();
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(&[b'x'; 100_000]);
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, address);
    let closed = fixture.closed();
    assert!(matches!(closed.reason, CloseReason::ConnectFailed(_)), "{closed:?}");
    assert_eq!((closed.bytes_out, closed.unsent), (0, 100_000));
    fixture.expect_service();
}

fn a_name_falls_back_to_its_next_address_with_output_queued<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(&[b'x'; 100_000]);
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    // Where the name has an address of the other family, there is no listener.
    let target: Target = format!("localhost:{}", port(&address)).parse().unwrap();
    dial(&mut fixture, target);
    let peer = fixture.answer(&mut listener);
    fixture.expect(peer, &[b'x'; 100_000]);
    fixture.expect_service();
}

fn a_dial_in_on_open_of_a_dial_may_be_written_to_at_once<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let again = address.clone();
    let handler = RecordingHandler::echo().when_open(move |conn, number| {
        if number == 0 {
            let second = conn.connect(again.clone()).unwrap();
            conn.other(second).unwrap().write(b"hello");
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, address);
    let peers = [(); 2].map(|()| fixture.answer(&mut listener));
    fixture.saw(1, What::Connected);
    let mut received = Vec::new();
    fixture.until("the word", |fixture| {
        received.extend(peers.iter().flat_map(|peer| fixture.sip(*peer, 5)));
        received.len() == 5
    });
    assert_eq!(received, b"hello");
    fixture.expect_none_closed();
    fixture.expect_service();
}

fn a_dial_in_on_open_of_a_dial_may_be_closed_at_once<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let again = address.clone();
    let handler = RecordingHandler::echo().when_open(move |conn, number| {
        if number == 2 {
            let second = conn.connect(again.clone()).unwrap();
            conn.other(second).unwrap().close();
        }
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    // Two that come and go leave places to be taken again.
    let early = [(); 2].map(|()| fixture.enter());
    for (peer, _) in early {
        fixture.leave(peer);
        fixture.expect_closed(CloseReason::PeerEof);
    }
    dial(&mut fixture, address);
    let peer = fixture.answer(&mut listener);
    let closed = fixture.expect_closed(CloseReason::HandlerClose);
    assert_eq!(closed.id, fixture.handler.ids[3]);
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.expect_service();
}

fn a_dial_that_fails_at_once_may_dial_again_and_write<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_closing(move |conn, session, _| {
        if session.number == 0 {
            let second = conn.connect(address.clone()).unwrap();
            conn.other(second).unwrap().write(b"hello");
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    dial(&mut fixture, Address::Unix("/nonexistent/sock".into()));
    let closed = fixture.closed();
    assert!(matches!(closed.reason, CloseReason::ConnectFailed(_)), "{closed:?}");
    let peer = fixture.answer(&mut listener);
    fixture.expect(peer, b"hello");
    fixture.saw(1, What::Connected);
    fixture.expect_service();
}

fn a_stall_in_on_open_does_not_count_against_a_dial<W: World>(world: &mut W) {
    let stall = world.stall();
    let address = world.deaf();
    let handler = RecordingHandler::echo().when_open(move |_, number| {
        if number == 0 {
            stall(millis(200));
        }
        true
    });
    let mut config = Config::default();
    config.timeouts.connect_attempt = Some(millis(250));
    let mut fixture = Fixture::new(world, config, handler);
    dial(&mut fixture, address);
    let opened = fixture.saw(0, What::Open);
    fixture.closed();
    let took = fixture.now() - opened;
    assert!(took >= millis(450), "early: {took:?}");
    fixture.expect_service();
}
