//! What the server replies, in virtual time.

use wheelhouse::sim::{End, Peer, Server, Sim};
use wheelhouse::{CloseReason, Config, Timeouts};

use crate::server::{Resp, Settings, defaults};
use crate::shorthands::{millis, secs, with_places};

const REQUEST_MAX: usize = 1 << 20;

fn serve(sim: &mut Sim, memory_max: usize, config: Config) -> Server<Resp> {
    let timeouts = config.timeouts.clone();
    let subscribed = Timeouts { idle: None, ..config.timeouts };
    let settings = Settings {
        memory_max,
        request_max: REQUEST_MAX,
        seed: 1,
        secret: [2, 3],
        subscribed,
        timeouts,
    };
    sim.serve("10.0.0.1:7", config, Resp::new(settings))
}

fn world() -> (Sim, Server<Resp>) {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, 64 << 20, defaults(REQUEST_MAX));
    (sim, server)
}

/// What a peer reads after it has sent that; lines end with `|`.
#[track_caller]
fn expect(sim: &mut Sim, peer: &Peer, sent: &str, replies: &str) {
    peer.send(sent.as_bytes());
    sim.settle();
    assert_eq!(String::from_utf8_lossy(&peer.take()).replace("\r\n", "|"), replies, "{sent:?}");
}

#[test]
fn a_key_expires_when_its_time_has_come() {
    let (mut sim, server) = world();
    let peer = sim.connect(&server);
    expect(&mut sim, &peer, "SET a 1 PX 1500\r\nPTTL a\r\nTTL a\r\n", "+OK|:1500|:2|");
    sim.advance(millis(1_499));
    expect(&mut sim, &peer, "GET a\r\nDBSIZE\r\n", "$1|1|:1|");
    // Its alarm removes it, although no command asks for it.
    sim.advance(millis(15));
    expect(&mut sim, &peer, "DBSIZE\r\nGET a\r\nTTL a\r\n", ":0|$-1|:-2|");
    // A key that is set again has no end, one that keeps it has, and one that persists has none.
    expect(&mut sim, &peer, "SET a 1 EX 5\r\nSET a 2\r\nTTL a\r\n", "+OK|+OK|:-1|");
    expect(&mut sim, &peer, "EXPIRE a 5\r\nSET a 3 KEEPTTL\r\nTTL a\r\n", ":1|+OK|:5|");
    expect(&mut sim, &peer, "PERSIST a\r\nPERSIST a\r\nEXPIRE a -1\r\nGET a\r\n", ":1|:0|:1|$-1|");
    expect(&mut sim, &peer, "SET b 1 EX 5\r\nFLUSHALL\r\nSET b 2\r\n", "+OK|+OK|+OK|");
    sim.advance(secs(10));
    expect(&mut sim, &peer, "GET b\r\n", "$1|2|");
    server.assert_blameless();
}

#[test]
fn ten_thousand_keys_expire_at_once() {
    let (mut sim, server) = world();
    let peer = sim.connect(&server);
    for key in 0..10_000 {
        peer.send(format!("SET k{key} 1 EX 60\r\n").as_bytes());
    }
    sim.settle();
    peer.take();
    expect(&mut sim, &peer, "DBSIZE\r\n", ":10000|");
    sim.advance(secs(61));
    expect(&mut sim, &peer, "DBSIZE\r\n", ":0|");
}

#[test]
fn a_command_is_the_same_however_it_is_split() {
    let sent =
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$12\r\nhello\r\nworld\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n\
                 PING \"a b\"\r\n*0\r\n\r\n*2\r\n$6\r\nSTRLEN\r\n$1\r\na\r\n";
    let replies = b"+OK\r\n$12\r\nhello\r\nworld\r\n$3\r\na b\r\n:12\r\n";
    for at in 1..sent.len() {
        let (mut sim, server) = world();
        let peer = sim.connect(&server);
        peer.send(&sent[..at]);
        sim.advance(millis(50));
        peer.send(&sent[at..]);
        sim.advance(millis(50));
        peer.expect(replies);
    }
    let (mut sim, server) = world();
    let peer = sim.connect(&server);
    peer.drip(sent, millis(10));
    sim.advance(secs(2));
    peer.expect(replies);
}

#[test]
fn lengths_that_are_none_end_the_connection() {
    for (sent, error) in [
        ("*4294967296\r\n", "invalid multibulk length"),
        ("*1048577\r\n", "invalid multibulk length"),
        ("*+1\r\n", "invalid multibulk length"),
        ("*01\r\n", "invalid multibulk length"),
        ("*1\r\n$-1\r\n", "invalid bulk length"),
        ("*1\r\n$0:\r\n", "invalid bulk length"),
        ("*1\r\n$-2\r\n", "invalid bulk length"),
        ("*1\r\n$99999999999999999999\r\n", "invalid bulk length"),
        (
            "*1\r\n$9223372036854775806\r\n",
            "the command is larger than 1048576 bytes (--max-request)",
        ),
        ("*1\r\n$4294967296\r\n", "the command is larger than 1048576 bytes (--max-request)"),
        ("*1\r\n*1\r\n", "expected '$', got '*'"),
        ("*1\r\n$1\r\nabc", "expected CRLF after a bulk string"),
        ("GET \"a\r\n", "unbalanced quotes in request"),
    ] {
        let (mut sim, server) = world();
        let peer = sim.connect(&server);
        expect(&mut sim, &peer, sent, &format!("-ERR Protocol error: {error}|"));
        assert_eq!(peer.closed(), Some(End::Fin), "{sent:?}");
        assert!(server.stats().buffered < 64 * 1_024);
    }
    let (mut sim, server) = world();
    let peer = sim.connect(&server);
    let long = "x".repeat(65_600);
    expect(&mut sim, &peer, &long, "-ERR Protocol error: too big inline request|");
}

#[test]
fn a_transaction_is_executed_as_one() {
    let (mut sim, server) = world();
    let peer = sim.connect(&server);
    let sent = "MULTI\r\nSET a 1\r\nINCR a\r\nLPUSH a x\r\nGET a\r\nEXEC\r\n";
    let replies = "+OK|+QUEUED|+QUEUED|+QUEUED|+QUEUED|*4|+OK|:2|-WRONGTYPE Operation against a \
                   key holding the wrong kind of value|$1|2|";
    expect(&mut sim, &peer, sent, replies);
    let aborted = "-EXECABORT Transaction discarded because of previous errors.|";
    let sent = "MULTI\r\nGET\r\nSET a 9\r\nEXEC\r\nGET a\r\n";
    let replies =
        format!("+OK|-ERR wrong number of arguments for 'get' command|+QUEUED|{aborted}$1|2|");
    expect(&mut sim, &peer, sent, &replies);
    expect(&mut sim, &peer, "MULTI\r\nSET a 9\r\nDISCARD\r\nGET a\r\n", "+OK|+QUEUED|+OK|$1|2|");
    expect(
        &mut sim,
        &peer,
        "EXEC\r\nDISCARD\r\n",
        "-ERR EXEC without MULTI|-ERR DISCARD without MULTI|",
    );
    let sent = "MULTI\r\nSET a 9\r\nEXEC x\r\nEXEC\r\nGET a\r\n";
    let aborted = "-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' \
                   command|";
    let replies = format!("+OK|+QUEUED|{aborted}-ERR EXEC without MULTI|$1|2|");
    expect(&mut sim, &peer, sent, &replies);
    expect(&mut sim, &peer, "EXEC x\r\nDEL a\r\n", &format!("{aborted}:1|"));
    // The memory of what is not executed comes back.
    peer.send(b"INFO\r\n");
    sim.settle();
    assert!(String::from_utf8_lossy(&peer.take()).contains("used_memory:0\r\n"));
}

#[test]
fn numbers_at_the_ends_of_their_range_are_calculated_with() {
    let (mut sim, server) = world();
    let peer = sim.connect(&server);
    let (least, most) = (i64::MIN, i64::MAX);
    expect(&mut sim, &peer, "RPUSH l a b\r\n", ":2|");
    for (sent, replies) in [
        (format!("LRANGE l {most} {least}"), "*0|"),
        (format!("LRANGE l {most} {most}"), "*0|"),
        (format!("LRANGE l {least} {least}"), "*0|"),
        (format!("LRANGE l {least} {most}"), "*2|$1|a|$1|b|"),
        (format!("LINDEX l {least}"), "$-1|"),
        (format!("LINDEX l {most}"), "$-1|"),
        (format!("INCRBY n {most}"), ":9223372036854775807|"),
        (format!("DECRBY n {least}"), "-ERR decrement would overflow|"),
        // A time long past ends a key, and one beyond all times is none.
        (format!("PEXPIREAT n {least}"), ":1|"),
        (format!("PEXPIREAT n {least}"), ":0|"),
        (format!("EXPIREAT l {}", least / 1_000), ":1|"),
        (
            format!("EXPIREAT l {}", least / 1_000 - 1),
            "-ERR invalid expire time in 'expireat' command|",
        ),
        (format!("CLIENT LIST ID -1 {least}"), "$0||"),
    ] {
        expect(&mut sim, &peer, &format!("{sent}\r\n"), replies);
    }
}

/// A page in a browser can send lines of its own choice to any port, but not these first ones.
#[test]
fn a_request_of_http_ends_the_connection() {
    for first in ["POST / HTTP/1.1", "GET / HTTP/1.1\r\nhOST: x", "MULTI\r\nHost:"] {
        let (mut sim, server) = world();
        let peer = sim.connect(&server);
        peer.send(format!("{first}\r\n\r\nSET a 1\r\n").as_bytes());
        sim.settle();
        assert_eq!(peer.closed(), Some(End::Fin), "{first}");
        let other = sim.connect(&server);
        expect(&mut sim, &other, "EXISTS a\r\n", ":0|");
    }
}

#[test]
fn memory_that_is_used_up_is_refused_and_comes_back() {
    let mut sim = Sim::new(1);
    let server = serve(&mut sim, 1 << 20, defaults(REQUEST_MAX));
    let peer = sim.connect(&server);
    let value = "x".repeat(60_000);
    for key in 0..30 {
        peer.send(format!("SET k{key} {value}\r\n").as_bytes());
    }
    sim.settle();
    let replies = String::from_utf8(peer.take()).expect("text");
    let stored = replies.matches("+OK").count();
    assert!((15..=18).contains(&stored), "{stored}");
    let oom = "-OOM command not allowed when used memory > 'maxmemory'.";
    assert_eq!(replies.matches(oom).count(), 30 - stored);
    // What waits for EXEC counts too, and goes with its client.
    expect(&mut sim, &peer, "FLUSHALL\r\nMULTI\r\n", "+OK|+OK|");
    for _ in 0..30 {
        peer.send(format!("SET k {value}\r\n").as_bytes());
    }
    sim.settle();
    assert!(String::from_utf8_lossy(&peer.take()).ends_with("'maxmemory'.\r\n"));
    let other = sim.connect(&server);
    expect(&mut sim, &other, "SET a 1\r\nSUBSCRIBE a\r\n", &format!("{oom}|{oom}|"));
    peer.close();
    sim.settle();
    expect(&mut sim, &other, "SET a 1\r\nDEL a\r\n", "+OK|:1|");
    expect(&mut sim, &other, "CONFIG GET maxmemory\r\n", "*2|$9|maxmemory|$7|1048576|");
    other.send(b"INFO\r\n");
    sim.settle();
    assert!(String::from_utf8_lossy(&other.take()).contains("used_memory:0\r\n"));
}

#[test]
fn clients_are_named_listed_and_killed() {
    let (mut sim, server) = world();
    let [a, b] = [(); 2].map(|()| sim.connect(&server));
    expect(&mut sim, &a, "CLIENT ID\r\nCLIENT SETNAME one\r\nCLIENT GETNAME\r\n", ":1|+OK|$3|one|");
    expect(&mut sim, &b, "CLIENT ID\r\nCLIENT GETNAME\r\n", ":2|$-1|");
    b.send(b"CLIENT LIST\r\n");
    sim.settle();
    assert!(String::from_utf8_lossy(&b.take()).contains("id=1 "));
    expect(&mut sim, &b, "CLIENT KILL ID 1\r\nCLIENT KILL ID 1\r\n", ":1|:0|");
    assert_eq!(a.closed(), Some(End::Fin));
    a.close();
    sim.settle();
    server.expect_closed(CloseReason::HandlerClose);
}

#[test]
fn a_broadcast_reaches_ten_thousand_subscribers() {
    let mut sim = Sim::new(1);
    let mut config = defaults(REQUEST_MAX);
    // A table that is nearly full evicts those that are idle, subscribers too.
    config.limits.max_connections = with_places(15_000).limits.max_connections;
    let server = serve(&mut sim, 64 << 20, config);
    let mut subscribers = Vec::new();
    for _ in 0..10 {
        // As many as a backlog takes.
        subscribers.extend((0..1_000).map(|_| sim.connect(&server)));
        sim.settle();
    }
    let publisher = sim.connect(&server);
    for subscriber in &subscribers {
        subscriber.send(b"SUBSCRIBE news\r\n");
    }
    sim.advance(secs(2));
    for subscriber in &subscribers {
        subscriber.expect(b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
    }
    for text in ["short".to_owned(), "x".repeat(10_000)] {
        let sent = format!("*3\r\n$7\r\nPUBLISH\r\n$4\r\nnews\r\n${}\r\n{text}\r\n", text.len());
        expect(&mut sim, &publisher, &sent, ":10000|");
        let message = format!("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n${}\r\n{text}\r\n", text.len());
        for subscriber in &subscribers {
            subscriber.expect(message.as_bytes());
        }
    }
    assert_eq!(server.connections(), 10_001);
}

#[test]
fn a_slow_subscriber_is_ended_and_the_others_are_served() {
    let mut sim = Sim::new(1);
    let mut config = defaults(REQUEST_MAX);
    config.limits.output_max = 1 << 20;
    let server = serve(&mut sim, 64 << 20, config);
    let [slow, fast, publisher] = [(); 3].map(|()| sim.connect(&server));
    for subscriber in [&slow, &fast] {
        subscriber.send(b"SUBSCRIBE c\r\n");
    }
    sim.settle();
    fast.take();
    slow.stop_reading();
    let text = "x".repeat(50_000);
    for _ in 0..50 {
        publisher.send(format!("PUBLISH c {text}\r\n").as_bytes());
        sim.settle();
        assert!(fast.take().len() > 50_000);
    }
    server.expect_closed(CloseReason::OutputLimit);
    assert!(fast.is_open() && publisher.is_open());
    expect(
        &mut sim,
        &fast,
        "GET a\r\nPING\r\nUNSUBSCRIBE\r\nGET a\r\n",
        "-ERR Can't execute 'get': \
        only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context|\
        *2|$4|pong|$0||*3|$11|unsubscribe|$1|c|:0|$-1|",
    );
}
