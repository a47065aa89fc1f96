//! The server: commands in, replies out, in order.

use bytes::BytesMut;
use indexmap::IndexSet;
use wheelhouse::{
    AlarmId, CloseReason, Closed, Config, Conn, Context, Handler, Timeout, Timeouts, frame,
};

use crate::channels::{self, Channels};
use crate::clients::{self, Clients};
use crate::command::{Action, Command, Special};
use crate::info;
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
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) store: Store,
    pub(crate) clients: Clients,
    pub(crate) channels: Channels,
    /// Commands that came.
    pub(crate) commands: u64,
}

/// The state of a connection.
#[derive(Debug)]
pub(crate) struct Session {
    number: u64,
    progress: Progress,
    transaction: Option<Box<Transaction>>,
    pub(crate) channels: IndexSet<Text, Hasher>,
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
            clients: Clients::default(),
            channels: Channels::default(),
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
        Some(Session {
            number: self.core.clients.open(conn),
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
            channels::leave(core, closed.id, channel);
        }
        if let Some(transaction) = &session.transaction {
            core.store.give_back(transaction.cost);
        }
        core.clients.close(closed.id, &mut core.store);
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        self.core.store.handle_alarm(cx, alarm);
    }
}

/// Whether this is no command, but the beginning of a line of HTTP: a browser was made to send it.
fn is_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"POST") || name.eq_ignore_ascii_case(b"HOST:")
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

/// The error of an EXEC that executes nothing, and why it does not.
fn aborted_by(fault: &Fault) -> Fault {
    let cause = fault.text();
    let cause = cause.strip_prefix(b"ERR ").unwrap_or(cause);
    Fault::quoting([b"EXECABORT Transaction discarded because of: ", cause].concat())
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
            // As Redis does: the next lines may be commands that an attacker chose.
            Err(_) if is_http(&args[0]) => {
                conn.close();
                0
            }
            Err(fault) => {
                let fault = self.fail_transaction(session, &args[0], fault);
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
            return Err(Fault::wrong_arity(command.name));
        }
        let subcommand = subcommand(command, args)?;
        if self.store.is_full()
            && (command.takes_memory || session.transaction.is_some())
            && !matches!(command.action, Action::Client(Special::Exec | Special::Discard))
        {
            return Err(Fault::OUT_OF_MEMORY);
        }
        if !session.channels.is_empty() && session.transaction.is_none() {
            refuse_while_subscribed(command, subcommand)?;
        }
        let Some(transaction) = &mut session.transaction else { return Ok(Some(command)) };
        if let Action::Client(Special::Exec | Special::Discard | Special::Multi | Special::Quit) =
            command.action
        {
            return Ok(Some(command));
        }
        if !transaction.has_room(args) {
            return Err(Fault::OUT_OF_MEMORY);
        }
        let before = transaction.cost;
        transaction.push(command, args);
        self.store.take(transaction.cost - before);
        Ok(None)
    }

    /// A command of this name was refused: EXEC fails if there is a transaction, and EXEC itself ends
    /// it. Returns what the reply is.
    fn fail_transaction(&mut self, session: &mut Session, name: &[u8], fault: Fault) -> Fault {
        if !name.eq_ignore_ascii_case(b"EXEC") {
            if let Some(transaction) = &mut session.transaction {
                transaction.has_failed = true;
            }
            return fault;
        }
        if let Some(transaction) = session.transaction.take() {
            self.store.give_back(transaction.cost);
        }
        aborted_by(&fault)
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
            Special::Ping if args.len() > 2 => return Err(Fault::wrong_arity("ping")),
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
                Some(number) if i32::try_from(number).is_err() => {
                    let text = "ERR value is out of range, value must between -2147483648 and \
                                2147483647";
                    return Err(Fault::of(text));
                }
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
            Special::Subscribe => channels::subscribe(self, conn, session, args),
            Special::Unsubscribe => channels::unsubscribe(self, conn, session, args),
            Special::Publish => return Ok(self.channels.publish(conn, &args[1], &args[2])),
            Special::Client => {
                return clients::command(&mut self.clients, &mut self.store, conn, args);
            }
            Special::Command => info::command(conn, args),
            Special::Config => info::config(&self.store, conn, args),
            Special::Hello => info::hello(conn, session.number, args)?,
            Special::Info => info::info(self, conn),
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
            return Err(aborted_by(&Fault::OUT_OF_MEMORY));
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

/// The name of the subcommand, if the command has some.
#[inline]
fn subcommand(command: &Command, args: Args<'_>) -> Result<Option<&'static str>, Fault> {
    let Action::Client(special @ (Special::Client | Special::Config)) = command.action else {
        return Ok(None);
    };
    let found = SUBCOMMANDS
        .iter()
        .find(|(of, name, _)| *of == special && args[1].eq_ignore_ascii_case(name.as_bytes()));
    let Some((_, name, arity)) = found else {
        return Err(unknown_subcommand(&command.name.to_ascii_uppercase(), &args[1]));
    };
    let least = arity.unsigned_abs() as usize;
    if args.len() == least || *arity < 0 && args.len() > least {
        return Ok(Some(name));
    }
    Err(Fault::wrong_arity(&format!("{}|{name}", command.name)))
}

fn refuse_while_subscribed(command: &Command, subcommand: Option<&str>) -> Result<(), Fault> {
    let is_allowed = matches!(
        command.action,
        Action::Client(Special::Ping | Special::Quit | Special::Subscribe | Special::Unsubscribe)
    );
    if is_allowed {
        return Ok(());
    }
    let (name, bar) = (command.name, if subcommand.is_some() { "|" } else { "" });
    let text = format!(
        "ERR Can't execute '{name}{bar}{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / \
         RESET are allowed in this context",
        subcommand.unwrap_or_default()
    );
    Err(Fault::quoting(text.into_bytes()))
}

impl Transaction {
    /// Whether the places of these arguments behind the others fit into a [`Span`].
    fn has_room(&self, args: Args<'_>) -> bool {
        let more: usize = args.from(0).map(<[u8]>::len).sum();
        u32::try_from(self.bytes.len() + more).is_ok()
    }

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

fn unknown_subcommand(command: &str, word: &[u8]) -> Fault {
    let word = &word[..word.len().min(128)];
    let text = [b"ERR unknown subcommand '", word, b"'. Try ", command.as_bytes(), b" HELP."];
    Fault::quoting(text.concat())
}
