//! Commit status and multixacts: their pages have no images in the WAL, so they are replayed from the base directory's
//! state on and compared with the files at the end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;
use pageserver_api::key::slru_block_key;
use pageserver_api::reltag::SlruKind;
use pageserver_api::value::WalRecord;
use postgres_ffi::v15::bodies::{MultiXactCreate, zero_page};
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::rmgr::{
    CLOG_ZEROPAGE, RM_CLOG_ID, RM_MULTIXACT_ID, XLOG_MULTIXACT_CREATE_ID, XLOG_MULTIXACT_ZERO_MEM_PAGE,
    XLOG_MULTIXACT_ZERO_OFF_PAGE,
};
use postgres_ffi::v15::slru::{
    CLOG_XACTS_PER_PAGE, MULTIXACT_MEMBERS_PER_PAGE, MULTIXACT_OFFSETS_PER_PAGE, SLRU_PAGES_PER_SEGMENT,
};
use postgres_ffi::v15::xact::{Outcome, XactEnd};
use utils::lsn::Lsn;
use wal_redo::{PAGE_SIZE, reconstruct};

use crate::report::Report;

/// Changes of a page that may wait. Replaying many at a time is what redo is made for.
const WAITING_MAX: usize = 128;
/// Ends of transactions in one of them.
const XIDS_MAX: usize = 1024;

/// Pages changed so far.
pub struct Slrus {
    /// By kind and page number.
    pages: BTreeMap<(SlruKind, u32), SlruPage>,
    base: PathBuf,
}

/// A page, and the changes it has yet to get.
#[derive(Default)]
struct SlruPage {
    /// Content before those changes; `None` if it is still that of the base directory.
    content: Option<Bytes>,
    waiting: Vec<(Lsn, WalRecord)>,
}

/// Reads a page of an SLRU's segment file; `None` if the file does not reach so far.
fn read_page(root: &Path, kind: SlruKind, page: u32) -> io::Result<Option<Bytes>> {
    let name = format!("{:04X}", page / SLRU_PAGES_PER_SEGMENT);
    let file = match fs::read(root.join(kind.directory()).join(name)) {
        Ok(file) => Bytes::from(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let start = (page % SLRU_PAGES_PER_SEGMENT) as usize * PAGE_SIZE;
    Ok((file.len() >= start + PAGE_SIZE).then(|| file.slice(start..start + PAGE_SIZE)))
}

impl Slrus {
    /// The state of a data directory that was shut down.
    pub fn new(base: &Path) -> Self {
        Slrus {
            pages: BTreeMap::new(),
            base: base.to_owned(),
        }
    }

    /// Replays what a record says of multixacts and of pages begun; for ends of transactions see
    /// [`Self::end_transaction`].
    pub fn record(&mut self, end: Lsn, record: &RecordRef<'_>, raw: &[u8]) -> Result<()> {
        let main = record.main_data;
        match (record.header.rmid, record.rmgr_info()) {
            (RM_CLOG_ID, CLOG_ZEROPAGE) => self.zero(SlruKind::Clog, zero_page(main)?),
            (RM_MULTIXACT_ID, XLOG_MULTIXACT_ZERO_OFF_PAGE) => {
                self.zero(SlruKind::MultiXactOffsets, zero_page(main)?);
            }
            (RM_MULTIXACT_ID, XLOG_MULTIXACT_ZERO_MEM_PAGE) => {
                self.zero(SlruKind::MultiXactMembers, zero_page(main)?);
            }
            (RM_MULTIXACT_ID, XLOG_MULTIXACT_CREATE_ID) => {
                self.create_multixact(end, &MultiXactCreate::parse(main)?, raw)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn zero(&mut self, kind: SlruKind, page: u32) {
        let zeros = SlruPage {
            content: Some(Bytes::from(vec![0; PAGE_SIZE])),
            waiting: Vec::new(),
        };
        self.pages.insert((kind, page), zeros);
    }

    fn apply(&mut self, kind: SlruKind, page: u32, end: Lsn, change: WalRecord) -> Result<()> {
        let state = self.pages.entry((kind, page)).or_default();
        state.waiting.push((end, change));
        if state.waiting.len() >= WAITING_MAX {
            state.catch_up(&self.base, kind, page)?;
        }
        Ok(())
    }

    /// Applies the changes that wait.
    pub fn catch_up(&mut self) -> Result<()> {
        self.pages
            .iter_mut()
            .try_for_each(|((kind, page), state)| state.catch_up(&self.base, *kind, *page))
    }

    fn create_multixact(&mut self, end: Lsn, created: &MultiXactCreate, raw: &[u8]) -> Result<()> {
        // Number 0 is no multixact: the one after the highest is 1.
        let next = created.multi.wrapping_add(1).max(1);
        let mut pages = vec![
            created.multi / MULTIXACT_OFFSETS_PER_PAGE,
            next / MULTIXACT_OFFSETS_PER_PAGE,
        ];
        pages.dedup();
        for page in pages {
            let change = WalRecord::Postgres {
                will_init: false,
                record: Bytes::copy_from_slice(raw),
            };
            self.apply(SlruKind::MultiXactOffsets, page, end, change)?;
        }
        let members: Vec<_> = created
            .members
            .iter()
            .map(|member| (member.xid, member.status))
            .collect();
        let page_of = |index: usize| created.offset.wrapping_add(index as u32) / MULTIXACT_MEMBERS_PER_PAGE;
        let mut pages: Vec<u32> = (0..members.len()).map(page_of).collect();
        pages.dedup();
        for page in pages {
            let change = WalRecord::MultixactMembersCreate {
                offset: created.offset,
                members: members.clone(),
            };
            self.apply(SlruKind::MultiXactMembers, page, end, change)?;
        }
        Ok(())
    }

    /// Replays the end of a transaction. `xid` is that in the record's header.
    pub fn end_transaction(&mut self, end: Lsn, xid: u32, xact: &XactEnd) -> Result<()> {
        let own = Some(xact.twophase_xid.unwrap_or(xid)).filter(|xid| *xid != 0);
        for xid in xact.subxacts.iter().copied().chain(own) {
            let page = xid / CLOG_XACTS_PER_PAGE;
            let state = self.pages.entry((SlruKind::Clog, page)).or_default();
            if !state.join(end, xid, xact) {
                let xids = vec![xid];
                let change = match xact.outcome {
                    Outcome::Committed => WalRecord::ClogSetCommitted {
                        xids,
                        timestamp: xact.time,
                    },
                    Outcome::Aborted => WalRecord::ClogSetAborted { xids },
                };
                self.apply(SlruKind::Clog, page, end, change)?;
            }
        }
        Ok(())
    }

    /// Compares all changed pages with a data directory, after [`Self::catch_up`]. Segments that were removed since
    /// do not count.
    pub fn compare(&self, root: &Path, report: &mut Report) -> io::Result<()> {
        for ((kind, page), state) in &self.pages {
            // A page whose changes failed was not made: that was reported.
            let Some(ours) = &state.content else {
                continue;
            };
            if let Some(theirs) = read_page(root, *kind, *page)? {
                let equal = ours[..PAGE_SIZE] == theirs[..];
                report.slru_page_at_end(kind.directory(), *page, equal);
            }
        }
        Ok(())
    }
}

impl SlruPage {
    /// Adds the end of a transaction to the change that waits last, if that is one of the same kind: in which order they are
    /// set does not matter. Gives whether it is.
    fn join(&mut self, end: Lsn, xid: u32, xact: &XactEnd) -> bool {
        let Some((lsn, change)) = self.waiting.last_mut() else {
            return false;
        };
        let xids = match (change, xact.outcome) {
            (WalRecord::ClogSetCommitted { xids, timestamp }, Outcome::Committed)
                if xids.len() < XIDS_MAX =>
            {
                *timestamp = xact.time.max(*timestamp);
                xids
            }
            (WalRecord::ClogSetAborted { xids }, Outcome::Aborted) if xids.len() < XIDS_MAX => xids,
            _ => return false,
        };
        xids.push(xid);
        *lsn = end;
        true
    }

    fn catch_up(&mut self, base: &Path, kind: SlruKind, page: u32) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let before = match self.content.take() {
            Some(content) => Some(content),
            None => read_page(base, kind, page)?,
        };
        let key = slru_block_key(kind, page / SLRU_PAGES_PER_SEGMENT, page % SLRU_PAGES_PER_SEGMENT);
        let after = reconstruct(key, before, &self.waiting)
            .with_context(|| format!("page {page} of {}", kind.directory()))?;
        self.content = Some(after);
        self.waiting.clear();
        Ok(())
    }
}
