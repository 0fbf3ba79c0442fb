//! The layer map against a search through all layers.

use proptest::prelude::*;
use utils::id::TenantTimelineId;

use super::*;
use crate::layers::cache::PageCache;

fn key(n: u32) -> Key {
    Key {
        field6: n,
        ..Key::MIN
    }
}

fn layer(name: LayerFileName) -> Arc<Layer> {
    let cache = Arc::new(PageCache::new(0, 1));
    Layer::local(
        &cache,
        std::path::Path::new("none"),
        TenantTimelineId::default(),
        (name, 1),
    )
}

/// What [`LayerMap::next`] is to find, by definition.
fn naive(layers: &[LayerFileName], key: Key, upper: Lsn) -> Option<(LayerFileName, Lsn)> {
    let covering = layers
        .iter()
        .filter(|name| name.key_range().contains(&key) && name.lsn_range().start < upper);
    let (deltas, images): (Vec<_>, Vec<_>) = covering.partition(|name| name.is_delta());
    let image = images.iter().max_by_key(|name| name.lsn_range().start);
    let above = image.map_or(Lsn(0), |name| name.lsn_range().end);
    let delta = deltas.iter().max_by_key(|name| name.lsn_range().end);
    match delta.filter(|name| name.lsn_range().end.min(upper) > above) {
        Some(name) => Some(((*name).clone(), name.lsn_range().start.max(above))),
        None => image.map(|name| ((*name).clone(), name.lsn_range().start)),
    }
}

fn names() -> impl Strategy<Value = Vec<LayerFileName>> {
    let key_range = (0u32..20, 1u32..12).prop_map(|(start, len)| key(start)..key(start + len));
    let lsn_range = (1u64..40, 1u64..15).prop_map(|(start, len)| Lsn(start)..Lsn(start + len));
    let delta = (key_range.clone(), lsn_range.clone())
        .prop_map(|(key_range, lsn_range)| LayerFileName::Delta { key_range, lsn_range });
    let image = (key_range, 1u64..60).prop_map(|(key_range, lsn)| LayerFileName::Image {
        key_range,
        lsn: Lsn(lsn),
    });
    let l0 = lsn_range.prop_map(|lsn_range| LayerFileName::Delta {
        key_range: Key::MIN..Key::MAX,
        lsn_range,
    });
    let any = prop_oneof![4 => delta, 2 => image, 1 => l0];
    proptest::collection::vec(any, 0..40).prop_map(|names| {
        let mut seen = HashSet::new();
        names
            .into_iter()
            .filter(|name| seen.insert(name.clone()))
            .collect()
    })
}

fn check(map: &LayerMap, names: &[LayerFileName]) -> Result<(), TestCaseError> {
    for n in 0..35 {
        for upper in (0..60).map(Lsn) {
            let found = map.next(key(n), upper);
            let want = naive(names, key(n), upper);
            // Several deltas may end at the same LSN: any of them will do.
            let shape = |name: &LayerFileName, floor: Lsn| (name.is_delta(), name.lsn_range().end, floor);
            match (&found, &want) {
                (None, None) => {}
                (Some(found), Some((name, floor))) if found.layer.name() == name => {
                    prop_assert_eq!(found.floor, *floor);
                }
                (Some(found), Some((name, _))) => {
                    prop_assert!(found.layer.name().key_range().contains(&key(n)));
                    let floor = found.layer.name().lsn_range().start;
                    let (a, b) = (shape(found.layer.name(), floor), shape(name, floor));
                    prop_assert_eq!((a.0, a.1), (b.0, b.1));
                }
                _ => prop_assert!(false, "{found:?} instead of {want:?} for {n} below {upper}"),
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn finds_what_a_full_search_finds(names in names(), kept in any::<u64>(), split in 0usize..40) {
        let (first, second) = names.split_at(split.min(names.len()));
        let made = |names: &[LayerFileName]| names.iter().cloned().map(layer).collect::<Vec<_>>();
        let map = LayerMap::default().changed(made(first), &HashSet::new());
        check(&map, first)?;
        let map = map.changed(made(second), &HashSet::new());
        check(&map, &names)?;
        let (kept, removed): (Vec<_>, Vec<_>) =
            names.iter().cloned().enumerate().partition(|(at, _)| kept >> (at % 64) & 1 == 1);
        let removed = removed.into_iter().map(|(_, name)| name).collect();
        let kept: Vec<_> = kept.into_iter().map(|(_, name)| name).collect();
        let map = map.changed(Vec::new(), &removed);
        prop_assert_eq!(map.len(), kept.len());
        check(&map, &kept)?;
    }
}
