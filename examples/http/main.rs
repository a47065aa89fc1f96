//! An HTTP/1.1 server: keep-alive, pipelining, bodies with a length or in chunks, replies that are
//! streamed or come later, and an answer to everything that is no request.
//!
//! `/` says hello, `/bytes/N` sends N bytes, `/echo` sends back what is posted, `/slow?ms=N`
//! answers after N milliseconds, `/metrics` shows the counters, `/healthz` and `/readyz` say how it
//! is.

#[path = "../common/mod.rs"]
mod common;

mod body;
mod head;
mod reply;
mod route;
mod server;

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser;

use self::server::Http;

/// An HTTP/1.1 server
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    server: common::ServerArgs,
}

#[expect(clippy::disallowed_methods, reason = "replies are dated by the clock on the wall")]
const WALL_CLOCK: fn() -> SystemTime = SystemTime::now;

fn main() -> ExitCode {
    common::main(|args: Args| {
        let config = args.server.config(server::defaults());
        common::run(&args.server, config, |_| Ok(Http::new(WALL_CLOCK)))
    })
}
