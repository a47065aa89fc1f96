//! The example `proxy`: what it decides, its handler in a simulated world, and the program before
//! real servers, behind and before another proxy, where those are installed.
#![expect(clippy::disallowed_methods, reason = "programs are timed by the clock on the wall")]

#[path = "../examples/proxy/balance.rs"]
mod balance;
#[path = "../examples/proxy/check.rs"]
mod check;
#[allow(dead_code, reason = "what only the other tests of programs use")]
mod programs;
#[path = "../examples/proxy/server.rs"]
mod server;
#[path = "harness/shorthands.rs"]
mod shorthands;

mod proxy {
    mod faults;
    mod peers;
    mod real;
    mod rules;
}
