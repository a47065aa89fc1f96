//! Does one thing that a loop does all the time, so many times, and nothing else: what an idle turn and
//! the operations of the wheel cost, in `benches/budgets`.
//!
//! ```text
//! peer-single turn 10000
//! ```

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::{Config, Conn, Handler, Reactor};

use crate::wheel::{Key, Wheel};

// The wheel is private to the crate. It depends on nothing else there, so its file can be built into
// this program as well.
#[path = "../../src/core/wheel.rs"]
#[allow(dead_code, unused_imports, reason = "what only the reactor and the unit tests use")]
mod wheel;

/// Keys that are in the wheel beside the one at hand, over the next minute in ticks of 10 ms.
const KEYS: u32 = 10_000;
const SPREAD: u64 = 6_000;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [what, times] = &arguments[..] else { return usage() };
    let Ok(times) = times.parse() else { return usage() };
    match &what[..] {
        "turn" => turn(times),
        "move" => in_wheel(times, Wheel::schedule),
        "take-out" => in_wheel(times, |wheel, key, tick| {
            wheel.cancel(key);
            wheel.schedule(key, tick);
        }),
        "expire" => in_wheel(times, |wheel, _, later| {
            let tick = wheel.next_tick().unwrap_or_default();
            if let Some(key) = wheel.expire(tick, &mut 1) {
                wheel.schedule(key, tick + 1 + later);
            }
        }),
        _ => return usage(),
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: peer-single turn|move|take-out|expire TIMES");
    ExitCode::from(2)
}

struct Silent;

impl Handler for Silent {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {}
}

/// Turns in which there is nothing to do.
fn turn(times: u64) {
    let mut reactor = Reactor::new(Config::default()).expect("a loop");
    reactor.listen("127.0.0.1:0").expect("a free port");
    for _ in 0..times {
        reactor.turn(&mut Silent, Some(Duration::ZERO)).expect("a wait");
    }
}

/// Calls `act` with a wheel of many keys, the key whose turn it is, and a tick for it.
#[inline(always)]
fn in_wheel(times: u64, act: impl Fn(&mut Wheel, Key, u64)) {
    let mut wheel = Wheel::new();
    for key in 0..KEYS {
        wheel.schedule(Key::Conn(key), tick(key.into()));
    }
    for time in 0..times {
        let key = Key::Conn((time % u64::from(KEYS)) as u32);
        act(&mut wheel, black_box(key), tick(time));
    }
    black_box(wheel.next_tick());
}

/// Ticks of the next minute in an order without a pattern.
const fn tick(time: u64) -> u64 {
    time.wrapping_mul(0x9e37_79b9_7f4a_7c15) % SPREAD
}
