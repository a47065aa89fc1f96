//! What the library serves itself, beside the application: in virtual time, and over real sockets.

#[path = "services/metrics.rs"]
mod metrics;
#[path = "services/real.rs"]
mod real;
#[path = "harness/shorthands.rs"]
mod shorthands;
#[path = "services/world.rs"]
mod world;
