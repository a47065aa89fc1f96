//! Where events are those of epoll.

#[path = "rules/mod.rs"]
mod rules;

use wheelhouse::sim::Personality;

const PERSONALITY: Personality = Personality::Epoll;
