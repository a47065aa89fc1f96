//! Other threads reach a reactor through its handle: closures run in order, are bounded, and wake it.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::{CloseReason, Closed, Config, Conn, Context, Handle, Handler, PostError, Reactor};

use crate::harness::{Fixture, Os, RecordingHandler, World, few_places, millis, secs};

fn fixture(world: &mut Os, mailbox_max: usize) -> Fixture<'_, Os> {
    let mut config = Config::default();
    config.limits.mailbox_max = mailbox_max;
    Fixture::new(world, config, RecordingHandler::echo())
}

/// Echoes, and keeps what was posted; unlike the handler it may move to another thread.
#[derive(Default)]
struct Echo {
    posted: Vec<usize>,
    closed: Vec<CloseReason>,
}

impl Handler for Echo {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, (): ()) {
        self.closed.push(closed.reason);
    }
}

/// Runs a reactor on a thread of its own, and gives its handle.
fn run(mut config: Config) -> (Handle<Echo>, thread::JoinHandle<Echo>) {
    config.limits.max_connections.get_or_insert(500);
    let reactor: Reactor<Echo> = Reactor::new(config).unwrap();
    let handle = reactor.handle();
    let thread = thread::spawn(move || {
        let mut echo = Echo::default();
        reactor.run(&mut echo).unwrap();
        echo
    });
    (handle, thread)
}

#[test]
fn what_one_thread_posts_runs_in_order() {
    let mut config = Config::default();
    config.limits.mailbox_max = 8;
    let (handle, reactor) = run(config);
    for number in 0..10_000 {
        handle.post(move |echo, _| echo.posted.push(number)).unwrap();
    }
    handle.post(|_, cx| cx.shutdown()).unwrap();
    let echo = reactor.join().unwrap();
    assert!(echo.posted.iter().copied().eq(0..10_000));
}

#[test]
fn what_many_threads_post_is_not_lost() {
    let mut config = Config::default();
    config.limits.mailbox_max = 8;
    let (handle, reactor) = run(config);
    let posters: Vec<_> = (0..4)
        .map(|thread| {
            let handle = handle.clone();
            thread::spawn(move || {
                for number in 0..1_000 {
                    handle.post(move |echo, _| echo.posted.push(thread * 1_000 + number)).unwrap();
                }
            })
        })
        .collect();
    for poster in posters {
        poster.join().unwrap();
    }
    handle.post(|_, cx| cx.shutdown()).unwrap();
    let posted = reactor.join().unwrap().posted;
    for thread in 0..4 {
        let of_one = posted.iter().copied().filter(|number| number / 1_000 == thread);
        assert!(of_one.eq(thread * 1_000..(thread + 1) * 1_000), "each in its order");
    }
}

#[test]
fn a_post_ends_an_endless_wait() {
    let (handle, reactor) = run(Config::default());
    for number in 0..20 {
        let (answer, answered) = mpsc::channel();
        handle.post(move |_, _| answer.send(number).unwrap()).unwrap();
        assert_eq!(answered.recv_timeout(secs(5)), Ok(number));
    }
    handle.shutdown();
    reactor.join().unwrap();
}

#[test]
fn a_shutdown_from_another_thread_ends_an_endless_wait() {
    let (handle, reactor) = run(Config::default());
    handle.shutdown();
    assert_eq!(reactor.join().unwrap().closed, []);
    assert_eq!(handle.post(|_, _| {}), Err(PostError::Stopped));
}

#[test]
fn a_full_mailbox_refuses_a_post_that_does_not_wait() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world, 3);
    fixture.turn();
    let handle = fixture.reactor.handle();
    let from_elsewhere = move || {
        thread::scope(|scope| {
            scope.spawn(|| (0..5).map(|_| handle.try_post(|_, _| {})).collect()).join().unwrap()
        })
    };
    let outcomes: Vec<_> = from_elsewhere();
    let full = Err(PostError::Full);
    assert_eq!(outcomes, [Ok(()), Ok(()), Ok(()), full, full]);
    fixture.turn();
    let outcomes: Vec<_> = from_elsewhere();
    assert_eq!(outcomes[..3], [Ok(()); 3]);
}

/// Posts a closure that counts.
fn post_count(
    handle: &Handle<RecordingHandler>,
    count: &Arc<AtomicUsize>,
) -> Result<(), PostError> {
    let count = Arc::clone(count);
    handle.post(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
    })
}

#[test]
fn the_reactors_own_thread_never_waits_for_itself() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world, 2);
    fixture.turn();
    let ran = Arc::new(AtomicUsize::new(0));
    let handle = fixture.reactor.handle();
    let outcomes: Vec<_> = (0..4).map(|_| post_count(&handle, &ran)).collect();
    assert_eq!(outcomes, [Ok(()), Ok(()), Err(PostError::Full), Err(PostError::Full)]);
    fixture.until("all of them", |_| ran.load(Ordering::Relaxed) == 2);
    assert_eq!(post_count(&handle, &ran), Ok(()));
}

#[test]
fn what_the_reactor_posts_takes_no_room_from_other_threads() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world, 2);
    fixture.turn();
    let ran = Arc::new(AtomicUsize::new(0));
    let handle = fixture.reactor.handle();
    let (own, count) = (handle.clone(), Arc::clone(&ran));
    handle.post(move |_, _| while post_count(&own, &count).is_ok() {}).unwrap();
    fixture.turn();
    let outcomes = thread::scope(|scope| {
        let poster = scope.spawn(|| [(); 3].map(|()| handle.try_post(|_, _| {})));
        poster.join().unwrap()
    });
    assert_eq!(outcomes, [Ok(()), Ok(()), Err(PostError::Full)]);
}

#[test]
fn a_post_from_a_callback_runs_in_a_later_turn() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world, 10);
    let (handle, ran) = (fixture.reactor.handle(), Arc::new(AtomicUsize::new(0)));
    let (again, count) = (handle.clone(), Arc::clone(&ran));
    handle
        .post(move |_, _| {
            for number in 0..12 {
                let outcome = post_count(&again, &count);
                assert_eq!(outcome.is_ok(), number < 10, "{number}");
            }
        })
        .unwrap();
    fixture.turn();
    assert_eq!(ran.load(Ordering::Relaxed), 0);
    fixture.until("all of them", |_| ran.load(Ordering::Relaxed) == 10);
}

/// How long a call that must not block may take before the test fails.
const WATCHDOG: Duration = secs(30);

/// Runs `act` on a thread of its own, and fails if it blocks.
fn must_not_block<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, outcome) = mpsc::channel();
    let thread = thread::spawn(move || done.send(act()).unwrap());
    let outcome = match outcome.recv_timeout(WATCHDOG) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it blocks"),
        outcome => outcome,
    };
    thread.join().unwrap();
    outcome.unwrap()
}

#[test]
fn posts_before_the_first_turn_do_not_wait_for_it() {
    let posted = must_not_block(|| {
        let mut config = few_places();
        config.limits.mailbox_max = 1;
        let reactor: Reactor<Echo> = Reactor::new(config).unwrap();
        let handle = reactor.handle();
        for number in 0..100 {
            handle.post(move |echo, _| echo.posted.push(number)).unwrap();
        }
        assert_eq!(handle.try_post(|_, _| {}), Err(PostError::Full));
        handle.shutdown();
        let mut echo = Echo::default();
        reactor.run(&mut echo).unwrap();
        echo.posted
    });
    assert!(posted.into_iter().eq(0..100));
}

#[test]
fn what_was_posted_before_a_reactor_moved_runs_first() {
    let mut config = few_places();
    config.limits.mailbox_max = 4;
    for _ in 0..20 {
        let mut reactor: Reactor<Echo> = Reactor::new(config.clone()).unwrap();
        let mut echo = Echo::default();
        let handle = reactor.handle();
        (0..10).for_each(|number| handle.post(move |echo, _| echo.posted.push(number)).unwrap());
        reactor.turn(&mut echo, Some(Duration::ZERO)).unwrap();
        (10..14).for_each(|number| handle.post(move |echo, _| echo.posted.push(number)).unwrap());
        let thread = thread::spawn(move || {
            reactor.run(&mut echo).unwrap();
            echo.posted
        });
        // These wait for room where they find none: by now it is another thread's reactor.
        for number in 14..100 {
            let post = || handle.post(move |echo, _| echo.posted.push(number));
            while post() == Err(PostError::Full) {
                thread::yield_now();
            }
        }
        handle.post(|_, cx| cx.shutdown()).unwrap();
        assert!(thread.join().unwrap().into_iter().eq(0..100));
    }
}

#[test]
fn two_reactors_that_post_to_each_other_do_not_wait() {
    let mut config = Config::default();
    config.limits.mailbox_max = 1;
    let [(left, left_thread), (right, right_thread)] = [(); 2].map(|()| run(config.clone()));
    let meeting = Arc::new(Barrier::new(2));
    let (answer, answers) = mpsc::channel();
    for (from, to) in [(&left, &right), (&right, &left)] {
        let (to, meeting, answer) = (to.clone(), Arc::clone(&meeting), answer.clone());
        from.post(move |_, _| {
            // Now both are busy, and neither can make room for the other.
            meeting.wait();
            let outcomes = [(); 100].map(|()| to.post(|_, _| {}));
            meeting.wait();
            answer.send(outcomes).unwrap();
        })
        .unwrap();
    }
    for _ in 0..2 {
        let outcomes = answers.recv_timeout(WATCHDOG).expect("no reactor waits for another");
        assert_eq!(outcomes[0], Ok(()));
        assert!(outcomes[1..].iter().all(|outcome| *outcome == Err(PostError::Full)));
    }
    left.shutdown();
    right.shutdown();
    left_thread.join().unwrap();
    right_thread.join().unwrap();
}

/// Posts two of itself, as often as there is room.
fn multiply(handle: Handle<Echo>, refused: Arc<AtomicUsize>) {
    let (twin, count) = (handle.clone(), Arc::clone(&refused));
    let outcome = handle.post(move |_, _| {
        multiply(twin.clone(), Arc::clone(&count));
        multiply(twin, count);
    });
    if outcome.is_err() {
        refused.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn closures_that_multiply_are_bounded_and_starve_no_other_thread() {
    let mut config = Config::default();
    config.limits.mailbox_max = 100;
    let (handle, reactor) = run(config);
    let refused = Arc::new(AtomicUsize::new(0));
    multiply(handle.clone(), Arc::clone(&refused));
    let poster = handle.clone();
    must_not_block(move || {
        for number in 0..5_000 {
            poster.post(move |echo, _| echo.posted.push(number)).unwrap();
        }
    });
    handle.post(|_, cx| cx.shutdown()).unwrap();
    let echo = must_not_block(move || reactor.join().unwrap());
    assert!(echo.posted.into_iter().eq(0..5_000));
    assert!(refused.load(Ordering::Relaxed) > 0, "they were bounded");
}

#[test]
fn a_post_that_waits_for_room_gets_it() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world, 1);
    fixture.turn();
    let ran = Arc::new(AtomicUsize::new(0));
    let poster = {
        let (handle, ran) = (fixture.reactor.handle(), Arc::clone(&ran));
        thread::spawn(move || {
            for _ in 0..50 {
                let ran = Arc::clone(&ran);
                let count = move |_: &mut RecordingHandler, _: &mut Context<'_>| {
                    ran.fetch_add(1, Ordering::Relaxed);
                };
                handle.post(count).unwrap();
            }
        })
    };
    fixture.until("all of them", |_| ran.load(Ordering::Relaxed) == 50);
    poster.join().unwrap();
}

#[test]
fn a_post_that_waits_for_room_learns_of_the_end() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world, 1);
    fixture.turn();
    let handle = fixture.reactor.handle();
    let (waits, waiting) = mpsc::channel();
    let poster = thread::spawn(move || {
        handle.post(|_, _| {}).unwrap();
        waits.send(()).unwrap();
        handle.post(|_, _| {})
    });
    waiting.recv().unwrap();
    // Whether it waits already or comes too late makes no difference.
    drop(fixture);
    assert_eq!(poster.join().unwrap(), Err(PostError::Stopped));
}

#[test]
fn what_was_not_run_is_dropped_with_the_reactor() {
    let mut world = Os::tcp();
    let fixture = fixture(&mut world, 10);
    let kept = Arc::new(());
    let letter = Arc::clone(&kept);
    fixture.reactor.handle().post(move |_, _| drop(letter)).unwrap();
    assert_eq!(Arc::strong_count(&kept), 2);
    drop(fixture);
    assert_eq!(Arc::strong_count(&kept), 1);
}

#[test]
fn a_closure_reaches_a_connection_and_its_session() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world, 10);
    let (peer, number) = fixture.enter();
    let (handle, id) = (fixture.reactor.handle(), fixture.handler.ids[number]);
    let poster = thread::spawn(move || {
        for word in ["one ", "two "] {
            handle
                .post_to(id, move |_, conn, session| {
                    session.step += 1;
                    write!(conn, "{word}{} ", session.step);
                })
                .unwrap();
        }
    });
    fixture.expect(peer, b"one 1 two 2 ");
    poster.join().unwrap();
    fixture.expect_service();
}

#[test]
fn a_closure_may_end_a_request_that_another_thread_worked_on() {
    let mut world = Os::tcp();
    let handler = RecordingHandler::owing();
    let mut fixture = Fixture::new(&mut world, Config::default(), handler);
    let (peer, number) = fixture.enter();
    fixture.send(peer, b"work");
    fixture.half_close(peer);
    fixture.saw(number, crate::harness::What::Eof);
    let (handle, id) = (fixture.reactor.handle(), fixture.handler.ids[number]);
    let worker = thread::spawn(move || {
        handle.post_to(id, |_, conn, _| {
            conn.write(b"done");
            conn.end_request();
        })
    });
    assert_eq!(fixture.read_to_end(peer), (b"done".to_vec(), crate::harness::Got::Eof));
    fixture.expect_closed(CloseReason::PeerEof);
    worker.join().unwrap().unwrap();
    fixture.expect_service();
}

#[test]
fn a_closure_for_a_connection_that_is_gone_is_dropped() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world, 10);
    let (peer, number) = fixture.enter();
    fixture.leave(peer);
    fixture.expect_closed(CloseReason::PeerEof);
    let ran = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ran);
    let id = fixture.handler.ids[number];
    let handle = fixture.reactor.handle();
    handle.post_to(id, move |_, _, _| flag.store(true, Ordering::Relaxed)).unwrap();
    fixture.expect_service();
    assert!(!ran.load(Ordering::Relaxed));
    assert_eq!(Arc::strong_count(&ran), 1, "it is not kept either");
}

#[test]
fn posted_closures_and_connections_take_turns() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world, 100_000);
    let (peer, _) = fixture.enter();
    let ran = Arc::new(AtomicUsize::new(0));
    let handle = fixture.reactor.handle();
    for _ in 0..50_000 {
        let ran = Arc::clone(&ran);
        handle
            .post(move |_, _| {
                ran.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
    }
    fixture.expect_echo(peer);
    assert!(ran.load(Ordering::Relaxed) < 50_000, "the echo does not wait for all of them");
    fixture.until("all of them", |_| ran.load(Ordering::Relaxed) == 50_000);
}

#[test]
fn the_counters_are_read_without_the_reactor() {
    let (handle, reactor) = run(Config::default());
    let (answer, answered) = mpsc::channel();
    handle
        .post(move |_, _| {
            answer.send(()).unwrap();
            thread::sleep(millis(200));
        })
        .unwrap();
    answered.recv().unwrap();
    // It is busy, and need not be asked.
    assert_eq!(handle.stats().accepted, 0);
    handle.shutdown();
    reactor.join().unwrap();
}

#[test]
fn a_closure_reaches_a_connection_that_was_dialled_just_now() {
    let mut world = Os::tcp();
    let (_door, address) = world.listen_as_peer();
    let handle: Rc<OnceCell<Handle<RecordingHandler>>> = Rc::default();
    let (later, ran) = (Rc::clone(&handle), Arc::new(AtomicBool::new(false)));
    let flag = Arc::clone(&ran);
    let handler = RecordingHandler::echo().when_data(move |conn, _, input| {
        input.clear();
        let id = conn.connect(address.clone()).unwrap();
        let flag = Arc::clone(&flag);
        let note = move |_: &mut RecordingHandler, _: &mut Conn<'_>, _: &mut _| {
            flag.store(true, Ordering::Relaxed);
        };
        handle.get().unwrap().post_to(id, note).unwrap();
    });
    let mut fixture = Fixture::new(&mut world, Config::default(), handler);
    assert!(later.set(fixture.reactor.handle()).is_ok());
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.until("the closure", |_| ran.load(Ordering::Relaxed));
}

#[test]
fn closures_keep_their_order_whatever_they_are_for() {
    let mut world = Os::tcp();
    let (_door, address) = world.listen_as_peer();
    let handle: Rc<OnceCell<Handle<RecordingHandler>>> = Rc::default();
    let (later, order) = (Rc::clone(&handle), Arc::new(Mutex::new(Vec::new())));
    let notes = Arc::clone(&order);
    let handler = RecordingHandler::echo().when_data(move |conn, _, input| {
        input.clear();
        let id = conn.connect(address.clone()).unwrap();
        let handle = handle.get().unwrap();
        let (first, second) = (Arc::clone(&notes), Arc::clone(&notes));
        handle.post_to(id, move |_, _, _| first.lock().unwrap().push(1)).unwrap();
        handle.post(move |_, _| second.lock().unwrap().push(2)).unwrap();
    });
    let mut fixture = Fixture::new(&mut world, Config::default(), handler);
    assert!(later.set(fixture.reactor.handle()).is_ok());
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.until("both", |_| order.lock().unwrap().len() == 2);
    assert_eq!(*order.lock().unwrap(), [1, 2]);
}

#[test]
fn a_full_mailbox_is_full_for_the_reactors_own_thread_too() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world, 2);
    fixture.turn();
    let handle = fixture.reactor.handle();
    let taken = (0..10).filter(|_| handle.try_post(|_, _| {}).is_ok()).count();
    assert_eq!(taken, 2);
    fixture.turn();
    assert!(handle.try_post(|_, _| {}).is_ok(), "there is room again");
}
