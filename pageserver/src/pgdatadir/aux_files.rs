//! Auxiliary files: what a compute must find again after a restart and what no WAL record of PostgreSQL's own describes, such
//! as statistics and replication slots.
//!
//! The compute puts them into the WAL as logical messages (`compute/neon/aux_files.c`): the prefix is
//! `neon-files:` and the name of a group, the message is the group's files, each as path, 0 byte, length (`u32` little
//! endian), contents. A message replaces the group as a whole, so files that belong together, such as a slot and the
//! snapshot it needs, are never of different ages. A message without files removes the group.
//!
//! Invariants
//! * Only messages of no database count. Users can only write messages of the database they are connected to.
//! * A path stays below the few directories that such files may be in.

use bytes::{Buf, BufMut, Bytes};
use utils::lsn::Lsn;

/// Begins the prefix of a logical message that carries a group.
pub const MESSAGE_PREFIX: &[u8] = b"neon-files:";
/// Group with the state of one logical replication slot: this and the slot's name.
pub const SLOT_GROUP_PREFIX: &[u8] = b"slot/";

/// Where `restart_lsn` stands in the state file of a slot, which comes first in its group: 16 bytes of checksum, version and
/// length, then a `ReplicationSlotPersistentData` with name (64 bytes), database, persistency and two transaction ids before it.
const SLOT_RESTART_LSN: usize = 16 + 64 + 4 * 4;

/// Where auxiliary files may be.
const DIRECTORIES: [&str; 3] = ["pg_stat/", "pg_replslot/", "pg_logical/"];

/// A file of a group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuxFile {
    /// Relative to the data directory.
    pub path: String,
    /// All of it.
    pub contents: Bytes,
}

/// A group of files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuxFileGroup {
    /// Name of the group.
    pub name: Bytes,
    /// Its files; empty if the group was removed.
    pub files: Vec<AuxFile>,
}

/// The bytes are not a group of files.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum AuxFileError {
    /// Ends in the middle of a file.
    #[error("the group of files ends early")]
    Truncated,
    /// A path that is not below the directories for such files.
    #[error("'{0}' is no place for an auxiliary file")]
    BadPath(String),
}

impl AuxFileGroup {
    /// Reads the files of a logical message.
    pub fn from_message(name: Bytes, mut message: Bytes) -> Result<Self, AuxFileError> {
        let mut files = Vec::new();
        while !message.is_empty() {
            let path = split_c_string(&mut message)?;
            let path = checked_path(&path)?;
            let len = message.try_get_u32_le().map_err(|_| AuxFileError::Truncated)? as usize;
            if len > message.len() {
                return Err(AuxFileError::Truncated);
            }
            let contents = message.split_to(len);
            files.push(AuxFile { path, contents });
        }
        Ok(AuxFileGroup { name, files })
    }

    /// The value stored under the group's key: the name, a 0 byte, the message.
    pub fn value(name: &[u8], message: &[u8]) -> Bytes {
        let mut raw = Vec::with_capacity(name.len() + 1 + message.len());
        raw.extend_from_slice(name);
        raw.put_u8(0);
        raw.extend_from_slice(message);
        raw.into()
    }

    /// The inverse of [`AuxFileGroup::value`].
    pub fn decode(mut raw: Bytes) -> Result<Self, AuxFileError> {
        let name = split_c_string(&mut raw)?;
        Self::from_message(name, raw)
    }

    /// Whether this is the state of a logical replication slot.
    pub fn is_slot(&self) -> bool {
        self.name.starts_with(SLOT_GROUP_PREFIX)
    }

    /// The oldest WAL a slot needs; `None` if this is no slot.
    pub fn restart_lsn(&self) -> Option<Lsn> {
        let state = self.files.first().filter(|_| self.is_slot())?;
        let raw = state.contents.get(SLOT_RESTART_LSN..SLOT_RESTART_LSN + 8)?;
        Some(Lsn(u64::from_le_bytes(raw.try_into().ok()?)))
    }
}

fn split_c_string(raw: &mut Bytes) -> Result<Bytes, AuxFileError> {
    let end = raw
        .iter()
        .position(|byte| *byte == 0)
        .ok_or(AuxFileError::Truncated)?;
    let text = raw.split_to(end);
    raw.advance(1);
    Ok(text)
}

fn checked_path(raw: &[u8]) -> Result<String, AuxFileError> {
    let bad = || AuxFileError::BadPath(String::from_utf8_lossy(raw).into_owned());
    let path = std::str::from_utf8(raw).map_err(|_| bad())?;
    let below = DIRECTORIES.iter().any(|directory| path.starts_with(directory));
    let plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    (below && plain).then(|| path.to_owned()).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(files: &[(&str, &[u8])]) -> Bytes {
        let mut raw = Vec::new();
        for (path, contents) in files {
            raw.extend_from_slice(path.as_bytes());
            raw.put_u8(0);
            raw.put_u32_le(contents.len() as u32);
            raw.extend_from_slice(contents);
        }
        raw.into()
    }

    #[test]
    fn a_group_comes_back_from_its_value() {
        let files: [(&str, &[u8]); 2] = [
            ("pg_replslot/s/state", b"state"),
            ("pg_logical/snapshots/0-1.snap", b""),
        ];
        let group = AuxFileGroup::decode(AuxFileGroup::value(b"slot/s", &message(&files))).unwrap();
        assert!(group.is_slot());
        let found: Vec<_> = group
            .files
            .iter()
            .map(|file| (file.path.as_str(), &file.contents[..]))
            .collect();
        assert_eq!(found, files);
        let gone = AuxFileGroup::decode(AuxFileGroup::value(b"statistics", b"")).unwrap();
        assert!(gone.files.is_empty() && !gone.is_slot());
    }

    #[test]
    fn paths_stay_where_such_files_may_be() {
        for path in [
            "global/pg_control",
            "pg_stat/../global/pg_control",
            "/pg_stat/x",
            "pg_stat/",
            "pg_stat//x",
            "pg_stat",
        ] {
            let error = AuxFileGroup::from_message(Bytes::new(), message(&[(path, b"x")]));
            assert_eq!(error, Err(AuxFileError::BadPath(path.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn what_is_cut_off_is_noticed(contents in proptest::collection::vec(any::<u8>(), 0..40), cut in 1..20_usize) {
            let whole = message(&[("pg_stat/pgstat.stat", &contents)]);
            let cut = whole.slice(..whole.len() - cut);
            prop_assert_eq!(AuxFileGroup::from_message(Bytes::new(), cut), Err(AuxFileError::Truncated));
        }

        #[test]
        fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = AuxFileGroup::decode(raw.into());
        }
    }
}
