//! Connections that belong to one client for a while.

use wheelhouse::sim::Peer;

use super::world::{World, commands, secs, settings, text, world};
use crate::pooler::{Pooler, defaults};

#[test]
fn a_transaction_over_several_batches_is_one() {
    let mut world = world(2);
    let (first, second) = (world.client(), world.client());
    world.expect(&first, "MULTI", "+OK|");
    world.expect(&first, "INCR a", "+QUEUED|");
    world.expect(&second, "GET a", "$-1|");
    world.expect(&first, "INCR a\nEXEC\nGET a", "+QUEUED|*2|:1|:2|$1|2|");
    world.expect(&second, "GET a", "$1|2|");
    world.end();
}

#[test]
fn a_refused_command_fails_its_transaction() {
    let mut world = world(1);
    let client = world.client();
    let refusal = "-ERR SELECT of another database than 0 is not possible: connections are shared|";
    let aborted = "-EXECABORT discarded|";
    world.expect(
        &client,
        "MULTI\nINCR a\nSELECT 1\nINCR a\nEXEC\nGET a",
        &format!("+OK|+QUEUED|{refusal}+QUEUED|{aborted}$-1|"),
    );
    world.expect(&client, "MULTI", "+OK|");
    world.expect(&client, "SELECT 1", refusal);
    world.expect(&client, "EXEC", aborted);
    world.end();
}

/// The texts are those of Redis: a client that asks for version 3 goes on with 2 at the first.
#[test]
fn other_versions_of_the_protocol_are_refused_as_by_redis() {
    let mut world = world(1);
    let client = world.client();
    let other = "-NOPROTO unsupported protocol version|";
    let none = "-ERR Protocol version is not an integer or out of range|";
    for (asked, replies) in [
        ("HELLO 3", other),
        ("HELLO 3 AUTH a b", other),
        ("hello -1", other),
        ("HELLO x", none),
        ("HELLO 02", none),
        ("HELLO x SETNAME y", none),
        ("HELLO 2 x", "-ERR HELLO with options is not possible: connections are shared|"),
    ] {
        world.expect(&client, asked, replies);
    }
    world.expect(&client, "MULTI\nHELLO 3\nEXEC", &format!("+OK|{other}-EXECABORT discarded|"));
    world.end();
}

/// Redis ends a transaction at EXEC with arguments, and what follows is none of it.
#[test]
fn a_transaction_ends_at_exec_with_arguments() {
    let mut world = world(2);
    let client = world.client();
    world.expect(&client, "WATCH a\nMULTI\nINCR a", "+OK|+OK|+QUEUED|");
    world.expect(&client, "EXEC x", "-EXECABORT wrong number of arguments|");
    let pinned = world.pooler.with(|pooler, _| format!("{pooler:?}"));
    assert!(pinned.contains("pinned: 0"), "{pinned}");
    world.expect(&client, "ECHO x\nGET a", "+0 false 0|$-1|");
    // It is seen that this waits.
    client.send(&commands("BLPOP l 0"));
    world.advance(secs(600));
    assert!(client.is_open());
    client.close();
    world.end();
}

#[test]
fn at_most_half_are_pinned() {
    let mut world = world(4);
    let clients: Vec<_> = (0..5).map(|_| world.client()).collect();
    world.expect(&clients[0], "MULTI", "+OK|");
    world.expect(&clients[1], "WATCH a", "+OK|");
    let refusal = |name: &str| {
        format!("-ERR {name} needs a connection for its client alone, and 2 of 4 are in such use|")
    };
    world.expect(&clients[2], "watch a", &refusal("WATCH"));
    world.expect(&clients[2], "BLPOP l 0", &refusal("BLPOP"));
    world.expect(
        &clients[2],
        "SET a 1\nSUBSCRIBE c\nGET a",
        &format!("+OK|{}$1|1|", refusal("SUBSCRIBE")),
    );
    // All of it at once needs none for itself alone.
    world.expect(&clients[3], "MULTI\nINCR a\nEXEC\nGET a", "+OK|+QUEUED|*1|:2|$1|2|");
    // What follows a refused MULTI is not executed outside of a transaction.
    let of_multi = "-ERR MULTI was refused: EXEC or DISCARD ends the transaction|";
    world.expect(&clients[4], "MULTI\nINCR a", &format!("{}{of_multi}", refusal("MULTI")));
    world.expect(
        &clients[4],
        "INCR a\nEXEC\nGET a",
        &format!("{of_multi}-EXECABORT Transaction discarded: MULTI was refused|$1|2|"),
    );
    world.expect(&clients[0], "DISCARD", "+OK|");
    world.expect(&clients[2], "MULTI", "+OK|");
    clients[1].reset();
    world.sim.settle();
    world.expect(&clients[4], "WATCH a\nUNWATCH\nWATCH b", "+OK|+OK|+OK|");
    world.expect(&clients[4], "UNWATCH", "+OK|");
    world.expect(&clients[2], "EXEC", "*0|");
    let pinned = world.pooler.with(|pooler, _| format!("{pooler:?}"));
    assert!(pinned.contains("pinned: 0"), "{pinned}");
    world.end();
}

#[test]
fn a_blocking_command_may_take_any_time() {
    let mut world = world(2);
    let (blocked, other) = (world.client(), world.client());
    blocked.send(&commands("GET a\nBLPOP l 0"));
    world.advance(secs(600));
    assert_eq!(text(&blocked.take()), "$-1|");
    world.expect(&other, "SET b 1", "+OK|");
    // Something is pushed.
    world.redis.with(|_, cx| {
        for id in cx.ids() {
            if let Some(mut conn) = cx.conn(id) {
                conn.write(b"*2\r\n$1\r\nl\r\n$1\r\nx\r\n");
            }
        }
    });
    world.sim.settle();
    assert_eq!(text(&blocked.take()), "*2|$1|l|$1|x|");
    let pinned = world.pooler.with(|pooler, _| format!("{pooler:?}"));
    assert!(pinned.contains("pinned: 0"), "{pinned}");
    world.end();
}

#[test]
fn a_client_that_ends_while_it_is_blocked_frees_its_connection() {
    for sent in ["BLPOP l 0", "BLPOP l 0\nGET a", "SUBSCRIBE c", "SUBSCRIBE c\nPING"] {
        let mut world = world(2);
        let client = world.client();
        client.send(&commands(sent));
        world.advance(secs(100));
        assert_eq!(world.upstreams(), 1);
        client.half_close();
        world.sim.settle();
        assert_eq!(world.upstreams(), 0, "{sent}");
        client.close();
        world.end();
    }
}

/// Its end is not seen where more input lies before it than is read meanwhile.
#[test]
fn a_client_that_is_blocked_and_not_read_waits_no_longer_than_for_any_reply() {
    let much = format!("SET a {}", "x".repeat(100_000));
    let blocked = |world: &mut World| {
        let client = world.client();
        client.send(&commands(&format!("BLPOP l 0\n{much}\nPING")));
        world.advance(secs(50));
        assert_eq!((world.upstreams(), client.is_open()), (1, true));
        client
    };
    for end in [None, Some(Peer::close as fn(&Peer)), Some(Peer::reset)] {
        let mut world = world(2);
        let client = blocked(&mut world);
        let ends_itself = end.is_some_and(|end| {
            end(&client);
            true
        });
        world.advance(secs(20));
        assert_eq!(world.upstreams(), 0);
        let late = "-ERR no reply of the upstream server in time|";
        assert!(ends_itself || text(&client.take()) == late);
        assert!(!client.is_open());
        let pinned = world.pooler.with(|pooler, _| format!("{pooler:?}"));
        assert!(pinned.contains("pinned: 0"), "{pinned}");
        world.end();
    }
    // What comes in time is followed by what waits, and nothing is late any more.
    let mut world = world(2);
    let client = blocked(&mut world);
    world.redis.with(|_, cx| {
        for id in cx.ids() {
            if let Some(mut conn) = cx.conn(id) {
                conn.write(b"*-1\r\n");
            }
        }
    });
    assert_eq!(world.settle(&client), "*-1|+OK|+PONG|");
    world.advance(secs(100));
    assert!(client.is_open());
    world.end();
}

#[test]
fn subscriptions_last_until_there_are_none() {
    let mut world = world(2);
    let (reader, writer) = (world.client(), world.client());
    world.expect(&reader, "SUBSCRIBE a b", "*3|$9|subscribe|$1|a|:1|*3|$9|subscribe|$1|b|:2|");
    world.expect(&writer, "PUBLISH a hello", ":1|");
    assert_eq!(world.settle(&reader), "*3|$7|message|$1|a|$5|hello|");
    world.advance(secs(1_000));
    world.expect(&writer, "PUBLISH b there", ":1|");
    assert_eq!(world.settle(&reader), "*3|$7|message|$1|b|$5|there|");
    world.expect(&reader, "PING", "*2|$4|pong|$0||");
    let wrong = "-ERR wrong number of arguments for 'ping' command|";
    world.expect(&reader, "PING x y\nPING", &format!("{wrong}*2|$4|pong|$0||"));
    world.expect(
        &reader,
        "GET a\nUNSUBSCRIBE a",
        "-ERR only (P|S)SUBSCRIBE, (P|S)UNSUBSCRIBE, PING and QUIT are allowed while subscribed|\
         *3|$11|unsubscribe|$1|a|:1|",
    );
    world.expect(&reader, "UNSUBSCRIBE\nGET a", "*3|$11|unsubscribe|$1|b|:0|$-1|");
    world.expect(&writer, "PUBLISH a hello\nPUBLISH b there", ":0|:0|");
    world.expect(&reader, "UNSUBSCRIBE x", "*3|$11|unsubscribe|$1|x|:0|");
    world.expect(&reader, "ECHO x", "+0 false 0|");
    let pinned = world.pooler.with(|pooler, _| format!("{pooler:?}"));
    assert!(pinned.contains("pinned: 0"), "{pinned}");
    world.end();
}

#[test]
fn a_shutdown_does_not_wait_for_what_may_never_come() {
    let mut world = world(4);
    let clients: Vec<_> = (0..2).map(|_| world.client()).collect();
    clients[0].send(&commands("BLPOP l 0"));
    clients[1].send(&commands("SUBSCRIBE c"));
    world.advance(secs(1));
    world.pooler.shutdown();
    world.advance(secs(8));
    assert!(clients.iter().all(|client| !client.is_open()));
    world.end();
}

/// Neither for one that asks for it while the shutdown goes on, or has waited for a connection since
/// before it began.
#[test]
fn a_shutdown_begins_nothing_that_may_never_come() {
    let ends = "-ERR no upstream connection: the pooler is about to end|";
    for (asked, replies) in [
        ("GET a\nBLPOP l 0\nGET a", ends.repeat(3)),
        ("WATCH a\nBLPOP l 0", ends.repeat(2)),
        ("XREAD BLOCK 0 STREAMS s $", ends.into()),
        ("SUBSCRIBE c", "*3|$9|subscribe|$1|c|:1|".into()),
        ("SUBSCRIBE c\nSUBSCRIBE d", "*3|$9|subscribe|$1|c|:1|".into()),
    ] {
        let mut world = world(4);
        let (client, watches) = (world.client(), world.client());
        world.expect(&client, "GET a", "$-1|");
        world.expect(&watches, "WATCH a", "+OK|");
        world.pooler.shutdown();
        world.expect(&client, asked, &replies);
        world.expect(&watches, "BLPOP l 0", ends);
        world.advance(secs(1));
        assert!(!client.is_open() && !watches.is_open(), "{asked}");
        let pinned = world.pooler.with(|pooler, _| format!("{pooler:?}"));
        assert!(pinned.contains("pinned: 0"), "{pinned}");
        world.end();
    }
    // One that waited for a connection.
    let mut world = world(1);
    let (busy, waits) = (world.client(), world.client());
    world.redis.with(|fake, _| fake.is_silent = true);
    busy.send(&commands("GET a"));
    world.sim.settle();
    waits.send(&commands("BLPOP l 0"));
    world.sim.settle();
    world.pooler.shutdown();
    world.redis.with(|_, cx| {
        for id in cx.ids() {
            if let Some(mut conn) = cx.conn(id) {
                conn.write(b"$-1\r\n");
            }
        }
    });
    world.sim.settle();
    assert_eq!((text(&busy.take()), text(&waits.take())), ("$-1|".into(), ends.into()));
    world.advance(secs(1));
    assert!(!waits.is_open());
    world.end();
}

/// What a subscriber asks counts once, and its subscription when it ends. The last request is answered.
#[test]
fn a_limit_of_requests_ends_a_subscriber() {
    let mut world = world(2);
    let mut config = defaults();
    config.limits.requests_max = Some(5);
    let pooler = world.sim.serve("10.0.0.1:7001", config, Pooler::new(settings(2)));
    for (asked, last) in [
        ("GET a|GET a|GET a|GET a|SUBSCRIBE c", "*3|$9|subscribe|$1|c|:1|"),
        ("SUBSCRIBE c|PING|PING|UNSUBSCRIBE|GET a", "$-1|"),
        ("SUBSCRIBE c|PING|SUBSCRIBE d|PING|PING|PING", "*2|$4|pong|$0||"),
    ] {
        let client = world.sim.connect(&pooler);
        world.sim.settle();
        let mut reply = String::new();
        for asked in asked.split('|') {
            assert!(client.is_open(), "{asked} comes after {reply}");
            reply = world.ask(&client, &commands(asked));
        }
        assert_eq!(reply, last, "{asked}");
        assert!(!client.is_open(), "{asked}");
    }
    pooler.shutdown();
    world.end();
}
