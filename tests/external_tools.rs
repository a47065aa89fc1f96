//! The example servers under external tools: loads, slow attacks, floods. A tool that is
//! not installed is reported as skipped.
#![expect(clippy::disallowed_methods, reason = "programs are timed by the clock on the wall")]

#[allow(dead_code, reason = "what only the other tests of programs use")]
mod programs;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::programs::{
    LATENESS, Server, assert_at_rest, eventually, example_path, expect, read_to_end, value,
};

const HELLO: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// How long a bystander may wait for a reply while others attack, on a busy machine.
const BYSTANDER: Duration = Duration::from_millis(500);

/// Whether a tool is there; says so if it is not.
fn has(tool: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: no {tool} here");
    }
    found
}

/// Asks for the greeting, and says how long that took.
fn ask(peer: &mut TcpStream) -> Duration {
    let began = Instant::now();
    peer.write_all(HELLO).expect("a server that reads");
    let mut reply = Vec::new();
    while !reply.ends_with(b"Hello, World!") {
        let mut piece = [0; 1_024];
        let count = peer.read(&mut piece).expect("a reply");
        assert_ne!(count, 0, "the server hung up on a bystander");
        reply.extend_from_slice(&piece[..count]);
    }
    began.elapsed()
}

fn metrics(server: &Server) -> String {
    let mut collector = server.dial();
    collector
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .expect("a server that reads");
    String::from_utf8(read_to_end(&mut collector)).expect("text")
}

mod loads {
    use super::*;

    fn run(tool: &mut Command) -> String {
        let output = tool.output().expect("the tool was there before");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{complaint}");
        text
    }

    #[test]
    fn wrk_gets_all_its_replies() {
        if !has("wrk") {
            return;
        }
        let server = Server::start("http", &[]);
        let url = format!("http://{}/", server.addr);
        let text = run(Command::new("wrk").args(["-t1", "-c32", "-d1s", &url]));
        assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
        assert!(value(&metrics(&server), "wheelhouse_requests_total") > 32);
    }

    #[test]
    fn ab_gets_all_its_replies() {
        if !has("ab") {
            return;
        }
        let server = Server::start("http", &[]);
        let url = format!("http://{}/bytes/10000", server.addr);
        for keeps in [&["-k"][..], &[]] {
            let text = run(Command::new("ab").args(["-q", "-n2000", "-c20"]).args(keeps).arg(&url));
            assert!(text.contains("Complete requests:      2000\n"), "{text}");
            assert!(text.contains("Failed requests:        0\n"), "{text}");
            assert!(!text.contains("Non-2xx"), "{text}");
        }
    }
}

/// A tool that runs until it is killed, at the end of the test at the latest.
struct Tool(Child);

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

mod balancers {
    use std::fs;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::programs::{TempPath, unreachable_address};

    /// `option httpchk` alone sends `OPTIONS / HTTP/1.0` and takes 2xx and 3xx for healthy.
    #[test]
    fn the_plain_check_of_haproxy_passes() {
        if !has("haproxy") {
            return;
        }
        let server = Server::start("http", &[]);
        let (front, stats, settings) = (unreachable_address(), TempPath::new(), TempPath::new());
        let text = format!(
            "global\n\
             stats socket {stats} level user\n\
             defaults\n\
             mode http\n\
             timeout connect 5s\n\
             timeout client 5s\n\
             timeout server 5s\n\
             frontend front\n\
             bind {front}\n\
             default_backend store\n\
             backend store\n\
             option httpchk\n\
             server one {server} check inter 100ms fall 1 rise 1\n",
            stats = stats.0.display(),
            server = server.addr,
        );
        fs::write(&settings.0, text).expect("a place for temporary files");
        let haproxy = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(&settings.0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let _haproxy = Tool(haproxy.expect("the tool was there before"));
        // The columns are counted from 1 in its manual, 9.1: check_status is 37, check_code 38.
        let check = || -> Option<(String, String)> {
            let mut stream = UnixStream::connect(&stats.0).ok()?;
            stream.write_all(b"show stat\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            let line = text.lines().find(|line| line.starts_with("store,one,"))?;
            let mut columns = line.split(',').skip(36).map(str::to_owned);
            Some((columns.next()?, columns.next()?))
        };
        let mut seen = None;
        eventually("it has asked", || {
            seen = check().filter(|(status, _)| status.starts_with("L7"));
            seen.is_some()
        });
        let healthy = ("L7OK".to_owned(), "200".to_owned());
        assert_eq!(seen, Some(healthy));
        let mut peer = TcpStream::connect(&front).expect("it listens");
        peer.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .expect("it reads");
        assert!(read_to_end(&mut peer).ends_with(b"Hello, World!"));
    }
}

mod slow {
    use super::*;

    /// Attacks a server with short deadlines, asks it all the while, and returns its metrics once
    /// every attacker is gone.
    fn attacked(mode: &[&str], path: &str) -> Option<String> {
        if !has("slowhttptest") {
            return None;
        }
        let deadlines = ["--request-timeout=2s", "--read-timeout=2s", "--write-timeout=2s"];
        let server = Server::start("http", &deadlines);
        let attack = Command::new("slowhttptest")
            .args(mode)
            .args(["-c400", "-r400", "-l6", "-v0", "-u"])
            .arg(format!("http://{}{path}", server.addr))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let attack = Tool(attack.expect("the tool was there before"));
        let mut bystander = server.dial();
        ask(&mut bystander);
        eventually("the attack has begun", || {
            value(&metrics(&server), "wheelhouse_connections") > 200
        });
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(4) {
            let took = ask(&mut bystander).max(ask(&mut server.dial()));
            assert!(took < BYSTANDER, "{took:?}");
            thread::sleep(Duration::from_millis(20));
        }
        drop(attack);
        eventually("they are all gone", || value(&metrics(&server), "wheelhouse_connections") <= 2);
        Some(metrics(&server))
    }

    fn ended(text: &str, reason: &str) -> u64 {
        value(text, &format!("wheelhouse_closed_total{{reason=\"{reason}\"}}"))
    }

    #[test]
    fn heads_that_never_end_are_ended() {
        if let Some(text) = attacked(&["-H", "-i1"], "/") {
            assert!(ended(&text, "request_timeout") >= 200, "{text}");
        }
    }

    #[test]
    fn bodies_that_never_end_are_ended() {
        if let Some(text) = attacked(&["-B", "-i1", "-s8192"], "/echo") {
            assert!(ended(&text, "request_timeout") >= 200, "{text}");
        }
    }

    #[test]
    fn readers_that_hardly_read_are_ended() {
        let mode = ["-X", "-w1", "-y2", "-n10", "-z1"];
        if let Some(text) = attacked(&mode, "/bytes/10000000") {
            assert!(ended(&text, "write_timeout") >= 100, "{text}");
        }
    }
}

mod floods {
    use super::*;

    #[test]
    fn a_flood_without_descriptors_costs_nothing() {
        let path = example_path("http");
        let server = Server::of(Command::new("sh").args([
            "-c",
            r#"ulimit -n 32; exec "$0" --listen 127.0.0.1:0 --first-byte-timeout off"#,
            path.to_str().expect("a path in UTF-8"),
        ]));
        let mut flood: Vec<_> = (0..200).map(|_| server.dial()).collect();
        for peer in &mut flood {
            // Half a request, so that none is idle and evicted.
            peer.write_all(b"GET / HTTP/1.1\r\n").expect("the kernel accepts for the server");
        }
        thread::sleep(Duration::from_millis(200));
        // As much as a twentieth of a processor's time.
        let (began, before) = (Instant::now(), server.program.cpu());
        thread::sleep(Duration::from_secs(2));
        let used = server.program.cpu() - before;
        assert!(used < began.elapsed() / 20, "{used:?}");
        // Those that are served finish and leave; the others are accepted without another dial.
        let mut served = 0;
        for peer in &mut flood {
            peer.write_all(b"Host: a\r\nConnection: close\r\n\r\n").expect("an open connection");
        }
        for mut peer in flood {
            served += usize::from(read_to_end(&mut peer).ends_with(b"Hello, World!"));
        }
        assert_eq!(served, 200);
        assert_at_rest(&server.program);
    }

    #[test]
    fn ten_thousand_connections_are_drained() {
        const MANY: usize = 10_000;
        let mut server = Server::start("http", &["--shutdown-spread=1s", "--max-requests=off"]);
        if !server.program.can_be_limited() {
            return eprintln!("skipped: no prlimit(1) here");
        }
        if !raise_own_limit(MANY + 1_000) {
            return eprintln!("skipped: {MANY} descriptors are not allowed here");
        }
        let mut peers: Vec<_> = (0..MANY).map(|_| server.dial()).collect();
        // Half of them have been served, and some wait for a reply when the end comes.
        for peer in &mut peers[..MANY / 2] {
            peer.write_all(HELLO).expect("a server that reads");
        }
        for peer in &mut peers[..MANY / 2] {
            read_reply(peer);
        }
        let slow = b"GET /slow?ms=2000 HTTP/1.1\r\nHost: a\r\n\r\n";
        for peer in &mut peers[..100] {
            peer.write_all(slow).expect("a server that reads");
        }
        eventually("all have asked", || {
            value(&metrics(&server), "wheelhouse_connections{state=\"connected\"}")
                >= (MANY / 2 + 100) as u64
        });
        let began = Instant::now();
        server.program.signal("TERM");
        for peer in &mut peers[..100] {
            read_reply(peer);
        }
        for mut peer in peers {
            assert_eq!(read_to_end(&mut peer), b"");
        }
        assert_eq!(server.program.exit_code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(3) + 2 * LATENESS, "{:?}", began.elapsed());
        let line = server.program.stdout.rest().remove(0);
        assert!(line.contains(&format!("shutdown={MANY}")), "{line}");
    }

    /// Reads a reply with a small body.
    fn read_reply(peer: &mut TcpStream) {
        expect(peer, b"HTTP/1.1 200 OK\r\n");
        let mut rest = [0; 4_096];
        let count = peer.read(&mut rest).expect("the rest of the reply");
        assert!(rest[..count].windows(4).any(|window| window == b"\r\n\r\n"));
    }

    /// Lets this process open so many descriptors, if it may.
    fn raise_own_limit(count: usize) -> bool {
        let own = std::process::id().to_string();
        let limit = format!("--nofile={count}:");
        let raised = Command::new("prlimit").args(["--pid", &own, &limit]).output();
        raised.is_ok_and(|output| output.status.success())
    }
}

mod shutdowns {
    use super::*;

    /// Reads a whole reply, and says whether the connection stays open after it.
    fn read_whole(peer: &mut TcpStream) -> bool {
        let mut reply = Vec::new();
        let mut piece = vec![0; 64 * 1024];
        loop {
            let count = peer.read(&mut piece).expect("a server that replies");
            assert_ne!(count, 0, "hung up after {} bytes of a reply", reply.len());
            reply.extend_from_slice(&piece[..count]);
            let mut fields = [httparse::EMPTY_HEADER; 16];
            let mut head = httparse::Response::new(&mut fields);
            let Ok(httparse::Status::Complete(len)) = head.parse(&reply) else { continue };
            assert_eq!(head.code, Some(200));
            let field = |name: &str| {
                let mut fields = head.headers.iter();
                fields.find(|field| field.name == name).map(|field| field.value)
            };
            let body = field("Content-Length").expect("a length");
            let body: usize = std::str::from_utf8(body).unwrap().parse().unwrap();
            assert!(reply.len() <= len + body, "more than was asked for");
            if reply.len() == len + body {
                return field("Connection") != Some(b"close");
            }
        }
    }

    /// Sends one request after the other, without a pause, until a reply announces the end.
    /// Returns how often.
    fn ask_to_the_end(mut peer: TcpStream) -> usize {
        let upload = [
            &b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n"[..],
            &[b'x'; 20_000],
        ];
        let requests = [
            HELLO.to_vec(),
            b"GET /slow?ms=20 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            b"GET /bytes/500000 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            upload.concat(),
        ];
        for (count, request) in requests.iter().cycle().enumerate() {
            peer.write_all(request).expect("a server that reads");
            if !read_whole(&mut peer) {
                assert_eq!(read_to_end(&mut peer), b"");
                return count + 1;
            }
        }
        unreachable!("requests never end");
    }

    #[test]
    fn a_shutdown_under_load_loses_no_reply() {
        for round in 0..6 {
            let mut server =
                Server::start("http", &["--max-requests=off", "--shutdown-timeout=9s"]);
            let clients: Vec<_> = (0..24)
                .map(|_| {
                    let peer = server.dial();
                    thread::spawn(move || ask_to_the_end(peer))
                })
                .collect();
            eventually("there is a load", || {
                value(&metrics(&server), "wheelhouse_requests_total") > 200
            });
            thread::sleep(Duration::from_millis(round * 7));
            let began = Instant::now();
            server.program.signal("TERM");
            let asked: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
            assert_eq!(server.program.exit_code(), Some(0));
            // None was idle, so that there was none to wait for.
            assert!(began.elapsed() < LATENESS, "{:?}", began.elapsed());
            assert!(asked >= 100, "{asked}");
            let line = server.program.stdout.rest().remove(0);
            assert!(line.contains("shutdown=24"), "{line}");
        }
    }
}
