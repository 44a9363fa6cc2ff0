//! Commands that carry a command id take effect once.
//!
//! A *mark* says in which slot the command's commit may be, and with which nonce its commit id is
//! made: partition `cmd/<shard>`, sort `<stream>\u{1f}<command id>`. The commit id is computed from
//! stream, command id and nonce. It stays the same when the command is decided again, which is safe
//! because it is only ever sent to the marked slot. The nonce is fresh with every mark, so a
//! command id that is used again after its mark has expired never gives two events one id.
//! ```text
//! 1 a state is kept  -> 2, without reading the mark
//!   else                get the mark and the state together; a mark is there -> 4
//! 2 decide on the state
//!   events           -> 3
//!   nothing          -> get the mark, *after* the state was read
//!                       as it was known -> the caller's answer; else -> 4
//! 3 put the mark { slot v+1, nonce } if it is as known; another one is there -> 4
//!   append at the slot
//!   stored           -> done
//!   conflict         -> 4
//! 4 compare the digests; another command's: error
//!   get the slot's commit and the state together, after the mark
//!   mine             -> the stored events
//!   another's        -> 2 with the state; 3 moves the mark to the slot after it
//!   empty            -> the state must end right before the slot (earlier: forked history)
//!                       decide; events  -> append at the slot
//!                               nothing -> an earlier attempt is pending
//! ```
//! "Nothing" is a refusal, nothing to do, or a stream that is not at the version that the caller
//! expects.
//!
//! # Races
//! Several attempts at one command may run at the same time: in processes that were taken for dead,
//! or whose caller has given up. `X` and `Y` are two of them.
//!
//! - **The mark is put without being read first (1, 3).** `Y` has put its mark before. The put of
//!   `X` fails, and returns the mark of `Y`. Of several puts of an absent mark exactly one wins,
//!   and every other attempt continues with the winner's slot and nonce. It does no harm that the
//!   state of `X` is older than the mark of `Y`: `X` reads both slot and state again, after the
//!   mark.
//! - **The mark is read together with the state (1), and is absent.** `Y` may put its mark and
//!   store its commit after the mark was read and before the state was read. If `X` finds events
//!   nevertheless, its put fails. If `X` refuses, the events of `Y` may be the reason. Therefore
//!   `X` reads the mark again after the state (2), and now the mark is there.
//! - **The slot and the state are read together (4).** Both are read after the mark, so the state
//!   ends at or after the version before the slot, unless the history forked. The slot may be
//!   filled between the two reads. Then the state is either too short for "another's" or too long
//!   for "empty", and both are read again.
//! - **A late append.** An append of `X` may arrive long after `X` has died. It is sent to the
//!   marked slot only. The mark moves only when that slot holds another commit, so the late append
//!   is a conflict at the old slot forever. At the slot that is still marked it has the commit id
//!   that every other attempt sends. It is stored once, and every attempt is told "repeated".
//! - **A refusal while the slot is empty (4).** An append of `X` may still arrive there, so `Y`
//!   must not tell its caller "refused". As long as the slot is empty and the mark lives, the
//!   answer is that an earlier attempt is pending. The mark stays even if `X` knows for certain
//!   that its own append stored nothing: a third attempt may have read the mark and be on its way
//!   to the slot, and then a second append under a new mark could be stored too. When the command
//!   is sent again later, the slot holds the commit of `X` or another one, and only then the
//!   refusal is final. Wherever else a refusal is returned, no earlier attempt is under way: the
//!   mark is absent, or its slot holds another commit and the mark was not moved since.
//! - **A put whose answer is lost.** The caller gets an error. Nothing was appended, and the next
//!   attempt finds the mark or does not.
//!
//! A refusal is not recorded: the same command may be accepted later. All of this holds while the
//! mark lives, which is why a retention under one minute is refused: no request may be under way
//! for longer.
//!
//! # Round trips
//! With a kept state a command takes two round-trip times (put the mark, append). Without one it
//! takes three (mark and state, put the mark, append). A repeat takes two.
use super::{
    ExecuteError, Executed, Loaded, Repository,
    execute::{Decided, NoFacts, Reason, Request, Start},
    prepare::Prepared,
    spans::append_span,
    turns::Turn,
};
use crate::{
    Aggregate, CommandId, CommitId, Decide, Timestamp, Version,
    control::{PutIf, Rows, Stored},
    ports::{AppendOutcome, ControlStore, Expect, ReadFrom, RowKey},
    resilience::{Attempts, FailureClass},
};
use std::{sync::Arc, time::Duration};
use tracing::Instrument;

/// The largest size of a command id in bytes: stream, separator and id must fit into a sort key.
const MAX_COMMAND_ID: usize = 256;

/// The number of partitions over which marks are spread.
const SHARDS: u32 = 64;

/// The shortest retention of a mark: no request of an attempt may be under way for longer.
const LEAST_RETENTION: Duration = Duration::from_secs(60);

/// The value of a mark's row.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Mark {
    /// The version at which the command's commit starts, if it is stored.
    #[serde(rename = "v")]
    slot: Version,
    /// The number that makes the commit id differ from those of earlier uses of the command id.
    #[serde(rename = "n")]
    nonce: u64,
    /// The digest of the command that the caller gave; `None` if the caller gave none.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

#[derive(Clone)]
pub(super) struct Idempotency {
    pub(super) control: Arc<dyn ControlStore>,
    pub(super) retention: Duration,
}

/// A command that takes effect once.
struct Once<'a, C> {
    request: Request<'a, C>,
    id: &'a CommandId,
    rows: Rows,
    key: RowKey,
    expires_at: Timestamp,
}

/// The mark, as far as an attempt knows it.
enum Seen {
    /// The mark was not read yet.
    NotYet,
    /// The mark was read, or returned by a put that failed.
    At(Option<Stored<Mark>>),
}

/// The result of one step of the algorithm.
enum Step<A: Aggregate> {
    Done(Executed<A>),
    /// There is a mark of an earlier attempt, with which the execution continues.
    Found(Stored<Mark>, Option<Loaded<A>>),
    /// Other attempts were faster. The execution continues with the mark as it is now known, and
    /// with a state that the stream had.
    Again(Option<Stored<Mark>>, Option<Loaded<A>>),
}

type Stepped<A, E> = Result<Step<A>, ExecuteError<E>>;

impl<C> Once<'_, C> {
    /// Reads the mark of this command.
    async fn mark<E>(&self) -> Result<Option<Stored<Mark>>, ExecuteError<E>> {
        let found = self.rows.get(&self.key).await;
        found.map_err(ExecuteError::Mark)
    }

    /// Returns the commit id that this command has with a nonce.
    fn commit_id(&self, nonce: u64) -> CommitId {
        CommitId::of_command(self.request.stream, self.id, nonce)
    }

    /// Puts a mark if the stored one is still as known.
    async fn put<E>(
        &self,
        mark: Mark,
        known: Option<Stored<Mark>>,
    ) -> Result<PutIf<Mark>, ExecuteError<E>> {
        let expect = known.map_or(Expect::Absent, |mark| Expect::Revision(mark.revision));
        let until = Some(self.expires_at);
        let put = self.rows.put_until(&self.key, mark, expect, until).await;
        put.map_err(ExecuteError::Mark)
    }

    /// Waits before the next attempt, if the retry policy allows one.
    async fn wait<E>(&self, attempts: &mut Attempts<'_>) -> Result<(), ExecuteError<E>> {
        if attempts.wait(FailureClass::Transient).await {
            return Ok(());
        }
        Err(ExecuteError::Contended {
            stream: self.request.stream.clone(),
            attempts: attempts.failed(),
        })
    }

    /// Fails if the mark belongs to another command with the same id, as far as digests can tell.
    fn check_digest<E>(&self, mark: &Mark) -> Result<(), ExecuteError<E>> {
        match (&mark.digest, self.request.metadata.command_digest()) {
            (Some(marked), Some(mine)) if *marked != mine => Err(ExecuteError::CommandIdReused {
                stream: self.request.stream.clone(),
                command_id: self.id.clone(),
            }),
            _ => Ok(()),
        }
    }
}

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
        let once = self.once(request, id, idempotency)?;
        let stream = once.request.stream;
        let mut turn = self.inner.turns.take(stream).await;
        let mut step = self.first_step(&once, &mut turn).await?;
        let mut attempts = Attempts::new(self.inner.retry.policy());
        let mut was_found = false;
        loop {
            let (mark, loaded) = match step {
                Step::Done(executed) => {
                    turn.keep(executed.loaded.clone());
                    return Ok(executed);
                }
                // Finding the mark of an earlier attempt once is no contention. Finding another one
                // each time is.
                Step::Found(mark, loaded) if !std::mem::replace(&mut was_found, true) => {
                    (Some(mark), loaded)
                }
                Step::Found(mark, loaded) => {
                    once.wait(&mut attempts).await?;
                    (Some(mark), loaded)
                }
                Step::Again(mark, loaded) => {
                    once.wait(&mut attempts).await?;
                    (mark, loaded)
                }
            };
            step = match mark {
                Some(mark) => self.at_the_slot(&once, &mut turn, mark, loaded).await?,
                None => {
                    let start = Start::Read(self.latest(stream, loaded).await?);
                    let seen = Seen::At(None);
                    self.decide_and_mark(&once, &mut turn, start, seen).await?
                }
            };
        }
    }

    fn once<'a, C>(
        &self,
        request: Request<'a, C>,
        id: &'a CommandId,
        idempotency: &Idempotency,
    ) -> Result<Once<'a, C>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
    {
        // The last separator of a mark's key separates the command id. A stream id may contain
        // others, so an id with one could share the mark of another command.
        let is_ambiguous = id.as_str().contains('\u{1f}');
        if id.as_str().is_empty() || id.as_str().len() > MAX_COMMAND_ID || is_ambiguous {
            return Err(ExecuteError::InvalidCommandId {
                bytes: id.as_str().len(),
                limit: MAX_COMMAND_ID,
            });
        }
        if idempotency.retention < LEAST_RETENTION {
            return Err(ExecuteError::RetentionTooShort {
                retention: idempotency.retention,
                least: LEAST_RETENTION,
            });
        }
        let stream = request.stream;
        let key = RowKey::new(
            format!("cmd/{}", stream.shard(SHARDS)),
            format!("{stream}\u{1f}{id}"),
        );
        Ok(Once {
            request,
            id,
            rows: Rows::new(idempotency.control.clone(), self.inner.ids.clone()),
            key,
            expires_at: self.inner.clock.now().plus(idempotency.retention),
        })
    }

    /// Step 1: starts from a kept state, or reads the mark and the state.
    async fn first_step<C: Send + Sync>(
        &self,
        once: &Once<'_, C>,
        turn: &mut Turn<A>,
    ) -> Stepped<A, A::Error>
    where
        A: Decide<C>,
    {
        if let Some(loaded) = self.kept(turn) {
            let start = Start::Cached(loaded);
            return self.decide_and_mark(once, turn, start, Seen::NotYet).await;
        }
        let (mark, start) = futures::join!(once.mark(), self.start(once.request.stream, turn));
        match (mark?, start?) {
            (None, start) => {
                self.decide_and_mark(once, turn, start, Seen::At(None))
                    .await
            }
            (Some(mark), Start::Read(loaded) | Start::Cached(loaded)) => {
                Ok(Step::Found(mark, Some(loaded)))
            }
        }
    }

    /// Steps 2 and 3: decides, puts a mark for the slot after the state in place of the known mark,
    /// and appends there.
    async fn decide_and_mark<C: Send + Sync>(
        &self,
        once: &Once<'_, C>,
        turn: &mut Turn<A>,
        start: Start<A>,
        seen: Seen,
    ) -> Stepped<A, A::Error>
    where
        A: Decide<C>,
    {
        match self.decide(start, &once.request).await? {
            Decided::Facts(facts) => {
                let known = match seen {
                    Seen::At(known) => known,
                    Seen::NotYet => None,
                };
                let mark = Mark {
                    slot: facts.loaded.version().next(),
                    nonce: match &known {
                        Some(known) => known.value.nonce,
                        None => self.nonce(),
                    },
                    digest: match &known {
                        Some(known) if known.value.digest.is_some() => known.value.digest.clone(),
                        _ => once.request.metadata.command_digest().map(Into::into),
                    },
                };
                // Prepared first, so that events that cannot be stored leave no mark.
                let id = once.commit_id(mark.nonce);
                let prepared = self.prepare(facts, id, once.request.metadata).await?;
                match once.put(mark, known).await? {
                    PutIf::Written(mark) => self.append_once(prepared, mark).await,
                    PutIf::Conflict(Some(theirs)) => Ok(Step::Found(theirs, None)),
                    PutIf::Conflict(None) => Ok(Step::Again(None, None)),
                }
            }
            Decided::NoFacts(end) => {
                // Another attempt may have stored its events after this one read the mark and
                // before it read the state. Its events may be the reason for the refusal.
                let now = once.mark().await?;
                let is_as_known = match &seen {
                    Seen::At(known) => now == *known,
                    Seen::NotYet => now.is_none(),
                };
                if is_as_known {
                    turn.keep(end.loaded.clone());
                    return end.end().map(Step::Done);
                }
                Ok(match now {
                    Some(theirs) => Step::Found(theirs, Some(end.loaded)),
                    None => Step::Again(None, Some(end.loaded)),
                })
            }
        }
    }

    /// Step 4: looks at the marked slot and continues from what it holds.
    async fn at_the_slot<C: Send + Sync>(
        &self,
        once: &Once<'_, C>,
        turn: &mut Turn<A>,
        mark: Stored<Mark>,
        loaded: Option<Loaded<A>>,
    ) -> Stepped<A, A::Error>
    where
        A: Decide<C>,
    {
        once.check_digest(&mark.value)?;
        let (stream, slot) = (once.request.stream, mark.value.slot);
        let (found, loaded) = futures::join!(
            self.first(stream, ReadFrom::Event(slot)),
            self.latest(stream, loaded)
        );
        let (found, loaded) = (found?, loaded?);
        match found {
            Some(commit)
                if commit.id == once.commit_id(mark.value.nonce)
                    && commit.first_version == slot =>
            {
                let loaded = if loaded.version() < slot {
                    // Another attempt filled the slot between the two reads.
                    self.caught_up(loaded).await?
                } else {
                    loaded
                };
                self.stored_before(loaded, vec![commit])
                    .await
                    .map(Step::Done)
            }
            Some(_) if loaded.version() < slot => Ok(Step::Again(Some(mark), Some(loaded))),
            // No late attempt can be stored in a slot that holds another commit, so the mark moves
            // to the slot after the tail.
            Some(_) => {
                let (start, seen) = (Start::Read(loaded), Seen::At(Some(mark)));
                self.decide_and_mark(once, turn, start, seen).await
            }
            None => self.fill_slot(once, turn, mark, loaded).await,
        }
    }

    /// Appends at the slot that is still empty: an earlier attempt died, or is still on its way
    /// with this very commit id.
    async fn fill_slot<C: Send + Sync>(
        &self,
        once: &Once<'_, C>,
        turn: &mut Turn<A>,
        mark: Stored<Mark>,
        loaded: Loaded<A>,
    ) -> Stepped<A, A::Error>
    where
        A: Decide<C>,
    {
        let (slot, next) = (mark.value.slot, loaded.version().next());
        if next > slot {
            // Another attempt filled the slot between the two reads.
            return Ok(Step::Again(Some(mark), Some(loaded)));
        }
        if next < slot {
            return Err(ExecuteError::HistoryForked {
                stream: once.request.stream.clone(),
                slot,
                tail: loaded.version(),
            });
        }
        match self.decide(Start::Read(loaded), &once.request).await? {
            Decided::Facts(facts) => {
                let id = once.commit_id(mark.value.nonce);
                let prepared = self.prepare(facts, id, once.request.metadata).await?;
                self.append_once(prepared, mark).await
            }
            Decided::NoFacts(NoFacts { loaded, reason }) => {
                turn.keep(loaded);
                Err(ExecuteError::EarlierAttemptPending {
                    stream: once.request.stream.clone(),
                    slot,
                    rejection: match reason {
                        Reason::Rejected(rejection) => Some(rejection),
                        Reason::NothingToDo | Reason::Elsewhere(_) => None,
                    },
                })
            }
        }
    }

    /// Appends prepared events at the marked slot.
    async fn append_once<E>(&self, prepared: Prepared<A>, mark: Stored<Mark>) -> Stepped<A, E> {
        let stored = self.inner.store.append(&prepared.append);
        let stored = stored
            .instrument(append_span(prepared.append.head.stream()))
            .await?;
        match stored {
            AppendOutcome::Appended(head) => Ok(Step::Done(self.stored(prepared, head))),
            AppendOutcome::Repeated(commits) => {
                Ok(Step::Done(self.repeated(prepared, commits).await?))
            }
            AppendOutcome::Conflict(_) => Ok(Step::Again(Some(mark), None)),
        }
    }

    /// Returns a nonce that makes the commit ids of a new mark differ from all earlier ones.
    fn nonce(&self) -> u64 {
        // The low half of a UUIDv7 is random except for two bits.
        (self.inner.ids.commit_id().as_u128() & u128::from(u64::MAX)) as u64
    }
}
