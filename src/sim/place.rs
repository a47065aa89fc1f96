//! What a test may name machines and sockets by.

use std::net::{IpAddr, SocketAddr};

use super::peer::{Peer, PeerListener};
use super::server::Server;
use crate::address::Address;
use crate::handler::Handler;

/// What names a socket: `"10.0.0.1:7"`, an [`Address`], a [`SocketAddr`], or what listens there.
pub trait ToAddress {
    /// The address.
    ///
    /// # Panics
    ///
    /// If this is no address.
    #[track_caller]
    fn to_address(&self) -> Address;
}

/// What names a machine: `"10.0.0.1"`, an [`IpAddr`], or a server or peer on it.
///
/// All peers that were made without an address of their own are on one machine, so a test that cuts
/// one of them off cuts off all.
pub trait ToIp {
    /// The machine's IP address.
    ///
    /// # Panics
    ///
    /// If this is no IP address.
    #[track_caller]
    fn to_ip(&self) -> IpAddr;
}

impl ToAddress for str {
    fn to_address(&self) -> Address {
        match self.parse() {
            Ok(address) => address,
            Err(error) => panic!("{self:?}: {error}"),
        }
    }
}

impl ToAddress for String {
    fn to_address(&self) -> Address {
        self.as_str().to_address()
    }
}

impl ToAddress for Address {
    fn to_address(&self) -> Address {
        self.clone()
    }
}

impl ToAddress for SocketAddr {
    fn to_address(&self) -> Address {
        Address::Ip(*self)
    }
}

impl<H: Handler> ToAddress for Server<H> {
    fn to_address(&self) -> Address {
        self.address()
    }
}

impl ToAddress for PeerListener {
    fn to_address(&self) -> Address {
        self.address()
    }
}

impl<T: ToAddress + ?Sized> ToAddress for &T {
    fn to_address(&self) -> Address {
        (**self).to_address()
    }
}

impl ToIp for str {
    fn to_ip(&self) -> IpAddr {
        match self.parse() {
            Ok(ip) => ip,
            Err(error) => panic!("{self:?}: {error}"),
        }
    }
}

impl ToIp for String {
    fn to_ip(&self) -> IpAddr {
        self.as_str().to_ip()
    }
}

impl ToIp for IpAddr {
    fn to_ip(&self) -> IpAddr {
        *self
    }
}

impl<H: Handler> ToIp for Server<H> {
    fn to_ip(&self) -> IpAddr {
        self.ip()
    }
}

impl ToIp for Peer {
    fn to_ip(&self) -> IpAddr {
        ip_of(&self.address())
    }
}

impl ToIp for PeerListener {
    fn to_ip(&self) -> IpAddr {
        ip_of(&self.address())
    }
}

impl<T: ToIp + ?Sized> ToIp for &T {
    fn to_ip(&self) -> IpAddr {
        (**self).to_ip()
    }
}

#[track_caller]
fn ip_of(address: &Address) -> IpAddr {
    match address.ip() {
        Some(addr) => addr.ip(),
        None => panic!("{address} is on no machine"),
    }
}
