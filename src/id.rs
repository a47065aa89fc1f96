//! The names of connections, listeners, alarms, pools and endpoints, which outlive what they name.

use std::fmt;
use std::num::NonZeroU64;

/// The name of a connection, never reused: once it is closed its id resolves to `None`, not to the
/// connection that got its place.
///
/// It packs a place in the table (24 bits) and the place's generation (40 bits): a place would have
/// to be filled a million times a second for twelve days before a name came back.
///
/// It is a name in one reactor. Another one has connections of the same names: where there are
/// several, what is to reach a connection from outside keeps the [`Handle`](crate::Handle) of its
/// reactor beside it.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ConnId(NonZeroU64);

const INDEX_BITS: u32 = 24;

/// The last generation. It is no connection's: the backend names listeners and wake-ups by it.
pub(crate) const GENERATION_MAX: u64 = (1 << (64 - INDEX_BITS)) - 1;

/// How many places a table can have.
pub(crate) const PLACES_MAX: usize = 1 << INDEX_BITS;

impl ConnId {
    /// No id comes before this one, and none after the other.
    pub(crate) const FIRST: Self = Self(NonZeroU64::MIN);
    pub(crate) const LAST: Self = Self(NonZeroU64::MAX);

    pub(crate) const fn new(index: u32, generation: u64) -> Self {
        match NonZeroU64::new(generation << INDEX_BITS | index as u64) {
            Some(bits) => Self(bits),
            None => panic!("generations count from 1"),
        }
    }

    pub(crate) const fn from_bits(bits: u64) -> Option<Self> {
        match NonZeroU64::new(bits) {
            Some(bits) => Some(Self(bits)),
            None => None,
        }
    }

    pub(crate) const fn to_bits(self) -> u64 {
        self.0.get()
    }

    pub(crate) const fn index(self) -> usize {
        (self.to_bits() & (PLACES_MAX as u64 - 1)) as usize
    }

    pub(crate) const fn generation(self) -> u64 {
        self.to_bits() >> INDEX_BITS
    }

    /// The id of the next connection in the same place.
    pub(crate) const fn next(self) -> Self {
        let generation = self.generation() + 1;
        let index = self.index() as u32;
        if generation >= GENERATION_MAX {
            Self::new(index, 1)
        } else {
            Self::new(index, generation)
        }
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The place and its generation, as in `17.3`.
impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index(), self.generation())
    }
}

impl ConnId {
    /// Reads it as it is displayed.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (index, generation) = text.split_once('.')?;
        // Only digits: a number as such could have a sign.
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(index) || !digits(generation) {
            return None;
        }
        let index = index.parse().ok().filter(|index| (*index as usize) < PLACES_MAX)?;
        let generations = 1..GENERATION_MAX;
        let generation = generation.parse().ok().filter(|it| generations.contains(it))?;
        Some(Self::new(index, generation))
    }
}

/// The name of a listener, for as long as its reactor lives.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ListenerId(pub(crate) u32);

/// The name of a listener of the library's own services, or of one of its connections, among the
/// names of listeners: behind all that the application can have.
///
/// It packs a mark (bit 23), the service (3 bits), the place of the connection (5 bits) and its
/// generation (15 bits). All bits are never set: that is the name of wake-ups.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ServiceId(u32);

impl ServiceId {
    const MARK: u32 = 1 << (INDEX_BITS - 1);
    const SERVICE_BITS: u32 = 20;
    const PLACE_BITS: u32 = 15;
    /// How many services there can be.
    pub(crate) const SERVICES_MAX: usize = 6;

    /// The listener of a service, if there can be so many.
    pub(crate) const fn of_listener(service: usize) -> Option<Self> {
        if service < Self::SERVICES_MAX { Some(Self(Self::of_service(service))) } else { None }
    }

    /// A connection of a service. Of the generation only the lowest bits count.
    pub(crate) const fn of_conn(service: usize, place: usize, generation: u16) -> Self {
        let place = (place as u32 + 1) << Self::PLACE_BITS;
        Self(
            Self::of_service(service) | place | (generation as u32 & ((1 << Self::PLACE_BITS) - 1)),
        )
    }

    const fn of_service(service: usize) -> u32 {
        Self::MARK | (service as u32) << Self::SERVICE_BITS
    }

    /// What the backend names it by.
    pub(crate) const fn token(self) -> ListenerId {
        ListenerId(self.0)
    }

    pub(crate) const fn of_token(id: ListenerId) -> Option<Self> {
        if id.0 & Self::MARK == 0 { None } else { Some(Self(id.0)) }
    }

    pub(crate) const fn service(self) -> usize {
        ((self.0 & !Self::MARK) >> Self::SERVICE_BITS) as usize
    }

    /// The place of a connection; `None` for the listener.
    pub(crate) const fn place(self) -> Option<usize> {
        ((self.0 >> Self::PLACE_BITS) as usize & 31).checked_sub(1)
    }
}

/// The name of an alarm, never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AlarmId {
    pub(crate) index: u32,
    pub(crate) serial: u64,
}

/// The name of a pool, for as long as its reactor lives.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PoolId(pub(crate) u32);

/// The name of a group of pools, for as long as its reactor lives.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PoolGroupId(pub(crate) u32);

/// The name of a wait for a connection of a pool, never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct WaitId {
    pub(crate) serial: u64,
    pub(crate) pool: PoolId,
}

impl WaitId {
    /// The pool that was asked.
    pub const fn pool(self) -> PoolId {
        self.pool
    }
}

/// The name of an endpoint, never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EndpointId {
    pub(crate) index: u32,
    pub(crate) serial: u64,
}

/// The name of a group of endpoints, for as long as its reactor lives.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EndpointGroupId(pub(crate) u32);

/// How a connection came about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Origin {
    /// A peer dialled this listener.
    Accepted(ListenerId),
    /// [`Conn::connect`](crate::Conn::connect) or [`Context::connect`](crate::Context::connect)
    /// dialled the peer, or their like for [endpoints](crate::Context::connect_endpoint).
    Connect,
    /// This pool dialled the peer.
    Pool(PoolId),
    /// A check of this endpoint dialled the peer.
    Check(EndpointId),
}

impl Origin {
    pub(crate) const fn is_inbound(self) -> bool {
        matches!(self, Self::Accepted(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_packs_and_unpacks() {
        let id = ConnId::new(PLACES_MAX as u32 - 1, GENERATION_MAX);
        assert_eq!(id.index(), PLACES_MAX - 1);
        assert_eq!(id.generation(), GENERATION_MAX);
        assert_eq!(ConnId::new(17, 3).to_string(), "17.3");
        assert_eq!(ConnId::parse("17.3"), Some(ConnId::new(17, 3)));
        let last = format!("{}.{}", PLACES_MAX - 1, GENERATION_MAX - 1);
        assert_eq!(ConnId::parse(&last).unwrap().to_string(), last);
        for text in
            ["", "17", "17.", ".3", "17.0", "17.-3", "+17.3", "16777216.1", "1.1099511627775"]
        {
            assert_eq!(ConnId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_names_of_services_are_no_others() {
        for service in 0..ServiceId::SERVICES_MAX {
            let listener = ServiceId::of_listener(service).unwrap();
            assert_eq!((listener.service(), listener.place()), (service, None));
            for place in 0..16 {
                for generation in [0, 1, u16::MAX] {
                    let id = ServiceId::of_conn(service, place, generation);
                    assert_eq!((id.service(), id.place()), (service, Some(place)));
                    assert_eq!(ServiceId::of_token(id.token()), Some(id));
                    assert!(id.token().0 < PLACES_MAX as u32 - 1 && id != listener);
                }
            }
        }
        assert_eq!(ServiceId::of_listener(ServiceId::SERVICES_MAX), None);
        assert_eq!(ServiceId::of_token(ListenerId(7)), None);
    }
}
