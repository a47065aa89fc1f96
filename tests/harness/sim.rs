//! A simulated world: memory, and time that is made up.

use std::net::IpAddr;
use std::time::Duration;

use wheelhouse::Address;
use wheelhouse::sim::{End, Host, Peer, PeerListener, Personality};

use super::shorthands::millis;
use super::{Got, World};

/// Where servers are, and nothing else.
const SERVER: &str = "10.0.0.1";

/// How long a turn takes.
const TURN: Duration = Duration::from_micros(10);

pub(crate) struct Sim {
    sim: wheelhouse::sim::Sim,
    ports: u16,
}

impl Sim {
    pub(crate) fn of(personality: Personality) -> Self {
        let mut sim = wheelhouse::sim::Sim::new(1);
        sim.set_personality(personality);
        sim.set_buffers(1 << 20, 1 << 19);
        // Nothing listens at the first of them.
        let here = [SERVER.parse().unwrap(), sim.peers_ip()];
        let addresses = here.map(|ip: IpAddr| Address::Ip((ip, 0).into())).to_vec();
        sim.set_name("localhost", addresses, millis(1));
        Self { sim, ports: 1_000 }
    }

    fn next_port(&mut self) -> u16 {
        self.ports += 1;
        self.ports
    }
}

impl World for Sim {
    type Backend = Host;
    type Peer = Peer;
    type Listener = PeerListener;

    fn has_resets(&self) -> bool {
        true
    }

    fn backend(&mut self) -> Host {
        self.sim.host(SERVER)
    }

    fn address(&mut self) -> Address {
        format!("{SERVER}:0").parse().unwrap()
    }

    fn pass(&mut self, most: Duration) {
        self.sim.pass(most);
        // A turn takes some time, so that a busy one gets on too.
        self.sim.stall()(TURN);
    }

    fn connect(&mut self, server: &Address, window: Option<usize>) -> Peer {
        let peer = match window {
            Some(window) => self.sim.connect_with_window(server.clone(), window),
            None => self.sim.connect(server.clone()),
        };
        peer.stop_reading();
        // The kernel completes the handshake by itself.
        self.sim.pass(Duration::ZERO);
        peer
    }

    fn listen_as_peer(&mut self) -> (PeerListener, Address) {
        let address = Address::Ip((self.sim.peers_ip(), self.next_port()).into());
        (self.sim.listen(address.clone(), 16), address)
    }

    fn answer(&mut self, listener: &mut PeerListener) -> Option<Peer> {
        let peer = listener.accept()?;
        peer.stop_reading();
        Some(peer)
    }

    fn refusing(&mut self) -> Address {
        Address::Ip((self.sim.peers_ip(), self.next_port()).into())
    }

    fn deaf(&mut self) -> Address {
        "203.0.113.9:9".parse().unwrap()
    }

    fn send(&mut self, peer: &mut Peer, bytes: &[u8]) -> Option<usize> {
        let count = peer.offer(bytes);
        self.sim.pass(Duration::ZERO);
        count
    }

    fn receive(&mut self, peer: &mut Peer, buffer: &mut [u8]) -> Got {
        self.sim.pass(Duration::ZERO);
        let got = match peer.read(buffer) {
            Ok(Some(0)) => Got::Eof,
            Ok(Some(count)) => Got::Bytes(count),
            Ok(None) => Got::Nothing,
            Err(End::Fin) => Got::Eof,
            Err(_) => Got::Reset,
        };
        self.sim.pass(Duration::ZERO);
        got
    }

    fn shutdown_write(&mut self, peer: &mut Peer) {
        peer.half_close();
        self.sim.pass(Duration::ZERO);
    }

    fn reset(&mut self, peer: Peer) {
        peer.reset();
        self.sim.pass(Duration::ZERO);
    }

    fn stall(&mut self) -> Box<dyn Fn(Duration)> {
        Box::new(self.sim.stall())
    }
}
