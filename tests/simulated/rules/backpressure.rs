//! Reading that is paused, by the handler and by congestion.

use super::*;

with_each_personality! {
    a_pause_outlasts_congestion,
    input_is_kept_behind_on_drained_when_its_length_is_expected_no_more,
}

/// Pauses and is congested at once.
fn a_pause_outlasts_congestion() {
    struct Both {
        data: u32,
    }
    impl Handler for Both {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }
        fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
            self.data += 1;
            input.clear();
            if self.data == 1 {
                conn.write_bytes(vec![b'x'; 1 << 20]);
                conn.pause_reading();
                conn.set_timer(conn.now() + secs(10));
            }
        }
        fn on_timer(&mut self, conn: &mut Conn<'_>, _: &mut ()) {
            conn.resume_reading();
        }
    }
    let mut sim = world(1);
    sim.set_buffers(8_192, 8_192);
    let server = sim.serve(SERVER, Config::default(), Both { data: 0 });
    let peer = sim.connect(SERVER);
    peer.send(b"a");
    sim.settle();
    peer.send(b"b");
    sim.advance(secs(5));
    assert_eq!(peer.take().len(), 1 << 20);
    assert_eq!(server.handler().data, 1, "it has drained, and is paused all the same");
    sim.advance(secs(6));
    assert_eq!(server.handler().data, 2);
}

/// Expects a length of input, answers with much, and expects the length no more when its timer comes.
struct Expecting;

impl Handler for Expecting {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        if input.len() > 1 {
            return conn.write(&input.split());
        }
        conn.write(&[b'x'; 1 << 20]);
        conn.expect_input(100);
        conn.set_timer(conn.now() + secs(1));
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        conn.expect_input(0);
    }
}

fn input_is_kept_behind_on_drained_when_its_length_is_expected_no_more() {
    let mut sim = world(1);
    let _server = sim.serve(SERVER, Config::default(), Expecting);
    let peer = sim.connect(SERVER);
    peer.send(b"a");
    sim.advance(secs(2));
    assert_eq!(peer.take().len(), 1 << 20);
    // The next call comes with the next input.
    peer.send(b"b");
    sim.settle();
    assert_eq!(peer.take(), b"ab");
}
