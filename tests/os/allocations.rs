//! What goes on for ever allocates nothing: exchanges over leases of a pool, once it has warmed up.
//!
//! The allocator counts for the whole process, which is why this is a process of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use dhat::{HeapStats, Profiler};
use wheelhouse::pool::{AcquireError, AcquireOptions, PoolConfig, PoolId, WaitId};
use wheelhouse::{Config, Conn, ConnId, Handler, Origin, Reactor};

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

const LEN: usize = 16;

/// Leases a connection for each message, sends it on, and gives the connection back with the reply.
struct Front {
    pool: PoolId,
}

impl Handler for Front {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        if input.len() < LEN {
            return;
        }
        if let Origin::Pool(_) = conn.origin() {
            let (lease, owner) = (conn.id(), conn.owner().unwrap());
            conn.end_request();
            let mut client = conn.other(owner).unwrap();
            client.write(input);
            client.end_request();
            client.release(lease);
        } else {
            conn.begin_request();
            conn.acquire(self.pool, AcquireOptions::default()).unwrap();
        }
        input.clear();
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        (): &mut (),
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let mut upstream = conn.other(lease.unwrap()).unwrap();
        upstream.begin_request();
        upstream.write(&[b'y'; LEN]);
    }
}

/// Returns what one connection sends, until it ends.
fn serve(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut message = [0; LEN];
    while stream.read_exact(&mut message).is_ok() {
        stream.write_all(&message).unwrap();
    }
}

#[test]
fn exchanges_over_a_pool_allocate_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let server = thread::spawn(move || serve(&listener));
    let mut reactor = Reactor::new(Config::default()).unwrap();
    let id = reactor.listen("127.0.0.1:0").unwrap();
    let pool = reactor.context().add_pool(target, &PoolConfig::default()).unwrap();
    let mut front = Front { pool };
    let mut client = TcpStream::connect(reactor.local_addr(id).ip().unwrap()).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut exchanges = |count| {
        for _ in 0..count {
            client.write_all(&[b'x'; LEN]).unwrap();
            let mut reply = [0; LEN];
            let mut got = 0;
            while got < LEN {
                reactor.turn(&mut front, Some(Duration::from_millis(1))).unwrap();
                match client.read(&mut reply[got..]) {
                    Ok(count) => got += count,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            assert_eq!(reply, [b'y'; LEN]);
        }
        reactor.context().pool_stats(pool).leases
    };
    let _profiler = Profiler::builder().testing().build();
    exchanges(100);
    let before = HeapStats::get().total_blocks;
    let leases = exchanges(1_000);
    let blocks = HeapStats::get().total_blocks - before;
    assert_eq!((leases, blocks), (1_100, 0));
    drop(reactor);
    server.join().unwrap();
}
