//! One end of a connection, and what is on its way to the other.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;

use super::{End, Holder, Link, ReadMode};
use crate::address::Address;
use crate::backend::{Readiness, Token};
use crate::time::Instant;

/// A connection, both ends of it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) serial: u32,
    /// The SYN has been answered.
    pub(super) open: bool,
    pub(super) ends: [Side; 2],
    /// What is on its way from each end to the other.
    pub(super) paths: [Path; 2],
}

#[derive(Debug)]
pub(super) struct Path {
    pub(super) queue: VecDeque<(Instant, Segment)>,
    pub(super) link: Link,
    pub(super) busy_until: Instant,
    pub(super) last_at: Instant,
    /// Something was held back, and is sent again.
    pub(super) retries: u32,
    pub(super) stuck_since: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Segment {
    pub(super) bytes: Vec<u8>,
    pub(super) fin: bool,
    pub(super) reset: bool,
    /// All bytes up to here have arrived at the sender of this.
    pub(super) acked: u64,
    /// It takes bytes up to here.
    pub(super) window_edge: u64,
}

impl Segment {
    /// Whether the other end says that it has come, so that it is sent again if that does not
    /// arrive.
    pub(super) fn is_acknowledged(&self) -> bool {
        !self.bytes.is_empty() || self.fin
    }
}

/// What one end of a connection is like.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) holder: Holder,
    pub(super) address: Address,
    /// A script holds it, and may ask for what came of it.
    pub(super) held: bool,
    /// The process has closed it.
    pub(super) closed: bool,
    /// Nothing is sent or received any more.
    pub(super) dead: bool,
    /// Its side of the handshake is done.
    pub(super) established: bool,
    pub(super) error: Option<i32>,
    pub(super) end: Option<End>,
    /// Bytes that a peer will write as room comes.
    pub(super) backlog: VecDeque<u8>,
    /// Bytes written and not acknowledged, of which the first `in_flight` have been sent.
    pub(super) out: VecDeque<u8>,
    pub(super) in_flight: usize,
    pub(super) out_max: usize,
    /// The position of the first byte in `out`.
    pub(super) acked: u64,
    /// The other end takes bytes up to here.
    pub(super) window_edge: u64,
    pub(super) finish: bool,
    pub(super) fin_sent: bool,
    /// Bytes that arrived and were not read.
    pub(super) input: VecDeque<u8>,
    pub(super) input_max: usize,
    /// How many bytes have arrived.
    pub(super) arrived: u64,
    /// The edge last announced to the other end.
    pub(super) advertised_edge: u64,
    pub(super) eof: bool,
    pub(super) read_mode: ReadMode,
    pub(super) draining: bool,
    /// What a peer with a rate may read already: so many [`SIPS`](super::peers::SIPS)ths of a byte.
    pub(super) allowance: u64,
    /// What a peer has read and not given to its script.
    pub(super) received: VecDeque<u8>,
    /// How many bytes the process wrote and read.
    pub(super) written: u64,
    pub(super) read: u64,
    pub(super) user_timeout: Option<Duration>,
    pub(super) token: Option<Token>,
    pub(super) fd: Option<u32>,
    pub(super) queued: bool,
    pub(super) pending: Readiness,
    pub(super) armed: Readiness,
    /// What will be announced again.
    pub(super) later: Readiness,
    /// A write was cut short.
    pub(super) wants_room: bool,
    /// Bytes that were never acknowledged before it died: SIOCOUTQ goes on counting them.
    pub(super) lost: u64,
    pub(super) ledger: Ledger,
}

/// What calls on a socket returned to a process, and what its handler did with it.
#[derive(Debug, Default)]
pub(in crate::sim) struct Ledger {
    /// Bytes that were read and that the handler has not used.
    pub(in crate::sim) unused: Vec<u8>,
    /// Bytes at the front of that which its latest `on_data` wanted to be skipped.
    pub(in crate::sim) to_skip: u64,
    /// All that callbacks had wanted to be skipped then, whatever became of it.
    pub(in crate::sim) skips: u64,
    /// Bytes that callbacks left to be written.
    pub(in crate::sim) promised: BytesMut,
    /// The limit of its output at its last callback.
    pub(in crate::sim) output_max: usize,
    /// A read said that no more bytes will come.
    pub(in crate::sim) eof: bool,
    /// A call failed for good.
    pub(in crate::sim) failed: bool,
    /// The handler took the connection.
    pub(in crate::sim) served: bool,
}

impl Side {
    pub(super) fn new(holder: Holder, address: Address, buffers: Buffers) -> Self {
        Self {
            holder,
            address,
            held: false,
            closed: false,
            dead: false,
            established: false,
            error: None,
            end: None,
            backlog: VecDeque::new(),
            out: VecDeque::new(),
            in_flight: 0,
            out_max: buffers.send,
            acked: 0,
            window_edge: 0,
            finish: false,
            fin_sent: false,
            input: VecDeque::new(),
            input_max: buffers.receive,
            arrived: 0,
            advertised_edge: buffers.receive as u64,
            eof: false,
            read_mode: ReadMode::All,
            draining: false,
            allowance: 0,
            received: VecDeque::new(),
            written: 0,
            read: 0,
            user_timeout: None,
            token: None,
            fd: None,
            queued: false,
            pending: Readiness::default(),
            armed: BOTH,
            later: Readiness::NONE,
            wants_room: false,
            lost: 0,
            ledger: Ledger::default(),
        }
    }

    /// The edge that its free buffer allows.
    pub(super) fn new_edge(&self) -> u64 {
        self.arrived + (self.input_max - self.input.len()) as u64
    }

    pub(super) fn is_readable(&self) -> bool {
        !self.input.is_empty() || self.eof || self.dead || self.error.is_some()
    }

    /// tcp(7) systems announce room when a third of the buffer is free.
    pub(super) fn has_room(&self) -> bool {
        self.dead || self.error.is_some() || self.out.len() <= self.out_max / 3 * 2
    }

    /// Nothing of what was to be sent will be.
    pub(super) fn drop_output(&mut self) {
        self.lost += self.out.len() as u64;
        self.out.clear();
        self.in_flight = 0;
        self.backlog.clear();
    }

    /// All that it is ready for, as poll(2) would say.
    pub(super) fn level(&self) -> Readiness {
        let mut ready = Readiness::default();
        if self.is_readable() {
            ready = ready.and(Readiness::READABLE);
        }
        let takes = self.established && (self.has_room() || self.finish);
        if takes || self.error.is_some() || self.dead {
            ready = ready.and(Readiness::WRITABLE);
        }
        if self.eof || self.dead {
            ready = ready.and(Readiness::HANGUP);
        }
        if self.error.is_some() {
            ready = ready.and(Readiness::ERROR).and(Readiness::HANGUP);
        }
        ready
    }
}

pub(in crate::sim) const BOTH: Readiness = Readiness::READABLE.and(Readiness::WRITABLE);

/// The sizes of a socket's buffers in bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::sim) struct Buffers {
    pub(in crate::sim) send: usize,
    pub(in crate::sim) receive: usize,
}
