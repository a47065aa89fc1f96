//! Channels: clients that subscribe to them, and messages to these.

use std::collections::HashMap;

use indexmap::IndexSet;
use wheelhouse::{Conn, ConnId};

use crate::parse::Args;
use crate::reply;
use crate::server::{Core, Session};
use crate::value::{Hasher, Text};

/// Who has subscribed to what.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    subscribers: HashMap<Text, IndexSet<ConnId, Hasher>, Hasher>,
}

/// The memory that a subscription takes: the name is with the channel and with the client.
const fn cost(channel: &[u8]) -> usize {
    2 * (128 + Text::cost(channel.len()))
}

impl Channels {
    /// Channels that have subscribers.
    pub(crate) fn len(&self) -> usize {
        self.subscribers.len()
    }

    fn join(&mut self, id: ConnId, channel: &[u8]) {
        self.subscribers.entry(channel.into()).or_default().insert(id);
    }

    fn leave(&mut self, id: ConnId, channel: &[u8]) {
        if let Some(subscribers) = self.subscribers.get_mut(channel) {
            subscribers.swap_remove(&id);
            if subscribers.is_empty() {
                self.subscribers.remove(channel);
            }
        }
    }

    /// Sends a message to all subscribers, which share its bytes. Returns how many they are.
    pub(crate) fn publish(&self, conn: &mut Conn<'_>, channel: &[u8], text: &[u8]) -> usize {
        let mut receivers = 0;
        if let Some(subscribers) = self.subscribers.get(channel) {
            let mut message = b"*3\r\n$7\r\nmessage\r\n".to_vec();
            for part in [channel, text] {
                message.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
                message.extend_from_slice(part);
                message.extend_from_slice(b"\r\n");
            }
            let message = conn.cx().share(message);
            for id in subscribers {
                if let Some(mut subscriber) = conn.other(*id).filter(|it| !it.is_closing()) {
                    subscriber.write_shared(&message);
                    receivers += 1;
                }
            }
        }
        reply::count(conn, receivers);
        receivers
    }
}

pub(crate) fn subscribe(
    core: &mut Core,
    conn: &mut Conn<'_>,
    session: &mut Session,
    args: Args<'_>,
) {
    if session.channels.is_empty() {
        conn.set_timeouts(&core.settings.subscribed);
    }
    for channel in args.from(1) {
        if session.channels.insert(channel.into()) {
            core.store.take(cost(channel));
            core.channels.join(conn.id(), channel);
        }
        confirm(conn, "subscribe", Some(channel), session.channels.len());
    }
    core.clients.note_channels(conn.id(), session.channels.len());
}

pub(crate) fn unsubscribe(
    core: &mut Core,
    conn: &mut Conn<'_>,
    session: &mut Session,
    args: Args<'_>,
) {
    let was_subscribed = !session.channels.is_empty();
    if args.len() == 1 && !was_subscribed {
        confirm(conn, "unsubscribe", None, 0);
    }
    let all: Vec<Text> = match args.len() {
        1 => session.channels.iter().cloned().collect(),
        _ => args.from(1).map(Text::from).collect(),
    };
    for channel in all {
        if session.channels.swap_remove(&channel) {
            leave(core, conn.id(), &channel);
        }
        confirm(conn, "unsubscribe", Some(&channel), session.channels.len());
    }
    if was_subscribed && session.channels.is_empty() {
        conn.set_timeouts(&core.settings.timeouts);
    }
    core.clients.note_channels(conn.id(), session.channels.len());
}

/// Ends one subscription of a client.
pub(crate) fn leave(core: &mut Core, id: ConnId, channel: &[u8]) {
    core.store.give_back(cost(channel));
    core.channels.leave(id, channel);
}

/// Confirms a subscription or its end.
fn confirm(conn: &mut Conn<'_>, what: &str, channel: Option<&[u8]>, count: usize) {
    reply::array(conn, 3);
    reply::bulk(conn, what.as_bytes());
    reply::optional_bulk(conn, channel);
    reply::count(conn, count);
}
