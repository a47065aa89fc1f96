//! Settings that are refused.

use std::time::Duration;

use wheelhouse::config::AtLimit;
use wheelhouse::{Config, Error, ListenConfig, Reactor};

use crate::harness::{Fixture, Os, RecordingHandler, millis, secs};

/// Puts one setting out of its range.
type Spoil = fn(&mut Config);

const SPOILS: [(&str, Spoil); 16] = [
    ("limits.max_connections", |c| c.limits.max_connections = Some(0)),
    ("limits.buffered_max", |c| c.limits.buffered_max = 0),
    ("limits.input_max", |c| c.limits.input_max = (1 << 30) + 1),
    ("limits.lag_max", |c| c.limits.lag_max = Some(Duration::ZERO)),
    ("limits.at_limit", |c| c.limits.at_limit = AtLimit::Reject(vec![b'x'; 257].into())),
    ("limits.clients.connections", |c| c.limits.clients.connections = Some(0)),
    ("limits.clients.prefix_v4", |c| c.limits.clients.prefix_v4 = 33),
    ("limits.clients.prefix_v6", |c| c.limits.clients.prefix_v6 = 129),
    ("stall_report", |c| c.stall_report = Some(Duration::ZERO)),
    ("shutdown_spread", |c| c.shutdown_spread = Some(Duration::ZERO)),
    ("timeouts.idle", |c| c.timeouts.idle = Some(Duration::ZERO)),
    ("timeouts.request_rate", |c| c.timeouts.request_rate = Some(0)),
    ("timeouts.ping", |c| {
        c.timeouts.ping_after = Some(secs(1));
        c.timeouts.ping = None;
    }),
    ("socket.user_timeout", |c| c.socket.user_timeout = Some(Duration::ZERO)),
    ("socket.keepalive", |c| {
        if let Some(keepalive) = &mut c.socket.keepalive {
            keepalive.idle = millis(999);
        }
    }),
    ("socket.keepalive", |c| {
        if let Some(keepalive) = &mut c.socket.keepalive {
            keepalive.retries = 0;
        }
    }),
];

#[test]
fn a_setting_out_of_range_is_refused_by_its_name() {
    for (setting, spoil) in SPOILS {
        let mut config = Config::default();
        spoil(&mut config);
        let refused = Reactor::<RecordingHandler>::new(config);
        assert!(
            matches!(&refused, Err(Error::Config(error)) if error.setting() == setting),
            "{setting}: {refused:?}"
        );
    }
}

#[test]
fn settings_at_the_end_of_their_range_are_accepted() {
    let mut config = Config::default();
    config.limits.at_limit = AtLimit::Reject(vec![b'x'; 256].into());
    config.limits.max_connections = Some(1);
    Reactor::<RecordingHandler>::new(config).unwrap();
}

#[test]
fn a_setting_of_a_listener_out_of_range_is_refused_by_its_name() {
    let mut world = Os::tcp();
    let mut fixture = Fixture::new(&mut world, Config::default(), RecordingHandler::echo());
    let listen = ListenConfig { backlog: 0, ..ListenConfig::default() };
    let refused = fixture.reactor.listen_with("127.0.0.1:0", listen);
    assert!(
        matches!(&refused, Err(Error::Config(error)) if error.setting() == "backlog"),
        "{refused:?}"
    );
}
