//! Groups of pools: a place that one of them cannot use is another's.

use wheelhouse::pool::{
    AcquireError, AcquireOptions, PoolConfig, PoolGroupId, PoolId, PoolStats, WaitId,
};

use super::*;

with_each_personality! {
    a_pool_at_its_size_keeps_no_place_of_its_group_free,
    a_dial_that_hangs_keeps_no_place_of_its_group_free,
    a_connection_is_not_closed_for_a_pool_that_is_at_its_size,
    what_waits_in_a_pool_at_its_size_keeps_no_other_from_its_least_idle,
    a_pool_of_a_group_pauses_while_descriptors_are_short,
}

const FIRST: &str = "10.0.0.2:9";
const SECOND: &str = "10.0.0.3:9";

/// Two pools of two connections each, which may have three together. A client leases one of the pool
/// that it names, and keeps it until it says `back`.
#[derive(Default)]
struct Grouped {
    group: Option<PoolGroupId>,
    pools: Vec<PoolId>,
    /// Leases of each pool.
    leased: [u32; 2],
}

impl Grouped {
    fn stats(&self, cx: &Context<'_>) -> [PoolStats; 2] {
        [0, 1].map(|pool: usize| cx.pool_stats(self.pools[pool]))
    }
}

impl Handler for Grouped {
    type Session = Option<ConnId>;

    fn on_start(&mut self, cx: &mut Context<'_>) {
        self.group = Some(cx.add_pool_group(3));
        let config = PoolConfig { size: 2, group: self.group, ..PoolConfig::default() };
        self.pools = [FIRST, SECOND].map(|target| cx.add_pool(target, &config).unwrap()).to_vec();
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Self::Session> {
        Some(None)
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, lease: &mut Self::Session, input: &mut BytesMut) {
        let asked = input.split();
        if asked == b"back"[..] {
            conn.release(lease.take().unwrap());
            return conn.end_request();
        }
        conn.begin_request();
        let pool = self.pools[usize::from(asked == b"second"[..])];
        let options = AcquireOptions { timeout: Some(secs(20)), ..AcquireOptions::default() };
        conn.acquire(pool, options).unwrap();
    }

    fn on_acquired(
        &mut self,
        _: &mut Conn<'_>,
        session: &mut Self::Session,
        wait: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        *session = lease.ok();
        if session.is_some() {
            self.leased[usize::from(wait.pool() == self.pools[1])] += 1;
        }
    }
}

/// The world, both servers behind the pools, and the front.
fn group() -> (Sim, Server<Grouped>) {
    let mut sim = world(1);
    for target in [FIRST, SECOND] {
        sim.serve(target, Config::default(), Echo);
    }
    let server = sim.serve(SERVER, Config::default(), Grouped::default());
    (sim, server)
}

fn ask(sim: &mut Sim, what: &[u8]) -> Peer {
    let peer = sim.connect(SERVER);
    peer.send(what);
    sim.advance(secs(1));
    peer
}

fn a_pool_at_its_size_keeps_no_place_of_its_group_free() {
    let (mut sim, server) = group();
    let _first = [(); 3].map(|()| ask(&mut sim, b"first"));
    let _second = ask(&mut sim, b"second");
    // The third that asked the first pool waits for one of its two.
    assert_eq!(server.with(|grouped, _| grouped.leased), [2, 1]);
}

fn a_dial_that_hangs_keeps_no_place_of_its_group_free() {
    let (mut sim, server) = group();
    let _served = ask(&mut sim, b"first");
    sim.partition("10.0.0.1", "10.0.0.2");
    let _hangs = ask(&mut sim, b"first");
    let _other = ask(&mut sim, b"second");
    assert_eq!(server.with(|grouped, _| grouped.leased), [1, 1]);
}

fn a_connection_is_not_closed_for_a_pool_that_is_at_its_size() {
    let (mut sim, server) = group();
    let second = ask(&mut sim, b"second");
    let _first = [(); 3].map(|()| ask(&mut sim, b"first"));
    second.send(b"back");
    sim.advance(secs(1));
    let [first, second] = server.with(|grouped, cx| grouped.stats(cx));
    assert_eq!((first.leased, first.waiting), (2, 1));
    assert_eq!((second.idle, second.surplus), (1, 0));
}

fn what_waits_in_a_pool_at_its_size_keeps_no_other_from_its_least_idle() {
    let (mut sim, server) = group();
    let _first = [(); 3].map(|()| ask(&mut sim, b"first"));
    let spare = server.with(|grouped, cx| {
        let config = PoolConfig { idle_min: 1, group: grouped.group, ..PoolConfig::default() };
        cx.add_pool(SECOND, &config).unwrap()
    });
    sim.advance(secs(1));
    let [first, _] = server.with(|grouped, cx| grouped.stats(cx));
    assert_eq!((first.leased, first.waiting), (2, 1));
    assert_eq!(server.with(|_, cx| cx.pool_stats(spare)).idle, 1);
}

fn a_pool_of_a_group_pauses_while_descriptors_are_short() {
    let mut sim = world(1);
    sim.serve(FIRST, Config::default(), Echo);
    let server = sim.serve(SERVER, Config::default(), Grouped::default());
    let peer = sim.connect(SERVER);
    sim.settle();
    server.set_descriptors(server.descriptors());
    peer.send(b"first");
    sim.advance(secs(1));
    let [first, _] = server.with(|grouped, cx| grouped.stats(cx));
    assert!((2..=11).contains(&first.dials_failed), "{first:?}");
    assert_eq!((first.waiting, first.is_down), (1, false));
    server.set_descriptors(1_000);
    sim.advance(millis(200));
    assert_eq!(server.with(|grouped, cx| grouped.stats(cx))[0].leased, 1);
}
