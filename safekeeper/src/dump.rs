//! The debug dump: what a safekeeper knows and has on disk, for people and tests.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use pq_proto::replication::unix_micros;
use safekeeper_api::debug_dump::{
    Dump, DumpAcceptor, DumpConfig, DumpControl, DumpDisk, DumpFile, DumpMemState, DumpMemory,
    DumpPageserverFeedback, DumpPeer, DumpReplica, DumpStandbyFeedback, DumpTermSwitch, DumpTime,
    DumpTimeline,
};
use safekeeper_api::models::ServerInfo;
use safekeeper_api::protocol::{HotStandbyFeedback, PageserverFeedback};
use utils::id::{TenantId, TimelineId};

use crate::Sync;
use crate::acceptor::ControlState;
use crate::config::{Config, WalBackup};
use crate::timeline::{Reader, Timeline};
use crate::timeline_map::TimelineMap;

/// Whether a part of the dump is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// It is.
    Wanted,
    /// It is not.
    Skipped,
}

/// What is to be dumped.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// Persisted states.
    pub control_file: Part,
    /// States in memory.
    pub memory: Part,
    /// Files. Reads them all.
    pub disk_content: Part,
    /// Term histories in the persisted states.
    pub term_history: Part,
    /// Only this tenant.
    pub tenant_id: Option<TenantId>,
    /// Only this timeline.
    pub timeline_id: Option<TimelineId>,
}

fn time_text(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(time).to_string()
}

/// Makes the dump.
pub async fn build(map: &TimelineMap, selection: Selection) -> Dump {
    let start_time = time_text(SystemTime::now());
    let all = map.all();
    let mut timelines = Vec::new();
    for timeline in &all {
        let id = timeline.id();
        let wanted = selection.tenant_id.is_none_or(|wanted| wanted == id.tenant_id)
            && selection
                .timeline_id
                .is_none_or(|wanted| wanted == id.timeline_id);
        if wanted {
            timelines.push(dump_timeline(map.conf(), timeline, selection).await);
        }
    }
    Dump {
        start_time,
        finish_time: time_text(SystemTime::now()),
        timelines,
        timelines_count: all.len(),
        config: dump_config(map.conf()),
    }
}

fn dump_config(conf: &Config) -> DumpConfig {
    DumpConfig {
        id: conf.id,
        workdir: conf.workdir.display().to_string(),
        listen_pg_addr: conf.listen_pg_addr.clone(),
        listen_http_addr: conf.listen_http_addr.clone(),
        no_sync: conf.sync == Sync::No,
        max_offloader_lag_bytes: conf.max_offloader_lag_bytes,
        wal_backup_enabled: conf.wal_backup == WalBackup::Enabled,
    }
}

async fn dump_timeline(conf: &Config, timeline: &Arc<Timeline>, selection: Selection) -> DumpTimeline {
    let id = timeline.id();
    // A timeline that cannot be opened is dumped too, as far as it is known.
    let control = match timeline.control().await {
        Ok(control) if selection.control_file == Part::Wanted => {
            Some(dump_control(&control, selection.term_history))
        }
        _ => None,
    };
    let memory = match selection.memory {
        Part::Wanted => Some(dump_memory(conf, timeline).await),
        Part::Skipped => None,
    };
    let disk_content = match selection.disk_content {
        Part::Wanted => tokio::task::block_in_place(|| dump_disk(&conf.timeline_dir(id))).ok(),
        Part::Skipped => None,
    };
    DumpTimeline {
        tenant_id: id.tenant_id,
        timeline_id: id.timeline_id,
        control_file: control,
        memory,
        disk_content,
    }
}

/// The persisted state as it is dumped, also by `--dump-control-file`.
pub fn dump_control(control: &ControlState, term_history: Part) -> DumpControl {
    let entries = match term_history {
        Part::Wanted => control.term_history.entries(),
        Part::Skipped => &[],
    };
    let switch = |entry: &safekeeper_api::protocol::TermLsn| DumpTermSwitch {
        term: entry.term.0,
        lsn: entry.lsn.0,
    };
    let peers = control.peers.iter().map(|(id, peer)| {
        let peer = DumpPeer {
            backup_lsn: peer.backup_lsn.0,
            term: peer.term.0,
            flush_lsn: peer.flush_lsn.0,
            commit_lsn: peer.commit_lsn.0,
        };
        (*id, peer)
    });
    DumpControl {
        tenant_id: control.id.tenant_id,
        timeline_id: control.id.timeline_id,
        acceptor_state: DumpAcceptor {
            term: control.term.0,
            term_history: entries.iter().map(switch).collect(),
        },
        server: ServerInfo {
            pg_version: control.server.pg_version,
            system_id: control.server.system_id,
            wal_seg_size: control.server.wal_seg_size,
        },
        proposer_uuid: control.proposer_id.to_string(),
        timeline_start_lsn: control.timeline_start_lsn.0,
        local_start_lsn: control.local_start_lsn.0,
        commit_lsn: control.commit_lsn.0,
        backup_lsn: control.backup_lsn.0,
        peer_horizon_lsn: control.peer_horizon_lsn.0,
        remote_consistent_lsn: control.remote_consistent_lsn.0,
        peers: peers.collect(),
    }
}

async fn dump_memory(conf: &Config, timeline: &Arc<Timeline>) -> DumpMemory {
    let proposer = timeline.with_acceptor(|acceptor, _| acceptor.proposer_id()).await;
    let snapshot = timeline.snapshot();
    let positions = snapshot.positions;
    DumpMemory {
        is_cancelled: timeline.cancelled().is_cancelled(),
        peers_info_len: timeline.live_peers(conf.heartbeat_timeout).len(),
        replicas: timeline
            .readers()
            .slots()
            .iter()
            .map(|slot| slot.as_ref().map(dump_reader))
            .collect(),
        wal_backup_active: timeline.offload_active().load(Ordering::Relaxed),
        active: timeline.is_active(),
        num_computes: timeline.computes(),
        last_removed_segno: timeline.last_removed_segno(),
        epoch_start_lsn: snapshot.epoch_start_lsn.0,
        mem_state: DumpMemState {
            commit_lsn: positions.commit_lsn.0,
            backup_lsn: positions.backup_lsn.0,
            peer_horizon_lsn: positions.peer_horizon_lsn.0,
            remote_consistent_lsn: positions.remote_consistent_lsn.0,
            proposer_uuid: proposer.map(|(id, _)| id.to_string()).unwrap_or_default(),
        },
        write_lsn: snapshot.write_lsn.0,
        write_record_lsn: snapshot.record_lsn.0,
        flush_lsn: snapshot.flush_lsn.0,
        file_open: snapshot.file_open,
    }
}

fn dump_reader(reader: &Reader) -> DumpReplica {
    DumpReplica {
        last_received_lsn: reader.last_received_lsn.0,
        remote_consistent_lsn: reader.remote_consistent_lsn.0,
        hs_feedback: dump_standby_feedback(&reader.standby),
        pageserver_feedback: reader.pageserver.as_ref().map(dump_pageserver_feedback),
    }
}

/// A standby's feedback as it is dumped.
pub fn dump_standby_feedback(feedback: &HotStandbyFeedback) -> DumpStandbyFeedback {
    DumpStandbyFeedback {
        ts: feedback.ts,
        xmin: feedback.xmin,
        catalog_xmin: feedback.catalog_xmin,
    }
}

/// A pageserver's feedback as it is dumped.
pub fn dump_pageserver_feedback(feedback: &PageserverFeedback) -> DumpPageserverFeedback {
    let micros = u64::try_from(unix_micros(feedback.ps_replytime)).unwrap_or(0);
    DumpPageserverFeedback {
        current_timeline_size: feedback.current_timeline_size,
        ps_writelsn: feedback.ps_writelsn.0,
        ps_applylsn: feedback.ps_applylsn.0,
        ps_flushlsn: feedback.ps_flushlsn.0,
        ps_replytime: DumpTime {
            secs_since_epoch: micros / 1_000_000,
            nanos_since_epoch: (micros % 1_000_000) as u32 * 1000,
        },
    }
}

fn dump_disk(dir: &Path) -> io::Result<DumpDisk> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if !metadata.is_file() {
            continue;
        }
        let (start_zeroes, end_zeroes) = count_zeros(&entry.path())?;
        files.push(DumpFile {
            name: entry.file_name().to_string_lossy().into_owned(),
            size: metadata.len(),
            created: time_text(metadata.created().unwrap_or(UNIX_EPOCH)),
            modified: time_text(metadata.modified()?),
            start_zeroes,
            end_zeroes,
        });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(DumpDisk { files })
}

/// Zeros at the start and at the end of a file, in bytes.
fn count_zeros(path: &Path) -> io::Result<(u64, u64)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 64 * 1024];
    let (mut len, mut start, mut end) = (0, 0, 0);
    loop {
        let got = file.read(&mut buffer)? as u64;
        if got == 0 {
            return Ok((start, end));
        }
        let chunk = &buffer[..got as usize];
        let leading = chunk.iter().position(|byte| *byte != 0);
        if start == len {
            start += leading.map_or(got, |zeros| zeros as u64);
        }
        match chunk.iter().rposition(|byte| *byte != 0) {
            Some(last) => end = got - 1 - last as u64,
            None => end += got,
        }
        len += got;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_counted_over_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for (start, middle, end) in [(0, 0, 0), (10, 1, 20), (200_000, 70_000, 90_000), (0, 5, 0)] {
            let mut raw = vec![0; start];
            raw.extend(vec![1; middle]);
            raw.extend(vec![0; end]);
            std::fs::write(&path, raw).unwrap();
            assert_eq!(count_zeros(&path).unwrap(), (start as u64, end as u64));
        }
    }
}
