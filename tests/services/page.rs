//! The page, in virtual time.

use serde_json::Value;
use wheelhouse::health::EndpointConfig;
use wheelhouse::pool::PoolConfig;
use wheelhouse::sim::{Peer, Server, Sim};
use wheelhouse::{Address, Config, Timeouts};

use crate::shorthands::{millis, secs, with_places};
use crate::world::{Echo, HERE, METRICS, ask, get, reply, serve};

const LOCAL: &str = "127.0.0.1:9100";

/// A server whose page is asked for at `page`.
fn serve_at(sim: &mut Sim, page: &Address) -> Server<Echo> {
    sim.spawn("10.0.0.1", Config::default(), Echo::default(), |reactor| {
        reactor.listen(HERE).unwrap();
        reactor.serve_metrics(page).unwrap();
    })
}

fn local() -> Address {
    LOCAL.parse().unwrap()
}

/// Asks for a path as a browser does that means `host`.
fn ask_as(sim: &mut Sim, peer: &Peer, host: &str, path: &str) -> String {
    peer.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
    sim.settle();
    let (status, _, body) = reply(peer, false);
    assert_eq!(status, 200);
    body
}

fn state(sim: &mut Sim, peer: &Peer) -> Value {
    let (status, text) = ask(sim, peer, "/state");
    assert_eq!(status, 200);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The rows of a table in the state.
fn rows<'a>(state: &'a Value, table: &str) -> Vec<Vec<&'a str>> {
    let rows = state["tables"][table]["rows"].as_array().unwrap();
    let cells = |row: &'a Value| row.as_array().unwrap().iter().map(|it| it.as_str().unwrap());
    rows.iter().map(|row| cells(row).collect()).collect()
}

/// Checks that tags are balanced, and returns the text between them.
fn text_of(page: &str) -> String {
    const VOID: [&str; 4] = ["!doctype", "meta", "link", "br"];
    let (mut open, mut text, mut rest) = (Vec::new(), String::new(), page);
    while let Some((before, after)) = rest.split_once('<') {
        text.push_str(before);
        let (tag, after) = after.split_once('>').unwrap();
        let name = tag.split([' ', '\n']).next().unwrap();
        rest = after;
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if ["style", "script"].contains(&name) {
            rest = after.split_once(&format!("</{name}>")).unwrap().1;
        } else if !VOID.contains(&name) {
            open.push(name);
        }
        text.push(' ');
    }
    assert_eq!(open, Vec::<&str>::new());
    text
}

#[test]
fn the_page_and_its_state_show_what_the_server_does() {
    let mut sim = Sim::new(1);
    let timeouts = Timeouts { first_byte: Some(secs(5)), ..Timeouts::default() };
    let config = Config { timeouts, ..Config::default() };
    let _server = serve(&mut sim, config, Echo::default());
    let silent = sim.connect(HERE);
    sim.advance(secs(6));
    assert!(!silent.is_open());
    let client = sim.connect(HERE);
    client.send(b"hello");
    sim.advance(secs(2));
    let browser = sim.connect(METRICS);
    let (status, page) = ask(&mut sim, &browser, "/");
    assert_eq!(status, 200);
    let text = text_of(&page);
    for shown in [
        "10.0.0.1:7 · wheelhouse",
        "ready",
        "first_byte_timeout",
        "idle in 1 min 13 s",
        "wheelhouse 0.1.0",
        "Scripts are off",
    ] {
        assert!(text.contains(shown), "{shown} in {text}");
    }
    let state = state(&mut sim, &browser);
    assert_eq!(rows(&state, "ends"), [["first_byte_timeout", "1"]]);
    assert_eq!(rows(&state, "deadlines"), [["first_byte", "1"]]);
    assert_eq!(rows(&state, "states")[2], ["idle", "1"]);
    assert_eq!(rows(&state, "limits")[0][0], "Connections");
    let connection = &rows(&state, "top")[0];
    assert_eq!(connection[1..], ["0 B", "0 B", "idle", "idle in 1 min 13 s", "1", "2.0 s"]);
    assert_eq!(state["counts"]["ends"]["first_byte_timeout"], 1);
    let numbers = &state["numbers"];
    assert_eq!((&numbers["accepted"], &numbers["requests"]), (&2.into(), &1.into()));
    assert_eq!((&numbers["bytes_in"], &numbers["bytes_out"]), (&5.into(), &5.into()));
    assert_eq!(numbers["uptime"], 8_000);
    assert_eq!(state["unready"], Value::Null);
    // What the page shows without scripts is what its script would.
    for table in state["tables"].as_object().unwrap().keys() {
        for cell in rows(&state, table).into_iter().flatten() {
            assert!(text.contains(cell), "{cell:?} of {table}");
        }
    }
}

#[test]
fn what_is_not_ready_says_so() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, Config::default(), Echo::default());
    let client = sim.connect(HERE);
    client.send(b"x");
    let browser = sim.connect(METRICS);
    sim.settle();
    server.shutdown();
    sim.settle();
    let page = ask(&mut sim, &browser, "/").1;
    assert!(page.contains("class=\"unready\" role=\"status\">not ready: it is shutting down<"));
    assert_eq!(state(&mut sim, &browser)["unready"], "it is shutting down");
}

#[test]
fn the_head_alone_is_answered_and_nothing_else_is_done() {
    let mut sim = Sim::new(1);
    let _server = serve(&mut sim, Config::default(), Echo::default());
    let browser = sim.connect(METRICS);
    browser.send(get("/").as_bytes());
    sim.settle();
    let (_, whole, _) = reply(&browser, false);
    browser.send(get("/").replace("GET", "HEAD").as_bytes());
    sim.settle();
    let (status, head, _) = reply(&browser, true);
    assert_eq!((status, &head), (200, &whole));
    for field in [
        "Content-Type: text/html; charset=utf-8",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Content-Security-Policy: default-src 'none'; script-src 'sha256-",
        "Referrer-Policy: no-referrer",
    ] {
        assert!(head.contains(&format!("\r\n{field}")), "{field} in {head}");
    }
    assert!(!head.contains("unsafe"), "{head}");
    browser.send(get("/state").replace("GET", "HEAD").as_bytes());
    sim.settle();
    assert!(reply(&browser, true).1.contains("Content-Type: application/json"));
    for path in ["/", "/state"] {
        browser.send(get(path).replace("GET", "POST").as_bytes());
        sim.settle();
        assert_eq!(reply(&browser, false).0, 405);
    }
    // A query changes nothing, and behind an old request the connection ends.
    assert_eq!(ask(&mut sim, &browser, "/?x=1").0, 200);
    browser.send(b"GET / HTTP/1.0\r\n\r\n");
    sim.settle();
    assert_eq!(reply(&browser, false).0, 200);
    assert!(!browser.is_open());
}

#[test]
fn the_page_loads_nothing() {
    let mut sim = Sim::new(1);
    let _server = serve(&mut sim, Config::default(), Echo::default());
    let browser = sim.connect(METRICS);
    let page = ask(&mut sim, &browser, "/").1;
    for load in ["src=", "@import", "url(", "<iframe", "<form", " style=", " onload", "innerHTML"] {
        assert!(!page.contains(load), "{load}");
    }
    let names = page.split("http").skip(1).filter(|rest| !rest.starts_with("-equiv"));
    assert!(names.clone().count() > 0);
    for name in names {
        assert!(name.starts_with("://www.w3.org/2000/svg'"), "{}", &name[..40]);
    }
    assert_eq!(page.matches("href=").count(), 1);
    assert!(page.contains("rel=\"icon\" href=\"data:image/svg+xml,"));
}

#[test]
fn hostile_names_stay_text() {
    const NAME: &str = "<img src=x onerror=alert(1)>\"'&\u{2028}";
    let mut sim = Sim::new(1);
    let server = sim.spawn("10.0.0.1", Config::default(), Echo::default(), |reactor| {
        let path = format!("/tmp/<script>alert(1)</script>\n{NAME}");
        reactor.listen(Address::Unix(path.into())).unwrap();
        reactor.serve_metrics(local()).unwrap();
    });
    server.with(|_, cx| {
        cx.add_pool(format!("{NAME}:80"), &PoolConfig::default()).unwrap();
        cx.add_endpoint(format!("{NAME}:81"), &EndpointConfig::default()).unwrap();
    });
    sim.settle();
    let browser = sim.connect(LOCAL);
    let page = ask_as(&mut sim, &browser, "localhost", "/");
    let text = text_of(&page);
    assert!(!page.contains("<img") && page.matches("<script>").count() == 1, "{text}");
    assert!(text.contains("unix:/tmp/&lt;script&gt;alert(1)&lt;/script&gt;\\n&lt;img"), "{text}");
    assert!(text.contains("onerror=alert(1)&gt;&quot;&#39;&amp;\u{2028}:80"), "{text}");
    let json = ask_as(&mut sim, &browser, "localhost", "/state");
    assert!(!json.contains(['<', '>', '&', '\n', '\u{2028}']), "{json}");
    let state: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(rows(&state, "pools")[0][1], format!("{NAME}:80"));
    assert_eq!(rows(&state, "endpoints")[0][1], format!("{NAME}:81"));
    let title = state["title"].as_str().unwrap();
    assert!(title.starts_with("unix:/tmp/<script>alert(1)</script>\\n<img"), "{title}");
}

#[test]
fn peers_and_targets_are_shown_to_this_machine_alone() {
    let unix: Address = "unix:/run/metrics".parse().unwrap();
    let network: Address = METRICS.parse().unwrap();
    let everywhere: Address = "0.0.0.0:9100".parse().unwrap();
    for (address, host, shown) in [
        (local(), "localhost:9100", true),
        (local(), "127.0.0.1:9100", true),
        (local(), "[::1]:9100", true),
        // A name that some page has let mean this machine.
        (local(), "attacker.example:9100", false),
        (local(), "localhost.attacker.example", false),
        (unix, "localhost", true),
        (network.clone(), "10.0.0.1:9100", false),
        (network.clone(), "localhost", false),
        (everywhere.clone(), "127.0.0.1", false),
    ] {
        let mut sim = Sim::new(1);
        let server = serve_at(&mut sim, &address);
        server.with(|_, cx| {
            cx.add_pool("db.example:5432", &PoolConfig::default()).unwrap();
            cx.add_endpoint("cache.example:6379", &EndpointConfig::default()).unwrap();
        });
        let client = sim.connect(HERE);
        client.send(b"x");
        sim.settle();
        let to = if address == everywhere { network.clone() } else { address };
        let browser = sim.connect(&to);
        for path in ["/", "/state"] {
            let text = ask_as(&mut sim, &browser, host, path);
            for name in [&client.address().to_string(), "db.example", "cache.example"] {
                assert_eq!(text.contains(name), shown, "{name} at {to} as {host}");
            }
            assert!(text.contains("\"pools\"") && text.contains("10.0.0.1:7"));
        }
    }
}

#[test]
fn the_connections_that_hold_most_come_first() {
    let mut sim = Sim::new(1);
    sim.set_buffers(8_192, 8_192);
    let _server = serve(&mut sim, Config::default(), Echo::default());
    let quiet: Vec<_> = (0..25).map(|_| sim.connect(HERE)).collect();
    let deaf: Vec<_> = (0..3).map(|_| sim.connect_with_window(HERE, 4_096)).collect();
    for (index, peer) in deaf.iter().enumerate() {
        peer.stop_reading();
        peer.send(&vec![b'x'; 40_000 + 10_000 * index]);
    }
    for peer in &quiet {
        peer.send(b"x");
    }
    sim.settle();
    let browser = sim.connect(METRICS);
    let state = state(&mut sim, &browser);
    let rows = rows(&state, "top");
    assert_eq!(rows.len(), 20);
    assert_eq!(
        state["tables"]["top"]["note"],
        "20 of 28 are shown. Peers are shown where only this machine can ask."
    );
    let held = |row: &[&str]| row[1].strip_suffix(" KiB").map(|size| size.parse::<f64>().unwrap());
    let held: Vec<_> = rows.iter().filter_map(|row| held(row)).collect();
    assert_eq!(held.len(), 3);
    assert!(held.is_sorted_by(|a, b| a > b), "{held:?}");
    assert!(rows[..3].iter().all(|row| row[3] == "connected" && row[4].starts_with("write in ")));
}

#[test]
fn many_connections_take_some_turns_and_few_bytes() {
    const MANY: usize = 9_000;
    let mut sim = Sim::new(1);
    sim.set_descriptors(MANY + 200);
    let server = serve(&mut sim, with_places(MANY), Echo::default());
    let mut clients: Vec<_> = (0..MANY).map(|_| sim.connect(HERE)).collect();
    sim.advance(secs(3));
    assert_eq!(server.connections(), MANY);
    let browser = sim.connect(METRICS);
    sim.settle();
    let turns = server.stats().turns;
    browser.send(get("/").as_bytes());
    // Before the first step and after it connections go that it has seen, and that it has yet to.
    for client in clients.drain(..100) {
        client.close();
    }
    sim.step();
    sim.step();
    let last = clients.len() - 100;
    for client in clients.drain(last..) {
        client.close();
    }
    sim.settle();
    assert!(server.stats().turns >= turns + 3, "one for each 4,096 places");
    let (status, _, page) = reply(&browser, false);
    assert_eq!(status, 200);
    text_of(&page);
    assert!(page.len() < 40_000, "{} bytes", page.len());
    assert!(page.matches("idle in").count() + page.matches("first_byte in").count() <= 20);
    // Requests one behind another are answered in order, whatever comes between.
    browser.send([get("/state"), get("/healthz"), get("/state")].concat().as_bytes());
    browser.half_close();
    sim.advance(millis(100));
    let text = String::from_utf8(browser.take()).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3);
    assert!(text.find("alive").unwrap() > text.find("application/json").unwrap());
    assert!(text.len() < 30_000, "{} bytes", text.len());
    assert!(!browser.is_open());
}

#[test]
fn a_page_is_asked_for_by_few_and_left_by_others() {
    let mut sim = Sim::new(1);
    sim.set_buffers(4_096, 4_096);
    let server = serve(&mut sim, with_places(5_000), Echo::default());
    let clients: Vec<_> = (0..5_000).map(|_| sim.connect(HERE)).collect();
    sim.advance(secs(3));
    // One resets while its page is made, one never reads it.
    let gone = sim.connect(METRICS);
    gone.send(get("/").as_bytes());
    sim.step();
    gone.reset();
    let deaf = sim.connect(METRICS);
    deaf.stop_reading();
    deaf.send(get("/").repeat(50).as_bytes());
    sim.advance(secs(30));
    assert_eq!(server.stats().service_connections, 0);
    assert_eq!(server.stats().panics, 0);
    let browser = sim.connect(METRICS);
    assert_eq!(ask(&mut sim, &browser, "/state").0, 200);
    drop((clients, browser));
}
