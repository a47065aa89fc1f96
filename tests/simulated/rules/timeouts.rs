//! Deadlines that no activity of the server puts off.

use super::*;

with_each_personality! {
    output_of_ours_is_no_answer_to_a_ping,
    slow_callbacks_do_not_put_off_the_response_deadline,
    the_loop_comes_up_once_for_what_a_connection_left_in_the_wheel,
    a_place_that_is_filled_anew_ends_its_connection_no_earlier,
    a_place_that_is_filled_anew_ends_its_connection_no_later,
    the_loop_comes_up_once_for_a_connection_that_times_out,
    an_entry_that_is_far_ahead_does_not_stay_with_its_place,
    a_clock_that_jumps_expires_what_is_due_once,
    a_clock_that_is_set_back_ends_nothing_early_and_nothing_never,
    a_timer_that_another_sets_puts_no_deadline_off,
}

fn output_of_ours_is_no_answer_to_a_ping() {
    struct Asker;
    impl Handler for Asker {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }
        fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
            input.clear();
        }
        fn on_health_check(&mut self, conn: &mut Conn<'_>, _: &mut ()) {
            conn.write(b"well?");
        }
    }
    let mut config = Config::default();
    config.timeouts.ping_after = Some(secs(60));
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Asker);
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.advance(secs(62));
    peer.expect(b"well?");
    server.with(|_, cx| {
        let id = cx.ids()[0];
        cx.conn(id).expect("it is open").write(b"news");
    });
    sim.advance(secs(4));
    assert_eq!(peer.closed(), Some(End::Fin));
    server.expect_closed(CloseReason::Timeout(Timeout::Ping));
}

/// Owes a reply for ever, and takes its time over whatever else comes.
struct Owing<F> {
    stall: F,
}

impl<F: Fn(Duration) + 'static> Handler for Owing<F> {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        if conn.in_flight() == 0 {
            conn.begin_request();
        }
        (self.stall)(millis(20));
        input.clear();
    }
}

fn slow_callbacks_do_not_put_off_the_response_deadline() {
    let mut sim = world(1);
    let stall = sim.stall();
    let server = sim.serve(SERVER, Config::default(), Owing { stall });
    let peer = sim.connect(SERVER);
    for _ in 0..14 {
        peer.send(b"x");
        sim.advance(secs(5));
    }
    assert!(peer.closed().is_some());
    peer.close();
    sim.settle();
    server.expect_closed(CloseReason::Timeout(Timeout::Response));
}

fn the_loop_comes_up_once_for_what_a_connection_left_in_the_wheel() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    let peers = [(); 100].map(|()| sim.connect(&server));
    sim.settle();
    peers.iter().for_each(|peer| peer.close());
    sim.settle();
    assert_eq!(server.connections(), 0);
    let turns = server.stats().turns;
    sim.advance(secs(3_600));
    assert!(server.stats().turns - turns <= 2, "they came together and are due together");
    let turns = server.stats().turns;
    sim.advance(secs(3_600));
    assert_eq!(server.stats().turns, turns, "and then it sleeps");
}

fn is_in_first_place(closed: &Closed) -> bool {
    closed.id.to_string().starts_with("0.")
}

fn a_place_that_is_filled_anew_ends_its_connection_no_earlier() {
    let mut sim = world(1);
    let mut config = Config::default();
    config.timeouts.idle = Some(secs(30));
    let server = sim.serve(SERVER, config, Echo);
    let first = sim.connect(&server);
    first.send(b"x");
    sim.advance(secs(20));
    first.close();
    sim.settle();
    let second = sim.connect(&server);
    second.send(b"x");
    sim.advance(millis(29_980));
    assert!(second.is_open(), "what the first one left came up 20 s ago");
    sim.advance(millis(40));
    assert_eq!(second.closed(), Some(End::Fin));
    assert!(server.take_closed().iter().all(is_in_first_place));
}

fn a_place_that_is_filled_anew_ends_its_connection_no_later() {
    let mut sim = world(1);
    let mut config = Config::default();
    config.timeouts.first_byte = Some(secs(5));
    config.timeouts.idle = Some(secs(60));
    let server = sim.serve(SERVER, config, Echo);
    let first = sim.connect(&server);
    first.send(b"x");
    // Its entry stands at the end of its idle time.
    sim.advance(secs(10));
    first.close();
    sim.settle();
    let second = sim.connect(&server);
    sim.advance(millis(4_980));
    assert!(second.is_open());
    sim.advance(millis(40));
    assert_eq!(second.closed(), Some(End::Fin));
    let closed = server.take_closed();
    assert!(closed.iter().all(is_in_first_place));
    assert_eq!(closed[1].reason, CloseReason::Timeout(Timeout::FirstByte));
}

fn the_loop_comes_up_once_for_a_connection_that_times_out() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    let mut peers = Vec::new();
    for _ in 0..50 {
        peers.push(sim.connect(&server));
        sim.advance(millis(100));
    }
    let turns = server.stats().turns;
    sim.advance(secs(3_600));
    assert_eq!(server.connections(), 0);
    assert_eq!(server.stats().turns - turns, 50);
}

fn an_entry_that_is_far_ahead_does_not_stay_with_its_place() {
    let mut config = Config::default();
    config.timeouts.first_byte = Some(secs(86_400));
    config.timeouts.idle = Some(secs(86_400));
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Echo);
    let peer = sim.connect(&server);
    sim.settle();
    peer.close();
    sim.settle();
    let turns = server.stats().turns;
    sim.advance(secs(90_000));
    assert_eq!(server.stats().turns, turns, "the loop sleeps");
}

fn a_clock_that_jumps_expires_what_is_due_once() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    let peers = [(); 20].map(|()| sim.connect(server.address()));
    sim.settle();
    sim.jump_clocks(secs(3_600));
    sim.advance(secs(1));
    assert!(peers.iter().all(|peer| peer.closed() == Some(End::Fin)));
    assert_eq!(server.stats().closed(CloseReason::Timeout(Timeout::FirstByte)), 20);
    sim.assert_clean();
}

fn a_clock_that_is_set_back_ends_nothing_early_and_nothing_never() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    let peer = sim.connect(server.address());
    sim.advance(secs(5));
    let first_byte = Config::default().timeouts.first_byte.unwrap();
    sim.set_back_clocks(secs(3));
    sim.advance(first_byte - secs(5));
    assert!(peer.is_open(), "the clock has three seconds to make up for");
    sim.advance(secs(3) + millis(20));
    assert_eq!(peer.closed(), Some(End::Fin));
    assert_eq!(reasons(&server), [CloseReason::Timeout(Timeout::FirstByte)]);
    sim.assert_clean();
}

/// Sets a timer of the first connection in the past when another sends something.
#[derive(Default)]
struct Alarming {
    first: Option<ConnId>,
    rang: u32,
}

impl Handler for Alarming {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.first.get_or_insert_with(|| conn.id());
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        let past = conn.now() - secs(1);
        if let Some(first) = self.first.filter(|first| *first != conn.id()) {
            conn.other(first).unwrap().set_timer(past);
        }
    }

    fn on_timer(&mut self, _: &mut Conn<'_>, (): &mut ()) {
        self.rang += 1;
    }
}

fn a_timer_that_another_sets_puts_no_deadline_off() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, hasty(), Alarming::default());
    let first = sim.connect(SERVER);
    first.send(b"x");
    sim.settle();
    let other = sim.connect(SERVER);
    other.send_after(secs(1), b"x");
    sim.advance(secs(1));
    assert_eq!(server.handler().rang, 1);
    assert_eq!(reasons(&server), [CloseReason::Timeout(Timeout::Idle)]);
}
