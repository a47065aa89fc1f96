//! What must hold where epoll tells events.

#[path = "scenarios/echo.rs"]
mod echo;
#[path = "../examples/ping/line.rs"]
mod line;
#[path = "../examples/ping/server.rs"]
mod ping;
mod worlds;

use wheelhouse::sim::Personality;

const PERSONALITY: Personality = Personality::Epoll;
