//! The application's own deadlines: a timer of each connection, and alarms of the loop.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use wheelhouse::{Config, Instant, Timeout};

use crate::harness::{Fixture, RecordingHandler, What, World, assert_on_time, millis, secs};

behaviours! {
    everywhere {
        a_timer_is_never_early
        a_timer_that_was_cleared_does_not_come
        a_timer_may_be_set_again_from_its_own_callback
        a_later_timer_replaces_an_earlier_one
        an_earlier_timer_replaces_a_later_one
        a_timer_in_the_past_comes_in_the_next_turn
        a_timer_in_the_far_future_never_comes
        a_timer_set_in_every_turn_comes
        a_timer_set_in_every_turn_puts_no_deadline_off
        a_timer_of_a_connection_that_closes_does_not_come
        a_timer_does_not_keep_a_connection_from_being_idle
        an_alarm_is_never_early
        an_alarm_that_was_cancelled_does_not_come
        an_alarm_may_be_set_again_from_its_own_callback
        alarms_come_in_order
        an_alarm_in_the_past_comes_in_the_next_turn
        an_alarm_in_the_far_future_never_comes
        the_id_of_an_alarm_that_expired_names_nothing
        a_great_many_alarms_at_once_delay_no_client_much
    }
}

fn a_great_many_alarms_at_once_delay_no_client_much<W: World>(world: &mut W) {
    const COUNT: usize = 20_000;
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let (peer, _) = fixture.enter();
    let at = fixture.now() + millis(50);
    for _ in 0..COUNT {
        fixture.reactor.context().set_alarm(at);
    }
    fixture.until("the first", |fixture| !fixture.handler.alarms.is_empty());
    assert!(fixture.handler.alarms.len() < COUNT, "not all in one turn");
    fixture.expect_echo(peer);
    assert!(
        fixture.handler.alarms.len() < COUNT,
        "a peer that sends meanwhile is served meanwhile"
    );
    fixture.until("all of them", |fixture| fixture.handler.alarms.len() == COUNT);
    fixture.expect_service();
}

/// Sets the timer of every connection when it is connected.
fn timer_at(at: impl Fn(Instant) -> Instant + 'static) -> RecordingHandler {
    RecordingHandler::echo().when_connected(move |conn, _| conn.set_timer(at(conn.now())))
}

fn a_timer_is_never_early<W: World>(world: &mut W) {
    for timeout in [1, 9, 10, 11, 100].map(millis) {
        let mut fixture =
            Fixture::new(world, Config::default(), timer_at(move |now| now + timeout));
        let (_, number) = fixture.enter();
        let start = fixture.handler.when(number, What::Connected).unwrap();
        let rung = fixture.saw(number, What::Timer);
        assert_on_time(rung - start, timeout);
        fixture.wait(millis(30));
        assert_eq!(fixture.handler.count(number, What::Timer), 1, "it comes once");
    }
}

fn a_timer_set_in_every_turn_comes<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.set_timer(Instant::EPOCH);
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, number) = fixture.enter();
    let end = fixture.now() + millis(300);
    while fixture.now() < end {
        fixture.try_send(peer, b"x");
        fixture.turn();
    }
    let rung = fixture.handler.count(number, What::Timer);
    assert!(rung >= 10, "it came {rung} times in thirty ticks");
}

fn a_timer_set_in_every_turn_puts_no_deadline_off<W: World>(world: &mut W) {
    // Not a whole number of ticks, so that the deadline lies between two.
    let timeout = millis(205);
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.expect_more_input();
        conn.set_timer(conn.now() + secs(10));
    });
    let mut config = Config::default();
    config.timeouts.request = Some(timeout);
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, _) = fixture.enter();
    let start = fixture.now();
    while fixture.handler.closed.is_empty() && fixture.now() < start + timeout + millis(500) {
        fixture.try_send(peer, b"x");
        fixture.turn();
    }
    fixture.expect_timeout(Timeout::Request);
}

fn a_timer_that_was_cleared_does_not_come<W: World>(world: &mut W) {
    let handler = timer_at(|now| now + millis(50)).when_data(|conn, _, input| {
        input.clear();
        conn.clear_timer();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.wait(millis(120));
    assert_eq!(fixture.handler.count(number, What::Timer), 0);
    // And it may be set again.
    fixture.with(number, |conn| conn.set_timer(conn.now() + millis(20)));
    fixture.saw(number, What::Timer);
}

fn a_timer_may_be_set_again_from_its_own_callback<W: World>(world: &mut W) {
    let handler = timer_at(|now| now + millis(30)).when_timer(|conn, session| {
        session.step += 1;
        if session.step < 5 {
            conn.set_timer(conn.now() + millis(30));
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (_, number) = fixture.enter();
    let start = fixture.handler.when(number, What::Connected).unwrap();
    fixture.until("five rings", |fixture| fixture.handler.count(number, What::Timer) == 5);
    let rung = fixture.handler.when(number, What::Timer).unwrap();
    assert_on_time(rung - start, millis(150));
    fixture.wait(millis(60));
    assert_eq!(fixture.handler.count(number, What::Timer), 5);
}

fn a_later_timer_replaces_an_earlier_one<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), timer_at(|now| now + millis(30)));
    let (_, number) = fixture.enter();
    let start = fixture.now();
    fixture.with(number, |conn| conn.set_timer(conn.now() + millis(120)));
    let rung = fixture.saw(number, What::Timer);
    assert_on_time(rung - start, millis(120));
}

fn an_earlier_timer_replaces_a_later_one<W: World>(world: &mut W) {
    let later = |now| now + secs(3_600);
    let mut fixture = Fixture::new(world, Config::default(), timer_at(later));
    let (_, number) = fixture.enter();
    let start = fixture.now();
    fixture.with(number, |conn| conn.set_timer(conn.now() + millis(40)));
    let rung = fixture.saw(number, What::Timer);
    assert_on_time(rung - start, millis(40));
}

fn a_timer_in_the_past_comes_in_the_next_turn<W: World>(world: &mut W) {
    let handler = timer_at(|_| Instant::EPOCH).when_timer(|conn, _| conn.set_timer(Instant::EPOCH));
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, number) = fixture.enter();
    let mut before = fixture.handler.count(number, What::Timer);
    let start = fixture.now();
    fixture.until("twenty rings", |fixture| {
        let count = fixture.handler.count(number, What::Timer);
        assert!(count <= before + 1, "one callback does not call itself within a turn");
        before = count;
        count >= 20
    });
    let took = fixture.now() - start;
    assert!(took < secs(2), "{took:?}");
    // A connection that sets such timers starves no other.
    fixture.expect_echo(peer);
}

fn a_timer_in_the_far_future_never_comes<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), timer_at(|_| Instant::FAR_FUTURE));
    let (peer, number) = fixture.enter();
    fixture.expect_echo(peer);
    fixture.wait(millis(80));
    assert_eq!(fixture.handler.count(number, What::Timer), 0);
    fixture.with(number, |conn| conn.set_timer(conn.now() + Duration::MAX));
    fixture.wait(millis(40));
    assert_eq!(fixture.handler.count(number, What::Timer), 0);
    fixture.with(number, |conn| conn.set_timer(conn.now() + millis(40)));
    fixture.saw(number, What::Timer);
}

fn a_timer_of_a_connection_that_closes_does_not_come<W: World>(world: &mut W) {
    let handler = timer_at(|now| now + millis(50)).when_data(|conn, _, input| {
        conn.write(input);
        input.clear();
        conn.close();
        conn.set_timer(conn.now() + millis(20));
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"x");
    // It lingers meanwhile.
    fixture.wait(millis(120));
    fixture.expect_none_closed();
    assert_eq!(fixture.handler.count(number, What::Timer), 0);
}

fn a_timer_does_not_keep_a_connection_from_being_idle<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.idle = Some(millis(100));
    let handler = timer_at(|now| now + millis(20))
        .when_timer(|conn, _| conn.set_timer(conn.now() + millis(20)));
    let mut fixture = Fixture::new(world, config, handler);
    let (peer, number) = fixture.enter();
    fixture.expect_echo(peer);
    let idle = fixture.saw(number, What::Idle);
    fixture.expect_timeout(Timeout::Idle);
    fixture.assert_took(idle, millis(100));
    // After a pause of the process several are due at once, and come as one.
    assert!(fixture.handler.count(number, What::Timer) > 0);
}

fn an_alarm_is_never_early<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    for timeout in [1, 9, 10, 11, 100].map(millis) {
        let start = fixture.now();
        let alarm = fixture.reactor.context().set_alarm(start + timeout);
        fixture.until("the alarm", |fixture| !fixture.handler.alarms.is_empty());
        let (at, rung) = fixture.handler.alarms.pop().unwrap();
        assert_eq!(rung, alarm);
        assert_on_time(at - start, timeout);
    }
    fixture.wait(millis(30));
    assert_eq!(fixture.handler.alarms, [], "each comes once");
}

fn an_alarm_that_was_cancelled_does_not_come<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let at = fixture.now() + millis(40);
    let alarm = fixture.reactor.context().set_alarm(at);
    let kept = fixture.reactor.context().set_alarm(at);
    fixture.reactor.context().cancel_alarm(alarm);
    fixture.reactor.context().cancel_alarm(alarm);
    fixture.wait(millis(100));
    let rung: Vec<_> = fixture.handler.alarms.iter().map(|(_, alarm)| *alarm).collect();
    assert_eq!(rung, [kept]);
}

fn an_alarm_may_be_set_again_from_its_own_callback<W: World>(world: &mut W) {
    let left = Cell::new(4);
    let handler = RecordingHandler::echo().when_alarm(move |cx, _| {
        if left.replace(left.get() - 1) > 0 {
            cx.set_alarm(cx.now() + millis(30));
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let start = fixture.now();
    fixture.reactor.context().set_alarm(start + millis(30));
    fixture.until("five alarms", |fixture| fixture.handler.alarms.len() == 5);
    let (at, _) = fixture.handler.alarms[4];
    assert_on_time(at - start, millis(150));
}

fn alarms_come_in_order<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let start = fixture.now();
    let mut alarms: Vec<_> = [90, 30, 60, 120]
        .into_iter()
        .map(|timeout| (timeout, fixture.reactor.context().set_alarm(start + millis(timeout))))
        .collect();
    fixture.until("all of them", |fixture| fixture.handler.alarms.len() == alarms.len());
    alarms.sort();
    let rung: Vec<_> = fixture.handler.alarms.iter().map(|(_, alarm)| *alarm).collect();
    assert_eq!(rung, alarms.into_iter().map(|(_, alarm)| alarm).collect::<Vec<_>>());
}

fn an_alarm_in_the_past_comes_in_the_next_turn<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_alarm(|cx, _| {
        cx.set_alarm(Instant::EPOCH);
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    fixture.reactor.context().set_alarm(Instant::EPOCH);
    let mut before = 0;
    fixture.until("twenty alarms", |fixture| {
        let count = fixture.handler.alarms.len();
        assert!(count <= before + 1, "one callback does not call itself within a turn");
        before = count;
        count >= 20
    });
    fixture.expect_service();
}

fn an_alarm_in_the_far_future_never_comes<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let alarm = fixture.reactor.context().set_alarm(Instant::FAR_FUTURE);
    let beyond = fixture.now() + Duration::MAX;
    fixture.reactor.context().set_alarm(beyond);
    fixture.wait(millis(50));
    assert_eq!(fixture.handler.alarms, []);
    fixture.reactor.context().cancel_alarm(alarm);
    fixture.expect_service();
}

fn the_id_of_an_alarm_that_expired_names_nothing<W: World>(world: &mut W) {
    let first = Rc::new(RefCell::new(None));
    let kept = Rc::clone(&first);
    let handler = RecordingHandler::echo().when_alarm(move |cx, alarm| {
        let first = *kept.borrow_mut().get_or_insert(alarm);
        if alarm == first {
            cx.set_alarm(cx.now() + millis(20));
        }
        // It must not reach the connection that has its place now.
        cx.cancel_alarm(first);
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let at = fixture.now() + millis(20);
    fixture.reactor.context().set_alarm(at);
    fixture.until("both", |fixture| fixture.handler.alarms.len() == 2);
    assert_ne!(fixture.handler.alarms[0].1, fixture.handler.alarms[1].1);
}
