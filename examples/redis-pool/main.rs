//! A connection pooler for Redis: thousands of clients share a few connections to one server.
//!
//! A client speaks RESP2, or inline commands. The commands that it has sent at once are a batch: they
//! go to the server over one leased connection, and the lease ends with the reply to the last of
//! them. So a pipeline of 16 commands costs one lease. A batch is at most 1,024 commands or 64 KiB,
//! so that no client keeps a connection from the others.
//!
//! # What the state of a connection means here
//!
//! A connection goes from one client to the next, so no client may change it.
//!
//! - **Answered here**, because the answer is the client's own and not the connection's: `SELECT 0`,
//!   `CLIENT ID`, `CLIENT GETNAME`, `CLIENT SETNAME`, `CLIENT SETINFO`, `QUIT`. Local replies keep
//!   their place among those of the server.
//! - **Passed on**, although libraries send them first: `HELLO`, `HELLO 2` and `COMMAND`. They change
//!   nothing on a connection that speaks RESP2, and the server knows its version and role.
//! - **Refused**, because the next client would find the connection changed: `AUTH`, another `HELLO`,
//!   `SELECT` of another database, other `CLIENT` commands, `MONITOR`, `RESET`, `READONLY`, `SYNC`
//!   and so on. `SHUTDOWN`, `DEBUG` and the like would change the server for all of them. So are
//!   commands that are not known here, as those of modules: what they change is not known either.
//! - **Pinned**: the connection is the client's own until the state ends. `MULTI` to `EXEC` or
//!   `DISCARD`, unless all of it came at once; `WATCH` to `UNWATCH` or the end of the transaction;
//!   blocking commands until their reply; `SUBSCRIBE` and its like until nothing is subscribed to. At
//!   most half of the connections, and at least one, are pinned at once. Beyond that such a command
//!   is refused.
//!
//! A command that is refused within a transaction makes its `EXEC` fail, as with Redis: the pooler
//! sends one in its place that Redis does not know. `WAIT` waits for what went over the same
//! connection, so it is of use in the same batch or while the connection is pinned.
//!
//! # When something ends
//!
//! If a client ends in the middle of an exchange, so does its upstream connection, because what will
//! come over it is not known. If an upstream connection is lost, its client gets an error for each
//! command that has no reply. A batch of commands that are known to change nothing, such as `GET`, is
//! sent again once if it is lost before a byte of the reply; no other command is, so none is executed
//! twice. A client whose reply was cut off is disconnected, and so is one whose transaction, watched
//! keys or subscriptions are lost: they belonged to the connection, as they do without a pooler.
//!
//! In a shutdown, blocked clients and subscribers are disconnected, as what they wait for may never
//! come. A blocking command that comes then is refused.
//!
//! # Limits
//!
//! A request is at most 1 MiB, an inline command at most 64 KiB. `--max-requests` ends a client behind
//! the batch in which it is reached. Replies of any size pass through without being collected: the
//! upstream connection is read no faster than the client reads. A client that has sent more than 64 KiB
//! behind a command that blocks is not read, so that its end would not be seen: it waits for its reply
//! no longer than a minute. Upstream servers that want a password, TLS, RESP3 and other databases than
//! 0 are not supported.

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "what only the server of keys and values uses")]
#[path = "../common/resp.rs"]
mod resp;

mod command;
mod exchange;
mod pooler;
mod reply;
mod request;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use wheelhouse::Target;

use self::pooler::{Pooler, Settings};

/// A connection pooler for Redis
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    server: common::ServerArgs,

    /// The Redis server: IP:PORT, [IPV6]:PORT, HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDR", value_parser = common::target, default_value = "127.0.0.1:6379")]
    upstream: Target,

    /// Connections to the Redis server, at most 4,096
    #[arg(long, value_name = "N", value_parser = pool_size, default_value = "8")]
    pool_size: usize,

    /// How long a client waits for a connection before it gets an error
    #[arg(long, value_name = "DURATION", value_parser = common::duration, default_value = "5s")]
    acquire_timeout: Duration,

    /// How long a connection to the Redis server is idle before it is checked by a PING
    #[arg(long, value_name = "DURATION", value_parser = common::duration, default_value = "30s")]
    check_interval: Duration,
}

fn pool_size(text: &str) -> Result<usize, &'static str> {
    match common::positive(text) {
        Ok(size) if size <= 4_096 => Ok(size),
        _ => Err("a whole number from 1 to 4,096 is needed"),
    }
}

fn main() -> ExitCode {
    common::main(|args: Args| {
        let settings = Settings {
            upstream: args.upstream,
            size: args.pool_size,
            acquire: args.acquire_timeout,
            check: args.check_interval,
            timeouts: args.server.config(pooler::defaults()).timeouts,
        };
        common::serve(&args.server, pooler::defaults(), Pooler::new(settings))
    })
}
