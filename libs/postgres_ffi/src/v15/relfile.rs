//! Relation files: which relation, fork and segment a path in the data directory stands for.
//!
//! Relations are split into files of 1 GiB; segment 0 has no suffix. Files of temporary relations
//! (`t3_16384`) are not relation files here: nothing of them is in the WAL.

use std::fmt;

use crate::c_struct;

/// OID of the default tablespace (`base/`).
pub const DEFAULTTABLESPACE_OID: u32 = 1663;
/// OID of the tablespace of shared relations (`global/`).
pub const GLOBALTABLESPACE_OID: u32 = 1664;
/// Pages in a segment file.
pub const RELSEG_SIZE: u32 = 131_072;
/// Directory below a tablespace's location (`TABLESPACE_VERSION_DIRECTORY`).
pub const TABLESPACE_VERSION_DIRECTORY: &str = "PG_15_202209061";

/// Fork number of the data.
pub const MAIN_FORKNUM: u8 = 0;
/// Fork number of the free space map.
pub const FSM_FORKNUM: u8 = 1;
/// Fork number of the visibility map.
pub const VISIBILITYMAP_FORKNUM: u8 = 2;
/// Fork number of what an unlogged relation is reset to.
pub const INIT_FORKNUM: u8 = 3;

/// File name suffixes of the forks, by number.
const FORK_SUFFIXES: [&str; 4] = ["", "_fsm", "_vm", "_init"];

c_struct! {
    /// Identifies a relation's storage.
    #[derive(Copy, Eq, Hash, PartialOrd, Ord)]
    pub struct RelFileNode("RelFileNode", "sizeof(RelFileNode)" = 12) {
        /// Tablespace.
        spcnode: u32 = 0 "spcNode",
        /// Database, 0 for shared relations.
        dbnode: u32 = 4 "dbNode",
        /// Relation number.
        relnode: u32 = 8 "relNode",
    }
}

/// Name of a relation file within its database's directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RelFileName {
    /// Relation number.
    pub relnode: u32,
    /// Fork number, 0 to 3.
    pub forknum: u8,
    /// Segment: the file's first page is this times [`RELSEG_SIZE`].
    pub segment: u32,
}

impl RelFileName {
    /// Reads a file name such as `16384_vm.2`; `None` if it is not that of a permanent relation.
    pub fn parse(name: &str) -> Option<Self> {
        let (rest, segment) = match name.split_once('.') {
            Some((rest, segment)) => (rest, Some(number(segment)?)),
            None => (name, None),
        };
        let digits = rest.find('_').unwrap_or(rest.len());
        let (relnode, suffix) = rest.split_at(digits);
        let forknum = FORK_SUFFIXES.iter().position(|known| *known == suffix)?;
        // PostgreSQL never writes ".0".
        if segment == Some(0) {
            return None;
        }
        Some(Self {
            relnode: number(relnode)?,
            forknum: forknum as u8,
            segment: segment.unwrap_or(0),
        })
    }
}

/// A decimal number as PostgreSQL prints it: digits only, no leading zero.
fn number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for RelFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = FORK_SUFFIXES
            .get(usize::from(self.forknum))
            .expect("fork numbers are 0 to 3");
        write!(f, "{}{suffix}", self.relnode)?;
        match self.segment {
            0 => Ok(()),
            segment => write!(f, ".{segment}"),
        }
    }
}

/// Directory of a database's relations, relative to the data directory.
pub fn database_directory(spcnode: u32, dbnode: u32) -> String {
    match spcnode {
        GLOBALTABLESPACE_OID => "global".to_owned(),
        DEFAULTTABLESPACE_OID => format!("base/{dbnode}"),
        _ => format!("pg_tblspc/{spcnode}/{TABLESPACE_VERSION_DIRECTORY}/{dbnode}"),
    }
}

/// Path of a relation file, relative to the data directory. Fork numbers are 0 to 3.
pub fn relation_path(relation: RelFileNode, forknum: u8, segment: u32) -> String {
    let name = RelFileName {
        relnode: relation.relnode,
        forknum,
        segment,
    };
    format!("{}/{name}", database_directory(relation.spcnode, relation.dbnode))
}

/// Reads a path relative to the data directory; `None` if it is not that of a permanent relation's file.
pub fn parse_path(path: &str) -> Option<(RelFileNode, RelFileName)> {
    let (directory, name) = path.rsplit_once('/')?;
    let (spcnode, dbnode) = parse_directory(directory)?;
    let name = RelFileName::parse(name)?;
    let relation = RelFileNode {
        spcnode,
        dbnode,
        relnode: name.relnode,
    };
    Some((relation, name))
}

/// Reads the directory of a database relative to the data directory: tablespace and database.
pub fn parse_directory(directory: &str) -> Option<(u32, u32)> {
    if directory == "global" {
        return Some((GLOBALTABLESPACE_OID, 0));
    }
    if let Some(dbnode) = directory.strip_prefix("base/") {
        return Some((DEFAULTTABLESPACE_OID, number(dbnode)?));
    }
    let mut parts = directory.strip_prefix("pg_tblspc/")?.split('/');
    let spcnode = number(parts.next()?)?;
    let version = parts.next()?;
    let dbnode = number(parts.next()?)?;
    (version == TABLESPACE_VERSION_DIRECTORY && parts.next().is_none()).then_some((spcnode, dbnode))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths() {
        let check = |path: &str, spcnode, dbnode, relnode, forknum, segment| {
            let relation = RelFileNode {
                spcnode,
                dbnode,
                relnode,
            };
            let name = RelFileName {
                relnode,
                forknum,
                segment,
            };
            assert_eq!(parse_path(path), Some((relation, name)), "{path}");
            assert_eq!(relation_path(relation, forknum, segment), path);
        };
        check("global/1262", 1664, 0, 1262, 0, 0);
        check("global/1262_fsm", 1664, 0, 1262, 1, 0);
        check("base/5/16384_vm.12", 1663, 5, 16384, 2, 12);
        check(
            "pg_tblspc/16400/PG_15_202209061/5/16401_init",
            16400,
            5,
            16401,
            3,
            0,
        );
    }

    #[test]
    fn other_files() {
        for path in [
            "global/pg_control",
            "global/pg_filenode.map",
            "base/5/PG_VERSION",
            "base/5/t3_16384",
            "base/5/16384_fsm_vm",
            "base/5/16384.0",
            "base/5/016384",
            "base/5/16384.",
            "base/5/_vm",
            "base/5/4294967296",
            "base/5/16384_VM",
            "base/pgsql_tmp/1",
            "pg_xact/0000",
            "pg_tblspc/16400/PG_14_202107181/5/16401",
            "pg_tblspc/16400/PG_15_202209061/5/6/16401",
            "16384",
            "",
        ] {
            assert_eq!(parse_path(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_safe_and_what_parses_prints_back(path in "[a-z_0-9./]{0,20}|base/[0-9]{1,3}/[0-9]{1,5}[._a-z0-9]{0,5}") {
            if let Some((relation, name)) = parse_path(&path) {
                prop_assert_eq!(relation_path(relation, name.forknum, name.segment), path);
            }
        }
    }
}
