//! The log lines of a connection's life.

use tracing::Level;

use crate::address::Address;
use crate::core::lifecycle::State;
use crate::core::record::Record;
use crate::log::{debug, hears};

/// Logs the state that a connection has just come to.
#[inline]
pub(crate) fn log_state(record: &Record) {
    if hears(Level::DEBUG) {
        write_state(record);
    }
}

#[cold]
#[inline(never)]
fn write_state(record: &Record) {
    let Record { id, requests, bytes_in, bytes_out, .. } = record;
    let peer = (record.peer != Address::Unnamed).then(|| tracing::field::display(&record.peer));
    let reason = record.reason.map(tracing::field::display);
    match record.state() {
        State::Connecting => debug!(%id, peer, origin = ?record.origin(), "connecting"),
        State::Connected => debug!(%id, peer, "connected"),
        State::Idle => debug!(%id, peer, requests, "idle"),
        State::Closing => debug!(%id, peer, reason, "closing"),
        State::Closed => debug!(%id, peer, reason, requests, bytes_in, bytes_out, "closed"),
    }
}
