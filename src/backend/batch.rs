//! The events of one wait, taken from the system and put into the reactor's terms.

use std::io;
use std::time::Duration;

use super::Readiness;

/// What an event that is more than "readable" or "writable" means: hang-ups, errors and urgent bytes
/// are learnt by reading, and a dialled stream learns its fate by "writable".
#[cold]
#[inline(never)]
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

    use libc::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, c_int};

    use super::*;
    use crate::backend::{Event, Events, Token, sys};

    pub(in crate::backend) struct Batch(Vec<libc::epoll_event>);

    impl Batch {
        pub(in crate::backend) fn with_capacity(capacity: usize) -> Self {
            Self(Vec::with_capacity(capacity))
        }

        /// Waits until something happens, at most for `timeout`.
        #[allow(clippy::needless_pass_by_ref_mut, reason = "mio's own wait needs it")]
        #[inline]
        pub(in crate::backend) fn wait(
            &mut self,
            poll: &mut mio::Poll,
            timeout: Option<Duration>,
        ) -> io::Result<()> {
            let millis = timeout.map_or(-1, millis_of);
            sys::epoll_wait(sys::poll_fd(poll), &mut self.0, millis)
        }

        /// Adds what the latest wait brought to `events`.
        #[inline]
        pub(in crate::backend) fn append_to(&self, events: &mut Events) {
            for event in &self.0 {
                let (bits, token) = (event.events as c_int, event.u64);
                events.push(Event { token: Token::of_bits(token), ready: readiness(bits) });
            }
        }
    }

    impl fmt::Debug for Batch {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Batch({})", self.0.len())
        }
    }

    /// The whole milliseconds that a wait takes, rounded up: it must not end before its time.
    fn millis_of(timeout: Duration) -> c_int {
        let millis = u64::from(timeout.subsec_nanos().div_ceil(1_000_000));
        c_int::try_from(timeout.as_secs().saturating_mul(1_000).saturating_add(millis))
            .unwrap_or(c_int::MAX)
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

#[cfg(not(all(target_os = "linux", not(mio_unsupported_force_poll_poll))))]
mod system {
    use super::*;
    use crate::backend::{Event, Events, Token};

    #[derive(Debug)]
    pub(in crate::backend) struct Batch(mio::Events);

    impl Batch {
        pub(in crate::backend) fn with_capacity(capacity: usize) -> Self {
            Self(mio::Events::with_capacity(capacity))
        }

        /// Waits until something happens, at most for `timeout`.
        pub(in crate::backend) fn wait(
            &mut self,
            poll: &mut mio::Poll,
            timeout: Option<Duration>,
        ) -> io::Result<()> {
            poll.poll(&mut self.0, timeout)
        }

        /// Adds what the latest wait brought to `events`.
        pub(in crate::backend) fn append_to(&self, events: &mut Events) {
            for event in &self.0 {
                let token = Token::of_bits(event.token().0 as u64);
                events.push(Event { token, ready: readiness(event) });
            }
        }
    }

    fn readiness(event: &mio::event::Event) -> Readiness {
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

pub(super) use self::system::Batch;

#[cfg(all(test, target_os = "linux", not(mio_unsupported_force_poll_poll)))]
mod tests {
    use libc::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, c_int};

    use super::Readiness;
    use super::system::readiness;

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
}
