//! The handler: dials an upstream for each client, and lets the two be relayed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::BytesMut;
use tracing::{debug, warn};
use wheelhouse::health::{EndpointConfig, EndpointId, HealthCheck};
use wheelhouse::{
    CloseReason, Config, Conn, ConnId, ConnectError, Context, Handler, Instant, Origin, Target,
    Timeouts,
};

use super::balance::{Balancer, Candidate, Policy, Tried};
use super::check::Check;

/// Refusals are logged at most so often, with how many there were.
const REFUSALS_EVERY: Duration = Duration::from_secs(1);

/// The settings of a reactor that dials each upstream for so long.
pub(crate) fn defaults(connect: Duration) -> Config {
    let mut defaults = Config::default();
    let timeouts = &mut defaults.timeouts;
    timeouts.connect = Some(connect);
    // One with a single address has all of it for that.
    timeouts.connect_attempt = timeouts.connect_attempt.max(timeouts.connect);
    defaults
}

/// The settings of the proxy.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) upstreams: Vec<Target>,
    pub(crate) policy: Policy,
    pub(crate) check: Check,
    pub(crate) check_interval: Duration,
    pub(crate) connect_total: Duration,
    /// Those of the reactor.
    pub(crate) timeouts: Timeouts,
    /// Of the choices that `random-two` makes.
    pub(crate) seed: u64,
}

/// What is dialled for a client that has no upstream yet.
#[derive(Debug)]
struct Attempt {
    upstream: ConnId,
    tried: Tried,
    until: Instant,
}

/// A TCP load balancer.
#[derive(Debug)]
pub(crate) struct Proxy {
    settings: Settings,
    upstreams: Vec<EndpointId>,
    balancer: Balancer,
    /// By client.
    attempts: BTreeMap<ConnId, Attempt>,
    candidates: Vec<Candidate>,
    refusals: Refusals,
}

#[derive(Debug)]
pub(crate) enum Session {
    Client,
    /// Dialled for this client.
    Upstream(ConnId),
    /// Checks an upstream.
    Check,
}

/// Why a client gets no upstream.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// None was available from the first.
    NoneAvailable,
    /// So many were dialled in vain, the last of them for this reason.
    AllFailed(u32, CloseReason),
    /// The time for it is over, with so many dialled, the last of them in vain for this reason.
    TooLate(u32, CloseReason),
    Ours(ConnectError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoneAvailable => f.write_str("no upstream is available"),
            Self::AllFailed(count, reason) => {
                write!(f, "no other upstream is available, {count} failed: {reason}")
            }
            Self::TooLate(count, reason) => {
                write!(f, "the time to connect is over, {count} failed: {reason}")
            }
            Self::Ours(error) => error.fmt(f),
        }
    }
}

/// What keeps the log short.
#[derive(Debug, Default)]
struct Refusals {
    next: Option<Instant>,
    count: u64,
}

impl Refusals {
    fn log(&mut self, now: Instant, client: &dyn fmt::Display, why: Refusal) {
        self.count += 1;
        if self.next.is_none_or(|next| next <= now) {
            let clients = std::mem::take(&mut self.count);
            self.next = Some(now + REFUSALS_EVERY);
            warn!(%client, reason = %why, clients, "refused");
        }
    }
}

impl Proxy {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            upstreams: Vec::new(),
            balancer: Balancer::new(settings.policy, settings.seed),
            attempts: BTreeMap::new(),
            candidates: Vec::new(),
            refusals: Refusals::default(),
            settings,
        }
    }

    /// Dials the next upstream for a client, or says why there is none.
    fn dial(
        &mut self,
        client: &mut Conn<'_>,
        mut tried: Tried,
        until: Instant,
        last: Option<CloseReason>,
    ) -> Result<(), Refusal> {
        loop {
            let over = |why: fn(u32, CloseReason) -> Refusal| match last {
                Some(reason) => why(tried.count(), reason),
                None => Refusal::NoneAvailable,
            };
            if client.now() >= until {
                return Err(over(Refusal::TooLate));
            }
            let stats = self.upstreams.iter().filter_map(|id| client.cx().endpoint(*id));
            self.candidates.clear();
            self.candidates.extend(
                stats.map(|it| Candidate { weight: it.weight, connections: it.connections }),
            );
            let Some(index) = self.balancer.pick(&self.candidates, tried) else {
                return Err(over(Refusal::AllFailed));
            };
            tried.note(index);
            match client.connect_endpoint(self.upstreams[index]) {
                Ok(upstream) => {
                    self.attempts.insert(client.id(), Attempt { upstream, tried, until });
                    return Ok(());
                }
                Err(ConnectError::Down(_)) => {}
                Err(error) => return Err(Refusal::Ours(error)),
            }
        }
    }

    fn refuse(&mut self, client: &mut Conn<'_>, why: Refusal) {
        self.refusals.log(client.now(), client.peer_addr(), why);
        client.abort();
    }
}

impl Handler for Proxy {
    type Session = Session;

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let settings = &self.settings;
        let default = EndpointConfig::default();
        let config = EndpointConfig {
            check: match settings.check {
                Check::Tcp => HealthCheck::Connect,
                Check::Send { .. } => HealthCheck::TestRequest,
            },
            interval: settings.check_interval,
            fast_interval: default.fast_interval.min(settings.check_interval),
            down_interval: settings.check_interval,
            group: Some(cx.add_endpoint_group()),
            ..default
        };
        let endpoint = |target: &Target| cx.add_endpoint(target.clone(), &config);
        let endpoints: Result<_, _> = settings.upstreams.iter().map(endpoint).collect();
        self.upstreams = endpoints.expect("the settings were checked");
    }

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Session> {
        match conn.origin() {
            Origin::Accepted(_) => {
                conn.pause_reading();
                let until = conn.now() + self.settings.connect_total;
                if let Err(why) = self.dial(conn, Tried::default(), until, None) {
                    self.refuse(conn, why);
                }
                return Some(Session::Client);
            }
            Origin::Check(_) => return Some(Session::Check),
            _ => {}
        }
        let client = conn.owner()?;
        let attempt = self.attempts.get(&client).filter(|it| it.upstream == conn.id())?;
        // What the others have taken is not this one's. A turn may have passed since it was begun.
        let left = (attempt.until - conn.now()).max(Duration::from_millis(1));
        if self.settings.timeouts.connect.is_none_or(|connect| left < connect) {
            let connect = Some(left);
            conn.set_timeouts(&Timeouts { connect, ..self.settings.timeouts.clone() });
        }
        Some(Session::Upstream(client))
    }

    fn on_connected(&mut self, conn: &mut Conn<'_>, session: &mut Session) {
        if let Session::Upstream(client) = *session {
            self.attempts.remove(&client);
            if !conn.relay_with(client) {
                conn.abort();
            }
        }
    }

    fn on_test_request(&mut self, conn: &mut Conn<'_>, _: &mut Session) {
        if let Check::Send { request, .. } = &self.settings.check {
            conn.begin_request();
            conn.write(request);
        }
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut Session, input: &mut BytesMut) {
        // No others have any: clients are not read before a relay, and nothing comes here after it.
        let (Session::Check, Check::Send { expect, .. }) = (session, &self.settings.check) else {
            return input.clear();
        };
        if input.starts_with(expect) {
            conn.ready();
        } else if !expect.starts_with(input) {
            conn.close();
        }
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, session: &mut Session, reason: &CloseReason) {
        match *session {
            Session::Client => {
                if let Some(attempt) = self.attempts.remove(&conn.id())
                    && let Some(mut upstream) = conn.other(attempt.upstream)
                {
                    upstream.abort();
                }
            }
            Session::Check => {}
            Session::Upstream(client) => {
                let id = conn.id();
                let attempt = self.attempts.get(&client).filter(|it| it.upstream == id);
                let Some(Attempt { tried, until, .. }) = attempt else { return };
                let (tried, until) = (*tried, *until);
                debug!(upstream = %conn.peer_addr(), %reason, "an upstream cannot be dialled");
                self.attempts.remove(&client);
                let Some(mut client) = conn.other(client) else { return };
                if let Err(why) = self.dial(&mut client, tried, until, Some(*reason)) {
                    self.refuse(&mut client, why);
                }
            }
        }
    }
}
