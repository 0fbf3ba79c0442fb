//! Pages of posting trees. Behind the header stands the page's right bound; then, on leaves, compressed
//! segments, and on inner pages, posting items: child and highest key. `pd_lower` marks the end.

use postgres_ffi::cursor::Cursor;
use smallvec::SmallVec;

use super::posting::{self, Segment};
use super::{Opaque, flag};
use crate::fault::Fault;
use crate::heap::tuple::Tid;
use crate::page::{HEADER_LEN, PAGE_SIZE, Page};

/// Start of the data, behind the right bound and padding.
const DATA: usize = HEADER_LEN + 8;
const POSTING_ITEM_LEN: usize = 10;

const TOO_LARGE: Fault = Fault::Page("not enough room for a posting list");

/// Kinds of change to a segment (`GIN_SEGMENT_*`).
mod action {
    pub const DELETE: u8 = 1;
    pub const INSERT: u8 = 2;
    pub const REPLACE: u8 = 3;
    pub const ADD_ITEMS: u8 = 4;
}

/// Makes a leaf that is also the root, from its segments.
pub(super) fn init_leaf(page: &mut Page<'_>, segments: &[u8]) -> Result<(), Fault> {
    Opaque::with_flags(flag::DATA | flag::LEAF | flag::COMPRESSED).init(page)?;
    set_data(page, segments)
}

fn set_data(page: &mut Page<'_>, data: &[u8]) -> Result<(), Fault> {
    let end = DATA + data.len();
    if end > page.special() {
        return Err(TOO_LARGE);
    }
    page.put(DATA, data)?;
    page.set_lower(end);
    Ok(())
}

/// Changes segments of a leaf as `ginxlogRecompressDataLeaf` says.
pub(super) fn recompress(page: &mut Page<'_>, mut data: Cursor<'_>) -> Result<(), Fault> {
    convert_old_format(page)?;
    let mut copy = [0; PAGE_SIZE];
    let old_len = page.lower().checked_sub(DATA).ok_or(TOO_LARGE)?;
    let list = page.bytes().get(DATA..DATA + old_len).ok_or(TOO_LARGE)?;
    copy[..old_len].copy_from_slice(list);
    let mut old = &copy[..old_len];
    let mut new: SmallVec<[u8; PAGE_SIZE]> = SmallVec::new();
    let mut number = 0;
    let actions = data.u16()?;
    for _ in 0..actions {
        let (target, kind) = (data.u8()?, data.u8()?);
        let from_record = match kind {
            action::INSERT | action::REPLACE => Some(Segment::split_first(&mut data)?),
            _ => None,
        };
        let items = match kind {
            action::ADD_ITEMS => {
                let count = usize::from(data.u16()?);
                data.bytes(count * posting::TID_LEN)?
            }
            _ => &[],
        };
        if target < number {
            return Err(Fault::Record("changes of segments are not in order"));
        }
        while number < target {
            new.extend_from_slice(take_segment(&mut old)?.raw);
            number += 1;
        }
        match (kind, from_record) {
            (action::INSERT, Some(segment)) => new.extend_from_slice(segment.raw),
            (action::REPLACE, Some(segment)) => {
                take_segment(&mut old)?;
                number += 1;
                new.extend_from_slice(segment.raw);
            }
            (action::DELETE, _) => {
                take_segment(&mut old)?;
                number += 1;
            }
            (action::ADD_ITEMS, _) => {
                let merged = take_segment(&mut old)?.merged(items)?;
                number += 1;
                posting::compress(&merged, &mut new)?;
            }
            _ => return Err(Fault::Record("unknown change of a segment")),
        }
        if new.len() > PAGE_SIZE {
            return Err(TOO_LARGE);
        }
    }
    new.extend_from_slice(old);
    set_data(page, &new)
}

fn take_segment<'a>(old: &mut &'a [u8]) -> Result<Segment<'a>, Fault> {
    let mut input = Cursor::new(old);
    let segment =
        Segment::split_first(&mut input).map_err(|_| Fault::Page("a posting list segment is missing"))?;
    *old = input.rest();
    Ok(segment)
}

/// Before PostgreSQL 9.4 a leaf was an array of heap places, its length in the special space.
fn convert_old_format(page: &mut Page<'_>) -> Result<(), Fault> {
    let mut opaque = Opaque::read(page)?;
    if opaque.flags & flag::COMPRESSED != 0 {
        return Ok(());
    }
    let len = usize::from(opaque.max_offset) * posting::TID_LEN;
    let items = page.bytes().get(DATA..DATA + len).ok_or(TOO_LARGE)?;
    let items = posting::tids(items);
    let mut list: SmallVec<[u8; PAGE_SIZE]> = SmallVec::new();
    if !items.is_empty() {
        posting::compress(&items, &mut list)?;
    }
    set_data(page, &list)?;
    opaque.flags |= flag::COMPRESSED;
    opaque.max_offset = 0;
    opaque.write(page)
}

/// Where posting item `number` stands, from 1; it may be one behind the last.
fn item_at(number: u16, count: u16) -> Result<usize, Fault> {
    if number == 0 || number > count.saturating_add(1) {
        return Err(Fault::Item {
            offset: number,
            state: "does not exist",
        });
    }
    Ok(DATA + (usize::from(number) - 1) * POSTING_ITEM_LEN)
}

/// Sets the number of posting items.
fn set_count(page: &mut Page<'_>, count: u16) -> Result<(), Fault> {
    Opaque {
        max_offset: count,
        ..Opaque::read(page)?
    }
    .write(page)?;
    page.set_lower(DATA + usize::from(count) * POSTING_ITEM_LEN);
    Ok(())
}

/// Number of posting items, checked to lie before the special space with one more.
fn count_with_room(page: &Page<'_>) -> Result<u16, Fault> {
    let count = Opaque::read(page)?.max_offset;
    let end = DATA + (usize::from(count) + 1) * POSTING_ITEM_LEN;
    if end > page.special() || end > PAGE_SIZE {
        return Err(Fault::Page("too many posting items"));
    }
    Ok(count)
}

/// The item of a child that was split now leads to the right half, and the left half gets an item before.
pub(super) fn insert_downlink(
    page: &mut Page<'_>,
    right_child: u32,
    mut data: Cursor<'_>,
) -> Result<(), Fault> {
    let number = data.u16()?;
    let new = data.bytes(POSTING_ITEM_LEN)?;
    let count = count_with_room(page)?;
    let at = item_at(number, count)?;
    page.put(at, &Tid::new(right_child, 0).0[..4])?;
    let end = DATA + usize::from(count) * POSTING_ITEM_LEN;
    page.bytes_mut().copy_within(at..end, at + POSTING_ITEM_LEN);
    page.put(at, new)?;
    set_count(page, count + 1)
}

/// Removes the item of a child.
pub(super) fn delete_downlink(page: &mut Page<'_>, number: u16) -> Result<(), Fault> {
    let count = Opaque::read(page)?.max_offset;
    let end = DATA + usize::from(count) * POSTING_ITEM_LEN;
    let at = item_at(number, count)?;
    if number > count || end > page.special() || end > PAGE_SIZE {
        return Err(Fault::Item {
            offset: number,
            state: "does not exist",
        });
    }
    page.bytes_mut().copy_within(at + POSTING_ITEM_LEN..end, at);
    set_count(page, count - 1)
}

#[cfg(test)]
mod tests {
    use super::super::block_id;
    use super::*;
    use crate::page::PageBuf;

    #[test]
    fn downlinks_come_and_go() {
        let mut raw: PageBuf = [0; PAGE_SIZE];
        let mut page = Page::new(&mut raw);
        Opaque::with_flags(flag::DATA).init(&mut page).unwrap();
        page.set_lower(DATA);
        let item = |child: u16| [[0, 0], child.to_le_bytes(), [0, 0], child.to_le_bytes(), [1, 0]].concat();
        let insert = |number: u16, child: u16| [&number.to_le_bytes()[..], &item(child)].concat();
        for (number, child, right) in [(1, 10, 11), (2, 20, 21), (1, 5, 10)] {
            insert_downlink(&mut page, right, Cursor::new(&insert(number, child))).unwrap();
        }
        let children = |page: &Page<'_>| -> Vec<u32> {
            let data = &page.bytes()[DATA..page.lower()];
            data.chunks(POSTING_ITEM_LEN)
                .map(|item| block_id(&mut Cursor::new(item)).unwrap())
                .collect()
        };
        assert_eq!(children(&page), [5, 10, 20]);
        delete_downlink(&mut page, 2).unwrap();
        assert_eq!(children(&page), [5, 20]);
        assert!(delete_downlink(&mut page, 3).is_err());
        assert!(insert_downlink(&mut page, 1, Cursor::new(&insert(4, 1))).is_err());
    }
}
