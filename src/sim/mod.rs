//! A world to test handlers in: virtual time, a network in memory, and faults from a seed.
//!
//! The reactor, its deadlines and the handler are those that run in production; only the sockets
//! and the clock are simulated. A test of a thirty-second timeout takes microseconds, needs no
//! thread, port or sleep, and ends the same way every time.
//!
//! The module is there with the feature `sim`, which belongs among a crate's `dev-dependencies`: a
//! server in production compiles none of it.
//!
//! ```
//! use std::time::Duration;
//! use bytes::BytesMut;
//! use wheelhouse::sim::{End, Sim};
//! use wheelhouse::{CloseReason, Config, Conn, Handler, Timeout};
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     type Session = ();
//!
//!     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
//!         Some(())
//!     }
//!
//!     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
//!         conn.write(input);
//!         input.clear();
//!     }
//! }
//!
//! let mut config = Config::default();
//! config.timeouts.idle = Some(Duration::from_secs(30));
//! let mut sim = Sim::new(7);
//! let server = sim.serve("10.0.0.1:7", config, Echo);
//!
//! let peer = sim.connect(server.address());
//! peer.send(b"hi");
//! sim.settle();
//! peer.expect(b"hi");
//!
//! sim.advance(Duration::from_millis(29_990));
//! assert!(peer.is_open());
//! sim.advance(Duration::from_millis(20));
//! assert_eq!(peer.closed(), Some(End::Fin));
//! assert_eq!(server.take_closed()[0].reason, CloseReason::Timeout(Timeout::Idle));
//! sim.assert_clean();
//! ```
//!
//! # The three ways
//!
//! - *Scripted*, as above: [`Sim`] is the world, [`Peer`]s do what the test says, and single
//!   failures are ordered with [`Sim::fail`].
//! - [`swarm`] runs a scenario under many seeds, each with faults of its own, checks what must hold
//!   after every turn, then stops the faults and demands that everything ends.
//! - [`torture`] runs a scenario once, and then once for every call that the reactor made and every
//!   error that the call can return.
//!
//! `docs/testing.md` goes through all three.
//!
//! # What is checked
//!
//! At every call and callback of a reactor made by [`Sim::serve`] or [`Sim::spawn`]: callbacks come
//! in the order that [`Handler`] promises; no timeout or timer is early; what a handler is given is
//! what its socket gave, and what it wrote is what its socket gets, byte for byte; an end is reported
//! after it was read; no callback panics by itself ([`Sim::allow_panics`] turns that off) and no reactor
//! fails. After every turn: no turns without progress follow each other.
//!
//! After every turn while there are at most 64 connections, and else all at once so often that a
//! turn checks 16 of them on average: a connection has a session and, once it is open, a
//! stream; descriptors are those of listeners and streams; what is left to do is queued; what is
//! marked as queued is; a connection whose socket failed is ended; one that was congested is
//! notified when that is over; the wheel comes up for every deadline, and a deadline that is due is
//! served a tick and a turn later; kept input and queued output stay within their limits.
//!
//! # When a run fails
//!
//! It prints what the world is like and what happened in it last ([`Sim::history`]), a [`swarm`] and
//! a [`torture`] also a command that replays it. With `SIM_TRACE=1` everything is printed as it
//! happens. The guide goes from there to the cause.
//!
//! # What is not modelled
//!
//! Loss and reordering below TCP are seen only as time: a partition holds segments back and sends
//! them again with growing pauses. Keepalive probes, urgent data and Nagle's algorithm are left
//! out.

pub mod errno;
mod fault;
mod history;
mod host;
mod ledger;
mod net;
mod peer;
mod place;
mod random;
mod run;
mod server;
mod watch;

use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

pub use self::fault::{Call, Faults};
use self::history::{Place, TraceEvent};
pub use self::host::{Host, HostListener, HostStream};
pub use self::net::{End, Link, Personality};
use self::net::{Holder, Name, Net};
use self::peer::Text;
pub use self::peer::{Peer, PeerListener};
pub use self::place::{ToAddress, ToIp};
pub use self::random::Random;
pub use self::run::{Summary, swarm, torture};
pub use self::server::Server;
use self::server::{Node, Turns};
pub use self::watch::Watched;
use crate::config::Config;
use crate::core::lifecycle::State;
use crate::handler::Handler;
use crate::reactor::Reactor;
use crate::time::Instant;

/// Steps without time passing before that counts as spinning too.
const STEPS_AT_ONCE_MAX: u64 = 1_000_000;

/// How long everything may take to end once nothing goes wrong any more.
const CONVERGENCE: Duration = Duration::from_secs(2 * 3_600);

/// A simulated world: its time, its network, and the reactors in it.
///
/// Nothing happens by itself: [`advance`](Sim::advance), [`settle`](Sim::settle) and
/// [`step`](Sim::step) let time pass and reactors turn. The same seed and the same calls give the
/// same run, to the last event; [`trace_hash`](Sim::trace_hash) says whether it was.
///
/// # Panics
///
/// Whatever lets time pass panics if a check fails.
pub struct Sim {
    net: Rc<RefCell<Net>>,
    nodes: Vec<Rc<RefCell<dyn Turns>>>,
    seed: u64,
    personality: Personality,
    faults: Faults,
    turns: u64,
    steps_at_once: u64,
    /// Generators given to the script.
    forks: u64,
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("seed", &self.seed)
            .field("now", &self.now())
            .field("turns", &self.turns)
            .finish_non_exhaustive()
    }
}

/// The making of a world.
impl Sim {
    /// A world whose random choices follow from `seed`. No fault happens in it until one is ordered.
    pub fn new(seed: u64) -> Self {
        Self {
            net: Rc::new(RefCell::new(Net::new(seed))),
            nodes: Vec::new(),
            seed,
            personality: Personality::Epoll,
            faults: Faults::NONE,
            turns: 0,
            steps_at_once: 0,
            forks: 0,
        }
    }

    /// The seed it was made from.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// Numbers for the script: they follow from the seed, and drawing them changes nothing of what
    /// the world draws for itself. Each call gives a generator of its own, with other numbers.
    ///
    /// ```
    /// use std::time::Duration;
    /// use wheelhouse::sim::Sim;
    ///
    /// let mut sim = Sim::new(7);
    /// let mut random = sim.random();
    /// sim.advance(Duration::from_millis(random.below(1_000)));
    /// let verb = *random.pick(&["GET", "SET"]);
    /// assert_eq!(Sim::new(7).random().below(1_000), sim.now().as_nanos() / 1_000_000);
    /// # let _ = verb;
    /// ```
    pub const fn random(&mut self) -> Random {
        self.forks += 1;
        Random::forked(self.seed, self.forks)
    }

    /// The kind of readiness that hosts made from here on report; [`Personality::Epoll`] at first.
    pub const fn set_personality(&mut self, personality: Personality) {
        self.personality = personality;
    }

    /// A machine at `ip`, for a reactor that the test makes and turns itself; see
    /// [`pass`](Sim::pass).
    ///
    /// # Panics
    ///
    /// If `ip` is no IP address.
    #[track_caller]
    pub fn host(&mut self, ip: impl ToIp) -> Host {
        let ip = ip.to_ip();
        let mut net = self.net.borrow_mut();
        let machine = net.add_machine(ip, self.personality);
        net.machines[machine].faults = self.faults;
        drop(net);
        Host::new(Rc::clone(&self.net), machine)
    }

    /// A server: a machine of its own with a reactor that listens on `address`.
    ///
    /// # Panics
    ///
    /// If `address` is no IP address with a port, something listens there, or the configuration is
    /// refused.
    #[track_caller]
    pub fn serve<H: Handler + 'static>(
        &mut self,
        address: impl ToAddress,
        config: Config,
        handler: H,
    ) -> Server<H> {
        let address = address.to_address();
        let Some(addr) = address.ip() else { panic!("{address} is no IP address with a port") };
        let mut listening = Ok(());
        let server = self.spawn(addr.ip(), config, handler, |reactor| {
            listening = reactor.listen(address).map(drop);
        });
        if let Err(error) = listening {
            panic!("{error}");
        }
        server
    }

    /// A machine at `ip` with a reactor that the world turns. `set_up` may let it listen and dial.
    ///
    /// # Panics
    ///
    /// If `ip` is no IP address, or the configuration is refused.
    #[track_caller]
    pub fn spawn<H: Handler + 'static>(
        &mut self,
        ip: impl ToIp,
        config: Config,
        handler: H,
        set_up: impl FnOnce(&mut Reactor<Watched<H>, Host>),
    ) -> Server<H> {
        let host = self.host(ip);
        let machine = host.machine();
        let woken = host.woken();
        self.net.borrow_mut().machines[machine].watched = true;
        let handler = Watched::new(handler, &self.net, machine, &config);
        let mut reactor = match Reactor::with_backend(config, host) {
            Ok(reactor) => reactor,
            Err(error) => panic!("{error}"),
        };
        set_up(&mut reactor);
        let node = Rc::new(RefCell::new(Node::new(reactor, handler, machine, woken)));
        self.nodes.push(Rc::clone(&node) as Rc<RefCell<dyn Turns>>);
        Server::new(node, &self.net, machine)
    }

    /// A peer that dials `server`.
    #[track_caller]
    pub fn connect(&mut self, server: impl ToAddress) -> Peer {
        let server = server.to_address();
        let mut net = self.net.borrow_mut();
        let from = net.port_of(Holder::Peer);
        let socket = net.dial(Holder::Peer, from, &server);
        drop(net);
        Peer::new(&self.net, socket)
    }

    /// A peer that dials `server` from an address of its own.
    #[track_caller]
    pub fn connect_from(&mut self, from: impl ToAddress, server: impl ToAddress) -> Peer {
        let (from, server) = (from.to_address(), server.to_address());
        let socket = self.net.borrow_mut().dial(Holder::Peer, from, &server);
        Peer::new(&self.net, socket)
    }

    /// A peer that dials `server` and has a receive buffer of `window` bytes.
    #[track_caller]
    pub fn connect_with_window(&mut self, server: impl ToAddress, window: usize) -> Peer {
        let peer = self.connect(server);
        peer.set_window(window);
        peer
    }

    /// A listener at `address` for reactors to dial, with a backlog of so many.
    ///
    /// # Panics
    ///
    /// If the address is taken.
    #[track_caller]
    pub fn listen(&mut self, address: impl ToAddress, backlog: usize) -> PeerListener {
        let address = address.to_address();
        let taken = self.net.borrow().is_taken(Holder::Peer, &address);
        assert!(!taken, "{address} is taken");
        PeerListener::new(&self.net, address, backlog)
    }

    /// The address of peers, 192.0.2.1: a dial to it where no [`PeerListener`] listens is refused.
    /// A dial to an address that no machine has gets no answer.
    pub fn peers_ip(&self) -> IpAddr {
        self.net.borrow().peers_ip
    }

    /// How connections made from here on reach each other, where nothing else is said.
    pub fn set_link(&mut self, link: Link) {
        self.net.borrow_mut().link = link;
    }

    /// How connections between two machines made from here on reach each other.
    #[track_caller]
    pub fn set_link_between(&mut self, a: impl ToIp, b: impl ToIp, link: Link) {
        let (a, b) = (a.to_ip(), b.to_ip());
        self.net.borrow_mut().set_link(a, b, link);
    }

    /// The bytes that the socket buffers of connections made from here on hold, for sending and
    /// for receiving: 256 KiB and 128 KiB at first.
    pub fn set_buffers(&mut self, send: usize, receive: usize) {
        self.net.borrow_mut().buffers = net::Buffers { send, receive };
    }

    /// How many descriptors the processes of hosts made from here on may have open: 20,000 at first.
    pub fn set_descriptors(&mut self, most: usize) {
        self.net.borrow_mut().fds_max = most;
    }

    /// What a look-up of `name` finds, and how long it takes. Addresses with port 0 get the port
    /// that is dialled.
    #[track_caller]
    pub fn set_name(
        &mut self,
        name: &str,
        addresses: impl IntoIterator<Item = impl ToAddress>,
        after: Duration,
    ) {
        let mut answer = Vec::new();
        for address in addresses {
            answer.push(address.to_address());
        }
        let name_of = Name { answer: Ok(answer), after: Some(after) };
        self.net.borrow_mut().names.insert(name.into(), name_of);
    }

    /// Lets look-ups of `name` fail with `errno`, or never end if that is `None`.
    pub fn fail_name(&mut self, name: &str, errno: Option<i32>) {
        let name_of = Name {
            answer: Err(errno.unwrap_or(libc::ETIMEDOUT)),
            after: errno.map(|_| Duration::from_millis(1)),
        };
        self.net.borrow_mut().names.insert(name.into(), name_of);
    }
}

/// Accidents.
impl Sim {
    /// Lets things go wrong at these rates, on all hosts there are and will be.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
        for machine in &mut self.net.borrow_mut().machines {
            machine.faults = faults;
        }
    }

    /// The rates at which things go wrong.
    pub const fn faults(&self) -> Faults {
        self.faults
    }

    /// Lets one call of this kind fail with `errno`: the one that comes after `after` others.
    ///
    /// Counted are all calls of that kind, by the reactors of all hosts together, from now on. Those
    /// that would have blocked count too, as do those that fail: a reactor accepts until none
    /// is left, and reads on an event that had nothing for it. To aim at one host, use
    /// [`Server::fail`]. [`errno`] has names for the numbers.
    ///
    /// Each order is for one call. What is left of them when the test is over has tested nothing,
    /// and [`assert_clean`](Sim::assert_clean) complains of it.
    pub fn fail(&mut self, call: Call, after: u64, errno: i32) {
        self.net.borrow_mut().fail(None, call, after, errno);
    }

    /// How many ordered failures ([`fail`](Sim::fail), [`Server::fail`]) have not come yet.
    pub fn failures_left(&self) -> usize {
        self.net.borrow().unspent().len()
    }

    /// Lets callbacks panic: without this a panic in a handler that the world did not
    /// [inject](Faults::panic) fails the run at the end of its turn, and so does a reactor that
    /// fails. For tests of the state after a panic.
    pub fn allow_panics(&mut self) {
        self.net.borrow_mut().panics_allowed = true;
    }

    /// Holds back whatever two machines send each other, until [`repair`](Sim::repair).
    #[track_caller]
    pub fn partition(&mut self, a: impl ToIp, b: impl ToIp) {
        let (a, b) = (a.to_ip(), b.to_ip());
        let net = &mut *self.net.borrow_mut();
        net.record(Place::World, TraceEvent::Partition(a, b));
        net.set_cut(a, b, true);
    }

    /// Ends a [`partition`](Sim::partition): what was held back arrives when it is sent again.
    #[track_caller]
    pub fn repair(&mut self, a: impl ToIp, b: impl ToIp) {
        let (a, b) = (a.to_ip(), b.to_ip());
        let net = &mut *self.net.borrow_mut();
        net.record(Place::World, TraceEvent::Repair(a, b));
        net.set_cut(a, b, false);
    }

    /// Lets every host's clock jump ahead, as after a suspension.
    pub fn jump_clocks(&mut self, ahead: Duration) {
        let mut net = self.net.borrow_mut();
        for machine in 0..net.machines.len() {
            net.jump(machine, ahead);
        }
    }

    /// Sets every host's clock back, as no monotonic clock should be and some have been.
    pub fn set_back_clocks(&mut self, by: Duration) {
        let mut net = self.net.borrow_mut();
        for machine in 0..net.machines.len() {
            net.set_back(machine, by);
        }
    }

    /// Lets each call of a reactor take about the time that it takes on Linux, so that turns take
    /// time in this world too; [`Server::take_longest_turn`] says how long they were. Off at first:
    /// a call takes no time.
    pub fn charge_calls(&mut self, charges: bool) {
        self.net.borrow_mut().charges = charges;
    }

    /// What keeps a callback busy for a while when it calls it: the time passes, and what is on its
    /// way arrives meanwhile.
    pub fn stall(&self) -> impl Fn(Duration) + use<> {
        let net = Rc::clone(&self.net);
        move |duration| {
            let mut net = net.borrow_mut();
            let until = net.now + duration;
            net.run_until(until);
        }
    }

    /// How many faults there were so far.
    pub fn faults_injected(&self) -> u64 {
        self.net.borrow().tally.faults
    }
}

/// Time.
impl Sim {
    /// The time of the world. Hosts' clocks may differ from it.
    pub fn now(&self) -> Instant {
        self.net.borrow().now
    }

    /// Sets the wall clock of all machines: the time since 1970-01-01 00:00 UTC at this moment. At
    /// first it is 2020-01-01. A reactor follows within a second.
    pub fn set_unix(&mut self, unix: Duration) {
        let mut net = self.net.borrow_mut();
        net.unix = (unix, net.now);
    }

    /// Lets so much time pass, and everything happen in it.
    #[track_caller]
    pub fn advance(&mut self, duration: Duration) {
        let until = self.now() + duration;
        while self.step_until(until) {}
        self.net.borrow_mut().run_until(until);
    }

    /// Lets everything happen that is on its way: until nothing travels, and every reactor waits
    /// for something that is not. A deadline or an event of the script that comes while something
    /// travels is in time; those that come later are left to [`advance`](Sim::advance).
    #[track_caller]
    pub fn settle(&mut self) {
        loop {
            let now = self.now();
            while self.step_until(now) {}
            if self.net.borrow().is_quiet() {
                return;
            }
            self.step();
        }
    }

    /// Lets the next thing happen, and time pass until then. Returns whether there was one.
    #[track_caller]
    pub fn step(&mut self) -> bool {
        self.step_until(Instant::FAR_FUTURE)
    }

    /// For a test that turns a reactor by itself: lets time pass until the next thing happens or a
    /// [`Host`]'s wait would have ended, but no more than `most`.
    #[track_caller]
    pub fn pass(&mut self, most: Duration) {
        let until = {
            let mut net = self.net.borrow_mut();
            let now = net.now;
            net.run_until(now);
            let busy = (0..net.machines.len()).any(|machine| net.has_notices(machine));
            let wakes = net.machines.iter().map(|machine| machine.wakes_at).min();
            let next = net.next_at().into_iter().chain(wakes).min().unwrap_or(now + most);
            if busy { now } else { next.clamp(now, now + most) }
        };
        self.net.borrow_mut().run_until(until);
        self.complain_of_broken();
    }

    /// What everything that happened so far comes to: the same for two runs that are the same.
    pub fn trace_hash(&self) -> u64 {
        self.net.borrow().trace_hash()
    }

    #[track_caller]
    fn step_until(&mut self, until: Instant) -> bool {
        let now = self.now();
        self.net.borrow_mut().run_until(now);
        self.have_accidents();
        let mut due: Vec<usize> = (0..self.nodes.len()).filter(|at| self.is_due(*at)).collect();
        if !due.is_empty() {
            self.steps_at_once += 1;
            assert!(self.steps_at_once < STEPS_AT_ONCE_MAX, "the world spins at {now:?}");
            self.net.borrow_mut().random.shuffle(&mut due);
            for index in due {
                self.turn(index);
            }
            return true;
        }
        let wakes = self.nodes.iter().filter_map(|node| node.borrow().wakes_at(&self.net.borrow()));
        let next = wakes.chain(self.net.borrow().next_at()).min();
        match next {
            Some(at) if at <= until => {
                self.steps_at_once = 0;
                self.net.borrow_mut().run_until(at);
                true
            }
            _ => false,
        }
    }

    fn is_due(&self, index: usize) -> bool {
        let node = self.nodes[index].borrow();
        let net = self.net.borrow();
        node.wakes_at(&net).is_some_and(|at| at <= net.now)
    }

    #[track_caller]
    fn turn(&mut self, index: usize) {
        self.turns += 1;
        let mut node = self.nodes[index].borrow_mut();
        node.turn(&self.net);
        let checked = node.check(&self.net);
        drop(node);
        self.complain_of_broken();
        if let Err(what) = checked {
            self.complain(&what);
        }
    }

    /// What a call or a callback found wrong first.
    #[track_caller]
    fn complain_of_broken(&self) {
        let broken = self.net.borrow().broken.clone();
        if let Some(what) = broken {
            self.complain(&what);
        }
    }

    /// Something that must hold does not.
    #[track_caller]
    fn complain(&self, what: &str) -> ! {
        panic!("at {:?}, seed {:#x}: {what}", self.now(), self.seed)
    }

    /// What befalls whole machines.
    fn have_accidents(&self) {
        if self.faults == Faults::NONE {
            return;
        }
        let net = &mut *self.net.borrow_mut();
        let now = net.now;
        for index in 0..net.machines.len() {
            if net.befalls(index, "late", |faults| faults.late) {
                let late = net.random.below(fault::LATE_MAX.as_nanos() as u64);
                let until = now + Duration::from_nanos(late);
                net.machines[index].asleep_until = until;
                net.disturb(index, until);
            }
            if net.befalls(index, "clock_jump", |faults| faults.clock_jump) {
                net.jump(index, fault::JUMP);
            }
            // In a world of many small steps it would stand still for ever.
            let goes_back = net.behind(index) < fault::BACK_IN_ALL;
            if goes_back && net.befalls(index, "clock_back", |faults| faults.clock_back) {
                let by = net.random.below(fault::BACK_MAX.as_nanos() as u64);
                net.set_back(index, Duration::from_nanos(by));
            }
            if net.befalls(index, "clock_freeze", |faults| faults.clock_freeze) {
                let pause = net.random.below(fault::FREEZE_MAX.as_nanos() as u64);
                let until = now + Duration::from_nanos(pause);
                net.machines[index].frozen.get_or_insert((now, until));
            }
        }
    }
}

/// Ends.
impl Sim {
    /// Checks that nothing is left: no connection, session, stream, buffer or deadline, no
    /// descriptor but those of listeners, none in a backlog, no closure that was posted and not
    /// taken, and no [failure](Sim::fail) that was ordered and never came. Alarms are the handler's
    /// own, and may stay, and so may the wheel's entry of a place that is free. The idle connections of a
    /// pool are something: [`converge`](Sim::converge) lets them end first.
    ///
    /// # Panics
    ///
    /// If something is.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.complain_of_broken();
        for node in &self.nodes {
            let checked = node.borrow().check_clean(&self.net);
            if let Err(mut what) = checked {
                let mut node = node.borrow_mut();
                if node.connections() > 0 {
                    what = format!("{what}; there is {}", node.describe(&self.net));
                }
                drop(node);
                self.complain(&what);
            }
        }
        let net = self.net.borrow();
        let unspent = net.unspent().first().map(|scripted| net.describe_scripted(scripted));
        drop(net);
        if let Some(what) = unspent {
            self.complain(&format!("a failure that was ordered never came: {what}"));
        }
    }

    /// Lets nothing go wrong any more and everything end: time passes until every connection has,
    /// those that wait in a backlog included.
    /// Peers that are held live on if their reactors let them. What was ordered to
    /// [fail](Sim::fail) and has not is forgotten.
    ///
    /// # Panics
    ///
    /// If a connection is still there after two hours.
    #[track_caller]
    pub fn converge(&mut self) {
        self.set_faults(Faults::NONE);
        let mut net = self.net.borrow_mut();
        net.clear_scripted();
        net.record(Place::World, TraceEvent::Converge);
        drop(net);
        let until = self.now() + CONVERGENCE;
        while let Some(node) = self.nodes.iter().find(|it| it.borrow().is_busy(&self.net.borrow()))
        {
            let node = Rc::clone(node);
            if !self.step_until(until) {
                if node.borrow().connections() == 0 {
                    self.complain("a connection waits in a backlog, and is not accepted");
                }
                let which = node.borrow_mut().describe(&self.net);
                self.complain(&format!("something does not end: there is {which}"));
            }
        }
    }

    /// Checks that `server` serves `request` alike however it is split: for each byte at which it
    /// can be split, a new peer sends the two parts apart, and one peer sends it byte by byte. Each
    /// must read `reply`, no connection may be [`Idle`](State::Idle) while a part of the request is
    /// missing, and each must count for as many requests as the whole one does.
    ///
    /// A handler that keeps a part of a request in its session and leaves none in its input has to
    /// call [`Conn::expect_more_input`](crate::Conn::expect_more_input) or
    /// [`Conn::begin_request`](crate::Conn::begin_request). If it forgets, its connection is idle in
    /// the middle of the request, and a wrong deadline runs. This finds it.
    ///
    /// `request` is one request, and its reply comes without the help of a timer. What a server says
    /// before it is asked is no part of the reply.
    ///
    /// ```
    /// use bytes::{Buf, BytesMut};
    /// use wheelhouse::sim::Sim;
    /// use wheelhouse::{Config, Conn, Handler};
    ///
    /// /// Replies to four bytes with the same four.
    /// struct Fours;
    ///
    /// impl Handler for Fours {
    ///     type Session = ();
    ///
    ///     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
    ///         Some(())
    ///     }
    ///
    ///     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
    ///         while input.len() >= 4 {
    ///             conn.write(&input[..4]);
    ///             input.advance(4);
    ///         }
    ///     }
    /// }
    ///
    /// let mut sim = Sim::new(1);
    /// let server = sim.serve("10.0.0.1:7", Config::default(), Fours);
    /// sim.assert_every_split(&server, b"four", b"four");
    /// ```
    ///
    /// # Panics
    ///
    /// If a split is served otherwise; the panic says which one, and how.
    #[track_caller]
    pub fn assert_every_split<H: Handler>(
        &mut self,
        server: &Server<H>,
        request: &[u8],
        reply: &[u8],
    ) {
        let whole = self.requests_of_parts(server, &[request], reply, "sent at once");
        let check = |sim: &mut Self, parts: &[&[u8]], how: &str| {
            let requests = sim.requests_of_parts(server, parts, reply, how);
            assert!(
                requests == whole,
                "the request counts for {requests} if it is {how}, and for {whole} if it is sent at \
                 once"
            );
        };
        for at in 1..request.len() {
            let (first, rest) = request.split_at(at);
            check(self, &[first, rest], &format!("split after {} of {} bytes", at, request.len()));
        }
        check(self, &request.chunks(1).collect::<Vec<_>>(), "sent byte by byte");
    }

    /// Lets a new peer send a request in `parts` that arrive apart, and checks what it reads and
    /// that its connection is not idle between them. Returns for how many requests it counted.
    #[track_caller]
    fn requests_of_parts<H: Handler>(
        &mut self,
        server: &Server<H>,
        parts: &[&[u8]],
        reply: &[u8],
        how: &str,
    ) -> u64 {
        let peer = self.connect(server);
        self.settle();
        peer.take();
        let before = server.stats();
        let mut missing: usize = parts.iter().map(|part| part.len()).sum();
        for part in parts {
            peer.send(part);
            self.settle();
            missing -= part.len();
            let idle = server.stats().in_state(State::Idle) > before.in_state(State::Idle);
            assert!(
                !idle || missing == 0,
                "the request is {how}, and its connection is Idle while {missing} bytes of it are \
                 missing: its handler kept the part that had come, and neither left it in `input` \
                 nor called `expect_more_input` or `begin_request`"
            );
        }
        let got = peer.take();
        assert!(
            got == reply,
            "the request is {how}, and the peer read {} instead of {}",
            Text(&got),
            Text(reply)
        );
        let requests = server.stats().requests - before.requests;
        peer.close();
        self.settle();
        requests
    }

    /// What happened last: calls and what came of them, arrivals, callbacks, what peers did, faults.
    /// It has the latest 40 lines, and of the 160 before them those about a fault. Equal events in a
    /// row share a line, which counts them. A run that fails prints it by itself, and with the
    /// variable `SIM_TRACE=1` every event is printed as it happens.
    pub fn history(&self) -> String {
        self.net.borrow().history.to_string()
    }

    fn tally(&self) -> net::Tally {
        self.net.borrow().tally.clone()
    }

    /// What kind of world this is, and what happened in it last.
    fn describe(&self, net: &Net) -> String {
        let Link { latency, jitter, bandwidth, segment } = net.link;
        let bandwidth =
            bandwidth.map_or_else(|| "any bandwidth".into(), |rate| format!("{rate} B/s"));
        let net::Buffers { send, receive } = net.buffers;
        let rates: Vec<_> = self
            .faults
            .rates()
            .into_iter()
            .filter(|(_, rate)| *rate > 0)
            .map(|(name, rate)| format!("{name} {rate}"))
            .collect();
        let rates = if rates.is_empty() { "none".into() } else { rates.join(", ") };
        format!(
            "The world at {now:?}, seed {seed:#x}:\n\
             personality: {personality:?}\n\
             link: latency {latency:?}, jitter {jitter:?}, {bandwidth}, segments of {segment} B\n\
             buffers: {send} B to send, {receive} B to receive\n\
             faults in a thousand: {rates}\n\
             what happened last:\n{history}",
            now = net.now,
            seed = self.seed,
            personality = self.personality,
            history = net.history,
        )
    }
}

/// A world that ends because a test fails says what it was like.
impl Drop for Sim {
    #[expect(clippy::print_stderr, reason = "the output of a failing test")]
    fn drop(&mut self) {
        if thread::panicking()
            && let Ok(net) = self.net.try_borrow()
        {
            eprintln!("{}", self.describe(&net));
        }
    }
}
