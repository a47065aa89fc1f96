//! Lines to stdout and stderr that cannot stop a server.
//!
//! A thread that writes to a pipe waits for as long as the reader of the pipe does not read, and
//! `println!` and `eprintln!` panic when a write fails. So a thread of its own writes to each of
//! the two. All others put lines into its queue; a line that finds the queue full is dropped
//! and counted.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, mem, thread};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder};

/// Lines that wait to be written, a few hundred KiB of log. It bounds what a reader that does not
/// read costs.
const LINES_MAX: usize = 4_096;

/// Between two attempts to write to what is full and does not block.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// For how long the end of the process waits for lines to be written. A reader that reads needs
/// far less, and one that does not must not keep the process from its end.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(1);

/// The queue of stdout.
pub(crate) fn stdout() -> &'static Output {
    static STDOUT: OnceLock<Output> = OnceLock::new();
    STDOUT.get_or_init(|| Output::new("stdout", &io::stdout()))
}

/// The queue of stderr.
pub(crate) fn stderr() -> &'static Output {
    static STDERR: OnceLock<Output> = OnceLock::new();
    STDERR.get_or_init(|| Output::new("stderr", &io::stderr()))
}

/// Starts both threads. Each needs a descriptor, which may be missing when there is something to
/// print.
pub(crate) fn start() {
    stdout();
    stderr();
}

/// Waits for all lines to be written, but no longer than a second.
pub(crate) fn finish() {
    const LOOK_EVERY: Duration = Duration::from_millis(1);
    for _ in 0..LAST_LINES_WITHIN.as_millis() {
        if stdout().is_empty() && stderr().is_empty() {
            return;
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// A queue of lines, and the thread that writes them.
#[derive(Debug)]
pub(crate) struct Output {
    queue: NonBlocking,
    dropped: ErrorCounter,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Lines put into the queue or dropped.
    given: AtomicUsize,
    /// Lines that the thread took from the queue.
    taken: AtomicUsize,
    /// Of these, lines that could not be written.
    failed: AtomicUsize,
    /// Lines dropped because the queue was full. It exists once the queue does.
    dropped: OnceLock<ErrorCounter>,
}

impl Counts {
    fn lost(&self) -> usize {
        let dropped = self.dropped.get().map_or(0, ErrorCounter::dropped_lines);
        dropped + self.failed.load(Ordering::Relaxed)
    }
}

impl Output {
    fn new(name: &str, stream: &impl AsFd) -> Self {
        let counts = Arc::new(Counts::default());
        // The handles of std have locks: a thread that waits in a write would block others that
        // only need the lock, such as the one that ends the process. A descriptor of
        // our own has none.
        let file = stream.as_fd().try_clone_to_owned().ok().map(File::from);
        let writer = Writer { file, counts: Arc::clone(&counts), taken: 0, lost_said: 0 };
        let (queue, worker) = NonBlockingBuilder::default()
            .thread_name(name)
            .lossy(true)
            .buffered_lines_limit(LINES_MAX)
            .finish(writer);
        // Dropped while the queue is full it would wait for 0.1 s and then `println!`, which may
        // panic or wait for ever. `finish` waits instead.
        mem::forget(worker);
        let dropped = queue.error_counter();
        let _ = counts.dropped.set(dropped.clone());
        Self { queue, dropped, counts }
    }

    /// Queues a line. Returns whether no line before it failed to be written, as one does when the
    /// reader has gone or the device is full.
    pub(crate) fn line(&self, line: impl fmt::Display) -> bool {
        // In one piece: the parts of a line would be queued and dropped one by one.
        self.put(format!("{line}\n").as_bytes());
        self.counts.failed.load(Ordering::Relaxed) == 0
    }

    fn put(&self, line: &[u8]) {
        self.counts.given.fetch_add(1, Ordering::SeqCst);
        // It never fails: what finds the queue full is counted.
        let _ = self.queue.clone().write_all(line);
    }

    /// Whether the thread has nothing left to write.
    fn is_empty(&self) -> bool {
        let gone = self.counts.taken.load(Ordering::SeqCst) + self.dropped.dropped_lines();
        gone >= self.counts.given.load(Ordering::SeqCst)
    }
}

/// What `tracing_subscriber` writes each event to, in one piece.
impl Write for &Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end of the queue, on the thread that may wait. It reports no failure, because the thread
/// of the queue would take that for the end of a batch and forget to flush.
struct Writer {
    /// `None` if there was no descriptor left for it.
    file: Option<File>,
    counts: Arc<Counts>,
    taken: usize,
    /// Lost lines that the output itself reports.
    lost_said: usize,
}

impl Writer {
    fn try_write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut file = self.file.as_ref().ok_or(ErrorKind::NotFound)?;
        while !bytes.is_empty() {
            match file.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Another process made the pipe or the terminal non-blocking, and it is full.
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_AFTER),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.try_write(line).is_err() {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
        }
        self.taken += 1;
        Ok(line.len())
    }

    /// Called when the queue is empty.
    fn flush(&mut self) -> io::Result<()> {
        let lost = self.counts.lost();
        if lost > self.lost_said {
            let text = format!("({} lines were lost here)\n", lost - self.lost_said);
            if self.try_write(text.as_bytes()).is_ok() {
                self.lost_said = lost;
            }
        }
        self.counts.taken.store(self.taken, Ordering::SeqCst);
        Ok(())
    }
}
