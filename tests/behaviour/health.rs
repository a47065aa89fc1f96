//! Endpoints: checks over connections of their own, and what is dialled to them.

use wheelhouse::health::{EndpointConfig, EndpointId, EndpointState, EndpointStats, HealthCheck};
use wheelhouse::{Address, CloseReason, Config, ConnectError, Origin};

use crate::harness::{Fixture, RecordingHandler, World, millis};

behaviours! {
    everywhere {
        a_check_that_connects_passes_and_ends_with_a_fin
        a_check_that_is_refused_takes_an_endpoint_down
        a_test_request_passes_with_the_right_reply
        a_test_request_without_a_reply_ends_in_time
        dials_that_fail_eject_an_endpoint_of_a_group
    }
}

/// A reactor with one endpoint that is checked often.
struct Checked<'w, W: World> {
    fixture: Fixture<'w, W>,
    endpoint: EndpointId,
}

impl<'w, W: World> Checked<'w, W> {
    fn new(world: &'w mut W, target: Address, check: HealthCheck) -> Self {
        let handler = RecordingHandler::echo()
            .when_test_request(|conn, _| {
                conn.begin_request();
                conn.write(b"well?");
            })
            .when_data(|conn, _, input| {
                if matches!(conn.origin(), Origin::Check(_)) && input[..] == *b"well" {
                    input.clear();
                    conn.end_request();
                    conn.ready();
                }
            });
        let mut fixture = Fixture::new(world, Config::default(), handler);
        let config = EndpointConfig {
            check,
            interval: millis(50),
            fast_interval: millis(20),
            down_interval: millis(50),
            timeout: millis(200),
            ..EndpointConfig::default()
        };
        let endpoint = fixture.reactor.context().add_endpoint(target, &config).unwrap();
        Self { fixture, endpoint }
    }

    fn stats(&mut self) -> EndpointStats {
        self.fixture.reactor.context().endpoint(self.endpoint).unwrap()
    }

    fn until(&mut self, what: &str, is: impl Fn(EndpointStats) -> bool) {
        let id = self.endpoint;
        self.fixture.until(what, |fixture| is(fixture.reactor.context().endpoint(id).unwrap()));
    }
}

fn a_check_that_connects_passes_and_ends_with_a_fin<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let mut checked = Checked::new(world, address, HealthCheck::Connect);
    assert!(!checked.stats().is_available, "nothing is known yet");
    let peer = checked.fixture.answer(&mut listener);
    checked.until("a check that passes", |stats| stats.is_available);
    checked.fixture.expect_eof(peer);
    let closed = checked.fixture.expect_closed(CloseReason::CheckPassed);
    assert_eq!(closed.origin, Origin::Check(checked.endpoint));
    checked.until("more checks", |stats| stats.checks == 3);
    let stats = checked.stats();
    assert_eq!((stats.state, stats.checks_failed, stats.weight), (EndpointState::Up, 0, 100));
    drop(listener);
    checked.until("a fall", |stats| stats.state == EndpointState::Down);
    assert_eq!(checked.stats().checks_failed, 3);
}

fn a_check_that_is_refused_takes_an_endpoint_down<W: World>(world: &mut W) {
    let refusing = world.refusing();
    let mut checked = Checked::new(world, refusing, HealthCheck::Connect);
    checked.until("a check that fails", |stats| stats.checks_failed == 1);
    let stats = checked.stats();
    assert_eq!((stats.state, stats.is_available), (EndpointState::Down, false));
    let Some(reason @ CloseReason::ConnectFailed(_)) = stats.last_failure else {
        panic!("{stats:?}");
    };
    let dial = checked.fixture.reactor.context().connect_endpoint(checked.endpoint);
    assert_eq!(dial, Err(ConnectError::Down(Some(reason))));
}

fn a_test_request_passes_with_the_right_reply<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let mut checked = Checked::new(world, address, HealthCheck::TestRequest);
    let peer = checked.fixture.answer(&mut listener);
    checked.fixture.expect(peer, b"well?");
    checked.fixture.send(peer, b"we");
    checked.fixture.send(peer, b"ll");
    checked.until("a check that passes", |stats| stats.is_available);
    checked.fixture.expect_eof(peer);
}

fn a_test_request_without_a_reply_ends_in_time<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let mut checked = Checked::new(world, address, HealthCheck::TestRequest);
    let peer = checked.fixture.answer(&mut listener);
    checked.fixture.expect(peer, b"well?");
    checked.until("a check that fails", |stats| stats.checks_failed == 1);
    let late = CloseReason::Timeout(wheelhouse::Timeout::Check);
    assert_eq!(checked.stats().last_failure, Some(late));
    checked.fixture.expect_closed(late);
}

fn dials_that_fail_eject_an_endpoint_of_a_group<W: World>(world: &mut W) {
    let (refusing, deaf) = (world.refusing(), world.refusing());
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let ids = {
        let mut cx = fixture.reactor.context();
        let group = Some(cx.add_endpoint_group());
        let config = EndpointConfig {
            check: HealthCheck::None,
            ejection: millis(100),
            group,
            ..EndpointConfig::default()
        };
        [refusing, deaf].map(|target| cx.add_endpoint(target, &config).unwrap())
    };
    for id in ids {
        for count in 1..=5 {
            fixture.reactor.context().connect_endpoint(id).unwrap();
            fixture.until("a failure", |fixture| {
                fixture.reactor.context().endpoint(id).unwrap().failures == count
            });
        }
    }
    let stats = ids.map(|id| fixture.reactor.context().endpoint(id).unwrap());
    assert_eq!(stats.map(|it| (it.ejections, it.ejections_prevented)), [(1, 0), (0, 1)]);
    fixture.until("the end of the ejection", |fixture| {
        fixture.reactor.context().endpoint(ids[0]).unwrap().is_available
    });
}
