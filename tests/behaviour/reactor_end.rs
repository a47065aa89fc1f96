//! A reactor that is ended at once gives every session its last callbacks, whatever state it is in.

use std::cell::RefCell;
use std::rc::Rc;

use wheelhouse::{CloseReason, Config, ConnectError, PostError};

use crate::harness::{Fixture, Got, RecordingHandler, What, World};

behaviours! {
    everywhere {
        every_session_has_its_on_closed_at_the_end
        what_on_closed_asks_for_at_the_end_is_discarded
        a_panic_in_on_closed_at_the_end_costs_no_other_session
        the_end_of_a_reactor_without_sessions_is_a_report
        the_end_resets_what_is_queued
    }
}

const LARGE: usize = 8 << 20;

fn every_session_has_its_on_closed_at_the_end<W: World>(world: &mut W) {
    let deaf = world.deaf();
    let (_door, open) = world.listen_as_peer();
    let handler = RecordingHandler::echo().when_data(|conn, session, input| {
        input.clear();
        conn.write_bytes(vec![b'l'; LARGE]);
        if session.number == 2 {
            conn.close();
        }
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    fixture.enter();
    for number in [1, 2] {
        let (peer, _) = fixture.enter();
        fixture.send(peer, b"x");
        fixture.saw(number, What::Data(1));
    }
    let dialled = fixture.reactor.context().connect(deaf).unwrap();
    fixture.until("a dial", |fixture| fixture.handler.ids.contains(&dialled));
    // No turn begins this one, so it never has a session.
    fixture.reactor.context().connect(open).unwrap();
    let handle = fixture.reactor.handle();
    let (handler, report, _) = fixture.end();

    let reasons: Vec<_> = handler.closed.iter().map(|closed| (closed.id, closed.reason)).collect();
    for (number, reason) in
        [(0, CloseReason::HardStop), (1, CloseReason::HardStop), (2, CloseReason::HandlerClose)]
    {
        assert!(reasons.contains(&(handler.ids[number], reason)), "{number}: {reasons:?}");
    }
    // A Unix-domain socket without a listener refuses at once.
    assert!(reasons.iter().any(|(id, _)| *id == dialled), "{reasons:?}");
    assert_eq!((handler.ids.len(), reasons.len()), (4, 4));
    assert_eq!(handler.faults, [""; 0]);
    assert_eq!((report.stats.closed_total(), report.stats.connections), (4, 0));
    assert!(report.stats.unsent > LARGE as u64, "{report:?}");
    assert_eq!(handle.post(|_, _| ()), Err(PostError::Stopped));
}

fn what_on_closed_asks_for_at_the_end_is_discarded<W: World>(world: &mut W) {
    let (mut listener, address) = world.listen_as_peer();
    let outcomes = Rc::new(RefCell::new(Vec::new()));
    let noted = Rc::clone(&outcomes);
    let handle: Rc<RefCell<Option<wheelhouse::Handle<RecordingHandler>>>> = Rc::default();
    let later = Rc::clone(&handle);
    let handler = RecordingHandler::echo().when_closed(move |cx, _| {
        for id in cx.ids() {
            if let Some(mut conn) = cx.conn(id) {
                conn.write(b"from on_closed");
                conn.close();
            }
        }
        let now = cx.now();
        cx.set_alarm(now);
        cx.shutdown();
        let posted = handle.borrow().as_ref().unwrap().post(|_, _| panic!("it must not run"));
        noted.borrow_mut().push((cx.connect(address.clone()).err(), posted));
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    *later.borrow_mut() = Some(fixture.reactor.handle());
    let peers = [(); 3].map(|()| fixture.enter().0);
    let (handler, report, mut far) = fixture.end();

    assert_eq!(handler.closed.len(), 3);
    assert_eq!(handler.shutdowns, 0);
    let refused = (Some(ConnectError::ShuttingDown), Err(PostError::Stopped));
    assert_eq!(*outcomes.borrow(), [refused; 3]);
    assert_eq!((report.stats.bytes_out, report.stats.dialled), (0, 0));
    assert!(world.answer(&mut listener).is_none());
    for peer in peers {
        let got = world.receive(far.peer(peer), &mut [0; 8]);
        assert!(matches!(got, Got::Reset | Got::Eof), "{got:?}");
    }
}

fn a_panic_in_on_closed_at_the_end_costs_no_other_session<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_closed(|_, _| panic!("on purpose"));
    let mut fixture = Fixture::new(world, Config::default(), handler);
    for _ in 0..5 {
        fixture.enter();
    }
    let (handler, report, _) = fixture.end();
    assert_eq!((handler.closed.len(), report.stats.panics), (5, 5));
    assert_eq!(report.stats.closed(CloseReason::HardStop), 5);
}

fn the_end_of_a_reactor_without_sessions_is_a_report<W: World>(world: &mut W) {
    let mut fixture = Fixture::new(world, Config::default(), RecordingHandler::echo());
    fixture.expect_service();
    let (handler, report, _) = fixture.end();
    assert_eq!((handler.closed.len(), handler.visitors_gone), (0, 1));
    assert_eq!((report.stats.accepted, report.stats.closed_total()), (1, 1));
}

fn the_end_resets_what_is_queued<W: World>(world: &mut W) {
    let handler = RecordingHandler::echo().when_data(|conn, _, input| {
        input.clear();
        conn.write_bytes(vec![b'l'; LARGE]);
        conn.shutdown_write();
    });
    let mut fixture = Fixture::new(world, Config::default(), handler);
    let (peer, _) = fixture.enter();
    fixture.send(peer, b"x");
    fixture.saw(0, What::Data(1));
    let (handler, _, mut far) = fixture.end();
    assert!(handler.closed[0].unsent > 0);
    let has_resets = world.has_resets();
    let mut buffer = vec![0; 64 * 1024];
    let end = loop {
        match world.receive(far.peer(peer), &mut buffer) {
            Got::Bytes(_) => {}
            end => break end,
        }
    };
    assert!(end == Got::Reset || !has_resets, "{end:?}");
}
