//! Cuts messages off batches of 16, and nothing else: what framing costs, in `count.py --frames`.
//!
//! ```text
//! peer-frames lines 10000
//! ```
//!
//! prints how many bytes of payload 10,000 batches had.

use std::hint::black_box;
use std::process::ExitCode;

use wheelhouse::frame::{self, Framing, Width};

/// Messages in a batch.
const BATCH: usize = 16;

/// Bytes of a payload.
const LEN: usize = 64;

const MAX: usize = 1_024;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [kind, batches] = &arguments[..] else { return usage() };
    let Ok(batches) = batches.parse() else { return usage() };
    let bytes = match &kind[..] {
        "length" => cut(frame::length(Width::U32, MAX), batches),
        "fixed" => cut(frame::fixed(LEN), batches),
        "lines" => cut(frame::lines(MAX), batches),
        "delimited" => cut(frame::delimited(b"\r\n", MAX), batches),
        "varint" => cut(frame::varint(MAX), batches),
        _ => return usage(),
    };
    println!("{bytes}");
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: peer-frames length|fixed|lines|delimited|varint BATCHES");
    ExitCode::from(2)
}

/// As [`frame::each`] goes over its input.
#[inline(never)]
fn cut(framing: impl Framing, batches: u64) -> u64 {
    let mut framing = black_box(framing);
    let payload = [b'x'; LEN];
    let head = framing.head(LEN).expect("a length that is allowed");
    let batch = [&head[..], &payload, framing.tail()].concat().repeat(BATCH);
    let mut bytes: u64 = 0;
    for _ in 0..batches {
        let mut rest = black_box(&batch[..]);
        while let Ok(Some(frame)) = framing.find(rest) {
            bytes = bytes.wrapping_add(rest[frame.payload].len() as u64);
            rest = &rest[frame.len..];
        }
        assert!(rest.is_empty(), "whole messages");
    }
    bytes
}
