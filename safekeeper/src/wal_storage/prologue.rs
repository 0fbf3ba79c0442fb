//! Valid pages in front of a timeline that starts in the middle of a segment.
//!
//! A standby asks for WAL from the start of the segment, and `pg_waldump` reads a file from its start. The
//! pages before the timeline's first record claim to continue a record that began in an earlier segment
//! and ends exactly where the timeline starts; readers that look for the first record skip it by
//! its length and never look at its bytes, which are zero.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use postgres_ffi::v15::BLCKSZ;
use postgres_ffi::v15::wal_page::{
    LongFields, PageHeader, XLOG_PAGE_MAGIC, XLP_FIRST_IS_CONTRECORD, XLP_LONG_HEADER, header_len,
};
use utils::lsn::Lsn;

use super::PG_TIMELINE;
use crate::acceptor::ServerInfo;

/// Where the prologue goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Where the timeline's WAL begins: the pages from the segment's start up to there are filled.
    pub end: Lsn,
    /// Size of the segment in bytes.
    pub segment_size: usize,
}

/// Headers of all pages that begin before `place.end`, with their positions.
fn headers(place: Place, server: &ServerInfo) -> Vec<PageHeader> {
    let start = place.end.segment_start(place.segment_size);
    let pages = (place.end - start).div_ceil(BLCKSZ as u64);
    let mut remaining = 0;
    // From the last page to the first: what is to come on a page is what is left on those behind it.
    let mut headers: Vec<_> = (0..pages)
        .rev()
        .map(|page| {
            let page_addr = start + page * BLCKSZ as u64;
            let page_end = place.end.min(page_addr + BLCKSZ as u64);
            let data_start = page_addr + header_len(page_addr, place.segment_size) as u64;
            remaining += page_end.saturating_sub(data_start);
            let is_first = page == 0;
            let continues = if remaining > 0 { XLP_FIRST_IS_CONTRECORD } else { 0 };
            PageHeader {
                magic: XLOG_PAGE_MAGIC,
                info: continues | if is_first { XLP_LONG_HEADER } else { 0 },
                timeline: PG_TIMELINE,
                page_addr,
                rem_len: remaining as u32,
                long: is_first.then_some(LongFields {
                    system_id: server.system_id,
                    segment_size: place.segment_size as u32,
                    page_size: BLCKSZ as u32,
                }),
            }
        })
        .collect();
    headers.reverse();
    headers
}

/// Writes the prologue into a segment of zeros. Not made durable here.
pub(super) fn write(file: &mut File, place: Place, server: &ServerInfo) -> io::Result<()> {
    let start = place.end.segment_start(place.segment_size);
    for header in headers(place, server) {
        let mut raw = Vec::new();
        header.encode(&mut raw);
        file.write_all_at(&raw, header.page_addr - start)?;
    }
    Ok(())
}
