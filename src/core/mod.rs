//! Decisions: plain data and functions, without system calls, clocks, randomness or I/O errors.
//!
//! Those about all connections together are plans ([`gate`], [`deferred`], [`evict`], [`drain`],
//! [`pool`], [`health`]): they take facts and return what to do, and the reactor carries that out.

pub(crate) mod budget;
pub(crate) mod burst;
pub(crate) mod clients;
pub(crate) mod deadlines;
pub(crate) mod deferred;
pub(crate) mod dial;
pub(crate) mod drain;
pub(crate) mod evict;
pub(crate) mod flags;
pub(crate) mod gate;
pub(crate) mod health;
pub(crate) mod lifecycle;
pub(crate) mod output;
pub(crate) mod pool;
pub(crate) mod pressure;
pub(crate) mod ready;
pub(crate) mod record;
pub(crate) mod relay;
pub(crate) mod service;
pub(crate) mod share;
pub(crate) mod stats;
pub(crate) mod table;
pub(crate) mod wheel;
