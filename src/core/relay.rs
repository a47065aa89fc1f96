//! When two connections may be relayed, and what becomes of one when the other ends.

use crate::close::{CloseMode, CloseReason};
use crate::core::flags::{ColdFlags, Flags};
use crate::core::lifecycle::State;
use crate::core::record::Record;

/// What becomes of one side when the other ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum After {
    /// Both have sent all they had to send: it gets what is queued and the FIN, and ends by itself.
    Finishes,
    /// It ends, too.
    Ends(CloseReason),
}

/// How much is known of what the peer of a side that ends has sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Heard {
    /// Its FIN was read: that was all.
    Whole,
    /// It may have had more to send.
    Open,
    /// A write to it failed: it is gone, and may have had more to send.
    Broken,
}

impl Heard {
    pub(crate) const fn of(record: &Record) -> Self {
        if record.cold_flags.has(ColdFlags::BROKEN) {
            Self::Broken
        } else if record.flags.has(Flags::EOF) {
            Self::Whole
        } else {
            Self::Open
        }
    }
}

/// What becomes of one side when the other ends for `reason`. `has_eof` says whether the one that
/// stays has read its peer's FIN, and `heard` what the one that ends has.
pub(crate) const fn after_end(reason: CloseReason, has_eof: bool, heard: Heard) -> After {
    match (heard, reason.mode()) {
        (Heard::Whole, _) if has_eof && matches!(reason, CloseReason::PeerEof) => After::Finishes,
        (Heard::Whole, _) | (Heard::Open, CloseMode::Flush | CloseMode::Close) => {
            After::Ends(CloseReason::RelayEnded)
        }
        // The bytes of the one that ends are cut off, and a FIN would say that they are all.
        (Heard::Open, CloseMode::Drop | CloseMode::Reset | CloseMode::Break)
        | (Heard::Broken, _) => After::Ends(CloseReason::RelayBroken),
    }
}

/// Whether a connection may be one side of a relay: it stands, its end was not asked for, what
/// arrives is its handler's, and it is no pool's.
pub(crate) fn may_be_relayed(record: &Record) -> bool {
    matches!(record.state(), State::Connected | State::Idle)
        && record.requested().is_none()
        && record.to_skip() == 0
        && !record.flags.has(Flags::DIVERTED.and(Flags::REAPED))
        && !record.cold_flags.has(ColdFlags::POOLED.and(ColdFlags::RELAYED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::Timeout;

    #[test]
    fn the_other_side_ends_as_the_first_did() {
        let ended = After::Ends(CloseReason::RelayEnded);
        let broken = After::Ends(CloseReason::RelayBroken);
        for reason in [CloseReason::PeerReset, CloseReason::Timeout(Timeout::Tunnel)] {
            assert_eq!(after_end(reason, false, Heard::Whole), ended);
            assert_eq!(after_end(reason, true, Heard::Broken), broken);
        }
        let finishes = after_end(CloseReason::PeerEof, true, Heard::Whole);
        assert_eq!(finishes, After::Finishes);
        assert_eq!(after_end(CloseReason::PeerEof, false, Heard::Whole), ended);
        for (reason, has_eof, after) in [
            (CloseReason::HandlerClose, true, ended),
            (CloseReason::Timeout(Timeout::HalfClosed), true, ended),
            (CloseReason::Timeout(Timeout::Tunnel), false, ended),
            (CloseReason::Shutdown, false, ended),
            (CloseReason::PeerReset, true, broken),
            (CloseReason::PeerReset, false, broken),
            (CloseReason::HandlerAbort, false, broken),
            (CloseReason::Timeout(Timeout::Write), false, broken),
        ] {
            assert_eq!(after_end(reason, has_eof, Heard::Open), after, "{reason:?}");
        }
    }
}
