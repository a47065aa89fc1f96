//! The program before upstreams that behave badly, as other proxies have met them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use socket2::SockRef;

use super::peers::{metric, serve};
use crate::programs::{
    PATIENCE, Program, Server, TempPath, eventually, example, expect, read_to_end,
    unreachable_address, value,
};

/// A proxy before `upstream` that has found it up, and where its metrics are.
fn proxy(upstream: &str, options: &[&str]) -> (Server, String) {
    let fixed = ["--metrics", "127.0.0.1:0", "--upstream", upstream, "--check-interval", "1h"];
    let server = Server::start("proxy", &[&fixed[..], options].concat());
    let metrics = server.metrics_addr();
    eventually("the upstream is up", || metric(&metrics, "wheelhouse_endpoints_up") == 1);
    (server, metrics)
}

/// Closes with a reset.
fn reset(peer: TcpStream) {
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("an option");
}

/// How many bytes its peer has yet to acknowledge, where the system says so.
fn unacknowledged(socket: &TcpStream) -> Option<u64> {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let ports = (port(socket.local_addr().ok()?), port(socket.peer_addr().ok()?));
    let sockets = fs::read_to_string("/proc/net/tcp").ok()?;
    let mut sockets = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = sockets.find(|it| it[1].ends_with(&ports.0) && it[2].ends_with(&ports.1))?;
    let (written, _) = line[4].split_once(':')?;
    u64::from_str_radix(written, 16).ok()
}

/// How many times each thing is done: the long form is for the reader of a fault that is rare.
fn times(long: usize) -> usize {
    let short = if cfg!(debug_assertions) { 200 } else { long };
    env::var("PROXY_TIMES").ok().and_then(|text| text.parse().ok()).unwrap_or(short)
}

#[test]
fn a_side_that_is_gone_for_good_ends_the_pair_after_silence() {
    let count = times(1_000);
    // The first connection is the check.
    let (upstream, _thread) = serve(count + 1, |mut peer| drop(peer.write_all(b"a line\n")));
    let options = ["--half-closed-timeout", "2s"];
    let (server, metrics) = proxy(&upstream, &options);
    let began = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = server.dial();
        assert_eq!(read_to_end(&mut client), b"a line\n");
        clients.push(client);
    }
    // Those stay, and their connections do not.
    eventually("the pairs have ended", || metric(&metrics, "wheelhouse_connections") == 0);
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert_eq!(metric(&metrics, "wheelhouse_relays_total"), count as u64);
}

#[test]
fn a_client_that_is_gone_for_good_ends_the_pair_after_silence() {
    let count = times(1_000);
    let (sender, kept) = mpsc::channel();
    let (upstream, _thread) = serve(count + 1, move |peer| sender.send(peer).expect("a test"));
    let (server, metrics) = proxy(&upstream, &["--half-closed-timeout", "2s"]);
    for _ in 0..count {
        let mut client = server.dial();
        client.write_all(b"a line\n").expect("it reads");
    }
    eventually("the pairs have ended", || metric(&metrics, "wheelhouse_connections") == 0);
    let read = |mut peer: TcpStream| read_to_end(&mut peer).len();
    let lines = kept.try_iter().map(read).filter(|read| *read == 7).count();
    assert_eq!(lines, count);
}

#[test]
fn a_byte_puts_the_end_off_and_a_slow_download_lives() {
    let (upstream, _thread) = serve(2, |mut peer| {
        let mut request = Vec::new();
        if peer.read_to_end(&mut request).is_ok() && request == b"get" {
            for _ in 0..10 {
                peer.write_all(b"x").expect("it reads");
                thread::sleep(Duration::from_millis(300));
            }
        }
    });
    let (server, _) = proxy(&upstream, &["--half-closed-timeout", "1s"]);
    let mut client = server.dial();
    client.write_all(b"get").expect("it reads");
    client.shutdown(Shutdown::Write).expect("a FIN");
    assert_eq!(read_to_end(&mut client), b"xxxxxxxxxx");
}

#[test]
fn a_reply_that_came_with_the_end_is_passed_on_whole() {
    let count = times(1_000);
    let mut number = 0;
    let (upstream, _thread) = serve(count + 1, move |mut peer| {
        let _ = peer.write_all(b"the whole reply");
        number += 1;
        if number % 2 == 0 {
            reset(peer);
        }
    });
    let (server, metrics) = proxy(&upstream, &[]);
    for at in 0..count {
        let mut client = server.dial();
        let mut got = Vec::new();
        let end = client.read_to_end(&mut got);
        assert_eq!(got, b"the whole reply", "{at}: {end:?}");
        if let Err(error) = end {
            // The reset is passed on behind it.
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
    assert_eq!(metric(&metrics, "wheelhouse_endpoints_up"), 1);
    assert_eq!(metric(&metrics, "wheelhouse_endpoint_failures_total"), 0);
}

/// An upstream that refuses an upload says why at length, and is gone before it has read all: the
/// proxy learns of that by a write that fails, while much of the answer lies in its socket.
#[test]
fn what_an_upstream_said_before_a_write_to_it_failed_arrives_whole() {
    let count = times(1_000) / 20;
    let (sender, said) = mpsc::channel();
    let (upstream, _thread) = serve(count + 1, move |mut peer| {
        let mut word = [0; 3];
        if peer.read_exact(&mut word).is_err() {
            return;
        }
        peer.set_nonblocking(true).expect("an option");
        // Until everything on the way is full: its reader reads nothing.
        let (mut written, mut moved_at) = (0, Instant::now());
        while moved_at.elapsed() < Duration::from_millis(50) {
            match peer.write(&[b'x'; 1 << 16]) {
                Ok(count) => (written, moved_at) = (written + count as u64, Instant::now()),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            thread::sleep(Duration::from_millis(1));
        }
        let arrived = unacknowledged(&peer).map(|left| written - left);
        reset(peer);
        sender.send(arrived).expect("a test");
    });
    let (server, metrics) = proxy(&upstream, &[]);
    for at in 0..count {
        let mut client = server.dial();
        client.write_all(b"put").expect("it reads");
        let Some(arrived) = said.recv().expect("an upstream") else {
            return eprintln!("skipped: what is unacknowledged is not known here");
        };
        client.write_all(b"more").expect("it reads");
        let mut got = Vec::new();
        let end = client.read_to_end(&mut got);
        // More may have arrived between the question and the reset.
        assert!(got.len() as u64 >= arrived, "{at}: {} of {arrived}: {end:?}", got.len());
        assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    }
    eventually("the pairs have ended", || metric(&metrics, "wheelhouse_connections") == 0);
}

#[test]
fn without_an_upstream_a_client_is_refused_at_once_and_the_log_says_why() {
    let server = Server::start("proxy", &["--upstream", &unreachable_address()]);
    let began = Instant::now();
    assert_eq!(read_to_end(&mut server.dial()), b"");
    assert!(began.elapsed() < Duration::from_secs(1));
    // It may be refused before the first check has failed.
    let why = "reason=no upstream is available";
    assert!(std::iter::repeat_with(|| server.logged()).take(2).any(|line| line.contains(why)));
}

/// The most memory that the program may take for connections whose readers are slow.
#[test]
fn a_large_transfer_to_a_slow_reader_takes_little_memory() {
    // `PROXY_GIB=1` is the long form.
    let len = env::var("PROXY_GIB").ok().and_then(|text| text.parse::<u64>().ok());
    let len = len.map_or(64 << 20, |gib| gib << 30);
    let (upstream, _thread) = serve(2, move |mut peer| {
        let mut word = [0; 3];
        if peer.read_exact(&mut word).is_err() {
            return;
        }
        let block: Vec<_> = (0..=255_u8).cycle().take(1 << 16).collect();
        for _ in 0..len >> 16 {
            peer.write_all(&block).expect("it reads");
        }
    });
    let (server, _) = proxy(&upstream, &[]);
    let before = server.program.memory_peak();
    let mut client = server.dial();
    client.write_all(b"get").expect("it reads");
    // Until everything on the way is full.
    thread::sleep(Duration::from_millis(500));
    let (mut got, mut sum) = (0_u64, 0_u64);
    let mut buffer = vec![0; 1 << 16];
    let mut pauses = 0;
    loop {
        let count = client.read(&mut buffer).expect("bytes");
        if count == 0 {
            break;
        }
        got += count as u64;
        sum += buffer[..count].iter().map(|byte| u64::from(*byte)).sum::<u64>();
        if got >> 23 > pauses {
            // 8 MiB in 20 ms at most.
            pauses += 1;
            thread::sleep(Duration::from_millis(20));
        }
    }
    assert_eq!((got, sum), (len, len / 256 * (255 * 128)));
    let grown = server.program.memory_peak() - before;
    assert!(grown < 2_048, "{grown} KiB");
}

/// Sources that send as fast as they can, and readers that take 10 KB/s, of which every other one ends
/// what it sends meanwhile.
#[test]
fn sources_are_held_by_slow_readers() {
    let (pairs, secs) = if env::var_os("PROXY_TIMES").is_some() { (500, 60) } else { (50, 3) };
    let (upstream, _thread) = serve(pairs + 1, |mut peer| {
        thread::spawn(move || {
            let _ = peer.shutdown(Shutdown::Read);
            let _ = peer.set_write_timeout(Some(PATIENCE));
            while peer.write_all(&[b'x'; 1 << 16]).is_ok() {}
        });
    });
    let (server, metrics) = proxy(&upstream, &[]);
    let mut clients: Vec<_> = (0..pairs).map(|_| server.dial()).collect();
    for client in &clients {
        client.set_nonblocking(true).expect("an option");
    }
    let began = Instant::now();
    let (mut most, mut ended, mut got) = (0, false, 0);
    while began.elapsed() < Duration::from_secs(secs) {
        if began.elapsed() > Duration::from_secs(secs / 2) && !std::mem::replace(&mut ended, true) {
            for client in clients.iter().step_by(2) {
                client.shutdown(Shutdown::Write).expect("a FIN");
            }
        }
        for client in &mut clients {
            let mut some = [0; 1_000];
            match client.read(&mut some) {
                Ok(count) => got += count,
                // Over loopback a window that was closed opens by a whole segment, of 64 KiB: until the
                // kernel asks for it again nothing comes, whatever there is.
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        most = most.max(metric(&metrics, "wheelhouse_buffered_bytes"));
        thread::sleep(Duration::from_millis(100));
    }
    assert!(got > pairs * 10_000, "{got} bytes");
    let each = most / pairs as u64;
    assert!(each > 0 && each <= (1 << 16) + 1_024, "{each} bytes for each");
    let before = metric(&metrics, "wheelhouse_bytes_in_total");
    thread::sleep(Duration::from_millis(300));
    let read = metric(&metrics, "wheelhouse_bytes_in_total") - before;
    assert_eq!(read, 0, "the sources are held");
}

/// A dial to a free port in the range of ephemeral ones may meet itself: it must not count as up, nor
/// keep the port from the upstream.
#[test]
fn a_dead_port_among_the_ephemeral_ones_is_never_up() {
    let inside = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", script]).stdin(Stdio::null());
        command
    };
    let range = "ip link set lo up && sysctl -qw net.ipv4.ip_local_port_range='40000 40039'";
    if !inside(range).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no namespaces here");
        return;
    }
    let (clients, metrics) = (TempPath::new(), TempPath::new());
    let proxy = example("proxy").get_program().to_string_lossy().into_owned();
    let script = format!(
        "{range} && exec {proxy} --listen {} --metrics {} --upstream 127.0.0.1:40017 \
         --check-interval 10ms --half-closed-timeout 5s",
        clients.address(),
        metrics.address()
    );
    let program = Program::start(&mut inside(&script));
    assert!(program.stdout.next().starts_with("listening on"));
    assert!(program.stdout.next().starts_with("metrics on"));
    let metric = |name: &str| {
        let (mut peer, mut text) = (metrics.dial(), String::new());
        peer.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("it reads");
        peer.read_to_string(&mut text).expect("metrics");
        value(&text, name)
    };
    let checks = if env::var_os("PROXY_TIMES").is_some() { 10_000 } else { 300 };
    let began = Instant::now();
    while metric("wheelhouse_endpoint_checks_total") < checks {
        assert_eq!(metric("wheelhouse_endpoints_up"), 0);
        assert!(began.elapsed() < Duration::from_secs(300), "checks go on");
        thread::sleep(Duration::from_millis(20));
    }
    let namespace = format!("--net=/proc/{}/ns/net", program.pid());
    let upstream = "import socket,time\ns=socket.create_server(('127.0.0.1',40017))\n\
                    while True:\n c,_=s.accept()\n c.close()";
    let mut command = Command::new("nsenter");
    command.args([&namespace, "--", "python3", "-c", upstream]);
    let _upstream = Program::start(&mut command);
    eventually("the upstream is up", || metric("wheelhouse_endpoints_up") == 1);
    let mut peer = clients.dial();
    expect(&mut peer, b"");
}
