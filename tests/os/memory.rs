//! What a reactor allocates is bounded by what `Config::worst_case_memory` says, whatever peers do.
//!
//! The allocator counts for the whole process, which is why this is a process of its own.

#[path = "../harness/shorthands.rs"]
mod shorthands;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use dhat::{HeapStats, Profiler};
use wheelhouse::{CloseReason, Config, Conn, Handler, Reactor};

use crate::shorthands::millis;

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

/// Waits for the end of a line; a `!` is answered with much.
struct Lines;

impl Handler for Lines {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        while input.first() == Some(&b'!') {
            if conn.is_congested() {
                return;
            }
            let _ = input.split_to(1);
            conn.write(&[b'x'; 20_000]);
        }
        if input.ends_with(b"\n") {
            conn.write(b"ok");
            input.clear();
        }
    }
}

#[test]
fn memory_stays_within_the_worst_case_whatever_peers_do() {
    const PEERS: usize = 200;
    let mut config = Config::default();
    config.limits.max_connections = Some(PEERS);
    config.limits.input_max = 32 * 1024;
    config.limits.output_max = 128 * 1024;
    config.limits.buffered_max = 2 << 20;
    let most = config.worst_case_memory() as usize;
    let _profiler = Profiler::builder().testing().build();
    let mut reactor = Reactor::new(config).unwrap();
    let listener = reactor.listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = reactor.local_addr(listener).ip().unwrap();
    let mut clients: Vec<Option<TcpStream>> = (0..PEERS).map(|_| None).collect();
    let piece = vec![b'h'; 5_000];
    let cries = vec![b'!'; 500];
    for _ in 0..60 {
        for (index, client) in clients.iter_mut().enumerate() {
            let stream = client.get_or_insert_with(|| {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_nonblocking(true).unwrap();
                stream
            });
            let bytes = if index % 2 == 0 { &piece } else { &cries };
            let gone = matches!(stream.write(bytes), Err(error)
                if error.kind() != ErrorKind::WouldBlock);
            // Some of them read, most do not.
            if index % 7 == 0 {
                let _ = stream.read(&mut [0; 4_096]);
            }
            if gone {
                *client = None;
            }
            if index % 16 == 0 {
                reactor.turn(&mut Lines, Some(Duration::ZERO)).unwrap();
            }
        }
    }
    let stats = reactor.handle().stats();
    // What this test itself allocates is little.
    let peak = HeapStats::get().max_bytes;
    assert!(stats.closed(CloseReason::BufferLimit) > 0, "{stats}");
    assert!(peak <= most, "{peak} of {most}");
    assert!(peak >= most / 4, "it was no flood: {peak} of {most}");
    // An idle connection owns no buffer: all finish, read and stay.
    clients.clear();
    for _ in 0..200 {
        reactor.turn(&mut Lines, Some(millis(1))).unwrap();
    }
    let mut clients: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    for client in &mut clients {
        client.write_all(&piece).unwrap();
        reactor.turn(&mut Lines, Some(millis(1))).unwrap();
        client.write_all(&piece).unwrap();
        reactor.turn(&mut Lines, Some(millis(1))).unwrap();
        client.write_all(b"\n").unwrap();
        reactor.turn(&mut Lines, Some(millis(1))).unwrap();
        client.read_exact(&mut [0; 2]).unwrap();
    }
    for _ in 0..5 {
        reactor.turn(&mut Lines, Some(millis(1))).unwrap();
    }
    let idle = HeapStats::get().curr_bytes;
    drop(clients);
    for _ in 0..20 {
        reactor.turn(&mut Lines, Some(millis(1))).unwrap();
    }
    let kept = idle.saturating_sub(HeapStats::get().curr_bytes);
    assert!(kept <= 100 * 64, "{kept} bytes for a hundred idle connections, beside the columns");
}
