//! The notifications that a host gets of its sockets, in the way of each personality.

use super::side::BOTH;
use super::{Holder, Net, Notice, Personality, Socket};
use crate::address::Address;
use crate::backend::{Readiness, Token};

/// Readiness.
impl Net {
    pub(in crate::sim) fn register(&mut self, socket: Socket, token: Token, fd: u32) {
        let Some(side) = self.side_mut(socket) else { return };
        side.token = Some(token);
        side.fd = Some(fd);
        let (level, holder) = (side.level(), side.holder);
        if let Holder::Host(machine) = holder {
            self.machines[machine].tokens.insert((token, socket));
        }
        if level.has(BOTH) {
            self.notify(socket, level);
        }
    }

    pub(in crate::sim) fn set_fd(&mut self, socket: Socket, fd: u32) {
        if let Some(side) = self.side_mut(socket) {
            side.fd = Some(fd);
        }
    }

    /// The holder of an end is notified that it became ready for something.
    pub(super) fn notify(&mut self, socket: Socket, what: Readiness) {
        let Some(side) = self.side(socket) else { return };
        let Holder::Host(machine) = side.holder else { return self.feed_peer(socket) };
        let personality = self.machines[machine].personality;
        let Some(side) = self.side_mut(socket) else { return };
        if side.token.is_none() || side.closed {
            return;
        }
        let news = match personality {
            Personality::Epoll | Personality::Kqueue => what,
            Personality::Weakest => {
                let news = side.armed.only(what);
                side.armed = side.armed.except(news);
                news
            }
        };
        if !news.has(BOTH) {
            return;
        }
        side.pending = side.pending.and(news);
        if !side.queued {
            side.queued = true;
            self.machines[machine].notices.push_back(Notice::Socket(socket));
        }
    }

    /// A call of this kind would have blocked: the next change is to be announced.
    pub(in crate::sim) fn arm(&mut self, socket: Socket, what: Readiness) {
        if let Some(side) = self.side_mut(socket) {
            side.armed = side.armed.and(what);
        }
    }

    /// Takes up a notice: the token, and what there is to say.
    pub(in crate::sim) fn take_notice(
        &mut self,
        notice: Notice,
    ) -> Option<(Token, [Readiness; 2])> {
        const NONE: Readiness = Readiness::NONE;
        match notice {
            Notice::Listener(index) => {
                let listener = self.listeners.get_mut(index)?;
                listener.queued = false;
                Some((listener.token?, [Readiness::READABLE, NONE]))
            }
            Notice::Socket(socket) => {
                let Holder::Host(machine) = self.side(socket)?.holder else { return None };
                let personality = self.machines[machine].personality;
                let shut = self.is_shut(socket);
                let side = self.side_mut(socket)?;
                side.queued = false;
                let pending = std::mem::take(&mut side.pending);
                let token = side.token?;
                let level = side.level().and(shut);
                let said = match personality {
                    Personality::Epoll => [level, NONE],
                    Personality::Kqueue => {
                        let hints = level.except(BOTH);
                        let reading = pending.only(Readiness::READABLE).only(level);
                        let writing = pending.only(Readiness::WRITABLE).only(level);
                        let errors = hints
                            .only(Readiness::ERROR.and(Readiness::HANGUP).and(Readiness::SHUT));
                        let with = |ready: Readiness, hints| {
                            if ready == NONE { NONE } else { ready.and(hints) }
                        };
                        let write_hints = if hints.has(Readiness::ERROR) { errors } else { NONE };
                        [with(reading, hints), with(writing, write_hints)]
                    }
                    Personality::Weakest => [pending, NONE],
                };
                said.iter().any(|ready| *ready != NONE).then_some((token, said))
            }
        }
    }

    /// Whether neither side of a socket sends any more: the peer of a Unix-domain socket is gone, or
    /// both have sent their FINs.
    fn is_shut(&self, socket: Socket) -> Readiness {
        let Some(connection) = self.connection(socket) else { return Readiness::NONE };
        let (side, far) = (&connection.ends[socket.side()], &connection.ends[1 - socket.side()]);
        let unix = matches!(connection.ends[1].address, Address::Unix(_));
        let shut = side.dead || (side.eof && (side.finish || (unix && far.closed)));
        if shut { Readiness::SHUT } else { Readiness::NONE }
    }

    /// The tokens of all sockets on this machine, and of some that were closed lately.
    pub(in crate::sim) fn tokens(&self, machine: usize) -> Vec<Token> {
        let stale = self.machines[machine].stale.iter().copied();
        let live = self.machines[machine].tokens.iter().map(|(token, _)| *token);
        live.chain(stale).collect()
    }
}
