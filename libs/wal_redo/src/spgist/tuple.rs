//! Tuples of SP-GiST pages and what is done to them.
//!
//! All tuples start with two bits of state. Leaf tuples of one inner node form a chain on their page. A tuple
//! that goes leaves a dead tuple in its place, so that the numbers of the others stay.

use postgres_ffi::cursor::Cursor;
use smallvec::SmallVec;

use crate::fault::Fault;
use crate::heap::tuple::Tid;
use crate::index_tuple;
use crate::offsets::Offsets;
use crate::page::Page;

/// Flags of a page (`SPGIST_*`).
pub(super) mod flag {
    pub const LEAF: u16 = 1 << 2;
    pub const NULLS: u16 = 1 << 3;
}

const OPAQUE_LEN: usize = 8;
const PAGE_ID: u16 = 0xff82;
const INVALID_TID: Tid = Tid([0xff, 0xff, 0xff, 0xff, 0, 0]);
/// `SpGistDeadTupleData`.
const DEAD_TUPLE_LEN: usize = 16;
/// `SpGistLeafTupleData` without padding.
const LEAF_HEADER_LEN: usize = 12;
/// `SpGistInnerTupleData` with padding.
const INNER_HEADER_LEN: usize = 8;
/// Bits of the second field of a leaf tuple that link to the next in the chain.
const NEXT_MASK: u16 = 0x3fff;

const TOO_SHORT: Fault = Fault::Record("an SP-GiST tuple is too short");

/// State of a tuple, in its two lowest bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(super) enum TupleState {
    Live = 0,
    Redirect = 1,
    Dead = 2,
    Placeholder = 3,
}

/// State of a tuple.
pub(super) fn state(tuple: &[u8]) -> Result<TupleState, Fault> {
    match tuple.first().ok_or(TOO_SHORT)? & 3 {
        0 => Ok(TupleState::Live),
        1 => Ok(TupleState::Redirect),
        2 => Ok(TupleState::Dead),
        _ => Ok(TupleState::Placeholder),
    }
}

/// Takes the leaf tuple that the input starts with; its length is behind the state bits.
pub(super) fn take_leaf<'a>(input: &mut Cursor<'a>) -> Result<&'a [u8], Fault> {
    let head = input.rest().first_chunk::<4>().ok_or(TOO_SHORT)?;
    let len = (u32::from_le_bytes(*head) >> 2) as usize;
    if len < LEAF_HEADER_LEN {
        return Err(TOO_SHORT);
    }
    Ok(input.bytes(len)?)
}

/// Takes the inner tuple that the input starts with.
pub(super) fn take_inner<'a>(input: &mut Cursor<'a>) -> Result<&'a [u8], Fault> {
    let head = input.rest().first_chunk::<6>().ok_or(TOO_SHORT)?;
    let len = usize::from(u16::from_le_bytes([head[4], head[5]]));
    if len < INNER_HEADER_LEN {
        return Err(TOO_SHORT);
    }
    Ok(input.bytes(len)?)
}

/// Where a tuple is, within the index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub block: u32,
    pub number: u16,
}

/// A link from a node of an inner tuple.
#[derive(Clone, Copy, Debug)]
pub(super) struct Downlink {
    /// Item number of the inner tuple.
    pub parent: u16,
    /// Index of the node in the tuple.
    pub node: u16,
    pub target: Target,
}

/// A dead tuple left in place of another.
#[derive(Clone, Copy, Debug)]
pub(super) enum Replacement {
    /// The way to where the tuple went; `xid` tells when nobody needs it any more.
    Redirect {
        target: Target,
        xid: u32,
    },
    Dead,
    Placeholder,
}

impl Replacement {
    fn state(self) -> TupleState {
        match self {
            Replacement::Redirect { .. } => TupleState::Redirect,
            Replacement::Dead => TupleState::Dead,
            Replacement::Placeholder => TupleState::Placeholder,
        }
    }

    fn tuple(self) -> [u8; DEAD_TUPLE_LEN] {
        let mut raw = [0; DEAD_TUPLE_LEN];
        raw[0] = self.state() as u8 | (DEAD_TUPLE_LEN as u8) << 2;
        let (tid, xid) = match self {
            Replacement::Redirect { target, xid } => (Tid::new(target.block, target.number), xid),
            Replacement::Dead | Replacement::Placeholder => (INVALID_TID, 0),
        };
        raw[6..12].copy_from_slice(&tid.0);
        raw[12..].copy_from_slice(&xid.to_le_bytes());
        raw
    }
}

/// Turns a redirect into a placeholder in place; its transaction stays in the tuple.
pub(super) fn redirect_to_placeholder(tuple: &mut [u8]) -> Result<(), Fault> {
    if tuple.len() < DEAD_TUPLE_LEN || state(tuple)? != TupleState::Redirect {
        return Err(Fault::Page("an SP-GiST tuple is not a redirect"));
    }
    tuple[0] |= TupleState::Placeholder as u8;
    tuple[6..12].copy_from_slice(&INVALID_TID.0);
    Ok(())
}

/// The special space (`SpGistPageOpaqueData`) without the page id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opaque {
    pub flags: u16,
    /// Number of redirects on the page.
    pub redirects: u16,
    /// Number of placeholders on the page.
    pub placeholders: u16,
}

impl Opaque {
    pub fn read(page: &Page<'_>) -> Result<Self, Fault> {
        let at = page.special();
        Ok(Opaque {
            flags: page.get_u16(at)?,
            redirects: page.get_u16(at + 2)?,
            placeholders: page.get_u16(at + 4)?,
        })
    }

    pub fn write(self, page: &mut Page<'_>) -> Result<(), Fault> {
        let at = page.special();
        page.put_u16(at, self.flags)?;
        page.put_u16(at + 2, self.redirects)?;
        page.put_u16(at + 4, self.placeholders)
    }

    fn count(&mut self, state: TupleState) {
        match state {
            TupleState::Redirect => self.redirects = self.redirects.wrapping_add(1),
            TupleState::Placeholder => self.placeholders = self.placeholders.wrapping_add(1),
            TupleState::Live | TupleState::Dead => {}
        }
    }
}

/// What SP-GiST does to pages.
pub(super) trait SpgistPage {
    /// An empty page.
    fn init_spgist(&mut self, flags: u16) -> Result<(), Fault>;
    /// Adds a tuple at `number`, in place of a placeholder if there is one.
    fn add_or_replace(&mut self, number: u16, tuple: &[u8]) -> Result<(), Fault>;
    /// Puts dead tuples in place of the listed ones: `first` for the first in the list, `rest` for the others.
    fn replace_with_dead(
        &mut self,
        numbers: Offsets<'_>,
        first: Replacement,
        rest: Replacement,
    ) -> Result<(), Fault>;
    /// Puts a dead tuple in place of one tuple.
    fn replace_one_with_dead(&mut self, number: u16, dead: Replacement) -> Result<(), Fault>;
    /// Links a leaf tuple to the next one of its chain.
    fn set_next_in_chain(&mut self, number: u16, next: u16) -> Result<(), Fault>;
    /// Sets the link of a node.
    fn set_downlink(&mut self, downlink: Downlink) -> Result<(), Fault>;
}

impl SpgistPage for Page<'_> {
    fn init_spgist(&mut self, flags: u16) -> Result<(), Fault> {
        self.init(OPAQUE_LEN);
        let at = self.special();
        self.put_u16(at, flags)?;
        self.put_u16(at + 6, PAGE_ID)
    }

    fn add_or_replace(&mut self, number: u16, tuple: &[u8]) -> Result<(), Fault> {
        if number <= self.max_offset() {
            if state(self.item(number)?)? != TupleState::Placeholder {
                return Err(Fault::Item {
                    offset: number,
                    state: "is not a placeholder",
                });
            }
            let mut opaque = Opaque::read(self)?;
            opaque.placeholders = opaque
                .placeholders
                .checked_sub(1)
                .ok_or(Fault::Page("number of placeholders"))?;
            opaque.write(self)?;
            self.delete_item(number)?;
        }
        self.insert_item(number, tuple)
    }

    fn replace_with_dead(
        &mut self,
        numbers: Offsets<'_>,
        first: Replacement,
        rest: Replacement,
    ) -> Result<(), Fault> {
        let Some(first_number) = numbers.get(0) else {
            return Ok(());
        };
        let mut sorted: SmallVec<[u16; 64]> = numbers.iter().collect();
        sorted.sort_unstable();
        self.delete_items(sorted.iter().copied())?;
        let mut opaque = Opaque::read(self)?;
        for number in sorted {
            let dead = if number == first_number { first } else { rest };
            self.insert_item(number, &dead.tuple())?;
            opaque.count(dead.state());
        }
        opaque.write(self)
    }

    fn replace_one_with_dead(&mut self, number: u16, dead: Replacement) -> Result<(), Fault> {
        self.delete_item(number)?;
        self.insert_item(number, &dead.tuple())?;
        let mut opaque = Opaque::read(self)?;
        opaque.count(dead.state());
        opaque.write(self)
    }

    fn set_next_in_chain(&mut self, number: u16, next: u16) -> Result<(), Fault> {
        let tuple = self.item_mut(number)?;
        let info = tuple.get_mut(4..6).ok_or(TOO_SHORT)?;
        let old = u16::from_le_bytes([info[0], info[1]]);
        info.copy_from_slice(&(old & !NEXT_MASK | next & NEXT_MASK).to_le_bytes());
        Ok(())
    }

    fn set_downlink(&mut self, downlink: Downlink) -> Result<(), Fault> {
        const NO_NODE: Fault = Fault::Page("an SP-GiST inner tuple has no such node");
        let tuple = self.item_mut(downlink.parent)?;
        let head = tuple.first_chunk::<4>().ok_or(NO_NODE)?;
        let head = u32::from_le_bytes(*head);
        let nodes = (head >> 3) & 0x1fff;
        if u32::from(downlink.node) >= nodes {
            return Err(NO_NODE);
        }
        // Header, prefix, then the nodes one after the other.
        let mut at = INNER_HEADER_LEN + (head >> 16) as usize;
        for _ in 0..downlink.node {
            at += index_tuple::trimmed(tuple.get(at..).ok_or(NO_NODE)?)?.len();
        }
        let link = tuple.get_mut(at..at + 6).ok_or(NO_NODE)?;
        link.copy_from_slice(&Tid::new(downlink.target.block, downlink.target.number).0);
        Ok(())
    }
}
