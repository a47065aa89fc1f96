//! What was measured: latencies, replies over time, and what went wrong.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

/// The greatest latency that is recorded, in nanoseconds; a greater one counts as this.
const LATENCY_MAX: u64 = 3_600_000_000_000;

/// Significant digits of a latency.
const DIGITS: u8 = 3;

/// One second of a measurement; the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Second {
    /// When it was over, in seconds since the beginning.
    pub(crate) ended_at: f64,
    /// Replies a second.
    pub(crate) rate: f64,
    pub(crate) median: u64,
    pub(crate) p99: u64,
    pub(crate) max: u64,
}

/// The latencies and counts of one measurement. Times are in nanoseconds.
#[derive(Debug)]
pub(crate) struct Tally {
    latencies: Histogram<u64>,
    /// Those of the second that is not over.
    latest: Histogram<u64>,
    seconds: Vec<Second>,
    errors: BTreeMap<&'static str, u64>,
    pub(crate) bytes: u64,
    /// Replies that came before the measurement ended.
    in_time: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let histogram = || Histogram::new_with_max(LATENCY_MAX, DIGITS).expect("a valid range");
        Self {
            latencies: histogram(),
            latest: histogram(),
            seconds: Vec::new(),
            errors: BTreeMap::new(),
            bytes: 0,
            in_time: 0,
        }
    }

    /// A reply has come, before the measurement ended or behind that.
    #[inline]
    pub(crate) fn count_reply(&mut self, latency: u64, bytes: usize, in_time: bool) {
        self.in_time += u64::from(in_time);
        self.latencies.saturating_record(latency);
        self.latest.saturating_record(latency);
        self.bytes += bytes as u64;
    }

    pub(crate) fn count_error(&mut self, kind: &'static str, count: u64) {
        if count > 0 {
            let counted = self.errors.entry(kind).or_default();
            *counted = counted.saturating_add(count);
        }
    }

    /// Another second is over, so many seconds after the beginning, or what there is of it. Less than
    /// a tenth says nothing.
    pub(crate) fn end_second(&mut self, ended_at: f64) {
        let length = ended_at - self.seconds.last().map_or(0.0, |second| second.ended_at);
        if length < 0.1 {
            return;
        }
        let latest = &mut self.latest;
        self.seconds.push(Second {
            ended_at,
            rate: latest.len() as f64 / length,
            median: latest.value_at_quantile(0.5),
            p99: latest.value_at_quantile(0.99),
            max: latest.max(),
        });
        latest.reset();
    }

    /// Adds what another one counted, but for its seconds.
    pub(crate) fn add(&mut self, other: &Self) {
        self.latencies.add(&other.latencies).expect("they have the same range");
        self.bytes += other.bytes;
        self.in_time += other.in_time;
        for (kind, count) in &other.errors {
            self.count_error(kind, *count);
        }
    }

    pub(crate) fn replies(&self) -> u64 {
        self.latencies.len()
    }

    /// How many came before the measurement ended. The server's rate is that of these.
    pub(crate) const fn in_time(&self) -> u64 {
        self.in_time
    }

    pub(crate) const fn latencies(&self) -> &Histogram<u64> {
        &self.latencies
    }

    pub(crate) fn seconds(&self) -> &[Second] {
        &self.seconds
    }

    pub(crate) fn error_count(&self) -> u64 {
        self.errors.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    pub(crate) const fn errors(&self) -> &BTreeMap<&'static str, u64> {
        &self.errors
    }
}
