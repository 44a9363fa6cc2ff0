//! The log of injected faults.
use super::Fault;
use std::fmt;

/// A fault that was injected into a call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Injected {
    /// The number of the call among all calls through these faults, counted from 1.
    pub call: u64,
    /// The method and arguments of the call, without payloads, cut off after 200 characters.
    pub about: String,
    /// The fault that was injected.
    pub fault: Fault,
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {}: {}: {:?}", self.call, self.about, self.fault)
    }
}
