//! What is known of clients: CLIENT LIST, KILL, SETNAME and the like.

use indexmap::IndexMap;
use wheelhouse::{Address, Conn, ConnId, Instant};

use crate::parse::Args;
use crate::reply::{self, Fault};
use crate::resp::number;
use crate::store::Store;
use crate::value::{Hasher, Text};

#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// In an order that does not depend on their hashes: a run is replayed call by call.
    open: IndexMap<ConnId, Client, Hasher>,
    numbers: u64,
}

/// What is known of a client beside its session, which its own callbacks alone reach.
#[derive(Debug)]
struct Client {
    number: u64,
    name: Text,
    since: Instant,
    channels: usize,
}

impl Clients {
    /// Adds one. Returns its number, which no other has had.
    pub(crate) fn open(&mut self, conn: &Conn<'_>) -> u64 {
        self.numbers += 1;
        let number = self.numbers;
        let client = Client { number, name: Text::default(), since: conn.now(), channels: 0 };
        self.open.insert(conn.id(), client);
        number
    }

    /// Removes one, with what it had taken of the store's memory.
    pub(crate) fn close(&mut self, id: ConnId, store: &mut Store) {
        if let Some(client) = self.open.swap_remove(&id) {
            store.give_back(Text::cost(client.name.len()));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// A client has subscribed to so many channels.
    pub(crate) fn note_channels(&mut self, id: ConnId, channels: usize) {
        if let Some(client) = self.open.get_mut(&id) {
            client.channels = channels;
        }
    }
}

/// Serves the subcommands of CLIENT. Returns how many clients were looked through.
pub(crate) fn command(
    clients: &mut Clients,
    store: &mut Store,
    conn: &mut Conn<'_>,
    args: Args<'_>,
) -> Result<usize, Fault> {
    let own = clients.open.get(&conn.id());
    let mut passed = 0;
    match &args[1].to_ascii_uppercase()[..] {
        b"ID" => reply::integer(conn, own.map_or(0, |client| client.number as i64)),
        b"GETNAME" => {
            let name = own.map(|client| &*client.name);
            reply::optional_bulk(conn, name.filter(|name| !name.is_empty()));
        }
        b"SETNAME" => {
            set_name(clients, store, conn.id(), &args[2])?;
            reply::ok(conn);
        }
        b"LIST" => {
            passed = clients.open.len();
            let text = list(clients, conn, args)?;
            reply::bulk(conn, text.as_bytes());
        }
        _ => {
            passed = clients.open.len();
            kill(clients, conn, args)?;
        }
    }
    Ok(passed)
}

fn set_name(
    clients: &mut Clients,
    store: &mut Store,
    id: ConnId,
    name: &[u8],
) -> Result<(), Fault> {
    if !name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        let text = "ERR Client names cannot contain spaces, newlines or special characters.";
        return Err(Fault::of(text));
    }
    if store.is_full() {
        return Err(Fault::OUT_OF_MEMORY);
    }
    if let Some(client) = clients.open.get_mut(&id) {
        store.give_back(Text::cost(client.name.len()));
        client.name = name.into();
        store.take(Text::cost(name.len()));
    }
    Ok(())
}

/// The types of clients that Redis tells apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Normal,
    /// It has subscribed.
    Subscriber,
    /// One of a replication, which there is not.
    Replication,
}

impl Kind {
    fn parse(word: &[u8]) -> Result<Self, Fault> {
        match &word.to_ascii_lowercase()[..] {
            b"normal" => Ok(Self::Normal),
            b"pubsub" => Ok(Self::Subscriber),
            b"master" | b"replica" | b"slave" => Ok(Self::Replication),
            _ => {
                let word = &word[..word.len().min(40)];
                Err(Fault::quoting([b"ERR Unknown client type '", word, b"'"].concat()))
            }
        }
    }

    const fn of(client: &Client) -> Self {
        if client.channels > 0 { Self::Subscriber } else { Self::Normal }
    }
}

fn list(clients: &Clients, conn: &mut Conn<'_>, args: Args<'_>) -> Result<String, Fault> {
    let mut chosen: Vec<_> = clients.open.iter().collect();
    chosen.sort_unstable_by_key(|(_, client)| client.number);
    let filter = args.get(2).map(|word| word.to_ascii_uppercase());
    match (filter.as_deref(), args.len()) {
        (None, _) => {}
        (Some(b"TYPE"), 4) => {
            let kind = Kind::parse(&args[3])?;
            chosen.retain(|(_, client)| Kind::of(client) == kind);
        }
        // In the order in which they are asked for, and as often; but what is more than there are
        // clients is one again, and a long command would have a reply many times as long.
        (Some(b"ID"), 4..) => {
            let mut asked = Vec::new();
            for word in args.from(3) {
                let number = number(word).ok_or(Fault::of("ERR Invalid client ID"))?;
                let Ok(number) = u64::try_from(number) else { continue };
                let place = chosen.binary_search_by_key(&number, |(_, client)| client.number);
                asked
                    .extend(place.ok().filter(|_| asked.len() < chosen.len()).map(|at| chosen[at]));
            }
            chosen = asked;
        }
        _ => return Err(Fault::SYNTAX),
    }
    let now = conn.now();
    let mut text = String::new();
    for (id, client) in chosen {
        let Some(other) = conn.other(*id) else { continue };
        text += &format!(
            "id={} addr={} laddr={} name={} age={} flags={} db=0 sub={} psub=0 omem={} \
             user=default resp=2\n",
            client.number,
            other.peer_addr(),
            other.local_addr().map(Address::to_string).unwrap_or_default(),
            String::from_utf8_lossy(&client.name),
            now.duration_since(client.since).as_secs(),
            if client.channels > 0 { 'P' } else { 'N' },
            client.channels,
            other.queued(),
        );
    }
    Ok(text)
}

/// Which clients are to be ended: those that all of this is true of.
#[derive(Debug)]
struct Filter<'a> {
    number: Option<i64>,
    kind: Option<Kind>,
    peer: Option<&'a [u8]>,
    local: Option<&'a [u8]>,
    /// Not the one that asks.
    spares_own: bool,
}

impl<'a> Filter<'a> {
    fn parse(args: Args<'a>) -> Result<Self, Fault> {
        let mut filter =
            Self { number: None, kind: None, peer: None, local: None, spares_own: true };
        let mut words = args.from(2);
        while let Some(name) = words.next() {
            let value = words.next().ok_or(Fault::SYNTAX)?;
            match &name.to_ascii_uppercase()[..] {
                b"ID" => {
                    let number = number(value).filter(|number| *number > 0);
                    let fault = Fault::of("ERR client-id should be greater than 0");
                    filter.number = Some(number.ok_or(fault)?);
                }
                b"TYPE" => filter.kind = Some(Kind::parse(value)?),
                b"ADDR" => filter.peer = Some(value),
                b"LADDR" => filter.local = Some(value),
                // All are the same user.
                b"USER" if value == b"default" => {}
                b"USER" => {
                    return Err(Fault::quoting([b"ERR No such user '", value, b"'"].concat()));
                }
                b"SKIPME" if value.eq_ignore_ascii_case(b"yes") => filter.spares_own = true,
                b"SKIPME" if value.eq_ignore_ascii_case(b"no") => filter.spares_own = false,
                _ => return Err(Fault::SYNTAX),
            }
        }
        Ok(filter)
    }

    fn matches(&self, conn: &mut Conn<'_>, id: ConnId, client: &Client) -> bool {
        let may_be = !(self.spares_own && conn.id() == id)
            && self.number.is_none_or(|number| client.number as i64 == number)
            && self.kind.is_none_or(|kind| Kind::of(client) == kind);
        // Another connection is reached last: what is reached is settled at the end of the turn.
        let other = if may_be { conn.other(id) } else { None };
        let Some(other) = other.filter(|other| !other.is_closing()) else { return false };
        let is = |address: &Address, text: &[u8]| address.to_string().as_bytes() == text;
        self.peer.is_none_or(|text| is(other.peer_addr(), text))
            && self.local.is_none_or(|text| other.local_addr().is_some_and(|it| is(it, text)))
    }
}

/// With one word, the client at this address is ended; with filters, all that they match.
fn kill(clients: &Clients, conn: &mut Conn<'_>, args: Args<'_>) -> Result<(), Fault> {
    let is_address = args.len() == 3;
    let filter = if is_address {
        let peer = Some(&args[2]);
        Filter { number: None, kind: None, peer, local: None, spares_own: false }
    } else {
        Filter::parse(args)?
    };
    let matching = clients.open.iter().filter(|(id, client)| filter.matches(conn, **id, client));
    let found: Vec<_> = matching.map(|(id, _)| *id).collect();
    match (is_address, found.len()) {
        (true, 0) => return Err(Fault::of("ERR No such client")),
        (true, _) => reply::ok(conn),
        (false, count) => reply::count(conn, count),
    }
    found.into_iter().for_each(|id| end(conn, id));
    Ok(())
}

/// Ends a client. One that does not read what is queued for it is not waited for.
fn end(conn: &mut Conn<'_>, id: ConnId) {
    let own = conn.id() == id;
    if let Some(mut client) = conn.other(id) {
        if own || client.queued() == 0 { client.close() } else { client.abort() }
    }
}
