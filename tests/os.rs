//! What only the operating system does.

#[path = "harness/shorthands.rs"]
mod shorthands;
#[path = "os/signals.rs"]
mod signals;
#[cfg(target_os = "linux")]
#[path = "os/sockets.rs"]
mod sockets;
#[path = "os/unix.rs"]
mod unix;
