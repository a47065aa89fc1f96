//! How long a bystander waits for its echo while one callback asks for very much: 15,000 dials,
//! 70,000 broadcasts, 20,000 aborts, on real sockets of this machine.
//!
//! It needs some 150,000 descriptors, as both ends of each connection are its own, and asks for fewer
//! connections where it may open fewer.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use bytes::BytesMut;
use socket2::{Domain, Socket, Type};
use wheelhouse::{Address, Config, Conn, ConnId, Context, Handle, Handler, Reactor, Target};

/// The bystander looks so often whether it is over.
const PAUSE: Duration = Duration::from_micros(500);

/// Echoes, and keeps the ids of the clients.
#[derive(Default)]
struct Echo {
    ids: Vec<ConnId>,
    connected: Arc<AtomicUsize>,
}

impl Handler for Echo {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.ids.push(conn.id());
        Some(())
    }

    fn on_connected(&mut self, _: &mut Conn<'_>, (): &mut ()) {
        self.connected.fetch_add(1, Ordering::Relaxed);
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }
}

/// A server on a thread of its own, and what reaches it.
struct Server {
    handle: Handle<Echo>,
    connected: Arc<AtomicUsize>,
    port: u16,
    thread: thread::JoinHandle<()>,
}

impl Server {
    fn start() -> Self {
        let mut config = Config::default();
        config.limits.max_connections = Some(100_000);
        config.timeouts.first_byte = None;
        config.timeouts.response = None;
        let mut reactor = Reactor::new(config).expect("descriptors");
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let listener = reactor.listen(any.into()).expect("a port");
        let port = reactor.local_addr(listener).ip().expect("TCP").port();
        let (handle, connected) = (reactor.handle(), Arc::default());
        let mut echo = Echo { connected: Arc::clone(&connected), ..Echo::default() };
        let thread = thread::spawn(move || {
            let report = reactor.run(&mut echo).expect("it runs");
            let stats = &report.stats;
            let worst = Duration::from_nanos(stats.worst_turn);
            println!("  longest turn {worst:?}, mostly {:?}", stats.worst_step());
        });
        Self { handle, connected, port, thread }
    }

    /// An address on loopback; each has ephemeral ports of its own.
    fn at(&self, number: usize) -> SocketAddr {
        let host = Ipv4Addr::new(127, 0, 0, 2 + (number / 20_000) as u8);
        SocketAddr::from((IpAddr::from(host), self.port))
    }

    fn stop(self) {
        self.handle.shutdown();
        self.handle.shutdown();
        self.thread.join().expect("it does not panic");
    }
}

/// Sends a byte and waits for its echo, again and again until `done`; returns the longest wait.
fn stand_by(stream: &mut TcpStream, mut done: impl FnMut() -> bool) -> Duration {
    let mut longest = Duration::ZERO;
    while !done() {
        let asked = now();
        stream.write_all(b"!").expect("the server lives");
        stream.read_exact(&mut [0]).expect("the server answers");
        longest = longest.max(asked.elapsed());
        thread::sleep(PAUSE);
    }
    longest
}

#[expect(clippy::disallowed_methods, reason = "this measures real time")]
fn now() -> Instant {
    Instant::now()
}

/// One experiment with so many clients: what one callback does, and when that is done.
fn run(
    name: &str,
    clients: usize,
    act: impl FnOnce(&mut Echo, &mut Context<'_>) + Send + 'static,
    done: impl Fn(&Server, &mut Vec<TcpStream>) -> bool,
) {
    let server = Server::start();
    let mut bystander = TcpStream::connect(server.at(0)).expect("the server listens");
    bystander.set_nodelay(true).expect("TCP");
    let quiet = stand_by(&mut bystander, {
        let mut rounds = 0;
        move || {
            rounds += 1;
            rounds > 200
        }
    });
    let mut streams: Vec<_> = (0..clients)
        .map(|number| TcpStream::connect(server.at(number)).expect("descriptors and ports"))
        .collect();
    while server.connected.load(Ordering::Relaxed) < clients + 1 {
        thread::sleep(PAUSE);
    }
    server.handle.post(act).expect("the server lives");
    let began = now();
    let longest = stand_by(&mut bystander, || done(&server, &mut streams));
    println!(
        "{name}: done in {:?}; a bystander waits {longest:?}, alone {quiet:?}",
        began.elapsed()
    );
    server.stop();
}

fn is_ended(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    !matches!(stream.read(&mut [0; 64]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

fn has_read(stream: &mut TcpStream) -> bool {
    is_ended(stream)
}

fn main() {
    // Cargo passes options of its own.
    let scale: usize = env::args().find_map(|arg| arg.parse().ok()).unwrap_or(1).max(1);
    let limit = descriptors();
    let scaled = |count: usize| (count / scale).min(limit.saturating_sub(1_000) / 2);

    let dials = scaled(15_000);
    let listener = TcpListener::from({
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
        socket.listen(4_096).expect("a listener");
        socket
    });
    let to = Address::from(listener.local_addr().expect("TCP"));
    let over = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&over);
    let acceptor = thread::spawn(move || {
        let mut held = Vec::new();
        while !until.load(Ordering::Relaxed) {
            held.extend(listener.accept().ok());
        }
    });
    let name = format!("{dials} dials in one callback");
    let target = Target::from(to.clone());
    let all = move |_: &mut Echo, cx: &mut Context<'_>| {
        for _ in 0..dials {
            cx.connect(target.clone()).expect("there is room");
        }
    };
    run(&name, 0, all, |server, _| server.connected.load(Ordering::Relaxed) > dials);
    over.store(true, Ordering::Relaxed);
    drop(TcpStream::connect(to.ip().expect("TCP")));
    acceptor.join().expect("it does not panic");

    let clients = scaled(70_000);
    let name = format!("a broadcast to {clients}");
    let all = |echo: &mut Echo, cx: &mut Context<'_>| {
        for id in &echo.ids {
            if let Some(mut conn) = cx.conn(*id) {
                conn.write(b"hello, all of you");
            }
        }
    };
    // The bystander is the first client, and reads the broadcast among its echoes.
    run(&name, clients, all, |_, streams| streams.last_mut().is_none_or(has_read));

    let clients = scaled(20_000);
    let name = format!("{clients} aborts in one callback");
    let all = |echo: &mut Echo, cx: &mut Context<'_>| {
        for id in &echo.ids[1..] {
            if let Some(mut conn) = cx.conn(*id) {
                conn.abort();
            }
        }
    };
    run(&name, clients, all, |_, streams| streams.last_mut().is_none_or(is_ended));
    process::exit(0);
}

/// How many descriptors this process may open once a reactor has raised the limit.
fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(4));
    hard.and_then(|hard| hard.parse().ok()).unwrap_or(20_000)
}
