//! What needs a simulated world. The rules, by topic, run with each of the three personalities of
//! readiness. The other files run once, because readiness does not matter to them: memory
//! (`accounting`), the length of turns (`budgets`), the last reply (`delivery`) and single failures
//! (`faults`).
#![allow(clippy::duplicate_mod, reason = "each personality has the rules for itself")]

#[path = "simulated/accounting.rs"]
mod accounting;
#[path = "simulated/budgets.rs"]
mod budgets;
#[path = "simulated/delivery.rs"]
mod delivery;
#[path = "simulated/epoll.rs"]
mod epoll;
#[path = "simulated/faults.rs"]
mod faults;
#[path = "simulated/kqueue.rs"]
mod kqueue;
#[path = "scenarios/large.rs"]
mod large;
#[path = "../examples/ping/line.rs"]
mod line;
#[path = "../examples/ping/server.rs"]
mod ping;
#[path = "scenarios/pooled.rs"]
#[allow(dead_code, reason = "what only the swarm runs")]
mod pooled;
mod scenarios;
#[path = "simulated/weakest.rs"]
mod weakest;
