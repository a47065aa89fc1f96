//! Listeners that fail, block, or share a server with others.

use super::*;

with_each_personality! {
    on_listener_failed_names_the_listener,
    a_listener_that_cannot_be_registered_again_is_tried_again,
    listeners_take_turns,
    a_listener_that_blocks_for_a_moment_delays_and_does_not_stop_the_loop,
    a_connection_that_comes_as_an_accept_stops_waiting_is_accepted,
}

fn on_listener_failed_names_the_listener() {
    struct Deaf(Vec<(ListenerId, Option<i32>)>);
    impl Handler for Deaf {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }
        fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
        fn on_listener_failed(
            &mut self,
            _: &mut Context<'_>,
            listener: ListenerId,
            error: &std::io::Error,
        ) {
            self.0.push((listener, error.raw_os_error()));
        }
    }
    let mut sim = world(1);
    let mut second = None;
    let server = sim.spawn("10.0.0.1", Config::default(), Deaf(Vec::new()), |reactor| {
        reactor.listen("10.0.0.1:8").unwrap();
        second = Some(reactor.listen(SERVER).unwrap());
    });
    sim.settle();
    server.fail(Call::Accept, 0, errno::EINVAL);
    let _peer = sim.connect(SERVER);
    sim.settle();
    assert_eq!(server.handler().0, [(second.unwrap(), Some(errno::EINVAL))]);
}

fn a_listener_that_cannot_be_registered_again_is_tried_again() {
    let mut sim = world(1);
    let server = serve_echo(&mut sim);
    sim.settle();
    server.fail(Call::Accept, 0, errno::EMFILE);
    server.fail(Call::Reregister, 0, errno::ENOMEM);
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.advance(millis(150));
    assert_eq!(server.stats().accept_pauses, 2);
    sim.advance(secs(1));
    peer.expect(b"x");
}

fn listeners_take_turns() {
    let mut config = Config::default();
    config.limits.accept_rate = Some(Rate::new(1, millis(100)));
    let mut sim = world(1);
    let _server = sim.spawn("10.0.0.1", config, Echo, |reactor| {
        for port in [7, 8, 9] {
            reactor.listen(format!("10.0.0.1:{port}")).unwrap();
        }
    });
    let peers: Vec<Vec<_>> = ["10.0.0.1:7", "10.0.0.1:8", "10.0.0.1:9"]
        .map(|at| (0..20).map(|_| sim.connect(at)).collect())
        .into();
    peers.iter().flatten().for_each(|peer| peer.send(b"x"));
    sim.advance(millis(1_200));
    for peers in peers {
        let served = peers.iter().filter(|peer| peer.take() == b"x").count();
        assert!((3..=5).contains(&served), "{served}");
    }
}

fn a_listener_that_blocks_for_a_moment_delays_and_does_not_stop_the_loop() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, hasty(), Echo);
    sim.set_faults(Faults { blocking_accept: 1_000, ..Faults::NONE });
    let start = sim.now();
    let peers = idle(&mut sim, 20);
    let took = sim.now() - start;
    // Each client is given 5 ms, and costs at least one accept that waits.
    assert!(took >= 20 * millis(6) && took < 20 * millis(20), "{took:?}");
    sim.advance(secs(1) + millis(20));
    assert!(peers.iter().all(|peer| peer.closed() == Some(End::Fin)));
    assert_eq!(server.take_closed().len(), 20);
}

/// An accept waits for a whole number of milliseconds, and the second of each pair comes one after
/// the first.
fn a_connection_that_comes_as_an_accept_stops_waiting_is_accepted() {
    let mut sim = world(1);
    let _server = serve_echo(&mut sim);
    sim.set_link(Link { latency: millis(10), ..Link::LOOPBACK });
    sim.set_faults(Faults { blocking_accept: 1_000, ..Faults::NONE });
    for _ in 0..20 {
        let pair = [0, 1].map(|_| {
            let peer = sim.connect(SERVER);
            peer.send(b"hi");
            sim.advance(millis(1));
            peer
        });
        sim.advance(millis(50));
        pair.iter().for_each(|peer| peer.expect(b"hi"));
    }
}
