//! From records to what has to be done to pages, SLRUs and files.

use std::path::Path;

use anyhow::{Context, Result};
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::bodies::{
    DbaseCreateFileCopy, DbaseDrop, SMGR_TRUNCATE_HEAP, SMGR_TRUNCATE_VM, SmgrTruncate,
};
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::relfile::{MAIN_FORKNUM, VISIBILITYMAP_FORKNUM};
use postgres_ffi::v15::rmgr::{
    RM_DBASE_ID, RM_HEAP_ID, RM_HEAP2_ID, RM_SMGR_ID, RM_XACT_ID, XLOG_DBASE_CREATE_FILE_COPY,
    XLOG_DBASE_DROP, XLOG_SMGR_TRUNCATE,
};
use postgres_ffi::v15::xact::XactEnd;
use utils::lsn::Lsn;
use wal_redo::PageTag;
use wal_redo::visibility::{HEAP_PAGES_PER_PAGE, cleared_by, map_block};

use crate::Options;
use crate::crew::{Crew, FileChange};
use crate::report::Report;
use crate::samples::Samples;
use crate::slru::Slrus;

pub struct Router {
    crew: Crew,
    report: Report,
    /// Kept if there is a base directory to start from.
    slrus: Option<Slrus>,
}

impl Router {
    pub fn new(crew: Crew, options: &Options) -> Self {
        Router {
            crew,
            report: Report::default(),
            slrus: options.base.as_deref().map(Slrus::new),
        }
    }

    /// Makes the changes that were put off.
    pub fn catch_up(&mut self) -> Result<()> {
        self.crew.catch_up()?;
        self.slrus.as_mut().map_or(Ok(()), Slrus::catch_up)
    }

    /// Lets everybody finish and compare with a data directory, if there is one; gives all findings.
    pub fn finish(mut self, compare: Option<&Path>) -> Result<(Report, Samples)> {
        if let (Some(root), Some(slrus)) = (compare, &self.slrus) {
            slrus
                .compare(root, &mut self.report)
                .context("cannot read pages to compare with")?;
        }
        let mut samples = Samples::default();
        for (found, kept) in self.crew.finish()? {
            self.report.merge(found);
            samples.merge(kept);
        }
        Ok((self.report, samples))
    }

    /// Segments of WAL are missing: no page is known any more.
    pub fn forget_all(&mut self) -> Result<()> {
        self.slrus = None;
        self.crew.change_all(FileChange::ForgetAll)
    }

    /// Routes one record.
    pub fn record(&mut self, end: Lsn, record: &[u8]) -> Result<()> {
        let mut parsed = RecordRef::empty();
        if let Err(error) = parsed.read(record) {
            self.report.unreadable(end, &error.to_string());
            return Ok(());
        }
        self.report.count_record(&parsed, record.len(), end);
        // Bits are cleared before the record's own pages are looked at.
        if matches!(parsed.header.rmid, RM_HEAP_ID | RM_HEAP2_ID) {
            self.clear_visibility(&parsed)?;
        }
        self.crew
            .replay(end, record, &mut parsed)
            .with_context(|| format!("record ending at {end}"))?;
        if let Some(slrus) = &mut self.slrus {
            slrus
                .record(end, &parsed, record)
                .with_context(|| format!("record ending at {end}"))?;
        }
        self.files(end, &parsed)
            .with_context(|| format!("record ending at {end}"))
    }

    fn clear_visibility(&mut self, record: &RecordRef<'_>) -> Result<()> {
        let (Some(cleared), Some(heap)) = (cleared_by(record), record.block(0)) else {
            return Ok(());
        };
        for heap_block in [cleared.new_heap_block, cleared.old_heap_block]
            .into_iter()
            .flatten()
        {
            let tag = PageTag {
                forknum: VISIBILITYMAP_FORKNUM,
                blkno: map_block(heap_block),
                ..PageTag::from(heap)
            };
            let change = FileChange::ClearVisibility {
                tag,
                heap_block,
                flags: cleared.flags,
            };
            self.crew.change_page(&tag, change)?;
        }
        Ok(())
    }

    /// Changes of files that have no block references.
    fn files(&mut self, end: Lsn, record: &RecordRef<'_>) -> Result<()> {
        let (rmid, info) = (record.header.rmid, record.rmgr_info());
        match (rmid, info) {
            (RM_SMGR_ID, XLOG_SMGR_TRUNCATE) => self.truncate(SmgrTruncate::decode(record.main_data)?),
            (RM_DBASE_ID, XLOG_DBASE_DROP) => {
                let drop = DbaseDrop::parse(record.main_data)?;
                for spcnode in drop.tablespaces {
                    self.crew.change_all(FileChange::DropDatabase {
                        spcnode,
                        dbnode: drop.database,
                    })?;
                }
                Ok(())
            }
            (RM_DBASE_ID, XLOG_DBASE_CREATE_FILE_COPY) => {
                let copy = DbaseCreateFileCopy::decode(record.main_data)?;
                self.crew.change_all(FileChange::CopyDatabase {
                    from: (copy.source_tablespace, copy.source_database),
                    to: (copy.tablespace, copy.database),
                })
            }
            (RM_XACT_ID, _) => self.end_transaction(end, record),
            _ => Ok(()),
        }
    }

    fn end_transaction(&mut self, end: Lsn, record: &RecordRef<'_>) -> Result<()> {
        let Some(outcome) = XactEnd::outcome_of(record.header.info) else {
            return Ok(());
        };
        let xact = XactEnd::parse(outcome, record.header.info, record.main_data)?;
        if let Some(slrus) = &mut self.slrus {
            slrus.end_transaction(end, record.header.xid, &xact)?;
        }
        for dropped in xact.dropped {
            self.crew.change_all(FileChange::DropRelation(dropped))?;
        }
        Ok(())
    }

    fn truncate(&mut self, truncate: SmgrTruncate) -> Result<()> {
        let SmgrTruncate {
            blocks,
            relation,
            flags,
        } = truncate;
        if flags & SMGR_TRUNCATE_HEAP != 0 {
            self.crew.change_all(FileChange::Truncate {
                relation,
                forknum: MAIN_FORKNUM,
                blocks,
            })?;
        }
        if flags & SMGR_TRUNCATE_VM != 0 {
            let last = map_block(blocks);
            let tag = PageTag {
                spcnode: relation.spcnode,
                dbnode: relation.dbnode,
                relnode: relation.relnode,
                forknum: VISIBILITYMAP_FORKNUM,
                blkno: last,
            };
            let partly_used = !blocks.is_multiple_of(HEAP_PAGES_PER_PAGE);
            if partly_used {
                self.crew.change_page(
                    &tag,
                    FileChange::TruncateVisibility {
                        tag,
                        heap_blocks: blocks,
                    },
                )?;
            }
            self.crew.change_all(FileChange::Truncate {
                relation,
                forknum: VISIBILITYMAP_FORKNUM,
                blocks: last + u32::from(partly_used),
            })?;
        }
        Ok(())
    }
}
