//! Arrays of offset numbers in a record.

use postgres_ffi::cursor::{Cursor, Truncated};

/// An array of `u16` in a record, at any alignment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offsets<'a>(&'a [u8]);

impl<'a> Offsets<'a> {
    /// Takes the next `count` numbers.
    pub fn read(input: &mut Cursor<'a>, count: usize) -> Result<Self, Truncated> {
        input.bytes(count.saturating_mul(2)).map(Offsets)
    }

    pub fn len(self) -> usize {
        self.0.len() / 2
    }

    pub fn get(self, index: usize) -> Option<u16> {
        self.0
            .as_chunks::<2>()
            .0
            .get(index)
            .map(|raw| u16::from_le_bytes(*raw))
    }

    pub fn iter(self) -> impl DoubleEndedIterator<Item = u16> + ExactSizeIterator + 'a {
        self.0
            .as_chunks::<2>()
            .0
            .iter()
            .map(|raw| u16::from_le_bytes(*raw))
    }
}
