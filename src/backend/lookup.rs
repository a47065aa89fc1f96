//! Name look-ups off the loop's thread, because getaddrinfo(3) blocks.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::waker::Waker;
use super::{Event, Events, Readiness, Token, Wake};
use crate::address::Address;
use crate::unwind::catch;

/// Look-ups at once that connections wait for: a resolver that hangs must not cost a thread per
/// connection.
const WANTED_MAX: usize = 8;

/// Threads in all. getaddrinfo(3) cannot be interrupted, so a thread goes on when the connection
/// that its look-up was for has gone, for up to half a minute behind a resolver that does not
/// answer (resolv.conf(5): timeout, attempts). Such a thread is replaced, or the look-ups that come
/// next would wait for it; but a resolver that hangs must not cost a thread per dial either.
const THREADS_MAX: usize = 64;

/// Look-ups waiting for a thread.
const WAITING_MAX: usize = 1_024;

/// Look-ups under way, waiting for a thread, and answered.
///
/// There is one look-up of a name at a time: dials of that name while it goes on share its answer,
/// whatever their ports. It is looked up anew for the next dial; to keep answers is the resolver's
/// affair, which knows how long they hold.
pub(super) struct Lookups {
    waker: Arc<Waker>,
    resolver: Arc<dyn Resolve>,
    /// What threads have found, by the numbers of their look-ups.
    found: Arc<Mutex<VecDeque<(u64, Found)>>>,
    /// Those that have a thread.
    running: Vec<Lookup>,
    waiting: VecDeque<Lookup>,
    /// Look-ups begun.
    begun: u64,
    /// Answers that are to be announced.
    answers: VecDeque<Answer>,
    /// The answers announced by the latest wait. Those that are not taken by the next one belong to
    /// connections that are gone.
    announced: Vec<Answer>,
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups")
            .field("running", &self.running)
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

/// The look-up of a name.
#[derive(Debug)]
struct Lookup {
    number: u64,
    host: String,
    /// The port that the resolver is asked with.
    port: u16,
    /// The connections that wait for it, and their ports. Without any its answer is dropped.
    askers: Vec<(Token, u16)>,
    /// All that waited for it have gone once: it is taken to be stuck, also if others wait by now.
    given_up: bool,
}

impl Lookup {
    /// What each of those that wait gets.
    fn answers(self, found: Found) -> impl Iterator<Item = Answer> {
        let asked = self.port;
        self.askers.into_iter().map(move |(token, port)| {
            let mut found = copy(&found);
            for address in found.iter_mut().flatten() {
                // A resolver may know of another port; then that is it for all.
                match address {
                    Address::Ip(addr) if addr.port() == asked => addr.set_port(port),
                    _ => {}
                }
            }
            (token, found)
        })
    }
}

type Found = io::Result<Vec<Address>>;

type Answer = (Token, Found);

/// [`io::Error`] has no copy. Those of [`ask`] are a number, or a kind with a text.
fn copy(found: &Found) -> Found {
    match found {
        Ok(addresses) => Ok(addresses.clone()),
        Err(error) => Err(match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(error.kind(), error.to_string()),
        }),
    }
}

/// Looks names up for [`Os::with_resolver`](super::Os::with_resolver): in a file, in a service
/// registry, by DNS with a cache of its own.
///
/// A closure of the same signature is one, too.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of `host`, each with `port`, the best first. Dials try them in this order, but
    /// let the families alternate where
    /// [`Timeouts::connect_stagger`](crate::Timeouts::connect_stagger) is set.
    ///
    /// Dials of one host at the same time ask once, with the port of the first, and each puts its
    /// own port in the place of that.
    ///
    /// Called on a thread of the backend, on several at once, and may block. IP addresses and
    /// `localhost` are not asked about. A connection that is dialled waits for the answer within
    /// its [`Timeouts::connect`](crate::Timeouts::connect). When that has passed the answer is
    /// dropped, but the thread goes on, also when the reactor is gone. There are at most 64 threads
    /// for each [`Os`](super::Os), so an implementation has a timeout of its own.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from an answer. The connection ends with
    /// [`ConnectFailed`](crate::CloseReason::ConnectFailed), as it does for no address and after a
    /// panic.
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

impl<F> Resolve for F
where
    F: Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
{
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self(host, port)
    }
}

/// The resolver of the system, getaddrinfo(3).
#[derive(Debug)]
pub(super) struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        (host, port).to_socket_addrs().map(Iterator::collect)
    }
}

/// Asks `resolver`, whatever comes of that. Its error may be any type, and panic when it is
/// dropped: it does not leave this thread.
fn ask(resolver: &dyn Resolve, host: &str, port: u16) -> io::Result<Vec<Address>> {
    let unavailable = |why: String| io::Error::new(io::ErrorKind::AddrNotAvailable, why);
    let asked = catch(|| match resolver.resolve(host, port) {
        Ok(found) => Ok(found.into_iter().map(Address::Ip).collect()),
        Err(error) => Err(match error.raw_os_error().or_else(shortage) {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => unavailable(error.to_string()),
        }),
    });
    asked.unwrap_or_else(|_| Err(unavailable("the resolver panicked".into())))
}

/// What keeps a file from being opened, if that is a shortage of descriptors. getaddrinfo(3) needs
/// some, and where there are none it says that the name is not known.
fn shortage() -> Option<i32> {
    // One for a file or a socket, and one for a second one beside it.
    let opened = [(); 2].map(|()| File::open("/dev/null"));
    let mut errors = opened.iter().filter_map(|opened| opened.as_ref().err()?.raw_os_error());
    errors.find(|errno| matches!(*errno, libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// What is known without a resolver, and must not wait for one that hangs: an IP address in place
/// of a name, and the name for which RFC 6761, 6.3, asks to return the loopback addresses always.
fn known(host: &str) -> Option<impl Iterator<Item = IpAddr> + use<>> {
    let ips = match host.parse::<IpAddr>() {
        Ok(ip) => [Some(ip), None],
        Err(_) if host.eq_ignore_ascii_case("localhost") => {
            // getaddrinfo(3) has this order too (RFC 6724).
            [Some(Ipv6Addr::LOCALHOST.into()), Some(Ipv4Addr::LOCALHOST.into())]
        }
        Err(_) => return None,
    };
    Some(ips.into_iter().flatten())
}

impl Lookups {
    pub(super) fn new(waker: Arc<Waker>, resolver: impl Resolve) -> Self {
        Self {
            waker,
            resolver: Arc::new(resolver),
            found: Arc::default(),
            running: Vec::new(),
            waiting: VecDeque::new(),
            begun: 0,
            answers: VecDeque::new(),
            announced: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, host: &str, port: u16, token: Token) -> io::Result<()> {
        if let Some(known) = known(host) {
            // The next wait announces it, like any other answer.
            let addresses = known.map(|ip| Address::Ip((ip, port).into())).collect();
            self.answers.push_back((token, Ok(addresses)));
            let _ = self.waker.wake();
            return Ok(());
        }
        // One that none waits for any more is not begun twice either: it is the next to have an
        // answer, and another would cost a thread.
        let mut lookups = self.running.iter_mut().chain(&mut self.waiting);
        if let Some(lookup) = lookups.find(|lookup| lookup.host == host) {
            lookup.askers.push((token, port));
            return Ok(());
        }
        self.begun += 1;
        let askers = vec![(token, port)];
        let (number, host) = (self.begun, host.to_owned());
        let lookup = Lookup { number, host, port, askers, given_up: false };
        if self.may_start() {
            return self.start(lookup).map_err(|(_, error)| error);
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many look-ups wait"));
        }
        self.waiting.push_back(lookup);
        Ok(())
    }

    /// Lets a connection that has gone wait no more. Look-ups that wait start with the next wait:
    /// many connections that go in one turn must not start each other's look-ups.
    pub(super) fn cancel(&mut self, token: Token) {
        self.answers.retain(|(answered, _)| *answered != token);
        for lookup in self.running.iter_mut().chain(&mut self.waiting) {
            let before = lookup.askers.len();
            lookup.askers.retain(|(asker, _)| *asker != token);
            if lookup.askers.len() < before {
                lookup.given_up |= lookup.askers.is_empty();
                self.waiting.retain(|lookup| !lookup.askers.is_empty());
                if !self.waiting.is_empty() {
                    let _ = self.waker.wake();
                }
                return;
            }
        }
    }

    fn may_start(&self) -> bool {
        let wanted = self.running.iter().filter(|lookup| !lookup.given_up).count();
        wanted < WANTED_MAX && self.running.len() < THREADS_MAX
    }

    fn start(&mut self, lookup: Lookup) -> Result<(), (Lookup, io::Error)> {
        let (all_found, waker) = (Arc::clone(&self.found), Arc::clone(&self.waker));
        let resolver = Arc::clone(&self.resolver);
        let (number, host, port) = (lookup.number, lookup.host.clone(), lookup.port);
        let spawned = thread::Builder::new().name("lookup".into()).spawn(move || {
            let found = ask(&*resolver, &host, port);
            all_found.lock().unwrap_or_else(PoisonError::into_inner).push_back((number, found));
            // It fails only if the reactor is gone, and then nothing waits.
            let _ = waker.wake();
        });
        match spawned {
            Ok(_) => {
                self.running.push(lookup);
                Ok(())
            }
            Err(error) => Err((lookup, error)),
        }
    }

    fn start_waiting(&mut self) {
        while self.may_start()
            && let Some(lookup) = self.waiting.pop_front()
        {
            if let Err((lookup, error)) = self.start(lookup) {
                self.answers.extend(lookup.answers(Err(error)));
                let _ = self.waker.wake();
            }
        }
    }

    /// Announces the answers that came in, as many as there is room for.
    #[inline]
    pub(super) fn announce(&mut self, events: &mut Events) {
        if !self.running.is_empty() || !self.answers.is_empty() || !self.announced.is_empty() {
            self.collect(events);
        }
    }

    fn collect(&mut self, events: &mut Events) {
        self.announced.clear();
        let found = std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner));
        for (number, found) in found {
            let index = self.running.iter().position(|lookup| lookup.number == number);
            if let Some(index) = index {
                let lookup = self.running.swap_remove(index);
                self.answers.extend(lookup.answers(found));
            }
        }
        while !events.is_full()
            && let Some(answer) = self.answers.pop_front()
        {
            events.push(Event { token: answer.0, ready: Readiness::default() });
            self.announced.push(answer);
        }
        if !self.answers.is_empty() {
            let _ = self.waker.wake();
        }
        self.start_waiting();
    }

    pub(super) fn take(&mut self, token: Token) -> Option<Found> {
        let index = self.announced.iter().position(|(announced, _)| *announced == token)?;
        Some(self.announced.swap_remove(index).1)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Condvar;
    use std::time::Duration;

    use super::*;
    use crate::id::ConnId;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A resolver that answers nothing about names that begin with "deaf" until it is told to.
    #[derive(Default)]
    struct Deaf {
        state: Mutex<(bool, usize)>,
        changed: Condvar,
    }

    impl Deaf {
        fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            if host.starts_with("deaf") {
                let mut state = self.state.lock().unwrap();
                state.1 += 1;
                self.changed.notify_all();
                drop(self.changed.wait_while(state, |(answers, _)| !*answers).unwrap());
            }
            assert!(!host.starts_with("bad"), "a resolver with a bug");
            if host.starts_with("bomb") {
                return Err(io::Error::other(Bomb));
            }
            Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
        }

        /// How many threads it has kept, once they are that many.
        fn wait_for(&self, count: usize) -> usize {
            let state = self.state.lock().unwrap();
            let few = |state: &mut (bool, usize)| state.1 < count;
            self.changed.wait_timeout_while(state, PATIENCE, few).unwrap().0.1
        }

        fn answer(&self) {
            self.state.lock().unwrap().0 = true;
            self.changed.notify_all();
        }
    }

    /// An error that panics when it is dropped.
    #[derive(Debug)]
    struct Bomb;

    impl fmt::Display for Bomb {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a bomb")
        }
    }

    impl std::error::Error for Bomb {}

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }

    struct Bench {
        poll: mio::Poll,
        lookups: Lookups,
        resolver: Arc<Deaf>,
        asked: u32,
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            self.resolver.answer();
        }
    }

    impl Bench {
        fn new() -> Self {
            let poll = mio::Poll::new().unwrap();
            let waker = Arc::new(Waker::new(poll.registry()).unwrap());
            let resolver = Arc::new(Deaf::default());
            let deaf = Arc::clone(&resolver);
            let resolve = move |host: &str, port: u16| deaf.resolve(host, port);
            Self { poll, lookups: Lookups::new(waker, resolve), resolver, asked: 0 }
        }

        fn ask(&mut self, host: &str) -> Token {
            self.asked += 1;
            let token = Token::of_conn(ConnId::new(self.asked, 1));
            self.lookups.begin(host, 80, token).unwrap();
            token
        }

        /// Look-ups that have a thread and were given up.
        fn abandoned(&self) -> usize {
            self.lookups.running.iter().filter(|lookup| lookup.given_up).count()
        }

        /// The answer, if it comes, and what else is announced in front of it.
        fn answer(&mut self, token: Token) -> (Option<Vec<Address>>, Vec<Token>) {
            let mut mio_events = mio::Events::with_capacity(8);
            let mut others = Vec::new();
            loop {
                let mut events = Events::with_capacity(8);
                self.lookups.announce(&mut events);
                let announced = (0..events.len()).filter_map(|index| events.get(index));
                others.extend(announced.map(|it| it.token).filter(|it| *it != token));
                if let Some(found) = self.lookups.take(token) {
                    return (found.ok(), others);
                }
                self.poll.poll(&mut mio_events, Some(PATIENCE)).unwrap();
                if mio_events.is_empty() && !self.lookups.waker.take_unseen() {
                    return (None, others);
                }
            }
        }
    }

    fn here() -> Vec<Address> {
        vec![SocketAddr::from(([127, 0, 0, 1], 80)).into()]
    }

    #[test]
    fn a_look_up_that_was_given_up_delays_no_other() {
        let mut bench = Bench::new();
        let deaf: Vec<_> = (0..100).map(|number| bench.ask(&format!("deaf{number}"))).collect();
        for token in deaf {
            bench.lookups.cancel(token);
        }
        let token = bench.ask("near");
        assert_eq!(bench.answer(token), (Some(here()), Vec::new()));
        assert_eq!(bench.abandoned(), WANTED_MAX);
        assert_eq!(bench.resolver.wait_for(WANTED_MAX), WANTED_MAX);
    }

    #[test]
    fn a_resolver_that_hangs_costs_a_bounded_number_of_threads() {
        let mut bench = Bench::new();
        for number in 0..2 * THREADS_MAX {
            let token = bench.ask(&format!("deaf{number}"));
            bench.lookups.announce(&mut Events::with_capacity(8));
            bench.lookups.cancel(token);
        }
        assert_eq!(bench.resolver.wait_for(THREADS_MAX), THREADS_MAX);
        let token = bench.ask("near");
        assert_eq!((bench.lookups.waiting.len(), bench.abandoned()), (1, THREADS_MAX));
        // These need no thread.
        let literal = bench.ask("127.0.0.1");
        assert_eq!(bench.answer(literal).0, Some(here()));
        let localhost = bench.ask("LocalHost");
        let loopback = ["[::1]:80", "127.0.0.1:80"].map(|text| text.parse().unwrap());
        assert_eq!(bench.answer(localhost).0, Some(loopback.to_vec()));
        // When the threads come back others start, and what they found is dropped.
        bench.resolver.answer();
        assert_eq!(bench.answer(token), (Some(here()), Vec::new()));
        assert_eq!(bench.resolver.wait_for(0), THREADS_MAX);
    }

    #[test]
    fn a_resolver_that_panics_answers_that_there_is_nothing() {
        let mut bench = Bench::new();
        let token = bench.ask("bomb");
        assert_eq!(bench.answer(token), (None, Vec::new()));
        for _ in 0..2 * WANTED_MAX {
            let token = bench.ask("bad");
            assert_eq!(bench.answer(token), (None, Vec::new()));
        }
        assert!(bench.lookups.running.is_empty(), "{:?}", bench.lookups);
        let token = bench.ask("near");
        assert_eq!(bench.answer(token), (Some(here()), Vec::new()));
    }

    #[test]
    fn few_are_looked_up_at_once() {
        let mut bench = Bench::new();
        let last = (0..20).map(|number| bench.ask(&format!("deaf{number}"))).last().unwrap();
        assert_eq!(bench.resolver.wait_for(WANTED_MAX), WANTED_MAX);
        assert_eq!(bench.lookups.waiting.len(), 20 - WANTED_MAX);
        bench.resolver.answer();
        assert_eq!(bench.answer(last).0, Some(here()));
        assert!(bench.lookups.waiting.is_empty());
    }

    #[test]
    fn dials_of_one_name_share_a_look_up() {
        let mut bench = Bench::new();
        let first = bench.ask("deaf");
        let second = bench.ask("deaf");
        let third = Token::of_conn(ConnId::new(100, 1));
        bench.lookups.begin("deaf", 443, third).unwrap();
        assert_eq!(bench.resolver.wait_for(1), 1);
        // The one that began it goes; the others get the answer, each with its port.
        bench.lookups.cancel(first);
        bench.resolver.answer();
        let (found, others) = bench.answer(second);
        assert_eq!((found, others), (Some(here()), vec![third]));
        let here = Some(vec![Address::from(SocketAddr::from(([127, 0, 0, 1], 443)))]);
        assert_eq!(bench.lookups.take(third).map(Result::ok), Some(here));
        assert_eq!(bench.resolver.wait_for(0), 1);
        // It is looked up anew for the next dial.
        let token = bench.ask("deaf");
        assert!(bench.answer(token).0.is_some());
        assert_eq!(bench.resolver.wait_for(0), 2);
    }

    #[test]
    fn an_abandoned_look_up_serves_the_next_dial_of_its_name() {
        let mut bench = Bench::new();
        for _ in 0..10 {
            let token = bench.ask("deaf");
            bench.lookups.cancel(token);
        }
        let token = bench.ask("deaf");
        assert_eq!(bench.resolver.wait_for(1), 1);
        bench.resolver.answer();
        assert_eq!(bench.answer(token), (Some(here()), Vec::new()));
        assert_eq!(bench.resolver.wait_for(0), 1);
    }

    #[test]
    fn dials_of_one_name_share_a_failure() {
        let mut bench = Bench::new();
        // All threads are taken.
        for number in 0..WANTED_MAX {
            bench.ask(&format!("deaf{number}"));
        }
        let [first, second, gone] = ["bad"; 3].map(|host| bench.ask(host));
        assert_eq!(bench.lookups.waiting.len(), 1);
        bench.lookups.cancel(gone);
        bench.resolver.answer();
        assert_eq!(bench.answer(first).0, None);
        // It may not have had room in the same batch.
        let found = bench.lookups.take(second).map_or_else(|| bench.answer(second).0, Result::ok);
        assert_eq!(found, None);
        assert!(bench.lookups.take(gone).is_none());
    }
}
