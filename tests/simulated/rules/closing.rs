//! How connections end: what remains of them, and what their peers see.

use super::*;

with_each_personality! {
    a_flood_after_our_fin_is_read_a_part_at_a_time,
    no_fin_follows_what_was_dropped,
    a_peer_sees_an_idle_end_although_the_descriptor_is_duplicated,
    a_peer_sees_its_eviction_although_the_descriptor_is_duplicated,
    an_idle_peer_sees_a_shutdown_although_the_descriptor_is_duplicated,
    a_peer_that_ends_first_costs_no_shutdown,
    an_event_of_a_connection_that_is_gone_is_counted,
    an_abort_comes_before_a_deadline_of_the_same_turn,
    dropped_output_comes_before_a_deadline_of_the_same_turn,
}

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

/// Writes more than a connection may hold, and a FIN after it.
struct Flooding;

impl Handler for Flooding {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write_bytes(vec![b'f'; 4 << 20]);
        conn.shutdown_write();
        input.clear();
    }
}

fn no_fin_follows_what_was_dropped() {
    let mut config = Config::default();
    config.limits.buffered_max = 1 << 20;
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Flooding);
    let peer = sim.connect_with_window(SERVER, 8_192);
    peer.stop_reading();
    peer.send(b"f");
    sim.settle();
    server.expect_closed(CloseReason::BufferLimit);
    peer.resume_reading();
    sim.settle();
    assert_eq!(peer.closed(), Some(End::Reset));
}

fn a_peer_sees_an_idle_end_although_the_descriptor_is_duplicated() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, hasty(), Echo);
    server.duplicate_descriptors();
    let peers = idle(&mut sim, 1);
    sim.advance(secs(2));
    server.expect_closed(CloseReason::Timeout(Timeout::Idle));
    assert_eq!(peers[0].closed(), Some(End::Fin));
}

fn a_peer_sees_its_eviction_although_the_descriptor_is_duplicated() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, with_places(4), Echo);
    server.duplicate_descriptors();
    let peers = idle(&mut sim, 4);
    let _newcomer = sim.connect(SERVER);
    sim.settle();
    server.expect_closed(CloseReason::Evicted);
    assert_eq!(peers[0].closed(), Some(End::Fin));
}

fn an_idle_peer_sees_a_shutdown_although_the_descriptor_is_duplicated() {
    let mut sim = world(1);
    let config = Config { shutdown_spread: None, ..Config::default() };
    let server = sim.serve(SERVER, config, Echo);
    server.duplicate_descriptors();
    let peers = idle(&mut sim, 1);
    server.shutdown();
    sim.advance(secs(10));
    assert!(server.is_finished());
    assert_eq!(peers[0].closed(), Some(End::Fin));
}

/// Whether an idle end costs no call but the close where the peer has ended the connection.
fn a_peer_that_ends_first_costs_no_shutdown() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    // It would fail if it were called, and be spent.
    server.fail(Call::ShutdownWrite, 0, errno::ENOTCONN);
    for peer in idle(&mut sim, 3) {
        peer.close();
        sim.settle();
        server.expect_closed(CloseReason::PeerEof);
    }
    assert_eq!(sim.failures_left(), 1);
}

fn an_event_of_a_connection_that_is_gone_is_counted() {
    let mut sim = world(1);
    let mut faults = Faults::NONE;
    faults.spurious_event = 1_000;
    let server = serve_echo(&mut sim);
    for _ in 0..20 {
        let peer = sim.connect(SERVER);
        peer.send(b"x");
        sim.settle();
        peer.close();
        sim.settle();
    }
    sim.set_faults(faults);
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.advance(secs(1));
    peer.expect(b"x");
    assert!(server.stats().stale_events > 0);
}

/// Owes its first client all replies, until a second one says what is to become of it.
#[derive(Default)]
struct Judge {
    first: Option<ConnId>,
}

impl Handler for Judge {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        let Some(mut first) = self.first.and_then(|first| conn.other(first)) else {
            input.clear();
            conn.begin_request();
            self.first = Some(conn.id());
            return;
        };
        match input.split()[0] {
            b'a' => first.abort(),
            _ => (0..3).for_each(|_| first.write(&[b'x'; 100_000])),
        }
    }
}

/// How the first client ends whose reply is late in the turn in which the second one says `word`.
fn end_of_late(word: &[u8]) -> (CloseReason, Option<End>) {
    let mut config = Config::default();
    config.timeouts.response = Some(secs(1));
    config.limits.output_max = 100_000;
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Judge::default());
    let first = sim.connect(SERVER);
    first.send(b"owed");
    sim.settle();
    let second = sim.connect(SERVER);
    second.send_after(secs(1), word);
    sim.advance(secs(2));
    (server.take_closed()[0].reason, first.closed())
}

fn an_abort_comes_before_a_deadline_of_the_same_turn() {
    assert_eq!(end_of_late(b"a"), (CloseReason::HandlerAbort, Some(End::Reset)));
}

fn dropped_output_comes_before_a_deadline_of_the_same_turn() {
    assert_eq!(end_of_late(b"w"), (CloseReason::OutputLimit, Some(End::Reset)));
}
