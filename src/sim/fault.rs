//! What can go wrong, and how often it does.

use std::fmt;
use std::time::Duration;

use super::random::Random;

/// A call of the reactor on its [`Host`](super::Host) that can be made to fail.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Call {
    /// Waiting for events.
    Wait,
    /// Opening a listener.
    Bind,
    /// Registering a listener.
    RegisterListener,
    /// Taking a connection off a backlog.
    Accept,
    /// Beginning to dial.
    Connect,
    /// Registering a stream.
    Register,
    /// Asking for another event of a listener.
    Reregister,
    /// Asking for the outcome of dialling.
    IsConnected,
    /// Asking for the local end.
    LocalAddr,
    /// Asking for the pending error.
    TakeError,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Sending the FIN.
    ShutdownWrite,
    /// Beginning a look-up.
    Resolve,
}

/// As [`Call::cost`], of a close that frees a socket, and of asking what is unacknowledged.
pub(super) const CLOSE_COST: Duration = Duration::from_nanos(14_000);
pub(super) const UNSENT_COST: Duration = Duration::from_nanos(1_000);

impl Call {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Wait,
        Self::Bind,
        Self::RegisterListener,
        Self::Accept,
        Self::Connect,
        Self::Register,
        Self::Reregister,
        Self::IsConnected,
        Self::LocalAddr,
        Self::TakeError,
        Self::Read,
        Self::Write,
        Self::ShutdownWrite,
        Self::Resolve,
    ];

    /// About how long it takes on Linux, over loopback, on a machine of the present: what a reactor
    /// can count on, so that the length of its turns can be checked in virtual time.
    pub(super) const fn cost(self) -> Duration {
        let nanos = match self {
            Self::Connect => 60_000,
            Self::Bind | Self::Resolve => 20_000,
            Self::Accept | Self::Write => 10_000,
            Self::ShutdownWrite => 8_000,
            Self::Read | Self::Wait | Self::Register | Self::RegisterListener => 2_000,
            Self::Reregister | Self::IsConnected | Self::LocalAddr | Self::TakeError => 1_000,
        };
        Duration::from_nanos(nanos)
    }

    /// The errors that Linux documents for it and that a server must survive: those of accept(2),
    /// connect(2), epoll_ctl(2), recv(2), send(2), shutdown(2) and tcp(7). Errors that only a
    /// broken program gets, such as `EBADF`, are left out; [`Sim::fail`](super::Sim::fail) injects
    /// them too. There are none for opening a listener, as its caller gets the error.
    pub const fn errnos(self) -> &'static [i32] {
        match self {
            Self::Wait => &[libc::EINTR],
            Self::Bind | Self::RegisterListener => &[],
            Self::Accept => &[
                libc::EAGAIN,
                libc::EINTR,
                libc::ECONNABORTED,
                libc::EPROTO,
                libc::EPERM,
                libc::ENETDOWN,
                libc::ENETUNREACH,
                libc::EHOSTUNREACH,
                libc::EHOSTDOWN,
                libc::ENOPROTOOPT,
                libc::EOPNOTSUPP,
                libc::ETIMEDOUT,
                #[cfg(target_os = "linux")]
                libc::ENONET,
                libc::EMFILE,
                libc::ENFILE,
                libc::ENOBUFS,
                libc::ENOMEM,
            ],
            Self::Connect => &[
                libc::EADDRNOTAVAIL,
                libc::EMFILE,
                libc::ENFILE,
                libc::ENOBUFS,
                libc::ENOMEM,
                libc::EAFNOSUPPORT,
                libc::ENETUNREACH,
                libc::EHOSTUNREACH,
                libc::ECONNREFUSED,
                libc::EACCES,
                libc::EPERM,
                libc::EADDRINUSE,
                libc::EAGAIN,
                libc::ETIMEDOUT,
            ],
            Self::Register => &[libc::ENOMEM, libc::ENOSPC, libc::EEXIST],
            Self::Reregister => &[libc::ENOMEM, libc::ENOENT],
            Self::IsConnected => &[
                libc::ECONNREFUSED,
                libc::ETIMEDOUT,
                libc::ENETUNREACH,
                libc::EHOSTUNREACH,
                libc::ECONNRESET,
            ],
            Self::LocalAddr => &[libc::ENOBUFS, libc::EINVAL],
            Self::TakeError => &[libc::EINVAL],
            Self::Read => &[
                libc::EAGAIN,
                libc::EINTR,
                libc::ECONNRESET,
                libc::ETIMEDOUT,
                libc::EHOSTUNREACH,
                libc::ENOMEM,
            ],
            Self::Write => &[
                libc::EAGAIN,
                libc::EINTR,
                libc::EPIPE,
                libc::ECONNRESET,
                libc::ETIMEDOUT,
                libc::EHOSTUNREACH,
                libc::ENOBUFS,
                libc::ENOMEM,
            ],
            Self::ShutdownWrite => &[libc::ENOTCONN],
            Self::Resolve => &[libc::EAGAIN],
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Whether the stack has ended the connection of a socket that fails with `errno`.
pub(super) const fn is_fatal(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNRESET | libc::EPIPE | libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH
    )
}

/// How often things go wrong: rates in a thousand, all zero by default.
///
/// ```
/// use wheelhouse::sim::Faults;
///
/// let faults = Faults { short_read: 300, interrupted: 50, ..Faults::NONE };
/// assert_ne!(faults, Faults::NONE);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Faults {
    /// A read returns fewer bytes than there are, and more follow without another event.
    ///
    /// Where [short I/O drains](crate::backend::Backend::short_io_drains) the system announces
    /// what it kept back as if it had arrived later.
    pub short_read: u16,
    /// A write takes fewer bytes than there is room for, or none; see
    /// [`short_read`](Faults::short_read).
    pub short_write: u16,
    /// A call is interrupted by a signal.
    pub interrupted: u16,
    /// A read or write that could be done would block, and an event follows.
    pub would_block: u16,
    /// An accept fails, with one of its [errors](Call::errnos).
    pub accept_error: u16,
    /// A read or write fails for good.
    pub stream_error: u16,
    /// Any other call fails, with one of its errors.
    pub other_error: u16,
    /// An event comes for a socket that has nothing new, or for one that is gone.
    pub spurious_event: u16,
    /// Readable and writable come as two events.
    pub split_event: u16,
    /// An event comes without its hints.
    pub missing_hint: u16,
    /// The events of one wait come in another order.
    pub reordered: u16,
    /// A wait returns as many events as there is room for, most of them spurious.
    pub full_batch: u16,
    /// A wait returns fewer events than there are.
    pub small_batch: u16,
    /// The process is not scheduled for up to ten seconds.
    pub late: u16,
    /// The clock jumps an hour ahead, as after a suspension.
    pub clock_jump: u16,
    /// The clock is set back by up to 20 ms, and by not much more than a second in all.
    pub clock_back: u16,
    /// The clock stands still for up to a second.
    pub clock_freeze: u16,
    /// A callback of a connection panics, no more often than
    /// [`Config::panic_limit`](crate::Config::panic_limit) allows; `on_closed` never does.
    pub panic: u16,
    /// A callback of a connection takes up to two seconds; `on_closed` never does.
    pub stall: u16,
    /// An accept that finds the backlog empty waits for 1 to 4 ms, or until a connection comes:
    /// another process made the listener blocking, and its receive timeout ends the wait after that
    /// time, rounded up to a tick of the kernel's clock.
    pub blocking_accept: u16,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        short_read: 0,
        short_write: 0,
        interrupted: 0,
        would_block: 0,
        accept_error: 0,
        stream_error: 0,
        other_error: 0,
        spurious_event: 0,
        split_event: 0,
        missing_hint: 0,
        reordered: 0,
        full_batch: 0,
        small_batch: 0,
        late: 0,
        clock_jump: 0,
        clock_back: 0,
        clock_freeze: 0,
        panic: 0,
        stall: 0,
        blocking_accept: 0,
    };

    /// Every rate with its name.
    pub(super) const fn rates(&self) -> [(&'static str, u16); 20] {
        [
            ("short_read", self.short_read),
            ("short_write", self.short_write),
            ("interrupted", self.interrupted),
            ("would_block", self.would_block),
            ("accept_error", self.accept_error),
            ("stream_error", self.stream_error),
            ("other_error", self.other_error),
            ("spurious_event", self.spurious_event),
            ("split_event", self.split_event),
            ("missing_hint", self.missing_hint),
            ("reordered", self.reordered),
            ("full_batch", self.full_batch),
            ("small_batch", self.small_batch),
            ("late", self.late),
            ("clock_jump", self.clock_jump),
            ("clock_back", self.clock_back),
            ("clock_freeze", self.clock_freeze),
            ("panic", self.panic),
            ("stall", self.stall),
            ("blocking_accept", self.blocking_accept),
        ]
    }

    /// About half of the faults, each at a rate of its own: what finds more than all of them at
    /// once (Groce et al., "Swarm Testing", ISSTA 2012).
    pub(super) fn random(random: &mut Random) -> Self {
        let mut rate = |most: u64| {
            let on = random.below(2) == 0;
            // Rare faults and frequent ones find different things.
            let most = random.below(most);
            let rate = 1 + random.below(1 + most);
            if on { rate as u16 } else { 0 }
        };
        Self {
            short_read: rate(500),
            short_write: rate(500),
            interrupted: rate(200),
            would_block: rate(200),
            accept_error: rate(200),
            stream_error: rate(20),
            other_error: rate(100),
            spurious_event: rate(300),
            split_event: rate(500),
            missing_hint: rate(500),
            reordered: rate(500),
            full_batch: rate(50),
            small_batch: rate(300),
            late: rate(10),
            clock_jump: rate(3),
            clock_back: rate(20),
            clock_freeze: rate(20),
            panic: rate(10),
            stall: rate(10),
            blocking_accept: rate(200),
        }
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self::NONE
    }
}

/// The longest that a process is not scheduled.
pub(super) const LATE_MAX: Duration = Duration::from_secs(10);

/// How far the clock jumps.
pub(super) const JUMP: Duration = Duration::from_secs(3_600);

/// How far the clock is set back at most.
pub(super) const BACK_MAX: Duration = Duration::from_millis(20);

/// How far it is set back in all before that ends.
pub(super) const BACK_IN_ALL: Duration = Duration::from_secs(1);

/// The longest that the clock stands still.
pub(super) const FREEZE_MAX: Duration = Duration::from_secs(1);

/// The longest that a callback takes.
pub(super) const STALL_MAX: Duration = Duration::from_secs(2);

/// The shortest and the longest wait in an accept on a listener that blocks, in milliseconds.
pub(super) const ACCEPT_WAIT_MILLIS: (u64, u64) = (1, 4);
