//! The least a server can do.

use bytes::BytesMut;
use wheelhouse::{Conn, Handler};

/// Sends back what it is sent.
pub(crate) struct Echo;

impl Handler for Echo {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write(input);
        input.clear();
    }
}
