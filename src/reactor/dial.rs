//! Dialling: the look-up of a name, one address after the other, and the outcome.

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::Reactor;
use crate::address::{Address, Target};
use crate::backend::{Backend, Token};
use crate::close::{CloseReason, Timeout};
use crate::core::budget::Step;
use crate::core::deadlines::Deadline;
use crate::core::flags::Flags;
use crate::core::lifecycle::State;
use crate::core::record::DialState;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::log::debug;
use crate::planted::{Bug, planted};
use crate::state::Purpose;

/// The pauses before an attempt on a full backlog is repeated: they begin short, as a server that is
/// alive empties it in one turn, and double, as one that is not may be dialled by many.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Whether the listener's backlog was full. connect(2): a Unix-domain socket that does not block
/// gets EAGAIN then, and no event when there is room. Of TCP EAGAIN says that the system lacks
/// something for this address, and a full backlog is a SYN that is sent again; there the attempt
/// has failed and the next address is tried.
fn is_backlog_full(address: &Address, error: &io::Error) -> bool {
    address.path().is_some()
        && error.kind() == ErrorKind::WouldBlock
        && !planted(Bug::DialNotRetried)
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Opens the connections that callbacks asked for. Those that these ask for wait a turn.
    #[inline]
    pub(super) fn begin_dials(&mut self, handler: &mut H) {
        if !self.shared.pending_dials.is_empty() {
            self.begin_some_dials(handler);
        }
    }

    #[inline(never)]
    fn begin_some_dials(&mut self, handler: &mut H) {
        let mut budget = self.begin_step(Step::Dials);
        let mut pending_dials = std::mem::take(&mut self.shared.pending_dials);
        let mut begun = 0;
        while begun < pending_dials.len() && budget.allows(|| self.backend.now()) {
            let id = pending_dials[begun];
            begun += 1;
            self.make_slot(id);
            if !self.call_open(handler, id) {
                self.discard(id);
                continue;
            }
            if self.shared.table.at(id.index()).requested().is_none() {
                self.begin_dial(handler, id);
            }
            self.guard(handler, |reactor, handler| reactor.settle(handler, id));
        }
        pending_dials.drain(..begun);
        pending_dials.append(&mut self.shared.pending_dials);
        self.shared.pending_dials = pending_dials;
        self.end_step(&budget);
    }

    fn begin_dial(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let Some(DialState { target, addresses, failure, .. }) = record.dial() else {
            return;
        };
        match target {
            Target::Address(address) => {
                addresses.push(address.clone());
                self.dial_next(handler, id);
            }
            Target::Name { host, port } => {
                if let Err(error) = self.backend.resolve(host, *port, Token::of_conn(id)) {
                    *failure = Some(error.into());
                    self.dial_next(handler, id);
                }
            }
        }
    }

    /// Sees what became of a look-up or an attempt.
    pub(super) fn progress_dial(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let Some(stream) = self.slots[id.index()].stream.as_mut() else {
            return self.take_answer(handler, id);
        };
        if !record.flags.has(Flags::WRITE_READY) {
            return;
        }
        match self.backend.is_connected(stream) {
            Ok(true) => {
                let local = self.backend.local_addr(stream).ok();
                let cold = record.cold_mut();
                cold.local = local;
                cold.dial = None;
                self.establish(handler, id);
                self.serve(handler, id);
            }
            // A spurious event; the attempt goes on.
            Ok(false) => {
                record.flags.remove(Flags::READINESS);
            }
            Err(error) => {
                self.note_failure(id, error);
                self.dial_next(handler, id);
            }
        }
    }

    fn take_answer(&mut self, handler: &mut H, id: ConnId) {
        let Some(answer) = self.backend.resolved(Token::of_conn(id)) else {
            return;
        };
        match answer {
            Ok(mut found) => {
                found.reverse();
                if let Some(dial) = self.shared.table.at(id.index()).dial() {
                    dial.addresses = found;
                }
            }
            Err(error) => self.note_failure(id, error),
        }
        self.dial_next(handler, id);
    }

    /// The time for one attempt is over.
    pub(super) fn give_up_attempt(&mut self, handler: &mut H, id: ConnId) {
        // A look-up is no attempt: only the total bounds it.
        let record = self.shared.table.at(id.index());
        let retries = record.dial().is_some_and(|dial| dial.retry.take().is_some());
        if self.slots[id.index()].stream.is_none() && !retries {
            return self
                .shared
                .table
                .at(id.index())
                .clocks
                .set(Deadline::ConnectAttempt, self.shared.now);
        }
        self.note_failure(id, ErrorKind::TimedOut.into());
        self.dial_next(handler, id);
    }

    fn note_failure(&mut self, id: ConnId, error: io::Error) {
        let record = self.shared.table.at(id.index());
        debug!(%id, peer = %record.peer, %error, "an attempt to connect failed");
        if let Some(dial) = record.dial() {
            dial.failure = Some(error.into());
        }
    }

    /// Dials the next address, or ends the connection when there is none.
    fn dial_next(&mut self, handler: &mut H, id: ConnId) {
        if let Some(stream) = self.slots[id.index()].stream.take() {
            self.backend.close(stream, true);
            self.resume_accepting();
        }
        loop {
            let now = self.shared.now;
            let record = self.shared.table.at(id.index());
            debug_assert_eq!(record.state(), State::Connecting);
            record.flags.remove(Flags::READINESS);
            record.clocks.set(Deadline::ConnectAttempt, now);
            record.flags.insert(Flags::REARM);
            let Some(address) = record.dial().and_then(|dial| dial.addresses.pop()) else {
                return self.end_dial(handler, id);
            };
            record.peer = address.clone();
            match self.begin_attempt(id, &address) {
                Ok(stream) => {
                    self.slots[id.index()].stream = Some(stream);
                    return;
                }
                Err(error) if is_backlog_full(&address, &error) => {
                    return self.retry_later(id, address, RETRY_MIN);
                }
                Err(error) => self.note_failure(id, error),
            }
        }
    }

    fn retry_later(&mut self, id: ConnId, address: Address, pause: Duration) {
        self.shared.set_alarm(self.shared.now + pause, Purpose::RetryDial(id));
        if let Some(dial) = self.shared.table.at(id.index()).dial() {
            dial.retry = Some((address, pause));
        }
    }

    /// Repeats an attempt that found the backlog full, unless the connection has ended meanwhile or
    /// the time for the attempt is over.
    pub(super) fn retry_dial(&mut self, handler: &mut H, id: ConnId) {
        let Some(record) = self.shared.table.get_mut(id) else { return };
        if record.state() != State::Connecting {
            return;
        }
        let Some((address, pause)) = record.dial().and_then(|dial| dial.retry.take()) else {
            return;
        };
        match self.begin_attempt(id, &address) {
            Ok(stream) => self.slots[id.index()].stream = Some(stream),
            Err(error) if is_backlog_full(&address, &error) => {
                self.retry_later(id, address, (pause * 2).min(RETRY_MAX));
            }
            Err(error) => {
                self.note_failure(id, error);
                self.guard(handler, |reactor, handler| {
                    reactor.dial_next(handler, id);
                    reactor.settle(handler, id);
                });
            }
        }
    }

    fn begin_attempt(&mut self, id: ConnId, address: &Address) -> io::Result<B::Stream> {
        let mut stream = match self.shared.table.at(id.index()).pooled() {
            Some((pool, _)) => {
                let options = &self.shared.pools.get(pool).socket;
                self.backend.connect(address, options)?
            }
            None => {
                let options = self.config.socket.beside(&self.config.timeouts);
                self.backend.connect(address, &options)?
            }
        };
        match self.backend.register(&mut stream, Token::of_conn(id)) {
            Ok(()) => Ok(stream),
            Err(error) => {
                self.backend.close(stream, true);
                Err(error)
            }
        }
    }

    fn end_dial(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let failure = record.dial().and_then(|dial| dial.failure);
        let reason = match failure {
            Some(failure)
                if failure.kind() == ErrorKind::TimedOut && failure.raw_os_error().is_none() =>
            {
                CloseReason::Timeout(Timeout::Connect)
            }
            Some(failure) => CloseReason::ConnectFailed(failure),
            None => CloseReason::ConnectFailed(io::Error::from(ErrorKind::NotFound).into()),
        };
        self.begin_closing(handler, id, reason);
    }
}
