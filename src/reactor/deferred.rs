//! Newcomers of clients at their limits: holds their sockets, and admits or rejects them as
//! [`core::deferred`](crate::core::deferred) decides.

use super::Reactor;
use crate::address::Address;
use crate::backend::Backend;
use crate::core::clients::{ClientKey, Excess};
use crate::core::deferred::{Decision, NextCheck, Pass, PassInputs, Standing};
use crate::core::gate::Verdict;
use crate::handler::Handler;
use crate::state::Purpose;
use crate::time::Instant;

/// A connection that was accepted, and about which nothing is decided.
#[derive(Debug)]
pub(super) struct Newcomer<S> {
    /// The index of its listener.
    listener: usize,
    pub(super) stream: S,
    peer: Address,
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Keeps an accepted connection until it can be decided on.
    pub(super) fn defer(
        &mut self,
        listener: usize,
        stream: B::Stream,
        peer: Address,
        client: ClientKey,
    ) {
        let newcomer = Newcomer { listener, stream, peer };
        let behind = self.has_unserved_events();
        let until = self.deferred.push(newcomer, client, behind, self.shared.now);
        self.check_deferred_by(until);
    }

    /// Whether events of the latest wait are left for this turn or the next one.
    const fn has_unserved_events(&self) -> bool {
        self.next_event < self.events.len()
    }

    /// Sets the alarm that checks the deferred newcomers, unless one is set: that one is earlier.
    fn check_deferred_by(&mut self, at: Instant) {
        if self.accepting.deferred_alarm.is_none() {
            let alarm = self.shared.set_alarm(at, Purpose::CheckDeferred);
            self.accepting.deferred_alarm = Some(alarm);
        }
    }

    fn cancel_deferred_alarm(&mut self) {
        if let Some(alarm) = self.accepting.deferred_alarm.take() {
            self.shared.cancel_alarm(alarm);
        }
    }

    /// The time of a deferred newcomer is over: it is refused unless its client may have it by now.
    pub(super) fn check_deferred(&mut self) {
        self.accepting.deferred_alarm = None;
        self.recheck_deferred();
    }

    /// Something happened that may decide on a deferred newcomer.
    #[inline]
    pub(super) fn recheck_deferred(&mut self) {
        if !self.deferred.is_empty() {
            self.deferred.request_check();
            self.update_due();
        }
    }

    /// Decides on the deferred newcomers, once the events that came before them have been served:
    /// the FIN of a connection that their client closed before may be among these.
    #[cold]
    pub(super) fn decide_deferred(&mut self, handler: &mut H) {
        if self.has_unserved_events() {
            return;
        }
        let gate = &self.accepting.gate;
        let mut backlogs = self.listeners.iter().map(|listener| &listener.backlog);
        let inputs = PassInputs {
            now: self.shared.now,
            behind: self.events.is_full() || self.shared.ready.is_behind(),
            urgent: gate.is_draining() || gate.is_paused(),
            draining: gate.is_draining(),
            more_wait: backlogs.any(|backlog| backlog.ready && !backlog.exempt),
        };
        let Some(mut pass) = self.deferred.begin_pass(inputs) else { return };
        while let Some(client) = self.deferred.next(&mut pass) {
            let standing = self.standing_in(&mut pass, client);
            match self.deferred.decide(&mut pass, standing) {
                Decision::Wait => {}
                Decision::Refuse => self.refuse_deferred(&pass),
                Decision::Admit if pass.lacks_place() || !self.has_room_for_deferred(handler) => {
                    pass.skip_for_place();
                }
                Decision::Admit => self.admit_deferred(handler, &pass, client),
            }
        }
        match self.deferred.end_pass(&pass) {
            NextCheck::Never => self.cancel_deferred_alarm(),
            NextCheck::By(at) => self.check_deferred_by(at),
            NextCheck::At(at) => {
                self.cancel_deferred_alarm();
                self.check_deferred_by(at);
            }
        }
    }

    /// The standing of a client, which is determined once in a pass unless it is within its limit.
    fn standing_in(&mut self, pass: &mut Pass, client: ClientKey) -> Standing {
        pass.known(client).unwrap_or_else(|| {
            let standing = self.standing_of(client);
            pass.note(client, standing);
            standing
        })
    }

    /// Rejects the newcomer at hand, as its client has as many connections as it may.
    fn refuse_deferred(&mut self, pass: &Pass) {
        let Some(newcomer) = self.deferred.take(pass) else { return };
        let verdict = self.refuse_client(&newcomer.peer, Excess::Connections);
        self.reject_deferred(newcomer.stream, verdict);
    }

    /// Admits the newcomer at hand, if it gets the place that was there.
    fn admit_deferred(&mut self, handler: &mut H, pass: &Pass, client: ClientKey) {
        let Some(mut newcomer) = self.deferred.take(pass) else { return };
        self.accepting.gate.connect(client);
        let verdict = self.check_table(handler, &mut newcomer.stream, Some(client));
        let Newcomer { listener, stream, peer } = newcomer;
        match verdict {
            Verdict::Admit => self.admit(handler, listener, stream, peer),
            verdict => self.reject_deferred(stream, verdict),
        }
    }

    fn reject_deferred(&mut self, stream: B::Stream, verdict: Verdict) {
        self.reject(stream, verdict == Verdict::Reset);
        // Its descriptor may be the one that was missing.
        self.resume_accepting();
    }
}
