//! The names of the errors that calls of a simulated host fail with.
//!
//! ```
//! use wheelhouse::sim::{Call, Sim, errno};
//!
//! let mut sim = Sim::new(1);
//! sim.fail(Call::Accept, 2, errno::EMFILE);
//! assert_eq!(sim.failures_left(), 1);
//! ```

use std::fmt;

macro_rules! named {
    ($($name:ident)*) => {
        $(pub use libc::$name;)*

        const NAMES: &[(&str, i32)] = &[$((stringify!($name), libc::$name)),*];
    };
}

named! {
    EACCES
    EADDRINUSE
    EADDRNOTAVAIL
    EAFNOSUPPORT
    EAGAIN
    EBADF
    ECONNABORTED
    ECONNREFUSED
    ECONNRESET
    EEXIST
    EHOSTDOWN
    EHOSTUNREACH
    EINTR
    EINVAL
    EIO
    EMFILE
    ENETDOWN
    ENETUNREACH
    ENFILE
    ENOBUFS
    ENOENT
    ENOMEM
    ENOPROTOOPT
    ENOSPC
    ENOTCONN
    EOPNOTSUPP
    EPERM
    EPIPE
    EPROTO
    ETIMEDOUT
}

/// What Linux alone has.
const OF_LINUX: &[(&str, i32)] = &[
    #[cfg(target_os = "linux")]
    ("ENONET", libc::ENONET),
];

fn names() -> impl Iterator<Item = &'static (&'static str, i32)> {
    NAMES.iter().chain(OF_LINUX)
}

/// An error by its name and number: `EMFILE (24)`.
pub(super) struct Named(pub(super) i32);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match names().find(|(_, errno)| *errno == self.0) {
            Some((name, errno)) => write!(f, "{name} ({errno})"),
            None => write!(f, "errno {}", self.0),
        }
    }
}

/// The error that is meant by a name or a number.
pub(super) fn parse(text: &str) -> Option<i32> {
    let named = names().find(|(name, _)| *name == text).map(|(_, errno)| *errno);
    named.or_else(|| text.parse().ok().filter(|errno| *errno > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Call;

    #[test]
    fn every_error_that_is_injected_has_a_name() {
        for call in Call::ALL {
            for errno in call.errnos() {
                let shown = Named(*errno).to_string();
                let (name, _) = shown.split_once(" (").unwrap_or_else(|| panic!("{call}: {shown}"));
                assert_eq!(parse(name), Some(*errno));
                assert_eq!(parse(&errno.to_string()), Some(*errno));
            }
        }
        assert_eq!(Named(9_999).to_string(), "errno 9999");
        assert_eq!(parse("EWHAT"), None);
        assert_eq!(parse("0"), None);
    }
}
