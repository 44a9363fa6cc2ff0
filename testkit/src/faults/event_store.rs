//! The wrapper that injects faults into an event store.
use super::{
    Call, Fault, Faults,
    lagging::{Lagging, with_hole, with_torn_commit},
    pass::{Late, Plain, PortError},
    start,
};
use crate::intercept::{Commits, EventStoreLayer, Read, Scan};
use async_trait::async_trait;
use foldstream::{
    StreamHead,
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, EventStore,
        EventStoreError, ScanCursor, ScanItems, ScanPage, Segment, StreamPage, UnpublishedPage,
    },
};
use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The exclusive upper bound of the commits that a read returns before it breaks off.
const BREAK: usize = 8;

#[derive(Clone)]
pub(super) struct FaultyEventStore {
    faults: Faults,
    lagging: Arc<Mutex<Lagging>>,
}

type Store = Arc<dyn EventStore>;

impl FaultyEventStore {
    pub(super) fn new(faults: Faults) -> Self {
        let lagging = Arc::default();
        Self { faults, lagging }
    }
    fn lagging(&self) -> MutexGuard<'_, Lagging> {
        self.lagging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes which commits of an append lists or reads must not show, before the append is sent.
    ///
    /// If this came after the append, a list in between would show the commits.
    /// [`review`](Self::review) undoes the note if the append stored nothing.
    fn prepare(&self, fault: Option<&Fault>, appends: &[Append]) {
        for (n, append) in appends.iter().enumerate() {
            let key = key_of(append);
            match fault {
                Some(Fault::Lag(calls)) => {
                    let is_first = append.head.commit_id().is_none();
                    self.lagging().append(key, is_first, *calls);
                }
                Some(Fault::Hide(reads)) if n + 1 == appends.len() => {
                    self.lagging().hide(key, *reads);
                }
                _ => {}
            }
        }
    }

    /// Shows the commits of an append that stored nothing.
    ///
    /// After a conflict or a repeat, the commits at these versions were stored earlier and do not
    /// lag.
    fn review<T>(&self, done: &Result<AppendOutcome<T>, EventStoreError>, appends: &[Append]) {
        if matches!(
            done,
            Ok(AppendOutcome::Repeated(_) | AppendOutcome::Conflict(_))
        ) {
            for append in appends {
                self.lagging().show(&key_of(append));
            }
        }
    }

    /// Returns the commits that a read shows under this fault.
    async fn commits<'a>(
        &'a self,
        inner: &'a Store,
        read: &Read,
        fault: Option<Fault>,
    ) -> Result<Commits<'a>, EventStoreError> {
        let call = Call::Read {
            stream: &read.stream,
            from: &read.from,
        };
        if let Some(error) = fault.as_ref().and_then(|f| self.faults.failure(&call, f)) {
            return Err(error);
        }
        let begun = async { Ok::<_, EventStoreError>(Plain(())) };
        // The probe is told that the read is done once it has begun: it shows the state of that
        // moment or a later one.
        let _ = self.faults.reach(&call, begun).await;
        let commits = inner.read(&read.stream, read.from.clone(), read.limit);
        let unseen = self.lagging().unseen(&read.stream);
        let commits = match unseen.is_empty() {
            true => commits,
            false => commits
                .try_filter(move |commit| std::future::ready(!unseen.contains(&commit.key())))
                .boxed(),
        };
        let Some(fault) = fault else {
            return Ok(commits.into());
        };
        let place = self.faults.plan.below(BREAK);
        let shown = match fault {
            Fault::LoseReply => {
                let error = EventStoreError::unknown(
                    &call,
                    "injected by the test: the read broke off".into(),
                );
                commits
                    .take(place)
                    .chain(stream::once(async { Err(error) }))
                    .boxed()
            }
            Fault::HoleAt(version) => commits
                .try_filter(move |commit| std::future::ready(commit.first_version != version))
                .boxed(),
            Fault::HangAfter => stream::pending().boxed(),
            Fault::Hole => changed(commits, move |all| with_hole(all, place)),
            Fault::TornCommit => changed(commits, move |all| with_torn_commit(all, place)),
            Fault::CrashAfter => {
                self.faults.crash();
                stream::pending().boxed()
            }
            _ => commits,
        };
        Ok(shown.into())
    }
}

fn key_of(append: &Append) -> CommitKey {
    CommitKey::new(append.head.stream().clone(), append.head.version().next())
}

fn changed<'a>(
    commits: BoxStream<'a, Result<Commit, EventStoreError>>,
    change: impl FnOnce(Vec<Commit>) -> Vec<Commit> + Send + 'a,
) -> BoxStream<'a, Result<Commit, EventStoreError>> {
    let all = async move {
        let all: Vec<Commit> = commits.try_collect().await?;
        Ok(stream::iter(change(all).into_iter().map(Ok)))
    };
    stream::once(all).try_flatten().boxed()
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl EventStoreLayer for FaultyEventStore {
    fn capabilities(&self, inner: &Store) -> Capabilities {
        inner.capabilities()
    }
    fn incarnation(&self, inner: &Store) -> u64 {
        inner.incarnation()
    }

    async fn append(
        &self,
        inner: &Store,
        append: &Append,
    ) -> Result<AppendOutcome, EventStoreError> {
        let call = Call::Append(append);
        let fault = self.faults.arrive(&call).await;
        self.prepare(fault.as_ref(), std::slice::from_ref(append));
        let late = || -> Late {
            let (faults, inner, append) = (self.faults.clone(), inner.clone(), append.clone());
            Box::pin(async move {
                let sent = inner.append(&append);
                // The caller has given up and does not get the answer; likewise below.
                let _ = faults.reach(&Call::Append(&append), sent).await;
            })
        };
        let act = || inner.append(append);
        let done = self.faults.finish(call, fault, act, late).await;
        self.review(&done, std::slice::from_ref(append));
        done
    }

    async fn append_all(
        &self,
        inner: &Store,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        let call = Call::AppendAll(all);
        let fault = self.faults.arrive(&call).await;
        self.prepare(fault.as_ref(), &all.commits);
        let late = || -> Late {
            let (faults, inner, all) = (self.faults.clone(), inner.clone(), all.clone());
            Box::pin(async move {
                let sent = inner.append_all(&all);
                let _ = faults.reach(&Call::AppendAll(&all), sent).await;
            })
        };
        let act = || inner.append_all(all);
        let done = self.faults.finish(call, fault, act, late).await;
        self.review(&done, &all.commits);
        done
    }

    async fn read<'a>(
        &'a self,
        inner: &'a Store,
        read: Read,
    ) -> Result<Commits<'a>, EventStoreError> {
        let fault = self
            .faults
            .arrive(&Call::Read {
                stream: &read.stream,
                from: &read.from,
            })
            .await;
        self.commits(inner, &read, fault).await
    }

    async fn streams(
        &self,
        inner: &Store,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        let call = Call::Streams { aggregate };
        let again = start::again(&call, after.as_ref());
        let after = start::resolved(&call, after);
        let fault = self.faults.arrive(&call).await;
        if matches!(fault, Some(Fault::EmptyPage)) {
            // The inner store is called nevertheless, so that it refuses a cursor of another list.
            inner.streams(aggregate, after).await?;
            return Ok(StreamPage::new(Vec::new(), Some(again)));
        }
        self.catch_up(inner).await?;
        let unlisted = self.lagging().unlisted_streams(after.is_none());
        let act = || inner.streams(aggregate, after.clone());
        let mut page = self.faults.finish_asking(call, fault, act).await?;
        page.streams.retain(|stream| !unlisted.contains_key(stream));
        Ok(page)
    }

    async fn scan(&self, inner: &Store, mut scan: Scan) -> Result<ScanPage, EventStoreError> {
        let call = Call::Scan {
            segment: scan.segment,
        };
        let list = format!("{call} for {:?}", scan.what);
        let again = start::again(&list, scan.after.as_ref());
        scan.after = start::resolved(&list, scan.after);
        let fault = self.faults.arrive(&call).await;
        if matches!(fault, Some(Fault::EmptyPage)) {
            let page = scan.pass(inner).await?;
            let nothing = match page.items {
                ScanItems::Tails(_) => ScanItems::Tails(Vec::new()),
                ScanItems::Commits(_) => ScanItems::Commits(Vec::new()),
            };
            let empty = ScanPage::new(nothing, Some(again));
            return Ok(empty.with_read_units(page.read_units));
        }
        let act = || -> BoxFuture<'_, _> { Box::pin(scan.pass(inner)) };
        self.faults.finish_asking(call, fault, act).await
    }

    async fn unpublished(
        &self,
        inner: &Store,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        let call = Call::Unpublished { segment };
        let again = start::again(&call, after.as_ref());
        let after = start::resolved(&call, after);
        let fault = self.faults.arrive(&call).await;
        if matches!(fault, Some(Fault::EmptyPage)) {
            inner.unpublished(segment, after, limit).await?;
            return Ok(UnpublishedPage::new(Vec::new(), Some(again)));
        }
        self.catch_up(inner).await?;
        let (unlisted, cleared) = self.lagging().unlisted_commits(after.is_none());
        self.clear_now(inner, &cleared).await?;
        let act = || inner.unpublished(segment, after.clone(), limit);
        let mut page = self.faults.finish_asking(call, fault, act).await?;
        page.keys.retain(|key| !unlisted.contains_key(key));
        Ok(page)
    }

    async fn clear_unpublished(
        &self,
        inner: &Store,
        commits: &[CommitKey],
    ) -> Result<(), EventStoreError> {
        let call = Call::ClearUnpublished(commits);
        let fault = self.faults.arrive(&call).await;
        if let Some(Fault::Lag(calls)) = fault {
            self.lagging().clear(commits, calls);
            let acknowledged = async { Ok(Plain(())) };
            return self.faults.reach(&call, acknowledged).await.map(|_| ());
        }
        let late = || -> Late {
            let (faults, inner) = (self.faults.clone(), inner.clone());
            let commits = commits.to_vec();
            Box::pin(async move {
                let sent = async { inner.clear_unpublished(&commits).await.map(Plain) };
                let _ = faults.reach(&Call::ClearUnpublished(&commits), sent).await;
            })
        };
        let act = || -> BoxFuture<'_, _> {
            Box::pin(async { inner.clear_unpublished(commits).await.map(Plain) })
        };
        let done = self.faults.finish(call, fault, act, late).await;
        done.map(|Plain(())| ())
    }
}

impl FaultyEventStore {
    /// Shows everything that lagged if the faults were disabled since the last list.
    async fn catch_up(&self, inner: &Store) -> Result<(), EventStoreError> {
        let times_disabled = self.faults.plan.times_disabled();
        let cleared = self.lagging().catch_up(times_disabled);
        self.clear_now(inner, &cleared).await
    }
    /// Clears commits at the inner store, without a call if there are none.
    async fn clear_now(&self, inner: &Store, keys: &[CommitKey]) -> Result<(), EventStoreError> {
        match keys {
            [] => Ok(()),
            keys => inner.clear_unpublished(keys).await,
        }
    }
}
