//! Peers that do everything a peer can do.

use wheelhouse::Address;
use wheelhouse::sim::{Peer, Random, Sim};

use crate::scenarios::millis;

/// What a keeper understands.
pub(crate) const WORDS: &[u8] = b"aaaaaaaabBCAFPRWTYDOSLKNeGMsJ";

/// Some of what a keeper understands.
pub(crate) fn words(random: &mut Random) -> Vec<u8> {
    (0..=random.below(12)).map(|_| *random.pick(WORDS)).collect()
}

/// Peers that come, talk and go as chance has it.
pub(crate) fn let_peers_loose(sim: &mut Sim, server: &Address, random: &mut Random, steps: u64) {
    let mut peers: Vec<Peer> = Vec::new();
    for _ in 0..steps {
        let deed = random.below(12);
        let count = peers.len() as u64;
        if deed < 3 || count == 0 {
            peers.push(sim.connect(server.clone()));
        } else {
            let index = random.below(count) as usize;
            let peer = peers[index].clone();
            act(&peer, random, deed);
            if deed == 11 {
                drop(peers.swap_remove(index));
            }
        }
        // Mostly short, sometimes long.
        let longest = 1 << random.below(12);
        sim.advance(millis(random.below(longest)));
    }
}

fn act(peer: &Peer, random: &mut Random, deed: u64) {
    match deed {
        3..=6 => peer.send(&words(random)),
        7 => peer.drip(&words(random), millis(1 + random.below(3_000))),
        8 => match random.below(3) {
            0 => peer.stop_reading(),
            1 => peer.read_at(100 + random.below(100_000) as usize),
            _ => peer.resume_reading(),
        },
        9 => peer.half_close(),
        10 => peer.reset(),
        _ => peer.close(),
    }
}
