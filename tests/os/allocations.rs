//! What goes on for ever allocates nothing, once it has warmed up: exchanges over leases of a pool, what
//! a relay passes on, and messages of each framing.
//!
//! The allocator counts for the whole process, which is why this is a process of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use dhat::{HeapStats, Profiler};
use wheelhouse::frame::{self, Framing, Width};
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

/// One test, as another that begins or ends meanwhile allocates.
#[test]
fn what_goes_on_for_ever_allocates_nothing() {
    exchanges_over_a_pool_allocate_nothing();
    a_relay_allocates_nothing();
    messages_allocate_nothing(|| frame::lines(64));
    messages_allocate_nothing(|| frame::delimited(b"--", 64));
    messages_allocate_nothing(|| frame::length(Width::U16, 64));
    messages_allocate_nothing(|| frame::varint(64));
    messages_allocate_nothing(|| frame::fixed(LEN));
}

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

/// Relays each client with an upstream.
struct Relay(SocketAddr);

impl Handler for Relay {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        if let Origin::Accepted(_) = conn.origin() {
            conn.pause_reading();
            conn.connect(self.0).unwrap();
        }
        Some(())
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        if let Some(client) = conn.owner() {
            assert!(conn.relay_with(client));
        }
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {
        unreachable!("it is relayed");
    }
}

fn a_relay_allocates_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut reactor = Reactor::new(Config::default()).unwrap();
    let id = reactor.listen("127.0.0.1:0").unwrap();
    let mut relay = Relay(listener.local_addr().unwrap());
    let mut client = TcpStream::connect(reactor.local_addr(id).ip().unwrap()).unwrap();
    let pause = Some(Duration::from_millis(1));
    while reactor.handle().stats().relays == 0 {
        reactor.turn(&mut relay, pause).unwrap();
    }
    let (mut upstream, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    upstream.set_nonblocking(true).unwrap();
    // Messages of one read, and of some.
    let mut bytes = vec![0; 200_000];
    let mut pass = |count: usize, len: usize| {
        for at in 0..count {
            let (from, to) = if at % 2 == 0 {
                (&mut client, &mut upstream)
            } else {
                (&mut upstream, &mut client)
            };
            from.write_all(&bytes[..len]).unwrap();
            let mut got = 0;
            while got < len {
                reactor.turn(&mut relay, pause).unwrap();
                match to.read(&mut bytes[got..len]) {
                    Ok(count) => got += count,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        }
    };
    let _profiler = Profiler::builder().testing().build();
    pass(100, LEN);
    pass(20, 100_000);
    let before = HeapStats::get().total_blocks;
    pass(1_000, LEN);
    pass(100, 100_000);
    assert_eq!(HeapStats::get().total_blocks - before, 0);
}

/// Sends each message back.
struct Framed<N>(N);

impl<F: Framing, N: Fn() -> F> Handler for Framed<N> {
    type Session = F;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<F> {
        Some((self.0)())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, framing: &mut F, input: &mut BytesMut) {
        let replies = (self.0)();
        let served = frame::each(framing, conn, input, |conn, message| {
            frame::put(conn, &replies, message).unwrap();
            ControlFlow::Continue(())
        });
        served.unwrap();
    }
}

fn messages_allocate_nothing<F: Framing>(framing: impl Fn() -> F) {
    const BATCH: usize = 16;
    let payload = [b'x'; LEN];
    let framed = framing();
    let mut batch = Vec::new();
    for _ in 0..BATCH {
        batch.extend_from_slice(&framed.head(LEN).unwrap());
        batch.extend_from_slice(&payload);
        batch.extend_from_slice(framed.tail());
    }
    let mut reactor = Reactor::new(Config::default()).unwrap();
    let id = reactor.listen("127.0.0.1:0").unwrap();
    let mut handler = Framed(framing);
    let mut client = TcpStream::connect(reactor.local_addr(id).ip().unwrap()).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut reply = vec![0; batch.len()];
    let mut batches = |count| {
        for _ in 0..count {
            client.write_all(&batch).unwrap();
            let mut got = 0;
            while got < batch.len() {
                reactor.turn(&mut handler, Some(Duration::from_millis(1))).unwrap();
                match client.read(&mut reply[got..]) {
                    Ok(count) => got += count,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            assert_eq!(reply, batch);
        }
    };
    let _profiler = Profiler::builder().testing().build();
    batches(100);
    let before = HeapStats::get().total_blocks;
    batches(1_000);
    assert_eq!(HeapStats::get().total_blocks - before, 0);
}
