//! One wait for events: epoll's is called directly, all others' through mio.

use std::io;
use std::time::Duration;

use super::event::Events;

#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
mod system {
    use libc::c_int;

    use super::{Duration, Events, io};
    use crate::backend::sys;

    /// Waits until something happens, at most for `timeout`.
    #[derive(Debug)]
    pub(in crate::backend) struct Waiter;

    impl Waiter {
        pub(in crate::backend) const fn new() -> Self {
            Self
        }

        #[allow(clippy::needless_pass_by_ref_mut, reason = "mio's own wait needs it")]
        #[inline]
        pub(in crate::backend) fn wait(
            &mut self,
            poll: &mut mio::Poll,
            events: &mut Events,
            timeout: Option<Duration>,
        ) -> io::Result<()> {
            let millis = timeout.map_or(-1, millis_of);
            sys::epoll_wait(sys::poll_fd(poll), &mut events.list, events.capacity, millis)
        }
    }

    /// The whole milliseconds that a wait takes, rounded up: it must not end before its time.
    fn millis_of(timeout: Duration) -> c_int {
        let millis = u64::from(timeout.subsec_nanos().div_ceil(1_000_000));
        c_int::try_from(timeout.as_secs().saturating_mul(1_000).saturating_add(millis))
            .unwrap_or(c_int::MAX)
    }
}

#[cfg(not(all(target_os = "linux", not(mio_unsupported_force_poll_poll))))]
mod system {
    use super::{Duration, Events, io};
    use crate::backend::event::{EVENTS_PER_WAIT, Event, Token, readiness};

    /// Waits until something happens, at most for `timeout`.
    #[derive(Debug)]
    pub(in crate::backend) struct Waiter(mio::Events);

    impl Waiter {
        pub(in crate::backend) fn new() -> Self {
            Self(mio::Events::with_capacity(EVENTS_PER_WAIT))
        }

        pub(in crate::backend) fn wait(
            &mut self,
            poll: &mut mio::Poll,
            events: &mut Events,
            timeout: Option<Duration>,
        ) -> io::Result<()> {
            poll.poll(&mut self.0, timeout)?;
            for event in &self.0 {
                let token = Token::of_bits(event.token().0 as u64);
                events.push(Event { token, ready: readiness(event) });
            }
            Ok(())
        }
    }
}

pub(super) use self::system::Waiter;
