//! The ways of writing: in which order bytes leave, and what becomes of the buffer they came in.

use super::*;

with_each_personality! {
    a_buffer_is_written_in_its_turn_and_left_empty,
    a_buffer_is_exchanged_for_one_of_about_its_size,
    a_buffer_that_is_written_to_another_connection_is_copied,
    a_buffer_behind_the_end_is_dropped_and_counted,
    a_buffer_that_was_written_before_a_panic_is_counted,
}

const SIZES: [usize; 6] = [0, 1, 4_095, 4_096, 40_000, 100_000];

/// Bytes that differ from call to call.
fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + seed * 31) as u8).collect()
}

/// Runs `write` once, in `on_data` of the first connection that says something.
struct Once<F>(Option<F>, usize);

impl<F: FnOnce(&mut Conn<'_>, &mut BytesMut)> Handler for Once<F> {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        self.1 += input.len();
        match self.0.take() {
            Some(write) => write(conn, input),
            None => input.clear(),
        }
    }
}

fn a_buffer_is_written_in_its_turn_and_left_empty() {
    for first in SIZES {
        for second in SIZES {
            let mut sim = world(1);
            let server = sim.serve(
                SERVER,
                Config::default(),
                Once(
                    Some(move |conn: &mut Conn<'_>, input: &mut BytesMut| {
                        for (seed, len) in [first, second].into_iter().enumerate() {
                            let mut buffer = BytesMut::from(&bytes(len, seed)[..]);
                            conn.write_buf(&mut buffer);
                            assert!(buffer.is_empty());
                            conn.write(b"between");
                        }
                        conn.write_buf(input);
                        assert!(input.is_empty());
                        conn.write_bytes(bytes(5_000, 9));
                    }),
                    0,
                ),
            );
            let peer = sim.connect(SERVER);
            peer.send(&bytes(6_000, 3));
            sim.settle();
            // What else comes is read into a buffer as good as any.
            peer.send(&bytes(50_000, 4));
            sim.settle();
            let expected = [
                &bytes(first, 0)[..],
                b"between",
                &bytes(second, 1),
                b"between",
                &bytes(6_000, 3),
                &bytes(5_000, 9),
            ];
            assert_eq!(peer.take(), expected.concat(), "{first} and {second}");
            assert_eq!(server.handler().1, 56_000);
        }
    }
}

fn a_buffer_is_exchanged_for_one_of_about_its_size() {
    for len in [5_000, 30_000, 60_000] {
        for rounds in [1, 2, 5] {
            let mut sim = world(1);
            let write = move |conn: &mut Conn<'_>, input: &mut BytesMut| {
                input.clear();
                // The loop's buffer grows to what is written into it.
                conn.write(&bytes(40_000, 1));
                let mut buffer = BytesMut::from(&bytes(len, 2)[..]);
                for _ in 0..rounds {
                    buffer.clear();
                    buffer.extend_from_slice(&bytes(len, 2));
                    conn.write_buf(&mut buffer);
                    assert!(buffer.capacity() <= 2 * len, "{} for {len}", buffer.capacity());
                }
            };
            let server = sim.serve(SERVER, Config::default(), Once(Some(write), 0));
            let peer = sim.connect(SERVER);
            for _ in 0..2 {
                peer.send(b"x");
                sim.settle();
            }
            assert_eq!(peer.take().len(), 40_000 + rounds * len);
            assert_eq!(server.stats().buffered, 0);
        }
    }
}

fn a_buffer_that_is_written_to_another_connection_is_copied() {
    struct Forward(Vec<ConnId>);
    impl Handler for Forward {
        type Session = ();
        fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
            self.0.push(conn.id());
            Some(())
        }
        fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
            let other = self.0.iter().copied().find(|id| *id != conn.id());
            let mut other = conn.other(other.expect("there are two")).expect("it is open");
            other.write_buf(input);
            assert!(input.is_empty());
        }
    }
    let mut sim = world(1);
    sim.serve(SERVER, Config::default(), Forward(Vec::new()));
    let (from, to) = (sim.connect(SERVER), sim.connect(SERVER));
    sim.settle();
    for seed in 0..3 {
        from.send(&bytes(10_000, seed));
        sim.settle();
        to.expect(&bytes(10_000, seed));
    }
    assert!(from.take().is_empty());
}

fn a_buffer_behind_the_end_is_dropped_and_counted() {
    for len in [1, 10_000] {
        let mut sim = world(1);
        let write = move |conn: &mut Conn<'_>, input: &mut BytesMut| {
            input.clear();
            conn.write(b"last");
            conn.close();
            let mut buffer = BytesMut::from(&bytes(len, 0)[..]);
            conn.write_buf(&mut buffer);
            assert!(buffer.is_empty());
        };
        let server = sim.serve(SERVER, Config::default(), Once(Some(write), 0));
        let peer = sim.connect(SERVER);
        peer.send(b"x");
        sim.settle();
        peer.expect(b"last");
        assert_eq!(server.stats().unsent, len as u64);
    }
}

fn a_buffer_that_was_written_before_a_panic_is_counted() {
    let mut sim = world(1);
    sim.allow_panics();
    let write = |conn: &mut Conn<'_>, input: &mut BytesMut| {
        conn.write_buf(input);
        panic!("as the test wants");
    };
    let server = sim.serve(SERVER, Config::default(), Once(Some(write), 0));
    let peer = sim.connect(SERVER);
    peer.send(&bytes(10_000, 0));
    sim.settle();
    assert_eq!(server.stats().closed(CloseReason::HandlerPanic), 1);
    assert_eq!(server.stats().unsent, 10_000);
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.settle();
    assert_eq!(server.handler().1, 10_001);
}
