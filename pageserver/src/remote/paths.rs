//! Where a tenant's objects are: under the same relative names as its files (storage formats, section 6).

use pageserver_api::layer_name::LayerFileName;
use remote_storage::RemotePath;
use utils::id::{TenantId, TenantTimelineId};

use super::index;

/// Ids, layer names and our own constants have no slashes and are never empty.
const PROPER: &str = "ids and layer names are proper components";

/// All timelines of a tenant.
pub fn timelines(tenant: TenantId) -> RemotePath {
    format!("tenants/{tenant}/timelines").parse().expect(PROPER)
}

/// All objects of a timeline.
pub fn timeline(id: TenantTimelineId) -> RemotePath {
    timelines(id.tenant_id)
        .join(&id.timeline_id.to_string())
        .expect(PROPER)
}

/// A layer.
pub fn layer(id: TenantTimelineId, name: &LayerFileName) -> RemotePath {
    timeline(id).join(&name.to_string()).expect(PROPER)
}

/// The index of a timeline.
pub fn index(id: TenantTimelineId) -> RemotePath {
    timeline(id).join(index::FILE_NAME).expect(PROPER)
}
