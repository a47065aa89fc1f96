//! Scenarios under many seeds: whatever goes wrong, what must hold holds, and everything ends.
//!
//! `SIM_SEEDS=2000 SIM_FIRST=1 cargo test --release --test swarm` runs so many seeds of each
//! scenario, from that one on.

mod zoo;

#[path = "zoo/peers.rs"]
mod peers;

#[path = "zoo/scenarios.rs"]
mod scenarios;

use std::env;

use wheelhouse::sim::{self, Sim, Summary};

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs a scenario under as many seeds as are asked for.
fn run(name: &str, scenario: fn(&mut Sim)) {
    let summary = sim::swarm(number("SIM_FIRST", 1), number("SIM_SEEDS", 4), scenario);
    tell(name, &summary);
}

#[expect(clippy::print_stdout, reason = "figures for whoever reads the output")]
fn tell(name: &str, summary: &Summary) {
    println!("swarm {name}: {summary}");
}

#[test]
fn swarm_echo() {
    run("echo", scenarios::echo);
}

#[test]
fn swarm_zoo() {
    run("zoo", scenarios::zoo);
}

/// Seeds under which a reactor once did wrong.
#[test]
fn seeds_that_failed_once() {
    // What was asked for by a sign of life, or given to a request, let the wheel come up too late.
    // A connection was shed before it was dialled.
    for seed in [0xa477, 0xa482, 0x1054_58b7_39f8] {
        sim::swarm(seed, 1, scenarios::crowd);
    }
}

#[test]
fn swarm_crowd() {
    run("crowd", scenarios::crowd);
}

#[test]
fn swarm_kept() {
    run("kept", scenarios::kept);
}

#[test]
fn swarm_circle() {
    run("circle", scenarios::circle);
}

#[test]
fn swarm_failing() {
    run("failing", scenarios::failing);
}

#[test]
fn swarm_flaky_log() {
    run("flaky_log", scenarios::flaky_log);
}

#[test]
fn swarm_posts() {
    run("posts", scenarios::posts);
}

#[test]
fn swarm_shutdown() {
    run("shutdown", scenarios::shutdown);
}

#[test]
fn swarm_slow_readers() {
    run("slow_readers", scenarios::slow_readers);
}
