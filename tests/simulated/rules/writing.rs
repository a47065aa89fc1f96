//! The ways of writing: in which order bytes leave, and what becomes of the buffer they came in.

use super::*;

with_each_personality! {
    a_buffer_is_written_in_its_turn_and_left_empty,
    input_is_sent_from_where_it_was_read,
    a_buffer_of_the_handler_stays_with_it,
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

fn input_is_sent_from_where_it_was_read() {
    struct Where(Vec<usize>);
    impl Handler for Where {
        type Session = ();
        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            Some(())
        }
        fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
            self.0.push(input.as_ptr().addr());
            conn.write_buf(input);
        }
    }
    for (len, exchanged) in [(4_095, false), (4_096, true), (50_000, true)] {
        let mut sim = world(1);
        let server = sim.serve(SERVER, Config::default(), Where(Vec::new()));
        let peer = sim.connect(SERVER);
        for seed in 0..6 {
            peer.send(&bytes(len, seed));
            sim.settle();
            peer.expect(&bytes(len, seed));
        }
        // The two buffers of the loop take turns.
        let places = &server.handler().0;
        assert_eq!(places.len(), 6);
        assert_eq!(places[1] != places[2], exchanged, "{len}");
        assert!((1..4).all(|at| places[at] == places[at + 2]), "{len}: {places:?}");
    }
}

fn a_buffer_of_the_handler_stays_with_it() {
    let mut sim = world(1);
    let write = |conn: &mut Conn<'_>, input: &mut BytesMut| {
        input.clear();
        let mut whole = BytesMut::from(&bytes(1 << 20, 1)[..]);
        let mut part = whole.split_to(10_000);
        for buffer in [&mut part, &mut whole] {
            buffer.truncate(10_000);
            let (at, capacity) = (buffer.as_ptr(), buffer.capacity());
            conn.write_buf(buffer);
            assert!(buffer.is_empty());
            assert_eq!((buffer.as_ptr(), buffer.capacity()), (at, capacity));
        }
    };
    sim.serve(SERVER, Config::default(), Once(Some(write), 0));
    let peer = sim.connect(SERVER);
    peer.send(b"x");
    sim.settle();
    peer.expect(&bytes(1 << 20, 1)[..20_000]);
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
