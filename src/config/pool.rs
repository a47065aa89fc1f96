//! How many connections a pool holds, for how long, and how it dials.

use std::time::Duration;

use crate::config::{SocketOptions, Timeouts};
use crate::error::ConfigError;
use crate::id::{EndpointId, PoolGroupId};

/// Which idle connection is leased next.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum PoolOrder {
    /// The one used last: the others stay idle, and those that are not needed are closed after
    /// [`PoolConfig::idle`]. Its buffers in the kernel and at the server are warm.
    #[default]
    Lifo,
    /// The one idle longest: all connections are used in turn. So none is idle for long where
    /// something between closes silent connections early, and none is closed for being idle while
    /// requests come.
    Fifo,
}

/// The settings of a pool: connections to one target that are leased, used and given back.
///
/// ```
/// use std::time::Duration;
/// use wheelhouse::pool::PoolConfig;
///
/// let config = PoolConfig { size: 8, acquire: Duration::from_secs(1), ..PoolConfig::default() };
/// ```
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// The most connections: those that are dialled, checked, idle, leased, or closing and not yet
    /// closed. Default 64, at most 4,096.
    pub size: usize,
    /// The most idle connections; one that is given back beyond them is closed with a FIN. Default
    /// 32, half of the size, so that a burst does not keep twice of what is needed open.
    pub idle_max: usize,
    /// Connections that are kept idle: they are dialled one after the other before they are needed,
    /// and stay beyond [`idle`](PoolConfig::idle). Default 0.
    pub idle_min: usize,
    /// The most that wait for a connection at once; what asks beyond them is refused at once.
    /// Default 1,024. Each costs 40 bytes.
    pub waiters_max: usize,
    /// How long what asks may wait, unless it says otherwise. Default 5 s, the usual connect timeout
    /// of a proxy: a client that waits longer has mostly gone.
    pub acquire: Duration,
    /// Which idle connection is leased next. Default [`PoolOrder::Lifo`].
    pub order: PoolOrder,
    /// How long a connection may go unused before it is closed; a ping is no use of it. It should be
    /// less than what the server allows: a server that closes idle connections would at some time
    /// close one just as a request arrives. Default 50 s, below the 60 s and 75 s that servers
    /// commonly allow.
    pub idle: Option<Duration>,
    /// The age at which a connection is replaced, shortened at random by up to a quarter; one that
    /// is leased then is closed when it is given back. Two are at least `lifetime / size` apart, so
    /// that they are not all dialled again at once. Default 30 min, so that a change of what the
    /// name resolves to is followed, and a leak at the server is bounded.
    pub lifetime: Option<Duration>,
    /// How often a connection is leased before it is replaced. Default `None`: as often as it lasts.
    pub leases_max: Option<u64>,
    /// How long a new connection has for its handshake, such as a login, before its first lease: the
    /// handler conducts it and then calls [`Conn::ready`](crate::Conn::ready). Default `None`: there
    /// is none, and a connection may be leased once it stands.
    pub handshake: Option<Duration>,
    /// How long a connection that is [cleaned](crate::Conn::clean) has until its handler calls
    /// [`Conn::ready`](crate::Conn::ready). It keeps its place meanwhile. Default 1 s.
    pub cleaning: Duration,
    /// How long a connection is idle before [`on_health_check`](crate::Handler::on_health_check) is
    /// called for it, shortened at random by up to a fifth. If that sends nothing, the connection is
    /// idle again at once. Default 30 s; `None` checks none.
    pub ping_after: Option<Duration>,
    /// How long a connection has to answer what `on_health_check` sent, until its handler calls
    /// [`Conn::ready`](crate::Conn::ready). Default 1 s.
    pub ping: Duration,
    /// The pause after a dial that failed. A connection that its server ends within a second, before an
    /// exchange over it has come to its end, its handshake aside, counts as a dial that failed: it was
    /// accepted and not served. So does one that cannot be leased when its handshake is over, as input is
    /// left. The pause doubles with each further failure up to
    /// [`backoff_max`](PoolConfig::backoff_max), and is shortened at random by up to all of it, so
    /// that many pools do not dial in step ("full jitter", Brooker 2015). After a failure one
    /// connection is dialled at a time, and with each success one more, as in TCP's slow start.
    /// Default 100 ms.
    pub backoff: Duration,
    /// The longest pause after a dial that failed, while nothing waits. Default 5 s.
    pub backoff_max: Duration,
    /// The longest pause after a dial that failed, while something waits: so what waits outlives a
    /// short outage. Default 500 ms.
    pub backoff_waiting: Duration,
    /// After how many failed dials in a row the server counts as down: a warning says so, and
    /// [`PoolStats::is_down`](crate::pool::PoolStats::is_down). The next exchange that comes to its end
    /// ends that: a lease that is given back, or a ping. A handshake does not, as a server may greet and
    /// close.
    /// A dial that fails for want of a port or a descriptor of ours does not count. Default 3, as
    /// HAProxy's `fall`.
    pub fall: u32,
    /// Whether what waits is answered with an error as soon as a dial fails and no connection is
    /// left. Default `false`: it waits until its own time is over.
    ///
    /// A connection that is leased, or still dialled, is left: it may serve what waits. So where the
    /// server has become unreachable without a reset, one connection that waits for a reply, until its
    /// [`Timeouts::read`] (30 s), or a dial without an answer, until its [`Timeouts::connect`] (10 s),
    /// makes the others wait for all of [`acquire`](PoolConfig::acquire), and they get
    /// [`AcquireFailure::Timeout`](crate::pool::AcquireFailure::Timeout). Shorter ones in
    /// [`timeouts`](PoolConfig::timeouts) bound that.
    pub fail_fast: bool,
    /// The endpoint whose health the pool follows: it dials only while that is available, at once
    /// when it comes back, and its failed dials and replies that do not come count against it. With
    /// [`fail_fast`](PoolConfig::fail_fast) what waits is answered at once while it is not available
    /// and no connection is left. Default `None`.
    pub endpoint: Option<EndpointId>,
    /// The group whose limit on the connections of all its pools applies as well; see
    /// [`Context::add_pool_group`](crate::Context::add_pool_group). Default `None`.
    pub group: Option<PoolGroupId>,
    /// How long a lease may last before it is reported, once, in a warning. Default `None`.
    pub lease_report: Option<Duration>,
    /// The timeouts of the connections, in place of the reactor's. `idle`, `ping_after` and
    /// `lifetime` do not apply, as the pool has its own. Default `None`: the reactor's.
    pub timeouts: Option<Timeouts>,
    /// Options of the sockets, in place of the reactor's. Default `None`: the reactor's.
    pub socket: Option<SocketOptions>,
    #[doc(hidden)]
    pub _more: (),
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            size: 64,
            idle_max: 32,
            idle_min: 0,
            waiters_max: 1_024,
            acquire: Duration::from_secs(5),
            order: PoolOrder::Lifo,
            idle: Some(Duration::from_secs(50)),
            lifetime: Some(Duration::from_secs(30 * 60)),
            leases_max: None,
            handshake: None,
            cleaning: Duration::from_secs(1),
            ping_after: Some(Duration::from_secs(30)),
            ping: Duration::from_secs(1),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            backoff_waiting: Duration::from_millis(500),
            fall: 3,
            fail_fast: false,
            endpoint: None,
            group: None,
            lease_report: None,
            timeouts: None,
            socket: None,
            _more: (),
        }
    }
}

/// The most connections of one pool: each acquire and release may look for one of them.
const SIZE_MAX: usize = 4_096;

impl PoolConfig {
    /// The first setting that is out of its range, if one is.
    pub(crate) fn refuse_out_of_range(&self) -> Result<(), ConfigError> {
        if !(1..=SIZE_MAX).contains(&self.size) {
            return Err(ConfigError::new("pool.size", "from 1 to 4,096"));
        }
        if self.idle_min > self.size {
            return Err(ConfigError::new("pool.idle_min", "at most pool.size"));
        }
        if self.idle_max < self.idle_min {
            return Err(ConfigError::new("pool.idle_max", "at least pool.idle_min"));
        }
        if self.fall == 0 {
            return Err(ConfigError::new("pool.fall", "at least 1"));
        }
        if self.leases_max == Some(0) {
            return Err(ConfigError::new("pool.leases_max", "at least 1, or None"));
        }
        let always = [
            ("pool.acquire", self.acquire),
            ("pool.cleaning", self.cleaning),
            ("pool.ping", self.ping),
            ("pool.backoff", self.backoff),
            ("pool.backoff_max", self.backoff_max),
            ("pool.backoff_waiting", self.backoff_waiting),
        ];
        for (name, duration) in always {
            if duration.is_zero() {
                return Err(ConfigError::new(name, "longer than zero"));
            }
        }
        let optional = [
            ("pool.idle", self.idle),
            ("pool.lifetime", self.lifetime),
            ("pool.handshake", self.handshake),
            ("pool.ping_after", self.ping_after),
        ];
        for (name, duration) in optional {
            if duration == Some(Duration::ZERO) {
                return Err(ConfigError::new(name, "longer than zero, or None"));
            }
        }
        if self.lease_report.is_some_and(|report| report < Duration::from_secs(2)) {
            return Err(ConfigError::new("pool.lease_report", "at least 2 s, or None"));
        }
        if let Some(socket) = &self.socket {
            socket.refuse_out_of_range()?;
        }
        self.timeouts.as_ref().map_or(Ok(()), Timeouts::refuse_zero)
    }
}

/// How one connection is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcquireOptions {
    /// How long to wait at most. Default `None`: [`PoolConfig::acquire`].
    pub timeout: Option<Duration>,
    #[doc(hidden)]
    pub _more: (),
}
