//! A simulated world with a Redis and a pooler before it.

use std::time::Duration;

use wheelhouse::Config;
use wheelhouse::sim::{Peer, Server, Sim};

use super::fake::Fake;
use super::requests::resp;
use crate::pooler::{Pooler, Settings, defaults};
pub(crate) use crate::shorthands::{millis, secs};

pub(crate) const UPSTREAM: &str = "10.0.0.2:6379";

pub(crate) struct World {
    pub(crate) sim: Sim,
    pub(crate) redis: Server<Fake>,
    pub(crate) pooler: Server<Pooler>,
}

pub(crate) fn settings(size: usize) -> Settings {
    Settings {
        upstream: UPSTREAM.parse().expect("an address"),
        size,
        acquire: secs(5),
        check: secs(30),
        timeouts: defaults().timeouts,
    }
}

pub(crate) fn pooler(sim: &mut Sim, size: usize) -> Server<Pooler> {
    sim.serve("10.0.0.1:7000", defaults(), Pooler::new(settings(size)))
}

pub(crate) fn world(size: usize) -> World {
    let mut sim = Sim::new(1);
    let mut config = Config::default();
    config.limits.output_max = 64 << 20;
    config.limits.input_max = 2 << 20;
    // It closes no client for its silence.
    config.timeouts.idle = None;
    let redis = sim.serve(UPSTREAM, config, Fake::default());
    let pooler = pooler(&mut sim, size);
    World { sim, redis, pooler }
}

/// Commands, one a line.
pub(crate) fn commands(text: &str) -> Vec<u8> {
    let lines = text.lines().map(|line| {
        let words: Vec<_> = line.split(' ').map(str::as_bytes).collect();
        resp(&words)
    });
    lines.collect::<Vec<_>>().concat()
}

impl World {
    pub(crate) fn client(&mut self) -> Peer {
        self.sim.connect(&self.pooler)
    }

    /// What a client reads after it has sent that.
    pub(crate) fn ask(&mut self, client: &Peer, sent: &[u8]) -> String {
        client.send(sent);
        self.settle(client)
    }

    pub(crate) fn settle(&mut self, client: &Peer) -> String {
        self.sim.settle();
        text(&client.take())
    }

    /// A client asks, one command a line, and reads these lines.
    #[track_caller]
    pub(crate) fn expect(&mut self, client: &Peer, asked: &str, replies: &str) {
        assert_eq!(self.ask(client, &commands(asked)), replies, "{asked:?}");
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.redis.with(|fake, _| std::mem::take(&mut fake.log))
    }

    /// The connections to Redis now.
    pub(crate) fn upstreams(&self) -> usize {
        self.redis.connections()
    }

    /// All ends, and nothing is left.
    #[track_caller]
    pub(crate) fn end(mut self) {
        assert!(self.pooler.failure().is_none());
        self.pooler.assert_blameless();
        self.pooler.shutdown();
        self.sim.advance(secs(60));
        assert!(self.pooler.is_finished());
    }

    pub(crate) fn advance(&mut self, time: Duration) {
        self.sim.advance(time);
    }
}

/// Replies as text: lines end with `|`.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace("\r\n", "|")
}
