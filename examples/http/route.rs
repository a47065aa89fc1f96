//! Which resource a request is for.

use std::time::Duration;

use crate::head::{Head, Method, decimal};
use crate::reply::Status;

/// What a request asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Route {
    /// So many bytes.
    Bytes(u64),
    Echo,
    Healthz,
    Hello,
    Metrics,
    /// Another method than these.
    NotAllowed(&'static str),
    /// The methods that are allowed.
    Options(&'static str),
    Readyz,
    /// Nothing that is there.
    Refused(Status),
    /// A reply after so long.
    Slow(Duration),
}

impl Route {
    #[inline]
    pub(crate) fn of(head: &Head<'_>) -> Self {
        match (head.method, head.path) {
            (Method::Get | Method::Head, "/") => Self::Hello,
            (Method::Other, _) => Self::Refused(Status::NotImplemented),
            (Method::Options, "*") => Self::Options("GET, HEAD, POST, OPTIONS"),
            (method, path) => Self::of_path(path, head.query).permit(method),
        }
    }

    fn of_path(path: &str, query: &str) -> Self {
        match path {
            "/" => Self::Hello,
            "/echo" => Self::Echo,
            "/healthz" => Self::Healthz,
            "/metrics" => Self::Metrics,
            "/readyz" => Self::Readyz,
            "/slow" => milliseconds(query).map_or(Self::Refused(Status::BadRequest), Self::Slow),
            _ => match path.strip_prefix("/bytes/").map(|count| decimal(count.as_bytes())) {
                Some(Ok(count)) => Self::Bytes(count),
                _ => Self::Refused(Status::NotFound),
            },
        }
    }

    fn permit(self, method: Method) -> Self {
        match (self, method) {
            (Self::Refused(Status::NotFound), _) => self,
            (_, Method::Options) => Self::Options(self.methods()),
            (Self::Refused(_), _) | (Self::Echo, Method::Post) => self,
            (Self::Echo, _) | (_, Method::Post) => Self::NotAllowed(self.methods()),
            _ => self,
        }
    }

    /// The methods that the resource allows.
    const fn methods(self) -> &'static str {
        match self {
            Self::Echo => "POST, OPTIONS",
            _ => "GET, HEAD, OPTIONS",
        }
    }

    /// Whether the reply does not depend on the body of the request and is ready before it.
    pub(crate) const fn ignores_body(self) -> bool {
        matches!(self, Self::NotAllowed(_) | Self::Options(_) | Self::Refused(_))
    }
}

/// The value of `ms` in a query.
fn milliseconds(query: &str) -> Option<Duration> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("ms="))?;
    decimal(value.as_bytes()).ok().map(Duration::from_millis)
}
