//! What peers do with what arrives.

use std::time::Duration;

use super::{End, Event, Net, ReadMode, Socket};

/// How often in a second a peer with a rate reads.
pub(super) const SIPS: u64 = 100;

const SIP_EVERY: Duration = Duration::from_millis(1_000 / SIPS);

/// Peers.
impl Net {
    /// Lets a peer take in what has come.
    pub(super) fn feed_peer(&mut self, socket: Socket) {
        let Some(side) = self.side_mut(socket) else { return };
        match side.read_mode {
            ReadMode::Nothing => {}
            ReadMode::All => {
                while let Ok(bytes) = self.read(socket, usize::MAX)
                    && !bytes.is_empty()
                {
                    if let Some(side) = self.side_mut(socket) {
                        side.received.extend(bytes);
                    }
                }
            }
            ReadMode::Rate(_) if !side.draining => {
                side.draining = true;
                self.schedule(self.now + SIP_EVERY, Event::Drain(socket));
            }
            ReadMode::Rate(_) => {}
        }
    }

    pub(super) fn drain(&mut self, socket: Socket) {
        let Some(side) = self.side_mut(socket) else { return };
        side.draining = false;
        let ReadMode::Rate(rate) = side.read_mode else { return };
        if side.input.is_empty() {
            return;
        }
        side.draining = true;
        // What is less than a byte is kept for the next time.
        side.allowance += rate;
        let count = side.allowance / SIPS;
        side.allowance %= SIPS;
        if count > 0
            && let Ok(bytes) = self.read(socket, usize::try_from(count).unwrap_or(usize::MAX))
            && let Some(side) = self.side_mut(socket)
        {
            side.received.extend(bytes);
        }
        self.schedule(self.now + SIP_EVERY, Event::Drain(socket));
    }

    /// A script begins to play this end.
    pub(in crate::sim) fn hold(&mut self, socket: Socket) {
        if let Some(side) = self.side_mut(socket) {
            side.held = true;
        }
    }

    /// A script has dropped this end: what becomes of it is not asked for.
    pub(in crate::sim) fn let_go(&mut self, socket: Socket) {
        self.close(socket, false);
        if let Some(side) = self.side_mut(socket) {
            side.held = false;
            self.reclaim(socket);
        }
    }

    pub(in crate::sim) fn set_appetite(&mut self, socket: Socket, read_mode: ReadMode) {
        if let Some(side) = self.side_mut(socket) {
            side.read_mode = read_mode;
            self.feed_peer(socket);
        }
    }

    pub(in crate::sim) fn set_window(&mut self, socket: Socket, bytes: usize) {
        if let Some(side) = self.side_mut(socket) {
            side.input_max = bytes;
            side.advertised_edge = bytes as u64;
        }
    }

    /// What a peer has read since it was last asked.
    pub(in crate::sim) fn take_received(&mut self, socket: Socket) -> Vec<u8> {
        self.side_mut(socket).map(|side| side.received.drain(..).collect()).unwrap_or_default()
    }

    /// The same, and leaves it there.
    pub(in crate::sim) fn received(&self, socket: Socket) -> Vec<u8> {
        self.side(socket).map(|side| side.received.iter().copied().collect()).unwrap_or_default()
    }

    /// How a peer's connection ended; a FIN counts once everything before it was read.
    pub(in crate::sim) fn end_of(&self, socket: Socket) -> Option<End> {
        let side = self.side(socket)?;
        match side.end {
            Some(End::Fin) if !side.input.is_empty() => None,
            end => end,
        }
    }

    pub(in crate::sim) fn is_established(&self, socket: Socket) -> bool {
        self.side(socket).is_some_and(|side| side.established && !side.closed)
    }
}
