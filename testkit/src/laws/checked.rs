//! [`Checked`]: on how much the laws were checked.
use super::story::Story;
use std::fmt;

/// The amount that was checked: laws that hold on nothing say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    histories: usize,
    accepted: usize,
    nothing: usize,
    rejected: usize,
    longest: usize,
}

impl Checked {
    /// Histories that were checked: one a drawn sequence, or each that can come about.
    pub const fn histories(&self) -> usize {
        self.histories
    }
    /// Commands that led to events.
    pub const fn accepted(&self) -> usize {
        self.accepted
    }
    /// Commands that were accepted and led to nothing.
    pub const fn nothing(&self) -> usize {
        self.nothing
    }
    /// Commands that were rejected.
    pub const fn rejected(&self) -> usize {
        self.rejected
    }
    /// Events of the longest history.
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
