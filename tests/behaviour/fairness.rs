//! Nobody waits long because of somebody else: neither a peer that floods nor a callback that
//! takes its time.

use std::time::Duration;

use wheelhouse::{CloseReason, Config, Timeout};

use crate::harness::{PeerId, Scene, Script, What, World, millis};

behaviours! {
    everywhere {
        a_flooding_peer_delays_nobody
        many_flooding_peers_delay_nobody_much
        an_eager_pipeliner_delays_nobody
        a_burst_of_clients_delays_nobody
        a_stall_is_not_held_against_who_spoke_meanwhile
        a_stall_is_not_held_against_who_spoke_before
        a_timer_set_after_a_stall_is_not_due
        a_timer_set_after_a_stall_in_on_open_is_not_due
        a_stall_before_a_request_of_our_own_is_not_held_against_its_reply
    }
}

/// Forgets what it is sent, but for short words, which it sends back.
fn forgetful() -> Script {
    Script::echo().when_data(|conn, _, input| {
        if input.len() < 100 {
            conn.write(input);
        }
        input.clear();
    })
}

/// How many turns an echo takes, while something happens before each.
fn turns_of_an_echo<W: World>(
    scene: &mut Scene<'_, W>,
    peer: PeerId,
    mut meanwhile: impl FnMut(&mut Scene<'_, W>),
) -> usize {
    meanwhile(scene);
    scene.send(peer, b"hello");
    let mut got = Vec::new();
    for turns in 1..100 {
        meanwhile(scene);
        scene.turn();
        got.extend(scene.sip(peer, 5 - got.len()));
        if got == b"hello" {
            return turns;
        }
    }
    panic!("no echo within a hundred turns");
}

fn flood<W: World>(scene: &mut Scene<'_, W>, peers: &[PeerId]) {
    let bytes = vec![b'f'; 256 * 1024];
    for peer in peers {
        while scene.try_send(*peer, &bytes).unwrap() > 0 {}
    }
}

fn a_flooding_peer_delays_nobody<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), forgetful());
    let (flooder, _) = scene.enter();
    let (bystander, _) = scene.enter();
    for _ in 0..20 {
        let turns = turns_of_an_echo(&mut scene, bystander, |scene| flood(scene, &[flooder]));
        assert!(turns <= 2, "{turns} turns");
    }
    scene.expect_service();
}

fn many_flooding_peers_delay_nobody_much<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), forgetful());
    let flooders: Vec<_> = (0..20).map(|_| scene.enter().0).collect();
    let (bystander, _) = scene.enter();
    let turns = turns_of_an_echo(&mut scene, bystander, |scene| flood(scene, &flooders));
    assert!(turns <= 2, "{turns} turns");
    // One more than its budget was read of nobody.
    let before = scene.reactor.handle().stats().bytes_in;
    flood(&mut scene, &flooders);
    scene.turn();
    let read = scene.reactor.handle().stats().bytes_in - before;
    assert!(read <= 20 * 64 * 1024, "{read} bytes in one turn");
    scene.expect_service();
}

fn an_eager_pipeliner_delays_nobody<W: World>(world: &mut W) {
    // One request per call, however many are there.
    let script = Script::echo().when_data(|conn, _, input| {
        let request = input.split_to(5);
        conn.write(&request);
        conn.yield_now();
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let (pipeliner, _) = scene.enter();
    let (bystander, _) = scene.enter();
    scene.send(pipeliner, &b"xxxxx".repeat(5_000));
    for _ in 0..20 {
        let turns = turns_of_an_echo(&mut scene, bystander, |_| {});
        assert!(turns <= 2, "{turns} turns");
    }
    scene.read(pipeliner, 25_000);
    scene.expect_service();
}

fn a_burst_of_clients_delays_nobody<W: World>(world: &mut W) {
    let mut scene = Scene::new(world, Config::default(), Script::echo());
    let (bystander, _) = scene.enter();
    let burst: Vec<_> = (0..100).map(|_| scene.connect()).collect();
    let turns = turns_of_an_echo(&mut scene, bystander, |_| {});
    assert!(turns <= 2, "{turns} turns");
    assert!(scene.script.ids.len() < 101, "not all at once");
    for peer in burst {
        scene.send(peer, b"hello");
        scene.expect(peer, b"hello");
    }
}

/// All that wait for a peer's bytes, much shorter than the stall.
fn impatient() -> Config {
    let mut config = Config::default();
    config.timeouts.first_byte = Some(millis(200));
    config.timeouts.request = Some(millis(200));
    config.timeouts.read = Some(millis(200));
    config.timeouts.idle = Some(millis(200));
    config
}

const STALL: Duration = millis(600);

/// Echoes lines; the word "stall" makes it stall.
fn stalling<W: World>(world: &mut W) -> Script {
    let stall = world.stall();
    Script::echo().when_data(move |conn, _, input| {
        if &input[..] == b"stall\n" {
            stall(STALL);
        }
        if input.ends_with(b"\n") {
            conn.write(input);
            input.clear();
        }
    })
}

/// A peer in each state that waits for bytes: fresh, within a request, and idle.
fn three_who_wait<W: World>(scene: &mut Scene<'_, W>) -> [PeerId; 3] {
    let [(fresh, _), (halfway, number), (idle, idle_number)] = [(); 3].map(|()| scene.enter());
    scene.send(halfway, b"he");
    scene.send(idle, b"hello\n");
    scene.expect(idle, b"hello\n");
    scene.saw(number, What::Data(2));
    scene.saw(idle_number, What::Idle);
    [fresh, halfway, idle]
}

fn a_stall_is_not_held_against_who_spoke_meanwhile<W: World>(world: &mut W) {
    let script = stalling(world);
    let mut scene = Scene::new(world, impatient(), script);
    let (staller, _) = scene.enter();
    let [fresh, halfway, idle] = three_who_wait(&mut scene);
    scene.send(staller, b"stall\n");
    let start = scene.now();
    scene.until("the stall", |scene| scene.now() - start >= STALL);
    // Nobody looked since: it is as if this had come during the stall.
    scene.expect_none_closed();
    scene.send(fresh, b"hello\n");
    scene.send(halfway, b"llo\n");
    scene.send(idle, b"hello\n");
    for peer in [fresh, halfway, idle] {
        scene.expect(peer, b"hello\n");
    }
    scene.expect(staller, b"stall\n");
    // And then they are idle in earnest.
    for _ in 0..4 {
        scene.expect_timeout(Timeout::Idle);
    }
    scene.expect_service();
}

fn a_stall_is_not_held_against_who_spoke_before<W: World>(world: &mut W) {
    let script = stalling(world);
    let mut scene = Scene::new(world, impatient(), script);
    let (staller, _) = scene.enter();
    let [fresh, halfway, idle] = three_who_wait(&mut scene);
    scene.try_send(staller, b"stall\n");
    scene.try_send(fresh, b"hello\n");
    scene.try_send(halfway, b"llo\n");
    scene.try_send(idle, b"hello\n");
    for peer in [fresh, halfway, idle] {
        scene.expect(peer, b"hello\n");
    }
    scene.expect(staller, b"stall\n");
    // Whoever was served first has been idle since; that is another matter.
    for _ in 0..4 {
        scene.expect_timeout(Timeout::Idle);
    }
    scene.expect_service();
}

fn a_timer_set_after_a_stall_is_not_due<W: World>(world: &mut W) {
    let stall = world.stall();
    let script = Script::echo().when_data(move |conn, session, input| {
        input.clear();
        if session.number == 0 {
            stall(millis(200));
        } else {
            conn.set_timer(conn.now() + millis(100));
        }
    });
    let mut scene = Scene::new(world, Config::default(), script);
    let (staller, _) = scene.enter();
    let (other, number) = scene.enter();
    let start = scene.now();
    scene.send(staller, b"x");
    scene.send(other, b"x");
    scene.saw(number, What::Data(1));
    scene.saw(0, What::Data(1));
    let rung = scene.saw(number, What::Timer);
    // Who comes first in a batch is for the system to say.
    let mut heard = scene.script.log.iter().filter(|entry| entry.what == What::Data(1));
    let stalled_first = heard.next().map(|entry| entry.id) == Some(scene.script.ids[0]);
    let least = if stalled_first { 300 } else { 100 };
    assert!(rung - start >= millis(least), "{:?}", rung - start);
    scene.expect_service();
}

fn a_timer_set_after_a_stall_in_on_open_is_not_due<W: World>(world: &mut W) {
    let stall = world.stall();
    let script = Script::echo()
        .when_open(move |_, number| {
            if number == 0 {
                stall(millis(200));
            }
            true
        })
        .when_connected(|conn, _| conn.set_timer(conn.now() + millis(100)));
    let mut scene = Scene::new(world, Config::default(), script);
    let (_, number) = scene.enter();
    let opened = scene.saw(number, What::Open);
    let rung = scene.saw(number, What::Timer);
    assert!(rung - opened >= millis(300), "{:?}", rung - opened);
    scene.expect_service();
}

fn a_stall_before_a_request_of_our_own_is_not_held_against_its_reply<W: World>(world: &mut W) {
    let stall = world.stall();
    let script = Script::echo().when_idle(move |conn, session| {
        if session.step == 0 {
            session.step = 1;
            stall(millis(200));
            conn.begin_request();
        }
    });
    let mut config = Config::default();
    config.timeouts.response = Some(millis(250));
    let mut scene = Scene::new(world, config, script);
    let (peer, number) = scene.enter();
    scene.send(peer, b"x");
    let idle = scene.saw(number, What::Idle);
    let ended = scene.saw(number, What::Closing(CloseReason::Timeout(Timeout::Response)));
    assert!(ended - idle >= millis(450), "early: {:?}", ended - idle);
    scene.leave(peer);
    scene.expect_timeout(Timeout::Response);
    scene.expect_service();
}
