//! The operating system's sockets on this machine, over TCP or in the file system.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, fs, process, thread};

use socket2::{Domain, SockAddr, Socket, Type};
use wheelhouse::Address;

use super::{Got, World};

#[derive(Clone, Copy, Eq, PartialEq)]
enum Family {
    Tcp,
    Unix,
}

/// The real world.
pub(crate) struct Os {
    family: Family,
    /// Sockets that only have to be there.
    held: Vec<Socket>,
    /// Files to be removed at the end.
    paths: Vec<PathBuf>,
}

impl Os {
    pub(crate) fn tcp() -> Self {
        Self::of(Family::Tcp)
    }

    pub(crate) fn unix() -> Self {
        Self::of(Family::Unix)
    }

    const fn of(family: Family) -> Self {
        Self { family, held: Vec::new(), paths: Vec::new() }
    }

    fn socket(&self) -> Socket {
        let domain = match self.family {
            Family::Tcp => Domain::IPV4,
            Family::Unix => Domain::UNIX,
        };
        Socket::new(domain, Type::STREAM, None).unwrap()
    }

    /// A socket bound to an address of its own, which is not yet listened on.
    fn bound(&mut self) -> (Socket, Address) {
        let socket = self.socket();
        let address = self.address();
        socket.bind(&sock_addr(&address)).unwrap();
        let address = match address {
            Address::Ip(_) => socket.local_addr().unwrap().as_socket().unwrap().into(),
            other => other,
        };
        (socket, address)
    }
}

impl Drop for Os {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = fs::remove_file(path);
        }
    }
}

/// A path that no other test uses, where nothing is.
pub(crate) fn temporary_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = env::temp_dir().join(format!("wheelhouse-{}-{number}.sock", process::id()));
    let _ = fs::remove_file(&path);
    path
}

fn sock_addr(address: &Address) -> SockAddr {
    match address {
        Address::Ip(addr) => SockAddr::from(*addr),
        Address::Unix(path) => SockAddr::unix(path).unwrap(),
        _ => panic!("{address} is nowhere"),
    }
}

impl World for Os {
    type Backend = wheelhouse::backend::Os;
    type Peer = Socket;
    type Listener = Socket;

    fn has_resets(&self) -> bool {
        self.family == Family::Tcp
    }

    fn backend(&mut self) -> wheelhouse::backend::Os {
        wheelhouse::backend::Os::new().unwrap()
    }

    fn address(&mut self) -> Address {
        match self.family {
            Family::Tcp => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into(),
            Family::Unix => {
                let path = temporary_path();
                self.paths.push(path.clone());
                Address::Unix(path)
            }
        }
    }

    fn connect(&mut self, server: &Address, window: Option<usize>) -> Socket {
        let addr = sock_addr(server);
        let socket = Socket::new(addr.domain(), Type::STREAM, None).unwrap();
        if let Some(window) = window {
            socket.set_recv_buffer_size(window).unwrap();
        }
        // The kernel completes the handshake by itself: this does not wait.
        socket.connect(&addr).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    fn listen_as_peer(&mut self) -> (Socket, Address) {
        let (socket, address) = self.bound();
        socket.listen(16).unwrap();
        socket.set_nonblocking(true).unwrap();
        (socket, address)
    }

    fn answer(&mut self, listener: &mut Socket) -> Option<Socket> {
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(true).unwrap();
                Some(socket)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("accept: {error}"),
        }
    }

    fn refusing(&mut self) -> Address {
        // Bound, so that no other gets it, and not listened on.
        let (socket, address) = self.bound();
        self.held.push(socket);
        address
    }

    fn deaf(&mut self) -> Address {
        let (listener, address) = self.bound();
        listener.listen(1).unwrap();
        self.held.push(listener);
        // With a full backlog the kernel drops further dials.
        for _ in 0..4 {
            let filler = self.socket();
            filler.set_nonblocking(true).unwrap();
            let _ = filler.connect(&sock_addr(&address));
            self.held.push(filler);
        }
        address
    }

    fn send(&mut self, peer: &mut Socket, bytes: &[u8]) -> Option<usize> {
        match peer.write(bytes) {
            Ok(count) => Some(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(0),
            Err(error) if is_gone(error.kind()) => None,
            Err(error) => panic!("send: {error}"),
        }
    }

    fn receive(&mut self, peer: &mut Socket, buffer: &mut [u8]) -> Got {
        match peer.read(buffer) {
            Ok(0) => Got::Eof,
            Ok(count) => Got::Bytes(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Got::Nothing,
            Err(error) if is_gone(error.kind()) => Got::Reset,
            Err(error) => panic!("receive: {error}"),
        }
    }

    fn shutdown_write(&mut self, peer: &mut Socket) {
        peer.shutdown(Shutdown::Write).unwrap();
    }

    fn reset(&mut self, peer: Socket) {
        peer.set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn stall(&mut self) -> Box<dyn Fn(Duration)> {
        Box::new(thread::sleep)
    }
}

fn is_gone(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
    )
}
