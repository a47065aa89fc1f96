//! The client: some calls over one connection, many of them at once.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;

use bytes::BytesMut;
use wheelhouse::{
    CloseReason, Closed, Config, Conn, Context, Error, Handler, Instant, Reactor, Target, frame,
};

use crate::wire::{Call, CallId, MESSAGES, Reply, Request, Status};
use crate::{Calls, common};

/// Makes the calls and prints what became of them. Returns the exit code.
pub(crate) fn run(target: Target, calls: Calls) -> Result<u8, Error> {
    let reactor = Reactor::new(Config::default())?;
    reactor.handle().shutdown_on_signals()?;
    let mut client = Client::new(target, calls);
    reactor.run(&mut client)?;
    match client.lost {
        None => {}
        Some(CloseReason::HandlerAbort) => {
            common::stderr().line("error: what the server sent is no reply to a call");
        }
        Some(reason) => {
            common::stderr().line(format_args!("error: the connection ended: {reason}"));
        }
    }
    common::stdout().line(&client.tally);
    Ok(u8::from(client.tally.done < client.calls.count))
}

/// What became of the calls.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    pub(crate) done: usize,
    /// Ended by their deadlines, there or here.
    pub(crate) late: usize,
    pub(crate) busy: usize,
    pub(crate) failed: usize,
    /// Replies that came before that to an earlier call.
    pub(crate) overtook: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, late, busy, failed, overtook } = self;
        write!(f, "{done} done, {late} late, {busy} refused, {failed} failed; ")?;
        write!(f, "{overtook} overtook an earlier one")
    }
}

pub(crate) struct Client {
    target: Target,
    calls: Calls,
    begun: usize,
    /// Calls that wait for their replies, with their deadlines. All have the same time, so the first is
    /// due first.
    waiting: BTreeMap<CallId, Instant>,
    pub(crate) tally: Tally,
    /// Why the connection ended, if that was before the last reply.
    pub(crate) lost: Option<CloseReason>,
}

impl Client {
    pub(crate) fn new(target: Target, calls: Calls) -> Self {
        let (waiting, tally) = (BTreeMap::new(), Tally::default());
        Self { target, calls, begun: 0, waiting, tally, lost: None }
    }

    /// Makes as many calls as may be in hand. With the last reply it ends.
    fn go_on(&mut self, conn: &mut Conn<'_>) {
        while self.begun < self.calls.count && self.waiting.len() < self.calls.in_flight {
            let id = self.begun as CallId;
            // Sleepers wake one by one in an order of their own: 7 ms, 0, 3, 6, 9, 2 and so on.
            let millis = ((id * 3 + 7) % 10) as u32;
            let body = match self.calls.call {
                Call::Sleep => millis.to_be_bytes().to_vec(),
                Call::Echo | Call::Sum => vec![id as u8; 100],
            };
            let Calls { timeout, call, .. } = self.calls;
            let request = Request { id, timeout, call, body: &body };
            request.write(conn).expect("a short request");
            conn.begin_request();
            self.waiting.insert(id, conn.now() + timeout);
            self.begun += 1;
        }
        match self.waiting.first_key_value() {
            Some((_, due)) => conn.set_timer(*due),
            None => conn.close(),
        }
    }

    /// Returns whether it is a reply to a call that was made and is not known to be over.
    fn take(&mut self, conn: &mut Conn<'_>, reply: &Reply<'_>) -> bool {
        let is_first = self.waiting.first_key_value().is_some_and(|(id, _)| *id == reply.id);
        if self.waiting.remove(&reply.id).is_none() {
            // One that was late here, or one that was not asked for.
            return reply.id < self.begun as CallId;
        }
        conn.end_request();
        self.tally.overtook += usize::from(!is_first);
        match reply.status {
            Status::Done => self.tally.done += 1,
            Status::Late => self.tally.late += 1,
            Status::Busy => self.tally.busy += 1,
            Status::BadBody => self.tally.failed += 1,
        }
        true
    }
}

impl Handler for Client {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        if cx.connect(self.target.clone()).is_err() {
            cx.shutdown();
        }
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        self.go_on(conn);
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        let (mut messages, mut is_reply) = (MESSAGES, true);
        let served = frame::each(&mut messages, conn, input, |conn, message| {
            is_reply = Reply::parse(message).is_some_and(|reply| self.take(conn, &reply));
            if is_reply { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if served.is_err() || !is_reply {
            return conn.abort();
        }
        self.go_on(conn);
    }

    /// The replies to the first calls are overdue. The server says so too, but it may be the server
    /// that hangs.
    fn on_timer(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        let now = conn.now();
        while let Some(first) = self.waiting.first_entry()
            && *first.get() <= now
        {
            first.remove();
            conn.end_request();
            self.tally.late += 1;
        }
        self.go_on(conn);
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, closed: Closed, (): ()) {
        let is_done = self.begun == self.calls.count && self.waiting.is_empty();
        self.lost = (!is_done).then_some(closed.reason);
        cx.shutdown();
    }
}
