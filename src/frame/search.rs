//! Finds a byte, eight at a time.
//!
//! The test for a zero byte in a word is that of H. S. Warren, "Hacker's Delight", 2nd edition,
//! section 6-1. The lowest marked byte of a word is always a true one; those above it may not be, so
//! the words are read the little end first.

const WORD: usize = size_of::<u64>();
const BLOCK: usize = 4 * WORD;
const ONES: u64 = u64::from_ne_bytes([0x01; WORD]);
const TOPS: u64 = u64::from_ne_bytes([0x80; WORD]);

/// Where `byte` first stands in `text`.
#[inline(always)]
pub(super) fn find(text: &[u8], byte: u8) -> Option<usize> {
    let mut rest = text;
    // The compiler makes a few instructions of each block.
    while let Some((block, behind)) = rest.split_first_chunk::<BLOCK>() {
        if block.iter().fold(false, |any, it| any | (*it == byte)) {
            break;
        }
        rest = behind;
    }
    let pattern = u64::from_ne_bytes([byte; WORD]);
    while let Some((word, behind)) = rest.split_first_chunk() {
        let marks = zero_bytes(u64::from_le_bytes(*word) ^ pattern);
        if marks != 0 {
            return Some(text.len() - rest.len() + lowest(marks));
        }
        rest = behind;
    }
    let before = text.len() - rest.len();
    rest.iter().position(|it| *it == byte).map(|at| before + at)
}

/// Marks the bytes of `word` that are zero, by their top bits; above the lowest of them also some that
/// are one.
#[inline]
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & TOPS
}

/// The lowest marked byte.
#[inline]
const fn lowest(marks: u64) -> usize {
    marks.trailing_zeros() as usize / 8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_byte_that_is_found_is_the_first(
            text in prop::collection::vec(prop_oneof![0..4_u8, 126..131_u8, any::<u8>()], 0..120),
            byte in prop_oneof![0..4_u8, 126..131_u8, any::<u8>()],
        ) {
            let naive = text.iter().position(|it| *it == byte);
            prop_assert_eq!(find(&text, byte), naive);
        }
    }

    #[test]
    fn every_place_and_every_length_is_searched() {
        for len in 0..100 {
            let mut text = vec![b'\n' ^ 1; len];
            assert_eq!(find(&text, b'\n'), None);
            for at in (0..len).rev() {
                text[at] = b'\n';
                assert_eq!(find(&text, b'\n'), Some(at));
            }
        }
    }
}
