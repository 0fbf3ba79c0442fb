//! PostgreSQL's own LZ compression (`common/pg_lzcompress.c`): the decompressor.
//!
//! A stream is a sequence of groups: a control byte, then eight items, one per bit from the lowest.
//! A clear bit is a literal byte. A set bit is a back reference of two or three bytes: the low nibble
//! of the first is the length less 3, the high nibble and the second byte are the distance; a
//! length of 18 is followed by one more byte to add. The stream carries no length of its own.

/// The bytes are not a pglz stream of the wanted length.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum PglzError {
    /// The input ends in the middle of an item, or before the output is full.
    #[error("compressed data ends after {produced} of {want} bytes")]
    Truncated {
        /// Bytes made so far.
        produced: usize,
        /// Bytes wanted.
        want: usize,
    },
    /// A back reference points before the start of the output.
    #[error("back reference by {distance} at byte {at}")]
    BadReference {
        /// How far back, in bytes.
        distance: usize,
        /// Position in the output.
        at: usize,
    },
    /// The output is full, yet input is left.
    #[error("{0} bytes follow the compressed data")]
    TrailingBytes(usize),
}

const MIN_MATCH: usize = 3;
/// A length nibble of 15: one more byte of length follows.
const LONG_MATCH: usize = 15 + MIN_MATCH;

/// Fills `out` exactly from all of `input`.
pub fn decompress(input: &[u8], out: &mut [u8]) -> Result<(), PglzError> {
    let want = out.len();
    let mut source = input;
    let mut at = 0;
    while at < want && !source.is_empty() {
        let mut control = source[0];
        source = &source[1..];
        for _ in 0..8 {
            if at == want || source.is_empty() {
                break;
            }
            if control & 1 == 0 {
                out[at] = source[0];
                source = &source[1..];
                at += 1;
            } else {
                let (distance, len) =
                    take_reference(&mut source).ok_or(PglzError::Truncated { produced: at, want })?;
                if distance == 0 || distance > at {
                    return Err(PglzError::BadReference { distance, at });
                }
                // PostgreSQL, too, lets the last reference run past the end.
                let len = len.min(want - at);
                copy_within(out, at, distance, len);
                at += len;
            }
            control >>= 1;
        }
    }
    match (at == want, source.len()) {
        (false, _) => Err(PglzError::Truncated { produced: at, want }),
        (true, 0) => Ok(()),
        (true, left) => Err(PglzError::TrailingBytes(left)),
    }
}

/// Distance and length of the back reference at the start of `source`.
fn take_reference(source: &mut &[u8]) -> Option<(usize, usize)> {
    let (&[first, second], rest) = source.split_first_chunk::<2>()?;
    let mut len = usize::from(first & 0x0f) + MIN_MATCH;
    let distance = (usize::from(first & 0xf0) << 4) | usize::from(second);
    *source = rest;
    if len == LONG_MATCH {
        let (more, rest) = source.split_first()?;
        len += usize::from(*more);
        *source = rest;
    }
    Some((distance, len))
}

/// Copies `len` bytes from `distance` bytes back; source and target may overlap, which repeats a pattern.
fn copy_within(out: &mut [u8], at: usize, distance: usize, len: usize) {
    if distance >= len {
        out.copy_within(at - distance..at - distance + len, at);
    } else {
        for target in at..at + len {
            out[target] = out[target - distance];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Compresses greedily with a search of the whole window: slow, and only there to make streams.
    fn compress(input: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < input.len() {
            let control_at = out.len();
            out.push(0);
            for bit in 0..8 {
                if at == input.len() {
                    break;
                }
                let (distance, len) = longest_match(input, at);
                if len < MIN_MATCH {
                    out.push(input[at]);
                    at += 1;
                    continue;
                }
                out[control_at] |= 1 << bit;
                let nibble = (len - MIN_MATCH).min(15) as u8;
                out.push(((distance >> 4) & 0xf0) as u8 | nibble);
                out.push(distance as u8);
                if nibble == 15 {
                    out.push((len - LONG_MATCH) as u8);
                }
                at += len;
            }
        }
        out
    }

    fn longest_match(input: &[u8], at: usize) -> (usize, usize) {
        (1..=at.min(0xfff))
            .map(|distance| {
                let len = (at..input.len())
                    .take(LONG_MATCH + 255)
                    .take_while(|i| input[*i] == input[*i - distance])
                    .count();
                (distance, len)
            })
            .max_by_key(|(_, len)| *len)
            .unwrap_or((0, 0))
    }

    proptest! {
        #[test]
        fn round_trip(input in proptest::collection::vec(0u8..4, 0..3000)) {
            let stream = compress(&input);
            let mut out = vec![0xee; input.len()];
            prop_assert_eq!(decompress(&stream, &mut out), Ok(()));
            prop_assert_eq!(&out, &input);
            let mut longer = vec![0; input.len() + 1];
            prop_assert!(decompress(&stream, &mut longer).is_err());
        }

        #[test]
        fn random_bytes_never_panic(
            input in proptest::collection::vec(any::<u8>(), 0..500), want in 0usize..3000,
        ) {
            let _ = decompress(&input, &mut vec![0; want]);
        }
    }

    #[test]
    fn references_before_the_start_are_refused() {
        assert_eq!(
            decompress(&[0b10, b'a', 0x00, 0x02], &mut [0; 4]),
            Err(PglzError::BadReference { distance: 2, at: 1 })
        );
        assert_eq!(
            decompress(&[0b10, b'a', 0x00, 0x00], &mut [0; 4]),
            Err(PglzError::BadReference { distance: 0, at: 1 })
        );
    }

    #[test]
    fn pattern_repeats() {
        let mut out = [0; 22];
        decompress(&[0b100, b'a', b'b', 0x0f, 0x02, 0x02], &mut out).unwrap();
        assert_eq!(&out, b"ababababababababababab");
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        assert_eq!(
            decompress(&[0, b'a', b'b'], &mut [0; 1]),
            Err(PglzError::TrailingBytes(1))
        );
    }
}
