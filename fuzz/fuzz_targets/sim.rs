//! Bytes become the deeds of peers, faults and calls of the handler, in a simulated world. The world
//! checks what must hold; what is found is a crash.

#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use bytes::{Buf, BytesMut};
use libfuzzer_sys::fuzz_target;
use wheelhouse::sim::{Call, Faults, Peer, Personality, Sim};
use wheelhouse::{Config, Conn, Handler};

#[derive(Arbitrary, Debug)]
struct Plan {
    seed: u64,
    personality: u8,
    send_buffer: u16,
    receive_buffer: u16,
    faults: [u8; 9],
    deeds: Vec<Deed>,
}

#[derive(Arbitrary, Debug)]
enum Deed {
    Connect,
    Send { peer: u8, words: Vec<u8> },
    Drip { peer: u8, words: Vec<u8>, every: u16 },
    StopReading { peer: u8 },
    ReadAt { peer: u8, rate: u16 },
    Resume { peer: u8 },
    HalfClose { peer: u8 },
    Reset { peer: u8 },
    Close { peer: u8 },
    Wait { millis: u16 },
    Fail { call: u8, after: u8, errno: u8 },
    Shutdown,
}

/// Does what single bytes tell it to.
struct Clerk;

#[derive(Default)]
struct Desk {
    paused: bool,
    owes: bool,
}

impl Handler for Clerk {
    type Session = Desk;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Desk> {
        Some(Desk::default())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, desk: &mut Desk, input: &mut BytesMut) {
        while let Some(word) = input.first().copied() {
            if conn.is_congested() || desk.paused {
                return;
            }
            input.advance(1);
            match word % 16 {
                0 => conn.close(),
                1 => conn.abort(),
                2 => conn.finish(),
                3 => {
                    desk.paused = true;
                    conn.pause_reading();
                    conn.set_timer(conn.now() + Duration::from_millis(500));
                }
                4 => {
                    if !desk.owes {
                        desk.owes = true;
                        conn.begin_request();
                    }
                    conn.set_timer(conn.now() + Duration::from_millis(200));
                }
                5 => conn.await_input(),
                6 => conn.tunnel(),
                7 => return conn.yield_now(),
                8 => conn.write(&[word; 2_000]),
                9 => conn.write_bytes(vec![word; 50_000]),
                _ => conn.write(&[word]),
            }
        }
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, desk: &mut Desk) {
        if std::mem::take(&mut desk.paused) {
            conn.resume_reading();
        }
        if std::mem::take(&mut desk.owes) {
            conn.end_request();
        }
    }
}

fuzz_target!(|plan: Plan| {
    if plan.deeds.len() > 100 {
        return;
    }
    let mut sim = Sim::new(plan.seed);
    sim.set_personality(Personality::ALL[plan.personality as usize % 3]);
    sim.set_buffers(512 + plan.send_buffer as usize, 512 + plan.receive_buffer as usize);
    let rate = |index: usize| u16::from(plan.faults[index]);
    sim.set_faults(Faults {
        short_read: rate(0),
        short_write: rate(1),
        interrupted: rate(2),
        would_block: rate(3),
        accept_error: rate(4),
        stream_error: rate(5) / 8,
        spurious_event: rate(6),
        split_event: rate(7),
        reordered: rate(8),
        ..Faults::NONE
    });
    let server = sim.serve("10.0.0.1:7", Config::default(), Clerk);
    let address = server.address();
    let mut peers: Vec<Peer> = Vec::new();
    for deed in plan.deeds {
        let find = |peer: u8| peers.get(peer as usize % peers.len().max(1)).cloned();
        match deed {
            Deed::Connect => {
                if peers.len() < 16 {
                    peers.push(sim.connect(address.clone()));
                }
            }
            Deed::Send { peer, words } => drop(find(peer).map(|peer| peer.send(&words))),
            Deed::Drip { peer, words, every } => {
                let every = Duration::from_millis(every.into());
                drop(find(peer).map(|peer| peer.drip(&words, every)));
            }
            Deed::StopReading { peer } => drop(find(peer).map(|peer| peer.stop_reading())),
            Deed::ReadAt { peer, rate } => drop(find(peer).map(|peer| peer.read_at(rate.into()))),
            Deed::Resume { peer } => drop(find(peer).map(|peer| peer.resume_reading())),
            Deed::HalfClose { peer } => drop(find(peer).map(|peer| peer.half_close())),
            Deed::Reset { peer } => drop(find(peer).map(|peer| peer.reset())),
            Deed::Close { peer } => drop(find(peer).map(|peer| peer.close())),
            Deed::Wait { millis } => sim.advance(Duration::from_millis(millis.into())),
            Deed::Fail { call, after, errno } => {
                let call = Call::ALL[call as usize % Call::ALL.len()];
                let errnos = call.errnos();
                sim.fail(call, after.into(), errnos[errno as usize % errnos.len()]);
            }
            Deed::Shutdown => {
                if !server.is_finished() {
                    server.shutdown();
                }
            }
        }
    }
    sim.converge();
    sim.assert_clean();
});
