//! Where replies end.

use proptest::prelude::*;

use crate::reply::{Head, Malformed, Scanner};

/// The ends of the replies in bytes that come in pieces, and whether they are malformed after that.
fn ends(pieces: &[&[u8]]) -> (Vec<usize>, bool) {
    let (mut scanner, mut input, mut at, mut ends) = (Scanner::default(), Vec::new(), 0, vec![]);
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match scanner.next(&input) {
                Ok(step) => {
                    at += step.len;
                    input.drain(..step.len);
                    if step.ends {
                        ends.push(at);
                    }
                    assert!(!step.ends || !scanner.is_within());
                    if step.len == 0 {
                        break;
                    }
                }
                Err(Malformed) => return (ends, true),
            }
        }
        assert!(input.len() < 24, "{} are left", input.escape_ascii());
    }
    (ends, false)
}

#[track_caller]
fn one(reply: &[u8]) -> Head {
    let mut scanner = Scanner::default();
    let step = scanner.next(reply).unwrap_or_else(|_| panic!("{}", reply.escape_ascii()));
    assert!(step.ends && step.len == reply.len(), "{}: {step:?}", reply.escape_ascii());
    assert!(!scanner.is_within());
    scanner.head()
}

#[test]
fn each_type_ends_where_it_ends() {
    let head = |kind, length| Head { kind, length };
    assert_eq!(one(b"+OK\r\n"), head(b'+', 0));
    assert_eq!(one(b"-ERR no\r\n"), head(b'-', 0));
    assert_eq!(one(b":-12\r\n"), head(b':', 0));
    assert_eq!(one(b"$-1\r\n"), head(b'$', -1));
    assert_eq!(one(b"$0\r\n\r\n"), head(b'$', 0));
    assert_eq!(one(b"$4\r\n\r\n\r\n\r\n"), head(b'$', 4));
    assert_eq!(one(b"*-1\r\n"), head(b'*', -1));
    assert_eq!(one(b"*0\r\n"), head(b'*', 0));
    assert_eq!(one(b"*3\r\n:1\r\n*2\r\n$1\r\na\r\n$-1\r\n*0\r\n"), head(b'*', 3));
}

#[test]
fn what_is_no_reply_is_malformed() {
    for wrong in [
        "hello\r\n",
        "_\r\n",
        "%1\r\n",
        "\r\n",
        "$-2\r\n",
        "*-2\r\n",
        "$0:\r\n",
        "$01\r\n",
        "$ 1\r\n",
        "$+1\r\n",
        "$4294967296\r\n",
        "*4294967296\r\n",
        "$9223372036854775806\r\n",
        "$1\n",
        "$99999999999999999999\r\n",
        "*99999999999999999999\r\n",
        "$1111111111111111111111111111",
        "+O\nK\r\n",
        "+O\rK\r\n",
        "$1\r\nab\r\n",
        "$1\r\na\r\r",
        "*1\r\n!1\r\n",
        "$\r\n",
    ] {
        assert_eq!(ends(&[wrong.as_bytes()]), (vec![], true), "{wrong:?}");
        let pieces: Vec<_> = wrong.as_bytes().chunks(1).collect();
        assert_eq!(ends(&pieces), (vec![], true), "{wrong:?}");
    }
}

#[test]
fn nesting_and_counts_take_no_memory() {
    let deep = [b"*1\r\n".repeat(10_000), b":1\r\n".to_vec()].concat();
    assert_eq!(ends(&[&deep]), (vec![deep.len()], false));
    // It only announces much.
    assert_eq!(ends(&[&b"*4294967295\r\n".repeat(10_000)]), (vec![], false));
    let mut scanner = Scanner::default();
    assert!(scanner.next(b"$4294967295\r\n").is_ok());
    for _ in 0..65_536 {
        assert!(scanner.next(&[b'x'; 65_535]).is_ok_and(|step| step.len == 65_535));
    }
    assert!(scanner.next(&[b'x'; 65_535]).is_ok());
    assert!(scanner.next(b"\r\n").is_ok_and(|step| step.ends));
}

fn reply() -> impl Strategy<Value = Vec<u8>> {
    let line = (prop_oneof![Just('+'), Just('-'), Just(':')], "[a-z0-9 ]{0,9}")
        .prop_map(|(kind, text)| format!("{kind}{text}\r\n").into_bytes());
    let bulk = prop::collection::vec(any::<u8>(), 0..40)
        .prop_map(|bytes| [format!("${}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat());
    let leaf = prop_oneof![line, bulk, Just(b"$-1\r\n".to_vec()), Just(b"*-1\r\n".to_vec())];
    leaf.prop_recursive(4, 32, 5, |item| {
        prop::collection::vec(item, 0..5).prop_map(|items| {
            [format!("*{}\r\n", items.len()).into_bytes(), items.concat()].concat()
        })
    })
}

proptest! {
    #[test]
    fn replies_end_where_they_were_made_to(
        replies in prop::collection::vec(reply(), 1..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let whole = replies.concat();
        let made: Vec<_> = replies.iter().scan(0, |at, reply| {
            *at += reply.len();
            Some(*at)
        }).collect();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
        cuts.extend([0, whole.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|cut| &whole[cut[0]..cut[1]]).collect();
        prop_assert_eq!(ends(&pieces), (made.clone(), false));
        let bytes: Vec<_> = whole.chunks(1).collect();
        prop_assert_eq!(ends(&bytes), (made, false));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        ends(&[&bytes]);
        ends(&[b"*3\r\n", &bytes]);
        ends(&[b"$3\r\n", &bytes]);
    }
}
