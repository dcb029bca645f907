//! Work that may block, away from the arbiter: a cold page must not hold back the partner's other partitions.

use tokio::task::JoinError;

/// Does it on a thread that may block, and gives its result.
///
/// # Errors
/// If it panicked, or the runtime is ending.
pub async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    #[cfg(test)]
    if crate::clock::simulated::is_on() {
        // Simulated time has one thread, so that a seed is one history.
        tokio::task::yield_now().await;
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}
