//! The wake-up of the poll thread: by librdkafka, by the caller of `next`, and by a released
//! revocation.
use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

/// A flag that one thread waits for.
#[derive(Debug, Default)]
pub(super) struct Wake {
    rung: Mutex<bool>,
    condition: Condvar,
}

impl Wake {
    /// Wakes the thread, or lets its next wait return at once.
    pub(super) fn notify(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.condition.notify_one();
    }

    /// Waits until the thread is woken, or for the longest time given.
    pub(super) fn wait(&self, at_most: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) = self
            .condition
            .wait_timeout_while(rung, at_most, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}
