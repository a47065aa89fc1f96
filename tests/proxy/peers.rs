//! What real servers and clients need: processes, and places for their files.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process, thread};

use crate::programs::{PATIENCE, eventually, unreachable_address, value};

/// Whether a tool is there; says so if it is not.
pub(super) fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("-v").output().is_ok();
    if !found {
        eprintln!("skipped: no {tool} here");
    }
    found
}

/// A directory that is gone at the end of the test.
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("wheelhouse-proxy-{}-{count}", process::id()));
        fs::create_dir_all(&path).expect("a place for temporary files");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server that another program is.
pub(super) struct Daemon {
    command: Command,
    child: Option<Child>,
    pub(super) address: String,
    _directory: Directory,
}

impl Daemon {
    /// Starts a program with this file of settings, in which `{address}` and `{directory}` are
    /// replaced, and the words before it.
    fn start(words: &[&str], settings: &str) -> Self {
        let (directory, address) = (Directory::new(), unreachable_address());
        let place = directory.0.display().to_string();
        let file = directory.0.join("settings");
        let text = settings.replace("{address}", &address).replace("{directory}", &place);
        fs::write(&file, text).expect("room for a file");
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&file).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut daemon = Self { command, child: None, address, _directory: directory };
        daemon.begin();
        daemon
    }

    pub(super) fn begin(&mut self) {
        self.child = Some(self.command.spawn().expect("it was there before"));
        eventually("it listens", || TcpStream::connect(&self.address).is_ok());
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// nginx in one process, which answers every request with `name`, and `/large` with so many MiB.
    pub(super) fn nginx(name: &str) -> Self {
        let settings = r#"
            daemon off;
            master_process off;
            pid {directory}/pid;
            error_log stderr crit;
            events { worker_connections 1024; }
            http {
                access_log off;
                default_type text/plain;
                keepalive_requests 1000000000;
                client_body_temp_path {directory}/body;
                proxy_temp_path {directory}/proxy;
                fastcgi_temp_path {directory}/fastcgi;
                uwsgi_temp_path {directory}/uwsgi;
                scgi_temp_path {directory}/scgi;
                server {
                    listen {address} reuseport backlog=4096;
                    location / { return 200 "NAME"; }
                }
            }
        "#;
        Self::start(&["nginx", "-e", "stderr", "-c"], &settings.replace("NAME", name))
    }

    /// HAProxy in TCP mode before `upstream`.
    pub(super) fn haproxy(upstream: &str) -> Self {
        let settings = "
            global
                nbthread 1
                maxconn 1000
            defaults
                mode tcp
                timeout connect 5s
                timeout client 1m
                timeout server 1m
            listen relay
                bind {address}
                server upstream UPSTREAM
        ";
        let settings: Vec<_> = settings.lines().map(str::trim_start).collect();
        let settings = settings.join("\n") + "\n";
        Self::start(&["haproxy", "-db", "-q", "-f"], &settings.replace("UPSTREAM", upstream))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A server that does the same with each connection, on a thread of its own, for `count` of them.
pub(super) fn serve(
    count: usize,
    mut with: impl FnMut(TcpStream) + Send + 'static,
) -> (String, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket").to_string();
    let thread = thread::spawn(move || {
        for _ in 0..count {
            let (peer, _) = listener.accept().expect("a connection");
            peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            with(peer);
        }
    });
    (address, thread)
}

/// A metric of a server, by the address of its metrics.
pub(super) fn metric(address: &str, name: &str) -> u64 {
    let mut peer = TcpStream::connect(address).expect("metrics");
    let mut text = String::new();
    peer.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("it reads");
    peer.read_to_string(&mut text).expect("metrics");
    value(&text, name)
}
