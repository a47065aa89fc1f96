//! What the call of an application can be refused with.

use std::{error, fmt, io};

use crate::address::AddressError;
use crate::close::CloseReason;

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
    /// The endpoint is down or ejected, after this failure, or was removed.
    Down(Option<CloseReason>),
    /// The text is no [`Target`](crate::Target).
    Address(AddressError),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("too many connections"),
            Self::ShuttingDown => f.write_str("the reactor is shutting down"),
            Self::Down(None) => f.write_str("the endpoint is not available"),
            Self::Down(Some(reason)) => write!(f, "the endpoint is not available: {reason}"),
            Self::Address(error) => error.fmt(f),
        }
    }
}

impl From<AddressError> for ConnectError {
    fn from(error: AddressError) -> Self {
        Self::Address(error)
    }
}

impl error::Error for ConnectError {}

/// Why a pool did not lease a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum AcquireFailure {
    /// [`PoolConfig::waiters_max`](crate::pool::PoolConfig::waiters_max) others wait already.
    TooManyWaiters,
    /// None was free in time. The server or the [endpoint](crate::pool::PoolConfig::endpoint) may be
    /// down all the same: that is answered by the failures below only where the pool
    /// [fails fast](crate::pool::PoolConfig::fail_fast) and no connection is leased or dialled any more.
    /// [`AcquireError::last_dial`] says how the latest dial or check failed.
    Timeout,
    /// None could be dialled, and the pool does not wait for the next try
    /// ([`PoolConfig::fail_fast`](crate::pool::PoolConfig::fail_fast)).
    Unreachable,
    /// Its [endpoint](crate::pool::PoolConfig::endpoint) is down or ejected, and the pool does not
    /// wait until it is back.
    Down,
    /// The pool was closed, or the reactor has ended. A shutdown that has begun closes no pool: what
    /// it lets be served may need one.
    Closed,
    /// The connection that asks is closing.
    Closing,
}

impl fmt::Display for AcquireFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooManyWaiters => "too many wait for a connection of the pool",
            Self::Timeout => "no connection of the pool was free in time",
            Self::Unreachable => "no connection could be dialled",
            Self::Down => "the endpoint of the pool is not available",
            Self::Closed => "the pool is closed",
            Self::Closing => "the connection that asks is closing",
        })
    }
}

/// A pool did not lease a connection: why, and what the pool was like then.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct AcquireError {
    /// Why.
    pub failure: AcquireFailure,
    /// How the latest dial ended, if it failed and no exchange has come to its end since; or the latest check of
    /// the endpoint, while that is not available.
    pub last_dial: Option<CloseReason>,
    /// The latest dial did not begin, or failed, because we lack something: a place in the
    /// [table](crate::Limits::max_connections) or in the pool's group, a port, or a descriptor.
    pub shortage: bool,
    /// The most connections of the pool.
    pub size: usize,
    /// Connections that had a place: dialled, idle, leased or closing.
    pub open: usize,
    /// Those of them that were idle.
    pub idle: usize,
    /// Those of them that were leased.
    pub leased: usize,
    /// Those of them that were dialled, or had yet to end their handshake.
    pub coming: usize,
    /// How many waited.
    pub waiting: usize,
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failure, last_dial, shortage, size, open, idle, leased, coming, waiting } = self;
        write!(
            f,
            "{failure} (size={size} open={open} idle={idle} leased={leased} coming={coming} \
             waiting={waiting}"
        )?;
        if *shortage {
            f.write_str("; no place, port or descriptor was left for another connection")?;
        }
        match last_dial {
            Some(reason) => write!(f, "; the latest dial: {reason})"),
            None => f.write_str(")"),
        }
    }
}

impl error::Error for AcquireError {}

/// Why a closure was not posted; the closure was dropped, not run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum PostError {
    /// The mailbox holds [`Limits::mailbox_max`](crate::Limits::mailbox_max) closures, and the
    /// poster must not wait: it said so, or its thread runs a reactor.
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
