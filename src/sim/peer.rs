//! The far ends of connections, played by a script.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use super::history::TraceEvent;
use super::net::{End, Holder, Net, ReadMode, Socket};
use crate::address::Address;

/// A peer of a reactor: the far end of one connection, played by the test.
///
/// By default it reads whatever comes. Dropping its last clone [closes](Peer::close) the connection,
/// as a process that ends does; so a peer that is to stay must be kept, `let _ = sim.connect(..)`
/// closes at once, and `let _peer = sim.connect(..)` does not.
///
/// ```
/// use std::time::Duration;
/// use wheelhouse::sim::{End, Sim};
/// # use bytes::BytesMut;
/// # use wheelhouse::{Config, Conn, Handler};
/// # struct Echo;
/// # impl Handler for Echo {
/// #     type Session = ();
/// #     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> { Some(()) }
/// #     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
/// #         conn.write(input);
/// #         input.clear();
/// #     }
/// # }
///
/// let mut sim = Sim::new(1);
/// let server = sim.serve("10.0.0.1:7", Config::default(), Echo);
/// let peer = sim.connect(server.address());
/// peer.drip(b"slowly", Duration::from_secs(1));
/// sim.advance(Duration::from_secs(6));
/// assert_eq!(peer.take(), b"slowly");
/// peer.half_close();
/// sim.settle();
/// assert_eq!(peer.closed(), Some(End::Fin));
/// ```
#[derive(Clone, Debug)]
#[must_use = "a peer that is dropped closes its connection"]
pub struct Peer {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    net: Rc<RefCell<Net>>,
    socket: Socket,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A test that fails may unwind through a call on the network.
        if let Ok(mut net) = self.net.try_borrow_mut() {
            // What it closes then did not lead to the failure.
            net.history.ignored = thread::panicking();
            net.let_go(self.socket);
            net.history.ignored = false;
        }
    }
}

impl Peer {
    pub(super) fn new(net: &Rc<RefCell<Net>>, socket: Socket) -> Self {
        net.borrow_mut().hold(socket);
        Self { inner: Rc::new(Inner { net: Rc::clone(net), socket }) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Net, Socket) -> T) -> T {
        act(&mut self.inner.net.borrow_mut(), self.inner.socket)
    }

    /// Sends `bytes`, all of them, as fast as the reactor takes them.
    pub fn send(&self, bytes: &[u8]) {
        self.with(|net, socket| net.write_later(socket, bytes));
    }

    /// Sends what the socket takes of `bytes` at once, and returns how many that were; `None` if the
    /// far end is gone.
    pub fn offer(&self, bytes: &[u8]) -> Option<usize> {
        match self.with(|net, socket| net.write(socket, &[bytes], usize::MAX)) {
            Ok(count) => {
                self.with(|net, socket| net.record_at(socket, TraceEvent::Send(count)));
                Some(count)
            }
            Err(libc::EAGAIN) => Some(0),
            Err(_) => None,
        }
    }

    /// Sends one byte after the other, the first at once and each next one `pause` later. It is
    /// [`send_in_pieces`](Peer::send_in_pieces) with pieces of one byte.
    pub fn drip(&self, bytes: &[u8], pause: Duration) {
        self.send_in_pieces(bytes, 1, pause);
    }

    /// Sends `bytes` in pieces of `piece` bytes, of which the last may be shorter: the first at once
    /// and each next one `pause` later. Other than the [segments of a link](super::Link::segment),
    /// these pieces arrive apart, so a server reads each of them alone.
    ///
    /// ```
    /// use std::time::Duration;
    /// use wheelhouse::sim::Sim;
    /// # use bytes::BytesMut;
    /// # use wheelhouse::{Config, Conn, Handler};
    /// # struct Echo;
    /// # impl Handler for Echo {
    /// #     type Session = ();
    /// #     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> { Some(()) }
    /// #     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
    /// #         conn.write(input);
    /// #         input.clear();
    /// #     }
    /// # }
    ///
    /// let mut sim = Sim::new(1);
    /// let server = sim.serve("10.0.0.1:7", Config::default(), Echo);
    /// let peer = sim.connect(&server);
    /// // 512 bytes a second: at once, after one second and after two.
    /// peer.send_in_pieces(&[b'x'; 1_200], 512, Duration::from_secs(1));
    /// sim.settle();
    /// assert_eq!(peer.take().len(), 512);
    /// sim.advance(Duration::from_secs(1));
    /// assert_eq!(peer.take().len(), 512);
    /// sim.advance(Duration::from_secs(1));
    /// assert_eq!(peer.take().len(), 176);
    /// ```
    ///
    /// # Panics
    ///
    /// If `piece` is 0.
    #[track_caller]
    pub fn send_in_pieces(&self, bytes: &[u8], piece: usize, pause: Duration) {
        assert!(piece > 0, "a piece has at least one byte");
        let mut net = self.inner.net.borrow_mut();
        let (socket, mut at) = (self.inner.socket, net.now);
        for piece in bytes.chunks(piece).map(<[u8]>::to_vec) {
            net.at(at, move |net| net.write_later(socket, &piece));
            at += pause;
        }
    }

    /// Sends `bytes` when `delay` has passed.
    pub fn send_after(&self, delay: Duration, bytes: impl Into<Vec<u8>>) {
        let (bytes, socket) = (bytes.into(), self.inner.socket);
        let mut net = self.inner.net.borrow_mut();
        let at = net.now + delay;
        net.at(at, move |net| net.write_later(socket, &bytes));
    }

    /// Reads no more by itself: its buffer fills, and its window closes.
    pub fn stop_reading(&self) {
        self.with(|net, socket| net.set_appetite(socket, ReadMode::Nothing));
    }

    /// Reads so many bytes a second while there are any, evenly: it reads each hundredth of a
    /// second, and what is less than a byte then counts the next time. Zero is
    /// [`stop_reading`](Peer::stop_reading).
    pub fn read_at(&self, bytes_per_second: usize) {
        let read_mode = match bytes_per_second {
            0 => ReadMode::Nothing,
            rate => ReadMode::Rate(rate as u64),
        };
        self.with(|net, socket| net.set_appetite(socket, read_mode));
    }

    /// Reads whatever comes, as at the beginning.
    pub fn resume_reading(&self) {
        self.with(|net, socket| net.set_appetite(socket, ReadMode::All));
    }

    /// Sends a FIN after what was sent; reading goes on.
    pub fn half_close(&self) {
        self.with(|net, socket| {
            net.record_at(socket, TraceEvent::Finish);
            // A connection that is over already has nothing to finish.
            let _ = net.shutdown_write(socket);
        });
    }

    /// Ends the connection with a reset.
    pub fn reset(&self) {
        self.with(|net, socket| net.close(socket, true));
    }

    /// Closes the connection as a process that ends does: with a FIN, or with a reset if something
    /// was left unread.
    pub fn close(&self) {
        self.with(|net, socket| net.close(socket, false));
    }

    pub(super) fn set_window(&self, bytes: usize) {
        self.with(|net, socket| net.set_window(socket, bytes));
    }

    /// Takes what it has read since the last call of [`take`](Peer::take) or
    /// [`expect`](Peer::expect).
    pub fn take(&self) -> Vec<u8> {
        self.with(Net::take_received)
    }

    /// The same as [`take`](Peer::take), and leaves it there.
    pub fn received(&self) -> Vec<u8> {
        self.with(|net, socket| net.received(socket))
    }

    /// [Takes](Peer::take) what it has read, and checks that it is `want`: all of it and no more.
    ///
    /// # Panics
    ///
    /// If it is not.
    #[track_caller]
    pub fn expect(&self, want: &[u8]) {
        let got = self.take();
        assert!(got == want, "the peer read {} instead of {}", Text(&got), Text(want));
    }

    /// Checks that `want` begins with what it has [`received`](Peer::received): nothing yet, a part
    /// of `want` or all of it, and not one byte that differs. It takes nothing, as no `assert` of
    /// this module does, so it may be called again when more has come. Where faults may hold a reply
    /// back or cut it off, this is what can be said of it; where they cannot,
    /// [`expect`](Peer::expect) says more.
    ///
    /// ```
    /// use std::time::Duration;
    /// use wheelhouse::sim::Sim;
    /// # use bytes::BytesMut;
    /// # use wheelhouse::{Config, Conn, Handler};
    /// # struct Echo;
    /// # impl Handler for Echo {
    /// #     type Session = ();
    /// #     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> { Some(()) }
    /// #     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
    /// #         conn.write(input);
    /// #         input.clear();
    /// #     }
    /// # }
    ///
    /// let mut sim = Sim::new(1);
    /// let server = sim.serve("10.0.0.1:7", Config::default(), Echo);
    /// let peer = sim.connect(&server);
    /// peer.send_in_pieces(b"hello, world", 6, Duration::from_secs(1));
    /// peer.assert_received_prefix_of(b"hello, world"); // nothing
    /// sim.settle();
    /// peer.assert_received_prefix_of(b"hello, world"); // "hello,"
    /// sim.advance(Duration::from_secs(1));
    /// peer.assert_received_prefix_of(b"hello, world"); // all of it
    /// ```
    ///
    /// # Panics
    ///
    /// If one of the bytes is another one, or there are more than in `want`.
    #[track_caller]
    pub fn assert_received_prefix_of(&self, want: &[u8]) {
        let got = self.received();
        let what = "which is no prefix of";
        assert!(want.starts_with(&got), "the peer read {}, {what} {}", Text(&got), Text(want));
    }

    /// Reads into `buffer` what there is, as recv(2) would: `Some(0)` at the end, `None` if there is
    /// nothing. For a peer that [does not read by itself](Peer::stop_reading).
    ///
    /// # Errors
    ///
    /// How the connection ended, if that was not a FIN.
    pub fn read(&self, buffer: &mut [u8]) -> Result<Option<usize>, End> {
        let end = || self.with(|net, socket| net.end_of(socket)).unwrap_or(End::Reset);
        match self.with(|net, socket| net.read(socket, buffer.len())) {
            Ok(bytes) if bytes.is_empty() && end() != End::Fin => Err(end()),
            Ok(bytes) => {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                Ok(Some(bytes.len()))
            }
            Err(libc::EAGAIN | libc::ENOTCONN) => Ok(None),
            Err(_) => Err(end()),
        }
    }

    /// How the far end or the network ended the connection, as this peer saw it; `None` while
    /// neither has, or while bytes wait in front of the FIN. A peer that closed or reset the
    /// connection itself sees nothing of it from then on.
    pub fn closed(&self) -> Option<End> {
        self.with(|net, socket| net.end_of(socket))
    }

    /// Whether the connection was made, and has been ended neither from there nor by this peer.
    /// Time has to pass for it to be made: right after [`Sim::connect`](crate::sim::Sim::connect)
    /// it is not open yet. To wait for its end, wait for [`closed`](Peer::closed).
    pub fn is_open(&self) -> bool {
        self.with(|net, socket| net.is_established(socket)) && self.closed().is_none()
    }

    /// Its own address.
    pub fn address(&self) -> Address {
        self.with(|net, socket| net.address(socket))
    }
}

/// Bytes as readable text, the first few of them.
pub(super) struct Text<'a>(pub(super) &'a [u8]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 256;
        write!(f, "\"{}\"", self.0[..self.0.len().min(SHOWN)].escape_ascii())?;
        if self.0.len() > SHOWN {
            write!(f, "... ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

/// A listener for reactors to dial; see [`Sim::listen`](super::Sim::listen). Dropping it
/// closes it, and resets the connections that wait there. Later dials are refused if its machine was made by
/// [`Sim::host`](super::Sim::host) or is that of the peers; else they get no answer.
#[derive(Debug)]
#[must_use = "a listener that is dropped is closed"]
pub struct PeerListener {
    net: Rc<RefCell<Net>>,
    index: usize,
}

impl Drop for PeerListener {
    fn drop(&mut self) {
        if let Ok(mut net) = self.net.try_borrow_mut() {
            net.close_listener(self.index);
        }
    }
}

impl PeerListener {
    pub(super) fn new(net: &Rc<RefCell<Net>>, address: Address, backlog: usize) -> Self {
        let index = net.borrow_mut().listen(Holder::Peer, address, backlog, None);
        Self { net: Rc::clone(net), index }
    }

    /// Where it is.
    pub fn address(&self) -> Address {
        self.net.borrow().listeners[self.index].address.clone()
    }

    /// Accepts the connection that has waited longest, if one waits.
    pub fn accept(&self) -> Option<Peer> {
        let socket = self.net.borrow_mut().take_waiting(self.index)?;
        let peer = Peer::new(&self.net, socket);
        peer.resume_reading();
        Some(peer)
    }
}
