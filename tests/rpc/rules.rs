//! What becomes of a call.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use wheelhouse::sim::{End, Peer, Server, Sim};
use wheelhouse::{CloseReason, Config, Timeout};

use crate::server::{CALLS_MAX, Job, Rpc, Workers};
use crate::wire::{Call, Reply, Request, Status};
use crate::workers::work;

/// Workers with a queue of so many places, from which a test takes jobs.
#[derive(Debug)]
struct Played {
    jobs: Rc<RefCell<Vec<Job>>>,
    room: usize,
}

impl Workers for Played {
    fn submit(&mut self, job: Job) -> bool {
        let mut jobs = self.jobs.borrow_mut();
        let fits = jobs.len() < self.room;
        if fits {
            jobs.push(job);
        }
        fits
    }
}

struct World {
    sim: Sim,
    server: Server<Rpc<Played>>,
    jobs: Rc<RefCell<Vec<Job>>>,
    peer: Peer,
}

impl World {
    fn new(room: usize) -> Self {
        let mut sim = Sim::new(1);
        let jobs = Rc::default();
        let played = Played { jobs: Rc::clone(&jobs), room };
        let server = sim.serve("10.0.0.1:7", Config::default(), Rpc::new(played));
        let peer = sim.connect(&server);
        sim.settle();
        Self { sim, server, jobs, peer }
    }

    fn call(&mut self, id: u64, timeout: Duration) {
        self.peer.send(&request(id, timeout, Call::Echo, &[id as u8]));
        self.sim.settle();
    }

    /// Lets a worker do the job at this place of the queue.
    fn work(&mut self, at: usize) -> u64 {
        let job = self.jobs.borrow_mut().remove(at);
        let (status, body) = work(&job).expect("it is still waited for");
        let id = job.id;
        self.finish(job, status, body);
        id
    }

    fn finish(&mut self, job: Job, status: Status, body: Vec<u8>) {
        let posted = self.server.handle().post_to(job.conn, move |_, conn, session| {
            session.finish(conn, &job, status, &body);
        });
        posted.expect("the reactor is there");
        self.sim.settle();
    }

    fn is_cancelled(&self, at: usize) -> bool {
        self.jobs.borrow()[at].cancelled.load(Ordering::Relaxed)
    }

    /// The replies that have come: their calls and how these ended.
    fn replies(&self) -> Vec<(u64, Status)> {
        let (bytes, mut replies) = (self.peer.take(), Vec::new());
        let mut rest = &bytes[..];
        while let Some((len, after)) = rest.split_first_chunk() {
            let (message, after) = after.split_at(u32::from_be_bytes(*len) as usize);
            let reply = Reply::parse(message).expect("a reply");
            replies.push((reply.id, reply.status));
            rest = after;
        }
        replies
    }
}

fn request(id: u64, timeout: Duration, call: Call, body: &[u8]) -> Vec<u8> {
    let millis = timeout.as_millis() as u32;
    let message = [&id.to_be_bytes()[..], &millis.to_be_bytes(), &[call as u8], body].concat();
    [&(message.len() as u32).to_be_bytes()[..], &message].concat()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_short_call_overtakes_a_long_one() {
    let mut world = World::new(9);
    for id in 1..=3 {
        world.call(id, SECOND);
    }
    assert_eq!([world.work(1), world.work(1), world.work(0)], [2, 3, 1]);
    assert_eq!(world.replies(), [(2, Status::Done), (3, Status::Done), (1, Status::Done)]);
    assert_eq!(world.server.stats().requests, 3);
}

#[test]
fn a_result_is_that_of_the_call() {
    let mut world = World::new(9);
    for (call, body, status, result) in [
        (Call::Echo, &b"abc"[..], Status::Done, &b"abc"[..]),
        (Call::Sum, &[1, 2, 3], Status::Done, &[0, 0, 0, 0, 0, 0, 0, 6]),
        (Call::Sleep, &[0, 0, 0, 0], Status::Done, b""),
        (Call::Sleep, &[0, 0, 0], Status::BadBody, b""),
    ] {
        world.peer.send(&request(7, SECOND, call, body));
        world.sim.settle();
        world.work(0);
        let reply = world.peer.take();
        assert_eq!(Reply::parse(&reply[4..]), Some(Reply { id: 7, status, body: result }));
    }
}

#[test]
fn a_late_call_is_answered_at_its_deadline_and_its_result_dropped() {
    let mut world = World::new(9);
    world.call(1, SECOND);
    world.call(2, 3 * SECOND);
    world.sim.advance(SECOND / 2);
    assert_eq!(world.replies(), []);
    assert!(!world.is_cancelled(0));
    world.sim.advance(SECOND / 2 + Duration::from_millis(20));
    assert_eq!(world.replies(), [(1, Status::Late)]);
    assert!(world.is_cancelled(0) && !world.is_cancelled(1));
    let job = world.jobs.borrow_mut().remove(0);
    world.finish(job, Status::Done, Vec::new());
    assert_eq!(world.replies(), []);
    world.sim.advance(2 * SECOND);
    assert_eq!(world.replies(), [(2, Status::Late)]);
}

/// The number of a call is free once it has ended, whatever its worker still does.
#[test]
fn the_result_of_a_late_call_is_not_that_of_another_with_its_number() {
    let mut world = World::new(9);
    world.call(1, SECOND);
    world.sim.advance(SECOND + Duration::from_millis(20));
    assert_eq!(world.replies(), [(1, Status::Late)]);
    let late = world.jobs.borrow_mut().remove(0);
    world.call(1, SECOND);
    world.finish(late, Status::BadBody, Vec::new());
    assert_eq!(world.replies(), []);
    assert!(!world.is_cancelled(0));
    world.work(0);
    assert_eq!(world.replies(), [(1, Status::Done)]);
}

#[test]
fn a_call_that_ends_while_it_sleeps_has_no_result() {
    let mut world = World::new(9);
    world.peer.send(&request(1, SECOND, Call::Sleep, &[0; 4]));
    world.sim.settle();
    let job = world.jobs.borrow_mut().remove(0);
    job.cancelled.store(true, Ordering::Relaxed);
    // All of its sleep is over.
    assert_eq!(work(&job), None);
}

#[test]
fn no_call_is_waited_for_longer_than_half_a_minute() {
    let mut world = World::new(9);
    world.call(1, Duration::from_millis(u32::MAX.into()));
    world.sim.advance(Duration::from_millis(29_990));
    assert_eq!(world.replies(), []);
    world.sim.advance(Duration::from_millis(30));
    assert_eq!(world.replies(), [(1, Status::Late)]);
}

#[test]
fn a_call_that_finds_the_queue_full_is_refused_at_once() {
    let mut world = World::new(1);
    world.call(1, SECOND);
    world.call(2, SECOND);
    assert_eq!(world.replies(), [(2, Status::Busy)]);
    world.work(0);
    world.call(3, SECOND);
    world.work(0);
    assert_eq!(world.replies(), [(1, Status::Done), (3, Status::Done)]);
}

#[test]
fn what_a_client_that_left_has_called_is_cancelled() {
    let mut world = World::new(9);
    world.call(1, SECOND);
    world.call(2, SECOND);
    world.peer.reset();
    world.sim.settle();
    assert!(world.is_cancelled(0) && world.is_cancelled(1));
    world.server.expect_closed(CloseReason::PeerReset);
}

#[test]
fn a_client_that_sends_no_more_gets_its_replies() {
    let mut world = World::new(9);
    world.call(1, SECOND);
    world.peer.half_close();
    world.sim.settle();
    assert!(!world.is_cancelled(0));
    world.work(0);
    assert_eq!((world.replies(), world.peer.closed()), (vec![(1, Status::Done)], Some(End::Fin)));
}

#[test]
fn a_client_with_many_calls_in_hand_has_to_wait() {
    let mut world = World::new(1_000);
    let all = 0..CALLS_MAX as u64 + 3;
    let requests = all.map(|id| request(id, 10 * SECOND, Call::Echo, b"x"));
    world.peer.send(&requests.collect::<Vec<_>>().concat());
    world.sim.settle();
    assert_eq!(world.jobs.borrow().len(), CALLS_MAX);
    world.work(5);
    assert_eq!(world.jobs.borrow().len(), CALLS_MAX);
    assert_eq!(world.jobs.borrow().last().map(|job| job.id), Some(CALLS_MAX as u64));
    world.sim.advance(11 * SECOND);
    let late = world.replies().into_iter().filter(|(_, status)| *status == Status::Late).count();
    assert_eq!(late, CALLS_MAX);
}

#[test]
fn what_is_no_request_ends_the_connection() {
    let good = request(1, SECOND, Call::Echo, b"");
    let mut unknown = request(2, SECOND, Call::Echo, b"");
    *unknown.last_mut().unwrap() = 9;
    for bad in [&[0, 0, 0, 3, 1, 2, 3][..], &[0, 1, 0, 0], &unknown, &good] {
        let mut world = World::new(9);
        // The last one has the number of a call in hand.
        world.peer.send(&[&good, bad].concat());
        world.sim.settle();
        assert_eq!(world.peer.closed(), Some(End::Fin), "{bad:?}");
        assert!(world.is_cancelled(0) && world.jobs.borrow().len() == 1, "{bad:?}");
    }
}

#[test]
fn half_a_request_has_the_time_of_a_request() {
    let mut world = World::new(9);
    world.peer.send(&request(1, SECOND, Call::Echo, b"abc")[..10]);
    world.sim.advance(Duration::from_secs(31));
    world.server.expect_closed(CloseReason::Timeout(Timeout::Request));
}

#[test]
fn requests_are_the_same_however_they_arrive() {
    let all = [request(1, SECOND, Call::Echo, b"a"), request(2, SECOND, Call::Sum, b"bc")].concat();
    for at in 0..all.len() {
        let mut world = World::new(9);
        world.peer.send(&all[..at]);
        world.sim.settle();
        world.peer.send(&all[at..]);
        world.sim.settle();
        let jobs: Vec<_> =
            world.jobs.borrow().iter().map(|job| (job.id, job.call, job.body.clone())).collect();
        assert_eq!(jobs, [(1, Call::Echo, b"a".to_vec()), (2, Call::Sum, b"bc".to_vec())]);
    }
}

#[test]
fn what_is_parsed_is_what_was_written() {
    let sent = request(3, SECOND, Call::Sleep, b"body");
    let parsed = Request { id: 3, timeout: SECOND, call: Call::Sleep, body: b"body" };
    assert_eq!(Request::parse(&sent[4..]), Some(parsed));
    for len in 0..13 {
        assert_eq!(Request::parse(&sent[4..4 + len]), None);
    }
}
