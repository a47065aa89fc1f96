//! Framing: messages are where the protocol says, however the stream is cut, and each trap that other
//! libraries fell into is closed.

#[path = "frame/cuts.rs"]
mod cuts;
#[path = "frame/handlers.rs"]
mod handlers;
#[path = "frame/naive.rs"]
mod naive;
#[path = "frame/traps.rs"]
mod traps;
