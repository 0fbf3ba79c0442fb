//! CRC32C of short byte strings. Most WAL records have less than a hundred bytes; for them the setting-up of a
//! general routine costs more than the sum itself.

/// Longer strings go to the general routine, which computes three sums side by side.
#[cfg(target_arch = "x86_64")]
const SHORT_MAX: usize = 512;

/// The checksum of some bytes followed by `bytes`; `crc` is that of the former, 0 for none.
#[inline]
pub(crate) fn append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() <= SHORT_MAX && is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instruction, as was just asked.
        return unsafe { append_short(crc, bytes) };
    }
    crc32c::crc32c_append(crc, bytes)
}

/// Eight bytes at a time, then what is left in at most three steps: each waits for the one before.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
#[inline]
fn append_short(crc: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32, _mm_crc32_u64};
    let (words, mut rest) = bytes.as_chunks::<8>();
    let crc = words.iter().fold(u64::from(!crc), |crc, word| {
        _mm_crc32_u64(crc, u64::from_le_bytes(*word))
    });
    // The instruction leaves the high half zero.
    let mut crc = crc as u32;
    if let Some((four, behind)) = rest.split_first_chunk() {
        (crc, rest) = (_mm_crc32_u32(crc, u32::from_le_bytes(*four)), behind);
    }
    if let Some((two, behind)) = rest.split_first_chunk() {
        (crc, rest) = (_mm_crc32_u16(crc, u16::from_le_bytes(*two)), behind);
    }
    if let [byte] = rest {
        crc = _mm_crc32_u8(crc, *byte);
    }
    !crc
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn same_as_the_general_routine(crc: u32, bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            prop_assert_eq!(append(crc, &bytes), crc32c::crc32c_append(crc, &bytes));
        }
    }
}
