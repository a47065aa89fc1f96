//! What the echo servers in Rust share: their options, the listening socket, and the lines.
//!
//! ```text
//! peer-NAME [--framed] [--timeout] 127.0.0.1:0
//! ```
//!
//! With `--framed` a server answers each line `PING text` by a line `PONG text`, of as many bytes.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use socket2::{Domain, Socket, Type};

#[path = "../../lines.rs"]
mod lines;

pub use self::lines::answer_lines;

/// Each connection has a buffer, so it is not larger than it has to be: a read that takes all of the
/// largest message compared, 16 KiB, still leaves room, which says that the socket is empty.
pub const BUFFER_BYTES: usize = 20 * 1024;
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server waits that has no descriptor for a connection.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

const BACKLOG: i32 = 4_096;

#[derive(Clone, Copy)]
pub struct Options {
    pub address: SocketAddr,
    pub framed: bool,
    pub timeout: bool,
}

impl Options {
    /// Those of this process, which ends if they are wrong.
    pub fn parse() -> Self {
        let (mut address, mut framed, mut timeout) = (None, false, false);
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "--framed" => framed = true,
                "--timeout" => timeout = true,
                text if address.is_none() && text.parse::<SocketAddr>().is_ok() => {
                    address = text.parse().ok();
                }
                _ => usage(),
            }
        }
        Self { address: address.unwrap_or_else(|| usage()), framed, timeout }
    }
}

fn usage() -> ! {
    eprintln!("usage: peer-NAME [--framed] [--timeout] IP:PORT");
    process::exit(2)
}

/// Lets SIGTERM and SIGINT end the process, with exit code 0.
pub fn exit_on_termination() -> io::Result<()> {
    for signal in [SIGTERM, SIGINT] {
        flag::register_conditional_shutdown(signal, 0, std::sync::Arc::new(true.into()))?;
    }
    Ok(())
}

/// Listens, and prints where.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    // Linux hands the option down to every accepted socket.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    println!("listening on {}", listener.local_addr()?);
    Ok(listener)
}
