//! The least an echo server on bare mio can do and still be correct: what the loop itself costs,
//! without deadlines, limits or a framework.
//!
//! One thread, edge-triggered events, one recv and one send per message. A reply the socket does not
//! take whole is kept, and nothing more is read from that connection until it is gone, so a peer that
//! never reads costs at most one buffer.
//!
//! ```text
//! peer-mio --listen 127.0.0.1:0
//! ```
//!
//! prints "listening on ADDR" once it accepts, and exits 0 on SIGTERM or SIGINT.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use clap::Parser;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};
use signal_hook::consts::{SIGINT, SIGTERM};
use slab::Slab;

const BUFFER_BYTES: usize = 64 * 1024;
const EVENTS_PER_TURN: usize = 1_024;
const LISTENER: Token = Token(usize::MAX);
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

#[derive(Parser)]
struct Options {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:7")]
    listen: SocketAddr,
}

struct Connection {
    stream: TcpStream,
    /// The peer sends no more: its FIN is to be read after what is there.
    closed: bool,
    /// The part of a reply that the socket has not taken yet.
    rest: Vec<u8>,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register_conditional_shutdown(
            signal,
            0,
            std::sync::Arc::new(true.into()),
        )?;
    }
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(options.listen)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("listening on {}", listener.local_addr()?);

    let mut events = Events::with_capacity(EVENTS_PER_TURN);
    let mut connections = Slab::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            outcome => outcome?,
        }
        for event in &events {
            if event.token() == LISTENER {
                accept_all(&listener, poll.registry(), &mut connections)?;
            } else if let Some(connection) = connections.get_mut(event.token().0)
                && serve(connection, &mut buffer, event.is_read_closed()).is_err()
            {
                connections.remove(event.token().0);
            }
        }
    }
}

fn accept_all(
    listener: &TcpListener,
    registry: &Registry,
    connections: &mut Slab<Connection>,
) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nodelay(true)?;
                let place = connections.vacant_entry();
                registry.register(&mut stream, Token(place.key()), BOTH)?;
                place.insert(Connection { stream, closed: false, rest: Vec::new() });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Echoes until the socket has nothing more or takes nothing more. An error means that the connection
/// has come to its end. If the peer has `closed`, no other event says so.
fn serve(connection: &mut Connection, buffer: &mut [u8], closed: bool) -> io::Result<()> {
    // A reply may be in the way now, and be gone at the next event, which does not say it again.
    connection.closed |= closed;
    let Connection { stream, closed, rest } = connection;
    loop {
        if !rest.is_empty() {
            let Some(sent) = ready(stream.write(rest))? else { return Ok(()) };
            rest.drain(..sent);
            continue;
        }
        let Some(count) = ready(stream.read(buffer))? else { return Ok(()) };
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let sent = ready(stream.write(&buffer[..count]))?.unwrap_or(0);
        rest.extend_from_slice(&buffer[sent..count]);
        // A short read has emptied the socket: the next byte is an event, and so is a FIN to come.
        if count < buffer.len() && rest.is_empty() && !*closed {
            return Ok(());
        }
    }
}

/// The outcome of a call, or `None` if it would have to wait.
fn ready(outcome: io::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
