//! Import of WAL that continues a timeline: a tar archive of segment files.

use postgres_ffi::v15::WAL_SEGMENT_SIZE;
use postgres_ffi::v15::stream::{StreamError, WalStreamDecoder};
use tokio::io::{AsyncRead, AsyncReadExt};
use utils::lsn::{Lsn, RecordLsn};

use super::archive::{drain, finish_entry, next_entry};
use super::cluster::ImportError;
use super::path::wal_segment_name;
use crate::ingest::{WalIngest, WriteStore};

/// Ingests WAL from `at`, the timeline's last record, up to `end`, which must be a record's end. Segments stand in the
/// archive in order, starting with the one that holds `at`; other files are passed over.
pub async fn import_wal<W: WriteStore>(
    writer: W,
    at: RecordLsn,
    end: Lsn,
    archive: &mut (impl AsyncRead + Unpin + Send),
) -> Result<RecordLsn, ImportError> {
    let mut ingest = WalIngest::new(writer, at).await?;
    let mut decoder = WalStreamDecoder::new(at.last);
    while let Some(entry) = next_entry(archive).await? {
        let mut contents = archive.take(entry.len);
        let next = decoder.fed_lsn();
        let name = entry.path.rsplit('/').next().unwrap_or_default();
        if entry.is_file
            && name == wal_segment_name(next.segment_number(WAL_SEGMENT_SIZE))
            && ingest.at().last < end
        {
            segment(&mut ingest, &mut decoder, end, &mut contents).await?;
        }
        finish_entry(contents, entry.len).await?;
    }
    drain(archive).await?;
    ingest.commit().await.map_err(ImportError::Write)?;
    let at = ingest.at();
    if at.last < end {
        return Err(ImportError::WalEnds {
            end: at.last,
            want: end,
        });
    }
    Ok(at)
}

/// Ingests the records of one segment file that end at or before `end`.
async fn segment<W: WriteStore>(
    ingest: &mut WalIngest<W>,
    decoder: &mut WalStreamDecoder,
    end: Lsn,
    contents: &mut (impl AsyncRead + Unpin + Send),
) -> Result<(), ImportError> {
    let fail = |source| ImportError::Read {
        path: "WAL segment".into(),
        source,
    };
    let skipped = decoder.fed_lsn().segment_offset(WAL_SEGMENT_SIZE);
    let mut wal = vec![0; WAL_SEGMENT_SIZE];
    contents.read_exact(&mut wal).await.map_err(fail)?;
    decoder.feed_bytes(bytes::Bytes::from(wal).slice(skipped..));
    // What stands behind the end may be no WAL at all: it is not looked at.
    while ingest.at().last < end {
        let (last, raw) = match decoder.next_record() {
            Ok(Some(record)) => record,
            Ok(None) => break,
            // What a segment file has behind its last record.
            Err(StreamError::Length { start, len: 0 }) => {
                return Err(ImportError::WalEnds {
                    end: start,
                    want: end,
                });
            }
            Err(error) => return Err(error.into()),
        };
        ingest
            .ingest_record(
                RecordLsn {
                    last,
                    prev: decoder.record_start(),
                },
                raw,
            )
            .await?;
    }
    Ok(())
}
