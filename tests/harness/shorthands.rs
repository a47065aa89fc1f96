//! What tests of every kind write often.
#![allow(dead_code, reason = "not every program needs both")]

use std::time::Duration;

use wheelhouse::Config;

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// The default settings, but for the most connections that there may be.
pub(crate) fn with_places(max_connections: usize) -> Config {
    let mut config = Config::default();
    config.limits.max_connections = Some(max_connections);
    config
}
