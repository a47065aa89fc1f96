//! What only the operating system does.

#[cfg(target_os = "linux")]
#[path = "os/sockets.rs"]
mod sockets;
#[path = "os/unix.rs"]
mod unix;
