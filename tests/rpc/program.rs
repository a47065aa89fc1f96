//! The programs: a server with threads, and the client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};

use crate::programs::{PATIENCE, Server, example, example_path, refusal, unreachable_address};

fn client(server: &str, args: &[&str]) -> Output {
    example("rpc").args(["--connect", server]).args(args).output().expect("it runs")
}

#[test]
fn every_call_is_answered() {
    let server = Server::start("rpc", &["--workers", "3"]);
    for call in ["echo", "sum", "sleep"] {
        let output = client(&server.addr, &["--call", call, "--count", "200", "--timeout", "10s"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let failed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{call}: {text}{failed}");
        assert!(text.starts_with("200 done, 0 late, 0 refused, 0 failed; "), "{call}: {text}");
    }
}

#[test]
fn a_call_beside_the_metrics_is_answered() {
    let server = Server::start("rpc", &["--metrics", "127.0.0.1:0"]);
    let output = client(&server.addr, &["--count", "10", "--timeout", "10s"]);
    assert_eq!(output.status.code(), Some(0));
}

/// One thread sleeps for a minute, of which the server waits for half a second.
#[test]
fn a_thread_is_free_again_when_nothing_waits_for_its_call() {
    let server = Server::start("rpc", &["--workers", "1"]);
    let mut peer = TcpStream::connect(&server.addr).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let sleep = [0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 244, 2, 0, 0, 234, 96];
    peer.write_all(&sleep).unwrap();
    let mut reply = [0; 13];
    peer.read_exact(&mut reply).unwrap();
    assert_eq!(reply, [0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    let output = client(&server.addr, &["--count", "1", "--timeout", "10s"]);
    assert_eq!(output.status.code(), Some(0), "the thread sleeps on");
}

#[test]
fn a_client_without_a_server_says_so() {
    let output = client(&unreachable_address(), &[]);
    let (text, failed) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{text}{failed}");
    assert!(failed.starts_with("error: the connection ended: "), "{failed}");
    assert!(text.starts_with("0 done, "), "{text}");
}

#[test]
fn a_server_of_another_protocol_is_told_from_one_that_has_gone() {
    let other = Server::start("http", &[]);
    let output = client(&other.addr, &["--count", "1"]);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{failed}");
    assert_eq!(failed, "error: what the server sent is no reply to a call\n");
}

#[test]
fn threads_that_cannot_be_started_are_an_error() {
    let rpc = example_path("rpc");
    // Their stacks find no room, whatever other limits there are.
    let mut run = Command::new("prlimit");
    run.arg("--as=1073741824").arg(rpc).args(["--workers", "100000"]);
    let Ok(output) = run.args(["--listen", "127.0.0.1:0"]).output() else {
        return eprintln!("skipped: no prlimit(1) here");
    };
    let failed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{failed}");
    // Where the room ends within the start of a thread, that complains too.
    let is_said = |line: &str| line.starts_with("error: cannot start 100000 threads: ");
    assert_eq!(failed.lines().filter(|line| is_said(line)).count(), 1, "{failed}");
    assert!(output.stdout.is_empty(), "it listens on nothing before");
}

#[test]
fn options_of_the_two_sides_do_not_mix() {
    for args in [
        &["--connect", "127.0.0.1:7", "--workers", "2"][..],
        &["--connect", "127.0.0.1:7", "--listen", "127.0.0.1:0"],
        &["--call", "sum"],
        &["--workers", "0"],
        &["--connect", "nowhere"],
    ] {
        let line = refusal("rpc", args);
        assert!(line.starts_with("error: ") && line.ends_with("; see --help"), "{line}");
    }
}
