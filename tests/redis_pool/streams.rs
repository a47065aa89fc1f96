//! Replies that are larger than what is kept of them.

use super::world::{commands, millis, secs, text, world};

#[test]
fn a_huge_reply_is_passed_on_as_it_is_read() {
    const LEN: usize = 20_000_000;
    let mut world = world(2);
    let (slow, other) = (world.client(), world.client());
    slow.read_at(1_000_000);
    let asked = format!("GETRANGE a 0 {LEN}\nSET b 1\nGET b");
    // The fake Redis writes all of it at once.
    slow.send(&commands(&asked));
    let mut most = 0;
    for _ in 0..250 {
        world.advance(millis(100));
        let buffered = world.pooler.stats().buffered;
        most = most.max(buffered);
    }
    assert!(most < 1_000_000, "{most} bytes are kept");
    world.expect(&other, "GET b", "$1|1|");
    let got = slow.take();
    let head = format!("${LEN}\r\n");
    assert_eq!(got.len(), head.len() + LEN + 2 + b"+OK\r\n$1\r\n1\r\n".len());
    assert!(got.starts_with(head.as_bytes()) && got.ends_with(b"x\r\n+OK\r\n$1\r\n1\r\n"));
    world.end();
}

/// It has read 1 KB of 10 MB: what is left of the reply goes to no other, and is not waited for.
#[test]
fn a_client_that_leaves_in_a_large_reply_costs_its_connection_only() {
    let mut world = world(1);
    let (first, other) = (world.client(), world.client());
    first.read_at(10_000);
    first.send(&commands("GETRANGE a 0 10000000"));
    world.advance(millis(100));
    let got = first.take().len();
    assert!((1..2_000).contains(&got), "{got}");
    first.reset();
    other.send(&commands("GET b"));
    world.advance(millis(100));
    assert_eq!(text(&other.take()), "$-1|");
    assert_eq!(world.upstreams(), 1);
    world.end();
}

#[test]
fn a_client_that_reads_nothing_holds_no_connection_for_ever() {
    let mut world = world(1);
    let (stuck, other) = (world.client(), world.client());
    stuck.stop_reading();
    stuck.send(&commands("GETRANGE a 0 5000000"));
    world.advance(secs(1));
    other.send(&commands("GET b"));
    world.advance(secs(6));
    let reply = String::from_utf8_lossy(&other.take()).into_owned();
    assert!(reply.starts_with("-ERR no upstream connection: "), "{reply}");
    world.advance(secs(120));
    world.expect(&other, "GET b", "$-1|");
    world.end();
}

#[test]
fn a_small_reply_frees_the_connection_whether_it_is_read_or_not() {
    let mut world = world(1);
    let (stuck, other) = (world.client(), world.client());
    stuck.stop_reading();
    stuck.send(&commands("GETRANGE a 0 200000\nGETRANGE a 0 200000"));
    world.advance(secs(1));
    world.expect(&other, "GET b", "$-1|");
    stuck.resume_reading();
    world.advance(secs(1));
    assert_eq!(stuck.take().len(), 2 * (b"$200000\r\n\r\n".len() + 200_000));
    world.end();
}
