//! Reply by reply beside a real Redis. Where it is not installed that is reported.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::programs::{PATIENCE, Server, eventually, unreachable_address};

struct Redis {
    child: Child,
    address: String,
}

impl Redis {
    fn start() -> Option<Self> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            eprintln!("skipped: no redis-server here");
            return None;
        }
        let address = unreachable_address();
        let (host, port) = address.rsplit_once(':').expect("a port");
        let child = Command::new("redis-server")
            .args(["--bind", host, "--port", port, "--save", "", "--databases", "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it was there before");
        let redis = Self { child, address };
        eventually("Redis listens", || TcpStream::connect(&redis.address).is_ok());
        Some(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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
    "SET k v NX XX",
    "SET k v EX s KEEPTTL",
    "SET k v FOO",
    "SETNX k v",
    "SETEX k s v",
    "SETEX k -1 v",
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
    "PEXPIRE k s000",
    "EXPIREAT k 1",
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
    "LRANGE k 0 -1",
    "LRANGE k n n",
    "LRANGE k x 1",
    "LLEN k",
    "LINDEX k n",
    "LINDEX k x",
    "SADD k f f",
    "SREM k f",
    "SISMEMBER k f",
    "SMEMBERS k",
    "SCARD k",
    "SPOP k 1000",
    "SPOP k -1",
    "SPOP k 1 2",
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
    "MULTI",
    "EXEC",
    "EXEC",
    "DISCARD",
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
