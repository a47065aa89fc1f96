//! The line protocol of the peers in Rust.

use std::io::{self, ErrorKind};

/// Of a line, its end included.
const LINE_BYTES_MAX: usize = 1_024;

/// Answers the whole lines of `input`, and returns how many bytes they were.
///
/// # Errors
///
/// If a line is too long or no ping.
pub fn answer_lines(input: &[u8], replies: &mut Vec<u8>) -> io::Result<usize> {
    let mut answered = 0;
    for end in memchr::memchr_iter(b'\n', input) {
        let line = &input[answered..=end];
        match line.strip_prefix(b"PING") {
            Some(text @ [b' ' | b'\n', ..]) if line.len() <= LINE_BYTES_MAX => {
                replies.extend_from_slice(b"PONG");
                replies.extend_from_slice(text);
            }
            _ => return Err(ErrorKind::InvalidData.into()),
        }
        answered = end + 1;
    }
    if input.len() - answered < LINE_BYTES_MAX {
        Ok(answered)
    } else {
        Err(ErrorKind::InvalidData.into())
    }
}
