//! Known bugs that a test can plant, to see that the checks of simulated runs find them.
//!
//! Without the feature `planted-bugs` none of this is compiled into anything: [`planted`] is a constant.

#![cfg_attr(not(feature = "planted-bugs"), allow(unreachable_pub))]

/// A bug.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bug {
    /// Whatever deadline runs is served whenever the wheel comes up.
    EarlyFire,
    /// An entry that came up early is not placed again.
    SkippedRearm,
    /// Work that is left is not queued.
    LostReadyFlag,
    /// An id reaches the connection that has its place now.
    DroppedGeneration,
    /// A closed connection keeps its place.
    LeakedSlot,
    /// A socket is forgotten and not closed.
    LeakedDescriptor,
    /// A hang-up ends the input, whatever waits in front of it.
    UnreadBeforeEofLost,
    /// The last byte that a short write took is sent again.
    ShortWriteDoubled,
    /// Nothing is accepted after a shortage until another connection comes.
    AcceptNotRetried,
    /// No callback says that congested output has drained.
    WatermarkEdgeLost,
    /// Input that waited for congested output to drain is not handed over behind `on_drained`.
    InputBehindDrainLost,
    /// What other threads ask for does not wake the reactor.
    LostWake,
    /// A read error is not reported.
    SwallowedReset,
    /// Work that is left is marked as queued and is not.
    UnqueuedWork,
    /// Deadlines are served a minute late, though the wheel comes up for them.
    LateFire,
    /// A process without descriptors tries to accept again and again.
    ShortageSpins,
    /// The entry of a free place is placed again each time it comes up.
    FreePlaceRearmed,
    /// However much is queued, more is taken.
    NoOutputLimit,
    /// A socket that would block is read again and again.
    EndlessReading,
    /// An end closes the socket over bytes that the peer has not acknowledged.
    TailCutOff,
    /// A connection that a rolled-back write made congested stays so.
    CongestedForEver,
    /// What `on_idle` queued and the kernel took stays accounted for.
    StaleAccount,
    /// Connections are shed for output that was not offered to the kernel yet.
    ShedUnsent,
    /// A connection over a Unix-domain socket outlives its peer while it is not read.
    GonePeerKept,
    /// A step of a turn goes on until everything is done.
    NoBudget,
    /// Of several deadlines that are due one acts that came due later.
    LaterDeadlineFirst,
    /// Alarms of one tick come in the order in which the wheel holds them.
    AlarmsUnordered,
    /// The last of many short callbacks is blamed for all of them.
    LastCallbackBlamed,
    /// Input counts as a request although the handler counts requests itself.
    InputCounted,
    /// A client at its limit is refused before the events that came before it are served.
    HastyRefusal,
    /// A full table accepts nothing until a 64th of its places is free.
    LateRoom,
    /// A reactor that fails drops its sessions without their last callbacks.
    LostSessions,
    /// A subscriber that panics unwinds through the reactor.
    UncaughtLog,
    /// The payload of a panic is dropped without a net.
    UncaughtPayload,
    /// Shared bytes are dropped without a net.
    UncaughtOwner,
    /// A connection is closed without a shutdown, which a duplicate of its descriptor hides.
    NoShutdownBeforeClose,
    /// A look-up goes on although its connection is gone.
    LookupNotCancelled,
    /// A Unix-domain dial that finds the backlog full has failed.
    DialNotRetried,
    /// The socket of an attempt to dial is not closed when another one has succeeded.
    AttemptKept,
    /// Whatever waits, a callback may post more to its own reactor.
    UnboundedOwnPosts,
    /// Closures that are left for the next turn are left to a wake-up that never comes.
    LeftTasks,
    /// The socket of an idle connection is not checked when it is leased.
    LeaseNotChecked,
    /// What waits in a pool goes on waiting when its connection has ended.
    WaitOfGoneOwner,
    /// What a connection has leased is its lease still when it has ended.
    LeaseOfGoneOwner,
    /// A connection is kept that was given back in the middle of an exchange.
    UncleanKept,
    /// What an idle connection is sent is left for the next to lease it.
    StrayInputKept,
    /// However much of its group is down or ejected, an endpoint is ejected.
    EjectionFloorIgnored,
    /// What we lack counts against the endpoint that we could not dial.
    ShortageCounts,
    /// A request is sent again although a part of its reply has come.
    ReplayedAfterReply,
    /// The end of what one side of a relay sends is not passed on.
    HalfCloseKept,
    /// One side of a relay is read whatever the other takes.
    RelayNotHeld,
    /// What is left of a read when the other side of a relay takes no more is not sent later.
    RelayedRestLost,
    /// One side of a relay ends with a failed write, whatever its peer had sent before.
    BrokenSideCut,
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug for this thread, in place of another.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
#[cfg(feature = "planted-bugs")]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is planted.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
