//! The record on the bus: its exact form, reading it back, and refused records.
use bytes::Bytes;
use foldstream::{
    CommitId, EventHeader, Metadata, RecordedEvent, SourceUri, StreamId, Timestamp, Version,
    adapter::{
        WireError, from_message, previous_record, recorded_event, to_message, to_message_after,
    },
    ports::{HeaderName, Message},
};
use proptest::{collection::btree_map, option, prelude::*};
use std::sync::Arc;

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn sent_at() -> Timestamp {
    Timestamp::from_micros(1_767_225_700_000_000)
}

fn source() -> SourceUri {
    SourceUri::new("urn:shop").unwrap()
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
    recorded_event(header, Bytes::from_static(br#"{"sku":"a"}"#))
}

fn headers(message: &Message) -> Vec<(&str, &str)> {
    fn text(value: Option<&[u8]>) -> &str {
        std::str::from_utf8(value.unwrap()).unwrap()
    }
    let all = message.headers.iter();
    all.map(|(name, value)| (name.as_str(), text(value)))
        .collect()
}

#[test]
fn an_event_with_nothing_special_has_exactly_these_headers() {
    let message = to_message(&plain(), &topic(), &source(), sent_at());
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
            ("ce_fsversion", "3"),
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
                .with_traceparent(TRACE),
        );
    let previous = Version::new(1);
    let message = to_message_after(&event, &topic(), &source(), sent_at(), previous).unwrap();
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
            ("ce_fsversion", "3"),
            ("ce_fsschema", "2"),
            ("ce_fscommitlast", "5"),
            ("ce_fsprev", "1"),
            ("ce_fscodec", "application/cbor"),
            ("ce_correlationid", "corr"),
            ("ce_causationid", "cause"),
            ("ce_traceparent", TRACE),
            ("traceparent", TRACE),
            ("fs_command", "cmd"),
            ("fs_actor", "ann"),
            ("fs_user_a", "1"),
            ("fs_user_tenant", "t"),
        ]
    );
    assert_eq!(from_message(&message).unwrap(), event);
}

/// The names of attributes must follow CloudEvents, because SDKs drop all others.
#[test]
fn the_names_of_attributes_have_lower_case_letters_and_digits_only_and_at_most_20() {
    let mut event = plain();
    event.header = event
        .header
        .with_commit_last(Version::new(5))
        .with_schema_version(2)
        .with_codec(Some("x".into()))
        .with_metadata(
            Metadata::new()
                .with_causation_id("cause")
                .with_correlation_id("corr")
                .with_traceparent(TRACE),
        );
    let message = to_message_after(&event, &topic(), &source(), sent_at(), Version::NONE).unwrap();
    let names = message.headers.iter().map(|(name, _)| name);
    let attributes: Vec<_> = names.filter_map(|name| name.strip_prefix("ce_")).collect();
    assert_eq!(attributes.len(), 14);
    for name in attributes {
        let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        assert!(name.bytes().all(is_allowed) && name.len() <= 20, "{name}");
    }
}

#[test]
fn the_previous_record_is_named_only_where_it_is_not_the_version_before() {
    for (previous, written) in [(0, Some("0")), (1, Some("1")), (2, None)] {
        let previous = Version::new(previous);
        let message = to_message_after(&plain(), &topic(), &source(), sent_at(), previous).unwrap();
        assert_eq!(message.header("ce_fsprev"), written);
        assert_eq!(from_message(&message).unwrap(), plain());
        assert_eq!(
            previous_record(&message).unwrap(),
            written.map(|_| previous)
        );
    }
    for previous in [3, 4] {
        let previous = Version::new(previous);
        let refused = to_message_after(&plain(), &topic(), &source(), sent_at(), previous);
        let Err(WireError::Invalid { header, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(header, "ce_fsprev");
    }
    let message = to_message(&plain(), &topic(), &source(), sent_at());
    assert_eq!(previous_record(&message).unwrap(), None);
}

#[test]
fn the_trace_of_whoever_forwards_a_record_is_not_the_events() {
    let trace = HeaderName::from_static("traceparent");
    let message = to_message(&plain(), &topic(), &source(), sent_at()).with_header(trace, TRACE);
    assert_eq!(from_message(&message).unwrap(), plain());
}

#[test]
fn a_header_without_a_value_is_absent() {
    let all = to_message_after(&plain(), &topic(), &source(), sent_at(), Version::NONE).unwrap();
    let null = |name: &'static str| {
        let mut message = all.clone();
        message.headers.retain(|n, _| *n != *name);
        message.with_null_header(HeaderName::from_static(name))
    };
    for name in [
        "ce_fsschema",
        "ce_correlationid",
        "fs_actor",
        "fs_user_x",
        "ce_fsformat",
    ] {
        assert_eq!(from_message(&null(name)).unwrap(), plain(), "{name}");
    }
    assert_eq!(previous_record(&null("ce_fsprev")).unwrap(), None);
    let missing = from_message(&null("ce_fsversion"));
    assert!(matches!(
        missing,
        Err(WireError::Missing {
            header: "ce_fsversion"
        })
    ));
}

#[test]
fn headers_that_are_not_known_are_ignored() {
    let event = plain();
    let message = to_message(&event, &topic(), &source(), sent_at())
        .with_header(HeaderName::from_static("ce_fsformat"), "1")
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
        .with_header(HeaderName::from_static("ce_fsformat"), "2");
    let error = from_message(&message).unwrap_err();
    assert!(
        matches!(error, WireError::UnknownFormat { found: 2 }),
        "{error}"
    );
}

#[test]
fn a_tombstone_is_an_error() {
    let mut message = to_message(&plain(), &topic(), &source(), sent_at());
    message.value = None;
    assert!(matches!(from_message(&message), Err(WireError::Tombstone)));
}

#[test]
fn a_key_that_is_no_stream_is_an_error() {
    for key in [&b"cart"[..], b"\xff#1", b""] {
        let mut message = to_message(&plain(), &topic(), &source(), sent_at());
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
        "ce_fsversion",
    ] {
        let mut message = to_message(&plain(), &topic(), &source(), sent_at());
        message.headers.retain(|n, _| *n != *name);
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
        ("ce_fsversion", "0"),
        ("ce_fsversion", "-1"),
        ("ce_type", "order.CartItemAdded"),
        ("ce_time", "yesterday"),
        ("ce_fsschema", "65536"),
        ("ce_fscommitlast", "2"),
        ("ce_fsformat", "x"),
        ("ce_fsprev", "3"),
        ("ce_fsprev", "-1"),
    ] {
        let mut message = to_message(&plain(), &topic(), &source(), sent_at());
        message.headers.retain(|n, _| *n != *name);
        match from_message(&message.with_header(HeaderName::from_static(name), value)) {
            Err(WireError::Invalid { header, .. }) => assert_eq!(header, name),
            other => panic!("{name} {value}: {other:?}"),
        }
    }
}

#[test]
fn a_header_that_is_not_text_is_named() {
    for name in ["ce_type", "ce_correlationid", "fs_actor", "fs_user_x"] {
        let mut message = to_message(&plain(), &topic(), &source(), sent_at());
        message.headers.retain(|n, _| *n != *name);
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
        recorded_event(header, payload.into())
    }
}

proptest! {
    #[test]
    fn every_event_comes_back_as_it_was_sent(event in event(), back_by in 1..5u64) {
        let previous = Version::new(event.header.version.get().saturating_sub(back_by));
        let write = |event| to_message_after(event, &topic(), &source(), sent_at(), previous);
        let message = write(&event).unwrap();
        let back = from_message(&message).unwrap();
        prop_assert_eq!(&back, &event);
        let is_gap = previous.next() != event.header.version;
        prop_assert_eq!(previous_record(&message).unwrap(), is_gap.then_some(previous));
        // The record that was read back is written as the same bytes.
        prop_assert_eq!(write(&back).unwrap(), message);
    }
}
