//! What other safekeepers have published about a timeline.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use safekeeper_api::protocol::Term;
use safekeeper_api::timeline_info::SkTimelineInfo;
use utils::id::NodeId;

use super::{Snapshot, Timeline, TimelineError};
use crate::acceptor::PeerInfo;
use crate::config::Config;

/// The last that was heard of a peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// When.
    pub heard: Instant,
    /// What.
    pub info: SkTimelineInfo,
}

#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<HashMap<NodeId, Peer>>);

/// Whether `peer` would change anything here.
fn is_news(peer: &PeerInfo, own: &Snapshot) -> bool {
    let positions = own.positions;
    let commit_known = own.flush_lsn.min(peer.commit_lsn) <= positions.commit_lsn;
    !(commit_known || peer.last_log_term != Some(own.epoch))
        || peer.backup_lsn > positions.backup_lsn
        || peer.remote_consistent_lsn > positions.remote_consistent_lsn
        || peer.peer_horizon_lsn > positions.peer_horizon_lsn
}

impl Timeline {
    /// Takes what the safekeeper `node` has published.
    pub async fn record_peer(
        self: &Arc<Self>,
        node: NodeId,
        info: SkTimelineInfo,
    ) -> Result<(), TimelineError> {
        let peer = PeerInfo {
            last_log_term: info.last_log_term.map(Term),
            commit_lsn: info.commit_lsn,
            backup_lsn: info.backup_lsn,
            remote_consistent_lsn: info.remote_consistent_lsn,
            peer_horizon_lsn: info.peer_horizon_lsn,
        };
        let heard = Peer {
            heard: Instant::now(),
            info,
        };
        self.peers.0.lock().insert(node, heard);
        // Most of what is heard is known: the acceptor's lock is the proposer's.
        if self.snapshot().is_open && !is_news(&peer, &self.snapshot()) {
            return Ok(());
        }
        self.with_acceptor(|acceptor, out| acceptor.on_peer_info(peer, out))
            .await?;
        Ok(())
    }

    /// Peers heard of within `max_age`, by number.
    pub fn live_peers(&self, max_age: Duration) -> Vec<(NodeId, Peer)> {
        let peers = self.peers.0.lock();
        let live = peers.iter().filter(|(_, peer)| peer.heard.elapsed() <= max_age);
        let mut live: Vec<_> = live.map(|(node, peer)| (*node, peer.clone())).collect();
        live.sort_by_key(|(node, _)| *node);
        live
    }

    /// What this safekeeper publishes; `None` before the WAL is open.
    pub fn own_info(&self, conf: &Config) -> Option<SkTimelineInfo> {
        let own = self.snapshot();
        let reported = self.readers().slots();
        let reported = reported
            .iter()
            .flatten()
            .map(|reader| reader.remote_consistent_lsn);
        let remote_consistent_lsn = reported.fold(own.positions.remote_consistent_lsn, Ord::max);
        own.is_open.then(|| SkTimelineInfo {
            last_log_term: Some(own.epoch.0),
            flush_lsn: own.flush_lsn,
            commit_lsn: own.positions.commit_lsn,
            backup_lsn: own.positions.backup_lsn,
            remote_consistent_lsn,
            peer_horizon_lsn: own.positions.peer_horizon_lsn,
            local_start_lsn: own.local_start_lsn,
            safekeeper_connstr: Some(conf.listen_pg_addr.clone()),
        })
    }
}
