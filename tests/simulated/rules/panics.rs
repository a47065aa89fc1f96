//! Panics in callbacks and in what is dropped.

use super::*;

/// Panics where it is told to.
#[derive(Default)]
struct Bombs {
    health: bool,
    connected: bool,
    closed: Vec<CloseReason>,
}

#[derive(Default)]
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.0, "told to");
    }
}

impl Handler for Bombs {
    type Session = Bomb;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Bomb> {
        Some(Bomb(false))
    }

    fn on_connected(&mut self, _: &mut Conn<'_>, _: &mut Bomb) {
        assert!(!std::mem::take(&mut self.connected), "told to");
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, bomb: &mut Bomb, input: &mut BytesMut) {
        bomb.0 = input.starts_with(b"drop");
        conn.write(input);
        input.clear();
    }

    fn on_health_check(&mut self, conn: &mut Conn<'_>, _: &mut Bomb) {
        conn.write(b"secret");
        assert!(!self.health, "told to");
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, bomb: Bomb) {
        self.closed.push(closed.reason);
        drop(bomb);
    }
}

fn expect_echo(sim: &mut Sim) {
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.settle();
    peer.expect(b"x");
}

#[test]
fn a_panic_in_on_health_check_costs_one_connection() {
    let mut config = Config::default();
    config.timeouts.ping_after = Some(secs(10));
    let mut sim = world(1);
    sim.allow_panics();
    let server = sim.serve(SERVER, config, Bombs { health: true, ..Bombs::default() });
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.advance(secs(11));
    peer.expect(b"x");
    assert_eq!(peer.closed(), Some(End::Reset));
    assert_eq!(server.handler().closed, [CloseReason::HandlerPanic]);
    expect_echo(&mut sim);
}

#[test]
fn a_panic_in_on_connected_of_a_dial_costs_that_connection() {
    let mut sim = world(1);
    sim.allow_panics();
    let listener = sim.listen("10.0.0.2:80", 8);
    let server = sim.serve(SERVER, Config::default(), Bombs::default());
    server.with(|bombs, cx| {
        bombs.connected = true;
        cx.connect("10.0.0.2:80".parse::<Address>().unwrap()).unwrap();
    });
    sim.settle();
    let far = listener.accept().expect("it dialled");
    sim.settle();
    assert_eq!(far.closed(), Some(End::Reset));
    assert_eq!(server.handler().closed, [CloseReason::HandlerPanic]);
    expect_echo(&mut sim);
}

#[test]
fn a_session_that_panics_when_it_is_dropped_costs_no_other() {
    let mut sim = world(1);
    sim.allow_panics();
    let server = sim.serve(SERVER, Config::default(), Bombs::default());
    let bystander = sim.connect(SERVER);
    let peer = sim.connect(SERVER);
    peer.send(b"drop");
    sim.settle();
    peer.close();
    sim.settle();
    assert_eq!(server.stats().panics, 1);
    assert_eq!((server.connections(), server.descriptors()), (1, 2));
    bystander.send(b"x");
    sim.settle();
    bystander.expect(b"x");
}

#[test]
fn a_closure_that_panics_when_it_is_dropped_costs_no_connection() {
    let mut sim = world(1);
    sim.allow_panics();
    let server = sim.serve(SERVER, Config::default(), Bombs::default());
    let peer = sim.connect(SERVER);
    sim.settle();
    let id: ConnId = server.with(|_, cx| cx.ids()[0]);
    peer.close();
    sim.settle();
    let bomb = Bomb(true);
    server.handle().post_to(id, move |_, _, _| drop(bomb)).unwrap();
    sim.settle();
    expect_echo(&mut sim);
}
