//! What must hold between two turns, checked from the records themselves: for simulated runs.

use super::Reactor;
use super::io::wants_reading;
use crate::backend::Backend;
use crate::context::TICK;
use crate::core::lifecycle::State;
use crate::core::table::{ConnId, Flags};
use crate::core::wheel::Key;
use crate::handler::Handler;
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

    pub(crate) fn holdings(&self) -> Holdings {
        let mut holdings = Holdings { connections: self.shared.table.len(), ..Holdings::default() };
        for slot in &self.slots {
            holdings.sessions += usize::from(slot.session.is_some());
            holdings.streams += usize::from(slot.stream.is_some());
            holdings.input += slot.input.len();
        }
        for id in self.shared.table.ids() {
            holdings.output += self.shared.table.get(id).map_or(0, |record| record.output.len());
        }
        holdings
    }

    /// Checks every connection, and returns what is wrong with the first that is not in order.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub(crate) fn audit(&self) -> Result<(), String> {
        self.audit_sums()?;
        let mut filled = vec![false; self.slots.len()];
        for id in self.shared.table.ids() {
            self.audit_conn(id).map_err(|what| format!("{id}: {what}"))?;
            if let Some(filled) = filled.get_mut(id.index()) {
                *filled = true;
            }
        }
        for (index, (slot, filled)) in self.slots.iter().zip(filled).enumerate() {
            if !filled && (slot.session.is_some() || slot.stream.is_some()) {
                return Err(format!("place {index} is free and not empty"));
            }
        }
        Ok(())
    }

    fn audit_conn(&self, id: ConnId) -> Result<(), String> {
        let shared = &self.shared;
        let Some(record) = shared.table.get(id) else { return Ok(()) };
        let Some(slot) = self.slots.get(id.index()) else { return Ok(()) };
        if shared.births.contains(&id) || record.flags.has(Flags::REAPED) {
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
        // Somebody else's settling is due in the next turn.
        if record.flags.has(Flags::DIRTY.and(Flags::QUEUED_READY)) {
            return Ok(());
        }
        let unread = open && wants_reading(record.flags);
        if unread || record.has_work() {
            return Err(format!("work is left and not queued: {:?}", record.flags));
        }
        self.audit_deadline(id)
    }

    /// The wheel comes up by the earliest deadline, and that is not long past.
    fn audit_deadline(&self, id: ConnId) -> Result<(), String> {
        let shared = &self.shared;
        let Some(record) = shared.table.get(id) else { return Ok(()) };
        let due = record.clocks.next(record.periods(&shared.profiles));
        let tick = shared.wheel.tick_of(Key::Conn(id.index() as u32));
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

    /// What is known of the first connection, for whoever wonders why it is still there.
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
            record.clocks.next(record.periods(&shared.profiles)),
            shared.wheel.tick_of(Key::Conn(record.id.index() as u32)),
            shared.tick(),
        )
    }

    /// The first connection that no deadline bounds.
    pub(crate) fn unbounded(&self) -> Option<ConnId> {
        let shared = &self.shared;
        shared.table.ids().find(|id| {
            shared.table.get(*id).is_some_and(|record| {
                !shared.births.contains(id)
                    && !record.flags.has(Flags::REAPED.and(Flags::DIRTY).and(Flags::QUEUED_READY))
                    && record.clocks.next(record.periods(&shared.profiles)).is_none()
            })
        })
    }
}
