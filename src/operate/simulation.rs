//! A simulation of jobs: operators, executors that die, and an owner that dies, over a store that
//! loses requests and answers.
//!
//! The owner takes the steps of a processor: claim, handle, advance or fail, release. Handlers are
//! a set of versions that fail. The time is paused, so that a seed decides what overtakes what.
use super::*;
use crate::{
    StreamId, Version,
    control::{
        Failed, ItemState, ItemTarget, ParkFailure, ParkId, ParkNotes, ParkRow, ParkState, PutIf,
        Request, Stored, merge,
        test_store::{Chaos, TestStore},
    },
    ports::{ControlStoreError, Message, Offset},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{sleep, timeout};

mod owner;

const STREAMS: [&str; 4] = ["a", "b", "c", "d"];
/// The streams that are not parked, and have a letter.
const LISTENED: [&str; 2] = ["x", "y"];

#[derive(Debug, Default)]
struct Seen {
    /// The versions that fail.
    bad: BTreeSet<(String, u64)>,
    /// The versions that were handled, and on behalf of which job.
    handled: Vec<(String, u64, Option<JobId>, ParkId)>,
    /// The number of times that an owner has begun to serve a request of a job.
    claims: BTreeMap<(String, u128, JobId), u32>,
    /// The discards that an owner has passed over.
    passed: BTreeSet<(String, u64)>,
    /// The jobs that are aborted for good. What an owner has begun before may still end.
    aborted: BTreeSet<JobId>,
    hits: BTreeMap<&'static str, u32>,
    is_over: bool,
}

struct World {
    store: Arc<TestStore>,
    operator: Operator,
    rows: ProcessorRows,
    at: PartitionId,
    seen: Mutex<Seen>,
}

fn stream(name: &str) -> StreamId {
    StreamId::new("cart", name).unwrap()
}
fn reason() -> Reason {
    Reason::new("ann", "fixed").unwrap()
}

impl World {
    async fn new(seed: u64) -> Arc<Self> {
        let store = TestStore::new(seed);
        let operator = Operator::new(store.clone())
            .with_ids(store.clone())
            .with_clock(store.clone());
        let world = Self {
            rows: operator.rows_of("billing", 1),
            at: PartitionId::new("orders", 0),
            operator,
            store: store.clone(),
            seen: Mutex::default(),
        };
        crate::control::join_generation(store.clone(), store, "billing", 0)
            .await
            .unwrap();
        let pins = crate::control::TopicPins::new(world.operator.rows.clone());
        pins.pin("orders", 1).await.unwrap();
        for name in STREAMS {
            world.park(name, 2).await;
            world.defer(name, 2).await;
        }
        for name in LISTENED {
            world.letter(name, 7).await;
        }
        Arc::new(world)
    }
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn hit(&self, what: &'static str) {
        *self.seen().hits.entry(what).or_default() += 1;
    }
    fn one_in(&self, n: u64) -> bool {
        self.store.random(n) == 0
    }
    fn failure(&self, version: Version) -> ParkFailure {
        ParkFailure {
            version,
            fingerprint: Fingerprint::from_u128(1),
            attempts: 1,
            at: self.store.now(),
        }
    }
    /// Repeats an operation until it is answered, as a process does.
    async fn insist<T, F: Future<Output = Result<T, ControlStoreError>>>(
        &self,
        act: impl Fn() -> F,
    ) -> T {
        loop {
            match act().await {
                Ok(answer) => return answer,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
    async fn letter(&self, name: &str, version: u64) {
        let (of, at) = (stream(name), self.store.now());
        let failed = Failed {
            class: LetterClass::Permanent,
            error_type: "A",
            error: "no",
            event_type: None,
            stream: Some(&of),
            attempts: 1,
            first: at,
            last: at,
        };
        let message = Message::new("orders", at);
        let record = StoredRecord::new(message, Offset::new(version));
        let letter = DeadLetter::new(&failed, LetterBody::Record(record));
        let key = LetterKey::event(of.clone(), Version::new(version));
        self.insist(|| self.rows.letter_write(&self.at, &key, &letter))
            .await;
    }
    async fn park(&self, name: &str, version: u64) {
        self.letter(name, version).await;
        let (of, failure) = (stream(name), self.failure(Version::new(version)));
        let _ = self
            .insist(|| {
                self.rows
                    .park_create(&self.at, &of, &failure, ParkNotes::default())
            })
            .await;
    }
    async fn get(&self, name: &str) -> Option<Stored<ParkRow>> {
        let of = stream(name);
        self.insist(|| self.rows.park_get(&self.at, &of)).await
    }
    /// Defers the next `more` records of a stream.
    async fn defer(&self, name: &str, more: u64) {
        let of = stream(name);
        if let Some(row) = self.get(name).await {
            let next = row.value.deferred_to(row.value.high.plus(more));
            let _ = self
                .insist(|| {
                    self.rows
                        .park_replace(&self.at, &of, next.clone(), row.revision)
                })
                .await;
        }
    }
    async fn ask_by_hand(&self, name: &str) {
        let of = stream(name);
        let request = Request {
            by: "bob".into(),
            job: None,
            upto: None,
        };
        let Some(row) = self.get(name).await else {
            return;
        };
        let Some(next) = row.value.requested(request) else {
            return;
        };
        let put = self.insist(|| {
            self.rows
                .park_replace(&self.at, &of, next.clone(), row.revision)
        });
        if let PutIf::Written(_) = put.await {
            self.insist(|| self.rows.announce()).await;
            self.hit("by hand");
        }
    }

    // ---- the owner of the partition

    /// Runs a process again and again, each time for a random time, until it ends by itself.
    async fn dying<T, F: Future<Output = T>>(
        &self,
        what: &'static str,
        longest: Duration,
        process: impl Fn(u32) -> F,
    ) -> T {
        for life in 0.. {
            let millis = longest.as_millis().try_into().unwrap_or(u64::MAX);
            let lives = Duration::from_millis(1 + self.store.random(millis));
            // After some lives it stays alive, so that the run ends.
            let lives = if life < 6 {
                lives
            } else {
                Duration::from_secs(24 * 3600)
            };
            match timeout(lives, process(life)).await {
                Ok(answer) => return answer,
                Err(_) => self.hit(what),
            }
        }
        panic!("the last life does not end");
    }

    /// Runs a job to its end.
    async fn execute(&self, job: JobId) -> JobStatus {
        let status = self.dying("executor dies", Duration::from_secs(6), |life| {
            let runner = JobRunner::new(self.operator.clone(), format!("executor {life}"))
                .with_poll(Duration::from_millis(300));
            async move {
                runner
                    .run("billing", job, std::future::pending())
                    .await
                    .unwrap()
            }
        });
        status.await
    }

    /// Does something that nobody has foreseen.
    async fn disturb(&self) {
        let name = STREAMS[self.store.random(4) as usize];
        match self.store.random(6) {
            0 => self.defer(name, 1 + self.store.random(2)).await,
            1 => self.park(name, 9).await,
            2 => self.ask_by_hand(name).await,
            3 => {
                let bad = (name.to_owned(), 2 + self.store.random(4));
                let mut seen = self.seen();
                if !seen.bad.remove(&bad) {
                    seen.bad.insert(bad);
                }
            }
            4 => {
                let name = LISTENED[self.store.random(2) as usize];
                self.seen().bad.insert((name.to_owned(), 7));
            }
            _ => {
                if let Some(row) = self.get(name).await {
                    let key = LetterKey::event(stream(name), row.value.from);
                    let address = LetterAddress::new("billing", 1, self.at.clone(), key);
                    // An operator whose call fails may try again, or not.
                    if let Ok(answer) = self.operator.discard(&address, &reason()).await
                        && answer.affected > 0
                    {
                        self.hit("discard");
                    }
                }
            }
        }
    }
}

/// Returns the frozen items of a job, by stream: the id, the first and the last version.
async fn frozen(world: &World, job: JobId) -> BTreeMap<String, (u128, u64, u64)> {
    let (mut items, mut page) = (BTreeMap::new(), 0);
    while let Some(found) = world
        .operator
        .rows
        .items_get("billing", job, page)
        .await
        .unwrap()
    {
        for item in found.value.items {
            assert_eq!(item.state, ItemState::Waiting);
            let (name, item) = match item.target {
                ItemTarget::Stream {
                    stream,
                    id,
                    from,
                    high,
                } => (
                    stream.id().to_owned(),
                    (id.as_u128(), from.get(), high.get()),
                ),
                ItemTarget::Letter {
                    key: LetterKey::Event { stream, version },
                    id,
                } => (
                    stream.id().to_owned(),
                    (id.as_u128(), version.get(), version.get()),
                ),
                ItemTarget::Letter { .. } => panic!("there are no such letters"),
            };
            items.insert(name, item);
        }
        page += 1;
    }
    items
}

/// Checks that a job has handled what was frozen, and nothing else.
fn check_handled(world: &World, job: JobId, frozen: &BTreeMap<String, (u128, u64, u64)>) -> u64 {
    let mut handled = BTreeSet::new();
    for (name, version, by, id) in &world.seen().handled {
        if *by == Some(job) {
            let (frozen_id, from, high) = frozen[name];
            assert_eq!(
                id.as_u128(),
                frozen_id,
                "{name} is another parking than what was listed"
            );
            assert!(
                (from..=high).contains(version),
                "{name} {version} was not listed"
            );
            handled.insert((name.clone(), *version));
        }
    }
    handled.len() as u64
}

#[tokio::test(start_paused = true)]
async fn a_job_handles_exactly_what_its_dry_run_has_counted() {
    for seed in 0..50 {
        let world = World::new(seed).await;
        let key = LetterKey::event(stream("b"), Version::new(3));
        let address = LetterAddress::new("billing", 1, world.at.clone(), key);
        let discarded = world.operator.discard(&address, &reason()).await.unwrap();
        assert_eq!(discarded.affected, 1);
        let all = Redrive::all("billing");
        let size = world.operator.dry_run(&all).await.unwrap();
        assert_eq!(
            (size.streams, size.letters, size.events),
            (4, 2, 4 * 3 + 2 - 1)
        );
        let job = world.operator.redrive(&all, &reason()).await.unwrap();
        assert_eq!((job.items, job.events), (6, size.events));
        let frozen = frozen(&world, job.id).await;
        world.store.set_chaos(Chaos {
            lose_request: 30,
            lose_reply: 30,
            delay: Duration::from_millis(10),
        });
        let status = async {
            // What comes after the selection is handled, but not on behalf of the job.
            world.defer("a", 2).await;
            let status = world.execute(job.id).await;
            world.seen().is_over = true;
            status
        };
        let (status, ()) = tokio::join!(status, world.own("host-1"));
        assert_eq!(
            check_handled(&world, job.id, &frozen),
            size.events,
            "seed {seed}"
        );
        assert_eq!(status.state, JobState::Done);
        assert_eq!(
            (status.counts.done, status.counts.handled),
            (6, size.events),
            "seed {seed}"
        );
        let passed = world.operator.discard_state(&address).await;
        world.store.set_chaos(Chaos::default());
        if let Ok(passed) = passed {
            assert_eq!(passed, Some(DiscardState::Passed));
        }
        let left = world.rows.letter_page(&world.at, None).await.unwrap();
        assert_eq!(
            left.rows,
            [],
            "every redriven or discarded letter is deleted"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_asks_once_ends_and_takes_back_only_its_own_whatever_happens() {
    let mut hits = BTreeMap::<&str, u32>::new();
    for seed in 0..150 {
        let world = World::new(seed).await;
        if world.one_in(2) {
            let bad = (STREAMS[world.store.random(4) as usize].to_owned(), 3);
            world.seen().bad.insert(bad);
        }
        let mut all = Redrive::all("billing");
        if world.one_in(2) {
            all = all.with_rate(NonZeroU32::new(2).unwrap());
        }
        let job = world.operator.redrive(&all, &reason()).await.unwrap().id;
        let frozen = frozen(&world, job).await;
        world.store.set_chaos(Chaos {
            lose_request: 25,
            lose_reply: 25,
            delay: Duration::from_millis(20),
        });
        let is_aborted = world.one_in(3);
        let executor = async {
            let status = world.execute(job).await;
            if status.state == JobState::Aborted {
                world.seen().aborted.insert(job);
            }
            // Whoever is still at work now must not do anything on behalf of an aborted job.
            sleep(Duration::from_secs(10)).await;
            world.seen().is_over = true;
            status
        };
        let owner = world.dying("owner dies", Duration::from_secs(5), |life| {
            let (world, me) = (world.clone(), format!("owner {life}"));
            async move { world.own(&me).await }
        });
        let disturber = async {
            for _ in 0..8 {
                sleep(Duration::from_millis(world.store.random(1_500))).await;
                world.disturb().await;
            }
        };
        let aborter = async {
            if is_aborted {
                sleep(Duration::from_millis(world.store.random(3_000))).await;
                while let Err(error) = world.operator.abort("billing", job, &reason()).await {
                    assert!(error.is_transient(), "{error}");
                }
            }
        };
        let all = async { tokio::join!(executor, owner, disturber, aborter).0 };
        let status = timeout(Duration::from_secs(24 * 3600), all).await;
        let status = status.unwrap_or_else(|_| panic!("seed {seed}: the job does not end"));
        assert!(status.is_over(), "seed {seed}: {status:?}");
        check_handled(&world, job, &frozen);
        let counts = status.counts;
        if status.state == JobState::Done {
            let items = counts.done + counts.failed + counts.gone;
            assert_eq!(items, status.items, "seed {seed}: every item is over");
        }
        assert!(counts.handled <= status.events, "seed {seed}: {counts:?}");
        world.store.set_chaos(Chaos::default());
        for (of, row) in world.rows.park_page(&world.at, None).await.unwrap().rows {
            let state = &row.value.state;
            assert_eq!(
                *state,
                ParkState::Parked,
                "seed {seed}: a request for {of} is not served"
            );
        }
        let outcomes = [
            ("done", counts.done > 0),
            ("failed", counts.failed > 0),
            ("gone", counts.gone > 0),
            ("aborted", status.state == JobState::Aborted),
        ];
        for (what, is_hit) in outcomes {
            *hits.entry(what).or_default() += u32::from(is_hit);
        }
        for (what, count) in &world.seen().hits {
            *hits.entry(what).or_default() += count;
        }
    }
    println!("{hits:?}");
    for what in [
        "done",
        "failed",
        "gone",
        "aborted",
        "by hand",
        "discard",
        "released",
        "executor dies",
        "owner dies",
        "letter redriven",
        "letter failed again",
    ] {
        assert!(
            hits.get(what).is_some_and(|hits| *hits > 0),
            "{what} was never hit: {hits:?}"
        );
    }
}
