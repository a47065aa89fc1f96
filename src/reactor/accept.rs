//! Listeners: accepting within a budget, and what to do when it fails.

use std::io;

use tracing::{debug, error, warn};

use super::Reactor;
use crate::address::Address;
use crate::backend::{Backend, Token};
use crate::canary::{Canary, planted};
use crate::config::{ListenConfig, SocketOptions};
use crate::context::{AlarmId, Purpose};
use crate::core::deadlines::Periods;
use crate::core::table::{Birth, Flags, ListenerId, Origin};
use crate::error::Error;
use crate::handler::Handler;
use crate::time::Instant;

/// Connections accepted from one listener in one turn: one burst of SYNs must not starve those
/// that are being served.
const ACCEPTS_PER_TURN: usize = 16;

const PAUSE_MIN_NANOS: u64 = 100_000_000;
const PAUSE_MAX_NANOS: u64 = 1_000_000_000;

/// The log is told of a lasting shortage once in this time.
const WARN_EVERY_NANOS: u64 = 1_000_000_000;

/// A listener and what is known of its backlog.
pub(super) struct Listener<L> {
    /// `None` once it is closed.
    socket: Option<L>,
    /// The backlog may hold connections.
    ready: bool,
    /// An `accept` on a bound-to-all listener must be asked for its local end.
    wildcard: bool,
    profile: u32,
}

/// The state that all listeners share.
#[derive(Debug, Default)]
pub(super) struct Accepting {
    /// A listener is ready.
    ready: bool,
    /// The table was full, and has not emptied enough yet.
    full: bool,
    /// The system ran out of something; nothing is accepted until an alarm or a close.
    paused: bool,
    /// How long the latest pause was to last.
    pause_nanos: u64,
    /// What ends the pause.
    alarm: Option<AlarmId>,
    warned_at: Option<Instant>,
    /// The listener whose turn it is to be first.
    first: usize,
}

impl Accepting {
    pub(super) const fn is_due(&self, full: bool) -> bool {
        self.ready && !self.paused && !self.full && !full
    }
}

/// What an `errno` of accept(2) means for the listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum AcceptFault {
    /// The backlog is empty.
    Drained,
    /// This connection is gone, or the network hiccuped; the next one may be well.
    Transient,
    /// The process or the system ran out of descriptors or memory.
    Exhausted,
    /// The listener itself is broken.
    Dead,
}

impl AcceptFault {
    /// accept(2) names the network errors that Linux passes on from the new socket and asks to
    /// treat like EAGAIN by retrying.
    fn of(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::WouldBlock {
            return Self::Drained;
        }
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::Exhausted,
            Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK) => Self::Dead,
            _ => Self::Transient,
        }
    }
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    pub(super) fn socket_options(&self, listen: &ListenConfig) -> SocketOptions {
        let timeouts = listen.timeouts.as_ref().unwrap_or(&self.config.timeouts);
        self.config.socket.beside(timeouts)
    }

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
        self.shared.profiles.push(Periods::new(timeouts));
        self.listeners.push(Listener {
            socket: Some(socket),
            // Whoever made an inherited listener may have let connections wait already.
            ready: true,
            wildcard: address.ip().is_some_and(|addr| addr.ip().is_unspecified()),
            profile: self.shared.profiles.len() as u32 - 1,
        });
        self.accepting.ready = true;
        self.shared.listening_on.push(address);
        Ok(id)
    }

    /// Accepts from all listeners that may have connections waiting, each in its budget.
    #[inline]
    pub(super) fn accept(&mut self, handler: &mut H) {
        if self.accepting.ready {
            self.accept_ready(handler);
        }
    }

    fn accept_ready(&mut self, handler: &mut H) {
        if !self.accepting.is_due(self.shared.table.is_full()) {
            self.accepting.full |= self.shared.table.is_full();
            return;
        }
        let count = self.listeners.len();
        self.accepting.first = (self.accepting.first + 1) % count.max(1);
        for offset in 0..count {
            self.accept_from(handler, (self.accepting.first + offset) % count);
        }
        self.accepting.ready = self.listeners.iter().any(|listener| listener.ready);
    }

    pub(super) fn note_listener_event(&mut self, id: ListenerId) {
        let listener = self.listeners.get_mut(id.0 as usize);
        if let Some(listener) = listener.filter(|listener| listener.socket.is_some()) {
            listener.ready = true;
            self.accepting.ready = true;
        }
    }

    fn accept_from(&mut self, handler: &mut H, index: usize) {
        let mut failures = 0;
        for _ in 0..ACCEPTS_PER_TURN {
            if self.accepting.paused {
                return;
            }
            if self.shared.table.is_full() {
                self.accepting.full = true;
                debug!("the table is full; accepting pauses");
                return;
            }
            let listener = &mut self.listeners[index];
            let Some(socket) = listener.socket.as_mut().filter(|_| listener.ready) else {
                return;
            };
            match self.backend.accept(socket) {
                Ok((stream, peer)) => {
                    self.accepting.pause_nanos = 0;
                    self.admit(handler, index, stream, peer);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.handle_accept_error(index, &error);
                    failures += 1;
                    // An error that "passes" but never does must not spin.
                    if failures == ACCEPTS_PER_TURN {
                        self.pause_accepting(&error);
                    }
                }
            }
        }
    }

    fn admit(&mut self, handler: &mut H, index: usize, mut stream: B::Stream, peer: Address) {
        let Listener { wildcard, profile, .. } = self.listeners[index];
        let birth = Birth {
            origin: Origin::Accepted(ListenerId(index as u32)),
            peer,
            owner: None,
            profile,
            now: self.shared.now,
        };
        let Ok(record) = self.shared.table.insert(birth) else {
            return;
        };
        let id = record.id;
        // A fresh socket takes bytes; if not, the first write learns it.
        record.flags.insert(Flags::WRITE_READY);
        if wildcard && let Ok(address) = self.backend.local_addr(&stream) {
            record.rare_mut().local = Some(address);
        }
        self.shared.counters.accepted.add(1);
        self.shared.count_connections();
        if let Err(error) = self.backend.register(&mut stream, Token::of_conn(id)) {
            warn!(%error, "an accepted connection cannot be registered");
            self.shared.counters.accept_errors.add(1);
            self.shared.remove(id);
            self.shared.count_connections();
            self.backend.close(stream, true);
            return;
        }
        self.make_slot(id);
        self.slots[id.index()].stream = Some(stream);
        if self.call_accepted(handler, id) {
            self.settle_accepted(handler, id);
        } else {
            self.discard(id);
        }
    }

    fn handle_accept_error(&mut self, index: usize, error: &io::Error) {
        let fault = AcceptFault::of(error);
        if fault == AcceptFault::Drained {
            self.listeners[index].ready = false;
            return;
        }
        self.shared.counters.accept_errors.add(1);
        match fault {
            AcceptFault::Drained => unreachable!("the end of the backlog is no error"),
            AcceptFault::Transient => debug!(%error, "a connection was lost while waiting"),
            AcceptFault::Exhausted => self.pause_accepting(error),
            AcceptFault::Dead => {
                error!(%error, listener = %self.shared.listening_on[index], "a listener died");
                self.close_listener(index);
            }
        }
    }

    /// Leaves the backlog alone until there may be descriptors again: after a while, longer each
    /// time, or as soon as one of ours is closed.
    fn pause_accepting(&mut self, error: &io::Error) {
        let now = self.shared.now;
        let quiet =
            self.accepting.warned_at.is_none_or(|at| now.nanos_since(at) >= WARN_EVERY_NANOS);
        if quiet {
            warn!(%error, "accepting pauses");
            self.accepting.warned_at = Some(now);
        }
        let pause = (self.accepting.pause_nanos * 2).clamp(PAUSE_MIN_NANOS, PAUSE_MAX_NANOS);
        self.accepting.pause_nanos = pause;
        self.accepting.paused = true;
        self.shared.counters.accept_pauses.add(1);
        let again = now + std::time::Duration::from_nanos(pause);
        self.accepting.alarm = Some(self.shared.set_alarm(again, Purpose::AcceptAgain));
    }

    /// Tries again after a pause. An edge-triggered listener whose accept failed reports nothing
    /// of its own accord, not even when the shortage is over.
    pub(super) fn resume_accepting(&mut self) {
        if !std::mem::take(&mut self.accepting.paused) {
            return;
        }
        if let Some(alarm) = self.accepting.alarm.take() {
            self.shared.cancel_alarm(alarm);
        }
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let Some(socket) = &mut listener.socket else {
                continue;
            };
            let token = Token::of_listener(ListenerId(index as u32));
            if planted(Canary::AcceptNotRetried) {
                listener.ready = false;
                continue;
            }
            if let Err(error) = self.backend.reregister_listener(socket, token) {
                debug!(%error, "a listener cannot be registered again");
            }
            listener.ready = true;
            self.accepting.ready = true;
        }
    }

    /// One of our descriptors was closed, and a place in the table is free.
    pub(super) fn note_release(&mut self) {
        let table = &self.shared.table;
        // Resuming at the first free place would pause again at once: a 64th gives room to breathe.
        let room = (table.capacity() / 64).max(1);
        if self.accepting.full && table.len() <= table.capacity() - room {
            self.accepting.full = false;
        }
        self.resume_accepting();
    }

    pub(super) fn close_listener(&mut self, index: usize) {
        let listener = &mut self.listeners[index];
        listener.ready = false;
        if let Some(socket) = listener.socket.take() {
            self.backend.close_listener(socket);
        }
    }

    pub(super) fn close_listeners(&mut self) {
        for index in 0..self.listeners.len() {
            self.close_listener(index);
        }
        self.accepting.ready = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_of_accept_has_its_answer() {
        use AcceptFault::{Dead, Drained, Exhausted, Transient};
        for (errno, fault) in [
            (libc::EAGAIN, Drained),
            (libc::ECONNABORTED, Transient),
            (libc::EPROTO, Transient),
            (libc::EPERM, Transient),
            (libc::ENETDOWN, Transient),
            (libc::ENETUNREACH, Transient),
            (libc::EHOSTUNREACH, Transient),
            (libc::EHOSTDOWN, Transient),
            (libc::ENOPROTOOPT, Transient),
            (libc::EOPNOTSUPP, Transient),
            (libc::ETIMEDOUT, Transient),
            (libc::EMFILE, Exhausted),
            (libc::ENFILE, Exhausted),
            (libc::ENOBUFS, Exhausted),
            (libc::ENOMEM, Exhausted),
            (libc::EBADF, Dead),
            (libc::EINVAL, Dead),
            (libc::ENOTSOCK, Dead),
        ] {
            assert_eq!(AcceptFault::of(&io::Error::from_raw_os_error(errno)), fault, "{errno}");
        }
    }
}
