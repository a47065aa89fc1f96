//! Settings that are refused.

use super::*;

#[test]
fn settings_out_of_range_are_refused_each_by_its_name() {
    type Spoil = fn(&mut Config);
    let spoil: [(&str, Spoil); 15] = [
        ("limits.buffered_max", |c| c.limits.buffered_max = 0),
        ("limits.input_max", |c| c.limits.input_max = (1 << 30) + 1),
        ("limits.lag_max", |c| c.limits.lag_max = Some(Duration::ZERO)),
        ("limits.at_limit", |c| c.limits.at_limit = AtLimit::Reject(vec![b'x'; 257].into())),
        ("limits.clients.connections", |c| c.limits.clients.connections = Some(0)),
        ("limits.clients.prefix_v4", |c| c.limits.clients.prefix_v4 = 33),
        ("limits.clients.prefix_v6", |c| c.limits.clients.prefix_v6 = 129),
        ("stall_report", |c| c.stall_report = Some(Duration::ZERO)),
        ("shutdown_spread", |c| c.shutdown_spread = Some(Duration::ZERO)),
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
        ("limits.max_connections", |c| c.limits.max_connections = Some(0)),
    ];
    for (setting, spoil) in spoil {
        let mut config = Config::default();
        spoil(&mut config);
        let refused = wheelhouse::Reactor::<Echo>::new(config);
        assert!(
            matches!(&refused, Err(wheelhouse::Error::Config(error)) if error.setting() == setting),
            "{setting}: {refused:?}"
        );
    }
    let mut config = Config::default();
    config.limits.at_limit = AtLimit::Reject(vec![b'x'; 256].into());
    config.limits.max_connections = Some(1);
    wheelhouse::Reactor::<Echo>::new(config).unwrap();
}
