//! What a console says of a server at one moment, and what has changed since the moment before.

use std::io;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::client::Client;

/// By what connections are sorted, in the order in which a key goes through them.
pub(crate) const SORTS: [&str; 6] = ["queued", "unread", "age", "in", "out", "requests"];

/// The replies at one moment.
#[derive(Default)]
pub(crate) struct Sample {
    pub(crate) stats: Map<String, Value>,
    pub(crate) connections: Vec<Value>,
}

impl Sample {
    pub(crate) fn take(client: &mut Client, sort: &str) -> io::Result<Self> {
        let stats = match client.ask_json("stats")? {
            Value::Object(stats) => stats,
            _ => Map::new(),
        };
        let mut listing = client.ask_json(&format!("connections sort={sort} limit=50"))?;
        let connections = match listing["connections"].take() {
            Value::Array(connections) => connections,
            _ => Vec::new(),
        };
        Ok(Self { stats, connections })
    }

    pub(crate) fn number(&self, name: &str) -> f64 {
        self.stats.get(name).and_then(Value::as_f64).unwrap_or_default()
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.stats.get(name).and_then(Value::as_str).unwrap_or("-")
    }

    /// How much a counter has grown each second since `before`.
    pub(crate) fn rate(&self, before: &Self, name: &str) -> f64 {
        let seconds = self.number("uptime") - before.number("uptime");
        // A counter that falls is another server's, behind the same path.
        let growth = self.number(name) - before.number(name);
        if seconds > 0.0 && growth > 0.0 { growth / seconds } else { 0.0 }
    }

    /// Why connections ended, and how often, the commonest first.
    pub(crate) fn reasons(&self) -> Vec<(&str, f64)> {
        let closed = self.stats.iter().filter_map(|(name, count)| {
            Some((name.strip_prefix("closed_")?, count.as_f64().unwrap_or_default()))
        });
        let mut reasons: Vec<_> = closed.collect();
        reasons.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(other.0)));
        reasons
    }
}

/// A number in few letters.
pub(crate) fn short(number: f64) -> String {
    match number {
        number if number >= 1e9 => format!("{:.1}G", number / 1e9),
        number if number >= 1e6 => format!("{:.1}M", number / 1e6),
        number if number >= 1e4 => format!("{:.0}k", number / 1e3),
        number if number >= 1e3 => format!("{:.1}k", number / 1e3),
        number if number.fract() == 0.0 => format!("{number:.0}"),
        number => format!("{number:.1}"),
    }
}

/// A time in few letters.
pub(crate) fn short_time(seconds: f64) -> String {
    let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    match time.as_secs() {
        0 => format!("{}ms", time.as_millis()),
        whole if whole < 60 => format!("{:.1}s", time.as_secs_f64()),
        whole if whole < 3_600 => format!("{}m{:02}s", whole / 60, whole % 60),
        whole if whole < 86_400 => format!("{}h{:02}m", whole / 3_600, whole / 60 % 60),
        whole => format!("{}d{:02}h", whole / 86_400, whole / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(value: Value) -> Sample {
        let Value::Object(stats) = value else { panic!("an object") };
        Sample { stats, connections: Vec::new() }
    }

    #[test]
    fn rates_are_differences_over_the_servers_own_time() {
        let before = sample(json!({"uptime": 10.0, "requests": 100, "accepted": 9}));
        let after = sample(json!({"uptime": 12.0, "requests": 150, "accepted": 3}));
        assert_eq!(after.rate(&before, "requests"), 25.0);
        assert_eq!(after.rate(&before, "accepted"), 0.0);
        assert_eq!(after.rate(&after, "requests"), 0.0);
    }

    #[test]
    fn the_commonest_reason_comes_first() {
        let stats =
            sample(json!({"closed_peer_eof": 3, "closed_idle_timeout": 7, "connections": 9}));
        assert_eq!(stats.reasons(), [("idle_timeout", 7.0), ("peer_eof", 3.0)]);
    }

    #[test]
    fn numbers_and_times_are_short() {
        let numbers = [0.0, 0.25, 999.0, 1_234.0, 12_345.0, 2.5e6, 3e9].map(short);
        assert_eq!(numbers, ["0", "0.2", "999", "1.2k", "12k", "2.5M", "3.0G"]);
        let times = [0.0, 0.004, 5.25, 61.0, 3_700.0, 90_000.0, -1.0].map(short_time);
        assert_eq!(times, ["0ms", "4ms", "5.2s", "1m01s", "1h01m", "1d01h", "0ms"]);
    }
}
