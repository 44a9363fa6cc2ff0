//! Streams with holes: finding them, and exporting their items as they are stored.
//!
//! A backup is not taken at one instant for all items. A restored stream may therefore lack a
//! commit in its middle or a part of its last commit. Reading such a stream is `Corrupt`. Its items
//! can be exported whole, byte for byte, before an operator deletes those after the hole.
use crate::{
    DynamoDb, DynamoDbError,
    attributes::{Attributes, take_number, take_text, text},
    client::Connection,
    error::Failure,
};
use aws_sdk_dynamodb::types::AttributeValue;
use foldstream::{
    StreamHead, StreamId, Version,
    ports::{BoxStream, EventStore as _, EventStoreError, ReadFrom},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use std::{fmt, num::NonZeroU32};

/// A stream that cannot be read to its end. Its `Display` text is one line for a report.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hole {
    /// The stream that has the hole.
    pub stream: StreamId,
    /// The last version before the hole.
    pub after: Version,
    /// A description of the items at the hole.
    pub reason: String,
}
impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            stream,
            after,
            reason,
        } = self;
        write!(
            f,
            "{stream}: LEFT AS IT IS, it has a hole after version {after} ({reason}): export it, then delete its items from \
             there on"
        )
    }
}

/// A walk through the whole events table in search of streams with holes, started by
/// [`DynamoDb::holes`].
#[derive(Debug)]
pub struct HoleScan {
    dynamodb: DynamoDb,
    next: Option<Attributes>,
    is_over: bool,
    /// The stream of the last item, and the item that must follow it.
    last: Option<Walked>,
}

#[derive(Debug)]
struct Walked {
    stream: String,
    next: u64,
    /// The number of parts of a split commit that must still follow.
    open_parts: u32,
    is_suspect: bool,
}

impl DynamoDb {
    /// Starts a search for streams with holes.
    ///
    /// The search reads the whole events table, since no index lists holes. It costs the table's
    /// size in read units.
    #[must_use]
    pub fn holes(&self) -> HoleScan {
        HoleScan {
            dynamodb: self.clone(),
            next: None,
            is_over: false,
            last: None,
        }
    }

    /// Reads all items of a stream as they are stored, also of a stream that cannot be read as a
    /// history.
    ///
    /// Each item is one line of JSON, `{"table": .., "item": ..}`. The `item` has the form that
    /// `aws dynamodb put-item --item` accepts.
    pub fn items(&self, stream: &StreamId) -> BoxStream<'static, Result<String, DynamoDbError>> {
        let (connection, stream) = (self.connection.clone(), stream.clone());
        let start = Some((connection, stream, None));
        stream::try_unfold(start, |state| async {
            let Some((connection, stream, after)) = state else {
                return Ok(None);
            };
            let (lines, next) = page_of(&connection, &stream, after).await?;
            let state = next.map(|next| (connection, stream, Some(next)));
            Ok::<_, DynamoDbError>(Some((stream::iter(lines.into_iter().map(Ok)), state)))
        })
        .try_flatten()
        .boxed()
    }
}

impl HoleScan {
    /// Examines at most `items` items and returns the holes among them, or `None` at the end of the
    /// table.
    ///
    /// # Errors
    /// [`DynamoDbError`] if a request fails. The scan keeps its position, so the same call may be
    /// repeated.
    pub async fn next_page(
        &mut self,
        items: NonZeroU32,
    ) -> Result<Option<Vec<Hole>>, DynamoDbError> {
        if self.is_over {
            return Ok(None);
        }
        let connection = &self.dynamodb.connection;
        let table = connection.events();
        let request = connection
            .once()
            .scan()
            .table_name(table)
            .consistent_read(true)
            .projection_expression("pk, sk, n, p, pn")
            .limit(i32::try_from(items.get()).unwrap_or(i32::MAX))
            .set_exclusive_start_key(self.next.clone());
        let target = connection.at("Scan", table);
        let sent = connection.send(target, || request.clone().send());
        let answer = sent.await.map_err(|e| Failure::of(e, target))?;
        let mut suspects = Vec::new();
        for row in answer.items.unwrap_or_default() {
            self.walk(row, &mut suspects);
        }
        if answer.last_evaluated_key.is_none() {
            suspects.extend(self.last.take().and_then(Walked::suspect));
        }
        let mut holes = Vec::new();
        for stream in suspects {
            holes.extend(confirm(&self.dynamodb, stream).await?);
        }
        self.is_over = answer.last_evaluated_key.is_none();
        self.next = answer.last_evaluated_key;
        Ok(Some(holes))
    }

    /// Takes note of the next item. A scan returns the items of a stream one after the other, by
    /// version.
    fn walk(&mut self, mut row: Attributes, suspects: &mut Vec<String>) {
        let stream = take_text(&mut row, "pk").ok().flatten().unwrap_or_default();
        if self.last.as_ref().is_none_or(|last| last.stream != stream) {
            let finished = self.last.replace(Walked {
                stream,
                next: 1,
                open_parts: 0,
                is_suspect: false,
            });
            suspects.extend(finished.and_then(Walked::suspect));
        }
        if let Some(last) = &mut self.last {
            last.accept(row);
        }
    }
}

impl Walked {
    fn accept(&mut self, mut row: Attributes) {
        let mut number = |name| take_number::<u64>(&mut row, name).ok().flatten();
        let (first, last) = (number("sk"), number("n"));
        let (part, parts) = (number("p").unwrap_or(0), number("pn").unwrap_or(1));
        let Some(first) = first else {
            self.is_suspect = true;
            return;
        };
        let is_start = part == 0;
        self.is_suspect |= first != self.next || is_start != (self.open_parts == 0);
        self.open_parts = u32::try_from(parts.saturating_sub(part + 1)).unwrap_or(u32::MAX);
        self.next = last.unwrap_or(first).saturating_add(1);
    }
    fn suspect(self) -> Option<String> {
        (self.is_suspect || self.open_parts > 0).then_some(self.stream)
    }
}

/// Reads a stream to confirm that it has a hole.
///
/// A scan is not isolated from concurrent writes, and may show a hole where there is none.
async fn confirm(dynamodb: &DynamoDb, stream: String) -> Result<Option<Hole>, DynamoDbError> {
    let connection = &dynamodb.connection;
    let target = connection.at("Scan", connection.events());
    let stream = StreamId::parse(&stream).map_err(|e| {
        Failure::incompatible(
            target,
            format!("a row of the events table is no commit: {e}"),
        )
    })?;
    let store = dynamodb.event_store();
    let start = ReadFrom::After(StreamHead::empty(stream.clone()));
    let mut commits = store.read(&stream, start, None);
    loop {
        match commits.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(EventStoreError::Corrupt { after, reason, .. }) => {
                return Ok(Some(Hole {
                    stream,
                    after,
                    reason,
                }));
            }
            Err(error) if error.is_transient() => {
                return Err(DynamoDbError::Unavailable {
                    source: error.into(),
                });
            }
            Err(error) => return Err(Failure::incompatible(target, error.to_string()).into()),
        }
    }
}

type ItemPage = (Vec<String>, Option<Attributes>);

async fn page_of(
    connection: &Connection,
    stream: &StreamId,
    after: Option<Attributes>,
) -> Result<ItemPage, DynamoDbError> {
    let table = connection.events();
    let request = connection
        .once()
        .query()
        .table_name(table)
        .key_condition_expression("pk = :pk")
        .expression_attribute_values(":pk", text(stream.as_str()))
        .consistent_read(true)
        .set_exclusive_start_key(after);
    let target = connection.at("Query", table);
    let sent = connection.send(target, || request.clone().send());
    let answer = sent.await.map_err(|e| Failure::of(e, target))?;
    let items = answer.items.unwrap_or_default();
    let lines = items.iter().map(|item| {
        let item = item_json(item).map_err(|reason| Failure::incompatible(target, reason))?;
        Ok::<_, DynamoDbError>(json!({ "table": table, "item": item }).to_string())
    });
    Ok((lines.collect::<Result<_, _>>()?, answer.last_evaluated_key))
}

fn item_json(item: &Attributes) -> Result<Value, String> {
    let fields = item
        .iter()
        .map(|(name, value)| Ok((name.clone(), attribute_json(value)?)));
    let fields: Result<serde_json::Map<_, _>, String> = fields.collect();
    Ok(Value::Object(fields?))
}

/// Encodes a value in DynamoDB's own JSON, in which binary values are base64.
fn attribute_json(value: &AttributeValue) -> Result<Value, String> {
    let base64 = |bytes: &[u8]| aws_smithy_types::base64::encode(bytes);
    Ok(match value {
        AttributeValue::S(text) => json!({ "S": text }),
        AttributeValue::N(number) => json!({ "N": number }),
        AttributeValue::B(blob) => json!({ "B": base64(blob.as_ref()) }),
        AttributeValue::Bool(value) => json!({ "BOOL": value }),
        AttributeValue::Null(value) => json!({ "NULL": value }),
        AttributeValue::M(map) => json!({ "M": item_json(map)? }),
        AttributeValue::L(list) => {
            let list: Result<Vec<_>, _> = list.iter().map(attribute_json).collect();
            json!({ "L": list? })
        }
        AttributeValue::Ss(all) => json!({ "SS": all }),
        AttributeValue::Ns(all) => json!({ "NS": all }),
        AttributeValue::Bs(all) => {
            let all: Vec<_> = all.iter().map(|blob| base64(blob.as_ref())).collect();
            json!({ "BS": all })
        }
        _ => {
            return Err(
                "an item has an attribute of a type that this build does not know: nothing was exported".into(),
            );
        }
    })
}
