//! The example `resp`: its commands in a simulated world, and reply by reply beside a real Redis where
//! that is installed.
#![expect(clippy::disallowed_methods, reason = "programs are timed by the clock on the wall")]

#[path = "../examples/resp/channels.rs"]
mod channels;
#[path = "../examples/resp/clients.rs"]
mod clients;
#[path = "../examples/resp/command.rs"]
mod command;
#[path = "../examples/resp/glob.rs"]
mod glob;
#[path = "../examples/resp/hash.rs"]
mod hash;
#[path = "../examples/resp/hashes.rs"]
mod hashes;
#[path = "../examples/resp/info.rs"]
mod info;
#[path = "../examples/resp/keys.rs"]
mod keys;
#[path = "../examples/resp/lists.rs"]
mod lists;
#[path = "../examples/resp/parse.rs"]
mod parse;
#[allow(dead_code, reason = "what only the other tests of programs use")]
mod programs;
#[path = "../examples/resp/reply.rs"]
mod reply;
#[path = "../examples/common/resp.rs"]
mod resp;
#[path = "../examples/resp/server.rs"]
mod server;
#[path = "../examples/resp/sets.rs"]
mod sets;
#[path = "harness/shorthands.rs"]
mod shorthands;
#[path = "../examples/resp/store.rs"]
mod store;
#[path = "../examples/resp/strings.rs"]
mod strings;
#[path = "../examples/resp/value.rs"]
mod value;

#[path = "resp"]
mod resp_tests {
    mod hashing;
    mod real;
    mod rules;
}
