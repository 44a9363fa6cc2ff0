//! The tasks that run attempts.
//!
//! An attempt whose handler does not wait is over sooner than a task of its own could be started
//! and awaited. So the tasks stay, and take the attempts from one queue. There may be more attempts
//! than tasks: while handlers do not wait, the machine starts attempts ahead, so that the tasks
//! have something to do until the driver has looked at what is done.
//!
//! # Why can no handler hold up the others?
//! There are as many tasks as handlers may be called at a time, and each attempt that is queued
//! wakes one of those that have nothing to do. A handler that waits or blocks its thread therefore
//! leaves the others to the attempts after it.
//!
//! # Why does the driver not hear of each end at once?
//! Waking a task costs more than a quick attempt. So the driver is woken when the queue is empty,
//! when a task has to wait, after a failure, or when many attempts have ended. The task that wakes
//! it then gives up its thread before it calls another handler, which may block it: the driver may
//! be left to the thread that the task runs on, and no other thread can take it from there. The
//! driver looks for news at least once a second.
use crate::{
    Version,
    runner::{
        HandlerError,
        attempt::{self, Attempt, Buffers, panic_message},
        machine::{AttemptId, Ended, Failure, FailureOf, Input, Outcome, Suspects, What, Work},
        signals::Signals,
    },
};
use futures::FutureExt;
use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::Instant,
};

/// The number of ends after which the driver is woken although there is more to do.
const TELL: usize = 64;

/// An attempt that waits for a task.
pub(super) struct Job {
    pub(super) id: AttemptId,
    pub(super) shared: Arc<attempt::Shared>,
    pub(super) work: Arc<Work>,
    pub(super) signals: Signals,
    /// The time after which it must not begin.
    pub(super) until: Option<Instant>,
}

/// The end of an attempt.
type End = (AttemptId, Box<Ended>);

/// The tasks of one processor. They end with the pool.
pub(super) struct Pool {
    shared: Arc<Shared>,
    /// The most tasks.
    size: usize,
    /// Jobs that the tasks have not got yet.
    queued: Vec<Job>,
    /// Ends that were fetched and not returned yet.
    fetched: VecDeque<End>,
    tasks: JoinSet<()>,
}

struct Shared {
    jobs: Mutex<Jobs>,
    news: Mutex<News>,
    /// Wakes the driver.
    told: Notify,
    /// One permit for each task that was woken and has not noticed it yet. Nobody closes it.
    woken: Semaphore,
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    /// The tasks that have nothing to do, and that nobody has woken.
    idle: usize,
}

/// The things that the driver has to hear of.
#[derive(Default)]
struct News {
    ended: VecDeque<End>,
    /// The driver was woken for them.
    is_told: bool,
}

impl Pool {
    /// Creates the pool of a processor that calls at most `size` handlers at a time.
    pub(super) fn new(size: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                jobs: Mutex::default(),
                news: Mutex::default(),
                told: Notify::new(),
                woken: Semaphore::new(0),
            }),
            size,
            queued: Vec::new(),
            fetched: VecDeque::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Queues an attempt, which begins once the tasks [get](Self::hand_out) it.
    pub(super) fn queue(&mut self, job: Job) {
        self.queued.push(job);
    }

    /// Gives the tasks what was queued. `running` attempts have not ended.
    pub(super) fn hand_out(&mut self, running: usize) {
        if self.queued.is_empty() {
            return;
        }
        let mut jobs = lock(&self.shared.jobs);
        let woken = jobs.idle.min(self.queued.len());
        jobs.idle -= woken;
        jobs.queue.extend(self.queued.drain(..));
        drop(jobs);
        if woken > 0 {
            self.shared.woken.add_permits(woken);
        }
        while self.tasks.len() < running.min(self.size) {
            self.tasks.spawn(self.shared.clone().work_off());
        }
    }

    /// Ends an attempt that has not begun, with nothing done. Returns false if it has begun.
    pub(super) fn withdraw(&mut self, id: AttemptId) -> bool {
        let mut jobs = lock(&self.shared.jobs);
        let waiting = jobs.queue.len() + self.queued.len();
        jobs.queue.retain(|job| job.id != id);
        self.queued.retain(|job| job.id != id);
        let is_withdrawn = jobs.queue.len() + self.queued.len() < waiting;
        drop(jobs);
        if is_withdrawn {
            let ended = Box::new(Ended::with_nothing_done(Outcome::Cancelled));
            self.fetched.push_back((id, ended));
        }
        is_withdrawn
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

    /// Returns the next news if they are there already.
    pub(super) fn next_now(&mut self) -> Option<Input> {
        if self.fetched.is_empty() {
            let mut news = lock(&self.shared.news);
            news.is_told = false;
            std::mem::swap(&mut self.fetched, &mut news.ended);
        }
        let (id, ended) = self.fetched.pop_front()?;
        Some(Input::Finished(id, ended))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    async fn work_off(self: Arc<Self>) {
        let mut buffers = Buffers::default();
        loop {
            let mut job = lock(&self.jobs).queue.pop_front();
            if job.is_none() {
                self.tell().await;
                job = self.next_or_idle();
            }
            if let Some(job) = job {
                let id = job.id;
                let ended = AssertUnwindSafe(job.run(&self, &mut buffers)).catch_unwind();
                let ended = ended.await.unwrap_or_else(|_| {
                    // A destructor of a handler that was cancelled. The panic hook has told it.
                    Ended::with_nothing_done(Outcome::Cancelled)
                });
                self.ended(id, Box::new(ended)).await;
            } else {
                let Ok(woken) = self.woken.acquire().await else {
                    return;
                };
                woken.forget();
            }
        }
    }

    /// Returns the next job. If there is none, the task counts as idle until it is woken.
    fn next_or_idle(&self) -> Option<Job> {
        let mut jobs = lock(&self.jobs);
        let job = jobs.queue.pop_front();
        jobs.idle += usize::from(job.is_none());
        job
    }

    /// Notes the end of an attempt.
    async fn ended(&self, id: AttemptId, ended: Box<Ended>) {
        let has_failed = matches!(ended.result, Outcome::Failed(_));
        let is_much = {
            let mut news = lock(&self.news);
            news.ended.push_back((id, ended));
            news.ended.len() >= TELL
        };
        if has_failed {
            // It may open a circuit, so that what was started ahead must not call.
            self.wake();
            give_way().await;
        } else if is_much {
            self.tell().await;
        }
    }

    /// Wakes the driver if there is something that it was not woken for, and gives up this thread.
    async fn tell(&self) {
        if self.wake() {
            give_way().await;
        }
    }

    /// Wakes the driver if there is something that it was not woken for. Returns true if there is.
    fn wake(&self) -> bool {
        let is_new = {
            let mut news = lock(&self.news);
            let is_told = news.ended.is_empty() || news.is_told;
            news.is_told |= !is_told;
            !is_told
        };
        if is_new {
            self.told.notify_one();
        }
        is_new
    }
}

/// Lets this thread run other tasks first. Another thread may take this task from it at once, which
/// tokio's own `yield_now` puts off until the thread has nothing else to do.
async fn give_way() {
    let mut has_waited = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Job {
    /// Runs the attempt until it has ended or is cancelled.
    async fn run(self, tasks: &Shared, buffers: &mut Buffers) -> Ended {
        let signals = self.signals;
        let is_late = || self.until.is_some_and(|until| until <= Instant::now());
        if signals.is_cancelled() || is_late() {
            return Ended::with_nothing_done(Outcome::Cancelled);
        }
        // Nobody is woken for it: the driver looks for it before it counts the attempt as stuck.
        signals.advance();
        let (version, suspects) = (first_version(&self.work), Suspects::of(self.work.records()));
        // Pinned before it is wrapped, since a future of its size costs more to move than to run.
        let attempt = Attempt::new(self.shared, self.work, signals.clone());
        let attempt = pin!(attempt.run(buffers));
        let attempt = AssertUnwindSafe(attempt).catch_unwind();
        let attempt = attempt.map(|ended| {
            ended.unwrap_or_else(|panic| {
                // Outside of the code of the user: nothing is known of what it has done.
                let error = HandlerError::permanent(panic_message("attempt", &*panic));
                let failure = Failure::new(version, error, FailureOf::Record);
                Ended::with_nothing_done(Outcome::Failed(Failure {
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
        let mut ended = tokio::select! {
            biased;
            () = signals.cancelled() => Ended::with_nothing_done(Outcome::Cancelled),
            ended = attempt => ended,
        };
        ended.has_waited = true;
        ended
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
