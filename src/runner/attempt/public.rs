//! The stored history in the form in which the topic shows it, so that a handler cannot tell
//! whether an event came by the bus or from the event store.
use super::{Attempt, EventSource, FailureOf, HandlerError, KnownSkips, Outcome, failed};
use crate::{
    RecordedEvent, StreamId, Version,
    control::PublisherRows,
    ports::PartitionId,
    publisher::{Outbox, public_form},
};
use std::{collections::BTreeSet, sync::Arc};

/// The rules by which the publisher of a topic keeps events out of it or changes them.
#[derive(Clone, Debug)]
pub(in crate::runner) struct PublicHistory {
    pub(in crate::runner) outbox: Option<Arc<dyn Outbox>>,
    pub(in crate::runner) rows: PublisherRows,
    /// All skipped versions, if they were read at once. Otherwise those of a stream are read when
    /// its events are.
    pub(in crate::runner) skips: Option<KnownSkips>,
}

impl Attempt {
    /// Returns the versions of a stream, between two, that operators keep out of the topic.
    pub(super) async fn skips_of(
        &self,
        stream: &StreamId,
        versions: (Version, Version),
    ) -> Result<BTreeSet<Version>, HandlerError> {
        if let Some(known) = &self.shared.public.skips {
            return Ok(known.get(stream).cloned().unwrap_or_default());
        }
        let rows = &self.shared.public.rows;
        let skips = async { Ok(rows.skips_of(stream, versions).await?) };
        self.in_time("control store", skips).await
    }

    /// Returns a stored event as the topic shows it; `None` if the topic does not show it.
    pub(super) async fn public(
        &self,
        event: RecordedEvent,
    ) -> Result<Option<RecordedEvent>, HandlerError> {
        let outbox = self.shared.public.outbox.as_deref();
        let public = async {
            public_form(outbox, event).await.map_err(|error| {
                if error.is_transient() {
                    HandlerError::transient(error)
                } else {
                    HandlerError::permanent(error)
                }
            })
        };
        self.in_time("outbox", public).await
    }

    /// Handles an event that was read from the event store, or passes it over if the topic does not
    /// show it.
    pub(super) async fn handle_stored(
        &mut self,
        at: usize,
        event: RecordedEvent,
        skips: &BTreeSet<Version>,
        partition: &PartitionId,
    ) -> Result<(), (usize, Outcome)> {
        let (version, id) = (event.header.version, event.header.event_id.commit_id());
        let public = if skips.contains(&version) || self.is_left_out(&event) {
            Ok(None)
        } else if self.shared.public.outbox.is_none() {
            Ok(Some(event))
        } else {
            let public = self.public(event.clone()).await;
            public.map_err(|error| (error, FailureOf::Event(Box::new(event))))
        };
        match public {
            Ok(Some(event)) => {
                self.handle(at, &event, EventSource::History, partition)
                    .await
            }
            Ok(None) => {
                self.passed_over(version, Some(id), partition);
                Ok(())
            }
            Err((error, of)) => {
                // What comes before it is handled first.
                self.handle_pending().await?;
                Err(failed(at, version, error, of))
            }
        }
    }
}
