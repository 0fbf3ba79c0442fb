//! A tar archive written to an asynchronous stream, entry by entry, without knowing what comes next.
//!
//! GNU headers; directories have mode 0755, files 0600.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use tar::{EntryType, Header};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Entries start at multiples of this, in bytes.
const TAR_BLOCK: u64 = 512;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// See the module head.
pub(super) struct TarWriter<'a, W> {
    out: &'a mut W,
    mtime: u64,
    /// Bytes that the entry begun still lacks.
    missing: u64,
    /// Zeros to write behind the entry.
    padding: u64,
}

impl<'a, W: AsyncWrite + Unpin> TarWriter<'a, W> {
    /// An archive whose entries are as old as this call.
    pub(super) fn new(out: &'a mut W) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TarWriter {
            out,
            mtime: now.as_secs(),
            missing: 0,
            padding: 0,
        }
    }

    async fn header(&mut self, path: &str, kind: EntryType, mode: u32, len: u64) -> io::Result<()> {
        assert_eq!(self.missing, 0, "entry before '{path}' is not complete");
        let mut header = Header::new_gnu();
        header.set_path(path)?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.mtime);
        header.set_size(len);
        header.set_cksum();
        self.out.write_all(header.as_bytes()).await
    }

    /// A directory.
    pub(super) async fn directory(&mut self, path: &str) -> io::Result<()> {
        self.header(path, EntryType::Directory, 0o755, 0).await
    }

    /// A file.
    pub(super) async fn file(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.begin_file(path, contents.len() as u64).await?;
        self.append(contents).await
    }

    /// A file of `len` bytes, which [`TarWriter::append`] gives piece by piece.
    pub(super) async fn begin_file(&mut self, path: &str, len: u64) -> io::Result<()> {
        self.header(path, EntryType::Regular, 0o600, len).await?;
        self.missing = len;
        self.padding = len.next_multiple_of(TAR_BLOCK) - len;
        Ok(())
    }

    /// The next bytes of the file begun.
    pub(super) async fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.missing = self
            .missing
            .checked_sub(bytes.len() as u64)
            .expect("a file is as long as announced");
        self.out.write_all(bytes).await?;
        if self.missing == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.out.write_all(&ZEROS[..padding as usize]).await?;
        }
        Ok(())
    }

    /// Zeros up to the end of the file begun.
    pub(super) async fn append_zeros(&mut self) -> io::Result<()> {
        while self.missing > 0 {
            let len = self.missing.min(ZEROS.len() as u64) as usize;
            self.append(&ZEROS[..len]).await?;
        }
        Ok(())
    }

    /// The end mark. Without it the archive is one that failed.
    pub(super) async fn finish(self) -> io::Result<()> {
        assert_eq!(self.missing, 0, "last entry is not complete");
        self.out.write_all(&ZEROS[..2 * TAR_BLOCK as usize]).await?;
        self.out.flush().await
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[tokio::test]
    async fn the_tar_crate_reads_it_back() {
        let mut raw = Vec::new();
        let mut tar = TarWriter::new(&mut raw);
        tar.directory("base/1").await.unwrap();
        tar.file("empty", b"").await.unwrap();
        tar.begin_file("global/pg_control", 700).await.unwrap();
        tar.append(b"abc").await.unwrap();
        tar.append_zeros().await.unwrap();
        tar.finish().await.unwrap();
        let mut archive = ::tar::Archive::new(&raw[..]);
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            let header = entry.header();
            found.push((
                entry.path().unwrap().display().to_string(),
                header.mode().unwrap(),
                contents,
            ));
        }
        let mut control = vec![0; 700];
        control[..3].copy_from_slice(b"abc");
        assert_eq!(
            found,
            [
                ("base/1".to_owned(), 0o755, vec![]),
                ("empty".to_owned(), 0o600, vec![]),
                ("global/pg_control".to_owned(), 0o600, control)
            ]
        );
    }
}
