//! The server: requests in, replies out, in order.

use std::time::SystemTime;

use bytes::{Buf, Bytes, BytesMut};
use wheelhouse::{CloseReason, Closed, Config, Conn, Context, Handler, Timeout, frame};

use crate::body::Body;
use crate::head::{Head, Method, Parsed};
use crate::reply::{Content, Manner, MediaType, Reply, Status, Writer};
use crate::route::Route;

/// Requests served in one callback. Others have their turn before a peer that sent more at once
/// goes on.
const REQUESTS_PER_CALL: usize = 64;

/// Empty lines before a request that are skipped. RFC 9112, 2.2, asks for one at least; more than
/// a client may send by mistake keep a connection that asks for nothing from being idle.
pub(crate) const EMPTY_LINES_MAX: usize = 32;

/// What `/bytes/N` sends, again and again. It is shared by all connections, so that output queued
/// from it takes no memory.
static PATTERN: [u8; 64 * 1024] = pattern();

/// Lines of 64 bytes.
const fn pattern() -> [u8; 64 * 1024] {
    let line = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-\n";
    let mut bytes = [0; 64 * 1024];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = line[at % line.len()];
        at += 1;
    }
    bytes
}

/// Settings that suit HTTP: a connection is used for at most 1,000 requests, as with nginx, and
/// more input is taken at once than the greatest head has, so that one that is too large gets a
/// reply.
pub(crate) fn defaults() -> Config {
    const INPUT_MAX: usize = 64 * 1024;
    const _: () = assert!(INPUT_MAX > crate::head::HEAD_MAX);
    let mut config = Config::default();
    config.limits.input_max = INPUT_MAX;
    config.limits.requests_max = Some(1_000);
    config
}

/// Bytes of bodies that are kept until they are whole, of all connections together. They are the
/// handler's, so that no limit of the library knows of them.
pub(crate) const UPLOADS_MAX: usize = 64 << 20;

/// An HTTP/1.1 server.
#[derive(Debug)]
pub(crate) struct Http {
    writer: Writer,
    /// Bytes of bodies that are kept now.
    uploaded: usize,
}

/// The state of a connection.
#[derive(Debug)]
pub(crate) enum Phase {
    /// A head is next, of which this much is here.
    Head(Arrived),
    /// The body of a request is arriving.
    Body(Box<Upload>),
    /// A reply comes when the timer does. Reading is paused, so that the order is kept and the
    /// peer's next requests wait in its own socket.
    Waiting(Request),
    /// The body of a reply is being written, so many bytes still.
    Streaming { request: Request, stays: bool, left: u64 },
    /// The last reply is written; what the peer sends now is not served.
    Over,
}

/// How much of the next head is here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Arrived {
    Nothing,
    /// So many empty lines, which some peers send after a body (RFC 9112, 2.2).
    EmptyLines(u8),
    /// Part of it; `head_only` if the method is known to be HEAD.
    Part {
        head_only: bool,
    },
}

/// What is left of a head when its bytes are gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    route: Route,
    head_only: bool,
    /// As [`Head::persists`].
    persists: bool,
    /// Bytes of input after it.
    unread: usize,
}

impl Request {
    /// Whether the connection stays open after the reply, which says so.
    fn stays(&self, conn: &mut Conn<'_>) -> bool {
        self.persists && conn.decide_keep_alive(self.unread).stays()
    }
}

/// A request whose body is arriving.
#[derive(Debug)]
pub(crate) struct Upload {
    request: Request,
    body: Body,
    content: Vec<u8>,
}

/// Whether there may be more to do with the input at hand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Next,
    Rest,
}

impl Http {
    /// A server whose replies are dated by `wall_clock`.
    pub(crate) const fn new(wall_clock: fn() -> SystemTime) -> Self {
        Self { writer: Writer::new(wall_clock), uploaded: 0 }
    }
}

impl Handler for Http {
    type Session = Phase;

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Phase> {
        // An empty line is input, and no request.
        conn.manual_requests();
        Some(Phase::Head(Arrived::Nothing))
    }

    /// Serves the requests that have come, one after the other. If the peer does not read its replies
    /// it stops, and is called again when they have left.
    #[inline]
    fn on_data(&mut self, conn: &mut Conn<'_>, phase: &mut Phase, input: &mut BytesMut) {
        for _ in 0..REQUESTS_PER_CALL {
            if self.step(conn, phase, input) == Step::Rest || input.is_empty() {
                return;
            }
            if conn.is_congested() || conn.is_closing() {
                return;
            }
        }
        conn.yield_now();
    }

    /// A request that the peer's FIN cut short can still be answered.
    fn on_eof(&mut self, conn: &mut Conn<'_>, phase: &mut Phase, input: &mut BytesMut) {
        if matches!(phase, Phase::Head(Arrived::Part { .. }) | Phase::Body(_)) {
            self.write_last(conn, phase, input, Status::BadRequest);
        }
    }

    fn on_drained(&mut self, conn: &mut Conn<'_>, phase: &mut Phase) {
        if let Phase::Streaming { .. } = phase {
            stream(conn, phase);
        }
    }

    /// The reply to `/slow` is due.
    fn on_timer(&mut self, conn: &mut Conn<'_>, phase: &mut Phase) {
        if let Phase::Waiting(request) = *phase {
            self.reply(conn, phase, request, Reply::text("slow\n"));
            conn.resume_reading();
        }
    }

    fn on_closed(&mut self, _: &mut Context<'_>, _: Closed, phase: Phase) {
        self.forget_upload(&phase);
    }

    /// Where the connection ends before its reply and the peer may be reading, the reply says so.
    fn on_closing(&mut self, conn: &mut Conn<'_>, phase: &mut Phase, reason: &CloseReason) {
        let arriving = matches!(phase, Phase::Head(Arrived::Part { .. }) | Phase::Body(_));
        let waiting = matches!(phase, Phase::Waiting(_));
        match reason {
            CloseReason::Timeout(Timeout::Request | Timeout::Read) if arriving => {
                self.write_last(conn, phase, &[], Status::RequestTimeout);
            }
            CloseReason::Timeout(Timeout::Response | Timeout::Lifetime) if waiting => {
                self.write_last(conn, phase, &[], Status::ServiceUnavailable);
            }
            CloseReason::Shutdown if arriving || waiting => {
                self.write_last(conn, phase, &[], Status::ServiceUnavailable);
            }
            _ => {}
        }
    }
}

/// Requests.
impl Http {
    #[inline]
    fn step(&mut self, conn: &mut Conn<'_>, phase: &mut Phase, input: &mut BytesMut) -> Step {
        match phase {
            Phase::Head(_) => self.receive_head(conn, phase, input),
            Phase::Body(_) => self.receive_body(conn, phase, input),
            Phase::Streaming { .. } => stream(conn, phase),
            Phase::Waiting(_) => Step::Rest,
            Phase::Over => {
                input.clear();
                Step::Rest
            }
        }
    }

    #[inline]
    fn receive_head(
        &mut self,
        conn: &mut Conn<'_>,
        phase: &mut Phase,
        input: &mut BytesMut,
    ) -> Step {
        if input.first() == Some(&b'\r') {
            return self.skip_empty_line(conn, phase, input);
        }
        let head = match Head::parse(input) {
            Ok(Parsed::Whole(head)) => head,
            Ok(Parsed::Part) => {
                *phase = Phase::Head(Arrived::Part { head_only: input.starts_with(b"HEAD ") });
                return Step::Rest;
            }
            Ok(Parsed::LaterMinor(at)) => {
                input[at] = b'1';
                return Step::Next;
            }
            Err(status) => return self.refuse(conn, phase, input, status),
        };
        let request = Request {
            route: Route::of(&head),
            head_only: head.method == Method::Head,
            persists: head.persists,
            unread: input.len() - head.len,
        };
        let (len, waits) = (head.len, head.expects_continue);
        let body = match Body::new(head.framing) {
            Ok(body) => body,
            Err(status) => return self.refuse(conn, phase, input, status),
        };
        frame::take_off(input, len);
        if body.is_empty() {
            return self.answer(conn, phase, request, Vec::new());
        }
        if waits && request.route.ignores_body() {
            // Whether the body still comes is up to the peer, so what follows has no meaning.
            let request = Request { persists: false, ..request };
            return self.answer(conn, phase, request, Vec::new());
        }
        if waits && input.is_empty() {
            conn.write(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        *phase = Phase::Body(Box::new(Upload { request, body, content: Vec::new() }));
        self.receive_body(conn, phase, input)
    }

    /// Takes off an empty line before a request, unless there were too many.
    #[cold]
    fn skip_empty_line(
        &mut self,
        conn: &mut Conn<'_>,
        phase: &mut Phase,
        input: &mut BytesMut,
    ) -> Step {
        let lines = match phase {
            Phase::Head(Arrived::EmptyLines(lines)) => *lines,
            _ => 0,
        };
        match input[..] {
            // Half of such a line, which is not yet part of a request.
            [b'\r'] => Step::Rest,
            [b'\r', b'\n', ..] if usize::from(lines) < EMPTY_LINES_MAX => {
                input.advance(2);
                *phase = Phase::Head(Arrived::EmptyLines(lines + 1));
                Step::Next
            }
            _ => self.refuse(conn, phase, input, Status::BadRequest),
        }
    }

    fn receive_body(
        &mut self,
        conn: &mut Conn<'_>,
        phase: &mut Phase,
        input: &mut BytesMut,
    ) -> Step {
        let Phase::Body(upload) = phase else { return Step::Next };
        let Upload { request, body, content } = &mut **upload;
        let keeps = request.route == Route::Echo;
        let before = content.len();
        let decoded = body.decode(input, |bytes| {
            if keeps {
                content.extend_from_slice(bytes);
            }
        });
        self.uploaded += content.len() - before;
        match decoded {
            Ok(true) => {
                let (request, content) =
                    (Request { unread: input.len(), ..*request }, std::mem::take(content));
                self.uploaded -= content.len();
                self.answer(conn, phase, request, content)
            }
            Ok(false) if self.uploaded > UPLOADS_MAX => {
                self.refuse(conn, phase, input, Status::ServiceUnavailable)
            }
            Ok(false) => {
                conn.expect_more_input();
                Step::Rest
            }
            Err(status) => self.refuse(conn, phase, input, status),
        }
    }

    /// Gives back what is kept of a body.
    fn forget_upload(&mut self, phase: &Phase) {
        if let Phase::Body(upload) = phase {
            self.uploaded -= upload.content.len();
        }
    }
}

/// Replies.
impl Http {
    /// Answers a whole request.
    #[inline]
    fn answer(
        &mut self,
        conn: &mut Conn<'_>,
        phase: &mut Phase,
        request: Request,
        content: Vec<u8>,
    ) -> Step {
        conn.begin_request();
        let reply = match request.route {
            Route::Hello => Reply::text("Hello, World!"),
            Route::Bytes(count) => {
                return self.begin_stream(conn, phase, request, count);
            }
            Route::Slow(delay) => {
                conn.set_timer(conn.now() + delay);
                conn.pause_reading();
                *phase = Phase::Waiting(request);
                return Step::Rest;
            }
            Route::Echo => Reply {
                media_type: MediaType::Bytes,
                content: Content::Large(content),
                ..Reply::text("")
            },
            Route::Healthz => Reply::text("ok\n"),
            Route::Metrics => Reply {
                media_type: MediaType::Metrics,
                content: Content::Large(conn.cx().stats().prometheus().to_string().into()),
                ..Reply::text("")
            },
            Route::Options(methods) => Reply { allow: Some(methods), ..Reply::text("") },
            Route::NotAllowed(methods) => {
                Reply { allow: Some(methods), ..Reply::of(Status::MethodNotAllowed) }
            }
            Route::Readyz if conn.cx().is_shutting_down() => Reply::of(Status::ServiceUnavailable),
            Route::Readyz => Reply::text("ready\n"),
            Route::Refused(status) => Reply::of(status),
        };
        self.reply(conn, phase, request, reply)
    }

    /// Writes a reply that is whole.
    #[inline]
    fn reply(
        &mut self,
        conn: &mut Conn<'_>,
        phase: &mut Phase,
        request: Request,
        reply: Reply<'_>,
    ) -> Step {
        let stays = request.stays(conn);
        self.writer.write(conn, reply, Manner { head_only: request.head_only, stays });
        finish(conn, phase, request, stays)
    }

    /// Writes the head of a reply to `/bytes/N` and the first of its bytes.
    fn begin_stream(
        &mut self,
        conn: &mut Conn<'_>,
        phase: &mut Phase,
        request: Request,
        count: u64,
    ) -> Step {
        let stays = request.stays(conn);
        let reply = Reply {
            media_type: MediaType::Bytes,
            content: Content::Stream(count),
            ..Reply::text("")
        };
        self.writer.write(conn, reply, Manner { head_only: request.head_only, stays });
        let left = if request.head_only { 0 } else { count };
        *phase = Phase::Streaming { request, stays, left };
        stream(conn, phase)
    }

    /// Answers a request that cannot be served and after which no other one can.
    #[cold]
    fn refuse(
        &mut self,
        conn: &mut Conn<'_>,
        phase: &mut Phase,
        input: &mut BytesMut,
        status: Status,
    ) -> Step {
        self.write_last(conn, phase, input, status);
        conn.close();
        input.clear();
        Step::Rest
    }

    /// The last reply of a connection that ends, or is about to, in the middle of a request.
    #[cold]
    fn write_last(&mut self, conn: &mut Conn<'_>, phase: &mut Phase, input: &[u8], status: Status) {
        let head_only = match phase {
            Phase::Waiting(request) => request.head_only,
            Phase::Body(upload) => upload.request.head_only,
            // In `on_closing` there is no input to see it from.
            Phase::Head(Arrived::Part { head_only: true }) => true,
            _ => input.starts_with(b"HEAD "),
        };
        if !matches!(phase, Phase::Waiting(_)) {
            conn.begin_request();
        }
        self.writer.write(conn, Reply::of(status), Manner { head_only, stays: false });
        conn.end_request();
        self.forget_upload(phase);
        *phase = Phase::Over;
    }
}

/// Writes as much of a streamed body as the connection takes without being congested.
fn stream(conn: &mut Conn<'_>, phase: &mut Phase) -> Step {
    let Phase::Streaming { request, stays, left } = phase else { return Step::Next };
    while *left > 0 {
        if conn.is_congested() || conn.is_closing() {
            return Step::Rest;
        }
        let count = (*left).min(PATTERN.len() as u64);
        conn.write_bytes(Bytes::from_static(&PATTERN[..count as usize]));
        *left -= count;
    }
    let (request, stays) = (*request, *stays);
    finish(conn, phase, request, stays)
}

/// The reply is written.
#[inline]
fn finish(conn: &mut Conn<'_>, phase: &mut Phase, request: Request, stays: bool) -> Step {
    conn.end_request();
    *phase = if stays { Phase::Head(Arrived::Nothing) } else { Phase::Over };
    if !request.persists {
        // Otherwise the reactor ends the connection, and has the reason.
        conn.close();
    }
    Step::Next
}
