//! Reading a tar archive from a stream, entry by entry: ustar and GNU headers, as `pg_basebackup`, `tar` and our own base
//! backup write them.

use std::io;

use tar::{EntryType, Header};
use tokio::io::{AsyncRead, AsyncReadExt, Take};

use super::cluster::{ClusterImport, ImportError};
use crate::ingest::WriteStore;

/// Entries start at multiples of this, in bytes.
const TAR_BLOCK: u64 = 512;

/// Header of an entry.
pub(super) struct Entry {
    pub path: String,
    pub len: u64,
    pub is_file: bool,
}

/// The next entry's header; `None` at the end mark.
pub(super) async fn next_entry(archive: &mut (impl AsyncRead + Unpin)) -> Result<Option<Entry>, ImportError> {
    let mut header = Header::new_old();
    read(archive, header.as_mut_bytes()).await?;
    if header.as_bytes().iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let entry = parse(&header).map_err(|source| ImportError::Read {
        path: "tar archive".into(),
        source,
    })?;
    let kind = header.entry_type();
    if !matches!(
        kind,
        EntryType::Regular | EntryType::Continuous | EntryType::Directory
    ) {
        let reason = "only files and directories can be imported".to_owned();
        return Err(ImportError::BadFile {
            path: entry.path,
            reason,
        });
    }
    Ok(Some(entry))
}

fn parse(header: &Header) -> io::Result<Entry> {
    let bad = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let stated = header.cksum()?;
    // The sum counts its own field as blanks.
    let bytes = header.as_bytes();
    let sum = |part: &[u8]| part.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    if stated != sum(&bytes[..148]) + sum(&bytes[156..]) + 8 * u32::from(b' ') {
        return Err(bad("not a tar header"));
    }
    let path = header
        .path()?
        .to_str()
        .ok_or_else(|| bad("a path is not UTF-8"))?
        .to_owned();
    Ok(Entry {
        path,
        len: header.size()?,
        is_file: header.entry_type() != EntryType::Directory,
    })
}

/// Passes over what is left of an entry of `len` bytes, and the padding behind it.
pub(super) async fn finish_entry(
    mut rest: Take<&mut (impl AsyncRead + Unpin)>,
    len: u64,
) -> Result<(), ImportError> {
    let padding = len.next_multiple_of(TAR_BLOCK) - len;
    rest.set_limit(rest.limit() + padding);
    let want = rest.limit();
    let got = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    match got {
        Ok(got) if got == want => Ok(()),
        Ok(_) => Err(truncated(io::ErrorKind::UnexpectedEof.into())),
        Err(source) => Err(truncated(source)),
    }
}

/// Reads behind the end mark to the end of the stream, as a peer wants who writes whole blocks of entries.
pub(super) async fn drain(archive: &mut (impl AsyncRead + Unpin)) -> Result<(), ImportError> {
    tokio::io::copy(archive, &mut tokio::io::sink())
        .await
        .map(drop)
        .map_err(truncated)
}

async fn read(archive: &mut (impl AsyncRead + Unpin), out: &mut [u8]) -> Result<(), ImportError> {
    archive.read_exact(out).await.map(drop).map_err(truncated)
}

fn truncated(source: io::Error) -> ImportError {
    ImportError::Read {
        path: "tar archive".into(),
        source,
    }
}

impl<W: WriteStore> ClusterImport<W> {
    /// Imports every file of a tar archive.
    pub async fn archive(
        &mut self,
        archive: &mut (impl AsyncRead + Unpin + Send),
    ) -> Result<(), ImportError> {
        while let Some(entry) = next_entry(archive).await? {
            let mut contents = archive.take(entry.len);
            if entry.is_file {
                self.file(&entry.path, entry.len, &mut contents).await?;
            }
            finish_entry(contents, entry.len).await?;
        }
        drain(archive).await
    }
}
