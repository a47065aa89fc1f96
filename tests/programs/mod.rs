//! Running the example programs: what they print, how they end, and talking to them.
//!
//! The programs are those that `cargo build --examples` or a plain `cargo test` made.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

#[allow(dead_code, reason = "not every test needs it")]
pub(crate) mod redis;

/// How long anything may take that is not a matter of a deadline under test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How late a deadline may be seen to pass on a busy machine.
pub(crate) const LATENESS: Duration = Duration::from_secs(2);

/// The one line by which a program refuses its command line.
pub(crate) fn refusal(name: &str, args: &[&str]) -> String {
    let mut program = Program::start(example(name).args(args));
    assert_eq!(program.exit_code(), Some(2), "{name} {args:?}");
    assert_eq!(program.stdout.rest(), [""; 0], "{name} {args:?}");
    let mut lines = program.stderr.rest();
    assert_eq!(lines.len(), 1, "{name} {args:?}: {lines:?}");
    lines.remove(0)
}

/// Cargo puts examples beside the directory of the tests.
pub(crate) fn example_path(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the path of this program");
    let profile = test.ancestors().nth(2).expect("a target directory");
    let path = profile.join("examples").join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --examples`", path.display());
    path
}

pub(crate) fn example(name: &str) -> Command {
    Command::new(example_path(name))
}

/// A program that runs, until the end of the test at most.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = Lines::of(child.stdout.take().expect("a pipe"), |_| true);
        // Where more runs than there are processors, a server may lose its own within a callback,
        // which it reports.
        let stderr = Lines::of(child.stderr.take().expect("a pipe"), |line| {
            !line.contains("a callback kept the loop waiting")
        });
        Self { child, stdout, stderr }
    }

    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.pid()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{signal}");
    }

    /// Waits for the end, and returns `None` if it was a signal that killed.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the program ends", || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    /// The time that the program kept a processor busy; zero where the system does not report it.
    pub(crate) fn cpu(&self) -> Duration {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid())) else {
            return Duration::ZERO;
        };
        // proc(5): the name, in parentheses, may hold anything; utime and stime are the 12th and
        // 13th fields after it, in ticks of 10 ms.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 =
            fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// The most memory it has had, in KiB; zero where the system does not report it.
    pub(crate) fn memory_peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
        peak.map_or(0, |peak| peak.trim().parse().expect("a number"))
    }

    /// The limit that leaves room for `count` more descriptors.
    pub(crate) fn limit_for(&self, count: usize) -> u64 {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("a process of ours");
        let open: Vec<u64> =
            open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        (0..).filter(|number| !open.contains(number)).nth(count).expect("numbers have no end")
    }

    pub(crate) fn can_be_limited(&self) -> bool {
        Path::new("/proc/self/fd").exists()
            && Command::new("prlimit").arg("--version").output().is_ok()
    }

    /// Sets the soft limit, which may be raised again.
    pub(crate) fn limit_descriptors(&self, count: u64) {
        let set = Command::new("prlimit")
            .args([&format!("--nofile={count}:"), "--pid", &self.pid()])
            .status();
        assert!(set.is_ok_and(|status| status.success()), "prlimit --nofile={count}:");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program prints.
pub(crate) struct Lines(pub(crate) Receiver<String>);

impl Lines {
    /// Those lines of `pipe` for which `keeps` returns `true`.
    pub(crate) fn of(pipe: impl Read + Send + 'static, keeps: fn(&str) -> bool) -> Self {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(pipe).lines().map_while(Result::ok);
            for line in lines.filter(|line| keeps(line)) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self(receiver)
    }

    pub(crate) fn next(&self) -> String {
        self.0.recv_timeout(PATIENCE).expect("another line")
    }

    pub(crate) fn so_far(&self) -> Vec<String> {
        self.0.try_iter().collect()
    }

    /// What follows until the program ends, which it must have done or be about to do.
    pub(crate) fn rest(&self) -> Vec<String> {
        self.0.iter().collect()
    }
}

/// A server that listens.
pub(crate) struct Server {
    pub(crate) program: Program,
    pub(crate) addr: String,
}

impl Server {
    pub(crate) fn start(name: &str, options: &[&str]) -> Self {
        Self::start_on(name, "127.0.0.1:0", options)
    }

    pub(crate) fn start_on(name: &str, addr: &str, options: &[&str]) -> Self {
        Self::of(example(name).args(["--listen", addr]).args(options))
    }

    pub(crate) fn of(command: &mut Command) -> Self {
        let program = Program::start(command);
        let Ok(line) = program.stdout.0.recv_timeout(PATIENCE) else {
            panic!("the server does not listen: {:?}", program.stderr.so_far());
        };
        let addr = line.strip_prefix("listening on ").expect(&line).to_owned();
        Self { program, addr }
    }

    pub(crate) fn dial(&self) -> TcpStream {
        let peer = TcpStream::connect(&self.addr).expect("a server that listens");
        peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        peer.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        peer
    }

    /// Where it answers a monitor, as its second line says.
    pub(crate) fn metrics_addr(&self) -> String {
        let line = self.program.stdout.0.recv_timeout(PATIENCE).expect("a second line");
        line.strip_prefix("metrics on ").expect(&line).to_owned()
    }

    /// The next line that it logs.
    pub(crate) fn logged(&self) -> String {
        self.program.stderr.0.recv_timeout(PATIENCE).expect("a line in the log")
    }

    /// Ends it by a signal, and returns the line that it prints last.
    pub(crate) fn stop(&mut self, signal: &str) -> String {
        self.program.signal(signal);
        assert_eq!(self.program.exit_code(), Some(0));
        let mut lines = self.program.stdout.rest();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(self.program.stderr.rest(), [""; 0]);
        lines.remove(0)
    }
}

/// An address where nothing listens, at a host of this call's own: no other test listens there or
/// dials it, also not a client that goes on dialling a server that ended.
pub(crate) fn unreachable_address() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Linux has all of 127.0.0.0/8 on its loopback device, other systems have one address.
    let host =
        if cfg!(target_os = "linux") { (process::id() << 8 | count & 0xff) & 0xff_ffff } else { 1 };
    let host = Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 0, 0).to_bits() | host);
    let listener = TcpListener::bind((host, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket").to_string()
}

/// A path for a socket, which is removed in the end.
pub(crate) struct TempPath(pub(crate) PathBuf);

impl TempPath {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(env::temp_dir().join(format!("wheelhouse-{}-{count}.sock", process::id())))
    }

    pub(crate) fn address(&self) -> String {
        format!("unix:{}", self.0.display())
    }

    pub(crate) fn dial(&self) -> UnixStream {
        let peer = UnixStream::connect(&self.0).expect("a server that listens");
        peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        peer
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

pub(crate) fn exchange(peer: &mut (impl Read + Write), sent: &[u8], reply: &[u8]) {
    peer.write_all(sent).expect("a server that reads");
    expect(peer, reply);
}

pub(crate) fn expect(peer: &mut impl Read, reply: &[u8]) {
    let mut got = vec![0; reply.len()];
    peer.read_exact(&mut got).expect("a reply");
    assert_eq!(got.escape_ascii().to_string(), reply.escape_ascii().to_string());
}

/// All that comes until the server ends the connection, by a FIN or by a reset.
pub(crate) fn read_to_end(peer: &mut impl Read) -> Vec<u8> {
    let mut got = Vec::new();
    match peer.read_to_end(&mut got) {
        Ok(_) => got,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => got,
        Err(error) => panic!("{error} after {:?}", got.escape_ascii().to_string()),
    }
}

pub(crate) fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Sends `start` and then one byte after each `pause`, until the server ends the
/// connection.
pub(crate) fn dribble(peer: &mut TcpStream, start: &[u8], pause: Duration) {
    peer.set_read_timeout(Some(pause)).expect("a timeout");
    let mut bytes = start.iter().copied().chain(std::iter::repeat(b'x'));
    eventually("the server loses patience", || {
        if peer.write_all(&[bytes.next().unwrap_or(b'x')]).is_err() {
            return true;
        }
        match peer.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => !is_timeout(&error),
        }
    });
}

/// The value of a metric in Prometheus text, of all its labels together.
pub(crate) fn value(text: &str, name: &str) -> u64 {
    let lines = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    let values = lines.map(|line| line.rsplit_once(' ').expect("a value").1);
    values.map(|value| value.parse::<u64>().expect("a number")).sum()
}

pub(crate) fn assert_silent(peer: &mut TcpStream, span: Duration) {
    peer.set_read_timeout(Some(span)).expect("a timeout");
    match peer.read(&mut [0]) {
        Ok(count) => panic!("{count} bytes that should not be there"),
        Err(error) => assert!(is_timeout(&error), "{error}"),
    }
    peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
}

/// A program that has nothing to do uses hardly any time of a processor.
pub(crate) fn assert_at_rest(program: &Program) {
    let before = program.cpu();
    thread::sleep(Duration::from_millis(400));
    let used = program.cpu() - before;
    assert!(used <= Duration::from_millis(80), "{used:?} of 400 ms");
}

/// A deadline that began to run after `began` has just been seen to pass.
pub(crate) fn assert_passed(began: Instant, timeout: Duration) {
    let elapsed = began.elapsed();
    assert!(elapsed >= timeout, "early: {elapsed:?} of {timeout:?}");
    assert!(elapsed <= timeout + LATENESS, "late: {elapsed:?} for {timeout:?}");
}

/// Waits until `is_so`, for as long as anything may take.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}
