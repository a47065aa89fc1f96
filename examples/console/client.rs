//! A connection to a console.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long one step of a reply may take. A server in the middle of a long callback answers late.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    stream: UnixStream,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    /// Asks, and hands the reply on in pieces as it comes. The last one ends with the end of the reply.
    pub(crate) fn ask(
        &mut self,
        question: &str,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if question.contains(['\n', '\r']) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "a question is one line"));
        }
        self.stream.write_all(format!("{question}\n").as_bytes())?;
        let is_json = question.trim_start().starts_with("json ");
        let end: &[u8] = if is_json { b"\n" } else { b"\n\n" };
        let mut piece = vec![0; 64 * 1024];
        // An end may be split between two reads, so what may be its first half is kept back.
        let mut kept = 0;
        loop {
            let count = match self.stream.read(&mut piece[kept..]) {
                Ok(0) => {
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server hung up"));
                }
                Ok(count) => kept + count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if piece[..count].ends_with(end) {
                return take(&piece[..count]);
            }
            kept = usize::from(piece[count - 1] == b'\n');
            take(&piece[..count - kept])?;
            piece[0] = b'\n';
        }
    }

    /// Asks for a reply in JSON.
    pub(crate) fn ask_json(&mut self, question: &str) -> io::Result<serde_json::Value> {
        let mut reply = Vec::new();
        self.ask(&format!("json {question}"), |piece| {
            reply.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(serde_json::from_slice(&reply)?)
    }
}
