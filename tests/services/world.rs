//! A simulated server with services, and what its peers say.

use std::cell::Cell;
use std::rc::Rc;

use bytes::BytesMut;
use wheelhouse::metrics::MetricsWriter;
use wheelhouse::sim::{Peer, Server, Sim};
use wheelhouse::{Config, Conn, Context, Handler};

pub(crate) const HERE: &str = "10.0.0.1:7";
pub(crate) const METRICS: &str = "10.0.0.1:9100";

/// Echoes, and has metrics of its own.
#[derive(Default)]
pub(crate) struct Echo {
    pub(crate) messages: u64,
    pub(crate) scrapes: u64,
    /// What `on_scrape` does beside.
    pub(crate) scrape: Option<fn(&mut MetricsWriter)>,
    /// Connections that it was told of.
    pub(crate) opened: Rc<Cell<u32>>,
}

impl Handler for Echo {
    type Session = ();

    fn on_open(&mut self, _: &mut Conn<'_>) -> Option<()> {
        self.opened.set(self.opened.get() + 1);
        Some(())
    }

    fn on_data(&mut self, conn: &mut Conn<'_>, (): &mut (), input: &mut BytesMut) {
        self.messages += 1;
        conn.write_buf(input);
    }

    fn on_scrape(&mut self, cx: &mut Context<'_>, out: &mut MetricsWriter) {
        self.scrapes += 1;
        out.counter("echo_messages_total", "Messages.").value(self.messages);
        out.gauge("echo_seen", "Connections that the loop shows.").value(cx.ids().len());
        if let Some(scrape) = self.scrape {
            scrape(out);
        }
    }
}

pub(crate) fn serve(sim: &mut Sim, config: Config, handler: Echo) -> Server<Echo> {
    sim.spawn("10.0.0.1", config, handler, |reactor| {
        reactor.listen(HERE).unwrap();
        let address = reactor.serve_metrics(METRICS).unwrap();
        assert_eq!(address.to_string(), METRICS);
    })
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Takes one reply off what a peer has received: its status, its head and its body.
pub(crate) fn reply(peer: &Peer, head_only: bool) -> (u16, String, String) {
    let text = String::from_utf8(peer.received()).unwrap();
    let (head, rest) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no reply: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let len = head.split("Content-Length: ").nth(1).unwrap().lines().next().unwrap();
    let len: usize = if head_only { 0 } else { len.parse().unwrap() };
    assert!(rest.len() >= len, "{} of {len} bytes have come", rest.len());
    let (head, body) = (head.to_owned(), rest[..len].to_owned());
    let whole = peer.take();
    assert_eq!(whole.len(), head.len() + 4 + len, "one reply: {text:?}");
    (status, head, body)
}

/// Asks on a connection that is open, and takes the reply.
pub(crate) fn ask(sim: &mut Sim, peer: &Peer, path: &str) -> (u16, String) {
    peer.send(get(path).as_bytes());
    sim.settle();
    let (status, _, body) = reply(peer, false);
    (status, body)
}
