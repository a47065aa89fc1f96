//! No client waits long because of another: neither a peer that floods nor a callback that
//! takes its time.

use std::time::Duration;

use wheelhouse::{CloseReason, Config, Timeout};

use crate::harness::{Fixture, PeerId, RecordingHandler, What, World, millis};

behaviours! {
    everywhere {
        a_flooding_peer_delays_no_other
        many_flooding_peers_delay_no_other_much
        an_eager_pipeliner_delays_no_other
        a_burst_of_clients_delays_no_other
        a_stall_does_not_count_against_a_peer_that_sent_during_it
        a_stall_does_not_count_against_a_peer_that_sent_before_it
        a_timer_set_after_a_stall_is_not_due
        a_timer_set_after_a_stall_in_on_open_is_not_due
        a_stall_before_a_request_of_our_own_does_not_count_against_its_reply
    }
}

/// Discards its input, but echoes short words.
fn forgetful() -> RecordingHandler {
    RecordingHandler::echo().when_data(|conn, _, input| {
        if input.len() < 100 {
            conn.write(input);
        }
        input.clear();
    })
}

/// How many turns an echo takes, while something happens before each.
fn turns_of_an_echo<W: World>(
    fixture: &mut Fixture<'_, W>,
    peer: PeerId,
    mut meanwhile: impl FnMut(&mut Fixture<'_, W>),
) -> usize {
    meanwhile(fixture);
    fixture.send(peer, b"hello");
    let mut got = Vec::new();
    for turns in 1..100 {
        meanwhile(fixture);
        fixture.turn();
        got.extend(fixture.sip(peer, 5 - got.len()));
        if got == b"hello" {
            return turns;
        }
    }
    panic!("no echo within a hundred turns");
}

fn flood<W: World>(fixture: &mut Fixture<'_, W>, peers: &[PeerId]) {
    let bytes = vec![b'f'; 256 * 1024];
    for peer in peers {
        while fixture.try_send(*peer, &bytes).unwrap() > 0 {}
    }
}

fn a_flooding_peer_delays_no_other<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), forgetful());
    let (flooder, _) = fixture.enter();
    let (bystander, _) = fixture.enter();
    for _ in 0..20 {
        let turns = turns_of_an_echo(&mut fixture, bystander, |fixture| flood(fixture, &[flooder]));
        assert!(turns <= 2, "{turns} turns");
    }
    fixture.expect_service();
}

fn many_flooding_peers_delay_no_other_much<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), forgetful());
    let flooders: Vec<_> = (0..20).map(|_| fixture.enter().0).collect();
    let (bystander, _) = fixture.enter();
    let turns = turns_of_an_echo(&mut fixture, bystander, |fixture| flood(fixture, &flooders));
    assert!(turns <= 2, "{turns} turns");
    // One more than its budget was read of none.
    let before = fixture.reactor.handle().stats().bytes_in;
    flood(&mut fixture, &flooders);
    fixture.turn();
    let read = fixture.reactor.handle().stats().bytes_in - before;
    assert!(read <= 20 * 64 * 1024, "{read} bytes in one turn");
    fixture.expect_service();
}

fn an_eager_pipeliner_delays_no_other<W: World>(world: &mut W) {
    // One request per call, however many are there.
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        let request = input.split_to(5);
        conn.write(&request);
        conn.yield_now();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (pipeliner, _) = fixture.enter();
    let (bystander, _) = fixture.enter();
    fixture.send(pipeliner, &b"xxxxx".repeat(5_000));
    for _ in 0..20 {
        let turns = turns_of_an_echo(&mut fixture, bystander, |_| {});
        assert!(turns <= 2, "{turns} turns");
    }
    fixture.read(pipeliner, 25_000);
    fixture.expect_service();
}

fn a_burst_of_clients_delays_no_other<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let (bystander, _) = fixture.enter();
    let burst: Vec<_> = (0..100).map(|_| fixture.connect()).collect();
    let turns = turns_of_an_echo(&mut fixture, bystander, |_| {});
    assert!(turns <= 2, "{turns} turns");
    assert!(fixture.handler.ids.len() < 101, "not all at once");
    for peer in burst {
        fixture.expect_echo(peer);
    }
}

/// All that wait for a peer's bytes, much shorter than the stall.
fn impatient() -> Config {
    let mut config = Config::default();
    config.timeouts.first_byte = Some(millis(200));
    config.timeouts.request = Some(millis(200));
    config.timeouts.read = Some(millis(200));
    config.timeouts.idle = Some(millis(200));
    config
}

const STALL: Duration = millis(600);

/// Echoes lines; the word "stall" makes it stall.
fn stalling<W: World>(world: &mut W) -> RecordingHandler {
    let stall = world.stall();
    RecordingHandler::echo().when_data(move |conn, _, input| {
        if &input[..] == b"stall\n" {
            stall(STALL);
        }
        if input.ends_with(b"\n") {
            conn.write(input);
            input.clear();
        }
    })
}

/// A peer in each state that waits for bytes: fresh, within a request, and idle.
fn three_waiting<W: World>(fixture: &mut Fixture<'_, W>) -> [PeerId; 3] {
    let [(fresh, _), (halfway, number), (idle, idle_number)] = [(); 3].map(|()| fixture.enter());
    fixture.send(halfway, b"he");
    fixture.send(idle, b"hello\n");
    fixture.expect(idle, b"hello\n");
    fixture.saw(number, What::Data(2));
    fixture.saw(idle_number, What::Idle);
    [fresh, halfway, idle]
}

fn a_stall_does_not_count_against_a_peer_that_sent_during_it<W: World>(world: &mut W) {
    let handler = stalling(world);
    let mut fixture = Fixture::new(world, impatient(), handler);
    let (staller, _) = fixture.enter();
    let [fresh, halfway, idle] = three_waiting(&mut fixture);
    fixture.send(staller, b"stall\n");
    let start = fixture.now();
    fixture.until("the stall", |fixture| fixture.now() - start >= STALL);
    // No turn ran since, so these bytes count as having come during the stall.
    fixture.expect_none_closed();
    fixture.send(fresh, b"hello\n");
    fixture.send(halfway, b"llo\n");
    fixture.send(idle, b"hello\n");
    for peer in [fresh, halfway, idle] {
        fixture.expect(peer, b"hello\n");
    }
    fixture.expect(staller, b"stall\n");
    // Then they are idle.
    for _ in 0..4 {
        fixture.expect_timeout(Timeout::Idle);
    }
    fixture.expect_service();
}

fn a_stall_does_not_count_against_a_peer_that_sent_before_it<W: World>(world: &mut W) {
    let handler = stalling(world);
    let mut fixture = Fixture::new(world, impatient(), handler);
    let (staller, _) = fixture.enter();
    let [fresh, halfway, idle] = three_waiting(&mut fixture);
    fixture.try_send(staller, b"stall\n");
    fixture.try_send(fresh, b"hello\n");
    fixture.try_send(halfway, b"llo\n");
    fixture.try_send(idle, b"hello\n");
    for peer in [fresh, halfway, idle] {
        fixture.expect(peer, b"hello\n");
    }
    fixture.expect(staller, b"stall\n");
    // From then on they are idle.
    for _ in 0..4 {
        fixture.expect_timeout(Timeout::Idle);
    }
    fixture.expect_service();
}

fn a_timer_set_after_a_stall_is_not_due<W: World>(world: &mut W) {
    let stall = world.stall();
    let handler = RecordingHandler::echo().when_data(move |conn, session, input| {
        input.clear();
        if session.number == 0 {
            stall(millis(200));
        } else {
            conn.set_timer(conn.now() + millis(100));
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (staller, _) = fixture.enter();
    let (other, number) = fixture.enter();
    let start = fixture.now();
    fixture.send(staller, b"x");
    fixture.send(other, b"x");
    fixture.saw(number, What::Data(1));
    fixture.saw(0, What::Data(1));
    let rung = fixture.saw(number, What::Timer);
    // The system decides which connection comes first in a batch.
    let mut inputs = fixture.handler.log.iter().filter(|entry| entry.what == What::Data(1));
    let stalled_first = inputs.next().map(|entry| entry.id) == Some(fixture.handler.ids[0]);
    let least = if stalled_first { 300 } else { 100 };
    assert!(rung - start >= millis(least), "{:?}", rung - start);
    fixture.expect_service();
}

fn a_timer_set_after_a_stall_in_on_open_is_not_due<W: World>(world: &mut W) {
    let stall = world.stall();
    let handler = RecordingHandler::echo()
        .when_open(move |_, number| {
            if number == 0 {
                stall(millis(200));
            }
            true
        })
        .when_connected(|conn, _| conn.set_timer(conn.now() + millis(100)));
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (_, number) = fixture.enter();
    let opened = fixture.saw(number, What::Open);
    let rung = fixture.saw(number, What::Timer);
    assert!(rung - opened >= millis(300), "{:?}", rung - opened);
    fixture.expect_service();
}

fn a_stall_before_a_request_of_our_own_does_not_count_against_its_reply<W: World>(world: &mut W) {
    let stall = world.stall();
    let handler = RecordingHandler::echo().when_idle(move |conn, session| {
        if session.step == 0 {
            session.step = 1;
            stall(millis(200));
            conn.begin_request();
        }
    });
    let mut config = Config::default();
    config.timeouts.response = Some(millis(250));
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"x");
    let idle = fixture.saw(number, What::Idle);
    let ended = fixture.saw(number, What::Closing(CloseReason::Timeout(Timeout::Response)));
    assert!(ended - idle >= millis(450), "early: {:?}", ended - idle);
    fixture.leave(peer);
    fixture.expect_timeout(Timeout::Response);
    fixture.expect_service();
}
