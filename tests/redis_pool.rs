//! The example `redis-pool`: its parsers byte by byte, its handler in a simulated world before a
//! simulated Redis, and the program before a real one where that is installed.
#![expect(clippy::disallowed_methods, reason = "programs are timed by the clock on the wall")]

#[path = "../examples/redis-pool/command.rs"]
mod command;
#[path = "../examples/redis-pool/exchange.rs"]
mod exchange;
#[path = "../examples/redis-pool/pooler.rs"]
mod pooler;
#[allow(dead_code, reason = "what only the other tests of programs use")]
mod programs;
#[path = "../examples/redis-pool/reply.rs"]
mod reply;
#[path = "../examples/redis-pool/request.rs"]
mod request;
#[allow(dead_code, reason = "what only the server of keys and values uses")]
#[path = "../examples/common/resp.rs"]
mod resp;
#[path = "harness/shorthands.rs"]
mod shorthands;

mod redis_pool {
    mod fake;
    mod leaks;
    mod order;
    mod outages;
    mod pins;
    mod real;
    mod replies;
    mod requests;
    mod streams;
    mod swarm;
    mod world;
}
