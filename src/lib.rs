//! wheelhouse
mod address;
pub mod backend;
mod config;
mod conn;
mod context;
mod core;
mod error;
mod handler;
mod reactor;
mod time;

pub use crate::address::{Address, AddressError, Target};
pub use crate::backend::Os;
pub use crate::config::{
    Config, Keepalive, Limits, ListenConfig, SocketOptions, Timeouts, Watermarks,
};
pub use crate::conn::Conn;
pub use crate::context::{AlarmId, Context};
pub use crate::core::lifecycle::State;
pub use crate::core::stats::Stats;
pub use crate::core::table::{ConnId, ListenerId, Origin};
pub use crate::error::{
    CloseReason, Closed, ConfigError, ConnectError, Error, OsError, PostError, Timeout,
};
pub use crate::handler::Handler;
pub use crate::reactor::{Handle, Reactor, Report};
pub use crate::time::Instant;
