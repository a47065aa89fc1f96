//! A proxy that lets the reactor pass bytes on between each client and an upstream of its own.

use bytes::BytesMut;
use wheelhouse::sim::{End, Faults, Link, Peer, PeerListener, Random, Server, Sim};
use wheelhouse::{CloseReason, Closed, Config, Conn, ConnId, Context, Handler, Origin};

use crate::scenarios::{SERVER, millis, pattern, secs};

/// Where the upstream is.
pub(crate) const UPSTREAM: &str = "10.0.0.2:9";

/// The connection of the client, and that to the upstream.
#[derive(Default)]
pub(crate) struct Side {
    other: Option<ConnId>,
}

/// Passes on what clients send.
#[derive(Default)]
pub(crate) struct Relay {
    /// It reads a line before it dials, and sends another to the upstream instead.
    pub(crate) reads_line: bool,
    /// What it writes to a client before its relay begins.
    pub(crate) greeting: Vec<u8>,
    /// It panics when it has asked for a relay.
    pub(crate) panics: bool,
    /// The connections of each relay that has begun.
    pub(crate) pairs: Vec<(ConnId, ConnId)>,
    /// Callbacks that a relayed connection must not have.
    pub(crate) stray: u32,
}

impl Relay {
    fn dial(conn: &mut Conn<'_>, side: &mut Side) {
        conn.pause_reading();
        match conn.connect(UPSTREAM) {
            Ok(id) => side.other = Some(id),
            Err(_) => conn.abort(),
        }
    }

    fn watch(&mut self, conn: &Conn<'_>) {
        self.stray += u32::from(conn.relayed_with().is_some());
    }
}

impl Handler for Relay {
    type Session = Side;

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Side> {
        let mut side = Side { other: conn.owner() };
        if matches!(conn.origin(), Origin::Accepted(_)) && !self.reads_line {
            Self::dial(conn, &mut side);
        }
        Some(side)
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, side: &mut Side) {
        let Some(client) = side.other.filter(|_| conn.origin() == Origin::Connect) else { return };
        if self.reads_line {
            conn.write(b"line\n");
        }
        if let Some(mut client) = conn.other(client) {
            client.write(&self.greeting);
        }
        if !conn.relay_with(client) {
            return conn.abort();
        }
        assert_eq!(conn.relayed_with(), Some(client));
        assert!(!conn.relay_with(client), "it is relayed already");
        if self.panics {
            panic!("on purpose");
        }
        self.pairs.push((client, conn.id()));
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, side: &mut Side, input: &mut BytesMut) {
        self.watch(conn);
        if let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            let _ = input.split_to(end + 1);
            Self::dial(conn, side);
        }
    }

    fn on_eof(&mut self, conn: &mut Conn<'_>, _: &mut Side, _: &mut BytesMut) {
        self.watch(conn);
    }

    fn on_drained(&mut self, conn: &mut Conn<'_>, _: &mut Side) {
        self.watch(conn);
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, side: &mut Side, _: &CloseReason) {
        if conn.relayed_with().is_none()
            && let Some(mut other) = side.other.and_then(|other| conn.other(other))
        {
            other.abort();
        }
    }

    fn on_closed(&mut self, _: &mut Context<'_>, _: Closed, _: Side) {}
}

/// A proxy, and where it dials.
pub(crate) fn proxy(sim: &mut Sim, config: Config, relay: Relay) -> (Server<Relay>, PeerListener) {
    let listener = sim.listen(UPSTREAM, 64);
    (sim.serve(SERVER, config, relay), listener)
}

/// A client, and the upstream that it is relayed with.
pub(crate) fn pair(sim: &mut Sim, server: &Server<Relay>, listener: &PeerListener) -> (Peer, Peer) {
    let client = sim.connect(server);
    sim.settle();
    (client, listener.accept().expect("the proxy has dialled"))
}

/// What one side has sent, and how much of it the other has read.
#[derive(Default)]
struct Direction {
    sent: Vec<u8>,
    read: usize,
    ended: bool,
}

impl Direction {
    /// What `to` has read is what was sent.
    ///
    /// A FIN says that it is all, unless the pair may have ended for its time.
    fn check(&mut self, to: &Peer, untimed: bool) {
        let got = to.take();
        let until = self.read + got.len();
        assert!(self.sent.get(self.read..until) == Some(&got[..]), "other bytes than were sent");
        self.read = until;
        if to.closed() == Some(End::Fin) && untimed {
            assert!(self.ended, "an end that was not sent");
            assert_eq!(self.read, self.sent.len(), "the end came before all bytes");
        }
    }
}

/// A client and an upstream, what they sent, and whether either did what may cost bytes.
struct Talk {
    ends: [Peer; 2],
    ways: [Direction; 2],
    cut: bool,
}

impl Talk {
    fn act(&mut self, random: &mut Random) {
        let from = random.below(2) as usize;
        let (peer, way) = (&self.ends[from], &mut self.ways[from]);
        match random.below(14) {
            0..=5 if !way.ended => {
                let most = 1 << random.below(18);
                let bytes = pattern(random.below(most) as usize);
                peer.send(&bytes);
                way.sent.extend_from_slice(&bytes);
            }
            6 => peer.stop_reading(),
            7 => peer.read_at(1_000 + random.below(1_000_000) as usize),
            8 | 9 => peer.resume_reading(),
            10 if random.below(3) == 0 => {
                peer.half_close();
                way.ended = true;
            }
            11 if random.below(6) == 0 => {
                peer.reset();
                (way.ended, self.cut) = (true, true);
            }
            12 if random.below(6) == 0 => {
                peer.close();
                (way.ended, self.cut) = (true, true);
            }
            _ => {}
        }
    }

    fn check(&mut self, untimed: bool) {
        for from in [0, 1] {
            self.ways[from].check(&self.ends[1 - from], untimed);
        }
    }
}

/// Clients and upstreams that send, stop, and end as chance has it: what one side has read is a part
/// of what the other sent, from its front on; and if nothing goes wrong it is all of it.
pub(crate) fn relayed(sim: &mut Sim) {
    let mut random = sim.random();
    let mut config = Config::default();
    let untimed = random.below(2) == 0;
    if untimed {
        config.timeouts.half_closed = None;
        config.timeouts.tunnel = None;
    } else {
        config.timeouts.tunnel = Some(secs(5 + random.below(60)));
        config.timeouts.half_closed = Some(secs(2 + random.below(20)));
    }
    let size = 4_096 << random.below(5);
    sim.set_buffers(size, size);
    let faulty = random.below(2) == 0;
    if !faulty {
        sim.set_faults(Faults::NONE);
    }
    let (server, listener) = proxy(sim, config, Relay::default());
    sim.set_link_between("10.0.0.1", &listener, Link { latency: millis(2), ..Link::LOOPBACK });
    let (mut clients, mut upstreams) = (Vec::<Peer>::new(), Vec::<Peer>::new());
    let mut talks: Vec<Talk> = Vec::new();
    for _ in 0..80 {
        if clients.len() < 6 && random.below(6) == 0 {
            let client = sim.connect(&server);
            // It says to its upstream who it is.
            client.send(&[clients.len() as u8]);
            clients.push(client);
        }
        upstreams.extend(listener.accept());
        upstreams.retain(|upstream| {
            let Some(name) = upstream.received().first().copied() else { return true };
            let client = clients[usize::from(name)].clone();
            let up = Direction { sent: vec![name], ..Direction::default() };
            let ways = [up, Direction::default()];
            talks.push(Talk { ends: [client, upstream.clone()], ways, cut: false });
            false
        });
        let count = talks.len() as u64;
        if count > 0 {
            talks[random.below(count) as usize].act(&mut random);
        }
        let longest = 1 << random.below(11);
        sim.advance(millis(random.below(longest)));
        talks.iter_mut().for_each(|talk| talk.check(untimed));
        if !untimed && random.below(30) == 0 {
            server.shutdown();
        }
    }
    sim.set_faults(Faults::NONE);
    for talk in &talks {
        for from in [0, 1] {
            talk.ends[from].resume_reading();
            talk.ends[from].half_close();
        }
    }
    // Small buffers take their time where each round trip does.
    for _ in 0..50 {
        sim.advance(secs(20));
        if talks.iter().all(|talk| talk.ends.iter().all(|end| end.closed().is_some())) {
            break;
        }
    }
    for talk in &mut talks {
        talk.ways.iter_mut().for_each(|way| way.ended = true);
        talk.check(untimed);
        if untimed && !faulty && !talk.cut {
            for (way, end) in talk.ways.iter().zip(&talk.ends) {
                assert_eq!(way.read, way.sent.len(), "bytes are lost");
                assert_eq!(end.closed(), Some(End::Fin));
            }
        }
    }
    assert_eq!(server.handler().stray, 0, "a relayed connection had its input");
    clients.iter().chain(&upstreams).for_each(Peer::close);
    while let Some(upstream) = listener.accept() {
        upstream.close();
    }
    sim.advance(secs(120));
    assert_eq!(server.connections(), 0, "all have ended");
}
