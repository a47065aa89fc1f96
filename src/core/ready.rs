//! Connections with work left that no event will announce again.
//!
//! Readiness is edge-triggered: a reactor that stops reading, writing or accepting before the
//! system said "would block" must come back by itself. Whatever stops early is queued here for the
//! next turn.

use crate::id::ConnId;

/// A queue of connections to serve in the next turn, each at most once: the caller that queues one
/// marks it.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    next: Vec<ConnId>,
    /// Those queued before this turn, of which the first `served` have been served.
    current: Vec<ConnId>,
    served: usize,
    /// How many are queued in all.
    waiting: usize,
}

impl Ready {
    pub(crate) fn push(&mut self, id: ConnId) {
        self.next.push(id);
        self.waiting += 1;
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Whether some that were queued before this turn have not been served in it.
    #[inline]
    pub(crate) const fn is_behind(&self) -> bool {
        self.served < self.current.len()
    }

    /// Those to be served in the turns to come.
    #[cfg(feature = "sim")]
    pub(crate) fn queued(&self) -> impl Iterator<Item = ConnId> {
        self.current[self.served..].iter().chain(&self.next).copied()
    }

    /// A turn begins: what is queued from here on waits for the next one.
    #[inline]
    pub(crate) fn begin_turn(&mut self) {
        if !self.next.is_empty() {
            self.take_up();
        }
    }

    /// Those that the turns before did not come to are served first.
    fn take_up(&mut self) {
        if self.served == self.current.len() {
            self.current.clear();
            self.served = 0;
            std::mem::swap(&mut self.next, &mut self.current);
        } else {
            self.current.drain(..self.served);
            self.served = 0;
            self.current.append(&mut self.next);
        }
    }

    /// The next of those queued before this turn.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<ConnId> {
        let id = self.current.get(self.served).copied()?;
        self.served += 1;
        self.waiting -= 1;
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_queued_while_serving_waits_and_memory_is_reused() {
        let mut ready = Ready::default();
        let (a, b) = (ConnId::new(1, 1), ConnId::new(2, 1));
        ready.push(a);
        let memory = ready.next.as_ptr();
        ready.begin_turn();
        ready.push(b);
        assert_eq!((ready.pop(), ready.pop()), (Some(a), None));
        ready.begin_turn();
        assert_eq!((ready.pop(), ready.pop()), (Some(b), None));
        assert!(ready.is_empty());
        ready.begin_turn();
        assert_eq!(ready.pop(), None);
        ready.push(a);
        assert_eq!(ready.next.as_ptr(), memory);
    }
}
