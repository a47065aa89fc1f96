//! A loop near its limits: idle connections are evicted sooner, none is kept alive, and the greatest
//! holders of buffers are shed.

use std::cell::RefCell;
use std::rc::Rc;

use wheelhouse::config::Watermarks;
use wheelhouse::{CloseReason, Config};

use crate::harness::{Fixture, Got, RecordingHandler, What, World, millis, secs, with_places};

behaviours! {
    everywhere {
        no_connection_is_kept_alive_in_a_crowd
        buffers_are_counted_and_given_back
        the_greatest_holder_of_input_is_shed
        output_of_a_pending_dial_is_shed_too
        a_flood_is_bounded_by_buffered_max
    }
    over_tcp {
        the_greatest_holder_of_output_is_shed
        idle_connections_are_evicted_sooner_in_a_crowd
    }
}

fn no_connection_is_kept_alive_in_a_crowd<W: World>(world: &mut W) {
    let answers = Rc::new(RefCell::new(Vec::new()));
    let kept = Rc::clone(&answers);
    let handler = RecordingHandler::echo().when_data(move |conn, _, input| {
        kept.borrow_mut().push(conn.decide_keep_alive(0).stays());
        conn.write(input);
        input.clear();
    });
    let mut fixture = Fixture::new(world, with_places(100), handler);
    let peers: Vec<_> = (0..91).map(|_| fixture.enter().0).collect();
    fixture.expect_echo(peers[0]);
    // A connection that was announced to end does end, whatever the pressure is then.
    fixture.expect_closed(CloseReason::Overload);
    assert_eq!(fixture.read_to_end(peers[0]), (Vec::new(), Got::Eof));
    fixture.leave(peers[0]);
    for peer in &peers[1..5] {
        fixture.leave(*peer);
    }
    fixture.until("some to go", |fixture| fixture.handler.closed.len() == 4);
    fixture.expect_echo(peers[5]);
    assert_eq!(*answers.borrow(), [false, true]);
}

fn idle_connections_are_evicted_sooner_in_a_crowd<W: World>(world: &mut W) {
    let mut config = with_places(100);
    config.timeouts.idle = Some(secs(3));
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    let (first, number) = fixture.enter();
    fixture.expect_echo(first);
    let since = fixture.saw(number, What::Idle);
    // At 90 of 100 connections a little more than a third of the idle time is left.
    let others: Vec<_> = (1..90).map(|_| fixture.enter().0).collect();
    fixture.wait(millis(1_000));
    fixture.expect_none_closed();
    let closed = fixture.expect_closed(CloseReason::Evicted);
    assert_eq!(closed.id, fixture.handler.ids[number]);
    let took = closed.opened_at + closed.age - since;
    assert!(took >= millis(1_660) && took < millis(2_300), "{took:?}");
    for peer in others {
        fixture.expect_echo(peer);
    }
}

fn buffers_are_counted_and_given_back<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::ignore());
    let peers = [(); 3].map(|()| fixture.enter().0);
    for peer in peers {
        fixture.send(peer, &[b'x'; 1_000]);
    }
    let buffered = |fixture: &mut Fixture<'_, W>| fixture.reactor.handle().stats().buffered;
    fixture.until("it to be held", |fixture| buffered(fixture) >= 3_000);
    assert!(buffered(&mut fixture) < 20_000);
    for peer in peers {
        fixture.leave(peer);
    }
    fixture.until("it to be given back", |fixture| buffered(fixture) == 0);
}

fn the_greatest_holder_of_input_is_shed<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.input_max = 256 * 1024;
    config.limits.buffered_max = 256 * 1024;
    let mut fixture = Fixture::new(world, config, RecordingHandler::ignore());
    let (large, number) = fixture.enter();
    let others = [(); 3].map(|()| fixture.enter().0);
    // A buffer that grows may be twice as large as what it holds.
    fixture.send(large, &[b'x'; 130_000]);
    fixture.saw(number, What::Data(130_000));
    fixture.expect_none_closed();
    for other in others {
        fixture.send(other, &[b'x'; 60_000]);
    }
    let closed = fixture.expect_closed(CloseReason::BufferLimit);
    assert_eq!(closed.id, fixture.handler.ids[number]);
    fixture.wait(millis(20));
    assert!(fixture.reactor.handle().stats().buffered <= 256 * 1024);
}

fn output_of_a_pending_dial_is_shed_too<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.buffered_max = 64 * 1024;
    let (_door, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_data(move |conn, _, input| {
        let id = conn.cx().connect(address.clone()).unwrap();
        conn.cx().conn(id).unwrap().write(&[b'x'; 100_000]);
        // A part of a request is kept, which is when the bound of the buffers is checked.
        input.truncate(1);
    });
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"hello");
    let closed = fixture.expect_closed(CloseReason::BufferLimit);
    assert_eq!((closed.id, closed.unsent), (fixture.handler.ids[1], 100_000));
    assert!(fixture.reactor.handle().stats().buffered < 1_000);
    fixture.expect_none_closed();
}

fn the_greatest_holder_of_output_is_shed<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.limits.buffered_max = 6 << 20;
    config.watermarks = Watermarks::new(1 << 20, 8 << 20).unwrap();
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        conn.write_bytes(vec![b'x'; input.len() << 20]);
        input.clear();
    });
    let mut fixture = Fixture::new(world, config, handler);
    let peers = [(); 3].map(|()| fixture.connect_small());
    fixture.send(peers[0], b"...");
    fixture.send(peers[1], b"............");
    let closed = fixture.expect_closed(CloseReason::BufferLimit);
    assert_eq!(closed.id, fixture.handler.ids[1]);
    assert!(closed.unsent > 0);
    assert_eq!(fixture.read(peers[0], 3 << 20).len(), 3 << 20);
    fixture.expect_none_closed();
}

fn a_flood_is_bounded_by_buffered_max<W: World>(world: &mut W) {
    const MOST: u64 = 1 << 20;
    let mut config = Config::default();
    config.limits.buffered_max = MOST as usize;
    let mut fixture = Fixture::new(world, config, RecordingHandler::ignore());
    let mut peers: Vec<_> = (0..40).map(|_| fixture.enter().0).collect();
    let mut most = 0;
    for round in 0..200 {
        let peer = peers[round % peers.len()];
        if fixture.try_send(peer, &[b'x'; 10_000]).is_none() {
            // It was shed, and dials again.
            peers[round % 40] = fixture.enter().0;
        }
        fixture.turn();
        let held = fixture.reactor.handle().stats().buffered;
        assert!(held <= MOST, "{held}");
        most = most.max(held);
    }
    assert!(most >= MOST / 2, "{most}");
    assert!(fixture.reactor.handle().stats().closed(CloseReason::BufferLimit) > 0);
}
