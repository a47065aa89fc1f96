//! The program before a real Redis, with its own tools. Where they are not installed that is
//! reported.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use crate::command::Class;
use crate::programs::{PATIENCE, Server, eventually, exchange, unreachable_address};

/// Whether a tool is there; says so if it is not.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: no {tool} here");
    }
    found
}

/// A Redis in a directory of its own, until the end of the test.
struct Redis {
    child: Child,
    address: String,
    directory: PathBuf,
}

impl Redis {
    fn start() -> Option<Self> {
        if !["redis-server", "redis-cli", "redis-benchmark"].into_iter().all(has) {
            return None;
        }
        let address = unreachable_address();
        let directory = env::temp_dir().join(format!("wheelhouse-redis-{address}"));
        fs::create_dir_all(&directory).expect("a place for temporary files");
        let child = Self::spawn(&address, &directory);
        let redis = Self { child, address, directory };
        redis.await_ready();
        Some(redis)
    }

    fn spawn(address: &str, directory: &PathBuf) -> Child {
        let (host, port) = address.rsplit_once(':').expect("a port");
        Command::new("redis-server")
            .args(["--bind", host, "--port", port, "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it was there before")
    }

    fn await_ready(&self) {
        eventually("Redis listens", || {
            TcpStream::connect(&self.address).is_ok_and(|mut peer| {
                let _ = peer.set_read_timeout(Some(PATIENCE));
                let mut line = String::new();
                peer.write_all(b"PING\r\n").is_ok()
                    && BufReader::new(peer).read_line(&mut line).is_ok()
                    && line == "+PONG\r\n"
            })
        });
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(&self.address, &self.directory);
        self.await_ready();
    }

    fn pooler(&self, options: &[&str]) -> Server {
        let upstream = ["--upstream", &self.address];
        Server::start("redis-pool", &[&upstream[..], options].concat())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A tool of Redis that talks to `address`.
fn tool(name: &str, address: &str, args: &[&str]) -> Command {
    let (host, port) = address.rsplit_once(':').expect("a port");
    let mut command = Command::new(name);
    command.args(["-h", host, "-p", port]).args(args).stdin(Stdio::null());
    command
}

/// What redis-cli prints.
fn cli(address: &str, args: &[&str]) -> String {
    let output = tool("redis-cli", address, args).output().expect("it was there before");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// The connections that Redis has, that of the tester left out.
fn connections(redis: &Redis) -> usize {
    let list = cli(&redis.address, &["client", "list"]);
    list.lines().count().saturating_sub(1)
}

#[test]
fn every_command_of_redis_is_known() {
    let Some(redis) = Redis::start() else { return };
    let names = cli(&redis.address, &["command", "list"]);
    let unknown: Vec<_> = names
        .lines()
        .filter(|name| !name.contains('|') && Class::of(name.as_bytes()) == Class::Unknown)
        .collect();
    // It is of no use but to a Sentinel.
    assert!(unknown.iter().all(|name| *name == "sentinel"), "{unknown:?}");
}

#[test]
fn redis_cli_is_served() {
    let Some(redis) = Redis::start() else { return };
    let server = redis.pooler(&[]);
    let ask = |args: &[&str]| cli(&server.addr, args);
    assert_eq!(ask(&["set", "a", "1"]), "OK");
    assert_eq!(ask(&["incr", "a"]), "2");
    assert_eq!(ask(&["-n", "0", "get", "a"]), "2");
    assert_eq!(ask(&["-2", "get", "a"]), "2");
    assert_eq!(ask(&["mget", "a", "b"]), "2");
    assert!(ask(&["command", "count"]).parse::<u32>().is_ok_and(|count| count > 200));
    assert!(ask(&["hello"]).contains("proto\n2"));
    assert!(ask(&["select", "3"]).starts_with("ERR SELECT of another database"));
    assert!(ask(&["eval", "return redis.call('get', KEYS[1])", "1", "a"]).contains('2'));
    assert_eq!(ask(&["blpop", "l", "0.1"]), "");
    // A transaction, and one that fails.
    let mut peer = server.dial();
    exchange(
        &mut peer,
        b"MULTI\r\nINCR a\r\nSELECT 3\r\nEXEC\r\n",
        b"+OK\r\n+QUEUED\r\n-ERR SELECT of another database than 0 is not possible: connections are \
          shared\r\n-EXECABORT Transaction discarded because of previous errors.\r\n",
    );
    exchange(&mut peer, b"WATCH a\r\n", b"+OK\r\n");
    assert_eq!(ask(&["incr", "a"]), "3");
    exchange(&mut peer, b"MULTI\r\nINCR a\r\nEXEC\r\n", b"+OK\r\n+QUEUED\r\n*-1\r\n");
    exchange(&mut peer, b"MULTI\r\nINCR a\r\nEXEC\r\n", b"+OK\r\n+QUEUED\r\n*1\r\n:4\r\n");
    // A message, and what ends a subscription.
    exchange(&mut peer, b"SUBSCRIBE c\r\n", b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n");
    assert_eq!(ask(&["publish", "c", "hi"]), "1");
    exchange(&mut peer, b"", b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n");
    exchange(&mut peer, b"UNSUBSCRIBE\r\n", b"*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n");
    exchange(&mut peer, b"GET a\r\n", b"$1\r\n4\r\n");
    // A blocking command is unblocked by another client.
    peer.write_all(b"BLPOP l 0\r\n").expect("it reads");
    eventually("it is blocked", || {
        cli(&redis.address, &["info", "clients"]).contains("blocked_clients:1")
    });
    assert_eq!(ask(&["rpush", "l", "x"]), "1");
    exchange(&mut peer, b"", b"*2\r\n$1\r\nl\r\n$1\r\nx\r\n");
    assert!(connections(&redis) <= 8);
}

#[test]
fn a_benchmark_with_five_hundred_clients_needs_eight_connections() {
    let Some(redis) = Redis::start() else { return };
    let server = redis.pooler(&[]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let most = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(connections(&redis));
                thread::sleep(Duration::from_millis(5));
            }
            most
        });
        for options in [&["-P", "16"][..], &[]] {
            let load = ["-c", "500", "-n", "20000", "-t", "get,set,incr,lpush", "--csv"];
            let output = tool("redis-benchmark", &server.addr, &[&load, options].concat()).output();
            let output = output.expect("it was there before");
            let (text, complaint) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{text}{complaint}");
            assert_eq!(text.lines().filter(|line| line.starts_with('"')).count(), 5, "{text}");
            let errors = [&text, &complaint].map(|text| text.to_lowercase().contains("err"));
            assert_eq!(errors, [false, false], "{text}{complaint}");
        }
        done.store(true, Ordering::Relaxed);
        let most = most.join().expect("a count");
        assert!((1..=8).contains(&most), "{most} connections");
    });
}

#[test]
fn a_reply_of_100_mb_takes_little_memory() {
    let Some(redis) = Redis::start() else { return };
    let server = redis.pooler(&["--pool-size=2"]);
    const LEN: usize = 100_000_000;
    cli(&redis.address, &["setrange", "large", &(LEN - 1).to_string(), "x"]);
    let mut peer = server.dial();
    peer.write_all(b"GET large\r\nPING\r\n").expect("it reads");
    thread::sleep(Duration::from_millis(300));
    let mut reader = BufReader::new(peer);
    let mut line = String::new();
    reader.read_line(&mut line).expect("a reply");
    assert_eq!(line, format!("${LEN}\r\n"));
    let copied =
        std::io::copy(&mut std::io::Read::take(&mut reader, LEN as u64 + 2), &mut std::io::sink());
    assert_eq!(copied.expect("the reply goes on"), LEN as u64 + 2);
    line.clear();
    reader.read_line(&mut line).expect("another reply");
    assert_eq!(line, "+PONG\r\n");
    let peak = server.program.memory_peak();
    assert!(peak < 40_000, "{peak} KiB");
}

/// Asks INCR of a key of its own until it is told to end. Returns how many were acknowledged, and how
/// many failed.
fn count(address: &str, key: usize, done: &AtomicBool) -> (u64, u64) {
    let (mut acknowledged, mut failed) = (0, 0);
    let mut peer = BufReader::new(TcpStream::connect(address).expect("it listens"));
    peer.get_ref().set_read_timeout(Some(PATIENCE)).expect("a timeout");
    while !done.load(Ordering::Relaxed) {
        peer.get_mut().write_all(format!("INCR k{key}\r\n").as_bytes()).expect("it reads");
        let mut line = String::new();
        peer.read_line(&mut line).expect("a reply");
        match line.as_bytes().first() {
            Some(b':') => acknowledged += 1,
            Some(b'-') => failed += 1,
            _ => panic!("{line:?}"),
        }
    }
    (acknowledged, failed)
}

#[test]
fn a_restart_under_load_is_survived() {
    let Some(mut redis) = Redis::start() else { return };
    let server = redis.pooler(&["--acquire-timeout=3s"]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..40)
            .map(|key| {
                scope.spawn({
                    let (address, done) = (&server.addr, &done);
                    move || count(address, key, done)
                })
            })
            .collect();
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(300));
            redis.kill();
            thread::sleep(Duration::from_millis(200));
            redis.restart();
        }
        // Those that asked last are served, and within the time to wait.
        let began = Instant::now();
        assert_eq!(cli(&server.addr, &["ping"]), "PONG");
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        thread::sleep(Duration::from_millis(200));
        done.store(true, Ordering::Relaxed);
        let counts: Vec<_> =
            clients.into_iter().map(|client| client.join().expect("a count")).collect();
        let acknowledged: u64 = counts.iter().map(|(acknowledged, _)| acknowledged).sum();
        assert!(acknowledged > 100, "{counts:?}");
        // What was acknowledged since the last restart was executed once: a key never has more than
        // its client asked for.
        for (key, (acknowledged, failed)) in counts.iter().enumerate() {
            let value = cli(&redis.address, &["get", &format!("k{key}")]);
            let value: u64 = value.parse().expect("a number");
            assert!(value <= acknowledged + failed, "{value}, {acknowledged}, {failed}");
        }
    });
    assert!(connections(&redis) <= 8);
}

/// It says nothing of the name that is looked up.
#[test]
fn a_look_up_without_a_descriptor_is_no_failure_of_the_server() {
    let options = ["--upstream=redis.invalid:6379", "--acquire-timeout=1s"];
    let server = Server::start("redis-pool", &options);
    if !server.program.can_be_limited() {
        return eprintln!("skipped: the limit of a process cannot be set here");
    }
    // One more is for the client.
    server.program.limit_descriptors(server.program.limit_for(1));
    let mut peer = server.dial();
    peer.write_all(b"PING\r\n").expect("it is connected");
    let mut reply = String::new();
    BufReader::new(peer).read_line(&mut reply).expect("a reply");
    assert!(reply.contains("no place, port or descriptor was left"), "{reply}");
}
