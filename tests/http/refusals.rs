//! What is no request, or could be two to another server: refused, and nothing after it served.

use super::client::last_reply_to;

/// What must never be served: it follows something whose end is in doubt.
const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Messages that must be refused, each with the status that says so. The tests of splits go through
/// them too.
pub(crate) fn shapes() -> Vec<(Vec<u8>, u16)> {
    let mut shapes: Vec<(Vec<u8>, u16)> = Vec::new();
    let mut add = |status, message: &[u8]| {
        shapes.push(([message, SMUGGLED].concat(), status));
    };
    for line in REQUEST_LINES {
        add(400, &[line, &b"Host: a\r\n\r\n"[..]].concat());
    }
    for (line, status) in VERSIONS {
        add(*status, &[line, &b"\r\nHost: a\r\n\r\n"[..]].concat());
    }
    for fields in HOSTS {
        add(400, &[b"GET / HTTP/1.1\r\n", *fields, b"\r\n"].concat());
    }
    for field in FIELDS {
        add(400, &[b"GET / HTTP/1.1\r\nHost: a\r\n", *field, b"\r\n\r\n"].concat());
    }
    for (fields, status) in FRAMINGS {
        let head = [b"POST /echo HTTP/1.1\r\nHost: a\r\n", *fields, b"\r\n\r\n"].concat();
        add(*status, &[&head, &b"0\r\n\r\n"[..]].concat());
        add(*status, &[&head, &b"3\r\nabc\r\n0\r\n\r\n"[..]].concat());
    }
    for body in CHUNKS {
        let head = &b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"[..];
        add(400, &[head, body].concat());
        // As the second chunk, and where the body is of no interest.
        add(400, &[head, b"3\r\nabc\r\n", body].concat());
        let head = &b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"[..];
        add(400, &[head, body].concat());
    }
    for trailer in TRAILERS {
        let head = &b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"[..];
        add(400, &[head, b"3\r\nabc\r\n0\r\n", trailer].concat());
    }
    let old: [&[u8]; 2] = [
        b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ];
    for message in old {
        add(400, message);
    }
    shapes
}

const REQUEST_LINES: &[&[u8]] = &[
    b"GET / HTTP/1.1 \r\n",
    b"GET  / HTTP/1.1\r\n",
    b"GET /  HTTP/1.1\r\n",
    b" GET / HTTP/1.1\r\n",
    b"GET\t/ HTTP/1.1\r\n",
    b"GET /\tHTTP/1.1\r\n",
    b"GET /a b HTTP/1.1\r\n",
    b"GET /\x00 HTTP/1.1\r\n",
    b"GET /\x7f HTTP/1.1\r\n",
    b"GET /\x0b HTTP/1.1\r\n",
    b"GET /\xff HTTP/1.1\r\n",
    b"GET /\xc3\xa9 HTTP/1.1\r\n",
    b"GET /#a HTTP/1.1\r\n",
    b"G\x00T / HTTP/1.1\r\n",
    b"G(T / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\rX: y\r\n",
    b"GET /\r\n",
    b"GET\r\n",
    b"GET x HTTP/1.1\r\n",
    b"GET * HTTP/1.1\r\n",
    b"GET a:80 HTTP/1.1\r\n",
    b"GET http:/a/ HTTP/1.1\r\n",
    b"GET http:// HTTP/1.1\r\n",
    b"GET http:///x HTTP/1.1\r\n",
    b"GET http://:80/x HTTP/1.1\r\n",
    b"GET http://u@a/ HTTP/1.1\r\n",
    b"GET http://a:x/ HTTP/1.1\r\n",
    b"GET http://%zz/ HTTP/1.1\r\n",
    b"GET http://[zz]/ HTTP/1.1\r\n",
    b"GET http://[1.2.3.4]/ HTTP/1.1\r\n",
    b"GET ftp://a/ HTTP/1.1\r\n",
    b"\nGET / HTTP/1.1\r\n",
    b"\r\n\nGET / HTTP/1.1\r\n",
    b"\r\n\r\r\nGET / HTTP/1.1\r\n",
    // A line ends with CR and LF.
    b"GET / HTTP/1.1\n",
    b"POST /echo HTTP/1.1\nContent-Length: 3\r\n",
    b"\r\rGET / HTTP/1.1\r\n",
    // The beginning of a TLS handshake, and of SOCKS.
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
    b"\x05\x01\x00\r\n",
];

const VERSIONS: &[(&[u8], u16)] = &[
    (b"GET / HTTP/2.0", 505),
    (b"GET / HTTP/0.9", 505),
    (b"GET / HTTP/3", 505),
    (b"GET / HTTP/2", 505),
    (b"GET / HTTP/0.0", 505),
    (b"GET / HTTP/9.1", 505),
    (b"PRI * HTTP/2.0", 505),
    (b"GET / http/1.1", 400),
    (b"GET / HTTP/x.1", 400),
    (b"GET / HTTP/1.x", 400),
    (b"GET / HTTP/1,1", 400),
    (b"GET / HTTPS/1.1", 400),
    (b"GET / HTP/1.1", 400),
    (b"GET / HTTP/1.10", 400),
    (b"GET / HTTP/1.1x", 400),
    (b"GET / HTTP/1.2x", 400),
    (b"GET / HTTP/1.2 ", 400),
    (b"GET / HTTP/1.22", 400),
    (b"GET / HTTP/1", 400),
    (b"GET / HTTP/1.", 400),
    (b"GET / HTTP/01.01", 400),
    (b"GET / HTTP/01.1", 400),
    (b"GET / HTTP/10.1", 400),
    (b"GET / HTTP/1.01", 400),
    (b"GET / HTTP/2garbage", 400),
    (b"GET / HTTP/2.0garbage", 400),
    (b"GET / HTTP/2.0 ", 400),
    (b"GET / HTTP/2.", 400),
    (b"GET / HTTP/2.x", 400),
    (b"GET / HTTP/2,0", 400),
    (b"GET / HTTP/2 0", 400),
    (b"GET / HTTP/20", 400),
    (b"GET / HTTP/", 400),
    (b"GET / HTTP/-1.1", 400),
    (b"GET / HTTP /1.1", 400),
];

const HOSTS: &[&[u8]] = &[
    b"",
    b"Hosts: a\r\n",
    b"Host: a\r\nHost: a\r\n",
    b"Host: a\r\nhost: b\r\n",
    b"Host: a b\r\n",
    b"Host: a/b\r\n",
    b"Host: a@b\r\n",
    b"Host: a,b/\r\n",
    b"Host: a:b\r\n",
    b"Host: a:80:80\r\n",
    b"Host: a:-1\r\n",
    b"Host: [::1\r\n",
    b"Host: ::1\r\n",
    b"Host: []\r\n",
    b"Host: [::1]80\r\n",
    b"Host: [::1]x:80\r\n",
    b"Host: a?b\r\n",
    b"Host: a#b\r\n",
    b"Host: \"a\"\r\n",
    b"Host: <a>\r\n",
    b"Host: \xc3\xa9\r\n",
    // What is encoded is so by two digits.
    b"Host: %\r\n",
    b"Host: %4\r\n",
    b"Host: %zz\r\n",
    b"Host: a%4g.b\r\n",
    b"Host: %%41\r\n",
    // What is in brackets is an IPv6 address, or says of what version it is.
    b"Host: [zz]\r\n",
    b"Host: [1.2.3.4]\r\n",
    b"Host: [1.2.3.4]:80\r\n",
    b"Host: [a]\r\n",
    b"Host: [1:2]\r\n",
    b"Host: [::1::]\r\n",
    b"Host: [::1%25lo]\r\n",
    b"Host: [::g]\r\n",
    b"Host: [:]\r\n",
    b"Host: [1:2:3:4:5:6:7:8:9]\r\n",
    b"Host: [v1.]\r\n",
    b"Host: [v.x]\r\n",
    b"Host: [vg.x]\r\n",
    b"Host: [v1x]\r\n",
    b"Host: [v1.%41]\r\n",
    b"Host: x[::1]\r\n",
    // Ends of lines.
    b"Host: a\n",
    b"Host: a\nX: y\r\n",
    b"Host: a\r\nX: y\n",
];

const FIELDS: &[&[u8]] = &[
    b"X : y",
    b"X\t: y",
    b"Content-Length : 5",
    b"Transfer-Encoding : chunked",
    b": y",
    b"X",
    b"X y",
    b"X\x00: y",
    b"X\xe9: y",
    b"X(: y",
    b"X: y\x00z",
    b"X: \x01",
    b"X: y\x0bz",
    b"X: y\x0cz",
    b"X: y\x7fz",
    b"X: y\x1b",
    b"X: y\rz",
    b"X: y\r\r",
    // Folded lines.
    b"X: y\r\n z",
    b"X: y\r\n\tz",
    b"Transfer-Encoding:\r\n chunked",
    b"X:\r\n Content-Length: 5",
    // Ends of lines.
    b"X: y\nZ: z",
    b"X: y\n",
    // A field with white space in front.
    b" X: y",
    b"\tX: y",
];

const FRAMINGS: &[(&[u8], u16)] = &[
    (b"Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 0", 400),
    (b"Transfer-Encoding: gzip\r\nContent-Length: 5", 400),
    (b"Content-Length: 5\r\nContent-Length: 6", 400),
    (b"Content-Length: 5\r\nContent-Length: 5", 400),
    (b"Content-Length: 5\r\ncontent-length: 5", 400),
    (b"Content-Length: 0\r\nContent-Length:", 400),
    (b"Content-Length:", 400),
    (b"Content-Length: 5, 5", 400),
    (b"Content-Length: 5,5", 400),
    (b"Content-Length: 5,", 400),
    (b"Content-Length: ,5", 400),
    (b"Content-Length: +5", 400),
    (b"Content-Length: -5", 400),
    (b"Content-Length: -0", 400),
    (b"Content-Length: 0x5", 400),
    (b"Content-Length: 5 5", 400),
    (b"Content-Length: 5;x", 400),
    (b"Content-Length: 5.0", 400),
    (b"Content-Length: 5e0", 400),
    (b"Content-Length: 1_0", 400),
    (b"Content-Length: \"5\"", 400),
    (b"Content-Length: five", 400),
    (b"Content-Length: \xb2", 400),
    (b"Content-Length: 18446744073709551616", 400),
    (b"Content-Length: 99999999999999999999999999999999", 400),
    (b"Transfer-Encoding:", 400),
    (b"Transfer-Encoding: identity", 400),
    (b"Transfer-Encoding: gzip", 400),
    (b"Transfer-Encoding: chunked, gzip", 400),
    (b"Transfer-Encoding: chunked, identity", 400),
    (b"Transfer-Encoding: chunked, chunked", 400),
    (b"Transfer-Encoding: chunked, gzip, chunked", 400),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip", 400),
    (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 400),
    (b"Transfer-Encoding: x\r\nTransfer-encoding: chunked", 400),
    (b"Transfer-Encoding: xchunked", 400),
    (b"Transfer-Encoding: chunkedx", 400),
    (b"Transfer-Encoding: x chunked", 400),
    (b"Transfer-Encoding: \"chunked\"", 400),
    (b"Transfer-Encoding: chunked;q=1", 400),
    (b"Transfer-Encoding: chunked,", 400),
    (b"Transfer-Encoding: ,chunked", 400),
    (b"Transfer-Encoding: \x0bchunked", 400),
    (b"Transfer-Encoding: chunked\x0b", 400),
    (b"Transfer-Encoding: ch\x00unked", 400),
    (b"Transfer-Encoding: gzip;x, chunked", 400),
    (b"Transfer-Encoding: gzip, chunked", 501),
    (b"Transfer-Encoding: gzip,chunked", 501),
    (b"Transfer-Encoding: identity, chunked", 501),
    (b"Transfer-Encoding: x, y, Chunked", 501),
];

const CHUNKS: &[&[u8]] = &[
    // Sizes.
    b"\r\nabc\r\n0\r\n\r\n",
    b"0x3\r\nabc\r\n0\r\n\r\n",
    b"+3\r\nabc\r\n0\r\n\r\n",
    b"-3\r\nabc\r\n0\r\n\r\n",
    b"-0\r\n\r\n",
    b" 3\r\nabc\r\n0\r\n\r\n",
    b"3 \r\nabc\r\n0\r\n\r\n",
    b"3\t\r\nabc\r\n0\r\n\r\n",
    b"3 x\r\nabc\r\n0\r\n\r\n",
    b"3 3\r\nabc\r\n0\r\n\r\n",
    b"3_\r\nabc\r\n0\r\n\r\n",
    b"3g\r\nabc\r\n0\r\n\r\n",
    b"g\r\nabc\r\n0\r\n\r\n",
    b"3.0\r\nabc\r\n0\r\n\r\n",
    b"3,3\r\nabc\r\n0\r\n\r\n",
    b"\x003\r\nabc\r\n0\r\n\r\n",
    b";x\r\nabc\r\n0\r\n\r\n",
    b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    b"00000000000000003\r\nabc\r\n0\r\n\r\n",
    b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    // Extensions.
    b"3;\r\nabc\r\n0\r\n\r\n",
    b"3; \r\nabc\r\n0\r\n\r\n",
    b"3;;x\r\nabc\r\n0\r\n\r\n",
    b"3;x;\r\nabc\r\n0\r\n\r\n",
    b"3;=y\r\nabc\r\n0\r\n\r\n",
    b"3;x=\r\nabc\r\n0\r\n\r\n",
    b"3;x=;y\r\nabc\r\n0\r\n\r\n",
    b"3;x==y\r\nabc\r\n0\r\n\r\n",
    b"3;x=y=z\r\nabc\r\n0\r\n\r\n",
    b"3;x y\r\nabc\r\n0\r\n\r\n",
    b"3;x \r\nabc\r\n0\r\n\r\n",
    b"3;x=y z\r\nabc\r\n0\r\n\r\n",
    b"3;x=y \r\nabc\r\n0\r\n\r\n",
    b"3;x=\"y\r\nabc\r\n0\r\n\r\n",
    b"3;x=\"y\\\r\nabc\r\n0\r\n\r\n",
    b"3;x=\"y\\\"\r\nabc\r\n0\r\n\r\n",
    b"3;x=\"y\"z\r\nabc\r\n0\r\n\r\n",
    b"3;x=\"y\" \r\nabc\r\n0\r\n\r\n",
    b"3;x=y\"z\"\r\nabc\r\n0\r\n\r\n",
    b"3;x=\"y\" =z\r\nabc\r\n0\r\n\r\n",
    b"3;\"x\"\r\nabc\r\n0\r\n\r\n",
    b"3;x,y\r\nabc\r\n0\r\n\r\n",
    b"3;(x)\r\nabc\r\n0\r\n\r\n",
    b"3;x=\xe9\r\nabc\r\n0\r\n\r\n",
    b"3;\xe9\r\nabc\r\n0\r\n\r\n",
    // Ends of lines.
    b"3\nabc\r\n0\r\n\r\n",
    b"3\rabc\r\n0\r\n\r\n",
    b"3\r\rabc\r\n0\r\n\r\n",
    b"3\r\n\nabc\r\n0\r\n\r\n",
    b"3;x\nabc\r\n0\r\n\r\n",
    b"3;x\rabc\r\n0\r\n\r\n",
    b"3;x\x00\r\nabc\r\n0\r\n\r\n",
    b"3;x=\"\x7f\"\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\n0\r\n\r\n",
    b"3\r\nabc\r0\r\n\r\n",
    b"3\r\nabc0\r\n\r\n",
    b"3\r\nabcd\r\n0\r\n\r\n",
    b"3\r\nabc\r\r\n0\r\n\r\n",
    b"3\r\nabc\n\r0\r\n\r\n",
    b"0\n\r\n",
    b"0\r\n\n",
    b"0\r\r\n",
];

const TRAILERS: &[&[u8]] = &[
    b"X: y\n\r\n",
    b"X: y\r\r\n",
    b"X: y\r\n\n",
    b"X: y\r\n z\r\n\r\n",
    b"X : y\r\n\r\n",
    b"X\r\n\r\n",
    b": y\r\n\r\n",
    b"X: y\x00\r\n\r\n",
    b"\x00\r\n\r\n",
];

#[test]
fn what_is_malformed_or_in_doubt_is_refused_and_ends_the_connection() {
    let shapes = shapes();
    assert!(shapes.len() > 250, "{}", shapes.len());
    for (sent, status) in shapes {
        let reply = last_reply_to(&sent);
        assert_eq!(reply.status, status, "{}", sent.escape_ascii());
    }
}

#[test]
fn what_came_before_is_served() {
    for (sent, status) in shapes() {
        let before = b"GET /bytes/7 HTTP/1.1\r\nHost: a\r\n\r\n";
        let (bytes, closed) = super::client::answer(&[&before[..], &sent].concat());
        let replies = super::client::replies(&bytes, &[false; 2]);
        let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
        assert_eq!((statuses, closed), (vec![200, status], true), "{}", sent.escape_ascii());
    }
}
