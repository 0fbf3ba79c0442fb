//! The pages at the end, beside those of a data directory.

use std::io;

use super::Worker;
use crate::compare::{difference, visibility_bits_within};
use crate::mask::Kind;
use crate::pages::DataDir;
use crate::report::Report;
use crate::samples::Samples;

impl Worker {
    /// Compares all pages with those of the data directory, if there is one to compare with.
    pub fn finish(mut self) -> io::Result<(Report, Samples)> {
        self.catch_up()?;
        let samples = self.samples.unwrap_or_default();
        let mut report = self.report;
        let Some(root) = self.compare else {
            return Ok((report, samples));
        };
        let mut final_state = DataDir::new(&root);
        for (tag, page) in self.pages.changed() {
            // The free space map is not in the WAL except where it happens to be.
            if tag.forknum == postgres_ffi::v15::relfile::FSM_FORKNUM {
                continue;
            }
            let Some(theirs) = final_state.page(&tag)? else {
                report.missing_at_end(tag);
                continue;
            };
            let kind = Kind::of_page(&theirs, tag.forknum);
            let ours_has_fewer_bits =
                self.emptied_maps.contains(&tag) && visibility_bits_within(page, &theirs);
            // Nothing is under way any more: here the visibility map has to be equal.
            let kind = match kind {
                Kind::VisibilityMap => Kind::WholePage,
                Kind::Sequence => Kind::SequenceInUse,
                other => other,
            };
            let difference = difference(page, &theirs, kind, tag.blkno).filter(|_| !ours_has_fewer_bits);
            match difference {
                None => report.final_pages_equal += 1,
                Some(difference) => report.differs_at_end(tag, difference),
            }
        }
        Ok((report, samples))
    }
}
