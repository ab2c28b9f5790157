//! Binds values of LRU tables to their keys.
//!
//! The kernel gives an evicted element to the next key at once, while a
//! program on another processor may still read or write it. What is then read
//! under a key, torn or another key's, does not bear that key's seal, and
//! counts as if it were not there.

/// The seal of a value: of the words of its key and its own.
#[inline(always)]
pub(crate) fn of<const N: usize>(words: [u64; N]) -> u64 {
    // 2^64 by the golden ratio, as Fibonacci hashing has it.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut seal = FACTOR;
    for word in words {
        seal = (seal ^ word).wrapping_mul(FACTOR);
        seal ^= seal >> 32;
    }
    seal
}

/// Two halves of a word.
#[inline(always)]
pub(crate) fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}
