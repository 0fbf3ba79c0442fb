//! Replays records on the pages of one thread and compares them with their images.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use postgres_ffi::v15::image;
use postgres_ffi::v15::record_ref::{BlockRef, RecordRef};
use utils::lsn::Lsn;
use wal_redo::page::Page;
use wal_redo::{PAGE_SIZE, PageBuf, PageTag, apply_to_blocks, visibility};

use crate::Options;
use crate::mask::{Kind, mask};
use crate::pages::{DataDir, Pages};
use crate::report::{Compared, Difference, Report};
use crate::route::{Batch, Work};
use crate::samples::Samples;

pub struct Worker {
    pages: Pages,
    compare: Option<PathBuf>,
    /// Resource manager whose pages are compared; all if `None`.
    only: Option<u8>,
    /// Visibility map pages whose image lacks their content: when PostgreSQL copies a database page by page, it
    /// takes all of such a page for the unused space between the page's pointers.
    emptied_maps: HashSet<PageTag>,
    report: Report,
    failure: Option<io::Error>,
    samples: Option<Samples>,
}

impl Worker {
    pub fn new(options: &Options, only: Option<u8>) -> Self {
        Worker {
            pages: Pages::new(options.base.as_deref()),
            compare: options.compare.clone(),
            only,
            emptied_maps: HashSet::new(),
            report: Report::default(),
            failure: None,
            samples: options.samples.as_ref().map(|_| Samples::default()),
        }
    }

    /// Does a batch of work.
    pub fn work(&mut self, batch: &Batch) {
        for work in &batch.work {
            if self.failure.is_some() {
                return;
            }
            if let Err(error) = self.one(work, batch) {
                self.failure = Some(error);
            }
        }
    }

    fn one(&mut self, work: &Work, batch: &Batch) -> io::Result<()> {
        match *work {
            Work::Replay {
                end,
                ref record,
                block,
            } => self.replay(end, batch.record(record), block)?,
            Work::ClearVisibility {
                tag,
                heap_block,
                flags,
            } => {
                if let Some(page) = self.pages.get(&tag)? {
                    visibility::clear(&mut Page::new(page), heap_block, flags);
                }
            }
            Work::TruncateVisibility { tag, heap_blocks } => {
                if let Some(page) = self.pages.get(&tag)? {
                    visibility::truncate(&mut Page::new(page), heap_blocks);
                }
            }
            Work::Truncate {
                relation,
                forknum,
                blocks,
            } => self.pages.truncate(relation, forknum, blocks),
            Work::DropRelation(relation) => self.pages.drop_relation(relation),
            Work::DropDatabase { spcnode, dbnode } => self.pages.drop_database(spcnode, dbnode),
            Work::CopyDatabase { from, to } => self.pages.copy_database(from, to),
            Work::ForgetAll => self.pages.forget_all(),
        }
        Ok(())
    }

    fn replay(&mut self, end: Lsn, raw: &[u8], id: u8) -> io::Result<()> {
        let mut record = RecordRef::parse(raw).expect("the router has parsed it");
        // The image for comparing leaves the record here: redo gets to see no image that it need not restore.
        let mut checked = None;
        for block in &mut record.blocks {
            if let Some(image) = block.image.take_if(|image| !image.apply)
                && block.id == id
            {
                checked = Some(image);
            }
        }
        let block = *record.block(id).expect("the router has found it");
        let tag = PageTag::from(&block);
        let image = match checked.map(|image| restored(&image)).transpose() {
            Ok(image) => image,
            Err(error) => {
                self.report.failed(&record, end, tag, error.to_string());
                return Ok(());
            }
        };
        let before = match &self.samples {
            Some(samples) if samples.wants(&record, id) => {
                let page = self.pages.get(&tag)?;
                Some(page.map_or_else(|| Box::new([0; PAGE_SIZE]), |page| Box::new(*page)))
            }
            _ => None,
        };
        if !self.redo(&record, &block, end, image.as_deref())? {
            return Ok(());
        }
        if let Some(image) = image {
            let equal = self.compare(&record, &block, end, &image)?;
            if let (true, Some(before), Some(samples)) = (equal, before, &mut self.samples)
                && let Some(after) = self.pages.get(&tag)?
            {
                samples
                    .keep(raw, id, end, &before, after)
                    .map_err(io::Error::other)?;
            }
        } else if let Some(image) = &block.image {
            if tag.forknum == visibility::FORKNUM && image.hole_length > 0 {
                self.emptied_maps.insert(tag);
            }
            self.report.count_block(&record, Compared::Restored);
        } else {
            self.report.count_block(&record, Compared::NoImage);
        }
        Ok(())
    }

    /// Replays the block, or starts its page from its image if nothing is known of it. Gives whether it was replayed.
    fn redo(
        &mut self,
        record: &RecordRef<'_>,
        block: &BlockRef<'_>,
        end: Lsn,
        image: Option<&PageBuf>,
    ) -> io::Result<bool> {
        let tag = PageTag::from(block);
        let from_nothing = block.will_init || block.image.is_some() || tag.forknum == visibility::FORKNUM;
        let page = if from_nothing {
            Some(self.pages.get_or_zeros(&tag)?)
        } else {
            self.pages.get(&tag)?
        };
        let Some(page) = page else {
            if let Some(image) = image {
                self.start_from(tag, image, end);
            }
            self.report.count_block(record, Compared::Started);
            return Ok(false);
        };
        if let Err(error) = apply_to_blocks(record, end, [(block.id, page)]) {
            self.report.failed(record, end, tag, error.to_string());
            match image {
                Some(image) => self.start_from(tag, image, end),
                None => self.pages.remove(&tag),
            }
            return Ok(false);
        }
        Ok(true)
    }

    /// Takes the image for the page. Its LSN is that of the change before, as it was made before the record's
    /// place was known.
    fn start_from(&mut self, tag: PageTag, image: &PageBuf, end: Lsn) {
        let mut page = *image;
        let mut changed = Page::new(&mut page);
        if !changed.is_new() {
            changed.set_lsn(end);
        }
        self.pages.put(tag, &page);
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
                self.start_from(tag, image, end);
                Ok(false)
            }
        }
    }

    /// Compares all pages with those of the data directory, if there is one to compare with.
    pub fn finish(self) -> io::Result<(Report, Samples)> {
        let samples = self.samples.unwrap_or_default();
        let mut report = self.report;
        if let Some(error) = self.failure {
            return Err(error);
        }
        let Some(root) = self.compare else {
            return Ok((report, samples));
        };
        let mut final_state = DataDir::new(&root);
        for (tag, page) in self.pages.changed() {
            // The free space map is not in the WAL except where it happens to be.
            if tag.forknum == postgres_ffi::v15::relfile::FSM_FORKNUM {
                continue;
            }
            let Some(theirs) = final_state.page(tag)? else {
                report.missing_at_end(*tag);
                continue;
            };
            let kind = Kind::of_page(&theirs, tag.forknum);
            let ours_has_fewer_bits =
                self.emptied_maps.contains(tag) && visibility_bits_within(page, &theirs);
            // Nothing is under way any more: here the visibility map has to be equal.
            let kind = match kind {
                Kind::VisibilityMap => Kind::WholePage,
                Kind::Sequence => Kind::SequenceInUse,
                other => other,
            };
            let difference = difference(page, &theirs, kind, tag.blkno).filter(|_| !ours_has_fewer_bits);
            match difference {
                None => report.final_pages_equal += 1,
                Some(difference) => report.differs_at_end(*tag, difference),
            }
        }
        Ok((report, samples))
    }
}

fn restored(image: &postgres_ffi::v15::record_ref::ImageRef<'_>) -> Result<Box<PageBuf>, image::ImageError> {
    let mut page = Box::new([0; PAGE_SIZE]);
    image::restore_ref(image, &mut page)?;
    Ok(page)
}

/// First differences of two pages after masking.
fn difference(ours: &PageBuf, theirs: &PageBuf, kind: Kind, blkno: u32) -> Option<Difference> {
    let (mut ours, mut theirs) = (*ours, *theirs);
    if mask(&mut ours, kind, blkno).is_err() || mask(&mut theirs, kind, blkno).is_err() {
        return Some(Difference::corrupt());
    }
    if kind == Kind::VisibilityMap {
        // A backend clears bits of the map before it writes the record that says so: the image of a page may lack
        // bits whose clearing comes later in the WAL. It never has a bit that replay lacks.
        let header = wal_redo::page::HEADER_LEN;
        let equal = ours[..header] == theirs[..header] && visibility_bits_within(&theirs, &ours);
        return (!equal).then(|| Difference::between(&ours, &theirs));
    }
    (ours != theirs).then(|| Difference::between(&ours, &theirs))
}

/// Whether a page of the visibility map has no bit that the other lacks.
fn visibility_bits_within(inner: &PageBuf, outer: &PageBuf) -> bool {
    let bits = wal_redo::page::HEADER_LEN..;
    inner[bits.clone()]
        .iter()
        .zip(&outer[bits])
        .all(|(inner, outer)| inner & !outer == 0)
}
