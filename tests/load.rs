//! The example `load`: what it takes for a reply, its client in a simulated world, and the program
//! before the example servers.
#![expect(clippy::disallowed_methods, reason = "programs are timed by the clock on the wall")]

#[allow(dead_code, reason = "simulated runs have the clock of the loop")]
#[path = "../examples/load/client.rs"]
mod client;
#[allow(dead_code, unfulfilled_lint_expectations, reason = "as above")]
#[path = "../examples/load/clock.rs"]
mod clock;
#[allow(dead_code, reason = "what only the other tests of programs use")]
mod programs;
#[path = "../examples/load/protocol.rs"]
mod protocol;
#[path = "harness/shorthands.rs"]
mod shorthands;
#[allow(dead_code, reason = "what only the report needs")]
#[path = "../examples/load/tally.rs"]
mod tally;

mod load {
    mod program;
    mod worlds;
}
