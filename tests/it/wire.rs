//! The record on the bus: its exact form, what is read back, and what is refused.
use bytes::Bytes;
use foldstream::{
    CommitId, EventHeader, Metadata, RecordedEvent, StreamId, Timestamp, Version, WireError,
    from_message,
    ports::{HeaderName, Message},
    to_message,
};
use proptest::{collection::btree_map, option, prelude::*};
use std::sync::Arc;

fn sent_at() -> Timestamp {
    Timestamp::from_micros(1_767_225_700_000_000)
}

fn topic() -> Arc<str> {
    "GlobalEvents".into()
}

fn plain() -> RecordedEvent {
    let commit = CommitId::from_u128(0x0190_0000_0000_7000_8000_0000_0000_00ab);
    let header = EventHeader::new(
        commit.event_id(0),
        StreamId::new("cart", "c-1").unwrap(),
        Version::new(3),
        "CartItemAdded",
        Timestamp::from_micros(1_767_225_600_000_001),
    );
    RecordedEvent::new(header, Bytes::from_static(br#"{"sku":"a"}"#))
}

fn headers(message: &Message) -> Vec<(&str, &str)> {
    fn text(value: &Option<Bytes>) -> &str {
        std::str::from_utf8(value.as_deref().unwrap()).unwrap()
    }
    let all = message.headers.iter();
    all.map(|(name, value)| (name.as_str(), text(value)))
        .collect()
}

#[test]
fn an_event_with_nothing_special_has_exactly_these_headers() {
    let message = to_message(&plain(), &topic(), "urn:shop", sent_at());
    assert_eq!(&*message.topic, "GlobalEvents");
    assert_eq!(message.key.as_deref(), Some(&b"cart#c-1"[..]));
    assert_eq!(message.partition, None);
    assert_eq!(message.value.as_deref(), Some(&br#"{"sku":"a"}"#[..]));
    assert_eq!(message.timestamp, sent_at());
    assert_eq!(
        headers(&message),
        [
            ("content-type", "application/json"),
            ("ce_specversion", "1.0"),
            ("ce_id", "01900000-0000-7000-8000-0000000000ab/0"),
            ("ce_source", "urn:shop"),
            ("ce_type", "cart.CartItemAdded"),
            ("ce_time", "2026-01-01T00:00:00.000001Z"),
            ("ce_subject", "c-1"),
            ("fs_version", "3"),
        ]
    );
}

#[test]
fn an_event_with_everything_has_exactly_these_headers() {
    let mut event = plain();
    event.header = event
        .header
        .with_commit_last(Version::new(5))
        .with_schema_version(2)
        .with_codec(Some("application/cbor".into()))
        .with_metadata(
            Metadata::new()
                .with("tenant", "t")
                .with("a", "1")
                .with_actor("ann")
                .with_command_id("cmd")
                .with_causation_id("cause")
                .with_correlation_id("corr")
                .with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        );
    let message = to_message(&event, &topic(), "urn:shop", sent_at());
    assert_eq!(
        headers(&message),
        [
            ("content-type", "application/cbor"),
            ("ce_specversion", "1.0"),
            ("ce_id", "01900000-0000-7000-8000-0000000000ab/0"),
            ("ce_source", "urn:shop"),
            ("ce_type", "cart.CartItemAdded"),
            ("ce_time", "2026-01-01T00:00:00.000001Z"),
            ("ce_subject", "c-1"),
            ("fs_version", "3"),
            ("fs_schema", "2"),
            ("fs_commit_last", "5"),
            ("fs_codec", "application/cbor"),
            ("fs_correlation", "corr"),
            ("fs_causation", "cause"),
            ("fs_command", "cmd"),
            ("fs_actor", "ann"),
            ("fs_user_a", "1"),
            ("fs_user_tenant", "t"),
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            ),
        ]
    );
    assert_eq!(from_message(&message).unwrap(), event);
}

#[test]
fn headers_that_are_not_known_are_ignored() {
    let event = plain();
    let message = to_message(&event, &topic(), "urn:shop", sent_at())
        .with_header(HeaderName::from_static("fs_format"), "1")
        .with_header(
            HeaderName::from_static("x-other"),
            Bytes::from_static(&[0xff]),
        );
    assert_eq!(from_message(&message).unwrap(), event);
}

#[test]
fn an_unknown_format_is_its_own_error_whatever_else_is_wrong() {
    let message = Message::new("t", Timestamp::default())
        .with_key("no stream")
        .with_value("")
        .with_header(HeaderName::from_static("fs_format"), "2");
    let error = from_message(&message).unwrap_err();
    assert!(
        matches!(error, WireError::UnknownFormat { found: 2 }),
        "{error}"
    );
}

#[test]
fn a_tombstone_is_an_error() {
    let mut message = to_message(&plain(), &topic(), "urn:shop", sent_at());
    message.value = None;
    assert!(matches!(from_message(&message), Err(WireError::Tombstone)));
}

#[test]
fn a_key_that_is_no_stream_is_an_error() {
    for key in [&b"cart"[..], b"\xff#1", b""] {
        let mut message = to_message(&plain(), &topic(), "urn:shop", sent_at());
        message.key = Some(Bytes::from_static(key));
        assert!(matches!(from_message(&message), Err(WireError::Key { .. })));
    }
}

#[test]
fn a_missing_header_is_named() {
    for name in [
        "ce_specversion",
        "ce_id",
        "ce_type",
        "ce_time",
        "fs_version",
    ] {
        let mut message = to_message(&plain(), &topic(), "urn:shop", sent_at());
        message.headers.retain(|(n, _)| *n != *name);
        match from_message(&message) {
            Err(WireError::Missing { header }) => assert_eq!(header, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_malformed_header_is_named() {
    for (name, value) in [
        ("ce_specversion", "2.0"),
        ("ce_id", "01900000-0000-7000-8000-0000000000ab"),
        // Versions start at 1.
        ("fs_version", "0"),
        ("fs_version", "-1"),
        ("ce_type", "order.CartItemAdded"),
        ("ce_time", "yesterday"),
        ("fs_schema", "65536"),
        ("fs_commit_last", "2"),
        ("fs_format", "x"),
    ] {
        let mut message = to_message(&plain(), &topic(), "urn:shop", sent_at());
        message.headers.retain(|(n, _)| *n != *name);
        match from_message(&message.with_header(HeaderName::from_static(name), value)) {
            Err(WireError::Invalid { header, .. }) => assert_eq!(header, name),
            other => panic!("{name} {value}: {other:?}"),
        }
    }
}

#[test]
fn a_header_that_is_not_text_is_named() {
    for name in ["ce_type", "fs_actor", "fs_user_x"] {
        let mut message = to_message(&plain(), &topic(), "urn:shop", sent_at());
        message.headers.retain(|(n, _)| *n != *name);
        match from_message(
            &message.with_header(HeaderName::from_static(name), Bytes::from_static(&[0xff])),
        ) {
            Err(WireError::NotText { header }) => assert_eq!(header, *name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let text = || option::of("\\PC{0,12}");
    let ids = (text(), text(), text(), text(), text());
    (ids, btree_map("[^\\x00\n]{0,6}", ".{0,6}", 0..4)).prop_map(|(ids, user)| {
        let mut m = Metadata::new();
        let (correlation, causation, command, actor, trace) = ids;
        let set = |m: Metadata, value: Option<String>, with: fn(Metadata, String) -> Metadata| {
            value.into_iter().fold(m, with)
        };
        m = set(m, correlation, |m, v| m.with_correlation_id(v));
        m = set(m, causation, |m, v| m.with_causation_id(v));
        m = set(m, command, |m, v| m.with_command_id(v));
        m = set(m, actor, |m, v| m.with_actor(v));
        m = set(m, trace, |m, v| m.with_traceparent(v));
        user.into_iter().fold(m, |m, (k, v)| m.with(k, v))
    })
}

prop_compose! {
    fn event()(
        commit in any::<u128>(),
        aggregate in "[A-Za-z0-9_.-]{1,64}",
        id in "\\PC{1,40}",
        (index, before, after) in (any::<u16>(), 0..1u64 << 40, 0..3u64),
        name in "\\PC{0,20}",
        micros in -62_167_219_200_000_000i64..253_402_300_800_000_000,
        schema in any::<u16>(),
        codec in option::of("\\PC{0,20}"),
        metadata in metadata(),
        payload in any::<Vec<u8>>(),
    ) -> RecordedEvent {
        let version = before + u64::from(index) + 1;
        let header = EventHeader::new(
            CommitId::from_u128(commit).event_id(index),
            StreamId::new(&aggregate, &id).unwrap(),
            Version::new(version),
            name,
            Timestamp::from_micros(micros),
        );
        let header = header
            .with_commit_last(Version::new(version + after))
            .with_schema_version(schema)
            .with_codec(codec.map(Into::into))
            .with_metadata(metadata);
        RecordedEvent::new(header, payload.into())
    }
}

proptest! {
    #[test]
    fn every_event_comes_back_as_it_was_sent(event in event()) {
        let message = to_message(&event, &topic(), "urn:shop", sent_at());
        let back = from_message(&message).unwrap();
        prop_assert_eq!(&back, &event);
        // And its copy is sent as the same bytes.
        prop_assert_eq!(to_message(&back, &topic(), "urn:shop", sent_at()), message);
    }
}
