//! A reactor in the world: what a test asks of it, and what the world checks after its turns.

use std::cell::{Ref, RefCell};
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::fault::Call;
use super::host::{self, Host, Woken};
use super::net::{FDS_FIXED, Holder, Net};
use super::watch::Watched;
use crate::address::Address;
use crate::backend::Token;
use crate::close::{CloseReason, Closed};
use crate::config::Timeouts;
use crate::context::Context;
use crate::core::deadlines::{BOUNDING, Deadline, Durations};
use crate::core::lifecycle::State;
use crate::core::stats::Stats;
use crate::handler::Handler;
use crate::reactor::{Handle, Holdings, Memory, Reactor};
use crate::time::Instant;

/// Turns in a row that change nothing before that counts as spinning.
const IDLE_TURNS_MAX: u32 = 3;

/// Up to so many connections, all of them are checked after every turn.
const CHECKED_EACH_TURN: usize = 64;

/// Where there are more, so many are checked in a turn on average.
const CHECKED_ON_AVERAGE: usize = 16;

/// A reactor in a [`Sim`](super::Sim), with its handler. It lives on in its world when this is
/// dropped.
pub struct Server<H: Handler + 'static> {
    node: Rc<RefCell<Node<H>>>,
    net: Rc<RefCell<Net>>,
    machine: usize,
    address: Option<Address>,
}

impl<H: Handler> fmt::Debug for Server<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("ip", &self.ip()).finish_non_exhaustive()
    }
}

impl<H: Handler> Server<H> {
    pub(super) fn new(node: Rc<RefCell<Node<H>>>, net: &Rc<RefCell<Net>>, machine: usize) -> Self {
        let holder = Holder::Host(machine);
        let address = net
            .borrow()
            .listeners
            .iter()
            .find(|(_, listener)| listener.holder == holder)
            .map(|(_, listener)| listener.address.clone());
        Self { node, net: Rc::clone(net), machine, address }
    }

    /// Where its first listener listens, or listened before the reactor closed it.
    ///
    /// # Panics
    ///
    /// If it had none when it was made.
    #[track_caller]
    pub fn address(&self) -> Address {
        match &self.address {
            Some(address) => address.clone(),
            None => panic!("the reactor at {} was set up without a listener", self.ip()),
        }
    }

    /// The address of its machine.
    pub fn ip(&self) -> IpAddr {
        self.net.borrow().machines[self.machine].ip
    }

    /// Borrows its handler, to read what it holds.
    ///
    /// It must not live while the reactor may run: let it go out of scope before [`with`](Server::with),
    /// [`ask`](Server::ask), [`Sim::advance`](super::Sim::advance) and all else that lets time pass or
    /// takes turns, which borrow the handler to change it.
    ///
    /// # Panics
    ///
    /// Within [`with`](Server::with), and in a callback. Those other calls panic while what it returned
    /// lives.
    ///
    /// ```
    /// # use bytes::BytesMut;
    /// # use wheelhouse::{Config, Conn, Handler, sim::Sim};
    /// # #[derive(Default)]
    /// # struct Counts { opened: u32 }
    /// # impl Handler for Counts {
    /// #     type Session = ();
    /// #     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
    /// #         self.opened += 1;
    /// #         Some(())
    /// #     }
    /// #     fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) { input.clear(); }
    /// # }
    /// let mut sim = Sim::new(1);
    /// let server = sim.serve("10.0.0.1:7", Config::default(), Counts::default());
    /// let peer = sim.connect(&server);
    /// sim.settle();
    /// assert_eq!(server.handler().opened, 1); // it ends with the statement
    /// sim.settle();
    /// # drop(peer);
    /// ```
    pub fn handler(&self) -> Ref<'_, H> {
        Ref::map(self.node.borrow(), |node| &*node.handler)
    }

    /// Does something with its handler and the loop, between two turns.
    ///
    /// # Panics
    ///
    /// If its reactor has ended; the panic says why.
    #[track_caller]
    pub fn with<T>(&self, act: impl FnOnce(&mut H, &mut Context<'_>) -> T) -> T {
        let node = &mut *self.node.borrow_mut();
        let Some(reactor) = &mut node.reactor else {
            let why = node.failure.as_deref().unwrap_or("its shutdown is over");
            panic!("the reactor at {} ended at {:?}: {why}", self.ip(), node.turned_at);
        };
        node.wakes_at = Instant::EPOCH;
        act(&mut node.handler, &mut reactor.context())
    }

    /// What other threads would reach it by. Once the reactor has ended posting is refused, as in
    /// production.
    pub fn handle(&self) -> Handle<Watched<H>> {
        self.node.borrow().handle.clone()
    }

    /// Lets the next `count` wake-ups by other threads fail.
    pub fn fail_wakes(&self, count: u32) {
        self.node.borrow().woken.fail(count);
    }

    /// As [`Sim::fail`](super::Sim::fail), where only the calls of this server's reactor count.
    pub fn fail(&self, call: Call, after: u64, errno: i32) {
        self.net.borrow_mut().fail(Some(self.machine), call, after, errno);
    }

    /// Its counters.
    pub fn stats(&self) -> Stats {
        self.node.borrow().handle.stats()
    }

    /// How many connections it has, those that are closing included.
    pub fn connections(&self) -> usize {
        self.node.borrow().connections()
    }

    /// The connections that ended since it was last asked, oldest first, the latest 4,096 of them.
    ///
    /// A connection has ended once its reactor is done with it. That is later than what its peer
    /// sees: after our FIN the reactor reads on for a while
    /// ([`Timeouts::linger`](crate::Timeouts)) unless the peer has sent its own, so a test that
    /// wants the reason lets the peer close, or some time pass.
    pub fn take_closed(&self) -> Vec<Closed> {
        std::mem::take(&mut self.node.borrow_mut().handler.closed).into()
    }

    /// Takes the connection that ended first of those not yet [taken](Server::take_closed), and
    /// checks that it ended for this reason.
    ///
    /// All connections count, those of pools and of checks too: a server with an endpoint that is
    /// checked has a connection that ended with [`CheckPassed`](CloseReason::CheckPassed) after each
    /// check. There, [`expect_closed_where`](Server::expect_closed_where) takes one of those that the
    /// test means.
    ///
    /// # Panics
    ///
    /// If it ended for another one, or none has ended; then the panic lists those that have not.
    #[track_caller]
    pub fn expect_closed(&self, reason: CloseReason) -> Closed {
        self.expect_closed_where(reason, |_| true)
    }

    /// Takes the connection that ended first of those that `is_meant` and that are not yet
    /// [taken](Server::take_closed), and checks that it ended for this reason. Others stay, to be taken
    /// later.
    ///
    /// [`Closed::origin`] tells accepted connections from those of pools and checks. The server is borrowed
    /// while `is_meant` runs, so that must not call it.
    ///
    /// # Panics
    ///
    /// If it ended for another one, or none of those has ended; then the panic lists the connections
    /// that have not.
    ///
    /// ```
    /// use wheelhouse::sim::Sim;
    /// use wheelhouse::{CloseReason, Config, Origin};
    /// # use bytes::BytesMut;
    /// # use wheelhouse::{Conn, Context, Handler, health::EndpointConfig};
    /// # struct Checked;
    /// # impl Handler for Checked {
    /// #     type Session = ();
    /// #     fn on_start(&mut self, cx: &mut Context<'_>) {
    /// #         cx.add_endpoint("10.0.0.2:9", &EndpointConfig::default()).expect("sound settings");
    /// #     }
    /// #     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> { Some(()) }
    /// #     fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) { input.clear(); }
    /// # }
    ///
    /// let mut sim = Sim::new(1);
    /// let listener = sim.listen("10.0.0.2:9", 16);
    /// let server = sim.serve("10.0.0.1:7", Config::default(), Checked);
    /// let client = sim.connect(&server);
    /// sim.advance(std::time::Duration::from_secs(5)); // some checks pass
    /// client.close();
    /// sim.settle();
    /// let accepted = |origin| matches!(origin, Origin::Accepted(_));
    /// server.expect_closed_where(CloseReason::PeerEof, |closed| accepted(closed.origin));
    /// # drop(listener);
    /// ```
    #[track_caller]
    pub fn expect_closed_where(
        &self,
        reason: CloseReason,
        is_meant: impl FnMut(&Closed) -> bool,
    ) -> Closed {
        let node = &mut *self.node.borrow_mut();
        let at = node.handler.closed.iter().position(is_meant);
        match at.and_then(|at| node.handler.closed.remove(at)) {
            Some(closed) if closed.reason == reason => closed,
            Some(Closed { id, reason: other, .. }) => {
                panic!("connection {id} ended with {other:?} ({other}) instead of {reason:?}")
            }
            None => {
                let list = node.describe(&self.net);
                panic!("no connection has ended, and {reason:?} was expected; there is {list}")
            }
        }
    }

    /// Checks that no connection so far ended in a way that only a mistake of the handler explains:
    ///
    /// - [`HandlerPanic`](CloseReason::HandlerPanic), panics that were [injected](super::Faults::panic)
    ///   left out;
    /// - [`InputLimit`](CloseReason::InputLimit): it let input pile up that it did not use;
    /// - [`OutputLimit`](CloseReason::OutputLimit): it wrote on, whatever was queued;
    /// - [`Timeout::Response`](crate::Timeout::Response): it owed a reply, or kept reading paused,
    ///   and forgot. The timeout is
    ///   that of the [`Config`](crate::Config). Where the process or its clock was disturbed
    ///   meanwhile by [`late`](super::Faults::late), [`stall`](super::Faults::stall) or
    ///   [`clock_jump`](super::Faults::clock_jump) the handler is not at fault.
    ///
    /// [`HandlerAbort`](CloseReason::HandlerAbort) and
    /// [`HandlerClose`](CloseReason::HandlerClose) are left out because the
    /// handler asked for them, every other reason because it is the peer's or the system's.
    ///
    /// # Panics
    ///
    /// If one did.
    #[track_caller]
    pub fn assert_blameless(&self) {
        if let Some((Closed { id, reason, peer, .. }, count)) = &self.node.borrow().handler.blamed {
            let others = match count {
                1 => String::new(),
                count => format!(", and so are {} others", count - 1),
            };
            panic!("the handler is to blame for the end of {id} with {peer}: {reason}{others}");
        }
    }

    /// Asks what the [console](crate::Reactor::serve_console) of its reactor would answer, which need not
    /// have one: `connections sort=queued`, `connection 3.1`, `json stats`. What a question changes is
    /// changed, as by an operator.
    ///
    /// A check that fails because connections are still there, such as
    /// [`Sim::assert_clean`](crate::sim::Sim::assert_clean), prints what `connections` answers by itself.
    ///
    /// ```
    /// # use bytes::BytesMut;
    /// # use wheelhouse::{Config, Conn, Handler, sim::Sim};
    /// # struct Echo;
    /// # impl Handler for Echo {
    /// #     type Session = ();
    /// #     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> { Some(()) }
    /// #     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
    /// #         conn.write_buf(input);
    /// #     }
    /// # }
    /// let mut sim = Sim::new(1);
    /// let server = sim.serve("10.0.0.1:7", Config::default(), Echo);
    /// let peer = sim.connect(&server);
    /// peer.send(b"hello");
    /// sim.settle();
    /// assert!(server.ask("connections state=idle").contains("shown 1"));
    /// ```
    ///
    /// # Panics
    ///
    /// If its reactor has ended.
    #[track_caller]
    pub fn ask(&self, question: &str) -> String {
        let node = &mut *self.node.borrow_mut();
        let Some(reactor) = &mut node.reactor else { panic!("the reactor at {} ended", self.ip()) };
        node.wakes_at = Instant::EPOCH;
        reactor.ask_console(question)
    }

    /// How long its longest turn was since this was last asked: the time that passed in it, by
    /// [calls](super::Sim::charge_calls) and by callbacks that [stall](super::Sim::stall).
    pub fn take_longest_turn(&self) -> Duration {
        std::mem::take(&mut self.node.borrow_mut().longest_turn)
    }

    /// Lets it shut down as [`Handle::shutdown`] does.
    pub fn shutdown(&self) {
        self.handle().shutdown();
    }

    /// Whether a shutdown has ended, or the reactor failed.
    pub fn is_finished(&self) -> bool {
        self.node.borrow().reactor.is_none()
    }

    /// Why the reactor failed, if it did.
    pub fn failure(&self) -> Option<String> {
        self.node.borrow().failure.clone()
    }

    /// Limits the descriptors of its process, those it has included.
    pub fn set_descriptors(&self, most: usize) {
        self.net.borrow_mut().machines[self.machine].fds_max = most;
    }

    /// Lets another process hold a duplicate of every descriptor that its reactor closes from now
    /// on, as after a fork(2) without exec: a close sends no FIN then. A FIN, a shutdown or a reset
    /// sent before it is seen by the peer as always.
    pub fn duplicate_descriptors(&self) {
        self.net.borrow_mut().machines[self.machine].duplicated = true;
    }

    /// How many descriptors its process has open, the five that each begins with left out.
    pub fn descriptors(&self) -> usize {
        self.net.borrow().machines[self.machine].fds.len() - FDS_FIXED as usize
    }
}

/// A reactor that the world turns.
pub(super) struct Node<H: Handler> {
    /// `None` once it has ended.
    reactor: Option<Reactor<Watched<H>, Host>>,
    handler: Watched<H>,
    machine: usize,
    woken: Arc<Woken>,
    wakes_at: Instant,
    progress: u64,
    idle_turns: u32,
    turned_at: Instant,
    /// Turns since all connections were checked.
    unchecked_turns: usize,
    memory: Memory,
    began: Instant,
    /// The most time that passed in a turn.
    longest_turn: Duration,
    /// How many deadlines of closing connections passed, as the reactor counts: flush and linger.
    impatient: (u64, u64),
    /// What outlives the reactor.
    handle: Handle<Watched<H>>,
    failure: Option<String>,
}

/// What the world asks of a reactor, whatever its handler.
pub(super) trait Turns {
    /// When it is to be turned; `None` if it need not be.
    fn wakes_at(&self, net: &Net) -> Option<Instant>;

    fn turn(&mut self, net: &RefCell<Net>);

    /// Checks the state after a turn.
    fn check(&mut self, net: &RefCell<Net>) -> Result<(), String>;

    fn check_clean(&self, net: &RefCell<Net>) -> Result<(), String>;

    fn connections(&self) -> usize;

    /// Whether a connection is there, or waits to be accepted.
    fn is_busy(&self, net: &Net) -> bool;

    /// What is known of its connections.
    fn describe(&mut self, net: &RefCell<Net>) -> String;
}

impl<H: Handler> Node<H> {
    pub(super) fn new(
        reactor: Reactor<Watched<H>, Host>,
        handler: Watched<H>,
        machine: usize,
        woken: Arc<Woken>,
    ) -> Self {
        Self {
            handle: reactor.handle(),
            reactor: Some(reactor),
            handler,
            machine,
            woken,
            wakes_at: Instant::EPOCH,
            progress: 0,
            idle_turns: 0,
            turned_at: Instant::EPOCH,
            unchecked_turns: 0,
            memory: Memory::default(),
            began: Instant::EPOCH,
            longest_turn: Duration::ZERO,
            impatient: (0, 0),
            failure: None,
        }
    }
}

/// A world may end with sessions in it; that need not be logged.
impl<H: Handler> Drop for Node<H> {
    fn drop(&mut self) {
        if let Some(reactor) = &mut self.reactor {
            reactor.drop_sessions();
        }
    }
}

impl<H: Handler> Node<H> {
    /// No session outlives its reactor, whether that shut down or failed.
    fn check_end(&self) -> Result<(), String> {
        match self.handler.sessions() {
            0 => Ok(()),
            count => Err(format!("the reactor has ended, and {count} sessions have not")),
        }
    }

    /// No closing connection was ended before one of its deadlines had passed.
    fn check_patience(&mut self, stats: &Stats) -> Result<(), String> {
        let (flush, linger) = (stats.flush_expired, stats.linger_expired);
        let given_up = (flush - self.impatient.0, linger - self.impatient.1);
        self.impatient = (flush, linger);
        let passed = std::mem::take(&mut self.handler.impatient);
        if given_up.0 > passed.0 || given_up.1 > passed.1 {
            return Err(format!(
                "{given_up:?} closing connections were given up for flush and linger, and the \
                 deadlines of {passed:?} had passed"
            ));
        }
        Ok(())
    }
}

impl<H: Handler> Turns for Node<H> {
    fn wakes_at(&self, net: &Net) -> Option<Instant> {
        self.reactor.as_ref()?;
        let machine = &net.machines[self.machine];
        let at = if net.has_notices(self.machine) || self.woken.is_set() {
            Instant::EPOCH
        } else {
            self.wakes_at
        };
        let at = at.max(machine.asleep_until);
        (at < Instant::FAR_FUTURE).then_some(at)
    }

    fn turn(&mut self, net: &RefCell<Net>) {
        let Some(reactor) = &mut self.reactor else { return };
        self.began = reactor.clock();
        let before = net.borrow().now;
        let outcome = reactor.turn(&mut self.handler, Some(Duration::ZERO));
        self.longest_turn = self.longest_turn.max(net.borrow().now - before);
        if outcome.is_err() || reactor.is_finished() {
            if let Some(reactor) = self.reactor.take() {
                reactor.end(&mut self.handler);
            }
            let mut net = net.borrow_mut();
            self.turned_at = net.now;
            let Err(error) = outcome else { return };
            let machine = &net.machines[self.machine];
            let meant = net.panics_allowed || machine.wait_failed;
            if !meant {
                let what = format!("the reactor at {} failed: {error}", machine.ip);
                net.fail_check(what);
            }
            self.failure = Some(error.to_string());
            return;
        }
        let timeout = reactor.next_timeout();
        let done = reactor.done_without_calls();
        let mut net = net.borrow_mut();
        self.wakes_at = host::end_of_wait(net.now, timeout);
        let machine = &net.machines[self.machine];
        let progress = machine.progress + done;
        if progress == self.progress && self.turned_at == net.now {
            self.idle_turns += 1;
        } else {
            self.idle_turns = 0;
        }
        self.progress = progress;
        self.turned_at = net.now;
        let spins = timeout == Some(Duration::ZERO) && !reactor.is_walking();
        if self.idle_turns > IDLE_TURNS_MAX && spins {
            let what = format!("the reactor at {} spins", net.machines[self.machine].ip);
            net.fail_check(what);
        }
    }

    fn check(&mut self, net: &RefCell<Net>) -> Result<(), String> {
        if self.reactor.is_none() {
            return self.check_end();
        }
        self.check_patience(&self.handle.stats())?;
        let Some(reactor) = &self.reactor else { return Ok(()) };
        self.unchecked_turns += 1;
        let count = reactor.holdings_count();
        if count > CHECKED_EACH_TURN && self.unchecked_turns * CHECKED_ON_AVERAGE < count {
            return Ok(());
        }
        self.unchecked_turns = 0;
        reactor.audit(&mut self.memory, self.began, |id| self.handler.timers(id))?;
        if let Some(id) = reactor.unbounded() {
            return Err(format!("no deadline bounds {id}"));
        }
        if let Some(id) = self.handler.congested().find(|id| reactor.has_drained_unheard(*id)) {
            return Err(format!("the output of {id} has drained, and no callback followed"));
        }
        if let Some(id) = self.handler.drained().find(|id| reactor.has_input_forgotten(*id)) {
            return Err(format!(
                "{id} has input left behind its on_drained, and no on_data followed"
            ));
        }
        self.handler.note_awaiting(|id| reactor.awaits_input(id));
        let net = net.borrow();
        if let Some(id) = net.failed(self.machine).find(|id| reactor.is_at_peace(*id)) {
            return Err(format!("the socket of {id} has failed, and it goes on as if it had not"));
        }
        let lookups = &net.machines[self.machine].lookups;
        if let Some(lookup) = lookups.iter().find(|lookup| !reactor.waits_for(lookup.token)) {
            return Err(format!("a look-up goes on whose connection is gone: {:?}", lookup.token));
        }
        let holdings = reactor.holdings();
        let streams = net.streams_of(self.machine);
        if streams != holdings.streams {
            return Err(format!("{streams} sockets and {} streams", holdings.streams));
        }
        net.check_descriptors(self.machine)?;
        let sessions = self.handler.sessions();
        if sessions != holdings.sessions {
            return Err(format!("{sessions} sessions entered, {} kept", holdings.sessions));
        }
        Ok(())
    }

    fn check_clean(&self, net: &RefCell<Net>) -> Result<(), String> {
        let net = net.borrow();
        net.check_descriptors(self.machine)?;
        if self.handler.sessions() > 0 {
            return Err(format!("{} sessions were not left", self.handler.sessions()));
        }
        let Some(reactor) = &self.reactor else { return Ok(()) };
        let holdings = reactor.holdings();
        if holdings != Holdings::default() {
            return Err(format!("something is left: {holdings:?}"));
        }
        if reactor.has_tasks() && !self.woken.is_set() && !reactor.will_not_wait() {
            return Err("closures were posted, and nothing was woken for them".into());
        }
        match net.waiting(self.machine) {
            0 => Ok(()),
            count => Err(format!("{count} wait in the backlog, and are not accepted")),
        }
    }

    fn is_busy(&self, net: &Net) -> bool {
        let Some(reactor) = &self.reactor else { return false };
        let connections = self.connections() + reactor.service_connections();
        connections > 0 || net.waiting(self.machine) > 0
    }

    fn connections(&self) -> usize {
        self.reactor.as_ref().map_or(0, Reactor::holdings_count)
    }

    fn describe(&mut self, net: &RefCell<Net>) -> String {
        const SHOWN: usize = 8;
        let Some(reactor) = &mut self.reactor else { return "none, as the reactor ended".into() };
        let raw = reactor.describe_first();
        let listing = reactor.ask_console(&format!("connections limit={SHOWN}"));
        let mut cx = reactor.context();
        let ids = cx.ids();
        if ids.is_empty() {
            return "none".into();
        }
        let mut text = String::new();
        for id in ids.iter().take(SHOWN) {
            let far = net.borrow().far_peer(self.machine, Token::of_conn(*id));
            let Some(conn) = cx.conn(*id) else {
                let of_pool =
                    cx.shared.table.get(*id).is_some_and(|record| record.pooled().is_some());
                let what = if of_pool { "its pool's" } else { "closed and still has its place" };
                let _ = write!(text, "\n    {id}, which is {what}");
                continue;
            };
            let doing = match conn.state() {
                State::Connecting => "is being dialled",
                State::Connected => "has an active request, or has sent nothing yet",
                State::Idle => "has no active request",
                State::Closing => "flushes its last output, or waits for its peer to be done",
                State::Closed => "is gone",
            };
            let _ =
                write!(text, "\n    {id}, {:?} ({doing}), with {}", conn.state(), conn.peer_addr());
            match far {
                Some((_, true)) => text.push_str(", a peer that the test holds and has not closed"),
                Some((_, false)) => text.push_str(", a peer that is gone"),
                None => {}
            }
        }
        if ids.len() > SHOWN {
            let _ = write!(text, "\n    and {} more", ids.len() - SHOWN);
        }
        let off: Vec<_> = timeouts_off(self.handler.timeouts()).collect();
        if !off.is_empty() {
            let _ = write!(text, "\n    timeouts that are off: {}", off.join(", "));
        }
        let _ = write!(text, "\n    of the first: {raw}");
        for line in listing.lines().filter(|line| !line.is_empty()) {
            let _ = write!(text, "\n    {line}");
        }
        text
    }
}

/// Which of the timeouts that leave no state without a deadline are off; none by default.
fn timeouts_off(timeouts: &Timeouts) -> impl Iterator<Item = &'static str> {
    let durations = Durations::new(timeouts);
    let off = BOUNDING.into_iter().filter(move |deadline| durations.total(*deadline) == u64::MAX);
    off.map(Deadline::label)
}
