//! The application's own deadlines: a timer of each connection, and alarms of the loop.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use wheelhouse::{Config, Instant, Timeout};

use crate::harness::{Scene, Script, What, World, assert_on_time, millis};

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
        the_name_of_an_alarm_that_came_means_nothing
        a_great_many_alarms_at_once_delay_nobody_much
    }
}

fn a_great_many_alarms_at_once_delay_nobody_much<W: World>(world: &mut W) {
    const COUNT: usize = 20_000;
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    let (peer, _) = scene.enter();
    let at = scene.now() + millis(50);
    for _ in 0..COUNT {
        scene.reactor.context().set_alarm(at);
    }
    scene.until("the first", |scene| !scene.script.alarms.is_empty());
    assert!(scene.script.alarms.len() < COUNT, "not all in one turn");
    scene.send(peer, b"hello");
    scene.expect(peer, b"hello");
    assert!(scene.script.alarms.len() < COUNT, "who speaks meanwhile is heard meanwhile");
    scene.until("all of them", |scene| scene.script.alarms.len() == COUNT);
    scene.expect_service();
}

/// Sets the timer of every connection when it is connected.
fn timer_at(at: impl Fn(Instant) -> Instant + 'static) -> Script {
    Script::echo().when_connected(move |conn, _| conn.set_timer(at(conn.now())))
}

fn a_timer_is_never_early<W: World>(world: &mut W) {
    for timeout in [1, 9, 10, 11, 100].map(millis) {
        let mut scene = Scene::new(world, Config::default(), timer_at(move |now| now + timeout));
        let (_, number) = scene.enter();
        let start = scene.script.when(number, What::Connected).unwrap();
        let rung = scene.saw(number, What::Timer);
        assert_on_time(rung - start, timeout);
        scene.wait(millis(30));
        assert_eq!(scene.script.count(number, What::Timer), 1, "it comes once");
    }
}

fn a_timer_set_in_every_turn_comes<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, _, input| {
        input.clear();
        conn.set_timer(Instant::EPOCH);
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let (peer, number) = scene.enter();
    let end = scene.now() + millis(300);
    while scene.now() < end {
        scene.try_send(peer, b"x");
        scene.turn();
    }
    let rung = scene.script.count(number, What::Timer);
    assert!(rung >= 10, "it came {rung} times in thirty ticks");
}

fn a_timer_set_in_every_turn_puts_no_deadline_off<W: World>(world: &mut W) {
    // Not a whole number of ticks, so that the deadline lies between two.
    let timeout = millis(205);
    let script = Script::echo().when_data(|conn, _, input| {
        input.clear();
        conn.expect_more_input();
        conn.set_timer(conn.now() + Duration::from_secs(10));
    });
    let mut config = Config::default();
    config.timeouts.request = Some(timeout);
    let mut scene = Scene::new(world, config, script);
    let (peer, _) = scene.enter();
    let start = scene.now();
    while scene.script.closed.is_empty() && scene.now() < start + timeout + millis(500) {
        scene.try_send(peer, b"x");
        scene.turn();
    }
    scene.expect_timeout(Timeout::Request);
}

fn a_timer_that_was_cleared_does_not_come<W: World>(world: &mut W) {
    let script = timer_at(|now| now + millis(50)).when_data(|conn, _, input| {
        input.clear();
        conn.clear_timer();
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let (peer, number) = scene.enter();
    scene.send(peer, b"x");
    scene.wait(millis(120));
    assert_eq!(scene.script.count(number, What::Timer), 0);
    // And it may be set again.
    scene.with(number, |conn| conn.set_timer(conn.now() + millis(20)));
    scene.saw(number, What::Timer);
}

fn a_timer_may_be_set_again_from_its_own_callback<W: World>(world: &mut W) {
    let script = timer_at(|now| now + millis(30)).when_timer(|conn, session| {
        session.step += 1;
        if session.step < 5 {
            conn.set_timer(conn.now() + millis(30));
        }
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let (_, number) = scene.enter();
    let start = scene.script.when(number, What::Connected).unwrap();
    scene.until("five rings", |scene| scene.script.count(number, What::Timer) == 5);
    let rung = scene.script.when(number, What::Timer).unwrap();
    assert_on_time(rung - start, millis(150));
    scene.wait(millis(60));
    assert_eq!(scene.script.count(number, What::Timer), 5);
}

fn a_later_timer_replaces_an_earlier_one<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), timer_at(|now| now + millis(30)));
    let (_, number) = scene.enter();
    let start = scene.now();
    scene.with(number, |conn| conn.set_timer(conn.now() + millis(120)));
    let rung = scene.saw(number, What::Timer);
    assert_on_time(rung - start, millis(120));
}

fn an_earlier_timer_replaces_a_later_one<W: World>(world: &mut W) {
    let later = |now| now + Duration::from_secs(3_600);
    let mut scene = Scene::new(world, Config::default(), timer_at(later));
    let (_, number) = scene.enter();
    let start = scene.now();
    scene.with(number, |conn| conn.set_timer(conn.now() + millis(40)));
    let rung = scene.saw(number, What::Timer);
    assert_on_time(rung - start, millis(40));
}

fn a_timer_in_the_past_comes_in_the_next_turn<W: World>(world: &mut W) {
    let script = timer_at(|_| Instant::EPOCH).when_timer(|conn, _| conn.set_timer(Instant::EPOCH));
    let mut scene = Scene::new(world, Config::default(), script);
    let (peer, number) = scene.enter();
    let mut before = scene.script.count(number, What::Timer);
    let start = scene.now();
    scene.until("twenty rings", |scene| {
        let count = scene.script.count(number, What::Timer);
        assert!(count <= before + 1, "one callback does not call itself within a turn");
        before = count;
        count >= 20
    });
    let took = scene.now() - start;
    assert!(took < Duration::from_secs(2), "{took:?}");
    // Whoever sets such timers starves nobody.
    scene.send(peer, b"hello");
    scene.expect(peer, b"hello");
}

fn a_timer_in_the_far_future_never_comes<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), timer_at(|_| Instant::FAR_FUTURE));
    let (peer, number) = scene.enter();
    scene.send(peer, b"hello");
    scene.expect(peer, b"hello");
    scene.wait(millis(80));
    assert_eq!(scene.script.count(number, What::Timer), 0);
    scene.with(number, |conn| conn.set_timer(conn.now() + Duration::MAX));
    scene.wait(millis(40));
    assert_eq!(scene.script.count(number, What::Timer), 0);
    scene.with(number, |conn| conn.set_timer(conn.now() + millis(40)));
    scene.saw(number, What::Timer);
}

fn a_timer_of_a_connection_that_closes_does_not_come<W: World>(world: &mut W) {
    let script = timer_at(|now| now + millis(50)).when_data(|conn, _, input| {
        conn.write(input);
        input.clear();
        conn.close();
        conn.set_timer(conn.now() + millis(20));
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let (peer, number) = scene.enter();
    scene.send(peer, b"x");
    // It lingers meanwhile.
    scene.wait(millis(120));
    scene.expect_none_closed();
    assert_eq!(scene.script.count(number, What::Timer), 0);
}

fn a_timer_does_not_keep_a_connection_from_being_idle<W: World>(world: &mut W) {
    let mut config = Config::default();
    config.timeouts.idle = Some(millis(100));
    let script = timer_at(|now| now + millis(20))
        .when_timer(|conn, _| conn.set_timer(conn.now() + millis(20)));
    let mut scene = Scene::new(world, config, script);
    let (peer, number) = scene.enter();
    scene.send(peer, b"hello");
    scene.expect(peer, b"hello");
    let idle = scene.saw(number, What::Idle);
    scene.expect_timeout(Timeout::Idle);
    scene.assert_took(idle, millis(100));
    assert!(scene.script.count(number, What::Timer) > 2);
}

fn an_alarm_is_never_early<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    for timeout in [1, 9, 10, 11, 100].map(millis) {
        let start = scene.now();
        let alarm = scene.reactor.context().set_alarm(start + timeout);
        scene.until("the alarm", |scene| !scene.script.alarms.is_empty());
        let (at, rung) = scene.script.alarms.pop().unwrap();
        assert_eq!(rung, alarm);
        assert_on_time(at - start, timeout);
    }
    scene.wait(millis(30));
    assert_eq!(scene.script.alarms, [], "each comes once");
}

fn an_alarm_that_was_cancelled_does_not_come<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    let at = scene.now() + millis(40);
    let alarm = scene.reactor.context().set_alarm(at);
    let kept = scene.reactor.context().set_alarm(at);
    scene.reactor.context().cancel_alarm(alarm);
    scene.reactor.context().cancel_alarm(alarm);
    scene.wait(millis(100));
    let rung: Vec<_> = scene.script.alarms.iter().map(|(_, alarm)| *alarm).collect();
    assert_eq!(rung, [kept]);
}

fn an_alarm_may_be_set_again_from_its_own_callback<W: World>(world: &mut W) {
    let left = Cell::new(4);
    let script = Script::echo().when_alarm(move |cx, _| {
        if left.replace(left.get() - 1) > 0 {
            cx.set_alarm(cx.now() + millis(30));
        }
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let start = scene.now();
    scene.reactor.context().set_alarm(start + millis(30));
    scene.until("five alarms", |scene| scene.script.alarms.len() == 5);
    let (at, _) = scene.script.alarms[4];
    assert_on_time(at - start, millis(150));
}

fn alarms_come_in_order<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    let start = scene.now();
    let mut alarms: Vec<_> = [90, 30, 60, 120]
        .into_iter()
        .map(|timeout| (timeout, scene.reactor.context().set_alarm(start + millis(timeout))))
        .collect();
    scene.until("all of them", |scene| scene.script.alarms.len() == alarms.len());
    alarms.sort();
    let rung: Vec<_> = scene.script.alarms.iter().map(|(_, alarm)| *alarm).collect();
    assert_eq!(rung, alarms.into_iter().map(|(_, alarm)| alarm).collect::<Vec<_>>());
}

fn an_alarm_in_the_past_comes_in_the_next_turn<W: World>(world: &mut W) {
    let script = Script::echo().when_alarm(|cx, _| {
        cx.set_alarm(Instant::EPOCH);
    });
    let mut scene = Scene::new(world, Config::default(), script);
    scene.reactor.context().set_alarm(Instant::EPOCH);
    let mut before = 0;
    scene.until("twenty alarms", |scene| {
        let count = scene.script.alarms.len();
        assert!(count <= before + 1, "one callback does not call itself within a turn");
        before = count;
        count >= 20
    });
    scene.expect_service();
}

fn an_alarm_in_the_far_future_never_comes<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    let alarm = scene.reactor.context().set_alarm(Instant::FAR_FUTURE);
    let beyond = scene.now() + Duration::MAX;
    scene.reactor.context().set_alarm(beyond);
    scene.wait(millis(50));
    assert_eq!(scene.script.alarms, []);
    scene.reactor.context().cancel_alarm(alarm);
    scene.expect_service();
}

fn the_name_of_an_alarm_that_came_means_nothing<W: World>(world: &mut W) {
    let first = Rc::new(RefCell::new(None));
    let kept = Rc::clone(&first);
    let script = Script::echo().when_alarm(move |cx, alarm| {
        let first = *kept.borrow_mut().get_or_insert(alarm);
        if alarm == first {
            cx.set_alarm(cx.now() + millis(20));
        }
        // It must not hit the one that has its place now.
        cx.cancel_alarm(first);
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let at = scene.now() + millis(20);
    scene.reactor.context().set_alarm(at);
    scene.until("both", |scene| scene.script.alarms.len() == 2);
    assert_ne!(scene.script.alarms[0].1, scene.script.alarms[1].1);
}
