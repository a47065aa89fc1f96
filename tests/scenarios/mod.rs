//! Handlers and peers that do everything, for scenarios in a simulated world.

mod basics;

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};
use wheelhouse::sim::Watched;
use wheelhouse::{
    AlarmId, Closed, Conn, ConnId, Context, Handle, Handler, Origin, PostError, Target, Timeouts,
};

#[allow(unused_imports, reason = "not every program needs all of it")]
pub(crate) use self::basics::{
    Echo, SERVER, expect_service, millis, reasons, secs, serve_echo, with_places,
};

/// Does what single bytes order: every part of the interface has one.
pub(crate) struct Keeper {
    /// What it dials.
    pub(crate) upstream: Target,
    pub(crate) ids: Vec<ConnId>,
    pub(crate) alarms: Vec<AlarmId>,
    /// Connections that are gone.
    gone: VecDeque<ConnId>,
    /// The reactors it posts to, its own first.
    pub(crate) reactors: Vec<Handle<Watched<Self>>>,
}

/// Bytes that show when some are lost, doubled or out of place.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ (at / 251) as u8).collect()
}

#[derive(Default)]
pub(crate) struct Animal {
    paused: bool,
    owes: u32,
}

impl Keeper {
    pub(crate) fn new(upstream: impl Into<Target>) -> Self {
        Self {
            upstream: upstream.into(),
            ids: Vec::new(),
            alarms: Vec::new(),
            gone: VecDeque::new(),
            reactors: Vec::new(),
        }
    }

    /// More than one turn runs.
    fn post_to_itself(&self, id: ConnId) {
        if let Some(reactor) = self.reactors.first() {
            for _ in 0..3_000 {
                let _ = reactor.post_to(id, |_, conn, _| {
                    conn.begin_request();
                    conn.end_request();
                });
            }
        }
    }

    /// Posts to all reactors a closure that does the same.
    fn post_around(&self, depth: u32) {
        for reactor in &self.reactors {
            let outcome = reactor.post(move |keeper, _| {
                if depth > 0 {
                    keeper.post_around(depth - 1);
                }
            });
            assert_ne!(outcome, Err(PostError::Stopped), "it runs");
        }
    }

    fn obey(&mut self, conn: &mut Conn<'_>, animal: &mut Animal, word: u8) -> bool {
        match word {
            b'b' => conn.write(&pattern(3_000)),
            b'B' => conn.write_bytes(pattern(80_000)),
            b'M' => (0..250).for_each(|_| conn.write(&pattern(3_000))),
            b's' => {
                // Bytes that all queue and that are in memory once.
                let shared = conn.cx().share(pattern(40_000));
                for id in &self.ids {
                    if let Some(mut other) = conn.other(*id) {
                        other.write_shared(&shared);
                    }
                }
            }
            b'C' => conn.close(),
            b'A' => conn.abort(),
            b'F' => conn.shutdown_write(),
            b'P' => {
                animal.paused = true;
                conn.pause_reading();
                conn.set_timer(conn.now() + millis(700));
            }
            b'R' => {
                animal.owes += 1;
                conn.begin_request();
                conn.set_timer(conn.now() + millis(300));
            }
            b'W' => conn.expect_more_input(),
            b'k' if conn.decide_keep_alive(0).stays() => conn.write(b"(stay)"),
            b'k' => conn.write(b"(go)"),
            b'T' => conn.tunnel(),
            b'J' => {
                let other = self.ids.iter().rfind(|id| **id != conn.id());
                let relayed = other.is_some_and(|other| conn.relay_with(*other));
                assert!(!relayed || conn.relayed_with() == other.copied());
            }
            b'Y' => {
                conn.yield_now();
                return false;
            }
            b'D' => {
                if let Ok(id) = conn.connect(self.upstream.clone())
                    && let Some(mut other) = conn.other(id)
                {
                    other.write(b"dialled");
                }
            }
            b'O' => {
                for id in &self.ids {
                    if let Some(mut other) = conn.other(*id) {
                        other.write(b"from another");
                    }
                }
            }
            b'G' => {
                for id in &self.gone {
                    assert!(conn.other(*id).is_none(), "{id} is gone and reaches another one");
                }
            }
            b'K' => {
                if let Some(mut other) = self.ids.first().and_then(|id| conn.other(*id)) {
                    other.close();
                }
            }
            b'S' => {
                // Not shorter than the world believes.
                let timeouts = Timeouts {
                    idle: Some(millis(95_000)),
                    write: Some(millis(92_000)),
                    ..Timeouts::default()
                };
                conn.set_timeouts(&timeouts);
            }
            b'L' => {
                let at = conn.now() + millis(400);
                self.alarms.push(conn.cx().set_alarm(at));
            }
            b'N' => {
                if let Some(alarm) = self.alarms.pop() {
                    conn.cx().cancel_alarm(alarm);
                }
            }
            b'e' => {
                if let Some(id) = self.ids.last().copied().filter(|id| *id != conn.id()) {
                    conn.throttle_on(id);
                }
            }
            b'h' => self.post_to_itself(conn.id()),
            b'H' => self.post_around(12),
            word => conn.write(&[word]),
        }
        true
    }
}

impl Handler for Keeper {
    type Session = Animal;

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Animal> {
        self.ids.push(conn.id());
        // Now and then it refuses a client.
        (self.ids.len() % 17 != 16).then(Animal::default)
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, animal: &mut Animal, input: &mut BytesMut) {
        if conn.origin() == Origin::Connect {
            // Two that obey each other would never end.
            return input.clear();
        }
        while let Some(word) = input.first().copied() {
            if conn.is_congested() || animal.paused || conn.is_closing() {
                return;
            }
            input.advance(1);
            if !self.obey(conn, animal, word) {
                return;
            }
        }
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, animal: &mut Animal) {
        if std::mem::take(&mut animal.paused) {
            conn.resume_reading();
        }
        if animal.owes > 0 {
            animal.owes -= 1;
            conn.write(b"late reply");
            conn.end_request();
            if animal.owes > 0 {
                conn.set_timer(conn.now() + millis(300));
            }
        }
    }

    fn on_health_check(&mut self, conn: &mut Conn<'_>, _: &mut Animal) {
        // An upstream that sends it back would live for ever.
        if conn.origin() != Origin::Connect {
            conn.write(b"(alive?)");
        }
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        for id in cx.ids() {
            if let Some(mut conn) = cx.conn(id) {
                conn.write(b"(soon)");
            }
        }
    }

    fn on_drained(&mut self, conn: &mut Conn<'_>, _: &mut Animal) {
        conn.write(b"drained");
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, _: Animal) {
        self.ids.retain(|id| *id != closed.id);
        self.gone.push_back(closed.id);
        if self.gone.len() > 8 {
            self.gone.pop_front();
        }
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        self.alarms.retain(|it| *it != alarm);
        for id in cx.ids() {
            if let Some(mut conn) = cx.conn(id) {
                conn.write(b"alarm");
            }
        }
    }
}
