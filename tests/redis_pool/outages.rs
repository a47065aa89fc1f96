//! Upstream connections that are lost, hang, or say what is no reply.

use wheelhouse::sim::Sim;

use super::world::{UPSTREAM, commands, millis, pooler, secs, text, world};

#[test]
fn a_restart_is_noticed() {
    let mut world = world(2);
    let client = world.client();
    world.expect(&client, "SET a 1", "+OK|");
    world.redis.with(|_, cx| {
        for id in cx.ids() {
            cx.conn(id).expect("it is open").abort();
        }
    });
    world.sim.settle();
    world.expect(&client, "INCR a\nGET a", ":2|$1|2|");
    world.end();
}

/// All of eight idle connections are lost with a command in one moment.
#[test]
fn a_command_that_meets_a_restart_is_counted_once() {
    for (abort, first) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = world(16);
        let clients: Vec<_> = (0..8).map(|_| world.client()).collect();
        for client in &clients {
            world.expect(client, "MULTI", "+OK|");
        }
        for client in &clients {
            world.expect(client, "EXEC", "*0|");
        }
        world.advance(millis(200));
        assert_eq!(world.upstreams(), 8);
        world.log();
        if first {
            clients[0].send(&commands("INCR a"));
        }
        world.redis.with(|_, cx| {
            for id in cx.ids() {
                let mut conn = cx.conn(id).expect("it is open");
                if abort { conn.abort() } else { conn.close() }
            }
        });
        if !first {
            clients[0].send(&commands("INCR a"));
        }
        let reply = world.settle(&clients[0]);
        let counted = world.log().iter().filter(|line| line.starts_with("INCR")).count();
        let lost = reply.starts_with("-ERR the upstream connection was lost: ");
        assert!(reply == ":1|" || lost, "{reply}");
        assert!(counted <= 1 && (lost || counted == 1), "{reply} {counted}");
        let want = format!(":{}|", counted + 1);
        world.expect(&clients[1], "INCR a", &want);
        world.end();
    }
}

/// A pooler before a server that the test plays.
struct Played {
    sim: Sim,
    listener: wheelhouse::sim::PeerListener,
    pooler: wheelhouse::sim::Server<crate::pooler::Pooler>,
}

fn played(size: usize) -> Played {
    let mut sim = Sim::new(1);
    let listener = sim.listen(UPSTREAM, 16);
    let pooler = pooler(&mut sim, size);
    Played { sim, listener, pooler }
}

/// What a client that has sent `asked` reads if the server takes it, sends `replied`, and resets the
/// connection; and whether the client is still connected.
fn lose(asked: &str, replied: &[u8]) -> (String, bool) {
    let Played { mut sim, listener, pooler } = played(2);
    let client = sim.connect(&pooler);
    client.send(&commands(asked));
    sim.settle();
    let upstream = listener.accept().expect("a connection");
    assert!(!upstream.take().is_empty());
    upstream.send(replied);
    sim.settle();
    upstream.reset();
    sim.settle();
    let outcome = (text(&client.take()), client.is_open());
    pooler.assert_blameless();
    outcome
}

#[test]
fn each_command_without_a_reply_gets_an_error() {
    let (reply, open) = lose("INCR a\nINCR b\nINCR c", b":1\r\n");
    let error = reply.strip_prefix(":1|").expect(&reply);
    assert_eq!(error.matches("-ERR the upstream connection was lost: ").count(), 2, "{reply}");
    assert!(open && error.matches('|').count() == 2, "{reply}");
    // It ended with the batch.
    let (reply, open) = lose("MULTI\nINCR a\nEXEC", b"+OK\r\n+QUEUED\r\n");
    assert!(open && reply.starts_with("+OK|+QUEUED|-ERR the upstream"), "{reply}");
}

#[test]
fn a_client_whose_reply_or_state_is_lost_is_disconnected() {
    for (asked, replied) in [
        ("GET a", &b"$5\r\nab"[..]),
        ("GET a\nGET b", b"$1\r\na\r\n*2\r\n"),
        ("MULTI", b"+OK\r\n"),
        ("WATCH a", b"+OK\r\n"),
        (
            "SUBSCRIBE a",
            b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n",
        ),
        ("SUBSCRIBE a", b"-NOPERM no\r\n"),
    ] {
        let (reply, open) = lose(asked, replied);
        assert!(!open, "{asked:?}: {reply}");
        assert!(!reply.contains("ERR"), "{asked:?}: {reply}");
    }
}

#[test]
fn a_bad_reply_costs_the_upstream_connection() {
    let deep = [b"*1\r\n".repeat(10_000), b"?".to_vec()].concat();
    let wrongs: [&[u8]; 8] = [
        b"hello\r\n",
        b"$4294967296\r\n",
        b"$0:\r\n",
        b"$99999999999999999999\r\n",
        b"$9223372036854775806\r\n",
        b"*-2\r\n",
        b"%1\r\n+a\r\n+b\r\n",
        b"*4294967296\r\n",
    ];
    for wrong in wrongs {
        let Played { mut sim, listener, pooler } = played(1);
        let client = sim.connect(&pooler);
        client.send(&commands("GET a\nGET b"));
        sim.settle();
        let upstream = listener.accept().expect("a connection");
        upstream.send(&[b"$1\r\na\r\n", wrong].concat());
        sim.settle();
        assert!(upstream.closed().is_some(), "{}", wrong.escape_ascii());
        assert_eq!(text(&client.take()), "$1|a|-ERR a bad reply of the upstream server|");
        assert!(client.is_open());
        // The next one is another one.
        client.send(&commands("GET a"));
        sim.settle();
        listener.accept().expect("another connection").send(b"$1\r\nb\r\n");
        sim.settle();
        assert_eq!(text(&client.take()), "$1|b|");
    }
    // The client may have got part of that one.
    let (reply, _) = lose("GET a", &deep);
    assert!(!reply.contains('?'), "{reply}");
}

/// However its reply is split.
#[test]
fn an_aborted_transaction_costs_no_upstream_connection() {
    let (queued, aborted) = (&b"+OK\r\n-ERR no\r\n"[..], &b"-EXECABORT discarded\r\n"[..]);
    for (error, is_kept) in [(aborted, true), (b"-EXECABORX\r\n", false), (b"-E\r\n", false)] {
        for at in 0..=error.len() {
            let Played { mut sim, listener, pooler } = played(1);
            let client = sim.connect(&pooler);
            client.send(&commands("MULTI\nX\nEXEC"));
            sim.settle();
            let upstream = listener.accept().expect("a connection");
            upstream.send(&[queued, &error[..at]].concat());
            sim.settle();
            upstream.send(&error[at..]);
            sim.settle();
            let replies = text(&client.take());
            let expected =
                [b"+OK\r\n-ERR this command is not known to the pooler\r\n", error].concat();
            assert_eq!(replies, text(&expected), "{at}");
            assert_eq!(upstream.is_open(), is_kept, "{at}");
            pooler.assert_blameless();
        }
    }
}

#[test]
fn a_reply_too_many_costs_the_upstream_connection() {
    let Played { mut sim, listener, pooler } = played(1);
    let (first, second) = (sim.connect(&pooler), sim.connect(&pooler));
    first.send(&commands("GET a"));
    sim.settle();
    let upstream = listener.accept().expect("a connection");
    upstream.send(b"$1\r\na\r\n$1\r\nb\r\n");
    sim.settle();
    assert_eq!(text(&first.take()), "$1|a|");
    second.send(&commands("GET c"));
    sim.settle();
    assert!(upstream.closed().is_some());
    listener.accept().expect("another connection").send(b"$1\r\nc\r\n");
    sim.settle();
    assert_eq!(text(&second.take()), "$1|c|");
}

#[test]
fn only_what_changes_nothing_is_sent_again() {
    for (asked, again) in [
        ("GET a", true),
        ("GET a\nEXISTS b\nPING", true),
        ("INCR a", false),
        ("GET a\nINCR a", false),
        ("MULTI\nGET a\nEXEC", false),
        ("GETEX a", false),
    ] {
        let Played { mut sim, listener, pooler } = played(1);
        let client = sim.connect(&pooler);
        client.send(&commands("GET x"));
        sim.settle();
        let upstream = listener.accept().expect("a connection");
        upstream.send(b"$-1\r\n");
        sim.settle();
        client.take();
        upstream.take();
        client.send(&commands(asked));
        sim.settle();
        assert_eq!(text(&upstream.take()), text(&commands(asked)));
        upstream.reset();
        sim.settle();
        match listener.accept() {
            Some(other) => {
                assert!(again, "{asked:?}");
                assert_eq!(text(&other.take()), text(&commands(asked)));
                let count = asked.lines().count();
                other.send(&b"+OK\r\n".repeat(count));
                sim.settle();
                assert_eq!(text(&client.take()), "+OK|".repeat(count));
                // And is free for others.
                client.send(&commands("INCR a"));
                sim.settle();
                other.send(b":1\r\n");
                sim.settle();
                assert_eq!(text(&client.take()), ":1|");
            }
            None => {
                assert!(!again, "{asked:?}");
                let reply = text(&client.take());
                assert_eq!(reply.matches("-ERR the upstream").count(), asked.lines().count());
            }
        }
        pooler.assert_blameless();
    }
}

#[test]
fn what_waits_is_served_or_refused_in_time() {
    let mut sim = Sim::new(1);
    let pooler = pooler(&mut sim, 2);
    let clients: Vec<_> = (0..20).map(|_| sim.connect(&pooler)).collect();
    for client in &clients {
        client.send(&commands("GET a\nINCR a"));
    }
    let other = sim.connect(&pooler);
    other.send(&commands("MULTI"));
    sim.advance(millis(4_900));
    assert!(clients.iter().all(|client| client.received().is_empty()));
    sim.advance(millis(200));
    let error = "-ERR no upstream connection: no connection of the pool was free in time ";
    for client in &clients {
        let reply = text(&client.take());
        assert_eq!(reply.matches(error).count(), 2, "{reply}");
    }
    // MULTI has failed, so what follows is not executed.
    assert_eq!(text(&other.take()).matches(error).count(), 1);
    other.send(&commands("INCR a\nDISCARD"));
    sim.settle();
    let refused = "-ERR MULTI was refused: EXEC or DISCARD ends the transaction|+OK|";
    assert_eq!(text(&other.take()), refused);
    // It listens again before their time is over.
    for client in &clients {
        client.send(&commands("SELECT 0\nINCR a"));
    }
    sim.advance(secs(2));
    let redis = sim.serve(UPSTREAM, wheelhouse::Config::default(), super::fake::Fake::default());
    sim.advance(secs(2));
    let mut replies: Vec<_> = clients.iter().map(|client| text(&client.take())).collect();
    replies.sort();
    let mut want: Vec<_> = (1..=20).map(|number| format!("+OK|:{number}|")).collect();
    want.sort();
    assert_eq!(replies, want);
    assert!(redis.connections() <= 2);
}

#[test]
fn a_server_that_hangs_costs_its_connection() {
    let mut world = world(1);
    let client = world.client();
    world.redis.with(|fake, _| fake.is_silent = true);
    client.send(&commands("INCR a"));
    world.advance(secs(31));
    let reply = text(&client.take());
    assert!(reply.starts_with("-ERR the upstream connection was lost: "), "{reply}");
    world.redis.with(|fake, _| fake.is_silent = false);
    world.expect(&client, "INCR a", ":2|");
    world.end();
}

#[test]
fn idle_connections_are_checked() {
    let mut world = world(1);
    let client = world.client();
    world.expect(&client, "GET a", "$-1|");
    world.advance(secs(100));
    let log = world.log();
    assert!(log[1..].iter().all(|line| line == "PING") && log.len() >= 4, "{log:?}");
    assert_eq!(world.upstreams(), 1);
    world.redis.with(|fake, _| fake.instead = Some(b"-LOADING later\r\n".to_vec()));
    world.advance(secs(31));
    assert_eq!(world.upstreams(), 0);
    world.expect(&client, "GET a", "$-1|");
    world.redis.with(|fake, _| fake.is_silent = true);
    world.advance(secs(33));
    assert_eq!(world.upstreams(), 0);
    world.end();
}
