//! The commands: how each is called, how many arguments it takes, and what executes it.

use wheelhouse::Conn;

use crate::hash::word;
use crate::parse::Args;
use crate::reply::Fault;
use crate::store::Store;
use crate::{hashes, keys, lists, sets, strings};

/// What executes a command that is about keys alone.
pub(crate) type Run = fn(&mut Store, &mut Conn<'_>, Args<'_>) -> Result<(), Fault>;

/// What executes a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Data(Run),
    Client(Special),
}

/// The commands that are about connections or the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Special {
    Client,
    Command,
    Config,
    Discard,
    Echo,
    Exec,
    Hello,
    Info,
    Multi,
    Ping,
    Publish,
    Quit,
    Select,
    Subscribe,
    Unsubscribe,
}

#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) name: &'static str,
    /// [`letters`] of the name.
    letters: u64,
    /// Arguments with the name, or, negative, the least number of them.
    pub(crate) arity: i32,
    /// Whether it may take memory, and is refused where that is used up.
    pub(crate) takes_memory: bool,
    pub(crate) action: Action,
}

impl Command {
    /// The command of this name.
    #[inline]
    pub(crate) fn of(name: &[u8]) -> Option<&'static Self> {
        let letters = letters(name);
        let mut place = place(letters);
        loop {
            let command = COMMANDS.get(usize::from(PLACES[place]))?;
            if command.letters == letters && command.has_rest(name) {
                return Some(command);
            }
            place = (place + 1) % PLACES.len();
        }
    }

    /// Whether it has this name, which has the same [`letters`].
    #[inline]
    fn has_rest(&self, name: &[u8]) -> bool {
        self.name.len() == name.len()
            && (name.len() <= 8 || self.name.as_bytes()[8..].eq_ignore_ascii_case(&name[8..]))
    }

    #[inline]
    pub(crate) const fn takes(&self, args: usize) -> bool {
        if self.arity < 0 {
            args >= self.arity.unsigned_abs() as usize
        } else {
            args == self.arity.unsigned_abs() as usize
        }
    }
}

/// No command.
const NONE: u8 = u8::MAX;

/// Where a command is in [`COMMANDS`], by the letters of its name and in the places after that.
static PLACES: [u8; 256] = {
    let (mut places, mut index) = ([NONE; 256], 0);
    while index < COMMANDS.len() {
        let mut place = place(COMMANDS[index].letters);
        while places[place] != NONE {
            place = (place + 1) % places.len();
        }
        places[place] = index as u8;
        index += 1;
    }
    places
};

/// The first eight bytes of a name with capitals as small letters. All names are letters, and no other
/// byte becomes one.
#[inline]
const fn letters(name: &[u8]) -> u64 {
    let first = if name.len() > 8 { name.split_at(8).0 } else { name };
    word(first) | 0x2020_2020_2020_2020
}

/// Where to look for a name first.
#[inline]
const fn place(letters: u64) -> usize {
    // The golden ratio: what differs in any bit differs in the highest ones.
    (letters.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

const fn data(name: &'static str, arity: i32, takes_memory: bool, run: Run) -> Command {
    let letters = letters(name.as_bytes());
    Command { name, letters, arity, takes_memory, action: Action::Data(run) }
}

const fn client(name: &'static str, arity: i32, special: Special) -> Command {
    // Channels are kept for as long as a client wants.
    let takes_memory = matches!(special, Special::Subscribe);
    let letters = letters(name.as_bytes());
    Command { name, letters, arity, takes_memory, action: Action::Client(special) }
}

pub(crate) static COMMANDS: &[Command] = &[
    data("append", 3, true, strings::append),
    client("client", -2, Special::Client),
    client("command", -1, Special::Command),
    client("config", -2, Special::Config),
    data("dbsize", 1, false, keys::dbsize),
    data("decr", 2, true, strings::decr),
    data("decrby", 3, true, strings::decrby),
    data("del", -2, false, keys::del),
    client("discard", 1, Special::Discard),
    client("echo", 2, Special::Echo),
    client("exec", 1, Special::Exec),
    data("exists", -2, false, keys::exists),
    data("expire", -3, false, keys::expire),
    data("expireat", -3, false, keys::expireat),
    data("flushall", -1, false, keys::flush),
    data("flushdb", -1, false, keys::flush),
    data("get", 2, false, strings::get),
    data("getdel", 2, false, strings::getdel),
    data("getset", 3, true, strings::getset),
    data("hdel", -3, false, hashes::hdel),
    client("hello", -1, Special::Hello),
    data("hexists", 3, false, hashes::hexists),
    data("hget", 3, false, hashes::hget),
    data("hgetall", 2, false, hashes::hgetall),
    data("hlen", 2, false, hashes::hlen),
    data("hmget", -3, false, hashes::hmget),
    data("hmset", -4, true, hashes::hmset),
    data("hset", -4, true, hashes::hset),
    data("incr", 2, true, strings::incr),
    data("incrby", 3, true, strings::incrby),
    client("info", -1, Special::Info),
    data("keys", 2, false, keys::keys),
    data("lindex", 3, false, lists::lindex),
    data("llen", 2, false, lists::llen),
    data("lpop", -2, false, lists::lpop),
    data("lpush", -3, true, lists::lpush),
    data("lrange", 4, false, lists::lrange),
    data("mget", -2, false, strings::mget),
    data("mset", -3, true, strings::mset),
    client("multi", 1, Special::Multi),
    data("persist", 2, false, keys::persist),
    data("pexpire", -3, false, keys::pexpire),
    data("pexpireat", -3, false, keys::pexpireat),
    client("ping", -1, Special::Ping),
    data("psetex", 4, true, strings::psetex),
    data("pttl", 2, false, keys::pttl),
    client("publish", 3, Special::Publish),
    client("quit", -1, Special::Quit),
    data("rpop", -2, false, lists::rpop),
    data("rpush", -3, true, lists::rpush),
    data("sadd", -3, true, sets::sadd),
    data("scard", 2, false, sets::scard),
    client("select", 2, Special::Select),
    data("set", -3, true, strings::set),
    data("setex", 4, true, strings::setex),
    data("setnx", 3, true, strings::setnx),
    data("sismember", 3, false, sets::sismember),
    data("smembers", 2, false, sets::smembers),
    data("spop", -2, false, sets::spop),
    data("srem", -3, false, sets::srem),
    data("strlen", 2, false, strings::strlen),
    client("subscribe", -2, Special::Subscribe),
    data("ttl", 2, false, keys::ttl),
    data("type", 2, false, keys::type_of),
    data("unlink", -2, false, keys::del),
    client("unsubscribe", -1, Special::Unsubscribe),
];
