//! Cases of every codec, and the helpers of all cases.
use super::CodecFixture;
use crate::contract::support::{at_once, unique};
use foldstream::{
    Bytes, CommitId, EventHeader, Opened, PayloadCodec, PayloadContext, PayloadError, Sealed,
    StreamId, Timestamp, Version, ports::StoredSnapshot,
};
use std::{collections::BTreeSet, sync::Arc};

pub(super) type Fixture = Arc<dyn CodecFixture>;

pub(super) fn fresh_stream(fixture: &Fixture) -> StreamId {
    fixture.stream(&unique())
}

/// Returns the header of the second event of a commit, at version 7.
pub(super) fn header(fixture: &Fixture, stream: StreamId) -> EventHeader {
    let id = CommitId::random().event_id(1);
    let (version, name) = (Version::new(7), fixture.event_name());
    EventHeader::new(id, stream, version, name, Timestamp::from_micros(0))
}

pub(super) fn snapshot(stream: StreamId) -> StoredSnapshot {
    StoredSnapshot::new(stream, Version::new(7), CommitId::random(), 1, Bytes::new())
}

/// Seals a payload that the codec must seal, according to the fixture.
pub(super) async fn must_seal(
    codec: &dyn PayloadCodec,
    context: &PayloadContext<'_>,
    payload: &Bytes,
) -> Bytes {
    match codec.seal(context, payload).await {
        Ok(Sealed::Payload(sealed)) => sealed,
        Ok(Sealed::AsItIs) => panic!(
            "the codec leaves the fixture's event {context:?} as it is: let the fixture name a payload, an event and a \
             stream that it seals"
        ),
        Err(error) => panic!("sealing failed: {error:?}"),
    }
}

pub(super) async fn must_open(
    codec: &dyn PayloadCodec,
    context: &PayloadContext<'_>,
    sealed: &Bytes,
    expected: &Bytes,
) {
    match codec.open(context, sealed).await {
        Ok(Opened::Payload(opened)) => assert_eq!(opened, expected, "other bytes came back"),
        other => panic!("opening failed: {other:?}"),
    }
}

/// The tag is 1 to 64 printable ASCII characters without a comma, not `shredded`, and the same in
/// every instance.
pub async fn the_tag_can_be_stored_and_never_changes(fixture: Fixture) {
    let codec = fixture.codec();
    let tag = codec.tag();
    assert!((1..=64).contains(&tag.len()), "{} bytes", tag.len());
    let allowed = |b: u8| (b.is_ascii_graphic() || b == b' ') && b != b',';
    assert!(tag.bytes().all(allowed), "{tag:?}");
    assert_ne!(tag, foldstream::PayloadCodecs::SHREDDED);
    for _ in 0..3 {
        assert_eq!(codec.tag(), tag);
        assert_eq!(fixture.codec().tag(), tag);
    }
}

/// A payload that was sealed is opened to the same bytes in the same context, also if it is empty,
/// large or arbitrary bytes.
pub async fn what_was_sealed_is_opened_to_the_same_bytes(fixture: Fixture) {
    let (codec, header) = (fixture.codec(), header(&fixture, fresh_stream(&fixture)));
    let context = PayloadContext::of_event(&header);
    let sealed = must_seal(&*codec, &context, &fixture.payload()).await;
    must_open(&*codec, &context, &sealed, &fixture.payload()).await;
    let all_bytes: Bytes = (0..=255).cycle().take(1000).collect();
    let noise: Bytes = (0..100_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for payload in [
        Bytes::new(),
        "{}".into(),
        "größe 🛒".into(),
        vec![b'x'; 300_000].into(),
        all_bytes,
        noise,
    ] {
        match codec.seal(&context, &payload).await {
            Ok(Sealed::Payload(sealed)) => must_open(&*codec, &context, &sealed, &payload).await,
            Ok(Sealed::AsItIs) => {}
            Err(error) => panic!("{} bytes cannot be sealed: {error:?}", payload.len()),
        }
    }
}

/// A sealed payload is opened by another instance, as in another process.
pub async fn another_instance_opens_what_was_sealed(fixture: Fixture) {
    let header = header(&fixture, fresh_stream(&fixture));
    let context = PayloadContext::of_event(&header);
    let codec = fixture.codec();
    let sealed = must_seal(&*codec, &context, &fixture.payload()).await;
    drop(codec);
    must_open(&*fixture.codec(), &context, &sealed, &fixture.payload()).await;
}

/// A snapshot is opened to the same bytes, left unsealed, or refused.
pub async fn a_snapshot_is_opened_to_the_same_bytes_or_refused(fixture: Fixture) {
    let (codec, snapshot) = (fixture.codec(), snapshot(fresh_stream(&fixture)));
    let context = PayloadContext::of_snapshot(&snapshot);
    match codec.seal(&context, &fixture.payload()).await {
        Ok(Sealed::Payload(sealed)) => {
            must_open(&*codec, &context, &sealed, &fixture.payload()).await;
        }
        Ok(Sealed::AsItIs) | Err(PayloadError::Refused { .. }) => {}
        Err(error) => panic!("sealing a snapshot failed: {error:?}"),
    }
}

/// Several tasks at once, on one stream or on several, each get back their own payload.
pub async fn several_tasks_at_once_do_not_disturb_each_other(fixture: Fixture) {
    let shared = fresh_stream(&fixture);
    let codec = fixture.codec();
    let opened = at_once(8, |n| {
        let (fixture, codec, shared) = (fixture.clone(), codec.clone(), shared.clone());
        async move {
            let stream = if n < 4 {
                shared
            } else {
                fresh_stream(&fixture)
            };
            let header = header(&fixture, stream);
            let context = PayloadContext::of_event(&header);
            // The payloads compress equally well, and have another text in each task.
            let mut payload = fixture.payload().to_vec();
            payload.extend(n.to_string().into_bytes());
            let payload = Bytes::from(payload);
            for _ in 0..8 {
                let sealed = must_seal(&*codec, &context, &payload).await;
                tokio::task::yield_now().await;
                must_open(&*codec, &context, &sealed, &payload).await;
            }
            payload
        }
    })
    .await;
    assert_eq!(opened.into_iter().collect::<BTreeSet<_>>().len(), 8);
}

/// Bytes that were never sealed are an error, or a payload if the codec cannot tell, but never a
/// panic.
pub async fn foreign_bytes_are_an_error_or_a_payload_but_never_a_panic(fixture: Fixture) {
    let (codec, header) = (fixture.codec(), header(&fixture, fresh_stream(&fixture)));
    let context = PayloadContext::of_event(&header);
    // The key exists after this, so that the codec looks at the bytes.
    must_seal(&*codec, &context, &fixture.payload()).await;
    for foreign in [
        Bytes::new(),
        "{}".into(),
        vec![0; 7].into(),
        vec![0xff; 64].into(),
        vec![0x80; 5000].into(),
    ] {
        match codec.open(&context, &foreign).await {
            Ok(Opened::Payload(_)) | Err(PayloadError::Damaged { .. }) => {}
            other => panic!("{} foreign bytes are {other:?}", foreign.len()),
        }
    }
}
