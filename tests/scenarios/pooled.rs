//! A proxy whose clients share the connections of a pool: each line of a client goes over a lease,
//! and the line that comes back goes to that client.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::BytesMut;
use wheelhouse::health::{EndpointConfig, EndpointId};
use wheelhouse::pool::{AcquireError, AcquireOptions, PoolConfig, PoolId, PoolOrder, WaitId};
use wheelhouse::sim::{Faults, Peer, Random, Sim};
use wheelhouse::{CloseReason, Config, Conn, ConnId, Context, Handler, Origin};

use crate::scenarios::{millis, secs};

/// Where the upstream is.
pub(crate) const UPSTREAM: &str = "10.0.0.2:9";

/// What a client of the proxy under test does with the line that it reads.
#[derive(Default)]
pub(crate) struct Client {
    /// Its request, while it waits or is served.
    line: Vec<u8>,
    wait: Option<WaitId>,
    lease: Option<ConnId>,
}

pub(crate) enum Session {
    Client(Client),
    Upstream,
}

/// Passes each line of a client on over a leased connection, and the line that comes back.
pub(crate) struct Proxy {
    config: PoolConfig,
    pub(crate) pool: Option<PoolId>,
    /// How the endpoint is checked that the pool follows, if it follows one.
    pub(crate) checks: Option<EndpointConfig>,
    pub(crate) endpoint: Option<EndpointId>,
    /// The errors that answered waits.
    pub(crate) errors: Vec<AcquireError>,
    /// The upstream connection over which each line went, in order.
    pub(crate) used: Vec<ConnId>,
    /// It says hello to a new upstream connection, and waits for the reply.
    pub(crate) greets: bool,
    /// It pings.
    pub(crate) pings: bool,
    /// It has lines sent again that are lost.
    pub(crate) replays: bool,
    /// It gives a lease back before its reply has come.
    pub(crate) gives_back_at_once: bool,
    /// What takes long when a client has sent a line.
    pub(crate) stall: Option<Box<dyn Fn()>>,
    /// It sends two requests over a lease.
    pub(crate) twice: bool,
    /// It says too early that a connection is ready.
    pub(crate) ready_in_open: bool,
    /// The connections whose timers came.
    pub(crate) rang: Vec<ConnId>,
    /// What the loop has leased.
    pub(crate) loop_leases: Rc<RefCell<Vec<Result<ConnId, AcquireError>>>>,
}

impl Proxy {
    pub(crate) fn new(config: PoolConfig) -> Self {
        Self {
            config,
            pool: None,
            checks: None,
            endpoint: None,
            errors: Vec::new(),
            used: Vec::new(),
            greets: false,
            pings: false,
            replays: false,
            gives_back_at_once: false,
            stall: None,
            twice: false,
            ready_in_open: false,
            rang: Vec::new(),
            loop_leases: Rc::default(),
        }
    }
}

impl Handler for Proxy {
    type Session = Session;

    fn on_start(&mut self, cx: &mut Context<'_>) {
        self.endpoint = self.checks.as_ref().map(|it| cx.add_endpoint(UPSTREAM, it).unwrap());
        let config = PoolConfig { endpoint: self.endpoint, ..self.config.clone() };
        self.pool = Some(cx.add_pool(UPSTREAM, &config).unwrap());
    }

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Session> {
        Some(match conn.origin() {
            Origin::Check(_) => Session::Upstream,
            Origin::Pool(_) => {
                if self.ready_in_open {
                    conn.ready();
                }
                Session::Upstream
            }
            _ => Session::Client(Client::default()),
        })
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, session: &mut Session) {
        if matches!(session, Session::Upstream) && self.greets {
            conn.begin_request();
            conn.write(b"hello\n");
        }
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut Session, input: &mut BytesMut) {
        let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return };
        match session {
            Session::Client(client) => {
                client.line = input.split_to(end + 1).to_vec();
                if let Some(stall) = &self.stall {
                    stall();
                }
                match conn.acquire(self.pool.unwrap(), AcquireOptions::default()) {
                    Ok(wait) => {
                        client.wait = Some(wait);
                        conn.begin_request();
                    }
                    Err(error) => {
                        self.errors.push(error);
                        conn.write(b"refused\n");
                    }
                }
            }
            Session::Upstream => {
                let line = input.split_to(end + 1);
                conn.end_request();
                let id = conn.id();
                match conn.owner() {
                    Some(owner) => {
                        let mut client = conn.other(owner).unwrap();
                        client.write(&line);
                        client.end_request();
                        client.release(id);
                    }
                    None => conn.ready(),
                }
            }
        }
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Session,
        wait: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let Session::Client(client) = session else { panic!("a client asked") };
        assert_eq!(client.wait.take(), Some(wait));
        match lease {
            Ok(lease) => {
                self.used.push(lease);
                client.lease = Some(lease);
                let line = std::mem::take(&mut client.line);
                if self.replays {
                    if self.twice {
                        conn.send_replayable(lease, [b"A".as_slice(), &line].concat());
                    }
                    conn.send_replayable(lease, line);
                } else {
                    let mut upstream = conn.other(lease).unwrap();
                    upstream.begin_request();
                    upstream.write(&line);
                }
                if self.gives_back_at_once {
                    conn.release(lease);
                    conn.end_request();
                }
            }
            Err(error) => {
                self.errors.push(error);
                conn.write(b"sorry\n");
                conn.end_request();
            }
        }
    }

    fn on_lease_replaced(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Session,
        lost: ConnId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let Session::Client(client) = session else { panic!("a client had leased it") };
        assert_eq!(client.lease.take(), Some(lost));
        match lease {
            Ok(lease) => {
                self.used.push(lease);
                client.lease = Some(lease);
            }
            Err(error) => {
                self.errors.push(error);
                conn.write(b"lost\n");
                conn.end_request();
            }
        }
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, _: &mut Session) {
        self.rang.push(conn.id());
    }

    fn on_loop_acquired(
        &mut self,
        _: &mut Context<'_>,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.loop_leases.borrow_mut().push(lease);
    }

    fn on_health_check(&mut self, conn: &mut Conn<'_>, _: &mut Session) {
        if self.pings {
            conn.begin_request();
            conn.write(b"ping\n");
        }
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, session: &mut Session, _: &CloseReason) {
        if matches!(session, Session::Upstream)
            && let Some(owner) = conn.owner()
        {
            let mut client = conn.other(owner).unwrap();
            client.write(b"lost\n");
            client.end_request();
        }
    }
}

/// Answers each line with itself; or, if it is to be unreliable, late, in part or not at all, and
/// ends connections.
#[derive(Default)]
pub(crate) struct Lines(pub(crate) Option<Random>);

impl Handler for Lines {
    /// The line to be answered late.
    type Session = Vec<u8>;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Vec<u8>> {
        Some(Vec::new())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, late: &mut Vec<u8>, input: &mut BytesMut) {
        while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            let line = input.split_to(end + 1);
            match self.0.as_mut().map(|random| random.below(30)) {
                Some(0) => conn.close(),
                Some(1) => conn.abort(),
                Some(2) => {
                    conn.write(&line[..1]);
                    conn.close();
                }
                Some(3) => {
                    conn.write(&line);
                    conn.close();
                }
                Some(4 | 5) => {
                    late.extend_from_slice(&line);
                    conn.begin_request();
                    let pause = self.0.as_mut().map_or(0, |random| random.below(8_000));
                    conn.set_timer(conn.now() + millis(pause));
                }
                _ => conn.write(&line),
            }
        }
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, late: &mut Vec<u8>) {
        conn.write(&std::mem::take(late));
        while conn.in_flight() > 0 {
            conn.end_request();
        }
    }
}

/// A line's client, and what it has sent that is not answered.
struct Asker {
    peer: Peer,
    sent: Option<Vec<u8>>,
}

impl Asker {
    /// Reads the reply, if it has come: that to its own line, or an error.
    fn read(&mut self) {
        let reply = self.peer.received();
        let Some(sent) = &self.sent else {
            return assert!(reply.is_empty(), "a reply to nothing");
        };
        let errors: [&[u8]; 3] = [b"lost\n", b"sorry\n", b"refused\n"];
        if reply == *sent || errors.contains(&&*reply) {
            self.peer.take();
            self.sent = None;
        } else {
            let replies = errors.iter().copied().chain([&**sent]);
            let part = replies.into_iter().any(|whole| whole.starts_with(&reply));
            assert!(part, "{:?} is the reply of another", reply.escape_ascii().to_string());
        }
    }
}

fn pool_config(random: &mut Random) -> PoolConfig {
    let mut config = PoolConfig { size: 1 + random.below(6) as usize, ..PoolConfig::default() };
    config.idle_max = random.below(config.size as u64 + 1) as usize;
    config.idle_min = random.below(config.idle_max as u64 + 1) as usize;
    config.waiters_max = 1 + random.below(12) as usize;
    config.order = if random.below(2) == 0 { PoolOrder::Lifo } else { PoolOrder::Fifo };
    let mut sometimes = |most| (random.below(2) == 0).then(|| millis(1 + random.below(most)));
    config.idle = sometimes(20_000);
    config.lifetime = sometimes(30_000);
    config.ping_after = sometimes(10_000);
    config.handshake = (random.below(2) == 0).then(|| secs(3 + random.below(5)));
    config.fail_fast = random.below(4) == 0;
    config.leases_max = (random.below(4) == 0).then(|| 1 + random.below(5));
    config
}

/// Many clients, few leases, and an upstream that is unreliable: each client gets the reply to its own
/// line or an error, and in the end all is well again.
pub(crate) fn pooled(sim: &mut Sim) {
    let mut random = sim.random();
    let lines = Lines(Some(sim.random()));
    let upstream = sim.serve(UPSTREAM, Config::default(), lines);
    let mut proxy = Proxy::new(pool_config(&mut random));
    proxy.greets = proxy.config.handshake.is_some();
    proxy.pings = random.below(2) == 0;
    proxy.replays = random.below(3) > 0;
    let replays = proxy.replays;
    proxy.checks = (random.below(2) == 0).then(EndpointConfig::default);
    let server = sim.serve("10.0.0.1:7", Config::default(), proxy);
    if random.below(4) == 0 {
        server.set_descriptors(12 + random.below(10) as usize);
    }
    let clients = 1 + random.below(20);
    let dial = |sim: &mut Sim| Asker { peer: sim.connect(&server), sent: None };
    let mut askers: Vec<_> = (0..clients).map(|_| dial(sim)).collect();
    for round in 0..40_u32 {
        for (number, asker) in askers.iter_mut().enumerate() {
            asker.read();
            if asker.peer.closed().is_some() || random.below(15) == 0 {
                asker.peer.reset();
                *asker = dial(sim);
            } else if asker.sent.is_none() && random.below(3) > 0 {
                let line = format!("{number} says {round}\n").into_bytes();
                asker.peer.send(&line);
                asker.sent = Some(line);
            }
        }
        match random.below(20) {
            0 => sim.partition("10.0.0.1", "10.0.0.2"),
            1 | 2 => sim.repair("10.0.0.1", "10.0.0.2"),
            3 => upstream.with(|_, cx| {
                for id in cx.ids() {
                    if let Some(mut conn) = cx.conn(id) {
                        conn.close();
                    }
                }
            }),
            _ => {}
        }
        sim.advance(millis(random.below(1_500)));
    }
    sim.repair("10.0.0.1", "10.0.0.2");
    upstream.with(|lines, _| lines.0 = None);
    drop(askers);
    sim.set_faults(Faults::NONE);
    sim.advance(secs(300));
    let stats = server.with(|proxy, cx| cx.pool_stats(proxy.pool.expect("it has started")));
    assert_eq!((stats.leased, stats.waiting), (0, 0), "nothing is lost: {stats:?}");
    let (answered, asked) =
        (stats.leases + stats.timed_out + stats.failed, stats.asked + stats.replayed);
    assert_eq!(answered + stats.cancelled, asked, "each wait ends once: {stats:?}");
    // The upstream may close a connection in the moment in which a line goes over it.
    let tries = if replays { 1 } else { 5 };
    let served = (0..tries).any(|_| {
        let peer = sim.connect(&server);
        peer.send(b"at last\n");
        sim.advance(secs(7));
        peer.received() == b"at last\n"
    });
    assert!(served, "no client is served: {stats:?}");
    server.with(|proxy, cx| {
        cx.close_pool(proxy.pool.expect("it has started"));
        // Checks go on for ever.
        if let Some(endpoint) = proxy.endpoint {
            assert!(cx.endpoint(endpoint).is_some_and(|it| it.is_available));
            cx.remove_endpoint(endpoint);
        }
    });
    sim.converge();
}
