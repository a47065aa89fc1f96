//! Signals that end a process. Its end is seen from outside: a child runs a test that never returns.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::{Config, Conn, Context, Handler, Reactor};

const BEGUN: &str = "the callback has begun";

struct Stuck;

impl Handler for Stuck {
    type Session = ();

    fn on_start(&mut self, _: &mut Context<'_>) {
        println!("\n{BEGUN}");
        loop {
            thread::park();
        }
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        None
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {}
}

#[test]
#[ignore = "it never returns: the child of the test below"]
fn a_callback_that_never_returns() {
    let reactor = Reactor::new(Config::default()).unwrap();
    reactor.handle().shutdown_on_signals().unwrap();
    reactor.run(&mut Stuck).unwrap();
}

#[test]
fn the_third_signal_ends_a_process_whose_callback_never_returns() {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program)
        .args(["--exact", "signals::a_callback_that_never_returns", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line == BEGUN)), "the child has ended");
    // A signal that comes while the same one is pending is lost, so there may have to be more.
    let mut sent = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(sent < 1_000, "the process goes on");
        let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        sent += 1;
        thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.signal(), Some(15), "{status}");
    assert!(sent >= 3, "{sent} signals were enough");
}
