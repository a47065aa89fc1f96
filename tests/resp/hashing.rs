//! What finds a key.

use std::hash::{DefaultHasher, Hasher};

use crate::hash::{sip, word};

#[test]
fn the_hash_is_that_of_its_authors() {
    // Appendix A of "SipHash: a fast short-input PRF", of SipHash-2-4.
    let secret = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
    let bytes: Vec<u8> = (0..15).collect();
    assert_eq!(sip::<2, 4>(secret, &bytes), 0xa129_ca61_49be_45e5);
}

#[test]
fn a_string_has_the_hash_that_std_gives_it() {
    let bytes: Vec<u8> = (0..40_u8).map(|byte| byte.wrapping_mul(97)).collect();
    for len in 0..bytes.len() {
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes[..len]);
        assert_eq!(sip::<1, 3>([0, 0], &bytes[..len]), hasher.finish(), "{len}");
    }
}

#[test]
fn a_word_is_its_bytes_and_zeros() {
    for len in 0..=8 {
        let mut whole = [0; 8];
        whole[..len].copy_from_slice(&b"abcdefgh"[..len]);
        assert_eq!(word(&b"abcdefgh"[..len]), u64::from_le_bytes(whole), "{len}");
    }
}
