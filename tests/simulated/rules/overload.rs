//! What counts as pressure, and which connections it costs their place.

use super::*;

with_each_personality! {
    output_is_counted_when_it_is_queued,
    full_buffers_count_as_pressure,
    a_setting_says_from_which_pressure_on_idle_times_shrink,
    a_loop_that_lags_keeps_no_connection_alive,
    idle_connections_are_evicted_before_the_table_is_full,
    a_connection_without_an_idle_deadline_protects_no_other,
    no_connection_is_evicted_if_new_ones_wait_and_idle_times_do_not_shrink,
    a_broadcast_is_bounded_by_buffered_max,
    exempt_connections_are_kept_alive_in_a_crowd,
    output_of_on_closed_and_on_shutdown_is_bounded_by_buffered_max,
}

/// Decides about keep-alive for a `k`; a `b` makes it hold much output.
#[derive(Default)]
struct Asked {
    answers: Vec<bool>,
    /// How long each answer takes.
    stall: Option<Box<dyn Fn(Duration)>>,
}

impl Handler for Asked {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        match input.first() {
            Some(b'b') => conn.write(&[b'b'; 920_000]),
            Some(b's') => {
                if let Some(stall) = &self.stall {
                    stall(millis(30));
                }
                conn.write(b"ok");
            }
            Some(b'k') => {
                self.answers.push(conn.decide_keep_alive(0).stays());
                conn.write(b"ok");
            }
            _ => conn.write(b"ok"),
        }
        input.clear();
    }
}

fn output_is_counted_when_it_is_queued() {
    let mut sim = world(1);
    sim.set_buffers(4_096, 4_096);
    let server = sim.serve(SERVER, Config::default(), Asked::default());
    let holder = sim.connect(SERVER);
    holder.stop_reading();
    holder.send(b"b");
    sim.settle();
    let queued = server.with(|_, cx| {
        let id = cx.ids()[0];
        cx.conn(id).expect("it is open").queued()
    });
    assert!(queued > 900_000);
    assert!(server.stats().buffered >= queued as u64, "{} of {queued}", server.stats().buffered);
}

fn full_buffers_count_as_pressure() {
    let mut config = Config::default();
    config.limits.buffered_max = 1_000_000;
    config.timeouts.idle = Some(secs(30));
    let mut sim = world(1);
    sim.set_buffers(4_096, 4_096);
    let server = sim.serve(SERVER, config, Asked::default());
    let [idler, asker, holder] = [(); 3].map(|()| sim.connect(SERVER));
    for (peer, word) in [(&idler, b"x"), (&asker, b"k")] {
        peer.send(word);
        sim.settle();
        peer.expect(b"ok");
    }
    holder.stop_reading();
    holder.send(b"b");
    // At 91 % they may stay for some 8 of their 30 s, and one that asks may not stay.
    sim.advance(secs(12));
    assert_eq!(idler.closed(), Some(End::Fin));
    assert!(evicted(&server) >= 1);
    let asker = sim.connect(SERVER);
    asker.send(b"k");
    sim.settle();
    assert_eq!(server.handler().answers, [true, false]);
}

fn a_setting_says_from_which_pressure_on_idle_times_shrink() {
    // At 91 % of what may be buffered.
    for (from, at_limit, stays) in [
        (Some(80), AtLimit::Pause, false),
        (Some(50), AtLimit::EvictIdle, false),
        (Some(92), AtLimit::EvictIdle, true),
        (None, AtLimit::EvictIdle, true),
    ] {
        let mut config = Config::default();
        config.limits.buffered_max = 1_000_000;
        config.limits.shrink_idle_from = from;
        config.limits.at_limit = at_limit;
        config.timeouts.idle = Some(secs(30));
        let mut sim = world(1);
        sim.set_buffers(4_096, 4_096);
        let server = sim.serve(SERVER, config, Asked::default());
        let [idler, holder] = [(); 2].map(|()| sim.connect(SERVER));
        idler.send(b"x");
        sim.settle();
        idler.expect(b"ok");
        holder.stop_reading();
        holder.send(b"b");
        sim.advance(secs(12));
        assert_eq!(idler.closed().is_none(), stays, "{from:?}");
        assert_eq!(evicted(&server), u64::from(!stays));
    }
}

fn a_loop_that_lags_keeps_no_connection_alive() {
    let mut config = Config::default();
    config.limits.lag_max = Some(millis(20));
    let mut sim = world(1);
    let asked = Asked { stall: Some(Box::new(sim.stall())), ..Asked::default() };
    let server = sim.serve(SERVER, config, asked);
    let [before, under, after] = [(); 3].map(|()| sim.connect(SERVER));
    before.send(b"k");
    // Whenever one of these has been served, the next one comes.
    let busy: Vec<_> = (0..100)
        .map(|at| {
            let peer = sim.connect(SERVER);
            peer.send_after(millis(30 * at), *b"s");
            peer
        })
        .collect();
    under.send_after(millis(2_900), *b"k");
    sim.advance(millis(3_100));
    assert!(server.stats().stalls > 90);
    assert_eq!(server.handler().answers, [true, false]);
    // Idle connections are evicted, whatever their age.
    assert!(evicted(&server) > 0);
    drop(busy);
    // The pressure passes.
    for _ in 0..100 {
        after.send(b"x");
        sim.advance(millis(10));
    }
    after.send(b"k");
    sim.settle();
    assert_eq!(server.handler().answers, [true, false, true]);
}

fn idle_connections_are_evicted_before_the_table_is_full() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, with_places(100), Echo);
    let peers: Vec<_> = (0..96).map(|_| sim.connect(SERVER)).collect();
    for peer in &peers {
        peer.send(b"x");
    }
    sim.settle();
    assert_eq!(evicted(&server), 0);
    sim.advance(millis(150));
    let gone = evicted(&server);
    assert!((1..=12).contains(&gone), "an eighth of them: {gone}");
    assert!(server.connections() < 95);
}

fn a_connection_without_an_idle_deadline_protects_no_other() {
    let mut sim = world(1);
    let server = sim.spawn("10.0.0.1", with_places(100), Echo, |reactor| {
        let mut listen = ListenConfig::default();
        let mut timeouts = Config::default().timeouts;
        timeouts.idle = None;
        listen.timeouts = Some(timeouts);
        reactor.listen_with("10.0.0.1:8", listen).unwrap();
        reactor.listen(SERVER).unwrap();
    });
    let patient = sim.connect("10.0.0.1:8");
    patient.send(b"x");
    sim.settle();
    let peers: Vec<_> = (0..91).map(|_| sim.connect(SERVER)).collect();
    for peer in &peers {
        peer.send(b"x");
    }
    // At 92 % they may stay for some 16 of their 75 s.
    sim.advance(secs(40));
    assert!(evicted(&server) > 0, "of {} connections", server.connections());
    assert!(patient.is_open());
}

fn no_connection_is_evicted_if_new_ones_wait_and_idle_times_do_not_shrink() {
    let mut config = with_places(100);
    config.limits.at_limit = AtLimit::Pause;
    config.limits.shrink_idle_from = None;
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Echo);
    let _peers = idle(&mut sim, 97);
    sim.advance(secs(5));
    assert_eq!(evicted(&server), 0);
}

/// Writes to all connections.
struct Crier;

impl Handler for Crier {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        for id in conn.cx().ids() {
            if let Some(mut other) = conn.other(id) {
                other.write(&[b'x'; 1 << 20]);
            }
        }
        input.clear();
    }
}

fn a_broadcast_is_bounded_by_buffered_max() {
    let mut config = with_places(50);
    config.limits.buffered_max = 4 << 20;
    config.limits.output_max = 1 << 20;
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Crier);
    let peers: Vec<_> = (0..50).map(|_| sim.connect_with_window(SERVER, 4_096)).collect();
    for peer in &peers {
        peer.stop_reading();
    }
    sim.settle();
    peers[0].send(b"!");
    sim.settle();
    let stats = server.stats();
    assert!(stats.closed(CloseReason::BufferLimit) >= 40, "{stats}");
    assert!(stats.buffered <= 4 << 20);
}

fn exempt_connections_are_kept_alive_in_a_crowd() {
    struct Asked(Vec<bool>);
    impl Handler for Asked {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }
        fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
            self.0.push(conn.decide_keep_alive(0).stays());
            input.clear();
        }
    }
    let mut sim = world(1);
    let server = sim.spawn("10.0.0.1", with_places(100), Asked(Vec::new()), |reactor| {
        reactor.listen(SERVER).unwrap();
        let listen = ListenConfig { exempt: true, ..ListenConfig::default() };
        reactor.listen_with("10.0.0.1:9090", listen).unwrap();
    });
    let _crowd: Vec<_> = (0..92).map(|_| sim.connect(SERVER)).collect();
    sim.settle();
    let exempt_peer = sim.connect("10.0.0.1:9090");
    exempt_peer.send(b"x");
    sim.settle();
    assert_eq!(server.handler().0, [true]);
}

/// Writes to all connections at a shutdown, and whenever one ends.
struct Parting;

impl Parting {
    fn say(cx: &mut Context<'_>) {
        for id in cx.ids() {
            if let Some(mut conn) = cx.conn(id) {
                conn.write(&[b'x'; 100_000]);
            }
        }
    }
}

impl Handler for Parting {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        input.clear();
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, _: Closed, _: ()) {
        Self::say(cx);
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        Self::say(cx);
    }
}

fn output_of_on_closed_and_on_shutdown_is_bounded_by_buffered_max() {
    for stops in [false, true] {
        let mut config = Config::default();
        config.limits.buffered_max = 350_000;
        let mut sim = world(1);
        // What the kernel takes is not shed.
        sim.set_buffers(4_096, 4_096);
        let server = sim.serve(SERVER, config, Parting);
        let peers: Vec<_> = (0..6)
            .map(|_| {
                let peer = sim.connect_with_window(SERVER, 8_192);
                peer.stop_reading();
                peer
            })
            .collect();
        sim.settle();
        // The world checks the bound after every turn.
        if stops {
            server.shutdown();
        } else {
            peers[0].reset();
        }
        sim.advance(millis(1));
        assert!(server.stats().closed(CloseReason::BufferLimit) > 0);
        sim.advance(secs(100));
    }
}
