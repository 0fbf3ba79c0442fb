//! What kind of task is running, for statistics of who reads which layer.

use std::future::Future;

/// Kinds of tasks, by the names that the management API gives them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TaskKind {
    /// Answers a compute, or whatever does not say what it is.
    PageRequestHandler,
    /// Answers the management API.
    MgmtRequest,
    /// Rewrites layers.
    Compaction,
    /// Removes layers.
    GarbageCollector,
    /// Takes layers off the local disk.
    Eviction,
    /// Uploads layers.
    RemoteUploadTask,
    /// Downloads all layers of a timeline.
    DownloadAllRemoteLayers,
    /// Ingests WAL.
    WalReceiverConnectionHandler,
}

impl TaskKind {
    /// All kinds.
    pub const ALL: [TaskKind; 8] = [
        TaskKind::PageRequestHandler,
        TaskKind::MgmtRequest,
        TaskKind::Compaction,
        TaskKind::GarbageCollector,
        TaskKind::Eviction,
        TaskKind::RemoteUploadTask,
        TaskKind::DownloadAllRemoteLayers,
        TaskKind::WalReceiverConnectionHandler,
    ];

    /// The name in the API.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::PageRequestHandler => "PageRequestHandler",
            TaskKind::MgmtRequest => "MgmtRequest",
            TaskKind::Compaction => "Compaction",
            TaskKind::GarbageCollector => "GarbageCollector",
            TaskKind::Eviction => "Eviction",
            TaskKind::RemoteUploadTask => "RemoteUploadTask",
            TaskKind::DownloadAllRemoteLayers => "DownloadAllRemoteLayers",
            TaskKind::WalReceiverConnectionHandler => "WalReceiverConnectionHandler",
        }
    }

    /// The kind of the running task.
    pub fn current() -> Self {
        CURRENT
            .try_with(|kind| *kind)
            .unwrap_or(TaskKind::PageRequestHandler)
    }

    /// Runs `work` as a task of this kind.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    /// Runs `work`, on a thread that may block, as a task of this kind.
    pub fn sync_scope<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }
}

tokio::task_local! {
    static CURRENT: TaskKind;
}
