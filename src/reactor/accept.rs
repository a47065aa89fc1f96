//! Listeners: accepts connections within a budget and admits them, as [`core::gate`](crate::core::gate)
//! decides.
//!
//! `limits.rs` checks what was accepted, `deferred.rs` holds what waits for a decision, `shortage.rs`
//! handles errors of accept(2).

use std::io;

use bytes::BytesMut;

use super::Reactor;
use super::read_buffer::rewind;
use crate::address::Address;
use crate::backend::{Backend, Token};
use crate::config::{Config, ListenConfig, SocketOptions};
use crate::core::budget::{Budget, ITEMS_PER_STEP, Step};
use crate::core::deadlines::Durations;
use crate::core::flags::Flags;
use crate::core::gate::{
    ACCEPTS_PER_TURN, AcceptFault, Backlog, Delay, FAILURES_PER_TURN, Gate, Occupancy, Verdict,
};
use crate::core::record::NewConn;
use crate::error::Error;
use crate::handler::Handler;
use crate::id::{AlarmId, ConnId, ListenerId, Origin, ServiceId};
use crate::log::{LogLimiter, info, warn};
use crate::planted::{Bug, planted};
use crate::probe;
use crate::state::{READ_BUDGET, log_state};

/// A listener and what is known of its backlog.
pub(super) struct Listener<L> {
    /// `None` once it is closed.
    pub(super) socket: Option<L>,
    /// It is bound to all addresses, so the local end of each connection is asked for.
    wildcard: bool,
    pub(super) backlog: Backlog,
}

/// The state that all listeners share.
#[derive(Debug)]
pub(super) struct Accepting {
    /// The next turn has something to do here: a listener may accept, deferred newcomers may be
    /// decided on, a search for idle connections goes on, or a service has something to do.
    due: bool,
    pub(super) gate: Gate,
    /// What ends a pause.
    pub(super) pause_alarm: Option<AlarmId>,
    /// What checks again whether newcomers are accepted.
    pub(super) retry_alarm: Option<AlarmId>,
    /// What checks the deferred newcomers.
    pub(super) deferred_alarm: Option<AlarmId>,
    pub(super) shortages: LogLimiter,
    pub(super) refusals: LogLimiter,
    full_tables: LogLimiter,
    throttles: LogLimiter,
}

impl Accepting {
    pub(super) fn new(config: &Config, capacity: usize) -> Self {
        Self {
            due: false,
            gate: Gate::new(&config.limits, capacity),
            pause_alarm: None,
            retry_alarm: None,
            deferred_alarm: None,
            shortages: LogLimiter::default(),
            refusals: LogLimiter::default(),
            full_tables: LogLimiter::default(),
            throttles: LogLimiter::default(),
        }
    }

    #[inline]
    pub(super) const fn is_due(&self) -> bool {
        self.due
    }

    /// A search for idle connections goes on in the next turn.
    pub(super) const fn note_search(&mut self) {
        self.due = true;
    }
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    pub(super) fn socket_options(&self, listen: &ListenConfig) -> SocketOptions {
        let timeouts = listen.timeouts.as_ref().unwrap_or(&self.config.timeouts);
        self.config.socket.beside(timeouts)
    }

    /// Registers a listening socket and adds its listener; `name` is what an error calls it.
    pub(super) fn add_listener(
        &mut self,
        socket: io::Result<B::Listener>,
        listen: &ListenConfig,
        name: impl FnOnce() -> String,
    ) -> Result<ListenerId, Error> {
        if self.shared.is_shutting_down() {
            return Err(Error::Io(io::Error::other("the reactor is shutting down")));
        }
        let id = ListenerId(self.listeners.len() as u32);
        let registered = socket.and_then(|mut socket| {
            let address = self.backend.listener_addr(&socket)?;
            self.backend.register_listener(&mut socket, Token::of_listener(id))?;
            Ok((socket, address))
        });
        let (socket, address) =
            registered.map_err(|source| Error::Bind { address: name(), source })?;
        let timeouts = listen.timeouts.as_ref().unwrap_or(&self.config.timeouts);
        self.shared.profiles.push(Durations::new(timeouts));
        self.listeners.push(Listener {
            socket: Some(socket),
            wildcard: address.ip().is_some_and(|addr| addr.ip().is_unspecified()),
            backlog: Backlog::new(listen.exempt),
        });
        info!(%address, "listening");
        self.shared.listening_on.push(address);
        self.update_due();
        Ok(id)
    }

    /// Accepts from all listeners that may have connections waiting, each in its budget.
    #[inline]
    pub(super) fn accept(&mut self, handler: &mut H) {
        if self.accepting.due {
            self.accept_ready(handler);
        }
    }

    /// Determines whether the next turn has something to do here. To be called after each change of
    /// what that depends on: a turn that waits otherwise would not come back for it.
    pub(super) fn update_due(&mut self) {
        let Self { listeners, accepting, deferred, overload, services, .. } = self;
        accepting.due = deferred.is_check_due()
            || overload.is_searching()
            || services.is_due()
            || listeners.iter().any(|it| accepting.gate.may_accept(&it.backlog));
    }

    /// The accept step of a turn. A search for idle connections goes first, as it may find one to
    /// evict; deferred newcomers come before those in the backlogs, as they arrived earlier. The
    /// services come last.
    #[inline(never)]
    fn accept_ready(&mut self, handler: &mut H) {
        let mut budget = self.begin_step(Step::Accept);
        if self.overload.is_searching() {
            self.continue_search(handler);
            if self.accepting.gate.is_full() && self.check_full(handler).is_none() {
                self.deferred.request_check();
            }
        }
        if !self.deferred.is_empty() {
            self.decide_deferred(handler);
        }
        let count = self.listeners.len();
        let first = self.accepting.gate.rotate(count);
        for index in (first..count).chain(0..first) {
            self.accept_from(handler, index, &mut budget);
        }
        self.end_step(&budget);
        self.serve_services(handler);
        self.update_due();
    }

    /// An event says that a backlog holds connections. They are accepted in the accept step of the
    /// turn. If they have to wait, the operator is warned: an event comes with each new connection,
    /// so the count says how many wait.
    #[inline(never)]
    pub(super) fn note_listener_event(&mut self, id: ListenerId) {
        let listener = self.listeners.get_mut(id.0 as usize);
        let Some(listener) = listener.filter(|listener| listener.socket.is_some()) else {
            if let Some(id) = ServiceId::of_token(id) {
                self.note_service_event(id);
            }
            return;
        };
        listener.backlog.ready = true;
        let gate = &self.accepting.gate;
        self.accepting.due |= gate.may_accept(&listener.backlog);
        match gate.delay(&listener.backlog) {
            None => {}
            Some(Delay::TableFull) => self.warn_of_full_table(),
            Some(Delay::Rate) => self.warn_of_rate(),
        }
    }

    #[cold]
    fn warn_of_rate(&mut self) {
        if let Some(times) = self.accepting.throttles.times(self.shared.now) {
            warn!(times, "newcomers wait: more come than accept_rate allows");
        }
    }

    #[cold]
    pub(super) fn warn_of_full_table(&mut self) {
        if let Some(times) = self.accepting.full_tables.times(self.shared.now) {
            let connections = self.shared.table.counted();
            warn!(connections, times, "the table is full");
        }
    }

    /// What is occupied now.
    pub(super) fn occupancy(&self) -> Occupancy {
        Occupancy {
            table_full: self.shared.table.is_full(),
            exempt_full: self.shared.table.is_full_for_exempt(),
            deferred_full: self.deferred.is_full(),
        }
    }

    /// Accepts from one listener until its backlog is empty, the gate closes, or a budget is used
    /// up.
    fn accept_from(&mut self, handler: &mut H, index: usize, budget: &mut Budget) {
        let mut failures = 0;
        for _ in 0..ACCEPTS_PER_TURN {
            let gate = &self.accepting.gate;
            let backlog = &self.listeners[index].backlog;
            if !gate.may_accept(backlog) || !budget.allows(|| self.backend.now()) {
                return;
            }
            // Mostly there is nothing to check, before the accept or after it.
            let needs_no_check = gate.needs_no_check(backlog, self.shared.table.counted());
            if !needs_no_check && !self.may_accept_next(handler, index) {
                return;
            }
            let Some(socket) = self.listeners[index].socket.as_mut() else { return };
            match self.backend.accept(socket) {
                Ok((mut stream, peer)) => {
                    let backlog = &mut self.listeners[index].backlog;
                    self.accepting.gate.count_accepted(backlog);
                    let verdict = if needs_no_check || backlog.exempt {
                        Verdict::Admit
                    } else {
                        self.check_limits(handler, &mut stream, &peer)
                    };
                    match verdict {
                        Verdict::Admit => self.admit(handler, index, stream, peer),
                        Verdict::Defer(client) => self.defer(index, stream, peer, client),
                        Verdict::Close => self.reject(stream, false),
                        Verdict::Reset => self.reject(stream, true),
                    }
                }
                Err(error) => match AcceptFault::of(error.raw_os_error(), || error.kind()) {
                    AcceptFault::Drained => self.listeners[index].backlog.ready = false,
                    AcceptFault::Interrupted => {}
                    fault => {
                        self.handle_accept_error(handler, index, fault, &error);
                        failures += 1;
                        if failures == FAILURES_PER_TURN && !planted(Bug::ShortageSpins) {
                            self.pause_accepting(&error);
                        }
                    }
                },
            }
        }
    }

    /// Adds an accepted connection to the table and opens it. Its place has been checked.
    #[inline(always)]
    pub(super) fn admit(
        &mut self,
        handler: &mut H,
        index: usize,
        mut stream: B::Stream,
        peer: Address,
    ) {
        let Listener { wildcard, backlog: Backlog { exempt, .. }, .. } = self.listeners[index];
        let new_conn = NewConn {
            origin: Origin::Accepted(ListenerId(index as u32)),
            peer,
            owner: None,
            exempt,
            room_checked: true,
            now: self.shared.now,
        };
        let Ok(record) = self.shared.table.insert(new_conn) else {
            return;
        };
        log_state(record);
        let id = record.id;
        probe::accept(id, ListenerId(index as u32));
        // A fresh socket takes bytes; if not, the first write learns it.
        record.flags.insert(Flags::WRITE_READY);
        if wildcard {
            self.note_local_addr(id, &stream);
        }
        self.shared.counters.accepted.add(1);
        self.shared.count_connections();
        if let Err(error) = self.backend.register(&mut stream, Token::of_conn(id)) {
            return self.give_up_unregistered(handler, id, stream, &error);
        }
        self.accepting.gate.note_admitted();
        if self.accepting.gate.is_crowded(self.shared.table.counted()) {
            self.watch_pressure();
        }
        self.make_slot(id).stream = Some(stream);
        if self.call_accepted(handler, id) {
            self.settle_accepted(handler, id);
        } else {
            self.discard(id);
        }
    }

    #[inline(never)]
    fn note_local_addr(&mut self, id: ConnId, stream: &B::Stream) {
        if let Ok(address) = self.backend.local_addr(stream) {
            self.shared.table.at(id.index()).cold_mut().local = Some(address);
        }
    }

    /// Closes an accepted connection that is not admitted.
    pub(super) fn reject(&mut self, mut stream: B::Stream, reset: bool) {
        if !reset {
            send_fin_and_drain(&mut self.backend, &mut stream, &mut self.read_buffer);
        }
        self.backend.close(stream, reset);
    }

    pub(super) fn close_listener(&mut self, index: usize) {
        let listener = &mut self.listeners[index];
        listener.backlog.ready = false;
        if let Some(socket) = listener.socket.take() {
            self.backend.close_listener(socket);
        }
    }

    /// Closes the listeners that a shutdown closes first, or `all`, and rejects the deferred
    /// newcomers.
    pub(super) fn close_listeners(&mut self, all: bool) {
        for index in 0..self.listeners.len() {
            if all || !self.listeners[index].backlog.exempt {
                self.close_listener(index);
            }
        }
        while let Some(newcomer) = self.deferred.pop() {
            self.reject(newcomer.stream, all);
        }
        self.update_due();
    }

    /// A shutdown begins to drain the backlogs. Accepts as much as one turn does; later turns go on.
    pub(super) fn begin_draining(&mut self, handler: &mut H) {
        self.accepting.gate.begin_draining();
        self.deferred.request_check();
        let mut budget = Budget::new(ITEMS_PER_STEP);
        for index in 0..self.listeners.len() {
            let Listener { socket, backlog, .. } = &mut self.listeners[index];
            // The event for a connection in the backlog may be on its way.
            backlog.ready = socket.is_some();
            if !backlog.exempt {
                self.accept_from(handler, index, &mut budget);
            }
        }
        self.update_due();
    }

    /// Whether the backlogs hold no more connections that are to be accepted before a shutdown goes
    /// on.
    pub(super) fn has_drained(&self) -> bool {
        let backlogs = self.listeners.iter().map(|listener| &listener.backlog);
        self.accepting.gate.has_drained(self.occupancy(), !self.deferred.is_empty(), backlogs)
    }
}

/// Readies the socket of a connection that is closed without lingering. What the peer sent already
/// is read, because closing over unread bytes would reset the connection and could destroy the
/// reply.
pub(super) fn send_fin_and_drain<B: Backend>(
    backend: &mut B,
    stream: &mut B::Stream,
    read_buffer: &mut BytesMut,
) {
    if backend.shutdown_write(stream).is_ok() {
        rewind(read_buffer);
        // Whether there was anything does not matter.
        let _ = backend.read(stream, read_buffer, READ_BUDGET);
        read_buffer.clear();
    }
}
