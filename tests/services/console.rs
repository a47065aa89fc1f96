//! The console, in virtual time.

use std::collections::BTreeSet;

use serde_json::Value;
use wheelhouse::sim::{End, Peer, Server, Sim};
use wheelhouse::{CloseReason, Config};

use crate::shorthands::{millis, secs};
use crate::world::{Echo, HERE};

const CONSOLE: &str = "unix:/run/echo.console";

fn serve(sim: &mut Sim, config: Config) -> Server<Echo> {
    sim.spawn("10.0.0.1", config, Echo::default(), |reactor| {
        reactor.listen(HERE).unwrap();
        let address = reactor.serve_console("/run/echo.console").unwrap();
        assert_eq!(address.to_string(), CONSOLE);
    })
}

/// Asks, and takes the one reply.
fn ask(sim: &mut Sim, console: &Peer, question: &str) -> String {
    console.send(format!("{question}\n").as_bytes());
    sim.settle();
    String::from_utf8(console.take()).unwrap()
}

fn ask_json(sim: &mut Sim, console: &Peer, question: &str) -> Value {
    let reply = ask(sim, console, &format!("json {question}"));
    assert!(reply.ends_with('\n') && reply.matches('\n').count() == 1, "one line: {reply:?}");
    serde_json::from_str(&reply).unwrap_or_else(|error| panic!("{error}: {reply}"))
}

/// A server with a client in each state that lasts, and a console.
fn busy_server(sim: &mut Sim) -> (Server<Echo>, Peer, Vec<Peer>) {
    let server = serve(sim, Config::default());
    let silent = sim.connect_from("10.1.0.1:1", HERE);
    let idle = sim.connect_from("10.2.0.1:1", HERE);
    idle.send(b"hello");
    let deaf = sim.connect_from("10.2.0.2:1", HERE);
    deaf.stop_reading();
    deaf.send(&vec![b'x'; 600_000]);
    let console = sim.connect(CONSOLE);
    sim.advance(secs(1));
    (server, console, vec![silent, idle, deaf])
}

#[test]
fn each_question_has_one_reply_in_two_forms() {
    let mut sim = Sim::new(1);
    let (server, console, _peers) = busy_server(&mut sim);
    for question in [
        "connections",
        "connections sort=queued limit=2",
        "connection 0.1",
        "stats",
        "pools",
        "endpoints",
        "limits",
        "help",
        "nonsense",
        "close 9.9",
        "set limits.input_max 1",
    ] {
        let text = ask(&mut sim, &console, question);
        assert!(
            text.ends_with("\n\n") && text.matches("\n\n").count() == 1,
            "{question}: {text:?}"
        );
        assert!(ask_json(&mut sim, &console, question).is_object(), "{question}");
    }
    assert_eq!(server.handler().opened.get(), 3);
    assert!(console.is_open());
}

#[test]
fn connections_are_listed_with_the_deadline_that_comes_next() {
    let mut sim = Sim::new(1);
    let (_server, console, _peers) = busy_server(&mut sim);
    let reply = ask_json(&mut sim, &console, "connections");
    assert_eq!(reply["shown"], 3);
    let of = |key: &str| -> Vec<Value> {
        reply["connections"].as_array().unwrap().iter().map(|row| row[key].clone()).collect()
    };
    assert_eq!(of("id"), ["0.1", "1.1", "2.1"]);
    assert_eq!(of("peer"), ["10.1.0.1:1", "10.2.0.1:1", "10.2.0.2:1"]);
    assert_eq!(of("state"), ["connected", "idle", "connected"]);
    assert_eq!(of("deadline"), ["first_byte", "idle", "write"]);
    assert_eq!(of("age"), [1.0, 1.0, 1.0]);
    assert_eq!(of("due_in")[..2], [9.0, 74.0]);
    assert_eq!(of("bytes_in")[..2], [0, 5]);
    assert!(of("queued")[2].as_u64() > Some(10_000));
    let ids = |sim: &mut Sim, question: &str| -> Vec<String> {
        let reply = ask_json(sim, &console, question);
        let rows = reply["connections"].as_array().unwrap();
        rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&mut sim, "connections state=idle"), ["1.1"]);
    assert_eq!(ids(&mut sim, "connections peer=10.2.0.0/16"), ["1.1", "2.1"]);
    assert_eq!(ids(&mut sim, "connections peer=10.2.0.0/16 state=connected"), ["2.1"]);
    assert_eq!(ids(&mut sim, "connections limit=2"), ["0.1", "1.1"]);
    assert_eq!(ids(&mut sim, "connections sort=in"), ["2.1", "1.1", "0.1"]);
    assert_eq!(ids(&mut sim, "connections sort=queued limit=1"), ["2.1"]);
    // All are equally old: then the earlier place comes first.
    assert_eq!(ids(&mut sim, "connections sort=age limit=2"), ["0.1", "1.1"]);
    let one = ask_json(&mut sim, &console, "connection 2.1");
    assert_eq!(one["state"], "connected");
    assert!(one["doing"].as_str().unwrap().contains("is congested"), "{one}");
    assert!(one["deadline_write_in"].as_f64().is_some_and(|left| left <= 60.0), "{one}");
}

#[test]
fn connections_are_closed_and_aborted() {
    let mut sim = Sim::new(1);
    let (server, console, peers) = busy_server(&mut sim);
    assert_eq!(ask(&mut sim, &console, "close 1.1"), "connection 1.1 ends\n\n");
    assert_eq!(ask(&mut sim, &console, "abort 0.1"), "connection 0.1 ends\n\n");
    assert_eq!(peers[1].closed(), Some(End::Fin));
    assert_eq!(peers[0].closed(), Some(End::Reset));
    peers[1].close();
    sim.settle();
    let mut reasons: Vec<_> =
        server.take_closed().iter().map(|closed| closed.reason.label()).collect();
    reasons.sort_unstable();
    let [abort, close] =
        [CloseReason::HandlerAbort, CloseReason::HandlerClose].map(|it| it.label());
    assert_eq!(reasons, [abort, close]);
    for id in ["1.1", "1.2", "1", "x", "99999999.1"] {
        assert!(ask(&mut sim, &console, &format!("close {id}")).starts_with("error: "), "{id}");
    }
}

#[test]
fn settings_change_while_it_runs() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default());
    let console = sim.connect(CONSOLE);
    let client = sim.connect(HERE);
    client.send(b"1");
    sim.settle();
    assert_eq!(
        ask(&mut sim, &console, "set limits.requests_max 2"),
        "limits.requests_max is 2, and was off\n\n"
    );
    client.send(b"2");
    sim.settle();
    client.expect(b"12");
    assert_eq!(client.closed(), Some(End::Fin));
    client.close();
    sim.settle();
    server.expect_closed(CloseReason::MaxRequests);
    // What all may hold does not fall below what one holds.
    assert!(
        ask(&mut sim, &console, "set limits.requests_max off")
            .starts_with("limits.requests_max is off")
    );
    let deaf = sim.connect(HERE);
    deaf.stop_reading();
    deaf.send(&vec![b'x'; 600_000]);
    sim.advance(secs(1));
    assert!(ask(&mut sim, &console, "set limits.buffered_max 1KiB").starts_with("error: "));
    assert!(deaf.is_open());
    deaf.reset();
    sim.advance(secs(1));
    server.expect_closed(CloseReason::PeerReset);
    assert_eq!(
        ask(&mut sim, &console, "set limits.buffered_max 1KiB"),
        "limits.buffered_max is 1KiB, and was 268435456\n\n"
    );
    let limits = ask_json(&mut sim, &console, "limits");
    let rows = limits["limits"].as_array().unwrap();
    let buffered = rows.iter().find(|row| row["name"] == "limits.buffered_max").unwrap();
    assert_eq!((&buffered["value"], &buffered["may_change"]), (&"1024".into(), &true.into()));
    // Clients are not counted where no limit was set at the start.
    assert!(ask(&mut sim, &console, "set limits.clients.connections 1").starts_with("error: "));
    assert!(ask(&mut sim, &console, "clients").starts_with("error: clients are not counted"));
}

#[test]
fn limits_of_clients_change_where_clients_are_counted() {
    let mut sim = Sim::new(1);
    let mut config = Config::default();
    config.limits.clients.connections = Some(10);
    let server = serve(&mut sim, config);
    let console = sim.connect(CONSOLE);
    let from = |host: u8, port: u16| format!("10.9.0.{host}:{port}");
    let _clients: Vec<_> = [(1, 1), (1, 2), (2, 1)]
        .map(|(host, port)| sim.connect_from(from(host, port), HERE))
        .into_iter()
        .inspect(|client| client.send(b"x"))
        .collect();
    sim.settle();
    let clients = ask_json(&mut sim, &console, "clients");
    assert_eq!(clients["known"], 2);
    assert_eq!(clients["clients"][0]["client"], "10.9.0.1/32");
    assert_eq!(clients["clients"][0]["connections"], 2);
    assert!(ask(&mut sim, &console, "set limits.clients.connections 2").starts_with("limits"));
    let third = sim.connect_from(from(1, 3), HERE);
    let second = sim.connect_from(from(2, 2), HERE);
    sim.advance(secs(2));
    assert!(!third.is_open() && second.is_open());
    assert_eq!(server.stats().refused_client, 1);
    assert!(ask(&mut sim, &console, "set limits.accept_rate 1/s").starts_with("limits"));
    let late: Vec<_> = (3..6).map(|host| sim.connect_from(from(host, 1), HERE)).collect();
    sim.advance(millis(500));
    let accepted = server.stats().accepted;
    sim.advance(secs(5));
    assert!(server.stats().accepted > accepted, "some wait for the rate");
    drop(late);
}

#[test]
fn a_shutdown_is_begun_and_made_hard() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default());
    let client = sim.connect(HERE);
    client.send(b"x");
    let console = sim.connect(CONSOLE);
    sim.settle();
    assert_eq!(ask(&mut sim, &console, "shutdown"), "it is shutting down\n\n");
    sim.advance(millis(100));
    let stats = ask_json(&mut sim, &console, "stats");
    assert_eq!(stats["ready"], false);
    assert_eq!(stats["unready_because"], "it is shutting down");
    assert!(!server.is_finished());
    console.send(b"shutdown\n");
    sim.settle();
    assert!(server.is_finished());
    assert_eq!(client.closed(), Some(End::Reset));
    assert_eq!(console.received(), b"it ends at once\n\n");
    assert_eq!(server.descriptors(), 0);
}

#[test]
fn a_shutdown_waits_for_no_console_in_the_middle_of_a_listing() {
    let mut sim = Sim::new(1);
    let (server, peers, console) = crowd(&mut sim, 2_000);
    console.stop_reading();
    console.send(b"connections\n");
    sim.settle();
    drop(peers);
    server.shutdown();
    sim.advance(secs(10));
    assert!(server.is_finished());
}

/// A server with many connections, and a console that has asked nothing.
fn crowd(sim: &mut Sim, count: usize) -> (Server<Echo>, Vec<Peer>, Peer) {
    sim.set_descriptors(100_000);
    let mut config = Config::default();
    config.timeouts.first_byte = Some(secs(3_600));
    let server = serve(sim, config);
    let mut peers = Vec::new();
    while peers.len() < count {
        peers.extend((0..500.min(count - peers.len())).map(|_| sim.connect(HERE)));
        sim.settle();
    }
    assert_eq!(server.connections(), count);
    let console = sim.connect(CONSOLE);
    (server, peers, console)
}

const fn many() -> usize {
    if cfg!(debug_assertions) { 6_000 } else { 60_000 }
}

#[test]
fn a_listing_goes_on_while_connections_come_and_go() {
    let mut sim = Sim::new(1);
    sim.set_buffers(16_384, 16_384);
    let (server, mut peers, console) = crowd(&mut sim, many());
    let before: BTreeSet<String> =
        server.with(|_, cx| cx.ids().iter().map(ToString::to_string).collect());
    console.read_at(2_000_000);
    let turns = server.stats().turns;
    console.send(b"json connections\n");
    let mut text = Vec::new();
    let mut rounds = 0;
    while !text.ends_with(b"\n") {
        rounds += 1;
        assert!(rounds < 10_000, "it never ends");
        // The first and the last go, and another comes.
        for peer in [peers.swap_remove(0), peers.pop().unwrap()] {
            peer.reset();
        }
        peers.push(sim.connect(HERE));
        sim.advance(millis(5));
        text.extend(console.take());
    }
    assert!(rounds > 20, "{rounds}");
    // A turn makes a few hundred rows at most.
    assert!(server.stats().turns - turns > many() as u64 / 256);
    let reply: Value = serde_json::from_slice(&text).unwrap();
    let rows = reply["connections"].as_array().unwrap();
    let ids: BTreeSet<_> = rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), rows.len(), "none is listed twice");
    let after: BTreeSet<String> =
        server.with(|_, cx| cx.ids().iter().map(ToString::to_string).collect());
    for id in before.intersection(&after) {
        assert!(ids.contains(id), "{id} was there all the while");
    }
    assert_eq!(reply["shown"], rows.len());
}

#[test]
fn a_client_that_never_reads_its_listing_costs_little_and_ends() {
    let mut sim = Sim::new(1);
    sim.set_buffers(16_384, 16_384);
    let (server, _peers, console) = crowd(&mut sim, many());
    console.stop_reading();
    console.send(b"connections\n".repeat(100).as_slice());
    sim.advance(secs(1));
    let held = server.stats();
    assert_eq!(held.service_connections, 1);
    let client = sim.connect(HERE);
    client.send(b"served");
    sim.settle();
    client.expect(b"served");
    assert!(console.is_open());
    sim.advance(secs(30));
    assert_eq!(console.closed(), Some(End::Reset));
    assert_eq!(server.stats().service_connections, 0);
}

#[test]
fn the_greatest_of_many_are_found() {
    let mut sim = Sim::new(1);
    let (_server, peers, console) = crowd(&mut sim, many());
    for (index, peer) in peers.iter().enumerate().step_by(97) {
        peer.send(&vec![b'x'; index % 1_009 + 1]);
    }
    sim.settle();
    let reply = ask_json(&mut sim, &console, "connections sort=in limit=7");
    let got: Vec<_> = reply["connections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["bytes_in"].as_u64().unwrap())
        .collect();
    let mut all: Vec<_> =
        (0..peers.len()).step_by(97).map(|index| (index % 1_009 + 1) as u64).collect();
    all.sort_unstable_by_key(|sent| std::cmp::Reverse(*sent));
    assert_eq!(got, all[..7]);
    assert_eq!(reply["matched"], peers.len());
}

mod hostile {
    use super::*;

    /// Sends something, and returns what comes and how it ends.
    fn outcome(bytes: &[u8]) -> (String, Option<End>) {
        let mut sim = Sim::new(1);
        let server = serve(&mut sim, Config::default());
        let console = sim.connect(CONSOLE);
        console.send(bytes);
        sim.advance(secs(1));
        let client = sim.connect(HERE);
        client.send(b"served");
        sim.settle();
        client.expect(b"served");
        assert!(server.stats().panics == 0);
        (String::from_utf8_lossy(&console.received()).into_owned(), console.closed())
    }

    #[test]
    fn a_line_without_an_end_is_cut_off() {
        let error = "error: a question is a line of at most 4,096 bytes\n\n";
        let (reply, end) = outcome(&[b'x'; 1 << 20]);
        assert_eq!(reply, error);
        assert!(end.is_some());
        // The longest one is a question still.
        let longest = [b"help".as_slice(), &[b' '; 4_092], b"\r\n"].concat();
        assert!(outcome(&longest).0.starts_with("connections "));
        assert_eq!(outcome(&[b"help".as_slice(), &[b' '; 4_094], b"\n"].concat()).0, error);
    }

    #[test]
    fn what_is_no_text_is_refused() {
        for bytes in
            [&b"\xff\xfe\x00\n"[..], b"stats\0\n", b"\x1b[2J\n", b"GET / HTTP/1.1\r\n\x01\n"]
        {
            let (reply, end) = outcome(bytes);
            assert!(reply.ends_with("error: a question is text\n\n"), "{reply:?}");
            assert_eq!(end, Some(End::Fin));
        }
        let (reply, end) = outcome(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        // The empty line is none either: whatever asks has one reply.
        assert_eq!(reply.matches("error: this is no question").count(), 3);
        assert_eq!(end, None);
    }

    #[test]
    fn a_line_that_drips_has_its_time() {
        let mut sim = Sim::new(1);
        let _server = serve(&mut sim, Config::default());
        let console = sim.connect(CONSOLE);
        console.drip(&[b'x'; 100], secs(1));
        sim.advance(secs(9));
        assert!(console.is_open());
        sim.advance(secs(3));
        assert!(!console.is_open());
    }

    #[test]
    fn a_hundred_consoles_leave_the_latest_served() {
        let mut sim = Sim::new(1);
        let server = serve(&mut sim, Config::default());
        let consoles: Vec<_> = (0..100).map(|_| sim.connect(CONSOLE)).collect();
        sim.settle();
        assert_eq!(consoles.iter().filter(|console| console.is_open()).count(), 16);
        let last = sim.connect(CONSOLE);
        assert_eq!(ask_json(&mut sim, &last, "stats")["service_connections"], 16);
        assert_eq!(server.stats().service_connections, 16);
        sim.advance(secs(601));
        assert_eq!(server.stats().service_connections, 0);
    }

    #[test]
    fn questions_without_a_pause_leave_clients_served() {
        let mut sim = Sim::new(1);
        let _server = serve(&mut sim, Config::default());
        let consoles: Vec<_> = (0..16).map(|_| sim.connect(CONSOLE)).collect();
        for console in &consoles {
            console.send("stats\n".repeat(2_000).as_bytes());
        }
        let client = sim.connect(HERE);
        client.send(b"served");
        sim.settle();
        client.expect(b"served");
        for console in &consoles {
            let text = String::from_utf8(console.take()).unwrap();
            assert_eq!(text.matches("\n\n").count(), 2_000);
        }
    }
}

#[test]
fn a_question_may_end_with_the_fin() {
    let mut sim = Sim::new(1);
    let _server = serve(&mut sim, Config::default());
    let console = sim.connect(CONSOLE);
    console.send(b"json limits");
    console.half_close();
    sim.settle();
    let reply: Value = serde_json::from_slice(&console.take()).unwrap();
    assert!(reply["shown"].as_u64() > Some(20));
    assert_eq!(console.closed(), Some(End::Fin));
}

#[test]
fn a_test_asks_without_a_console() {
    let mut sim = Sim::new(1);
    let server = sim.serve(HERE, Config::default(), Echo::default());
    let client = sim.connect(HERE);
    sim.settle();
    assert!(server.ask("connections").contains("first_byte"));
    assert!(server.ask("abort 0.1").starts_with("connection 0.1 ends"));
    sim.settle();
    assert_eq!(client.closed(), Some(End::Reset));
}
