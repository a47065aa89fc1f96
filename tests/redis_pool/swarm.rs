//! Whatever goes wrong: each client gets the replies to its own commands, or errors, and in the end
//! all is well again.

use std::collections::VecDeque;
use std::env;

use wheelhouse::Config;
use wheelhouse::sim::{self, Faults, Peer, Random, Sim, Summary};

use super::fake::Fake;
use super::world::{UPSTREAM, commands, millis, pooler, secs, text};
use crate::reply::Scanner;

/// What may answer a command, beside an error.
type Wanted = fn(reply: &str, client: &mut Client) -> bool;

/// Asks for keys of its own.
struct Client {
    peer: Peer,
    number: u64,
    got: Vec<u8>,
    wanted: VecDeque<Wanted>,
    /// The least that INCR may say next.
    counted: u64,
    /// How many of them were sent.
    sent: u64,
}

impl Client {
    const fn new(peer: Peer, number: u64) -> Self {
        Self { peer, number, got: Vec::new(), wanted: VecDeque::new(), counted: 0, sent: 0 }
    }

    fn ask(&mut self, random: &mut Random) {
        let counts: Wanted = |reply, client| {
            let Some(count) = reply.strip_prefix(':') else { return false };
            let count: u64 = count.strip_suffix('|').and_then(|count| count.parse().ok()).unwrap();
            let fits = count > client.counted && count <= client.sent;
            client.counted = count;
            fits
        };
        let ok: Wanted = |reply, _| reply == "+OK|";
        let queued: Wanted = |reply, _| reply == "+QUEUED|";
        let executed: Wanted = |reply, client| match reply {
            "*-1|" => true,
            _ => {
                let count = reply.strip_prefix("*1|:").and_then(|text| text.strip_suffix('|'));
                let count = count.and_then(|count| count.parse().ok()).unwrap_or(0);
                let fits = count > client.counted && count <= client.sent;
                client.counted = count;
                fits
            }
        };
        let own: Wanted =
            |reply, client| reply == "$-1|" || reply.ends_with(&format!("|v{}|", client.number));
        let clean: Wanted = |reply, _| reply == "+0 false 0|";
        let large: Wanted = |reply, _| reply.len() == "$100000||".len() + 100_000;
        let refused: Wanted = |_, _| false;
        let n = self.number;
        let (line, wanted): (String, &[Wanted]) = match random.below(12) {
            0..=2 => (format!("INCR c{n}"), &[counts]),
            3 => (format!("SET k{n} v{n}"), &[ok]),
            4 | 5 => (format!("GET k{n}"), &[own]),
            6 => ("ECHO x".into(), &[clean]),
            7 => (format!("MULTI\nINCR c{n}\nEXEC"), &[ok, queued, executed]),
            8 => (format!("WATCH k{n}\nGET k{n}\nUNWATCH\nECHO x"), &[ok, own, ok, clean]),
            9 => ("GETRANGE k 0 100000".into(), &[large]),
            10 => (format!("SELECT 0\nCLIENT SETNAME n{n}"), &[ok, ok]),
            _ => ("SELECT 1".into(), &[refused]),
        };
        self.sent += line.matches("INCR").count() as u64;
        self.wanted.extend(wanted);
        let bytes = commands(&line);
        if random.below(4) == 0 {
            self.peer.drip(&bytes, millis(1 + random.below(10)));
        } else {
            self.peer.send(&bytes);
        }
    }

    fn check(&mut self) {
        self.got.extend(self.peer.take());
        loop {
            let mut scanner = Scanner::default();
            let step = scanner.next(&self.got).expect("a reply");
            if !step.ends {
                return;
            }
            let reply = text(&self.got.drain(..step.len).collect::<Vec<_>>());
            let wanted = self.wanted.pop_front();
            let wanted = wanted.unwrap_or_else(|| panic!("{reply:?} is a reply to nothing"));
            let is_error = ["-ERR ", "-EXECABORT "].iter().any(|error| reply.starts_with(error));
            assert!(is_error || wanted(&reply, self), "client {}: {reply:?}", self.number);
        }
    }
}

fn scenario(sim: &mut Sim) {
    let mut random = sim.random();
    // A panic takes back what a callback wrote, and not what the handler noted of it.
    sim.set_faults(Faults { panic: 0, ..sim.faults() });
    let mut config = Config::default();
    config.timeouts.idle = Some(secs(1 + random.below(200)));
    let redis = sim.serve(UPSTREAM, config, Fake::default());
    let size = 1 + random.below(4) as usize;
    let pooler = pooler(sim, size);
    let mut number = 0;
    let mut dial = |sim: &mut Sim| {
        number += 1;
        Client::new(sim.connect(&pooler), number)
    };
    let mut clients: Vec<_> = (0..1 + random.below(12)).map(|_| dial(sim)).collect();
    for _ in 0..40 {
        for client in &mut clients {
            client.check();
            if client.peer.closed().is_some() || random.below(15) == 0 {
                if random.below(2) == 0 {
                    client.peer.reset();
                } else {
                    client.peer.close();
                }
                *client = dial(sim);
            }
            // A slow one is not disturbed.
            if client.wanted.is_empty() || random.below(8) == 0 && client.wanted.len() > 3 {
                for _ in 0..random.below(4) {
                    if client.wanted.is_empty() {
                        client.ask(&mut random);
                    }
                }
            }
        }
        match random.below(20) {
            0 => sim.partition("10.0.0.1", "10.0.0.2"),
            1 | 2 => sim.repair("10.0.0.1", "10.0.0.2"),
            3 => redis.with(|_, cx| {
                for id in cx.ids() {
                    if let Some(mut conn) = cx.conn(id) {
                        conn.abort();
                    }
                }
            }),
            4 => redis.with(|fake, _| fake.instead = Some(b"?".to_vec())),
            _ => {}
        }
        sim.advance(millis(random.below(1_500)));
    }
    sim.repair("10.0.0.1", "10.0.0.2");
    sim.set_faults(Faults::NONE);
    redis.with(|fake, _| fake.instead = None);
    // Over a slow link with segments of one byte replies take minutes.
    for rest in (0..20).rev() {
        sim.advance(secs(100));
        clients.iter_mut().for_each(Client::check);
        let done = |client: &Client| client.wanted.is_empty() || client.peer.closed().is_some();
        let waits = clients.iter().find(|client| !done(client));
        let Some(client) = waits else { break };
        assert!(rest > 0, "client {} waits for a reply", client.number);
    }
    drop(clients);
    sim.advance(secs(100));
    let state = pooler.with(|pooler, _| format!("{pooler:?}"));
    assert!(state.contains("exchanges: {}, pinned: 0"), "{state}");
    let peer = sim.connect(&pooler);
    peer.send(&commands("ECHO x"));
    sim.advance(secs(7));
    assert_eq!(text(&peer.take()), "+0 false 0|");
}

#[test]
fn clients_get_their_own_replies_or_errors() {
    let number =
        |name, default| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    // The world of seed 1 is slow: all bytes come one by one.
    let summary = sim::swarm(number("SIM_FIRST", 2), number("SIM_SEEDS", 4), scenario);
    print(&summary);
}

#[expect(clippy::print_stdout, reason = "figures for the reader of the output")]
fn print(summary: &Summary) {
    println!("swarm redis-pool: {summary}");
}
