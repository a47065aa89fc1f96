//! Lends a connection to the handler: the only caller of callbacks, and the only place that
//! catches their panics.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bytes::BytesMut;

use super::{Reactor, Slot};
use crate::backend::Backend;
use crate::close::CloseReason;
use crate::conn::Conn;
use crate::context::Context;
use crate::core::flags::Flags;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::log::error;
use crate::metrics::MetricsWriter;
use crate::planted::{Bug, planted};
use crate::probe;
use crate::state::{LoopState, READ_BUDGET};
use crate::unwind::{catch, discard};

/// What a connection was like before its handler got input.
#[derive(Clone, Copy)]
pub(super) struct BeforeData {
    /// It was idle: a request begins.
    pub(super) wakes: bool,
    /// No output is queued.
    pub(super) no_output: bool,
    /// What happens is to be logged.
    pub(super) log: bool,
}

/// Runs `on_data`, behind `on_active` if the connection wakes. What it wrote is left to the caller,
/// a panic to [`Reactor::guard`].
#[inline(always)]
pub(super) fn call_data<H: Handler>(
    handler: &mut H,
    shared: &mut LoopState,
    id: ConnId,
    session: &mut H::Session,
    input: &mut BytesMut,
    before: BeforeData,
) {
    shared.enter_knowing(id, before.no_output);
    let mut conn = Conn::new(shared, id);
    if before.wakes {
        probe::callback_start(Some(id), "on_active");
        handler.on_active(&mut conn, session);
        probe::callback_end(Some(id), "on_active");
    }
    if !before.wakes || conn.has_input_for_handler() {
        probe::callback_start(Some(id), "on_data");
        handler.on_data(&mut conn, session, input);
        probe::callback_end(Some(id), "on_data");
    }
    shared.leave();
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Does `work`, and if `on_data`, `on_active` or `on_idle` panics in it, which it calls without a
    /// net for the sake of speed, aborts the connection whose callback that was. Returns whether one did.
    pub(super) fn guard(&mut self, handler: &mut H, work: impl FnOnce(&mut Self, &mut H)) -> bool {
        let outcome = catch_unwind(AssertUnwindSafe(|| work(self, handler)));
        let panicked = outcome.is_err();
        if let Err(panic) = outcome {
            // Outside of a callback nothing of the application runs that can panic: this is a bug.
            let Some(id) = self.shared.in_hand else { resume_unwind(panic) };
            discard(panic);
            self.recover(id);
            self.settle(handler, id);
        }
        panicked
    }

    /// Runs `on_idle`, which ends nearly every message and therefore is called on short terms: no
    /// output is queued, a panic is left to [`Reactor::guard`], and where `on_data` came right
    /// before it, as `name` says then, the clock is read once behind both.
    #[inline(always)]
    pub(super) fn call_idle(&mut self, handler: &mut H, id: ConnId, name: &'static str) {
        let Some(session) = self.slots[id.index()].session.as_mut() else { return };
        self.shared.enter_knowing(id, true);
        probe::callback_start(Some(id), "on_idle");
        handler.on_idle(&mut Conn::new(&mut self.shared, id), session);
        probe::callback_end(Some(id), "on_idle");
        self.shared.leave();
        self.refresh_now_if_stale(name, Some(id));
        if self.shared.wrote() {
            self.send_written(id);
        }
    }

    /// Runs another callback of a connection that has a session, and sends what it wrote.
    pub(super) fn call(
        &mut self,
        id: ConnId,
        name: &'static str,
        callback: impl FnOnce(&mut Conn<'_>, &mut H::Session),
    ) {
        self.call_with_input(id, name, |conn, session, _| callback(conn, session));
    }

    /// Sends what the callback that has just run wrote to `lease`, which it got.
    #[inline(always)]
    fn send_leased(&mut self, lease: ConnId) {
        if self.shared.scratch_owner == Some(lease) && !self.shared.scratch.is_empty() {
            self.flush_scratch(lease);
        } else if self.shared.table.at(lease.index()).has_output() {
            self.send_spilled(lease);
        }
    }

    /// As [`Reactor::call`], with the input that the handler left.
    #[inline(always)]
    pub(super) fn call_with_input(
        &mut self,
        id: ConnId,
        name: &'static str,
        callback: impl FnOnce(&mut Conn<'_>, &mut H::Session, &mut BytesMut),
    ) {
        self.call_leasing(id, None, name, callback);
    }

    /// As [`Reactor::call_with_input`], for a callback that may get a lease: what it wrote to that is
    /// sent first.
    #[inline(always)]
    pub(super) fn call_leasing(
        &mut self,
        id: ConnId,
        lease: Option<ConnId>,
        name: &'static str,
        callback: impl FnOnce(&mut Conn<'_>, &mut H::Session, &mut BytesMut),
    ) {
        let Self { slots, shared, .. } = self;
        let Slot { session: Some(session), input, .. } = &mut slots[id.index()] else { return };
        match lease {
            Some(lease) => shared.enter_leased(id, lease),
            None => shared.enter(id),
        }
        let mut conn = Conn::new(shared, id);
        probe::callback_start(Some(id), name);
        let outcome = catch(|| callback(&mut conn, session, input));
        probe::callback_end(Some(id), name);
        self.refresh_now_if_stale(name, Some(id));
        if let Some(lease) = lease
            && outcome.is_ok()
        {
            // Before what follows finds that all hold too much.
            self.send_leased(lease);
        }
        self.end_callback(id, outcome.is_err());
    }

    /// Runs `on_open` of an accepted connection and, if that takes it, `on_connected`; says whether
    /// there is a session now.
    #[inline(always)]
    pub(super) fn call_accepted(&mut self, handler: &mut H, id: ConnId) -> bool {
        let Self { backend, slots, shared, .. } = self;
        let slot = &mut slots[id.index()];
        shared.enter_knowing(id, true);
        let mut conn = Conn::new(shared, id);
        probe::callback_start(Some(id), "on_open");
        let outcome = catch(|| {
            slot.session = handler.on_open(&mut conn);
            if let Some(session) = &mut slot.session {
                // What `on_connected` sets runs from its beginning, however long `on_open` took.
                super::refresh_now_if_stale(backend, conn.cx().shared, "on_open", Some(id));
                probe::callback_end(Some(id), "on_open");
                conn.establish(|| backend.entropy());
                probe::callback_start(Some(id), "on_connected");
                handler.on_connected(&mut conn, session);
            }
        });
        let taken = slot.session.is_some();
        let name = if taken { "on_connected" } else { "on_open" };
        probe::callback_end(Some(id), name);
        self.refresh_now_if_stale(name, Some(id));
        self.end_callback(id, outcome.is_err());
        taken
    }

    /// Runs `on_open` of a connection to be dialled and says whether there is a session now.
    pub(super) fn call_open(&mut self, handler: &mut H, id: ConnId) -> bool {
        self.shared.enter(id);
        let mut conn = Conn::new(&mut self.shared, id);
        probe::callback_start(Some(id), "on_open");
        let outcome = catch(|| handler.on_open(&mut conn));
        probe::callback_end(Some(id), "on_open");
        self.refresh_now_if_stale("on_open", Some(id));
        self.end_callback(id, outcome.is_err());
        self.slots[id.index()].session = outcome.ok().flatten();
        self.slots[id.index()].session.is_some()
    }

    /// Runs a callback of the whole loop; if it panics the reactor stops.
    pub(super) fn call_loop(
        &mut self,
        name: &'static str,
        callback: impl FnOnce(&mut Context<'_>),
    ) {
        if !self.call_shared(name, callback) {
            self.drain.fail("a callback of the loop panicked");
        }
    }

    /// Runs a callback that has a context but no connection, and says whether it returned.
    pub(super) fn call_shared(
        &mut self,
        name: &'static str,
        callback: impl FnOnce(&mut Context<'_>),
    ) -> bool {
        self.call_shared_or(name, callback, Self::count_panic)
    }

    /// Runs `on_scrape`, and says whether it returned. A panic there does not count towards the limit
    /// that stops the reactor: when it comes is chosen by a peer.
    pub(super) fn call_scrape(&mut self, handler: &mut H, out: &mut MetricsWriter) -> bool {
        let take_back = |reactor: &mut Self| {
            reactor.shared.roll_back();
            reactor.shared.counters.panics.add(1);
        };
        self.call_shared_or("on_scrape", |cx| handler.on_scrape(cx, out), take_back)
    }

    #[inline(always)]
    fn call_shared_or(
        &mut self,
        name: &'static str,
        callback: impl FnOnce(&mut Context<'_>),
        take_back: impl FnOnce(&mut Self),
    ) -> bool {
        self.shared.begin_journal();
        let mut cx = Context { shared: &mut self.shared };
        probe::callback_start(None, name);
        let outcome = catch(|| callback(&mut cx));
        probe::callback_end(None, name);
        if outcome.is_err() {
            take_back(self);
        }
        self.refresh_now_if_stale(name, None);
        self.bound_buffers();
        outcome.is_ok()
    }

    fn end_callback(&mut self, id: ConnId, panicked: bool) {
        if panicked {
            self.recover(id);
        }
        self.shared.leave();
        self.send_written(id);
    }

    /// Sends what the latest callback of a connection wrote.
    #[inline]
    pub(super) fn send_written(&mut self, id: ConnId) {
        if self.shared.spilled {
            self.send_spilled(id);
        } else if !self.shared.scratch.is_empty() {
            self.flush_scratch(id);
        }
    }

    #[cold]
    #[inline(never)]
    fn send_spilled(&mut self, id: ConnId) {
        self.flush(id);
        // The caller may find nothing else changed, and settle nothing.
        if !planted(Bug::StaleAccount) {
            self.account(id);
        }
    }

    #[cold]
    fn recover(&mut self, id: ConnId) {
        error!(%id, "a callback panicked; its connection is aborted");
        self.count_panic();
        self.shared.leave();
        self.shared.spilled = false;
        self.drop_output(id);
        // It may have panicked over a buffer of its own that had taken the place of the loop's.
        self.slots[id.index()].input = BytesMut::new();
        if self.read_buffer.capacity() > 2 * READ_BUDGET {
            self.read_buffer = BytesMut::new();
        }
        let record = self.shared.table.at(id.index());
        record.set_requested(CloseReason::HandlerPanic);
        record.flags.insert(Flags::ACTION_DUE);
    }

    fn count_panic(&mut self) {
        self.shared.roll_back();
        self.shared.counters.panics.add(1);
        self.drain.count_panic(self.shared.now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::sim::Sim;

    const LEN: usize = 8 << 20;

    /// Waits for much, and panics over it.
    struct Panics;

    impl Handler for Panics {
        type Session = ();

        fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
            conn.expect_input(LEN);
            Some(())
        }

        fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {
            panic!("on purpose");
        }
    }

    #[test]
    fn a_panic_over_much_input_leaves_the_loop_no_large_buffer() {
        let mut sim = Sim::new(1);
        sim.set_buffers(2 * LEN, 2 * LEN);
        let mut config = Config::default();
        config.limits.input_max = LEN;
        let mut reactor = Reactor::with_backend(config, sim.host("10.0.0.1")).unwrap();
        reactor.listen("10.0.0.1:7").unwrap();
        let peer = sim.connect("10.0.0.1:7");
        peer.send(&vec![0; LEN]);
        while reactor.shared.counters.panics.get() == 0 {
            sim.pass(Duration::from_millis(1));
            reactor.turn(&mut Panics, Some(Duration::from_millis(1))).unwrap();
        }
        assert!(reactor.read_buffer.capacity() <= 2 * READ_BUDGET);
        assert_eq!(reactor.slots[0].input.capacity(), 0);
    }
}
