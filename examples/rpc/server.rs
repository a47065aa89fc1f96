//! The server: requests go to workers, and replies come back in whatever order they get done.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::{CloseReason, Conn, ConnId, Handler, Instant, frame};

use crate::wire::{Call, CallId, MESSAGES, Reply, Request, Status};

/// Calls in hand of one connection. Further requests wait in its socket.
pub(crate) const CALLS_MAX: usize = 64;

/// Calls of all connections that wait for a worker. Others are refused.
pub(crate) const QUEUE: usize = 1_024;

/// The longest that a call is waited for, whatever its client says.
pub(crate) const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// What does the work.
pub(crate) trait Workers {
    /// Takes a job, and [finishes](Session::finish) its call later. Returns whether there was room.
    fn submit(&mut self, job: Job) -> bool;
}

/// The work for one call.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) conn: ConnId,
    pub(crate) id: CallId,
    pub(crate) call: Call,
    pub(crate) body: Vec<u8>,
    /// Nothing waits for the result any more.
    pub(crate) cancelled: Arc<AtomicBool>,
}

/// Serves calls.
#[derive(Debug)]
pub(crate) struct Rpc<W> {
    workers: W,
}

impl<W> Rpc<W> {
    pub(crate) const fn new(workers: W) -> Self {
        Self { workers }
    }
}

/// The calls in hand of one connection.
#[derive(Debug, Default)]
pub(crate) struct Session {
    calls: BTreeMap<CallId, InHand>,
    /// The same ones, by their deadlines.
    due: BTreeSet<(Instant, CallId)>,
}

#[derive(Debug)]
struct InHand {
    due: Instant,
    cancelled: Arc<AtomicBool>,
}

impl<W: Workers> Handler for Rpc<W> {
    type Session = Session;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Session> {
        Some(Session::default())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut Session, input: &mut BytesMut) {
        let mut messages = MESSAGES;
        let mut is_request = true;
        let served = frame::each(&mut messages, conn, input, |conn, message| {
            is_request = match Request::parse(message) {
                Some(request) => session.begin(conn, &mut self.workers, &request),
                None => false,
            };
            if is_request { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if served.is_err() || !is_request {
            // There is no number to reply to.
            conn.close();
        }
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, session: &mut Session) {
        let now = conn.now();
        while let Some((due, id)) = session.due.first()
            && *due <= now
        {
            let id = *id;
            session.end(conn, id, Status::Late, &[]);
        }
        session.set_timer(conn);
    }

    fn on_closing(&mut self, _: &mut Conn<'_>, session: &mut Session, _: &CloseReason) {
        for call in std::mem::take(&mut session.calls).into_values() {
            call.cancelled.store(true, Ordering::Relaxed);
        }
        session.due.clear();
    }
}

impl Session {
    /// Begins a call. Returns whether its number was free: a client that uses one twice could not know
    /// which reply is which.
    fn begin(
        &mut self,
        conn: &mut Conn<'_>,
        workers: &mut impl Workers,
        request: &Request<'_>,
    ) -> bool {
        let Request { id, timeout, call, body } = *request;
        if self.calls.contains_key(&id) {
            return false;
        }
        conn.begin_request();
        let (due, cancelled) = (conn.now() + timeout.min(TIMEOUT_MAX), Arc::default());
        let job = Job {
            conn: conn.id(),
            id,
            call,
            body: body.to_vec(),
            cancelled: Arc::clone(&cancelled),
        };
        self.calls.insert(id, InHand { due, cancelled });
        self.due.insert((due, id));
        if !workers.submit(job) {
            self.end(conn, id, Status::Busy, &[]);
        } else if self.calls.len() >= CALLS_MAX {
            conn.pause_reading();
        }
        self.set_timer(conn);
        true
    }

    /// Ends the call of a job with its result, unless that has ended already. The result is of no use
    /// then, and the number of the call may be that of another one.
    pub(crate) fn finish(&mut self, conn: &mut Conn<'_>, job: &Job, status: Status, body: &[u8]) {
        if !job.cancelled.load(Ordering::Relaxed) {
            self.end(conn, job.id, status, body);
        }
    }

    /// Ends the call that has this number now with its reply.
    fn end(&mut self, conn: &mut Conn<'_>, id: CallId, status: Status, body: &[u8]) {
        let Some(call) = self.calls.remove(&id) else { return };
        self.due.remove(&(call.due, id));
        call.cancelled.store(true, Ordering::Relaxed);
        Reply { id, status, body }.write(conn);
        conn.end_request();
        conn.resume_reading();
    }

    /// Lets the timer come for the call whose deadline is next.
    fn set_timer(&self, conn: &mut Conn<'_>) {
        match self.due.first() {
            Some((due, _)) => conn.set_timer(*due),
            None => conn.clear_timer(),
        }
    }
}
