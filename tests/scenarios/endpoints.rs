//! A balancer in front of servers whose health is watched: each line of a client goes to an endpoint
//! that is available, over a connection of its own, and the line that comes back goes to that client.

use bytes::BytesMut;
use wheelhouse::health::{
    EndpointConfig, EndpointGroupId, EndpointId, EndpointState, EndpointStats, HealthCheck,
};
use wheelhouse::sim::{Faults, Random, Sim};
use wheelhouse::{
    CloseReason, Closed, Config, Conn, ConnId, ConnectError, Context, Handler, Origin,
};

use crate::scenarios::{millis, secs};

/// Where the servers are.
pub(crate) const SERVERS: [&str; 3] = ["10.0.1.1:9", "10.0.1.2:9", "10.0.1.3:9"];

pub(crate) enum Session {
    Client,
    /// A server, which answers for that client.
    Server(Option<ConnId>),
    Check,
}

/// Passes each line of a client on to an endpoint.
pub(crate) struct Balancer {
    config: EndpointConfig,
    grouped: bool,
    pub(crate) group: Option<EndpointGroupId>,
    pub(crate) endpoints: Vec<EndpointId>,
    /// Where the search for an endpoint begins.
    next: usize,
    /// Why clients were refused.
    pub(crate) refusals: Vec<ConnectError>,
    /// The connections that ended, by how they came about.
    pub(crate) closed: Vec<(Origin, CloseReason)>,
    /// Checks are refused in `on_open`.
    pub(crate) refuses_checks: bool,
    /// It says too early that a check has passed.
    pub(crate) ready_in_open: bool,
}

impl Balancer {
    pub(crate) fn new(config: EndpointConfig) -> Self {
        Self {
            config,
            grouped: true,
            group: None,
            endpoints: Vec::new(),
            next: 0,
            refusals: Vec::new(),
            closed: Vec::new(),
            refuses_checks: false,
            ready_in_open: false,
        }
    }

    /// Without a group.
    pub(crate) fn alone(config: EndpointConfig) -> Self {
        Self { grouped: false, ..Self::new(config) }
    }

    /// Adds an endpoint.
    pub(crate) fn add(&mut self, cx: &mut Context<'_>, target: &str) -> EndpointId {
        if self.grouped && self.group.is_none() {
            self.group = Some(cx.add_endpoint_group());
        }
        let config = EndpointConfig { group: self.group, ..self.config.clone() };
        let id = cx.add_endpoint(target, &config).unwrap();
        self.endpoints.push(id);
        id
    }

    pub(crate) fn stats(&self, cx: &Context<'_>) -> Vec<EndpointStats> {
        self.endpoints.iter().filter_map(|id| cx.endpoint(*id)).collect()
    }

    /// Dials the next endpoint that is available.
    fn dial(&mut self, conn: &mut Conn<'_>) -> Result<ConnId, ConnectError> {
        let count = self.endpoints.len();
        let mut outcome = Err(ConnectError::Down(None));
        for step in 0..count {
            let at = (self.next + step) % count;
            outcome = conn.connect_endpoint(self.endpoints[at]);
            if !matches!(outcome, Err(ConnectError::Down(_))) {
                self.next = at + 1;
                break;
            }
        }
        outcome
    }
}

impl Handler for Balancer {
    type Session = Session;

    fn on_start(&mut self, cx: &mut Context<'_>) {
        if self.endpoints.is_empty() {
            for target in SERVERS {
                self.add(cx, target);
            }
        }
    }

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Session> {
        match conn.origin() {
            Origin::Check(endpoint) => {
                assert_eq!(conn.endpoint(), Some(endpoint));
                if self.ready_in_open {
                    conn.ready();
                }
                (!self.refuses_checks).then_some(Session::Check)
            }
            Origin::Connect => Some(Session::Server(conn.owner())),
            _ => Some(Session::Client),
        }
    }

    fn on_test_request(&mut self, conn: &mut Conn<'_>, _: &mut Session) {
        conn.begin_request();
        conn.write(b"check\n");
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut Session, input: &mut BytesMut) {
        let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return };
        let line = input.split_to(end + 1);
        match session {
            Session::Client => match self.dial(conn) {
                Ok(server) => {
                    conn.begin_request();
                    let mut server = conn.other(server).unwrap();
                    server.begin_request();
                    server.write(&line);
                }
                Err(error) => {
                    self.refusals.push(error);
                    conn.write(b"down\n");
                }
            },
            Session::Server(client) => {
                conn.end_request();
                if let Some(mut client) = client.take().and_then(|client| conn.other(client)) {
                    client.write(&line);
                    client.end_request();
                }
                conn.close();
            }
            Session::Check if line[..] == *b"ok\n" => {
                conn.end_request();
                conn.ready();
            }
            Session::Check => conn.close(),
        }
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, session: &mut Session, _: &CloseReason) {
        if let Session::Server(client) = session
            && let Some(mut client) = client.take().and_then(|client| conn.other(client))
        {
            client.write(b"lost\n");
            client.end_request();
        }
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, _: Session) {
        self.closed.push((closed.origin, closed.reason));
    }
}

/// A server that answers checks with `ok` and other lines with themselves; some of them, in percent,
/// late, wrong or not at all.
pub(crate) struct Weak {
    pub(crate) random: Random,
    pub(crate) percent: u64,
}

impl Handler for Weak {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return };
        let line = input.split_to(end + 1);
        if self.random.below(100) < self.percent {
            match self.random.below(4) {
                0 => conn.close(),
                1 => conn.abort(),
                2 => conn.write(b"ill\n"),
                _ => conn.begin_request(),
            }
        } else if line[..] == *b"check\n" {
            conn.write(b"ok\n");
        } else {
            conn.write(&line);
        }
    }
}

fn config(random: &mut Random) -> EndpointConfig {
    let check = match random.below(4) {
        0 => HealthCheck::None,
        1 => HealthCheck::Connect,
        _ => HealthCheck::TestRequest,
    };
    let mut config = EndpointConfig { check, ..EndpointConfig::default() };
    config.rise = 1 + random.below(3) as u32;
    config.fall = 1 + random.below(3) as u32;
    config.interval = millis(100 + random.below(3_000));
    config.down_interval = millis(100 + random.below(6_000));
    config.timeout = millis(1_200 + random.below(2_000));
    config.eject_after = (random.below(4) > 0).then(|| 1 + random.below(5) as u32);
    config.ejection = millis(500 + random.below(20_000));
    config
}

/// Clients, servers that are weak and cut off for a while, and endpoints that come and go: each
/// client gets the reply to its own line or an error, and in the end all endpoints are up.
pub(crate) fn endpoints(sim: &mut Sim) {
    let mut random = sim.random();
    let mut servers = Vec::new();
    for address in SERVERS {
        let weak = Weak { random: sim.random(), percent: random.below(60) };
        servers.push(sim.serve(address, Config::default(), weak));
    }
    let mut balancer = Balancer::new(config(&mut random));
    balancer.grouped = random.below(4) > 0;
    let front = sim.serve("10.0.0.1:7", Config::default(), balancer);
    if random.below(4) == 0 {
        front.set_descriptors(8 + random.below(10) as usize);
    }
    // With checks in short intervals it would never come to rest.
    sim.advance(millis(1));
    let mut peers = Vec::new();
    for _ in 0..40 {
        for _ in 0..random.below(4) {
            let peer = sim.connect(&front);
            peer.send(b"line\n");
            peers.push(peer);
        }
        let server = format!("10.0.1.{}", 1 + random.below(3));
        match random.below(12) {
            0 => sim.partition("10.0.0.1", &*server),
            1 | 2 => sim.repair("10.0.0.1", &*server),
            // A process that is not scheduled has not started.
            3 | 4 if front.handler().endpoints.is_empty() => {}
            3 => front.with(|balancer, cx| {
                let at = random.below(balancer.endpoints.len() as u64) as usize;
                cx.remove_endpoint(balancer.endpoints.remove(at));
                balancer.add(cx, SERVERS[at]);
            }),
            4 => front.with(|balancer, cx| {
                cx.note_endpoint_failure(balancer.endpoints[0]);
            }),
            _ => {}
        }
        sim.advance(millis(random.below(1_500)));
        for peer in peers.extract_if(.., |peer| peer.closed().is_some() || random.below(3) == 0) {
            let reply = peer.take();
            let replies: [&[u8]; 4] = [b"line\n", b"lost\n", b"down\n", b"ill\n"];
            let part = replies.into_iter().any(|whole| whole.starts_with(&reply));
            assert!(part, "{:?} is no reply", reply.escape_ascii().to_string());
        }
    }
    drop(peers);
    for server in SERVERS {
        sim.repair("10.0.0.1", server.split(':').next().unwrap());
    }
    for server in &servers {
        server.with(|weak, _| weak.percent = 0);
    }
    front.set_descriptors(1_000);
    sim.set_faults(Faults::NONE);
    sim.advance(secs(320));
    let stats = front.with(|balancer, cx| balancer.stats(cx));
    for it in &stats {
        assert!(it.is_available && it.weight == 100, "{it:?}");
        assert_eq!((it.state, it.connections), (EndpointState::Up, 0), "{it:?}");
    }
    let peer = sim.connect(&front);
    peer.send(b"line\n");
    sim.advance(secs(5));
    peer.expect(b"line\n");
    // There are as many checks as there may be, or none: the world would not come to rest.
    front.with(|balancer, cx| {
        for id in balancer.endpoints.drain(..) {
            cx.remove_endpoint(id);
        }
    });
    sim.converge();
}
