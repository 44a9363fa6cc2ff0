//! The laws that need a store: a sequence runs through a repository with the real codec, upcasters,
//! snapshots and idempotency.
use super::{
    command::{Executed, Step, stream_of},
    story::{Broken, Ending, Line, event_round_trip, shown},
    walk::{REPLAY, Rules, Walk},
};
use crate::{
    InMemoryControlStore, InMemoryEventStore, InMemorySnapshotStore, ManualClock, SeededIds,
};
use foldstream::{
    Aggregate, CommandId, Metadata, Repository, Snapshot, SnapshotPolicy, Timestamp, chain,
    ports::{EventStore, ReadFrom, SnapshotStore, StoredSnapshot},
};
use futures::TryStreamExt;
use std::{fmt::Debug, sync::Arc, time::Duration};

const CODEC: &str = "events survive encode, upcast and decode";
const SNAPSHOT: &str = "a snapshot at any cut and the tail make the full fold";
const DUPLICATE: &str = "a duplicate command changes nothing";
const REJECTED: &str = "a rejected command changes nothing";

/// The functions that a repository needs for snapshots, so that aggregates without snapshots need
/// not have them.
pub(super) struct SnapshotKit<A: Aggregate> {
    with: fn(Repository<A>, Arc<dyn SnapshotStore>, SnapshotPolicy) -> Repository<A>,
    decode: fn(&[u8]) -> Result<A, String>,
}

impl<A: Snapshot> SnapshotKit<A> {
    pub(super) fn new() -> Self {
        Self {
            with: Repository::with_snapshots,
            decode: |payload| serde_json::from_slice(payload).map_err(|e| e.to_string()),
        }
    }
}

/// One sequence on its way through a repository.
struct Run<'a, A: Aggregate> {
    rules: &'a Rules<A>,
    walk: &'a Walk<A>,
    id: A::Id,
    store: Arc<InMemoryEventStore>,
    clock: Arc<ManualClock>,
}

/// Runs the sequence of a walk through a repository, and compares the outcomes.
pub(super) fn check<A: Aggregate + PartialEq + Debug>(
    rules: &Rules<A>,
    walk: &Walk<A>,
    id: A::Id,
) -> Result<(), Broken> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap_or_else(|error| panic!("no runtime of one thread: {error}"));
    runtime.block_on(async {
        Run::new(rules, walk, id.clone())
            .states_are_replayed()
            .await?;
        if let Some(kit) = &rules.snapshots {
            Run::new(rules, walk, id.clone()).snapshots_fit(kit).await?;
        }
        if rules.duplicates {
            Run::new(rules, walk, id)
                .duplicates_change_nothing()
                .await?;
        }
        Ok(())
    })
}

impl<'a, A: Aggregate + PartialEq + Debug> Run<'a, A> {
    fn new(rules: &'a Rules<A>, walk: &'a Walk<A>, id: A::Id) -> Self {
        Self {
            rules,
            walk,
            id,
            store: InMemoryEventStore::new(),
            clock: ManualClock::new(),
        }
    }

    fn repository(&self) -> Repository<A> {
        Repository::new(self.store.clone())
            .with_upcasters(self.rules.upcasters.clone())
            .with_clock(self.clock.clone())
            .with_ids(SeededIds::new(1))
            // A repository would refuse an event that does not survive. The laws store the event,
            // to show what is lost.
            .without_encode_check()
    }

    fn steps(&self) -> impl Iterator<Item = (&'a Step<A>, &'a Line<A::Event>)> + use<'a, A> {
        self.walk.steps.iter().zip(&self.walk.story.lines)
    }

    /// Returns the walk up to and including its `number`-th command.
    fn until(&self, number: usize) -> Walk<A> {
        let mut walk = self.walk.clone();
        walk.story.lines.truncate(number);
        walk
    }

    /// Checks that the replay equals the state, that events survive, and that a rejected command
    /// stores nothing.
    async fn states_are_replayed(&self) -> Result<(), Broken> {
        let repository = self.repository();
        let mut state = A::default();
        let mut events = 0;
        for (number, (step, line)) in (1..).zip(self.steps()) {
            self.clock.set(line.at);
            let executed = step
                .command
                .execute(&repository, &self.id, Metadata::new())
                .await;
            events += line.decision.as_ref().map_or(0, Vec::len);
            let led_to = match executed {
                Executed::Accepted {
                    events, state: new, ..
                } => {
                    state = new;
                    Ok(events)
                }
                Executed::Rejected(reason) => Err(reason),
                Executed::Failed(error) => {
                    let found = vec![format!("the repository: {error}")];
                    return Err(self.until(number).broken(CODEC, found, &Ending::AsTold));
                }
            };
            if led_to != line.decision {
                let found = vec![format!("on the replayed state: {}", shown(&led_to))];
                return Err(self.until(number).broken(REPLAY, found, &Ending::AsTold));
            }
            self.check_stored(&repository, number, events).await?;
        }
        if !self.walk.history.is_empty() && state != self.walk.state {
            return Err(self.walk.other_state(REPLAY, &state));
        }
        match repository.load(&self.id).await {
            Ok(loaded) if *loaded.state() == self.walk.state => Ok(()),
            Ok(loaded) => Err(self.walk.other_state(REPLAY, loaded.state())),
            Err(error) => Err(self
                .walk
                .broken(CODEC, vec![chain(&error)], &Ending::AsTold)),
        }
    }

    /// Checks that the decoded events of the store are exactly the decided ones.
    async fn check_stored(
        &self,
        repository: &Repository<A>,
        number: usize,
        events: usize,
    ) -> Result<(), Broken> {
        let decided = &self.walk.history[..events];
        let broken = |law: &str, found| {
            let until = self.until(number);
            Err(until.broken(law, found, &Ending::AsTold))
        };
        let history: Result<Vec<_>, _> = repository.history(&self.id).try_collect().await;
        let history = match history {
            Ok(history) => history,
            Err(error) => return broken(CODEC, vec![chain(&error)]),
        };
        let versions: Vec<_> = history.iter().map(|r| r.header.version.get()).collect();
        let decoded: Vec<_> = history.into_iter().map(|r| r.event).collect();
        if decoded == decided {
            return Ok(());
        }
        if decoded.len() > decided.len() {
            let found = vec![format!("stored too: {:?}", &decoded[decided.len()..])];
            return broken(REJECTED, found);
        }
        let mut found = Vec::new();
        let mut lost = None;
        for (version, event) in (1u64..).zip(decided) {
            let read = versions.iter().position(|v| *v == version);
            match read.map(|at| &decoded[at]) {
                Some(read) if read == event => continue,
                Some(read) => {
                    found.push(format!("version {version}: {event:?}"));
                    found.push(format!("is read as: {read:?}"));
                }
                None => found.push(format!("version {version} is not read: {event:?}")),
            }
            lost = lost.or(Some(event));
        }
        if let Some(payloads) = self.payloads().await {
            found.push(format!("stored: {payloads}"));
        }
        let mut broken = self.until(number).broken(CODEC, found, &Ending::AsTold);
        broken
            .test
            .extend(lost.into_iter().flat_map(event_round_trip));
        Err(broken)
    }

    async fn payloads(&self) -> Option<String> {
        let stream = stream_of::<A>(&self.id.to_string()).ok()?;
        let from = ReadFrom::Event(foldstream::Version::new(1));
        let commits: Vec<_> = self
            .store
            .read(&stream, from, None)
            .try_collect()
            .await
            .ok()?;
        let events = commits.iter().flat_map(|commit| commit.events.iter());
        let shown = events.map(|e| format!("{} {}", e.name, String::from_utf8_lossy(&e.payload)));
        Some(shown.collect::<Vec<_>>().join(", "))
    }

    /// Checks that a snapshot at every version leads to the state together with the events after
    /// it.
    async fn snapshots_fit(&self, kit: &SnapshotKit<A>) -> Result<(), Broken> {
        let repository = self.repository();
        let mut taken: Vec<(usize, StoredSnapshot)> = Vec::new();
        for (number, (step, line)) in (1..).zip(self.steps()) {
            self.clock.set(line.at);
            // The outcome of the command was checked before.
            step.command
                .execute(&repository, &self.id, Metadata::new())
                .await;
            if line
                .decision
                .as_ref()
                .is_ok_and(|events| !events.is_empty())
            {
                taken.push((number, self.take_snapshot(kit, number).await?));
            }
        }
        for (number, snapshot) in taken {
            let version = snapshot.version;
            let broken = |found| Err(self.walk.broken(SNAPSHOT, found, &Ending::AsTold));
            let snapshots = InMemorySnapshotStore::new();
            if let Err(error) = snapshots.save(&snapshot).await {
                return broken(vec![chain(&error)]);
            }
            let repository = (kit.with)(self.repository(), snapshots, SnapshotPolicy::never());
            let loaded = match repository.load(&self.id).await {
                Ok(loaded) => loaded,
                Err(error) => return broken(vec![chain(&error)]),
            };
            if *loaded.state() != self.walk.state {
                let payload = String::from_utf8_lossy(&snapshot.payload).into_owned();
                let found = vec![
                    format!("the state: {:?}", self.walk.state),
                    format!(
                        "but from the snapshot at version {version}, {payload}: {:?}",
                        loaded.state()
                    ),
                ];
                let cut = self.until(number);
                return Err(cut.broken(SNAPSHOT, found, &Ending::RoundTrip));
            }
        }
        Ok(())
    }

    /// Takes a snapshot of the current state.
    async fn take_snapshot(
        &self,
        kit: &SnapshotKit<A>,
        number: usize,
    ) -> Result<StoredSnapshot, Broken> {
        let broken = |found: String| {
            let until = self.until(number);
            Err(until.broken(SNAPSHOT, vec![found], &Ending::RoundTrip))
        };
        let snapshots = InMemorySnapshotStore::new();
        let repository = (kit.with)(
            self.repository(),
            snapshots.clone(),
            SnapshotPolicy::every(1),
        );
        let loaded = match repository.load(&self.id).await {
            Ok(loaded) => loaded,
            Err(error) => return broken(chain(&error)),
        };
        repository.close().await;
        let Ok(Some(snapshot)) = snapshots.load(loaded.head().stream()).await else {
            return broken(format!(
                "no snapshot was written: the state cannot be encoded: {:?}",
                loaded.state()
            ));
        };
        // A repository ignores a snapshot that it cannot read: correct, but slow forever.
        if let Err(error) = (kit.decode)(&snapshot.payload) {
            let payload = String::from_utf8_lossy(&snapshot.payload).into_owned();
            return broken(format!("the snapshot {payload} cannot be read: {error}"));
        }
        Ok(snapshot)
    }

    /// Sends every accepted command again with its id, after all commands are done.
    async fn duplicates_change_nothing(&self) -> Result<(), Broken> {
        let control = InMemoryControlStore::with_clock(self.clock.clone());
        let day = Duration::from_secs(86_400 * 365);
        let repository = self.repository().with_idempotency(control, day);
        let named =
            |number: usize| Metadata::new().with_command_id(CommandId::from(format!("c-{number}")));
        for (number, (step, line)) in (1..).zip(self.steps()) {
            self.clock.set(line.at);
            step.command
                .execute(&repository, &self.id, named(number))
                .await;
        }
        let end = self.walk.history.len() as u64;
        for (number, (step, line)) in (1..).zip(self.steps()) {
            let Ok(first) = &line.decision else { continue };
            let again = step
                .command
                .execute(&repository, &self.id, named(number))
                .await;
            let found = match again {
                Executed::Accepted {
                    version, events, ..
                } if version.get() == end && events == *first => continue,
                Executed::Accepted { events, .. } => format!("{events:?}"),
                // A command that led to no event is not remembered. It may now be rejected, because
                // the state has changed.
                Executed::Rejected(_) if first.is_empty() => continue,
                Executed::Rejected(reason) => format!("rejected: {reason}"),
                Executed::Failed(error) => error,
            };
            let ending = Ending::Again {
                command: line.command.clone(),
                at: self.last_time(),
            };
            let found = vec![format!("command {number} again, with its id: {found}")];
            return Err(self.walk.broken(DUPLICATE, found, &ending));
        }
        Ok(())
    }

    fn last_time(&self) -> Timestamp {
        let last = self.walk.story.last();
        last.map_or(ManualClock::START, |line| line.at)
    }
}
