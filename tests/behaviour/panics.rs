//! A panic costs the connection in whose callback it happened, and no other.

use std::cell::Cell;
use std::panic::{panic_any, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use wheelhouse::config::Rate;
use wheelhouse::{CloseReason, Config, Conn, Handler, Reactor};

use crate::harness::{Fixture, Got, RecordingHandler, What, World, few_places, millis};

behaviours! {
    everywhere {
        a_panic_in_on_open_costs_one_connection
        a_panic_in_on_connected_costs_one_connection
        a_panic_in_on_connected_of_a_dial_costs_that_connection
        a_panic_in_on_data_costs_one_connection
        a_panic_in_on_idle_costs_one_connection
        a_panic_in_on_active_costs_one_connection
        a_panic_in_on_eof_costs_one_connection
        a_panic_in_on_drained_costs_one_connection
        a_panic_in_on_timer_costs_one_connection
        a_panic_in_on_closing_costs_one_connection
        a_panic_in_on_closed_costs_one_connection
        a_panic_in_a_closure_for_a_connection_costs_that_connection
        what_a_panicking_callback_wrote_to_others_is_taken_back
        what_a_panicking_callback_dialled_is_not_dialled
        panics_of_connections_are_survived_however_many_they_are
        panics_within_the_limit_are_survived
        panics_do_not_undo_what_others_did_in_the_same_turn
        panics_beyond_the_limit_stop_the_reactor
        a_panic_in_a_posted_closure_stops_the_reactor
        a_panic_in_on_alarm_stops_the_reactor
        a_panic_in_on_shutdown_ends_the_shutdown_at_once
        much_that_a_panicking_callback_wrote_is_not_sent
        a_sink_of_a_dial_that_a_panic_takes_back_is_no_sink_any_more
        a_payload_that_panics_when_it_is_dropped_costs_one_connection
        a_payload_that_panics_when_it_is_dropped_fails_a_callback_of_the_loop
        shared_bytes_whose_owner_panics_cost_nothing
        sessions_and_closures_that_panic_when_they_are_dropped_with_the_reactor
        a_closure_without_a_connection_that_panics_when_it_is_dropped_costs_nothing
    }
}

/// The one connection is lost with a reset, all others are served.
fn expect_one_lost<W: World>(fixture: &mut Fixture<'_, W>) {
    let closed = fixture.expect_closed(CloseReason::HandlerPanic);
    assert_eq!(closed.id, fixture.handler.ids[0]);
    assert_eq!(fixture.reactor.handle().stats().panics, 1);
    fixture.expect_service();
}

fn a_panic_in_on_open_costs_one_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_open(|conn, number| {
        if number == 0 {
            conn.write(b"secret");
            panic!("on purpose");
        }
        conn.write(b"welcome");
        true
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_reset(peer);
    // Without a session there is no `on_closed`.
    assert_eq!(fixture.handler.story(0), [What::Open]);
    assert_eq!(fixture.reactor.handle().stats().panics, 1);
    let peer = fixture.connect();
    fixture.expect(peer, b"welcome");
    assert!(fixture.handler.closed.is_empty());
}

fn a_panic_in_on_connected_costs_one_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_connected(|conn, session| {
        if session.number == 0 {
            conn.write(b"secret");
            panic!("on purpose");
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_reset(peer);
    expect_one_lost(&mut fixture);
}

fn a_panic_in_on_connected_of_a_dial_costs_that_connection<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_connected(|conn, session| {
        if session.number == 0 {
            conn.write(b"secret");
            panic!("on purpose");
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    fixture.reactor.context().connect(address).unwrap();
    let peer = fixture.answer(&mut listener);
    fixture.expect_reset(peer);
    expect_one_lost(&mut fixture);
}

fn a_panic_in_on_data_costs_one_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        if input.starts_with(b"panic") {
            conn.write(b"secret");
            panic!("on purpose");
        }
        conn.write(input);
        input.clear();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (victim, _) = fixture.enter();
    let (bystander, _) = fixture.enter();
    fixture.expect_echo(victim);
    fixture.send(victim, b"panic");
    fixture.send(bystander, b"meanwhile");
    fixture.expect_reset(victim);
    fixture.expect(bystander, b"meanwhile");
    fixture.until("the end", |fixture| !fixture.handler.closed.is_empty());
    assert_eq!((fixture.handler.closed[0].bytes_out, fixture.handler.closed[0].unsent), (5, 6));
    expect_one_lost(&mut fixture);
    fixture.send(bystander, b"and after");
    fixture.expect(bystander, b"and after");
}

fn a_panic_in_on_idle_costs_one_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_idle(|conn, _| {
        conn.write(b"secret");
        panic!("on purpose");
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"hello");
    let (bytes, end) = fixture.read_to_end(peer);
    // What another callback sent before has left already.
    assert_eq!(bytes, b"hello");
    fixture.assert_reset(end);
    expect_one_lost(&mut fixture);
}

fn a_panic_in_on_active_costs_one_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_active(|conn, _| {
        conn.write(b"secret");
        panic!("on purpose");
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_echo(peer);
    fixture.saw(0, What::Idle);
    fixture.send(peer, b"again");
    fixture.expect_reset(peer);
    expect_one_lost(&mut fixture);
}

fn a_panic_in_on_eof_costs_one_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::ignore().when_eof(|conn, _, _| {
        conn.write(b"secret");
        panic!("on purpose");
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"hello");
    fixture.half_close(peer);
    fixture.expect_reset(peer);
    expect_one_lost(&mut fixture);
}

const LARGE: usize = 4 << 20;

fn a_panic_in_on_drained_costs_one_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::replying(b'l', LARGE).when_drained(|conn, _| {
        conn.write(b"secret");
        panic!("on purpose");
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    let (bytes, end) = fixture.read_to_end(peer);
    assert!(!bytes.ends_with(b"secret"));
    fixture.assert_reset(end);
    expect_one_lost(&mut fixture);
}

fn a_panic_in_on_timer_costs_one_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo()
        .when_connected(|conn, session| {
            if session.number == 0 {
                conn.set_timer(conn.now() + millis(20));
            }
        })
        .when_timer(|conn, _| {
            conn.write(b"secret");
            panic!("on purpose");
        });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_reset(peer);
    expect_one_lost(&mut fixture);
}

fn a_panic_in_on_closing_costs_one_connection<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_closing(|conn, _, _| {
        conn.write(b"secret");
        panic!("on purpose");
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"hello");
    fixture.half_close(peer);
    let (bytes, _) = fixture.read_to_end(peer);
    assert_eq!(bytes, b"hello");
    // The reason was known by then, and it is only set once.
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.bytes_out, closed.unsent), (5, 6));
    assert_eq!(fixture.reactor.handle().stats().panics, 1);
    fixture.expect_service();
}

fn a_panic_in_on_closed_costs_one_connection<W: World>(world: &mut W) {
    let mut is_first = true;
    let handler = RecordingHandler::echo().when_closed(move |cx, closed| {
        assert!(!cx.ids().contains(&closed.id), "it is gone");
        if std::mem::take(&mut is_first) {
            panic!("on purpose");
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (victim, _) = fixture.enter();
    let (bystander, _) = fixture.enter();
    fixture.leave(victim);
    fixture.expect_closed(CloseReason::PeerEof);
    fixture.until("a panic", |fixture| fixture.reactor.handle().stats().panics == 1);
    fixture.expect_echo(bystander);
    fixture.expect_service();
    assert_eq!(fixture.reactor.handle().stats().connections, 1);
}

fn a_panic_in_a_closure_for_a_connection_costs_that_connection<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let (peer, _) = fixture.enter();
    let handle = fixture.reactor.handle();
    let id = fixture.handler.ids[0];
    let closure = move |_: &mut RecordingHandler, conn: &mut Conn<'_>, _: &mut _| {
        conn.write(b"secret");
        panic!("on purpose");
    };
    handle.post_to(id, closure).unwrap();
    fixture.expect_reset(peer);
    expect_one_lost(&mut fixture);
}

fn what_a_panicking_callback_wrote_to_others_is_taken_back<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, session, input| {
        let others: Vec<_> = conn.cx().ids();
        if session.number == 0 {
            for id in others {
                if let Some(mut other) = conn.other(id) {
                    other.write(b"secret");
                }
            }
            panic!("on purpose");
        }
        conn.write(input);
        input.clear();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (victim, _) = fixture.enter();
    let (bystander, _) = fixture.enter();
    fixture.send(bystander, b"before");
    fixture.expect(bystander, b"before");
    fixture.send(victim, b"x");
    fixture.expect_reset(victim);
    fixture.send(bystander, b"after");
    fixture.expect(bystander, b"after");
    expect_one_lost(&mut fixture);
}

fn what_a_panicking_callback_dialled_is_not_dialled<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_data(move |conn, _, _| {
        conn.connect(address.clone()).unwrap();
        panic!("on purpose");
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (victim, _) = fixture.enter();
    fixture.send(victim, b"x");
    fixture.expect_reset(victim);
    expect_one_lost(&mut fixture);
    assert!(fixture.world.answer(&mut listener).is_none());
    assert_eq!(fixture.reactor.handle().stats().connections, 0);
}

fn panics_on_data() -> RecordingHandler {
    RecordingHandler::echo().when_data(|_, _, _| panic!("on purpose"))
}

fn lose_one<W: World>(fixture: &mut Fixture<'_, W>) {
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.expect_reset(peer);
    fixture.expect_closed(CloseReason::HandlerPanic);
}

fn panics_of_connections_are_survived_however_many_they_are<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), panics_on_data());
    for _ in 0..50 {
        lose_one(&mut fixture);
    }
    fixture.expect_service();
    assert_eq!(fixture.reactor.handle().stats().panics, 50);
}

/// Two panics within 10 s are within the limit.
fn limited() -> Config {
    Config { panic_limit: Some(Rate::new(2, millis(10_000))), ..Config::default() }
}

fn panics_within_the_limit_are_survived<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, limited(), panics_on_data());
    for _ in 0..2 {
        lose_one(&mut fixture);
    }
    fixture.expect_service();
}

fn panics_do_not_undo_what_others_did_in_the_same_turn<W: World>(world: &mut W) {
    // Each writes its input to the first one, and two of them panic.
    let handler = RecordingHandler::echo().when_data(|conn, session, input| {
        if session.number % 5 == 4 {
            panic!("on purpose");
        }
        let first = conn.cx().ids()[0];
        conn.other(first).unwrap().write(input);
        conn.write(input);
        input.clear();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (first, _) = fixture.enter();
    let peers: Vec<_> = (1..=10).map(|_| fixture.enter().0).collect();
    for peer in &peers {
        fixture.send(*peer, b"word");
    }
    for (number, peer) in (1..).zip(&peers) {
        if number % 5 == 4 {
            fixture.expect_reset(*peer);
            fixture.expect_closed(CloseReason::HandlerPanic);
        } else {
            fixture.expect(*peer, b"word");
        }
    }
    fixture.expect(first, &b"word".repeat(8));
    fixture.expect_silence(first);
    fixture.expect_service();
}

fn panics_beyond_the_limit_stop_the_reactor<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, limited(), panics_on_data());
    let (bystander, _) = fixture.enter();
    for _ in 0..3 {
        let peer = fixture.connect();
        fixture.send(peer, b"x");
    }
    let error = fixture.failure();
    assert!(error.to_string().contains("panicked"), "{error}");
    assert!(fixture.reactor.is_finished());
    // Each connection has ended all the same, and with one reason.
    assert_eq!(fixture.handler.closed.len(), 4);
    let stops =
        |reason| fixture.handler.closed.iter().filter(|closed| closed.reason == reason).count();
    assert_eq!((stops(CloseReason::HandlerPanic), stops(CloseReason::HardStop)), (3, 1));
    let (bytes, end) = fixture.read_to_end_as_it_is(bystander);
    assert!(bytes.is_empty() && end != Got::Nothing, "{end:?}");
}

fn a_panic_in_a_posted_closure_stops_the_reactor<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    fixture.enter();
    let handle = fixture.reactor.handle();
    handle.post(|_, _| panic!("on purpose")).unwrap();
    let error = fixture.failure();
    assert!(error.to_string().contains("panicked"), "{error}");
    assert_eq!(fixture.handler.closed.len(), 1);
    assert_eq!(fixture.handler.closed[0].reason, CloseReason::HardStop);
}

fn a_panic_in_on_alarm_stops_the_reactor<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_alarm(|_, _| panic!("on purpose"));
    let mut fixture = Fixture::new(world, Config::default(), handler);
    fixture.enter();
    let at = fixture.now() + millis(20);
    fixture.reactor.context().set_alarm(at);
    fixture.failure();
    assert_eq!(fixture.handler.closed.len(), 1);
    assert_eq!(fixture.handler.closed[0].reason, CloseReason::HardStop);
}

fn a_panic_in_on_shutdown_ends_the_shutdown_at_once<W: World>(world: &mut W) {
    let called = Rc::new(Cell::new(false));
    let flag = Rc::clone(&called);
    let handler = RecordingHandler::echo().when_shutdown(move |_| {
        flag.set(true);
        panic!("on purpose");
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    fixture.enter();
    fixture.reactor.context().shutdown();
    fixture.failure();
    assert!(called.get());
    assert_eq!(fixture.handler.closed.len(), 1);
}

fn much_that_a_panicking_callback_wrote_is_not_sent<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_connected(|conn, session| {
        if session.number == 0 {
            conn.write_bytes(vec![b's'; 10_000]);
            panic!("on purpose");
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.expect_reset(peer);
    fixture.until("the end", |fixture| !fixture.handler.closed.is_empty());
    assert_eq!(
        (fixture.handler.closed[0].bytes_out, fixture.handler.closed[0].unsent),
        (0, 10_000)
    );
    expect_one_lost(&mut fixture);
}

fn a_sink_of_a_dial_that_a_panic_takes_back_is_no_sink_any_more<W: World>(world: &mut W) {
    let address = world.refusing();
    let handler = RecordingHandler::echo().when_data(move |conn, _, input| {
        input.clear();
        let me = conn.id();
        let feeder = conn.connect(address.clone()).unwrap();
        conn.other(feeder).unwrap().throttle_on(me);
        panic!("on purpose");
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.expect_reset(peer);
    expect_one_lost(&mut fixture);
}

/// Panics when it is dropped, and notes that it was.
struct Bomb {
    bytes: Vec<u8>,
    dropped: Arc<AtomicUsize>,
}

impl Bomb {
    fn new(dropped: &Arc<AtomicUsize>) -> Self {
        Self { bytes: vec![b'b'; 10_000], dropped: Arc::clone(dropped) }
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        // Without the hook, which would print each of them.
        resume_unwind(Box::new("dropped"));
    }
}

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn a_payload_that_panics_when_it_is_dropped_costs_one_connection<W: World>(world: &mut W) {
    let dropped = Arc::new(AtomicUsize::new(0));
    let bombs = [(); 4].map(|()| Arc::clone(&dropped));
    let [data, timer, closing, closed] = bombs;
    let handler = RecordingHandler::echo()
        .when_data(move |conn, session, _| match session.number {
            0 => panic_any(Bomb::new(&data)),
            1 => conn.set_timer(conn.now()),
            _ => conn.close(),
        })
        .when_timer(move |_, _| panic_any(Bomb::new(&timer)))
        .when_closing(move |_, session, _| {
            if session.number == 2 {
                panic_any(Bomb::new(&closing));
            }
        })
        .when_closed(move |_, _| panic_any(Bomb::new(&closed)));
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let reasons = [CloseReason::HandlerPanic, CloseReason::HandlerPanic, CloseReason::HandlerClose];
    for reason in reasons {
        let (peer, _) = fixture.enter();
        fixture.send(peer, b"x");
        fixture.read_to_end(peer);
        fixture.leave(peer);
        fixture.expect_closed(reason);
    }
    fixture.expect_service();
    assert_eq!(dropped.load(Ordering::Relaxed), 6, "one in its callback, one in on_closed");
    assert_eq!(fixture.reactor.handle().stats().panics, 6);
}

fn a_payload_that_panics_when_it_is_dropped_fails_a_callback_of_the_loop<W: World>(world: &mut W) {
    let dropped = Arc::new(AtomicUsize::new(0));
    let bomb = Arc::clone(&dropped);
    let handler = RecordingHandler::echo().when_alarm(move |_, _| panic_any(Bomb::new(&bomb)));
    let mut fixture = Fixture::new(world, Config::default(), handler);
    fixture.enter();
    let now = fixture.now();
    fixture.reactor.context().set_alarm(now);
    let error = fixture.failure();
    assert!(error.to_string().contains("callback of the loop"), "{error}");
    assert_eq!((fixture.handler.closed.len(), dropped.load(Ordering::Relaxed)), (1, 1));
}

fn shared_bytes_whose_owner_panics_cost_nothing<W: World>(world: &mut W) {
    let dropped = Arc::new(AtomicUsize::new(0));
    let bomb = Arc::clone(&dropped);
    let handler = RecordingHandler::echo().when_data(move |conn, _, input| {
        // They leave whole, in part, not at all, or are taken back.
        let word = input[0];
        input.clear();
        let count = if word == b'1' { 1 } else { 500 };
        for _ in 0..count {
            conn.write_bytes(Bytes::from_owner(Bomb::new(&bomb)));
        }
        match word {
            b'a' => conn.abort(),
            b'p' => panic!("on purpose"),
            _ => {}
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"1");
    fixture.read(peer, 10_000);
    fixture.send(peer, b"2");
    fixture.read(peer, 500 * 10_000);
    let mut expected = 501;
    for (word, reason) in [(b"a", CloseReason::HandlerAbort), (b"p", CloseReason::HandlerPanic)] {
        let (peer, _) = fixture.enter();
        fixture.send(peer, word);
        let (_, end) = fixture.read_to_end(peer);
        fixture.assert_reset(end);
        fixture.expect_closed(reason);
        expected += 500;
    }
    fixture.until("the last owner to go", |_| dropped.load(Ordering::Relaxed) == expected);
    fixture.send(peer, b"2");
    fixture.read(peer, 10);
    fixture.reset(peer);
    fixture.closed();
    assert_eq!(dropped.load(Ordering::Relaxed), expected + 500);
    fixture.expect_service();
}

/// Keeps a bomb for each connection.
struct Bombs(Arc<AtomicUsize>);

impl Handler for Bombs {
    type Session = Bomb;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Bomb> {
        Some(Bomb::new(&self.0))
    }

    fn on_data(&mut self, _: &mut Conn<'_>, _: &mut Bomb, _: &mut BytesMut) {}
}

fn sessions_and_closures_that_panic_when_they_are_dropped_with_the_reactor<W: World>(
    world: &mut W,
) {
    let dropped = Arc::new(AtomicUsize::new(0));
    let mut bombs = Bombs(Arc::clone(&dropped));
    let backend = world.backend();
    let mut reactor: Reactor<Bombs, _> = Reactor::with_backend(few_places(), backend).unwrap();
    let listener = reactor.listen(world.address()).unwrap();
    let address = reactor.local_addr(listener).clone();
    let _peers: Vec<_> = (0..3).map(|_| world.connect(&address, None)).collect();
    let handle = reactor.handle();
    while handle.stats().accepted < 3 {
        world.pass(millis(1));
        reactor.turn(&mut bombs, Some(millis(1))).unwrap();
    }
    for _ in 0..3 {
        let bomb = Bomb::new(&dropped);
        handle.post(move |_, _| drop(bomb)).unwrap();
    }
    drop(reactor);
    assert_eq!(dropped.load(Ordering::Relaxed), 6);
}

fn a_closure_without_a_connection_that_panics_when_it_is_dropped_costs_nothing<W: World>(
    world: &mut W,
) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let (peer, _) = fixture.enter();
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    let dropped = Arc::new(AtomicUsize::new(0));
    let (handle, id) = (fixture.reactor.handle(), fixture.handler.ids[0]);
    for _ in 0..3 {
        let bomb = Bomb::new(&dropped);
        handle.post_to(id, move |_, _, _| drop(bomb)).unwrap();
    }
    fixture.until("the closures to go", |_| dropped.load(Ordering::Relaxed) == 3);
    fixture.expect_service();
}
