//! Endpoints: does what [`core::health`](crate::core::health) decides. It dials test connections, ends
//! those that are late, and tells pools and the log what has changed.

use super::Reactor;
use crate::backend::Backend;
use crate::close::{CloseReason, Timeout};
use crate::config::HealthCheck;
use crate::core::budget::Step;
use crate::core::flags::ColdFlags;
use crate::core::health::Work;
use crate::handler::Handler;
use crate::id::{ConnId, EndpointId};
use crate::log::{info, warn};
use crate::state::Standing;

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Serves the endpoints that have something to do.
    #[inline]
    pub(super) fn serve_endpoints(&mut self) {
        if self.shared.endpoints.due() > 0 {
            self.serve_some_endpoints();
        }
    }

    #[inline(never)]
    fn serve_some_endpoints(&mut self) {
        let mut budget = self.begin_step(Step::Checks);
        for _ in 0..self.shared.endpoints.due() {
            if !budget.allows(|| self.backend.now()) {
                break;
            }
            let Some(id) = self.shared.endpoints.take_due() else { break };
            self.serve_endpoint(id);
        }
        self.end_step(&budget);
    }

    fn serve_endpoint(&mut self, id: EndpointId) {
        let now = self.shared.now;
        while let Some(work) = self.shared.endpoints.get_mut(id).and_then(|it| it.policy.next(now))
        {
            match work {
                Work::Check => self.begin_check(id),
                Work::GiveUp(check) => {
                    let reason = CloseReason::Timeout(Timeout::Check);
                    self.shared.table.at(check.index()).request_close(reason);
                    self.shared.mark_dirty(check);
                }
            }
        }
        self.say_standing(id);
        self.shared.arm_endpoint(id);
    }

    fn begin_check(&mut self, id: EndpointId) {
        let (now, random) = (self.shared.now, self.backend.entropy());
        let Some(state) = self.shared.endpoints.get(id) else { return };
        let dialled = self.shared.add_check(state.target.clone());
        if let Ok(check) = dialled {
            let record = self.shared.table.at(check.index());
            record.cold_flags.insert(ColdFlags::CHECK);
            record.cold_mut().endpoint = Some(id);
        }
        if let Some(state) = self.shared.endpoints.get_mut(id) {
            match dialled {
                Ok(check) => state.policy.begin_check(check, now, random),
                Err(_) => state.policy.note_void(now, random),
            }
        }
    }

    /// A dialled connection stands: if it is a check, that has passed or begins its exchange.
    #[cold]
    pub(super) fn note_check_connected(&mut self, handler: &mut H, id: ConnId) {
        let record = self.shared.table.at(id.index());
        // `on_connected` may have panicked, or asked for its end.
        if record.requested().is_some() {
            return;
        }
        let endpoint = record.cold().and_then(|cold| cold.endpoint);
        let Some(endpoint) = endpoint.and_then(|id| self.shared.endpoints.get(id)) else { return };
        if endpoint.how == HealthCheck::TestRequest {
            let sent = self.shared.table.at(id.index()).bytes_out;
            self.call(id, "on_test_request", |conn, session| {
                handler.on_test_request(conn, session);
            });
            let record = self.shared.table.at(id.index());
            if record.bytes_out > sent || !record.deadline_inputs().at_rest() {
                return;
            }
        }
        // An end that a callback asked for comes before it has passed.
        if self.shared.table.at(id.index()).requested().is_none() {
            self.shared.note_check_passed(id);
        }
    }

    /// Counts that an endpoint is up, down or ejected, and lets its pools dial or not.
    fn say_standing(&mut self, id: EndpointId) {
        let Some(state) = self.shared.endpoints.get_mut(id) else { return };
        let (before, standing) = (state.said, state.standing());
        if before != standing {
            state.said = standing;
            state.log.note();
            self.shared.count_standing(before, false);
            self.shared.count_standing(standing, true);
            self.shared.hold_pools(id, standing != Standing::Up);
        }
        self.log_standing(id, before == Standing::Unknown);
    }

    /// Logs what an endpoint is by now, if that has changed and it is time to: what is logged last is
    /// so. `begins` says whether it was unknown before.
    fn log_standing(&mut self, id: EndpointId, begins: bool) {
        let now = self.shared.now;
        let Some(state) = self.shared.endpoints.get_mut(id) else { return };
        let Some(times) = state.log.times_unsaid(now) else { return };
        let target = state.target.to_string();
        let reason = state.policy.last_failure().map(|reason| reason.to_string());
        match state.said {
            Standing::Unknown => {}
            Standing::Up if begins => info!(target, "an endpoint is up"),
            Standing::Up => info!(target, times, "an endpoint is back"),
            Standing::Down => warn!(target, reason, times, "an endpoint is down"),
            Standing::Withdrawn => info!(target, times, "an endpoint is withdrawn by an operator"),
            Standing::Ejected => warn!(target, reason, times, "an endpoint is ejected"),
        }
    }
}
