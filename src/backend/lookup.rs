//! Name look-ups off the loop's thread, because getaddrinfo(3) blocks.

use std::collections::VecDeque;
use std::fmt;
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
pub(super) struct Lookups {
    waker: Arc<Waker>,
    resolver: Arc<dyn Resolve>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    /// Those under way that connections wait for.
    wanted: Vec<Token>,
    /// How many more are under way. Their answers are dropped.
    cancelled: usize,
    waiting: VecDeque<Question>,
    /// The answers announced by the latest wait. Those that are not taken by the next one belong to
    /// connections that are gone.
    announced: Vec<Answer>,
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups")
            .field("wanted", &self.wanted)
            .field("cancelled", &self.cancelled)
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Question {
    host: String,
    port: u16,
    token: Token,
}

type Answer = (Token, io::Result<Vec<Address>>);

/// Looks names up for [`Os::with_resolver`](super::Os::with_resolver): in a file, in a service
/// registry, by DNS with a cache of its own.
///
/// A closure of the same signature is one, too.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of `host`, each with `port`, in the order in which they are to be tried.
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
        Err(error) => Err(match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => unavailable(error.to_string()),
        }),
    });
    asked.unwrap_or_else(|_| Err(unavailable("the resolver panicked".into())))
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
            answers: Arc::default(),
            wanted: Vec::new(),
            cancelled: 0,
            waiting: VecDeque::new(),
            announced: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, host: String, port: u16, token: Token) -> io::Result<()> {
        if let Some(known) = known(&host) {
            self.answer(token, Ok(known.map(|ip| Address::Ip((ip, port).into())).collect()));
            return Ok(());
        }
        let question = Question { host, port, token };
        if self.may_start() {
            return self.start(question);
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many look-ups wait"));
        }
        self.waiting.push_back(question);
        Ok(())
    }

    /// Forgets a look-up whose connection has gone. Those that wait start with the next wait: many
    /// connections that go in one turn must not start each other's look-ups.
    pub(super) fn cancel(&mut self, token: Token) {
        if let Some(index) = self.wanted.iter().position(|wanted| *wanted == token) {
            self.wanted.swap_remove(index);
            self.cancelled += 1;
            if !self.waiting.is_empty() {
                let _ = self.waker.wake();
            }
        } else {
            self.waiting.retain(|question| question.token != token);
        }
    }

    fn may_start(&self) -> bool {
        let wanted = self.wanted.len();
        wanted < WANTED_MAX && wanted + self.cancelled < THREADS_MAX
    }

    fn start(&mut self, question: Question) -> io::Result<()> {
        let (answers, waker) = (Arc::clone(&self.answers), Arc::clone(&self.waker));
        let resolver = Arc::clone(&self.resolver);
        let token = question.token;
        thread::Builder::new().name("lookup".into()).spawn(move || {
            let found = ask(&*resolver, &question.host, question.port);
            answers.lock().unwrap_or_else(PoisonError::into_inner).push_back((token, found));
            // It fails only if the reactor is gone, and then nothing waits.
            let _ = waker.wake();
        })?;
        self.wanted.push(token);
        Ok(())
    }

    fn start_waiting(&mut self) {
        while self.may_start()
            && let Some(question) = self.waiting.pop_front()
        {
            let token = question.token;
            if let Err(error) = self.start(question) {
                self.answer(token, Err(error));
            }
        }
    }

    /// Answers without a thread. The next wait announces it, like any other answer.
    fn answer(&mut self, token: Token, answer: io::Result<Vec<Address>>) {
        self.wanted.push(token);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.push_back((token, answer));
        let _ = self.waker.wake();
    }

    /// Announces the answers that came in, as many as there is room for.
    #[inline]
    pub(super) fn announce(&mut self, events: &mut Events) {
        if !self.wanted.is_empty() || self.cancelled > 0 || !self.announced.is_empty() {
            self.collect(events);
        }
    }

    fn collect(&mut self, events: &mut Events) {
        self.announced.clear();
        {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            while !events.is_full()
                && let Some(answer) = answers.pop_front()
            {
                match self.wanted.iter().position(|wanted| *wanted == answer.0) {
                    Some(index) => {
                        self.wanted.swap_remove(index);
                        events.push(Event { token: answer.0, ready: Readiness::default() });
                        self.announced.push(answer);
                    }
                    None => self.cancelled -= 1,
                }
            }
            if !answers.is_empty() {
                let _ = self.waker.wake();
            }
        }
        self.start_waiting();
    }

    pub(super) fn take(&mut self, token: Token) -> Option<io::Result<Vec<Address>>> {
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
            self.lookups.begin(host.into(), 80, token).unwrap();
            token
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
        assert_eq!(bench.lookups.cancelled, WANTED_MAX);
        assert_eq!(bench.resolver.wait_for(WANTED_MAX), WANTED_MAX);
    }

    #[test]
    fn a_resolver_that_hangs_costs_a_bounded_number_of_threads() {
        let mut bench = Bench::new();
        for _ in 0..2 * THREADS_MAX {
            let token = bench.ask("deaf");
            bench.lookups.announce(&mut Events::with_capacity(8));
            bench.lookups.cancel(token);
        }
        assert_eq!(bench.resolver.wait_for(THREADS_MAX), THREADS_MAX);
        let token = bench.ask("near");
        assert_eq!((bench.lookups.waiting.len(), bench.lookups.cancelled), (1, THREADS_MAX));
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
        assert!(bench.lookups.wanted.is_empty(), "{:?}", bench.lookups);
        let token = bench.ask("near");
        assert_eq!(bench.answer(token), (Some(here()), Vec::new()));
    }

    #[test]
    fn few_are_looked_up_at_once() {
        let mut bench = Bench::new();
        let last = (0..20).map(|_| bench.ask("deaf")).last().unwrap();
        assert_eq!(bench.resolver.wait_for(WANTED_MAX), WANTED_MAX);
        assert_eq!(bench.lookups.waiting.len(), 20 - WANTED_MAX);
        bench.resolver.answer();
        assert_eq!(bench.answer(last).0, Some(here()));
        assert!(bench.lookups.waiting.is_empty());
    }
}
