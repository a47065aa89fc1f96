//! The least an echo server on bare mio can do and still be correct: what the loop itself costs,
//! without deadlines, limits or a framework.
//!
//! One thread, edge-triggered events, one recv and one send per message. A reply the socket does not
//! take whole is kept, and nothing more is read from that connection until it is gone, so a peer that
//! never reads costs at most one buffer.
//!
//! ```text
//! peer-mio --listen 127.0.0.1:0 [--framed]
//! ```
//!
//! prints "listening on ADDR" once it accepts, and exits 0 on SIGTERM or SIGINT. With `--framed` it
//! answers each line `PING text` by a line `PONG text`.

#[path = "lines.rs"]
#[allow(unreachable_pub, reason = "public in the library of the other peers")]
mod lines;

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

    /// Answer lines instead of echoing bytes
    #[arg(long)]
    framed: bool,
}

struct Connection {
    stream: TcpStream,
    /// The peer sends no more: its FIN is to be read after what is there.
    closed: bool,
    /// The part of a reply that the socket has not taken yet.
    rest: Vec<u8>,
    /// The front of a line whose end has not come.
    line: Vec<u8>,
}

/// What all connections use.
struct Shared {
    buffer: Vec<u8>,
    replies: Vec<u8>,
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
    let serve = if options.framed { serve::<true> } else { serve::<false> };
    let mut shared = Shared { buffer: vec![0; BUFFER_BYTES], replies: Vec::new() };
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            outcome => outcome?,
        }
        for event in &events {
            if event.token() == LISTENER {
                accept_all(&listener, poll.registry(), &mut connections)?;
            } else if let Some(connection) = connections.get_mut(event.token().0)
                && serve(connection, &mut shared, event.is_read_closed()).is_err()
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
                place.insert(Connection {
                    stream,
                    closed: false,
                    rest: Vec::new(),
                    line: Vec::new(),
                });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Serves until the socket has nothing more or takes nothing more. An error means that the connection
/// has come to its end. If the peer has `closed`, no other event says so.
fn serve<const FRAMED: bool>(
    connection: &mut Connection,
    shared: &mut Shared,
    closed: bool,
) -> io::Result<()> {
    // A reply may be in the way now, and be gone at the next event, which does not say it again.
    connection.closed |= closed;
    let Connection { stream, closed, rest, line } = connection;
    let Shared { buffer, replies } = shared;
    loop {
        if !rest.is_empty() {
            let Some(sent) = ready(stream.write(rest))? else { return Ok(()) };
            rest.drain(..sent);
            continue;
        }
        let before = if FRAMED { line.len() } else { 0 };
        let Some(count) = ready(stream.read(&mut buffer[before..]))? else { return Ok(()) };
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let reply = if FRAMED {
            replies.clear();
            answer(&mut buffer[..before + count], line, replies)?;
            &replies[..]
        } else {
            &buffer[..count]
        };
        let is_due = !FRAMED || !reply.is_empty();
        let sent = if is_due { ready(stream.write(reply))?.unwrap_or(0) } else { 0 };
        rest.extend_from_slice(&reply[sent..]);
        // A short read has emptied the socket: the next byte is an event, and so is a FIN to come.
        if before + count < BUFFER_BYTES && rest.is_empty() && !*closed {
            return Ok(());
        }
    }
}

/// Answers the whole lines of `input`, which has room for the `line` begun before at its front, and
/// keeps the line begun at its end.
fn answer(input: &mut [u8], line: &mut Vec<u8>, replies: &mut Vec<u8>) -> io::Result<()> {
    input[..line.len()].copy_from_slice(line);
    let answered = lines::answer_lines(input, replies)?;
    line.clear();
    line.extend_from_slice(&input[answered..]);
    Ok(())
}

/// The outcome of a call, or `None` if it would have to wait.
fn ready(outcome: io::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
