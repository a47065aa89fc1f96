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
        self.stream.write_all(format!("{question}\n").as_bytes()).map_err(name_server)?;
        let end: &[u8] = if asks_for_json(question) { b"\n" } else { b"\n\n" };
        let mut piece = vec![0; 64 * 1024];
        // An end may be split between two reads, so what may be its first half is kept back.
        let mut kept = 0;
        loop {
            let count = match self.stream.read(&mut piece[kept..]) {
                Ok(0) => return Err(hung_up()),
                Ok(count) => kept + count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(name_server(error)),
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

/// Whether the reply is in JSON. The console parses the word in the same way.
fn asks_for_json(question: &str) -> bool {
    question.trim().split([' ', '\t']).next() == Some("json")
}

/// Names the server as the cause where it is: the system speaks of a resource, or of a pipe.
fn name_server(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            let text = format!("the server has said nothing for {} s", PATIENCE.as_secs());
            io::Error::new(ErrorKind::TimedOut, text)
        }
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => hung_up(),
        _ => error,
    }
}

fn hung_up() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the server hung up")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client makes of a reply to its question, after which the server says nothing more.
    fn asked(question: &str, reply: &str) -> io::Result<String> {
        let (stream, mut server) = UnixStream::pair()?;
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        server.write_all(reply.as_bytes())?;
        let mut taken = Vec::new();
        Client { stream }.ask(question, |piece| {
            taken.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(String::from_utf8_lossy(&taken).into_owned())
    }

    #[test]
    fn a_reply_in_json_is_one_line() {
        for question in ["json stats", "json", " json ", "json\tstats", "\tjson \tstats"] {
            assert_eq!(asked(question, "{}\n").unwrap(), "{}\n", "{question:?}");
        }
        for question in ["stats", "", "jsons", "stats json"] {
            assert_eq!(asked(question, "a\nb\n\n").unwrap(), "a\nb\n\n", "{question:?}");
            assert!(asked(question, "a\n").is_err(), "{question:?}");
        }
    }

    #[test]
    fn a_server_that_says_nothing_is_named() {
        let error = asked("stats", "").unwrap_err();
        assert_eq!(error.to_string(), "the server has said nothing for 30 s");
    }

    #[test]
    fn a_server_that_has_gone_hung_up() {
        let (stream, server) = UnixStream::pair().unwrap();
        drop(server);
        let error = Client { stream }.ask("stats", |_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "the server hung up");
    }
}
