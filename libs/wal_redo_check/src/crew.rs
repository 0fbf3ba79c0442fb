//! The threads that own the pages, and the way work gets to them.

use std::mem;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::relfile::RelFileNode;
use utils::lsn::Lsn;
use wal_redo::PageTag;

use crate::Options;
use crate::pages::owner;
use crate::report::Report;
use crate::samples::Samples;
use crate::worker::{CheckImages, Replay, Worker};

/// Items of work sent to a thread at a time.
const BATCH_LEN: usize = 256;
/// A batch is sent, too, when its records have as many bytes.
const BATCH_BYTES: usize = 256 << 10;
/// Batches of work that may wait for one thread.
const BATCHES_WAITING_MAX: usize = 16;

/// Work for one thread.
#[derive(Default)]
struct Batch {
    work: Vec<Work>,
    /// Bytes of small records, one after the other.
    records: Vec<u8>,
}

/// What a thread has to do, in the order of the WAL.
enum Work {
    /// Replay one block of a record, by its place among the record's blocks.
    Replay {
        end: Lsn,
        /// Range of [`Batch::records`].
        record: Range<usize>,
        block: usize,
    },
    Files(FileChange),
}

/// A change of pages that a record does not name as its blocks.
#[derive(Clone, Copy)]
pub enum FileChange {
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

/// Everybody who replays.
pub enum Crew {
    /// The reading thread itself: least work in all.
    Alone(Box<Worker>),
    /// Threads between which the pages are shared out.
    Threads(Vec<Lane>),
}

/// One thread and what is to be sent to it next.
pub struct Lane {
    sender: SyncSender<Batch>,
    batch: Batch,
    thread: JoinHandle<Result<(Report, Samples)>>,
}

impl Crew {
    /// `rmgr` restricts what is compared.
    pub fn new(options: &Options, rmgr: Option<u8>) -> Self {
        match options.threads {
            0 | 1 => Crew::Alone(Box::new(Worker::new(options, rmgr))),
            threads => Crew::Threads(
                (0..threads)
                    .map(|_| Lane::new(Worker::new(options, rmgr)))
                    .collect(),
            ),
        }
    }

    /// Replays all blocks of a record, which `raw` is the form of in the WAL.
    pub fn replay(&mut self, end: Lsn, raw: &[u8], record: &mut RecordRef<'_>) -> Result<()> {
        match self {
            Crew::Alone(worker) => {
                let images = CheckImages::take_from(record);
                for index in 0..record.blocks.len() {
                    worker.replay(&Replay {
                        end,
                        raw,
                        record,
                        index,
                        image: images.of(index),
                    })?;
                }
                Ok(())
            }
            Crew::Threads(lanes) => {
                for (block, reference) in record.blocks.iter().enumerate() {
                    let owner = owner(&PageTag::from(reference), lanes.len());
                    lanes[owner].replay(end, raw, block)?;
                }
                Ok(())
            }
        }
    }

    /// Makes changes that wait, if the reading thread itself replays. Other threads do so when they finish.
    pub fn catch_up(&mut self) -> Result<()> {
        match self {
            Crew::Alone(worker) => Ok(worker.catch_up()?),
            Crew::Threads(_) => Ok(()),
        }
    }

    /// Has the owner of the page `tag` make a change.
    pub fn change_page(&mut self, tag: &PageTag, change: FileChange) -> Result<()> {
        match self {
            Crew::Alone(worker) => Ok(worker.change_files(change)?),
            Crew::Threads(lanes) => {
                let owner = owner(tag, lanes.len());
                lanes[owner].send(Work::Files(change))
            }
        }
    }

    /// Has everybody make a change.
    pub fn change_all(&mut self, change: FileChange) -> Result<()> {
        match self {
            Crew::Alone(worker) => Ok(worker.change_files(change)?),
            Crew::Threads(lanes) => lanes
                .iter_mut()
                .try_for_each(|lane| lane.send(Work::Files(change))),
        }
    }

    /// Ends the work; gives what each has found.
    pub fn finish(self) -> Result<Vec<(Report, Samples)>> {
        const WHAT: &str = "cannot read pages to compare with";
        match self {
            Crew::Alone(worker) => Ok(vec![worker.finish().context(WHAT)?]),
            Crew::Threads(lanes) => {
                // All get their last work before the first is waited for.
                let threads: Vec<_> = lanes.into_iter().map(Lane::close).collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().map_err(|_| anyhow!("a replay thread panicked"))?)
                    .collect::<Result<_>>()
                    .context(WHAT)
            }
        }
    }
}

impl Lane {
    fn new(worker: Worker) -> Self {
        let (sender, receiver) = sync_channel(BATCHES_WAITING_MAX);
        Lane {
            sender,
            batch: Batch::default(),
            thread: thread::spawn(move || run(worker, &receiver)),
        }
    }

    fn replay(&mut self, end: Lsn, raw: &[u8], block: usize) -> Result<()> {
        let records = &mut self.batch.records;
        let start = records.len();
        // A copy costs less than counting references from two threads.
        records.extend_from_slice(raw);
        let record = start..records.len();
        self.send(Work::Replay { end, record, block })
    }

    fn send(&mut self, work: Work) -> Result<()> {
        self.batch.work.push(work);
        if self.batch.work.len() >= BATCH_LEN || self.batch.records.len() >= BATCH_BYTES {
            let next = Batch {
                work: Vec::with_capacity(BATCH_LEN),
                records: Vec::with_capacity(self.batch.records.len()),
            };
            self.sender
                .send(mem::replace(&mut self.batch, next))
                .map_err(|_| anyhow!("a replay thread is gone"))?;
        }
        Ok(())
    }

    /// Sends what is left and lets the thread finish.
    fn close(self) -> JoinHandle<Result<(Report, Samples)>> {
        // A thread that is gone has failed: joining it tells why.
        let _ = self.sender.send(self.batch);
        self.thread
    }
}

/// What a thread does.
fn run(mut worker: Worker, receiver: &Receiver<Batch>) -> Result<(Report, Samples)> {
    for Batch { work, records } in receiver {
        for work in work {
            match work {
                Work::Files(change) => worker.change_files(change)?,
                Work::Replay { end, record, block } => {
                    let raw = &records[record];
                    let mut record = RecordRef::parse(raw).expect("the router has parsed it");
                    let images = CheckImages::take_from(&mut record);
                    worker.replay(&Replay {
                        end,
                        raw,
                        record: &record,
                        index: block,
                        image: images.of(block),
                    })?;
                }
            }
        }
    }
    Ok(worker.finish()?)
}
