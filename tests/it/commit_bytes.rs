//! A commit as bytes: format 1, reading it back, and refused bytes.
use bytes::Bytes;
use foldstream::{
    CommitId, Metadata, StreamHead, StreamId, Timestamp, Version,
    ports::{Append, Commit, CommitBytesError, CommitKey, EventData, EventStoreError},
};
use proptest::{collection::vec, option, prelude::*};
use std::sync::Arc;

/// Bytes that a build of format 1 has written. They must be readable forever.
const GOLDEN: &[u8] = b"\x01[\"01900000-0000-7000-8000-0000000000ab\",\"cart#c-1\",3,1767225600000001,\
    [\"cmd-1\",\"corr\",\"cause\",\"ann\",\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\",[[\"tenant\",\"a\\n\\\"b\\\"\"]]],\
    [[\"CartItemAdded\",2,11,null],[\"Sealed\",1,4,\"zip,aes\"]]]\n{\"sku\":\"a\"}\x00\n\xff\x01";

fn key() -> CommitKey {
    CommitKey::new(StreamId::new("cart", "c-1").unwrap(), Version::new(3))
}

fn golden() -> Commit {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let metadata = Metadata::new()
        .with_command_id("cmd-1")
        .with_correlation_id("corr")
        .with_causation_id("cause")
        .with_actor("ann")
        .with_traceparent(trace)
        .with("tenant", "a\n\"b\"");
    let sealed = EventData::new("Sealed", 1, &b"\x00\n\xff\x01"[..]);
    Commit::new(
        key(),
        CommitId::from_u128(0x0190_0000_0000_7000_8000_0000_0000_00ab),
        Timestamp::from_micros(1_767_225_600_000_001),
        metadata,
        [
            EventData::new("CartItemAdded", 2, r#"{"sku":"a"}"#),
            sealed.with_codec(Some("zip,aes".into())),
        ],
    )
}

/// Reads a small commit whose header is changed first.
fn changed(from: &str, to: &str) -> Result<Commit, CommitBytesError> {
    let text =
        r#"["01900000-0000-7000-8000-0000000000ab","cart#c-1",3,7,null,[["Added",1,2,null]]]"#;
    assert!(text.contains(from), "{from}");
    let header = text.replacen(from, to, 1);
    Commit::from_bytes(format!("\u{1}{header}\n{{}}").into_bytes())
}

#[test]
fn format_1_stays_as_it_is() {
    let bytes = golden().to_bytes();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(bytes, GOLDEN, "{}", text(&bytes));
    assert_eq!(Commit::from_bytes(GOLDEN).unwrap(), golden());
}

#[test]
fn a_later_format_is_named_with_the_remedy() {
    for found in (0..=u8::MAX).filter(|found| *found != 1) {
        let mut bytes = GOLDEN.to_vec();
        bytes[0] = found;
        let error = Commit::from_bytes(bytes).unwrap_err();
        assert_eq!(error, CommitBytesError::UnknownFormat { found });
        let text = error.to_string();
        assert!(text.contains("deploy the build"), "{text}");
        let of_store = error.at(&key());
        assert!(
            matches!(&of_store, EventStoreError::UnknownFormat { version, found: f, .. }
                if version.get() == 3 && *f == u64::from(found)),
            "{of_store:?}"
        );
    }
}

#[test]
fn a_commit_that_was_cut_off_anywhere_is_truncated() {
    assert_eq!(
        Commit::from_bytes(Bytes::new()),
        Err(CommitBytesError::Empty)
    );
    for found in 1..GOLDEN.len() {
        match Commit::from_bytes(&GOLDEN[..found]) {
            Err(CommitBytesError::Truncated { found: f, needed }) => {
                assert_eq!(f, found);
                assert!(needed.is_none_or(|n| n == GOLDEN.len()), "{needed:?}");
            }
            other => panic!("{found}: {other:?}"),
        }
    }
}

#[test]
fn a_commit_of_another_key_is_corrupt() {
    let bytes = golden().to_bytes();
    let read = Commit::from_bytes_at(&key(), bytes.clone());
    assert_eq!(read.unwrap(), golden());
    let other = StreamId::new("cart", "c-2").unwrap();
    for key in [
        CommitKey::new(key().stream, Version::new(4)),
        CommitKey::new(other, Version::new(3)),
    ] {
        match Commit::from_bytes_at(&key, bytes.clone()) {
            Err(EventStoreError::Corrupt {
                stream,
                after,
                reason,
            }) => {
                assert_eq!((&stream, after.next()), (&key.stream, key.first_version));
                assert!(reason.contains("cart#c-1 at version 3"), "{reason}");
            }
            read => panic!("{read:?}"),
        }
    }
    let later = Commit::from_bytes_at(&key(), vec![2]);
    assert!(matches!(
        later,
        Err(EventStoreError::UnknownFormat { found: 2, .. })
    ));
}

#[test]
fn bytes_after_the_last_payload_are_refused() {
    let twice = [GOLDEN, GOLDEN].concat();
    let extra = GOLDEN.len();
    let error = Commit::from_bytes(twice).unwrap_err();
    assert_eq!(error, CommitBytesError::TrailingBytes { extra });
}

#[test]
fn a_header_that_is_not_a_commits_is_damaged() {
    let tag = r#"["Added",1,2,null]"#;
    for (from, to) in [
        ("cart#c-1", "cart"),
        ("cart#c-1", "cart#"),
        ("01900000", "0190000"),
        ("\"cart#c-1\"", "7"),
        (",3,", ",0,"),
        (",3,", ",18446744073709551615,"),
        (",3,", ",18446744073709551616,"),
        (",3,", ",-1,"),
        (",3,", ",3.5,"),
        (",7,", ",9223372036854775808,"),
        (",null,[", ",[],["),
        (",null,[", ",[null,null,null,null,null],["),
        (",null,[", ",[null,null,null,null,null,[],null],["),
        (tag, ""),
        (tag, r#"["Added",1,2]"#),
        (tag, r#"["Added",1,2,null,null]"#),
        (tag, r#"["Added",65536,2,null]"#),
        (tag, r#"["Added",1,18446744073709551615,null]"#),
        (
            tag,
            r#"["A",1,18446744073709551000,null],["B",1,9999,null]"#,
        ),
        ("]]]", "]],1]"),
        ("]]]", "]]"),
        ("]]]", "]]] "),
        ("]]]", "]]]]"),
        ("[\"0190", "{\"0190"),
    ] {
        if (from, to) == ("]]]", "]]] ") {
            assert!(changed(from, to).is_ok(), "white space is JSON's own");
            continue;
        }
        match changed(from, to) {
            Err(CommitBytesError::Damaged { reason }) => {
                assert!(!reason.contains("cart"), "quotes what it found: {reason}");
            }
            other => panic!("{from} as {to}: {other:?}"),
        }
    }
    let error = changed("cart#c-1", "cart").unwrap_err().at(&key());
    let text = error.to_string();
    assert!(
        matches!(&error, EventStoreError::Corrupt { after, .. } if after.get() == 2),
        "{error:?}"
    );
    assert!(text.contains("restore the value from a backup"), "{text}");
}

#[test]
fn a_commit_without_events_is_not_read() {
    let nothing = Commit::new(
        key(),
        CommitId::random(),
        Timestamp::now(),
        Metadata::new(),
        [],
    );
    let error = Commit::from_bytes(nothing.to_bytes()).unwrap_err();
    assert!(error.to_string().contains("1 to 65536 events"), "{error}");
}

#[test]
fn the_longest_commit_is_read_back() {
    let events = vec![EventData::new("Added", 1, "{}"); Append::MAX_EVENTS];
    let longest = Commit::new(
        key(),
        CommitId::random(),
        Timestamp::now(),
        Metadata::new(),
        events,
    );
    assert_eq!(Commit::from_bytes(longest.to_bytes()).unwrap(), longest);
}

#[test]
fn a_payload_shares_the_memory_of_the_bytes() {
    let bytes = golden().to_bytes();
    let read = Commit::from_bytes(bytes.clone()).unwrap();
    let payload = read.events[1].payload.as_ptr_range();
    assert_eq!(payload.end, bytes.as_ptr_range().end);
}

#[test]
fn what_a_commit_costs_beside_its_texts_is_as_documented() {
    let size = |events: usize| {
        let events = vec![EventData::new("", 1, ""); events];
        let (id, now) = (CommitId::random(), Timestamp::now());
        let commit = Commit::new(key(), id, now, Metadata::new(), events);
        commit.to_bytes().len() - key().stream.as_str().len()
    };
    assert!(size(1) <= 100, "{}", size(1));
    assert!(size(2) - size(1) <= 20, "{}", size(2) - size(1));
}

/// A command digest must not make a stored commit differ from the one that is read.
#[test]
fn a_commit_of_a_command_with_a_digest_is_equal_when_it_is_read() {
    let head = StreamHead::empty(key().stream);
    let event = [EventData::new("Added", 1, "{}")];
    let append = Append::after(head, CommitId::random(), Timestamp::now(), event)
        .with_metadata(Metadata::new().with_command_digest("request"));
    let commit = append.to_commit();
    assert_eq!(Commit::from_bytes(commit.to_bytes()).unwrap(), commit);
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let user = vec((any::<String>(), any::<String>()), 0..4);
    let five: [_; 5] = std::array::from_fn(|_| option::of(any::<String>()));
    (five, user).prop_map(|([command, correlation, causation, actor, trace], user)| {
        let mut metadata = Metadata::new();
        if let Some(id) = command {
            metadata = metadata.with_command_id(id);
        }
        if let Some(id) = correlation {
            metadata = metadata.with_correlation_id(id);
        }
        if let Some(id) = causation {
            metadata = metadata.with_causation_id(id);
        }
        if let Some(id) = actor {
            metadata = metadata.with_actor(id);
        }
        if let Some(value) = trace {
            metadata = metadata.with_traceparent(value);
        }
        user.into_iter()
            .fold(metadata, |metadata, (key, value)| metadata.with(key, value))
    })
}

fn event() -> impl Strategy<Value = EventData> {
    let payload = vec(any::<u8>(), 0..200);
    let codec = option::of(any::<String>());
    (any::<String>(), any::<u16>(), payload, codec).prop_map(|(name, version, payload, codec)| {
        EventData::new(name, version, payload).with_codec(codec.map(Arc::from))
    })
}

fn commit() -> impl Strategy<Value = Commit> {
    let place = (
        "[A-Za-z0-9_.-]{1,64}",
        "[^\\p{Cc}\\p{Cn}]{1,40}",
        1..=u64::MAX / 2,
    );
    let rest = (any::<u128>(), any::<i64>(), metadata(), vec(event(), 1..6));
    (place, rest).prop_map(
        |((aggregate, id, first), (commit_id, at, metadata, events))| {
            let stream = StreamId::new(&aggregate, &id).unwrap();
            let key = CommitKey::new(stream, Version::new(first));
            let at = Timestamp::from_micros(at);
            Commit::new(key, CommitId::from_u128(commit_id), at, metadata, events)
        },
    )
}

proptest! {
    #[test]
    fn every_field_of_every_commit_comes_back(commit in commit()) {
        let bytes = commit.to_bytes();
        prop_assert_eq!(Commit::from_bytes(bytes.clone()).unwrap(), commit.clone());
        let again = Commit::from_bytes(bytes.clone()).unwrap().to_bytes();
        prop_assert_eq!(again, bytes);
    }

    #[test]
    fn arbitrary_bytes_are_an_error_and_never_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(Commit::from_bytes(bytes.clone()).is_err());
        let mut format_1 = vec![1];
        format_1.extend(bytes);
        prop_assert!(Commit::from_bytes(format_1).is_err());
    }

    /// Damaged bytes yield an error, or a commit that is itself whole.
    #[test]
    fn damaged_bytes_never_panic(
        commit in commit(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = commit.to_bytes().to_vec();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(read) = Commit::from_bytes(bytes) {
            prop_assert_eq!(read.recorded().count(), read.events.len());
            prop_assert_eq!(Commit::from_bytes(read.to_bytes()).unwrap(), read);
        }
    }
}
