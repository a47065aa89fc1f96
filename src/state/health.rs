//! The endpoints, as callbacks see them: what is added, dialled, noted and removed.

use std::collections::VecDeque;

use slab::Slab;

use super::LoopState;
use super::alarms::Purpose;
use crate::address::Target;
use crate::close::CloseReason;
use crate::config::{EndpointConfig, HealthCheck};
use crate::core::dial::{Blame, blame_for};
use crate::core::flags::ColdFlags;
use crate::core::health::{self, Endpoint, EndpointStats, Outcome, Withdrawal, Witness};
use crate::core::lifecycle::State;
#[cfg(feature = "sim")]
use crate::core::stats::Counter;
use crate::error::{ConfigError, ConnectError};
use crate::id::{AlarmId, ConnId, EndpointGroupId, EndpointId, PoolId};
use crate::log::LogLimiter;
use crate::planted::{Bug, planted};
use crate::time::Instant;

/// What is counted and logged of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    /// No check has said anything yet.
    Unknown,
    Up,
    Down,
    Ejected,
    /// By an operator.
    Withdrawn,
}

/// An endpoint, and what its test connections are made from.
#[derive(Debug)]
pub(crate) struct EndpointEntry {
    serial: u64,
    pub(crate) policy: Endpoint,
    pub(crate) target: Target,
    pub(crate) how: HealthCheck,
    group: Option<EndpointGroupId>,
    /// What was last counted.
    pub(crate) said: Standing,
    /// When that is logged: one that flaps does not fill the log.
    pub(crate) log: LogLimiter,
    /// Connections that were dialled to it by its id and are not closed.
    connections: usize,
    /// Pools that do not dial while it is not available.
    pools: Vec<PoolId>,
    /// It is in the queue of those that have something to do.
    queued: bool,
    /// When the alarm comes that looks after it.
    alarm: Option<(AlarmId, Instant)>,
}

const _: () = assert!(size_of::<EndpointEntry>() <= 416, "the documents say what one costs");

impl EndpointEntry {
    /// When something is to be done for it next.
    fn due(&self, now: Instant) -> Instant {
        self.policy.due(now).min(self.log.due())
    }

    pub(crate) fn standing(&self) -> Standing {
        if self.policy.withdrawn().is_some() {
            Standing::Withdrawn
        } else if self.policy.is_unknown() {
            Standing::Unknown
        } else if !self.policy.is_up() {
            Standing::Down
        } else if self.policy.is_ejected() {
            Standing::Ejected
        } else {
            Standing::Up
        }
    }
}

/// All endpoints of a reactor.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    list: Slab<EndpointEntry>,
    added: u64,
    /// Those that have something to do.
    queue: VecDeque<EndpointId>,
    /// How many of the members of each group may be ejected at once, in percent.
    groups: Vec<u8>,
    /// No check begins any more.
    pub(super) stopped: bool,
}

/// The share of a group that may be ejected at once, in percent.
const EJECTED_MAX: u8 = 50;

impl Endpoints {
    /// Endpoints that have something to do.
    #[inline]
    pub(crate) fn due(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn get(&self, id: EndpointId) -> Option<&EndpointEntry> {
        self.list.get(id.index as usize).filter(|it| it.serial == id.serial)
    }

    pub(crate) fn get_mut(&mut self, id: EndpointId) -> Option<&mut EndpointEntry> {
        self.list.get_mut(id.index as usize).filter(|it| it.serial == id.serial)
    }

    pub(crate) fn take_due(&mut self) -> Option<EndpointId> {
        let id = self.queue.pop_front()?;
        if let Some(state) = self.get_mut(id) {
            state.queued = false;
        }
        Some(id)
    }

    /// Lets the endpoint be served in the next step for endpoints.
    pub(crate) fn wake(&mut self, id: EndpointId) {
        let Some(state) = self.get_mut(id) else { return };
        if !state.queued {
            state.queued = true;
            self.queue.push_back(id);
        }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = EndpointId> {
        self.list
            .iter()
            .map(|(index, state)| EndpointId { index: index as u32, serial: state.serial })
    }

    fn members(&self, group: EndpointGroupId) -> impl Iterator<Item = &Endpoint> {
        let members = self.list.iter().filter(move |(_, state)| state.group == Some(group));
        members.map(|(_, state)| &state.policy)
    }

    /// Whether another endpoint of the group may be ejected.
    fn has_room_to_eject(&self, group: Option<EndpointGroupId>) -> bool {
        // What has no group has no alternative.
        let Some(group) = group else { return planted(Bug::EjectionFloorIgnored) };
        let percent = self.groups[group.0 as usize];
        health::may_eject(self.members(group), percent) || planted(Bug::EjectionFloorIgnored)
    }

    /// Of a group that became smaller one that is ejected and may not be any more: the one that
    /// would be for the least time.
    fn surplus_of(&self, group: EndpointGroupId) -> Option<EndpointId> {
        let ejected = self.members(group).filter(|member| member.is_ejected()).count();
        if health::is_within(ejected, self.members(group).count(), self.groups[group.0 as usize]) {
            return None;
        }
        let members = self.ids().filter_map(|id| {
            let state = self.get(id).filter(|state| state.group == Some(group))?;
            Some((state.policy.ejected_until()?, id))
        });
        members.min().map(|(_, id)| id)
    }
}

/// What callbacks ask.
impl LoopState {
    pub(crate) fn add_endpoint(
        &mut self,
        target: Target,
        config: &EndpointConfig,
    ) -> Result<EndpointId, ConfigError> {
        config.refuse_out_of_range()?;
        if config.group.is_some_and(|group| group.0 as usize >= self.endpoints.groups.len()) {
            return Err(ConfigError::new("endpoint.group", "a group of this reactor"));
        }
        let endpoints = &mut self.endpoints;
        endpoints.added += 1;
        let serial = endpoints.added;
        let mut policy = Endpoint::new(config);
        if endpoints.stopped {
            policy.stop();
        }
        let said = if policy.is_unknown() { Standing::Unknown } else { Standing::Up };
        let state = EndpointEntry {
            serial,
            policy,
            target,
            how: config.check,
            group: config.group,
            said,
            log: LogLimiter::default(),
            connections: 0,
            pools: Vec::new(),
            queued: false,
            alarm: None,
        };
        let index = endpoints.list.insert(state) as u32;
        let id = EndpointId { index, serial };
        self.endpoints.wake(id);
        self.count_standing(said, true);
        Ok(id)
    }

    pub(crate) fn add_endpoint_group(&mut self) -> EndpointGroupId {
        self.endpoints.groups.push(EJECTED_MAX);
        EndpointGroupId(self.endpoints.groups.len() as u32 - 1)
    }

    /// Forgets an endpoint. Its check ends, and its pools dial as if it were up.
    pub(crate) fn remove_endpoint(&mut self, id: EndpointId) {
        if self.endpoints.get(id).is_none() {
            return;
        }
        let state = self.endpoints.list.remove(id.index as usize);
        if state.queued {
            self.endpoints.queue.retain(|queued| *queued != id);
        }
        if let Some((alarm, _)) = state.alarm {
            self.cancel_alarm(alarm);
        }
        self.count_standing(state.said, false);
        if let Some(check) = state.policy.check() {
            self.table.at(check.index()).request_close(CloseReason::HandlerClose);
            self.mark_dirty(check);
        }
        for pool in state.pools {
            self.hold_pool(pool, false);
        }
        while let Some(surplus) = state.group.and_then(|group| self.endpoints.surplus_of(group)) {
            let now = self.now;
            if let Some(state) = self.endpoints.get_mut(surplus) {
                state.policy.end_ejection(now);
            }
            self.endpoints.wake(surplus);
        }
    }

    /// An operator takes an endpoint out of use, or lets it be used again.
    pub(crate) fn withdraw_endpoint(&mut self, id: EndpointId, withdrawal: Option<Withdrawal>) {
        let now = self.now;
        if let Some(state) = self.endpoints.get_mut(id) {
            state.policy.withdraw(withdrawal, now);
        }
        self.endpoints.wake(id);
    }

    pub(crate) fn endpoint_stats(&self, id: EndpointId) -> Option<EndpointStats> {
        let state = self.endpoints.get(id)?;
        Some(state.policy.stats(self.now, state.connections))
    }

    /// Dials the target of an endpoint, unless that is not available.
    pub(crate) fn dial_endpoint(
        &mut self,
        id: EndpointId,
        owner: Option<ConnId>,
    ) -> Result<ConnId, ConnectError> {
        let now = self.now;
        let Some(state) = self.endpoints.get_mut(id) else { return Err(ConnectError::Down(None)) };
        if !state.policy.is_available() {
            let reason = state.policy.last_failure();
            state.policy.want(now, now);
            self.endpoints.wake(id);
            return Err(ConnectError::Down(reason));
        }
        let target = state.target.clone();
        let conn = self.dial(target, owner)?;
        let record = self.table.at(conn.index());
        record.cold_flags.insert(ColdFlags::OF_ENDPOINT);
        record.cold_mut().endpoint = Some(id);
        if let Some(state) = self.endpoints.get_mut(id) {
            state.connections += 1;
        }
        Ok(conn)
    }

    pub(crate) fn note_endpoint_success(&mut self, id: EndpointId, source: Witness) {
        if let Some(state) = self.endpoints.get_mut(id) {
            state.policy.note_success(source);
        }
    }

    /// Notes a failure: one that the application knows of if there is no `reason`.
    pub(crate) fn note_endpoint_failure(&mut self, id: EndpointId, reason: Option<CloseReason>) {
        let Some(state) = self.endpoints.get_mut(id) else { return };
        self.counters.endpoint_failures.add(1);
        let source = reason.map_or(Witness::Application, |_| Witness::Reactor);
        if !state.policy.note_failure(reason, source) {
            return;
        }
        let group = state.group;
        let room = self.endpoints.has_room_to_eject(group);
        let now = self.now;
        let Some(state) = self.endpoints.get_mut(id) else { return };
        if room {
            state.policy.eject(now);
            self.counters.endpoint_ejections.add(1);
            self.endpoints.wake(id);
        } else {
            state.policy.spare();
            self.counters.endpoint_ejections_prevented.add(1);
        }
    }

    /// A test connection got the right reply. Returns whether the connection is one.
    pub(crate) fn note_check_passed(&mut self, id: ConnId) -> bool {
        let record = self.table.at(id.index());
        if !record.cold_flags.has(ColdFlags::CHECK) {
            return false;
        }
        let endpoint = record.cold().and_then(|cold| cold.endpoint);
        // Before it stands it has not been tried.
        if matches!(record.state(), State::Connected | State::Idle) {
            self.end_check(endpoint, id, Outcome::Passed);
            let record = self.table.at(id.index());
            record.request_close(CloseReason::CheckPassed);
            self.mark_dirty(id);
        }
        true
    }
}

/// What the reactor does.
impl LoopState {
    /// The check over a test connection is over. One that has ended already is ignored.
    fn end_check(&mut self, endpoint: Option<EndpointId>, id: ConnId, outcome: Outcome) {
        let now = self.now;
        let Some(endpoint) = endpoint else { return };
        let Some(state) = self.endpoints.get_mut(endpoint) else { return };
        if !state.policy.end_check(id, outcome, now) {
            return;
        }
        match outcome {
            Outcome::Passed => self.counters.endpoint_checks.add(1),
            Outcome::Failed(_) => {
                self.counters.endpoint_checks.add(1);
                self.counters.endpoint_checks_failed.add(1);
            }
            Outcome::Void => {}
        }
        self.endpoints.wake(endpoint);
    }

    /// The end of a connection that was dialled to an endpoint begins for `reason`.
    #[cold]
    pub(crate) fn leave_endpoint(&mut self, id: ConnId, reason: CloseReason) {
        let record = self.table.at(id.index());
        let Some(endpoint) = record.cold().and_then(|cold| cold.endpoint) else { return };
        if record.cold_flags.has(ColdFlags::CHECK) {
            let outcome = Outcome::of_end(reason, blame(reason));
            return self.end_check(Some(endpoint), id, outcome);
        }
        let answered = record.bytes_in > 0;
        let relayed = record.cold_flags.has(ColdFlags::RELAYED);
        match health::judge(reason, blame(reason), answered) {
            Some(Ok(())) => self.note_endpoint_success(endpoint, Witness::Reactor),
            // What the other end of a relay sends may be what the endpoint rejects.
            Some(Err(_)) if relayed => {}
            Some(Err(reason)) => self.note_endpoint_failure(endpoint, Some(reason)),
            None => {}
        }
    }

    /// The record of a connection is about to be released that was dialled to an endpoint.
    #[cold]
    pub(super) fn free_endpoint_place(&mut self, id: ConnId) {
        let record = self.table.at(id.index());
        if record.cold_flags.has(ColdFlags::CHECK) {
            return;
        }
        if let Some(endpoint) = record.cold().and_then(|cold| cold.endpoint)
            && let Some(state) = self.endpoints.get_mut(endpoint)
        {
            state.connections -= 1;
        }
    }

    /// Lets the alarm of an endpoint come when its policy is due. It mostly comes by then.
    pub(crate) fn arm_endpoint(&mut self, id: EndpointId) {
        let Some(state) = self.endpoints.get(id) else { return };
        let (before, due) = (state.alarm, state.due(self.now));
        let alarm = self.set_alarm_by(before, due, Purpose::ServeEndpoint(id));
        if let Some(state) = self.endpoints.get_mut(id) {
            state.alarm = alarm;
        }
    }

    /// The alarm of an endpoint has come.
    pub(crate) fn wake_endpoint(&mut self, id: EndpointId) {
        if let Some(state) = self.endpoints.get_mut(id) {
            state.alarm = None;
        }
        self.endpoints.wake(id);
    }

    /// Counts an endpoint as standing so, or no more.
    pub(crate) fn count_standing(&self, standing: Standing, stands: bool) {
        let counter = match standing {
            Standing::Up => &self.counters.endpoints_up,
            Standing::Unknown | Standing::Down | Standing::Withdrawn => {
                &self.counters.endpoints_down
            }
            Standing::Ejected => &self.counters.endpoints_ejected,
        };
        if stands {
            counter.add(1);
        } else {
            counter.sub(1);
        }
    }

    /// Lets the pools of an endpoint dial, or not.
    pub(crate) fn hold_pools(&mut self, id: EndpointId, held: bool) {
        let Some(state) = self.endpoints.get_mut(id) else { return };
        let pools = std::mem::take(&mut state.pools);
        for pool in &pools {
            self.hold_pool(*pool, held);
        }
        if let Some(state) = self.endpoints.get_mut(id) {
            state.pools = pools;
        }
    }

    /// A pool is to dial only while its endpoint is available.
    pub(super) fn join_endpoint(&mut self, pool: PoolId, id: EndpointId) {
        let Some(state) = self.endpoints.get_mut(id) else { return };
        state.pools.push(pool);
        let held = !state.policy.is_available();
        self.hold_pool(pool, held);
    }

    /// Something may wait until then for a pool to dial an endpoint: while that is not available, it
    /// is checked often.
    pub(super) fn want_endpoint(&mut self, id: EndpointId, until: Instant) {
        let now = self.now;
        let Some(state) = self.endpoints.get_mut(id) else { return };
        state.policy.want(until, now);
        if !state.policy.is_available() {
            self.endpoints.wake(id);
        }
    }

    /// The reactor stops: no check begins any more, and those under way end.
    pub(crate) fn stop_checks(&mut self) {
        self.endpoints.stopped = true;
        let mut checks = Vec::new();
        for (_, state) in &mut self.endpoints.list {
            state.policy.stop();
            checks.extend(state.policy.check());
        }
        for check in checks {
            self.table.at(check.index()).request_close(CloseReason::Shutdown);
            self.mark_dirty(check);
        }
        // Nothing would let them dial again, and what waits in them is served.
        let ids: Vec<_> = self.endpoints.ids().collect();
        for id in ids {
            self.hold_pools(id, false);
        }
    }
}

/// Whose doing it was that a connection to an endpoint ended.
fn blame(reason: CloseReason) -> Blame {
    if planted(Bug::ShortageCounts) { Blame::Theirs } else { blame_for(reason) }
}

/// What must hold between two turns.
#[cfg(feature = "sim")]
impl LoopState {
    /// Each endpoint and its connections agree, one check at most is under way, no more are ejected
    /// than may be, and what is due is served: I12.
    pub(crate) fn audit_endpoints(&self) -> Result<(), String> {
        let (mut checks, mut connections) = (Vec::new(), std::collections::BTreeMap::new());
        for record in self.table.ids().filter_map(|id| self.table.get(id)) {
            let Some(endpoint) = record.cold().and_then(|cold| cold.endpoint) else { continue };
            if record.cold_flags.has(ColdFlags::CHECK) {
                let lasts = record.state().is_open() && record.requested().is_none();
                checks.extend(lasts.then_some((endpoint, record.id)));
            } else if record.cold_flags.has(ColdFlags::OF_ENDPOINT) {
                *connections.entry(endpoint).or_insert(0) += 1;
            }
        }
        let mut standings = [0; 3];
        for id in self.endpoints.ids() {
            let Some(state) = self.endpoints.get(id) else { continue };
            let due = state.due(self.now);
            let comes = state.alarm.is_some_and(|(_, at)| at <= due);
            if !state.queued && !comes && due < Instant::FAR_FUTURE {
                return Err(format!("nothing serves {id:?} at {due:?}: {state:?}"));
            }
            let its: Vec<_> = checks.iter().filter(|(of, _)| *of == id).map(|it| it.1).collect();
            // What is to end is no check any more, and its end may not have begun.
            let known = state.policy.check();
            if its.len() > 1 || its.iter().any(|check| known != Some(*check)) {
                return Err(format!("{id:?} has the checks {its:?}, and knows {known:?}"));
            }
            if known.is_some_and(|check| self.table.get(check).is_none()) {
                return Err(format!("{id:?} knows a check {known:?} that is gone"));
            }
            if connections.remove(&id).unwrap_or(0) != state.connections {
                return Err(format!("{id:?} has not {} connections", state.connections));
            }
            if !state.queued && state.said != state.standing() {
                return Err(format!("{id:?} is {:?} and said {:?}", state.standing(), state.said));
            }
            standings[match state.said {
                Standing::Up => 0,
                Standing::Unknown | Standing::Down | Standing::Withdrawn => 1,
                Standing::Ejected => 2,
            }] += 1;
            if state.policy.is_ejected() && state.group.is_none() {
                return Err(format!("{id:?} is ejected and has no group"));
            }
            for pool in &state.pools {
                let held = self.pools.is_held(*pool);
                let may_be_held = !self.endpoints.stopped && !state.policy.is_available();
                if !state.queued && held != may_be_held {
                    return Err(format!("{pool:?} of {id:?} is held: {held}"));
                }
            }
        }
        for (index, percent) in self.endpoints.groups.iter().enumerate() {
            let members = || self.endpoints.members(EndpointGroupId(index as u32));
            let ejected = members().filter(|member| member.is_ejected()).count();
            if !health::is_within(ejected, members().count(), *percent) {
                return Err(format!("{ejected} of a group of {} are ejected", members().count()));
            }
        }
        let counters = &self.counters;
        let known = [&counters.endpoints_up, &counters.endpoints_down, &counters.endpoints_ejected]
            .map(Counter::get);
        if known != standings {
            return Err(format!("endpoints stand {standings:?}, and {known:?} are counted"));
        }
        Ok(())
    }
}
