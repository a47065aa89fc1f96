//! An event-loop server framework: one thread, one loop on epoll or kqueue, and a [`Handler`] whose
//! callbacks are the transitions of a connection's life.
//!
//! [mio] says when a socket is ready. What lies between that and a server is here: accepting within
//! limits, input and output buffers, backpressure, deadlines for everything a peer or the
//! application could take too long over, orderly ends, and panics that cost one connection instead
//! of all.
//!
//! A [`Reactor`] is made from a [`Config`], listens, and runs with a handler. For each connection
//! the handler makes a [session](Handler::Session) of its own type, and gets it back with every
//! callback, beside a [`Conn`] that takes what the callback wants done. Inside a callback there is no
//! system call and no other callback: it enqueues, and the reactor acts when it has returned.
//!
//! [mio]: https://docs.rs/mio
//!
//! # An echo server
//!
//! ```
//! use bytes::BytesMut;
//! use wheelhouse::{Config, Conn, Handler, Reactor};
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     type Session = ();
//!
//!     fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
//!         Some(())
//!     }
//!
//!     fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
//!         conn.write(input);
//!         input.clear();
//!     }
//! }
//!
//! let mut reactor = Reactor::new(Config::default())?;
//! let listener = reactor.listen("127.0.0.1:0")?;
//! println!("listening on {}", reactor.local_addr(listener));
//! # let (address, handle) = (reactor.local_addr(listener).to_string(), reactor.handle());
//! # let client = std::thread::spawn(move || {
//! #     use std::io::{Read, Write};
//! #     let echo = || {
//! #         let mut stream = std::net::TcpStream::connect(address)?;
//! #         stream.write_all(b"hello")?;
//! #         let mut reply = [0; 5];
//! #         stream.read_exact(&mut reply)?;
//! #         Ok::<_, std::io::Error>(reply)
//! #     };
//! #     let reply = echo();
//! #     handle.shutdown();
//! #     reply
//! # });
//! reactor.run(&mut Echo)?; // until a shutdown
//! # assert_eq!(&client.join().unwrap()?, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to begin reading
//!
//! In `src/`: `handler.rs` is the contract, [`Handler`]; `conn.rs` what a callback may ask for,
//! [`Conn`]; `reactor/mod.rs` the loop, whose [`turn`](Reactor::turn) is a table of contents; and
//! `core/` the decisions, as plain data and functions. `docs/architecture.md` has the map, one turn
//! step by step, and the reasons; `docs/guide.md` writes a protocol server from nothing, and
//! `docs/operations.md` is for operators.
//!
//! # What is where
//!
//! The names that a first server needs are here, at the root. The others are in the modules that are
//! named after their subject:
//!
//! - [`config`]: all settings, their defaults and the reasons for them.
//! - [`address`]: what can be listened on and dialled, also as text.
//! - [`frame`]: messages out of the stream of bytes, and into it.
//! - [`close`]: why connections end, how, and whose doing it was.
//! - [`stats`]: the counters, and their export.
//! - [`metrics`]: what the application adds to the metrics that the library
//!   [serves](Reactor::serve_metrics).
//! - [`backend`]: the operating system, and what a program may replace of it, such as the look-up of
//!   names.
//! - `sim`, with the feature of that name: a world in memory for tests of handlers.
//!
//! # Deadlines and limits
//!
//! They are on by default. [`Timeouts`] bounds everything that takes time and [`Limits`] everything
//! that takes room; `None` turns a timeout off and zero is refused. With the defaults every
//! connection has a finite deadline at every moment. A connection ends for one [`CloseReason`],
//! which [`Handler::on_closed`] gets and [`Stats`] counts.
//!
//! Some deadlines depend on what the handler says about requests: [`Conn::expect_more_input`] that it
//! waits for more of one, [`Conn::begin_request`] and [`Conn::end_request`] that it owes a reply
//! meanwhile. A handler that answers at once, as the one above, need not say anything.
//!
//! # Threads
//!
//! A reactor with all its connections lives on one thread. Others reach it by a [`Handle`]: they
//! post closures that run on the reactor's thread, with the handler and the loop ([`Handle::post`])
//! or with one connection and its session ([`Handle::post_to`]), they read the counters, and they
//! shut it down. A thread that posts to a full mailbox waits for room; a callback, of whichever
//! reactor, is refused instead, so reactors may post to each other. Work that takes long belongs on
//! such a thread, because a callback that does not return keeps all connections waiting. To use
//! more cores, run more reactors.
//!
//! # Inside another loop, and in tests
//!
//! [`Reactor::run`] only repeats [`Reactor::turn`]. A program that has a loop already calls `turn`,
//! with a longest wait of zero, when the reactor's descriptor ([`AsFd`](std::os::fd::AsFd)) is
//! readable or [`next_timeout`](Reactor::next_timeout) has passed, and [`Reactor::end`] when the
//! loop ends or a turn fails. A test does the same, and checks its handler in between.
//!
//! Sockets, clocks, randomness and name look-up come through one trait, [`backend::Backend`], so a
//! reactor can be put into another world ([`Reactor::with_backend`]) and its time be made up; that
//! is why [`Instant`] is not std's. [`backend::Os`] is the real world, and the module `sim` has one to
//! test handlers in, with virtual time and injected faults.
//!
//! # Platforms
//!
//! 64-bit Unix. Linux is run and measured; macOS and FreeBSD, on kqueue, are type-checked and have
//! not been run. What a system cannot do is left out: [`backend::Os`] and [`config::SocketOptions`]
//! say what.
//!
//! # Panics
//!
//! A panic in a callback of a connection aborts that connection, with
//! [`CloseReason::HandlerPanic`], however many there are, unless [`Config::panic_limit`] says
//! otherwise; one in a callback of the whole loop stops the reactor. This needs unwinding: with
//! `panic = "abort"` the first one ends the process.
//!
//! # Logging
//!
//! Events go to [`tracing`](https://docs.rs/tracing): shortages and panics as warnings and errors,
//! the start and end of a reactor as information, the end of each connection at debug level.

pub mod address;
pub mod backend;
pub mod close;
pub mod config;
mod conn;
mod context;
mod core;
mod error;
pub mod frame;
mod handler;
mod id;
mod log;
pub mod metrics;
#[cfg(feature = "planted-bugs")]
#[doc(hidden)]
pub mod planted;
#[cfg(not(feature = "planted-bugs"))]
mod planted;
mod probe;
mod reactor;
mod service;
#[cfg(feature = "signals")]
mod signals;
#[cfg(feature = "sim")]
pub mod sim;
mod state;
mod time;
mod unwind;

/// What a reactor has counted, and how it is exported.
///
/// A [`Handle`](crate::Handle::stats) reads the counters from any thread, a
/// [`Context`](crate::Context::stats) from a callback, and the [`Report`] has the final ones.
pub mod stats {
    pub use crate::core::stats::Stats;
}

/// Pools of connections to other servers, which are leased, used and given back.
///
/// [`Context::add_pool`] adds one; [`Conn::acquire`] and [`Conn::release`] take a connection and give
/// it back.
pub mod pool {
    pub use crate::config::{AcquireOptions, PoolConfig, PoolOrder};
    pub use crate::core::pool::PoolStats;
    pub use crate::error::{AcquireError, AcquireFailure};
    pub use crate::id::{PoolGroupId, PoolId, WaitId};
}

/// Endpoints: targets that are dialled, and whose health is watched.
///
/// [`Context::add_endpoint`] adds one. It is [checked](health::HealthCheck) at intervals, over a connection of
/// its own, and ejected for a while when what is dialled to it fails. [`Context::endpoint`] says
/// whether it is available, [`Context::connect_endpoint`] and [`Conn::connect_endpoint`] dial it, and
/// [`PoolConfig::endpoint`](crate::pool::PoolConfig::endpoint) lets a pool follow it.
pub mod health {
    pub use crate::config::{EndpointConfig, HealthCheck};
    pub use crate::core::health::{EndpointState, EndpointStats};
    pub use crate::id::{EndpointGroupId, EndpointId};
}

/// The crate of [`Bytes`](bytes::Bytes) and [`BytesMut`](bytes::BytesMut), in the version that the
/// callbacks use.
pub use bytes;

#[doc(inline)]
pub use crate::address::{Address, Target};
#[doc(inline)]
pub use crate::close::{CloseReason, Closed, Timeout};
#[doc(inline)]
pub use crate::config::{Config, Limits, ListenConfig, Timeouts};
pub use crate::conn::{Conn, KeepAlive};
pub use crate::context::Context;
pub use crate::core::lifecycle::State;
pub use crate::core::share::Shared;
#[doc(inline)]
pub use crate::core::stats::Stats;
pub use crate::error::{ConnectError, Error, PostError};
pub use crate::handler::Handler;
pub use crate::id::{AlarmId, ConnId, ListenerId, Origin};
pub use crate::reactor::{Handle, Reactor, Report, RunError};
pub use crate::time::Instant;

/// Runs the programs in the guide to testing.
#[cfg(doctest)]
#[doc = include_str!("../docs/testing.md")]
struct Testing;

/// Runs the programs in the guide to writing a protocol server.
#[cfg(doctest)]
#[doc = include_str!("../docs/guide.md")]
struct Guide;

/// Runs the programs in the guide to running a server.
#[cfg(doctest)]
#[doc = include_str!("../docs/operations.md")]
struct Operations;

/// Compiles the program in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
