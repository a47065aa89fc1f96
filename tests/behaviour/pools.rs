//! Pools: connections that are leased, used, given back and used again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use wheelhouse::pool::{AcquireOptions, PoolConfig, PoolId, PoolStats};
use wheelhouse::{Address, CloseReason, Config, Origin};

use crate::harness::{Fixture, PeerId, RecordingHandler, World, millis};

behaviours! {
    everywhere {
        a_lease_serves_and_is_used_again
        an_idle_connection_ends_with_its_peer
        an_idle_connection_that_is_sent_something_is_closed
        a_wait_ends_when_nothing_answers
    }
    over_tcp {
        a_lease_ends_with_its_owner
    }
}

/// A proxy over a pool of one connection: what a client sends goes over a lease, and what comes back
/// goes to that client.
struct Pooled<'w, W: World> {
    fixture: Fixture<'w, W>,
    pool: PoolId,
    listener: W::Listener,
    failures: Rc<Cell<u32>>,
}

impl<'w, W: World> Pooled<'w, W> {
    fn new(world: &'w mut W) -> Self {
        let (listener, address) = world.listen_as_peer();
        Self::over(world, listener, address)
    }

    fn over(world: &'w mut W, listener: W::Listener, target: Address) -> Self {
        let failures = Rc::new(Cell::new(0));
        let request = Rc::new(RefCell::new(Vec::new()));
        let pool = Rc::new(Cell::new(None));
        let (asked, known, failed) = (Rc::clone(&request), Rc::clone(&pool), Rc::clone(&failures));
        let handler = RecordingHandler::echo()
            .when_data(move |conn, _, input| {
                let bytes = input.split().to_vec();
                if matches!(conn.origin(), Origin::Pool(_)) {
                    conn.end_request();
                    let (id, owner) = (conn.id(), conn.owner().expect("it is leased"));
                    let mut client = conn.other(owner).expect("it owns the lease");
                    client.write(&bytes);
                    client.end_request();
                    client.release(id);
                } else {
                    conn.begin_request();
                    *asked.borrow_mut() = bytes;
                    let pool = known.get().expect("there is a pool");
                    conn.acquire(pool, AcquireOptions::default()).unwrap();
                }
            })
            .when_acquired(move |conn, lease| {
                let Ok(lease) = lease else {
                    conn.end_request();
                    return failed.set(failed.get() + 1);
                };
                let mut upstream = conn.other(lease).expect("it is leased");
                upstream.begin_request();
                upstream.write(&request.borrow());
            });
        let mut fixture = Fixture::new(world, Config::default(), handler);
        let config = PoolConfig { size: 1, acquire: millis(300), ..PoolConfig::default() };
        let id = fixture.reactor.context().add_pool(target, &config).unwrap();
        pool.set(Some(id));
        Self { fixture, pool: id, listener, failures }
    }

    fn stats(&mut self) -> PoolStats {
        self.fixture.reactor.context().pool_stats(self.pool)
    }

    fn until(&mut self, what: &str, is: impl Fn(PoolStats) -> bool) {
        let pool = self.pool;
        self.fixture.until(what, |fixture| is(fixture.reactor.context().pool_stats(pool)));
    }

    /// A client whose request is answered by the upstream's end of the connection that is dialled.
    fn first_exchange(&mut self) -> (PeerId, PeerId) {
        let (client, _) = self.fixture.enter();
        self.fixture.send(client, b"question");
        let upstream = self.fixture.answer(&mut self.listener);
        self.answer(client, upstream);
        (client, upstream)
    }

    fn answer(&mut self, client: PeerId, upstream: PeerId) {
        self.fixture.expect(upstream, b"question");
        self.fixture.send(upstream, b"answer");
        self.fixture.expect(client, b"answer");
        self.until("the connection to be idle", |stats| stats.idle == 1);
    }
}

fn a_lease_serves_and_is_used_again<W: World>(world: &mut W) {
    let mut pooled = Pooled::new(world);
    let (client, upstream) = pooled.first_exchange();
    for _ in 0..3 {
        pooled.fixture.send(client, b"question");
        pooled.answer(client, upstream);
    }
    let stats = pooled.stats();
    assert_eq!((stats.dialled, stats.leases, stats.reused), (1, 4, 3));
    let text = pooled.fixture.reactor.handle().stats().prometheus().to_string();
    for line in ["connections 1", "leased 0", "waiting 0", "leases_total 4", "failures_total 0"] {
        assert!(text.contains(&format!("\nwheelhouse_pool_{line}\n")), "{text}");
    }
}

fn an_idle_connection_ends_with_its_peer<W: World>(world: &mut W) {
    let mut pooled = Pooled::new(world);
    let (client, upstream) = pooled.first_exchange();
    pooled.fixture.leave(upstream);
    pooled.until("the connection to be gone", |stats| stats.open == 0);
    assert_eq!(pooled.stats().lost_idle, 1);
    pooled.fixture.send(client, b"question");
    let upstream = pooled.fixture.answer(&mut pooled.listener);
    pooled.answer(client, upstream);
}

fn an_idle_connection_that_is_sent_something_is_closed<W: World>(world: &mut W) {
    let mut pooled = Pooled::new(world);
    let (_, upstream) = pooled.first_exchange();
    pooled.fixture.send(upstream, b"what was not asked for");
    pooled.fixture.expect_closed(CloseReason::UnsolicitedData);
    assert_eq!((pooled.stats().open, pooled.stats().lost_idle), (0, 1));
}

fn a_lease_ends_with_its_owner<W: World>(world: &mut W) {
    let mut pooled = Pooled::new(world);
    let (client, _) = pooled.first_exchange();
    pooled.fixture.send(client, b"question");
    pooled.until("a lease", |stats| stats.leased == 1);
    pooled.fixture.reset(client);
    pooled.until("the end of the lease", |stats| stats.open == 0);
    assert_eq!((pooled.stats().owner_gone, pooled.stats().leased), (1, 0));
}

fn a_wait_ends_when_nothing_answers<W: World>(world: &mut W) {
    let refusing = world.refusing();
    let (listener, _) = world.listen_as_peer();
    let mut pooled = Pooled::over(world, listener, refusing);
    let (client, _) = pooled.fixture.enter();
    pooled.fixture.send(client, b"question");
    let failures = Rc::clone(&pooled.failures);
    pooled.fixture.until("an error", |_| failures.get() == 1);
    let stats = pooled.stats();
    assert_eq!((stats.timed_out, stats.leases), (1, 0));
    assert!(stats.dials_failed > 0 && stats.last_dial.is_some(), "{stats:?}");
}
