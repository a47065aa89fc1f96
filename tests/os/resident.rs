//! What the kernel says of the process: `Stats::buffered` is what its resident set grows by while peers
//! flood it and do not read, and its table of descriptors has room.
//!
//! Both are the whole process's, which is why this is a process of its own.
#![cfg(target_os = "linux")]

#[path = "../harness/shorthands.rs"]
mod shorthands;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use wheelhouse::{Config, Conn, Handler, Reactor, Shared};

use crate::shorthands::millis;

const PEERS: usize = 300;

/// Keeps its input, and answers the first byte of a connection in the way it asks for.
#[derive(Default)]
struct Flooded {
    shared: Option<Shared>,
    opened: usize,
}

impl Handler for Flooded {
    type Session = bool;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<bool> {
        self.opened += 1;
        Some(false)
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, answered: &mut bool, input: &mut BytesMut) {
        if std::mem::replace(answered, true) {
            return;
        }
        match input.first() {
            Some(b'c') => (0..150).for_each(|_| conn.write(&[b'c'; 3_000])),
            Some(b'b') => conn.write_bytes(Bytes::from(vec![b'b'; 600_000])),
            Some(b's') => {
                let cx = conn.cx();
                let shared = self.shared.get_or_insert_with(|| cx.share(vec![b's'; 2_000_000]));
                conn.write_shared(shared);
            }
            _ => {}
        }
        // What was not answered is kept.
        if input.first() != Some(&b'k') {
            input.clear();
        }
    }
}

fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

fn turn(reactor: &mut Reactor<Flooded>, handler: &mut Flooded) {
    reactor.turn(handler, Some(millis(1))).unwrap();
}

/// What is measured is the whole process's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn the_gauge_is_what_the_resident_set_grows_by() {
    let _alone = alone();
    let mut config = Config::default();
    config.limits.max_connections = Some(PEERS);
    config.limits.buffered_max = 1 << 30;
    let mut reactor = Reactor::new(config).unwrap();
    let mut handler = Flooded::default();
    let listener = reactor.listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = reactor.local_addr(listener).ip().unwrap();
    let mut peers = Vec::new();
    while handler.opened < PEERS {
        if peers.len() < PEERS {
            peers.push(TcpStream::connect(address).unwrap());
        }
        turn(&mut reactor, &mut handler);
    }
    // What is allocated once is there.
    for _ in 0..10 {
        turn(&mut reactor, &mut handler);
    }
    let handle = reactor.handle();
    let (before, gauge) = (resident(), handle.stats().buffered);
    assert_eq!(gauge, 0);
    for (index, peer) in peers.iter_mut().enumerate() {
        peer.write_all([&b"c"[..], b"b", b"s", b"k"][index % 4]).unwrap();
        turn(&mut reactor, &mut handler);
    }
    for peer in peers.iter_mut().skip(3).step_by(4) {
        peer.write_all(&[b'k'; 50_000]).unwrap();
    }
    for _ in 0..200 {
        turn(&mut reactor, &mut handler);
    }
    let (grown, gauge) = (resident() - before, handle.stats().buffered);
    assert_eq!(handle.stats().closed_total(), 0);
    assert!(gauge > 30 << 20, "it is no flood: {gauge}");
    let error = grown.abs_diff(gauge);
    assert!(error <= grown / 10 + (1 << 20), "{gauge} are accounted for, and it grew by {grown}");
}

/// Linux doubles the table of a process with threads after a grace period of RCU: 20 ms in which the
/// loop would wait inside an accept4(2).
#[test]
fn the_table_of_descriptors_has_room_for_all_connections_from_the_beginning() {
    let _alone = alone();
    let places = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        line.trim().parse::<usize>().unwrap()
    };
    let mut config = Config::default();
    config.limits.max_connections = Some(3_000);
    let reactor = Reactor::<Flooded>::new(config).unwrap();
    assert!(places() >= 3_000, "{}", places());
    drop(reactor);
}
