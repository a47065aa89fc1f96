//! A reactor with its peers, and the operations of which a behaviour consists.

use std::io;
use std::time::Duration;

use wheelhouse::{
    Address, CloseReason, Closed, Config, Conn, ConnId, Instant, ListenerId, Reactor, Report,
    Timeout,
};

use super::recording::{PING, PONG, RecordingHandler, What};
use super::shorthands::{millis, secs};
use super::{Got, World};

/// How long a test waits for an event that must come.
const PATIENCE: Duration = secs(10);

/// How late a deadline may be here, on a busy machine. How exact they are is measured elsewhere.
pub(crate) const LATE: Duration = millis(500);

/// The longest that a turn waits, so that peers are checked often.
const PULSE: Duration = millis(1);

/// A peer of the fixture.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PeerId(usize);

/// A listening reactor whose handler is a [`RecordingHandler`], and its peers.
pub(crate) struct Fixture<'w, W: World> {
    pub(crate) world: &'w mut W,
    pub(crate) reactor: Reactor<RecordingHandler, W::Backend>,
    pub(crate) handler: RecordingHandler,
    pub(crate) listener: ListenerId,
    pub(crate) address: Address,
    peers: Vec<Option<W::Peer>>,
}

impl<'w, W: World> Fixture<'w, W> {
    pub(crate) fn new(world: &'w mut W, mut config: Config, handler: RecordingHandler) -> Self {
        let backend = world.backend();
        // The reactors of all fixtures that run at once share the process's descriptors.
        config.limits.max_connections.get_or_insert(500);
        let mut reactor = Reactor::with_backend(config, backend).unwrap();
        let listener = reactor.listen(world.address()).unwrap();
        let address = reactor.local_addr(listener).clone();
        Self { world, reactor, handler, listener, address, peers: Vec::new() }
    }
}

/// The peers of a fixture whose reactor has ended.
pub(crate) struct Far<W: World>(Vec<Option<W::Peer>>);

impl<W: World> Far<W> {
    pub(crate) fn peer(&mut self, peer: PeerId) -> &mut W::Peer {
        self.0[peer.0].as_mut().expect("the peer is there")
    }
}

/// The end.
impl<W: World> Fixture<'_, W> {
    /// Ends the reactor at once; gives its handler, its report and the peers.
    pub(crate) fn end(self) -> (RecordingHandler, Report, Far<W>) {
        let Self { reactor, mut handler, peers, .. } = self;
        let report = reactor.end(&mut handler);
        (handler, report, Far(peers))
    }
}

/// Time.
impl<W: World> Fixture<'_, W> {
    pub(crate) fn now(&mut self) -> Instant {
        self.reactor.context().now()
    }

    pub(crate) fn try_turn(&mut self) -> io::Result<()> {
        self.world.pass(PULSE);
        let outcome = self.reactor.turn(&mut self.handler, Some(PULSE));
        assert!(self.handler.faults.is_empty(), "{:?}", self.handler.faults);
        outcome
    }

    pub(crate) fn turn(&mut self) {
        self.try_turn().unwrap();
    }

    /// Turns until something that must come has come.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = self.now();
        while !done(self) {
            self.turn();
            assert!(self.now() - start < PATIENCE, "{what} did not come: {self:#?}");
        }
    }

    /// Lets time pass, for what must not happen in it.
    pub(crate) fn wait(&mut self, duration: Duration) {
        let end = self.now() + duration;
        self.until("time to pass", |fixture| fixture.now() >= end);
    }

    /// Turns until the reactor fails, and says why.
    pub(crate) fn failure(&mut self) -> io::Error {
        let start = self.now();
        loop {
            if let Err(error) = self.try_turn() {
                return error;
            }
            assert!(self.now() - start < PATIENCE, "the reactor goes on: {self:#?}");
        }
    }

    /// Checks that what began at `start` took `timeout`: not less, and little more.
    pub(crate) fn assert_took(&mut self, start: Instant, timeout: Duration) {
        let took = self.now() - start;
        assert_on_time(took, timeout);
    }
}

/// Checks that a deadline was not early and at most [`LATE`] late.
pub(crate) fn assert_on_time(took: Duration, timeout: Duration) {
    assert!(took >= timeout, "early: {took:?} of {timeout:?}");
    assert!(took < timeout + LATE, "late: {took:?} of {timeout:?}");
}

/// Peers.
impl<W: World> Fixture<'_, W> {
    fn add(&mut self, peer: W::Peer) -> PeerId {
        self.peers.push(Some(peer));
        PeerId(self.peers.len() - 1)
    }

    /// Dials the server; it need not have accepted yet.
    pub(crate) fn connect(&mut self) -> PeerId {
        let peer = self.world.connect(&self.address, None);
        self.add(peer)
    }

    /// Dials another listener of the server.
    pub(crate) fn connect_to(&mut self, address: &Address) -> PeerId {
        let peer = self.world.connect(address, None);
        self.add(peer)
    }

    /// Dials the server with a small receive buffer.
    pub(crate) fn connect_small(&mut self) -> PeerId {
        let peer = self.world.connect(&self.address, Some(8 * 1024));
        self.add(peer)
    }

    /// Dials the server and waits for `on_connected`. The number is the connection's.
    pub(crate) fn enter(&mut self) -> (PeerId, usize) {
        let number = self.handler.ids.len();
        let peer = self.connect();
        self.until("a connection", |fixture| fixture.handler.count(number, What::Connected) == 1);
        (peer, number)
    }

    /// Accepts a dial of the server at `listener`.
    pub(crate) fn answer(&mut self, listener: &mut W::Listener) -> PeerId {
        let mut peer = None;
        self.until("a dial", |fixture| {
            peer = fixture.world.answer(listener);
            peer.is_some()
        });
        self.add(peer.expect("the wait is over"))
    }

    /// Sends what is taken now; `None` if the far end is gone.
    pub(crate) fn try_send(&mut self, peer: PeerId, bytes: &[u8]) -> Option<usize> {
        let peer = self.peers[peer.0].as_mut().expect("the peer is there");
        self.world.send(peer, bytes)
    }

    pub(crate) fn try_receive(&mut self, peer: PeerId, buffer: &mut [u8]) -> Got {
        let peer = self.peers[peer.0].as_mut().expect("the peer is there");
        self.world.receive(peer, buffer)
    }

    /// Sends all of `bytes`.
    pub(crate) fn send(&mut self, peer: PeerId, mut bytes: &[u8]) {
        self.until("room to send", |fixture| {
            let count = fixture.try_send(peer, bytes).expect("the server is there");
            bytes = &bytes[count..];
            bytes.is_empty()
        });
    }

    /// Sends byte after byte with pauses between them, as long as the server takes them.
    pub(crate) fn drip(&mut self, peer: PeerId, bytes: &[u8], pause: Duration) {
        for byte in bytes {
            if self.try_send(peer, &[*byte]).is_none() {
                return;
            }
            self.wait(pause);
        }
    }

    /// Reads at most `count` bytes of what is there.
    pub(crate) fn sip(&mut self, peer: PeerId, count: usize) -> Vec<u8> {
        let mut buffer = vec![0; count];
        let count = match self.try_receive(peer, &mut buffer) {
            Got::Bytes(count) => count,
            Got::Nothing => 0,
            end => panic!("{end:?} instead of bytes: {self:#?}"),
        };
        buffer.truncate(count);
        buffer
    }

    /// Reads exactly `count` bytes.
    pub(crate) fn read(&mut self, peer: PeerId, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count);
        self.until("bytes", |fixture| {
            bytes.extend(fixture.sip(peer, (count - bytes.len()).min(256 * 1024)));
            bytes.len() == count
        });
        bytes
    }

    /// Reads what must come next.
    pub(crate) fn expect(&mut self, peer: PeerId, want: &[u8]) {
        let bytes = self.read(peer, want.len());
        assert_same(&bytes, want);
    }

    /// Sends a word to a handler that echoes, and reads it.
    pub(crate) fn expect_echo(&mut self, peer: PeerId) {
        self.send(peer, b"hello");
        self.expect(peer, b"hello");
    }

    /// Reads to the end, and says which end that was.
    pub(crate) fn read_to_end(&mut self, peer: PeerId) -> (Vec<u8>, Got) {
        let mut bytes = Vec::new();
        let mut end = Got::Nothing;
        let mut buffer = vec![0; 256 * 1024];
        self.until("the end", |fixture| {
            end = fixture.try_receive(peer, &mut buffer);
            if let Got::Bytes(count) = end {
                bytes.extend_from_slice(&buffer[..count]);
            }
            matches!(end, Got::Eof | Got::Reset)
        });
        (bytes, end)
    }

    /// Reads what has come, without turning the reactor; then returns what ended the input.
    pub(crate) fn read_to_end_as_it_is(&mut self, peer: PeerId) -> (Vec<u8>, Got) {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.try_receive(peer, &mut buffer) {
                Got::Bytes(count) => bytes.extend_from_slice(&buffer[..count]),
                end => return (bytes, end),
            }
        }
    }

    /// Nothing comes but the FIN.
    pub(crate) fn expect_eof(&mut self, peer: PeerId) {
        assert_eq!(self.read_to_end(peer), (Vec::new(), Got::Eof));
    }

    /// Nothing comes but a reset; where there are none, an end.
    pub(crate) fn expect_reset(&mut self, peer: PeerId) {
        let (bytes, end) = self.read_to_end(peer);
        assert_same(&bytes, b"");
        self.assert_reset(end);
    }

    /// Checks that an end was a reset, where there are any.
    pub(crate) fn assert_reset(&self, end: Got) {
        assert!(end == Got::Reset || !self.world.has_resets(), "{end:?}");
    }

    /// Nothing is there to be read.
    pub(crate) fn expect_silence(&mut self, peer: PeerId) {
        assert_eq!(self.try_receive(peer, &mut [0]), Got::Nothing);
    }

    /// Sends a FIN; reading goes on.
    pub(crate) fn half_close(&mut self, peer: PeerId) {
        let peer = self.peers[peer.0].as_mut().expect("the peer is there");
        self.world.shutdown_write(peer);
    }

    pub(crate) fn reset(&mut self, peer: PeerId) {
        let peer = self.peers[peer.0].take().expect("the peer is there");
        self.world.reset(peer);
    }

    pub(crate) fn leave(&mut self, peer: PeerId) {
        self.peers[peer.0] = None;
    }
}

/// Checks long byte strings without printing them.
pub(crate) fn assert_same(got: &[u8], want: &[u8]) {
    if got == want {
        return;
    }
    let same = got.iter().zip(want).take_while(|(got, want)| got == want).count();
    let start = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    panic!(
        "{} bytes {:?} instead of {} bytes {:?}, the first {same} the same",
        got.len(),
        start(got),
        want.len(),
        start(want)
    );
}

/// The server.
impl<W: World> Fixture<'_, W> {
    /// The next connection that ended.
    pub(crate) fn closed(&mut self) -> Closed {
        self.until("a connection to end", |fixture| !fixture.handler.closed.is_empty());
        self.handler.closed.pop_front().expect("the wait is over")
    }

    /// The next connection that ended, which must be for `reason`.
    pub(crate) fn expect_closed(&mut self, reason: CloseReason) -> Closed {
        let closed = self.closed();
        assert_eq!(closed.reason, reason, "{self:#?}");
        closed
    }

    pub(crate) fn expect_timeout(&mut self, timeout: Timeout) -> Closed {
        self.expect_closed(CloseReason::Timeout(timeout))
    }

    /// Checks that no connection ended but those that were taken.
    pub(crate) fn expect_none_closed(&self) {
        assert!(self.handler.closed.is_empty(), "{self:#?}");
    }

    /// A fresh client gets what it asks for, whatever happened to others.
    pub(crate) fn expect_service(&mut self) {
        let gone = self.handler.visitors_gone;
        let visitor = self.connect();
        self.send(visitor, PING);
        self.expect(visitor, PONG);
        self.leave(visitor);
        self.until("a visitor to go", |fixture| fixture.handler.visitors_gone > gone);
        self.expect_none_closed();
        self.expect_rest();
    }

    /// The reactor comes to rest: it does not spin over something it cannot do.
    pub(crate) fn expect_rest(&mut self) {
        self.until("rest", |fixture| fixture.reactor.next_timeout() != Some(Duration::ZERO));
    }

    /// Waits for a callback of the connection of this number, and says when it came.
    pub(crate) fn saw(&mut self, number: usize, what: What) -> Instant {
        self.until(&format!("{what:?}"), |fixture| fixture.handler.count(number, what) > 0);
        self.handler.when(number, what).expect("the wait is over")
    }

    /// Does something with the connection of this number, between two turns.
    pub(crate) fn with<T>(&mut self, number: usize, act: impl FnOnce(&mut Conn<'_>) -> T) -> T {
        let id: ConnId = self.handler.ids[number];
        let mut cx = self.reactor.context();
        act(&mut cx.conn(id).expect("the connection is open"))
    }
}

impl<W: World> std::fmt::Debug for Fixture<'_, W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let RecordingHandler { log, closed, .. } = &self.handler;
        let tail = &log[log.len().saturating_sub(40)..];
        f.debug_struct("Fixture").field("log", &tail).field("closed", closed).finish()
    }
}
