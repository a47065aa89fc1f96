//! Services over the operating system's sockets.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;

use wheelhouse::{Config, Handle, Reactor};

use crate::client::Client;
use crate::programs::{Program, TempPath, example, exchange};
use crate::sample::Sample;
use crate::world::Echo;

/// Runs a server with metrics on a thread of its own, while `body` talks to it.
fn with_server(body: impl FnOnce(&str, &Handle<Echo>)) {
    let mut config = Config::default();
    // Tests that run at the same time share the process's descriptors.
    config.limits.max_connections = Some(100);
    let (send, receive) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        let mut reactor = Reactor::new(config).unwrap();
        reactor.listen("127.0.0.1:0").unwrap();
        let metrics = reactor.serve_metrics("127.0.0.1:0").unwrap();
        send.send((metrics.to_string(), reactor.handle())).unwrap();
        reactor.run(&mut Echo::default()).unwrap()
    });
    let (metrics, handle) = receive.recv().unwrap();
    body(&metrics, &handle);
    handle.shutdown();
    server.join().unwrap();
}

/// Runs curl; `None` where it is not installed.
fn curl(args: &[&str]) -> Option<String> {
    let curl = Command::new("curl").args(["-sS", "--max-time", "20"]).args(args).output();
    let Ok(output) = curl else {
        eprintln!("skipped: no curl here");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn curl_gets_metrics_and_health() {
    with_server(|metrics, _| {
        let url = |path: &str| format!("http://{metrics}{path}");
        let Some(text) = curl(&[&url("/metrics?collect[]=all")]) else { return };
        assert!(text.contains("\nwheelhouse_accepted_total 0\n"), "{text}");
        assert!(text.ends_with("echo_seen 0\n"), "{text}");
        let head = curl(&["--head", &url("/metrics")]).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        // Two requests over one connection.
        let [health, ready] = [url("/healthz"), url("/readyz")];
        let format = ["--write-out", "%{http_code} %{num_connects}\n"];
        let both = curl(&[&format[..], &[&health, &ready]].concat()).unwrap();
        assert_eq!(both, "alive\n200 1\nready\n200 0\n");
        let post = curl(&["--data", "x=1", "--write-out", "%{http_code}", &url("/metrics")]);
        assert!(post.unwrap().ends_with("405"));
        let old = curl(&["--http1.0", "--write-out", "%{http_code}", &url("/nowhere")]).unwrap();
        assert!(old.ends_with("404"), "{old}");
    });
}

/// A server of the examples with a console at `path`, and the umask that is given.
fn start_echo(path: &TempPath, umask: &str) -> (Program, String) {
    let echo = crate::programs::example_path("echo");
    let command = format!(
        "umask {umask} && exec {} --listen 127.0.0.1:0 --max-connections 100 --console {}",
        echo.display(),
        path.0.display()
    );
    let program = Program::start(Command::new("sh").args(["-c", &command]));
    let address = program.stdout.next();
    let address = address.strip_prefix("listening on ").expect(&address).to_owned();
    assert_eq!(program.stdout.next(), format!("console on unix:{}", path.0.display()));
    (program, address)
}

#[test]
fn only_its_user_may_connect_to_a_console_whatever_the_umask() {
    for umask in ["000", "022", "077", "777"] {
        let path = TempPath::new();
        let (_echo, _) = start_echo(&path, umask);
        let mode = fs::metadata(&path.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "umask {umask}");
        assert!(Client::connect(&path.0).unwrap().ask_json("stats").is_ok());
    }
}

#[test]
fn the_file_of_a_dead_console_is_replaced_and_that_of_a_living_one_is_not() {
    let path = TempPath::new();
    drop(UnixListener::bind(&path.0).unwrap());
    fs::set_permissions(&path.0, fs::Permissions::from_mode(0o666)).unwrap();
    let (mut echo, _) = start_echo(&path, "022");
    assert_eq!(fs::metadata(&path.0).unwrap().mode() & 0o777, 0o600);
    let mut second = example("echo");
    second
        .args(["--listen", "127.0.0.1:0", "--max-connections", "10"])
        .arg("--console")
        .arg(&path.0);
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.starts_with("error: cannot listen on unix:"), "{text}");
    echo.signal("TERM");
    assert_eq!(echo.exit_code(), Some(0));
    assert!(!path.0.exists(), "the file goes with its console");
}

#[test]
fn a_shell_asks_a_question_and_gets_its_reply() {
    let path = TempPath::new();
    let (_echo, address) = start_echo(&path, "022");
    let mut client = std::net::TcpStream::connect(&address).unwrap();
    exchange(&mut client, b"hello", b"hello");
    let ask = |question: &[&str]| {
        let output = example("console").arg(&path.0).args(question).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = ask(&["connections", "state=idle"]);
    assert_eq!(code, 0);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("id ") && lines[1].starts_with("0.1 "), "{text}");
    assert_eq!(lines[2..], ["shown 1"]);
    let (code, text) = ask(&["json", "connection", "0.1"]);
    assert_eq!(code, 0);
    let reply: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(reply["peer"], client.local_addr().unwrap().to_string());
    assert_eq!(ask(&["nonsense"]), (1, "error: this is no question: help lists them\n".into()));
    assert_eq!(ask(&["json", "close", "7.7"]).0, 1);
    assert_eq!(ask(&["close", "0.1"]), (0, "connection 0.1 ends\n".into()));
    assert_eq!(crate::programs::read_to_end(&mut client), b"");
    // Without a terminal there is no live view, and without a server no reply.
    assert_eq!(ask(&[]).0, 1);
    let nowhere = example("console").args(["/nowhere/at/all", "stats"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
}

#[test]
fn the_live_view_reads_what_the_console_says() {
    let path = TempPath::new();
    let (_echo, address) = start_echo(&path, "022");
    let mut client = std::net::TcpStream::connect(&address).unwrap();
    exchange(&mut client, b"hello", b"hello");
    let mut console = Client::connect(&path.0).unwrap();
    let before = Sample::take(&mut console, "in").unwrap();
    for _ in 0..10 {
        exchange(&mut client, b"hello", b"hello");
    }
    // The server's time is in milliseconds.
    let mut now = Sample::take(&mut console, "in").unwrap();
    crate::programs::eventually("time passes", || {
        now = Sample::take(&mut console, "in").unwrap();
        now.number("uptime") > before.number("uptime")
    });
    assert_eq!((now.number("requests"), now.number("state_idle")), (11.0, 1.0));
    assert!(now.rate(&before, "requests") > 0.0);
    assert_eq!(now.connections[0]["bytes_in"], 55);
    assert_eq!(now.text("version"), env!("CARGO_PKG_VERSION"));
}
