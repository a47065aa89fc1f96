//! SipHash-1-3, of a whole string at once: what finds a key. The secret it takes is unknown to clients,
//! which therefore cannot choose keys that collide.

#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyHasher {
    secret: [u64; 2],
}

impl KeyHasher {
    pub(crate) const fn new(secret: [u64; 2]) -> Self {
        Self { secret }
    }

    #[inline]
    pub(crate) fn hash(&self, bytes: &[u8]) -> u64 {
        sip::<1, 3>(self.secret, bytes)
    }
}

/// As its authors define it, with so many rounds for eight bytes and so many at the end.
#[inline]
pub(crate) fn sip<const EACH: usize, const LAST: usize>(
    [low, high]: [u64; 2],
    bytes: &[u8],
) -> u64 {
    let mut state = [
        low ^ 0x736f_6d65_7073_6575,
        high ^ 0x646f_7261_6e64_6f6d,
        low ^ 0x6c79_6765_6e65_7261,
        high ^ 0x7465_6462_7974_6573,
    ];
    let mut take = |word: u64| {
        state[3] ^= word;
        (0..EACH).for_each(|_| round(&mut state));
        state[0] ^= word;
    };
    let (words, rest) = bytes.as_chunks();
    for bytes in words {
        take(u64::from_le_bytes(*bytes));
    }
    take((bytes.len() as u64) << 56 | word(rest));
    state[2] ^= 0xff;
    (0..LAST).for_each(|_| round(&mut state));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline]
const fn round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *c = c.wrapping_add(*d);
    *b = b.rotate_left(13) ^ *a;
    *d = d.rotate_left(16) ^ *c;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*b);
    *a = a.wrapping_add(*d);
    *b = b.rotate_left(17) ^ *c;
    *d = d.rotate_left(21) ^ *a;
    *c = c.rotate_left(32);
}

/// Up to eight bytes as a number, the first one lowest.
#[inline]
pub(crate) const fn word(bytes: &[u8]) -> u64 {
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        // Where the two overlap they are the same.
        let last = u32::from_le_bytes(*last) as u64;
        return u32::from_le_bytes(*first) as u64 | last << (8 * (bytes.len() - 4));
    }
    match *bytes {
        [first] => first as u64,
        [first, second] => u16::from_le_bytes([first, second]) as u64,
        [first, second, third] => u32::from_le_bytes([first, second, third, 0]) as u64,
        _ => 0,
    }
}
