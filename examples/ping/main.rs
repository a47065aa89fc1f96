//! A server that answers pings over a line protocol, and a client that sends them.
//!
//! `PING [text]` is answered by `PONG [text]`, `QUIT` by `BYE` and the end of the connection. What
//! is no command, and a line of more than 1,024 bytes, gets `ERR <reason>` and the end too. A line
//! ends with `\n` or `\r\n`; a client may send many before it reads.

#[path = "../common/mod.rs"]
mod common;

mod client;
mod server;
mod tally;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use wheelhouse::{Config, Target};

use self::client::Client;
use self::server::Server;

/// A server that answers pings; with --connect, a client that sends them
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    server: common::ServerArgs,

    /// Run as the client of this server: IP:PORT, [IPV6]:PORT, HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDR", value_parser = common::target, conflicts_with = "ServerArgs")]
    connect: Option<Target>,

    /// Pings to send, at least 1 [default: until a signal]
    #[arg(long, value_name = "N", value_parser = common::positive, requires = "connect")]
    count: Option<usize>,

    /// The time from one ping to the next
    #[arg(long, value_name = "DURATION", value_parser = common::duration, requires = "connect")]
    #[arg(default_value = "1s")]
    interval: Duration,
}

fn main() -> ExitCode {
    common::main(|args: Args| match args.connect {
        Some(target) => client::run(Client::new(target, args.count, args.interval)),
        None => common::serve(&args.server, Config::default(), Server),
    })
}
