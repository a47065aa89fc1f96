//! What happened lately in a world, to see why a run failed.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::errno::Named;
use super::fault::Call;
use crate::close::CloseReason;
use crate::id::ConnId;
use crate::time::Instant;

/// Events that are kept: what fits on a screen. Older ones are for [`TRACE`].
const KEPT: usize = 40;

/// The variable that asks for everything as it happens.
const TRACE: &str = "SIM_TRACE";

/// The latest events of a world. Recording one copies a few words; text is made of them only when
/// it is read, and what the fingerprint of a run is made of lies elsewhere.
#[derive(Debug)]
pub(super) struct History {
    events: VecDeque<Entry>,
    /// Each event is printed as it happens.
    traced: bool,
    /// What happens is of no interest: the script is being torn down after a failure.
    pub(super) ignored: bool,
}

impl History {
    pub(super) fn new() -> Self {
        let traced = std::env::var_os(TRACE).is_some_and(|value| !value.is_empty() && value != "0");
        Self { events: VecDeque::with_capacity(KEPT), traced, ignored: false }
    }

    pub(super) const fn stop_tracing(&mut self) {
        self.traced = false;
    }

    #[expect(clippy::print_stderr, reason = "the variable asks for it")]
    pub(super) fn record(&mut self, at: Instant, place: Place, event: TraceEvent) {
        if self.ignored {
            return;
        }
        let event = Entry { at, place, event };
        if self.traced {
            eprintln!("{event}");
        }
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

/// A line for each event, the latest last.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.events.iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: Instant,
    place: Place,
    event: TraceEvent,
}

/// Where something happened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    World,
    Machine(IpAddr),
    Peer(Option<SocketAddr>),
}

/// Which connection it was about: by its id where the reactor has one for it, else by its far end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Of {
    pub(super) id: Option<ConnId>,
    pub(super) far: Option<SocketAddr>,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
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
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Done,
    Count(usize),
    /// The pending error of a socket.
    Found(i32),
    Failed(i32),
    /// It was made to fail.
    Injected(i32),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = format!("{:?}", self.at);
        write!(f, "{at:>16}  {:<18} {}", self.place, self.event)
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
