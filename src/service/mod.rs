//! What the library serves itself, beside the application's handler: the metrics, a page and a console.
//!
//! A [`Service`] is the dialogue with one peer: it takes questions off its input, and writes replies. It
//! has no socket, no deadline and no limit on connections: those are in `reactor/service.rs`, which
//! gives it the input that has come and sends what it wrote.

pub(crate) mod console;
mod greatest;
pub(crate) mod http;
pub(crate) mod metrics;
mod page;

use std::fmt;
use std::time::Duration;

use bytes::BytesMut;

use crate::config::Config;
use crate::core::gate::Gate;
use crate::core::service::Patience;
use crate::id::ConnId;
use crate::metrics::MetricsWriter;
use crate::state::LoopState;

/// While so much of its output waits to be sent, a connection is not read, and its service not asked
/// for more.
pub(crate) const OUTPUT_HIGH: usize = 64 * 1024;

/// What a service asks of the reactor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// More input, as no question is whole.
    Input,
    /// Nothing: a question was taken, and answered or begun to be. There may be another.
    Answered,
    /// Another turn, in which it goes on with its reply.
    More,
    /// The application's own metrics. [`Service::scraped`] is to follow.
    Scrape,
    /// Nothing more, ever: what was written is to be sent, and then our FIN.
    Close,
}

/// What a service may see of the reactor.
pub(crate) struct Desk<'a> {
    pub(crate) shared: &'a mut LoopState,
    pub(crate) config: &'a Config,
    pub(crate) gate: &'a Gate,
    /// How much input of a connection its handler has left.
    pub(crate) unread: &'a dyn Fn(ConnId) -> usize,
    /// Why the reactor is not ready for connections, if it is not.
    pub(crate) unready: Option<&'static str>,
    /// How long the reactor has lived.
    pub(crate) uptime: Duration,
    /// Whether the listener of this number is open.
    pub(crate) listens: &'a dyn Fn(usize) -> bool,
    /// The peer has sent its FIN.
    pub(crate) eof: bool,
    /// The peer may see the addresses of others.
    pub(crate) shows_peers: bool,
    /// What the reactor is to do when the service returns.
    pub(crate) orders: &'a mut Vec<Order>,
}

/// What a service orders, beyond what it can change itself.
#[derive(Debug)]
pub(crate) enum Order {
    /// The settings are to be these.
    Change(Box<Config>),
}

/// The dialogue with one peer.
pub(crate) trait Service: fmt::Debug + Send + Sync {
    /// Takes at most one question off the front of `input`, and appends to `output`.
    ///
    /// Called when input or the FIN has come, and again until it asks for input. It is not called while much of
    /// what it wrote waits to be sent.
    fn serve(&mut self, desk: &mut Desk<'_>, input: &mut BytesMut, output: &mut BytesMut) -> Next;

    /// The answer to [`Next::Scrape`]: what the application wrote, unless it panicked. Appends the
    /// reply.
    fn scraped(
        &mut self,
        desk: &mut Desk<'_>,
        application: Option<&MetricsWriter>,
        output: &mut BytesMut,
    ) -> Next;
}

/// The services there are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Metrics,
    Console,
}

impl Kind {
    /// What it is called in logs and errors.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Console => "console",
        }
    }

    /// A new peer's dialogue.
    pub(crate) fn open(self) -> Box<dyn Service> {
        match self {
            Self::Metrics => Box::new(metrics::Metrics::default()),
            Self::Console => Box::new(console::Console::default()),
        }
    }

    /// What a peer reads that comes when there are as many as there may be.
    pub(crate) fn refusal(self) -> BytesMut {
        let mut output = BytesMut::new();
        match self {
            Self::Metrics => {
                http::Reply::error(http::Status::ServiceUnavailable, "too many connections\n")
                    .write(&mut output);
            }
            Self::Console => output.extend_from_slice(b"error: too many consoles\n\n"),
        }
        output
    }

    /// The most input that is kept. A question that is not whole then is refused by the service.
    pub(crate) const fn input_max(self) -> usize {
        match self {
            Self::Metrics => http::HEAD_MAX,
            // What is longer is refused by its length.
            Self::Console => console::QUESTION_MAX + 2,
        }
    }

    pub(crate) const fn patience(self) -> Patience {
        match self {
            // A collector asks every 15 to 60 s, and keeps its connection meanwhile.
            Self::Metrics => Patience {
                idle: Duration::from_secs(150),
                question: Duration::from_secs(10),
                write: Duration::from_secs(20),
                reply: Duration::from_secs(60),
                linger: Duration::from_secs(2),
                settled: Duration::from_secs(60),
            },
            // An operator thinks between two questions, and reads slowly.
            Self::Console => Patience {
                idle: Duration::from_secs(600),
                question: Duration::from_secs(10),
                write: Duration::from_secs(30),
                reply: Duration::from_secs(300),
                linger: Duration::from_secs(2),
                settled: Duration::from_secs(300),
            },
        }
    }
}
