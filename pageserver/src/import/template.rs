//! The cluster every new root timeline starts as: made by `initdb` once, kept as a file, imported as often as needed.
//!
//! The file is a tar archive of the parts that are imported, `initdb-v15-<superuser>-<start of its last WAL record>-<end>.tar` in
//! the work directory. It may be deleted at any time, and is made again.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use postgres_ffi::v15::WAL_SEGMENT_SIZE;
use postgres_ffi::v15::control_file::{ControlFile, DB_SHUTDOWNED};
use postgres_ffi::v15::stream::WalStreamDecoder;
use tokio::sync::Mutex;
use utils::crashsafe;
use utils::lsn::{Lsn, RecordLsn};

use super::cluster::{ClusterImport, ImportError};
use super::initdb::{Initdb, files};
use super::path::{ClusterFile, wal_segment_name};
use crate::ingest::WriteStore;

const PREFIX: &str = "initdb-v15-";
const SUFFIX: &str = ".tar";

/// See the module head.
pub struct ClusterTemplate {
    workdir: PathBuf,
    initdb: Initdb,
    /// Held while the file is looked for and made, so that it is made once.
    making: Mutex<()>,
}

/// The archive, and where the imported cluster's WAL goes on.
struct Template {
    archive: Bytes,
    at: RecordLsn,
}

impl ClusterTemplate {
    /// A template kept in `workdir`; nothing is made yet.
    pub fn new(workdir: impl Into<PathBuf>, initdb: Initdb) -> Self {
        ClusterTemplate {
            workdir: workdir.into(),
            initdb,
            making: Mutex::new(()),
        }
    }

    /// Fills an empty timeline with a new cluster, which gets a system identifier of its own.
    pub async fn import<W: WriteStore>(&self, writer: W) -> Result<RecordLsn, ImportError> {
        let template = self.get().await?;
        let mut import = ClusterImport::new(writer, template.at.last);
        import.make_unique();
        import.archive(&mut &template.archive[..]).await?;
        import.finish(Some(template.at.prev)).await
    }

    /// Makes the template now if there is none, and tells where the WAL of its copies goes on.
    pub async fn prepare(&self) -> Result<RecordLsn, ImportError> {
        Ok(self.get().await?.at)
    }

    async fn get(&self) -> Result<Template, ImportError> {
        let _turn = self.making.lock().await;
        let (workdir, initdb) = (self.workdir.clone(), self.initdb.clone());
        utils::blocking::run(move || find_or_make(&workdir, &initdb)).await
    }
}

fn fail(path: &Path) -> impl FnOnce(io::Error) -> ImportError + use<> {
    let path = path.to_owned();
    |source| ImportError::Read { path, source }
}

fn find_or_make(workdir: &Path, initdb: &Initdb) -> Result<Template, ImportError> {
    let prefix = prefix_of(&initdb.superuser);
    if let Some(template) = find(workdir, &prefix)? {
        return Ok(template);
    }
    let directory = initdb.run()?;
    let pgdata = directory.path().join("pgdata");
    let at = shutdown_record(&pgdata)?;
    let archive = pack(&pgdata).map_err(fail(&pgdata))?;
    let path = workdir.join(format!("{prefix}{:016X}-{:016X}{SUFFIX}", at.prev.0, at.last.0));
    crashsafe::write_atomically(&path, &crashsafe::with_suffix(&path, ".___temp"), &archive)
        .map_err(|e| ImportError::Initdb(format!("cannot keep the cluster template: {e}")))?;
    Ok(Template {
        archive: archive.into(),
        at,
    })
}

/// What the names of templates with this superuser begin with. Whatever is not plain in a file name is in hexadecimal.
fn prefix_of(superuser: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let escaped = superuser.bytes().map(|byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    format!("{PREFIX}{}-", escaped.collect::<String>())
}

fn find(workdir: &Path, prefix: &str) -> Result<Option<Template>, ImportError> {
    for entry in std::fs::read_dir(workdir).map_err(fail(workdir))? {
        let path = entry.map_err(fail(workdir))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if let Some(at) = parse_name(name, prefix) {
            let archive = std::fs::read(&path).map_err(fail(&path))?.into();
            return Ok(Some(Template { archive, at }));
        }
    }
    Ok(None)
}

/// `<prefix><start of the last record>-<its end>.tar`, 16 hexadecimal digits each.
fn parse_name(name: &str, prefix: &str) -> Option<RecordLsn> {
    let (prev, last) = name.strip_prefix(prefix)?.strip_suffix(SUFFIX)?.split_once('-')?;
    let lsn = |digits: &str| u64::from_str_radix(digits, 16).ok().map(Lsn);
    Some(RecordLsn {
        prev: lsn(prev)?,
        last: lsn(last)?,
    })
}

/// A tar archive of the files that an import looks at.
fn pack(pgdata: &Path) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for path in files(pgdata)? {
        let name = path.strip_prefix(pgdata).expect("it was found in there");
        if name
            .to_str()
            .is_some_and(|name| ClusterFile::of(name) != ClusterFile::Other)
        {
            archive.append_path_with_name(&path, name)?;
        }
    }
    archive.into_inner()
}

/// Start and end of the shutdown checkpoint record the control file points at.
fn shutdown_record(pgdata: &Path) -> Result<RecordLsn, ImportError> {
    let read = |path: PathBuf| std::fs::read(&path).map_err(fail(&path));
    let control = ControlFile::from_file(&read(pgdata.join("global/pg_control"))?)?;
    if control.state != DB_SHUTDOWNED {
        return Err(ImportError::NotShutDown(control.state));
    }
    let start = control.checkpoint_lsn;
    let wal = read(
        pgdata
            .join("pg_wal")
            .join(wal_segment_name(start.segment_number(WAL_SEGMENT_SIZE))),
    )?;
    let mut decoder = WalStreamDecoder::new(start);
    decoder.feed(
        wal.get(start.segment_offset(WAL_SEGMENT_SIZE)..)
            .unwrap_or_default(),
    );
    match decoder.next_record()? {
        Some((last, _)) => Ok(RecordLsn { last, prev: start }),
        None => Err(ImportError::WalEnds {
            end: start,
            want: start + 1,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let at = RecordLsn {
            prev: Lsn(0x149_8a28),
            last: Lsn(0x149_8aa0),
        };
        let prefix = prefix_of("cloud_admin");
        assert_eq!(
            parse_name(
                "initdb-v15-cloud_admin-0000000001498A28-0000000001498AA0.tar",
                &prefix
            ),
            Some(at)
        );
        for bad in [
            "initdb-v15-cloud_admin-0000000001498A28.tar",
            "initdb-v15-cloud-1-2.tar",
            "initdb-v15-cloud_admin-x-1-2.tar",
            "initdb-v14-cloud_admin-1-2.tar",
            "initdb-v15-cloud_admin-1-2.tar.temp",
            "x",
        ] {
            assert_eq!(parse_name(bad, &prefix), None, "{bad}");
        }
        assert_eq!(prefix_of("../a-b"), "initdb-v15-%2E%2E%2Fa%2Db-");
    }
}
