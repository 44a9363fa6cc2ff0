//! What was injected, in order.
use super::Fault;
use std::fmt;

/// One fault that was injected.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Injected {
    /// Number of the call among all calls through these faults, from 1.
    pub call: u64,
    /// The call, without payloads.
    pub about: String,
    /// The fault that was injected.
    pub fault: Fault,
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {}: {}: {:?}", self.call, self.about, self.fault)
    }
}
