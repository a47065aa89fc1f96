//! Descriptors are limited: a server that runs out of them neither spins nor stops accepting, and the
//! reactors of a process share them.
//!
//! The limit is the whole process's, which is why this is a process of its own.

#[path = "../scenarios/basics.rs"]
mod basics;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wheelhouse::config::AtLimit;
use wheelhouse::{Config, Error, Reactor};

use crate::basics::{Echo, millis, secs};

fn dial(address: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_nonblocking(true).unwrap();
    client.write_all(b"hello").unwrap();
    client
}

/// Turns until the client has its echo, for at most `patience`, and says whether it has.
fn is_served(reactor: &mut Reactor<Echo>, client: &mut TcpStream, patience: Duration) -> bool {
    let start = reactor.context().now();
    let mut echo = [0; 5];
    while reactor.context().now() - start < patience {
        reactor.turn(&mut Echo, Some(millis(10))).unwrap();
        match client.read(&mut echo) {
            Ok(5) => return true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            other => panic!("{other:?}"),
        }
    }
    false
}

/// Opens files until there are no descriptors left.
fn exhaust() -> Vec<File> {
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    files
}

const LIMIT: usize = 200;

/// Lowers the limit, so that it can be reached, and lets no other test run that needs it.
fn lower_limit() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = libc::rlimit { rlim_cur: LIMIT as u64, rlim_max: LIMIT as u64 };
    // SAFETY: setrlimit(2) reads one struct, which is there.
    #[expect(unsafe_code, reason = "the standard library cannot do it")]
    let outcome = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(outcome, 0);
    alone
}

#[test]
fn a_waiting_client_is_served_once_there_are_descriptors_again() {
    let _alone = lower_limit();
    let mut config = Config::default();
    // No idle connection is evicted here.
    config.limits.at_limit = AtLimit::Pause;
    let mut reactor = Reactor::new(config).unwrap();
    let listener = reactor.listen("127.0.0.1:0").unwrap();
    let address = reactor.local_addr(listener).ip().unwrap();
    let mut first = dial(address);
    assert!(is_served(&mut reactor, &mut first, secs(5)));

    let mut files = exhaust();
    files.pop();
    let mut waiting = dial(address);
    let turns = reactor.handle().stats().turns;
    assert!(!is_served(&mut reactor, &mut waiting, millis(400)));
    let stats = reactor.handle().stats();
    assert!(stats.accept_pauses > 0 && stats.accept_errors > 0, "{stats:?}");
    assert!(stats.turns - turns < 200, "it spins: {} turns", stats.turns - turns);
    // Those that are there are served all the while.
    first.write_all(b"hello").unwrap();
    assert!(is_served(&mut reactor, &mut first, secs(1)));

    // Another part of the process closes a file: the server retries after a pause.
    files.pop();
    assert!(is_served(&mut reactor, &mut waiting, secs(3)));

    // One of its own connections ends: it retries at once.
    drop(files.pop());
    let mut next = dial(address);
    // By now it retries less often than every 500 ms.
    assert!(!is_served(&mut reactor, &mut next, millis(800)));
    let start = reactor.context().now();
    drop(waiting);
    // The client's descriptor would do as well, so it is taken.
    let _taken = exhaust();
    assert!(is_served(&mut reactor, &mut next, secs(3)));
    let took = reactor.context().now() - start;
    assert!(took < millis(400), "{took:?}");
}

/// A reactor for so many connections, and how many it is for.
fn reactor(connections: Option<usize>) -> Result<(Reactor<Echo>, u64), Error> {
    let mut config = Config::default();
    config.limits.max_connections = connections;
    let reactor = Reactor::new(config)?;
    let most = reactor.handle().stats().connections_max;
    Ok((reactor, most))
}

#[test]
fn reactors_share_the_descriptors_of_their_process() {
    let _alone = lower_limit();
    let (first, most) = reactor(Some(100)).unwrap();
    assert_eq!(most, 100);
    // 36 are left, of which a quarter is the reserve.
    let (second, most) = reactor(None).unwrap();
    assert_eq!(most, 27);
    for connections in [None, Some(10)] {
        let error = reactor(connections).unwrap_err().to_string();
        assert!(error.contains("max_connections"), "{error}");
    }
    // What a reactor had is free when it is gone.
    drop(second);
    let (third, most) = reactor(Some(1_000)).unwrap();
    assert_eq!(most, 27);
    drop((first, third));
    let (_fourth, most) = reactor(None).unwrap();
    assert_eq!(most, 150);
}

#[test]
fn reactors_that_start_at_once_claim_nothing_twice() {
    let _alone = lower_limit();
    for _ in 0..50 {
        let started: Vec<_> = std::thread::scope(|scope| {
            let starters: Vec<_> = (0..8).map(|_| scope.spawn(|| reactor(Some(30)))).collect();
            starters.into_iter().filter_map(|starter| starter.join().unwrap().ok()).collect()
        });
        let most: u64 = started.iter().map(|(_, most)| most).sum();
        // Each of two has claimed 94, the third the 12 that were left.
        assert_eq!((started.len(), most), (3, 2 * 30 + 9));
        drop(started);
        let (_reactor, most) = reactor(None).unwrap();
        assert_eq!(most, 150, "all that was claimed is free again");
    }
}
