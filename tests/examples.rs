//! The example programs seen from outside: what they print, how they exit, and what their peers
//! get.
//!
//! The programs are those that `cargo build --examples` or a plain `cargo test` made.
#![expect(clippy::disallowed_methods, reason = "programs are timed by the clock on the wall")]

mod programs;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io, thread};

use crate::programs::*;

mod start {
    use super::*;

    #[test]
    fn the_first_line_says_where_it_listens() {
        for name in ["echo", "http", "ping", "redis-pool"] {
            let server = Server::start(name, &[]);
            let port = server.addr.strip_prefix("127.0.0.1:").expect("the address asked for");
            assert_ne!(port.parse::<u16>().expect("a port"), 0, "{name}");
        }
    }

    /// The defaults that are not those of the library are named in the help.
    #[test]
    fn the_defaults_in_the_help_are_those_that_hold() {
        for (name, [requests, first_byte, idle]) in [
            ("echo", ["off", "10s", "75s"]),
            ("http", ["1000", "10s", "75s"]),
            ("resp", ["off", "35m", "35m"]),
            ("redis-pool", ["off", "35m", "35m"]),
        ] {
            let path = TempPath::new();
            let file = path.0.to_str().expect("UTF-8");
            let server = Server::start(name, &["--console", file]);
            assert!(server.program.stdout.next().starts_with("console on "), "{name}");
            let limits = example("console").args([file, "limits"]).output().expect("it runs");
            let limits = String::from_utf8_lossy(&limits.stdout).into_owned();
            let help = example(name).arg("--help").output().expect("it runs");
            let help = String::from_utf8_lossy(&help.stdout).into_owned();
            for (option, setting, value) in [
                ("--max-requests", "limits.requests_max", requests),
                ("--first-byte-timeout", "timeouts.first_byte", first_byte),
                ("--idle-timeout", "timeouts.idle", idle),
            ] {
                let mut lines = limits.lines().map(|line| line.split_whitespace());
                let line = lines.find_map(|mut words| {
                    (words.next() == Some(setting)).then(|| words.next().map(str::to_owned))
                });
                assert_eq!(line.flatten().as_deref(), Some(value), "{name}: {limits}");
                let said = help.split(option).nth(1).and_then(|text| text.split("--").next());
                let said = said.expect("the option is there");
                assert!(said.contains(value), "{name}: {said}");
            }
        }
    }

    #[test]
    fn a_wrong_option_is_reported_in_one_line() {
        let durations = ["first-byte", "request", "read", "write", "idle", "linger", "shutdown"];
        let durations = durations.map(|deadline| format!("--{deadline}-timeout"));
        let mut wrong: Vec<(&str, &str)> = Vec::new();
        wrong.extend(["0", "few", "-1", ""].map(|value| ("--max-per-client", value)));
        wrong.extend(["0", "1.5"].map(|value| ("--accept-rate", value)));
        for option in &durations {
            wrong.extend(["0", "0s", "0ms", "soon", "", "-1s"].map(|value| (&option[..], value)));
        }
        wrong.extend(["0", "few", "-1", ""].map(|value| ("--max-connections", value)));
        wrong.extend(["", "7000", "unix:", "127.0.0.1:70000"].map(|value| ("--listen", value)));
        for name in ["echo", "http", "ping", "redis-pool"] {
            for (option, value) in &wrong {
                let line = refusal(name, &[&format!("{option}={value}")]);
                assert!(line.contains(option), "{line}");
                assert!(line.contains("needed") || line.contains("an address is"), "{line}");
            }
            assert!(refusal(name, &["--no-such-option"]).contains("--no-such-option"));
            assert!(refusal(name, &["--idle-timeout"]).contains("--idle-timeout"));
        }
        for value in ["0", "all", "-1", ""] {
            let line = refusal("http", &[&format!("--max-requests={value}")]);
            assert!(line.contains("--max-requests") && line.contains("needed"), "{line}");
        }
        for (option, value) in [
            ("--upstream", "nowhere"),
            ("--pool-size", "0"),
            ("--pool-size", "4097"),
            ("--acquire-timeout", "0"),
            ("--check-interval", "off"),
        ] {
            let line = refusal("redis-pool", &[&format!("{option}={value}")]);
            assert!(line.contains(option) && line.contains("needed"), "{line}");
        }
        for (option, value) in [
            ("--upstream", "nowhere"),
            ("--balance", "fair"),
            ("--check", "http"),
            ("--check", "send:PING"),
            ("--check-interval", "1ms"),
            ("--connect-timeout", "off"),
            ("--connect-total", "0"),
            ("--tunnel-timeout", "0"),
            ("--half-closed-timeout", "soon"),
        ] {
            let line = refusal("proxy", &[&format!("{option}={value}")]);
            assert!(line.contains(option) && line.contains("needed"), "{line}");
        }
        assert!(refusal("proxy", &[]).contains("--upstream"));
    }

    #[test]
    fn a_wrong_option_of_the_client_is_reported_in_one_line() {
        for (option, value) in [
            ("--interval", "0"),
            ("--interval", "0s"),
            ("--interval", "off"),
            ("--count", "0"),
            ("--count", "some"),
        ] {
            let line = refusal("ping", &["--connect=127.0.0.1:7000", &format!("{option}={value}")]);
            assert!(line.contains(option), "{line}");
            assert!(line.contains("needed"), "{line}");
        }
        assert!(refusal("ping", &["--connect", "nowhere"]).contains("--connect"));
        assert!(refusal("ping", &["--count", "3"]).contains("--connect"));
        let both = ["--connect", "127.0.0.1:7000", "--idle-timeout", "3s"];
        assert!(refusal("ping", &both).contains("--connect"));
    }

    #[test]
    fn every_timeout_can_be_turned_off() {
        let server = Server::start(
            "echo",
            &[
                "--first-byte-timeout=off",
                "--request-timeout=off",
                "--read-timeout=off",
                "--write-timeout=off",
                "--idle-timeout=off",
                "--linger-timeout=off",
                "--shutdown-timeout=off",
                "--max-per-client=off",
                "--accept-rate=off",
                "--max-requests=off",
                "--lifetime=off",
            ],
        );
        exchange(&mut server.dial(), b"hello", b"hello");
    }

    #[test]
    fn an_address_in_use_is_reported_in_one_line() {
        let path = TempPath::new();
        let tcp = Server::start("echo", &[]);
        let unix = Server::start_on("ping", &path.address(), &[]);
        for addr in [&tcp.addr, &unix.addr] {
            for name in ["echo", "ping"] {
                let mut second = Program::start(example(name).args(["--listen", addr]));
                assert_eq!(second.exit_code(), Some(1));
                let lines = second.stderr.rest();
                assert_eq!(lines.len(), 1, "{lines:?}");
                assert!(lines[0].contains(addr), "{lines:?}");
                assert_eq!(second.stdout.rest(), [""; 0]);
            }
        }
        exchange(&mut tcp.dial(), b"still here", b"still here");
        exchange(&mut path.dial(), b"PING\n", b"PONG\n");
    }

    #[test]
    fn a_port_is_free_again_at_once() {
        let mut server = Server::start("echo", &[]);
        let addr = server.addr.clone();
        for signal in ["KILL", "TERM", "KILL"] {
            let mut peer = server.dial();
            exchange(&mut peer, b"hello", b"hello");
            server.program.signal(signal);
            server.program.exit_code();
            server = Server::start_on("echo", &addr, &[]);
            exchange(&mut server.dial(), b"again", b"again");
        }
    }

    #[test]
    fn a_stale_socket_file_is_replaced() {
        let path = TempPath::new();
        let mut dead = Server::start_on("echo", &path.address(), &[]);
        dead.program.signal("KILL");
        assert_eq!(dead.program.exit_code(), None);
        assert!(path.0.exists(), "a killed server cannot remove its file");
        let mut server = Server::start_on("echo", &path.address(), &[]);
        exchange(&mut path.dial(), b"hello", b"hello");
        server.stop("TERM");
        assert!(!path.0.exists(), "a server that ends in order removes its file");
    }
}

mod end {
    use super::*;

    #[test]
    fn a_signal_ends_a_server_and_its_connections_are_counted() {
        for (name, hello) in [("echo", b"PING\n"), ("ping", b"PONG\n")] {
            for signal in ["TERM", "INT"] {
                let mut server = Server::start(name, &["--shutdown-spread=off"]);
                let mut gone = server.dial();
                exchange(&mut gone, b"PING\n", hello);
                drop(gone);
                let mut peers: Vec<_> = (0..3).map(|_| server.dial()).collect();
                for peer in &mut peers {
                    exchange(peer, b"PING\n", hello);
                }
                let began = Instant::now();
                assert_eq!(server.stop(signal), "closed=4 peer_eof=1 shutdown=3");
                assert!(began.elapsed() < LATENESS, "idle peers are not waited for");
                for peer in &mut peers {
                    assert_eq!(read_to_end(peer), b"");
                }
            }
        }
    }

    #[test]
    fn a_second_signal_does_not_wait_for_a_peer_that_does_not_read() {
        let mut server = Server::start("echo", &[]);
        let mut peer = server.dial();
        peer.set_write_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        eventually("the buffers are full", || {
            peer.write(&[0; 65_536]).is_err_and(|error| is_timeout(&error))
        });
        let mut witness = server.dial();
        exchange(&mut witness, b"hello", b"hello");
        server.program.signal("TERM");
        assert_eq!(read_to_end(&mut witness), b"");
        let began = Instant::now();
        assert_eq!(server.stop("TERM"), "closed=2 hard_stop=1 shutdown=1");
        assert!(began.elapsed() < LATENESS, "{:?}", began.elapsed());
    }

    #[test]
    fn metrics_are_answered_until_the_end_of_a_shutdown() {
        for name in ["echo", "ping"] {
            let options = ["--metrics=127.0.0.1:0", "--shutdown-spread=3s", "--max-connections=1"];
            let mut server = Server::start(name, &options);
            let watched = server.metrics_addr();
            let ask = |method: &str, path: &str| {
                let mut collector = TcpStream::connect(&watched).expect("it answers to the end");
                write!(collector, "{method} {path} HTTP/1.0\r\nHost: a\r\n\r\n").expect("it reads");
                String::from_utf8(read_to_end(&mut collector)).expect("text")
            };
            let collect = |path: &str| ask("GET", path);
            let mut peer = server.dial();
            let hello: &[u8] = if name == "echo" { b"PING\n" } else { b"PONG\n" };
            exchange(&mut peer, b"PING\n", hello);
            let text = collect("/metrics");
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
            assert_eq!(value(&text, "wheelhouse_accepted_total"), 1, "{text}");
            assert!(collect("/nowhere").starts_with("HTTP/1.1 404 "));
            assert!(collect("/metrics?x=/&y").starts_with("HTTP/1.1 200 OK\r\n"));
            assert!(collect("http://a:80/metrics?x").starts_with("HTTP/1.1 200 OK\r\n"));
            assert!(collect("/x?/metrics").starts_with("HTTP/1.1 404 "));
            for (path, status) in [("/metrics", 200), ("/metrics?x", 200), ("/", 200), ("/x", 404)]
            {
                let head = ask("HEAD", path);
                assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
                assert!(head.contains("\r\nContent-Length: "), "{head}");
                assert!(head.ends_with("\r\n\r\n") && !head.contains("wheelhouse_"), "{head}");
            }
            let refused = ask("POST", "/metrics");
            assert!(refused.starts_with("HTTP/1.1 405 "), "{refused}");
            assert!(refused.contains("\r\nAllow: GET, HEAD\r\n"), "{refused}");
            server.program.signal("TERM");
            eventually("it closes its listener", || TcpStream::connect(&server.addr).is_err());
            assert_eq!(value(&collect("/metrics"), "wheelhouse_connections"), 1);
            drop(peer);
            assert_eq!(server.program.exit_code(), Some(0));
        }
    }

    #[test]
    fn a_server_without_connections_ends_too() {
        assert_eq!(Server::start("echo", &[]).stop("TERM"), "closed=0");
    }
}

mod echo {
    use super::*;

    #[test]
    fn bytes_come_back_over_tcp() {
        let server = Server::start("echo", &[]);
        let mut peer = server.dial();
        exchange(&mut peer, b"hello", b"hello");
        exchange(&mut peer, b"\0\r\n\xff", b"\0\r\n\xff");
        peer.shutdown(std::net::Shutdown::Write).expect("a connected socket");
        assert_eq!(read_to_end(&mut peer), b"");
    }

    #[test]
    fn bytes_come_back_over_ipv6() {
        if TcpListener::bind("[::1]:0").is_err() {
            return eprintln!("skipped: no IPv6 here");
        }
        let server = Server::start_on("echo", "[::1]:0", &[]);
        assert!(server.addr.starts_with("[::1]:"), "{}", server.addr);
        exchange(&mut server.dial(), b"hello", b"hello");
    }

    #[test]
    fn bytes_come_back_over_a_unix_socket() {
        let path = TempPath::new();
        let server = Server::start_on("echo", &path.address(), &[]);
        assert_eq!(server.addr, path.address());
        exchange(&mut path.dial(), b"hello", b"hello");
    }

    #[test]
    fn many_bytes_come_back_in_order() {
        let server = Server::start("echo", &[]);
        let peer = server.dial();
        let sent: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
        let mut writer = peer.try_clone().expect("a descriptor to spare");
        let copy = sent.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&copy).expect("the server reads");
            writer.shutdown(std::net::Shutdown::Write).expect("a connected socket");
        });
        assert!(read_to_end(&mut &peer) == sent, "what came back differs");
        writing.join().expect("the writer");
    }
}

mod deadlines {
    use super::*;

    #[test]
    fn a_peer_that_sends_nothing_is_ended_at_the_first_byte_deadline() {
        let mut server = Server::start("echo", &["--first-byte-timeout=400ms"]);
        let began = Instant::now();
        let mut peer = server.dial();
        assert_eq!(read_to_end(&mut peer), b"");
        assert_passed(began, Duration::from_millis(400));
        assert_eq!(server.stop("TERM"), "closed=1 first_byte_timeout=1");
    }

    #[test]
    fn a_peer_that_sent_a_byte_is_not_late_with_its_first() {
        let server = Server::start("echo", &["--first-byte-timeout=200ms"]);
        let began = Instant::now();
        let mut peer = server.dial();
        while began.elapsed() < Duration::from_millis(600) {
            exchange(&mut peer, b"x", b"x");
            thread::sleep(Duration::from_millis(50));
        }
    }

    #[test]
    fn single_bytes_do_not_put_off_the_request_deadline() {
        let mut server = Server::start("ping", &["--request-timeout=700ms", "--read-timeout=3s"]);
        let mut peer = server.dial();
        exchange(&mut peer, b"PING\n", b"PONG\n");
        let began = Instant::now();
        dribble(&mut peer, b"PING ", Duration::from_millis(20));
        assert_passed(began, Duration::from_millis(700));
        assert_eq!(server.stop("TERM"), "closed=1 request_timeout=1");
    }

    #[test]
    fn a_request_that_stalls_is_ended_at_the_read_deadline() {
        let mut server = Server::start("ping", &["--read-timeout=400ms"]);
        let mut peer = server.dial();
        let mut began = Instant::now();
        for byte in b"PING" {
            began = Instant::now();
            peer.write_all(&[*byte]).expect("the server is there");
            thread::sleep(Duration::from_millis(100));
        }
        read_to_end(&mut peer);
        assert_passed(began, Duration::from_millis(400));
        assert_eq!(server.stop("TERM"), "closed=1 read_timeout=1");
    }

    #[test]
    fn a_peer_that_sends_nothing_more_is_ended_at_the_idle_deadline() {
        let mut server = Server::start("ping", &["--idle-timeout=500ms"]);
        let mut peer = server.dial();
        let mut began = Instant::now();
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(200));
            began = Instant::now();
            exchange(&mut peer, b"PING\n", b"PONG\n");
        }
        assert_eq!(read_to_end(&mut peer), b"");
        assert_passed(began, Duration::from_millis(500));
        assert_eq!(server.stop("TERM"), "closed=1 idle_timeout=1");
    }

    #[test]
    fn replies_that_are_not_read_end_at_the_write_deadline() {
        let mut server = Server::start("echo", &["--write-timeout=400ms"]);
        let mut peer = server.dial();
        peer.set_write_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        let began = Instant::now();
        // The buffers of both ends fill up, and then nothing moves until the server gives up.
        eventually(
            "the server gives up",
            || matches!(peer.write(&[0; 65_536]), Err(error) if !is_timeout(&error)),
        );
        assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
        assert_eq!(server.stop("TERM"), "closed=1 write_timeout=1");
    }
}

mod limits {
    use super::*;

    #[test]
    fn a_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
        let path = example_path("echo");
        let mut server = Server::of(Command::new("sh").args([
            "-c",
            r#"ulimit -Sn 64; exec "$0" --listen 127.0.0.1:0"#,
            path.to_str().expect("a path in UTF-8"),
        ]));
        let mut peers: Vec<_> = (0..200).map(|_| server.dial()).collect();
        for peer in &mut peers {
            exchange(peer, b"hello", b"hello");
        }
        // All of them are there at once: none had to be evicted.
        for peer in &mut peers {
            exchange(peer, b"again", b"again");
        }
        drop(peers);
        let ends = server.stop("TERM");
        assert!(!ends.contains("evicted"), "{ends}");
    }

    #[test]
    fn a_connection_over_the_limit_is_served_when_another_is_evicted() {
        let mut server = Server::start("echo", &["--max-connections=2"]);
        let mut first = server.dial();
        let mut second = server.dial();
        exchange(&mut first, b"1", b"1");
        exchange(&mut second, b"2", b"2");
        exchange(&mut first, b"1", b"1");
        exchange(&mut server.dial(), b"3", b"3");
        // The connection that was idle longest is gone.
        assert_eq!(read_to_end(&mut second), b"");
        exchange(&mut first, b"1", b"1");
        let line = server.logged();
        assert!(line.ends_with("the table is full connections=2 times=1"), "{line}");
        let ends = server.stop("TERM");
        assert!(ends.contains("evicted=1"), "{ends}");
    }

    #[test]
    fn a_client_over_its_limit_is_refused() {
        let server = Server::start("echo", &["--max-per-client=2"]);
        let mut peers = [(); 2].map(|()| server.dial());
        for peer in &mut peers {
            exchange(peer, b"hello", b"hello");
        }
        assert_eq!(read_to_end(&mut server.dial()), b"");
        drop(peers);
        eventually("its share is given back", || {
            let mut peer = server.dial();
            peer.write_all(b"x").is_ok() && peer.read(&mut [0]).is_ok_and(|count| count == 1)
        });
    }

    #[test]
    fn a_client_that_dials_again_is_within_its_limit() {
        let mut server = Server::start("echo", &["--max-per-client=1"]);
        for _ in 0..500 {
            exchange(&mut server.dial(), b"hello", b"hello");
        }
        let ends = server.stop("TERM");
        assert!(ends.contains("closed=500 peer_eof=500"), "{ends}");
    }

    #[test]
    fn connections_are_accepted_at_the_accept_rate() {
        let server = Server::start("echo", &["--accept-rate=5"]);
        let began = Instant::now();
        let mut peers: Vec<_> = (0..8).map(|_| server.dial()).collect();
        for peer in &mut peers {
            exchange(peer, b"hello", b"hello");
        }
        assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    }

    #[test]
    fn a_connection_ends_at_its_limit_of_requests_or_its_lifetime() {
        let server = Server::start("ping", &["--max-requests=2"]);
        let mut peer = server.dial();
        exchange(&mut peer, b"PING\n", b"PONG\n");
        exchange(&mut peer, b"PING\n", b"PONG\n");
        assert_eq!(read_to_end(&mut peer), b"");
        let mut server = Server::start("ping", &["--lifetime=400ms"]);
        let mut peer = server.dial();
        let began = Instant::now();
        exchange(&mut peer, b"PING\n", b"PONG\n");
        assert_eq!(read_to_end(&mut peer), b"");
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
        drop(peer);
        assert_eq!(server.stop("TERM"), "closed=1 lifetime=1");
    }

    #[test]
    fn few_descriptors_serve_many_peers_in_turn() {
        let path = example_path("echo");
        let server = Server::of(Command::new("sh").args([
            "-c",
            r#"ulimit -n 32; exec "$0" "$@""#,
            path.to_str().expect("a path in UTF-8"),
            "--max-connections=1000",
            "--listen=127.0.0.1:0",
        ]));
        let mut peers: Vec<_> = (0..100).map(|_| server.dial()).collect();
        for peer in &mut peers {
            peer.write_all(b"hello").expect("the kernel accepts for the server");
        }
        peers[0].peek(&mut [0]).expect("a reply");
        assert_at_rest(&server.program);
        assert_served_in_turn(peers);
        exchange(&mut server.dial(), b"hello", b"hello");
        assert_at_rest(&server.program);
    }

    #[test]
    fn a_server_out_of_descriptors_waits_and_recovers() {
        const SLOW: &[u8] = b"GET /slow?ms=1500 HTTP/1.1\r\nHost: a\r\n\r\n";
        const QUICK: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
        let server = Server::start("http", &[]);
        if !server.program.can_be_limited() {
            return eprintln!("skipped: no prlimit(1) here");
        }
        server.program.limit_descriptors(server.program.limit_for(2));
        let mut peers: Vec<_> = (0..8).map(|_| server.dial()).collect();
        for peer in &mut peers[..2] {
            peer.write_all(SLOW).expect("the kernel accepts for the server");
        }
        for peer in &mut peers[2..] {
            peer.write_all(QUICK).expect("the kernel accepts for the server");
        }
        assert_silent(&mut peers[0], Duration::from_millis(200));
        assert_at_rest(&server.program);
        for peer in &mut peers[2..] {
            assert_silent(peer, Duration::from_millis(10));
        }
        // A connection that has been served is evicted for the next, without another dial.
        for peer in &mut peers {
            peer.read_exact(&mut [0]).expect("a reply");
        }
        assert_at_rest(&server.program);
        server.program.limit_descriptors(256);
        let mut peer = server.dial();
        exchange(&mut peer, b"GET", b"");
        let warnings = server.program.stderr.so_far();
        assert!((1..=8).contains(&warnings.len()), "{warnings:?}");
    }

    /// A client that has been served closes, which frees a place for the next.
    fn assert_served_in_turn(mut waiting: Vec<TcpStream>) {
        let began = Instant::now();
        while !waiting.is_empty() {
            assert!(began.elapsed() < PATIENCE, "{} peers are not served", waiting.len());
            waiting.retain_mut(|peer| {
                let mut reply = [0; 5];
                peer.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
                match peer.peek(&mut reply) {
                    Ok(count) => {
                        assert_eq!(reply[..count], b"hello"[..count]);
                        false
                    }
                    Err(error) => {
                        assert!(is_timeout(&error), "{error}");
                        true
                    }
                }
            });
        }
    }
}

mod ping_server {
    use super::*;

    /// As many bytes as a line may have.
    const LINE_MAX: usize = 1_024;

    #[test]
    fn a_ping_is_answered_with_its_text() {
        let server = Server::start("ping", &[]);
        let mut peer = server.dial();
        exchange(&mut peer, b"PING\n", b"PONG\n");
        exchange(&mut peer, b"PING 1\n", b"PONG 1\n");
        exchange(&mut peer, b"PING\r\n", b"PONG\n");
        exchange(&mut peer, b"PING two words \r\n", b"PONG two words \n");
        exchange(&mut peer, b"PING \xff\0\r\x01\n", b"PONG \xff\0\r\x01\n");
    }

    #[test]
    fn quitting_ends_the_connection() {
        for quit in ["QUIT\n", "QUIT\r\n", "QUIT\nPING\n"] {
            let mut server = Server::start("ping", &[]);
            let mut peer = server.dial();
            peer.write_all(quit.as_bytes()).expect("the server is there");
            assert_eq!(read_to_end(&mut peer), b"BYE\n", "{quit:?}");
            drop(peer);
            assert_eq!(server.stop("TERM"), "closed=1 handler_close=1");
        }
    }

    #[test]
    fn what_is_no_command_ends_the_connection() {
        let server = Server::start("ping", &[]);
        for line in ["\n", "\r\n", "PONG\n", "PINGS\n", "ping\n", " PING\n", "QUIT now\n"] {
            let mut peer = server.dial();
            peer.write_all(b"PING\n").expect("the server is there");
            peer.write_all(line.as_bytes()).expect("the server is there");
            let replies = read_to_end(&mut peer);
            assert_eq!(replies, b"PONG\nERR unknown command\n", "{line:?}");
        }
    }

    #[test]
    fn a_line_has_a_greatest_length() {
        let server = Server::start("ping", &[]);
        let text = "x".repeat(LINE_MAX - "PING ".len());
        let mut peer = server.dial();
        for end in ["\n", "\r\n"] {
            let line = format!("PING {text}{end}");
            exchange(&mut peer, line.as_bytes(), format!("PONG {text}\n").as_bytes());
        }
        for too_long in [
            format!("PING {text}x\n"),
            format!("PING {text}x\r\n"),
            format!("PING {text}x"),
            "x".repeat(100_000),
        ] {
            let mut peer = server.dial();
            peer.write_all(too_long.as_bytes()).expect("the server is there");
            let reply = read_to_end(&mut peer);
            assert_eq!(reply, b"ERR line longer than 1024 bytes\n", "{} bytes", too_long.len());
        }
    }

    #[test]
    fn pipelined_pings_are_answered_in_order() {
        let server = Server::start("ping", &[]);
        let lines = |word| (0..2_000).map(|n| format!("{word} {n}\n")).collect::<String>();
        let mut peer = server.dial();
        exchange(&mut peer, lines("PING").as_bytes(), lines("PONG").as_bytes());
        let last = lines("PING") + "QUIT\nPING never\n";
        peer.write_all(last.as_bytes()).expect("the server is there");
        assert_eq!(read_to_end(&mut peer), (lines("PONG") + "BYE\n").into_bytes());
    }

    #[test]
    fn replies_that_are_read_late_are_all_there() {
        let server = Server::start("ping", &[]);
        let lines = |word| (0..600_000).map(|n| format!("{word} {n}\n")).collect::<String>();
        let peer = server.dial();
        let mut writer = peer.try_clone().expect("a descriptor to spare");
        let writing = thread::spawn(move || {
            writer.write_all((lines("PING") + "QUIT\n").as_bytes()).expect("the server reads on");
        });
        // Nothing is read until the buffers of both ends are full and the server stopped reading.
        eventually("the writer is held up or done", || {
            let before = server.program.cpu();
            thread::sleep(Duration::from_millis(100));
            server.program.cpu() == before || writing.is_finished()
        });
        assert!(!writing.is_finished(), "the server took in what it cannot answer");
        let replies = read_to_end(&mut &peer);
        assert!(replies == (lines("PONG") + "BYE\n").into_bytes(), "replies differ");
        writing.join().expect("the writer");
    }

    #[test]
    fn lines_may_come_byte_by_byte() {
        let server = Server::start("ping", &[]);
        let mut peer = server.dial();
        peer.set_nodelay(true).expect("a TCP socket");
        for byte in b"PING 1\nPING\r\nPING three\nQUIT\n" {
            peer.write_all(&[*byte]).expect("the server is there");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(read_to_end(&mut peer), b"PONG 1\nPONG\nPONG three\nBYE\n");
    }

    #[test]
    fn what_a_peer_asked_before_its_fin_is_answered() {
        let server = Server::start("ping", &[]);
        let mut peer = server.dial();
        peer.write_all(b"PING 1\nPING 2\nPING").expect("the server is there");
        peer.shutdown(std::net::Shutdown::Write).expect("a connected socket");
        assert_eq!(read_to_end(&mut peer), b"PONG 1\nPONG 2\n");
    }
}

/// A server serves and ends in order whatever becomes of what it prints.
mod outputs {
    use std::fs::OpenOptions;
    use std::os::fd::AsFd;
    use std::process::{self, Stdio};

    use mio::unix::pipe;

    use super::*;

    /// What a stream of a program leads to.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    enum Outlet {
        /// A file that takes everything.
        Null,
        Closed,
        /// A device on which nothing has room.
        FullDevice,
        /// A pipe whose reader has gone.
        BrokenPipe,
        /// A pipe that is full and whose reader does not read; a write waits.
        FullPipe,
        /// The same, and a write fails.
        FullNonBlockingPipe,
    }

    const OUTLETS: [Outlet; 6] = [
        Outlet::Null,
        Outlet::Closed,
        Outlet::FullDevice,
        Outlet::BrokenPipe,
        Outlet::FullPipe,
        Outlet::FullNonBlockingPipe,
    ];

    impl Outlet {
        /// It, and the reader of its pipe.
        fn open(self) -> (Stdio, Option<pipe::Receiver>) {
            match self {
                // The shell closes it.
                Self::Null | Self::Closed => (Stdio::null(), None),
                Self::FullDevice => {
                    let device = OpenOptions::new().write(true).open("/dev/full");
                    (device.expect("a device of Linux").into(), None)
                }
                Self::BrokenPipe => {
                    let (_, writer) = io::pipe().expect("descriptors to spare");
                    (writer.into(), None)
                }
                Self::FullPipe | Self::FullNonBlockingPipe => {
                    let (mut writer, reader) = pipe::new().expect("descriptors to spare");
                    for size in [4_096, 1] {
                        while writer.write(&[b'x'; 4_096][..size]).is_ok() {}
                    }
                    writer.set_nonblocking(self == Self::FullNonBlockingPipe).expect("a pipe");
                    let writer =
                        writer.as_fd().try_clone_to_owned().expect("a descriptor to spare");
                    (writer.into(), Some(reader))
                }
            }
        }
    }

    /// A process that is killed at the end of the test at the latest.
    struct Child(process::Child);

    impl Child {
        fn signal(&self, signal: &str) {
            let pid = self.0.id().to_string();
            let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status();
            assert!(sent.is_ok_and(|status| status.success()), "kill -{signal}");
        }

        fn exit_code(&mut self) -> Option<i32> {
            let mut status = None;
            eventually("the program ends", || {
                status = self.0.try_wait().expect("a child of ours");
                status.is_some()
            });
            status.and_then(|status| status.code())
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A program whose streams lead somewhere.
    struct Started {
        program: Child,
        stdout: Option<pipe::Receiver>,
        stderr: Option<pipe::Receiver>,
    }

    impl Started {
        fn new(name: &str, options: &[&str], stdout: Outlet, stderr: Outlet) -> Self {
            let closed = |stream, outlet| if outlet == Outlet::Closed { stream } else { "" };
            let (out, err) = (closed(">&-", stdout), closed("2>&-", stderr));
            let (stdout, out_reader) = stdout.open();
            let (stderr, err_reader) = stderr.open();
            let mut command = Command::new("sh");
            command
                .args(["-c", &format!(r#"exec "$0" "$@" {out} {err}"#)])
                .arg(example_path(name))
                .args(options)
                .env("RUST_LOG", "trace")
                .stdin(Stdio::null())
                .stdout(stdout)
                .stderr(stderr);
            let program = Child(command.spawn().expect("there is a shell"));
            Self { program, stdout: out_reader, stderr: err_reader }
        }

        /// The exit code, which it must have within the second that the last lines are given.
        fn exit_code(&mut self) -> Option<i32> {
            let began = Instant::now();
            let code = self.program.exit_code();
            let took = began.elapsed();
            assert!(took < Duration::from_secs(1) + LATENESS, "{took:?}");
            code
        }

        /// Dials it as soon as it listens at `addr`.
        fn dial(&mut self, addr: &str) -> TcpStream {
            let mut peer = None;
            eventually("it listens", || {
                let ended = self.program.0.try_wait().expect("a child of ours");
                assert_eq!(ended, None, "it ends instead of listening");
                // A socket that dials its own port is connected to itself.
                let not_itself = |peer: &TcpStream| peer.local_addr().ok() != peer.peer_addr().ok();
                peer = TcpStream::connect(addr).ok().filter(not_itself);
                peer.is_some()
            });
            let peer = peer.expect("it listens");
            peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            peer
        }
    }

    /// Reads on until `text` has come.
    fn read_until(reader: &mut pipe::Receiver, text: &str) -> String {
        let mut got = Vec::new();
        let mut searched = 0;
        let began = Instant::now();
        loop {
            if got[searched..].windows(text.len()).any(|window| window == text.as_bytes()) {
                return String::from_utf8(got).expect("text");
            }
            searched = got.len().saturating_sub(text.len());
            // What came last says why.
            let last = got[got.len().saturating_sub(2_000)..].escape_ascii();
            let waited = began.elapsed();
            assert!(waited < PATIENCE, "no {text:?} in {} bytes, the last: {last}", got.len());
            let mut piece = [0; 4_096];
            match reader.read(&mut piece) {
                Ok(0) => panic!("no {text:?} before the end, the last bytes: {last}"),
                Ok(count) => got.extend_from_slice(&piece[..count]),
                Err(error) => {
                    assert!(is_timeout(&error), "{error}");
                    thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }

    /// Asks a server of this name for something little.
    fn ask(name: &str, peer: &mut TcpStream) -> io::Result<()> {
        let (request, end): (&[u8], &[u8]) = match name {
            "echo" => (b"hello", b"hello"),
            "ping" => (b"PING 1\n", b"PONG 1\n"),
            _ => (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n\r\nok\n"),
        };
        peer.write_all(request)?;
        let mut reply = Vec::new();
        while !reply.ends_with(end) {
            let mut byte = [0];
            peer.read_exact(&mut byte)?;
            reply.push(byte[0]);
        }
        Ok(())
    }

    /// So often, so that more is logged than waits to be written: each exchange logs two lines at
    /// least, a read and a write, and 4,096 lines wait.
    const TIMES: usize = 2_500;

    fn serve(name: &str, stdout: Outlet, stderr: Outlet) {
        let addr = unreachable_address();
        let options = [
            "--listen",
            &addr,
            "--max-per-client=1",
            "--max-requests=off",
            "--shutdown-spread=off",
        ];
        let mut server = Started::new(name, &options, stdout, stderr);
        let mut peer = server.dial(&addr);
        let streams = format!("{name} with stdout {stdout:?} and stderr {stderr:?}");
        for time in 0..TIMES {
            if let Err(error) = ask(name, &mut peer) {
                let status = server.program.0.try_wait();
                panic!("{streams}, request {time}: {error}, its status is {status:?}");
            }
        }
        let mut refused = server.dial(&addr);
        assert_eq!(read_to_end(&mut refused), b"", "one client too many");
        ask(name, &mut peer).expect("the first client is served on");
        server.program.signal("TERM");
        assert_eq!(read_to_end(&mut peer), b"", "{streams}");
        drop(peer);
        assert_eq!(server.exit_code(), Some(0), "{streams}");
    }

    #[test]
    fn a_log_that_cannot_be_written_stops_no_server() {
        for stderr in OUTLETS {
            serve("echo", Outlet::Null, stderr);
        }
    }

    #[test]
    fn a_stdout_that_cannot_be_written_stops_no_server() {
        for stdout in OUTLETS {
            serve("echo", stdout, Outlet::Null);
        }
    }

    #[test]
    fn neither_stream_stops_any_server() {
        for outlet in OUTLETS {
            for name in ["echo", "http", "ping"] {
                serve(name, outlet, outlet);
            }
        }
    }

    #[test]
    fn the_ping_client_ends_whatever_becomes_of_its_lines() {
        let server = Server::start("ping", &[]);
        for outlet in OUTLETS {
            let options = ["--connect", &server.addr, "--count=3", "--interval=20ms"];
            for (stdout, stderr) in
                [(outlet, Outlet::Null), (Outlet::Null, outlet), (outlet, outlet)]
            {
                let mut client = Started::new("ping", &options, stdout, stderr);
                assert_eq!(client.exit_code(), Some(0), "{stdout:?} {stderr:?}");
            }
        }
    }

    #[test]
    fn the_ping_client_ends_when_its_lines_cannot_be_written() {
        let server = Server::start("ping", &[]);
        for outlet in [Outlet::FullDevice, Outlet::BrokenPipe] {
            let options = ["--connect", &server.addr, "--interval=20ms"];
            let mut client = Started::new("ping", &options, outlet, Outlet::Null);
            assert_eq!(client.exit_code(), Some(0), "{outlet:?}");
        }
    }

    #[test]
    fn a_program_that_cannot_report_an_error_ends_all_the_same() {
        let used = Server::start("echo", &[]);
        for outlet in OUTLETS {
            for name in ["echo", "http", "ping"] {
                for (options, code) in [
                    (&["--listen=nowhere"][..], 2),
                    (&["--listen", &used.addr], 1),
                    (&["--help"], 0),
                ] {
                    let mut program = Started::new(name, options, outlet, outlet);
                    assert_eq!(program.exit_code(), Some(code), "{name} {options:?} {outlet:?}");
                }
            }
        }
    }

    #[test]
    fn lines_that_waited_are_written_once_there_is_room() {
        for outlet in [Outlet::FullPipe, Outlet::FullNonBlockingPipe] {
            let addr = unreachable_address();
            let options = ["--listen", &addr, "--shutdown-spread=off"];
            let mut server = Started::new("echo", &options, outlet, outlet);
            let mut peer = server.dial(&addr);
            for _ in 0..TIMES {
                ask("echo", &mut peer).expect("a reply");
            }
            let mut stdout = server.stdout.take().expect("the reader of a pipe");
            let mut stderr = server.stderr.take().expect("the reader of a pipe");
            read_until(&mut stdout, &format!("listening on {addr}\n"));
            let log = read_until(&mut stderr, " lines were lost here)\n");
            let log = log.trim_start_matches('x');
            // The first lines waited, the last ones are lost, and each line is whole.
            assert!(log.contains("reactor started"), "{log}");
            assert!(
                log.lines().all(|line| line.starts_with("20") || line.starts_with('(')),
                "{log}"
            );
            server.program.signal("TERM");
            assert_eq!(read_to_end(&mut peer), b"");
            drop(peer);
            assert_eq!(server.exit_code(), Some(0));
            read_until(&mut stdout, "closed=1 shutdown=1\n");
            read_until(&mut stderr, "reactor stopped report=\"closed=1 shutdown=1\"");
        }
    }
}

mod ping_client {
    use super::*;

    #[test]
    fn pings_are_counted_and_summed_up() {
        let server = Server::start("ping", &[]);
        let began = Instant::now();
        let mut client = client(&server.addr, &["--count=4", "--interval=100ms"]);
        assert_eq!(client.exit_code(), Some(0));
        assert_passed(began, Duration::from_millis(300));
        let lines = client.stdout.rest();
        assert_eq!(lines.len(), 8, "{lines:#?}");
        for (line, seq) in lines.iter().zip(1..=4) {
            let prefix = format!("PONG from {}: seq={seq} time=", server.addr);
            let time = line.strip_prefix(&prefix).and_then(|line| line.strip_suffix(" ms"));
            assert!(time.is_some_and(|time| time.parse::<f64>().is_ok()), "{line}");
        }
        assert_eq!(lines[4], "");
        assert_eq!(lines[5], format!("--- {} ping statistics ---", server.addr));
        let elapsed = lines[6]
            .strip_prefix("4 sent, 4 received, 0% lost, time ")
            .and_then(|line| line.strip_suffix(" ms"));
        let elapsed: u64 = elapsed.and_then(|elapsed| elapsed.parse().ok()).expect(&lines[6]);
        assert!(elapsed >= 300, "{}", lines[6]);
        let times = lines[7]
            .strip_prefix("rtt min/avg/max/mdev = ")
            .and_then(|line| line.strip_suffix(" ms"))
            .expect(&lines[7]);
        let times: Vec<f64> = times.split('/').map(|time| time.parse().expect(time)).collect();
        assert_eq!(times.len(), 4, "{}", lines[7]);
        assert!(times[0] <= times[1] && times[1] <= times[2], "{}", lines[7]);
        assert_eq!(client.stderr.rest(), [""; 0]);
    }

    #[test]
    fn it_dials_paths_and_names_too() {
        let path = TempPath::new();
        let unix = Server::start_on("ping", &path.address(), &[]);
        let tcp = Server::start("ping", &[]);
        let named = tcp.addr.replace("127.0.0.1", "localhost");
        for (dialled, answers) in [(&unix.addr, &unix.addr), (&named, &tcp.addr)] {
            let mut client = client(dialled, &["--count=2", "--interval=20ms"]);
            assert_eq!(client.exit_code(), Some(0), "{:?}", client.stdout.so_far());
            let lines = client.stdout.rest();
            assert!(lines[0].starts_with(&format!("PONG from {answers}: seq=1 ")), "{lines:#?}");
            assert_eq!(lines[3], format!("--- {dialled} ping statistics ---"));
        }
    }

    #[test]
    fn a_signal_ends_it_with_the_summary() {
        let server = Server::start("ping", &[]);
        for signal in ["INT", "TERM"] {
            let mut client = client(&server.addr, &["--interval=20ms"]);
            assert!(client.stdout.next().contains("seq=1 "));
            client.signal(signal);
            assert_eq!(client.exit_code(), Some(0));
            let lines = client.stdout.rest();
            let summary = lines.iter().rev().take(4).rev().collect::<Vec<_>>();
            assert_eq!(summary[0], "");
            assert!(summary[1].ends_with(" ping statistics ---"), "{lines:#?}");
            assert!(summary[3].starts_with("rtt "), "{lines:#?}");
        }
    }

    #[test]
    fn it_fails_if_nothing_answers() {
        let mut client = client(&unreachable_address(), &["--count=3", "--interval=30ms"]);
        assert_eq!(client.exit_code(), Some(1));
        let lines = client.stdout.rest();
        assert_eq!(lines.len(), 6, "{lines:#?}");
        for (line, seq) in lines.iter().zip(1..=3) {
            assert!(line.starts_with("no PONG from "), "{line}");
            assert!(line.contains(&format!(" seq={seq} (connect failed: ")), "{line}");
        }
        assert!(lines[5].starts_with("3 sent, 0 received, 100% lost, time "), "{}", lines[5]);
    }

    #[test]
    fn it_fails_if_it_is_stopped_before_anything_answered() {
        for signal in ["INT", "TERM"] {
            let mut client = client(&unreachable_address(), &["--interval=20ms"]);
            assert!(client.stdout.next().contains(" seq=1 "));
            client.signal(signal);
            assert_eq!(client.exit_code(), Some(1));
            assert!(client.stdout.rest().last().is_some_and(|line| line.contains("100% lost")));
        }
    }

    #[test]
    fn a_server_that_does_not_answer_delays_the_end_little() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("a bound socket").to_string();
        let mut client = client(&addr, &["--interval=20ms"]);
        let (_peer, _) = listener.accept().expect("a client that dials");
        client.signal("INT");
        let began = Instant::now();
        assert_eq!(client.exit_code(), Some(1));
        assert!(began.elapsed() < Duration::from_secs(1) + LATENESS, "{:?}", began.elapsed());
    }

    #[test]
    fn it_goes_on_when_the_server_is_back() {
        let mut server = Server::start("ping", &[]);
        let mut client = client(&server.addr, &["--interval=50ms"]);
        let mut seq = 0;
        let mut next = |client: &Program, start: &str| {
            let line = client.stdout.next();
            seq += 1;
            assert!(line.contains(&format!(" seq={seq} ")), "{line} instead of {seq}");
            line.starts_with(start)
        };
        assert!(next(&client, "PONG from "));
        assert!(next(&client, "PONG from "));
        server.program.signal("KILL");
        server.program.exit_code();
        eventually("a ping is lost", || next(&client, "no PONG from "));
        let server = Server::start_on("ping", &server.addr, &[]);
        eventually("a ping is answered", || next(&client, "PONG from "));
        client.signal("INT");
        assert_eq!(client.exit_code(), Some(0));
        let lines = client.stdout.rest();
        let sums = lines.iter().find(|line| line.contains(" sent, ")).expect("a summary");
        let numbers: Vec<u64> = sums
            .split(|letter: char| !letter.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect();
        let [sent, received, lost, _] = numbers[..] else { panic!("{sums}") };
        assert!(3 <= received && received < sent, "{sums}");
        assert_eq!(lost, (sent - received) * 100 / sent, "{sums}");
        drop(server);
    }

    #[test]
    fn it_dials_again_ever_more_slowly() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("a bound socket").to_string();
        let client = client(&addr, &["--interval=20ms"]);
        let mut before = None;
        for pause in [0, 100, 200, 400, 800] {
            let (peer, _) = listener.accept().expect("a client that dials");
            let now = Instant::now();
            if let Some(before) = before {
                let waited = now - before;
                let pause = Duration::from_millis(pause);
                assert!(pause <= waited && waited < pause + LATENESS, "{waited:?} for {pause:?}");
            }
            before = Some(now);
            drop(peer);
        }
        drop(client);
    }

    fn client(addr: &str, options: &[&str]) -> Program {
        Program::start(example("ping").args(["--connect", addr]).args(options))
    }
}

mod http {
    use super::*;

    const HELLO: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn requests_are_answered_in_order_on_one_connection() {
        let mut server = Server::start("http", &[]);
        let mut peer = server.dial();
        for _ in 0..3 {
            peer.write_all(&HELLO.repeat(100)).expect("a server that reads");
            for _ in 0..100 {
                assert_eq!(read_reply(&mut peer), (200, b"Hello, World!".to_vec()));
            }
        }
        drop(peer);
        // Each question is a connection and a request of its own.
        let mut questions = 0;
        eventually("the end is noticed", || {
            questions += 1;
            metric(&server, "wheelhouse_connections") == 1
        });
        assert_eq!(metric(&server, "wheelhouse_requests_total"), 300 + questions);
        let closed = 1 + questions + 1;
        assert_eq!(server.stop("TERM"), format!("closed={closed} peer_eof={closed}"));
    }

    #[test]
    fn replies_are_dated_now() {
        let server = Server::start("http", &[]);
        let mut peer = server.dial();
        peer.write_all(HELLO).expect("a server that reads");
        let head = read_head(&mut peer);
        let date = head.lines().find_map(|line| line.strip_prefix("Date: ")).expect("a date");
        let date = httpdate::parse_http_date(date).expect("a date of HTTP");
        let now = SystemTime::now();
        let off = now.duration_since(date).unwrap_or_else(|error| error.duration());
        assert!(off < Duration::from_secs(1) + LATENESS, "{off:?}");
    }

    #[test]
    fn a_large_reply_to_a_slow_reader_takes_no_memory() {
        let server = Server::start("http", &[]);
        let mut peer = server.dial();
        let memory = server.program.memory_peak();
        peer.write_all(b"GET /bytes/100000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .expect("a server that reads");
        thread::sleep(Duration::from_millis(300));
        read_head(&mut peer);
        let mut count = 0;
        let mut buffer = vec![0; 1_000_000];
        loop {
            match peer.read(&mut buffer).expect("more of the reply") {
                0 => break,
                more => count += more,
            }
        }
        assert_eq!(count, 100_000_000);
        let grown = server.program.memory_peak() - memory;
        assert!(grown <= 2_048, "{grown} KiB");
    }

    #[test]
    fn a_request_that_is_late_is_answered_with_408() {
        let mut server = Server::start("http", &["--request-timeout=400ms"]);
        let mut peer = server.dial();
        let began = Instant::now();
        peer.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
            .expect("a server that reads");
        assert_eq!(read_reply(&mut peer).0, 408);
        assert_passed(began, Duration::from_millis(400));
        assert_eq!(read_to_end(&mut peer), b"");
        drop(peer);
        assert_eq!(server.stop("TERM"), "closed=1 request_timeout=1");
    }

    #[test]
    fn the_reply_to_the_last_request_announces_the_end() {
        let mut server = Server::start("http", &["--max-requests=2"]);
        let mut peer = server.dial();
        peer.write_all(&HELLO.repeat(3)).expect("a server that reads");
        assert!(read_head(&mut peer).contains("Connection: keep-alive"));
        expect(&mut peer, b"Hello, World!");
        assert!(read_head(&mut peer).contains("Connection: close"));
        assert_eq!(read_to_end(&mut peer), b"Hello, World!");
        drop(peer);
        assert_eq!(server.stop("TERM"), "closed=1 max_requests=1");
    }

    #[test]
    fn a_connection_that_waits_when_the_server_ends_is_answered() {
        let mut server = Server::start("http", &["--metrics=127.0.0.1:0"]);
        let watched = server.metrics_addr();
        let mut peer = server.dial();
        peer.write_all(&[HELLO, b"GET /slow?ms=1000 HTTP/1.1\r\nHost: a\r\n\r\n"].concat())
            .expect("a server that reads");
        assert_eq!(read_reply(&mut peer).0, 200);
        let ready = |status| {
            let mut collector = TcpStream::connect(&watched).expect("it answers to the end");
            collector.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").expect("it reads");
            read_reply(&mut collector).0 == status
        };
        assert!(ready(200));
        server.program.signal("TERM");
        eventually("it is not ready any more", || ready(503));
        // It is not ready from the moment that it is asked to end, and then accepts what has come.
        let is_refused = || TcpStream::connect(&server.addr).is_err();
        eventually("no connection is accepted", is_refused);
        assert_eq!(read_reply(&mut peer).0, 200);
        assert_eq!(read_to_end(&mut peer), b"");
        drop(peer);
        assert_eq!(server.program.exit_code(), Some(0));
    }

    #[test]
    fn curl_understands_it() {
        if Command::new("curl").arg("--version").output().is_err() {
            return eprintln!("skipped: no curl here");
        }
        let mut server = Server::start("http", &[]);
        let url = |path: &str| format!("http://{}{path}", server.addr);
        let upload = TempPath::new();
        let body = vec![b'x'; 300_000];
        fs::write(&upload.0, &body).expect("a place for temporary files");
        let file = format!("@{}", upload.0.display());
        let echo = url("/echo");
        assert_eq!(curl(&[&url("/")]), b"Hello, World!");
        // One after the other on one connection.
        let both = curl(&["-w", "%{num_connects}", &url("/healthz"), &url("/readyz")]);
        assert_eq!(both, b"ok\n1ready\n0");
        assert_eq!(curl(&["--http1.0", &url("/healthz")]), b"ok\n");
        assert_eq!(curl(&[&url("/bytes/1000000")]).len(), 1_000_000);
        let head = curl(&["--head", &url("/bytes/18446744073709551615")]);
        let length = b"Content-Length: 18446744073709551615\r\n";
        assert!(head.windows(length.len()).any(|window| window == length));
        // With a length, with a wait for 100 Continue, and in chunks.
        for fields in [&["-H", "Expect:"][..], &["-H", "Expect: 100-continue"]] {
            assert!(curl(&[fields, &["--data-binary", &file, &echo]].concat()) == body);
        }
        let chunked = ["-H", "Transfer-Encoding: chunked", "--data-binary", &file];
        assert!(curl(&[&chunked[..], &[&echo]].concat()) == body);
        let status =
            |args: &[&str]| curl(&[&["-o", "/dev/null", "-w", "%{http_code}"], args].concat());
        assert_eq!(status(&[&url("/nowhere")]), b"404");
        assert_eq!(status(&["-d", "x", &url("/")]), b"405");
        assert_eq!(status(&["-X", "PATCH", &url("/")]), b"501");
        assert_eq!(status(&["-H", "Host:", &url("/")]), b"400");
        assert_eq!(status(&[&url(&format!("/?{}", "x".repeat(10_000)))]), b"414");
        assert_eq!(status(&["-H", &format!("X: {}", "x".repeat(20_000)), &url("/")]), b"431");
        assert!(server.stop("TERM").contains("handler_close=4"));
    }

    #[test]
    fn curl_asks_what_is_allowed() {
        if Command::new("curl").arg("--version").output().is_err() {
            return eprintln!("skipped: no curl here");
        }
        let server = Server::start("http", &[]);
        let url = format!("http://{}", server.addr);
        let (root, echo) = (format!("{url}/"), format!("{url}/echo"));
        for (target, asked, allowed) in [
            (&["-X", "OPTIONS"][..], &root, "GET, HEAD, OPTIONS"),
            (&["-X", "OPTIONS"], &echo, "POST, OPTIONS"),
            (&["-X", "OPTIONS", "--request-target", "*"], &root, "GET, HEAD, POST, OPTIONS"),
        ] {
            let head = curl(&[&["--include"], target, &[asked]].concat());
            let head = String::from_utf8(head).expect("a head is text");
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert!(head.contains(&format!("\r\nAllow: {allowed}\r\n")), "{head}");
            assert!(head.ends_with("\r\n\r\n"), "{head}");
        }
        // curl would wait for a body that a reply to HEAD announces only.
        for path in ["/", "/nowhere", "/metrics", "/bytes/1000", "/slow?ms=1"] {
            let head = curl(&["--head", &format!("{url}{path}")]);
            assert!(head.ends_with(b"\r\n\r\n"), "{path}");
        }
    }

    /// What curl prints; it must not complain.
    fn curl(args: &[&str]) -> Vec<u8> {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "10"])
            .args(args)
            .output()
            .expect("curl was there before");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {complaint}");
        output.stdout
    }

    fn metric(server: &Server, name: &str) -> u64 {
        let mut peer = server.dial();
        peer.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").expect("a server that reads");
        let (_, text) = read_reply(&mut peer);
        let text = String::from_utf8(text).expect("text");
        value(&text, name)
    }

    /// Reads to the end of a head.
    fn read_head(peer: &mut TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            peer.read_exact(&mut byte).expect("more of the head");
            head.push(byte[0]);
        }
        String::from_utf8(head).expect("a head is text")
    }

    /// The status and the body of a reply.
    fn read_reply(peer: &mut TcpStream) -> (u16, Vec<u8>) {
        let head = read_head(peer);
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.expect("a length").parse().expect("a number")];
        peer.read_exact(&mut body).expect("the body");
        (status.expect("a status").parse().expect("a number"), body)
    }
}
