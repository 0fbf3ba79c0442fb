//! From what the layers hold of a key to the value: the last step of every read.

use bytes::Bytes;
use pageserver_api::key::Key;
use pageserver_api::value::WalRecordRef;
use utils::lsn::Lsn;

use super::store::ReadError;

/// The value of `key` at `lsn` from its newest image, if any, and the records after it, ascending.
///
/// Neither image nor records: the key has no value at that LSN.
pub fn reconstruct(
    key: Key,
    lsn: Lsn,
    base: Option<Bytes>,
    records: &[(Lsn, WalRecordRef<'_>)],
) -> Result<Option<Bytes>, ReadError> {
    if records.is_empty() {
        return Ok(base);
    }
    wal_redo::reconstruct_borrowed(key, base, records)
        .map(Some)
        .map_err(|source| ReadError::Redo {
            key,
            lsn,
            source: Box::new(source),
        })
}
