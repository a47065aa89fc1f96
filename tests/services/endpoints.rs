//! What an operator orders of endpoints.

use std::time::Duration;

use bytes::BytesMut;
use wheelhouse::health::{EndpointConfig, EndpointId};
use wheelhouse::sim::{Server, Sim};
use wheelhouse::{Config, Conn, ConnectError, Context, Handler, pool};

use crate::shorthands::secs;
use crate::world::Echo;

const UPSTREAM: &str = "10.0.0.2:7";

/// A client with an endpoint, and a pool that follows it.
#[derive(Default)]
struct Front {
    endpoint: Option<EndpointId>,
    pool: Option<pool::PoolId>,
}

impl Handler for Front {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let config = EndpointConfig { slow_start: None, ..EndpointConfig::default() };
        let endpoint = cx.add_endpoint(UPSTREAM, &config).unwrap();
        let pool = pool::PoolConfig { endpoint: Some(endpoint), ..pool::PoolConfig::default() };
        self.pool = cx.add_pool(UPSTREAM, &pool).ok();
        self.endpoint = Some(endpoint);
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        input.clear();
    }
}

fn world() -> (Sim, Server<Front>, Server<Echo>) {
    let mut sim = Sim::new(1);
    let upstream = sim.serve(UPSTREAM, Config::default(), Echo::default());
    let front = sim.spawn("10.0.0.1", Config::default(), Front::default(), |_| {});
    sim.advance(secs(1));
    (sim, front, upstream)
}

fn dials(front: &Server<Front>) -> bool {
    let dialled = front.with(|front, cx| cx.connect_endpoint(front.endpoint.unwrap()));
    assert!(matches!(dialled, Ok(_) | Err(ConnectError::Down(_))), "{dialled:?}");
    dialled.is_ok()
}

fn checks(front: &Server<Front>) -> u64 {
    front.with(|front, cx| cx.endpoint(front.endpoint.unwrap()).unwrap().checks)
}

#[test]
fn a_drained_endpoint_is_checked_and_not_dialled() {
    let (mut sim, front, _upstream) = world();
    assert!(dials(&front));
    assert_eq!(front.ask("endpoints drain 1"), "endpoint 1 is not dialled any more\n\n");
    sim.advance(Duration::ZERO);
    sim.settle();
    assert!(!dials(&front));
    assert_eq!((front.stats().endpoints_up, front.stats().endpoints_down), (0, 1));
    // What was dialled before stays.
    assert_eq!(front.stats().in_state(wheelhouse::State::Idle), 1);
    let before = checks(&front);
    sim.advance(secs(10));
    assert!(checks(&front) > before);
    assert!(!dials(&front), "checks that pass do not bring it back");
    assert!(front.ask("endpoints").contains("  drain  "), "{}", front.ask("endpoints"));
    assert_eq!(front.ask("endpoints up 1"), "endpoint 1 may be dialled\n\n");
    assert!(dials(&front));
    sim.settle();
    assert_eq!(front.stats().endpoints_up, 1);
}

#[test]
fn one_that_is_down_is_not_checked_and_comes_back_checked() {
    let (mut sim, front, upstream) = world();
    assert!(front.ask("endpoints down 1").starts_with("endpoint 1 is neither"));
    sim.advance(secs(2));
    let (before, accepted) = (checks(&front), upstream.stats().accepted);
    sim.advance(secs(60));
    assert_eq!((checks(&front), upstream.stats().accepted), (before, accepted));
    assert!(!dials(&front));
    front.ask("endpoints up 1");
    sim.advance(secs(1));
    assert!(checks(&front) > before && dials(&front));
}

#[test]
fn a_pool_dials_no_endpoint_that_is_drained() {
    let (mut sim, front, _upstream) = world();
    front.ask("endpoints drain 1");
    sim.settle();
    let options = pool::AcquireOptions::default;
    let refused = front.with(|front, cx| cx.acquire(front.pool.unwrap(), options()));
    sim.advance(secs(3));
    assert!(refused.is_ok(), "it waits");
    assert_eq!(front.stats().pool_leases, 0);
    assert!(front.ask("pools").contains(UPSTREAM));
    front.ask("endpoints up 1");
    sim.advance(secs(1));
    assert_eq!(front.stats().pool_leases, 1);
}

#[test]
fn what_is_no_endpoint_is_refused() {
    let (_sim, front, _upstream) = world();
    for question in ["endpoints drain 2", "endpoints drain", "endpoints off 1", "endpoints up x"] {
        assert!(front.ask(question).starts_with("error: "), "{question}");
    }
}
