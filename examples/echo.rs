//! Sends back what it is sent, with every deadline and limit armed.

mod common;

use std::process::ExitCode;

use bytes::BytesMut;
use clap::Parser;
use wheelhouse::{Config, Conn, Handler};

/// An echo server
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    server: common::ServerArgs,
}

struct Echo;

impl Handler for Echo {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write_buf(input);
    }
}

fn main() -> ExitCode {
    common::main(|args: Args| common::serve(&args.server, Config::default(), Echo))
}
