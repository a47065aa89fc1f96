//! Sockets whose open file description another process or library holds too: it may make them
//! blocking (fcntl(2)), and keeps them open when the reactor closes its own descriptor.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use wheelhouse::{Config, Conn, Handle, Handler, Instant, ListenConfig, Reactor};

use super::{any, flags, millis};

use crate::shorthands::secs;

/// How long an answer may take before it counts as missing.
const PATIENCE: Duration = secs(10);

/// How long a connection may be idle: its descriptor is found meanwhile, among those of thousands of
/// connections that other tests have left in TIME_WAIT.
const IDLE: Duration = secs(1);

/// A second descriptor of what `fd` refers to, as another process would have after fork(2).
fn duplicate(fd: RawFd) -> OwnedFd {
    // SAFETY: dup(2) returns a descriptor that nothing else owns, or -1, which is checked.
    #[expect(unsafe_code, reason = "the reactor does not lend its descriptors")]
    unsafe {
        let copy = libc::dup(fd);
        assert!(copy >= 0);
        OwnedFd::from_raw_fd(copy)
    }
}

/// Makes what `fd` refers to blocking, by way of another descriptor.
fn make_blocking(fd: RawFd) {
    SockRef::from(&duplicate(fd)).set_nonblocking(false).unwrap();
    assert!(!is_nonblocking(fd));
}

fn is_nonblocking(fd: RawFd) -> bool {
    flags(fd).expect("the descriptor is open").1
}

/// This process's descriptor of the TCP socket with this local and remote address: proc(5).
fn find_socket(local: SocketAddr, remote: SocketAddr) -> RawFd {
    let hex = |addr: SocketAddr| match addr {
        SocketAddr::V4(addr) => {
            format!("{:08X}:{:04X}", u32::from_ne_bytes(addr.ip().octets()), addr.port())
        }
        SocketAddr::V6(_) => panic!("IPv4 only"),
    };
    let ends = format!(" {} {} ", hex(local), hex(remote));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let row = table.lines().find(|line| line.contains(&ends)).expect("the socket is listed");
    let inode = format!("socket:[{}]", row.split_whitespace().nth(9).expect("an inode"));
    let mut entries = std::fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap);
    let entry = entries
        .find(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to.to_str() == Some(&inode)))
        .expect("the socket is this process's");
    entry.file_name().to_str().unwrap().parse().unwrap()
}

fn find_listener(address: SocketAddr) -> RawFd {
    find_socket(address, SocketAddr::from(([0, 0, 0, 0], 0)))
}

/// Echoes lines. `large` is answered with more than socket buffers hold, in pieces; `abort` with a
/// reset; `close` with an end.
struct Lines;

const LARGE: usize = 8 << 20;

impl Handler for Lines {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        match &input[..] {
            b"large\n" => {
                conn.write_bytes(vec![b'l'; LARGE / 2]);
                conn.write_bytes(vec![b'l'; LARGE / 2]);
            }
            b"abort\n" => conn.abort(),
            line => conn.write(line),
        }
        input.clear();
    }
}

/// A reactor that runs on a thread of its own, so that a test notices when it is parked.
struct Running {
    handle: Handle<Lines>,
    address: SocketAddr,
}

impl Running {
    fn start(config: Config, adopted: Option<TcpListener>) -> Self {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut reactor: Reactor<Lines> = Reactor::new(config).unwrap();
            let listener = match adopted {
                Some(listener) => {
                    reactor.adopt(OwnedFd::from(listener), ListenConfig::default()).unwrap()
                }
                None => reactor.listen(any()).unwrap(),
            };
            let address = reactor.local_addr(listener).ip().unwrap();
            sender.send(Self { handle: reactor.handle(), address }).unwrap();
            reactor.run(&mut Lines).unwrap();
        });
        receiver.recv().unwrap()
    }

    /// What the reactor's clock shows; fails if the loop does not come to it.
    fn now(&self) -> Instant {
        let (sender, receiver) = mpsc::channel();
        self.handle.post(move |_, cx| sender.send(cx.now()).unwrap()).unwrap();
        receiver.recv_timeout(PATIENCE).expect("the loop is parked in a system call")
    }

    fn dial(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// A client that has been served, and the server's descriptor of it.
    fn enter(&self) -> (TcpStream, RawFd) {
        let mut client = self.dial();
        serve(&mut client);
        let fd = find_socket(self.address, client.local_addr().unwrap());
        (client, fd)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.handle.shutdown();
    }
}

/// Asks for an echo and waits for it.
fn serve(client: &mut TcpStream) {
    client.write_all(b"hello\n").unwrap();
    let mut echo = [0; 6];
    client.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"hello\n");
}

fn limited() -> Config {
    let mut config = Config::default();
    config.limits.max_connections = Some(100);
    config
}

#[test]
fn a_listener_that_is_made_blocking_parks_nothing() {
    let server = Running::start(limited(), None);
    let fd = find_listener(server.address);
    make_blocking(fd);
    let start = server.now();
    // Each client is followed by an accept that finds the backlog empty.
    while !is_nonblocking(fd) {
        serve(&mut server.dial());
        assert!(server.now() - start < PATIENCE, "nothing makes it non-blocking again");
    }
    serve(&mut server.dial());
    server.now();
}

#[test]
fn an_adopted_listener_that_is_blocking_is_made_non_blocking_before_an_accept() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = listener.try_clone().unwrap();
    let server = Running::start(limited(), Some(listener));
    serve(&mut server.dial());
    let start = server.now();
    // It is checked once a second at most.
    while server.now() - start < millis(1_100) {
        thread::sleep(millis(50));
    }
    SockRef::from(&other).set_nonblocking(false).unwrap();
    serve(&mut server.dial());
    server.now();
    assert!(SockRef::from(&other).nonblocking().unwrap());
    assert_eq!(SockRef::from(&other).read_timeout().unwrap(), None, "others accept from it too");
}

#[test]
fn a_connection_that_is_made_blocking_parks_nothing() {
    let mut config = limited();
    config.timeouts.idle = Some(IDLE);
    let server = Running::start(config, None);
    // The reactor reads once more before an idle deadline ends a connection.
    let (mut idle, fd) = server.enter();
    make_blocking(fd);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    server.now();
    // A peer that reads nothing.
    let (mut slow, fd) = server.enter();
    make_blocking(fd);
    slow.write_all(b"large\n").unwrap();
    let mut reply = vec![0; LARGE];
    slow.read_exact(&mut reply[..1]).unwrap();
    server.now();
    slow.read_exact(&mut reply[1..]).unwrap();
    assert!(reply.iter().all(|byte| *byte == b'l'));
}

#[test]
fn a_peer_sees_the_end_of_a_duplicated_connection() {
    let mut config = limited();
    config.timeouts.idle = Some(IDLE);
    let server = Running::start(config, None);
    let (mut client, fd) = server.enter();
    let _held = duplicate(fd);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    // What it sends now is answered as after a close: with a reset.
    let mut refused = client.write_all(b"anybody?\n");
    let start = server.now();
    while refused.is_ok() {
        assert!(server.now() - start < PATIENCE, "the peer writes into the void");
        refused = client.write_all(b"anybody?\n");
    }
}

#[test]
fn a_peer_sees_the_reset_of_a_duplicated_connection() {
    let server = Running::start(limited(), None);
    let (mut client, fd) = server.enter();
    let _held = duplicate(fd);
    client.write_all(b"abort\n").unwrap();
    let error = client.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn events_of_a_duplicated_connection_do_not_spin() {
    let server = Running::start(limited(), None);
    let (mut leaver, fd) = server.enter();
    let held = duplicate(fd);
    // The peer's end comes first, so that the reactor only closes its descriptor: the duplicate
    // keeps the socket open and in the set of epoll (epoll(7), question 6).
    leaver.shutdown(std::net::Shutdown::Write).unwrap();
    let start = server.now();
    while server.handle.stats().connections > 0 {
        assert!(server.now() - start < PATIENCE);
    }
    // Its holder ends it; that is an event with the id of a connection that is gone.
    SockRef::from(&held).shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(leaver.read(&mut [0]).unwrap(), 0);
    let turns = server.handle.stats().turns;
    let start = server.now();
    while server.now() - start < millis(200) {
        thread::sleep(millis(20));
    }
    let turns = server.handle.stats().turns - turns;
    assert!(turns < 50, "{turns} turns");
    serve(&mut server.dial());
}
