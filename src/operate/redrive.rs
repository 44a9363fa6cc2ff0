//! Bulk redrives: what is selected, and how the selection is frozen.
use super::{Fingerprint, JobState, JobStatus, LetterKey, OperateError, Operator, Reason};
use crate::{
    StreamId,
    control::{Item, ItemPage, ItemTarget, JobId, JobRow, Lease, Leases, PutIf},
    operate::select::Selector,
    ports::RowKey,
};
use std::{fmt, num::NonZeroU32, time::Duration};

/// The dead letters and parked streams that a redrive selects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Selection {
    /// All of the processor.
    All,
    /// Those whose failure has this fingerprint.
    Group(Fingerprint),
    /// Those of one stream.
    Stream(StreamId),
    /// One event or record.
    Letter(LetterKey),
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Group(fingerprint) => write!(f, "group {fingerprint}"),
            Self::Stream(stream) => write!(f, "stream {stream}"),
            Self::Letter(LetterKey::Event { stream, version }) => {
                write!(f, "{stream} version {version}")
            }
            Self::Letter(LetterKey::Record(offset)) => write!(f, "the record at offset {offset}"),
        }
    }
}

/// A redrive that an operator wants: what of which processor, and how fast.
///
/// # Example
/// ```
/// use foldstream::operate::{Redrive, Selection};
/// use std::num::NonZeroU32;
/// let redrive = Redrive::all("billing").with_rate(NonZeroU32::new(50).ok_or("not zero")?);
/// assert_eq!((redrive.selection, redrive.generation), (Selection::All, None));
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Redrive {
    /// The name of the processor.
    pub processor: String,
    /// The dead letters and parked streams to redrive.
    pub selection: Selection,
    /// The generation whose rows are redriven. `None`, the default, is the one that serves.
    pub generation: Option<u32>,
    /// The number of selected events per second that are asked for at most. `None`, the default, is
    /// no limit. The processor handles what it is asked for as fast as it handles other events.
    pub rate: Option<NonZeroU32>,
}

impl Redrive {
    /// Creates a redrive of a selection, without a limit of its rate.
    #[must_use]
    pub fn new(processor: impl Into<String>, selection: Selection) -> Self {
        Self {
            processor: processor.into(),
            selection,
            generation: None,
            rate: None,
        }
    }
    /// Creates a redrive of all that is parked or dead.
    #[must_use]
    pub fn all(processor: impl Into<String>) -> Self {
        Self::new(processor, Selection::All)
    }
    /// Sets the number of selected events per second that are asked for at most.
    #[must_use]
    pub const fn with_rate(mut self, events_per_second: NonZeroU32) -> Self {
        self.rate = Some(events_per_second);
        self
    }
    /// Sets the generation whose rows are redriven.
    #[must_use]
    pub const fn with_generation(mut self, generation: u32) -> Self {
        self.generation = Some(generation);
        self
    }
}

/// The size of a selection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedriveSize {
    /// The number of parked streams.
    pub streams: u64,
    /// The number of dead letters of streams that are not parked.
    pub letters: u64,
    /// The number of events that will be handled: all that are known to wait in the streams, and
    /// one per letter, without those that are discarded.
    pub events: u64,
}

impl RedriveSize {
    fn add(&mut self, item: &Item) {
        match item.target {
            ItemTarget::Stream { .. } => self.streams += 1,
            ItemTarget::Letter { .. } => self.letters += 1,
        }
        self.events += item.events;
    }
    pub(super) const fn items(self) -> u64 {
        self.streams + self.letters
    }
}

/// The time after which another process may take over a job.
pub(super) const LEASE: Duration = Duration::from_secs(15);

impl Operator {
    /// Returns the size of a redrive, and changes nothing. A [`redrive`](Self::redrive) at this
    /// moment would handle exactly as many events, if none of them failed again.
    ///
    /// # Errors
    /// - [`OperateError::UnknownProcessor`] if there is no such processor.
    /// - [`OperateError::Control`] if the control store refuses or fails.
    pub async fn dry_run(&self, redrive: &Redrive) -> Result<RedriveSize, OperateError> {
        let mut selector = self.selector(redrive).await?;
        let mut size = RedriveSize::default();
        while let Some(items) = selector.next().await? {
            items.iter().for_each(|item| size.add(item));
        }
        Ok(size)
    }

    /// Freezes a selection as a job, which a [`JobRunner`](super::JobRunner) then executes.
    ///
    /// Each selected stream is redriven from the first event that waits to the last that is known
    /// to wait now. Each is asked for once: what fails again stays where it is, and the job goes
    /// on. A stream that was released meanwhile, and parked again since, is left as it is. Streams
    /// that are being redriven already are not selected. An empty selection is done at once.
    ///
    /// For a listener a redrive repeats the side effects of the event.
    ///
    /// # Errors
    /// - [`OperateError::UnknownProcessor`] if there is no such processor.
    /// - [`OperateError::Interrupted`] if the job was ended meanwhile.
    /// - [`OperateError::Control`] if the control store refuses or fails. Nothing is redriven then:
    ///   a job runner ends the job whose selection is not complete.
    pub async fn redrive(
        &self,
        redrive: &Redrive,
        reason: &Reason,
    ) -> Result<JobStatus, OperateError> {
        let selector = self.selector(redrive).await?;
        let target = format!("{} {}", redrive.processor, redrive.selection);
        let act = async {
            let job = self.freeze(redrive, selector, reason).await?;
            let items = job.items;
            Ok((job, items))
        };
        self.audited("redrive", target, reason, act).await
    }

    async fn selector(&self, redrive: &Redrive) -> Result<Selector, OperateError> {
        let generations = self.generations(&redrive.processor).await?;
        let generation = redrive.generation.unwrap_or(generations.active);
        let partitions = self.partitions(&redrive.processor, generation).await?;
        let rows = self.rows_of(&redrive.processor, generation);
        Ok(Selector::new(rows, partitions, redrive.selection.clone()))
    }

    /// Returns the leases of jobs. The owner of a lease selects or executes its job.
    pub(super) fn job_leases(&self) -> Leases {
        Leases::new(self.control.clone(), self.ids.clone(), LEASE)
    }
    pub(super) fn lease_key(processor: &str, job: JobId) -> RowKey {
        RowKey::new(format!("lease/job/{processor}"), job.to_string())
    }

    async fn freeze(
        &self,
        redrive: &Redrive,
        mut selector: Selector,
        reason: &Reason,
    ) -> Result<JobStatus, OperateError> {
        let id = JobId::from_u128(self.ids.commit_id().as_u128());
        let interrupted = || OperateError::Interrupted { job: id };
        let processor = &*redrive.processor;
        let owner = format!("selection by {}", reason.who());
        let leases = self.job_leases();
        // The id is new, so that the lease is free.
        let lease = leases
            .contender(Self::lease_key(processor, id), owner)
            .try_take()
            .await?;
        let mut lease = lease.ok_or_else(interrupted)?;
        let (who, why, at) = (reason.who(), reason.why(), self.clock.now());
        let what = redrive.selection.to_string();
        let mut row = JobRow::new(selector.generation(), what, who, why, at);
        row.rate = redrive.rate.map(NonZeroU32::get);
        let put = self.rows.job_put(processor, id, row.clone(), None).await?;
        let PutIf::Written(mut job) = put else {
            return Err(interrupted());
        };
        let (mut page, mut size) = (ItemPage::default(), RedriveSize::default());
        while let Some(items) = selector.next().await? {
            for item in items {
                size.add(&item);
                page.items.push(item);
                if page.items.len() == ItemPage::ITEMS {
                    let full = std::mem::take(&mut page);
                    self.write_page(processor, (id, at), row.pages, full)
                        .await?;
                    row.pages += 1;
                }
            }
            if !hold(&mut lease).await? {
                return Err(interrupted());
            }
        }
        if !page.items.is_empty() {
            self.write_page(processor, (id, at), row.pages, page)
                .await?;
            row.pages += 1;
        }
        (row.items, row.events) = (size.items(), size.events);
        let is_empty = row.items == 0;
        row.state = if is_empty {
            JobState::Done
        } else {
            JobState::Running
        };
        let put = self
            .rows
            .job_put(processor, id, row, Some(job.revision))
            .await?;
        match put {
            PutIf::Written(frozen) => job = frozen,
            PutIf::Conflict(_) => return Err(interrupted()),
        }
        lease.release().await?;
        Ok(JobStatus::new(processor, id, job.value))
    }

    async fn write_page(
        &self,
        processor: &str,
        job: (JobId, crate::Timestamp),
        page: u32,
        items: ItemPage,
    ) -> Result<(), OperateError> {
        match self
            .rows
            .items_put(processor, job, page, items, None)
            .await?
        {
            PutIf::Written(_) => Ok(()),
            PutIf::Conflict(_) => Err(OperateError::Interrupted { job: job.0 }),
        }
    }
}

/// Renews a lease that is in its second half. Returns false if another process has it.
pub(super) async fn hold(lease: &mut Lease) -> Result<bool, OperateError> {
    let left = lease
        .valid_until()
        .saturating_duration_since(tokio::time::Instant::now());
    if left > LEASE / 2 {
        return Ok(true);
    }
    Ok(lease.renew().await?)
}
