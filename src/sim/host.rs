//! A machine of the simulated world, as the reactor on it sees it.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::BytesMut;

use super::fault::{self, Call, Faults};
use super::history::Outcome;
use super::net::{BOTH, Holder, Net, Notice, Personality, Socket};
use crate::address::Address;
use crate::backend::{Backend, Event, Events, Readiness, Sealed, Token, Wake};
use crate::config::{ListenConfig, SocketOptions};
use crate::time::Instant;

/// How much the coarse clock lags at most: a tick of a kernel with 250 of them in a second.
const COARSE_NANOS: u64 = 4_000_000;

/// How long a look-up takes by default.
const LOOKUP: Duration = Duration::from_millis(1);

/// A simulated machine with one process on it: the [`Backend`] of one reactor.
///
/// Waiting neither blocks nor lets time pass: [`Sim`](super::Sim) does that, or the test that turns
/// the reactor, by [`Sim::pass`](super::Sim::pass).
#[derive(Debug)]
pub struct Host {
    net: Rc<RefCell<Net>>,
    machine: usize,
    woken: Arc<Woken>,
}

#[derive(Debug, Default)]
pub(super) struct Woken {
    set: AtomicBool,
    /// So many of the next wake-ups fail.
    failing: AtomicU32,
}

impl Woken {
    pub(super) fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    pub(super) fn fail(&self, count: u32) {
        self.failing.store(count, Ordering::Relaxed);
    }
}

impl Wake for Woken {
    fn wake(&self) -> io::Result<()> {
        let fewer = |count: u32| count.checked_sub(1);
        if self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok() {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        self.set.store(true, Ordering::Release);
        Ok(())
    }
}

/// A listening socket of a [`Host`].
#[derive(Debug)]
pub struct HostListener {
    net: Rc<RefCell<Net>>,
    index: usize,
}

/// A socket of a [`Host`].
#[derive(Debug)]
pub struct HostStream {
    net: Rc<RefCell<Net>>,
    machine: usize,
    socket: Socket,
    fd: u32,
    reset: bool,
}

impl Drop for HostListener {
    fn drop(&mut self) {
        self.net.borrow_mut().close_listener(self.index);
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        let mut net = self.net.borrow_mut();
        if net.machines[self.machine].duplicated && !self.reset {
            net.close_duplicated(self.socket);
        } else {
            net.close(self.socket, self.reset);
        }
    }
}

impl Host {
    pub(super) fn new(net: Rc<RefCell<Net>>, machine: usize) -> Self {
        Self { net, machine, woken: Arc::default() }
    }

    pub(super) const fn machine(&self) -> usize {
        self.machine
    }

    pub(super) fn woken(&self) -> Arc<Woken> {
        Arc::clone(&self.woken)
    }

    fn enter(&self, call: Call, socket: Option<Socket>) -> io::Result<()> {
        match self.net.borrow_mut().enter(self.machine, call, socket) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }

    /// Notes that the latest call fails by itself.
    fn fail<T>(&self, net: &mut Net, call: Call, errno: i32) -> io::Result<T> {
        net.record_call(self.machine, call, None, Outcome::Failed(errno));
        Err(io::Error::from_raw_os_error(errno))
    }

    fn adopt_socket(&self, socket: Socket, fd: u32) -> HostStream {
        let mut net = self.net.borrow_mut();
        net.set_fd(socket, fd);
        HostStream { net: Rc::clone(&self.net), machine: self.machine, socket, fd, reset: false }
    }

    /// The end of a read or write: what failed, and in which state that leaves the socket.
    fn transfer(
        &self,
        call: Call,
        stream: &HostStream,
        ready: Readiness,
        transfer: impl FnOnce(&mut Net) -> Result<usize, i32>,
    ) -> io::Result<usize> {
        let net = &mut *self.net.borrow_mut();
        let notice = Notice::Socket(stream.socket);
        let result = match net.enter(self.machine, call, Some(stream.socket)) {
            Some(libc::EAGAIN) => {
                net.arm(stream.socket, ready);
                net.notify_later(notice, ready);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Some(errno) => {
                if fault::is_fatal(errno) {
                    net.kill(stream.socket);
                }
                Err(errno)
            }
            None => {
                let result = transfer(net);
                let outcome = match result {
                    Ok(count) => Outcome::Count(count),
                    Err(errno) => Outcome::Failed(errno),
                };
                net.record_call(self.machine, call, Some(stream.socket), outcome);
                result
            }
        };
        result.map_err(|errno| {
            if errno == libc::EAGAIN {
                net.arm(stream.socket, ready);
            } else if errno != libc::EINTR {
                net.note_failed(stream.socket);
            }
            io::Error::from_raw_os_error(errno)
        })
    }

    fn write_slices(&self, stream: &HostStream, slices: &[&[u8]]) -> io::Result<usize> {
        let (machine, socket) = (self.machine, stream.socket);
        let drains = self.short_io_drains();
        self.transfer(Call::Write, stream, Readiness::WRITABLE, |net| {
            let total: usize = slices.iter().map(|slice| slice.len()).sum();
            let mut max = usize::MAX;
            if total > 1 && net.befalls(machine, "short_write", |it| it.short_write) {
                max = net.random.below(total as u64) as usize;
            }
            if max == 0 {
                // As good as one that would block: a caller that took nothing would never be
                // notified again.
                net.arm(socket, Readiness::WRITABLE);
                net.notify_later(Notice::Socket(socket), Readiness::WRITABLE);
                return Ok(0);
            }
            let taken = net.write(socket, slices, max)?;
            net.note_written(machine, socket, slices, taken);
            net.note(0x20, taken as u64);
            if taken < total && max < total && drains {
                net.notify_later(Notice::Socket(socket), Readiness::WRITABLE);
            }
            Ok(taken)
        })
    }

    /// One wait's worth of events, before faults.
    fn collect(&self, net: &mut Net, most: usize) -> Vec<Event> {
        let mut list = Vec::new();
        while list.len() < most
            && let Some(notice) = net.machines[self.machine].notices.pop_front()
        {
            let Some((token, said)) = net.take_notice(notice) else { continue };
            let said = self.twist(net, said);
            list.extend(
                said.into_iter()
                    .filter(|ready| *ready != Readiness::NONE)
                    .map(|ready| Event { token, ready }),
            );
        }
        list
    }

    /// An event as the least precise system may report it.
    fn twist(&self, net: &mut Net, said: [Readiness; 2]) -> [Readiness; 2] {
        let mut said = said;
        let hinted = said.iter().any(|ready| *ready != ready.only(BOTH));
        if hinted && net.chance(self.machine, |faults| faults.missing_hint) {
            // An error or hang-up without its hint is still something to read.
            said = said.map(|ready| ready.only(BOTH));
        }
        let whole = said[1] == Readiness::NONE && said[0].only(BOTH) == BOTH;
        if whole && net.chance(self.machine, |faults| faults.split_event) {
            let writing = said[0].only(Readiness::WRITABLE);
            let reading = said[0].except(Readiness::WRITABLE);
            said = if net.random.below(2) == 0 { [reading, writing] } else { [writing, reading] };
        }
        said
    }

    fn announce(&self, net: &mut Net, list: &mut Vec<Event>, most: usize) {
        let machine = &mut net.machines[self.machine];
        machine.announced.clear();
        while list.len() < most
            && let Some(answer) = machine.answers.pop_front()
        {
            list.push(Event { token: answer.0, ready: Readiness::NONE });
            machine.announced.push(answer);
        }
    }

    fn add_spurious(&self, net: &mut Net, list: &mut Vec<Event>, most: usize) {
        if net.machines[self.machine].faults == Faults::NONE || list.len() >= most {
            return;
        }
        let tokens = net.tokens(self.machine);
        if tokens.is_empty() {
            return;
        }
        let mut count = usize::from(net.chance(self.machine, |faults| faults.spurious_event));
        if net.chance(self.machine, |faults| faults.full_batch) {
            count = most;
        }
        while count > 0 && list.len() < most {
            count -= 1;
            let Some(token) = net.random.choose(&tokens).copied() else { return };
            let ready = match net.random.below(3) {
                0 => Readiness::READABLE,
                1 => Readiness::WRITABLE,
                _ => BOTH,
            };
            list.push(Event { token, ready });
        }
    }
}

impl Sealed for Host {}

impl Backend for Host {
    type Listener = HostListener;
    type Stream = HostStream;

    fn short_io_drains(&self) -> bool {
        self.net.borrow().machines[self.machine].personality != Personality::Weakest
    }

    fn now(&mut self) -> Instant {
        self.net.borrow_mut().host_now(self.machine)
    }

    fn now_unix(&mut self) -> Duration {
        self.net.borrow().unix_now()
    }

    fn coarse_now(&mut self) -> Instant {
        let now = self.now().as_nanos();
        Instant::from_nanos(now - now % COARSE_NANOS)
    }

    fn coarse_step(&mut self) -> Duration {
        Duration::from_nanos(COARSE_NANOS)
    }

    fn entropy(&mut self) -> u64 {
        self.net.borrow_mut().random.next()
    }

    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        let interrupted = self.enter(Call::Wait, None);
        let net = &mut *self.net.borrow_mut();
        let now = net.now;
        net.machines[self.machine].resumed = false;
        net.machines[self.machine].wakes_at = end_of_wait(now, timeout);
        if interrupted.is_err() {
            // It is not the reactor's doing that nothing came to its turn.
            net.machines[self.machine].progress += 1;
        }
        interrupted?;
        let capacity = events.capacity();
        let waiting = net.machines[self.machine].notices.len();
        let mut most = capacity;
        // That there are fewer than room is for is no fault.
        if waiting > 1 && net.chance(self.machine, |faults| faults.small_batch) {
            most = 1 + net.random.below(waiting.min(4) as u64 - 1) as usize;
        }
        // Room for the waker and for what comes as two.
        let mut list = self.collect(net, most.min(capacity.saturating_sub(2)).max(1));
        self.announce(net, &mut list, capacity.saturating_sub(1));
        let woken = self.woken.set.swap(false, Ordering::AcqRel);
        self.add_spurious(net, &mut list, capacity.saturating_sub(usize::from(woken)));
        if woken {
            list.push(Event { token: Token::WAKER, ready: Readiness::READABLE });
        }
        if list.len() > 1 && net.chance(self.machine, |faults| faults.reordered) {
            net.random.shuffle(&mut list);
        }
        if !list.is_empty() {
            net.record_call(self.machine, Call::Wait, None, Outcome::Count(list.len()));
        }
        for event in list {
            net.note(0x21, event.token.to_bits() ^ u64::from(event.ready.to_bits()));
            events.push(event);
        }
        Ok(())
    }

    fn waker(&mut self) -> Arc<dyn Wake> {
        self.woken()
    }

    fn claim_descriptors(&mut self, most: usize) -> usize {
        // Each machine has one process with one reactor.
        self.net.borrow().machines[self.machine].fds_max.min(most)
    }

    fn bind(
        &mut self,
        address: &Address,
        listen: &ListenConfig,
        options: &SocketOptions,
    ) -> io::Result<HostListener> {
        address.refuse_unusable_path()?;
        self.enter(Call::Bind, None)?;
        let net = &mut *self.net.borrow_mut();
        let holder = Holder::Host(self.machine);
        let address = match address.ip() {
            Some(addr) if addr.port() == 0 => {
                let port = net.port_of(holder).ip().map_or(0, |addr| addr.port());
                Address::Ip((addr.ip(), port).into())
            }
            _ => address.clone(),
        };
        let here = net.machines[self.machine].ip;
        let foreign = address.ip().is_some_and(|addr| {
            !(addr.ip().is_unspecified() || addr.ip().is_loopback() || addr.ip() == here)
        });
        if foreign {
            return self.fail(net, Call::Bind, libc::EADDRNOTAVAIL);
        }
        if net.is_taken(holder, &address) {
            return self.fail(net, Call::Bind, libc::EADDRINUSE);
        }
        let Some(fd) = net.take_fd(self.machine) else {
            return self.fail(net, Call::Bind, libc::EMFILE);
        };
        net.record_call(self.machine, Call::Bind, None, Outcome::Done);
        let index = net.listen(holder, address, listen.backlog as usize, Some(fd));
        net.listeners[index].user_timeout = options.user_timeout;
        Ok(HostListener { net: Rc::clone(&self.net), index })
    }

    fn adopt(&mut self, _fd: OwnedFd, _options: &SocketOptions) -> io::Result<HostListener> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "nothing is inherited in a simulation"))
    }

    fn listener_addr(&mut self, listener: &HostListener) -> io::Result<Address> {
        Ok(self.net.borrow().listeners[listener.index].address.clone())
    }

    fn register_listener(&mut self, listener: &mut HostListener, token: Token) -> io::Result<()> {
        self.enter(Call::RegisterListener, None)?;
        let net = &mut *self.net.borrow_mut();
        net.record_call(self.machine, Call::RegisterListener, None, Outcome::Done);
        net.listeners[listener.index].token = Some(token);
        Ok(())
    }

    fn reregister_listener(&mut self, listener: &mut HostListener, token: Token) -> io::Result<()> {
        self.enter(Call::Reregister, None)?;
        let net = &mut *self.net.borrow_mut();
        net.record_call(self.machine, Call::Reregister, None, Outcome::Done);
        net.listeners[listener.index].token = Some(token);
        net.arm_listener(listener.index);
        if !net.listeners[listener.index].queue.is_empty() {
            net.notify_listener(listener.index);
        }
        Ok(())
    }

    fn accept(&mut self, listener: &mut HostListener) -> io::Result<(HostStream, Address)> {
        if let Err(error) = self.enter(Call::Accept, None) {
            let net = &mut *self.net.borrow_mut();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => {
                    net.arm_listener(listener.index);
                    net.notify_later(Notice::Listener(listener.index), Readiness::READABLE);
                }
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EINTR) => {}
                // accept(2): the error is that of a connection, which is gone.
                _ => {
                    if let Some(socket) = net.take_waiting(listener.index) {
                        net.close(socket, true);
                    }
                }
            }
            return Err(error);
        }
        let mut net = self.net.borrow_mut();
        // Linux takes the descriptor first, and lacks one even where no connection waits.
        let Some(fd) = net.take_fd(self.machine) else {
            return self.fail(&mut net, Call::Accept, libc::EMFILE);
        };
        let mut waiting = net.take_waiting(listener.index);
        if waiting.is_none()
            && net.befalls(self.machine, "blocking_accept", |it| it.blocking_accept)
        {
            let (least, most) = fault::ACCEPT_WAIT_MILLIS;
            let millis = least + net.random.below(most - least);
            let until = net.now + Duration::from_millis(millis);
            while waiting.is_none()
                && let Some(next) = net.next_at().filter(|next| *next <= until)
            {
                net.run_until(next);
                waiting = net.take_waiting(listener.index);
            }
            if waiting.is_none() {
                net.run_until(until);
            }
        }
        let Some(socket) = waiting else {
            net.free_fd(self.machine, fd);
            net.arm_listener(listener.index);
            return self.fail(&mut net, Call::Accept, libc::EAGAIN);
        };
        let user_timeout = net.listeners[listener.index].user_timeout;
        net.set_user_timeout(socket, user_timeout);
        net.record_call(self.machine, Call::Accept, Some(socket), Outcome::Done);
        let peer = net.address(socket.far());
        drop(net);
        Ok((self.adopt_socket(socket, fd), peer))
    }

    fn connect(&mut self, address: &Address, options: &SocketOptions) -> io::Result<HostStream> {
        address.refuse_unusable_path()?;
        self.enter(Call::Connect, None)?;
        let mut net = self.net.borrow_mut();
        let Some(fd) = net.take_fd(self.machine) else {
            return self.fail(&mut net, Call::Connect, libc::EMFILE);
        };
        if address.path().is_some() && net.is_backlog_full(address) {
            // connect(2): there is no waiting for room.
            net.free_fd(self.machine, fd);
            return self.fail(&mut net, Call::Connect, libc::EAGAIN);
        }
        let holder = Holder::Host(self.machine);
        let here = net.machines[self.machine].ip;
        let local = options.local.filter(|_| address.ip().is_some());
        if local.is_some_and(|local| !(local.is_unspecified() || local == here)) {
            net.free_fd(self.machine, fd);
            return self.fail(&mut net, Call::Connect, libc::EADDRNOTAVAIL);
        }
        let from = net.port_of(holder);
        let socket = net.dial(holder, from, address);
        net.record_call(self.machine, Call::Connect, Some(socket), Outcome::Done);
        net.set_user_timeout(socket, options.user_timeout);
        drop(net);
        let stream = self.adopt_socket(socket, fd);
        if let Address::Unix(_) = address {
            // unix(7): the connection stands before connect(2) returns.
            let mut net = self.net.borrow_mut();
            let now = net.now;
            net.run_until(now);
        }
        Ok(stream)
    }

    fn register(&mut self, stream: &mut HostStream, token: Token) -> io::Result<()> {
        self.enter(Call::Register, Some(stream.socket))?;
        let net = &mut *self.net.borrow_mut();
        net.register(stream.socket, token, stream.fd);
        net.record_call(self.machine, Call::Register, Some(stream.socket), Outcome::Done);
        Ok(())
    }

    fn is_connected(&mut self, stream: &mut HostStream) -> io::Result<bool> {
        if let Err(error) = self.enter(Call::IsConnected, Some(stream.socket)) {
            self.net.borrow_mut().kill(stream.socket);
            return Err(error);
        }
        let net = &mut *self.net.borrow_mut();
        let connected = net.is_connected(stream.socket);
        let outcome = match connected {
            Ok(true) => Outcome::Done,
            Ok(false) => Outcome::Failed(libc::EAGAIN),
            Err(errno) => Outcome::Failed(errno),
        };
        net.record_call(self.machine, Call::IsConnected, Some(stream.socket), outcome);
        if matches!(connected, Ok(false)) {
            net.arm(stream.socket, BOTH);
        }
        connected.map_err(io::Error::from_raw_os_error)
    }

    fn local_addr(&mut self, stream: &HostStream) -> io::Result<Address> {
        self.enter(Call::LocalAddr, Some(stream.socket))?;
        let net = &mut *self.net.borrow_mut();
        net.record_call(self.machine, Call::LocalAddr, Some(stream.socket), Outcome::Done);
        Ok(net.address(stream.socket))
    }

    fn take_error(&mut self, stream: &mut HostStream) -> io::Result<Option<io::Error>> {
        self.enter(Call::TakeError, Some(stream.socket))?;
        let net = &mut *self.net.borrow_mut();
        let errno = net.take_error(stream.socket);
        if errno.is_some() {
            net.note_failed(stream.socket);
        }
        let outcome = errno.map_or(Outcome::Done, Outcome::Found);
        net.record_call(self.machine, Call::TakeError, Some(stream.socket), outcome);
        Ok(errno.map(io::Error::from_raw_os_error))
    }

    fn read(
        &mut self,
        stream: &mut HostStream,
        buffer: &mut BytesMut,
        max: usize,
    ) -> io::Result<usize> {
        let (machine, socket) = (self.machine, stream.socket);
        let drains = self.short_io_drains();
        let max = max.min(buffer.capacity() - buffer.len());
        self.transfer(Call::Read, stream, Readiness::READABLE, |net| {
            let there = net.readable(socket).min(max);
            let mut most = max;
            if there > 1 && net.befalls(machine, "short_read", |it| it.short_read) {
                most = 1 + net.random.below(there as u64 - 1) as usize;
            }
            let bytes = net.read(socket, most)?;
            net.note(0x22, bytes.len() as u64);
            if most < there && drains {
                net.notify_later(Notice::Socket(socket), Readiness::READABLE);
            }
            net.note_read(machine, socket, &bytes);
            buffer.extend_from_slice(&bytes);
            Ok(bytes.len())
        })
    }

    fn write(&mut self, stream: &mut HostStream, bytes: &[u8]) -> io::Result<usize> {
        self.write_slices(stream, &[bytes])
    }

    fn write_vectored(
        &mut self,
        stream: &mut HostStream,
        slices: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        let slices: Vec<&[u8]> = slices.iter().map(|slice| &**slice).collect();
        self.write_slices(stream, &slices)
    }

    fn unsent(&mut self, stream: &HostStream) -> Option<u64> {
        let mut net = self.net.borrow_mut();
        net.charge(fault::UNSENT_COST);
        Some(net.unsent(stream.socket))
    }

    fn shutdown_write(&mut self, stream: &mut HostStream) -> io::Result<()> {
        if let Err(error) = self.enter(Call::ShutdownWrite, Some(stream.socket)) {
            self.net.borrow_mut().note_failed(stream.socket);
            return Err(error);
        }
        let net = &mut *self.net.borrow_mut();
        let finished = net.shutdown_write(stream.socket);
        let outcome = finished.map_or_else(Outcome::Failed, |()| Outcome::Done);
        net.record_call(self.machine, Call::ShutdownWrite, Some(stream.socket), outcome);
        if finished.is_err() {
            net.note_failed(stream.socket);
        }
        finished.map_err(io::Error::from_raw_os_error)
    }

    fn shut_down(&mut self, stream: &mut HostStream) -> io::Result<()> {
        // The other direction needs nothing: the close follows.
        self.shutdown_write(stream)
    }

    fn close(&mut self, mut stream: HostStream, reset: bool) {
        stream.reset = reset;
        self.net.borrow_mut().charge(fault::CLOSE_COST);
        self.net.borrow_mut().machines[self.machine].progress += 1;
    }

    fn close_listener(&mut self, listener: HostListener) {
        drop(listener);
    }

    fn resolve(&mut self, host: &str, port: u16, token: Token) -> io::Result<()> {
        self.enter(Call::Resolve, None)?;
        let net = &mut *self.net.borrow_mut();
        net.record_call(self.machine, Call::Resolve, None, Outcome::Done);
        let (answer, after) = match net.names.get(host) {
            Some(name) => (name.answer.clone(), name.after),
            None => (Err(libc::EADDRNOTAVAIL), Some(LOOKUP)),
        };
        let answer = answer.map_err(io::Error::from_raw_os_error).map(|addresses| {
            let with_port = |address: Address| match address.ip() {
                Some(addr) if addr.port() == 0 => Address::Ip((addr.ip(), port).into()),
                _ => address,
            };
            addresses.into_iter().map(with_port).collect()
        });
        net.begin_lookup(self.machine, token, answer, after);
        Ok(())
    }

    fn cancel_resolve(&mut self, token: Token) {
        self.net.borrow_mut().cancel_lookup(self.machine, token);
    }

    fn resolved(&mut self, token: Token) -> Option<io::Result<Vec<Address>>> {
        let announced = &mut self.net.borrow_mut().machines[self.machine].announced;
        let index = announced.iter().position(|(it, _)| *it == token)?;
        Some(announced.swap_remove(index).1)
    }
}

/// When a wait from `now` on ends if nothing comes: epoll_wait(2) counts in milliseconds, and a
/// wait is rounded up. A wait for a clock that stands still does not end at once either.
pub(super) fn end_of_wait(now: Instant, timeout: Option<Duration>) -> Instant {
    const MILLI: u128 = 1_000_000;
    match timeout {
        Some(timeout) => {
            let millis = timeout.as_nanos().div_ceil(MILLI);
            now + Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
        }
        None => Instant::FAR_FUTURE,
    }
}
