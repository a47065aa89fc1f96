//! Reply by reply beside a real Redis. Where it is not installed that is reported.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;

use crate::programs::redis::Redis;
use crate::programs::{PATIENCE, Server, eventually};

/// One reply; an array that has no order is sorted.
fn reply(reader: &mut impl BufRead, sorts: bool) -> Vec<u8> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).expect("a reply");
    let number = || -> i64 {
        let digits = std::str::from_utf8(&line[1..]).expect("a number");
        digits.trim_end().parse().expect("a number")
    };
    match line.first() {
        Some(b'$') if number() >= 0 => {
            let mut text = vec![0; number() as usize + 2];
            reader.read_exact(&mut text).expect("a string");
            [line, text].concat()
        }
        Some(b'*') if number() > 0 => {
            let mut parts: Vec<_> = (0..number()).map(|_| reply(reader, sorts)).collect();
            if sorts {
                parts.sort();
            }
            parts.insert(0, line);
            parts.concat()
        }
        _ => line,
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn dial(address: &str) -> Self {
        let peer = TcpStream::connect(address).expect("it listens");
        peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self(BufReader::new(peer))
    }

    fn send(&mut self, words: &[String]) {
        let mut sent = format!("*{}\r\n", words.len());
        for word in words {
            sent += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(sent.as_bytes()).expect("it reads");
    }
}

/// Numbers from a seed (xorshift64, by George Marsaglia).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

/// What commands are made of: `k` is a key, `v` a value, `n` a number, `s` seconds, `f` a field, and
/// all else is itself.
const COMMANDS: &[&str] = &[
    "GET k",
    "SET k v",
    "SET k n",
    "SET k v NX",
    "SET k v XX",
    "SET k v GET",
    "SET k v EX s",
    "SET k v PX s000",
    "SET k v KEEPTTL",
    "SET k v EX 0",
    "SET k v EX x",
    "SET k v EX x EX s",
    "SET k v EX x FOO",
    "SET k v EX s EX s",
    "SET k v PX 1 PX s000",
    "SET k v EX s EX",
    "SET k v EX s EX 0",
    "SET k v PX 1 EX 1",
    "SET k v NX NX",
    "SET k v XX XX",
    "SET k v GET GET",
    "SET k v KEEPTTL KEEPTTL",
    "SET k v KEEPTTL EX s",
    "SET k v EX 9223372036854775807",
    "SET k v PX 9223372036854775807",
    "SET k v PXAT 9223372036854775807",
    "SET k v NX XX",
    "SET k v EX s KEEPTTL",
    "SET k v FOO",
    "SETNX k v",
    "SETEX k s v",
    "SETEX k -1 v",
    "SETEX k 9223372036854775807 v",
    "PSETEX k 0 v",
    "GETSET k v",
    "GETDEL k",
    "APPEND k v",
    "STRLEN k",
    "INCR k",
    "DECR k",
    "INCRBY k n",
    "DECRBY k n",
    "INCRBY k x",
    "DECRBY k -9223372036854775808",
    "INCRBY k -9223372036854775808",
    "INCRBY k 9223372036854775807",
    "MGET k k k",
    "MSET k v k v",
    "MSET k v k",
    "DEL k",
    "DEL k k",
    "UNLINK k",
    "EXISTS k k",
    "TYPE k",
    "EXPIRE k s",
    "EXPIRE k -1",
    "EXPIRE k x",
    "EXPIRE k s NX",
    "EXPIRE k s XX",
    "EXPIRE k s GT",
    "EXPIRE k s LT",
    "EXPIRE k s NX GT",
    "EXPIRE k s GT LT",
    "EXPIRE k s FOO",
    "EXPIRE k 9223372036854775807",
    "EXPIRE k -9223372036854775",
    "EXPIRE k -9223372036854776",
    "PEXPIRE k s000",
    "PEXPIRE k 9223372036854775807",
    "PEXPIRE k -9223372036854775808",
    "EXPIREAT k 1",
    "EXPIREAT k 9223372036854775",
    "EXPIREAT k 9223372036854776",
    "EXPIREAT k -9223372036854775",
    "EXPIREAT k -9223372036854776",
    "PEXPIREAT k 9223372036854775807",
    "PEXPIREAT k -9223372036854775808",
    "PEXPIREAT k -9223372036854775808 GT",
    "TTL k",
    "PERSIST k",
    "LPUSH k v v",
    "RPUSH k v",
    "LPOP k",
    "RPOP k",
    "LPOP k 2",
    "RPOP k 0",
    "LPOP k -1",
    "LPOP k x",
    "LPOP k 9223372036854775807",
    "LPOP k -9223372036854775808",
    "LPOP k 1 2",
    "RPOP k 1 2",
    "LPOP k x y",
    "LRANGE k 0 -1",
    "LRANGE k n n",
    "LRANGE k x 1",
    "LRANGE k 9223372036854775807 -9223372036854775808",
    "LRANGE k -9223372036854775808 9223372036854775807",
    "LRANGE k 9223372036854775807 9223372036854775807",
    "LRANGE k -9223372036854775808 -9223372036854775808",
    "LLEN k",
    "LINDEX k n",
    "LINDEX k x",
    "LINDEX k 9223372036854775807",
    "LINDEX k -9223372036854775808",
    "SADD k f f",
    "SREM k f",
    "SISMEMBER k f",
    "SMEMBERS k",
    "SCARD k",
    "SPOP k 1000",
    "SPOP k -1",
    "SPOP k 1 2",
    "SPOP k x y",
    "SPOP k -9223372036854775808",
    "HSET k f v",
    "HSET k f v f v",
    "HSET k f v f",
    "HMSET k f v",
    "HGET k f",
    "HMGET k f f",
    "HDEL k f",
    "HDEL k f f",
    "HGETALL k",
    "HLEN k",
    "HEXISTS k f",
    "DBSIZE",
    "KEYS *",
    "KEYS k[1-3]",
    "KEYS k?",
    "KEYS [^k]*",
    "ECHO v",
    "PING",
    "PING v",
    "PING v v",
    "SELECT 0",
    "SELECT 1",
    "SELECT x",
    "SELECT -1",
    "SELECT 2147483648",
    "SELECT -9223372036854775808",
    "MULTI",
    "EXEC",
    "EXEC",
    "DISCARD",
    "EXEC x",
    "DISCARD x",
    "MULTI x",
    "GET",
    "GET k k",
    "FOO k v",
    "CLIENT GETNAME",
    "CLIENT SETNAME v",
    "CLIENT FOO",
    "CONFIG FOO",
    "CLIENT ID k",
    "HELLO x",
    "HELLO 9",
    "HELLO 9 x",
    "HELLO x y",
    "HELLO 2 x",
    "HELLO 2 SETNAME",
    "PUBLISH c v",
    "UNSUBSCRIBE",
    "FLUSHALL FOO",
];

fn words(random: &mut Random) -> Vec<String> {
    let template = random.of(COMMANDS);
    let word = |word: &str| match word {
        "k" => format!("k{}", random.below(12)),
        "v" => random.of(&["", "a", "12", "-3", "some text", "two\r\nlines"]).to_owned(),
        "n" => (random.below(9) as i64 - 4).to_string(),
        "s" => (1_000 + 100 * random.below(50)).to_string(),
        "s000" => (1_000_000 + 100_000 * random.below(50)).to_string(),
        "f" => format!("f{}", random.below(6)),
        word => word.to_owned(),
    };
    template.split(' ').map(word).collect()
}

#[test]
fn fifteen_thousand_commands_have_the_replies_of_redis() {
    let Some(redis) = Redis::start() else { return };
    let server = Server::start("resp", &[]);
    let mut clients = [Client::dial(&redis.address), Client::dial(&server.addr)];
    let mut random = Random(0x5eed);
    let mut lately: Vec<Vec<String>> = Vec::new();
    for _ in 0..15_000 {
        let words = words(&mut random);
        let name = words[0].as_str();
        let sorts = ["SMEMBERS", "HGETALL", "KEYS", "SPOP", "EXEC"].contains(&name);
        let [theirs, ours] = clients.each_mut().map(|client| {
            client.send(&words);
            reply(&mut client.0, sorts)
        });
        lately.push(words);
        let number = |reply: &[u8]| -> Option<i64> {
            std::str::from_utf8(reply.strip_prefix(b":")?).ok()?.trim_end().parse().ok()
        };
        // The second may have changed between the two.
        let is_near = lately.last().is_some_and(|words| words[0] == "TTL")
            && matches!((number(&theirs), number(&ours)), (Some(a), Some(b)) if a.abs_diff(b) <= 1 && a.min(b) > 0);
        if !is_near {
            assert_eq!(
                theirs.escape_ascii().to_string(),
                ours.escape_ascii().to_string(),
                "after {:?}",
                &lately[lately.len().saturating_sub(12)..]
            );
        }
    }
}

/// What is sent as it is, before a PING.
const LINES: &[&str] = &[
    // What ends a word, and what lies between two.
    "PING\x0bfoo\r\n",
    "PING\x0cfoo\r\n",
    "PING\x0b\r\n",
    "\x0bECHO\t\x0b\x0c a\x0c\r\n",
    "\x0b\x0c\r\n",
    "ECHO \"a\"\x0b\"b\"\r\n",
    "ECHO \"a\"\x0bb\r\n",
    "ECHO \"a\"b\r\n",
    "ECHO a\rb\r\n",
    "ECHO a\r\r\n",
    "ECHO 'a\x0bb'\r\n",
    // Requests of HTTP.
    "POST / HTTP/1.1\r\nHost: x\r\n\r\nSET a 1\r\n",
    "post\r\n",
    "Host: x\r\n",
    "HOST:\r\n",
    "HOST\x1a x\r\n",
    "Hosts: x\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\n\r\nSET a 1\r\n",
    "*1\r\n$4\r\nPOST\r\n",
    "*2\r\n$5\r\nhost:\r\n$1\r\nx\r\n",
    "MULTI\r\nPOST /\r\n",
    // Transactions, and clients that have subscribed.
    "EXEC x\r\n",
    "MULTI\r\nSET a 1\r\nEXEC x\r\nEXEC\r\nGET a\r\n",
    "MULTI\r\nGET\r\nEXEC x\r\nMULTI\r\nEXEC\r\n",
    "MULTI\r\nLPOP a 1 2\r\nEXEC\r\n",
    "SUBSCRIBE c\r\nEXEC\r\n",
    "SUBSCRIBE c\r\nEXEC x\r\n",
    "SUBSCRIBE c\r\nPING x y\r\n",
    "SUBSCRIBE c\r\nGET a\r\n",
    "SUBSCRIBE c\r\nCONFIG GET a\r\n",
    "SUBSCRIBE c\r\nclient SETNAME a\r\n",
];

/// All that a server replies to one of [`LINES`] and a PING, until it closes the connection.
fn replies_to_lines(address: &str, lines: &str) -> String {
    let mut peer = TcpStream::connect(address).expect("it listens");
    peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    peer.write_all(lines.as_bytes()).expect("it reads");
    // One that has closed the connection by now resets it.
    peer.write_all(b"PING\r\n").ok();
    peer.shutdown(Shutdown::Write).ok();
    let mut replies = Vec::new();
    match peer.read_to_end(&mut replies) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{lines:?}: {error}"),
        _ => replies.escape_ascii().to_string(),
    }
}

#[test]
fn lines_have_the_replies_of_redis() {
    let Some(redis) = Redis::start() else { return };
    let server = Server::start("resp", &[]);
    for lines in LINES {
        let [theirs, ours] =
            [&redis.address, &server.addr].map(|address| replies_to_lines(address, lines));
        // Where it takes a line for one of HTTP it drops what it has not sent.
        let is_dropped = theirs.is_empty() && !ours.contains("PONG");
        assert!(theirs == ours || is_dropped, "{lines:?}: {theirs}, {ours}");
    }
}

/// Commands about clients, each sent by the first of three: one named `b`, and one that has subscribed.
/// `1`, `2` and `3` after ID stand for the three, `@2` for the address of the second, `@` for the
/// server's.
const ON_CLIENTS: &[&str] = &[
    "CLIENT LIST",
    "CLIENT LIST ID 2",
    "CLIENT LIST ID 3 1 1",
    "CLIENT LIST ID 77777",
    "CLIENT LIST ID x",
    "CLIENT LIST ID -1",
    "CLIENT LIST ID -9223372036854775808",
    "CLIENT LIST ID",
    "CLIENT LIST FOO",
    "CLIENT LIST TYPE",
    "CLIENT LIST TYPE normal",
    "CLIENT LIST TYPE PUBSUB",
    "CLIENT LIST TYPE master",
    "CLIENT LIST TYPE replica",
    "CLIENT LIST TYPE foo",
    "CLIENT LIST TYPE normal pubsub",
    "CLIENT KILL ID 0",
    "CLIENT KILL ID x",
    "CLIENT KILL ID 77777",
    "CLIENT KILL ID 1",
    "CLIENT KILL ID 2",
    "CLIENT KILL ID 2 TYPE pubsub",
    "CLIENT KILL ID 1 SKIPME no",
    "CLIENT KILL id 2 skipme YES",
    "CLIENT KILL SKIPME yes",
    "CLIENT KILL SKIPME no",
    "CLIENT KILL SKIPME maybe",
    "CLIENT KILL TYPE normal",
    "CLIENT KILL TYPE normal SKIPME no",
    "CLIENT KILL TYPE pubsub",
    "CLIENT KILL TYPE slave",
    "CLIENT KILL TYPE foo",
    "CLIENT KILL ADDR @2",
    "CLIENT KILL ADDR 127.0.0.1:1",
    "CLIENT KILL LADDR @",
    "CLIENT KILL LADDR 127.0.0.1:1",
    "CLIENT KILL LADDR @ ADDR @2 ID 2",
    "CLIENT KILL USER default",
    "CLIENT KILL USER nobody",
    "CLIENT KILL FOO 1",
    "CLIENT KILL ID 2 FOO",
    "CLIENT KILL 127.0.0.1:1",
    "CLIENT KILL @2",
    "CLIENT KILL @1",
];

/// What came of one of [`ON_CLIENTS`], in words that both servers share.
fn outcome_on_clients(address: &str, command: &str) -> String {
    let mut clients: Vec<_> = (0..3).map(|_| Client::dial(address)).collect();
    let addresses: Vec<_> = clients
        .iter()
        .map(|it| it.0.get_ref().local_addr().expect("it is open").to_string())
        .collect();
    let mut ask = |client: usize, text: &str| {
        let words: Vec<_> = text.split(' ').map(str::to_owned).collect();
        clients[client].send(&words);
        String::from_utf8(reply(&mut clients[client].0, false)).expect("text")
    };
    let ids = [0, 1, 2].map(|client| {
        let id = ask(client, "CLIENT ID");
        id.trim_end().trim_start_matches(':').to_owned()
    });
    ask(1, "CLIENT SETNAME b");
    ask(2, "SUBSCRIBE c");
    let is_id = command.to_ascii_uppercase().contains(" ID ");
    let word = |word: &str| match word {
        "1" | "2" | "3" if is_id => ids[word.parse::<usize>().expect("a number") - 1].clone(),
        "@" => address.to_owned(),
        "@1" => addresses[0].clone(),
        "@2" => addresses[1].clone(),
        word => word.to_owned(),
    };
    let replied = ask(0, &command.split(' ').map(word).collect::<Vec<_>>().join(" "));
    let mut outcome = if command.starts_with("CLIENT LIST") && replied.starts_with('$') {
        // Which they are, with the fields that both have.
        let lines = replied.lines().filter(|line| line.starts_with("id="));
        let known = |line: &str| {
            let fields = line.split(' ').filter(|field| {
                let name = field.split('=').next().unwrap_or_default();
                ["name", "flags", "db", "sub", "psub", "user", "resp"].contains(&name)
            });
            let id = line.split([' ', '=']).nth(1).expect("an id");
            let place = ids.iter().position(|it| it == id).map_or(0, |place| place + 1);
            // Neither has anything to say of those that went just before.
            (place > 0).then(|| format!("{place} {}\n", fields.collect::<Vec<_>>().join(" ")))
        };
        lines.filter_map(known).collect()
    } else {
        replied
    };
    for (client, other) in clients.iter_mut().enumerate() {
        let mut rest = Vec::new();
        let socket = other.0.get_mut();
        socket.write_all(b"PING\r\n").ok();
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let is_open = other.0.read_until(b'\n', &mut rest).is_ok_and(|count| count > 0);
        outcome += &format!("{} {}\n", client + 1, if is_open { "is open" } else { "has ended" });
    }
    outcome
}

#[test]
fn clients_are_listed_and_killed_as_by_redis() {
    for command in ON_CLIENTS {
        // One server each: all that a command meets are the three.
        let Some(redis) = Redis::start() else { return };
        let server = Server::start("resp", &[]);
        eventually("the probe of the port has gone", || {
            let mut client = Client::dial(&redis.address);
            client.send(&["CLIENT".to_owned(), "LIST".to_owned()]);
            let listed = reply(&mut client.0, false);
            String::from_utf8_lossy(&listed).matches("id=").count() == 1
        });
        let theirs = outcome_on_clients(&redis.address, command);
        let ours = outcome_on_clients(&server.addr, command);
        assert_eq!(theirs, ours, "{command}");
    }
}

#[test]
fn the_tools_of_redis_are_served() {
    let Some(_) = Redis::start() else { return };
    let server = Server::start("resp", &[]);
    let (host, port) = server.addr.rsplit_once(':').expect("a port");
    let run = |tool: &str, args: &[&str]| {
        let output = Command::new(tool).args(["-h", host, "-p", port]).args(args).output();
        let output = output.expect("it comes with redis-server");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    };
    assert_eq!(run("redis-cli", &["set", "a", "1"]), "OK");
    assert_eq!(run("redis-cli", &["incr", "a"]), "2");
    let tests = "ping,set,get,incr,lpush,rpush,lpop,rpop,sadd,hset,mset";
    for pipeline in ["1", "16"] {
        let args = ["-n", "2000", "-P", pipeline, "-t", tests, "--csv"];
        let report = run("redis-benchmark", &args);
        assert_eq!(report.lines().filter(|line| line.starts_with('"')).count(), 13, "{report}");
    }
}
