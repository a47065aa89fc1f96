//! A load generator on the crate's own client side.
//!
//! The closed loop (the default) sends a request when a reply comes, so the load adapts to the
//! server: while the server stalls nothing is asked, and no wait is measured but the few on their way
//! ("coordinated omission", Gil Tene). The open loop (`--rate`) sends at given times whatever the
//! server does, and measures each reply from the time at which its request was to be sent.
//!
//! One thread generates the load, and the server under test should have another processor to itself.

#[path = "../common/mod.rs"]
mod common;

mod client;
mod clock;
mod cpu;
mod page;
mod protocol;
mod report;
mod tally;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use wheelhouse::Target;

use self::client::{Amount, Plan};
use self::protocol::Protocol;

/// What `--connections`, `--size` and `--pipeline` may be, as their help says.
const CONNECTIONS_MAX: usize = 1 << 20;
const SIZE_MAX: usize = 64 << 20;
const PIPELINE_MAX: usize = 1 << 16;

/// A load generator: measures how a server answers
#[derive(Parser)]
#[command(version)]
pub(crate) struct Args {
    /// What is sent, and what has to come back
    #[arg(value_enum)]
    mode: Mode,

    /// The server: IP:PORT, [IPV6]:PORT, HOST:PORT or unix:PATH
    #[arg(value_name = "ADDR", value_parser = common::target)]
    target: Target,

    /// Connections at once, at most 1048576: a process of Linux has no more descriptors by default
    #[arg(short, long, value_name = "N", value_parser = up_to(CONNECTIONS_MAX))]
    #[arg(default_value = "64")]
    connections: usize,

    /// Bytes of an echo, or of a value that is set, at most 67108864: each connection keeps its requests
    /// whole in memory
    #[arg(short, long, value_name = "BYTES", value_parser = up_to(SIZE_MAX), default_value = "64")]
    size: usize,

    /// Requests on their way on each connection, at most 65536: all of them are kept in memory
    #[arg(short, long, value_name = "N", value_parser = up_to(PIPELINE_MAX), default_value = "1")]
    pipeline: usize,

    /// How long to measure
    #[arg(short, long, value_name = "DURATION", value_parser = common::duration)]
    #[arg(default_value = "10s", conflicts_with = "count")]
    duration: Duration,

    /// How many replies to measure at least, instead of a time
    #[arg(short = 'n', long, value_name = "N", value_parser = common::positive)]
    count: Option<usize>,

    /// How long to send before it is measured; 0s for not at all
    #[arg(short, long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    #[arg(default_value = "1s")]
    warm_up: Duration,

    /// Requests (in churn: connections) a second, sent on time whatever the server does
    #[arg(short, long, value_name = "R", value_parser = common::positive)]
    rate: Option<usize>,

    /// Addresses that idle connections are dialled from, 127.0.0.1 and those behind it: each has some
    /// 28,000 ports for one server
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=250))]
    #[arg(default_value = "1")]
    sources: u8,

    /// How long a dial may take, and nothing come while a reply is due
    #[arg(long, value_name = "DURATION", value_parser = common::duration, default_value = "10s")]
    timeout: Duration,

    /// The path of http
    #[arg(long, default_value = "/", value_parser = protocol::path)]
    path: String,

    /// The server's process, to report the processor time of a reply
    #[arg(long)]
    pid: Option<u32>,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Makes what parses a count of at most `max`.
fn up_to(max: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| {
        let count = common::positive(text).ok().filter(|count| *count <= max);
        count.ok_or_else(|| format!("a whole number from 1 to {max} is needed"))
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Mode {
    /// Bytes that come back as they are
    Echo,
    /// Lines: PING, and PONG as its reply
    Ping,
    /// GET over connections that are kept alive; status and length are checked
    Http,
    /// Redis: SET and GET in turns
    Resp,
    /// Connections of one echo each
    Churn,
    /// Connections that say nothing
    Idle,
}

impl Args {
    /// What the source with this index does.
    fn plan(&self, index: u8) -> Plan {
        let (sources, index) = (usize::from(self.sources), usize::from(index));
        Plan {
            local: (sources > 1).then(|| Ipv4Addr::new(127, 0, 0, 1 + index as u8).into()),
            target: self.target.clone(),
            protocol: match self.mode {
                Mode::Echo | Mode::Churn => Some(Protocol::echo(self.size)),
                Mode::Ping => Some(Protocol::ping()),
                Mode::Http => Some(Protocol::http(&self.path, &self.target)),
                Mode::Resp => Some(Protocol::resp(self.size)),
                Mode::Idle => None,
            },
            connections: (self.connections + index) / sources,
            pipeline: self.pipeline,
            churn: self.mode == Mode::Churn,
            rate: self.rate,
            warm_up: self.warm_up,
            amount: self.count.map_or(Amount::Time(self.duration), Amount::Replies),
            timeout: self.timeout,
        }
    }
}

fn main() -> ExitCode {
    common::main(|args: Args| report::run(&args))
}
