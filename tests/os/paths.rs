//! Unix-domain listeners that several starters want at once.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use wheelhouse::backend::Os;
use wheelhouse::backend::{Backend, OsListener};
use wheelhouse::{Address, Config, ListenConfig, State};

use super::{Echo, reactor, turn};

use crate::shorthands::secs;

/// A directory of its own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wheelhouse-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bind(path: &Path) -> std::io::Result<(Os, OsListener)> {
    let mut os = Os::new()?;
    let address = Address::Unix(path.into());
    let listener = os.bind(&address, &ListenConfig::default(), &Config::default().socket)?;
    Ok((os, listener))
}

/// Leaves a socket file that nothing listens on.
fn leave_stale(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    assert!(path.exists());
}

#[test]
fn one_of_many_threads_that_start_at_once_listens() {
    const THREADS: usize = 8;
    let directory = Directory::new("threads");
    let path = directory.socket();
    for round in 0..60 {
        if round % 2 == 0 {
            leave_stale(&path);
        }
        let start = Barrier::new(THREADS);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let starters: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        bind(&path)
                    })
                })
                .collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        });
        let (winners, losers): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!(winners.len(), 1, "round {round}");
        for error in losers.into_iter().filter_map(Result::err) {
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
        }
        // It is the one that is reached.
        let (mut os, mut listener) = winners.into_iter().next().unwrap().unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        os.accept(&mut listener).unwrap();
        os.close_listener(listener);
        assert_eq!(directory.files(), NO_FILES);
    }
}

const NO_FILES: [PathBuf; 0] = [];

const PATH: &str = "WHEELHOUSE_TEST_PATH";

/// What the processes below run: it listens until its input ends, or again and again.
#[test]
fn starter() {
    let Some(path) = std::env::var_os(PATH).map(PathBuf::from) else { return };
    let mut lines = std::io::stdin().lines();
    let order = lines.next().unwrap().unwrap();
    if order == "again" {
        loop {
            let bound = bind(&path).unwrap();
            println!("listens");
            drop(bound);
        }
    }
    match bind(&path) {
        Ok(_bound) => {
            println!("listens");
            assert!(lines.next().is_none());
        }
        Err(error) => println!("{:?}", error.kind()),
    }
}

fn start(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sockets::paths::starter", "--nocapture"])
        .env(PATH, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn order(child: &mut Child, order: &str) {
    child.stdin.as_mut().unwrap().write_all(order.as_bytes()).unwrap();
}

/// What a starter says of its attempt.
fn outcome(child: &mut Child) -> String {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
    // The harness writes lines of its own, and the name of the test in front of the first one.
    let said = |line: &String| line.contains("listens") || line.contains("AddrInUse");
    lines.into_iter().find(said).expect("it says what became of it")
}

#[test]
fn one_of_many_processes_that_start_at_once_listens() {
    let directory = Directory::new("processes");
    let path = directory.socket();
    for round in 0..4 {
        if round % 2 == 0 {
            leave_stale(&path);
        }
        let mut starters: Vec<_> = (0..6).map(|_| start(&path)).collect();
        starters.iter_mut().for_each(|starter| order(starter, "once\n"));
        let outcomes: Vec<_> = starters.iter_mut().map(outcome).collect();
        let count = outcomes.iter().filter(|outcome| outcome.contains("listens")).count();
        assert_eq!(count, 1, "{outcomes:?}");
        UnixStream::connect(&path).unwrap();
        for mut starter in starters {
            drop(starter.stdin.take());
            assert!(starter.wait().unwrap().success());
        }
        assert_eq!(directory.files(), NO_FILES);
    }
}

#[test]
fn a_starter_that_is_killed_blocks_no_other() {
    let directory = Directory::new("killed");
    let path = directory.socket();
    for round in 0..20 {
        let mut starter = start(&path);
        order(&mut starter, "again\n");
        outcome(&mut starter);
        // Anywhere between two binds.
        thread::sleep(Duration::from_micros(37 * round));
        starter.kill().unwrap();
        starter.wait().unwrap();
        let bound = bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert_eq!(directory.files(), NO_FILES, "what it left is removed");
    }
}

#[test]
fn a_path_that_the_kernel_would_read_otherwise_is_refused() {
    let directory = Directory::new("names");
    let mut cut = directory.socket().into_os_string();
    cut.push(std::ffi::OsStr::from_bytes(b"\0rest"));
    let mut os = Os::new().unwrap();
    let options = Config::default().socket;
    for path in [PathBuf::new(), PathBuf::from(cut), PathBuf::from("\0abstract")] {
        let address = Address::Unix(path);
        let bound = os.bind(&address, &ListenConfig::default(), &options);
        assert_eq!(bound.unwrap_err().kind(), ErrorKind::InvalidInput, "{address:?}");
        let dialled = os.connect(&address, &options);
        assert_eq!(dialled.unwrap_err().kind(), ErrorKind::InvalidInput, "{address:?}");
    }
    assert_eq!(directory.files(), NO_FILES);
}

#[test]
fn a_dial_waits_for_room_in_the_backlog() {
    let directory = Directory::new("backlog");
    let path = directory.socket();
    let stream = || Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let listener = stream();
    let addr = SockAddr::unix(&path).unwrap();
    listener.bind(&addr).unwrap();
    listener.listen(1).unwrap();
    // The kernel's limit is its own affair: it is full when it says so.
    let mut fillers = Vec::new();
    loop {
        let filler = stream();
        filler.set_nonblocking(true).unwrap();
        match filler.connect(&addr) {
            Ok(()) => fillers.push(filler),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                break;
            }
        }
    }
    let (mut reactor, _) = reactor();
    let mut echo = Echo::default();
    let id = reactor.context().connect(Address::Unix(path)).unwrap();
    turn(&mut reactor, &mut echo, 50);
    assert_eq!(reactor.context().conn(id).map(|conn| conn.state()), Some(State::Connecting));
    let accepted: Vec<_> = fillers.iter().map(|_| listener.accept().unwrap()).collect();
    let start = reactor.context().now();
    while reactor.context().conn(id).map(|conn| conn.state()) == Some(State::Connecting) {
        turn(&mut reactor, &mut echo, 1);
        assert!(reactor.context().now() - start < secs(5));
    }
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(b"hello").unwrap();
    turn(&mut reactor, &mut echo, 10);
    let mut reply = [0; 5];
    peer.read_exact(&mut reply).unwrap();
    assert_eq!((&reply, accepted.len()), (b"hello", fillers.len()));
}
