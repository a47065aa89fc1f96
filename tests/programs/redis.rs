//! A real Redis, to compare with.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use super::{eventually, unreachable_address};

/// It is killed when it is dropped.
pub(crate) struct Redis {
    child: Child,
    pub(crate) address: String,
}

impl Redis {
    pub(crate) fn start() -> Option<Self> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            eprintln!("skipped: no redis-server here");
            return None;
        }
        let address = unreachable_address();
        let (host, port) = address.rsplit_once(':').expect("a port");
        let child = Command::new("redis-server")
            .args(["--bind", host, "--port", port, "--save", "", "--databases", "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it was there before");
        let redis = Self { child, address };
        eventually("Redis listens", || TcpStream::connect(&redis.address).is_ok());
        Some(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
