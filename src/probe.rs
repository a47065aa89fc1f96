//! Static tracepoints: places at which `perf`, bpftrace or gdb can watch a running server.
//!
//! All of them are defined here, and `docs/perf.md` has them in a table. With the feature `usdt`, on
//! Linux, each call of one is a `nop` and a note in the program that names it and says where its
//! arguments are; a tool that watches it puts a breakpoint in place of the `nop`. Without the feature,
//! and on other systems, a call is nothing.
//!
//! There is no `unsafe` here. The assembly is the macro's of the crate `probe`, which reads registers
//! and does nothing; nothing that we pass to it could make it do more.

use std::io;

use crate::close::CloseReason;
use crate::id::{ConnId, ListenerId, PoolId};

/// Defines every probe once: when it fires; its name; what the loop passes; what a tool sees of that,
/// each as a signed number of 64 bits.
macro_rules! probes {
    ($(
        $(#[$doc:meta])*
        $probe:ident($($argument:ident: $type:ty),*) => $($name:ident: $value:expr),*;
    )*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub(crate) fn $probe($($argument: $type),*) {
                fire!($probe, $($value),*);
            }
        )*
    };
}

#[cfg(all(feature = "usdt", target_os = "linux"))]
macro_rules! fire {
    ($probe:ident, $($value:expr),*) => {
        ::probe::probe!(wheelhouse, $probe, $($value),*)
    };
}

// The values are named, so that nothing is unused; none is computed.
#[cfg(not(all(feature = "usdt", target_os = "linux")))]
macro_rules! fire {
    ($probe:ident, $($value:expr),*) => {
        if false {
            let _ = ($($value,)*);
        }
    };
}

// Text is passed as its address and its length. An id that is not there is 0, which is no id.
probes! {
    /// A turn begins: a wait is over, or events are left of the one before.
    turn_start(events: usize, served: usize) => events: events - served;
    /// A turn is over: all of its steps have had their budget.
    turn_end(connections: usize) => connections: connections;
    /// An accepted connection got its place.
    accept(conn: ConnId, listener: ListenerId) => conn: conn.to_bits(), listener: listener.0;
    /// A connection moved from one state to another; the reason is there from `Closing` on.
    transition(conn: ConnId, from: u8, to: u8, reason: Option<CloseReason>) =>
        conn: conn.to_bits(), from: from, to: to,
        reason: text(label(reason)), reason_len: label(reason).len();
    /// A socket was read: the room there was, and the bytes that came or the negative error.
    read(conn: ConnId, room: usize, outcome: &io::Result<usize>) =>
        conn: conn.to_bits(), room: room, outcome: number(outcome);
    /// A socket was written to: the bytes offered, and those taken or the negative error.
    write(conn: ConnId, offered: usize, outcome: &io::Result<usize>) =>
        conn: conn.to_bits(), offered: offered, outcome: number(outcome);
    /// A deadline was due and acts: its name, and by how much it is late.
    deadline(conn: ConnId, deadline: &'static str, late: u64) =>
        conn: conn.to_bits(), deadline: text(deadline), deadline_len: deadline.len(),
        late_nanos: late;
    /// A callback begins; those of the whole loop have no connection.
    callback_start(conn: Option<ConnId>, callback: &'static str) =>
        conn: bits(conn), callback: text(callback), callback_len: callback.len();
    /// A callback returned.
    callback_end(conn: Option<ConnId>, callback: &'static str) =>
        conn: bits(conn), callback: text(callback), callback_len: callback.len();
    /// A connection of a pool is asked for.
    acquire(owner: Option<ConnId>, pool: PoolId) => owner: bits(owner), pool: pool.0;
    /// What was asked for is leased.
    lease(owner: Option<ConnId>, conn: ConnId, pool: PoolId) =>
        owner: bits(owner), conn: conn.to_bits(), pool: pool.0;
    /// A lease is given back, or to be cleaned first.
    release(conn: ConnId, pool: PoolId, unclean: bool) =>
        conn: conn.to_bits(), pool: pool.0, unclean: unclean;
}

/// Text by its address.
#[inline(always)]
const fn text(text: &'static str) -> *const u8 {
    text.as_ptr()
}

#[inline(always)]
fn bits(conn: Option<ConnId>) -> u64 {
    conn.map_or(0, ConnId::to_bits)
}

/// Nothing while there is no reason: most transitions are a message's.
#[inline(always)]
fn label(reason: Option<CloseReason>) -> &'static str {
    reason.map_or("", CloseReason::label)
}

/// The bytes, or the error of the system as a negative number.
#[inline(always)]
fn number(outcome: &io::Result<usize>) -> i64 {
    match outcome {
        Ok(count) => *count as i64,
        Err(error) => -i64::from(error.raw_os_error().unwrap_or(i32::MAX)),
    }
}
