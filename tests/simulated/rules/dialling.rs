//! Dials that wait for a name or for room in a backlog, and dials that fail.

use std::net::SocketAddr;

use super::*;

#[test]
fn abandoned_look_ups_delay_no_other() {
    let mut sim = world(1);
    let listener = sim.listen(SocketAddr::from((sim.peers_ip(), 80)), 16);
    sim.fail_name("deaf", None);
    sim.set_name("localhost", [SocketAddr::from((sim.peers_ip(), 0))], millis(1));
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
    let dial = |name: &str| {
        let target: Target = format!("{name}:80").parse().unwrap();
        server.with(|_, cx| cx.connect(target).unwrap())
    };
    for _ in 0..20 {
        dial("deaf");
    }
    sim.advance(Config::default().timeouts.connect.unwrap() + millis(20));
    assert_eq!(server.take_closed().len(), 20);
    dial("localhost");
    sim.advance(millis(100));
    assert!(listener.accept().is_some());
}

#[test]
fn a_unix_dial_waits_for_room_in_the_backlog() {
    let mut sim = world(1);
    let listener = sim.listen("unix:/run/peer", 1);
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
    let dial = || server.with(|_, cx| cx.connect(listener.address()).unwrap());
    dial();
    sim.settle();
    let second = dial();
    let state = || server.with(|_, cx| cx.conn(second).map(|conn| conn.state()));
    sim.advance(secs(4));
    assert_eq!(state(), Some(State::Connecting));
    assert!(listener.accept().is_some());
    // At most one pause later.
    sim.advance(millis(520));
    assert!(matches!(state(), Some(State::Connected | State::Idle)), "{:?}", state());
    assert!(listener.accept().is_some());
}

#[test]
fn a_unix_dial_that_finds_no_room_is_given_up_on_time() {
    let mut sim = world(1);
    let listener = sim.listen("unix:/run/peer", 1);
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
    let dial = || server.with(|_, cx| cx.connect(listener.address()).unwrap());
    dial();
    sim.settle();
    let second = dial();
    let attempt = Config::default().timeouts.connect_attempt.unwrap();
    sim.advance(attempt - millis(10));
    assert_eq!(server.connections(), 2);
    sim.advance(millis(30));
    let closed = server.expect_closed(CloseReason::Timeout(Timeout::Connect));
    assert_eq!(closed.id, second);
}

#[test]
fn a_tcp_dial_that_the_system_refuses_fails_at_once() {
    let mut sim = world(1);
    let listener = sim.listen(SocketAddr::from((sim.peers_ip(), 80)), 1);
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
    server.fail(Call::Connect, 0, errno::EAGAIN);
    server.with(|_, cx| cx.connect(listener.address()).unwrap());
    sim.settle();
    let reason = server.take_closed()[0].reason;
    assert!(matches!(reason, CloseReason::ConnectFailed(_)), "{reason:?}");
}
