//! The row `meta/format` of the control table: what every process that shares the tables must agree on.
//!
//! Shard counts decide in which partition of an index a stream is listed. A process with another count would look in
//! the wrong places and silently miss streams, so each one checks the row before it does anything else.
use crate::{
    DynamoDbConfig, DynamoDbError,
    attributes::{BadAttribute, binary, required, take_binary, text},
    client::Connection,
    error::Failure,
};
use crate::{attributes::Attributes, event_store::FORMAT};
use serde::{Deserialize, Serialize};

const PARTITION: &str = "meta";
const SORT: &str = "format";

/// The value of the row, JSON. Fields of later builds are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Format {
    format: u64,
    list_shards: u32,
    marker_shards: u32,
    hash: String,
}

impl Format {
    fn of(config: &DynamoDbConfig) -> Self {
        Self {
            format: FORMAT,
            list_shards: config.list_shards,
            marker_shards: config.marker_shards,
            hash: "murmur2".into(),
        }
    }

    /// The first difference: field, here, there, and what to do.
    fn compare(&self, stored: &Self, table: &str) -> Result<(), DynamoDbError> {
        let shards = "set the same number, or use other tables: it is fixed when tables are made";
        let build = "deploy the build that made the tables, or a newer one";
        let fields = [
            (
                "format",
                self.format.to_string(),
                stored.format.to_string(),
                build,
            ),
            ("hash", self.hash.clone(), stored.hash.clone(), build),
            (
                "list_shards",
                self.list_shards.to_string(),
                stored.list_shards.to_string(),
                shards,
            ),
            (
                "marker_shards",
                self.marker_shards.to_string(),
                stored.marker_shards.to_string(),
                shards,
            ),
        ];
        for (field, configured, stored, remedy) in fields {
            if configured != stored {
                return Err(DynamoDbError::FormatMismatch {
                    table: table.into(),
                    field,
                    stored,
                    configured,
                    remedy,
                });
            }
        }
        Ok(())
    }
}

fn key() -> Attributes {
    Attributes::from([("pk".into(), text(PARTITION)), ("sk".into(), text(SORT))])
}

/// Checks the row against the configuration. Every store's `connect` calls it.
pub(crate) async fn check(connection: &Connection) -> Result<(), DynamoDbError> {
    let table = connection.control();
    let request = connection
        .client()
        .get_item()
        .table_name(table)
        .set_key(Some(key()))
        .consistent_read(true);
    let place = connection.at("GetItem", table);
    let answer = request.send().await.map_err(|e| Failure::of(e, place))?;
    let Some(row) = answer.item else {
        return Err(DynamoDbError::NoFormat {
            table: table.into(),
        });
    };
    let stored = parse(row).map_err(|e| {
        let reason = format!("row meta/format of table {table} cannot be read: {e}");
        Failure::incompatible(place, reason)
    })?;
    Format::of(connection.config()).compare(&stored, table)
}

fn parse(mut row: Attributes) -> Result<Format, BadAttribute> {
    let value = required(take_binary(&mut row, "d")?, "d")?;
    serde_json::from_slice(&value).map_err(|e| BadAttribute::new("d", &e))
}

/// Writes the row if there is none, and checks it in any case: somebody else may have been first.
pub(crate) async fn write(connection: &Connection) -> Result<(), DynamoDbError> {
    let table = connection.control();
    let place = connection.at("PutItem", table);
    let value = serde_json::to_vec(&Format::of(connection.config()))
        .map_err(|e| Failure::incompatible(place, e.to_string()))?;
    let mut row = key();
    row.insert("d".into(), binary(value));
    // The revision of a control row, so that the row reads as one. It is never compared.
    row.insert("r".into(), text("0".repeat(32)));
    let request = connection
        .client()
        .put_item()
        .table_name(table)
        .set_item(Some(row))
        .condition_expression("attribute_not_exists(pk)");
    match request.send().await {
        Ok(_) => {}
        Err(e)
            if e.as_service_error()
                .is_some_and(|e| e.is_conditional_check_failed_exception()) => {}
        Err(e) => return Err(Failure::of(e, place).into()),
    }
    check(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_names_the_field() {
        let here = Format::of(&DynamoDbConfig::default());
        assert!(here.compare(&here.clone(), "t").is_ok());
        for (there, field) in [
            (
                Format {
                    format: 2,
                    ..here.clone()
                },
                "format",
            ),
            (
                Format {
                    hash: "fnv".into(),
                    ..here.clone()
                },
                "hash",
            ),
            (
                Format {
                    list_shards: 8,
                    ..here.clone()
                },
                "list_shards",
            ),
            (
                Format {
                    marker_shards: 8,
                    ..here.clone()
                },
                "marker_shards",
            ),
        ] {
            match here.compare(&there, "t") {
                Err(DynamoDbError::FormatMismatch { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{other:?}"),
            }
        }
    }
}
