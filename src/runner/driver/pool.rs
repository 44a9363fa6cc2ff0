//! The tasks that run attempts.
//!
//! An attempt whose handler does not wait is over sooner than a task of its own could be started
//! and awaited. So the tasks stay, and take the attempts from one queue.
//!
//! # Why can no handler hold up the others?
//! There are as many tasks as there are attempts that have not ended, and each attempt that is
//! queued wakes one of them. A handler that waits or blocks its thread therefore leaves a task for
//! each attempt after it.
//!
//! # Why does the driver not hear of each end at once?
//! A task that wakes the driver may leave it to the thread that the task runs on, and no other
//! thread can take it from there. So after the driver is woken, the task must give up its thread
//! before it calls a handler, which may block it. A task therefore wakes the driver only when it
//! finds the queue empty, or when it has to wait. The driver looks for news at least once a second.
use crate::{
    Version,
    runner::{
        HandlerError,
        attempt::{self, Attempt, Signals, panic_message},
        machine::{
            AttemptId, Calls, Ended, Failure, FailureOf, Input, Outcome, Suspects, What, Work,
        },
        report::Counts,
        streams::Progress,
    },
};
use futures::FutureExt;
use std::{
    collections::{BTreeSet, VecDeque},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
};

/// An attempt that waits for a task.
pub(super) struct Job {
    pub(super) id: AttemptId,
    pub(super) shared: Arc<attempt::Shared>,
    pub(super) work: Arc<Work>,
    pub(super) signals: Signals,
}

/// The end of an attempt.
pub(super) type End = (AttemptId, Box<Ended>);

/// The tasks of one processor. They end with the pool.
pub(super) struct Pool {
    shared: Arc<Shared>,
    /// News that were fetched and not returned yet.
    fetched: News,
    tasks: JoinSet<()>,
}

struct Shared {
    jobs: Mutex<VecDeque<Job>>,
    news: Mutex<News>,
    /// Wakes the driver.
    told: Notify,
    /// One permit for each task that was woken and has not noticed it yet. Nobody closes it.
    woken: Semaphore,
}

/// The things that the driver has to hear of.
#[derive(Default)]
struct News {
    ended: VecDeque<End>,
    /// Attempts that have begun another call of a handler.
    advanced: BTreeSet<AttemptId>,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                jobs: Mutex::default(),
                news: Mutex::default(),
                told: Notify::new(),
                woken: Semaphore::new(0),
            }),
            fetched: News::default(),
            tasks: JoinSet::new(),
        }
    }

    /// Starts an attempt. `running` attempts, this one included, have not ended.
    pub(super) fn start(&mut self, job: Job, running: usize) {
        lock(&self.shared.jobs).push_back(job);
        if self.tasks.len() < running {
            self.tasks.spawn(self.shared.clone().work_off());
        } else {
            self.shared.woken.add_permits(1);
        }
    }

    /// Waits for news. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Input {
        loop {
            if let Some(news) = self.next_now() {
                return news;
            }
            self.shared.told.notified().await;
        }
    }

    /// Returns the next news if they are there already. A sign of life comes before the end of its
    /// attempt.
    pub(super) fn next_now(&mut self) -> Option<Input> {
        if self.fetched.is_empty() {
            std::mem::swap(&mut self.fetched, &mut *lock(&self.shared.news));
        }
        self.fetched.pop()
    }
}

impl News {
    fn is_empty(&self) -> bool {
        self.ended.is_empty() && self.advanced.is_empty()
    }

    fn pop(&mut self) -> Option<Input> {
        if let Some(id) = self.advanced.pop_first() {
            return Some(Input::Advanced(id));
        }
        let (id, ended) = self.ended.pop_front()?;
        Some(Input::Finished(id, *ended))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    async fn work_off(self: Arc<Self>) {
        let mut is_told = true;
        loop {
            let job = lock(&self.jobs).pop_front();
            if let Some(job) = job {
                let id = job.id;
                let ended = Box::new(job.run(&self).await);
                lock(&self.news).ended.push_back((id, ended));
                is_told = false;
                continue;
            }
            if !is_told {
                self.tell().await;
                is_told = true;
            }
            let Ok(woken) = self.woken.acquire().await else {
                return;
            };
            woken.forget();
        }
    }

    /// Wakes the driver, and gives up this thread.
    async fn tell(&self) {
        self.told.notify_one();
        tokio::task::yield_now().await;
    }
}

impl Job {
    /// Runs the attempt until it has ended or is cancelled.
    async fn run(self, tasks: &Shared) -> Ended {
        let (id, cancelled) = (self.id, self.signals.cancelled.clone());
        if cancelled.is_cancelled() {
            return nothing_done(Outcome::Cancelled);
        }
        let (version, suspects) = (first_version(&self.work), Suspects::of(self.work.records()));
        // Nobody is woken for it: the driver looks for it before it counts the attempt as stuck.
        let advance = || {
            lock(&tasks.news).advanced.insert(id);
        };
        let attempt = Attempt::new(self.shared, self.work, self.signals, advance);
        let attempt = AssertUnwindSafe(attempt.run()).catch_unwind();
        let attempt = attempt.map(|ended| {
            ended.unwrap_or_else(|panic| {
                // Outside of the code of the user: nothing is known of what it has done.
                let error = HandlerError::permanent(panic_message("attempt", &*panic));
                let failure = Failure::new(version, error, FailureOf::Record);
                nothing_done(Outcome::Failed(Failure {
                    suspects,
                    ..failure
                }))
            })
        });
        let mut attempt = pin!(attempt);
        // Most attempts never wait, and need not listen for a cancellation.
        if let Poll::Ready(ended) = futures::poll!(attempt.as_mut()) {
            return ended;
        }
        // There may be news of attempts before this one.
        tasks.tell().await;
        tokio::select! {
            biased;
            () = cancelled.cancelled() => nothing_done(Outcome::Cancelled),
            ended = attempt => ended,
        }
    }
}

fn first_version(work: &Work) -> Version {
    match &work.what {
        What::Records(records) => {
            let first = records.first();
            first.map_or(Version::NONE, |first| first.event.header.version)
        }
        What::Range(range) => range.from,
        What::Again(again) => again.event.header.version,
        What::Commits(commits) => {
            let first = commits.first();
            first.map_or(Version::NONE, |first| first.first_version)
        }
    }
}

/// Returns the end of an attempt that got nothing done.
fn nothing_done(result: Outcome) -> Ended {
    Ended {
        progress: Progress::Unknown,
        done: 0,
        counts: Counts::default(),
        result,
        calls: Calls::default(),
        passed: Vec::new(),
        next: Version::NONE,
        is_short: false,
        settled: Vec::new(),
    }
}
