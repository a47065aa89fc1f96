//! How an endpoint is checked, and when it is ejected from its group.

use std::time::Duration;

use crate::error::ConfigError;
use crate::id::EndpointGroupId;

/// How an endpoint is checked.
///
/// Each check is a connection of its own, whose [origin](crate::Conn::origin) is
/// [`Origin::Check`](crate::Origin::Check). It has a session, a place in the table and deadlines like
/// any other that is dialled.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum HealthCheck {
    /// Not at all: the endpoint is up, and only failures that are noted eject it.
    None,
    /// By connecting: the check passes once the connection stands, which is closed with a FIN then.
    /// It finds servers that are gone, and not those that accept and do not answer.
    #[default]
    Connect,
    /// By an exchange: when the connection stands,
    /// [`Handler::on_test_request`](crate::Handler::on_test_request) sends a request, and
    /// [`Conn::ready`](crate::Conn::ready) says that the reply is right. Any other end is a failure.
    TestRequest,
}

/// The settings of an endpoint: a target that is dialled, and whose health is watched.
///
/// ```
/// use std::time::Duration;
/// use wheelhouse::health::{EndpointConfig, HealthCheck};
///
/// let config = EndpointConfig {
///     check: HealthCheck::TestRequest,
///     interval: Duration::from_secs(5),
///     ..EndpointConfig::default()
/// };
/// ```
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// How it is checked. Default [`HealthCheck::Connect`].
    pub check: HealthCheck,
    /// The pause between the end of a check and the next one while the endpoint is up. This and the
    /// two that follow are shortened at random by up to a fifth, so that the checks of many reactors
    /// do not come in step. Default 2 s, as HAProxy's `inter`.
    pub interval: Duration,
    /// The pause while the endpoint is going up or down, and while it is down and is wanted:
    /// something has asked a [pool](crate::pool::PoolConfig::endpoint) of it and its time to wait is
    /// not over, or asked or was refused within the last
    /// [`down_interval`](EndpointConfig::down_interval). Default 500 ms.
    pub fast_interval: Duration,
    /// The pause while the endpoint is down. Default 5 s.
    pub down_interval: Duration,
    /// How long a check may take, from its dial to its end: the look-up of a name, the connection
    /// and the exchange. It is closed with a [`Timeout`](crate::Timeout::Check) then and has failed.
    /// Default 1 s.
    pub timeout: Duration,
    /// How many checks in a row must pass until an endpoint that was down is up. The first check of
    /// all that passes is enough. Default 2, as HAProxy's `rise`.
    pub rise: u32,
    /// How many checks in a row must fail until an endpoint that was up is down. The first check of
    /// all is enough. Default 3, as HAProxy's `fall`.
    pub fall: u32,
    /// How long the [weight](crate::health::EndpointStats::weight) of an endpoint takes to grow to
    /// its whole after it was down or ejected, so that its caches and its compiler get warm. Not
    /// after the first check. Default 10 s; `None`: it is whole at once.
    pub slow_start: Option<Duration>,
    /// How many failures in a row eject it: dials that fail, connections that are reset before a byte
    /// has come, that fall silent, and what the application
    /// [notes](crate::Context::note_endpoint_failure). Failures for want of a port, a descriptor or a
    /// place of ours do not count. Default 5, as Envoy's `consecutive_5xx`; `None` ejects never.
    pub eject_after: Option<u32>,
    /// How long it is ejected the first time; the second time, if that comes within
    /// [`ejection_max`](EndpointConfig::ejection_max) after the first has ended, twice as long, and so
    /// on. A check that passes ends it. Default 30 s.
    pub ejection: Duration,
    /// The longest ejection. Default 300 s.
    pub ejection_max: Duration,
    /// The group in which it is an alternative to the others, see
    /// [`Context::add_endpoint_group`](crate::Context::add_endpoint_group). Default `None`: it has
    /// none, and therefore is never ejected.
    pub group: Option<EndpointGroupId>,
    #[doc(hidden)]
    pub _more: (),
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            check: HealthCheck::Connect,
            interval: Duration::from_secs(2),
            fast_interval: Duration::from_millis(500),
            down_interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            slow_start: Some(Duration::from_secs(10)),
            eject_after: Some(5),
            ejection: Duration::from_secs(30),
            ejection_max: Duration::from_secs(300),
            group: None,
            _more: (),
        }
    }
}

/// The shortest pause between two checks: one tick of the wheel.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

impl HealthCheck {
    /// Whether there are checks.
    pub(crate) const fn is_some(self) -> bool {
        !matches!(self, Self::None)
    }
}

impl EndpointConfig {
    /// The first setting that is out of its range, if one is.
    pub(crate) fn refuse_out_of_range(&self) -> Result<(), ConfigError> {
        let intervals = [
            ("endpoint.interval", self.interval),
            ("endpoint.fast_interval", self.fast_interval),
            ("endpoint.down_interval", self.down_interval),
            ("endpoint.timeout", self.timeout),
        ];
        for (name, duration) in intervals {
            if duration < INTERVAL_MIN {
                return Err(ConfigError::new(name, "at least 10 ms"));
            }
        }
        if self.rise == 0 {
            return Err(ConfigError::new("endpoint.rise", "at least 1"));
        }
        if self.fall == 0 {
            return Err(ConfigError::new("endpoint.fall", "at least 1"));
        }
        if self.slow_start == Some(Duration::ZERO) {
            return Err(ConfigError::new("endpoint.slow_start", "longer than zero, or None"));
        }
        if self.eject_after == Some(0) {
            return Err(ConfigError::new("endpoint.eject_after", "at least 1, or None"));
        }
        if self.ejection.is_zero() {
            return Err(ConfigError::new("endpoint.ejection", "longer than zero"));
        }
        if self.ejection_max < self.ejection {
            return Err(ConfigError::new("endpoint.ejection_max", "at least endpoint.ejection"));
        }
        Ok(())
    }
}
