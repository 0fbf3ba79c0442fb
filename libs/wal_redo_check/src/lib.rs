//! Proof of `wal_redo` against PostgreSQL's own images.
//!
//! With `wal_consistency_checking = all` PostgreSQL puts into each record the image of every page as it is
//! after the change. The check follows the record chain, keeps the pages, replays each record natively and
//! compares the outcome with the image after masking what PostgreSQL's own check masks.
//!
//! The image is taken out of the record before redo sees it, so a page cannot pass by being copied.
//! Records whose image redo has to restore (full-page writes) are restored and not compared, as in
//! PostgreSQL.
//!
//! A change of a page that was not changed lately waits, and is made together with others of the same page.
//!
//! One thread reads and routes; each worker thread owns the pages whose tag hashes to it. Queues are
//! bounded. With one thread only, reader and worker are the same. Memory grows with the pages of the cluster, not
//! with the WAL.

mod compare;
mod crew;
mod deferred;
mod mask;
mod pages;
mod prefetch;
mod report;
mod route;
mod samples;
mod segments;
mod slru;
mod worker;

use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use utils::lsn::Lsn;

use crew::Crew;
pub use report::Report;
use route::Router;
use segments::{SegmentSource, WalRecords};

/// Check native WAL redo against the images in WAL written with wal_consistency_checking.
#[derive(Clone, Debug, clap::Parser)]
pub struct Options {
    /// Directory with WAL segments, which nobody may write to meanwhile; the chain is followed from the first one.
    pub wal_dir: PathBuf,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Compare and report only this resource manager (a name such as Btree); all are replayed.
    #[arg(long)]
    pub rmgr: Option<String>,
    /// First record, by default the first one that starts in the first segment.
    #[arg(long)]
    pub start: Option<Lsn>,
    /// Data directory as it was, shut down, at the start: pages come from there instead of from their first image.
    #[arg(long)]
    pub base: Option<PathBuf>,
    /// Data directory as it is, shut down, at the end: all pages are compared with it.
    #[arg(long)]
    pub compare: Option<PathBuf>,
    /// Wait for further segments until a file named "end" appears in the directory.
    #[arg(long)]
    pub follow: bool,
    /// Remove each segment once it was read.
    #[arg(long)]
    pub delete: bool,
    /// Number of threads that replay beside the one that reads. With 1, which takes the least CPU time in all, it is the same.
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Write one replayed block of each kind there, for the tests of wal_redo.
    #[arg(long)]
    pub samples: Option<PathBuf>,
}

/// Replays and compares everything.
pub fn check(options: &Options) -> Result<Report> {
    let rmgr = options.rmgr.as_deref().map(report::rmgr_number).transpose()?;
    let source = SegmentSource::new(options)?;
    let mut router = Router::new(Crew::new(options, rmgr), options);
    let mut records = WalRecords::new(source, options.start);
    let outcome = route_all(&mut records, &mut router);
    let cpu_seconds = cpu_seconds().context("cannot tell the time used")?;
    let (mut report, samples) = router.finish(options.compare.as_deref())?;
    if let Some(path) = &options.samples {
        samples.write(path)?;
    }
    outcome?;
    report.wal_start = records.first_record();
    report.wal_end = records.end();
    report.gaps = records.gaps();
    report.only = rmgr;
    report.replay_cpu_seconds = cpu_seconds;
    Ok(report)
}

fn route_all(records: &mut WalRecords, router: &mut Router) -> Result<()> {
    while let Some(next) = records.next()? {
        match next {
            segments::Next::Record { end } => router.record(end, records.record())?,
            segments::Next::Gap => router.forget_all()?,
        }
    }
    router.catch_up()
}

/// CPU time that this process has used so far, user's and system's.
fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let times = [usage.user_time(), usage.system_time()];
    Ok(times
        .map(|time| time.num_microseconds() as f64 / 1e6)
        .iter()
        .sum())
}
