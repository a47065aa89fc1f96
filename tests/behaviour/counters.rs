//! What the counters of a server say.

use wheelhouse::{CloseReason, Config, State, Timeout};

use crate::harness::{Fixture, RecordingHandler, What, World, millis};

behaviours! {
    everywhere {
        the_counters_add_up
        states_are_counted
        deadlines_are_counted
        a_callback_that_stalls_is_counted
    }
}

fn the_counters_add_up<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    for index in 1..=3 {
        let peer = fixture.connect();
        for _ in 0..index {
            fixture.expect_echo(peer);
        }
        fixture.leave(peer);
        fixture.expect_closed(CloseReason::PeerEof);
    }
    let (_stays, _) = fixture.enter();
    fixture.turn();
    let stats = fixture.reactor.handle().stats();
    assert_eq!((stats.accepted, stats.connections, stats.closed_total()), (4, 1, 3));
    assert_eq!((stats.bytes_in, stats.bytes_out, stats.unsent), (30, 30, 0));
    assert_eq!((stats.requests, stats.refused, stats.panics), (6, 0, 0));
    assert_eq!(stats.closed(CloseReason::PeerEof), 3);
    assert_eq!(stats.to_string(), "closed=3 peer_eof=3");
}

fn states_are_counted<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let (idle, number) = fixture.enter();
    fixture.expect_echo(idle);
    fixture.saw(number, What::Idle);
    let (silent, _) = fixture.enter();
    let count = |fixture: &mut Fixture<'_, W>| {
        let stats = fixture.reactor.handle().stats();
        [State::Connecting, State::Connected, State::Idle, State::Closing]
            .map(|state| stats.in_state(state))
    };
    assert_eq!(count(&mut fixture), [0, 1, 1, 0]);
    fixture.leave(silent);
    fixture.expect_closed(CloseReason::PeerEof);
    let (_door, address) = fixture.world.listen_as_peer();
    fixture.reactor.context().connect(address).unwrap();
    assert_eq!(fixture.reactor.handle().stats().connections, 2);
    fixture.saw(2, What::Connected);
    fixture.leave(idle);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.wait(millis(20));
    let [connecting, connected, idle, closing] = count(&mut fixture);
    assert_eq!((connecting, connected + idle, closing), (0, 1, 0));
}

fn deadlines_are_counted<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.first_byte = Some(millis(50));
    let mut fixture = Fixture::new(world, config, RecordingHandler::echo());
    fixture.connect();
    fixture.expect_timeout(Timeout::FirstByte);
    let stats = fixture.reactor.handle().stats();
    let fired: Vec<_> = stats.deadlines_by_label().filter(|(_, count)| *count > 0).collect();
    assert_eq!(fired, [("first_byte", 1)]);
}

fn a_callback_that_stalls_is_counted<W: World>(world: &mut W) {
    let stall = world.stall();
    let handler = RecordingHandler::echo().when_data(move |conn, _, input| {
        stall(millis(60));
        conn.write(input);
        input.clear();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_echo(peer);
    fixture.turn();
    let stats = fixture.reactor.handle().stats();
    // On real sockets the machine may delay another callback.
    assert!((1..=3).contains(&stats.stalls), "{stats:?}");
    // It is known to within a step of the coarse clock.
    assert!(stats.longest_callback >= 49_000_000, "{stats:?}");
    let text = stats.prometheus().to_string();
    assert!(text.contains(&format!("wheelhouse_stalls_total {}\n", stats.stalls)), "{text}");
    assert!(!text.contains("wheelhouse_turn_seconds_sum 0\n"), "{text}");
}
