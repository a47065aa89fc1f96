//! The end of a reactor that does not go on: after a failure, or because its owner ends it.

use std::{error, fmt, io};

use super::{Reactor, Report};
use crate::backend::Backend;
use crate::close::CloseReason;
use crate::core::flags::{ColdFlags, Flags};
use crate::error::Error;
use crate::handler::Handler;
use crate::log::warn;
use crate::planted::{Bug, planted};

use crate::unwind::drop_caught;

/// Why [`Reactor::run`] failed, and what the reactor had done until then.
///
/// Every session that was live has had its [`on_closed`](Handler::on_closed).
#[derive(Debug)]
#[non_exhaustive]
pub struct RunError {
    /// What failed: the wait for events, or callbacks that panicked.
    pub error: io::Error,
    /// The final report; the ends that the failure caused are counted in it.
    pub report: Box<Report>,
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the reactor failed: {}", self.error)
    }
}

impl error::Error for RunError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.error)
    }
}

impl From<RunError> for io::Error {
    fn from(failed: RunError) -> Self {
        failed.error
    }
}

impl From<RunError> for Error {
    fn from(failed: RunError) -> Self {
        Self::Io(failed.error)
    }
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Ends every connection at once and gives every live session its last callbacks. No budget
    /// bounds it: there is no next turn.
    pub(super) fn end_all(&mut self, handler: &mut H) {
        if planted(Bug::LostSessions) {
            return;
        }
        let _turning = self.mailbox.begin_turn();
        self.refresh_now();
        // What callbacks post or dial from here on is refused.
        self.shared.stopping = true;
        self.close_mailbox();
        self.close_listeners(true);
        self.close_services();
        self.shared.pending_dials.clear();
        let ids: Vec<_> = self.shared.table.ids().collect();
        for id in &ids {
            self.make_slot(*id);
            if self.has_session(*id) && self.shared.table.at(id.index()).reason.is_none() {
                self.begin_closing(handler, *id, CloseReason::HardStop);
            } else {
                // One that was never opened may be a pool's.
                self.leave_pools(*id, CloseReason::HardStop);
                self.shared.leave_endpoint(*id, CloseReason::HardStop);
            }
        }
        for id in &ids {
            self.drop_output(*id);
            let record = self.shared.table.at(id.index());
            record.cold_flags.insert(ColdFlags::RESET);
            record.flags.insert(Flags::REAPED);
        }
        self.shared.reaped = ids;
        while !self.shared.reaped.is_empty() {
            self.reap(handler);
        }
        self.close_pools(handler);
    }

    /// Refuses closures from here on, and drops those that were posted.
    fn close_mailbox(&mut self) {
        self.mailbox.close();
        self.tasks.drain(..).for_each(drop_caught);
    }

    /// Drops the sessions without a callback, and returns how many there were.
    pub(crate) fn drop_sessions(&mut self) -> usize {
        let sessions = self.slots.iter_mut().filter_map(|slot| slot.session.take());
        sessions.map(drop_caught).count()
    }
}

impl<H: Handler, B: Backend> Drop for Reactor<H, B> {
    fn drop(&mut self) {
        let _turning = self.mailbox.begin_turn();
        self.close_mailbox();
        let sessions = self.drop_sessions();
        if sessions > 0 {
            warn!(sessions, "a reactor was dropped; its sessions get no on_closed");
        }
    }
}
