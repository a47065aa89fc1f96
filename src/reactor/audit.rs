//! What must hold between two turns, checked from the records themselves: for simulated runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Reactor;
use super::io::wants_reading;
use crate::backend::{Backend, Source, Token};
use crate::core::clients::Clients;
use crate::core::deadlines::{BOUNDING, Deadline, Set};
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::State;
use crate::core::output::{Output, allocation};
use crate::core::record::Record;
use crate::core::wheel::{Key, TICK};
use crate::handler::Handler;
use crate::id::ConnId;
use crate::state::LoopState;
use crate::time::{Instant, nanos};

/// What a reactor holds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Holdings {
    pub(crate) connections: usize,
    pub(crate) sessions: usize,
    pub(crate) streams: usize,
    /// Bytes that handlers left unread, and that the kernel did not take.
    pub(crate) input: usize,
    pub(crate) output: usize,
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// How many connections there are.
    pub(crate) fn holdings_count(&self) -> usize {
        self.shared.table.len()
    }

    /// How many connections the library's own services have.
    pub(crate) fn service_connections(&self) -> usize {
        self.services.len()
    }

    /// Whether a connection that is being dialled may wait for the answer to this look-up.
    pub(crate) fn waits_for(&self, token: Token) -> bool {
        matches!(token.source(), Source::Conn(id) if self.shared.table.get(id).is_some())
    }

    /// Whether a walk over all connections goes on, which takes some turns in a row.
    pub(crate) fn is_walking(&self) -> bool {
        self.drain.is_walking() || self.overload.is_searching() || self.services.is_walking()
    }

    pub(crate) fn holdings(&self) -> Holdings {
        let mut holdings = Holdings { connections: self.shared.table.len(), ..Holdings::default() };
        for slot in &self.slots {
            holdings.sessions += usize::from(slot.session.is_some());
            holdings.streams += usize::from(slot.stream.is_some());
            holdings.input += slot.input.len();
        }
        holdings.streams += self.deferred.len() + self.attempts.len() + self.services.len();
        for id in self.shared.table.ids() {
            holdings.output += self.shared.table.get(id).map_or(0, |record| record.queued());
        }
        holdings
    }

    /// Checks every connection, after a turn that began at `began`, and returns what is wrong with
    /// the first that is not in order. `timers` says how often the timer of a connection came.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub(crate) fn audit(
        &self,
        memory: &mut Memory,
        began: Instant,
        timers: impl Fn(ConnId) -> u64,
    ) -> Result<(), String> {
        self.audit_sums()?;
        self.shared.audit_pools()?;
        self.shared.audit_endpoints()?;
        self.audit_mailbox(memory)?;
        let mut filled = vec![false; self.slots.len()];
        let lists = self.audit_lists()?;
        // Whatever the wheel held by then has been visited.
        let caught_up = self.put_off == 0
            && !self.shared.has_due_alarms()
            && self.shared.wheel.next_tick().is_none_or(|next| next > tick_at(began));
        memory.served = caught_up.then_some(began);
        let before = std::mem::take(&mut memory.seen);
        for id in self.shared.table.ids() {
            self.audit_conn(id, &lists)
                .and_then(|()| self.audit_lateness(memory, &before, id, timers(id)))
                .and_then(|()| self.audit_queue(memory, &before, id))
                .map_err(|what| format!("{id}: {what}"))?;
            if let Some(filled) = filled.get_mut(id.index()) {
                *filled = true;
            }
        }
        let left = std::mem::take(&mut memory.left);
        for (index, (slot, filled)) in self.slots.iter().zip(filled).enumerate() {
            if filled {
                continue;
            }
            if slot.session.is_some() || slot.stream.is_some() {
                return Err(format!("place {index} is free and not empty"));
            }
            self.audit_left_entry(memory, &left, index)?;
        }
        Ok(())
    }

    /// The entry that a connection left with its place comes up, and is not placed again.
    fn audit_left_entry(
        &self,
        memory: &mut Memory,
        before: &BTreeMap<ConnId, Option<u64>>,
        index: usize,
    ) -> Result<(), String> {
        let tick = self.shared.wheel.tick_of(Key::Conn(index as u32));
        self.audit_entry(tick).map_err(|what| format!("place {index} is free: {what}"))?;
        let next = self.shared.table.id_of_place(index);
        if tick.is_some() && before.get(&next).is_some_and(|before| *before != tick) {
            return Err(format!("place {index} is free and its entry was placed again"));
        }
        memory.left.insert(next, tick);
        Ok(())
    }

    /// The wheel comes up for an entry.
    fn audit_entry(&self, tick: Option<u64>) -> Result<(), String> {
        let shared = &self.shared;
        // After more than a revolution what is long due waits in slots that stand for later ticks.
        if tick.is_some_and(|tick| shared.wheel.next_tick() > Some(tick.max(shared.tick()))) {
            return Err("the wheel does not come up for its entry".into());
        }
        Ok(())
    }

    /// A connection that is marked as queued is queued, and the other way round: nothing else would
    /// come back to it.
    fn audit_lists(&self) -> Result<Lists, String> {
        let LoopState { table, ready, dirty, reaped, .. } = &self.shared;
        let lists = Lists {
            ready: ready.queued().collect(),
            dirty: dirty.iter().copied().collect(),
            reaped: reaped.iter().copied().collect(),
        };
        for (flag, list) in lists.marks() {
            let unmarked = list.iter().find(|id| {
                table.get(**id).is_some_and(|record| record.id == **id && !record.flags.has(flag))
            });
            if let Some(id) = unmarked {
                return Err(format!("{id} is in a list and not marked so: {flag:?}"));
            }
        }
        Ok(lists)
    }

    fn audit_conn(&self, id: ConnId, lists: &Lists) -> Result<(), String> {
        let shared = &self.shared;
        let Some(record) = shared.table.get(id) else { return Ok(()) };
        let Some(slot) = self.slots.get(id.index()) else { return Ok(()) };
        for (flag, list) in lists.marks() {
            if record.flags.has(flag) && !list.contains(&id) {
                return Err(format!("marked as in a list and not in it: {:?}", record.flags));
            }
        }
        for (flag, holds) in [
            (Flags::OWED, record.owed() > 0),
            (Flags::QUEUED, record.output().is_some_and(|output| !output.is_empty())),
            (Flags::CLOSE_REQUESTED, record.requested().is_some()),
        ] {
            if record.flags.has(flag) != holds {
                return Err(format!("marked otherwise than it is: {:?}", record.flags));
            }
        }
        if shared.pending_dials.contains(&id) || record.flags.has(Flags::REAPED) {
            return Ok(());
        }
        if slot.session.is_none() {
            return Err(format!("no session in {:?}", record.state()));
        }
        let open = matches!(record.state(), State::Connected | State::Idle);
        if open && slot.stream.is_none() {
            return Err("no stream".into());
        }
        let bounds = &shared.bounds;
        if slot.input.len() > bounds.input_max {
            return Err(format!("{} bytes unread", slot.input.len()));
        }
        let low = bounds.watermarks.low();
        let lasts = record.state().is_open() && record.requested().is_none();
        if lasts && record.flags.has(Flags::CONGESTED) && record.queued() <= low {
            return Err(format!("congested with {} bytes queued", record.queued()));
        }
        // What is in a list is served in the next turn, and need not be settled before.
        let listed = record.flags.has(Flags::DIRTY.and(Flags::QUEUED_READY));
        let unread = open && wants_reading(record.flags);
        if !listed && (unread || record.has_work()) {
            return Err(format!("work is left and not queued: {:?}", record.flags));
        }
        if record.flags.has(Flags::REARM) {
            // A deadline that another connection's callback set.
            return if listed { Ok(()) } else { Err("a deadline was set and is not armed".into()) };
        }
        self.audit_relay(record).and_then(|()| self.audit_deadline(id))
    }

    /// The sides of a relay name each other, both are open, and one is held only for the other's
    /// output.
    fn audit_relay(&self, record: &Record) -> Result<(), String> {
        let Some(other) = record.relay() else {
            let marked = record.cold_flags.has(ColdFlags::RELAYED);
            return if marked { Err("relayed with none".into()) } else { Ok(()) };
        };
        let sink = self.shared.table.get(other).filter(|sink| sink.relay() == Some(record.id));
        let Some(sink) = sink else { return Err(format!("{other} is not relayed with it")) };
        let open = record.state().is_open() && sink.state().is_open();
        if !open || !record.flags.has(Flags::DIVERTED) || !record.flags.has(Flags::TUNNEL) {
            return Err(format!("relayed with {other} in {:?}", record.state()));
        }
        let listed = Flags::DIRTY.and(Flags::QUEUED_READY).and(Flags::CLOSE_REQUESTED);
        let listed = record.flags.has(listed) || sink.flags.has(listed);
        if record.flags.has(Flags::THROTTLED) && !sink.has_output() && !listed {
            return Err(format!("held for {other}, which has no output"));
        }
        Ok(())
    }

    /// The wheel comes up by the earliest deadline, and that is not long past.
    fn audit_deadline(&self, id: ConnId) -> Result<(), String> {
        let shared = &self.shared;
        let Some(record) = shared.table.get(id) else { return Ok(()) };
        let due = record.clocks.next(record.durations(&shared.profiles));
        let tick = shared.wheel.tick_of(Key::Conn(id.index() as u32));
        self.audit_entry(tick)?;
        match (due, tick) {
            (None, _) => Ok(()),
            (Some(due), None) => Err(format!("due at {due:?} and not in the wheel")),
            (Some(due), Some(tick)) => {
                let comes = Instant::from_nanos(tick.saturating_mul(nanos(TICK)));
                let latest = due.max(shared.now) + TICK;
                if comes > latest {
                    return Err(format!("due at {due:?}, and the wheel comes up at {comes:?}"));
                }
                Ok(())
            }
        }
    }

    /// A deadline that was due at the last audit has been served, if a turn since then
    /// served all that its wheel held a tick later.
    fn audit_lateness(
        &self,
        memory: &mut Memory,
        before: &BTreeMap<ConnId, Seen>,
        id: ConnId,
        timers: u64,
    ) -> Result<(), String> {
        let shared = &self.shared;
        let Some(record) = shared.table.get(id) else { return Ok(()) };
        let durations = record.durations(&shared.profiles);
        if record.flags.has(Flags::REAPED.and(Flags::REARM)) || shared.pending_dials.contains(&id) {
            return Ok(());
        }
        let mut left_out = Set::EMPTY;
        while let Some((due, deadline)) = record.clocks.first_due(durations, shared.now, left_out) {
            left_out = left_out.with(deadline, true);
            let timers = if deadline == Deadline::Timer { timers } else { 0 };
            let late = Late { deadline, due, timers, seen_at: shared.now };
            let known = before.get(&id).and_then(|seen| seen.late.iter().find(|it| it.is(&late)));
            if let (Some(known), Some(served)) = (known, memory.served)
                && tick_at(served) > tick_at(known.seen_at)
            {
                let now = shared.now;
                return Err(format!(
                    "{deadline:?} was due at {due:?} and is not served at {now:?}"
                ));
            }
            memory.seen.entry(id).or_default().late.push(known.copied().unwrap_or(late));
        }
        Ok(())
    }

    /// Where the limit was reached nothing more is taken: what is queued does not grow until some of
    /// it has left, but for the input that is moved there when a relay begins.
    fn audit_queue(
        &self,
        memory: &mut Memory,
        before: &BTreeMap<ConnId, Seen>,
        id: ConnId,
    ) -> Result<(), String> {
        let Some(record) = self.shared.table.get(id) else { return Ok(()) };
        let queued = record.queued();
        let source = record.relay().and_then(|source| self.shared.table.get(source));
        let passed = source.is_some_and(|source| !source.flags.has(Flags::CALLBACK_DUE));
        let full = Full { queued, left: record.bytes_out, passed };
        // A connection that has been relayed stays a tunnel.
        let moved = |known: &Full| !known.passed && record.flags.has(Flags::TUNNEL);
        if queued < self.shared.bounds.output_max {
            return Ok(());
        }
        if let Some(known) = before.get(&id).and_then(|seen| seen.full)
            && known.left == full.left
            && known.queued < queued
            && !moved(&known)
        {
            return Err(format!("{queued} bytes are queued, after {} at the limit", known.queued));
        }
        memory.seen.entry(id).or_default().full = Some(full);
        Ok(())
    }

    /// The time as the next turn will see it at its beginning.
    pub(crate) fn clock(&mut self) -> Instant {
        self.refresh_now();
        self.shared.now
    }

    /// Whether the next turn would not wait.
    pub(crate) fn will_not_wait(&self) -> bool {
        self.timeout() == Some(Duration::ZERO)
    }

    /// How much was done so far that makes no call: closures and entries of the wheel taken,
    /// deadlines and alarms served, services asked.
    pub(crate) fn done_without_calls(&self) -> u64 {
        let (own, others) = self.mailbox.waiting();
        let taken = self.mailbox.posted() - (own + others + self.tasks.len()) as u64;
        let served = self.shared.counters.fired_total() + self.shared.alarms_gone();
        taken + self.entries_taken + served + self.services.asked()
    }

    /// Where as many closures wait as may, no more are taken.
    fn audit_mailbox(&self, memory: &mut Memory) -> Result<(), String> {
        let (own, others) = self.mailbox.waiting();
        // Before the first turn there is no limit for others.
        let before = memory.tasks.replace((own, others)).unwrap_or((0, others));
        let most = self.config.limits.mailbox_max;
        for (which, count, before) in [("own", own, before.0), ("others'", others, before.1)] {
            if count > most && count > before {
                return Err(format!("{count} of its {which} closures wait, and {most} may"));
            }
        }
        Ok(())
    }

    /// Whether closures were posted that no turn has taken.
    pub(crate) fn has_tasks(&self) -> bool {
        self.mailbox.has_tasks() || !self.tasks.is_empty()
    }

    /// Whether a connection is open with nothing left to do for it. What is read from a broken side of
    /// a relay may have to wait for the other.
    pub(crate) fn is_at_peace(&self, id: ConnId) -> bool {
        self.shared.table.get(id).is_some_and(|record| {
            matches!(record.state(), State::Connected | State::Idle)
                && !record.flags.has(Flags::DIRTY.and(Flags::QUEUED_READY).and(Flags::ACTION_DUE))
                && !(record.cold_flags.has(ColdFlags::BROKEN) && record.reads_before_error())
        })
    }

    /// Checks the sums over all connections, and their bounds, against the connections themselves.
    pub(super) fn audit_sums(&self) -> Result<(), String> {
        let shared = &self.shared;
        let records = || shared.table.ids().filter_map(|id| shared.table.get(id));
        for record in records() {
            let input = self.slots.get(record.id.index()).map_or(0, |slot| slot.input.capacity());
            let held = record.output_held() + allocation(input);
            if held != record.buffered as usize {
                let (id, known) = (record.id, record.buffered);
                return Err(format!("{id} holds {held} bytes, and {known} are accounted for"));
            }
        }
        let owned: u64 = records().map(|record| u64::from(record.buffered)).sum();
        let pieces: BTreeMap<_, _> =
            records().filter_map(Record::output).flat_map(Output::shares).collect();
        let held = owned + pieces.values().sum::<u64>();
        let known = (shared.buffered(), shared.counters.buffered.get());
        if (held, held) != known {
            return Err(format!("{held} bytes are held, and {known:?} are accounted for"));
        }
        let sent = shared.dirty.is_empty();
        let most = if sent { shared.bounds.buffered_max } else { shared.bounds.buffered_all };
        if held > most {
            return Err(format!("{held} bytes are held of {most}"));
        }
        if shared.table.counted() > shared.table.capacity() {
            return Err(format!("{} connections are too many", shared.table.counted()));
        }
        let serves = |record: &&Record| record.flags.has(Flags::INBOUND) && !record.is_exempt();
        let inbound = records().filter(serves).count();
        if inbound != shared.table.inbound() {
            return Err(format!("{inbound} are inbound, not {}", shared.table.inbound()));
        }
        let limited = records().filter(|record| self.is_limited(record)).count();
        let known = self.accepting.gate.clients().map(Clients::connections);
        if known.is_some_and(|known| known != limited) {
            return Err(format!("clients have {limited} connections, not {known:?}"));
        }
        let lingering = records()
            .filter(|record| record.cold().is_some_and(|cold| cold.linger_number.is_some()))
            .filter(|record| !record.flags.has(Flags::REAPED))
            .count();
        if self.accepting.gate.clients().is_some_and(|known| known.lingering_count() != lingering) {
            return Err(format!("{lingering} connections of limited clients linger"));
        }
        for state in [State::Connecting, State::Idle, State::Closing] {
            let counted = records().filter(|record| record.counted == state).count() as u64;
            if counted != shared.counters.states.of(state) {
                return Err(format!("{counted} are counted as {state:?}"));
            }
        }
        Ok(())
    }

    /// Whether the output of an open connection has drained, and no callback is going to follow.
    pub(crate) fn has_drained_unheard(&self, id: ConnId) -> bool {
        self.shared.table.get(id).is_some_and(|record| {
            let open = matches!(record.state(), State::Connected | State::Idle);
            // A connection that is relayed or idle in its pool has no such callback, and neither has one
            // that was relayed and only has its last output to send.
            let ends = Flags::FINISHED.and(Flags::CLOSE_REQUESTED);
            let diverted = record.flags.has(Flags::DIVERTED)
                || (record.flags.has(Flags::TUNNEL) && record.flags.has(ends));
            open && !diverted && !record.flags.has(Flags::CONGESTED.and(Flags::DRAINED))
        })
    }

    /// Whether an open connection that is read, and waits for no more of it, has input left, and no
    /// callback is going to follow.
    pub(crate) fn has_input_forgotten(&self, id: ConnId) -> bool {
        self.shared.table.get(id).is_some_and(|record| {
            let open = matches!(record.state(), State::Connected | State::Idle);
            let held = Flags::CALLBACK_DUE.and(Flags::DIVERTED).and(Flags::INPUT_AWAITED);
            open && record.requested().is_none()
                && !record.is_reading_stopped()
                && !record.flags.has(held)
                && !self.slots[id.index()].input.is_empty()
        })
    }

    /// Whether a connection waits for a length of input.
    pub(crate) fn awaits_input(&self, id: ConnId) -> bool {
        self.shared.table.get(id).is_some_and(|record| record.flags.has(Flags::INPUT_AWAITED))
    }

    /// What is known of the first connection, to see why it is still there.
    pub(crate) fn describe_first(&self) -> String {
        let shared = &self.shared;
        let Some(record) = shared.table.ids().next().and_then(|id| shared.table.get(id)) else {
            return "there is none".into();
        };
        format!(
            "{} is {:?}, {:?}, due at {:?}, in the wheel at tick {:?} of {}",
            record.id,
            record.state(),
            record.flags,
            record.clocks.next(record.durations(&shared.profiles)),
            shared.wheel.tick_of(Key::Conn(record.id.index() as u32)),
            shared.tick(),
        )
    }

    /// The first connection that no deadline bounds, though its timeouts leave no state without
    /// one, as the defaults do.
    pub(crate) fn unbounded(&self) -> Option<ConnId> {
        let shared = &self.shared;
        shared.table.ids().find(|id| {
            shared.table.get(*id).is_some_and(|record| {
                let durations = record.durations(&shared.profiles);
                !shared.pending_dials.contains(id)
                    && !record.flags.has(Flags::REAPED.and(Flags::DIRTY).and(Flags::QUEUED_READY))
                    && BOUNDING.iter().all(|deadline| durations.of(*deadline) < u64::MAX)
                    && record.clocks.next(durations).is_none()
            })
        })
    }
}

/// What an audit of a reactor remembers from one time to the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Closures that waited.
    tasks: Option<(usize, usize)>,
    seen: BTreeMap<ConnId, Seen>,
    /// When the turn began, if it served everything that was due by then.
    served: Option<Instant>,
    /// When the entries of free places come up that have one, each under the id of the next
    /// connection there.
    left: BTreeMap<ConnId, Option<u64>>,
}

/// What is worth remembering of one connection.
#[derive(Debug, Default)]
struct Seen {
    late: Vec<Late>,
    full: Option<Full>,
}

/// A deadline that was due and not served.
#[derive(Clone, Copy, Debug)]
struct Late {
    deadline: Deadline,
    due: Instant,
    /// How often the timer came before: it may be set to the same time again.
    timers: u64,
    seen_at: Instant,
}

impl Late {
    fn is(&self, other: &Self) -> bool {
        (self.deadline, self.due, self.timers) == (other.deadline, other.due, other.timers)
    }
}

/// Output at its limit, and how much had left before.
#[derive(Clone, Copy, Debug)]
struct Full {
    queued: usize,
    left: u64,
    /// It is relayed, and what was left of the other side's input has been moved.
    passed: bool,
}

/// The lists that a record is marked to be in.
struct Lists {
    ready: BTreeSet<ConnId>,
    dirty: BTreeSet<ConnId>,
    reaped: BTreeSet<ConnId>,
}

impl Lists {
    const fn marks(&self) -> [(Flags, &BTreeSet<ConnId>); 3] {
        [
            (Flags::QUEUED_READY, &self.ready),
            (Flags::DIRTY, &self.dirty),
            (Flags::REAPED, &self.reaped),
        ]
    }
}

fn tick_at(at: Instant) -> u64 {
    at.as_nanos() / nanos(TICK)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use bytes::BytesMut;

    use super::*;
    use crate::address::Address;
    use crate::config::Config;
    use crate::conn::Conn;
    use crate::core::lifecycle::Transition;
    use crate::core::record::NewConn;
    use crate::core::table::{PLACES_PER_STEP, Table};
    use crate::id::{ListenerId, Origin};
    use crate::sim::{Host, Sim};

    pub(crate) struct Echo;

    impl Handler for Echo {
        type Session = ();

        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }

        fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
            conn.write(input);
            input.clear();
        }
    }

    /// A table of so many places is walked in thirteen steps.
    pub(crate) const MANY: usize = 50_000;

    /// The longest that a turn waits.
    const PULSE: Duration = Duration::from_millis(1);

    pub(crate) type Tested = Reactor<Echo, Host>;

    /// A reactor with so many idle connections, and places for no more. They have no sockets, which
    /// would cost a test more than the walks that it is about.
    pub(crate) fn crowd(sim: &mut Sim, config: Config, count: usize) -> (Tested, Vec<ConnId>) {
        let mut reactor = Tested::with_backend(config, sim.host("10.0.0.1")).unwrap();
        reactor.shared.table = Table::new(count);
        reactor.listen("10.0.0.1:7").unwrap();
        let ids = (0..count).map(|at| reactor.come(Instant::from_nanos(at as u64 + 1))).collect();
        (reactor, ids)
    }

    impl Tested {
        /// An inbound connection that is idle since then.
        pub(crate) fn come(&mut self, since: Instant) -> ConnId {
            let new_conn = NewConn {
                origin: Origin::Accepted(ListenerId(0)),
                peer: Address::Unnamed,
                owner: None,
                exempt: false,
                room_checked: true,
                now: since,
            };
            let record = self.shared.table.insert(new_conn).unwrap();
            record.apply(Transition::Establish);
            record.apply(Transition::Rest);
            record.flags.insert(Flags::RECEIVED);
            record.count_state(&self.shared.counters.states);
            record.clocks.update(record.deadline_inputs(), since);
            let id = record.id;
            self.make_slot(id).session = Some(());
            id
        }

        /// Makes a turn, and checks that no walk in it visited more places than one step may. There
        /// are two that may both be under way.
        pub(crate) fn turn_in_steps(&mut self, sim: &mut Sim) {
            sim.pass(PULSE);
            // A turn takes some time.
            sim.stall()(Duration::from_micros(10));
            let before = self.shared.table.visited.get();
            self.turn(&mut Echo, Some(PULSE)).unwrap();
            let visited = self.shared.table.visited.get() - before;
            assert!(visited <= 2 * PLACES_PER_STEP, "{visited} places in one turn");
        }
    }
}
