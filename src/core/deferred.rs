//! Newcomers of clients at their limits: how long each of them waits for a decision.
//!
//! A client may have closed a connection before it dialled this one, and the FIN may not have been read
//! yet. So its newcomer waits: it is admitted as soon as its client may have it, and refused when its
//! time is over; earlier if more wait for a decision than there is room for, but not before the loop
//! has waited once more and has served what that brought.
//!
//! What is deferred is opaque here: the executor, `reactor/deferred.rs`, holds the sockets.

use std::collections::VecDeque;
use std::time::Duration;

use crate::core::clients::ClientKey;
use crate::core::gate::ACCEPTS_PER_TURN;
use crate::core::wheel::TICK;
use crate::time::Instant;

/// Newcomers that wait for a decision at once.
const DEFERRED_MAX: usize = ACCEPTS_PER_TURN;

/// How long a newcomer waits for its client to close another connection, if the queue has room. On
/// a busy system the FIN, although it was sent before the SYN, arrives that much later: another
/// core, or another queue of the network card, handles it.
const DEFERRED_FOR: Duration = Duration::from_millis(100);

/// Newcomers of one client of which each waits for so long. Further ones are decided on soon, so
/// that a client cannot use up the time of the others.
const DEFERRED_PER_CLIENT: usize = 4;

/// Waits of the loop after which a newcomer is decided on, if the queue is full, even if full
/// batches of events may hide its client's FIN.
const WAITS_MAX: i32 = 4;

#[derive(Debug)]
struct Deferred<T> {
    newcomer: T,
    client: ClientKey,
    /// How often the loop has waited, and served all events, since the connection was accepted; -1
    /// while events are left from the wait before.
    waits: i32,
    /// When its time is over.
    until: Instant,
}

/// The deferred newcomers, in the order in which they were accepted.
#[derive(Debug)]
pub(crate) struct DeferredQueue<T> {
    queue: VecDeque<Deferred<T>>,
    /// Something happened since the latest pass that may decide on one.
    recheck: bool,
}

/// What a pass over the queue depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PassInputs {
    pub(crate) now: Instant,
    /// The latest wait may not have fetched all events, or connections that have input have not been
    /// read: a FIN may be among what is left.
    pub(crate) behind: bool,
    /// The listeners accept no more, for a shutdown or a shortage: the newcomers hold both up.
    pub(crate) urgent: bool,
    /// A shutdown has begun. No client is given more time than another then.
    pub(crate) draining: bool,
    /// A backlog holds connections that the queue may have no room for.
    pub(crate) more_wait: bool,
}

/// Whether a client may have another connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    Within,
    Over,
    /// That is known in a later turn only.
    Unknown,
}

/// What becomes of a deferred newcomer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Decision {
    Wait,
    Refuse,
    /// Its client may have it. It is admitted if there is a place.
    Admit,
}

/// When the queue is checked next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NextCheck {
    /// There is nothing to wait for.
    Never,
    /// By then, or earlier if an earlier check is due already.
    By(Instant),
    /// Then, instead of any other time.
    At(Instant),
}

/// One pass over the deferred newcomers.
///
/// It decides first on those whose time is over: the kernel is asked only so often in a turn what
/// lingering connections have delivered, and these depend on the answer.
#[derive(Debug)]
pub(crate) struct Pass {
    now: Instant,
    /// Waits of the loop after which a newcomer is refused.
    waits_min: i32,
    /// All are decided on, whether their time is over or not.
    decides_all: bool,
    /// The turns of a shutdown follow each other while there are newcomers.
    draining: bool,
    /// The newcomers that are visited: those whose time is over, then the others.
    over_time: bool,
    /// The next place of the queue.
    at: usize,
    lacks_place: bool,
    /// Clients whose standing is known and not [`Standing::Within`]: none is determined twice.
    known: Vec<(ClientKey, Standing)>,
    /// Another pass follows the next wait.
    recheck: bool,
    /// Some whose time is over could not be decided on.
    undecided: bool,
}

impl Pass {
    /// The standing of a client, if this pass has determined that it is not within its limit.
    pub(crate) fn known(&self, client: ClientKey) -> Option<Standing> {
        self.known.iter().find(|(of, _)| *of == client).map(|(_, standing)| *standing)
    }

    /// The standing of a client has been determined. One that is within its limit may be over it
    /// with the next admission.
    pub(crate) fn note(&mut self, client: ClientKey, standing: Standing) {
        if standing != Standing::Within {
            self.known.push((client, standing));
        }
    }

    /// Whether a newcomer of this pass found no place. Then there is none for others either.
    pub(crate) const fn lacks_place(&self) -> bool {
        self.lacks_place
    }

    /// There is no place for the newcomer at hand. It stays, and the next free place decides on it.
    pub(crate) const fn skip_for_place(&mut self) {
        self.lacks_place = true;
        self.at += 1;
    }
}

impl<T> Default for DeferredQueue<T> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), recheck: false }
    }
}

impl<T> DeferredQueue<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.queue.len() >= DEFERRED_MAX
    }

    #[cfg(feature = "sim")]
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Defers a newcomer. `behind` says that events of the latest wait are left. Returns when its
    /// time is over.
    pub(crate) fn push(
        &mut self,
        newcomer: T,
        client: ClientKey,
        behind: bool,
        now: Instant,
    ) -> Instant {
        let waits = if behind { -1 } else { 0 };
        let until = now + DEFERRED_FOR;
        self.queue.push_back(Deferred { newcomer, client, waits, until });
        self.recheck = true;
        until
    }

    /// Takes out the newcomer that was deferred first, whatever its client may have.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.queue.pop_front().map(|deferred| deferred.newcomer)
    }

    /// Something happened that may decide on a newcomer: a client has a connection less, a place is
    /// free, or a time is over.
    #[inline]
    pub(crate) const fn request_check(&mut self) {
        self.recheck = true;
    }

    /// Whether the next turn makes a pass.
    pub(crate) fn is_check_due(&self) -> bool {
        self.recheck && !self.queue.is_empty()
    }

    /// Begins a pass if there is cause for one, which counts as a wait of the loop for each
    /// newcomer.
    ///
    /// If the queue is full while more connections wait, and the newcomers of one client exceed
    /// [`DEFERRED_PER_CLIENT`], only these are decided on before their time: that makes room, and
    /// leaves the others theirs.
    pub(crate) fn begin_pass(&mut self, inputs: PassInputs) -> Option<Pass> {
        let hurries = inputs.urgent || (self.is_full() && inputs.more_wait);
        if !hurries && !self.recheck {
            return None;
        }
        self.recheck = false;
        let surplus_goes = !inputs.draining && (0..self.queue.len()).any(|at| self.is_surplus(at));
        for deferred in &mut self.queue {
            deferred.waits = deferred.waits.saturating_add(1);
        }
        Some(Pass {
            now: inputs.now,
            waits_min: if inputs.behind { WAITS_MAX } else { 1 },
            decides_all: hurries && !surplus_goes,
            draining: inputs.draining,
            over_time: true,
            at: 0,
            lacks_place: false,
            known: Vec::new(),
            recheck: false,
            undecided: false,
        })
    }

    /// The client of the next newcomer that the pass visits.
    pub(crate) fn next(&self, pass: &mut Pass) -> Option<ClientKey> {
        loop {
            let Some(deferred) = self.queue.get(pass.at) else {
                if !std::mem::take(&mut pass.over_time) {
                    return None;
                }
                pass.at = 0;
                continue;
            };
            if self.is_over_time(pass.at, pass) == pass.over_time {
                return Some(deferred.client);
            }
            pass.at += 1;
        }
    }

    /// Decides on the newcomer at hand, given the standing of its client. Whatever is not to wait is
    /// then [taken](DeferredQueue::take) or [skipped](Pass::skip_for_place).
    pub(crate) fn decide(&self, pass: &mut Pass, standing: Standing) -> Decision {
        let waits = self.queue.get(pass.at).map_or(0, |deferred| deferred.waits);
        let has_waited = waits >= pass.waits_min;
        let is_over = match standing {
            Standing::Within => return Decision::Admit,
            Standing::Over => true,
            Standing::Unknown => false,
        };
        if is_over && pass.over_time && has_waited {
            return Decision::Refuse;
        }
        pass.recheck |= waits < 1 || (pass.over_time && !has_waited);
        pass.undecided |= pass.over_time && has_waited;
        pass.at += 1;
        Decision::Wait
    }

    /// Takes out the newcomer at hand.
    pub(crate) fn take(&mut self, pass: &Pass) -> Option<T> {
        self.queue.remove(pass.at).map(|deferred| deferred.newcomer)
    }

    /// Ends a pass. Those that could not be decided on are checked again in a tick; in a shutdown in the
    /// next turn, as that waits for them and does not sleep.
    pub(crate) fn end_pass(&mut self, pass: &Pass) -> NextCheck {
        self.recheck |= pass.recheck || (pass.undecided && pass.draining);
        let next = self.queue.iter().map(|it| it.until).find(|until| *until > pass.now);
        if pass.undecided {
            let again = pass.now + TICK;
            return NextCheck::At(next.map_or(again, |until| until.min(again)));
        }
        next.map_or(NextCheck::Never, NextCheck::By)
    }

    /// Whether a newcomer is to be decided on now: it is refused unless its client may have it.
    fn is_over_time(&self, at: usize, pass: &Pass) -> bool {
        pass.now >= self.queue[at].until || pass.decides_all || self.is_surplus(at)
    }

    /// Whether a newcomer comes after as many of its client as wait for their full time.
    fn is_surplus(&self, at: usize) -> bool {
        let client = self.queue[at].client;
        let before = self.queue.iter().take(at);
        before.filter(|it| it.client == client).count() >= DEFERRED_PER_CLIENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClientLimits;
    use crate::core::clients::Clients;

    fn at(millis: u64) -> Instant {
        Instant::EPOCH + Duration::from_millis(millis)
    }

    fn client(number: u8) -> ClientKey {
        let limits = ClientLimits { connections: Some(1), ..ClientLimits::default() };
        let clients = Clients::new(&limits, 8).unwrap();
        let peer = crate::address::Address::Ip(([10, 0, 0, number], 7).into());
        clients.key_of_peer(&peer).unwrap()
    }

    /// Newcomers of these clients, numbered from 0 on, all of them accepted at once.
    fn queue(clients: &[u8]) -> DeferredQueue<usize> {
        let mut queue = DeferredQueue::default();
        for (number, of) in clients.iter().enumerate() {
            assert_eq!(queue.push(number, client(*of), false, at(0)), at(100));
        }
        queue
    }

    fn inputs(millis: u64) -> PassInputs {
        PassInputs { now: at(millis), ..PassInputs::default() }
    }

    /// Makes a pass in which all clients have this standing. Returns the newcomers that are
    /// admitted, those that are refused, and when the queue is checked next.
    fn pass(
        queue: &mut DeferredQueue<usize>,
        inputs: PassInputs,
        standing: Standing,
    ) -> (Vec<usize>, Vec<usize>, NextCheck) {
        let (mut admitted, mut refused) = (Vec::new(), Vec::new());
        let mut pass = queue.begin_pass(inputs).expect("there is cause for a pass");
        while queue.next(&mut pass).is_some() {
            match queue.decide(&mut pass, standing) {
                Decision::Wait => {}
                Decision::Admit => admitted.push(queue.take(&pass).unwrap()),
                Decision::Refuse => refused.push(queue.take(&pass).unwrap()),
            }
        }
        (admitted, refused, queue.end_pass(&pass))
    }

    #[test]
    fn a_newcomer_is_admitted_as_soon_as_its_client_may_have_it() {
        let mut queue = queue(&[1]);
        assert!(queue.is_check_due());
        let waits = pass(&mut queue, inputs(0), Standing::Over);
        assert_eq!(waits, (vec![], vec![], NextCheck::By(at(100))));
        assert!(!queue.is_check_due());
        assert!(queue.begin_pass(inputs(1)).is_none(), "nothing has changed");
        queue.request_check();
        let admitted = pass(&mut queue, inputs(2), Standing::Within);
        assert_eq!(admitted, (vec![0], vec![], NextCheck::Never));
    }

    #[test]
    fn a_newcomer_is_refused_when_its_time_is_over() {
        let mut queue = queue(&[1]);
        pass(&mut queue, inputs(0), Standing::Over);
        queue.request_check();
        assert_eq!(pass(&mut queue, inputs(99), Standing::Over).1, []);
        queue.request_check();
        assert_eq!(pass(&mut queue, inputs(100), Standing::Over).1, [0]);
        assert!(queue.is_empty());
    }

    #[test]
    fn none_is_refused_before_all_events_of_a_further_wait_are_served() {
        let mut queue = DeferredQueue::default();
        queue.push(0, client(1), true, at(0));
        // The rest of the events that the wait before the accept brought.
        assert_eq!(pass(&mut queue, inputs(500), Standing::Over).1, []);
        assert!(queue.is_check_due(), "the next wait is to be followed by a pass");
        assert_eq!(pass(&mut queue, inputs(500), Standing::Over).1, [0]);
    }

    #[test]
    fn a_newcomer_waits_longer_while_a_fin_may_be_among_what_is_left() {
        let mut queue = queue(&[1]);
        let behind = PassInputs { behind: true, ..inputs(500) };
        for _ in 1..WAITS_MAX {
            assert_eq!(pass(&mut queue, behind, Standing::Over).1, []);
            assert!(queue.is_check_due());
        }
        assert_eq!(pass(&mut queue, behind, Standing::Over).1, [0]);
    }

    #[test]
    fn a_full_queue_decides_on_all_if_more_connections_wait() {
        let clients: Vec<u8> = (0..DEFERRED_MAX as u8).collect();
        let mut queue = queue(&clients);
        assert!(queue.is_full());
        assert_eq!(pass(&mut queue, inputs(1), Standing::Over).1, []);
        let more_wait = PassInputs { more_wait: true, ..inputs(1) };
        assert_eq!(pass(&mut queue, more_wait, Standing::Over).1.len(), DEFERRED_MAX);
    }

    #[test]
    fn of_many_newcomers_of_one_client_the_first_four_have_their_time() {
        let mut queue = queue(&[1, 2, 1, 1, 1, 1, 1]);
        assert_eq!(pass(&mut queue, inputs(0), Standing::Over).1, [5, 6]);
        queue.request_check();
        assert_eq!(pass(&mut queue, inputs(100), Standing::Over).1, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_full_queue_refuses_those_in_excess_of_one_client_before_any_other() {
        let mut clients = [1; DEFERRED_MAX];
        clients[0] = 2;
        let mut queue = queue(&clients);
        let more_wait = PassInputs { more_wait: true, ..inputs(0) };
        assert_eq!(pass(&mut queue, more_wait, Standing::Over).1.len(), DEFERRED_MAX - 5);
        // A shutdown waits for all of them.
        let draining = PassInputs { urgent: true, draining: true, ..inputs(0) };
        assert_eq!(pass(&mut queue, draining, Standing::Over).1.len(), 5);
    }

    #[test]
    fn an_unknown_standing_is_determined_in_the_next_tick() {
        let mut queue = queue(&[1]);
        let (admitted, refused, next) = pass(&mut queue, inputs(100), Standing::Unknown);
        assert_eq!((admitted, refused), (vec![], vec![]));
        assert_eq!(next, NextCheck::At(at(100) + TICK));
    }

    #[test]
    fn an_unknown_standing_is_determined_in_the_next_turn_of_a_shutdown() {
        let mut queue = queue(&[1]);
        let draining = PassInputs { urgent: true, draining: true, ..inputs(10) };
        pass(&mut queue, draining, Standing::Unknown);
        assert!(queue.is_check_due());
        assert_eq!(pass(&mut queue, draining, Standing::Over).1, [0]);
    }

    #[test]
    fn a_newcomer_without_a_place_stays_and_others_are_decided_on() {
        let mut queue = queue(&[1, 2]);
        let mut pass = queue.begin_pass(inputs(100)).unwrap();
        assert_eq!(queue.next(&mut pass), Some(client(1)));
        assert_eq!(queue.decide(&mut pass, Standing::Within), Decision::Admit);
        pass.skip_for_place();
        assert_eq!(queue.next(&mut pass), Some(client(2)));
        assert!(pass.lacks_place());
        assert_eq!(queue.decide(&mut pass, Standing::Over), Decision::Refuse);
        assert_eq!(queue.take(&pass), Some(1));
        assert_eq!(queue.next(&mut pass), None);
        assert_eq!(queue.pop(), Some(0));
    }

    #[test]
    fn a_pass_visits_those_whose_time_is_over_first() {
        let mut queue = DeferredQueue::default();
        queue.push("late", client(1), false, at(50));
        queue.push("early", client(2), false, at(0));
        let mut pass = queue.begin_pass(inputs(100)).unwrap();
        let mut visited = Vec::new();
        while let Some(client) = queue.next(&mut pass) {
            visited.push(client);
            queue.decide(&mut pass, Standing::Unknown);
        }
        assert_eq!(visited, [client(2), client(1)]);
    }

    #[test]
    fn a_pass_remembers_only_clients_that_are_not_within_their_limits() {
        let mut pass = queue(&[1]).begin_pass(inputs(0)).unwrap();
        pass.note(client(1), Standing::Within);
        pass.note(client(2), Standing::Over);
        pass.note(client(3), Standing::Unknown);
        let known = [1, 2, 3].map(|number| pass.known(client(number)));
        assert_eq!(known, [None, Some(Standing::Over), Some(Standing::Unknown)]);
    }
}
