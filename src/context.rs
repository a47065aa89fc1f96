//! The cursor that callbacks get for the whole loop.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::address::ToTarget;
use crate::config::{AcquireOptions, EndpointConfig, PoolConfig};
use crate::core::health::{EndpointStats, Witness};
use crate::core::pool::PoolStats;
use crate::core::record::Record;
use crate::core::share::Shared;
use crate::core::stats::Stats;
use crate::error::{AcquireError, ConfigError, ConnectError};
use crate::id::{AlarmId, ConnId, EndpointGroupId, EndpointId, PoolGroupId, PoolId, WaitId};
use crate::state::{LoopState, Purpose, stats};
use crate::time::Instant;

/// The whole loop, from inside a callback or before the first turn.
///
/// Like [`Conn`](crate::Conn) it only records what is wanted; the reactor acts afterwards.
pub struct Context<'a> {
    pub(crate) shared: &'a mut LoopState,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("now", &self.now()).field("len", &self.len()).finish()
    }
}

impl Context<'_> {
    /// The time of this turn. After a callback that took long it is read again.
    pub fn now(&self) -> Instant {
        self.shared.now
    }

    /// The wall clock, as the time since 1970-01-01 00:00 UTC: what dates and logs want. It moves
    /// with [`now`](Context::now) and follows a change of the system's clock within a second, so it
    /// may go back. Reading it makes no system call.
    ///
    /// ```
    /// use std::time::{Duration, UNIX_EPOCH};
    /// use wheelhouse::Context;
    ///
    /// fn date(cx: &Context<'_>) -> String {
    ///     httpdate::fmt_http_date(UNIX_EPOCH + cx.now_unix())
    /// }
    /// ```
    pub fn now_unix(&self) -> Duration {
        self.shared.now_unix()
    }

    /// How many connections there are, those being dialled or closed included.
    pub fn len(&self) -> usize {
        self.shared.table.len()
    }

    /// Whether there are no connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The counters so far.
    pub fn stats(&self) -> Stats {
        stats(&self.shared.counters)
    }

    /// All connections. They are collected first, so that each may be reached while the list is
    /// walked.
    pub fn ids(&self) -> Vec<ConnId> {
        let table = &self.shared.table;
        let lives = |id: &ConnId| table.get(*id).is_some_and(Record::is_there);
        table.ids().filter(lives).collect()
    }

    /// Dials `target`. [`Handler::on_open`](crate::Handler::on_open) follows later in this turn or
    /// in the next one, for the connection of this id; then
    /// [`on_connected`](crate::Handler::on_connected), or the end with
    /// [`ConnectFailed`](crate::CloseReason::ConnectFailed).
    ///
    /// # Errors
    ///
    /// If there are too many connections, the reactor is shutting down, or a text is no
    /// [`Target`](crate::Target).
    pub fn connect(&mut self, target: impl ToTarget) -> Result<ConnId, ConnectError> {
        self.shared.dial(target.to_target()?, None)
    }

    /// Adds a pool of connections to `target`, which lives as long as the reactor. It dials nothing
    /// before it is asked, except where [`PoolConfig::idle_min`] says so.
    ///
    /// [`Handler::on_open`](crate::Handler::on_open) comes for each of its connections, whose
    /// [origin](crate::Conn::origin) is [`Origin::Pool`](crate::Origin::Pool). Each of its
    /// connections has timeouts of its own, and costs what [`Conn::set_timeouts`](crate::Conn::set_timeouts) says beside what
    /// any other does.
    ///
    /// # Errors
    ///
    /// If `target` is text and no [`Target`](crate::Target), or a setting is out of its range.
    pub fn add_pool(
        &mut self,
        target: impl ToTarget,
        config: &PoolConfig,
    ) -> Result<PoolId, ConfigError> {
        let target = target.to_target().map_err(|_| {
            ConfigError::new("the target of a pool", "an address or a name and a port")
        })?;
        self.shared.add_pool(target, config)
    }

    /// Adds a group of pools that together have at most `max` connections. Where a pool needs one
    /// more than that, the connection is closed that has been idle longest in another pool of the
    /// group.
    pub fn add_pool_group(&mut self, max: usize) -> PoolGroupId {
        self.shared.add_pool_group(max)
    }

    /// Closes a pool: what waits is answered with an error, idle connections are closed, and leased
    /// ones when they are given back.
    ///
    /// # Panics
    ///
    /// If there is no such pool, as `pool` is another reactor's.
    pub fn close_pool(&mut self, pool: PoolId) {
        self.shared.close_pool(pool);
    }

    /// The numbers of a pool.
    ///
    /// # Panics
    ///
    /// If there is no such pool, as `pool` is another reactor's.
    pub fn pool_stats(&self, pool: PoolId) -> PoolStats {
        self.shared.pool_stats(pool)
    }

    /// Asks `pool` for a connection that is leased to the loop, for work that belongs to no
    /// connection. The answer is one call of
    /// [`Handler::on_loop_acquired`](crate::Handler::on_loop_acquired).
    ///
    /// # Errors
    ///
    /// If too many wait already, or the pool is closed. Then no call follows.
    ///
    /// # Panics
    ///
    /// If there is no such pool, as `pool` is another reactor's.
    pub fn acquire(
        &mut self,
        pool: PoolId,
        options: AcquireOptions,
    ) -> Result<WaitId, AcquireError> {
        self.shared.acquire(None, pool, options)
    }

    /// Takes back an `acquire` of any connection, or of the loop, that has not been answered. As
    /// [`Conn::cancel_acquire`](crate::Conn::cancel_acquire).
    pub fn cancel_acquire(&mut self, wait: WaitId) -> bool {
        self.shared.cancel_wait(wait)
    }

    /// Gives back what was leased to the loop. As [`Conn::release`](crate::Conn::release).
    pub fn release(&mut self, lease: ConnId) {
        self.shared.give_back(None, lease, false);
    }

    /// Adds an endpoint, which is checked from now on as `config` says until it is
    /// [removed](Context::remove_endpoint). Until its first check has passed it is not available.
    ///
    /// [`Handler::on_open`](crate::Handler::on_open) comes for each of its test connections, whose
    /// [origin](crate::Conn::origin) is [`Origin::Check`](crate::Origin::Check). One that is refused there is a failed check. An
    /// endpoint costs some 400 bytes, and at most one connection at a time for its checks. A name is
    /// looked up anew for each check.
    ///
    /// ```
    /// use wheelhouse::Context;
    /// use wheelhouse::health::{EndpointConfig, EndpointId};
    ///
    /// fn add_both(cx: &mut Context<'_>) -> Vec<EndpointId> {
    ///     let group = Some(cx.add_endpoint_group());
    ///     let config = EndpointConfig { group, ..EndpointConfig::default() };
    ///     let targets = ["192.0.2.1:80", "192.0.2.2:80"];
    ///     targets.map(|target| cx.add_endpoint(target, &config).unwrap()).to_vec()
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// If `target` is text and no [`Target`](crate::Target), or a setting is out of its range.
    pub fn add_endpoint(
        &mut self,
        target: impl ToTarget,
        config: &EndpointConfig,
    ) -> Result<EndpointId, ConfigError> {
        let target = target.to_target().map_err(|_| {
            ConfigError::new("the target of an endpoint", "an address or a name and a port")
        })?;
        self.shared.add_endpoint(target, config)
    }

    /// Adds a group of endpoints that serve the same, so that one that fails may be ejected and the
    /// others take its load. Of a group at most half is down or ejected when one more is ejected: what
    /// is left has to carry the load, and where all fail alike it is not the endpoints.
    pub fn add_endpoint_group(&mut self) -> EndpointGroupId {
        self.shared.add_endpoint_group()
    }

    /// Removes an endpoint: its check ends with [`HandlerClose`](crate::CloseReason::HandlerClose), its
    /// connections stay and count for nothing more, and pools that follow it dial as they would
    /// without it. One that was removed before is ignored.
    pub fn remove_endpoint(&mut self, endpoint: EndpointId) {
        self.shared.remove_endpoint(endpoint);
    }

    /// The endpoints that have been added and not removed.
    pub fn endpoints(&self) -> Vec<EndpointId> {
        self.shared.endpoints.ids().collect()
    }

    /// What is known of an endpoint, unless it was removed.
    pub fn endpoint(&self, endpoint: EndpointId) -> Option<EndpointStats> {
        self.shared.endpoint_stats(endpoint)
    }

    /// Dials an endpoint, as [`connect`](Context::connect) dials its target, if it is available. How
    /// the connection ends counts for its health:
    ///
    /// - as a failure, if it does not come to stand, if it is reset or fails before a byte has come,
    ///   or if a deadline for a reply or for what is written passes;
    /// - as a success otherwise, if a byte has come;
    /// - as nothing, if none has, or if this process lacked a port or a descriptor, made room or
    ///   was stopping. So does whatever ends a [relay](crate::Conn::relay_with) without a byte from the
    ///   endpoint: the other end of it may have sent what the endpoint rejects.
    ///
    /// # Errors
    ///
    /// If the endpoint is not available, with its latest failure, there are too many connections, or
    /// the reactor is shutting down. An endpoint that is not available is checked at its
    /// [`fast_interval`](crate::health::EndpointConfig::fast_interval) for a while then.
    pub fn connect_endpoint(&mut self, endpoint: EndpointId) -> Result<ConnId, ConnectError> {
        self.shared.dial_endpoint(endpoint, None)
    }

    /// Notes that an endpoint did what it should: failures before this are none in a row with those
    /// to come. For what only the application knows, such as the status of a reply.
    pub fn note_endpoint_success(&mut self, endpoint: EndpointId) {
        self.shared.note_endpoint_success(endpoint, Witness::Application);
    }

    /// Notes that an endpoint failed, in a way that only the application knows.
    /// [`EndpointConfig::eject_after`](crate::health::EndpointConfig::eject_after) of them eject it, if
    /// neither [`note_endpoint_success`](Context::note_endpoint_success) nor a test request that passes
    /// comes in between. That a connection ended well says nothing of them.
    pub fn note_endpoint_failure(&mut self, endpoint: EndpointId) {
        self.shared.note_endpoint_failure(endpoint, None);
    }

    /// Asks for [`Handler::on_alarm`](crate::Handler::on_alarm) at `at`: never early, at most one
    /// tick (10 ms) and the turn at hand late. A time in the past is the next turn's,
    /// [`Instant::FAR_FUTURE`] never comes. One alarm costs 48 bytes.
    pub fn set_alarm(&mut self, at: Instant) -> AlarmId {
        self.shared.set_alarm(at, Purpose::Application)
    }

    /// Forgets an alarm; one that has come or was cancelled before is ignored.
    pub fn cancel_alarm(&mut self, alarm: AlarmId) {
        self.shared.cancel_alarm(alarm);
    }

    /// Makes bytes that are to be written to many connections, by
    /// [`Conn::write_shared`](crate::Conn::write_shared), and count once in all their queues together.
    pub fn share(&self, bytes: impl Into<Bytes>) -> Shared {
        Shared::new(bytes.into(), &self.shared.shared_bytes)
    }

    /// Closes the listeners, and every connection when it has been served, as
    /// [`Handle::shutdown`](crate::Handle::shutdown) does.
    pub fn shutdown(&mut self) {
        self.shared.shutdowns_asked = self.shared.shutdowns_asked.saturating_add(1);
    }

    /// Whether a shutdown began or was asked for.
    pub fn is_shutting_down(&self) -> bool {
        self.shared.is_shutting_down()
    }
}
