//! The driver of a processor: a task that passes to the machine what happens, and does what the
//! machine returns. It decides nothing.
//!
//! Every step of I/O is a job of its own, which answers with one input, so the driver itself waits
//! for nothing but the next input.
mod letter_topic;
mod live;
mod next;
mod part;
mod perform;
mod pool;
mod rows;
mod settings;
mod start;
mod watch;

pub(super) use self::{
    live::{Live, Now},
    perform::{in_time, in_time_of, within},
    settings::Settings,
};
use self::{
    next::Membership,
    pool::Pool,
    watch::{Answer, Watch},
};
use super::{
    RunnerError,
    machine::{AttemptId, Ends, Input, Machine, RevocationId},
    signals::Signals,
};
use crate::ports::Revocation;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The most inputs that are taken in before the machine is asked what to do.
const INPUTS_AT_ONCE: usize = 128;

/// The time that the last copies of dead letters have after the processor has ended.
const SEND_LAST: Duration = Duration::from_secs(1);

/// The answer of a job.
enum Done {
    Input(Input),
    /// It is about the consumer of this membership.
    OfMember(u64, Input),
    Joined(Box<Membership>, Option<Ends>),
    Watched(Answer),
}

/// An attempt that has not ended.
struct Running {
    signals: Signals,
    /// The signs of life that the machine knows of.
    steps: u32,
}

pub(super) struct Driver {
    settings: Arc<Settings>,
    machine: Machine,
    jobs: JoinSet<Done>,
    pool: Pool,
    /// The attempts that have not ended.
    attempts: foldhash::HashMap<AttemptId, Running>,
    /// The job that joins the group, while it runs.
    joining: Option<AbortHandle>,
    membership: Option<Membership>,
    /// The number of memberships that have ended.
    left: u64,
    revocations: HashMap<RevocationId, Revocation>,
    last_revocation: u64,
    /// The run goes only up to where the topics end at its start.
    until_caught_up: bool,
    live: Arc<Live>,
    watch: Watch,
}

impl Driver {
    pub(super) fn new(settings: Settings, until_caught_up: bool, live: Arc<Live>) -> Self {
        let settings = Arc::new(settings);
        Self {
            machine: Machine::new(settings.rules.clone(), Instant::now()),
            jobs: JoinSet::new(),
            pool: Pool::new(settings.rules.policy.concurrency),
            attempts: foldhash::HashMap::default(),
            joining: None,
            membership: None,
            left: 0,
            revocations: HashMap::new(),
            last_revocation: 0,
            until_caught_up,
            live,
            watch: Watch::new(Instant::now()),
            settings,
        }
    }

    /// Runs the generation until `stop`, or until it has caught up, or until it halts.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), RunnerError> {
        let (processor, generation) = (&self.settings.rules.name, self.settings.generation);
        tracing::info!(%processor, generation, topics = ?self.settings.topics, "the processor starts");
        let result = self.drive(&stop).await;
        self.finish_sending().await;
        self.live.count(generation, self.machine.counts());
        result
    }

    /// Waits a moment for the letters that are being sent to their topic.
    async fn finish_sending(&mut self) {
        let sent = async {
            while self.machine.is_sending() {
                let Some(joined) = self.jobs.join_next().await else {
                    return;
                };
                if let Some(input @ Input::LetterSent(_)) = self.answered(joined) {
                    self.machine.take(input, Instant::now());
                }
            }
        };
        // The letters themselves are stored.
        let _ = tokio::time::timeout(SEND_LAST, sent).await;
        self.machine.give_up_sending();
    }

    async fn drive(&mut self, stop: &CancellationToken) -> Result<(), RunnerError> {
        let mut breaker = self.settings.rules.breaker.as_ref().map(|b| b.changes());
        let sleep = tokio::time::sleep_until(Instant::now());
        tokio::pin!(sleep);
        let mut is_stopped = false;
        let mut effects = Vec::new();
        loop {
            self.machine.set_lease(self.settings.lease.until());
            self.machine.effects(Instant::now(), &mut effects);
            for effect in effects.drain(..) {
                if let Some(result) = self.perform(effect) {
                    return result;
                }
            }
            self.pool.hand_out(self.attempts.len());
            self.watch(Instant::now());
            let wake_at = self.machine.wake_at();
            let wake_at = wake_at.into_iter().chain(self.watch.wake_at()).min();
            if let Some(at) = wake_at
                && at != sleep.deadline()
            {
                sleep.as_mut().reset(at);
            }
            let consumer = self.membership.as_ref().map(|m| m.consumer.clone());
            let receives = self.machine.receives();
            let input = tokio::select! {
                biased;
                () = stop.cancelled(), if !is_stopped => {
                    is_stopped = true;
                    let by = self.live.stop_by();
                    Some(Input::Stop(by))
                }
                Some(joined) = self.jobs.join_next() => self.answered(joined),
                news = self.pool.next() => Some(self.heard(news)),
                () = &mut sleep, if wake_at.is_some() => Some(Input::Timer),
                () = changed(breaker.as_mut()) => Some(Input::Timer),
                event = next::receive(consumer.as_deref()), if receives => self.received(event),
            };
            let now = Instant::now();
            if let Some(input) = input {
                self.machine.take(input, now);
            }
            self.take_what_is_there(now);
        }
    }

    /// Takes in answers and records that are there already, before anything is decided.
    fn take_what_is_there(&mut self, now: Instant) {
        for _ in 0..INPUTS_AT_ONCE {
            let Some(joined) = self.jobs.try_join_next() else {
                break;
            };
            if let Some(input) = self.answered(joined) {
                self.machine.take(input, now);
            }
        }
        while let Some(news) = self.pool.next_now() {
            let input = self.heard(news);
            self.machine.take(input, now);
        }
        let consumer = self.membership.as_ref().map(|m| m.consumer.clone());
        for _ in 0..INPUTS_AT_ONCE {
            if !self.machine.receives() || self.machine.is_full() {
                return;
            }
            let Some(event) = next::receive_now(consumer.as_deref()) else {
                return;
            };
            if let Some(input) = self.received(event) {
                self.machine.take(input, now);
            }
        }
    }
}

/// Waits until a circuit breaker may admit other calls than before: another process may have voted,
/// or another processor may share the breaker.
async fn changed(breaker: Option<&mut crate::breaker::ChangesReceiver>) {
    match breaker {
        Some(breaker) => breaker.changed().await,
        None => std::future::pending().await,
    }
}
