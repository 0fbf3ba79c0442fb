//! Speed of `reconstruct`, in the two cases that the process-based design publishes figures for.
//!
//! | case | what | process-based, one client | target |
//! |---|---|---|---|
//! | `short` | base page and 2 heap records | 32 µs | 2 µs |
//! | `medium` | base image and 226 small heap records | 139 µs | 15 µs |
//!
//! Measured in CPU time, since machines are busy with other things. `threads/2` makes twice as many reconstructions as
//! `threads/1`: the scaling is twice its rate over that of `threads/1`, as far as cores are free.
//!
//! On a virtual machine of 2 cores, rustc 1.95: short 0.16 µs, medium 6.5 µs (spread of the estimates 2 %); 5.43 and
//! 5.52 million reconstructions per second of CPU on one and two threads, which is a scaling of 2.0. With one base image for both
//! threads it would be 1.0: they pass its count of references to each other.

use std::hint::black_box;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pageserver_api::key::{Key, rel_block_key};
use pageserver_api::reltag::{Fork, RelTag};
use pageserver_api::value::WalRecord;
use postgres_ffi::v15::rmgr::{RM_HEAP_ID, XLOG_HEAP_INIT_PAGE, XLOG_HEAP_INSERT};
use rustix::time::{ClockId, clock_gettime};
use utils::lsn::Lsn;
use wal_redo::reconstruct;

const REL: RelTag = RelTag {
    spcnode: 1663,
    dbnode: 5,
    relnode: 16384,
    fork: Fork::Main,
};
const BLOCK: u32 = 7;
/// Rows of one integer that fit on a page: 28 bytes, aligned, and a line pointer each.
const SMALL_ROWS: u16 = 226;

/// Insertion of a row with `len` bytes of values at `offset`, as a record in the WAL.
fn insert(offset: u16, info: u8, len: usize) -> WalRecord {
    let mut data = vec![1, 0, 0x00, 0x08, 24, 0];
    data.resize(6 + len, 0x5a);
    let main = [offset.to_le_bytes()[0], offset.to_le_bytes()[1], 0];
    let init = info & XLOG_HEAP_INIT_PAGE != 0;
    let mut raw = vec![0; 24];
    raw.extend_from_slice(&[0, 0x20 | if init { 0x40 } else { 0 }]);
    raw.extend_from_slice(&(data.len() as u16).to_le_bytes());
    for word in [REL.spcnode, REL.dbnode, REL.relnode, BLOCK] {
        raw.extend_from_slice(&word.to_le_bytes());
    }
    raw.extend_from_slice(&[255, main.len() as u8]);
    raw.extend_from_slice(&data);
    raw.extend_from_slice(&main);
    let len = raw.len() as u32;
    raw[..4].copy_from_slice(&len.to_le_bytes());
    raw[4..8].copy_from_slice(&700u32.to_le_bytes());
    raw[16] = XLOG_HEAP_INSERT | info;
    raw[17] = RM_HEAP_ID;
    WalRecord::Postgres {
        will_init: init,
        record: raw.into(),
    }
}

/// One reconstruction.
struct Case {
    key: Key,
    base: Bytes,
    records: Vec<(Lsn, WalRecord)>,
}

impl Case {
    /// A page with one row, and `count` more rows of `len` bytes to come.
    fn new(count: u16, len: usize) -> Self {
        let key = rel_block_key(REL, BLOCK);
        let first = [(Lsn(0x100), insert(1, XLOG_HEAP_INIT_PAGE, len))];
        let base = reconstruct(key, None, &first).expect("a first row fits");
        let records = (2..count + 2).map(|offset| (Lsn(0x100 + u64::from(offset)), insert(offset, 0, len)));
        Case {
            key,
            base,
            records: records.collect(),
        }
    }

    fn run(&self) {
        // The base stays with its owner, as it does with a page cache, so it is copied.
        let page = reconstruct(
            self.key,
            Some(black_box(self.base.clone())),
            black_box(&self.records),
        );
        black_box(page.expect("all rows fit"));
    }
}

/// CPU time of the current thread or of the whole process.
struct CpuTime(ClockId);

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let now = clock_gettime(self.0);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn cases(c: &mut Criterion<CpuTime>) {
    let short = Case::new(2, 100);
    let medium = Case::new(SMALL_ROWS - 1, 4);
    c.bench_function("short", |b| b.iter(|| short.run()));
    c.bench_function("medium", |b| b.iter(|| medium.run()));
}

fn threads(c: &mut Criterion<CpuTime>) {
    // Each its own page: the count of references to one base image would pass from core to core all the time.
    let cases = [Case::new(2, 100), Case::new(2, 100)];
    const PER_THREAD: u64 = 20_000;
    let mut group = c.benchmark_group("threads");
    for threads in [1, 2] {
        group.throughput(Throughput::Elements(PER_THREAD * threads as u64));
        group.bench_function(BenchmarkId::from_parameter(threads), |b| {
            b.iter(|| {
                thread::scope(|scope| {
                    for case in &cases[..threads] {
                        scope.spawn(|| (0..PER_THREAD).for_each(|_| case.run()));
                    }
                });
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = one_thread;
    config = Criterion::default().with_measurement(CpuTime(ClockId::ThreadCPUTime));
    targets = cases
}
criterion_group! {
    name = more_threads;
    config = Criterion::default().with_measurement(CpuTime(ClockId::ProcessCPUTime));
    targets = threads
}
criterion_main!(one_thread, more_threads);
