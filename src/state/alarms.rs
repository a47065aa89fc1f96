//! The wheel as connections and the loop use it: deadlines that come up, and alarms.

use std::cmp::Reverse;
use std::time::Duration;

use super::LoopState;
use crate::core::wheel::{Key, TICK};
use crate::id::{AlarmId, ConnId, EndpointId, PoolId};
use crate::planted::{Bug, planted};
use crate::time::Instant;

const TICK_NANOS: u64 = TICK.as_nanos() as u64;

/// A timer of the whole loop.
#[derive(Debug)]
pub(super) struct Alarm {
    serial: u64,
    at: Instant,
    pub(crate) purpose: Purpose,
}

/// What an alarm is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    Application,
    /// Accepting is tried again after the system ran out of something.
    ExpirePause,
    /// New connections may be accepted by now.
    RecheckLimits,
    /// The time of a connection is over that was deferred as its client is at its limit.
    CheckDeferred,
    /// A check of the pressure is due.
    Relieve,
    /// A check of the connections that a shutdown waits for is due.
    CheckShutdown,
    /// A shutdown has lasted long enough.
    HardStop,
    /// The next attempt of a dial is to begin, or one that found the backlog full to be repeated.
    AdvanceDial(ConnId),
    /// A pool has something to do.
    ServePool(PoolId),
    /// An endpoint has something to do.
    ServeEndpoint(EndpointId),
    /// The time of a service's connection may be over.
    ServeServices,
}

impl LoopState {
    /// Lets the wheel come up for a connection by `at`.
    #[inline(always)]
    pub(crate) fn arm(&mut self, id: ConnId, at: Instant) {
        let key = Key::Conn(id.index() as u32);
        let entry = self.wheel.tick_of(key);
        let comes_by_then =
            entry.is_some_and(|tick| tick.saturating_mul(TICK_NANOS) <= at.as_nanos());
        if !comes_by_then && at < Instant::FAR_FUTURE {
            self.arm_earlier(id, at);
        }
    }

    /// [`LoopState::arm`] where nothing comes up by then. Mostly something does.
    #[inline(never)]
    fn arm_earlier(&mut self, id: ConnId, at: Instant) {
        // One that is due already must not be put off: a connection that is touched in every turn
        // would never be late.
        let tick = self.tick_of(at);
        self.wheel.schedule_by(Key::Conn(id.index() as u32), tick);
    }

    /// The first tick that is not before `at`, and not before the next one: what is armed while
    /// deadlines are served waits for another turn.
    #[inline]
    pub(crate) fn tick_of(&self, at: Instant) -> u64 {
        // The tick after the last instant at which it must not come up.
        at.as_nanos().saturating_sub(1).max(self.now.as_nanos()) / TICK_NANOS + 1
    }

    /// The latest tick that has come.
    #[inline]
    pub(crate) fn tick(&self) -> u64 {
        self.now.as_nanos() / TICK_NANOS
    }

    /// How long until the wheel comes up.
    #[inline]
    pub(crate) fn until_next_tick(&self) -> Option<Duration> {
        let tick = self.wheel.next_tick()?;
        let at = Instant::from_nanos(tick.saturating_mul(TICK_NANOS));
        Some(at.duration_since(self.now))
    }

    /// Lets an alarm come by `due`: the one that was set `before`, if that is no later. Returns the one
    /// that comes, and when.
    pub(crate) fn set_alarm_by(
        &mut self,
        before: Option<(AlarmId, Instant)>,
        due: Instant,
        purpose: Purpose,
    ) -> Option<(AlarmId, Instant)> {
        if before.is_some_and(|(_, at)| at <= due) || due == Instant::FAR_FUTURE {
            return before;
        }
        if let Some((alarm, _)) = before {
            self.cancel_alarm(alarm);
        }
        Some((self.set_alarm(due, purpose), due))
    }

    pub(crate) fn set_alarm(&mut self, at: Instant, purpose: Purpose) -> AlarmId {
        self.alarms_set += 1;
        let serial = self.alarms_set;
        let index = self.alarms.insert(Alarm { serial, at, purpose }) as u32;
        if at < Instant::FAR_FUTURE {
            self.wheel.schedule(Key::Alarm(index), self.tick_of(at));
        }
        AlarmId { index, serial }
    }

    pub(crate) fn cancel_alarm(&mut self, alarm: AlarmId) {
        let index = alarm.index as usize;
        if self.alarms.get(index).is_some_and(|set| set.serial == alarm.serial) {
            self.alarms.remove(index);
            self.wheel.cancel(Key::Alarm(alarm.index));
        }
    }

    /// Alarms that came or were cancelled.
    #[cfg(feature = "sim")]
    pub(crate) fn alarms_gone(&self) -> u64 {
        self.alarms_set - self.alarms.len() as u64
    }

    /// The wheel came up for an alarm. It waits until all that are due are known, as the earliest
    /// comes first.
    pub(crate) fn note_due_alarm(&mut self, index: u32) {
        if let Some(alarm) = self.alarms.get(index as usize) {
            debug_assert!(alarm.at <= self.now, "an alarm comes up early");
            let serial = alarm.serial;
            let order = if planted(Bug::AlarmsUnordered) { Instant::EPOCH } else { alarm.at };
            self.due_alarms.push(Reverse((order, serial, index)));
        }
    }

    /// Alarms that the wheel came up for and that have not been rung.
    #[inline]
    pub(crate) fn due_alarms(&self) -> usize {
        self.due_alarms.len()
    }

    #[inline]
    pub(crate) fn has_due_alarms(&self) -> bool {
        !self.due_alarms.is_empty()
    }

    /// Takes out the earliest of the alarms that are due: of several for one time the one that was
    /// set first.
    ///
    /// Only those are taken before which no other can be due: the wheel holds nothing more of their
    /// tick.
    pub(crate) fn take_due_alarm(&mut self) -> Option<(AlarmId, Purpose)> {
        let next = self.wheel.next_tick().unwrap_or(u64::MAX);
        loop {
            let Reverse((at, _, _)) = self.due_alarms.peek()?;
            if at.as_nanos().div_ceil(TICK_NANOS) >= next {
                return None;
            }
            let Reverse((_, serial, index)) = self.due_alarms.pop()?;
            // One that was cancelled meanwhile is gone, and its place may be another's.
            if self.alarms.get(index as usize).is_some_and(|alarm| alarm.serial == serial) {
                let alarm = self.alarms.remove(index as usize);
                return Some((AlarmId { index, serial }, alarm.purpose));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_tick_is_neither_early_nor_over() {
        let mut shared = LoopState::new(&Config::default(), 1, Instant::EPOCH);
        for now in [0, 1, TICK_NANOS - 1, TICK_NANOS, TICK_NANOS + 1] {
            shared.now = Instant::from_nanos(now);
            for at in (0..4 * TICK_NANOS).step_by(TICK_NANOS as usize / 2).chain([u64::MAX - 1]) {
                for at in [at.saturating_sub(1), at, at + 1] {
                    let tick = shared.tick_of(Instant::from_nanos(at));
                    assert_eq!(tick, at.div_ceil(TICK_NANOS).max(shared.tick() + 1), "{at} {now}");
                }
            }
        }
    }
}
