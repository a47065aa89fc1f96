//! Closures that are posted: bounded queues, and one wake-up for many of them.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{fmt, mem, ptr};

use crate::backend::Wake;
use crate::conn::Conn;
use crate::context::Context;
use crate::core::stats::{Counters, Stats};
use crate::error::PostError;
use crate::handler::Handler;
use crate::id::ConnId;
use crate::planted::{Bug, planted};
use crate::state::stats;
use crate::unwind::drop_caught;

/// What is posted to the reactor.
pub(crate) enum Task<H: Handler> {
    ToLoop(LoopClosure<H>),
    ToConn(ConnId, ConnClosure<H>),
}

type LoopClosure<H> = Box<dyn FnOnce(&mut H, &mut Context<'_>) + Send>;
type ConnClosure<H> = Box<dyn FnOnce(&mut H, &mut Conn<'_>, &mut <H as Handler>::Session) + Send>;

/// The queues that handles and their reactor share.
///
/// What callbacks of the reactor post to it has a queue of its own, of the same capacity: only the
/// reactor can make room there, so it must not wait for that, and what it posts must not keep others
/// from posting. Each turn takes from both queues.
pub(crate) struct Mailbox<H: Handler> {
    queues: Mutex<Queues<H>>,
    /// There was a full queue and there is room again, or the reactor is gone.
    room: Condvar,
    /// Something is in the queues, so the reactor has been woken, or does not wait.
    pending: AtomicBool,
    /// The next turn must not wait, whether a wake-up succeeds or not: closures are left that no
    /// wake-up will announce again, or a shutdown was asked for.
    due: AtomicBool,
    shutdowns: AtomicU32,
    /// The thread that made the reactor.
    maker: usize,
    /// The thread that turned the reactor last; 0 before the first turn.
    turned_by: AtomicUsize,
    capacity: usize,
    waker: Arc<dyn Wake>,
    counters: Arc<Counters>,
}

struct Queues<H: Handler> {
    /// What callbacks of the reactor itself posted.
    own: VecDeque<Numbered<H>>,
    others: VecDeque<Numbered<H>>,
    /// Closures posted so far.
    posted: u64,
    /// Threads that wait for room.
    waiting: usize,
    closed: bool,
}

/// A task with its number: of two, the one with the lower number was posted first.
type Numbered<H> = (u64, Task<H>);

impl<H: Handler> Queues<H> {
    fn is_empty(&self) -> bool {
        self.own.is_empty() && self.others.is_empty()
    }
}

/// Where a post comes from.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Poster {
    /// A callback of the reactor that is posted to.
    Itself,
    /// A callback of another reactor, or the thread that turns this one, between two turns.
    Reactor,
    /// The thread that made the reactor, before the first turn. It may be about to run the reactor,
    /// so it must not wait; or about to hand it to another thread, so it must not fail either.
    Maker,
    /// A thread that no reactor depends on.
    Thread,
}

impl<H: Handler> Mailbox<H> {
    pub(crate) fn new(capacity: usize, waker: Arc<dyn Wake>, counters: Arc<Counters>) -> Self {
        Self {
            queues: Mutex::new(Queues {
                own: VecDeque::new(),
                others: VecDeque::new(),
                posted: 0,
                waiting: 0,
                closed: false,
            }),
            room: Condvar::new(),
            pending: AtomicBool::new(false),
            due: AtomicBool::new(false),
            shutdowns: AtomicU32::new(0),
            maker: thread_number(),
            turned_by: AtomicUsize::new(0),
            capacity,
            waker,
            counters,
        }
    }

    /// No closure runs or is dropped under the lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Queues<H>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn address(&self) -> usize {
        ptr::from_ref(self).addr()
    }

    /// Notes that this thread turns the reactor, until the result is dropped.
    #[inline]
    pub(crate) fn begin_turn(&self) -> Turning {
        self.turned_by.store(thread_number(), Ordering::Relaxed);
        Turning { before: TURNING.replace(self.address()) }
    }

    #[inline]
    pub(crate) fn has_tasks(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Whether the next turn must not wait.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.due.load(Ordering::Acquire)
    }

    pub(crate) fn shutdowns(&self) -> u32 {
        self.shutdowns.load(Ordering::Acquire)
    }

    /// How many closures wait that callbacks of the reactor posted, and that others did.
    #[cfg(feature = "sim")]
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let queues = self.lock();
        (queues.own.len(), queues.others.len())
    }

    /// How many closures were posted so far.
    #[cfg(feature = "sim")]
    pub(crate) fn posted(&self) -> u64 {
        self.lock().posted
    }

    /// Moves at most `count` tasks to the end of `batch`, in the order of posting. Where there are
    /// more, half of them are the reactor's own and half are those of others.
    pub(crate) fn take(&self, count: usize, batch: &mut VecDeque<Task<H>>) {
        let mut queues = self.lock();
        let Queues { own, others, waiting, .. } = &mut *queues;
        let share = count.saturating_sub(own.len()).max(count.div_ceil(2));
        let mut of_others = share.min(others.len());
        let mut of_own = (count - of_others).min(own.len());
        while of_own + of_others > 0 {
            let others_first = match (own.front(), others.front()) {
                (Some((own, _)), Some((other, _))) if of_own > 0 && of_others > 0 => other < own,
                _ => of_own == 0,
            };
            let (from, left) = if others_first {
                (&mut *others, &mut of_others)
            } else {
                (&mut *own, &mut of_own)
            };
            batch.extend(from.pop_front().map(|(_, task)| task));
            *left -= 1;
        }
        let room = *waiting > 0 && others.len() < self.capacity;
        let left = !queues.is_empty();
        self.pending.store(left, Ordering::Release);
        self.due.store(left && !planted(Bug::LeftTasks), Ordering::Release);
        drop(queues);
        if room {
            self.room.notify_all();
        }
    }

    /// Refuses tasks from here on; those not taken are dropped.
    pub(crate) fn close(&self) {
        let mut queues = self.lock();
        queues.closed = true;
        let (own, others) = (mem::take(&mut queues.own), mem::take(&mut queues.others));
        drop(queues);
        self.room.notify_all();
        for (_, task) in own.into_iter().chain(others) {
            drop_caught(task);
        }
    }

    fn poster(&self) -> Poster {
        let turning = TURNING.get();
        let turned_by = self.turned_by.load(Ordering::Relaxed);
        if turning == self.address() {
            Poster::Itself
        } else if turning != 0 || turned_by == thread_number() {
            Poster::Reactor
        } else if turned_by == 0 && self.maker == thread_number() {
            Poster::Maker
        } else {
            Poster::Thread
        }
    }

    /// Whether a closure of `poster` finds room.
    fn has_room(&self, queues: &Queues<H>, poster: Poster, wait: bool) -> bool {
        match poster {
            Poster::Itself => queues.own.len() < self.capacity || planted(Bug::UnboundedOwnPosts),
            Poster::Maker if wait => true,
            Poster::Maker | Poster::Reactor | Poster::Thread => queues.others.len() < self.capacity,
        }
    }

    fn post(&self, task: Task<H>, wait: bool) -> Result<(), PostError> {
        let poster = self.poster();
        let mut queues = self.lock();
        while !queues.closed && !self.has_room(&queues, poster, wait) {
            if !wait || poster != Poster::Thread {
                return Err(PostError::Full);
            }
            queues.waiting += 1;
            queues = self.room.wait(queues).unwrap_or_else(PoisonError::into_inner);
            queues.waiting -= 1;
        }
        if queues.closed {
            return Err(PostError::Stopped);
        }
        let number = queues.posted;
        queues.posted += 1;
        if poster == Poster::Itself {
            queues.own.push_back((number, task));
            self.pending.store(true, Ordering::Release);
            // The reactor is awake, and sees this before it waits.
            self.due.store(!planted(Bug::LeftTasks), Ordering::Release);
            return Ok(());
        }
        queues.others.push_back((number, task));
        let first = !self.pending.swap(true, Ordering::AcqRel);
        // Under the lock, so that no other post relies on a wake-up that has yet to fail.
        if first && !planted(Bug::LostWake) && self.waker.wake().is_err() {
            // It must not run after its sender has learnt that it does not.
            let unsent = queues.others.pop_back();
            self.pending.store(!queues.is_empty(), Ordering::Release);
            drop(queues);
            drop(unsent);
            return Err(PostError::Stopped);
        }
        Ok(())
    }
}

thread_local! {
    /// The mailbox of the reactor in whose turn this thread is; 0 if in none.
    static TURNING: Cell<usize> = const { Cell::new(0) };
}

/// This thread turns a reactor. Turns may nest: a callback may turn another reactor.
#[must_use]
pub(crate) struct Turning {
    before: usize,
}

impl Drop for Turning {
    #[inline]
    fn drop(&mut self) {
        TURNING.set(self.before);
    }
}

/// A number no two living threads share.
fn thread_number() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| ptr::from_ref(here).addr())
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

    /// Runs `closure` on the reactor's thread in one of its next turns.
    ///
    /// If [`Limits::mailbox_max`](crate::Limits::mailbox_max) closures wait already, this waits for
    /// room. A thread that runs a reactor never waits, so that reactors cannot wait for each other:
    /// in a callback, of whichever reactor, and on the thread that turns this one, the closure is
    /// refused instead. Before the first turn the thread that made the reactor neither waits nor is
    /// refused.
    ///
    /// What callbacks of this reactor post to it is limited by itself, to as many closures, and each
    /// turn runs some of both. Closures run in the order of posting, except that where more wait
    /// than one turn runs (1,024), those of callbacks and those of others overtake each other. What
    /// waits when the reactor ends is dropped.
    ///
    /// # Errors
    ///
    /// [`Full`](PostError::Full) if there is no room and this thread must not wait for it,
    /// [`Stopped`](PostError::Stopped) if the reactor is gone or the system does not wake it. The
    /// closure is dropped.
    pub fn post(
        &self,
        closure: impl FnOnce(&mut H, &mut Context<'_>) + Send + 'static,
    ) -> Result<(), PostError> {
        self.mailbox.post(Task::ToLoop(Box::new(closure)), true)
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
        self.mailbox.post(Task::ToLoop(Box::new(closure)), false)
    }

    /// Runs `closure` with the connection of `id` and its session; it is dropped unrun if that
    /// connection is gone by then, or a callback of it has panicked. Otherwise as
    /// [`post`](Handle::post).
    ///
    /// `id` is one of this reactor's: that of another may be the name of a connection here as well.
    ///
    /// # Errors
    ///
    /// As [`post`](Handle::post).
    pub fn post_to(
        &self,
        id: ConnId,
        closure: impl FnOnce(&mut H, &mut Conn<'_>, &mut H::Session) + Send + 'static,
    ) -> Result<(), PostError> {
        self.mailbox.post(Task::ToConn(id, Box::new(closure)), true)
    }

    /// The counters so far, read without waking the reactor.
    pub fn stats(&self) -> Stats {
        stats(&self.mailbox.counters)
    }

    /// Closes the listeners, and every connection when it has been served: requests that are active
    /// go on, connections that are idle, or become it, end within
    /// [`Config::shutdown_spread`](crate::Config::shutdown_spread) and a second, and after
    /// [`Config::shutdown_timeout`](crate::Config::shutdown_timeout) whatever is left is reset. A
    /// second call resets it at once.
    pub fn shutdown(&self) {
        self.mailbox.shutdowns.fetch_add(1, Ordering::AcqRel);
        self.mailbox.due.store(true, Ordering::Release);
        // If this fails the reactor is gone, or its next turn begins the shutdown.
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;
    use std::time::Duration;

    use bytes::BytesMut;

    use super::*;
    use crate::backend::{Backend, Os};

    struct Nobody;

    impl Handler for Nobody {
        type Session = ();

        fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
            None
        }

        fn on_data(&mut self, _: &mut Conn<'_>, _: &mut (), _: &mut BytesMut) {}
    }

    fn task() -> Task<Nobody> {
        Task::ToLoop(Box::new(|_, _| ()))
    }

    /// Fails the first time, after another post had time to come.
    struct FailsOnce {
        calls: AtomicU32,
        go: Sender<()>,
        posted: Mutex<Receiver<()>>,
    }

    impl Wake for FailsOnce {
        fn wake(&self) -> io::Result<()> {
            if self.calls.fetch_add(1, Ordering::Relaxed) > 0 {
                return Ok(());
            }
            self.go.send(()).unwrap();
            // It comes now if it does not wait for this wake-up to succeed or fail.
            let _ = self.posted.lock().unwrap().recv_timeout(Duration::from_millis(200));
            Err(io::ErrorKind::Other.into())
        }
    }

    #[test]
    fn no_post_relies_on_a_wake_up_that_fails() {
        let (go, may_go) = channel();
        let (tell, posted) = channel();
        let wake = Arc::new(FailsOnce { calls: AtomicU32::new(0), go, posted: Mutex::new(posted) });
        let waker = Arc::clone(&wake);
        let mailbox = Mailbox::<Nobody>::new(8, waker, Arc::default());
        thread::scope(|scope| {
            let mailbox = &mailbox;
            let second = scope.spawn(move || {
                may_go.recv().unwrap();
                let outcome = mailbox.post(task(), true);
                tell.send(()).unwrap();
                outcome
            });
            assert_eq!(mailbox.post(task(), true), Err(PostError::Stopped));
            assert_eq!(second.join().unwrap(), Ok(()));
        });
        assert_eq!(mailbox.waiting(), (0, 1));
        assert_eq!(wake.calls.load(Ordering::Relaxed), 2, "the reactor was woken for it");
    }

    #[test]
    fn each_turn_takes_from_both_queues_in_order() {
        for (own, others, count, want) in [
            (3, 3, 10, (3, 3)),
            (20, 20, 10, (5, 5)),
            (20, 2, 10, (8, 2)),
            (2, 20, 10, (2, 8)),
            (20, 20, 1, (0, 1)),
            (20, 20, 0, (0, 0)),
            (0, 20, 7, (0, 7)),
        ] {
            let waker = Os::new().unwrap().waker();
            let mailbox = Mailbox::<Nobody>::new(100, waker, Arc::default());
            {
                let _turning = mailbox.begin_turn();
                (0..own).for_each(|_| mailbox.post(task(), false).unwrap());
            }
            (0..others).for_each(|_| mailbox.post(task(), false).unwrap());
            let mut batch = VecDeque::new();
            mailbox.take(count, &mut batch);
            let left = mailbox.waiting();
            assert_eq!((own - left.0, others - left.1), want, "{own} {others} {count}");
            assert_eq!(batch.len(), want.0 + want.1);
            assert_eq!(mailbox.is_due(), left != (0, 0));
        }
    }
}
