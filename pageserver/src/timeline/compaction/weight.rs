//! When deltas weigh more than images of their pages would.
//!
//! A page that was filled once has as many bytes of records as of contents, or more; who reads it reads and replays all
//! of them. An image costs space and writing no more than in proportion to the deltas it stands above, so it is made as soon
//! as they are compacted, however few layers that took. Where pages have few changes each, images of all of them would be
//! many times what was changed: there the number of layers decides (`image_creation_threshold`).

use std::sync::Arc;

use crate::layers::file::Layer;

/// Bytes of deltas per page from which on they outweigh an image, which is half as long if it can be compressed.
const BYTES_PER_PAGE: u64 = 4096;

/// Whether `bytes` of deltas outweigh images of all keys of `layers`: those of the deltas, and of what else lies in their
/// key range. A key that is in several layers counts for each. No, if that cannot be told from what is on the local disk.
pub(in crate::timeline) async fn outweighs_images(
    bytes: u64,
    layers: impl IntoIterator<Item = &Arc<Layer>>,
) -> bool {
    let mut left = bytes / BYTES_PER_PAGE;
    for layer in layers {
        let keys = layer.key_count().await;
        match keys.and_then(|keys| left.checked_sub(keys)) {
            Some(rest) => left = rest,
            None => return false,
        }
    }
    true
}
