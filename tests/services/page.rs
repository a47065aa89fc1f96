//! The page, in virtual time.

use serde_json::Value;
use wheelhouse::Config;
use wheelhouse::sim::{Peer, Sim};

use crate::shorthands::secs;
use crate::world::{Echo, HERE, METRICS, ask, reply, serve};

/// Asks of a host by this name.
fn ask_as(sim: &mut Sim, collector: &Peer, path: &str, host: &str) -> String {
    collector.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
    sim.advance(secs(1));
    let (status, _, body) = reply(collector, false);
    assert_eq!(status, 200);
    body
}

#[test]
fn the_page_is_a_table_that_is_made_by_the_server() {
    let mut sim = Sim::new(1);
    let _server = serve(&mut sim, Config::default(), Echo::default());
    let client = sim.connect(HERE);
    client.send(b"hello");
    let collector = sim.connect(METRICS);
    let page = ask_as(&mut sim, &collector, "/", "10.0.0.1:9100");
    for part in
        ["<td>0.1</td>", "<tr><th>accepted</th><td class=n>1</td></tr>", "<noscript>", "</html>"]
    {
        assert!(page.contains(part), "{part} in {page}");
    }
    assert!(!page.contains("{stats}") && !page.contains("{connections}"));
    collector.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    sim.advance(secs(1));
    let (_, head, _) = reply(&collector, false);
    assert!(head.contains("Content-Type: text/html"), "{head}");
    assert!(head.contains("Content-Security-Policy: default-src 'none'"), "{head}");
    assert_eq!(ask(&mut sim, &collector, "/metrics").0, 200);
}

#[test]
fn it_refreshes_itself_from_an_object() {
    let mut sim = Sim::new(1);
    let _server = serve(&mut sim, Config::default(), Echo::default());
    let clients: Vec<_> = (0..30).map(|_| sim.connect(HERE)).collect();
    for client in &clients {
        client.send(b"hello");
    }
    sim.settle();
    let collector = sim.connect(METRICS);
    let state: Value =
        serde_json::from_str(&ask_as(&mut sim, &collector, "/state.json", "a")).unwrap();
    assert_eq!(state["stats"]["accepted"], 30);
    assert_eq!(state["connections"].as_array().map(Vec::len), Some(20));
    assert_eq!((&state["shown"], &state["matched"]), (&20.into(), &30.into()));
}

/// On another address than a loopback one anyone may read it.
#[test]
fn addresses_of_peers_are_shown_on_this_machine_alone() {
    let peer_of = |listener: &str, host: &str| {
        let mut sim = Sim::new(1);
        let metrics = listener.to_owned();
        let _server = sim.spawn("10.0.0.1", Config::default(), Echo::default(), |reactor| {
            reactor.listen(HERE).unwrap();
            reactor.serve_metrics(&metrics[..]).unwrap();
        });
        let client = sim.connect(HERE);
        client.send(b"hello");
        let collector = sim.connect(listener);
        let state = ask_as(&mut sim, &collector, "/state.json", host);
        let page = ask_as(&mut sim, &collector, "/", host);
        let state: Value = serde_json::from_str(&state).unwrap();
        let peer = state["connections"][0]["peer"].as_str().map(str::to_owned);
        assert_eq!(page.contains(&client.address().to_string()), peer.is_some());
        peer
    };
    assert!(peer_of("unix:/run/metrics", "localhost").is_some());
    assert_eq!(peer_of(METRICS, "10.0.0.1:9100"), None);
    // A page from elsewhere, whose name was made to point here.
    assert_eq!(peer_of("unix:/run/metrics", "evil.example"), None);
}
