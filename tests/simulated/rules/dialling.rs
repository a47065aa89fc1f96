//! Dials: look-ups of names, attempts side by side, full backlogs, and how each of them ends.

use std::net::SocketAddr;

use wheelhouse::Timeouts;
use wheelhouse::config::SocketOptions;
use wheelhouse::pool::PoolConfig;

use super::*;

with_each_personality! {
    abandoned_look_ups_delay_no_other,
    a_unix_dial_waits_for_room_in_the_backlog,
    a_unix_dial_that_finds_no_room_is_given_up_on_time,
    a_tcp_dial_that_the_system_refuses_fails_at_once,
    attempts_begin_a_stagger_apart_and_the_families_alternate,
    the_first_that_stands_wins_and_the_others_are_closed,
    a_loser_that_the_peer_has_accepted_is_reset,
    the_first_attempt_wins_if_it_stands_before_the_second,
    a_failure_lets_the_next_attempt_begin_at_once,
    without_a_stagger_one_address_follows_another,
    the_last_failure_is_the_reason,
    the_connect_deadline_bounds_all_attempts,
    each_attempt_has_its_own_deadline,
    an_attempt_that_stands_too_late_has_no_effect,
    no_end_of_a_dial_leaves_an_attempt,
    a_panic_during_a_dial_leaves_no_attempt,
    the_end_of_a_reactor_leaves_no_attempt,
    an_attempt_that_lacks_a_descriptor_waits_and_loses_no_address,
    one_place_suffices_for_attempts_side_by_side,
    attempts_beyond_the_places_are_few,
    a_dial_that_meets_itself_is_refused,
    an_answer_that_came_with_a_reset_is_read_behind_the_dial,
    a_dial_leaves_from_the_local_address_and_to_its_family_only,
    a_pool_dials_as_its_own_settings_say,
}

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

/// Addresses from which nothing comes back.
const DEAF: [&str; 6] = [
    "[2001:db8::1]:80",
    "[2001:db8::2]:80",
    "[2001:db8::3]:80",
    "203.0.113.1:80",
    "203.0.113.2:80",
    "203.0.113.3:80",
];

/// A server that dials "name", which has these addresses.
fn dial_name(sim: &mut Sim, config: Config, addresses: &[&str]) -> (Server<Echo>, ConnId) {
    sim.set_name("name", addresses.iter().map(|text| text.to_string()), millis(1));
    let server = sim.spawn("10.0.0.1", config, Echo, |_| {});
    let id = server.with(|_, cx| cx.connect("name:80").unwrap());
    (server, id)
}

/// The addresses that were dialled, in that order.
fn dialled(sim: &Sim) -> Vec<String> {
    let history = sim.history();
    let of = |line: &str| Some(line.split_once("dials ")?.1.trim().to_owned());
    history.lines().filter_map(of).collect()
}

fn state(server: &Server<Echo>, id: ConnId) -> Option<(State, Address)> {
    server.with(|_, cx| cx.conn(id).map(|conn| (conn.state(), conn.peer_addr().clone())))
}

fn is_open(server: &Server<Echo>, id: ConnId, at: &str) -> bool {
    let open = |(state, peer)| {
        matches!(state, State::Connected | State::Idle) && peer == at.parse().unwrap()
    };
    state(server, id).is_some_and(open)
}

/// Without the deadline for one attempt.
fn patient() -> Config {
    let mut config = Config::default();
    config.timeouts.connect_attempt = None;
    config
}

fn attempts_begin_a_stagger_apart_and_the_families_alternate() {
    let mut sim = world(1);
    let (server, id) = dial_name(&mut sim, patient(), &DEAF);
    // The look-up takes 1 ms, and the wheel comes up each 10 ms.
    for (until, attempts) in [(250, 1), (270, 2), (500, 2), (540, 3), (750, 3), (810, 4)] {
        let now = sim.now().as_nanos() / 1_000_000;
        sim.advance(millis(until - now));
        assert_eq!(server.descriptors(), attempts, "after {until} ms");
    }
    let order = ["[2001:db8::1]:80", "203.0.113.1:80", "[2001:db8::2]:80", "203.0.113.2:80"];
    assert_eq!(dialled(&sim), order);
    // There are never more than four.
    sim.advance(secs(8));
    assert_eq!(server.descriptors(), 4);
    sim.advance(secs(2));
    assert_eq!(server.expect_closed(CloseReason::Timeout(Timeout::Connect)).id, id);
    assert_eq!(dialled(&sim).len(), 4);
    sim.converge();
    sim.assert_clean();
}

fn the_first_that_stands_wins_and_the_others_are_closed() {
    let mut sim = world(1);
    let listener = sim.listen("203.0.113.1:80", 16);
    let (server, id) = dial_name(&mut sim, Config::default(), &DEAF);
    sim.advance(millis(200));
    assert!(listener.accept().is_none());
    sim.advance(millis(70));
    assert!(is_open(&server, id, "203.0.113.1:80"), "{:?}", state(&server, id));
    assert_eq!(server.descriptors(), 1);
    let peer = listener.accept().unwrap();
    peer.send(b"hello");
    sim.advance(secs(20));
    peer.expect(b"hello");
    assert_eq!(dialled(&sim), ["[2001:db8::1]:80", "203.0.113.1:80"]);
    peer.close();
    sim.converge();
    sim.assert_clean();
}

fn a_loser_that_the_peer_has_accepted_is_reset() {
    let mut sim = world(1);
    let slow = sim.listen(DEAF[0], 16);
    let fast = sim.listen(DEAF[3], 16);
    let link = Link { latency: millis(150), ..Link::LOOPBACK };
    sim.set_link_between("10.0.0.1", "2001:db8::1", link);
    let (server, id) = dial_name(&mut sim, Config::default(), &DEAF);
    sim.advance(millis(280));
    assert!(is_open(&server, id, DEAF[3]));
    let (loser, winner) = (slow.accept().unwrap(), fast.accept().unwrap());
    sim.advance(millis(200));
    assert_eq!((loser.closed(), winner.closed()), (Some(End::Reset), None));
    winner.send(b"x");
    sim.settle();
    winner.expect(b"x");
}

fn the_first_attempt_wins_if_it_stands_before_the_second() {
    let mut sim = world(1);
    let slow = sim.listen(DEAF[0], 16);
    let link = Link { latency: millis(200), ..Link::LOOPBACK };
    sim.set_link_between("10.0.0.1", "2001:db8::1", link);
    let (server, id) = dial_name(&mut sim, Config::default(), &DEAF);
    sim.advance(millis(300));
    assert_eq!(server.descriptors(), 2);
    sim.advance(millis(110));
    assert!(is_open(&server, id, DEAF[0]));
    assert_eq!(server.descriptors(), 1);
    assert!(slow.accept().is_some());
    // The alarm for the third attempt is gone, too.
    sim.advance(secs(1));
    assert_eq!(dialled(&sim).len(), 2);
}

fn a_failure_lets_the_next_attempt_begin_at_once() {
    let mut sim = world(1);
    let listener = sim.listen("203.0.113.7:80", 16);
    // Nothing listens there, and the machine says so.
    let refusing = format!("{}:80", sim.peers_ip());
    let addresses = [&refusing, &refusing, "203.0.113.7:80"];
    let (server, id) = dial_name(&mut sim, Config::default(), &addresses);
    sim.advance(millis(5));
    assert!(is_open(&server, id, "203.0.113.7:80"));
    let _peer = listener.accept().unwrap();

    // So does the failure of one while another one is not decided.
    let addresses = [DEAF[0], &refusing, DEAF[1], "203.0.113.7:80"];
    sim.set_name("other", addresses.map(str::to_owned), millis(1));
    let id = server.with(|_, cx| cx.connect("other:80").unwrap());
    sim.advance(millis(275));
    assert_eq!(server.descriptors(), 1 + 2, "the first and the third");
    sim.advance(millis(250));
    assert!(is_open(&server, id, "203.0.113.7:80"));
}

fn without_a_stagger_one_address_follows_another() {
    let mut sim = world(1);
    let mut config = Config::default();
    config.timeouts.connect_stagger = None;
    let (server, _) = dial_name(&mut sim, config, &DEAF);
    sim.advance(millis(4_950));
    assert_eq!(dialled(&sim), [DEAF[0]]);
    sim.advance(millis(100));
    assert_eq!(dialled(&sim), [DEAF[0], DEAF[1]]);
    assert_eq!(server.descriptors(), 1);
}

fn the_last_failure_is_the_reason() {
    let mut sim = world(1);
    let refusing = format!("{}:80", sim.peers_ip());
    let (server, _) = dial_name(&mut sim, Config::default(), &[&refusing, &refusing]);
    sim.advance(millis(10));
    let closed = &server.take_closed()[0];
    let CloseReason::ConnectFailed(error) = closed.reason else { panic!("{closed:?}") };
    assert_eq!(error.raw_os_error(), Some(errno::ECONNREFUSED));
    assert_eq!(closed.peer, refusing.parse().unwrap());

    // The refusal comes before the end of the time for the other address.
    sim.set_name("other", [DEAF[0], &refusing].map(str::to_owned), millis(1));
    server.with(|_, cx| cx.connect("other:80").unwrap());
    sim.advance(millis(4_900));
    assert_eq!(server.connections(), 1);
    sim.advance(millis(150));
    let closed = server.expect_closed(CloseReason::Timeout(Timeout::Connect));
    assert_eq!(closed.peer, DEAF[0].parse().unwrap());
}

fn the_connect_deadline_bounds_all_attempts() {
    let mut sim = world(1);
    let mut config = Config::default();
    config.timeouts.connect = Some(millis(600));
    let (server, _) = dial_name(&mut sim, config, &DEAF);
    sim.advance(millis(590));
    assert_eq!(server.descriptors(), 3);
    sim.advance(millis(30));
    let closed = server.expect_closed(CloseReason::Timeout(Timeout::Connect));
    assert!(closed.age >= millis(600) && closed.age < millis(620), "{closed:?}");
    assert_eq!(server.descriptors(), 0);
    sim.assert_clean();
}

fn each_attempt_has_its_own_deadline() {
    let mut sim = world(1);
    let mut config = Config::default();
    config.timeouts.connect_attempt = Some(millis(600));
    config.timeouts.connect = None;
    let (server, _) = dial_name(&mut sim, config, &DEAF[..3]);
    sim.advance(millis(590));
    assert_eq!(server.descriptors(), 3);
    // They began some 260 ms apart, and end so.
    for left in [2, 1, 0] {
        sim.advance(millis(35));
        assert_eq!(server.descriptors(), left);
        sim.advance(millis(225));
    }
    let closed = server.expect_closed(CloseReason::Timeout(Timeout::Connect));
    assert!(closed.age >= millis(1_101) && closed.age < millis(1_160), "{closed:?}");
}

fn an_attempt_that_stands_too_late_has_no_effect() {
    let mut sim = world(1);
    let listener = sim.listen(DEAF[0], 16);
    let link = Link { latency: millis(300), ..Link::LOOPBACK };
    sim.set_link_between("10.0.0.1", "2001:db8::1", link);
    let mut config = Config::default();
    config.timeouts.connect_attempt = Some(millis(500));
    let (server, _) = dial_name(&mut sim, config, &DEAF[..1]);
    sim.advance(millis(515));
    server.expect_closed(CloseReason::Timeout(Timeout::Connect));
    let peer = listener.accept().unwrap();
    sim.advance(secs(1));
    assert_eq!(peer.closed(), Some(End::Reset));
    assert_eq!(server.stats().closed_total(), 1);
    sim.assert_clean();
}

/// However a dial ends, its attempts end with it.
fn no_end_of_a_dial_leaves_an_attempt() {
    type EndDial = fn(&Server<Echo>, ConnId);
    type IsReason = fn(CloseReason) -> bool;
    let ends: [(EndDial, IsReason); 4] = [
        (
            |server, id| server.with(|_, cx| cx.conn(id).unwrap().close()),
            |reason| reason == CloseReason::HandlerClose,
        ),
        (
            |server, id| server.with(|_, cx| cx.conn(id).unwrap().abort()),
            |reason| reason == CloseReason::HandlerAbort,
        ),
        (|server, _| server.shutdown(), |reason| reason == CloseReason::Shutdown),
        (
            |server, _| {
                server.shutdown();
                server.shutdown();
            },
            |reason| matches!(reason, CloseReason::Shutdown | CloseReason::HardStop),
        ),
    ];
    for (end, is_reason) in ends {
        let mut sim = world(1);
        let (server, id) = dial_name(&mut sim, Config::default(), &DEAF);
        sim.advance(millis(600));
        assert_eq!(server.descriptors(), 3);
        end(&server, id);
        sim.advance(millis(10));
        let closed = server.take_closed();
        assert!(closed.len() == 1 && is_reason(closed[0].reason), "{closed:?}");
        assert_eq!(server.descriptors(), 0);
        sim.advance(secs(20));
        sim.assert_clean();
    }
}

/// Panics when its timer comes.
struct Trap;

impl Handler for Trap {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        conn.set_timer(conn.now() + millis(600));
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {}

    fn on_timer(&mut self, _: &mut Conn<'_>, (): &mut ()) {
        panic!("on purpose");
    }
}

fn a_panic_during_a_dial_leaves_no_attempt() {
    let mut sim = world(1);
    sim.allow_panics();
    sim.set_name("name", DEAF.map(str::to_owned), millis(1));
    let server = sim.spawn("10.0.0.1", Config::default(), Trap, |_| {});
    server.with(|_, cx| cx.connect("name:80").unwrap());
    sim.advance(millis(590));
    assert_eq!(server.descriptors(), 3);
    sim.advance(millis(30));
    server.expect_closed(CloseReason::HandlerPanic);
    assert_eq!(server.descriptors(), 0);
    sim.assert_clean();
}

fn the_end_of_a_reactor_leaves_no_attempt() {
    for drops in [false, true] {
        let mut sim = world(1);
        sim.set_name("name", DEAF.map(str::to_owned), millis(1));
        let host = sim.host("10.0.0.1");
        let mut reactor = Reactor::with_backend(Config::default(), host).unwrap();
        reactor.context().connect("name:80").unwrap();
        while reactor.context().now().as_nanos() < 600_000_000 {
            reactor.turn(&mut Echo, Some(millis(10))).unwrap();
            sim.advance(millis(10));
        }
        if drops {
            drop(reactor);
        } else {
            reactor.end(&mut Echo);
        }
        sim.settle();
        sim.assert_clean();
    }
}

fn an_attempt_that_lacks_a_descriptor_waits_and_loses_no_address() {
    let mut sim = world(1);
    let listener = sim.listen(DEAF[3], 16);
    let (server, id) = dial_name(&mut sim, Config::default(), &DEAF);
    // Those that every process has, and one.
    server.set_descriptors(6);
    sim.advance(secs(2));
    assert_eq!((server.descriptors(), dialled(&sim).len()), (1, 1));
    server.set_descriptors(100);
    sim.advance(millis(260));
    assert!(is_open(&server, id, DEAF[3]));
    assert!(listener.accept().is_some());
}

fn one_place_suffices_for_attempts_side_by_side() {
    let mut sim = world(1);
    let listener = sim.listen(DEAF[3], 16);
    let (server, id) = dial_name(&mut sim, with_places(1), &DEAF);
    sim.advance(millis(270));
    assert!(is_open(&server, id, DEAF[3]));
    assert!(listener.accept().is_some());
}

fn attempts_beyond_the_places_are_few() {
    const DIALS: usize = 40;
    let mut sim = world(1);
    sim.set_name("name", DEAF.map(str::to_owned), millis(1));
    let server = sim.spawn("10.0.0.1", with_places(DIALS), Echo, |_| {});
    for _ in 0..DIALS {
        server.with(|_, cx| cx.connect("name:80").unwrap());
    }
    for _ in 0..40 {
        sim.advance(millis(100));
        assert!(server.descriptors() <= DIALS + 8, "{}", server.descriptors());
    }
    assert_eq!(server.descriptors(), DIALS + 8);
    sim.converge();
    sim.assert_clean();
}

fn a_dial_that_meets_itself_is_refused() {
    let mut sim = world(1);
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
    // The port that the first dial of a machine gets.
    let own = SocketAddr::from(([10, 0, 0, 1], 49_153));
    let id = server.with(|_, cx| cx.connect(own).unwrap());
    sim.advance(millis(10));
    let closed = &server.take_closed()[0];
    let CloseReason::ConnectFailed(error) = closed.reason else { panic!("{closed:?}") };
    assert_eq!((closed.id, error.raw_os_error()), (id, Some(errno::ECONNREFUSED)));
    assert_eq!(server.descriptors(), 0);
    sim.assert_clean();
}

/// The peer accepts, and is gone before the dialler knows that its dial has succeeded.
fn an_answer_that_came_with_a_reset_is_read_behind_the_dial() {
    for (answer, ends) in [(true, true), (true, false), (false, false)] {
        let mut sim = world(1);
        sim.set_link(Link { latency: millis(10), ..Link::LOOPBACK });
        let listener = sim.listen(DEAF[3], 16);
        let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
        server.with(|_, cx| cx.connect(DEAF[3]).unwrap());
        sim.advance(millis(10));
        // The answer to its SYN is on its way.
        let peer = listener.accept().unwrap();
        if answer {
            peer.send(b"reply");
        }
        if ends {
            peer.half_close();
        }
        peer.reset();
        sim.advance(millis(10));
        let closed = &server.take_closed()[0];
        if answer {
            assert_eq!(closed.bytes_in, 5, "{closed:?}");
            let ended = if ends { CloseReason::PeerEof } else { CloseReason::PeerReset };
            assert!([ended, CloseReason::PeerReset].contains(&closed.reason), "{closed:?}");
        } else {
            let CloseReason::ConnectFailed(error) = closed.reason else { panic!("{closed:?}") };
            assert_eq!(error.raw_os_error(), Some(errno::ECONNRESET));
        }
        assert_eq!(server.descriptors(), 0);
        sim.assert_clean();
    }
}

fn a_dial_leaves_from_the_local_address_and_to_its_family_only() {
    let mut sim = world(1);
    let listener = sim.listen(DEAF[3], 16);
    let mut config = Config::default();
    config.socket.local = Some([10, 0, 0, 1].into());
    let (server, id) = dial_name(&mut sim, config, &DEAF);
    sim.advance(millis(10));
    assert!(is_open(&server, id, DEAF[3]));
    let _peer = listener.accept().unwrap();
    assert_eq!(dialled(&sim), [DEAF[3]]);
    server.with(|_, cx| cx.connect(DEAF[0]).unwrap());
    sim.settle();
    let reason = server.take_closed()[0].reason;
    assert!(matches!(reason, CloseReason::ConnectFailed(_)), "{reason:?}");

    // It is another machine's.
    let mut config = Config::default();
    config.socket.local = Some([10, 0, 0, 2].into());
    let server = sim.spawn("10.0.0.3", config, Echo, |_| {});
    server.with(|_, cx| cx.connect(DEAF[3]).unwrap());
    sim.settle();
    let CloseReason::ConnectFailed(error) = server.take_closed()[0].reason else { panic!() };
    assert_eq!(error.raw_os_error(), Some(errno::EADDRNOTAVAIL));
}

fn a_pool_dials_as_its_own_settings_say() {
    let mut sim = world(1);
    let listener = sim.listen(DEAF[3], 16);
    sim.set_name("name", DEAF.map(str::to_owned), millis(1));
    let server = sim.spawn("10.0.0.1", Config::default(), Echo, |_| {});
    let timeouts = Timeouts { connect_stagger: Some(millis(20)), ..Timeouts::default() };
    let socket = SocketOptions { local: Some([10, 0, 0, 1].into()), ..SocketOptions::default() };
    let base = PoolConfig { idle_min: 1, timeouts: Some(timeouts), ..PoolConfig::default() };
    let local = PoolConfig { socket: Some(socket), ..base.clone() };
    let mut peers = Vec::new();
    let mut begun = 0;
    for (config, addresses) in [(base, &[DEAF[0], DEAF[3]][..]), (local, &[DEAF[3]])] {
        let pool = server.with(|_, cx| cx.add_pool("name:80", &config).unwrap());
        sim.advance(millis(45));
        assert_eq!(server.with(|_, cx| cx.pool_stats(pool)).idle, 1);
        assert_eq!(dialled(&sim)[begun..], *addresses);
        begun = dialled(&sim).len();
        peers.extend(listener.accept());
    }
    assert_eq!((peers.len(), server.descriptors()), (2, 2));
}
