//! What the call of an application can be refused with.

use std::{error, fmt, io};

use crate::address::AddressError;

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
    /// The text is no [`Target`](crate::Target).
    Address(AddressError),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("too many connections"),
            Self::ShuttingDown => f.write_str("the reactor is shutting down"),
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
