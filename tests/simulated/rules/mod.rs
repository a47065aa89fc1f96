//! Rules that need a simulated world: virtual time, an injected fault, or each of the three
//! personalities of readiness. There is a file for each topic; what can be seen from outside on every
//! transport is in the file of that name in `tests/behaviour/`.

/// Makes each of these rules a test with each of the three personalities. The rules are compiled once.
macro_rules! with_each_personality {
    ($($rule:ident,)*) => {
        with_each_personality!(epoll: Epoll, $($rule,)*);
        with_each_personality!(kqueue: Kqueue, $($rule,)*);
        with_each_personality!(weakest: Weakest, $($rule,)*);
    };
    ($name:ident: $personality:ident, $($rule:ident,)*) => {
        mod $name {
            $(
                #[test]
                fn $rule() {
                    use wheelhouse::sim::Personality;

                    super::PERSONALITY.set(Some(Personality::$personality));
                    super::$rule();
                }
            )*
        }
    };
}

mod admission;
mod asking;
mod at_once;
mod backpressure;
mod closing;
mod dialling;
mod groups;
mod health;
mod leased;
mod listeners;
mod overload;
mod panics;
mod pools;
mod relays;
mod requests;
mod settings;
mod shutdown;
mod start;
mod threads;
mod timeouts;
mod writing;

use std::cell::Cell;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use wheelhouse::config::{AtLimit, Rate, Refusal, Watermarks};
use wheelhouse::sim::{Call, End, Faults, Link, Peer, Personality, Server, Sim, errno};
use wheelhouse::{
    Address, AlarmId, CloseReason, Closed, Config, Conn, ConnId, Context, Handler, ListenConfig,
    ListenerId, Origin, Reactor, State, Target, Timeout,
};

use crate::scenarios::{Echo, SERVER, millis, reasons, secs, serve_echo, with_places};

thread_local! {
    /// The personality under test.
    static PERSONALITY: Cell<Option<Personality>> = const { Cell::new(None) };
}

/// A world with the personality under test.
fn world(seed: u64) -> Sim {
    let mut sim = Sim::new(seed);
    sim.set_personality(PERSONALITY.get().expect("a rule runs with a personality"));
    sim
}

/// Connects `count` clients that have been served and are idle.
fn idle(sim: &mut Sim, count: usize) -> Vec<Peer> {
    (0..count)
        .map(|_| {
            let peer = sim.connect_from("10.9.0.1:0", SERVER);
            peer.send(b"hi");
            sim.settle();
            peer.expect(b"hi");
            sim.advance(millis(5));
            peer
        })
        .collect()
}

fn evicted<H: Handler>(server: &Server<H>) -> u64 {
    server.stats().closed(CloseReason::Evicted)
}

/// Replies after a while, and announces no end.
struct Slow(Duration);

impl Handler for Slow {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        input.clear();
        conn.begin_request();
        conn.set_timer(conn.now() + self.0);
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, _: &mut ()) {
        conn.write(b"done");
        conn.end_request();
    }
}

/// Ends connections that are idle for a second.
fn hasty() -> Config {
    let mut config = Config::default();
    config.timeouts.idle = Some(secs(1));
    config
}

/// Echoes; an `s` keeps the loop busy for a millisecond, and an `e` ends the connection.
struct Busy(Box<dyn Fn(Duration)>);

impl Handler for Busy {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(input);
        if input.contains(&b's') {
            (self.0)(millis(1));
        }
        if input.contains(&b'e') {
            conn.close();
        }
        input.clear();
    }
}

/// Answers and closes.
struct Curt;

impl Handler for Curt {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(b"bye");
        input.clear();
        conn.close();
    }
}
