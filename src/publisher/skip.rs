//! The skip: an operator's way past an event that cannot be published.
use super::{PublishError, PublishReport, Publisher};
use crate::{
    StreamId, Version,
    control::{AuditRow, PutIf, Rows, SkipRow},
    operate::Reason,
    ports::ControlStoreError,
};

/// The result of [`Publisher::skip`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Skipped {
    /// The result of publishing the stream without the event. Another event after it may be refused
    /// now.
    pub report: PublishReport,
}

/// The error returned by [`Publisher::skip`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SkipError {
    /// The event is published already, so that it cannot be kept out of the topic.
    #[error(
        "event {version} of {stream} is published, as all events up to version {watermark} are: discard it in the processors that cannot handle it"
    )]
    Published {
        /// The stream of the event.
        stream: StreamId,
        /// The version that was to be skipped.
        version: Version,
        /// The version of the watermark.
        watermark: Version,
    },
    /// The event is not the one at which its stream stands still.
    #[error(
        "event {version} of {stream} is not refused, so that it is published in its turn: skip the event that is named by the error of the stream"
    )]
    NotRefused {
        /// The stream of the event.
        stream: StreamId,
        /// The version that was to be skipped.
        version: Version,
        /// The reason why the stream stands still.
        #[source]
        source: PublishError,
    },
    /// The rows cannot be read or written. The event may be skipped nevertheless, and the call may
    /// be repeated.
    #[error("the rows of the publisher cannot be read or written")]
    Control(#[from] ControlStoreError),
}

impl Publisher {
    /// Keeps an event out of the topic at which its stream stands still, and publishes the events
    /// after it. The event is refused because it is too large, because the outbox has no form for
    /// it, or by the bus.
    ///
    /// The next record of the stream says that the event is missing on purpose. The decision is
    /// audited and never taken back, and applies to whoever reads the stream for a handler. The
    /// call tries the stream first, so that no event is skipped that can be published.
    ///
    /// # Errors
    /// - [`SkipError::Published`] if the watermark covers the event, now or after that attempt.
    /// - [`SkipError::NotRefused`] if the stream stands still for another reason.
    /// - [`SkipError::Control`] if rows cannot be read or written.
    pub async fn skip(
        &self,
        stream: &StreamId,
        version: Version,
        reason: &Reason,
    ) -> Result<Skipped, SkipError> {
        let mut tried = self.publish_stream(stream).await;
        let mark = self.watermarks.get(stream).await?;
        let watermark = mark.map_or(Version::NONE, |mark| mark.value.version);
        let stream_id = || stream.clone();
        match tried.failed.pop().map(|failure| failure.error) {
            Some(error) if error.refused_event() == Some(version) => {}
            Some(source) if version > watermark => {
                let stream = stream_id();
                return Err(SkipError::NotRefused {
                    stream,
                    version,
                    source,
                });
            }
            _ => {
                let stream = stream_id();
                return Err(SkipError::Published {
                    stream,
                    version,
                    watermark,
                });
            }
        }
        self.note_skip(stream, version, reason).await?;
        let report = self.publish_stream(stream).await;
        Ok(Skipped { report })
    }

    /// Writes the row of a skip between the two writes of its audit entry.
    async fn note_skip(
        &self,
        stream: &StreamId,
        version: Version,
        reason: &Reason,
    ) -> Result<(), ControlStoreError> {
        let rows = Rows::new(self.control.clone(), self.ids.clone());
        let entry = AuditRow {
            who: reason.who().into(),
            at: self.clock.now(),
            action: "skip publishing".into(),
            target: format!("{stream} {version}"),
            why: reason.why().into(),
            affected: None,
        };
        // The entry comes first, so that no event is ever skipped without one.
        let (key, begun) = rows.audit_put(entry).await?;
        let row = SkipRow {
            reason: reason.why().into(),
            by: reason.who().into(),
            at: begun.value.at,
        };
        let put = self.rows.skip_put(stream, version, row).await?;
        // Two operators at once: the event is skipped, by one of them.
        let affected = u64::from(matches!(put, PutIf::Written(_)));
        let entry = AuditRow {
            affected: Some(affected),
            ..begun.value
        };
        let completed = rows.audit_complete(&key, entry, begun.revision).await;
        if let Err(error) = completed {
            let error = crate::chain(&error);
            tracing::error!(%key, error, "the audit entry stays without a number");
        }
        Ok(())
    }
}
