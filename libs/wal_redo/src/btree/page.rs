//! Pages of a B-tree: the special space, and pages made from nothing.

use crate::fault::Fault;
use crate::index_tuple;
use crate::page::{HEADER_LEN, Page, maxalign};

/// Flags of a page (`BTP_*`).
pub(super) mod flag {
    pub const LEAF: u16 = 1 << 0;
    pub const ROOT: u16 = 1 << 1;
    pub const DELETED: u16 = 1 << 2;
    pub const META: u16 = 1 << 3;
    pub const HALF_DEAD: u16 = 1 << 4;
    pub const HAS_GARBAGE: u16 = 1 << 6;
    pub const INCOMPLETE_SPLIT: u16 = 1 << 7;
    pub const HAS_FULLXID: u16 = 1 << 8;
}

/// Length of the special space in bytes.
pub(super) const OPAQUE_LEN: usize = 16;
/// No sibling: block 0 is the metapage.
pub(super) const NONE: u32 = 0;

/// The special space (`BTPageOpaqueData`).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Opaque {
    pub prev: u32,
    pub next: u32,
    pub level: u32,
    pub flags: u16,
    pub cycle_id: u16,
}

impl Opaque {
    /// Siblings and level; the flags are those that follow from the level.
    pub fn linked(prev: u32, next: u32, level: u32) -> Self {
        Opaque {
            prev,
            next,
            level,
            flags: if level == 0 { flag::LEAF } else { 0 },
            cycle_id: 0,
        }
    }

    pub fn read(page: &Page<'_>) -> Result<Self, Fault> {
        let at = page.special();
        Ok(Opaque {
            prev: page.get_u32(at)?,
            next: page.get_u32(at + 4)?,
            level: page.get_u32(at + 8)?,
            flags: page.get_u16(at + 12)?,
            cycle_id: page.get_u16(at + 14)?,
        })
    }

    pub fn write(self, page: &mut Page<'_>) -> Result<(), Fault> {
        let at = page.special();
        page.put_u32(at, self.prev)?;
        page.put_u32(at + 4, self.next)?;
        page.put_u32(at + 8, self.level)?;
        page.put_u16(at + 12, self.flags)?;
        page.put_u16(at + 14, self.cycle_id)
    }

    /// Number of the first item that is not the high key.
    pub fn first_data_item(&self) -> u16 {
        if self.next == NONE { 1 } else { 2 }
    }
}

/// Pages made from nothing.
pub(super) trait BtreePage {
    /// An empty page with this special space.
    fn init_btree(&mut self, opaque: Opaque) -> Result<(), Fault>;
    /// A half-dead leaf, which holds nothing but a high key that points to the top of its subtree.
    fn init_half_dead(&mut self, left: u32, right: u32, top_parent: u32) -> Result<(), Fault>;
    /// A deleted page, which holds nothing but the transaction after which it can be used again.
    fn init_deleted(&mut self, opaque: Opaque, safe_xid: u64) -> Result<(), Fault>;
    /// Fills an empty page with tuples as they lay at the end of a page, the last item first.
    fn restore_tuples(&mut self, tuples: &[u8]) -> Result<(), Fault>;
}

impl BtreePage for Page<'_> {
    fn init_btree(&mut self, opaque: Opaque) -> Result<(), Fault> {
        self.init(OPAQUE_LEN);
        opaque.write(self)
    }

    fn init_half_dead(&mut self, left: u32, right: u32, top_parent: u32) -> Result<(), Fault> {
        let mut opaque = Opaque::linked(left, right, 0);
        opaque.flags |= flag::HALF_DEAD;
        self.init_btree(opaque)?;
        let mut tuple = [0; index_tuple::HEADER_LEN];
        index_tuple::set_block(&mut tuple, top_parent)?;
        let info = index_tuple::HEADER_LEN as u16 | index_tuple::AM_RESERVED_BIT;
        tuple[6..].copy_from_slice(&info.to_le_bytes());
        self.insert_item(1, &tuple)
    }

    fn init_deleted(&mut self, mut opaque: Opaque, safe_xid: u64) -> Result<(), Fault> {
        opaque.flags |= flag::DELETED | flag::HAS_FULLXID;
        self.init_btree(opaque)?;
        self.put(HEADER_LEN, &safe_xid.to_le_bytes())?;
        self.set_lower(HEADER_LEN + 8);
        Ok(())
    }

    fn restore_tuples(&mut self, tuples: &[u8]) -> Result<(), Fault> {
        let mut sizes: smallvec::SmallVec<[u16; 408]> = smallvec::SmallVec::new();
        let mut rest = tuples;
        while !rest.is_empty() {
            let size = maxalign(index_tuple::len(rest)?);
            rest = rest
                .get(size..)
                .filter(|_| size >= index_tuple::HEADER_LEN)
                .ok_or(Fault::Record("a tuple runs past the end"))?;
            sizes.push(size as u16);
        }
        let mut end = tuples.len();
        for (number, size) in (1..).zip(sizes.iter().rev()) {
            let start = end - usize::from(*size); // The sizes add up to the length.
            self.insert_item(number, &tuples[start..end])?;
            end = start;
        }
        Ok(())
    }
}
