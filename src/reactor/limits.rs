//! The limits on connections: whether the next one may be accepted, what becomes of it, and what a
//! connection that ends makes room for. [`core::gate`](crate::core::gate) decides; here lingering and
//! idle connections are evicted for newcomers, clients are refused, and alarms are set.

use super::Reactor;
use crate::address::Address;
use crate::backend::Backend;
use crate::config::AtLimit;
use crate::core::clients::{ClientKey, Clients, Excess};
use crate::core::deferred::Standing;
#[cfg(feature = "sim")]
use crate::core::flags::Flags;
use crate::core::gate::{Arrival, Occupancy, Room, Verdict};
use crate::core::record::Record;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::log::warn;
use crate::planted::{Bug, planted};
use crate::state::Purpose;
use crate::time::Instant;

/// The client of a connection; `None` if it is not limited.
fn client_of(clients: &Clients, record: &Record) -> Option<ClientKey> {
    let limited = record.is_limited();
    if limited { clients.key_of_peer(&record.peer) } else { None }
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Whether the next connection of a listener may be accepted. If not, an alarm or the next free
    /// place leads to another check. This comes before accept(2), so that what has to wait does so
    /// in the backlog, where it costs nothing.
    #[inline(never)]
    pub(super) fn may_accept_next(&mut self, handler: &mut H, index: usize) -> bool {
        let occupancy = self.occupancy();
        let room = self.accepting.gate.room_for(&self.listeners[index].backlog, occupancy);
        if !self.has_room(handler, room) {
            return false;
        }
        let backlog = &self.listeners[index].backlog;
        let Some(next) = self.accepting.gate.check_rate(backlog, self.shared.now) else {
            return true;
        };
        self.shared.counters.accept_throttles.add(1);
        self.retry_at(next);
        false
    }

    /// Whether a newcomer that was deferred can have a place.
    pub(super) fn has_room_for_deferred(&mut self, handler: &mut H) -> bool {
        let room = self.accepting.gate.room(self.shared.table.is_full());
        self.has_room(handler, room)
    }

    fn has_room(&mut self, handler: &mut H, room: Room) -> bool {
        match room {
            Room::Free => true,
            Room::IfEvictable => self.finds_room(handler),
            Room::None => false,
        }
    }

    /// The table is full: whether a newcomer is accepted all the same, because a connection can be
    /// evicted for it or because it is to be sent a reply. None is evicted before the newcomer is
    /// here.
    #[cold]
    fn finds_room(&mut self, handler: &mut H) -> bool {
        let found = self.finds_evictee(handler);
        match self.accepting.gate.note_search(found, self.shared.now) {
            Some(again) => {
                self.retry_at(again);
                false
            }
            None => true,
        }
    }

    /// Sets the alarm that checks again whether newcomers are accepted, unless one is set: that one
    /// sets the next.
    fn retry_at(&mut self, at: Instant) {
        if self.accepting.retry_alarm.is_none() {
            self.accepting.retry_alarm = Some(self.shared.set_alarm(at, Purpose::RecheckLimits));
        }
    }

    /// The time has come to check again whether newcomers are accepted.
    pub(super) fn recheck_limits(&mut self, handler: &mut H) {
        self.accepting.retry_alarm = None;
        self.accepting.gate.end_throttle();
        if self.accepting.gate.is_full()
            && let Some(again) = self.check_full(handler)
        {
            self.retry_at(again);
        }
        self.deferred.request_check();
        self.update_due();
    }

    /// The table was full with no connection to evict: checks whether it still is. Returns when to
    /// check again if so.
    pub(super) fn check_full(&mut self, handler: &mut H) -> Option<Instant> {
        let full = self.shared.table.is_full() && !self.finds_evictee(handler);
        self.accepting.gate.set_full(full, self.shared.now)
    }

    /// Checks a newcomer against the limits of its client, and of the table. A client at its limit
    /// may have it at the cost of one that lingers.
    #[inline(never)]
    pub(super) fn check_limits(
        &mut self,
        handler: &mut H,
        stream: &mut B::Stream,
        peer: &Address,
    ) -> Verdict {
        let client = match self.accepting.gate.arrive(peer, self.shared.now) {
            Arrival::Allowed(client) => client,
            Arrival::TooOften => return self.refuse_client(peer, Excess::Rate),
            Arrival::AtLimit(_) if planted(Bug::HastyRefusal) => {
                return self.refuse_client(peer, Excess::Connections);
            }
            Arrival::AtLimit(client) => {
                let evicted = self.evict_lingering_of(client) == Some(true);
                if !evicted || !self.accepting.gate.connect(client) {
                    return Verdict::Defer(client);
                }
                Some(client)
            }
        };
        self.check_table(handler, stream, client)
    }

    /// Checks a newcomer, which counts as its client's connection, against the limit of the table.
    /// One without a place is sent the reply that is configured for that case.
    pub(super) fn check_table(
        &mut self,
        handler: &mut H,
        stream: &mut B::Stream,
        client: Option<ClientKey>,
    ) -> Verdict {
        if !self.shared.table.is_full() {
            return Verdict::Admit;
        }
        self.warn_of_full_table();
        if self.replaces_evicted(handler) {
            return Verdict::Admit;
        }
        self.accepting.gate.disconnect(client);
        self.shared.counters.refused_full.add(1);
        if let AtLimit::Reject(reply) = &self.config.limits.at_limit {
            // The kernel takes this much, or the peer is gone.
            let _ = self.backend.write(stream, reply);
        }
        Verdict::Close
    }

    /// Whether a newcomer takes the place of an evicted connection. Some are evicted if none of
    /// those evicted before is left.
    fn replaces_evicted(&mut self, handler: &mut H) -> bool {
        if !self.accepting.gate.has_freed() {
            let evicted = self.evict(handler);
            self.accepting.gate.note_evicted(evicted);
        }
        self.accepting.gate.take_freed()
    }

    /// Counts and logs the refusal of a newcomer that exceeds the limits of its client.
    pub(super) fn refuse_client(&mut self, peer: &Address, excess: Excess) -> Verdict {
        let Self { accepting, shared, .. } = self;
        match excess {
            Excess::Connections => shared.counters.refused_client.add(1),
            Excess::Rate => shared.counters.refused_client_rate.add(1),
        }
        if let Some(times) = accepting.refusals.times(shared.now) {
            warn!(%peer, ?excess, times, "a client is refused");
        }
        accepting.gate.refuse()
    }

    /// Whether a client may have another connection, be it at the cost of one that lingers.
    pub(super) fn standing_of(&mut self, client: ClientKey) -> Standing {
        if !self.accepting.gate.is_at_limit(client) {
            return Standing::Within;
        }
        match self.evict_lingering_of(client) {
            Some(true) => Standing::Within,
            Some(false) => Standing::Over,
            None => Standing::Unknown,
        }
    }

    /// Closes the connection of a client that has lingered longest, of those whose peers have
    /// acknowledged everything, so that the client may have another. Returns whether there was one;
    /// `None` if that is known in a later turn only.
    fn evict_lingering_of(&mut self, client: ClientKey) -> Option<bool> {
        for id in self.accepting.gate.lingering_of(client) {
            if self.shared.table.get(id).is_some_and(Record::lingers) && self.may_be_closed(id)? {
                self.evict_lingering(id);
                return Some(true);
            }
        }
        Some(false)
    }

    /// A connection has had its last output and our FIN: where clients are limited, it is the first
    /// to be evicted for another one of its client.
    #[inline]
    pub(super) fn note_lingering(&mut self, id: ConnId) {
        if self.accepting.gate.clients().is_some() {
            self.list_lingering(id);
        }
    }

    fn list_lingering(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        let listed = record.cold().is_some_and(|cold| cold.linger_number.is_some());
        if let Some(clients) = self.accepting.gate.clients_mut()
            && !listed
            && record.lingers()
            && let Some(client) = client_of(clients, record)
            && let Some(number) = clients.linger(client, id)
        {
            record.cold_mut().linger_number = Some(number);
            self.recheck_deferred();
        }
    }

    /// A connection ends: its client may have another.
    #[inline]
    pub(super) fn depart(&mut self, id: ConnId) {
        if self.accepting.gate.clients().is_some() {
            self.depart_client(id);
        }
    }

    fn depart_client(&mut self, id: ConnId) {
        let record = self.shared.table.at(id.index());
        if let Some(clients) = self.accepting.gate.clients_mut()
            && let Some(client) = client_of(clients, record)
        {
            clients.depart(client, record.cold().and_then(|cold| cold.linger_number));
            self.recheck_deferred();
        }
    }

    /// Whether a connection counts against what its client may have.
    #[cfg(feature = "sim")]
    pub(super) fn is_limited(&self, record: &Record) -> bool {
        let clients = self.accepting.gate.clients();
        clients.is_some_and(|clients| client_of(clients, record).is_some())
            && !record.flags.has(Flags::REAPED)
    }

    /// Descriptors of ours were closed, and places of the table are free. Each turn that closes
    /// connections comes here, so it costs a few instructions unless a listener or a newcomer waits.
    #[inline]
    pub(super) fn note_release(&mut self) {
        if self.accepting.gate.note_release() {
            self.note_places();
        } else {
            self.recheck_deferred();
        }
        self.resume_accepting();
    }

    /// A listener waits for a place: accepts again if one is free.
    fn note_places(&mut self) {
        let table = &self.shared.table;
        let spare = if planted(Bug::LateRoom) { table.capacity() / 64 } else { 1 };
        let table_full = table.counted() + spare > table.capacity();
        let occupancy = Occupancy { table_full, ..self.occupancy() };
        self.accepting.gate.note_places(occupancy);
        self.deferred.request_check();
        self.update_due();
    }
}
