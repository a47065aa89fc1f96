//! However its bytes arrive, the replies to a conversation are the same.

use proptest::prelude::*;

use super::client::{answer, answer_pieces};
use super::refusals::shapes;

/// Conversations of all kinds.
fn conversations() -> Vec<Vec<u8>> {
    let served: [&[u8]; 11] = [
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n\r\nOPTIONS /echo HTTP/1.2\r\nHost: [::1]\r\n\r\n\
          HEAD / HTTP/1.1\r\nHost: %41\r\nExpect: , 100-continue,\r\nExpect:\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
          3 ;x=y; z = \"\\\"\" ;a\r\nabc\r\n0\r\n\r\nGET / HTTP/1.9\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nHEAD /bytes/9 HTTP/1.1\r\nHost: a\r\n\r\n\
          GET /bytes/70000 HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789\r\n\
          POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
          3;x=y\r\nabc\r\n00a\r\n0123456789\r\n0\r\nA: b\r\nC: d\r\n\r\n\
          GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /slow?ms=50 HTTP/1.1\r\nHost: a\r\n\r\nGET /slow?ms=10 HTTP/1.1\r\nHost: a\r\n\r\n\
          POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
          PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n\
          GET http://a/healthz HTTP/1.1\r\nHost: b\r\n\r\n",
        b"\r\n\r\nGET / HTTP/1.7\r\nHost: a\r\n\r\n\r\nGET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n\
          GET / HTTP/1.0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\nxyz",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n100001\r\nxyz",
    ];
    let refused = shapes().into_iter().map(|(sent, _)| sent);
    served.into_iter().map(<[u8]>::to_vec).chain(refused).collect()
}

/// Large heads, which are too slow to go through byte by byte in every test.
fn large() -> Vec<Vec<u8>> {
    let line = |len: usize| format!("GET /?{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(len));
    let head = |len: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(len));
    let fields =
        |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count));
    let wrong = |at: usize| {
        let mut line = line(20_000).into_bytes();
        line[at] = 1;
        line
    };
    let mut large = vec![wrong(100), wrong(8_191), wrong(8_192), wrong(8_193), wrong(16_385)];
    for len in [8_175, 8_176, 16_349, 16_350, 16_351, 20_000] {
        large.push(line(len).into_bytes());
        large.push(head(len).into_bytes());
    }
    large.extend([63, 64, 65, 3_000].map(|count| fields(count).into_bytes()));
    large
}

#[test]
fn bytes_one_by_one_are_answered_as_all_at_once() {
    for sent in conversations() {
        let pieces: Vec<&[u8]> = sent.chunks(1).collect();
        assert_same(&sent, &pieces);
    }
}

#[test]
fn large_heads_are_answered_the_same_in_pieces() {
    for sent in large() {
        for size in [997, 4_096, 8_192, 16_384] {
            assert_same(&sent, &sent.chunks(size).collect::<Vec<_>>());
        }
    }
}

#[test]
fn two_pieces_are_answered_as_one() {
    for sent in conversations().iter().take(11) {
        for at in 0..sent.len() {
            assert_same(sent, &[&sent[..at], &sent[at..]]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn pieces_of_any_size_are_answered_as_the_whole(
        which in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        repeats in 1_usize..4,
    ) {
        let conversations = [conversations(), large()].concat();
        let sent = which.get(&conversations).repeat(repeats);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(sent.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&sent[from..cut]);
            from = cut;
        }
        pieces.push(&sent[from..]);
        assert_same(&sent, &pieces);
    }
}

#[track_caller]
fn assert_same(sent: &[u8], pieces: &[&[u8]]) {
    let (whole, split) = (answer(sent), answer_pieces(pieces));
    assert!(
        whole == split,
        "{} is answered by {} {}, in {} pieces by {} {}",
        sent.escape_ascii(),
        whole.0.escape_ascii(),
        whole.1,
        pieces.len(),
        split.0.escape_ascii(),
        split.1,
    );
}
