//! What was found, per resource manager and kind of record.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Result, bail};
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::rmgr::{MANAGERS, RECORD_KINDS, record_name, rmgr_name};
use serde::Serialize;
use utils::lsn::Lsn;
use wal_redo::{PageBuf, PageTag};

/// Findings kept in full; more are only counted.
const FINDINGS_MAX: usize = 50;
/// Differing bytes shown of one page.
const BYTES_SHOWN_MAX: usize = 8;

/// Number of the resource manager with this name, in any case of letters.
pub fn rmgr_number(name: &str) -> Result<u8> {
    for (_, id) in MANAGERS {
        if rmgr_name(*id).is_some_and(|known| known.eq_ignore_ascii_case(name)) {
            return Ok(*id);
        }
    }
    bail!("no resource manager is named {name:?}")
}

/// Counts for one kind of record.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counts {
    /// Records.
    pub records: u64,
    /// Bytes of these records.
    pub bytes: u64,
    /// Blocks replayed natively and equal to their image.
    pub equal: u64,
    /// Blocks replayed natively and different from their image.
    pub mismatches: u64,
    /// Blocks that could not be replayed.
    pub errors: u64,
    /// Blocks restored from a full-page image, as PostgreSQL does.
    pub restored: u64,
    /// Blocks replayed natively without an image to compare with.
    pub no_image: u64,
    /// Blocks whose page was not known before: started from the image, or left alone.
    pub started: u64,
}

/// How a block was dealt with.
#[derive(Clone, Copy, Debug)]
pub enum Compared {
    Equal,
    Restored,
    NoImage,
    Started,
}

/// A block whose replay went wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    lsn: Lsn,
    rmgr: String,
    kind: String,
    page: String,
    what: String,
}

/// Where two pages differ first.
#[derive(Debug)]
pub struct Difference(String);

impl Difference {
    /// Lists the first differing bytes.
    pub fn between(ours: &PageBuf, theirs: &PageBuf) -> Self {
        let mut text = String::new();
        let differing = || ours.iter().zip(theirs).enumerate().filter(|(_, (a, b))| a != b);
        for (offset, (ours, theirs)) in differing().take(BYTES_SHOWN_MAX) {
            let _ = write!(text, "{offset}: {ours:02x} instead of {theirs:02x}, ");
        }
        let _ = write!(text, "{} bytes differ", differing().count());
        Difference(text)
    }

    /// One of the pages cannot even be masked.
    pub fn corrupt() -> Self {
        Difference("page pointers are out of order".to_owned())
    }
}

/// All findings.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    #[serde(serialize_with = "serialize_kinds", rename = "kinds")]
    counts: CountTable,
    findings: Vec<Finding>,
    /// Records that could not be taken apart, and kinds that are not known.
    pub unknown_records: u64,
    /// Start of the first record.
    pub wal_start: Lsn,
    /// End of the last record.
    pub wal_end: Lsn,
    /// How often segments were missing.
    pub gaps: u64,
    /// Pages equal to those of the data directory at the end.
    pub final_pages_equal: u64,
    /// Pages different from those of the data directory at the end.
    pub final_pages_differing: u64,
    /// Pages of commit status and multixacts equal to those of the data directory at the end.
    pub slru_pages_equal: u64,
    /// CPU time of the process, user's and system's, up to the end of replay, in seconds: without comparing with a
    /// data directory and without giving memory back. Threads that still replay then are not waited for.
    pub replay_cpu_seconds: f64,
    /// Resource manager the report is restricted to.
    #[serde(skip)]
    pub only: Option<u8>,
}

/// Counts by resource manager and the upper half of the info byte, which is the resource manager's: this is looked up
/// for each record and block.
#[derive(Clone, Debug)]
struct CountTable(Vec<Counts>);

impl CountTable {
    fn new() -> Self {
        CountTable(vec![Counts::default(); 256 * 16])
    }

    fn of(&mut self, record: &RecordRef<'_>) -> &mut Counts {
        let (rmid, info) = (record.header.rmid, record.header.info);
        &mut self.0[usize::from(rmid) << 4 | usize::from(info >> 4)]
    }

    /// By resource manager and name of the kind, those that occurred.
    fn by_kind(&self) -> BTreeMap<(u8, &'static str), Counts> {
        let mut kinds: BTreeMap<_, Counts> = BTreeMap::new();
        for (index, counts) in self.0.iter().enumerate().filter(|(_, counts)| counts.occurred()) {
            let (rmid, info) = ((index >> 4) as u8, (index << 4) as u8);
            kinds
                .entry((rmid, record_name(rmid, info)))
                .or_default()
                .add(counts);
        }
        kinds
    }
}

impl Counts {
    fn occurred(&self) -> bool {
        self.records
            + self.equal
            + self.mismatches
            + self.errors
            + self.restored
            + self.no_image
            + self.started
            > 0
    }

    fn add(&mut self, other: &Counts) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.equal += other.equal;
        self.mismatches += other.mismatches;
        self.errors += other.errors;
        self.restored += other.restored;
        self.no_image += other.no_image;
        self.started += other.started;
    }
}

impl Default for Report {
    fn default() -> Self {
        Report {
            counts: CountTable::new(),
            findings: Vec::new(),
            unknown_records: 0,
            wal_start: Lsn(0),
            wal_end: Lsn(0),
            gaps: 0,
            final_pages_equal: 0,
            final_pages_differing: 0,
            slru_pages_equal: 0,
            replay_cpu_seconds: 0.0,
            only: None,
        }
    }
}

fn serialize_kinds<S: serde::Serializer>(counts: &CountTable, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(
        counts
            .by_kind()
            .iter()
            .map(|((rmid, kind), counts)| (format!("{}/{kind}", rmgr_text(*rmid)), counts)),
    )
}

fn rmgr_text(rmid: u8) -> String {
    rmgr_name(rmid).map_or_else(|| format!("rmgr {rmid}"), str::to_owned)
}

fn page_text(tag: PageTag) -> String {
    format!(
        "{}/{}/{} fork {} block {}",
        tag.spcnode, tag.dbnode, tag.relnode, tag.forknum, tag.blkno
    )
}

impl Report {
    fn counts(&mut self, record: &RecordRef<'_>) -> &mut Counts {
        self.counts.of(record)
    }

    /// Counts a record of `len` bytes.
    pub fn count_record(&mut self, record: &RecordRef<'_>, len: usize, end: Lsn) {
        let counts = self.counts(record);
        counts.records += 1;
        counts.bytes += len as u64;
        // Whether a kind is known needs to be found out once.
        if counts.records == 1 && record_name(record.header.rmid, record.header.info) == "UNKNOWN" {
            self.unknown_records += 1;
            self.find(
                record,
                end,
                "-".to_owned(),
                "no such kind of record is known".to_owned(),
            );
        }
    }

    /// Counts a block.
    pub fn count_block(&mut self, record: &RecordRef<'_>, how: Compared) {
        let counts = self.counts(record);
        match how {
            Compared::Equal => counts.equal += 1,
            Compared::Restored => counts.restored += 1,
            Compared::NoImage => counts.no_image += 1,
            Compared::Started => counts.started += 1,
        }
    }

    /// A record could not be taken apart.
    pub fn unreadable(&mut self, end: Lsn, what: &str) {
        self.unknown_records += 1;
        self.push(Finding {
            lsn: end,
            rmgr: "-".to_owned(),
            kind: "-".to_owned(),
            page: "-".to_owned(),
            what: what.to_owned(),
        });
    }

    /// A block could not be replayed.
    pub fn failed(&mut self, record: &RecordRef<'_>, end: Lsn, tag: PageTag, what: String) {
        self.counts(record).errors += 1;
        self.find(record, end, page_text(tag), what);
    }

    /// A block was replayed to something else than its image.
    pub fn differs(&mut self, record: &RecordRef<'_>, end: Lsn, tag: PageTag, difference: Difference) {
        self.counts(record).mismatches += 1;
        self.find(record, end, page_text(tag), difference.0);
    }

    /// A page differs from the data directory's at the end.
    pub fn differs_at_end(&mut self, tag: PageTag, difference: Difference) {
        self.final_pages_differing += 1;
        self.push(Finding {
            lsn: Lsn(0),
            rmgr: "-".to_owned(),
            kind: "final state".to_owned(),
            page: page_text(tag),
            what: difference.0,
        });
    }

    /// A page of an SLRU was compared with the data directory's at the end.
    pub fn slru_page_at_end(&mut self, directory: &str, page: u32, equal: bool) {
        if equal {
            self.slru_pages_equal += 1;
            return;
        }
        self.final_pages_differing += 1;
        self.push(Finding {
            lsn: Lsn(0),
            rmgr: "-".to_owned(),
            kind: "final state".to_owned(),
            page: format!("page {page} of {directory}"),
            what: "differs".to_owned(),
        });
    }

    /// A page is not in the data directory at the end.
    pub fn missing_at_end(&mut self, tag: PageTag) {
        self.differs_at_end(tag, Difference("the data directory has no such page".to_owned()));
    }

    fn find(&mut self, record: &RecordRef<'_>, end: Lsn, page: String, what: String) {
        self.push(Finding {
            lsn: end,
            rmgr: rmgr_text(record.header.rmid),
            kind: record_name(record.header.rmid, record.header.info).to_owned(),
            page,
            what,
        });
    }

    fn push(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// Adds what another thread found.
    pub fn merge(&mut self, other: Report) {
        for (sum, counts) in self.counts.0.iter_mut().zip(&other.counts.0) {
            sum.add(counts);
        }
        self.unknown_records += other.unknown_records;
        self.final_pages_equal += other.final_pages_equal;
        self.final_pages_differing += other.final_pages_differing;
        self.findings.extend(other.findings);
        self.findings.sort_by_key(|finding| finding.lsn);
        self.findings.truncate(FINDINGS_MAX);
    }

    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for ((rmid, _), counts) in self.counts.by_kind() {
            if self.only.is_none_or(|only| only == rmid) {
                total.add(&counts);
            }
        }
        total
    }

    /// Whether nothing differed, failed or was unknown.
    pub fn passed(&self) -> bool {
        let total = self.total();
        total.mismatches + total.errors + self.unknown_records + self.final_pages_differing == 0
    }

    /// Kinds of records that did not occur, as (resource manager, kind).
    fn not_exercised(&self) -> Vec<(&'static str, &'static str)> {
        let kinds = self.counts.by_kind();
        RECORD_KINDS
            .iter()
            .filter(|kind| self.only.is_none_or(|only| only == kind.rmid))
            .filter(|kind| {
                let name = record_name(kind.rmid, kind.info);
                !kinds.keys().any(|(rmid, seen)| {
                    *rmid == kind.rmid && (*seen == name || seen.strip_suffix("+INIT") == Some(name))
                })
            })
            .map(|kind| (rmgr_name(kind.rmid).unwrap_or("?"), kind.name))
            .collect()
    }

    /// The report as one line of JSON.
    pub fn to_json(&self) -> String {
        let mut value = serde_json::to_value(self).expect("a report has only texts and numbers");
        let not_exercised: Vec<String> = self
            .not_exercised()
            .into_iter()
            .map(|(rmgr, kind)| format!("{rmgr}/{kind}"))
            .collect();
        value["not_exercised"] = not_exercised.into();
        value["passed"] = self.passed().into();
        value["summary"] = self.summary().into();
        value.to_string()
    }

    /// The report as a table; the last line is the summary.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{:<18} {:<26} {:>10} {:>10} {:>9} {:>7} {:>9} {:>9} {:>8}",
            "rmgr", "kind", "records", "equal", "mismatch", "error", "restored", "no image", "started"
        );
        for ((rmid, kind), counts) in &self.counts.by_kind() {
            if self.only.is_some_and(|only| only != *rmid) {
                continue;
            }
            let _ = writeln!(
                out,
                "{:<18} {kind:<26} {:>10} {:>10} {:>9} {:>7} {:>9} {:>9} {:>8}",
                rmgr_text(*rmid),
                counts.records,
                counts.equal,
                counts.mismatches,
                counts.errors,
                counts.restored,
                counts.no_image,
                counts.started
            );
        }
        for (rmgr, kind) in self.not_exercised() {
            let _ = writeln!(out, "not exercised: {rmgr} {kind}");
        }
        for finding in &self.findings {
            let Finding {
                lsn,
                rmgr,
                kind,
                page,
                what,
            } = finding;
            let _ = writeln!(out, "{lsn} {rmgr} {kind} on {page}: {what}");
        }
        let _ = writeln!(out, "{}", self.summary());
        out
    }

    fn summary(&self) -> String {
        let total = self.total();
        format!(
            "{}: {} records ({} MB) from {} to {}, {} blocks equal, {} mismatches, {} errors, {} unknown, \
             {} restored from images, {} started from images, {} gaps, final pages {} equal {} differing, \
             SLRU pages {} equal",
            if self.passed() { "ok" } else { "FAILED" },
            total.records,
            total.bytes / 1_000_000,
            self.wal_start,
            self.wal_end,
            total.equal,
            total.mismatches,
            total.errors,
            self.unknown_records,
            total.restored,
            total.started,
            self.gaps,
            self.final_pages_equal,
            self.final_pages_differing,
            self.slru_pages_equal
        )
    }
}
