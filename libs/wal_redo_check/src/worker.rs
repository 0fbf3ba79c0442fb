//! Replays records on the pages of one thread and compares them with their images.

mod at_end;
mod turns;

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use postgres_ffi::v15::image;
use postgres_ffi::v15::record_ref::{BlockRef, ImageRef, RecordRef};
use smallvec::SmallVec;
use utils::lsn::Lsn;
use wal_redo::page::Page;
use wal_redo::{PAGE_SIZE, PageBuf, PageTag, RedoError, apply_to_block, visibility};

use crate::Options;
use crate::compare::difference;
use crate::crew::FileChange;
use crate::deferred::Deferred;
use crate::mask::Kind;
use crate::pages::Pages;
use crate::report::{Compared, Report};
use crate::samples::Samples;

/// One block of a record to be replayed.
pub struct Replay<'r, 'w> {
    /// End of the record.
    pub end: Lsn,
    /// The record as in the WAL, with all images.
    pub raw: &'r [u8],
    /// The record without the images that are there for comparing only.
    pub record: &'r RecordRef<'w>,
    /// Which of the record's blocks, by its place among them.
    pub index: usize,
    /// What the block's page has to be afterwards.
    pub image: Option<ImageRef<'w>>,
}

impl<'w> Replay<'_, 'w> {
    /// The block to be replayed.
    #[inline]
    fn block(&self) -> &BlockRef<'w> {
        &self.record.blocks[self.index]
    }
}

/// Images for comparing, taken out of a record: redo gets to see none that it need not restore.
#[derive(Default)]
pub struct CheckImages<'a>(SmallVec<[Option<ImageRef<'a>>; 2]>);

impl<'a> CheckImages<'a> {
    /// Leaves the record without them.
    #[inline]
    pub fn take_from(record: &mut RecordRef<'a>) -> Self {
        match record.blocks.iter().any(|block| block.image.is_some()) {
            true => Self::take_some_from(record),
            false => CheckImages::default(),
        }
    }

    #[inline(never)]
    fn take_some_from(record: &mut RecordRef<'a>) -> Self {
        let blocks = record.blocks.iter_mut();
        CheckImages(
            blocks
                .map(|block| block.image.take_if(|image| !image.apply))
                .collect(),
        )
    }

    /// That of one of the record's blocks, by its place among them.
    pub fn of(&self, block: usize) -> Option<ImageRef<'a>> {
        self.0.get(block).copied().flatten()
    }
}

pub struct Worker {
    pages: Pages,
    /// Changes that wait, by the entries of their pages.
    deferred: Deferred,
    compare: Option<PathBuf>,
    /// Resource manager whose pages are compared; all if `None`.
    only: Option<u8>,
    /// Visibility map pages whose image lacks their content: when PostgreSQL copies a database page by page, it
    /// takes all of such a page for the unused space between the page's pointers.
    emptied_maps: HashSet<PageTag>,
    report: Report,
    samples: Option<Samples>,
}

impl Worker {
    pub fn new(options: &Options, only: Option<u8>) -> Self {
        Worker {
            pages: Pages::new(options.base.as_deref()),
            deferred: Deferred::default(),
            compare: options.compare.clone(),
            only,
            emptied_maps: HashSet::new(),
            report: Report::default(),
            samples: options.samples.as_ref().map(|_| Samples::default()),
        }
    }

    /// Changes pages other than as a block of a record.
    pub fn change_files(&mut self, change: FileChange) -> io::Result<()> {
        // Changes of the visibility map never wait.
        if !matches!(change, FileChange::ClearVisibility { .. }) {
            self.catch_up()?;
        }
        match change {
            FileChange::ClearVisibility {
                tag,
                heap_block,
                flags,
            } => {
                if let Some(page) = self.pages.get(&tag)? {
                    visibility::clear(&mut Page::new(page), heap_block, flags);
                }
            }
            FileChange::TruncateVisibility { tag, heap_blocks } => {
                if let Some(page) = self.pages.get(&tag)? {
                    visibility::truncate(&mut Page::new(page), heap_blocks);
                }
            }
            FileChange::Truncate {
                relation,
                forknum,
                blocks,
            } => self.pages.truncate(relation, forknum, blocks),
            FileChange::DropRelation(relation) => self.pages.drop_relation(relation),
            FileChange::DropDatabase { spcnode, dbnode } => self.pages.drop_database(spcnode, dbnode),
            FileChange::CopyDatabase { from, to } => self.pages.copy_database(from, to)?,
            FileChange::ForgetAll => self.pages.forget_all(),
        }
        Ok(())
    }

    /// Replays one block of a record at once and compares it with its image, if there is one. `entry` is that of its page,
    /// if there is one.
    #[inline]
    fn replay_now(&mut self, replay: &Replay<'_, '_>, entry: Option<u32>) -> io::Result<()> {
        let (record, block) = (replay.record, replay.block());
        if replay.image.is_some() || block.image.is_some() {
            return self.replay_with_image(replay);
        }
        let replayed = match entry.and_then(|entry| self.pages.at(entry)) {
            Some(page) => apply_to_block(page, record, block, replay.end)
                .map_or_else(|error| self.fail(replay, &error, None), |()| Ok(true))?,
            None => self.redo(replay, PageTag::from(block), None)?,
        };
        if replayed {
            self.report.count_block(record, Compared::NoImage);
        }
        Ok(())
    }

    /// Replays a block that has an image, to be compared with or to be restored.
    #[inline(never)]
    fn replay_with_image(&mut self, replay: &Replay<'_, '_>) -> io::Result<()> {
        let Replay { end, record, .. } = *replay;
        let block = replay.block();
        let tag = PageTag::from(block);
        let image = match replay.image.map(|image| restored(&image)).transpose() {
            Ok(image) => image,
            Err(error) => {
                self.report.failed(record, end, tag, error.to_string());
                return Ok(());
            }
        };
        let before = self.before_sample(replay, &tag)?;
        if !self.redo(replay, tag, image.as_deref())? {
            return Ok(());
        }
        let Some(image) = image else {
            if tag.forknum == visibility::FORKNUM && block.image.is_some_and(|image| image.hole_length > 0) {
                self.emptied_maps.insert(tag);
            }
            self.report.count_block(record, Compared::Restored);
            return Ok(());
        };
        let equal = self.compare(record, block, end, &image)?;
        if let (true, Some(before), Some(samples)) = (equal, before, &mut self.samples)
            && let Some(after) = self.pages.get(&tag)?
        {
            samples
                .keep(replay.raw, block.id, end, &before, after)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// The page before a change of which a sample is wanted.
    fn before_sample(&mut self, replay: &Replay<'_, '_>, tag: &PageTag) -> io::Result<Option<Box<PageBuf>>> {
        match &self.samples {
            Some(samples) if samples.wants(replay.record, replay.block().id) => {
                let page = self.pages.get(tag)?;
                Ok(Some(page.map_or_else(
                    || Box::new([0; PAGE_SIZE]),
                    |page| Box::new(*page),
                )))
            }
            _ => Ok(None),
        }
    }

    /// Replays the block, or starts its page from its image if nothing is known of it. Gives whether it was replayed.
    #[inline]
    fn redo(&mut self, replay: &Replay<'_, '_>, tag: PageTag, image: Option<&PageBuf>) -> io::Result<bool> {
        let Replay { end, record, .. } = *replay;
        let block = replay.block();
        let page = if block.will_init || block.image.is_some() {
            Some(self.pages.get_or_new(&tag)?)
        } else if tag.forknum == visibility::FORKNUM {
            Some(self.pages.get_or_zeros(&tag)?)
        } else {
            self.pages.get(&tag)?
        };
        let Some(page) = page else {
            if let Some(image) = image {
                self.start_from(tag, image, end)?;
            }
            self.report.count_block(record, Compared::Started);
            return Ok(false);
        };
        match apply_to_block(page, record, block, end) {
            Ok(()) => Ok(true),
            Err(error) => self.fail(replay, &error, image),
        }
    }

    /// A block could not be replayed: its page starts anew from its image, or is forgotten. Gives that it was not replayed.
    #[inline(never)]
    fn fail(
        &mut self,
        replay: &Replay<'_, '_>,
        error: &RedoError,
        image: Option<&PageBuf>,
    ) -> io::Result<bool> {
        let tag = PageTag::from(replay.block());
        self.report
            .failed(replay.record, replay.end, tag, error.to_string());
        match image {
            Some(image) => self.start_from(tag, image, replay.end)?,
            None => self.pages.remove(&tag),
        }
        Ok(false)
    }

    /// Takes the image for the page. Its LSN is that of the change before, as it was made before the record's
    /// place was known.
    #[inline(never)]
    fn start_from(&mut self, tag: PageTag, image: &PageBuf, end: Lsn) -> io::Result<()> {
        let mut page = *image;
        let mut changed = Page::new(&mut page);
        if !changed.is_new() {
            changed.set_lsn(end);
        }
        self.pages.put(tag, &page)
    }

    /// Compares the page with its image; gives whether it is equal.
    fn compare(
        &mut self,
        record: &RecordRef<'_>,
        block: &BlockRef<'_>,
        end: Lsn,
        image: &PageBuf,
    ) -> io::Result<bool> {
        let rmid = record.header.rmid;
        let Some(kind) =
            Kind::of_rmgr(rmid, block.forknum).filter(|_| self.only.is_none_or(|only| only == rmid))
        else {
            self.report.count_block(record, Compared::NoImage);
            return Ok(false);
        };
        let tag = PageTag::from(block);
        if self.emptied_maps.contains(&tag) {
            self.report.count_block(record, Compared::NoImage);
            return Ok(false);
        }
        let Some(page) = self.pages.get(&tag)? else {
            return Ok(false);
        };
        match difference(page, image, kind, tag.blkno) {
            None => {
                self.report.count_block(record, Compared::Equal);
                Ok(true)
            }
            Some(difference) => {
                self.report.differs(record, end, tag, difference);
                self.start_from(tag, image, end)?;
                Ok(false)
            }
        }
    }
}

fn restored(image: &ImageRef<'_>) -> Result<Box<PageBuf>, image::ImageError> {
    let mut page = Box::new([0; PAGE_SIZE]);
    image::restore_ref(image, &mut page)?;
    Ok(page)
}
