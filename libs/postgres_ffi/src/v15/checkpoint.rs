//! The body of a checkpoint record (`CheckPoint`), and how the counters in it follow the WAL.
//!
//! The pageserver keeps one per timeline, brings it forward with every record, and makes the shutdown
//! checkpoint of a base backup from it. A counter may run ahead of what was used, never behind.

use utils::lsn::Lsn;

use crate::c_struct;

/// Lowest ordinary transaction id (`FirstNormalTransactionId`).
pub const FIRST_NORMAL_XID: u32 = 3;
/// [`CheckPoint::update_next_xid`] moves the counter to multiples of this, so that it changes rarely. Divides the
/// number of transactions on a clog page and on a subtrans page: PostgreSQL extends those when it meets the first
/// transaction of a page, which therefore must not be skipped.
pub const XID_INTERVAL: u64 = 1024;

c_struct! {
    /// Counters and positions at a checkpoint.
    pub struct CheckPoint("CheckPoint", "sizeof(CheckPoint)" = 88) {
        /// Where redo starts: the record itself for a shutdown checkpoint.
        redo: Lsn = 0 "redo",
        /// PostgreSQL's timeline number.
        timeline: u32 = 8 "ThisTimeLineID",
        /// The one before, the same unless the record begins a timeline.
        previous_timeline: u32 = 12 "PrevTimeLineID",
        /// Whether `full_page_writes` was on.
        full_page_writes: bool = 16 "fullPageWrites",
        /// Next transaction id, with the epoch in the high half.
        next_xid: u64 = 24 "nextXid",
        /// Next object id.
        next_oid: u32 = 32 "nextOid",
        /// Next multixact id.
        next_multi: u32 = 36 "nextMulti",
        /// Where its members go.
        next_multi_offset: u32 = 40 "nextMultiOffset",
        /// Least `datfrozenxid` of all databases.
        oldest_xid: u32 = 44 "oldestXid",
        /// The database that has it.
        oldest_xid_db: u32 = 48 "oldestXidDB",
        /// Least `datminmxid` of all databases.
        oldest_multi: u32 = 52 "oldestMulti",
        /// The database that has it.
        oldest_multi_db: u32 = 56 "oldestMultiDB",
        /// Seconds since 1970-01-01.
        time: i64 = 64 "time",
        /// Oldest transaction with a commit timestamp.
        oldest_commit_ts_xid: u32 = 72 "oldestCommitTsXid",
        /// Newest transaction with a commit timestamp.
        newest_commit_ts_xid: u32 = 76 "newestCommitTsXid",
        /// Oldest transaction running, 0 in a shutdown checkpoint.
        oldest_active_xid: u32 = 80 "oldestActiveXid",
    }
}

/// Whether `a` was given out before `b`, counting round the 32-bit circle (`TransactionIdPrecedes` for ordinary
/// ids, `MultiXactIdPrecedes`, `MultiXactOffsetPrecedes`).
pub fn precedes(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl CheckPoint {
    /// Sees to it that `xid` is below the next transaction id. Says whether that changed anything.
    pub fn update_next_xid(&mut self, xid: u32) -> bool {
        let next = self.next_xid as u32;
        if xid < FIRST_NORMAL_XID || precedes(xid, next) {
            return false;
        }
        let ahead = u64::from(xid.wrapping_sub(next)) + 1;
        let mut moved = (self.next_xid + ahead).next_multiple_of(XID_INTERVAL);
        if (moved as u32) < FIRST_NORMAL_XID {
            moved += u64::from(FIRST_NORMAL_XID);
        }
        assert!(moved > self.next_xid, "transaction counter went back");
        self.next_xid = moved;
        true
    }

    /// Sees to it that the next multixact and its member offset are not before these. Says whether that changed
    /// anything (`MultiXactAdvanceNextMXact`).
    pub fn update_next_multi(&mut self, multi: u32, offset: u32) -> bool {
        let multi_moves = precedes(self.next_multi, multi);
        let offset_moves = precedes(self.next_multi_offset, offset);
        if multi_moves {
            self.next_multi = multi;
        }
        if offset_moves {
            self.next_multi_offset = offset;
        }
        multi_moves || offset_moves
    }

    /// Takes over the horizon of a multixact truncation. Says whether that changed anything (`MultiXactAdvanceOldest`).
    pub fn update_oldest_multi(&mut self, multi: u32, database: u32) -> bool {
        if !precedes(self.oldest_multi, multi) {
            return false;
        }
        self.oldest_multi = multi;
        self.oldest_multi_db = database;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::c_struct::{CStruct, CValue};

    fn checkpoint(next_xid: u64) -> CheckPoint {
        let mut checkpoint = CheckPoint::get(&[0; 88]);
        checkpoint.next_xid = next_xid;
        checkpoint
    }

    #[test]
    fn the_counter_moves_in_steps_and_wraps() {
        let check = |before: u64, xid: u32, after: u64| {
            let mut moved = checkpoint(before);
            assert_eq!(
                moved.update_next_xid(xid),
                before != after,
                "{before:#x} {xid:#x}"
            );
            assert_eq!(moved.next_xid, after, "{before:#x} {xid:#x}");
        };
        check(700, 699, 700);
        check(700, 700, 1024);
        check(700, 1023, 1024);
        check(700, 1024, 2048);
        check(1024, 1023, 1024);
        check(700, 0, 700);
        check(700, 2, 700);
        check(0x1_ffff_ff00, 0xffff_fffe, 0x2_0000_0003);
        check(0x1_ffff_ff00, 5, 0x2_0000_0400);
        check(0x2_0000_0400, 0xffff_fff0, 0x2_0000_0400);
    }

    #[test]
    fn multixacts_move_forward_only() {
        let mut checkpoint = checkpoint(3);
        checkpoint.next_multi = u32::MAX;
        checkpoint.next_multi_offset = 10;
        assert!(checkpoint.update_next_multi(1, 9));
        assert_eq!((checkpoint.next_multi, checkpoint.next_multi_offset), (1, 10));
        assert!(!checkpoint.update_next_multi(u32::MAX, 10));
        assert!(checkpoint.update_oldest_multi(7, 5) && !checkpoint.update_oldest_multi(6, 4));
        assert_eq!((checkpoint.oldest_multi, checkpoint.oldest_multi_db), (7, 5));
    }

    proptest! {
        #[test]
        fn next_xid_ends_up_above_and_never_goes_back(before in 3u64..1 << 40, ahead in 0u32..1 << 31) {
            let xid = (before as u32).wrapping_add(ahead);
            let mut moved = checkpoint(before);
            moved.update_next_xid(xid);
            prop_assert!(moved.next_xid >= before);
            if xid >= FIRST_NORMAL_XID {
                prop_assert!(moved.next_xid > before + u64::from(ahead));
                prop_assert!(moved.next_xid <= before + u64::from(ahead) + XID_INTERVAL + 3);
                prop_assert!(moved.next_xid as u32 >= FIRST_NORMAL_XID);
                prop_assert!(!moved.update_next_xid(xid));
            }
        }

        #[test]
        fn round_trip(raw in proptest::collection::vec(any::<u8>(), 88)) {
            let checkpoint = CheckPoint::decode(&raw).unwrap();
            prop_assert_eq!(CheckPoint::decode(&checkpoint.encode()).unwrap(), checkpoint);
            prop_assert!(CheckPoint::decode(&raw[..87]).is_err());
        }
    }
}
