//! The elections this data directory's server took part in, kept in a file beside its data.
//!
//! The proposer may be restarted while the server runs on. It must then know which terms were its own:
//! WAL of another proposer's term means that the server has been replaced. The file counts only for one
//! run of the server, and is gone after a clean end.
//!
//! Another file says in which term the timeline was found empty before the server's base backup was
//! taken ([`PastTerms::empty_at`]). That stays true for ever. Whoever makes the data directory keeps it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use safekeeper_api::protocol::Term;
use utils::crashsafe;
use utils::id::TimelineId;
use utils::lsn::Lsn;
use walproposer::PastTerms;

const FILE_NAME: &str = "walproposer.terms";
const EMPTY_FILE_NAME: &str = "walproposer.empty";

/// The file, bound to one run of the server.
#[derive(Debug)]
pub struct PastTermsFile {
    path: PathBuf,
    /// First line of the file: tells this run of the server from all others.
    run: String,
}

impl PastTermsFile {
    /// The file for the server that runs on `data_dir` now, whose WAL began at `start_lsn`.
    pub fn new(data_dir: &Path, start_lsn: Lsn) -> PastTermsFile {
        // Process id, data directory and start time are the first three lines.
        let pid_file = std::fs::read_to_string(data_dir.join("postmaster.pid")).unwrap_or_default();
        let mut lines = pid_file.lines();
        let (pid, started) = (lines.next().unwrap_or_default(), lines.nth(1).unwrap_or_default());
        PastTermsFile {
            path: data_dir.join(FILE_NAME),
            run: format!("{pid} {started} {start_lsn}"),
        }
    }

    /// What earlier runs of the proposer have kept; nothing if there were none.
    ///
    /// # Errors
    /// The file is there but cannot be read.
    pub fn load(&self) -> Result<PastTerms> {
        let text = match std::fs::read_to_string(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(PastTerms::default()),
            other => other.with_context(|| format!("cannot read {}", self.path.display()))?,
        };
        let mut lines = text.lines();
        if lines.next() != Some(&self.run) {
            return Ok(PastTerms::default());
        }
        let terms = lines.next().unwrap_or_default().split_whitespace();
        let terms = terms.map(|term| Ok(Term(term.parse()?)));
        let terms: Vec<Term> = terms
            .collect::<Result<_>>()
            .with_context(|| format!("{} is malformed", self.path.display()))?;
        let (campaign, elected) = terms.split_first().context("no campaign")?;
        Ok(PastTerms {
            campaign: *campaign,
            elected: elected.to_vec(),
            empty_at: Term::ZERO,
        })
    }

    /// Replaces what is kept.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn store(&self, past: &PastTerms) -> Result<()> {
        let mut text = format!("{}\n{}", self.run, past.campaign);
        for term in &past.elected {
            text.push_str(&format!(" {term}"));
        }
        text.push('\n');
        let temp = crashsafe::with_suffix(&self.path, ".tmp");
        crashsafe::write_atomically(&self.path, &temp, text.as_bytes()).context("cannot keep the term")
    }

    /// Removes the file after a clean end.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.with_context(|| format!("cannot remove {}", self.path.display())),
        }
    }
}

/// Keeps the term in which the timeline was found empty.
///
/// # Errors
/// The file cannot be written.
pub fn store_empty_at(data_dir: &Path, timeline_id: TimelineId, term: Term) -> Result<()> {
    let path = data_dir.join(EMPTY_FILE_NAME);
    let temp = crashsafe::with_suffix(&path, ".tmp");
    let text = format!("{timeline_id} {term}\n");
    crashsafe::write_atomically(&path, &temp, text.as_bytes())
        .context("cannot keep the term in which the timeline was empty")
}

/// The term in which the timeline was found empty, 0 if it was not.
///
/// # Errors
/// The file is there but cannot be read.
pub fn load_empty_at(data_dir: &Path, timeline_id: TimelineId) -> Result<Term> {
    let path = data_dir.join(EMPTY_FILE_NAME);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Term::ZERO),
        other => other.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let malformed = || format!("{} is malformed", path.display());
    let (timeline, term) = text.trim_end().split_once(' ').with_context(malformed)?;
    if timeline != timeline_id.to_string() {
        return Ok(Term::ZERO);
    }
    Ok(Term(term.parse().with_context(malformed)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_for_one_run_of_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("postmaster.pid");
        std::fs::write(&pid_file, "17\n/data\n1700000000\n5432\n").unwrap();
        let file = PastTermsFile::new(dir.path(), Lsn(16));
        assert_eq!(file.load().unwrap(), PastTerms::default());
        let past = PastTerms {
            campaign: Term(9),
            elected: vec![Term(4), Term(8)],
            empty_at: Term::ZERO,
        };
        file.store(&past).unwrap();
        assert_eq!(PastTermsFile::new(dir.path(), Lsn(16)).load().unwrap(), past);

        let other_start = PastTermsFile::new(dir.path(), Lsn(24));
        assert_eq!(other_start.load().unwrap(), PastTerms::default());
        std::fs::write(&pid_file, "17\n/data\n1700000001\n5432\n").unwrap();
        let other_run = PastTermsFile::new(dir.path(), Lsn(16));
        assert_eq!(other_run.load().unwrap(), PastTerms::default());
        file.remove().unwrap();
        file.remove().unwrap();
        assert_eq!(file.load().unwrap(), PastTerms::default());
    }

    #[test]
    fn an_empty_timeline_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (TimelineId::from([1; 16]), TimelineId::from([2; 16]));
        assert_eq!(load_empty_at(dir.path(), ours).unwrap(), Term::ZERO);
        store_empty_at(dir.path(), ours, Term(7)).unwrap();
        assert_eq!(load_empty_at(dir.path(), ours).unwrap(), Term(7));
        assert_eq!(load_empty_at(dir.path(), other).unwrap(), Term::ZERO);
        std::fs::write(dir.path().join(EMPTY_FILE_NAME), "nonsense").unwrap();
        load_empty_at(dir.path(), ours).unwrap_err();
    }
}
