//! [`JobRunner`]: executes bulk redrives under a lease.
//!
//! ```text
//! judge every open item of the page by its rows -> note in the page which are over and which are
//! asked for now -> put the requests, each IF the row is as judged -> tell the owners -> wait
//! all items over: cursor and counts of the job in one write
//! ```
//! The page is written before the requests. An executor that takes over thus knows which items may
//! have been asked for, and the rows tell whether they were.
use super::{
    JobState, JobStatus, OperateError, Operator,
    judge::{Parked, Verdict, judge_letter, judge_stream},
    redrive::hold,
};
use crate::{
    control::{
        AskKind, AskRow, Item, ItemPage, ItemState, ItemTarget, JobId, JobRow, Lease, LetterKey,
        ParkRow, ProcessorRows, PutIf, Request, Stored,
    },
    ports::{ControlStoreError, Revision, RowKey},
    resilience::Attempts,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Executes bulk redrives: asks the owners of partitions for one stream or letter after the other,
/// and notes what became of each.
///
/// Any process may run jobs: the one of the operator, for as long as it waits, or every service in
/// a loop of its own. A lease per job sees to it that one of them executes it. If that one dies,
/// another goes on from where it was, and asks for nothing twice.
///
/// # Example
/// ```
/// use foldstream::operate::{JobRunner, Operator};
/// use foldstream_testkit::InMemoryControlStore;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let operator = Operator::new(InMemoryControlStore::new());
/// let runner = JobRunner::new(operator, "host-1");
/// // A service passes its own shutdown. There is no processor here, so nothing to do.
/// assert_eq!(runner.run_open(std::future::pending()).await?, 0);
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct JobRunner {
    operator: Operator,
    owner: Arc<str>,
    poll: Duration,
}

impl JobRunner {
    /// Creates a runner of jobs. `owner` names its process in leases and requests.
    pub fn new(operator: Operator, owner: impl Into<Arc<str>>) -> Self {
        Self {
            operator,
            owner: owner.into(),
            poll: Duration::from_secs(1),
        }
    }
    /// Sets the pause between two looks at the rows of a job. Default: 1 second; zero counts as 1
    /// millisecond. A shorter pause costs more reads.
    #[must_use]
    pub fn with_poll(mut self, pause: Duration) -> Self {
        self.poll = pause.max(Duration::from_millis(1));
        self
    }

    /// Executes a job until it is over, or until `stop` is ready. While another process executes
    /// the job, this one waits.
    ///
    /// A job whose selection was not completed, since its process died, is aborted.
    ///
    /// # Errors
    /// - [`OperateError::UnknownJob`] if there is no such job.
    /// - [`OperateError::Control`] if the control store refuses, or fails for more than five
    ///   minutes. Another runner may go on with the job.
    pub async fn run(
        &self,
        processor: &str,
        job: JobId,
        stop: impl Future<Output = ()>,
    ) -> Result<JobStatus, OperateError> {
        let mut stop = pin!(stop);
        let (operator, mut attempts) =
            (&self.operator, Attempts::new(crate::RetryPolicy::default()));
        let leases = operator.job_leases();
        let key = Operator::lease_key(processor, job);
        let mut contender = leases.contender(key, &*self.owner);
        let mut execution: Option<Execution> = None;
        loop {
            let step = async {
                let Some(execution) = &mut execution else {
                    let row = operator.job_row(processor, job).await?.value;
                    if matches!(row.state, JobState::Done | JobState::Aborted) {
                        return Ok(Step::Over);
                    }
                    let lease = contender.try_take().await?;
                    return Ok(match lease {
                        Some(lease) => Step::Begin(Box::new(lease), row.generation),
                        None => Step::Pause(self.poll),
                    });
                };
                execution.step(self.poll).await
            };
            let pause = match step.await {
                Ok(Step::Over) => break,
                Ok(Step::Begin(lease, generation)) => {
                    let begun = Execution::new(operator, processor, job, generation, *lease);
                    execution = Some(begun);
                    Duration::ZERO
                }
                Ok(Step::Lost) => {
                    execution = None;
                    self.poll
                }
                Ok(Step::Pause(pause)) => {
                    attempts.reset();
                    pause
                }
                Err(OperateError::Control(error)) => {
                    attempts.wait_or(error).await?;
                    Duration::ZERO
                }
                Err(error) => return Err(error),
            };
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = sleep(pause) => {}
            }
        }
        if let Some(execution) = execution
            && let Err(error) = execution.lease.release().await
        {
            tracing::warn!(%job, error = crate::chain(&error), "the lease of the job expires instead");
        }
        loop {
            match operator.job(processor, job).await {
                Err(OperateError::Control(error)) => attempts.wait_or(error).await?,
                status => return status,
            }
        }
    }

    /// Executes every job that is open now, of all processors, one after the other, until `stop` is
    /// ready. Returns the number of jobs that are over since. A service calls this again every few
    /// minutes.
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses, or fails for more than five minutes.
    pub async fn run_open(&self, stop: impl Future<Output = ()>) -> Result<u64, OperateError> {
        let mut stop = pin!(stop);
        let mut over = 0;
        for processor in self.operator.all_names().await? {
            for job in self.open_jobs(&processor).await? {
                // `stop` ends the job that is running. A stop that is ready stays so for the rest.
                let mut is_stopped = false;
                let told = async {
                    (&mut stop).await;
                    is_stopped = true;
                };
                let status = self.run(&processor, job, told).await?;
                over += u64::from(status.is_over());
                if is_stopped {
                    return Ok(over);
                }
            }
        }
        Ok(over)
    }

    /// Returns the jobs of a processor that are not over, the oldest first.
    async fn open_jobs(&self, processor: &str) -> Result<Vec<JobId>, OperateError> {
        let (mut open, mut after) = (Vec::new(), None);
        loop {
            let page = self.operator.jobs(processor, after).await?;
            open.extend(
                page.jobs
                    .iter()
                    .filter(|job| !job.is_over())
                    .map(|job| job.id),
            );
            after = page.next;
            if after.is_none() {
                open.reverse();
                return Ok(open);
            }
        }
    }
}

enum Step {
    /// The lease was taken.
    Begin(Box<Lease>, u32),
    /// Nothing can be done before this time has passed.
    Pause(Duration),
    /// The job is over.
    Over,
    /// Another process has the lease.
    Lost,
}

/// The execution of one job under one lease.
pub(super) struct Execution {
    operator: Operator,
    rows: ProcessorRows,
    job: JobId,
    lease: Lease,
    /// The items of the page at the cursor whose requests this execution has written.
    confirmed: BTreeSet<usize>,
    /// The instant before which nothing more is asked for, because of the rate.
    next_at: Instant,
    /// True if requests may have been written since the owners were told.
    must_announce: bool,
}

impl Execution {
    pub(super) fn new(
        operator: &Operator,
        processor: &str,
        job: JobId,
        generation: u32,
        lease: Lease,
    ) -> Self {
        Self {
            operator: operator.clone(),
            rows: operator.rows_of(processor, generation),
            job,
            lease,
            confirmed: BTreeSet::new(),
            next_at: Instant::now(),
            // The execution before may have died before it told the owners.
            must_announce: true,
        }
    }

    fn processor(&self) -> Arc<str> {
        self.rows.processor().clone()
    }

    async fn step(&mut self, poll: Duration) -> Result<Step, OperateError> {
        if !hold(&mut self.lease).await? {
            return Ok(Step::Lost);
        }
        if self.must_announce {
            self.rows.announce().await?;
            self.must_announce = false;
        }
        let processor = self.processor();
        let job = self.operator.job_row(&processor, self.job).await?;
        match job.value.state {
            JobState::Done | JobState::Aborted => Ok(Step::Over),
            // The selection is written under this lease, so that its process has died.
            JobState::Selecting => {
                self.put_job(&job, job.value.in_state(JobState::Aborting))
                    .await
            }
            JobState::Aborting => {
                self.operator
                    .take_back(&processor, self.job, &job.value)
                    .await?;
                self.operator.set_aborted(&processor, self.job).await?;
                Ok(Step::Over)
            }
            JobState::Running if job.value.cursor >= job.value.pages => {
                self.put_job(&job, job.value.in_state(JobState::Done)).await
            }
            JobState::Running => self.page(&job, poll).await,
        }
    }

    /// Writes the row of the job. The next step looks at what is there then, whether or not this
    /// write was overtaken.
    async fn put_job(&self, job: &Stored<JobRow>, next: JobRow) -> Result<Step, OperateError> {
        let (rows, seen) = (&self.operator.rows, Some(job.revision));
        let (PutIf::Written(_) | PutIf::Conflict(_)) = rows
            .job_put(&self.processor(), self.job, next, seen)
            .await?;
        Ok(Step::Pause(Duration::ZERO))
    }

    async fn page(&mut self, job: &Stored<JobRow>, poll: Duration) -> Result<Step, OperateError> {
        let (processor, cursor) = (self.processor(), job.value.cursor);
        let Some(stored) = self
            .operator
            .rows
            .items_get(&processor, self.job, cursor)
            .await?
        else {
            return Err(missing_page(&processor, self.job, cursor).into());
        };
        let mut page = stored.value.clone();
        let asks = self.judge(&mut page, job.value.rate).await?;
        if page != stored.value {
            let (of, seen) = ((self.job, job.value.at), Some(stored.revision));
            let put = self
                .operator
                .rows
                .items_put(&processor, of, cursor, page.clone(), seen);
            // A process that had the lease before has written meanwhile.
            if let PutIf::Conflict(_) = put.await? {
                return Ok(Step::Pause(Duration::ZERO));
            }
        }
        let is_open = |item: &Item| matches!(item.state, ItemState::Waiting | ItemState::Asked);
        if !page.items.iter().any(is_open) {
            self.confirmed.clear();
            let mut next = job.value.clone();
            next.cursor += 1;
            next.counts = next.counts.plus(page.counts());
            return self.put_job(job, next).await;
        }
        for (index, ask) in asks {
            // The lease may end during these writes, and another execution begin.
            if Instant::now() >= self.lease.valid_until() {
                return Ok(Step::Lost);
            }
            self.must_announce = true;
            if self.ask(&page.items[index], ask, &job.value).await? {
                self.confirmed.insert(index);
            }
        }
        if self.must_announce {
            self.rows.announce().await?;
            self.must_announce = false;
        }
        let until_next = self.next_at.saturating_duration_since(Instant::now());
        Ok(Step::Pause(if until_next.is_zero() {
            poll
        } else {
            poll.min(until_next)
        }))
    }

    /// Judges the open items of a page, and notes which are over and which to ask for now.
    async fn judge(
        &mut self,
        page: &mut ItemPage,
        rate: Option<u32>,
    ) -> Result<Vec<(usize, Ask)>, OperateError> {
        let parked = self.parked(page).await?;
        let mut asks = Vec::new();
        for (index, item) in page.items.iter_mut().enumerate() {
            if !matches!(item.state, ItemState::Waiting | ItemState::Asked) {
                continue;
            }
            let is_confirmed = self.confirmed.contains(&index);
            let (verdict, ask) = match &item.target {
                ItemTarget::Stream { id, from, high, .. } => {
                    let (id, from, high) = (*id, *from, *high);
                    let row = parked.get(&index);
                    let found = row.map(|row| &row.value);
                    let of = Parked { id, from, high };
                    let verdict = judge_stream(self.job, item, of, found, is_confirmed);
                    (verdict, row.cloned().map(Box::new).map(Ask::Stream))
                }
                ItemTarget::Letter { key, id } => {
                    let (key, id) = (key.clone(), *id);
                    // First the request, then the letter: its owner writes them in the opposite
                    // order.
                    let ask = self.rows.ask_get(&item.partition, &key).await?;
                    let letter = self.rows.letter_head(&item.partition, &key).await?;
                    let ask = ask.as_ref().map(|ask| &ask.value);
                    let verdict = judge_letter(item, id, ask, letter.as_ref(), is_confirmed);
                    (
                        verdict,
                        letter.map(|letter| Ask::Letter(key, letter.revision)),
                    )
                }
            };
            match verdict {
                Verdict::Wait => {}
                Verdict::Over(state, handled) => (item.state, item.handled) = (state, handled),
                Verdict::Ask => {
                    if let Some(ask) = ask.filter(|_| self.is_due(item.events, rate)) {
                        item.state = ItemState::Asked;
                        if let Ask::Letter(_, revision) = &ask {
                            item.seen = Some(*revision);
                        }
                        asks.push((index, ask));
                    }
                }
            }
        }
        Ok(asks)
    }

    /// Returns the park rows of the open items of a page, by the index of the item.
    async fn parked(
        &self,
        page: &ItemPage,
    ) -> Result<BTreeMap<usize, Stored<ParkRow>>, OperateError> {
        let mut by_partition = BTreeMap::<_, Vec<_>>::new();
        for (index, item) in page.items.iter().enumerate() {
            if let ItemTarget::Stream { stream, .. } = &item.target
                && matches!(item.state, ItemState::Waiting | ItemState::Asked)
            {
                by_partition
                    .entry(&item.partition)
                    .or_default()
                    .push((index, stream));
            }
        }
        let mut found = BTreeMap::new();
        for (partition, streams) in by_partition {
            let keys = streams.iter().map(|(_, stream)| *stream);
            let rows = self.rows.park_get_many(partition, keys).await?;
            let rows = streams.iter().zip(rows);
            found.extend(rows.filter_map(|((index, _), row)| Some((*index, row?))));
        }
        Ok(found)
    }

    /// Returns true if the rate allows to ask for this number of events now.
    fn is_due(&mut self, events: u64, rate: Option<u32>) -> bool {
        let (Some(rate), now) = (rate, Instant::now()) else {
            return true;
        };
        if now < self.next_at {
            return false;
        }
        let takes = Duration::from_secs_f64(events as f64 / f64::from(rate.max(1)));
        self.next_at = now + takes.min(Duration::from_secs(24 * 3600));
        true
    }

    /// Writes a request if the row is as it was judged. Returns true if it was.
    async fn ask(&self, item: &Item, ask: Ask, job: &JobRow) -> Result<bool, OperateError> {
        let at = &item.partition;
        match (&item.target, ask) {
            (ItemTarget::Stream { stream, high, .. }, Ask::Stream(row)) => {
                let request = Request {
                    by: job.by.clone(),
                    job: Some(self.job),
                    upto: Some(*high),
                };
                let Some(next) = row.value.requested(request) else {
                    return Ok(false);
                };
                let put = self
                    .rows
                    .park_replace(at, stream, next, row.revision)
                    .await?;
                Ok(matches!(put, PutIf::Written(_)))
            }
            (ItemTarget::Letter { id, .. }, Ask::Letter(key, _)) => {
                let ask = AskRow {
                    letter: *id,
                    what: AskKind::Redrive,
                    by: job.by.clone(),
                    job: Some(self.job),
                    at: self.operator.clock.now(),
                };
                let put = self.rows.ask_put(at, &key, ask).await?;
                Ok(matches!(put, PutIf::Written(_)))
            }
            _ => Ok(false),
        }
    }
}

/// A request that is to be written, and the row that was judged.
enum Ask {
    Stream(Box<Stored<ParkRow>>),
    Letter(LetterKey, Revision),
}

fn missing_page(processor: &str, job: JobId, page: u32) -> ControlStoreError {
    ControlStoreError::Corrupt {
        key: RowKey::new(format!("job/{processor}/{job}"), format!("{page:08}")),
        reason: "the page of items is missing: abort the job and start another one".into(),
    }
}
