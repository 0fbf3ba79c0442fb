//! From records to work for the threads that own the pages.

use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::{io, mem};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::bodies::{
    DbaseCreateFileCopy, DbaseDrop, SMGR_TRUNCATE_HEAP, SMGR_TRUNCATE_VM, SmgrTruncate,
};
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::relfile::{MAIN_FORKNUM, RelFileNode, VISIBILITYMAP_FORKNUM};
use postgres_ffi::v15::rmgr::{
    RM_DBASE_ID, RM_HEAP_ID, RM_HEAP2_ID, RM_SMGR_ID, RM_XACT_ID, XLOG_DBASE_CREATE_FILE_COPY,
    XLOG_DBASE_DROP, XLOG_SMGR_TRUNCATE,
};
use postgres_ffi::v15::xact::XactEnd;
use utils::lsn::Lsn;
use wal_redo::PageTag;
use wal_redo::visibility::{HEAP_PAGES_PER_PAGE, cleared_by, map_block};

use crate::Options;
use crate::pages::owner;
use crate::report::Report;
use crate::slru::Slrus;

/// Items of work sent to a worker at a time.
const BATCH_LEN: usize = 256;
/// Records up to this length in bytes are copied.
const COPIED_LEN_MAX: usize = 1024;

/// A record's bytes. Small ones are copied into the batch: counting references from two threads costs more.
#[derive(Clone)]
pub enum RecordBytes {
    /// Range of [`Batch::records`].
    Copied(Range<usize>),
    Shared(Bytes),
}

/// Work for one worker.
#[derive(Default)]
pub struct Batch {
    pub work: Vec<Work>,
    /// Bytes of small records, one after the other.
    pub records: Vec<u8>,
}

impl Batch {
    /// Bytes of a record of this batch.
    pub fn record<'a>(&'a self, record: &'a RecordBytes) -> &'a [u8] {
        match record {
            RecordBytes::Copied(range) => &self.records[range.clone()],
            RecordBytes::Shared(bytes) => bytes,
        }
    }
}

/// What a worker has to do, in the order of the WAL.
#[derive(Clone)]
pub enum Work {
    /// Replay one block of a record.
    Replay {
        end: Lsn,
        record: RecordBytes,
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
    workers: Vec<SyncSender<Batch>>,
    batches: Vec<Batch>,
    report: Report,
    /// Kept if there is a base directory to start from.
    slrus: Option<Slrus>,
}

impl Router {
    pub fn new(workers: Vec<SyncSender<Batch>>, options: &Options) -> Self {
        Router {
            batches: workers.iter().map(|_| Batch::default()).collect(),
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
        let batch = mem::take(&mut self.batches[worker]);
        self.workers[worker]
            .send(batch)
            .map_err(|_| anyhow!("a replay thread is gone"))
    }

    fn send(&mut self, worker: usize, work: Work) -> Result<()> {
        let batch = &mut self.batches[worker].work;
        batch.push(work);
        if batch.len() >= BATCH_LEN {
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
            self.clear_visibility(&parsed)?;
        }
        for block in &parsed.blocks {
            let worker = owner(&PageTag::from(block), self.workers.len());
            let record = if record.len() <= COPIED_LEN_MAX {
                let records = &mut self.batches[worker].records;
                records.extend_from_slice(&record);
                RecordBytes::Copied(records.len() - record.len()..records.len())
            } else {
                RecordBytes::Shared(record.clone())
            };
            let block = block.id;
            self.send(worker, Work::Replay { end, record, block })?;
        }
        if let Some(slrus) = &mut self.slrus {
            slrus
                .record(end, &parsed, &record)
                .with_context(|| format!("record ending at {end}"))?;
        }
        self.files(&parsed)
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
