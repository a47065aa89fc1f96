//! However a stream is cut, its messages are those of the whole, and those of the naive parsers.

use bytes::{Buf, BytesMut};
use proptest::prelude::*;
use wheelhouse::frame::{Counts, Error, Frame, Framing, Width};

use super::naive::{Any, Ends, Field, MAX};

fn any_framing() -> impl Strategy<Value = Any> {
    let width = prop_oneof![
        Just(Width::U8),
        Just(Width::U16),
        Just(Width::U24),
        Just(Width::U32),
        Just(Width::U64)
    ];
    let counts = prop_oneof![
        Just(Counts::Payload),
        Just(Counts::AfterField),
        Just(Counts::FromField),
        Just(Counts::Whole)
    ];
    let field = (width, 0..4_usize, 0..4_usize, counts, any::<bool>(), any::<bool>()).prop_map(
        |(width, after, then, counts, little, keeps)| Field {
            width,
            after,
            then,
            counts,
            little,
            keeps,
        },
    );
    prop_oneof![
        prop_oneof![Just(Ends::Either), Just(Ends::CrLf), Just(Ends::Lf)].prop_map(Any::lines),
        prop_oneof![
            Just(&b"\n"[..]),
            Just(&b"\r\n"[..]),
            Just(&b"aa"[..]),
            Just(&b"aba"[..]),
            Just(&b"\r\n\r\n"[..]),
            Just(&b"abababab"[..])
        ]
        .prop_map(Any::delimited),
        (1..7_usize).prop_map(Any::fixed),
        Just(()).prop_map(|()| Any::varint()),
        field.prop_map(Any::length),
    ]
}

/// Bytes of which many are ends, small lengths, or begin a longer varint.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'a'), Just(b'b')],
        4 => 0..20_u8,
        1 => any::<u8>(),
        1 => Just(0x80_u8),
    ];
    prop::collection::vec(byte, 0..60)
}

/// The payloads, and what ended them: an error, or a rest that is not whole.
type Parsed = (Vec<Vec<u8>>, Result<usize, Error>);

fn parse_whole(framing: &Any, mut input: &[u8]) -> Parsed {
    let mut payloads = Vec::new();
    loop {
        match framing.expected(input) {
            Ok(Some(frame)) => {
                payloads.push(input[frame.payload].to_vec());
                input = &input[frame.len..];
            }
            Ok(None) => return (payloads, Ok(input.len())),
            Err(error) => return (payloads, Err(error)),
        }
    }
}

/// Feeds the pieces one by one, as reads would bring them.
fn parse_pieces<'a>(framing: &Any, pieces: impl IntoIterator<Item = &'a [u8]>) -> Parsed {
    let mut framing = framing.clone();
    let (mut input, mut payloads, mut end) = (BytesMut::new(), Vec::new(), None);
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match framing.find(&input) {
                Ok(Some(frame)) => {
                    assert!(end.is_none(), "an error that did not stay");
                    payloads.push(input[frame.payload].to_vec());
                    input.advance(frame.len);
                }
                Ok(None) => {
                    assert!(end.is_none(), "an error that did not stay");
                    break;
                }
                Err(error) => {
                    assert_eq!(*end.get_or_insert(error), error, "another error with more input");
                    break;
                }
            }
        }
    }
    (payloads, end.map_or(Ok(input.len()), Err))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn cut_anywhere_the_messages_are_those_of_the_whole(
        framing in any_framing(), stream in stream(),
    ) {
        let whole = parse_whole(&framing, &stream);
        for at in 0..=stream.len() {
            let (front, back) = stream.split_at(at);
            prop_assert_eq!(&parse_pieces(&framing, [front, back]), &whole, "cut at {}", at);
        }
        prop_assert_eq!(&parse_pieces(&framing, stream.chunks(1)), &whole, "byte by byte");
        prop_assert_eq!(&parse_pieces(&framing, stream.chunks(3)), &whole, "three by three");
    }

    #[test]
    fn a_prefix_is_not_whole_or_says_what_the_whole_says(
        framing in any_framing(), stream in stream(),
    ) {
        let whole = framing.clone().find(&stream);
        prop_assert_eq!(&whole, &framing.expected(&stream));
        let mut asked_again = framing.clone();
        for len in 0..=stream.len() {
            let fresh = framing.clone().find(&stream[..len]);
            prop_assert!(fresh == Ok(None) || fresh == whole, "{:?} of {} bytes", fresh, len);
            // What was asked before changes nothing, whatever the answer was.
            prop_assert_eq!(asked_again.find(&stream[..len]), fresh);
        }
    }

    #[test]
    fn what_is_written_is_read(mut framing in any_framing(), payload in stream(), more in stream()) {
        let written = framing.head(payload.len()).and_then(|head| {
            framing.check(&payload)?;
            Ok([&head[..], &payload, framing.tail()].concat())
        });
        match written {
            Ok(message) => {
                prop_assert!(message.len() <= framing.greatest());
                let input = [&message[..], &more].concat();
                let frame = framing.clone().find(&input).unwrap().expect("a whole message");
                prop_assert_eq!(frame.len, message.len());
                prop_assert!(input[frame.payload].ends_with(&payload));
                for len in 0..message.len() {
                    prop_assert_eq!(framing.clone().find(&message[..len]), Ok(None));
                }
            }
            Err(Error::TooLong { .. }) => prop_assert!(payload.len() > MAX.min(framing.greatest() - 1)),
            Err(Error::BadLength) => prop_assert!(matches!(framing, Any::Fixed(_, len) if len != payload.len())),
            Err(error) => {
                prop_assert_eq!(error, Error::BadEnd);
                // It would have been read as something else.
                let message = [&payload[..], framing.tail()].concat();
                let found = framing.find(&message);
                let same = Frame { payload: 0..payload.len(), len: message.len() };
                prop_assert_ne!(found, Ok(Some(same)));
            }
        }
    }

    #[test]
    fn no_message_is_longer_than_the_greatest(mut framing in any_framing(), stream in stream()) {
        if let Ok(Some(frame)) = framing.clone().find(&stream) {
            prop_assert!(frame.len <= framing.greatest());
        }
        if stream.len() >= framing.greatest() {
            prop_assert!(framing.find(&stream) != Ok(None), "it waits for more than fits");
        }
    }

    #[test]
    fn what_is_taken_off_is_the_message(framing in any_framing(), stream in stream()) {
        let mut input = BytesMut::from(&stream[..]);
        match framing.clone().take_frame(&mut input) {
            Ok(Some(payload)) => {
                let frame = framing.expected(&stream).unwrap().unwrap();
                prop_assert_eq!(&payload[..], &stream[frame.payload]);
                prop_assert_eq!(&input[..], &stream[frame.len..]);
            }
            other => {
                prop_assert_eq!(other.map(|_| ()), framing.expected(&stream).map(|_| ()));
                prop_assert_eq!(&input[..], &stream[..]);
            }
        }
    }
}
