//! The seam between the reactor and the world.
//!
//! Everything that is not determined by the program itself comes through [`Backend`]: sockets and
//! their readiness, two clocks, randomness, wake-ups from other threads and the look-up of names.
//! [`Os`] is the operating system; a simulated host implements the same trait over memory and a
//! virtual clock, and the reactor cannot tell the difference.

mod event;
mod lookup;
mod os;
mod path;
mod sys;
mod wait;
mod waker;

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;

pub(crate) use self::event::{EVENTS_PER_WAIT, Source};
pub use self::event::{Event, Events, Readiness, Token};
pub use self::lookup::Resolve;
pub use self::os::{Os, OsListener, OsStream};
use crate::address::Address;
use crate::config::{ListenConfig, SocketOptions};
use crate::time::Instant;

/// What keeps other crates from implementing [`Backend`].
pub(crate) trait Sealed {}

/// The world as one reactor sees it.
///
/// All calls come from the reactor's thread and none may block except [`wait`](Backend::wait).
///
/// # Readiness
///
/// It is edge-triggered, as mio promises it: after an event for a socket there need be no other
/// until a call on that socket returned [`WouldBlock`](io::ErrorKind::WouldBlock), or, where
/// [`short_io_drains`](Backend::short_io_drains), until a read or write was short. Events may be
/// spurious, merged, split, or arrive for a socket that has been closed; hints may be missing. The
/// reactor registers each socket once, for reading and writing.
///
/// # Implementations
///
/// [`Os`], and the hosts of the simulator. The trait is sealed, because it grows with the reactor:
/// what a program may want to replace has a place of its own, such as [`Os::with_resolver`].
#[expect(private_bounds, reason = "sealed")]
pub trait Backend: Sealed {
    /// A socket that accepts.
    type Listener;
    /// A socket that carries bytes. Dropping it closes it.
    type Stream;

    /// Whether a read that did not fill its buffer has drained the socket, and a write that was not
    /// taken whole has filled it, so that the next call need not be made to learn it. It never
    /// changes.
    fn short_io_drains(&self) -> bool;

    /// The time. It should not go back; where it does the reactor holds on to the latest it has
    /// seen until the clock has caught up.
    fn now(&mut self) -> Instant;

    /// The time of the last clock tick of the system: some milliseconds behind
    /// [`now`](Backend::now) and much cheaper.
    fn coarse_now(&mut self) -> Instant;

    /// How far [`coarse_now`](Backend::coarse_now) moves at a time, at most. It never changes.
    fn coarse_step(&mut self) -> Duration;

    /// The wall clock, as the time since 1970-01-01 00:00 UTC. It may be set at any moment, in
    /// either direction.
    fn now_unix(&mut self) -> Duration;

    /// Unpredictable bits.
    fn entropy(&mut self) -> u64;

    /// Waits until something is ready, a waker wakes, or `timeout` has passed (`None`: for ever),
    /// and puts what happened in place of the contents of `events`.
    ///
    /// # Errors
    ///
    /// [`Interrupted`](io::ErrorKind::Interrupted) if a signal arrived; the reactor waits again.
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()>;

    /// What other threads end a [`wait`](Backend::wait) with, now or the next one.
    fn waker(&mut self) -> Arc<dyn Wake>;

    /// Claims descriptors for the reactor, at most `most`, and returns how many: of those that the
    /// process may have open only what no other reactor of it has claimed. The claim ends with the
    /// backend. To be called once.
    fn claim_descriptors(&mut self, most: usize) -> usize;

    /// Opens a listener; `options` are those of the connections it accepts.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    fn bind(
        &mut self,
        address: &Address,
        listen: &ListenConfig,
        options: &SocketOptions,
    ) -> io::Result<Self::Listener>;

    /// Takes over a listening socket made elsewhere, such as one inherited from a service manager.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is no listening stream socket.
    fn adopt(&mut self, fd: OwnedFd, options: &SocketOptions) -> io::Result<Self::Listener>;

    /// Where a listener listens.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    fn listener_addr(&mut self, listener: &Self::Listener) -> io::Result<Address>;

    /// Registers a listener under `token`.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    fn register_listener(&mut self, listener: &mut Self::Listener, token: Token) -> io::Result<()>;

    /// Asks for another event if connections are waiting: after a failed accept an edge-triggered
    /// listener reports nothing by itself.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    fn reregister_listener(
        &mut self,
        listener: &mut Self::Listener,
        token: Token,
    ) -> io::Result<()>;

    /// Takes one connection off the backlog.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) at its end; the `errno` of accept(2) otherwise,
    /// which decides what the reactor does next.
    fn accept(&mut self, listener: &mut Self::Listener) -> io::Result<(Self::Stream, Address)>;

    /// Begins to dial. The stream becomes writable when it is decided. Several streams may be
    /// registered under one token until then.
    ///
    /// # Errors
    ///
    /// If it is decided already, against us.
    fn connect(&mut self, address: &Address, options: &SocketOptions) -> io::Result<Self::Stream>;

    /// Registers a stream under `token`, for reading and writing.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    fn register(&mut self, stream: &mut Self::Stream, token: Token) -> io::Result<()>;

    /// Whether a dialled stream is connected by now.
    ///
    /// # Errors
    ///
    /// Why it never will be. [`ConnectionRefused`](io::ErrorKind::ConnectionRefused) if it has met
    /// itself: a dial to a port in the range of ephemeral ones, on which nothing listens, may be
    /// given that same port (RFC 9293, 3.5, simultaneous open).
    fn is_connected(&mut self, stream: &mut Self::Stream) -> io::Result<bool>;

    /// The local end of a stream.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    fn local_addr(&mut self, stream: &Self::Stream) -> io::Result<Address>;

    /// The error that an event hinted at, cleared by asking.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    fn take_error(&mut self, stream: &mut Self::Stream) -> io::Result<Option<io::Error>>;

    /// Reads at most `max` bytes behind those in `buffer`, into capacity that is there already, and
    /// returns how many; zero means the peer's FIN.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is nothing; whatever the system says
    /// otherwise.
    fn read(
        &mut self,
        stream: &mut Self::Stream,
        buffer: &mut BytesMut,
        max: usize,
    ) -> io::Result<usize>;

    /// Writes what the socket takes of `bytes` and returns how many that were. A peer that is gone
    /// raises no signal.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if it takes none; whatever the system says
    /// otherwise.
    fn write(&mut self, stream: &mut Self::Stream, bytes: &[u8]) -> io::Result<usize>;

    /// As [`write`](Backend::write), where more bytes or the FIN follow at once: the system may keep
    /// these back for a moment, and send all of it together.
    ///
    /// # Errors
    ///
    /// As [`write`](Backend::write).
    fn write_more(&mut self, stream: &mut Self::Stream, bytes: &[u8]) -> io::Result<usize> {
        self.write(stream, bytes)
    }

    /// As [`write`](Backend::write), from several slices in order.
    ///
    /// # Errors
    ///
    /// As [`write`](Backend::write).
    fn write_vectored(
        &mut self,
        stream: &mut Self::Stream,
        slices: &[IoSlice<'_>],
    ) -> io::Result<usize>;

    /// How many written bytes have not been acknowledged by the peer yet, our FIN left out, where
    /// the system can say: without it a byte counts as gone once it is written.
    fn unsent(&mut self, stream: &Self::Stream) -> Option<u64>;

    /// Sends a FIN behind what is written; reading goes on.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    fn shutdown_write(&mut self, stream: &mut Self::Stream) -> io::Result<()>;

    /// Ends a stream in both directions, so that its peer sees the end even if another process holds
    /// a descriptor of the socket: then [`close`](Backend::close) alone sends nothing. To be called
    /// before a close without reset, unless the peer has ended the connection itself or has had a
    /// FIN by [`shutdown_write`](Backend::shutdown_write).
    ///
    /// # Errors
    ///
    /// Whatever the system says; the close follows all the same.
    fn shut_down(&mut self, stream: &mut Self::Stream) -> io::Result<()>;

    /// Closes a stream, with a reset if `reset`. Events for it may still be in the current batch.
    fn close(&mut self, stream: Self::Stream, reset: bool);

    /// Closes a listener.
    fn close_listener(&mut self, listener: Self::Listener);

    /// Begins to look up `host`; an event under `token` says when
    /// [`resolved`](Backend::resolved) has the answer.
    ///
    /// # Errors
    ///
    /// If it could not begin.
    fn resolve(&mut self, host: &str, port: u16, token: Token) -> io::Result<()>;

    /// Forgets the look-up under `token`, if there is one that has not been announced: no other has
    /// to wait for it, and no event comes for it.
    fn cancel_resolve(&mut self, token: Token);

    /// The answer to the look-up under `token`, best address first, once and not after the next
    /// [`wait`](Backend::wait).
    fn resolved(&mut self, token: Token) -> Option<io::Result<Vec<Address>>>;
}

/// Ends a [`Backend::wait`] from another thread.
pub trait Wake: Send + Sync {
    /// Ends the current wait, or the next one if none is under way.
    ///
    /// # Errors
    ///
    /// If it could not.
    fn wake(&self) -> io::Result<()>;
}
