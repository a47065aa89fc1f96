//! The marks of a connection, in two words, and every mask over them.
//!
//! The hot word lies where each message finds it. The cold one has what only few connections, or a
//! connection that ends, need.

macro_rules! flags {
    ($(#[$about:meta])* $word:ident: $bits:ty { $($(#[$doc:meta])* $name:ident = $bit:expr;)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
        pub(crate) struct $word($bits);

        #[allow(dead_code, reason = "not every word needs all of them")]
        impl $word {
            $($(#[$doc])* pub(crate) const $name: Self = Self(1 << $bit);)*

            /// Whether any of `flags` is set.
            #[inline]
            pub(crate) const fn has(self, flags: Self) -> bool {
                self.0 & flags.0 != 0
            }

            #[inline]
            pub(crate) const fn insert(&mut self, flags: Self) {
                self.0 |= flags.0;
            }

            #[inline]
            pub(crate) const fn remove(&mut self, flags: Self) {
                self.0 &= !flags.0;
            }

            pub(crate) const fn set(&mut self, flags: Self, on: bool) {
                if on {
                    self.insert(flags);
                } else {
                    self.remove(flags);
                }
            }

            /// Removes `flags`, and returns whether any of them was set.
            pub(crate) const fn take(&mut self, flags: Self) -> bool {
                let had = self.has(flags);
                self.remove(flags);
                had
            }

            #[must_use]
            pub(crate) const fn and(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        // No two marks share a bit.
        const _: () = {
            let mut seen: $bits = 0;
            $(
                assert!(seen & $word::$name.0 == 0);
                seen |= $word::$name.0;
            )*
            let _ = seen;
        };
    };
}

flags! {
    /// The marks that messages test and change. Those that the choice of deadlines depends on come
    /// first: they are the low bits of [`DeadlineInputs`](crate::core::deadlines::DeadlineInputs).
    Flags: u32 {
        /// A byte has been read.
        RECEIVED = 0;
        /// Part of a request is here.
        RECEIVING = 1;
        /// The handler paused reading.
        PAUSED = 2;
        /// The connection is not read because the sink it feeds is congested.
        THROTTLED = 3;
        /// The connection is not read because it is congested.
        PAUSED_BY_OUTPUT = 4;
        /// The peer's FIN has been read.
        EOF = 5;
        /// Our FIN has been sent.
        FIN = 6;
        /// The application passes bytes through.
        TUNNEL = 7;
        /// The lifetime has a clock.
        HAS_LIFETIME = 8;
        /// The application set a timer.
        HAS_TIMER = 9;
        /// The peer dialled us.
        INBOUND = 10;
        /// Requests wait for a reply: the peer's for ours, or ours for the peer's.
        OWED = 11;
        /// Output is queued.
        QUEUED = 12;
        /// The socket may have bytes, a FIN or an error for us.
        READ_READY = 13;
        /// The socket may take bytes.
        WRITE_READY = 14;
        /// An event said that the peer is gone: a short read has not drained the socket, the FIN or
        /// the error is still to be read.
        HANGUP = 15;
        /// A byte has been written by the handler.
        WROTE = 16;
        /// The handler said that what it consumed was part of a request.
        EXPECTS_MORE_INPUT = 17;
        /// `on_data` is due without new bytes: the handler yielded, or reading resumed.
        DATA_DUE = 18;
        /// `on_drained` is due.
        DRAINED = 19;
        /// The handler wants our FIN sent after the queue.
        SHUTDOWN_WRITE = 20;
        /// The handler counts requests itself.
        COUNTS_REQUESTS = 21;
        /// The connection is in the ready queue.
        QUEUED_READY = 22;
        /// The connection is in the list of those that callbacks of others asked something of.
        DIRTY = 23;
        /// A callback asked for something that must be acted on when it returns.
        ACTION_DUE = 24;
        /// A deadline was set or changed by hand.
        REARM = 25;
        /// The next request boundary ends the connection: it has reached its greatest age, or its
        /// handler was answered that this request is the last.
        RETIRING = 26;
        /// The connection is in the list of those that are released and whose record is to be removed.
        REAPED = 27;
        /// What arrives is not for the handler: the connection is relayed, or idle in its pool.
        DIVERTED = 28;
        /// More than the high watermark was queued, and since then never as little as the low one.
        CONGESTED = 29;
        /// An end was asked for and has not begun.
        CLOSE_REQUESTED = 30;
        /// `on_data` waits for a length of input, or for input to be skipped.
        INPUT_AWAITED = 31;
    }
}

flags! {
    /// The marks that no message tests.
    ColdFlags: u16 {
        /// Others feed this connection.
        IS_SINK = 0;
        /// The connection ends with a FIN and reads on until the peer's.
        LINGERING = 1;
        /// The socket is to be reset rather than closed.
        RESET = 2;
        /// `on_closing` runs, and may write a last reply.
        FINAL_REPLY = 3;
        /// The limits on connections leave it out.
        EXEMPT = 4;
        /// A write failed; what the peer had sent before is still to be read. A relayed connection
        /// keeps the mark until it ends.
        BROKEN = 5;
        /// The connection is a pool's.
        POOLED = 6;
        /// The connection has asked a pool for another.
        USES_POOLS = 7;
        /// Its timeouts were set by hand.
        RETIMED = 8;
        /// The connection was dialled to an endpoint.
        OF_ENDPOINT = 9;
        /// The connection checks an endpoint.
        CHECK = 10;
        /// The reactor passes on what it reads to another connection.
        RELAYED = 11;
        /// The connection was given back to its pool in a callback of its own, and is judged when that
        /// is settled.
        RETURNED = 12;
    }
}

impl Flags {
    pub(crate) const NONE: Self = Self(0);

    /// What the choice of deadlines depends on.
    pub(crate) const DEADLINE_INPUTS: Self = Self((1 << Self::DEADLINE_BITS) - 1);

    /// How many they are.
    pub(crate) const DEADLINE_BITS: u32 = 13;

    /// Input is left in the socket on purpose.
    pub(crate) const READING_STOPPED: Self =
        Self::PAUSED.and(Self::THROTTLED).and(Self::PAUSED_BY_OUTPUT);

    /// A message that has come is not for the handler now: the connection is congested or not read, its
    /// input goes elsewhere, or is to be skipped or awaited.
    pub(crate) const UNSERVED: Self =
        Self::READING_STOPPED.and(Self::CONGESTED).and(Self::DIVERTED).and(Self::INPUT_AWAITED);

    /// An error of the socket is not learned by reading: reading is stopped, or the FIN has been read.
    pub(crate) const UNREAD_ERROR: Self = Self::READING_STOPPED.and(Self::EOF);

    /// Whatever is ready, the connection is not to be read now: reading is stopped, there is nothing
    /// more to read, or something else comes first.
    pub(crate) const NOT_READ: Self = Self::READING_STOPPED
        .and(Self::EOF)
        .and(Self::DATA_DUE)
        .and(Self::DRAINED)
        .and(Self::DIVERTED)
        .and(Self::ACTION_DUE);

    /// Something is to be done or ended for the connection at the end of its callback.
    pub(crate) const TO_ACT_ON: Self =
        Self::ACTION_DUE.and(Self::EOF).and(Self::SHUTDOWN_WRITE).and(Self::RETIRING);

    /// Something is asked of the connection, or may be left to do.
    pub(crate) const UNDONE: Self = Self::TO_ACT_ON
        .and(Self::READ_READY)
        .and(Self::DRAINED)
        .and(Self::DATA_DUE)
        .and(Self::REARM)
        .and(Self::QUEUED);

    /// The connection is not quiet: something is asked of it, queued, owed, or left to do.
    pub(crate) const BUSY: Self = Self::UNDONE.and(Self::OWED);

    /// Settling does more for the connection than to choose its deadlines: it is busy, or was given back
    /// to its pool.
    pub(crate) const UNSETTLED: Self = Self::BUSY.and(Self::DIVERTED);

    /// A callback is due that needs neither new bytes nor room.
    pub(crate) const CALLBACK_DUE: Self = Self::DRAINED.and(Self::DATA_DUE);

    /// The socket may have something to read.
    pub(crate) const MAY_READ: Self = Self::READ_READY.and(Self::HANGUP);

    /// What is known of the readiness of a socket.
    pub(crate) const READINESS: Self = Self::MAY_READ.and(Self::WRITE_READY);

    /// No more is written after what is queued.
    pub(crate) const FINISHED: Self = Self::SHUTDOWN_WRITE.and(Self::FIN);

    /// A connection that is given back to its pool cannot be used again: no more is written, input is
    /// waited for, or its end is announced.
    pub(crate) const NOT_REUSABLE: Self = Self::SHUTDOWN_WRITE
        .and(Self::FIN)
        .and(Self::EOF)
        .and(Self::INPUT_AWAITED)
        .and(Self::RETIRING);

    /// Requests are not counted by what the handler consumes.
    pub(crate) const NOT_COUNTED: Self = Self::COUNTS_REQUESTS.and(Self::TUNNEL);

    /// The marks of what an event says a socket is ready for: bit 0 of `ready` stands for reading,
    /// bit 1 for writing, bit 2 for a hang-up.
    #[inline]
    pub(crate) const fn of_event(ready: u8) -> Self {
        Self((ready & 7) as u32 * Self::READ_READY.0)
    }

    #[cfg(test)]
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits of those that the choice of deadlines depends on.
    #[inline]
    pub(crate) const fn deadline_inputs(self) -> u16 {
        (self.0 & Self::DEADLINE_INPUTS.0) as u16
    }
}

impl ColdFlags {
    /// It is a pool's, or has asked one for a connection.
    pub(crate) const IN_POOLS: Self = Self::POOLED.and(Self::USES_POOLS);

    /// Its end says something of an endpoint.
    pub(crate) const AT_ENDPOINT: Self = Self::OF_ENDPOINT.and(Self::CHECK);

    /// Others may name it.
    pub(crate) const TIES: Self =
        Self::IN_POOLS.and(Self::AT_ENDPOINT).and(Self::IS_SINK).and(Self::RELAYED);
}

const _: () = {
    assert!(Flags::of_event(1).0 == Flags::READ_READY.0);
    assert!(Flags::of_event(2).0 == Flags::WRITE_READY.0);
    assert!(Flags::of_event(4).0 == Flags::HANGUP.0);
    assert!(Flags::QUEUED.0 << 1 == Flags::DEADLINE_INPUTS.0 + 1);
};
