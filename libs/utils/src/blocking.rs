//! Work that blocks, called from asynchronous code.

/// Runs `work` on the blocking pool and returns its result. A panic in it goes on in the caller.
///
/// When the runtime ends before the work was begun, this never returns: the calling task ends with the
/// runtime too. Work that was begun is finished even if the caller gives up waiting.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn results_and_panics_come_through() {
        assert_eq!(super::run(|| 7).await, 7);
        let caught = tokio::spawn(super::run(|| panic!("at work"))).await.unwrap_err();
        assert!(caught.is_panic());
    }
}
