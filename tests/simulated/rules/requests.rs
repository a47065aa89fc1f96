//! The last request of a connection: what decides which one that is, and what comes after it.

use super::*;

with_each_personality! {
    nothing_is_served_after_the_last_request,
    the_reason_is_that_of_the_retirement,
    a_retirement_is_final_even_between_requests,
    a_retired_connection_ends_though_it_asked_for_more,
    nothing_is_served_after_the_last_request_whatever_callback_ended_it,
    what_a_callback_resumed_that_panics_is_paused_as_before,
}

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

/// What a slow reader gets that sends `more` every 100 ms after its last request.
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

fn nothing_is_served_after_the_last_request() {
    for more in [&b""[..], b"b\n", b"b"] {
        let (got, end) = last_and(more);
        assert_eq!(got.matches("bye").count(), 1);
        assert!(got.ends_with("bye\n"));
        assert_eq!(end, Some(End::Fin), "{more:?}");
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

fn the_reason_is_that_of_the_retirement() {
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
    // Its lifetime passes meanwhile.
    sim.advance(secs(25));
    peer.expect(b"done");
    peer.close();
    sim.settle();
    server.expect_closed(CloseReason::Overload);
}

/// Counts one request, and decides about keep-alive at any other input.
struct Asker;

impl Handler for Asker {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        if &input[..] == b"request" {
            conn.begin_request();
            conn.write(b"reply");
            conn.end_request();
        } else {
            let answer: &[u8] = if conn.decide_keep_alive(0).stays() { b"stay" } else { b"go" };
            conn.write(answer);
        }
        input.clear();
    }
}

fn a_retirement_is_final_even_between_requests() {
    let mut config = Config::default();
    config.limits.requests_max = Some(2);
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Asker);
    let peer = sim.connect(SERVER);
    for (line, reply) in [(&b"request"[..], &b"reply"[..]), (b"x", b"go")] {
        peer.send(line);
        sim.settle();
        peer.expect(reply);
    }
    assert_eq!(peer.closed(), Some(End::Fin));
    peer.close();
    sim.settle();
    server.expect_closed(CloseReason::MaxRequests);
}

/// Serves a request a byte, and stops after the one that is decided to be the last.
struct Polite;

impl Handler for Polite {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        while !input.is_empty() {
            input.advance(1);
            conn.begin_request();
            let stays = conn.decide_keep_alive(0).stays();
            conn.write(if stays { b"k" } else { b"c" });
            conn.end_request();
            if !stays {
                return;
            }
        }
    }
}

fn a_retired_connection_ends_though_it_asked_for_more() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, with_places(100), Polite);
    let _crowd: Vec<_> = (0..91).map(|_| sim.connect(SERVER)).collect();
    sim.settle();
    let peer = sim.connect(SERVER);
    peer.send(b"rrr");
    sim.advance(secs(1));
    peer.expect(b"c");
    assert_eq!(peer.closed(), Some(End::Fin));
    peer.close();
    sim.settle();
    server.expect_closed(CloseReason::Overload);
}

/// A byte of a client is answered when another connection sends `!`.
#[derive(Default)]
struct Relayed {
    asks: Option<ConnId>,
    /// The bytes that were taken, and whether each was said to be the last.
    taken: Vec<(u8, bool)>,
    panics: bool,
}

impl Handler for Relayed {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        conn.manual_requests();
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        let byte = input.get_u8();
        if byte != b'!' {
            conn.begin_request();
            let last = !conn.decide_keep_alive(0).stays();
            self.taken.push((byte, last));
            conn.pause_reading();
            self.asks = Some(conn.id());
        } else if let Some(mut client) = self.asks.and_then(|id| conn.other(id)) {
            client.write(b"reply");
            client.end_request();
            client.resume_reading();
            assert!(!std::mem::take(&mut self.panics), "on purpose");
        }
    }
}

fn nothing_is_served_after_the_last_request_whatever_callback_ended_it() {
    let mut sim = world(1);
    let mut config = Config::default();
    config.limits.requests_max = Some(1);
    let server = sim.serve(SERVER, config, Relayed::default());
    let [client, other] = [(); 2].map(|()| sim.connect(SERVER));
    client.send(b"ab");
    sim.settle();
    // The event of the client comes in the turn in which its request ends.
    other.send(b"!");
    client.send(b"c");
    sim.settle();
    assert_eq!(server.handler().taken, [(b'a', true)]);
    client.expect(b"reply");
    client.close();
    sim.settle();
    server.expect_closed(CloseReason::MaxRequests);
}

fn what_a_callback_resumed_that_panics_is_paused_as_before() {
    let mut sim = world(1);
    sim.allow_panics();
    let server = sim.serve(SERVER, Config::default(), Relayed::default());
    let [client, bomb, other] = [(); 3].map(|()| sim.connect(SERVER));
    client.send(b"ab");
    sim.settle();
    server.with(|handler, _| handler.panics = true);
    bomb.send(b"!");
    sim.settle();
    client.expect(b"");
    assert_eq!(server.handler().taken, [(b'a', false)]);
    other.send(b"!");
    sim.settle();
    client.expect(b"reply");
    assert_eq!(server.handler().taken, [(b'a', false), (b'b', false)]);
}
