//! Counters that one thread writes and any may read.

use std::fmt::{self, Display};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::close::CloseReason;
use crate::core::budget::Step;
use crate::core::deadlines::Deadline;
use crate::core::lifecycle::State;

/// Defines every number once: its name, what it means, and whether it only counts up (`counter`) or
/// goes up and down (`gauge`).
macro_rules! numbers {
    ($(#[doc = $help:literal] $(#[doc = $more:literal])* $name:ident: $kind:ident;)*) => {
        /// The numbers behind [`Stats`]. The reactor alone writes them, so a plain load and store is
        /// enough: no locked instruction on the way of a message.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            pub(crate) states: States,
            closed: Counts<{ CloseReason::COUNT }>,
            fired: Counts<{ Deadline::ALL.len() }>,
            long_turns: Counts<LONG_TURNS>,
            long_turns_nanos: Counter,
            worst_step: Counter,
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats {
                    $($name: self.$name.get(),)*
                    states: self.states.get(),
                    closed: self.closed.get(),
                    fired: self.fired.get(),
                    long_turns: self.long_turns.get(),
                    long_turns_nanos: self.long_turns_nanos.get(),
                    worst_step: self.worst_step.get(),
                }
            }
        }

        /// What a reactor has done so far: a copy of its counters, taken without stopping or waking
        /// it. Its numbers are read one by one, so that one may be newer than another by a turn.
        ///
        /// It displays as one line of `label=count` for the reasons that occurred, and as
        /// [Prometheus](Stats::prometheus) text.
        #[derive(Clone, Debug, Eq, PartialEq)]
        #[non_exhaustive]
        pub struct Stats {
            $(#[doc = $help] $(#[doc = $more])* pub $name: u64,)*
            states: [u64; STATES],
            closed: [u64; CloseReason::COUNT],
            fired: [u64; Deadline::ALL.len()],
            long_turns: [u64; LONG_TURNS],
            long_turns_nanos: u64,
            worst_step: u64,
        }

        impl Stats {
            /// The name, kind, meaning and value of every plain number.
            pub(crate) fn numbers(&self) -> impl Iterator<Item = (&'static str, &'static str, &'static str, u64)> {
                [$((stringify!($name), stringify!($kind), $help, self.$name),)*].into_iter()
            }
        }
    };
}

numbers! {
    /// Turns of the loop.
    turns: counter;
    /// Connections accepted.
    accepted: counter;
    /// Connections dialled.
    dialled: counter;
    /// Connections that the handler refused.
    /// See [`Handler::on_open`](crate::Handler::on_open).
    refused: counter;
    /// Connections refused because there were as many as there may be.
    refused_full: counter;
    /// Connections refused because their client had as many as it may.
    refused_client: counter;
    /// Connections refused because their client came too often.
    refused_client_rate: counter;
    /// Failed accepts, the end of the backlog left out.
    accept_errors: counter;
    /// Times accepting paused for want of descriptors or memory.
    accept_pauses: counter;
    /// Times accepting waited for the accept rate.
    accept_throttles: counter;
    /// Connections at this moment.
    connections: gauge;
    /// The most connections there may be, exempt ones aside.
    connections_max: gauge;
    /// Requests ended.
    requests: counter;
    /// Bytes read from peers, those discarded while closing left out.
    bytes_in: counter;
    /// Bytes the kernel took for peers.
    bytes_out: counter;
    /// Bytes written by handlers that the kernel never took.
    unsent: counter;
    /// Bytes unread and queued at this moment, of all connections.
    buffered: gauge;
    /// Idle connections that were pinged.
    health_checks: counter;
    /// Connections of all pools at this moment.
    /// Dialled, idle, leased or closing.
    pool_connections: gauge;
    /// Connections of pools that are leased at this moment.
    pool_leased: gauge;
    /// How many wait for a connection of a pool at this moment.
    pool_waiting: gauge;
    /// Leases of connections of pools.
    pool_leases: counter;
    /// Connections of pools that were asked for and not leased.
    /// Too many waited, none was free in time, or none could be dialled.
    pool_failures: counter;
    /// Dials and handshakes of pools that failed.
    pool_dials_failed: counter;
    /// Endpoints that are available at this moment.
    endpoints_up: gauge;
    /// Endpoints that are down or withdrawn at this moment, or have yet to pass a check.
    endpoints_down: gauge;
    /// Endpoints that are up and ejected at this moment.
    endpoints_ejected: gauge;
    /// Checks of endpoints that passed or failed.
    endpoint_checks: counter;
    /// Checks of endpoints that failed.
    endpoint_checks_failed: counter;
    /// Dials, connections and exchanges with endpoints that failed.
    /// Checks left out.
    endpoint_failures: counter;
    /// Times an endpoint was ejected because of such failures.
    endpoint_ejections: counter;
    /// Times an endpoint was not ejected as too much of its group was down or ejected.
    endpoint_ejections_prevented: counter;
    /// Pairs of connections between which the reactor has passed bytes on.
    /// See [`Conn::relay_with`](crate::Conn::relay_with).
    relays: counter;
    /// Events for connections that were gone.
    stale_events: counter;
    /// Closing connections reset because their last output left too slowly.
    /// [`Limits::flush_rate`](crate::Limits::flush_rate) says what that is.
    flush_expired: counter;
    /// Lingering connections whose peer did not close in time.
    linger_expired: counter;
    /// Lingering connections that were evicted for others.
    linger_evicted: counter;
    /// Connections of the library's own services at this moment.
    /// Of the metrics; none of the other numbers counts them.
    service_connections: gauge;
    /// Connections that a service of the library refused as it had as many as it may.
    service_refused: counter;
    /// Connections that a service ended to make room for others.
    service_evicted: counter;
    /// Connections that a service ended as a question took too long to come, or its reply to leave.
    service_expired: counter;
    /// Samples and families of the application's metrics that were left out.
    /// [`MetricsWriter`](crate::metrics::MetricsWriter) says when.
    metrics_dropped: counter;
    /// Callbacks that panicked.
    panics: counter;
    /// Log events lost because the subscriber panicked.
    /// Of the whole process: it is the same number for all of its reactors.
    log_failures: counter;
    /// Callbacks that kept the loop waiting.
    /// [`Config::stall_report`](crate::Config::stall_report) says from when on.
    stalls: counter;
    /// The longest callback that kept the loop waiting.
    /// In nanoseconds.
    longest_callback: gauge;
    /// The longest turn, from 8 ms on, waiting left out.
    /// In nanoseconds; [`Stats::worst_step`] names the step that took most of it.
    worst_turn: gauge;
}

const STATES: usize = 5;

impl Counters {
    pub(crate) fn count_close(&self, reason: CloseReason) {
        self.closed.of[reason.index()].add(1);
    }

    /// Deadlines that passed, of all kinds.
    #[cfg(feature = "sim")]
    pub(crate) fn fired_total(&self) -> u64 {
        self.fired.get().into_iter().sum()
    }

    pub(crate) fn count_fired(&self, deadline: Deadline) {
        self.fired.of[deadline as usize].add(1);
    }

    /// Counts a turn that was long enough to be seen.
    pub(crate) fn note_long_turn(&self, nanos: u64, step: Step) {
        if nanos > self.worst_turn.get() {
            self.worst_turn.set(nanos);
            self.worst_step.set(step as u64);
        }
        let bucket = LONG_TURN_MILLIS.partition_point(|millis| millis * 1_000_000 < nanos);
        self.long_turns.of[bucket].add(1);
        self.long_turns_nanos.add(nanos);
    }
}

/// The upper ends of the classes of turns, in milliseconds. Shorter turns than the first are not
/// timed, longer ones than the last are in a class of their own.
const LONG_TURN_MILLIS: [u64; LONG_TURNS - 1] = [16, 32, 64, 128, 256, 512, 1_024, 4_096];
const LONG_TURNS: usize = 9;

/// The shortest turn that is timed, in seconds.
const SHORT_TURN: f64 = 0.008;

/// A number with one writer.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    #[inline]
    pub(crate) fn sub(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(count), Relaxed);
    }

    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Sets it, unless it is greater already.
    pub(crate) fn raise(&self, value: u64) {
        self.set(self.get().max(value));
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counters of a kind.
#[derive(Debug)]
struct Counts<const N: usize> {
    of: [Counter; N],
}

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self { of: [const { Counter(AtomicU64::new(0)) }; N] }
    }
}

impl<const N: usize> Counts<N> {
    fn get(&self) -> [u64; N] {
        std::array::from_fn(|index| self.of[index].get())
    }
}

/// How many connections are in each state.
#[derive(Debug, Default)]
pub(crate) struct States(Counts<STATES>);

impl States {
    /// A connection has moved.
    pub(crate) fn change(&self, from: State, to: State) {
        self.0.of[from as usize].sub(1);
        self.0.of[to as usize].add(1);
    }

    pub(crate) fn of(&self, state: State) -> u64 {
        self.0.of[state as usize].get()
    }

    fn get(&self) -> [u64; STATES] {
        self.0.get()
    }
}

impl Stats {
    /// Connections that ended for a reason with the same [label](CloseReason::label) as `reason`.
    pub const fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason.index()]
    }

    /// Connections that ended.
    pub fn closed_total(&self) -> u64 {
        self.closed.iter().sum()
    }

    /// The count of every close reason, by label.
    pub fn closed_by_label(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.closed
            .iter()
            .enumerate()
            .map(|(index, count)| (CloseReason::of_index(index).label(), *count))
    }

    /// Deadlines that passed, by name; what followed depends on the deadline.
    pub fn deadlines_by_label(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Deadline::ALL.into_iter().map(|deadline| (deadline.label(), self.fired[deadline as usize]))
    }

    /// The step that took most of [the longest turn](Stats::worst_turn): `events`, `ready`,
    /// `accept`, `services`, `posts`, `deadlines`, `checks`, `pools`, `dials`, `reached`, `closes` or `shutdown`, as
    /// `docs/architecture.md` lists them. `None` while no turn has been long.
    pub const fn worst_step(&self) -> Option<&'static str> {
        if self.worst_turn == 0 { None } else { Some(Step::of_index(self.worst_step).label()) }
    }

    /// Connections in `state` at this moment.
    pub const fn in_state(&self, state: State) -> u64 {
        match state {
            State::Connected => {
                let [connecting, _, idle, closing, _] = self.states;
                self.connections.saturating_sub(connecting + idle + closing)
            }
            State::Closed => 0,
            State::Connecting | State::Idle | State::Closing => self.states[state as usize],
        }
    }

    /// All numbers in the [text format] that Prometheus collects.
    ///
    /// Lengths of turns are known from 8 ms on: shorter ones count as nothing in the sum.
    ///
    /// [text format]: https://prometheus.io/docs/instrumenting/exposition_formats/
    pub fn prometheus(&self) -> impl Display {
        Prometheus(self)
    }
}

impl Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "closed={}", self.closed_total())?;
        for (label, count) in self.closed_by_label().filter(|(_, count)| *count > 0) {
            write!(f, " {label}={count}")?;
        }
        Ok(())
    }
}

struct Prometheus<'a>(&'a Stats);

impl Display for Prometheus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.0;
        for (name, kind, help, value) in stats.numbers() {
            let (name, value) = match name {
                "connections" => continue,
                "worst_turn" => continue,
                "longest_callback" => ("longest_callback_seconds", seconds(value)),
                "buffered" => ("buffered_bytes", value.to_string()),
                _ => (name, value.to_string()),
            };
            let end = if kind == "counter" { "_total" } else { "" };
            head(f, &format!("{name}{end}"), kind, help.trim())?;
            writeln!(f, "wheelhouse_{name}{end} {value}")?;
        }
        head(
            f,
            "worst_turn_seconds",
            "gauge",
            "The longest turn, and the step that took most of it.",
        )?;
        let (worst, step) = (seconds(stats.worst_turn), stats.worst_step().unwrap_or("none"));
        writeln!(f, "wheelhouse_worst_turn_seconds{{step=\"{step}\"}} {worst}")?;
        head(f, "connections", "gauge", "Connections at this moment, by state.")?;
        for state in [State::Connecting, State::Connected, State::Idle, State::Closing] {
            let label = format!("{state:?}").to_lowercase();
            writeln!(f, "wheelhouse_connections{{state=\"{label}\"}} {}", stats.in_state(state))?;
        }
        head(f, "closed_total", "counter", "Connections that ended, by reason.")?;
        for (label, count) in stats.closed_by_label() {
            writeln!(f, "wheelhouse_closed_total{{reason=\"{label}\"}} {count}")?;
        }
        head(f, "deadlines_total", "counter", "Deadlines that passed.")?;
        for (label, count) in stats.deadlines_by_label() {
            writeln!(f, "wheelhouse_deadlines_total{{deadline=\"{label}\"}} {count}")?;
        }
        stats.write_turns(f)
    }
}

impl Stats {
    fn write_turns(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        head(f, "turn_seconds", "histogram", "How long turns lasted, waiting left out.")?;
        let mut count = self.turns.saturating_sub(self.long_turns.iter().sum());
        writeln!(f, "wheelhouse_turn_seconds_bucket{{le=\"{SHORT_TURN}\"}} {count}")?;
        for (millis, turns) in LONG_TURN_MILLIS.iter().zip(self.long_turns) {
            count += turns;
            let end = seconds(millis * 1_000_000);
            writeln!(f, "wheelhouse_turn_seconds_bucket{{le=\"{end}\"}} {count}")?;
        }
        count += self.long_turns[LONG_TURNS - 1];
        writeln!(f, "wheelhouse_turn_seconds_bucket{{le=\"+Inf\"}} {count}")?;
        writeln!(f, "wheelhouse_turn_seconds_sum {}", seconds(self.long_turns_nanos))?;
        writeln!(f, "wheelhouse_turn_seconds_count {count}")
    }
}

fn head(f: &mut fmt::Formatter<'_>, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(f, "# HELP wheelhouse_{name} {help}\n# TYPE wheelhouse_{name} {kind}")
}

fn seconds(nanos: u64) -> String {
    (nanos as f64 / 1e9).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::Timeout;

    #[test]
    fn displays_the_reasons_that_occurred() {
        let counters = Counters::default();
        counters.count_close(CloseReason::PeerEof);
        counters.count_close(CloseReason::PeerEof);
        counters.count_close(CloseReason::Timeout(Timeout::Idle));
        let stats = counters.snapshot();
        assert_eq!(stats.to_string(), "closed=3 peer_eof=2 idle_timeout=1");
        assert_eq!(stats.closed(CloseReason::PeerEof), 2);
    }

    #[test]
    fn prometheus_gets_every_number_once_and_buckets_that_add_up() {
        let counters = Counters::default();
        counters.turns.add(10);
        counters.connections.set(7);
        counters.states.change(State::Closed, State::Idle);
        counters.states.change(State::Closed, State::Closing);
        counters.count_fired(Deadline::LingerRead);
        for millis in [9, 16, 17, 5_000] {
            counters.note_long_turn(millis * 1_000_000, Step::Dials);
        }
        let text = counters.snapshot().prometheus().to_string();
        for line in [
            "# TYPE wheelhouse_turns_total counter",
            "wheelhouse_turns_total 10",
            "wheelhouse_connections{state=\"idle\"} 1",
            "wheelhouse_connections{state=\"connected\"} 5",
            "wheelhouse_deadlines_total{deadline=\"linger_read\"} 1",
            "wheelhouse_turn_seconds_bucket{le=\"0.008\"} 6",
            "wheelhouse_turn_seconds_bucket{le=\"0.016\"} 8",
            "wheelhouse_turn_seconds_bucket{le=\"4.096\"} 9",
            "wheelhouse_turn_seconds_bucket{le=\"+Inf\"} 10",
            "wheelhouse_turn_seconds_sum 5.042",
            "wheelhouse_worst_turn_seconds{step=\"dials\"} 5",
            "wheelhouse_turn_seconds_count 10",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
        let types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let distinct: std::collections::BTreeSet<_> = types.iter().collect();
        assert_eq!(types.len(), distinct.len());
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (_, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
        }
    }
}
