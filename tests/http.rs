//! The example `http` in a simulated world: every shape of a request, however it arrives, and every
//! way in which one does not become whole. What it does as a program is in `tests/examples.rs`.

#[path = "../examples/http/body.rs"]
mod body;
#[path = "../examples/http/head.rs"]
mod head;
#[path = "../examples/http/reply.rs"]
mod reply;
#[path = "../examples/http/route.rs"]
mod route;
#[path = "../examples/http/server.rs"]
mod server;
#[path = "harness/shorthands.rs"]
mod shorthands;

mod http {
    mod bodies;
    mod client;
    mod deadlines;
    mod limits;
    mod refusals;
    mod replies;
    mod shutdown;
    mod splits;
    mod streams;
    mod swarm;
    mod waits;
}
