//! Stores that accept, change or refuse the wrong commits.
use super::{Appended, AppendedAll, Store, Suspects, append_at_the_tail, full, plain};
use async_trait::async_trait;
use foldstream::{
    Metadata, Timestamp,
    ports::{
        Append, AppendAll, AppendOutcome, Capabilities, EventData, EventStore, EventStoreError,
    },
};
use foldstream_testkit::intercept::EventStoreLayer;

pub(super) fn suspects() -> Suspects {
    vec![
        full::<TakesNothing>(&["a_commit_without_events_is_invalid"]),
        full::<CutsLongCommits>(&["more_events_than_the_maximum_are_invalid"]),
        full::<MovesFarTimes>(&["a_time_that_no_record_can_carry_is_invalid"]),
        full::<DropsControlCharacters>(&["a_text_that_no_record_can_carry_is_invalid"]),
        full::<ExceedsItsLimit>(&["a_commit_over_the_limit_is_too_large"]).and_by(&[
            "one_bad_commit_stores_none",
            "an_event_over_the_limit_is_too_large",
            "commits_that_are_together_over_the_limit_are_too_large",
        ]),
        full::<ExceedsItsEventLimit>(&["an_event_over_the_limit_is_too_large"]),
        full::<RefusesBelowItsLimit>(&["a_commit_below_the_limit_is_taken"]).and_by(&[
            "a_malformed_append_is_invalid_whatever_else_is_wrong_with_it",
            "an_event_and_metadata_at_their_limits_are_taken",
            "a_large_commit_on_a_stale_head_stores_nothing",
        ]),
        full::<StoresLargeCommitsInParts>(&["a_large_commit_on_a_stale_head_stores_nothing"]),
        full::<DropsLargeMetadata>(&["metadata_over_the_limit_is_too_large"]),
        full::<CountsMetadataToTheEvent>(&["an_event_and_metadata_at_their_limits_are_taken"]),
        full::<MeasuresFirst>(&[
            "a_malformed_append_is_invalid_whatever_else_is_wrong_with_it",
            "of_several_mistakes_the_first_of_the_list_is_named",
        ])
        .and_by(&["more_events_than_the_maximum_are_invalid"]),
        plain::<MeasuresFirst>(&["more_than_one_stream_is_unsupported"]).and_by(&[
            "more_events_than_the_maximum_are_invalid",
            "a_malformed_append_is_invalid_whatever_else_is_wrong_with_it",
        ]),
    ]
}

/// Accepts a commit without events, and stores nothing.
#[derive(Debug, Default)]
struct TakesNothing;
#[async_trait]
impl EventStoreLayer for TakesNothing {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        if append.events.is_empty() {
            return Ok(AppendOutcome::Appended(append.head.clone()));
        }
        store.append(append).await
    }
}

/// Stores the first events of a commit that has too many.
#[derive(Debug, Default)]
struct CutsLongCommits;
#[async_trait]
impl EventStoreLayer for CutsLongCommits {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        if append.events.len() <= Append::MAX_EVENTS {
            return store.append(append).await;
        }
        let mut cut = append.clone();
        cut.events = append.events[..Append::MAX_EVENTS].into();
        store.append(&cut).await
    }
}

/// Stores a time that has no text form as the nearest time that has one.
#[derive(Debug, Default)]
struct MovesFarTimes;
#[async_trait]
impl EventStoreLayer for MovesFarTimes {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let mut near = append.clone();
        near.recorded_at = append.recorded_at.clamp(Timestamp::MIN, Timestamp::MAX);
        store.append(&near).await
    }
}

/// Removes control characters from the names of events.
#[derive(Debug, Default)]
struct DropsControlCharacters;
#[async_trait]
impl EventStoreLayer for DropsControlCharacters {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let mut cleaned = append.clone();
        let mut events = append.events.to_vec();
        for event in &mut events {
            let name: String = event.name.chars().filter(|c| !c.is_control()).collect();
            event.name = name.into();
        }
        cleaned.events = events.into();
        store.append(&cleaned).await
    }
}

/// Reports a smaller limit of commits than it enforces.
#[derive(Debug, Default)]
struct ExceedsItsLimit;
#[async_trait]
impl EventStoreLayer for ExceedsItsLimit {
    fn capabilities(&self, store: &Store) -> Capabilities {
        let mut sound = store.capabilities();
        sound.max_commit_bytes /= 4;
        sound
    }
}

/// Reports a smaller limit of events than it enforces.
#[derive(Debug, Default)]
struct ExceedsItsEventLimit;
#[async_trait]
impl EventStoreLayer for ExceedsItsEventLimit {
    fn capabilities(&self, store: &Store) -> Capabilities {
        let mut sound = store.capabilities();
        sound.max_event_bytes /= 4;
        sound
    }
}

/// Refuses commits of more than half of its limit.
#[derive(Debug, Default)]
struct RefusesBelowItsLimit;
#[async_trait]
impl EventStoreLayer for RefusesBelowItsLimit {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let bytes: usize = append.events.iter().map(|e| e.payload.len()).sum();
        let limit = store.capabilities().max_commit_bytes;
        if bytes > limit / 2 {
            return Err(EventStoreError::TooLarge {
                stream: append.head.stream().clone(),
                bytes: limit.max(bytes) + 1,
                limit,
            });
        }
        store.append(append).await
    }
}

/// Writes a commit that is larger than the event limit in two parts, and checks the head only for
/// the first.
#[derive(Debug, Default)]
struct StoresLargeCommitsInParts;
#[async_trait]
impl EventStoreLayer for StoresLargeCommitsInParts {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let outcome = store.append(append).await?;
        let is_large = append.bytes() > store.capabilities().max_event_bytes;
        if is_large && matches!(outcome, AppendOutcome::Conflict(_)) {
            let mut second = append.clone();
            second.events = append.events[1..].into();
            let _ = append_at_the_tail(store, &second).await?;
        }
        Ok(outcome)
    }
}

/// Stores a commit without its metadata if the metadata is too large.
#[derive(Debug, Default)]
struct DropsLargeMetadata;
#[async_trait]
impl EventStoreLayer for DropsLargeMetadata {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        if append.metadata.bytes() <= Append::MAX_METADATA_BYTES {
            return store.append(append).await;
        }
        let without = append.clone().with_metadata(Metadata::new());
        store.append(&without).await
    }
}

/// Keeps the metadata in the item of the first event, so that both together must fit.
#[derive(Debug, Default)]
struct CountsMetadataToTheEvent;
#[async_trait]
impl EventStoreLayer for CountsMetadataToTheEvent {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let first = append.events.first().map_or(0, EventData::bytes);
        let (bytes, limit) = (
            first + append.metadata.bytes(),
            store.capabilities().max_event_bytes,
        );
        if first <= limit && bytes > limit {
            return Err(EventStoreError::TooLarge {
                stream: append.head.stream().clone(),
                bytes,
                limit,
            });
        }
        store.append(append).await
    }
}

/// Checks the sizes before it looks at anything else.
#[derive(Debug, Default)]
struct MeasuresFirst;
impl MeasuresFirst {
    fn measure(store: &Store, append: &Append) -> Result<(), EventStoreError> {
        let (bytes, limit) = (append.bytes(), store.capabilities().max_commit_bytes);
        let stream = append.head.stream().clone();
        match bytes > limit {
            true => Err(EventStoreError::TooLarge {
                stream,
                bytes,
                limit,
            }),
            false => Ok(()),
        }
    }
}
#[async_trait]
impl EventStoreLayer for MeasuresFirst {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        Self::measure(store, append)?;
        store.append(append).await
    }
    async fn append_all(&self, store: &Store, all: &AppendAll) -> AppendedAll {
        let mut commits = all.commits.iter();
        commits.try_for_each(|append| Self::measure(store, append))?;
        store.append_all(all).await
    }
}
