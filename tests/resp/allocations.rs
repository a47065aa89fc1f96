//! What the commands of the example `resp` allocate that make up nearly all that such a server is asked.
//!
//! The allocator counts for the whole process, which is why this is a process of its own.

#[path = "../../examples/resp/channels.rs"]
mod channels;
#[path = "../../examples/resp/clients.rs"]
mod clients;
#[path = "../../examples/resp/command.rs"]
mod command;
#[path = "../../examples/resp/glob.rs"]
mod glob;
#[path = "../../examples/resp/hash.rs"]
mod hash;
#[path = "../../examples/resp/hashes.rs"]
mod hashes;
#[path = "../../examples/resp/info.rs"]
mod info;
#[path = "../../examples/resp/keys.rs"]
mod keys;
#[path = "../../examples/resp/lists.rs"]
mod lists;
#[path = "../../examples/resp/parse.rs"]
mod parse;
#[path = "../../examples/resp/reply.rs"]
mod reply;
#[path = "../../examples/common/resp.rs"]
mod resp;
#[path = "../../examples/resp/server.rs"]
mod server;
#[path = "../../examples/resp/sets.rs"]
mod sets;
#[path = "../../examples/resp/store.rs"]
mod store;
#[path = "../../examples/resp/strings.rs"]
mod strings;
#[path = "../../examples/resp/value.rs"]
mod value;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use dhat::{HeapStats, Profiler};
use wheelhouse::{Reactor, Timeouts};

use crate::server::{Resp, Settings, defaults};

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

const REQUEST_MAX: usize = 1 << 20;

/// A server and a client of it, in one thread.
struct Pair {
    reactor: Reactor<Resp>,
    handler: Resp,
    client: TcpStream,
}

impl Pair {
    fn start() -> Self {
        let config = defaults(REQUEST_MAX);
        let settings = Settings {
            memory_max: 64 << 20,
            request_max: REQUEST_MAX,
            seed: 1,
            secret: [2, 3],
            subscribed: Timeouts::default(),
            timeouts: config.timeouts.clone(),
        };
        let handler = Resp::new(settings);
        let mut reactor = Reactor::new(config).unwrap();
        let id = reactor.listen("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(reactor.local_addr(id).ip().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        Self { reactor, handler, client }
    }

    fn exchange(&mut self, sent: &[u8], expected: &[u8], buffer: &mut [u8]) {
        self.client.write_all(sent).unwrap();
        let mut got = 0;
        while got < expected.len() {
            self.reactor.turn(&mut self.handler, Some(Duration::from_millis(1))).unwrap();
            match self.client.read(&mut buffer[got..]) {
                Ok(count) => {
                    assert_ne!(count, 0, "the server closed");
                    got += count;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        assert_eq!(&buffer[..got], expected);
    }

    /// How many allocations so many exchanges cause once it has warmed up.
    fn allocations(&mut self, count: u64, sent: &[u8], expected: &[u8]) -> u64 {
        let mut buffer = vec![0; expected.len() + 1];
        for _ in 0..10 {
            self.exchange(sent, expected, &mut buffer);
        }
        let before = HeapStats::get().total_blocks;
        for _ in 0..count {
            self.exchange(sent, expected, &mut buffer);
        }
        HeapStats::get().total_blocks - before
    }
}

fn command(words: &[&str]) -> String {
    let words_of = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), words_of.collect::<String>())
}

/// One test, as another that begins or ends meanwhile allocates.
#[test]
fn ping_and_get_allocate_nothing_and_set_at_most_once() {
    let mut pair = Pair::start();
    let _profiler = Profiler::builder().testing().build();
    let long = "x".repeat(1_000);
    let (set, set_other) = (command(&["SET", "long", &long]), command(&["SET", "long", "x"]));
    let get = command(&["GET", "key:000000000042"]);
    let set_short = command(&["SET", "key:000000000042", "xxx"]);
    let counted = [
        (command(&["PING"]), "+PONG\r\n".to_owned(), 0),
        ("PING\r\n".to_owned(), "+PONG\r\n".to_owned(), 0),
        (command(&["PING"]).repeat(16), "+PONG\r\n".repeat(16), 0),
        (set_short, "+OK\r\n".to_owned(), 0),
        (get.clone(), "$3\r\nxxx\r\n".to_owned(), 0),
        (get.repeat(16), "$3\r\nxxx\r\n".repeat(16), 0),
        // One that is as long is overwritten in place.
        (set.clone(), "+OK\r\n".to_owned(), 0),
        (command(&["GET", "long"]), format!("$1000\r\n{long}\r\n"), 0),
        (set + &set_other, "+OK\r\n+OK\r\n".to_owned(), 1),
        // A key that is new, and goes again.
        (command(&["SET", "new", "x"]) + &command(&["DEL", "new"]), "+OK\r\n:1\r\n".to_owned(), 0),
    ];
    for (sent, expected, each) in counted {
        let blocks = pair.allocations(100, sent.as_bytes(), expected.as_bytes());
        assert_eq!(blocks, 100 * each, "{sent:?}");
    }
}
