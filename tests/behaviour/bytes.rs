//! Bytes arrive whole and in order, however they are cut on the way.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use wheelhouse::{CloseReason, Config};

use crate::harness::{Got, Scene, Script, What, World, assert_same, millis, pattern};

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
    }
    over_tcp {
        an_echo_to_a_slow_reader_returns_what_was_sent
    }
}

/// Sends all of `bytes` while it reads as many, in sips of at most `sip`.
fn exchange<W: World>(
    scene: &mut Scene<'_, W>,
    peer: crate::harness::PeerId,
    bytes: &[u8],
    sip: usize,
) {
    let (mut sent, mut got) = (0, Vec::new());
    scene.until("all of it", |scene| {
        sent += scene.try_send(peer, &bytes[sent..]).unwrap();
        got.extend(scene.sip(peer, sip));
        got.len() >= bytes.len()
    });
    assert_same(&got, bytes);
}

fn an_echo_returns_what_was_sent<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    let peer = scene.connect();
    exchange(&mut scene, peer, &pattern(8 << 20), 1 << 20);
    scene.leave(peer);
    let closed = scene.expect_closed(CloseReason::PeerEof);
    assert_eq!((closed.bytes_in, closed.bytes_out), (8 << 20, 8 << 20));
    scene.expect_service();
}

fn an_echo_to_a_slow_reader_returns_what_was_sent<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    let peer = scene.connect_small();
    exchange(&mut scene, peer, &pattern(1 << 20), 2_000);
    scene.expect_service();
}

fn requests_of_any_size_come_whole_however_they_are_cut<W: World>(world: &mut W) {
    // A request is its length in two bytes and as many bytes; the reply is the same backwards.
    let script = Script::echo().when_data(|conn, _, input| {
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
    let mut scene = Scene::new(world, Config::default(), script);
    let peer = scene.connect();
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
            scene.send(peer, piece);
            scene.turn();
            got.extend(scene.sip(peer, 1 << 20));
        }
        let rest = scene.read(peer, replies.len() - got.len());
        got.extend(rest);
        assert_same(&got, &replies);
    }
    scene.expect_service();
}

fn writes_of_all_kinds_keep_their_order<W: World>(world: &mut W) {
    let want = pattern(1_200_000);
    let source = Bytes::from(want.clone());
    let script = Script::echo().when_data(move |conn, _, input| {
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
    let mut scene = Scene::new(world, Config::default(), script);
    let peer = scene.connect();
    for _ in 0..2 {
        scene.send(peer, b"x");
        scene.expect(peer, &want);
    }
    scene.expect_service();
}

fn writes_from_several_callbacks_keep_their_order<W: World>(world: &mut W) {
    // The queue is full when the later ones come.
    const LARGE: usize = 2 << 20;
    let script = Script::echo()
        .when_data(|conn, _, input| {
            input.clear();
            conn.write_bytes(vec![b'1'; LARGE]);
            conn.set_timer(conn.now() + millis(20));
        })
        .when_timer(|conn, _| conn.write(b"2"))
        .when_drained(|conn, _| conn.write(b"3"));
    let mut scene = Scene::new(world, Config::default(), script);
    let peer = scene.connect();
    scene.send(peer, b"x");
    scene.saw(0, What::Timer);
    let mut want = vec![b'1'; LARGE];
    want.extend_from_slice(b"23");
    scene.expect(peer, &want);
    scene.expect_service();
}

fn all_that_came_before_a_fin_is_read<W: World>(world: &mut W) {
    let heard = Rc::new(RefCell::new(Vec::new()));
    let kept = Rc::clone(&heard);
    let script = Script::echo().when_data(move |_, _, input| {
        kept.borrow_mut().extend_from_slice(input);
        input.clear();
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let (peer, _) = scene.enter();
    let bytes = pattern(1 << 20);
    scene.send(peer, &bytes);
    // Gone before the last of it is read.
    scene.leave(peer);
    let closed = scene.expect_closed(CloseReason::PeerEof);
    assert_eq!(closed.bytes_in, bytes.len() as u64);
    assert_same(&heard.borrow(), &bytes);
    scene.expect_service();
}

fn what_a_handler_keeps_of_its_input_stays<W: World>(world: &mut W) {
    let kept: Rc<RefCell<Vec<Bytes>>> = Rc::default();
    let pieces = Rc::clone(&kept);
    let script = Script::echo().when_data(move |conn, _, input| {
        conn.write(input);
        let len = input.len() / 2;
        pieces.borrow_mut().push(input.split_to(len).freeze());
        pieces.borrow_mut().push(input.split().freeze());
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let peers = [(); 3].map(|()| scene.connect());
    let mut sent = 0;
    for byte in b'a'..=b'z' {
        let word = vec![byte; 3_000];
        for peer in peers {
            scene.send(peer, &word);
            scene.expect(peer, &word);
            sent += word.len();
        }
    }
    let kept = kept.borrow();
    assert_eq!(kept.iter().map(Bytes::len).sum::<usize>(), sent);
    for piece in kept.iter() {
        assert!(piece.windows(2).all(|pair| pair[0] == pair[1]), "somebody wrote over it");
    }
    let mut words: Vec<u8> = kept.iter().filter_map(|piece| piece.first().copied()).collect();
    words.dedup();
    assert_eq!(words, (b'a'..=b'z').collect::<Vec<_>>());
    scene.expect_service();
}

fn a_connection_does_not_see_what_another_left<W: World>(world: &mut W) {
    let mut scene = Scene::new(
        world,
        Config::default(),
        Script::ignore().when_eof(|conn, _, input| conn.write(input)),
    );
    let peers = [(); 5].map(|()| scene.connect());
    for round in 0..4_u8 {
        for (index, peer) in peers.iter().enumerate() {
            // Those of the last one outgrow what is carried in the loop's buffer.
            let len = if index == 4 { 5_000 } else { 700 };
            scene.send(*peer, &vec![b'0' + index as u8 * 10 + round; len]);
            scene.turn();
        }
    }
    for (index, peer) in peers.into_iter().enumerate() {
        let len = if index == 4 { 5_000 } else { 700 };
        let want: Vec<u8> =
            (0..4).flat_map(|round| vec![b'0' + index as u8 * 10 + round; len]).collect();
        scene.half_close(peer);
        let (bytes, end) = scene.read_to_end(peer);
        assert_same(&bytes, &want);
        assert_eq!(end, Got::Eof);
        scene.expect_closed(CloseReason::PeerEof);
    }
    scene.expect_service();
}

fn formatted_text_is_sent_as_it_reads<W: World>(world: &mut W) {
    let script = Script::echo().when_data(|conn, session, input| {
        writeln!(conn, "{} said {:?}", session.number, &input[..]);
        input.clear();
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let peer = scene.connect();
    scene.send(peer, b"hi");
    scene.expect(peer, b"0 said [104, 105]\n");
    scene.expect_service();
}
