//! Where events are those of kqueue.

#[path = "rules/mod.rs"]
mod rules;

use wheelhouse::sim::Personality;

const PERSONALITY: Personality = Personality::Kqueue;
