//! The amount that the laws were checked on ([`Checked`]).
use super::story::Story;
use std::fmt;

/// The amount that was checked. Laws that hold on nothing say nothing.
///
/// [`Laws::check`](super::Laws::check) returns it, so that a test can assert that its commands
/// reach what they should reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    histories: usize,
    accepted: usize,
    nothing: usize,
    rejected: usize,
    longest: usize,
}

impl Checked {
    /// Returns the number of histories that were checked: one per drawn sequence, or every possible
    /// history.
    pub const fn histories(&self) -> usize {
        self.histories
    }
    /// Returns the number of commands that led to events.
    pub const fn accepted(&self) -> usize {
        self.accepted
    }
    /// Returns the number of commands that were accepted and led to no event.
    pub const fn nothing(&self) -> usize {
        self.nothing
    }
    /// Returns the number of commands that were rejected.
    pub const fn rejected(&self) -> usize {
        self.rejected
    }
    /// Returns the number of events of the longest history.
    pub const fn longest(&self) -> usize {
        self.longest
    }

    pub(super) fn add<E>(&mut self, story: &Story<E>) {
        let mut events = 0;
        for line in &story.lines {
            self.count(line.decision.as_deref());
            events += line.decision.as_ref().map_or(0, Vec::len);
        }
        self.add_history(events);
    }
    pub(super) fn count<E>(&mut self, decision: Result<&[E], &String>) {
        match decision {
            Ok([]) => self.nothing += 1,
            Ok(_) => self.accepted += 1,
            Err(_) => self.rejected += 1,
        }
    }
    pub(super) fn add_history(&mut self, events: usize) {
        self.histories += 1;
        self.longest = self.longest.max(events);
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} histories of up to {} events; {} commands accepted, {} with nothing to do, {} rejected",
            self.histories, self.longest, self.accepted, self.nothing, self.rejected
        )
    }
}
