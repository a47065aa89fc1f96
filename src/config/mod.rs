//! Settings and their defaults, each with its reason.
//!
//! Every deadline and limit is finite by default. Zero is refused when the
//! [`Reactor`](crate::Reactor) is made, and `None` is how "off" is spelled.

mod health;
mod limits;
mod pool;
mod socket;
mod timeouts;

use std::time::Duration;

pub use self::health::{EndpointConfig, HealthCheck};
pub use self::limits::{AtLimit, ClientLimits, Limits, Network, NetworkError, Rate, Refusal};
pub(crate) use self::limits::{masked, untranslated};
pub use self::pool::{AcquireOptions, PoolConfig, PoolOrder};
pub use self::socket::{Keepalive, SocketOptions};
pub use self::timeouts::Timeouts;
pub use crate::error::ConfigError;

/// All settings of a [`Reactor`](crate::Reactor), with defaults that are safe on a hostile
/// network.
///
/// ```
/// use std::time::Duration;
/// use wheelhouse::Config;
///
/// let mut config = Config::default();
/// config.timeouts.idle = Some(Duration::from_secs(30));
/// config.limits.max_connections = Some(1_000);
/// ```
///
/// This struct and the other settings can be written out as well. `..` with the default has to end
/// them, because later versions will have more fields:
///
/// ```
/// use std::time::Duration;
/// use wheelhouse::{Config, Limits, Timeouts};
///
/// let config = Config {
///     timeouts: Timeouts { idle: Some(Duration::from_secs(30)), ..Timeouts::default() },
///     limits: Limits { max_connections: Some(1_000), ..Limits::default() },
///     ..Config::default()
/// };
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a connection may take over each thing it does.
    pub timeouts: Timeouts,
    /// How much of each resource may be used.
    pub limits: Limits,
    /// When a connection counts as congested, and when as drained.
    pub watermarks: Watermarks,
    /// Options set on every socket.
    pub socket: SocketOptions,
    /// How long a callback may take before it is reported: named in a warning, at most one each
    /// second, and counted in [`Stats::stalls`](crate::stats::Stats::stalls). It is time by the
    /// clock, which includes the time in which the thread did not run. It is measured to within a
    /// tick of the system's coarse clock (4 ms on most kernels), at no cost where callbacks are
    /// short, and only from 8 ms on; `on_idle` right after `on_data`, which ends nearly every
    /// message, is timed together with that. Default 25 ms, which all other connections wait for;
    /// `None` reports none.
    pub stall_report: Option<Duration>,
    /// How many callbacks of connections may panic within a time before the reactor stops: one more
    /// stops it, as a panic in a callback of the whole loop always does. Default `None`: each costs
    /// its own connection, however many there are, because a peer that found what makes a callback
    /// panic could otherwise end the server for all. A limit is for handlers whose shared state a
    /// panic may leave half-changed, where a restart by a supervisor is better than going on. It is
    /// exact up to a count of 1,024, and beyond that late by at most a thousandth.
    pub panic_limit: Option<Rate>,
    /// How long a shutdown may last before what is left is aborted. Default 30 s, the grace that
    /// common orchestrators give; `None` waits for as long as the other deadlines let it.
    pub shutdown_timeout: Option<Duration>,
    /// Over how long a shutdown spreads the closing of idle connections, so that their clients do
    /// not all dial again at once elsewhere. No connection is closed within a second of its last
    /// reply, as a request may be on its way. Default 5 s; `None` closes all of them at once.
    pub shutdown_spread: Option<Duration>,
    /// How long a shutdown goes on serving a connection whose peer never pauses for a second. After
    /// that it is closed after the request at hand. It counts no more than half of
    /// `shutdown_timeout`, so that the last reply has time to leave. Default 15 s; `None` serves it
    /// until `shutdown_timeout`.
    pub shutdown_busy: Option<Duration>,
    #[doc(hidden)]
    pub _more: (),
}

/// How long a shutdown may last by default.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

impl Default for Config {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            watermarks: Watermarks::default(),
            socket: SocketOptions::default(),
            stall_report: Some(Duration::from_millis(25)),
            panic_limit: None,
            shutdown_timeout: Some(SHUTDOWN_TIMEOUT),
            shutdown_spread: Some(Duration::from_secs(5)),
            shutdown_busy: Some(Duration::from_secs(15)),
            _more: (),
        }
    }
}

impl Config {
    /// The most memory, in bytes, that a reactor with these settings uses, sessions and whatever
    /// else the handler keeps aside: its own buffers and wheel, a KiB for each connection there may
    /// be, [`Limits::buffered_max`], and beside that what one connection may hold before it is
    /// checked (its input twice, as a buffer is copied when it grows, and the output limit). One
    /// write of more than that counts on top, and so does memory that is shared with the handler by
    /// [`Conn::write_bytes`](crate::Conn::write_bytes) beyond the bytes written.
    ///
    /// Where [`Limits::max_connections`] is left to the system, 65,536 are reckoned with. Settings
    /// that bound nothing, such as `usize::MAX`, come to [`u64::MAX`].
    ///
    /// ```
    /// use wheelhouse::Config;
    ///
    /// assert!(Config::default().worst_case_memory() < 512 << 20);
    /// ```
    pub fn worst_case_memory(&self) -> u64 {
        const LOOP: u64 = 1 << 20;
        const CONNECTION: u64 = 1 << 10;
        let limits = &self.limits;
        let places = limits.max_connections.unwrap_or(65_536).saturating_add(16) as u64;
        let buffered = limits.buffered_max as u64;
        let input = (limits.input_max as u64).saturating_mul(2);
        let one = input.saturating_add(limits.output_max as u64);
        LOOP.saturating_add(places.saturating_mul(CONNECTION))
            .saturating_add(buffered)
            .saturating_add(one)
    }

    /// Checks that no setting is out of its range, and says which is the first that is.
    pub(crate) fn refuse_out_of_range(&self) -> Result<(), ConfigError> {
        self.timeouts.refuse_zero()?;
        self.limits.refuse_out_of_range()?;
        if self.stall_report == Some(Duration::ZERO) {
            return Err(ConfigError::new("stall_report", "longer than zero, or None"));
        }
        if self.shutdown_timeout == Some(Duration::ZERO) {
            return Err(ConfigError::new("shutdown_timeout", "longer than zero, or None"));
        }
        if self.shutdown_spread == Some(Duration::ZERO) {
            return Err(ConfigError::new("shutdown_spread", "longer than zero, or None"));
        }
        if self.shutdown_busy == Some(Duration::ZERO) {
            return Err(ConfigError::new("shutdown_busy", "longer than zero, or None"));
        }
        self.socket.refuse_out_of_range()
    }
}

/// When a connection counts as congested: above `high` queued bytes, until it has drained to `low`.
///
/// A congested connection is not read (one that [feeds](crate::Conn::throttle_on) another
/// excepted), so a client that sends requests and never reads the replies costs little more than
/// `high`. Default 64 KiB and 32 KiB.
///
/// ```
/// use wheelhouse::config::Watermarks;
///
/// let marks = Watermarks::new(1_024, 4_096)?;
/// assert_eq!((marks.low(), marks.high()), (1_024, 4_096));
/// assert!(Watermarks::new(2, 1).is_err());
/// # Ok::<(), wheelhouse::config::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Watermarks {
    low: usize,
    high: usize,
}

impl Watermarks {
    /// Watermarks in bytes.
    ///
    /// # Errors
    ///
    /// If `high` is zero or `low` is above it.
    pub const fn new(low: usize, high: usize) -> Result<Self, ConfigError> {
        if high == 0 || low > high {
            return Err(ConfigError::new("watermarks", "low <= high, high at least 1"));
        }
        Ok(Self { low, high })
    }

    /// Queued bytes at or below which a congested connection has drained.
    pub const fn low(self) -> usize {
        self.low
    }

    /// Queued bytes above which a connection is congested.
    pub const fn high(self) -> usize {
        self.high
    }
}

impl Default for Watermarks {
    fn default() -> Self {
        Self { low: 32 * 1024, high: 64 * 1024 }
    }
}

/// What one listener does differently.
///
/// ```
/// use std::time::Duration;
/// use wheelhouse::{Config, ListenConfig};
///
/// let mut listen = ListenConfig::default();
/// listen.timeouts = Some(Config::default().timeouts);
/// ```
#[derive(Clone, Debug)]
pub struct ListenConfig {
    /// The kernel's queue of connections not yet accepted, which it may shorten to its own limit
    /// (`net.core.somaxconn`). Default 4,096.
    pub backlog: u32,
    /// The timeouts of connections accepted here. Default `None`: those of [`Config`].
    pub timeouts: Option<Timeouts>,
    /// Connections accepted here are not limited in number by [`Limits::max_connections`], by
    /// client or in rate, and neither pressure nor newcomers evict them; a shutdown closes this
    /// listener last. For metrics and operators, which must get through when no other connection
    /// does: at most 16 such connections at once, of all such listeners together. Default off.
    pub exempt: bool,
    /// The mode of the file of a Unix-domain listener, such as `0o600`: who may connect. The file never
    /// has a wider one. Default `None`: what the umask of the process leaves of 0777. A listener that makes
    /// no file, on an IP address or an inherited socket, has none.
    pub mode: Option<u32>,
    #[doc(hidden)]
    pub _more: (),
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self { backlog: 4_096, timeouts: None, exempt: false, mode: None, _more: () }
    }
}

impl ListenConfig {
    pub(crate) fn refuse_out_of_range(&self) -> Result<(), ConfigError> {
        if self.backlog == 0 || i32::try_from(self.backlog).is_err() {
            return Err(ConfigError::new("backlog", "from 1 to 2,147,483,647"));
        }
        if self.mode.is_some_and(|mode| mode > 0o777) {
            return Err(ConfigError::new("mode", "at most 0o777"));
        }
        self.timeouts.as_ref().map_or(Ok(()), Timeouts::refuse_zero)
    }

    /// A mode that no file would have, as the listener makes none, would be an illusion.
    pub(crate) fn refuse_mode_without_file(&self, makes_file: bool) -> Result<(), ConfigError> {
        if self.mode.is_some() && !makes_file {
            return Err(ConfigError::new("mode", "None where the listener makes no file"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range_and_finite() {
        let config = Config::default();
        config.refuse_out_of_range().unwrap();
        ListenConfig::default().refuse_out_of_range().unwrap();
        let off: Vec<_> =
            config.timeouts.named().into_iter().filter(|(_, timeout)| timeout.is_none()).collect();
        assert_eq!(off, [("timeouts.ping_after", None), ("timeouts.lifetime", None)]);
    }

    #[test]
    fn presets_are_in_range_and_turn_nothing_off() {
        let off = |timeouts: &Timeouts| {
            timeouts.named().into_iter().filter(|(_, timeout)| timeout.is_none()).count()
        };
        for preset in
            [Timeouts::for_http(), Timeouts::for_pooled_clients(), Timeouts::for_tunnels()]
        {
            preset.refuse_zero().unwrap();
            assert_eq!(off(&preset), off(&Timeouts::default()));
            assert_ne!(preset, Timeouts::default());
        }
    }

    #[test]
    fn the_worst_case_of_any_settings_is_a_number() {
        type Set = fn(&mut Limits, usize);
        let set: [Set; 4] = [
            |limits, size| limits.max_connections = Some(size),
            |limits, size| limits.input_max = size,
            |limits, size| limits.output_max = size,
            |limits, size| limits.buffered_max = size,
        ];
        for set in set {
            let mut config = Config::default();
            set(&mut config.limits, usize::MAX);
            assert_eq!(config.worst_case_memory(), u64::MAX);
            set(&mut config.limits, 1);
            assert!(config.worst_case_memory() < 512 << 20);
        }
    }

    #[test]
    fn zero_is_refused_by_name() {
        for index in 0..Timeouts::default().named().len() {
            let mut config = Config::default();
            let timeouts = &mut config.timeouts;
            let fields = [
                &mut timeouts.connect,
                &mut timeouts.connect_attempt,
                &mut timeouts.connect_stagger,
                &mut timeouts.first_byte,
                &mut timeouts.request,
                &mut timeouts.read,
                &mut timeouts.response,
                &mut timeouts.write,
                &mut timeouts.idle,
                &mut timeouts.ping_after,
                &mut timeouts.ping,
                &mut timeouts.half_closed,
                &mut timeouts.flush,
                &mut timeouts.linger_read,
                &mut timeouts.linger,
                &mut timeouts.tunnel,
                &mut timeouts.lifetime,
            ];
            **fields.into_iter().collect::<Vec<_>>().get_mut(index).unwrap() = Some(Duration::ZERO);
            let error = config.refuse_out_of_range().unwrap_err();
            assert_eq!(error.setting(), Timeouts::default().named()[index].0);
        }
        type Spoil = fn(&mut Config);
        let spoil: [(&str, Spoil); 13] = [
            ("timeouts.connect_stagger", |c| {
                c.timeouts.connect_stagger = Some(Duration::from_millis(9));
            }),
            ("limits.max_connections", |c| c.limits.max_connections = Some(0)),
            ("limits.input_max", |c| c.limits.input_max = 0),
            ("limits.output_max", |c| c.limits.output_max = 0),
            ("limits.requests_max", |c| c.limits.requests_max = Some(0)),
            ("limits.flush_rate", |c| c.limits.flush_rate = 0),
            ("limits.mailbox_max", |c| c.limits.mailbox_max = 0),
            ("limits.shrink_idle_from", |c| c.limits.shrink_idle_from = Some(0)),
            ("limits.shrink_idle_from", |c| c.limits.shrink_idle_from = Some(95)),
            ("shutdown_timeout", |c| c.shutdown_timeout = Some(Duration::ZERO)),
            ("shutdown_spread", |c| c.shutdown_spread = Some(Duration::ZERO)),
            ("shutdown_busy", |c| c.shutdown_busy = Some(Duration::ZERO)),
            ("socket.notsent_lowat", |c| c.socket.notsent_lowat = Some(0)),
        ];
        for (setting, spoil) in spoil {
            let mut config = Config::default();
            spoil(&mut config);
            assert_eq!(config.refuse_out_of_range().unwrap_err().setting(), setting);
        }
    }

    #[test]
    fn what_is_refused_of_a_reactor_is_refused_of_a_pool() {
        let socket = SocketOptions { notsent_lowat: Some(0), ..SocketOptions::default() };
        let pool = PoolConfig { socket: Some(socket), ..PoolConfig::default() };
        assert_eq!(pool.refuse_out_of_range().unwrap_err().setting(), "socket.notsent_lowat");
        let timeouts = Timeouts { write: Some(Duration::ZERO), ..Timeouts::default() };
        let pool = PoolConfig { timeouts: Some(timeouts), ..PoolConfig::default() };
        assert_eq!(pool.refuse_out_of_range().unwrap_err().setting(), "timeouts.write");
        PoolConfig::default().refuse_out_of_range().unwrap();
    }

    #[test]
    fn the_user_timeout_never_beats_the_write_deadline() {
        let mut timeouts = Timeouts::default();
        let user_timeout = Some(Duration::from_secs(90));
        let options = SocketOptions { user_timeout, ..SocketOptions::default() };
        assert_eq!(options.beside(&timeouts).user_timeout, Some(Duration::from_secs(90)));
        timeouts.write = Some(Duration::from_secs(300));
        assert_eq!(options.beside(&timeouts).user_timeout, Some(Duration::from_secs(330)));
        timeouts.write = None;
        assert_eq!(options.beside(&timeouts).user_timeout, None);
    }
}
