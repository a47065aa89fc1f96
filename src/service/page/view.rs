//! What the page shows of a reactor: tables of texts, and the numbers that it plots.

use std::time::Duration;

use super::text::{count, percent, size, time};
use super::top::Top;
use crate::address::Target;
use crate::config::Rate;
use crate::core::deadlines::Deadline;
use crate::core::health::EndpointState;
use crate::core::lifecycle::State;
use crate::core::stats::Stats;
use crate::id::{ConnId, PoolId};
use crate::service::Desk;
use crate::service::console::connections::next_deadline;
use crate::state::{LoopState, Standing, stats};

/// Rows of a list that may be long, that of connections aside.
const ROWS_MAX: usize = 50;

/// Endpoints that are searched for those to be shown.
const ENDPOINTS_SEARCHED: usize = 1_024;

/// Listeners that are named.
const LISTENERS_MAX: usize = 16;

/// What stands in a column.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Column {
    Text(&'static str),
    Number(&'static str),
    /// What a script reckons from one reply to the next, and without scripts is not shown.
    Live(&'static str),
}

use self::Column::{Live, Number, Text};

/// A table, with a text for each cell.
#[derive(Debug)]
pub(super) struct Table {
    /// Its name in the document.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Vec<String>>,
    /// A sentence beneath it.
    pub(super) note: String,
    /// It is left out while it has no rows.
    pub(super) optional: bool,
}

/// A number that is plotted.
#[derive(Debug)]
pub(super) struct Card {
    /// Its name in the document.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// As it stands now, or as it was on average since the start.
    pub(super) value: String,
    pub(super) note: String,
}

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct View {
    pub(super) title: String,
    pub(super) unready: Option<&'static str>,
    pub(super) cards: Vec<Card>,
    pub(super) tables: Vec<Table>,
    /// What is plotted.
    pub(super) numbers: Vec<(&'static str, u64)>,
    /// What is counted row by row, by table.
    pub(super) counts: [(&'static str, Vec<(&'static str, u64)>); 2],
}

impl View {
    /// What there is to show; peers and targets only if `names`.
    pub(super) fn new(desk: &Desk<'_>, top: &Top, names: bool) -> Self {
        let stats = stats(&desk.shared.counters);
        let uptime = desk.uptime;
        let listener = desk.shared.listening_on.first();
        let listener = listener.map(|address| format!("{address} · ")).unwrap_or_default();
        let tables = vec![
            ends(&stats),
            deadlines(&stats),
            states(&stats),
            pools(desk, names),
            endpoints(desk, names),
            connections(desk, top, names),
            limits(desk),
            server(desk, &stats, uptime),
        ];
        Self {
            title: format!("{listener}wheelhouse"),
            unready: desk.unready,
            cards: cards(desk, &stats, uptime),
            tables,
            numbers: vec![
                ("uptime", uptime.as_millis() as u64),
                ("connections", stats.connections),
                ("accepted", stats.accepted),
                ("requests", stats.requests),
                ("bytes_in", stats.bytes_in),
                ("bytes_out", stats.bytes_out),
                ("buffered", desk.shared.buffered()),
                ("lag", desk.shared.lag.nanos()),
            ],
            counts: [
                ("ends", occurred(stats.closed_by_label()).collect()),
                ("deadlines", occurred(passed(&stats)).collect()),
            ],
        }
    }
}

fn cards(desk: &Desk<'_>, stats: &Stats, uptime: Duration) -> Vec<Card> {
    let seconds = uptime.as_secs_f64().max(1.0);
    let mean = |number: u64| (number as f64 / seconds).round() as u64;
    let rate = |id, title, number| Card {
        id,
        title,
        value: format!("{}/s", count(mean(number))),
        note: format!("{} in all", count(number)),
    };
    vec![
        Card {
            id: "connections",
            title: "Connections",
            value: count(stats.connections),
            note: format!("of {}", count(stats.connections_max)),
        },
        rate("accepted", "Accepted", stats.accepted),
        rate("requests", "Requests", stats.requests),
        Card {
            id: "bytes",
            title: "Bytes in, out",
            // Only between the two is there to be a new line.
            value: [stats.bytes_in, stats.bytes_out]
                .map(|bytes| format!("{}/s", size(mean(bytes))).replace(' ', "\u{a0}"))
                .join(", "),
            note: format!("{} in, {} out in all", size(stats.bytes_in), size(stats.bytes_out)),
        },
        Card {
            id: "buffered",
            title: "Buffered memory",
            value: size(desk.shared.buffered()),
            note: format!("of {}", size(desk.shared.bounds.buffered_max)),
        },
        Card {
            id: "lag",
            title: "Lag",
            value: time(Duration::from_nanos(desk.shared.lag.nanos())),
            note: match stats.worst_step() {
                Some(step) => {
                    format!("longest turn {}: {step}", time(Duration::from_nanos(stats.worst_turn)))
                }
                None => "no turn took 8 ms".to_owned(),
            },
        },
    ]
}

fn server(desk: &Desk<'_>, stats: &Stats, uptime: Duration) -> Table {
    let listeners = desk.shared.listening_on.iter().enumerate();
    let mut listening: Vec<_> = listeners
        .take(LISTENERS_MAX)
        .map(|(index, address)| match (desk.listens)(index) {
            true => address.to_string(),
            false => format!("{address} (closed)"),
        })
        .collect();
    if let Some(more) = desk.shared.listening_on.len().checked_sub(LISTENERS_MAX + 1) {
        listening.push(format!("and {} more", more + 1));
    }
    let worst = match stats.worst_step() {
        Some(step) => format!("{}, most of it in {step}", time(nanos(stats.worst_turn))),
        None => "under 8 ms".to_owned(),
    };
    let stalls = match stats.stalls {
        0 => "none kept the loop waiting".to_owned(),
        many => format!(
            "{}; {} kept the loop waiting",
            time(nanos(stats.longest_callback)),
            count(many)
        ),
    };
    let refused =
        stats.refused + stats.refused_full + stats.refused_client + stats.refused_client_rate;
    let rows = [
        ("Ready", desk.unready.map_or_else(|| "yes".to_owned(), |why| format!("no: {why}"))),
        ("Uptime", time(uptime)),
        ("Version", format!("wheelhouse {}", env!("CARGO_PKG_VERSION"))),
        ("Listening on", listening.join(", ")),
        ("Pressure", format!("{} %", desk.shared.pressure() / 10)),
        ("Longest turn", worst),
        ("Longest callback", stalls),
        ("Turns", count(stats.turns)),
        ("Dialled", count(stats.dialled)),
        ("Refused", count(refused)),
        ("Failed accepts", count(stats.accept_errors)),
        ("Panics", count(stats.panics)),
    ];
    table(
        "server",
        "Server",
        &[Text("What"), Text("Value")],
        rows.map(|(name, value)| vec![name.to_owned(), value]).into(),
    )
}

const fn nanos(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}

fn limits(desk: &Desk<'_>) -> Table {
    let (shared, limits) = (&desk.shared, &desk.config.limits);
    let (connections, most) = (shared.table.counted() as u64, shared.table.capacity() as u64);
    let (buffered, buffered_max) = (shared.buffered(), shared.bounds.buffered_max);
    let none = String::new;
    let off = || "off".to_owned();
    let rate = |rate: Option<Rate>| {
        rate.map_or_else(off, |rate| {
            format!("{} in {}", count(rate.count().into()), time(rate.per()))
        })
    };
    let rows = [
        (
            "Connections",
            format!("{} ({})", count(connections), percent(connections, most)),
            count(most),
        ),
        (
            "Buffered memory",
            format!("{} ({})", size(buffered), percent(buffered, buffered_max)),
            size(buffered_max),
        ),
        ("Lag", time(nanos(shared.lag.nanos())), limits.lag_max.map_or_else(off, time)),
        ("Accept rate", none(), rate(limits.accept_rate)),
        (
            "Connections of one client",
            none(),
            limits.clients.connections.map_or_else(off, |most| count(most.into())),
        ),
        ("Accept rate of one client", none(), rate(limits.clients.rate)),
        ("Unread input of one connection", none(), size(shared.bounds.input_max as u64)),
        ("Queued output of one connection", none(), size(shared.bounds.output_max as u64)),
        ("Requests on one connection", none(), limits.requests_max.map_or_else(off, count)),
    ];
    let rows = rows.map(|(name, used, most)| vec![name.to_owned(), used, most]).into();
    table("limits", "Limits", &[Text("Limit"), Number("In use"), Number("Most")], rows)
}

fn states(stats: &Stats) -> Table {
    let states = [State::Connecting, State::Connected, State::Idle, State::Closing];
    let rows = states.map(|state| vec![label(state), count(stats.in_state(state))]).into();
    table("states", "Connections by state", &[Text("State"), Number("Connections")], rows)
}

fn label(state: State) -> String {
    format!("{state:?}").to_lowercase()
}

fn ends(stats: &Stats) -> Table {
    let columns = [Text("Reason"), Number("Ends"), Live("Last minute")];
    let mut ends = table("ends", "Ends by reason", &columns, counted(stats.closed_by_label()));
    if ends.rows.is_empty() {
        ends.note = "No connection has ended.".to_owned();
    }
    ends
}

fn deadlines(stats: &Stats) -> Table {
    let columns = [Text("Deadline"), Number("Passed"), Live("Last minute")];
    let rows = counted(passed(stats));
    let mut deadlines = table("deadlines", "Deadlines that passed", &columns, rows);
    if deadlines.rows.is_empty() {
        deadlines.note = "No deadline has passed.".to_owned();
    }
    deadlines
}

/// A check is no deadline: what it finds is.
fn passed(stats: &Stats) -> impl Iterator<Item = (&'static str, u64)> {
    stats.deadlines_by_label().filter(|(label, _)| *label != Deadline::ProgressCheck.label())
}

fn occurred(
    counts: impl Iterator<Item = (&'static str, u64)>,
) -> impl Iterator<Item = (&'static str, u64)> {
    counts.filter(|(_, count)| *count > 0)
}

fn counted(counts: impl Iterator<Item = (&'static str, u64)>) -> Vec<Vec<String>> {
    occurred(counts).map(|(label, number)| vec![label.to_owned(), count(number)]).collect()
}

fn table(
    id: &'static str,
    title: &'static str,
    columns: &[Column],
    rows: Vec<Vec<String>>,
) -> Table {
    Table { id, title, columns: columns.into(), rows, note: String::new(), optional: false }
}

/// The columns of a list whose rows have a name that is not for everyone.
fn named(first: Column, name: &'static str, names: bool, rest: &[Column]) -> Vec<Column> {
    let mut columns = vec![first];
    columns.extend(names.then_some(Text(name)));
    columns.extend(rest);
    columns
}

fn shown(rows: usize, all: usize) -> String {
    if rows < all { format!("{} of {} are shown.", rows, count(all as u64)) } else { String::new() }
}

fn pools(desk: &Desk<'_>, names: bool) -> Table {
    let shared: &LoopState = desk.shared;
    let columns = [
        Text("State"),
        Number("Open"),
        Number("Idle"),
        Number("Leased"),
        Number("Most"),
        Number("Waiting"),
        Number("Leases"),
        Number("Failures"),
    ];
    let row = |(id, target): (PoolId, &Target)| {
        let stats = shared.pool_stats(id);
        let mut row = vec![id.0.to_string()];
        row.extend(names.then(|| target.to_string()));
        row.push(if stats.is_down { "down" } else { "up" }.to_owned());
        let failures = stats.refused + stats.timed_out + stats.failed;
        let now = [stats.open, stats.idle, stats.leased, stats.size, stats.waiting];
        row.extend(now.map(|number| count(number as u64)));
        row.extend([stats.leases, failures].map(count));
        row
    };
    let rows: Vec<_> = shared.pools.targets().take(ROWS_MAX).map(row).collect();
    Table {
        note: shown(rows.len(), shared.pools.ids().count()),
        columns: named(Text("Pool"), "Target", names, &columns),
        optional: true,
        ..table("pools", "Pools", &[], rows)
    }
}

/// Those that are not available come first.
fn endpoints(desk: &Desk<'_>, names: bool) -> Table {
    let shared: &LoopState = desk.shared;
    let columns = [
        Text("State"),
        Number("Weight"),
        Number("Connections"),
        Number("Checks"),
        Number("Failed checks"),
        Number("Failures"),
        Number("Ejections"),
        Text("Latest failure"),
    ];
    let mut found: Vec<_> = shared.endpoints.ids().take(ENDPOINTS_SEARCHED).collect();
    let all = shared.endpoints.ids().count();
    found.sort_by_key(|id| shared.endpoints.get(*id).is_some_and(|it| it.policy.is_available()));
    found.truncate(ROWS_MAX);
    let row = |id| {
        let (entry, stats) = (shared.endpoints.get(id)?, shared.endpoint_stats(id)?);
        let mut row = vec![id.index.to_string()];
        row.extend(names.then(|| entry.target.to_string()));
        let state = match (entry.standing(), stats.state) {
            (Standing::Unknown, _) => "unknown",
            (Standing::Ejected, _) => "ejected",
            (Standing::Withdrawn, _) => "withdrawn",
            (_, EndpointState::Up) => "up",
            (_, EndpointState::GoingDown) => "going down",
            (_, EndpointState::Down) => "down",
            (_, EndpointState::GoingUp) => "going up",
        };
        row.extend([state.to_owned(), format!("{} %", stats.weight)]);
        let numbers = [
            stats.connections as u64,
            stats.checks,
            stats.checks_failed,
            stats.failures,
            stats.ejections,
        ];
        row.extend(numbers.map(count));
        row.push(stats.last_failure.map_or("", |reason| reason.label()).to_owned());
        Some(row)
    };
    let rows: Vec<_> = found.into_iter().filter_map(row).collect();
    Table {
        note: shown(rows.len(), all),
        columns: named(Text("Endpoint"), "Target", names, &columns),
        optional: true,
        ..table("endpoints", "Endpoints", &[], rows)
    }
}

fn connections(desk: &Desk<'_>, top: &Top, names: bool) -> Table {
    let shared: &LoopState = desk.shared;
    let mut columns = vec![
        Text("Id"),
        Number("Queued"),
        Number("Unread"),
        Text("State"),
        Text("Next deadline"),
        Number("Requests"),
        Number("Age"),
    ];
    columns.extend(names.then_some(Text("Peer")));
    let row = |id: ConnId| {
        // It may have gone since the walk passed it.
        let record = shared.table.get(id)?;
        let mut row = vec![
            id.to_string(),
            size(record.queued() as u64),
            size((desk.unread)(id) as u64),
            label(record.state()),
            match next_deadline(record, shared) {
                (Some(deadline), Some(left)) => format!("{deadline} in {}", time(left)),
                _ => "none".to_owned(),
            },
            count(record.requests),
            time(shared.now.duration_since(record.opened_at)),
        ];
        row.extend(names.then(|| record.peer.to_string()));
        Some(row)
    };
    let rows: Vec<_> = top.ids().into_iter().filter_map(row).collect();
    let all = shared.table.len();
    let mut note = match all {
        0 => "There is no connection.".to_owned(),
        _ => shown(rows.len(), all),
    };
    if !names && all > 0 {
        note.push_str(" Peers are shown where only this machine can ask.");
    }
    Table {
        note: note.trim_start().to_owned(),
        ..table("top", "Connections that hold most", &columns, rows)
    }
}
