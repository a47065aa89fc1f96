//! Errors of accept(2), and what follows where descriptors or memory are short: connections are
//! evicted, and accepting pauses, as [`core::gate`](crate::core::gate) decides.

use std::io;
use std::time::Duration;

use super::Reactor;
use crate::backend::{Backend, Token};
use crate::core::gate::AcceptFault;
use crate::handler::Handler;
use crate::id::{ConnId, ListenerId};
use crate::log::{debug, error, warn};
use crate::planted::{Bug, planted};
use crate::state::Purpose;

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// accept(2) failed, and the backlog is not simply empty.
    #[cold]
    pub(super) fn handle_accept_error(
        &mut self,
        handler: &mut H,
        index: usize,
        fault: AcceptFault,
        error: &io::Error,
    ) {
        self.shared.counters.accept_errors.add(1);
        match fault {
            AcceptFault::Drained | AcceptFault::Interrupted => {
                unreachable!("{fault:?} is no error")
            }
            AcceptFault::Transient => debug!(%error, "a connection was lost while waiting"),
            AcceptFault::Exhausted if planted(Bug::ShortageSpins) => {}
            AcceptFault::Exhausted => self.relieve_shortage(handler, error),
            AcceptFault::Dead => {
                error!(%error, listener = %self.shared.listening_on[index], "a listener died");
                self.close_listener(index);
                let id = ListenerId(index as u32);
                self.call_loop("on_listener_failed", |cx| {
                    handler.on_listener_failed(cx, id, error);
                });
            }
        }
    }

    /// An accepted connection cannot be registered: it is closed before any callback hears of it.
    #[cold]
    #[inline(never)]
    pub(super) fn give_up_unregistered(
        &mut self,
        handler: &mut H,
        id: ConnId,
        stream: B::Stream,
        error: &io::Error,
    ) {
        debug!(%id, %error, "an accepted connection cannot be registered");
        self.shared.counters.accept_errors.add(1);
        self.depart(id);
        self.shared.remove(id);
        self.shared.count_connections();
        self.backend.close(stream, true);
        // epoll_ctl(2) is out of memory or watches: the next connection would fail in the same way.
        self.relieve_shortage(handler, error);
    }

    /// The system is short of descriptors or memory: pauses, and evicts connections if the gate
    /// says so.
    fn relieve_shortage(&mut self, handler: &mut H, error: &io::Error) {
        let shortage = self.accepting.gate.note_shortage(!self.deferred.is_empty());
        self.deferred.request_check();
        self.begin_pause(shortage.pause, error);
        if shortage.evict {
            self.evict_for_shortage(handler);
        }
    }

    /// Stops accepting until there may be descriptors again: for a while, longer each time, or
    /// until one of ours is closed.
    pub(super) fn pause_accepting(&mut self, error: &io::Error) {
        let pause = self.accepting.gate.pause();
        self.begin_pause(pause, error);
    }

    fn begin_pause(&mut self, pause: Duration, error: &io::Error) {
        let now = self.shared.now;
        if let Some(times) = self.accepting.shortages.times(now) {
            warn!(%error, times, "accepting pauses");
        }
        self.shared.counters.accept_pauses.add(1);
        let alarm = self.shared.set_alarm(now + pause, Purpose::ExpirePause);
        if let Some(before) = self.accepting.pause_alarm.replace(alarm) {
            self.shared.cancel_alarm(before);
        }
    }

    /// A pause has lasted to its end.
    pub(super) fn expire_pause(&mut self) {
        self.accepting.gate.expire_pause();
        self.resume_accepting();
    }

    /// Accepts again if accepting is paused: a descriptor of ours was closed, or the pause has
    /// expired.
    #[inline]
    pub(super) fn resume_accepting(&mut self) {
        if self.accepting.gate.is_paused() {
            self.end_pause();
        }
    }

    /// Ends a pause, and registers the listeners anew: an edge-triggered listener whose accept
    /// failed reports nothing more, not even when the shortage is over.
    #[cold]
    fn end_pause(&mut self) {
        self.accepting.gate.end_pause();
        if let Some(alarm) = self.accepting.pause_alarm.take() {
            self.shared.cancel_alarm(alarm);
        }
        let mut failure = None;
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let Some(socket) = &mut listener.socket else {
                continue;
            };
            let token = Token::of_listener(ListenerId(index as u32));
            if planted(Bug::AcceptNotRetried) {
                listener.backlog.ready = false;
                continue;
            }
            if let Err(error) = self.backend.reregister_listener(socket, token) {
                debug!(%error, "a listener cannot be registered again");
                failure = Some(error);
            }
            listener.backlog.ready = true;
        }
        // A listener that is not registered would report nothing once its backlog is empty.
        if let Some(error) = failure {
            self.pause_accepting(&error);
        }
        self.update_due();
    }
}
