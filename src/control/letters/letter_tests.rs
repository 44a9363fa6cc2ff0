use super::*;
use crate::{
    CommitId, EventHeader, Metadata, RecordedEvent, Version,
    ports::{HeaderName, Message, Offset},
};

fn failed<'a>(stream: &'a StreamId, error: &'a str) -> Failed<'a> {
    Failed {
        class: LetterClass::Permanent,
        error_type: "shop::Declined",
        error,
        event_type: Some("cart.CheckedOut"),
        stream: Some(stream),
        attempts: 2,
        first: Timestamp::from_micros(7),
        last: Timestamp::from_micros(9),
    }
}
fn record() -> StoredRecord {
    let mut message = Message::new("orders", Timestamp::from_micros(5))
        .with_key("cart#a")
        .with_value(vec![0xff, b'\n', 0])
        .with_header(HeaderName::from_static("ce_type"), "cart.CheckedOut")
        .with_header(HeaderName::from_static("empty"), "")
        .with_null_header(HeaderName::from_static("none"))
        .with_header(HeaderName::from_static("ce_type"), vec![0xfe]);
    message.partition = Some(2);
    StoredRecord::new(message, Offset::new(41))
}
fn event() -> RecordedEvent {
    let stream = StreamId::new("cart", "a").unwrap();
    let id = CommitId::from_u128(0xab).event_id(1);
    let metadata = Metadata::new().with_actor("ann").with("k", "v");
    let header = EventHeader::new(
        id,
        stream,
        Version::new(7),
        "CheckedOut",
        Timestamp::from_micros(5),
    )
    .with_commit_last(Version::new(8))
    .with_schema_version(2)
    .with_codec(Some("lz4".into()))
    .with_metadata(metadata);
    RecordedEvent::new(header, vec![0xff, b'\n'].into())
}
fn letter(body: LetterBody) -> DeadLetter {
    let stream = StreamId::new("cart", "a").unwrap();
    let mut letter = DeadLetter::new(&failed(&stream, "no"), body);
    letter.head.id = LetterId::from_u128(1);
    letter.head.fingerprint = Fingerprint::from_u128(2);
    letter
}
fn key() -> RowKey {
    RowKey::new("p", "s")
}

#[test]
fn the_stored_form_of_a_letter_is_fixed() {
    let head = format!(
        r#"{{"i":"{:032x}","c":"permanent","y":"shop::Declined","e":"no","t":"cart.CheckedOut","p":"{:032x}","n":2,"f":7,"l":9}}"#,
        1, 2
    );
    let record_line = r#"{"k":"r","t":"orders","p":2,"o":41,"at":5,"y":6,"b":3,"h":[["ce_type",15],["empty",0],["none",null],["ce_type",1]]}"#;
    let event_line = r#"{"k":"e","i":"00000000-0000-0000-0000-0000000000ab/1","s":"cart#a","v":7,"l":8,"n":"CheckedOut","e":2,"c":"lz4","at":5,"m":[null,null,null,"ann",null,[["k","v"]]],"b":2}"#;
    let bytes = |line: &str, parts: &[u8]| [format!("{head}\n{line}\n").as_bytes(), parts].concat();
    for (body, expected) in [
        (
            LetterBody::Record(record()),
            bytes(record_line, b"cart#a\xff\n\0cart.CheckedOut\xfe"),
        ),
        (LetterBody::Event(event()), bytes(event_line, b"\xff\n")),
    ] {
        let letter = letter(body);
        let (line, value) = encode(&key(), &letter).unwrap();
        assert_eq!(value, expected);
        assert_eq!(line, head);
        assert_eq!(decode(&key(), &value).unwrap(), letter);
        for end in 0..value.len() {
            assert!(decode(&key(), &value.slice(..end)).is_err(), "{end}");
        }
        let longer = [&value[..], b"x"].concat().into();
        assert!(decode(&key(), &longer).is_err());
    }
}

#[test]
fn a_record_keeps_what_is_absent_and_what_is_empty() {
    for message in [
        Message::new("t", Timestamp::default()),
        Message::new("t", Timestamp::default())
            .with_key("")
            .with_value(""),
    ] {
        let record = StoredRecord::new(message, Offset::new(0));
        assert_eq!(
            StoredRecord::from_bytes(&record.to_bytes()).unwrap(),
            record
        );
    }
    let letter = encode(&key(), &letter(LetterBody::Event(event())))
        .unwrap()
        .1;
    assert!(StoredRecord::from_bytes(&letter).is_err());
}

#[test]
fn a_letter_that_is_written_again_keeps_its_id_and_its_beginning_and_counts_on() {
    let older = letter(LetterBody::Event(event()));
    let stream = StreamId::new("cart", "a").unwrap();
    let newer = Failed {
        class: LetterClass::Poison,
        attempts: 4,
        first: Timestamp::from_micros(20),
        last: Timestamp::from_micros(30),
        ..failed(&stream, "now it is this")
    };
    let repeated = older.after(&older.head);
    assert_eq!(repeated.head, older.head, "the same write, repeated");
    let newer = DeadLetter::new(&newer, LetterBody::Event(event())).after(&older.head);
    assert_eq!(newer.head.id, older.head.id);
    assert_eq!(newer.head.attempts, 6);
    assert_eq!(
        (newer.head.first.as_micros(), newer.head.last.as_micros()),
        (7, 30)
    );
    assert_eq!(
        (newer.head.class, &*newer.head.error),
        (LetterClass::Poison, "now it is this")
    );
}

#[test]
fn a_long_error_is_cut_between_characters_and_says_so() {
    let stream = StreamId::new("cart", "a").unwrap();
    let error = format!("x{}", "ü".repeat(LetterHead::MAX_ERROR));
    let letter = DeadLetter::new(&failed(&stream, &error), LetterBody::Event(event()));
    let kept = letter.head.error;
    assert!(kept.len() <= LetterHead::MAX_ERROR && kept.len() > LetterHead::MAX_ERROR - 4);
    assert!(kept.ends_with("ü..."), "{kept}");
}

#[test]
fn a_head_of_a_newer_build_can_be_listed() {
    let (line, _) = encode(&key(), &letter(LetterBody::Event(event()))).unwrap();
    let newer = line
        .replace("permanent", "cosmic")
        .replace('}', r#","zz":1}"#);
    let read: LetterHead = serde_json::from_str(&newer).unwrap();
    assert_eq!(read.class, LetterClass::Unknown);
    for class in ["transient", "throttled", "permanent", "poison", "fatal"] {
        let read: LetterClass = serde_json::from_str(&format!("{class:?}")).unwrap();
        assert_eq!(read.as_str(), class);
    }
}

#[test]
fn a_letter_says_that_its_event_was_given_up_and_says_so_after_a_later_failure() {
    let given_up = letter(LetterBody::Event(event())).given_up();
    let (line, value) = encode(&key(), &given_up).unwrap();
    assert!(line.ends_with(r#","g":true}"#), "{line}");
    assert_eq!(decode(&key(), &value).unwrap(), given_up);
    let failed_again = letter(LetterBody::Event(event()));
    assert!(!failed_again.head.is_given_up);
    assert!(failed_again.after(&given_up.head).head.is_given_up);
}
