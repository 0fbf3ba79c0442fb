//! The cluster-wide counters that a server needs to start: the `CheckPoint` struct, kept exact at every record.
//!
//! PostgreSQL's redo keeps them in shared memory and writes them at the next checkpoint; here each change is a new
//! version of the checkpoint key.

use bytes::Bytes;
use pageserver_api::key;
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::checkpoint::{CheckPoint, FIRST_NORMAL_XID, precedes};
use utils::lsn::Lsn;

use super::IngestFault;
use crate::pgdatadir::DataError;

/// See the module head.
pub(super) struct Counters {
    checkpoint: CheckPoint,
    changed: bool,
}

impl Counters {
    /// From the value of the checkpoint key.
    pub(super) fn decode(raw: &[u8], lsn: Lsn) -> Result<Self, DataError> {
        let checkpoint = CheckPoint::decode(raw).map_err(|e| DataError::Damaged {
            key: key::CHECKPOINT,
            lsn,
            reason: e.to_string(),
        })?;
        Ok(Counters {
            checkpoint,
            changed: false,
        })
    }

    /// The value of the checkpoint key, if it changed since the last call.
    pub(super) fn take_changed(&mut self) -> Option<Bytes> {
        std::mem::take(&mut self.changed).then(|| Bytes::from(self.checkpoint.encode()))
    }

    fn update<T: PartialEq>(&mut self, field: impl Fn(&mut CheckPoint) -> &mut T, value: T) {
        let field = field(&mut self.checkpoint);
        if *field != value {
            *field = value;
            self.changed = true;
        }
    }

    /// The transaction id is taken.
    pub(super) fn advance_past_xid(&mut self, xid: u32) {
        if xid >= FIRST_NORMAL_XID {
            // The successor of the last id is the first normal one, an epoch later.
            self.advance_to_xid(xid.wrapping_add(1).max(FIRST_NORMAL_XID));
        }
    }

    /// All transaction ids before `xid` are taken.
    pub(super) fn advance_to_xid(&mut self, xid: u32) {
        let next = self.checkpoint.next_xid;
        let (epoch, next_xid) = ((next >> 32) as u32, next as u32);
        if xid < FIRST_NORMAL_XID || !precedes(next_xid, xid) {
            return;
        }
        // Later on the ring, but lower as a number: the ids have wrapped around.
        let epoch = if xid < next_xid {
            epoch.wrapping_add(1)
        } else {
            epoch
        };
        self.update(|c| &mut c.next_xid, u64::from(epoch) << 32 | u64::from(xid));
    }

    /// The multixact is taken, and members up to `next_offset` (exclusive).
    pub(super) fn advance_past_multi(&mut self, multi: u32, next_offset: u32) {
        self.changed |= self
            .checkpoint
            .update_next_multi(multi.wrapping_add(1), next_offset);
    }

    /// Transactions before `xid` are gone from pg_xact.
    pub(super) fn set_oldest_xid(&mut self, xid: u32, db: u32) {
        self.update(|c| &mut c.oldest_xid, xid);
        self.update(|c| &mut c.oldest_xid_db, db);
    }

    /// Multixacts before `multi` are gone.
    pub(super) fn set_oldest_multi(&mut self, multi: u32, db: u32) {
        self.update(|c| &mut c.oldest_multi, multi);
        self.update(|c| &mut c.oldest_multi_db, db);
    }

    /// OIDs below are taken. The counter wraps around, so the last record counts, not the highest.
    pub(super) fn set_next_oid(&mut self, oid: u32) {
        self.update(|c| &mut c.next_oid, oid);
    }

    pub(super) fn set_full_page_writes(&mut self, on: bool) {
        self.update(|c| &mut c.full_page_writes, on);
    }

    /// Nothing ran: the record's counters are exact.
    pub(super) fn shutdown_checkpoint(&mut self, raw: &[u8]) -> Result<(), IngestFault> {
        self.checkpoint = CheckPoint::decode(raw).map_err(IngestFault::malformed)?;
        self.changed = true;
        Ok(())
    }

    /// The record's counters are from when the checkpoint began: they are minima. Its next OID may be stale, and
    /// no minimum either, since OIDs wrap around.
    pub(super) fn online_checkpoint(&mut self, raw: &[u8]) -> Result<(), IngestFault> {
        let record = CheckPoint::decode(raw).map_err(IngestFault::malformed)?;
        let old = std::mem::replace(&mut self.checkpoint, record);
        let new = &mut self.checkpoint;
        new.next_oid = old.next_oid;
        new.next_xid = new.next_xid.max(old.next_xid);
        new.update_next_multi(old.next_multi, old.next_multi_offset);
        new.update_oldest_multi(old.oldest_multi, old.oldest_multi_db);
        if precedes(new.oldest_xid, old.oldest_xid) {
            new.oldest_xid = old.oldest_xid;
            new.oldest_xid_db = old.oldest_xid_db;
        }
        self.changed = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(next_xid: u64) -> CheckPoint {
        CheckPoint {
            next_xid,
            ..CheckPoint::decode(&[0; 88]).unwrap()
        }
    }

    fn counters(next_xid: u64) -> Counters {
        Counters {
            checkpoint: checkpoint(next_xid),
            changed: false,
        }
    }

    #[test]
    fn transaction_ids_advance_and_wrap_around() {
        let check = |next: u64, taken: u32, want: u64| {
            let mut counters = counters(next);
            counters.advance_past_xid(taken);
            assert_eq!(counters.checkpoint.next_xid, want, "{next:x} past {taken:x}");
            assert_eq!(counters.take_changed().is_some(), next != want);
            assert_eq!(counters.take_changed(), None);
        };
        check(700, 0, 700);
        check(700, 2, 700);
        check(700, 699, 700);
        check(700, 700, 701);
        check(700, 5000, 5001);
        check(0x1_ffff_fff0, 0xffff_ffff, 0x2_0000_0003);
        check(0x1_ffff_fff0, 10, 0x2_0000_000b);
        check(0x2_0000_000b, 0xffff_fff0, 0x2_0000_000b);
    }

    #[test]
    fn multixacts_and_oids() {
        let mut counters = counters(700);
        counters.advance_past_multi(u32::MAX - 1, 10);
        assert_eq!(
            counters.checkpoint.next_multi, 0,
            "minus one precedes nothing that is one ahead"
        );
        counters.advance_past_multi(5, 10);
        counters.advance_past_multi(3, 4);
        assert_eq!(
            (
                counters.checkpoint.next_multi,
                counters.checkpoint.next_multi_offset
            ),
            (6, 10)
        );
        counters.set_next_oid(30000);
        counters.set_next_oid(16384);
        assert_eq!(counters.checkpoint.next_oid, 16384);
    }

    #[test]
    fn an_online_checkpoint_takes_nothing_back() {
        let mut counters = counters(700);
        counters.set_next_oid(20000);
        counters.advance_past_multi(8, 20);
        counters.set_oldest_xid(600, 5);
        let record = CheckPoint {
            next_oid: 16384,
            next_multi: 7,
            oldest_xid: 550,
            ..checkpoint(690)
        };
        counters.online_checkpoint(&record.encode()).unwrap();
        let now = counters.checkpoint.clone();
        assert_eq!(
            (now.next_xid, now.next_oid, now.next_multi, now.oldest_xid),
            (700, 20000, 9, 600)
        );
        counters.shutdown_checkpoint(&record.encode()).unwrap();
        assert_eq!(counters.checkpoint, record);
        assert!(counters.online_checkpoint(&[0; 20]).is_err());
    }
}
