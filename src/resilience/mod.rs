//! Retries: the policy, the decision, and the loop around them.
//!
//! # One decision, one loop
//!
//! [`Retrying`] decides what follows a failed attempt. It is a pure value: it receives the class of
//! the failure and the time since the first failure, and returns a pause or "give up".
//! [`Retryable`] is the loop that sleeps for the pause:
//!
//! ```
//! use foldstream::{Backoff, RetryPolicy, resilience::Retryable};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let mut answers = [Err("busy"), Err("busy"), Ok(7)].into_iter();
//! let policy = RetryPolicy::new(
//!     Backoff::new(Duration::from_millis(1), Duration::from_millis(10)),
//!     Duration::from_secs(5),
//! );
//! let answer = (|| std::future::ready(answers.next().unwrap_or(Err("gone"))))
//!     .retry(policy)
//!     .when(|error| *error == "busy")
//!     .notify(|error, attempt, pause| println!("attempt {attempt}: {error}, again in {pause:?}"))
//!     .run()
//!     .await;
//! assert_eq!(answer, Ok(7));
//! # }
//! ```
//!
//! Code that keeps the state of many retries at once, such as the queues of a processor, uses
//! [`Retrying`] itself.
//!
//! # Why a time limit and not a number of attempts?
//!
//! A retry should end when its caller can no longer wait, and callers wait for a time. A number of
//! attempts says little about that time: five attempts take milliseconds against a connection that
//! is refused, and minutes against one that hangs.
//!
//! With both limits the shorter one would apply silently, and the longer one would promise
//! something that never happens: pauses that grow from 100 ms end five repeats after about 3 s,
//! whatever the time limit says. Only the immediate repeats are counted, since they take no time of
//! their own.
pub(crate) mod backoff;
pub(crate) mod policy;
mod retry;
mod retrying;

use backoff::Backoff;
use policy::RetryPolicy;
pub use retry::{Attempts, Retry, Retryable};
pub use retrying::{Failure, FailureClass, Retrying};
