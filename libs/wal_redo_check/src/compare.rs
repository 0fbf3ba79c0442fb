//! Two pages that should be equal.

use wal_redo::PageBuf;

use crate::mask::{Kind, mask};
use crate::report::Difference;

/// First differences of two pages after masking.
pub fn difference(ours: &PageBuf, theirs: &PageBuf, kind: Kind, blkno: u32) -> Option<Difference> {
    let (mut ours, mut theirs) = (*ours, *theirs);
    if mask(&mut ours, kind, blkno).is_err() || mask(&mut theirs, kind, blkno).is_err() {
        return Some(Difference::corrupt());
    }
    if kind == Kind::VisibilityMap {
        // A backend clears bits of the map before it writes the record that says so: the image of a page may lack
        // bits whose clearing comes later in the WAL. It never has a bit that replay lacks.
        let header = wal_redo::page::HEADER_LEN;
        let equal = ours[..header] == theirs[..header] && visibility_bits_within(&theirs, &ours);
        return (!equal).then(|| Difference::between(&ours, &theirs));
    }
    (ours != theirs).then(|| Difference::between(&ours, &theirs))
}

/// Whether a page of the visibility map has no bit that the other lacks.
pub fn visibility_bits_within(inner: &PageBuf, outer: &PageBuf) -> bool {
    let bits = wal_redo::page::HEADER_LEN..;
    inner[bits.clone()]
        .iter()
        .zip(&outer[bits])
        .all(|(inner, outer)| inner & !outer == 0)
}
