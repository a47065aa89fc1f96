//! The variables that a failing run prints, given back to it: this program runs itself with them.

#[path = "scenarios/basics.rs"]
mod basics;

use std::env;
use std::process::Command;

use wheelhouse::sim::{self, Sim};

use crate::basics::{secs, serve_echo};

const VARIABLES: [&str; 3] = ["SIM_SEED", "SIM_FAULT", "SIM_TRACE"];

fn visit(sim: &mut Sim) -> Vec<u8> {
    let server = serve_echo(sim);
    let peer = sim.connect(&server);
    peer.send(b"x");
    sim.advance(secs(30));
    peer.take()
}

/// Fails wherever something goes wrong for the only visitor.
#[test]
#[ignore = "it fails, for the other tests to read"]
fn a_swarm_that_fails() {
    sim::swarm(1, 1_000, |sim| assert!(visit(sim) == b"x", "the visitor was not served"));
}

#[test]
#[ignore = "it fails, for the other tests to read"]
fn a_torture_that_fails() {
    sim::torture(1_000, |sim| assert!(visit(sim) == b"x", "the visitor was not served"));
}

#[test]
#[ignore = "it fails, for the other tests to read"]
fn a_torture_that_fails_as_it_is() {
    sim::torture(1_000, |sim| assert!(visit(sim) == b"y", "the visitor was not served"));
}

/// Runs one of the above by itself, and returns whether it passed and what it said.
fn run(test: &str, variables: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    let output = command
        .args(["--ignored", "--exact", test, "--nocapture"])
        .envs(variables.iter().copied())
        .output()
        .expect("this program can be run");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What it says when it fails, as it must.
fn failure(test: &str, variables: &[(&str, &str)]) -> String {
    let (passed, said) = run(test, variables);
    assert!(!passed, "{said}");
    said
}

/// The value of a variable in a command that was printed, and the test in that command.
fn printed<'a>(said: &'a str, variable: &str) -> (&'a str, &'a str) {
    let line = said
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(variable)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("no command in {said}"));
    let (value, command) = line.split_once(' ').expect("a command follows");
    assert!(command.starts_with("cargo test --test replay -- --exact "), "{command}");
    // The tests that fail are ignored, and were asked for.
    assert!(command.ends_with(" --nocapture --include-ignored"), "{command}");
    (value, command.split_whitespace().nth(6).expect("a test is named"))
}

#[test]
fn a_seed_that_is_printed_replays_its_run() {
    let first = failure("a_swarm_that_fails", &[]);
    let (seed, test) = printed(&first, "SIM_SEED");
    let again = failure(test, &[("SIM_SEED", seed)]);
    assert!(again.contains("SIM_SEED is set"), "{again}");
    let world = |said: &str| {
        let (_, world) = said.split_once("The world at ").expect("the world is described");
        world.to_owned()
    };
    assert_eq!(world(&first), world(&again));
    for part in ["personality: ", "latency ", "buffers: ", "faults in a thousand: ", "call 0, "] {
        assert!(world(&first).contains(part), "{part:?} is missing in {first}");
    }
}

#[test]
fn a_fault_that_is_printed_replays_its_run() {
    let first = failure("a_torture_that_fails", &[]);
    let (fault, test) = printed(&first, "SIM_FAULT");
    assert_eq!(fault.split(':').count(), 3, "{fault}");
    let again = failure(test, &[("SIM_FAULT", fault)]);
    assert!(again.contains("SIM_FAULT is set"), "{again}");
    assert!(again.contains("the visitor was not served"), "{again}");
}

#[test]
fn variables_that_mean_nothing_are_refused() {
    let said = failure("a_swarm_that_fails", &[("SIM_SEED", "eleven")]);
    assert!(said.contains("expected a number"), "{said}");
    for (fault, why) in [
        ("11:105", "expected the number of a call, its kind and an error"),
        ("100000:Read:EINTR", "never made"),
        ("0:Connect:EMFILE", "the scenario has changed"),
    ] {
        let said = failure("a_torture_that_fails", &[("SIM_FAULT", fault)]);
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_scenario_that_fails_without_a_fault_is_distinguished_from_one_that_a_fault_breaks() {
    let said = failure("a_torture_that_fails_as_it_is", &[]);
    assert!(said.contains("fails as it is, before any call is made to fail"), "{said}");
    assert!(!said.contains("SIM_FAULT"), "{said}");
}

#[test]
fn a_trace_has_every_event_as_it_happens() {
    let said = failure("a_torture_that_fails_as_it_is", &[("SIM_TRACE", "1")]);
    let (along, world) = said.split_once("The world at ").expect("the world is described");
    for event in ["sends 1 byte", "Accept with 192.0.2.1:", "on_data on 0.", "gets 1 byte from"] {
        assert!(along.contains(event), "{event:?} is missing in {along}");
        assert!(world.contains(event), "{event:?} is missing in {world}");
    }
}
