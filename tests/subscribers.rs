//! A subscriber that panics costs log events, and nothing else.

#[path = "scenarios/basics.rs"]
mod basics;

use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::subscriber::with_default;
use tracing::{Event, Metadata, Subscriber};
use wheelhouse::sim::{End, Sim};
use wheelhouse::stats::Stats;
use wheelhouse::{Config, Conn, Handler};

use crate::basics::{Echo, SERVER};

/// Tests install their subscribers one after the other: all that are installed are asked about each
/// new one's callsites, and one that panics then poisons a lock of `tracing`.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `act` with `subscriber`.
fn with_alone(subscriber: impl Subscriber + Send + Sync + 'static, act: impl FnOnce()) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    with_default(subscriber, act);
}

/// What a subscriber is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Asked {
    Event,
    Enabled,
    Register,
}

/// Panics at one of its calls, so many times; otherwise it keeps the events.
#[derive(Clone)]
struct Broken {
    asked: Asked,
    panics_left: Arc<AtomicU64>,
    events: Arc<Mutex<Vec<String>>>,
}

impl Broken {
    fn new(asked: Asked) -> Self {
        Self { asked, panics_left: Arc::default(), events: Arc::default() }
    }

    /// Runs `act` with this subscriber, which is whole while it is installed and panics afterwards.
    fn during(&self, panics: u64, act: impl FnOnce()) {
        with_alone(self.clone(), || {
            self.panics_left.store(panics, Ordering::Relaxed);
            act();
            self.panics_left.store(0, Ordering::Relaxed);
        });
    }

    fn trip(&self, asked: Asked) {
        let fewer = |left: u64| left.checked_sub(1);
        let left = &self.panics_left;
        if asked == self.asked
            && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
        {
            // Without the hook: it need not be read.
            resume_unwind(Box::new("the log is gone"));
        }
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Broken {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        self.trip(Asked::Register);
        Interest::sometimes()
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        self.trip(Asked::Enabled);
        true
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::DEBUG)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.trip(Asked::Event);
        let mut message = Message(String::new());
        event.record(&mut message);
        self.events.lock().unwrap().push(message.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A server listens, and one client is served and closes.
fn visit() -> Stats {
    let mut sim = Sim::new(1);
    let server = sim.serve(SERVER, Config::default(), Echo);
    let peer = sim.connect(SERVER);
    peer.send(b"hello");
    sim.settle();
    peer.expect(b"hello");
    peer.close();
    sim.settle();
    assert_eq!((server.connections(), server.failure()), (0, None));
    sim.assert_clean();
    server.stats()
}

const LIFE: [&str; 6] = ["listening", "connecting", "connected", "idle", "closing", "closed"];

#[test]
fn a_subscriber_that_always_panics_loses_its_events_only() {
    let broken = Broken::new(Asked::Event);
    broken.during(u64::MAX, || {
        let before = visit().log_failures;
        assert!(before >= LIFE.len() as u64, "{before}");
        assert!(visit().log_failures >= before + LIFE.len() as u64);
    });
    assert_eq!(*broken.events.lock().unwrap(), [""; 0]);
}

#[test]
fn after_a_panic_the_events_that_follow_arrive() {
    for lost in 1..5 {
        let broken = Broken::new(Asked::Event);
        broken.during(lost, || assert!(visit().accepted == 1));
        assert_eq!(*broken.events.lock().unwrap(), LIFE[lost as usize..]);
    }
}

#[test]
fn a_filter_that_panics_loses_its_events_only() {
    let broken = Broken::new(Asked::Enabled);
    broken.during(2, || assert!(visit().accepted == 1));
    assert_eq!(*broken.events.lock().unwrap(), LIFE[2..]);
}

/// Refuses every connection, and so logs an event that no other test here does.
struct Closed;

impl Handler for Closed {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        None
    }

    fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
}

#[test]
fn a_subscriber_that_panics_over_a_new_callsite_loses_its_first_event_only() {
    let refusal = "the handler refuses a connection";
    let broken = Broken::new(Asked::Register);
    broken.during(u64::MAX, || {
        let mut sim = Sim::new(1);
        sim.serve(SERVER, Config::default(), Closed);
        for _ in 0..2 {
            let peer = sim.connect(SERVER);
            sim.settle();
            assert_eq!(peer.closed(), Some(End::Fin));
        }
    });
    let events = broken.events.lock().unwrap();
    assert_eq!(events.iter().filter(|message| *message == refusal).count(), 1, "{events:?}");
}

/// A pipe without a reader, for a while.
#[derive(Clone, Default)]
struct Pipe {
    broken: Arc<AtomicU64>,
    text: Arc<Mutex<Vec<u8>>>,
}

impl io::Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fewer = |left: u64| left.checked_sub(1);
        if self.broken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok() {
            // As `eprintln!` does, by which a subscriber complains of what it cannot write.
            panic!("failed printing to stderr: Broken pipe (os error 32)");
        }
        self.text.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_usual_subscriber_goes_on_when_its_writer_works_again() {
    let pipe = Pipe::default();
    pipe.broken.store(2, Ordering::Relaxed);
    let writer = pipe.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    with_alone(subscriber, || assert!(visit().accepted == 1));
    let text = String::from_utf8(pipe.text.lock().unwrap().clone()).unwrap();
    // Lines that could not be written may come late: the subscriber keeps them in its buffer.
    let mut lines = text.lines().rev();
    for word in LIFE[2..].iter().rev() {
        let line = lines.next().unwrap();
        assert!(line.contains(&format!(": {word} id=0.1")), "{text}");
    }
}

#[test]
fn what_is_logged_outside_of_a_turn_may_panic_too() {
    let broken = Broken::new(Asked::Event);
    broken.during(u64::MAX, || {
        let mut sim = Sim::new(1);
        let mut config = Config::default();
        config.limits.max_connections = Some(usize::MAX);
        let reactor: wheelhouse::Reactor<Echo, _> =
            wheelhouse::Reactor::with_backend(config, sim.host("10.0.0.1")).unwrap();
        reactor.handle().shutdown();
        let report = reactor.run(&mut Echo).unwrap();
        assert!(report.shutdown == Duration::ZERO && report.stats.log_failures >= 3, "{report:?}");
    });
}
