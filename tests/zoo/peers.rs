//! Peers that do everything a peer can do.

use std::time::Duration;

use wheelhouse::Address;
use wheelhouse::sim::{Peer, Sim};

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What a keeper understands.
pub(crate) const WORDS: &[u8] = b"aaaaaaaabBCAFPRWTYDOSLKNe";

/// Numbers that follow from a seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// xorshift64*, Marsaglia and Vigna.
    pub(crate) const fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }

    pub(crate) fn words(&mut self) -> Vec<u8> {
        let count = 1 + self.below(12);
        (0..count).map(|_| WORDS[self.below(WORDS.len() as u64) as usize]).collect()
    }
}

/// Peers that come, talk and go as the dice fall.
pub(crate) fn let_peers_loose(sim: &mut Sim, server: &Address, dice: &mut Dice, steps: u64) {
    let mut peers: Vec<Peer> = Vec::new();
    for _ in 0..steps {
        let deed = dice.below(12);
        let count = peers.len() as u64;
        if deed < 3 || count == 0 {
            peers.push(sim.connect(server.clone()));
        } else {
            let index = dice.below(count) as usize;
            let peer = peers[index].clone();
            act(&peer, dice, deed);
            if deed == 11 {
                drop(peers.swap_remove(index));
            }
        }
        // Mostly short, sometimes long.
        let longest = 1 << dice.below(12);
        sim.advance(millis(dice.below(longest)));
    }
}

fn act(peer: &Peer, dice: &mut Dice, deed: u64) {
    match deed {
        3..=6 => peer.send(&dice.words()),
        7 => peer.drip(&dice.words(), millis(1 + dice.below(3_000))),
        8 => match dice.below(3) {
            0 => peer.stop_reading(),
            1 => peer.read_at(100 + dice.below(100_000) as usize),
            _ => peer.resume_reading(),
        },
        9 => peer.half_close(),
        10 => peer.reset(),
        _ => peer.close(),
    }
}
