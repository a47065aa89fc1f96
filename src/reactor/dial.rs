//! Dialling: the look-up of a name, and the attempts on its addresses, side by side as
//! [`core::dial`](crate::core::dial) decides.

use std::cmp;
use std::io::{self, ErrorKind};

use super::Reactor;
use crate::address::{Address, Target};
use crate::backend::{Backend, Token};
use crate::core::budget::Step;
use crate::core::deadlines::Deadline;
use crate::core::dial::{Next, Start, is_shortage};
use crate::core::flags::Flags;
use crate::core::lifecycle::State;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::log::debug;
use crate::planted::{Bug, planted};
use crate::state::{LoopState, Purpose};
use crate::time::Instant;

/// Sockets of attempts that no connection has a place for, whatever the table's capacity: so that
/// one of a few places can be dialled by happy eyeballs, too. They are part of the descriptors that
/// a reactor leaves to the rest.
const ATTEMPTS_RESERVED: usize = 8;

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
            if !self.has_session(id) && !self.open_dialled(handler, id) {
                continue;
            }
            let record = self.shared.table.at(id.index());
            if record.state() == State::Connecting && record.requested().is_none() {
                self.begin_dial(handler, id);
            }
            self.guard(handler, |reactor, handler| reactor.settle(handler, id));
        }
        pending_dials.drain(..begun);
        pending_dials.append(&mut self.shared.pending_dials);
        self.shared.pending_dials = pending_dials;
        self.end_step(&budget);
    }

    /// Runs `on_open` of a connection that is to be dialled, and says whether that took it.
    #[inline(never)]
    pub(super) fn open_dialled(&mut self, handler: &mut H, id: ConnId) -> bool {
        if !self.is_unopened(id) {
            return false;
        }
        self.make_slot(id);
        let taken = self.call_open(handler, id);
        if !taken {
            self.discard(id);
        }
        taken
    }

    fn begin_dial(&mut self, handler: &mut H, id: ConnId) {
        let Self { backend, shared, .. } = self;
        let Some(dial) = shared.table.at(id.index()).dial() else { return };
        match dial.target() {
            Target::Address(address) => {
                let address = address.clone();
                self.take_addresses(id, vec![address]);
            }
            Target::Name { host, port } => match backend.resolve(host, *port, Token::of_conn(id)) {
                // An event says when there is an answer.
                Ok(()) => return,
                Err(error) => dial.fail_lookup(error.into()),
            },
        }
        self.advance_dial(handler, id);
    }

    /// Sees what became of a look-up, or of the attempts. All of them are checked, because they
    /// share the token that the event came for.
    pub(super) fn progress_dial(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let writable = record.flags.has(Flags::WRITE_READY);
        let Some(dial) = record.dial() else { return };
        if dial.is_unresolved() {
            return self.take_answer(handler, id);
        }
        if !writable {
            return;
        }
        let keys: Vec<_> = dial.keys().collect();
        for key in keys {
            match self.backend.is_connected(&mut self.attempts[key]) {
                Ok(true) => return self.end_race(handler, id, key),
                // A spurious event, or one for another attempt; this one goes on.
                Ok(false) => {}
                Err(error) => self.fail_attempt(id, key, error),
            }
        }
        // None of those that are left can be read from or written to, whatever the event said.
        self.shared.table.at(id.index()).flags.remove(Flags::READINESS);
        self.advance_dial(handler, id);
    }

    fn take_answer(&mut self, handler: &mut H, id: ConnId) {
        let Some(answer) = self.backend.resolved(Token::of_conn(id)) else {
            return;
        };
        match answer {
            Ok(found) => self.take_addresses(id, found),
            Err(error) => {
                debug!(%id, %error, "a look-up failed");
                if let Some(dial) = self.shared.table.at(id.index()).dial() {
                    dial.fail_lookup(error.into());
                }
            }
        }
        self.advance_dial(handler, id);
    }

    fn take_addresses(&mut self, id: ConnId, found: Vec<Address>) {
        let local = match self.shared.table.at(id.index()).pooled() {
            Some((pool, _)) => self.shared.pools.get(pool).socket.local,
            None => self.config.socket.local,
        };
        let staggered = self.connect_stagger(id) < u64::MAX;
        if let Some(dial) = self.shared.table.at(id.index()).dial() {
            dial.take_addresses(found, staggered, local);
        }
    }

    fn connect_stagger(&mut self, id: ConnId) -> u64 {
        let LoopState { table, profiles, .. } = &mut self.shared;
        table.at(id.index()).durations(profiles).connect_stagger()
    }

    /// The dialled connection stands: this attempt is it, and the others are closed.
    fn end_race(&mut self, handler: &mut H, id: ConnId, key: usize) {
        let stream = self.attempts.remove(key);
        let local = self.backend.local_addr(&stream).ok();
        let record = self.shared.table.at(id.index());
        if let Some(dial) = record.dial()
            && let Some(address) = dial.take(key)
        {
            record.peer = address;
        }
        record.cold_mut().local = local;
        self.slots[id.index()].stream = Some(stream);
        self.end_attempts(id);
        self.establish(handler, id);
        self.serve(handler, id);
    }

    /// A dial is over, however it ended, if there was one: closes the sockets of all attempts that
    /// are not decided.
    #[cold]
    #[inline(never)]
    pub(super) fn end_attempts(&mut self, id: ConnId) {
        let Some(dial) = self.shared.table.at(id.index()).take_dial() else { return };
        if let Some((alarm, _)) = dial.alarm {
            self.shared.cancel_alarm(alarm);
        }
        for key in dial.keys() {
            self.close_attempt(key);
        }
    }

    fn close_attempt(&mut self, key: usize) {
        let stream = self.attempts.remove(key);
        if planted(Bug::AttemptKept) {
            return std::mem::forget(stream);
        }
        self.backend.close(stream, true);
        self.resume_accepting();
    }

    /// The time for the oldest attempt is over, and perhaps for others.
    pub(super) fn give_up_attempt(&mut self, handler: &mut H, id: ConnId) {
        let LoopState { table, profiles, now, .. } = &mut self.shared;
        let record = table.at(id.index());
        let over = now.before(record.durations(profiles).of(Deadline::ConnectAttempt));
        let oldest = record.dial().and_then(|dial| dial.oldest());
        let Some(oldest) = oldest else {
            // A look-up is no attempt: only the total bounds it.
            return record.clocks.set(Deadline::ConnectAttempt, *now);
        };
        while let Some(dial) = self.shared.table.at(id.index()).dial()
            && let Some((address, key)) = dial.expire(oldest.max(over))
        {
            debug!(%id, peer = %address, error = %ErrorKind::TimedOut, "an attempt to connect failed");
            if let Some(key) = key {
                self.close_attempt(key);
            }
        }
        self.advance_dial(handler, id);
    }

    fn fail_attempt(&mut self, id: ConnId, key: usize, error: io::Error) {
        self.close_attempt(key);
        let Some(dial) = self.shared.table.at(id.index()).dial() else { return };
        if let Some(peer) = dial.address_of(key) {
            debug!(%id, %peer, %error, "an attempt to connect failed");
        }
        dial.fail(key, error.into());
    }

    /// Begins what attempts are due, or ends the connection when none is left to begin or to wait
    /// for.
    fn advance_dial(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        debug_assert_eq!(record.state(), State::Connecting);
        loop {
            let now = self.shared.now;
            let Some(dial) = self.shared.table.at(id.index()).dial() else { return };
            match dial.next(now) {
                Next::Begin(start) => self.begin_attempt(id, start),
                Next::Wait(until) => {
                    self.set_dial_alarm(id, until);
                    break;
                }
                Next::Exhausted => return self.end_dial(handler, id),
            }
        }
        let record = self.shared.table.at(id.index());
        let oldest = record.dial().and_then(|dial| dial.oldest());
        record.clocks.set(Deadline::ConnectAttempt, oldest.unwrap_or(self.shared.now));
        record.flags.insert(Flags::REARM);
    }

    fn set_dial_alarm(&mut self, id: ConnId, until: Option<Instant>) {
        let Some(dial) = self.shared.table.at(id.index()).dial() else { return };
        let before = dial.alarm.take();
        if let Some((_, at)) = before
            && until == Some(at)
        {
            dial.alarm = before;
            return;
        }
        if let Some((alarm, _)) = before {
            self.shared.cancel_alarm(alarm);
        }
        let Some(until) = until else { return };
        let alarm = self.shared.set_alarm(until, Purpose::AdvanceDial(id));
        if let Some(dial) = self.shared.table.at(id.index()).dial() {
            dial.alarm = Some((alarm, until));
        }
    }

    /// The alarm of a dial came, unless the connection has ended meanwhile.
    pub(super) fn resume_dial(&mut self, handler: &mut H, id: ConnId) {
        let Some(record) = self.shared.table.get_mut(id) else { return };
        if record.state() != State::Connecting || record.flags.has(Flags::REAPED) {
            return;
        }
        if let Some(dial) = record.dial() {
            dial.alarm = None;
        }
        self.guard(handler, |reactor, handler| {
            reactor.advance_dial(handler, id);
            reactor.settle(handler, id);
        });
    }

    fn begin_attempt(&mut self, id: ConnId, start: Start) {
        let stagger = self.connect_stagger(id);
        let has_room = self.has_room_for_attempt();
        let now = self.shared.now;
        let Some(dial) = self.shared.table.at(id.index()).dial() else { return };
        // The first one has the descriptor that its connection has a place for.
        let is_extra = dial.has_attempts() && start.is_first();
        if is_extra && !has_room {
            return dial.put_back(start, now, stagger);
        }
        let begun = self.connect(id, &start.address);
        let record = self.shared.table.at(id.index());
        if begun.is_ok() {
            record.peer = start.address.clone();
        }
        let Some(dial) = record.dial() else { return };
        match begun {
            Ok(stream) => dial.note_begun(start, self.attempts.insert(stream), now, stagger),
            Err(error) if is_backlog_full(&start.address, &error) => {
                dial.note_backlog_full(start, now, stagger);
            }
            Err(error) if is_extra && is_shortage(error.raw_os_error()) => {
                dial.put_back(start, now, stagger)
            }
            Err(error) => {
                debug!(%id, peer = %start.address, %error, "an attempt to connect failed");
                dial.fail_start(start, error.into());
            }
        }
    }

    /// Whether one more attempt may go on beside those that have begun. Those that are the only one
    /// of their connection have the descriptor that it has a place for; the others use places that
    /// are free.
    fn has_room_for_attempt(&self) -> bool {
        let table = &self.shared.table;
        let connecting = self.shared.counters.states.of(State::Connecting);
        let extra = self.attempts.len().saturating_sub(connecting as usize);
        extra < cmp::max(table.capacity().saturating_sub(table.len()), ATTEMPTS_RESERVED)
    }

    fn connect(&mut self, id: ConnId, address: &Address) -> io::Result<B::Stream> {
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
        let Some((address, reason)) = record.dial().map(|dial| dial.outcome()) else { return };
        if let Some(address) = address {
            record.peer = address;
        }
        self.begin_closing(handler, id, reason);
    }
}
