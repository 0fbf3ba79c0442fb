//! From records to work for the threads that own the pages.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::{io, mem};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::bodies::{
    DbaseCreateFileCopy, DbaseDrop, SMGR_TRUNCATE_HEAP, SMGR_TRUNCATE_VM, SmgrTruncate,
};
use postgres_ffi::v15::decode::decode_record;
use postgres_ffi::v15::heap::{visibility_map_clear, visibility_map_page};
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::relfile::{MAIN_FORKNUM, RelFileNode, VISIBILITYMAP_FORKNUM};
use postgres_ffi::v15::rmgr::{
    RM_DBASE_ID, RM_HEAP_ID, RM_HEAP2_ID, RM_SMGR_ID, RM_XACT_ID, XLOG_DBASE_CREATE_FILE_COPY,
    XLOG_DBASE_DROP, XLOG_SMGR_TRUNCATE,
};
use postgres_ffi::v15::xact::XactEnd;
use utils::lsn::Lsn;
use wal_redo::PageTag;

use crate::Options;
use crate::report::Report;
use crate::slru::Slrus;

/// Items of work sent to a worker at a time.
const BATCH_LEN: usize = 256;

/// What a worker has to do, in the order of the WAL.
#[derive(Clone)]
pub enum Work {
    /// Replay one block of a record.
    Replay {
        end: Lsn,
        record: Bytes,
        block: u8,
    },
    /// Clear bits of a visibility map page.
    ClearVisibility {
        tag: PageTag,
        heap_block: u32,
        flags: u8,
    },
    /// Clear the bits of heap pages that were cut off; the page of the map may not exist.
    TruncateVisibility {
        tag: PageTag,
        heap_blocks: u32,
    },
    /// Cut a fork short.
    Truncate {
        relation: RelFileNode,
        forknum: u8,
        blocks: u32,
    },
    DropRelation(RelFileNode),
    DropDatabase {
        spcnode: u32,
        dbnode: u32,
    },
    CopyDatabase {
        from: (u32, u32),
        to: (u32, u32),
    },
    /// Segments of WAL are missing: no page is known any more.
    ForgetAll,
}

pub struct Router {
    workers: Vec<SyncSender<Vec<Work>>>,
    batches: Vec<Vec<Work>>,
    report: Report,
    /// Kept if there is a base directory to start from.
    slrus: Option<Slrus>,
}

impl Router {
    pub fn new(workers: Vec<SyncSender<Vec<Work>>>, options: &Options) -> Self {
        Router {
            batches: workers.iter().map(|_| Vec::with_capacity(BATCH_LEN)).collect(),
            workers,
            report: Report::default(),
            slrus: options.base.as_deref().map(Slrus::new),
        }
    }

    /// Sends what is left and lets the workers finish.
    pub fn finish(mut self, compare: Option<&Path>) -> io::Result<Report> {
        for worker in 0..self.workers.len() {
            // A worker that is gone has panicked; joining it tells.
            let _ = self.send_batch(worker);
        }
        if let (Some(root), Some(slrus)) = (compare, &self.slrus) {
            slrus.compare(root, &mut self.report)?;
        }
        Ok(self.report)
    }

    fn send_batch(&mut self, worker: usize) -> Result<()> {
        let batch = mem::replace(&mut self.batches[worker], Vec::with_capacity(BATCH_LEN));
        self.workers[worker]
            .send(batch)
            .map_err(|_| anyhow!("a replay thread is gone"))
    }

    fn send(&mut self, worker: usize, work: Work) -> Result<()> {
        self.batches[worker].push(work);
        if self.batches[worker].len() >= BATCH_LEN {
            self.send_batch(worker)?;
        }
        Ok(())
    }

    fn send_to_owner(&mut self, tag: &PageTag, work: Work) -> Result<()> {
        self.send(owner(tag, self.workers.len()), work)
    }

    fn send_to_all(&mut self, work: Work) -> Result<()> {
        for worker in 0..self.workers.len() {
            self.send(worker, work.clone())?;
        }
        Ok(())
    }

    pub fn forget_all(&mut self) -> Result<()> {
        self.slrus = None;
        self.send_to_all(Work::ForgetAll)
    }

    /// Routes one record.
    pub fn record(&mut self, end: Lsn, record: Bytes) -> Result<()> {
        let parsed = match RecordRef::parse(&record) {
            Ok(parsed) => parsed,
            Err(error) => {
                self.report.unreadable(end, &error.to_string());
                return Ok(());
            }
        };
        self.report.count_record(&parsed, record.len(), end);
        // Bits are cleared before the record's own pages are looked at.
        if matches!(parsed.header.rmid, RM_HEAP_ID | RM_HEAP2_ID) {
            self.clear_visibility(&record, end)?;
        }
        for block in &parsed.blocks {
            let tag = PageTag::from(block);
            let work = Work::Replay {
                end,
                record: record.clone(),
                block: block.id,
            };
            self.send_to_owner(&tag, work)?;
        }
        if let Some(slrus) = &mut self.slrus {
            slrus
                .record(end, &parsed, &record)
                .with_context(|| format!("record ending at {end}"))?;
        }
        self.files(&parsed)
            .with_context(|| format!("record ending at {end}"))
    }

    fn clear_visibility(&mut self, record: &Bytes, end: Lsn) -> Result<()> {
        let decoded = decode_record(record.clone())?;
        let cleared = visibility_map_clear(&decoded).with_context(|| format!("record ending at {end}"))?;
        let Some(cleared) = cleared else {
            return Ok(());
        };
        for heap_block in [cleared.new_heap_block, cleared.old_heap_block]
            .into_iter()
            .flatten()
        {
            let tag = PageTag {
                spcnode: cleared.relation.spcnode,
                dbnode: cleared.relation.dbnode,
                relnode: cleared.relation.relnode,
                forknum: VISIBILITYMAP_FORKNUM,
                blkno: visibility_map_page(heap_block),
            };
            let work = Work::ClearVisibility {
                tag,
                heap_block,
                flags: cleared.flags,
            };
            self.send_to_owner(&tag, work)?;
        }
        Ok(())
    }

    /// Changes of files that have no block references.
    fn files(&mut self, record: &RecordRef<'_>) -> Result<()> {
        let (rmid, info) = (record.header.rmid, record.rmgr_info());
        match (rmid, info) {
            (RM_SMGR_ID, XLOG_SMGR_TRUNCATE) => self.truncate(SmgrTruncate::decode(record.main_data)?),
            (RM_DBASE_ID, XLOG_DBASE_DROP) => {
                let drop = DbaseDrop::parse(record.main_data)?;
                for spcnode in drop.tablespaces {
                    self.send_to_all(Work::DropDatabase {
                        spcnode,
                        dbnode: drop.database,
                    })?;
                }
                Ok(())
            }
            (RM_DBASE_ID, XLOG_DBASE_CREATE_FILE_COPY) => {
                let copy = DbaseCreateFileCopy::decode(record.main_data)?;
                self.send_to_all(Work::CopyDatabase {
                    from: (copy.source_tablespace, copy.source_database),
                    to: (copy.tablespace, copy.database),
                })
            }
            (RM_XACT_ID, _) => {
                let Some(outcome) = XactEnd::outcome_of(info) else {
                    return Ok(());
                };
                for dropped in XactEnd::parse(outcome, info, record.main_data)?.dropped {
                    self.send_to_all(Work::DropRelation(dropped))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn truncate(&mut self, truncate: SmgrTruncate) -> Result<()> {
        let SmgrTruncate {
            blocks,
            relation,
            flags,
        } = truncate;
        if flags & SMGR_TRUNCATE_HEAP != 0 {
            self.send_to_all(Work::Truncate {
                relation,
                forknum: MAIN_FORKNUM,
                blocks,
            })?;
        }
        if flags & SMGR_TRUNCATE_VM != 0 {
            let last = visibility_map_page(blocks);
            let tag = PageTag {
                spcnode: relation.spcnode,
                dbnode: relation.dbnode,
                relnode: relation.relnode,
                forknum: VISIBILITYMAP_FORKNUM,
                blkno: last,
            };
            let partly_used = !blocks.is_multiple_of(postgres_ffi::v15::heap::HEAPBLOCKS_PER_PAGE);
            if partly_used {
                self.send_to_owner(
                    &tag,
                    Work::TruncateVisibility {
                        tag,
                        heap_blocks: blocks,
                    },
                )?;
            }
            self.send_to_all(Work::Truncate {
                relation,
                forknum: VISIBILITYMAP_FORKNUM,
                blocks: last + u32::from(partly_used),
            })?;
        }
        Ok(())
    }
}

/// The worker that owns a page. The database does not count: a copied database's pages stay with their worker.
pub fn owner(tag: &PageTag, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    (tag.relnode, tag.forknum, tag.blkno).hash(&mut hasher);
    (hasher.finish() % workers as u64) as usize
}
