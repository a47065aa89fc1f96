//! The wheel beside a map from key to tick, driven alike.

#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

use crate::wheel::{Key, Wheel};

// The wheel is private to the crate. It leans on nothing else there, so its file can be built into
// this program as well.
#[path = "../../src/core/wheel.rs"]
#[allow(dead_code, reason = "what only the reactor and the unit tests use")]
mod wheel;

/// Ticks in one revolution of the wheel. That number is private; another one here would only make
/// the edges harder to hit.
const REVOLUTION: u64 = 8_192;

fuzz_target!(|ops: Vec<Op>| {
    let mut beside = Beside::new();
    for op in &ops {
        beside.apply(op);
        beside.check();
    }
    beside.end();
});

#[derive(Arbitrary, Debug)]
enum Op {
    /// Makes a key due so long from now.
    Schedule(Name, Span),
    /// Makes a key due so long from now, unless it is due before.
    ScheduleBy(Name, Span),
    /// Makes a key due at a tick of the past.
    ScheduleLate(Name, Span),
    Cancel(Name),
    /// Lets time pass and takes out what is due.
    Advance(Span),
    /// Lets time pass and looks at so many entries only.
    AdvancePartly(Span, u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Name {
    Conn(u8),
    Alarm(u8),
}

impl Name {
    fn key(self) -> Key {
        match self {
            Self::Conn(index) => Key::Conn(index.into()),
            Self::Alarm(index) => Key::Alarm(index.into()),
        }
    }
}

/// A number of ticks, of the sizes that make a difference.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Span {
    Few(u8),
    /// Up to eight revolutions.
    Many(u16),
    /// About a revolution.
    Around(i8),
    Any(u64),
}

impl Span {
    fn ticks(self) -> u64 {
        match self {
            Self::Few(ticks) => ticks.into(),
            Self::Many(ticks) => ticks.into(),
            Self::Around(by) => REVOLUTION.saturating_add_signed(by.into()),
            Self::Any(ticks) => ticks,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Due {
    tick: u64,
    /// Scheduled within the window, where the wheel knows the tick exactly.
    is_near: bool,
}

struct Beside {
    wheel: Wheel,
    model: BTreeMap<Key, Due>,
    now: u64,
    /// Whether everything due has been taken out.
    is_served: bool,
}

impl Beside {
    fn new() -> Self {
        Self { wheel: Wheel::new(), model: BTreeMap::new(), now: 0, is_served: true }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Schedule(name, ahead) => {
                self.schedule(name.key(), self.now.saturating_add(ahead.ticks()));
            }
            Op::ScheduleBy(name, ahead) => {
                self.schedule_by(name.key(), self.now.saturating_add(ahead.ticks()));
            }
            Op::ScheduleLate(name, ago) => {
                self.schedule(name.key(), self.now.saturating_sub(ago.ticks()));
            }
            Op::Cancel(name) => {
                self.wheel.cancel(name.key());
                self.model.remove(&name.key());
                assert_eq!(self.wheel.tick_of(name.key()), None);
            }
            Op::Advance(by) => self.advance(by.ticks()),
            Op::AdvancePartly(by, budget) => {
                self.now = self.now.saturating_add(by.ticks());
                self.expire(budget.into());
            }
        }
    }

    fn schedule(&mut self, key: Key, tick: u64) {
        self.wheel.schedule(key, tick);
        let is_near = self.is_served && tick.saturating_sub(self.now) < REVOLUTION;
        self.model.insert(key, Due { tick, is_near });
        assert_eq!(self.wheel.tick_of(key), Some(tick));
    }

    fn schedule_by(&mut self, key: Key, tick: u64) {
        let before = self.wheel.tick_of(key).filter(|before| *before <= tick);
        self.wheel.schedule_by(key, tick);
        match before {
            Some(before) => assert_eq!(self.wheel.tick_of(key), Some(before)),
            None => {
                assert_eq!(self.wheel.tick_of(key), Some(tick));
                self.schedule(key, tick);
            }
        }
    }

    fn advance(&mut self, by: u64) {
        self.now = self.now.saturating_add(by);
        // An entry that is not due is placed behind `now`. It may be looked at once more if it was
        // met a revolution before: then the window ends at `now`.
        self.expire(2 * self.model.len() + 1);
        assert!(self.is_served, "entries are looked at over and over");
    }

    fn expire(&mut self, mut budget: usize) {
        self.is_served = false;
        while budget > 0 {
            let before = budget;
            let Some(key) = self.wheel.expire(self.now, &mut budget) else {
                self.is_served = budget > 0;
                break;
            };
            assert!(budget < before, "{key:?} cost nothing");
            let due = self.model.remove(&key).expect("only what is in comes up");
            assert!(due.tick <= self.now, "{key:?} came up at {}: {due:?}", self.now);
        }
        if self.is_served {
            let missed = self.model.iter().find(|(_, due)| due.tick <= self.now);
            assert!(missed.is_none(), "not come up at {}: {missed:?}", self.now);
        }
    }

    /// Compares when the wheel comes up next.
    fn check(&self) {
        let Some(earliest) = self.model.values().map(|due| due.tick).min() else {
            return assert_eq!(self.wheel.next_tick(), None);
        };
        let next = self.wheel.next_tick().expect("a wheel that is not empty comes up");
        assert!(next <= earliest.max(self.now), "late wake-up: {next}, not {earliest}");
        if self.is_served {
            assert!(next >= self.now, "a wake-up in the past: {next} at {}", self.now);
            if self.model.values().all(|due| due.is_near) {
                assert_eq!(next, earliest.max(self.now), "early wake-up");
            }
        }
    }

    /// What is still in keeps its tick and comes up by the end of time.
    fn end(mut self) {
        for (key, due) in &self.model {
            assert_eq!(self.wheel.tick_of(*key), Some(due.tick));
        }
        self.advance(u64::MAX);
        assert!(self.model.is_empty());
        self.check();
    }
}
