//! The disk of a safekeeper: what the operating system shows, and what would survive a power failure.
//!
//! Model
//! * The control file is replaced as a whole.
//! * Written WAL is visible at once and durable after a flush. Of what was not flushed, a power failure
//!   keeps any set of sectors.
//! * Truncation leaves a beginning of the old WAL when it is interrupted.

use bytes::Bytes;
use postgres_ffi::v15::stream::{Checksums, RecordEnds};
use safekeeper::acceptor::ControlState;
use utils::lsn::Lsn;

use crate::rng::Rng;
use crate::wal::SEGMENT_SIZE;

/// Smallest unit that is written as a whole, in bytes.
const SECTOR: usize = 512;

/// Control file and WAL of the one timeline.
pub struct Disk {
    /// Position of the first byte of the vectors.
    origin: Lsn,
    /// The durable control file.
    pub control: ControlState,
    durable: Vec<u8>,
    visible: Vec<u8>,
    /// Ranges of `visible` that are not durable, as (offset, length).
    unflushed: Vec<(usize, usize)>,
    /// First offset of `durable` that has changed since somebody asked.
    changed: usize,
}

impl Disk {
    /// A disk with nothing but the control file. No WAL before `origin` will be written.
    pub fn new(origin: Lsn, control: ControlState) -> Disk {
        Disk {
            origin,
            control,
            durable: Vec::new(),
            visible: Vec::new(),
            unflushed: Vec::new(),
            changed: usize::MAX,
        }
    }

    fn offset(&self, lsn: Lsn) -> usize {
        (lsn - self.origin) as usize
    }

    /// Durable WAL from `begin` on.
    pub fn durable_from(&self, begin: Lsn) -> &[u8] {
        let offset = self.offset(begin).min(self.durable.len());
        &self.durable[offset..]
    }

    /// From where on the durable WAL has changed since this was asked last.
    pub fn take_changed(&mut self) -> Lsn {
        let changed = std::mem::replace(&mut self.changed, usize::MAX);
        self.origin + changed.min(self.durable.len()) as u64
    }

    /// What a reader sees from `begin` to `end`.
    pub fn read(&self, begin: Lsn, end: Lsn) -> Bytes {
        Bytes::copy_from_slice(&self.visible[self.offset(begin)..self.offset(end)])
    }

    /// Writes WAL without making it durable.
    pub fn write(&mut self, begin: Lsn, wal: &[u8]) {
        let offset = self.offset(begin);
        let end = offset + wal.len();
        if self.visible.len() < end {
            self.visible.resize(end, 0);
        }
        self.visible[offset..end].copy_from_slice(wal);
        self.unflushed.push((offset, wal.len()));
    }

    /// Makes everything durable.
    pub fn flush(&mut self) {
        for (offset, len) in std::mem::take(&mut self.unflushed) {
            self.persist(offset, offset + len);
        }
    }

    fn persist(&mut self, begin: usize, end: usize) {
        let end = end.min(self.visible.len());
        if begin >= end {
            return;
        }
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[begin..end].copy_from_slice(&self.visible[begin..end]);
        self.changed = self.changed.min(begin);
    }

    /// Cuts the WAL off, durably.
    pub fn truncate(&mut self, to: Lsn) {
        let offset = self.offset(to);
        self.visible.truncate(offset);
        self.durable.truncate(offset);
        self.changed = self.changed.min(offset);
        self.unflushed.retain(|(begin, _)| *begin < offset);
    }

    /// Cuts the WAL off somewhere between `to` and its end: a truncation that was interrupted.
    pub fn truncate_in_part(&mut self, to: Lsn, rng: &mut Rng) {
        let end = self.origin + self.visible.len() as u64;
        if end > to {
            self.truncate(to + rng.below(end - to + 1));
        }
    }

    /// Loses what is not durable, except for some of its sectors.
    pub fn power_failure(&mut self, rng: &mut Rng) {
        for (offset, len) in std::mem::take(&mut self.unflushed) {
            let mut begin = offset;
            while begin < offset + len {
                let end = ((begin / SECTOR + 1) * SECTOR).min(offset + len);
                if rng.one_in(2) {
                    self.persist(begin, end);
                }
                begin = end;
            }
        }
        self.visible = self.durable.clone();
    }

    /// End of the last whole record at or behind what the control file says is there. What the daemon
    /// does with files when it opens a timeline.
    pub fn find_end(&self) -> Lsn {
        let known_end = self.control.known_end();
        if !known_end.is_valid() {
            return Lsn::INVALID;
        }
        let mut ends = RecordEnds::new(known_end, SEGMENT_SIZE, Checksums::Verify);
        let offset = self.offset(known_end).min(self.visible.len());
        // Bytes that are no record are the end, not an error.
        let _ = ends.feed(&self.visible[offset..]);
        ends.last_end()
    }
}
