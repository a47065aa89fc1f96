//! Mistakes of handlers and of tests: a simulated world notices each of them, and says which it is.

#[path = "scenarios/basics.rs"]
mod basics;

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use wheelhouse::sim::{self, Call, Faults, Server, Sim, errno};
use wheelhouse::{CloseReason, Config, Conn, ConnId, Context, Handler, ListenerId, Timeout};

use crate::basics::{Echo, SERVER, secs};

/// What it says when it panics, as it must.
fn panic_of(act: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(act)).expect_err("it passes");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().expect("a panic has a text")).to_owned(),
    }
}

/// Checks that a panic says all of these.
fn expect_said(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in {said:?}");
    }
}

/// Makes the mistake that its input names.
#[derive(Default)]
struct Clumsy {
    /// Asks of an idle connection whether it may stay.
    asks: bool,
    owes: Vec<ConnId>,
}

impl Handler for Clumsy {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        let Some(word) = input.first().copied() else { return };
        match word {
            // Leaves everything unread.
            b'i' => return,
            b'o' => {
                for _ in 0..20 {
                    conn.write(&[b'o'; 1 << 20]);
                }
            }
            b'k' => self.asks = true,
            b'p' => panic!("no word for {:?}", &input[..]),
            b'r' => {
                self.owes.push(conn.id());
                conn.begin_request();
            }
            b'a' => {
                let at = conn.now() + secs(1);
                conn.cx().set_alarm(at);
            }
            word => conn.write(&[word]),
        }
        input.advance(input.len());
    }

    fn on_idle(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        if self.asks {
            let _ = conn.decide_keep_alive(0);
        }
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: wheelhouse::Closed, (): ()) {
        assert!(closed.reason != CloseReason::PeerReset, "none resets");
    }

    fn on_alarm(&mut self, _: &mut Context<'_>, _: wheelhouse::AlarmId) {
        panic!("alarmed");
    }

    fn on_listener_failed(&mut self, _: &mut Context<'_>, _: ListenerId, error: &io::Error) {
        panic!("deaf: {error}");
    }
}

fn clumsy(sim: &mut Sim) -> Server<Clumsy> {
    sim.serve(SERVER, Config::default(), Clumsy::default())
}

/// Says something to a clumsy server and lets time pass.
fn say(sim: &mut Sim, words: &[u8]) -> Server<Clumsy> {
    let server = clumsy(sim);
    let peer = sim.connect(&server);
    peer.send(words);
    sim.advance(secs(100));
    server
}

#[test]
fn a_callback_that_panics_fails_the_run() {
    let said = panic_of(|| drop(say(&mut Sim::new(0xabc), b"p!")));
    expect_said(&said, &["on_data", "connection 0.", "no word for", "seed 0xabc", "+0ns"]);
    let said = panic_of(|| {
        let mut sim = Sim::new(1);
        let server = clumsy(&mut sim);
        let peer = sim.connect(&server);
        sim.settle();
        peer.reset();
        sim.settle();
    });
    expect_said(&said, &["on_closed", "none resets"]);
    let said = panic_of(|| drop(say(&mut Sim::new(1), b"a")));
    expect_said(&said, &["on_alarm", "alarmed"]);
    let said = panic_of(|| {
        let mut sim = Sim::new(1);
        let server = clumsy(&mut sim);
        server.fail(Call::Accept, 0, errno::EBADF);
        sim.advance(secs(1));
    });
    expect_said(&said, &["on_listener_failed", "deaf"]);
}

#[test]
fn a_callback_that_panics_fails_a_swarm_and_a_torture() {
    let scenario = |sim: &mut Sim| drop(say(sim, b"p"));
    expect_said(&panic_of(|| drop(sim::swarm(1, 10, scenario))), &["on_data", "no word for"]);
    expect_said(&panic_of(|| drop(sim::torture(10, scenario))), &["on_data", "no word for"]);
}

#[test]
#[cfg(debug_assertions)]
fn keep_alive_that_is_asked_without_a_request_is_a_mistake() {
    let said = panic_of(|| drop(say(&mut Sim::new(1), b"k")));
    expect_said(&said, &["on_idle", "keep-alive is decided for a request"]);
}

#[test]
fn a_closure_that_panics_fails_the_run() {
    let said = panic_of(|| {
        let mut sim = Sim::new(1);
        let server = say(&mut sim, b"");
        let peer = sim.connect(&server);
        sim.settle();
        let id = server.with(|_, cx| cx.ids()[0]);
        server.handle().post_to(id, |_, _, ()| panic!("posted")).unwrap();
        sim.advance(secs(1));
        drop(peer);
    });
    expect_said(&said, &["posted to connection"]);
    let said = panic_of(|| {
        let mut sim = Sim::new(1);
        clumsy(&mut sim).handle().post(|_, _| panic!("posted")).unwrap();
        sim.advance(secs(1));
    });
    expect_said(&said, &["the reactor at 10.0.0.1 failed"]);
}

#[test]
fn panics_that_are_meant_are_allowed() {
    let mut sim = Sim::new(1);
    sim.allow_panics();
    let server = say(&mut sim, b"p");
    server.expect_closed(CloseReason::HandlerPanic);
    let peer = sim.connect(&server);
    peer.send(b"a");
    sim.advance(secs(2));
    assert!(server.failure().is_some_and(|why| why.contains("panicked")));
    let said = panic_of(|| server.with(|_, _| ()));
    expect_said(&said, &["10.0.0.1", "callback of the loop panicked"]);
    assert!(server.handle().post(|_, _| ()).is_err());
}

#[test]
fn a_reactor_that_was_made_to_fail_is_none_of_the_handlers_mistakes() {
    let mut sim = Sim::new(1);
    let server = clumsy(&mut sim);
    server.fail(Call::Wait, 0, errno::EBADF);
    sim.advance(secs(1));
    assert!(server.is_finished());
    assert!(server.failure().is_some());
}

#[test]
fn a_handler_is_at_fault_for_these_ends() {
    for (words, label) in [(&b"p"[..], "panicked"), (b"o", "output"), (b"r", "response")] {
        let mut sim = Sim::new(1);
        sim.allow_panics();
        let server = say(&mut sim, words);
        expect_said(&panic_of(|| server.assert_blameless()), &["to blame", label]);
    }
    let mut sim = Sim::new(1);
    let server = say(&mut sim, &[b'i'; 100_000]);
    expect_said(&panic_of(|| server.assert_blameless()), &["to blame", "unread input"]);

    let mut sim = Sim::new(1);
    let server = say(&mut sim, b"fine");
    let peer = sim.connect(&server);
    peer.send(b"r");
    sim.advance(secs(10));
    // The handler is not at fault for a reply that falls due while the clock jumps.
    sim.jump_clocks(secs(3_600));
    sim.advance(secs(1));
    assert_eq!(server.stats().closed(CloseReason::Timeout(Timeout::Response)), 1);
    server.assert_blameless();
}

/// Sends all what any of them says, in the order of a std map.
#[derive(Default)]
struct Gossip {
    ids: HashMap<ConnId, ()>,
}

impl Handler for Gossip {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.ids.insert(conn.id(), ());
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        let said = input.split();
        for id in self.ids.keys() {
            if let Some(mut other) = conn.other(*id) {
                other.write(&said);
            }
        }
    }
}

#[test]
fn a_handler_that_goes_through_a_std_map_is_not_the_same_run_twice() {
    let said = panic_of(|| {
        sim::swarm(1, 1, |sim| {
            sim.set_faults(Faults::NONE);
            let server = sim.serve(SERVER, Config::default(), Gossip::default());
            let peers: Vec<_> = (0..12).map(|_| sim.connect(&server)).collect();
            sim.advance(secs(2));
            for peer in &peers {
                peer.send(b"psst");
            }
            sim.advance(secs(2));
        });
    });
    expect_said(&said, &["seed 0x1", "twice", "HashMap", "std::time", "thread"]);
}

#[test]
fn a_scenario_that_is_not_the_same_each_time_is_noticed_by_a_torture() {
    let mut runs = 0;
    let said = panic_of(|| {
        sim::torture(1_000, |sim| {
            runs += 1;
            let server = sim.serve(SERVER, Config::default(), Echo);
            let peer = sim.connect(&server);
            if runs == 1 {
                peer.send(b"x");
            }
            sim.advance(secs(1));
        });
    });
    expect_said(&said, &["same run each time"]);
}

#[test]
fn a_failure_that_never_comes_is_noticed() {
    let mut sim = Sim::new(1);
    let server = sim.serve(SERVER, Config::default(), Echo);
    server.fail(Call::Accept, 7, errno::EMFILE);
    sim.fail(Call::Connect, 0, errno::ENETUNREACH);
    assert_eq!(sim.failures_left(), 2);
    sim.advance(secs(1));
    let said = panic_of(|| sim.assert_clean());
    expect_said(&said, &["never came", "Accept", "EMFILE (24)", "10.0.0.1"]);
}

#[test]
fn what_is_still_there_is_listed() {
    let mut config = Config::default();
    config.timeouts.idle = None;
    let mut sim = Sim::new(1);
    let server = sim.serve(SERVER, config, Echo);
    let peer = sim.connect(&server);
    peer.send(b"x");
    sim.settle();
    let held = ["0.", "Idle", "peer that the test holds", "timeouts that are off: idle"];
    expect_said(&panic_of(|| drop(server.expect_closed(CloseReason::PeerEof))), &held);
    expect_said(&panic_of(|| sim.assert_clean()), &held);
    expect_said(&panic_of(|| sim.converge()), &held);
    peer.close();
    sim.settle();
    let said = panic_of(|| drop(server.expect_closed(CloseReason::PeerReset)));
    expect_said(&said, &["PeerEof", "instead of PeerReset"]);
}

#[test]
fn text_that_names_nothing_is_quoted() {
    let mut sim = Sim::new(1);
    let server = sim.serve(SERVER, Config::default(), Echo);
    expect_said(&panic_of(|| drop(sim.connect("10.0.0.1"))), &["\"10.0.0.1\"", "IP:PORT"]);
    expect_said(&panic_of(|| sim.partition("nowhere", &server)), &["\"nowhere\""]);
    let taken = panic_of(|| drop(sim.serve(SERVER, Config::default(), Echo)));
    expect_said(&taken, &["cannot listen on 10.0.0.1:7"]);
    let mut config = Config::default();
    config.timeouts.idle = Some(Duration::ZERO);
    let refused = panic_of(|| drop(sim.serve("10.0.0.2:7", config, Echo)));
    expect_said(&refused, &["timeouts.idle"]);
    let silent = sim.spawn("10.0.0.3", Config::default(), Echo, |_| ());
    expect_said(&panic_of(|| drop(silent.address())), &["10.0.0.3", "without a listener"]);
}
