//! An echo server whose answers come from another one, over a pool: what acquiring and releasing
//! costs, in `count.py --pool`.
//!
//! With `--keep` a client keeps its lease, so that each message costs the same except for that.
//!
//! ```text
//! peer-pooled --listen 127.0.0.1:0 --upstream 127.0.0.1:7
//! ```
//!
//! prints "listening on ADDR" once it accepts, and exits 0 on SIGTERM or SIGINT.

#[path = "../../examples/common/mod.rs"]
mod common;

use std::process::ExitCode;

use bytes::BytesMut;
use clap::Parser;
use wheelhouse::pool::{AcquireError, AcquireOptions, PoolConfig, PoolId, WaitId};
use wheelhouse::{Config, Conn, ConnId, Context, Handler, Origin, Target};

/// An echo server in front of another one
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: common::ServerArgs,

    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args)]
struct Settings {
    /// The echo server that answers
    #[arg(long, value_name = "ADDR")]
    upstream: Target,

    /// Connections to it
    #[arg(long, value_name = "N", default_value = "8")]
    pool_size: usize,

    /// Bytes of a message
    #[arg(long, value_name = "BYTES", default_value = "64")]
    size: usize,

    /// Keep the lease until the client ends
    #[arg(long)]
    keep: bool,
}

struct Front {
    settings: Settings,
    pool: Option<PoolId>,
}

#[derive(Default)]
struct Session {
    /// What has come of the message or of the reply.
    held: BytesMut,
    lease: Option<ConnId>,
}

impl Handler for Front {
    type Session = Session;

    fn on_start(&mut self, cx: &mut Context<'_>) {
        let size = self.settings.pool_size;
        let config = PoolConfig { size, idle_max: size, ..PoolConfig::default() };
        let pool = cx.add_pool(self.settings.upstream.clone(), &config);
        self.pool = Some(pool.expect("sound settings"));
    }

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<Session> {
        Some(Session::default())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, session: &mut Session, input: &mut BytesMut) {
        if input.len() < self.settings.size {
            return;
        }
        if matches!(conn.origin(), Origin::Pool(_)) {
            let (id, Some(owner)) = (conn.id(), conn.owner()) else { return };
            conn.end_request();
            let Some(mut client) = conn.other(owner) else { return };
            client.write(input);
            client.end_request();
            if !self.settings.keep {
                client.release(id);
            }
            input.clear();
            return;
        }
        conn.begin_request();
        match session.lease.and_then(|lease| conn.other(lease)) {
            Some(mut upstream) => {
                upstream.begin_request();
                upstream.write(input);
            }
            None => {
                session.held.extend_from_slice(input);
                let pool = self.pool.expect("a pool from the start");
                if conn.acquire(pool, AcquireOptions::default()).is_err() {
                    conn.abort();
                }
            }
        }
        input.clear();
    }

    fn on_acquired(
        &mut self,
        conn: &mut Conn<'_>,
        session: &mut Session,
        _: WaitId,
        lease: Result<ConnId, AcquireError>,
    ) {
        let Some(mut upstream) = lease.ok().and_then(|lease| conn.other(lease)) else {
            return conn.abort();
        };
        upstream.begin_request();
        upstream.write(&session.held);
        session.held.clear();
        session.lease = self.settings.keep.then_some(upstream.id());
    }
}

fn main() -> ExitCode {
    common::main(|args: Args| {
        let front = Front { settings: args.settings, pool: None };
        common::serve(&args.server, Config::default(), front)
    })
}
