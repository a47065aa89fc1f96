//! Replies come in the order of the commands, whatever made them.

use wheelhouse::Config;
use wheelhouse::sim::Sim;

use super::fake::Fake;
use super::world::{UPSTREAM, commands, millis, settings, text, world};
use crate::pooler::{Pooler, defaults};

const SELECT: &str =
    "-ERR SELECT of another database than 0 is not possible: connections are shared|";

#[test]
fn local_replies_keep_their_place() {
    let mut world = world(2);
    let client = world.client();
    world.expect(
        &client,
        "SET a 1\nSELECT 0\nINCR a\nSELECT 1\nGET a\nCLIENT ID\nGET b\nGET a",
        &format!("+OK|+OK|:2|{SELECT}$1|2|:1|$-1|$1|2|"),
    );
    let mixed = [b"SET a 5\r\n\r\n", &commands("GET a")[..], b"*0\r\nINCR \"a\"\r\n"].concat();
    assert_eq!(world.ask(&client, &mixed), "+OK|$1|5|:6|");
    world.end();
}

#[test]
fn a_batch_goes_over_one_lease() {
    let mut world = world(1);
    let client = world.client();
    let count = 2_500;
    let reply = world.ask(&client, &commands("INCR a\n").repeat(count));
    let want: String = (1..=count).map(|number| format!(":{number}|")).collect();
    assert_eq!(reply, want);
    assert_eq!(world.log().len(), count);
    // At most 1,024 commands go together, and what one read brings.
    let leases = world.pooler.stats().pool_leases;
    assert!((3..=6).contains(&leases), "{leases}");
    world.end();
}

#[test]
fn a_client_that_has_sent_its_fin_gets_all_replies() {
    let mut world = world(1);
    let client = world.client();
    client.send(&commands("INCR a\n").repeat(3_000));
    client.send(&commands("SELECT 0"));
    client.half_close();
    let want: String = (1..=3_000).map(|number| format!(":{number}|")).collect();
    assert_eq!(world.settle(&client), want + "+OK|");
    assert!(!client.is_open());
    world.end();
}

#[test]
fn a_limit_of_requests_ends_a_client_between_two_commands() {
    let mut sim = Sim::new(1);
    sim.serve(UPSTREAM, Config::default(), Fake::default());
    let mut config = defaults();
    config.limits.requests_max = Some(3);
    let pooler = sim.serve("10.0.0.1:7000", config, Pooler::new(settings(1)));
    let client = sim.connect(&pooler);
    for _ in 0..2 {
        client.send(&commands("SELECT 0\nINCR a"));
        sim.settle();
    }
    let reply = text(&client.take());
    assert_eq!(reply, "+OK|:1|+OK|");
    assert!(!client.is_open());
    pooler.assert_blameless();
}

#[test]
fn clients_take_turns() {
    let mut world = world(1);
    let (greedy, modest) = (world.client(), world.client());
    greedy.send(&commands("INCR a\n").repeat(5_000));
    modest.send(&commands("SET b mine"));
    world.sim.settle();
    let log = world.log();
    let at = log.iter().position(|line| line == "SET b mine").expect("it is served");
    assert!(at <= 1_024, "after {at} others");
    assert_eq!(text(&modest.take()), "+OK|");
    world.end();
}

#[test]
fn quit_is_the_last_reply() {
    let mut world = world(1);
    let client = world.client();
    world.expect(&client, "SET a 1\nGET a\nQUIT\nSET a 2", "+OK|$1|1|+OK|");
    assert!(!client.is_open());
    assert_eq!(world.log(), ["SET a 1", "GET a"]);
    world.end();
}

#[test]
fn what_is_no_request_gets_an_error_after_the_other_replies() {
    let lengths = ["*4294967295\r\n", "*1\r\n$4294967296\r\n", "*1\r\n$0:\r\n", "*-\r\n"];
    let others =
        ["*1\r\n$-2\r\n", "*1\r\nGET\r\n", "GET \"a\r\n", "*1\r\n$99999999999999999999\r\n"];
    for wrong in lengths.into_iter().chain(others) {
        let mut world = world(1);
        let client = world.client();
        let sent = [&commands("SET a 1")[..], wrong.as_bytes(), &commands("SET a 2")].concat();
        let reply = world.ask(&client, &sent);
        assert!(reply.starts_with("+OK|-ERR Protocol error"), "{wrong:?}: {reply}");
        assert_eq!(reply.matches('|').count(), 2, "{wrong:?}: {reply}");
        assert!(!client.is_open());
        assert_eq!(world.log(), ["SET a 1"]);
        world.end();
    }
}

#[test]
fn a_browser_is_disconnected() {
    let mut world = world(1);
    let client = world.client();
    let request = b"POST / HTTP/1.1\r\nHost: a\r\n\r\nSET a 1\r\n";
    assert_eq!(world.ask(&client, request), "");
    assert!(!client.is_open());
    assert_eq!(world.log(), [""; 0]);
    world.end();
}

#[test]
fn a_request_that_is_large_waits_for_its_rest() {
    let mut world = world(1);
    let client = world.client();
    let value = "x".repeat(1_000_000);
    let set = commands(&format!("SET a {value}\nECHO b"));
    client.send_in_pieces(&set, 50_000, millis(20));
    world.advance(millis(1_000));
    assert_eq!(text(&client.take()), "+OK|+0 false 0|");
    world.expect(&client, "GET a", &format!("$1000000|{value}|"));
    let large = format!("*3\r\n$3\r\nSET\r\n$1\r\na\r\n${}\r\n", 1 << 20);
    let reply = world.ask(&client, large.as_bytes());
    assert_eq!(reply, "-ERR Protocol error: the request is larger than 1 MiB|");
    world.end();
}
