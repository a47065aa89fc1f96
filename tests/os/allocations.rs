//! What goes on for ever allocates nothing: leases of a pool, once it has warmed up.
//!
//! The allocator counts for the whole process, which is why this is a process of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use dhat::{HeapStats, Profiler};
use wheelhouse::pool::{AcquireError, AcquireOptions, PoolConfig, PoolId, WaitId};
use wheelhouse::{Config, Conn, ConnId, Handler, Reactor};

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

const LEN: usize = 16;

/// Leases a connection for each message, and gives it back with the reply.
struct Front {
    pool: PoolId,
}

impl Handler for Front {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        if input.len() >= LEN {
            input.clear();
            conn.begin_request();
            conn.acquire(self.pool, AcquireOptions::default()).unwrap();
        }
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        (): &mut (),
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        conn.write(&[b'y'; LEN]);
        conn.end_request();
        conn.release(lease.unwrap());
    }
}

#[test]
fn leases_allocate_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
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
        }
        reactor.context().pool_stats(pool).leases
    };
    let _profiler = Profiler::builder().testing().build();
    exchanges(100);
    let before = HeapStats::get().total_blocks;
    let leases = exchanges(1_000);
    let blocks = HeapStats::get().total_blocks - before;
    assert_eq!((leases, blocks), (1_100, 0));
    drop(listener);
}
