//! How connections end: tunnels, lingering, refusals, the word of `decide_keep_alive`, shutdowns.

use super::*;

/// Becomes a tunnel at its first byte, and sends back what comes.
struct Tunnel;

impl Handler for Tunnel {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        conn.tunnel();
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }
}

#[test]
fn a_tunnel_has_no_requests_to_count() {
    let mut config = Config::default();
    config.limits.requests_max = Some(3);
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Tunnel);
    let peer = sim.connect(SERVER);
    for _ in 0..10 {
        peer.send(b"frame");
        sim.settle();
        peer.expect(b"frame");
    }
    assert!(peer.is_open());
    assert_eq!(server.stats().requests, 0);
}

#[test]
fn no_connection_is_closed_within_a_second_of_a_reply_that_a_shutdown_lets_through() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Echo);
    let peers = idle(&mut sim, 40);
    sim.advance(secs(5));
    server.shutdown();
    sim.advance(millis(500));
    let asked: Vec<_> = peers.iter().filter(|peer| peer.is_open()).collect();
    for peer in &asked {
        peer.send(b"again");
    }
    sim.advance(millis(100));
    for peer in &asked {
        peer.expect(b"again");
    }
    // What they ask for next is on its way for less than a second.
    let mut gone = Vec::new();
    for _ in 0..85 {
        sim.advance(millis(10));
        gone = asked.iter().filter(|peer| !peer.is_open()).collect();
        if !gone.is_empty() {
            break;
        }
    }
    assert_eq!(gone.len(), 0, "closed at {:?}", sim.now());
}

/// Answers and closes.
struct Curt;

impl Handler for Curt {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(b"bye");
        input.clear();
        conn.close();
    }
}

#[test]
fn a_lingering_connection_is_evicted_for_a_newcomer() {
    for at_limit in [AtLimit::EvictIdle, AtLimit::Pause, AtLimit::Reject("full".into())] {
        let mut config = crowded(8);
        config.limits.at_limit = at_limit;
        let mut sim = world(1);
        let server = sim.serve(SERVER, config, Curt);
        let lingering: Vec<_> = (0..8).map(|_| sim.connect(SERVER)).collect();
        for peer in &lingering {
            peer.send(b"x");
        }
        sim.settle();
        lingering.iter().for_each(|peer| peer.expect(b"bye"));
        assert_eq!(server.stats().in_state(State::Closing), 8);
        // They have had their reply and our FIN; they only drip, so that we listen on.
        lingering.iter().for_each(|peer| peer.drip(&[b'x'; 60], secs(1)));
        let newcomer = sim.connect(SERVER);
        newcomer.send(b"x");
        sim.advance(millis(500));
        newcomer.expect(b"bye");
        assert_eq!(server.stats().linger_evicted, 1);
    }
}

#[test]
fn a_connection_that_begins_to_linger_is_evicted_for_waiting_ones() {
    let mut config = crowded(2);
    config.limits.at_limit = AtLimit::Pause;
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Curt);
    let peers = [(); 2].map(|()| sim.connect(SERVER));
    sim.settle();
    let newcomer = sim.connect(SERVER);
    newcomer.send(b"x");
    sim.advance(secs(1));
    newcomer.expect(b"");
    peers[0].send(b"x");
    sim.advance(millis(500));
    newcomer.expect(b"bye");
    assert_eq!(server.stats().linger_evicted, 1);
}

#[test]
fn a_flood_after_our_fin_is_read_a_part_at_a_time() {
    let mut sim = world(1);
    sim.set_buffers(1 << 20, 1 << 20);
    let mut host_config = Config::default();
    host_config.timeouts.linger_read = Some(secs(20));
    let server = sim.serve(SERVER, host_config, Curt);
    let flooder = sim.connect(SERVER);
    flooder.send(b"x");
    sim.settle();
    flooder.expect(b"bye");
    let turns = server.stats().turns;
    flooder.send(&vec![b'f'; 1 << 20]);
    sim.settle();
    let took = server.stats().turns - turns;
    assert!(took >= 16, "a megabyte in {took} turns");
}

/// Refuses all, with a reply.
struct Busy;

impl Handler for Busy {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        conn.write(b"busy");
        None
    }

    fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
}

#[test]
fn a_client_that_is_refused_with_a_reply_gets_a_fin_though_it_spoke_first() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Busy);
    sim.settle();
    let peer = sim.connect(SERVER);
    peer.send(b"hello");
    sim.settle();
    peer.expect(b"busy");
    assert_eq!(peer.closed(), Some(End::Fin));
    assert_eq!(server.stats().refused, 1);
}

#[test]
fn a_client_that_is_refused_gets_a_fin_though_it_spoke_first() {
    let mut config = Config::default();
    config.limits.clients.connections = Some(1);
    config.limits.clients.refusal = Refusal::Close;
    let mut sim = world(1);
    let _server = sim.serve(SERVER, config, Echo);
    sim.settle();
    let _first = sim.connect(SERVER);
    let second = sim.connect(SERVER);
    second.send(b"hello");
    sim.advance(millis(120));
    assert_eq!(second.closed(), Some(End::Fin));
}

#[test]
fn a_client_of_a_full_server_reads_the_reply_though_it_speaks_later() {
    let mut config = crowded(1);
    config.limits.at_limit = AtLimit::Reject("full\n".into());
    let mut sim = world(1);
    let _server = sim.serve(SERVER, config, Echo);
    let _first = sim.connect(SERVER);
    sim.settle();
    let second = sim.connect(SERVER);
    second.stop_reading();
    second.send_after(millis(20), *b"GET / HTTP/1.1\r\n\r\n");
    sim.advance(millis(100));
    second.resume_reading();
    sim.settle();
    second.expect(b"full\n");
    assert_eq!(second.closed(), Some(End::Fin));
}

/// Serves a request a byte, and stops after the one that it is told is the last.
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

#[test]
fn a_retired_connection_ends_though_it_asked_for_more() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, crowded(100), Polite);
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

#[test]
fn a_peer_may_vanish_while_a_shutdown_waits_for_it() {
    for way in 0..3 {
        let mut sim = world(1);
        let server = sim.serve(SERVER, Config::default(), Echo);
        let peers = idle(&mut sim, 10);
        let silent = sim.connect(SERVER);
        sim.settle();
        server.shutdown();
        sim.advance(millis(200));
        for peer in peers.iter().chain([&silent]) {
            match way {
                0 => peer.reset(),
                1 => peer.half_close(),
                _ => peer.close(),
            }
        }
        sim.settle();
        assert!(server.is_finished(), "none is left to wait for");
        let reason = if way == 0 { CloseReason::PeerReset } else { CloseReason::PeerEof };
        assert_eq!(server.stats().closed(reason), 11);
        sim.assert_clean();
    }
}
