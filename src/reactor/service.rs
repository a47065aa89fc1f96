//! Services: listeners whose connections the library serves itself. They are accepted beside the
//! limits, have no place in the table, and no handler hears of them.
//!
//! What a service answers stands in [`service`](crate::service), how long its connections may take in
//! [`core::service`](crate::core::service). Here are their sockets. All of it happens in the accept step
//! of a turn, which is skipped as a whole while nothing is due: so a service that is not asked costs
//! nothing.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BytesMut};

use super::accept::send_fin_and_drain;
use super::io::{Failure, reason_of};
use super::read_buffer::rewind;
use super::{READ_BUDGET, Reactor};
use crate::address::{Address, ToAddress};
use crate::backend::{Backend, Token};
use crate::config::{Config, ListenConfig};
use crate::core::budget::{Budget, ITEMS_PER_STEP, Step};
use crate::core::gate::{ACCEPTS_PER_TURN, AcceptFault, FAILURES_PER_TURN};
use crate::core::service::{CONNECTIONS_MAX, Clocks, Phase};
use crate::error::{ConfigError, Error};
use crate::handler::Handler;
use crate::id::{AlarmId, ConnId, ServiceId};
use crate::log::{LogLimiter, debug, error, info, warn};
use crate::metrics::MetricsWriter;
use crate::service::{Desk, Kind, Next, OUTPUT_HIGH, Order, Service};
use crate::state::Purpose;
use crate::time::Instant;
use crate::unwind::catch;

/// Questions of one connection that are answered in one turn, of which one may want the metrics of the
/// application.
const QUESTIONS_PER_TURN: u32 = 16;

/// How long a listener waits after it failed to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All services of a reactor.
#[derive(Debug)]
pub(super) struct Services<L, S> {
    hosts: Vec<Host<L, S>>,
    /// Connections that have something to do, each once.
    due: VecDeque<ServiceId>,
    /// The time of a connection may be over, or a listener accepts again.
    check_due: bool,
    /// There is something to do, of whichever kind.
    pending: bool,
    /// How often a service was asked.
    #[cfg(feature = "sim")]
    asked: u64,
    alarm: Option<(AlarmId, Instant)>,
    refusals: LogLimiter,
    failures: LogLimiter,
}

impl<L, S> Default for Services<L, S> {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            due: VecDeque::new(),
            check_due: false,
            pending: false,
            #[cfg(feature = "sim")]
            asked: 0,
            alarm: None,
            refusals: LogLimiter::default(),
            failures: LogLimiter::default(),
        }
    }
}

/// A service, its listener and its connections.
#[derive(Debug)]
struct Host<L, S> {
    kind: Kind,
    /// Whoever connects may see the addresses of peers: it does so from this machine.
    is_local: bool,
    listener: Option<L>,
    /// The backlog may hold connections.
    ready: bool,
    /// Nothing is accepted before.
    retry_at: Option<Instant>,
    conns: [Option<ServiceConn<S>>; CONNECTIONS_MAX],
    /// The generation of the connection that was accepted last.
    generation: u16,
}

/// A connection of a service.
#[derive(Debug)]
struct ServiceConn<S> {
    id: ServiceId,
    stream: S,
    session: Box<dyn Service>,
    /// What was read and not taken.
    input: BytesMut,
    /// What was written and not sent.
    output: BytesMut,
    /// It is in the list of those that are due.
    due: bool,
    /// The socket may have something to read.
    readable: bool,
    /// The socket may take bytes.
    writable: bool,
    /// The peer's FIN has been read.
    eof: bool,
    /// Nothing more is asked: what is left is sent, and then our FIN.
    ending: bool,
    /// Its service goes on in the next turn.
    #[cfg(feature = "sim")]
    works: bool,
    clocks: Clocks,
}

/// What became of a connection.
enum Progress {
    /// It waits, for its socket or its time.
    Waits,
    /// It has more to do, in the next turn.
    HasWork,
    /// It has ended; with a reset or without.
    Ended { reset: bool },
}

impl<L, S> Services<L, S> {
    /// Whether the next turn has something to do here.
    #[inline]
    pub(super) const fn is_due(&self) -> bool {
        self.pending
    }

    /// Determines that.
    fn update_pending(&mut self) {
        self.pending =
            !self.due.is_empty() || self.check_due || self.hosts.iter().any(Host::may_accept);
    }

    /// How often services were asked: what is made of one reply in many turns makes no call in most.
    #[cfg(feature = "sim")]
    pub(super) const fn asked(&self) -> u64 {
        self.asked
    }

    /// How many connections there are, of all services together.
    pub(super) fn len(&self) -> usize {
        self.hosts.iter().flat_map(|host| &host.conns).flatten().count()
    }

    /// Whether a service goes on in the next turn with what it does, which takes some turns in a row.
    #[cfg(feature = "sim")]
    pub(super) fn is_walking(&self) -> bool {
        self.hosts.iter().flat_map(|host| &host.conns).flatten().any(|conn| conn.works)
    }

    fn conn_mut(&mut self, id: ServiceId) -> Option<&mut Option<ServiceConn<S>>> {
        let place = self.hosts.get_mut(id.service())?.conns.get_mut(id.place()?)?;
        place.as_ref().is_some_and(|conn| conn.id == id).then_some(place)
    }

    fn mark_due(&mut self, id: ServiceId) {
        if let Some(Some(conn)) = self.conn_mut(id)
            && !conn.due
        {
            conn.due = true;
            self.due.push_back(id);
        }
    }

    /// When the next time is over, or the next pause.
    fn next_due(&self) -> Instant {
        let times = self.hosts.iter().flat_map(|host| {
            let conns = host.conns.iter().flatten();
            conns.map(|conn| conn.clocks.due(host.kind.patience())).chain(host.retry_at)
        });
        times.min().unwrap_or(Instant::FAR_FUTURE)
    }
}

impl<L, S> Host<L, S> {
    const fn may_accept(&self) -> bool {
        self.ready && self.retry_at.is_none() && self.listener.is_some()
    }

    /// A place for a newcomer: a free one, or that of the connection that makes room most readily.
    fn place(&self, now: Instant) -> Option<usize> {
        let patience = self.kind.patience();
        let rank = |conn: &ServiceConn<S>| {
            // A question may have come.
            conn.clocks.rank(conn.due, patience, now)
        };
        let free = self.conns.iter().position(Option::is_none);
        free.or_else(|| {
            let places = self.conns.iter().enumerate();
            let ranks = places.filter_map(|(place, conn)| Some((rank(conn.as_ref()?)?, place)));
            ranks.min().map(|(_, place)| place)
        })
    }
}

/// What the library serves itself.
impl<H: Handler, B: Backend> Reactor<H, B> {
    /// Serves the metrics of this reactor at `address`, as text for Prometheus and its like, and
    /// returns where: with the port that the system chose where port 0 was asked for.
    ///
    /// `GET` and `HEAD` are answered of `/metrics`: all of [`Stats`](crate::Stats), and what
    /// [`Handler::on_scrape`] writes. `/healthz` answers 200 as long as the loop turns. `/readyz`
    /// answers 200 while new connections are served, and 503 with the reason while they are not: a
    /// shutdown has begun or been asked for, the table is full and nothing in it can be evicted, the
    /// system is short of descriptors, or no listener is left. Queries are ignored.
    ///
    /// `/` is a page for people, which shows the same and more: the connections that hold most, pools,
    /// endpoints and limits, with plots of the last minutes. It loads nothing from elsewhere, and can be read
    /// without scripts. Addresses of peers, and of what pools and endpoints dial, are on it only where
    /// `address` is a loopback address or a Unix-domain path, and the request names this machine as
    /// `localhost` or by an IP address.
    ///
    /// The handler never sees these connections, no limit of the application applies to them, and
    /// neither [`Context::len`](crate::Context::len), nor [`Stats`](crate::Stats) counts them among the
    /// others. There are at most 16. A newcomer takes the place of the one that has been idle longest, or
    /// where none is, of the oldest, if that is a minute old; else it is refused. A request has 10 s to
    /// arrive, its reply 60 s to leave and 20 s for each step, and a connection may be idle for 150 s. A
    /// shutdown does not wait for them, and they are answered until it is over.
    ///
    /// It costs nothing while it is not asked. A scrape formats some 100 lines, 50 µs of the loop's
    /// time, and what `on_scrape` takes; a page that is open asks once a second, and takes as much and
    /// a step of a turn for each 4,096 places of the table. A reply takes at most 1.1 MiB until it has
    /// left, of each of the 16 connections.
    ///
    /// Whoever can connect can read the metrics: listen on a loopback address or in a network of
    /// its own.
    ///
    /// # Errors
    ///
    /// If it is no address, or cannot be bound, there are six services already, or the reactor is
    /// shutting down.
    ///
    /// ```
    /// # use bytes::BytesMut;
    /// # use wheelhouse::{Config, Conn, Handler, Reactor};
    /// # struct Echo;
    /// # impl Handler for Echo {
    /// #     type Session = ();
    /// #     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> { Some(()) }
    /// #     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
    /// #         conn.write(input);
    /// #         input.clear();
    /// #     }
    /// # }
    /// let mut reactor = Reactor::<Echo>::new(Config::default())?;
    /// reactor.listen("127.0.0.1:0")?;
    /// println!("metrics at http://{}/metrics", reactor.serve_metrics("127.0.0.1:0")?);
    /// # Ok::<(), wheelhouse::Error>(())
    /// ```
    pub fn serve_metrics(&mut self, address: impl ToAddress) -> Result<Address, Error> {
        let address = super::to_address(address)?;
        self.add_service(Kind::Metrics, &address, &ListenConfig::default())
    }

    /// Serves a console at a path: a Unix-domain socket whose file has the mode 0600, on which the user
    /// that runs this process asks what it does, and root.
    ///
    /// A line asks and a reply answers: `help` lists the questions. `connections` lists connections by
    /// state, client, age or what they hold, with the deadline that comes next; `connection`, `close` and
    /// `abort` are about one; `stats`, `pools`, `endpoints` and `clients` show what there is; `set` changes
    /// some limits while the reactor runs, and `shutdown` ends it. A reply is some lines and an empty one;
    /// with `json` before a question it is one line of JSON. `docs/operations.md` has more.
    ///
    /// A file that a dead process left behind is replaced, as for any listener. At most 16 consoles are
    /// served. A newcomer takes the place of the one that has been idle longest, or where none is, of the
    /// oldest, if that is five minutes old; else it is refused. A question of at most 4 KiB has 10 s to
    /// arrive, its reply 5 minutes to be read and 30 s for each step, and a console may be idle for 10
    /// minutes. No limit of the application applies to them, the handler never sees them, and a shutdown
    /// does not wait for them.
    ///
    /// It costs nothing while nothing is asked. A listing is made in steps of at most 4,096 places and 256
    /// rows, as its reader reads, and holds 80 KiB; one that sorts holds at most 1,000 ids beside.
    ///
    /// # Errors
    ///
    /// If the path cannot be bound, there are six services already, or the reactor is shutting down.
    pub fn serve_console(&mut self, path: impl Into<PathBuf>) -> Result<Address, Error> {
        let address = Address::Unix(path.into());
        let listen = ListenConfig { mode: Some(0o600), ..ListenConfig::default() };
        self.add_service(Kind::Console, &address, &listen)
    }

    fn add_service(
        &mut self,
        kind: Kind,
        address: &Address,
        listen: &ListenConfig,
    ) -> Result<Address, Error> {
        if self.shared.is_shutting_down() {
            return Err(Error::Io(std::io::Error::other("the reactor is shutting down")));
        }
        let Some(id) = ServiceId::of_listener(self.services.hosts.len()) else {
            return Err(Error::Config(ConfigError::new("the number of services", "at most 6")));
        };
        let options = self.socket_options(listen);
        let bound = self.backend.bind(address, listen, &options);
        let registered = bound.and_then(|mut socket| {
            let address = self.backend.listener_addr(&socket)?;
            self.backend.register_listener(&mut socket, Token::of_listener(id.token()))?;
            Ok((socket, address))
        });
        let (socket, address) =
            registered.map_err(|source| Error::Bind { address: address.to_string(), source })?;
        self.services.hosts.push(Host {
            kind,
            is_local: address.ip().is_none_or(|addr| addr.ip().to_canonical().is_loopback()),
            listener: Some(socket),
            ready: true,
            retry_at: None,
            conns: Default::default(),
            generation: 0,
        });
        self.services.pending = true;
        self.update_due();
        info!(service = kind.label(), %address, "a service listens");
        Ok(address)
    }
}

impl<H: Handler, B: Backend> Reactor<H, B> {
    /// An event came for the listener of a service, or for one of its connections.
    #[cold]
    #[inline(never)]
    pub(super) fn note_service_event(&mut self, id: ServiceId) {
        if id.place().is_none() {
            let Some(host) = self.services.hosts.get_mut(id.service()) else { return };
            host.ready = host.listener.is_some();
        } else if let Some(Some(conn)) = self.services.conn_mut(id) {
            (conn.readable, conn.writable) = (true, true);
            self.services.mark_due(id);
        }
        self.services.update_pending();
        self.update_due();
    }

    /// The alarm of the services rings.
    pub(super) fn check_services(&mut self) {
        self.services.alarm = None;
        self.services.check_due = true;
        self.services.pending = true;
        self.update_due();
    }

    /// Accepts for the services, and serves their connections that have something to do.
    #[inline]
    pub(super) fn serve_services(&mut self, handler: &mut H) {
        if self.services.is_due() {
            self.serve_some_services(handler);
        }
    }

    #[inline(never)]
    fn serve_some_services(&mut self, handler: &mut H) {
        self.begin_step(Step::Services);
        // One may make much of a listing, or of a scrape: the clock is read after each.
        let mut budget = Budget::of_slow_items_from(self.backend.now(), ITEMS_PER_STEP);
        if std::mem::take(&mut self.services.check_due) {
            self.check_service_times();
        }
        for service in 0..self.services.hosts.len() {
            self.accept_for_service(service);
        }
        for _ in 0..self.services.due.len() {
            if !budget.allows(|| self.backend.now()) {
                break;
            }
            let Some(id) = self.services.due.pop_front() else { break };
            self.serve_service(handler, id, &mut budget);
        }
        self.end_step(&budget);
        self.services.update_pending();
        self.shared.counters.service_connections.set(self.services.len() as u64);
        self.arm_services();
    }

    /// Lets the alarm ring when the next time is over.
    fn arm_services(&mut self) {
        let due = self.services.next_due();
        let before = self.services.alarm;
        self.services.alarm = self.shared.set_alarm_by(before, due, Purpose::ServeServices);
    }

    /// Marks the connections whose time is over, and ends the pauses that are.
    fn check_service_times(&mut self) {
        let now = self.shared.now;
        let services = &mut self.services;
        let mut over = Vec::new();
        for host in &mut services.hosts {
            host.retry_at = host.retry_at.filter(|at| *at > now);
            let patience = host.kind.patience();
            let conns = host.conns.iter().flatten();
            over.extend(conns.filter(|it| it.clocks.due(patience) <= now).map(|conn| conn.id));
        }
        for id in over {
            services.mark_due(id);
        }
    }

    fn accept_for_service(&mut self, service: usize) {
        let mut failures = 0;
        for _ in 0..ACCEPTS_PER_TURN {
            let host = &mut self.services.hosts[service];
            if !host.may_accept() {
                return;
            }
            let Some(listener) = &mut host.listener else { return };
            match self.backend.accept(listener) {
                Ok((stream, peer)) => self.admit_to_service(service, stream, &peer),
                Err(error) => match AcceptFault::of(error.raw_os_error(), || error.kind()) {
                    // It is the newcomer that failed, unless all do.
                    AcceptFault::Transient if failures + 1 < FAILURES_PER_TURN => {
                        failures += 1;
                        self.shared.counters.accept_errors.add(1);
                    }
                    AcceptFault::Drained => host.ready = false,
                    AcceptFault::Interrupted => {}
                    AcceptFault::Dead => {
                        error!(service = host.kind.label(), %error, "the listener of a service died");
                        if let Some(listener) = host.listener.take() {
                            self.backend.close_listener(listener);
                        }
                    }
                    AcceptFault::Transient | AcceptFault::Exhausted => {
                        host.retry_at = Some(self.shared.now + ACCEPT_PAUSE);
                        self.shared.counters.accept_errors.add(1);
                        if let Some(times) = self.services.failures.times(self.shared.now) {
                            let service = self.services.hosts[service].kind.label();
                            warn!(service, %error, times, "a service cannot accept");
                        }
                    }
                },
            }
        }
    }

    fn admit_to_service(&mut self, service: usize, mut stream: B::Stream, peer: &Address) {
        let host = &mut self.services.hosts[service];
        let kind = host.kind;
        let Some(place) = host.place(self.shared.now) else {
            return self.refuse_service(kind, stream, peer);
        };
        let evicted = host.conns[place].take();
        host.generation = host.generation.wrapping_add(1);
        let id = ServiceId::of_conn(service, place, host.generation);
        if let Some(conn) = evicted {
            self.shared.counters.service_evicted.add(1);
            debug!(service = kind.label(), "a connection makes room for another");
            let reset = conn.clocks.phase() == Phase::Reply;
            self.close_service(conn, reset);
        }
        if let Err(error) = self.backend.register(&mut stream, Token::of_listener(id.token())) {
            debug!(service = kind.label(), %error, "a connection cannot be registered");
            return self.backend.close(stream, true);
        }
        debug!(service = kind.label(), %peer, "a service accepts");
        self.services.hosts[service].conns[place] = Some(ServiceConn {
            id,
            stream,
            session: kind.open(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            due: false,
            readable: true,
            writable: true,
            eof: false,
            ending: false,
            #[cfg(feature = "sim")]
            works: false,
            clocks: Clocks::new(self.shared.now),
        });
        self.services.mark_due(id);
    }

    #[cold]
    fn refuse_service(&mut self, kind: Kind, mut stream: B::Stream, peer: &Address) {
        self.shared.counters.service_refused.add(1);
        if let Some(times) = self.services.refusals.times(self.shared.now) {
            let service = kind.label();
            warn!(service, %peer, times, "a service has as many connections as it may, and refuses");
        }
        // What the socket does not take at once is not sent.
        let _ = self.backend.write(&mut stream, &kind.refusal());
        self.reject(stream, false);
    }

    fn serve_service(&mut self, handler: &mut H, id: ServiceId, budget: &mut Budget) {
        let Some(mut conn) = self.services.conn_mut(id).and_then(Option::take) else { return };
        conn.due = false;
        let kind = self.services.hosts[id.service()].kind;
        let mut progress = self.progress_service(handler, kind, &mut conn, budget);
        let now = self.shared.now;
        // What was read just now came before the end of its time.
        if !matches!(progress, Progress::Ended { .. }) && conn.clocks.due(kind.patience()) <= now {
            let phase = conn.clocks.phase();
            if matches!(phase, Phase::Question | Phase::Reply) {
                self.shared.counters.service_expired.add(1);
            }
            debug!(service = kind.label(), ?phase, "a connection took too long");
            progress = Progress::Ended { reset: phase == Phase::Reply };
        }
        match progress {
            Progress::Ended { reset } => return self.close_service(conn, reset),
            Progress::HasWork => {
                conn.due = true;
                self.services.due.push_back(id);
            }
            Progress::Waits => {}
        }
        let place = id.place().unwrap_or_default();
        self.services.hosts[id.service()].conns[place] = Some(conn);
    }

    /// Closes a connection, which is no longer in its place.
    fn close_service(&mut self, mut conn: ServiceConn<B::Stream>, reset: bool) {
        if !reset && !conn.eof && conn.clocks.phase() != Phase::Linger {
            send_fin_and_drain(&mut self.backend, &mut conn.stream, &mut self.read_buffer);
        }
        self.backend.close(conn.stream, reset);
    }

    /// Sends, reads and asks the service, as far as each of that goes.
    fn progress_service(
        &mut self,
        handler: &mut H,
        kind: Kind,
        conn: &mut ServiceConn<B::Stream>,
        budget: &mut Budget,
    ) -> Progress {
        if conn.clocks.phase() == Phase::Linger {
            return self.linger_service(conn);
        }
        let mut has_work = false;
        let mut scrapes = false;
        for asked in 0.. {
            if !self.send_service(conn) {
                return Progress::Ended { reset: true };
            }
            if conn.ending || conn.output.len() >= OUTPUT_HIGH {
                break;
            }
            let out_of_time = asked > 0 && !budget.allows(|| self.backend.now());
            if scrapes || out_of_time || asked == QUESTIONS_PER_TURN {
                has_work = true;
                break;
            }
            let is_left = !conn.output.is_empty();
            if !self.read_service(kind, conn) {
                return Progress::Ended { reset: true };
            }
            let next = self.ask_service(handler, conn, &mut scrapes);
            #[cfg(feature = "sim")]
            {
                conn.works = next == Some(Next::More);
            }
            match next {
                None => return Progress::Ended { reset: true },
                Some(Next::Input | Next::Scrape) => {
                    conn.ending = conn.eof;
                    if !conn.ending {
                        break;
                    }
                }
                Some(Next::Answered) => conn.clocks.begin_reply(is_left, self.shared.now),
                Some(Next::More) => {
                    if !self.send_service(conn) {
                        return Progress::Ended { reset: true };
                    }
                    has_work = conn.output.len() < OUTPUT_HIGH;
                    break;
                }
                Some(Next::Close) => {
                    conn.clocks.begin_reply(is_left, self.shared.now);
                    conn.ending = true;
                }
            }
        }
        if conn.ending && conn.output.is_empty() {
            return self.finish_service(conn);
        }
        let phase = if has_work || !conn.output.is_empty() {
            Phase::Reply
        } else if conn.input.is_empty() {
            Phase::Idle
        } else {
            Phase::Question
        };
        conn.clocks.enter(phase, self.shared.now);
        if conn.input.is_empty() {
            conn.input = BytesMut::new();
        }
        if conn.output.is_empty() {
            conn.output = BytesMut::new();
        }
        if has_work { Progress::HasWork } else { Progress::Waits }
    }

    /// Everything has been sent, and nothing follows.
    fn finish_service(&mut self, conn: &mut ServiceConn<B::Stream>) -> Progress {
        if conn.eof || self.backend.shutdown_write(&mut conn.stream).is_err() {
            return Progress::Ended { reset: false };
        }
        conn.clocks.enter(Phase::Linger, self.shared.now);
        self.linger_service(conn)
    }

    /// After our FIN the peer's last bytes are read and dropped: they could turn our close into a
    /// reset, which would destroy what the peer has not read.
    fn linger_service(&mut self, conn: &mut ServiceConn<B::Stream>) -> Progress {
        for _ in 0..QUESTIONS_PER_TURN {
            match self.read_some(conn, READ_BUDGET) {
                Some(0) if conn.eof => return Progress::Ended { reset: false },
                Some(0) => return Progress::Waits,
                Some(_) => {}
                None => return Progress::Ended { reset: true },
            }
        }
        Progress::HasWork
    }

    /// Sends what its socket takes. Returns whether the peer is still there.
    fn send_service(&mut self, conn: &mut ServiceConn<B::Stream>) -> bool {
        while conn.writable && !conn.output.is_empty() {
            match self.backend.write(&mut conn.stream, &conn.output) {
                Ok(taken) => {
                    conn.writable = taken > 0;
                    conn.output.advance(taken);
                    if taken > 0 {
                        conn.clocks.note_moved(self.shared.now);
                    }
                }
                Err(error) => match Failure::of(&error) {
                    Failure::Interrupted => {}
                    Failure::WouldBlock => conn.writable = false,
                    Failure::Gone | Failure::Other => return false,
                },
            }
        }
        true
    }

    /// Reads as much input as may be kept. Returns whether the connection goes on.
    fn read_service(&mut self, kind: Kind, conn: &mut ServiceConn<B::Stream>) -> bool {
        loop {
            let room = kind.input_max().saturating_sub(conn.input.len());
            if room == 0 {
                return true;
            }
            match self.read_some(conn, room) {
                Some(0) => return true,
                Some(_) => conn.input.extend_from_slice(&self.read_buffer),
                None => return false,
            }
        }
    }

    /// Reads into the loop's buffer. Returns how much came, if the connection goes on.
    fn read_some(&mut self, conn: &mut ServiceConn<B::Stream>, most: usize) -> Option<usize> {
        rewind(&mut self.read_buffer);
        while conn.readable && !conn.eof {
            match self.backend.read(&mut conn.stream, &mut self.read_buffer, most) {
                Ok(0) => conn.eof = true,
                Ok(count) => return Some(count),
                Err(error) => match Failure::of(&error) {
                    Failure::Interrupted => {}
                    Failure::WouldBlock => conn.readable = false,
                    Failure::Gone | Failure::Other => {
                        let reason = reason_of(error);
                        debug!(%reason, "the connection of a service failed");
                        return None;
                    }
                },
            }
        }
        Some(0)
    }

    /// Lets a service take a question, and notes whether the application's metrics were wanted for it.
    /// `None` if the service panicked.
    fn ask_service(
        &mut self,
        handler: &mut H,
        conn: &mut ServiceConn<B::Stream>,
        scrapes: &mut bool,
    ) -> Option<Next> {
        let next = self.call_service(conn, |session, desk, input, output| {
            session.serve(desk, input, output)
        })?;
        if next != Next::Scrape {
            return Some(next);
        }
        *scrapes = true;
        let mut out = MetricsWriter::new();
        let returned = self.call_scrape(handler, &mut out);
        self.shared.counters.metrics_dropped.add(out.dropped());
        let application = returned.then_some(&out);
        self.call_service(conn, |session, desk, _, output| {
            session.scraped(desk, application, output)
        })
    }

    fn call_service(
        &mut self,
        conn: &mut ServiceConn<B::Stream>,
        call: impl FnOnce(&mut dyn Service, &mut Desk<'_>, &mut BytesMut, &mut BytesMut) -> Next,
    ) -> Option<Next> {
        #[cfg(feature = "sim")]
        {
            self.services.asked += 1;
        }
        let shows_peers = self.services.hosts[conn.id.service()].is_local;
        let ServiceConn { session, input, output, eof, .. } = conn;
        self.lend_desk(*eof, shows_peers, |desk| call(session.as_mut(), desk, input, output))
    }

    /// Lends what services may see, and does what they order. `None` if `call` panicked.
    fn lend_desk<T>(
        &mut self,
        eof: bool,
        shows_peers: bool,
        call: impl FnOnce(&mut Desk<'_>) -> T,
    ) -> Option<T> {
        let unready = self.unready();
        let Self { slots, listeners, shared, config, accepting, started_at, .. } = self;
        let uptime = shared.now.duration_since(*started_at);
        let unread = |id: ConnId| slots.get(id.index()).map_or(0, |slot| slot.input.len());
        let listens = |index: usize| listeners.get(index).is_some_and(|it| it.socket.is_some());
        let mut orders = Vec::new();
        let mut desk = Desk {
            shared,
            config,
            gate: &accepting.gate,
            unread: &unread,
            listens: &listens,
            unready,
            uptime,
            eof,
            shows_peers,
            orders: &mut orders,
        };
        let outcome = catch(|| call(&mut desk));
        for Order::Change(config) in orders {
            self.change_settings(*config);
        }
        if outcome.is_err() {
            error!("a service panicked; its connection is aborted");
            self.shared.counters.panics.add(1);
        }
        outcome.ok()
    }

    /// The settings change while the reactor runs, those that may.
    fn change_settings(&mut self, config: Config) {
        self.shared.change(&self.config, &config);
        self.accepting.gate.change(&config.limits);
        self.drain.change(&config);
        self.config = config;
        // What all may hold may be less now.
        self.bound_buffers();
        self.update_due();
    }

    /// Why new connections are not served, if they are not.
    fn unready(&self) -> Option<&'static str> {
        let mut listeners = self.listeners.iter().filter(|listener| !listener.backlog.exempt);
        if self.drain.has_failed() {
            Some("the reactor failed")
        } else if self.shared.is_shutting_down() || self.mailbox.shutdowns() > 0 {
            Some("it is shutting down")
        } else if self.accepting.gate.is_paused() {
            Some("descriptors or memory are short")
        } else if self.accepting.gate.is_full() {
            Some("the table is full")
        } else if listeners.clone().next().is_some() && listeners.all(|it| it.socket.is_none()) {
            Some("no listener is left")
        } else {
            None
        }
    }

    /// What a console would answer.
    #[cfg(feature = "sim")]
    pub(crate) fn ask_console(&mut self, question: &str) -> String {
        self.refresh_now();
        let mut session = Kind::Console.open();
        let mut input = BytesMut::from(question);
        let mut reply = BytesMut::new();
        loop {
            let mut output = BytesMut::new();
            let next =
                self.lend_desk(true, true, |desk| session.serve(desk, &mut input, &mut output));
            reply.extend_from_slice(&output);
            if !matches!(next, Some(Next::More | Next::Answered)) {
                return String::from_utf8_lossy(&reply).into_owned();
            }
        }
    }

    /// Closes all services, at the end of the reactor.
    pub(super) fn close_services(&mut self) {
        self.services.due.clear();
        for service in 0..self.services.hosts.len() {
            for place in 0..CONNECTIONS_MAX {
                if let Some(mut conn) = self.services.hosts[service].conns[place].take() {
                    // What was answered just now may leave yet.
                    self.send_service(&mut conn);
                    self.close_service(conn, false);
                }
            }
            if let Some(listener) = self.services.hosts[service].listener.take() {
                self.backend.close_listener(listener);
            }
        }
        self.shared.counters.service_connections.set(0);
    }
}
