//! Bytes become the deeds of peers, links, faults and calls of the handler, in a simulated world. The
//! world checks what must hold; what is found is a crash.

#![no_main]

#[path = "../../tests/scenarios/mod.rs"]
mod scenarios;

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use wheelhouse::sim::{Call, Faults, Link, Peer, Personality, Sim};
use wheelhouse::config::{AtLimit, Rate, Refusal};
use wheelhouse::{Address, Config, ListenConfig};

use crate::scenarios::{Echo, Keeper};

#[derive(Arbitrary, Debug)]
struct Plan {
    seed: u64,
    personality: u8,
    send_buffer: u16,
    receive_buffer: u16,
    latency_millis: u8,
    jitter_millis: u8,
    bandwidth: Option<u16>,
    segment: u16,
    descriptors: Option<u8>,
    /// The keeper dials a server, a listener that a peer may open, or nobody.
    upstream: u8,
    faults: [u8; 20],
    limits: Limits,
    deeds: Vec<TraceEvent>,
}

/// What of the keeper's settings is not the default.
#[derive(Arbitrary, Debug)]
struct Limits {
    places: Option<u8>,
    at_limit: u8,
    buffered: Option<u16>,
    client_connections: Option<u8>,
    client_rate: Option<u8>,
    resets: bool,
    accept_rate: Option<u8>,
    lag_millis: Option<u8>,
    requests: Option<u8>,
    lifetime_secs: Option<u8>,
    idle_millis: Option<u16>,
    ping_after_millis: Option<u16>,
    request_rate: Option<u8>,
    spread_millis: Option<u16>,
}

impl Limits {
    fn config(&self) -> Config {
        let millis = |millis: u16| Duration::from_millis(1 + u64::from(millis));
        let rate = |count: u8| Rate::new(1 + u32::from(count), Duration::from_secs(10));
        let mut config = Config::default();
        let limits = &mut config.limits;
        limits.max_connections = self.places.map(|places| 1 + usize::from(places));
        limits.at_limit = match self.at_limit % 3 {
            0 => AtLimit::EvictIdle,
            1 => AtLimit::Pause,
            _ => AtLimit::Reject("too many\n".into()),
        };
        if let Some(buffered) = self.buffered {
            limits.buffered_max = 1_000 + 10 * usize::from(buffered);
        }
        limits.clients.connections = self.client_connections.map(|most| 1 + u32::from(most));
        limits.clients.rate = self.client_rate.map(rate);
        limits.clients.refusal = if self.resets { Refusal::Reset } else { Refusal::Close };
        limits.accept_rate = self.accept_rate.map(rate);
        limits.requests_max = self.requests.map(|most| 1 + u64::from(most));
        if let Some(lag) = self.lag_millis {
            limits.lag_max = Some(millis(lag.into()));
        }
        let timeouts = &mut config.timeouts;
        timeouts.lifetime = self.lifetime_secs.map(|secs| millis(1_000 * u16::from(secs % 60)));
        if let Some(idle) = self.idle_millis {
            timeouts.idle = Some(millis(idle));
        }
        // To ask all the time is to spin.
        timeouts.ping_after = self.ping_after_millis.map(|after| millis(after | 512));
        timeouts.request_rate = self.request_rate.map(|rate| 1 + u64::from(rate));
        config.shutdown_spread = self.spread_millis.map(millis);
        config
    }
}

#[derive(Arbitrary, Debug)]
enum TraceEvent {
    Connect,
    /// Where no limit is.
    Operate,
    ConnectAs { client: u8 },
    Echo { bytes: Vec<u8> },
    Send { peer: u8, words: Vec<u8> },
    Drip { peer: u8, words: Vec<u8>, every: u16 },
    StopReading { peer: u8 },
    ReadAt { peer: u8, rate: u16 },
    Resume { peer: u8 },
    HalfClose { peer: u8 },
    Reset { peer: u8 },
    Close { peer: u8 },
    Answer,
    Wait { millis: u16 },
    Partition { between_servers: bool },
    Repair,
    Jump { secs: u16 },
    SetBack { millis: u16 },
    Post,
    Fail { call: u8, after: u8, errno: u8 },
    Shutdown,
}

/// What a keeper understands.
const WORDS: &[u8] = b"aaaaaaaabBCAFPRWTYDOSLKNeGMk";

fn words_of(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| WORDS[*byte as usize % WORDS.len()]).collect()
}

fn faults_of(rates: [u8; 20]) -> Faults {
    let rate = |index: usize| u16::from(rates[index]);
    Faults {
        short_read: rate(0),
        short_write: rate(1),
        interrupted: rate(2),
        would_block: rate(3),
        accept_error: rate(4),
        stream_error: rate(5) / 8,
        other_error: rate(6),
        spurious_event: rate(7),
        split_event: rate(8),
        missing_hint: rate(9),
        reordered: rate(10),
        full_batch: rate(11) / 4,
        small_batch: rate(12),
        late: rate(13) / 16,
        clock_jump: rate(14) / 64,
        clock_back: rate(15) / 8,
        clock_freeze: rate(16) / 8,
        panic: rate(17) / 16,
        stall: rate(18) / 16,
        blocking_accept: rate(19),
    }
}

fuzz_target!(|plan: Plan| {
    if plan.deeds.len() > 100 {
        return;
    }
    let mut sim = Sim::new(plan.seed);
    sim.set_personality(Personality::ALL[plan.personality as usize % 3]);
    sim.set_buffers(512 + plan.send_buffer as usize, 512 + plan.receive_buffer as usize);
    sim.set_link(Link {
        latency: Duration::from_millis(plan.latency_millis.into()),
        jitter: Duration::from_millis(plan.jitter_millis.into()),
        bandwidth: plan.bandwidth.map(|rate| 1_000 + 100 * u64::from(rate)),
        segment: 1 + plan.segment as usize,
    });
    let echo = sim.serve("10.0.0.2:7", Config::default(), Echo);
    let listening_on = Address::Ip((sim.peers_ip(), 5432).into());
    let listener = sim.listen(&listening_on, 4);
    let nobody: Address = "203.0.113.1:80".parse().unwrap();
    let upstream = [echo.address(), listening_on, nobody][plan.upstream as usize % 3].clone();
    let entry: Address = "10.0.0.1:7".parse().unwrap();
    let desk: Address = "10.0.0.1:9090".parse().unwrap();
    let keeper = Keeper::new(upstream);
    let server = sim.spawn("10.0.0.1", plan.limits.config(), keeper, |reactor| {
        reactor.listen(entry.clone()).unwrap();
        let mut listen = ListenConfig::default();
        listen.exempt = true;
        reactor.listen_with(desk.clone(), listen).unwrap();
    });
    if let Some(most) = plan.descriptors {
        server.set_descriptors(8 + most as usize);
    }
    sim.set_faults(faults_of(plan.faults));
    let pairs = [(sim.peers_ip(), server.ip()), (echo.ip(), server.ip())];
    let mut peers: Vec<Peer> = Vec::new();
    let mut echoed: Vec<(Peer, Vec<u8>)> = Vec::new();
    for deed in plan.deeds {
        let find = |peer: u8| peers.get(peer as usize % peers.len().max(1)).cloned();
        match deed {
            TraceEvent::Connect if peers.len() < 16 => peers.push(sim.connect(entry.clone())),
            TraceEvent::Operate if peers.len() < 16 => peers.push(sim.connect(desk.clone())),
            TraceEvent::ConnectAs { client } if peers.len() < 16 => {
                let from = format!("10.66.0.{}:0", client % 4);
                peers.push(sim.connect_from(from.as_str(), entry.clone()));
            }
            TraceEvent::Connect | TraceEvent::Operate | TraceEvent::ConnectAs { .. } => {}
            TraceEvent::Echo { bytes } => {
                if echoed.len() < 8 {
                    let peer = sim.connect(&echo);
                    peer.send(&bytes);
                    echoed.push((peer, bytes));
                }
            }
            TraceEvent::Send { peer, words } => drop(find(peer).map(|it| it.send(&words_of(&words)))),
            TraceEvent::Drip { peer, words, every } => {
                let every = Duration::from_millis(every.into());
                if let Some(peer) = find(peer) {
                    peer.drip(&words_of(&words), every);
                }
            }
            TraceEvent::StopReading { peer } => drop(find(peer).map(|peer| peer.stop_reading())),
            TraceEvent::ReadAt { peer, rate } => drop(find(peer).map(|peer| peer.read_at(rate.into()))),
            TraceEvent::Resume { peer } => drop(find(peer).map(|peer| peer.resume_reading())),
            TraceEvent::HalfClose { peer } => drop(find(peer).map(|peer| peer.half_close())),
            TraceEvent::Reset { peer } => drop(find(peer).map(|peer| peer.reset())),
            TraceEvent::Close { peer } => drop(find(peer).map(|peer| peer.close())),
            TraceEvent::Answer => peers.extend(listener.accept().filter(|_| peers.len() < 16)),
            TraceEvent::Wait { millis } => sim.advance(Duration::from_millis(millis.into())),
            TraceEvent::Partition { between_servers } => {
                let (a, b) = pairs[usize::from(between_servers)];
                sim.partition(a, b);
            }
            TraceEvent::Repair => pairs.iter().for_each(|(a, b)| sim.repair(*a, *b)),
            TraceEvent::Jump { secs } => sim.jump_clocks(Duration::from_secs(secs.into())),
            TraceEvent::SetBack { millis } => sim.set_back_clocks(Duration::from_millis(millis.into())),
            TraceEvent::Post => drop(server.handle().post(|_, _| ())),
            TraceEvent::Fail { call, after, errno } => {
                let call = Call::ALL[call as usize % Call::ALL.len()];
                if let Some(errno) = call.errnos().get(errno as usize % call.errnos().len().max(1))
                {
                    sim.fail(call, after.into(), *errno);
                }
            }
            TraceEvent::Shutdown => server.shutdown(),
        }
        for (peer, sent) in &echoed {
            peer.assert_received_prefix_of(sent);
        }
    }
    pairs.iter().for_each(|(a, b)| sim.repair(*a, *b));
    sim.converge();
    sim.assert_clean();
});
