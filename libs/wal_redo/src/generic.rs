//! Generic records, written by extensions: pieces of bytes with their places.

use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::page::Page;

pub(crate) fn redo(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut delta = change.data();
    while delta.left() > 0 {
        let (offset, len) = (delta.u16()?, delta.u16()?);
        page.put(usize::from(offset), delta.bytes(usize::from(len))?)?;
    }
    // What lies between the pointers is not in the delta; PostgreSQL leaves zeros there.
    let hole = page.lower()..page.upper();
    page.bytes_mut()
        .get_mut(hole)
        .ok_or(Fault::Page("corrupted page pointers"))?
        .fill(0);
    Ok(Effect::Changed)
}
