//! Jobs: their state, and their end before it is due.
use super::{JobCounts, JobId, JobState, OperateError, Operator, Reason};
use crate::{
    Timestamp,
    control::{DeleteIf, Item, ItemState, ItemTarget, JobRow, ProcessorRows, PutIf, Races, Stored},
    ports::RowKey,
};

/// The state of a bulk redrive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobStatus {
    /// The id of the job.
    pub id: JobId,
    /// The name of the processor.
    pub processor: String,
    /// The generation whose rows are redriven.
    pub generation: u32,
    /// The state of the job.
    pub state: JobState,
    /// The selection, as a text.
    pub selection: String,
    /// The name of the operator who has started the job.
    pub by: String,
    /// The reason that the operator has given.
    pub why: String,
    /// The time at which the job was started.
    pub at: Timestamp,
    /// The number of events per second that are asked for at most; `None` for no limit.
    pub rate: Option<u32>,
    /// The number of selected streams and letters.
    pub items: u64,
    /// The number of selected events.
    pub events: u64,
    /// The outcomes so far.
    pub counts: JobCounts,
}

impl JobStatus {
    pub(super) fn new(processor: &str, id: JobId, row: JobRow) -> Self {
        Self {
            id,
            processor: processor.into(),
            generation: row.generation,
            state: row.state,
            selection: row.what,
            by: row.by,
            why: row.why,
            at: row.at,
            rate: row.rate,
            items: row.items,
            events: row.events,
            counts: row.counts,
        }
    }
    /// Returns true if nothing of the job is left to do.
    pub const fn is_over(&self) -> bool {
        matches!(self.state, JobState::Done | JobState::Aborted)
    }
}

/// A page of the jobs of a processor, the newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobPage {
    /// The jobs of the page. The page may be empty before the end of the list.
    pub jobs: Vec<JobStatus>,
    /// The value for `after` of the next call; `None` on the last page.
    pub next: Option<String>,
}

/// The answer to an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Aborted {
    /// The number of requests that were taken back.
    pub affected: u64,
    /// The state of the job: [`Aborting`](JobState::Aborting) until its runner has stopped, then
    /// [`Aborted`](JobState::Aborted). A job that was over stays as it was.
    pub state: JobState,
}

impl Operator {
    /// Returns the state of a job, with the outcomes of all its items so far.
    ///
    /// # Errors
    /// - [`OperateError::UnknownJob`] if there is no such job.
    /// - [`OperateError::Control`] if the control store refuses or fails.
    pub async fn job(&self, processor: &str, job: JobId) -> Result<JobStatus, OperateError> {
        let row = self.job_row(processor, job).await?.value;
        let mut status = JobStatus::new(processor, job, row.clone());
        if !status.is_over()
            && let Some(page) = self.rows.items_get(processor, job, row.cursor).await?
        {
            status.counts = status.counts.plus(page.value.counts());
        }
        Ok(status)
    }

    /// Returns one page of the jobs of a processor, the newest first. The counts of a job that is
    /// running are those of whole pages of its items.
    ///
    /// # Errors
    /// - [`OperateError::UnknownProcessor`] if there is no such processor.
    /// - [`OperateError::Control`] if the control store refuses or fails.
    pub async fn jobs(
        &self,
        processor: &str,
        after: Option<String>,
    ) -> Result<JobPage, OperateError> {
        self.generations(processor).await?;
        let page = self.rows.job_page(processor, after).await?;
        let jobs = page.rows.into_iter();
        let jobs = jobs.map(|(id, row)| JobStatus::new(processor, id, row.value));
        Ok(JobPage {
            jobs: jobs.collect(),
            next: page.next,
        })
    }

    /// Aborts a job. Its requests that no owner has begun to serve are taken back. What an owner
    /// has begun it ends, and requests of others stay.
    ///
    /// # Errors
    /// - [`OperateError::UnknownJob`] if there is no such job.
    /// - [`OperateError::Control`] if the control store refuses or fails. The call may be repeated.
    pub async fn abort(
        &self,
        processor: &str,
        job: JobId,
        reason: &Reason,
    ) -> Result<Aborted, OperateError> {
        self.job_row(processor, job).await?;
        let act = async {
            let aborted = self.end_early(processor, job).await?;
            Ok((aborted, aborted.affected))
        };
        self.audited("abort", format!("{processor} job {job}"), reason, act)
            .await
    }

    pub(super) async fn job_row(
        &self,
        processor: &str,
        job: JobId,
    ) -> Result<Stored<JobRow>, OperateError> {
        let row = self.rows.job_get(processor, job).await?;
        row.ok_or_else(|| OperateError::UnknownJob {
            processor: processor.into(),
            job,
        })
    }

    async fn end_early(&self, processor: &str, job: JobId) -> Result<Aborted, OperateError> {
        let (key, mut races) = (RowKey::new("job", processor), Races::default());
        let row = loop {
            let row = self.job_row(processor, job).await?;
            match row.value.state {
                JobState::Done | JobState::Aborted => {
                    let state = row.value.state;
                    return Ok(Aborted { affected: 0, state });
                }
                JobState::Aborting => break row,
                JobState::Selecting | JobState::Running => {}
            }
            let next = row.value.in_state(JobState::Aborting);
            let seen = Some(row.revision);
            if let PutIf::Written(row) = self.rows.job_put(processor, job, next, seen).await? {
                break row;
            }
            self.rows.lost(&mut races, &key).await?;
        };
        let affected = self.take_back(processor, job, &row.value).await?;
        // The runner of the job may be about to ask once more. Only who holds the lease of the job
        // knows that nobody does.
        let owner = format!("abort of {job}");
        let leases = self.job_leases();
        let mut contender = leases.contender(Self::lease_key(processor, job), owner);
        let Some(lease) = contender.try_take().await? else {
            let state = JobState::Aborting;
            return Ok(Aborted { affected, state });
        };
        let more = self.take_back(processor, job, &row.value).await?;
        let state = self.set_aborted(processor, job).await?;
        lease.release().await?;
        Ok(Aborted {
            affected: affected + more,
            state,
        })
    }

    /// Ends a job that is being aborted. The caller holds its lease and has taken back its
    /// requests.
    pub(super) async fn set_aborted(
        &self,
        processor: &str,
        job: JobId,
    ) -> Result<JobState, OperateError> {
        let (key, mut races) = (RowKey::new("job", processor), Races::default());
        loop {
            let row = self.job_row(processor, job).await?;
            if row.value.state != JobState::Aborting {
                return Ok(row.value.state);
            }
            let mut next = row.value.in_state(JobState::Aborted);
            if let Some(page) = self.rows.items_get(processor, job, next.cursor).await? {
                next.counts = next.counts.plus(page.value.counts());
            }
            let seen = Some(row.revision);
            if let PutIf::Written(row) = self.rows.job_put(processor, job, next, seen).await? {
                return Ok(row.value.state);
            }
            self.rows.lost(&mut races, &key).await?;
        }
    }

    /// Takes back the requests of a job that no owner has begun to serve, and returns their number.
    /// Only the items of the page at the cursor have requests.
    pub(super) async fn take_back(
        &self,
        processor: &str,
        job: JobId,
        row: &JobRow,
    ) -> Result<u64, OperateError> {
        let Some(page) = self.rows.items_get(processor, job, row.cursor).await? else {
            return Ok(0);
        };
        let rows = self.rows_of(processor, row.generation);
        let mut taken = 0;
        for item in &page.value.items {
            if matches!(item.state, ItemState::Waiting | ItemState::Asked) {
                taken += u64::from(self.take_back_item(&rows, job, item).await?);
            }
        }
        if taken > 0 {
            rows.announce().await?;
        }
        Ok(taken)
    }

    async fn take_back_item(
        &self,
        rows: &ProcessorRows,
        job: JobId,
        item: &Item,
    ) -> Result<bool, OperateError> {
        let at = &item.partition;
        match &item.target {
            ItemTarget::Stream { stream, .. } => {
                let mut row = rows.park_get(at, stream).await?;
                let (key, mut races) = (RowKey::new("park", stream.as_str()), Races::default());
                while let Some(found) = row {
                    let Some(next) = found.value.without_request_of(job) else {
                        return Ok(false);
                    };
                    match rows.park_replace(at, stream, next, found.revision).await? {
                        PutIf::Written(_) => return Ok(true),
                        PutIf::Conflict(theirs) => row = theirs,
                    }
                    self.rows.lost(&mut races, &key).await?;
                }
                Ok(false)
            }
            ItemTarget::Letter { key, .. } => {
                let ask = rows.ask_get(at, key).await?;
                let Some(ask) = ask.filter(|ask| ask.value.job == Some(job)) else {
                    return Ok(false);
                };
                let deleted = rows.ask_delete(at, key, ask.revision).await?;
                Ok(deleted == DeleteIf::Deleted)
            }
        }
    }
}
