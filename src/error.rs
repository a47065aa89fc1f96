//! Why a connection ended, and what can be refused.

use std::{error, fmt, io};

use crate::time::Instant;

/// Why a connection ended: set once, delivered once to
/// [`Handler::on_closed`](crate::Handler::on_closed), counted once in
/// [`Stats`](crate::Stats).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The handler called [`Conn::abort`](crate::Conn::abort).
    Abort,
    /// All buffers together held more than
    /// [`Limits::buffered_max`](crate::Limits::buffered_max), and those of this connection were
    /// among the greatest.
    BufferLimit,
    /// Every address that was dialled refused or failed; this is the last failure.
    ConnectFailed(OsError),
    /// It was idle, and made way: for a newcomer where
    /// [`Limits::max_connections`](crate::Limits::max_connections) or the descriptors were used up,
    /// or because the loop was [overloaded](crate::Limits#overload).
    Evicted,
    /// A callback of this connection panicked.
    HandlerPanic,
    /// A shutdown reached its deadline or was asked for twice, or callbacks that panicked stopped the
    /// reactor.
    HardStop,
    /// The handler left [`Limits::input_max`](crate::Limits::input_max) bytes unread.
    InputLimit,
    /// A system call on the socket failed in a way that is neither end nor reset.
    Io(OsError),
    /// The handler called [`Conn::close`](crate::Conn::close).
    Local,
    /// The connection served [`Limits::requests_max`](crate::Limits::requests_max) requests.
    MaxRequests,
    /// The handler wrote when [`Limits::output_max`](crate::Limits::output_max) bytes or more were
    /// queued already.
    OutputLimit,
    /// The loop was [overloaded](crate::Limits#overload), and
    /// [`Conn::keep_alive`](crate::Conn::keep_alive) said so: the connection was served to the end of
    /// its request.
    Overload,
    /// The peer closed, and got everything it was owed.
    PeerEof,
    /// The peer reset the connection.
    PeerReset,
    /// The reactor is shutting down.
    Shutdown,
    /// A deadline passed.
    Timeout(Timeout),
}

impl CloseReason {
    /// How many labels there are.
    pub(crate) const COUNT: usize = 15 + Timeout::ALL.len();

    /// The reason's name in counters and logs, such as `peer_eof` or `idle_timeout`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::BufferLimit => "buffer_limit",
            Self::ConnectFailed(_) => "connect_failed",
            Self::Evicted => "evicted",
            Self::HandlerPanic => "handler_panic",
            Self::HardStop => "hard_stop",
            Self::InputLimit => "input_limit",
            Self::Io(_) => "io_error",
            Self::Local => "local",
            Self::MaxRequests => "max_requests",
            Self::OutputLimit => "output_limit",
            Self::Overload => "overload",
            Self::PeerEof => "peer_eof",
            Self::PeerReset => "peer_reset",
            Self::Shutdown => "shutdown",
            Self::Timeout(timeout) => timeout.label(),
        }
    }

    /// The place of this reason's counter, the same for all that share a label.
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Abort => 0,
            Self::ConnectFailed(_) => 1,
            Self::HandlerPanic => 2,
            Self::HardStop => 3,
            Self::InputLimit => 4,
            Self::Io(_) => 5,
            Self::Local => 6,
            Self::MaxRequests => 7,
            Self::OutputLimit => 8,
            Self::PeerEof => 9,
            Self::PeerReset => 10,
            Self::Shutdown => 11,
            Self::BufferLimit => 12,
            Self::Evicted => 13,
            Self::Overload => 14,
            Self::Timeout(timeout) => 15 + timeout as usize,
        }
    }

    /// One reason for every label, at its index.
    pub(crate) const fn of_index(index: usize) -> Self {
        const UNKNOWN: OsError = OsError { kind: io::ErrorKind::Other, errno: 0 };
        match index {
            0 => Self::Abort,
            1 => Self::ConnectFailed(UNKNOWN),
            2 => Self::HandlerPanic,
            3 => Self::HardStop,
            4 => Self::InputLimit,
            5 => Self::Io(UNKNOWN),
            6 => Self::Local,
            7 => Self::MaxRequests,
            8 => Self::OutputLimit,
            9 => Self::PeerEof,
            10 => Self::PeerReset,
            11 => Self::Shutdown,
            12 => Self::BufferLimit,
            13 => Self::Evicted,
            14 => Self::Overload,
            _ => Self::Timeout(Timeout::ALL[index - 15]),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abort => f.write_str("aborted by the handler"),
            Self::BufferLimit => f.write_str("too much buffered by all connections"),
            Self::ConnectFailed(cause) => write!(f, "connect failed: {cause}"),
            Self::Evicted => f.write_str("made way for others"),
            Self::HandlerPanic => f.write_str("a callback panicked"),
            Self::HardStop => f.write_str("hard stop of a shutdown"),
            Self::InputLimit => f.write_str("too much unread input"),
            Self::Io(cause) => write!(f, "socket error: {cause}"),
            Self::Local => f.write_str("closed by the handler"),
            Self::MaxRequests => f.write_str("served its share of requests"),
            Self::OutputLimit => f.write_str("too much queued output"),
            Self::Overload => f.write_str("not kept alive under overload"),
            Self::PeerEof => f.write_str("closed by the peer"),
            Self::PeerReset => f.write_str("reset by the peer"),
            Self::Shutdown => f.write_str("shutting down"),
            Self::Timeout(timeout) => timeout.fmt(f),
        }
    }
}

/// Which deadline passed; each has its setting of the same name in
/// [`Timeouts`](crate::Timeouts), which says when it runs.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
#[repr(u8)]
pub enum Timeout {
    /// Dialling took too long.
    Connect,
    /// The peer said nothing at all.
    FirstByte,
    /// A request did not arrive whole in time.
    Request,
    /// A request stalled, or a reply to one of ours did.
    Read,
    /// The application owed a reply, or kept reading paused, for too long.
    Response,
    /// No byte of the queued output left for the peer.
    Write,
    /// A keep-alive connection stayed quiet for too long.
    Idle,
    /// No sign of life came when the connection was asked for one.
    Ping,
    /// One side was shut and the other did not follow.
    HalfClosed,
    /// A tunnel carried nothing in either direction.
    Tunnel,
    /// The connection reached its greatest age.
    Lifetime,
}

impl Timeout {
    pub(crate) const ALL: [Self; 11] = [
        Self::Connect,
        Self::FirstByte,
        Self::Request,
        Self::Read,
        Self::Response,
        Self::Write,
        Self::Idle,
        Self::Ping,
        Self::HalfClosed,
        Self::Tunnel,
        Self::Lifetime,
    ];

    /// The deadline's name in counters and logs, such as `first_byte_timeout`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect_timeout",
            Self::FirstByte => "first_byte_timeout",
            Self::Request => "request_timeout",
            Self::Read => "read_timeout",
            Self::Response => "response_timeout",
            Self::Write => "write_timeout",
            Self::Idle => "idle_timeout",
            Self::Ping => "ping_timeout",
            Self::HalfClosed => "half_closed_timeout",
            Self::Tunnel => "tunnel_timeout",
            Self::Lifetime => "lifetime",
        }
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect timed out",
            Self::FirstByte => "no first byte in time",
            Self::Request => "request not complete in time",
            Self::Read => "read timed out",
            Self::Response => "response timed out",
            Self::Write => "write timed out",
            Self::Idle => "idle for too long",
            Self::Ping => "gave no sign of life",
            Self::HalfClosed => "half-closed for too long",
            Self::Tunnel => "tunnel idle for too long",
            Self::Lifetime => "reached its greatest age",
        })
    }
}

/// An error of the operating system that can be copied and compared, unlike [`io::Error`].
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct OsError {
    kind: io::ErrorKind,
    /// Zero where there is none: three reasons lie in every connection's record.
    errno: i32,
}

impl OsError {
    /// The portable kind.
    pub const fn kind(self) -> io::ErrorKind {
        self.kind
    }

    /// The `errno`, where the system gave one.
    pub const fn raw_os_error(self) -> Option<i32> {
        if self.errno == 0 { None } else { Some(self.errno) }
    }
}

impl From<io::Error> for OsError {
    fn from(error: io::Error) -> Self {
        Self::of(&error)
    }
}

impl OsError {
    pub(crate) fn of(error: &io::Error) -> Self {
        Self { kind: error.kind(), errno: error.raw_os_error().unwrap_or(0) }
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
            None => self.kind.fmt(f),
        }
    }
}

impl error::Error for OsError {}

/// A setting out of its range, found when a [`Reactor`](crate::Reactor) is made or a listener is
/// added: which one, and what is allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConfigError {
    setting: &'static str,
    allowed: &'static str,
}

impl ConfigError {
    pub(crate) const fn new(setting: &'static str, allowed: &'static str) -> Self {
        Self { setting, allowed }
    }

    /// The setting's name, as in the struct that holds it.
    pub const fn setting(&self) -> &'static str {
        self.setting
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must be {}", self.setting, self.allowed)
    }
}

impl error::Error for ConfigError {}

/// Why a reactor or a listener could not be made.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The listener could not be bound or adopted.
    Bind {
        /// What was to be listened on.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// A setting is out of its range.
    Config(ConfigError),
    /// Another system call failed.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { address, source } => write!(f, "cannot listen on {address}: {source}"),
            Self::Config(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Bind { source, .. } => Some(source),
            Self::Config(error) => Some(error),
            Self::Io(error) => Some(error),
        }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Why a connection was not dialled at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ConnectError {
    /// There are [`Limits::max_connections`](crate::Limits::max_connections) already.
    Full,
    /// The reactor is shutting down.
    ShuttingDown,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "too many connections",
            Self::ShuttingDown => "the reactor is shutting down",
        })
    }
}

impl error::Error for ConnectError {}

/// Why a closure was not posted; the closure was dropped, not run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum PostError {
    /// The mailbox holds [`Limits::mailbox_max`](crate::Limits::mailbox_max) closures, and the poster
    /// must not wait: it said so, or its thread runs a reactor.
    Full,
    /// The reactor is gone, or the system would not wake it.
    Stopped,
}

impl fmt::Display for PostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the mailbox is full",
            Self::Stopped => "the reactor has stopped",
        })
    }
}

impl error::Error for PostError {}

/// What is said of a connection when it has ended: what an access log wants.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Closed {
    /// The connection's id, which from now on resolves to nothing.
    pub id: crate::ConnId,
    /// How the connection came about.
    pub origin: crate::Origin,
    /// The remote end.
    pub peer: crate::Address,
    /// Why it ended.
    pub reason: CloseReason,
    /// Bytes read from the peer, those discarded while closing left out.
    pub bytes_in: u64,
    /// Bytes the kernel took for the peer.
    pub bytes_out: u64,
    /// Bytes the handler wrote that the kernel never took.
    pub unsent: u64,
    /// When it began.
    pub opened_at: Instant,
    /// How long it lasted.
    pub age: std::time::Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_has_its_own_label_and_index() {
        let labels: BTreeSet<_> =
            (0..CloseReason::COUNT).map(|index| CloseReason::of_index(index).label()).collect();
        assert_eq!(labels.len(), CloseReason::COUNT);
        for index in 0..CloseReason::COUNT {
            assert_eq!(CloseReason::of_index(index).index(), index);
        }
    }

    #[test]
    fn a_reason_is_small() {
        assert_eq!(size_of::<Option<CloseReason>>(), 12);
    }

    #[test]
    fn an_os_error_reads_like_the_systems_own() {
        let error = OsError::from(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().starts_with("Connection refused"), "{error}");
    }
}
