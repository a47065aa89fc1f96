//! The few calls that neither mio, socket2 nor std makes in the way the loop needs them: the only
//! file with `unsafe`.

#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
#[cfg(target_os = "linux")]
use libc::c_long;
use libc::{c_int, c_void};
use socket2::Type;

#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
use super::event::Entry;

/// A call must not wait even if another holder of the open file description, in this process or in
/// another one, has cleared O_NONBLOCK (fcntl(2)).
const RECV_FLAGS: c_int = libc::MSG_DONTWAIT;

/// As [`RECV_FLAGS`]; and no signal when the peer is gone, where send(2) has a flag for it.
/// Elsewhere the socket is (`SO_NOSIGPIPE`).
#[cfg(not(target_vendor = "apple"))]
const SEND_FLAGS: c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
#[cfg(target_vendor = "apple")]
const SEND_FLAGS: c_int = libc::MSG_DONTWAIT;

/// Turns the result of a call that returns a count or -1 into a [`Result`].
fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Turns the result of a call that returns 0 or -1 into a [`Result`].
fn done(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A stream socket that no child inherits and no call on waits for.
pub(super) fn stream_type() -> Type {
    #[cfg(not(target_vendor = "apple"))]
    return Type::STREAM.cloexec().nonblocking();
    #[cfg(target_vendor = "apple")]
    return Type::STREAM;
}

/// Makes a system call, as syscall(2) does.
///
/// The library's recv(2) and send(2) are cancellation points: in a process with a second thread
/// they bracket the call with more instructions than all else that a message costs here. No thread
/// of Rust's is ever cancelled, so on Linux the kernel is called directly, and where the convention
/// of the processor is known without the library in between, which shuffles the arguments and
/// stores `errno`.
///
/// # Safety
///
/// As for the call with that number and those arguments.
#[cfg(all(target_os = "linux", target_arch = "x86_64", target_pointer_width = "64"))]
#[inline(always)]
unsafe fn system_call(number: c_long, arguments: [usize; 6]) -> io::Result<usize> {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the caller's. The kernel preserves all registers but rax, rcx and r11, and does not use
    // this stack (System V ABI for AMD64, A.2.1).
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    // syscalls(2): -4095 to -1 is an error.
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result as c_int))
}

#[cfg(all(target_os = "linux", not(all(target_arch = "x86_64", target_pointer_width = "64"))))]
unsafe fn system_call(number: c_long, arguments: [usize; 6]) -> io::Result<usize> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller's.
    count(unsafe { libc::syscall(number, a, b, c, d, e, f) } as isize)
}

/// A descriptor as an argument of a system call.
#[cfg(target_os = "linux")]
fn argument(fd: BorrowedFd<'_>) -> usize {
    fd.as_raw_fd() as usize
}

/// recv(2) into at most `max` bytes of the spare capacity of `buffer`, which is not zeroed first.
#[inline]
pub(super) fn recv(fd: BorrowedFd<'_>, buffer: &mut BytesMut, max: usize) -> io::Result<usize> {
    let spare = buffer.spare_capacity_mut();
    let len = spare.len().min(max);
    // SAFETY: `spare` is writable for `len` bytes, and the kernel writes no more than that.
    let received = unsafe { call_recv(fd, spare.as_mut_ptr().cast(), len) }?;
    // SAFETY: the kernel initialised the first `received` bytes of the spare capacity.
    unsafe { buffer.advance_mut(received) };
    Ok(received)
}

/// send(2) without a signal.
#[cfg(target_os = "linux")]
#[inline]
pub(super) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let (start, len) = (bytes.as_ptr() as usize, bytes.len());
    let arguments = [argument(fd), start, len, SEND_FLAGS as usize, 0, 0];
    // SAFETY: `bytes` is readable for its length; no address is given.
    unsafe { system_call(libc::SYS_sendto, arguments) }
}

/// As [`send`], where more follows at once: the kernel may wait for it, so that the last bytes and the
/// FIN behind them are one segment.
#[cfg(target_os = "linux")]
#[inline]
pub(super) fn send_more(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let (start, len) = (bytes.as_ptr() as usize, bytes.len());
    let flags = SEND_FLAGS | libc::MSG_MORE;
    let arguments = [argument(fd), start, len, flags as usize, 0, 0];
    // SAFETY: `bytes` is readable for its length; no address is given.
    unsafe { system_call(libc::SYS_sendto, arguments) }
}

/// As [`send`]: these systems have no flag that says that more follows.
#[cfg(not(target_os = "linux"))]
#[inline]
pub(super) fn send_more(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    send(fd, bytes)
}

#[cfg(target_os = "linux")]
#[inline(always)]
unsafe fn call_recv(fd: BorrowedFd<'_>, buffer: *mut c_void, len: usize) -> io::Result<usize> {
    let arguments = [argument(fd), buffer as usize, len, RECV_FLAGS as usize, 0, 0];
    // SAFETY: the caller's `buffer` is writable for `len` bytes; no address is asked for.
    unsafe { system_call(libc::SYS_recvfrom, arguments) }
}

/// send(2), without a signal where the socket says so.
#[cfg(not(target_os = "linux"))]
#[inline]
pub(super) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: `bytes` is readable for its length.
    count(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), SEND_FLAGS) })
}

#[cfg(not(target_os = "linux"))]
#[inline(always)]
unsafe fn call_recv(fd: BorrowedFd<'_>, buffer: *mut c_void, len: usize) -> io::Result<usize> {
    // SAFETY: the caller's `buffer` is writable for `len` bytes.
    count(unsafe { libc::recv(fd.as_raw_fd(), buffer, len, RECV_FLAGS) })
}

/// accept4(2) on a TCP listener: the connection is not inherited by children and nothing on it
/// waits. Called directly for the reason that [`system_call`] gives.
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
#[inline]
pub(super) fn accept(fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: all-zero is a valid `sockaddr_in6`.
    let mut peer: libc::sockaddr_in6 = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut len = size_of_val(&peer) as libc::socklen_t;
    let (start, len) = ((&raw mut peer) as usize, (&raw mut len) as usize);
    // SAFETY: the kernel writes no more of the address than `peer` has room for.
    let accepted = unsafe {
        system_call(libc::SYS_accept4, [argument(fd), start, len, flags as usize, 0, 0])
    }?;
    // SAFETY: it is a descriptor with no other owner.
    let stream = unsafe { OwnedFd::from_raw_fd(accepted as c_int) };
    match c_int::from(peer.sin6_family) {
        libc::AF_INET => {
            // SAFETY: of this family the kernel wrote a `sockaddr_in`, which is smaller and aligned alike.
            let peer = unsafe { (&raw const peer).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(peer.sin_addr.s_addr));
            Ok((stream, SocketAddr::from((ip, u16::from_be(peer.sin_port)))))
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(peer.sin6_addr.s6_addr);
            let port = u16::from_be(peer.sin6_port);
            let peer = SocketAddrV6::new(ip, port, peer.sin6_flowinfo, peer.sin6_scope_id);
            Ok((stream, peer.into()))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The most events that one wait asks for: the kernel refuses none and far too many.
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
const EVENTS_MAX: usize = 1 << 16;

/// epoll_pwait(2) with the signals as they are, which is epoll_wait(2) where that still exists:
/// waits for at most `millis` milliseconds, or for ever if that is negative, and replaces `events`
/// by at most `most`. Called directly for the reason that [`system_call`] gives.
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
#[inline]
pub(super) fn epoll_wait(
    poll: BorrowedFd<'_>,
    events: &mut Vec<Entry>,
    most: usize,
    millis: c_int,
) -> io::Result<()> {
    let most = most.clamp(1, EVENTS_MAX);
    events.clear();
    events.reserve(most);
    let list = events.spare_capacity_mut().as_mut_ptr() as usize;
    // SAFETY: `list` is writable for `most` events, in whose form entries lie, and no mask is given.
    let taken = unsafe {
        system_call(libc::SYS_epoll_pwait, [argument(poll), list, most, millis as usize, 0, 0])
    }?;
    // SAFETY: the kernel initialised the first `taken` events.
    unsafe { events.set_len(taken) };
    Ok(())
}

/// Registers a stream as mio does, for reading and writing and edge-triggered, and for urgent
/// bytes, at which reading stops short (tcp(7)). Closing its last descriptor ends it. Called
/// directly for the reason that [`system_call`] gives.
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
#[inline]
pub(super) fn epoll_add(poll: BorrowedFd<'_>, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
    const EVENTS: c_int =
        libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLET;
    let event = libc::epoll_event { events: EVENTS as u32, u64: token };
    let event = (&raw const event) as usize;
    let arguments = [argument(poll), libc::EPOLL_CTL_ADD as usize, argument(fd), event, 0, 0];
    // SAFETY: `event` is readable, and the kernel copies it.
    unsafe { system_call(libc::SYS_epoll_ctl, arguments) }.map(drop)
}

/// Resets a TCP connection: connect(2) to AF_UNSPEC discards what is queued and sends the RST at
/// once. A close(2) with a linger of zero does the same, but only when no other descriptor of the
/// socket is left.
#[cfg(target_os = "linux")]
pub(super) fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero is a valid `sockaddr`, and AF_UNSPEC is 0.
    let nowhere: libc::sockaddr = unsafe { MaybeUninit::zeroed().assume_init() };
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: `nowhere` is readable for `len` bytes.
    done(unsafe { libc::connect(fd.as_raw_fd(), &raw const nowhere, len) })
}

/// Lets bind(2) with port 0 leave the choice of a port to connect(2), which knows the peer.
#[cfg(target_os = "linux")]
pub(super) fn bind_without_port(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: c_int = 1;
    let (level, option) = (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
    let len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `on` is readable for `len` bytes.
    done(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const on).cast(), len) })
}

/// close(2), called directly for the same reason as recv(2). Its error says nothing that could be
/// acted on: the descriptor is gone.
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
pub(super) fn close(fd: OwnedFd) {
    // SAFETY: the descriptor is owned, and given up before it is closed.
    unsafe { libc::syscall(libc::SYS_close, fd.into_raw_fd()) };
}

/// sendmsg(2) without a signal: std's vectored write is writev(2), which raises one.
pub(super) fn send_vectored(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: all-zero is a valid `msghdr`: no name, no slices, no control data.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    // SAFETY: `IoSlice` has the layout of `iovec`, the slices outlive the call, and sendmsg only
    // reads through them.
    count(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, SEND_FLAGS) })
}

/// Written bytes that the peer has not acknowledged: SIOCOUTQ, see tcp(7) and unix(7).
#[cfg(any(target_os = "android", target_os = "linux"))]
pub(super) fn unsent(fd: BorrowedFd<'_>) -> Option<u64> {
    let mut queued: c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
    done(result).ok()?;
    // SIOCOUTQ counts our FIN too. A peer that keeps its end open acknowledges a FIN some 40 ms
    // after it has received it, as delayed acknowledgements do.
    if queued == 1 && has_unacknowledged_fin(fd) {
        return Some(0);
    }
    u64::try_from(queued).ok()
}

/// Whether our FIN has been sent and not been acknowledged: the state in TCP_INFO.
#[cfg(any(target_os = "android", target_os = "linux"))]
fn has_unacknowledged_fin(fd: BorrowedFd<'_>) -> bool {
    /// The states of RFC 9293 by their numbers in `netinet/tcp.h`.
    const FIN_WAIT1: u8 = 4;
    const LAST_ACK: u8 = 9;
    const CLOSING: u8 = 11;
    let mut state = 0_u8;
    let mut len = size_of::<u8>() as libc::socklen_t;
    // SAFETY: getsockopt(2) writes at most `len` bytes; the state is the first of `tcp_info`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut len,
        )
    };
    done(result).is_ok() && matches!(state, FIN_WAIT1 | LAST_ACK | CLOSING)
}

/// Written bytes that the peer has not acknowledged: SO_NWRITE.
#[cfg(target_vendor = "apple")]
pub(super) fn unsent(fd: BorrowedFd<'_>) -> Option<u64> {
    let mut queued: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: SO_NWRITE writes one int, for which there is room.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NWRITE,
            (&raw mut queued).cast(),
            &raw mut len,
        )
    };
    done(result).ok()?;
    u64::try_from(queued).ok()
}

/// Written bytes that the peer has not acknowledged: FIONWRITE.
#[cfg(any(target_os = "freebsd", target_os = "dragonfly"))]
pub(super) fn unsent(fd: BorrowedFd<'_>) -> Option<u64> {
    /// `_IOR('f', 119, int)` of sys/filio.h.
    const FIONWRITE: libc::c_ulong = 0x4004_6677;
    let mut queued: c_int = 0;
    // SAFETY: FIONWRITE writes one int.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), FIONWRITE, &raw mut queued) };
    done(result).ok()?;
    u64::try_from(queued).ok()
}

/// Not known here: a byte counts as gone once the kernel took it.
#[cfg(not(any(
    target_os = "android",
    target_os = "linux",
    target_vendor = "apple",
    target_os = "freebsd",
    target_os = "dragonfly"
)))]
pub(super) fn unsent(_fd: BorrowedFd<'_>) -> Option<u64> {
    None
}

/// Takes an exclusive flock(2) if no other open file description has one.
pub(super) fn try_lock(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: the descriptor is open; no memory is passed.
    match done(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Which monotonic clock to read.
#[derive(Clone, Copy)]
pub(super) enum Clock {
    Precise,
    Coarse,
}

impl Clock {
    const fn id(self) -> libc::clockid_t {
        match self {
            Self::Precise => libc::CLOCK_MONOTONIC,
            #[cfg(any(target_os = "android", target_os = "linux"))]
            Self::Coarse => libc::CLOCK_MONOTONIC_COARSE,
            #[cfg(not(any(target_os = "android", target_os = "linux")))]
            Self::Coarse => libc::CLOCK_MONOTONIC,
        }
    }
}

/// How far a clock moves at a time.
pub(super) fn resolution(clock: Clock) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable, and the call cannot fail for a clock that exists.
    unsafe { libc::clock_getres(clock.id(), &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The wall clock: the time since 1970, or none before that.
pub(super) fn unix_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable, and the call cannot fail for a clock that exists.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time) };
    u64::try_from(time.tv_sec)
        .map_or(Duration::ZERO, |seconds| Duration::new(seconds, time.tv_nsec as u32))
}

/// Nanoseconds of a monotonic clock with an arbitrary start; both clocks share it.
pub(super) fn nanos(clock: Clock) -> u64 {
    let id = clock.id();
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable, and the call cannot fail for a clock that exists.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// Raises the soft limit of RLIMIT_NOFILE to the hard one, where that is allowed, and returns what
/// it is then.
pub(super) fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    if done(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }).is_err() {
        return 1_024;
    }
    // Where the hard limit is infinite, as on macOS, the soft one may not be: OPEN_MAX serves.
    for most in [limit.rlim_max, limit.rlim_max.min(10_240)] {
        let raised = libc::rlimit { rlim_cur: most.max(limit.rlim_cur), ..limit };
        // SAFETY: `raised` is readable.
        if done(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) }).is_ok() {
            limit = raised;
            break;
        }
    }
    #[allow(clippy::unnecessary_cast, reason = "signed on some systems")]
    return limit.rlim_cur as u64;
}

/// Lets the process's table of descriptors have room for `count`, if it may: `any` is copied to the
/// last place for a moment. In a process with several threads the kernel waits for a grace period
/// of RCU each time it doubles the table, which would be 20 ms and more inside an accept4(2).
#[cfg(all(target_os = "linux", not(mio_unsupported_force_poll_poll)))]
pub(super) fn grow_descriptor_table(any: BorrowedFd<'_>, count: usize) {
    let last = c_int::try_from(count.saturating_sub(1)).unwrap_or(c_int::MAX);
    // SAFETY: the descriptor is open, and a result that is not negative is one with no other owner.
    unsafe {
        let copy = libc::fcntl(any.as_raw_fd(), libc::F_DUPFD_CLOEXEC, last);
        if copy >= 0 {
            drop(OwnedFd::from_raw_fd(copy));
        }
    }
}

/// The descriptor of a poll, which mio only gives as a number.
#[cfg(not(mio_unsupported_force_poll_poll))]
pub(super) fn poll_fd(poll: &mio::Poll) -> BorrowedFd<'_> {
    // SAFETY: the descriptor belongs to `poll`, which is borrowed for as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(poll.as_raw_fd()) }
}
