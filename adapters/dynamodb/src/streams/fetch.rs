//! The way through a shard: iterators, pages, pauses, and what follows from each failure.
use super::{
    context::Context,
    service::{ChangeStream, ShardStart, StreamRecord, StreamServiceError},
};
use foldstream::resilience::{Attempts, Failure, FailureClass};
use std::sync::Arc;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};

/// The place in a shard at which the next page begins.
#[derive(Debug)]
pub(super) struct Cursor {
    iterator: Option<String>,
    /// The start of the next iterator.
    start: ShardStart,
    /// True if the last page was the last one of the shard.
    is_at_end: bool,
    next_at: Instant,
}

impl Cursor {
    pub(super) fn at(start: ShardStart) -> Self {
        Self {
            iterator: None,
            start,
            is_at_end: false,
            next_at: Instant::now(),
        }
    }
}

/// The result of a fetch.
#[derive(Debug)]
pub(super) enum Fetched {
    /// A page with at least one record, and its permit to be in memory.
    Page(Vec<StreamRecord>, OwnedSemaphorePermit),
    /// The shard has no more records.
    End,
}

/// The step that follows a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    /// Make another iterator at the same place.
    Renew,
    /// Records are deleted: note the loss, and go on with the oldest record that is left.
    Horizon,
    /// The shard may be deleted: look whether it is still listed.
    Look,
    /// Send the request again after a pause.
    Repeat,
}

const fn recovery(error: &StreamServiceError) -> Recovery {
    match error {
        StreamServiceError::ExpiredIterator => Recovery::Renew,
        StreamServiceError::Trimmed => Recovery::Horizon,
        StreamServiceError::Gone => Recovery::Look,
        StreamServiceError::Throttled { .. }
        | StreamServiceError::Unavailable { .. }
        | StreamServiceError::Refused { .. } => Recovery::Repeat,
    }
}

/// Fetches the next page with records. It waits for records, for memory and through failures,
/// without an end: its caller drops it.
pub(super) async fn fetch(
    cx: &Context,
    stream: &ChangeStream,
    shard: &str,
    mut cursor: Cursor,
) -> (Cursor, Fetched) {
    let mut attempts = cx.attempts();
    while !cursor.is_at_end {
        // The memory for a page is taken before the page is requested. While there is none, the
        // iterator may expire, and another one is made.
        let Ok(permit) = Arc::clone(&cx.pages).acquire_owned().await else {
            break;
        };
        sleep_until(cursor.next_at).await;
        match request(cx, stream, shard, &mut cursor).await {
            Ok(records) => {
                attempts.reset();
                cx.works(shard, "reading");
                if let Some(last) = records.last() {
                    cursor.start = ShardStart::After(last.sequence.clone());
                    return (cursor, Fetched::Page(records, permit));
                }
            }
            Err(error) => {
                drop(permit);
                recover(cx, stream, shard, &mut cursor, &mut attempts, &error).await;
            }
        }
    }
    (cursor, Fetched::End)
}

/// Sends the next request. Without an iterator, that is the request for one.
async fn request(
    cx: &Context,
    stream: &ChangeStream,
    shard: &str,
    cursor: &mut Cursor,
) -> Result<Vec<StreamRecord>, StreamServiceError> {
    let iterator = match &cursor.iterator {
        Some(iterator) => iterator.clone(),
        None => cx.service.iterator(stream, shard, &cursor.start).await?,
    };
    cursor.iterator = Some(iterator.clone());
    let sent = Instant::now();
    let page = cx.service.records(&iterator).await?;
    cursor.is_at_end = page.next.is_none();
    cursor.iterator = page.next;
    let pause = if page.records.is_empty() {
        cx.config.idle_pause
    } else {
        cx.config.min_pause
    };
    cursor.next_at = sent + pause;
    Ok(page.records)
}

async fn recover(
    cx: &Context,
    stream: &ChangeStream,
    shard: &str,
    cursor: &mut Cursor,
    attempts: &mut Attempts<'static>,
    error: &StreamServiceError,
) {
    match recovery(error) {
        Recovery::Renew => cursor.iterator = None,
        Recovery::Horizon => {
            cx.note_loss(shard, "records were deleted before they were read")
                .await;
            (cursor.iterator, cursor.start) = (None, ShardStart::Horizon);
        }
        Recovery::Look => {
            // A shard that has just been made may be unknown to another host of the service.
            cursor.iterator = None;
            let is_deleted = match cx.shards(stream).await {
                Ok(listed) => listed.is_none_or(|listed| !listed.contains_key(shard)),
                Err(_) => false,
            };
            if is_deleted {
                cx.note_loss(shard, "the shard was deleted before it was read")
                    .await;
                cursor.is_at_end = true;
                return;
            }
        }
        Recovery::Repeat => cx.fails(shard, "reading", attempts.failed() + 1, error),
    }
    let class = match error.failure_class() {
        // A refusal may be lifted while the reader runs.
        FailureClass::Permanent => FailureClass::Transient,
        class => class,
    };
    let pause = attempts.next(class).unwrap_or(cx.config.backoff.max);
    cursor.next_at = Instant::now() + pause;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_own_recovery() {
        let source = || "x".into();
        for (error, expected) in [
            (StreamServiceError::ExpiredIterator, Recovery::Renew),
            (StreamServiceError::Trimmed, Recovery::Horizon),
            (StreamServiceError::Gone, Recovery::Look),
            (
                StreamServiceError::Throttled {
                    retry_after: None,
                    source: source(),
                },
                Recovery::Repeat,
            ),
            (
                StreamServiceError::Unavailable { source: source() },
                Recovery::Repeat,
            ),
            (
                StreamServiceError::Refused { source: source() },
                Recovery::Repeat,
            ),
        ] {
            assert_eq!(recovery(&error), expected, "{error:?}");
        }
    }
}
