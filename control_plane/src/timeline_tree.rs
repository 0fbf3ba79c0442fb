//! `timeline list`: a tenant's timelines as a tree.

use std::collections::{BTreeMap, HashSet};

use pageserver_api::models::TimelineInfo;
use utils::id::TimelineId;

/// The tree as text, a line for each timeline. `name_of` gives a timeline's branch name, if any.
pub fn render(timelines: &[TimelineInfo], name_of: impl Fn(TimelineId) -> Option<String>) -> String {
    let known: HashSet<TimelineId> = timelines.iter().map(|info| info.timeline_id).collect();
    let mut children: BTreeMap<Option<TimelineId>, Vec<&TimelineInfo>> = BTreeMap::new();
    for info in timelines {
        // A timeline whose ancestor is not here is shown as a root rather than not at all.
        let parent = info.ancestor_timeline_id.filter(|parent| known.contains(parent));
        children.entry(parent).or_default().push(info);
    }
    for siblings in children.values_mut() {
        siblings.sort_by_key(|info| info.timeline_id);
    }
    let mut tree = Tree {
        children,
        name_of,
        text: String::new(),
    };
    tree.render_children(None, &mut Vec::new());
    tree.text
}

struct Tree<'a, N> {
    children: BTreeMap<Option<TimelineId>, Vec<&'a TimelineInfo>>,
    name_of: N,
    text: String,
}

impl<N: Fn(TimelineId) -> Option<String>> Tree<'_, N> {
    /// `ended` says of each level above whether its last child has been printed.
    fn render_children(&mut self, parent: Option<TimelineId>, ended: &mut Vec<bool>) {
        let siblings = self.children.remove(&parent).unwrap_or_default();
        let count = siblings.len();
        for (index, info) in siblings.into_iter().enumerate() {
            let last = index + 1 == count;
            self.render_line(info, parent.is_some(), last, ended);
            if parent.is_some() {
                ended.push(last);
            }
            self.render_children(Some(info.timeline_id), ended);
            if parent.is_some() {
                ended.pop();
            }
        }
    }

    fn render_line(&mut self, info: &TimelineInfo, is_branch: bool, last: bool, ended: &[bool]) {
        if is_branch {
            for level_ended in ended {
                self.text.push_str(if *level_ended { "   " } else { "┃  " });
            }
            let corner = if last { "┗━" } else { "┣━" };
            let lsn = info
                .ancestor_lsn
                .map_or_else(|| "Unknown Lsn".to_owned(), |lsn| lsn.to_string());
            self.text.push_str(&format!("{corner} @{lsn}: "));
        }
        let name = (self.name_of)(info.timeline_id).unwrap_or_else(|| "_no_name_".to_owned());
        self.text.push_str(&format!("{name} [{}]\n", info.timeline_id));
    }
}

#[cfg(test)]
mod tests {
    use pageserver_api::models::TimelineState;
    use utils::id::TenantId;
    use utils::lsn::Lsn;

    use super::*;

    fn id(number: u8) -> TimelineId {
        TimelineId::from([number; 16])
    }

    fn timeline(number: u8, ancestor: Option<(u8, u64)>) -> TimelineInfo {
        TimelineInfo {
            tenant_id: TenantId::default(),
            timeline_id: id(number),
            ancestor_timeline_id: ancestor.map(|(number, _)| id(number)),
            ancestor_lsn: ancestor.map(|(_, lsn)| Lsn(lsn)),
            last_record_lsn: Lsn(0),
            prev_record_lsn: Lsn(0),
            latest_gc_cutoff_lsn: Lsn(0),
            disk_consistent_lsn: Lsn(0),
            remote_consistent_lsn: Lsn(0),
            current_logical_size: None,
            current_physical_size: None,
            current_logical_size_non_incremental: None,
            timeline_dir_layer_file_size_sum: None,
            wal_source_connstr: None,
            last_received_msg_lsn: None,
            last_received_msg_ts: None,
            pg_version: 15,
            state: TimelineState::Active,
        }
    }

    #[test]
    fn branches_hang_below_their_ancestors() {
        let timelines = [
            timeline(4, Some((2, 0x40))),
            timeline(3, Some((1, 0x30))),
            timeline(2, Some((1, 0x20))),
            timeline(1, None),
            timeline(5, Some((3, 0x50))),
        ];
        let name_of = |timeline: TimelineId| (timeline == id(1)).then(|| "main".to_owned());
        let expected = format!(
            "main [{}]\n┣━ @0/20: _no_name_ [{}]\n┃  ┗━ @0/40: _no_name_ [{}]\n\
             ┗━ @0/30: _no_name_ [{}]\n   ┗━ @0/50: _no_name_ [{}]\n",
            id(1),
            id(2),
            id(4),
            id(3),
            id(5)
        );
        assert_eq!(render(&timelines, name_of), expected);
    }
}
