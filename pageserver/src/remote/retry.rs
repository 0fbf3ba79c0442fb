//! Trying again without end what nobody can do without: uploads, deletions, and reading a tenant's indexes.
//!
//! Unlike `remote_storage::retry_upload`, the callers here do not break off an attempt that is under way: what
//! was sent may take effect later, and must not come after what they do next. Nor do they give up on errors
//! that look permanent: access may be granted again.

use remote_storage::WARN_FROM_FAILURE;

/// Logs failure number `failures`, counted from 1, of what will be tried again.
pub fn log_failure(what: &str, failures: u32, error: &dyn std::error::Error) {
    let (attempt, error) = (failures.saturating_sub(1), error_chain(error));
    if failures < WARN_FROM_FAILURE {
        tracing::info!("{what}, will retry (attempt {attempt}): {error}");
    } else {
        tracing::warn!("{what}, will retry (attempt {attempt}): {error}");
    }
}

/// An error with its causes, for people.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
