//! How much of each resource may be used, in all and by each client.

use std::error;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;

use crate::error::ConfigError;
use crate::time::nanos;

/// How much of each resource may be used.
///
/// [`Config::worst_case_memory`](crate::Config::worst_case_memory) is what they come to.
///
/// # Overload
///
/// The pressure on the loop is the greatest of three shares: connections of those there may be
/// (where that are 64 or more), buffered bytes of `buffered_max`, and the average length of a turn
/// of `lag_max`. From [`shrink_idle_from`](Limits::shrink_idle_from) on, 80 %, idle connections may
/// stay for less long, linearly down to a second at 95 %; from 90 % on
/// [`Conn::decide_keep_alive`](crate::Conn::decide_keep_alive) decides to close; from 95 % on those
/// that have been idle longest are evicted, however short they have been idle, if `at_limit` is
/// [`AtLimit::EvictIdle`]. The pressure is checked ten times a second. Exempt connections are left
/// out of all of it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of all kinds at once, those of [exempt](crate::ListenConfig::exempt) listeners
    /// aside; [`at_limit`](Limits::at_limit) says what happens then. Default `None`: the process's
    /// descriptor limit, raised to the hard one, less what other reactors of the process have
    /// claimed and a reserve for files, at most 65,536. What is set here is cut down to what is
    /// left, with a warning. A process with several reactors should set it for each, or the first
    /// may leave none.
    pub max_connections: Option<usize>,
    /// What happens to a newcomer when there are as many connections as there may be.
    /// Default [`AtLimit::EvictIdle`].
    pub at_limit: AtLimit,
    /// What one client may use. Default: as much as it likes.
    pub clients: ClientLimits,
    /// How many connections are accepted from all clients together; those beyond it wait in the
    /// backlog. Default `None`, as many as come.
    pub accept_rate: Option<Rate>,
    /// Bytes the handler may leave unread before the connection is closed with
    /// [`InputLimit`](crate::CloseReason::InputLimit); the greatest request a handler can see in
    /// one piece. At most 1 GiB. Default 64 KiB.
    pub input_max: usize,
    /// Queued bytes beyond which a further write aborts the connection with
    /// [`OutputLimit`](crate::CloseReason::OutputLimit). It is checked before the write, so one
    /// write of any size is taken. Default 16 MiB.
    pub output_max: usize,
    /// Bytes of memory for unread input and queued output of all connections together, beyond which
    /// those are aborted with [`BufferLimit`](crate::CloseReason::BufferLimit) whose end frees the
    /// most. Copies count with their memory, [`Conn::write_bytes`](crate::Conn::write_bytes) with
    /// its length in each queue, and [`Conn::write_shared`](crate::Conn::write_shared) once for all
    /// of them. What callbacks wrote is offered to the kernel first; until then the excess is
    /// bounded by `output_max`. Default 256 MiB.
    pub buffered_max: usize,
    /// The average length of a turn at which the loop counts as fully loaded; see
    /// [`Limits`](#overload). Default 250 ms: ten times what counts as a stall. `None` leaves lag
    /// out of account.
    pub lag_max: Option<Duration>,
    /// From which [pressure](#overload) on, in percent, idle times shrink. Default 80; up to 94, as
    /// from 95 on connections are evicted. `None`: they stay as they are.
    pub shrink_idle_from: Option<u8>,
    /// Requests a connection may make before it is closed. Default `None`, unlimited. Connections of a
    /// pool have [`PoolConfig::leases_max`](crate::pool::PoolConfig::leases_max) in its place.
    pub requests_max: Option<u64>,
    /// The least average rate, in bytes per second, at which the last output of a closing
    /// connection must leave after [`Timeouts::flush`](crate::Timeouts::flush). Default 240, as
    /// Kestrel's.
    pub flush_rate: u64,
    /// Closures waiting in the mailbox before [`Handle::post`](crate::Handle::post) blocks, and as
    /// many that callbacks of the reactor itself posted, before they are refused. Default 4,096:
    /// what four turns run.
    pub mailbox_max: usize,
    #[doc(hidden)]
    pub _more: (),
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            at_limit: AtLimit::EvictIdle,
            clients: ClientLimits::default(),
            accept_rate: None,
            input_max: 64 * 1024,
            output_max: 16 * 1024 * 1024,
            buffered_max: 256 * 1024 * 1024,
            lag_max: Some(Duration::from_millis(250)),
            shrink_idle_from: Some(80),
            requests_max: None,
            flush_rate: 240,
            mailbox_max: 4_096,
            _more: (),
        }
    }
}

/// The largest `input_max`: far above any sensible request, far below what arithmetic could not
/// hold.
const INPUT_MAX: usize = 1 << 30;

impl Limits {
    pub(super) fn refuse_out_of_range(&self) -> Result<(), ConfigError> {
        for (setting, value) in [
            ("limits.max_connections", self.max_connections.unwrap_or(1)),
            ("limits.input_max", self.input_max),
            ("limits.output_max", self.output_max),
            ("limits.buffered_max", self.buffered_max),
            ("limits.mailbox_max", self.mailbox_max),
        ] {
            if value == 0 {
                return Err(ConfigError::new(setting, "at least 1"));
            }
        }
        if self.shrink_idle_from.is_some_and(|percent| !(1..95).contains(&percent)) {
            return Err(ConfigError::new("limits.shrink_idle_from", "from 1 to 94, or None"));
        }
        if self.input_max > INPUT_MAX {
            return Err(ConfigError::new("limits.input_max", "at most 1 GiB"));
        }
        if self.requests_max == Some(0) {
            return Err(ConfigError::new("limits.requests_max", "at least 1, or None"));
        }
        if self.flush_rate == 0 {
            return Err(ConfigError::new("limits.flush_rate", "at least 1"));
        }
        if self.lag_max == Some(Duration::ZERO) {
            return Err(ConfigError::new("limits.lag_max", "longer than zero, or None"));
        }
        if let AtLimit::Reject(reply) = &self.at_limit
            && reply.len() > REPLY_MAX
        {
            return Err(ConfigError::new("limits.at_limit", "a reply of at most 256 bytes"));
        }
        self.clients.refuse_out_of_range()
    }
}

/// The most that is sent to a newcomer that is rejected: little enough for any socket buffer.
const REPLY_MAX: usize = 256;

/// What happens to a newcomer when there are [`Limits::max_connections`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum AtLimit {
    /// Connections that have been idle longest are closed, with
    /// [`Evicted`](crate::CloseReason::Evicted), at most 32 or an eighth of them at a time. Where
    /// none is idle the newcomer waits in the backlog until one is, or a connection is gone.
    EvictIdle,
    /// The newcomer waits in the backlog until a connection is gone. A full table is a pressure,
    /// under which idle connections stay for less long, unless [`Limits::shrink_idle_from`] is
    /// `None`.
    Pause,
    /// The newcomer is accepted, sent these bytes (at most 256, in one write that does not wait),
    /// and closed. No callback hears of it.
    Reject(Bytes),
}

/// What one client may use, by its address.
///
/// A client is an IPv4 address or an IPv6 network, because a host that has one IPv6 address mostly
/// has a network of them (RFC 6177). An IPv6 address that carries an IPv4 one is that client:
/// mapped ones, and those that NAT64 translates with the well-known prefix `64:ff9b::/96` (RFC
/// 6052). Peers of Unix-domain sockets are not limited. Costs some 64 bytes for each client with a
/// connection or a recent one, for at most four times as many as there may be connections.
///
/// ```
/// use std::time::Duration;
/// use wheelhouse::config::{ClientLimits, Rate};
///
/// let mut clients = ClientLimits::default();
/// clients.connections = Some(20);
/// clients.rate = Some(Rate::new(100, Duration::from_secs(10)));
/// clients.allowed = vec!["10.0.0.0/8".parse()?];
/// # Ok::<(), wheelhouse::config::NetworkError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// Connections at once. Default `None`, unlimited. A connection counts from its accept until
    /// the client's FIN has been read or it has been closed here. One that only waits for the
    /// client's FIN, after the last reply and ours, is closed for the next connection of its
    /// client. One beyond the limit is refused after 100 ms, if no other of the client ends
    /// meanwhile, because a FIN may arrive later than the SYN that was sent after it; earlier where
    /// more than 4 of one client or 16 of all wait so, or descriptors are short.
    pub connections: Option<u32>,
    /// Connections within a time, refused ones included; at the change of two such times the
    /// earlier one counts in proportion. Default `None`, unlimited.
    pub rate: Option<Rate>,
    /// How a connection beyond the limits ends. Default [`Refusal::Close`].
    pub refusal: Refusal,
    /// The leading bits of an IPv4 address that make a client. Default 32.
    pub prefix_v4: u8,
    /// The leading bits of an IPv6 address that make a client. Default 64.
    pub prefix_v6: u8,
    /// Which clients are not limited: health checkers, balancers. Default none.
    pub allowed: Vec<Network>,
    #[doc(hidden)]
    pub _more: (),
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            connections: None,
            rate: None,
            refusal: Refusal::Close,
            prefix_v4: 32,
            prefix_v6: 64,
            allowed: Vec::new(),
            _more: (),
        }
    }
}

impl ClientLimits {
    fn refuse_out_of_range(&self) -> Result<(), ConfigError> {
        if self.connections == Some(0) {
            return Err(ConfigError::new("limits.clients.connections", "at least 1, or None"));
        }
        if self.prefix_v4 > 32 {
            return Err(ConfigError::new("limits.clients.prefix_v4", "at most 32"));
        }
        if self.prefix_v6 > 128 {
            return Err(ConfigError::new("limits.clients.prefix_v6", "at most 128"));
        }
        Ok(())
    }

    /// Whether anything is limited.
    pub(crate) const fn are_off(&self) -> bool {
        self.connections.is_none() && self.rate.is_none()
    }
}

/// How a connection beyond a client's limits ends. No callback hears of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Refusal {
    /// With a FIN.
    Close,
    /// With a reset, which leaves nothing behind on either side.
    Reset,
}

/// So many within such a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    count: u32,
    per: Duration,
}

impl Rate {
    /// At most `count` within `per`.
    ///
    /// # Panics
    ///
    /// If one of them is zero.
    pub const fn new(count: u32, per: Duration) -> Self {
        assert!(count > 0 && !per.is_zero(), "a rate of zero admits nothing");
        Self { count, per }
    }

    /// At most so many each second.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub const fn per_second(count: u32) -> Self {
        Self::new(count, Duration::from_secs(1))
    }

    /// How many.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// Within what time.
    pub const fn per(self) -> Duration {
        self.per
    }

    pub(crate) fn per_nanos(self) -> u64 {
        nanos(self.per)
    }
}

/// A network of IP addresses, as in `10.0.0.0/8`; an address alone is a network of one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// The network whose addresses begin with these bits, an IPv4 one with the first 32 of them.
    pub(crate) const fn of_bits(is_v4: bool, bits: u128, prefix: u8) -> Self {
        let address = if is_v4 {
            IpAddr::V4(std::net::Ipv4Addr::from_bits((bits >> 96) as u32))
        } else {
            IpAddr::V6(std::net::Ipv6Addr::from_bits(bits))
        };
        Self { address, prefix }
    }

    /// Whether `address` belongs to it. An IPv4 address mapped into IPv6 (`::ffff:0:0/96`) counts
    /// as IPv4. One that NAT64 translated with the well-known prefix (`64:ff9b::/96`, RFC 6052)
    /// counts as both: it belongs to the IPv4 networks of the address in its last 32 bits, and to
    /// the IPv6 networks that it is written in, so that `64:ff9b::/96` contains those addresses and
    /// no others.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.covers(address) || self.covers(untranslated(address))
    }

    fn covers(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && masked(address, self.prefix) == masked(self.address, self.prefix)
    }
}

/// The IPv4 address of an IPv6 address that carries one: mapped (RFC 4291), or translated by NAT64
/// with the well-known prefix (RFC 6052). Other addresses as they are: a prefix that a network chose
/// for its own translator says nothing to others.
pub(crate) fn untranslated(address: IpAddr) -> IpAddr {
    const WELL_KNOWN: u128 = 0x0064_ff9b << 96;
    match address.to_canonical() {
        IpAddr::V6(v6) if v6.to_bits() & !u128::from(u32::MAX) == WELL_KNOWN => {
            IpAddr::V4((v6.to_bits() as u32).into())
        }
        address => address,
    }
}

/// The first `prefix` bits of an address, in the upper end of a number.
pub(crate) fn masked(address: IpAddr, prefix: u8) -> u128 {
    let bits = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    bits & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

/// The first address of a network.
fn first_of(address: IpAddr, prefix: u8) -> IpAddr {
    let bits = masked(address, prefix);
    match address {
        IpAddr::V4(_) => IpAddr::V4(((bits >> 96) as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(bits.into()),
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let given: IpAddr = address.parse().map_err(|_| NetworkError)?;
        let longest = if given.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            // Only digits: a number as such could have a sign.
            Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().map_err(|_| NetworkError)?
            }
            Some(_) => return Err(NetworkError),
        };
        if prefix > longest {
            return Err(NetworkError);
        }
        // An IPv4 network written as a part of IPv6 is one all the same.
        let mapped = given.is_ipv6() && given.to_canonical().is_ipv4() && prefix >= 96;
        let (address, prefix) =
            if mapped { (given.to_canonical(), prefix - 96) } else { (given, prefix) };
        Ok(Self { address: first_of(address, prefix), prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A text that is no [`Network`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NetworkError;

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a network is an IP address, with or without a prefix: 10.0.0.0/8")
    }
}

impl error::Error for NetworkError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_contains_its_addresses_and_no_others() {
        for (net, inside, outside) in [
            ("10.0.0.0/8", "10.255.1.2", "11.0.0.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("0.0.0.0/0", "255.1.1.1", "::1"),
            ("::/0", "2001:db8::1", "127.0.0.1"),
            ("10.0.0.0/8", "::ffff:10.1.1.1", "::10.1.1.1"),
            ("::ffff:10.0.0.0/104", "10.1.1.1", "11.1.1.1"),
            ("192.0.2.0/24", "64:ff9b::192.0.2.7", "64:ff9b::192.0.3.7"),
            ("192.0.2.0/24", "64:ff9b::192.0.2.7", "64:ff9b:1::192.0.2.7"),
            ("64:ff9b::/96", "64:ff9b::192.0.2.7", "192.0.2.7"),
            ("64:ff9b::/96", "64:ff9b::0.0.0.0", "64:ff9b::1:0:0"),
        ] {
            assert!(network(net).contains(ip(inside)), "{net} {inside}");
            assert!(!network(net).contains(ip(outside)), "{net} {outside}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in
            ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/+8", "host/8", "/8"]
        {
            assert_eq!(text.parse::<Network>(), Err(NetworkError), "{text}");
        }
        assert_eq!(network("10.0.0.1/8").to_string(), "10.0.0.0/8");
    }
}
