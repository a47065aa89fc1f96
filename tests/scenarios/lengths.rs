//! Messages of which some are awaited whole and some are skipped, by a handler that also yields and
//! pauses, and peers that send them in pieces of any size.
//!
//! A message is its kind, `E` or `S`, its length in four bytes, and so many bytes. The reply to an `E` has
//! the sum of these, the one to an `S` comes when they have been skipped.

use std::io::Write;

use bytes::{Buf, BytesMut};
use wheelhouse::sim::{Faults, Random, Sim};
use wheelhouse::{Config, Conn, Handler};

use crate::scenarios::{millis, secs};

const HEAD: usize = 5;
const BODY_MAX: u64 = 20_000;

struct Lengths(Random);

/// The length of the message that is being skipped.
type Skipping = Option<u32>;

impl Lengths {
    fn pause(&mut self, conn: &mut Conn<'_>) {
        conn.pause_reading();
        conn.set_timer(conn.now() + millis(self.0.below(2_000)));
    }

    /// Has a message skipped, by one call or by two, and perhaps reads on only later.
    fn skip(&mut self, conn: &mut Conn<'_>, len: u32) {
        let first = if len > 1 && self.0.below(2) == 0 { 1 } else { len };
        conn.skip(first.into());
        conn.skip((len - first).into());
        match self.0.below(8) {
            0 => conn.expect_input(0),
            1 | 2 => self.pause(conn),
            _ => {}
        }
    }
}

impl Handler for Lengths {
    type Session = Skipping;

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Skipping> {
        if self.0.below(2) == 0 {
            conn.expect_input(HEAD);
        }
        Some(None)
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, skipping: &mut Skipping, input: &mut BytesMut) {
        if let Some(len) = skipping.take() {
            write!(conn, "S{len};");
        }
        while !conn.is_congested() && !conn.is_closing() {
            match self.0.below(12) {
                0 => return conn.yield_now(),
                1 => return self.pause(conn),
                _ => {}
            }
            let Some((head, rest)) = input.split_first_chunk::<HEAD>() else {
                if self.0.below(2) == 0 {
                    conn.expect_input(HEAD);
                }
                return;
            };
            let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            if head[0] == b'S' {
                input.advance(HEAD);
                if len > 0 {
                    *skipping = Some(len);
                    return self.skip(conn, len);
                }
                conn.write(b"S0;");
            } else if rest.len() < len as usize {
                return conn.expect_input(HEAD + len as usize);
            } else {
                let sum: u64 = rest[..len as usize].iter().map(|byte| u64::from(*byte)).sum();
                write!(conn, "E{sum};");
                input.advance(HEAD + len as usize);
            }
        }
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, _: &mut Skipping) {
        conn.resume_reading();
    }
}

/// Some messages, and the replies to them.
fn messages(random: &mut Random, count: u64) -> (Vec<u8>, Vec<u8>) {
    let (mut sent, mut replies) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let most = [4, 200, 5_000, BODY_MAX][random.below(4) as usize];
        let len = random.below(most) as u32;
        let body: Vec<u8> = (0..len).map(|at| (at * 31 + len) as u8).collect();
        let skipped = random.below(2) == 0;
        sent.push(if skipped { b'S' } else { b'E' });
        sent.extend_from_slice(&len.to_be_bytes());
        sent.extend_from_slice(&body);
        if skipped {
            write!(replies, "S{len};").unwrap();
        } else {
            let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
            write!(replies, "E{sum};").unwrap();
        }
    }
    (sent, replies)
}

/// Each message that is awaited comes whole, each that is skipped does not come, and what follows
/// it does.
pub(crate) fn lengths(sim: &mut Sim) {
    let mut random = sim.random();
    let mut config = Config::default();
    config.limits.input_max = HEAD + BODY_MAX as usize;
    config.timeouts.request = None;
    let handler = Lengths(sim.random());
    let server = sim.serve("10.0.0.1:7", config, handler);
    let mut peers: Vec<_> = (0..5)
        .map(|_| {
            let count = random.below(12);
            (sim.connect(&server), messages(&mut random, count), 0)
        })
        .collect();
    for _ in 0..30 {
        for (peer, (sent, replies), at) in &mut peers {
            let left = sent.len() - *at;
            let most = if random.below(3) == 0 { left as u64 } else { random.below(30_000) };
            let piece = left.min(most as usize);
            peer.send(&sent[*at..*at + piece]);
            *at += piece;
            peer.assert_received_prefix_of(replies);
            if *at == sent.len() && random.below(20) == 0 {
                peer.half_close();
            }
        }
        sim.advance(millis(random.below(1_000)));
    }
    server.assert_blameless();
    sim.converge();
    // Now that nothing goes wrong every message is answered.
    sim.set_faults(Faults::NONE);
    sim.advance(secs(60));
    let (sent, replies) = messages(&mut random, 8);
    let peer = sim.connect(&server);
    for piece in sent.chunks(1 + random.below(9_000) as usize) {
        peer.send(piece);
        sim.advance(millis(random.below(300)));
    }
    sim.advance(secs(120));
    peer.expect(&replies);
}
