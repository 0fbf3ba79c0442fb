//! Why a record could not be replayed, and on what.

use std::fmt;

use postgres_ffi::cursor::Truncated;
use postgres_ffi::v15::decode::DecodeError;
use postgres_ffi::v15::image::ImageError;
use postgres_ffi::v15::rmgr::rmgr_name;
use utils::lsn::Lsn;

/// What is wrong, without the place: handlers return it, the entry points add the place.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// The bytes are not a WAL record.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The record's full-page image cannot be restored.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The record's bytes are not what its type demands.
    #[error("the record is malformed: {0}")]
    Record(&'static str),
    /// The record cannot apply to this page.
    #[error("the record does not fit the page: {0}")]
    Page(&'static str),
    /// The record names an item that the page does not have, or not in that state.
    #[error("the record does not fit the page: item {offset} {state}")]
    Item {
        /// Offset number of the item, from 1.
        offset: u16,
        /// What it is or is not.
        state: &'static str,
    },
    /// Replay needs an earlier version of the page, and there is none.
    #[error("the record needs an earlier version of the page, and there is none")]
    NoBase,
    /// No resource manager, or none that changes pages, writes such a record.
    #[error("no change of a page is known for this kind of record")]
    Unknown,
    /// The record does not mention the page.
    #[error("the record does not mention the page")]
    NotReferenced,
    /// The key does not address a page, or the change is for another kind of page.
    #[error("the change is not one of this kind of page")]
    WrongKind,
}

impl From<Truncated> for Fault {
    fn from(_: Truncated) -> Self {
        Fault::Record("it ends too early")
    }
}

/// A page could not be reconstructed. The message names LSN, resource manager, info and page.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("cannot replay record ending at {lsn} ({rmgr} info {info:#04x}) on {page}: {fault}")]
pub struct RedoError {
    /// End of the record.
    pub lsn: Lsn,
    /// Resource manager, or the kind of the change if it is not a PostgreSQL record.
    pub rmgr: RmgrName,
    /// The whole info byte, 0 if it could not be read.
    pub info: u8,
    /// The page, for people.
    pub page: PageName,
    /// What is wrong.
    pub fault: Fault,
}

/// A page for messages: a relation block or a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PageName {
    /// Block of a relation fork.
    Block(crate::PageTag),
    /// Whatever the key addresses.
    Key(pageserver_api::key::Key),
    /// A number of a block reference.
    Reference(u8),
}

impl fmt::Display for PageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageName::Block(tag) => write!(
                f,
                "block {} of fork {} of {}/{}/{}",
                tag.blkno, tag.forknum, tag.spcnode, tag.dbnode, tag.relnode
            ),
            PageName::Key(key) => write!(f, "key {key}"),
            PageName::Reference(id) => write!(f, "block reference {id}"),
        }
    }
}

/// Name of a resource manager, or its number if it has none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RmgrName {
    /// A number of `rmgrlist.h`.
    Id(u8),
    /// A change that is not a PostgreSQL record.
    Special(&'static str),
    /// The record could not be read so far.
    Unreadable,
}

impl fmt::Display for RmgrName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RmgrName::Id(id) => match rmgr_name(*id) {
                Some(name) => f.write_str(name),
                None => write!(f, "resource manager {id}"),
            },
            RmgrName::Special(name) => f.write_str(name),
            RmgrName::Unreadable => f.write_str("unreadable record"),
        }
    }
}
