//! Nothing that one client does is seen by the next one over the same connection.

use wheelhouse::sim::Peer;

use super::world::{World, commands, secs, text, world};

/// What a connection in its first state says to ECHO: its database, whether it watches, and its
/// subscriptions.
const CLEAN: &str = "+0 false 0|";

/// Attempts to leave something behind.
const ATTEMPTS: &[&str] = &[
    "SELECT 3",
    "select 3",
    "MULTI",
    "MULTI\nSELECT 3\nEXEC",
    "MULTI\nSET k 1",
    "MULTI\nSELECT 3\nMULTI\nDISCARD",
    "MULTI\nSUBSCRIBE c\nEXEC",
    "WATCH k",
    "WATCH k\nMULTI\nINCR k",
    "WATCH k\nSELECT 3\nUNWATCH",
    "SUBSCRIBE c",
    "SUBSCRIBE c\nUNSUBSCRIBE c\nSELECT 3",
    "CLIENT REPLY OFF",
    "CLIENT REPLY SKIP\nGET k",
    "CLIENT TRACKING ON",
    "MONITOR",
    "AUTH x",
    "HELLO 3",
    "MULTI\nSELECT 3\nEXEC x",
    "WATCH k\nMULTI\nEXEC x\nWATCH k",
    "HELLO 2 AUTH a b",
    "RESET",
    "READONLY",
    "SYNC",
    "BLPOP l 0",
    "SCRIPT DEBUG YES",
    "MODULE.COMMAND 1",
    "GET k\nBLPOP l 0\nSELECT 3",
];

/// The next client finds the connection as it should be, whether it is the same one or not.
#[track_caller]
fn assert_clean(world: &mut World, what: &str) {
    let next = world.client();
    let reply = world.ask(&next, &commands("ECHO me"));
    assert_eq!(reply, CLEAN, "{what}");
    assert!(world.upstreams() <= 1, "{what}: {} connections", world.upstreams());
    next.close();
    world.sim.settle();
    let log = world.log();
    let wrong = log.iter().find(|line| line.contains("SELECT 3") || line.starts_with("CLIENT"));
    assert_eq!(wrong, None, "{what}");
}

#[test]
fn a_client_leaves_nothing_behind_however_it_ends() {
    let mut world = world(1);
    for attempt in ATTEMPTS {
        let inline = attempt.replace('\n', "\r\n") + "\r\n";
        let quoted = inline.replacen("SELECT 3", "\"\\x53ELECT\" '3'", 1);
        for bytes in [commands(attempt), inline.into_bytes(), quoted.into_bytes()] {
            let ends: [fn(&Peer); 3] = [Peer::close, Peer::reset, Peer::half_close];
            for end in ends {
                let client = world.client();
                client.send(&bytes);
                world.sim.settle();
                end(&client);
                world.sim.settle();
                assert_clean(&mut world, attempt);
            }
        }
    }
    world.end();
}

#[test]
fn a_client_that_ends_at_any_byte_leaves_nothing_behind() {
    let mut world = world(1);
    for attempt in ATTEMPTS {
        let bytes = commands(attempt);
        for at in 1..bytes.len() {
            let client = world.client();
            client.send(&bytes[..at]);
            world.sim.settle();
            if at % 2 == 0 {
                client.reset();
            } else {
                client.close();
            }
            world.sim.settle();
            assert_clean(&mut world, attempt);
        }
    }
    world.end();
}

#[test]
fn every_split_is_served_alike() {
    let mut world = world(1);
    for (asked, replies) in [
        ("GET a", "$-1|"),
        ("SET a 1", "+OK|"),
        ("SELECT 0", "+OK|"),
        (
            "SELECT 3",
            "-ERR SELECT of another database than 0 is not possible: connections are shared|",
        ),
        ("CLIENT SETNAME me", "+OK|"),
    ] {
        let World { sim, pooler, .. } = &mut world;
        sim.assert_every_split(pooler, &commands(asked), replies.replace('|', "\r\n").as_bytes());
    }
    for attempt in ["MULTI\nSELECT 3\nINCR k\nEXEC\nECHO x", "SET k 1\nWATCH k\nMULTI\nGET k\nEXEC"]
    {
        let bytes = commands(attempt);
        let first = world.client();
        let whole = world.ask(&first, &bytes);
        first.close();
        for at in 1..bytes.len() {
            let client = world.client();
            client.send(&bytes[..at]);
            world.sim.settle();
            client.send(&bytes[at..]);
            assert_eq!(world.settle(&client), whole, "{attempt} split at {at}");
            client.close();
            world.sim.settle();
        }
        let client = world.client();
        client.send_in_pieces(&bytes, 1, secs(1));
        world.advance(secs(bytes.len() as u64));
        assert_eq!(text(&client.take()), whole, "{attempt} byte by byte");
        client.close();
        world.sim.settle();
    }
    world.end();
}

#[test]
fn a_reply_that_its_client_does_not_wait_for_goes_to_no_other() {
    let mut world = world(1);
    for at in 0..6 {
        let (first, second) = (world.client(), world.client());
        first.send(&commands("SET a first\nGET a\nGETRANGE a 0 5000"));
        for _ in 0..at {
            world.sim.step();
        }
        first.reset();
        second.send(&commands("ECHO second"));
        assert_eq!(world.settle(&second), CLEAN, "after {at} steps");
        second.close();
        world.sim.settle();
    }
    world.end();
}

#[test]
fn names_and_numbers_are_a_clients_own() {
    let mut world = world(1);
    let (first, second) = (world.client(), world.client());
    world.expect(&first, "CLIENT SETNAME one\nCLIENT GETNAME\nCLIENT ID", "+OK|$3|one|:1|");
    world.expect(&second, "CLIENT GETNAME\nCLIENT ID\nCLIENT SETINFO lib-name x", "$-1|:2|+OK|");
    world.expect(&first, "CLIENT GETNAME", "$3|one|");
    // An empty name is none.
    let unnamed = b"*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$0\r\n\r\n";
    assert_eq!(world.ask(&first, unnamed), "+OK|");
    world.expect(&first, "CLIENT GETNAME", "$-1|");
    assert_eq!(world.upstreams(), 0, "nothing of this needs a connection");
    world.end();
}
