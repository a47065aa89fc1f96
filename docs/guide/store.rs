use std::collections::BTreeMap;

use bytes::{Buf, BytesMut};

pub const FRAME_MAX: usize = 16 * 1024;

/// A frame of more than [`FRAME_MAX`] bytes.
pub struct TooLong;

/// Takes a frame off the front of `input`, if a whole one is there.
pub fn take_frame(input: &mut BytesMut) -> Result<Option<BytesMut>, TooLong> {
    let Some(prefix) = input.first_chunk() else { return Ok(None) };
    let len = u32::from_be_bytes(*prefix) as usize;
    if len > FRAME_MAX {
        return Err(TooLong);
    }
    if input.len() < 4 + len {
        return Ok(None);
    }
    input.advance(4);
    Ok(Some(input.split_to(len)))
}

pub fn frame(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text].concat()
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
