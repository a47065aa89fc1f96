//! Unix-domain paths: one listener at a time on each, and no file left behind.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket};

use super::sys;
use crate::log::debug;

/// How often, and at which distance, a lock is tried that another starter has. It has it for the few
/// calls of [`listen`], so one that keeps it longer is stopped.
const TRIES: u32 = 1_000;
const BETWEEN_TRIES: Duration = Duration::from_millis(1);

/// The file of a Unix-domain listener, removed with it unless another one has taken its place.
///
/// To be dropped before the listener's socket is closed. While that is open its inode is not reused,
/// so that the file at the path is ours exactly if it has our inode; and no starter takes the file
/// for stale, because a program listens.
#[derive(Debug)]
pub(super) struct BoundPath {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| file.dev() == self.device && file.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            debug!(path = %self.path.display(), %error, "cannot remove the socket's file");
        }
    }
}

/// Binds a socket to `path`, in place of a file that a dead process left behind, and listens.
///
/// Between the question whether a file is stale and the answer to listen(2) nothing may change, so a
/// lock is held meanwhile. It cannot protect from programs that do not take it.
pub(super) fn listen(
    socket: &Socket,
    path: &Path,
    backlog: i32,
    mode: Option<u32>,
) -> io::Result<Option<BoundPath>> {
    let addr = SockAddr::unix(path)?;
    let _lock = Lock::acquire(path)?;
    if let Some(mode) = mode {
        narrow(socket, mode)?;
    }
    match socket.bind(&addr) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path, &addr) => {
            fs::remove_file(path)?;
            socket.bind(&addr)?;
        }
        other => other?,
    }
    let file = fs::symlink_metadata(path).ok();
    if let Some(mode) = mode
        && file.as_ref().is_none_or(|file| file.mode() & 0o777 != mode)
    {
        // Nothing can connect before it listens, so it is not too late where the file did not get the
        // mode of the socket, or the umask left less of it.
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    let bound =
        file.map(|file| BoundPath { path: path.into(), device: file.dev(), inode: file.ino() });
    socket.listen(backlog)?;
    Ok(bound)
}

/// Lets the file of a socket that is to be bound have no wider mode, where the system makes it by that
/// of the socket, as Linux does.
fn narrow(socket: &Socket, mode: u32) -> io::Result<()> {
    let socket = File::from(OwnedFd::from(socket.try_clone()?));
    if let Err(error) = socket.set_permissions(Permissions::from_mode(mode)) {
        debug!(%error, "a socket has no mode of its own");
    }
    Ok(())
}

/// Whether nothing listens on the socket at `path`.
fn is_stale(path: &Path, addr: &SockAddr) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket
        && Socket::new(Domain::UNIX, sys::stream_type(), None)
            .and_then(|probe| probe.connect(addr))
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// The right to bind a path: an flock(2) on a file beside it, which the kernel releases however the
/// process ends.
#[derive(Debug)]
struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    fn acquire(bound: &Path) -> io::Result<Self> {
        let name = bound.file_name().ok_or(ErrorKind::InvalidInput)?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".wheelhouse-bind");
        let path = bound.with_file_name(hidden);
        for _ in 0..TRIES {
            if let Some(lock) = Self::try_acquire(&path)? {
                return Ok(lock);
            }
            thread::sleep(BETWEEN_TRIES);
        }
        Err(io::Error::new(ErrorKind::AddrInUse, "another process is binding this path"))
    }

    /// `None` if another starter has the lock, or had it: each removes the file when it is done, so
    /// the one that was opened here may be the path's no longer.
    fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // Others may write to the directory: no link is followed, no pipe waited for.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        if !sys::try_lock(file.as_fd())? {
            return Ok(None);
        }
        let locked = file.metadata()?;
        let current = fs::symlink_metadata(path)
            .is_ok_and(|file| file.dev() == locked.dev() && file.ino() == locked.ino());
        Ok(current.then(|| Self { _file: file, path: path.into() }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While the lock is held: it is still the path's file, and no other's.
        if let Err(error) = fs::remove_file(&self.path) {
            debug!(path = %self.path.display(), %error, "cannot remove the lock's file");
        }
    }
}
