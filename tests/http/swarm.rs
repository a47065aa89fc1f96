//! Whatever goes wrong: replies are well-formed and in order, and what is missing is missing at the
//! end.
//!
//! `SIM_SEEDS=2000 SIM_FIRST=1 cargo test --test http swarm` runs so many seeds, from that one on.

use std::collections::VecDeque;
use std::env;

use wheelhouse::Instant;
use wheelhouse::sim::{self, Peer, Server, Sim};

use super::client::{Reply, config, millis, secs, serve, serve_with};
use crate::server::Http;

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    /// splitmix64.
    const fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// What a request must be answered with.
struct Wanted {
    head_only: bool,
    status: u16,
    body: Vec<u8>,
}

/// A client that makes requests and checks what comes back.
struct Client {
    peer: Peer,
    got: Vec<u8>,
    wanted: VecDeque<Wanted>,
    over: bool,
    /// Until when it is busy with sending what it sends slowly.
    busy_until: Instant,
}

impl Client {
    const fn new(peer: Peer) -> Self {
        Self {
            peer,
            got: Vec::new(),
            wanted: VecDeque::new(),
            over: false,
            busy_until: Instant::EPOCH,
        }
    }

    fn ask(&mut self, now: Instant, dice: &mut Dice) {
        if now < self.busy_until {
            return;
        }
        let (request, wanted) = request(dice);
        self.wanted.push_back(wanted);
        if dice.below(4) == 0 {
            let every = millis(1 + dice.below(20));
            self.peer.drip(&request, every);
            self.busy_until = now + every * request.len() as u32;
        } else {
            self.peer.send(&request);
        }
    }

    /// Reads the replies so far.
    fn check(&mut self) {
        self.got.extend(self.peer.take());
        let mut rest = &self.got[..];
        while let Some(wanted) = self.wanted.front() {
            let Some((reply, behind)) = Reply::next(rest, wanted.head_only) else { break };
            rest = behind;
            if reply.status == 100 {
                continue;
            }
            assert!(!self.over, "a reply after the last one: {reply:?}");
            self.over = !reply.stays();
            // A connection may end before it is served, and says so.
            let gives_up = self.over && [400, 408, 503].contains(&reply.status);
            if gives_up {
                // Of half a HEAD the server may not know that it is one.
                let length = reply.field("Content-Length").and_then(|text| text.parse().ok());
                let body_follows = wanted.head_only && rest.len() == length.unwrap_or(0);
                rest = if body_follows { &[] } else { rest };
            } else {
                assert_eq!(reply.status, wanted.status);
                assert!(reply.body == wanted.body, "{:?}", reply.fields);
            }
            self.wanted.pop_front();
        }
        // A reply without a request may only say that the connection ends.
        if self.wanted.is_empty()
            && let Some((reply, behind)) = Reply::next(rest, false)
        {
            assert!(behind.is_empty() && !self.over && !reply.stays(), "{reply:?}");
            assert!([400, 408, 503].contains(&reply.status), "{reply:?}");
            self.over = true;
            rest = behind;
        }
        self.got = rest.to_vec();
    }
}

fn request(dice: &mut Dice) -> (Vec<u8>, Wanted) {
    let pattern = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-\n";
    let count = 1 << dice.below(18);
    let count = dice.below(count) as usize;
    let body: Vec<u8> = pattern.iter().copied().cycle().take(count).collect();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
    let wanted = |status, body: &[u8]| Wanted { head_only: false, status, body: body.to_vec() };
    match dice.below(8) {
        0 => (get("/"), wanted(200, b"Hello, World!")),
        1 => (get("/nowhere"), wanted(404, b"404 Not Found\n")),
        2 => (get(&format!("/slow?ms={}", dice.below(500))), wanted(200, b"slow\n")),
        3 => {
            let head = format!("HEAD /bytes/{count} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
            (head, Wanted { head_only: true, ..wanted(200, b"") })
        }
        4 | 5 => (get(&format!("/bytes/{count}")), wanted(200, &body)),
        6 => {
            let body: Vec<u8> = (0..dice.below(5_000)).map(|_| dice.below(256) as u8).collect();
            let mut post =
                format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len())
                    .into_bytes();
            post.extend_from_slice(&body);
            (post, wanted(200, &body))
        }
        _ => {
            let body: Vec<u8> = (0..dice.below(2_000)).map(|_| dice.below(256) as u8).collect();
            let mut post =
                b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n".to_vec();
            post.extend_from_slice(if dice.below(2) == 0 {
                b"Expect: 100-continue\r\n\r\n"
            } else {
                b"\r\n"
            });
            for chunk in body.chunks(1 + dice.below(300) as usize) {
                post.extend_from_slice(format!("{:x};x=y\r\n", chunk.len()).as_bytes());
                post.extend_from_slice(chunk);
                post.extend_from_slice(b"\r\n");
            }
            post.extend_from_slice(b"0\r\nSum: x\r\n\r\n");
            (post, wanted(200, &body))
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn clients(sim: &mut Sim, server: &Server<Http>, dice: &mut Dice) {
    let mut clients: Vec<_> = (0..6).map(|_| Client::new(sim.connect(server.address()))).collect();
    for _ in 0..30 {
        let index = dice.below(clients.len() as u64) as usize;
        let client = &mut clients[index];
        match dice.below(16) {
            0 => client.peer.read_at(1_000 + dice.below(1_000_000) as usize),
            1 => client.peer.resume_reading(),
            2 => client.peer.half_close(),
            3 if dice.below(4) == 0 => client.peer.reset(),
            _ => client.ask(sim.now(), dice),
        }
        let longest = 1 << dice.below(12);
        sim.advance(millis(dice.below(longest)));
        clients.iter_mut().for_each(Client::check);
    }
    sim.advance(secs(5));
    clients.iter_mut().for_each(Client::check);
}

#[test]
fn replies_are_in_order_whatever_goes_wrong() {
    let summary = sim::swarm(number("SIM_FIRST", 1), number("SIM_SEEDS", 60), |sim| {
        let mut dice = Dice(sim.seed());
        let mut config = config();
        if dice.below(3) == 0 {
            config.limits.requests_max = Some(1 + dice.below(8));
        }
        let server = serve_with(sim, config);
        clients(sim, &server, &mut dice);
        if dice.below(3) == 0 && !server.is_finished() {
            server.shutdown();
        }
    });
    assert!(summary.faults > 0);
}

#[test]
fn everything_is_answered_where_nothing_goes_wrong() {
    for seed in 1..=20 {
        let mut sim = Sim::new(seed);
        let mut dice = Dice(seed);
        let server = serve(&mut sim);
        let mut client = Client::new(sim.connect(server.address()));
        for _ in 0..40 {
            let (request, wanted) = request(&mut dice);
            client.peer.send(&request);
            client.wanted.push_back(wanted);
        }
        sim.advance(secs(25));
        client.check();
        assert!(client.wanted.is_empty() && client.got.is_empty(), "seed {seed}");
        drop(client);
        sim.advance(secs(60));
        sim.assert_clean();
    }
}

#[test]
fn whatever_fails_the_next_client_is_served() {
    sim::torture(usize::MAX, |sim| {
        let server = serve(sim);
        let visitor = sim.connect(server.address());
        visitor.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe");
        sim.advance(millis(100));
        visitor.send(b"lloGET /slow?ms=50 HTTP/1.1\r\nHost: a\r\n\r\n");
        sim.advance(millis(100));
        visitor.send(b"GET /bytes/300000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        sim.advance(secs(1));
        visitor.close();
        // If this one meets the failure, the next one does not.
        let served = (0..2).any(|_| {
            let peer = sim.connect(server.address());
            peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            sim.advance(secs(3));
            Reply::next(&peer.take(), false).is_some_and(|(reply, _)| reply.status == 200)
        });
        assert!(served);
    });
}
