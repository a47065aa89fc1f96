//! Services where anything may fail: what must hold of a reactor holds, their connections end, and the
//! next one is served.
//!
//! `SIM_SEEDS` and `SIM_FIRST` say how many seeds are run and from which one on, `TORTURE_RUNS` how many
//! runs with a single failure at most.

use std::env;

use wheelhouse::sim::{self, Faults, Peer, Server, Sim};
use wheelhouse::{Config, Handler};

use crate::shorthands::{millis, secs};
use crate::world::{Echo, HERE, METRICS, get};

const CONSOLE: &str = "unix:/run/echo.console";

fn serve(sim: &mut Sim) -> Server<Echo> {
    let mut bound = true;
    let server = sim.spawn("10.0.0.1", Config::default(), Echo::default(), |reactor| {
        // Each of these may be made to fail.
        bound &= reactor.listen(HERE).is_ok();
        bound &= reactor.serve_metrics(METRICS).is_ok();
        bound &= reactor.serve_console("/run/echo.console").is_ok();
    });
    if !bound {
        server.shutdown();
    }
    server
}

/// Whatever failed before: if it fails once more, the next one is answered.
fn expect_answers<H: Handler>(sim: &mut Sim, server: &Server<H>) {
    assert!(server.failure().is_none(), "{:?}", server.failure());
    if server.is_finished() {
        return;
    }
    for (address, question, answer) in [
        (METRICS, &get("/healthz")[..], "alive\n"),
        (CONSOLE, "set stall_report 30ms\n", " is 30ms, and was"),
    ] {
        let answered = (0..3).any(|_| {
            let peer = sim.connect(address);
            peer.send(question.as_bytes());
            sim.advance(secs(2));
            let reply = String::from_utf8(peer.take()).unwrap();
            peer.close();
            sim.advance(secs(1));
            reply.contains(answer)
        });
        assert!(answered, "nothing is answered at {address}");
    }
}

/// What peers of services send, and none of it is a mistake of the server.
fn let_loose(sim: &mut Sim) -> Vec<Peer> {
    let mut random = sim.random();
    let questions: [&[u8]; 8] = [
        b"connections\n",
        b"json connections sort=age limit=3\n",
        b"stats\nstats\nclose 0.1\nabort 1.1\n",
        b"\xff\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\nGET /state HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\n\r\n",
        b"set limits.buffered_max 1KiB\nset limits.buffered_max 1GiB\n",
    ];
    let mut peers = Vec::new();
    for at in 0..24 {
        let address = [METRICS, CONSOLE, HERE][at % 3];
        let peer = sim.connect(address);
        peer.send(questions[random.below(questions.len() as u64) as usize]);
        match random.below(6) {
            0 => peer.stop_reading(),
            1 => peer.half_close(),
            2 => peer.read_at(500),
            _ => {}
        }
        peers.push(peer);
        sim.advance(millis(random.below(300)));
    }
    for peer in &peers {
        sim.advance(millis(random.below(700)));
        match random.below(3) {
            0 => peer.reset(),
            1 => peer.close(),
            _ => {}
        }
    }
    peers
}

#[test]
#[expect(clippy::print_stdout, reason = "figures for the reader of the output")]
fn swarm_services() {
    let number = |name: &str, default| {
        env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let summary = sim::swarm(number("SIM_FIRST", 2), number("SIM_SEEDS", 20), |sim| {
        let server = serve(sim);
        let _peers = let_loose(sim);
        sim.converge();
        sim.set_faults(Faults::NONE);
        // A process that was late runs again.
        sim.advance(secs(60));
        expect_answers(sim, &server);
    });
    println!("swarm services: {summary}");
}

#[test]
#[expect(clippy::print_stdout, reason = "figures for the reader of the output")]
fn torture_services() {
    let most = if cfg!(debug_assertions) { 60 } else { usize::MAX };
    let runs = env::var("TORTURE_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(most);
    let summary = sim::torture(runs, |sim| {
        let server = serve(sim);
        let (client, collector, console) =
            (sim.connect(HERE), sim.connect(METRICS), sim.connect(CONSOLE));
        client.send(b"hello");
        collector.send(get("/metrics").as_bytes());
        console.send(b"connections\nstats\n");
        sim.advance(secs(1));
        collector.half_close();
        console.half_close();
        client.half_close();
        sim.advance(secs(1));
        expect_answers(sim, &server);
    });
    println!("torture services: {summary}");
}
