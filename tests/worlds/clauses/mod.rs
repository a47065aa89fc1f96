//! Clauses of what a connection manager promises, each by itself.

mod admission;
mod endings;
mod others;
mod overload;
mod panics;

use std::time::Duration;

use bytes::{Buf, BytesMut};
use wheelhouse::sim::{Call, End, Link, Peer, Server, Sim, errno};
use wheelhouse::{
    Address, AtLimit, CloseReason, Closed, Config, Conn, ConnId, Context, Handler, ListenConfig,
    ListenerId, Refusal, State,
};

use crate::echo::Echo;
use crate::worlds::{SERVER, crowded, evicted, idle, millis, secs, world};
