//! Where events are the least that mio promises.

#[path = "rules/mod.rs"]
mod rules;

use wheelhouse::sim::Personality;

const PERSONALITY: Personality = Personality::Weakest;
