//! Pages of SLRUs: commit status of transactions, and multixacts. They have no page header.

use pageserver_api::reltag::SlruKind;
use pageserver_api::value::WalRecord;
use postgres_ffi::v15::bodies::MultiXactCreate;
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::rmgr::{RM_MULTIXACT_ID, XLOG_MULTIXACT_CREATE_ID};

use crate::fault::Fault;
use crate::page::{PAGE_SIZE, PageBuf};

/// Pages of a segment file (`SLRU_PAGES_PER_SEGMENT`).
const PAGES_PER_SEGMENT: u32 = 32;
/// Bytes of a commit time that may follow a clog page: microseconds since 2000, big endian.
pub(crate) const TIMESTAMP_LEN: usize = 8;

const XIDS_PER_CLOG_PAGE: u32 = PAGE_SIZE as u32 * 4;
const OFFSETS_PER_PAGE: u32 = PAGE_SIZE as u32 / 4;
/// Members come in groups: one status byte for each of four, then their four transaction ids.
const MEMBERS_PER_GROUP: u32 = 4;
const GROUP_LEN: usize = 20;
const MEMBERS_PER_PAGE: u32 = (PAGE_SIZE / GROUP_LEN) as u32 * MEMBERS_PER_GROUP;

/// Status of a transaction in the clog, two bits.
#[derive(Clone, Copy)]
#[repr(u8)]
enum XidStatus {
    Committed = 1,
    Aborted = 2,
}

/// A page of an SLRU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SlruPage {
    pub kind: SlruKind,
    pub segno: u32,
    pub block: u32,
}

/// The multixact that follows one with `count` members at `offset`, and where its own members start. Number 0 is
/// neither a multixact nor an offset.
pub fn multixact_after(multi: u32, offset: u32, count: u32) -> (u32, u32) {
    (multi.wrapping_add(1).max(1), offset.wrapping_add(count).max(1))
}

impl SlruPage {
    fn number(self) -> u32 {
        self.segno
            .wrapping_mul(PAGES_PER_SEGMENT)
            .wrapping_add(self.block)
    }

    /// Applies a change; gives the time of a commit.
    pub fn apply(self, page: &mut PageBuf, change: &WalRecord) -> Result<Option<i64>, Fault> {
        match (self.kind, change) {
            (SlruKind::Clog, WalRecord::ClogSetCommitted { xids, timestamp }) => {
                self.set_status(page, xids, XidStatus::Committed)?;
                Ok(Some(*timestamp))
            }
            (SlruKind::Clog, WalRecord::ClogSetAborted { xids }) => {
                self.set_status(page, xids, XidStatus::Aborted)?;
                Ok(None)
            }
            (SlruKind::MultiXactOffsets, WalRecord::MultixactOffsetCreate { multi, offset }) => {
                self.set_offset(page, *multi, *offset)?;
                Ok(None)
            }
            (SlruKind::MultiXactMembers, WalRecord::MultixactMembersCreate { offset, members }) => {
                self.set_members(page, *offset, members)?;
                Ok(None)
            }
            _ => Err(Fault::WrongKind),
        }
    }

    /// Applies one of PostgreSQL's own records, which only pages of multixact offsets have.
    pub fn apply_postgres(self, page: &mut PageBuf, record: &[u8]) -> Result<(), Fault> {
        match self.kind {
            SlruKind::MultiXactOffsets => self.create_multixact(page, record),
            _ => Err(Fault::WrongKind),
        }
    }

    fn set_status(self, page: &mut PageBuf, xids: &[u32], status: XidStatus) -> Result<(), Fault> {
        for xid in xids {
            if xid / XIDS_PER_CLOG_PAGE != self.number() {
                return Err(Fault::Record("a transaction of another page"));
            }
            let index = xid % XIDS_PER_CLOG_PAGE;
            let shift = index % 4 * 2;
            let byte = &mut page[index as usize / 4];
            *byte = *byte & !(3 << shift) | (status as u8) << shift;
        }
        Ok(())
    }

    fn set_offset(self, page: &mut PageBuf, multi: u32, offset: u32) -> Result<(), Fault> {
        if multi / OFFSETS_PER_PAGE != self.number() {
            return Err(Fault::Record("a multixact of another page"));
        }
        let at = (multi % OFFSETS_PER_PAGE) as usize * 4;
        page[at..at + 4].copy_from_slice(&offset.to_le_bytes());
        Ok(())
    }

    /// Sets the offset of the multixact a record creates, and that of the next one, which is where its members end
    /// (`RecordNewMultiXact`). Either may stand on another page.
    fn create_multixact(self, page: &mut PageBuf, raw: &[u8]) -> Result<(), Fault> {
        let record = RecordRef::parse(raw)?;
        if (record.header.rmid, record.rmgr_info()) != (RM_MULTIXACT_ID, XLOG_MULTIXACT_CREATE_ID) {
            return Err(Fault::Unknown);
        }
        let created = MultiXactCreate::parse(record.main_data)?;
        let (next, end) = multixact_after(created.multi, created.offset, created.members.len() as u32);
        let entries = [(created.multi, created.offset), (next, end)];
        for (multi, offset) in entries
            .into_iter()
            .filter(|(multi, _)| multi / OFFSETS_PER_PAGE == self.number())
        {
            self.set_offset(page, multi, offset)?;
        }
        Ok(())
    }

    /// Members on other pages are passed over: a multixact's members may go on on the next page.
    fn set_members(self, page: &mut PageBuf, first: u32, members: &[(u32, u32)]) -> Result<(), Fault> {
        let mut here = 0;
        for (index, (xid, status)) in members.iter().enumerate() {
            let offset = first.wrapping_add(index as u32);
            if offset / MEMBERS_PER_PAGE != self.number() {
                continue;
            }
            here += 1;
            let status =
                u8::try_from(*status).map_err(|_| Fault::Record("unknown status of a multixact's member"))?;
            let index = offset % MEMBERS_PER_PAGE;
            let group = (index / MEMBERS_PER_GROUP) as usize * GROUP_LEN;
            let place = (index % MEMBERS_PER_GROUP) as usize;
            page[group + place] = status;
            let at = group + 4 + place * 4;
            page[at..at + 4].copy_from_slice(&xid.to_le_bytes());
        }
        if here == 0 {
            return Err(Fault::Record("no member stands on this page"));
        }
        Ok(())
    }
}
