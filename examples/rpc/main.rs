//! Remote calls: a server that answers them from worker threads, in whatever order they get done, and
//! a client.
//!
//! A message is a length in four bytes, the big end first, and at most 32 KiB. A request says which
//! call it is, by a number that the client chooses, and how long the client waits; the reply has the
//! same number. So a client may have many calls in hand on one connection, and a short one overtakes
//! a long one. `wire.rs` has the layout.
//!
//! # What ends a call
//!
//! - **Its result**, from the thread that did the work.
//! - **Its deadline**: the server replies that it is late, and the thread learns that its work is of no
//!   use. No call is waited for longer than 30 s.
//! - **Too much to do**: where all threads are busy and the queue before them is full, the reply says
//!   so at once.
//! - **The end of its connection**: the threads learn that too. A client that only ends its own
//!   direction still gets its replies.
//!
//! A connection has at most 64 calls in hand. Beyond that its next requests wait in its own socket,
//! until one is done.

#[path = "../common/mod.rs"]
mod common;

mod client;
mod server;
mod wire;
mod workers;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use wheelhouse::{Config, Error, Target};

use self::server::{QUEUE, Rpc};
use self::wire::Call;
use self::workers::Threads;

/// A server of remote calls; with --connect, a client that makes some
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    server: common::ServerArgs,

    /// Threads that do the work
    #[arg(long, value_name = "N", value_parser = common::positive, default_value = "2")]
    workers: usize,

    /// Run as a client of this server: IP:PORT, [IPV6]:PORT, HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDR", value_parser = common::target)]
    #[arg(conflicts_with_all = ["ServerArgs", "workers"])]
    connect: Option<Target>,

    #[command(flatten)]
    calls: Calls,
}

/// What a client does.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Calls {
    /// What is called: the bytes back, their sum, or the time in milliseconds that stands in them
    #[arg(long, value_enum, requires = "connect", default_value = "sum")]
    pub(crate) call: Call,

    /// Calls in all
    #[arg(long, value_name = "N", value_parser = common::positive, requires = "connect")]
    #[arg(default_value = "100")]
    pub(crate) count: usize,

    /// Calls in hand at once
    #[arg(long, value_name = "N", value_parser = common::positive, requires = "connect")]
    #[arg(default_value = "16")]
    pub(crate) in_flight: usize,

    /// How long each call may take
    #[arg(long, value_name = "DURATION", value_parser = common::duration, requires = "connect")]
    #[arg(default_value = "1s")]
    pub(crate) timeout: Duration,
}

fn main() -> ExitCode {
    common::main(|args: Args| match args.connect {
        Some(target) => client::run(target, args.calls),
        None => serve(&args),
    })
}

fn serve(args: &Args) -> Result<u8, Error> {
    let config = args.server.config(Config::default());
    common::run(&args.server, config, |handle| {
        let threads = Threads::start(args.workers, QUEUE, handle).map_err(|error| {
            let text = format!("cannot start {} threads: {error}", args.workers);
            io::Error::new(error.kind(), text)
        })?;
        Ok(Rpc::new(threads))
    })
}
