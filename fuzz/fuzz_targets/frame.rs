//! Messages out of any stream, in any pieces: they are those of the whole, and nothing panics.

#![no_main]

use arbitrary::Arbitrary;
use bytes::{Buf, BytesMut};
use libfuzzer_sys::fuzz_target;
use wheelhouse::frame::{self, Counts, Error, Framing, Width};

const MAX: usize = 40;

fuzz_target!(|input: Input| {
    let Input { kind, little, keeps, pieces } = input;
    match kind {
        Kind::Lines => check(frame::lines(MAX), &pieces),
        Kind::Strict => check(frame::lines(MAX).strict(), &pieces),
        Kind::Lf => check(frame::lines(MAX).lf(), &pieces),
        Kind::Delimited => check(frame::delimited(b"aab", MAX), &pieces),
        Kind::Fixed => check(frame::fixed(7), &pieces),
        Kind::Varint => check(frame::varint(MAX), &pieces),
        Kind::Length(width, counts) => {
            let counts = [Counts::Payload, Counts::AfterField, Counts::FromField, Counts::Whole]
                [usize::from(counts % 4)];
            let width =
                [Width::U8, Width::U16, Width::U24, Width::U32, Width::U64][usize::from(width % 5)];
            let mut length = frame::length(width, MAX).after(2).then(3).counts(counts);
            if little {
                length = length.little_endian();
            }
            if keeps {
                length = length.keep_header();
            }
            check(length, &pieces);
        }
    }
});

fn check(framing: impl Framing + Clone, pieces: &[Vec<u8>]) {
    let whole = read(framing.clone(), &[pieces.concat()]);
    assert_eq!(read(framing.clone(), pieces), whole);
    for message in &whole.0 {
        assert!(message.len() <= framing.greatest());
    }
}

type Read = (Vec<Vec<u8>>, Option<Error>);

fn read(mut framing: impl Framing, pieces: &[Vec<u8>]) -> Read {
    let (mut input, mut messages, mut end) = (BytesMut::new(), Vec::new(), None);
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match framing.find(&input) {
                Ok(Some(frame)) => {
                    assert!(end.is_none(), "an error stays");
                    messages.push(input[frame.payload].to_vec());
                    input.advance(frame.len);
                }
                Ok(None) => break assert!(end.is_none(), "an error stays"),
                Err(error) => break assert_eq!(*end.get_or_insert(error), error),
            }
        }
    }
    (messages, end)
}

#[derive(Arbitrary, Debug)]
struct Input {
    kind: Kind,
    little: bool,
    keeps: bool,
    pieces: Vec<Vec<u8>>,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Lines,
    Strict,
    Lf,
    Delimited,
    Fixed,
    Varint,
    Length(u8, u8),
}
