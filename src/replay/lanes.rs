//! The lanes of a scan: the commits of one stream are applied one after the other, whichever
//! segments they come from.
use super::scan::{News, bytes_of};
use crate::{
    StreamId,
    keyed::RecentlyUsed,
    ports::Commit,
    runner::rebuild::{Rebuild, RebuildError, StreamProgress},
};
use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};

/// The streams of which a projector remembers how far they are. What is forgotten is asked of the
/// store of positions, or read again from the first event.
const STREAMS: usize = 50_000;

/// The most neighbouring commits of a stream that are applied with one attempt.
const NEIGHBOURS: usize = 16;

/// The unit in which memory is counted.
const UNIT: usize = 1024;

/// Items of a page that were applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) segment: u32,
    /// The number of the page in its segment.
    pub(super) page: u64,
    pub(super) items: usize,
    /// The number of events that the projector has handled.
    pub(super) handled: u64,
}

/// A commit on its way to one projector.
struct Item {
    commit: Arc<Commit>,
    /// The segment, and the number of the page.
    from: (u32, u64),
    /// The memory that the commit takes until the last projector has applied it.
    _memory: Arc<OwnedSemaphorePermit>,
}

/// The queues of one projector.
struct Target {
    rebuild: Arc<Rebuild>,
    queues: Vec<mpsc::UnboundedSender<Item>>,
}

/// The lanes of all projectors.
pub(super) struct Lanes {
    targets: Vec<Target>,
    memory: Arc<Semaphore>,
    /// The number of units of memory.
    units: usize,
}

/// Lanes whose workers have not started.
pub(super) struct Unstarted {
    lanes: Lanes,
    workers: Vec<Worker>,
}

/// The result of a worker: the number of the projector that cannot go on, and its error.
type Ended = Result<(), (usize, RebuildError)>;

impl Lanes {
    /// Creates the lanes of these projectors.
    pub(super) fn of(
        rebuilds: &[Arc<Rebuild>],
        memory: usize,
        tell: &mpsc::UnboundedSender<News>,
    ) -> Unstarted {
        let mut workers = Vec::new();
        let targets = (0..).zip(rebuilds).map(|(number, rebuild)| {
            let count = rebuild.of.concurrency();
            let queues = (0..count).map(|_| {
                let (queue, items) = mpsc::unbounded_channel();
                workers.push(Worker {
                    number,
                    rebuild: rebuild.clone(),
                    items,
                    next: VecDeque::new(),
                    streams: RecentlyUsed::new((STREAMS / count).max(1)),
                    tell: tell.clone(),
                });
                queue
            });
            Target {
                rebuild: rebuild.clone(),
                queues: queues.collect(),
            }
        });
        let targets = targets.collect();
        let units = (memory / UNIT).clamp(1, Semaphore::MAX_PERMITS >> 1);
        let units = units.min(u32::MAX as usize);
        let lanes = Self {
            targets,
            memory: Arc::new(Semaphore::new(units)),
            units,
        };
        Unstarted { lanes, workers }
    }

    /// Returns the number of projectors that subscribe to the stream of a commit.
    pub(super) fn targets(&self, commit: &Commit) -> usize {
        let aggregate = commit.stream.aggregate();
        let targets = self.targets.iter();
        targets
            .filter(|of| of.rebuild.subscribes(aggregate))
            .count()
    }

    /// Gives a commit to the lanes of its stream, once there is memory for it.
    pub(super) async fn push(&self, commit: Commit, from: (u32, u64)) {
        let units = bytes_of(&commit).div_ceil(UNIT).min(self.units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        // Nobody closes the semaphore.
        let Ok(memory) = self.memory.clone().acquire_many_owned(units).await else {
            return;
        };
        let (commit, memory) = (Arc::new(commit), Arc::new(memory));
        let aggregate = commit.stream.aggregate();
        for target in self
            .targets
            .iter()
            .filter(|of| of.rebuild.subscribes(aggregate))
        {
            let item = Item {
                commit: commit.clone(),
                from,
                _memory: memory.clone(),
            };
            let queue = target.queue_of(&commit.stream);
            // If its worker has ended, so has the scan.
            if target.queues[queue].send(item).is_err() {
                return;
            }
        }
    }
}

impl Target {
    /// Returns the number of the queue of a stream. Streams of one lane have the same.
    fn queue_of(&self, stream: &StreamId) -> usize {
        let mut hasher = DefaultHasher::new();
        if self.rebuild.of.has_shared_lanes() {
            self.rebuild.of.lane(stream).hash(&mut hasher);
        } else {
            stream.hash(&mut hasher);
        }
        usize::try_from(hasher.finish() % self.queues.len().max(1) as u64).unwrap_or(0)
    }
}

impl Unstarted {
    pub(super) fn start(self) -> (Arc<Lanes>, JoinSet<Ended>) {
        let mut tasks = JoinSet::new();
        for worker in self.workers {
            tasks.spawn(worker.run());
        }
        (Arc::new(self.lanes), tasks)
    }
}

/// The task that applies the commits of one queue.
struct Worker {
    number: usize,
    rebuild: Arc<Rebuild>,
    items: mpsc::UnboundedReceiver<Item>,
    /// Items that were received and not applied.
    next: VecDeque<Item>,
    streams: RecentlyUsed<StreamId, StreamProgress>,
    tell: mpsc::UnboundedSender<News>,
}

impl Worker {
    /// Applies items until the scan has ended.
    async fn run(mut self) -> Ended {
        while let Some(items) = self.neighbours().await {
            let commits: Vec<_> = items.iter().map(|item| item.commit.clone()).collect();
            let Some(stream) = commits.first().map(|commit| commit.stream.clone()) else {
                continue;
            };
            let mut progress = self.streams.remove(&stream).unwrap_or_default();
            let applied = self.rebuild.apply(commits, &mut progress).await;
            let applied = applied.map_err(|error| (self.number, error))?;
            self.streams.insert(stream, progress);
            let mut handled = applied.handled;
            for item in items {
                let (segment, page) = item.from;
                let told = Applied {
                    segment,
                    page,
                    items: 1,
                    handled: std::mem::take(&mut handled),
                };
                if self.tell.send(News::Applied(told)).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Returns the next items, which are all of one stream. `None` at the end.
    async fn neighbours(&mut self) -> Option<Vec<Item>> {
        let first = match self.next.pop_front() {
            Some(item) => item,
            None => self.items.recv().await?,
        };
        let mut items = vec![first];
        while items.len() < NEIGHBOURS {
            let Ok(item) = self.items.try_recv() else {
                break;
            };
            if item.commit.stream == items[0].commit.stream {
                items.push(item);
            } else {
                self.next.push_back(item);
                break;
            }
        }
        Some(items)
    }
}
