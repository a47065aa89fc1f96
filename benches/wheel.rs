//! What a timer costs: the timing wheel beside a binary heap with lazy deletion and tokio's
//! `DelayQueue`.
//!
//! `cargo bench --bench wheel` takes about a minute. All figures are nanoseconds for one
//! operation on one of 100,000 or 1,000,000 timers, visited in random order unless it says
//! otherwise, so that at a million it is the cache misses that are measured. The deadlines lie
//! anywhere in the next 60 s.
//!
//! | group | one operation |
//! | --- | --- |
//! | `insert`, `cancel` | of one timer, while all of them are put in or taken out |
//! | `touch` | one deadline is moved later: a store, a second link, a second entry or a reset |
//! | `expire` | one timer comes up, all being due |
//! | `message` | one message moves its connection's deadline to 60 s from now, at 200,000 messages a second; includes the entries that come up early and are scheduled again. The connections send in turn: what is measured is the work, since a server has the connection of a message in the cache anyway |
//! | `message-shuffled` | the same with the senders in random order: the misses as well |

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode};
use tokio::runtime::{Builder, Runtime};
use tokio_util::time::{DelayQueue, delay_queue};

use crate::wheel::{Key, Wheel};

// The wheel is private to the crate. It depends on nothing else there, so its file can be built into
// this program as well.
#[path = "../src/core/wheel.rs"]
#[allow(dead_code, unused_imports, reason = "what only the reactor and the unit tests use")]
mod wheel;

const SIZES: [(&str, u32); 2] = [("100k", 100_000), ("1M", 1_000_000)];

const TICK: Duration = Duration::from_millis(10);
/// The timeout, and how far apart the deadlines lie: 60 s.
const SPREAD: u64 = 6_000;
/// 200,000 messages a second, about what one core can echo.
const MESSAGES_PER_TICK: usize = 2_000;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700))
        .nresamples(10_000)
        .configure_from_args();
    // A delay queue makes its sleeps wherever it is polled.
    let _context = RUNTIME.enter();

    group(&mut criterion, "insert", |group, load| {
        insert::<Wheeled>(group, "wheel", load);
        insert::<Heaped>(group, "heap", load);
        insert::<Queued>(group, "delay-queue", load);
    });
    group(&mut criterion, "cancel", |group, load| {
        cancel::<Wheeled>(group, "wheel", load);
        cancel::<Heaped>(group, "heap", load);
        cancel::<Queued>(group, "delay-queue", load);
    });
    group(&mut criterion, "touch", |group, load| {
        touch::<Lazy<Wheeled>>(group, "wheel-lazy", load);
        touch::<Wheeled>(group, "wheel-relinked", load);
        touch::<Heaped>(group, "heap", load);
        touch::<Queued>(group, "delay-queue", load);
    });
    group(&mut criterion, "expire", |group, load| {
        expire::<Wheeled>(group, "wheel", load);
        expire::<Heaped>(group, "heap", load);
        expire::<Queued>(group, "delay-queue", load);
    });
    group(&mut criterion, "message", |group, load| {
        message::<Lazy<Wheeled>>(group, "wheel-lazy", load, &load.in_turn);
        message::<Wheeled>(group, "wheel-relinked", load, &load.in_turn);
        message::<Lazy<Heaped>>(group, "heap-lazy", load, &load.in_turn);
        message::<Queued>(group, "delay-queue", load, &load.in_turn);
    });
    group(&mut criterion, "message-shuffled", |group, load| {
        message::<Lazy<Wheeled>>(group, "wheel-lazy", load, &load.shuffled);
        message::<Lazy<Heaped>>(group, "heap-lazy", load, &load.shuffled);
        message::<Queued>(group, "delay-queue", load, &load.shuffled);
    });
    criterion.final_summary();
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn group(criterion: &mut Criterion, name: &str, bench: impl Fn(&mut Group<'_>, &Load)) {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    for (size, count) in SIZES {
        bench(&mut group, &Load::new(size, count));
    }
    group.finish();
}

fn insert<T: Timers>(group: &mut Group<'_>, name: &str, load: &Load) {
    sweep::<T>(group, name, load, T::clear, |timers| load.fill(timers, 0));
}

fn cancel<T: Timers>(group: &mut Group<'_>, name: &str, load: &Load) {
    let fill = |timers: &mut T| load.fill(timers, 0);
    sweep(group, name, load, fill, |timers| {
        for (key, _) in &load.other_order {
            timers.cancel(*key);
        }
    });
}

fn touch<T: Timers>(group: &mut Group<'_>, name: &str, load: &Load) {
    let fill = |timers: &mut T| {
        timers.clear();
        load.fill(timers, 0);
    };
    sweep(group, name, load, fill, |timers| {
        for (key, tick) in &load.other_order {
            timers.touch(*key, SPREAD + tick);
        }
    });
}

fn expire<T: Timers>(group: &mut Group<'_>, name: &str, load: &Load) {
    let now = Cell::new(0);
    let fill = |timers: &mut T| {
        load.fill(timers, now.get());
        now.set(now.get() + SPREAD);
        timers.advance(now.get());
    };
    sweep(group, name, load, fill, |timers| {
        for _ in 0..load.count {
            black_box(timers.pop().expect("all are due"));
        }
    });
}

/// Measures `run`, which performs one operation on each timer, after `prepare`, which is not
/// measured. What criterion takes for an iteration is one operation.
fn sweep<T: Timers>(
    group: &mut Group<'_>,
    name: &str,
    load: &Load,
    prepare: impl Fn(&mut T),
    run: impl Fn(&mut T),
) {
    // Criterion calls the closure for each sample; the timers are made once, by the first.
    let mut timers = None;
    group.bench_function(BenchmarkId::new(name, load.size), |bencher| {
        let timers = timers.get_or_insert_with(|| {
            let mut timers = T::new(load.count);
            load.fill(&mut timers, 0);
            timers.clear();
            timers
        });
        bencher.iter_custom(|operations| {
            let sweeps = operations.div_ceil(u64::from(load.count));
            let mut elapsed = Duration::ZERO;
            for _ in 0..sweeps {
                prepare(timers);
                let start = Instant::now();
                run(timers);
                elapsed += start.elapsed();
            }
            share(elapsed, operations, sweeps * u64::from(load.count))
        });
    });
}

/// Measures a stream of messages from `senders`, over and over.
fn message<T: Timers>(group: &mut Group<'_>, name: &str, load: &Load, senders: &[u32]) {
    let mut stream = None;
    group.bench_function(BenchmarkId::new(name, load.size), |bencher| {
        let stream = stream.get_or_insert_with(|| {
            let mut stream = Stream::<T>::new(load, senders);
            // One timeout later the entries are where the messages have put them.
            (0..SPREAD).for_each(|_| stream.turn());
            stream
        });
        bencher.iter_custom(|messages| {
            let turns = messages.div_ceil(MESSAGES_PER_TICK as u64);
            let start = Instant::now();
            (0..turns).for_each(|_| stream.turn());
            share(start.elapsed(), messages, turns * MESSAGES_PER_TICK as u64)
        });
    });
}

/// The time that `counted` operations took, if `performed` took `elapsed`.
fn share(elapsed: Duration, counted: u64, performed: u64) -> Duration {
    elapsed.mul_f64(counted as f64 / performed as f64)
}

struct Stream<'a, T> {
    timers: T,
    senders: std::iter::Cycle<std::slice::Iter<'a, u32>>,
    now: u64,
}

impl<'a, T: Timers> Stream<'a, T> {
    fn new(load: &Load, senders: &'a [u32]) -> Self {
        let mut timers = T::new(load.count);
        load.fill(&mut timers, 0);
        Self { timers, senders: senders.iter().cycle(), now: 0 }
    }

    /// One tick of time: the messages that arrive in it, then the deadlines.
    fn turn(&mut self) {
        self.now += 1;
        for key in self.senders.by_ref().take(MESSAGES_PER_TICK) {
            self.timers.touch(*key, self.now + SPREAD);
        }
        self.timers.advance(self.now);
        while let Some(key) = self.timers.pop() {
            // Another connection takes the place of one that timed out.
            self.timers.insert(key, self.now + SPREAD);
        }
    }
}

/// The keys and deadlines of a benchmark, the same in each run.
struct Load {
    size: &'static str,
    count: u32,
    /// Each key once, with a deadline in `1..=SPREAD`.
    order: Vec<(u32, u64)>,
    other_order: Vec<(u32, u64)>,
    /// Each key once.
    in_turn: Vec<u32>,
    shuffled: Vec<u32>,
}

impl Load {
    fn new(size: &'static str, count: u32) -> Self {
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        let order = random.deadlines(count);
        let shuffled = order.iter().map(|(key, _)| *key).collect();
        let other_order = random.deadlines(count);
        Self { size, count, order, other_order, in_turn: (0..count).collect(), shuffled }
    }

    /// Puts all timers in.
    fn fill(&self, timers: &mut impl Timers, now: u64) {
        for (key, tick) in &self.order {
            timers.insert(*key, now + tick);
        }
    }
}

/// xorshift64*, Marsaglia and Vigna.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % bound
    }

    fn deadlines(&mut self, count: u32) -> Vec<(u32, u64)> {
        let mut deadlines: Vec<_> = (0..count).map(|key| (key, 1 + self.below(SPREAD))).collect();
        for index in (1..deadlines.len()).rev() {
            deadlines.swap(index, self.below(index as u64 + 1) as usize);
        }
        deadlines
    }
}

/// Timers with the keys `0..count`, each at most once.
trait Timers {
    fn new(count: u32) -> Self;

    /// Puts `key` in, which is not.
    fn insert(&mut self, key: u32, tick: u64);

    /// Takes `key` out, which is in.
    fn cancel(&mut self, key: u32);

    /// Moves the deadline of `key`, which is in, to `tick`.
    fn touch(&mut self, key: u32, tick: u64);

    /// Lets time pass until `now`.
    fn advance(&mut self, now: u64);

    /// Takes out a key that is due.
    fn pop(&mut self) -> Option<u32>;

    /// Takes out all.
    fn clear(&mut self);
}

/// The wheel under test.
struct Wheeled {
    wheel: Wheel,
    now: u64,
    budget: usize,
    count: u32,
}

impl Timers for Wheeled {
    fn new(count: u32) -> Self {
        Self { wheel: Wheel::new(), now: 0, budget: usize::MAX, count }
    }

    fn insert(&mut self, key: u32, tick: u64) {
        self.wheel.schedule(Key::Conn(key), tick);
    }

    fn cancel(&mut self, key: u32) {
        self.wheel.cancel(Key::Conn(key));
    }

    fn touch(&mut self, key: u32, tick: u64) {
        self.wheel.schedule(Key::Conn(key), tick);
    }

    fn advance(&mut self, now: u64) {
        self.now = now;
    }

    fn pop(&mut self) -> Option<u32> {
        match self.wheel.expire(self.now, &mut self.budget)? {
            Key::Conn(key) | Key::Alarm(key) => Some(key),
        }
    }

    fn clear(&mut self) {
        (0..self.count).for_each(|key| self.cancel(key));
    }
}

/// A heap whose entries stay in it when they are cancelled or replaced, and are skipped when they
/// come up.
struct Heaped {
    entries: BinaryHeap<Reverse<(u64, u32, u32)>>,
    /// By key: which entry counts.
    generations: Vec<u32>,
    now: u64,
}

impl Timers for Heaped {
    fn new(count: u32) -> Self {
        Self {
            entries: BinaryHeap::with_capacity(count as usize),
            generations: vec![0; count as usize],
            now: 0,
        }
    }

    fn insert(&mut self, key: u32, tick: u64) {
        self.entries.push(Reverse((tick, key, self.generations[key as usize])));
    }

    fn cancel(&mut self, key: u32) {
        self.generations[key as usize] += 1;
    }

    fn touch(&mut self, key: u32, tick: u64) {
        self.cancel(key);
        self.insert(key, tick);
    }

    fn advance(&mut self, now: u64) {
        self.now = now;
    }

    fn pop(&mut self) -> Option<u32> {
        while let Some(Reverse((tick, key, generation))) = self.entries.peek().copied() {
            if tick > self.now {
                return None;
            }
            self.entries.pop();
            if generation == self.generations[key as usize] {
                return Some(key);
            }
        }
        None
    }

    fn clear(&mut self) {
        self.entries.clear();
    }
}

/// Lazy re-arm: a deadline moved later is only noted, and the entry put back when it comes up.
struct Lazy<T> {
    timers: T,
    /// By key: when it is really due.
    ticks: Vec<u64>,
    now: u64,
}

impl<T: Timers> Timers for Lazy<T> {
    fn new(count: u32) -> Self {
        Self { timers: T::new(count), ticks: vec![0; count as usize], now: 0 }
    }

    fn insert(&mut self, key: u32, tick: u64) {
        self.ticks[key as usize] = tick;
        self.timers.insert(key, tick);
    }

    fn cancel(&mut self, key: u32) {
        self.timers.cancel(key);
    }

    fn touch(&mut self, key: u32, tick: u64) {
        self.ticks[key as usize] = tick;
    }

    fn advance(&mut self, now: u64) {
        self.now = now;
        self.timers.advance(now);
    }

    fn pop(&mut self) -> Option<u32> {
        loop {
            let key = self.timers.pop()?;
            let tick = self.ticks[key as usize];
            if tick <= self.now {
                return Some(key);
            }
            self.timers.insert(key, tick);
        }
    }

    fn clear(&mut self) {
        self.timers.clear();
    }
}

/// What the delay queues run on. Its clock stands still but for [`Queued::advance`].
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing from the system")
});

struct Queued {
    queue: DelayQueue<u32>,
    /// By key: where it is in the queue.
    places: Vec<Option<delay_queue::Key>>,
    epoch: tokio::time::Instant,
}

impl Queued {
    fn at(&self, tick: u64) -> tokio::time::Instant {
        self.epoch + TICK * tick as u32
    }
}

impl Timers for Queued {
    fn new(count: u32) -> Self {
        Self {
            queue: DelayQueue::with_capacity(count as usize),
            places: vec![None; count as usize],
            epoch: tokio::time::Instant::now(),
        }
    }

    fn insert(&mut self, key: u32, tick: u64) {
        self.places[key as usize] = Some(self.queue.insert_at(key, self.at(tick)));
    }

    fn cancel(&mut self, key: u32) {
        let place = self.places[key as usize].take().expect("it is in");
        self.queue.remove(&place);
    }

    fn touch(&mut self, key: u32, tick: u64) {
        let place = self.places[key as usize].expect("it is in");
        self.queue.reset_at(&place, self.at(tick));
    }

    fn advance(&mut self, now: u64) {
        let ahead = self.at(now) - tokio::time::Instant::now();
        RUNTIME.block_on(tokio::time::advance(ahead));
    }

    fn pop(&mut self) -> Option<u32> {
        match self.queue.poll_expired(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(expired) => Some(expired?.into_inner()),
            Poll::Pending => None,
        }
    }

    fn clear(&mut self) {
        self.queue.clear();
    }
}
