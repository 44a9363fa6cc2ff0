//! The operators' view of processors, and what operators do about them: state and lag, parked
//! streams, dead letters, circuit breakers, redrive, discard, skip, pause and resume.
//!
//! An [`Operator`] works over the ports only, from any process that reaches the control store: a
//! command line, a web console, a service. It never handles an event itself. It writes requests,
//! which the instances of the processor find within a few seconds, and reads their answers.
//!
//! # What is the difference between the operations?
//! | operation | effect |
//! |---|---|
//! | [`redrive`](Operator::redrive) | the processor handles what is parked or dead again, in order per stream |
//! | [`discard`](Operator::discard) | an event that has failed is never handled; what waits after it goes on |
//! | [`skip`](Operator::skip) | an event is passed over, also one that has not failed yet or halts its processor |
//! | [`pause`](Operator::pause), [`resume`](Operator::resume) | no instance begins to handle an event meanwhile |
//!
//! The same holds for publishers: [`publisher`](Operator::publisher) shows what runs, and
//! [`dirty_streams`](Operator::dirty_streams) and
//! [`published_streams`](Operator::published_streams) list streams from rows. An operation that
//! publishes takes a [`Publisher`](crate::publisher::Publisher) with the route and the outbox of
//! the service, which may be made in any process.
//! | operation | effect |
//! |---|---|
//! | [`sweep`](Operator::sweep) | dirty streams are tried again now |
//! | [`reconcile`](Operator::reconcile) | streams whose notices were lost are found and published |
//! | [`skip_publishing`](Operator::skip_publishing) | an event that cannot be published is kept out of the topic |
//! | [`accept_partitions`](Operator::accept_partitions) | a topic may be used with another number of partitions |
//!
//! Every operation names its target, says how many it has affected, and leaves an entry in the
//! [audit](Operator::audit). 0 is an answer: there was nothing at the target.
//!
//! A repository tells the history of one aggregate, version by version, since it has the types of
//! its events: [`Repository::timeline`](crate::Repository::timeline).
//!
//! # What does a discard promise?
//! [`DiscardState::Passed`] says that the owner of the partition has passed the version over, and
//! that no later owner will handle it. An attempt of a process that had lost its partition and did
//! not know it yet may still be running. It ends within the attempt timeout of the processor.
//!
//! # Personal data
//! Dead letters, discards and the audit hold payloads and texts as they came. Sealed payloads stay
//! sealed, so that a shredded key makes them unreadable here, too. Dead letters do not expire.
//! Discards are kept for good, and jobs and audit entries for 400 days.
mod audit;
mod breakers;
mod cursor;
mod discard;
mod error;
mod executor;
mod job;
mod judge;
mod letters;
mod pause;
mod processors;
mod publishing;
mod redrive;
mod replays;
mod select;

pub use crate::control::{
    discard::DiscardState,
    hex_id::InvalidHexId,
    instance::{InstanceId, InstanceState},
    job::{JobCounts, JobId, JobState},
    letters::{
        DeadLetter, Fingerprint, LetterBody, LetterClass, LetterHead, LetterId, StoredRecord,
    },
    processor_rows::LetterKey,
};
pub use audit::{AuditEntry, AuditPage, Reason};
pub use breakers::{BreakerStatus, BreakerVote, ProbeStatus, VoteState};
pub use cursor::{InvalidListCursor, ListCursor, ListPage};
pub use discard::{Discarded, EventRef};
pub use error::OperateError;
pub use executor::JobRunner;
pub use job::{Aborted, JobPage, JobStatus};
pub use letters::{
    LetterAddress, LetterGroup, LetterGroups, ListedLetter, ParkedState, ParkedStream,
};
pub use pause::{PauseChange, PauseStatus};
pub use processors::{InstanceStatus, NextGenerationStatus, ProcessorStatus};
pub use publishing::{
    PinnedTopic, PublishedStream, PublisherInstance, PublisherOverview, ReconcileStatus,
};
pub use redrive::{Redrive, RedriveSize, Selection};
pub use replays::{ReplayCounts, ReplayPage, ReplayStatus, ReplayedProcessor};

use crate::{
    Clock, IdSource, SystemClock, SystemIds,
    control::{Generations, ProcessorRows, Rows},
    ports::{ControlStore, EventStore, MessageBus, PartitionId, shared},
};
use std::sync::Arc;

/// Shows and operates the processors whose rows are in one control store.
///
/// # Example
/// ```
/// use foldstream::operate::{Operator, Reason, Redrive};
/// use foldstream_testkit::InMemoryControlStore;
/// use std::num::NonZeroU32;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let operator = Operator::new(InMemoryControlStore::new());
///
/// // No processor has started on this control store yet.
/// assert!(operator.processors().await?.is_empty());
/// let hundred = NonZeroU32::new(100).ok_or("not zero")?;
/// let letters = operator.all_letters(None, hundred).await?;
/// assert!(letters.items.is_empty() && letters.next.is_none());
///
/// let reason = Reason::new("ann", "the card service is back")?;
/// let unknown = operator.redrive(&Redrive::all("billing"), &reason).await;
/// assert!(unknown.is_err_and(|error| error.to_string().contains("no processor \"billing\"")));
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Operator {
    control: Arc<dyn ControlStore>,
    rows: Rows,
    ids: Arc<dyn IdSource>,
    clock: Arc<dyn Clock>,
    /// The bus, and the prefix of the processors' consumer groups.
    bus: Option<(Arc<dyn MessageBus>, Arc<str>)>,
    store: Option<Arc<dyn EventStore>>,
}

impl Operator {
    /// Creates an operator over the control store of the processors.
    pub fn new(control: impl ControlStore) -> Self {
        let control = shared::control_store(control);
        let ids: Arc<dyn IdSource> = Arc::new(SystemIds);
        Self {
            rows: Rows::new(control.clone(), ids.clone()),
            control,
            ids,
            clock: Arc::new(SystemClock),
            bus: None,
            store: None,
        }
    }
    /// Also reads offsets from this bus, without which no lag is known. `group_prefix` is that of
    /// the runners, [`Runner::builder`](crate::runner::Runner::builder).
    #[must_use]
    pub fn with_bus(mut self, bus: impl MessageBus, group_prefix: impl Into<Arc<str>>) -> Self {
        self.bus = Some((shared::message_bus(bus), group_prefix.into()));
        self
    }
    /// Also reads this event store, so that a [`skip`](Self::skip) of an event that does not exist
    /// is refused.
    #[must_use]
    pub fn with_store(mut self, store: impl EventStore) -> Self {
        self.store = Some(shared::event_store(store));
        self
    }
    /// Sets the source of ids and revisions. Default: the system's randomness.
    #[must_use]
    pub fn with_ids(mut self, ids: Arc<dyn IdSource>) -> Self {
        self.rows = Rows::new(self.control.clone(), ids.clone());
        self.ids = ids;
        self
    }
    /// Sets the clock for the times in requests and in the audit. Default: the system's clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Returns the rows of one generation of a processor.
    fn rows_of(&self, processor: &str, generation: u32) -> ProcessorRows {
        let (control, ids, clock) = (self.control.clone(), self.ids.clone(), self.clock.clone());
        ProcessorRows::over(control, ids, clock, processor, generation)
    }

    /// Returns the generations of a processor.
    async fn generations(&self, processor: &str) -> Result<Generations, OperateError> {
        if !processor.is_empty()
            && let Some(row) = self.rows.generations(processor).await?
        {
            return Ok(row.value);
        }
        let known = self.processor_names(None).await?.0;
        Err(OperateError::UnknownProcessor {
            name: processor.into(),
            known: known.into_iter().take(20).collect(),
        })
    }

    /// Tells every generation of a processor that rows have changed. Called after the rows are
    /// written, also if they were as wanted already.
    async fn announce(&self, processor: &str, of: &Generations) -> Result<(), OperateError> {
        for generation in of.all() {
            self.rows_of(processor, generation).announce().await?;
        }
        Ok(())
    }

    /// Returns the partitions in which a processor may have rows: those for which it has a start
    /// position, and those of the topics whose number of partitions is pinned.
    async fn partitions(
        &self,
        processor: &str,
        generation: u32,
    ) -> Result<Vec<PartitionId>, OperateError> {
        let booted = self.rows.boot_offsets(processor, generation).await?;
        let mut partitions: Vec<_> = booted.into_keys().collect();
        for (topic, count) in self.rows.pinned_topics().await? {
            partitions.extend((0..count).map(|n| PartitionId::new(topic.clone(), n)));
        }
        partitions.sort();
        partitions.dedup();
        Ok(partitions)
    }
}

#[cfg(test)]
mod simulation;
