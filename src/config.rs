//! Settings and their defaults, each with its reason.
//!
//! Every deadline and limit is finite by default. Zero is refused when the
//! [`Reactor`](crate::Reactor) is made, and `None` is how "off" is spelled.

use std::time::Duration;

use crate::error::ConfigError;

/// Everything a [`Reactor`](crate::Reactor) can be told, with defaults that are safe on a hostile
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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// How long a connection may take over each thing it does.
    pub timeouts: Timeouts,
    /// How much of each resource may be used.
    pub limits: Limits,
    /// When a connection counts as congested, and when as drained.
    pub watermarks: Watermarks,
    /// Options set on every socket.
    pub socket: SocketOptions,
    /// How long a shutdown may last before what is left is aborted. Default 30 s, the grace that
    /// common orchestrators give; `None` waits for as long as the other deadlines let it.
    pub shutdown_timeout: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            watermarks: Watermarks::default(),
            socket: SocketOptions::default(),
            shutdown_timeout: Some(Duration::from_secs(30)),
        }
    }
}

/// The deadlines of a connection: no limit in time that a peer or the application could stretch is
/// left open. `None` turns one off.
///
/// None fires early; each fires at most one tick of the wheel (10 ms) plus the length of the turn
/// at hand late. [`CloseReason::Timeout`](crate::CloseReason::Timeout) names the one that did.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Timeouts {
    /// Dialling, the look-up of the name and all attempts together. Default 10 s.
    pub connect: Option<Duration>,
    /// One attempt to dial one address. Default 5 s: two lost SYNs (1 s + 2 s) still fit.
    pub connect_attempt: Option<Duration>,
    /// From accept to the first byte of an inbound connection. Default 10 s.
    pub first_byte: Option<Duration>,
    /// From the first byte of a request until the handler has consumed it. Nothing extends it: a
    /// peer that dribbles is cut off all the same. It stands still while reading is paused or the
    /// connection is congested. Default 30 s; a protocol with long uploads turns it off and relies
    /// on `read`.
    pub request: Option<Duration>,
    /// Between two bytes of a request, or of the reply to a request of ours. Default 30 s, which
    /// spans several retransmissions.
    pub read: Option<Duration>,
    /// How long the application may owe a reply, or keep reading paused, with nothing queued.
    /// Default 60 s.
    pub response: Option<Duration>,
    /// How long queued output may stand still. Progress is what left the kernel's queue for the
    /// peer, so a slow reader that reads lives on. It is looked at every tick at first and then ever
    /// more rarely, at least sixteen times in a timeout of 160 ms and more; the deadline runs from
    /// the last progress seen. A peer's kernel opens a small window in steps of all of its buffer (8 KiB at 10 kB/s:
    /// every 1.2 s), so a timeout of a second or two can be too short for a slow one. Default 60 s.
    pub write: Option<Duration>,
    /// How long a connection may stay idle between requests. Default 75 s.
    pub idle: Option<Duration>,
    /// How long one side may be shut without anything moving on the other. It stands still while
    /// output is queued, the application owes a reply or reading is paused: `write` or `response`
    /// runs then. Default 10 s.
    pub half_closed: Option<Duration>,
    /// The grace before the last output of a closing connection must have left at
    /// [`Limits::flush_rate`] on average. Default 5 s.
    pub flush: Option<Duration>,
    /// After our FIN, how long the peer may be silent before the socket is closed. Default 5 s.
    pub linger_read: Option<Duration>,
    /// After our FIN, how long the peer's remaining bytes are read in all. Default 30 s.
    pub linger: Option<Duration>,
    /// How long a tunnel may carry nothing in either direction. Default 1 h.
    pub tunnel: Option<Duration>,
    /// The greatest age, shortened at random by up to a quarter so that connections opened
    /// together do not end together. It acts between two requests, 30 s later in any case.
    /// Default `None`.
    pub lifetime: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        const fn seconds(seconds: u64) -> Option<Duration> {
            Some(Duration::from_secs(seconds))
        }
        Self {
            connect: seconds(10),
            connect_attempt: seconds(5),
            first_byte: seconds(10),
            request: seconds(30),
            read: seconds(30),
            response: seconds(60),
            write: seconds(60),
            idle: seconds(75),
            half_closed: seconds(10),
            flush: seconds(5),
            linger_read: seconds(5),
            linger: seconds(30),
            tunnel: seconds(3_600),
            lifetime: None,
        }
    }
}

impl Timeouts {
    fn named(&self) -> [(&'static str, Option<Duration>); 14] {
        [
            ("timeouts.connect", self.connect),
            ("timeouts.connect_attempt", self.connect_attempt),
            ("timeouts.first_byte", self.first_byte),
            ("timeouts.request", self.request),
            ("timeouts.read", self.read),
            ("timeouts.response", self.response),
            ("timeouts.write", self.write),
            ("timeouts.idle", self.idle),
            ("timeouts.half_closed", self.half_closed),
            ("timeouts.flush", self.flush),
            ("timeouts.linger_read", self.linger_read),
            ("timeouts.linger", self.linger),
            ("timeouts.tunnel", self.tunnel),
            ("timeouts.lifetime", self.lifetime),
        ]
    }

    /// The first timeout that is zero, if one is.
    pub(crate) fn refuse_zero(&self) -> Result<(), ConfigError> {
        match self.named().into_iter().find(|(_, timeout)| *timeout == Some(Duration::ZERO)) {
            Some((setting, _)) => Err(ConfigError::new(setting, "longer than zero, or None")),
            None => Ok(()),
        }
    }
}

/// How much of each resource may be used.
///
/// Worst-case memory for buffers is `max_connections * (input_max + output_max)` plus one largest
/// write each; what is idle uses none of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Connections of all kinds at once. At the limit accepting pauses, and resumes when a 64th of
    /// them (at least one) is gone. Default `None`: the process's descriptor limit less a reserve
    /// for files, at most 65,536. What is set here is cut down to that, with a warning.
    pub max_connections: Option<usize>,
    /// Bytes the handler may leave unread before the connection is closed with
    /// [`InputLimit`](crate::CloseReason::InputLimit); the greatest request a handler can see in
    /// one piece. At most 1 GiB. Default 64 KiB.
    pub input_max: usize,
    /// Queued bytes beyond which a further write aborts the connection with
    /// [`OutputLimit`](crate::CloseReason::OutputLimit). It is checked before the write, so one
    /// write of any size is taken. Default 16 MiB.
    pub output_max: usize,
    /// Requests a connection may make before it is closed. Default `None`, unlimited.
    pub requests_max: Option<u64>,
    /// The least average rate, in bytes per second, at which the last output of a closing
    /// connection must leave after [`Timeouts::flush`]. Default 240, as Kestrel's.
    pub flush_rate: u64,
    /// Closures waiting in the mailbox before [`Handle::post`](crate::Handle::post) blocks.
    /// Default 4,096.
    pub mailbox_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            input_max: 64 * 1024,
            output_max: 16 * 1024 * 1024,
            requests_max: None,
            flush_rate: 240,
            mailbox_max: 4_096,
        }
    }
}

/// The largest `input_max`: far above any sensible request, far below what arithmetic could not
/// hold.
const INPUT_MAX: usize = 1 << 30;

impl Config {
    /// The first setting that is out of its range, if one is.
    pub(crate) fn refuse_out_of_range(&self) -> Result<(), ConfigError> {
        self.timeouts.refuse_zero()?;
        let limits = &self.limits;
        for (setting, value) in [
            ("limits.max_connections", limits.max_connections.unwrap_or(1)),
            ("limits.input_max", limits.input_max),
            ("limits.output_max", limits.output_max),
            ("limits.mailbox_max", limits.mailbox_max),
        ] {
            if value == 0 {
                return Err(ConfigError::new(setting, "at least 1"));
            }
        }
        if limits.input_max > INPUT_MAX {
            return Err(ConfigError::new("limits.input_max", "at most 1 GiB"));
        }
        if limits.requests_max == Some(0) {
            return Err(ConfigError::new("limits.requests_max", "at least 1, or None"));
        }
        if limits.flush_rate == 0 {
            return Err(ConfigError::new("limits.flush_rate", "at least 1"));
        }
        if self.shutdown_timeout == Some(Duration::ZERO) {
            return Err(ConfigError::new("shutdown_timeout", "longer than zero, or None"));
        }
        self.socket.refuse_out_of_range()
    }
}

/// When a connection counts as congested: above `high` queued bytes, until it has drained to `low`.
///
/// A congested connection is not read (one that [feeds](crate::Conn::feeds) another excepted), so a
/// client that sends requests and never reads the replies
/// costs little more than `high`. Default 64 KiB and 32 KiB.
///
/// ```
/// use wheelhouse::Watermarks;
///
/// let marks = Watermarks::new(1_024, 4_096)?;
/// assert_eq!((marks.low(), marks.high()), (1_024, 4_096));
/// assert!(Watermarks::new(2, 1).is_err());
/// # Ok::<(), wheelhouse::ConfigError>(())
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

/// Options set on every TCP socket, once on the listener where the kernel hands them on.
///
/// A platform without an option leaves it out.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SocketOptions {
    /// TCP_NODELAY: a small write leaves at once. Default on.
    pub nodelay: bool,
    /// SO_KEEPALIVE, which finds dead peers of quiet connections. Default 60 s idle, 10 s apart,
    /// 3 probes; `None` leaves them to the other deadlines.
    pub keepalive: Option<Keepalive>,
    /// TCP_USER_TIMEOUT, which finds dead peers of busy connections (Linux). It also counts the
    /// time a peer keeps its window shut, so what is set is never shorter than
    /// [`Timeouts::write`] + 30 s, and nothing where that is off. Default 90 s.
    pub user_timeout: Option<Duration>,
    /// TCP_NOTSENT_LOWAT in bytes: how much the kernel queues beyond what is in flight before it
    /// stops taking more, so that output waits where it can be counted. Default 128 KiB.
    pub notsent_lowat: Option<u32>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Keepalive::default()),
            user_timeout: Some(Duration::from_secs(90)),
            notsent_lowat: Some(128 * 1024),
        }
    }
}

impl SocketOptions {
    fn refuse_out_of_range(&self) -> Result<(), ConfigError> {
        if let Some(Keepalive { idle, interval, retries }) = self.keepalive
            && (idle < Duration::from_secs(1) || interval < Duration::from_secs(1) || retries == 0)
        {
            return Err(ConfigError::new("socket.keepalive", "at least 1 s, 1 s and 1 probe"));
        }
        if self.user_timeout == Some(Duration::ZERO) {
            return Err(ConfigError::new("socket.user_timeout", "longer than zero, or None"));
        }
        if self.notsent_lowat == Some(0) {
            return Err(ConfigError::new("socket.notsent_lowat", "at least 1, or None"));
        }
        Ok(())
    }

    /// These options with a user timeout that cannot beat the write deadline.
    pub(crate) fn beside(&self, timeouts: &Timeouts) -> Self {
        let user_timeout = match (self.user_timeout, timeouts.write) {
            (Some(timeout), Some(write)) => {
                Some(timeout.max(write.saturating_add(Duration::from_secs(30))))
            }
            _ => None,
        };
        Self { user_timeout, ..self.clone() }
    }
}

/// The probes of SO_KEEPALIVE, in whole seconds as kernels count them (tcp(7)).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Keepalive {
    /// Quiet time before the first probe.
    pub idle: Duration,
    /// Time between two probes.
    pub interval: Duration,
    /// Unanswered probes after which the peer counts as dead.
    pub retries: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(60), interval: Duration::from_secs(10), retries: 3 }
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
#[non_exhaustive]
pub struct ListenConfig {
    /// The kernel's queue of connections not yet accepted, which it may shorten to its own limit
    /// (`net.core.somaxconn`). Default 4,096.
    pub backlog: u32,
    /// The timeouts of connections accepted here. Default `None`: those of [`Config`].
    pub timeouts: Option<Timeouts>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self { backlog: 4_096, timeouts: None }
    }
}

impl ListenConfig {
    pub(crate) fn refuse_out_of_range(&self) -> Result<(), ConfigError> {
        if self.backlog == 0 || i32::try_from(self.backlog).is_err() {
            return Err(ConfigError::new("backlog", "from 1 to 2,147,483,647"));
        }
        self.timeouts.as_ref().map_or(Ok(()), Timeouts::refuse_zero)
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
        assert_eq!(off, [("timeouts.lifetime", None)]);
    }

    #[test]
    fn zero_is_refused_by_name() {
        for index in 0..Timeouts::default().named().len() {
            let mut config = Config::default();
            let timeouts = &mut config.timeouts;
            let fields = [
                &mut timeouts.connect,
                &mut timeouts.connect_attempt,
                &mut timeouts.first_byte,
                &mut timeouts.request,
                &mut timeouts.read,
                &mut timeouts.response,
                &mut timeouts.write,
                &mut timeouts.idle,
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
        let spoil: [(&str, Spoil); 8] = [
            ("limits.max_connections", |c| c.limits.max_connections = Some(0)),
            ("limits.input_max", |c| c.limits.input_max = 0),
            ("limits.output_max", |c| c.limits.output_max = 0),
            ("limits.requests_max", |c| c.limits.requests_max = Some(0)),
            ("limits.flush_rate", |c| c.limits.flush_rate = 0),
            ("limits.mailbox_max", |c| c.limits.mailbox_max = 0),
            ("shutdown_timeout", |c| c.shutdown_timeout = Some(Duration::ZERO)),
            ("socket.notsent_lowat", |c| c.socket.notsent_lowat = Some(0)),
        ];
        for (setting, spoil) in spoil {
            let mut config = Config::default();
            spoil(&mut config);
            assert_eq!(config.refuse_out_of_range().unwrap_err().setting(), setting);
        }
    }

    #[test]
    fn the_user_timeout_never_beats_the_write_deadline() {
        let mut timeouts = Timeouts::default();
        let options = SocketOptions::default();
        assert_eq!(options.beside(&timeouts).user_timeout, Some(Duration::from_secs(90)));
        timeouts.write = Some(Duration::from_secs(300));
        assert_eq!(options.beside(&timeouts).user_timeout, Some(Duration::from_secs(330)));
        timeouts.write = None;
        assert_eq!(options.beside(&timeouts).user_timeout, None);
    }
}
