use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use wheelhouse::frame::{self, Error, Framing, Length, Width};

/// A length in four bytes, and at most 16 KiB.
pub const FRAMES: Length = frame::length(Width::U32, 16 * 1024);

/// Takes a frame off the front of `input`, if a whole one is there.
pub fn take_frame(input: &mut BytesMut) -> Result<Option<Bytes>, Error> {
    let mut frames = FRAMES;
    frames.take_frame(input)
}

pub fn frame(text: &[u8]) -> Vec<u8> {
    let head = FRAMES.head(text.len()).expect("a short text");
    [&head[..], text].concat()
}

#[derive(Default)]
pub struct Store {
    pub entries: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Store {
    pub fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        let words: Vec<_> = request.splitn(3, |byte| *byte == b' ').collect();
        match words[..] {
            [b"get", key] => match self.entries.get(key) {
                Some(value) => [b"+", &value[..]].concat(),
                None => b"-".to_vec(),
            },
            [b"set", key, value] => {
                self.entries.insert(key.into(), value.into());
                b"+".to_vec()
            }
            _ => b"-no such request".to_vec(),
        }
    }
}
