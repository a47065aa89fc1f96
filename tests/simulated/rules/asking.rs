//! What may ask a pool, and when; and what is sent again however long a handshake takes.

use wheelhouse::pool::{AcquireError, AcquireOptions, PoolConfig, PoolId, PoolStats, WaitId};

use super::*;

with_each_personality! {
    a_request_is_sent_again_behind_a_handshake_that_takes_its_time,
    a_connection_that_asks_before_its_on_open_is_answered,
    a_connection_that_asks_before_its_on_open_and_is_refused_costs_no_place,
    a_connection_that_its_on_open_refused_is_gone,
}

const UPSTREAM: &str = "10.0.0.2:9";
const ELSEWHERE: &str = "10.0.0.3:9";

/// Passes each line on over a pool whose connections greet, to be sent again if its lease is lost.
struct Front {
    pool: Option<PoolId>,
}

impl Handler for Front {
    type Session = Vec<u8>;

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let config = PoolConfig { handshake: Some(secs(5)), ..PoolConfig::default() };
        self.pool = Some(cx.add_pool(UPSTREAM, &config).unwrap());
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Vec<u8>> {
        Some(Vec::new())
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, _: &mut Vec<u8>) {
        if let Origin::Pool(_) = conn.origin() {
            conn.begin_request();
            conn.write(b"hello\n");
        }
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, line: &mut Vec<u8>, input: &mut BytesMut) {
        if let Origin::Pool(_) = conn.origin() {
            conn.end_request();
            let id = conn.id();
            match conn.owner() {
                Some(owner) => {
                    let mut client = conn.other(owner).unwrap();
                    client.write(input);
                    client.end_request();
                    client.release(id);
                }
                None => conn.ready(),
            }
        } else {
            line.extend_from_slice(input);
            conn.begin_request();
            conn.acquire(self.pool.unwrap(), AcquireOptions::default()).unwrap();
        }
        input.clear();
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        line: &mut Vec<u8>,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        conn.send_replayable(lease.unwrap(), std::mem::take(line));
    }
}

fn a_request_is_sent_again_behind_a_handshake_that_takes_its_time() {
    let mut sim = world(1);
    sim.set_link(Link { latency: millis(60), ..Link::default() });
    let listener = sim.listen(UPSTREAM, 64);
    let _front = sim.serve(SERVER, Config::default(), Front { pool: None });
    let client = sim.connect(SERVER);
    client.send(b"first\n");
    sim.advance(millis(600));
    let upstream = listener.accept().unwrap();
    for line in [b"hello\n", b"first\n"] {
        upstream.expect(line);
        upstream.send(line);
        sim.advance(millis(600));
    }
    client.expect(b"first\n");
    client.send(b"again\n");
    sim.advance(millis(150));
    upstream.expect(b"again\n");
    // It had closed it as idle.
    upstream.close();
    sim.advance(millis(300));
    let upstream = listener.accept().unwrap();
    upstream.expect(b"hello\n");
    sim.advance(secs(1));
    upstream.send(b"hello\n");
    sim.advance(millis(300));
    upstream.expect(b"again\n");
    upstream.send(b"again\n");
    sim.advance(millis(300));
    client.expect(b"again\n");
    assert!(listener.accept().is_none());
}

/// Leases a connection for what it is told to: itself, a connection that it dials, or one that it
/// dials and then refuses.
#[derive(Default)]
struct Asks {
    pool: Option<PoolId>,
    refuses: bool,
    refused: Option<ConnId>,
    /// Whether what it refused could be reached afterwards.
    was_there: Option<bool>,
    answers: u32,
}

impl Asks {
    fn ask(&self, conn: &mut Conn<'_>) {
        conn.acquire(self.pool.unwrap(), AcquireOptions::default()).unwrap();
    }

    fn stats(&self, cx: &Context<'_>) -> PoolStats {
        cx.pool_stats(self.pool.unwrap())
    }
}

impl Handler for Asks {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let config = PoolConfig { size: 1, ..PoolConfig::default() };
        self.pool = Some(cx.add_pool(UPSTREAM, &config).unwrap());
    }

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        let refuses = self.refuses && conn.origin() == Origin::Connect;
        self.refused = refuses.then(|| conn.id());
        (!refuses).then_some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        let told = input.split();
        self.refuses = told != b"dial"[..];
        match &told[..] {
            b"ask" => self.ask(conn),
            b"refuse, then ask" => {
                conn.connect(ELSEWHERE).unwrap();
                conn.close();
            }
            _ => {
                let id = conn.connect(ELSEWHERE).unwrap();
                self.ask(&mut conn.other(id).unwrap());
            }
        }
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        (): &mut (),
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.answers += 1;
        conn.release(lease.unwrap());
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, _: Closed, (): ()) {
        if let Some(id) = self.refused.take() {
            self.was_there = Some(cx.conn(id).is_some() || cx.ids().contains(&id));
            // To feed it is to feed nothing.
            for other in cx.ids() {
                if let Some(mut other) = cx.conn(other) {
                    other.throttle_on(id);
                }
            }
        }
    }
}

/// Both servers, and a front whose pool has an idle connection.
fn asks() -> (Sim, Server<Asks>, Peer) {
    let mut sim = world(1);
    for target in [UPSTREAM, ELSEWHERE] {
        sim.serve(target, Config::default(), Echo);
    }
    let server = sim.serve(SERVER, Config::default(), Asks::default());
    let client = sim.connect(SERVER);
    client.send(b"ask");
    sim.advance(secs(1));
    assert_eq!(server.with(|asks, cx| (asks.answers, asks.stats(cx).idle)), (1, 1));
    (sim, server, client)
}

fn a_connection_that_asks_before_its_on_open_is_answered() {
    let (mut sim, server, client) = asks();
    client.send(b"dial");
    sim.advance(secs(1));
    let (answers, stats) = server.with(|asks, cx| (asks.answers, asks.stats(cx)));
    assert_eq!((answers, stats.idle, stats.waiting), (2, 1, 0));
}

fn a_connection_that_asks_before_its_on_open_and_is_refused_costs_no_place() {
    let (mut sim, server, client) = asks();
    client.send(b"dial and refuse");
    sim.advance(secs(1));
    let (answers, stats) = server.with(|asks, cx| (asks.answers, asks.stats(cx)));
    assert_eq!((answers, stats.leased, stats.waiting), (1, 0, 0));
    client.send(b"ask");
    sim.advance(secs(1));
    assert_eq!(server.with(|asks, _| asks.answers), 2);
}

fn a_connection_that_its_on_open_refused_is_gone() {
    let (mut sim, server, client) = asks();
    let other = sim.connect(SERVER);
    client.send(b"refuse, then ask");
    client.half_close();
    sim.advance(secs(1));
    other.send(b"ask");
    sim.advance(secs(1));
    assert_eq!(server.with(|asks, _| asks.answers), 2);
    let (was_there, stats) = server.with(|asks, cx| (asks.was_there, asks.stats(cx)));
    assert_eq!((was_there, stats.leased, stats.waiting), (Some(false), 0, 0));
}
