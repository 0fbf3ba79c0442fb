//! The elections this data directory's server took part in, kept in a file beside its data.
//!
//! The proposer may be restarted while the server runs on. It must then know which terms were its own:
//! WAL of another proposer's term means that the server has been replaced. The file counts only for one
//! run of the server, and is gone after a clean end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use safekeeper_api::protocol::Term;
use utils::crashsafe;
use utils::lsn::Lsn;
use walproposer::PastTerms;

const FILE_NAME: &str = "walproposer.terms";

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
}
