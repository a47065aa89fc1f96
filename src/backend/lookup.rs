//! Name look-ups off the loop's thread, because getaddrinfo(3) blocks.

use std::collections::VecDeque;
use std::io;
use std::net::ToSocketAddrs;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::waker::Waker;
use super::{Event, Events, Readiness, Token, Wake};
use crate::address::Address;

/// Look-ups at once: a resolver that hangs must not cost a thread per connection.
const THREADS_MAX: usize = 8;

/// Look-ups waiting for a thread: those behind a resolver that hangs would pile up for ever, as
/// their connections give up and others come.
const WAITING_MAX: usize = 1_024;

/// Look-ups under way, waiting for a thread, and answered.
#[derive(Debug)]
pub(super) struct Lookups {
    waker: Arc<Waker>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    running: usize,
    waiting: VecDeque<Question>,
    /// The answers announced by the latest wait. Those nobody asked for by the next one belong to
    /// connections that are gone.
    announced: Vec<Answer>,
}

#[derive(Debug)]
struct Question {
    host: String,
    port: u16,
    token: Token,
}

type Answer = (Token, io::Result<Vec<Address>>);

impl Lookups {
    pub(super) fn new(waker: Arc<Waker>) -> Self {
        Self {
            waker,
            answers: Arc::default(),
            running: 0,
            waiting: VecDeque::new(),
            announced: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, host: String, port: u16, token: Token) -> io::Result<()> {
        let question = Question { host, port, token };
        if self.running < THREADS_MAX {
            return self.start(question);
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many look-ups wait"));
        }
        self.waiting.push_back(question);
        Ok(())
    }

    fn start(&mut self, question: Question) -> io::Result<()> {
        let (answers, waker) = (Arc::clone(&self.answers), Arc::clone(&self.waker));
        thread::Builder::new().name("lookup".into()).spawn(move || {
            let Question { host, port, token } = question;
            let found = (host.as_str(), port)
                .to_socket_addrs()
                .map(|addrs| addrs.map(Address::Ip).collect::<Vec<_>>())
                // A resolver's errors are no errno and say nothing once they are copied.
                .map_err(|error| match error.raw_os_error() {
                    Some(_) => error,
                    None => io::Error::new(io::ErrorKind::AddrNotAvailable, error),
                });
            answers.lock().unwrap_or_else(PoisonError::into_inner).push_back((token, found));
            // It fails only if the reactor is gone, and then nobody waits.
            let _ = waker.wake();
        })?;
        self.running += 1;
        Ok(())
    }

    /// Announces the answers that came in, as many as there is room for.
    #[inline]
    pub(super) fn announce(&mut self, events: &mut Events) {
        if self.running > 0 || !self.announced.is_empty() {
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
                events.push(Event { token: answer.0, ready: Readiness::default() });
                self.announced.push(answer);
            }
            if !answers.is_empty() {
                let _ = self.waker.wake();
            }
        }
        self.running -= self.announced.len();
        while self.running < THREADS_MAX
            && let Some(question) = self.waiting.pop_front()
        {
            let token = question.token;
            if let Err(error) = self.start(question) {
                // Announced by the next wait, like any other answer.
                self.running += 1;
                let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
                answers.push_back((token, Err(error)));
                let _ = self.waker.wake();
            }
        }
    }

    pub(super) fn take(&mut self, token: Token) -> Option<io::Result<Vec<Address>>> {
        let index = self.announced.iter().position(|(announced, _)| *announced == token)?;
        Some(self.announced.swap_remove(index).1)
    }
}
