//! The greatest and the least settings.

use super::*;

with_each_personality! {
    the_greatest_settings_overflow_nothing,
    the_least_settings_end_connections_and_nothing_else,
}

/// Settings of which each is this great.
fn extreme(number: u64, duration: Duration) -> Config {
    let size = usize::try_from(number).unwrap_or(usize::MAX);
    let few = u32::try_from(number).unwrap_or(u32::MAX);
    let rate = Rate::new(few, duration);
    let mut config = Config::default();
    let timeouts = &mut config.timeouts;
    for timeout in [
        &mut timeouts.connect,
        &mut timeouts.connect_attempt,
        &mut timeouts.first_byte,
        &mut timeouts.request,
        &mut timeouts.read,
        &mut timeouts.response,
        &mut timeouts.write,
        &mut timeouts.idle,
        &mut timeouts.ping_after,
        &mut timeouts.ping,
        &mut timeouts.half_closed,
        &mut timeouts.flush,
        &mut timeouts.linger_read,
        &mut timeouts.linger,
        &mut timeouts.tunnel,
        &mut timeouts.lifetime,
        &mut config.limits.lag_max,
        &mut config.stall_report,
        &mut config.shutdown_timeout,
        &mut config.shutdown_spread,
        &mut config.socket.user_timeout,
    ] {
        *timeout = Some(duration);
    }
    config.timeouts.connect_stagger = Some(duration.max(millis(10)));
    config.timeouts.request_rate = Some(number);
    let limits = &mut config.limits;
    for limit in [&mut limits.output_max, &mut limits.buffered_max, &mut limits.mailbox_max] {
        *limit = size;
    }
    limits.max_connections = Some(size);
    limits.input_max = size.min(1 << 30);
    limits.requests_max = Some(number);
    limits.flush_rate = number;
    limits.accept_rate = Some(rate);
    limits.clients.connections = Some(few);
    limits.clients.rate = Some(rate);
    config.watermarks = Watermarks::new(size, size).unwrap();
    config.socket.notsent_lowat = Some(few);
    config
}

/// Runs clients that send, that send nothing or that read nothing, and some dials.
fn spend_a_day(sim: &mut Sim, server: &Server<Busy>) {
    let listener = sim.listen("192.0.2.1:9", 16);
    for at in 0..40_u64 {
        let peer = sim.connect(server);
        if at % 4 == 0 {
            peer.stop_reading();
        }
        if at % 3 > 0 {
            peer.send(&vec![b'x'; 1 << (at % 18)]);
        }
        if at % 5 == 0 {
            peer.send(b"se");
        }
        let _ = server.with(|_, cx| cx.connect("192.0.2.1:9".parse::<Address>().unwrap()));
        sim.advance(Duration::from_micros(1 << at));
        let _answered = listener.accept();
        peer.resume_reading();
        sim.advance(millis(20));
    }
}

fn the_greatest_settings_overflow_nothing() {
    let config = extreme(u64::MAX, Duration::MAX);
    assert_eq!(config.worst_case_memory(), u64::MAX);
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Busy(Box::new(sim.stall())));
    spend_a_day(&mut sim, &server);
    let peer = sim.connect(&server);
    peer.send(b"hello");
    sim.advance(secs(1));
    peer.expect(b"hello");
    peer.close();
    server.shutdown();
    sim.advance(secs(10));
    server.shutdown();
    sim.settle();
    assert!(server.is_finished());
}

fn the_least_settings_end_connections_and_nothing_else() {
    let config = extreme(1, Duration::from_nanos(1));
    assert!(config.worst_case_memory() > 1 << 20);
    let mut sim = world(1);
    let server = sim.serve(SERVER, config, Busy(Box::new(sim.stall())));
    spend_a_day(&mut sim, &server);
    assert!(server.stats().closed_total() > 0);
    sim.advance(secs(1));
    assert_eq!(server.connections(), 0);
    server.shutdown();
    sim.advance(secs(1));
    assert!(server.is_finished());
}
