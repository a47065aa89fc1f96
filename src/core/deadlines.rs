//! Which deadlines run for a connection, and when the earliest is due.
//!
//! Traffic only stores when it happened; a deadline moves by itself, because it is computed from
//! that when its wheel entry comes up. The wheel learns only of deadlines that begin to run.

use crate::close::Timeout;
use crate::config::Timeouts;
use crate::core::flags::Flags;
use crate::core::lifecycle::State;
use crate::time::{Instant, nanos, share_of};

/// Defines every deadline once: its name; its label in counters, which is that of its setting where
/// it has one; the reason it gives a connection that it ends, if it ends one; whether input that
/// waits in the socket would put it off; the clock it runs by; the traffic that starts it anew.
macro_rules! deadlines {
    ($(
        $(#[$doc:meta])*
        $name:ident: $label:literal, $timeout:expr, $waits_for_input:literal, clock $clock:literal,
            $traffic:ident;
    )*) => {
        /// What a connection can be late with. Of several that came due together the first one here
        /// acts.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(u8)]
        pub(crate) enum Deadline {
            $($(#[$doc])* $name,)*
        }

        impl Deadline {
            pub(crate) const ALL: [Self; [$($label),*].len()] = [$(Self::$name,)*];

            /// The reason it gives a connection that it ends, if it ends one.
            pub(crate) const fn timeout(self) -> Option<Timeout> {
                const TIMEOUTS: [Option<Timeout>; Deadline::ALL.len()] = [$($timeout,)*];
                TIMEOUTS[self as usize]
            }

            /// Its name in counters: that of its setting, where it has one.
            pub(crate) const fn label(self) -> &'static str {
                const LABELS: [&str; Deadline::ALL.len()] = [$($label,)*];
                LABELS[self as usize]
            }

            /// Whether input that waits in the socket would put it off.
            pub(crate) const fn waits_for_input(self) -> bool {
                const WAITS: [bool; Deadline::ALL.len()] = [$($waits_for_input,)*];
                WAITS[self as usize]
            }

            /// The clock it runs by. Deadlines of different states share one, because a record is
            /// what an idle connection costs.
            #[inline]
            const fn clock(self) -> usize {
                const CLOCK_OF: [u8; Deadline::ALL.len()] = [$($clock,)*];
                CLOCK_OF[self as usize] as usize
            }

            /// The traffic that starts it anew.
            const fn traffic(self) -> Traffic {
                const TRAFFIC_OF: [Traffic; Deadline::ALL.len()] = [$(Traffic::$traffic,)*];
                TRAFFIC_OF[self as usize]
            }
        }
    };
}

deadlines! {
    Connect: "connect", Some(Timeout::Connect), false, clock 0, None;
    ConnectAttempt: "connect_attempt", Some(Timeout::Connect), false, clock 1, None;
    FirstByte: "first_byte", Some(Timeout::FirstByte), true, clock 2, None;
    Request: "request", Some(Timeout::Request), true, clock 0, None;
    Read: "read", Some(Timeout::Read), true, clock 1, Read;
    Response: "response", Some(Timeout::Response), false, clock 3, Written;
    Write: "write", Some(Timeout::Write), false, clock 3, None;
    Idle: "idle", Some(Timeout::Idle), true, clock 2, Any;
    HalfClosed: "half_closed", Some(Timeout::HalfClosed), true, clock 3, Any;
    Flush: "flush", None, false, clock 2, None;
    Linger: "linger", None, false, clock 0, None;
    LingerRead: "linger_read", None, true, clock 1, Read;
    Tunnel: "tunnel", Some(Timeout::Tunnel), true, clock 2, Any;
    Lifetime: "lifetime", Some(Timeout::Lifetime), false, clock 4, None;
    Timer: "timer", None, false, clock 5, None;
    /// Not a deadline of its own: the next check of what is left of the output.
    ProgressCheck: "progress_check", None, false, clock 6, None;
}

/// The deadlines of which one runs in every state.
#[cfg(feature = "sim")]
pub(crate) const BOUNDING: [Deadline; 11] = [
    Deadline::Connect,
    Deadline::FirstByte,
    Deadline::Request,
    Deadline::Read,
    Deadline::Response,
    Deadline::Write,
    Deadline::Idle,
    Deadline::HalfClosed,
    Deadline::Flush,
    Deadline::Linger,
    Deadline::Tunnel,
];

/// Bytes that start a deadline anew.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Traffic {
    None,
    Read,
    Written,
    Any,
}

/// How many clocks there are.
const CLOCKS: usize = 7;

const _: () = {
    let mut at = 0;
    while at < Deadline::ALL.len() {
        assert!(Deadline::ALL[at].clock() < CLOCKS, "there is no such clock");
        at += 1;
    }
};

/// The least time between two checks of what left of the output: the wheel makes a tick of it.
const PAUSE_LEAST: u64 = 1_000_000;

/// The pause before the next check of what a peer has acknowledged, `elapsed` nanoseconds after the
/// first, where it counts as stuck after `patience`: a sixty-fourth of the time elapsed, between a
/// hundred-and-twenty-eighth and a sixteenth of the patience. So the checks of one slow reader cost
/// a bounded share of the time whatever the timeout is, and progress that ends is dated to within a
/// sixteenth of it.
pub(crate) const fn check_pause(elapsed: u64, patience: u64) -> u64 {
    const LEAST_MAX: u64 = 1_000_000_000;
    const MOST_MAX: u64 = 60_000_000_000;
    let least = least_of(patience / 128, LEAST_MAX);
    let most = least_of(patience / 16, MOST_MAX);
    let pause = least_of(elapsed / 64, most);
    let pause = if pause < least { least } else { pause };
    if pause < PAUSE_LEAST { PAUSE_LEAST } else { pause }
}

const fn least_of(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}

/// A set of deadlines.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Set(u32);

impl Set {
    pub(crate) const EMPTY: Self = Self(0);

    pub(crate) const fn of(deadline: Deadline) -> Self {
        Self(1 << deadline as u8)
    }

    #[must_use]
    const fn and(self, deadline: Deadline) -> Self {
        self.with(deadline, true)
    }

    #[must_use]
    const fn join(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub(crate) const fn with(self, deadline: Deadline, condition: bool) -> Self {
        Self(self.0 | ((condition as u32) << deadline as u8))
    }

    pub(crate) const fn contains(self, deadline: Deadline) -> bool {
        self.0 & (1 << deadline as u8) != 0
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    #[inline]
    fn iter(self) -> impl Iterator<Item = Deadline> {
        let mut bits = self.0;
        std::iter::from_fn(move || {
            // 32 if no bit is left, and there is no such deadline.
            let lowest = bits.trailing_zeros() as usize;
            bits &= bits.wrapping_sub(1);
            Deadline::ALL.get(lowest).copied()
        })
    }
}

/// All that the choice of deadlines depends on, in one word: comparing two shows whether anything
/// changed. The low bits are those of a record's flags.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct DeadlineInputs(u16);

/// Inputs that no connection has, so that its first ones are a change.
impl Default for DeadlineInputs {
    fn default() -> Self {
        Self(u16::MAX)
    }
}

impl DeadlineInputs {
    const STATE_SHIFT: u32 = Flags::DEADLINE_BITS;

    #[inline]
    pub(crate) const fn new(state: State, flags: Flags) -> Self {
        Self(flags.deadline_inputs() | ((state as u16) << Self::STATE_SHIFT))
    }

    /// The one deadline of a connection that waits for one thing only, with nothing else about it: for
    /// the first byte, for the reply to what was asked, or for the next request. So nearly every one
    /// is when it has been served.
    #[inline]
    pub(crate) const fn sole_deadline(self) -> Option<Deadline> {
        const fn inputs(state: State, flags: Flags) -> u16 {
            DeadlineInputs::new(state, flags).0
        }
        const HEARD: Flags = Flags::INBOUND.and(Flags::RECEIVED);
        const SILENT: u16 = inputs(State::Connected, Flags::INBOUND);
        const OWES: u16 = inputs(State::Connected, HEARD.and(Flags::OWED));
        const ASKS_FIRST: u16 = inputs(State::Connected, Flags::OWED);
        const ASKS: u16 = inputs(State::Connected, Flags::RECEIVED.and(Flags::OWED));
        const RESTS: u16 = inputs(State::Idle, HEARD);
        const RESTS_AT_FIRST: u16 = inputs(State::Idle, Flags::NONE);
        const RESTS_DIALLED: u16 = inputs(State::Idle, Flags::RECEIVED);
        match self.0 {
            RESTS | RESTS_DIALLED | RESTS_AT_FIRST => Some(Deadline::Idle),
            SILENT => Some(Deadline::FirstByte),
            OWES => Some(Deadline::Response),
            ASKS | ASKS_FIRST => Some(Deadline::Read),
            _ => None,
        }
    }

    const fn has(self, flags: Flags) -> bool {
        self.0 & flags.deadline_inputs() != 0
    }

    const fn owes(self) -> bool {
        self.has(Flags::OWED)
    }

    const fn is_queued(self) -> bool {
        self.has(Flags::QUEUED)
    }

    const fn is_state(self, state: State) -> bool {
        self.0 >> Self::STATE_SHIFT == state as u16
    }

    /// Whether no request is active: nothing is arriving, owed or waiting to leave.
    ///
    /// An inbound connection that never said a word is not at rest, it is late with its first
    /// byte; a tunnel knows no requests.
    #[inline]
    pub(crate) const fn at_rest(self) -> bool {
        const ACTIVE: u16 = Flags::RECEIVING
            .and(Flags::TUNNEL)
            .and(Flags::OWED)
            .and(Flags::QUEUED)
            .deadline_inputs();
        const HEARD: u16 = Flags::RECEIVED.and(Flags::INBOUND).deadline_inputs();
        const SILENT: u16 = Flags::INBOUND.deadline_inputs();
        self.0 & ACTIVE == 0 && self.0 & HEARD != SILENT
    }

    /// The deadlines that run. For every open or closing connection at least one of them is finite
    /// with the default timeouts, unless it is about to change state.
    #[inline]
    const fn running(self) -> Set {
        // Of an open connection mostly nothing more is to be known.
        const PLAIN: u16 = Flags::RECEIVED.and(Flags::INBOUND).deadline_inputs()
            | !0 << DeadlineInputs::STATE_SHIFT;
        const DIALLING: Set = Set::of(Deadline::Connect).and(Deadline::ConnectAttempt);
        const LINGERING: Set = Set::of(Deadline::Linger).and(Deadline::LingerRead);
        if self.is_state(State::Idle) && self.0 & !PLAIN == 0 {
            Set::of(Deadline::Idle)
        } else if self.is_state(State::Connected) || self.is_state(State::Idle) {
            self.running_open()
        } else if self.is_state(State::Closing) && self.is_queued() {
            LEAVING.and(Deadline::Flush)
        } else if self.is_state(State::Closing) && self.has(Flags::FIN) {
            LINGERING
        } else if self.is_state(State::Connecting) && !self.has(Flags::INBOUND) {
            DIALLING.with(Deadline::Timer, self.has(Flags::HAS_TIMER))
        } else {
            Set::EMPTY
        }
    }

    #[inline]
    const fn running_open(self) -> Set {
        const RECEIVING: Set = Set::of(Deadline::Request).and(Deadline::Read);
        const UNREAD: Flags = Flags::READING_STOPPED.and(Flags::EOF).and(Flags::TUNNEL);
        let paused = self.has(Flags::PAUSED.and(Flags::THROTTLED));
        let inbound = self.has(Flags::INBOUND);
        // While the application owes a reply or does not read, the peer can do nothing to move on.
        let waits_for_us = paused || (inbound && self.owes());

        let mut set = Set::EMPTY;
        if self.is_queued() {
            set = LEAVING;
        } else if waits_for_us {
            set = set.with(Deadline::Response, !self.has(Flags::TUNNEL));
        } else if self.has(Flags::EOF.and(Flags::FIN)) {
            set = Set::of(Deadline::HalfClosed);
        }
        if !self.has(UNREAD) {
            if self.has(Flags::RECEIVING) {
                set = set.join(RECEIVING);
            } else if !inbound {
                set = set.with(Deadline::Read, self.owes());
            }
            set = set.with(Deadline::FirstByte, inbound && !self.has(Flags::RECEIVED));
        }
        if self.has(Flags::TUNNEL.and(Flags::HAS_LIFETIME).and(Flags::HAS_TIMER)) {
            set = set
                .with(Deadline::Tunnel, self.has(Flags::TUNNEL))
                .with(Deadline::Lifetime, self.has(Flags::HAS_LIFETIME))
                .with(Deadline::Timer, self.has(Flags::HAS_TIMER));
        }
        set.with(Deadline::Idle, self.is_state(State::Idle) && self.at_rest() && !paused)
    }
}

/// What runs while output is queued.
const LEAVING: Set = Set::of(Deadline::Write).and(Deadline::ProgressCheck);

/// Timeouts in nanoseconds, by deadline; `u64::MAX` is off.
#[derive(Clone, Debug)]
pub(crate) struct Durations {
    of: [u64; Deadline::ALL.len()],
    /// How long a connection may be idle, and a tunnel silent. Where that is longer than the write
    /// timeout, or for ever, the deadline comes earlier to check what is unacknowledged.
    idle: u64,
    tunnel: u64,
    lifetime: u64,
    /// Bytes per second of a request that is not whole in time; zero if none is given more.
    request_rate: u64,
    /// How long an idle connection has to answer a ping; zero if it is not pinged.
    ping: u64,
    /// How long an attempt of a dial has no other beside it.
    connect_stagger: u64,
}

impl Durations {
    pub(crate) fn new(timeouts: &Timeouts) -> Self {
        // Whichever comes first: the ping, or the end.
        let idle = period(timeouts.idle).min(period(timeouts.ping_after));
        let (tunnel, write) = (period(timeouts.tunnel), period(timeouts.write));
        let of = Deadline::ALL.map(|deadline| match deadline {
            Deadline::Connect => period(timeouts.connect),
            Deadline::ConnectAttempt => period(timeouts.connect_attempt),
            Deadline::FirstByte => period(timeouts.first_byte),
            Deadline::Request => period(timeouts.request),
            Deadline::Read => period(timeouts.read),
            Deadline::Response => period(timeouts.response),
            Deadline::Write => write,
            Deadline::Idle if idle == u64::MAX => write,
            Deadline::Idle => idle,
            Deadline::HalfClosed => period(timeouts.half_closed),
            Deadline::Flush => period(timeouts.flush),
            Deadline::Linger => period(timeouts.linger),
            Deadline::LingerRead => period(timeouts.linger_read),
            Deadline::Tunnel => tunnel.min(write),
            // The clocks of these say when they are due, not since when they run.
            Deadline::Lifetime | Deadline::Timer => 0,
            // Without a write deadline there is nothing to check for.
            Deadline::ProgressCheck => timeouts.write.map_or(u64::MAX, |_| 0),
        });
        let pings = period(timeouts.ping_after) < period(timeouts.idle);
        Self {
            of,
            idle,
            tunnel,
            lifetime: period(timeouts.lifetime),
            request_rate: timeouts.request_rate.unwrap_or(0),
            ping: if pings { period(timeouts.ping) } else { 0 },
            connect_stagger: period(timeouts.connect_stagger),
        }
    }

    pub(crate) const fn of(&self, deadline: Deadline) -> u64 {
        self.of[deadline as usize]
    }

    /// How long it is from the clock of `deadline` to the end that it brings: longer than its
    /// period where it also comes to check what is unacknowledged.
    pub(crate) const fn total(&self, deadline: Deadline) -> u64 {
        match deadline {
            Deadline::Idle => self.idle,
            Deadline::Tunnel => self.tunnel,
            deadline => self.of(deadline),
        }
    }

    /// How long an end by `deadline` waits for a peer that acknowledges nothing more: the write
    /// timeout, or where that is off as long as the deadline itself.
    pub(crate) const fn delivery(&self, deadline: Deadline) -> u64 {
        let write = self.of(Deadline::Write);
        if write == u64::MAX { self.total(deadline) } else { write }
    }

    /// The rate at which a request must go on arriving that is not whole in time.
    pub(crate) const fn request_rate(&self) -> Option<u64> {
        if self.request_rate == 0 { None } else { Some(self.request_rate) }
    }

    /// How long an idle connection has to answer a ping, if it is pinged.
    pub(crate) const fn ping(&self) -> Option<u64> {
        if self.ping == 0 { None } else { Some(self.ping) }
    }

    /// How long an attempt of a dial has no other beside it; `u64::MAX` is until it has failed.
    pub(crate) const fn connect_stagger(&self) -> u64 {
        self.connect_stagger
    }

    /// The greatest age, shortened by up to a quarter: how much of it `random` says. `None` if it
    /// is off.
    #[inline]
    pub(crate) fn lifetime(&self, random: impl FnOnce() -> u64) -> Option<u64> {
        (self.lifetime < u64::MAX).then(|| self.shortened_lifetime(random()))
    }

    fn shortened_lifetime(&self, random: u64) -> u64 {
        let longest = self.lifetime;
        longest - share_of(longest / 4, random)
    }
}

fn period(timeout: Option<std::time::Duration>) -> u64 {
    timeout.map_or(u64::MAX, nanos)
}

/// Since when each deadline of one connection runs.
///
/// What a message changes comes last: it is the beginning of the record's hot line.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub(crate) struct DeadlineClocks {
    since: [Instant; CLOCKS],
    read_at: Instant,
    written_at: Instant,
    inputs: DeadlineInputs,
    /// The request deadline stands still: its clock holds the nanoseconds it had run.
    request_stopped: bool,
    /// The deadlines that run.
    running: Set,
}

impl DeadlineClocks {
    /// Where the part begins that a message changes.
    pub(crate) const HOT: usize = std::mem::offset_of!(Self, read_at);

    /// Lets nothing run, as for a new connection.
    pub(crate) fn reset(&mut self) {
        self.inputs = DeadlineInputs::default();
        self.running = Set::EMPTY;
        self.request_stopped = false;
    }

    /// The inputs of the latest update.
    #[inline]
    pub(crate) const fn inputs(&self) -> DeadlineInputs {
        self.inputs
    }

    /// The deadlines that run.
    const fn running(&self) -> Set {
        self.running
    }

    /// Lets exactly the deadlines that `inputs` call for run from here on, and returns those that
    /// began to.
    pub(crate) fn update(&mut self, inputs: DeadlineInputs, now: Instant) -> Set {
        if inputs == self.inputs {
            return Set::EMPTY;
        }
        let before = self.running();
        self.inputs = inputs;
        self.running = inputs.running();
        self.change(before, self.running(), inputs.has(Flags::RECEIVING), now)
    }

    /// Lets only `deadline` run, from here on unless it runs: [`DeadlineClocks::update`] for inputs that
    /// call for it [alone](DeadlineInputs::sole_deadline). Returns whether it began to.
    #[inline]
    pub(crate) fn run_only(
        &mut self,
        deadline: Deadline,
        inputs: DeadlineInputs,
        now: Instant,
    ) -> bool {
        let before = self.running;
        self.inputs = inputs;
        self.running = Set::of(deadline);
        self.request_stopped = false;
        let begins = !before.contains(deadline);
        if begins {
            self.set(deadline, now);
        }
        begins
    }

    fn change(&mut self, before: Set, running: Set, receiving: bool, now: Instant) -> Set {
        let began = running.without(before);
        let ended = before.without(running);
        // A request that we do not read cannot arrive: its clock stands still meanwhile.
        if ended.contains(Deadline::Request) && receiving {
            let elapsed = now.nanos_since(self.since(Deadline::Request));
            self.set(Deadline::Request, Instant::from_nanos(elapsed));
            self.request_stopped = true;
        }
        self.request_stopped &= receiving;
        let resumed = (self.request_stopped && began.contains(Deadline::Request))
            .then(|| self.since(Deadline::Request).as_nanos());
        // The lifetime and the timer have their clocks set by hand.
        const BY_HAND: Set = Set::of(Deadline::Lifetime).and(Deadline::Timer);
        for deadline in began.without(BY_HAND).iter() {
            self.set(deadline, now);
        }
        if began.contains(Deadline::ProgressCheck) {
            self.set(Deadline::ProgressCheck, now.after(PAUSE_LEAST));
        }
        if let Some(elapsed) = resumed {
            self.request_stopped = false;
            let since = now.as_nanos().saturating_sub(elapsed);
            self.set(Deadline::Request, Instant::from_nanos(since));
        }
        began
    }

    /// Notes that bytes came in.
    #[inline]
    pub(crate) const fn touch_read(&mut self, now: Instant) {
        self.read_at = now;
    }

    /// Notes that the kernel took bytes.
    #[inline]
    pub(crate) const fn touch_write(&mut self, now: Instant) {
        self.written_at = now;
    }

    /// When the kernel last took bytes.
    pub(crate) const fn written_at(&self) -> Instant {
        self.written_at
    }

    /// Lets `deadline` run since `instant`; for lifetime, timer and progress check, until it. No
    /// deadline that traffic starts anew runs since a time to come.
    #[inline]
    pub(crate) const fn set(&mut self, deadline: Deadline, instant: Instant) {
        self.since[deadline.clock()] = instant;
    }

    /// The deadlines that run and when each is due, those that never are left out.
    pub(crate) fn upcoming(
        &self,
        durations: &Durations,
    ) -> impl Iterator<Item = (Instant, Deadline)> {
        let all = self.running().iter().map(|deadline| (self.due(deadline, durations), deadline));
        all.filter(|(due, _)| *due < Instant::FAR_FUTURE)
    }

    /// Starts `deadline` anew, if it runs.
    pub(crate) const fn restart(&mut self, deadline: Deadline, now: Instant) {
        if self.running().contains(deadline) {
            self.set(deadline, now);
        }
    }

    /// Since when `deadline` runs. Traffic only stores its time: a request that begins and ends
    /// between two updates leaves no trace in the inputs, and the idle time begins anew all the
    /// same.
    #[inline]
    pub(crate) fn since(&self, deadline: Deadline) -> Instant {
        let since = self.since[deadline.clock()];
        match deadline.traffic() {
            Traffic::None => since,
            Traffic::Read => since.max(self.read_at),
            // One reply of several that are owed: the wait for the next begins.
            Traffic::Written => since.max(self.written_at),
            Traffic::Any => since.max(self.read_at).max(self.written_at),
        }
    }

    /// Puts the next check of queued output off, by [`check_pause`].
    pub(crate) const fn check_again(&mut self, queued_at: Instant, write: u64, now: Instant) {
        let pause = check_pause(now.nanos_since(queued_at), write);
        self.set(Deadline::ProgressCheck, now.after(pause));
    }

    /// Gives `deadline` more time.
    pub(crate) fn extend(&mut self, deadline: Deadline, nanos: u64) {
        self.set(deadline, self.since(deadline).after(nanos));
    }

    /// The next request begins: its clock starts anew.
    pub(crate) const fn restart_request(&mut self, now: Instant) {
        self.set(Deadline::Request, now);
        self.request_stopped = false;
    }

    #[inline]
    pub(crate) fn due(&self, deadline: Deadline, durations: &Durations) -> Instant {
        self.since(deadline).after(durations.of(deadline))
    }

    #[cfg(test)]
    pub(crate) const fn runs(&self, deadline: Deadline) -> bool {
        self.running().contains(deadline)
    }

    /// The earliest of those in `set`.
    pub(crate) fn earliest(&self, set: Set, durations: &Durations) -> Option<Instant> {
        set.iter()
            .map(|deadline| self.due(deadline, durations))
            .filter(|due| *due < Instant::FAR_FUTURE)
            .min()
    }

    /// The earliest of those that run.
    pub(crate) fn next(&self, durations: &Durations) -> Option<Instant> {
        self.earliest(self.running(), durations)
    }

    /// Those that are due by `now`, and since when, those in `served` left out.
    pub(crate) fn all_due(
        &self,
        durations: &Durations,
        now: Instant,
        served: Set,
    ) -> impl Iterator<Item = (Instant, Deadline)> {
        self.running().without(served).iter().filter_map(move |deadline| {
            let due = self.due(deadline, durations);
            (due <= now).then_some((due, deadline))
        })
    }

    /// The one that came due first by `now`, and when, those in `served` left out. If several came
    /// due together the application's timer is the first, as it may do what the others wait for;
    /// then their order decides.
    pub(crate) fn first_due(
        &self,
        durations: &Durations,
        now: Instant,
        served: Set,
    ) -> Option<(Instant, Deadline)> {
        let due = self.all_due(durations, now, served);
        due.min_by_key(|(due, deadline)| (*due, *deadline != Deadline::Timer, *deadline as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const STATES: [State; 5] =
        [State::Connecting, State::Connected, State::Idle, State::Closing, State::Closed];

    /// Every combination of inputs.
    fn all_inputs() -> impl Iterator<Item = DeadlineInputs> {
        STATES.into_iter().flat_map(|state| {
            (0..1_u32 << Flags::DEADLINE_BITS)
                .map(move |bits| DeadlineInputs::new(state, Flags::from_bits(bits)))
        })
    }

    /// What the reactor never lets stand at the end of a turn.
    fn is_settled(inputs: &DeadlineInputs) -> bool {
        let has = |flags| inputs.has(flags);
        let open = inputs.is_state(State::Connected) || inputs.is_state(State::Idle);
        let consistent = (!has(Flags::RECEIVING) || has(Flags::RECEIVED))
            && (!has(Flags::PAUSED_BY_OUTPUT) || inputs.is_queued())
            && (!inputs.is_state(State::Connecting) || !has(Flags::INBOUND))
            && (!inputs.is_state(State::Closing) || inputs.is_queued() || has(Flags::FIN));
        let rests = inputs.is_state(State::Idle);
        // The peer's EOF closes an inbound connection that owes nothing, and any outbound one.
        let ends = has(Flags::EOF)
            && !has(Flags::TUNNEL)
            && (!has(Flags::INBOUND) || !(inputs.owes() || inputs.is_queued()));
        consistent && (!open || (rests == inputs.at_rest() && !ends))
    }

    #[test]
    fn every_settled_connection_has_a_finite_deadline_by_default() {
        let durations = Durations::new(&Timeouts::default());
        let mut settled = 0;
        for inputs in all_inputs().filter(is_settled) {
            let mut clocks = DeadlineClocks::default();
            const BY_HAND: u16 = Flags::HAS_TIMER.and(Flags::HAS_LIFETIME).deadline_inputs();
            clocks.update(DeadlineInputs(inputs.0 & !BY_HAND), Instant::EPOCH);
            let next = clocks.next(&durations);
            assert_eq!(next.is_some(), !inputs.is_state(State::Closed), "{inputs:?}");
            settled += 1;
        }
        assert!(settled > 1_000, "{settled}");
    }

    #[test]
    fn each_deadline_runs_only_where_it_may() {
        for inputs in all_inputs() {
            let set = inputs.running();
            let is = |flags| inputs.has(flags);
            let has = |deadline| set.contains(deadline);
            let open = inputs.is_state(State::Connected) || inputs.is_state(State::Idle);
            let closing = inputs.is_state(State::Closing);
            let held = is(Flags::READING_STOPPED.and(Flags::EOF));
            assert!(!has(Deadline::Connect) || inputs.is_state(State::Connecting));
            assert!(!has(Deadline::FirstByte) || (open && !held && !is(Flags::RECEIVED)));
            assert!(!has(Deadline::Request) || (open && !held && is(Flags::RECEIVING)));
            assert!(!has(Deadline::Read) || (open && !held));
            assert!(!has(Deadline::Response) || (open && !inputs.is_queued()));
            assert!(!has(Deadline::Write) || inputs.is_queued());
            assert_eq!(has(Deadline::Write), has(Deadline::ProgressCheck));
            assert!(!has(Deadline::Idle) || inputs.is_state(State::Idle));
            assert!(!has(Deadline::HalfClosed) || (open && is(Flags::EOF.and(Flags::FIN))));
            assert!(!has(Deadline::Flush) || (closing && inputs.is_queued()));
            assert!(!has(Deadline::Linger) || (closing && is(Flags::FIN)));
            assert!(!has(Deadline::Timer) || is(Flags::HAS_TIMER));
            if is(Flags::TUNNEL) && open {
                for instead in
                    [Deadline::Request, Deadline::Read, Deadline::Response, Deadline::FirstByte]
                {
                    assert!(!has(instead), "{inputs:?}");
                }
                assert!(has(Deadline::Tunnel));
            }
            if !open {
                assert!(!has(Deadline::Lifetime) && !has(Deadline::Tunnel));
            }
        }
    }

    #[test]
    fn every_deadline_runs_somewhere() {
        for deadline in Deadline::ALL {
            let runs = all_inputs().any(|inputs| inputs.running().contains(deadline));
            assert!(runs, "{deadline:?}");
        }
    }

    #[test]
    fn no_two_deadlines_that_run_share_a_clock() {
        for inputs in all_inputs() {
            let set = inputs.running();
            let clocks: Vec<_> = set.iter().map(Deadline::clock).collect();
            let distinct: std::collections::BTreeSet<_> = clocks.iter().collect();
            assert_eq!(clocks.len(), distinct.len(), "{inputs:?}");
        }
    }

    #[test]
    fn a_tie_of_request_and_read_is_the_requests() {
        let position = |deadline| Deadline::ALL.iter().position(|d| *d == deadline);
        assert!(position(Deadline::Request) < position(Deadline::Read));
        for (index, deadline) in Deadline::ALL.into_iter().enumerate() {
            assert_eq!(deadline as usize, index);
        }
    }

    const fn connected(flags: Flags) -> DeadlineInputs {
        let flags = flags.and(Flags::INBOUND).and(Flags::RECEIVED);
        DeadlineInputs::new(State::Connected, flags)
    }

    const RECEIVING: DeadlineInputs = connected(Flags::RECEIVING);
    const PAUSED: DeadlineInputs = connected(Flags::RECEIVING.and(Flags::PAUSED));

    fn at(seconds: u64) -> Instant {
        Instant::EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_dribble_extends_read_but_not_request() {
        let durations = Durations::new(&Timeouts::default());
        let mut clocks = DeadlineClocks::default();
        clocks.update(RECEIVING, at(100));
        for second in 101..129 {
            clocks.touch_read(at(second));
            clocks.update(RECEIVING, at(second));
        }
        assert_eq!(clocks.due(Deadline::Request, &durations), at(130));
        assert_eq!(clocks.due(Deadline::Read, &durations), at(158));
        assert_eq!(clocks.first_due(&durations, at(129), Set::EMPTY), None);
        let first = clocks.first_due(&durations, at(130), Set::EMPTY);
        assert_eq!(first, Some((at(130), Deadline::Request)));
    }

    #[test]
    fn the_request_clock_stands_still_while_reading_is_held() {
        let durations = Durations::new(&Timeouts::default());
        let mut clocks = DeadlineClocks::default();
        clocks.update(RECEIVING, at(100));
        clocks.update(PAUSED, at(110));
        assert!(!clocks.runs(Deadline::Request));
        clocks.update(RECEIVING, at(500));
        assert_eq!(clocks.due(Deadline::Request, &durations), at(520), "20 s were left");
        clocks.update(PAUSED, at(505));
        clocks.update(connected(Flags::PAUSED), at(506));
        clocks.update(RECEIVING, at(600));
        assert_eq!(clocks.due(Deadline::Request, &durations), at(630), "a new request");
    }

    #[test]
    fn a_lifetime_loses_up_to_a_quarter() {
        assert_eq!(Durations::new(&Timeouts::default()).lifetime(|| 0), None);
        let lifetime = Some(Duration::from_nanos(400));
        let timeouts = Timeouts { lifetime, ..Timeouts::default() };
        let durations = Durations::new(&timeouts);
        assert_eq!(durations.lifetime(|| 0), Some(400));
        assert_eq!(durations.lifetime(|| u64::MAX / 2), Some(351));
        assert_eq!(durations.lifetime(|| u64::MAX), Some(301));
    }

    #[test]
    fn the_deadline_that_came_due_first_acts_and_on_a_tie_the_timer() {
        let durations = Durations::new(&Timeouts::default());
        let mut clocks = DeadlineClocks::default();
        clocks.update(connected(Flags::RECEIVING.and(Flags::HAS_TIMER)), at(100));
        let first = |clocks: &DeadlineClocks| clocks.first_due(&durations, at(200), Set::EMPTY);
        clocks.set(Deadline::Timer, at(129));
        assert_eq!(first(&clocks), Some((at(129), Deadline::Timer)));
        clocks.set(Deadline::Timer, at(130));
        assert_eq!(first(&clocks), Some((at(130), Deadline::Timer)));
        clocks.set(Deadline::Timer, at(131));
        assert_eq!(first(&clocks), Some((at(130), Deadline::Request)));
    }

    #[test]
    fn off_is_never_due() {
        let timeouts = Timeouts { request: None, read: None, ..Timeouts::default() };
        let durations = Durations::new(&timeouts);
        let mut clocks = DeadlineClocks::default();
        clocks.update(RECEIVING, at(1));
        assert_eq!(clocks.next(&durations), None);
        assert_eq!(clocks.first_due(&durations, at(1_000_000), Set::EMPTY), None);
    }
}
