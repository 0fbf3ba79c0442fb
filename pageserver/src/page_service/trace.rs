//! Recording of a pagestream's requests, where the tenant's `trace_read_requests` asks for it.

use std::path::Path;

use anyhow::Context;
use tokio::io::AsyncWriteExt;
use utils::id::TenantTimelineId;

/// The file of one connection: the payloads of its requests, one after another.
pub struct Trace {
    file: tokio::fs::File,
}

impl Trace {
    /// Makes a file of its own in `traces/<tenant>/<timeline>/`.
    pub async fn create(workdir: &Path, id: TenantTimelineId) -> anyhow::Result<Self> {
        let directory = workdir
            .join("traces")
            .join(id.tenant_id.to_string())
            .join(id.timeline_id.to_string());
        let path = directory.join(hex::encode(rand::random::<[u8; 16]>()));
        let making = || format!("cannot make trace file {}", path.display());
        tokio::fs::create_dir_all(&directory).await.with_context(making)?;
        let file = tokio::fs::File::create_new(&path).await.with_context(making)?;
        Ok(Trace { file })
    }

    /// Appends a request. Traces are an aid, not a promise: nothing is made durable.
    pub async fn record(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        self.file
            .write_all(payload)
            .await
            .context("cannot write trace file")
    }
}
