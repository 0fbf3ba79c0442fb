//! What the names of layers tell about layers that are not there.
//!
//! Of a timeline with object storage the index names all layers, and none can be missed. Without one, a loss
//! shows where reads would come to nothing: keys that no image layer is below of, and LSNs that no delta layer has.
//! The latter alone proves nothing: records that change no value leave such a hole, too, when the server was
//! restarted after them. A delta layer above level 0 covers only the keys it has versions of, so that the loss of one
//! of several over the same LSNs does not show here.

use std::ops::Range;

use pageserver_api::key::Key;
use pageserver_api::layer_name::LayerFileName;
use utils::lsn::Lsn;

/// Parts of `whole` that none of `pieces` covers.
fn uncovered<T: Copy + Ord>(whole: Range<T>, pieces: impl IntoIterator<Item = Range<T>>) -> Vec<Range<T>> {
    let mut pieces: Vec<Range<T>> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
    pieces.sort_by_key(|piece| piece.start);
    let (mut at, mut holes) = (whole.start, Vec::new());
    for piece in pieces {
        if at >= whole.end {
            break;
        }
        if piece.start > at {
            holes.push(at..piece.start.min(whole.end));
        }
        at = at.max(piece.end);
    }
    if at < whole.end {
        holes.push(at..whole.end);
    }
    holes
}

/// Keys that cannot be read at `cutoff` in a timeline without ancestor, because no image layer is at or below it.
pub fn keys_without_image(layers: &[&LayerFileName], cutoff: Lsn) -> Vec<Range<Key>> {
    let images = layers
        .iter()
        .filter(|name| !name.is_delta() && name.lsn_range().start <= cutoff);
    uncovered(Key::MIN..Key::MAX, images.map(|name| name.key_range().clone()))
}

/// LSNs within `lsns` at which no delta layer can have versions.
pub fn lsns_without_delta(layers: &[&LayerFileName], lsns: Range<Lsn>) -> Vec<Range<Lsn>> {
    let deltas = layers.iter().filter(|name| name.is_delta());
    uncovered(lsns, deltas.map(|name| name.lsn_range()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn holes_are_what_no_piece_covers(
            bounds in proptest::collection::vec((0_u32..40, 0_u32..12), 0..8),
            start in 0_u32..30,
            len in 0_u32..20,
        ) {
            let whole = start..start + len;
            let pieces: Vec<Range<u32>> = bounds.iter().map(|(at, len)| *at..at + len).collect();
            let holes = uncovered(whole.clone(), pieces.clone());
            for point in 0..60 {
                let is_hole = whole.contains(&point) && !pieces.iter().any(|piece| piece.contains(&point));
                prop_assert_eq!(holes.iter().any(|hole| hole.contains(&point)), is_hole, "{}", point);
            }
            for pair in holes.windows(2) {
                prop_assert!(pair[0].end < pair[1].start, "{:?}", holes);
            }
        }
    }

    fn delta(lsns: Range<u64>) -> LayerFileName {
        LayerFileName::Delta {
            key_range: Key::MIN..Key::MAX,
            lsn_range: Lsn(lsns.start)..Lsn(lsns.end),
        }
    }

    #[test]
    fn a_lost_layer_leaves_a_hole() {
        let middle = Key {
            field1: 2,
            ..Key::MIN
        };
        let image = |key_range, lsn| LayerFileName::Image {
            key_range,
            lsn: Lsn(lsn),
        };
        let (left, right) = (image(Key::MIN..middle, 30), image(middle..Key::MAX, 20));
        let (first, second, third) = (delta(21..40), delta(40..60), delta(60..81));
        assert!(keys_without_image(&[&left, &right], Lsn(30)).is_empty());
        assert_eq!(keys_without_image(&[&left, &right], Lsn(29)), [Key::MIN..middle]);
        assert_eq!(keys_without_image(&[&right], Lsn(30)), [Key::MIN..middle]);
        let all = [&first, &second, &third, &left];
        assert!(lsns_without_delta(&all, Lsn(25)..Lsn(81)).is_empty());
        assert_eq!(
            lsns_without_delta(&[&first, &third], Lsn(25)..Lsn(81)),
            [Lsn(40)..Lsn(60)]
        );
    }
}
