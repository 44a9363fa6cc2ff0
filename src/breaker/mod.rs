//! Circuit breakers: a service that fails is left alone for a while instead of being called again.
//!
//! ```text
//!            too many calls failed                the open time is over
//!   Closed ────────────────────────▶ Open ──────────────────────────▶ HalfOpen: one probe
//!     ▲                               ▲                                │   │
//!     │                               └───── the probe failed ─────────┘   │
//!     └─────────────────────── the service has answered ───────────────────┘
//! ```
//!
//! [`CircuitBreaker`] stands around any future. Its limits are a [`BreakerPolicy`].
//!
//! # Why one probe?
//!
//! A service that comes back has to work off what has piled up. Whoever lets all waiting callers
//! pass at once takes it down again. One call tells as much as a hundred.
//!
//! # Why does an old answer not count?
//!
//! Calls that began before the circuit opened may take long to fail, or to succeed. Their answers
//! tell how the service was when they began. If they counted, one of them could close the circuit
//! of a service that is down, or open it again after it has recovered. So every call carries the
//! number of openings before it began.

mod call;
mod changes;
mod circuit;
mod distributed;
pub(crate) mod machine;
mod outcome;
mod policy;
mod probe_lease;
mod quorum;
pub(crate) mod rows;
mod votes;
mod window;

#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod quorum_tests;
#[cfg(test)]
mod simulation;

pub use call::{CallError, CircuitBreaker, CircuitOpen};
pub(crate) use call::{Permit, User};
pub(crate) use changes::ChangesReceiver;
pub use circuit::CircuitState;
#[cfg(test)]
pub(crate) use circuit::{Admission, Ticket, Transition};
pub use distributed::DistributedBreaker;
pub(crate) use outcome::Outcome;
pub use policy::{BreakerPolicy, CallWindow, InvalidBreaker, SlowCalls};
