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
mod metrics;
mod reply;
mod route;
mod server;

use std::time::SystemTime;

use clap::Parser;

use self::server::Http;

/// An HTTP server
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    server: common::ServerArgs,

    /// Requests on one connection, at least 1
    #[arg(long, value_name = "N", value_parser = common::positive, default_value = "1000")]
    max_requests: usize,
}

#[expect(clippy::disallowed_methods, reason = "replies are dated by the clock on the wall")]
const WALL_CLOCK: fn() -> SystemTime = SystemTime::now;

fn main() {
    let args: Args = common::parse();
    common::log();
    let mut config = args.server.config();
    server::limit(&mut config, args.max_requests as u64);
    common::serve(args.server.listen, config, Http::new(WALL_CLOCK));
}
