//! Scenarios under many seeds: whatever goes wrong, what must hold holds, and everything ends.
//!
//! `SIM_SEEDS=2000 SIM_FIRST=1 cargo test --release --test swarm` runs so many seeds of each
//! scenario, from that one on.

mod scenarios;

#[path = "scenarios/arbitrary.rs"]
mod arbitrary;

#[path = "scenarios/endpoints.rs"]
#[allow(dead_code, reason = "what only the rules look at")]
mod endpoints;

#[path = "scenarios/lengths.rs"]
mod lengths;

#[path = "scenarios/peers.rs"]
mod peers;

#[path = "scenarios/pooled.rs"]
#[allow(dead_code, reason = "what only the rules look at")]
mod pooled;

#[path = "scenarios/relayed.rs"]
#[allow(dead_code, reason = "what only the rules look at")]
mod relayed;

#[path = "scenarios/servers.rs"]
mod servers;

use std::env;

use wheelhouse::sim::{self, Sim, Summary};

/// The first seed unless another is asked for. In the world of seed 1 all bytes come one by one, which
/// takes a minute in a debug build.
const FIRST: u64 = 2;

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs a scenario under as many seeds as are asked for.
fn run(name: &str, scenario: fn(&mut Sim)) {
    let (first, count) = (number("SIM_FIRST", FIRST), number("SIM_SEEDS", 6));
    let summary = sim::swarm(first, count, scenario);
    print(name, &summary);
}

#[expect(clippy::print_stdout, reason = "figures for the reader of the output")]
fn print(name: &str, summary: &Summary) {
    println!("swarm {name}: {summary}");
}

#[test]
fn swarm_arbitrary() {
    run("arbitrary", arbitrary::arbitrary);
}

#[test]
fn swarm_echo() {
    run("echo", servers::echo);
}

#[test]
fn swarm_lengths() {
    run("lengths", lengths::lengths);
}

#[test]
fn swarm_pooled() {
    run("pooled", pooled::pooled);
}

#[test]
fn swarm_endpoints() {
    run("endpoints", endpoints::endpoints);
}

#[test]
fn swarm_relayed() {
    run("relayed", relayed::relayed);
}

#[test]
fn swarm_everything() {
    run("everything", servers::everything);
}

/// Seeds under which a reactor once did wrong.
#[test]
fn seeds_that_failed_once() {
    // The deadline of a ping or of a request made the wheel come up too late.
    // A connection was shed before it was dialled.
    // The last flush of a shared piece ended its connection, and the gauge of buffers kept it.
    for seed in [0xa477, 0xa482, 0x1054_58b7_39f8, 0x1055_a304_9126] {
        sim::swarm(seed, 1, servers::crowd);
    }
}

#[test]
fn swarm_crowd() {
    run("crowd", servers::crowd);
}

#[test]
fn swarm_kept() {
    run("kept", servers::kept);
}

#[test]
fn swarm_circle() {
    run("circle", servers::circle);
}

#[test]
fn swarm_dials() {
    run("dials", servers::dials);
}

#[test]
fn swarm_failing() {
    run("failing", servers::failing);
}

#[test]
fn swarm_flaky_log() {
    run("flaky_log", servers::flaky_log);
}

#[test]
fn swarm_posts() {
    run("posts", servers::posts);
}

#[test]
fn swarm_shutdown() {
    run("shutdown", servers::shutdown);
}

#[test]
fn swarm_slow_readers() {
    run("slow_readers", servers::slow_readers);
}
