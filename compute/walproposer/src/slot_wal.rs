//! WAL that logical replication slots need: kept by the safekeepers, and brought into a new data directory before its
//! server starts.
//!
//! Safekeepers remove WAL that each of them has, once it is needed nowhere else. How far that is the proposer tells
//! them, and with [`HeldWal`] not further than the oldest slot. A new slot counts after a second at most.
//!
//! A base backup has the WAL from the compute's start on, and nothing older. Logical decoding begins at a slot's
//! `restart_lsn`, which may lie far back; that WAL is with the safekeepers.
//!
//! Invariant: a segment file appears in `pg_wal` when it is whole. The last one is there already; what lies before the
//! compute's start is filled in when everything has been received.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use postgres_client::Config;
use pq_proto::replication::ReplicationMessage;
use tracing::warn;
use utils::lsn::Lsn;

use crate::settings::Settings;

/// Size of a WAL segment in bytes.
const SEGMENT: u64 = 16 << 20;
/// A safekeeper that sends no WAL for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How often a running server's slots are looked at.
const REFRESH_PERIOD: Duration = Duration::from_secs(1);

/// First word of a slot's state file.
const STATE_MAGIC: u32 = 0x0105_1CA1;
/// Where the state file has the slot's database, 0 for a physical slot: behind 16 bytes of checksum, version and length, and the name.
const STATE_DATABASE: usize = 16 + 64;
/// Where it has `restart_lsn`: behind database, persistency and two transaction ids.
const STATE_RESTART_LSN: usize = STATE_DATABASE + 16;

/// The oldest WAL that any logical slot of the data directory needs; `None` if there is no slot.
///
/// # Errors
/// A state file cannot be read, or is none.
pub fn oldest_needed(pgdata: &Path) -> Result<Option<Lsn>> {
    let slots = pgdata.join("pg_replslot");
    let mut oldest = None;
    let entries = match std::fs::read_dir(&slots) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("cannot list {}", slots.display()))?,
    };
    for entry in entries {
        let path = entry?.path().join("state");
        let state = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let lsn = restart_lsn(&state).with_context(|| format!("{} is no slot's state", path.display()))?;
        oldest = oldest.into_iter().chain(lsn).min();
    }
    Ok(oldest)
}

/// `restart_lsn` of a logical slot; `None` if the slot is physical or keeps no WAL.
fn restart_lsn(state: &[u8]) -> Result<Option<Lsn>> {
    let word = |at: usize| state.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    ensure!(word(0) == Some(STATE_MAGIC), "the magic number is missing");
    let lsn = state.get(STATE_RESTART_LSN..STATE_RESTART_LSN + 8);
    let lsn = lsn.and_then(|raw| raw.try_into().ok()).context("it ends early")?;
    let lsn = Lsn(u64::from_le_bytes(lsn));
    Ok((word(STATE_DATABASE) != Some(0) && lsn.is_valid()).then_some(lsn))
}

/// WAL that the slots of a running server hold back.
#[derive(Debug)]
pub struct HeldWal {
    pgdata: PathBuf,
    oldest: Option<Lsn>,
    read_at: Instant,
}

impl HeldWal {
    /// What slots of the data directory hold back now.
    ///
    /// # Errors
    /// As [`oldest_needed`].
    pub fn new(pgdata: &Path) -> Result<Self> {
        Ok(HeldWal {
            oldest: oldest_needed(pgdata)?,
            pgdata: pgdata.to_owned(),
            read_at: Instant::now(),
        })
    }

    /// Looks at the slots again if the last time is a while ago.
    ///
    /// # Errors
    /// As [`oldest_needed`].
    pub fn refresh(&mut self) -> Result<()> {
        if self.read_at.elapsed() >= REFRESH_PERIOD {
            *self = HeldWal::new(&self.pgdata)?;
        }
        Ok(())
    }

    /// `lsn`, up to which every safekeeper has the WAL, or less: up to where they may remove it.
    pub fn limit(&self, lsn: Lsn) -> Lsn {
        self.oldest.map_or(lsn, |oldest| lsn.min(oldest))
    }
}

/// Fetches the WAL that slots need from before `end`, where the base backup's WAL begins.
///
/// # Errors
/// No safekeeper has all of it. Nothing in `pg_wal` has changed then.
pub async fn fetch(settings: &Settings, pgdata: &Path, end: Lsn) -> Result<()> {
    let Some(oldest) = oldest_needed(pgdata)?.filter(|oldest| *oldest < end) else {
        return Ok(());
    };
    let start = Lsn(oldest.0 / SEGMENT * SEGMENT);
    for index in 0..settings.safekeepers.len() {
        let mut segments = Segments::new(&pgdata.join("pg_wal"), start, end);
        let received = receive(settings.safekeeper(index), &mut segments).await;
        match received {
            Ok(()) => return segments.install(),
            Err(error) => {
                let (host, port) = &settings.safekeepers[index];
                warn!("cannot fetch WAL from {host}:{port}: {error:#}");
                segments.discard();
            }
        }
    }
    bail!("no safekeeper has the WAL from {start} to {end} that replication slots need")
}

async fn receive(config: Config, segments: &mut Segments) -> Result<()> {
    let client = tokio::time::timeout(SILENCE_MAX, config.connect())
        .await
        .context("it does not answer")??;
    let command = format!("START_REPLICATION PHYSICAL {}", segments.at);
    let (mut reader, _writer) = client.copy_both(&command).await?;
    while segments.at < segments.end {
        let wal = tokio::time::timeout(SILENCE_MAX, next_wal(&mut reader))
            .await
            .context("it sends nothing more")??;
        segments.append(wal)?;
    }
    Ok(())
}

async fn next_wal(reader: &mut postgres_client::CopyBothReader) -> Result<(Lsn, Bytes)> {
    loop {
        let payload = reader.next().await?.context("it ended the stream")?;
        if let ReplicationMessage::XLogData { start, wal, .. } = ReplicationMessage::parse(payload)? {
            return Ok((start, wal));
        }
    }
}

/// Segments being received, under temporary names.
struct Segments {
    directory: PathBuf,
    at: Lsn,
    end: Lsn,
    open: Option<File>,
    received: Vec<u64>,
}

impl Segments {
    fn new(directory: &Path, start: Lsn, end: Lsn) -> Self {
        Segments {
            directory: directory.to_owned(),
            at: start,
            end,
            open: None,
            received: Vec::new(),
        }
    }

    /// Name of a segment of PostgreSQL's timeline 1.
    fn path(&self, number: u64) -> PathBuf {
        let per_id = (1 << 32) / SEGMENT;
        self.directory
            .join(format!("{:08X}{:08X}{:08X}", 1, number / per_id, number % per_id))
    }

    fn temporary(&self, number: u64) -> PathBuf {
        utils::crashsafe::with_suffix(&self.path(number), ".fetched")
    }

    fn append(&mut self, (start, wal): (Lsn, Bytes)) -> Result<()> {
        ensure!(start == self.at, "it sent WAL from {start}, expected {}", self.at);
        let wanted = usize::try_from(self.end.0 - self.at.0).unwrap_or(usize::MAX);
        let mut rest = &wal[..wal.len().min(wanted)];
        while !rest.is_empty() {
            let number = self.at.0 / SEGMENT;
            let room = usize::try_from(SEGMENT - self.at.0 % SEGMENT).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            if self.received.last() != Some(&number) {
                let path = self.temporary(number);
                let file =
                    File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
                self.open = Some(file);
                self.received.push(number);
            }
            let file = self.open.as_mut().expect("opened with the segment's first byte");
            file.write_all(now).context("cannot write WAL")?;
            self.at.0 += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Gives whole segments their names, and puts the beginning of the last one into the base backup's file.
    fn install(&self) -> Result<()> {
        for number in &self.received {
            let (temporary, path) = (self.temporary(*number), self.path(*number));
            let context = || format!("cannot install {}", path.display());
            if path.exists() {
                let mut beginning = Vec::new();
                File::open(&temporary)
                    .and_then(|mut file| file.read_to_end(&mut beginning))
                    .with_context(context)?;
                let file = File::options().write(true).open(&path).with_context(context)?;
                file.write_all_at(&beginning, 0).with_context(context)?;
                std::fs::remove_file(&temporary).with_context(context)?;
            } else {
                std::fs::rename(&temporary, &path).with_context(context)?;
            }
        }
        Ok(())
    }

    fn discard(&self) {
        for number in &self.received {
            // It would be in nobody's way.
            let _ = std::fs::remove_file(self.temporary(*number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(database: u32, restart_lsn: u64) -> Vec<u8> {
        let mut raw = vec![0; 200];
        raw[..4].copy_from_slice(&STATE_MAGIC.to_le_bytes());
        raw[80..84].copy_from_slice(&database.to_le_bytes());
        raw[96..104].copy_from_slice(&restart_lsn.to_le_bytes());
        raw
    }

    #[test]
    fn the_oldest_logical_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(oldest_needed(dir.path()).unwrap(), None);
        let slots = dir.path().join("pg_replslot");
        std::fs::create_dir(&slots).unwrap();
        assert_eq!(oldest_needed(dir.path()).unwrap(), None);
        assert_eq!(HeldWal::new(dir.path()).unwrap().limit(Lsn(0x250)), Lsn(0x250));
        for (name, state) in [
            ("a", state(5, 0x300)),
            ("b", state(5, 0x200)),
            ("physical", state(0, 0x100)),
            ("lost", state(5, 0)),
        ] {
            std::fs::create_dir(slots.join(name)).unwrap();
            std::fs::write(slots.join(name).join("state"), state).unwrap();
        }
        assert_eq!(oldest_needed(dir.path()).unwrap(), Some(Lsn(0x200)));
        let held = HeldWal::new(dir.path()).unwrap();
        assert_eq!(
            (held.limit(Lsn(0x150)), held.limit(Lsn(0x250))),
            (Lsn(0x150), Lsn(0x200))
        );
        std::fs::write(slots.join("a/state"), b"nonsense").unwrap();
        assert!(oldest_needed(dir.path()).is_err());
    }

    #[test]
    fn segments_appear_when_all_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let end = Lsn(2 * SEGMENT + 100);
        let mut segments = Segments::new(dir.path(), Lsn(SEGMENT), end);
        let last = dir.path().join("000000010000000000000002");
        std::fs::write(&last, vec![7; 200]).unwrap();
        let first = dir.path().join("000000010000000000000001");
        let wal = Bytes::from(vec![1; SEGMENT as usize + 150]);
        assert!(segments.append((Lsn(SEGMENT + 1), wal.clone())).is_err());
        segments.append((Lsn(SEGMENT), wal)).unwrap();
        assert_eq!(segments.at, end);
        assert!(!first.exists());
        segments.install().unwrap();
        assert_eq!(std::fs::metadata(&first).unwrap().len(), SEGMENT);
        let mut expected = vec![1; 100];
        expected.extend(vec![7; 100]);
        assert_eq!(std::fs::read(&last).unwrap(), expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
