//! What the library serves itself, beside the application: in virtual time, over real sockets, and as
//! the example servers do.
#![expect(clippy::disallowed_methods, reason = "programs are timed by the clock on the wall")]

#[path = "services/browser.rs"]
mod browser;
#[allow(dead_code, reason = "what only the program needs")]
#[path = "../examples/console/client.rs"]
mod client;
#[path = "services/console.rs"]
mod console;
#[path = "services/endpoints.rs"]
mod endpoints;
#[path = "services/faults.rs"]
mod faults;
#[path = "services/metrics.rs"]
mod metrics;
#[path = "services/page.rs"]
mod page;
#[path = "services/patience.rs"]
mod patience;
#[allow(dead_code, reason = "what only the other tests of programs use")]
mod programs;
#[path = "services/real.rs"]
mod real;
#[allow(dead_code, reason = "what only the program needs")]
#[path = "../examples/console/sample.rs"]
mod sample;
#[path = "harness/shorthands.rs"]
mod shorthands;
#[allow(dead_code, reason = "what only the program needs")]
#[path = "../examples/console/view.rs"]
mod view;
#[path = "services/world.rs"]
mod world;
