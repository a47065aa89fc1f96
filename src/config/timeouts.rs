//! How long a connection may take over each thing it does.

use std::time::Duration;

use crate::error::ConfigError;

/// The deadlines of a connection. With the defaults neither a peer nor the application can keep a
/// connection for ever in a state in which nothing happens. `None` turns one off. A literal ends with `..` and a default, because later versions
/// will have more fields.
///
/// None fires early; each fires at most one tick of the wheel (10 ms) plus the length of the turn
/// at hand late. [`CloseReason::Timeout`](crate::CloseReason::Timeout) names the one that did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// Dialling, the look-up of the name and all attempts together. Default 10 s.
    pub connect: Option<Duration>,
    /// One attempt to dial one address. Default 5 s: two lost SYNs (1 s + 2 s) still fit.
    pub connect_attempt: Option<Duration>,
    /// How long one attempt of a dial goes on before the next begins beside it, where a name has
    /// several addresses (RFC 8305, "happy eyeballs"). An attempt that fails lets the next begin at
    /// once. The families alternate, from that of the resolver's first address; at most 4 attempts
    /// go on side by side; the first that stands is the connection, and the others are reset. So a
    /// network without a way for IPv6, or one dead server of several, costs this and not
    /// `connect_attempt`. Default 250 ms, which the RFC recommends: most servers answer within it, so
    /// that few are dialled in vain. At least 10 ms (RFC 8305, 8). `None` tries one address after
    /// the other, in the resolver's order.
    pub connect_stagger: Option<Duration>,
    /// From accept to the first byte of an inbound connection. Default 10 s.
    pub first_byte: Option<Duration>,
    /// From the first byte of a request until the handler has consumed it. Nothing extends it: a
    /// peer that dribbles is cut off all the same. It stands still while reading is paused or the
    /// connection is congested. Default 30 s; a protocol with long uploads turns it off and relies
    /// on `read`.
    ///
    /// Where a request begins behind the end of another one, its time runs from the call of
    /// [`on_data`](crate::Handler::on_data) that consumed that other one and left the beginning,
    /// not from the read that brought it. A handler that consumes its requests piecemeal and leaves
    /// input over says so by [`Conn::expect_more_input`](crate::Conn::expect_more_input); without
    /// that each piece counts as a whole request, and the time starts anew with each.
    pub request: Option<Duration>,
    /// Makes `request` a grace instead of a limit: a request that is not whole by then must go on
    /// arriving at this rate, in bytes per second. For uploads of any length from clients of any
    /// non-zero speed. Default `None`: `request` is absolute.
    ///
    /// What arrives within the grace is not measured. After it the rate is checked at the end of
    /// each window of 5 s, or of `request` if that is shorter: the bytes read in the window must
    /// come to the rate times its length, and a window that brought more does not make up for the
    /// next. The next request has a grace of its own.
    ///
    /// At 240 bytes per second each window has to bring 1,200 bytes, for which a client that sends
    /// 12 kB/s needs 0.1 s. So a pause of 4.8 s of that client never ends the request. One of up to
    /// 9.8 s may or may not: it does not where enough comes before it in one window, and behind it in
    /// the next. A longer one than 10 s always covers a whole window, and the request ends with
    /// [`Timeout::Request`](crate::Timeout::Request). Within the grace a pause may last for as long as
    /// [`read`](Timeouts::read) allows.
    pub request_rate: Option<u64>,
    /// Between two bytes of a request, or of the reply to a request of ours. Default 30 s, which
    /// spans several retransmissions.
    pub read: Option<Duration>,
    /// How long the application may owe a reply, or keep reading paused, with nothing queued. Each
    /// byte of output that the kernel takes begins it anew, and so does the end of one of several
    /// requests: it bounds the silence of the application, not the length of a reply. Default 60 s.
    pub response: Option<Duration>,
    /// How long output may stand still: what is queued, and what the kernel holds while an idle or
    /// a tunnel deadline waits for it. Progress is what the peer acknowledged, so a slow reader
    /// that reads lives on. It is checked at the first tick and then from a
    /// hundred-and-twenty-eighth to a sixteenth of the timeout apart; the deadline runs from the
    /// last progress seen. A peer's kernel opens its window in steps: 64 KiB over loopback, 36 KiB
    /// over a Unix-domain socket, half of a small receive buffer. So at 60 s a steady reader over
    /// loopback needs about 1.1 kB/s, and a timeout of a second or two is too short for many.
    /// Default 60 s. `None` lets the kernel decide, which gives up a peer that acknowledges nothing
    /// after some fifteen minutes.
    pub write: Option<Duration>,
    /// How long a connection may stay idle between requests. An end by it waits while the peer
    /// acknowledges what the kernel still holds of the last reply, so that no reply is cut off.
    /// Default 75 s.
    pub idle: Option<Duration>,
    /// How long a connection may stay idle before it is pinged, by
    /// [`Handler::on_health_check`](crate::Handler::on_health_check). An answer is activity, so a
    /// peer that answers stays for as long as it does. Default `None`.
    pub ping_after: Option<Duration>,
    /// How long the answer to a ping may take. Default 5 s.
    pub ping: Option<Duration>,
    /// How long one side may be shut without anything moving on the other. It stands still while
    /// output is queued, the application owes a reply or reading is paused: `write` or `response`
    /// runs then. Default 10 s.
    pub half_closed: Option<Duration>,
    /// The grace before the last output of a closing connection must have left at
    /// [`Limits::flush_rate`](crate::Limits::flush_rate) on average. Default 5 s.
    pub flush: Option<Duration>,
    /// After our FIN, how long the peer may be silent before the socket is closed. It counts from
    /// the moment when nothing is unacknowledged. Default 5 s.
    pub linger_read: Option<Duration>,
    /// After our FIN, how long the peer's remaining bytes are read in all, from the same moment on.
    /// Default 30 s.
    pub linger: Option<Duration>,
    /// How long a tunnel may carry nothing in either direction. What it wrote is checked after each
    /// `write` of silence, so that a dead peer is found before. Default 1 h.
    pub tunnel: Option<Duration>,
    /// The greatest age, shortened at random by up to a quarter so that connections opened
    /// together do not end together. It acts between two requests, 30 s later in any case.
    /// Default `None`.
    pub lifetime: Option<Duration>,
    #[doc(hidden)]
    pub _more: (),
}

const fn minutes(minutes: u64) -> Option<Duration> {
    Some(Duration::from_secs(60 * minutes))
}

/// Timeouts that suit kinds of protocols. The default suits those of requests that arrive whole
/// within 30 s.
impl Timeouts {
    /// For HTTP and other protocols whose requests may be uploads of any length: the head of a
    /// request has the 30 s of [`request`](Self::request), and from then on the request must go on
    /// arriving at 240 bytes per second. That is the rate below which Kestrel ends a request, and
    /// far below that of any network in use; it bounds what a peer gains that dribbles on purpose
    /// (Slowloris).
    pub fn for_http() -> Self {
        Self { request_rate: Some(240), ..Self::default() }
    }

    /// For servers whose clients keep connections in pools. A pool opens connections before it has
    /// requests for them, and leaves them unused for minutes; one that is closed under it costs the
    /// client a failed request. So a connection may say nothing for 35 minutes, at first and
    /// between requests: longer than the 30 minutes after which pools commonly retire a connection,
    /// so that it is the pool that closes. A peer that vanished meanwhile is found by
    /// [`SocketOptions::keepalive`](crate::config::SocketOptions::keepalive), or by
    /// [`ping_after`](Self::ping_after) where the protocol has a question to ask.
    ///
    /// A connection that has not said anything is not evicted at a limit, so strangers can hold
    /// places for that long: such a server is for a network of known clients, or limits [each
    /// client](crate::Limits::clients).
    pub fn for_pooled_clients() -> Self {
        Self { first_byte: minutes(35), idle: minutes(35), ..Self::default() }
    }

    /// For relays that pass bytes through ([`Conn::tunnel`](crate::Conn::tunnel)). After the FIN of
    /// one side the other may have much to send, with pauses: it has 5 minutes for each instead of
    /// 10 s. A tunnel that carries nothing at all still ends after an hour.
    pub fn for_tunnels() -> Self {
        Self { half_closed: minutes(5), ..Self::default() }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        const fn seconds(seconds: u64) -> Option<Duration> {
            Some(Duration::from_secs(seconds))
        }
        Self {
            connect: seconds(10),
            connect_attempt: seconds(5),
            connect_stagger: Some(Duration::from_millis(250)),
            first_byte: seconds(10),
            request: seconds(30),
            request_rate: None,
            read: seconds(30),
            response: seconds(60),
            write: seconds(60),
            idle: seconds(75),
            ping_after: None,
            ping: seconds(5),
            half_closed: seconds(10),
            flush: seconds(5),
            linger_read: seconds(5),
            linger: seconds(30),
            tunnel: seconds(3_600),
            lifetime: None,
            _more: (),
        }
    }
}

impl Timeouts {
    pub(crate) fn named(&self) -> [(&'static str, Option<Duration>); 17] {
        // A new one is not forgotten here: all fields are named.
        let Self {
            connect,
            connect_attempt,
            connect_stagger,
            first_byte,
            request,
            request_rate: _,
            read,
            response,
            write,
            idle,
            ping_after,
            ping,
            half_closed,
            flush,
            linger_read,
            linger,
            tunnel,
            lifetime,
            _more: (),
        } = *self;
        [
            ("timeouts.connect", connect),
            ("timeouts.connect_attempt", connect_attempt),
            ("timeouts.connect_stagger", connect_stagger),
            ("timeouts.first_byte", first_byte),
            ("timeouts.request", request),
            ("timeouts.read", read),
            ("timeouts.response", response),
            ("timeouts.write", write),
            ("timeouts.idle", idle),
            ("timeouts.ping_after", ping_after),
            ("timeouts.ping", ping),
            ("timeouts.half_closed", half_closed),
            ("timeouts.flush", flush),
            ("timeouts.linger_read", linger_read),
            ("timeouts.linger", linger),
            ("timeouts.tunnel", tunnel),
            ("timeouts.lifetime", lifetime),
        ]
    }

    /// The first timeout that is zero, if one is.
    pub(crate) fn refuse_zero(&self) -> Result<(), ConfigError> {
        if self.request_rate == Some(0) {
            return Err(ConfigError::new("timeouts.request_rate", "at least 1, or None"));
        }
        if self.ping_after.is_some() && self.ping.is_none() {
            return Err(ConfigError::new("timeouts.ping", "set, where ping_after is"));
        }
        // RFC 8305, 8: shorter ones would have all addresses dialled at once.
        if self
            .connect_stagger
            .is_some_and(|stagger| !stagger.is_zero() && stagger < Duration::from_millis(10))
        {
            return Err(ConfigError::new("timeouts.connect_stagger", "at least 10 ms, or None"));
        }
        match self.named().into_iter().find(|(_, timeout)| *timeout == Some(Duration::ZERO)) {
            Some((setting, _)) => Err(ConfigError::new(setting, "longer than zero, or None")),
            None => Ok(()),
        }
    }
}
