//! What happened lately in a world, to see why a run failed.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::errno::Named;
use super::fault::Call;
use crate::close::CloseReason;
use crate::id::ConnId;
use crate::time::Instant;

/// Lines that are printed in any case: what fits on a screen. Older ones are for [`TRACE`].
const SHOWN: usize = 40;

/// Lines that are kept. Of those that are too old to be [`SHOWN`], the ones about a fault are
/// printed all the same, because what a fault breaks often shows long after it.
const KEPT: usize = 200;

/// The variable that asks for everything as it happens.
const TRACE: &str = "SIM_TRACE";

/// The latest events of a world. Recording one copies a few words; text is made of them only when
/// it is read, and what the fingerprint of a run is made of lies elsewhere.
#[derive(Debug)]
pub(super) struct History {
    lines: VecDeque<Line>,
    /// Each event is printed as it happens.
    traced: bool,
    /// What happens is of no interest: the script is being torn down after a failure.
    pub(super) ignored: bool,
}

impl History {
    pub(super) fn new() -> Self {
        let traced = std::env::var_os(TRACE).is_some_and(|value| !value.is_empty() && value != "0");
        Self { lines: VecDeque::with_capacity(KEPT), traced, ignored: false }
    }

    pub(super) const fn stop_tracing(&mut self) {
        self.traced = false;
    }

    #[expect(clippy::print_stderr, reason = "the variable asks for it")]
    pub(super) fn record(&mut self, at: Instant, place: Place, event: TraceEvent) {
        if self.ignored {
            return;
        }
        let line = Line { at, place, event, count: 1, last: at };
        if self.traced {
            eprintln!("{line}");
        }
        if let Some(previous) = self.lines.back_mut()
            && previous.repeats_in(&line)
        {
            previous.count += 1;
            previous.last = at;
            return;
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

/// A line for each event, the latest last; equal events in a row share one.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let older = self.lines.len().saturating_sub(SHOWN);
        let mut left_out = 0;
        let mut is_gap = false;
        for line in self.lines.range(..older) {
            if !line.event.is_fault() {
                left_out += 1;
                continue;
            }
            write_gap(f, left_out, is_gap)?;
            writeln!(f, "{line}")?;
            (left_out, is_gap) = (0, true);
        }
        write_gap(f, left_out, is_gap)?;
        self.lines.range(older..).try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Says how many lines are missing after one that was printed.
fn write_gap(f: &mut fmt::Formatter<'_>, left_out: usize, is_gap: bool) -> fmt::Result {
    if !is_gap || left_out == 0 {
        return Ok(());
    }
    writeln!(f, "{:>16}  ({} left out)", "", count(left_out, "line"))
}

/// An event, or several in a row that are equal but for their time and the number of their call.
#[derive(Clone, Copy, Debug)]
struct Line {
    /// When the first of them happened.
    at: Instant,
    place: Place,
    event: TraceEvent,
    count: u32,
    /// When the last of them happened.
    last: Instant,
}

impl Line {
    /// Whether the next line would say the same again.
    fn repeats_in(&self, next: &Self) -> bool {
        self.place == next.place && self.event.without_number() == next.event.without_number()
    }
}

/// Where something happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    World,
    Machine(IpAddr),
    Peer(Option<SocketAddr>),
}

/// Which connection it was about: by its id where the reactor has one for it, else by its far end.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Of {
    pub(super) id: Option<ConnId>,
    pub(super) far: Option<SocketAddr>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum TraceEvent {
    /// The call of this number in the world.
    Call {
        number: u64,
        call: Call,
        of: Of,
        outcome: Outcome,
    },
    Callback {
        name: &'static str,
        of: Of,
        reason: Option<CloseReason>,
    },
    Arrival {
        of: Of,
        bytes: usize,
        fin: bool,
        reset: bool,
    },
    Answer(Result<usize, i32>),
    DialState(Option<SocketAddr>),
    Send(usize),
    Finish,
    Close {
        of: Of,
        reset: bool,
    },
    Fault(&'static str),
    Partition(IpAddr, IpAddr),
    Repair(IpAddr, IpAddr),
    Converge,
}

/// What came of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Done,
    Count(usize),
    /// The pending error of a socket.
    Found(i32),
    Failed(i32),
    /// It was made to fail.
    Injected(i32),
}

impl TraceEvent {
    /// Whether the test or the seed made something go wrong.
    const fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::Fault(_)
                | Self::Call { outcome: Outcome::Injected(_), .. }
                | Self::Partition(..)
                | Self::Repair(..)
        )
    }

    /// The same, so that two calls compare equal whatever their numbers.
    const fn without_number(self) -> Self {
        match self {
            Self::Call { call, of, outcome, .. } => Self::Call { number: 0, call, of, outcome },
            other => other,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, place, event, count, last } = self;
        write!(f, "{:>16}  {place:<18} {event}", format!("{at:?}"))?;
        match count {
            1 => Ok(()),
            count if last == at => write!(f, " ×{count}"),
            count => write!(f, " ×{count}, until {last:?}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::World => f.pad("the world"),
            Self::Machine(ip) => f.pad(&ip.to_string()),
            Self::Peer(Some(addr)) => f.pad(&addr.to_string()),
            Self::Peer(None) => f.pad("a peer"),
        }
    }
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.id, self.far) {
            (Some(id), _) => write!(f, " on {id}"),
            (None, Some(far)) => write!(f, " with {far}"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Call { number, call, of, outcome } => {
                write!(f, "call {number}, {call}{of}: ")?;
                write_outcome(f, call, outcome)
            }
            Self::Callback { name, of, reason } => {
                write!(f, "{name}{of}")?;
                reason.map_or(Ok(()), |reason| write!(f, ": {reason}"))
            }
            Self::Arrival { of, bytes, fin, reset } => {
                let bytes = (bytes > 0).then(|| count(bytes, "byte"));
                let signal =
                    if reset { Some("a reset".into()) } else { fin.then(|| "a FIN".into()) };
                let what: Vec<String> = bytes.into_iter().chain(signal).collect();
                write!(f, "gets {}", what.join(" and "))?;
                match of {
                    Of { id: None, far: Some(far) } => write!(f, " from {far}"),
                    of => of.fmt(f),
                }
            }
            Self::Answer(Ok(found)) => write!(f, "a look-up finds {}", count(found, "address")),
            Self::Answer(Err(errno)) => write!(f, "a look-up fails with {}", Named(errno)),
            Self::DialState(Some(to)) => write!(f, "dials {to}"),
            Self::DialState(None) => f.write_str("dials"),
            Self::Send(bytes) => write!(f, "sends {}", count(bytes, "byte")),
            Self::Finish => f.write_str("sends its FIN"),
            Self::Close { of, reset: false } => write!(f, "closes its end{of}"),
            Self::Close { of, reset: true } => write!(f, "resets its end{of}"),
            Self::Fault(name) => write!(f, "fault: {name}"),
            Self::Partition(a, b) => write!(f, "partition between {a} and {b}"),
            Self::Repair(a, b) => write!(f, "repair between {a} and {b}"),
            Self::Converge => f.write_str("nothing goes wrong any more, and everything is to end"),
        }
    }
}

fn write_outcome(f: &mut fmt::Formatter<'_>, call: Call, outcome: Outcome) -> fmt::Result {
    match outcome {
        Outcome::Done => f.write_str("done"),
        Outcome::Count(events) if call == Call::Wait => f.write_str(&count(events, "event")),
        Outcome::Count(bytes) => f.write_str(&count(bytes, "byte")),
        Outcome::Found(errno) => write!(f, "finds {}", Named(errno)),
        Outcome::Failed(libc::EAGAIN) => f.write_str("would block"),
        Outcome::Failed(errno) => write!(f, "fails with {}", Named(errno)),
        Outcome::Injected(errno) => write!(f, "is made to fail with {}", Named(errno)),
    }
}

fn count(count: usize, of: &str) -> String {
    let end = match of {
        _ if count == 1 => "",
        "address" => "es",
        _ => "s",
    };
    format!("{count} {of}{end}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const POLL: TraceEvent = TraceEvent::Call {
        number: 0,
        call: Call::Wait,
        of: Of { id: None, far: None },
        outcome: Outcome::Count(0),
    };

    fn at(millis: u64) -> Instant {
        Instant::EPOCH + Duration::from_millis(millis)
    }

    /// Records each event a millisecond after the one before it.
    fn history(events: impl IntoIterator<Item = TraceEvent>) -> String {
        let mut history = History { lines: VecDeque::new(), traced: false, ignored: false };
        for (millis, event) in (0..).zip(events) {
            history.record(at(millis), Place::World, event);
        }
        history.to_string()
    }

    /// Events of which each differs from the one before it.
    fn differing(count: usize) -> impl Iterator<Item = TraceEvent> {
        (0..count).map(|index| TraceEvent::Send(1 + index % 2))
    }

    #[test]
    fn equal_events_in_a_row_share_a_line_with_their_count() {
        let polls = (0..17).map(|number| match POLL {
            TraceEvent::Call { call, of, outcome, .. } => {
                TraceEvent::Call { number, call, of, outcome }
            }
            other => other,
        });
        let text = history(polls.chain([TraceEvent::Finish, POLL]));
        let lines: Vec<_> = text.lines().map(str::trim_start).collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("+0ns") && lines[0].ends_with(" ×17, until +16ms"), "{text}");
        assert!(lines[1].ends_with("sends its FIN"), "{text}");
        assert!(lines[2].ends_with("Wait: 0 events"), "{text}");
    }

    #[test]
    fn equal_events_at_one_time_need_no_second_time() {
        let mut history = History { lines: VecDeque::new(), traced: false, ignored: false };
        for _ in 0..3 {
            history.record(at(5), Place::World, POLL);
        }
        assert!(history.to_string().ends_with("0 events ×3\n"), "{history}");
    }

    #[test]
    fn events_of_two_places_share_no_line() {
        let mut history = History { lines: VecDeque::new(), traced: false, ignored: false };
        history.record(at(0), Place::World, POLL);
        history.record(at(0), Place::Peer(None), POLL);
        assert_eq!(history.to_string().lines().count(), 2);
    }

    #[test]
    fn a_fault_stays_in_the_history_for_two_hundred_events() {
        let reset = Outcome::Injected(libc::ECONNRESET);
        let of = Of::default();
        let fault = TraceEvent::Call { number: 3, call: Call::Read, of, outcome: reset };
        let text = history(differing(5).chain([fault]).chain(differing(199)));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 42, "{text}");
        assert!(lines[0].contains("is made to fail with ECONNRESET"), "{text}");
        assert_eq!(lines[1].trim(), "(159 lines left out)");
        let text = history([fault].into_iter().chain(differing(200)));
        assert_eq!(text.lines().count(), 40, "{text}");
    }

    #[test]
    fn events_in_a_row_that_are_equal_push_no_fault_out() {
        let polls = std::iter::repeat_n(POLL, 10_000);
        let text = history([TraceEvent::Fault("late")].into_iter().chain(polls));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].ends_with("fault: late"), "{text}");
    }

    #[test]
    fn no_gap_is_named_without_a_line_before_it() {
        let text = history(differing(100));
        assert_eq!(text.lines().count(), 40);
        assert!(!text.contains("left out"), "{text}");
    }
}
