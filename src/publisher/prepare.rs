//! The messages of a commit.
use super::{
    PublishError, Publisher,
    checked_topics::CheckedTopic,
    outbox::public_form,
    queue::{CommitEnd, Prepared},
};
use crate::{Version, control::Watermark, ports::Commit, write_record};
use std::{collections::BTreeSet, sync::Arc};

/// Makes the messages of a commit that follows the record of version `before`. Skipped versions
/// have no message, as private events have none.
///
/// # Errors
/// The version of the first event that cannot be published, and why. Nothing of the commit is sent
/// then.
pub(super) async fn prepare(
    publisher: &Publisher,
    topic_name: &Arc<str>,
    topic: &CheckedTopic,
    commit: &Commit,
    before: Version,
    skips: &BTreeSet<Version>,
) -> Result<Prepared, (Version, PublishError)> {
    let (source, now) = (&publisher.source, publisher.clock.now());
    let partition = topic.partition_of(commit.stream.as_str().as_bytes());
    let mut messages = Vec::with_capacity(commit.events.len());
    let mut last_record = before;
    for event in commit.recorded() {
        let version = event.header.version;
        if skips.contains(&version) {
            continue;
        }
        let stream = || commit.stream.clone();
        let public = public_form(publisher.outbox.as_deref(), event).await;
        let public = public.map_err(|source| {
            let stream = stream();
            let error = PublishError::Outbox {
                stream,
                version,
                source,
            };
            (version, error)
        })?;
        let Some(public) = public else { continue };
        let gap = (last_record.next() != version).then_some(last_record);
        let message = write_record(&public, topic_name, source, now, gap);
        let message = message.with_partition(partition);
        let bytes = message.size();
        if let Some(limit) = topic.limit.filter(|limit| bytes as u64 > *limit) {
            let error = PublishError::TooLarge {
                stream: stream(),
                version,
                topic: topic_name.clone(),
                bytes: bytes as u64,
                limit,
            };
            return Err((version, error));
        }
        messages.push((version, bytes, message));
        last_record = version;
    }
    let watermark = Watermark::new(commit.last_version(), commit.id);
    Ok(Prepared {
        messages,
        end: CommitEnd {
            first: commit.first_version,
            recorded_at: commit.recorded_at,
            watermark: watermark.with_last_record(last_record),
        },
    })
}
