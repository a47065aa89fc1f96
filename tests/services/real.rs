//! Services over the operating system's sockets.

use std::process::Command;
use std::thread;

use wheelhouse::{Config, Handle, Reactor};

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
        assert!(post.unwrap().ends_with("413"));
        let old = curl(&["--http1.0", "--write-out", "%{http_code}", &url("/nowhere")]).unwrap();
        assert!(old.ends_with("404"), "{old}");
    });
}
