//! Compressed posting lists (`GinPostingList`): the first heap place in full, then differences, seven bits
//! a byte, low bits first. A place counts as block * 2048 + offset. Segments have an even length.

use postgres_ffi::cursor::Cursor;
use smallvec::SmallVec;

use crate::fault::Fault;
use crate::heap::tuple::Tid;
use crate::index_tuple;
use crate::page::PAGE_SIZE;

pub(super) const TID_LEN: usize = 6;
/// First place and length in front of the differences.
const HEADER_LEN: usize = 8;
/// Bits of an offset number in the combined value (`MaxHeapTuplesPerPageBits`).
const OFFSET_BITS: u32 = 11;
/// Bytes a difference takes at most.
const VARBYTE_LEN_MAX: usize = 7;

/// Heap places as combined values; a page's worth needs no allocation in the common case.
pub(super) type Places = SmallVec<[u64; 512]>;

/// One segment of a list.
pub(super) struct Segment<'a> {
    /// All of its bytes, padding included.
    pub raw: &'a [u8],
}

/// Takes a heap place apart from its six bytes.
fn place(raw: &[u8]) -> Result<u64, Fault> {
    Ok(u64::from(index_tuple::block(raw)?) << OFFSET_BITS | u64::from(index_tuple::offset(raw)?))
}

/// Heap places that stand one after the other, uncompressed.
pub(super) fn tids(raw: &[u8]) -> Places {
    raw.chunks_exact(TID_LEN)
        .filter_map(|raw| place(raw).ok())
        .collect()
}

impl<'a> Segment<'a> {
    /// Takes the segment that the input starts with.
    pub fn split_first(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        let header = input
            .rest()
            .first_chunk::<HEADER_LEN>()
            .ok_or(Fault::Record("it ends too early"))?;
        let bytes = usize::from(u16::from_le_bytes([header[6], header[7]]));
        let raw = input.bytes(HEADER_LEN + bytes.next_multiple_of(2))?;
        Ok(Segment { raw })
    }

    /// Its places.
    fn decode(&self) -> Result<Places, Fault> {
        const DAMAGED: Fault = Fault::Page("a posting list segment is damaged");
        let bytes = usize::from(u16::from_le_bytes([self.raw[6], self.raw[7]]));
        let mut last = place(self.raw)?;
        let mut places = Places::from_slice(&[last]);
        let mut rest = &self.raw[HEADER_LEN..HEADER_LEN + bytes];
        while !rest.is_empty() {
            let len = 1 + rest
                .iter()
                .take(VARBYTE_LEN_MAX)
                .position(|byte| byte & 0x80 == 0)
                .ok_or(DAMAGED)?;
            let (varbyte, behind) = rest.split_at(len);
            let difference = varbyte
                .iter()
                .rev()
                .fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
            last = last.checked_add(difference).ok_or(DAMAGED)?;
            places.push(last);
            rest = behind;
        }
        Ok(places)
    }

    /// Its places with more of them, which stand uncompressed in `items`, ascending.
    pub fn merged(&self, items: &[u8]) -> Result<Places, Fault> {
        let old = self.decode()?;
        let new = tids(items);
        let mut merged = Places::with_capacity(old.len() + new.len());
        let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
        loop {
            let next = match (old.peek(), new.peek()) {
                (Some(a), Some(b)) if a == b => {
                    new.next();
                    old.next()
                }
                (Some(a), Some(b)) if a > b => new.next(),
                (Some(_), _) => old.next(),
                (None, _) => new.next(),
            };
            match next {
                Some(place) => merged.push(place),
                None => return Ok(merged),
            }
        }
    }
}

/// Appends a segment with these places, which must ascend.
pub(super) fn compress(places: &[u64], out: &mut SmallVec<[u8; PAGE_SIZE]>) -> Result<(), Fault> {
    let start = out.len();
    let [first, rest @ ..] = places else {
        return Err(Fault::Record("an empty posting list"));
    };
    let offset = (first & ((1 << OFFSET_BITS) - 1)) as u16;
    out.extend_from_slice(&Tid::new((first >> OFFSET_BITS) as u32, offset).0);
    out.extend_from_slice(&[0; 2]);
    let mut last = first;
    for place in rest {
        let mut difference = place
            .checked_sub(*last)
            .filter(|&difference| difference > 0)
            .ok_or(Fault::Page("a posting list is not in order"))?;
        while difference > 0x7f {
            out.push(0x80 | difference as u8);
            difference >>= 7;
        }
        out.push(difference as u8);
        last = place;
    }
    let bytes = out.len() - start - HEADER_LEN;
    if out.len() - start > PAGE_SIZE {
        return Err(Fault::Page("not enough room for a posting list"));
    }
    out[start + 6..start + 8].copy_from_slice(&(bytes as u16).to_le_bytes());
    if bytes % 2 == 1 {
        out.push(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trip(places in proptest::collection::btree_set(1u64..1 << 43, 1..300)) {
            let places: Vec<u64> = places.into_iter().collect();
            let mut raw = SmallVec::new();
            compress(&places, &mut raw).unwrap();
            prop_assert!(raw.len() % 2 == 0);
            let mut input = Cursor::new(&raw);
            let segment = Segment::split_first(&mut input).unwrap();
            prop_assert_eq!(input.left(), 0);
            prop_assert_eq!(segment.decode().unwrap().to_vec(), places);
        }

        #[test]
        fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(segment) = Segment::split_first(&mut Cursor::new(&raw)) {
                let _ = segment.merged(&raw);
            }
        }
    }
}
