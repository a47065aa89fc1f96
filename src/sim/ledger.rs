//! What is checked of a connection while its handler has it: that its bytes are those of its socket,
//! and that no deadline is early.

use std::io::IoSlice;
use std::time::Duration;

use bytes::BytesMut;

use super::net::Net;
use crate::backend::Token;
use crate::close::{CloseMode, CloseReason, Timeout};
use crate::conn::Conn;
use crate::context::Context;
use crate::core::deadlines::Deadline;
use crate::core::flags::Flags;
use crate::core::record::Record;
use crate::id::ConnId;
use crate::time::Instant;

/// Pieces of queued output that are checked.
const PIECES: usize = 256;

/// How long a connection past its lifetime may go on.
const RETIREMENT: Duration = Duration::from_secs(30);

/// A connection as the network knows it: a machine and a token there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    pub(super) machine: usize,
    pub(super) id: ConnId,
}

impl Account {
    const fn token(self) -> Token {
        Token::of_conn(self.id)
    }

    /// `on_data` has input, and comes when all is skipped that was to be. After that it may have
    /// none.
    pub(super) fn check_data(self, net: &mut Net, cx: &Context<'_>, input: &BytesMut) {
        let Some(ledger) = net.ledger(self.machine, self.token()) else { return };
        let early = ledger.to_skip > ledger.unused.len() as u64;
        let skips_later = cx.shared.skips_of(self.id) != ledger.skips;
        let vain = input.is_empty() && ledger.to_skip == 0 && !skips_later;
        if early {
            net.fail_check(format!("{} has on_data before its input is skipped", self.id));
        } else if vain {
            net.fail_check(format!("{} has on_data without input", self.id));
        }
        self.check_input(net, cx, input);
    }

    /// What a handler is given is what its socket gave and the handler has neither used nor
    /// skipped, all of it.
    pub(super) fn check_input(self, net: &mut Net, cx: &Context<'_>, input: &BytesMut) {
        let Some(ledger) = net.ledger(self.machine, self.token()) else { return };
        let skipped = ledger.unused.len().min(ledger.to_skip as usize);
        ledger.unused.drain(..skipped);
        ledger.to_skip = 0;
        // Any callback may have wanted more to be skipped since, and how much of that was there before
        // is not known.
        let skips = cx.shared.skips_of(self.id);
        let same = if std::mem::replace(&mut ledger.skips, skips) != skips {
            ledger.unused.ends_with(input)
        } else {
            ledger.unused == input[..]
        };
        if !same {
            let (given, had) = (input.len(), ledger.unused.len());
            let what = format!(
                "{} got {given} bytes that are not the {had} which its socket gave and it has not \
                 used",
                self.id
            );
            net.fail_check(what);
        }
    }

    /// The handler took the connection: from here on no end may destroy what it wrote.
    pub(super) fn note_served(self, net: &mut Net) {
        if let Some(ledger) = net.ledger(self.machine, self.token()) {
            ledger.served = true;
        }
    }

    /// A handler is notified of the end only after its socket has returned it.
    pub(super) fn check_eof(self, net: &mut Net) {
        if net.ledger(self.machine, self.token()).is_some_and(|ledger| !ledger.eof) {
            net.fail_check(format!("{} was notified of an end that was not read", self.id));
        }
    }

    /// What a handler left it is given again.
    pub(super) fn note_unused(self, net: &mut Net, input: &BytesMut) {
        if let Some(ledger) = net.ledger(self.machine, self.token()) {
            ledger.unused.clear();
            ledger.unused.extend_from_slice(input);
        }
    }

    /// What `on_data` wants to be skipped comes right after what it left.
    pub(super) fn note_skip(self, net: &mut Net, conn: &mut Conn<'_>) {
        let record = conn.cx().shared.table.get(self.id);
        if let Some(ledger) = net.ledger(self.machine, self.token()) {
            ledger.to_skip = record.map_or(0, Record::to_skip);
            ledger.skips = conn.cx().shared.skips_of(self.id);
        }
    }

    /// What a callback left to be written is what the socket gets next. What others wrote to the
    /// connection is seen when its own callback runs.
    pub(super) fn note_output(self, net: &mut Net, conn: &mut Conn<'_>) {
        let Some(ledger) = net.ledger(self.machine, self.token()) else { return };
        let shared = &*conn.cx().shared;
        let Some(record) = shared.table.get(self.id) else { return };
        // What is queued for a connection that is to be reset may be dropped before that.
        let ends = record.requested().or(record.reason);
        if ends.is_some_and(|reason| reason.mode() == CloseMode::Reset) {
            return;
        }
        let mut pieces = [IoSlice::new(&[]); PIECES];
        let filled = record.output().map_or(0, |output| output.front(&mut pieces));
        let mut queued = Vec::with_capacity(record.queued() + shared.scratch.len());
        pieces[..filled].iter().for_each(|piece| queued.extend_from_slice(piece));
        let whole = queued.len() == record.queued();
        if shared.scratch_owner == Some(self.id) && whole {
            queued.extend_from_slice(&shared.scratch);
        }
        if ledger.failed && queued.is_empty() {
            // What a socket that failed cannot send may be dropped before the end.
            ledger.promised.clear();
            return;
        }
        let known = ledger.promised.len().min(queued.len());
        let lost = known < ledger.promised.len() && whole;
        if lost || ledger.promised[..known] != queued[..known] {
            net.fail_check(format!("{} has other bytes queued than it wrote", self.id));
            return;
        }
        // What others wrote since its last callback may have come before the limit was lowered.
        let output_max = shared.bounds.output_max;
        let limit = output_max.max(std::mem::replace(&mut ledger.output_max, output_max));
        if known >= limit && queued.len() > known {
            net.fail_check(format!("{} took more output than its limit allows", self.id));
            return;
        }
        ledger.promised.extend_from_slice(&queued[known..]);
    }
}

/// Says what is wrong if a connection ends for a timeout that has not passed: by its own clocks, or
/// by what can be seen of it from outside.
pub(super) fn check_timeout(
    cx: &Context<'_>,
    id: ConnId,
    reason: CloseReason,
    opened_at: Instant,
    active_at: Instant,
) -> Result<(), String> {
    let CloseReason::Timeout(timeout) = reason else { return Ok(()) };
    let shared = &*cx.shared;
    let Some(record) = shared.table.get(id) else { return Ok(()) };
    // A pool ends its connections by times of its own.
    if record.pooled().is_some() && timeout != Timeout::Connect {
        return Ok(());
    }
    let durations = record.durations(&shared.profiles);
    let now = shared.now;
    // The clocks of these two begin anew where they end a connection.
    let (clocks, shortest) = match timeout {
        Timeout::Connect => {
            let attempt = durations.of(Deadline::ConnectAttempt);
            (true, attempt.min(durations.of(Deadline::Connect)))
        }
        Timeout::Lifetime => {
            let grace = if record.flags.has(Flags::RETIRING) { RETIREMENT } else { Duration::ZERO };
            (record.clocks.due(Deadline::Lifetime, durations) <= now + grace, 0)
        }
        Timeout::Check => {
            let endpoint = record.cold().and_then(|cold| cold.endpoint);
            let Some(endpoint) = endpoint.and_then(|id| shared.endpoints.get(id)) else {
                return Err(format!("{id} is no check: {reason}"));
            };
            (now.nanos_since(record.opened_at) >= endpoint.policy.timeout(), 0)
        }
        // An end that waited for its delivery has a clock of its own, and bounds that itself where the
        // write timeout is off.
        Timeout::Write if !record.has_output() || durations.of(Deadline::Write) == u64::MAX => {
            let [idle, tunnel] =
                [Deadline::Idle, Deadline::Tunnel].map(|deadline| durations.delivery(deadline));
            (true, idle.min(tunnel))
        }
        timeout => {
            let of = |deadline: &Deadline| deadline.timeout() == Some(timeout);
            let Some(deadline) = Deadline::ALL.into_iter().find(of) else { return Ok(()) };
            (record.clocks.due(deadline, durations) <= now, durations.of(deadline))
        }
    };
    let since = if timeout == Timeout::Idle { active_at } else { opened_at };
    if !clocks || now.nanos_since(since) < shortest {
        return Err(format!("{id} ended early: {reason}"));
    }
    Ok(())
}

/// As [`check_timeout`], for the timer.
pub(super) fn check_timer(cx: &Context<'_>, id: ConnId) -> Result<(), String> {
    let shared = &*cx.shared;
    let Some(record) = shared.table.get(id) else { return Ok(()) };
    let due = record.clocks.due(Deadline::Timer, record.durations(&shared.profiles));
    if due > shared.now {
        return Err(format!("{id} had its timer at {:?}, and it was due at {due:?}", shared.now));
    }
    Ok(())
}

/// Whether the deadlines for the last output of a connection that is gone have passed, and those
/// for its peer's FIN.
pub(super) fn has_lost_patience(cx: &Context<'_>, id: ConnId) -> (bool, bool) {
    let shared = &*cx.shared;
    let Some(record) = shared.table.get(id) else { return (false, false) };
    let durations = record.durations(&shared.profiles);
    let passed = |deadline| record.clocks.due(deadline, durations) <= shared.now;
    (
        passed(Deadline::Flush) || passed(Deadline::Write),
        passed(Deadline::Linger) || passed(Deadline::LingerRead),
    )
}
