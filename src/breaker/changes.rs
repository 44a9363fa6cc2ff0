//! The changes of a breaker, and those who wait for the next one.
//!
//! `tokio::sync::watch` wakes its receivers in a random order. Here those who came first are woken
//! first, so a simulation of several processors that share a breaker has one history per seed.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::Notify;

/// The number of changes so far. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    count: AtomicU64,
    waiting: Notify,
}

impl Shared {
    fn is_new(&self, seen: &mut u64) -> bool {
        let count = self.count.load(Ordering::Acquire);
        std::mem::replace(seen, count) != count
    }
}

impl Changes {
    /// Counts a change, and wakes all who wait for it.
    pub(super) fn notify(&self) {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        self.0.waiting.notify_waiters();
    }

    /// Returns a receiver of the changes from now on.
    pub(super) fn subscribe(&self) -> ChangesReceiver {
        ChangesReceiver {
            seen: self.0.count.load(Ordering::Acquire),
            shared: self.0.clone(),
        }
    }
}

/// A receiver of changes. Changes that come while nobody waits are seen by the next wait.
#[derive(Debug)]
pub(crate) struct ChangesReceiver {
    seen: u64,
    shared: Arc<Shared>,
}

impl ChangesReceiver {
    /// Waits until there is a change that this receiver has not seen. Dropping the future loses
    /// none.
    pub(crate) async fn changed(&mut self) {
        let Self { seen, shared } = self;
        loop {
            // It is woken by every change from here on, also by one before its first poll.
            let woken = shared.waiting.notified();
            if shared.is_new(seen) {
                return;
            }
            woken.await;
        }
    }

    /// Returns true if there is a change that this receiver has not seen. It has seen it then.
    #[cfg(test)]
    pub(crate) fn take(&mut self) -> bool {
        self.shared.is_new(&mut self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, StreamExt, stream::FuturesUnordered};

    #[test]
    fn a_change_is_seen_once_by_each_receiver_whenever_it_waits() {
        let changes = Changes::default();
        changes.notify();
        let (mut a, mut b) = (changes.subscribe(), changes.subscribe());
        assert!(a.changed().now_or_never().is_none(), "it was before");
        changes.notify();
        changes.notify();
        assert!(a.changed().now_or_never().is_some());
        assert!(a.changed().now_or_never().is_none());
        assert!(b.take() && !b.take());
        let mut waits = Box::pin(a.changed());
        assert!(waits.as_mut().now_or_never().is_none());
        changes.notify();
        assert!(waits.now_or_never().is_some());
    }

    #[tokio::test]
    async fn those_who_wait_are_woken_in_the_order_in_which_they_came() {
        let changes = Changes::default();
        let mut waiting = FuturesUnordered::new();
        for number in 0..100 {
            let mut receiver = changes.subscribe();
            waiting.push(async move {
                receiver.changed().await;
                number
            });
        }
        // Each of them begins to wait.
        assert!(waiting.next().now_or_never().is_none());
        changes.notify();
        let woken: Vec<_> = waiting.collect().await;
        assert_eq!(woken, (0..100).collect::<Vec<_>>());
    }
}
