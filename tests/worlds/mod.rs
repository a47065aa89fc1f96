//! What must hold in every kind of simulated world.

mod clauses;
mod edges;
mod lasts;

use wheelhouse::sim::Sim;

use crate::PERSONALITY;

/// A world of the kind that is the program's.
fn world(seed: u64) -> Sim {
    let mut sim = Sim::new(seed);
    sim.set_personality(PERSONALITY);
    sim
}
