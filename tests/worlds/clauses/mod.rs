//! Clauses of what a connection manager promises, each by itself.

mod admission;
mod endings;
mod others;
mod overload;
mod panics;

use std::time::Duration;

use bytes::{Buf, BytesMut};
use wheelhouse::sim::{Call, End, Peer, Server, Sim, errno};
use wheelhouse::{
    Address, AtLimit, CloseReason, Closed, Config, Conn, ConnId, Context, Handler, ListenConfig,
    ListenerId, Refusal, State,
};

use crate::echo::Echo;
use crate::worlds::world;

const SERVER: &str = "10.0.0.1:7";

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
