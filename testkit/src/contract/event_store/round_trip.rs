//! Cases of events and metadata that are stored and read back.
use super::given::{
    Store, append_of, assert_history, assert_invalid, fresh_stream, fresh_type, must_append, stream,
};
use crate::contract::support::unique;
use bytes::Bytes;
use foldstream::{
    CommitId, Metadata, StreamHead, StreamId, Timestamp,
    ports::{Append, EventData},
};

/// Stores these events as the first commit of a fresh stream, and compares what is read.
async fn comes_back(store: &Store, events: Vec<EventData>, metadata: Metadata) {
    let append = append_of(&StreamHead::empty(fresh_stream()), events).with_metadata(metadata);
    let head = must_append(store, &append).await;
    assert_history(store, head.stream(), &[append.to_commit()]).await;
}

fn json(payload: &'static str) -> EventData {
    EventData::new("Json", 1, payload)
}

/// Names and schema versions come back as given, including unusual ones.
pub async fn names_and_schema_versions_come_back(store: Store) {
    let named = |name: &'static str, schema| EventData::new(name, schema, "1");
    let events = vec![
        named("Added", 1),
        named("added", 2),
        named("shop.cart/Added v2", 700),
        named("Hinzugefügt 追加 🛒", u16::MAX),
        named("\"quoted\" \\ and / spaced", 1),
    ];
    comes_back(&store, events, Metadata::new()).await;
}

/// A JSON payload comes back byte for byte: spaces, order and repetition of keys, escapes.
pub async fn json_payloads_come_back_byte_for_byte(store: Store) {
    let events = vec![
        json("{}"),
        json("[]"),
        json("null"),
        json("true"),
        json("\"\""),
        json(r#"{ "b" : 1,  "a":[ 1 , 2 ] }"#),
        json(r#"{"a":1,"a":2}"#),
        json("{\"a\":\n\t1}"),
        json(r#""\u00e9\ud83d\uded2\/\b\f\n\r\t\"\\ \u0000""#),
        json(r#"{"y":"Json","s":1,"d":[{}]}"#),
    ];
    comes_back(&store, events, Metadata::new()).await;
}

/// Numbers in a JSON payload keep their text: large integers, long fractions, exponents, signs.
pub async fn numbers_in_json_payloads_keep_their_text(store: Store) {
    let events = vec![
        json("18446744073709551615"),
        json("-9223372036854775809"),
        json("123456789012345678901234567890123456789012345678901234567890"),
        json("1.0"),
        json("1.50"),
        json("-0"),
        json("-0.0"),
        json("1E+2"),
        json("1e400"),
        json("0.1000000000000000055511151231257827021181583404541015625"),
    ];
    comes_back(&store, events, Metadata::new()).await;
}

/// White space around a JSON payload belongs to its bytes.
pub async fn white_space_around_a_json_payload_comes_back(store: Store) {
    let events = vec![json(" {}"), json("[1]\n"), json("\r\n\t\"x\" ")];
    comes_back(&store, events, Metadata::new()).await;
}

/// Deeply nested JSON comes back, since a payload is not a native document of the backend.
pub async fn deeply_nested_json_comes_back(store: Store) {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let events = vec![
        EventData::new("Nested", 1, nested(40)),
        EventData::new("Nested", 1, nested(100)),
    ];
    comes_back(&store, events, Metadata::new()).await;
}

/// Text outside of ASCII comes back in payloads as itself and not escaped.
pub async fn unicode_payloads_come_back(store: Store) {
    let events = vec![
        json(r#"{"größe":"été","名前":"追加"}"#),
        json("\"🛒 e\u{301} \u{200d} \u{2028} \u{feff} \u{10ffff}\""),
    ];
    comes_back(&store, events, Metadata::new()).await;
}

/// A payload without codec that is not JSON is `Invalid`, and nothing is stored.
pub async fn a_payload_without_codec_that_is_no_json_is_invalid(store: Store) {
    let stream = fresh_stream();
    let broken: [&'static [u8]; 10] = [
        b"",
        b" ",
        b"{",
        b"{} {}",
        b"{'a':1}",
        b"[1,]",
        b"nan",
        b"01",
        b"\"\xff\"",
        b"\x00\x01",
    ];
    for payload in broken {
        let good = EventData::new("Json", 1, "1");
        let bad = EventData::new("NoJson", 1, Bytes::from_static(payload));
        let append = append_of(&StreamHead::empty(stream.clone()), [good, bad]);
        assert_invalid(&store.append(&append).await);
    }
    assert_history(&store, &stream, &[]).await;
}

/// A payload with a codec is any bytes, and comes back with the codec's name.
pub async fn a_payload_with_a_codec_is_any_bytes(store: Store) {
    let coded = |codec: &str, payload: Vec<u8>| {
        EventData::new("Coded", 3, payload).with_codec(Some(codec.into()))
    };
    let all_bytes: Vec<u8> = (0..=255).collect();
    let events = vec![
        coded("application/octet-stream", all_bytes),
        coded("application/cbor", vec![0xff, 0x00, 0xfe]),
    ];
    comes_back(&store, events, Metadata::new()).await;
    let alone = vec![coded("application/protobuf", Vec::new())];
    comes_back(&store, alone, Metadata::new()).await;
}

/// Events with and without codec may share a commit, and each keeps its own.
pub async fn events_with_and_without_codec_share_a_commit(store: Store) {
    let coded = |codec: &str, payload: &'static [u8]| {
        EventData::new("Coded", 1, payload).with_codec(Some(codec.into()))
    };
    let events = vec![
        json(r#"{"a": 1.0}"#),
        coded("application/cbor", b"\xa0"),
        json(" 2"),
        coded("zstd", b"\x28\xb5\x2f\xfd"),
        // JSON under a codec's name must not be taken for plain JSON.
        coded("application/vnd.shop+json", br#"{"a":1}"#),
    ];
    comes_back(&store, events, Metadata::new()).await;
}

/// Metadata comes back with all of its fields, and fields that were not given stay absent.
pub async fn metadata_comes_back_with_all_fields(store: Store) {
    let full = Metadata::new()
        .with_command_id("command-1")
        .with_correlation_id("correlation 2")
        .with_causation_id("causation/3")
        .with_actor("actor: zoë")
        .with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .with("tenant", "acme")
        .with("größe 🛒", "l'été \"quoted\" \u{0} \n")
        .with("empty value", "");
    let alone = |change: fn(Metadata) -> Metadata| change(Metadata::new());
    for metadata in [
        full,
        Metadata::new(),
        alone(|m| m.with_command_id("c")),
        alone(|m| m.with_correlation_id("c")),
        alone(|m| m.with_causation_id("c")),
        alone(|m| m.with_actor("a")),
        alone(|m| m.with_traceparent("t")),
        alone(|m| m.with("k", "v")),
        // These are names that a store might use for its own fields.
        alone(|m| m.with("command_id", "v").with("actor", "w").with("a", "x")),
    ] {
        comes_back(&store, vec![json("{}"), json("1")], metadata).await;
    }
}

/// Empty texts in metadata differ from absent ones.
pub async fn empty_texts_in_metadata_come_back(store: Store) {
    let metadata = Metadata::new()
        .with_command_id("")
        .with_correlation_id("")
        .with_causation_id("")
        .with_actor("")
        .with_traceparent("")
        .with("", "an empty key");
    comes_back(&store, vec![json("{}")], metadata).await;
}

/// Times come back to the microsecond, including distant times and equal times of consecutive
/// commits.
pub async fn times_come_back_to_the_microsecond(store: Store) {
    let stream = fresh_stream();
    let mut head = StreamHead::empty(stream.clone());
    let mut commits = Vec::new();
    let today: Timestamp = "2026-02-03T04:05:06.700001Z".parse().unwrap();
    for at in [
        Timestamp::MIN,
        Timestamp::from_micros(-1),
        Timestamp::from_micros(0),
        Timestamp::from_micros(1),
        today,
        today,
        Timestamp::MAX,
    ] {
        let append = Append::after(head, CommitId::random(), at, [json("{}")]);
        head = must_append(&store, &append).await;
        commits.push(append.to_commit());
    }
    assert_history(&store, &stream, &commits).await;
}

/// Every commit id comes back whatever its bits are.
pub async fn commit_ids_come_back_whatever_their_bits(store: Store) {
    for bits in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
        let mut append = append_of(&StreamHead::empty(fresh_stream()), [json("{}")]);
        append.commit_id = CommitId::from_u128(bits);
        let head = must_append(&store, &append).await;
        assert_eq!(head.commit_id(), Some(append.commit_id));
        assert_history(&store, head.stream(), &[append.to_commit()]).await;
    }
}

/// Every valid stream id can be used: with `#`, spaces, other scripts and the greatest length.
pub async fn every_valid_stream_id_can_be_used(store: Store) {
    let aggregate = fresh_type();
    let (name, longest_type) = (unique(), "T".repeat(StreamId::MAX_AGGREGATE_LEN));
    let room = StreamId::MAX_LEN - longest_type.len() - 1 - name.len();
    let ids = [
        stream(&aggregate, "a#b#"),
        stream(&aggregate, "#"),
        stream(&aggregate, " "),
        stream(&aggregate, "with space/and\\slash\u{a0}\u{200d}"),
        stream(&aggregate, "größe 追加 🛒"),
        stream(&aggregate, "0"),
        stream(&aggregate, "00"),
        stream(&longest_type, &format!("{name}{}", "x".repeat(room))),
    ];
    let mut appends = Vec::new();
    for id in ids {
        let append = append_of(&StreamHead::empty(id), [json("{}")]);
        must_append(&store, &append).await;
        appends.push(append);
    }
    for append in appends {
        assert_history(&store, append.head.stream(), &[append.to_commit()]).await;
    }
}
