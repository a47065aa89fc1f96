//! Where a server listens on this system, and how it lives inside another loop.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use std::{fs, io};

use wheelhouse::{Address, CloseReason, Config, Error, ListenConfig, Origin, Reactor, Timeout};

use crate::harness::{
    Fixture, Os, RecordingHandler, World, few_places, millis, secs, temporary_path,
};

fn fixture(world: &mut Os) -> Fixture<'_, Os> {
    Fixture::new(world, Config::default(), RecordingHandler::echo())
}

/// Whether a dial to `address` is served.
fn serves(fixture: &mut Fixture<'_, Os>, address: &Address) {
    let usual = std::mem::replace(&mut fixture.address, address.clone());
    fixture.expect_service();
    fixture.address = usual;
}

#[test]
fn an_inherited_listener_is_accepted_from() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::from(listener.local_addr().unwrap());
    // A client dialled before the server was up.
    let mut early = TcpStream::connect(address.ip().unwrap()).unwrap();
    early.write_all(b"early").unwrap();
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world);
    let adopted = fixture.reactor.adopt(OwnedFd::from(listener), ListenConfig::default()).unwrap();
    assert_eq!(fixture.reactor.local_addr(adopted), &address);
    fixture.until("the early one", |fixture| fixture.handler.ids.len() == 1);
    assert_eq!(fixture.with(0, |conn| conn.origin()), Origin::Accepted(adopted));
    fixture.saw(0, crate::harness::What::Idle);
    let mut echo = [0; 5];
    early.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"early");
    serves(&mut fixture, &address);
}

#[test]
fn a_shutdown_leaves_an_inherited_listener_to_others() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let shared = listener.try_clone().unwrap();
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world);
    fixture.reactor.adopt(OwnedFd::from(listener), ListenConfig::default()).unwrap();
    fixture.turn();
    fixture.reactor.handle().shutdown();
    fixture.until("the end", |fixture| fixture.reactor.is_finished());
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"x").unwrap();
    shared.set_nonblocking(false).unwrap();
    let (mut server, _) = shared.accept().unwrap();
    server.set_nonblocking(false).unwrap();
    let mut byte = [0];
    server.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

#[test]
fn an_inherited_unix_listener_keeps_its_file() {
    let path = temporary_path();
    let listener = UnixListener::bind(&path).unwrap();
    let mut world = Os::unix();
    let mut fixture = fixture(&mut world);
    fixture.reactor.adopt(OwnedFd::from(listener), ListenConfig::default()).unwrap();
    serves(&mut fixture, &Address::Unix(path.clone()));
    drop(fixture);
    fs::remove_file(path).unwrap();
}

#[test]
fn a_descriptor_that_does_not_listen_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (pipe, _other) = UnixStream::pair().unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world);
    for fd in [OwnedFd::from(stream), OwnedFd::from(pipe), OwnedFd::from(file)] {
        let refused = fixture.reactor.adopt(fd, ListenConfig::default());
        assert!(matches!(refused, Err(Error::Bind { .. })), "{refused:?}");
    }
    fixture.expect_service();
}

#[test]
fn the_other_internet_is_served_too() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world);
    match fixture.reactor.listen("[::1]:0") {
        Ok(listener) => {
            let address = fixture.reactor.local_addr(listener).clone();
            assert!(address.ip().unwrap().is_ipv6());
            serves(&mut fixture, &address);
        }
        // Not every machine has it.
        Err(Error::Bind { source, .. }) => {
            assert_eq!(source.kind(), io::ErrorKind::AddrNotAvailable);
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_connection_knows_both_of_its_ends() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world);
    let everywhere = fixture.reactor.listen("0.0.0.0:0").unwrap();
    let port = fixture.reactor.local_addr(everywhere).ip().unwrap().port();
    let here = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let client = TcpStream::connect(here.ip().unwrap()).unwrap();
    fixture.until("a connection", |fixture| !fixture.handler.ids.is_empty());
    let peer = Address::from(client.local_addr().unwrap());
    let ends = fixture.with(0, |conn| (conn.local_addr().cloned(), conn.peer_addr().clone()));
    assert_eq!(ends, (Some(here), peer));
}

#[test]
fn each_listener_has_its_own_timeouts() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world);
    let mut hasty = ListenConfig::default();
    let mut timeouts = Config::default().timeouts;
    timeouts.first_byte = Some(millis(80));
    hasty.timeouts = Some(timeouts);
    let listener = fixture.reactor.listen_with(fixture.world.address(), hasty).unwrap();
    let address = fixture.reactor.local_addr(listener).clone();
    let (patient, _) = fixture.enter();
    let usual = std::mem::replace(&mut fixture.address, address);
    let (peer, _) = fixture.enter();
    fixture.expect_eof(peer);
    let closed = fixture.expect_timeout(Timeout::FirstByte);
    assert_eq!(closed.origin, Origin::Accepted(listener));
    fixture.address = usual;
    fixture.send(patient, b"still here");
    fixture.expect(patient, b"still here");
    assert_ne!(fixture.listener, listener);
}

#[test]
fn an_address_in_use_is_refused_by_name() {
    let mut world = Os::tcp();
    let mut fixture = fixture(&mut world);
    let address = fixture.address.clone();
    let Err(Error::Bind { address: name, source }) = fixture.reactor.listen(address.clone()) else {
        panic!("it is taken");
    };
    assert_eq!((name, source.kind()), (address.to_string(), io::ErrorKind::AddrInUse));
    fixture.expect_service();
}

#[test]
fn a_socket_file_without_a_listener_is_replaced() {
    let path = temporary_path();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let mut world = Os::unix();
    let mut fixture = fixture(&mut world);
    let address = Address::Unix(path.clone());
    let listener = fixture.reactor.listen(address.clone()).unwrap();
    assert_eq!(fixture.reactor.local_addr(listener), &address);
    serves(&mut fixture, &address);
    drop(fixture);
    assert!(!path.exists());
}

#[test]
fn a_socket_file_is_removed_at_the_end() {
    let mut world = Os::unix();
    let mut fixture = fixture(&mut world);
    let path = fixture.address.path().unwrap().to_owned();
    assert!(path.exists());
    fixture.reactor.handle().shutdown();
    fixture.until("the end", |fixture| fixture.reactor.is_finished());
    assert!(!path.exists());
}

#[test]
fn a_socket_file_that_is_another_programs_by_now_is_left() {
    let mut world = Os::unix();
    let fixture = fixture(&mut world);
    let path = fixture.address.path().unwrap().to_owned();
    fs::remove_file(&path).unwrap();
    let next = UnixListener::bind(&path).unwrap();
    drop(fixture);
    assert!(path.exists());
    UnixStream::connect(&path).unwrap();
    drop(next);
}

#[test]
fn a_socket_file_in_use_is_left() {
    let path = temporary_path();
    let owner = UnixListener::bind(&path).unwrap();
    let mut world = Os::unix();
    let mut fixture = fixture(&mut world);
    let refused = fixture.reactor.listen(Address::Unix(path.clone()));
    assert!(
        matches!(&refused, Err(Error::Bind { source, .. })
            if source.kind() == io::ErrorKind::AddrInUse),
        "{refused:?}"
    );
    UnixStream::connect(&path).unwrap();
    drop(owner);
    fs::remove_file(path).unwrap();
}

#[test]
fn text_that_is_no_address_is_no_listener() {
    let mut world = Os::unix();
    let mut fixture = fixture(&mut world);
    let refused = fixture.reactor.listen("localhost:7000").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "cannot listen on localhost:7000: an address is IP:PORT, [IPV6]:PORT or unix:PATH"
    );
}

#[test]
fn a_file_that_is_no_socket_is_left() {
    let path = temporary_path();
    fs::write(&path, "precious").unwrap();
    let mut world = Os::unix();
    let mut fixture = fixture(&mut world);
    assert!(fixture.reactor.listen(Address::Unix(path.clone())).is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(path).unwrap();
}

#[test]
fn a_turn_waits_no_longer_than_it_was_told() {
    let mut reactor: Reactor<RecordingHandler> = Reactor::new(few_places()).unwrap();
    let mut handler = RecordingHandler::echo();
    reactor.turn(&mut handler, Some(Duration::ZERO)).unwrap();
    let start = reactor.context().now();
    reactor.turn(&mut handler, Some(Duration::ZERO)).unwrap();
    reactor.turn(&mut handler, Some(millis(50))).unwrap();
    let took = reactor.context().now() - start;
    assert!(took >= millis(49) && took < millis(500), "{took:?}");
    // Nor longer than the next alarm lets it.
    let at = reactor.context().now() + millis(50);
    reactor.context().set_alarm(at);
    while handler.alarms.is_empty() {
        reactor.turn(&mut handler, None).unwrap();
    }
    assert!(reactor.context().now() < at + millis(500));
}

/// Where the reactor has a descriptor that is readable when it has something to do: mio's poll
/// backend has none.
#[cfg(not(mio_unsupported_force_poll_poll))]
mod inside_another_loop {
    use std::os::fd::{AsFd, AsRawFd};

    use mio::unix::SourceFd;

    use super::*;

    /// A foreign loop: waits for the reactor's descriptor no longer than the reactor would.
    fn wait_outside(poll: &mut mio::Poll, reactor: &mut Reactor<RecordingHandler>) {
        let mut events = mio::Events::with_capacity(4);
        let at_most = secs(10);
        let timeout = reactor.next_timeout().map_or(at_most, |timeout| timeout.min(at_most));
        poll.poll(&mut events, Some(timeout)).unwrap();
    }

    #[test]
    fn a_reactor_turns_inside_another_loop() {
        let mut config = few_places();
        config.timeouts.idle = Some(millis(100));
        let mut reactor: Reactor<RecordingHandler> = Reactor::new(config).unwrap();
        let listener = reactor.listen("127.0.0.1:0").unwrap();
        let address = reactor.local_addr(listener).ip().unwrap();
        let mut handler = RecordingHandler::echo();

        let mut poll = mio::Poll::new().unwrap();
        let fd = reactor.as_fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), mio::Token(0), mio::Interest::READABLE)
            .unwrap();
        // The first turn accepts those that came before it.
        reactor.turn(&mut handler, Some(Duration::ZERO)).unwrap();
        assert_eq!(reactor.next_timeout(), None, "nothing is due, ever");

        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"hello").unwrap();
        let mut turns = 0;
        while handler.closed.is_empty() {
            wait_outside(&mut poll, &mut reactor);
            reactor.turn(&mut handler, Some(Duration::ZERO)).unwrap();
            turns += 1;
            assert!(turns < 200, "it spins");
        }
        let closed = &handler.closed[0];
        assert_eq!(closed.reason, CloseReason::Timeout(Timeout::Idle));
        assert!(closed.age >= millis(100) && closed.age < millis(600), "{:?}", closed.age);
        let mut reply = Vec::new();
        client.read_to_end(&mut reply).unwrap();
        assert_eq!(reply, b"hello");
    }

    #[test]
    fn a_post_wakes_another_loop() {
        let mut reactor: Reactor<RecordingHandler> = Reactor::new(few_places()).unwrap();
        let mut handler = RecordingHandler::echo();
        let mut poll = mio::Poll::new().unwrap();
        let fd = reactor.as_fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), mio::Token(0), mio::Interest::READABLE)
            .unwrap();
        let handle = reactor.handle();
        let poster = std::thread::spawn(move || handle.post(|_, cx| cx.shutdown()));
        while !reactor.is_finished() {
            wait_outside(&mut poll, &mut reactor);
            reactor.turn(&mut handler, Some(Duration::ZERO)).unwrap();
        }
        poster.join().unwrap().unwrap();
    }
}
