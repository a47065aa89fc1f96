//! Where a listener binds, and what a connection is dialled to.

use std::fmt::{self, Write};
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The address of a socket: an IP address with a port, or a Unix-domain path.
///
/// ```
/// use wheelhouse::Address;
///
/// let v6: Address = "[::1]:7000".parse()?;
/// let unix: Address = "unix:/run/echo.sock".parse()?;
/// assert_eq!(v6.to_string(), "[::1]:7000");
/// assert_eq!(unix.to_string(), "unix:/run/echo.sock");
/// # Ok::<(), wheelhouse::address::AddressError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Address {
    /// An IPv4 or IPv6 address and a port; port 0 asks the kernel for a free one.
    Ip(SocketAddr),
    /// A Unix-domain socket bound to a path, which is neither empty nor contains a NUL byte: the
    /// kernel would read such a path as another address.
    Unix(PathBuf),
    /// A Unix-domain socket without a name, as most clients of one are.
    Unnamed,
}

impl Address {
    /// The IP address and port, if this is one.
    pub const fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            Self::Unix(_) | Self::Unnamed => None,
        }
    }

    /// The path, if this is a bound Unix-domain socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Ip(_) | Self::Unnamed => None,
        }
    }

    /// Refuses a path that unix(7) gives another meaning: an empty one binds to a name that the
    /// kernel chooses, a NUL ends the name, and in front it makes one that is in no file system.
    pub(crate) fn refuse_unusable_path(&self) -> io::Result<()> {
        match self {
            Self::Unix(path) if !is_usable(path) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path of a Unix-domain socket is neither empty nor contains a NUL",
            )),
            Self::Unix(_) | Self::Ip(_) | Self::Unnamed => Ok(()),
        }
    }
}

fn is_usable(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    !bytes.is_empty() && !bytes.contains(&0)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix(path) => {
                f.write_str("unix:")?;
                // A peer chooses its own path, and is not to write lines of a log by it.
                path.to_string_lossy().chars().try_for_each(|letter| match letter {
                    '"' | '\'' => f.write_char(letter),
                    letter => write!(f, "{}", letter.escape_debug()),
                })
            }
            Self::Unnamed => f.write_str("unix:"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self::Ip(addr)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some(path) if is_usable(path.as_ref()) => Ok(Self::Unix(path.into())),
            Some(_) => Err(AddressError { names: false }),
            None => text.parse().map(Self::Ip).map_err(|_| AddressError { names: false }),
        }
    }
}

/// What can be listened on: an [`Address`], a [`SocketAddr`], or the text of an address.
///
/// Sealed: it is for the arguments of [`Reactor::listen`](crate::Reactor::listen).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no address to listen on",
    note = "text such as \"127.0.0.1:7000\" or \"unix:/run/echo\", a `SocketAddr` or an `Address` is one"
)]
pub trait ToAddress: sealed::Sealed {
    /// The address, or the text that is none.
    #[doc(hidden)]
    fn to_address(self) -> Result<Address, (String, AddressError)>;
}

mod sealed {
    #[allow(unnameable_types, reason = "so that others cannot implement it")]
    pub trait Sealed {}
    impl Sealed for crate::address::Address {}
    impl Sealed for &crate::address::Address {}
    impl Sealed for crate::address::Target {}
    impl Sealed for &crate::address::Target {}
    impl Sealed for std::net::SocketAddr {}
    impl Sealed for &str {}
    impl Sealed for String {}
    impl Sealed for &String {}
}

impl ToAddress for Address {
    fn to_address(self) -> Result<Address, (String, AddressError)> {
        Ok(self)
    }
}

impl ToAddress for &Address {
    fn to_address(self) -> Result<Address, (String, AddressError)> {
        Ok(self.clone())
    }
}

impl ToAddress for SocketAddr {
    fn to_address(self) -> Result<Address, (String, AddressError)> {
        Ok(self.into())
    }
}

impl ToAddress for &str {
    fn to_address(self) -> Result<Address, (String, AddressError)> {
        self.parse().map_err(|error| (self.to_owned(), error))
    }
}

impl ToAddress for String {
    fn to_address(self) -> Result<Address, (String, AddressError)> {
        self.as_str().to_address()
    }
}

impl ToAddress for &String {
    fn to_address(self) -> Result<Address, (String, AddressError)> {
        self.as_str().to_address()
    }
}

/// What can be dialled: a [`Target`], an [`Address`], a [`SocketAddr`], or the text of a target.
///
/// Sealed: it is for the arguments of [`Context::connect`](crate::Context::connect).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is nothing to dial",
    note = "text such as \"127.0.0.1:7000\", \"localhost:7000\" or \"unix:/run/echo\", a `SocketAddr`, an \
            `Address` or a `Target` is"
)]
pub trait ToTarget: sealed::Sealed {
    /// The target, unless the text is none.
    #[doc(hidden)]
    fn to_target(self) -> Result<Target, AddressError>;
}

impl ToTarget for Target {
    fn to_target(self) -> Result<Target, AddressError> {
        Ok(self)
    }
}

impl ToTarget for &Target {
    fn to_target(self) -> Result<Target, AddressError> {
        Ok(self.clone())
    }
}

impl ToTarget for Address {
    fn to_target(self) -> Result<Target, AddressError> {
        Ok(self.into())
    }
}

impl ToTarget for &Address {
    fn to_target(self) -> Result<Target, AddressError> {
        Ok(self.clone().into())
    }
}

impl ToTarget for SocketAddr {
    fn to_target(self) -> Result<Target, AddressError> {
        Ok(self.into())
    }
}

impl ToTarget for &str {
    fn to_target(self) -> Result<Target, AddressError> {
        self.parse()
    }
}

impl ToTarget for String {
    fn to_target(self) -> Result<Target, AddressError> {
        self.parse()
    }
}

impl ToTarget for &String {
    fn to_target(self) -> Result<Target, AddressError> {
        self.parse()
    }
}

/// A text that is no [`Address`], or no [`Target`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AddressError {
    /// A name would have done as well.
    names: bool,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.names {
            true => "an address is HOST:PORT, IP:PORT, [IPV6]:PORT or unix:PATH",
            false => "an address is IP:PORT, [IPV6]:PORT or unix:PATH",
        })
    }
}

impl std::error::Error for AddressError {}

/// What a connection dials: an [`Address`], or the name of a host and a port.
///
/// A name is looked up off the loop's thread; its addresses are tried side by side, as
/// [`Timeouts::connect_stagger`](crate::Timeouts::connect_stagger) says, each within
/// [`Timeouts::connect_attempt`](crate::Timeouts::connect_attempt) and all of it, the look-up
/// included, within [`Timeouts::connect`](crate::Timeouts::connect).
///
/// ```
/// use wheelhouse::Target;
///
/// assert!(matches!("127.0.0.1:7000".parse()?, Target::Address(_)));
/// assert!(matches!("localhost:7000".parse()?, Target::Name { port: 7000, .. }));
/// # Ok::<(), wheelhouse::address::AddressError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// An address to dial as it is.
    Address(Address),
    /// A host to look up first.
    Name {
        /// The host's name.
        host: String,
        /// The port to dial on each of its addresses.
        port: u16,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl From<Address> for Target {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self::Address(addr.into())
    }
}

impl FromStr for Target {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let error = AddressError { names: true };
        let (host, port) = text.rsplit_once(':').ok_or(error)?;
        if host.is_empty() || host.contains([':', '[', ']', '/']) {
            return Err(error);
        }
        let port = port.parse().map_err(|_| error)?;
        Ok(Self::Name { host: host.into(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_address_is_refused() {
        for text in [
            "",
            "7000",
            "unix:",
            "unix:/tmp/a\0b",
            "unix:\0",
            "127.0.0.1",
            "::1:7000:",
            "1.2.3.4:70000",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_cannot_break_a_line() {
        let path = Address::Unix("/tmp/a\nb\u{1b}[31m\u{2028} \"ü\"".into());
        assert_eq!(path.to_string(), "unix:/tmp/a\\nb\\u{1b}[31m\\u{2028} \"ü\"");
    }

    #[test]
    fn a_target_is_an_address_before_it_is_a_name() {
        assert_eq!("[::1]:1".parse(), Ok(Target::Address("[::1]:1".parse().unwrap())));
        assert_eq!("a.b:80".parse(), Ok(Target::Name { host: "a.b".into(), port: 80 }));
        for text in ["host", ":80", "host:", "host:x", "::1:80", "a/b:1"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
