//! Names of what is published: `<prefix>/<tenant>/<timeline>/safekeeper/timeline_info/<node id>`.

use std::fmt;

use utils::id::{NodeId, TenantTimelineId};

const NODE_KIND: &str = "safekeeper";
const OPERATION: &str = "timeline_info";

/// Names the state of one timeline on one safekeeper.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct TimelineInfoKey {
    /// The timeline.
    pub timeline: TenantTimelineId,
    /// The safekeeper.
    pub node: NodeId,
}

/// The key names something else, which is not ours to judge.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[error("'{0}' is not the key of a safekeeper's timeline")]
pub struct BadKey(pub String);

/// Prefix of the keys of one timeline on all safekeepers.
pub(crate) fn timeline_prefix(prefix: &str, timeline: TenantTimelineId) -> String {
    format!("{prefix}/{timeline}/{NODE_KIND}/{OPERATION}/")
}

impl TimelineInfoKey {
    /// The key under `prefix`.
    pub fn encode(&self, prefix: &str) -> String {
        format!("{}{}", timeline_prefix(prefix, self.timeline), self.node)
    }

    /// Reads a key under `prefix`.
    pub fn decode(prefix: &str, key: &str) -> Result<Self, BadKey> {
        let parse = || {
            let rest = key.strip_prefix(prefix)?.strip_prefix('/')?;
            let mut parts = rest.split('/');
            let tenant_id = parts.next()?.parse().ok()?;
            let timeline_id = parts.next()?.parse().ok()?;
            let ours = parts.next()? == NODE_KIND && parts.next()? == OPERATION;
            let node = NodeId(parts.next()?.parse().ok()?);
            (ours && parts.next().is_none()).then_some(TimelineInfoKey {
                timeline: TenantTimelineId {
                    tenant_id,
                    timeline_id,
                },
                node,
            })
        };
        parse().ok_or_else(|| BadKey(key.to_owned()))
    }
}

impl fmt::Display for TimelineInfoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on safekeeper {}", self.timeline, self.node)
    }
}

#[cfg(test)]
mod tests {
    use utils::id::{TenantId, TimelineId};

    use super::*;

    #[test]
    fn round_trip_and_strangers() {
        let timeline = TenantTimelineId::new(TenantId::generate(), TimelineId::generate());
        let key = TimelineInfoKey {
            timeline,
            node: NodeId(7),
        };
        let text = key.encode("neon");
        assert_eq!(text, format!("neon/{timeline}/safekeeper/timeline_info/7"));
        assert_eq!(TimelineInfoKey::decode("neon", &text), Ok(key));
        for stranger in [
            format!("neon/{timeline}/safekeeper/timeline_info/"),
            format!("neon/{timeline}/safekeeper/timeline_info/7/8"),
            format!("neon/{timeline}/safekeeper/wal_backup/7"),
            format!("neon/{timeline}/pageserver/timeline_info/7"),
            format!("other/{timeline}/safekeeper/timeline_info/7"),
            "neon/x/y/safekeeper/timeline_info/7".to_owned(),
        ] {
            assert!(TimelineInfoKey::decode("neon", &stranger).is_err(), "{stranger}");
        }
    }
}
