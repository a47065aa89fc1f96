//! A server of keys and values in memory, in the protocol of Redis (RESP2).
//!
//! It knows strings, lists, sets and hashes, keys that expire, transactions without WATCH, channels
//! without patterns, and what redis-cli and redis-benchmark ask of a server. Nothing is stored on a
//! disk. Each key that expires has an alarm of the loop.
//!
//! A line that begins a request of HTTP, `POST` or `Host:`, ends its connection, as with Redis: a page
//! in a browser could send commands behind it.
//!
//! # Limits
//!
//! What clients leave here takes at most `--max-memory`, by an estimate of what the allocator needs;
//! beyond it commands that take memory are refused with an OOM error. A command is at most
//! `--max-request` bytes long, and so is each string. One client that reads too slowly, a subscriber
//! too, is ended with `OutputLimit` when `limits.output_max` is queued for it. A command runs to its
//! end, and EXEC runs all of a transaction: both keep the others waiting meanwhile.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/resp.rs"]
mod resp;

mod channels;
mod clients;
mod command;
mod glob;
mod hash;
mod hashes;
mod info;
mod keys;
mod lists;
mod parse;
mod reply;
mod server;
mod sets;
mod store;
mod strings;
mod value;

use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;

use clap::Parser;
use wheelhouse::Timeouts;

use self::server::{Resp, Settings};

/// A server of keys and values that speaks RESP2
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    server: common::ServerArgs,

    /// Bytes that keys and what else clients leave may take
    #[arg(long, value_name = "BYTES", value_parser = common::positive, default_value = "268435456")]
    max_memory: usize,

    /// Bytes of a command, from 1,024 to 536,870,912; also of a string
    #[arg(long, value_name = "BYTES", value_parser = request_max, default_value = "1048576")]
    max_request: usize,
}

fn request_max(text: &str) -> Result<usize, &'static str> {
    match common::positive(text) {
        Ok(size) if (1_024..=512 << 20).contains(&size) => Ok(size),
        _ => Err("a whole number from 1,024 to 536,870,912 is needed"),
    }
}

fn main() -> ExitCode {
    common::main(|args: Args| {
        let defaults = server::defaults(args.max_request);
        let timeouts = args.server.config(defaults.clone()).timeouts;
        let random = RandomState::new();
        let settings = Settings {
            memory_max: args.max_memory,
            request_max: args.max_request,
            seed: random.hash_one(0),
            secret: [random.hash_one(1), random.hash_one(2)],
            // A subscriber waits for as long as nothing is published. Keepalive finds one that is gone.
            subscribed: Timeouts { idle: None, ..timeouts.clone() },
            timeouts,
        };
        common::serve(&args.server, defaults, Resp::new(settings))
    })
}
