//! The threads that do the work, and the queue before them.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use wheelhouse::{Handle, Handler};

use crate::server::{Job, Session, Workers};
use crate::wire::{Call, Status};

/// How often a call that sleeps checks whether it is still waited for.
const NAP: Duration = Duration::from_millis(5);

/// A queue of jobs. The threads end when it is dropped.
#[derive(Debug)]
pub(crate) struct Threads {
    queue: SyncSender<Job>,
}

impl Threads {
    /// Starts `count` threads, which post what they did to the reactor of `handle`.
    ///
    /// # Errors
    ///
    /// If one of them cannot be started. Those before it end.
    pub(crate) fn start<H>(count: usize, queue: usize, handle: Handle<H>) -> io::Result<Self>
    where
        H: Handler<Session = Session> + 'static,
    {
        let (queue, jobs) = sync_channel(queue);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..count {
            let (jobs, handle) = (Arc::clone(&jobs), handle.clone());
            let work = move || {
                while let Some(job) = next(&jobs) {
                    run(job, &handle);
                }
            };
            thread::Builder::new().name("worker".into()).spawn(work)?;
        }
        Ok(Self { queue })
    }
}

impl Workers for Threads {
    fn submit(&mut self, job: Job) -> bool {
        self.queue.try_send(job).is_ok()
    }
}

/// Waits for a job. None comes when the server has ended.
fn next(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn run<H: Handler<Session = Session> + 'static>(job: Job, handle: &Handle<H>) {
    if job.cancelled.load(Ordering::Relaxed) {
        return;
    }
    let Some((status, body)) = work(&job) else { return };
    // It waits where too much is posted; if the connection or the reactor is gone nothing waits for it.
    let _ = handle.post_to(job.conn, move |_, conn, session| {
        session.finish(conn, &job, status, &body);
    });
}

/// Does the work: what the reply is to say, or `None` if nothing waits for that any more.
pub(crate) fn work(job: &Job) -> Option<(Status, Vec<u8>)> {
    Some(match job.call {
        Call::Echo => (Status::Done, job.body.clone()),
        Call::Sum => {
            let sum: u64 = job.body.iter().map(|byte| u64::from(*byte)).sum();
            (Status::Done, sum.to_be_bytes().to_vec())
        }
        Call::Sleep => {
            let Ok(millis) = job.body[..].try_into().map(u32::from_be_bytes) else {
                return Some((Status::BadBody, Vec::new()));
            };
            let mut left = Duration::from_millis(millis.into());
            loop {
                // After the last nap too: the call may have ended in it.
                if job.cancelled.load(Ordering::Relaxed) {
                    return None;
                }
                if left == Duration::ZERO {
                    break;
                }
                let nap = left.min(NAP);
                thread::sleep(nap);
                left -= nap;
            }
            (Status::Done, Vec::new())
        }
    })
}
