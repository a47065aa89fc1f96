//! What happens is the same whether there is a subscriber or not. In a program of its own,
//! because `tracing` remembers that there was one.

#[path = "scenarios/basics.rs"]
mod basics;

use std::io;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use wheelhouse::Config;
use wheelhouse::sim::{Faults, Sim};

use crate::basics::{Echo, SERVER, millis};

/// Some clients are served, with difficulties. Returns what happened, in a number.
fn run() -> u64 {
    let mut sim = Sim::new(7);
    sim.set_faults(Faults {
        short_read: 100,
        short_write: 100,
        would_block: 100,
        split_event: 100,
        reordered: 100,
        ..Faults::NONE
    });
    let server = sim.serve(SERVER, Config::default(), Echo);
    let peers: Vec<_> = (0..20).map(|_| sim.connect(&server)).collect();
    for round in 0..20 {
        for peer in &peers {
            peer.send(&[round; 100]);
        }
        sim.advance(millis(50));
    }
    sim.converge();
    sim.trace_hash()
}

#[test]
fn a_subscriber_changes_nothing_that_happens() {
    assert_eq!(LevelFilter::current(), LevelFilter::OFF);
    let unheard = run();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(Level::TRACE).with_writer(io::sink).finish();
    tracing::subscriber::with_default(subscriber, || {
        assert_eq!(LevelFilter::current(), LevelFilter::TRACE);
        assert_eq!(run(), unheard);
    });
}
