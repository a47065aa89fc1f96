//! The page: what a reactor does, for a browser. It is one file that loads nothing from elsewhere, can be
//! read without scripts, and with them refreshes itself from a JSON beside it.

use std::net::IpAddr;

use bytes::BytesMut;

use super::console::connections::{Filter, Listing};
use super::console::reply::Form;
use super::console::show;
use super::http::{Reply, Request, Status};
use super::{Desk, Next};

/// Scripts and styles are those of the page; it asks this server alone, and stands in no other page.
const SECURITY: &str = "Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; \
                        style-src 'unsafe-inline'; img-src data:; connect-src 'self'; \
                        base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
                        Referrer-Policy: no-referrer\r\n";

const TEMPLATE: &str = include_str!("page.html");

/// A reply that is being made: the connections are searched in steps.
#[derive(Debug)]
pub(crate) struct Page {
    request: Request,
    form: Form,
    listing: Listing,
    connections: BytesMut,
}

impl Page {
    /// Begins the reply to a request of the page, or of the JSON that it refreshes itself from.
    pub(crate) fn begin(request: Request) -> Self {
        let form = if request.path == "/" { Form::Html } else { Form::Json };
        let mut connections = BytesMut::new();
        let listing = Listing::begin(Filter::most_queued(), form, &mut connections);
        Self { request, form, listing, connections }
    }

    /// Makes the next step. The reply is written with the last one.
    pub(crate) fn step(&mut self, desk: &mut Desk<'_>, output: &mut BytesMut) -> Next {
        // Whoever asks by a name that is not this machine's may be another page, whose owner lets the
        // name point here.
        desk.shows_peers &= is_this_machine(&self.request.host);
        if self.listing.step(desk, &mut self.connections) {
            return Next::More;
        }
        let mut stats = BytesMut::new();
        show::counters(self.form, desk, &mut stats);
        let (stats, connections) = (text(&stats), text(&self.connections));
        let (body, content_type) = match self.form {
            Form::Json => {
                // The listing is an object, of which the counters become a part.
                let rest = connections.trim_end().strip_prefix('{').unwrap_or("}");
                (format!("{{\"stats\":{},{rest}\n", stats.trim_end()), "application/json")
            }
            Form::Html | Form::Text => {
                let (head, rest) = TEMPLATE.split_once("{connections}").unwrap_or((TEMPLATE, ""));
                let (middle, tail) = rest.split_once("{stats}").unwrap_or((rest, ""));
                ([head, connections, middle, stats, tail].concat(), "text/html; charset=utf-8")
            }
        };
        let reply =
            Reply { content_type, fields: SECURITY, ..Reply::to(&self.request, Status::Ok, &body) };
        reply.write(output);
        if reply.closes { Next::Close } else { Next::Answered }
    }
}

fn text(written: &BytesMut) -> &str {
    std::str::from_utf8(written).unwrap_or_default()
}

/// Whether a host is an address, or the name that every machine has for itself.
fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        let without_names = TEMPLATE.replace("http://www.w3.org/2000/svg", "");
        for part in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!without_names.contains(part), "{part}");
        }
        assert_eq!(TEMPLATE.matches("{stats}").count(), 1);
        assert_eq!(TEMPLATE.matches("{connections}").count(), 1);
    }

    #[test]
    fn a_name_from_elsewhere_is_not_this_machine() {
        let hosts = ["127.0.0.1", "::1", "LocalHost", "localhost.evil.example", "evil", ""];
        assert_eq!(hosts.map(is_this_machine), [true, true, true, false, false, false]);
    }
}
