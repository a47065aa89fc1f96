//! What Unix-domain sockets say that TCP does not, on the real system.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::{env, fs, process};

use bytes::BytesMut;
use wheelhouse::{Address, CloseReason, Closed, Config, Conn, ConnId, Context, Handler, Reactor};

use crate::shorthands::millis;

/// Owes a reply to each request, pauses on `p`, and keeps how connections ended.
#[derive(Default)]
struct Owing {
    opened: Option<ConnId>,
    got: usize,
    eof: bool,
    closed: Vec<CloseReason>,
}

impl Handler for Owing {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        self.opened = Some(conn.id());
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        self.got += input.len();
        if input.first() == Some(&b'p') {
            conn.pause_reading();
        }
        if conn.in_flight() == 0 {
            conn.begin_request();
        }
        input.clear();
    }

    fn on_eof(&mut self, _: &mut Conn<'_>, (): &mut (), _: &mut BytesMut) {
        self.eof = true;
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, (): ()) {
        self.closed.push(closed.reason);
    }
}

struct Server {
    reactor: Reactor<Owing>,
    handler: Owing,
    path: PathBuf,
}

impl Server {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("wheelhouse-unix-{name}-{}", process::id()));
        let _ = fs::remove_file(&path);
        let mut config = Config::default();
        // Tests that run at the same time share the process's descriptors.
        config.limits.max_connections = Some(100);
        let mut reactor = Reactor::new(config).unwrap();
        reactor.listen(Address::Unix(path.clone())).unwrap();
        Self { reactor, handler: Owing::default(), path }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// Turns until `done`, and at most a hundred times a hundredth of a second.
    fn until(&mut self, done: impl Fn(&Owing) -> bool) {
        for _ in 0..1_000 {
            if done(&self.handler) {
                return;
            }
            self.reactor.turn(&mut self.handler, Some(millis(10))).unwrap();
        }
        panic!("it did not come");
    }
}

#[test]
fn a_peer_that_is_gone_while_its_connection_is_paused_is_noticed() {
    let mut server = Server::new("paused");
    let mut peer = server.connect();
    peer.write_all(b"p").unwrap();
    server.until(|handler| handler.got == 1);
    drop(peer);
    server.until(|handler| !handler.closed.is_empty());
    assert_eq!(server.handler.closed, [CloseReason::PeerReset]);
    assert!(!server.handler.eof, "what it left was not read");
}

#[test]
fn a_peer_that_is_gone_while_a_reply_is_owed_is_noticed() {
    let mut server = Server::new("owed");
    let mut peer = server.connect();
    peer.write_all(b"request").unwrap();
    server.until(|handler| handler.got == 7);
    drop(peer);
    server.until(|handler| !handler.closed.is_empty());
    assert_eq!(server.handler.closed, [CloseReason::PeerReset]);
    assert!(server.handler.eof, "its end was read first");
}

#[test]
fn input_sent_before_a_close_is_read_to_the_end() {
    const LEN: usize = 150_000;
    let mut server = Server::new("rest");
    let mut peer = server.connect();
    let writer = std::thread::spawn(move || peer.write_all(&[b'x'; LEN]).unwrap());
    server.until(|handler| handler.got == LEN);
    writer.join().unwrap();
    server.until(|handler| !handler.closed.is_empty());
    assert_eq!(server.handler.closed, [CloseReason::PeerReset]);
}

#[test]
fn a_peer_that_only_shuts_its_side_gets_its_reply() {
    let mut server = Server::new("half");
    let mut peer = server.connect();
    peer.write_all(b"request").unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    server.until(|handler| handler.eof);
    for _ in 0..3 {
        server.reactor.turn(&mut server.handler, Some(millis(10))).unwrap();
    }
    assert!(server.handler.closed.is_empty());
    let id = server.handler.opened.unwrap();
    {
        let mut cx = server.reactor.context();
        let mut conn = cx.conn(id).unwrap();
        conn.write(b"reply");
        conn.end_request();
    }
    server.until(|handler| !handler.closed.is_empty());
    let mut reply = String::new();
    peer.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "reply");
    assert_eq!(server.handler.closed, [CloseReason::PeerEof]);
}

#[test]
fn a_peer_that_shut_its_side_after_ours_may_read_on() {
    let mut server = Server::new("both");
    let mut peer = server.connect();
    peer.write_all(b"p").unwrap();
    server.until(|handler| handler.got == 1);
    let id = server.handler.opened.unwrap();
    {
        let mut cx = server.reactor.context();
        let mut conn = cx.conn(id).unwrap();
        conn.write(b"reply");
        conn.shutdown_write();
    }
    server.reactor.turn(&mut server.handler, Some(millis(10))).unwrap();
    // Both sides are shut, as at the end, and the peer has yet to read.
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..3 {
        server.reactor.turn(&mut server.handler, Some(millis(10))).unwrap();
    }
    assert!(server.handler.closed.is_empty());
    let mut reply = String::new();
    peer.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "reply");
}
