//! What must hold in simulated worlds: the rules, whatever the system says of readiness, and what is
//! the same for all systems.
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
mod scenarios;
#[path = "simulated/weakest.rs"]
mod weakest;
