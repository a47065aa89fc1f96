//! Whatever one callback asks for, no turn after it keeps the others waiting: each step of a turn has
//! a budget in count and in time. Here each call of the reactor takes the time it takes on Linux.
//!
//! In a build with debug assertions there are a tenth of the connections.

use std::time::Duration;

use crate::scenarios::{millis, secs, serve_echo};
use bytes::BytesMut;
use wheelhouse::sim::{Peer, Server, Sim};
use wheelhouse::{AlarmId, Closed, Config, Conn, ConnId, Context, Handler, Target};

/// The most that a turn may work.
const TURN_MAX: Duration = millis(10);

/// The most that a bystander may wait for its echo.
const ECHO_MAX: Duration = millis(25);

const fn scaled(count: usize) -> usize {
    if cfg!(debug_assertions) { count / 10 } else { count }
}

/// Echoes, and records its callbacks.
#[derive(Default)]
struct Echo {
    ids: Vec<ConnId>,
    rung: Vec<AlarmId>,
    connected: usize,
    work: Option<Box<dyn Fn()>>,
}

impl Handler for Echo {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.ids.push(conn.id());
        Some(())
    }

    fn on_connected(&mut self, _: &mut Conn<'_>, (): &mut ()) {
        self.connected += 1;
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        if let Some(work) = &self.work {
            work();
        }
        conn.write(input);
        input.clear();
    }

    fn on_alarm(&mut self, _: &mut Context<'_>, alarm: AlarmId) {
        self.rung.push(alarm);
    }
}

struct World {
    sim: Sim,
    server: Server<Echo>,
    bystander: Peer,
    peers: Vec<Peer>,
    /// The longest that the bystander is to wait.
    wait_max: Duration,
}

/// A server with so many clients, and one that only wants its echoes.
fn world(count: usize) -> World {
    let mut sim = Sim::new(1);
    sim.set_buffers(8_192, 8_192);
    sim.set_descriptors(200_000);
    let mut config = Config::default();
    config.limits.max_connections = Some(100_000);
    config.timeouts.idle = Some(secs(3_600));
    let server = sim.serve("10.0.0.1:7", config, Echo::default());
    let bystander = sim.connect(&server);
    sim.settle();
    let mut peers = Vec::new();
    for _ in 0..count.div_ceil(1_000) {
        peers.extend((0..1_000.min(count - peers.len())).map(|_| sim.connect(&server)));
        sim.settle();
    }
    assert_eq!(server.connections(), count + 1);
    for peer in &peers {
        peer.send(b"x");
    }
    sim.settle();
    sim.charge_calls(true);
    World { sim, server, bystander, peers, wait_max: ECHO_MAX }
}

/// Peers that are about to want something in the same moment: the last one waits for them all.
fn all_at_once() -> World {
    let count = scaled(20_000);
    World { wait_max: ECHO_MAX * (count / 2_000) as u32, ..world(count) }
}

impl World {
    /// Does something in one callback, and checks how long turns last and the bystander waits until
    /// `done` says that it is over.
    fn after(
        &mut self,
        act: impl FnOnce(&mut Echo, &mut Context<'_>),
        done: impl Fn(&Self) -> bool,
    ) {
        self.server.with(act);
        self.server.take_longest_turn();
        // So that no step of the world is longer than a millisecond.
        let metronome = self.sim.connect(&self.server);
        metronome.drip(&[b'.'; 20_000], millis(1));
        let until = self.sim.now() + secs(20);
        let mut slowest = Duration::ZERO;
        while !done(self) {
            assert!(self.sim.now() < until, "it is never done");
            self.bystander.take();
            self.bystander.send(b"!");
            let asked = self.sim.now();
            while self.bystander.received().is_empty() {
                self.sim.step();
            }
            slowest = slowest.max(self.sim.now() - asked);
        }
        let turn = self.server.take_longest_turn();
        assert!(turn <= TURN_MAX, "a turn works for {turn:?}");
        assert!(slowest <= self.wait_max, "a bystander waits for {slowest:?}");
        metronome.close();
    }
}

#[test]
fn many_dials_in_one_callback_delay_no_client() {
    let count = scaled(15_000);
    let mut world = world(0);
    let listener = world.sim.listen("10.9.0.1:80", count);
    world.after(
        |_, cx| {
            for _ in 0..count {
                let target: Target = "10.9.0.1:80".parse().expect("an address");
                cx.connect(target).expect("there is room");
            }
        },
        |world| world.server.handler().connected == count + 2,
    );
    drop(listener);
}

#[test]
fn a_broadcast_to_many_delays_no_other_client() {
    let mut world = world(scaled(70_000));
    world.after(
        |echo, cx| {
            for id in &echo.ids {
                cx.conn(*id).expect("it is open").write(b"hello, all of you");
            }
        },
        |world| world.peers.iter().all(|peer| peer.received().len() >= 18),
    );
}

#[test]
fn many_aborts_in_one_callback_delay_no_client() {
    let mut world = world(scaled(20_000));
    let bystander = world.server.handler().ids[0];
    world.after(
        |echo, cx| {
            for id in echo.ids.iter().filter(|id| **id != bystander) {
                cx.conn(*id).expect("it is open").abort();
            }
        },
        |world| world.server.connections() == 2,
    );
}

#[test]
fn many_peers_that_leave_at_once_delay_no_client() {
    let mut world = all_at_once();
    let peers = std::mem::take(&mut world.peers);
    for peer in &peers {
        peer.close();
    }
    world.after(|_, _| {}, |world| world.server.connections() == 2);
}

#[test]
fn many_deadlines_at_once_delay_no_client() {
    let mut world = world(scaled(20_000));
    world.after(
        |echo, cx| {
            let mut timeouts = Config::default().timeouts;
            timeouts.idle = Some(millis(20));
            for id in &echo.ids[1..] {
                cx.conn(*id).expect("it is open").set_timeouts(&timeouts);
            }
        },
        |world| world.server.connections() == 2,
    );
}

#[test]
fn many_requests_at_once_delay_no_client() {
    let mut world = all_at_once();
    for peer in &world.peers {
        peer.take();
        peer.send(b"hello");
    }
    world.after(|_, _| {}, |world| world.peers.iter().all(|peer| peer.received().len() == 5));
}

#[test]
fn alarms_come_in_the_order_of_their_times_and_of_their_setting() {
    let mut sim = Sim::new(1);
    let server = sim.serve("10.0.0.1:7", Config::default(), Echo::default());
    // All of them come up in one tick.
    let order = [5, 3, 9, 3, 0, 7, 3, 1, 9, 0];
    let set: Vec<_> = server.with(|_, cx| {
        let at = cx.now() + secs(1);
        order.map(|micros| (micros, cx.set_alarm(at + Duration::from_micros(micros)))).into()
    });
    let mut many: Vec<_> = server.with(|_, cx| {
        let at = cx.now() + secs(2);
        (0..3_000).map(|_| cx.set_alarm(at)).collect()
    });
    // One that another has cancelled does not come.
    let cancelled = many.remove(1_500);
    server.with(|_, cx| cx.cancel_alarm(cancelled));
    sim.advance(secs(3));
    let mut want = set;
    want.sort_by_key(|(micros, _)| *micros);
    let want: Vec<_> = want.into_iter().map(|(_, alarm)| alarm).chain(many).collect();
    assert!(server.handler().rung == want, "by time, and then in the order of setting");
}

#[test]
fn a_timer_that_was_due_before_the_response_deadline_comes_first() {
    /// Owes a reply, and writes it when its timer comes.
    struct Late;

    impl Handler for Late {
        type Session = ();

        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }

        fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
            input.clear();
            conn.begin_request();
            conn.set_timer(conn.now() + secs(5));
        }

        fn on_timer(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
            conn.write(b"the reply");
            conn.end_request();
        }
    }

    let mut sim = Sim::new(1);
    let server = sim.serve("10.0.0.1:7", Config::default(), Late);
    let peer = sim.connect(&server);
    peer.send(b"?");
    sim.advance(secs(1));
    // The process stands still for longer than the deadline is.
    sim.jump_clocks(secs(120));
    sim.settle();
    sim.advance(secs(1));
    peer.expect(b"the reply");
    assert!(peer.is_open());
}

#[test]
fn many_short_callbacks_are_no_stall() {
    let mut world = world(200);
    let stall = world.sim.stall();
    world.server.with(|echo, _| {
        echo.work = Some(Box::new(move || stall(Duration::from_micros(300))));
    });
    for peer in &world.peers {
        peer.send(b"x");
    }
    world.sim.advance(secs(1));
    assert_eq!(world.server.stats().stalls, 0, "none of them was long");
    let stall = world.sim.stall();
    world.server.with(|echo, _| echo.work = Some(Box::new(move || stall(millis(40)))));
    world.bystander.send(b"x");
    world.sim.advance(secs(1));
    let stats = world.server.stats();
    assert_eq!(stats.stalls, 1);
    let longest = Duration::from_nanos(stats.longest_callback);
    assert!(longest >= millis(34) && longest <= millis(41));
}

#[test]
fn the_longest_turn_is_known_with_the_step_that_took_it() {
    let mut world = world(0);
    assert_eq!(world.server.stats().worst_step(), None);
    let stall = world.sim.stall();
    world.server.with(|echo, _| echo.work = Some(Box::new(move || stall(millis(40)))));
    world.bystander.send(b"x");
    world.sim.advance(secs(1));
    // A turn is counted when the next one begins.
    world.bystander.send(b"x");
    world.sim.advance(secs(1));
    let stats = world.server.stats();
    assert_eq!(stats.worst_step(), Some("events"));
    assert!(Duration::from_nanos(stats.worst_turn) >= millis(40));
}

/// Takes its time over the beginning of a shutdown.
struct SlowStop {
    work: Box<dyn Fn(Duration)>,
}

impl Handler for SlowStop {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {}

    fn on_shutdown(&mut self, _: &mut Context<'_>) {
        (self.work)(millis(40));
    }
}

#[test]
fn a_long_beginning_of_a_shutdown_is_known_as_such() {
    let mut sim = Sim::new(1);
    let work = Box::new(sim.stall());
    let server = sim.serve("10.0.0.1:7", Config::default(), SlowStop { work });
    let _peer = sim.connect(&server);
    sim.advance(secs(1));
    server.shutdown();
    sim.advance(secs(1));
    assert_eq!(server.stats().worst_step(), Some("shutdown"));
}

/// A tunnel whose timer comes again and again, and takes a millisecond each time.
struct Busy {
    work: Box<dyn Fn(Duration)>,
    came: u32,
}

impl Handler for Busy {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        conn.tunnel();
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        conn.set_timer(conn.now());
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        (self.work)(millis(1));
        self.came += 1;
        if self.came == 1_000 {
            conn.cx().shutdown();
        }
        conn.set_timer(conn.now());
    }
}

#[test]
fn timers_that_are_always_due_do_not_put_the_end_of_a_shutdown_off() {
    let mut sim = Sim::new(1);
    let work = Box::new(sim.stall());
    let config = Config { shutdown_timeout: Some(secs(5)), ..Config::default() };
    let server = sim.serve("10.0.0.1:7", config, Busy { work, came: 0 });
    let peers: Vec<_> = (0..100).map(|_| sim.connect(&server)).collect();
    sim.settle();
    for peer in &peers {
        peer.send(b"x");
    }
    let begun = sim.now();
    while !server.is_finished() && sim.now() - begun < secs(20) {
        sim.advance(millis(100));
    }
    assert!(server.is_finished(), "it has {} connections", server.connections());
}

/// Answers with much and closes, and takes its time over each end.
struct SlowEnd {
    work: Box<dyn Fn(Duration)>,
}

impl Handler for SlowEnd {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        conn.write(&[b'x'; 100_000]);
        conn.close();
    }

    fn on_closed(&mut self, _: &mut Context<'_>, _: Closed, (): ()) {
        (self.work)(millis(1));
    }
}

/// The world compares the sums after each turn.
#[test]
fn what_is_released_is_accounted_for_before_it_is_closed() {
    let mut sim = Sim::new(1);
    sim.set_buffers(8_192, 65_536);
    let work = Box::new(sim.stall());
    let server = sim.serve("10.0.0.1:7", Config::default(), SlowEnd { work });
    let peers: Vec<_> = (0..200)
        .map(|_| {
            let peer = sim.connect(&server);
            peer.stop_reading();
            peer.send(b"x");
            peer.half_close();
            peer
        })
        .collect();
    sim.advance(secs(1));
    for peer in &peers {
        peer.resume_reading();
    }
    sim.advance(secs(2));
    assert_eq!(server.connections(), 0);
}

#[test]
fn the_time_between_two_turns_belongs_to_none() {
    let mut world = world(80);
    world.sim.charge_calls(false);
    for peer in world.peers.drain(40..) {
        peer.close();
    }
    world.sim.advance(secs(20));
    assert_eq!(world.server.stats().worst_step(), None, "no call took any time");
}

#[test]
fn a_crowd_that_closes_at_once_does_not_make_the_loop_spin() {
    let mut sim = Sim::new(1);
    let server = serve_echo(&mut sim);
    let mut peers = Vec::new();
    for _ in 0..10 {
        peers.extend((0..1_000).map(|_| sim.connect(&server)));
        sim.settle();
    }
    peers.iter().for_each(|peer| peer.close());
    sim.advance(secs(15));
    assert_eq!(server.stats().accepted, 10_000);
    sim.assert_clean();
}
