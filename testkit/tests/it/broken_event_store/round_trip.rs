//! Stores that do not return what they were given.
use super::{Answer, Appended, Read, Store, Suspects, full};
use async_trait::async_trait;
use bytes::Bytes;
use foldstream::{
    CommitId, Metadata, StreamId, Timestamp,
    ports::{Append, AppendOutcome, EventData, EventStore, EventStoreError},
};
use foldstream_testkit::intercept::EventStoreLayer;

pub(super) fn suspects() -> Suspects {
    vec![
        full::<LowersNames>(&["names_and_schema_versions_come_back"]),
        full::<ForgetsSchemaVersions>(&["names_and_schema_versions_come_back"])
            .and_by(&["a_payload_with_a_codec_is_any_bytes"]),
        full::<ReformatsJson>(&["json_payloads_come_back_byte_for_byte"]).and_by(&[
            "numbers_in_json_payloads_keep_their_text",
            "white_space_around_a_json_payload_comes_back",
            "events_with_and_without_codec_share_a_commit",
        ]),
        full::<ReadsNumbersAsFloats>(&["numbers_in_json_payloads_keep_their_text"])
            .and_by(&["events_with_and_without_codec_share_a_commit"]),
        full::<TrimsPayloads>(&["white_space_around_a_json_payload_comes_back"])
            .and_by(&["events_with_and_without_codec_share_a_commit"]),
        full::<NestsAtMostThirtyTwo>(&["deeply_nested_json_comes_back"]),
        full::<KeepsAscii>(&["unicode_payloads_come_back"]),
        full::<TakesAnyPayload>(&["a_payload_without_codec_that_is_no_json_is_invalid"]).and_by(&[
            "a_scan_neither_skips_nor_repeats_commits_while_others_append",
            "a_malformed_append_is_invalid_whatever_else_is_wrong_with_it",
            "a_scan_sees_everything_stored_before_it_began",
            "a_scan_of_large_commits_sees_everything",
            "each_commit_is_in_exactly_one_segment",
            "an_event_and_metadata_at_their_limits_are_taken",
        ]),
        full::<TakesBytesForText>(&["a_payload_with_a_codec_is_any_bytes"])
            .and_by(&["events_with_and_without_codec_share_a_commit"]),
        full::<HasOneCodecACommit>(&["events_with_and_without_codec_share_a_commit"])
            .and_by(&["a_payload_with_a_codec_is_any_bytes"]),
        full::<DropsTheActor>(&["metadata_comes_back_with_all_fields"])
            .and_by(&["empty_texts_in_metadata_come_back"]),
        full::<DropsMetadata>(&["metadata_comes_back_with_all_fields"]).and_by(&[
            "empty_texts_in_metadata_come_back",
            "an_event_and_metadata_at_their_limits_are_taken",
        ]),
        full::<DropsEmptyTexts>(&["empty_texts_in_metadata_come_back"]),
        full::<KeepsMilliseconds>(&["times_come_back_to_the_microsecond"]),
        full::<StampsVersionSeven>(&["commit_ids_come_back_whatever_their_bits"]),
        full::<CutsStreamIds>(&["every_valid_stream_id_can_be_used"]),
    ]
}

/// Reads commits and changes every event.
async fn read_changed(
    store: &Store,
    what: Read,
    change: impl Fn(&mut EventData) + Send + Sync,
) -> Answer<'static> {
    let mut found = what.all(store).await?;
    for commit in &mut found {
        let mut events = commit.events.to_vec();
        events.iter_mut().for_each(&change);
        commit.events = events.into();
    }
    Ok(found.into())
}

#[derive(Debug, Default)]
struct LowersNames;
#[async_trait]
impl EventStoreLayer for LowersNames {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        // A collation that folds characters outside of ASCII.
        read_changed(store, what, |event| {
            if !event.name.is_ascii() {
                event.name = event.name.to_lowercase().into();
            }
        })
        .await
    }
}

#[derive(Debug, Default)]
struct ForgetsSchemaVersions;
#[async_trait]
impl EventStoreLayer for ForgetsSchemaVersions {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        read_changed(store, what, |event| event.schema_version = 1).await
    }
}

/// Keeps JSON as a tree and not as text.
#[derive(Debug, Default)]
struct ReformatsJson;
#[async_trait]
impl EventStoreLayer for ReformatsJson {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        read_changed(store, what, |event| {
            if let Ok(tree) = serde_json::from_slice::<serde_json::Value>(&event.payload) {
                event.payload = tree.to_string().into();
            }
        })
        .await
    }
}

#[derive(Debug, Default)]
struct ReadsNumbersAsFloats;
#[async_trait]
impl EventStoreLayer for ReadsNumbersAsFloats {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        read_changed(store, what, |event| {
            if let Ok(number) = serde_json::from_slice::<f64>(&event.payload)
                && number.abs() > 1.0
            {
                event.payload = number.to_string().into();
            }
        })
        .await
    }
}

#[derive(Debug, Default)]
struct TrimsPayloads;
#[async_trait]
impl EventStoreLayer for TrimsPayloads {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        read_changed(store, what, |event| {
            if event.codec.is_none() {
                event.payload = Bytes::copy_from_slice(event.payload.trim_ascii());
            }
        })
        .await
    }
}

/// Keeps JSON as documents of DynamoDB do.
#[derive(Debug, Default)]
struct NestsAtMostThirtyTwo;
#[async_trait]
impl EventStoreLayer for NestsAtMostThirtyTwo {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        if append
            .events
            .iter()
            .any(|e| e.payload.starts_with(&[b'['; 33]))
        {
            return Err(EventStoreError::Invalid {
                reason: "nested more than 32 deep".into(),
            });
        }
        store.append(append).await
    }
}

#[derive(Debug, Default)]
struct KeepsAscii;
#[async_trait]
impl EventStoreLayer for KeepsAscii {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        read_changed(store, what, |event| {
            if event.codec.is_none() && !event.payload.is_ascii() {
                let text = String::from_utf8_lossy(&event.payload);
                event.payload = text.replace(|c: char| !c.is_ascii(), "?").into();
            }
        })
        .await
    }
}

/// Does not check payloads: bytes that are not JSON are stored under a codec, which a read removes.
#[derive(Debug, Default)]
struct TakesAnyPayload;
#[async_trait]
impl EventStoreLayer for TakesAnyPayload {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let mut tagged = append.clone();
        let events = append.events.iter().cloned().map(|event| {
            let is_plain = event.codec.is_none();
            if is_plain {
                event.with_codec(Some("none".into()))
            } else {
                event
            }
        });
        tagged.events = events.collect();
        Ok(match store.append(&tagged).await? {
            AppendOutcome::Repeated(mut stored) => {
                for commit in &mut stored {
                    commit.events = commit.events.iter().cloned().map(untagged).collect();
                }
                AppendOutcome::Repeated(stored)
            }
            other => other,
        })
    }
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        read_changed(store, what, |event| *event = untagged(event.clone())).await
    }
}

fn untagged(event: EventData) -> EventData {
    match event.codec.as_deref() {
        Some("none") => event.with_codec(None),
        _ => event,
    }
}

#[derive(Debug, Default)]
struct TakesBytesForText;
#[async_trait]
impl EventStoreLayer for TakesBytesForText {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        read_changed(store, what, |event| {
            let text = String::from_utf8_lossy(&event.payload).into_owned();
            event.payload = text.into();
        })
        .await
    }
}

#[derive(Debug, Default)]
struct HasOneCodecACommit;
#[async_trait]
impl EventStoreLayer for HasOneCodecACommit {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = what.all(store).await?;
        for commit in &mut found {
            let codec = commit.events[0].codec.clone();
            let events = commit.events.iter().cloned();
            commit.events = events.map(|e| e.with_codec(codec.clone())).collect();
        }
        Ok(found.into())
    }
}

/// Reads commits and rebuilds their metadata from some of its parts.
async fn read_with_metadata(
    store: &Store,
    what: Read,
    change: impl Fn(&Metadata) -> Metadata,
) -> Answer<'static> {
    let mut found = what.all(store).await?;
    for commit in &mut found {
        commit.metadata = change(&commit.metadata);
    }
    Ok(found.into())
}

#[derive(Debug, Default)]
struct DropsMetadata;
#[async_trait]
impl EventStoreLayer for DropsMetadata {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        read_with_metadata(store, what, |_| Metadata::new()).await
    }
}

/// Copies the fields that satisfy `keep`. A field that is copied by no call is lost.
fn copied(from: &Metadata, with_actor: bool, keep: fn(&str) -> bool) -> Metadata {
    let mut to = Metadata::new();
    if let Some(id) = from.command_id().filter(|id| keep(id.as_str())) {
        to = to.with_command_id(id.clone());
    }
    if let Some(id) = from.correlation_id().filter(|id| keep(id.as_str())) {
        to = to.with_correlation_id(id.clone());
    }
    if let Some(id) = from.causation_id().filter(|id| keep(id.as_str())) {
        to = to.with_causation_id(id.clone());
    }
    if let Some(actor) = from.actor().filter(|id| with_actor && keep(id.as_str())) {
        to = to.with_actor(actor.clone());
    }
    if let Some(value) = from.traceparent().filter(|t| keep(t)) {
        to = to.with_traceparent(value);
    }
    from.user().fold(to, |to, (key, value)| to.with(key, value))
}

#[derive(Debug, Default)]
struct DropsTheActor;
#[async_trait]
impl EventStoreLayer for DropsTheActor {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        read_with_metadata(store, what, |m| copied(m, false, |_| true)).await
    }
}

#[derive(Debug, Default)]
struct DropsEmptyTexts;
#[async_trait]
impl EventStoreLayer for DropsEmptyTexts {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        read_with_metadata(store, what, |m| copied(m, true, |text| !text.is_empty())).await
    }
}

/// Truncates times to milliseconds unless they are recent, as those of its own clock.
#[derive(Debug, Default)]
struct KeepsMilliseconds;
#[async_trait]
impl EventStoreLayer for KeepsMilliseconds {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = what.all(store).await?;
        for commit in &mut found {
            let micros = commit.recorded_at.as_micros();
            if Timestamp::now().since(commit.recorded_at).as_secs() > 3600 {
                commit.recorded_at = Timestamp::from_micros(micros / 1000 * 1000);
            }
        }
        Ok(found.into())
    }
}

/// Keeps only ids of UUID version 7.
#[derive(Debug, Default)]
struct StampsVersionSeven;
#[async_trait]
impl EventStoreLayer for StampsVersionSeven {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = what.all(store).await?;
        for commit in &mut found {
            let bits = commit.id.as_u128() & !(0xf << 76) | 0x7 << 76;
            commit.id = CommitId::from_u128(bits);
        }
        Ok(found.into())
    }
}

#[derive(Debug, Default)]
struct CutsStreamIds;
#[async_trait]
impl EventStoreLayer for CutsStreamIds {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = what.all(store).await?;
        for commit in &mut found {
            if let Some(text) = commit.stream.as_str().get(..255) {
                commit.stream = StreamId::parse(text).unwrap();
            }
        }
        Ok(found.into())
    }
}
