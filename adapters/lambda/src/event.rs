//! The events that invoke the function.
use crate::attribute::attributes;
use foldstream::{Timestamp, publisher::Notice};
use foldstream_dynamodb::stream_record;
use serde_json::{Map, Value};
use std::cmp::Ordering;

/// An event that the function understands.
#[derive(Debug)]
pub(crate) enum Event {
    /// Records of the events table's stream, ordered by sequence number.
    Batch(Vec<StreamRecord>),
    /// A request to try dirty streams again.
    Sweep,
}

/// A record of the events table's stream.
#[derive(Debug)]
pub(crate) struct StreamRecord {
    pub(crate) sequence: SequenceNumber,
    /// The time of the write; `None` if the record does not tell.
    pub(crate) written: Option<Timestamp>,
    /// The notice; `None` for a record that concerns no publisher.
    pub(crate) notice: Option<Notice>,
}

/// The error returned for an event that the function does not understand. Nothing of the event was
/// published, and Lambda delivers it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEvent {
    /// The event is neither a batch of records nor a schedule.
    #[error(
        "the event is neither a batch of a DynamoDB stream, with Records, nor a scheduled event: \
         map the function to the stream of the events table, and let a schedule send its default input or {{\"foldstream\":\"sweep\"}}"
    )]
    Unknown,
    /// The records are of another service.
    #[error(
        "record {index} is of {source_name}, not of aws:dynamodb: map the function to the stream of the events table and to nothing else"
    )]
    ForeignSource {
        /// The place of the record in the event.
        index: usize,
        /// The service that the record names.
        source_name: String,
    },
    /// A record lacks a field that every record of a DynamoDB stream has.
    #[error(
        "record {index} has no valid {field}: send records as DynamoDB Streams writes them, without a transformation in between"
    )]
    Field {
        /// The place of the record in the event.
        index: usize,
        /// The name of the field.
        field: &'static str,
    },
}

impl Event {
    /// Reads an event.
    ///
    /// # Errors
    /// [`InvalidEvent`] if the event is none of a stream and none of a schedule.
    pub(crate) fn read(json: &Value) -> Result<Self, InvalidEvent> {
        let event = json.as_object().ok_or(InvalidEvent::Unknown)?;
        if let Some(records) = event.get("Records") {
            let records = records.as_array().ok_or(InvalidEvent::Unknown)?;
            let records = records.iter().enumerate();
            let read = records.map(|(index, json)| StreamRecord::read(index, json));
            let mut records = read.collect::<Result<Vec<_>, _>>()?;
            records.sort_by(|a, b| a.sequence.cmp(&b.sequence));
            return Ok(Self::Batch(records));
        }
        if is_schedule(event) {
            Ok(Self::Sweep)
        } else {
            Err(InvalidEvent::Unknown)
        }
    }
}

fn is_schedule(event: &Map<String, Value>) -> bool {
    let is = |field: &str, text: &str| event.get(field).and_then(Value::as_str) == Some(text);
    is("foldstream", "sweep") || is("detail-type", "Scheduled Event")
}

impl StreamRecord {
    fn read(index: usize, json: &Value) -> Result<Self, InvalidEvent> {
        let lacks = |field| InvalidEvent::Field { index, field };
        if let Some(source) = json.get("eventSource").and_then(Value::as_str)
            && source != "aws:dynamodb"
        {
            let source_name = source.to_owned();
            return Err(InvalidEvent::ForeignSource { index, source_name });
        }
        let name = json.get("eventName").and_then(Value::as_str);
        let name = name.ok_or_else(|| lacks("eventName"))?;
        let change = json.get("dynamodb").ok_or_else(|| lacks("dynamodb"))?;
        let sequence = change.get("SequenceNumber").and_then(Value::as_str);
        let sequence = sequence.and_then(SequenceNumber::read);
        let sequence = sequence.ok_or_else(|| lacks("SequenceNumber"))?;
        let keys = change.get("Keys").ok_or_else(|| lacks("Keys"))?;
        Ok(Self {
            written: change.get("ApproximateCreationDateTime").and_then(time),
            notice: notice(name, keys, change.get("NewImage"), &sequence),
            sequence,
        })
    }
}

/// Returns the notice of a record. A record that no publisher can do anything about is logged and
/// passed over, since it would stop its shard otherwise.
fn notice(
    name: &str,
    keys: &Value,
    image: Option<&Value>,
    sequence: &SequenceNumber,
) -> Option<Notice> {
    // An image that cannot be read is one that the publisher reads from the table.
    let image = image.and_then(attributes);
    let keys = attributes(keys).unwrap_or_default();
    match stream_record::notice(name, keys, image) {
        Ok(notice) => notice,
        Err(error) => {
            tracing::warn!(
                sequence = sequence.as_str(),
                error = foldstream::chain(&error),
                "a record of the stream was passed over"
            );
            None
        }
    }
}

/// Reads a time in seconds. 0 is written where the time is not known.
fn time(json: &Value) -> Option<Timestamp> {
    let seconds = json.as_f64().filter(|seconds| *seconds > 0.0)?;
    // More precise than a second is of no interest, and a number that is too large is cut.
    #[allow(clippy::cast_possible_truncation)]
    let micros = (seconds * 1e6) as i64;
    Some(Timestamp::from_micros(micros))
}

/// The sequence number of a record: a decimal number of up to 40 digits. It is reported as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SequenceNumber(String);

impl SequenceNumber {
    fn read(text: &str) -> Option<Self> {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| Self(text.to_owned()))
    }
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
    fn digits(&self) -> &str {
        self.0.trim_start_matches('0')
    }
}
impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.digits(), other.digits());
        a.len().cmp(&b.len()).then_with(|| a.cmp(b))
    }
}
impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(sequence: &str) -> Value {
        json!({
            "eventName": "INSERT", "eventSource": "aws:dynamodb",
            "dynamodb": {
                "Keys": {"pk": {"S": "order#7"}, "sk": {"N": "1"}},
                "SequenceNumber": sequence, "ApproximateCreationDateTime": 1_700_000_000.5,
            },
        })
    }
    fn batch(event: &Value) -> Vec<StreamRecord> {
        match Event::read(event) {
            Ok(Event::Batch(records)) => records,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn records_are_ordered_by_the_value_of_their_sequence_numbers() {
        let numbers = ["100000000000000000000000", "99", "0100", "9"];
        let event = json!({"Records": numbers.map(record)});
        let ordered: Vec<_> = batch(&event)
            .iter()
            .map(|r| r.sequence.as_str().to_owned())
            .collect();
        assert_eq!(ordered, ["9", "99", "0100", "100000000000000000000000"]);
    }

    #[test]
    fn a_record_tells_the_time_of_its_write_unless_it_is_not_known() {
        let mut unknown = record("1");
        unknown["dynamodb"]["ApproximateCreationDateTime"] = json!(0);
        let records = batch(&json!({"Records": [record("0"), unknown]}));
        let at = Timestamp::from_micros(1_700_000_000_500_000);
        assert_eq!((records[0].written, records[1].written), (Some(at), None));
    }

    #[test]
    fn an_event_of_a_schedule_is_a_request_to_sweep() {
        for event in [
            json!({"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}),
            json!({"source": "aws.scheduler", "detail-type": "Scheduled Event"}),
            json!({"foldstream": "sweep"}),
        ] {
            assert!(matches!(Event::read(&event), Ok(Event::Sweep)), "{event}");
        }
    }

    #[test]
    fn a_malformed_event_is_an_error_that_says_what_to_do() {
        for event in [
            json!({}),
            json!([]),
            json!(null),
            json!({"Records": {}}),
            json!({"detail-type": "EC2 Instance State-change Notification"}),
        ] {
            let error = Event::read(&event).unwrap_err();
            assert_eq!(error, InvalidEvent::Unknown, "{event}");
            assert!(error.to_string().contains("map the function to the stream"));
        }
        let fields = ["eventName", "dynamodb", "SequenceNumber", "Keys"];
        for field in fields {
            let mut bad = record("5");
            let inner = bad["dynamodb"].as_object_mut().unwrap();
            inner.remove(field);
            bad.as_object_mut().unwrap().remove(field);
            let error = Event::read(&json!({"Records": [record("1"), bad]})).unwrap_err();
            assert_eq!(error, InvalidEvent::Field { index: 1, field });
        }
        for number in ["", "x", "-1", "1 "] {
            let error = Event::read(&json!({"Records": [record(number)]})).unwrap_err();
            let field = "SequenceNumber";
            assert_eq!(error, InvalidEvent::Field { index: 0, field }, "{number:?}");
        }
        let mut kinesis = record("1");
        kinesis["eventSource"] = json!("aws:kinesis");
        let error = Event::read(&json!({"Records": [kinesis]})).unwrap_err();
        assert!(matches!(
            error,
            InvalidEvent::ForeignSource { index: 0, .. }
        ));
    }

    #[test]
    fn only_inserts_of_commits_are_notices() {
        let mut modified = record("1");
        modified["eventName"] = json!("MODIFY");
        let mut removed = record("2");
        removed["eventName"] = json!("REMOVE");
        let mut foreign = record("3");
        foreign["dynamodb"]["Keys"] = json!({"id": {"S": "x"}});
        let mut unreadable = record("4");
        unreadable["dynamodb"]["NewImage"] = json!({"e": {"X": 1}});
        let event = json!({"Records": [modified, removed, foreign, unreadable]});
        let notices: Vec<_> = batch(&event).into_iter().map(|r| r.notice).collect();
        assert_eq!(notices[..3], [None, None, None]);
        assert!(matches!(notices[3], Some(Notice::Key(_))));
    }
}
