//! What needs a simulated world. The rules, by topic, run with each of the three personalities of
//! readiness. The other files run once, because readiness does not matter to them: memory
//! (`accounting`), the length of turns (`budgets`), the last reply (`delivery`) and single failures
//! (`faults`).

#[path = "simulated/accounting.rs"]
mod accounting;
#[path = "simulated/budgets.rs"]
mod budgets;
#[path = "simulated/delivery.rs"]
mod delivery;
#[path = "scenarios/endpoints.rs"]
#[allow(dead_code, reason = "what only the swarm runs")]
mod endpoints;
#[path = "simulated/faults.rs"]
mod faults;
#[path = "scenarios/large.rs"]
mod large;
#[path = "../examples/ping/server.rs"]
mod ping;
#[path = "scenarios/pooled.rs"]
#[allow(dead_code, reason = "what only the swarm runs")]
mod pooled;
#[path = "scenarios/relayed.rs"]
#[allow(dead_code, reason = "what only the swarm runs")]
mod relayed;
#[path = "simulated/rules/mod.rs"]
mod rules;
mod scenarios;
