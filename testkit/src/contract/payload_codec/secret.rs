//! Cases of codecs that encrypt, and of those whose keys can be deleted.
use super::cases::{Fixture, fresh_stream, header, must_open, must_seal, snapshot};
use foldstream::{
    Bytes, CommitId, EventHeader, Opened, PayloadCodec, PayloadContext, PayloadError, Sealed,
    Version,
};

async fn must_be_damaged(
    codec: &dyn PayloadCodec,
    context: &PayloadContext<'_>,
    sealed: &Bytes,
    what: &str,
) {
    match codec.open(context, sealed).await {
        Err(PayloadError::Damaged { .. }) => {}
        // The message does not contain the payload, which may be a secret.
        Ok(Opened::Payload(_)) => panic!("{what}: it was opened"),
        other => panic!("{what}: expected Damaged, found {other:?}"),
    }
}

/// A sealed payload shows nothing of its text.
pub async fn a_sealed_payload_does_not_show_its_text(fixture: Fixture) {
    let (codec, header) = (fixture.codec(), header(&fixture, fresh_stream(&fixture)));
    let payload = fixture.payload();
    let sealed = must_seal(&*codec, &PayloadContext::of_event(&header), &payload).await;
    for part in payload.windows(8) {
        assert!(!sealed.windows(8).any(|w| w == part), "it shows its text");
    }
}

/// The same payload in the same context is sealed to different bytes each time, since a nonce must
/// not be used twice.
pub async fn the_same_payload_is_never_sealed_to_the_same_bytes(fixture: Fixture) {
    let header = header(&fixture, fresh_stream(&fixture));
    let context = PayloadContext::of_event(&header);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..8 {
        // The instance is a new one: a counter that starts again in each process would repeat its
        // nonces.
        let codec = fixture.codec();
        let sealed = must_seal(&*codec, &context, &fixture.payload()).await;
        assert!(seen.insert(sealed), "the same bytes came twice");
    }
}

/// A payload is `Damaged` in any other context: another stream, commit, version, place, name or
/// schema version, or as a snapshot.
pub async fn in_another_context_a_payload_is_damaged(fixture: Fixture) {
    let (codec, header) = (fixture.codec(), header(&fixture, fresh_stream(&fixture)));
    let context = PayloadContext::of_event(&header);
    let sealed = must_seal(&*codec, &context, &fixture.payload()).await;
    let changed = |change: fn(&mut EventHeader)| {
        let mut header = header.clone();
        change(&mut header);
        header
    };
    let mut stream = header.clone();
    stream.stream = fresh_stream(&fixture);
    // The key of the stream exists after this, so that the codec must find out that the payload
    // belongs to another stream.
    must_seal(
        &*codec,
        &PayloadContext::of_event(&stream),
        &fixture.payload(),
    )
    .await;
    for (what, other) in [
        ("another stream", stream),
        (
            "another commit",
            changed(|h| h.event_id = CommitId::random().event_id(h.event_id.index())),
        ),
        (
            "another place in the commit",
            changed(|h| h.event_id = h.event_id.commit_id().event_id(2)),
        ),
        (
            "another version",
            changed(|h| h.version = Version::new(h.version.get() + 1)),
        ),
        (
            "another name",
            changed(|h| h.name = format!("{}x", h.name).into()),
        ),
        ("another schema version", changed(|h| h.schema_version += 1)),
    ] {
        must_be_damaged(&*codec, &PayloadContext::of_event(&other), &sealed, what).await;
    }
    let mut snapshot = snapshot(header.stream.clone());
    snapshot.commit_id = header.event_id.commit_id();
    let context = PayloadContext::of_snapshot(&snapshot);
    must_be_damaged(&*codec, &context, &sealed, "a snapshot").await;
}

/// A sealed payload with any changed byte is `Damaged`.
pub async fn a_changed_byte_is_damage(fixture: Fixture) {
    let (codec, header) = (fixture.codec(), header(&fixture, fresh_stream(&fixture)));
    let context = PayloadContext::of_event(&header);
    let sealed = must_seal(&*codec, &context, &fixture.payload()).await;
    for at in 0..sealed.len() {
        let mut changed = sealed.to_vec();
        changed[at] ^= 1 << (at % 8);
        let what = format!("byte {at} of {} changed", sealed.len());
        must_be_damaged(&*codec, &context, &changed.into(), &what).await;
    }
}

/// A sealed payload that was cut short or extended is `Damaged`.
pub async fn a_payload_cut_short_is_damaged(fixture: Fixture) {
    let (codec, header) = (fixture.codec(), header(&fixture, fresh_stream(&fixture)));
    let context = PayloadContext::of_event(&header);
    let sealed = must_seal(&*codec, &context, &fixture.payload()).await;
    for length in (0..sealed.len()).step_by(7) {
        let what = format!("{length} of {} bytes", sealed.len());
        must_be_damaged(&*codec, &context, &sealed.slice(..length), &what).await;
    }
    let longer: Bytes = [&sealed[..], b"x"].concat().into();
    must_be_damaged(&*codec, &context, &longer, "a byte more").await;
}

/// After the key is deleted, events and snapshots of the stream are `Shredded` in every instance
/// and forever.
pub async fn without_its_key_a_payload_is_shredded(fixture: Fixture) {
    let (codec, stream) = (fixture.codec(), fresh_stream(&fixture));
    let (header, snapshot) = (header(&fixture, stream.clone()), snapshot(stream.clone()));
    let contexts = [
        PayloadContext::of_event(&header),
        PayloadContext::of_snapshot(&snapshot),
    ];
    let mut sealed = Vec::new();
    for context in &contexts {
        // The codec may refuse to seal a snapshot.
        if let Ok(Sealed::Payload(payload)) = codec.seal(context, &fixture.payload()).await {
            must_open(&*codec, context, &payload, &fixture.payload()).await;
            sealed.push((context, payload));
        }
    }
    assert!(!sealed.is_empty(), "nothing was sealed");
    fixture.shred(&stream).await;
    for codec in [codec, fixture.codec()] {
        for (context, payload) in &sealed {
            for _ in 0..2 {
                match codec.open(context, payload).await {
                    Ok(Opened::Shredded) => {}
                    Ok(Opened::Payload(_)) => panic!("it was opened without its key"),
                    Err(error) => panic!("expected Shredded, found {error:?}"),
                }
            }
        }
    }
}

/// Sealing for a stream whose key was deleted is `Refused`, and does not create the key again.
pub async fn sealing_without_the_key_is_refused(fixture: Fixture) {
    let (codec, header) = (fixture.codec(), header(&fixture, fresh_stream(&fixture)));
    let context = PayloadContext::of_event(&header);
    let sealed = must_seal(&*codec, &context, &fixture.payload()).await;
    fixture.shred(&header.stream).await;
    for codec in [codec, fixture.codec()] {
        match codec.seal(&context, &fixture.payload()).await {
            Err(PayloadError::Refused { .. }) => {}
            Ok(_) => panic!("it was sealed without its key"),
            Err(error) => panic!("expected Refused, found {error:?}"),
        }
        let opened = codec.open(&context, &sealed).await;
        assert!(matches!(opened, Ok(Opened::Shredded)), "the key is back");
    }
}

/// Deleting a stream's key does not change the payloads of other streams.
pub async fn other_streams_keep_their_keys(fixture: Fixture) {
    let codec = fixture.codec();
    let (gone, kept) = (fresh_stream(&fixture), fresh_stream(&fixture));
    let header_of = |stream| header(&fixture, stream);
    let (gone, kept) = (header_of(gone), header_of(kept));
    let context = PayloadContext::of_event(&kept);
    must_seal(
        &*codec,
        &PayloadContext::of_event(&gone),
        &fixture.payload(),
    )
    .await;
    let sealed = must_seal(&*codec, &context, &fixture.payload()).await;
    fixture.shred(&gone.stream).await;
    for codec in [codec, fixture.codec()] {
        must_open(&*codec, &context, &sealed, &fixture.payload()).await;
        let again = must_seal(&*codec, &context, &fixture.payload()).await;
        must_open(&*codec, &context, &again, &fixture.payload()).await;
    }
}
