//! What ends a wait from another thread.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::Registry;

use super::{Token, Wake};

/// mio's waker, and what it takes to lose no wake-up with any of its backends.
///
/// With poll(2), registering a source takes back every wake-up that no wait has seen yet:
/// <https://github.com/tokio-rs/mio/issues/1874>. There a wake-up is also a flag that the next wait
/// reads before it blocks. Between that reading and the blocking nothing is registered, because only
/// the thread that waits does so; elsewhere the flag costs nothing.
#[derive(Debug)]
pub(super) struct Waker {
    inner: mio::Waker,
    woken: AtomicBool,
}

const LOSES_WAKES: bool = cfg!(mio_unsupported_force_poll_poll);

impl Waker {
    pub(super) fn new(registry: &Registry) -> io::Result<Self> {
        let inner = mio::Waker::new(registry, Token::WAKER.to_mio())?;
        Ok(Self { inner, woken: AtomicBool::new(false) })
    }

    /// Whether there was a wake-up that the next wait may not see.
    #[inline]
    pub(super) fn take_unseen(&self) -> bool {
        LOSES_WAKES && self.woken.swap(false, Ordering::AcqRel)
    }
}

impl Waker {
    /// The wait that was to see a wake-up has failed.
    pub(super) fn note_unseen(&self) {
        self.woken.store(true, Ordering::Release);
    }
}

impl Wake for Waker {
    fn wake(&self) -> io::Result<()> {
        if LOSES_WAKES {
            self.woken.store(true, Ordering::Release);
        }
        self.inner.wake()
    }
}

#[cfg(test)]
mod tests {
    use crate::address::Address;
    use crate::backend::{Backend, Events, Os, Token};
    use crate::config::{ListenConfig, SocketOptions};
    use crate::id::ListenerId;

    #[test]
    fn a_wake_up_outlives_a_registration() {
        let mut os = Os::new().unwrap();
        let waker = os.waker();
        let addr = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        let listen = ListenConfig::default();
        let mut listener = os.bind(&addr, &listen, &SocketOptions::default()).unwrap();
        waker.wake().unwrap();
        os.register_listener(&mut listener, Token::of_listener(ListenerId(0))).unwrap();
        let mut events = Events::with_capacity(8);
        os.wait(&mut events, Some(std::time::Duration::from_secs(10))).unwrap();
        assert_eq!(events.get(0).map(|event| event.token), Some(Token::WAKER));
    }
}
