//! A handler that asks for anything in any callback: of its connection, of others, of ids that are gone,
//! of pools and of endpoints. Whatever it asks, what must hold holds, and everything ends.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use wheelhouse::health::{EndpointConfig, EndpointId, HealthCheck};
use wheelhouse::pool::{AcquireError, AcquireOptions, PoolConfig, PoolId, WaitId};
use wheelhouse::sim::{Faults, Link, Peer, Random, Sim};
use wheelhouse::{
    AlarmId, CloseReason, Closed, Config, Conn, ConnId, Context, Handler, Origin, State, Timeouts,
};

use crate::scenarios::{SERVER, millis, secs};

/// The servers that it dials; the last one has no address.
const TARGETS: [&str; 4] = [SERVER, "10.0.0.2:9", "10.0.0.2:10", "nowhere.test:1"];

/// As many of the latest connections are asked for something, those included that have ended.
const LATEST: usize = 40;

/// Of so many callbacks one panics, where any may.
const CALLBACKS_PER_PANIC: u64 = 120;

struct Arbitrary {
    random: Random,
    /// All connections that there have been.
    ids: Vec<ConnId>,
    pools: Vec<PoolId>,
    endpoints: Vec<EndpointId>,
    waits: Vec<WaitId>,
    /// Leases, with what holds each: a connection, or the loop.
    leases: Vec<(Option<ConnId>, ConnId)>,
    alarms: Vec<AlarmId>,
    panics: bool,
    /// It asks for nothing more, so that the end can come.
    calm: bool,
}

impl Arbitrary {
    fn new(random: Random, panics: bool) -> Self {
        Self {
            random,
            ids: Vec::new(),
            pools: Vec::new(),
            endpoints: Vec::new(),
            waits: Vec::new(),
            leases: Vec::new(),
            alarms: Vec::new(),
            panics,
            calm: false,
        }
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.random.below(count) == 0
    }

    fn any_id(&mut self) -> Option<ConnId> {
        let latest = &self.ids[self.ids.len().saturating_sub(LATEST)..];
        (!latest.is_empty()).then(|| *self.random.pick(latest))
    }

    fn soon(&mut self) -> Duration {
        millis(self.random.below(3_000))
    }

    fn note_dialled<E>(&mut self, dialled: Result<ConnId, E>) {
        self.ids.extend(dialled.ok());
    }

    fn note_lease(&mut self, owner: Option<ConnId>, lease: Result<ConnId, AcquireError>) {
        self.leases.extend(lease.ok().map(|lease| (owner, lease)));
    }

    /// What a callback of a connection does.
    fn act(&mut self, conn: &mut Conn<'_>, most: u64) {
        if self.calm {
            return;
        }
        // What is not leased says when it may be, and asks for nothing else.
        if matches!(conn.origin(), Origin::Pool(_) | Origin::Check(_)) && conn.owner().is_none() {
            if self.one_in(3) {
                conn.ready();
            }
            return;
        }
        let own = conn.id();
        for _ in 0..self.random.below(most) {
            self.ask(conn, Some(own));
        }
        assert!(!self.panics || !self.one_in(CALLBACKS_PER_PANIC), "on purpose");
    }

    /// Asks for something of a connection, in a callback of `own` or of the loop.
    fn ask(&mut self, conn: &mut Conn<'_>, own: Option<ConnId>) {
        match self.random.below(8) {
            0 => self.write(conn),
            1 => self.ask_of_input(conn),
            2 => self.ask_of_requests(conn),
            3 => self.ask_of_time(conn),
            4 => self.tie(conn),
            5 => self.ask_of_pools(conn, own),
            6 if self.one_in(4) => self.end(conn),
            _ => {
                if let Some(mut other) = self.any_id().and_then(|id| conn.other(id)) {
                    self.ask(&mut other, own);
                }
            }
        }
    }

    fn write(&mut self, conn: &mut Conn<'_>) {
        match self.random.below(8) {
            0 => conn.write(&vec![b'W'; self.random.below(200_000) as usize]),
            1 => conn.write_bytes(Bytes::from(vec![b'B'; self.random.below(20_000) as usize])),
            2 => {
                let shared = conn.cx().share(vec![b's'; 5_000]);
                conn.write_shared(&shared);
                if let Some(mut other) = self.any_id().and_then(|id| conn.other(id)) {
                    other.write_shared(&shared);
                }
            }
            _ => conn.write(&vec![b'w'; self.random.below(300) as usize]),
        }
    }

    fn ask_of_input(&mut self, conn: &mut Conn<'_>) {
        match self.random.below(6) {
            0 => conn.pause_reading(),
            1 => conn.resume_reading(),
            2 => conn.expect_more_input(),
            3 => conn.expect_input(self.random.below(3_000) as usize),
            4 => conn.skip(self.random.below(3_000)),
            _ => conn.yield_now(),
        }
    }

    fn ask_of_requests(&mut self, conn: &mut Conn<'_>) {
        match self.random.below(3) {
            0 => conn.begin_request(),
            1 if conn.in_flight() > 0 => conn.end_request(),
            _ if conn.state() == State::Connected => _ = conn.decide_keep_alive(0),
            _ => {}
        }
    }

    fn ask_of_time(&mut self, conn: &mut Conn<'_>) {
        match self.random.below(4) {
            0 => conn.clear_timer(),
            1 => {
                let mut any = || Some(millis(1 + self.random.below(5_000)));
                conn.set_timeouts(&Timeouts {
                    idle: any(),
                    write: any(),
                    response: any(),
                    ping_after: any(),
                    ..Timeouts::default()
                });
            }
            _ => {
                let at = conn.now() + self.soon();
                conn.set_timer(at);
            }
        }
    }

    /// Ties it to another connection, an endpoint or a server.
    fn tie(&mut self, conn: &mut Conn<'_>) {
        match self.random.below(5) {
            0 => {
                let dialled = conn.connect(*self.random.pick(&TARGETS));
                self.note_dialled(dialled);
            }
            1 => {
                let endpoint = *self.random.pick(&self.endpoints);
                match self.random.below(6) {
                    0..=2 => conn.cx().note_endpoint_failure(endpoint),
                    3 => conn.cx().note_endpoint_success(endpoint),
                    4 if self.one_in(40) => conn.cx().remove_endpoint(endpoint),
                    _ => {
                        let dialled = conn.connect_endpoint(endpoint);
                        self.note_dialled(dialled);
                    }
                }
            }
            2 | 3 => {
                if let Some(id) = self.any_id() {
                    conn.throttle_on(id);
                }
            }
            _ => {
                if let Some(id) = self.any_id() {
                    let _ = conn.relay_with(id);
                }
            }
        }
    }

    fn ask_of_pools(&mut self, conn: &mut Conn<'_>, own: Option<ConnId>) {
        let pool = *self.random.pick(&self.pools);
        if self.one_in(400) {
            conn.cx().close_pool(pool);
        }
        if self.one_in(3) {
            self.waits.extend(conn.acquire(pool, AcquireOptions::default()).ok());
        }
        // A lease is used by what holds it, or gives itself back.
        let id = conn.id();
        if own != Some(id) {
            return;
        }
        if let Origin::Pool(_) = conn.origin() {
            self.leases.retain(|(_, lease)| *lease != id);
            return conn.release(id);
        }
        let Some(at) = self.leases.iter().position(|(owner, _)| *owner == own) else {
            return;
        };
        let (_, lease) = self.leases[at];
        match self.random.below(5) {
            0 => {
                self.leases.swap_remove(at);
                conn.clean(lease);
            }
            1 | 2 => {
                self.leases.swap_remove(at);
                conn.release(lease);
            }
            3 => _ = conn.send_replayable(lease, vec![b'r'; 20]),
            _ => {
                if let Some(mut leased) = conn.other(lease) {
                    self.ask(&mut leased, own);
                }
            }
        }
    }

    fn end(&mut self, conn: &mut Conn<'_>) {
        match self.random.below(4) {
            0 => conn.shutdown_write(),
            1 => conn.tunnel(),
            2 => conn.close(),
            _ => conn.abort(),
        }
    }

    /// What a callback without a connection does.
    fn act_for_loop(&mut self, cx: &mut Context<'_>) {
        for _ in 0..self.random.below(3) {
            if self.calm {
                return;
            }
            match self.random.below(10) {
                0 => {
                    let dialled = cx.connect(*self.random.pick(&TARGETS));
                    self.note_dialled(dialled);
                }
                1 => {
                    let at = cx.now() + self.soon();
                    self.alarms.push(cx.set_alarm(at));
                }
                2 => {
                    if let Some(alarm) = self.alarms.pop() {
                        cx.cancel_alarm(alarm);
                    }
                }
                3 => {
                    let pool = *self.random.pick(&self.pools);
                    self.waits.extend(cx.acquire(pool, AcquireOptions::default()).ok());
                }
                4 => {
                    if let Some(wait) = self.waits.pop() {
                        cx.cancel_acquire(wait);
                    }
                }
                5 | 6 => {
                    if let Some(at) = self.leases.iter().position(|(owner, _)| owner.is_none()) {
                        let (_, lease) = self.leases.swap_remove(at);
                        cx.release(lease);
                    }
                }
                _ => {
                    if let Some(mut conn) = self.any_id().and_then(|id| cx.conn(id)) {
                        self.ask(&mut conn, None);
                    }
                }
            }
        }
    }
}

impl Handler for Arbitrary {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let group = Some(cx.add_pool_group(4));
        let endpoint_group = Some(cx.add_endpoint_group());
        for (target, check) in
            [(TARGETS[1], HealthCheck::Connect), (TARGETS[2], HealthCheck::TestRequest)]
        {
            let config =
                EndpointConfig { group: endpoint_group, check, ..EndpointConfig::default() };
            let endpoint = cx.add_endpoint(target, &config).unwrap();
            self.endpoints.push(endpoint);
            let config = PoolConfig {
                size: 3,
                group,
                endpoint: Some(endpoint),
                fail_fast: target == TARGETS[2],
                ping_after: Some(millis(700)),
                idle: Some(secs(2)),
                leases_max: Some(5),
                ..PoolConfig::default()
            };
            self.pools.push(cx.add_pool(target, &config).unwrap());
        }
        let handshake = Some(millis(500));
        let config = PoolConfig { size: 2, idle_min: 1, handshake, ..PoolConfig::default() };
        self.pools.push(cx.add_pool(TARGETS[1], &config).unwrap());
    }

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.ids.push(conn.id());
        self.act(conn, 2);
        (self.calm || !self.one_in(12)).then_some(())
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        self.act(conn, 3);
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        match self.random.below(5) {
            0 if !self.calm => {}
            1 if !self.calm => input.advance(self.random.below(input.len() as u64 + 1) as usize),
            2 if !self.calm => conn.write_buf(input),
            _ => input.clear(),
        }
        self.act(conn, 5);
    }

    fn on_eof(&mut self, conn: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {
        self.act(conn, 3);
    }

    fn on_active(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        self.act(conn, 2);
    }

    fn on_idle(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        self.act(conn, 2);
    }

    fn on_drained(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        self.act(conn, 3);
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        self.act(conn, 4);
    }

    fn on_health_check(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        self.act(conn, 3);
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        (): &mut (),
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.note_lease(Some(conn.id()), lease);
        self.act(conn, 4);
    }

    fn on_lease_replaced(
        &mut self,
        conn: &mut Conn<'_>,
        (): &mut (),
        lost: ConnId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.leases.retain(|(_, lease)| *lease != lost);
        self.note_lease(Some(conn.id()), lease);
        self.act(conn, 4);
    }

    fn on_loop_acquired(
        &mut self,
        cx: &mut Context<'_>,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.note_lease(None, lease);
        self.act_for_loop(cx);
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, _: AlarmId) {
        self.act_for_loop(cx);
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, (): &mut (), _: &CloseReason) {
        self.act(conn, 3);
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, closed: Closed, (): ()) {
        self.leases.retain(|(owner, lease)| *owner != Some(closed.id) && *lease != closed.id);
        self.act_for_loop(cx);
    }
}

/// Answers mostly, and sometimes ends or is silent.
struct Moody(Random);

impl Handler for Moody {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        match self.0.below(12) {
            0 => conn.close(),
            1 => conn.abort(),
            2 => {}
            _ => conn.write(&vec![b'u'; input.len().min(50_000)]),
        }
        input.clear();
    }
}

/// A peer does something. Returns whether it is still there.
fn move_peer(peer: &Peer, random: &mut Random) -> bool {
    match random.below(14) {
        0 => peer.half_close(),
        1 => peer.close(),
        2 => peer.reset(),
        3 => peer.stop_reading(),
        4 | 5 => peer.resume_reading(),
        _ if peer.is_open() => {
            let _ = peer.offer(&vec![b'p'; 1 + random.below(2_500) as usize]);
        }
        _ => {}
    }
    peer.is_open()
}

pub(crate) fn arbitrary(sim: &mut Sim) {
    let mut random = sim.random();
    sim.set_link(Link { latency: millis(3), ..Link::default() });
    if random.below(2) == 0 {
        sim.set_buffers(4_096, 8_192);
    }
    let panics = random.below(4) == 0;
    if panics {
        sim.allow_panics();
    }
    for target in &TARGETS[1..3] {
        let moody = Moody(sim.random());
        sim.serve(target, Config::default(), moody);
    }
    let mut config = Config::default();
    config.limits.max_connections = Some(48);
    config.limits.input_max = 4_096;
    let handler = Arbitrary::new(sim.random(), panics);
    let server = sim.serve(SERVER, config, handler);
    let mut peers = Vec::new();
    for _ in 0..25 {
        if peers.len() < 12 {
            peers.push(sim.connect(SERVER));
        }
        for _ in 0..4 {
            let at = random.below(peers.len() as u64) as usize;
            if !move_peer(&peers[at], &mut random) && peers.len() > 1 {
                drop(peers.swap_remove(at));
            }
        }
        sim.advance(millis(random.below(700)));
    }
    server.with(|arbitrary, _| arbitrary.calm = true);
    drop(peers);
    sim.set_faults(Faults::NONE);
    server.shutdown();
    sim.advance(secs(400));
    assert!(server.is_finished() || server.failure().is_some(), "it goes on for ever");
}
