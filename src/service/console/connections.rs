//! The connections: all of them, those that stand out, or one.
//!
//! There may be a million, so a listing is made in steps, as its reader reads. It remembers how far it
//! has come by places, which connections keep: whatever comes and goes meanwhile, a connection that is
//! there all the while is listed once.

use std::time::Duration;

use bytes::BytesMut;

use super::reply::{Cell, Column, Form, List};
use crate::config::Network;
use crate::core::deadlines::Deadline;
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::State;
use crate::core::record::Record;
use crate::core::table::Cursor;
use crate::id::{ConnId, Origin};
use crate::service::greatest::Greatest;
use crate::service::{Desk, OUTPUT_HIGH};
use crate::state::LoopState;
use crate::time::Instant;

/// The most connections that are sorted: all of them would have to be kept for that.
pub(crate) const SORTED_MAX: usize = 1_000;
const SORTED_DEFAULT: usize = 20;

/// Rows that one step writes: each takes a microsecond.
const ROWS_PER_STEP: u64 = 256;

const COLUMNS: &[Column] = &[
    ("id", 9, false),
    ("peer", 21, false),
    ("origin", 8, false),
    ("state", 10, false),
    ("age", 9, true),
    ("requests", 9, true),
    ("bytes_in", 11, true),
    ("bytes_out", 11, true),
    ("queued", 9, true),
    ("unread", 8, true),
    ("due_in", 8, true),
    ("deadline", 8, false),
];

/// By what connections are sorted, the greatest first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sort {
    Age,
    In,
    Out,
    Queued,
    Requests,
    Unread,
}

/// Which connections are listed, and in which order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    state: Option<State>,
    peer: Option<Network>,
    sort: Option<Sort>,
    limit: Option<usize>,
}

pub(super) const STATES: [(&str, State); 4] = [
    ("connecting", State::Connecting),
    ("connected", State::Connected),
    ("idle", State::Idle),
    ("closing", State::Closing),
];

const SORTS: [(&str, Sort); 6] = [
    ("age", Sort::Age),
    ("in", Sort::In),
    ("out", Sort::Out),
    ("queued", Sort::Queued),
    ("requests", Sort::Requests),
    ("unread", Sort::Unread),
];

fn named<T: Copy>(list: &[(&'static str, T)], name: &str) -> Result<T, String> {
    let found = list.iter().find(|(it, _)| *it == name).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<_> = list.iter().map(|(name, _)| *name).collect();
        format!("{name:?} is none of {}", names.join(", "))
    })
}

impl Filter {
    /// Parses what stands behind `connections`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut filter = Self::default();
        for word in words {
            match word.split_once('=') {
                Some(("state", name)) => filter.state = Some(named(&STATES, name)?),
                Some(("peer", text)) => {
                    let network = text.parse();
                    filter.peer = Some(network.map_err(|error| format!("{text:?}: {error}"))?);
                }
                Some(("sort", name)) => filter.sort = Some(named(&SORTS, name)?),
                Some(("limit", text)) => {
                    let limit = text.parse().ok().filter(|limit| *limit > 0);
                    filter.limit = Some(limit.ok_or("limit is a whole number from 1 on")?);
                }
                _ => return Err(format!("{word:?} is none of state=, peer=, sort=, limit=")),
            }
        }
        if filter.sort.is_some() && filter.limit.is_some_and(|limit| limit > SORTED_MAX) {
            return Err(format!("limit is at most {SORTED_MAX} where connections are sorted"));
        }
        Ok(filter)
    }

    fn admits(&self, record: &Record) -> bool {
        let state = record.state();
        state != State::Closed
            && self.state.is_none_or(|wanted| state == wanted)
            && self
                .peer
                .is_none_or(|peer| record.peer.ip().is_some_and(|it| peer.contains(it.ip())))
    }
}

/// What a listing knows of a connection beside its record.
fn measure(sort: Sort, record: &Record, desk: &Desk<'_>) -> u64 {
    match sort {
        Sort::Age => desk.shared.now.nanos_since(record.opened_at),
        Sort::In => record.bytes_in,
        Sort::Out => record.bytes_out,
        Sort::Queued => record.queued() as u64,
        Sort::Requests => record.requests,
        Sort::Unread => (desk.unread)(record.id) as u64,
    }
}

/// A listing that is being made.
#[derive(Debug)]
pub(crate) struct Listing {
    filter: Filter,
    list: List,
    form: Form,
    /// How far the walk over all places has come.
    cursor: Cursor,
    /// Connections that the filter admitted.
    matched: u64,
    /// Those that come first where they are sorted.
    greatest: Greatest<u64, ConnId>,
    /// What the walk has found, the last first.
    found: Option<Vec<ConnId>>,
}

impl Listing {
    pub(crate) fn begin(filter: Filter, form: Form, output: &mut BytesMut) -> Self {
        let most = filter.limit.unwrap_or(SORTED_DEFAULT).min(SORTED_MAX);
        Self {
            filter,
            list: List::begin(form, output, "connections", COLUMNS),
            form,
            cursor: Cursor::default(),
            matched: 0,
            greatest: Greatest::new(most),
            found: None,
        }
    }

    /// Makes the next step. Returns whether the listing goes on.
    pub(crate) fn step(&mut self, desk: &Desk<'_>, output: &mut BytesMut) -> bool {
        let most = self.list.rows() + ROWS_PER_STEP;
        if let Some(found) = &mut self.found {
            while output.len() < OUTPUT_HIGH
                && self.list.rows() < most
                && let Some(id) = found.pop()
            {
                if let Some(record) = desk.shared.table.get(id) {
                    row(&mut self.list, record, desk, output);
                }
            }
            return !found.is_empty() || self.end(output);
        }
        let table = &desk.shared.table;
        for index in table.walk(&mut self.cursor) {
            let record = table.id_in(index).and_then(|id| table.get(id));
            let Some(record) = record.filter(|record| self.filter.admits(record)) else { continue };
            self.matched += 1;
            match self.filter.sort {
                Some(sort) => self.greatest.note(measure(sort, record, desk), record.id),
                None => row(&mut self.list, record, desk, output),
            }
            let limit = self.filter.limit.filter(|_| self.filter.sort.is_none());
            if limit.is_some_and(|limit| self.list.rows() >= limit as u64) {
                return self.end(output);
            }
            if output.len() >= OUTPUT_HIGH || self.list.rows() >= most {
                self.cursor.stop_behind(index);
                return true;
            }
        }
        if !table.is_at_end(self.cursor) {
            return true;
        }
        if self.filter.sort.is_none() {
            return self.end(output);
        }
        self.found = Some(self.greatest.sorted().rev().map(|(_, id)| id).collect());
        true
    }

    fn end(&self, output: &mut BytesMut) -> bool {
        let shown = ("shown", self.list.rows().into());
        // Without sorting the walk ends at the limit, and what lies behind it is not known.
        match (self.filter.sort, self.form) {
            (None, Form::Text) => self.list.end(output, &[shown]),
            (None, Form::Json) => self.list.end(output, &[shown, ("matched", Cell::Nothing)]),
            _ => self.list.end(output, &[shown, ("matched", self.matched.into())]),
        }
        false
    }
}

fn row(list: &mut List, record: &Record, desk: &Desk<'_>, output: &mut BytesMut) {
    let (deadline, due_in) = next_deadline(record, desk.shared);
    list.row(
        output,
        [
            record.id.to_string().into(),
            peer(record, desk).into(),
            origin(record.origin()).into(),
            state(record.state()).into(),
            age(record, desk).into(),
            record.requests.into(),
            record.bytes_in.into(),
            record.bytes_out.into(),
            record.queued().into(),
            (desk.unread)(record.id).into(),
            due_in.into(),
            deadline.into(),
        ],
    );
}

/// The remote end, where that may be shown.
fn peer(record: &Record, desk: &Desk<'_>) -> Option<String> {
    desk.shows_peers.then(|| record.peer.to_string())
}

fn age(record: &Record, desk: &Desk<'_>) -> Duration {
    desk.shared.now.duration_since(record.opened_at)
}

const fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Accepted(_) => "accepted",
        Origin::Connect => "dialled",
        Origin::Pool(_) => "pool",
        Origin::Check(_) => "check",
    }
}

pub(crate) fn state(state: State) -> &'static str {
    STATES.iter().find(|(_, it)| *it == state).map_or("closed", |(name, _)| name)
}

/// The deadlines that run, and the times that have no clock of their own.
fn deadlines(record: &Record, shared: &LoopState) -> Vec<(Instant, &'static str)> {
    // A check of the progress ends nothing.
    let running = record.clocks.upcoming(record.durations(&shared.profiles));
    let running = running.filter(|(_, deadline)| *deadline != Deadline::ProgressCheck);
    // In a shutdown that clock says when it is to end.
    let is_planned_end = shared.stopping && !record.is_aged();
    let mut all: Vec<_> = running
        .map(|(at, deadline)| match deadline {
            Deadline::Lifetime if is_planned_end => (at, "shutdown"),
            deadline => (at, deadline.label()),
        })
        .collect();
    all.extend(record.ping_due().map(|at| (at, "ping")));
    // Of those that come together the first one acts, and they are in that order.
    all.sort_by_key(|(at, _)| *at);
    all
}

/// The deadline that comes next, and in how long.
pub(crate) fn next_deadline(
    record: &Record,
    shared: &LoopState,
) -> (Option<&'static str>, Option<Duration>) {
    match deadlines(record, shared).first() {
        Some((at, deadline)) => (Some(*deadline), Some(at.duration_since(shared.now))),
        None => (None, None),
    }
}

/// All that is known of one connection.
///
/// # Errors
///
/// If it is gone.
pub(crate) fn show(
    id: ConnId,
    form: Form,
    desk: &Desk<'_>,
    output: &mut BytesMut,
) -> Result<(), String> {
    let shared = &*desk.shared;
    let record = shared.table.get(id).filter(|record| record.state() != State::Closed);
    let record = record.ok_or_else(|| format!("connection {id} is gone"))?;
    let cold = record.cold();
    let local = match (cold.and_then(|cold| cold.local.as_ref()), record.origin()) {
        (Some(address), _) => Some(address),
        (None, Origin::Accepted(listener)) => shared.listening_on.get(listener.0 as usize),
        (None, _) => None,
    };
    let dated = shared.now_unix().saturating_sub(age(record, desk));
    let named = |id: Option<ConnId>| Cell::from(id.map(|id| id.to_string()));
    let mut cells = vec![
        ("id", record.id.to_string().into()),
        ("peer", peer(record, desk).into()),
        ("local", local.map(ToString::to_string).into()),
        ("origin", origin(record.origin()).into()),
        ("owner", named(cold.and_then(|cold| cold.owner))),
        ("relayed_with", named(record.relay())),
        ("state", state(record.state()).into()),
        ("doing", doing(record).into()),
        ("closes_for", record.reason.or_else(|| record.requested()).map(|it| it.label()).into()),
        ("age", age(record, desk).into()),
        ("opened_unix", dated.as_secs().into()),
        ("requests", record.requests.into()),
        ("in_flight", u64::from(record.owed()).into()),
        ("bytes_in", record.bytes_in.into()),
        ("bytes_out", record.bytes_out.into()),
        ("queued", record.queued().into()),
        ("unread", (desk.unread)(id).into()),
        ("memory", u64::from(record.buffered).into()),
    ];
    let deadlines = deadlines(record, shared);
    let names: Vec<_> = deadlines.iter().map(|(_, name)| format!("deadline_{name}_in")).collect();
    let times = deadlines.iter().map(|(at, _)| at.duration_since(shared.now));
    cells.extend(names.iter().map(String::as_str).zip(times.map(Cell::from)));
    form.record(output, &cells);
    Ok(())
}

/// What holds for a connection, in words.
fn doing(record: &Record) -> String {
    let hot = [
        (Flags::RECEIVING, "receives a request"),
        (Flags::OWED, "owes a reply"),
        (Flags::QUEUED, "has output queued"),
        (Flags::CONGESTED, "is congested"),
        (Flags::PAUSED, "is paused by its handler"),
        (Flags::THROTTLED, "is held for its sink"),
        (Flags::PAUSED_BY_OUTPUT, "is not read for its output"),
        (Flags::INPUT_AWAITED, "waits for a length of input"),
        (Flags::EOF, "has had the peer's FIN"),
        (Flags::FIN, "has sent its FIN"),
        (Flags::TUNNEL, "is a tunnel"),
        (Flags::RETIRING, "ends after its request"),
    ];
    let cold = [
        (ColdFlags::LINGERING, "waits for the peer's FIN"),
        (ColdFlags::EXEMPT, "is exempt from limits"),
        (ColdFlags::POOLED, "is a pool's"),
        (ColdFlags::RELAYED, "is relayed"),
    ];
    let hot = hot.iter().filter(|(flag, _)| record.flags.has(*flag)).map(|(_, text)| *text);
    let cold = cold.iter().filter(|(flag, _)| record.cold_flags.has(*flag)).map(|(_, text)| *text);
    let all: Vec<_> = hot.chain(cold).collect();
    if all.is_empty() { "waits for its peer".into() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Filter, String> {
        Filter::parse(text.split_whitespace())
    }

    #[test]
    fn a_filter_is_parsed_or_refused() {
        let filter = parsed("state=idle peer=10.0.0.0/8 sort=queued limit=1000").unwrap();
        assert_eq!((filter.state, filter.sort), (Some(State::Idle), Some(Sort::Queued)));
        assert_eq!(
            (filter.peer.unwrap().to_string(), filter.limit),
            ("10.0.0.0/8".into(), Some(1_000))
        );
        assert!(parsed("limit=50000").is_ok());
        for text in [
            "state=closed",
            "peer=x",
            "sort=id",
            "limit=0",
            "limit=-1",
            "x",
            "x=1",
            "sort=in limit=1001",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
