//! What most tests in a simulated world need: an address, durations, and the least server.
#![allow(dead_code, unused_imports, reason = "not every program needs all of it")]

#[path = "../harness/shorthands.rs"]
mod shorthands;

use bytes::BytesMut;
use wheelhouse::sim::{Server, Sim};
use wheelhouse::{CloseReason, Config, Conn, Handler};

pub(crate) use self::shorthands::{millis, secs, with_places};

/// Where the server is, unless a test needs more than one.
pub(crate) const SERVER: &str = "10.0.0.1:7";

/// Sends back what it reads.
pub(crate) struct Echo;

impl Handler for Echo {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write_buf(input);
    }
}

/// A server that echoes, with the default settings.
pub(crate) fn serve_echo(sim: &mut Sim) -> Server<Echo> {
    sim.serve(SERVER, Config::default(), Echo)
}

/// Why connections ended since this was last asked, in order.
pub(crate) fn reasons<H: Handler>(server: &Server<H>) -> Vec<CloseReason> {
    server.take_closed().iter().map(|closed| closed.reason).collect()
}

/// Checks that a client that comes now is served.
pub(crate) fn expect_service<H: Handler>(sim: &mut Sim, server: &Server<H>) {
    let peer = sim.connect(server);
    peer.send(b"n");
    sim.advance(secs(3));
    peer.expect(b"n");
}
