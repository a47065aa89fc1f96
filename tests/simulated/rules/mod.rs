//! The rules, by topic.

mod admission;
mod backpressure;
mod closing;
mod descriptors;
mod last_request;
mod limits;
mod overload;
mod panics;
mod settings;
mod start;

use std::time::Duration;

use bytes::{Buf, BytesMut};
use wheelhouse::sim::{Call, End, Link, Peer, Server, Sim, errno};
use wheelhouse::{
    Address, AtLimit, CloseReason, Closed, Config, Conn, ConnId, Context, Handler, ListenConfig,
    ListenerId, Refusal, State,
};

use super::PERSONALITY;
use crate::scenarios::Echo;

const SERVER: &str = "10.0.0.1:7";

/// A world of the kind that is the program's.
fn world(seed: u64) -> Sim {
    let mut sim = Sim::new(seed);
    sim.set_personality(PERSONALITY);
    sim
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn crowded(places: usize) -> Config {
    let mut config = Config::default();
    config.limits.max_connections = Some(places);
    config
}

/// So many clients that have been served and are idle.
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
