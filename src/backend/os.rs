//! The operating system: epoll or kqueue through mio, options through socket2.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use mio::net::UnixListener;
use mio::{Interest, Registry};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::lookup::{Lookups, Resolve, SystemResolver};
use super::path::{self, BoundPath};
use super::wait::Waiter;
use super::waker::Waker;
use super::{Backend, Event, Events, Readiness, Sealed, Token, Wake, sys};
use crate::address::Address;
use crate::config::{ListenConfig, SocketOptions};
use crate::log::{debug, warn};
use crate::time::Instant;

/// The operating system's sockets and clocks.
///
/// On Linux the options of an accepted connection are set once, on its listener, which hands them
/// on; elsewhere they are set on each. Where the system cannot say how much of the output the peer
/// has acknowledged (Linux, Apple's systems, FreeBSD and DragonFly can), a byte counts as gone once
/// the kernel took it. Where there is no coarse clock (all but Linux) the precise one serves.
///
/// A reactor made over it raises the process's soft limit of descriptors (RLIMIT_NOFILE) to the
/// hard one, as setrlimit(2) lets every process: the soft one is there for programs that call
/// select(2). The reactors of a process share the limit: each claims its part when it is made.
/// Children of the process inherit the raised limit.
#[derive(Debug)]
pub struct Os {
    poll: mio::Poll,
    waiter: Waiter,
    waker: Arc<Waker>,
    lookups: Lookups,
    /// The reading of the monotonic clock that is this backend's epoch.
    epoch: u64,
    random: RandomState,
    drawn: u64,
    /// The latest time that was read.
    seen: Instant,
    claim: Claim,
}

/// Descriptors that are spoken for, of all reactors of the process together: the limit is the
/// process's, so each must know what the others may use.
static CLAIMED: AtomicUsize = AtomicUsize::new(0);

/// One reactor's part of [`CLAIMED`].
#[derive(Debug, Default)]
struct Claim(usize);

impl Claim {
    /// Adds at most `most` of what is left below `limit`, and returns how many that were.
    fn grow(&mut self, limit: usize, most: usize) -> usize {
        let granted = |claimed: usize| most.min(limit.saturating_sub(claimed));
        let more = |claimed| Some(claimed + granted(claimed));
        let before = CLAIMED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        let granted = granted(before.unwrap_or_default());
        self.0 += granted;
        granted
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

impl Os {
    /// Opens a poll and a waker. Names are looked up by getaddrinfo(3).
    ///
    /// # Errors
    ///
    /// If the process has no descriptors left for them.
    pub fn new() -> io::Result<Self> {
        Self::with_resolver(SystemResolver)
    }

    /// As [`Os::new`], with names looked up by `resolver`.
    ///
    /// # Errors
    ///
    /// If the process has no descriptors left for a poll and a waker.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::io;
    /// use std::net::{IpAddr, SocketAddr};
    ///
    /// use wheelhouse::backend::Os;
    /// # use bytes::BytesMut;
    /// # use wheelhouse::{Config, Conn, Handler, Reactor};
    /// # struct Relay;
    /// # impl Handler for Relay {
    /// #     type Session = ();
    /// #     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> { Some(()) }
    /// #     fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
    /// # }
    /// # let mut reactor: Reactor<Relay>;
    ///
    /// let known: HashMap<String, IpAddr> = HashMap::from([("db".into(), [10, 0, 0, 7].into())]);
    /// let os = Os::with_resolver(move |host: &str, port| match known.get(host) {
    ///     Some(ip) => Ok(vec![SocketAddr::new(*ip, port)]),
    ///     None => Err(io::Error::other("no such host")),
    /// })?;
    /// reactor = Reactor::with_backend(Config::default(), os)?;
    /// # let _ = &mut reactor;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_resolver(resolver: impl Resolve) -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry())?);
        Ok(Self {
            poll,
            waiter: Waiter::new(),
            lookups: Lookups::new(Arc::clone(&waker), resolver),
            waker,
            // A reading of the coarse clock after this one of the precise clock may lie before it.
            epoch: sys::nanos(sys::Clock::Coarse),
            random: RandomState::new(),
            drawn: 0,
            seen: Instant::EPOCH,
            claim: Claim::default(),
        })
    }
}

/// A listening TCP or Unix-domain socket.
#[derive(Debug)]
pub struct OsListener {
    socket: Listener,
    /// When it was last known not to block.
    checked_at: Instant,
}

#[derive(Debug)]
enum Listener {
    Tcp(mio::net::TcpListener, TcpOptions),
    /// The file goes before the socket is closed.
    Unix(#[expect(dead_code, reason = "removes the file")] Option<BoundPath>, UnixListener),
}

/// The options that connections accepted from a listener get, where it cannot hand them on.
#[derive(Debug)]
struct TcpOptions(#[cfg_attr(target_os = "linux", allow(dead_code))] SocketOptions);

/// A TCP or Unix-domain socket that carries bytes.
#[derive(Debug)]
pub struct OsStream(Stream);

#[derive(Debug)]
enum Stream {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
}

/// Runs `$call` on the stream inside `$stream`, whatever its kind.
macro_rules! on_stream {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($inner) => $call,
            Stream::Unix($inner) => $call,
        }
    };
}

impl AsFd for OsStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        on_stream!(&self.0, stream => stream.as_fd())
    }
}

impl OsStream {
    #[cfg(not(all(target_os = "linux", not(mio_unsupported_force_poll_poll))))]
    fn source(&mut self) -> &mut dyn mio::event::Source {
        on_stream!(&mut self.0, stream => stream)
    }

    /// Runs a call on the descriptor through mio, which must see that it would have blocked: its
    /// poll backend watches a socket again only then.
    #[inline(always)]
    fn try_io<T>(&self, call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        on_stream!(&self.0, stream => stream.try_io(|| call(stream.as_fd())))
    }
}

impl AsFd for OsListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Listener::Tcp(listener, _) => listener.as_fd(),
            Listener::Unix(_, listener) => listener.as_fd(),
        }
    }
}

/// How long an accept may rely on what was last known of its listener.
const CHECK_EVERY_NANOS: u64 = 1_000_000_000;

impl OsListener {
    fn new(socket: Listener, now: Instant) -> Self {
        Self { socket, checked_at: now }
    }

    fn source(&mut self) -> &mut dyn mio::event::Source {
        match &mut self.socket {
            Listener::Tcp(listener, _) => listener,
            Listener::Unix(_, listener) => listener,
        }
    }

    /// Makes the listener non-blocking again if another holder of its open file description has
    /// made it blocking: accept4(2) has no flag like MSG_DONTWAIT, and would wait for the next
    /// connection.
    #[cold]
    #[inline(never)]
    fn check(&mut self, now: Instant) {
        self.checked_at = now;
        let socket = SockRef::from(&*self);
        if matches!(socket.nonblocking(), Ok(false)) {
            warn!("another process made a listener blocking; it is non-blocking again");
            ignore(socket.set_nonblocking(true), "O_NONBLOCK");
        }
    }
}

/// Reading stops short at an urgent byte (tcp(7)), as if nothing were behind it: where there is an
/// event for that, it says to read on.
#[cfg(all(target_os = "linux", mio_unsupported_force_poll_poll))]
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);
#[cfg(not(target_os = "linux"))]
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

impl Sealed for Os {}

impl Backend for Os {
    type Listener = OsListener;
    type Stream = OsStream;

    /// mio names epoll and kqueue as systems where this holds; its poll backend must see each call
    /// that would block.
    #[inline]
    fn short_io_drains(&self) -> bool {
        !cfg!(mio_unsupported_force_poll_poll)
    }

    #[inline]
    fn now(&mut self) -> Instant {
        self.seen = Instant::from_nanos(sys::nanos(sys::Clock::Precise).saturating_sub(self.epoch));
        self.seen
    }

    #[inline]
    fn coarse_now(&mut self) -> Instant {
        Instant::from_nanos(sys::nanos(sys::Clock::Coarse).saturating_sub(self.epoch))
    }

    fn coarse_step(&mut self) -> Duration {
        sys::resolution(sys::Clock::Coarse)
    }

    fn now_unix(&mut self) -> Duration {
        sys::unix_time()
    }

    fn entropy(&mut self) -> u64 {
        self.drawn = self.drawn.wrapping_add(1);
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.drawn);
        hasher.finish()
    }

    #[inline(always)]
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        let unseen = self.waker.take_unseen();
        let timeout = if unseen { Some(Duration::ZERO) } else { timeout };
        if let Err(error) = self.waiter.wait(&mut self.poll, events, timeout) {
            if unseen {
                self.waker.note_unseen();
            }
            return Err(error);
        }
        if unseen {
            events.push(Event { token: Token::WAKER, ready: Readiness::default() });
        }
        self.lookups.announce(events);
        Ok(())
    }

    fn waker(&mut self) -> Arc<dyn Wake> {
        Arc::clone(&self.waker) as Arc<dyn Wake>
    }

    fn claim_descriptors(&mut self, most: usize) -> usize {
        let limit = usize::try_from(sys::raise_descriptor_limit()).unwrap_or(usize::MAX);
        let granted = self.claim.grow(limit, most);
        #[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
        sys::grow_descriptor_table(sys::poll_fd(&self.poll), CLAIMED.load(Ordering::Relaxed));
        granted
    }

    fn bind(
        &mut self,
        address: &Address,
        listen: &ListenConfig,
        options: &SocketOptions,
    ) -> io::Result<OsListener> {
        address.refuse_unusable_path()?;
        let backlog = i32::try_from(listen.backlog).unwrap_or(i32::MAX);
        match address {
            Address::Ip(addr) => {
                let socket = Socket::new(
                    Domain::for_address(*addr),
                    sys::stream_type(),
                    Some(Protocol::TCP),
                )?;
                // A restarted server may bind while connections of the one before linger.
                socket.set_reuse_address(true)?;
                socket.bind(&SockAddr::from(*addr))?;
                socket.listen(backlog)?;
                limit_accept_wait(&socket);
                Ok(self.tcp_listener(socket, options))
            }
            Address::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, sys::stream_type(), None)?;
                let bound = path::listen(&socket, path, backlog, listen.mode)?;
                limit_accept_wait(&socket);
                let listener = UnixListener::from_std(OwnedFd::from(socket).into());
                Ok(OsListener::new(Listener::Unix(bound, listener), self.seen))
            }
            Address::Unnamed => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an unnamed address cannot be listened on",
            )),
        }
    }

    fn adopt(&mut self, fd: OwnedFd, options: &SocketOptions) -> io::Result<OsListener> {
        let socket = Socket::from(fd);
        if socket.r#type()? != Type::STREAM || !is_listener(&socket)? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor is no listening stream socket",
            ));
        }
        socket.set_cloexec(true)?;
        socket.set_nonblocking(true)?;
        if socket.local_addr()?.is_unix() {
            let listener = UnixListener::from_std(OwnedFd::from(socket).into());
            // The program that made the file removes it.
            Ok(OsListener::new(Listener::Unix(None, listener), self.seen))
        } else {
            Ok(self.tcp_listener(socket, options))
        }
    }

    fn listener_addr(&mut self, listener: &OsListener) -> io::Result<Address> {
        match &listener.socket {
            Listener::Tcp(listener, _) => listener.local_addr().map(Address::Ip),
            Listener::Unix(_, listener) => unix_address(listener.local_addr()),
        }
    }

    fn register_listener(&mut self, listener: &mut OsListener, token: Token) -> io::Result<()> {
        listener.source().register(self.poll.registry(), token.to_mio(), Interest::READABLE)
    }

    fn reregister_listener(&mut self, listener: &mut OsListener, token: Token) -> io::Result<()> {
        listener.source().reregister(self.poll.registry(), token.to_mio(), Interest::READABLE)
    }

    #[inline(always)]
    fn accept(&mut self, listener: &mut OsListener) -> io::Result<(OsStream, Address)> {
        if self.seen.nanos_since(listener.checked_at) >= CHECK_EVERY_NANOS {
            listener.check(self.seen);
        }
        match &mut listener.socket {
            Listener::Tcp(listener, options) => {
                let (stream, peer) = accept_tcp(listener)?;
                options.hand_on(&stream);
                Ok((OsStream(Stream::Tcp(stream)), Address::Ip(peer)))
            }
            Listener::Unix(_, listener) => {
                let (stream, peer) = listener.accept()?;
                set_nosigpipe(SockRef::from(&stream));
                Ok((OsStream(Stream::Unix(stream)), unix_address(Ok(peer))?))
            }
        }
    }

    fn connect(&mut self, address: &Address, options: &SocketOptions) -> io::Result<OsStream> {
        address.refuse_unusable_path()?;
        match address {
            Address::Ip(addr) => {
                let socket = Socket::new(
                    Domain::for_address(*addr),
                    sys::stream_type(),
                    Some(Protocol::TCP),
                )?;
                set_options(&socket, options);
                if let Some(local) = options.local {
                    bind_local(&socket, local)?;
                }
                begin_connect(&socket, &SockAddr::from(*addr))?;
                let stream = mio::net::TcpStream::from_std(OwnedFd::from(socket).into());
                Ok(OsStream(Stream::Tcp(stream)))
            }
            Address::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, sys::stream_type(), None)?;
                begin_connect(&socket, &SockAddr::unix(path)?)?;
                let stream = mio::net::UnixStream::from_std(OwnedFd::from(socket).into());
                Ok(OsStream(Stream::Unix(stream)))
            }
            Address::Unnamed => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an unnamed address cannot be dialled",
            )),
        }
    }

    #[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
    #[inline]
    fn register(&mut self, stream: &mut OsStream, token: Token) -> io::Result<()> {
        sys::epoll_add(sys::poll_fd(&self.poll), stream.as_fd(), token.to_bits())
    }

    #[cfg(not(all(target_os = "linux", not(mio_unsupported_force_poll_poll))))]
    fn register(&mut self, stream: &mut OsStream, token: Token) -> io::Result<()> {
        stream.source().register(self.poll.registry(), token.to_mio(), BOTH)
    }

    fn is_connected(&mut self, stream: &mut OsStream) -> io::Result<bool> {
        // connect(2): a dial that failed has its error pending, and a read has it. SO_ERROR would
        // have it too, and also that of a peer which accepted, answered and reset at once: this is to
        // be read behind the answer, which may come at any moment.
        let ended = match peek(stream) {
            Ok(0) => true,
            // Whatever became of the connection since, it stood.
            Ok(_) => return Ok(true),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected => false,
                _ => return Err(error),
            },
        };
        // Until there is an outcome the peer has no name.
        match on_stream!(&stream.0, stream => SockRef::from(stream).peer_addr()) {
            Ok(peer) if is_connected_to_itself(stream, &peer) => {
                Err(io::Error::from_raw_os_error(libc::ECONNREFUSED))
            }
            Ok(_) => Ok(true),
            // A socket of macOS that is shut down says that the argument is invalid.
            Err(error) => match error.kind() {
                io::ErrorKind::NotConnected | io::ErrorKind::InvalidInput => Ok(ended),
                _ => Err(error),
            },
        }
    }

    fn local_addr(&mut self, stream: &OsStream) -> io::Result<Address> {
        match &stream.0 {
            Stream::Tcp(stream) => stream.local_addr().map(Address::Ip),
            Stream::Unix(stream) => unix_address(stream.local_addr()),
        }
    }

    fn take_error(&mut self, stream: &mut OsStream) -> io::Result<Option<io::Error>> {
        on_stream!(&mut stream.0, stream => stream.take_error())
    }

    #[inline(always)]
    fn read(
        &mut self,
        stream: &mut OsStream,
        buffer: &mut BytesMut,
        max: usize,
    ) -> io::Result<usize> {
        stream.try_io(|fd| sys::recv(fd, buffer, max))
    }

    #[inline(always)]
    fn write(&mut self, stream: &mut OsStream, bytes: &[u8]) -> io::Result<usize> {
        stream.try_io(|fd| sys::send(fd, bytes))
    }

    fn write_more(&mut self, stream: &mut OsStream, bytes: &[u8]) -> io::Result<usize> {
        stream.try_io(|fd| sys::send_more(fd, bytes))
    }

    fn write_vectored(
        &mut self,
        stream: &mut OsStream,
        slices: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        stream.try_io(|fd| sys::send_vectored(fd, slices))
    }

    fn unsent(&mut self, stream: &OsStream) -> Option<u64> {
        sys::unsent(stream.as_fd())
    }

    fn shutdown_write(&mut self, stream: &mut OsStream) -> io::Result<()> {
        on_stream!(&mut stream.0, stream => stream.shutdown(std::net::Shutdown::Write))
    }

    fn shut_down(&mut self, stream: &mut OsStream) -> io::Result<()> {
        on_stream!(&mut stream.0, stream => stream.shutdown(std::net::Shutdown::Both))
    }

    #[inline]
    fn close(&mut self, stream: OsStream, reset: bool) {
        if reset {
            reset_stream(&stream);
        }
        // Closing the only descriptor of a socket takes it out of epoll and kqueue; mio's poll
        // backend does so when the stream is dropped.
        #[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
        on_stream!(stream.0, stream => sys::close(OwnedFd::from(stream)));
        #[cfg(not(all(target_os = "linux", not(mio_unsupported_force_poll_poll))))]
        drop(stream);
    }

    fn close_listener(&mut self, mut listener: OsListener) {
        let registry: &Registry = self.poll.registry();
        // Another process may share the socket, so closing ours does not take it out.
        ignore(listener.source().deregister(registry), "deregister");
    }

    fn resolve(&mut self, host: &str, port: u16, token: Token) -> io::Result<()> {
        self.lookups.begin(host, port, token)
    }

    fn cancel_resolve(&mut self, token: Token) {
        self.lookups.cancel(token);
    }

    fn resolved(&mut self, token: Token) -> Option<io::Result<Vec<Address>>> {
        self.lookups.take(token)
    }
}

/// Ready when the reactor has something to do, for use inside another loop. (mio's poll backend has
/// no such descriptor.)
#[cfg(not(mio_unsupported_force_poll_poll))]
impl AsFd for Os {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::poll_fd(&self.poll)
    }
}

/// Lets the peer see the end at once, also if another process holds the socket.
fn reset_stream(stream: &OsStream) {
    match &stream.0 {
        Stream::Tcp(stream) => {
            #[cfg(target_os = "linux")]
            let reset = sys::disconnect(stream.as_fd()).is_ok();
            #[cfg(not(target_os = "linux"))]
            let reset = false;
            if !reset {
                // socket(7): with a linger of zero, close discards what is queued and resets.
                ignore(SockRef::from(stream).set_linger(Some(Duration::ZERO)), "SO_LINGER");
            }
        }
        // These know no reset.
        Stream::Unix(stream) => ignore(stream.shutdown(std::net::Shutdown::Both), "shutdown"),
    }
}

/// Binds a socket that is to be dialled from `local`. Without the option bind(2) would choose a port
/// that no other socket of that address has, whatever they dial, and so use the ports up (ip(7)).
fn bind_local(socket: &Socket, local: IpAddr) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    ignore(sys::bind_without_port(socket.as_fd()), "IP_BIND_ADDRESS_NO_PORT");
    socket.bind(&SockAddr::from(SocketAddr::new(local, 0)))
}

fn begin_connect(socket: &Socket, addr: &SockAddr) -> io::Result<()> {
    #[cfg(target_vendor = "apple")]
    {
        socket.set_cloexec(true)?;
        socket.set_nonblocking(true)?;
    }
    set_nosigpipe(SockRef::from(socket));
    match socket.connect(addr) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

impl Os {
    fn tcp_listener(&self, socket: Socket, options: &SocketOptions) -> OsListener {
        #[cfg(target_vendor = "apple")]
        {
            ignore(socket.set_cloexec(true), "FD_CLOEXEC");
            ignore(socket.set_nonblocking(true), "O_NONBLOCK");
        }
        set_options(&socket, options);
        let listener = mio::net::TcpListener::from_std(OwnedFd::from(socket).into());
        OsListener::new(Listener::Tcp(listener, TcpOptions(options.clone())), self.seen)
    }
}

/// Lets an accept on a listener of our own that was made blocking return after a moment. Connections
/// have the same timeout, from their listener, and no use for it: no call on them waits.
///
/// An adopted listener keeps its options: they are the socket's, and another process that waits in
/// accept(2) on the same socket would get EAGAIN, which it does not expect.
fn limit_accept_wait(socket: &Socket) {
    #[cfg(target_os = "linux")]
    ignore(socket.set_read_timeout(Some(Duration::from_millis(1))), "SO_RCVTIMEO");
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
#[inline]
fn accept_tcp(listener: &mio::net::TcpListener) -> io::Result<(mio::net::TcpStream, SocketAddr)> {
    let (fd, peer) = sys::accept(listener.as_fd())?;
    Ok((mio::net::TcpStream::from_std(fd.into()), peer))
}

#[cfg(not(all(target_os = "linux", not(mio_unsupported_force_poll_poll))))]
fn accept_tcp(listener: &mio::net::TcpListener) -> io::Result<(mio::net::TcpStream, SocketAddr)> {
    listener.accept()
}

impl TcpOptions {
    /// Sets the options on an accepted connection, where the listener could not hand them on.
    #[inline]
    fn hand_on(&self, stream: &mio::net::TcpStream) {
        // tcp(7): an accepted socket has the options of its listener.
        #[cfg(target_os = "linux")]
        let _ = stream;
        #[cfg(not(target_os = "linux"))]
        {
            set_nosigpipe(SockRef::from(stream));
            set_options(&SockRef::from(stream), &self.0);
        }
    }
}

/// Sets options on a TCP socket. A connection is better off without one than not at all.
fn set_options(socket: &Socket, options: &SocketOptions) {
    if options.nodelay {
        ignore(socket.set_tcp_nodelay(true), "TCP_NODELAY");
    }
    if let Some(keepalive) = &options.keepalive {
        let parameters = socket2::TcpKeepalive::new().with_time(keepalive.idle);
        #[cfg(not(target_os = "openbsd"))]
        let parameters =
            parameters.with_interval(keepalive.interval).with_retries(keepalive.retries);
        ignore(socket.set_tcp_keepalive(&parameters), "SO_KEEPALIVE");
    }
    #[cfg(target_os = "linux")]
    {
        if let Some(timeout) = options.user_timeout {
            ignore(socket.set_tcp_user_timeout(Some(timeout)), "TCP_USER_TIMEOUT");
        }
        if let Some(bytes) = options.notsent_lowat {
            ignore(socket.set_tcp_notsent_lowat(bytes), "TCP_NOTSENT_LOWAT");
        }
    }
}

/// Where send(2) has no flag against the signal, the socket has an option.
fn set_nosigpipe(socket: SockRef<'_>) {
    #[cfg(target_vendor = "apple")]
    ignore(socket.set_nosigpipe(true), "SO_NOSIGPIPE");
    #[cfg(not(target_vendor = "apple"))]
    let _ = socket;
}

fn ignore(result: io::Result<()>, what: &'static str) {
    if let Err(error) = result {
        debug!(%error, what, "socket call failed");
    }
}

/// A socket that dialled a free port in the range of ephemeral ones may meet itself (RFC 9293,
/// 3.5, simultaneous open).
fn is_connected_to_itself(stream: &OsStream, peer: &SockAddr) -> bool {
    match &stream.0 {
        Stream::Tcp(stream) => {
            stream.local_addr().is_ok_and(|local| peer.as_socket() == Some(local))
        }
        Stream::Unix(_) => false,
    }
}

/// How many bytes a read would have, one at most; zero is the peer's FIN.
fn peek(stream: &OsStream) -> io::Result<usize> {
    loop {
        let peeked = stream.try_io(|fd| SockRef::from(&fd).peek(&mut [MaybeUninit::uninit()]));
        if !matches!(&peeked, Err(error) if error.kind() == io::ErrorKind::Interrupted) {
            return peeked;
        }
    }
}

#[cfg(any(target_os = "android", target_os = "freebsd", target_os = "linux"))]
fn is_listener(socket: &Socket) -> io::Result<bool> {
    socket.is_listener()
}

/// Without SO_ACCEPTCONN the first accept shows it.
#[cfg(not(any(target_os = "android", target_os = "freebsd", target_os = "linux")))]
fn is_listener(_socket: &Socket) -> io::Result<bool> {
    Ok(true)
}

fn unix_address(addr: io::Result<std::os::unix::net::SocketAddr>) -> io::Result<Address> {
    let addr = addr?;
    Ok(addr.as_pathname().map_or(Address::Unnamed, |path| Address::Unix(path.into())))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_local_address_takes_up_no_port() {
        for local in ["127.0.0.1", "::1"] {
            let local: IpAddr = local.parse().unwrap();
            let domain = Domain::for_address((local, 0).into());
            let socket = Socket::new(domain, sys::stream_type(), Some(Protocol::TCP)).unwrap();
            match bind_local(&socket, local) {
                Ok(()) => {
                    let bound = socket.local_addr().unwrap().as_socket().unwrap();
                    assert_eq!(bound, SocketAddr::new(local, 0));
                }
                // A host without IPv6.
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable),
            }
        }
    }

    #[test]
    fn a_socket_that_met_itself_is_refused_and_leaves_its_port() {
        let socket = || {
            Socket::new(Domain::IPV4, sys::stream_type(), Some(Protocol::TCP)).expect("a socket")
        };
        let dialled = socket();
        dialled.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        let own = dialled.local_addr().unwrap();
        begin_connect(&dialled, &own).unwrap();
        let mut os = Os::new().unwrap();
        let stream = mio::net::TcpStream::from_std(OwnedFd::from(dialled).into());
        let mut stream = OsStream(Stream::Tcp(stream));
        let refused = os.is_connected(&mut stream).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        os.close(stream, true);
        // Without SO_REUSEADDR that fails where anything is left of the connection.
        socket().bind(&own).unwrap();
    }

    /// As an upstream does that answers and resets before the next wait.
    #[test]
    fn what_came_before_a_reset_makes_a_dial_succeed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        let mut os = Os::new().unwrap();
        for answers in [true, false] {
            let mut stream = os.connect(&address, &SocketOptions::default()).unwrap();
            let (mut peer, _) = listener.accept().unwrap();
            if answers {
                peer.write_all(b"reply").unwrap();
            }
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            // On loopback all of it has arrived by now.
            let connected = os.is_connected(&mut stream);
            assert_eq!(connected.is_ok(), answers, "{connected:?}");
            if answers {
                let mut input = BytesMut::with_capacity(64);
                assert_eq!(os.read(&mut stream, &mut input, 64).unwrap(), 5);
                assert_eq!(&input[..], b"reply");
                let error = os.read(&mut stream, &mut input, 64).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
        }
    }
}
