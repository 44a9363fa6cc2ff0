//! Records of the change stream of the events table, as notices for a publisher.
//!
//! A change stream reports every write to the table. Only an insert stores a commit. Whatever else
//! happens to an item tells a publisher nothing: a publisher in poller mode removes markers, and
//! an operator may delete or restore items.
//!
//! A record of the change stream reaches a program by the streams API, or as an event of a Lambda
//! function. Each has types of its own for attribute values. The caller converts them to those of
//! DynamoDB's SDK.
use crate::{
    attributes::{Attributes, BadAttribute, required, to_number, to_text},
    event_store::decode_commit,
};
use foldstream::{StreamId, Version, ports::CommitKey, publisher::Notice};

/// The event name of a record that reports a new item.
const INSERT: &str = "INSERT";

/// Returns the notice in a record of the change stream; `None` if the record reports no insert.
///
/// The notice is the whole commit if the new image holds it. Otherwise it is the commit's key: of
/// each part of a commit that was split, of a record without a new image, and of an image that this
/// build cannot read. The publisher then reads the commit from the events table, and says what is
/// wrong with a stream that cannot be read.
///
/// # Example
/// ```
/// use aws_sdk_dynamodb::types::AttributeValue;
/// use foldstream_dynamodb::stream_record::notice;
/// use std::collections::HashMap;
///
/// let keys = || HashMap::from([
///     ("pk".to_owned(), AttributeValue::S("order#7".into())),
///     ("sk".to_owned(), AttributeValue::N("3".into())),
/// ]);
/// let inserted = notice("INSERT", keys(), None)?.ok_or("an insert is a notice")?;
/// assert_eq!(inserted.stream().as_str(), "order#7");
/// assert_eq!(notice("MODIFY", keys(), None)?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`StreamRecordError`] if the key of the inserted item is not that of a commit: another program
/// has written to the events table. No publisher can do anything about it, so pass over the record.
pub fn notice(
    event_name: &str,
    mut keys: Attributes,
    new_image: Option<Attributes>,
) -> Result<Option<Notice>, StreamRecordError> {
    if event_name != INSERT {
        return Ok(None);
    }
    let stream = required(to_text(keys.remove("pk"), "pk")?, "pk")?;
    let stream = stream
        .parse::<StreamId>()
        .map_err(|error| BadAttribute::new("pk", &foldstream::chain(&error)))?;
    let first = required(to_number(keys.remove("sk"), "sk")?, "sk")?;
    if first == 0 {
        return Err(BadAttribute::new("sk", "0 is not a version of an event").into());
    }
    let key = CommitKey::new(stream, Version::new(first));
    let commit = new_image.and_then(|image| decode_commit(&key, image));
    Ok(Some(commit.map_or(Notice::Key(key), Notice::Commit)))
}

/// The error returned for a record of an item that is not a commit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the inserted item is not a commit")]
pub struct StreamRecordError {
    #[from]
    source: BadAttribute,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DynamoDbConfig, PublishMode,
        attributes::{number, text},
        event_store::encode_commit,
    };
    use aws_sdk_dynamodb::types::AttributeValue;
    use foldstream::{
        CommitId, StreamHead, Timestamp,
        ports::{Append, EventData},
    };

    fn append(events: Vec<EventData>) -> Append {
        let head = StreamHead::empty(StreamId::new("order", "7").unwrap());
        Append::after(head, CommitId::random(), Timestamp::now(), events)
    }
    /// Returns the items of an append in a mode with markers.
    fn items(append: &Append) -> Vec<Attributes> {
        let config = DynamoDbConfig::default().with_publish_mode(PublishMode::Both);
        encode_commit(append, &config).unwrap()
    }
    fn keys(item: &Attributes) -> Attributes {
        let of = |name: &str| (name.to_owned(), item[name].clone());
        Attributes::from([of("pk"), of("sk")])
    }
    fn inserted(item: &Attributes) -> Notice {
        let notice = notice("INSERT", keys(item), Some(item.clone()));
        notice.unwrap().unwrap()
    }

    #[test]
    fn an_insert_is_the_whole_commit() {
        let events = vec![
            EventData::new("Placed", 2, r#"{"n":1}"#),
            EventData::new("Photo", 1, vec![0xff]).with_codec(Some("image/png".into())),
        ];
        let append = append(events);
        let items = items(&append);
        assert_eq!(inserted(&items[0]), Notice::Commit(append.to_commit()));
    }

    #[test]
    fn each_part_of_a_split_commit_is_only_a_key() {
        let large = format!("\"{}\"", "x".repeat(250_000));
        let append = append(vec![EventData::new("Large", 1, large); 3]);
        let items = items(&append);
        assert_eq!(items.len(), 3);
        for (item, version) in items.iter().zip(1..) {
            let stream = append.head.stream().clone();
            let key = CommitKey::new(stream, Version::new(version));
            assert_eq!(inserted(item), Notice::Key(key));
        }
    }

    #[test]
    fn whatever_is_not_an_insert_is_no_notice() {
        let item = &items(&append(vec![EventData::new("Placed", 1, "{}")]))[0];
        for name in ["MODIFY", "REMOVE", "", "insert"] {
            let ignored = notice(name, keys(item), Some(item.clone()));
            assert_eq!(ignored, Ok(None), "{name}");
        }
    }

    #[test]
    fn an_image_that_is_missing_or_unreadable_leaves_the_key() {
        let append = append(vec![EventData::new("Placed", 1, "{}")]);
        let item = &items(&append)[0];
        let key = Notice::Key(append.to_commit().key());
        assert_eq!(notice("INSERT", keys(item), None), Ok(Some(key.clone())));
        let damages: [(&str, AttributeValue); 5] = [
            ("f", number(2)),
            ("c", text("no stamp")),
            ("e", text("[")),
            ("n", number(9)),
            ("sk", number(4)),
        ];
        for (name, value) in damages {
            let mut image = item.clone();
            image.insert(name.into(), value);
            let read = notice("INSERT", keys(item), Some(image));
            assert_eq!(read, Ok(Some(key.clone())), "{name}");
        }
    }

    #[test]
    fn an_item_that_is_not_a_commit_is_an_error() {
        let not_commits: [(Option<AttributeValue>, Option<AttributeValue>); 6] = [
            (None, Some(number(1))),
            (Some(text("order#7")), None),
            (Some(text("no stream")), Some(number(1))),
            (Some(number(7)), Some(number(1))),
            (Some(text("order#7")), Some(number(0))),
            (Some(text("order#7")), Some(text("1"))),
        ];
        for (pk, sk) in not_commits {
            let mut keys = Attributes::new();
            keys.extend(pk.clone().map(|pk| ("pk".to_owned(), pk)));
            keys.extend(sk.clone().map(|sk| ("sk".to_owned(), sk)));
            let error = notice("INSERT", keys, None).unwrap_err();
            let text = foldstream::chain(&error);
            assert!(
                text.contains("not a commit: attribute"),
                "{pk:?} {sk:?}: {text}"
            );
        }
    }
}
