//! What must hold where events are the least that mio promises.

#[path = "scenarios/echo.rs"]
mod echo;
#[path = "../examples/ping/line.rs"]
mod line;
#[path = "../examples/ping/server.rs"]
mod ping;
mod worlds;

use wheelhouse::sim::Personality;

const PERSONALITY: Personality = Personality::Weakest;
