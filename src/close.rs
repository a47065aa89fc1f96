//! Why a connection ended, how each reason ends it, and what is known of it afterwards.
//!
//! One table for the reasons and one for the deadlines among them: label, index, mode, whose doing
//! it was and text all follow from a line there.

use std::time::Duration;
use std::{error, fmt, io};

use crate::address::Address;
use crate::id::{ConnId, Origin};
use crate::time::Instant;

/// How the socket of a connection ends, once the reason is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CloseMode {
    /// Flush what is queued; then, where that helps, FIN and linger; then close.
    Flush,
    /// Nothing is queued. Close, once the peer has acknowledged everything.
    Close,
    /// Flush what is queued, and reset once the peer has acknowledged everything.
    Break,
    /// Drop what is queued and close: the peer is beyond reach.
    Drop,
    /// Drop what is queued and reset.
    Reset,
}

/// Whose doing the end of a connection was: what an alert wants to know first.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// Of none: the connection came to its end as planned, or the server stops.
    None,
    /// The peer's, or the network's between: it was late, left, or could not be reached. A dial that
    /// fails counts here, whatever the system's error.
    Peer,
    /// The handler's: it broke off, panicked, owed a reply for too long, or let bytes pile up.
    Handler,
    /// The load's: the connection was evicted, or ended, to leave room for others.
    Load,
    /// The system's: a call failed for a reason of its own.
    System,
}

/// Defines every reason once: what it means; its label; how it ends the socket; whose doing it is;
/// its text.
macro_rules! reasons {
    ($(
        $(#[$doc:meta])*
        $name:ident $(($cause:ident: $type:ty))?: $label:literal, $mode:ident, $fault:ident, $text:literal;
    )*) => {
        /// Why a connection ended: set once, delivered once to
        /// [`Handler::on_closed`](crate::Handler::on_closed), counted once in
        /// [`Stats`](crate::stats::Stats).
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[non_exhaustive]
        pub enum CloseReason {
            $($(#[$doc])* $name $(($type))?,)*
            /// A deadline passed.
            Timeout(Timeout),
        }

        /// The indices of the reasons that are no deadlines, and of the first that is one.
        #[repr(u8)]
        enum Index { $($name,)* Timeouts }

        impl CloseReason {
            /// How many labels there are.
            pub(crate) const COUNT: usize = Index::Timeouts as usize + Timeout::ALL.len();

            /// The reason's name in counters and logs, such as `peer_eof` or `idle_timeout`.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name { .. } => $label,)*
                    Self::Timeout(timeout) => timeout.label(),
                }
            }

            /// Whose doing the end was.
            pub const fn fault(self) -> Fault {
                match self {
                    $(Self::$name { .. } => Fault::$fault,)*
                    Self::Timeout(timeout) => timeout.fault(),
                }
            }

            /// How it ends the socket.
            pub(crate) const fn mode(self) -> CloseMode {
                match self {
                    $(Self::$name { .. } => CloseMode::$mode,)*
                    Self::Timeout(timeout) => timeout.mode(),
                }
            }

            /// The place of this reason's counter, the same for all that share a label.
            pub(crate) const fn index(self) -> usize {
                match self {
                    $(Self::$name { .. } => Index::$name as usize,)*
                    Self::Timeout(timeout) => Index::Timeouts as usize + timeout as usize,
                }
            }

            /// One reason for every label, at its index.
            pub(crate) const fn of_index(index: usize) -> Self {
                const PLAIN: [CloseReason; Index::Timeouts as usize] =
                    [$(CloseReason::$name $((<$type>::UNKNOWN))?,)*];
                if index < PLAIN.len() {
                    PLAIN[index]
                } else {
                    Self::Timeout(Timeout::ALL[index - PLAIN.len()])
                }
            }
        }

        impl fmt::Display for CloseReason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name $(($cause))? => {
                        f.write_str($text)?;
                        $(write!(f, ": {}", $cause)?;)?
                        Ok(())
                    })*
                    Self::Timeout(timeout) => timeout.fmt(f),
                }
            }
        }
    };
}

reasons! {
    /// All buffers together held more than
    /// [`Limits::buffered_max`](crate::Limits::buffered_max), and those of this connection were
    /// among the greatest.
    BufferLimit: "buffer_limit", Reset, Load, "too much buffered by all connections";
    /// It was a check of an [endpoint](crate::health), which passed.
    CheckPassed: "check_passed", Close, None, "a check that passed";
    /// Every address that was dialled refused or failed; this is the last failure.
    ConnectFailed(cause: OsError): "connect_failed", Drop, Peer, "connect failed";
    /// It was idle, and was closed to free its place: for a new connection where
    /// [`Limits::max_connections`](crate::Limits::max_connections) or the descriptors were used up,
    /// or because the loop was [overloaded](crate::Limits#overload).
    Evicted: "evicted", Close, Load, "evicted while idle";
    /// The handler called [`Conn::abort`](crate::Conn::abort).
    HandlerAbort: "handler_abort", Reset, Handler, "aborted by the handler";
    /// The handler called [`Conn::close`](crate::Conn::close).
    HandlerClose: "handler_close", Flush, None, "closed by the handler";
    /// A callback of this connection panicked.
    HandlerPanic: "handler_panic", Reset, Handler, "a callback panicked";
    /// A shutdown reached its deadline or was asked for twice, or callbacks that panicked stopped
    /// the reactor.
    HardStop: "hard_stop", Reset, None, "hard stop of a shutdown";
    /// The handler left [`Limits::input_max`](crate::Limits::input_max) bytes unread.
    InputLimit: "input_limit", Reset, Handler, "too much unread input";
    /// A system call on the socket failed in a way that is neither end nor reset.
    Io(cause: OsError): "io_error", Drop, System, "socket error";
    /// The connection served [`Limits::requests_max`](crate::Limits::requests_max) requests.
    MaxRequests: "max_requests", Flush, None, "served its share of requests";
    /// The handler wrote when [`Limits::output_max`](crate::Limits::output_max) bytes or more were
    /// queued already.
    OutputLimit: "output_limit", Reset, Handler, "too much queued output";
    /// The loop was [overloaded](crate::Limits#overload), and
    /// [`Conn::decide_keep_alive`](crate::Conn::decide_keep_alive) said so: the connection was
    /// served to the end of its request.
    Overload: "overload", Flush, Load, "not kept alive under overload";
    /// The connection that had leased it from its pool ended before it was given back.
    OwnerGone: "owner_gone", Reset, None, "leased by a connection that has ended";
    /// The peer closed, and got everything it was owed.
    PeerEof: "peer_eof", Flush, None, "closed by the peer";
    /// The peer reset the connection.
    PeerReset: "peer_reset", Drop, Peer, "reset by the peer";
    /// Its pool had enough idle connections.
    PoolSurplus: "pool_surplus", Close, None, "one idle connection too many";
    /// It was given back to its pool, or was [ready](crate::Conn::ready) to be leased, and not at the end
    /// of an exchange; or it was not brought to that in time.
    PoolUnclean: "pool_unclean", Reset, Handler, "not at the end of an exchange when it was given back";
    /// The connection it was [relayed with](crate::Conn::relay_with) was cut off: reset, lost, or
    /// aborted. This one has had what was read before that, and is reset.
    RelayBroken: "relay_broken", Break, None, "the other end of its relay was cut off";
    /// The connection it was [relayed with](crate::Conn::relay_with) has ended before both sides had
    /// sent their FIN. This one has had what was read before that.
    RelayEnded: "relay_ended", Flush, None, "the other end of its relay has ended";
    /// The reactor is shutting down.
    Shutdown: "shutdown", Flush, None, "shutting down";
    /// The peer sent something over a connection that was idle in its pool, which would have been
    /// taken for the reply to the next request.
    UnsolicitedData: "unsolicited_data", Close, Peer, "data that was not asked for";
}

/// Defines every deadline once that can end a connection: what its passing means; its label; how it
/// ends the socket; whose doing it is; its text.
macro_rules! timeouts {
    ($(
        $(#[$doc:meta])*
        $name:ident: $label:literal, $mode:ident, $fault:ident, $text:literal;
    )*) => {
        /// Which deadline passed; each has its setting, mostly of the same name, in
        /// [`Timeouts`](crate::Timeouts), which says when it runs, in
        /// [`PoolConfig`](crate::pool::PoolConfig), or in
        /// [`EndpointConfig`](crate::health::EndpointConfig).
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Timeout {
            $($(#[$doc])* $name,)*
        }

        impl Timeout {
            pub(crate) const ALL: [Self; [$($label),*].len()] = [$(Self::$name,)*];

            /// The deadline's name in counters and logs, such as `first_byte_timeout`.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }

            const fn fault(self) -> Fault {
                match self {
                    $(Self::$name => Fault::$fault,)*
                }
            }

            const fn mode(self) -> CloseMode {
                match self {
                    $(Self::$name => CloseMode::$mode,)*
                }
            }
        }

        impl fmt::Display for Timeout {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)*
                })
            }
        }
    };
}

timeouts! {
    /// Dialling took too long.
    Connect: "connect_timeout", Drop, Peer, "connect timed out";
    /// The peer said nothing at all.
    FirstByte: "first_byte_timeout", Flush, Peer, "no first byte in time";
    /// A request did not arrive whole in time.
    Request: "request_timeout", Flush, Peer, "request not complete in time";
    /// A request stalled, or a reply to one of ours did.
    Read: "read_timeout", Flush, Peer, "read timed out";
    /// The application owed a reply, or kept reading paused, for too long.
    Response: "response_timeout", Flush, Handler, "response timed out";
    /// No byte of the queued output left for the peer.
    Write: "write_timeout", Reset, Peer, "write timed out";
    /// A keep-alive connection stayed quiet for too long.
    Idle: "idle_timeout", Close, None, "idle for too long";
    /// The peer did not answer a ping in time.
    Ping: "ping_timeout", Close, Peer, "no answer to a ping";
    /// One side was shut and the other did not follow.
    HalfClosed: "half_closed_timeout", Flush, Peer, "half-closed for too long";
    /// The handshake of a connection of a pool was not over in time.
    Handshake: "handshake_timeout", Reset, Peer, "no handshake in time";
    /// A check of an [endpoint](crate::health) did not pass within
    /// [`EndpointConfig::timeout`](crate::health::EndpointConfig::timeout).
    Check: "check_timeout", Reset, Peer, "not checked in time";
    /// A tunnel carried nothing in either direction.
    Tunnel: "tunnel_timeout", Close, None, "tunnel idle for too long";
    /// The connection reached its greatest age.
    Lifetime: "lifetime", Flush, None, "reached its greatest age";
}

/// An error of the operating system that can be copied and compared, unlike [`io::Error`].
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct OsError {
    kind: io::ErrorKind,
    /// Zero where there is none. Two reasons lie in every connection's record, so it is small.
    errno: u16,
}

impl OsError {
    const UNKNOWN: Self = Self { kind: io::ErrorKind::Other, errno: 0 };

    /// The portable kind.
    pub const fn kind(self) -> io::ErrorKind {
        self.kind
    }

    /// The `errno`, where the system gave one.
    pub const fn raw_os_error(self) -> Option<i32> {
        if self.errno == 0 { None } else { Some(self.errno as i32) }
    }
}

impl From<io::Error> for OsError {
    fn from(error: io::Error) -> Self {
        Self::of(&error)
    }
}

impl OsError {
    /// One that no system call gave.
    pub(crate) const fn of_kind(kind: io::ErrorKind) -> Self {
        Self { kind, errno: 0 }
    }

    pub(crate) fn of(error: &io::Error) -> Self {
        let errno = error.raw_os_error().and_then(|errno| u16::try_from(errno).ok());
        Self { kind: error.kind(), errno: errno.unwrap_or(0) }
    }
}

impl fmt::Debug for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.raw_os_error() {
            Some(errno) => write!(f, "OsError({:?}, errno {errno})", self.kind),
            None => write!(f, "OsError({:?})", self.kind),
        }
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno).fmt(f),
            None => match self.kind {
                // A look-up found none, or none of the family that is dialled from.
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::NotFound => {
                    f.write_str("the target has no address that can be dialled")
                }
                io::ErrorKind::QuotaExceeded => f.write_str("too many look-ups wait"),
                kind => kind.fmt(f),
            },
        }
    }
}

impl error::Error for OsError {}

/// What is known of a connection when it has ended: what an access log wants.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Closed {
    /// The connection's id, which from now on resolves to nothing.
    pub id: ConnId,
    /// How the connection came about.
    pub origin: Origin,
    /// The remote end.
    pub peer: Address,
    /// Why it ended.
    pub reason: CloseReason,
    /// Requests that were served.
    pub requests: u64,
    /// Bytes read from the peer, those discarded while closing left out.
    pub bytes_in: u64,
    /// Bytes the kernel took for the peer.
    pub bytes_out: u64,
    /// Bytes the handler wrote that the kernel never took.
    pub unsent: u64,
    /// When it began.
    pub opened_at: Instant,
    /// How long it lasted.
    pub age: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn all() -> impl Iterator<Item = CloseReason> {
        (0..CloseReason::COUNT).map(CloseReason::of_index)
    }

    #[test]
    fn every_reason_has_its_own_label_and_index() {
        let labels: BTreeSet<_> = all().map(CloseReason::label).collect();
        assert_eq!(labels.len(), CloseReason::COUNT);
        for (index, reason) in all().enumerate() {
            assert_eq!(reason.index(), index);
        }
    }

    #[test]
    fn a_dial_that_failed_says_why() {
        let text = |error: io::Error| CloseReason::ConnectFailed(error.into()).to_string();
        let none = "connect failed: the target has no address that can be dialled";
        assert_eq!(text(io::Error::other("x")), "connect failed: other error");
        assert_eq!(text(io::ErrorKind::AddrNotAvailable.into()), none);
        assert_eq!(text(io::ErrorKind::NotFound.into()), none);
        assert_eq!(
            text(io::ErrorKind::QuotaExceeded.into()),
            "connect failed: too many look-ups wait"
        );
        // The system's own words: no port is left, or a Unix-domain socket is not there.
        for errno in [libc::EADDRNOTAVAIL, libc::ENOENT] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(
                text(io::Error::from_raw_os_error(errno)),
                format!("connect failed: {error}")
            );
        }
    }

    #[test]
    fn every_reason_has_a_mode() {
        let count = |mode| all().filter(|reason| reason.mode() == mode).count();
        assert_eq!(count(CloseMode::Flush), 12);
        assert_eq!(count(CloseMode::Break), 1);
        assert_eq!(count(CloseMode::Close), 7);
        assert_eq!(count(CloseMode::Drop), 4);
        assert_eq!(count(CloseMode::Reset), 11);
    }

    #[test]
    fn every_reason_has_its_fault() {
        let count = |fault| all().filter(|reason| reason.fault() == fault).count();
        assert_eq!(CloseReason::HandlerPanic.fault(), Fault::Handler);
        assert_eq!(CloseReason::Timeout(Timeout::Response).fault(), Fault::Handler);
        assert_eq!(CloseReason::Timeout(Timeout::Request).fault(), Fault::Peer);
        assert_eq!(count(Fault::Load), 3);
        assert_eq!(count(Fault::System), 1);
    }

    #[test]
    fn a_reason_is_small() {
        assert_eq!(size_of::<Option<CloseReason>>(), 6);
    }

    #[test]
    fn an_os_error_reads_like_the_systems_own() {
        let error = OsError::from(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().starts_with("Connection refused"), "{error}");
    }
}
