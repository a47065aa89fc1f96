//! What is logged, at which level, and how often.

#[path = "scenarios/basics.rs"]
mod basics;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use tracing::Level;
use wheelhouse::config::{AtLimit, Rate};
use wheelhouse::health::EndpointConfig;
use wheelhouse::pool::{AcquireError, AcquireOptions, PoolConfig, PoolId, WaitId};
use wheelhouse::sim::{Call, Sim, errno};
use wheelhouse::{Config, Conn, ConnId, Context, Handler, Reactor};

use crate::basics::{Echo, SERVER, millis};

/// Where the watched server is.
const UPSTREAM: &str = "10.0.0.2:9";

/// What was logged in a test.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl io::Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `act`, and returns what was logged at `level` of what was to be logged down to `most`.
fn logged(most: Level, level: Level, act: impl FnOnce()) -> Vec<String> {
    let lines = all_logged(most, act);
    let lines = lines.iter().filter_map(|line| line.strip_prefix(level.as_str()));
    lines.map(|line| line.trim().to_owned()).collect()
}

/// As [`logged`], at all levels, each line behind its level.
fn all_logged(most: Level, act: impl FnOnce()) -> Vec<String> {
    let paper = Paper::default();
    let writer = paper.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(most)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    let bytes = paper.0.lock().unwrap().clone();
    let text = String::from_utf8(bytes).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn warnings(act: impl FnOnce()) -> Vec<String> {
    logged(Level::INFO, Level::WARN, act)
}

/// One client is served and closes.
fn visit() {
    let mut sim = Sim::new(1);
    sim.serve(SERVER, Config::default(), Echo);
    let peer = sim.connect_from("10.9.0.1:5000", SERVER);
    peer.send(b"hello");
    sim.settle();
    peer.expect(b"hello");
    peer.close();
    sim.settle();
    assert!(!peer.is_open());
}

#[test]
fn every_transition_is_traced() {
    let lines = logged(Level::DEBUG, Level::DEBUG, visit);
    assert_eq!(
        lines,
        [
            "connecting id=0.1 peer=10.9.0.1:5000 origin=Accepted(ListenerId(0))",
            "connected id=0.1 peer=10.9.0.1:5000",
            "idle id=0.1 peer=10.9.0.1:5000 requests=1",
            "closing id=0.1 peer=10.9.0.1:5000 reason=closed by the peer",
            "closed id=0.1 peer=10.9.0.1:5000 reason=closed by the peer requests=1 \
             bytes_in=5 bytes_out=5",
        ]
    );
}

#[test]
fn a_request_wakes_and_ends() {
    let lines = logged(Level::DEBUG, Level::DEBUG, || {
        let mut sim = Sim::new(1);
        sim.serve(SERVER, Config::default(), Echo);
        let peer = sim.connect_from("10.9.0.1:5000", SERVER);
        for _ in 0..3 {
            peer.send(b"hello");
            sim.settle();
            peer.expect(b"hello");
        }
    });
    let words: Vec<_> = lines.iter().filter_map(|line| line.split_whitespace().next()).collect();
    let states = ["connecting", "connected", "idle", "connected", "idle", "connected", "idle"];
    assert_eq!(words, states);
}

#[test]
fn single_reads_and_writes_are_traced() {
    let lines = logged(Level::TRACE, Level::TRACE, visit);
    let of_io: Vec<_> = lines.iter().filter(|line| line.contains("id=0.1")).collect();
    assert_eq!(
        of_io,
        ["read id=0.1 bytes=5", "write id=0.1 asked=5 taken=5", "read id=0.1 bytes=0"]
    );
    assert!(lines.iter().any(|line| line.starts_with("waited timeout=")), "{lines:?}");
}

/// Has the body skipped that follows the first byte, or awaits it.
struct Body {
    skips: bool,
}

const BODY: usize = 2_000_000;

impl Handler for Body {
    /// The first byte has come.
    type Session = bool;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<bool> {
        Some(false)
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, begun: &mut bool, input: &mut BytesMut) {
        if std::mem::replace(begun, true) {
            conn.write(b".");
        } else if self.skips {
            conn.skip(BODY as u64);
        } else {
            conn.expect_more_input();
            conn.expect_input(BODY);
        }
        input.clear();
    }
}

#[test]
fn a_body_is_skipped_or_awaited_in_large_reads() {
    for skips in [true, false] {
        let lines = logged(Level::TRACE, Level::TRACE, || {
            let mut sim = Sim::new(1);
            sim.set_buffers(2 * BODY, 2 * BODY);
            let mut config = Config::default();
            config.limits.input_max = BODY;
            sim.serve(SERVER, config, Body { skips });
            let peer = sim.connect(SERVER);
            peer.send(b"b");
            sim.settle();
            peer.send(&vec![0; BODY]);
            sim.settle();
            peer.expect(b".");
        });
        let read = |line: &&String| line.starts_with("read id=0.1 bytes=");
        let sizes: Vec<usize> = lines
            .iter()
            .filter(read)
            .map(|line| line.rsplit('=').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(sizes.iter().sum::<usize>(), 1 + BODY);
        assert!(sizes.len() <= 2 * BODY / (64 * 1024), "{sizes:?}");
        assert!(sizes.iter().all(|size| *size <= 256 * 1024), "{sizes:?}");
    }
}

#[test]
fn a_connection_without_errors_logs_nothing_at_info() {
    assert_eq!(logged(Level::INFO, Level::INFO, visit), ["listening address=10.0.0.1:7"]);
    assert_eq!(warnings(visit), [""; 0]);
}

/// Refuses all.
struct Closed;

impl Handler for Closed {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        None
    }

    fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
}

#[test]
fn a_refusal_of_the_handler_is_logged() {
    let lines = logged(Level::DEBUG, Level::DEBUG, || {
        let mut sim = Sim::new(1);
        sim.serve(SERVER, Config::default(), Closed);
        let _peer = sim.connect_from("10.9.0.1:5000", SERVER);
        sim.settle();
    });
    assert_eq!(lines[1..], ["the handler refuses a connection id=0.1"]);
}

/// What is logged while clients come every ten milliseconds for 2.5 seconds, and stay.
fn rush(change: impl FnOnce(&mut Config)) -> Vec<String> {
    let mut config = Config::default();
    change(&mut config);
    warnings(|| {
        let mut sim = Sim::new(1);
        sim.serve(SERVER, config, Echo);
        let mut peers = Vec::new();
        for _ in 0..250 {
            peers.push(sim.connect_from("10.9.0.1:0", SERVER));
            sim.advance(millis(10));
        }
    })
}

/// Checks that a thing was said thrice in 2.5 seconds, and nothing else, and how often there was
/// cause for the second time.
fn expect_thrice(lines: &[String], what: &str) {
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with(what)), "{lines:?}");
    let times = |line: &str| line.rsplit_once("times=").unwrap().1.parse::<u64>().unwrap();
    assert_eq!(times(&lines[0]), 1);
    assert!((2..=101).contains(&times(&lines[1])), "{lines:?}");
}

#[test]
fn clients_that_are_refused_are_warned_of_once_a_second() {
    let lines = rush(|config| config.limits.clients.connections = Some(1));
    expect_thrice(&lines, "a client is refused peer=10.9.0.1:");
    assert!(lines[0].contains("excess=Connections"), "{lines:?}");
}

#[test]
fn a_full_table_is_warned_of_once_a_second() {
    for at_limit in [AtLimit::EvictIdle, AtLimit::Reject(b"full"[..].into())] {
        let lines = rush(|config| {
            config.limits.max_connections = Some(4);
            config.limits.at_limit = at_limit;
        });
        expect_thrice(&lines, "the table is full connections=4");
    }
}

#[test]
fn a_rate_that_is_exceeded_is_warned_of_once_a_second() {
    let lines = rush(|config| config.limits.accept_rate = Some(Rate::new(10, millis(1_000))));
    expect_thrice(&lines, "newcomers wait: more come than accept_rate allows");
}

#[test]
fn a_table_that_is_just_full_is_not_logged() {
    for places in 1..3 {
        let lines = warnings(|| {
            let mut config = Config::default();
            config.limits.max_connections = Some(places);
            config.limits.at_limit = if places == 1 { AtLimit::EvictIdle } else { AtLimit::Pause };
            config.limits.accept_rate = Some(Rate::new(places as u32, millis(10_000)));
            let mut sim = Sim::new(1);
            sim.serve(SERVER, config, Echo);
            let _peers: Vec<_> = (0..places).map(|_| sim.connect(SERVER)).collect();
            sim.advance(millis(5_000));
        });
        assert_eq!(lines, [""; 0]);
    }
}

/// Is slow in the callbacks that it is made to be slow in.
struct Sluggard<F> {
    stall: F,
}

impl<F: Fn(Duration) + 'static> Handler for Sluggard<F> {
    type Session = u8;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<u8> {
        Some(0)
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, word: &mut u8, input: &mut BytesMut) {
        *word = input[0];
        input.clear();
        match *word {
            b'd' => (self.stall)(millis(60)),
            b'r' => conn.begin_request(),
            b'a' => {
                conn.begin_request();
                (self.stall)(millis(60));
            }
            _ => {}
        }
        if conn.in_flight() > 0 {
            conn.set_timer(conn.now() + millis(10));
        }
    }

    fn on_idle(&mut self, _: &mut Conn<'_>, word: &mut u8) {
        if [b'i', b'r'].contains(word) {
            (self.stall)(millis(60));
        }
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, _: &mut u8) {
        conn.end_request();
    }
}

#[test]
fn a_callback_that_stalls_is_named() {
    for (word, callback) in [
        (b"d", "on_data or on_idle"),
        (b"i", "on_data or on_idle"),
        (b"a", "on_data"),
        (b"r", "on_idle"),
    ] {
        let lines = warnings(|| {
            let mut sim = Sim::new(1);
            let stall = sim.stall();
            let server = sim.serve(SERVER, Config::default(), Sluggard { stall });
            let peer = sim.connect(SERVER);
            sim.settle();
            peer.send(word);
            sim.advance(millis(500));
            assert_eq!(server.stats().stalls, 1);
        });
        // It took 60 ms, which is known to within a step of the coarse clock.
        let said =
            format!("a callback kept the loop waiting callback=\"{callback}\" id=0.1 millis=5");
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with(&said) && lines[0].ends_with("times=1"), "{}", lines[0]);
    }
}

/// Asks a pool for a connection, and keeps the loop waiting in `on_data` or with the answer.
struct LateUser {
    stall: Box<dyn Fn(Duration)>,
    idle_min: usize,
    pool: Option<PoolId>,
}

impl Handler for LateUser {
    /// It is the answer that is late.
    type Session = bool;

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let config = PoolConfig { idle_min: self.idle_min, ..PoolConfig::default() };
        self.pool = Some(cx.add_pool(UPSTREAM, &config).unwrap());
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<bool> {
        Some(false)
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, late: &mut bool, input: &mut BytesMut) {
        *late = input.starts_with(b"later");
        input.clear();
        conn.begin_request();
        conn.acquire(self.pool.unwrap(), AcquireOptions::default()).unwrap();
        if !*late {
            (self.stall)(millis(60));
        }
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        late: &mut bool,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        conn.release(lease.unwrap());
        if *late {
            (self.stall)(millis(60));
        }
    }
}

#[test]
fn a_stall_around_an_answer_right_behind_on_data_is_named_by_its_callback() {
    for (idle_min, line, callback) in
        [(1, "later", "on_acquired"), (1, "now", "on_data"), (0, "now", "on_data")]
    {
        let lines = warnings(|| {
            let mut sim = Sim::new(1);
            let stall = Box::new(sim.stall());
            let _upstream = sim.listen(UPSTREAM, 8);
            let user = LateUser { stall, idle_min, pool: None };
            let server = sim.serve(SERVER, Config::default(), user);
            let peer = sim.connect(SERVER);
            sim.advance(millis(500));
            peer.send(line.as_bytes());
            sim.advance(millis(500));
            assert_eq!(server.stats().stalls, 1);
        });
        assert_eq!(lines.len(), 1);
        let said = format!("callback=\"{callback}\"");
        assert!(lines[0].contains(&said), "{}", lines[0]);
    }
}

/// Watches an endpoint, and has a pool of connections to it.
struct Watcher;

impl Handler for Watcher {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let endpoint = EndpointConfig {
            interval: millis(50),
            down_interval: millis(50),
            rise: 1,
            fall: 1,
            ..EndpointConfig::default()
        };
        cx.add_endpoint(UPSTREAM, &endpoint).unwrap();
        let pool = PoolConfig {
            idle_min: 1,
            fall: 1,
            backoff: millis(20),
            backoff_max: millis(20),
            ping_after: Some(millis(20)),
            ..PoolConfig::default()
        };
        cx.add_pool(UPSTREAM, &pool).unwrap();
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_health_check(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        conn.begin_request();
        conn.write(b"ping");
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
        conn.end_request();
        conn.ready();
    }
}

#[test]
fn what_flaps_is_logged_once_a_second_and_last_of_all_as_it_is() {
    for ends_up in [true, false] {
        let lines = all_logged(Level::INFO, || flap(ends_up));
        for (down, back) in [
            ("an endpoint is down", "an endpoint is back"),
            ("a pool's server is down", "a pool's server is back"),
        ] {
            let said = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
            let of = |line: &&String| line.contains(down) || line.contains(back);
            assert!((5..=8).contains(&(said(down) + said(back))), "{lines:#?}");
            let times =
                |line: &String| line.rsplit_once("times=").unwrap().1.parse::<u64>().unwrap();
            let changes: u64 = lines.iter().filter(of).map(times).sum();
            assert!((49..=51).contains(&changes), "{changes} are logged: {lines:#?}");
            let last = lines.iter().rfind(of).unwrap();
            assert!(last.contains(if ends_up { back } else { down }), "{lines:#?}");
        }
    }
}

/// What is watched goes down and comes back within a tenth of a second, for 5 s, and is then up or
/// down.
fn flap(ends_up: bool) {
    let mut sim = Sim::new(1);
    // Without it nothing would refuse a dial.
    let _machine = sim.serve("10.0.0.2:10", Config::default(), Echo);
    let watcher = sim.serve(SERVER, Config::default(), Watcher);
    let serve = |sim: &mut Sim| {
        let listener = sim.listen(UPSTREAM, 64);
        let mut peers = Vec::new();
        for _ in 0..10 {
            sim.advance(millis(10));
            peers.extend(listener.accept());
            peers.iter().filter(|peer| !peer.take().is_empty()).for_each(|peer| peer.send(b"pong"));
        }
        assert_eq!(watcher.stats().endpoints_down, 0);
        (listener, peers)
    };
    for _ in 0..25 {
        drop(serve(&mut sim));
        sim.advance(millis(100));
        assert_eq!(watcher.stats().endpoints_down, 1);
    }
    let kept = ends_up.then(|| serve(&mut sim));
    sim.advance(millis(1_500));
    drop(kept);
}

#[test]
fn a_shortage_is_warned_of_once_a_second() {
    let lines = warnings(|| {
        let mut sim = Sim::new(1);
        let server = sim.serve(SERVER, Config::default(), Echo);
        for after in 0..100 {
            server.fail(Call::Accept, after, errno::EMFILE);
        }
        let _peer = sim.connect(SERVER);
        sim.advance(millis(5_000));
    });
    let said: Vec<_> = lines.iter().map(|line| line.contains("accepting pauses error=")).collect();
    assert!((3..=5).contains(&said.len()) && said.iter().all(|it| *it), "{lines:?}");
}

#[test]
fn a_reactor_that_is_dropped_with_sessions_says_how_many() {
    let drop_after = |connections: usize| {
        warnings(|| {
            let mut sim = Sim::new(1);
            let mut reactor =
                Reactor::with_backend(Config::default(), sim.host("10.0.0.1")).unwrap();
            reactor.listen(SERVER).unwrap();
            let _peers: Vec<_> = (0..connections).map(|_| sim.connect(SERVER)).collect();
            for _ in 0..3 {
                sim.pass(millis(10));
                reactor.turn(&mut Echo, None).unwrap();
            }
        })
    };
    let said = "a reactor was dropped; its sessions get no on_closed sessions=3";
    assert_eq!(drop_after(3), [said]);
    assert_eq!(drop_after(0), [""; 0]);
}
