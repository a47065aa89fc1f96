//! The client in a simulated world.

use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::sim::{Faults, Link, Server, Sim};
use wheelhouse::{Config, Conn, Handler, Instant};

use crate::client::{Amount, Load, Plan};
use crate::protocol::Protocol;
use crate::shorthands::{millis, secs};

const SERVER: &str = "10.0.0.1:7";
const CLIENT: &str = "10.0.0.2:0";

/// How long the server stalls in each second.
const STALL: Duration = millis(100);

/// Echoes at once, but for the first part of each second: what comes then is echoed at its end.
#[derive(Default)]
struct Stalling {
    stalls: bool,
}

impl Stalling {
    fn stalled_until(&self, now: Instant) -> Option<Instant> {
        let into = now.as_nanos() % 1_000_000_000;
        let left = (STALL.as_nanos() as u64).checked_sub(into).filter(|left| *left > 0)?;
        self.stalls.then(|| now + Duration::from_nanos(left))
    }
}

impl Handler for Stalling {
    type Session = BytesMut;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<BytesMut> {
        Some(BytesMut::new())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, held: &mut BytesMut, input: &mut BytesMut) {
        held.unsplit(input.split());
        match self.stalled_until(conn.now()) {
            Some(until) => conn.set_timer(until),
            None => conn.write_buf(held),
        }
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, held: &mut BytesMut) {
        conn.write_buf(held);
    }
}

fn plan(change: impl FnOnce(&mut Plan)) -> Plan {
    let mut plan = Plan {
        target: SERVER.parse().expect("an address"),
        local: None,
        protocol: Some(Protocol::echo(64)),
        connections: 1,
        pipeline: 1,
        churn: false,
        rate: None,
        warm_up: secs(1),
        amount: Amount::Time(secs(10)),
        timeout: secs(10),
    };
    change(&mut plan);
    plan
}

/// Runs the load until it has ended, before a server that stalls or does not.
fn run(sim: &mut Sim, stalls: bool, plan: Plan) -> Server<Load> {
    sim.set_link(Link { latency: millis(1), ..Link::default() });
    sim.serve(SERVER, Config::default(), Stalling { stalls });
    until_it_ends(sim, plan)
}

fn until_it_ends(sim: &mut Sim, plan: Plan) -> Server<Load> {
    let load = sim.serve(CLIENT, plan.config(), Load::new(plan));
    // The program does this after each turn: a deadline of the loop's is coarser.
    for _ in 0..60_000 {
        sim.advance(millis(1));
        if load.is_finished() {
            return load;
        }
        load.with(Load::send_due);
    }
    panic!("it has not ended");
}

fn quantile(load: &Server<Load>, quantile: f64) -> Duration {
    Duration::from_nanos(load.handler().tally.latencies().value_at_quantile(quantile))
}

#[test]
fn an_open_loop_measures_the_stalls_that_a_closed_one_omits() {
    let closed = run(&mut Sim::new(1), true, plan(|_| {}));
    let open = run(&mut Sim::new(1), true, plan(|plan| plan.rate = Some(400)));
    // A tenth of all that is due comes into a stall. The closed loop meets each stall once.
    for load in [&closed, &open] {
        assert!(quantile(load, 0.5) < millis(4), "{:?}", quantile(load, 0.5));
        assert!(load.handler().tally.errors().is_empty(), "{:?}", load.handler().tally.errors());
    }
    assert!(quantile(&closed, 0.99) < millis(4), "{:?}", quantile(&closed, 0.99));
    assert!(quantile(&open, 0.99) > millis(80), "{:?}", quantile(&open, 0.99));
    assert!(quantile(&closed, 1.0) > millis(90), "it met the stalls");
    let sent = open.handler().tally.replies();
    assert!((3_990..=4_010).contains(&sent), "{sent} in 10 s at 400 a second");
}

#[test]
fn a_stall_is_measured_with_one_request_in_flight_at_a_time() {
    // What is due while another is on its way waits, and is measured from when it was due.
    let load = run(&mut Sim::new(1), true, plan(|plan| plan.rate = Some(300)));
    let one = quantile(&load, 0.99);
    assert!(one > millis(80), "{one:?}");
}

#[test]
fn churn_makes_a_connection_for_each_exchange() {
    for rate in [None, Some(100)] {
        let mut sim = Sim::new(1);
        let load = run(
            &mut sim,
            false,
            plan(|plan| {
                (plan.churn, plan.connections, plan.rate) = (true, 4, rate);
                plan.amount = Amount::Replies(200);
            }),
        );
        let tally = &load.handler().tally;
        assert!((200..=210).contains(&tally.replies()), "{}", tally.replies());
        assert!(tally.errors().is_empty(), "{:?}", tally.errors());
        assert!(load.stats().closed_total() >= 200);
        // A dial and an exchange are two round trips.
        assert!((millis(4)..millis(6)).contains(&quantile(&load, 0.5)));
    }
}

#[test]
fn many_connections_may_end_in_one_turn() {
    for rate in [None, Some(20_000)] {
        let churn = plan(|plan| {
            (plan.churn, plan.connections, plan.rate) = (true, 300, rate);
            plan.amount = Amount::Replies(1_500);
        });
        let load = run(&mut Sim::new(1), false, churn);
        let tally = &load.handler().tally;
        assert!(tally.replies() >= 1_500);
        assert!(tally.errors().is_empty(), "{:?}", tally.errors());
    }
}

#[test]
fn a_dial_that_is_under_way_at_the_end_is_an_error() {
    let mut sim = Sim::new(1);
    sim.set_link(Link { latency: secs(20), ..Link::default() });
    sim.serve(SERVER, Config::default(), Stalling::default());
    let plan = plan(|plan| {
        (plan.churn, plan.connections, plan.rate) = (true, 8, Some(10));
        (plan.amount, plan.timeout) = (Amount::Time(secs(3)), secs(100));
    });
    let load = sim.serve(CLIENT, plan.config(), Load::new(plan));
    sim.advance(secs(10));
    assert!(load.is_finished());
    let tally = &load.handler().tally;
    assert_eq!(tally.replies(), 0);
    assert_eq!(tally.errors()["no reply by the end"], 8, "{:?}", tally.errors());
    assert!(tally.errors()["not sent by the end"] > 20, "{:?}", tally.errors());
}

#[test]
fn a_dial_may_take_all_of_its_time() {
    let mut sim = Sim::new(1);
    sim.set_link(Link { latency: millis(4_500), ..Link::default() });
    sim.serve(SERVER, Config::default(), Stalling::default());
    let slow = plan(|plan| (plan.amount, plan.warm_up) = (Amount::Replies(1), Duration::ZERO));
    let load = until_it_ends(&mut sim, slow);
    let tally = &load.handler().tally;
    assert_eq!((tally.replies(), tally.errors().len()), (1, 0), "{:?}", tally.errors());
}

#[test]
fn an_echo_may_be_longer_than_what_the_library_keeps_unread() {
    let large = plan(|plan| {
        (plan.protocol, plan.pipeline) = (Some(Protocol::echo(1 << 20)), 2);
        plan.amount = Amount::Replies(10);
    });
    let load = run(&mut Sim::new(1), false, large);
    let tally = &load.handler().tally;
    assert!(tally.replies() >= 10);
    assert!(tally.errors().is_empty(), "{:?}", tally.errors());
}

#[test]
fn replies_that_come_behind_the_end_do_not_make_the_server_faster() {
    // One at a time takes 2 ms, so half of what is due can be served.
    let late = plan(|plan| {
        plan.rate = Some(1_000);
        (plan.warm_up, plan.amount) = (Duration::ZERO, Amount::Time(secs(4)));
    });
    let load = run(&mut Sim::new(1), false, late);
    let tally = &load.handler().tally;
    assert!((1_900..=2_010).contains(&tally.in_time()), "{}", tally.in_time());
    assert!(tally.replies() > 2_900, "{}", tally.replies());
}

/// What was counted of a run: replies and errors of any kind.
fn counted(load: &Server<Load>) -> u64 {
    let tally = &load.handler().tally;
    tally.replies() + tally.error_count()
}

#[test]
fn each_request_is_counted_once() {
    // An exchange takes 100 ms, so two connections serve 20 a second, and a dial for each one 10.
    for (churn, ends_early) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut sim = Sim::new(1);
        sim.set_link(Link { latency: millis(50), ..Link::default() });
        let server = sim.serve(SERVER, Config::default(), Stalling::default());
        let plan = plan(|plan| {
            (plan.connections, plan.rate, plan.churn) = (2, Some(100), churn);
            (plan.warm_up, plan.amount) = (Duration::ZERO, Amount::Time(secs(2)));
        });
        let load = sim.serve(CLIENT, plan.config(), Load::new(plan));
        for turn in 0..10_000 {
            sim.advance(millis(1));
            if load.is_finished() {
                break;
            }
            if ends_early && turn == 1_000 {
                load.shutdown();
            }
            load.with(Load::send_due);
        }
        assert!(load.is_finished());
        let due = if ends_early { 80..=101 } else { 195..=201 };
        let all = counted(&load);
        assert!(due.contains(&all), "{all}, {:?}", load.handler().tally.errors());
        let replies = load.handler().tally.replies();
        assert!(replies >= 5, "{replies}");
        assert_eq!(server.stats().bytes_in, 64 * replies);
        let unsent = load.handler().tally.errors()["not sent by the end"];
        assert!(unsent > 40, "{unsent}");
    }
}

/// Reads, and answers nothing.
struct Silent;

impl Handler for Silent {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
    }
}

#[test]
fn a_dial_that_a_signal_ends_is_no_error() {
    // Wherever an exchange is: some of its times are those of a dial.
    for offset in 0..8 {
        let mut sim = Sim::new(1);
        sim.set_link(Link { latency: millis(50), ..Link::default() });
        sim.serve(SERVER, Config::default(), Stalling::default());
        let plan = plan(|plan| (plan.connections, plan.churn) = (4, true));
        let load = sim.serve(CLIENT, plan.config(), Load::new(plan));
        sim.advance(millis(2_025 + 50 * offset));
        load.shutdown();
        sim.advance(secs(5));
        assert!(load.is_finished());
        let tally = &load.handler().tally;
        assert!(tally.replies() > 0 && tally.errors().is_empty(), "{:?}", tally.errors());
    }
}

#[test]
fn what_has_no_reply_when_its_connection_ends_is_counted_once() {
    for (churn, pipeline) in [(false, 5), (true, 1)] {
        let mut sim = Sim::new(1);
        let server = sim.serve(SERVER, Config::default(), Silent);
        let plan = plan(|plan| {
            (plan.connections, plan.pipeline, plan.churn) = (4, pipeline, churn);
            (plan.warm_up, plan.amount) = (Duration::ZERO, Amount::Time(secs(2)));
        });
        let load = until_it_ends(&mut sim, plan);
        let missing = load.handler().tally.errors()["no reply by the end"];
        assert_eq!((missing, counted(&load)), (4 * pipeline as u64, missing));
        assert_eq!(server.stats().bytes_in, 64 * missing);
    }
}

#[test]
fn without_a_warm_up_the_first_request_is_measured() {
    for (churn, rate) in [(false, None), (true, None), (false, Some(1_000)), (true, Some(1_000))] {
        let mut sim = Sim::new(1);
        sim.set_link(Link { latency: millis(1), ..Link::default() });
        let server = sim.serve(SERVER, Config::default(), Stalling::default());
        let plan = plan(|plan| {
            (plan.connections, plan.churn, plan.rate) = (3, churn, rate);
            (plan.warm_up, plan.amount) = (Duration::ZERO, Amount::Replies(50));
        });
        let load = until_it_ends(&mut sim, plan);
        let tally = &load.handler().tally;
        assert!(tally.errors().is_empty(), "{:?}", tally.errors());
        assert_eq!(tally.bytes, server.stats().bytes_in, "churn {churn}, rate {rate:?}");
    }
}

#[test]
fn a_rate_beyond_all_measure_is_refused_in_one_step() {
    for churn in [false, true] {
        let great = plan(|plan| {
            (plan.connections, plan.churn, plan.rate) = (4, churn, Some(usize::MAX));
            (plan.warm_up, plan.amount) = (Duration::ZERO, Amount::Time(secs(3)));
        });
        let load = run(&mut Sim::new(1), false, great);
        let tally = &load.handler().tally;
        assert!(tally.replies() > 1_000, "{}", tally.replies());
        assert!(tally.errors()["too many waited to be sent"] > u64::MAX / 2);
        assert!(tally.errors()["not sent by the end"] <= 1 << 20);
    }
}

/// Answers requests of HTTP, and announces the end of each connection with its third response.
struct Three;

impl Handler for Three {
    type Session = u32;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<u32> {
        Some(0)
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, served: &mut u32, input: &mut BytesMut) {
        let requests = input.windows(4).filter(|end| end == b"\r\n\r\n").count();
        input.clear();
        for _ in 0..requests {
            *served += 1;
            let connection = if *served == 3 { "close" } else { "keep-alive" };
            write!(
                conn,
                "HTTP/1.1 200 OK\r\nConnection: {connection}\r\nContent-Length: 2\r\n\r\nok"
            );
            if *served == 3 {
                return conn.close();
            }
        }
    }
}

#[test]
fn an_announced_end_is_no_error_and_what_was_asked_behind_it_is_asked_again() {
    for (rate, pipeline) in [(None, 1), (None, 8), (Some(500), 8)] {
        let mut sim = Sim::new(1);
        sim.set_link(Link { latency: millis(1), ..Link::default() });
        sim.serve(SERVER, Config::default(), Three);
        let target = SERVER.parse().expect("an address");
        let plan = plan(|plan| {
            plan.protocol = Some(Protocol::http("/", &target));
            (plan.connections, plan.pipeline, plan.rate) = (4, pipeline, rate);
            plan.amount = Amount::Time(secs(2));
        });
        let load = until_it_ends(&mut sim, plan);
        let tally = &load.handler().tally;
        assert!(tally.errors().is_empty(), "{:?}", tally.errors());
        assert!(tally.replies() >= 900, "{}", tally.replies());
    }
}

#[test]
fn connections_that_say_nothing_are_held() {
    // The server waits for a first byte for no longer than 10 s.
    let idle = plan(|plan| {
        (plan.protocol, plan.connections) = (None, 500);
        plan.amount = Amount::Time(secs(5));
    });
    let load = run(&mut Sim::new(1), false, idle);
    assert_eq!(load.handler().held(), 500);
    assert_eq!(load.handler().tally.replies(), 0);
    assert!(load.handler().tally.errors().is_empty(), "{:?}", load.handler().tally.errors());
}

#[test]
fn a_wrong_reply_is_an_error_and_the_lane_dials_again() {
    let mut sim = Sim::new(1);
    let load = run(
        &mut sim,
        false,
        plan(|plan| {
            plan.protocol = Some(Protocol::ping());
            plan.amount = Amount::Time(secs(2));
        }),
    );
    let tally = &load.handler().tally;
    assert_eq!(tally.replies(), 0);
    assert!(tally.errors()["wrong reply"] > 10, "{:?}", tally.errors());
}

#[test]
fn a_server_that_is_not_there_is_an_error_and_no_reply() {
    let mut sim = Sim::new(1);
    let plan = plan(|plan| plan.amount = Amount::Time(secs(1)));
    let load = sim.serve(CLIENT, plan.config(), Load::new(plan));
    sim.advance(secs(12));
    assert!(load.is_finished());
    let tally = &load.handler().tally;
    assert_eq!(tally.replies(), 0);
    assert!(!tally.errors().is_empty());
}

#[test]
fn every_run_ends_whatever_fails() {
    wheelhouse::sim::swarm(1, 12, |sim| {
        sim.set_faults(Faults { panic: 0, ..sim.faults() });
        sim.serve(SERVER, Config::default(), Stalling { stalls: true });
        let rate = [None, Some(50)][sim.random().below(2) as usize];
        let churn = sim.random().below(2) == 0;
        let plan = plan(|plan| {
            (plan.connections, plan.pipeline, plan.rate, plan.churn) = (5, 3, rate, churn);
            plan.amount = Amount::Time(secs(5));
        });
        let load = sim.serve(CLIENT, plan.config(), Load::new(plan));
        sim.advance(secs(300));
        assert!(load.is_finished());
    });
}
