//! Backpressure, settings, events.

use super::*;

/// Pauses and is congested at once.
#[test]
fn a_pause_outlasts_congestion() {
    struct Both {
        data: u32,
    }
    impl Handler for Both {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }
        fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
            self.data += 1;
            input.clear();
            if self.data == 1 {
                conn.write_bytes(vec![b'x'; 1 << 20]);
                conn.pause_reading();
                conn.set_timer(conn.now() + secs(10));
            }
        }
        fn on_timer(&mut self, conn: &mut Conn<'_>, _: &mut ()) {
            conn.resume_reading();
        }
    }
    let mut sim = world(1);
    sim.set_buffers(8_192, 8_192);
    let server = sim.serve(SERVER, Config::default(), Both { data: 0 });
    let peer = sim.connect(SERVER);
    peer.send(b"a");
    sim.settle();
    peer.send(b"b");
    sim.advance(secs(5));
    assert_eq!(peer.take().len(), 1 << 20);
    assert_eq!(server.handler().data, 1, "it has drained, and is paused all the same");
    sim.advance(secs(6));
    assert_eq!(server.handler().data, 2);
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
        assert!(server.is_finished(), "nobody is left to wait for");
        let reason = if way == 0 { CloseReason::PeerReset } else { CloseReason::PeerEof };
        assert_eq!(server.stats().closed(reason), 11);
        sim.assert_clean();
    }
}

#[test]
fn settings_out_of_range_are_refused_each_by_its_name() {
    type Spoil = fn(&mut Config);
    let spoil: [(&str, Spoil); 15] = [
        ("limits.buffered_max", |c| c.limits.buffered_max = 0),
        ("limits.input_max", |c| c.limits.input_max = (1 << 30) + 1),
        ("limits.lag_max", |c| c.limits.lag_max = Some(Duration::ZERO)),
        ("limits.at_limit", |c| c.limits.at_limit = AtLimit::Reject(vec![b'x'; 257].into())),
        ("limits.clients.connections", |c| c.limits.clients.connections = Some(0)),
        ("limits.clients.prefix_v4", |c| c.limits.clients.prefix_v4 = 33),
        ("limits.clients.prefix_v6", |c| c.limits.clients.prefix_v6 = 129),
        ("stall_report", |c| c.stall_report = Some(Duration::ZERO)),
        ("shutdown_spread", |c| c.shutdown_spread = Some(Duration::ZERO)),
        ("timeouts.request_rate", |c| c.timeouts.request_rate = Some(0)),
        ("timeouts.ping", |c| {
            c.timeouts.ping_after = Some(secs(1));
            c.timeouts.ping = None;
        }),
        ("socket.user_timeout", |c| c.socket.user_timeout = Some(Duration::ZERO)),
        ("socket.keepalive", |c| {
            if let Some(keepalive) = &mut c.socket.keepalive {
                keepalive.idle = millis(999);
            }
        }),
        ("socket.keepalive", |c| {
            if let Some(keepalive) = &mut c.socket.keepalive {
                keepalive.retries = 0;
            }
        }),
        ("limits.max_connections", |c| c.limits.max_connections = Some(0)),
    ];
    for (setting, spoil) in spoil {
        let mut config = Config::default();
        spoil(&mut config);
        let refused = wheelhouse::Reactor::<Echo>::new(config);
        assert!(
            matches!(&refused, Err(wheelhouse::Error::Config(error)) if error.setting() == setting),
            "{setting}: {refused:?}"
        );
    }
    let mut config = Config::default();
    config.limits.at_limit = AtLimit::Reject(vec![b'x'; 256].into());
    config.limits.max_connections = Some(1);
    wheelhouse::Reactor::<Echo>::new(config).unwrap();
}

#[test]
fn an_event_of_a_connection_that_is_gone_is_counted() {
    let mut sim = world(1);
    let mut faults = wheelhouse::sim::Faults::NONE;
    faults.spurious_event = 1_000;
    let server = sim.serve(SERVER, Config::default(), Echo);
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
