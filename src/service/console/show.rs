//! What there is beside connections: counters, pools, endpoints, clients, settings.

use std::time::Duration;

use bytes::BytesMut;

use super::connections::STATES;
use super::reply::{Cell, Column, Form, List};
use super::settings::{self, SETTINGS};
use crate::core::clients::ClientKey;
use crate::core::health::{EndpointState, Withdrawal};
use crate::id::{EndpointId, PoolId};
use crate::service::Desk;
use crate::service::greatest::Greatest;
use crate::state::stats;

/// Counters whose numbers are nanoseconds.
const NANOS: [&str; 2] = ["longest_callback", "worst_turn"];

/// The counters, and how the reactor is.
pub(crate) fn counters(form: Form, desk: &Desk<'_>, output: &mut BytesMut) {
    let stats = stats(&desk.shared.counters);
    let mut cells: Vec<(&str, Cell<'_>)> = vec![
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("uptime", desk.uptime.into()),
        ("ready", desk.unready.is_none().into()),
        ("unready_because", desk.unready.into()),
        ("pressure_permille", desk.shared.pressure().into()),
        ("lag_permille", desk.shared.lag.pressure().into()),
        ("worst_step", stats.worst_step().into()),
    ];
    for (name, _, _, value) in stats.numbers() {
        let cell = match NANOS.contains(&name) {
            true => Duration::from_nanos(value).into(),
            false => value.into(),
        };
        cells.push((name, cell));
    }
    let prefixed = |prefix: &str, name: &str| format!("{prefix}_{name}");
    let states = STATES.map(|(name, state)| (prefixed("state", name), stats.in_state(state)));
    let closed = stats.closed_by_label().map(|(label, count)| (prefixed("closed", label), count));
    let fired = stats.deadlines_by_label();
    let fired = fired.map(|(label, count)| (prefixed("deadline", label), count));
    let counted: Vec<_> = closed.chain(fired).filter(|(_, count)| *count > 0).collect();
    let more = states.iter().chain(&counted);
    cells.extend(more.map(|(name, count)| (name.as_str(), (*count).into())));
    form.record(output, &cells);
}

const POOL_COLUMNS: &[Column] = &[
    ("id", 4, false),
    ("target", 24, false),
    ("size", 6, true),
    ("open", 6, true),
    ("idle", 6, true),
    ("leased", 6, true),
    ("coming", 6, true),
    ("waiting", 7, true),
    ("leases", 10, true),
    ("refused", 8, true),
    ("timed_out", 9, true),
    ("failed", 8, true),
    ("dials_failed", 12, true),
    ("is_down", 7, false),
];

pub(crate) fn pools(form: Form, desk: &Desk<'_>, output: &mut BytesMut) {
    let mut list = List::begin(form, output, "pools", POOL_COLUMNS);
    for (id, target) in desk.shared.pools.targets() {
        let stats = desk.shared.pool_stats(id);
        let PoolId(number) = id;
        list.row(
            output,
            [
                u64::from(number).into(),
                target.to_string().into(),
                stats.size.into(),
                stats.open.into(),
                stats.idle.into(),
                stats.leased.into(),
                stats.coming.into(),
                stats.waiting.into(),
                stats.leases.into(),
                stats.refused.into(),
                stats.timed_out.into(),
                stats.failed.into(),
                stats.dials_failed.into(),
                stats.is_down.into(),
            ],
        );
    }
    list.end(output, &[("shown", list.rows().into())]);
}

const ENDPOINT_COLUMNS: &[Column] = &[
    ("id", 4, false),
    ("target", 24, false),
    ("state", 10, false),
    ("available", 9, false),
    ("withdrawn", 9, false),
    ("ejected", 7, false),
    ("weight", 6, true),
    ("connections", 11, true),
    ("checks", 8, true),
    ("checks_failed", 13, true),
    ("failures", 8, true),
    ("ejections", 9, true),
    ("last_failure", 12, false),
];

pub(crate) fn endpoints(form: Form, desk: &Desk<'_>, output: &mut BytesMut) {
    let mut list = List::begin(form, output, "endpoints", ENDPOINT_COLUMNS);
    let endpoints = &desk.shared.endpoints;
    for id in endpoints.ids() {
        let (Some(entry), Some(stats)) = (endpoints.get(id), desk.shared.endpoint_stats(id)) else {
            continue;
        };
        let state = match stats.state {
            EndpointState::Up => "up",
            EndpointState::GoingDown => "going_down",
            EndpointState::Down => "down",
            EndpointState::GoingUp => "going_up",
        };
        let withdrawn = entry.policy.withdrawn().map(|it| match it {
            Withdrawal::Drain => "drain",
            Withdrawal::Down => "down",
        });
        list.row(
            output,
            [
                id.serial.into(),
                entry.target.to_string().into(),
                state.into(),
                stats.is_available.into(),
                withdrawn.into(),
                stats.is_ejected.into(),
                u64::from(stats.weight).into(),
                stats.connections.into(),
                stats.checks.into(),
                stats.checks_failed.into(),
                stats.failures.into(),
                stats.ejections.into(),
                stats.last_failure.map(|reason| reason.to_string()).into(),
            ],
        );
    }
    list.end(output, &[("shown", list.rows().into())]);
}

/// Takes an endpoint out of use, or lets it be used again.
///
/// # Errors
///
/// If there is no such endpoint.
pub(crate) fn withdraw(
    id: &str,
    withdrawal: Option<Withdrawal>,
    desk: &mut Desk<'_>,
) -> Result<String, String> {
    let endpoints = &desk.shared.endpoints;
    let found: Option<EndpointId> = endpoints.ids().find(|it| it.serial.to_string() == id);
    let id = found.ok_or_else(|| format!("there is no endpoint {id}: endpoints lists them"))?;
    desk.shared.withdraw_endpoint(id, withdrawal);
    let what = match withdrawal {
        None => "may be dialled",
        Some(Withdrawal::Drain) => "is not dialled any more",
        Some(Withdrawal::Down) => "is neither dialled nor checked any more",
    };
    Ok(format!("endpoint {} {what}", id.serial))
}

const CLIENT_COLUMNS: &[Column] = &[("client", 22, false), ("connections", 11, true)];

/// Clients that one step of a listing visits.
const CLIENTS_PER_STEP: usize = 4_096;
const CLIENTS_DEFAULT: usize = 20;
const CLIENTS_MAX: usize = 1_000;

/// The clients with the most connections, being searched in steps.
#[derive(Debug)]
pub(crate) struct ClientListing {
    form: Form,
    reached: Option<ClientKey>,
    known: u64,
    greatest: Greatest<u32, ClientKey>,
}

impl ClientListing {
    /// Parses what stands behind `clients`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, or that clients are not counted.
    pub(crate) fn begin<'a>(
        mut words: impl Iterator<Item = &'a str>,
        form: Form,
        desk: &Desk<'_>,
    ) -> Result<Self, String> {
        let limit = match (words.next(), words.next()) {
            (None, _) => Some(CLIENTS_DEFAULT),
            (Some(word), None) => {
                let limit = word.strip_prefix("limit=").and_then(|limit| limit.parse().ok());
                limit.filter(|limit| (1..=CLIENTS_MAX).contains(limit))
            }
            _ => None,
        };
        let limit = limit.ok_or_else(|| format!("clients takes limit=N, at most {CLIENTS_MAX}"))?;
        if desk.gate.clients().is_none() {
            return Err("clients are not counted: limits.clients is off".into());
        }
        Ok(Self { form, reached: None, known: 0, greatest: Greatest::new(limit) })
    }

    /// Makes the next step. Returns whether the listing goes on.
    pub(crate) fn step(&mut self, desk: &Desk<'_>, output: &mut BytesMut) -> bool {
        let Some(clients) = desk.gate.clients() else { return false };
        let mut visited = 0;
        for (key, connections) in clients.some_from(self.reached, CLIENTS_PER_STEP) {
            self.reached = Some(key);
            visited += 1;
            self.greatest.note(connections, key);
        }
        self.known += visited as u64;
        if visited == CLIENTS_PER_STEP {
            return true;
        }
        let mut list = List::begin(self.form, output, "clients", CLIENT_COLUMNS);
        for (connections, key) in self.greatest.sorted() {
            let client = clients.network_of(key).to_string();
            list.row(output, [client.into(), u64::from(connections).into()]);
        }
        list.end(output, &[("shown", list.rows().into()), ("known", self.known.into())]);
        false
    }
}

/// All settings of the reactor, by name.
pub(crate) fn limits(form: Form, desk: &Desk<'_>, output: &mut BytesMut) {
    const LIMIT_COLUMNS: &[Column] =
        &[("name", 26, false), ("value", 14, false), ("may_change", 10, false)];
    let mut list = List::begin(form, output, "limits", LIMIT_COLUMNS);
    let fixed = settings::fixed(desk.config, desk.shared.table.capacity());
    let changing = SETTINGS.iter().map(|it| (it.name, (it.show)(desk.config), true));
    let mut rows: Vec<_> = fixed.into_iter().map(|(name, value)| (name, value, false)).collect();
    rows.extend(changing);
    rows.sort_unstable();
    for (name, value, may_change) in rows {
        list.row(output, [name.into(), value.into(), may_change.into()]);
    }
    list.end(output, &[("shown", list.rows().into())]);
}
