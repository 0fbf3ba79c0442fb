//! The header of index tuples (`IndexTupleData`), shared by B-tree, hash and GiST: a heap tuple's place
//! or a block number, then length and flags.

use crate::fault::Fault;
use crate::heap::tuple::Tid;

/// Length of the header in bytes.
pub(crate) const HEADER_LEN: usize = 8;
/// The access method's own bit of `t_info`.
pub(crate) const AM_RESERVED_BIT: u16 = 0x2000;
/// Bits of `t_info` that hold the length.
pub(crate) const SIZE_MASK: u16 = 0x1fff;

const TOO_SHORT: Fault = Fault::Record("an index tuple is too short");

/// `t_info`: length and flags.
pub(crate) fn info(tuple: &[u8]) -> Result<u16, Fault> {
    let raw = tuple.get(6..8).ok_or(TOO_SHORT)?;
    Ok(u16::from_le_bytes([raw[0], raw[1]]))
}

/// Length of the tuple that starts here, in bytes, header included; not checked against the bytes there are.
pub(crate) fn len(tuple: &[u8]) -> Result<usize, Fault> {
    Ok(usize::from(info(tuple)? & SIZE_MASK))
}

/// The tuple that starts here, without what follows it.
pub(crate) fn trimmed(raw: &[u8]) -> Result<&[u8], Fault> {
    let len = len(raw)?;
    raw.get(..len).filter(|_| len >= HEADER_LEN).ok_or(TOO_SHORT)
}

/// The block number in the header.
pub(crate) fn block(tuple: &[u8]) -> Result<u32, Fault> {
    let raw = tuple.first_chunk::<4>().ok_or(TOO_SHORT)?;
    Ok(u32::from(u16::from_le_bytes([raw[0], raw[1]])) << 16
        | u32::from(u16::from_le_bytes([raw[2], raw[3]])))
}

/// Sets the block number in the header and leaves the offset number.
pub(crate) fn set_block(tuple: &mut [u8], block: u32) -> Result<(), Fault> {
    let raw = tuple.first_chunk_mut::<4>().ok_or(TOO_SHORT)?;
    raw.copy_from_slice(&Tid::new(block, 0).0[..4]);
    Ok(())
}

/// The offset number in the header.
pub(crate) fn offset(tuple: &[u8]) -> Result<u16, Fault> {
    let raw = tuple.get(4..6).ok_or(TOO_SHORT)?;
    Ok(u16::from_le_bytes([raw[0], raw[1]]))
}
