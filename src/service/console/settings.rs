//! The settings as they are shown, and those that may change while a reactor runs.
//!
//! The others are built into what is there: the size of the table, the deadlines of connections that have
//! them armed, the input that they may hold.

use std::time::Duration;

use crate::config::{AtLimit, Config, ConfigError, Keepalive, Network, Rate, Refusal};

/// A setting that may change.
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    /// What its value looks like.
    pub(crate) form: &'static str,
    pub(crate) show: fn(&Config) -> String,
    set: fn(&mut Config, &str) -> Option<()>,
}

const COUNT: &str = "a whole number";
const BYTES: &str = "bytes, such as 65536 or 16MiB";
const COUNT_OR_OFF: &str = "a whole number, or off";
const RATE_OR_OFF: &str = "a rate such as 100/s or 10/1m, or off";
const TIME_OR_OFF: &str = "a duration such as 250ms, 30s or 5m, or off";

/// All that may change, by name.
pub(crate) const SETTINGS: [Setting; 12] = [
    Setting {
        name: "limits.accept_rate",
        form: RATE_OR_OFF,
        show: |it| show(it.limits.accept_rate, rate_text),
        set: |it, text| parse_optional(text, parse_rate).map(|rate| it.limits.accept_rate = rate),
    },
    Setting {
        name: "limits.buffered_max",
        form: BYTES,
        show: |it| it.limits.buffered_max.to_string(),
        set: |it, text| parse_bytes(text).map(|size| it.limits.buffered_max = size),
    },
    Setting {
        name: "limits.clients.connections",
        form: COUNT_OR_OFF,
        show: |it| show(it.limits.clients.connections, |count| count.to_string()),
        set: |it, text| {
            parse_optional(text, parse_count).map(|count| it.limits.clients.connections = count)
        },
    },
    Setting {
        name: "limits.clients.rate",
        form: RATE_OR_OFF,
        show: |it| show(it.limits.clients.rate, rate_text),
        set: |it, text| parse_optional(text, parse_rate).map(|rate| it.limits.clients.rate = rate),
    },
    Setting {
        name: "limits.flush_rate",
        form: COUNT,
        show: |it| it.limits.flush_rate.to_string(),
        set: |it, text| parse_count(text).map(|rate| it.limits.flush_rate = rate),
    },
    Setting {
        name: "limits.lag_max",
        form: TIME_OR_OFF,
        show: |it| show(it.limits.lag_max, time_text),
        set: |it, text| parse_optional(text, parse_time).map(|time| it.limits.lag_max = time),
    },
    Setting {
        name: "limits.output_max",
        form: BYTES,
        show: |it| it.limits.output_max.to_string(),
        set: |it, text| parse_bytes(text).map(|size| it.limits.output_max = size),
    },
    Setting {
        name: "limits.requests_max",
        form: COUNT_OR_OFF,
        show: |it| show(it.limits.requests_max, |count| count.to_string()),
        set: |it, text| {
            parse_optional(text, parse_count).map(|count| it.limits.requests_max = count)
        },
    },
    Setting {
        name: "shutdown_busy",
        form: TIME_OR_OFF,
        show: |it| show(it.shutdown_busy, time_text),
        set: |it, text| parse_optional(text, parse_time).map(|time| it.shutdown_busy = time),
    },
    Setting {
        name: "shutdown_spread",
        form: TIME_OR_OFF,
        show: |it| show(it.shutdown_spread, time_text),
        set: |it, text| parse_optional(text, parse_time).map(|time| it.shutdown_spread = time),
    },
    Setting {
        name: "shutdown_timeout",
        form: TIME_OR_OFF,
        show: |it| show(it.shutdown_timeout, time_text),
        set: |it, text| parse_optional(text, parse_time).map(|time| it.shutdown_timeout = time),
    },
    Setting {
        name: "stall_report",
        form: TIME_OR_OFF,
        show: |it| show(it.stall_report, time_text),
        set: |it, text| parse_optional(text, parse_time).map(|time| it.stall_report = time),
    },
];

/// The settings that may not change, and their values; `capacity` is what `limits.max_connections` came to.
pub(crate) fn fixed(config: &Config, capacity: usize) -> Vec<(&'static str, String)> {
    let Config { limits, watermarks, socket, timeouts, panic_limit, .. } = config;
    let at_limit = match limits.at_limit {
        AtLimit::EvictIdle => "evict_idle",
        AtLimit::Pause => "pause",
        AtLimit::Reject(_) => "reject",
    };
    let refusal = match limits.clients.refusal {
        Refusal::Close => "close",
        Refusal::Reset => "reset",
    };
    let percent = |percent| format!("{percent}%");
    let number = |number: u64| number.to_string();
    let mut settings = vec![
        ("limits.max_connections", capacity.to_string()),
        ("limits.at_limit", at_limit.to_owned()),
        ("limits.clients.refusal", refusal.to_owned()),
        ("limits.clients.prefix_v4", limits.clients.prefix_v4.to_string()),
        ("limits.clients.prefix_v6", limits.clients.prefix_v6.to_string()),
        ("limits.clients.allowed", networks_text(&limits.clients.allowed)),
        ("limits.input_max", limits.input_max.to_string()),
        ("limits.shrink_idle_from", show(limits.shrink_idle_from, percent)),
        ("limits.mailbox_max", limits.mailbox_max.to_string()),
        ("watermarks", format!("{},{}", watermarks.low(), watermarks.high())),
        ("socket.nodelay", if socket.nodelay { "on" } else { "off" }.to_owned()),
        ("socket.keepalive", show(socket.keepalive, keepalive_text)),
        ("socket.user_timeout", show(socket.user_timeout, time_text)),
        ("socket.notsent_lowat", show(socket.notsent_lowat.map(u64::from), number)),
        ("socket.local", socket.local.map_or_else(|| "any".to_owned(), |it| it.to_string())),
        ("timeouts.request_rate", show(timeouts.request_rate, number)),
        ("panic_limit", show(*panic_limit, rate_text)),
    ];
    settings.extend(timeouts.named().map(|(name, timeout)| (name, show(timeout, time_text))));
    settings
}

/// The networks, the first 16 by their names.
fn networks_text(networks: &[Network]) -> String {
    const NAMED: usize = 16;
    let mut names: Vec<_> = networks.iter().take(NAMED).map(Network::to_string).collect();
    if networks.len() > NAMED {
        names.push(format!("and_{}_more", networks.len() - NAMED));
    }
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}

fn keepalive_text(keepalive: Keepalive) -> String {
    let Keepalive { idle, interval, retries } = keepalive;
    format!("{},{},{retries}", time_text(idle), time_text(interval))
}

/// What a change depends on, beside the settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// Clients are counted, as one of their limits was set at the start.
    pub(crate) counts_clients: bool,
    /// A shutdown has begun.
    pub(crate) is_stopping: bool,
    /// What all connections hold now.
    pub(crate) buffered: u64,
}

/// The settings with one of them changed, and what that was.
///
/// # Errors
///
/// Why not: for the reply.
pub(crate) fn changed(
    config: &Config,
    standing: Standing,
    name: &str,
    value: &str,
) -> Result<(Config, String), String> {
    let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
        return Err(format!("{name:?} is no setting that may change: limits lists them"));
    };
    let mut changed = config.clone();
    if (setting.set)(&mut changed, value).is_none() {
        return Err(format!("{name} must be {}", setting.form));
    }
    if standing.is_stopping && name.starts_with("shutdown_") {
        return Err(format!(
            "{name} cannot change once a shutdown has begun: shutdown ends it at once"
        ));
    }
    // A unit that was forgotten would cost the connections that hold most.
    let is_less = (changed.limits.buffered_max as u64) < standing.buffered;
    if is_less && name == "limits.buffered_max" {
        let held = standing.buffered;
        return Err(format!("{name} cannot be less than what is held now, which is {held}"));
    }
    // A client is counted when it comes, and those that are there were not.
    if !standing.counts_clients && !changed.limits.clients.are_off() {
        return Err(format!(
            "{name} can only change where a limit of clients was set at the start"
        ));
    }
    changed.refuse_out_of_range().map_err(|error: ConfigError| error.to_string())?;
    Ok((changed, (setting.show)(config)))
}

/// As it stands in `set`.
fn show<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "off".to_owned(), text)
}

/// A duration in the greatest unit of which it is a whole number.
fn time_text(time: Duration) -> String {
    let nanos = time.as_nanos();
    let unit = UNITS.iter().rev().find(|(_, unit)| nanos >= *unit && nanos.is_multiple_of(*unit));
    let (name, unit) = unit.unwrap_or(&UNITS[0]);
    format!("{}{name}", nanos / unit)
}

fn rate_text(rate: Rate) -> String {
    let per = time_text(rate.per());
    format!("{}/{}", rate.count(), if per == "1s" { "s" } else { &per })
}

const UNITS: [(&str, u128); 6] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

fn parse_optional<T>(text: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if text == "off" { Some(None) } else { parse(text).map(Some) }
}

fn parse_count<T: std::str::FromStr>(text: &str) -> Option<T> {
    // A number as such could have a sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Splits a number from the unit behind it.
fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len()))
}

fn parse_bytes(text: &str) -> Option<usize> {
    let (number, unit) = split_unit(text);
    let unit = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    parse_count::<usize>(number)?.checked_mul(unit)
}

fn parse_time(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text);
    let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let nanos = parse_count::<u64>(number)?.checked_mul(u64::try_from(*unit).ok()?)?;
    Some(Duration::from_nanos(nanos))
}

fn parse_rate(text: &str) -> Option<Rate> {
    let (count, per) = text.split_once('/')?;
    let count = parse_count::<u32>(count).filter(|count| *count > 0)?;
    let per = if per == "s" { Duration::from_secs(1) } else { parse_time(per)? };
    (!per.is_zero()).then(|| Rate::new(count, per))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITED: Standing =
        Standing { counts_clients: true, is_stopping: false, buffered: 2_000 };

    fn limited() -> Config {
        let mut config = Config::default();
        config.limits.clients.connections = Some(10);
        config
    }

    #[test]
    fn what_is_shown_can_be_set() {
        let config = limited();
        for Setting { name, show, .. } in SETTINGS {
            let shown = show(&config);
            let (changed, before) = changed(&config, LIMITED, name, &shown).unwrap();
            assert_eq!((show(&changed), &before), (shown.clone(), &shown), "{name}");
        }
    }

    #[test]
    fn each_is_set_alone() {
        let config = limited();
        for (name, value) in [
            ("limits.accept_rate", "7/2m"),
            ("limits.buffered_max", "1048576"),
            ("limits.clients.connections", "3"),
            ("limits.clients.rate", "9/s"),
            ("limits.flush_rate", "17"),
            ("limits.lag_max", "1h"),
            ("limits.output_max", "4096"),
            ("limits.requests_max", "12"),
            ("shutdown_busy", "off"),
            ("shutdown_spread", "700ms"),
            ("shutdown_timeout", "90s"),
            ("stall_report", "off"),
        ] {
            let (changed, _) = changed(&config, LIMITED, name, value).unwrap();
            for Setting { name: other, show, .. } in SETTINGS {
                let expected = if other == name { value.to_owned() } else { show(&config) };
                assert_eq!(show(&changed), expected, "{other} after {name} was set");
            }
        }
    }

    #[test]
    fn what_is_no_value_or_out_of_range_is_refused() {
        let config = limited();
        for (name, value) in [
            ("limits.input_max", "1"),
            ("limits", "1"),
            ("limits.buffered_max", "1999"),
            ("limits.output_max", "0"),
            ("limits.output_max", "-1"),
            ("limits.output_max", "1kB"),
            ("limits.output_max", "99999999999999999999GiB"),
            ("limits.output_max", "off"),
            ("limits.flush_rate", ""),
            ("limits.flush_rate", "0"),
            ("limits.requests_max", "0"),
            ("limits.accept_rate", "0/s"),
            ("limits.accept_rate", "5"),
            ("limits.accept_rate", "5/0s"),
            ("limits.lag_max", "0s"),
            ("limits.lag_max", "5"),
            ("shutdown_timeout", "999999999999h"),
        ] {
            assert!(changed(&config, LIMITED, name, value).is_err(), "{name} {value}");
        }
        let off = Standing { counts_clients: false, ..LIMITED };
        let config = Config::default();
        assert!(changed(&config, off, "limits.clients.connections", "3").is_err());
        assert!(changed(&config, off, "limits.clients.connections", "off").is_ok());
        // It was on at the start, and an operator has turned it off.
        assert!(changed(&config, LIMITED, "limits.clients.connections", "3").is_ok());
        // While callbacks run more may be held than is allowed: that is about no other setting.
        let held = Standing { buffered: u64::MAX, ..LIMITED };
        assert!(changed(&config, held, "limits.buffered_max", "1GiB").is_err());
        assert!(changed(&config, held, "limits.accept_rate", "7/s").is_ok());
        let stops = Standing { is_stopping: true, ..LIMITED };
        assert!(changed(&config, stops, "shutdown_timeout", "1s").is_err());
        assert!(changed(&config, stops, "stall_report", "1s").is_ok());
    }

    #[test]
    fn those_that_may_not_change_are_shown() {
        let mut config = limited();
        config.limits.at_limit = AtLimit::Reject("busy".into());
        config.limits.clients.allowed = vec!["10.0.0.0/8".parse().unwrap(); 18];
        config.limits.shrink_idle_from = None;
        config.timeouts.request_rate = Some(240);
        config.panic_limit = Some(Rate::new(5, Duration::from_secs(60)));
        let shown = fixed(&config, 77);
        let value = |name| shown.iter().find(|(it, _)| *it == name).unwrap().1.clone();
        for (name, expected) in [
            ("limits.max_connections", "77"),
            ("limits.at_limit", "reject"),
            ("limits.clients.refusal", "close"),
            ("limits.clients.prefix_v6", "64"),
            ("limits.shrink_idle_from", "off"),
            ("watermarks", "32768,65536"),
            ("socket.nodelay", "on"),
            ("socket.keepalive", "1m,10s,3"),
            ("socket.notsent_lowat", "131072"),
            ("socket.local", "any"),
            ("timeouts.request_rate", "240"),
            ("timeouts.idle", "75s"),
            ("panic_limit", "5/1m"),
        ] {
            assert_eq!(value(name), expected, "{name}");
        }
        let allowed = ["10.0.0.0/8"; 16].join(",") + ",and_2_more";
        assert_eq!(value("limits.clients.allowed"), allowed);
        assert_eq!(networks_text(&[]), "none");
    }

    #[test]
    fn times_have_the_greatest_unit_that_fits() {
        let texts = [90_000, 60_000, 3_600_000, 250].map(|ms| time_text(Duration::from_millis(ms)));
        assert_eq!(texts, ["90s", "1m", "1h", "250ms"]);
        assert_eq!(time_text(Duration::from_nanos(7)), "7ns");
    }
}
