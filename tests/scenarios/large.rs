//! A handler with replies that a slow reader takes a while to read.

use bytes::BytesMut;
use wheelhouse::{Conn, ConnId, Handler};

use crate::scenarios::pattern;

const REPLY: usize = 100_000;

/// The large reply.
pub(crate) fn reply() -> Vec<u8> {
    pattern(REPLY)
}

/// Answers `r` with the large reply, and ends the connection in the way that other bytes name.
#[derive(Default)]
pub(crate) struct Large {
    pub(crate) pings: u32,
    pub(crate) ids: Vec<ConnId>,
}

impl Handler for Large {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.ids.push(conn.id());
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        for byte in input.split().iter() {
            match byte {
                b'r' => conn.write(&reply()),
                b'k' => {
                    let _ = conn.decide_keep_alive(0).stays();
                    conn.write(&reply());
                }
                b'c' => conn.close(),
                b'f' => conn.shutdown_write(),
                b't' => conn.tunnel(),
                _ => {}
            }
        }
    }

    fn on_health_check(&mut self, _: &mut Conn<'_>, (): &mut ()) {
        self.pings += 1;
    }
}
