//! What each client uses: its connections, and how often it connects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::ops::Bound;

use crate::address::Address;
use crate::config::{ClientLimits, Network, Rate, masked, untranslated};
use crate::id::ConnId;
use crate::time::Instant;

/// Which limit of its client a newcomer exceeds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Excess {
    /// The client has as many connections as it may.
    Connections,
    /// The client connects too often.
    Rate,
}

/// Clients that one arrival checks where too many are known.
const CHECKED_PER_ARRIVAL: usize = 16;

/// The clients with a connection, and those that came lately.
///
/// A tree rather than a hash table: peers choose their addresses, and nothing they choose makes a
/// look-up in a tree slow.
#[derive(Debug)]
pub(crate) struct Clients {
    connections: u32,
    rate: Option<Rate>,
    prefix_v4: u8,
    prefix_v6: u8,
    allowed: Vec<Network>,
    known: BTreeMap<ClientKey, Client>,
    /// How many may be known.
    most: usize,
    /// How far the walk around all clients has come that forgets some.
    forgotten_to: Option<ClientKey>,
    /// The connections that linger, by client, and in the order in which they began to.
    lingering: BTreeMap<(ClientKey, LingerNumber), ConnId>,
    /// The number of the latest of them.
    lingered: u64,
}

/// The place of a lingering connection among all that ever lingered, from 1 on.
pub(crate) type LingerNumber = NonZeroU64;

/// A client by its address, or by as much of it as makes a client.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct ClientKey {
    is_v4: bool,
    bits: u128,
}

#[derive(Debug, Default)]
struct Client {
    connections: u32,
    /// When the current window began, and which clients came in it and in the one before.
    window: Instant,
    arrivals: u32,
    arrivals_before: u32,
}

impl Clients {
    /// `None` if nothing is limited.
    pub(crate) fn new(limits: &ClientLimits, capacity: usize) -> Option<Self> {
        (!limits.are_off()).then(|| Self {
            connections: limits.connections.unwrap_or(u32::MAX),
            rate: limits.rate,
            prefix_v4: limits.prefix_v4,
            prefix_v6: limits.prefix_v6,
            allowed: limits.allowed.clone(),
            known: BTreeMap::new(),
            most: capacity.saturating_mul(4),
            forgotten_to: None,
            lingering: BTreeMap::new(),
            lingered: 0,
        })
    }

    /// The client at `address`; `None` if it is not limited.
    fn key_of(&self, address: IpAddr) -> Option<ClientKey> {
        if self.allowed.iter().any(|network| network.contains(address)) {
            return None;
        }
        let address = untranslated(address);
        let prefix = if address.is_ipv4() { self.prefix_v4 } else { self.prefix_v6 };
        Some(ClientKey { is_v4: address.is_ipv4(), bits: masked(address, prefix) })
    }

    /// The client at a remote end; `None` if it is not limited.
    pub(crate) fn key_of_peer(&self, peer: &Address) -> Option<ClientKey> {
        peer.ip().and_then(|addr| self.key_of(addr.ip()))
    }

    /// The limits change while clients are counted.
    pub(crate) fn change(&mut self, limits: &ClientLimits) {
        self.connections = limits.connections.unwrap_or(u32::MAX);
        self.rate = limits.rate;
    }

    /// At most `count` clients behind `from`, in their order, each with how many connections it has.
    pub(crate) fn some_from(
        &self,
        from: Option<ClientKey>,
        count: usize,
    ) -> impl Iterator<Item = (ClientKey, u32)> {
        let from = from.map_or(Bound::Unbounded, Bound::Excluded);
        let known = self.known.range((from, Bound::Unbounded)).take(count);
        known.map(|(key, client)| (*key, client.connections))
    }

    /// The network that a client is.
    pub(crate) const fn network_of(&self, key: ClientKey) -> Network {
        let prefix = if key.is_v4 { self.prefix_v4 } else { self.prefix_v6 };
        Network::of_bits(key.is_v4, key.bits, prefix)
    }

    /// How many connections all of them have.
    #[cfg(feature = "sim")]
    pub(crate) fn connections(&self) -> usize {
        self.known.values().map(|client| client.connections as usize).sum()
    }

    /// Counts an arrival, and a connection unless there is one too many.
    pub(crate) fn arrive(&mut self, key: ClientKey, now: Instant) -> Result<(), Excess> {
        if self.known.len() >= self.most && !self.known.contains_key(&key) {
            self.forget_some(now);
        }
        let client = self.known.entry(key).or_default();
        if let Some(rate) = self.rate
            && !client.comes_within(rate, now)
        {
            return Err(Excess::Rate);
        }
        if self.connect(key) { Ok(()) } else { Err(Excess::Connections) }
    }

    /// Counts a connection whose arrival has been counted, unless there is one too many.
    pub(crate) fn connect(&mut self, key: ClientKey) -> bool {
        if self.is_at_limit(key) {
            return false;
        }
        self.known.entry(key).or_default().connections += 1;
        true
    }

    /// Whether a client has as many connections as it may.
    pub(crate) fn is_at_limit(&self, key: ClientKey) -> bool {
        self.known.get(&key).is_some_and(|client| client.connections >= self.connections)
    }

    /// A connection of a client begins to linger. The number is to be given back when it
    /// [departs](Clients::depart); `None` if it need not be known.
    pub(crate) fn linger(&mut self, key: ClientKey, id: ConnId) -> Option<LingerNumber> {
        // Without a limit on connections none is ever evicted for it.
        if self.connections == u32::MAX {
            return None;
        }
        self.lingered += 1;
        let number = LingerNumber::new(self.lingered)?;
        self.lingering.insert((key, number), id);
        Some(number)
    }

    /// The connections of a client that linger, the one that began to first being the first.
    pub(crate) fn lingering(&self, key: ClientKey) -> impl Iterator<Item = ConnId> {
        let all = (key, LingerNumber::MIN)..=(key, LingerNumber::MAX);
        self.lingering.range(all).map(|(_, id)| *id)
    }

    /// How many connections of all clients linger.
    #[cfg(feature = "sim")]
    pub(crate) fn lingering_count(&self) -> usize {
        self.lingering.len()
    }

    /// One of its connections is gone, the lingering one of that number if it lingered.
    pub(crate) fn depart(&mut self, key: ClientKey, lingered: Option<LingerNumber>) {
        if let Some(number) = lingered {
            self.lingering.remove(&(key, number));
        }
        let Some(client) = self.known.get_mut(&key) else { return };
        client.connections = client.connections.saturating_sub(1);
        if client.connections == 0 && self.rate.is_none() {
            self.known.remove(&key);
        }
    }

    /// Makes room for one more client: of the [`CHECKED_PER_ARRIVAL`] that come next in a walk
    /// around all clients, forgets those that have no connection and did not come lately, and if
    /// too many are left, as many others without a connection, whose rates begin anew then. So
    /// memory is bounded whatever comes: at most a quarter of those known are connected, and where
    /// many of these stand in a row, as many more clients are known as arrive while the walk passes
    /// them.
    fn forget_some(&mut self, now: Instant) {
        let recent = self.rate.map_or(0, |rate| rate.per_nanos().saturating_mul(2));
        let from = self.forgotten_to.map_or(Bound::Unbounded, Bound::Excluded);
        // Behind the last client comes the first.
        let around = self.known.range((from, Bound::Unbounded)).chain(&self.known);
        let mut unconnected = Vec::with_capacity(CHECKED_PER_ARRIVAL);
        for (key, client) in around.take(CHECKED_PER_ARRIVAL) {
            self.forgotten_to = Some(*key);
            if client.connections == 0 {
                unconnected.push((now.nanos_since(client.window) < recent, *key));
            }
        }
        unconnected.sort_unstable();
        for (came_lately, key) in unconnected {
            if !came_lately || self.known.len() >= self.most {
                self.known.remove(&key);
            }
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.known.len()
    }
}

impl Client {
    /// Counts an arrival, and says whether it is within `rate`: those of this window and, in
    /// proportion to what is left of it, of the one before.
    fn comes_within(&mut self, rate: Rate, now: Instant) -> bool {
        let per = rate.per_nanos();
        let age = now.nanos_since(self.window);
        if age >= per {
            self.arrivals_before = if age / per == 1 { self.arrivals } else { 0 };
            self.arrivals = 0;
            self.window = self.window.after(age - age % per);
        }
        self.arrivals = self.arrivals.saturating_add(1);
        let left = per - now.nanos_since(self.window).min(per);
        let before = u128::from(self.arrivals_before) * u128::from(left) / u128::from(per);
        before + u128::from(self.arrivals) <= u128::from(rate.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn clients(change: impl FnOnce(&mut ClientLimits), capacity: usize) -> Clients {
        let mut limits = ClientLimits::default();
        change(&mut limits);
        Clients::new(&limits, capacity).unwrap()
    }

    fn key(clients: &Clients, address: &str) -> ClientKey {
        clients.key_of(address.parse().unwrap()).unwrap()
    }

    fn at(millis: u64) -> Instant {
        Instant::EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn nothing_is_kept_without_a_limit() {
        assert!(Clients::new(&ClientLimits::default(), 1).is_none());
    }

    #[test]
    fn a_client_has_its_share_and_gets_it_back() {
        let mut clients = clients(|limits| limits.connections = Some(2), 8);
        let (one, other) = (key(&clients, "10.0.0.1"), key(&clients, "10.0.0.2"));
        assert_eq!(clients.arrive(one, at(0)), Ok(()));
        assert_eq!(clients.arrive(one, at(0)), Ok(()));
        assert_eq!(clients.arrive(one, at(0)), Err(Excess::Connections));
        assert_eq!(clients.arrive(other, at(0)), Ok(()));
        clients.depart(one, None);
        assert_eq!(clients.arrive(one, at(0)), Ok(()));
        for key in [one, one, other] {
            clients.depart(key, None);
        }
        assert_eq!(clients.len(), 0);
    }

    #[test]
    fn lingering_connections_are_found_by_client_and_in_order() {
        let mut clients = clients(|limits| limits.connections = Some(4), 8);
        let (one, other) = (key(&clients, "10.0.0.1"), key(&clients, "10.0.0.2"));
        let id = |place| ConnId::new(place, 1);
        let mut numbers = Vec::new();
        for (client, place) in [(one, 3), (other, 2), (one, 1), (one, 0)] {
            clients.arrive(client, at(0)).unwrap();
            numbers.push(clients.linger(client, id(place)));
        }
        assert_eq!(clients.lingering(one).collect::<Vec<_>>(), [id(3), id(1), id(0)]);
        clients.depart(one, numbers[2]);
        assert_eq!(clients.lingering(one).collect::<Vec<_>>(), [id(3), id(0)]);
        assert_eq!(clients.lingering(other).collect::<Vec<_>>(), [id(2)]);
        assert_eq!((clients.lingering_count(), clients.connections()), (3, 3));
    }

    #[test]
    fn a_network_of_ipv6_is_one_client_and_mapped_ipv4_is_ipv4() {
        let clients = clients(|limits| limits.connections = Some(1), 8);
        let key = |address| key(&clients, address);
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
        assert_ne!(key("0.0.0.0"), key("::"));
    }

    #[test]
    fn a_client_behind_nat64_is_its_ipv4_address() {
        let clients = clients(
            |limits| {
                limits.connections = Some(1);
                limits.allowed = vec!["198.51.100.0/24".parse().unwrap()];
            },
            8,
        );
        let key = |address| key(&clients, address);
        assert_eq!(key("64:ff9b::192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("64:ff9b::192.0.2.1"), key("64:ff9b::192.0.2.2"));
        // A prefix that a network chose itself, and the one that RFC 8215 leaves to networks.
        assert_eq!(key("2001:db8:64::192.0.2.1"), key("2001:db8:64::192.0.2.2"));
        assert_eq!(key("64:ff9b:1::192.0.2.1"), key("64:ff9b:1::192.0.2.2"));
        assert_ne!(key("64:ff9b:1::192.0.2.1"), key("192.0.2.1"));
        assert_eq!(clients.key_of("64:ff9b::198.51.100.7".parse().unwrap()), None);
    }

    #[test]
    fn an_allowed_address_is_no_client() {
        let clients = clients(
            |limits| {
                limits.connections = Some(1);
                limits.allowed = vec!["127.0.0.0/8".parse().unwrap()];
            },
            8,
        );
        assert_eq!(clients.key_of("127.1.2.3".parse().unwrap()), None);
        assert!(clients.key_of("10.0.0.1".parse().unwrap()).is_some());
    }

    #[test]
    fn a_rate_slides() {
        let rate = Rate::new(10, Duration::from_secs(1));
        let mut clients = clients(|limits| limits.rate = Some(rate), 8);
        let key = key(&clients, "10.0.0.1");
        for _ in 0..10 {
            assert_eq!(clients.arrive(key, at(5_900)), Ok(()));
        }
        assert_eq!(clients.arrive(key, at(5_999)), Err(Excess::Rate));
        // Half of the window later half of the eleven still count.
        for _ in 0..5 {
            assert_eq!(clients.arrive(key, at(6_500)), Ok(()));
        }
        assert_eq!(clients.arrive(key, at(6_500)), Err(Excess::Rate));
        assert_eq!(clients.arrive(key, at(60_000)), Ok(()));
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let rate = Rate::per_second(1);
        let mut clients = clients(|limits| limits.rate = Some(rate), 16);
        let held = key(&clients, "192.0.2.1");
        clients.arrive(held, at(0)).unwrap();
        for number in 0..10_000_u32 {
            let key = key(&clients, &format!("10.0.{}.{}", number >> 8, number & 255));
            clients.arrive(key, at(u64::from(number / 100))).unwrap();
            clients.depart(key, None);
            assert!(clients.len() <= 64);
        }
        assert!(clients.known.contains_key(&held), "a client with a connection is not forgotten");
    }

    #[test]
    fn memory_is_bounded_where_the_connected_stand_in_a_row() {
        let rate = Rate::per_second(1);
        let mut clients = clients(|limits| limits.rate = Some(rate), 1_000);
        for number in 0..1_000_u32 {
            let key = key(&clients, &format!("10.0.{}.{}", number >> 8, number & 255));
            clients.arrive(key, at(0)).unwrap();
        }
        for number in 0..20_000_u32 {
            let key = key(&clients, &format!("10.1.{}.{}", number >> 8, number & 255));
            clients.arrive(key, at(0)).unwrap();
            clients.depart(key, None);
            assert!(clients.len() <= 4_000 + 1_000 / CHECKED_PER_ARRIVAL + 1);
        }
        assert_eq!(clients.connections(), 1_000);
    }
}
