//! Panics are caught here, and so are those of the payloads they carry.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::planted::{Bug, planted};

/// Code panicked. What it panicked with is gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Panicked;

/// Runs `work` and catches its panic.
///
/// # Errors
///
/// If it panicked.
#[inline(always)]
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(discard)
}

/// Drops the payload of a panic. The application chose its type, so its `Drop` may panic too. The
/// payload of that second panic is leaked: its `Drop` might panic as well, without end.
#[cold]
#[inline(never)]
pub(crate) fn discard(payload: Box<dyn Any + Send>) -> Panicked {
    if planted(Bug::UncaughtPayload) {
        drop(payload);
        return Panicked;
    }
    if let Err(second) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        mem::forget(second);
    }
    Panicked
}

/// Drops a value of the application; if its `Drop` panics the panic hook has reported it, and
/// nothing else follows.
pub(crate) fn drop_caught<T>(value: T) {
    if planted(Bug::UncaughtOwner) {
        return drop(value);
    }
    let _ = catch(move || drop(value));
}

#[cfg(test)]
mod tests {
    use std::panic::{panic_any, resume_unwind};

    use super::*;

    /// Panics when it is dropped, with as many more of its kind.
    struct Bomb(u32);

    impl Drop for Bomb {
        fn drop(&mut self) {
            if self.0 > 0 {
                resume_unwind(Box::new(Self(self.0 - 1)));
            }
        }
    }

    #[test]
    fn what_does_not_panic_returns() {
        assert_eq!(catch(|| 7), Ok(7));
    }

    #[test]
    fn a_payload_may_panic_when_it_is_dropped() {
        for depth in 0..4 {
            assert_eq!(catch(|| panic_any(Bomb(depth))), Err::<(), _>(Panicked));
        }
    }

    #[test]
    fn a_value_may_panic_when_it_is_dropped() {
        drop_caught(Bomb(3));
    }
}
