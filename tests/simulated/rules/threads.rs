//! Posts of closures: with wake-ups that fail, and in bounds, whichever thread posts.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use wheelhouse::sim::Watched;
use wheelhouse::{Handle, PostError};

use super::*;

with_each_personality! {
    a_wake_up_that_fails_is_an_error_of_the_post,
    closures_that_are_left_run_though_no_wake_up_succeeds,
    a_callback_posts_to_its_reactor_though_no_wake_up_succeeds,
    a_shutdown_whose_wake_up_fails_begins_with_the_next_turn,
    reactors_that_post_to_each_other_are_bounded_by_their_mailboxes,
    closures_that_multiply_leave_half_of_each_turn_to_others,
}

fn a_wake_up_that_fails_is_an_error_of_the_post() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    sim.settle();
    let handle = server.handle();
    server.fail_wakes(2);
    let ran = Arc::new(AtomicU32::new(0));
    let count = |by: u32| {
        let ran = Arc::clone(&ran);
        handle.post(move |_, _| {
            ran.fetch_add(by, Relaxed);
        })
    };
    assert_eq!(count(1), Err(PostError::Stopped));
    assert_eq!(count(10), Err(PostError::Stopped));
    sim.settle();
    assert_eq!(count(100), Ok(()));
    assert_eq!(count(100), Ok(()));
    sim.settle();
    assert_eq!(ran.load(Relaxed), 200);
}

/// Counts what is posted to it.
#[derive(Default)]
struct Counter {
    own: u64,
    of_others: u64,
    refused: u64,
}

impl Handler for Counter {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }
}

type CounterHandle = Handle<Watched<Counter>>;

fn counter(sim: &mut Sim, ip: &str, mailbox_max: usize) -> Server<Counter> {
    let mut config = Config::default();
    config.limits.mailbox_max = mailbox_max;
    sim.serve((ip.to_owned() + ":7").as_str(), config, Counter::default())
}

fn closures_that_are_left_run_though_no_wake_up_succeeds() {
    let mut sim = world(1);
    let server = counter(&mut sim, "10.0.0.1", 5_000);
    for _ in 0..3_000 {
        server.handle().post(|counter, _| counter.own += 1).unwrap();
    }
    server.fail_wakes(u32::MAX);
    sim.settle();
    assert_eq!(server.handler().own, 3_000);
    server.fail_wakes(0);
    sim.assert_clean();
}

fn a_callback_posts_to_its_reactor_though_no_wake_up_succeeds() {
    let mut sim = world(1);
    let server = counter(&mut sim, "10.0.0.1", 10);
    let handle: CounterHandle = server.handle();
    server.handle().post(move |_, _| handle.post(|counter, _| counter.own += 1).unwrap()).unwrap();
    server.fail_wakes(u32::MAX);
    sim.settle();
    assert_eq!(server.handler().own, 1);
}

fn a_shutdown_whose_wake_up_fails_begins_with_the_next_turn() {
    let mut sim = world(1);
    let server = counter(&mut sim, "10.0.0.1", 10);
    sim.settle();
    server.fail_wakes(1);
    server.shutdown();
    sim.settle();
    // Something else ends the wait.
    let peer = sim.connect(&server);
    sim.settle();
    peer.close();
    sim.advance(secs(10));
    assert!(server.is_finished());
}

/// Posts closures to another reactor, each of which answers with two.
fn spread(from: &CounterHandle, to: &CounterHandle, depth: u32, full: &Arc<AtomicU32>) {
    let (back, here, count) = (from.clone(), to.clone(), Arc::clone(full));
    let outcome = to.post(move |counter, _| {
        counter.of_others += 1;
        if depth > 0 {
            spread(&here, &back, depth - 1, &count);
            spread(&here, &back, depth - 1, &count);
        }
    });
    match outcome {
        Ok(()) => {}
        Err(PostError::Full) => drop(full.fetch_add(1, Relaxed)),
        Err(error) => panic!("{error}"),
    }
}

fn reactors_that_post_to_each_other_are_bounded_by_their_mailboxes() {
    let mut sim = world(1);
    let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|ip| counter(&mut sim, ip, 16));
    let full = Arc::new(AtomicU32::new(0));
    // 2^40 closures, if nothing bounded them.
    let (from, to, count) = (a.handle(), b.handle(), Arc::clone(&full));
    a.handle().post(move |_, _| spread(&from, &to, 40, &count)).unwrap();
    sim.settle();
    assert!(full.load(Relaxed) > 0);
    let ran = (a.handler().of_others, b.handler().of_others);
    assert!(ran.0 + ran.1 < 41 * 16 && ran.1 >= 16, "{ran:?}");
    sim.assert_clean();
}

/// Posts two of itself, while there is room.
fn multiply(counter: &mut Counter, handle: CounterHandle, most: u64) {
    let twin = handle.clone();
    let outcome = handle.post(move |counter, _| {
        counter.own += 1;
        if counter.own < most {
            multiply(counter, twin.clone(), most);
            multiply(counter, twin, most);
        }
    });
    counter.refused += u64::from(outcome.is_err());
}

fn closures_that_multiply_leave_half_of_each_turn_to_others() {
    const OTHERS: u64 = 2_000;
    let mut sim = world(1);
    let server = counter(&mut sim, "10.0.0.1", 4_096);
    let handle: CounterHandle = server.handle();
    server.handle().post(move |counter, _| multiply(counter, handle, 50_000)).unwrap();
    while server.handler().refused == 0 {
        assert!(sim.step());
    }
    for _ in 0..OTHERS {
        server.handle().try_post(|counter, _| counter.of_others += 1).unwrap();
    }
    let before = server.handler().own;
    while server.handler().of_others < OTHERS {
        assert!(sim.step(), "they are stranded");
    }
    let meanwhile = server.handler().own - before;
    assert!((OTHERS - 1_024..=OTHERS + 1_024).contains(&meanwhile), "{meanwhile}");
    sim.settle();
    sim.assert_clean();
}
