//! The state of a process (alive, frozen or dead), which all its wrappers share.
use std::{
    future,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Alive,
    /// The process stands still until this time, or until it is thawed if there is none.
    Frozen(Option<Instant>),
    Dead,
}

/// It wakes those who wait in the order in which they came. `tokio::sync::watch` would wake them in
/// a random one, and a seed would have more than one history.
#[derive(Debug)]
pub(super) struct Life {
    state: Mutex<State>,
    changed: Notify,
}

impl Life {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State::Alive),
            changed: Notify::new(),
        }
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn change(&self, to: State, may: impl FnOnce(State) -> bool) {
        let mut state = self.state();
        if may(*state) {
            *state = to;
            drop(state);
            self.changed.notify_waiters();
        }
    }

    pub(super) fn crash(&self) {
        self.change(State::Dead, |_| true);
    }
    pub(super) fn freeze(&self, until: Option<Instant>) {
        self.change(State::Frozen(until), |state| state != State::Dead);
    }
    pub(super) fn thaw(&self) {
        self.change(State::Alive, |state| matches!(state, State::Frozen(_)));
    }
    pub(super) fn is_dead(&self) -> bool {
        *self.state() == State::Dead
    }
    pub(super) async fn died(&self) {
        loop {
            // Woken by every change from here on, also by one before its first poll.
            let changed = self.changed.notified();
            if self.is_dead() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the process is alive. Never returns in a dead process.
    pub(super) async fn gate(&self) {
        loop {
            let changed = self.changed.notified();
            let state = *self.state();
            match state {
                State::Alive => return,
                State::Dead => future::pending().await,
                State::Frozen(Some(until)) if Instant::now() >= until => return,
                State::Frozen(until) => {
                    let over = async {
                        match until {
                            Some(until) => sleep_until(until).await,
                            None => future::pending().await,
                        }
                    };
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = over => {}
                    }
                }
            }
        }
    }
}
