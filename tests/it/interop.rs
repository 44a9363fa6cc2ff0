//! Agreement with programs in other languages: the records of events are those that the readers in
//! `tests/interop` take for CloudEvents, and keys go to the partitions that Java's producer
//! chooses.
use bytes::Bytes;
use foldstream::{
    CommitId, EventHeader, Metadata, RecordedEvent, SourceUri, StreamId, Timestamp, Version,
    adapter::{from_message, kafka_partition, recorded_event, to_message_after},
    ports::Message,
};
use serde_json::{Map, Value, json};

/// The records that the readers read, each with the attributes and the data that they must find.
const RECORDS: &str = include_str!("../interop/records.json");
const PARTITIONS: &str = include_str!("../interop/partitions.csv");

fn event(stream: &str, version: u64, name: &'static str, data: &'static [u8]) -> RecordedEvent {
    let commit = CommitId::from_u128(0x0190_0000_0000_7000_8000_0000_0000_00ab);
    let at = Timestamp::from_micros(1_767_225_600_000_001);
    let stream: StreamId = stream.parse().unwrap();
    let header = EventHeader::new(commit.event_id(0), stream, Version::new(version), name, at);
    recorded_event(header, Bytes::from_static(data))
}

/// Returns events of every shape, each with the version of its stream's previous record.
fn events() -> Vec<(RecordedEvent, u64)> {
    let plain = event(
        "cart#c-1",
        1,
        "CartItemAdded",
        br#"{"sku":"a","price":"1.65"}"#,
    );
    let foreign = event(
        "cart#größe 🛒#1",
        2,
        "Größe geändert",
        "{\"text\":\"naïve 🛒\\u0000\"}".as_bytes(),
    );
    let mut everything = event("cart#c-1", 7, "CartItemAdded", br#"{"sku":null,"list":[]}"#);
    everything.header = everything
        .header
        .with_commit_last(Version::new(9))
        .with_schema_version(3)
        .with_metadata(
            Metadata::new()
                .with("tenant", "t 1")
                .with_actor("ann")
                .with_command_id("cmd")
                .with_causation_id("cause")
                .with_correlation_id("corr")
                .with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        );
    let mut binary = event("cart#c-2", 1, "CartItemAdded", &[0xa0, 0x00, 0xff, 0x7f]);
    binary.header = binary.header.with_codec(Some("application/cbor".into()));
    vec![(plain, 0), (foreign, 1), (everything, 4), (binary, 0)]
}

fn record(message: &Message, event: &RecordedEvent, previous: u64) -> Value {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let headers = message
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), text(value.unwrap())]));
    json!({
        "key": text(message.key.as_ref().unwrap()),
        "headers": headers.collect::<Vec<_>>(),
        "value": hex(message.value.as_ref().unwrap()),
        "attributes": attributes(event, previous),
        "data": serde_json::from_slice::<Value>(&event.payload).ok(),
    })
}

/// Returns the CloudEvents attributes of an event. They are made from the event, and not from the
/// headers of its record.
fn attributes(event: &RecordedEvent, previous: u64) -> Map<String, Value> {
    let header = &event.header;
    let (metadata, version) = (&header.metadata, header.version.get());
    let text = |value: &str| Some(Value::from(value));
    let is = |is_so: bool, value: String| is_so.then(|| Value::from(value));
    let codec = header.codec.as_deref();
    let all = [
        ("specversion", text("1.0")),
        ("id", text(&header.event_id.to_string())),
        ("source", text("urn:shop")),
        (
            "type",
            text(&format!("{}.{}", header.stream.aggregate(), header.name)),
        ),
        ("time", text("2026-01-01T00:00:00.000001Z")),
        ("subject", text(header.stream.id())),
        ("datacontenttype", text(codec.unwrap_or("application/json"))),
        ("fsversion", text(&version.to_string())),
        (
            "fsschema",
            is(
                header.schema_version != 1,
                header.schema_version.to_string(),
            ),
        ),
        (
            "fscommitlast",
            is(
                header.commit_last != header.version,
                header.commit_last.to_string(),
            ),
        ),
        ("fsprev", is(previous + 1 != version, previous.to_string())),
        ("fscodec", codec.map(Value::from)),
        (
            "correlationid",
            metadata.correlation_id().map(|id| id.as_str().into()),
        ),
        (
            "causationid",
            metadata.causation_id().map(|id| id.as_str().into()),
        ),
        ("traceparent", metadata.traceparent().map(Value::from)),
    ];
    let present = all
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    present.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_records_that_other_languages_read_are_those_that_are_sent() {
    let source = SourceUri::new("urn:shop").unwrap();
    let sent = events().into_iter().map(|(event, previous)| {
        let at = Timestamp::from_micros(1_767_225_700_000_000);
        let before = Version::new(previous);
        let message = to_message_after(&event, &"carts".into(), &source, at, before).unwrap();
        assert_eq!(from_message(&message).unwrap(), event);
        record(&message, &event, previous)
    });
    let sent = Value::Array(sent.collect());
    let known: Value = serde_json::from_str(RECORDS).unwrap();
    assert!(
        sent == known,
        "write this into tests/interop/records.json, and run .ci/interop:\n{sent:#}"
    );
}

#[test]
fn keys_go_to_the_partitions_that_javas_producer_chooses() {
    let mut lines = PARTITIONS.lines();
    let columns: Vec<u32> = lines
        .next()
        .unwrap()
        .split(',')
        .skip(1)
        .map(|column| column.strip_prefix("of ").unwrap().parse().unwrap())
        .collect();
    assert_eq!(columns, [1, 2, 3, 12, 50, 1000]);
    let mut keys = 0;
    for line in lines {
        let (key, partitions) = line.split_once(',').unwrap();
        let byte = |i: usize| u8::from_str_radix(&key[i..i + 2], 16).unwrap();
        let key: Vec<u8> = (0..key.len()).step_by(2).map(byte).collect();
        let found: Vec<u32> = columns.iter().map(|n| kafka_partition(&key, *n)).collect();
        let expected: Vec<u32> = partitions.split(',').map(|n| n.parse().unwrap()).collect();
        assert_eq!(found, expected, "{line}");
        keys += 1;
    }
    assert_eq!(keys, 1_000);
}
