//! Policies as pure values: what to do after the nth failure. Used by repository, publisher and runner.
mod backoff;
mod retry;

pub use backoff::Backoff;
pub use retry::{ConflictRetry, RetryPolicy};
