//! A Redis in a simulated world, as far as the tests need one. Each connection has the state that it
//! would have there, so that a state that leaks shows.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BytesMut};
use wheelhouse::{Closed, Conn, ConnId, Context, Handler};

use crate::request::{Parsed, Parser};

#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) data: BTreeMap<(u32, Vec<u8>), Vec<u8>>,
    /// All commands that it has executed, as lines.
    pub(crate) log: Vec<String>,
    pub(crate) channels: BTreeMap<Vec<u8>, BTreeSet<ConnId>>,
    /// It answers nothing.
    pub(crate) is_silent: bool,
    /// What it answers in place of the next reply.
    pub(crate) instead: Option<Vec<u8>>,
}

#[derive(Default)]
pub(crate) struct State {
    parser: Parser,
    database: u32,
    queue: Option<Vec<Vec<Vec<u8>>>>,
    is_broken: bool,
    watches: bool,
    is_off: bool,
    channels: BTreeSet<Vec<u8>>,
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

impl Fake {
    fn execute(&mut self, conn: &mut Conn<'_>, state: &mut State, args: &[Vec<u8>]) -> Vec<u8> {
        let name = String::from_utf8_lossy(&args[0]).to_uppercase();
        let key = (state.database, args.get(1).cloned().unwrap_or_default());
        match (&name[..], args.len()) {
            ("EXEC", 1) => {
                let Some(queue) = state.queue.take() else {
                    return b"-ERR EXEC without MULTI\r\n".to_vec();
                };
                state.watches = false;
                if std::mem::take(&mut state.is_broken) {
                    return b"-EXECABORT discarded\r\n".to_vec();
                }
                let mut reply = format!("*{}\r\n", queue.len()).into_bytes();
                for args in queue {
                    reply.extend(self.execute(conn, state, &args));
                }
                return reply;
            }
            ("EXEC", _) => {
                (state.queue, state.is_broken, state.watches) = (None, false, false);
                return b"-EXECABORT wrong number of arguments\r\n".to_vec();
            }
            ("DISCARD", 1) if state.queue.is_some() => {
                state.queue = None;
                state.is_broken = false;
                state.watches = false;
                return b"+OK\r\n".to_vec();
            }
            ("MULTI", 1) if state.queue.is_some() => return b"-ERR nested\r\n".to_vec(),
            ("WHEELHOUSE-REFUSED", _) if state.queue.is_some() => {
                state.is_broken = true;
                return b"-ERR unknown command\r\n".to_vec();
            }
            _ => {}
        }
        if let Some(queue) = &mut state.queue {
            queue.push(args.to_vec());
            return b"+QUEUED\r\n".to_vec();
        }
        let line: Vec<_> = args.iter().map(|arg| arg.escape_ascii().to_string()).collect();
        self.log.push(line.join(" "));
        match (&name[..], args.len()) {
            ("PING", 1) if state.channels.is_empty() => b"+PONG\r\n".to_vec(),
            ("PING", _) => b"*2\r\n$4\r\npong\r\n$0\r\n\r\n".to_vec(),
            ("SET", 3) => {
                self.data.insert(key, args[2].clone());
                b"+OK\r\n".to_vec()
            }
            ("GET", 2) => {
                self.data.get(&key).map_or_else(|| b"$-1\r\n".to_vec(), |value| bulk(value))
            }
            ("GETRANGE", 4) => {
                let len = String::from_utf8_lossy(&args[3]).parse().expect("a length");
                bulk(&vec![b'x'; len])
            }
            ("INCR", 2) => {
                let value = self.data.get(&key).map_or(0, |value| {
                    String::from_utf8_lossy(value).parse::<u64>().expect("a number")
                });
                self.data.insert(key, (value + 1).to_string().into_bytes());
                format!(":{}\r\n", value + 1).into_bytes()
            }
            // The state of this connection, as text.
            ("ECHO", 2) => {
                let State { database, watches, .. } = state;
                format!("+{database} {watches} {}\r\n", state.channels.len()).into_bytes()
            }
            ("SELECT", 2) => {
                state.database = String::from_utf8_lossy(&args[1]).parse().expect("a number");
                b"+OK\r\n".to_vec()
            }
            ("CLIENT", 3) => {
                state.is_off = args[2].eq_ignore_ascii_case(b"OFF");
                Vec::new()
            }
            ("MULTI", 1) => {
                state.queue = Some(Vec::new());
                b"+OK\r\n".to_vec()
            }
            ("WATCH", _) => {
                state.watches = true;
                b"+OK\r\n".to_vec()
            }
            ("UNWATCH", _) => {
                state.watches = false;
                b"+OK\r\n".to_vec()
            }
            ("SUBSCRIBE", _) => {
                let mut reply = Vec::new();
                for channel in &args[1..] {
                    state.channels.insert(channel.clone());
                    self.channels.entry(channel.clone()).or_default().insert(conn.id());
                    reply.extend(acknowledge("subscribe", channel, state.channels.len()));
                }
                reply
            }
            ("UNSUBSCRIBE", _) => {
                let mut channels = args[1..].to_vec();
                if channels.is_empty() {
                    channels = state.channels.iter().cloned().collect();
                }
                let mut reply = Vec::new();
                for channel in &channels {
                    state.channels.remove(channel);
                    self.channels.entry(channel.clone()).or_default().remove(&conn.id());
                    reply.extend(acknowledge("unsubscribe", channel, state.channels.len()));
                }
                if channels.is_empty() {
                    reply.extend(b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n");
                }
                reply
            }
            ("PUBLISH", 3) => {
                let message =
                    [b"*3\r\n$7\r\nmessage\r\n".to_vec(), bulk(&args[1]), bulk(&args[2])].concat();
                let all = self.channels.get(&args[1]).cloned().unwrap_or_default();
                for id in &all {
                    if let Some(mut conn) = conn.other(*id) {
                        conn.write(&message);
                    }
                }
                format!(":{}\r\n", all.len()).into_bytes()
            }
            // It blocks for as long as nothing is pushed, and that is not known here.
            ("BLPOP", _) => Vec::new(),
            _ => format!("-ERR unknown command '{name}'\r\n").into_bytes(),
        }
    }
}

fn acknowledge(what: &str, channel: &[u8], count: usize) -> Vec<u8> {
    let head = [b"*3\r\n".to_vec(), bulk(what.as_bytes()), bulk(channel)].concat();
    [head, format!(":{count}\r\n").into_bytes()].concat()
}

impl Handler for Fake {
    type Session = State;

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<State> {
        Some(State::default())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, state: &mut State, input: &mut BytesMut) {
        loop {
            let (len, args) = match state.parser.next(input) {
                Ok(Parsed::Command(command)) => {
                    (command.len, command.args().map(<[u8]>::to_vec).collect::<Vec<_>>())
                }
                Ok(Parsed::Nothing(_)) => panic!("nothing is asked"),
                Ok(Parsed::Part(_)) => return,
                Err(error) => panic!("{error}: {}", input.escape_ascii()),
            };
            input.advance(len);
            let reply = self.execute(conn, state, &args);
            if let Some(instead) = self.instead.take() {
                conn.write(&instead);
            } else if !state.is_off && !self.is_silent {
                conn.write(&reply);
            }
        }
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, _: State) {
        for all in self.channels.values_mut() {
            all.remove(&closed.id);
        }
    }
}
