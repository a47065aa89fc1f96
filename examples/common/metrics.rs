//! A second listener, for a collector of metrics: it answers GET and HEAD of `/metrics`.

use std::io;

use bytes::BytesMut;
use wheelhouse::pool::{AcquireError, WaitId};
use wheelhouse::{
    AlarmId, CloseReason, Closed, Config, Conn, ConnId, Context, Error, Handler, ListenerId,
    Origin, Timeouts,
};

use crate::common::{ServerArgs, run};

/// Serves until a signal, with metrics beside it if they are wanted. The settings are `defaults` with
/// what was given put in.
#[allow(dead_code, reason = "not every program needs it")]
pub(crate) fn serve<H: Handler + 'static>(
    args: &ServerArgs,
    defaults: Config,
    handler: H,
) -> Result<u8, Error> {
    let config = args.config(defaults);
    if args.metrics.is_none() {
        return run(args, config, |_, _| handler);
    }
    run(args, config, |listener, _| {
        Metered::new(handler, listener.expect("a listener for metrics"))
    })
}

/// Fields that a collector may send.
const FIELDS: usize = 32;

/// A handler, and beside it the metrics of its reactor: two protocols on one loop.
pub(crate) struct Metered<H> {
    inner: H,
    listener: ListenerId,
}

/// What a connection is for.
pub(crate) enum Session<S> {
    Served(S),
    Collector,
}

impl<S> Session<S> {
    /// That of the protocol, if the connection is none of a collector.
    #[allow(dead_code, reason = "not every program needs it")]
    pub(crate) const fn served(&mut self) -> Option<&mut S> {
        match self {
            Self::Served(session) => Some(session),
            Self::Collector => None,
        }
    }
}

impl<H: Handler> Metered<H> {
    /// Serves metrics to connections of `listener`, and all others as `inner` does.
    pub(crate) const fn new(inner: H, listener: ListenerId) -> Self {
        Self { inner, listener }
    }
}

/// Answers a collector that has sent a whole head.
fn answer(conn: &mut Conn<'_>, input: &mut BytesMut) {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let status = match request.parse(input) {
        Ok(httparse::Status::Partial) => return,
        Ok(_) if request.path.map(path) != Some("/metrics") => "404 Not Found",
        Ok(_) if !matches!(request.method, Some("GET" | "HEAD")) => "405 Method Not Allowed",
        Ok(_) => "200 OK",
        Err(httparse::Error::TooManyHeaders) => "431 Request Header Fields Too Large",
        Err(_) => "400 Bad Request",
    };
    let head_only = input.starts_with(b"HEAD ");
    input.clear();
    let text = match status {
        "200 OK" => conn.cx().stats().prometheus().to_string(),
        _ => format!("{status}\nThere is only GET /metrics.\n"),
    };
    write!(
        conn,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n\
         Content-Length: {}\r\nConnection: close\r\n",
        text.len()
    );
    if status.starts_with("405") {
        conn.write(b"Allow: GET, HEAD\r\n");
    }
    conn.write(b"\r\n");
    if !head_only {
        conn.write(text.as_bytes());
    }
    conn.close();
}

/// The path of a request's target, in origin form or absolute form, without its query.
fn path(target: &str) -> &str {
    let absolute = target.strip_prefix("http://");
    let target = absolute.map_or(target, |rest| rest.find('/').map_or("", |at| &rest[at..]));
    target.split('?').next().unwrap_or_default()
}

/// Passes a callback on to the handler of a connection that is not a collector's.
macro_rules! pass_on {
    ($handler:expr, $callback:ident, $conn:expr, $session:expr $(, $argument:expr)*) => {
        if let Session::Served(session) = $session {
            $handler.inner.$callback($conn, session $(, $argument)*);
        }
    };
}

impl<H: Handler> Handler for Metered<H> {
    type Session = Session<H::Session>;

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Self::Session> {
        if conn.origin() == Origin::Accepted(self.listener) {
            conn.set_timeouts(&Timeouts::default());
            return Some(Session::Collector);
        }
        self.inner.on_open(conn).map(Session::Served)
    }

    fn on_start(&mut self, cx: &mut Context<'_>) {
        self.inner.on_start(cx);
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session, input: &mut BytesMut) {
        match session {
            Session::Served(session) => self.inner.on_data(conn, session, input),
            Session::Collector => answer(conn, input),
        }
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {
        pass_on!(self, on_connected, conn, session);
    }

    fn on_idle(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {
        pass_on!(self, on_idle, conn, session);
    }

    fn on_active(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {
        pass_on!(self, on_active, conn, session);
    }

    fn on_closing(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Self::Session,
        reason: &CloseReason,
    ) {
        pass_on!(self, on_closing, conn, session, reason);
    }

    fn on_closed(&mut self, cx: &mut Context<'_>, closed: Closed, session: Self::Session) {
        if let Session::Served(session) = session {
            self.inner.on_closed(cx, closed, session);
        }
    }

    fn on_eof(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session, input: &mut BytesMut) {
        pass_on!(self, on_eof, conn, session, input);
    }

    fn on_drained(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {
        pass_on!(self, on_drained, conn, session);
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {
        pass_on!(self, on_timer, conn, session);
    }

    fn on_health_check(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {
        pass_on!(self, on_health_check, conn, session);
    }

    fn on_test_request(&mut self, conn: &mut Conn<'_>, session: &mut Self::Session) {
        pass_on!(self, on_test_request, conn, session);
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Self::Session,
        wait: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        pass_on!(self, on_acquired, conn, session, wait, lease);
    }

    fn on_lease_replaced(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Self::Session,
        lost: ConnId,
        lease: Result<ConnId, AcquireError>,
    ) {
        pass_on!(self, on_lease_replaced, conn, session, lost, lease);
    }

    fn on_loop_acquired(
        &mut self,
        cx: &mut Context<'_>,
        wait: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        self.inner.on_loop_acquired(cx, wait, lease);
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        self.inner.on_alarm(cx, alarm);
    }

    fn on_listener_failed(
        &mut self,
        cx: &mut Context<'_>,
        listener: ListenerId,
        error: &io::Error,
    ) {
        self.inner.on_listener_failed(cx, listener, error);
    }

    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        self.inner.on_shutdown(cx);
    }
}
