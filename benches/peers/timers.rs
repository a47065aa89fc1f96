//! An echo server with many alarms: each message cancels one of them and sets it again. What a message
//! costs with a number of alarms, less what it costs with none, is what a timer costs.
//!
//! ```text
//! peer-timers --listen 127.0.0.1:0 --alarms 100000
//! ```

#[path = "../../examples/common/mod.rs"]
mod common;

use std::process::ExitCode;
use std::time::Duration;

use bytes::BytesMut;
use clap::Parser;
use wheelhouse::{AlarmId, Config, Conn, Context, Handler};

/// The alarms lie between one minute and two from now.
const EARLIEST: Duration = Duration::from_secs(60);
const SPREAD_MS: u64 = 60_000;
/// A prime: one after the other these steps reach every alarm, and every millisecond of the spread.
const STEP: usize = 982_451_653;

/// An echo server with many alarms
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: common::ServerArgs,

    /// How many
    #[arg(long, value_name = "N", default_value = "0")]
    alarms: usize,
}

struct Echo {
    /// Alarms to set at the first connection.
    wanted: usize,
    alarms: Vec<AlarmId>,
    /// The one that is next, and how far into the spread it is set.
    next: usize,
    offset: u64,
}

impl Handler for Echo {
    type Session = ();

    fn on_open(&mut self, conn: &mut Conn<'_>) -> Option<()> {
        while self.alarms.len() < self.wanted {
            let alarm = self.set(conn.cx());
            self.alarms.push(alarm);
        }
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, _: &mut (), input: &mut BytesMut) {
        conn.write_buf(input);
        if !self.alarms.is_empty() {
            self.next = (self.next + STEP) % self.alarms.len();
            self.replace(conn.cx(), self.next);
        }
    }

    fn on_alarm(&mut self, cx: &mut Context<'_>, alarm: AlarmId) {
        if let Some(index) = self.alarms.iter().position(|set| *set == alarm) {
            self.replace(cx, index);
        }
    }
}

impl Echo {
    fn replace(&mut self, cx: &mut Context<'_>, index: usize) {
        cx.cancel_alarm(self.alarms[index]);
        self.alarms[index] = self.set(cx);
    }

    fn set(&mut self, cx: &mut Context<'_>) -> AlarmId {
        self.offset = (self.offset + STEP as u64) % SPREAD_MS;
        cx.set_alarm(cx.now() + EARLIEST + Duration::from_millis(self.offset))
    }
}

fn main() -> ExitCode {
    common::main(|args: Args| {
        let alarms = Vec::with_capacity(args.alarms);
        let echo = Echo { wanted: args.alarms, alarms, next: 0, offset: 0 };
        common::serve(&args.server, Config::default(), echo)
    })
}
