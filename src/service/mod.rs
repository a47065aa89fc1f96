//! What the library serves itself, beside the application's handler: the metrics.
//!
//! A [`Service`] is the dialogue with one peer: it takes questions off its input, and writes replies. It
//! has no socket, no deadline and no limit on connections: those are in `reactor/service.rs`, which
//! gives it the input that has come and sends what it wrote.

pub(crate) mod http;
pub(crate) mod metrics;

use std::fmt;
use std::time::Duration;

use bytes::BytesMut;

use crate::core::service::Patience;
use crate::metrics::MetricsWriter;
use crate::state::LoopState;

/// What a service asks of the reactor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// More input, as no question is whole.
    Input,
    /// Nothing: a question was taken and answered. There may be another.
    Answered,
    /// The application's own metrics. [`Service::scraped`] is to follow.
    Scrape,
    /// Nothing more, ever: what was written is to be sent, and then our FIN.
    Close,
}

/// What a service may see of the reactor.
pub(crate) struct Desk<'a> {
    pub(crate) shared: &'a mut LoopState,
    /// Why the reactor is not ready for connections, if it is not.
    pub(crate) unready: Option<&'static str>,
}

/// The dialogue with one peer.
pub(crate) trait Service: fmt::Debug + Send + Sync {
    /// Takes at most one question off the front of `input`, and appends to `output`.
    ///
    /// Called when input has come, and again until it asks for input. It is not called while much of
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
}

impl Kind {
    /// What it is called in logs and errors.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
        }
    }

    /// A new peer's dialogue.
    pub(crate) fn open(self) -> Box<dyn Service> {
        match self {
            Self::Metrics => Box::new(metrics::Metrics::default()),
        }
    }

    /// What a peer reads that comes when there are as many as there may be.
    pub(crate) fn refusal(self) -> BytesMut {
        let mut output = BytesMut::new();
        match self {
            Self::Metrics => {
                http::Reply::error(http::Status::ServiceUnavailable, "too many connections\n")
                    .write(&mut output)
            }
        }
        output
    }

    /// The most input that is kept. A question that is not whole then is refused by the service.
    pub(crate) const fn input_max(self) -> usize {
        match self {
            Self::Metrics => http::HEAD_MAX,
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
            },
        }
    }
}
