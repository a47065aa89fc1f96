//! What goes over a leased connection, and what is expected back.

use wheelhouse::ConnId;

use crate::reply::Head;

/// Commands of a batch, and its bytes. A batch of the least size is one command of any length.
const BATCH_COMMANDS: usize = 1_024;
const BATCH_BYTES: usize = 64 * 1_024;

/// The longest batch that the library keeps to send it again.
const REPLAY_MAX: usize = 64 * 1_024;

/// The error that a refused command gets: its code and its text.
pub(crate) type Refusal = &'static str;

/// What the reply that comes next is to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Expect {
    Plain,
    /// EXEC, DISCARD or UNWATCH: if it fails it is not known what state the connection is in.
    Ends,
    /// What Redis does not know, sent in place of a command that is refused within a transaction: the
    /// client gets this text instead.
    Refused(Refusal),
    /// A client's PING while it is subscribed.
    Pong,
    /// Our PING after a command that subscribes or unsubscribes: its reply says whether the
    /// connection is subscribed to anything, and does not go to the client.
    Probe,
}

impl Expect {
    /// Whether the client owes its connection an end of a request for it.
    pub(crate) const fn is_owed(self) -> bool {
        !matches!(self, Self::Pong | Self::Probe)
    }
}

/// What of a connection's state is its client's own, once all that was sent has been executed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Pins {
    pub(crate) transaction: bool,
    pub(crate) watched: bool,
    pub(crate) subscribed: bool,
}

impl Pins {
    pub(crate) fn any(self) -> bool {
        self != Self::default()
    }
}

/// Commands that go over a lease together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    pub(crate) expected: Vec<Expect>,
    /// The state of the connection after it.
    pub(crate) pins: Pins,
    /// It has a command that keeps the connection busy.
    pub(crate) blocks: bool,
    /// It has a command that must not be executed twice.
    pub(crate) changes: bool,
    /// The connection that it goes over counts as pinned.
    pub(crate) pinned: bool,
    /// Where the first command is that pins the connection beyond this batch.
    mark: Option<Mark>,
}

/// A place in a batch.
#[derive(Clone, Copy, Debug)]
struct Mark {
    bytes: usize,
    expected: usize,
    /// What it had taken of the input.
    taken: usize,
    pins: Pins,
    blocks: bool,
    changes: bool,
}

impl Batch {
    pub(crate) fn new(pins: Pins) -> Self {
        Self { pins, ..Self::default() }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.expected.is_empty()
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.expected.len() >= BATCH_COMMANDS || self.bytes.len() >= BATCH_BYTES
    }

    /// Whether it may be sent again if it is lost.
    pub(crate) const fn may_be_sent_again(&self) -> bool {
        !self.changes && self.bytes.len() <= REPLAY_MAX
    }

    /// Whether the connection has to be pinned for it.
    pub(crate) fn has_to_pin(&self) -> bool {
        self.blocks || self.pins.any()
    }

    /// Adds a command, which began where so much of the input was taken, and after which the
    /// connection is in that state.
    pub(crate) fn add(&mut self, bytes: &[u8], expect: Expect, taken: usize, pins: Pins) {
        if pins.any() && !self.has_to_pin() {
            self.set_mark(taken);
        } else if !pins.any() && !self.blocks {
            self.mark = None;
        }
        self.bytes.extend_from_slice(bytes);
        self.expected.push(expect);
        self.pins = pins;
    }

    /// The command that is added next keeps the connection busy.
    pub(crate) fn will_block(&mut self, taken: usize) {
        if !self.has_to_pin() {
            self.set_mark(taken);
        }
        self.blocks = true;
    }

    fn set_mark(&mut self, taken: usize) {
        let Self { pins, blocks, changes, .. } = *self;
        let (bytes, expected) = (self.bytes.len(), self.expected.len());
        self.mark = Some(Mark { bytes, expected, taken, pins, blocks, changes });
    }

    /// Takes out the first command that pins the connection beyond this batch, and all after it.
    /// Returns how much of the input is taken then.
    pub(crate) fn cut_pins(&mut self) -> usize {
        let Some(mark) = self.mark.take() else { return 0 };
        self.bytes.truncate(mark.bytes);
        self.expected.truncate(mark.expected);
        (self.pins, self.blocks, self.changes) = (mark.pins, mark.blocks, mark.changes);
        mark.taken
    }
}

/// What is going on over a leased connection.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) client: ConnId,
    /// What replies come to, in order, and how many of them have come.
    expected: Vec<Expect>,
    came: usize,
    pub(crate) pins: Pins,
    pub(crate) blocks: bool,
    /// It counts as pinned.
    pub(crate) pinned: bool,
    /// The state of the connection is not known: it must not be used again.
    pub(crate) tainted: bool,
    /// A request was begun on the leased connection.
    pub(crate) owed: bool,
    /// The client owes the end of a request for as long as it is subscribed.
    pub(crate) subscription_owed: bool,
    /// Both connections have the timeouts of one that waits.
    pub(crate) relaxed: bool,
    /// The leased connection is read no faster than the client reads.
    pub(crate) throttled: bool,
    /// The client has got part of a reply.
    pub(crate) within: bool,
    /// The reply at hand says that a transaction was aborted.
    pub(crate) aborted: bool,
    /// The client has left input.
    pub(crate) held: bool,
    /// The client sends nothing more that is served.
    pub(crate) last: bool,
    /// The lease was lost, and what was sent over it is sent again over another one.
    pub(crate) lost: bool,
}

/// What a reply means to an exchange.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Meaning {
    /// The reply to a command.
    Reply,
    /// The reply to a command; the client gets this text instead.
    Instead(Refusal),
    /// A reply that ends no request of the client.
    Other,
    /// The client cannot go on after it.
    Last,
    /// It should not have come.
    Wrong,
}

impl Exchange {
    pub(crate) fn new(client: ConnId, batch: &mut Batch, held: bool) -> Self {
        let mut exchange = Self {
            client,
            expected: Vec::new(),
            came: 0,
            pins: batch.pins,
            blocks: false,
            pinned: batch.pinned,
            tainted: false,
            owed: false,
            subscription_owed: false,
            relaxed: false,
            throttled: false,
            within: false,
            aborted: false,
            held,
            last: false,
            lost: false,
        };
        exchange.begin(batch);
        exchange
    }

    /// Goes on with another batch, when all replies to the one before have come.
    pub(crate) fn begin(&mut self, batch: &mut Batch) {
        self.expected = std::mem::take(&mut batch.expected);
        self.came = 0;
        self.pins = batch.pins;
        self.blocks = batch.blocks;
    }

    /// Whether every reply has come.
    pub(crate) const fn is_over(&self) -> bool {
        self.came == self.expected.len()
    }

    /// Whether a client's command may go over the connection, or a local reply between its replies.
    pub(crate) const fn is_at_rest(&self) -> bool {
        self.is_over() && !self.within && !self.lost
    }

    /// What has no reply.
    pub(crate) fn missing(&self) -> impl Iterator<Item = Expect> {
        self.expected.iter().skip(self.came).copied()
    }

    fn next(&self) -> Option<Expect> {
        self.expected.get(self.came).copied()
    }

    /// Whether the reply that begins like this is not for the client.
    pub(crate) fn hides(&self, head: Head) -> bool {
        match self.next() {
            Some(Expect::Refused(_)) => true,
            Some(Expect::Probe) => is_pong(head),
            _ => false,
        }
    }

    /// A reply has ended.
    pub(crate) fn note_reply(&mut self, head: Head) -> Meaning {
        if self.pins.subscribed {
            return self.note_while_subscribed(head);
        }
        let Some(expect) = self.next() else { return Meaning::Wrong };
        self.came += 1;
        match expect {
            Expect::Refused(text) => return Meaning::Instead(text),
            Expect::Ends if head.kind == b'-' && !self.aborted => self.tainted = true,
            _ => {}
        }
        Meaning::Reply
    }

    /// Messages and the replies to (UN)SUBSCRIBE have three or four elements, and come at any time.
    fn note_while_subscribed(&mut self, head: Head) -> Meaning {
        match head {
            Head { kind: b'*', length: 3 | 4 } => Meaning::Other,
            Head { kind: b'-', .. } => Meaning::Last,
            head if is_pong(head) => match self.next() {
                Some(Expect::Probe) => {
                    self.came += 1;
                    self.pins.subscribed = head.kind == b'*';
                    Meaning::Other
                }
                Some(Expect::Pong) => {
                    self.came += 1;
                    Meaning::Other
                }
                _ => Meaning::Wrong,
            },
            _ => Meaning::Wrong,
        }
    }
}

/// The reply to PING: of two elements on a connection that is subscribed to something, `+PONG` on
/// others.
const fn is_pong(head: Head) -> bool {
    matches!(head, Head { kind: b'*', length: 2 } | Head { kind: b'+', .. })
}
