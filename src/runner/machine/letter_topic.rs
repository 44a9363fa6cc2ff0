//! Copies of dead letters for a topic. They are sent with best effort, and counted: no offset waits
//! for them.
use super::{Effect, Machine};
use crate::{
    control::DeadLetter,
    ports::{MessageBusError, PartitionId},
};
use std::sync::Arc;

/// The most letters that are being sent at a time. A bus that is slower than the failures costs
/// copies, and no memory.
const IN_FLIGHT: usize = 64;

impl Machine {
    /// Sends the copy of a letter that is stored.
    pub(super) fn send_letter(&mut self, partition: &PartitionId, letter: Arc<DeadLetter>) {
        if self.rules.policy.dead_letter_topic.is_none() {
            return;
        }
        if self.sending >= IN_FLIGHT {
            self.counts.letters_not_sent += 1;
            tracing::warn!(processor = %self.rules.name, %partition, "a dead letter is not sent to its topic: too many are being sent");
            return;
        }
        self.sending += 1;
        self.out.push(Effect::SendLetter(partition.clone(), letter));
    }

    pub(super) fn letter_sent(&mut self, result: Result<(), MessageBusError>) {
        self.sending = self.sending.saturating_sub(1);
        match result {
            Ok(()) => self.counts.letters_sent += 1,
            Err(error) => {
                self.counts.letters_not_sent += 1;
                tracing::warn!(processor = %self.rules.name, error = crate::chain(&error), "a dead letter could not be sent to its topic: it is stored, and stays listed");
            }
        }
    }

    /// Returns true if letters are being sent.
    pub(in crate::runner) const fn is_sending(&self) -> bool {
        self.sending > 0
    }

    /// Counts the letters that are still being sent, and that nobody waits for any more.
    pub(in crate::runner) const fn give_up_sending(&mut self) {
        self.counts.letters_not_sent += self.sending as u64;
        self.sending = 0;
    }
}
