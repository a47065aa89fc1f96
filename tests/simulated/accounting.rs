//! Memory is accounted for exactly: what is unread and queued counts while it is there, and what
//! many connections share counts once. After every turn the world compares the gauge with what the
//! records, the queues and the shared pieces hold.

use std::time::Duration;

use crate::scenarios::{millis, secs};
use bytes::{Bytes, BytesMut};
use wheelhouse::sim::{Link, Peer, Server, Sim};
use wheelhouse::{CloseReason, Closed, Config, Conn, ConnId, Context, Handler, Reactor, Shared};

/// Keeps the ids of its connections, and writes when they become idle.
#[derive(Default)]
struct Writer {
    ids: Vec<ConnId>,
    on_idle: Option<Bytes>,
    /// It writes to all others, dials, and panics.
    panics: bool,
    dialled: Option<ConnId>,
}

impl Handler for Writer {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.ids.push(conn.id());
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        if std::mem::take(&mut self.panics) {
            if let Some(mut other) = self.dialled.and_then(|id| conn.other(id)) {
                other.write(&[b'x'; 100_000]);
                assert!(other.is_congested());
            }
            panic!("as the test wants");
        }
    }

    fn on_idle(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        if let Some(bytes) = &self.on_idle {
            conn.write_bytes(bytes.clone());
        }
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, (): ()) {
        self.ids.retain(|id| *id != closed.id);
    }
}

fn serve(sim: &mut Sim, change: impl FnOnce(&mut Config)) -> Server<Writer> {
    let mut config = Config::default();
    change(&mut config);
    sim.serve("10.0.0.1:7", config, Writer::default())
}

fn crowd(sim: &mut Sim, server: &Server<Writer>, count: usize) -> Vec<Peer> {
    let peers: Vec<_> = (0..count).map(|_| sim.connect(server)).collect();
    sim.settle();
    for peer in &peers {
        peer.send(b"x");
    }
    sim.settle();
    assert_eq!(server.connections(), count);
    peers
}

fn broadcast(server: &Server<Writer>, write: impl Fn(&mut Conn<'_>)) {
    server.with(|writer, cx| {
        for id in &writer.ids {
            write(&mut cx.conn(*id).expect("it is open"));
        }
    });
}

#[test]
fn output_that_the_kernel_took_counts_no_more() {
    let mut sim = Sim::new(1);
    let mut config = Config::default();
    config.limits.buffered_max = 1 << 20;
    let on_idle = Some(Bytes::from(vec![b'x'; 32 << 10]));
    let writer = Writer { on_idle, ..Writer::default() };
    let server = sim.serve("10.0.0.1:7", config, writer);
    // Without their replies they hold nothing; with them all of it.
    let peers = crowd(&mut sim, &server, 100);
    assert_eq!(server.stats().buffered, 0);
    assert_eq!(server.stats().closed(CloseReason::BufferLimit), 0);
    for peer in &peers {
        assert_eq!(peer.take().len(), 32 << 10);
        // The second time nothing else has changed about it.
        peer.send(b"x");
    }
    sim.settle();
    assert_eq!(server.stats().buffered, 0);
}

#[test]
fn a_broadcast_of_few_bytes_sheds_no_connection() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.limits.buffered_max = 1 << 20);
    let peers = crowd(&mut sim, &server, 2_000);
    broadcast(&server, |conn| conn.write(b"hello"));
    let held = server.stats().buffered;
    assert!(held < 2_000 * 200, "{held} bytes for five to each");
    sim.settle();
    for peer in &peers {
        peer.expect(b"hello");
    }
    assert_eq!(server.stats().closed_total(), 0);
    assert_eq!(server.stats().buffered, 0);
}

#[test]
fn output_is_offered_to_the_kernel_before_connections_are_shed_for_it() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |config| config.limits.buffered_max = 1 << 20);
    let peers = crowd(&mut sim, &server, 500);
    broadcast(&server, |conn| conn.write(&[b'x'; 5_000]));
    assert!(server.stats().buffered > 1 << 20);
    sim.settle();
    assert_eq!(server.stats().closed_total(), 0);
    for peer in &peers {
        peer.expect(&[b'x'; 5_000]);
    }
    // What the kernel does not take is shed.
    for peer in &peers {
        peer.stop_reading();
    }
    broadcast(&server, |conn| conn.write(&[b'x'; 400_000]));
    sim.settle();
    let shed = server.stats().closed(CloseReason::BufferLimit);
    assert!(shed > 0, "the limit holds");
    assert!(server.stats().buffered <= 1 << 20);
}

#[test]
fn a_shared_piece_counts_once_for_all_its_queues() {
    let mut sim = Sim::new(1);
    sim.set_buffers(8_192, 8_192);
    let server = serve(&mut sim, |config| config.limits.buffered_max = 1 << 20);
    let peers = crowd(&mut sim, &server, 100);
    for peer in &peers {
        peer.stop_reading();
    }
    let shared = server.with(|_, cx| cx.share(vec![b'x'; 300_000]));
    assert_eq!(shared.len(), 300_000);
    assert_eq!(server.stats().buffered, 0, "it is in no queue");
    broadcast(&server, |conn| conn.write_shared(&shared));
    drop(shared);
    sim.advance(secs(1));
    let held = server.stats().buffered;
    assert!((300_000..350_000).contains(&held), "{held}");
    assert_eq!(server.stats().closed_total(), 0);
    for peer in &peers {
        peer.resume_reading();
    }
    sim.advance(secs(5));
    for peer in &peers {
        assert_eq!(peer.take().len(), 300_000);
    }
    assert_eq!(server.stats().buffered, 0);
}

#[test]
fn shedding_aborts_those_whose_end_frees_memory() {
    let mut sim = Sim::new(1);
    sim.set_buffers(8_192, 8_192);
    let server = serve(&mut sim, |config| config.limits.buffered_max = 2 << 20);
    let peers = crowd(&mut sim, &server, 10);
    for peer in &peers {
        peer.stop_reading();
    }
    let shared = server.with(|_, cx| cx.share(vec![b'x'; 1 << 20]));
    broadcast(&server, |conn| conn.write_shared(&shared));
    sim.settle();
    // One connection owns more than is left.
    server.with(|writer, cx| {
        cx.conn(writer.ids[3]).expect("it is open").write(&vec![b'y'; 3 << 20]);
    });
    sim.settle();
    assert_eq!(server.stats().closed_total(), 1);
    server.expect_closed(CloseReason::BufferLimit);
    // A shared piece over the limit goes with all that queue it.
    let large = server.with(|_, cx| cx.share(vec![b'z'; 2 << 20]));
    broadcast(&server, |conn| conn.write_shared(&large));
    sim.settle();
    assert!(server.stats().buffered <= 2 << 20);
}

#[test]
fn a_shared_piece_of_another_reactor_is_written_as_plain_bytes() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, |_| {});
    let other = sim.serve("10.0.0.2:7", Config::default(), Writer::default());
    let peers = crowd(&mut sim, &server, 2);
    peers.iter().for_each(Peer::stop_reading);
    let foreign = other.with(|_, cx| cx.share(vec![b'x'; 500_000]));
    broadcast(&server, |conn| conn.write_shared(&foreign));
    assert!(server.stats().buffered >= 1_000_000);
    assert_eq!(other.stats().buffered, 0);
    peers.iter().for_each(Peer::resume_reading);
    sim.settle();
    for peer in &peers {
        assert_eq!(peer.take().len(), 500_000);
    }
}

#[test]
fn output_that_a_panic_takes_back_leaves_no_congestion() {
    let mut sim = Sim::new(1);
    sim.allow_panics();
    let upstream = sim.listen("10.9.0.1:80", 1);
    // It is connected when its SYN is answered, which takes a while.
    sim.set_link(Link { latency: secs(1), ..Link::LOOPBACK });
    let server = serve(&mut sim, |_| {});
    let peer = sim.connect(&server);
    sim.advance(secs(5));
    let id = server.with(|_, cx| cx.connect("10.9.0.1:80".parse::<wheelhouse::Target>().unwrap()));
    sim.advance(millis(10));
    let id = id.expect("there is room");
    peer.send(b"!");
    server.with(|writer, _| (writer.dialled, writer.panics) = (Some(id), true));
    sim.advance(millis(1_500));
    assert_eq!(server.stats().panics, 1);
    server.with(|_, cx| {
        let conn = cx.conn(id).expect("it is being dialled");
        assert!(!conn.is_congested(), "nothing is queued");
        assert_eq!(conn.queued(), 0);
    });
    drop(upstream);
}

#[test]
fn a_reactor_and_what_it_gives_out_move_between_threads() {
    const fn sends<T: Send>() {}
    const fn shares<T: Sync>() {}
    sends::<Reactor<Writer>>();
    sends::<wheelhouse::Handle<Writer>>();
    shares::<wheelhouse::Handle<Writer>>();
    sends::<Shared>();
    shares::<Shared>();
}

/// Answers the first part of what it gets with much, leaves a little of it, and takes all of the next.
#[derive(Default)]
struct Leaves {
    calls: u32,
}

impl Handler for Leaves {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        self.calls += 1;
        if input.len() == 4_096 && self.calls == 2 {
            conn.write_bytes(vec![b'x'; 10_000]);
            input.truncate(10);
        } else {
            input.clear();
        }
    }
}

/// The world compares the sums after each turn.
#[test]
fn what_was_sent_while_input_was_left_is_accounted_for() {
    let mut sim = Sim::new(1);
    sim.set_buffers(1 << 20, 1 << 20);
    let mut config = Config::default();
    config.limits.input_max = 4_096;
    let server = sim.serve("10.0.0.1:7", config, Leaves::default());
    let peer = sim.connect(&server);
    peer.send(b"?");
    sim.advance(millis(100));
    peer.send(&[b'?'; 5_000]);
    sim.advance(millis(100));
    assert_eq!((server.handler().calls, server.stats().buffered), (3, 0));
}

/// Aborts with its input left, and takes its time over each end.
struct Leaver<F>(F);

impl<F: Fn(Duration) + 'static> Handler for Leaver<F> {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {
        conn.abort();
    }

    fn on_closed(&mut self, _: &mut Context<'_>, _: Closed, (): ()) {
        (self.0)(millis(1));
    }
}

#[test]
fn what_was_left_by_connections_that_end_counts_until_they_are_closed() {
    let mut sim = Sim::new(1);
    let server = sim.serve("10.0.0.1:7", Config::default(), Leaver(sim.stall()));
    let peers: Vec<_> = (0..60).map(|_| sim.connect(&server)).collect();
    sim.settle();
    peers.iter().for_each(|peer| peer.send(b"left"));
    sim.advance(secs(1));
    assert!(peers.iter().all(|peer| !peer.is_open()));
    assert_eq!(server.stats().buffered, 0);
}

/// Answers with much, and has a timer after that.
struct Answerer;

impl Handler for Answerer {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        conn.write(&[b'a'; 1_000_000]);
        conn.set_timer(conn.now() + secs(1));
    }
}

#[test]
fn output_may_have_been_queued_before_its_limit_was_lowered() {
    let mut sim = Sim::new(1);
    let server = sim.serve("10.0.0.1:7", Config::default(), Answerer);
    let peer = sim.connect(&server);
    peer.stop_reading();
    peer.send(b"?");
    sim.settle();
    server.with(|_, cx| cx.conn(cx.ids()[0]).unwrap().write(b"more"));
    server.ask("set limits.output_max 1KiB");
    sim.advance(secs(2));
    peer.resume_reading();
    sim.settle();
    assert_eq!(peer.take().len(), 1_000_004);
}

/// Takes its time when a connection becomes active.
struct Slow<F>(F);

impl<F: Fn(Duration) + 'static> Handler for Slow<F> {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
    }

    fn on_active(&mut self, _: &mut Conn<'_>, (): &mut ()) {
        (self.0)(millis(1));
    }
}

/// The world compares the sums after each turn, and the others take more than one.
#[test]
fn what_a_posted_closure_wrote_counts_while_others_come_first() {
    let mut sim = Sim::new(1);
    sim.set_buffers(4_096, 4_096);
    let server = sim.serve("10.0.0.1:7", Config::default(), Slow(sim.stall()));
    let peers: Vec<_> = (0..50).map(|_| sim.connect(&server)).collect();
    peers.iter().for_each(|peer| peer.send(b"x"));
    sim.settle();
    let mut ids = server.with(|_, cx| cx.ids());
    let last = ids.pop().unwrap();
    peers.iter().for_each(Peer::stop_reading);
    let handle = server.handle();
    let reach_others = move |_: &mut _, cx: &mut Context<'_>| {
        ids.iter().for_each(|id| cx.conn(*id).unwrap().begin_request());
    };
    handle.post(reach_others).unwrap();
    handle.post_to(last, |_, conn, _| conn.write(&[b'x'; 40_000])).unwrap();
    sim.settle();
    assert!(server.stats().buffered > 20_000);
    peers.iter().for_each(Peer::resume_reading);
    sim.advance(secs(1));
    assert_eq!(server.stats().buffered, 0);
}
