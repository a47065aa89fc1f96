//! What the sockets of a reactor are like, and what only the kernel's do.

#[path = "paths.rs"]
mod paths;
#[path = "shared.rs"]
mod shared;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use socket2::{Domain, SockRef, Socket, Type};
use wheelhouse::backend::Backend;
use wheelhouse::backend::Os;
use wheelhouse::{
    Address, CloseReason, Closed, Config, Conn, Context, Handler, ListenConfig, Reactor,
};

use crate::shorthands::{millis, secs};

fn any() -> Address {
    SocketAddr::from(([127, 0, 0, 1], 0)).into()
}

/// Whether a descriptor is closed in children, and whether its calls do not block: proc(5).
fn flags(fd: i32) -> Option<(bool, bool)> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    let flags = i32::from_str_radix(flags.trim(), 8).expect("an octal number");
    Some((flags & libc::O_CLOEXEC != 0, flags & libc::O_NONBLOCK != 0))
}

/// Accepts as soon as there is a dial.
fn accept(
    os: &mut Os,
    listener: &mut wheelhouse::backend::OsListener,
) -> wheelhouse::backend::OsStream {
    for _ in 0..1_000 {
        match os.accept(listener) {
            Ok((stream, _)) => return stream,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        thread::sleep(millis(1));
    }
    panic!("none comes");
}

#[test]
fn every_socket_has_the_options_that_were_asked_for() {
    let options = Config::default().socket;
    let mut os = Os::new().unwrap();
    let mut listener = os.bind(&any(), &ListenConfig::default(), &options).unwrap();
    let address = os.listener_addr(&listener).unwrap();
    let _client = TcpStream::connect(address.ip().unwrap()).unwrap();
    let accepted = accept(&mut os, &mut listener);
    let dialled = os.connect(&address, &options).unwrap();
    let inherited = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = inherited.local_addr().unwrap();
    let mut inherited = os.adopt(OwnedFd::from(inherited), &options).unwrap();
    let _second = TcpStream::connect(at).unwrap();
    let accepted_there = accept(&mut os, &mut inherited);
    for stream in [accepted, dialled, accepted_there] {
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), secs(60));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), secs(10));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 128 * 1024);
        assert_eq!(socket.linger().unwrap(), None, "a normal end is no reset");
    }
}

#[test]
fn no_descriptor_is_inherited_by_children_and_none_blocks() {
    let options = Config::default().socket;
    let mut os = Os::new().unwrap();
    let path = std::env::temp_dir().join(format!("wheelhouse-sockets-{}", std::process::id()));
    let before: Vec<i32> = open_descriptors();
    let unix = Address::Unix(path.clone());
    let mut listeners = [any(), unix.clone()]
        .map(|address| os.bind(&address, &ListenConfig::default(), &options).unwrap());
    // One that the service manager left without either flag.
    let inherited = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&inherited).set_cloexec(false).unwrap();
    let raw = inherited.as_raw_fd();
    let inherited = os.adopt(OwnedFd::from(inherited), &options).unwrap();
    let address = os.listener_addr(&listeners[0]).unwrap();
    let _clients =
        (TcpStream::connect(address.ip().unwrap()).unwrap(), UnixStream::connect(&path).unwrap());
    let accepted = listeners.each_mut().map(|listener| accept(&mut os, listener));
    let dialled = [address, unix].map(|address| os.connect(&address, &options).unwrap());
    for stream in accepted.iter().chain(&dialled) {
        assert_eq!(flags(stream.as_fd().as_raw_fd()), Some((true, true)));
    }
    assert_eq!(flags(raw), Some((true, true)));
    // The poll, its waker and the other listeners.
    for fd in open_descriptors().into_iter().filter(|fd| *fd > 2 && !before.contains(fd)) {
        // Those of other tests may be closed by now.
        assert!(flags(fd).is_none_or(|(closes, _)| closes), "{fd}");
    }
    drop(inherited);
}

fn open_descriptors() -> Vec<i32> {
    let dir = std::fs::read_dir("/proc/self/fd").unwrap();
    let own: Vec<i32> =
        dir.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    // That of the directory itself is closed again.
    own.into_iter().filter(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok()).collect()
}

/// Echoes.
#[derive(Default)]
struct Echo {
    refuses: bool,
    closed: Vec<CloseReason>,
}

impl Handler for Echo {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        if self.refuses {
            conn.write(b"busy");
            return None;
        }
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, (): ()) {
        self.closed.push(closed.reason);
    }
}

fn reactor() -> (Reactor<Echo>, SocketAddr) {
    let mut config = Config::default();
    // Tests that run at the same time share the process's descriptors.
    config.limits.max_connections = Some(100);
    let mut reactor: Reactor<Echo> = Reactor::new(config).unwrap();
    let listener = reactor.listen(any()).unwrap();
    let address = reactor.local_addr(listener).ip().unwrap();
    (reactor, address)
}

fn turn(reactor: &mut Reactor<Echo>, echo: &mut Echo, times: usize) {
    for _ in 0..times {
        reactor.turn(echo, Some(millis(2))).unwrap();
    }
}

#[test]
fn bytes_after_an_urgent_byte_are_read_too() {
    let (mut reactor, address) = reactor();
    let mut echo = Echo::default();
    let mut client = TcpStream::connect(address).unwrap();
    client.set_nonblocking(true).unwrap();
    turn(&mut reactor, &mut echo, 5);
    client.write_all(b"before").unwrap();
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b"behind").unwrap();
    let mut reply = Vec::new();
    for _ in 0..1_000 {
        turn(&mut reactor, &mut echo, 1);
        // "Would block", as long as nothing has come.
        let _ = client.read_to_end(&mut reply);
        if reply.len() >= 12 {
            break;
        }
    }
    assert_eq!(reply, b"beforebehind");
}

#[test]
fn a_client_that_is_refused_with_a_reply_reads_it_and_a_fin() {
    let (mut reactor, address) = reactor();
    let mut echo = Echo { refuses: true, ..Echo::default() };
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"hello").unwrap();
    turn(&mut reactor, &mut echo, 20);
    let mut reply = Vec::new();
    let end = client.read_to_end(&mut reply);
    assert_eq!((&reply[..], end.map_err(|error| error.kind())), (&b"busy"[..], Ok(4)));
}

#[test]
fn a_fin_is_no_unacknowledged_output() {
    let mut os = Os::new().unwrap();
    let options = Config::default().socket;
    let mut listener = os.bind(&any(), &ListenConfig::default(), &options).unwrap();
    let address = os.listener_addr(&listener).unwrap().ip().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let mut stream = accept(&mut os, &mut listener);
    assert_eq!(os.write(&mut stream, b"bye").unwrap(), 3);
    os.shutdown_write(&mut stream).unwrap();
    let mut read = Vec::new();
    client.read_to_end(&mut read).unwrap();
    // The kernel of a client that keeps its end open acknowledges the FIN some 40 ms later.
    assert_eq!((read, os.unsent(&stream)), (b"bye".to_vec(), Some(0)));
}

/// Counts the closures that ran, and panics at every input.
#[derive(Default)]
struct Fuse(u32);

impl Handler for Fuse {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {
        panic!("on purpose");
    }
}

/// The wake-up and the bytes mostly come in one batch of events.
#[test]
fn a_panic_after_a_wake_up_loses_no_closure() {
    let mut config = Config::default();
    config.limits.max_connections = Some(64);
    let mut reactor = Reactor::new(config).unwrap();
    let listener = reactor.listen(any()).unwrap();
    let at = reactor.local_addr(listener).ip().unwrap();
    let (mut fuse, handle) = (Fuse::default(), reactor.handle());
    for round in 1..=20 {
        let mut peer = TcpStream::connect(at).unwrap();
        while handle.stats().accepted < round {
            reactor.turn(&mut fuse, Some(millis(10))).unwrap();
        }
        // The peer's socket has been announced as writable, and comes after the wake-up.
        reactor.turn(&mut fuse, Some(Duration::ZERO)).unwrap();
        let poster = handle.clone();
        let posted = thread::spawn(move || poster.post(|fuse, _| fuse.0 += 1));
        posted.join().unwrap().unwrap();
        peer.write_all(b"p").unwrap();
        while handle.stats().panics < round {
            reactor.turn(&mut fuse, Some(millis(10))).unwrap();
        }
        reactor.turn(&mut fuse, Some(Duration::ZERO)).unwrap();
        assert_eq!(u64::from(fuse.0), round);
    }
}

/// Real, because a simulated world takes the panic of a callback for a mistake.
#[test]
fn a_panic_in_on_start_stops_the_reactor() {
    struct Broken;
    impl Handler for Broken {
        type Session = ();

        fn on_start(&mut self, _: &mut Context<'_>) {
            panic!("on purpose");
        }

        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            None
        }

        fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
    }

    let mut config = Config::default();
    config.limits.max_connections = Some(8);
    let error = Reactor::new(config).unwrap().run(&mut Broken).unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
}

/// Dials a name when it starts, and stops the reactor when that has come to something.
struct Dialler {
    name: &'static str,
    connected: Option<Address>,
    closed: Option<CloseReason>,
}

impl Handler for Dialler {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let target: wheelhouse::Target = self.name.parse().unwrap();
        cx.connect(target).unwrap();
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, _: &mut ()) {
        self.connected = Some(conn.peer_addr().clone());
        conn.close();
    }

    fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}

    fn on_closed(&mut self, cx: &mut Context<'_>, closed: Closed, _: ()) {
        self.closed = Some(closed.reason);
        cx.shutdown();
    }
}

#[test]
fn a_resolver_of_the_application_is_asked_for_names() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap();
    let resolve = move |host: &str, port: u16| match (host, port) {
        ("db.internal", 5_432) => Ok(vec![here]),
        ("bad.internal", _) => panic!("a resolver with a bug"),
        _ => Err(std::io::Error::other("no such host")),
    };
    for (name, connects) in [
        ("db.internal:5432", true),
        ("db.internal:5433", false),
        ("bad.internal:80", false),
        ("other.internal:80", false),
    ] {
        let os = Os::with_resolver(resolve).unwrap();
        let mut dialler = Dialler { name, connected: None, closed: None };
        let mut config = Config::default();
        config.limits.max_connections = Some(100);
        let reactor = Reactor::with_backend(config, os).unwrap();
        reactor.run(&mut dialler).unwrap();
        assert_eq!(dialler.connected, connects.then(|| here.into()), "{name}");
        let failed = matches!(dialler.closed, Some(CloseReason::ConnectFailed(_)));
        assert_eq!(failed, !connects, "{name}: {:?}", dialler.closed);
    }
}

/// Keeps what became of the connections that it dialled: the peer's address and the local one.
#[derive(Default)]
struct Dials {
    connected: Vec<(Address, Option<Address>)>,
    closed: Vec<CloseReason>,
}

impl Handler for Dials {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        self.connected.push((conn.peer_addr().clone(), conn.local_addr().cloned()));
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {}

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, (): ()) {
        self.closed.push(closed.reason);
    }
}

/// A listener whose full backlog lets the kernel drop further dials, and what fills it.
fn deaf() -> (Vec<Socket>, SocketAddr) {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = vec![listener];
    for _ in 0..4 {
        let filler = socket();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&address);
        held.push(filler);
    }
    (held, address.as_socket().unwrap())
}

#[test]
fn a_dial_passes_an_address_by_that_does_not_answer() {
    let (_held, deaf) = deaf();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let good = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let os = Os::with_resolver(move |_: &str, _: u16| {
        count.fetch_add(1, Ordering::Relaxed);
        thread::sleep(millis(50));
        Ok(vec![deaf, good])
    });
    let mut config = Config::default();
    config.limits.max_connections = Some(64);
    let mut reactor = Reactor::with_backend(config, os.unwrap()).unwrap();
    let mut dials = Dials::default();
    // Both ask at once, so the resolver is asked once.
    for _ in 0..2 {
        reactor.context().connect("name:80").unwrap();
    }
    let start = reactor.context().now();
    while dials.connected.len() + dials.closed.len() < 2 {
        reactor.turn(&mut dials, Some(millis(10))).unwrap();
        assert!(reactor.context().now() - start < secs(10));
    }
    let took = reactor.context().now() - start;
    assert!(took >= millis(300), "{took:?}");
    let peers: Vec<_> = dials.connected.iter().map(|(peer, _)| peer.clone()).collect();
    assert_eq!(peers, [Address::Ip(good), Address::Ip(good)], "{:?}", dials.closed);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_dial_leaves_from_the_address_that_is_set() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = Config::default();
    config.limits.max_connections = Some(64);
    // Linux takes all of 127.0.0.0/8 for addresses of the machine.
    config.socket.local = Some([127, 0, 0, 2].into());
    let mut reactor = Reactor::new(config).unwrap();
    let mut dials = Dials::default();
    reactor.context().connect(listener.local_addr().unwrap()).unwrap();
    reactor.context().connect("[::1]:1").unwrap();
    let start = reactor.context().now();
    while dials.connected.is_empty() || dials.closed.is_empty() {
        reactor.turn(&mut dials, Some(millis(10))).unwrap();
        assert!(reactor.context().now() - start < secs(10));
    }
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip().to_string(), "127.0.0.2");
    assert_eq!(dials.connected[0].1, Some(Address::Ip(peer)));
    let CloseReason::ConnectFailed(error) = dials.closed[0] else { panic!() };
    assert_eq!(error.kind(), std::io::ErrorKind::AddrNotAvailable);
}
