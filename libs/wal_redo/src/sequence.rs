//! Sequences: the record carries the sequence's only row, and the page is made anew around it.

use postgres_ffi::v15::rmgr::XLOG_SEQ_LOG;

use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::page::Page;

const SEQ_MAGIC: u32 = 0x1717;
/// Length of the relation's name in front of the row, in bytes.
const REL_FILE_NODE_LEN: usize = 12;

pub(crate) fn redo(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    if change.info() != XLOG_SEQ_LOG {
        return Err(Fault::Unknown);
    }
    let mut main = change.main();
    main.skip(REL_FILE_NODE_LEN)?;
    page.init(4);
    let special = page.special();
    page.put_u32(special, SEQ_MAGIC)?;
    page.insert_item(1, main.rest())?;
    Ok(Effect::Changed)
}
