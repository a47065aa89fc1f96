//! What other libraries got wrong, a test each.

use bytes::{Buf, BytesMut};
use wheelhouse::frame::{self, Counts, Error, Frame, Framing, Width};

fn whole(payload: std::ops::Range<usize>, len: usize) -> Result<Option<Frame>, Error> {
    Ok(Some(Frame { payload, len }))
}

const fn too_long(max: usize, length: u64) -> Result<Option<Frame>, Error> {
    Err(Error::TooLong { max, length: Some(length) })
}

#[test]
fn a_header_is_described_without_a_sum_of_its_parts() {
    // HTTP/2 (RFC 9113, 4.1): three bytes of length, six more, and the payload that is counted.
    let mut http2 = frame::length(Width::U24, 16_384).then(6).keep_header();
    assert_eq!(http2.find(b"\0\0\x03\x06\0\0\0\0\0abcX"), whole(0..12, 12));
    // PostgreSQL (53.7): a type, and a length that counts itself.
    let mut postgres = frame::length(Width::U32, 1_024).after(1).counts(Counts::FromField);
    assert_eq!(postgres.find(b"Q\0\0\0\x06okZ"), whole(5..7, 7));
    // MQTT-SN (1.2, 5.2): the length counts the whole message, itself included.
    let mut mqtt_sn = frame::length(Width::U8, 250).then(1).counts(Counts::Whole);
    assert_eq!(mqtt_sn.find(b"\x04\x0cab"), whole(2..4, 4));
    // MySQL: the little end first, and a sequence number.
    let mut mysql = frame::length(Width::U24, 1_024).then(1).little_endian();
    assert_eq!(mysql.find(b"\x02\0\0\x07hi"), whole(4..6, 6));
    // Kafka: nothing but a length.
    let mut kafka = frame::length(Width::U32, 1_024);
    assert_eq!(kafka.find(b"\0\0\0\x01k"), whole(4..5, 5));
}

#[test]
fn the_greatest_length_is_that_of_the_payload_whatever_is_counted() {
    for (counts, counted) in
        [(Counts::Payload, 0), (Counts::AfterField, 2), (Counts::FromField, 4), (Counts::Whole, 5)]
    {
        let framing = frame::length(Width::U16, 10).after(1).then(2).counts(counts);
        assert_eq!(framing.greatest(), 15);
        let head = |payload: u16| {
            [&[9][..], &(payload + counted).to_be_bytes(), &[9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
                .concat()
        };
        assert_eq!({ framing }.find(&head(10)), whole(5..15, 15), "{counts:?}");
        assert_eq!({ framing }.find(&head(11)), too_long(10, 11), "{counts:?}");
    }
}

#[test]
fn an_error_says_the_greatest_length_and_the_announced_one() {
    let error = frame::length(Width::U32, 1_024).find(&2_000_u32.to_be_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "a message of 2000 bytes, where 1024 are allowed");
    let error = frame::lines(3).find(b"abcd").unwrap_err();
    assert_eq!(error.to_string(), "a message of more than 3 bytes");
}

#[test]
#[should_panic(expected = "the field cannot announce that length")]
fn a_field_that_is_too_narrow_for_the_payload_is_refused_at_the_start() {
    let _ = frame::length(Width::U16, 65_536);
}

#[test]
#[should_panic(expected = "the field cannot announce that length")]
fn a_field_that_is_too_narrow_for_what_it_counts_is_refused_too() {
    let _ = frame::length(Width::U8, 250).then(4).counts(Counts::Whole).after(2);
}

#[test]
fn a_length_never_wraps() {
    for little in [false, true] {
        let framing = frame::length(Width::U64, 1_000).after(3).then(4).counts(Counts::Whole);
        let mut framing = if little { framing.little_endian() } else { framing };
        assert_eq!(framing.find(&[0xff; 32]), too_long(1_000, u64::MAX - 15), "{little}");
    }
    assert_eq!(
        frame::varint(1_000).find(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        too_long(1_000, u64::MAX)
    );
}

#[test]
fn a_length_that_is_less_than_what_it_counts_is_an_error() {
    let mut framing = frame::length(Width::U32, 1_024).counts(Counts::FromField);
    for length in 0..4_u32 {
        assert_eq!(framing.find(&length.to_be_bytes()), Err(Error::BadLength));
    }
    assert_eq!(framing.find(&4_u32.to_be_bytes()), whole(4..4, 4));
}

#[test]
fn nothing_is_reserved_for_what_a_header_announces() {
    let mut framing = frame::length(Width::U32, 1 << 30);
    let mut input = BytesMut::from(&(1_u32 << 30).to_be_bytes()[..]);
    let before = input.capacity();
    assert_eq!(framing.take_frame(&mut input), Ok(None));
    assert_eq!((input.capacity(), input.len()), (before, 4));
    let body = framing.begin(&mut input).unwrap().expect("a header");
    assert_eq!((body.left(), body.header()), (1 << 30, &(1_u32 << 30).to_be_bytes()[..]));
    assert!(input.is_empty() && input.capacity() <= before);
}

/// What was searched is not searched again: a delimiter that comes to stand there is not seen, which
/// the contract of `find` rules out, and which shows what it reads.
#[test]
fn each_byte_is_searched_once() {
    let mut lines = frame::lines(64 * 1024);
    let mut delimited = frame::delimited(b"END", 64 * 1024);
    let mut text = vec![b'x'; 64 * 1024];
    for len in 1..text.len() {
        assert_eq!(lines.find(&text[..len]), Ok(None));
        assert_eq!(delimited.find(&text[..len]), Ok(None));
        text[len - 1] = b'\n';
        if len > 4 {
            text[len - 4..len - 1].copy_from_slice(b"END");
        }
    }
}

#[test]
fn what_lies_behind_the_longest_message_is_not_searched() {
    let mut input = vec![b'x'; 1_000];
    input[500] = b'\n';
    let none = Err(Error::TooLong { max: 100, length: None });
    assert_eq!(frame::lines(100).find(&input), none);
    assert_eq!(frame::delimited(b"\n", 100).find(&input), none);
}

#[test]
fn there_is_no_message_after_one_that_is_too_long() {
    let mut lines = frame::lines(3);
    let mut input = BytesMut::from(&b"abcdef"[..]);
    let error = Err(Error::TooLong { max: 3, length: None });
    assert_eq!(lines.find(&input), error);
    input.extend_from_slice(b"\nok\n");
    assert_eq!(lines.find(&input), error);
    assert_eq!(lines.take_frame(&mut input), Err(Error::TooLong { max: 3, length: None }));
    assert_eq!(input, b"abcdef\nok\n"[..]);
}

#[test]
fn an_error_is_the_same_each_time_it_is_asked_for() {
    let mut strict = frame::lines(10).strict();
    let mut varint = frame::varint(10);
    for _ in 0..3 {
        assert_eq!(strict.find(b"a\nb\r\n"), Err(Error::BadEnd));
        assert_eq!(varint.find(b"\x80\x00"), Err(Error::BadVarint));
    }
}

#[test]
fn an_end_that_is_cut_in_two_is_one() {
    let mut lines = frame::lines(2);
    assert_eq!(lines.find(b"ab\r"), Ok(None));
    assert_eq!(lines.find(b"ab\r\n"), whole(0..2, 4));
    let mut strict = frame::lines(2).strict();
    assert_eq!(strict.find(b"ab\r"), Ok(None));
    assert_eq!(strict.find(b"ab\r\n"), whole(0..2, 4));
    let mut delimited = frame::delimited(b"--\r\n", 2);
    for len in 0..6 {
        assert_eq!(delimited.find(&b"ab--\r\n"[..len]), Ok(None));
    }
    assert_eq!(delimited.find(b"ab--\r\n"), whole(0..2, 6));
    let mut length = frame::length(Width::U32, 9);
    for len in 0..6 {
        assert_eq!(length.find(&b"\0\0\0\x02ab"[..len]), Ok(None));
    }
    assert_eq!(length.find(b"\0\0\0\x02ab"), whole(4..6, 6));
}

#[test]
fn a_carriage_return_counts_where_it_is_no_end() {
    assert_eq!(frame::lines(9).find(b"a\r\r\n"), whole(0..2, 4));
    assert_eq!(frame::lines(9).lf().find(b"a\r\n"), whole(0..2, 3));
    assert_eq!(frame::lines(2).find(b"ab\rx"), Err(Error::TooLong { max: 2, length: None }));
    assert_eq!(frame::lines(1).lf().find(b"a\r"), Err(Error::TooLong { max: 1, length: None }));
    assert_eq!(frame::lines(9).strict().find(b"a\rb\r\n"), whole(0..3, 5));
}

#[test]
fn a_varint_has_one_form() {
    let mut varint = frame::varint(300);
    let long = [&b"\xac\x02"[..], &[7; 300]].concat();
    assert_eq!(varint.find(&long), whole(2..302, 302));
    assert_eq!(varint.find(b"\0"), whole(1..1, 1));
    assert_eq!(varint.find(b"\xac"), Ok(None));
    for overlong in [&b"\x80\x00"[..], b"\x81\x80\x00", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00"]
    {
        assert_eq!(varint.find(overlong), Err(Error::BadVarint));
    }
    assert_eq!(varint.find(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), Err(Error::BadVarint));
    assert_eq!(varint.find(&[0x80; 10]), Err(Error::BadVarint));
    assert_eq!(varint.find(&[0x80; 9]), Ok(None));
}

#[test]
fn a_payload_that_would_be_read_as_two_is_not_written() {
    let lines = frame::lines(20);
    assert_eq!(lines.check(b"set a 1\nflush"), Err(Error::BadEnd));
    assert_eq!(lines.check(b"ends with\r"), Err(Error::BadEnd));
    assert_eq!(lines.clone().lf().check(b"ends with\r"), Ok(()));
    assert_eq!(lines.strict().check(b"ends with\r"), Ok(()));
    let delimited = frame::delimited(b"aa", 20);
    assert_eq!(delimited.check(b"b"), Ok(()));
    // The first two of the three would end it.
    assert_eq!(delimited.check(b"ba"), Err(Error::BadEnd));
}

#[test]
fn a_header_of_its_own_is_filled_in_by_the_caller() {
    let framing = frame::length(Width::U24, 99).then(2);
    let mut head = framing.head(5).unwrap();
    assert_eq!(&head[..], b"\0\0\x05\0\0");
    head[3] = 7;
    assert_eq!(&head[..], b"\0\0\x05\x07\0");
    assert_eq!(framing.head(100).unwrap_err(), Error::TooLong { max: 99, length: Some(100) });
}

#[test]
fn a_body_is_what_was_announced_and_no_more() {
    let framing = frame::length(Width::U16, 1_000);
    let mut input = BytesMut::from(&b"\0"[..]);
    assert!(framing.begin(&mut input).unwrap().is_none());
    input.extend_from_slice(b"\x05abc");
    let mut body = framing.begin(&mut input).unwrap().expect("a header");
    assert_eq!((body.take(&input), body.is_done(), body.left()), (&b"abc"[..], false, 2));
    input.advance(3);
    assert_eq!(body.take(&input), b"");
    input.extend_from_slice(b"de\0\0");
    assert_eq!((body.take(&input), body.is_done()), (&b"de"[..], true));
    input.advance(2);
    let empty = framing.begin(&mut input).unwrap().expect("a header");
    assert!(empty.is_done());
    let mut bad = BytesMut::from(&b"\xff\xff"[..]);
    assert_eq!(
        framing.begin(&mut bad).unwrap_err(),
        Error::TooLong { max: 1_000, length: Some(65_535) }
    );
    assert_eq!(bad.len(), 2);
}

#[test]
fn a_framing_is_as_small_as_its_documentation_says() {
    let sizes = [
        size_of::<frame::Fixed>(),
        size_of::<frame::Varint>(),
        size_of::<frame::Length>(),
        size_of::<frame::Lines>(),
        size_of::<frame::Delimited>(),
    ];
    assert_eq!((sizes.iter().min(), sizes.iter().max()), (Some(&8), Some(&32)), "{sizes:?}");
}

#[test]
fn what_was_searched_before_an_error_is_searched_again_behind_it() {
    let error = Error::TooLong { max: 10, length: None };
    let mut lines = frame::lines(10);
    assert_eq!(lines.find(b"abc"), Ok(None));
    assert_eq!(lines.find(b"abcdefghijklmno"), Err(error));
    assert_eq!(lines.find(b"a\nbcd\n"), whole(0..1, 2));
    let mut delimited = frame::delimited(b"\n", 10);
    assert_eq!(delimited.find(b"abc"), Ok(None));
    assert_eq!(delimited.find(b"abcdefghijklmno"), Err(error));
    assert_eq!(delimited.find(b"a\nbcd\n"), whole(0..1, 2));
}

#[test]
fn a_varint_waits_for_no_more_than_its_greatest_message() {
    for max in [0, 3, 5, 127, 128] {
        let mut varint = frame::varint(max);
        let input = vec![0x80; varint.greatest()];
        assert_eq!(varint.find(&input), Err(Error::BadVarint), "{max}");
    }
}
