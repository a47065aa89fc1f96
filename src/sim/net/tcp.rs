//! TCP between two sockets: dialling, segments on their way, and the calls on a socket.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use super::side::{BOTH, Connection, Path, Segment, Side};
use super::{End, Event, Holder, Link, Listener, Net, Notice, Personality, ReadMode, Socket};
use crate::address::Address;
use crate::backend::{Readiness, Token};
use crate::sim::history::TraceEvent;
use crate::time::{Instant, nanos};

/// A segment that was held back is sent again after this, then after twice as long each time.
const RTO_MIN: Duration = Duration::from_millis(200);
const RTO_MAX: Duration = Duration::from_secs(120);

/// How often a segment or a SYN is sent again before the connection is given up: Linux's
/// tcp_retries2 and tcp_syn_retries.
const RETRIES_MAX: u32 = 15;
const SYN_RETRIES_MAX: u32 = 6;

/// A SYN that was dropped is sent again after this, then after twice as long each time.
const SYN_RTO: Duration = Duration::from_secs(1);

/// How many tokens of closed sockets a machine remembers, for events that come too late.
const STALE_MAX: usize = 16;

/// How long the answer to a SYN is waited for.
fn syn_pause(attempt: u32) -> Duration {
    SYN_RTO * 2_u32.saturating_pow(attempt)
}

/// Links.
impl Net {
    pub(in crate::sim) fn set_link(&mut self, a: IpAddr, b: IpAddr, link: Link) {
        self.links.insert((a.min(b), a.max(b)), link);
    }

    pub(in crate::sim) fn set_cut(&mut self, a: IpAddr, b: IpAddr, cut: bool) {
        let pair = (a.min(b), a.max(b));
        if cut {
            self.cut.insert(pair);
        } else {
            self.cut.remove(&pair);
        }
    }

    pub(super) fn link_between(&self, a: IpAddr, b: IpAddr) -> Link {
        self.links.get(&(a.min(b), a.max(b))).copied().unwrap_or(self.link)
    }

    pub(super) fn ips(&self, socket: Socket) -> Option<(IpAddr, IpAddr)> {
        let connection = self.connection(socket)?;
        let ip = |side: usize| connection.ends[side].address.ip().map(|addr| addr.ip());
        let (a, b) = (ip(0)?, ip(1)?);
        Some((a.min(b), a.max(b)))
    }

    pub(super) fn is_cut(&self, socket: Socket) -> bool {
        !self.cut.is_empty() && self.ips(socket).is_some_and(|pair| self.cut.contains(&pair))
    }
}

/// Connections.
impl Net {
    pub(super) fn connection(&self, socket: Socket) -> Option<&Connection> {
        self.connections
            .get(socket.index as usize)
            .filter(|connection| connection.serial == socket.serial)
    }

    pub(super) fn connection_mut(&mut self, socket: Socket) -> Option<&mut Connection> {
        self.connections
            .get_mut(socket.index as usize)
            .filter(|connection| connection.serial == socket.serial)
    }

    pub(super) fn side(&self, socket: Socket) -> Option<&Side> {
        Some(&self.connection(socket)?.ends[socket.side()])
    }

    pub(super) fn side_mut(&mut self, socket: Socket) -> Option<&mut Side> {
        Some(&mut self.connection_mut(socket)?.ends[socket.side()])
    }

    /// Begins to dial `to` from `from`.
    pub(in crate::sim) fn dial(&mut self, holder: Holder, from: Address, to: &Address) -> Socket {
        // unix(7): a socket that is not bound has no name.
        let from = if let Address::Unix(_) = to { Address::Unnamed } else { from };
        let link = match (from.ip(), to.ip()) {
            (Some(from), Some(to)) => self.link_between(from.ip(), to.ip()),
            _ => self.link,
        };
        let path = || Path {
            queue: VecDeque::new(),
            link,
            busy_until: Instant::EPOCH,
            last_at: Instant::EPOCH,
            retries: 0,
            stuck_since: None,
        };
        self.serial += 1;
        let buffers = self.buffers;
        let connection = Connection {
            serial: self.serial,
            open: false,
            ends: [
                Side::new(holder, from, buffers),
                // Which listener takes it is known when the SYN arrives.
                Side::new(Holder::Peer, to.clone(), buffers),
            ],
            paths: [path(), path()],
        };
        let index = self.connections.insert(connection) as u32;
        let socket = Socket { index, serial: self.serial, side: 0 };
        self.note(0x10, socket.mark());
        self.record_at(socket, TraceEvent::DialState(to.ip()));
        let at = self.now + link.latency;
        self.schedule(at, Event::Syn(socket, 0));
        socket
    }

    /// An address for a socket that dials from this machine, or for a peer.
    pub(in crate::sim) fn port_of(&mut self, holder: Holder) -> Address {
        let (ip, port) = match holder {
            Holder::Host(machine) => {
                let machine = &mut self.machines[machine];
                machine.next_port = machine.next_port.checked_add(1).unwrap_or(49_152);
                (machine.ip, machine.next_port)
            }
            Holder::Peer => {
                self.next_peer = self.next_peer.checked_add(1).unwrap_or(1_024);
                (self.peers_ip, self.next_peer)
            }
        };
        Address::Ip((ip, port).into())
    }

    /// Whether an address is taken, so that none can listen there: by a listener on it, or on its
    /// port at all addresses of the machine.
    pub(in crate::sim) fn is_taken(&self, holder: Holder, address: &Address) -> bool {
        let ip_of = |holder: Holder, ip: IpAddr| match holder {
            Holder::Host(machine) if ip.is_unspecified() => self.machines[machine].ip,
            Holder::Peer if ip.is_unspecified() => self.peers_ip,
            Holder::Host(_) | Holder::Peer => ip,
        };
        self.listeners.iter().any(|(_, it)| match (it.address.ip(), address.ip()) {
            (Some(a), Some(b)) => {
                let (here, there) = (ip_of(it.holder, a.ip()), ip_of(holder, b.ip()));
                let own = !here.is_loopback() || it.holder == holder;
                a.port() == b.port() && here == there && own
            }
            _ => it.address == *address && it.holder == holder,
        })
    }

    pub(in crate::sim) fn find_listener(&self, address: &Address) -> Option<usize> {
        let exact = self.listeners.iter().find(|(_, listener)| listener.address == *address);
        exact
            .or_else(|| {
                let addr = address.ip()?;
                self.listeners.iter().find(|(_, listener)| {
                    let wildcard = listener
                        .address
                        .ip()
                        .is_some_and(|at| at.ip().is_unspecified() && at.port() == addr.port());
                    wildcard
                        && match listener.holder {
                            Holder::Host(machine) => self.machines[machine].ip == addr.ip(),
                            Holder::Peer => self.peers_ip == addr.ip(),
                        }
                })
            })
            .map(|(index, _)| index)
    }

    /// Whether something listens at an address that has no room for another connection.
    pub(in crate::sim) fn is_backlog_full(&self, address: &Address) -> bool {
        self.find_listener(address).is_some_and(|index| {
            let listener = &self.listeners[index];
            listener.queue.len() >= listener.backlog
        })
    }

    /// Whether there is a machine that refuses what it does not expect.
    pub(super) fn is_up(&self, address: &Address) -> bool {
        match address.ip() {
            Some(addr) => {
                addr.ip() == self.peers_ip
                    || self.machines.iter().any(|machine| machine.ip == addr.ip())
            }
            None => true,
        }
    }

    /// A dialler's SYN comes to where it was sent.
    pub(super) fn take_syn(&mut self, from: Socket, attempt: u32) {
        let Some(connection) = self.connection(from) else { return };
        if connection.open || connection.ends[0].dead {
            return;
        }
        if attempt > SYN_RETRIES_MAX {
            return self.give_up(from, libc::ETIMEDOUT, End::TimedOut);
        }
        let to = connection.ends[1].address.clone();
        let latency = connection.paths[0].link.latency;
        let listener = self.find_listener(&to);
        let lost = self.is_cut(from);
        if !lost && listener.is_none() && connection.ends[0].address == to {
            return self.connect_to_itself(from);
        }
        if !lost && listener.is_none() && self.is_up(&to) {
            self.schedule(self.now + latency, Event::Refuse(from, attempt));
            return;
        }
        let taken = listener.filter(|index| {
            let listener = &self.listeners[*index];
            !lost && listener.queue.len() < listener.backlog
        });
        let Some(index) = taken else {
            return self.schedule(self.now + syn_pause(attempt), Event::Syn(from, attempt + 1));
        };
        let listener = &mut self.listeners[index];
        let far = from.far();
        listener.queue.push_back(far);
        let holder = listener.holder;
        let now = self.now;
        let Some(connection) = self.connection_mut(from) else { return };
        connection.open = true;
        connection.ends[1].holder = holder;
        connection.ends[1].established = true;
        connection.ends[0].window_edge = connection.ends[1].advertised_edge;
        connection.ends[1].window_edge = connection.ends[0].advertised_edge;
        // What the listener's end sends arrives after the end of the handshake.
        connection.paths[1].last_at = now + latency;
        self.note(0x11, from.mark());
        self.notify_listener(index);
        self.schedule(now + latency, Event::Established(from, 0));
    }

    /// A socket that dialled the port it got meets its own SYN (RFC 9293, 3.5, simultaneous open).
    fn connect_to_itself(&mut self, socket: Socket) {
        let Some(connection) = self.connection_mut(socket) else { return };
        connection.open = true;
        // There is no other end.
        connection.ends[1].closed = true;
        connection.ends[1].established = true;
        connection.ends[0].established = true;
        self.notify(socket, Readiness::WRITABLE);
    }

    /// The answer to its SYN reaches the dialler, unless it is lost: then it comes again.
    pub(super) fn establish(&mut self, socket: Socket, attempt: u32) {
        if self.is_cut(socket) {
            if attempt > SYN_RETRIES_MAX {
                return self.give_up(socket, libc::ETIMEDOUT, End::TimedOut);
            }
            let again = Event::Established(socket, attempt + 1);
            return self.schedule(self.now + syn_pause(attempt), again);
        }
        let Some(side) = self.side_mut(socket) else { return };
        side.established = true;
        self.notify(socket, Readiness::WRITABLE);
        self.pump(socket);
    }

    pub(super) fn refuse(&mut self, socket: Socket, attempt: u32) {
        if self.is_cut(socket) {
            let again = Event::Syn(socket, attempt + 1);
            return self.schedule(self.now + syn_pause(attempt), again);
        }
        self.give_up(socket, libc::ECONNREFUSED, End::Refused);
    }

    /// Ends one end for a reason that no segment brought.
    pub(super) fn give_up(&mut self, socket: Socket, errno: i32, end: End) {
        let Some(side) = self.side_mut(socket) else { return };
        if side.dead {
            return;
        }
        side.dead = true;
        side.error = Some(errno);
        side.end.get_or_insert(end);
        side.drop_output();
        self.notify(socket, BOTH);
    }

    /// Sends what may be sent, and the FIN after it.
    pub(super) fn pump(&mut self, socket: Socket) {
        loop {
            let Some(connection) = self.connection_mut(socket) else { return };
            let segment_max = connection.paths[socket.side()].link.segment.max(1);
            let side = &mut connection.ends[socket.side()];
            if side.dead || !side.established {
                return;
            }
            let room = side.out_max.saturating_sub(side.out.len());
            let more = room.min(side.backlog.len());
            side.out.extend(side.backlog.drain(..more));
            side.written += more as u64;
            let next = side.acked + side.in_flight as u64;
            let allowed = side.window_edge.saturating_sub(next) as usize;
            let count = (side.out.len() - side.in_flight).min(allowed).min(segment_max);
            let last = side.in_flight + count == side.out.len() && side.backlog.is_empty();
            let fin = side.finish && last && !side.fin_sent;
            if count == 0 && !fin {
                return;
            }
            let bytes = side.out.range(side.in_flight..side.in_flight + count).copied().collect();
            side.in_flight += count;
            side.fin_sent |= fin;
            self.send(socket, bytes, fin, false);
        }
    }

    /// Puts a segment on its way.
    pub(super) fn send(&mut self, from: Socket, bytes: Vec<u8>, fin: bool, reset: bool) {
        let now = self.now;
        let Some(connection) = self.connection(from) else { return };
        let Link { latency, jitter, bandwidth, .. } = connection.paths[from.side()].link;
        let late = Duration::from_nanos(self.random_below(jitter));
        let Some(connection) = self.connection_mut(from) else { return };
        let side = &mut connection.ends[from.side()];
        side.advertised_edge = side.new_edge();
        let segment =
            Segment { acked: side.arrived, window_edge: side.advertised_edge, fin, reset, bytes };
        let path = &mut connection.paths[from.side()];
        let takes = bandwidth.map_or(0, |rate| {
            (segment.bytes.len() as u64).saturating_mul(1_000_000_000) / rate.max(1)
        });
        path.busy_until = path.busy_until.max(now).after(takes);
        let at = (path.busy_until + latency + late).max(path.last_at);
        path.last_at = at;
        path.queue.push_back((at, segment));
        self.schedule(at, Event::Arrive(from.far()));
    }

    pub(super) fn random_below(&mut self, jitter: Duration) -> u64 {
        if jitter.is_zero() { 0 } else { self.random.below(nanos(jitter)) }
    }

    /// What has come to an end is taken in.
    pub(super) fn arrive(&mut self, to: Socket) {
        let cut = self.is_cut(to);
        let now = self.now;
        let Some(connection) = self.connection_mut(to) else { return };
        let path = &mut connection.paths[1 - to.side()];
        if path.stuck_since.is_some() || path.queue.is_empty() {
            return;
        }
        if !cut {
            return self.deliver_due(to);
        }
        if connection.ends[1 - to.side()].dead {
            // A reset is not sent again.
            return path.queue.clear();
        }
        path.stuck_since = Some(now);
        path.retries = 0;
        self.schedule(now + RTO_MIN, Event::Retry(to));
    }

    /// What was held back is sent again.
    pub(super) fn retry(&mut self, to: Socket) {
        let cut = self.is_cut(to);
        let now = self.now;
        let Some(connection) = self.connection_mut(to) else { return };
        let path = &mut connection.paths[1 - to.side()];
        let since = path.stuck_since.unwrap_or(now);
        if !cut {
            path.stuck_since = None;
            return self.deliver_due(to);
        }
        path.retries = path.retries.saturating_add(1);
        let retries = path.retries;
        let from = to.far();
        // Acknowledgements are not sent again by themselves: an end that misses one sends what it was
        // for again, and gives up if it never comes.
        let waits = if path.queue.iter().any(|(_, segment)| segment.is_acknowledged()) {
            Some(from)
        } else {
            (connection.ends[to.side()].in_flight > 0).then_some(to)
        };
        let impatient = waits.is_some_and(|socket| {
            let patience = connection.ends[socket.side()].user_timeout;
            retries > RETRIES_MAX || patience.is_some_and(|patience| now - since >= patience)
        });
        if impatient || connection.ends[from.side()].dead {
            let path = &mut connection.paths[1 - to.side()];
            path.queue.clear();
            path.stuck_since = None;
            if let Some(socket) = waits {
                self.give_up(socket, libc::ETIMEDOUT, End::TimedOut);
            }
            return;
        }
        let pause = RTO_MIN.saturating_mul(2_u32.saturating_pow(retries)).min(RTO_MAX);
        self.schedule(now + pause, Event::Retry(to));
    }

    pub(super) fn deliver_due(&mut self, to: Socket) {
        loop {
            let now = self.now;
            let Some(connection) = self.connection_mut(to) else { return };
            let queue = &mut connection.paths[1 - to.side()].queue;
            if queue.front().is_none_or(|(at, _)| *at > now) {
                return;
            }
            let Some((_, segment)) = queue.pop_front() else { return };
            self.deliver(to, segment);
        }
    }

    pub(super) fn deliver(&mut self, to: Socket, segment: Segment) {
        self.note(0x12, to.mark());
        self.note(0x14, u64::from(segment.fin) << 1 | u64::from(segment.reset));
        self.note_bytes(&segment.bytes);
        let Segment { ref bytes, fin, reset, .. } = segment;
        // A script that has closed its end sees nothing of what still comes there.
        let seen = self.side(to).is_some_and(|side| !side.closed);
        if seen && (reset || fin || !bytes.is_empty()) {
            let event = TraceEvent::Arrival { of: self.of(to), bytes: bytes.len(), fin, reset };
            self.record_at(to, event);
        }
        let tells_all_room = self.is_kqueue(to);
        let Some(side) = self.side_mut(to) else { return };
        if side.dead {
            // RFC 9293, 3.10.7.1: what comes for a connection that is none is answered so.
            if !reset {
                self.send(to, Vec::new(), false, true);
            }
            return;
        }
        if segment.reset {
            side.dead = true;
            // An end that has the FIN has seen the end: Linux answers EPIPE to what is written
            // after that, and reads still find the end.
            side.error = Some(if side.eof { libc::EPIPE } else { libc::ECONNRESET });
            side.end.get_or_insert(End::Reset);
            side.drop_output();
            return self.notify(to, BOTH);
        }
        let freed = segment.acked.saturating_sub(side.acked).min(side.in_flight as u64) as usize;
        side.out.drain(..freed);
        side.in_flight -= freed;
        side.acked += freed as u64;
        side.window_edge = side.window_edge.max(segment.window_edge);
        let arrived = !segment.bytes.is_empty();
        if (arrived || segment.fin) && side.closed {
            // An end that reads no more says so with a reset, if anything comes that it would have
            // had to read.
            if arrived {
                side.dead = true;
                self.check_destroyed(to);
                if let Some(side) = self.side_mut(to) {
                    side.drop_output();
                }
                self.send(to, Vec::new(), false, true);
            }
            return;
        }
        side.arrived += segment.bytes.len() as u64;
        side.input.extend(segment.bytes);
        side.eof |= segment.fin;
        if side.eof {
            side.end.get_or_insert(End::Fin);
        }
        let asked = side.wants_room || (tells_all_room && freed > 0);
        let room = asked && side.has_room();
        if room {
            side.wants_room = false;
        }
        if arrived || segment.fin {
            self.notify(to, Readiness::READABLE);
        }
        if arrived {
            self.send(to, Vec::new(), false, false);
        }
        if room {
            self.notify(to, Readiness::WRITABLE);
        }
        self.pump(to);
    }

    pub(super) fn is_kqueue(&self, socket: Socket) -> bool {
        match self.side(socket).map(|side| side.holder) {
            Some(Holder::Host(machine)) => {
                self.machines[machine].personality == Personality::Kqueue
            }
            Some(Holder::Peer) | None => false,
        }
    }

    fn is_weakest(&self, socket: Socket) -> bool {
        match self.side(socket).map(|side| side.holder) {
            Some(Holder::Host(machine)) => {
                self.machines[machine].personality == Personality::Weakest
            }
            Some(Holder::Peer) | None => false,
        }
    }

    /// After a read: announces the window to the other end, if it has grown enough (RFC 1122,
    /// 4.2.3.3).
    pub(super) fn tell_room(&mut self, socket: Socket) {
        let Some(side) = self.side(socket) else { return };
        let step = (side.input_max / 2).clamp(1, 4_096) as u64;
        if !side.dead && !side.eof && side.new_edge() >= side.advertised_edge + step {
            self.send(socket, Vec::new(), false, false);
        }
    }
}

/// Calls on a socket, by processes and peers alike.
impl Net {
    pub(in crate::sim) fn read(&mut self, socket: Socket, max: usize) -> Result<Vec<u8>, i32> {
        let Some(connection) = self.connection_mut(socket) else { return Err(libc::EBADF) };
        let side = &mut connection.ends[socket.side()];
        if side.input.is_empty() {
            if !side.eof
                && let Some(errno) = side.error.take()
            {
                return Err(errno);
            }
            if side.eof || side.dead {
                return Ok(Vec::new());
            }
            // As on Linux also while it is being connected.
            return Err(libc::EAGAIN);
        }
        let count = side.input.len().min(max);
        let bytes: Vec<u8> = side.input.drain(..count).collect();
        side.read += count as u64;
        self.tell_room(socket);
        Ok(bytes)
    }

    pub(in crate::sim) fn write(
        &mut self,
        socket: Socket,
        slices: &[&[u8]],
        max: usize,
    ) -> Result<usize, i32> {
        let Some(connection) = self.connection_mut(socket) else { return Err(libc::EBADF) };
        let side = &mut connection.ends[socket.side()];
        if let Some(errno) = side.error.take() {
            return Err(errno);
        }
        if side.dead || side.finish {
            return Err(libc::EPIPE);
        }
        if !side.established && side.holder != Holder::Peer {
            return Err(libc::EAGAIN);
        }
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let room = side.out_max.saturating_sub(side.out.len() + side.backlog.len()).min(max);
        let mut left = room.min(total);
        let taken = left;
        for slice in slices {
            let count = left.min(slice.len());
            side.out.extend(&slice[..count]);
            left -= count;
        }
        side.written += taken as u64;
        side.wants_room |= taken < total;
        self.pump(socket);
        if taken == 0 && total > 0 { Err(libc::EAGAIN) } else { Ok(taken) }
    }

    /// Leaves bytes to be written as room comes.
    pub(in crate::sim) fn write_later(&mut self, socket: Socket, bytes: &[u8]) {
        if let Some(side) = self.side_mut(socket)
            && !side.dead
            && !side.finish
        {
            side.backlog.extend(bytes);
            self.record_at(socket, TraceEvent::Send(bytes.len()));
            self.pump(socket);
        }
    }

    pub(in crate::sim) fn shutdown_write(&mut self, socket: Socket) -> Result<(), i32> {
        let Some(side) = self.side_mut(socket) else { return Err(libc::EBADF) };
        if side.dead {
            return Err(libc::ENOTCONN);
        }
        side.finish = true;
        self.pump(socket);
        if !self.is_weakest(socket) {
            // EV_EOF of the write filter; and Linux wakes a waiting process when a side is shut down,
            // and calls a socket writable that no write can wait for.
            self.notify(socket, Readiness::WRITABLE);
        }
        Ok(())
    }

    /// The process closes its end: a FIN after what is queued, or a reset if that is asked for
    /// or there are bytes that will not be read (RFC 2525, 2.17).
    pub(in crate::sim) fn close(&mut self, socket: Socket, reset: bool) {
        self.note(0x13, socket.mark() << 1 | u64::from(reset));
        let of = self.of(socket);
        let Some(connection) = self.connection_mut(socket) else { return };
        let open = connection.open;
        let side = &mut connection.ends[socket.side()];
        if side.closed {
            return;
        }
        side.closed = true;
        self.record_at(socket, TraceEvent::Close { of, reset });
        let Some(connection) = self.connection_mut(socket) else { return };
        let side = &mut connection.ends[socket.side()];
        let (token, fd, holder) = (side.token.take(), side.fd.take(), side.holder);
        let unread = !side.input.is_empty();
        if !open {
            side.dead = true;
        } else if !side.dead {
            if reset || unread {
                side.dead = true;
                if !reset {
                    self.check_destroyed(socket);
                }
                if let Some(side) = self.side_mut(socket) {
                    side.drop_output();
                }
                self.send(socket, Vec::new(), false, true);
            } else {
                side.finish = true;
                self.pump(socket);
            }
        }
        self.free_socket(socket, holder, fd, token);
        self.reclaim(socket);
    }

    /// A closed end answers with a reset. What it had sent and the peer has not received is lost by
    /// that: where a session was served, and the peer is there and reads, that is a fault of the
    /// process.
    fn check_destroyed(&mut self, socket: Socket) {
        let Some(connection) = self.connection(socket) else { return };
        let (side, far) = (&connection.ends[socket.side()], &connection.ends[1 - socket.side()]);
        let reads = !far.closed && !far.dead && far.read_mode != ReadMode::Nothing;
        let unix = matches!(connection.ends[1].address, Address::Unix(_));
        let lost = side.out.len();
        let well = side.ledger.served && !side.ledger.failed;
        if well && reads && !unix && lost > 0 {
            let what = format!(
                "the end{} destroyed {lost} bytes that its peer had yet to receive",
                self.of(socket)
            );
            self.fail_check(what);
        }
    }

    /// As [`close`](Net::close) without reset, where another process holds a descriptor of the
    /// socket: nothing is sent.
    pub(in crate::sim) fn close_duplicated(&mut self, socket: Socket) {
        self.note(0x14, socket.mark());
        let of = self.of(socket);
        self.record_at(socket, TraceEvent::Close { of, reset: false });
        let Some(side) = self.side_mut(socket) else { return };
        if !std::mem::replace(&mut side.closed, true) {
            let (token, fd, holder) = (side.token.take(), side.fd.take(), side.holder);
            self.free_socket(socket, holder, fd, token);
        }
    }

    /// Frees what the process that held an end knew it by.
    fn free_socket(
        &mut self,
        socket: Socket,
        holder: Holder,
        fd: Option<u32>,
        token: Option<Token>,
    ) {
        let Holder::Host(machine) = holder else { return };
        if let Some(fd) = fd {
            self.free_fd(machine, fd);
        }
        let machine = &mut self.machines[machine];
        machine.notices.retain(|notice| !matches!(notice, Notice::Socket(it) if *it == socket));
        if let Some(token) = token {
            machine.tokens.remove(&(token, socket));
            if machine.stale.len() == STALE_MAX {
                machine.stale.pop_front();
            }
            machine.stale.push_back(token);
        }
    }

    /// Forgets a connection that has no holder.
    pub(super) fn reclaim(&mut self, socket: Socket) {
        let Some(connection) = self.connection(socket) else { return };
        let waits = !connection.open && !connection.ends[0].dead;
        let far_is_open = connection.open && !connection.ends[1].closed;
        let held = connection.ends.iter().any(|side| side.held);
        if connection.ends[0].closed && !far_is_open && !waits && !held {
            self.connections.remove(socket.index as usize);
        }
    }

    pub(in crate::sim) fn take_error(&mut self, socket: Socket) -> Option<i32> {
        self.side_mut(socket)?.error.take()
    }

    /// As the system's backend finds out: a connection that lasts has a peer. One that was reset has
    /// none, whether it ever stood or not; then what a read would find decides, and an error that is
    /// behind input stays.
    pub(in crate::sim) fn is_connected(&mut self, socket: Socket) -> Result<bool, i32> {
        let Some(side) = self.side(socket) else { return Err(libc::EBADF) };
        if side.established && !side.dead {
            return if self.met_itself(socket) { Err(libc::ECONNREFUSED) } else { Ok(true) };
        }
        let (stood, heard) = (side.established, !side.input.is_empty() || side.eof);
        if heard {
            return Ok(true);
        }
        self.take_error(socket).map_or(Ok(stood), Err)
    }

    fn met_itself(&self, socket: Socket) -> bool {
        let ends = self.connection(socket).map(|connection| &connection.ends);
        ends.is_some_and(|[near, far]| near.address.ip().is_some() && near.address == far.address)
    }

    /// The stack gives a connection up, as it does after some errors.
    pub(in crate::sim) fn kill(&mut self, socket: Socket) {
        let Some(side) = self.side_mut(socket) else { return };
        if side.dead {
            return;
        }
        side.dead = true;
        side.error = None;
        side.drop_output();
        self.send(socket, Vec::new(), false, true);
    }

    pub(in crate::sim) fn unsent(&self, socket: Socket) -> u64 {
        self.side(socket).map_or(0, |side| side.lost + side.out.len() as u64)
    }

    pub(in crate::sim) fn address(&self, socket: Socket) -> Address {
        self.side(socket).map_or(Address::Unnamed, |side| side.address.clone())
    }

    pub(in crate::sim) fn set_user_timeout(&mut self, socket: Socket, timeout: Option<Duration>) {
        if let Some(side) = self.side_mut(socket) {
            side.user_timeout = timeout;
        }
    }

    /// How many bytes are waiting to be read.
    pub(in crate::sim) fn readable(&self, socket: Socket) -> usize {
        self.side(socket).map_or(0, |side| side.input.len())
    }
}

/// Listeners.
impl Net {
    pub(in crate::sim) fn listen(
        &mut self,
        holder: Holder,
        address: Address,
        backlog: usize,
        fd: Option<u32>,
    ) -> usize {
        self.listeners.insert(Listener {
            holder,
            address,
            backlog: backlog.max(1),
            queue: VecDeque::new(),
            token: None,
            queued: false,
            armed: true,
            later: Readiness::NONE,
            fd,
            user_timeout: None,
        })
    }

    /// Takes the oldest connection off a backlog.
    pub(in crate::sim) fn take_waiting(&mut self, index: usize) -> Option<Socket> {
        self.listeners.get_mut(index)?.queue.pop_front()
    }

    pub(in crate::sim) fn close_listener(&mut self, index: usize) {
        let Some(listener) = self.listeners.try_remove(index) else { return };
        for socket in listener.queue {
            self.close(socket, true);
        }
        if let Holder::Host(machine) = listener.holder {
            if let Some(fd) = listener.fd {
                self.free_fd(machine, fd);
            }
            self.machines[machine]
                .notices
                .retain(|notice| !matches!(notice, Notice::Listener(it) if *it == index));
        }
    }

    pub(in crate::sim) fn notify_listener(&mut self, index: usize) {
        let Some(listener) = self.listeners.get_mut(index) else { return };
        let Holder::Host(machine) = listener.holder else { return };
        let weak = self.machines[machine].personality == Personality::Weakest;
        if listener.token.is_none() || listener.queued || (weak && !listener.armed) {
            return;
        }
        listener.queued = true;
        listener.armed = false;
        self.machines[machine].notices.push_back(Notice::Listener(index));
    }

    /// An accept would have blocked, or the listener is registered anew: it may speak again.
    pub(in crate::sim) fn arm_listener(&mut self, index: usize) {
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.armed = true;
        }
    }
}
