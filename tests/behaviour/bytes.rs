//! Bytes arrive whole and in order, however they are cut on the way.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use wheelhouse::{CloseReason, Config};

use crate::harness::{Fixture, Got, RecordingHandler, What, World, assert_same, millis, pattern};

behaviours! {
    everywhere {
        an_echo_returns_what_was_sent
        requests_of_any_size_come_whole_however_they_are_cut
        writes_of_all_kinds_keep_their_order
        writes_from_several_callbacks_keep_their_order
        all_that_came_before_a_fin_is_read
        what_a_handler_keeps_of_its_input_stays
        a_connection_does_not_see_what_another_left
        formatted_text_is_sent_as_it_reads
        many_connections_live_side_by_side
    }
    over_tcp {
        an_echo_to_a_slow_reader_returns_what_was_sent
    }
}

/// Sends all of `bytes` while it reads as many, in sips of at most `sip`.
fn exchange<W: World>(
    fixture: &mut Fixture<'_, W>,
    peer: crate::harness::PeerId,
    bytes: &[u8],
    sip: usize,
) {
    let (mut sent, mut got) = (0, Vec::new());
    fixture.until("all of it", |fixture| {
        sent += fixture.try_send(peer, &bytes[sent..]).unwrap();
        got.extend(fixture.sip(peer, sip));
        got.len() >= bytes.len()
    });
    assert_same(&got, bytes);
}

fn an_echo_returns_what_was_sent<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let peer = fixture.connect();
    exchange(&mut fixture, peer, &pattern(8 << 20), 1 << 20);
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.bytes_in, closed.bytes_out), (8 << 20, 8 << 20));
    fixture.expect_service();
}

fn an_echo_to_a_slow_reader_returns_what_was_sent<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let peer = fixture.connect_small();
    exchange(&mut fixture, peer, &pattern(1 << 20), 2_000);
    fixture.expect_service();
}

fn requests_of_any_size_come_whole_however_they_are_cut<W: World>(world: &mut W) {
    // A request is its length in two bytes and as many bytes; the reply is the same backwards.
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        while input.len() >= 2 {
            let len = usize::from(u16::from_be_bytes([input[0], input[1]]));
            if input.len() < 2 + len {
                break;
            }
            let mut request = input.split_to(2 + len);
            request[2..].reverse();
            conn.write(&request);
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    let (mut requests, mut replies) = (Vec::new(), Vec::new());
    for (index, len) in
        [0, 1, 100, 4_093, 4_094, 4_095, 4_096, 20_000, 65_000, 3].iter().enumerate()
    {
        let body: Vec<u8> = (0..*len).map(|at: u16| (at as usize ^ index) as u8).collect();
        requests.extend_from_slice(&len.to_be_bytes());
        requests.extend_from_slice(&body);
        replies.extend_from_slice(&len.to_be_bytes());
        replies.extend(body.iter().rev());
    }
    for cut in [1_000, 3_999, 17_000, 40_000, usize::MAX] {
        let mut got = Vec::new();
        for piece in requests.chunks(cut) {
            fixture.send(peer, piece);
            fixture.turn();
            got.extend(fixture.sip(peer, 1 << 20));
        }
        let rest = fixture.read(peer, replies.len() - got.len());
        got.extend(rest);
        assert_same(&got, &replies);
    }
    fixture.expect_service();
}

fn writes_of_all_kinds_keep_their_order<W: World>(world: &mut W) {
    let want = pattern(1_200_000);
    let source = Bytes::from(want.clone());
    let handler = RecordingHandler::echo().when_data(move |conn, _, input| {
        input.clear();
        let mut rest = source.clone();
        let mut len = 1;
        while !rest.is_empty() {
            let piece = rest.split_to(len.min(rest.len()));
            match len % 3 {
                0 => conn.write_bytes(piece),
                1 => conn.write(&piece),
                _ => conn.write_bytes(piece.to_vec()),
            }
            len = (len * 3 + 1) % 70_001;
        }
        assert_eq!(conn.queued(), source.len());
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    for _ in 0..2 {
        fixture.send(peer, b"x");
        fixture.expect(peer, &want);
    }
    fixture.expect_service();
}

fn writes_from_several_callbacks_keep_their_order<W: World>(world: &mut W) {
    // The queue is full when the later ones come.
    const LARGE: usize = 2 << 20;
    let handler = RecordingHandler::echo()
        .when_data(|conn, _, input| {
            input.clear();
            conn.write_bytes(vec![b'1'; LARGE]);
            conn.set_timer(conn.now() + millis(20));
        })
        .when_timer(|conn, _| conn.write(b"2"))
        .when_drained(|conn, _| conn.write(b"3"));
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Timer);
    let mut want = vec![b'1'; LARGE];
    want.extend_from_slice(b"23");
    fixture.expect(peer, &want);
    fixture.expect_service();
}

fn all_that_came_before_a_fin_is_read<W: World>(world: &mut W) {
    let received = Rc::new(RefCell::new(Vec::new()));
    let kept = Rc::clone(&received);
    let handler = RecordingHandler::echo().when_data(move |_, _, input| {
        kept.borrow_mut().extend_from_slice(input);
        input.clear();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, _) = fixture.enter();
    let bytes = pattern(1 << 20);
    fixture.send(peer, &bytes);
    // Gone before the last of it is read.
    fixture.leave(peer);
    let closed = fixture.expect_closed(CloseReason::PeerEof);
    assert_eq!(closed.bytes_in, bytes.len() as u64);
    assert_same(&received.borrow(), &bytes);
    fixture.expect_service();
}

fn what_a_handler_keeps_of_its_input_stays<W: World>(world: &mut W) {
    let kept: Rc<RefCell<Vec<Bytes>>> = Rc::default();
    let pieces = Rc::clone(&kept);
    let handler = RecordingHandler::echo().when_data(move |conn, _, input| {
        conn.write(input);
        let len = input.len() / 2;
        pieces.borrow_mut().push(input.split_to(len).freeze());
        pieces.borrow_mut().push(input.split().freeze());
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peers = [(); 3].map(|()| fixture.connect());
    let mut sent = 0;
    for byte in b'a'..=b'z' {
        let word = vec![byte; 3_000];
        for peer in peers {
            fixture.send(peer, &word);
            fixture.expect(peer, &word);
            sent += word.len();
        }
    }
    let kept = kept.borrow();
    assert_eq!(kept.iter().map(Bytes::len).sum::<usize>(), sent);
    for piece in kept.iter() {
        assert!(piece.windows(2).all(|pair| pair[0] == pair[1]), "it was written over");
    }
    let mut words: Vec<u8> = kept.iter().filter_map(|piece| piece.first().copied()).collect();
    words.dedup();
    assert_eq!(words, (b'a'..=b'z').collect::<Vec<_>>());
    fixture.expect_service();
}

fn a_connection_does_not_see_what_another_left<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(
        world,
        Config::default(),
        RecordingHandler::ignore().when_eof(|conn, _, input| conn.write(input)),
    );
    let peers = [(); 5].map(|()| fixture.connect());
    for round in 0..4_u8 {
        for (index, peer) in peers.iter().enumerate() {
            // Those of the last one outgrow what is carried in the loop's buffer.
            let len = if index == 4 { 5_000 } else { 700 };
            fixture.send(*peer, &vec![b'0' + index as u8 * 10 + round; len]);
            fixture.turn();
        }
    }
    for (index, peer) in peers.into_iter().enumerate() {
        let len = if index == 4 { 5_000 } else { 700 };
        let want: Vec<u8> =
            (0..4).flat_map(|round| vec![b'0' + index as u8 * 10 + round; len]).collect();
        fixture.half_close(peer);
        let (bytes, end) = fixture.read_to_end(peer);
        assert_same(&bytes, &want);
        assert_eq!(end, Got::Eof);
        fixture.expect_closed(CloseReason::PeerEof);
    }
    fixture.expect_service();
}

fn formatted_text_is_sent_as_it_reads<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, session, input| {
        writeln!(conn, "{} said {:?}", session.number, &input[..]);
        input.clear();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let peer = fixture.connect();
    fixture.send(peer, b"hi");
    fixture.expect(peer, b"0 said [104, 105]\n");
    fixture.expect_service();
}

fn many_connections_live_side_by_side<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    let peers: Vec<_> = (0..200).map(|_| fixture.connect()).collect();
    for round in 0..3 {
        for (index, peer) in peers.iter().enumerate() {
            fixture.send(*peer, format!("{index}.{round}").as_bytes());
        }
        for (index, peer) in peers.iter().enumerate() {
            fixture.expect(*peer, format!("{index}.{round}").as_bytes());
        }
    }
    // Every second one closes, and the others are served on.
    for peer in peers.iter().step_by(2) {
        fixture.leave(*peer);
    }
    for peer in peers.iter().skip(1).step_by(2) {
        fixture.expect_echo(*peer);
    }
    fixture.until("a hundred to go", |fixture| fixture.handler.closed.len() == 100);
    assert_eq!(fixture.reactor.context().len(), 100);
    fixture.handler.closed.clear();
    fixture.expect_service();
}
