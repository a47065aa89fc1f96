//! What became of the pings.

use std::fmt;
use std::time::Duration;

use wheelhouse::Instant;

/// Pings sent and answered, and how long the answers took. It displays as the last two lines of
/// ping(8).
#[derive(Debug, Default)]
pub(crate) struct Tally {
    sent: u64,
    received: u64,
    began_at: Option<Instant>,
    ended_at: Option<Instant>,
    shortest: Option<Duration>,
    longest: Duration,
    /// Of the round trips in nanoseconds.
    sum: u128,
    /// Of their squares.
    sum_of_squares: u128,
}

impl Tally {
    pub(crate) const fn sent(&self) -> u64 {
        self.sent
    }

    pub(crate) const fn received(&self) -> u64 {
        self.received
    }

    /// Counts a ping and returns its number.
    pub(crate) fn count_sent(&mut self, now: Instant) -> u64 {
        self.began_at.get_or_insert(now);
        self.sent += 1;
        self.sent
    }

    pub(crate) fn count_received(&mut self, took: Duration) {
        self.received += 1;
        self.shortest = Some(self.shortest.map_or(took, |shortest| shortest.min(took)));
        self.longest = self.longest.max(took);
        self.sum = self.sum.saturating_add(took.as_nanos());
        self.sum_of_squares = self.sum_of_squares.saturating_add(took.as_nanos().pow(2));
    }

    pub(crate) const fn end(&mut self, now: Instant) {
        self.ended_at = Some(now);
    }

    fn elapsed(&self) -> Duration {
        match (self.began_at, self.ended_at) {
            (Some(began_at), Some(ended_at)) => ended_at - began_at,
            _ => Duration::ZERO,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, received, .. } = self;
        let lost = (sent - received) * 100 / sent.max(&1);
        let elapsed = self.elapsed().as_millis();
        write!(f, "{sent} sent, {received} received, {lost}% lost, time {elapsed} ms")?;
        let Some(shortest) = self.shortest else {
            return Ok(());
        };
        let count = u128::from(*received);
        let mean = self.sum / count;
        let deviation = (self.sum_of_squares / count).saturating_sub(mean.pow(2)).isqrt();
        let [min, avg, max, mdev] =
            [shortest.as_nanos(), mean, self.longest.as_nanos(), deviation].map(millis);
        write!(f, "\nrtt min/avg/max/mdev = {min:.3}/{avg:.3}/{max:.3}/{mdev:.3} ms")
    }
}

fn millis(nanos: u128) -> f64 {
    nanos as f64 / 1e6
}
