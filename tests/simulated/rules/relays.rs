//! Connections between which the reactor passes bytes on.

use super::*;
use crate::relayed::{Relay, UPSTREAM, pair, proxy};
use crate::scenarios::pattern;

with_each_personality! {
    bytes_are_passed_on_in_both_directions,
    what_the_handler_left_and_wrote_comes_first,
    what_is_left_when_a_relay_begins_in_on_drained_is_passed_on,
    what_is_left_when_a_relay_begins_is_passed_on_beyond_the_output_limit,
    an_end_that_came_before_is_passed_on,
    a_half_close_is_passed_on_from_either_side,
    a_slow_side_holds_the_other_and_little_is_kept,
    a_side_that_takes_nothing_ends_both,
    one_side_that_is_gone_for_good_ends_both_after_silence,
    a_slow_download_over_a_half_closed_relay_lives,
    silence_ends_both,
    a_reset_is_passed_on_behind_the_bytes_before_it,
    what_came_before_a_failed_write_is_passed_on_whole,
    what_came_before_a_fin_that_cannot_be_sent_is_passed_on_whole,
    a_broken_side_waits_no_longer_than_the_other_may_take,
    a_broken_side_ends_with_the_other,
    a_broken_side_that_is_closed_presents_no_part_as_the_whole,
    a_broken_side_whose_end_was_passed_on_was_whole,
    what_a_handler_does_to_one_side_happens_to_both,
    a_write_to_a_side_goes_between_what_is_passed_on,
    a_pause_holds_one_direction,
    a_callback_that_panics_begins_no_relay,
    a_relay_is_possible_only_between_two_that_stand,
    a_shutdown_waits_for_a_relay_until_its_deadline,
    a_reader_of_much_leaves_others_their_turns,
}

/// The most that a relay holds of each direction: what one read brought.
const HELD_MAX: u64 = 65_536 + 2_048;

fn relay(sim: &mut Sim, config: Config) -> (Server<Relay>, Peer, Peer) {
    let (server, listener) = proxy(sim, config, Relay::default());
    let (client, upstream) = pair(sim, &server, &listener);
    (server, client, upstream)
}

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

/// Why connections ended, in the order of their labels.
fn ends(server: &Server<Relay>) -> Vec<CloseReason> {
    let mut reasons = reasons(server);
    reasons.sort_by_key(|reason| reason.label());
    reasons
}

fn bytes_are_passed_on_in_both_directions() {
    let mut sim = world(1);
    let (server, client, upstream) = relay(&mut sim, Config::default());
    let (up, down) = (pattern(300_000), pattern(500_001));
    client.send(&up);
    upstream.send(&down);
    sim.advance(secs(1));
    upstream.expect(&up);
    client.expect(&down);
    let stats = server.stats();
    assert_eq!((stats.bytes_in, stats.bytes_out), (800_001, 800_001));
    assert_eq!((stats.relays, stats.requests), (1, 0));
    assert_eq!(server.handler().stray, 0);
    let (a, b) = server.handler().pairs[0];
    server.with(|_, cx| {
        assert_eq!(cx.conn(a).unwrap().relayed_with(), Some(b));
        assert_eq!(cx.conn(b).unwrap().relayed_with(), Some(a));
        assert_eq!(cx.conn(b).unwrap().state(), State::Connected);
    });
}

fn what_the_handler_left_and_wrote_comes_first() {
    let mut sim = world(1);
    let relay = Relay { reads_line: true, greeting: b"hello\n".to_vec(), ..Relay::default() };
    let (server, listener) = proxy(&mut sim, Config::default(), relay);
    let client = sim.connect(&server);
    client.send(b"to b\nthe rest");
    sim.settle();
    client.send(b", and more");
    client.half_close();
    sim.advance(secs(1));
    let upstream = listener.accept().unwrap();
    upstream.send(b"reply");
    sim.advance(secs(1));
    upstream.expect(b"line\nthe rest, and more");
    assert_eq!(upstream.closed(), Some(End::Fin));
    client.expect(b"hello\nreply");
}

/// Answers the first bytes of its second connection with much, and begins a relay with the first one when
/// that has left.
#[derive(Default)]
struct Later {
    first: Option<ConnId>,
    got: Vec<u8>,
}

impl Handler for Later {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.first.get_or_insert_with(|| conn.id());
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        if self.got.is_empty() {
            self.got.extend_from_slice(&input.split_to(4));
            conn.write(&[b'!'; 100_000]);
        } else {
            self.got.extend_from_slice(&input.split());
        }
    }

    fn on_drained(&mut self, conn: &mut Conn<'_>, (): &mut ()) {
        assert!(conn.relay_with(self.first.unwrap()));
    }
}

fn what_is_left_when_a_relay_begins_in_on_drained_is_passed_on() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Later::default());
    let [first, second] = [(); 2].map(|()| sim.connect(SERVER));
    sim.settle();
    second.send(b"muchrest");
    sim.advance(secs(1));
    second.expect(&[b'!'; 100_000]);
    first.expect(b"rest");
    assert_eq!(server.with(|later, _| later.got.clone()), b"much");
}

/// Leaves all input.
struct Leaving;

impl Handler for Leaving {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    fn on_data(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {}
}

fn what_is_left_when_a_relay_begins_is_passed_on_beyond_the_output_limit() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, config(|it| it.limits.output_max = 1_000), Leaving);
    let [reader, sender] = [(); 2].map(|()| sim.connect(SERVER));
    reader.stop_reading();
    sender.send(b"rest");
    sim.settle();
    let ids = server.with(|_, cx| cx.ids());
    let queued = |at: usize| server.with(|_, cx| cx.conn(ids[at]).unwrap().queued());
    server.with(|_, cx| cx.conn(ids[0]).unwrap().write(&[b'!'; 1_000_000]));
    sim.settle();
    let before = queued(0);
    assert!(before > 1_000, "{before}");
    server.with(|_, cx| assert!(cx.conn(ids[0]).unwrap().relay_with(ids[1])));
    sim.settle();
    assert_eq!(queued(0), before + 4);
    reader.resume_reading();
    sim.settle();
    let mut all = vec![b'!'; 1_000_000];
    all.extend_from_slice(b"rest");
    reader.expect(&all);
}

fn an_end_that_came_before_is_passed_on() {
    let mut sim = world(1);
    let (server, listener) = proxy(&mut sim, Config::default(), Relay::default());
    let client = sim.connect(&server);
    client.send(b"request");
    client.half_close();
    sim.advance(millis(100));
    let upstream = listener.accept().unwrap();
    upstream.expect(b"request");
    assert_eq!(upstream.closed(), Some(End::Fin));
    upstream.send(b"reply");
    upstream.close();
    sim.advance(millis(100));
    client.expect(b"reply");
    assert_eq!(client.closed(), Some(End::Fin));
    assert_eq!(ends(&server), [CloseReason::PeerEof; 2]);
}

fn a_half_close_is_passed_on_from_either_side() {
    for side in [0, 1] {
        let mut sim = world(1);
        let (server, client, upstream) = relay(&mut sim, Config::default());
        let ends_of = [client, upstream];
        let (first, second) = (&ends_of[side], &ends_of[1 - side]);
        let long = pattern(400_000);
        first.send(&long);
        first.half_close();
        sim.advance(secs(1));
        second.expect(&long);
        assert_eq!(second.closed(), Some(End::Fin), "behind all bytes");
        // The other direction goes on.
        for _ in 0..50 {
            second.send(b"more");
            sim.advance(secs(7));
        }
        first.expect(&b"more".repeat(50));
        assert_eq!(server.connections(), 2);
        second.half_close();
        sim.advance(secs(1));
        assert_eq!(first.closed(), Some(End::Fin));
        assert_eq!(ends(&server), [CloseReason::PeerEof; 2]);
    }
}

fn a_slow_side_holds_the_other_and_little_is_kept() {
    let mut sim = world(1);
    sim.set_buffers(16_384, 16_384);
    let (server, client, upstream) = relay(&mut sim, Config::default());
    client.read_at(10_000);
    let long = pattern(1_000_000);
    upstream.send(&long);
    let (mut most, mut steps) = (0, 0);
    while client.received().len() < long.len() {
        sim.advance(secs(1));
        most = most.max(server.stats().buffered);
        steps += 1;
        assert!(steps < 300, "it goes on");
    }
    assert!(most > 0 && most <= HELD_MAX, "{most}");
    assert!(steps > 90, "no faster than the client reads: {steps}");
    client.expect(&long);
    assert_eq!(server.stats().buffered, 0);
}

fn a_side_that_takes_nothing_ends_both() {
    let mut sim = world(1);
    sim.set_buffers(16_384, 16_384);
    let (server, client, upstream) =
        relay(&mut sim, config(|config| config.timeouts.write = Some(secs(20))));
    client.stop_reading();
    upstream.send(&pattern(1_000_000));
    sim.advance(secs(18));
    assert_eq!(server.connections(), 2);
    let read = server.stats().bytes_in;
    assert!(read < 200_000, "the source is not read: {read}");
    sim.advance(secs(6));
    let broken = [CloseReason::RelayBroken, CloseReason::Timeout(Timeout::Write)];
    assert_eq!(ends(&server), broken);
    assert_eq!(upstream.closed(), Some(End::Reset));
}

fn one_side_that_is_gone_for_good_ends_both_after_silence() {
    for side in [0, 1] {
        let mut sim = world(1);
        let (server, client, upstream) =
            relay(&mut sim, config(|config| config.timeouts.half_closed = Some(secs(10))));
        let ends_of = [client, upstream];
        let (gone, stays) = (&ends_of[side], &ends_of[1 - side]);
        gone.send(b"a line\n");
        gone.half_close();
        sim.advance(secs(6));
        stays.expect(b"a line\n");
        // A byte puts it off.
        stays.send(b"x");
        sim.advance(secs(9));
        assert_eq!(server.connections(), 2);
        sim.advance(secs(4));
        assert_eq!(server.connections(), 0);
        let half_closed = CloseReason::Timeout(Timeout::HalfClosed);
        assert!(reasons(&server).contains(&half_closed));
    }
}

fn a_slow_download_over_a_half_closed_relay_lives() {
    let mut sim = world(1);
    sim.set_buffers(65_536, 65_536);
    let (server, client, upstream) = relay(
        &mut sim,
        config(|config| {
            config.timeouts.half_closed = Some(secs(3));
            config.timeouts.tunnel = Some(secs(4));
        }),
    );
    client.send(b"get");
    client.half_close();
    client.read_at(2_000);
    let long = pattern(300_000);
    upstream.send(&long);
    upstream.half_close();
    sim.advance(secs(170));
    client.expect(&long);
    assert_eq!(client.closed(), Some(End::Fin));
    assert_eq!(ends(&server), [CloseReason::PeerEof; 2]);
}

fn silence_ends_both() {
    let mut sim = world(1);
    let (server, client, upstream) =
        relay(&mut sim, config(|config| config.timeouts.tunnel = Some(secs(30))));
    for _ in 0..10 {
        // One direction counts for both.
        client.send(b"x");
        sim.advance(secs(20));
    }
    assert_eq!(server.connections(), 2);
    sim.advance(secs(12));
    assert_eq!((client.closed(), upstream.closed()), (Some(End::Fin), Some(End::Fin)));
    upstream.close();
    sim.advance(secs(1));
    let silent = CloseReason::Timeout(Timeout::Tunnel);
    assert_eq!(ends(&server), [CloseReason::RelayEnded, silent]);
}

fn a_reset_is_passed_on_behind_the_bytes_before_it() {
    for side in [0, 1] {
        let mut sim = world(1);
        sim.set_buffers(8_192, 8_192);
        let (server, client, upstream) = relay(&mut sim, Config::default());
        let ends_of = [client, upstream];
        let (gone, stays) = (&ends_of[side], &ends_of[1 - side]);
        stays.read_at(5_000);
        let bytes = pattern(16_000);
        gone.send(&bytes);
        sim.advance(millis(200));
        gone.reset();
        sim.advance(secs(30));
        let got = stays.take();
        assert!(bytes.starts_with(&got) && got.len() > 8_192, "{}", got.len());
        assert_eq!(stays.closed(), Some(End::Reset));
        assert_eq!(ends(&server), [CloseReason::PeerReset, CloseReason::RelayBroken]);
    }
}

/// A pair of which one side sends much at once and the other takes little: `gone` is the index of the
/// first.
fn uneven(sim: &mut Sim, config: Config, gone: usize) -> (Server<Relay>, [Peer; 2]) {
    let (server, listener) = proxy(sim, config, Relay::default());
    let size = |side| if side == gone { 1 << 19 } else { 16_384 };
    sim.set_buffers(size(0), size(0));
    let client = sim.connect(&server);
    sim.set_buffers(size(1), size(1));
    sim.settle();
    (server, [client, listener.accept().unwrap()])
}

/// Lets one side send `bytes` and reset, while the other takes what its buffers hold.
fn break_while_held(sim: &mut Sim, [gone, stays]: [&Peer; 2], bytes: &[u8]) {
    stays.stop_reading();
    gone.send(bytes);
    sim.advance(millis(100));
    gone.reset();
    sim.advance(millis(100));
}

fn what_came_before_a_failed_write_is_passed_on_whole() {
    let (bytes, more) = (pattern(400_000), pattern(200_000));
    for side in [0, 1] {
        for held in [false, true] {
            let mut sim = world(1);
            let (server, ends_of) = uneven(&mut sim, Config::default(), side);
            let (gone, stays) = (&ends_of[side], &ends_of[1 - side]);
            if held {
                break_while_held(&mut sim, [gone, stays], &bytes);
                stays.read_at(100_000);
            } else {
                // All of it is there at once, and the write fails between two reads.
                gone.send(&bytes);
                gone.reset();
            }
            // Its sender is not kept from reading.
            stays.send(&more);
            let mut most = 0;
            for _ in 0..100 {
                sim.advance(millis(100));
                most = most.max(server.stats().buffered);
            }
            assert!(most <= HELD_MAX, "{most}");
            stays.expect(&bytes);
            assert_eq!(stays.closed(), Some(End::Reset));
            assert_eq!(ends(&server), [CloseReason::PeerReset, CloseReason::RelayBroken]);
            assert!(!held || server.stats().unsent == more.len() as u64, "{:?}", server.stats());
        }
    }
}

fn what_came_before_a_fin_that_cannot_be_sent_is_passed_on_whole() {
    let bytes = pattern(400_000);
    for side in [0, 1] {
        let mut sim = world(1);
        let (server, ends_of) = uneven(&mut sim, Config::default(), side);
        let (gone, stays) = (&ends_of[side], &ends_of[1 - side]);
        break_while_held(&mut sim, [gone, stays], &bytes);
        stays.half_close();
        sim.advance(millis(100));
        assert_eq!(server.connections(), 2);
        stays.resume_reading();
        sim.advance(secs(1));
        stays.expect(&bytes);
        assert_eq!(stays.closed(), Some(End::Reset));
        assert_eq!(ends(&server), [CloseReason::PeerReset, CloseReason::RelayBroken]);
    }
}

fn a_broken_side_waits_no_longer_than_the_other_may_take() {
    for side in [0, 1] {
        let mut sim = world(1);
        let write = config(|config| config.timeouts.write = Some(secs(20)));
        let (server, ends_of) = uneven(&mut sim, write, side);
        let (gone, stays) = (&ends_of[side], &ends_of[1 - side]);
        break_while_held(&mut sim, [gone, stays], &pattern(400_000));
        stays.send(b"x");
        // What it takes puts the end off.
        stays.read_at(2_000);
        sim.advance(secs(60));
        assert_eq!(server.connections(), 2);
        stays.stop_reading();
        sim.advance(secs(26));
        let broken = [CloseReason::RelayBroken, CloseReason::Timeout(Timeout::Write)];
        assert_eq!(ends(&server), broken);
        assert_eq!(stays.closed(), Some(End::Reset));
    }
}

fn a_broken_side_ends_with_the_other() {
    for writes in [false, true] {
        let mut sim = world(1);
        let (server, ends_of) = uneven(&mut sim, Config::default(), 1);
        let (gone, stays) = (&ends_of[1], &ends_of[0]);
        break_while_held(&mut sim, [gone, stays], &pattern(400_000));
        stays.send(b"x");
        sim.advance(millis(100));
        assert_eq!(server.connections(), 2);
        if writes {
            // A write to it fails before its reset is learned.
            stays.resume_reading();
        }
        stays.reset();
        sim.advance(millis(100));
        assert_eq!(ends(&server), [CloseReason::PeerReset, CloseReason::RelayBroken]);
        sim.assert_clean();
    }
}

fn a_broken_side_that_is_closed_presents_no_part_as_the_whole() {
    let mut sim = world(1);
    let (server, ends_of) = uneven(&mut sim, Config::default(), 1);
    let (gone, stays) = (&ends_of[1], &ends_of[0]);
    let bytes = pattern(400_000);
    break_while_held(&mut sim, [gone, stays], &bytes);
    stays.send(b"x");
    sim.advance(millis(100));
    let (_, upstream) = server.handler().pairs[0];
    server.with(|_, cx| cx.conn(upstream).unwrap().close());
    stays.resume_reading();
    sim.advance(secs(1));
    let got = stays.take();
    assert!(bytes.starts_with(&got) && got.len() < bytes.len(), "{}", got.len());
    assert_eq!(stays.closed(), Some(End::Reset));
    assert_eq!(ends(&server), [CloseReason::HandlerClose, CloseReason::RelayBroken]);
}

fn a_broken_side_whose_end_was_passed_on_was_whole() {
    for side in [0, 1] {
        let mut sim = world(1);
        let (server, client, upstream) = relay(&mut sim, Config::default());
        let ends_of = [client, upstream];
        let (gone, stays) = (&ends_of[side], &ends_of[1 - side]);
        gone.send(b"request");
        gone.half_close();
        sim.advance(millis(100));
        // The write fails before the reset is learned.
        stays.send(b"reply");
        gone.reset();
        sim.advance(secs(1));
        stays.expect(b"request");
        assert_eq!(stays.closed(), Some(End::Fin));
        stays.close();
        sim.advance(secs(1));
        assert_eq!(ends(&server), [CloseReason::PeerReset, CloseReason::RelayEnded]);
    }
}

fn what_a_handler_does_to_one_side_happens_to_both() {
    for (closes, reason, end) in
        [(true, CloseReason::RelayEnded, End::Fin), (false, CloseReason::RelayBroken, End::Reset)]
    {
        for side in [0, 1] {
            let mut sim = world(1);
            let (server, client, upstream) = relay(&mut sim, Config::default());
            client.send(b"up");
            upstream.send(b"down");
            sim.advance(millis(10));
            let (a, b) = server.handler().pairs[0];
            server.with(|_, cx| {
                let mut conn = cx.conn([a, b][side]).unwrap();
                if closes { conn.close() } else { conn.abort() }
            });
            sim.advance(millis(100));
            client.expect(b"down");
            upstream.expect(b"up");
            assert_eq!((client.closed(), upstream.closed()), (Some(end), Some(end)));
            client.close();
            upstream.close();
            sim.advance(secs(1));
            assert!(reasons(&server).contains(&reason));
        }
    }
}

fn a_write_to_a_side_goes_between_what_is_passed_on() {
    let mut sim = world(1);
    let (server, client, upstream) = relay(&mut sim, Config::default());
    let (a, _) = server.handler().pairs[0];
    upstream.send(b"one,");
    sim.advance(millis(10));
    server.with(|_, cx| cx.conn(a).unwrap().write(b"two,"));
    sim.advance(millis(10));
    upstream.send(b"three");
    sim.advance(millis(10));
    client.expect(b"one,two,three");
}

fn a_pause_holds_one_direction() {
    let mut sim = world(1);
    let (server, client, upstream) = relay(&mut sim, Config::default());
    let (a, _) = server.handler().pairs[0];
    server.with(|_, cx| cx.conn(a).unwrap().pause_reading());
    client.send(b"up");
    upstream.send(b"down");
    sim.advance(secs(1));
    client.expect(b"down");
    upstream.expect(b"");
    server.with(|_, cx| cx.conn(a).unwrap().resume_reading());
    sim.advance(millis(10));
    upstream.expect(b"up");
}

fn a_callback_that_panics_begins_no_relay() {
    let mut sim = world(1);
    sim.allow_panics();
    let relay = Relay { panics: true, ..Relay::default() };
    let (server, _listener) = proxy(&mut sim, Config::default(), relay);
    let client = sim.connect(&server);
    sim.advance(secs(1));
    assert_eq!(client.closed(), Some(End::Reset));
    let stats = server.stats();
    assert_eq!((stats.relays, stats.connections), (0, 0));
    assert_eq!(stats.closed(CloseReason::RelayBroken), 0);
}

fn a_relay_is_possible_only_between_two_that_stand() {
    let mut sim = world(1);
    let (server, client, upstream) = relay(&mut sim, Config::default());
    let (a, b) = server.handler().pairs[0];
    let dialled = server.with(|_, cx| cx.connect(UPSTREAM)).unwrap();
    server.with(|_, cx| {
        assert!(!cx.conn(a).unwrap().relay_with(a), "itself");
        assert!(!cx.conn(a).unwrap().relay_with(dialled), "it is relayed");
        assert!(!cx.conn(dialled).unwrap().relay_with(a), "it is being dialled");
    });
    client.half_close();
    upstream.half_close();
    sim.advance(secs(1));
    server.with(|_, cx| assert!(!cx.conn(dialled).unwrap().relay_with(b), "it is gone"));
}

fn a_shutdown_waits_for_a_relay_until_its_deadline() {
    for finishes in [true, false] {
        let mut sim = world(1);
        let (server, client, upstream) =
            relay(&mut sim, config(|config| config.shutdown_timeout = Some(secs(30))));
        server.shutdown();
        sim.advance(secs(10));
        client.send(b"still here");
        sim.advance(secs(10));
        upstream.expect(b"still here");
        assert!(!server.is_finished());
        if finishes {
            client.close();
            upstream.close();
            sim.advance(secs(1));
        } else {
            sim.advance(secs(12));
        }
        assert!(server.is_finished());
    }
}

fn a_reader_of_much_leaves_others_their_turns() {
    let mut sim = world(1);
    sim.set_buffers(1 << 20, 1 << 20);
    let (server, listener) = proxy(&mut sim, Config::default(), Relay::default());
    let (client, upstream) = pair(&mut sim, &server, &listener);
    let (other, its_upstream) = pair(&mut sim, &server, &listener);
    upstream.send(&pattern(1 << 20));
    other.send(b"x");
    let before = server.stats().turns;
    sim.advance(secs(1));
    let turns = server.stats().turns - before;
    assert!(turns >= 16, "at most 64 KiB in a turn: {turns}");
    its_upstream.expect(b"x");
    assert_eq!(client.take().len(), 1 << 20);
}
