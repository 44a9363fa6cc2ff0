//! The row `meta/format` of the control table: the settings on which all processes that share the
//! tables must agree.
//!
//! Shard counts decide in which partition of an index a stream is listed. A process with another
//! count would search the wrong partitions and silently miss streams. The publish mode decides
//! whether commits get markers. A poller would never learn of the commits of a process that writes
//! none. Each process therefore checks the row before anything else.
use crate::{
    DynamoDbConfig, DynamoDbError, PublishMode,
    attributes::{BadAttribute, binary, required, take_binary, text},
    client::Connection,
    error::Failure,
};
use crate::{attributes::Attributes, event_store::FORMAT};
use serde::{Deserialize, Serialize};

const PARTITION: &str = "meta";
const SORT: &str = "format";

/// The value of the row, as JSON. Fields of later builds are ignored, and kept when the row is
/// changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Format {
    format: u64,
    list_shards: u32,
    marker_shards: u32,
    hash: String,
    publish_mode: String,
    /// The fields of later builds, which are kept.
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

/// The row as it is stored.
struct Stored {
    format: Format,
    /// The value that the format was read from.
    value: Vec<u8>,
    /// The attributes of the row other than its key and value.
    others: Attributes,
}

impl Format {
    fn of(config: &DynamoDbConfig) -> Self {
        Self {
            format: FORMAT,
            list_shards: config.list_shards,
            marker_shards: config.marker_shards,
            hash: "murmur2".into(),
            publish_mode: config.publish_mode.unwrap_or_default().name().into(),
            others: serde_json::Map::new(),
        }
    }

    /// Checks that a process of this configuration may use tables of this format, and returns their
    /// publish mode.
    fn check(&self, config: &DynamoDbConfig, table: &str) -> Result<PublishMode, DynamoDbError> {
        let here = Self::of(config);
        let shards = "set the same number, or use other tables: it is fixed when tables are made";
        let build = "deploy the build that made the tables, or a newer one";
        let number = |n: u32| n.to_string();
        let fields = [
            (
                "format",
                here.format.to_string(),
                self.format.to_string(),
                build,
            ),
            ("hash", here.hash.clone(), self.hash.clone(), build),
            (
                "list_shards",
                number(here.list_shards),
                number(self.list_shards),
                shards,
            ),
            (
                "marker_shards",
                number(here.marker_shards),
                number(self.marker_shards),
                shards,
            ),
        ];
        let mismatch = |field, configured: String, stored: String, remedy| {
            Err(DynamoDbError::FormatMismatch {
                table: table.into(),
                field,
                stored,
                configured,
                remedy,
            })
        };
        for (field, configured, stored, remedy) in fields {
            if configured != stored {
                return mismatch(field, configured, stored, remedy);
            }
        }
        let stored = || self.publish_mode.clone();
        let known = "poller, both and stream".to_owned();
        match (PublishMode::named(&self.publish_mode), config.publish_mode) {
            (None, _) => mismatch("publish_mode", known, stored(), build),
            (Some(mode), Some(configured)) if mode != configured => {
                mismatch("publish_mode", configured.to_string(), stored(), MODE)
            }
            (Some(mode), _) => Ok(mode),
        }
    }
}

/// The remedy for a process that is configured for another publish mode than that of the tables.
const MODE: &str = "set DYNAMODB_PUBLISH_MODE (publish_mode) to the same or leave it unset; to change the mode of the tables, \
                    call set_publish_mode and then restart every process that uses them";

fn key() -> Attributes {
    Attributes::from([("pk".into(), text(PARTITION)), ("sk".into(), text(SORT))])
}

/// Checks the row against the configuration and returns the publish mode of the tables. Called by
/// `connect` of every store.
pub(crate) async fn check(connection: &Connection) -> Result<PublishMode, DynamoDbError> {
    let table = connection.control();
    match stored(connection).await? {
        Some(stored) => stored.format.check(connection.config(), table),
        None => Err(DynamoDbError::NoFormat {
            table: table.into(),
        }),
    }
}

/// Checks the row as [`check`] does, if there is one, and returns the mode that the tables have or
/// will have.
pub(crate) async fn expected_mode(connection: &Connection) -> Result<PublishMode, DynamoDbError> {
    match stored(connection).await {
        Ok(Some(stored)) => stored
            .format
            .check(connection.config(), connection.control()),
        Ok(None) => Ok(connection.config().publish_mode.unwrap_or_default()),
        Err(failure) if failure.is_missing_table() => {
            Ok(connection.config().publish_mode.unwrap_or_default())
        }
        Err(failure) => Err(failure.into()),
    }
}

async fn stored(connection: &Connection) -> Result<Option<Stored>, Failure> {
    let table = connection.control();
    let request = connection
        .once()
        .get_item()
        .table_name(table)
        .set_key(Some(key()))
        .consistent_read(true);
    let target = connection.at("GetItem", table);
    let answer = connection.send(target, || request.clone().send()).await;
    let Some(row) = answer.map_err(|e| Failure::of(e, target))?.item else {
        return Ok(None);
    };
    parse(row).map(Some).map_err(|e| {
        let reason = format!("row meta/format of table {table} cannot be read: {e}");
        Failure::incompatible(target, reason)
    })
}

fn parse(mut row: Attributes) -> Result<Stored, BadAttribute> {
    let value = required(take_binary(&mut row, "d")?, "d")?;
    let format = serde_json::from_slice(&value).map_err(|e| BadAttribute::new("d", &e))?;
    Ok(Stored {
        format,
        value,
        others: row,
    })
}

/// Writes the row if there is none, or if the stored row is still the replaced one. Returns false
/// if neither is the case.
async fn put(
    connection: &Connection,
    format: &Format,
    replaced: Option<Stored>,
) -> Result<bool, DynamoDbError> {
    let table = connection.control();
    let target = connection.at("PutItem", table);
    let value =
        serde_json::to_vec(format).map_err(|e| Failure::incompatible(target, e.to_string()))?;
    let (old, others) = replaced.map(|stored| (stored.value, stored.others)).unzip();
    // The row needs a revision like any control row, so that it can be read as one. It is never
    // compared.
    let mut row = others.unwrap_or_else(|| Attributes::from([("r".into(), text("0".repeat(32)))]));
    row.extend(key());
    row.insert("d".into(), binary(value));
    let request = connection
        .once()
        .put_item()
        .table_name(table)
        .set_item(Some(row));
    let request = match old {
        None => request.condition_expression("attribute_not_exists(pk)"),
        Some(old) => request
            .condition_expression("d = :old")
            .expression_attribute_values(":old", binary(old)),
    };
    let answer = connection.send(target, || request.clone().send()).await;
    match answer {
        Ok(_) => Ok(true),
        Err(e)
            if e.as_service_error()
                .is_some_and(|e| e.is_conditional_check_failed_exception()) =>
        {
            Ok(false)
        }
        Err(e) => Err(Failure::of(e, target).into()),
    }
}

/// Writes the row if there is none. Checks it in any case, since another process may have written
/// it first.
pub(crate) async fn write(connection: &Connection) -> Result<(), DynamoDbError> {
    put(connection, &Format::of(connection.config()), None).await?;
    check(connection).await.map(|_| ())
}

/// Changes the publish mode in the row. Ignores the mode in the configuration.
pub(crate) async fn set_mode(
    connection: &Connection,
    mode: PublishMode,
) -> Result<(), DynamoDbError> {
    let table = connection.control();
    let mut config = connection.config().clone();
    config.publish_mode = None;
    // Another process may change the row between the read and the write. The next round reads its
    // result.
    for _ in 0..3 {
        let Some(stored) = stored(connection).await? else {
            return Err(DynamoDbError::NoFormat {
                table: table.into(),
            });
        };
        if stored.format.check(&config, table)? == mode {
            return Ok(());
        }
        let changed = Format {
            publish_mode: mode.name().into(),
            ..stored.format.clone()
        };
        if put(connection, &changed, Some(stored)).await? {
            return Ok(());
        }
    }
    config.publish_mode = Some(mode);
    match stored(connection).await? {
        Some(stored) => stored.format.check(&config, table).map(|_| ()),
        None => Err(DynamoDbError::NoFormat {
            table: table.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(change: impl FnOnce(&mut Format)) -> Format {
        let mut format = Format::of(&DynamoDbConfig::default());
        change(&mut format);
        format
    }
    fn mismatch(config: &DynamoDbConfig, stored: &Format) -> &'static str {
        match stored.check(config, "t") {
            Err(DynamoDbError::FormatMismatch { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_mismatch_names_the_field() {
        let config = DynamoDbConfig::default();
        for (stored, field) in [
            (format(|f| f.format = 2), "format"),
            (format(|f| f.hash = "fnv".into()), "hash"),
            (format(|f| f.list_shards = 8), "list_shards"),
            (format(|f| f.marker_shards = 8), "marker_shards"),
            (format(|f| f.publish_mode = "push".into()), "publish_mode"),
        ] {
            assert_eq!(mismatch(&config, &stored), field);
        }
    }

    #[test]
    fn an_unset_mode_is_what_the_row_says_and_another_is_a_mismatch() {
        let config = DynamoDbConfig::default();
        let stream = format(|f| f.publish_mode = "stream".into());
        assert_eq!(stream.check(&config, "t").unwrap(), PublishMode::Stream);
        let poller = config.with_publish_mode(PublishMode::Poller);
        assert_eq!(mismatch(&poller, &stream), "publish_mode");
        let same = poller.with_publish_mode(PublishMode::Stream);
        assert_eq!(stream.check(&same, "t").unwrap(), PublishMode::Stream);
    }
}
