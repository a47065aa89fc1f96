//! The counters of the reactor as Prometheus reads them.

use std::fmt::Write as _;

use wheelhouse::Stats;

/// The text exposition format, version 0.0.4.
pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4";

/// All counters, one family after the other.
pub(crate) fn render(stats: &Stats) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in [
        ("connections", "gauge", "Connections at this moment.", stats.connections),
        ("turns_total", "counter", "Turns of the loop.", stats.turns),
        ("accepted_total", "counter", "Connections accepted.", stats.accepted),
        ("accept_errors_total", "counter", "Failed accepts.", stats.accept_errors),
        ("accept_pauses_total", "counter", "Times accepting paused.", stats.accept_pauses),
        ("requests_total", "counter", "Requests ended.", stats.requests),
        ("read_bytes_total", "counter", "Bytes read from peers.", stats.bytes_in),
        ("written_bytes_total", "counter", "Bytes taken for peers.", stats.bytes_out),
        ("unsent_bytes_total", "counter", "Bytes that were never taken.", stats.unsent),
        ("flush_expired_total", "counter", "Last output given up.", stats.flush_expired),
        ("linger_expired_total", "counter", "Peers that did not close.", stats.linger_expired),
        ("panics_total", "counter", "Callbacks that panicked.", stats.panics),
    ] {
        head(&mut text, name, kind, help);
        push(&mut text, format_args!("wheelhouse_{name} {value}\n"));
    }
    head(&mut text, "closed_total", "counter", "Connections ended, by reason.");
    for (reason, count) in stats.closed_by_label() {
        let line = format_args!("wheelhouse_closed_total{{reason=\"{reason}\"}} {count}\n");
        push(&mut text, line);
    }
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    push(text, format_args!("# HELP wheelhouse_{name} {help}\n# TYPE wheelhouse_{name} {kind}\n"));
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a string takes everything");
}
