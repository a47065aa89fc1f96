//! How upstreams are checked, as the command line says it.

use std::str::FromStr;

const FORM: &str = "tcp or send:REQUEST:EXPECT is needed";

/// The longest REQUEST and EXPECT.
const LEN_MAX: usize = 4_096;

/// How upstreams are checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Check {
    /// They accept.
    Tcp,
    /// They answer.
    Send { request: Vec<u8>, expect: Vec<u8> },
}

impl FromStr for Check {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "tcp" {
            return Ok(Self::Tcp);
        }
        let text = text.strip_prefix("send:").ok_or(FORM)?;
        let (request, rest) = unescape(text)?;
        let (expect, None) = unescape(rest.ok_or(FORM)?)? else { return Err(FORM) };
        if expect.is_empty() {
            return Err("EXPECT must not be empty");
        }
        if request.len().max(expect.len()) > LEN_MAX {
            return Err("at most 4,096 bytes may be sent or expected");
        }
        Ok(Self::Send { request, expect })
    }
}

/// The bytes up to the first colon that is not escaped, and what follows it.
fn unescape(text: &str) -> Result<(Vec<u8>, Option<&str>), &'static str> {
    const ESCAPE: &str = r"an escape is \r, \n, \t, \\, \: or \xHH";
    let (mut bytes, mut rest) = (Vec::new(), text);
    loop {
        let Some(next) = rest.chars().next() else { return Ok((bytes, None)) };
        rest = &rest[next.len_utf8()..];
        match next {
            ':' => return Ok((bytes, Some(rest))),
            '\\' => {
                let escaped = rest.chars().next().ok_or(ESCAPE)?;
                rest = &rest[escaped.len_utf8()..];
                bytes.push(match escaped {
                    'r' => b'\r',
                    'n' => b'\n',
                    't' => b'\t',
                    '\\' => b'\\',
                    ':' => b':',
                    'x' => {
                        let digits = rest.get(..2).ok_or(ESCAPE)?;
                        rest = &rest[2..];
                        u8::from_str_radix(digits, 16).map_err(|_| ESCAPE)?
                    }
                    _ => return Err(ESCAPE),
                });
            }
            other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(request: &[u8], expect: &[u8]) -> Result<Check, &'static str> {
        Ok(Check::Send { request: request.to_vec(), expect: expect.to_vec() })
    }

    #[test]
    fn every_form_is_understood() {
        let parse = Check::from_str;
        assert_eq!(parse("tcp"), Ok(Check::Tcp));
        assert_eq!(parse(r"send:PING\r\n:+PONG"), send(b"PING\r\n", b"+PONG"));
        assert_eq!(parse("send::220"), send(b"", b"220"));
        assert_eq!(
            parse(r"send:Host\: a\\\t:\x00\xfFé"),
            send(b"Host: a\\\t", b"\x00\xff\xc3\xa9")
        );
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "udp",
            "send",
            "send:",
            "send:a",
            "send:a:",
            "send:a:b:c",
            r"send:\q:a",
            r"send:a:\x1",
            r"send:a\",
        ] {
            assert!(Check::from_str(text).is_err(), "{text:?}");
        }
        assert!(Check::from_str(&format!("send::{}", "a".repeat(LEN_MAX + 1))).is_err());
    }
}
