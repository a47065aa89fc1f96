//! What the example servers share: options, logging, and an orderly end on a signal.

mod output;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Write as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

pub(crate) use self::output::{stderr, stdout};
use clap::{Args, Parser};
use tracing_subscriber::EnvFilter;
use wheelhouse::config::Rate;
use wheelhouse::{Address, Config, Error, Handle, Handler, Reactor, Target};

/// The options of a server. What is not given keeps the default of the library.
#[derive(Args, Debug)]
pub(crate) struct ServerArgs {
    /// Where to listen: IP:PORT, [IPV6]:PORT or unix:PATH; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7000")]
    pub(crate) listen: Address,

    /// Connections at once, at least 1 [default: what the descriptors allow]
    #[arg(long, value_name = "N", value_parser = positive)]
    max_connections: Option<usize>,

    /// Connections of one client at once [default: off]
    #[arg(long, value_name = "N|off")]
    max_per_client: Option<OptionalCount>,

    /// Connections accepted each second [default: off]
    #[arg(long, value_name = "N|off")]
    accept_rate: Option<OptionalCount>,

    /// Requests on one connection [default: off, of http 1000]
    #[arg(long, value_name = "N|off")]
    max_requests: Option<OptionalCount>,

    /// The greatest age of a connection, shortened at random by up to a quarter [default: off]
    #[arg(long, value_name = "DURATION|off")]
    lifetime: Option<OptionalDuration>,

    /// From accept to the first byte, such as 500ms or 30s [default: 10s, of resp and redis-pool 35m]
    #[arg(long, value_name = "DURATION|off")]
    first_byte_timeout: Option<OptionalDuration>,

    /// From the first byte of a request to its last [default: 30s]
    #[arg(long, value_name = "DURATION|off")]
    request_timeout: Option<OptionalDuration>,

    /// Between two bytes of a request [default: 30s]
    #[arg(long, value_name = "DURATION|off")]
    read_timeout: Option<OptionalDuration>,

    /// For queued output that does not move [default: 60s]
    #[arg(long, value_name = "DURATION|off")]
    write_timeout: Option<OptionalDuration>,

    /// Between two requests [default: 75s, of resp and redis-pool 35m]
    #[arg(long, value_name = "DURATION|off")]
    idle_timeout: Option<OptionalDuration>,

    /// From our FIN to the peer's, at most [default: 30s]
    #[arg(long, value_name = "DURATION|off")]
    linger_timeout: Option<OptionalDuration>,

    /// After a signal, for connections to end before they are reset [default: 30s]
    #[arg(long, value_name = "DURATION|off")]
    shutdown_timeout: Option<OptionalDuration>,

    /// After a signal, over how long idle connections are closed [default: 5s]
    #[arg(long, value_name = "DURATION|off")]
    shutdown_spread: Option<OptionalDuration>,

    /// Where to answer GET /metrics, /healthz and /readyz, beside all limits and until the end of a
    /// shutdown
    #[arg(long, value_name = "ADDR")]
    metrics: Option<Address>,

    /// Where to serve a console, for the user of this process and root alone
    #[arg(long, value_name = "PATH")]
    console: Option<PathBuf>,
}

#[allow(dead_code, reason = "not every program needs it")]
impl ServerArgs {
    /// These settings with what was given put in.
    pub(crate) fn config(&self, mut config: Config) -> Config {
        let timeouts = &mut config.timeouts;
        for (given, timeout) in [
            (self.first_byte_timeout, &mut timeouts.first_byte),
            (self.request_timeout, &mut timeouts.request),
            (self.read_timeout, &mut timeouts.read),
            (self.write_timeout, &mut timeouts.write),
            (self.idle_timeout, &mut timeouts.idle),
            (self.linger_timeout, &mut timeouts.linger),
            (self.lifetime, &mut timeouts.lifetime),
            (self.shutdown_timeout, &mut config.shutdown_timeout),
            (self.shutdown_spread, &mut config.shutdown_spread),
        ] {
            if let Some(OptionalDuration(given)) = given {
                *timeout = given;
            }
        }
        let limits = &mut config.limits;
        if self.max_connections.is_some() {
            limits.max_connections = self.max_connections;
        }
        if let Some(OptionalCount(given)) = self.max_per_client {
            limits.clients.connections = given;
        }
        if let Some(OptionalCount(given)) = self.accept_rate {
            limits.accept_rate = given.map(Rate::per_second);
        }
        if let Some(OptionalCount(given)) = self.max_requests {
            limits.requests_max = given.map(u64::from);
        }
        config
    }
}

/// Parses what is dialled.
#[allow(dead_code, reason = "not every program needs it")]
pub(crate) fn target(text: &str) -> Result<Target, &'static str> {
    text.parse().map_err(|_| "IP:PORT, [IPV6]:PORT, HOST:PORT or unix:PATH is needed")
}

/// Parses a count.
pub(crate) fn positive(text: &str) -> Result<usize, &'static str> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a whole number from 1 on is needed"),
        Ok(number) => Ok(number),
    }
}

/// A whole number from 1 on, or `off`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OptionalCount(
    #[allow(dead_code, reason = "not every program needs it")] Option<u32>,
);

impl FromStr for OptionalCount {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "off" => Ok(Self(None)),
            Ok(0) | Err(_) => Err("a whole number from 1 on is needed, or off"),
            Ok(number) => Ok(Self(Some(number))),
        }
    }
}

/// Parses a duration longer than zero.
pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration > Duration::ZERO => Ok(duration),
        _ => Err("a duration longer than 0 such as 500ms or 30s is needed"),
    }
}

/// A duration longer than zero, or `off`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OptionalDuration(Option<Duration>);

impl OptionalDuration {
    #[allow(dead_code, reason = "not every program needs it")]
    pub(crate) const fn get(self) -> Option<Duration> {
        self.0
    }
}

impl FromStr for OptionalDuration {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self(None));
        }
        match duration(text) {
            Ok(duration) => Ok(Self(Some(duration))),
            Err(_) => Err("a duration longer than 0 such as 500ms or 30s is needed, or off"),
        }
    }
}

/// Runs a program: parses its command line, starts the log, and calls `body`, which returns the
/// exit code. Whatever becomes of stdout and stderr, this neither waits for them for long nor
/// panics.
pub(crate) fn main<A: Parser>(body: impl FnOnce(A) -> Result<u8, Error>) -> ExitCode {
    output::start();
    log_panics();
    let code = parse().and_then(|args| {
        log();
        match panic::catch_unwind(AssertUnwindSafe(|| body(args))) {
            Ok(ended) => ended.map_err(|error| {
                stderr().line(format_args!("error: {error}"));
                1
            }),
            // The code of a panic that nothing catches.
            Err(_) => Err(101),
        }
    });
    output::finish();
    ExitCode::from(code.unwrap_or_else(|code| code))
}

/// Parses the command line. If it does not ask to run, returns the exit code: 0 for help, 2 for a
/// mistake, which is reported in one line.
fn parse<A: Parser>() -> Result<A, u8> {
    A::try_parse().map_err(|error| {
        let text = error.to_string();
        if !error.use_stderr() {
            stdout().line(text.trim_end());
            return 0;
        }
        // clap puts the option and the values allowed first and advice in later paragraphs.
        let first = text.lines().take_while(|line| !line.trim().is_empty());
        let mut line = String::new();
        for part in first {
            let _ = write!(line, "{}{}", if line.is_empty() { "" } else { " " }, part.trim());
        }
        stderr().line(format_args!("{line}; see --help"));
        2
    })
}

/// Logs to stderr what `RUST_LOG` asks for; warnings by default.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .log_internal_errors(false)
        .init();
}

/// Queues the text of a panic. By default a panic writes it to stderr itself, and a callback that
/// panics would wait there with the whole loop.
fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        stderr().line(panic);
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            stderr().line(backtrace);
        }
    }));
}

/// Serves until a signal, and then prints how the connections ended. The settings are `defaults` with
/// what was given put in.
#[allow(dead_code, reason = "not every program needs it")]
pub(crate) fn serve<H: Handler + 'static>(
    args: &ServerArgs,
    defaults: Config,
    handler: H,
) -> Result<u8, Error> {
    run(args, args.config(defaults), |_| Ok(handler))
}

/// As [`serve`], with all settings, and a handler that is made with a handle for other threads before
/// anything is listened on.
#[allow(dead_code, reason = "not every program needs it")]
pub(crate) fn run<H: Handler + 'static>(
    args: &ServerArgs,
    config: Config,
    handler: impl FnOnce(Handle<H>) -> Result<H, Error>,
) -> Result<u8, Error> {
    let mut reactor = Reactor::new(config)?;
    let handle = reactor.handle();
    let mut handler = handler(handle.clone())?;
    let listener = reactor.listen(args.listen.clone())?;
    // A program that reads the line may send a signal at once.
    handle.shutdown_on_signals()?;
    stdout().line(format_args!("listening on {}", reactor.local_addr(listener)));
    if let Some(address) = &args.metrics {
        let address = reactor.serve_metrics(address.clone())?;
        stdout().line(format_args!("metrics on {address}"));
    }
    if let Some(path) = &args.console {
        let address = reactor.serve_console(path)?;
        stdout().line(format_args!("console on {address}"));
    }
    let report = reactor.run(&mut handler)?;
    stdout().line(report);
    Ok(0)
}
