//! Lends the columns of a connection to the handler: the only caller of callbacks, and the only
//! place that catches their panics.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tracing::error;

use bytes::BytesMut;

use super::io::Delivery;
use super::{Reactor, Slot};
use crate::backend::Backend;
use crate::conn::Conn;
use crate::context::{Context, Shared};
use crate::core::table::{ConnId, Flags};
use crate::error::CloseReason;
use crate::handler::Handler;

/// A callback panicked; what it had queued is still to be taken back.
pub(super) struct Panicked {
    /// Connections that were waiting to be dialled before it ran.
    births: usize,
}

/// Runs `on_data`, behind `on_active` if the connection wakes. What it wrote is left to the caller.
#[inline(always)]
pub(super) fn call_data<H: Handler>(
    handler: &mut H,
    shared: &mut Shared,
    id: ConnId,
    session: &mut H::Session,
    input: &mut BytesMut,
    begun: Delivery,
) -> Result<(), Panicked> {
    shared.enter_knowing(id, begun.drained);
    let births = shared.births.len();
    let mut conn = Conn::new(shared, id);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        if begun.wakes {
            handler.on_active(&mut conn, session);
            if conn.has_asked() {
                return;
            }
        }
        handler.on_data(&mut conn, session, input);
    }));
    shared.in_hand = None;
    shared.scratch_owner = None;
    outcome.map_err(|_| Panicked { births })
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Runs a callback of a connection that has a session, and sends what it wrote.
    pub(super) fn call(
        &mut self,
        id: ConnId,
        callback: impl FnOnce(&mut Conn<'_>, &mut H::Session),
    ) {
        self.lend(id, callback);
        self.refresh_now_if_stale();
        self.send_written(id);
    }

    /// Runs `on_idle`, which ends nearly every message and therefore is called on short terms: no
    /// output is queued, and the clock is left to the next callback.
    #[inline(always)]
    pub(super) fn call_idle(&mut self, handler: &mut H, id: ConnId) {
        let Some(session) = self.slots[id.index()].session.as_mut() else { return };
        self.shared.enter_knowing(id, true);
        let births = self.shared.births.len();
        let mut conn = Conn::new(&mut self.shared, id);
        let outcome = catch_unwind(AssertUnwindSafe(|| handler.on_idle(&mut conn, session)));
        if outcome.is_err() {
            self.recover(id, &Panicked { births });
        }
        self.shared.in_hand = None;
        if self.shared.wrote() {
            self.send_written(id);
        }
    }

    fn lend(&mut self, id: ConnId, callback: impl FnOnce(&mut Conn<'_>, &mut H::Session)) {
        let Some(session) = self.slots[id.index()].session.as_mut() else { return };
        self.shared.enter(id);
        let births = self.shared.births.len();
        let mut conn = Conn::new(&mut self.shared, id);
        let outcome = catch_unwind(AssertUnwindSafe(|| callback(&mut conn, session)));
        if outcome.is_err() {
            self.recover(id, &Panicked { births });
        }
    }

    /// Runs `on_eof`.
    pub(super) fn call_eof(&mut self, handler: &mut H, id: ConnId) {
        let Self { slots, shared, .. } = self;
        let Slot { session: Some(session), input, .. } = &mut slots[id.index()] else { return };
        shared.enter(id);
        let births = shared.births.len();
        let mut conn = Conn::new(shared, id);
        let outcome =
            catch_unwind(AssertUnwindSafe(|| handler.on_eof(&mut conn, session, input)));
        if outcome.is_err() {
            self.recover(id, &Panicked { births });
        }
        self.refresh_now_if_stale();
        self.send_written(id);
    }

    /// Runs `on_open` and says whether there is a session now.
    pub(super) fn call_open(&mut self, handler: &mut H, id: ConnId) -> bool {
        self.shared.enter(id);
        let births = self.shared.births.len();
        let mut conn = Conn::new(&mut self.shared, id);
        match catch_unwind(AssertUnwindSafe(|| handler.on_open(&mut conn))) {
            Ok(session) => self.slots[id.index()].session = session,
            Err(_) => self.recover(id, &Panicked { births }),
        }
        self.refresh_now_if_stale();
        self.send_written(id);
        self.slots[id.index()].session.is_some()
    }

    /// Runs a callback of the whole loop; if it panics the reactor stops.
    pub(super) fn call_loop(&mut self, callback: impl FnOnce(&mut Context<'_>)) {
        if !self.call_shared(callback) {
            self.stop.fail("a callback of the loop panicked");
        }
    }

    /// Runs a callback that has a context but no connection, and says whether it returned.
    pub(super) fn call_shared(&mut self, callback: impl FnOnce(&mut Context<'_>)) -> bool {
        self.shared.begin_journal();
        let births = self.shared.births.len();
        let mut cx = Context { shared: &mut self.shared };
        let outcome = catch_unwind(AssertUnwindSafe(|| callback(&mut cx)));
        if outcome.is_err() {
            self.count_panic(births);
        }
        self.refresh_now_if_stale();
        outcome.is_ok()
    }

    /// Takes the connection back from its callback and sends what that wrote.
    pub(super) fn send_written(&mut self, id: ConnId) {
        self.shared.in_hand = None;
        self.shared.scratch_owner = None;
        if self.shared.spilled {
            self.flush(id);
        } else if !self.shared.scratch.is_empty() {
            self.flush_scratch(id);
        }
    }

    #[cold]
    pub(super) fn recover(&mut self, id: ConnId, Panicked { births }: &Panicked) {
        error!(%id, "a callback panicked; its connection is aborted");
        self.shared.in_hand = Some(id);
        self.count_panic(*births);
        self.shared.in_hand = None;
        let record = self.shared.table.at(id.index());
        record.asked = Some(CloseReason::HandlerPanic);
        record.flags.insert(Flags::ASKED);
    }

    fn count_panic(&mut self, births: usize) {
        self.shared.roll_back(births);
        self.shared.counters.panics.add(1);
        self.stop.count_panic(self.shared.now);
    }
}
