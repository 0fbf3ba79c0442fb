//! Headers of WAL pages (`access/xlog_internal.h`): short ones, and the long one that opens a segment.

use utils::lsn::Lsn;

use super::BLCKSZ;
use crate::cursor::{Cursor, Truncated};

/// Marks WAL of PostgreSQL 15.
pub const XLOG_PAGE_MAGIC: u16 = 0xd110;
/// Length of an ordinary page header in bytes (`SizeOfXLogShortPHD`).
pub const SHORT_HEADER_LEN: usize = 24;
/// Length of the header of the first page of a segment in bytes (`SizeOfXLogLongPHD`).
pub const LONG_HEADER_LEN: usize = 40;

/// The page begins with the rest of a record that started before it.
pub const XLP_FIRST_IS_CONTRECORD: u16 = 0x0001;
/// The header is a long one.
pub const XLP_LONG_HEADER: u16 = 0x0002;
/// Images in records that start on this page are optional.
pub const XLP_BKP_REMOVABLE: u16 = 0x0004;
/// The page begins with a record that takes the place of the missing rest of another.
pub const XLP_FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
/// All flags there are.
pub const XLP_ALL_FLAGS: u16 = 0x000f;

/// `XLogPageHeaderData`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PageHeader {
    /// `xlp_magic`.
    pub magic: u16,
    /// `xlp_info`: `XLP_` flags.
    pub info: u16,
    /// `xlp_tli`: PostgreSQL's timeline number.
    pub timeline: u32,
    /// `xlp_pageaddr`: position of the first byte of the page.
    pub page_addr: Lsn,
    /// `xlp_rem_len`: bytes of a record that are still to come at the start of the page.
    pub rem_len: u32,
    /// The further fields of a long header.
    pub long: Option<LongFields>,
}

/// Fields only a long header has (`XLogLongPageHeaderData`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LongFields {
    /// `xlp_sysid`: system identifier of the cluster.
    pub system_id: u64,
    /// `xlp_seg_size` in bytes.
    pub segment_size: u32,
    /// `xlp_xlog_blcksz` in bytes.
    pub page_size: u32,
}

/// A page header is not what has to stand at its place.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum PageHeaderError {
    /// Not WAL of this major version, or no WAL at all.
    #[error("magic number {0:04X} instead of D110")]
    Magic(u16),
    /// Unknown flags, or a long header where a short one belongs, or the other way round.
    #[error("unexpected flags {0:04X}")]
    Flags(u16),
    /// The page belongs elsewhere, such as in a segment file that was used before.
    #[error("the page says it is at {0}")]
    Address(Lsn),
    /// The segment or page size differs.
    #[error("segment size {segment_size}, page size {page_size}")]
    Sizes {
        /// `xlp_seg_size` in bytes.
        segment_size: u32,
        /// `xlp_xlog_blcksz` in bytes.
        page_size: u32,
    },
}

/// Length of the header of the page that starts at `page`, in bytes.
pub fn header_len(page: Lsn, segment_size: usize) -> usize {
    if page.segment_offset(segment_size) == 0 {
        LONG_HEADER_LEN
    } else {
        SHORT_HEADER_LEN
    }
}

/// Where a record goes when all WAL before `lsn` is written: behind the page header if `lsn` is at the start of a page.
pub fn skip_page_header(lsn: Lsn, segment_size: usize) -> Lsn {
    if lsn.page_offset(BLCKSZ) == 0 {
        Lsn(lsn.0 + header_len(lsn, segment_size) as u64)
    } else {
        lsn
    }
}

impl PageHeader {
    /// Reads a header; a long one if its flag says so.
    pub fn decode(raw: &[u8]) -> Result<Self, Truncated> {
        let mut input = Cursor::new(raw);
        let mut header = Self {
            magic: input.u16()?,
            info: input.u16()?,
            timeline: input.u32()?,
            page_addr: input.lsn()?,
            rem_len: input.u32()?,
            long: None,
        };
        input.skip(4)?;
        if header.info & XLP_LONG_HEADER != 0 {
            header.long = Some(LongFields {
                system_id: input.u64()?,
                segment_size: input.u32()?,
                page_size: input.u32()?,
            });
        }
        Ok(header)
    }

    /// Appends the header to `out`: 24 bytes, or 40 with the long fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Lsn(page_addr) = self.page_addr;
        out.extend_from_slice(&self.magic.to_le_bytes());
        out.extend_from_slice(&self.info.to_le_bytes());
        out.extend_from_slice(&self.timeline.to_le_bytes());
        out.extend_from_slice(&page_addr.to_le_bytes());
        out.extend_from_slice(&self.rem_len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        if let Some(long) = &self.long {
            out.extend_from_slice(&long.system_id.to_le_bytes());
            out.extend_from_slice(&long.segment_size.to_le_bytes());
            out.extend_from_slice(&long.page_size.to_le_bytes());
        }
    }

    /// Checks that this header may stand at `page` (`XLogReaderValidatePageHeader`, without the system
    /// identifier and the timeline number).
    pub fn check(&self, page: Lsn, segment_size: usize) -> Result<(), PageHeaderError> {
        if self.magic != XLOG_PAGE_MAGIC {
            return Err(PageHeaderError::Magic(self.magic));
        }
        let first_of_segment = page.segment_offset(segment_size) == 0;
        if self.info & !XLP_ALL_FLAGS != 0 || self.long.is_some() != first_of_segment {
            return Err(PageHeaderError::Flags(self.info));
        }
        if self.page_addr != page {
            return Err(PageHeaderError::Address(self.page_addr));
        }
        match self.long {
            Some(long) if long.segment_size as usize != segment_size || long.page_size as usize != BLCKSZ => {
                Err(PageHeaderError::Sizes {
                    segment_size: long.segment_size,
                    page_size: long.page_size,
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether the page begins with the rest of a record.
    pub fn is_contrecord(&self) -> bool {
        self.info & XLP_FIRST_IS_CONTRECORD != 0
    }
}
