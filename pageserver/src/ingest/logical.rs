//! Logical replication: auxiliary files in logical messages, and the positions of replication origins.

use postgres_ffi::c_struct::CStruct;
use postgres_ffi::cursor::Cursor;
use postgres_ffi::v15::bodies::{LogicalMessage, ReplOriginDrop, ReplOriginSet};
use postgres_ffi::v15::rmgr;

use super::{Context, IngestFault};
use crate::pgdatadir::aux_files::{AuxFileGroup, MESSAGE_PREFIX};
use crate::pgdatadir::modification::{Modification, OriginMove};
use crate::timeline::store::ReadStore;

/// A message that belongs to a database is a user's, whatever its prefix.
pub(super) fn ingest_message<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let message = LogicalMessage::parse(cx.record.main_data)?;
    let Some(name) = message.prefix.strip_prefix(MESSAGE_PREFIX) else {
        return Ok(());
    };
    if message.header.database != 0 {
        return Ok(());
    }
    AuxFileGroup::from_message(cx.raw.slice_ref(name), cx.raw.slice_ref(message.message))
        .map_err(IngestFault::malformed)?;
    m.put_aux_files(name, message.message);
    Ok(())
}

pub(super) async fn ingest_origin<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let mut input = Cursor::new(cx.record.main_data);
    match cx.record.header.info {
        rmgr::XLOG_REPLORIGIN_SET => {
            let set = ReplOriginSet::read(&mut input)?;
            let to = match set.force {
                true => OriginMove::To(set.remote_lsn),
                false => OriginMove::Forward(set.remote_lsn),
            };
            Ok(m.move_origin(set.origin, to).await?)
        }
        rmgr::XLOG_REPLORIGIN_DROP => {
            let drop = ReplOriginDrop::read(&mut input)?;
            Ok(m.drop_origin(drop.origin).await?)
        }
        _ => Ok(()),
    }
}
