//! The five states of a connection, and the arrows between them.

/// Where a connection is in its life. It only moves along the arrows:
///
/// ```text
///             connect ok / accepted           no active request
/// Connecting ----------------------> Connected <-----------------> Idle
///      |                                 |       new request         |
///      +---------- any: error, deadline, limit, close() ------------+
///                                        v
///                                     Closing ----------> Closed
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum State {
    /// Being dialled, or accepted and not yet announced as connected.
    Connecting,
    /// Open with an active request, or open and silent so far.
    Connected,
    /// Open without an active request: kept alive.
    Idle,
    /// Ending: output is flushed, the peer's last bytes are discarded.
    Closing,
    /// Ended.
    Closed,
}

impl State {
    /// Whether the application may still exchange data: not closing, not closed.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Connecting | Self::Connected | Self::Idle)
    }

    /// The state after `transition`, or `None` if no arrow of that name leaves this state.
    pub(crate) const fn after(self, transition: Transition) -> Option<Self> {
        match (self, transition) {
            (Self::Connecting, Transition::Establish) => Some(Self::Connected),
            (Self::Connected, Transition::Rest) => Some(Self::Idle),
            (Self::Idle, Transition::Wake) => Some(Self::Connected),
            (Self::Connecting | Self::Connected | Self::Idle, Transition::Close) => {
                Some(Self::Closing)
            }
            (Self::Closing, Transition::Release) => Some(Self::Closed),
            _ => None,
        }
    }
}

/// The arrows between the states.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Transition {
    /// The connection stands.
    Establish,
    /// The last active request is done.
    Rest,
    /// A new request begins.
    Wake,
    /// The end begins.
    Close,
    /// Nothing is left to flush or to wait for.
    Release,
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 5] =
        [State::Connecting, State::Connected, State::Idle, State::Closing, State::Closed];
    const TRANSITIONS: [Transition; 5] = [
        Transition::Establish,
        Transition::Rest,
        Transition::Wake,
        Transition::Close,
        Transition::Release,
    ];

    #[test]
    fn the_arrows_are_exactly_these() {
        let mut arrows = Vec::new();
        for state in STATES {
            for transition in TRANSITIONS {
                if let Some(after) = state.after(transition) {
                    arrows.push((state, transition, after));
                }
            }
        }
        assert_eq!(
            arrows,
            [
                (State::Connecting, Transition::Establish, State::Connected),
                (State::Connecting, Transition::Close, State::Closing),
                (State::Connected, Transition::Rest, State::Idle),
                (State::Connected, Transition::Close, State::Closing),
                (State::Idle, Transition::Wake, State::Connected),
                (State::Idle, Transition::Close, State::Closing),
                (State::Closing, Transition::Release, State::Closed),
            ]
        );
    }

    #[test]
    fn every_walk_ends_closed_and_passes_closing_once() {
        // Depth-first over all walks of eight steps: Closing is entered once, and only
        // Closed follows it.
        fn walk(state: State, closings: u32, depth: u32) {
            assert!(closings <= 1);
            assert_eq!(closings == 1, !state.is_open());
            if depth == 0 {
                return;
            }
            for transition in TRANSITIONS {
                if let Some(after) = state.after(transition) {
                    walk(after, closings + u32::from(after == State::Closing), depth - 1);
                }
            }
        }
        walk(State::Connecting, 0, 8);
    }
}
