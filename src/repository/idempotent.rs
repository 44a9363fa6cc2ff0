//! Commands that carry a command id take effect once.
//!
//! A *mark* says which slot the command's commit may be in: partition `cmd/<shard>`, sort `<stream>\u{1f}<command id>`.
//! The commit id is derived from stream and command id and survives a new decision, which is safe because it is only ever
//! sent to the marked slot:
//! ```text
//! 1 get the mark; present -> 4
//! 2 load, decide; refused or nothing to do -> get the mark again *after* the state was read; present -> 4; else return it
//! 3 put the mark if absent { slot v+1 }; theirs exists -> 4; else append at the slot
//! 4 read at the slot: mine      -> return the stored events
//!                     another's -> load to the tail T, decide, compare-and-set the mark to T+1 (lost: 1), append there;
//!                                  refused or nothing to do -> get the mark again, as in 2; moved -> 4; else return it
//!                     empty     -> the tail must be exactly slot-1 (less: forked history), decide, append at the slot
//! ```
//! Why the mark is read again before a refusal is returned: another attempt may have stored the command's events before
//! the state was read. The refusal would then be the command's own doing.
//!
//! A mark moves only when its slot is taken by somebody else, so a late first attempt can never land twice. A refusal is
//! not recorded: the same command may be accepted later.
use super::{
    ExecuteError, Executed, Loaded, Repository,
    execute::{Decided, Request, Start},
    prepare::Prepared,
    turns::Turn,
};
use crate::{
    Aggregate, CommandId, CommitId, Decide, Timestamp, Version,
    control::{PutIf, Rows, Stored},
    ports::{AppendOutcome, ControlStore, Expect, ReadFrom, RowKey},
    resilience::{Attempts, FailureClass},
};
use std::{sync::Arc, time::Duration};

/// Bytes of a command id: stream, separator and id must fit a sort key.
const MAX_COMMAND_ID: usize = 256;

/// Partitions that marks are spread over.
const SHARDS: u32 = 64;

/// Value of a mark's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Mark {
    /// The version that the command's commit starts at, if it is stored.
    #[serde(rename = "v")]
    slot: Version,
}

#[derive(Clone)]
pub(super) struct Idempotency {
    pub(super) control: Arc<dyn ControlStore>,
    pub(super) retention: Duration,
}

/// A command that takes effect once.
struct Once<'a, C> {
    request: Request<'a, C>,
    commit_id: CommitId,
    rows: Rows,
    key: RowKey,
    expires_at: Timestamp,
}

/// What came of one step.
enum Step<A: Aggregate> {
    Done(Executed<A>),
    /// Go on with the mark as it is now known.
    Again(Option<Stored<Mark>>),
}

impl<C> Once<'_, C> {
    /// The mark as it is now.
    async fn mark<E>(&self) -> Result<Option<Stored<Mark>>, ExecuteError<E>> {
        let found = self.rows.get(&self.key).await;
        found.map_err(ExecuteError::Mark)
    }

    /// Marks the slot behind a state, if the mark is as expected.
    async fn put<A: Aggregate, E>(
        &self,
        loaded: &Loaded<A>,
        expect: Expect,
    ) -> Result<PutIf<Mark>, ExecuteError<E>> {
        let mark = Mark {
            slot: loaded.version().next(),
        };
        let until = Some(self.expires_at);
        let put = self.rows.put_until(&self.key, mark, expect, until).await;
        put.map_err(ExecuteError::Mark)
    }
}

type Stepped<A, E> = Result<Step<A>, ExecuteError<E>>;

impl<A: Aggregate> Repository<A> {
    /// Executes a command with a command id, at most once.
    pub(super) async fn execute_once<C: Send + Sync>(
        &self,
        request: Request<'_, C>,
        id: &CommandId,
        idempotency: &Idempotency,
    ) -> Result<Executed<A>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
    {
        // The last separator of a mark's key is ours, or two commands could share a mark: a stream id may have others.
        let is_ambiguous = id.as_str().contains('\u{1f}');
        if id.as_str().is_empty() || id.as_str().len() > MAX_COMMAND_ID || is_ambiguous {
            return Err(ExecuteError::InvalidCommandId {
                bytes: id.as_str().len(),
                limit: MAX_COMMAND_ID,
            });
        }
        let stream = request.stream;
        let once = Once {
            request,
            commit_id: CommitId::of_command(stream, id),
            key: RowKey::new(
                format!("cmd/{}", stream.shard(SHARDS)),
                format!("{stream}\u{1f}{id}"),
            ),
            rows: Rows::new(idempotency.control.clone(), self.inner.ids.clone()),
            expires_at: self.inner.clock.now().plus(idempotency.retention),
        };
        let mut turn = self.inner.turns.take(stream).await;
        let mut mark = once.mark().await?;
        let mut attempts = Attempts::new(self.inner.retry.policy());
        loop {
            let step = match mark {
                None => {
                    let start = self.start(stream, &mut turn).await?;
                    self.decide_and_mark(&once, &mut turn, start, None).await?
                }
                Some(mark) => self.at_the_slot(&once, &mut turn, mark).await?,
            };
            match step {
                Step::Done(executed) => {
                    turn.keep(executed.loaded.clone());
                    return Ok(executed);
                }
                Step::Again(known) => mark = known,
            }
            if !attempts.wait(FailureClass::Transient).await {
                return Err(ExecuteError::Contended {
                    stream: stream.clone(),
                    attempts: attempts.failed(),
                });
            }
        }
    }

    /// Step 4.
    async fn at_the_slot<C: Send + Sync>(
        &self,
        once: &Once<'_, C>,
        turn: &mut Turn<A>,
        mark: Stored<Mark>,
    ) -> Stepped<A, A::Error>
    where
        A: Decide<C>,
    {
        let slot = mark.value.slot;
        let found = self
            .first(once.request.stream, ReadFrom::Event(slot))
            .await?;
        match found {
            Some(commit) if commit.id == once.commit_id && commit.first_version == slot => {
                Ok(Step::Done(
                    self.stored_before(once.request.stream, vec![commit])
                        .await?,
                ))
            }
            // The slot is somebody else's, so no late attempt can land there: the mark moves behind the tail.
            Some(_) => {
                let start = Start::Read(self.load_stream(once.request.stream).await?);
                self.decide_and_mark(once, turn, start, Some(mark)).await
            }
            None => self.fill_slot(once, turn, mark).await,
        }
    }

    /// Steps 2 and 3, and 4 where the slot is somebody else's: decides, marks the slot behind the state in place of the mark
    /// that is known, and appends there.
    async fn decide_and_mark<C: Send + Sync>(
        &self,
        once: &Once<'_, C>,
        turn: &mut Turn<A>,
        start: Start<A>,
        known: Option<Stored<Mark>>,
    ) -> Stepped<A, A::Error>
    where
        A: Decide<C>,
    {
        match self.decide(start, &once.request).await? {
            Decided::Facts(facts) => {
                let expect = known.map_or(Expect::Absent, |mark| Expect::Revision(mark.revision));
                // First, so that events that cannot be stored leave no mark.
                let prepared = self
                    .prepare(facts, once.commit_id, once.request.metadata)
                    .await?;
                match once.put(&prepared.after, expect).await? {
                    PutIf::Written(mark) => self.append_once(prepared, mark).await,
                    PutIf::Conflict(theirs) => Ok(Step::Again(theirs)),
                }
            }
            Decided::NoFacts(end) => {
                // Another attempt may have stored its events between the look at the mark and the read of the state.
                let now = once.mark().await?;
                if now == known {
                    turn.keep(end.loaded.clone());
                    end.end().map(Step::Done)
                } else {
                    Ok(Step::Again(now))
                }
            }
        }
    }

    /// Nothing is in the slot yet: an earlier attempt died, or is still on its way with this very commit id.
    async fn fill_slot<C: Send + Sync>(
        &self,
        once: &Once<'_, C>,
        turn: &mut Turn<A>,
        mark: Stored<Mark>,
    ) -> Stepped<A, A::Error>
    where
        A: Decide<C>,
    {
        let loaded = self.load_stream(once.request.stream).await?;
        let (slot, next) = (mark.value.slot, loaded.version().next());
        if next > slot {
            // Taken since the read.
            return Ok(Step::Again(Some(mark)));
        }
        if next < slot {
            return Err(ExecuteError::HistoryForked {
                stream: once.request.stream.clone(),
                slot,
                tail: loaded.version(),
            });
        }
        let start = Start::Read(loaded);
        match self.decide(start, &once.request).await? {
            Decided::Facts(facts) => {
                let metadata = once.request.metadata;
                let prepared = self.prepare(facts, once.commit_id, metadata).await?;
                self.append_once(prepared, mark).await
            }
            // Right as of the state, which cannot have held the command: its slot was behind the tail.
            Decided::NoFacts(end) => {
                turn.keep(end.loaded.clone());
                end.end().map(Step::Done)
            }
        }
    }

    /// Appends at the slot that is marked.
    async fn append_once<E>(&self, prepared: Prepared<A>, mark: Stored<Mark>) -> Stepped<A, E> {
        match self.inner.store.append(&prepared.append).await? {
            AppendOutcome::Appended(head) => Ok(Step::Done(self.stored(prepared, head))),
            AppendOutcome::Repeated(commits) => {
                Ok(Step::Done(self.repeated(prepared, commits).await?))
            }
            AppendOutcome::Conflict(_) => Ok(Step::Again(Some(mark))),
        }
    }
}
