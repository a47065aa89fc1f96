//! Connections with work left that no event will announce again.
//!
//! Readiness is edge-triggered: whoever stops reading, writing or accepting before the system said
//! "would block" must come back by itself. Whatever stops early is queued here for the next turn.

use crate::core::table::ConnId;

/// A queue of connections to serve in the next turn, each at most once: who queues one marks it.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    next: Vec<ConnId>,
    /// The vector of the turn before, kept for its memory.
    spare: Vec<ConnId>,
}

impl Ready {
    pub(crate) fn push(&mut self, id: ConnId) {
        self.next.push(id);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.next.is_empty()
    }

    /// Takes those queued so far. What is queued while they are served waits for the next turn.
    #[inline]
    pub(crate) fn take(&mut self) -> Vec<ConnId> {
        if self.next.is_empty() {
            return Vec::new();
        }
        std::mem::replace(&mut self.next, std::mem::take(&mut self.spare))
    }

    /// Gives the vector of [`Ready::take`] back for the turn after next.
    pub(crate) fn put_back(&mut self, mut served: Vec<ConnId>) {
        served.clear();
        self.spare = served;
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
        let served = ready.take();
        ready.push(b);
        assert_eq!(served, [a]);
        let memory = served.as_ptr();
        ready.put_back(served);
        let served = ready.take();
        assert_eq!(served, [b]);
        ready.push(a);
        assert_eq!(ready.next.as_ptr(), memory);
        ready.put_back(served);
        assert!(!ready.is_empty());
    }
}
