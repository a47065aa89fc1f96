//! The console: a line asks, a reply answers.
//!
//! A question is a word and its arguments, in a line of at most 4 KiB; with `json` before it the reply
//! is a line of JSON. Text that is no question is answered by an error; what is no text, or too long,
//! ends the connection behind it.

pub(super) mod connections;
pub(super) mod reply;
mod settings;
mod show;

use bytes::{Buf, BytesMut};

use self::connections::{Filter, Listing};
use self::reply::Form;
use self::settings::Standing;
use self::show::ClientListing;
use super::{Desk, Next, Order, Service};
use crate::close::CloseReason;
use crate::core::health::Withdrawal;
use crate::core::lifecycle::State;
use crate::id::ConnId;
use crate::log::info;
use crate::metrics::MetricsWriter;

/// The longest question, without the end of its line.
pub(crate) const QUESTION_MAX: usize = 4 * 1024;

const HELP: &str = "\
connections [state=S] [peer=CIDR] [sort=KEY] [limit=N]
                           lists connections; S: connecting, connected, idle, closing;
                           KEY: age, in, out, queued, requests, unread, the greatest first,
                           20 unless limit says otherwise, at most 1,000
connection ID              shows all of one connection
close ID                   ends it: what is queued is sent
abort ID                   resets it
stats                      shows the counters, and how the loop is
pools                      lists the pools
endpoints                  lists the endpoints
endpoints drain ID         dials it no more, and checks it on
endpoints down ID          dials and checks it no more
endpoints up ID            ends either
clients [limit=N]          lists the clients with the most connections, where clients are limited
limits                     lists the settings, and which may change
set NAME VALUE             changes one
shutdown                   begins an orderly end; asked again, a hard one
help                       shows this
json QUESTION              answers in a line of JSON";

/// The dialogue with one operator.
#[derive(Debug, Default)]
pub(crate) struct Console {
    listing: Option<Task>,
}

/// A reply that is made in steps.
#[derive(Debug)]
enum Task {
    Connections(Listing),
    Clients(ClientListing),
}

impl Task {
    fn step(&mut self, desk: &Desk<'_>, output: &mut BytesMut) -> bool {
        match self {
            Self::Connections(listing) => listing.step(desk, output),
            Self::Clients(listing) => listing.step(desk, output),
        }
    }
}

impl Service for Console {
    fn serve(&mut self, desk: &mut Desk<'_>, input: &mut BytesMut, output: &mut BytesMut) -> Next {
        if let Some(listing) = &mut self.listing {
            if !listing.step(desk, output) {
                self.listing = None;
            }
            return Next::More;
        }
        let end = input.iter().position(|byte| *byte == b'\n');
        let len = end.unwrap_or(input.len());
        // A CR at its end is not part of it.
        if len > QUESTION_MAX + 1 {
            let form = if input.starts_with(b"json ") { Form::Json } else { Form::Text };
            form.error(output, "a question is a line of at most 4,096 bytes");
            return Next::Close;
        }
        // The last line of a peer that has sent its FIN need not end.
        let is_whole = end.is_some() || (desk.eof && !input.is_empty());
        if !is_whole {
            return Next::Input;
        }
        let line = input.split_to(len);
        input.advance(usize::from(end.is_some()));
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        match std::str::from_utf8(line) {
            Ok(text) if !text.chars().any(|it| it.is_control() && it != '\t') => {
                self.answer(text, desk, output);
                Next::Answered
            }
            _ => {
                Form::Text.error(output, "a question is text");
                Next::Close
            }
        }
    }

    fn scraped(&mut self, _: &mut Desk<'_>, _: Option<&MetricsWriter>, _: &mut BytesMut) -> Next {
        Next::Close
    }
}

impl Console {
    fn answer(&mut self, text: &str, desk: &mut Desk<'_>, output: &mut BytesMut) {
        let text = text.trim();
        let (form, text) = match text.split_once([' ', '\t']) {
            Some(("json", question)) => (Form::Json, question),
            _ if text == "json" => (Form::Json, ""),
            _ => (Form::Text, text),
        };
        if let Err(error) = self.try_answer(form, text, desk, output) {
            form.error(output, &error);
        }
    }

    fn try_answer(
        &mut self,
        form: Form,
        text: &str,
        desk: &mut Desk<'_>,
        output: &mut BytesMut,
    ) -> Result<(), String> {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap_or_default();
        if name == "connections" {
            let listing = Listing::begin(Filter::parse(words)?, form, output);
            self.listing = Some(Task::Connections(listing));
            return Ok(());
        }
        if name == "clients" {
            let listing = ClientListing::begin(words, form, desk)?;
            self.listing = Some(Task::Clients(listing));
            return Ok(());
        }
        let words: Vec<_> = words.collect();
        match (name, &words[..]) {
            ("connection", [id]) => connections::show(parse_id(id)?, form, desk, output)?,
            ("close", [id]) => {
                form.done(output, &end(id, CloseReason::HandlerClose, desk)?);
                info!(connection = id, "an operator closes a connection");
            }
            ("abort", [id]) => {
                form.done(output, &end(id, CloseReason::HandlerAbort, desk)?);
                info!(connection = id, "an operator aborts a connection");
            }
            ("stats", []) => show::counters(form, desk, output),
            ("pools", []) => show::pools(form, desk, output),
            ("endpoints", []) => show::endpoints(form, desk, output),
            ("endpoints", [how @ ("drain" | "down" | "up"), id]) => {
                let withdrawal = match *how {
                    "drain" => Some(Withdrawal::Drain),
                    "down" => Some(Withdrawal::Down),
                    _ => None,
                };
                form.done(output, &show::withdraw(id, withdrawal, desk)?);
                info!(endpoint = id, order = how, "an operator orders an endpoint");
            }
            ("limits", []) => show::limits(form, desk, output),
            ("set", [name, value]) => {
                let standing = Standing {
                    counts_clients: desk.gate.clients().is_some(),
                    is_stopping: desk.shared.is_shutting_down(),
                    buffered: desk.shared.buffered(),
                };
                let (config, before) = settings::changed(desk.config, standing, name, value)?;
                desk.orders.push(Order::Change(Box::new(config)));
                form.done(output, &format!("{name} is {value}, and was {before}"));
                info!(setting = name, value, before, "an operator changes a setting");
            }
            ("shutdown", []) => {
                let again = desk.shared.is_shutting_down();
                desk.shared.shutdowns_asked = desk.shared.shutdowns_asked.saturating_add(1);
                form.done(output, if again { "it ends at once" } else { "it is shutting down" });
                info!(again, "an operator asks for a shutdown");
            }
            ("help", []) => form.done(output, HELP),
            _ => return Err("this is no question: help lists them".into()),
        }
        Ok(())
    }
}

/// Parses an id as it is shown.
fn parse_id(text: &str) -> Result<ConnId, String> {
    ConnId::parse(text).ok_or_else(|| format!("{text:?} is no connection: an id is like 17.3"))
}

fn end(id: &str, reason: CloseReason, desk: &mut Desk<'_>) -> Result<String, String> {
    let conn = parse_id(id)?;
    let record = desk.shared.table.get_mut(conn).filter(|it| it.state() != State::Closed);
    let record = record.ok_or_else(|| format!("connection {id} is gone"))?;
    record.request_close(reason);
    desk.shared.mark_dirty(conn);
    Ok(format!("connection {id} ends"))
}
