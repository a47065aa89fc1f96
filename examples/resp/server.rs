//! The server: commands in, replies out, in order.

use std::collections::HashMap;

use bytes::BytesMut;
use indexmap::IndexSet;
use wheelhouse::{
    AlarmId, CloseReason, Closed, Config, Conn, ConnId, Context, Handler, Instant, Timeout,
    Timeouts, frame,
};

use crate::command::{Action, COMMANDS, Command, Special};
use crate::glob;
use crate::parse::{Args, Parsed, Parser, Progress, Span};
use crate::reply::{self, Fault};
use crate::resp::number;
use crate::store::Store;
use crate::value::{Hasher, Text};

/// Commands served in one callback. Others have their turn before a client that sent more at once
/// goes on.
const COMMANDS_PER_CALL: usize = 128;

/// Messages that cost as much as a command.
const MESSAGES_PER_COMMAND: usize = 16;

/// What a name of a channel, or of a client, takes beside its bytes.
const NAME: usize = 128;

/// The settings of the store.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Bytes that keys may take, and all else that clients leave here.
    pub(crate) memory_max: usize,
    /// Bytes of one command.
    pub(crate) request_max: usize,
    /// What random choices follow from.
    pub(crate) seed: u64,
    /// What clients must not know: where keys lie follows from it.
    pub(crate) secret: [u64; 2],
    /// The timeouts of a client that has subscribed.
    pub(crate) subscribed: Timeouts,
    pub(crate) timeouts: Timeouts,
}

/// Settings that suit clients that keep connections in pools, and commands of `request_max` bytes.
pub(crate) fn defaults(request_max: usize) -> Config {
    let mut config = Config { timeouts: Timeouts::for_pooled_clients(), ..Config::default() };
    config.limits.input_max = request_max.saturating_add(64 * 1_024);
    config
}

/// A server of keys and values.
#[derive(Debug)]
pub(crate) struct Resp {
    parser: Parser,
    core: Core,
}

/// All but the command at hand.
#[derive(Debug)]
struct Core {
    settings: Settings,
    store: Store,
    clients: HashMap<ConnId, Client, Hasher>,
    channels: HashMap<Text, IndexSet<ConnId, Hasher>, Hasher>,
    numbers: u64,
    commands: u64,
}

/// What is known of a client beside its session, which its own callbacks alone reach.
#[derive(Debug)]
struct Client {
    number: u64,
    name: Text,
    since: Instant,
    channels: usize,
}

/// The state of a connection.
#[derive(Debug)]
pub(crate) struct Session {
    number: u64,
    progress: Progress,
    transaction: Option<Box<Transaction>>,
    channels: IndexSet<Text, Hasher>,
}

/// Commands that wait for EXEC.
#[derive(Debug, Default)]
struct Transaction {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    commands: Vec<(&'static Command, usize)>,
    has_failed: bool,
    takes_memory: bool,
    cost: usize,
}

impl Resp {
    pub(crate) fn new(settings: Settings) -> Self {
        let core = Core {
            store: Store::new(&settings),
            clients: HashMap::default(),
            channels: HashMap::default(),
            numbers: 0,
            commands: 0,
            settings,
        };
        Self { parser: Parser::new(core.settings.request_max), core }
    }
}

impl Handler for Resp {
    type Session = Session;

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Session> {
        // An empty line is input, and no request.
        conn.manual_requests();
        self.core.numbers += 1;
        let number = self.core.numbers;
        let client = Client { number, name: Text::default(), since: conn.now(), channels: 0 };
        self.core.clients.insert(conn.id(), client);
        Some(Session {
            number,
            progress: Progress::default(),
            transaction: None,
            channels: IndexSet::default(),
        })
    }

    /// Executes the commands that have come. If the client does not read its replies it stops, and is
    /// called again when they have left.
    #[inline]
    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut Session, input: &mut BytesMut) {
        let Self { parser, core } = self;
        let (mut at, mut budget) = (0, COMMANDS_PER_CALL);
        while !conn.is_congested() && !conn.is_closing() {
            if budget == 0 {
                conn.yield_now();
                break;
            }
            match parser.next(&mut session.progress, &input[at..]) {
                Ok(Parsed::Command(len, args)) => {
                    at += len;
                    let cost = 1 + core.serve(conn, session, args) / MESSAGES_PER_COMMAND;
                    budget = budget.saturating_sub(cost);
                    conn.count_request();
                }
                Ok(Parsed::Nothing(len)) => {
                    at += len;
                    budget -= 1;
                }
                Ok(Parsed::Part(needed)) => {
                    let left = input.len() - at;
                    if left > 0 && needed > left + 1 {
                        conn.expect_input(needed);
                    }
                    break;
                }
                Err(error) => {
                    let text = format!("ERR {error}").into_bytes();
                    reply::error(conn, &Fault::quoting(text));
                    conn.close();
                }
            }
        }
        frame::take_off(input, at);
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, _: &mut Session, reason: &CloseReason) {
        if let CloseReason::Timeout(Timeout::Request | Timeout::Read) = reason {
            conn.write(b"-ERR the command took too long to arrive\r\n");
        }
    }

    fn on_closed(&mut self, _: &mut Context<'_>, closed: Closed, session: Session) {
        let core = &mut self.core;
        for channel in &session.channels {
            core.leave(closed.id, channel);
        }
        if let Some(transaction) = &session.transaction {
            core.store.give_back(transaction.cost);
        }
        if let Some(client) = core.clients.remove(&closed.id) {
            core.store.give_back(Text::cost(client.name.len()));
        }
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        self.core.store.handle_alarm(cx, alarm);
    }
}

/// The name of a command that has the wrong number of arguments.
fn wrong_arity(name: &str) -> Fault {
    Fault::quoting(format!("ERR wrong number of arguments for '{name}' command").into_bytes())
}

fn unknown(args: Args<'_>) -> Fault {
    let word = |bytes: &[u8], most: usize| {
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        bytes[..bytes.len().min(most)].to_vec()
    };
    let mut quoted = Vec::new();
    for arg in args.from(1) {
        if quoted.len() >= 128 {
            break;
        }
        quoted.push(b'\'');
        quoted.extend(word(arg, 128 - (quoted.len() - 1)));
        quoted.extend_from_slice(b"' ");
    }
    let name = word(&args[0], 128);
    let text = [b"ERR unknown command '", &name[..], b"', with args beginning with: ", &quoted];
    Fault::quoting(text.concat())
}

impl Core {
    /// Executes or queues a command and replies to it. Returns how many messages that sent.
    #[inline]
    fn serve(&mut self, conn: &mut Conn<'_>, session: &mut Session, args: Args<'_>) -> usize {
        self.commands += 1;
        match self.admit(session, args) {
            Ok(Some(command)) => self.execute(conn, session, command, args),
            Ok(None) => {
                conn.write(b"+QUEUED\r\n");
                0
            }
            Err(fault) => {
                if let Some(transaction) = &mut session.transaction {
                    transaction.has_failed = true;
                }
                reply::error(conn, &fault);
                0
            }
        }
    }

    /// The command, if it is to be executed now; `None` if it waits for EXEC.
    #[inline]
    fn admit(
        &mut self,
        session: &mut Session,
        args: Args<'_>,
    ) -> Result<Option<&'static Command>, Fault> {
        let command = Command::of(&args[0]).ok_or_else(|| unknown(args))?;
        if !command.takes(args.len()) {
            return Err(wrong_arity(command.name));
        }
        refuse_subcommand(command, args)?;
        if self.store.is_full()
            && (command.takes_memory || session.transaction.is_some())
            && !matches!(command.action, Action::Client(Special::Exec | Special::Discard))
        {
            return Err(Fault::OUT_OF_MEMORY);
        }
        if !session.channels.is_empty() && session.transaction.is_none() {
            refuse_while_subscribed(command)?;
        }
        let Some(transaction) = &mut session.transaction else { return Ok(Some(command)) };
        if let Action::Client(Special::Exec | Special::Discard | Special::Multi | Special::Quit) =
            command.action
        {
            return Ok(Some(command));
        }
        let before = transaction.cost;
        transaction.push(command, args);
        self.store.take(transaction.cost - before);
        Ok(None)
    }

    #[inline]
    fn execute(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Session,
        command: &'static Command,
        args: Args<'_>,
    ) -> usize {
        let done = match command.action {
            Action::Data(run) => run(&mut self.store, conn, args).map(|()| 0),
            Action::Client(special) => self.special(conn, session, special, args),
        };
        done.unwrap_or_else(|fault| {
            reply::error(conn, &fault);
            0
        })
    }

    fn special(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Session,
        special: Special,
        args: Args<'_>,
    ) -> Result<usize, Fault> {
        match special {
            Special::Ping if args.len() > 2 => return Err(wrong_arity("ping")),
            Special::Ping if !session.channels.is_empty() => {
                reply::array(conn, 2);
                reply::bulk(conn, b"pong");
                reply::bulk(conn, args.get(1).unwrap_or_default());
            }
            Special::Ping => match args.get(1) {
                Some(text) => reply::bulk(conn, text),
                None => conn.write(b"+PONG\r\n"),
            },
            Special::Echo => reply::bulk(conn, &args[1]),
            Special::Quit => {
                reply::ok(conn);
                conn.close();
            }
            Special::Select => match number(&args[1]) {
                Some(0) => reply::ok(conn),
                Some(_) => return Err(Fault::of("ERR DB index is out of range")),
                None => return Err(Fault::NO_INTEGER),
            },
            Special::Multi if session.transaction.is_some() => {
                return Err(Fault::of("ERR MULTI calls can not be nested"));
            }
            Special::Multi => {
                session.transaction = Some(Box::default());
                reply::ok(conn);
            }
            Special::Discard => {
                let transaction = session.transaction.take();
                let transaction = transaction.ok_or(Fault::of("ERR DISCARD without MULTI"))?;
                self.store.give_back(transaction.cost);
                reply::ok(conn);
            }
            Special::Exec => return self.exec(conn, session),
            Special::Subscribe => self.subscribe(conn, session, args),
            Special::Unsubscribe => self.unsubscribe(conn, session, args),
            Special::Publish => return Ok(self.publish(conn, args)),
            Special::Client => self.client(conn, session, args)?,
            Special::Command => command(conn, args),
            Special::Config => self.config(conn, args),
            Special::Hello => self.hello(conn, session, args)?,
            Special::Info => self.info(conn),
        }
        Ok(0)
    }

    fn exec(&mut self, conn: &mut Conn<'_>, session: &mut Session) -> Result<usize, Fault> {
        let transaction = session.transaction.take();
        let transaction = transaction.ok_or(Fault::of("ERR EXEC without MULTI"))?;
        self.store.give_back(transaction.cost);
        if transaction.has_failed {
            let text = "EXECABORT Transaction discarded because of previous errors.";
            return Err(Fault::of(text));
        }
        if transaction.takes_memory && self.store.is_full() {
            let mut text = b"EXECABORT Transaction discarded because of: ".to_vec();
            text.extend_from_slice(Fault::OUT_OF_MEMORY.text());
            return Err(Fault::quoting(text));
        }
        reply::array(conn, transaction.commands.len());
        let (mut from, mut messages) = (0, 0);
        for (command, to) in &transaction.commands {
            let args = Args::new(&transaction.bytes, &transaction.spans[from..*to]);
            messages += self.execute(conn, session, command, args);
            from = *to;
        }
        Ok(messages)
    }
}

/// The subcommands of those that have some, and how many arguments each takes with both names.
const SUBCOMMANDS: &[(Special, &str, i32)] = &[
    (Special::Client, "getname", 2),
    (Special::Client, "id", 2),
    (Special::Client, "kill", -3),
    (Special::Client, "list", -2),
    (Special::Client, "setname", 3),
    (Special::Config, "get", -3),
];

#[inline]
fn refuse_subcommand(command: &Command, args: Args<'_>) -> Result<(), Fault> {
    let Action::Client(special @ (Special::Client | Special::Config)) = command.action else {
        return Ok(());
    };
    let found = SUBCOMMANDS
        .iter()
        .find(|(of, name, _)| *of == special && args[1].eq_ignore_ascii_case(name.as_bytes()));
    let Some((_, name, arity)) = found else {
        return Err(unknown_subcommand(&command.name.to_ascii_uppercase(), &args[1]));
    };
    let least = arity.unsigned_abs() as usize;
    if args.len() == least || *arity < 0 && args.len() > least {
        return Ok(());
    }
    Err(wrong_arity(&format!("{}|{name}", command.name)))
}

fn refuse_while_subscribed(command: &Command) -> Result<(), Fault> {
    let is_allowed = matches!(
        command.action,
        Action::Client(Special::Ping | Special::Quit | Special::Subscribe | Special::Unsubscribe)
    );
    if is_allowed {
        return Ok(());
    }
    let text = format!(
        "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are \
         allowed in this context",
        command.name
    );
    Err(Fault::quoting(text.into_bytes()))
}

impl Transaction {
    fn push(&mut self, command: &'static Command, args: Args<'_>) {
        for arg in args.from(0) {
            let start = self.bytes.len() as u32;
            self.bytes.extend_from_slice(arg);
            self.spans.push(Span { start, end: self.bytes.len() as u32 });
        }
        self.commands.push((command, self.spans.len()));
        self.takes_memory |= command.takes_memory;
        self.cost = self.bytes.capacity()
            + self.spans.capacity() * size_of::<Span>()
            + self.commands.capacity() * size_of::<(&Command, usize)>();
    }
}

/// Channels.
impl Core {
    fn subscribe(&mut self, conn: &mut Conn<'_>, session: &mut Session, args: Args<'_>) {
        if session.channels.is_empty() {
            conn.set_timeouts(&self.settings.subscribed);
        }
        for channel in args.from(1) {
            if session.channels.insert(channel.into()) {
                self.store.take(2 * (NAME + Text::cost(channel.len())));
                self.channels.entry(channel.into()).or_default().insert(conn.id());
            }
            confirm(conn, "subscribe", Some(channel), session.channels.len());
        }
        self.note_channels(conn.id(), session);
    }

    fn unsubscribe(&mut self, conn: &mut Conn<'_>, session: &mut Session, args: Args<'_>) {
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
                self.leave(conn.id(), &channel);
            }
            confirm(conn, "unsubscribe", Some(&channel), session.channels.len());
        }
        if was_subscribed && session.channels.is_empty() {
            conn.set_timeouts(&self.settings.timeouts);
        }
        self.note_channels(conn.id(), session);
    }

    fn note_channels(&mut self, id: ConnId, session: &Session) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.channels = session.channels.len();
        }
    }

    fn leave(&mut self, id: ConnId, channel: &[u8]) {
        self.store.give_back(2 * (NAME + Text::cost(channel.len())));
        if let Some(subscribers) = self.channels.get_mut(channel) {
            subscribers.swap_remove(&id);
            if subscribers.is_empty() {
                self.channels.remove(channel);
            }
        }
    }

    /// Sends a message to all subscribers, which share its bytes. Returns how many they are.
    fn publish(&self, conn: &mut Conn<'_>, args: Args<'_>) -> usize {
        let (channel, text) = (&args[1], &args[2]);
        let mut receivers = 0;
        if let Some(subscribers) = self.channels.get(channel) {
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

/// Confirms a subscription or its end.
fn confirm(conn: &mut Conn<'_>, what: &str, channel: Option<&[u8]>, count: usize) {
    reply::array(conn, 3);
    reply::bulk(conn, what.as_bytes());
    reply::optional_bulk(conn, channel);
    reply::count(conn, count);
}

/// Clients and the server.
impl Core {
    fn client(
        &mut self,
        conn: &mut Conn<'_>,
        session: &Session,
        args: Args<'_>,
    ) -> Result<(), Fault> {
        let id = conn.id();
        match (&args[1].to_ascii_uppercase()[..], args.len()) {
            (b"ID", 2) => reply::integer(conn, session.number as i64),
            (b"GETNAME", 2) => {
                let name = self.clients.get(&id).map(|client| &*client.name);
                reply::optional_bulk(conn, name.filter(|name| !name.is_empty()));
            }
            (b"SETNAME", 3) => {
                if !args[2].iter().all(|byte| (b'!'..=b'~').contains(byte)) {
                    let text = "ERR Client names cannot contain spaces, newlines or special \
                                characters.";
                    return Err(Fault::of(text));
                }
                if self.store.is_full() {
                    return Err(Fault::OUT_OF_MEMORY);
                }
                if let Some(client) = self.clients.get_mut(&id) {
                    self.store.give_back(Text::cost(client.name.len()));
                    client.name = Text::from(&args[2]);
                    self.store.take(Text::cost(client.name.len()));
                }
                reply::ok(conn);
            }
            (b"LIST", 2) => {
                let text = self.list(conn);
                reply::bulk(conn, text.as_bytes());
            }
            (b"KILL", 3) => {
                let found = self.clients.keys().copied().find(|id| is_at(conn, *id, &args[2]));
                let found = found.ok_or(Fault::of("ERR No such client"))?;
                reply::ok(conn);
                end(conn, found);
            }
            (b"KILL", 4) if args[2].eq_ignore_ascii_case(b"ID") => {
                let number = number(&args[3]).filter(|number| *number > 0);
                let number = number.ok_or(Fault::of("ERR client-id should be greater than 0"))?;
                let found = self.clients.iter().find(|(_, it)| it.number == number as u64);
                let found = found.map(|(id, _)| *id);
                // The client that asks is spared, as SKIPME is yes.
                let found = found.filter(|found| *found != id && is_live(conn, *found));
                reply::count(conn, found.into_iter().count());
                if let Some(found) = found {
                    end(conn, found);
                }
            }
            (b"KILL", 4) if args[2].eq_ignore_ascii_case(b"ADDR") => {
                let found = self.clients.keys().copied().find(|id| is_at(conn, *id, &args[3]));
                let found = found.filter(|found| *found != id && is_live(conn, *found));
                reply::count(conn, found.into_iter().count());
                if let Some(found) = found {
                    end(conn, found);
                }
            }
            (b"KILL", 4..) => return Err(Fault::SYNTAX),
            _ => return Err(Fault::SYNTAX),
        }
        Ok(())
    }

    fn list(&self, conn: &mut Conn<'_>) -> String {
        let now = conn.now();
        let mut clients: Vec<_> = self.clients.iter().collect();
        clients.sort_unstable_by_key(|(_, client)| client.number);
        let mut text = String::new();
        for (id, client) in clients {
            let Some(other) = conn.other(*id) else { continue };
            text += &format!(
                "id={} addr={} name={} age={} flags={} db=0 sub={} psub=0 omem={} user=default \
                 resp=2\n",
                client.number,
                other.peer_addr(),
                String::from_utf8_lossy(&client.name),
                now.duration_since(client.since).as_secs(),
                if client.channels > 0 { 'P' } else { 'N' },
                client.channels,
                other.queued(),
            );
        }
        text
    }

    /// Settings that clients ask for; none can be changed.
    fn config(&self, conn: &mut Conn<'_>, args: Args<'_>) {
        let settings = [
            ("save", String::new()),
            ("appendonly", "no".to_owned()),
            ("databases", "1".to_owned()),
            ("maxmemory", self.store.used_max().to_string()),
            ("maxmemory-policy", "noeviction".to_owned()),
            ("proto-max-bulk-len", self.store.text_max().to_string()),
        ];
        let matches = |name: &str| {
            args.from(2).any(|it| glob::matches(&it.to_ascii_lowercase(), name.as_bytes()))
        };
        let found: Vec<_> = settings.iter().filter(|(name, _)| matches(name)).collect();
        reply::array(conn, 2 * found.len());
        for (name, value) in found {
            reply::bulk(conn, name.as_bytes());
            reply::bulk(conn, value.as_bytes());
        }
    }

    fn hello(&self, conn: &mut Conn<'_>, session: &Session, args: Args<'_>) -> Result<(), Fault> {
        match args.get(1).map(number) {
            None | Some(Some(2)) => {}
            Some(Some(_)) => return Err(Fault::of("NOPROTO unsupported protocol version")),
            Some(None) => {
                let text = "ERR Protocol version is not an integer or out of range";
                return Err(Fault::of(text));
            }
        }
        if args.len() > 2 {
            return Err(Fault::SYNTAX);
        }
        reply::array(conn, 14);
        for (name, value) in [("server", "redis"), ("version", "7.0.0")] {
            reply::bulk(conn, name.as_bytes());
            reply::bulk(conn, value.as_bytes());
        }
        reply::bulk(conn, b"proto");
        reply::integer(conn, 2);
        reply::bulk(conn, b"id");
        reply::integer(conn, session.number as i64);
        for (name, value) in [("mode", "standalone"), ("role", "master")] {
            reply::bulk(conn, name.as_bytes());
            reply::bulk(conn, value.as_bytes());
        }
        reply::bulk(conn, b"modules");
        reply::array(conn, 0);
        Ok(())
    }

    fn info(&self, conn: &mut Conn<'_>) {
        let text = format!(
            "# Server\r\nredis_version:7.0.0\r\nredis_mode:standalone\r\n\r\n\
             # Clients\r\nconnected_clients:{}\r\n\r\n\
             # Memory\r\nused_memory:{}\r\nmaxmemory:{}\r\nmaxmemory_policy:noeviction\r\n\r\n\
             # Stats\r\ntotal_commands_processed:{}\r\nexpired_keys:{}\r\npubsub_channels:{}\r\n\r\n\
             # Keyspace\r\ndb0:keys={},expires={}\r\n",
            self.clients.len(),
            self.store.used(),
            self.store.used_max(),
            self.commands,
            self.store.expired(),
            self.channels.len(),
            self.store.len(),
            self.store.expiring(),
        );
        reply::bulk(conn, text.as_bytes());
    }
}

fn unknown_subcommand(command: &str, word: &[u8]) -> Fault {
    let word = &word[..word.len().min(128)];
    let text = [b"ERR unknown subcommand '", word, b"'. Try ", command.as_bytes(), b" HELP."];
    Fault::quoting(text.concat())
}

/// What COMMAND says: redis-cli goes without the documentation of commands.
fn command(conn: &mut Conn<'_>, args: Args<'_>) {
    match args.get(1) {
        Some(word) if word.eq_ignore_ascii_case(b"COUNT") => reply::count(conn, COMMANDS.len()),
        _ => reply::array(conn, 0),
    }
}

fn is_live(conn: &mut Conn<'_>, id: ConnId) -> bool {
    conn.other(id).is_some_and(|it| !it.is_closing())
}

fn is_at(conn: &mut Conn<'_>, id: ConnId, address: &[u8]) -> bool {
    is_live(conn, id)
        && conn.other(id).is_some_and(|it| it.peer_addr().to_string().as_bytes() == address)
}

/// Ends a client. One that does not read what is queued for it is not waited for.
fn end(conn: &mut Conn<'_>, id: ConnId) {
    let own = conn.id() == id;
    if let Some(mut client) = conn.other(id) {
        if own || client.queued() == 0 { client.close() } else { client.abort() }
    }
}
