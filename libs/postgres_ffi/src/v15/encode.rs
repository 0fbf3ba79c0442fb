//! Writing WAL: records, their place in WAL pages, and the segment a base backup carries.
//!
//! A server starts without recovery at any LSN when its control file says "shut down" and points at a shutdown
//! checkpoint record there ([`shutdown_checkpoint`]). The record becomes part of the timeline's WAL, so
//! it is written exactly as PostgreSQL would write it at that place.
//!
//! What callers pass in is our own: records that PostgreSQL could not write are a panic, not an error.

use bytes::Bytes;
use smallvec::SmallVec;
use utils::lsn::Lsn;

use super::BLCKSZ;
use super::checkpoint::CheckPoint;
use super::decode::{
    BKPBLOCK_FORK_MASK, BKPBLOCK_HAS_DATA, BKPBLOCK_HAS_IMAGE, BKPBLOCK_SAME_REL, BKPBLOCK_WILL_INIT,
    BKPIMAGE_APPLY, BKPIMAGE_COMPRESS_LZ4, BKPIMAGE_COMPRESS_PGLZ, BKPIMAGE_COMPRESS_ZSTD, BKPIMAGE_HAS_HOLE,
    XLR_BLOCK_ID_DATA_LONG, XLR_BLOCK_ID_DATA_SHORT, XLR_BLOCK_ID_ORIGIN, XLR_BLOCK_ID_TOPLEVEL_XID,
    XLR_MAX_BLOCK_ID, record_crc,
};
use super::record::{Block, BlockImage, DecodedRecord, ImageCompression, RecordHeader};
use super::rmgr::{RM_XLOG_ID, XLOG_CHECKPOINT_SHUTDOWN};
use super::wal_page::{
    LONG_HEADER_LEN, LongFields, PageHeader, SHORT_HEADER_LEN, XLOG_PAGE_MAGIC, XLP_FIRST_IS_CONTRECORD,
    XLP_LONG_HEADER, skip_page_header,
};
use crate::c_struct::CStruct;

/// PostgreSQL's timeline number in all our WAL.
pub const PG_TIMELINE: u32 = 1;

/// The bytes of a record: the inverse of [`decode_record`](super::decode::decode_record). Length and checksum in the
/// header are made anew, the rest of it stays.
pub fn encode_record(record: &DecodedRecord) -> Vec<u8> {
    let mut raw = record.header.encode().to_vec();
    let mut previous = None;
    for block in &record.blocks {
        put_block_header(&mut raw, block, previous);
        previous = Some(block);
    }
    if record.origin_id != 0 {
        raw.push(XLR_BLOCK_ID_ORIGIN);
        raw.extend_from_slice(&record.origin_id.to_le_bytes());
    }
    if let Some(xid) = record.toplevel_xid {
        raw.push(XLR_BLOCK_ID_TOPLEVEL_XID);
        raw.extend_from_slice(&xid.to_le_bytes());
    }
    match u8::try_from(record.main_data.len()) {
        Ok(0) => {}
        Ok(len) => raw.extend_from_slice(&[XLR_BLOCK_ID_DATA_SHORT, len]),
        Err(_) => {
            let len = u32::try_from(record.main_data.len()).expect("main data is below 4 GiB");
            raw.push(XLR_BLOCK_ID_DATA_LONG);
            raw.extend_from_slice(&len.to_le_bytes());
        }
    }
    for block in &record.blocks {
        if let Some(image) = &block.image {
            raw.extend_from_slice(&image.data);
        }
        raw.extend_from_slice(&block.data);
    }
    raw.extend_from_slice(&record.main_data);
    let len = u32::try_from(raw.len()).expect("a record is below 4 GiB");
    raw[..4].copy_from_slice(&len.to_le_bytes());
    let crc = record_crc(&raw);
    raw[RecordHeader::CRC_OFFSET..RecordHeader::LEN].copy_from_slice(&crc.to_le_bytes());
    raw
}

fn put_block_header(raw: &mut Vec<u8>, block: &Block, previous: Option<&Block>) {
    assert!(
        block.id <= XLR_MAX_BLOCK_ID && previous.is_none_or(|previous| previous.id < block.id),
        "block number {} is out of order",
        block.id
    );
    assert!(
        block.forknum <= BKPBLOCK_FORK_MASK,
        "fork number {}",
        block.forknum
    );
    let relation = |block: &Block| (block.spcnode, block.dbnode, block.relnode);
    let same_rel = previous.is_some_and(|previous| relation(previous) == relation(block));
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let data_len = u16::try_from(block.data.len()).expect("data of a block is below 64 KiB");
    raw.push(block.id);
    raw.push(
        block.forknum
            | flag(block.image.is_some(), BKPBLOCK_HAS_IMAGE)
            | flag(!block.data.is_empty(), BKPBLOCK_HAS_DATA)
            | flag(block.will_init, BKPBLOCK_WILL_INIT)
            | flag(same_rel, BKPBLOCK_SAME_REL),
    );
    raw.extend_from_slice(&data_len.to_le_bytes());
    if let Some(image) = &block.image {
        put_image_header(raw, image);
    }
    if !same_rel {
        for number in [block.spcnode, block.dbnode, block.relnode] {
            raw.extend_from_slice(&number.to_le_bytes());
        }
    }
    raw.extend_from_slice(&block.blkno.to_le_bytes());
}

fn put_image_header(raw: &mut Vec<u8>, image: &BlockImage) {
    let len = u16::try_from(image.data.len()).expect("an image is no longer than a page");
    let has_hole = image.hole_length != 0;
    let compression = match image.compression {
        ImageCompression::None => 0,
        ImageCompression::Pglz => BKPIMAGE_COMPRESS_PGLZ,
        ImageCompression::Lz4 => BKPIMAGE_COMPRESS_LZ4,
        ImageCompression::Zstd => BKPIMAGE_COMPRESS_ZSTD,
    };
    let mut info = compression;
    if has_hole {
        info |= BKPIMAGE_HAS_HOLE;
    }
    if image.apply {
        info |= BKPIMAGE_APPLY;
    }
    raw.extend_from_slice(&len.to_le_bytes());
    raw.extend_from_slice(&image.hole_offset.to_le_bytes());
    raw.push(info);
    if has_hole && compression != 0 {
        raw.extend_from_slice(&image.hole_length.to_le_bytes());
    }
}

/// What all WAL of a cluster has in common.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WalIdentity {
    /// System identifier of the cluster.
    pub system_id: u64,
    /// Size of a segment in bytes: a power of two of at least a page.
    pub segment_size: usize,
}

impl WalIdentity {
    /// Header of the page at `page`; `rem_len` bytes of a record are still to come there.
    fn page_header(&self, page: Lsn, rem_len: u32) -> PageHeader {
        let long = (page.segment_offset(self.segment_size) == 0).then_some(LongFields {
            system_id: self.system_id,
            segment_size: self.segment_size as u32,
            page_size: BLCKSZ as u32,
        });
        let mut info = 0;
        if rem_len != 0 {
            info |= XLP_FIRST_IS_CONTRECORD;
        }
        if long.is_some() {
            info |= XLP_LONG_HEADER;
        }
        PageHeader {
            magic: XLOG_PAGE_MAGIC,
            info,
            timeline: PG_TIMELINE,
            page_addr: page,
            rem_len,
            long,
        }
    }

    /// The part of a segment before `end`, without any record: valid page headers and zeros. Empty if `end` is the
    /// start of a segment.
    ///
    /// A timeline may begin in the middle of a segment; who reads the segment from its start wants headers there. They
    /// say that a record is going on up to `end`, so that `pg_waldump` finds its way to the first real one.
    pub fn empty_pages_before(&self, end: Lsn) -> Vec<u8> {
        let start = end.segment_start(self.segment_size);
        let len = end.segment_offset(self.segment_size);
        let mut out = Vec::with_capacity(len);
        let mut rem_len = len.saturating_sub(LONG_HEADER_LEN);
        rem_len -= SHORT_HEADER_LEN * (len.saturating_sub(1) / BLCKSZ);
        for page in (0..len).step_by(BLCKSZ) {
            out.resize(page, 0);
            self.page_header(Lsn(start.0 + page as u64), rem_len as u32)
                .encode(&mut out);
            rem_len = rem_len.saturating_sub(page + BLCKSZ - out.len());
        }
        assert!(out.len() <= len, "{end} lies within a page header");
        out.resize(len, 0);
        out
    }
}

/// Lays records out in WAL pages, from any record boundary on.
#[derive(Debug)]
pub struct WalWriter {
    identity: WalIdentity,
    /// Where `out` ends.
    position: Lsn,
    /// Start of the last record.
    previous: Lsn,
    out: Vec<u8>,
}

/// Where a record went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RecordPlace {
    /// Its first byte.
    pub start: Lsn,
    /// Where WAL goes on after it: the next multiple of 8.
    pub end: Lsn,
}

impl WalWriter {
    /// A writer that goes on at the record boundary `position`; `previous` is the start of the record before, 0 if
    /// unknown.
    pub fn new(identity: WalIdentity, position: Lsn, previous: Lsn) -> Self {
        assert!(position.is_aligned(), "no record ends at {position}");
        assert!(
            previous < position || position == Lsn(0),
            "the record before starts at {previous}, behind {position}"
        );
        Self {
            identity,
            position,
            previous,
            out: Vec::new(),
        }
    }

    /// Writes a record. Its back link, length and checksum are made anew.
    pub fn append(&mut self, mut record: DecodedRecord) -> RecordPlace {
        record.header.prev = self.previous;
        let raw = encode_record(&record);
        self.enter_page(0);
        let start = self.position;
        let mut rest = &raw[..];
        while !rest.is_empty() {
            self.enter_page(rest.len() as u32);
            let (now, later) = rest.split_at(rest.len().min(self.left_in_page()));
            self.put(now);
            rest = later;
        }
        let end = self.position.align_up();
        self.put(&[0; 8][..(end.0 - self.position.0) as usize]);
        self.previous = start;
        RecordPlace { start, end }
    }

    /// Everything written since the start, or since this was called last.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Where the next byte goes.
    pub fn position(&self) -> Lsn {
        self.position
    }

    fn left_in_page(&self) -> usize {
        BLCKSZ - self.position.page_offset(BLCKSZ)
    }

    fn put(&mut self, raw: &[u8]) {
        self.out.extend_from_slice(raw);
        self.position.0 += raw.len() as u64;
    }

    /// Writes a page header if one belongs here.
    fn enter_page(&mut self, rem_len: u32) {
        if self.position.page_offset(BLCKSZ) == 0 {
            let before = self.out.len();
            self.identity
                .page_header(self.position, rem_len)
                .encode(&mut self.out);
            self.position.0 += (self.out.len() - before) as u64;
        }
    }
}

/// What a base backup needs to start a server at some LSN.
#[derive(Clone, Debug)]
pub struct ShutdownCheckpoint {
    /// Segments to put into `pg_wal`, by number, each of full size. The second is there only if the record runs into it.
    pub segments: Vec<(u64, Vec<u8>)>,
    /// Body of the record, with `redo` set: the control file's copy.
    pub checkpoint: CheckPoint,
    /// Where the record stands.
    pub place: RecordPlace,
}

/// Writes a shutdown checkpoint record at `lsn`, or behind the page header if `lsn` is the start of a page. The WAL
/// before it in the segment is empty pages. `previous` is the true start of the record before, 0 if unknown.
pub fn shutdown_checkpoint(
    identity: WalIdentity,
    lsn: Lsn,
    previous: Lsn,
    checkpoint: &CheckPoint,
) -> ShutdownCheckpoint {
    let mut checkpoint = checkpoint.clone();
    checkpoint.redo = skip_page_header(lsn, identity.segment_size);
    checkpoint.timeline = PG_TIMELINE;
    checkpoint.previous_timeline = PG_TIMELINE;
    checkpoint.oldest_active_xid = 0;
    let mut writer = WalWriter::new(identity, lsn, previous);
    let place = writer.append(DecodedRecord {
        header: RecordHeader {
            rmid: RM_XLOG_ID,
            info: XLOG_CHECKPOINT_SHUTDOWN,
            ..RecordHeader::default()
        },
        blocks: SmallVec::new(),
        main_data: Bytes::from(checkpoint.encode()),
        origin_id: 0,
        toplevel_xid: None,
    });
    assert_eq!(
        place.start, checkpoint.redo,
        "the record is not where its redo position says"
    );
    let mut wal = identity.empty_pages_before(lsn);
    wal.append(&mut writer.take());
    wal.resize(wal.len().next_multiple_of(identity.segment_size), 0);
    let first = lsn.segment_number(identity.segment_size);
    let segments = (first..)
        .zip(wal.chunks(identity.segment_size).map(<[u8]>::to_vec))
        .collect();
    ShutdownCheckpoint {
        segments,
        checkpoint,
        place,
    }
}

#[cfg(test)]
mod tests;
