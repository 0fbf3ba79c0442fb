//! Names of relation forks and of SLRUs, as PostgreSQL numbers them.

use std::fmt;

/// Fork of a relation (`ForkNumber` of `relpath.h`).
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
#[repr(u8)]
pub enum Fork {
    /// The data.
    Main = 0,
    /// Free space map.
    Fsm = 1,
    /// Visibility map.
    Vm = 2,
    /// What an unlogged relation is reset to.
    Init = 3,
}

/// The number names no fork or SLRU.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
#[error("{0} is not the number of a {1}")]
pub struct UnknownNumber(pub u32, pub &'static str);

impl Fork {
    /// All forks, in the order of their numbers.
    pub const ALL: [Fork; 4] = [Fork::Main, Fork::Fsm, Fork::Vm, Fork::Init];

    /// What PostgreSQL appends to the relation's file name.
    pub fn file_suffix(self) -> &'static str {
        match self {
            Fork::Main => "",
            Fork::Fsm => "_fsm",
            Fork::Vm => "_vm",
            Fork::Init => "_init",
        }
    }
}

impl TryFrom<u8> for Fork {
    type Error = UnknownNumber;

    fn try_from(number: u8) -> Result<Self, UnknownNumber> {
        Fork::ALL
            .get(usize::from(number))
            .copied()
            .ok_or(UnknownNumber(number.into(), "relation fork"))
    }
}

/// A fork of a relation in a database cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct RelTag {
    /// Tablespace OID: 1663 by default, 1664 for shared relations.
    pub spcnode: u32,
    /// Database OID, 0 for shared relations.
    pub dbnode: u32,
    /// Relation number, never 0.
    pub relnode: u32,
    /// Fork.
    pub fork: Fork,
}

impl fmt::Display for RelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RelTag {
            spcnode,
            dbnode,
            relnode,
            fork,
        } = self;
        write!(f, "{spcnode}/{dbnode}/{relnode}{}", fork.file_suffix())
    }
}

/// SLRUs that are part of a timeline's history.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
#[repr(u32)]
pub enum SlruKind {
    /// Commit status of transactions, `pg_xact`.
    Clog = 0,
    /// `pg_multixact/members`.
    MultiXactMembers = 1,
    /// `pg_multixact/offsets`.
    MultiXactOffsets = 2,
}

impl SlruKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [SlruKind; 3] = [
        SlruKind::Clog,
        SlruKind::MultiXactMembers,
        SlruKind::MultiXactOffsets,
    ];

    /// Directory of the segment files, relative to the data directory.
    pub fn directory(self) -> &'static str {
        match self {
            SlruKind::Clog => "pg_xact",
            SlruKind::MultiXactMembers => "pg_multixact/members",
            SlruKind::MultiXactOffsets => "pg_multixact/offsets",
        }
    }
}

impl TryFrom<u32> for SlruKind {
    type Error = UnknownNumber;

    fn try_from(number: u32) -> Result<Self, UnknownNumber> {
        SlruKind::ALL
            .get(number as usize)
            .copied()
            .ok_or(UnknownNumber(number, "SLRU"))
    }
}
