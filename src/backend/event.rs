//! What happened, to what, and the list of it that one wait fills.
//!
//! On Linux the events stay in the list as the system wrote them until they are served: a full batch
//! is more than fits beside what its connections touch in the first-level cache, so a list that is
//! copied is missed twice as often.

use crate::id::{ConnId, ListenerId};

/// What an event is about: a connection, a listener, or a waker.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Token(u64);

/// Above the generations that connections have.
const LISTENERS: u64 = u64::MAX << 24;

/// What a token stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    Conn(ConnId),
    Listener(ListenerId),
    Waker,
}

impl Token {
    /// The token of wake-ups.
    pub const WAKER: Self = Self(u64::MAX);

    pub(crate) const fn of_conn(id: ConnId) -> Self {
        Self(id.to_bits())
    }

    pub(crate) const fn of_listener(id: ListenerId) -> Self {
        Self(LISTENERS | id.0 as u64)
    }

    #[inline]
    pub(crate) const fn source(self) -> Source {
        match ConnId::from_bits(self.0) {
            Some(id) if self.0 < LISTENERS => Source::Conn(id),
            Some(_) if self.0 < Self::WAKER.0 => {
                Source::Listener(ListenerId((self.0 & !LISTENERS) as u32))
            }
            _ => Source::Waker,
        }
    }

    #[cfg(any(feature = "sim", all(target_os = "linux", not(mio_unsupported_force_poll_poll))))]
    #[inline]
    pub(crate) const fn to_bits(self) -> u64 {
        self.0
    }

    pub(super) const fn to_mio(self) -> mio::Token {
        mio::Token(self.0 as usize)
    }

    #[inline]
    pub(super) const fn of_bits(bits: u64) -> Self {
        Self(bits)
    }
}

const _: () = assert!(usize::BITS == 64, "a token carries a whole connection id");

/// What a socket is ready for; several hold at once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Readiness(u8);

impl Readiness {
    /// Bytes, a FIN or an error can be read, or a connection accepted.
    pub const READABLE: Self = Self(1);
    /// Bytes can be written, or a dialled stream is decided.
    pub const WRITABLE: Self = Self(2);
    /// A hint: the peer sent its FIN.
    pub const HANGUP: Self = Self(4);
    /// A hint: the socket has an error.
    pub const ERROR: Self = Self(8);
    /// A hint: neither side sends any more. Of a Unix-domain socket that has not sent its own FIN it
    /// says that the peer is gone.
    pub const SHUT: Self = Self(16);

    pub(crate) const fn to_bits(self) -> u8 {
        self.0
    }

    /// Nothing.
    pub const NONE: Self = Self(0);

    /// Both of them.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn only(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is not in `other`.
    #[must_use]
    pub const fn except(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether any of `other` is in.
    #[inline]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// One thing that happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// To what.
    pub token: Token,
    /// What.
    pub ready: Readiness,
}

/// Events that a reactor takes from the system in one wait; a full batch means that there may be
/// more.
pub(crate) const EVENTS_PER_WAIT: usize = 1_024;

/// What happened during one wait: `capacity` things, or more if the system says more at once, as
/// poll(2) does.
#[derive(Debug)]
pub struct Events {
    pub(super) list: Vec<Entry>,
    pub(super) capacity: usize,
}

impl Events {
    /// Room for `capacity` events.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { list: Vec::with_capacity(capacity), capacity }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// Adds one.
    #[inline]
    pub fn push(&mut self, event: Event) {
        self.list.push(Entry::of(event));
    }

    /// Whether there may be more where these came from.
    pub const fn is_full(&self) -> bool {
        self.list.len() >= self.capacity
    }

    /// How many there is room for without more memory.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing happened.
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The event at `index`.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<Event> {
        self.list.get(index).map(|entry| entry.event())
    }
}

/// What an event that is more than "readable" or "writable" means: hang-ups, errors and urgent bytes
/// are learnt by reading, and a dialled stream learns its fate by "writable".
#[inline]
fn unusual_readiness(read_closed: bool, write_closed: bool, error: bool) -> Readiness {
    let mut ready = Readiness::READABLE.and(Readiness::HANGUP);
    if read_closed && write_closed {
        ready = ready.and(Readiness::SHUT);
    }
    if error { ready.and(Readiness::WRITABLE).and(Readiness::ERROR) } else { ready }
}

/// What epoll(7) says, read without mio's layer between: nearly every event is readable or writable
/// and nothing else, which one test of its bits says here.
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
mod system {
    use std::fmt;

    use libc::{
        EPOLLERR, EPOLLEXCLUSIVE, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, c_int,
    };

    use super::{Event, Readiness, Token, unusual_readiness};

    /// An event in the list: as epoll(7) gave it, or made up here.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub(in crate::backend) struct Entry(libc::epoll_event);

    /// A mark of events that were made up here. The kernel takes it, and never gives it.
    const MADE_UP: c_int = EPOLLEXCLUSIVE;

    impl Entry {
        pub(in crate::backend) fn of(event: Event) -> Self {
            let events = MADE_UP as u32 | u32::from(event.ready.to_bits());
            Self(libc::epoll_event { events, u64: event.token.0 })
        }

        #[inline]
        pub(in crate::backend) fn event(self) -> Event {
            let (bits, token) = (self.0.events as c_int, self.0.u64);
            Event { token: Token::of_bits(token), ready: readiness(bits) }
        }
    }

    impl fmt::Debug for Entry {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.event().fmt(f)
        }
    }

    #[inline]
    pub(super) fn readiness(bits: c_int) -> Readiness {
        let mut ready = Readiness::NONE;
        if bits & EPOLLIN != 0 {
            ready = ready.and(Readiness::READABLE);
        }
        if bits & EPOLLOUT != 0 {
            ready = ready.and(Readiness::WRITABLE);
        }
        if bits & !(EPOLLIN | EPOLLOUT) != 0 {
            if bits & MADE_UP != 0 {
                return Readiness(bits as u8);
            }
            let hangup = bits & EPOLLHUP != 0;
            let (read_closed, error) = (bits & EPOLLRDHUP != 0, bits & EPOLLERR != 0);
            debug_assert!(
                hangup || read_closed || error || bits & EPOLLPRI != 0,
                "mio asks for no other events: {bits:#x}"
            );
            let write_closed = error && bits & EPOLLOUT != 0;
            let unusual = unusual_readiness(hangup || read_closed, hangup || write_closed, error);
            ready = ready.and(unusual);
        }
        ready
    }
}

/// What mio says.
#[cfg(not(all(target_os = "linux", not(mio_unsupported_force_poll_poll))))]
mod system {
    use super::{Event, Readiness, unusual_readiness};

    /// An event in the list.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::backend) struct Entry(Event);

    impl Entry {
        pub(in crate::backend) const fn of(event: Event) -> Self {
            Self(event)
        }

        pub(in crate::backend) const fn event(self) -> Event {
            self.0
        }
    }

    pub(in crate::backend) fn readiness(event: &mio::event::Event) -> Readiness {
        let mut ready = Readiness::NONE;
        if event.is_readable() {
            ready = ready.and(Readiness::READABLE);
        }
        if event.is_writable() {
            ready = ready.and(Readiness::WRITABLE);
        }
        if event.is_read_closed() || event.is_error() || event.is_priority() {
            let (read_closed, write_closed) = (event.is_read_closed(), event.is_write_closed());
            ready = ready.and(unusual_readiness(read_closed, write_closed, event.is_error()));
        }
        ready
    }
}

pub(super) use self::system::Entry;
#[cfg(not(all(target_os = "linux", not(mio_unsupported_force_poll_poll))))]
pub(super) use self::system::readiness;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_tell_connections_listeners_and_the_waker_apart() {
        let conn = ConnId::new(5, (1 << 40) - 2);
        assert_eq!(Token::of_conn(conn).source(), Source::Conn(conn));
        let listener = ListenerId(7);
        assert_eq!(Token::of_listener(listener).source(), Source::Listener(listener));
        assert_eq!(Token::WAKER.source(), Source::Waker);
    }
}

#[cfg(all(test, target_os = "linux", not(mio_unsupported_force_poll_poll)))]
mod linux_tests {
    use libc::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, c_int};

    use super::system::readiness;
    use super::{Entry, Readiness};
    use super::{Event, Token};

    /// All combinations, read as mio 1.2 reads them.
    #[test]
    fn every_event_is_read_as_mio_reads_it() {
        const MARKS: [c_int; 6] = [EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, EPOLLERR, EPOLLHUP];
        for chosen in 0..1 << MARKS.len() {
            let is_in = |(at, mark): (usize, c_int)| if chosen >> at & 1 == 1 { mark } else { 0 };
            let bits: c_int = MARKS.into_iter().enumerate().map(is_in).sum();
            let is = |marks: c_int| bits & marks == marks;
            // A FIN can be read: poll(2) says so of every socket that says RDHUP.
            if is(EPOLLRDHUP) && !is(EPOLLIN) {
                continue;
            }
            let read_closed = is(EPOLLHUP) || is(EPOLLIN | EPOLLRDHUP);
            let write_closed = is(EPOLLHUP) || is(EPOLLOUT | EPOLLERR) || bits == EPOLLERR;
            let unusual = read_closed || is(EPOLLERR) || is(EPOLLPRI);
            let mut ready = Readiness::NONE;
            for (holds, what) in [
                (is(EPOLLIN) || unusual, Readiness::READABLE),
                (is(EPOLLOUT) || is(EPOLLERR), Readiness::WRITABLE),
                (unusual, Readiness::HANGUP),
                (is(EPOLLERR), Readiness::ERROR),
                (read_closed && write_closed, Readiness::SHUT),
            ] {
                if holds {
                    ready = ready.and(what);
                }
            }
            assert_eq!(readiness(bits), ready, "{bits:#x}");
        }
    }

    #[test]
    fn an_event_that_is_made_up_stays_what_it_is() {
        for bits in 0..32 {
            let event = Event { token: Token::WAKER, ready: Readiness(bits) };
            assert_eq!(Entry::of(event).event(), event);
        }
    }
}
