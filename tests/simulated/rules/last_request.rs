//! The last request of a connection: one that is told of it goes, one that is not has time to pause, and
//! what was read before the end is served.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use wheelhouse::sim::End;
use wheelhouse::{
    CloseReason, Closed, Config, Conn, ConnId, Context, Handler, ListenConfig, Reactor,
};

use super::{SERVER, Slow, millis, secs, world};
use crate::ping;
use crate::scenarios::Echo;

/// Answers each line with "ok", the last with "bye", and much before either.
struct Lines;

impl Handler for Lines {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        while !conn.is_congested() && !conn.is_closing() {
            let Some(at) = input.iter().position(|byte| *byte == b'\n') else { return };
            conn.begin_request();
            let stays = conn.decide_keep_alive(input.len() - at - 1).stays();
            conn.write(&[b'.'; 30_000]);
            conn.write(if stays { b"ok\n" } else { b"bye\n" });
            conn.end_request();
            input.advance(at + 1);
            if !stays {
                return input.clear();
            }
        }
    }
}

/// What a slow reader gets that sends `more` every 100 ms behind the request that is its last.
fn last_and(more: &[u8]) -> (String, Option<End>) {
    let mut sim = world(1);
    sim.set_buffers(8_192, 4_096);
    let server = sim.serve(SERVER, Config::default(), Lines);
    let peer = sim.connect(SERVER);
    peer.read_at(20_000);
    peer.send(b"a");
    sim.settle();
    server.shutdown();
    sim.advance(millis(20));
    peer.send(b"\n");
    for _ in 0..50 {
        sim.advance(millis(100));
        peer.send(more);
    }
    let got = String::from_utf8(peer.received()).unwrap();
    (got, peer.closed())
}

#[test]
fn nothing_is_served_behind_the_last() {
    for more in [&b""[..], b"b\n", b"b"] {
        let (got, end) = last_and(more);
        assert_eq!(got.matches("bye").count(), 1);
        assert!(got.ends_with("bye\n"));
        assert_eq!(end, Some(End::Fin), "{more:?}");
    }
}

#[test]
fn replies_have_no_gap_before_the_end() {
    let mut sim = world(1);
    sim.set_buffers(8_192, 4_096);
    let server = sim.serve(SERVER, Config::default(), ping::Server);
    let peer = sim.connect(SERVER);
    peer.read_at(20_000);
    for number in 0..400 {
        if number == 40 {
            server.shutdown();
        }
        peer.send(format!("PING {number:04}{}\n", "x".repeat(990)).as_bytes());
        sim.advance(millis(25));
        if peer.closed().is_some() {
            break;
        }
    }
    sim.advance(secs(40));
    let got = String::from_utf8(peer.take()).unwrap();
    assert!(got.lines().count() > 10);
    for (number, line) in got.lines().enumerate() {
        assert!(line.starts_with(&format!("PONG {number:04}")), "{number}: {line}");
    }
}

/// How long after the call for the end a client is closed that asks for something at `asks`, and
/// how long after its reply.
fn visit<H: Handler + 'static>(handler: H, asks: Option<Duration>) -> (Duration, Duration) {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), handler);
    let peer = sim.connect(SERVER);
    sim.advance(secs(2));
    server.shutdown();
    let began = sim.now();
    let mut replied = began;
    if let Some(asks) = asks {
        peer.send_after(asks, b"b");
    }
    while peer.closed().is_none() {
        sim.advance(millis(1));
        if !peer.take().is_empty() {
            replied = sim.now();
        }
    }
    (sim.now() - began, sim.now() - replied)
}

#[test]
fn a_client_that_is_told_nothing_has_a_second_behind_its_last_reply() {
    let (time, _) = visit(Echo, None);
    // Idle again, or being served, when the time comes.
    let (_, after) = visit(Echo, Some(time - millis(50)));
    assert!(after >= millis(990), "{after:?}");
    let (_, after) = visit(Slow(millis(300)), Some(time - millis(50)));
    assert!(after >= millis(990), "{after:?}");
}

#[test]
fn a_peer_that_never_pauses_does_not_hold_up_the_end() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Echo);
    let peer = sim.connect(SERVER);
    sim.advance(secs(1));
    server.shutdown();
    for _ in 0..16 * 2 {
        peer.send(b"b");
        sim.advance(millis(500));
    }
    assert!(peer.closed().is_some());
    drop(peer);
    sim.advance(secs(1));
    assert!(server.is_finished(), "half of its time has gone");
}

#[test]
fn a_connection_that_is_paused_when_the_time_comes_keeps_its_request() {
    for lifetime in [None, Some(secs(10))] {
        let mut config = Config::default();
        config.timeouts.lifetime = lifetime;
        let mut sim = world(1);
        let server = sim.serve(SERVER, config, Echo);
        let peer = sim.connect(SERVER);
        peer.send(b"a");
        sim.advance(secs(2));
        peer.expect(b"a");
        let id = server.with(|_, cx| cx.ids()[0]);
        server.shutdown();
        sim.advance(millis(100));
        server.with(|_, cx| cx.conn(id).unwrap().pause_reading());
        sim.advance(millis(10));
        peer.send(b"request");
        sim.advance(secs(12));
        assert_eq!(peer.closed(), None);
        server.with(|_, cx| cx.conn(id).unwrap().resume_reading());
        sim.advance(millis(10));
        peer.expect(b"request");
    }
}

/// Serves a byte in each turn, and says which was the last.
struct OneByOne;

impl OneByOne {
    fn serve(conn: &mut Conn<'_>, unread: usize) {
        conn.begin_request();
        let stays = conn.decide_keep_alive(unread).stays();
        conn.write(if stays { b"s" } else { b"g" });
        conn.end_request();
    }
}

impl Handler for OneByOne {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        if input[0] == b'p' && !conn.cx().is_shutting_down() {
            return conn.pause_reading();
        }
        Self::serve(conn, input.len() - 1);
        input.advance(1);
        conn.yield_now();
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        for id in cx.ids() {
            cx.conn(id).unwrap().resume_reading();
        }
    }
}

fn two_doors<H: Handler>(reactor: &mut Reactor<H, wheelhouse::sim::Host>) {
    reactor.listen(SERVER).unwrap();
    let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
    reactor.listen_with("10.0.0.1:9090", listen).unwrap();
}

#[test]
fn what_was_read_before_the_end_is_served() {
    for listener in [SERVER, "10.0.0.1:9090"] {
        for first in [b'a', b'p'] {
            let mut sim = world(1);
            let server = sim.spawn("10.0.0.1", Config::default(), OneByOne, two_doors);
            let _somebody = sim.connect(SERVER);
            let peer = sim.connect(listener);
            sim.settle();
            let mut sent = vec![b'a'; 100];
            sent[0] = first;
            peer.send(&sent);
            while first == b'a' && peer.received().len() < 10 {
                sim.step();
            }
            if first == b'p' {
                sim.settle();
            }
            server.shutdown();
            sim.advance(millis(100));
            let got = peer.take();
            assert_eq!(got.len(), 100);
            // Who is exempt goes when all others have gone.
            let last = if listener == SERVER { b'g' } else { b's' };
            assert_eq!((&got[..99], got[99]), (&[b's'; 99][..], last));
        }
    }
}

/// Asks whether a connection may stay, and replies 20 s later.
struct Teller;

impl Handler for Teller {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        input.clear();
        conn.begin_request();
        let answer: &[u8] = if conn.decide_keep_alive(0).stays() { b"stay" } else { b"go" };
        conn.write(answer);
        conn.set_timer(conn.now() + secs(20));
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, _: &mut ()) {
        conn.write(b"done");
        conn.end_request();
    }
}

#[test]
fn the_reason_is_the_one_that_was_told() {
    let mut config = Config::default();
    config.timeouts.lifetime = Some(secs(10));
    config.limits.max_connections = Some(64);
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Teller);
    let peer = sim.connect(SERVER);
    let crowd: Vec<_> = (0..62).map(|_| sim.connect(SERVER)).collect();
    sim.settle();
    peer.send(b"x");
    sim.settle();
    peer.expect(b"go");
    drop(crowd);
    sim.settle();
    server.take_closed();
    // It grows old meanwhile.
    sim.advance(secs(25));
    peer.expect(b"done");
    peer.close();
    sim.settle();
    server.expect_closed(CloseReason::Overload);
}

/// Writes to the first connection whenever another ends, and panics over it.
#[derive(Default)]
struct Panics {
    first: Option<ConnId>,
}

impl Handler for Panics {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.first.get_or_insert_with(|| conn.id());
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, _: Closed, _: ()) {
        if let Some(mut conn) = self.first.and_then(|id| cx.conn(id)) {
            conn.write(&[b'x'; 400_000]);
            panic!("on purpose");
        }
    }
}

#[test]
fn what_a_panic_takes_back_costs_no_connection_its_place() {
    let mut config = Config::default();
    config.limits.buffered_max = 350_000;
    let mut sim = world(1);
    sim.allow_panics();
    let server = sim.serve(SERVER, config, Panics::default());
    let friend = sim.connect(SERVER);
    let other = sim.connect(SERVER);
    sim.settle();
    other.reset();
    sim.settle();
    assert_eq!(server.stats().panics, 1);
    friend.send(b"hi");
    sim.settle();
    friend.expect(b"hi");
    friend.close();
    sim.settle();
}
