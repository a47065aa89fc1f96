//! What is a command, and what is none.

use proptest::prelude::*;

use crate::command::{COMMANDS, Class, has_block};
use crate::request::{Command, Parsed, Parser, ProtocolError, REQUEST_MAX};
use crate::resp::INLINE_MAX;

/// A command as an array.
pub(crate) fn resp(args: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The arguments of the one command that `input` must be.
#[track_caller]
fn args(input: &[u8]) -> Vec<Vec<u8>> {
    match Parser::default().next(input) {
        Ok(Parsed::Command(command)) => {
            assert_eq!(command.len, input.len());
            args_of(&command)
        }
        other => panic!("{}: {other:?}", input.escape_ascii()),
    }
}

fn args_of(command: &Command<'_>) -> Vec<Vec<u8>> {
    let args: Vec<_> = command.args().map(<[u8]>::to_vec).collect();
    assert_eq!(args.len(), command.count);
    for (index, arg) in args.iter().take(3).enumerate() {
        assert_eq!(command.arg(index), arg);
    }
    let slices: Vec<_> = args.iter().map(|arg| &arg[..]).collect();
    assert_eq!(resp(&slices), *command.bytes);
    args
}

#[track_caller]
fn refused(input: &[u8]) -> ProtocolError {
    match Parser::default().next(input) {
        Err(error) => error,
        other => panic!("{}: {other:?}", input.escape_ascii()),
    }
}

/// What a parser makes of bytes that come in pieces: the commands, and the error after them.
fn parse(pieces: &[&[u8]]) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
    let (mut parser, mut input, mut commands) = (Parser::default(), Vec::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let taken = match parser.next(&input) {
                Ok(Parsed::Command(command)) => {
                    commands.push(args_of(&command));
                    command.len
                }
                Ok(Parsed::Nothing(len)) => len,
                Ok(Parsed::Part(needed)) => {
                    assert!(needed > input.len());
                    break;
                }
                Err(error) => return (commands, Some(error)),
            };
            input.drain(..taken);
        }
    }
    (commands, None)
}

#[test]
fn arrays_and_inline_commands_are_the_same() {
    assert_eq!(args(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"), args(b"GET a\r\n"));
    assert_eq!(args(b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n"), args(b" GET \t \"\"\n"));
}

#[test]
fn inline_commands_are_quoted_as_for_redis() {
    let words = |line: &[u8]| args(&[line, b"\r\n"].concat());
    assert_eq!(
        words(br#"SET "\x00\n\q\"\\" 'it\'s\n'"#),
        [b"SET".to_vec(), b"\0\nq\"\\".to_vec(), b"it's\\n".to_vec(),]
    );
    // A quote may begin within a word.
    assert_eq!(words(br#"a"b c""#), [b"ab c".to_vec()]);
    assert_eq!(words(br#""\x5" "\xzz""#), [b"x5".to_vec(), b"xzz".to_vec()]);
    // Between words more bytes are space than end a word.
    assert_eq!(words(b"PING\x0bfoo\x0c \x0b\x0c a"), [&b"PING\x0bfoo\x0c"[..], b"a"]);
    assert_eq!(words(b"\x0bECHO \"a\"\x0b\"b\"\x0cc"), [&b"ECHO"[..], b"a", b"b", b"c"]);
    assert_eq!(words(b"GET a\rb\r"), [b"GET".to_vec(), b"a".to_vec(), b"b".to_vec()]);
    assert_eq!(words(b"GET a\0b c"), [b"GET".to_vec(), b"a".to_vec()]);
    assert_eq!(refused(b"GET \"a\0\"\r\n"), ProtocolError::Quotes);
    assert_eq!(Parser::default().next(b"\0GET a\r\n"), Ok(Parsed::Nothing(8)));
    for line in [r#"GET "a"#, r#"GET 'a"#, r#"GET "a"b"#, r#"GET "a\"#, r#"GET 'a'b"#] {
        assert_eq!(refused(format!("{line}\r\n").as_bytes()), ProtocolError::Quotes, "{line}");
    }
}

#[test]
fn lengths_are_numbers_that_are_allowed() {
    for length in ["4294967296", "9223372036854775806", "9223372036854775807", "1048577"] {
        let array = format!("*{length}\r\n");
        assert_eq!(refused(array.as_bytes()), ProtocolError::ArrayLength, "{array}");
        let bulk = format!("*1\r\n${length}\r\n");
        assert_eq!(refused(bulk.as_bytes()), ProtocolError::TooLarge, "{bulk}");
    }
    let no_numbers =
        ["", "0:", "+1", "01", "-0", "-01", "1 ", " 1", "1a", "--1", "99999999999999999999", "1\r"];
    for text in no_numbers {
        let array = format!("*{text}\r\n");
        assert_eq!(refused(array.as_bytes()), ProtocolError::ArrayLength, "{array}");
        let bulk = format!("*1\r\n${text}\r\n");
        assert_eq!(refused(bulk.as_bytes()), ProtocolError::BulkLength, "{bulk}");
    }
    assert_eq!(refused(b"*1\n"), ProtocolError::ArrayLength);
    assert_eq!(refused(b"*1\r\n$-2\r\n"), ProtocolError::BulkLength);
    assert_eq!(refused(b"*1\r\n$-1\r\n"), ProtocolError::BulkLength);
    // A line that never ends is refused as soon as it is too long.
    let digits = [b"*".to_vec(), vec![b'1'; 30]].concat();
    assert_eq!(refused(&digits), ProtocolError::ArrayLength);
    assert_eq!(refused(b"*2\r\n$1\r\na\r\n+1\r\n"), ProtocolError::NoBulk);
    assert_eq!(refused(b"*1\r\n$1\r\nabc"), ProtocolError::NoLineEnd);
    assert_eq!(refused(b"*1\r\n*1\r\n*1\r\n"), ProtocolError::NoBulk);
}

#[test]
fn what_asks_nothing_is_taken() {
    for nothing in ["\r\n", "\n", "  \r\n", "*0\r\n", "*-1\r\n", "*-9\r\n"] {
        let parsed = Parser::default().next(nothing.as_bytes());
        assert_eq!(parsed, Ok(Parsed::Nothing(nothing.len())), "{nothing:?}");
    }
}

#[test]
fn sizes_are_bounded() {
    let largest = REQUEST_MAX - resp(&[b"SET", b"a", b""]).len() - "524288".len();
    let whole = resp(&[b"SET", b"a", &vec![b'x'; largest]]);
    assert!(whole.len() <= REQUEST_MAX, "{}", whole.len());
    args(&whole);
    assert_eq!(refused(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1048570\r\n"), ProtocolError::TooLarge);
    let many = [b"*1048576\r\n".to_vec(), b"$0\r\n\r\n".repeat(200_000)].concat();
    assert_eq!(refused(&many), ProtocolError::TooLarge);
    assert_eq!(refused(&vec![b'x'; INLINE_MAX + 1]), ProtocolError::InlineTooLong);
    args(&[&vec![b'x'; INLINE_MAX - 1][..], b"\r\n"].concat());
}

#[test]
fn a_request_that_dribbles_is_examined_once() {
    // Twice as much takes about twice as long: otherwise this takes minutes.
    let request = resp(&vec![&b"x"[..]; 100_000]);
    let pieces: Vec<_> = request.chunks(7).collect();
    let mut parser = Parser::default();
    let mut end = 0;
    for piece in &pieces {
        end += piece.len();
        let parsed = parser.next(&request[..end]);
        assert_eq!(matches!(parsed, Ok(Parsed::Command(_))), end == request.len());
    }
    let line = [&vec![b'x'; INLINE_MAX - 1][..], b"\r\n"].concat();
    let mut parser = Parser::default();
    for end in 1..line.len() {
        assert_eq!(parser.next(&line[..end]), Ok(Parsed::Part(end + 1)));
    }
}

#[test]
fn the_commands_are_sorted_and_found() {
    assert!(COMMANDS.is_sorted_by_key(|(name, _)| name.as_bytes()));
    for (name, class) in COMMANDS {
        assert_eq!(Class::of(name.as_bytes()), *class, "{name}");
        assert_eq!(Class::of(name.to_lowercase().as_bytes()), *class, "{name}");
    }
    for unknown in ["", "G", "GETT", "A_NAME_OF_MANY_MORE_BYTES_THAN_ANY"] {
        assert_eq!(Class::of(unknown.as_bytes()), Class::Unknown);
    }
}

#[test]
fn only_a_read_of_a_stream_with_block_blocks() {
    let blocks = |line: &str| match Parser::default().next(line.as_bytes()) {
        Ok(Parsed::Command(command)) => has_block(&command),
        other => panic!("{other:?}"),
    };
    for line in [
        "XREAD COUNT 1 block 0 STREAMS s $\n",
        "XREAD BLOCK 0 COUNT 1 STREAMS s $\n",
        "XREADGROUP GROUP streams c BLOCK 0 STREAMS s >\n",
        // Options come in any order, and names may be those of options.
        "XREADGROUP BLOCK 0 GROUP g c STREAMS s >\n",
        "XREADGROUP count 1 noack block 0 group g c streams s >\n",
        "XREADGROUP NOACK GROUP count noack CLAIM 5 BLOCK 0 STREAMS s >\n",
    ] {
        assert!(blocks(line), "{line}");
    }
    for line in [
        "XREAD COUNT 1 STREAMS block 0\n",
        "XREAD COUNT BLOCK STREAMS s 0\n",
        "XREADGROUP GROUP block block STREAMS s >\n",
        "XREADGROUP NOACK GROUP g block COUNT block STREAMS s >\n",
        // Redis refuses what is no option.
        "XREAD FOO BLOCK 0 STREAMS s $\n",
        "XREADGROUP GROUP g\n",
    ] {
        assert!(!blocks(line), "{line}");
    }
}

proptest! {
    #[test]
    fn pieces_are_parsed_as_the_whole(
        words in prop::collection::vec(
            prop_oneof![
                Just(&b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"[..]),
                Just(&b"*1\r\n$2\r\n\r\n\r\n"[..]),
                Just(&b"SET a 'b c'\r\n"[..]),
                Just(&b"\r\n"[..]), Just(&b"*0\r\n"[..]), Just(&b"*"[..]), Just(&b"$1\r\n"[..]),
                Just(&b"1"[..]), Just(&b"\""[..]), Just(&b"\n"[..]), Just(&b"*3\r\n$4\r\n"[..]),
            ],
            0..12,
        ),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let whole = words.concat();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
        cuts.extend([0, whole.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|cut| &whole[cut[0]..cut[1]]).collect();
        prop_assert_eq!(parse(&pieces), parse(&[&whole]));
        let bytes: Vec<_> = whole.chunks(1).collect();
        prop_assert_eq!(parse(&bytes), parse(&[&whole]));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        parse(&[&bytes]);
        parse(&[b"*3\r\n", &bytes]);
        parse(&[b"*2\r\n$1\r\n", &bytes]);
    }
}
