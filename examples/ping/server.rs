//! The server: every line is a request, and its reply is written at once.

use std::ops::ControlFlow;

use bytes::BytesMut;
use wheelhouse::frame::{self, Lines};
use wheelhouse::{Conn, Handler};

/// Bytes of a line, its end left out.
pub(crate) const LINE_MAX: usize = 1_024;

/// Answers pings.
pub(crate) struct Server;

impl Handler for Server {
    type Session = Lines;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Lines> {
        Some(frame::lines(LINE_MAX))
    }

    /// Serves the lines that have come. If the peer does not read its replies it stops, and
    /// is called again when they have left.
    fn on_data(&mut self, conn: &mut Conn<'_>, lines: &mut Lines, input: &mut BytesMut) {
        let served = frame::each(lines, conn, input, |conn, line| {
            // Asked for each line. Behind the last one no more are served: the reactor ends the
            // connection, and has the reason.
            let _ = conn.decide_keep_alive(conn.unread());
            serve(conn, Command::parse(line));
            ControlFlow::Continue(())
        });
        if served.is_err() {
            serve(conn, Command::TooLong);
        }
    }
}

/// What a client wants.
enum Command<'a> {
    /// The text to send back, with the space before it.
    Ping(&'a [u8]),
    Quit,
    TooLong,
    Unknown,
}

impl<'a> Command<'a> {
    fn parse(line: &'a [u8]) -> Self {
        match line.strip_prefix(b"PING") {
            Some(text @ ([] | [b' ', ..])) => Self::Ping(text),
            _ if line == b"QUIT" => Self::Quit,
            _ => Self::Unknown,
        }
    }
}

fn serve(conn: &mut Conn<'_>, command: Command<'_>) {
    conn.begin_request();
    match command {
        Command::Ping(text) => {
            conn.write(b"PONG");
            conn.write(text);
            conn.write(b"\n");
        }
        Command::Quit => conn.write(b"BYE\n"),
        Command::TooLong => writeln!(conn, "ERR line longer than {LINE_MAX} bytes"),
        Command::Unknown => conn.write(b"ERR unknown command\n"),
    }
    conn.end_request();
    if !matches!(command, Command::Ping(_)) {
        conn.close();
    }
}
