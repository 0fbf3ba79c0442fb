//! Copying a timeline from its other safekeepers to one that has lost it, or never had it.
//!
//! The copy becomes a voter in the place of one that may have acknowledged WAL and given votes nobody
//! else here remembers. So it has to know at least as much as that one must have shared with others:
//! * A majority of all safekeepers that contained the lost one has, without it, `quorum - 1` members. Of the `n - 1`
//!   others, `n - quorum + 1` must answer: these meet every such majority.
//! * The WAL is that of the one with the newest last term and, in it, the most WAL.
//! * The term is the highest that any of them has.
//!
//! What this cannot know is a vote that the lost safekeeper gave in an election that has not reached any of the
//! others: do not copy while computes of the timeline are being started.
//!
//! The copy is complete, verified and durable before it appears under its name.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use safekeeper_api::models::{PullTimelineRequest, PullTimelineResponse, TermSwitch, TimelineStatus};
use safekeeper_api::protocol::{Term, TermHistory, TermLsn};
use tokio::io::AsyncWriteExt;
use tracing::{info, warn};
use utils::crashsafe;
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use crate::acceptor::{ControlState, ServerInfo};
use crate::config::Config;
use crate::control_file;
use crate::http::client::{self, ClientError};
use crate::timeline_map::TimelineMap;
use crate::wal_storage::{WalDir, WalStorage, verify_segment};

/// How often a copy is begun again because the timeline was cut off meanwhile.
const ATTEMPTS_MAX: usize = 5;

struct Donor<'a> {
    host: &'a str,
    status: TimelineStatus,
}

/// Copies the timeline; `token` is shown to the other safekeepers.
///
/// # Errors
/// Too few of the others answer, the timeline is here already, or the copy fails.
pub async fn run(
    map: &TimelineMap,
    request: &PullTimelineRequest,
    token: Option<&str>,
) -> anyhow::Result<PullTimelineResponse> {
    let id = TenantTimelineId::new(request.tenant_id, request.timeline_id);
    let reservation = map.reserve(id).await?;
    for _ in 0..ATTEMPTS_MAX {
        let (donor, term) = choose_donor(id, &request.http_hosts, token).await?;
        info!("copying timeline {id} from {}", donor.host);
        let Some(control) = copy(map.conf(), id, &donor, term, token).await? else {
            info!(
                "timeline {id} has changed on {} while it was copied: again",
                donor.host
            );
            continue;
        };
        reservation.install(&control)?;
        return Ok(PullTimelineResponse {
            safekeeper_host: donor.host.to_owned(),
        });
    }
    bail!("timeline {id} changed {ATTEMPTS_MAX} times while it was copied: stop its computes and try again")
}

fn status_path(id: TenantTimelineId) -> String {
    format!("/v1/tenant/{}/timeline/{}", id.tenant_id, id.timeline_id)
}

/// The safekeeper to copy from, and the term the copy must have.
async fn choose_donor<'a>(
    id: TenantTimelineId,
    hosts: &'a [String],
    token: Option<&str>,
) -> anyhow::Result<(Donor<'a>, Term)> {
    ensure!(!hosts.is_empty(), "no safekeepers to copy from are given");
    let mut donors = Vec::new();
    for host in hosts {
        match client::get_json(host, &status_path(id), token).await {
            Ok(status) => donors.push(Donor { host, status }),
            Err(error) => warn!(
                "cannot ask {host} for timeline {id}: {:#}",
                anyhow::Error::new(error)
            ),
        }
    }
    let all = hosts.len() + 1;
    let quorum = all / 2 + 1;
    let needed = all - quorum + 1;
    ensure!(
        donors.len() >= needed,
        "only {} of the {} other safekeepers have answered, {needed} must: acknowledged WAL might be missed",
        donors.len(),
        hosts.len()
    );
    let term = donors.iter().map(|donor| donor.status.acceptor_state.term).max();
    let best = donors
        .into_iter()
        .max_by_key(|donor| (donor.status.acceptor_state.epoch, donor.status.flush_lsn));
    Ok(best.zip(term.map(Term)).expect("there is at least one donor"))
}

/// Copies into the temporary directory. `None` if the donor's WAL was cut off meanwhile.
async fn copy(
    conf: &Config,
    id: TenantTimelineId,
    donor: &Donor<'_>,
    term: Term,
    token: Option<&str>,
) -> anyhow::Result<Option<ControlState>> {
    let mut control = control_of(id, &donor.status, term)?;
    let end = donor.status.flush_lsn;
    let dir = conf.timeline_temp_dir(id);
    crashsafe::remove_dir_all(&dir)?;
    crashsafe::create_dir_all(&dir)?;
    let wal_dir = WalDir {
        path: dir.clone(),
        segment_size: control.server.wal_seg_size as usize,
    };
    let first = copy_segments(&wal_dir, id, &control, (donor.host, end), token).await?;
    let after: TimelineStatus = client::get_json(donor.host, &status_path(id), token).await?;
    if history_of(&after.acceptor_state.term_history)? != control.term_history || after.flush_lsn < end {
        return Ok(None);
    }
    // The donor may have removed its oldest segments.
    let first_lsn = Lsn(first * wal_dir.segment_size as u64);
    control.local_start_lsn = control.local_start_lsn.max(first_lsn);
    tokio::task::block_in_place(|| finish(conf, wal_dir, &control, end))?;
    Ok(Some(control))
}

fn control_of(id: TenantTimelineId, status: &TimelineStatus, term: Term) -> anyhow::Result<ControlState> {
    let mut control = ControlState::empty(id);
    control.term = term;
    control.term_history = history_of(&status.acceptor_state.term_history)?;
    control.server = ServerInfo {
        pg_version: status.pg_info.pg_version,
        system_id: status.pg_info.system_id,
        wal_seg_size: status.pg_info.wal_seg_size,
    };
    ensure!(
        crate::wal_storage::is_valid_segment_size(control.server.wal_seg_size),
        "{} bytes is no size for WAL segments",
        control.server.wal_seg_size
    );
    control.timeline_start_lsn = status.timeline_start_lsn;
    control.local_start_lsn = status.local_start_lsn;
    control.commit_lsn = status.commit_lsn.min(status.flush_lsn);
    control.backup_lsn = status.backup_lsn;
    control.peer_horizon_lsn = status.peer_horizon_lsn;
    control.remote_consistent_lsn = status.remote_consistent_lsn;
    Ok(control)
}

fn history_of(entries: &[TermSwitch]) -> anyhow::Result<TermHistory> {
    let entry = |switch: &TermSwitch| TermLsn {
        term: Term(switch.term),
        lsn: switch.lsn,
    };
    Ok(TermHistory::new(entries.iter().map(entry).collect())?)
}

/// Copies all segments up to the one of the end; returns the number of the first there is.
async fn copy_segments(
    dir: &WalDir,
    id: TenantTimelineId,
    control: &ControlState,
    (host, end): (&str, Lsn),
    token: Option<&str>,
) -> anyhow::Result<u64> {
    let first = control.local_start_lsn.segment_number(dir.segment_size);
    let last = Lsn(end.0.saturating_sub(1)).segment_number(dir.segment_size);
    let mut found_first = None;
    for segno in first..=last {
        let is_copied = copy_segment(dir, segno, id, host, token).await?;
        match found_first {
            None if is_copied => found_first = Some(segno),
            Some(_) if !is_copied => bail!("{host} has no WAL segment {}", dir.segment_name(segno)),
            _ => {}
        }
    }
    let has_wal = control.term_history.last().is_some() && end > control.local_start_lsn;
    match found_first {
        None if has_wal => bail!("{host} has no WAL of timeline {id}"),
        found => Ok(found.unwrap_or(first)),
    }
}

/// Copies a segment under its partial name; false if the donor does not have it.
async fn copy_segment(
    dir: &WalDir,
    segno: u64,
    id: TenantTimelineId,
    host: &str,
    token: Option<&str>,
) -> anyhow::Result<bool> {
    let name = dir.segment_name(segno);
    // The segment may be completed between the first question and the second.
    for name in [name.clone() + crate::wal_storage::PARTIAL_SUFFIX, name] {
        match fetch(dir.partial_path(segno), id, host, &name, token).await {
            Ok(()) => return Ok(true),
            Err(error)
                if error
                    .downcast_ref::<ClientError>()
                    .is_some_and(ClientError::is_not_found) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

async fn fetch(
    to: PathBuf,
    id: TenantTimelineId,
    host: &str,
    name: &str,
    token: Option<&str>,
) -> anyhow::Result<()> {
    let path = format!("{}/file/{name}", status_path(id));
    let mut response = client::get(host, &path, token).await?;
    let context = || format!("cannot write {}", to.display());
    let mut file = tokio::fs::File::create(&to).await.with_context(context)?;
    while let Some(piece) = client::next_piece(&mut response, host).await? {
        file.write_all(&piece).await.with_context(context)?;
    }
    file.flush().await.with_context(context)?;
    file.sync_all().await.with_context(context)
}

/// Verifies the copied WAL, clears what is behind its end, gives complete segments their names, and
/// writes the control file.
fn finish(conf: &Config, dir: WalDir, control: &ControlState, end: Lsn) -> anyhow::Result<()> {
    let copied = dir.segments()?;
    let mut verified = end;
    for segment in &copied {
        verified = verify_segment(&dir, segment.segno, end)?;
    }
    ensure!(
        copied.is_empty() || verified >= end,
        "the WAL copied ends at {verified}, it should reach {end}"
    );
    for segment in &copied {
        let segment_end = Lsn((segment.segno + 1) * dir.segment_size as u64);
        if segment_end <= end {
            std::fs::rename(&segment.path, dir.full_path(segment.segno))
                .with_context(|| format!("cannot rename {}", segment.path.display()))?;
        }
    }
    let path: &Path = &dir.path.clone();
    if !copied.is_empty() {
        WalStorage::open(dir, conf.sync, control.server, end).truncate(end)?;
    }
    control_file::store(path, control, conf.sync)?;
    Ok(())
}
