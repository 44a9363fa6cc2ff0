//! Deciding a command and storing what follows from it.
use super::{ExecuteError, Executed, Loaded, Repository, fold};
use crate::{
    Aggregate, Context, Decide, Metadata,
    ports::{Append, AppendOutcome, Commit},
};

impl<A: Aggregate> Repository<A> {
    /// Decides a command on the current state and stores its events; after a conflict, decides again.
    ///
    /// If this future is dropped, the commit is stored whole or not at all.
    ///
    /// # Errors
    /// [`ExecuteError`]. With `Store(Unavailable { pending: Some(_) })` the outcome is unknown: ask
    /// [`settle`](Self::settle) before the command is sent again, or it may be applied twice.
    pub async fn execute<C: Send + Sync>(
        &self,
        id: &A::Id,
        command: C,
    ) -> Result<Executed<A>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
    {
        self.execute_with(id, command, Metadata::new()).await
    }

    /// [`execute`](Self::execute) with correlation, causation, actor, trace or the user's own entries.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn execute_with<C: Send + Sync>(
        &self,
        id: &A::Id,
        command: C,
        metadata: Metadata,
    ) -> Result<Executed<A>, ExecuteError<A::Error>>
    where
        A: Decide<C>,
    {
        let stream = Self::stream_id(id)?;
        let mut loaded = self.load_stream(&stream).await?;
        let retry = self.inner.retry;
        let mut attempt = 1;
        loop {
            // A commit's time is never below the previous commit's, even if this node's clock is behind.
            let now = self.inner.clock.now().max(loaded.head.recorded_at());
            let ctx =
                Context::new(stream.clone(), loaded.version(), now).with_metadata(metadata.clone());
            let decided = loaded.state.decide(&command, &ctx);
            let events = decided.map_err(ExecuteError::Rejected)?;
            if events.is_empty() {
                return Ok(Executed {
                    loaded,
                    events,
                    repeated: false,
                });
            }
            let append = Append::after(
                loaded.head.clone(),
                self.inner.ids.commit_id(),
                now,
                fold::encode(&events)?,
            )
            .with_metadata(metadata.clone());
            append.validate()?;
            match self.inner.store.append(&append).await? {
                AppendOutcome::Appended(head) => {
                    let mut fold = loaded.into_fold();
                    fold.take_facts(&events, head);
                    return Ok(self.executed(fold.finish(), events, false));
                }
                AppendOutcome::Repeated(commits) => {
                    return self.repeated(loaded, &commits);
                }
                AppendOutcome::Conflict(conflict) if attempt >= retry.attempts => {
                    return Err(ExecuteError::Conflict(conflict));
                }
                AppendOutcome::Conflict(_) => {
                    tokio::time::sleep(retry.backoff.delay(attempt)).await;
                    loaded = self.fold_on(loaded.into_fold()).await?.finish();
                    attempt += 1;
                }
            }
        }
    }

    fn executed(&self, loaded: Loaded<A>, events: Vec<A::Event>, repeated: bool) -> Executed<A> {
        if let Some(snapshots) = &self.inner.snapshots {
            snapshots.offer(&loaded, std::time::Duration::ZERO);
        }
        Executed {
            loaded,
            events,
            repeated,
        }
    }

    /// My commit was in the slot already, for instance since the client sent the request twice: what is stored counts.
    fn repeated<E>(
        &self,
        loaded: Loaded<A>,
        commits: &[Commit],
    ) -> Result<Executed<A>, ExecuteError<E>> {
        let mut fold = loaded.into_fold();
        let mut events = Vec::new();
        for commit in commits {
            fold.take(commit, &self.inner.upcasters)?;
            for recorded in fold::decode_recorded(commit, &self.inner.upcasters) {
                events.push(recorded?.event);
            }
        }
        Ok(self.executed(fold.finish(), events, true))
    }
}
