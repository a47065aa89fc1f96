//! What is replied to requests as they should be.

use wheelhouse::sim::Sim;

use super::client::{
    DATE, advance_wall, answer, answer_pieces, last_reply_to, millis, replies, reply_to, secs,
    serve, take_replies,
};

use crate::server::EMPTY_LINES_MAX;

const HELLO: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

#[test]
fn hello_costs_as_many_bytes_as_nginx_needs_for_it() {
    let (bytes, _) = answer(HELLO.as_bytes());
    let want = format!(
        "HTTP/1.1 200 OK\r\nServer: wheelhouse\r\nDate: {DATE}\r\nContent-Type: text/plain\r\n\
         Content-Length: 13\r\nConnection: keep-alive\r\n\r\nHello, World!"
    );
    assert_eq!(String::from_utf8_lossy(&bytes), want);
    // `return 200 "Hello, World!"` of nginx 1.22.1 with `default_type text/plain`.
    const NGINX: usize = 161;
    assert!(bytes.len().abs_diff(NGINX) * 20 <= NGINX, "{}", bytes.len());
}

#[test]
fn the_date_is_renewed_every_second_of_the_wall() {
    let mut sim = Sim::new(1);
    advance_wall(millis(700));
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    let mut dates = Vec::new();
    for _ in 0..5 {
        peer.send(HELLO.as_bytes());
        sim.settle();
        dates.push(take_replies(&peer, 1)[0].field("Date").map(str::to_owned));
        sim.advance(millis(250));
        advance_wall(millis(250));
    }
    // At .70, .95, 1.20, 1.45 and 1.70.
    let second = |second| Some(DATE.replace("37", second));
    assert_eq!(dates, ["37", "37", "38", "38", "38"].map(second));
}

#[test]
fn a_connection_is_used_again() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    for _ in 0..20 {
        peer.send(HELLO.as_bytes());
        sim.settle();
        assert_eq!(take_replies(&peer, 1)[0].text(), "Hello, World!");
    }
    assert_eq!(server.stats().requests, 20);
    assert_eq!(server.stats().accepted, 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    let mut sent = String::new();
    for number in 0..500 {
        sent += &match number % 3 {
            0 => get(&format!("/bytes/{number}")),
            1 => get("/nowhere"),
            _ => format!(
                "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{number}",
                number.to_string().len()
            ),
        };
    }
    peer.send(sent.as_bytes());
    sim.settle();
    for (number, reply) in take_replies(&peer, 500).into_iter().enumerate() {
        match number % 3 {
            0 => assert_eq!(reply.body.len(), number),
            1 => assert_eq!(reply.status, 404),
            _ => assert_eq!(reply.text(), number.to_string()),
        }
    }
    assert_eq!(server.stats().requests, 500);
}

#[test]
fn a_pipeline_does_not_delay_others() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let (eager, modest) = (sim.connect(server.address()), sim.connect(server.address()));
    sim.settle();
    // Small replies, so that it is not congestion that ends the callback.
    eager.send(HELLO.repeat(900).as_bytes());
    modest.send(HELLO.as_bytes());
    while sim.step() {
        let served = server.stats().requests;
        if !modest.take().is_empty() {
            assert!(served < 500, "{served} requests came first");
            break;
        }
    }
    sim.settle();
    assert_eq!(take_replies(&eager, 900).len(), 900);
}

#[test]
fn head_has_the_head_of_get_and_no_body() {
    for path in ["/", "/bytes/100", "/healthz", "/readyz", "/slow?ms=10", "/nowhere", "/slow"] {
        let want = reply_to(&get(path));
        let got = reply_to(&get(path).replace("GET ", "HEAD "));
        assert_eq!((got.status, got.fields), (want.status, want.fields), "{path}");
    }
    let metrics = reply_to(&get("/metrics").replace("GET ", "HEAD "));
    assert!(metrics.field("Content-Length").expect("a length").len() >= 3);
    let (bytes, _) = answer(get("/bytes/5").replace("GET ", "HEAD ").repeat(3).as_bytes());
    assert_eq!(replies(&bytes, &[true; 3]).len(), 3);
    let refused = last_reply_to(b"HEAD / HTTP/1.1\r\n\r\n");
    assert_eq!((refused.status, refused.body.len()), (400, 0));
}

#[test]
fn bytes_are_as_many_as_asked_for() {
    for count in [0, 1, 63, 64, 65_535, 65_536, 65_537, 1_000_000] {
        let reply = reply_to(&get(&format!("/bytes/{count}")));
        assert_eq!(reply.body.len(), count);
        assert!(reply.body.chunks(64).all(|line| reply.body.starts_with(line)));
    }
}

#[test]
fn what_is_not_there_is_not_found() {
    for path in [
        "/x",
        "/bytes",
        "/bytes/",
        "/bytes/x",
        "/bytes/-1",
        "/bytes/+1",
        "/bytes/1/",
        "//",
        "/bytes/18446744073709551616",
        "/Healthz",
        "/healthz/",
        "/%2f",
        "/echo2",
    ] {
        let reply = reply_to(&get(path));
        assert_eq!((reply.status, reply.text()), (404, "404 Not Found\n"), "{path}");
    }
    for path in
        ["/slow", "/slow?", "/slow?ms", "/slow?ms=", "/slow?ms=-1", "/slow?ms=x", "/slow?s=1"]
    {
        assert_eq!(reply_to(&get(path)).status, 400, "{path}");
    }
}

#[test]
fn queries_are_distinguished_from_paths() {
    for path in ["/?", "/?x", "/healthz?x=/nowhere", "/bytes/3?x", "/slow?x=1&ms=2&y"] {
        assert_eq!(reply_to(&get(path)).status, 200, "{path}");
    }
}

#[test]
fn a_method_that_is_not_allowed_is_answered_with_those_that_are() {
    for path in ["/", "/bytes/1", "/healthz", "/readyz", "/metrics", "/slow?ms=1"] {
        let reply = reply_to(&format!("POST {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(
            (reply.status, reply.field("Allow")),
            (405, Some("GET, HEAD, OPTIONS")),
            "{path}"
        );
    }
    for method in ["GET", "HEAD"] {
        let reply = reply_to(&format!("{method} /echo HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!((reply.status, reply.field("Allow")), (405, Some("POST, OPTIONS")));
    }
}

#[test]
fn a_method_that_is_not_implemented_is_answered_and_its_body_skipped() {
    for method in ["PUT", "DELETE", "PATCH", "options", "TRACE", "get", "G", "PROPFIND", "M-SEARCH"]
    {
        for path in ["/", "/nowhere", "*"] {
            let reply = reply_to(&format!(
                "{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
            ));
            assert_eq!(reply.status, 501, "{method} {path}");
        }
    }
    // What comes next may be anything.
    let connect = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(last_reply_to(connect).status, 501);
}

#[test]
fn the_connection_ends_when_the_peer_wants_that() {
    for fields in [
        "Connection: close",
        "connection:Close",
        "Connection: x, CLOSE ,y",
        "Connection: x\r\nConnection: close",
        "Connection: keep-alive, close",
    ] {
        let sent = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{HELLO}");
        assert_eq!(last_reply_to(sent.as_bytes()).status, 200, "{fields}");
    }
    for fields in ["Connection: keep-alive", "Connection: closed", "Connection:", "Close: close"] {
        reply_to(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"));
    }
}

#[test]
fn http_1_0_keeps_the_connection_only_if_asked_to() {
    assert_eq!(last_reply_to(b"GET / HTTP/1.0\r\n\r\n").text(), "Hello, World!");
    assert_eq!(last_reply_to(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").status, 200);
    assert_eq!(last_reply_to(b"GET / HTTP/1.0\r\nConnection: x, close\r\n\r\n").status, 200);
    let kept = "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n";
    assert_eq!(reply_to(kept).status, 200);
    let both = b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n";
    assert_eq!(last_reply_to(both).status, 200);
    let posted = b"POST /echo HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(last_reply_to(posted).text(), "hi");
}

#[test]
fn the_target_may_be_a_whole_uri() {
    for target in [
        "http://a/",
        "http://a",
        "HTTP://a:80/",
        "https://a.b:443?x",
        "http://[::1]:80/",
        "http://other/",
    ] {
        assert_eq!(reply_to(&get(target)).text(), "Hello, World!", "{target}");
    }
    assert_eq!(reply_to(&get("http://a/bytes/3?x")).body, b"012");
    assert_eq!(reply_to(&get("http://a/nowhere")).status, 404);
}

#[test]
fn hosts_come_in_all_shapes() {
    for host in [
        "",
        "a",
        "a:80",
        "a:",
        "127.0.0.1:8080",
        "[::1]",
        "[::1]:80",
        "[v1.x:y]",
        "a_b-c.d~e",
        "%41",
        "a%4f%fFb:80",
        "[2001:db8::1]",
        "[1:2:3:4:5:6:7:8]:80",
        "[::ffff:1.2.3.4]",
        "[vF9.a~:!]:80",
        "a!$&'()*+,;=",
    ] {
        assert_eq!(reply_to(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).status, 200);
    }
}

#[test]
fn what_the_standard_lets_pass_passes() {
    for sent in [
        // Empty lines, as some peers send after a body.
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhOST:a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \t a \t \r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY: \u{e9}\tz\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 003\r\n\r\nabc",
    ] {
        assert_eq!(reply_to(sent).text(), "Hello, World!", "{sent:?}");
    }
}

#[test]
fn an_empty_line_between_requests_is_no_request() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let peer = sim.connect(server.address());
    let echo = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\r\n";
    for _ in 0..3 {
        peer.send(echo.as_bytes());
        sim.settle();
        assert_eq!(take_replies(&peer, 1)[0].text(), "hi");
    }
    // It is idle, not late.
    sim.advance(secs(60));
    assert!(peer.is_open());
    sim.advance(secs(16));
    assert_eq!(peer.take(), b"");
    assert!(!peer.is_open());
    assert_eq!(server.stats().requests, 3);
}

#[test]
fn empty_lines_before_a_request_are_skipped_up_to_a_bound() {
    for (lines, status) in
        [(1, 200), (EMPTY_LINES_MAX, 200), (EMPTY_LINES_MAX + 1, 400), (100_000, 400)]
    {
        let sent = "\r\n".repeat(lines) + HELLO;
        // Before the first request, and before a later one.
        let (first, _) = answer(sent.as_bytes());
        assert_eq!(replies(&first, &[false])[0].status, status, "{lines} lines");
        let (second, _) = answer((HELLO.to_owned() + &sent).as_bytes());
        assert_eq!(replies(&second, &[false; 2])[1].status, status, "{lines} lines");
    }
    // One by one, and each request has its own.
    let lines = vec![&b"\r\n"[..]; EMPTY_LINES_MAX];
    let (bytes, closed) =
        answer_pieces(&[&lines[..], &[HELLO.as_bytes()], &lines, &[HELLO.as_bytes()]].concat());
    assert_eq!((replies(&bytes, &[false; 2]).len(), closed), (2, false));
}

#[test]
fn later_minor_versions_are_served_as_1_1() {
    for minor in 1..=9 {
        let as_1_1 = |sent: &str| reply_to(&sent.replace("1.1", &format!("1.{minor}")));
        assert_eq!(as_1_1(HELLO).text(), "Hello, World!");
        assert_eq!(as_1_1(&get("/bytes/3?HTTP/1.1")).text(), "012");
        assert_eq!(as_1_1(&HELLO.replace("GET", "HEAD")).text(), "");
        let chunked = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                       3\r\nabc\r\n0\r\n\r\n";
        assert_eq!(as_1_1(chunked).text(), "abc");
        // They need a Host too.
        let hostless = format!("GET / HTTP/1.{minor}\r\n\r\n");
        assert_eq!(last_reply_to(hostless.as_bytes()).status, 400);
    }
    // Only the version of the message is the version, and its bytes stay what they are.
    let body = "GET / HTTP/1.5\r\n\r\n";
    let length = body.len();
    let sent = format!("POST /echo HTTP/1.7\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
    assert_eq!(reply_to(&sent).text(), body);
}

#[test]
fn options_are_answered_with_what_is_allowed() {
    for (target, allowed) in [
        ("/", "GET, HEAD, OPTIONS"),
        ("/bytes/5", "GET, HEAD, OPTIONS"),
        ("/slow", "GET, HEAD, OPTIONS"),
        ("/healthz?x", "GET, HEAD, OPTIONS"),
        ("/echo", "POST, OPTIONS"),
        ("*", "GET, HEAD, POST, OPTIONS"),
        ("http://a/echo", "POST, OPTIONS"),
        // RFC 9112, 3.2.4: a URI without a path means the server as a whole.
        ("http://a", "GET, HEAD, POST, OPTIONS"),
        ("http://a:80", "GET, HEAD, POST, OPTIONS"),
    ] {
        let reply = reply_to(&format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!((reply.status, reply.text()), (200, ""), "{target}");
        assert_eq!(reply.field("Allow"), Some(allowed), "{target}");
        assert_eq!(reply.field("Content-Length"), Some("0"));
    }
    // As HAProxy asks by default.
    let check = last_reply_to(b"OPTIONS / HTTP/1.0\r\n\r\n");
    assert_eq!((check.status, check.field("Allow")), (200, Some("GET, HEAD, OPTIONS")));
    assert_eq!(reply_to("OPTIONS /nowhere HTTP/1.1\r\nHost: a\r\n\r\n").status, 404);
    for target in ["**", "*?x", "x", "http://", "http://a/#x"] {
        let sent = format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(last_reply_to(sent.as_bytes()).status, 400, "{target}");
    }
    // A body is skipped.
    let sent = "OPTIONS / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(reply_to(sent).status, 200);
}

#[test]
fn the_metrics_are_those_of_the_reactor() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim);
    let gone = sim.connect(server.address());
    gone.send(HELLO.as_bytes());
    sim.settle();
    gone.close();
    let peer = sim.connect(server.address());
    peer.send(HELLO.repeat(4).as_bytes());
    sim.settle();
    take_replies(&peer, 4);
    peer.send(get("/metrics").as_bytes());
    sim.settle();
    let reply = take_replies(&peer, 1).remove(0);
    assert_eq!(reply.field("Content-Type"), Some("text/plain; version=0.0.4"));
    let text = reply.text();
    for line in [
        "wheelhouse_requests_total 5",
        "wheelhouse_accepted_total 2",
        "wheelhouse_connections{state=\"idle\"} 1",
        "wheelhouse_closed_total{reason=\"peer_eof\"} 1",
        "# TYPE wheelhouse_connections gauge",
        "# TYPE wheelhouse_closed_total counter",
    ] {
        assert!(text.lines().any(|got| got == line), "{line} in {text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(name.starts_with("wheelhouse_") && value.parse::<f64>().is_ok(), "{line}");
    }
}
