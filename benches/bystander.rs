//! How long a bystander waits for its echo while one callback asks for very much: 15,000 dials,
//! 70,000 broadcasts, 20,000 aborts, on real sockets of this machine.
//!
//! The other ends belong to processes of their own, which it starts. Where it may open fewer than
//! 94,000 descriptors it asks for fewer connections, and says for how many.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use bytes::BytesMut;
use socket2::{Domain, Socket, Type};
use wheelhouse::{Address, Config, Conn, ConnId, Context, Handle, Handler, Reactor, Target};

/// How often the bystander checks whether it is over.
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
        let listener = reactor.listen(any).expect("a port");
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

    fn stop(self) {
        self.handle.shutdown();
        self.handle.shutdown();
        self.thread.join().expect("it does not panic");
    }
}

/// The server's address on loopback for a client; each has ephemeral ports of its own.
fn server_at(port: u16, number: usize) -> SocketAddr {
    let host = Ipv4Addr::new(127, 0, 0, 2 + (number / 20_000) as u8);
    SocketAddr::from((IpAddr::from(host), port))
}

/// A process that holds the other ends of connections until it is dropped.
struct Others {
    child: Child,
    lines: io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Others {
    fn start(args: &[usize]) -> Self {
        let mut child = Command::new(env::current_exe().expect("a path"))
            .arg(OTHERS)
            .args(args.iter().map(ToString::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("a line").expect("it is read")
    }

    /// Says on another thread when the next line has come.
    fn next_line(mut self) -> (Arc<AtomicBool>, thread::JoinHandle<Self>) {
        let came = Arc::new(AtomicBool::new(false));
        let comes = Arc::clone(&came);
        let thread = thread::spawn(move || {
            self.line();
            comes.store(true, Ordering::Relaxed);
            self
        });
        (came, thread)
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Selects, as the first argument, what [`Others`] run.
const OTHERS: &str = "--others";

/// Clients that one process holds.
const CLIENTS_PER_PROCESS: usize = 18_000;

/// What a process of [`Others`] does: it accepts without end, or holds clients of a port and says when
/// the last one has something to read.
fn be_others(args: &[usize]) {
    let held = match *args {
        [] => accept_all(),
        [port, first, count] => hold_clients(port as u16, first, count),
        _ => panic!("{args:?}"),
    };
    // The standard input ends with the process that asked for this one.
    let _ = io::stdin().read(&mut [0]);
    drop(held);
}

#[expect(clippy::print_stdout, reason = "the other process reads it")]
fn accept_all() -> Vec<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
    socket.listen(4_096).expect("a listener");
    let listener = TcpListener::from(socket);
    println!("{}", listener.local_addr().expect("TCP").port());
    thread::spawn(move || {
        let mut held = Vec::new();
        loop {
            held.extend(listener.accept().ok());
        }
    });
    Vec::new()
}

#[expect(clippy::print_stdout, reason = "the other process reads it")]
fn hold_clients(port: u16, first: usize, count: usize) -> Vec<TcpStream> {
    let mut held: Vec<_> = (first..first + count)
        .map(|number| TcpStream::connect(server_at(port, number)).expect("descriptors and ports"))
        .collect();
    println!("connected");
    let _ = held.last_mut().expect("there are some").read(&mut [0; 64]);
    println!("done");
    held
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

/// One experiment with so many clients: what one callback does. It is done once the last of them has
/// something to read; without clients, once there are `dials` connections.
fn run(
    name: &str,
    clients: usize,
    dials: usize,
    act: impl FnOnce(&mut Echo, &mut Context<'_>) + Send + 'static,
) {
    let server = Server::start();
    let mut bystander = TcpStream::connect(server_at(server.port, 0)).expect("the server listens");
    bystander.set_nodelay(true).expect("TCP");
    let quiet = stand_by(&mut bystander, {
        let mut rounds = 0;
        move || {
            rounds += 1;
            rounds > 200
        }
    });
    let mut others = Vec::new();
    for first in (0..clients).step_by(CLIENTS_PER_PROCESS) {
        let count = CLIENTS_PER_PROCESS.min(clients - first);
        let mut some = Others::start(&[server.port.into(), first, count]);
        some.line();
        others.push(some);
    }
    while server.connected.load(Ordering::Relaxed) < clients + 1 {
        thread::sleep(PAUSE);
    }
    let last = others.pop().map(Others::next_line);
    server.handle.post(act).expect("the server lives");
    let began = now();
    let longest = stand_by(&mut bystander, || match &last {
        Some((came, _)) => came.load(Ordering::Relaxed),
        None => server.connected.load(Ordering::Relaxed) > dials,
    });
    println!(
        "{name}: done in {:?}; a bystander waits {longest:?}, alone {quiet:?}",
        began.elapsed()
    );
    server.stop();
    if let Some((_, thread)) = last {
        drop(thread.join());
    }
}

fn main() {
    let args: Vec<_> = env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == OTHERS) {
        let numbers: Result<Vec<_>, _> = args[1..].iter().map(|arg| arg.parse()).collect();
        return be_others(&numbers.expect("numbers"));
    }
    // Cargo passes options of its own.
    let scale: usize = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(1).max(1);
    let limit = descriptors();
    // A table that is fuller evicts those that have been idle for long, as the bystander has then.
    let scaled = |count: usize| (count / scale).min(limit / 4 * 3);

    let dials = scaled(15_000);
    let mut acceptor = Others::start(&[]);
    let port: u16 = acceptor.line().parse().expect("a port");
    let target = Target::from(Address::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    run(&format!("{dials} dials in one callback"), 0, dials, move |_, cx| {
        for _ in 0..dials {
            cx.connect(target.clone()).expect("there is room");
        }
    });
    drop(acceptor);

    let clients = scaled(70_000);
    run(&format!("a broadcast to {clients}"), clients, 0, |echo, cx| {
        // The bystander is the first client, and is left out.
        for id in &echo.ids[1..] {
            if let Some(mut conn) = cx.conn(*id) {
                conn.write(b"hello, all of you");
            }
        }
    });

    let clients = scaled(20_000);
    run(&format!("{clients} aborts in one callback"), clients, 0, |echo, cx| {
        for id in &echo.ids[1..] {
            if let Some(mut conn) = cx.conn(*id) {
                conn.abort();
            }
        }
    });
}

/// How many descriptors this process may open once a reactor has raised the limit.
fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(4));
    hard.and_then(|hard| hard.parse().ok()).unwrap_or(20_000)
}
