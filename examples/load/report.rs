//! Runs a load, and prints what it measured.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::Duration;
use std::{fs, panic, thread};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use wheelhouse::{Error, Reactor};

use crate::client::Load;
use crate::clock::Clock;
use crate::tally::Tally;
use crate::{Args, Mode, common, cpu, page};

/// The quantiles that are printed.
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];

/// How often the line of progress is drawn.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Bytes that requests on their way may take in memory.
const ON_THEIR_WAY_MAX: usize = 4 << 30;

/// What a load measured.
pub(crate) struct Report<'a> {
    pub(crate) title: String,
    pub(crate) tally: &'a Tally,
    pub(crate) measured: Duration,
    /// How many connections stood at the end.
    pub(crate) connected: usize,
    /// What the server's processor did meanwhile, if it is known.
    pub(crate) cpu: Option<Duration>,
}

/// What a source of load measured.
struct Outcome {
    tally: Tally,
    measured: Duration,
    held: usize,
    cpu: Option<Duration>,
}

/// Generates the load, prints the report, and returns the exit code: 1 if there was no reply, or an
/// error.
pub(crate) fn run(args: &Args) -> Result<u8, Error> {
    if let Some(what) = args.mistake() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what).into());
    }
    if let Some(pid) = args.pid {
        // One that is not there is to be known before the load and not after its warm-up.
        cpu::of_process(pid)?;
    }
    let progress = progress();
    let outcome = thread::scope(|scope| {
        let others: Vec<_> = (1..args.sources)
            .map(|index| scope.spawn(move || generate(args, index, &ProgressBar::hidden())))
            .collect();
        let mut outcome = generate(args, 0, &progress)?;
        for other in others {
            let other = other.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
            outcome.tally.add(&other.tally);
            outcome.held += other.held;
        }
        Ok::<_, Error>(outcome)
    })?;
    progress.finish_and_clear();
    let Outcome { tally, measured, held, cpu } = &outcome;
    let report =
        Report { title: args.title(), tally, measured: *measured, connected: *held, cpu: *cpu };
    common::stdout().line(if args.json { report.json() } else { report.text() });
    if let Some(path) = &args.html {
        fs::write(path, page::page(&report)).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
        })?;
    }
    let holds = args.mode == Mode::Idle || tally.replies() > 0;
    Ok(if holds && tally.errors().is_empty() { 0 } else { 1 })
}

/// Generates the load of one source. The first asks for the processor time of the server.
fn generate(args: &Args, index: u8, progress: &ProgressBar) -> Result<Outcome, Error> {
    let plan = args.plan(index);
    let mut reactor = Reactor::new(plan.config())?;
    let mut load = Load::new(plan);
    load.set_clock(Clock::system(reactor.context().now()));
    reactor.handle().shutdown_on_signals()?;
    let pid = args.pid.filter(|_| index == 0);
    let mut drawn_at = Duration::ZERO;
    let (mut before, mut cpu) = (None, None);
    while !reactor.is_finished() {
        let now = reactor.context().now();
        let wait = load.longest_wait(now);
        reactor.turn(&mut load, wait)?;
        let mut cx = reactor.context();
        load.send_due(&mut cx);
        let measured = load.measured(cx.now());
        if let Some(pid) = pid {
            match before {
                None if load.is_measuring() => before = Some(cpu::of_process(pid)?),
                Some(before) if load.has_ended() && cpu.is_none() => {
                    // A server that has ended says nothing, and the rest is worth reporting.
                    cpu = Some(cpu::of_process(pid).ok().map(|used| used.saturating_sub(before)));
                }
                _ => {}
            }
        }
        if measured >= drawn_at + PROGRESS_EVERY {
            drawn_at = measured;
            progress.set_message(line(&load.tally, measured));
            progress.tick();
        }
    }
    let measured = load.measured(reactor.context().now());
    let held = load.held();
    Ok(Outcome { tally: load.tally, measured, held, cpu: cpu.flatten() })
}

fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}");
    ProgressBar::new_spinner()
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn line(tally: &Tally, measured: Duration) -> String {
    let rate = tally.in_time() as f64 / measured.as_secs_f64();
    let p99 = tally.latencies().value_at_quantile(0.99);
    let errors = tally.error_count();
    format!("{rate:.0} replies/s, p99 {}, {errors} errors", time(p99))
}

/// A time in nanoseconds, in the unit that suits it.
pub(crate) fn time(nanos: u64) -> String {
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => format!("{:.1} us", nanos as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", nanos as f64 / 1e6),
        _ => format!("{:.3} s", nanos as f64 / 1e9),
    }
}

impl Args {
    /// Options that mean nothing together.
    fn mistake(&self) -> Option<&'static str> {
        match self.mode {
            Mode::Idle if self.rate.is_some() || self.count.is_some() => {
                Some("idle connections send nothing: neither --rate nor --count means anything")
            }
            Mode::Idle if usize::from(self.sources) > self.connections => {
                Some("each source has a connection at least")
            }
            Mode::Idle => None,
            _ if self.sources > 1 => Some("--sources is for idle connections"),
            Mode::Churn if self.pipeline > 1 => Some("churn has one request on each connection"),
            _ if self.on_their_way() > ON_THEIR_WAY_MAX => {
                Some("--connections, --size and --pipeline together take more than 4 GiB of memory")
            }
            _ => None,
        }
    }

    /// Bytes that the requests on their way take in memory, at most, with what is known of each.
    const fn on_their_way(&self) -> usize {
        let each = self.size.saturating_add(64);
        each.saturating_mul(self.pipeline).saturating_mul(self.connections)
    }

    fn title(&self) -> String {
        let mode = format!("{:?}", self.mode).to_lowercase();
        let mut title = format!("{mode}, {}, {} connections", self.target, self.connections);
        if self.pipeline > 1 {
            let _ = write!(title, ", {} in flight on each", self.pipeline);
        }
        if let Some(rate) = self.rate {
            let _ = write!(title, ", {rate} a second");
        }
        title
    }
}

impl Report<'_> {
    pub(crate) fn rate(&self) -> f64 {
        let seconds = self.measured.as_secs_f64();
        if seconds > 0.0 { self.tally.in_time() as f64 / seconds } else { 0.0 }
    }

    /// Each quantile's name, and its latency in nanoseconds.
    pub(crate) fn quantiles(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let latencies = self.tally.latencies();
        QUANTILES.into_iter().map(|(name, at)| (name, latencies.value_at_quantile(at)))
    }

    /// Processor time of the server for each reply, if there were some, and its share of one processor.
    fn cpu_share(&self) -> Option<(Option<u64>, f64)> {
        let used = self.cpu?;
        let each = (used.as_nanos() as u64).checked_div(self.tally.in_time());
        Some((each, used.as_secs_f64() / self.measured.as_secs_f64()))
    }

    fn text(&self) -> String {
        let Self { title, tally, .. } = self;
        let mut text = format!("{title}, {:.1} s\n", self.measured.as_secs_f64());
        let _ = write!(text, "  connected  {}\n  replies    {}", self.connected, tally.replies());
        let _ = write!(text, ", {:.1}/s, {} bytes", self.rate(), tally.bytes);
        if tally.replies() > 0 {
            text.push_str("\n  latency   ");
            for (name, latency) in self.quantiles() {
                let _ = write!(text, " {name} {}", time(latency));
            }
        }
        text.push_str("\n  errors     ");
        if tally.errors().is_empty() {
            text.push_str("none");
        }
        for (at, (kind, count)) in tally.errors().iter().enumerate() {
            let _ = write!(text, "{}{kind} {count}", if at > 0 { ", " } else { "" });
        }
        if let Some((each, share)) = self.cpu_share() {
            text.push_str("\n  server     ");
            if let Some(each) = each {
                let _ = write!(text, "{} of its processor for each reply, ", time(each));
            }
            let _ = write!(text, "{:.0} % of one processor", share * 100.0);
        }
        text
    }

    fn json(&self) -> String {
        let Self { tally, .. } = self;
        let latencies = tally.latencies();
        let seconds = tally.seconds().iter().map(|second| {
            json!({
                "ended_at": second.ended_at,
                "replies_per_second": second.rate,
                "median_ns": second.median,
                "p99_ns": second.p99,
                "max_ns": second.max,
            })
        });
        let cpu =
            self.cpu_share().map(|(each, share)| json!({"ns_per_reply": each, "share": share}));
        json!({
            "title": self.title,
            "seconds": self.measured.as_secs_f64(),
            "connected": self.connected,
            "replies": tally.replies(),
            "replies_per_second": self.rate(),
            "bytes": tally.bytes,
            "latency_ns": {
                "min": latencies.min(),
                "mean": latencies.mean(),
                "quantiles": self.quantiles().collect::<std::collections::BTreeMap<_, _>>(),
            },
            "errors": tally.errors(),
            "server_cpu": cpu,
            "each_second": seconds.collect::<Vec<_>>(),
        })
        .to_string()
    }
}
