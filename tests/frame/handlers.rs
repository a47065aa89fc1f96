//! `each`, `put` and bodies in handlers.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use wheelhouse::frame::{self, Error, Framing, Length, Lines, Width};
use wheelhouse::pool::{AcquireError, AcquireOptions, PoolConfig, PoolId, WaitId};
use wheelhouse::sim::{End, Sim};
use wheelhouse::{CloseReason, Closed, Config, Conn, ConnId, Context, Handler, Origin, Timeout};

/// Answers lines by what they ask for.
#[derive(Default)]
struct Server {
    served: Vec<String>,
    /// What was left when the input ended.
    rests: Vec<BytesMut>,
    ends: Vec<CloseReason>,
}

const LINE_MAX: usize = 1_000;

impl Handler for Server {
    type Session = Lines;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Lines> {
        Some(frame::lines(LINE_MAX))
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, lines: &mut Lines, input: &mut BytesMut) {
        let served = frame::each(lines, conn, input, |conn, line| {
            self.served.push(String::from_utf8_lossy(line).into_owned());
            match line {
                b"large" => conn.write(&[b'l'; 500 * 1024]),
                b"pause" => {
                    conn.pause_reading();
                    conn.set_timer(conn.now() + Duration::from_secs(1));
                }
                b"break" => {
                    conn.yield_now();
                    return ControlFlow::Break(());
                }
                b"close" => conn.close(),
                _ => conn.write(b"ok\n"),
            }
            ControlFlow::Continue(())
        });
        if let Err(error) = served {
            writeln!(conn, "ERR {error}");
            conn.close();
        }
    }

    fn on_timer(&mut self, conn: &mut Conn<'_>, _: &mut Lines) {
        conn.resume_reading();
    }

    fn on_eof(&mut self, _: &mut Conn<'_>, _: &mut Lines, input: &mut BytesMut) {
        self.rests.push(input.split());
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, _: Lines) {
        self.ends.push(closed.reason);
    }
}

fn sim() -> (Sim, wheelhouse::sim::Server<Server>) {
    let mut sim = Sim::new(1);
    let server = sim.serve("10.0.0.1:7", Config::default(), Server::default());
    (sim, server)
}

#[test]
fn a_batch_is_served_in_order_and_the_rest_waits_for_more() {
    let (mut sim, server) = sim();
    let peer = sim.connect(&server);
    peer.send(b"one\ntwo\r\nthr");
    sim.settle();
    peer.expect(b"ok\nok\n");
    peer.send(b"ee\n");
    sim.settle();
    peer.expect(b"ok\n");
    assert_eq!(server.handler().served, ["one", "two", "three"]);
}

#[test]
fn a_congested_connection_is_served_no_further_until_its_peer_reads() {
    let (mut sim, server) = sim();
    let peer = sim.connect(&server);
    peer.stop_reading();
    peer.send(b"large\nlarge\nlarge\nlast\n");
    sim.advance(Duration::from_secs(1));
    assert_eq!(server.handler().served, ["large"]);
    peer.resume_reading();
    sim.advance(Duration::from_secs(1));
    assert_eq!(server.handler().served, ["large", "large", "large", "last"]);
    assert_eq!(peer.take().len(), 3 * 500 * 1024 + 3);
}

#[test]
fn a_paused_connection_is_served_further_when_it_resumes() {
    let (mut sim, server) = sim();
    let peer = sim.connect(&server);
    peer.send(b"pause\nlast\n");
    sim.advance(Duration::from_millis(900));
    assert_eq!(server.handler().served, ["pause"]);
    sim.advance(Duration::from_millis(200));
    assert_eq!(server.handler().served, ["pause", "last"]);
}

#[test]
fn a_break_leaves_the_rest_for_later() {
    let (mut sim, server) = sim();
    let peer = sim.connect(&server);
    peer.send(b"break\nbreak\nlast\n");
    sim.settle();
    assert_eq!(server.handler().served, ["break", "break", "last"]);
    peer.expect(b"ok\n");
}

#[test]
fn nothing_is_served_behind_a_close() {
    let (mut sim, server) = sim();
    let peer = sim.connect(&server);
    peer.send(b"one\nclose\ntwo\n");
    sim.settle();
    assert_eq!(server.handler().served, ["one", "close"]);
    assert_eq!((peer.take(), peer.closed()), (b"ok\n".to_vec(), Some(End::Fin)));
}

#[test]
fn what_comes_before_an_error_is_served() {
    let (mut sim, server) = sim();
    let peer = sim.connect(&server);
    peer.send(&[&b"one\n"[..], &[b'x'; 2 * LINE_MAX]].concat());
    sim.settle();
    peer.expect(b"ok\nERR a message of more than 1000 bytes\n");
    assert_eq!(server.handler().served, ["one"]);
}

#[test]
fn a_line_without_its_end_is_none() {
    let (mut sim, server) = sim();
    let peer = sim.connect(&server);
    peer.send(b"delete a\ndelete all");
    peer.half_close();
    sim.settle();
    assert_eq!(server.handler().served, ["delete a"]);
    assert_eq!(server.handler().rests, [&b"delete all"[..]]);
}

#[test]
fn a_line_that_never_ends_has_the_time_of_a_request() {
    let (mut sim, server) = sim();
    let peer = sim.connect(&server);
    peer.drip(&[b'x'; 900], Duration::from_millis(100));
    sim.advance(Duration::from_secs(40));
    assert_eq!(server.handler().ends, [CloseReason::Timeout(Timeout::Request)]);
}

const LENGTHS: Length = frame::length(Width::U16, 60_000);

/// Sends messages back.
struct Echo;

impl Handler for Echo {
    type Session = Length;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Length> {
        Some(LENGTHS)
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, lengths: &mut Length, input: &mut BytesMut) {
        let reply = *lengths;
        let served = frame::each(lengths, conn, input, |conn, payload| {
            let written = if payload.len() > 1_000 {
                frame::put_bytes(conn, &reply, Bytes::copy_from_slice(payload))
            } else {
                frame::put(conn, &reply, payload)
            };
            written.expect("what was received is short enough");
            ControlFlow::Continue(())
        });
        if served.is_err() {
            conn.abort();
        }
    }
}

fn message(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u16).to_be_bytes()[..], payload].concat()
}

#[test]
fn what_is_put_is_a_message() {
    let mut sim = Sim::new(1);
    let server = sim.serve("10.0.0.1:7", Config::default(), Echo);
    let peer = sim.connect(&server);
    let all = [message(b"short"), message(b""), message(&[7; 50_000])].concat();
    peer.send(&all);
    sim.settle();
    peer.expect(&all);
}

#[test]
#[cfg_attr(
    debug_assertions,
    should_panic(expected = "a message may take 60002 bytes, which limits.input_max (1024)")
)]
fn a_message_that_can_never_be_whole_is_the_fault_of_the_program() {
    let mut config = Config::default();
    config.limits.input_max = 1_024;
    let mut sim = Sim::new(1);
    let server = sim.serve("10.0.0.1:7", config, Echo);
    let peer = sim.connect(&server);
    peer.send(&message(b"short"));
    sim.settle();
    // In release builds no message is served, as a long one could not be.
    assert_eq!(peer.closed(), Some(End::Reset));
}

/// Writes what a client asks for into one line.
struct Teller;

impl Handler for Teller {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        let lines = frame::lines(100);
        match frame::put(conn, &lines, input) {
            Err(Error::BadEnd) => conn.write(b"no line\n"),
            Err(Error::TooLong { .. }) => conn.write(b"too long\n"),
            _ => {}
        }
        input.clear();
    }
}

#[test]
fn nothing_is_written_of_what_cannot_be_a_message() {
    let mut sim = Sim::new(1);
    let server = sim.serve("10.0.0.1:7", Config::default(), Teller);
    let peer = sim.connect(&server);
    for (payload, reply) in
        [(&b"a\nb"[..], &b"no line\n"[..]), (&[b'x'; 101], b"too long\n"), (b"ab", b"ab\n")]
    {
        peer.send(payload);
        sim.settle();
        peer.expect(reply);
    }
    assert_eq!(frame::lines(100).greatest(), 102);
}

/// Does to its connection what a line asks for, and notes what it is given.
#[derive(Default)]
struct Turns {
    taken: Vec<String>,
}

impl Handler for Turns {
    type Session = Lines;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Lines> {
        Some(frame::lines(100))
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, lines: &mut Lines, input: &mut BytesMut) {
        let served = frame::each(lines, conn, input, |conn, line| {
            self.taken.push(String::from_utf8_lossy(line).into_owned());
            match line {
                b"await" => conn.expect_input(12),
                b"skip" => conn.skip(5),
                b"relay" => {
                    let others = conn.cx().ids();
                    let other = others.into_iter().find(|id| *id != conn.id()).unwrap();
                    assert!(conn.relay_with(other));
                }
                _ => {
                    conn.begin_request();
                    let stays = conn.decide_keep_alive(conn.unread()).stays();
                    conn.write(if stays { b"stay\n" } else { b"bye\n" });
                    conn.end_request();
                }
            }
            ControlFlow::Continue(())
        });
        assert_eq!(served, Ok(()));
    }
}

/// Says of each line how much lies behind it, and at the end how much lies behind them all.
struct Tells;

impl Handler for Tells {
    type Session = Lines;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Lines> {
        Some(frame::lines(LINE_MAX))
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, lines: &mut Lines, input: &mut BytesMut) {
        let served = frame::each(lines, conn, input, |conn, line| {
            assert_ne!(line, b"panic");
            if line == b"nest" {
                let nested = &mut BytesMut::from("x\n");
                let goes_on = |_: &mut Conn<'_>, _: &[u8]| ControlFlow::Continue(());
                frame::each(&mut frame::lines(LINE_MAX), conn, nested, goes_on).unwrap();
            }
            let unread = conn.unread();
            writeln!(conn, "{unread}");
            if line == b"break" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(served, Ok(()));
        let unread = conn.unread();
        writeln!(conn, "end {unread}");
    }
}

#[test]
fn a_message_knows_how_much_lies_behind_it() {
    let mut sim = Sim::new(1);
    sim.allow_panics();
    let server = sim.serve("10.0.0.1:7", Config::default(), Tells);
    let peer = sim.connect(&server);
    peer.send(b"a\nbb\nccc\npart");
    sim.settle();
    peer.expect(b"11\n8\n4\nend 0\n");
    peer.send(b"\nnest\nbreak\nleft\n");
    sim.settle();
    peer.expect(b"16\n11\n5\nend 0\n");
    let panics = sim.connect(&server);
    panics.send(b"panic\na\n");
    sim.settle();
    assert_eq!(server.stats().panics, 1);
    let other = sim.connect(&server);
    other.send(b"part");
    sim.settle();
    other.expect(b"end 0\n");
}

fn turns(config: Config) -> (Sim, wheelhouse::sim::Server<Turns>) {
    let mut sim = Sim::new(1);
    let server = sim.serve("10.0.0.1:7", config, Turns::default());
    (sim, server)
}

#[test]
fn nothing_is_served_behind_the_last_request() {
    let mut config = Config::default();
    config.limits.requests_max = Some(2);
    let (mut sim, server) = turns(config);
    let peer = sim.connect(&server);
    peer.send(b"a\nb\nc\nd\n");
    sim.settle();
    assert_eq!(server.handler().taken, ["a", "b"]);
    assert_eq!((peer.take(), peer.closed()), (b"stay\nbye\n".to_vec(), Some(End::Fin)));
}

#[test]
fn what_is_skipped_or_awaited_is_not_served_first() {
    let (mut sim, server) = turns(Config::default());
    let peer = sim.connect(&server);
    peer.send(b"skip\nabcd\none\n");
    sim.settle();
    assert_eq!(server.handler().taken, ["skip", "one"]);
    peer.send(b"await\ntwo\nthree");
    sim.settle();
    assert_eq!(server.handler().taken, ["skip", "one", "await"]);
    peer.send(b"33\nfour");
    sim.settle();
    assert_eq!(server.handler().taken, ["skip", "one", "await", "two", "three33"]);
}

#[test]
fn what_lies_behind_the_begin_of_a_relay_is_passed_on() {
    let (mut sim, server) = turns(Config::default());
    let [one, other] = [(); 2].map(|()| sim.connect(&server));
    sim.settle();
    one.send(b"relay\na\nb\n");
    sim.settle();
    one.send(b"c\n");
    sim.settle();
    assert_eq!(server.handler().taken, ["relay"]);
    other.expect(b"a\nb\nc\n");
}

/// Sends each line to a server over a lease, and its first reply back.
#[derive(Default)]
struct Front {
    pool: Option<PoolId>,
    replies: Vec<String>,
    ends: Vec<CloseReason>,
}

impl Handler for Front {
    type Session = Lines;

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let config = PoolConfig::default();
        self.pool = Some(cx.add_pool("10.0.0.2:9", &config).unwrap());
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Lines> {
        Some(frame::lines(100))
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, lines: &mut Lines, input: &mut BytesMut) {
        let pool = self.pool.unwrap();
        let served = frame::each(lines, conn, input, |conn, line| {
            if conn.origin() == Origin::Pool(pool) {
                self.replies.push(String::from_utf8_lossy(line).into_owned());
                conn.end_request();
                let (id, owner) = (conn.id(), conn.owner().unwrap());
                let mut client = conn.other(owner).unwrap();
                client.end_request();
                client.release(id);
            } else {
                conn.begin_request();
                conn.acquire(pool, AcquireOptions::default()).unwrap();
            }
            ControlFlow::Continue(())
        });
        assert_eq!(served, Ok(()));
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        _: &mut Lines,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let mut upstream = conn.other(lease.unwrap()).unwrap();
        upstream.begin_request();
        upstream.write(b"ask\n");
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, _: Lines) {
        self.ends.push(closed.reason);
    }
}

#[test]
fn what_follows_the_reply_over_a_lease_that_is_given_back_is_no_reply() {
    let mut sim = Sim::new(1);
    let upstream = sim.listen("10.0.0.2:9", 8);
    let server = sim.serve("10.0.0.1:7", Config::default(), Front::default());
    let peer = sim.connect(&server);
    peer.send(b"go\n");
    sim.settle();
    let upstream = upstream.accept().unwrap();
    upstream.expect(b"ask\n");
    upstream.send(b"reply\nstray\n");
    sim.settle();
    assert_eq!(server.handler().replies, ["reply"]);
    assert_eq!(server.handler().ends, [CloseReason::PoolUnclean]);
}
