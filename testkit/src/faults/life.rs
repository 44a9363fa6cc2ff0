//! The state of a process (alive, frozen or dead), which all its wrappers share.
use std::future;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Alive,
    /// The process stands still until this time, or until it is thawed if there is none.
    Frozen(Option<Instant>),
    Dead,
}

#[derive(Debug)]
pub(super) struct Life(watch::Sender<State>);

impl Life {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(State::Alive))
    }
    pub(super) fn crash(&self) {
        self.0.send_replace(State::Dead);
    }
    pub(super) fn freeze(&self, until: Option<Instant>) {
        self.0.send_if_modified(|state| {
            let is_alive = *state != State::Dead;
            if is_alive {
                *state = State::Frozen(until);
            }
            is_alive
        });
    }
    pub(super) fn thaw(&self) {
        self.0.send_if_modified(|state| {
            let is_frozen = matches!(state, State::Frozen(_));
            if is_frozen {
                *state = State::Alive;
            }
            is_frozen
        });
    }
    pub(super) fn is_dead(&self) -> bool {
        *self.0.borrow() == State::Dead
    }
    pub(super) async fn died(&self) {
        let mut state = self.0.subscribe();
        // Fails only if the sender was dropped, but `self` owns it.
        let _ = state.wait_for(|state| *state == State::Dead).await;
    }

    /// Waits until the process is alive. Never returns in a dead process.
    pub(super) async fn gate(&self) {
        let now = *self.0.borrow();
        if now == State::Alive {
            return;
        }
        let mut changes = self.0.subscribe();
        loop {
            let state = *changes.borrow_and_update();
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
                        _ = changes.changed() => {}
                        () = over => {}
                    }
                }
            }
        }
    }
}
