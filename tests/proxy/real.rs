//! The program before nginx and HAProxy, and behind HAProxy, under `wrk`. Where they are not installed
//! that is reported.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::peers::{Daemon, has, metric};
use crate::programs::{Server, eventually, exchange, read_to_end};

/// What wrk reports.
struct Report {
    requests: u64,
    errors: u64,
    text: String,
}

fn wrk(address: &str, seconds: u64, headers: &[&str]) -> Command {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c16", &format!("-d{seconds}s"), &format!("http://{address}/")]);
    headers.iter().for_each(|header| {
        command.args(["-H", header]);
    });
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn report(command: &mut Command) -> Report {
    let output = command.output().expect("it was there before");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "  12345 requests in 2.00s, 1.23MB read", and where there are any
    // "  Socket errors: connect 0, read 1, write 0, timeout 0".
    let number = |word: &str| word.trim_matches(',').parse::<u64>().ok();
    let requests = text.lines().find(|line| line.contains(" requests in "));
    let requests = requests.and_then(|line| number(line.split_whitespace().next()?));
    let errors = text.lines().filter(|line| line.contains("errors:") || line.contains("Non-2xx"));
    let errors = errors.flat_map(str::split_whitespace).filter_map(number).sum();
    Report { requests: requests.unwrap_or(0), errors, text }
}

const CLOSE: &str = "Connection: close";

/// A proxy before some nginx.
fn balancer(upstreams: &[Daemon], options: &[&str]) -> (Server, String) {
    let upstreams = upstreams.iter().flat_map(|upstream| ["--upstream", &upstream.address]);
    let options: Vec<_> = upstreams.chain(options.iter().copied()).collect();
    let server = Server::start("proxy", &[&["--metrics", "127.0.0.1:0"], &options[..]].concat());
    let metrics = server.metrics_addr();
    let all = options.iter().filter(|option| **option == "--upstream").count() as u64;
    eventually("all are up", || metric(&metrics, "wheelhouse_endpoints_up") == all);
    (server, metrics)
}

/// Who answers the next request.
fn answers(address: &str) -> String {
    let mut peer = std::net::TcpStream::connect(address).expect("it listens");
    exchange(&mut peer, b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n");
    let text = String::from_utf8_lossy(&read_to_end(&mut peer)).into_owned();
    text.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned()
}

#[test]
fn one_of_three_that_stops_under_load_costs_no_request_once_it_is_ejected() {
    if ![has("nginx"), has("wrk")].into_iter().all(|there| there) {
        return;
    }
    let mut upstreams = ["one", "two", "three"].map(Daemon::nginx);
    let (server, metrics) =
        balancer(&upstreams, &["--check-interval", "100ms", "--balance", "least-connections"]);
    for policy_gets in 0..3 {
        assert!(!answers(&server.addr).is_empty(), "{policy_gets}");
    }
    let all = report(&mut wrk(&server.addr, 1, &[CLOSE]));
    assert!(all.requests > 100 && all.errors == 0, "{}", all.text);
    // What was on its way to the one that stops is lost, and a dial that fails goes to another.
    let load = wrk(&server.addr, 2, &[CLOSE]).spawn().expect("it was there before");
    thread::sleep(Duration::from_millis(500));
    upstreams[1].kill();
    let output = load.wait_with_output().expect("its report");
    assert!(output.status.success());
    eventually("it is down", || metric(&metrics, "wheelhouse_endpoints_up") == 2);
    let two = report(&mut wrk(&server.addr, 1, &[CLOSE]));
    assert!(two.requests > 100 && two.errors == 0, "{}", two.text);
    assert!((0..12).all(|_| answers(&server.addr) != "two"));
    // It comes back, and gets its share.
    upstreams[1].begin();
    eventually("it is up", || metric(&metrics, "wheelhouse_endpoints_up") == 3);
    let back = report(&mut wrk(&server.addr, 1, &[CLOSE]));
    assert!(back.requests > 100 && back.errors == 0, "{}", back.text);
    eventually("it has clients", || answers(&server.addr) == "two");
}

#[test]
fn connections_that_are_kept_alive_are_served() {
    if ![has("nginx"), has("wrk")].into_iter().all(|there| there) {
        return;
    }
    let upstreams = ["one", "two", "three"].map(Daemon::nginx);
    let check = r"send:GET / HTTP/1.0\r\n\r\n:HTTP/1.1 200";
    for policy in ["round-robin", "random-two"] {
        let (mut server, _) = balancer(&upstreams, &["--balance", policy, "--check", check]);
        let load = report(&mut wrk(&server.addr, 1, &[]));
        assert!(load.requests > 500 && load.errors == 0, "{}", load.text);
        server.stop("TERM");
    }
}

#[test]
fn it_works_behind_haproxy_and_before_it() {
    if ![has("nginx"), has("wrk"), has("haproxy")].into_iter().all(|there| there) {
        return;
    }
    let nginx = Daemon::nginx("one");
    let behind = [Daemon::haproxy(&nginx.address)];
    let (server, _) = balancer(&behind, &[]);
    let front = Daemon::haproxy(&server.addr);
    for address in [&server.addr, &front.address] {
        assert_eq!(answers(address), "one");
        for headers in [&[][..], &[CLOSE]] {
            let load = report(&mut wrk(address, 1, headers));
            assert!(load.requests > 50 && load.errors == 0, "{}", load.text);
        }
    }
}
