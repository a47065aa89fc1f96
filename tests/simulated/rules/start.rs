//! What a handler finds when its reactor starts, and the wall clock it has from then on.

use wheelhouse::{AlarmId, Reactor};

use super::*;

with_each_personality! {
    a_handler_starts_once_before_all_else,
    a_handler_starts_although_nothing_happens,
    a_handler_that_starts_late_is_not_blamed_for_the_time_before,
    the_wall_clock_is_there_before_the_first_turn,
    the_wall_clock_moves_with_time_and_is_followed_within_a_second,
}

/// Notes the order of its callbacks, and what the wall clock says in them.
#[derive(Default)]
struct Diary(Vec<(&'static str, Duration)>);

impl Handler for Diary {
    type Session = ();

    fn on_start(&mut self, cx: &mut Context<'_>) {
        self.0.push(("start", cx.now_unix()));
        let at = cx.now() + millis(50);
        cx.set_alarm(at);
    }

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.0.push(("open", conn.now_unix()));
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        self.0.push(("data", conn.now_unix()));
        input.clear();
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, _: AlarmId) {
        self.0.push(("alarm", cx.now_unix()));
    }
}

/// Midnight of 2020-01-01, UTC.
const NEW_YEAR: Duration = secs(1_577_836_800);

fn a_handler_starts_once_before_all_else() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Diary::default());
    let peer = sim.connect(SERVER);
    peer.send(b"hi");
    sim.advance(millis(100));
    let order: Vec<_> = server.with(|diary, _| diary.0.iter().map(|(name, _)| *name).collect());
    assert_eq!(order, ["start", "open", "data", "alarm"]);
}

fn a_handler_starts_although_nothing_happens() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Diary::default());
    sim.settle();
    assert_eq!(server.with(|diary, _| diary.0.clone()), [("start", NEW_YEAR)]);
}

/// What passed since the reactor was made is not the callback's.
fn a_handler_that_starts_late_is_not_blamed_for_the_time_before() {
    struct Slow(Box<dyn Fn(Duration)>);

    impl Handler for Slow {
        type Session = ();

        fn on_start(&mut self, _: &mut Context<'_>) {
            (self.0)(millis(14));
        }

        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            None
        }

        fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
    }

    let mut sim = world(1);
    let (host, stall) = (sim.host("10.0.0.1"), sim.stall());
    let mut reactor = Reactor::with_backend(Config::default(), host).unwrap();
    sim.advance(millis(1_500));
    reactor.turn(&mut Slow(Box::new(stall)), Some(Duration::ZERO)).unwrap();
    assert_eq!(reactor.handle().stats().stalls, 0);
}

fn the_wall_clock_is_there_before_the_first_turn() {
    let mut sim = world(1);
    let mut reactor =
        Reactor::<Diary, _>::with_backend(Config::default(), sim.host("10.0.0.1")).unwrap();
    assert_eq!(reactor.context().now_unix(), NEW_YEAR);
}

fn the_wall_clock_moves_with_time_and_is_followed_within_a_second() {
    let mut sim = world(1);
    let server = sim.serve(SERVER, Config::default(), Diary::default());
    let peer = sim.connect(SERVER);
    let ask = |sim: &mut Sim| {
        peer.send(b"?");
        sim.settle();
        server.with(|diary, _| diary.0.last().copied().unwrap().1)
    };
    sim.advance(secs(7));
    assert_eq!(ask(&mut sim), NEW_YEAR + secs(7));
    // It is set back by a day.
    sim.set_unix(NEW_YEAR - secs(86_400));
    sim.advance(secs(1));
    assert_eq!(ask(&mut sim), NEW_YEAR - secs(86_399));
}
