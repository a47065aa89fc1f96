//! Options of sockets.

use std::net::IpAddr;
use std::time::Duration;

use super::Timeouts;
use crate::error::ConfigError;

/// Options set on every TCP socket, once on the listener where the kernel hands them on.
///
/// A platform without an option leaves it out.
#[derive(Clone, Debug, PartialEq)]
pub struct SocketOptions {
    /// TCP_NODELAY: a small write leaves at once. Default on.
    pub nodelay: bool,
    /// SO_KEEPALIVE, which finds dead peers of quiet connections. Default 60 s idle, 10 s apart,
    /// 3 probes; `None` leaves them to the other deadlines.
    pub keepalive: Option<Keepalive>,
    /// TCP_USER_TIMEOUT, by which the kernel gives up a peer that acknowledges nothing (Linux).
    /// Default `None`: the reactor finds such a peer by [`Timeouts::write`], also where an idle
    /// connection or a tunnel has unacknowledged output. Set, it also ends peers that read slowly:
    /// the kernel counts from the first probe of a closed window until the window takes a whole
    /// segment, which a reader of 1 kB/s with a small buffer can keep it from for minutes. What is
    /// set is never shorter than [`Timeouts::write`] + 30 s, and nothing where that is off.
    pub user_timeout: Option<Duration>,
    /// TCP_NOTSENT_LOWAT in bytes: how much the kernel queues beyond what is in flight before it
    /// stops taking more, so that output waits where it can be counted. Default 128 KiB.
    pub notsent_lowat: Option<u32>,
    /// The address that connections are dialled from; it means nothing for those that are accepted.
    /// For hosts with several addresses, of which a peer expects one. The port is chosen when the
    /// peer is known (IP_BIND_ADDRESS_NO_PORT on Linux), so that each peer can be dialled from all
    /// ephemeral ports. Of a name only addresses of the same family are dialled. Default `None`: the
    /// system chooses by its routes.
    pub local: Option<IpAddr>,
    #[doc(hidden)]
    pub _more: (),
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Keepalive::default()),
            user_timeout: None,
            notsent_lowat: Some(128 * 1024),
            local: None,
            _more: (),
        }
    }
}

impl SocketOptions {
    pub(super) fn refuse_out_of_range(&self) -> Result<(), ConfigError> {
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
