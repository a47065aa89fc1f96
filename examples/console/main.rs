//! Asks the console of a server: one question from a shell, or again and again in a live view.
//!
//! ```sh
//! console /run/echo.console connections sort=queued limit=5
//! console /run/echo.console json stats
//! console /run/echo.console
//! ```

#[allow(dead_code, reason = "what only the servers use")]
#[path = "../common/mod.rs"]
mod common;

mod client;
mod sample;
mod view;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use wheelhouse::Error;

use self::client::Client;

/// Asks the console of a server
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The path of the server's console
    path: PathBuf,

    /// What to ask, such as `help`; without it there is a live view
    #[arg(trailing_var_arg = true)]
    question: Vec<String>,

    /// Between two questions of the live view
    #[arg(long, value_name = "DURATION", value_parser = common::duration, default_value = "1s")]
    interval: Duration,
}

fn main() -> ExitCode {
    common::main(|args: Args| {
        let mut client = Client::connect(&args.path)?;
        if args.question.is_empty() {
            view::run(&mut client, args.interval)?;
            return Ok(0);
        }
        ask(&mut client, &args.question.join(" ")).map_err(Error::from)
    })
}

/// Prints the reply as it comes. Returns the exit code: 1 for an error.
fn ask(client: &mut Client, question: &str) -> io::Result<u8> {
    let mut stdout = io::stdout().lock();
    let mut first = true;
    let mut code = 0;
    client.ask(question, |piece| {
        if std::mem::take(&mut first) {
            let fails = piece.starts_with(b"error: ") || piece.starts_with(b"{\"error\":");
            code = u8::from(fails);
        }
        // The empty line is the console's, and not the shell's.
        let piece = piece.strip_suffix(b"\n\n").map_or(piece, |rest| &piece[..=rest.len()]);
        stdout.write_all(piece)
    })?;
    stdout.flush()?;
    Ok(code)
}
