//! The example `rpc`: its rules in a simulated world, with workers that a test plays, and its programs
//! with real threads.
#![expect(clippy::disallowed_methods, reason = "programs are timed by the clock on the wall")]

#[path = "rpc/program.rs"]
mod program;
#[path = "programs/mod.rs"]
#[allow(dead_code, reason = "what other programs need")]
mod programs;
#[path = "rpc/rules.rs"]
mod rules;
#[path = "../examples/rpc/server.rs"]
#[allow(dead_code, reason = "what only the programs use")]
mod server;
#[path = "../examples/rpc/wire.rs"]
#[allow(dead_code, reason = "what only the programs use")]
mod wire;
#[path = "../examples/rpc/workers.rs"]
#[allow(dead_code, reason = "what only the programs use")]
mod workers;
