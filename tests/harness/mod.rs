//! What behaviours run in: a world with peers, a reactor in it, and a handler
//! that records its callbacks.
//!
//! Nothing here blocks: a fixture turns its reactor and checks its peers in between, until what it
//! waits for has come. So a world may be made of sockets and real time, or of memory and virtual
//! time.

mod fixture;
mod os;
mod recording;
mod shorthands;
mod sim;

use std::time::Duration;

use wheelhouse::backend::Backend;
use wheelhouse::{Address, Config};

pub(crate) use self::fixture::{Fixture, PeerId, assert_on_time, assert_same};
pub(crate) use self::os::{Os, temporary_path};
pub(crate) use self::recording::{RecordingHandler, What};
pub(crate) use self::shorthands::{millis, secs, with_places};
pub(crate) use self::sim::Sim;

/// For a reactor without a fixture: all reactors of the process share its descriptors.
pub(crate) fn few_places() -> Config {
    with_places(500)
}

/// Bytes that show when some are lost, doubled or out of place.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    // A prime, so that it falls together with no buffer's size.
    let piece: Vec<u8> = (0..65_537_u32).map(|index| (index / 253) as u8 ^ index as u8).collect();
    let mut bytes = piece.repeat(len / piece.len() + 1);
    bytes.truncate(len);
    bytes
}

/// What a peer finds when it reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Got {
    Bytes(usize),
    Nothing,
    Eof,
    Reset,
}

/// Where a reactor lives together with its peers. No call blocks.
pub(crate) trait World {
    type Backend: Backend;
    /// A connection seen from its far end. Dropping it closes it.
    type Peer;
    /// Where a peer waits to be dialled.
    type Listener;

    /// Whether a peer can distinguish a reset from an end.
    fn has_resets(&self) -> bool;

    fn backend(&mut self) -> Self::Backend;

    /// Lets time pass, where it does not by itself, until something happens or `most` is over.
    fn pass(&mut self, _most: Duration) {}

    /// Where a server may listen, which no other uses.
    fn address(&mut self) -> Address;

    /// Dials a server, with a receive buffer of so many bytes if that matters. The connection need
    /// not be accepted yet.
    fn connect(&mut self, server: &Address, window: Option<usize>) -> Self::Peer;

    /// Opens a place to be dialled, and says where it is.
    fn listen_as_peer(&mut self) -> (Self::Listener, Address);

    /// Accepts a dial there.
    fn answer(&mut self, listener: &mut Self::Listener) -> Option<Self::Peer>;

    /// An address where a dial is refused.
    fn refusing(&mut self) -> Address;

    /// An address where a dial is not answered.
    fn deaf(&mut self) -> Address;

    /// Sends what is taken of `bytes`; `None` if the far end is gone.
    fn send(&mut self, peer: &mut Self::Peer, bytes: &[u8]) -> Option<usize>;

    fn receive(&mut self, peer: &mut Self::Peer, buffer: &mut [u8]) -> Got;

    /// Sends a FIN.
    fn shutdown_write(&mut self, peer: &mut Self::Peer);

    /// Ends a connection with a reset.
    fn reset(&mut self, peer: Self::Peer);

    /// What keeps the reactor's thread busy for a while when it is called.
    fn stall(&mut self) -> Box<dyn Fn(Duration)>;
}
