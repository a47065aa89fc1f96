//! Counters that one thread writes and any may read.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::CloseReason;

/// The counters behind [`Stats`]. The reactor alone writes them, so a plain load and store is
/// enough: no locked instruction on the way of a message.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) turns: Counter,
    pub(crate) accepted: Counter,
    pub(crate) dialled: Counter,
    pub(crate) refused: Counter,
    pub(crate) accept_errors: Counter,
    pub(crate) accept_pauses: Counter,
    pub(crate) connections: Counter,
    pub(crate) requests: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) unsent: Counter,
    pub(crate) stale_events: Counter,
    pub(crate) flush_expired: Counter,
    pub(crate) linger_expired: Counter,
    pub(crate) panics: Counter,
    closed: [Counter; CloseReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            turns: Counter::default(),
            accepted: Counter::default(),
            dialled: Counter::default(),
            refused: Counter::default(),
            accept_errors: Counter::default(),
            accept_pauses: Counter::default(),
            connections: Counter::default(),
            requests: Counter::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            unsent: Counter::default(),
            stale_events: Counter::default(),
            flush_expired: Counter::default(),
            linger_expired: Counter::default(),
            panics: Counter::default(),
            closed: [const { Counter(AtomicU64::new(0)) }; CloseReason::COUNT],
        }
    }
}

impl Counters {
    pub(crate) fn count_close(&self, reason: CloseReason) {
        self.closed[reason.index()].add(1);
    }

    pub(crate) fn snapshot(&self) -> Stats {
        Stats {
            turns: self.turns.get(),
            accepted: self.accepted.get(),
            dialled: self.dialled.get(),
            refused: self.refused.get(),
            accept_errors: self.accept_errors.get(),
            accept_pauses: self.accept_pauses.get(),
            connections: self.connections.get(),
            requests: self.requests.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            unsent: self.unsent.get(),
            stale_events: self.stale_events.get(),
            flush_expired: self.flush_expired.get(),
            linger_expired: self.linger_expired.get(),
            panics: self.panics.get(),
            closed: std::array::from_fn(|index| self.closed[index].get()),
        }
    }
}

/// A number with one writer.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What a reactor has done so far: a copy of its counters, taken without stopping it.
///
/// All count up from the start of the reactor, `connections` aside. It displays as one line of
/// `label=count` for the reasons that occurred.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Turns of the loop.
    pub turns: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections dialled.
    pub dialled: u64,
    /// Connections that [`Handler::on_open`](crate::Handler::on_open) refused.
    pub refused: u64,
    /// Failed accepts, the end of the backlog left out.
    pub accept_errors: u64,
    /// Times accepting paused for want of descriptors or memory.
    pub accept_pauses: u64,
    /// Connections at this moment.
    pub connections: u64,
    /// Requests ended.
    pub requests: u64,
    /// Bytes read from peers, those discarded while closing left out.
    pub bytes_in: u64,
    /// Bytes the kernel took for peers.
    pub bytes_out: u64,
    /// Bytes written by handlers that the kernel never took.
    pub unsent: u64,
    /// Events for connections that were gone.
    pub stale_events: u64,
    /// Closing connections reset because their last output stood still or left slower than
    /// [`Limits::flush_rate`](crate::Limits::flush_rate).
    pub flush_expired: u64,
    /// Lingering connections whose peer did not close in time.
    pub linger_expired: u64,
    /// Callbacks that panicked.
    pub panics: u64,
    closed: [u64; CloseReason::COUNT],
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
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "closed={}", self.closed_total())?;
        for (label, count) in self.closed_by_label().filter(|(_, count)| *count > 0) {
            write!(f, " {label}={count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Timeout;

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
}
