//! Trying again: exponential backoff with jitter around single attempts.
//!
//! * A download gives up after [`DOWNLOAD_ATTEMPTS_MAX`] attempts, so that whoever waits for it learns of it.
//! * An upload goes on until it is done or cancelled: nobody waits for it, and nothing may be lost.
//! * Permanent errors are returned at once.
//! * The first failures are normal and logged at INFO; from [`WARN_FROM_FAILURE`] on a person should look.
//!
//! Cancelling ends a pause at once and drops an attempt under way.

use std::fmt::Display;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error::Chain;

/// After this many attempts a download fails.
pub const DOWNLOAD_ATTEMPTS_MAX: u32 = 10;
/// The failure (counted from 1) from which on each is logged as a warning.
pub const WARN_FROM_FAILURE: u32 = 3;
/// How long to wait between attempts.
#[derive(Clone, Copy)]
struct Backoff {
    /// Pause after the first failure, before jitter; doubles with each.
    first: Duration,
    /// No pause is longer than this.
    max: Duration,
}

const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(100),
    max: Duration::from_secs(3),
};

/// Pause after the given number of failures, counted from 1, for callers that have their own loop.
pub fn pause_after(failures: u32) -> Duration {
    BACKOFF.pause_after(failures)
}

/// When a series of attempts ends without success.
#[derive(Clone, Copy)]
struct Policy {
    attempts_max: u32,
    backoff: Backoff,
}

/// Errors that know whether another attempt may help.
pub trait Retryable: std::error::Error {
    /// Whether the same attempt will fail again.
    fn is_permanent(&self) -> bool;
}

/// No attempt succeeded.
#[derive(Debug, thiserror::Error)]
pub enum RetryError<E: std::error::Error> {
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The last attempt's error.
    #[error(transparent)]
    Failed(E),
}

/// Runs `attempt` until it succeeds, at most [`DOWNLOAD_ATTEMPTS_MAX`] times. `what` is for the log, such as
/// `download of <path>`.
pub async fn retry_download<T, E: Retryable, F: Future<Output = Result<T, E>>>(
    what: impl Display,
    cancel: &CancellationToken,
    attempt: impl FnMut() -> F,
) -> Result<T, RetryError<E>> {
    let describe = |n: u32| format!("{what} failed, will retry (attempt {n})");
    let policy = Policy {
        attempts_max: DOWNLOAD_ATTEMPTS_MAX,
        backoff: BACKOFF,
    };
    retry(policy, describe, &what, cancel, attempt).await
}

/// Runs `attempt` until it succeeds or is cancelled. `task` is for the log, such as `UploadLayer(<name>)`.
pub async fn retry_upload<T, E: Retryable, F: Future<Output = Result<T, E>>>(
    task: impl Display,
    cancel: &CancellationToken,
    attempt: impl FnMut() -> F,
) -> Result<T, RetryError<E>> {
    let describe = |n: u32| format!("failed to perform remote task {task}, will retry (attempt {n})");
    let what = format!("remote task {task}");
    let policy = Policy {
        attempts_max: u32::MAX,
        backoff: BACKOFF,
    };
    retry(policy, describe, &what, cancel, attempt).await
}

async fn retry<T, E: Retryable, F: Future<Output = Result<T, E>>>(
    policy: Policy,
    describe: impl Fn(u32) -> String,
    what: impl Display,
    cancel: &CancellationToken,
    mut attempt: impl FnMut() -> F,
) -> Result<T, RetryError<E>> {
    let mut failures = 0_u32;
    loop {
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(RetryError::Cancelled),
            outcome = attempt() => outcome,
        };
        let error = match outcome {
            Ok(value) => {
                if failures > 0 {
                    info!("{what} succeeded after {failures} retries");
                }
                return Ok(value);
            }
            Err(error) if error.is_permanent() => return Err(RetryError::Failed(error)),
            Err(error) => error,
        };
        failures = failures.saturating_add(1);
        if failures >= policy.attempts_max {
            return Err(RetryError::Failed(error));
        }
        let message = describe(failures - 1);
        let error = Chain(&error).to_string();
        if failures >= WARN_FROM_FAILURE {
            warn!("{message}: {error}");
        } else {
            info!("{message}: {error}");
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(RetryError::Cancelled),
            () = tokio::time::sleep(policy.backoff.pause_after(failures)) => {}
        }
    }
}

impl Backoff {
    /// Pause after the given number of failures: between half of the backoff and all of it.
    fn pause_after(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let backoff = (self.first * 2_u32.pow(doublings)).min(self.max);
        backoff.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::RemoteStorageError;

    const SHORT: Backoff = Backoff {
        first: Duration::from_micros(1),
        max: Duration::from_micros(10),
    };

    fn transient() -> RemoteStorageError {
        RemoteStorageError::Simulated("x".to_owned())
    }

    fn permanent() -> RemoteStorageError {
        RemoteStorageError::NotFound("x".parse().unwrap())
    }

    /// Attempts that are made if the first `failures` of them fail, and whether one succeeds.
    async fn run(attempts_max: u32, failures: u32) -> (u32, bool) {
        let mut attempts = 0;
        let policy = Policy {
            attempts_max,
            backoff: SHORT,
        };
        let cancel = CancellationToken::new();
        let result = retry(
            policy,
            |n| n.to_string(),
            "x",
            &cancel,
            || {
                attempts += 1;
                std::future::ready(if attempts <= failures {
                    Err(transient())
                } else {
                    Ok(())
                })
            },
        );
        let succeeded = result.await.is_ok();
        (attempts, succeeded)
    }

    #[tokio::test]
    async fn attempts_are_limited_for_those_who_wait_only() {
        assert_eq!(run(10, 0).await, (1, true));
        assert_eq!(run(10, 9).await, (10, true));
        assert_eq!(run(10, 10).await, (10, false));
        assert_eq!(run(u32::MAX, 500).await, (501, true));
    }

    #[tokio::test]
    async fn permanent_errors_are_not_retried() {
        let mut attempts = 0;
        let cancel = CancellationToken::new();
        let result = retry_upload("x", &cancel, || {
            attempts += 1;
            std::future::ready(Err::<(), _>(permanent()))
        });
        assert!(matches!(
            result.await,
            Err(RetryError::Failed(RemoteStorageError::NotFound(_)))
        ));
        assert_eq!(attempts, 1);
    }

    #[tokio::test]
    async fn cancelling_ends_pauses_and_attempts() {
        let cancel = CancellationToken::new();
        let canceller = cancel.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            canceller.cancel();
        });
        let begin = Instant::now();
        let hanging = retry_upload(
            "x",
            &cancel,
            std::future::pending::<Result<(), RemoteStorageError>>,
        );
        assert!(matches!(hanging.await, Err(RetryError::Cancelled)));
        let cancel = CancellationToken::new();
        let canceller = cancel.clone();
        let failing = retry_upload("x", &cancel, || {
            canceller.cancel();
            std::future::ready(Err::<(), _>(transient()))
        });
        assert!(matches!(failing.await, Err(RetryError::Cancelled)));
        assert!(begin.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        for failures in 1..100 {
            let pause = BACKOFF.pause_after(failures);
            let backoff = (BACKOFF.first * 2_u32.pow((failures - 1).min(10))).min(BACKOFF.max);
            assert!(
                pause >= backoff / 2 && pause <= backoff,
                "{pause:?} after {failures} failures"
            );
        }
    }
}
