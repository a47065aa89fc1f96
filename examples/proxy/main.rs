//! A TCP load balancer: each client is passed on to one of several upstream servers.
//!
//! A client that comes is not read until an upstream has been dialled for it; then the library
//! relays the two, so that no byte passes through this program. An upstream that cannot be dialled
//! is passed over for the next one: each is tried at most once for a client, and all together no
//! longer than `--connect-total`. If none is left the client is reset, and the log says why.
//!
//! # Which upstream
//!
//! - `round-robin`: one after the other.
//! - `least-connections`: the one with the fewest connections; of several, one after the other. It
//!   needs `--check send:..`: an upstream that accepts and closes at once has the fewest of all.
//! - `random-two`: of two that chance picks, the one with fewer connections. Where several balancers
//!   share the upstreams it keeps them from all choosing the same.
//!
//! An upstream that came back a moment ago gets a growing share.
//!
//! # Which upstreams are available
//!
//! Each is checked every `--check-interval`, and is available from its first check that passes on
//! until three in a row have failed; it comes back after two that pass. One that fails to be dialled
//! five times in a row is ejected before that, unless half of them are down already.
//!
//! `--check tcp` passes if the upstream accepts. `--check send:REQUEST:EXPECT` sends REQUEST and
//! passes if what comes back begins with EXPECT, which must not be empty. With no REQUEST, as in
//! `send::220`, it waits for what the upstream says first. Both are text with these escapes: `\r`,
//! `\n`, `\t`, `\\`, `\:` and `\xHH`. The first colon that is not escaped ends REQUEST:
//!
//! ```text
//! --check 'send:PING\r\n:+PONG'
//! --check 'send:GET /health HTTP/1.1\r\nHost\: a\r\nConnection\: close\r\n\r\n:HTTP/1.1 200'
//! ```
//!
//! # Ends
//!
//! A half-close is passed on, and so is a reset behind the bytes that came before it. A pair that is
//! silent ends after `--tunnel-timeout`, and after `--half-closed-timeout` once one side has sent its
//! FIN.

#[path = "../common/mod.rs"]
mod common;

mod balance;
mod check;
mod server;

use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use wheelhouse::Target;

use self::balance::Policy;
use self::check::Check;
use self::server::{Proxy, Settings};

/// A TCP load balancer
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    server: common::ServerArgs,

    /// An upstream server: IP:PORT, [IPV6]:PORT, HOST:PORT or unix:PATH; once for each, at most 64
    #[arg(long = "upstream", value_name = "ADDR", value_parser = common::target, required = true)]
    upstreams: Vec<Target>,

    /// How upstreams are chosen: round-robin, least-connections or random-two
    #[arg(long, value_name = "POLICY", default_value = "round-robin")]
    balance: Policy,

    /// How upstreams are checked: tcp, or send:REQUEST:EXPECT
    #[arg(long, value_name = "CHECK", default_value = "tcp")]
    check: Check,

    /// Between two checks of an upstream, at least 10ms
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "2s")]
    check_interval: Duration,

    /// For one upstream to be dialled
    #[arg(long, value_name = "DURATION", value_parser = common::duration, default_value = "2s")]
    connect_timeout: Duration,

    /// For all upstreams that are dialled for one client, one after the other
    #[arg(long, value_name = "DURATION", value_parser = common::duration, default_value = "5s")]
    connect_total: Duration,

    /// For a client and its upstream that both send nothing
    #[arg(long, value_name = "DURATION|off", default_value = "1h")]
    tunnel_timeout: common::OptionalDuration,

    /// The same once one of them has sent its FIN
    #[arg(long, value_name = "DURATION|off", default_value = "60s")]
    half_closed_timeout: common::OptionalDuration,
}

fn interval(text: &str) -> Result<Duration, &'static str> {
    match common::duration(text)? {
        interval if interval >= Duration::from_millis(10) => Ok(interval),
        _ => Err("at least 10ms is needed"),
    }
}

fn main() -> ExitCode {
    common::main(|args: Args| {
        if args.upstreams.len() > balance::UPSTREAMS_MAX {
            common::stderr().line("error: at most 64 upstreams are possible");
            return Ok(2);
        }
        let mut defaults = server::defaults(args.connect_timeout);
        defaults.timeouts.tunnel = args.tunnel_timeout.get();
        defaults.timeouts.half_closed = args.half_closed_timeout.get();
        let settings = Settings {
            upstreams: args.upstreams,
            policy: args.balance,
            check: args.check,
            check_interval: args.check_interval,
            connect_total: args.connect_total,
            timeouts: args.server.config(defaults.clone()).timeouts,
            seed: RandomState::new().hash_one(0),
        };
        common::serve(&args.server, defaults, Proxy::new(settings))
    })
}
