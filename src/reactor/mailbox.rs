//! Closures from other threads: a bounded queue, and one wake-up for many of them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::backend::Wake;
use crate::canary::{Canary, planted};
use crate::conn::Conn;
use crate::context::Context;
use crate::core::stats::{Counters, Stats};
use crate::core::table::ConnId;
use crate::error::PostError;
use crate::handler::Handler;
use crate::unwind::drop_caught;

/// What is posted to the reactor.
pub(crate) enum Letter<H: Handler> {
    ToLoop(LoopClosure<H>),
    ToConn(ConnId, ConnClosure<H>),
}

type LoopClosure<H> = Box<dyn FnOnce(&mut H, &mut Context<'_>) + Send>;
type ConnClosure<H> = Box<dyn FnOnce(&mut H, &mut Conn<'_>, &mut <H as Handler>::Session) + Send>;

/// The queue that handles and their reactor share.
pub(crate) struct Mailbox<H: Handler> {
    queue: Mutex<Queue<H>>,
    /// There was a full queue and there is room again, or the reactor is gone.
    room: Condvar,
    /// Something is in the queue: what the reactor looks at each turn instead of the lock.
    pending: AtomicBool,
    shutdowns: AtomicU32,
    /// The thread that runs the reactor, which must not wait for itself.
    reactor_thread: AtomicUsize,
    capacity: usize,
    waker: Arc<dyn Wake>,
    counters: Arc<Counters>,
}

struct Queue<H: Handler> {
    /// With the numbers that tell them apart.
    letters: VecDeque<(u64, Letter<H>)>,
    posted: u64,
    /// The latest wake-up failed: whoever posts next tries again.
    unwoken: bool,
    closed: bool,
}

impl<H: Handler> Mailbox<H> {
    pub(crate) fn new(capacity: usize, waker: Arc<dyn Wake>, counters: Arc<Counters>) -> Self {
        Self {
            queue: Mutex::new(Queue {
                letters: VecDeque::new(),
                posted: 0,
                unwoken: false,
                closed: false,
            }),
            room: Condvar::new(),
            pending: AtomicBool::new(false),
            shutdowns: AtomicU32::new(0),
            reactor_thread: AtomicUsize::new(0),
            capacity,
            waker,
            counters,
        }
    }

    /// No closure runs under the lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Queue<H>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the reactor runs on this thread.
    #[inline]
    pub(crate) fn claim(&self) {
        self.reactor_thread.store(thread_number(), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn has_letters(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    pub(crate) fn shutdowns(&self) -> u32 {
        self.shutdowns.load(Ordering::Acquire)
    }

    /// Moves at most `count` letters to the end of `batch`.
    pub(crate) fn take(&self, count: usize, batch: &mut VecDeque<Letter<H>>) {
        let mut queue = self.lock();
        let count = count.min(queue.letters.len());
        batch.extend(queue.letters.drain(..count).map(|(_, letter)| letter));
        self.pending.store(!queue.letters.is_empty(), Ordering::Release);
        let (left, room) = (!queue.letters.is_empty(), queue.letters.len() < self.capacity);
        drop(queue);
        if room {
            self.room.notify_all();
        }
        if left {
            // The rest is for the next turn, which must not wait. If this fails nothing will.
            let _ = self.waker.wake();
        }
    }

    /// Refuses letters from here on; those not taken are dropped.
    pub(crate) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        let dropped = std::mem::take(&mut queue.letters);
        drop(queue);
        self.room.notify_all();
        for (_, letter) in dropped {
            drop_caught(letter);
        }
    }

    fn post(&self, letter: Letter<H>, wait: bool) -> Result<(), PostError> {
        let mut queue = self.lock();
        while !queue.closed && queue.letters.len() >= self.capacity {
            if !wait {
                return Err(PostError::Full);
            }
            if self.reactor_thread.load(Ordering::Relaxed) == thread_number() {
                break;
            }
            queue = self.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.closed {
            return Err(PostError::Stopped);
        }
        let number = queue.posted;
        queue.posted += 1;
        queue.letters.push_back((number, letter));
        let first = !self.pending.swap(true, Ordering::AcqRel) | std::mem::take(&mut queue.unwoken);
        drop(queue);
        if first && !planted(Canary::LostWake) && self.waker.wake().is_err() {
            return self.take_back(number);
        }
        Ok(())
    }

    /// Nobody was woken for this letter: it is not to run after its sender was told so. The reactor
    /// may have found it all the same.
    fn take_back(&self, number: u64) -> Result<(), PostError> {
        let mut queue = self.lock();
        queue.unwoken = true;
        let index = queue.letters.iter().position(|(it, _)| *it == number);
        let letter = index.and_then(|index| queue.letters.remove(index));
        drop(queue);
        if letter.is_some() { Err(PostError::Stopped) } else { Ok(()) }
    }
}

/// A number no two living threads share.
fn thread_number() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// What other threads reach a reactor by; cheap to clone.
///
/// ```
/// # use bytes::BytesMut;
/// # use wheelhouse::{Config, Conn, Handler, Reactor};
/// # struct Greeter(u32);
/// # impl Handler for Greeter {
/// #     type Session = ();
/// #     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> { Some(()) }
/// #     fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) { input.clear() }
/// # }
/// let reactor = Reactor::new(Config::default())?;
/// let handle = reactor.handle();
/// let worker = std::thread::spawn(move || {
///     handle.post(|greeter: &mut Greeter, _| greeter.0 += 1)?;
///     handle.shutdown();
///     Ok::<_, wheelhouse::PostError>(())
/// });
/// let mut greeter = Greeter(0);
/// reactor.run(&mut greeter)?;
/// worker.join().unwrap()?;
/// assert_eq!(greeter.0, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Handle<H: Handler> {
    mailbox: Arc<Mailbox<H>>,
}

impl<H: Handler> Handle<H> {
    pub(crate) const fn new(mailbox: Arc<Mailbox<H>>) -> Self {
        Self { mailbox }
    }

    /// Runs `closure` on the reactor's thread in one of its next turns, in the order of posting.
    ///
    /// If [`Limits::mailbox_max`](crate::Limits::mailbox_max) closures wait already, this waits
    /// for room; on the reactor's own thread it never does. Nothing posted is lost while the
    /// reactor runs: what waits when it ends is dropped.
    ///
    /// # Errors
    ///
    /// [`Stopped`](PostError::Stopped) if the reactor is gone.
    pub fn post(
        &self,
        closure: impl FnOnce(&mut H, &mut Context<'_>) + Send + 'static,
    ) -> Result<(), PostError> {
        self.mailbox.post(Letter::ToLoop(Box::new(closure)), true)
    }

    /// As [`post`](Handle::post), without ever waiting.
    ///
    /// # Errors
    ///
    /// [`Full`](PostError::Full) if there is no room, [`Stopped`](PostError::Stopped) if the
    /// reactor is gone.
    pub fn try_post(
        &self,
        closure: impl FnOnce(&mut H, &mut Context<'_>) + Send + 'static,
    ) -> Result<(), PostError> {
        self.mailbox.post(Letter::ToLoop(Box::new(closure)), false)
    }

    /// Runs `closure` with the connection of `id` and its session; it is dropped unrun if that
    /// connection is gone by then. Otherwise as [`post`](Handle::post).
    ///
    /// # Errors
    ///
    /// [`Stopped`](PostError::Stopped) if the reactor is gone.
    pub fn post_to(
        &self,
        id: ConnId,
        closure: impl FnOnce(&mut H, &mut Conn<'_>, &mut H::Session) + Send + 'static,
    ) -> Result<(), PostError> {
        self.mailbox.post(Letter::ToConn(id, Box::new(closure)), true)
    }

    /// The counters so far, read without waking the reactor.
    pub fn stats(&self) -> Stats {
        self.mailbox.counters.snapshot()
    }

    /// Closes the listeners, and every connection when it has been served: requests that are active
    /// go on, connections that are idle, or become it, end within
    /// [`Config::shutdown_spread`](crate::Config::shutdown_spread) and a second, and after
    /// [`Config::shutdown_timeout`](crate::Config::shutdown_timeout) whatever is left is reset. A
    /// second call resets it at once.
    pub fn shutdown(&self) {
        self.mailbox.shutdowns.fetch_add(1, Ordering::AcqRel);
        // A wake-up that fails finds the reactor gone, which is what was wanted.
        let _ = self.mailbox.waker.wake();
    }
}

impl<H: Handler> Clone for Handle<H> {
    fn clone(&self) -> Self {
        Self { mailbox: Arc::clone(&self.mailbox) }
    }
}

impl<H: Handler> fmt::Debug for Handle<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}
