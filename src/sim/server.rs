//! A reactor in the world: what a test asks of it, and what the world checks after its turns.

use std::cell::{Ref, RefCell};
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::host::{self, Host, Woken};
use super::net::{FDS_FIXED, Holder, Net};
use super::watch::Watched;
use crate::address::Address;
use crate::config::Timeouts;
use crate::context::Context;
use crate::core::stats::Stats;
use crate::error::Closed;
use crate::handler::Handler;
use crate::reactor::{Handle, Holdings, Reactor};
use crate::time::Instant;

/// Turns in a row that change nothing before that counts as spinning.
const IDLE_TURNS_MAX: u32 = 3;

/// A reactor in a [`Sim`], with its handler.
pub struct Server<H: Handler + 'static> {
    node: Rc<RefCell<Node<H>>>,
    net: Rc<RefCell<Net>>,
    machine: usize,
}

impl<H: Handler> fmt::Debug for Server<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl<H: Handler> Server<H> {
    pub(super) fn new(node: Rc<RefCell<Node<H>>>, net: &Rc<RefCell<Net>>, machine: usize) -> Self {
        Self { node, net: Rc::clone(net), machine }
    }

    /// Where its first listener listens.
    ///
    /// # Panics
    ///
    /// If it has none.
    pub fn address(&self) -> Address {
        let net = self.net.borrow();
        let (_, listener) = net
            .listeners
            .iter()
            .find(|(_, listener)| listener.holder == Holder::Host(self.machine))
            .expect("it listens");
        listener.address.clone()
    }

    /// The address of its machine.
    pub fn ip(&self) -> IpAddr {
        self.net.borrow().machines[self.machine].ip
    }

    /// Its handler.
    pub fn handler(&self) -> Ref<'_, H> {
        Ref::map(self.node.borrow(), |node| &*node.handler)
    }

    /// Does something with its handler and the loop, between two turns.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub fn with<T>(&self, act: impl FnOnce(&mut H, &mut Context<'_>) -> T) -> T {
        let node = &mut *self.node.borrow_mut();
        let reactor = node.reactor.as_mut().expect("the reactor has not ended");
        node.wakes_at = Instant::EPOCH;
        act(&mut node.handler, &mut reactor.context())
    }

    /// What other threads would reach it by.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub fn handle(&self) -> Handle<Watched<H>> {
        self.node.borrow().reactor.as_ref().expect("the reactor has not ended").handle()
    }

    /// Lets the next `count` wake-ups by other threads fail.
    pub fn fail_wakes(&self, count: u32) {
        self.node.borrow().woken.fail(count);
    }

    /// Its counters.
    pub fn stats(&self) -> Stats {
        self.node.borrow().stats()
    }

    /// How many connections it has.
    pub fn connections(&self) -> usize {
        self.node.borrow().connections()
    }

    /// The connections that ended since it was last asked, the latest 4,096 of them.
    pub fn take_closed(&self) -> Vec<Closed> {
        std::mem::take(&mut self.node.borrow_mut().handler.closed).into()
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
    /// Every state has a finite deadline.
    bounded: bool,
    wakes_at: Instant,
    progress: u64,
    idle_turns: u32,
    turned_at: Instant,
    stats: Option<Stats>,
    failure: Option<String>,
}

/// What the world asks of a reactor, whatever its handler.
pub(super) trait Turns {
    /// When it is to be turned; `None` if it need not be.
    fn wakes_at(&self, net: &Net) -> Option<Instant>;

    /// Turns it, and returns how many connections it has.
    fn turn(&mut self, net: &RefCell<Net>) -> usize;

    fn check(&mut self, net: &RefCell<Net>) -> Result<(), String>;

    fn check_clean(&self, net: &RefCell<Net>) -> Result<(), String>;

    fn connections(&self) -> usize;

    /// What is known of its first connection.
    fn describe(&self) -> String;
}

impl<H: Handler> Node<H> {
    pub(super) fn new(
        reactor: Reactor<Watched<H>, Host>,
        handler: Watched<H>,
        machine: usize,
        woken: Arc<Woken>,
    ) -> Self {
        let bounded = is_bounded(handler.timeouts());
        Self {
            reactor: Some(reactor),
            handler,
            machine,
            woken,
            bounded,
            wakes_at: Instant::EPOCH,
            progress: 0,
            idle_turns: 0,
            turned_at: Instant::EPOCH,
            stats: None,
            failure: None,
        }
    }

    fn stats(&self) -> Stats {
        match (&self.reactor, &self.stats) {
            (Some(reactor), _) => reactor.handle().stats(),
            (None, Some(stats)) => stats.clone(),
            (None, None) => unreachable!("a reactor that ended left its counters"),
        }
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

    fn turn(&mut self, net: &RefCell<Net>) -> usize {
        let Some(reactor) = &mut self.reactor else { return 0 };
        let outcome = reactor.turn(&mut self.handler, Some(Duration::ZERO));
        if outcome.is_err() || reactor.is_finished() {
            self.failure = outcome.err().map(|error| error.to_string());
            self.stats = Some(reactor.handle().stats());
            self.reactor = None;
            return 0;
        }
        let timeout = reactor.next_timeout();
        let connections = reactor.holdings_count();
        let mut net = net.borrow_mut();
        self.wakes_at = host::end_of_wait(net.now, timeout);
        let machine = &net.machines[self.machine];
        if machine.progress == self.progress && self.turned_at == net.now {
            self.idle_turns += 1;
        } else {
            self.idle_turns = 0;
        }
        self.progress = machine.progress;
        self.turned_at = net.now;
        if self.idle_turns > IDLE_TURNS_MAX && timeout == Some(Duration::ZERO) {
            net.fail_check("the reactor spins");
        }
        connections
    }

    fn check(&mut self, net: &RefCell<Net>) -> Result<(), String> {
        let Some(reactor) = &self.reactor else { return Ok(()) };
        reactor.audit()?;
        if self.bounded
            && let Some(id) = reactor.unbounded()
        {
            return Err(format!("no deadline bounds {id}"));
        }
        let holdings = reactor.holdings();
        let net = net.borrow();
        let streams = net.streams_of(self.machine);
        if streams != holdings.streams {
            return Err(format!("{streams} sockets and {} streams", holdings.streams));
        }
        let listeners = net
            .listeners
            .iter()
            .filter(|(_, listener)| listener.holder == Holder::Host(self.machine))
            .count();
        let fds = net.machines[self.machine].fds.len() - FDS_FIXED as usize;
        if fds != streams + listeners {
            return Err(format!("{fds} descriptors for {listeners} listeners, {streams} streams"));
        }
        let sessions = self.handler.sessions();
        if sessions != holdings.sessions {
            return Err(format!("{sessions} sessions entered, {} kept", holdings.sessions));
        }
        Ok(())
    }

    fn check_clean(&self, net: &RefCell<Net>) -> Result<(), String> {
        let Some(reactor) = &self.reactor else {
            let net = net.borrow();
            let fds = net.machines[self.machine].fds.len() - FDS_FIXED as usize;
            return if fds == 0 { Ok(()) } else { Err(format!("{fds} descriptors are left")) };
        };
        let holdings = reactor.holdings();
        if holdings != Holdings::default() {
            return Err(format!("left behind: {holdings:?}"));
        }
        if self.handler.sessions() > 0 {
            return Err(format!("{} sessions were not left", self.handler.sessions()));
        }
        Ok(())
    }

    fn connections(&self) -> usize {
        self.reactor.as_ref().map_or(0, Reactor::holdings_count)
    }

    fn describe(&self) -> String {
        self.reactor.as_ref().map_or_else(String::new, Reactor::describe_first)
    }
}

/// Whether its timeouts leave no state without a deadline, as the defaults do.
fn is_bounded(it: &Timeouts) -> bool {
    [
        it.connect,
        it.first_byte,
        it.request,
        it.read,
        it.response,
        it.write,
        it.idle,
        it.half_closed,
        it.flush,
        it.linger,
        it.tunnel,
    ]
    .iter()
    .all(Option::is_some)
}
