//! Watermarks and snapshots after a restore from a backup, when their history is gone.
use async_trait::async_trait;
use foldstream::{
    CommitId, IdSource as _, StreamHead, StreamId, SystemIds, Timestamp, Version,
    control::{
        Finding, RestoreCursor, RestoreError, RestorePage, RestoreRepair, Watermark, Watermarks,
        WritesSinceRestore,
    },
    ports::{
        Append, Commit, ControlStore, ControlStoreError, EventData, EventStore, EventStoreError,
        Expect, PutOutcome, Row, RowKey, SnapshotStore, StoredSnapshot,
    },
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemorySnapshotStore,
    faults::{Call, Fault, Faults, Op},
    intercept::{self, ControlStoreLayer},
};
use std::{num::NonZeroU32, sync::Arc};

const MANY: NonZeroU32 = NonZeroU32::new(1_000).unwrap();

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}
fn stream(id: &str) -> StreamId {
    StreamId::new("cart", id).unwrap()
}
fn version(n: u64) -> Version {
    Version::new(n)
}

/// A store that came back from a backup, and the other stores, which remember the one before.
struct World {
    events: Arc<InMemoryEventStore>,
    control: Arc<InMemoryControlStore>,
    snapshots: Arc<InMemorySnapshotStore>,
}

impl World {
    fn new() -> Self {
        Self {
            events: InMemoryEventStore::new(),
            control: InMemoryControlStore::new(),
            snapshots: InMemorySnapshotStore::new(),
        }
    }
    fn restore(&self) -> RestoreRepair {
        self.restore_after(WritesSinceRestore::NoneYet)
    }
    fn restore_after(&self, writes: WritesSinceRestore) -> RestoreRepair {
        RestoreRepair::new(self.events.clone(), self.control.clone(), writes)
            .with_snapshots(self.snapshots.clone())
    }
    /// Stores commits of two events each, recorded a second apart from `since` on.
    async fn commits(&self, stream: &StreamId, since: i64, count: usize) -> Vec<Commit> {
        use foldstream::ports::ReadFrom;
        use futures::TryStreamExt as _;
        let newest = self
            .events
            .read(stream, ReadFrom::Newest, NonZeroU32::new(1));
        let newest: Option<Commit> = newest.try_collect::<Vec<_>>().await.unwrap().pop();
        let mut head = newest.map_or_else(|| StreamHead::empty(stream.clone()), |c| c.head());
        let mut commits = Vec::new();
        for second in (since..).take(count) {
            let events = vec![EventData::new("Added", 1, "{}"); 2];
            let append = Append::after(head, CommitId::random(), at(second), events);
            let _ = self.events.append(&append).await.unwrap();
            head = append.head_after();
            commits.push(append.to_commit());
        }
        commits
    }
    fn watermarks(&self) -> Watermarks {
        Watermarks::new(self.control.clone(), Arc::new(SystemIds))
    }
    async fn published(&self, stream: &StreamId, watermark: Watermark) {
        self.watermarks()
            .advance(stream, None, watermark)
            .await
            .unwrap();
    }
    async fn watermark(&self, stream: &StreamId) -> Option<Watermark> {
        self.watermarks()
            .get(stream)
            .await
            .unwrap()
            .map(|s| s.value)
    }
    async fn snapshot(&self, stream: &StreamId, version: Version, id: CommitId) {
        let snapshot = StoredSnapshot::new(stream.clone(), version, id, 1, "{}".into());
        let _ = self.snapshots.save(&snapshot).await.unwrap();
    }
    async fn has_snapshot(&self, stream: &StreamId) -> bool {
        self.snapshots.load(stream).await.unwrap().is_some()
    }
}

fn watermark(commit: &Commit) -> Watermark {
    Watermark::new(commit.last_version(), commit.id)
}
/// Returns a watermark at a commit that is gone.
fn lost(at: u64) -> Watermark {
    Watermark::new(version(at), CommitId::random())
}
/// Repairs, and asserts that the check found the same and finds nothing afterwards.
async fn repair(restore: &RestoreRepair) -> Vec<Finding> {
    let found = restore.check(None, MANY).await.unwrap();
    let done = restore.repair(None, MANY).await.unwrap();
    assert_eq!(found, done);
    assert_eq!(done.next, None);
    let left = restore.check(None, MANY).await.unwrap().findings;
    let unrepaired: Vec<_> = done.findings.iter().filter(|f| !f.is_repaired()).collect();
    assert_eq!(left.iter().collect::<Vec<_>>(), unrepaired);
    done.findings
}

#[tokio::test]
async fn a_watermark_above_the_tail_comes_down_to_it() {
    let (world, a, b) = (World::new(), stream("a"), stream("b"));
    let commits = world.commits(&a, 0, 3).await;
    let later = world.commits(&b, 0, 3).await;
    let from = lost(10);
    world.published(&a, from).await;
    world.published(&b, watermark(&later[1])).await;
    let findings = repair(&world.restore()).await;
    let to = Some(watermark(&commits[2]));
    let stream = a.clone();
    assert_eq!(findings, [Finding::Watermark { stream, from, to }]);
    assert_eq!(world.watermark(&a).await, to);
    assert_eq!(world.watermark(&b).await, Some(watermark(&later[1])));
    assert!(
        findings[0]
            .to_string()
            .contains("watermark 10 comes down to 6")
    );
}

#[tokio::test]
async fn the_watermark_of_a_stream_that_is_gone_goes() {
    let (world, gone) = (World::new(), stream("gone"));
    world.published(&gone, lost(4)).await;
    world.snapshot(&gone, version(4), CommitId::random()).await;
    assert_eq!(repair(&world.restore()).await.len(), 2);
    assert_eq!(world.watermark(&gone).await, None);
    assert!(!world.has_snapshot(&gone).await);
}

/// New commits have old version numbers. If the watermark moved to the new tail, they would never
/// be published.
#[tokio::test]
async fn a_stream_that_was_written_to_is_left_until_it_is_said_since_when() {
    for lost_at in [5, 8, 9, 20] {
        let (world, a) = (World::new(), stream("a"));
        let restored = world.commits(&a, 0, 2).await;
        let from = lost(lost_at);
        world.published(&a, from).await;
        world.commits(&a, 100, 2).await;
        if lost_at <= 8 {
            let findings = repair(&world.restore()).await;
            let tail = version(8);
            let stream = a.clone();
            assert_eq!(
                findings,
                [Finding::Forked {
                    stream,
                    watermark: from,
                    tail
                }]
            );
            assert_eq!(world.watermark(&a).await, Some(from));
        }
        let restore = world.restore_after(WritesSinceRestore::Since(at(100)));
        assert_eq!(repair(&restore).await.len(), 1);
        assert_eq!(
            world.watermark(&a).await,
            Some(watermark(&restored[1])),
            "{lost_at}"
        );
    }
}

#[tokio::test]
async fn a_stream_that_is_all_new_loses_its_watermark() {
    let (world, a) = (World::new(), stream("a"));
    world.commits(&a, 100, 2).await;
    world.published(&a, lost(2)).await;
    repair(&world.restore_after(WritesSinceRestore::Since(at(100)))).await;
    assert_eq!(world.watermark(&a).await, None);
}

/// A watermark that is too high would skip unpublished commits.
#[tokio::test]
async fn a_watermark_never_goes_up() {
    let (world, a) = (World::new(), stream("a"));
    world.commits(&a, 0, 4).await;
    let from = lost(4);
    world.published(&a, from).await;
    let findings = repair(&world.restore_after(WritesSinceRestore::Since(at(100)))).await;
    assert!(
        matches!(findings[..], [Finding::Forked { .. }]),
        "{findings:?}"
    );
    assert_eq!(world.watermark(&a).await, Some(from));
}

#[tokio::test]
async fn a_snapshot_above_the_tail_or_of_another_history_goes() {
    let world = World::new();
    let (fits, above, other, inside) = (stream("1"), stream("2"), stream("3"), stream("4"));
    for stream in [&fits, &above, &other, &inside] {
        let commits = world.commits(stream, 0, 2).await;
        let (version, id) = match stream {
            s if s == &fits => (version(2), commits[0].id),
            s if s == &above => (version(6), CommitId::random()),
            s if s == &other => (version(4), CommitId::random()),
            _ => (version(3), commits[1].id),
        };
        world.snapshot(stream, version, id).await;
    }
    // These streams were never published, so they are found by their type only.
    assert_eq!(repair(&world.restore()).await, []);
    let findings = repair(&world.restore().with_aggregates(["other", "cart"])).await;
    assert_eq!(findings.len(), 3);
    for (stream, stays) in [
        (&fits, true),
        (&above, false),
        (&other, false),
        (&inside, false),
    ] {
        assert_eq!(world.has_snapshot(stream).await, stays, "{stream}");
    }
}

#[tokio::test]
async fn a_check_changes_nothing() {
    let (world, a) = (World::new(), stream("a"));
    world.commits(&a, 0, 1).await;
    let from = lost(9);
    world.published(&a, from).await;
    world.snapshot(&a, version(9), from.commit_id).await;
    let findings = world.restore().check(None, MANY).await.unwrap().findings;
    assert_eq!(findings.len(), 2);
    assert_eq!(world.watermark(&a).await, Some(from));
    assert!(world.has_snapshot(&a).await);
}

#[tokio::test]
async fn pages_keep_to_their_budget_and_go_on_from_the_cursors_text() {
    let world = World::new();
    for n in 0..150 {
        let stream = stream(&n.to_string());
        world.commits(&stream, 0, 1).await;
        world.published(&stream, lost(7)).await;
    }
    for budget in [1, 7, 64, 150, 151] {
        let budget = NonZeroU32::new(budget).unwrap();
        let (mut cursor, mut found, mut pages) = (None::<RestoreCursor>, Vec::new(), 0);
        loop {
            // Each page is repaired by another process.
            let page: RestorePage = world
                .restore()
                .check(cursor.as_ref(), budget)
                .await
                .unwrap();
            assert!(page.streams <= budget.get());
            found.extend(page.findings);
            pages += 1;
            match page.next {
                Some(next) => cursor = Some(next.to_string().parse().unwrap()),
                None => break,
            }
        }
        let mut streams: Vec<_> = found.iter().map(ToString::to_string).collect();
        streams.sort_unstable();
        streams.dedup();
        assert_eq!((found.len(), streams.len()), (150, 150), "{budget}");
        assert!(pages >= 150 / budget.get());
    }
}

/// Moves the watermark whenever another process is about to lower it, as a publisher does that was
/// not stopped.
struct Moving;
#[async_trait]
impl ControlStoreLayer for Moving {
    async fn put(
        &self,
        inner: &Arc<dyn ControlStore>,
        row: &Row,
        expect: Expect,
    ) -> Result<PutOutcome, ControlStoreError> {
        let mut theirs = inner.get(&row.key).await?.unwrap();
        theirs.revision = SystemIds.revision();
        let _ = inner.put(&theirs, Expect::Any).await?;
        inner.put(row, expect).await
    }
}

#[tokio::test]
async fn a_publisher_that_was_not_stopped_is_noticed() {
    let (world, a) = (World::new(), stream("a"));
    world.commits(&a, 0, 1).await;
    let from = lost(9);
    world.published(&a, from).await;
    let control = intercept::control_store(world.control.clone(), Moving);
    let restore = RestoreRepair::new(world.events.clone(), control, WritesSinceRestore::NoneYet);
    let error = restore.repair(None, MANY).await.unwrap_err();
    assert!(
        matches!(&error, RestoreError::InUse { stream } if *stream == a),
        "{error:?}"
    );
    assert!(error.to_string().contains("stop all publishers"));
    assert_eq!(world.watermark(&a).await, Some(from));
}

#[tokio::test]
async fn a_row_that_is_none_of_ours_is_named() {
    let world = World::new();
    let key = RowKey::new("wm/3", "no stream");
    let value = serde_json::to_vec(&lost(1)).unwrap();
    let row = Row::new(key, value, SystemIds.revision());
    let _ = world.control.put(&row, Expect::Absent).await.unwrap();
    let error = world.restore().check(None, MANY).await.unwrap_err();
    assert!(error.to_string().contains("wm/3"), "{error}");
}

#[tokio::test]
async fn a_stream_that_came_back_with_a_hole_is_found_and_holds_up_no_other() {
    let world = World::new();
    let (torn, fine) = (stream("torn"), stream("fine"));
    for stream in [&torn, &fine] {
        let commits = world.commits(stream, 0, 1).await;
        let lost = Watermark::new(version(9), CommitId::random());
        world.published(stream, lost).await;
        assert_eq!(commits.len(), 1);
    }
    let corrupt = || EventStoreError::Corrupt {
        stream: stream("torn"),
        after: version(0),
        reason: "the item at 1 is missing".into(),
    };
    let broken = torn.clone();
    let faults = Faults::script([Fault::error(corrupt)
        .on(Op::Read)
        .matching(move |call| matches!(call, Call::Read { stream, .. } if **stream == broken))]);
    let events = faults.event_store(world.events.clone());
    let restore = RestoreRepair::new(events, world.control.clone(), WritesSinceRestore::NoneYet);
    let page = restore.repair(None, MANY).await.unwrap();
    assert_eq!(page.findings.len(), 2);
    for finding in &page.findings {
        match finding {
            Finding::Corrupt { stream, .. } => assert_eq!(*stream, torn),
            Finding::Watermark { stream, .. } => assert_eq!(*stream, fine),
            other => panic!("{other}"),
        }
    }
    assert_eq!(world.watermark(&torn).await.unwrap().version, version(9));
    assert_eq!(world.watermark(&fine).await.unwrap().version, version(2));
}
