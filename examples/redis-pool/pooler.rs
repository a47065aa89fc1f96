//! The handler: clients that ask, and the upstream connections that they share.
//!
//! A client's commands are gathered in a batch, which waits for a lease and then is sent over it. What
//! is expected back is kept by the id of the leased connection, because both ends of the exchange
//! need it: the client's callbacks to send, the upstream connection's to pass the replies on.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use wheelhouse::pool::{AcquireError, AcquireOptions, PoolConfig, PoolId, WaitId};
use wheelhouse::{
    CloseReason, Config, Conn, ConnId, Context, Handler, Origin, Target, Timeout, Timeouts,
};

use crate::command::{Class, has_block};
use crate::exchange::{Batch, Exchange, Expect, Meaning, Pins, Refusal};
use crate::reply::Scanner;
use crate::request::{Command, Parsed, Parser, REQUEST_MAX};
use crate::resp::{INLINE_MAX, number};

/// Clients that may wait for a connection at once.
const WAITERS_MAX: usize = 1 << 17;

/// Input that a client which waits for its own reply may have before it is not read any more. Until
/// then its end is seen; from then on it waits no longer than for any reply.
const HELD_MAX: usize = INLINE_MAX;

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const PONG: &[u8] = b"+PONG\r\n";

/// Bytes of the name that a client gives itself.
const NAME_MAX: usize = 256;

/// What no server knows, so that it fails the transaction in which it is.
const UNKNOWN: &[u8] = b"*1\r\n$18\r\nWHEELHOUSE-REFUSED\r\n";

const OK: &[u8] = b"+OK\r\n";

/// How the reply to an EXEC begins that ended its transaction without executing it.
const ABORTED: &[u8] = b"-EXECABORT";

/// Settings that suit clients which keep their connections, and requests of up to 1 MiB.
pub(crate) fn defaults() -> Config {
    let mut config = Config { timeouts: Timeouts::for_pooled_clients(), ..Config::default() };
    config.limits.input_max = REQUEST_MAX + 64 * 1_024;
    config
}

/// The settings of the pooler.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) upstream: Target,
    pub(crate) size: usize,
    pub(crate) acquire: Duration,
    pub(crate) check: Duration,
    /// Those of the reactor.
    pub(crate) timeouts: Timeouts,
}

impl Settings {
    fn pool(&self) -> PoolConfig {
        PoolConfig {
            size: self.size,
            idle_max: self.size,
            waiters_max: WAITERS_MAX,
            acquire: self.acquire,
            // Redis closes no idle connection unless it is set to, and the check finds those that
            // are gone.
            idle: None,
            ping_after: Some(self.check),
            timeouts: Some(self.timeouts(true)),
            ..PoolConfig::default()
        }
    }

    /// The timeouts of a client, or of a connection of the pool.
    fn timeouts(&self, is_pooled: bool) -> Timeouts {
        let timeouts = self.timeouts.clone();
        if is_pooled {
            // What is read no faster than a client reads ends with the client, by its `write`.
            Timeouts { response: None, idle: None, ping_after: None, lifetime: None, ..timeouts }
        } else {
            timeouts
        }
    }

    /// The same while it waits for what may take any time.
    fn relaxed(&self, is_pooled: bool) -> Timeouts {
        Timeouts { response: None, read: None, ..self.timeouts(is_pooled) }
    }
}

/// A connection pooler for Redis.
#[derive(Debug)]
pub(crate) struct Pooler {
    settings: Settings,
    pool: Option<PoolId>,
    /// By the leased connection.
    exchanges: BTreeMap<ConnId, Exchange>,
    /// Connections that are pinned, or about to be.
    pinned: usize,
    /// Clients so far.
    clients: u64,
}

#[derive(Debug)]
pub(crate) enum Session {
    Client(Box<Client>),
    Upstream(Scanner),
}

#[derive(Debug, Default)]
pub(crate) struct Client {
    number: u64,
    name: Vec<u8>,
    parser: Parser,
    /// What waits for a lease.
    waiting: Option<Batch>,
    /// The connection leased last, which may have been given back.
    lease: Option<ConnId>,
    /// It has left input while it waits.
    held: bool,
    /// Its MULTI was refused, and what follows is refused until EXEC or DISCARD.
    refused: bool,
    /// Nothing more is served.
    over: bool,
}

/// Why no more commands are added to a batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stop {
    /// The next command is not whole before there are so many bytes.
    Part(usize),
    /// The next command has to wait for the replies to this batch.
    Later,
    /// The next command has a local reply, or is none.
    Local,
}

/// What a command asks for, where it goes to the server.
enum Route {
    Send(Expect, Pins),
    /// It goes alone, with a PING after it.
    Subscribe,
    Local,
}

impl Handler for Pooler {
    type Session = Session;

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let pool = cx.add_pool(self.settings.upstream.clone(), &self.settings.pool());
        self.pool = Some(pool.expect("the settings were checked"));
    }

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<Session> {
        conn.manual_requests();
        if let Origin::Pool(_) = conn.origin() {
            return Some(Session::Upstream(Scanner::default()));
        }
        self.clients += 1;
        Some(Session::Client(Box::new(Client { number: self.clients, ..Client::default() })))
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut Session, input: &mut BytesMut) {
        match session {
            Session::Client(client) => self.serve(conn, client, input),
            Session::Upstream(scanner) => self.pass_on(conn, scanner, input),
        }
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Session,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let Session::Client(client) = session else { return };
        let Some(batch) = client.waiting.take() else { return };
        match lease {
            Ok(lease) => self.send(conn, client, lease, batch),
            Err(error) => {
                self.fail_batch(conn, client, batch, &error);
                if std::mem::take(&mut client.held) {
                    resume(conn);
                }
            }
        }
    }

    fn on_lease_replaced(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Session,
        lost: ConnId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let Session::Client(client) = session else { return };
        let Some(mut exchange) = self.exchanges.remove(&lost) else { return };
        match lease {
            Ok(lease) => {
                (exchange.lost, exchange.throttled) = (false, false);
                client.lease = Some(lease);
                self.exchanges.insert(lease, exchange);
            }
            Err(error) => self.fail(conn, &exchange, &format!("-ERR no upstream: {error}\r\n")),
        }
    }

    fn on_health_check(&mut self, conn: &mut Conn<'_>, _: &mut Session) {
        conn.begin_request();
        conn.write(PING);
    }

    /// A client that waits for what may never come is gone; one with other replies to come gets them.
    fn on_eof(&mut self, conn: &mut Conn<'_>, session: &mut Session, _: &mut BytesMut) {
        let Session::Client(client) = session else { return };
        let waits = |exchange: &Exchange| exchange.blocks || exchange.pins.subscribed;
        let will = |batch: &Batch| batch.blocks || batch.pins.subscribed;
        if self.exchange(conn, client).is_some_and(|it| waits(it))
            || client.waiting.as_ref().is_some_and(will)
        {
            conn.close();
        }
    }

    /// A client that is not read may be gone.
    fn on_timer(&mut self, conn: &mut Conn<'_>, session: &mut Session) {
        if let Session::Client(client) = session {
            self.say_late(conn, client);
            conn.close();
        }
    }

    fn on_closing(&mut self, conn: &mut Conn<'_>, session: &mut Session, reason: &CloseReason) {
        match session {
            Session::Client(client) => self.end_client(conn, client, *reason),
            Session::Upstream(_) => self.end_upstream(conn, *reason),
        }
    }

    /// Those that wait for what may never come would delay the end.
    fn on_shutdown(&mut self, cx: &mut Context<'_>) {
        for exchange in self.exchanges.values() {
            if (exchange.blocks || exchange.pins.subscribed)
                && let Some(mut client) = cx.conn(exchange.client)
            {
                client.close();
            }
        }
    }
}

/// Clients.
impl Pooler {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, pool: None, exchanges: BTreeMap::new(), pinned: 0, clients: 0 }
    }

    /// How many connections may be pinned.
    fn pins_max(&self) -> usize {
        (self.settings.size / 2).max(1)
    }

    /// What goes on over the connection that a client has leased, if it has.
    fn exchange(&mut self, conn: &Conn<'_>, client: &mut Client) -> Option<&mut Exchange> {
        let exchange = client.lease.and_then(|lease| self.exchanges.get_mut(&lease));
        let exchange = exchange.filter(|exchange| exchange.client == conn.id());
        if exchange.is_none() {
            client.lease = None;
        }
        exchange
    }

    /// Serves the commands that are at hand.
    fn serve(&mut self, conn: &mut Conn<'_>, client: &mut Client, input: &mut BytesMut) {
        loop {
            if client.over || conn.is_closing() {
                return input.clear();
            }
            if conn.is_congested() || !self.may_go_on(conn, client, input) {
                return;
            }
            let pins = self.exchange(conn, client).map(|exchange| exchange.pins);
            let mut batch = Batch::new(pins.unwrap_or_default());
            batch.pinned = pins.is_some();
            let (mut taken, mut stop) = gather(client, &mut batch, input);
            let mut no_pin = false;
            if batch.has_to_pin() && !batch.pinned {
                if self.pinned >= self.pins_max() {
                    taken = batch.cut_pins();
                    no_pin = batch.is_empty();
                    stop = if no_pin { Stop::Local } else { Stop::Later };
                    client.parser = Parser::default();
                } else {
                    self.pinned += 1;
                    batch.pinned = true;
                }
            }
            input.advance(taken);
            if !batch.is_empty() {
                self.start(conn, client, batch, input.len());
                match stop {
                    _ if client.over => input.clear(),
                    Stop::Part(needed) => expect(conn, needed, input.len()),
                    _ => continue,
                }
                return;
            }
            match stop {
                Stop::Part(needed) => return expect(conn, needed, input.len()),
                // Only what follows a command waits for it.
                Stop::Later => return conn.yield_now(),
                Stop::Local => self.answer(conn, client, input, no_pin),
            }
        }
    }

    /// Whether the next command may be served now. If not, its client is called again when it may.
    fn may_go_on(&mut self, conn: &mut Conn<'_>, client: &mut Client, input: &BytesMut) -> bool {
        let mut pause = true;
        if client.waiting.is_some() {
            client.held = true;
        } else if let Some(exchange) = self.exchange(conn, client)
            && !exchange.is_at_rest()
        {
            exchange.held = true;
            let waits = exchange.blocks || exchange.pins.subscribed;
            pause = !waits || input.len() > HELD_MAX;
            if waits
                && pause
                && let Some(most) = self.settings.timeouts.response
            {
                conn.set_timer(conn.now() + most);
            }
        } else {
            return true;
        }
        if pause {
            conn.pause_reading();
        }
        false
    }

    /// Sends a batch, when there is a connection for it. So many bytes of input are after it.
    fn start(&mut self, conn: &mut Conn<'_>, client: &mut Client, batch: Batch, unread: usize) {
        client.over = !conn.decide_keep_alive(unread).stays();
        let is_subscribed = self.exchange(conn, client).is_some_and(|it| it.subscription_owed);
        for expect in &batch.expected {
            match expect {
                // What it owes for a subscription it owes once.
                Expect::Pong => conn.count_request(),
                Expect::Probe if is_subscribed => conn.count_request(),
                _ => conn.begin_request(),
            }
        }
        if self.exchange(conn, client).is_some()
            && let Some(lease) = client.lease
        {
            return self.send(conn, client, lease, batch);
        }
        let Some(pool) = self.pool else { return };
        match conn.acquire(pool, AcquireOptions::default()) {
            Ok(_) => client.waiting = Some(batch),
            Err(error) => self.fail_batch(conn, client, batch, &error),
        }
    }

    /// Sends a batch over a leased connection.
    fn send(&mut self, conn: &mut Conn<'_>, client: &mut Client, lease: ConnId, mut batch: Batch) {
        let ends = conn.cx().is_shutting_down();
        let is_first = self.exchange(conn, client).is_none();
        if batch.blocks && ends {
            // What it waits for may never come, and would delay the end.
            batch.pinned &= is_first;
            self.fail_batch(conn, client, batch, &"the pooler is about to end");
            client.over = true;
            return conn.close();
        }
        let again = batch.may_be_sent_again() && is_first;
        client.lease = Some(lease);
        let held = std::mem::take(&mut client.held);
        let exchange = self
            .exchanges
            .entry(lease)
            .or_insert_with(|| Exchange::new(conn.id(), &mut batch, held));
        if !batch.expected.is_empty() {
            exchange.begin(&mut batch);
        }
        if held && (exchange.blocks || exchange.pins.subscribed) {
            // Its end has to be seen while it waits.
            conn.resume_reading();
        }
        exchange.subscription_owed |= exchange.pins.subscribed;
        exchange.last = client.over || ends;
        if (exchange.blocks || exchange.pins.subscribed) && !exchange.relaxed {
            exchange.relaxed = true;
            conn.set_timeouts(&self.settings.relaxed(false));
            if let Some(mut upstream) = conn.other(lease) {
                upstream.set_timeouts(&self.settings.relaxed(true));
            }
        }
        let begins = !std::mem::replace(&mut exchange.owed, true);
        let bytes = Bytes::from(batch.bytes);
        if again {
            conn.send_replayable(lease, bytes);
        } else if let Some(mut upstream) = conn.other(lease) {
            if begins {
                upstream.begin_request();
            }
            upstream.write_bytes(bytes);
        }
    }

    /// Nothing could be sent.
    fn fail_batch(
        &mut self,
        conn: &mut Conn<'_>,
        client: &mut Client,
        batch: Batch,
        error: &dyn Display,
    ) {
        self.unpin(batch.pinned);
        for _ in batch.expected.iter().filter(|expect| expect.is_owed()) {
            write!(conn, "-ERR no upstream connection: {error}\r\n");
            conn.end_request();
        }
        if batch.pins.subscribed {
            write!(conn, "-ERR no upstream connection: {error}\r\n");
            conn.end_request();
        }
        client.refused = batch.pins.transaction;
    }

    fn unpin(&mut self, was_pinned: bool) {
        self.pinned = self.pinned.saturating_sub(usize::from(was_pinned));
    }

    /// A client ends: what it has leased is closed by the library.
    fn end_client(&mut self, conn: &mut Conn<'_>, client: &mut Client, reason: CloseReason) {
        if let Some(batch) = client.waiting.take() {
            self.unpin(batch.pinned);
        }
        if self.exchange(conn, client).is_none() {
            return;
        }
        if reason == CloseReason::Timeout(Timeout::Response) {
            self.say_late(conn, client);
        }
        if let Some(exchange) = client.lease.and_then(|lease| self.exchanges.remove(&lease)) {
            self.unpin(exchange.pinned);
        }
    }

    /// A client ends because its reply did not come, unless it has part of that.
    fn say_late(&mut self, conn: &mut Conn<'_>, client: &mut Client) {
        if self.exchange(conn, client).is_some_and(|exchange| !exchange.within) {
            conn.write(b"-ERR no reply of the upstream server in time\r\n");
        }
    }
}

/// Adds the commands at the front of the input to a batch, as far as they can go over one lease
/// together. Returns how much of the input they take, and why it stopped.
fn gather(client: &mut Client, batch: &mut Batch, input: &[u8]) -> (usize, Stop) {
    let mut taken = 0;
    loop {
        if batch.is_full() {
            return (taken, Stop::Later);
        }
        let command = match client.parser.next(&input[taken..]) {
            Ok(Parsed::Command(command)) => command,
            Ok(Parsed::Nothing(len)) => {
                taken += len;
                continue;
            }
            Ok(Parsed::Part(needed)) => return (taken, Stop::Part(needed)),
            Err(_) => return (taken, Stop::Local),
        };
        if client.refused {
            return (taken, Stop::Local);
        }
        let class = Class::of(command.arg(0));
        match route(class, &command, batch.pins) {
            Route::Send(Expect::Refused(text), pins) => {
                batch.add(UNKNOWN, Expect::Refused(text), taken, pins);
                batch.changes = true;
            }
            Route::Send(expect, pins) => {
                let blocks = match class {
                    Class::Blocks => true,
                    Class::XRead => has_block(&command),
                    _ => false,
                };
                // Within a transaction nothing blocks.
                if blocks && !pins.transaction {
                    batch.will_block(taken);
                }
                batch.add(&command.bytes, expect, taken, pins);
                batch.changes |= !matches!(class, Class::Safe | Class::Ping) || pins.any();
            }
            Route::Subscribe if !batch.is_empty() => return (taken, Stop::Later),
            Route::Subscribe => {
                let pins = Pins { subscribed: true, ..batch.pins };
                batch.changes = true;
                batch.add(&[&command.bytes, PING].concat(), Expect::Probe, taken, pins);
                return (taken + command.len, Stop::Later);
            }
            Route::Local => return (taken, Stop::Local),
        }
        taken += command.len;
    }
}

/// Where a command goes, on a connection in that state.
fn route(class: Class, command: &Command<'_>, pins: Pins) -> Route {
    let plain = Route::Send(Expect::Plain, pins);
    if pins.subscribed {
        return match class {
            // With more arguments it fails. A failure that the server replies says nothing of what
            // it is to, so none is provoked.
            Class::Ping if command.count <= 2 => Route::Send(Expect::Pong, pins),
            Class::Subscribe if command.count > 1 => Route::Subscribe,
            Class::Unsubscribe => Route::Subscribe,
            _ => Route::Local,
        };
    }
    let ended = Pins { transaction: false, watched: false, ..pins };
    if pins.transaction {
        return match class {
            // With more arguments EXEC aborts the transaction, and DISCARD fails and leaves it.
            Class::Exec => Route::Send(Expect::Ends, ended),
            Class::Discard if command.count == 1 => Route::Send(Expect::Ends, ended),
            Class::Quit | Class::Http => Route::Local,
            _ => match refusal(class, command) {
                Some(text) => Route::Send(Expect::Refused(text), pins),
                None => plain,
            },
        };
    }
    match class {
        Class::Multi if command.count == 1 => {
            Route::Send(Expect::Plain, Pins { transaction: true, ..pins })
        }
        Class::Watch if command.count > 1 => {
            Route::Send(Expect::Plain, Pins { watched: true, ..pins })
        }
        Class::Unwatch if command.count == 1 && pins.watched => Route::Send(Expect::Ends, ended),
        Class::Subscribe if command.count > 1 => Route::Subscribe,
        Class::Unsubscribe => Route::Subscribe,
        // Fails for want of arguments.
        Class::Subscribe => plain,
        Class::Quit | Class::Http => Route::Local,
        _ if refusal(class, command).is_some() => Route::Local,
        _ => plain,
    }
}

/// Why a command cannot be sent over a connection that clients share, if it cannot. Some of these
/// have a local reply.
fn refusal(class: Class, command: &Command<'_>) -> Option<Refusal> {
    let first = command.arg(1);
    Some(match class {
        Class::Select => {
            "ERR SELECT of another database than 0 is not possible: connections are shared"
        }
        Class::Client => {
            "ERR only CLIENT ID, GETNAME, SETNAME and SETINFO are possible: connections are shared"
        }
        Class::Hello if command.count == 1 => return None,
        // The codes are those of Redis: clients go on with version 2 where they get the first.
        Class::Hello => match number(first) {
            Some(2) if command.count == 2 => return None,
            Some(2) => "ERR HELLO with options is not possible: connections are shared",
            Some(_) => "NOPROTO unsupported protocol version",
            None => "ERR Protocol version is not an integer or out of range",
        },
        Class::Script if first.eq_ignore_ascii_case(b"DEBUG") => {
            "ERR SCRIPT DEBUG is not possible: connections are shared"
        }
        Class::Connection => "ERR this command would change a connection that clients share",
        Class::Server => "ERR this command would change the server for all clients",
        Class::Unknown => "ERR this command is not known to the pooler",
        Class::Subscribe | Class::Unsubscribe => {
            "ERR subscriptions are not possible within a transaction"
        }
        _ => return None,
    })
}

/// Local replies.
impl Pooler {
    /// Answers the command at the front of the input, or what is none. `no_pin` if it would pin a
    /// connection and none may be.
    fn answer(
        &mut self,
        conn: &mut Conn<'_>,
        client: &mut Client,
        input: &mut BytesMut,
        no_pin: bool,
    ) {
        let command = match client.parser.next(input) {
            Ok(Parsed::Command(command)) => command,
            Ok(Parsed::Part(_)) => return,
            Ok(Parsed::Nothing(len)) => return input.advance(len),
            Err(error) => {
                conn.begin_request();
                write!(conn, "-ERR Protocol error: {error}\r\n");
                conn.end_request();
                conn.close();
                return input.clear();
            }
        };
        let len = command.len;
        client.over = !conn.decide_keep_alive(input.len().saturating_sub(len)).stays();
        conn.begin_request();
        let subscribed = self.exchange(conn, client).is_some_and(|it| it.pins.subscribed);
        let class = Class::of(command.arg(0));
        match class {
            Class::Quit => {
                conn.write(OK);
                conn.close();
            }
            // As Redis does: the next lines may be commands that an attacker chose.
            Class::Http => conn.close(),
            _ if client.refused => {
                client.refused = !matches!(class, Class::Exec | Class::Discard);
                conn.write(match class {
                    Class::Exec => b"-EXECABORT Transaction discarded: MULTI was refused\r\n",
                    Class::Discard => OK,
                    _ => b"-ERR MULTI was refused: EXEC or DISCARD ends the transaction\r\n",
                });
            }
            _ if no_pin => {
                client.refused = class == Class::Multi;
                let (pinned, size) = (self.pinned, self.settings.size);
                let name = command.arg(0).to_ascii_uppercase();
                write!(
                    conn,
                    "-ERR {} needs a connection for its client alone, and {pinned} of {size} are in \
                     such use\r\n",
                    name.escape_ascii(),
                );
            }
            Class::Ping if subscribed => {
                conn.write(b"-ERR wrong number of arguments for 'ping' command\r\n");
            }
            _ if subscribed => {
                conn.write(
                    b"-ERR only (P|S)SUBSCRIBE, (P|S)UNSUBSCRIBE, PING and QUIT are allowed while \
                      subscribed\r\n",
                );
            }
            Class::Select if command.count == 2 && command.arg(1) == b"0" => conn.write(OK),
            Class::Client => client.answer(conn, &command),
            class => {
                let text = refusal(class, &command).unwrap_or("ERR wrong number of arguments");
                write!(conn, "-{text}\r\n");
            }
        }
        conn.end_request();
        input.advance(len);
    }
}

impl Client {
    /// Answers CLIENT, as far as it is about this client.
    fn answer(&mut self, conn: &mut Conn<'_>, command: &Command<'_>) {
        let what = command.arg(1).to_ascii_uppercase();
        match (&what[..], command.count) {
            (b"ID", 2) => write!(conn, ":{}\r\n", self.number),
            (b"GETNAME", 2) if self.name.is_empty() => conn.write(b"$-1\r\n"),
            (b"GETNAME", 2) => {
                write!(conn, "${}\r\n", self.name.len());
                conn.write(&self.name);
                conn.write(b"\r\n");
            }
            (b"SETNAME", 3) if command.arg(2).len() > NAME_MAX => {
                write!(conn, "-ERR a client name has at most {NAME_MAX} bytes\r\n");
            }
            (b"SETNAME", 3) if !command.arg(2).iter().all(|byte| matches!(byte, b'!'..=b'~')) => {
                conn.write(
                    b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n",
                );
            }
            (b"SETNAME", 3) => {
                self.name = command.arg(2).to_vec();
                conn.write(OK);
            }
            (b"SETINFO", 4) => conn.write(OK),
            (b"ID" | b"GETNAME" | b"SETNAME" | b"SETINFO", _) => {
                conn.write(b"-ERR wrong number of arguments for 'client' command\r\n");
            }
            _ => {
                let text = refusal(Class::Client, command).unwrap_or_default();
                write!(conn, "-{text}\r\n");
            }
        }
    }
}

/// Waits for the rest of a request.
fn expect(conn: &mut Conn<'_>, needed: usize, here: usize) {
    if here > 0 && needed > here + 1 {
        conn.expect_input(needed);
    }
}

/// Lets a client be called with the input that it has left.
fn resume(client: &mut Conn<'_>) {
    client.clear_timer();
    client.resume_reading();
    client.yield_now();
}

/// Upstream connections.
impl Pooler {
    /// Passes replies on to the client that has leased the connection.
    fn pass_on(&mut self, conn: &mut Conn<'_>, scanner: &mut Scanner, input: &mut BytesMut) {
        let id = conn.id();
        let Some(exchange) = self.exchanges.get_mut(&id) else {
            return check_pong(conn, input);
        };
        let owner = exchange.client;
        let Some(mut client) = conn.other(owner) else { return conn.abort() };
        // What goes to the client, and how much of it are whole replies.
        let (mut pass, mut whole) = (0, 0);
        let mut fate = Meaning::Other;
        while pass < input.len() && (!exchange.is_over() || exchange.pins.subscribed) {
            let rest = &input[pass..];
            if !scanner.is_within() {
                if rest.len() < ABORTED.len() && ABORTED.starts_with(rest) {
                    // The rest will say whether it is that error.
                    break;
                }
                exchange.aborted = rest.starts_with(ABORTED);
            }
            let Ok(step) = scanner.next(rest) else {
                fate = Meaning::Wrong;
                break;
            };
            if step.len == 0 {
                break;
            }
            if exchange.hides(scanner.head()) {
                client.write_bytes(input.split_to(pass).freeze());
                input.advance(step.len);
                (pass, whole) = (0, 0);
                exchange.within = false;
            } else {
                pass += step.len;
                exchange.within = !step.ends;
            }
            if !step.ends {
                break;
            }
            match exchange.note_reply(scanner.head()) {
                Meaning::Reply => client.end_request(),
                Meaning::Instead(text) => {
                    write!(client, "-{text}\r\n");
                    client.end_request();
                }
                Meaning::Other => {}
                last @ (Meaning::Last | Meaning::Wrong) => {
                    fate = last;
                    if last == Meaning::Last {
                        whole = pass;
                    }
                    break;
                }
            }
            whole = pass;
        }
        if fate == Meaning::Wrong {
            // The client has no part of what is wrong, unless it got one before.
            pass = whole;
        }
        client.write_bytes(input.split_to(pass).freeze());
        let congested = client.is_congested();
        if congested && !exchange.throttled {
            exchange.throttled = true;
            conn.throttle_on(owner);
        }
        match fate {
            Meaning::Wrong => self.lose(conn, "-ERR a bad reply of the upstream server\r\n"),
            Meaning::Last => {
                exchange.pins.subscribed = true;
                self.lose(conn, "");
            }
            _ => return self.conclude(conn),
        }
        input.clear();
        conn.abort();
    }

    /// Ends an exchange if every reply has come.
    fn conclude(&mut self, conn: &mut Conn<'_>) {
        let id = conn.id();
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        if !exchange.is_at_rest() {
            return;
        }
        let (owner, held) = (exchange.client, std::mem::take(&mut exchange.held));
        if !exchange.pins.subscribed {
            exchange.blocks = false;
            if std::mem::take(&mut exchange.owed) {
                conn.end_request();
            }
            let relaxed = std::mem::take(&mut exchange.relaxed);
            if relaxed {
                conn.set_timeouts(&self.settings.timeouts(true));
            }
            let ends_subscription = std::mem::take(&mut exchange.subscription_owed);
            if let Some(mut client) = conn.other(owner) {
                if relaxed {
                    client.set_timeouts(&self.settings.timeouts(false));
                }
                if ends_subscription {
                    client.end_request();
                }
            }
        } else if exchange.last
            && let Some(mut client) = conn.other(owner)
        {
            // What it is subscribed to would keep it for ever.
            return client.close();
        }
        if !exchange.pins.any() {
            let Some(exchange) = self.exchanges.remove(&id) else { return };
            self.unpin(exchange.pinned);
            if exchange.throttled {
                conn.throttle_on(id);
            }
            if exchange.tainted {
                conn.abort();
            } else {
                conn.release(id);
            }
        }
        if held && let Some(mut client) = conn.other(owner) {
            resume(&mut client);
        }
    }

    /// A leased connection is lost, or of no use any more.
    fn lose(&mut self, conn: &mut Conn<'_>, text: &str) {
        let Some(exchange) = self.exchanges.remove(&conn.id()) else { return };
        if let Some(mut client) = conn.other(exchange.client) {
            self.fail(&mut client, &exchange, text);
        } else {
            self.unpin(exchange.pinned);
        }
    }

    /// Gives a client an error for each reply that it does not get. If it has part of a reply, or
    /// state of it is lost, it is disconnected.
    fn fail(&mut self, client: &mut Conn<'_>, exchange: &Exchange, text: &str) {
        self.unpin(exchange.pinned);
        if exchange.within {
            return client.abort();
        }
        for _ in exchange.missing().filter(|expect| expect.is_owed()) {
            client.write(text.as_bytes());
            client.end_request();
        }
        if exchange.subscription_owed {
            client.end_request();
        }
        if exchange.pins.any() {
            return client.close();
        }
        if exchange.relaxed {
            client.set_timeouts(&self.settings.timeouts(false));
        }
        if exchange.held {
            resume(client);
        }
    }

    fn end_upstream(&mut self, conn: &mut Conn<'_>, reason: CloseReason) {
        let Some(exchange) = self.exchanges.get_mut(&conn.id()) else { return };
        if conn.owner().is_none() {
            // What was sent over it is sent again.
            exchange.lost = true;
            return;
        }
        let text = format!("-ERR the upstream connection was lost: {reason}\r\n");
        self.lose(conn, &text);
    }
}

/// Takes the reply to a check of an idle connection.
fn check_pong(conn: &mut Conn<'_>, input: &mut BytesMut) {
    if conn.in_flight() == 1 && **input == *PONG {
        input.clear();
        conn.end_request();
        conn.ready();
    } else if conn.in_flight() != 1 || !PONG.starts_with(input) {
        // The server has something else to say, such as that it is loading: later.
        input.clear();
        conn.abort();
    }
}
